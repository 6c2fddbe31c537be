"""helpers/model/forward.py: traces and the packed pass, against transformers' own outputs."""

import copy
import weakref

import pytest
import torch

import helpers.model.forward
from helpers.attention.image_share import (
    attention_maps,
    attention_split,
    prepare_batch,
    token_groups,
)
from helpers.model.forward import (
    SITES,
    PackedForward,
    forward_raster,
    fused_attention,
    run_variants,
    split_microbatches,
    trace,
)


@pytest.fixture(scope="module")
def model(vilt):
    return copy.deepcopy(vilt[0]).requires_grad_(False)


def pack(model, batch):
    inputs, groups, _ = prepare_batch(model, batch)
    return PackedForward(model, inputs, groups), groups


def count_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_what_is_read_is_what_transformers_returns(model, batch):
    with trace(model, read=SITES) as seen:
        output = forward_raster(model, batch, output_attentions=True, output_hidden_states=True)
    for layer in range(4):
        assert torch.equal(seen["pattern"][layer], output.attentions[layer])
        assert torch.equal(seen["layer"][layer], output.hidden_states[layer + 1])
        mixed = seen["pattern"][layer] @ seen["value"][layer].transpose(1, 2)
        torch.testing.assert_close(seen["z"][layer].transpose(1, 2), mixed)
    assert count_hooks(model) == 0


def test_the_packed_pass_shows_the_same_z_and_values(model, batch):
    with trace(model, read=["value", "z"]) as stock:
        logits = forward_raster(model, batch).logits
    forward, groups = pack(model, batch)
    with trace(model, read=["value", "z"]) as packed:
        torch.testing.assert_close(forward.run(), logits, rtol=1e-5, atol=1e-5)
    valid = groups.any(1)
    for layer in range(4):
        rows = forward.cls_rows if layer == 3 else slice(None)  # of the last layer [CLS] alone
        torch.testing.assert_close(packed["z"][layer], stock["z"][layer][valid][rows])
        torch.testing.assert_close(packed["value"][layer], stock["value"][layer][valid])


@pytest.mark.parametrize("layers", [None, [1], []])
def test_an_edit_acts_where_it_is_told_to(model, batch, layers):
    def silence(layer, z):
        return torch.zeros_like(z) if layer in (1, 3) else z

    edited = {1, 3} & set(range(4) if layers is None else layers)
    intact = forward_raster(model, batch).logits
    with trace(model, ["z"], {"z": silence}, layers) as seen:
        found, (forward, _) = forward_raster(model, batch).logits, pack(model, batch)
        torch.testing.assert_close(forward.run(), found, rtol=1e-5, atol=1e-5)
    assert {layer for layer, z in enumerate(seen["z"]) if z is not None and not z.any()} == edited
    assert torch.equal(found, intact) != bool(edited)


def test_a_pattern_can_be_edited(model, batch):
    """Every query sees itself alone: z is its own value."""

    def isolate(layer, pattern):
        return torch.eye(pattern.shape[-1]).expand_as(pattern)

    with trace(model, ["z", "value"], {"pattern": isolate}) as seen:
        forward_raster(model, batch)
    torch.testing.assert_close(seen["z"], seen["value"])


def test_a_variant_without_a_layer_is_one_whose_layer_adds_nothing(model, batch):
    kept = {}

    def keep(layer, hidden):
        kept[layer] = kept[0] if layer == 1 else hidden
        return kept[layer]

    with trace(model, edit={"layer": keep}):
        expected = forward_raster(model, batch).logits
    _, (_, found) = run_variants(pack(model, batch)[0], [{1: None}])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_hooks_leave_after_an_error(model, batch):
    with pytest.raises(KeyError), trace(model, SITES, {"z": lambda *_: {}["missing"]}):
        forward_raster(model, batch)
    assert count_hooks(model) == 0


def test_a_trace_that_would_show_nothing_is_refused(model, batch):
    def refuse(match, sites):
        with pytest.raises(ValueError, match=match), trace(model, sites):
            attention_split(model, batch)

    refuse("unknown site 'head'", ["head"])
    refuse("trace it at 'value' and 'z'", ["pattern"])
    with fused_attention(model):
        refuse("fused attention holds no pattern", ["pattern"])
    model.train()
    refuse("after dropout: call model.eval", ["pattern"])
    model.eval().config._attn_implementation = "sdpa"
    refuse("load it as 'eager'", ["pattern"])
    model.config._attn_implementation = "eager"


def walk(model, batch):
    """All attention by question, and the logits."""
    forward, groups = pack(model, batch)
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


@pytest.mark.parametrize("questions", [1, 2, 4, 6])
@torch.no_grad()
def test_any_microbatch_size_gives_stock_attention_and_logits(model, batch, questions, monkeypatch):
    n_tokens = 12 + 37  # of text and image, padded
    monkeypatch.setattr(helpers.model.forward, "CACHE", questions * 4 * 4 * n_tokens**2)
    assert len(pack(model, batch)[0].microbatches) == -(-6 // questions)
    seen, logits = walk(model, batch)
    for place, maps in enumerate(attention_maps(model, batch)):
        torch.testing.assert_close(seen[place], maps.attention, rtol=0, atol=2e-6)
    torch.testing.assert_close(logits, model(**batch).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_at_most_two_microbatches_are_alive(model, batch, monkeypatch):
    monkeypatch.setattr(helpers.model.forward, "CACHE", 1)
    seen = []
    for layer in pack(model, batch)[0]:
        for _, attention in layer:
            seen.append(weakref.ref(attention))
            assert sum(each() is not None for each in seen) <= 2
    assert len(seen) == 4 * 6


def test_fused_losses_and_gradients_equal_the_stock_models(vilt, batch):
    """The stock model (eager, random patch order) against ours: 1e-4, relative."""
    model, inputs = copy.deepcopy(vilt[0]), batch | {"labels": torch.arange(48.0).view(6, 8) / 48}
    stock = model(**inputs).loss
    stock.backward()
    parameters = dict(model.named_parameters())
    expected = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    model.zero_grad()
    with fused_attention(model):
        loss = forward_raster(model, inputs).loss
        loss.backward()
    torch.testing.assert_close(loss, stock, rtol=1e-4, atol=0)
    found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    assert found.keys() == expected.keys()
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in found.items():
        # a key's bias has no gradient but rounding: softmax ignores it
        allowed = 1e-4 * expected[name].norm() + 1e-7 * total
        assert (gradient - expected[name]).norm() < allowed, name


@torch.no_grad()
def test_fused_attention_keeps_dropout(vilt, batch):
    model = copy.deepcopy(vilt[0])
    for layer in model.vilt.encoder.layer:
        layer.attention.attention.dropout.p = 0.5
    with fused_attention(model):
        calm = [forward_raster(model, batch).logits for _ in range(2)]
        model.train()
        wild = [forward_raster(model, batch).logits for _ in range(2)]
    assert torch.equal(*calm)
    assert not torch.allclose(*wild, atol=1e-3)
