"""How often the project's tests and intervals are wrong, on made-up values whose truth is known.

The questions, images and families are a run's own; the values are drawn many times, alike within
an image, and go through the same functions of `helpers.stats.tests` as measured ones. Every rate comes with n and its
95 % interval (Wilson), for a simulation is a sample too.
"""

import numpy as np
import pandas as pd
from scipy import special
from statsmodels.stats.proportion import proportion_confint

from helpers.stats import tests as stats

SKEW = (
    1.5,
    -2.0,
)  # slope and offset in the logistic of "share" values: mean about 0.19, a long tail upwards
SINGLE, CORRECTED, INTERVAL = "single test", "after correction", "interval"  # kinds of rates
CHANGED = 0.2  # of the questions, how many answers an ablation turns right or wrong


def draw_values(images, columns, correlation=0.3, shape="normal", seed=0) -> np.ndarray:
    """Values (questions, columns) of true mean 0 that are alike within an image; columns are independent.

    images: (n,) labels. correlation: of two questions on one image, before the shape is given.
    shape: "normal", with variance 1; "heavy" (t with 3 degrees of freedom); "share" (in (0, 1) less its mean,
    skewed, as shares of attention are); "paired" (-1, 0 or 1, as a change in accuracy is, mostly 0).
    """
    if shape not in ("normal", "heavy", "share", "paired"):
        raise ValueError(
            f"draw_values: shape {shape!r} is not known: use normal, heavy, share or paired"
        )
    rng, codes = np.random.default_rng(seed), np.unique(images, return_inverse=True)[1]
    size = (codes.max(initial=-1) + 1, columns), (len(codes), columns)
    of_image, own = (
        rng.standard_t(3, s) if shape == "heavy" else rng.standard_normal(s) for s in size
    )
    values = np.sqrt(correlation) * of_image[codes] + np.sqrt(1 - correlation) * own
    if shape == "share":
        nodes, weights = np.polynomial.hermite_e.hermegauss(
            60
        )  # the mean, by Gauss-Hermite quadrature
        mean = weights @ special.expit(SKEW[0] * nodes + SKEW[1]) / weights.sum()
        return special.expit(SKEW[0] * values + SKEW[1]) - mean
    if shape == "paired":
        return np.sign(values) * (np.abs(values) > -special.ndtri(CHANGED / 2))
    return values


def find_correlation(values, images, groups=None) -> np.ndarray:
    """Intraclass correlation of every column: how alike questions on one image are, at most 1.

    values: (n, ...) without NaN; images: (n,). groups: (n,), question families, whose means are taken off first:
    an image has questions of several, and where families differ, these would hide how alike its questions are.
    (MSB - MSW) / (MSB + (m - 1) MSW) from the mean squares between and within images, with m the mean number of
    questions an image, corrected for unequal numbers (Donner 1986, International Statistical Review 54). NaN
    where every image has one question. May be negative.
    """
    values, codes = np.asarray(values, dtype=float), np.unique(images, return_inverse=True)[1]
    flat, sizes = values.reshape(len(codes), -1), np.bincount(codes)
    if groups is not None:
        flat = flat - pd.DataFrame(flat).groupby(np.asarray(groups)).transform("mean").to_numpy()
    means = pd.DataFrame(flat).groupby(codes).mean().to_numpy()
    n, c = len(codes), len(sizes)
    between = stats.divide(sizes @ (means - flat.mean(0)) ** 2, c - 1)
    within = stats.divide(((flat - means[codes]) ** 2).sum(0), n - c)
    m = stats.divide(n - (sizes**2).sum() / n, c - 1)
    return stats.divide(between - within, between + (m - 1) * within).reshape(values.shape[1:])


def rejection_rates(
    groups,
    images,
    covariates=None,
    studies=200,
    heads=4,
    effect=0.5,
    correlation=0.3,
    shape="normal",
    seed=0,
) -> pd.DataFrame:
    """How often the comparison of families finds what is not there, on these questions and images.

    groups, images: (n,); covariates: None or (n, c), then a row "pair, adjusted" is added. Each study tests
    every pair of families in so many heads. Without any effect: how often single tests have p < 0.05 (pair,
    omnibus), and how often a study finds anything after Holm's correction (family-wise error). With one
    family raised by `effect` standard deviations in every second head: which share of what a study finds
    after Benjamini and Hochberg's is false (false discovery rate).
    Returns procedure, kind, rate, low, high, n (studies; for single tests studies x heads).
    """
    values = draw_values(images, studies * heads, correlation, shape, seed)
    omnibus, pairs = stats.compare_groups(values, groups, images, axes=("run",))
    rows = [("pair", SINGLE, _find_shares(pairs["p"], len(omnibus)))]
    if covariates is not None:
        adjusted = stats.compare_groups(values, groups, images, covariates, axes=("run",)).pairs[
            "p"
        ]
        rows.append(("pair, adjusted", SINGLE, _find_shares(adjusted, len(omnibus))))
    rows.append(("omnibus", SINGLE, _find_shares(omnibus["p"], len(omnibus))))
    p = pairs["p"].to_numpy().reshape(studies, -1)
    tested = ~np.isnan(p).all(1)
    rows.append(("any pair, Holm", CORRECTED, _finds_any(p[tested]).astype(float)))
    values, equal = _raise_family(values, groups, pairs, effect, heads)
    p = (
        stats.compare_groups(values, groups, images, axes=("run",))
        .pairs["p"]
        .to_numpy()
        .reshape(studies, -1)
    )
    found = np.array([stats.correct_p(row) < 0.05 for row in p])
    false = (found & equal).sum(1) / np.maximum(found.sum(1), 1)
    rows.append(("false among found, B-H", CORRECTED, false[tested]))
    return pd.concat([describe_rate(*row) for row in rows], ignore_index=True)


def paired_rates(images, runs=1000, correlation=0.1, seed=0) -> pd.DataFrame:
    """How often `stats.test_mean` finds an ablation that turns as many answers right as wrong: p < 0.05."""
    p = stats.test_mean(
        draw_values(images, runs, correlation, "paired", seed), images, axes=("run",)
    )["p"]
    return describe_rate("intact against ablated", SINGLE, _find_shares(p, runs))


def coverage_rates(
    groups, images, runs=200, draws=500, correlation=0.3, shape="normal", seed=0
) -> pd.DataFrame:
    """How often 95 % intervals hold the truth: bootstrap of a family's mean, and t of a difference of two.

    groups, images: (n,). draws: of the bootstrap. Families that are not `enough` are left out. Returns
    procedure, kind, rate, low, high, n (runs).
    """
    values = draw_values(images, runs, correlation, shape, seed)
    means = stats.bootstrap_by_group(values, groups, images, draws, seed, axes=("run",))
    means = means[stats.enough(means["n"], means["n_clusters"])]
    pairs = stats.compare_groups(values, groups, images, axes=("run",)).pairs.dropna(subset=["se"])
    rates = []
    for name, table in (("mean of a family", means), ("difference of two", pairs)):
        holds = ((table["low"] <= 0) & (table["high"] >= 0)).groupby(table["run"]).mean()
        rates.append(describe_rate(name, INTERVAL, holds.to_numpy(float)))
    return pd.concat(rates, ignore_index=True)


def describe_rate(procedure, kind, hits) -> pd.DataFrame:
    """One row: the mean of hits (n,), each a share in [0, 1], with Wilson's interval as if each were 0 or 1."""
    rate, n = (hits.mean(), len(hits)) if len(hits) else (np.nan, 0)
    low, high = proportion_confint(rate * n, n, method="wilson") if n else (np.nan, np.nan)
    row = {"procedure": procedure, "kind": kind, "rate": rate, "low": low, "high": high, "n": n}
    return pd.DataFrame([row])


def _finds_any(p):
    """For each study (row) whether Holm's correction leaves anything: whether it leaves its smallest p.

    By `stats.correct_p` the same (a test holds them against each other), but statsmodels collects garbage every time.
    """
    return np.nanmin(p, axis=1) * (~np.isnan(p)).sum(1) < 0.05


def _raise_family(values, groups, pairs, effect, heads):
    """The values with one family raised in every second head, and which of a study's pairs are still equal."""
    first = pairs["group_a"][pairs["p"].notna()].head(1).tolist()
    shifted = np.arange(values.shape[1]) % heads % 2 == 0
    raised = values + effect * values.std() * np.outer(
        np.isin(np.asarray(groups, dtype=object), first), shifted
    )
    touched = pairs[["group_a", "group_b"]].isin(first).any(axis=1).to_numpy()
    return raised, ~(touched & shifted[pairs["run"]]).reshape(values.shape[1] // heads, -1)


def _find_shares(p, runs):
    """For each run the share of its tests with p < 0.05; runs without a test are left out."""
    p = np.reshape(p, (runs, -1))
    tested = ~np.isnan(p)
    return stats.divide((p < 0.05).sum(1), tested.sum(1))[tested.any(1)]
