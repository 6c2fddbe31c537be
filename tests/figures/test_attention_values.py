"""helpers/figures/attention.py: bars end at their bounds, lines run from key to query, marks say what is dead."""

import numpy as np
import pandas as pd
import pytest
from reading import read_bars, render

from helpers.figures import attention as plots

pytestmark = pytest.mark.usefixtures("tidy_figures")
GREY_PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
MEASURES, QUERIES = ("image share", "special", "entropy"), ("cls", "words", "patches")
UNIFORM = {"image share": 0.9, "special": 0.05, "entropy": 1.0}


# ------------------------------------------------------------------------------------------------------ layers


def place_share(measure: int, query: int, untrained: int) -> np.ndarray:
    """Shares of three layers that tell their place: hundredths by layer, tenths by query."""
    return 0.2 + 0.01 * np.arange(3) + 0.1 * query + 0.003 * measure + 0.001 * untrained


def make_layers(models=("trained", "untrained")) -> pd.DataFrame:
    rows = [
        {"measure": measure, "model": model, "query": query, "layer": layer, "estimate": share, "low": share - 0.01,
         "high": share + 0.02, "reaches_answer": query == "cls" or layer < 2}
        for m, measure in enumerate(MEASURES) for o, model in enumerate(models) for q, query in enumerate(QUERIES)
        for layer, share in enumerate(place_share(m, q, o))
    ]  # fmt: skip
    return pd.DataFrame(rows).sample(
        frac=1, random_state=0, ignore_index=True
    )  # the order must not matter


def test_layers_draw_every_estimate_and_its_bounds():
    panels = np.array(plots.plot_layers(make_layers(), UNIFORM).axes).reshape(3, 3)
    for (m, q), panel in np.ndenumerate(panels):
        untrained, trained = panel.containers
        for o, container in enumerate((trained, untrained)):
            expected = 100 * place_share(m, q, o)
            points = container.lines[0].get_xydata()
            np.testing.assert_allclose(points[:, 1], expected)
            np.testing.assert_allclose(points[:, 0], [0, 1, 2], atol=0.2)
            np.testing.assert_allclose(
                read_bars(container), np.stack([expected - 1, expected + 2], axis=1)
            )
        assert trained.lines[0].get_linestyle() != untrained.lines[0].get_linestyle()
        assert panel.get_ylim()[0] == 0


def test_layers_without_a_twin_and_without_intervals():
    table = make_layers(("trained",)).assign(low=np.nan, high=np.nan)
    figure = plots.plot_layers(table, UNIFORM)
    render(figure)
    bars = read_bars(figure.axes[0].containers[-1])
    assert len(bars) == 3
    np.testing.assert_array_equal(bars[:, 0], bars[:, 1])


# ------------------------------------------------------------------------------------------------------- heads


def test_heads_draw_the_given_numbers_readably():
    grid = np.array([[-0.5, 0.3, 0.0], [0.25, 0.02, 0.5]])
    axis = plots.plot_heads({"a": grid}, {"a": np.zeros((2, 3), bool)}).axes[0]
    np.testing.assert_allclose(axis.images[0].get_array(), 100 * grid)
    assert axis.images[0].get_cmap().name == "RdBu_r"  # red above, blue below uniform attention
    written = {
        text.get_position(): (text.get_text(), text.get_color()) for text in axis.texts
    }  # (head, layer)
    assert written[0, 0] == ("−50", "white")  # on dark blue
    assert written[2, 1] == ("+50", "white")  # on dark red
    assert written[2, 0] == ("0", "black")  # on white
    assert written[0, 1] == ("+25", "black")


def test_numbers_of_twelve_by_twelve_heads_fit_their_cells():
    grid = np.linspace(-0.9, 0.9, 144).reshape(12, 12)
    figure = plots.plot_heads(
        {"a": grid, "b": grid}, {"a": grid < 5, "b": grid < 5}
    )  # brackets everywhere
    render(figure)
    axis = figure.axes[0]
    assert len(axis.texts) == 144
    cell = axis.get_window_extent().width / 12
    assert max(text.get_window_extent().width for text in axis.texts) <= cell


# -------------------------------------------------------------------------------------------------------- maps


def test_runs_on_a_grey_picture_without_any_attention():
    figure = plots.plot_runs(GREY_PICTURE, {"only": np.zeros((3, 4))}, "nothing")
    render(figure)
    picture, heatmap = figure.axes[0].images
    np.testing.assert_array_equal(picture.get_array(), GREY_PICTURE)
    assert not np.any(heatmap.get_array())


def test_runs_draw_their_own_weights_in_per_cent():
    runs = {
        "first": np.array([[0.1, 0.2], [0.0, 0.3]]),
        "second": np.array([[0.0, 0.05], [0.5, 0.1]]),
    }
    first, second, _ = plots.plot_runs(GREY_PICTURE, runs, "two runs", [(2, 3, 4, 5)]).axes
    np.testing.assert_allclose(first.images[1].get_array(), [[10, 20], [0, 30]])
    np.testing.assert_allclose(second.images[1].get_array(), [[0, 5], [50, 10]])
    assert [box.get_xy() for panel in (first, second) for box in panel.patches] == [(2, 3)] * 2


# -------------------------------------------------------------------------------------------------------- hits


def make_hits() -> pd.DataFrame:
    shift = {
        "the head": 0.5,
        "same head, untrained": 0.1,
        "same head, another question": 0.3,
        "difference": 0.2,
    }
    rows = [{"layer": layer, "against": against, "estimate": share, "low": share - 0.05, "high": share + 0.04,
             "label": f"L{layer}H{3 - layer}, words"}
            for against, base in shift.items() for layer in range(3) for share in [base + 0.1 * layer]]  # fmt: skip
    return pd.DataFrame(rows)


def test_hits_draw_each_control_and_leave_the_difference_to_the_text():
    axis = plots.plot_hits(make_hits(), 0.07).axes[0]
    drawn = {
        round(container.lines[0].get_xydata()[0, 1]): container for container in axis.containers
    }
    assert set(drawn) == {50, 10, 30}
    for first, container in drawn.items():
        expected = first + 10 * np.arange(3)
        np.testing.assert_allclose(container.lines[0].get_xydata()[:, 1], expected)
        np.testing.assert_allclose(
            read_bars(container), np.stack([expected - 5, expected + 4], axis=1)
        )
    assert len({container.lines[0].get_color() for container in axis.containers}) == 3
    assert len({container.lines[0].get_linestyle() for container in axis.containers}) == 3


@pytest.mark.parametrize(("has_interval", "tops"), [(True, [54, 64, 74]), (False, [50, 60, 70])])
def test_hits_name_each_head_above_its_bar(has_interval, tops):
    table = make_hits() if has_interval else make_hits().assign(low=np.nan, high=np.nan)
    axis = plots.plot_hits(table, 0.07).axes[0]
    assert [note.get_text()[:4] for note in axis.texts] == ["L0H3", "L1H2", "L2H1"]
    assert [note.xy[0] for note in axis.texts] == [0, 1, 2]
    assert [note.xy[1] for note in axis.texts] == pytest.approx(tops)
