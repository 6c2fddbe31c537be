"""Figures of notebooks 01, 02 and 06: the numbers drawn are the table's."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reading import is_hollow, read_bars, read_texts, read_ticks, render

from helpers.figures import models as figures

pytestmark = pytest.mark.usefixtures("tidy_figures")
PICTURE = Image.new("RGB", (64, 48), (10, 20, 30))


def test_the_study_has_a_box_for_every_token():
    figure = figures.plot_study(["[CLS]", "what", "$", "[SEP]"], (2, 3))
    render(figure)
    assert len(figure.axes[1].patches) == 4 + 1 + 6  # tokens, the image's CLS, patches


@pytest.mark.parametrize("n", [1, 40])
def test_the_data_at_a_glance_counts_questions(n):
    answers = [str(i % 15) for i in range(n)]
    questions = pd.DataFrame({"multiple_choice_answer": answers, "part": "train", "family": "what"})
    questions = questions.assign(n_words=5, n_patches=12)
    figure = figures.plot_dataset(questions)
    render(figure)
    families, answers, words, _ = figure.axes
    assert [bar.get_width() for bar in families.containers[0]] == [n]
    assert len(answers.patches) == min(n, 12)
    assert sum(bar.get_height() for bar in words.patches) == n


@pytest.mark.parametrize("n", [1, 4])
def test_examples_keep_their_pictures(n):
    cards = [{"picture": PICTURE, "title": "why $?", "boxes": [[1, 2, 3, 4]], "caption": "c"}] * n
    figure = figures.plot_examples(cards)
    render(figure)
    assert sum(bool(axis.images) for axis in figure.axes) == n


@pytest.mark.parametrize("grid", [(1, 1), (3, 4), (8, 8)])
def test_patches_are_numbered_where_they_fit(grid):
    figure = figures.plot_patches(PICTURE, np.zeros((96, 128, 3)), grid)
    render(figure)
    numbers = [str(i) for i in range(grid[0] * grid[1])]
    assert read_texts(figure.axes[2]) == (numbers if len(numbers) <= 60 else [])
    if grid == (3, 4):
        assert figure.axes[2].texts[5].get_position() == pytest.approx((1.06 * 32, 1.06 * 32))


def test_training_draws_loss_and_accuracy():
    curves = {"step": [1, 2, 2], "loss": [3, 2, np.nan], "eval_accuracy": [np.nan, np.nan, 0.4]}
    figure = figures.plot_training(pd.DataFrame(curves), 0.25)
    render(figure)
    loss, accuracy = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 3], [2, 2]])
    np.testing.assert_array_equal(accuracy.lines[0].get_xydata(), [[2, 40]])
    assert set(accuracy.lines[1].get_ydata()) == {25}


def test_accuracy_of_each_answerer_stands_in_its_family():
    rows = [
        {"family": family, "answerer": answerer, "estimate": 0.1 * f + 0.2 * a, "low": 0.0,
         "high": 0.9, "n": 9}
        for f, family in enumerate(("all", "why")) for a, answerer in enumerate(("ViLT", "prior"))
    ]  # fmt: skip
    axis = figures.plot_accuracy(pd.DataFrame(rows[:-1])).axes[0]  # one of them was not asked
    render(axis.figure)
    vilt, prior = axis.containers
    np.testing.assert_allclose(vilt.lines[0].get_ydata(), [0, 10])
    np.testing.assert_allclose(prior.lines[0].get_ydata(), [20, np.nan])
    np.testing.assert_allclose(read_bars(vilt), [[0, 90], [0, 90]])


def test_each_model_stands_with_its_own_and_another_image():
    rows = [
        (model, image, 90 - 40 * i - m, 30.0, 95.0)
        for m, model in enumerate(("here", "0"))
        for i, image in enumerate(("its own", "another"))
    ]
    table = pd.DataFrame(rows, columns=["model", "image", "estimate", "low", "high"])
    axis = figures.plot_models(table, {"words": 51.0, "prior": 35.0}).axes[0]
    render(axis.figure)
    own, other = axis.containers
    np.testing.assert_allclose(own.lines[0].get_xydata(), [[90, 0], [89, 1]])
    np.testing.assert_allclose(other.lines[0].get_xydata(), [[50, 0], [49, 1]])
    np.testing.assert_allclose(read_bars(own, 0), [[30, 95], [30, 95]])
    assert (is_hollow(own.lines[0]), is_hollow(other.lines[0])) == (False, True)
    assert read_ticks(axis, "y") == ["here", "0"]


def make_curves(steps=(1, 2, 4)) -> pd.DataFrame:
    orders = [*figures.ORDER_LOOKS, "random 1", "random 2"]
    rows = [
        {"order": order, "removed": step, "share": step / 8, "estimate": 90 - 10 * o - step, "n": 9}
        for o, order in enumerate(orders) for step in steps
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(low=table["estimate"] - 2, high=table["estimate"] + 1)


@pytest.mark.parametrize("steps", [(1,), (1, 2, 4)])
def test_removal_curves_draw_every_order(steps):
    axis = figures.plot_removal_curves(make_curves(steps), 90, 1).axes[0]
    render(axis.figure)
    assert len(axis.containers) == len(figures.ORDER_LOOKS)
    for o, container in enumerate(axis.containers):
        expected = 90 - 10 * o - np.array(steps)
        np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
        bounds = np.stack([expected - 2, expected + 1], axis=1)
        np.testing.assert_allclose(read_bars(container), bounds)


def test_family_costs_draw_heads_and_layers():
    rows = [
        {"what": what, "removed": removed, "family": family, "drop": r + 10 * f, "n": 40,
         "told": family != "why", "significant": r > 0}
        for what, steps in (("heads removed", (1, 2)), ("layers removed", ("+L1",)))
        for r, removed in enumerate(steps) for f, family in enumerate(("all", "why"))
    ]  # fmt: skip
    costs = pd.DataFrame(rows)
    figure = figures.plot_family_costs(costs)
    render(figure)
    heads, layers = (axis.images[0].get_array().filled(np.nan) for axis in figure.axes[:2])
    np.testing.assert_allclose(heads, [[0, 1], [np.nan, np.nan]])
    np.testing.assert_allclose(layers, [[0], [np.nan]])
    render(figures.plot_family_costs(costs.assign(told=False)))


def test_recovery_draws_before_and_after():
    columns = {"model": ["a", "b", "a, trained", "b, trained"], "judged": [-5.0, 0, -1, np.nan]}
    table = pd.DataFrame(columns).assign(low=[-7, -7, -2, -2], high=[1, 1, 3, 3])
    axis = figures.plot_recovery(table, 1).axes[0]
    render(axis.figure)
    before, after = axis.containers
    np.testing.assert_allclose(before.lines[0].get_xdata(), [-5, 0])
    np.testing.assert_allclose(after.lines[0].get_xdata(), [-1, np.nan])
    np.testing.assert_allclose(read_bars(before, 0), [[-7, 1], [-7, 1]])
    assert (is_hollow(before.lines[0]), is_hollow(after.lines[0])) == (True, False)
    assert read_ticks(axis, "y") == ["a", "b"]


@pytest.mark.parametrize("n_models", [1, 5])
def test_pareto_names_every_model_at_each_size(n_models):
    rows = [
        {"model": f"m{i}", "precision": ("fp32", "int8")[i % 2], "questions": size,
         "seconds": 0.001 * (i + 1) * size, "accuracy": 90 - i, "low": 80,
         "high": 95, "chosen": i == 0}
        for size in (1, 8) for i in range(n_models)
    ]  # fmt: skip
    figure = figures.plot_pareto(pd.DataFrame(rows))
    render(figure)
    for size, axis in zip((1, 8), figure.axes, strict=True):
        points = {tuple(p) for c in axis.containers for p in np.round(c.lines[0].get_xydata(), 9)}
        assert points == {((i + 1) * size, 90 - i) for i in range(n_models)}
        assert [note.xy[1] for note in axis.texts] == [90 - i for i in range(n_models)]


def test_runs_are_points_and_a_run_without_a_number_shows_its_verdict():
    rows = [
        ("a", "needs-image", "supported", 50.0, 40.0, 60.0),
        ("b", "needs-image", "undecided", 60.0, 5.0, 65.0),
        ("a", "habits", "supported", 3, 2, 4),
        ("b", "habits", "not testable", np.nan, np.nan, np.nan),
        ("a", "backup", "not testable", np.nan, np.nan, np.nan),
        ("b", "backup", "not testable", np.nan, np.nan, np.nan),
    ]
    table = pd.DataFrame(rows, columns=["run", "key", "verdict", "estimate", "low", "high"])
    figure = figures.plot_runs(table.assign(claim="A claim.", unit="points", threshold=20.0))
    render(figure)
    image, habits = figure.axes
    np.testing.assert_allclose(image.containers[0].lines[0].get_xydata(), [[50, 0], [60, 1]])
    np.testing.assert_allclose(read_bars(image.containers[0], 0), [[40, 60], [5, 65]])
    assert read_ticks(image, "y") == ["a", "b"]
    np.testing.assert_allclose(habits.containers[0].lines[0].get_xydata(), [[3, 0]])
    assert [text.get_text() for text in habits.texts] == ["supported", "not testable"]
