"""Intervals by resampling: means over questions on images, and rank correlations over heads."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from helpers.stats.cluster_robust import (
    check_rows,
    code_groups,
    divide_or_nan,
    fit_means,
    index_cells,
    sum_by_image,
)

CHUNK_WEIGHTS = 4_000_000  # bootstrap weights held at once: 32 MB as counts, 32 MB as floats
TAIL = (1 - 0.95) / 2  # on each side of a 95 % interval
FEW_IMAGES = 5  # with fewer that differ from the rest, resampling says too little
COLUMNS = ("estimate", "low", "high", "n", "n_images")  # of an interval


class Interval(NamedTuple):
    """An estimate and its 95 % interval; arrays have the shape of one question's values."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray | int  # questions with a value
    n_images: np.ndarray | int  # images of these questions
    n_models: int = 1
    by_model: np.ndarray | None = None  # (model, ...), each model's own estimate

    def to_table(self, axes: Sequence[str] | Mapping[str, Sequence] = ()) -> pd.DataFrame:
        """As a tidy table, a row a cell. Columns: the axes, estimate, low, high, n, n_images.

        axes: names such as ("layer", "head"), or with the labels along each axis.
        """
        fields = dict(zip(COLUMNS, np.broadcast_arrays(*self[:5]), strict=True))
        table = index_cells(fields["estimate"].shape, tuple(axes))
        table = table.assign(**{name: np.ravel(field) for name, field in fields.items()})
        labels = axes.items() if isinstance(axes, Mapping) else ()
        return table.assign(**{name: np.array(ticks)[table[name]] for name, ticks in labels})


def split_images(image_ids: ArrayLike, seed: int = 0) -> np.ndarray:
    """Cut the images into two random halves: which questions (question,) are in the first."""
    images = np.random.default_rng(seed).permutation(np.unique(image_ids))
    return np.isin(image_ids, images[::2])


def bootstrap_mean(
    values: ArrayLike,
    image_ids: ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Mean over questions, with a 95 % percentile interval from a bootstrap over images.

    values: (n, ...), one row a question; NaN is left out, column by column. image_ids: (n,).
    bounds: the least and the largest value that a question can have: (0, 100) for accuracy in
    points, (-100, 100) for what an ablation costs. Then a column in which all images are alike, or
    all but four, gets the interval of `_exact_limits`; without bounds it may have no width.
    Returns fields of shape (...). `low` and `high` are NaN with fewer than two images.

    The same seed and images give the same resamples: multinomial counts of whole images. The
    interval is widened for few or unequal images (`_expand_tails`).
    """
    values, codes = check_rows(values, image_ids)
    shape = values.shape[1:]
    flat = values.reshape(len(values), math.prod(shape))  # -1 would fail without any row
    sums, counts = sum_by_image(flat, codes)
    n, n_images = counts.sum(0).astype(int), (counts > 0).sum(0)
    replicates = _resample_means(sums, counts, n_resamples, seed)
    limits = stats.quantile(replicates, _expand_tails(counts), axis=0, nan_policy="omit")
    if bounds is not None:
        limits = np.where(*_exact_limits(flat, codes, counts, bounds), limits)
    fields = divide_or_nan(sums.sum(0), n), *limits, n, n_images
    return Interval(*(np.broadcast_to(f, flat.shape[1:]).reshape(shape)[()] for f in fields))


def bootstrap_by_group(
    values: ArrayLike,
    groups: ArrayLike,
    image_ids: ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
    axes: Sequence[str] = (),
    bounds: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """`bootstrap_mean` of each group of questions (question families), as a tidy table.

    values: (n, ...); groups, image_ids: (n,). Columns: group, and those of `Interval.to_table`.
    Groups come in order of appearance (a pandas Categorical: its own order); questions without a
    group are left out.
    """
    values, images = check_rows(values, image_ids)
    codes, names = code_groups(groups, len(values))
    columns = ["group", *axes, *COLUMNS]
    tables = [pd.DataFrame(columns=columns)]
    for rows, name in ((codes == code, name) for code, name in enumerate(names)):
        interval = bootstrap_mean(values[rows], images[rows], n_resamples, seed, bounds=bounds)
        tables.append(interval.to_table(axes).assign(group=name))
    return pd.concat(tables[1:] or tables, ignore_index=True)[columns]


def rank_correlation(
    x: ArrayLike, y: ArrayLike, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Spearman correlation of two scores of the same heads, with a 95 % interval over heads.

    x, y: same shape, one value a head; pairs with a NaN are left out. The interval treats heads as
    drawn independently: it describes this model's heads, not other models. NaN below 3 heads or
    where a score is constant.
    """
    x, y, known = _pair_scores(x, y)
    n = int(known.sum())
    if n < 3:
        return Interval(np.nan, np.nan, np.nan, n, n)
    rows = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    replicates = spearman_rows(x[rows], y[rows])[:, None]
    low, high = stats.quantile(replicates, _expand_tails(np.ones((n, 1))), nan_policy="omit")
    return Interval(spearman_rows(x[None], y[None])[0], low[0], high[0], n, n)


def rank_permutation_test(
    x: ArrayLike, y: ArrayLike, strata: ArrayLike | None = None, n_resamples: int = 5000
) -> tuple[float, float]:
    """Spearman's correlation of two scores and its two-sided permutation p.

    x, y: (n,), pairs with a NaN are left out. strata: (n,), such as the heads' layers: then ranks
    count from their stratum's mean and are permuted within it, as heads of a layer are alike.
    The permutations are `n_resamples` random ones, of which the data is one more. NaN below 3 pairs
    or where a score is constant.
    """
    x, y, known = _pair_scores(x, y)
    strata = np.zeros(len(known)) if strata is None else np.ravel(strata)
    n, codes = int(known.sum()), np.unique(strata[known], return_inverse=True)[1].reshape(-1)
    if n < 3:
        return np.nan, np.nan
    a, b = (pd.Series(stats.rankdata(scores)) for scores in (x, y))
    a, b = (ranks.sub(ranks.groupby(codes).transform("mean")).to_numpy() for ranks in (a, b))
    size = np.sqrt((a**2).sum() * (b**2).sum())
    if size < 1e-9:
        return np.nan, np.nan
    drawn = np.random.default_rng(0).random((n_resamples, n)) + codes
    places = np.argsort(np.argsort(codes, kind="stable"))
    orders = np.concatenate([np.arange(n)[None], np.argsort(drawn, axis=1)[:, places]])
    rho = a @ b / size
    return float(rho), float(np.mean(np.abs(b[orders] @ a / size) >= abs(rho) - 1e-9))


def _pair_scores(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two scores (n,) without the pairs that have a NaN, and which pairs have none."""
    x, y = np.ravel(x).astype(float), np.ravel(y).astype(float)
    if len(x) != len(y):
        raise ValueError(f"rank correlation: {len(x)} values of x but {len(y)} of y")
    known = ~(np.isnan(x) | np.isnan(y))
    return x[known], y[known], known


def _resample_means(
    sums: np.ndarray, counts: np.ndarray, n_resamples: int, seed: int
) -> np.ndarray:
    """Replicates (n_resamples, k) of sum / count over images drawn with replacement, in chunks.

    NaN: no image that was drawn has a value.
    """
    n_images = len(sums)
    replicates = np.full((n_resamples, sums.shape[1]), np.nan)
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_WEIGHTS // max(1, n_images))
    for start in range(0, n_resamples if n_images else 0, chunk):
        rows = slice(start, min(start + chunk, n_resamples))
        drawn = rng.multinomial(n_images, np.full(n_images, 1 / n_images), rows.stop - start)
        weights = drawn.astype(float)  # once, for both products
        replicates[rows] = divide_or_nan(weights @ sums, weights @ counts)
    return replicates


def _exact_limits(
    flat: np.ndarray, codes: np.ndarray, counts: np.ndarray, bounds: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """Where fewer than FEW_IMAGES images differ from the rest (k,), and limits of the mean (2, k).

    A mean is the common value (the median), plus the share p of the way up to the upper bound that
    the questions go on average, minus the share q of the way down to the lower one. Each gets
    Clopper and Pearson's limits, as if each image were one trial. Images of unequal size count as
    (sum n)^2 / sum n^2. The mean is highest with the upper limit of p and the lower one of q. Where
    nothing differs, a loss of accuracy gets limits on both sides of 0, an accuracy of 100 % only
    below.
    """
    common = np.nanmedian(flat, axis=0) if len(flat) else np.full(flat.shape[1], np.nan)
    shift, n = flat - common, counts.sum(0)
    differs = sum_by_image(np.nan_to_num(shift) != 0, codes)[0] > 0
    n_trials = divide_or_nan(counts.sum(0) ** 2, (counts**2).sum(0))
    moved = []
    for bound, sign in zip(bounds, (-1, 1), strict=True):
        room = np.maximum(sign * (bound - common), 0)
        share = divide_or_nan(np.nansum((sign * shift).clip(min=0), axis=0), room * n)
        hits = np.nan_to_num(share).clip(0, 1) * n_trials
        least = np.nan_to_num(stats.beta.ppf(TAIL, hits, n_trials - hits + 1))
        most = np.where(hits < n_trials, stats.beta.isf(TAIL, hits + 1, n_trials - hits), 1)
        moved.append((room * least, room * most))
    (least_down, most_down), (least_up, most_up) = moved
    is_few = (differs.sum(0) < FEW_IMAGES) & ((counts > 0).sum(0) > 1)
    return is_few, np.stack([common - most_down + least_up, common - least_down + most_up])


def _expand_tails(counts: np.ndarray) -> np.ndarray:
    """Which quantiles (2, k) of the replicates are the bounds, for counts (images, k) of questions.

    A bootstrap is too narrow with few clusters c. Hesterberg (2015, The American Statistician 69),
    "expanded percentile", cuts at Phi(-sqrt(c / (c - 1)) t) with t of c - 1 degrees of freedom. For
    clusters of unequal size the variance falls short by more than (c - 1) / c, and the degrees of
    freedom by more than 1: both come from the sizes here, and equal his where the sizes are equal.
    NaN with fewer than two clusters.
    """
    shortfall = 1 - (divide_or_nan(counts, counts.sum(0)) ** 2).sum(0)
    df = fit_means(np.zeros_like(counts), counts)[2]
    spread = np.sqrt(np.where(df > 0, shortfall, np.nan))
    tail = stats.norm.cdf(stats.t.ppf(TAIL, df) / spread)
    return np.stack([tail, 1 - tail])


def spearman_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Row-wise Spearman correlations of (m, n) arrays; NaN for rows where either is constant."""
    a, b = (stats.rankdata(values, axis=1) - (x.shape[1] + 1) / 2 for values in (x, y))
    return divide_or_nan((a * b).sum(1), np.sqrt((a**2).sum(1) * (b**2).sum(1)))
