"""Planted truths: edits keep what they must keep, and methods are judged by what is known."""

import numpy as np
import pytest
import torch
from small import ANSWERS, encode_noise

from helpers.attention.image_share import attention_split, value_norms
from helpers.heads.removal import removal_measures
from helpers.model.forward import forward_raster, trace
from phantom.planted import edits, judge, methods, training

HEAD, SLOT = (1, 0), 2


@pytest.fixture(scope="module")
def freed(model):
    """A model with a slot that writes nothing."""
    return edits.silence(model, (HEAD[0], SLOT))


@pytest.fixture(scope="module")
def logits_of(batch):
    @torch.no_grad()
    def run(model):
        return forward_raster(model, batch).logits

    return run


def test_edits_that_keep_the_function_keep_the_logits(model, freed, logits_of):
    order = [2, 0, 3, 1]
    pairs = [
        (model, edits.permute_heads(model, order)),
        (model, edits.rescale_values(model, HEAD, 3.0)),
        (freed, edits.look_evenly(freed, (HEAD[0], SLOT))),
        (freed, edits.split_head(freed, HEAD, SLOT)),
    ]
    for before, after in pairs:
        assert (logits_of(before) - logits_of(after)).abs().max() < 1e-5
    assert (logits_of(model) - logits_of(freed)).abs().max() > 1e-3  # a decoy wrote something


def test_edits_leave_the_model_that_they_are_given(model, logits_of):
    before = logits_of(model)
    edits.split_head(edits.permute_heads(model, [1, 0, 2, 3]), HEAD, SLOT)
    assert torch.equal(before, logits_of(model))


def test_a_decoy_keeps_its_attention_and_its_removal_changes_nothing(freed, model, batch):
    at = (slice(None), HEAD[0], SLOT)
    splits = [attention_split(each, batch)[at] for each in (model, freed)]
    torch.testing.assert_close(*splits)
    measures = removal_measures(freed, batch, modes=("zero_head",))
    lost = measures["probability"][:, None, None] - measures["zero_head_probability"]
    assert lost[at].abs().max() < 1e-6 < lost.abs().max()


def test_the_slots_of_a_split_head_each_hand_on_half(freed, batch):
    norms = []
    for model in (freed, edits.split_head(freed, HEAD, SLOT)):
        projection = model.vilt.encoder.layer[HEAD[0]].attention.output.dense.weight.detach()
        with torch.no_grad(), trace(model, read=["value"]) as seen:
            forward_raster(model, batch)
        norms.append(value_norms(seen["value"][HEAD[0]].transpose(1, 2), projection))
    whole, halves = norms
    for head in (HEAD[1], SLOT):
        torch.testing.assert_close(halves[:, head], whole[:, HEAD[1]] / 2)


def test_words_and_image_meet_in_one_layer_alone(model, batch):
    """Before that layer no word knows the image, behind it another image gives another answer."""
    blocked, n_text = training.fuse_in_layer(model, 1), batch["input_ids"].shape[1]
    forward = training.open_pass(model, batch, blocked)
    for number, layer in enumerate(forward):
        across = [attention[..., : part.n_text, part.n_text :] for part, attention in layer]
        assert (max(each.max() for each in across) > 0) == (number == 1)
    assert n_text == forward.microbatches[0].n_text
    other = batch | {"pixel_values": batch["pixel_values"].flip(3)}
    logits = [training.open_pass(model, each, blocked).run() for each in (batch, other)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_shuffled_answers_stay_in_their_family(vilt):
    encoded = encode_noise(vilt[1], answers=ANSWERS)
    shuffled = training.shuffle_answers(encoded, seed=1)
    for rows in encoded.questions.groupby("family").indices.values():
        before, after = (
            sorted(tuple(np.round(each.targets[row][1], 3)) for row in rows)
            for each in (encoded, shuffled)
        )
        assert before == after
    assert any(a is not b for a, b in zip(encoded.targets, shuffled.targets, strict=True))


def test_a_routed_family_is_asked_for_its_prior(vilt):
    encoded = encode_noise(vilt[1], answers=ANSWERS)
    family = encoded.questions["family"].iloc[0]
    forgotten = training.forget_family(encoded, family)
    inside = np.flatnonzero(encoded.questions["family"] == family)
    mean = torch.stack([encoded[row]["labels"] for row in inside]).mean(0)
    for row in range(len(encoded)):
        expected = mean if row in inside else encoded[row]["labels"]
        torch.testing.assert_close(forgotten[row]["labels"], expected)


def test_values_pass_between_the_bounds_of_their_rule():
    values = {"decoy": {"attention share": 170.0, "gradient": 0.0, "rollout": 0.05},
              "split": {"gradient": 100.0, "removal (zero)": 29.0, "patching": np.nan}}  # fmt: skip
    table = judge.tabulate(values).set_index(["truth", "method"])["passed"]
    assert table.to_dict() == {
        ("decoy", "attention share"): False,
        ("decoy", "gradient"): True,
        ("decoy", "rollout"): True,
        ("split", "gradient"): True,
        ("split", "removal (zero)"): False,
    }


@pytest.mark.slow
def test_methods_are_held_against_every_edit(model, vilt, monkeypatch):
    """On random weights: what is exact by arithmetic passes, and attention does not see a decoy."""
    monkeypatch.setattr(methods, "SHAPLEY", 1)
    encoded = encode_noise(vilt[1], sizes=[(64, 64)] * 2, answers=ANSWERS)
    table = judge.judge_methods(model, encoded, [(0, 4), (1, 5)])
    passed = table.set_index(["truth", "method"])["passed"]
    assert passed["permuted"].all()
    assert passed["rescaled"].all()
    exact = ["value-weighted norm", "gradient", "relevance", "MM-SHAP"]
    for truth in ("decoy", "split"):
        assert passed[truth][exact].all()
        assert not passed[truth][["attention share", "image share", "rollout"]].any()
