"""Intervals and tests: by hand, against slow and independent computations, and by simulation."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.regression.linear_model import OLS

from helpers import stats
from helpers.stats import bootstrap, cluster_robust


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def draw_questions(rng, n_images, per_cluster=5, between=1.0, families=None):
    """Questions on images: a normal image effect plus noise; families in these shares."""
    images = np.repeat(np.arange(n_images), rng.integers(1, 2 * per_cluster, n_images))
    values = between * rng.normal(size=n_images)[images] + rng.normal(size=len(images))
    groups = None if families is None else rng.choice(len(families), size=len(images), p=families)
    return values, images, groups


def expanded_tail(sizes, tail):
    """Hesterberg's tail from its definition, with the shortfall and the degrees of freedom.

    Both from the matrix that takes errors to what leaving each image out changes in the mean.
    """
    sizes = np.asarray(sizes)
    rows = np.repeat(np.arange(len(sizes)), sizes) == np.arange(len(sizes))[:, None]
    changes = ~rows / (~rows).sum(1, keepdims=True) - 1 / sizes.sum()
    moments = changes @ changes.T
    df = np.trace(moments) ** 2 / (moments**2).sum()
    scores = (rows - sizes[:, None] / sizes.sum()) / sizes.sum()
    shortfall = (scores**2).sum() * sizes.sum()
    return scipy_stats.norm.sf(scipy_stats.t.isf(tail, df) / np.sqrt(shortfall))


def test_two_clusters_by_hand():
    # resamples: AA (mean 0, 1/4), AB (1/3, 1/2), BB (1, 1/4); the tails reach both ends
    interval = stats.bootstrap_mean([0, 0, 1], ["a", "a", "b"], n_resamples=500)
    assert interval.estimate == pytest.approx(1 / 3)
    assert (interval.low, interval.high, interval.n, interval.n_images) == (0, 1, 3, 2)


def test_interval_equals_the_enumeration_of_all_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "TAIL", 0.1)
    rng = np.random.default_rng(1)
    images = np.array([0, 0, 1, 2, 2, 2, 3, 3, 4])
    values = rng.normal(size=9)
    members = [values[images == c] for c in range(5)]
    resamples = itertools.product(members, repeat=5)
    means = [np.concatenate(resample).mean() for resample in resamples]

    interval = stats.bootstrap_mean(values, images, n_resamples=50_000)
    tail = expanded_tail([2, 1, 3, 2, 1], 0.1)
    bounds = np.quantile(means, [tail, 1 - tail])
    assert [interval.low, interval.high] == pytest.approx(bounds, abs=0.01)
    assert interval.low < np.quantile(means, 0.1) - 0.02  # the plain percentile fails above


def test_each_column_is_as_if_alone_and_nan_is_left_out():
    rng = np.random.default_rng(2)
    values, images = rng.normal(size=(40, 3, 2)), np.repeat(np.arange(10), 4)
    values[:7, 1, 0] = np.nan  # all of image 0, and three questions of image 1
    together = stats.bootstrap_mean(values, images, n_resamples=300, seed=5)
    alone = stats.bootstrap_mean(values[:, 1, 0], images, n_resamples=300, seed=5)
    assert together.low.shape == (3, 2)
    assert [field[1, 0] for field in together[:5]] == pytest.approx(list(alone[:5]))
    assert (alone.n, alone.n_images) == (33, 9)
    assert alone.estimate == pytest.approx(values[7:, 1, 0].mean())
    np.testing.assert_allclose(together.estimate[2], values[:, 2].mean(0))


def test_groups_make_a_tidy_table():
    values = np.arange(24.0).reshape(6, 2, 2)
    groups = ["what", "how many", "what", None, "how many", "what"]
    options = {"image_ids": [1, 1, 2, 2, 3, 3], "n_resamples": 50, "axes": ("layer", "head")}
    table = stats.bootstrap_by_group(values, groups, **options)
    assert " ".join(table.columns) == "group layer head estimate low high n n_images"

    assert table["group"].tolist() == ["what"] * 4 + ["how many"] * 4
    row = table.query("group == 'how many' and layer == 1 and head == 0").iloc[0]
    assert row["estimate"] == np.mean([6, 18])
    assert (row["n"], row["n_images"]) == (2, 2)
    ordered = pd.Categorical(groups, categories=["how many", "where", "what"])
    table = stats.bootstrap_by_group(values, ordered, **options)

    assert table["group"].unique().tolist() == ["how many", "what"]


def spell_out(values, design, images, contrast):
    """Estimate, variance and degrees of freedom of a contrast: by leaving each image out."""
    whole = OLS(values, design).fit()
    moved, rows = [], []
    for cluster in np.unique(images):
        known = images != cluster
        moved.append(contrast @ (OLS(values[known], design[known]).fit().params - whole.params))
        row = -contrast @ np.linalg.pinv(design)
        row[known] += contrast @ np.linalg.pinv(design[known])
        rows.append(row)
    moments = np.array(rows) @ np.transpose(rows)
    true = contrast @ whole.normalized_cov_params @ contrast
    df = np.trace(moments) ** 2 / (moments**2).sum()
    return contrast @ whole.params, np.sum(np.square(moved)) * true / np.trace(moments), df


def test_pairs_equal_what_statsmodels_gives_image_by_image():
    rng = np.random.default_rng(6)
    values, images, groups = draw_questions(rng, 40, families=[0.5, 0.42, 0.08])
    for pair in stats.compare_groups(values, groups, images).itertuples():
        design, contrast = np.eye(3)[groups], np.zeros(3)
        contrast[pair.group_a], contrast[pair.group_b] = 1, -1
        estimate, variance, df = spell_out(values, design, images, contrast)
        assert pair.difference == pytest.approx(estimate)
        assert (pair.se, pair.df) == pytest.approx((np.sqrt(variance), df))
        assert pair.df < 25 or 2 not in (pair.group_a, pair.group_b)  # the rare group decides
        assert pair.p == pytest.approx(2 * scipy_stats.t.sf(abs(pair.difference / pair.se), df))
        assert (pair.low + pair.high) / 2 == pytest.approx(pair.difference)
        assert pair.high - pair.low == pytest.approx(2 * scipy_stats.t.isf(0.025, df) * pair.se)


def test_within_strata_equals_what_statsmodels_gives_image_by_image():
    rng = np.random.default_rng(6)
    values, images, groups = draw_questions(rng, 40, families=[0.5, 0.3, 0.2])
    strata = np.minimum(rng.poisson(1, len(values)) + groups, 4)
    table = stats.compare_groups(values, groups, images, strata=strata)
    for pair in table.itertuples():
        own = np.isin(groups, (pair.group_a, pair.group_b))
        shared = np.intersect1d(*(strata[groups == g] for g in (pair.group_a, pair.group_b)))
        rows = own & np.isin(strata, shared)
        design = np.c_[groups[rows] == pair.group_a, strata[rows, None] == shared].astype(float)
        contrast = np.eye(design.shape[1])[0]
        estimate, variance, df = spell_out(values[rows], design, images[rows], contrast)
        assert pair.difference == pytest.approx(estimate)
        assert (pair.se, pair.df) == pytest.approx((np.sqrt(variance), df))
        assert pair.n_a == (rows & (groups == pair.group_a)).sum()


def test_a_difference_at_equal_strata_is_the_weighted_mean_of_theirs():
    # length 3: 12 a of mean 0.2, 4 b of 0.6; length 5: 6 of 0.5 and 6 of 0.9; length 9: a alone
    sizes = {("a", 3): (12, 0.2), ("b", 3): (4, 0.6), ("a", 5): (6, 0.5), ("b", 5): (6, 0.7),
             ("a", 9): (20, 1.0)}  # fmt: skip
    parts = [(name, length, mean + 0.1 * (-1) ** i)
             for (name, length), (n, mean) in sizes.items() for i in range(n)]  # fmt: skip
    groups, lengths, values = (np.array(column) for column in zip(*parts, strict=True))
    images = np.arange(len(values)) % 11
    pair = stats.compare_groups(values, groups, images, strata=lengths).iloc[0]
    weights = np.array([12 * 4 / 16, 6 * 6 / 12])
    assert pair["difference"] == pytest.approx(np.average([-0.4, -0.2], weights=weights))
    assert (pair["n_a"], pair["n_b"]) == (18, 10)
    two = pd.DataFrame({"length": lengths, "patches": 192})
    again = stats.compare_groups(values, groups, images, strata=two).iloc[0]
    assert again["p"] == pair["p"]


def test_one_stratum_changes_nothing_and_groups_that_share_none_are_not_compared():
    rng = np.random.default_rng(7)
    images, values = np.repeat(np.arange(80), 5), rng.normal(size=400)
    groups = rng.choice(["how many", "what"], size=400)
    raw = stats.compare_groups(values, groups, images).iloc[0]
    same = stats.compare_groups(values, groups, images, strata=np.full(400, 192)).iloc[0]
    assert same["se"] == pytest.approx(raw["se"])
    apart = stats.compare_groups(values, groups, images, strata=groups).iloc[0]
    assert np.isnan(apart["p"])
    assert apart["n_a"] == 0


def test_many_columns_are_the_single_ones_corrected_together(monkeypatch):
    monkeypatch.setattr(cluster_robust, "CHUNK_VALUES", 4 * 40)  # four columns a step
    rng = np.random.default_rng(8)
    images, groups = np.repeat(np.arange(20), 4), np.tile(list("abcd"), 20)
    values = rng.normal(size=(80, 2, 3))
    values[:30, 1, 2] = np.nan
    many = stats.compare_groups(values, groups, images, axes=("layer", "head"))
    assert len(many) == 6 * 6
    for (layer, head), rows in many.groupby(["layer", "head"]):
        one = stats.compare_groups(values[:, layer, head], groups, images)
        pairs = rows.drop(columns=["layer", "head", "p_corrected"]).reset_index(drop=True)
        pd.testing.assert_frame_equal(pairs, one.drop(columns="p_corrected"))
    np.testing.assert_allclose(many["p_corrected"], stats.correct_p(many["p"]))


def test_a_group_with_too_few_questions_is_nan_and_leaves_the_others_alone():
    rng = np.random.default_rng(9)
    groups = np.array(["what"] * 30 + ["where"] * 30 + ["why"] * 9)
    images, values = np.arange(69) % 20, rng.normal(size=69)
    all_three = stats.compare_groups(values, groups, images)
    two = stats.compare_groups(values[:60], groups[:60], images[:60])
    few = all_three[all_three["group_b"] == "why"]
    assert few[["difference", "se", "p", "p_corrected"]].isna().all(axis=None)
    assert few["n_b"].tolist() == [9, 9]
    assert all_three["p"].iloc[0] == two["p"].iloc[0]


@pytest.mark.parametrize(("n", "n_images"), [(0, 1), (5, 20), (40, 2), (40, 20)])
@pytest.mark.parametrize("kind", ["zero", "constant", "nan", "separated", "random"])
def test_degenerate_data_give_nan_not_errors(n, n_images, kind):
    rows = np.arange(n)
    random, constant = np.random.default_rng(0).normal(size=n), np.full(n, 0.1)
    kinds = {"zero": rows * 0.0, "constant": constant, "nan": np.full(n, np.nan)}
    values = (kinds | {"separated": rows % 2 / 3, "random": random})[kind]
    images = rows // 2 % n_images
    interval = stats.bootstrap_mean(values, images, n_resamples=20)
    assert np.isnan(interval.low) == (n == 0 or kind == "nan" or interval.n_images < 2)
    for groups in ([None] * n, (["a", "b"] * n)[:n]):
        result = stats.compare_groups(values, groups, images)
        equal = [stats.compare_groups(values, groups, images, strata=s) for s in (rows, rows % 3)]
        if kind != "random" or n < 40 or n_images < 20:
            assert all(pairs["p"].isna().all() for pairs in (result, *equal))
        table = stats.bootstrap_by_group(values, groups, images, n_resamples=20)
        assert len(table) == len({g for g in groups if g})


@pytest.mark.parametrize(("call", "says"), [
    (lambda: stats.bootstrap_mean([1, 2], [1]), "one row for each question"),
    (lambda: stats.bootstrap_by_group(np.ones((2, 3)), ["a", "b"], [1, 2]), "1 axes"),
    (lambda: stats.compare_groups([1, 2], ["a"], [1, 2]), "1 groups for 2 questions"),
    (lambda: stats.compare_groups([1, 2], ["a", "b"], [1, 2], strata=[1]), "1 strata for 2"),
    (lambda: bootstrap.rank_correlation([1, 2], [1]), "2 values of x but 1"),
])  # fmt: skip
def test_mistakes_get_one_clear_error(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_correction_by_hand():
    p = [0.01, 0.04, np.nan, 0.03, 0.20]
    # Benjamini-Hochberg, 4 tests: 0.01 * 4, 0.04 * 4 / 3, 0.03 * 4 / 2 -> at most 0.0533, 0.2
    np.testing.assert_allclose(stats.correct_p(p), [0.04, 0.16 / 3, np.nan, 0.16 / 3, 0.2])
    assert np.isnan(stats.correct_p([[np.nan, np.nan]])).all()


def test_rank_correlation():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, size=(12, 12)).astype(float)  # with ties
    y = x + rng.normal(scale=10, size=x.shape)
    x[0, 0] = np.nan
    result = bootstrap.rank_correlation(x, y)
    theirs = scipy_stats.spearmanr(x.ravel()[1:], y.ravel()[1:]).statistic
    assert result.estimate == pytest.approx(theirs)

    assert result.low < result.estimate < result.high
    assert result.n == 143
    assert bootstrap.rank_correlation(x, np.exp(x / 9)).low == pytest.approx(1)
    assert np.isnan(bootstrap.rank_correlation(np.ones(9), np.arange(9)).estimate)
    assert np.isnan(bootstrap.rank_correlation([1, 2], [1, 2]).low)


def test_a_mean_equals_what_statsmodels_gives_image_by_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 12, 60)
    values = rng.normal(size=(60, 2, 3)) + 0.5 * rng.normal(size=12)[images, None, None] + 0.3
    values[:5, 1, 2] = np.nan
    result = stats.mean_difference_test(values, images, ("layer", "head"))
    assert " ".join(result.columns) == "layer head estimate se df low high p n n_images"
    for row in result.itertuples():
        column = values[:, row.layer, row.head]
        known = ~np.isnan(column)
        ones = np.ones((known.sum(), 1))
        mean, variance, df = spell_out(column[known], ones, images[known], np.ones(1))

        assert (row.n, row.n_images) == (known.sum(), 12)
        np.testing.assert_allclose((row.estimate, row.se, row.df), (mean, np.sqrt(variance), df))
        assert row.p == pytest.approx(2 * scipy_stats.t.sf(abs(mean) / row.se, df))
        half = scipy_stats.t.isf(0.025, df) * row.se
        np.testing.assert_allclose((row.low, row.high), (mean - half, mean + half))


def test_mean_that_cannot_be_told_or_has_no_error():
    images = np.arange(20) // 2
    partly = np.r_[np.full(9, np.nan), np.ones(11)]
    values = np.column_stack([np.zeros(20), np.full(20, 100.0), partly])
    none, constant, few = stats.mean_difference_test(values, images, ("head",)).itertuples()

    assert (none.estimate, none.se) == (0, 0)
    assert np.isnan(none.p)
    assert (constant.low, constant.high) == (100, 100)
    assert constant.p == pytest.approx(2 / 2**10)  # both of 2^10 ways to flip ten images' signs
    assert (few.n, few.n_images) == (11, 6)
    assert few.p == pytest.approx(2 / 2**6)
    alone = stats.mean_difference_test(np.ones(9), np.arange(9))
    assert np.isnan(alone["p"][0])
    assert alone["estimate"][0] == 1


@pytest.mark.parametrize(("value", "bounds", "expected"), [
    # nothing in 150: Clopper and Pearson's upper limit is 1 - 0.025^(1 / 150) = 2.43 %
    (100, (0, 100), (97.57, 100)), (0, (0, 100), (0, 2.43)), (0, (-100, 100), (-2.43, 2.43)),
])  # fmt: skip
def test_values_that_are_all_equal_get_an_exact_interval(value, bounds, expected):
    values, images = np.full((150, 2), float(value)), np.arange(150)
    interval = stats.bootstrap_mean(values, images, 50, bounds=bounds)
    assert (interval.low[0], interval.high[1]) == pytest.approx(expected, abs=0.01)
    assert stats.bootstrap_mean(values, images, 50).low[0] == value  # as before
    # two questions an image that are alike say no more than one
    twice = stats.bootstrap_mean(np.r_[values, values], np.r_[images, images], 50, bounds=bounds)
    np.testing.assert_allclose(twice.low, interval.low)
    table = stats.bootstrap_by_group(values[:, 0], ["a"] * 150, images, 50, bounds=bounds)
    assert table["low"][0] == interval.low[0]


def test_few_that_differ_are_counted_on_either_side():
    lost = np.r_[100.0, 100, -60, np.zeros(97)]
    interval = stats.bootstrap_mean(lost, np.arange(100), 50, bounds=(-100, 100))
    (up_low, up_high), (down_low, down_high) = (
        scipy_stats.beta.ppf([0.025, 0.975], [k, k + 1], [101 - k, 100 - k]) for k in (2, 0.6)
    )
    assert interval.estimate == pytest.approx(1.4)
    assert interval.low == pytest.approx(100 * (up_low - down_high))
    assert interval.high == pytest.approx(100 * (up_high - down_low))
    many = np.r_[np.full(5, 100.0), np.zeros(95)]  # five differ: resampled
    plain, bounded = (
        stats.bootstrap_mean(many, np.arange(100), 50, bounds=b) for b in (None, (0, 100))
    )
    assert plain == bounded


def test_ranks_within_strata_ignore_what_lies_between_them():
    rng, layers = np.random.default_rng(0), np.repeat(np.arange(6), 8)
    p = []
    for _ in range(60):
        x, y = rng.normal(size=(2, 6))[:, layers] * 2 + rng.normal(size=(2, 48))
        p.append([stats.bootstrap.rank_permutation_test(x, y, s, 200)[1] for s in (layers, None)])
    within, overall = np.mean(np.array(p) < 0.05, axis=0)
    assert within < 0.15 < overall
    x = rng.normal(size=48)
    shifted = stats.bootstrap.rank_permutation_test(x, x + 100 * layers, layers, 200)
    assert shifted[1] < 0.01
