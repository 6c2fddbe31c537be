"""Least squares with errors clustered by image: against statsmodels, scipy and by hand."""

import numpy as np
from statsmodels.regression.linear_model import OLS

from helpers.stats import cluster_robust


def test_covariance_is_that_of_statsmodels_fits_without_each_cluster(monkeypatch):
    """Of three groups and a covariate, on images of unequal size."""
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(14), rng.integers(2, 9, 14))
    groups = np.eye(3)[rng.integers(3, size=len(images))]
    design, values = np.c_[groups, rng.normal(size=len(images))], rng.normal(size=(len(images), 5))
    monkeypatch.setattr(cluster_robust, "CHUNK_VALUES", 3 * len(images))  # columns in two steps
    fit = cluster_robust.fit_columns(values, design, images)
    for k, column in enumerate(values.T):
        whole = OLS(column, design).fit().params
        rest = [images != image for image in range(14)]
        without = [OLS(column[rows], design[rows]).fit().params - whole for rows in rest]
        np.testing.assert_allclose(fit.coefficients[:, k], whole, rtol=1e-9)
        covariance = 13 / 14 * np.transpose(without) @ without
        np.testing.assert_allclose(fit.covariance[k], covariance, rtol=1e-7, atol=1e-12)
