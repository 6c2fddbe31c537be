"""Figures of notebook 05's second half: what removal costs, what foretells it, which heads carry an answer."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from reading import read_bars, read_legend, read_texts, read_ticks, read_title, render

from helpers.figures import causes as plots

pytestmark = pytest.mark.usefixtures("tidy_figures")


# ---------------------------------------------------------------------------------------------------- ablation


def make_effects(
    n_layers=2, n_heads=2, families=("all", "what", "why"), modes=("zero", "mean")
) -> pd.DataFrame:
    """Points that tell their place: fives by head, ones by family, tens by mode; `why` has too few questions."""
    rows = [
        {"mode": mode, "layer": layer, "head": head, "name": f"L{layer}H{head}", "family": family, "drop": drop,
         "low": drop - 2, "high": drop + 3, "n": 7 if family == "why" else 40, "told": family != "why",
         "significant": family == "what" and head == 1}
        for m, mode in enumerate(modes) for f, family in enumerate(families) for layer, head in np.ndindex(n_layers, n_heads)
        for drop in [5.0 * (layer * n_heads + head) + f - 10 * m]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_ablation_by_head_and_family():
    figure = plots.plot_ablation(make_effects())
    render(figure)
    zero, mean, bar = figure.axes
    expected = np.array([[0, 1, np.nan], [5, 6, np.nan], [10, 11, np.nan], [15, 16, np.nan]])
    np.testing.assert_allclose(zero.images[0].get_array().filled(np.nan), expected)
    np.testing.assert_allclose(mean.images[0].get_array().filled(np.nan), expected - 10)
    assert (
        zero.images[0].get_clim() == mean.images[0].get_clim() == (-16, 16)
    )  # 0 is the middle of the colours
    assert zero.images[0].get_cmap()(0.5)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.02)
    assert to_hex(zero.images[0].get_cmap().get_bad()) == "#eeeeee"  # too few questions: grey
    assert read_ticks(zero, "y") == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert zero.yaxis_inverted()
    assert read_ticks(zero, "x") == ["all\nn=40", "what\nn=40", "why\nn=7"]
    written = {text.get_position()[::-1]: text.get_text() for text in mean.texts}  # (head, family)
    assert written == {
        (0, 0): "−10", (1, 0): "−5", (2, 0): "0", (3, 0): "5", (0, 1): "−9", (1, 1): "−4", (2, 1): "1", (3, 1): "6",
    }  # fmt: skip
    bold = {text.get_position() for text in zero.texts if text.get_fontweight() == "bold"}
    assert bold == {(1, 1), (1, 3)}  # significant: framed and bold
    frames = {(round(p.get_x() + 0.47), round(p.get_y() + 0.46)) for p in zero.patches}
    assert frames == bold
    assert read_title(zero).endswith("zero")
    assert read_title(mean).endswith("its mean")
    assert "points" in bar.get_ylabel()
    assert figure.get_suptitle() == "Accuracy lost without each head"


def test_small_losses_have_no_sign():
    table = make_effects(1, 3, ["all"], ["zero"]).assign(drop=[-0.4, 0.4, -0.6])
    assert read_texts(plots.plot_ablation(table).axes[0]) == ["0", "0", "−1"]


def test_ablation_of_twelve_by_twelve_heads_shows_the_largest_effects():
    table = make_effects(12, 12, ["all"], ["zero"]).assign(drop=0.1)
    large = [("L11H0", -30.0), ("L0H3", 20.0), ("L5H11", 10.0)]
    for name, drop in large:
        table.loc[table["name"] == name, "drop"] = drop
    figure = plots.plot_ablation(table, most=3)
    axis = figure.axes[0]
    assert read_ticks(axis, "y") == ["L0H3", "L5H11", "L11H0"]  # in the order of the model
    np.testing.assert_allclose(axis.images[0].get_array()[:, 0], [20, 10, -30])
    assert "3 of 144" in figure.get_suptitle()
    assert len(read_ticks(plots.plot_ablation(table).axes[0], "y")) == 24


def test_ablation_with_one_question():
    table = make_effects(1, 1, ["all", "what"]).assign(
        n=1, told=False, significant=False, low=np.nan, high=np.nan
    )
    figure = plots.plot_ablation(table)
    render(figure)
    assert not figure.axes[0].texts
    assert figure.axes[0].images[0].get_array().mask.all()
    assert read_ticks(figure.axes[0], "x") == ["all\nn=1", "what\nn=1"]


def test_families_that_are_not_told_do_not_set_the_scale():
    table = make_effects(1, 1)
    table.loc[table["family"] == "why", "drop"] = 80.0
    assert plots.plot_ablation(table).axes[0].images[0].get_clim() == (-10, 10)


def test_ablation_of_layers():
    table = make_effects(3, 1, modes=("attention", "layer")).drop(columns="head")
    table["name"] = "L" + table["layer"].astype(str)
    figure = plots.plot_ablation(table)
    render(figure)
    alone, whole, _ = figure.axes
    assert read_ticks(alone, "y") == ["L0", "L1", "L2"]
    assert alone.get_ylabel() == "layer"
    assert (read_title(alone), read_title(whole)) == (
        "all heads of the layer replaced by zero",
        "whole layer left out",
    )
    assert figure.get_suptitle() == "Accuracy lost without each layer"


def test_largest_effects_keep_their_order_and_intervals():
    rows = [("zero", "L1H0", "what", 60.0, 50.0, 70.0, 40), ("zero", "L0H1", "why", 30.0, np.nan, np.nan, 7),
            ("mean", "L1H0", "what", 20.0, 15.0, 26.0, 40)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["mode", "name", "family", "drop", "low", "high", "n"])
    figure = plots.plot_largest_effects(table)
    render(figure)
    axis = figure.axes[0]
    assert read_ticks(axis, "x") == ["L1H0\nwhat\nn=40", "L0H1\nwhy\nn=7"]
    zero, mean = axis.containers
    np.testing.assert_allclose(zero.lines[0].get_ydata(), [60, 30])
    np.testing.assert_allclose(mean.lines[0].get_ydata(), [20, np.nan])
    np.testing.assert_allclose(read_bars(zero), [[50, 70], [30, 30]])
    np.testing.assert_allclose(read_bars(mean), [[15, 26]])
    assert (np.array(zero.lines[0].get_xdata()) < np.array(mean.lines[0].get_xdata())).all()
    assert zero.lines[0].get_marker() != mean.lines[0].get_marker()
    assert read_legend(axis.get_legend()) == ["replaced by zero", "replaced by its mean"]
    assert any(
        list(line.get_ydata()) == [0, 0] and line.get_linestyle() == "--" for line in axis.lines
    )
    assert "points" in axis.get_ylabel()
    assert "2 largest" in read_title(axis)


def test_largest_effects_of_one_way():
    table = make_effects(1, 1, ["all"], ["mean"])
    figure = plots.plot_largest_effects(table)
    render(figure)
    assert read_legend(figure.axes[0].get_legend()) == ["replaced by its mean"]


# -------------------------------------------------------------------------------------------------- importance


def make_importance(n_layers: int, n_heads: int) -> pd.DataFrame:
    table = make_effects(n_layers, n_heads, ["all"], ["zero"])
    return table.assign(words=0.01 * np.arange(len(table)), cls=0.5 - 0.02 * np.arange(len(table)))


def test_importance_against_attention():
    labels = {"words": "words → image: share − uniform", "cls": "[CLS] → image: share − uniform"}
    figure = plots.plot_importance(make_importance(2, 2), labels, named=1)
    render(figure)
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel()) == tuple(labels.values())
    assert "points" in left.get_ylabel()
    for axis, x in ((left, [[0, 0.01], [0.02, 0.03]]), (right, [[0.5, 0.48], [0.46, 0.44]])):
        first, second = axis.containers  # a layer each
        for container, across, drop in (
            (first, x[0], np.array([0, 5])),
            (second, x[1], np.array([10, 15])),
        ):
            np.testing.assert_allclose(container.lines[0].get_xydata()[:, 0], across)
            np.testing.assert_allclose(container.lines[0].get_xydata()[:, 1], drop)
            np.testing.assert_allclose(read_bars(container), np.stack([drop - 2, drop + 3], axis=1))
        assert first.lines[0].get_marker() != second.lines[0].get_marker()
        assert [(note.get_text(), *note.xy) for note in axis.texts] == [
            ("L1H1", x[1][1], 15)
        ]  # matters most
    assert read_legend(figure.legends[0]) == ["L0", "L1"]


@pytest.mark.parametrize(("n_layers", "n_heads", "named"), [(12, 12, 5), (1, 1, 1)])
def test_importance_of_other_sizes_without_intervals(n_layers, n_heads, named):
    table = make_importance(n_layers, n_heads).assign(low=np.nan, high=np.nan)
    figure = plots.plot_importance(table, {"words": "x"})
    render(figure)
    assert len(figure.axes[0].containers) == n_layers
    assert len(figure.axes[0].texts) == named
    bars = read_bars(figure.axes[0].containers[0])
    np.testing.assert_array_equal(bars[:, 0], bars[:, 1])


# --------------------------------------------------------------------------------------------------- agreement


def make_agreement() -> pd.DataFrame:
    """Two predictors against two outcomes; within layers, the second is undefined."""
    rows = [
        (over, first, second, 0.1 * p + 0.4 * o if over == "all heads" or p == 0 else np.nan)
        for over in ("all heads", "within layers")
        for p, first in enumerate(("gradient", "number of the layer"))
        for o, second in enumerate(("lost", "carried"))
    ]
    table = pd.DataFrame(rows, columns=["over", "first", "second", "correlation"])
    return table.assign(low=table["correlation"] - 0.2, high=table["correlation"] + 0.3)


def test_agreement_of_predictors_and_outcomes():
    figure = plots.plot_agreement(
        make_agreement(), ["gradient", "number of the layer"], ["lost", "carried"]
    )
    render(figure)
    every, within = figure.axes
    assert (read_title(every), read_title(within)) == ("all heads", "within layers")
    assert read_ticks(every, "y") == ["gradient", "number of the layer"]
    assert every.yaxis_inverted()
    lost, carried = every.containers
    np.testing.assert_allclose(lost.lines[0].get_xydata()[:, 0], [0, 0.1])
    np.testing.assert_allclose(carried.lines[0].get_xydata()[:, 0], [0.4, 0.5])
    assert lost.lines[0].get_marker() != carried.lines[0].get_marker()
    np.testing.assert_allclose(read_bars(carried, 0), [[0.2, 0.7], [0.3, 0.8]])
    np.testing.assert_allclose(within.containers[0].lines[0].get_xydata()[:, 0], [0, np.nan])
    assert read_legend(figure.legends[0]) == ["lost", "carried"]
    assert any(list(line.get_xdata()) == [0, 0] for line in every.lines)


# --------------------------------------------------------------------------------------------------- carriers


def make_carriers(n_layers: int, n_heads: int) -> pd.DataFrame:
    places = np.array(list(np.ndindex(n_layers, n_heads)))
    share = 2.0 * np.arange(len(places)) - 5
    table = pd.DataFrame({"layer": places[:, 0], "head": places[:, 1], "share": share})
    table["name"] = [f"L{layer}H{head}" for layer, head in places]
    return table.assign(low=share - 1, high=share + 2, significant=share > 5)


def test_carriers_on_the_map_and_in_order():
    figure = plots.plot_carriers(make_carriers(2, 4), named=3)
    render(figure)
    grid, ranked, bar = figure.axes
    np.testing.assert_allclose(grid.images[0].get_array(), [[-5, -3, -1, 1], [3, 5, 7, 9]])
    assert grid.images[0].get_clim() == (-9, 9)
    assert [text.get_text() for text in grid.texts] == ["−5", "−3", "−1", "1", "3", "5", "7", "9"]
    assert [text.get_text() for text in grid.texts if text.get_fontweight() == "bold"] == ["7", "9"]
    assert len(grid.patches) == 2
    assert read_ticks(ranked, "y") == ["L1H3", "L1H2", "L0H0"]  # by size, whatever the sign
    np.testing.assert_allclose(ranked.containers[0].lines[0].get_xydata()[:, 0], [9, 7, -5])
    np.testing.assert_allclose(read_bars(ranked.containers[0], 0), [[8, 11], [6, 9], [-6, -3]])
    assert "%" in bar.get_ylabel()


@pytest.mark.parametrize(("n_layers", "n_heads"), [(12, 12), (1, 1)])
def test_carriers_of_other_sizes(n_layers, n_heads):
    figure = plots.plot_carriers(make_carriers(n_layers, n_heads))
    render(figure)
    assert len(figure.axes[0].texts) == n_layers * n_heads
    assert len(read_ticks(figure.axes[1], "y")) == min(12, n_layers * n_heads)
