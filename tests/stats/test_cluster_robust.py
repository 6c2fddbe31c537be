"""Least squares with errors clustered by image: against statsmodels, scipy and by hand."""

import numpy as np
from statsmodels.regression.linear_model import OLS

from helpers.stats import cluster_robust


def test_variance_is_that_of_statsmodels_fits_without_each_cluster(monkeypatch):
    """Of three groups and a covariate, on images of unequal size: with a scale that all share."""
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(14), rng.integers(2, 9, 14))
    groups = np.eye(3)[rng.integers(3, size=len(images))]
    design, values = np.c_[groups, rng.normal(size=len(images))], rng.normal(size=(len(images), 5))
    monkeypatch.setattr(cluster_robust, "CHUNK_VALUES", 3 * len(images))  # columns in two steps
    found = cluster_robust.fit_difference(values, design, images)
    expected = []
    for column in values.T:
        whole = OLS(column, design).fit().params
        rest = [images != image for image in range(14)]
        without = np.array([OLS(column[rows], design[rows]).fit().params for rows in rest]) - whole
        moved = (without[:, 0] - without[:, 1]) ** 2
        expected.append((whole[0] - whole[1], moved.sum(), (without[:, :2] ** 2).sum() * 13 / 14))
    differences, variances, both = np.transpose(expected)
    np.testing.assert_allclose(found[0], differences, rtol=1e-9)
    np.testing.assert_allclose(found[1] / found[1][0], variances / variances[0], rtol=1e-7)
    np.testing.assert_allclose(found[3], both, rtol=1e-7)
