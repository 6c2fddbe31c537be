"""The figures' common look, pictures with boxes and heatmaps, and the figures of notebooks 01 and 02."""

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image
from reading import read_bars, read_legend, read_texts, read_ticks, read_title, render

from helpers.figures import style as plots

pytestmark = pytest.mark.usefixtures("tidy_figures")
BLUE, VERMILION = "#0072b2", "#d55e00"  # Okabe-Ito


@pytest.fixture
def axis():
    return Figure().subplots()


def make_picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def show_svg(figure) -> str:
    """The figure as a reader finds it written: SVG with its texts as texts."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg")
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------- the look


def test_style_ends_with_its_block():
    before = mpl.rcParams["axes.titlelocation"], mpl.rcParams["axes.spines.top"]
    with plots.figure_style():
        assert not mpl.rcParams["axes.spines.top"]
        assert mpl.rcParams["image.cmap"] == "cividis"
        assert mpl.rcParams["savefig.dpi"] <= 110
    assert before == (mpl.rcParams["axes.titlelocation"], mpl.rcParams["axes.spines.top"])


def test_text_is_blue_and_image_vermilion():
    assert plots.TEXT_COLOR.lower() == plots.GROUP_COLORS["words"].lower() == BLUE
    assert plots.IMAGE_COLOR.lower() == plots.GROUP_COLORS["patches"].lower() == VERMILION
    for special in ("cls", "sep"):
        assert len(set(to_rgba(plots.GROUP_COLORS[special])[:3])) == 1  # grey
    assert len(set(plots.GROUP_COLORS.values())) == 5
    assert list(plots.GROUP_NAMES) == list(plots.GROUP_COLORS)


# -------------------------------------------------------------------------------------------------- pictures


def test_picture_and_boxes_are_in_the_pictures_own_pixels(axis):
    picture = make_picture(20, 30)
    plots.show_picture(axis, Image.fromarray(picture), "a title", [(3, 4, 10, 5), (0, 0, 30, 20)])
    np.testing.assert_array_equal(axis.images[0].get_array(), picture)
    assert axis.images[0].get_extent() == [0, 30, 20, 0]
    assert axis.get_xlim() == (0, 30)
    assert axis.get_ylim() == (20, 0)  # row 0 on top
    drawn = {(*box.get_xy(), box.get_width(), box.get_height()) for box in axis.patches}
    assert drawn == {(3, 4, 10, 5), (0, 0, 30, 20)}
    colors = [to_hex(box.get_edgecolor()) for box in axis.patches]
    assert colors == ["#ffffff", "#000000"] * 2  # seen on light and on dark
    assert not any(box.get_fill() for box in axis.patches)
    assert read_title(axis) == "a title"
    assert len(axis.get_xticks()) == len(axis.get_yticks()) == 0


@pytest.mark.parametrize(
    "show", [plots.show_picture, lambda *given: plots.show_heatmap(*given, np.ones((1, 1)))]
)
def test_grey_picture_is_shown_grey(axis, show):
    picture = np.linspace(0, 200, 24).reshape(4, 6).astype(np.uint8)
    show(axis, Image.fromarray(picture))
    shown = axis.images[0]
    np.testing.assert_array_equal(shown.get_array(), picture)
    assert shown.get_clim() == (0, 255)
    rgba = shown.to_rgba(np.array([[0, 100, 255]]))[0]
    np.testing.assert_allclose(rgba[:, 0], [0, 100 / 255, 1], atol=0.01)
    np.testing.assert_array_equal(rgba[:, 0], rgba[:, 2])  # no colour


def test_heatmap_draws_the_weights_over_the_whole_picture(axis):
    weights = np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    artist = plots.show_heatmap(axis, make_picture(20, 33), weights, "map", [(1, 2, 3, 4)])
    np.testing.assert_array_equal(artist.get_array(), weights)
    assert artist.get_extent() == [0, 33, 20, 0]  # the grid is stretched, not cut
    assert artist.get_clim() == (0, 5)
    assert artist.get_cmap().name == "cividis"
    assert artist is axis.images[-1]
    assert (
        axis.images[0].get_array().ndim == 2
    )  # the picture below is grey, so that colour means attention
    assert read_title(axis) == "map"
    assert [(*box.get_xy(), box.get_width(), box.get_height()) for box in axis.patches] == [
        (1, 2, 3, 4)
    ]


def test_heatmap_lights_the_patch_that_is_attended_to():
    """As rendered: of 2 x 3 patches, only row 1, column 2 is bright, and that is at the lower right."""
    figure = Figure(figsize=(3, 2), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))
    weights = np.zeros((2, 3))
    weights[1, 2] = 1
    plots.show_heatmap(axis, np.full((200, 300, 3), 128, np.uint8), weights)
    pixels = render(figure)
    assert pixels.shape == (200, 300, 3)
    yellow = pixels[50::100, 50::100, 0]  # red channel at the patches' centres
    assert np.argwhere(yellow > 150).tolist() == [[1, 2]]


def test_heatmap_scale_can_be_shared_and_survives_no_attention(axis):
    assert plots.show_heatmap(
        axis, make_picture(8, 8), np.ones((2, 2)), largest=7.0
    ).get_clim() == (0, 7)
    low, high = plots.show_heatmap(axis, make_picture(8, 8), np.zeros((2, 2))).get_clim()
    assert low == 0 < high


# ----------------------------------------------------------------------------------------------- intervals


def test_bars_end_at_the_bounds(axis):
    table = pd.DataFrame({"estimate": [1.0, 5.0], "low": [0.5, 1.0], "high": [2.0, 5.5]})
    plots.draw_intervals(axis, table, [0, 3], "#123456", "name", "s")
    container = axis.containers[0]
    np.testing.assert_allclose(read_bars(container), [[0.5, 2], [1, 5.5]])
    np.testing.assert_array_equal(container.lines[0].get_xydata(), [[0, 1], [3, 5]])
    assert container.lines[0].get_marker() == "s"
    assert container.get_label() == "name"


def test_absent_interval_draws_a_point_without_a_bar(axis):
    table = pd.DataFrame({"estimate": [1.0, 2.0], "low": [np.nan, 1.0], "high": [np.nan, 3.0]})
    plots.draw_intervals(axis, table, [0, 1], "black", "")
    np.testing.assert_allclose(read_bars(axis.containers[0]), [[1, 1], [1, 3]])


def test_bar_never_reaches_beyond_the_interval(axis):
    """A bootstrap interval may leave its estimate out: the bar then ends at the far bound, and at the point."""
    table = pd.DataFrame({"estimate": [5.0, 5.0], "low": [6.0, 2.0], "high": [8.0, 4.0]})
    plots.draw_intervals(axis, table, [0, 1], "black", "")
    np.testing.assert_allclose(read_bars(axis.containers[0]), [[5, 8], [2, 5]])


@pytest.mark.parametrize("n_layers", [1, 4, 12])
def test_every_layer_has_a_tick(axis, n_layers):
    plots.name_layers(axis, n_layers)
    assert list(axis.get_xticks()) == list(range(n_layers))
    assert read_ticks(axis, "x") == [f"L{layer}" for layer in range(n_layers)]
    assert "layer" in axis.get_xlabel()


# ---------------------------------------------------------------------------------------------- notebook 01


@pytest.mark.parametrize("words", [["what", "color"], []])
def test_study_draws_a_square_for_each_token(words):
    figure = plots.plot_study(["[CLS]", *words, "[SEP]"], (2, 3))
    render(figure)
    flow, line = figure.axes
    colors = [to_hex(patch.get_facecolor()) for patch in line.patches]
    expected = ["cls", *["words"] * len(words), "sep", "img_cls", *["patches"] * 6]
    assert colors == [plots.GROUP_COLORS[group].lower() for group in expected]
    assert [patch.get_x() for patch in line.patches] == list(range(len(expected)))
    texts = read_texts(line)
    assert texts[: len(words) + 3] == ["[CLS]", *words, "[SEP]", "image\nCLS"]
    assert {"text", "image"} <= set(texts)
    assert any(text.startswith("2 × 3 patches") for text in texts)
    arrows = [patch for patch in flow.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) == len(flow.texts) - 1  # between each step and the next
    assert read_title(flow)
    assert read_title(line)


def make_questions(parts: list[str]) -> pd.DataFrame:
    return pd.DataFrame({
        "part": parts, "family": ["what", "what", "what", "why", "why", "who"],
        "multiple_choice_answer": ["red", "red", "red", "2", "2", "dog"],
        "n_words": [3, 3, 4, 6, 6, 6], "n_patches": [12, 12, 12, 20, 20, 20],
    })  # fmt: skip


def test_dataset_counts_questions():
    figure = plots.plot_dataset(make_questions(["train", "train", "validation"] * 2), top_answers=2)
    families, answers, words, patches = figure.axes
    assert read_ticks(families, "y") == ["what", "why", "who"]  # the largest on top
    assert families.yaxis_inverted()
    train, validation = (
        {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in container}
        for container in families.containers
    )
    assert train == {0: 2, 1: 2}
    assert validation == {0: 1, 2: 1}
    assert read_legend(families.get_legend()) == ["train", "validation"]
    assert read_ticks(answers, "y") == ["red", "2"]
    assert [bar.get_width() for bar in answers.patches] == [3, 2]
    assert "2 most common" in read_title(answers)
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in words.patches}
    assert {place: height for place, height in heights.items() if height} == {3: 2, 4: 1, 6: 3}
    assert sum(bar.get_height() for bar in patches.patches) == 6
    assert to_hex(words.patches[0].get_facecolor()) == BLUE
    assert to_hex(patches.patches[0].get_facecolor()) == VERMILION
    for panel in figure.axes:
        assert read_title(panel)
        assert panel.get_xlabel()


def test_dataset_of_one_part_and_one_question():
    figure = plots.plot_dataset(make_questions(["validation"] * 6).head(1))
    render(figure)
    assert [bar.get_width() for bar in figure.axes[0].containers[0]] == [1]
    assert "1 most common" in read_title(figure.axes[1])


def test_examples_fill_rows_and_leave_the_rest_empty():
    examples = [{"picture": make_picture(10 + i, 12), "title": f"question {i}"} for i in range(4)]
    examples[1] |= {"boxes": [(1, 1, 2, 2)], "caption": "yes ×10"}
    figure = plots.plot_examples(examples)
    assert len(figure.axes) == 6
    assert [bool(panel.images) for panel in figure.axes] == [True] * 4 + [False] * 2
    assert not any(panel.axison for panel in figure.axes[4:])
    assert [read_title(panel) for panel in figure.axes[:4]] == [f"question {i}" for i in range(4)]
    assert figure.axes[1].get_xlabel() == "yes ×10"
    assert len(figure.axes[1].patches) == 2  # a white and a black frame
    assert not figure.axes[0].patches
    for panel, example in zip(figure.axes, examples, strict=False):
        np.testing.assert_array_equal(panel.images[0].get_array(), example["picture"])


@pytest.mark.parametrize(
    "question", ["is it $5 or $6?", r"what is $\foo$?", r"100 % of $x^2$ & <b>?", ""]
)
def test_questions_are_shown_as_written(question):
    """Two dollar signs are money and not mathematics."""
    example = {"picture": make_picture(10, 12), "title": question, "caption": f"says {question}"}
    svg = show_svg(plots.plot_examples([example], columns=1))
    escaped = question.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"says {escaped}" in svg
    assert svg.count(escaped) >= 2


def test_patches_are_numbered_in_raster_order():
    resized = make_picture(64, 96)
    figure = plots.plot_patches(Image.fromarray(make_picture(50, 70)), resized, (2, 3))
    original, middle, cut = figure.axes
    assert "70 × 50" in read_title(original)
    assert "96 × 64" in read_title(middle)
    assert "2 × 3" in read_title(cut)
    np.testing.assert_array_equal(cut.images[0].get_array(), resized)
    corners = [(0, 0), (32, 0), (64, 0), (0, 32), (32, 32), (64, 32)]
    assert [patch.get_xy() for patch in cut.patches if isinstance(patch, Rectangle)] == corners
    assert read_texts(cut) == list("012345")
    for text, (x, y) in zip(cut.texts, corners, strict=True):
        assert x <= text.get_position()[0] < x + 32
        assert y <= text.get_position()[1] < y + 32


def test_numbers_of_many_patches_are_left_out():
    cut = plots.plot_patches(make_picture(9, 9), make_picture(64, 64), (8, 8)).axes[2]
    assert len(cut.patches) == 64
    assert not cut.texts


# ---------------------------------------------------------------------------------------------- notebook 02


def test_training_draws_what_was_measured():
    curves = pd.DataFrame(
        {
            "step": [1, 2, 3, 4],
            "loss": [9.0, np.nan, 3.0, 2.0],
            "eval_accuracy": [np.nan, 0.4, np.nan, 0.9],
        }
    )
    figure = plots.plot_training(curves, prior=0.25)
    left, right = figure.axes
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [[1, 9], [3, 3], [4, 2]])
    assert left.get_ylim()[0] == 0
    np.testing.assert_allclose(right.lines[0].get_xydata(), [[2, 40], [4, 90]])
    np.testing.assert_allclose(right.lines[1].get_ydata(), 25)  # the baseline
    assert read_texts(right) == ["type prior"]
    assert "%" in right.get_ylabel()
    assert left.get_xlabel() == right.get_xlabel() == "training step"


def test_training_before_the_first_evaluation():
    curves = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0], "eval_accuracy": [np.nan, np.nan]})
    figure = plots.plot_training(curves, prior=0.25)
    render(figure)
    assert len(figure.axes[1].lines[0].get_xydata()) == 0


def test_accuracy_by_family_and_answerer():
    rows = [("what", "ViLT", 0.9, 0.8, 0.95, 1200), ("why", "ViLT", 0.5, np.nan, np.nan, 3),
            ("what", "prior", 0.3, 0.2, 0.4, 1200)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["family", "answerer", "estimate", "low", "high", "n"])
    figure = plots.plot_accuracy(table)
    render(figure)
    axis = figure.axes[0]
    assert read_ticks(axis, "x") == ["what\nn=1200", "why\nn=3"]
    vilt, prior = axis.containers
    np.testing.assert_allclose(vilt.lines[0].get_ydata(), [90, 50])
    np.testing.assert_allclose(read_bars(vilt), [[80, 95], [50, 50]])
    np.testing.assert_allclose(prior.lines[0].get_ydata(), [30, np.nan])  # no row: no point
    assert vilt.lines[0].get_marker() != prior.lines[0].get_marker()
    assert vilt.lines[0].get_color() != prior.lines[0].get_color()
    offsets = vilt.lines[0].get_xdata()[0], prior.lines[0].get_xdata()[0]
    assert offsets[0] == pytest.approx(-offsets[1])
    assert abs(offsets[0]) < 0.5
    assert read_legend(axis.get_legend()) == ["ViLT", "prior"]
    assert "%" in axis.get_ylabel()
    assert "95 %" in read_title(axis)
