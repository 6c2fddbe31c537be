"""helpers/figures/modality.py: the figures draw the tables' numbers, controls apart, and say how many."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from reading import is_hollow, read_bars, read_texts, read_ticks, read_title, render

from helpers.figures import modality as plots
from helpers.figures.style import IMAGE_COLOR, TEXT_COLOR

pytestmark = pytest.mark.usefixtures("tidy_figures")
MEASURES = [name for panel in plots.PANELS.values() for name in panel[3]]
KINDS = ("questions", "words-only controls")


def make_needs(families, kinds=KINDS, measures=MEASURES) -> pd.DataFrame:
    cells = product(enumerate(families), kinds, enumerate(measures))
    rows = [
        (
            family,
            kind,
            measure,
            10.0 * place + 3 * number + 40 * (kind == KINDS[1]),
            20 if measure == "MM-SHAP" else 400,
        )
        for (place, family), kind, (number, measure) in cells
    ]
    table = pd.DataFrame(rows, columns=["family", "kind", "measure", "estimate", "n"])
    return table.assign(low=table["estimate"] - 2, high=table["estimate"] + 1, enough=True)


def test_every_number_is_drawn_in_its_panel_and_row():
    families = ["why", "where", "what"]
    table = make_needs(families)
    figure = plots.plot_needs(table)
    render(figure)
    assert [read_title(axis) for axis in figure.axes] == list(plots.PANELS)
    assert read_ticks(figure.axes[0], "y") == [f"{family}\nn = 400 + 400" for family in families]
    assert figure.axes[0].yaxis_inverted()  # the first at the top
    for axis, (unit, baseline, color, names) in zip(
        figure.axes, plots.PANELS.values(), strict=True
    ):
        own = table[table["measure"].isin(names)]
        assert len(axis.containers) == len(own)
        for row, container in zip(own.itertuples(), axis.containers, strict=True):
            ((x, y),) = container.lines[0].get_xydata()
            assert x == row.estimate
            assert round(y) == families.index(row.family)
            assert (y > round(y)) == (row.kind == KINDS[1])  # controls below
            np.testing.assert_allclose(read_bars(container, 0), [[row.low, row.high]])
            expected = color if row.kind == KINDS[0] else plots.CONTROL_COLOR
            assert to_hex(container.lines[0].get_color()) == to_hex(expected)
        assert unit in axis.get_xlabel()
        assert any(
            line.get_linestyle() == "--" and line.get_xdata()[0] == baseline for line in axis.lines
        )
    assert "words-only controls" in figure.get_suptitle()
    assert plots.PANELS["answer without the words"][2] == TEXT_COLOR != IMAGE_COLOR


def test_kinds_and_measures_differ_not_by_colour_alone():
    figure = plots.plot_needs(make_needs(["what"]))
    lines = [container.lines[0] for container in figure.axes[1].containers]
    assert len({(line.get_marker(), is_hollow(line)) for line in lines}) == 4


def test_a_panel_with_other_numbers_of_questions_says_them():
    table = make_needs(["what", "why"])
    table = table[~((table["family"] == "why") & (table["kind"] == KINDS[1]))]
    table = table[~((table["measure"] == "MM-SHAP") & (table["kind"] == KINDS[1]))]
    figure = plots.plot_needs(table)
    assert read_ticks(figure.axes[0], "y") == ["what\nn = 400 + 400", "why\nn = 400"]
    assert [read_texts(axis) for axis in figure.axes] == [[], [], [], ["n = 20 + 0", "n = 20"]]


def test_what_is_not_known_gets_no_panel_and_no_point():
    table = make_needs(["what", "why"], kinds=KINDS[:1])
    table.loc[table["measure"].isin(["MM-SHAP", "image exchanged"]), "estimate"] = np.nan
    table.loc[:1, ["low", "high"]] = np.nan
    figure = plots.plot_needs(table)
    render(figure)
    assert [read_title(axis) for axis in figure.axes] == list(plots.PANELS)[:3]
    assert "exchanged" not in figure.axes[1].get_xlabel()
    assert "controls" not in figure.get_suptitle()
    assert [len(axis.containers) for axis in figure.axes] == [4, 2, 2]


def make_scores() -> pd.DataFrame:
    rows = [
        ("image share, last layer", "ranks", 0.5, 0.25, 0.75, 7),
        ("MM-SHAP", "ranks", -0.25, -0.5, 0.5, 7),
        ("image share, last layer", "controls", 0.875, 0.75, 1.0, 2409),
        ("MM-SHAP", "controls", 0.5, 0.25, 0.75, 192),
    ]
    return pd.DataFrame(rows, columns=["measure", "score", "estimate", "low", "high", "n"])


def test_scores_stand_against_what_says_nothing():
    table = make_scores()
    figure = plots.plot_scores(table)
    render(figure)
    assert read_ticks(figure.axes[0], "y") == ["image share, last layer", "MM-SHAP"]
    for axis, (score, nothing) in zip(
        figure.axes, {"ranks": 0, "controls": 0.5}.items(), strict=True
    ):
        own = table[table["score"] == score]
        points = [container.lines[0].get_xydata()[0] for container in axis.containers]
        np.testing.assert_allclose(points, np.stack([own["estimate"], [0, 1]], axis=1))
        bars = [read_bars(container, 0)[0] for container in axis.containers]
        np.testing.assert_allclose(bars, own[["low", "high"]])
        (dashed,) = (line for line in axis.lines if line.get_linestyle() == "--")
        assert dashed.get_xdata()[0] == nothing
        assert read_texts(axis) == [f"n = {n:,}" for n in own["n"]]


def test_a_score_without_numbers_gets_no_panel():
    table = make_scores()
    table.loc[table["score"] == "controls", "estimate"] = np.nan
    figure = plots.plot_scores(table)
    render(figure)
    assert len(figure.axes) == 1
    assert "families" in figure.axes[0].get_xlabel()
