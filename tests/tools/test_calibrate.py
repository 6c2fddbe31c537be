"""The simulations: what they draw, how they count, and what they say of the project's own tests."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from helpers import stats
from tools import calibrate

MIXED = [0.3, 0.3, 0.32, 0.08]


def draw_questions(n_images, shares, per_image=5, whole_images=False, seed=0) -> pd.DataFrame:
    """Questions in images of unequal size: columns image_id, family (0, 1, ..., in these shares).

    An image has 1 to 2 per_image - 1 questions; whole_images: all of one family.
    """
    rng = np.random.default_rng(seed)
    images = np.repeat(np.arange(n_images), rng.integers(1, 2 * per_image, n_images))
    drawn = rng.choice(len(shares), size=n_images if whole_images else len(images), p=shares)
    return pd.DataFrame({"image_id": images, "family": drawn[images] if whole_images else drawn})


def rates_of(*tables):
    return pd.concat(tables).set_index("procedure")["rate"]


@pytest.mark.parametrize("shape", ["normal", "heavy", "share", "paired"])
def test_values_have_mean_0_and_are_alike_within_an_image(shape):
    images = np.repeat(np.arange(4000), 5)
    values = calibrate.sample_values(images, 4, correlation=0.4, shape=shape)
    assert values.shape == (20_000, 4)
    np.testing.assert_allclose(values.mean(0), 0, atol=4 * values.std() * np.sqrt(2.6 / 20_000))
    alike = calibrate.intraclass_correlation(values, images)
    assert alike == pytest.approx(0.4, abs=0.1) if shape != "paired" else (alike > 0.05).all()
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.06
    if shape == "paired":
        assert set(np.unique(values)) == {-1, 0, 1}
        assert (values != 0).mean() == pytest.approx(0.2, abs=0.02)
    if shape == "share":
        assert np.ptp(values) < 1
        assert values.max() > -2 * values.min()  # the long tail is upwards


def test_correlation_by_hand():
    # images (1, 3) and (5, 7): MSB = 2 * (2^2 + 2^2) / 1 = 16, MSW = 4 / 2 = 2, m = 2: 14 / 18
    assert calibrate.intraclass_correlation([1, 3, 5, 7], [0, 0, 1, 1]) == pytest.approx(14 / 18)
    # images alike, questions not: MSB = 0, MSW = 2: -2 / 2
    assert calibrate.intraclass_correlation([1, 3, 1, 3], list("aabb")) == pytest.approx(-1)
    assert np.isnan(calibrate.intraclass_correlation([1.0, 2, 3], [0, 1, 2]))
    assert np.isnan(calibrate.intraclass_correlation([1.0, 2, 3], [0, 0, 0]))


def test_a_rate_comes_with_wilsons_interval():
    row = calibrate.describe_rate("pair", "single test", np.array([1.0] * 5 + [0.0] * 95)).iloc[0]
    # Wilson, 5 of 100: centre (0.05 + 1.92 / 100) / 1.0384,
    # half 1.96 sqrt(0.05 * 0.95 / 100 + 0.0096 / 100) / 1.0384
    assert (row["rate"], row["n"]) == (0.05, 100)
    assert (row["low"], row["high"]) == pytest.approx((0.0215, 0.1118), abs=2e-4)


def test_rates_are_those_of_the_projects_own_tests(monkeypatch):
    """4 studies of 2 heads and 3 families; family 0 is raised in heads 0, 2, 4, 6."""
    p = np.full((8, 3), 0.5)  # pairs 0-1, 0-2, 1-2
    p[0] = 0.001  # study 0, head 0: all three; the last is false when family 0 is raised
    p[3, 0] = 0.04  # study 1: a single test, but nothing after correction
    p[4:6] = np.nan  # study 2 is not tested

    def compare_by_hand(values, *_, axes):
        runs = np.repeat(np.arange(8), 3)
        names = {"group_a": [0, 0, 1] * 8, "group_b": [1, 2, 2] * 8}
        return pd.DataFrame({"run": runs, **names, "p": p.ravel()})

    monkeypatch.setattr(calibrate, "compare_groups", compare_by_hand)
    monkeypatch.setattr(calibrate, "HEADS", 2)
    rates = calibrate.rejection_rates([0, 1, 2], [0, 1, 2], studies=4).set_index("procedure")
    assert rates.loc["pair", ["rate", "n"]].tolist() == pytest.approx([(1 + 1 / 3) / 6, 6])
    assert rates.loc["false among found, B-H", ["rate", "n"]].tolist() == pytest.approx([1 / 9, 3])


CASES = [  # images, shares of the families, whole images
    pytest.param(20, [0.5, 0.5], False, id="20-images"),
    pytest.param(80, MIXED, False, id="80-images-a-rare-family"),
    pytest.param(60, [0.5, 0.5], True, id="60-images-of-one-family-each"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("n_images", "shares", "whole"), CASES)
@pytest.mark.parametrize("shape", ["normal", "heavy"])
def test_tests_and_intervals_err_at_the_stated_rate(n_images, shares, whole, shape):
    drawn = draw_questions(n_images, shares, whole_images=whole, seed=3)
    groups, images = drawn["family"], drawn["image_id"]
    length = np.random.default_rng(1).poisson(2, len(drawn)) + groups
    errors = calibrate.rejection_rates(groups, images, length, studies=500, shape=shape)
    rates = rates_of(errors, calibrate.paired_rates(images, 2000))
    for name in ("pair", "pair, within strata", "intact against ablated"):
        assert 0.03 <= rates[name] <= 0.07, name
    assert rates["false among found, B-H"] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 500)
    coverage = rates_of(calibrate.coverage_rates(groups, images, 1000, 400, shape=shape))
    assert coverage.between(0.92, 0.98).all()


@pytest.mark.slow
@pytest.mark.parametrize("n_images", [5, 8, 12])
def test_with_few_images_tests_are_rather_too_careful(n_images):
    drawn = [draw_questions(n_images, [0.4, 0.3, 0.3], per_image=9, seed=seed) for seed in range(4)]
    tables = [calibrate.rejection_rates(d["family"], d["image_id"], studies=250) for d in drawn]
    rates = pd.concat(tables).groupby("procedure")["rate"].mean()
    assert rates.max() <= 0.055
    assert rates["pair"] >= 0.03


@pytest.mark.slow
def test_a_family_on_six_of_80_images_does_not_reject_too_often():
    rejected = []
    for seed in range(4):
        drawn = draw_questions(80, [0.5, 0.5], seed=seed)
        rng = np.random.default_rng(seed)
        on_few = drawn["image_id"].isin(rng.choice(80, 6, replace=False))
        groups = drawn["family"].mask(on_few & (rng.random(len(drawn)) < 0.6), 2)
        values = calibrate.sample_values(drawn["image_id"], 2000, seed=seed)
        pairs = stats.compare_groups(values, groups, drawn["image_id"], axes=("run",))
        rejected.append((pairs["p"][pairs["group_b"] == 2] < 0.05).mean())
    assert 0.03 <= np.mean(rejected) <= 0.06


def test_ignoring_the_images_is_noticed():
    drawn = draw_questions(60, [0.5, 0.5], whole_images=True)
    values = calibrate.sample_values(drawn["image_id"], 500)
    naive = stats.compare_groups(values, drawn["family"], np.arange(len(drawn)), axes=("run",))
    assert (naive["p"] < 0.05).mean() > 0.12


@pytest.mark.slow
@pytest.mark.parametrize(("n_images", "level"), [(15, 0.05), (80, 0.05), (80, 0.001)])
def test_the_smallest_difference_is_found_four_times_in_five(n_images, level):
    drawn = draw_questions(n_images, [0.7, 0.3], seed=2)
    groups, images = drawn["family"], drawn["image_id"]
    values = calibrate.sample_values(images, 3000, correlation=0.5)
    first = stats.compare_groups(values, groups, images, axes=("run",))
    errors = t.isf(level / 2, first["df"]) + t.ppf(0.8, first["df"])
    detectable = np.sqrt(np.mean((errors * first["se"]) ** 2))
    shifted = values + detectable * np.outer(groups == first["group_a"][0], np.ones(3000))
    p = stats.compare_groups(shifted, groups, images, axes=("run",))["p"]
    assert (p < level).mean() == pytest.approx(0.8, abs=0.04)


@pytest.mark.slow
def test_procedures_over_models_and_of_choice_err_at_the_stated_rate():
    coverage = pd.concat([
        calibrate.model_rates(runs=400), calibrate.jackknife_rates(runs=150),
        calibrate.choice_rates(runs=400),
    ])  # fmt: skip
    assert len(coverage) == 10
    assert coverage["rate"].between(0.92, 0.98).all()
    assert calibrate.limit_rates()["rate"].item() >= 0.95  # exact limits promise at least that
    assert calibrate.rank_rates(runs=500)["rate"].between(0.03, 0.07).all()
