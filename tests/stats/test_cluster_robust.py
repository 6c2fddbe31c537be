"""Least squares with errors clustered by image: against statsmodels, scipy and by hand."""

import numpy as np
import pytest
from statsmodels.regression.linear_model import OLS

from helpers.stats import cluster_robust


def draw_design(seed=0, n_images=14):
    """Group dummies and covariates (n, p) and clusters of unequal size (n,)."""
    rng = np.random.default_rng(seed)
    images = np.repeat(np.arange(n_images), rng.integers(2, 9, n_images))
    groups = rng.integers(3, size=len(images))
    return np.hstack([np.eye(3)[groups], rng.normal(size=(len(images), 1))]), images


def spell_out_changes(design, images, contrast):
    """The matrix (images, n) that takes y to what leaving each image out changes in a contrast."""
    whole, rows = contrast @ np.linalg.pinv(design), []
    for image in range(images.max() + 1):
        others = images != image
        row = -whole.copy()
        row[others] += contrast @ np.linalg.pinv(design[others])
        rows.append(row)
    return np.sqrt((len(rows) - 1) / len(rows)) * np.array(rows)


def test_covariance_is_that_of_statsmodels_fits_without_each_cluster(monkeypatch):
    design, images = draw_design()
    values = np.random.default_rng(1).normal(size=(len(images), 5))
    monkeypatch.setattr(cluster_robust, "CHUNK_VALUES", 3 * len(images))  # columns in two steps
    fit = cluster_robust.fit_columns(values, design, images)
    for k, column in enumerate(values.T):
        whole = OLS(column, design).fit().params
        rest = [images != image for image in range(14)]
        without = [OLS(column[rows], design[rows]).fit().params - whole for rows in rest]
        np.testing.assert_allclose(fit.coefficients[:, k], whole, rtol=1e-9)
        covariance = 13 / 14 * np.transpose(without) @ without
        np.testing.assert_allclose(fit.covariance[k], covariance, rtol=1e-7, atol=1e-12)


def test_with_a_question_an_image_it_is_hc3():
    design, _ = draw_design(2)
    n = len(design)
    y = np.random.default_rng(3).normal(size=n)
    fit = cluster_robust.fit_columns(y[:, None], design, np.arange(n))
    theirs = OLS(y, design).fit(cov_type="HC3").cov_params()
    np.testing.assert_allclose(fit.covariance[0], (n - 1) / n * theirs, rtol=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_degrees_of_freedom_of_one_contrast_from_the_whole_matrix(seed):
    design, images = draw_design(seed)
    contrast = np.array([1.0, -1, 0, 0])
    changes = spell_out_changes(design, images, contrast)
    moments = changes @ changes.T  # of the changes, with independent errors of variance 1
    true = contrast @ np.linalg.inv(design.T @ design) @ contrast
    fit = cluster_robust.fit_columns(np.zeros((len(design), 1)), design, images)
    scale, df = cluster_robust.calibrate_contrast(fit, contrast)
    assert scale == pytest.approx(np.trace(moments) / true)
    assert df == pytest.approx(np.trace(moments) ** 2 / (moments**2).sum())
    assert scale > 1
    assert df < 13


def test_a_mean_is_the_regression_on_a_constant_column_by_column():
    rng = np.random.default_rng(7)
    images, values = rng.integers(9, size=40), rng.normal(size=(40, 2))
    values[:6, 1] = np.nan
    means = np.transpose(cluster_robust.fit_means(*cluster_robust.sum_by_image(values, images)))
    for column, (mean, variance, df) in zip(values.T, means, strict=True):
        known = ~np.isnan(column)
        codes = np.unique(images[known], return_inverse=True)[1]
        one = cluster_robust.fit_columns(column[known, None], np.ones((known.sum(), 1)), codes)
        scale, expected = cluster_robust.calibrate_contrast(one, np.ones(1))
        assert mean == pytest.approx(column[known].mean())
        assert variance == pytest.approx(one.covariance[0, 0, 0] / scale)
        assert df == pytest.approx(expected)
