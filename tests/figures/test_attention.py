"""Figures of notebooks 03 and 04: the numbers drawn are the table's, in small and large cases."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reading import is_hollow, read_bars, read_grid, read_texts, render

from helpers.figures import attention
from helpers.stats.bootstrap import Interval

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
        for m, measure in enumerate([*attention.MEASURES, "excess"])
        for o, model in enumerate(models)
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


@pytest.mark.parametrize("shared", [True, False])
def test_maps_draw_their_own_weights_in_per_cent(shared):
    weights = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2) / 100
    names = (["L0", "L1"], ["a", "b", "c"], "a title " * 30, [(2, 3, 4, 5)])
    figure = attention.plot_maps(PICTURE, torch.from_numpy(weights), *names, shared=shared)
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
    ends = figure.axes[1].collections[0].norm([-90, 0, 9.999])  # a share of 0, uniform, nearly 1
    np.testing.assert_allclose(ends, [0, 0.5, 1], atol=1e-3)
    drawn = [axis.images[1].get_array().max() for axis in figure.axes if len(axis.images) == 2]
    assert drawn == [0, 0, 0, 0, 0, 20, 0, 0]


def test_what_is_known_stands_in_brackets_unless_above_its_control():
    rows = [("[CLS]", "object", level, 0.2 + 0.3 * level) for level in range(3)]
    rows += [("its patches", "object", level, 0.9) for level in range(2)]
    own = pd.DataFrame(rows, columns=["place", "what", "level", "estimate"])
    own = own.assign(model="trained", low=own["estimate"] - 0.1)
    random = own.assign(model="random weights", estimate=0.4)
    shuffled = own.assign(model="shuffled labels", estimate=0.1 * own["level"])
    figure = attention.plot_known(pd.concat([own, random, shuffled]))
    render(figure)
    np.testing.assert_allclose(read_grid(figure.axes[0])[:, 0], [20, 50, 80, 40])
    assert read_texts(figure.axes[0]) == ["(20)", "(50)", "80", "40"]
    np.testing.assert_allclose(read_grid(figure.axes[1])[:, 0], [90, 90, np.nan, 40])


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


def test_curves_draw_every_map_beside_the_random_order():
    starts = {"deletion": {"rollout": 0.1, "relevance": 0.2, "random": 0.3},
              "insertion": {"rollout": 0.4, "relevance": 0.5, "random": 0.6}}  # fmt: skip
    rows = [(order, kind, fraction, start + 0.2 * fraction)
            for kind, orders in starts.items() for order, start in orders.items()
            for fraction in (0, 0.5, 1)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["order", "kind", "fraction", "estimate"])
    figure = attention.plot_curves(table.assign(low=0.0, high=1.0))
    render(figure)
    drawn = [[c.lines[0].get_ydata() for c in axis.containers] for axis in figure.axes]
    of_panels = [(0.1, 0.3), (0.2, 0.3), (0.4, 0.6), (0.5, 0.6)]  # deletion above, a map a column
    expected = 100 * (np.array(of_panels)[..., None] + [0, 0.1, 0.2])
    np.testing.assert_allclose(drawn, expected)


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


def make_means(**numbers) -> dict:
    """Means over models by name, of each model's own number."""
    return {name: Interval(np.mean(each), min(each) - 1, max(each) + 1, 70, 9, len(each),
                            np.array(each)) for name, each in numbers.items()}  # fmt: skip


def test_means_stand_with_every_model_trained_and_random():
    means, random = make_means(what=[3, 1], why=[2.0, 2.0]), {"what": [0.5, 0.1], "why": [0.2]}
    figure = attention.plot_means({"share": means}, random)
    render(figure)
    axis = figure.axes[0]
    dots = {each.get_label(): each.get_offsets().tolist() for each in axis.collections[:2]}
    assert [x for x, _ in dots["each model"]] == [3, 1, 2, 2]
    assert [x for x, _ in dots["random weights"]] == [0.5, 0.1, 0.2]
    np.testing.assert_allclose(axis.containers[0].lines[0].get_xydata(), [[2, 0], [2, 1]])
    np.testing.assert_allclose(read_bars(axis.containers[0], 0), [[0, 4], [1, 3]])


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
