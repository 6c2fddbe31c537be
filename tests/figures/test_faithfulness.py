"""helpers/figures/faithfulness.py: the figures draw the tables' numbers, and grey is for controls."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from reading import read_bars, read_texts, read_ticks, read_title, render

from helpers.figures import faithfulness as plots
from helpers.figures.style import GREY

pytestmark = pytest.mark.usefixtures("tidy_figures")
MAPS = [*plots.STYLES, *plots.CONTROLS]


def make_curves() -> pd.DataFrame:
    rows = [(order, kind, fraction, 0.05 * place + 0.1 * fraction + 0.3 * (kind == "insertion"))
            for place, order in enumerate(MAPS) for kind in ("deletion", "insertion") for fraction in (0, 0.5, 1)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["order", "kind", "fraction", "estimate"])
    return table.assign(low=table["estimate"] - 0.01, high=table["estimate"] + 0.02)


def test_curves_draw_every_point_and_bound():
    figure = plots.plot_curves(make_curves())
    render(figure)
    for axis, kind in zip(figure.axes, ("deletion", "insertion"), strict=True):
        assert read_title(axis) == kind
        assert "(the most important first)" in axis.get_xlabel()
        for place, (order, container) in enumerate(zip(MAPS, axis.containers, strict=True)):
            line = container.lines[0]
            expected = 5 * place + np.array([0, 5, 10]) + 30 * (kind == "insertion")
            np.testing.assert_allclose(line.get_xydata()[:, 1], expected)
            np.testing.assert_allclose(line.get_xydata()[:, 0], [0, 50, 100], atol=1.5)
            np.testing.assert_allclose(
                read_bars(container), np.stack([expected - 1, expected + 2], axis=1)
            )
            assert (to_hex(line.get_color()) == to_hex(GREY)) == (order in plots.CONTROLS)
    assert "removed" in figure.axes[0].get_xlabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == MAPS
    assert "probability" in figure.axes[0].get_ylabel()


def make_scores(measures) -> pd.DataFrame:
    chance = {"pointing": 0.1, "mass": 1.0}
    rows = [(order, measure, 0.1 * (place + 1), 0.1 * place, 0.1 * place + 0.3, chance.get(measure, np.nan))
            for place, order in enumerate(plots.STYLES) for measure in measures]  # fmt: skip
    return pd.DataFrame(rows, columns=["order", "measure", "estimate", "low", "high", "chance"])


def test_the_scoreboard_is_sorted_and_shows_chance():
    table = make_scores(["deletion", "deletion_gain", "insertion_gain", "pointing", "mass"])
    figure = plots.plot_scoreboard(table.sample(frac=1, random_state=0))
    render(figure)
    assert [read_title(axis) for axis in figure.axes] == [
        title for title, _, _ in plots.PANELS.values()
    ]
    assert read_ticks(figure.axes[0], "y") == list(plots.STYLES)  # the best at the top
    for axis, scale, chance in zip(figure.axes, (100, 100, 100, 1), (0, 0, 10, 1), strict=True):
        points = sorted(
            (container.lines[0].get_xydata()[0] for container in axis.containers),
            key=lambda xy: xy[1],
        )
        np.testing.assert_allclose(
            points, [(0.1 * (place + 1) * scale, place) for place in range(5)]
        )
        (dashed,) = (line for line in axis.lines if line.get_linestyle() == "--")
        assert dashed.get_xdata()[0] == pytest.approx(chance)


def test_a_panel_without_data_is_left_out():
    table = make_scores(["deletion_gain", "insertion_gain"]).drop(columns="chance")
    figure = plots.plot_scoreboard(table)
    assert len(figure.axes) == 2
    blank = pd.concat([table, make_scores(["mass"]).assign(estimate=np.nan)])
    assert len(plots.plot_scoreboard(blank).axes) == 2
    nothing = table.assign(low=np.nan, high=np.nan)
    render(plots.plot_scoreboard(nothing))


@pytest.mark.parametrize(("n_layers", "n_heads"), [(4, 4), (12, 12), (1, 2)])
def test_heads_stand_in_their_cells_and_undecided_ones_in_brackets(n_layers, n_heads):
    rows = []
    for layer, head in np.ndindex(n_layers, n_heads):
        share = 0.1 + 0.01 * (layer + head)
        rows.append((layer, head, "pointing", share, share - 0.015, share + 0.02, 0.1))
        rows.append((layer, head, "mass", 1.0 + layer, 0.9 + layer, 1.1 + layer, 1.0))
    table = pd.DataFrame(
        rows, columns=["layer", "head", "measure", "estimate", "low", "high", "chance"]
    )
    figure = plots.plot_pointing(table.sample(frac=1, random_state=0))
    render(figure)
    pointing, mass = figure.axes
    assert read_title(pointing) == "pointing game, % (chance: 10 %)"
    cells = {text.get_position(): text.get_text() for text in pointing.texts}
    assert cells[0, 0] == "(10)"
    if n_layers > 1:
        assert cells[1, 2] == "13"  # head 1 across, layer 2 downwards
        assert {text.get_position(): text.get_text() for text in mass.texts}[0, 2] == "3.0"
    assert "(1.0)" in read_texts(mass)
    assert read_ticks(pointing, "y") == [f"L{layer}" for layer in range(n_layers)]
