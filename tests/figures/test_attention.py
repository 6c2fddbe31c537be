"""Figures of notebook 03: the numbers drawn are the table's, in small and large cases alike."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import PathPatch
from PIL import Image
from reading import is_hollow, read_bars, read_texts, render

from helpers.figures import attention

pytestmark = pytest.mark.usefixtures("tidy_figures")
PICTURE = Image.new("RGB", (640, 426), (200, 200, 200))
UNIFORM = {"image share": 0.7, "special": 0.1, "entropy": 1.0}


def place_share(measure: int, query: int, untrained: int, n_layers: int = 3) -> np.ndarray:
    """Shares that tell their place: hundredths by layer, tenths by query."""
    return 0.2 + 0.01 * np.arange(n_layers) + 0.1 * query + 0.003 * measure + 0.001 * untrained


def make_layers(n_layers: int = 3, models=("trained", "untrained")) -> pd.DataFrame:
    rows = [
        {"measure": measure, "model": model, "query": query, "layer": layer, "estimate": share,
         "low": share - 0.01, "high": share + 0.02,
         "reaches_answer": query == "cls" or layer < n_layers - 1}
        for m, measure in enumerate(attention.MEASURES) for o, model in enumerate(models)
        for q, query in enumerate(attention.QUERY_STYLE)
        for layer, share in enumerate(place_share(m, q, o, n_layers))
    ]  # fmt: skip
    return pd.DataFrame(rows).sample(frac=1, random_state=0, ignore_index=True)


def test_layers_draw_every_estimate_and_its_bounds():
    panels = np.array(attention.plot_layer_measures(make_layers(), UNIFORM).axes).reshape(3, 3)
    for (m, q), panel in np.ndenumerate(panels):
        for untrained, container in zip((1, 0), panel.containers, strict=True):
            expected = 100 * place_share(m, q, untrained)
            points = container.lines[0].get_xydata()
            np.testing.assert_allclose(points[:, 1], expected)
            np.testing.assert_allclose(points[:, 0], [0, 1, 2], atol=0.2)
            bounds = np.stack([expected - 1, expected + 2], axis=1)
            np.testing.assert_allclose(read_bars(container), bounds)
        hollow = [line.get_xdata() for line in panel.lines if is_hollow(line)]
        assert sum(map(len, hollow)) in ((0, 1) if q == 0 else (2, 3))  # the last layer; a legend's
        uniform = 100 * list(UNIFORM.values())[m]
        assert any(np.all(np.asarray(line.get_ydata()) == uniform) for line in panel.lines)


def test_a_row_of_layers_has_room_for_its_highest_panel():
    table, shares = make_layers(), ["estimate", "low", "high"]
    table.loc[table["query"] == "cls", shares] *= 0.1  # the first panel is much the lowest
    figure = attention.plot_layer_measures(table, UNIFORM)
    figure.draw_without_rendering()
    for row, measure in enumerate(attention.MEASURES):
        highest = 100 * table.loc[table["measure"] == measure, "high"].max()
        assert all(axis.get_ylim()[1] >= highest for axis in figure.axes[3 * row : 3 * row + 3])


@pytest.mark.parametrize("n_layers", [1, 9])
def test_layers_of_other_numbers_and_without_intervals(n_layers):
    table = make_layers(n_layers, ("trained",)).assign(low=np.nan, high=np.nan)
    figure = attention.plot_layer_measures(table, UNIFORM)
    render(figure)
    bars = read_bars(figure.axes[0].containers[-1])
    np.testing.assert_array_equal(bars[:, 0], bars[:, 1])


def test_heads_draw_the_given_numbers():
    grid = np.array([[-0.5, 0.3, 0.0], [0.25, 0.02, 0.5]])
    axis = attention.plot_heads({"a": grid}, {"a": np.eye(2, 3, dtype=bool)}).axes[0]
    np.testing.assert_allclose(axis.images[0].get_array(), 100 * grid)
    assert axis.images[0].get_clim() == (-50, 50)
    written = {text.get_position(): text.get_text() for text in axis.texts}  # (head, layer)
    assert written == {(0, 0): "(−50)", (1, 0): "+30", (2, 0): "0", (0, 1): "+25", (1, 1): "(+2)",
     (2, 1): "+50"}  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1), (2, 12)])
def test_heads_of_other_numbers(shape):
    grids = {"a": np.linspace(-0.9, 0.9, np.prod(shape)).reshape(shape), "b": np.zeros(shape)}
    figure = attention.plot_heads(grids, {name: grid < 5 for name, grid in grids.items()})
    render(figure)
    axis = figure.axes[0]
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


def test_a_map_without_any_attention():
    render(attention.plot_maps(PICTURE, np.zeros((1, 1, 3, 4)), [""], ["only"], "nothing"))


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


def test_hits_draw_each_control_and_name_each_head():
    bases = dict(zip([*attention.HIT_STYLE, "difference"], (0.5, 0.3, 0.1, 0.2), strict=True))
    rows = [
        {"layer": layer, "against": against, "estimate": base + 0.1 * layer, "low": base,
         "high": 0.9, "label": f"L{layer}H{3 - layer}, words"}
        for against, base in bases.items() for layer in range(3)
    ]  # fmt: skip
    axis = attention.plot_hits(pd.DataFrame(rows), 0.07, 0.2).axes[0]
    drawn = [container.lines[0].get_ydata() for container in axis.containers]
    np.testing.assert_allclose(sorted(y[0] for y in drawn), [10, 30, 50])
    assert [note.get_text() for note in axis.texts] == ["L0H3\nwords", "L1H2\nwords", "L2H1\nwords"]
    without = pd.DataFrame(rows).assign(low=np.nan, high=np.nan)
    axis = attention.plot_hits(without, 0.07, np.nan).axes[0]
    assert [note.xy[1] for note in axis.texts] == pytest.approx([50, 60, 70])


ORDERS = ("relevance", "random", "never heard of")


def test_curves_draw_every_map_and_its_bounds():
    rows = [
        {"order": order, "kind": kind, "fraction": fraction, "estimate": estimate,
         "low": estimate - 0.02, "high": estimate + 0.01}
        for o, order in enumerate(ORDERS) for k, kind in enumerate(("deletion", "insertion"))
        for fraction in (0, 0.5, 1) for estimate in [0.1 * o + 0.3 * k + 0.2 * fraction]
    ]  # fmt: skip
    figure = attention.plot_curves(pd.DataFrame(rows))
    render(figure)
    for k, axis in enumerate(figure.axes):
        for o, container in enumerate(axis.containers):
            expected = 100 * (0.1 * o + 0.3 * k + 0.2 * np.array([0, 0.5, 1]))
            np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
            bounds = np.stack([expected - 2, expected + 1], axis=1)
            np.testing.assert_allclose(read_bars(container), bounds)


@pytest.mark.parametrize("measures", [("deletion_gain",), tuple(attention.SCORES)])
def test_scoreboard_has_the_best_map_on_top_and_each_in_its_row(measures):
    rows = [
        {"order": order, "measure": measure, "estimate": 0.1 * o + 0.01 * m, "low": 0.1 * o,
         "high": 0.9, "chance": 0.05}
        for o, order in enumerate(ORDERS) for m, measure in enumerate((*measures, "not drawn"))
    ]  # fmt: skip
    figure = attention.plot_scoreboard(pd.DataFrame(rows))
    render(figure)
    assert len(figure.axes) == len(measures)
    for m, axis in enumerate(figure.axes):
        points = sorted(tuple(c.lines[0].get_xydata()[0]) for c in axis.containers)
        expected = [(100 * (0.1 * o + 0.01 * m), 2 - o) for o in range(3)]
        np.testing.assert_allclose(points, expected)
