"""helpers/relevance.py against hand-worked layers, finite differences and slow loops."""

import numpy as np
import pytest
import torch
from test_attention import GRIDS, LENGTHS, make_batch

from helpers.attention import QUERY_GROUPS, attention_maps, attention_measures, rollout
from helpers.relevance import (
    COMBINED_METHODS,
    HEAD_METHODS,
    explain,
    patch_maps,
    propagate_relevance,
    propagate_rollout,
    relevance_measures,
)
from helpers.vilt import forward_raster, load_vilt

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
    # first layer: heads (gA)+ = [[1, 0], [0, 1]] and [[0, 0], [1, 0]], mean [[.5, 0], [.5, .5]]; R = I + mean
    # second layer: [[1, .4], [0, .4]] and [[0, .6], [.2, 0]], mean [[.5, .5], [.1, .2]]; R = R + mean R
    first = torch.tensor([[1.5, 0.0], [0.5, 1.5]])
    second = first + torch.tensor([[0.5 * 1.5 + 0.5 * 0.5, 0.5 * 1.5], [0.1 * 1.5 + 0.2 * 0.5, 0.2 * 1.5]])
    torch.testing.assert_close(propagate_relevance(attention, gradient), torch.stack([first, second]))


def test_rollout_ends_where_attention_rollout_does(model, batch):
    attention = attention_maps(model, batch)[1].attention
    layers = propagate_rollout(attention)
    for depth in range(1, 5):
        torch.testing.assert_close(layers[depth - 1], rollout(attention[:depth]))


class TestGradients:
    def test_against_finite_differences(self, explained, model, batch):
        """Add a little to one attention weight, after the softmax, and see what the answer's logit does."""
        exact, step = load_vilt("fresh-small", answers=ANSWERS)[0].double(), 1e-4
        inputs = {
            name: value.double() if value.is_floating_point() else value for name, value in batch.items()
        }
        rng = np.random.default_rng(0)
        for question in (0, 4):
            n, answer = len(explained[question].maps.tokens), ANSWERS.index(explained[question].answer)
            n_text, longest = LENGTHS[question], batch["input_ids"].shape[1]
            for _ in range(12):
                layer, head, query, key = rng.integers(4), rng.integers(4), rng.integers(n), rng.integers(n)
                places = [place if place < n_text else place + longest - n_text for place in (query, key)]
                logits = [
                    nudge(exact, inputs, layer, question, head, *places, sign * step)[question, answer]
                    for sign in (1, -1)
                ]
                slope = float(logits[0] - logits[1]) / (2 * step)
                found = float(explained[question].gradients[layer, head, query, key])
                assert found == pytest.approx(slope, rel=1e-3, abs=2e-6)

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
        for explanation, row in zip(explain(model, batch, ["no"] * 6), logits, strict=True):
            assert explanation.answer == "no"
            assert explanation.logit == pytest.approx(float(row[1]), abs=1e-5)


def nudge(model, batch, layer, question, head, query, key, step):
    """Logits when one attention weight of one question is larger by `step`: through the context that it makes."""
    values = []
    module = model.vilt.encoder.layer[layer].attention.attention

    def add(_, __, output):
        context, width = output[0].clone(), module.attention_head_size
        own = slice(head * width, (head + 1) * width)
        context[question, query, own] += step * values[0][question, key, own]
        return (context, *output[1:])

    hooks = [module.value.register_forward_hook(lambda _, __, output: values.append(output)),
             module.register_forward_hook(add)]  # fmt: skip
    try:
        with torch.no_grad():
            return forward_raster(model, batch).logits
    finally:
        for hook in hooks:
            hook.remove()


class TestExplanations:
    def test_methods_and_their_shapes(self, explained, model, batch):
        for explanation, maps in zip(explained, attention_maps(model, batch), strict=True):
            n = len(maps.tokens)
            assert torch.equal(explanation.weights("attention"), maps.attention)
            for method in HEAD_METHODS:
                assert explanation.weights(method).shape == (4, 4, n, n)
                assert explanation.weights(method).min() >= 0
            for method in COMBINED_METHODS:
                assert explanation.weights(method).shape == (4, n, n)
        with pytest.raises(ValueError, match="unknown method 'raw': known are attention, value-weighted"):
            explained[0].weights("raw")

    def test_value_norms_are_those_of_the_measures(self, explained, model, batch):
        measured = attention_measures(model, batch)["value_norm"]
        for place, explanation in enumerate(explained):
            weights, groups = explanation.weights("value-weighted"), explanation.maps.groups
            for query, name in enumerate(QUERY_GROUPS):
                for key, part in enumerate(groups.values()):
                    mean = weights[:, :, groups[name]][..., part].sum(-1).mean(-1)
                    torch.testing.assert_close(mean, measured[place, :, :, query, key], rtol=1e-4, atol=1e-6)

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
            np.testing.assert_allclose(maps["raw, last layer"].ravel(), attention[3].mean(0), rtol=1e-5)
            np.testing.assert_allclose(maps["raw, all layers"].ravel(), attention.mean((0, 1)), rtol=1e-5)
            full = propagate_relevance(explanation.maps.attention, explanation.gradients)[-1, 0, patches]
            np.testing.assert_allclose(maps["relevance"].ravel(), full, rtol=1e-5)

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
        for layer in model.vilt.encoder.layer:
            assert not layer.attention.attention.value._forward_hooks

    def test_errors(self, model, batch):
        with pytest.raises(
            ValueError, match="'blue' is none of the model's answers: expected one of its 3 labels"
        ):
            explain(model, batch, ["blue"] * 6)
        with pytest.raises(ValueError, match=r"2 answers given: .* for each of 6 questions"):
            explain(model, batch, ["no"] * 2)


class TestMeasures:
    def test_the_row_alone_equals_the_full_product(self, explained, model, batch):
        found = relevance_measures(model, batch)
        for place, explanation in enumerate(explained):
            row = explanation.weights("relevance")[-1, 0].clone()
            row[0] -= 1
            shares = torch.stack([row[part].sum() for part in explanation.maps.groups.values()]) / row.sum()
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
                    torch.testing.assert_close(found[place, :, :, query, key], mean, rtol=1e-4, atol=1e-7)

    def test_an_answer_that_owes_nothing_is_nan(self, batch):
        deaf = load_vilt("fresh-small", answers=ANSWERS)[0]
        for layer in deaf.vilt.encoder.layer:
            torch.nn.init.zeros_(layer.attention.output.dense.weight)
        found = relevance_measures(deaf, batch)
        assert found["relevance"].isnan().all()
        assert (found["gradient_split"] == 0).all()
