"""Intervals by resampling: means over questions on images, and rank correlations over heads."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from helpers.stats.cluster_robust import (
    check_rows,
    code_groups,
    divide,
    fit_means,
    index_cells,
    sum_clusters,
)

CHUNK_WEIGHTS = 4_000_000  # bootstrap weights held at once: 32 MB as counts, 32 MB as floats


class Interval(NamedTuple):
    """An estimate and its interval; every field has the shape of one question's values."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    n_clusters: np.ndarray


def bootstrap_mean(values, clusters, draws=1000, seed=0, level=0.95) -> Interval:
    """Mean over questions with an interval from a bootstrap over clusters (images).

    values: (n, ...), one row a question; NaN is left out, column by column. clusters: (n,) labels.
    Returns fields of shape (...). `low` and `high` are NaN with fewer than two clusters.

    A paired difference (trained minus untrained, intact minus ablated, on the same questions) needs nothing
    else: pass `values_a - values_b`. One seed and one set of clusters give one set of draws.

    Draws are multinomial counts of whole clusters, so a replicate is a ratio of two matrix products. The
    percentile interval is widened for few or unequal clusters (`_expand_tails`).
    """
    values, clusters = check_rows(values, clusters)
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    sums, counts = sum_clusters(flat, clusters)
    n, n_clusters = counts.sum(0).astype(int), (counts > 0).sum(0)
    low, high = _percentiles(
        _bootstrap_ratios(sums, counts, draws, seed), _expand_tails(counts, level)
    )
    found = Interval(divide(sums.sum(0), n), low, high, n, n_clusters)
    shape = values.shape[1:]
    return Interval(*(np.broadcast_to(field, flat.shape[1:]).reshape(shape)[()] for field in found))


def bootstrap_by_group(
    values, groups, clusters, draws=1000, seed=0, level=0.95, axes=()
) -> pd.DataFrame:
    """Mean and interval of each group of questions (question families), as a tidy table.

    values: (n, ...); groups, clusters: (n,). axes: a name for each axis of values after the first, such as
    ("layer", "head"). Columns: group, the axes, estimate, low, high, n, n_clusters. Groups come in order of
    appearance (a pandas Categorical: its own order); questions without a group are left out.
    """
    values, clusters = check_rows(values, clusters)
    codes, names = code_groups(groups, len(values))
    columns = ["group", *axes, *Interval._fields]
    tables = [pd.DataFrame(columns=columns)]
    for code, name in enumerate(names):
        rows = codes == code
        interval = bootstrap_mean(values[rows], clusters[rows], draws, seed, level)
        tables.append(interval_table(interval, axes).assign(group=name))
    return pd.concat(tables[1:] or tables, ignore_index=True)[columns]


def interval_table(interval: Interval, axes=()) -> pd.DataFrame:
    """An Interval as a tidy table: a row per cell, one index column for each name in `axes`."""
    index = index_cells(np.shape(interval.estimate), axes)
    return index.assign(**{field: np.ravel(array) for field, array in interval._asdict().items()})


def rank_correlation(x, y, draws=1000, seed=0, level=0.95) -> Interval:
    """Spearman correlation of two scores of the same heads, with a percentile interval over heads.

    x, y: same shape, one value a head; pairs with a NaN are left out. The interval treats heads as drawn
    independently: it describes this model's heads, not other models. NaN below 3 heads or for a constant.
    """
    x, y = np.ravel(x).astype(float), np.ravel(y).astype(float)
    if len(x) != len(y):
        raise ValueError(f"rank_correlation: {len(x)} values of x but {len(y)} of y")
    both = ~(np.isnan(x) | np.isnan(y))
    x, y, n = x[both], y[both], int(both.sum())
    if n < 3:
        return Interval(np.nan, np.nan, np.nan, n, n)
    rows = np.random.default_rng(seed).integers(n, size=(draws, n))
    low, high = _percentiles(
        _spearman(x[rows], y[rows])[:, None], _expand_tails(np.ones((n, 1)), level)
    )
    return Interval(_spearman(x[None], y[None])[0], low[0], high[0], n, n)


def _bootstrap_ratios(sums, counts, draws, seed):
    """Replicates (draws, k) of sum / count over clusters drawn with replacement, in chunks of draws."""
    n_clusters = len(sums)
    replicates = np.full((draws, sums.shape[1]), np.nan)
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_WEIGHTS // max(1, n_clusters))
    for start in range(0, draws if n_clusters else 0, chunk):
        rows = slice(start, min(start + chunk, draws))
        drawn = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), rows.stop - start)
        weights = drawn.astype(float)  # once, for both products
        replicates[rows] = divide(weights @ sums, weights @ counts)
    return replicates


def _expand_tails(counts, level):
    """Share of replicates to cut off below and above, for counts (clusters, k) of questions in clusters.

    A bootstrap is too narrow with few clusters. Hesterberg (2015, The American Statistician 69), "expanded
    percentile", cuts at Phi(-sqrt(c / (c - 1)) t) with t of c - 1 degrees of freedom. For clusters of unequal
    size the variance falls short by more than (c - 1) / c, and the degrees of freedom by more than 1: both
    here from the sizes, and equal to his where the sizes are. NaN with fewer than two clusters.
    """
    shortfall = 1 - (divide(counts, counts.sum(0)) ** 2).sum(0)
    df = fit_means(np.zeros_like(counts), counts)[2]
    return stats.norm.cdf(
        stats.t.ppf((1 - level) / 2, df) / np.sqrt(np.where(df > 0, shortfall, np.nan))
    )


def _percentiles(replicates, tail):
    """Bounds (k,), (k,) of replicates (draws, k) with a share `tail` (k or 1) cut off on each side."""
    ordered = np.sort(replicates, axis=0)  # NaN (draws without a single value) last
    last, columns = np.maximum((~np.isnan(ordered)).sum(0) - 1, 0), np.arange(ordered.shape[1])
    bounds = []
    for share in (tail, 1 - tail):
        place = np.nan_to_num(share) * last
        below = np.floor(place).astype(int)
        step = np.where(np.isnan(share), np.nan, place - below)
        bounds.append(
            (1 - step) * ordered[below, columns]
            + step * ordered[np.minimum(below + 1, last), columns]
        )
    return bounds


def _spearman(x, y):
    """Row-wise Spearman correlations of (m, n) arrays; NaN for rows where either is constant."""
    a, b = (stats.rankdata(values, axis=1) - (x.shape[1] + 1) / 2 for values in (x, y))
    return divide((a * b).sum(1), np.sqrt((a**2).sum(1) * (b**2).sum(1)))
