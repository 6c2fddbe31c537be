"""Figures of notebooks 05 and 06: the numbers drawn are the table's, for one head and for many."""

import numpy as np
import pandas as pd
import pytest
from reading import read_bars, read_grid, read_texts, render

from helpers.figures import heads as figures

pytestmark = pytest.mark.usefixtures("tidy_figures")


def make_scores(
    n_layers=2, n_heads=2, roles=("sink", "text local", "[CLS] reader of words")
) -> pd.DataFrame:
    """Scores that tell their place: tenths by role, hundredths by head; even heads pass."""
    rows = [
        {"layer": layer, "head": head, "name": f"L{layer}H{head}", "role": role, "score": score,
         "low": score - 0.02, "high": score + 0.03, "null": 0.07, "passes": head % 2 == 0,
         "reaches_answer": layer < n_layers - 1 or "CLS" in role}
        for r, role in enumerate(roles) for layer, head in np.ndindex(n_layers, n_heads)
        for score in [0.1 + 0.1 * r + 0.01 * (layer * n_heads + head)]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def make_effects(names=("L0H0", "L0H1"), modes=("zero", "mean")) -> pd.DataFrame:
    rows = [
        {"mode": mode, "name": name, "head": i, "family": family, "drop": 10 * i + f + 0.4 * m,
         "n": 7 if family == "why" else 40, "told": family != "why" or i > 0, "significant": i > 0}
        for m, mode in enumerate(modes) for i, name in enumerate(names)
        for f, family in enumerate(("all", "why"))
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (2, 3), (12, 12)])
def test_role_map_names_the_roles_of_each_head(n_layers, n_heads):
    scores = make_scores(n_layers, n_heads)
    axis = figures.plot_role_map(scores).axes[0]
    render(axis.figure)
    short = [figures.ROLE_LOOKS[role][0] for role in scores["role"].unique()]
    written = {text.get_position(): text.get_text() for text in axis.texts}
    for layer, head in np.ndindex(n_layers, n_heads):
        last = layer == n_layers - 1
        names = [short[2], *(f"({name})" if last else name for name in (short[1], short[0]))]
        expected = "\n".join(names) if head % 2 == 0 else None  # the clearest on top
        assert written.get((head + 0.5, layer + 0.5)) == expected


def test_each_head_is_a_point_before_and_after():
    before = {"sink": [[0, 0.5]], "text local": [[np.nan] * 2], "grounding": [[-7, 0.1]]}
    after = {"sink": [[0.1, 0.6]], "text local": [[np.nan] * 2], "grounding": [[0, 0.2]]}
    random = {"sink": np.array([0.3, 0.1]), "grounding": np.array([0.4])}
    figure = figures.plot_before_after(before, after, random)
    render(figure)
    assert [set(axis.lines[0].get_ydata()) for axis in figure.axes] == [{0.3}, {0.4}]
    drawn = [axis.containers[0].lines[0].get_xydata().tolist() for axis in figure.axes]
    assert drawn == [[[0, 0.1], [0.5, 0.6]], [[-1, 0], [0.1, 0.2]]]


def test_ablation_draws_what_each_head_costs_each_family():
    figure = figures.plot_costs(make_effects(), "mode", "name", "family")
    render(figure)
    for m, axis in enumerate(figure.axes[:2]):
        expected = [[0.4 * m, np.nan], [10 + 0.4 * m, 11 + 0.4 * m]]  # too few questions: a gap
        np.testing.assert_allclose(read_grid(axis), expected)
        frames = [tuple(np.floor(patch.get_xy())) for patch in axis.patches]
        assert frames == [(0, 1), (1, 1)]


@pytest.mark.parametrize("steps", [(1,), (1, 2, 4)])
def test_removal_curves_draw_every_order(steps):
    orders = ["ablation", "gradient", "attention", "random", "random 1", "random 2"]
    rows = [(order, step, step / 8, 90 - 10 * o - step)
            for o, order in enumerate(orders) for step in steps]  # fmt: skip
    table = pd.DataFrame(rows, columns=["order", "removed", "share", "estimate"])
    table = table.assign(low=table["estimate"] - 2, high=table["estimate"] + 1)
    axis = figures.plot_removal_curves(table, 90, 1).axes[0]
    render(axis.figure)
    for o, container in enumerate(axis.containers[:4]):
        expected = 90 - 10 * o - np.array(steps)
        np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
        bounds = np.stack([expected - 2, expected + 1], axis=1)
        np.testing.assert_allclose(read_bars(container), bounds)
    single = axis.containers[4].lines[0].get_ydata()  # "random 1", "random 2"
    np.testing.assert_allclose(np.sort(single), np.sort(np.subtract.outer([50, 40], steps).ravel()))


@pytest.mark.parametrize("n_models", [1, 8])
def test_each_model_stands_with_its_accuracy_and_its_times(n_models):
    rows = [(f"m{i}", size, (i + 1) * size, 90.0 - i, i == 0)
            for size in (1, 8) for i in range(n_models)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model", "questions", "milliseconds", "accuracy", "chosen"])
    table = table.assign(low=table["accuracy"] - 1, high=table["accuracy"] + 1)
    figure = figures.plot_pareto(table)
    render(figure)
    drawn = [axis.containers[0].lines[0].get_xdata() for axis in figure.axes]
    number = np.arange(n_models)
    np.testing.assert_allclose(drawn, [90 - number, number + 1, 8 * (number + 1)])
    for axis, time in zip(figure.axes[1:], drawn[1:], strict=True):  # what is far out is written
        far = time[time > 1.5 * np.median(time)]
        assert read_texts(axis) == [f"{each:.0f} →" for each in far]
