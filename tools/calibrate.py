"""How often the project's tests and intervals are wrong, on made-up values whose truth is known.

Questions, images and families can be a run's own. The values are sampled many times, alike within
an image (and within a model, a layer), and go through the functions that the run itself uses. Every
rate comes with n and Wilson's 95 % interval, because a simulation is a sample too.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special
from statsmodels.stats.proportion import proportion_confint

from helpers.stats.bootstrap import bootstrap_by_group, bootstrap_mean, rank_permutation_test
from helpers.stats.cluster_robust import (
    compare_groups,
    correct_p,
    divide_or_nan,
    has_enough_data,
    mean_difference_test,
)
from helpers.stats.models import jackknife_over_models, mean_of_models, mean_over_models

HEADS, EFFECT = 4, 0.5  # heads of a simulated study; standard deviations that a family is raised by
SLOPE, OFFSET = 1.5, -2.0  # of the logistic in "share" values: mean about 0.19, a long tail upwards
SINGLE, CORRECTED, INTERVAL = "single test", "after correction", "interval"  # kinds of rates
CHANGED = 0.2  # share of the questions whose answer an ablation turns right or wrong


def sample_values(
    image_ids: ArrayLike, k: int, correlation: float = 0.3, shape: str = "normal", seed: int = 0
) -> np.ndarray:
    """Values (n, k) of true mean 0, alike within an image; the k columns are independent.

    image_ids: (n,). correlation: of two questions on one image, before the shape is given.
    shape: "normal", with variance 1; "heavy" (t with 3 degrees of freedom); "share" (in (0, 1) less
    its mean, skewed, as shares of attention are); "paired" (-1, 0 or 1, mostly 0, as a change in
    accuracy is). ValueError for another shape.
    """
    if shape not in ("normal", "heavy", "share", "paired"):
        known = "use normal, heavy, share or paired"
        raise ValueError(f"sample_values: shape {shape!r} is not known: {known}")
    rng, codes = np.random.default_rng(seed), np.unique(image_ids, return_inverse=True)[1]
    sizes = (codes.max(initial=-1) + 1, k), (len(codes), k)
    of_image, of_question = (
        rng.standard_t(3, size) if shape == "heavy" else rng.standard_normal(size) for size in sizes
    )
    values = np.sqrt(correlation) * of_image[codes] + np.sqrt(1 - correlation) * of_question
    if shape == "share":
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)  # Gauss-Hermite quadrature
        mean = weights @ special.expit(SLOPE * nodes + OFFSET) / weights.sum()
        return special.expit(SLOPE * values + OFFSET) - mean
    if shape == "paired":
        return np.sign(values) * (np.abs(values) > -special.ndtri(CHANGED / 2))
    return values


def intraclass_correlation(
    values: ArrayLike, image_ids: ArrayLike, groups: ArrayLike | None = None
) -> np.ndarray:
    """How alike questions on one image are, at most 1, for every column of values.

    values: (n, ...) without NaN; image_ids: (n,). groups: (n,), question families, whose means are
    taken off first: where families differ, they would hide how alike the questions of an image are.
    (MSB - MSW) / (MSB + (m - 1) MSW) from the mean squares between and within images, with m the
    mean number of questions an image, corrected for unequal numbers (Donner 1986, International
    Statistical Review 54). It may be negative; NaN where every image has one question.
    """
    values, codes = np.asarray(values, dtype=float), np.unique(image_ids, return_inverse=True)[1]
    flat, sizes = values.reshape(len(codes), -1), np.bincount(codes)
    if groups is not None:
        flat = flat - pd.DataFrame(flat).groupby(np.asarray(groups)).transform("mean").to_numpy()
    means = pd.DataFrame(flat).groupby(codes).mean().to_numpy()
    n, n_images = len(codes), len(sizes)
    between = divide_or_nan(sizes @ (means - flat.mean(0)) ** 2, n_images - 1)
    within = divide_or_nan(((flat - means[codes]) ** 2).sum(0), n - n_images)
    m = divide_or_nan(n - (sizes**2).sum() / n, n_images - 1)
    ratio = divide_or_nan(between - within, between + (m - 1) * within)
    return ratio.reshape(values.shape[1:])


def rejection_rates(
    groups: Sequence,
    image_ids: ArrayLike,
    strata: pd.DataFrame | None = None,
    studies: int = 200,
    correlation: float = 0.3,
    shape: str = "normal",
    seed: int = 0,
) -> pd.DataFrame:
    """How often the comparison of families finds what is not there, on these questions and images.

    groups, image_ids: (n,); strata: None or (n, c), then a row "pair, within strata" is added. Each
    study tests every pair of families in HEADS heads. Without any effect: how often single tests
    have p < 0.05. With one family raised by EFFECT in every second head: which share of what a
    study finds after Benjamini and Hochberg's correction is false (false discovery rate).
    Columns: procedure, kind, rate, low, high, n (studies; for single tests studies x HEADS).
    """
    values = sample_values(image_ids, studies * HEADS, correlation, shape, seed)
    pairs, runs = compare_groups(values, groups, image_ids, axes=("run",)), studies * HEADS
    rows = [("pair", SINGLE, _rejected_shares(pairs["p"], runs))]
    if strata is not None:
        equal = compare_groups(values, groups, image_ids, axes=("run",), strata=strata)
        rows.append(("pair, within strata", SINGLE, _rejected_shares(equal["p"], runs)))
    tested = ~np.isnan(pairs["p"].to_numpy().reshape(studies, -1)).all(1)
    raised, equal = _raise_family(values, groups, pairs)
    p = compare_groups(raised, groups, image_ids, axes=("run",))["p"].to_numpy()
    rejected = np.array([correct_p(row) < 0.05 for row in p.reshape(studies, -1)])
    false = (rejected & equal).sum(1) / np.maximum(rejected.sum(1), 1)
    rows.append(("false among found, B-H", CORRECTED, false[tested]))
    return pd.concat([describe_rate(*row) for row in rows], ignore_index=True)


def paired_rates(
    image_ids: ArrayLike, runs: int = 1000, correlation: float = 0.1, seed: int = 0
) -> pd.DataFrame:
    """How often `mean_difference_test` has p < 0.05 where as many answers turn right as wrong."""
    values = sample_values(image_ids, runs, correlation, "paired", seed)
    p = mean_difference_test(values, image_ids, axes=("run",))["p"]
    return describe_rate("intact against ablated", SINGLE, _rejected_shares(p, runs))


def coverage_rates(
    groups: Sequence,
    image_ids: ArrayLike,
    runs: int = 200,
    n_resamples: int = 500,
    correlation: float = 0.3,
    shape: str = "normal",
    seed: int = 0,
) -> pd.DataFrame:
    """How often 95 % intervals hold the truth: bootstrap of a mean, and t of a difference of two.

    groups, image_ids: (n,). Families without enough data are left out. Columns: procedure, kind,
    rate, low, high, n (runs).
    """
    values = sample_values(image_ids, runs, correlation, shape, seed)
    means = bootstrap_by_group(values, groups, image_ids, n_resamples, seed, axes=("run",))
    means = means[has_enough_data(means["n"], means["n_images"])]
    pairs = compare_groups(values, groups, image_ids, axes=("run",)).dropna(subset=["se"])
    rates = []
    for name, table in (("mean of a family", means), ("difference of two", pairs)):
        holds = ((table["low"] <= 0) & (table["high"] >= 0)).groupby(table["run"]).mean()
        rates.append(describe_rate(name, INTERVAL, holds.to_numpy(float)))
    return pd.concat(rates, ignore_index=True)


def model_rates(
    counts: Sequence[int] = (2, 3, 5, 10), n_images: int = 100, runs: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """How often intervals over models hold the truth, where models are a sample as well.

    Of a mean over models and questions (`mean_over_models`) and of one number a model
    (`mean_of_models`), for each count of models. A model moves all its questions by about as much
    as the images leave uncertain. Columns as in `coverage_rates`.
    """
    rng, rows = np.random.default_rng(seed), []
    for n_models in counts:
        of_models = rng.normal(0, np.sqrt(n_models / n_images), (n_models, 1, runs))
        of_images = rng.normal(size=(n_images, runs))
        values = of_models + of_images + 0.3 * rng.normal(size=(n_models, n_images, runs))
        mean = mean_over_models(values, np.arange(n_images))
        rows.append((f"mean over {n_models} models", (mean.low <= 0) & (mean.high >= 0)))
    for n_models in counts:
        numbers = [mean_of_models(drawn, 1, 1) for drawn in rng.normal(size=(runs, n_models))]
        holds = np.array([number.low <= 0 <= number.high for number in numbers])
        rows.append((f"one number of {n_models} models", holds))
    tables = [describe_rate(name, INTERVAL, holds.astype(float)) for name, holds in rows]
    return pd.concat(tables, ignore_index=True)


def jackknife_rates(
    n_models: int = 5, n_images: int = 100, runs: int = 200, seed: int = 0
) -> pd.DataFrame:
    """How often `jackknife_over_models` holds the truth of a correlation over questions.

    Each model has a correlation of its own, 0.3 on average.
    """
    rng, holds = np.random.default_rng(seed), []
    for _ in range(runs):
        slopes, x = rng.normal(0.3, 0.1, (n_models, 1)), rng.normal(size=n_images)
        y = slopes * x + np.sqrt(1 - slopes**2) * rng.normal(size=n_images)

        def correlate(model: int, rows: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> float:
            a, b = x[rows] - x[rows].mean(), y[model, rows]
            return a @ b / np.sqrt(a @ a * len(b) * b.var())

        mean = jackknife_over_models(correlate, n_models, np.arange(n_images), limits=(-1, 1))
        holds.append(float(mean.low <= 0.3 <= mean.high))
    return describe_rate(f"correlation in {n_models} models", INTERVAL, np.array(holds))


def rank_rates(heads: tuple[int, int] = (4, 4), runs: int = 1000, seed: int = 0) -> pd.DataFrame:
    """How often `rank_permutation_test` has p < 0.05 where two scores have nothing in common.

    Scores of heads (layers, heads a layer) whose layers differ in both, permuted within layers.
    """
    rng, layers = np.random.default_rng(seed), np.repeat(np.arange(heads[0]), heads[1])
    rng.normal(size=(runs, 2, 7))  # skipped: the numbers below stay what they were
    of_heads = 2 * rng.normal(size=(runs, 2, heads[0]))[..., layers]
    of_heads = of_heads + rng.normal(size=(runs, 2, len(layers)))
    p = [rank_permutation_test(*pair, layers, 300)[1] for pair in of_heads]
    return describe_rate("ranks of heads, by layer", SINGLE, _rejected_shares(p, runs))


def limit_rates(
    n: int = 150, lost: float = 0.01, runs: int = 2000, n_resamples: int = 300, seed: int = 0
) -> pd.DataFrame:
    """How often the interval of a rare loss holds the truth, where most runs show 0 to 2 losses.

    n questions, one an image, each lost with the probability `lost`: `bootstrap_mean` with bounds,
    whose exact limits promise at least 95 %.
    """
    values = 100.0 * (np.random.default_rng(seed).random((n, runs)) < lost)
    mean = bootstrap_mean(values, np.arange(n), n_resamples, bounds=(-100, 100))
    holds = (mean.low <= 100 * lost) & (mean.high >= 100 * lost)
    return describe_rate("rare loss, exact limits", INTERVAL, holds.astype(float))


def choice_rates(
    n_images: int = 100, heads: int = 16, runs: int = 1000, n_resamples: int = 300, seed: int = 0
) -> pd.DataFrame:
    """How often the interval of the largest of many heads holds its truth; all heads are equal.

    Chosen on one half of the images and judged on the other, as the study does.
    """
    values = np.random.default_rng(seed).normal(size=(n_images, heads, runs))
    chosen = values[::2].mean(axis=0).argmax(axis=0)
    judged = values[1::2, chosen, np.arange(runs)]
    mean = bootstrap_mean(judged, np.arange(len(judged)), n_resamples)
    holds = (mean.low <= 0) & (mean.high >= 0)
    return describe_rate("largest, judged on the other half", INTERVAL, holds.astype(float))


def describe_rate(procedure: str, kind: str, hits: np.ndarray) -> pd.DataFrame:
    """One row: the mean of hits (n,), in [0, 1], with Wilson's interval as if each were 0 or 1."""
    rate, n = (hits.mean(), len(hits)) if len(hits) else (np.nan, 0)
    low, high = proportion_confint(rate * n, n, method="wilson") if n else (np.nan, np.nan)
    row = {"procedure": procedure, "kind": kind, "rate": rate, "low": low, "high": high, "n": n}
    return pd.DataFrame([row])


def _raise_family(
    values: np.ndarray, groups: Sequence, pairs: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Values with one family raised in every second head, and which pairs of a study stay equal."""
    first = pairs["group_a"][pairs["p"].notna()].head(1).tolist()
    is_raised = np.arange(values.shape[1]) % HEADS % 2 == 0
    belongs = np.isin(np.asarray(groups, dtype=object), first)
    raised = values + EFFECT * values.std() * np.outer(belongs, is_raised)
    touched = pairs[["group_a", "group_b"]].isin(first).any(axis=1).to_numpy()
    return raised, ~(touched & is_raised[pairs["run"]]).reshape(values.shape[1] // HEADS, -1)


def _rejected_shares(p: ArrayLike, runs: int) -> np.ndarray:
    """For each run the share of its tests with p < 0.05; runs without a test are left out."""
    p = np.reshape(p, (runs, -1))
    tested = ~np.isnan(p)
    return divide_or_nan((p < 0.05).sum(1), tested.sum(1))[tested.any(1)]
