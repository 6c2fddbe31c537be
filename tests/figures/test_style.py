"""What many figures share: intervals, lines over layers, grids of cells, maps over a picture."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from PIL import Image
from reading import is_hollow, read_bars, read_texts, render

from helpers.figures import style

pytestmark = pytest.mark.usefixtures("tidy_figures")


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def test_a_styled_function_gives_its_look_back_and_lets_go_of_the_figure():
    before = plt.rcParams["savefig.dpi"]

    @style.styled
    def plot() -> plt.Figure:
        assert plt.rcParams["savefig.dpi"] == 110
        return plt.figure()

    render(plot())
    assert plt.get_fignums() == []
    assert plt.rcParams["savefig.dpi"] == before


def test_bars_are_as_long_as_the_bounds_are_away():
    bars = style.measure_bars([5, 5, 5], [4, np.nan, 6], [7, np.nan, 8])
    # no interval: no bar; an interval beside its estimate: none on the side that it leaves out
    np.testing.assert_array_equal(bars, [[1, 0, 0], [2, 0, 3]])


@pytest.mark.parametrize("horizontal", [False, True])
def test_intervals_stand_at_their_estimates_and_end_at_their_bounds(axis, horizontal):
    rows = pd.DataFrame({"drop": [0.1, 0.5], "low": [0.0, np.nan], "high": [0.3, np.nan]})
    options = {"scale": 100, "horizontal": horizontal, "hollow": True}
    drawn = style.plot_intervals(axis, [2, 3], rows, "drop", **options)
    points = drawn.lines[0].get_xydata()
    np.testing.assert_allclose(points[:, 1 - horizontal], [10, 50])
    np.testing.assert_allclose(points[:, int(horizontal)], [2, 3])
    np.testing.assert_allclose(read_bars(drawn, 1 - horizontal), [[0, 30], [50, 50]])
    assert is_hollow(drawn.lines[0])


@pytest.mark.parametrize("hollow", [False, True, [False, False, True]])
def test_layers_are_drawn_in_their_order_whatever_that_of_the_table(axis, hollow):
    rows = pd.DataFrame({"layer": [0, 1, 2], "estimate": [0.1, 0.2, 0.4], "reached": [0, 1, 2]})
    rows = rows.assign(low=rows["estimate"] - 0.05, high=rows["estimate"] + 0.1, hollow=hollow)
    rows = rows.sample(frac=1, random_state=1)
    drawn = style.plot_layers(axis, rows, "black", "o", shift=0.1, hollow=rows["hollow"])
    np.testing.assert_allclose(drawn.lines[0].get_xydata(), [[0.1, 10], [1.1, 20], [2.1, 40]])
    np.testing.assert_allclose(read_bars(drawn), [[5, 20], [15, 30], [35, 50]])
    over = axis.lines[-1]  # hollow markers lie over the others
    expected = [0.1, 1.1, 2.1] if hollow is True else [2.1] if hollow else []
    np.testing.assert_allclose(over.get_xdata(), expected)
    assert is_hollow(over)


def test_cells_hold_their_numbers_and_texts(axis):
    values, texts = [[-50, 0, np.nan], [50, 10, 20]], [["−50", "0", ""], ["50", "", "20"]]
    framed, hatched = np.zeros((2, 3), bool), np.zeros((2, 3), bool)
    framed[1, 0] = hatched[0, 2] = True
    marks = {"framed": framed, "hatched": hatched}
    image = style.plot_cells(axis, values, texts, ["a", "b"], ["x", "y", "z"], (-50, 50), **marks)
    np.testing.assert_allclose(image.get_array().filled(np.nan), values)
    written = {t.get_position(): t for t in axis.texts}  # (column, row)
    assert {at: t.get_text() for at, t in written.items()} == {
        (0, 0): "−50", (1, 0): "0", (0, 1): "50", (2, 1): "20",
    }  # fmt: skip
    assert [at for at, t in written.items() if t.get_fontweight() == "bold"] == [(0, 1)]
    assert written[0, 0].get_color() == "white"  # on dark blue
    assert written[1, 0].get_color() == "black"  # on white
    hatches = [patch for patch in axis.patches if patch.get_hatch()]
    assert [patch.get_xy() for patch in hatches] == [(1.5, -0.5)]


def test_a_grid_of_heads_has_layers_downwards_and_heads_across(axis):
    rows = pd.DataFrame({"layer": [1, 0], "head": [2, 0], "value": [5.0, 3.0], "text": ["5", "3"]})
    values, texts = (style.fill_grid(rows, column, (2, 3)) for column in ("value", "text"))
    np.testing.assert_array_equal(values, [[3, np.nan, np.nan], [np.nan, np.nan, 5]])
    assert texts.tolist() == [["3", "", ""], ["", "", "5"]]
    style.plot_heads_grid(axis, values, texts, (0, 5))
    assert {t.get_position(): t.get_text() for t in axis.texts} == {(0, 0): "3", (2, 1): "5"}
    assert axis.yaxis_inverted()


def test_accuracy_lost_is_blank_where_questions_are_too_few(axis):
    rows = [("L0", "what", 5.4, True, True), ("L0", "why", -0.2, True, False)]
    rows.append(("L1", "why", 9, False, True))
    effects = pd.DataFrame(rows, columns=["name", "family", "drop", "told", "significant"])
    image = style.plot_drops(axis, effects, ("name", "family"), ["L0", "L1"], ["why", "what"], 5.4)
    drawn = image.get_array().filled(np.nan)
    np.testing.assert_allclose(drawn, [[-0.2, 5.4], [np.nan, np.nan]])
    assert {t.get_position(): t.get_text() for t in axis.texts} == {(0, 0): "0", (1, 0): "5"}
    frames = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    assert [tuple(np.round(patch.get_xy())) for patch in frames] == [(1, 0)]


@pytest.mark.parametrize(
    ("value", "sign", "digits", "text"),
    [(-3.2, "", 0, "−3"), (-0.4, "", 0, "0"), (0.4, "+", 0, "0"), (2, "+", 1, "+2.0"),
     (-0.04, "", 1, "0.0"), (np.nan, "", 0, "")],
)  # fmt: skip
def test_numbers_have_a_true_minus_and_no_minus_zero(value, sign, digits, text):
    written = style.format_cells([[value, value]], sign, digits, unsure=[[False, True]])
    assert written.tolist() == [[text, f"({text})" if text else ""]]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_keeps_its_pixels_and_its_boxes(axis, mode):
    picture = Image.new(mode, (60, 40), 200 if mode == "L" else (9, 90, 200))
    style.plot_picture(axis, picture, "costs $5 or $6?", [[5, 10, 20, 15]])
    np.testing.assert_array_equal(axis.images[0].get_array(), np.asarray(picture))
    assert axis.images[0].get_extent() == [0, 60, 40, 0]
    assert {patch.get_bbox().bounds for patch in axis.patches} == {(5, 10, 20, 15)}
    render(axis.figure)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_map_is_stretched_over_the_whole_picture(axis, mode):
    weights = np.array([[0.0, 0.2], [0.1, 0.05], [0.0, 0.3]])
    image = style.plot_map(axis, Image.new(mode, (60, 40)), weights, largest=0.5)
    np.testing.assert_array_equal(image.get_array(), weights)
    assert image.get_extent() == axis.images[0].get_extent() == [0, 60, 40, 0]
    assert image.get_clim() == (0, 0.5)
    style.plot_map(axis, Image.new(mode, (60, 40)), 0 * weights)  # nothing anywhere
    render(axis.figure)


def test_one_legend_names_each_label_once():
    figure, axes = plt.subplots(1, 2, layout="constrained")
    for panel in axes:
        panel.plot([0, 1], label="the same")
    style.place_legend(figure, axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["the same"]
    empty = plt.figure()
    style.place_legend(empty, [])
    assert empty.legends == []
    plt.close("all")


def test_titles_with_dollar_signs_are_not_mathematics(axis):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.plot_picture(axis, np.zeros((4, 4, 3), np.uint8), r"$\frac{1 and $")
        render(axis.figure)
    assert read_texts(axis) == []
