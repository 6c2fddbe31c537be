"""Figures of notebook 04: the numbers drawn are the table's, also for few families."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from reading import is_hollow, read_bars, read_texts, read_ticks, render

from helpers.attention.word_classes import CLASSES
from helpers.data.vqa import FAMILIES
from helpers.figures import families as figures
from helpers.figures.style import TOO_FEW
from helpers.stats.models import ModelMean

pytestmark = pytest.mark.usefixtures("tidy_figures")
PICTURE = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
KINDS = ("needs the image", "words are enough")


def make_layers(
    families=("what", "why"), n_layers=3, queries=("[CLS]", "words"), kinds=KINDS
) -> pd.DataFrame:
    """Shares that tell their place: tenths by family, hundredths by layer, then query, kind."""
    rows = [
        {"family": family, "query": query, "kind": kind, "layer": layer, "estimate": estimate,
         "low": estimate - 0.01, "high": estimate + 0.02, "n": 1000 * (f + 1) + k,
         "enough": family != "why"}
        for f, family in enumerate(families) for q, query in enumerate(queries)
        for k, kind in enumerate(kinds) for layer in range(n_layers)
        for estimate in [0.1 * f + 0.01 * layer + 0.001 * q + 0.002 * k - 0.1]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_random_weights_are_a_band_that_holds_all_of_them():
    means = np.random.default_rng(0).normal(size=(4, 2, 3, 2))  # model, family, layer, query
    figure = figures.plot_family_layers(make_layers(kinds=KINDS[:1]), means)
    render(figure)
    for q, axis in enumerate(figure.axes):
        band = next(c for c in axis.collections if c.get_label() == "random weights")
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx(100 * means[..., q].max())
        assert heights.min() == pytest.approx(100 * means[..., q].min())


def test_every_family_and_class_has_a_look_of_its_own():
    for names, looks in ((FAMILIES, figures.FAMILY_STYLE), (CLASSES, figures.CLASS_STYLE)):
        colors, markers = zip(*(looks[name] for name in names), strict=True)
        assert len(set(colors)) == len(set(markers)) == len(names)


def test_families_by_layer():
    table = make_layers(kinds=KINDS[:1])
    figure = figures.plot_family_layers(table)
    render(figure)
    for q, axis in enumerate(figure.axes):
        for f, container in enumerate(axis.containers):
            expected = 100 * (0.1 * f + 0.01 * np.arange(3) + 0.001 * q - 0.1)
            np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
            np.testing.assert_allclose(container.lines[0].get_xdata(), [0, 1, 2], atol=0.3)
            bounds = np.stack([expected - 1, expected + 2], axis=1)
            np.testing.assert_allclose(read_bars(container), bounds)
            assert is_hollow(container.lines[0]) == (f == 1)  # too few questions


@pytest.mark.parametrize(("families", "n_layers"), [(("other",), 1), (FAMILIES, 4)])
def test_families_of_other_numbers_and_without_intervals(families, n_layers):
    table = make_layers(families, n_layers, kinds=KINDS[:1]).assign(low=np.nan, high=np.nan)
    table["family"] = pd.Categorical(table["family"], FAMILIES)  # with unused categories
    figure = figures.plot_family_layers(table)
    render(figure)
    assert [len(axis.containers) for axis in figure.axes] == [len(families)] * 2


def make_means(**numbers) -> dict:
    """Means over models by name, of each model's own number."""
    return {name: ModelMean(np.mean(each), min(each) - 1, max(each) + 1, 70, 9, len(each),
                            np.array(each)) for name, each in numbers.items()}  # fmt: skip


def read_forest(axis) -> list[list]:
    """The points of random-weight and of trained models, row by row."""
    scatters = [each for each in axis.collections if isinstance(each, PathCollection)]
    return [sorted(each.get_offsets()[:, 0].tolist()) for each in scatters]


def test_a_forest_draws_every_model_trained_and_random():
    means, random = make_means(what=[3, 1], why=[2.0, 2.0]), {"what": [0.5, 0.1], "why": [0.2]}
    figure = figures.plot_family_models(means, random)
    render(figure)
    axis = figure.axes[0]
    assert read_forest(axis) == [[0.1, 0.5], [1, 3], [0.2], [2, 2]]
    assert [tuple(c.lines[0].get_xydata()[0]) for c in axis.containers] == [(2, 0), (2, 1)]
    assert axis.containers[0].lines[2][0].get_segments()[0][:, 0].tolist() == [0, 4]
    assert read_ticks(axis, "y") == ["what\nn = 70", "why\nn = 70"]


@pytest.mark.parametrize("shape", [(1, 1), (3, 9)])
def test_separation_counts_the_pairs_of_each_head_and_draws_each_model(shape):
    told = np.zeros((3, *shape, 2))
    told[0, 0, 0, 0] = told[2, 0, 0, 0] = 1
    told[:, -1, :, 1] = np.nan
    figure = figures.plot_separation(told, [40, 50], [1, 2, 3])
    render(figure)
    grid, words = (figure.axes[i].images[0].get_array() for i in (0, 1))
    assert grid[0, 0] == 2
    assert np.ma.is_masked(words[-1, 0])
    trained, random = (each.get_offsets()[:, 1].tolist() for each in figure.axes[2].collections)
    assert (trained, random) == ([40, 50], [1, 2, 3])


def test_scores_have_a_panel_each_where_there_are_numbers():
    within, telling = make_means(what=[0.1, 0.3]), make_means(share=[0.8, 0.9], removed=[0.7])
    figure = figures.plot_scores(within, telling, {"what": [0.0]}, {"share": [0.5]})
    render(figure)
    assert [len(axis.containers) for axis in figure.axes] == [1, 2]
    assert len(figures.plot_scores({}, telling, {}, {}).axes) == 1


@pytest.mark.parametrize("n", [1, 3])
def test_example_maps_share_one_scale(n):
    weights = [np.full((2, 3), 0.1 * (i + 1)) for i in range(n)]
    example = {"picture": PICTURE, "boxes": [[1, 2, 5, 5]], "title": "why $?", "caption": "no"}
    examples = [example | {"weights": weight} for weight in weights]
    figure = figures.plot_example_maps(examples, "[CLS], L3")
    render(figure)
    heatmaps = [axis.images[1] for axis in figure.axes[n : 2 * n]]
    for heatmap, expected in zip(heatmaps, weights, strict=True):
        np.testing.assert_allclose(heatmap.get_array(), 100 * expected)
        assert heatmap.get_clim() == pytest.approx((0, 10 * n))


@pytest.mark.parametrize("n_layers", [1, 4])
def test_classes_by_layer(n_layers):
    rows = [
        {"word_class": name, "layer": layer, "estimate": 0.1 * c + 0.01 * layer if c else np.nan,
         "n": 100 * c, "enough": c > 1}
        for c, name in enumerate(CLASSES) for layer in range(n_layers)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table = table.assign(low=table["estimate"] - 0.02, high=table["estimate"] + 0.01)
    figure = figures.plot_class_layers(table, np.zeros((n_layers, 1)))
    render(figure)
    drawn = figure.axes[0].containers
    assert len(drawn) == len(CLASSES) - 1  # no line where nothing is known
    for c, container in enumerate(drawn, 1):
        expected = 10 * c + np.arange(n_layers)
        np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
        assert is_hollow(container.lines[0]) == (c == 1)


def test_classes_by_family_in_one_layer():
    rows = [("what", "noun", -0.251, 1500, True), ("what", "colour word", np.nan, 0, False),
            ("why", "noun", 0.1, 7, False), ("why", "colour word", 0.0, 40, True)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["family", "word_class", "estimate", "n", "enough"])
    figure = figures.plot_class_families(table, 2)
    render(figure)
    axis = figure.axes[0]
    drawn = axis.images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(drawn, [[-25.1, np.nan], [10, 0]])
    assert {text.get_position(): text.get_text() for text in axis.texts} == {
        (0, 0): "−25   n = 1,500", (0, 1): "(+10)   n = 7", (1, 1): "0   n = 40",
    }  # fmt: skip
    assert [patch.get_xy() for patch in axis.patches if patch.get_hatch()] == [(0.5, -0.5)]


@pytest.mark.parametrize("n_layers", [1, 4])
def test_strips_draw_each_word_of_each_question(n_layers):
    shares = [np.arange(n_layers * n).reshape(n_layers, n) / 200 for n in (3, 5)]
    examples = [
        {"title": "a", "words": ["w"] * n, "classes": ["noun"] * n, "share": share}
        for n, share in zip((3, 5), shares, strict=True)
    ]
    figure = figures.plot_strips(examples)
    render(figure)
    for axis, share in zip(figure.axes, shares, strict=False):
        np.testing.assert_allclose(axis.images[0].get_array(), 100 * share)
        assert len(axis.lines) == share.shape[1]  # the marker of each word's class


def make_needs(families=("what", "why"), kinds=("questions", "controls")) -> pd.DataFrame:
    measures = [measure for panel in figures.NEEDS.values() for measure in panel[3]]
    rows = [
        {"family": family, "kind": kind, "measure": measure, "estimate": 10 * f + m + 5 * k,
         "n": 100 * (f + 1) + k, "enough": True}
        for f, family in enumerate(families) for k, kind in enumerate(kinds)
        for m, measure in enumerate(measures)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(low=table["estimate"] - 2, high=table["estimate"] + 1)


def test_needs_draw_every_measure_in_the_row_of_its_family():
    figure = figures.plot_needs(make_needs())
    render(figure)
    number = 0
    for axis, panel in zip(figure.axes, figures.NEEDS.values(), strict=True):
        points = [tuple(c.lines[0].get_xydata()[0]) for c in axis.containers]
        names = range(number, number + len(panel[3]))
        expected = {(10 * f + m + 5 * k, f) for f in range(2) for k in range(2) for m in names}
        assert {(x, round(y)) for x, y in points} == expected
        assert len({y for _, y in points}) == len(points)  # none hides another
        number += len(panel[3])
    assert read_ticks(figure.axes[0], "y") == ["what\nn = 100 + 101", "why\nn = 200 + 201"]


def test_needs_say_where_their_questions_are_fewer_and_leave_out_what_is_unknown():
    table = make_needs(kinds=("questions",))
    table.loc[table["measure"] == "words removed", "n"] = 7
    table = table[table["measure"] != "image share, last layer"]
    figure = figures.plot_needs(table)
    render(figure)
    assert [read_texts(axis) for axis in figure.axes] == [[], ["n = 7", "n = 7"]]


@pytest.mark.parametrize("rates", [(0.05, 0.03, 0.04, 0.94), (np.nan, 0.4, np.nan, np.nan)])
def test_calibration_draws_rates_beside_the_stated_ones(rates):
    kinds = ["after correction", "single test", "single test", "interval"]
    table = pd.DataFrame({"procedure": list("abcd"), "kind": kinds, "rate": rates, "n": 9})
    table = table.assign(low=table["rate"] - 0.01, high=table["rate"] + 0.02)
    figure = figures.plot_calibration(table)
    render(figure)
    points = [
        tuple(np.round(point, 9)) for axis in figure.axes for c in axis.containers
        for point in c.lines[0].get_xydata() if not np.isnan(point[0])
    ]  # fmt: skip
    rows = [2, 0, 1, 0]  # single tests first
    expected = {(100 * rate, row) for rate, row in zip(rates, rows, strict=True) if rate == rate}
    assert set(points) == expected
    missing = sum(text == TOO_FEW for axis in figure.axes for text in read_texts(axis))
    assert missing == np.isnan(rates).sum()
