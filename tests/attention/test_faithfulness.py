"""helpers/attention/faithfulness.py: an answer that depends on one patch, known areas."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import stub_study

from helpers.attention import faithfulness
from helpers.attention.extract import random_weight_model
from helpers.attention.faithfulness import (
    FRACTIONS,
    Curves,
    curve_area,
    map_gains,
    measure_curves,
    measure_random_gains,
    perturbation_curves,
    random_orders,
    rank_patches,
    tabulate_curves,
    tabulate_maps,
)
from helpers.attention.image_share import keep_patches, prepare_batch
from helpers.attention.relevance import explain, patch_maps
from helpers.model.forward import forward_raster
from helpers.stats.models import mean_over_models

HALVES = (0, 0.25, 0.5, 0.75, 1)


@pytest.fixture
def needle(monkeypatch):
    """A model that says "yes" with probability 0.8 where it sees patch 3 of 4, and else 0.2."""
    # 0: the image's CLS; 1 to 4: the patches
    embeds = torch.arange(5.0)[None, :, None].repeat(2, 1, 1)
    inputs = {"image_embeds": embeds, "pixel_mask": torch.ones(2, 5, dtype=torch.long)}

    def answer(_, given):
        seen = ((given["image_embeds"][..., 0] == 4) & given["pixel_mask"].bool()).any(1)
        logit = torch.where(seen, 1.0, -1.0) * np.log(4)
        return SimpleNamespace(logits=torch.stack([logit, torch.zeros(2)], dim=1))

    monkeypatch.setattr(faithfulness, "prepare_batch", lambda *_: SimpleNamespace(inputs=inputs))
    monkeypatch.setattr(faithfulness, "forward_raster", answer)
    return SimpleNamespace(training=False), SimpleNamespace(batches=lambda *_: [([0, 1], None)])


def test_the_curve_of_one_patch_that_matters_by_hand(needle):
    right, wrong = np.array([3, 0, 1, 2]), np.array([2, 1, 0, 3])
    orders = {"right": [right] * 2, "reversed": [wrong] * 2}
    curves = perturbation_curves(*needle, [0, 1], orders, HALVES)
    assert curves.orders == ["right", "reversed"]
    high, low = 0.8, 0.2
    right = [[high, low, low, low, low], [low, high, high, high, high]]  # with the first patch
    back = [[high, high, high, high, low], [low, low, low, low, high]]  # with the last
    expected = [right, back]
    for question in (0, 1):
        np.testing.assert_allclose(curves.probability[:, :, question], expected, atol=1e-6)
    np.testing.assert_array_equal(curves.first_patch, [[3, 3], [2, 2]])
    areas = curve_area(curves.probability, HALVES)[:, :, 0]
    # (0.8 + 0.2) / 8 + 0.75 * 0.2, and so on
    np.testing.assert_allclose(areas, [[0.275, 0.725], [0.725, 0.275]])


def test_insertion_is_deletion_backwards_also_where_halves_are_rounded(monkeypatch):
    """Half of 15 patches rounds to 8 and leaves 7. The answer is how many patches are seen."""
    mask = torch.ones(1, 16, dtype=torch.long)
    inputs = {"image_embeds": torch.zeros(1, 16, 2), "pixel_mask": mask}

    def count(_, given):
        return SimpleNamespace(logits=given["pixel_mask"].sum(1, keepdim=True) / 10)

    monkeypatch.setattr(faithfulness, "prepare_batch", lambda *_: SimpleNamespace(inputs=inputs))
    monkeypatch.setattr(faithfulness, "forward_raster", count)
    data = SimpleNamespace(batches=lambda *_: [([0], None)])
    orders = {"order": [np.arange(15)], "back": [np.arange(15)[::-1]]}
    tenths = np.linspace(0, 1, 11)
    curves = perturbation_curves(SimpleNamespace(training=False), data, [0], orders, tenths)
    np.testing.assert_allclose(curves.probability[0, 0], curves.probability[1, 1, :, ::-1])
    assert len(np.unique(curves.probability[0, 0])) == 11


def test_gains_count_from_the_random_order(needle):
    random, right = [np.array([0, 3, 1, 2])] * 2, [np.array([3, 0, 1, 2])] * 2
    orders = {"random": random, "right": right, "as random": random}
    curves = perturbation_curves(*needle, [0, 1], orders, HALVES)
    gains = map_gains(curves)  # the patch goes first, not second: areas 0.275, not 0.425
    np.testing.assert_allclose(gains, [[[0.15] * 2] * 2, [[0] * 2] * 2], atol=1e-6)


def test_tables_hold_means_over_models_and_images():
    rng = np.random.default_rng(0)
    images, names, fractions = np.repeat(range(6), 2), ["map", "random"], (0, 0.5, 1)
    chances = rng.random((3, 2, 2, 12, 3))  # (model, order, kind, question, fraction)
    curves = [Curves(names, fractions, each, np.zeros((2, 12))) for each in chances]
    table = tabulate_curves(curves, images)
    assert len(table) == 2 * 2 * 3
    row = table.query("order == 'random' and kind == 'insertion' and fraction == 0.5").iloc[0]
    expected = mean_over_models(chances[:, 1, 1, :, 1], images)
    assert row[["estimate", "n", "n_clusters"]].tolist() == [pytest.approx(expected[0]), 12, 6]
    ends = np.clip(expected[1:3], 0, 1)
    assert row[["low", "high"]].tolist() == pytest.approx(ends.tolist())
    board = tabulate_maps(["map"], chances[:, :1, 0, :, 0], images)
    expected = mean_over_models(chances[:, 0, 0, :, 0], images)
    assert board[["estimate", "low", "high"]].iloc[0].tolist() == pytest.approx(expected[:3])


class TestRemoving:
    def test_ends_and_reversal(self, model, encoded):
        chosen, counts = [0, 6, 9, 3], [16, 24, 24, 16]
        order = random_orders(counts, 5)
        orders = {"order": order, "back": [each[::-1] for each in order]}
        curves = perturbation_curves(model, encoded, chosen, orders, HALVES, batch_size=2)
        for place, index in enumerate(chosen):
            with torch.no_grad():
                logits = forward_raster(model, encoded.collate([encoded[index]])).logits[0]
            assert curves.probability[0, 0, place, 0] == pytest.approx(
                float(logits.max().sigmoid()), abs=1e-5
            )
        np.testing.assert_allclose(
            curves.probability[:, 0, :, 0], curves.probability[:, 1, :, -1], atol=1e-5
        )
        np.testing.assert_allclose(
            curves.probability[0, 0], curves.probability[1, 1, :, ::-1], atol=1e-5
        )
        alone = [
            perturbation_curves(model, encoded, [index], {"order": [each]}, HALVES)
            for index, each in zip(chosen, order, strict=True)
        ]
        alone = [each.probability[0, :, 0] for each in alone]
        np.testing.assert_allclose(np.stack(alone, axis=1), curves.probability[0], atol=1e-5)

    @torch.no_grad()
    def test_leaving_a_token_out_is_masking_it(self, model, encoded):
        # 24 and 16 patches
        inputs = prepare_batch(model, encoded.collate([encoded[4], encoded[1]])).inputs
        kept = [np.array([23, 4, 7]), np.array([0, 15])]
        mask = torch.zeros_like(inputs["pixel_mask"])
        mask[:, 0] = mask[0, [24, 5, 8]] = mask[1, [1, 16]] = 1
        expected = forward_raster(model, {**inputs, "pixel_mask": mask}).logits
        found = keep_patches(inputs, kept)
        assert found["image_embeds"].shape[1] == 4  # what is gone costs nothing
        torch.testing.assert_close(
            forward_raster(model, found).logits, expected, rtol=1e-5, atol=1e-5
        )

    def test_errors(self, model, encoded):
        for order in (np.arange(15), np.zeros(16, int), np.arange(1, 17)):
            with pytest.raises(
                ValueError, match="order 'mine' of question 3 must hold each of its 16 patches once"
            ):
                perturbation_curves(model, encoded, [3], {"mine": [order]})
        for fractions in ((0, 0.5, 0.5), (0, 2), (-0.1, 1), (1, 0)):
            with pytest.raises(ValueError, match="must rise within 0 and 1"):
                perturbation_curves(model, encoded, [3], {"mine": [np.arange(16)]}, fractions)
        whole = np.arange(16)
        with pytest.raises(ValueError, match="names a question more than once"):
            perturbation_curves(model, encoded, [3, 3], {"mine": [whole, whole]})
        for some in ([], [whole, whole]):
            with pytest.raises(
                ValueError, match=r"order 'mine' is for . questions, but indices names 1"
            ):
                perturbation_curves(model, encoded, [3], {"mine": some})
        model.train()
        try:
            with pytest.raises(ValueError, match=r"call model\.eval"):
                perturbation_curves(model, encoded, [3], {"mine": [np.arange(16)]})
        finally:
            model.eval()


class TestStudy:
    def test_curves_of_all_maps_are_measured_once(self, model, encoded, tmp_path, monkeypatch):
        study, rows = stub_study(tmp_path), [9, 2, 5]
        curves = measure_curves(study, model, encoded, rows)
        maps = ["raw, last layer", "raw, all layers", "value-weighted", "rollout", "relevance"]
        assert curves.orders == [*maps, "random"]
        assert curves.probability.shape == (6, 2, 3, len(FRACTIONS))
        best = [
            patch_maps(explain(model, encoded.collate([encoded[row]]))[0])["rollout"].argmax()
            for row in rows
        ]
        assert curves.first_patch[maps.index("rollout")].tolist() == best
        monkeypatch.setattr(faithfulness, "perturbation_curves", None)  # not measured again
        again = measure_curves(study, model, encoded, rows)
        np.testing.assert_array_equal(again.probability, curves.probability)
        assert again.orders == curves.orders

    def test_gains_of_random_models_maps(self, model, encoded, tmp_path):
        """Against one question at a time, in another order than that of the batches."""
        study, rows = stub_study(tmp_path), [9, 2, 5]
        gains = measure_random_gains(study, model, encoded, rows, "relevance", n_models=2)
        assert gains.shape == (2, 3)
        other, order = random_weight_model(model, study.seed + 1), []
        for row in rows:
            batch = encoded.collate([encoded[row]])
            answer = explain(model, batch)[0].answer
            weights = patch_maps(explain(other, batch, [answer])[0])["relevance"]
            order.append(rank_patches(weights))
        random = random_orders([len(each) for each in order], study.seed)
        orders = {"other": order, "random": random}
        expected = map_gains(perturbation_curves(model, encoded, rows, orders))[0].mean(0)
        np.testing.assert_allclose(gains[1], expected, atol=1e-5)


class TestOrders:
    def test_ranks(self):
        # of equals the first
        assert rank_patches([[0.1, 0.4], [0.4, 0.2]]).tolist() == [1, 2, 3, 0]
        ranked = rank_patches(np.tile([0.0, 1.0], 100)).tolist()
        assert ranked == [*range(1, 200, 2), *range(0, 200, 2)]

    def test_random_orders_differ_by_seed_and_question(self):
        first, second = random_orders([50, 50], 0)
        assert first.tolist() != list(range(50))
        assert first.tolist() != second.tolist()
        assert first.tolist() != random_orders([50, 50], 1)[0].tolist()

    @given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=5), seed=st.integers(0, 2**31))
    def test_random_orders_are_permutations_that_a_seed_repeats(self, counts, seed):
        orders = random_orders(counts, seed)
        assert [sorted(order) for order in orders] == [list(range(count)) for count in counts]
        for order, again in zip(orders, random_orders(counts, seed), strict=True):
            assert order.tolist() == again.tolist()

    @given(value=st.floats(0, 1), fractions=st.sets(st.integers(0, 100), min_size=2))
    def test_a_constant_is_its_own_area(self, value, fractions):
        fractions = sorted(each / 100 for each in fractions)
        assert curve_area(np.full(len(fractions), value), fractions) == pytest.approx(value)
