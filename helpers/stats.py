"""Intervals and comparisons for questions that come in clusters (the images).

Questions on one image are alike, so an image, not a question, is what a repetition of the study would draw
anew: intervals resample images, and tests use errors clustered by image. Nothing here raises or warns
because the data are few: what cannot be told is NaN, with its n beside it (`enough` is the rule).
"""

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse, stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests

MIN_QUESTIONS, MIN_CLUSTERS = 10, 5
CHUNK_WEIGHTS = 4_000_000  # bootstrap weights held at once: 32 MB as counts, 32 MB as floats
CHUNK_VALUES = 4_000_000  # values summed within clusters at once: 32 MB


class Interval(NamedTuple):
    """An estimate and its interval; every field has the shape of one question's values."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    n_clusters: np.ndarray


class Comparison(NamedTuple):
    """Tables of `compare_groups`: `omnibus` has a row per column of values, `pairs` a row per pair."""

    omnibus: pd.DataFrame
    pairs: pd.DataFrame


def enough(n, n_clusters):
    """Whether n questions on n_clusters images tell anything: at least 10 questions on at least 5 images."""
    return (np.asarray(n) >= MIN_QUESTIONS) & (np.asarray(n_clusters) >= MIN_CLUSTERS)


def bootstrap_mean(values, clusters, draws=1000, seed=0, level=0.95) -> Interval:
    """Mean over questions with an interval from a bootstrap over clusters (images).

    values: (n, ...), one row a question; NaN is left out, column by column. clusters: (n,) labels.
    Returns fields of shape (...). `low` and `high` are NaN with fewer than two clusters.

    A paired difference (trained minus untrained, intact minus ablated, on the same questions) needs nothing
    else: pass `values_a - values_b`. One seed and one set of clusters give one set of draws.

    Draws are multinomial counts of whole clusters, so a replicate is a ratio of two matrix products. The
    percentile interval is widened for few clusters as in Hesterberg (2015, The American Statistician 69),
    "expanded percentile": quantiles at Phi(-sqrt(c / (c - 1)) t) with t of c - 1 degrees of freedom.
    """
    values, clusters = _check_rows(values, clusters)
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    sums, counts = _sum_clusters(flat, clusters)
    n, n_clusters = counts.sum(0).astype(int), (counts > 0).sum(0)
    low, high = _percentiles(_bootstrap_ratios(sums, counts, draws, seed), n_clusters, level)
    found = Interval(divide(sums.sum(0), n), low, high, n, n_clusters)
    shape = values.shape[1:]
    return Interval(*(np.broadcast_to(field, flat.shape[1:]).reshape(shape)[()] for field in found))


def bootstrap_by_group(values, groups, clusters, draws=1000, seed=0, level=0.95, axes=()) -> pd.DataFrame:
    """Mean and interval of each group of questions (question families), as a tidy table.

    values: (n, ...); groups, clusters: (n,). axes: a name for each axis of values after the first, such as
    ("layer", "head"). Columns: group, the axes, estimate, low, high, n, n_clusters. Groups come in order of
    appearance (a pandas Categorical: its own order); questions without a group are left out.
    """
    values, clusters = _check_rows(values, clusters)
    codes, names = _group_codes(groups, len(values))
    columns = ["group", *axes, *Interval._fields]
    tables = [pd.DataFrame(columns=columns)]
    for code, name in enumerate(names):
        rows = codes == code
        interval = bootstrap_mean(values[rows], clusters[rows], draws, seed, level)
        tables.append(interval_table(interval, axes).assign(group=name))
    return pd.concat(tables[1:] or tables, ignore_index=True)[columns]


def interval_table(interval: Interval, axes=()) -> pd.DataFrame:
    """An Interval as a tidy table: a row per cell, one index column for each name in `axes`."""
    index = _index_table(np.shape(interval.estimate), axes)
    return index.assign(**{field: np.ravel(array) for field, array in interval._asdict().items()})


def compare_groups(values, groups, clusters, covariates=None, method="fdr_bh", axes=()) -> Comparison:
    """Do groups of questions differ in mean, and which pairs? Errors are clustered by image.

    values: (n,), or (n, ...) such as (n, layers, heads) with axes=("layer", "head"): every column is
    compared, and p is corrected over all of them. groups, clusters: (n,). covariates: None or a table
    (n, c), such as question length and patch count: differences then hold at equal covariates.

    omnibus: the axes, F, df, df_denom, p, p_corrected, n, n_clusters, n_groups.
    pairs: the axes, group_a, group_b, difference (a - b), se, df, low, high (95 %, not corrected), p,
    p_corrected (over every column and pair), hedges_g, n_a, n_b, clusters_a, clusters_b.

    Ordinary least squares with cluster-robust (CR1) covariance, from statsmodels. With few clusters such
    tests reject too often under the normal or chi-square, so a difference is referred to t with Welch's
    degrees of freedom on the clusters of its two groups (near clusters - 1 of the rarer group where that is
    much rarer, at most all clusters - 1), the omnibus to Hotelling's T-squared, F(q, clusters - q). Under no
    effect, tests at 5 % then reject 4 to 6 % with 80 or 300 images and 4 to 8 % with 12 to 30 (1,500 runs of
    `rejection_rates` in tests/test_stats.py): still a little too often with few. Hedges g: the (adjusted)
    difference over the pooled standard deviation of the groups' raw values, times 1 - 3 / (4 df - 1).

    Groups that are not `enough` are left out of the fit, and their pairs are NaN. So is what has no
    variance, and a column whose covariates cannot be told apart from its groups.
    """
    values, clusters = _check_rows(values, clusters)
    codes, names = _group_codes(groups, len(values))
    extra = pd.DataFrame(np.empty((len(values), 0)) if covariates is None else covariates).to_numpy(float)
    if len(extra) != len(values):
        raise ValueError(f"{len(extra)} rows of covariates for {len(values)} questions")
    index = _index_table(values.shape[1:], axes)
    first, second = np.array([*combinations(range(len(names)), 2)], dtype=int).reshape(-1, 2).T
    flat = values.reshape(len(values), len(index))
    found = [
        _compare_column(column.astype(float), codes, clusters, extra, first, second) for column in flat.T
    ]
    labels = pd.DataFrame([*combinations(names, 2)], columns=["group_a", "group_b"])
    omnibus, pairs = (pd.concat([pd.DataFrame(fit[i]) for fit in found], ignore_index=True) for i in (0, 1))
    omnibus = pd.concat([index, omnibus], axis=1)
    pairs = pd.concat([index.merge(labels, how="cross"), pairs], axis=1)
    for table in (omnibus, pairs):
        table.insert(table.columns.get_loc("p") + 1, "p_corrected", correct_p(table["p"], method))
    return Comparison(omnibus, pairs)


def test_mean(values, clusters, axes=()) -> pd.DataFrame:  # noqa: PT028 (not a test of ours)
    """Is the mean of a paired difference 0 (intact minus ablated, trained minus untrained)? Errors clustered by image.

    values: (n, ...), one row a question, NaN left out; clusters: (n,). axes: a name for each axis of values after the
    first. A row a column of values: the axes, estimate, se (CR1), df (clusters - 1), low, high (95 %, t), p, n,
    n_clusters. NaN where the questions are not `enough`, and p also where nothing differs from 0. A difference that is the
    same in every question has no error to be measured by: its p is that of flipping the clusters' signs, 2^(1 - clusters).
    """
    values, clusters = _check_rows(values, clusters)
    index = _index_table(values.shape[1:], axes)
    sums, counts = _sum_clusters(values.reshape(len(values), len(index)), clusters)
    n, n_clusters = (
        np.broadcast_to(part, len(index)).astype(int) for part in (counts.sum(0), (counts > 0).sum(0))
    )
    mean = divide(sums.sum(0), n)
    squares = ((sums - counts * mean) ** 2).sum(0) * divide(n_clusters, n_clusters - 1)
    se = np.where(enough(n, n_clusters), divide(np.sqrt(squares), n), np.nan)
    se[se <= 1e-9 * np.abs(mean)] = 0
    df = np.where(np.isnan(se), np.nan, n_clusters - 1)
    half = stats.t.ppf(0.975, df) * se
    p = np.where(
        se > 0,
        2 * stats.t.sf(divide(np.abs(mean), se), df),
        np.where(mean != 0, 2.0 ** (1 - n_clusters), np.nan),
    )
    p[np.isnan(se)] = np.nan
    found = {"estimate": mean, "se": se, "df": df, "low": mean - half, "high": mean + half, "p": p}
    return index.assign(**found, n=n, n_clusters=n_clusters)


def correct_p(p, method="fdr_bh") -> np.ndarray:
    """Correct p values over everything that was tested: "fdr_bh" (Benjamini-Hochberg) or "holm".

    p: any shape; NaN (not tested) stays NaN and does not count as a test.
    """
    if method not in ("fdr_bh", "holm"):
        raise ValueError(f"correct_p: method {method!r} is not known: use 'fdr_bh' or 'holm'")
    corrected = np.array(p, dtype=float)
    tested = ~np.isnan(corrected)
    if tested.any():
        corrected[tested] = multipletests(corrected[tested], method=method)[1]
    return corrected


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
    low, high = _percentiles(_spearman(x[rows], y[rows])[:, None], np.array([n]), level)
    return Interval(_spearman(x[None], y[None])[0], low[0], high[0], n, n)


def _check_rows(values, clusters):
    """values as floats (float32 stays so) and clusters as codes 0..c-1, or an error when their lengths differ."""
    values, labels = np.asarray(values), np.asarray(clusters)
    values = values if values.dtype == np.float32 else values.astype(float, copy=False)
    if values.ndim == 0 or labels.shape != values.shape[:1]:
        raise ValueError(f"values {values.shape} and clusters {labels.shape} need one row for each question")
    return values, np.unique(labels, return_inverse=True)[1].reshape(-1)


def _group_codes(groups, n):
    """Codes 0..k-1 (-1: no group) and names, in order of appearance or of the categories."""
    groups = pd.Series(groups).reset_index(drop=True)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} questions: give one group for each question")
    if not isinstance(groups.dtype, pd.CategoricalDtype):
        groups = pd.Series(pd.Categorical(groups, categories=groups.dropna().unique()))
    groups = groups.cat.remove_unused_categories()
    return groups.cat.codes.to_numpy().astype(int), list(groups.cat.categories)


def _index_table(shape, axes) -> pd.DataFrame:
    if len(axes) != len(shape):
        raise ValueError(f"values have {len(shape)} axes after the questions, but axes names {tuple(axes)}")
    cells = np.indices(shape).reshape(len(shape), math.prod(shape))
    return pd.DataFrame(dict(zip(axes, cells, strict=True)), index=range(cells.shape[1]))


def _sum_clusters(flat, clusters):
    """Sums and counts of what is not NaN within each cluster, in float64: (n, k) -> (clusters, k), (clusters, k or 1).

    Without NaN all columns have the same counts: then they are one column, and a bootstrap half the work.
    """
    n, n_clusters, k = len(clusters), clusters.max(initial=-1) + 1, flat.shape[1]
    members = sparse.csr_array((np.ones(n), (clusters, np.arange(n))), shape=(n_clusters, n))
    sums = np.empty((n_clusters, k))
    counts = np.empty_like(sums) if np.isnan(flat).any() else members.sum(1)[:, None]
    step = max(1, CHUNK_VALUES // max(1, n))  # columns at once: a float32 table never stands whole in float64
    for start in range(0, k, step):
        columns = slice(start, start + step)
        part = flat[:, columns].astype(float)
        if counts.shape == sums.shape:
            valid = ~np.isnan(part)
            part[~valid] = 0
            counts[:, columns] = members @ valid.astype(float)
        sums[:, columns] = members @ part
    return sums, counts


def divide(a, b):
    """a / b, NaN where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=float), b)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)


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


def _percentiles(replicates, n_clusters, level):
    """Expanded-percentile bounds (k,), (k,) of replicates (draws, k); NaN where n_clusters < 2."""
    ordered = np.sort(replicates, axis=0)  # NaN (draws without a single value) last
    drawn = (~np.isnan(ordered)).sum(0)
    c = np.maximum(n_clusters, 2)
    tail = stats.norm.cdf(np.sqrt(c / (c - 1)) * stats.t.ppf((1 - level) / 2, c - 1))
    last, columns = np.maximum(drawn - 1, 0), np.arange(ordered.shape[1])
    bounds = []
    for share in (tail, 1 - tail):
        below = np.floor(share * last).astype(int)
        step = share * last - below
        bound = (1 - step) * ordered[below, columns] + step * ordered[np.minimum(below + 1, last), columns]
        bounds.append(np.where(n_clusters >= 2, bound, np.nan))
    return bounds


def _compare_column(y, codes, clusters, covariates, first, second):
    """One column of values: its row of the omnibus table and its rows of the pairs table, as dicts."""
    used = (codes >= 0) & ~np.isnan(y) & ~np.isnan(covariates).any(1)
    k = codes.max(initial=-1) + 1
    n = np.bincount(codes[used], minlength=k)
    n_clusters = np.array([len(np.unique(clusters[used & (codes == code)])) for code in range(k)], dtype=int)
    told = np.flatnonzero(enough(n, n_clusters))
    used &= np.isin(codes, told)
    total = len(np.unique(clusters[used]))
    means, covariance, spread = np.full(k, np.nan), np.full((k, k), np.nan), np.full(k, np.nan)
    if len(told) > 1:
        small = np.searchsorted(told, codes[used])
        fit = _fit_groups(y[used], small, clusters[used], covariates[used])
        means[told], covariance[np.ix_(told, told)] = fit
        spread[told] = [y[used][small == group].var() for group in range(len(told))]
    omnibus = _test_omnibus(means[told], covariance[np.ix_(told, told)], total)
    omnibus |= {"n": [used.sum()], "n_clusters": [total], "n_groups": [len(told)]}
    pairs = _test_pairs(means, covariance, n_clusters, total, first, second)
    df = n[first] + n[second] - 2
    pooled = divide(n[first] * spread[first] + n[second] * spread[second], df) ** 0.5
    pooled[pooled < 1e-9 * np.abs(pairs["difference"])] = 0
    pairs["hedges_g"] = divide(pairs["difference"], pooled) * (1 - divide(3.0, 4 * df - 1.0))
    sizes = {
        "n_a": n[first],
        "n_b": n[second],
        "clusters_a": n_clusters[first],
        "clusters_b": n_clusters[second],
    }
    return omnibus, pairs | sizes


def _fit_groups(y, codes, clusters, covariates):
    """Means of the groups at average covariates and their CR1 covariance; NaN where they cannot be told."""
    k = codes.max() + 1
    spread = covariates.std(0)
    varied = spread > 1e-12 * np.abs(covariates).max(0)
    design = np.hstack([np.eye(k)[codes], ((covariates - covariates.mean(0))[:, varied] / spread[varied])])
    if np.linalg.matrix_rank(design) < design.shape[1] or y.std() <= 1e-12 * np.abs(y).max():
        return np.full(k, np.nan), np.full((k, k), np.nan)
    fit = OLS(y, design).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    covariance = fit.cov_params()[:k, :k]
    return fit.params[:k], np.where(np.abs(covariance) > (1e-12 * np.abs(y).max()) ** 2, covariance, 0)


def _test_omnibus(means, covariance, clusters):
    """Hotelling's test that all means are equal: (c - q) / ((c - 1) q) times Wald's W ~ F(q, c - q)."""
    q, f, df, df_denom = len(means) - 1, np.nan, np.nan, np.nan
    if 1 <= q < clusters and not np.isnan(covariance).any():
        contrast = np.hstack([-np.ones((q, 1)), np.eye(q)])
        spread, differences = contrast @ covariance @ contrast.T, contrast @ means
        if np.linalg.matrix_rank(spread, tol=1e-12 * np.trace(covariance)) == q:
            df, df_denom = q, clusters - q
            f = differences @ np.linalg.solve(spread, differences) * df_denom / ((clusters - 1) * q)
    return {"F": [f], "df": [df], "df_denom": [df_denom], "p": [stats.f.sf(f, df, df_denom)]}


def _test_pairs(means, covariance, n_clusters, total, first, second):
    """Differences a - b with standard error, Welch degrees of freedom, 95 % interval and p."""
    variance = np.diag(covariance)
    difference = means[first] - means[second]
    squared = variance[first] + variance[second] - 2 * covariance[first, second]
    se = np.sqrt(np.where(squared > 1e-12 * (variance[first] + variance[second]), squared, np.nan))
    own = variance**2 / np.maximum(n_clusters - 1, 1)
    welch = divide((variance[first] + variance[second]) ** 2, own[first] + own[second])
    df = np.where(np.isnan(se), np.nan, np.fmin(welch, total - 1))
    half = stats.t.ppf(0.975, df) * se
    low, high, p = difference - half, difference + half, 2 * stats.t.sf(np.abs(difference / se), df)
    return {"difference": difference, "se": se, "df": df, "low": low, "high": high, "p": p}


def _spearman(x, y):
    """Row-wise Spearman correlations of (m, n) arrays; NaN for rows where either is constant."""
    a, b = (stats.rankdata(values, axis=1) - (x.shape[1] + 1) / 2 for values in (x, y))
    return divide((a * b).sum(1), np.sqrt((a**2).sum(1) * (b**2).sum(1)))
