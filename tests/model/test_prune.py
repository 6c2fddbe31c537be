"""Cutting heads and layers: against silencing, against wrong choices, and saved, loaded and trained again."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small import train_small

from helpers.attention.extract import extract_attention, read_attention
from helpers.attention.measures import attention_split
from helpers.data import prepare
from helpers.heads import compression as lighten
from helpers.heads.removal import ablate_heads, mean_z
from helpers.model import finetune, prune
from helpers.model.trace import trace
from helpers.model.vilt import forward_raster, fused_attention, load_vilt, predict
from helpers.stats.tests import bootstrap_mean

ROOT = Path(__file__).parents[2]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@torch.no_grad()
def logits_of(model, encoded):
    return torch.cat([forward_raster(model, batch).logits for _, batch in encoded.batches(5)])


# ------------------------------------------------------------------------------------------------------ cutting


@pytest.mark.parametrize(
    ("heads", "layers"),
    [
        ([(0, 0)], []),
        ([(3, 3), (3, 0), (3, 1)], []),
        ([(1, 2), (0, 1)], [3]),
        ([], [0]),
        ([], [1, 3, 2]),
        ([[2, 0], [0, 1]], []),  # as JSON keeps them
        ([], []),
    ],
)
def test_cutting_equals_silencing(vilt, encoded, heads, layers):
    model = vilt[0]
    lighter = prune.prune_model(model, heads, layers)
    with ablate_heads(model, heads), trace(model, skip=layers):
        silenced = logits_of(model, encoded)
    torch.testing.assert_close(logits_of(lighter, encoded), silenced, **CLOSE)
    if heads or layers:
        assert (silenced - logits_of(model, encoded)).abs().max() > 1e-3
    with fused_attention(lighter):
        torch.testing.assert_close(logits_of(lighter, encoded), silenced, **CLOSE)


def test_projections_are_smaller_by_whole_heads(vilt):
    model = vilt[0]  # hidden size 64, four heads of 16
    lighter = prune.prune_model(model, [(1, 0), (1, 2)], [2])
    assert len(lighter.vilt.encoder.layer) == 3
    before, after = (each.vilt.encoder.layer[1].attention for each in (model, lighter))
    rows = [*range(16, 32), *range(48, 64)]
    for part in ("query", "key", "value"):
        assert tuple(getattr(after.attention, part).weight.shape) == (32, 64)
        torch.testing.assert_close(
            getattr(after.attention, part).weight, getattr(before.attention, part).weight[rows]
        )
        torch.testing.assert_close(
            getattr(after.attention, part).bias, getattr(before.attention, part).bias[rows]
        )
    torch.testing.assert_close(after.output.dense.weight, before.output.dense.weight[:, rows])
    torch.testing.assert_close(after.output.dense.bias, before.output.dense.bias)
    head = 3 * (16 * 64 + 16) + 64 * 16
    layer = sum(parameter.numel() for parameter in model.vilt.encoder.layer[2].parameters())
    assert prune.count_parameters(model) - prune.count_parameters(lighter) == 2 * head + layer


def test_the_model_itself_and_the_random_state_stay(vilt, encoded):
    model, before = vilt[0], {name: weight.clone() for name, weight in vilt[0].state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    lighter = prune.prune_model(model, [(0, 0)], [1])
    torch.testing.assert_close(torch.rand(3), expected)
    with torch.no_grad():
        for parameter in lighter.parameters():
            parameter.zero_()  # no weight is shared with the model
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name])
    assert not hasattr(model.config, "kept_heads")
    assert model.config.num_hidden_layers == 4
    assert lighter.tokenizer is model.tokenizer


@pytest.mark.parametrize(("heads", "layers", "says"), [
    ([(0, 4)], [], r"L0H4 cannot be removed: this model has \[4, 4, 4, 4\] heads"),
    ([(4, 0)], [], "L4H0 cannot be removed"),
    ([(0, -1)], [], "L0H-1 cannot be removed"),
    ([], [4], "L4 cannot be removed"),
    ([], [-1], "L-1 cannot be removed"),
    ([(1, 2), (0, 0), (1, 2)], [], "L1H2 is removed twice"),
    ([], [3, 3], "L3 is removed twice"),
    ([(2, 1)], [2], "L2H1 is removed twice"),
    ([(1, 0), (1, 1), (1, 2), (1, 3)], [], "nothing is left of L1's heads: keep one, or remove the whole layer"),
    ([], [0, 1, 2, 3], "all 4 layers are removed: keep one"),
])  # fmt: skip
def test_impossible_cuts_are_refused(vilt, heads, layers, says):
    with pytest.raises(ValueError, match=says):
        prune.prune_model(vilt[0], heads, layers)


def test_a_second_cut_counts_in_the_model_as_it_is(vilt, encoded):
    model = vilt[0]
    first = prune.prune_model(model, [(2, 0), (3, 1)], [1])
    assert prune.name_original(first) == [(0, [0, 1, 2, 3]), (2, [1, 2, 3]), (3, [0, 2, 3])]
    second = prune.prune_model(first, [(1, 0), (2, 1)], [0])  # L1 is what was L2: its H0 was H1
    assert prune.name_original(second) == [(2, [2, 3]), (3, [0, 3])]
    at_once = prune.prune_model(model, [(2, 0), (2, 1), (3, 1), (3, 2)], [0, 1])
    torch.testing.assert_close(logits_of(second, encoded), logits_of(at_once, encoded))
    assert second.config.kept_heads == at_once.config.kept_heads
    with pytest.raises(ValueError, match=r"L1H3 cannot be removed: this model has \[4, 3, 3\]"):
        prune.prune_model(first, [(1, 3)])
    with ablate_heads(first, [(1, 0)]):
        silenced = logits_of(first, encoded)
    torch.testing.assert_close(silenced, logits_of(prune.prune_model(model, [(2, 0), (2, 1), (3, 1)], [1]), encoded), **CLOSE)  # fmt: skip


def test_attention_of_a_lighter_model_with_equal_layers(vilt, encoded):
    """One head less in each layer: what is left attends as before in the first, which reads the same input."""
    model = vilt[0]
    lighter = prune.prune_model(model, [(layer, 1) for layer in range(4)])
    batch = encoded.collate([encoded[0], encoded[5]])
    before, after = attention_split(model, batch), attention_split(lighter, batch)
    assert after.shape == (2, 4, 3, 3, 5)
    torch.testing.assert_close(after[:, 0], before[:, 0, [0, 2, 3]], **CLOSE)
    assert mean_z(lighter, encoded).shape == (4, 3, 16)


def test_attention_tables_of_a_model_with_fewer_layers(vilt, encoded, tmp_path):
    lighter = prune.prune_model(vilt[0], layers=[2, 3])
    table = read_attention(extract_attention(lighter, encoded, tmp_path, 5, 7))
    whole = attention_split(vilt[0], encoded.collate([encoded[4]]))[0]
    np.testing.assert_allclose(table.split[4], whole[:2], atol=1e-5)


def test_attention_of_unequal_layers_is_refused(vilt, encoded):
    lighter = prune.prune_model(vilt[0], [(0, 1)])
    with pytest.raises(ValueError, match="as many heads"):
        attention_split(lighter, encoded.collate([encoded[0]]))


# ------------------------------------------------------------------------------------------------ saving, loading

LOAD = """
import sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
from small import encode_noise
from helpers.model.vilt import forward_raster, load_vilt
model, processor = load_vilt({folder!r})
encoded = encode_noise(processor, [(64, 64), (64, 96), (96, 64)])
with torch.no_grad():
    logits = torch.cat([forward_raster(model, batch).logits for _, batch in encoded.batches(5)])
torch.save(logits, {folder!r} + "/logits.pt")
"""


def test_a_lighter_model_gives_the_same_logits_in_a_new_process(vilt, encoded, tmp_path):
    model, processor = vilt
    lighter = prune.prune_model(prune.prune_model(model, [(0, 1), (2, 3)], [3]), [(2, 0)])
    lighter.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    code = LOAD.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    torch.testing.assert_close(
        torch.load(tmp_path / "logits.pt"), logits_of(lighter, encoded), **CLOSE
    )
    again, _ = load_vilt(tmp_path)
    assert again.config.kept_heads == [[0, 2, 3], [0, 1, 2, 3], [1, 2]]
    assert again.config.kept_layers == [0, 1, 2]
    assert [each.attention.attention.num_attention_heads for each in again.vilt.encoder.layer] == [
        3,
        4,
        2,
    ]
    cut_again = prune.prune_model(again, [(2, 1)])
    assert prune.name_original(cut_again)[2] == (2, [1])


def test_a_loaded_lighter_model_takes_a_new_head(vilt, tmp_path):
    model, processor = vilt
    prune.prune_model(model, [(0, 1)]).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_vilt(tmp_path, answers=["cat", "dog", "cow"], seed=1)
    assert again.config.num_labels == again.classifier[3].out_features == 3
    assert again.config.kept_heads[0] == [0, 2, 3]


# --------------------------------------------------------------------------------------------------------- orders


def test_order_by_hand():
    importance = np.array([[0.5, 0.1, 0.9], [0.2, np.nan, 0.15]])
    assert lighten.order_heads(importance) == [(1, 1), (0, 1), (1, 2), (0, 0)]  # L0H2 and L1H0 stay
    assert lighten.order_heads(np.zeros((2, 2))) == [(0, 1), (1, 1)]
    assert lighten.order_heads(np.full((1, 2), np.nan)) == [(0, 1)]
    assert lighten.order_heads(np.ones((3, 1))) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_every_order_leaves_one_head_a_layer(n_layers, n_heads, seed):
    assume(n_heads > 1)
    orders = lighten.random_orders(n_layers, n_heads, 3, seed)
    for order in orders:
        assert len(set(order)) == len(order) == n_layers * (n_heads - 1)
        assert (
            max(sum(layer == own for own, _ in order) for layer in range(n_layers)) == n_heads - 1
        )
    assert orders == lighten.random_orders(n_layers, n_heads, 3, seed)


def test_average_over_draws_by_hand():
    """Draws of 10, 12 and 14: mean 12, standard error 2 / sqrt(3), t of two degrees of freedom 4.3027."""
    found = lighten.average_draws(np.array([[10.0, 5], [12, 5], [14, 5]]))
    half = 4.3027 * 2 / np.sqrt(3)
    np.testing.assert_allclose(found.estimate, [12, 5])
    np.testing.assert_allclose(found.low, [12 - half, 5], rtol=1e-4)
    np.testing.assert_allclose(found.high, [12 + half, 5], rtol=1e-4)
    single = lighten.average_draws(np.array([[3.0]]))
    assert single.estimate == 3
    assert np.isnan(single.low)


def test_a_lead_over_chance_has_both_sources_of_doubt():
    """Alike in all questions: the interval over draws. Alike in all draws: that over images. Both: longer."""
    images, generator = np.arange(40) // 2, np.random.default_rng(0)
    by_draw, by_question = np.array([[10.0], [12], [14]]), generator.normal(size=(1, 40))
    flat = np.zeros((3, 40))
    one = lighten.average_lead(by_draw + flat, images)
    np.testing.assert_allclose([*one[:3]], [*lighten.average_draws(np.array([10.0, 12, 14]))[:3]])
    two = lighten.average_lead(by_question + flat, images, 500, 1)
    expected = bootstrap_mean(by_question[0], images, 500, 1)
    np.testing.assert_allclose([*two[:3]], [*expected[:3]])
    both = lighten.average_lead(by_draw + by_question, images, 500, 1)
    for side in ("low", "high"):
        lengths = [abs(getattr(found, side) - found.estimate) for found in (one, two, both)]
        assert lengths[2] == pytest.approx(np.hypot(*lengths[:2]))
    assert (both.n, both.n_clusters) == (3, 20)
    single = lighten.average_lead(by_question, images)
    assert np.isnan([single.low, single.high]).all()


def test_the_lead_of_an_order_that_is_one_of_chance_is_seldom_sure():
    """An order with no lead of its own, few questions: the interval over draws alone would claim one far too often."""
    generator, images = np.random.default_rng(5), np.arange(20)
    wrong = draws_alone = 0
    for _ in range(200):
        answered = (generator.random((6, 20)) < 0.4) * 100.0  # no order differs from another
        gaps = answered[0] - answered[1:]
        found = lighten.average_lead(gaps, images, 200)
        wrong += found.low > 0 or found.high < 0
        alone = lighten.average_draws(gaps.mean(1))
        draws_alone += alone.low > 0 or alone.high < 0
    assert wrong <= 0.08 * 200
    assert draws_alone > 0.2 * 200


def test_steps_are_even_and_end_with_all():
    assert lighten.choose_steps(4) == [1, 2, 3, 4]
    assert lighten.choose_steps(132, 4) == [33, 66, 99, 132]
    assert len(lighten.choose_steps(132)) == 10
    assert lighten.choose_steps(1) == [1]
    assert lighten.choose_steps(0) == []


def test_lightest_within_the_tolerance():
    table = pd.DataFrame(
        [("whole", 100, 0.0), ("a", 90, -0.4), ("b", 60, -1.0), ("c", 40, -1.1), ("d", 60, 2.0)],
        columns=["model", "parameters", "difference"],
    )
    assert lighten.choose_lightest(table, 1.0) == "b"  # of equals the first
    assert lighten.choose_lightest(table, 0.5) == "d"
    assert lighten.choose_lightest(table, 1.2) == "c"
    assert lighten.choose_lightest(table.iloc[[0, 3]], 0.5) == "whole"
    assert lighten.choose_lightest(table.assign(difference=np.nan), 1.0) == "whole"


# ------------------------------------------------------------------------------------------------------- answers


def test_answers_without_heads_and_layers(vilt, encoded):
    model = vilt[0]
    removals = [([], []), ([(0, 0), (2, 1)], []), ([], [1, 3]), ([(0, 0)], [2])]
    given = lighten.answer_without(model, encoded, removals, batch_size=5)
    for row, removal in enumerate(removals):
        expected = predict(prune.prune_model(model, *removal), encoded, 5)["prediction"]
        assert [model.config.id2label[number] for number in given[row]] == expected.tolist()
    some = lighten.answer_without(model, encoded, removals, batch_size=2, indices=[7, 2, 4])
    np.testing.assert_array_equal(some, given[:, [7, 2, 4]])
    assert len(np.unique(given, axis=0)) > 1  # else this would compare nothing


def test_losses_equal_those_of_cut_models(vilt, encoded):
    """For each head and layer, against a model cut for good and PyTorch's own loss."""
    from small import ANSWERS, encode_noise

    model = vilt[0]
    labelled = encode_noise(vilt[1], [(64, 64), (64, 96)], ANSWERS)
    batch = labelled.collate([labelled[row] for row in range(len(labelled))])
    found = lighten.removal_losses(model, batch)

    @torch.no_grad()
    def loss_of(each):
        logits = forward_raster(
            each, {name: batch[name] for name in batch if name != "labels"}
        ).logits
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, batch["labels"], reduction="none"
        )
        return losses.sum(1)

    whole = loss_of(model)
    for layer, head in [(0, 0), (1, 3), (3, 2)]:
        rise = loss_of(prune.prune_model(model, [(layer, head)])) - whole
        torch.testing.assert_close(found["head_loss"][:, layer, head], rise, atol=1e-4, rtol=1e-3)
    for layer in range(4):
        rise = loss_of(prune.prune_model(model, layers=[layer])) - whole
        torch.testing.assert_close(found["layer_loss"][:, layer], rise, atol=1e-4, rtol=1e-3)


# --------------------------------------------------------------------------------------------- a study's own steps


@pytest.fixture(scope="module")
def study(tmp_path_factory, phantom_root):
    return train_small(
        phantom_root,
        tmp_path_factory.mktemp("runs"),
        shard_size=20,
        extract_batch_size=16,
        ablation_questions=30,
    )


def test_spare_heads_are_measured_on_training_questions(study):
    data = prepare.load_dataset(study)
    model, processor = finetune.load_finetuned(study)
    tables = lighten.measure_spare(study, model, processor, data["train"])
    losses, gradients, attention = tables
    for table in tables:
        assert len(table.questions) == 30
        assert table.questions["question_id"].isin(data["train"]["question_id"][:]).all()
    assert not losses.questions["question_id"].isin(data["validation"]["question_id"][:]).any()
    assert (
        losses.head_loss.shape
        == gradients.importance.shape
        == attention.split.shape[:3]
        == (30, 4, 4)
    )
    np.testing.assert_allclose(attention.split.sum(-1), 1, atol=1e-5)
    names = {"spare_losses", "spare_gradients", "spare_attention"}
    stamps = {name: (study.run_dir / name / "made.json").stat().st_mtime_ns for name in names}
    lighten.measure_spare(study, model, processor, data["train"])
    assert stamps == {
        name: (study.run_dir / name / "made.json").stat().st_mtime_ns for name in names
    }


def test_training_after_a_cut_goes_on_after_a_kill(study, monkeypatch):
    """The cut stays, weights move, only watched questions are asked, a killed training is not begun anew."""
    data, removal = prepare.load_dataset(study), ([(0, 1), (1, 2)], [3])
    asked, train_now, calls = [], finetune.RasterTrainer.evaluate, []

    def watch(trainer, *args, **more):
        asked.append(len(trainer.eval_dataset))
        calls.append(trainer.state.global_step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train_now(trainer, *args, **more)

    monkeypatch.setattr(finetune.RasterTrainer, "evaluate", watch)
    short = replace(study, batch_size=16, patience=99)
    with pytest.raises(KeyboardInterrupt):
        lighten.tune_lighter(short, "heads", removal, data, range(10))
    reached = calls[-2]
    folder = lighten.tune_lighter(short, "heads", removal, data, range(10))
    assert calls[4] > reached > 0  # it went on after its last checkpoint
    assert set(asked) == {10}
    assert folder == study.run_dir / "light_heads"
    tuned, _ = load_vilt(folder)
    assert prune.name_original(tuned) == [(0, [0, 2, 3]), (1, [0, 1, 3]), (2, [0, 1, 2, 3])]
    cut = prune.prune_model(finetune.load_finetuned(study)[0], *removal)
    apart = [
        (a - b).abs().max().item()
        for a, b in zip(tuned.parameters(), cut.parameters(), strict=True)
    ]
    assert max(apart) > 1e-3
    n_calls = len(calls)
    lighten.tune_lighter(short, "heads", removal, data, range(10))
    assert len(calls) == n_calls


def test_the_chosen_model_is_kept_and_replaced(study):
    model, processor = finetune.load_finetuned(study)
    lighter = prune.prune_model(model, [(0, 0)])
    folder = lighten.keep_light(study, lighter, processor, "one head cut")
    again, _ = load_vilt(folder)
    for a, b in zip(again.parameters(), lighter.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    stamp = (folder / "made.json").stat().st_mtime_ns
    lighten.keep_light(study, lighter, processor, "one head cut")
    assert (folder / "made.json").stat().st_mtime_ns == stamp
    moved = copy.deepcopy(lighter)
    with torch.no_grad():
        moved.classifier[3].bias += 1
    lighten.keep_light(study, moved, processor, "one head cut")
    torch.testing.assert_close(load_vilt(folder)[0].classifier[3].bias, moved.classifier[3].bias)
