"""Figures of notebooks 03 and 04: the numbers drawn are the table's, in small and large cases."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import PathPatch
from PIL import Image
from reading import is_hollow, read_bars, read_grid, read_texts, read_ticks, render

from helpers.data.vqa import FAMILIES
from helpers.figures import attention
from helpers.stats.models import ModelMean

pytestmark = pytest.mark.usefixtures("tidy_figures")
PICTURE = Image.new("RGB", (640, 426), (200, 200, 200))
UNIFORM = {"image share": 0.7, "special": 0.1, "entropy": 1.0}


def place_share(measure: int, query: int, untrained: int, n_layers: int = 3) -> np.ndarray:
    """Shares that tell their place: hundredths by layer, tenths by query."""
    return 0.2 + 0.01 * np.arange(n_layers) + 0.1 * query + 0.003 * measure + 0.001 * untrained


def make_layers(n_layers: int = 3, models=("untrained", "trained")) -> pd.DataFrame:
    rows = [
        {"measure": measure, "model": model, "query": query, "layer": layer, "estimate": share,
         "low": share - 0.01, "high": share + 0.02,
         "reaches_answer": query == "cls" or layer < n_layers - 1}
        for m, measure in enumerate(attention.MEASURES) for o, model in enumerate(models)
        for q, query in enumerate(attention.QUERIES)
        for layer, share in enumerate(place_share(m, q, o, n_layers))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_layers_draw_every_estimate_and_its_bounds():
    panels = np.array(attention.plot_layer_measures(make_layers(), UNIFORM).axes).reshape(3, 3)
    for (m, q), panel in np.ndenumerate(panels):
        for trained, container in enumerate(panel.containers):
            expected = 100 * place_share(m, q, trained)
            points = container.lines[0].get_xydata()
            np.testing.assert_allclose(points[:, 1], expected)
            np.testing.assert_allclose(points[:, 0], [0, 1, 2], atol=0.2)
            bounds = np.stack([expected - 1, expected + 2], axis=1)
            np.testing.assert_allclose(read_bars(container), bounds)
        hollow = [line.get_xdata() for line in panel.lines if is_hollow(line)]
        assert sum(map(len, hollow)) == (0 if q == 0 else 2)  # the last layer reaches no answer
        uniform = 100 * list(UNIFORM.values())[m]
        assert any(np.all(np.asarray(line.get_ydata()) == uniform) for line in panel.lines)


@pytest.mark.parametrize("n_layers", [1, 12])
def test_layers_of_other_numbers_and_without_intervals(n_layers):
    table = make_layers(n_layers, ("trained",)).assign(low=np.nan, high=np.nan)
    figure = attention.plot_layer_measures(table, UNIFORM)
    render(figure)
    bars = read_bars(figure.axes[0].containers[-1])
    np.testing.assert_array_equal(bars[:, 0], bars[:, 1])


@pytest.mark.parametrize("shape", [(1, 1), (12, 12)])
def test_heads_draw_the_given_numbers_in_brackets_where_undecided(shape):
    layers, heads = (index.ravel() for index in np.indices(shape))
    table = pd.DataFrame({"layer": layers, "head": heads, "estimate": -0.5, "low": -0.6})
    parts = [
        table.assign(model=name, high=high) for name, high in (("trained", 0.1), ("random", -0.1))
    ]
    figure = attention.plot_heads(pd.concat(parts))
    render(figure)
    for axis, text in zip(figure.axes, ("(−50)", "−50"), strict=False):
        np.testing.assert_allclose(read_grid(axis), np.full(shape, -50))
        assert set(read_texts(axis)) == {text}
        cell = axis.get_window_extent().width / shape[1]
        assert max(text.get_window_extent().width for text in axis.texts) <= cell


@pytest.mark.parametrize("shared", [True, False])
def test_maps_draw_their_own_weights_in_per_cent(shared):
    weights = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2) / 100
    names = (["L0", "L1"], ["a", "b", "c"], "a title " * 30, [(2, 3, 4, 5)])
    figure = attention.plot_maps(PICTURE, weights, *names, shared=shared)
    render(figure)
    panels = np.array(figure.axes[:6]).reshape(2, 3)
    for (row, column), axis in np.ndenumerate(panels):
        heatmap = axis.images[1]
        np.testing.assert_allclose(heatmap.get_array(), 100 * weights[row, column])
        largest = weights.max() if shared else weights[:, column].max()
        assert heatmap.get_clim() == pytest.approx((0, 100 * largest))
        assert axis.patches[0].get_xy() == (2, 3)


def test_a_look_has_a_grid_of_heads_and_a_map_for_each_layer():
    shares, maps = np.linspace(0, 1, 96).reshape(8, 12), np.zeros((8, 3, 4))
    maps[5] = 0.2
    figure = attention.plot_look(PICTURE, "why $?", shares, 0.9, maps)
    render(figure)
    np.testing.assert_allclose(read_grid(figure.axes[1]), 100 * (shares - 0.9))
    drawn = [axis.images[1].get_array().max() for axis in figure.axes if len(axis.images) == 2]
    assert drawn == [0, 0, 0, 0, 0, 20, 0, 0]


def test_flow_masses_by_hand():
    flow = np.zeros((2, 5, 5))
    flow[..., 0] = 1.0  # everything looks at [CLS] ...
    flow[1, 0] = [0.2, 0.6, 0, 0, 0.2]  # ... but in the last layer [CLS] also at words and patches
    flow[0, 3] = np.nan  # a group without tokens
    masses, bands = attention.flow_masses(flow)
    np.testing.assert_allclose(masses[2], [1, 0, 0, 0, 0])
    np.testing.assert_allclose(masses[1], [0.6, 0.3, 0, 0, 0.1])
    np.testing.assert_allclose(masses[0], [0.6 + 0.15 + 0.05, 0.15, 0, 0, 0.05])
    np.testing.assert_allclose(bands[1, 0], [0.6, 0.3, 0, 0, 0.1])


@given(st.integers(1, 5), st.integers(0, 999))
def test_mass_is_never_lost_on_its_way_down(n_layers, seed):
    flow = np.random.default_rng(seed).dirichlet(np.ones(5), size=(n_layers, 5))
    masses, bands = attention.flow_masses(flow)
    np.testing.assert_allclose(masses.sum(1), 1)
    np.testing.assert_allclose(bands.sum(2), masses[1:])  # what leaves a query is what it has
    np.testing.assert_allclose(bands.sum(1), masses[:-1])


@pytest.mark.parametrize(
    ("flow", "says"), [(np.ones((2, 3, 5)), "shape"), (np.ones((2, 5, 5)), "does not sum to 1")]
)
def test_a_flow_that_is_none_is_refused(flow, says):
    with pytest.raises(ValueError, match=says):
        attention.flow_masses(flow)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_flow_writes_the_shares_of_text_and_image(n_layers):
    flow = np.random.default_rng(0).dirichlet(np.ones(5), size=(n_layers, 5))
    figure = attention.plot_flow({"one": flow, "two $ signs $": flow})
    render(figure)
    masses, bands = attention.flow_masses(flow)
    written = read_texts(figure.axes[0])
    for row in masses:
        assert f"{100 * row[:3].sum():.0f} %" in written
    drawn = [patch for patch in figure.axes[0].patches if isinstance(patch, PathPatch)]
    assert len(drawn) == sum((band > 0).sum() + (np.diag(band) > 0).sum() for band in bands)


def test_hits_draw_each_control():
    bases = dict(zip([*attention.HIT_LOOKS, "difference"], (0.5, 0.3, 0.1, 0.2), strict=True))
    rows = [(layer, against, base + 0.1 * layer, base, 0.9)
            for against, base in bases.items() for layer in range(3)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["layer", "against", "estimate", "low", "high"])
    axis = attention.plot_hits(table, 0.07, np.nan).axes[0]
    drawn = [container.lines[0].get_ydata() for container in axis.containers]
    np.testing.assert_allclose(drawn, [[50, 60, 70], [30, 40, 50], [10, 20, 30]])


ORDERS = ("relevance", "random", "never heard of")


def test_curves_draw_every_map_and_its_bounds():
    rows = [(order, kind, fraction, 0.1 * o + 0.3 * k + 0.2 * fraction)
            for o, order in enumerate(ORDERS) for k, kind in enumerate(("deletion", "insertion"))
            for fraction in (0, 0.5, 1)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["order", "kind", "fraction", "estimate"])
    table = table.assign(low=table["estimate"] - 0.02, high=table["estimate"] + 0.01)
    figure = attention.plot_curves(table)
    render(figure)
    for k, axis in enumerate(figure.axes):
        for o, container in enumerate(axis.containers):
            expected = 100 * (0.1 * o + 0.3 * k + 0.2 * np.array([0, 0.5, 1]))
            np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
            bounds = np.stack([expected - 2, expected + 1], axis=1)
            np.testing.assert_allclose(read_bars(container), bounds)


@pytest.mark.parametrize("measures", [("deletion_gain",), tuple(attention.SCORES)])
def test_scoreboard_has_the_best_map_on_top_and_each_in_its_row(measures):
    rows = [(order, measure, 0.1 * o + 0.01 * m, 0.1 * o, 0.9, 0.05)
            for m, measure in enumerate((*measures, "not drawn"))
            for o, order in enumerate(ORDERS)]  # fmt: skip
    columns = ["order", "measure", "estimate", "low", "high", "chance"]
    figure = attention.plot_scoreboard(pd.DataFrame(rows, columns=columns))
    render(figure)
    assert len(figure.axes) == len(measures)
    for m, axis in enumerate(figure.axes):
        points = sorted(map(tuple, axis.containers[0].lines[0].get_xydata()))
        expected = [(100 * (0.1 * o + 0.01 * m), 2 - o) for o in range(3)]
        np.testing.assert_allclose(points, expected)


def test_knockout_draws_losses_and_shares_beside_each_other():
    rows = [("one", "text <- image", "L0", 40.0, 30.0, 50.0), ("one", "a <- b", "L0", 1, -1, 3),
            ("share", "text <- image", "even", 75.0, np.nan, np.nan)]  # fmt: skip
    columns = ["panel", "direction", "column", "estimate", "low", "high"]
    figure = attention.plot_knockout(pd.DataFrame(rows, columns=columns))
    render(figure)
    losses, shares = figure.axes
    np.testing.assert_allclose(read_grid(losses), [[40], [1]])
    assert (read_texts(losses), read_texts(shares)) == (["40", "(1)"], ["75"])


def make_families(families=("what", "why"), n_layers=3) -> pd.DataFrame:
    rows = [
        {"family": family, "query": query, "layer": layer, "n": 1000 * (f + 1),
         "estimate": 0.1 * f + 0.01 * layer + 0.001 * q - 0.1, "enough": family != "why"}
        for f, family in enumerate(families) for q, query in enumerate(("[CLS]", "words"))
        for layer in range(n_layers)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(low=table["estimate"] - 0.01, high=table["estimate"] + 0.02)


def test_families_by_layer_and_a_band_that_holds_all_random_weights():
    means = np.random.default_rng(0).normal(size=(4, 2, 3, 2))  # model, family, layer, query
    figure = attention.plot_group_layers(make_families(), "family", means)
    render(figure)
    for q, axis in enumerate(figure.axes):
        for f, container in enumerate(axis.containers):
            expected = 100 * (0.1 * f + 0.01 * np.arange(3) + 0.001 * q - 0.1)
            np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
            bounds = np.stack([expected - 1, expected + 2], axis=1)
            np.testing.assert_allclose(read_bars(container), bounds)
            assert is_hollow(container.lines[0]) == (f == 1)  # too few questions
        band = next(c for c in axis.collections if c.get_label() == "random weights")
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx(100 * means[..., q].max())
        assert heights.min() == pytest.approx(100 * means[..., q].min())


@pytest.mark.parametrize(("families", "n_layers"), [(("other",), 1), (FAMILIES, 12)])
def test_families_of_other_numbers_and_without_intervals(families, n_layers):
    table = make_families(families, n_layers).assign(low=np.nan, high=np.nan)
    table["family"] = pd.Categorical(table["family"], FAMILIES)  # with unused categories
    figure = attention.plot_group_layers(table, "family")
    render(figure)
    assert [len(axis.containers) for axis in figure.axes] == [len(families)] * 2


def make_means(**numbers) -> dict:
    """Means over models by name, of each model's own number."""
    return {name: ModelMean(np.mean(each), min(each) - 1, max(each) + 1, 70, 9, len(each),
                            np.array(each)) for name, each in numbers.items()}  # fmt: skip


def test_means_stand_with_every_model_trained_and_random():
    means, random = make_means(what=[3, 1], why=[2.0, 2.0]), {"what": [0.5, 0.1], "why": [0.2]}
    figure = attention.plot_family_models(means, random)
    render(figure)
    axis = figure.axes[0]
    dots = {each.get_label(): each.get_offsets().tolist() for each in axis.collections[:2]}
    assert [x for x, _ in dots["each model"]] == [3, 1, 2, 2]
    assert [x for x, _ in dots["random weights"]] == [0.5, 0.1, 0.2]
    np.testing.assert_allclose(axis.containers[0].lines[0].get_xydata(), [[2, 0], [2, 1]])
    np.testing.assert_allclose(read_bars(axis.containers[0], 0), [[0, 4], [1, 3]])
    assert read_ticks(axis, "y") == ["what (n = 70)", "why (n = 70)"]


def test_scores_have_a_panel_each_where_there_are_numbers():
    within, telling = make_means(what=[0.1, 0.3]), make_means(share=[0.8, 0.9], removed=[0.7])
    figure = attention.plot_scores(within, telling, {"what": [0.0]}, {"share": [0.5]})
    render(figure)
    assert [len(axis.get_yticks()) for axis in figure.axes] == [1, 2]
    assert len(attention.plot_scores({}, telling, {}, {}).axes) == 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 9)])
def test_separation_counts_the_pairs_of_each_head_and_draws_each_model(shape):
    told = np.zeros((3, *shape, 2))
    told[0, 0, 0, 0] = told[2, 0, 0, 0] = 1
    told[:, -1, :, 1] = np.nan
    figure = attention.plot_separation(told, [40, 50], [1, 2, 3])
    render(figure)
    assert read_grid(figure.axes[0])[0, 0] == 2
    assert np.isnan(read_grid(figure.axes[1])[-1]).all()
    trained, random = (each.get_offsets()[:, 1] for each in figure.axes[2].collections)
    assert (sorted(trained), sorted(random)) == ([40, 50], [1, 2, 3])


def test_classes_by_family_in_one_layer():
    rows = [("what", "noun", -0.251, 1500, True), ("what", "colour word", np.nan, 0, False),
            ("why", "noun", 0.1, 7, False), ("why", "colour word", 0.0, 40, True)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["family", "word_class", "estimate", "n", "enough"])
    figure = attention.plot_class_families(table)
    render(figure)
    axis = figure.axes[0]
    np.testing.assert_allclose(read_grid(axis), [[-25.1, np.nan], [10, 0]])
    assert read_texts(axis) == ["−25   n = 1,500", "(+10)   n = 7", "0   n = 40"]


@pytest.mark.parametrize("n_layers", [1, 12])
def test_strips_draw_each_word_of_each_question(n_layers):
    shares = [np.arange(n_layers * n).reshape(n_layers, n) / 200 for n in (3, 5)]
    examples = [{"title": "a", "words": ["w"] * share.shape[1], "share": share,
                 "classes": ["noun"] * share.shape[1]} for share in shares]  # fmt: skip
    figure = attention.plot_strips(examples)
    render(figure)
    for axis, share in zip(figure.axes, shares, strict=False):
        np.testing.assert_allclose(read_grid(axis), 100 * share)
        assert read_ticks(axis, "x") == ["w (noun)"] * share.shape[1]


@pytest.mark.parametrize("kinds", [("questions",), ("questions", "controls")])
def test_needs_draw_every_measure_in_the_row_of_its_family(kinds):
    rows = [
        {"family": family, "kind": kind, "measure": measure, "estimate": 10 * f + m + 5 * k,
         "n": 100, "enough": True}
        for f, family in enumerate(("what", "why")) for k, kind in enumerate(kinds)
        for m, measure in enumerate(attention.NEEDS)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table.loc[table["measure"] == "words removed", "estimate"] = np.nan
    figure = attention.plot_needs(
        table.assign(low=table["estimate"] - 2, high=table["estimate"] + 1)
    )
    render(figure)
    assert len(figure.axes) == 3  # what is unknown has no panel
    for m, axis in enumerate(figure.axes):
        points = [tuple(p) for c in axis.containers for p in c.lines[0].get_xydata()]
        expected = {(10 * f + m + 5 * k, f) for f in range(2) for k in range(len(kinds))}
        assert {(x, round(y)) for x, y in points} == expected
        assert len({y for _, y in points}) == len(points)  # none hides another
