"""Figures of notebook 06: what is drawn where, with many families and layers, and without values."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from reading import read_bars, read_legend, read_texts, read_ticks, read_title, render

from helpers.figures import compression as plots

pytestmark = pytest.mark.usefixtures("tidy_figures")
FAMILIES = (
    "all",
    "what",
    "what color",
    "where",
    "why",
    "how many",
    "how",
    "who",
    "which",
    "is/are",
    "other",
)


# ----------------------------------------------------------------------------------------------- removal curves


def make_curves(steps=(1, 2, 4), total=8, draws=2) -> pd.DataFrame:
    """Accuracy 90, 80, ... less tens by order; intervals of 2 below and 3 above."""
    orders = [
        "ablation",
        "gradient",
        "attention",
        *(f"random {draw + 1}" for draw in range(draws)),
        "random",
    ]
    rows = [
        (order, removed, removed / total, value, value - 2, value + 3, 40)
        for number, order in enumerate(orders)
        for place, removed in enumerate(steps)
        for value in [90.0 - 10 * place - 5 * number]
    ]
    return pd.DataFrame(rows, columns=["order", "removed", "share", "estimate", "low", "high", "n"])


def test_curves_of_each_order():
    figure = plots.plot_removal_curves(make_curves(), intact=95, tolerance=1)
    render(figure)
    (axis,) = figure.axes
    by_label = {container.get_label(): container for container in axis.containers}
    assert set(by_label) == {
        "by ablation",
        "by gradient",
        "by attention",
        "random, mean (interval over draws)",
    }
    np.testing.assert_allclose(by_label["by ablation"].lines[0].get_ydata(), [90, 80, 70])
    np.testing.assert_allclose(read_bars(by_label["by ablation"]), [[88, 93], [78, 83], [68, 73]])
    np.testing.assert_allclose(
        by_label["by gradient"].lines[0].get_xdata(), [12.5, 25, 50], atol=1
    )  # set apart
    assert read_ticks(axis, "x") == ["12 %\n1", "25 %\n2", "50 %\n4"]
    thin = [
        line for line in axis.lines if line.get_linewidth() == 0.8 and line.get_color() == "#BBBBBB"
    ]
    assert [line.get_ydata()[0] for line in thin] == [75, 70]
    assert "each of 2 random orders" in read_legend(axis.get_legend())
    assert any(
        line.get_linestyle() == "--" and set(line.get_ydata()) == {95} for line in axis.lines
    )
    assert read_title(axis).startswith("Accuracy as heads are removed")


def test_curves_without_intervals():
    figure = plots.plot_removal_curves(
        make_curves().assign(low=np.nan, high=np.nan), intact=95, tolerance=1
    )
    render(figure)
    bars = read_bars(figure.axes[0].containers[0])
    np.testing.assert_allclose(bars[:, 0], bars[:, 1])  # no length


# ----------------------------------------------------------------------------------------------- family costs


def make_costs(families=("all", "what", "why"), heads=("1", "4"), layers=("+L2",)) -> pd.DataFrame:
    """Tens by step, ones by family; `why` has too few questions; `what` is significant."""
    rows = [
        (what, removed, family, 10.0 * step + number - 1, 7 if family == "why" else 40, family != "why", family == "what")
        for what, columns in (("heads removed", heads), ("layers removed", layers))
        for step, removed in enumerate(columns) for number, family in enumerate(families)
    ]  # fmt: skip
    return pd.DataFrame(
        rows, columns=["what", "removed", "family", "drop", "n", "told", "significant"]
    )


def test_costs_by_family_and_step():
    figure = plots.plot_family_costs(make_costs())
    render(figure)
    heads, layers, bar = figure.axes
    expected = np.array([[-1, 9], [0, 10], [np.nan, np.nan]])
    np.testing.assert_allclose(heads.images[0].get_array().filled(np.nan), expected)
    np.testing.assert_allclose(layers.images[0].get_array().filled(np.nan), expected[:, :1])
    assert heads.images[0].get_clim() == layers.images[0].get_clim() == (-10, 10)
    assert read_ticks(heads, "y") == ["all, n=40", "what, n=40", "why, n=7"]
    assert read_ticks(heads, "x") == ["1", "4"]
    assert read_ticks(layers, "x") == ["+L2"]
    assert read_texts(heads) == ["−1", "9", "0", "10"]
    assert {text.get_text() for text in heads.texts if text.get_fontweight() == "bold"} == {
        "0",
        "10",
    }
    assert (read_title(heads), read_title(layers)) == ("heads removed", "layers removed")
    assert "points" in bar.get_ylabel()


def test_costs_that_round_to_nothing_have_no_sign():
    costs = make_costs()
    figure = plots.plot_family_costs(costs.assign(drop=-0.3))
    render(figure)
    assert set(read_texts(figure.axes[0])) == {"0"}


def test_costs_where_nothing_can_be_told_or_there_is_one_layer():
    costs = make_costs(layers=())
    figure = plots.plot_family_costs(costs.assign(told=False))
    render(figure)
    assert [read_title(axis) for axis in figure.axes[:-1]] == ["heads removed"]
    assert read_texts(figure.axes[0]) == []
    assert figure.axes[0].images[0].get_clim() == (-1, 1)


# --------------------------------------------------------------------------------------------------- recovery


def test_recovery_before_and_after():
    table = pd.DataFrame(
        {"model": ["whole", "8 heads cut"], "before": [0.0, -20], "before_low": [0, -23], "before_high": [0, -18],
         "after": [0.5, -3], "after_low": [-1, -4], "after_high": [2, np.nan]}
    )  # fmt: skip
    figure = plots.plot_recovery(table, tolerance=1)
    render(figure)
    (axis,) = figure.axes
    before, after = axis.containers
    np.testing.assert_allclose(before.lines[0].get_xdata(orig=False), [0, -20])
    np.testing.assert_allclose(read_bars(before, axis=0), [[0, 0], [-23, -18]])
    np.testing.assert_allclose(
        read_bars(after, axis=0), [[-1, 2], [-4, -3]]
    )  # no upper end: no bar there
    assert before.lines[0].get_markerfacecolor() == "white"
    assert after.lines[0].get_markerfacecolor() == "black"
    assert read_ticks(axis, "y") == ["whole", "8 heads cut"]
    assert axis.yaxis_inverted()
    assert read_legend(axis.get_legend()) == ["cut, not trained", "cut and trained on"]


# ----------------------------------------------------------------------------------------------------- pareto


def make_points(n=3, sizes=(1, 32)) -> pd.DataFrame:
    rows = [
        (f"model {number}", ("fp32", "bf16", "int8")[number % 3], size, 1e-3 * size * (number + 1), 60.0 + 10 * (number % 4), number == 1)
        for size in sizes for number in range(n)
    ]  # fmt: skip
    table = pd.DataFrame(
        rows, columns=["model", "precision", "questions", "seconds", "accuracy", "chosen"]
    )
    return table.assign(low=table["accuracy"] - 2, high=table["accuracy"] + 1)


def test_pareto_of_each_batch_size():
    figure = plots.plot_pareto(make_points())
    render(figure)
    one, many = figure.axes
    assert (read_title(one), read_title(many)) == ("1 question at once", "32 questions at once")
    names = [text.split(":")[0] for text in read_texts(many)]
    assert sorted(names) == ["model 0", "model 1", "model 2"]
    assert "model 2: 96 ms, 80.0 %" in read_texts(many)
    assert [t.get_text() for t in many.texts if t.get_fontweight() == "bold"] == [
        "model 1: 64 ms, 70.0 %"
    ]
    by_label = {container.get_label(): container for container in one.containers}
    assert set(by_label) == {"fp32", "bf16", "int8"}
    np.testing.assert_allclose(by_label["bf16"].lines[0].get_xdata(orig=False), [2])
    np.testing.assert_allclose(read_bars(by_label["bf16"]), [[68, 71]])
    (star,) = [line for line in one.lines if line.get_marker() == "*"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (2, 70)


def test_frontier_leaves_out_what_is_slower_and_worse():
    table = make_points(5, (1,))  # accuracies 60, 70, 80, 90, 60, each slower than the one before
    figure = plots.plot_pareto(table)
    render(figure)
    (steps,) = [line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post"]
    np.testing.assert_allclose(steps.get_ydata(), [60, 70, 80, 90])


def test_many_models_keep_their_names_apart():
    figure = plots.plot_pareto(make_points(14).assign(low=np.nan, high=np.nan))
    render(figure)
    for axis in figure.axes:
        boxes = sorted(
            (Text.get_window_extent(text) for text in axis.texts), key=lambda box: box.y0
        )
        assert len(boxes) == 14
        assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))


# ------------------------------------------------------------------------------------------------------ sizes


def test_sizes_of_each_model():
    table = pd.DataFrame({"model": ["whole", "light"], "parameters": [2_000_000, 1_500_000], "weights": [8e6, 6e6],
                          "memory_1": [9e6, 7e6], "memory_32": [40e6, 38e6]})  # fmt: skip
    figure = plots.plot_sizes(table, [1, 32])
    render(figure)
    widths = [[bar.get_width() for bar in axis.patches] for axis in figure.axes]
    assert widths == [[2, 1.5], [8, 6], [9, 7], [40, 38]]
    assert figure.axes[3].get_xlabel() == "peak memory, MB\n(32 at once)"
    assert read_ticks(figure.axes[0], "y") == ["whole", "light"]
    assert read_texts(figure.axes[1]) == [" 8", " 6"]


@pytest.mark.parametrize("n_layers", [4, 12])
def test_ten_families_and_twelve_layers_fit(n_layers):
    layers = [f"+L{layer}" for layer in range(min(n_layers - 1, 10))]
    figure = plots.plot_family_costs(
        make_costs(FAMILIES, [str(step) for step in range(13, 133, 13)], layers)
    )
    render(figure)
    for axis in figure.axes[:2]:
        boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
        assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
