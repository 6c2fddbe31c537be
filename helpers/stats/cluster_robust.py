"""Least squares whose errors come in clusters (the images): estimates, variances, degrees of freedom.

The arithmetic under `helpers.stats.tests`, for many columns of values at once. Variances are those of the jackknife
over clusters (CV3 in MacKinnon, Nielsen and Webb 2023, "Fast and reliable jackknife and bootstrap methods for
cluster-robust inference"): leave out one image at a time and see how the estimate moves. With few clusters, or
clusters of unequal size, such variances are off by a known factor and vary like a chi-square with fewer degrees
of freedom than clusters: both are found as in Bell and McCaffrey (2002, Survey Methodology 28), as if errors
were independent and alike, which also suits errors that are not (Hansen 2025, "Standard errors for
difference-in-difference regression", Journal of Applied Econometrics 40).
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

MIN_GROUPS = 4  # fewer have too few orders to tell agreement in rank from chance
CHUNK_VALUES = 4_000_000  # numbers held at once beside the result: 32 MB


class Fit(NamedTuple):
    """One regression of many columns: p coefficients, k columns, c clusters."""

    coefficients: np.ndarray  # (p, k)
    covariance: np.ndarray  # (k, p, p), of the jackknife over clusters
    bread: np.ndarray  # (p, p), the inverse of X'X
    products: np.ndarray  # (c, p, p), X'X within each cluster
    left_out: np.ndarray  # (c, p, p), the inverse of X'X without that cluster


def fit_columns(values: np.ndarray, design: np.ndarray, clusters: np.ndarray) -> Fit:
    """Least squares of every column of values (n, k) on one design (n, p) of full rank, without NaN.

    clusters: (n,) codes 0..c-1, all of them in use. With cluster g left out the coefficients change by
    -(X'X - Xg'Xg)^-1 Xg'eg; the covariance is (c - 1) / c times the sum of their outer products. Where a
    coefficient cannot be told without g, the pseudo-inverse stands in, as in MacKinnon, Nielsen and Webb.
    """
    (n, p), k = design.shape, values.shape[1]
    members = count_members(clusters)
    c = members.shape[0]
    products = (members @ (design[:, :, None] * design[:, None, :]).reshape(n, p * p)).reshape(
        c, p, p
    )
    total = products.sum(0)
    bread, left_out = np.linalg.inv(total), np.linalg.pinv(total - products, hermitian=True)
    coefficients, covariance = np.empty((p, k)), np.empty((k, p, p))
    step = max(1, CHUNK_VALUES // max(n, c * p))
    for start in range(0, k, step):
        part = values[:, start : start + step].astype(float)
        moments = np.stack(
            [members @ (part * column[:, None]) for column in design.T], axis=1
        )  # (c, p, k)
        found = bread @ moments.sum(0)
        changes = (left_out @ (moments - products @ found)).transpose(2, 1, 0)
        coefficients[:, start : start + step] = found
        covariance[start : start + step] = (c - 1) / c * changes @ changes.transpose(0, 2, 1)
    return Fit(coefficients, covariance, bread, products, left_out)


def calibrate_contrast(fit: Fit, contrast: np.ndarray) -> tuple[float, float]:
    """What the jackknife covariance of contrasts (q, p) is worth: (scale, df), from the design alone.

    scale: its expected value over the true one. df: the degrees of freedom of the Wishart with its variance,
    Pustejovsky and Tipton (2018, Journal of Business and Economic Statistics 36), section 3.2; for one
    contrast this is Satterthwaite's, Bell and McCaffrey (2002).

    Each entry of the covariance is a sum over clusters s of (g_si'e)(g_sj'e), so its moments need only the
    inner products P_st = g_s'g_t: `own` where s = t, less Y_s'Y_t for all s and t.
    """
    spread, axes = np.linalg.eigh(contrast @ fit.bread @ contrast.T)
    white = (axes / np.sqrt(spread)).T @ contrast  # contrasts whose true covariance is the identity
    q, c = len(contrast), len(fit.products)
    pulled = fit.left_out @ white.T  # (c, p, q)
    moved = fit.products @ pulled
    own = (c - 1) / c * pulled.transpose(0, 2, 1) @ moved
    y = np.sqrt((c - 1) / c) * np.linalg.cholesky(fit.bread).T @ moved
    shared = y.transpose(0, 2, 1) @ y
    scale = np.trace(own - shared, axis1=1, axis2=2).sum() / q
    flat = y.reshape(c, -1)
    pairs = (flat.T @ flat).reshape(y.shape[1:] * 2)
    squares = (pairs**2).sum() + (pairs * pairs.transpose(0, 3, 2, 1)).sum()
    squares += (_sum_squares(own - shared) - _sum_squares(shared)).sum()
    return scale, q * (q + 1) * scale**2 / squares


def fit_means(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, its variance and degrees of freedom of every column, from sums and counts (clusters, k) in clusters.

    `fit_columns` and `calibrate_contrast` for a constant alone, with counts that may differ by column. The
    variance is divided by its scale. With an observation a cluster: s^2 / n and n - 1 degrees of freedom.
    Returns three arrays (k,), NaN with fewer than two clusters.
    """
    total, c = counts.sum(0), (counts > 0).sum(0)
    rest = np.where(c > 1, total - counts, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / total
        changes = np.where(counts > 0, (sums.sum(0) - sums) / rest - mean, 0)
        own, moved = counts / rest**2, counts / rest
        z = (moved**2).sum(0) / total
        expected = own.sum(0) - z
        df = expected**2 / ((own**2).sum(0) - 2 * (own * moved**2).sum(0) / total + z**2)
        return mean, (changes**2).sum(0) / (expected * total), np.where(c > 1, df, np.nan)


def count_members(clusters: np.ndarray) -> sparse.csr_array:
    """The matrix (clusters, n) of ones where a question belongs to a cluster: `members @ values` sums them."""
    n = len(clusters)
    shape = (clusters.max(initial=-1) + 1, n)
    return sparse.csr_array((np.ones(n), (clusters, np.arange(n))), shape=shape)


def sum_clusters(flat: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of what is not NaN within each cluster, in float64: (n, k) -> (clusters, k), (clusters, k or 1).

    Without NaN all columns have the same counts: then they are one column, and a bootstrap half the work.
    """
    members = count_members(clusters)
    (n_clusters, n), k = members.shape, flat.shape[1]
    sums = np.empty((n_clusters, k))
    counts = np.empty_like(sums) if np.isnan(flat).any() else members.sum(1)[:, None]
    step = max(
        1, CHUNK_VALUES // max(1, n)
    )  # columns at once: a float32 table never stands whole in float64
    for start in range(0, k, step):
        columns = slice(start, start + step)
        part = flat[:, columns].astype(float)
        if counts.shape == sums.shape:
            valid = ~np.isnan(part)
            part[~valid] = 0
            counts[:, columns] = members @ valid.astype(float)
        sums[:, columns] = members @ part
    return sums, counts


def check_rows(values, clusters) -> tuple[np.ndarray, np.ndarray]:
    """values as floats (float32 stays so) and clusters as codes 0..c-1, or an error when their lengths differ."""
    values, labels = np.asarray(values), np.asarray(clusters)
    values = values if values.dtype == np.float32 else values.astype(float, copy=False)
    if values.ndim == 0 or labels.shape != values.shape[:1]:
        raise ValueError(
            f"values {values.shape} and clusters {labels.shape} need one row for each question"
        )
    return values, np.unique(labels, return_inverse=True)[1].reshape(-1)


def code_groups(groups, n: int) -> tuple[np.ndarray, list]:
    """Codes 0..k-1 (-1: no group) and names, in order of appearance or of the categories."""
    groups = pd.Series(groups).reset_index(drop=True)
    if len(groups) != n:
        raise ValueError(
            f"{len(groups)} groups for {n} questions: give one group for each question"
        )
    if not isinstance(groups.dtype, pd.CategoricalDtype):
        groups = pd.Series(pd.Categorical(groups, categories=groups.dropna().unique()))
    groups = groups.cat.remove_unused_categories()
    return groups.cat.codes.to_numpy().astype(int), list(groups.cat.categories)


def index_cells(shape, axes) -> pd.DataFrame:
    """A row for each cell of an array of this shape, in its order, with a column for each name in `axes`."""
    if len(axes) != len(shape):
        raise ValueError(
            f"values have {len(shape)} axes after the questions, but axes names {tuple(axes)}"
        )
    cells = np.indices(shape).reshape(len(shape), math.prod(shape))
    return pd.DataFrame(dict(zip(axes, cells, strict=True)), index=range(cells.shape[1]))


def divide(a, b) -> np.ndarray:
    """a / b, NaN where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=float), b)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)


def _sum_squares(matrices):
    """For each square matrix, the square of its trace plus the trace of its square."""
    squares = (matrices * matrices.transpose(0, 2, 1)).sum((1, 2))
    return np.trace(matrices, axis1=1, axis2=2) ** 2 + squares
