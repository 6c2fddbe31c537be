"""helpers/attention/relevance.py against hand-worked layers, finite differences and slow loops."""

import numpy as np
import pytest
import torch
from attention.test_image_share import GRIDS, LENGTHS, make_batch

from helpers.attention.image_share import (
    QUERY_GROUPS,
    attention_maps,
    attention_measures,
    prepare_batch,
    propagate_rollout,
    rollout,
)
from helpers.attention.relevance import (
    RELEVANCE,
    differentiate,
    explain,
    patch_maps,
    propagate_relevance,
    relevance_measures,
)
from helpers.model.forward import forward_raster
from helpers.model.vilt import load_vilt

ANSWERS = ["yes", "no", "red"]


@pytest.fixture(scope="module")
def model():
    return load_vilt("fresh-small", answers=ANSWERS)[0]


@pytest.fixture(scope="module")
def batch():
    return make_batch(GRIDS, LENGTHS)


@pytest.fixture(scope="module")
def explained(model, batch):
    return explain(model, batch)


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
    second = first + torch.tensor(
        [[0.5 * 1.5 + 0.5 * 0.5, 0.5 * 1.5], [0.1 * 1.5 + 0.2 * 0.5, 0.2 * 1.5]]
    )
    torch.testing.assert_close(
        propagate_relevance(attention, gradient), torch.stack([first, second])
    )


def test_rollout_ends_where_attention_rollout_does(model, batch):
    attention = attention_maps(model, batch)[1].attention
    layers = propagate_rollout(attention)
    for depth in range(1, 5):
        torch.testing.assert_close(layers[depth - 1], rollout(attention[:depth]))


class TestGradients:
    @pytest.mark.slow
    def test_against_finite_differences(self, batch):
        """Add a little to one attention weight after the softmax: how does the logit change?"""
        exact, step = load_vilt("fresh-small", answers=ANSWERS)[0].double(), 1e-4
        inputs = {
            name: value.double() if value.is_floating_point() else value
            for name, value in batch.items()
        }
        worst = [int(row.argmin()) for row in forward_raster(exact, inputs).logits]
        explained = [
            *explain(exact, inputs)[:3],
            *explain(exact, inputs, worst)[3:],
        ]  # own answers, and others
        slopes, rng = [], np.random.default_rng(0)
        for question in (0, 4):
            n, answer = (
                len(explained[question].maps.tokens),
                ANSWERS.index(explained[question].answer),
            )
            n_text, longest = LENGTHS[question], batch["input_ids"].shape[1]
            for _ in range(12):
                layer, head, query, key = (
                    rng.integers(4),
                    rng.integers(4),
                    rng.integers(n),
                    rng.integers(n),
                )
                places = [
                    place if place < n_text else place + longest - n_text for place in (query, key)
                ]
                logits = [
                    nudge(exact, inputs, layer, question, head, *places, sign * step)[
                        question, answer
                    ]
                    for sign in (1, -1)
                ]
                slopes.append(float(logits[0] - logits[1]) / (2 * step))
                found = float(explained[question].gradients[layer, head, query, key])
                assert found == pytest.approx(slopes[-1], rel=1e-4, abs=1e-8)
        assert np.sum(np.abs(slopes) > 1e-4) > 12  # most could tell a wrong gradient

    def test_what_cannot_reach_the_answer_has_none(self, explained):
        for explanation in explained:
            assert explanation.gradients[-1, :, 1:].abs().max() == 0  # the pooler reads [CLS] alone
            assert explanation.gradients[-1, :, 0].abs().max() > 0

    def test_the_logit_is_that_of_the_answer(self, explained, model, batch):
        with torch.no_grad():
            logits = model(**batch).logits
        for place, explanation in enumerate(explained):
            assert explanation.answer == ANSWERS[int(logits[place].argmax())]
            assert explanation.logit == pytest.approx(float(logits[place].max()), abs=1e-5)
        for answers in (["no", "red"] * 3, [1, 2] * 3, ["no", 2] * 3):
            for place, (explanation, row) in enumerate(
                zip(explain(model, batch, answers), logits, strict=True)
            ):
                assert explanation.answer == ["no", "red"][place % 2]
                assert explanation.logit == pytest.approx(float(row[1 + place % 2]), abs=1e-5)

    def test_padding_carries_nothing(self, model, batch):
        prepared = prepare_batch(model, batch)
        valid = prepared.groups.any(1)
        inside = (valid[:, None, :, None] & valid[:, None, None, :]).expand(-1, 4, -1, -1)
        for attention, gradient in zip(*differentiate(model, prepared, None)[:2], strict=True):
            assert (attention * gradient)[~inside].abs().max() == 0

    def test_a_patch_whose_value_cannot_reach_the_answer_has_no_relevance(self, model, batch):
        blind = LENGTHS[1] + 1 + 17  # patch 17 of the 4 x 6 of question 1
        place = batch["input_ids"].shape[1] + blind - LENGTHS[1]

        def silence(_, __, values):
            values = values.clone()
            values[1, place] = 0
            return values

        hooks = [
            layer.attention.attention.value.register_forward_hook(silence)
            for layer in model.vilt.encoder.layer
        ]
        try:
            explanation = explain(model, batch)[1]
        finally:
            for hook in hooks:
                hook.remove()
        row = explanation.weights("relevance")[-1, 0]
        # looked at, yet it hands nothing on
        assert explanation.maps.attention[:, :, 0, blind].min() > 0
        assert row[blind] == 0
        assert (np.delete(row.numpy(), blind) > 0).all()
        assert (explanation.weights("value-weighted")[..., blind] == 0).all()


def nudge(model, batch, layer, question, head, query, key, step):
    """Logits when one attention weight of one question is larger by `step`."""

    def add(_, __, probabilities):
        probabilities = probabilities.clone()
        probabilities[question, head, query, key] += step
        return probabilities

    hook = model.vilt.encoder.layer[layer].attention.attention.dropout.register_forward_hook(add)
    try:
        with torch.no_grad():
            return forward_raster(model, batch).logits
    finally:
        hook.remove()


class TestExplanations:
    def test_methods_and_their_shapes(self, explained, model, batch):
        for explanation, maps in zip(explained, attention_maps(model, batch), strict=True):
            n = len(maps.tokens)
            assert torch.equal(explanation.weights("attention"), maps.attention)
            for method in ("value-weighted", "gradient-weighted"):
                assert explanation.weights(method).shape == (4, 4, n, n)
                assert explanation.weights(method).min() >= 0
            for method in ("rollout", "relevance"):
                assert explanation.weights(method).shape == (4, n, n)
        product = explained[1].gradients * explained[1].maps.attention
        assert product.min() < 0
        expected = torch.where(product > 0, product, 0)
        torch.testing.assert_close(explained[1].weights("gradient-weighted"), expected)
        with pytest.raises(
            ValueError, match="unknown method 'raw': known are attention, value-weighted"
        ):
            explained[0].weights("raw")

    def test_value_norms_are_those_of_the_measures(self, explained, model, batch):
        measured = attention_measures(model, batch)["value_norm"]
        for place, explanation in enumerate(explained):
            weights, groups = explanation.weights("value-weighted"), explanation.maps.groups
            for query, name in enumerate(QUERY_GROUPS):
                for key, part in enumerate(groups.values()):
                    mean = weights[:, :, groups[name]][..., part].sum(-1).mean(-1)
                    torch.testing.assert_close(
                        mean, measured[place, :, :, query, key], rtol=1e-4, atol=1e-6
                    )

    def test_value_weights_by_the_definition(self, explained, model, batch):
        """|a (W_O^h (W_V^h LN(x) + b_V^h))|, a weight at a time, from the normed input."""
        normed, question = [], 3
        hooks = [
            layer.layernorm_before.register_forward_hook(
                lambda _, __, output: normed.append(output[question])
            )
            for layer in model.vilt.encoder.layer
        ]
        try:
            with torch.no_grad():
                forward_raster(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        maps, weights = explained[question].maps, explained[question].weights("value-weighted")
        longest, rng = batch["input_ids"].shape[1], np.random.default_rng(1)
        for layer, head in np.ndindex(4, 4):
            attend, own = (
                model.vilt.encoder.layer[layer].attention,
                slice(16 * head, 16 * head + 16),
            )
            value, project = attend.attention.value, attend.output.dense.weight[:, own]
            for query, key in rng.integers(len(maps.tokens), size=(6, 2)):
                token = key if key < LENGTHS[question] else key + longest - LENGTHS[question]
                handed = project @ (value.weight[own] @ normed[layer][token] + value.bias[own])
                expected = (maps.attention[layer, head, query, key] * handed).norm().item()
                assert weights[layer, head, query, key].item() == pytest.approx(
                    expected, rel=1e-4, abs=1e-8
                )

    @pytest.mark.parametrize("seed", [0, 1])
    def test_company_and_seed_do_not_matter(self, explained, model, seed):
        torch.manual_seed(seed)
        for part in ([3], [5, 1], [0, 2, 4]):
            found = explain(model, make_batch([GRIDS[i] for i in part], [LENGTHS[i] for i in part]))
            for explanation, place in zip(found, part, strict=True):
                torch.testing.assert_close(
                    explanation.gradients, explained[place].gradients, rtol=1e-3, atol=1e-5
                )
                torch.testing.assert_close(explanation.value_norms, explained[place].value_norms)
                for name, expected in patch_maps(explained[place]).items():
                    np.testing.assert_allclose(
                        patch_maps(explanation)[name], expected, rtol=1e-3, atol=1e-6
                    )

    def test_maps_over_the_patches(self, explained):
        for explanation, grid in zip(explained, GRIDS, strict=True):
            maps, patches = patch_maps(explanation), explanation.maps.groups["patches"]
            assert list(maps) == [
                "raw, last layer",
                "raw, all layers",
                "value-weighted",
                "rollout",
                "relevance",
            ]
            assert all(each.shape == grid for each in maps.values())
            attention = explanation.maps.attention[:, :, 0, patches].numpy()
            np.testing.assert_allclose(
                maps["raw, last layer"].ravel(), attention[3].mean(0), rtol=1e-5
            )
            np.testing.assert_allclose(
                maps["raw, all layers"].ravel(), attention.mean((0, 1)), rtol=1e-5
            )
            full = propagate_relevance(explanation.maps.attention, explanation.gradients)[
                -1, 0, patches
            ]
            np.testing.assert_allclose(maps["relevance"].ravel(), full, rtol=1e-5)
            mixed = rollout(explanation.maps.attention)[0, patches]
            np.testing.assert_allclose(maps["rollout"].ravel(), mixed, rtol=1e-5)
            handed = attention * explanation.value_norms[:, :, patches].numpy()
            np.testing.assert_allclose(
                maps["value-weighted"].ravel(), handed.mean((0, 1)), rtol=1e-5
            )

    def test_parameters_are_left_alone(self, model, batch):
        parameters = list(model.parameters())
        parameters[0].requires_grad_(False)
        with torch.no_grad():
            explain(model, batch)
            relevance_measures(model, batch)
        assert all(parameter.grad is None for parameter in parameters)
        assert [parameter.requires_grad for parameter in parameters] == [False] + [True] * (
            len(parameters) - 1
        )
        parameters[0].requires_grad_()
        assert torch.is_grad_enabled()
        for layer in model.vilt.encoder.layer:
            assert not layer.attention.attention.value._forward_hooks

    def test_frozen_models_are_explained_alike(self, explained, model, batch):
        measured = relevance_measures(model, batch)
        frozen = load_vilt("fresh-small", answers=ANSWERS)[0].requires_grad_(False)
        with torch.no_grad():
            for explanation, expected in zip(explain(frozen, batch), explained, strict=True):
                torch.testing.assert_close(explanation.gradients, expected.gradients)
            for name, found in relevance_measures(frozen, batch).items():
                torch.testing.assert_close(found, measured[name])
        assert not any(parameter.requires_grad for parameter in frozen.parameters())

    def test_errors(self, model, batch):
        with pytest.raises(
            ValueError, match="'blue' is none of the model's answers: give one of its 3 labels"
        ):
            explain(model, batch, ["blue"] * 6)
        with pytest.raises(ValueError, match=r"2 answers given: .* for each of 6 questions"):
            explain(model, batch, ["no"] * 2)
        for index in (3, -1):
            with pytest.raises(ValueError, match=f"{index} is none of .* or an index from 0 to 2"):
                explain(model, batch, [index] * 6)


class TestMeasures:
    def test_the_row_alone_equals_the_full_product(self, explained, model, batch):
        found = relevance_measures(model, batch)
        for place, explanation in enumerate(explained):
            row = explanation.weights("relevance")[-1, 0].clone()
            row[0] -= 1
            shares = (
                torch.stack([row[part].sum() for part in explanation.maps.groups.values()])
                / row.sum()
            )
            torch.testing.assert_close(found["relevance"][place], shares, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["relevance"].sum(1), torch.ones(6))

    def test_the_split_of_what_carries_the_answer(self, explained, model, batch):
        found = relevance_measures(model, batch)["gradient_split"]
        assert found.shape == (6, 4, 4, 3, 5)
        for place, explanation in enumerate(explained):
            weights, groups = (
                (explanation.gradients * explanation.maps.attention).clamp(min=0),
                explanation.maps.groups,
            )
            for query, name in enumerate(QUERY_GROUPS):
                for key, part in enumerate(groups.values()):
                    mean = weights[:, :, groups[name]][..., part].sum(-1).mean(-1)
                    torch.testing.assert_close(
                        found[place, :, :, query, key], mean, rtol=1e-4, atol=1e-7
                    )

    def test_the_layout_says_what_is_measured(self, model, batch):
        found, sizes = relevance_measures(model, batch), {"layer": 4, "head": 4}
        assert [*RELEVANCE, "logits"] == list(found)
        for name, (dtype, axes) in RELEVANCE.items():
            assert found[name].numpy().dtype == dtype
            assert found[name].shape == (6, *(sizes.get(axis, axis) for axis in axes))

    def test_a_question_without_words(self, model):
        found = relevance_measures(model, make_batch([(4, 4), (4, 6)], [2, 5]))
        assert found["gradient_split"][0, :, :, 1].isnan().all()  # no query
        assert (found["gradient_split"][0, :, :, [0, 2], 1] == 0).all()  # no key
        assert found["relevance"][0, 1] == 0
        assert found["relevance"].isfinite().all()

    def test_an_answer_that_owes_nothing_is_nan(self, batch):
        deaf = load_vilt("fresh-small", answers=ANSWERS)[0]
        for layer in deaf.vilt.encoder.layer:
            torch.nn.init.zeros_(layer.attention.output.dense.weight)
        found = relevance_measures(deaf, batch)
        assert found["relevance"].isnan().all()
        assert (found["gradient_split"] == 0).all()
