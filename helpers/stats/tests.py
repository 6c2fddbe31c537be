"""Intervals and comparisons for questions that come in clusters (the images).

Questions on one image are alike, so an image, not a question, is what a repetition of the study would draw
anew: intervals resample images, and tests use errors clustered by image. Nothing here raises or warns
because the data are few: what cannot be told is NaN, with its n beside it (`enough` is the rule).
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from helpers.stats.bootstrap import (
    Interval,
    bootstrap_by_group,
    bootstrap_mean,
    interval_table,
    rank_correlation,
)
from helpers.stats.cluster_robust import (
    calibrate_contrast,
    check_rows,
    code_groups,
    divide,
    fit_columns,
    fit_means,
    index_cells,
    sum_clusters,
)

__all__ = [
    "Comparison", "Interval", "bootstrap_by_group", "bootstrap_mean", "compare_groups", "correct_p", "divide",
    "enough", "interval_table", "level_in_force", "rank_correlation", "smallest_difference", "test_mean",
]  # fmt: skip

MIN_QUESTIONS, MIN_CLUSTERS = 10, 5


class Comparison(NamedTuple):
    """Tables of `compare_groups`: `omnibus` has a row per column of values, `pairs` a row per pair."""

    omnibus: pd.DataFrame
    pairs: pd.DataFrame


def enough(n, n_clusters):
    """Whether n questions on n_clusters images tell anything: at least 10 questions on at least 5 images."""
    return (np.asarray(n) >= MIN_QUESTIONS) & (np.asarray(n_clusters) >= MIN_CLUSTERS)


def test_mean(values, clusters, axes=()) -> pd.DataFrame:  # noqa: PT028 (not a test of ours)
    """Is the mean of a paired difference 0 (intact minus ablated, trained minus untrained)? Errors clustered by image.

    values: (n, ...), one row a question, NaN left out; clusters: (n,). axes: a name for each axis of values after the
    first. A row a column of values: the axes, estimate, se, df, low, high (95 %, t), p (not corrected), n, n_clusters.
    A t test with the errors of `compare_groups`; with a question an image it is the ordinary one. NaN where the
    questions are not `enough`, and p also where nothing differs from 0. A difference that is the same in every question
    has no error to be measured by: its p is that of flipping the clusters' signs, 2^(1 - clusters).
    """
    values, clusters = check_rows(values, clusters)
    index = index_cells(values.shape[1:], axes)
    sums, counts = sum_clusters(values.reshape(len(values), len(index)), clusters)
    found = np.broadcast_arrays(
        *fit_means(sums, counts), counts.sum(0).astype(int), (counts > 0).sum(0)
    )
    estimate, variance, df, n, n_clusters = found
    told = enough(n, n_clusters)
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
    with `helpers.stats.simulate`; see tests/test_simulate.py. Hedges g: the (adjusted) difference over the pooled
    standard deviation of the groups' raw values, times 1 - 3 / (4 df - 1).

    Groups that are not `enough` are left out of the fit, and their pairs are NaN. So is a column whose
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


def smallest_difference(se, df, level=0.05, power=0.8) -> np.ndarray:
    """The smallest true difference (or mean) that a test with this error finds with the given power.

    se, df: columns of `compare_groups` pairs or of `test_mean`, any shape; the result has the units of se.
    level: of the single test, such as `level_in_force`. (t_{1 - level / 2} + t_{power}) se, with df degrees
    of freedom: Bloom (1995, "Minimum detectable effects", Evaluation Review 19).
    """
    return (stats.t.isf(level / 2, df) + stats.t.ppf(power, df)) * np.asarray(se, dtype=float)


def level_in_force(p, level=0.05, method="fdr_bh") -> float:
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
    told = np.flatnonzero(enough(n, n_clusters))
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
    p = 2 * stats.t.sf(np.abs(divide(estimate, se)), df)
    return {"se": se, "df": df, "low": estimate - half, "high": estimate + half, "p": p}


def _find_hedges_g(difference, spread, n, first, second):
    """Differences (k, pairs) over the groups' pooled standard deviation, from their variances (k, groups)."""
    df = n[first] + n[second] - 2
    pooled = divide(n[first] * spread[:, first] + n[second] * spread[:, second], df) ** 0.5
    return divide(difference, pooled) * (1 - divide(3.0, 4 * df - 1.0))


def _find_largest(flat):
    """The largest size of a value in each column (0 without any), beside which rounding errors are judged."""
    return np.fmax.reduce(np.abs(flat), axis=0, initial=0).astype(float)
