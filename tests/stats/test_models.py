"""Means over models: by hand, in limits, and as often right as they say."""

import numpy as np
import pytest
from scipy import stats

from helpers.stats.cluster_robust import compare_groups
from helpers.stats.models import (
    difference_over_models,
    jackknife_over_models,
    mean_by_group,
    mean_of_models,
    mean_over_models,
)


def test_by_hand_with_two_models_and_a_question_an_image():
    # images' means over models 1, 2, 3, 6: mean 3, variance 14 / 3 / 4; models' means 2, 4: 2 / 2
    values = np.array([[0.0, 1, 2, 5], [2, 3, 4, 7]])
    found = mean_over_models(values, [0, 1, 2, 3])
    assert found.by_model.tolist() == [2, 4]
    of_images, of_models = 14 / 3 / 4, 1.0
    critical = of_images * stats.t.isf(0.025, 3) + of_models * stats.t.isf(0.025, 1)
    half = critical / (of_images + of_models) * np.sqrt(of_images + of_models)
    assert (found.estimate, found.high) == pytest.approx((3, 3 + half))
    assert (found.n, found.n_images, found.n_models) == (4, 4, 2)
    bounded = mean_over_models(values, [0, 1, 2, 3], limits=(0, 7))
    assert (bounded.estimate, bounded.low, bounded.high) == (3, 0, 7)


def test_one_model_is_the_t_interval_over_images():
    values = np.random.default_rng(0).normal(size=25)
    found = mean_over_models(values[None], np.arange(25))
    half = stats.t.isf(0.025, 24) * values.std(ddof=1) / 5
    assert found.high - found.estimate == pytest.approx(half)


def test_a_question_that_one_model_lacks_is_left_out_of_all():
    values = np.array([[1.0, 2, 3, np.nan], [1, 2, 3, 100]])
    found = mean_over_models(values, [0, 1, 2, 2])
    assert found.by_model.tolist() == [2, 2]
    assert (found.n, found.n_images) == (3, 3)
    found = mean_over_models(values[:, ::-1], [3, 2, 1, 0])
    assert (found.n, found.n_images) == (3, 3)  # the image of the question left out counts neither


def test_a_difference_of_groups_is_that_of_their_means_with_the_errors_of_a_comparison():
    rng = np.random.default_rng(2)
    images, group = np.repeat(np.arange(60), 3), rng.integers(0, 3, 180)
    values = rng.normal(size=180) + rng.normal(size=60)[images] + group
    found = difference_over_models(values[None], group == 0, group == 1, images)
    assert found.estimate == pytest.approx(values[group == 0].mean() - values[group == 1].mean())
    pairs = compare_groups(values, group.astype(str), images)
    pair = pairs[pairs["group_a"].isin(["0", "1"]) & pairs["group_b"].isin(["0", "1"])].iloc[0]
    half = (pair["high"] - pair["low"]) / 2
    assert found.high - found.estimate == pytest.approx(half, rel=0.15)


def test_one_number_a_model_has_a_t_interval_over_models():
    found = mean_of_models([0.9, 0.7, 0.8], 100, 40, limits=(-1, 1))
    half = stats.t.isf(0.025, 2) * 0.1 / np.sqrt(3)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.8, 0.8 - half, 1))
    assert (found.n, found.n_images, found.n_models) == (100, 40, 3)
    for numbers in ([0.8], [0.8, 0.8]):  # no spread: the interval over heads
        found = mean_of_models(numbers, 100, 40, alone=(0.5, 0.9))
        assert (found.estimate, found.low, found.high) == (0.8, 0.5, 0.9)


def test_the_jackknife_of_a_mean_is_the_mean_over_models():
    rng = np.random.default_rng(2)
    values, images = rng.normal(size=(3, 60)) + rng.normal(size=(3, 1)), np.repeat(np.arange(30), 2)
    found = jackknife_over_models(lambda model, rows: values[model][rows].mean(), 3, images)
    expected = mean_over_models(values, images)
    assert (found.estimate, found.low, found.high) == pytest.approx(expected[:3])
    assert (found.n, found.n_images, found.n_models) == (60, 30, 3)


def test_means_by_group_are_those_of_each_group_alone():
    values = np.array([[1.0, 2, 3, np.nan, 7], [3, 4, 5, 100, 9]])
    groups = ["what", "why", "what", "why", None]
    table = mean_by_group(values, groups, [0, 1, 2, 3, 4]).set_index("group")
    alone = mean_over_models(values[:, [0, 2]], [0, 2])
    assert table.loc["what", ["estimate", "low", "n"]].tolist() == [3, alone.low, 2]
    assert table.loc["why", ["estimate", "n", "n_models"]].tolist() == [3, 1, 2]
    nothing = mean_by_group(np.full((2, 5), np.nan), groups, [0, 1, 2, 3, 4])
    assert nothing.empty
    assert nothing["estimate"].dtype == float  # so that tables joined to it stay numbers
