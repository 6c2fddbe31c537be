"""Heads together: against models edited by hand, planted parts, and two heads that stand in."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from small import scale_copy

from helpers.attention.image_share import pack_forward
from helpers.data import prepare
from helpers.heads import effects, removal
from helpers.heads.gains import FACTORS
from helpers.model.forward import forward_raster


def test_scaled_heads_equal_an_edited_model_and_shared_layers_change_nothing(vilt, encoded):
    model, batch = vilt[0], encoded.collate([encoded[row] for row in (0, 5, 9)])
    heads = [*np.ndindex(4, 4)]
    pairs, intact = removal.pair_gains((4, 4), np.array([[1, 7]])), np.ones((1, 4, 4))
    gains = np.concatenate([removal.sample_sets((4, 4), 5), pairs, intact])
    variants = removal.scale_heads(gains)
    with torch.no_grad():
        found = removal.answer_variants(pack_forward(model, batch), variants)
        intact = forward_raster(model, batch).logits
        answers = intact.argmax(1, keepdim=True)
        for number, of_variant in enumerate(gains):
            if number % 7 in (0, 3) or number >= len(gains) - 2:
                logits = forward_raster(scale_copy(model, heads, of_variant.ravel()), batch).logits
                expected = logits.gather(1, answers)[:, 0].sigmoid()
                torch.testing.assert_close(found["variant_probability"][:, number], expected)
                assert found["variant_answer"][:, number].equal(logits.argmax(1))
    assert found["variant_probability"][:, -1].equal(found["probability"])  # all gains are 1
    changed = (found["variant_probability"] - found["probability"][:, None]).abs().amax(0)
    assert (changed[:-1] > 0).all()


def test_the_parts_of_variants_are_where_they_belong():
    pairs = removal.list_pairs(4, 99)
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    flat = removal.pair_gains((2, 2), pairs).reshape(-1, 4)
    single, emphasised, together = effects.split_variants(flat.T, 4)
    np.testing.assert_array_equal(single, 1 - np.eye(4))
    for number, factor in enumerate(FACTORS):
        np.testing.assert_array_equal(emphasised[:, number], 1 + (factor - 1) * np.eye(4))
    for column, pair in zip(together.T, pairs, strict=True):
        assert np.flatnonzero(column == 0).tolist() == pair.tolist()
    some = removal.list_pairs(144, 50, seed=1)
    assert len(np.unique(some, axis=0)) == 50
    assert (some[:, 0] < some[:, 1]).all()


def test_planted_contributions_are_recovered():
    rng = np.random.default_rng(0)
    planted, gains = rng.normal(size=(4, 4)), removal.sample_sets((4, 4), 300)
    additive = ((1 - gains) * planted).sum((1, 2)) + 5
    found, r2 = effects.fit_contributions(gains, additive)
    np.testing.assert_allclose(found, planted, atol=1e-3)
    assert r2 > 0.999
    noise = rng.normal(size=300)
    assert effects.fit_contributions(gains, noise)[1] < 0.05  # held out: noise is not predicted
    _, part = effects.fit_contributions(gains, additive + additive.std() * noise)
    assert 0.35 < part < 0.6


def test_r2_is_that_of_fits_without_each_set(monkeypatch):
    monkeypatch.setattr(effects, "PENALTIES", (2.0,))
    rng, gains = np.random.default_rng(1), removal.sample_sets((2, 4), 30)
    lost = rng.normal(size=30) + (1 - gains)[:, 0].sum(1)
    removed, errors, spread = 1 - gains.reshape(30, 8), [], []
    for row in range(30):
        rest = np.arange(30) != row
        x, y = removed[rest] - removed.mean(0), lost[rest]
        design = np.hstack([np.ones((29, 1)), x])
        penalty = np.diag([0.0] + [2.0] * 8)  # the mean is not shrunk
        weights = np.linalg.solve(design.T @ design + penalty, design.T @ y)
        errors.append(lost[row] - weights @ np.r_[1, removed[row] - removed.mean(0)])
        spread.append(lost[row] - y.mean())
    expected = 1 - np.square(errors).sum() / np.square(spread).sum()
    assert effects.fit_contributions(gains, lost)[1] == pytest.approx(expected)


def test_heads_that_stand_in_for_each_other_are_found_by_pairs_alone():
    """Points lost (question, variant) where heads 0 and 2 of four stand in for each other."""
    pairs = removal.list_pairs(4, 6)
    lost = np.zeros((60, 16 + len(pairs)))
    lost[:, 3] = 30  # head 3 alone
    lost[:, 16:] = 30 * (pairs == 3).any(1)
    lost[:, 16 + 1] = 60  # 0 and 2
    excess = effects.pair_excess(lost, pairs, 4)
    assert excess.mean(0).tolist() == [0, 60, 0, 0, 0, 0]
    mean = effects.share_of_backups([excess, 0 * excess], np.arange(60) // 2)
    assert mean.by_model.tolist() == pytest.approx([100 / 6, 0])
    assert (mean.n, mean.n_images, mean.n_models) == (60, 30, 2)
    half = np.arange(60) % 2 == 0
    table = effects.tabulate_pairs([excess], pairs, 2, half)
    names = ["first", "second", "excess", "excess_a"]
    assert table.loc[1, names].tolist() == ["L0H0", "L1H0", 60, 60]


def test_what_rises_and_falls_by_hand():
    """Two models of two heads; in `why`, emphasis of head 1 gains 10 points in the first one."""
    lost = np.zeros((2, 40, 8))
    families = np.repeat(["what", "why"], 20)
    lost[0, 20:, 3] = -10  # head 1 times the first factor
    lost[:, :, 0] = 6  # head 0 removed
    table = effects.tabulate_emphasis(lost, families, np.arange(40), 2)
    assert len(table) == 3 * 4
    table = table.set_index(["family", "factor"])
    assert table.loc[("why", 1.5), ["estimate", "risen", "fallen"]].tolist() == [-2.5, 0.5, 0]
    assert table.loc[("all", 1.5), ["estimate", "risen", "n"]].tolist() == [-1.25, 0.5, 40]
    assert table.loc[("what", 0.0), ["estimate", "risen", "fallen"]].tolist() == [3, 0, 1]


def test_measures_are_compared_with_contributions_over_models():
    planted, gains = np.array([[4.0, 3], [2, 1]]), removal.sample_sets((2, 2), 40)
    lost = ((1 - gains) * planted).sum((1, 2))
    table = SimpleNamespace(probability=np.full(1, 0.5), variant_probability=expit(-lost)[None])
    sets = [removal.Variants(table, gains)] * 2
    given = {"order": [planted, planted], "reverse": [-planted, planted]}
    found = effects.compare_contributions(given, sets).set_index("measure")
    assert found["correlation"].tolist() == pytest.approx([1, 0])
    assert found["r2"].min() > 0.99


def test_logits_lost_by_hand():
    variants = np.array([[0.5, 0.25], [0.9, 1.0]], np.float32)
    probability = np.array([0.5, 0.9], np.float32)
    table = SimpleNamespace(probability=probability, variant_probability=variants)
    lost = effects.logits_lost(table)
    assert lost[0].tolist() == pytest.approx([0, np.log(3)])
    assert lost[1, 0] == 0
    assert lost[1, 1] == pytest.approx(logit(0.9) - logit(1 - 1e-7), rel=1e-5)  # bounded


@pytest.mark.slow
def test_a_study_measures_sets_and_pairs_once(study, finetuned):
    study = replace(study, joint_sets=5, joint_questions=9, pair_questions=7)
    (model, processor, data) = finetuned
    encoded = prepare.encode(study, data["validation"], processor)
    sets, pairs = (removal.measure_joint(study, model, encoded, kind) for kind in ("sets", "pairs"))
    assert sets.table.variant_answer.shape == (9, 5)
    assert pairs.table.variant_answer.shape == (7, 16 * (1 + len(FACTORS)) + 5)
    assert pairs.gains.shape == (pairs.table.variant_answer.shape[1], 4, 4)
    stamp = (study.run_dir / "sets/made.json").stat().st_mtime_ns
    again = removal.measure_joint(study, model, encoded, "sets")
    np.testing.assert_array_equal(again.table.variant_answer, sets.table.variant_answer)
    assert (study.run_dir / "sets/made.json").stat().st_mtime_ns == stamp
    lost = pairs.table.points_lost("variant_answer", encoded, model.config.id2label)
    assert lost.shape == pairs.table.variant_answer.shape
    assert np.abs(lost).max() <= 100
