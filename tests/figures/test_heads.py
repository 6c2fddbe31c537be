"""Figures of notebook 05: the numbers drawn are the table's, also for one head and for many."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reading import is_hollow, read_bars, read_texts, read_ticks, render

from helpers.figures import heads as figures
from helpers.heads.roles import ROLES

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


def make_effects(
    names=("L0H0", "L0H1"), families=("all", "why"), modes=("zero", "mean")
) -> pd.DataFrame:
    rows = [
        {"mode": mode, "name": name, "head": i, "family": family, "drop": 10 * i + f + 0.4 * m,
         "n": 7 if family == "why" else 40, "told": family != "why" or i > 0, "significant": i > 0}
        for m, mode in enumerate(modes) for i, name in enumerate(names)
        for f, family in enumerate(families)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(low=table["drop"] - 2, high=table["drop"] + 3)


def test_every_role_has_a_name_and_a_colour_of_its_own():
    assert set(figures.ROLE_LOOKS) == set(ROLES)
    names, colors = zip(*figures.ROLE_LOOKS.values(), strict=True)
    assert len(set(names)) == len(set(colors)) == len(ROLES)


def test_role_scores_stand_beside_the_highest_random_head():
    figure = figures.plot_role_scores(make_scores())
    render(figure)
    panels = [axis for axis in figure.axes if axis.axison]
    assert (len(figure.axes), len(panels)) == (4, 3)  # an odd number of roles leaves one empty
    for r, axis in enumerate(panels):
        fails, passes = axis.containers
        score = 0.1 + 0.1 * r + 0.01 * np.arange(4)
        bounds = np.stack([score - 0.02, score + 0.03], axis=1)
        for container, heads in ((fails, [1, 3]), (passes, [0, 2])):
            points = np.stack([heads, score[heads]], axis=1)
            np.testing.assert_allclose(container.lines[0].get_xydata(), points)
            np.testing.assert_allclose(read_bars(container), bounds[heads])
        assert is_hollow(fails.lines[0])
        assert not is_hollow(passes.lines[0])
        random = next(line for line in axis.lines if line.get_label() == "highest random head")
        assert set(random.get_ydata()) == {0.07}


@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (3, 12)])
def test_role_scores_of_other_numbers_of_heads_and_far_below(n_layers, n_heads):
    scores = make_scores(n_layers, n_heads, ("sink", "grounding"))
    scores.loc[0, ["score", "low", "high"]] = [-7, -8, -6]
    figure = figures.plot_role_scores(scores)
    render(figure)
    arrow = next(line for line in figure.axes[0].lines if line.get_marker() == "v")
    np.testing.assert_array_equal(arrow.get_xydata(), [[0, figures.LEAST_SCORE]])


@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (2, 3), (2, 7)])
def test_role_map_names_the_roles_of_each_head(n_layers, n_heads):
    scores = make_scores(n_layers, n_heads)
    axis = figures.plot_role_map(scores).axes[0]
    render(axis.figure)
    short = [figures.ROLE_LOOKS[role][0] for role in scores["role"].unique()]
    for layer, head in np.ndindex(n_layers, n_heads):
        places = {text.get_position(): text.get_text() for text in axis.texts}
        words = [places[x, y] for x, y in sorted(places) if (x, round(y)) == (head, layer)]
        last = layer == n_layers - 1
        expected = [short[2], *(f"({name})" if last else name for name in (short[1], short[0]))]
        assert words == (expected if head % 2 == 0 else [])  # the clearest on top


def test_each_head_is_a_point_before_and_after():
    before = {"sink": [[0, 0.5]], "text local": [[np.nan] * 2], "grounding": [[-7, 0.1]]}
    after = {"sink": [[0.1, 0.6]], "text local": [[np.nan] * 2], "grounding": [[0, 0.2]]}
    random = {"sink": np.array([0.3, 0.1]), "grounding": np.array([0.4])}
    figure = figures.plot_before_after(before, after, random)
    render(figure)
    assert [set(axis.lines[1].get_ydata()) for axis in figure.axes[:2]] == [{0.3}, {0.4}]
    drawn = [axis.lines[2].get_xydata().tolist() for axis in figure.axes[:2]]
    assert drawn == [[[0, 0.1], [0.5, 0.6]], [[figures.LEAST_SCORE, 0], [0.1, 0.2]]]


def test_role_cards_show_a_map_or_tokens_and_what_removal_costs():
    drops = {"family": ["all", "why"], "drop": [3.0, -1], "significant": [True, False]}
    drops = pd.DataFrame(drops)
    card = {"role": "sink", "name": "L0H1", "question": "why $?", "passes": True, "score": -0.4,
            "low": -0.5, "high": 0.1, "null": 0.0, "drops": drops}  # fmt: skip
    tokens = card | {"tokens": ["[CLS]", "why", "[SEP]"], "weights": [0.2, 0.3, 0.5]}
    weights, picture = np.array([[0.1, 0.2]]), Image.new("RGB", (30, 20))
    shown = card | {"picture": picture, "weights": weights, "boxes": [[1, 1, 5, 5]]}
    figure = figures.plot_role_cards([tokens, shown, shown | {"passes": False}])
    render(figure)
    axes = figure.axes
    assert [bar.get_width() for bar in axes[0].patches] == [0.2, 0.3, 0.5]
    assert [bar.get_width() for bar in axes[1].patches] == [3, -1]
    np.testing.assert_array_equal(axes[2].images[1].get_array(), weights)
    render(figures.plot_role_cards([tokens]))


def test_ablation_draws_what_each_head_costs_each_family():
    figure = figures.plot_ablation(make_effects())
    render(figure)
    for m, axis in enumerate(figure.axes[:2]):
        drawn = axis.images[0].get_array().filled(np.nan)
        np.testing.assert_allclose(drawn, [[0.4 * m, np.nan], [10 + 0.4 * m, 11 + 0.4 * m]])
        bold = [t.get_position() for t in axis.texts if t.get_fontweight() == "bold"]
        assert bold == [(0, 1), (1, 1)]


def test_ablation_of_many_heads_shows_those_that_matter_most():
    names = [f"L0H{i}" for i in range(30)]
    figure = figures.plot_ablation(make_effects(names, modes=("zero",)))
    assert read_ticks(figure.axes[0], "y") == names[-figures.MOST_NAMES :]
    few = make_effects(modes=("layer",)).assign(told=False)
    figure = figures.plot_ablation(few)
    render(figure)
    assert read_texts(figure.axes[0]) == []


@pytest.mark.parametrize("n_layers", [1, 7])
def test_importance_has_a_point_a_head(n_layers):
    rows = [
        {"layer": i, "name": f"L{i}H0", "drop": 30 - i, "low": 20, "high": 40, "share": i / 10}
        for i in range(n_layers)
    ]
    figure = figures.plot_importance(pd.DataFrame(rows), {"share": "image share"})
    render(figure)
    points = [tuple(c.lines[0].get_xydata()[0]) for c in figure.axes[0].containers]
    assert points == [(i / 10, 30 - i) for i in range(n_layers)]
    assert read_texts(figure.axes[0]) == [f"L{i}H0" for i in range(min(5, n_layers))]


def test_crowded_heads_are_not_named_over_each_other():
    rows = [
        {"layer": 0, "name": f"L0H{i}", "drop": 30, "low": 20, "high": 40, "share": i / 100}
        for i in range(40)
    ]
    figure = figures.plot_importance(pd.DataFrame(rows), {"share": "image share"})
    assert len(read_texts(figure.axes[0])) < 5


def test_agreement_draws_each_predictor_against_each_outcome():
    rows = [
        {"over": over, "first": first, "second": second, "correlation": 0.1 * i + 0.3 * j,
         "low": -0.1, "high": 0.9}
        for over in ("all heads", "layer 0") for i, first in enumerate("ab")
        for j, second in enumerate("xy")
    ]  # fmt: skip
    table = pd.DataFrame(rows).drop(index=0)  # a pair that nobody measured
    figure = figures.plot_agreement(table, ["a", "b"], ["x", "y"])
    render(figure)
    x, y = figure.axes[0].containers
    np.testing.assert_allclose(x.lines[0].get_xdata(), [np.nan, 0.1])
    np.testing.assert_allclose(y.lines[0].get_xdata(), [0.3, 0.4])
    np.testing.assert_allclose(np.round(y.lines[0].get_ydata()), [0, 1])


@pytest.mark.parametrize("shape", [(1, 1), (2, 9)])
def test_carriers_draw_all_heads_and_the_strongest(shape):
    rows = [
        {"layer": layer, "head": head, "name": f"L{layer}H{head}", "share": layer - 10.0 * head,
         "low": layer - 10.0 * head - 1, "high": layer - 10.0 * head + 2, "significant": head == 0}
        for layer, head in np.ndindex(*shape)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    figure = figures.plot_carriers(table)
    render(figure)
    left, right = figure.axes[:2]
    np.testing.assert_allclose(left.images[0].get_array(), np.array(table["share"]).reshape(shape))
    strongest = table.loc[table["share"].abs().nlargest(12).index]
    drawn = right.containers[0]
    np.testing.assert_allclose(drawn.lines[0].get_xdata(), strongest["share"])
    assert read_ticks(right, "y") == list(strongest["name"])
