"""Removal against models edited by hand, and gradient importance against finite differences."""

import copy
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from small import ANSWERS, encode_noise, scale_copy
from torch.nn.functional import binary_cross_entropy_with_logits

from helpers.attention.extract import extract_attention, read_attention
from helpers.data import prepare
from helpers.data.vqa import vqa_accuracy
from helpers.heads import effects, removal
from helpers.model.finetune import predict
from helpers.model.forward import forward_raster


@torch.no_grad()
def logits_of(model, encoded, batch_size=6):
    """Logits of each question, in the order of the data."""
    logits = torch.zeros(len(encoded), len(ANSWERS))
    for rows, batch in encoded.batches(batch_size):
        logits[rows] = forward_raster(model, batch).logits
    return logits


@pytest.mark.parametrize("heads", [[(0, 0)], [(3, 3)], [(1, 2), (1, 0), (2, 1)]])
def test_ablation_equals_an_edited_model(vilt, encoded, heads):
    model = vilt[0]
    intact = logits_of(model, encoded)
    with removal.ablate_heads(model, heads):
        ablated = logits_of(model, encoded)
    expected = logits_of(scale_copy(model, heads), encoded)
    torch.testing.assert_close(ablated, expected, atol=1e-5, rtol=1e-4)
    assert (ablated - intact).abs().max() > 1e-3
    torch.testing.assert_close(logits_of(model, encoded), intact)  # the hooks have left


@torch.no_grad()
def loss_of(model, batch):
    """Binary cross-entropy of each question, summed over answers."""
    logits = forward_raster(model, batch).logits
    return binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none").sum(1)


@torch.no_grad()
def test_mean_z_equals_that_of_single_questions(vilt, encoded):
    model = copy.deepcopy(vilt[0])
    layer_zs = [[] for _ in range(4)]
    for zs, layer in zip(layer_zs, model.vilt.encoder.layer, strict=True):
        keep_z = lambda _, args, zs=zs: zs.append(args[0][0])  # noqa: E731
        layer.attention.output.dense.register_forward_pre_hook(keep_z)
    logits_of(model, encoded, batch_size=1)  # alone, a question has no padding
    layer_zs[-1] = [z[:1] for z in layer_zs[-1]]  # of the last layer only [CLS] is read
    expected = torch.stack([torch.cat(zs).mean(0).reshape(4, 16) for zs in layer_zs])
    torch.testing.assert_close(removal.mean_z(vilt[0], encoded, 5), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("heads", "culprit"), [([(4, 0)], "L4H0"), ([(0, 1), (0, 4)], "L0H4"), ([(0, -1)], "L0H-1")]
)
def test_heads_that_do_not_exist_are_refused(vilt, heads, culprit):
    with pytest.raises(ValueError, match=culprit), removal.ablate_heads(vilt[0], heads):
        pass


@pytest.fixture(scope="module")
def measured(vilt, encoded, tmp_path_factory):
    """A model with different answers, its mean z, its removals, and its logits."""
    model = copy.deepcopy(vilt[0])
    with torch.no_grad():
        model.classifier[3].bias -= logits_of(model, encoded).mean(0)
    assert predict(model, encoded)["prediction"].nunique() > 2
    means, folder = removal.mean_z(model, encoded), tmp_path_factory.mktemp("removals")
    measure = partial(removal.removal_measures, means=means)
    extract_attention(model, encoded, folder, 6, 6, measure=measure)
    return model, means, read_attention(folder), logits_of(model, encoded, batch_size=1)


def compare_with_edited(measured, encoded, mode, cell, edited):
    """Answers, probabilities and points lost against those of a model edited by hand."""
    model, _, table, intact = measured
    logits = logits_of(edited, encoded)
    probability = logits.sigmoid().gather(1, intact.argmax(1, keepdim=True))[:, 0]
    measured_probability = getattr(table, f"{mode}_probability")[:, *cell]
    np.testing.assert_allclose(measured_probability, probability, atol=1e-5)
    assert getattr(table, f"{mode}_answer")[:, *cell].tolist() == logits.argmax(1).tolist()
    answers, labels = [list(ten) for ten in encoded.questions["answers"]], model.config.id2label

    def score(logits):
        numbers = zip(logits.argmax(1).tolist(), answers, strict=True)
        return np.array([vqa_accuracy(labels[number], ten) for number, ten in numbers])

    lost = table.points_lost(f"{mode}_answer", encoded, labels)[:, *cell]
    np.testing.assert_allclose(lost, 100 * (score(intact) - score(logits)))
    return lost


@pytest.mark.parametrize("mode", ["zero_head", "mean_head"])
def test_removed_heads_equal_edited_models(measured, encoded, mode):
    model, means, *_ = measured
    changed = 0
    for head in [(0, 0), (0, 3), (1, 2), (2, 1), (3, 0), (3, 3)]:
        edited = scale_copy(model, [head], means=means if mode == "mean_head" else None)
        changed += (compare_with_edited(measured, encoded, mode, head, edited) != 0).any()
    assert changed  # else this would compare nothing


@pytest.mark.parametrize("layer", range(4))
def test_removed_layers_equal_edited_models(measured, encoded, layer):
    silent = scale_copy(measured[0], [(layer, head) for head in range(4)])
    shorter = copy.deepcopy(measured[0])
    del shorter.vilt.encoder.layer[layer]
    compare_with_edited(measured, encoded, "zero_attention", (layer,), silent)
    compare_with_edited(measured, encoded, "skip_layer", (layer,), shorter)


def test_effects_by_hand():
    lost = np.zeros((4, 3, 2))
    lost[:, 2, 0] = [100, 60, 0, 0]
    families = ["what", "what", "why", "why"]
    table = effects.removal_effects(lost, families, [1, 1, 2, 3], n_resamples=50)
    assert len(table) == 3 * 6
    drops = table.set_index(["name", "family"])["drop"]
    assert drops.loc["L0H1"].tolist() == [0, 0, 0]
    assert drops.loc["L2H0"].to_dict() == pytest.approx({"all": 40, "what": 80, "why": 0})
    row = table.query("name == 'L2H0' and family == 'all'").iloc[0]
    assert row[["layer", "head", "n", "n_images"]].tolist() == [2, 0, 4, 3]
    assert -100 <= row["low"] < 0 < 80 < row["high"] <= 100  # three images say little
    what = table.query("name == 'L2H0' and family == 'what'").iloc[0]
    assert np.isnan(what["low"])  # one image
    assert not table[["told", "significant"]].any(axis=None)  # four questions in all


def test_only_a_planted_loss_is_significant():
    """Layer 0 costs `why` half of its answers; layer 1 swaps correct and wrong ones evenly."""
    rng = np.random.default_rng(0)
    families, lost = np.repeat(["what", "why"], 100), np.zeros((200, 2))
    lost[100:, 0] = 100 * (rng.random(100) < 0.5)
    lost[:16, 1] = np.repeat([100, -100], 8)
    table = effects.removal_effects(lost, families, np.arange(200) // 2)
    assert "name" not in table
    significant = table.loc[table["significant"], ["layer", "family"]]
    assert set(significant.itertuples(index=False, name=None)) == {(0, "all"), (0, "why")}
    tested = table.dropna(subset=["p"])
    assert (tested["p_corrected"] >= tested["p"]).all()


FAMILIES = np.array(["what", "why", "who"] * 8)
HALF = np.repeat([True, False], 12)


def lose(**points):
    """Points lost by family, heads L0H0 and L0H1: the same for each of its questions."""
    lost = np.zeros((24, 1, 2))
    for family, of_heads in points.items():
        lost[family == FAMILIES, 0] = of_heads
    return lost


def test_families_are_told_in_both_halves():
    families, images = np.repeat(["what", "why"], [40, 20]), np.arange(60)
    assert effects.told_families(families, images, images % 2 == 0) == ["what", "why"]
    assert effects.told_families(families, images, images % 4 == 0) == ["what"]
    assert effects.told_families(families, images // 10, images // 10 % 2 == 0) == []


def test_a_specialist_costs_others_little_and_is_measured_on_questions_that_did_not_choose_it():
    lost, names = lose(what=(60, 20), why=(6, 4), who=(0, 4.9)), ["what", "why", "who"]
    lost[~HALF] = lose(what=(1, 8), why=(7, 50))[~HALF]
    lost[-3, 0, 1] = 12  # a `what` question of the other half: 12, 8, 8, 8
    values = effects.specialist_loss(lost, FAMILIES, names, HALF)
    assert values.shape == (12,)
    assert values.mean() == pytest.approx(9)
    nobody = effects.specialist_loss(lose(what=(9, 9), why=(9, 9)), FAMILIES, names, HALF)
    assert not nobody.any()


def test_the_costliest_heads_hold_their_share_in_other_questions():
    lost = np.zeros((4, 2, 2))
    lost[:2, 0, 1] = 50  # chosen
    lost[2:] = [[[10, 60], [20, 10]], [[0, 100], [0, 0]]]
    values = effects.carried_by_few(lost, np.array([True, True, False, False]))
    assert values.mean() == pytest.approx(80)  # 160 of 200
    assert np.isnan(effects.carried_by_few(0 * lost, np.array([True, True, False, False]))).all()


def test_heads_that_a_family_needs_are_counted_against_the_next():
    lost = lose(what=(9, 9), why=(6, 0), who=(0, 0))
    lost[~HALF] = lose(what=(9, 9), why=(0, 6), who=(6, 6))[~HALF]
    families = np.where(FAMILIES == "what", "how many", FAMILIES)
    lead = effects.count_needed(lost, families, ["how many", "why", "who"], HALF)
    assert lead.tolist() == [1, 0]  # the next is `why`, as chosen


def test_needed_heads_are_counted_over_models_with_those_undecided():
    drops = {"what": [9, 6, 1], "why": [4, 0, 0], "all": [9, 9, 9]}
    first = pd.DataFrame(drops).melt(var_name="family", value_name="drop")
    first = first.assign(low=first["drop"] - 2, high=first["drop"] + 2, told=True, n=20)
    second = first.assign(drop=first["drop"] - 3)
    table = effects.needed_heads([first, second])
    assert table["family"].tolist() == ["what", "why"]
    expected = {"heads": 1.5, "fewest": 1, "most": 2, "undecided": 1, "n": 20}  # 6 in [4, 8]
    assert table.iloc[0, 1:].to_dict() == expected
    few = effects.needed_heads([first.assign(told=False)])
    assert few.empty


def test_a_lead_of_heads_is_a_mean_over_models():
    leads = [np.array([1.0, 0, 1, 0]), np.array([1.0, 1, 1, 1])]
    over = effects.mean_lead(leads, [1, 1, 2])
    assert (over.estimate, over.n, over.n_images, over.n_models) == (3, 3, 2, 2)
    assert over.by_model.tolist() == [2, 4]
    alone = effects.mean_lead([np.ones(16)], [1, 1, 2])
    assert alone.low < alone.estimate == 16  # all heads alike: still no interval without width


def test_ranks_of_heads_are_a_mean_over_models():
    cost = np.arange(4.0).reshape(1, 2, 2)
    swapped = np.array([[0.0, 1], [3, 2]])
    over = effects.rank_over_models([swapped, swapped - 9], [cost, cost], [5])
    assert over.estimate == pytest.approx(0.8)  # one swap of four
    assert over.by_model.tolist() == pytest.approx([0.8, 0.8])
    flat = effects.rank_over_models([swapped, np.ones((2, 2))], [cost, cost], [5])
    assert np.isnan(flat.estimate)


@pytest.mark.slow
def test_a_study_removes_heads_once_on_the_questions_drawn_and_goes_on_after_a_kill(
    study, finetuned, monkeypatch
):
    model, processor, data = finetuned
    calls, measure, validation = [], removal.removal_measures, data["validation"]

    def count_calls(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*args)

    def run():
        return removal.measure_removals(study, model, processor, validation)

    monkeypatch.setattr(removal, "removal_measures", count_calls)
    with pytest.raises(KeyboardInterrupt):
        run()
    removals, gradients = run()  # of three shards (two batches, two, one) the first stands
    assert len(calls) == 3 + 3
    run()
    assert len(calls) == 6
    asked, known = removals.questions["question_id"], validation["question_id"][:]
    assert len(set(asked)) == len(asked) == 28 < len(known)
    assert gradients.questions["question_id"].equals(asked)
    drawn = validation.select([known.index(number) for number in asked])
    encoded = prepare.encode(study, drawn, processor)
    alone = measure(model, encoded.collate([encoded[3]]), removal.mean_z(model, encoded))
    for name in ("mean_head_probability", "skip_layer_probability"):
        np.testing.assert_allclose(getattr(removals, name)[3], alone[name][0], atol=1e-4)


@pytest.fixture(scope="module")
def labelled(vilt):
    return encode_noise(vilt[1], answers=ANSWERS)


def test_loss_increases_equal_those_of_edited_models(vilt, labelled):
    model, batch = vilt[0], labelled.collate([labelled[row] for row in (0, 5, 6, 11)])
    increases, intact = removal.loss_increases(model, batch), loss_of(model, batch)
    for layer, head in [(0, 0), (1, 3), (3, 2)]:
        expected = loss_of(scale_copy(model, [(layer, head)]), batch) - intact
        increase = increases["head_loss"][:, layer, head]
        torch.testing.assert_close(increase, expected, atol=1e-4, rtol=1e-3)
    for layer in range(4):
        shorter = copy.deepcopy(model)
        del shorter.vilt.encoder.layer[layer]
        increase, expected = increases["layer_loss"][:, layer], loss_of(shorter, batch) - intact
        torch.testing.assert_close(increase, expected, atol=1e-4, rtol=1e-3)


def test_importance_is_the_slope_of_the_loss(vilt, labelled):
    """Against central differences of the loss in the head's size, in float64."""
    model, step = copy.deepcopy(vilt[0]).double(), 1e-4

    def collate(rows):
        batch = labelled.collate([labelled[row] for row in rows])
        return batch | {name: batch[name].double() for name in ("pixel_values", "labels")}

    rows = [7, 2]
    measures = removal.importance_measures(model, collate(rows))
    assert measures["importance"].shape == (2, 4, 4)
    for number, batch in enumerate(collate([row]) for row in rows):
        logits = forward_raster(model, batch).logits[0].detach()
        torch.testing.assert_close(measures["logits"][number], logits)
        for layer, head in [(0, 0), (1, 3), (3, 2)]:
            edited = (scale_copy(model, [(layer, head)], 1 + side) for side in (step, -step))
            up, down = (loss_of(copied, batch).item() for copied in edited)
            slope = pytest.approx(abs(up - down) / (2 * step), rel=1e-3, abs=1e-7)
            assert measures["importance"][number, layer, head].item() == slope


def test_layers_are_normalised_by_hand():
    importance = effects.normalise_by_layer(np.array([[3, 4], [0, 0], [0, 2]]))
    np.testing.assert_allclose(importance, [[0.6, 0.8], [np.nan, np.nan], [0, 1]])


def test_measures_are_ranked_by_hand():
    up = np.array([[1.0, 2, 3], [4, 5, 6]])
    mixed = np.array([[3.0, 2, 1], [6, 5, 4]])  # falls within layers, rises from one to the next
    table = effects.rank_measures({"up": up, "mixed": mixed, "flat": np.ones((2, 3))}, 50)
    correlation = table.set_index(["over", "first", "second"])["correlation"]
    # Spearman by hand: ranks 1..6 against 3 2 1 6 5 4: 1 - 6 * 16 / (6 * 35)
    assert correlation["all heads", "up", "mixed"] == pytest.approx(1 - 96 / 210)
    assert correlation["within layers", "up", "mixed"] == pytest.approx(-1)
    assert np.isnan(correlation["all heads", "up", "flat"])
    assert table["n"].tolist() == [6] * 6
