"""Means over questions and over models: the models are a sample as well."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from helpers.stats.bootstrap import COLUMNS, Interval
from helpers.stats.cluster_robust import (
    check_rows,
    code_groups,
    divide_or_nan,
    fit_means,
    sum_by_image,
)

GROUPS = 40  # of images, for a jackknife
Limits = tuple[float, float]  # least and most
NO_LIMITS = (-np.inf, np.inf)


def mean_over_models(
    values: ArrayLike, image_ids: ArrayLike, limits: Limits = NO_LIMITS
) -> Interval:
    """Mean over models and questions, with a 95 % interval for further models and images.

    values: (model, n, ...), the same n questions for every model; NaN is left out question by
    question, in all models. image_ids: (n,). limits: the least and most that a mean can be, which
    no bound passes: (0, 100) of an accuracy in points.

    The variance is s^2 / K of the K models' means plus the variance of the model-averaged values
    over images (`fit_means`). The critical value is the mean of those of t with K - 1 and with the
    images' degrees of freedom, weighted by the two variances (Cochran 1964, Biometrics 20).
    Satterthwaite's degrees of freedom would cover only 88 % with two models (`tools.calibrate`).
    With one model the interval is over images alone: of this one model. NaN with one image.
    """
    values = np.asarray(values, dtype=float)
    averaged, images = check_rows(values.mean(0), image_ids)
    flat = averaged.reshape(len(averaged), -1)
    sums, counts = sum_by_image(flat, images)
    estimate, of_images, df = fit_means(sums, counts)
    known = ~np.isnan(averaged)
    by_model = divide_or_nan(np.where(known, values, 0).sum(axis=1), known.sum(axis=0))
    n_models = len(values)
    critical = np.broadcast_to(stats.t.isf(0.025, df), of_images.shape)
    variance = of_images
    if n_models > 1:
        of_models = by_model.reshape(n_models, -1).var(axis=0, ddof=1) / n_models
        variance = of_images + of_models
        weighted = of_images * critical + of_models * stats.t.isf(0.025, n_models - 1)
        critical = np.divide(weighted, variance, out=critical.copy(), where=variance > 0)
    half = critical * np.sqrt(variance)
    shape = averaged.shape[1:]
    low, high = np.clip([estimate - half, estimate + half], *limits)
    bounds = (field.reshape(shape)[()] for field in (estimate, low, high))
    known = ~np.isnan(flat).all(axis=1)
    return Interval(*bounds, known.sum(), len(set(images[known])), n_models, by_model)


def mean_by_group(
    values: ArrayLike, groups: ArrayLike, image_ids: ArrayLike, limits: Limits = NO_LIMITS
) -> pd.DataFrame:
    """`mean_over_models` of each group of questions (question families), as a tidy table.

    values: (model, n); groups, image_ids: (n,). Questions that a model has no value of are left
    out. Columns: group, estimate, low, high, n, n_images, n_models; groups as in
    `bootstrap_by_group`, those without a value left out.
    """
    values, image_ids = np.asarray(values, dtype=float), np.asarray(image_ids)
    codes, names = code_groups(groups, values.shape[1])
    tables, known = [], np.isfinite(values).all(axis=0)
    for code, name in enumerate(names):
        own = known & (codes == code)
        if own.any():
            mean = mean_over_models(values[:, own], image_ids[own], limits)
            tables.append(mean.to_table().assign(n_models=mean.n_models, group=name))
    columns = ["group", *COLUMNS, "n_models"]
    nothing = pd.DataFrame(columns=columns, dtype=float)
    return pd.concat(tables, ignore_index=True)[columns] if tables else nothing


def difference_over_models(
    values: ArrayLike, first: ArrayLike, second: ArrayLike, image_ids: ArrayLike
) -> Interval:
    """Mean over the questions of one group minus that of another, as by `mean_over_models`.

    values: (model, n, ...) without NaN; first, second: (n,) of bool, the groups. Each question of
    either enters with its influence on the difference of the two means (Deville 1999, Survey
    Methodology 25), so that questions on one image are taken together.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    either = first | second
    values = np.asarray(values, dtype=float)[:, either]
    contributions = 0
    for sign, group in ((1, first[either]), (-1, second[either])):
        mean = values[:, group].mean(axis=1, keepdims=True)
        share = np.expand_dims(group / group.mean(), tuple(range(1, values.ndim - 1)))
        contributions = contributions + sign * (mean + share * (values - mean))
    return mean_over_models(contributions, np.asarray(image_ids)[either])


def mean_of_models(
    numbers: ArrayLike,
    n: int,
    n_images: int,
    alone: Limits = (np.nan, np.nan),
    limits: Limits = NO_LIMITS,
) -> Interval:
    """Mean of one number a model, such as a rank correlation over its heads, for further models.

    numbers: (model,). n, n_images: the questions and images behind them. The interval is Student's
    t over the models, within `limits`, the least and most that a number can be. alone: the interval
    to state for one model, or where all numbers are equal: over the heads of a model, for example,
    which says nothing of other models.
    """
    numbers = np.asarray(numbers, dtype=float)
    estimate, (low, high) = numbers.mean(), alone
    if len(numbers) > 1 and np.ptp(numbers) > 0:
        half = stats.t.isf(0.025, len(numbers) - 1) * stats.sem(numbers)
        low, high = np.clip([estimate - half, estimate + half], *limits)
    return Interval(estimate, low, high, n, n_images, len(numbers), numbers)


def jackknife_over_models(
    statistic: Callable[[int, np.ndarray], float],
    n_models: int,
    image_ids: ArrayLike,
    limits: Limits = NO_LIMITS,
) -> Interval:
    """Mean over models of what is no mean of questions (a correlation, an AUC, a share of pairs).

    statistic(model, rows): the number of one model on these questions, rows: (n,) bool.
    image_ids: (n,). Leaves out one of GROUPS random groups of images at a time (Kott 2001, "The
    delete-a-group jackknife", Journal of Official Statistics 17); the groups' pseudo-values g t -
    (g - 1) t_without go to `mean_over_models`. The estimate is the statistic of all questions.
    limits: as in `mean_over_models`. NaN where a model has no statistic.
    """
    images = np.unique(image_ids, return_inverse=True)[1].reshape(-1)
    n_images = int(images.max()) + 1
    groups = np.random.default_rng(0).permutation(n_images) % GROUPS
    n_groups = min(GROUPS, n_images)
    whole = np.array([statistic(model, images >= 0) for model in range(n_models)], dtype=float)
    without = [
        [statistic(model, groups[images] != group) for group in range(n_groups)]
        for model in range(n_models)
    ]
    pseudo = n_groups * whole[:, None] - (n_groups - 1) * np.array(without, dtype=float)
    mean = mean_over_models(pseudo, np.arange(n_groups))
    shift = whole.mean() - mean.estimate
    low, high = np.clip([mean.low + shift, mean.high + shift], *limits)
    return Interval(whole.mean(), low, high, len(images), n_images, n_models, whole)


def linearise_ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Values (n, ...) whose mean is sum(part) / sum(whole) and whose spread gives its interval.

    r + (part - r whole) / mean(whole), r being the ratio (Cochran 1977, "Sampling Techniques",
    section 6.4). Rows with NaN, which has to be in both, are left out; all NaN where the whole sums
    to 0.
    """
    total, n = np.nansum(whole, axis=0), (~np.isnan(whole)).sum(axis=0)
    ratio = divide_or_nan(np.nansum(part, axis=0), total)
    return ratio + divide_or_nan(n * (part - ratio * whole), total)
