"""What many figures share: intervals, forests, lines over layers, grids, maps over a picture."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reading import is_hollow, read_bars, read_grid, read_texts, read_ticks, render

from helpers.figures import style

pytestmark = pytest.mark.usefixtures("tidy_figures")


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def test_a_styled_function_gives_its_look_back_and_lets_go_of_the_figure():
    before = plt.rcParams["savefig.dpi"]

    @style.styled("a title")
    def plot() -> plt.Figure:
        assert plt.rcParams["savefig.dpi"] == 110
        return plt.figure()

    figure = plot()
    render(figure)
    assert figure.get_suptitle() == "a title"
    assert plt.get_fignums() == []
    assert plt.rcParams["savefig.dpi"] == before


@pytest.mark.parametrize("horizontal", [False, True])
def test_intervals_stand_at_their_estimates_and_end_at_their_bounds(axis, horizontal):
    rows = pd.DataFrame({"at": [2, 3, 4], "drop": [0.1, 0.5, 0.2], "few": [False, True, False]})
    rows = rows.assign(low=[0.0, np.nan, 0.25], high=[0.3, np.nan, 0.4])
    options = {"value": "drop", "scale": 100, "horizontal": horizontal, "hollow": "few"}
    style.plot_intervals(axis, rows, "at", **options)
    drawn = axis.containers[0]
    points = drawn.lines[0].get_xydata()
    np.testing.assert_allclose(points[:, 1 - horizontal], [10, 50, 20])
    np.testing.assert_allclose(points[:, int(horizontal)], [2, 3, 4])
    # no interval: no bar; an interval beside its estimate: none on the side that it leaves out
    bars = [[0, 30], [50, 50], [20, 40]]
    np.testing.assert_allclose(read_bars(drawn, 1 - horizontal), bars)
    hollow = next(line for line in axis.lines if is_hollow(line))
    assert hollow.get_xydata()[0, 1 - horizontal] == 50


def test_groups_stand_side_by_side(axis):
    rows = [("a", 0, 1.0), ("b", 0, 1.0), ("a", 1, 2.0), ("b", 1, 3.0)]
    rows = pd.DataFrame(rows, columns=["name", "at", "estimate"]).assign(low=np.nan, high=np.nan)
    looks = {"a": ("red", "s"), "b": ("blue", "o", "--")}
    style.plot_intervals(axis, rows, "at", "name", looks, spread=0.4)
    first, second = (container.lines[0] for container in axis.containers)
    np.testing.assert_allclose(first.get_xydata(), [[-0.2, 1], [0.8, 2]])
    np.testing.assert_allclose(second.get_xydata(), [[0.2, 1], [1.2, 3]])


def test_lines_are_drawn_in_their_order_whatever_that_of_the_table():
    rows = pd.DataFrame({"layer": [0, 1, 2], "estimate": [0.1, 0.2, 0.4], "model": "a"})
    rows = rows.assign(low=rows["estimate"] - 0.05, high=rows["estimate"] + 0.1)
    rows = pd.concat([rows.iloc[[2, 0, 1]], rows.assign(model="b", low=0.3, high=0.6)])
    figure = style.draw_lines(rows, "layer", "model", ("x", "y"), bands=["b"], scale=100)
    render(figure)
    drawn = figure.axes[0].containers[0]
    heights = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max(), len(figure.axes[0].containers)) == (30, 60, 1)
    np.testing.assert_allclose(drawn.lines[0].get_xydata(), [[0, 10], [1, 20], [2, 40]])
    np.testing.assert_allclose(read_bars(drawn), [[5, 20], [15, 30], [35, 50]])


def make_forest() -> pd.DataFrame:
    rows = [("x", "b", 1.0, 5), ("x", "a", 2.0, 5), ("y", "a", 3.0, 7)]
    table = pd.DataFrame(rows, columns=["panel", "name", "estimate", "chance"])
    return table.assign(low=table["estimate"] - 1, high=table["estimate"] + 1)


def test_a_forest_has_the_same_rows_in_every_panel():
    labels = {"x": ("first", "points")}
    figure = style.draw_forest(make_forest(), "name", "%", "panel", labels, {"chance": "chance"})
    render(figure)
    left, right = figure.axes
    assert read_ticks(left, "y") == ["b", "a"]
    np.testing.assert_allclose(left.containers[0].lines[0].get_xydata(), [[1, 0], [2, 1]])
    np.testing.assert_allclose(right.containers[0].lines[0].get_xydata(), [[3, 1]])
    assert [axis.lines[0].get_xdata()[0] for axis in figure.axes] == [5, 7]


def test_cells_hold_their_numbers_and_texts(axis):
    table = pd.DataFrame([[-50, 0, np.nan], [50, 10, 20]], ["a", "b"], ["x", "y", "z"])
    style.plot_grid(axis, table, (-50, 50))
    np.testing.assert_allclose(read_grid(axis), table)
    written = {text.get_position(): text.get_text() for text in axis.texts}
    assert written == {(0.5, 0.5): "−50", (1.5, 0.5): "0", (0.5, 1.5): "50", (1.5, 1.5): "10",
                       (2.5, 1.5): "20"}  # fmt: skip
    assert axis.yaxis_inverted()


def test_a_grid_has_a_gap_where_the_table_has_no_row():
    rows = [("L0", "what", 5.4, True), ("L0", "why", -0.2, False), ("L1", "why", np.nan, False)]
    table = pd.DataFrame(rows, columns=["name", "family", "drop", "framed"])
    figure = style.draw_grids(table, "drop", "name", "family", framed="framed")
    render(figure)
    axis = figure.axes[0]
    np.testing.assert_allclose(read_grid(axis), [[5.4, -0.2], [np.nan, np.nan]])
    assert read_texts(axis) == ["5", "0"]
    assert [tuple(np.floor(patch.get_xy())) for patch in axis.patches] == [(0, 0)]


@pytest.mark.parametrize(
    ("value", "sign", "digits", "text"),
    [(-3.2, "", 0, "−3"), (-0.4, "", 0, "0"), (0.4, "+", 0, "0"), (2, "+", 1, "+2.0"),
     (-0.04, "", 1, "0.0"), (np.nan, "", 0, "")],
)  # fmt: skip
def test_numbers_have_a_true_minus_and_no_minus_zero(value, sign, digits, text):
    written = style.format_cells([[value, value]], sign, digits, unsure=[[False, True]])
    assert written.tolist() == [[text, f"({text})" if text else ""]]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_map_is_stretched_over_the_whole_picture_with_its_boxes(axis, mode):
    weights = np.array([[0.0, 0.2], [0.1, 0.05], [0.0, 0.3]])
    picture = Image.new(mode, (60, 40), 9 if mode == "L" else (9, 90, 200))
    boxes = [[5, 10, 20, 15]]
    image = style.plot_map(axis, picture, weights, "costs $5 or $6?", boxes, largest=0.5)
    np.testing.assert_array_equal(image.get_array(), weights)
    assert image.get_extent() == axis.images[0].get_extent() == [0, 60, 40, 0]
    assert image.get_clim() == (0, 0.5)
    assert {patch.get_bbox().bounds for patch in axis.patches} == {(5, 10, 20, 15)}
    style.plot_map(axis, picture, 0 * weights)  # nothing anywhere
    render(axis.figure)


@pytest.mark.parametrize("n", [1, 3])
def test_maps_below_their_pictures_share_one_scale(n):
    weights = [np.full((2, 3), 0.1 * (i + 1)) for i in range(n)]
    picture = Image.new("RGB", (64, 48), (10, 20, 30))
    card = {"picture": picture, "boxes": [[1, 2, 5, 5]], "title": "why $?", "caption": "no"}
    cards = [card | {"weights": weight} for weight in weights]
    figure = style.draw_maps(cards, n, "%", above=True)
    render(figure)
    assert [len(axis.images) for axis in figure.axes[: 2 * n]] == n * [1] + n * [2]
    for axis, expected in zip(figure.axes[n : 2 * n], weights, strict=True):
        np.testing.assert_allclose(axis.images[1].get_array(), 100 * expected)
        assert axis.images[1].get_clim() == pytest.approx((0, 10 * n))
