"""helpers/figures/attention.py: what figures say (titles, axes, labels, drawn numbers), also in edge cases."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import Rectangle
from PIL import Image
from reading import read_legend, read_texts, read_ticks, read_title

from helpers.figures.attention import (
    flow_masses,
    plot_flow,
    plot_heads,
    plot_hits,
    plot_layers,
    plot_maps,
    plot_runs,
)
from helpers.figures.style import GREY

pytestmark = pytest.mark.usefixtures("tidy_figures")
PICTURE = Image.new("RGB", (640, 426), (200, 200, 200))
TEXT_TO_IMAGE = "text query → image key"
LONG = (
    "Is the man who is standing on the left side wearing a hat or is he carrying an umbrella in his hand? "
    * 2
)


def make_layers(n_layers: int, has_interval: bool = True) -> pd.DataFrame:
    rows = []
    for measure in ("image share", "special", "entropy"):
        for model in ("trained", "untrained"):
            for query in ("cls", "words", "patches"):
                for layer in range(n_layers):
                    estimate = (1 + layer) / (n_layers + 2)
                    bounds = (estimate - 0.05, estimate + 0.1) if has_interval else (np.nan, np.nan)
                    alive = layer < n_layers - 1 or query == "cls"
                    rows.append((measure, model, query, layer, estimate, *bounds, alive))
    names = ["measure", "model", "query", "layer", "estimate", "low", "high", "reaches_answer"]
    return pd.DataFrame(rows, columns=names)


BASELINES = {"image share": 0.7, "special": 0.1, "entropy": 1.0}


@pytest.mark.parametrize(
    ("n_layers", "has_interval"), [(4, True), (12, True), (2, False), (1, False)]
)
def test_layers_name_direction_and_unit_of_every_panel(n_layers, has_interval):
    figure = plot_layers(make_layers(n_layers, has_interval), BASELINES)
    figure.draw_without_rendering()
    axes = np.array(figure.axes).reshape(3, 3)
    assert [read_title(axis) for axis in axes[0]] == [
        "[CLS] query",
        "words as queries",
        "patches as queries",
    ]
    directions = [TEXT_TO_IMAGE, TEXT_TO_IMAGE, "image query → image key"]
    for axis, direction in zip(axes[0], directions, strict=True):
        assert axis.get_ylabel() == f"attention on the image, %\n({direction})"
    assert all("%" in axis.get_ylabel() for axis in axes.flat)
    assert [axis.get_xlabel() for axis in axes[2]] == ["layer"] * 3
    assert read_ticks(axes[2, 0], "x") == [f"L{i}" for i in range(n_layers)]


def test_layers_draw_per_cent_baselines_and_hollow_markers_where_the_answer_is_out_of_reach():
    figure = plot_layers(make_layers(4), BASELINES)
    axes = np.array(figure.axes).reshape(3, 3)
    for line, value in zip(axes, (70, 10, 100), strict=True):
        for axis in line:
            flat = [each for each in axis.lines if set(each.get_ydata()) == {value}]
            assert flat
            assert flat[0].get_color() == GREY
    for axis, hollow in zip(axes[0], (0, 2, 2), strict=True):  # trained and untrained, last layer
        open_markers = [
            each
            for each in axis.lines
            if each.get_markerfacecolor() == "white" and len(each.get_xdata())
        ]
        assert len(open_markers) == hollow
        assert all(each.get_ydata()[0] == pytest.approx(100 * 4 / 6) for each in open_markers)
    labels = read_legend(figure.legends[0])
    assert labels[:2] == ["uniform attention", "untrained twin"]
    assert labels[-1] == "hollow: cannot reach the answer"


def test_layers_tell_query_groups_apart_by_colour_and_marker():
    figure = plot_layers(make_layers(4), BASELINES)
    trained = [
        next(line for line in axis.lines if line.get_label().startswith("trained"))
        for axis in figure.axes[:3]
    ]
    assert len({line.get_color() for line in trained}) == 3
    assert len({line.get_marker() for line in trained}) == 3


@pytest.mark.parametrize("shape", [(12, 12), (4, 4), (1, 1)])
def test_heads_run_across_and_layers_downwards_around_zero(shape):
    grid = np.random.default_rng(0).uniform(-0.9, 0.9, shape)
    figure = plot_heads(
        {"Trained": grid, "Untrained twin": grid / 3},
        dict.fromkeys(("Trained", "Untrained twin"), grid > 2),
    )
    first, second, bar = figure.axes
    figure.draw_without_rendering()
    assert read_ticks(first, "x") == [f"H{i}" for i in range(shape[1])]
    assert read_ticks(first, "y") == [f"L{i}" for i in range(shape[0])]
    assert first.get_ylim()[0] > first.get_ylim()[1]  # L0 on top
    assert (first.get_xlabel(), first.get_ylabel()) == ("head", "layer")
    assert (read_title(first), read_title(second)) == ("Trained", "Untrained twin")
    low, high = first.images[0].get_clim()
    assert low == -high == pytest.approx(-100 * np.abs(grid).max())
    assert second.images[0].get_clim() == (low, high)  # one scale for both
    assert "points" in bar.get_ylabel()
    assert TEXT_TO_IMAGE in bar.get_ylabel()
    assert "[CLS]" in figure.get_suptitle()


def test_heads_write_points_and_bracket_what_cannot_be_told():
    grid = np.array([[0.12, -0.305], [0.004, -0.002]])
    figure = plot_heads({"Trained": grid}, {"Trained": np.array([[False, True], [True, False]])})
    assert read_texts(figure.axes[0]) == ["+12", "(−30)", "(0)", "0"]


def test_heads_without_any_excess_are_drawn():
    assert plot_heads({"Trained": np.zeros((2, 2))}, {"Trained": np.ones((2, 2), bool)}).axes


def test_maps_put_each_heatmap_in_its_row_and_column():
    weights = np.random.default_rng(0).dirichlet(np.ones(240), (3, 2)).reshape(3, 2, 12, 20)
    figure = plot_maps(
        PICTURE, weights, ["L0", "L1", "L2"], ["H0", "H1"], "Every head", [[10, 20, 30, 40]]
    )
    axes = np.array(figure.axes[:6]).reshape(3, 2)
    for (row, column), axis in np.ndenumerate(axes):
        heatmap = axis.images[1]
        np.testing.assert_allclose(heatmap.get_array(), 100 * weights[row, column])
        assert heatmap.get_extent() == [0, 640, 426, 0]  # stretched over the whole picture
        assert heatmap.get_clim() == (0, pytest.approx(100 * weights.max()))
        assert len(axis.patches) == 1
        assert axis.get_ylabel() == (f"L{row}" if column == 0 else "")
        assert read_title(axis) == (f"H{column}" if row == 0 else "")
    assert figure.get_suptitle() == "Every head"
    assert figure.axes[6].get_ylabel() == f"attention on a patch, % ({TEXT_TO_IMAGE})"


def test_maps_may_have_a_scale_for_each_column():
    weights = np.stack([np.full((2, 4, 6), 0.01), np.full((2, 4, 6), 0.04)], axis=1)
    figure = plot_maps(PICTURE, weights, ["L0", "L1"], ["a", "b"], LONG, shared=False)
    figure.draw_without_rendering()
    axes = np.array(figure.axes[:6])
    limits = [axis.images[1].get_clim()[1] for axis in axes if len(axis.images) > 1]
    assert limits == pytest.approx([1, 4, 1, 4])
    assert TEXT_TO_IMAGE in figure.get_supxlabel()
    assert "\n" in figure.get_suptitle()  # a long question takes a second line


@pytest.mark.parametrize(
    ("shape", "shared"), [((12, 12, 12, 20), True), ((1, 1, 1, 1), True), ((12, 5, 18, 12), False)]
)
def test_maps_of_many_layers_and_of_nothing_are_drawn(shape, shared):
    names = [
        [f"{mark}{i}" for i in range(count)] for mark, count in zip("LH", shape[:2], strict=True)
    ]
    figure = plot_maps(PICTURE, np.zeros(shape), *names, "Nothing", shared=shared)
    assert max(figure.get_size_inches()) < 13


def test_runs_share_one_scale():
    runs = {"first": np.full((3, 4), 0.1), "second": np.full((3, 4), 0.2)}
    figure = plot_runs(PICTURE, runs, LONG, [[0, 0, 9, 9]])
    assert [read_title(axis) for axis in figure.axes[:2]] == ["first", "second"]
    assert [axis.images[1].get_clim()[1] for axis in figure.axes[:2]] == pytest.approx([20, 20])
    assert TEXT_TO_IMAGE in figure.axes[2].get_ylabel()


def test_flow_masses_by_hand():
    """Two layers: T = half of flow plus half of identity, followed down from [CLS]."""
    flow = np.zeros((2, 5, 5))
    flow[1, 0] = [0.2, 0.6, 0, 0, 0.2]  # what [CLS] draws in the last layer
    flow[1, 1:] = np.nan  # nothing asks for these rows
    flow[0] = np.nan  # no [SEP] and no image CLS would be asked either
    flow[0, 0], flow[0, 1], flow[0, 4] = [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]
    masses, bands = flow_masses(flow)
    np.testing.assert_allclose(masses[2], [1, 0, 0, 0, 0])
    np.testing.assert_allclose(bands[1, 0], [0.5 + 0.1, 0.3, 0, 0, 0.1])
    np.testing.assert_allclose(masses[1], [0.6, 0.3, 0, 0, 0.1])
    np.testing.assert_allclose(
        bands[0, 1], [0, 0.15, 0, 0, 0.15]
    )  # words: half their own, half from patches
    np.testing.assert_allclose(bands[0, 4], [0, 0.05, 0, 0, 0.05])
    np.testing.assert_allclose(masses[0], [0.6, 0.2, 0, 0, 0.2])


@given(st.integers(1, 12), st.integers(0, 2**31))
def test_flow_is_kept_from_column_to_column(n_layers, seed):
    flow = np.random.default_rng(seed).dirichlet(np.ones(5), (n_layers, 5))
    masses, bands = flow_masses(flow)
    np.testing.assert_allclose(masses.sum(1), 1)
    np.testing.assert_allclose(bands.sum(1), masses[:-1])  # over queries: what a key's node gives
    np.testing.assert_allclose(bands.sum(2), masses[1:])  # over keys: what a query's node gets


def test_flow_that_is_no_flow_is_refused():
    with pytest.raises(ValueError, match=r"shape is \(2, 3, 5\)"):
        flow_masses(np.ones((2, 3, 5)) / 5)
    with pytest.raises(ValueError, match=r"flow of L0: .* pass shares, not per cent"):
        flow_masses(np.full((1, 5, 5), 20.0))


@pytest.mark.parametrize("n_layers", [1, 4, 12])
def test_flow_draws_nodes_as_high_as_their_mass(n_layers):
    flows = np.random.default_rng(1).dirichlet(np.ones(5), (2, n_layers, 5))
    figure = plot_flow({LONG: flows[0], "mean of 9 questions": flows[1]})
    figure.draw_without_rendering()
    for axis, flow in zip(figure.axes, flows, strict=True):
        masses, _ = flow_masses(flow)
        nodes = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
        heights = sorted(node.get_height() for node in nodes)
        np.testing.assert_allclose(heights, sorted(mass for mass in masses.ravel() if mass > 0))
        texts = read_texts(axis)
        assert {"text", "image"} <= set(texts)
        assert texts.count("100 %") == texts.count("0 %") == 1  # the answer is one text token
        assert f"{100 * masses[0, :3].sum():.0f} %" in texts
        names = [name.strip() for name in read_ticks(axis, "x")]
        assert names == ["input", *(f"L{layer}" for layer in range(n_layers)), "answer"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["[CLS]", "words", "[SEP]", "image CLS", "patches", "pale: residual path"]


def make_hits(n_layers: int, bounds) -> pd.DataFrame:
    against = ("the head", "same head, another question", "same head, untrained", "difference")
    rows = [
        (name, layer, 0.5 / (1 + place), *bounds, f"L{layer}H0, words")
        for place, name in enumerate(against)
        for layer in range(n_layers)
    ]
    return pd.DataFrame(rows, columns=["against", "layer", "estimate", "low", "high", "label"])


@pytest.mark.parametrize(
    ("n_layers", "bounds"), [(12, (0.1, 0.6)), (4, (np.nan, np.nan)), (1, (0.5, 0.5))]
)
def test_hits_name_heads_chance_and_controls(n_layers, bounds):
    figure = plot_hits(make_hits(n_layers, bounds), 0.09)
    axis = figure.axes[0]
    assert read_texts(axis) == [f"L{layer}H0\nwords" for layer in range(n_layers)]
    assert axis.get_ylabel() == f"favoured patch in the box, %\n({TEXT_TO_IMAGE})"
    assert "layer" in axis.get_xlabel()
    labels = read_legend(axis.get_legend())
    wanted = [
        "chance: share of patches in the box",
        "the head",
        "same head, another question",
        "same head, untrained",
    ]
    assert labels == wanted
    assert [line for line in axis.lines if set(line.get_ydata()) == {9}]


def test_hits_without_a_second_question_on_any_picture_are_drawn():
    table = make_hits(3, (0.2, 0.6))
    table.loc[table["against"] == "same head, another question", ["estimate", "low", "high"]] = (
        np.nan
    )
    assert plot_hits(table, 0.1).axes
