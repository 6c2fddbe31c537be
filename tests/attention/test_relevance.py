"""helpers/attention/relevance.py against hand-worked layers, finite differences and slow loops."""

import copy

import numpy as np
import pytest
import torch
from noise import GRIDS, LENGTHS, make_batch
from small import ANSWERS

from helpers.attention.image_share import (
    QUERY_GROUPS,
    attention_maps,
    attention_measures,
    prepare_batch,
    rollout,
)
from helpers.attention.relevance import (
    differentiate,
    explain,
    patch_maps,
    propagate_relevance,
    relevance_measures,
)
from helpers.attention.word_classes import classify_pieces
from helpers.model.forward import forward_raster, trace


@pytest.fixture(scope="module")
def explained(model, batch):
    return explain(model, batch)


def split_by_hand(weights, groups):
    """Mean over a group's queries of the weight on a group's keys: (layer, head, 3, 5)."""
    queries = [weights[:, :, groups[name]] for name in QUERY_GROUPS]
    means = [[rows[..., part].sum(-1).mean(-1) for part in groups.values()] for rows in queries]
    return torch.stack([torch.stack(keys, -1) for keys in means], 2)


def test_relevance_of_two_layers_by_hand():
    attention = torch.tensor([[[[0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.5, 0.5]]],
                              [[[0.2, 0.8], [0.6, 0.4]], [[0.4, 0.6], [1.0, 0.0]]]])  # fmt: skip
    gradient = torch.tensor([[[[2.0, -1.0], [1.0, 1.0]], [[-3.0, 5.0], [2.0, 0.0]]],
                             [[[5.0, 0.5], [-1.0, 1.0]], [[0.0, 1.0], [0.2, 9.0]]]])  # fmt: skip
    # first layer: heads (gA)+ = [[1, 0], [0, 1]] and [[0, 0], [1, 0]],
    # mean [[.5, 0], [.5, .5]]; R = I + mean
    # second layer: [[1, .4], [0, .4]] and [[0, .6], [.2, 0]],
    # mean [[.5, .5], [.1, .2]]; R = R + mean R
    first = torch.tensor([[1.5, 0.0], [0.5, 1.5]])
    owed = [[0.5 * 1.5 + 0.5 * 0.5, 0.5 * 1.5], [0.1 * 1.5 + 0.2 * 0.5, 0.2 * 1.5]]
    expected = torch.stack([first, first + torch.tensor(owed)])
    torch.testing.assert_close(propagate_relevance(attention, gradient), expected)


@torch.no_grad()
def nudge(model, batch, layer, place, step):
    """Logits when one attention weight of one layer, after the softmax, is larger by `step`."""

    def add(_, pattern):
        pattern = pattern.clone()
        pattern[place] += step
        return pattern

    with trace(model, edit={"pattern": add}, layers=[layer]):
        return forward_raster(model, batch).logits


class TestGradients:
    def test_against_finite_differences(self, model):
        """Add a little to one attention weight after the softmax: how does the logit change?"""
        exact, step, rng = copy.deepcopy(model).double(), 1e-4, np.random.default_rng(0)
        lengths, slopes = [5, 7], []
        batch = make_batch([(4, 4), (4, 5)], lengths)
        batch["pixel_values"] = batch["pixel_values"].double()
        worst = [int(row.argmin()) for row in forward_raster(exact, batch).logits]
        explained = explain(exact, batch)[0], explain(exact, batch, worst)[1]
        for question, explanation in enumerate(explained):
            n, answer = len(explanation.maps.tokens), ANSWERS.index(explanation.answer)
            for _ in range(8):
                layer, head = rng.integers(4, size=2)
                query, key = rng.integers(n, size=2)
                padding = max(lengths) - lengths[question]
                tokens = [x if x < lengths[question] else x + padding for x in (query, key)]
                place = (question, head, *tokens)
                up, down = (nudge(exact, batch, layer, place, by) for by in (step, -step))
                slopes.append(float((up - down)[question, answer]) / (2 * step))
                found = float(explanation.gradients[layer, head, query, key])
                assert found == pytest.approx(slopes[-1], rel=1e-4, abs=1e-8)
        assert np.sum(np.abs(slopes) > 1e-4) > 8  # most could tell a wrong gradient

    def test_what_cannot_reach_the_answer_has_none(self, explained):
        for explanation in explained:
            assert explanation.gradients[-1, :, 1:].abs().max() == 0  # the pooler reads [CLS] alone
            assert explanation.gradients[-1, :, 0].abs().max() > 0

    def test_the_answer_is_the_models_or_the_one_asked_for(self, explained, model, batch):
        with torch.no_grad():
            best = model(**batch).logits.argmax(1).tolist()
        for found, chosen in ((explained, best), (explain(model, batch, [1, 2] * 3), [1, 2] * 3)):
            assert [each.answer for each in found] == [ANSWERS[number] for number in chosen]

    def test_padding_carries_nothing(self, model, batch):
        prepared = prepare_batch(model, batch)
        valid = prepared.groups.any(1)
        inside = (valid[:, None, :, None] & valid[:, None, None, :]).expand(-1, 4, -1, -1)
        for attention, gradient in zip(*differentiate(model, prepared)[:2], strict=True):
            assert (attention * gradient)[~inside].abs().max() == 0


class TestExplanations:
    def test_methods(self, explained, model, batch):
        for explanation, maps in zip(explained, attention_maps(model, batch), strict=True):
            assert torch.equal(explanation.weights("attention"), maps.attention)
        product = explained[1].gradients * explained[1].maps.attention
        assert product.min() < 0
        expected = torch.where(product > 0, product, 0)
        torch.testing.assert_close(explained[1].weights("gradient-weighted"), expected)
        with pytest.raises(ValueError, match="raw"):
            explained[0].weights("raw")

    def test_value_norms_are_those_of_the_measures(self, explained, model, batch):
        measured = attention_measures(model, batch)["value_norm"]
        for explanation, found in zip(explained, measured, strict=True):
            mean = split_by_hand(explanation.weights("value-weighted"), explanation.maps.groups)
            torch.testing.assert_close(mean, found, rtol=1e-4, atol=1e-6)

    def test_sinks_are_found_by_word_in_full_maps(self, explained, model, batch):
        """Attention on special tokens, function words and punctuation, found from the pieces."""
        measures = attention_measures(model, batch)
        measured = zip(explained, measures["sink"], measures["n_sinks"].tolist(), strict=True)
        for explanation, found, n_sinks in measured:
            maps = explanation.maps
            special, patches = ("[CLS]", "[SEP]", "[IMG]"), maps.groups["patches"]
            named = dict.fromkeys(range(len(maps.tokens)), "noun")
            pieces = maps.tokens[maps.groups["words"]]
            named |= dict(enumerate(classify_pieces(pieces), start=maps.groups["words"].start))
            idle = [i for i, name in named.items() if name in ("function word", "punctuation")]
            idle += [i for i, token in enumerate(maps.tokens) if token in special]
            assert len(idle) == n_sinks
            kept = torch.tensor([i not in idle for i in range(len(maps.tokens))])
            norms = explanation.value_norms  # (layer, head, key)
            small = (1 - norms / norms[..., kept].mean(-1, keepdim=True)).clamp_min(0)
            for query, rows in enumerate((slice(0, 1), maps.groups["words"], patches)):
                mean = maps.attention[:, :, rows].mean(2)
                expected = torch.stack([mean, mean * small], -1)[:, :, idle].sum(2)
                close = {"rtol": 1e-4, "atol": 1e-6, "equal_nan": True}
                torch.testing.assert_close(found[:, :, query], expected, **close)

    @torch.no_grad()
    def test_value_weights_by_the_definition(self, explained, model, batch):
        """|a (W_O^h (W_V^h LN(x) + b_V^h))|, a weight at a time, from the normed input."""
        normed, question = [], 3
        handles = [
            layer.layernorm_before.register_forward_hook(lambda *made: normed.append(made[2]))
            for layer in model.vilt.encoder.layer
        ]
        forward_raster(model, batch)
        for handle in handles:
            handle.remove()
        maps, weights = explained[question].maps, explained[question].weights("value-weighted")
        longest, rng = batch["input_ids"].shape[1], np.random.default_rng(1)
        for layer, head in np.ndindex(4, 4):
            attend = model.vilt.encoder.layer[layer].attention
            own, value = slice(16 * head, 16 * (head + 1)), attend.attention.value
            project = attend.output.dense.weight[:, own]
            for query, key in rng.integers(len(maps.tokens), size=(6, 2)):
                token = key if key < LENGTHS[question] else key + longest - LENGTHS[question]
                read = value.weight[own] @ normed[layer][question, token] + value.bias[own]
                norm = (maps.attention[layer, head, query, key] * (project @ read)).norm().item()
                found = weights[layer, head, query, key].item()
                assert found == pytest.approx(norm, rel=1e-4, abs=1e-8)

    def test_maps_over_the_patches(self, explained):
        for explanation, grid in zip(explained, GRIDS, strict=True):
            patches, full = explanation.maps.groups["patches"], explanation.maps.attention
            attention = full[:, :, 0, patches]
            owed = propagate_relevance(full, explanation.gradients)[-1, 0, patches]
            handed = attention * explanation.value_norms[:, :, patches]
            expected = {
                "raw, last layer": attention[3].mean(0),
                "raw, all layers": attention.mean((0, 1)),
                "value-weighted": handed.mean((0, 1)),
                "rollout": rollout(full)[-1, 0, patches],
                "relevance": owed,
            }
            maps = patch_maps(explanation)
            assert list(maps) == list(expected)
            for name, weights in expected.items():
                np.testing.assert_allclose(maps[name], weights.reshape(grid), rtol=1e-5)

    def test_frozen_models_are_explained_alike(self, explained, model, batch):
        measured, frozen = relevance_measures(model, batch), copy.deepcopy(model)
        frozen.requires_grad_(False)
        with torch.no_grad():
            for explanation, expected in zip(explain(frozen, batch), explained, strict=True):
                torch.testing.assert_close(explanation.gradients, expected.gradients)
            for name, found in relevance_measures(frozen, batch).items():
                torch.testing.assert_close(found, measured[name])
        assert not any(parameter.requires_grad for parameter in frozen.parameters())


class TestMeasures:
    def test_the_row_alone_equals_the_full_product(self, explained, model, batch):
        found = relevance_measures(model, batch)["relevance"]
        for explanation, shares in zip(explained, found, strict=True):
            row = explanation.weights("relevance")[-1, 0].clone()
            row[0] -= 1
            owed = torch.stack([row[part].sum() for part in explanation.maps.groups.values()])
            torch.testing.assert_close(shares, owed / row.sum(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.sum(1), torch.ones(6))

    def test_a_question_without_words(self, model):
        found = relevance_measures(model, make_batch([(4, 4), (4, 6)], [2, 5]))
        assert found["relevance"][0, 1] == 0
        assert found["relevance"].isfinite().all()

    def test_an_answer_that_owes_nothing_is_nan(self, model, batch):
        deaf = copy.deepcopy(model)
        for layer in deaf.vilt.encoder.layer:
            torch.nn.init.zeros_(layer.attention.output.dense.weight)
        found = relevance_measures(deaf, batch)
        assert found["relevance"].isnan().all()
