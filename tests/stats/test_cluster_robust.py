"""Least squares with errors clustered by image: against statsmodels, scipy and by hand."""

import numpy as np
from statsmodels.regression.linear_model import OLS

from helpers.stats import cluster_robust


def draw_design(seed=0, n_images=14):
    """Group dummies and covariates (n, p) and clusters of unequal size (n,)."""
    rng = np.random.default_rng(seed)
    images = np.repeat(np.arange(n_images), rng.integers(2, 9, n_images))
    groups = rng.integers(3, size=len(images))
    return np.hstack([np.eye(3)[groups], rng.normal(size=(len(images), 1))]), images


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
