"""Patches that leave on the way: against patterns edited by hand, and against knockout."""

import math

import pytest
import torch

from helpers.attention.edges import knockout
from helpers.attention.image_share import pack_forward, prepare_batch
from helpers.heads.compression import Thinning, fuse, predict_thinned, run_thinned
from helpers.model.forward import forward_raster, trace


@torch.no_grad()
def thin(model, batch, *plans):
    """Logits with each plan, (plan, question, answer)."""
    found = dict(run_thinned(pack_forward(model, batch), plans))
    return torch.stack([found[number] for number in range(len(plans))])


def test_nothing_leaves_and_all_leave(model, batch):
    plans = [Thinning(layer, share) for layer in range(3) for share in (1.0, 0.0)]
    found = thin(model, batch, *plans)
    edges = [("text", "patches"), ("image", "patches")]
    for number, (layer, share, _) in enumerate(plans):
        later = range(layer + 1, 4) if share == 0 else []
        expected = knockout(model, batch, edges, later)
        torch.testing.assert_close(found[number], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 2])
def test_the_patches_that_text_looks_at_stay(model, batch, layer):
    with trace(model, read=["pattern"]) as seen:
        forward_raster(model, batch)
    groups = prepare_batch(model, batch).groups
    gone = torch.zeros(groups[:, 0].shape, dtype=torch.bool)
    for row, of_question in enumerate(groups):
        text = (of_question[0] | of_question[1]).nonzero()[:, 0]
        patches = of_question[4].nonzero()[:, 0]
        looked = seen["pattern"][layer][row].mean(0)[text].mean(0)[patches]
        stay = math.ceil(0.3 * len(patches))
        gone[row, patches[looked.argsort(descending=True)[stay:]]] = True

    def drop(number, pattern):
        left = pattern.masked_fill(gone[:, None, None], 0)
        return left / left.sum(-1, keepdim=True) if number > layer else pattern

    with trace(model, edit={"pattern": drop}):
        expected = forward_raster(model, batch).logits
    (found,) = thin(model, batch, Thinning(layer, 0.3))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_frozen_patches_are_looked_at_but_change_no_more(model, encoded, layer):
    batch = encoded.collate([encoded[3]])  # one question: the stock layers need no mask
    inputs, groups, _ = prepare_batch(model, batch)
    with trace(model, read=["layer"]) as seen:
        whole = forward_raster(model, inputs).logits
    states, patches = seen["layer"][layer], groups[0, 4]
    for later in model.vilt.encoder.layer[layer + 1 :]:
        found = later(states)
        found = found[0] if isinstance(found, tuple) else found
        states = torch.where(patches[:, None], states, found)
    expected = model.classifier(model.vilt.pooler(model.vilt.layernorm(states)))
    plans = [Thinning(layer, 0.0, "frozen"), Thinning(2, 0.0, "frozen"), Thinning(0, 1, "frozen")]
    frozen, before_last, none = thin(model, batch, *plans)
    torch.testing.assert_close(frozen, expected, atol=1e-5, rtol=1e-4)
    assert (frozen - whole).abs().max() > 1e-3
    torch.testing.assert_close(before_last, whole, atol=1e-5, rtol=1e-4)  # the last is not read
    torch.testing.assert_close(none, whole, atol=1e-5, rtol=1e-4)


def test_what_leaves_is_fused_into_the_last_that_stays():
    valid = torch.tensor([[True, True, True], [True, True, False]])
    packed = torch.tensor([[1.0], [2], [6], [3], [5]])
    weights, last = torch.tensor([0.0, 1, 3, 0, 2]), torch.tensor([0, 1, 0, 0, 1]).bool()
    fused = fuse(packed, weights, last, valid)
    assert fused.flatten().tolist() == [1, (2 + 3 * 6) / 4, 6, 3, 5]


def test_plans_differ_and_need_not_come_in_order(model, encoded):
    plans = [Thinning(2, 0.2, by) for by in ("random", "fused", "attention")] + [Thinning(0, 0.5)]
    _, batch = next(encoded.batches(6))
    logits = thin(model, batch, *plans)
    assert all(not logits[0].equal(other) for other in logits[1:])
    rows = [7, 1, 4]
    found = predict_thinned(model, encoded, plans, rows=rows)
    assert found.shape == (3, 4)
    whole = predict_thinned(model, encoded, plans[1:], batch_size=5)
    assert (whole[rows] == found[:, 1:]).all()
