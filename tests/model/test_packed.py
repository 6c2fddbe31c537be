"""helpers/model/forward.py: the same numbers as the padded forward, in microbatches of any size."""

import weakref

import pytest
import torch

from helpers.attention.image_share import attention_maps, prepare_batch, token_groups
from helpers.heads.removal import ablate_heads
from helpers.model.forward import PackedForward, forward_raster, split_microbatches


def walk(model, batch, microbatch_size=None):
    """All attention by question, and the logits."""
    inputs, groups, _ = prepare_batch(model, batch)
    forward = PackedForward(model, inputs, groups, microbatch_size)
    seen = [[] for _ in groups]
    for layer in forward:
        for microbatch, attention in layer:
            for place, question in enumerate(microbatch.questions.tolist()):
                kept = microbatch.groups[place].any(0)
                seen[question].append(attention[place][:, kept][:, :, kept])
                assert not attention[place][:, :, ~kept].any()  # padding gets exactly nothing
    return [torch.stack(layers) for layers in seen], forward.logits


def test_microbatches_by_hand():
    text, image = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    groups = token_groups(text, image)  # packed: 4 + 2 tokens, then 2 + 3
    first, second = split_microbatches(groups, 4, 1)
    assert first.rows.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert second.rows.tolist() == [[6, 7, 8, 9, 10]]
    assert (first.valid, second.valid) == (None, None)
    assert second.groups[0].nonzero().tolist() == [[0, 0], [2, 1], [3, 2], [4, 3], [4, 4]]
    (both,) = split_microbatches(groups, 4, 2)
    assert both.rows.tolist() == [[0, 1, 2, 3, 4, 5, 0], [6, 7, 0, 0, 8, 9, 10]]
    assert both.valid.int().tolist() == [[1] * 6 + [0], [1, 1, 0, 0, 1, 1, 1]]
    packed = torch.arange(11.0)[:, None, None]
    part = both.gather(packed)  # (question, head, token, d)
    assert part[1, 0, :, 0].tolist() == [6, 7, 0, 0, 8, 9, 10]
    back = torch.full_like(packed, -1)
    both.scatter(back, part)
    assert torch.equal(back, packed)


@pytest.mark.parametrize("microbatch_size", [None, 1, 2, 4, 6])
@torch.no_grad()
def test_any_microbatch_size_gives_stock_attention_and_logits(model, batch, microbatch_size):
    seen, logits = walk(model, batch, microbatch_size)
    for place, maps in enumerate(attention_maps(model, batch)):
        torch.testing.assert_close(seen[place], maps.attention, rtol=0, atol=2e-6)
    torch.testing.assert_close(logits, model(**batch).logits, rtol=2e-6, atol=2e-6)


@torch.no_grad()
def test_at_most_two_microbatches_are_alive(model, batch):
    inputs, groups, _ = prepare_batch(model, batch)
    seen = []
    for layer in PackedForward(model, inputs, groups, microbatch_size=1):
        for _, attention in layer:
            seen.append(weakref.ref(attention))
            assert sum(each() is not None for each in seen) <= 2
    assert len(seen) == 4 * 6


@torch.no_grad()
def test_heads_silenced_by_hooks_stay_silent(model, batch):
    with ablate_heads(model, [(0, 1), (2, 3), (3, 0)]):
        _, logits = walk(model, batch)
        expected = forward_raster(model, batch).logits
    torch.testing.assert_close(logits, expected, rtol=2e-6, atol=2e-6)
    assert (logits - walk(model, batch)[1]).abs().max() > 1e-3


@torch.no_grad()
def test_a_body_has_no_logits(model, batch):
    assert walk(model.vilt, batch)[1] is None
