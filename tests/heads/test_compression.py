"""Compression: orders of removal, answers and losses against pruned models, steps done once."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.heads import compression
from helpers.model import finetune
from helpers.model.finetune import predict
from helpers.model.vilt import load_vilt, name_original, prune_model


def test_order_by_hand():
    importance = np.array([[0.5, 0.1, 0.9], [0.2, np.nan, 0.15]])
    order = [(1, 1), (0, 1), (1, 2), (0, 0)]  # L0H2 and L1H0 stay
    assert compression.order_heads(importance) == order
    assert compression.order_heads(np.zeros((2, 2))) == [(0, 1), (1, 1)]
    assert compression.order_heads(np.full((1, 2), np.nan)) == [(0, 1)]
    assert compression.order_heads(np.ones((3, 1))) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(2, 6), st.integers(0, 1000))
def test_every_order_leaves_one_head_a_layer(n_layers, n_heads, seed):
    orders = compression.sample_orders(n_layers, n_heads, 3, seed)
    for order in orders:
        assert len(set(order)) == len(order)
        layers = [layer for layer, _ in order]
        assert sorted(layers) == sorted([*range(n_layers)] * (n_heads - 1))
    assert orders == compression.sample_orders(n_layers, n_heads, 3, seed)


def test_the_smallest_model_within_the_tolerance_is_selected():
    table = pd.DataFrame(
        [("whole", 100, 0.0), ("a", 90, -0.4), ("b", 60, -1.0), ("c", 40, -1.1), ("d", 60, 2.0)],
        columns=["model", "parameters", "selection"],
    )
    for tolerance, smallest in ((1.0, "b"), (0.5, "d"), (1.2, "c")):  # of equals the first
        assert compression.select_smallest(table, tolerance) == smallest
    assert compression.select_smallest(table.iloc[[0, 3]], 0.5) == "whole"
    assert compression.select_smallest(table.assign(selection=np.nan), 1.0) == "whole"


def test_predictions_equal_those_of_pruned_models(vilt, encoded):
    model = vilt[0]
    removals = [([], []), ([(0, 0), (2, 1)], []), ([], [1, 3]), ([(0, 0)], [2])]
    predicted = compression.predict_without(model, encoded, removals, batch_size=5)
    for numbers, removal in zip(predicted.T, removals, strict=True):
        expected = predict(prune_model(model, *removal), encoded, 5)["prediction"]
        assert [model.config.id2label[number] for number in numbers] == expected.tolist()
    some = compression.predict_without(model, encoded, removals, batch_size=2, rows=[7, 2, 4])
    np.testing.assert_array_equal(some, predicted[[7, 2, 4]])
    assert len(np.unique(predicted, axis=1).T) > 1  # else this would compare nothing


@pytest.mark.slow
def test_importance_is_measured_once_and_on_training_questions(study, finetuned):
    (model, processor, data), names = finetuned, ("losses", "gradients", "attention")

    def measure():
        tables = compression.measure_importance_on_train(study, model, processor, data["train"])
        return tables, [(study.run_dir / f"spare_{n}/made.json").stat().st_mtime_ns for n in names]

    tables, stamps = measure()
    asked = {*data["train"]["question_id"]} - {*data["validation"]["question_id"]}
    for table in tables[:3]:
        assert len(table.questions) == 28
        assert set(table.questions["question_id"]) <= asked
    losses, gradients, attention = tables[:3]
    assert tables[3].shape == (4, 4)
    assert losses.head_loss.shape == gradients.importance.shape == (28, 4, 4)
    np.testing.assert_allclose(attention.split.sum(-1), np.ones((28, 4, 4, 3)), atol=1e-5)
    assert measure()[1] == stamps


@pytest.mark.slow
def test_finetuning_after_pruning_goes_on_after_a_kill(study, finetuned, monkeypatch):
    """The cut stays, weights move, only the selection questions are asked, nothing is repeated."""
    (model, _, data), removal = finetuned, ([(0, 1), (1, 2)], [3])
    asked, evaluate, steps = [], finetune.RasterTrainer.evaluate, []

    def watch(trainer, *args, **more):
        asked.append(len(trainer.eval_dataset))
        steps.append(trainer.state.global_step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return evaluate(trainer, *args, **more)

    def run():
        short = replace(study, batch_size=16, patience=99)
        return compression.prune_and_finetune(short, "heads", removal, data, range(10))

    monkeypatch.setattr(finetune.RasterTrainer, "evaluate", watch)
    with pytest.raises(KeyboardInterrupt):
        run()
    folder, checkpoint = run(), steps[2]
    assert steps[4] > checkpoint > 0  # it went on after its last checkpoint
    assert set(asked) == {10}
    assert folder == study.run_dir / "light_heads"
    tuned, _ = load_vilt(folder)
    assert name_original(tuned) == [(0, [0, 2, 3]), (1, [0, 1, 3]), (2, [0, 1, 2, 3])]
    cut = prune_model(model, *removal)
    pairs = zip(tuned.parameters(), cut.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) > 1e-4
    n_steps = len(steps)
    run()
    assert len(steps) == n_steps


@pytest.mark.slow
def test_the_selected_model_is_saved_and_replaced(study, finetuned):
    model, processor, _ = finetuned
    smaller = prune_model(model, [(0, 0)])

    def save(model):
        return compression.save_selected(study, model, processor, "one head cut")

    folder = save(smaller)
    for a, b in zip(load_vilt(folder)[0].parameters(), smaller.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    stamp = (folder / "made.json").stat().st_mtime_ns
    save(smaller)
    assert (folder / "made.json").stat().st_mtime_ns == stamp
    moved = copy.deepcopy(smaller)
    with torch.no_grad():
        moved.classifier[3].bias += 1
    save(moved)
    torch.testing.assert_close(load_vilt(folder)[0].classifier[3].bias, moved.classifier[3].bias)
