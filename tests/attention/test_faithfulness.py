"""helpers/attention/faithfulness.py: an answer that depends on one patch, known areas."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from small import SIZES, encode_noise, stub_study

from helpers.attention import faithfulness
from helpers.attention.extract import random_weight_model
from helpers.attention.faithfulness import (
    Curves,
    curve_area,
    measure_faithfulness,
    measure_gains,
    perturbation_curves,
    random_orders,
    rank_patches,
    score_maps,
    tabulate_curves,
)
from helpers.attention.grounding import pointing_hits, score_boxes
from helpers.attention.image_share import attention_measures, keep_patches, prepare_batch
from helpers.attention.relevance import explain, patch_maps
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import forward_raster
from helpers.stats.bootstrap import bootstrap_mean

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
    answers = pd.DataFrame({"answers": [["yes"] * 10, ["no"] * 10]})
    data = SimpleNamespace(questions=answers, batches=lambda *_: [([0, 1], None)])
    data.score = partial(EncodedQuestions.score, data)
    return SimpleNamespace(
        training=False, config=SimpleNamespace(id2label={0: "yes", 1: "no"})
    ), data


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
    says_yes = np.array(expected) > 0.5
    np.testing.assert_array_equal(curves.accuracy[:, :, 0], says_yes)
    np.testing.assert_array_equal(curves.accuracy[:, :, 1], ~says_yes)
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
    table = pd.DataFrame({"question_id": [5]})
    data = SimpleNamespace(questions=table, batches=lambda *_: [([0], None)])
    data.score = partial(EncodedQuestions.score, data)
    orders = {"order": [np.arange(15)], "back": [np.arange(15)[::-1]]}
    model = SimpleNamespace(training=False, config=SimpleNamespace(id2label={0: "yes"}))
    curves = perturbation_curves(model, data, [0], orders)
    np.testing.assert_allclose(curves.probability[0, 0], curves.probability[1, 1, :, ::-1])
    assert len(np.unique(curves.probability[0, 0])) == 11


def test_the_scoreboard_counts_from_the_random_order(needle):
    orders = {"right": [np.array([3, 0, 1, 2])] * 2, "random": [np.array([0, 3, 1, 2])] * 2}
    curves = perturbation_curves(*needle, [0, 1], orders, HALVES)
    board = score_maps(curves, [7, 8], n_resamples=50).set_index(["order", "measure"])["estimate"]
    assert board["right", "deletion"] == pytest.approx(0.275)
    assert board["random", "deletion"] == pytest.approx(0.425)  # the patch goes second
    assert board["right", "deletion_gain"] == pytest.approx(0.15)
    assert board["right", "insertion_gain"] == pytest.approx(0.15)
    assert board["random", "deletion_gain"] == 0
    table = tabulate_curves(curves, [7, 8], n_resamples=50)
    row = table[
        (table["order"] == "random") & (table["kind"] == "insertion") & (table["fraction"] == 0.25)
    ]
    assert row["estimate"].tolist() == pytest.approx([0.2])


def test_answers_are_those_of_the_questions_asked(needle):
    model, data = needle
    data.questions = pd.DataFrame(
        {"answers": [["red"] * 10] * 3 + [["yes"] * 10, ["red"] * 10, ["no"] * 10]}
    )
    data.batches = lambda *_: [([3, 5], None)]
    orders = {"a": [np.array([3, 0, 1, 2]), np.array([0, 1, 2, 3])]}
    accuracy = perturbation_curves(model, data, [3, 5], orders, HALVES).accuracy
    # deletion: "yes" until the patch goes
    assert accuracy[0, 0].tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


def test_the_scoreboard_resamples_images():
    rng = np.random.default_rng(0)
    # five questions an image, all alike: the image is what varies
    levels = np.repeat(rng.random(12), 5)
    curves = Curves(
        ["random"], (0, 1), np.tile(levels[:, None], (1, 2, 1, 2)), np.zeros((1, 2, 60, 2))
    )
    clusters = np.repeat(np.arange(12), 5)
    row = score_maps(curves, clusters, n_resamples=200).iloc[0]
    expected = bootstrap_mean(levels, clusters, 200, 0)  # a constant curve: its area is its level
    assert row[["estimate", "low", "high"]].tolist() == pytest.approx(list(expected[:3]))
    assert (row["n"], row["n_clusters"]) == (60, 12)
    with pytest.raises(ValueError, match="no order is named 'chance': the curves have random"):
        score_maps(curves, clusters, random="chance")


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

    def test_questions_without_answers(self, vilt):
        model, alone = vilt[0], encode_noise(vilt[1], [(64, 64)])
        alone.questions = alone.questions.drop(columns="answers")
        curves = perturbation_curves(model, alone, [0], {"a": [np.arange(16)]}, (0, 1))
        assert np.isnan(curves.accuracy).all()
        assert not np.isnan(curves.probability).any()

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
    def test_measured_once_and_maps_are_held_against_boxes(self, model, encoded, tmp_path):
        drawn = [[] if i % 4 == 3 else [[4 * i, 8, 9, 30]] for i in range(12)]
        sizes = np.repeat(SIZES, 4, axis=0)  # (height, width)
        columns = {"boxes": drawn, "height": sizes[:, 0], "width": sizes[:, 1]}
        data, study = Dataset.from_dict(columns), stub_study(tmp_path, faithfulness_questions=5)
        given = (study, model, random_weight_model(model, 0), encoded, data)
        chosen, curves, boxes = measure_faithfulness(*given)
        assert len(set(chosen.tolist())) == 5
        maps = ["raw, last layer", "raw, all layers", "value-weighted", "rollout", "relevance"]
        assert curves.orders[:5] == maps
        assert set(curves.orders[5:]) == {"untrained relevance", "reversed relevance", "random"}
        assert curves.probability.shape == curves.accuracy.shape == (8, 2, 5, 11)
        forth, back = (curves.orders.index(name) for name in ("relevance", "reversed relevance"))
        deletion, insertion = curves.probability[forth, 0], curves.probability[back, 1]
        np.testing.assert_allclose(deletion, insertion[..., ::-1], atol=1e-4)
        boxed = [row for row in chosen.tolist() if drawn[row]]
        assert sorted(set(boxes["question"])) == boxed
        assert len(boxes) == len(boxed) * (5 + 16)  # combined maps, heads
        (row, *_), heads = boxed, boxes[boxes["layer"] >= 0]
        top = attention_measures(model, encoded.collate([encoded[row]]))["top_patch"].numpy()
        grid = pd.DataFrame([sizes[row] // 16], columns=["grid_rows", "grid_cols"])
        hits, chance = pointing_hits(top, grid, data.select([row]))
        heads = heads[heads["question"] == row]
        np.testing.assert_array_equal(heads["pointing"], hits[0, heads["layer"], heads["head"], 0])
        assert heads["chance"].unique() == pytest.approx(chance)
        made = study.run_dir / "faithfulness" / "made.json"
        before = made.stat().st_mtime_ns
        _, again, table = measure_faithfulness(*given)
        assert made.stat().st_mtime_ns == before
        np.testing.assert_array_equal(again.probability, curves.probability)
        assert again.orders == curves.orders
        pd.testing.assert_frame_equal(table.reset_index(drop=True), boxes.reset_index(drop=True))

    def test_gains_of_maps_and_of_random_models_maps(self, model, encoded, tmp_path, monkeypatch):
        """Against one question at a time, in another order than that of the batches."""
        study, rows, names = stub_study(tmp_path), [9, 2, 5], ["rollout", "relevance"]
        gains = measure_gains(study, model, encoded, rows, names)
        random = measure_gains(study, model, encoded, rows, names[1:], n_random=2)
        assert (gains.shape, random.shape) == ((2, 3), (2, 1, 3))
        other, orders = random_weight_model(model, study.seed + 1), {"kept": [], "other": []}
        for row in rows:
            batch = encoded.collate([encoded[row]])
            explanation = explain(model, batch)[0]
            another = explain(other, batch, [explanation.answer])[0]
            for name, each in zip(orders, (explanation, another), strict=True):
                orders[name].append(rank_patches(patch_maps(each)["relevance"]))
        orders["random"] = random_orders([len(order) for order in orders["kept"]], study.seed)
        curves = perturbation_curves(model, encoded, rows, orders, faithfulness.GAIN_FRACTIONS)
        areas = curve_area(curves.probability, curves.fractions)
        expected = (areas[:, 1] - areas[:, 0] - (areas[2, 1] - areas[2, 0])) / 2
        np.testing.assert_allclose(gains[1], expected[0], atol=1e-5)
        np.testing.assert_allclose(random[1, 0], expected[1], atol=1e-5)
        monkeypatch.setattr(faithfulness, "perturbation_curves", None)  # not measured again
        np.testing.assert_array_equal(measure_gains(study, model, encoded, rows, names), gains)

    def test_without_boxes(self, model, encoded, tmp_path):
        data = [{"boxes": [], "width": 64, "height": 64}] * 12
        study = stub_study(tmp_path, faithfulness_questions=1)
        _, _, boxes = measure_faithfulness(study, model, model, encoded, data)
        assert boxes.empty
        assert score_boxes(boxes, np.array([])).empty


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
