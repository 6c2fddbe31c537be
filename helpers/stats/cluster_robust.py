"""Least squares whose errors come in clusters (the images): estimates, variances, degrees of freedom.

The arithmetic under `helpers.stats.cluster_robust`, for many columns of values at once. Variances are those of the jackknife
over clusters (CV3 in MacKinnon, Nielsen and Webb 2023, "Fast and reliable jackknife and bootstrap methods for
cluster-robust inference"): leave out one image at a time and see how the estimate moves. With few clusters, or
clusters of unequal size, such variances are off by a known factor and vary like a chi-square with fewer degrees
of freedom than clusters: both are found as in Bell and McCaffrey (2002, Survey Methodology 28), as if errors
were independent and alike, which also suits errors that are not (Hansen 2025, "Standard errors for
difference-in-difference regression", Journal of Applied Econometrics 40).
"""

import math
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse, stats
from statsmodels.stats.multitest import multipletests

MIN_QUESTIONS, MIN_CLUSTERS = 10, 5
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


def sum_by_image(flat: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def divide_or_nan(a, b) -> np.ndarray:
    """a / b, NaN where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=float), b)
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)


def _sum_squares(matrices):
    """For each square matrix, the square of its trace plus the trace of its square."""
    squares = (matrices * matrices.transpose(0, 2, 1)).sum((1, 2))
    return np.trace(matrices, axis1=1, axis2=2) ** 2 + squares


class Comparison(NamedTuple):
    """Tables of `compare_groups`: `omnibus` has a row per column of values, `pairs` a row per pair."""

    omnibus: pd.DataFrame
    pairs: pd.DataFrame


def has_enough_data(n, n_clusters):
    """Whether n questions on n_clusters images tell anything: at least 10 questions on at least 5 images."""
    return (np.asarray(n) >= MIN_QUESTIONS) & (np.asarray(n_clusters) >= MIN_CLUSTERS)


def mean_difference_test(values, clusters, axes=()) -> pd.DataFrame:
    """Is the mean of a paired difference 0 (intact minus ablated, trained minus untrained)? Errors clustered by image.

    values: (n, ...), one row a question, NaN left out; clusters: (n,). axes: a name for each axis of values after the
    first. A row a column of values: the axes, estimate, se, df, low, high (95 %, t), p (not corrected), n, n_clusters.
    A t test with the errors of `compare_groups`; with a question an image it is the ordinary one. NaN where the
    questions are not `has_enough_data`, and p also where nothing differs from 0. A difference that is the same in every question
    has no error to be measured by: its p is that of flipping the clusters' signs, 2^(1 - clusters).
    """
    values, clusters = check_rows(values, clusters)
    index = index_cells(values.shape[1:], axes)
    sums, counts = sum_by_image(values.reshape(len(values), len(index)), clusters)
    found = np.broadcast_arrays(
        *fit_means(sums, counts), counts.sum(0).astype(int), (counts > 0).sum(0)
    )
    estimate, variance, df, n, n_clusters = found
    told = has_enough_data(n, n_clusters)
    variance = np.where(variance > (1e-9 * estimate) ** 2, variance, 0)
    parts = _test_t(estimate, np.where(told, variance, np.nan), np.where(told, df, np.nan))
    exact = told & (variance == 0) & (estimate != 0)
    parts["p"] = np.where(exact, 2.0 ** (1 - n_clusters), parts["p"])
    return index.assign(estimate=estimate, **parts, n=n, n_clusters=n_clusters)


def compare_groups(
    values, groups, clusters, covariates=None, method="fdr_bh", axes=()
) -> Comparison:
    """Do groups of questions differ in mean, and which pairs? Errors are clustered by image.

    values: (n,), or (n, ...) such as (n, layers, heads) with axes=("layer", "head"): every column is
    compared, and p is corrected over all of them. groups, clusters: (n,). covariates: None or a table
    (n, c), such as question length and patch count: differences then hold at equal covariates.

    omnibus: the axes, F, df, df_denom, p, p_corrected, n, n_clusters, n_groups.
    pairs: the axes, group_a, group_b, difference (a - b), se, df, low, high (95 %, not corrected), p,
    p_corrected (over every column and pair), hedges_g, n_a, n_b, clusters_a, clusters_b.

    Ordinary least squares; variances from leaving out an image at a time, and degrees of freedom from how
    the groups lie in the images (`helpers.stats.cluster_robust`): a group on few images counts as few. The omnibus is
    the approximate Hotelling test of Pustejovsky and Tipton (2018). How often these tests err was measured
    with `helpers.stats.simulate`; see tests/stats/test_simulate.py. Hedges g: the (adjusted) difference over the pooled
    standard deviation of the groups' raw values, times 1 - 3 / (4 df - 1).

    Groups that are not `has_enough_data` are left out of the fit, and their pairs are NaN. So is a column whose
    covariates cannot be told apart from its groups; without variance a difference has no error and no p.
    """
    values, clusters = check_rows(values, clusters)
    codes, names = code_groups(groups, len(values))
    extra = pd.DataFrame(np.empty((len(values), 0)) if covariates is None else covariates).to_numpy(
        float
    )
    if len(extra) != len(values):
        raise ValueError(f"{len(extra)} rows of covariates for {len(values)} questions")
    index = index_cells(values.shape[1:], axes)
    first, second = np.array([*combinations(range(len(names)), 2)], dtype=int).reshape(-1, 2).T
    flat = values.reshape(len(values), len(index))
    usable = (codes >= 0) & ~np.isnan(extra).any(1)
    omnibus, pairs = {}, {}
    for columns, valid in _split_by_missing(flat):
        found = _compare_columns(
            flat[:, columns], codes, clusters, extra, usable & valid, first, second
        )
        for table, part, width in zip((omnibus, pairs), found, ((), first.shape), strict=True):
            for name, array in part.items():
                whole = table.setdefault(
                    name, np.empty((len(index), *width), np.asarray(array).dtype)
                )
                whole[columns] = array
    labels = pd.DataFrame([*combinations(names, 2)], columns=["group_a", "group_b"])
    omnibus = index.assign(**omnibus)
    pairs = index.merge(labels, how="cross").assign(
        **{name: array.ravel() for name, array in pairs.items()}
    )
    for table in (omnibus, pairs):
        table.insert(table.columns.get_loc("p") + 1, "p_corrected", correct_p(table["p"], method))
    return Comparison(omnibus, pairs)


def minimum_detectable_effect(se, df, level=0.05, power=0.8) -> np.ndarray:
    """The smallest true difference (or mean) that a test with this error finds with the given power.

    se, df: columns of `compare_groups` pairs or of `mean_difference_test`, any shape; the result has the units of se.
    level: of the single test, such as `effective_alpha`. (t_{1 - level / 2} + t_{power}) se, with df degrees
    of freedom: Bloom (1995, "Minimum detectable effects", Evaluation Review 19).
    """
    return (stats.t.isf(level / 2, df) + stats.t.ppf(power, df)) * np.asarray(se, dtype=float)


def effective_alpha(p, level=0.05, method="fdr_bh") -> float:
    """How small the next uncorrected p must be, for one more discovery among these tests.

    p: uncorrected, any shape, NaN not tested; level, method: as for `correct_p`. With R of m tests found,
    Benjamini-Hochberg asks for (R + 1) level / m, Holm for level / (m - R). NaN where nothing was tested.
    """
    found, tested = (
        int((correct_p(p, method) <= level).sum()),
        int((~np.isnan(np.asarray(p, float))).sum()),
    )
    if not tested:
        return np.nan
    found = min(found, tested - 1)  # with all of them found, the last had to pass the whole level
    return level * (found + 1) / tested if method == "fdr_bh" else level / (tested - found)


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


def _split_by_missing(flat):
    """Columns (n, k) with the same questions missing, as (their numbers, valid (n,)): one design serves them."""
    valid = ~np.isnan(flat)
    packed = np.packbits(valid, axis=0)
    kinds = np.unique(packed, axis=1, return_inverse=True)[1].reshape(-1)
    for kind in range(kinds.max(initial=-1) + 1):
        columns = np.flatnonzero(kinds == kind)
        yield columns, valid[:, columns[0]]


def _compare_columns(y, codes, clusters, covariates, used, first, second):
    """Columns (n, k) with the same questions in use: omnibus as arrays (k,) and pairs as arrays (k, pairs)."""
    k = codes.max(initial=-1) + 1
    n = np.bincount(codes[used], minlength=k)
    n_clusters = np.array(
        [len(np.unique(clusters[used & (codes == code)])) for code in range(k)], dtype=int
    )
    told = np.flatnonzero(has_enough_data(n, n_clusters))
    used = used & np.isin(codes, told)
    y, small, owners = y[used].astype(float), np.searchsorted(told, codes[used]), clusters[used]
    design = _make_design(small, covariates[used]) if len(told) > 1 else None
    omnibus, pairs = _empty_tests(y.shape[1], len(first))
    if design is not None:
        floor = (1e-12 * _find_largest(y)) ** 2
        fit = fit_columns(y, design, np.unique(owners, return_inverse=True)[1].reshape(-1))
        omnibus |= _test_omnibus(fit, len(told), floor)
        place = np.full(k, -1)
        place[told] = np.arange(len(told))
        for pair in np.flatnonzero((place[first] >= 0) & (place[second] >= 0)):
            for name, column in _test_pair(
                fit, place[first[pair]], place[second[pair]], floor
            ).items():
                pairs[name][:, pair] = column
        spread = np.full((y.shape[1], k), np.nan)
        spread[:, told] = np.stack([y[small == group].var(0) for group in range(len(told))], axis=1)
        pairs["hedges_g"] = _find_hedges_g(
            np.where(pairs["se"] > 0, pairs["difference"], np.nan), spread, n, first, second
        )
    omnibus |= {"n": used.sum(), "n_clusters": len(np.unique(owners)), "n_groups": len(told)}
    sizes = {"n_a": n[first], "n_b": n[second]}
    return omnibus, pairs | sizes | {
        "clusters_a": n_clusters[first],
        "clusters_b": n_clusters[second],
    }


def _empty_tests(n_columns, n_pairs):
    """Both tables of `_compare_columns`, NaN, in their order of columns."""
    omnibus = {name: np.full(n_columns, np.nan) for name in ("F", "df", "df_denom", "p")}
    names = ("difference", "se", "df", "low", "high", "p", "hedges_g")
    return omnibus, {name: np.full((n_columns, n_pairs), np.nan) for name in names}


def _make_design(codes, covariates):
    """A column of ones and zeros for each group, then the centred covariates that vary; None if not of full rank."""
    spread = covariates.std(0)
    varied = spread > 1e-12 * np.abs(covariates).max(0)
    scaled = (covariates - covariates.mean(0))[:, varied] / spread[varied]
    design = np.hstack([np.eye(codes.max() + 1)[codes], scaled])
    return design if np.linalg.matrix_rank(design) == design.shape[1] else None


def _test_omnibus(fit, n_groups, floor):
    """Approximate Hotelling test that all groups are equal: (m - q + 1) / (m q) times Wald's W ~ F(q, m - q + 1)."""
    q, p = n_groups - 1, len(fit.coefficients)
    contrast = np.hstack([-np.ones((q, 1)), np.eye(q), np.zeros((q, p - q - 1))])
    scale, m = calibrate_contrast(fit, contrast)
    differences, spread = (
        (contrast @ fit.coefficients).T,
        contrast @ fit.covariance @ contrast.T / scale,
    )
    size = np.trace(spread, axis1=1, axis2=2)
    rank = np.linalg.matrix_rank(spread, tol=1e-12 * size, hermitian=True)
    told = (size > floor) & (rank == q) & (m > q - 1)
    inverse = np.linalg.inv(np.where(told[:, None, None], spread, np.eye(q)))
    wald = np.einsum("ki,kij,kj->k", differences, inverse, differences)
    parts = {"F": wald * (m - q + 1) / (m * q), "df": q, "df_denom": m - q + 1}
    parts = {name: np.where(told, part, np.nan) for name, part in parts.items()}
    return parts | {"p": stats.f.sf(*parts.values())}


def _test_pair(fit, a, b, floor):
    """Difference of two coefficients, of every column: a dict of arrays (k,)."""
    contrast = np.zeros(len(fit.coefficients))
    contrast[a], contrast[b] = 1, -1
    scale, df = calibrate_contrast(fit, contrast[None])
    variance = contrast @ fit.covariance @ contrast / scale
    told = variance > np.maximum(floor, 1e-12 * (fit.covariance[:, a, a] + fit.covariance[:, b, b]))
    difference = contrast @ fit.coefficients
    found = _test_t(difference, np.where(told, variance, np.nan), np.where(told, df, np.nan))
    return {"difference": difference} | found


def _test_t(estimate, variance, df):
    """Standard error, degrees of freedom, 95 % interval and two-sided p of estimates against 0."""
    se = np.sqrt(variance)
    half = stats.t.isf(0.025, df) * se
    p = 2 * stats.t.sf(np.abs(divide_or_nan(estimate, se)), df)
    return {"se": se, "df": df, "low": estimate - half, "high": estimate + half, "p": p}


def _find_hedges_g(difference, spread, n, first, second):
    """Differences (k, pairs) over the groups' pooled standard deviation, from their variances (k, groups)."""
    df = n[first] + n[second] - 2
    pooled = divide_or_nan(n[first] * spread[:, first] + n[second] * spread[:, second], df) ** 0.5
    return divide_or_nan(difference, pooled) * (1 - divide_or_nan(3.0, 4 * df - 1.0))


def _find_largest(flat):
    """The largest size of a value in each column (0 without any), beside which rounding errors are judged."""
    return np.fmax.reduce(np.abs(flat), axis=0, initial=0).astype(float)
