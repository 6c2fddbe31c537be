"""helpers/attention/faithfulness.py: an answer that depends on one patch, known areas."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import stub_study

from helpers.attention import faithfulness
from helpers.attention.extract import random_weight_model
from helpers.attention.faithfulness import (
    FRACTIONS,
    map_gains,
    measure_curves,
    measure_random_gains,
    perturbation_curves,
    random_orders,
    rank_patches,
)
from helpers.attention.relevance import explain, patch_maps
from helpers.model.forward import forward_raster

HALVES = (0, 0.25, 0.5, 0.75, 1)


def fake_model(monkeypatch, inputs, answer):
    """A model of these inputs whose logits are `answer(given inputs)`, and its data."""
    prepared = SimpleNamespace(inputs=inputs)
    monkeypatch.setattr(faithfulness, "prepare_batch", lambda *_: prepared)
    logits = lambda _, given: SimpleNamespace(logits=answer(given))  # noqa: E731
    monkeypatch.setattr(faithfulness, "forward_raster", logits)
    rows = list(range(len(inputs["pixel_mask"])))
    return SimpleNamespace(training=False), SimpleNamespace(batches=lambda *_: [(rows, None)])


@pytest.fixture
def needle(monkeypatch):
    """A model that says "yes" with probability 0.8 where it sees patch 3 of 4, and else 0.2."""
    # 0: the image's CLS; 1 to 4: the patches
    embeds = torch.arange(5.0)[None, :, None].repeat(2, 1, 1)
    inputs = {"image_embeds": embeds, "pixel_mask": torch.ones(2, 5, dtype=torch.long)}

    def answer(given):
        seen = ((given["image_embeds"][..., 0] == 4) & given["pixel_mask"].bool()).any(1)
        return torch.stack([torch.where(seen, 1.0, -1.0) * np.log(4), torch.zeros(2)], dim=1)

    return fake_model(monkeypatch, inputs, answer)


def test_the_curve_of_one_patch_that_matters_by_hand(needle):
    orders = {"right": [np.array([3, 0, 1, 2])] * 2, "reversed": [np.array([2, 1, 0, 3])] * 2}
    curves = perturbation_curves(*needle, [0, 1], orders, HALVES)
    assert curves.orders == ["right", "reversed"]
    high, low = 0.8, 0.2
    right = [[high, low, low, low, low], [low, high, high, high, high]]  # with the first patch
    back = [[high, high, high, high, low], [low, low, low, low, high]]  # with the last
    for question in (0, 1):
        np.testing.assert_allclose(curves.probability[:, :, question], [right, back], atol=1e-6)
    np.testing.assert_array_equal(curves.first_patch, [[3, 3], [2, 2]])


def test_gains_count_from_the_random_order(needle):
    random, right = [np.array([0, 3, 1, 2])] * 2, [np.array([3, 0, 1, 2])] * 2
    orders = {"random": random, "right": right, "as random": random}
    gains = map_gains(perturbation_curves(*needle, [0, 1], orders, HALVES))
    # the patch goes first, not second: areas (0.8 + 0.2) / 8 + 0.75 * 0.2 = 0.275, not 0.425
    np.testing.assert_allclose(gains, [[[0.15] * 2] * 2, [[0] * 2] * 2], atol=1e-6)


def test_insertion_is_deletion_backwards_also_where_halves_are_rounded(monkeypatch):
    """Half of 15 patches rounds to 8 and leaves 7. The answer is how many patches are seen."""
    mask = torch.ones(1, 16, dtype=torch.long)
    inputs = {"image_embeds": torch.zeros(1, 16, 2), "pixel_mask": mask}
    count = lambda given: given["pixel_mask"].sum(1, keepdim=True) / 10  # noqa: E731
    counting = fake_model(monkeypatch, inputs, count)
    orders = {"order": [np.arange(15)], "back": [np.arange(15)[::-1]]}
    curves = perturbation_curves(*counting, [0], orders, np.linspace(0, 1, 11))
    np.testing.assert_allclose(curves.probability[0, 0], curves.probability[1, 1, :, ::-1])
    assert len(np.unique(curves.probability[0, 0])) == 11


def test_curves_begin_with_the_answer_and_are_those_of_single_questions(model, encoded):
    chosen, counts = [0, 6, 9, 3], [16, 24, 24, 16]
    order = random_orders(counts, 5)
    curves = perturbation_curves(model, encoded, chosen, {"o": order}, (0, 0.5, 1), batch_size=2)
    for place, (index, each) in enumerate(zip(chosen, order, strict=True)):
        with torch.no_grad():
            logits = forward_raster(model, encoded.collate([encoded[index]])).logits[0]
        found, sure = curves.probability[0, :, place], float(logits.max().sigmoid())
        assert found[0, 0] == pytest.approx(sure, abs=1e-5)
        alone = perturbation_curves(model, encoded, [index], {"order": [each]}, (0, 0.5, 1))
        np.testing.assert_allclose(alone.probability[0, :, 0], found, atol=1e-5)


@pytest.mark.parametrize("order", [np.arange(15), np.zeros(16, int), np.arange(1, 17)])
def test_an_order_holds_each_patch_once(model, encoded, order):
    with pytest.raises(ValueError, match="order 'mine' of question 3 must hold each of its 16"):
        perturbation_curves(model, encoded, [3], {"mine": [order]})


def test_curves_of_all_maps_are_measured_once(model, encoded, tmp_path, monkeypatch):
    study, rows = stub_study(tmp_path), [9, 2, 5]
    curves = measure_curves(study, model, encoded, rows)
    maps = ["raw, last layer", "raw, all layers", "value-weighted", "rollout", "relevance"]
    assert curves.orders == [*maps, "random"]
    assert curves.probability.shape == (6, 2, 3, len(FRACTIONS))
    explained = [explain(model, encoded.collate([encoded[row]]))[0] for row in rows]
    best = [patch_maps(each)["rollout"].argmax() for each in explained]
    assert curves.first_patch[maps.index("rollout")].tolist() == best
    monkeypatch.setattr(faithfulness, "perturbation_curves", None)  # not measured again
    again = measure_curves(study, model, encoded, rows)
    np.testing.assert_array_equal(again.probability, curves.probability)
    assert again.orders == curves.orders


def test_gains_of_random_models_maps(model, encoded, tmp_path):
    """Against one question at a time, in another order than that of the batches."""
    study, rows = stub_study(tmp_path), [9, 2, 5]
    gains = measure_random_gains(study, model, encoded, rows, "relevance")
    assert gains.shape == (2, 3)
    other, order = random_weight_model(model, study.seed + 1), []
    for row in rows:
        batch = encoded.collate([encoded[row]])
        answer = model.config.label2id[explain(model, batch)[0].answer]
        order.append(rank_patches(patch_maps(explain(other, batch, [answer])[0])["relevance"]))
    orders = {"other": order, "random": random_orders([len(each) for each in order], study.seed)}
    expected = map_gains(perturbation_curves(model, encoded, rows, orders))[0].mean(0)
    np.testing.assert_allclose(gains[1], expected, atol=1e-5)


def test_the_most_important_patch_comes_first_and_of_equals_the_first():
    assert rank_patches([[0.1, 0.4], [0.4, 0.2]]).tolist() == [1, 2, 3, 0]
    ranked = rank_patches(np.tile([0.0, 1.0], 100)).tolist()
    assert ranked == [*range(1, 200, 2), *range(0, 200, 2)]


def test_random_orders_are_permutations_that_differ_by_seed_and_question():
    first, second = random_orders([50, 50], 0)
    assert sorted(first) == sorted(second) == list(range(50))
    assert len({tuple(each) for each in (first, second, random_orders([50], 1)[0])}) == 3
    np.testing.assert_array_equal(first, random_orders([50, 50], 0)[0])
