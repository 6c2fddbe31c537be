"""What the removal of heads costs: by family, by how few heads, alone and together, and why.

lost = removals.points_lost("zero_head_answer", encoded, labels)
effects = removal_effects(lost, families, image_ids)    # a row a head and family
specialist_loss(lost, families, names, chosen)          # chosen on half, judged on the rest
contributions, r2 = fit_contributions(sets.gains, logits_lost(sets.table).mean(0))
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import logit

from helpers.attention.extract import AttentionTable, name_heads
from helpers.data.vqa import order_families
from helpers.heads.gains import FACTORS, split_variants
from helpers.stats.bootstrap import (
    Interval,
    bootstrap_by_group,
    bootstrap_mean,
    rank_correlation,
    rank_permutation_test,
)
from helpers.stats.cluster_robust import (
    correct_p,
    divide_or_nan,
    has_enough_data,
    mean_difference_test,
)
from helpers.stats.models import (
    jackknife_over_models,
    linearise_ratio,
    mean_of_models,
    mean_over_models,
)

NEEDED = 5  # points: a family that loses more by a head's removal needs the head
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the ridge regression, of which one is selected


def removal_effects(
    lost: np.ndarray,
    families: Sequence[str],
    image_ids: Sequence[int],
    n_resamples: int = 1000,
    seed: int = 0,
    bounds: tuple[float, float] | None = (-100, 100),
) -> pd.DataFrame:
    """What each removal costs over all questions and per family: a row a removal and family.

    lost: (question, layer[, head]), points; families, image_ids: (question,); bounds:
    as in `bootstrap_mean`. Columns: layer, head and name (where lost has heads), family ("all"
    first, then as in FAMILIES), drop (mean points lost), low, high, p (of `mean_difference_test`),
    p_corrected (over all rows that are told), told (enough questions), significant, n, n_images.
    """
    families, image_ids = np.asarray(families), np.asarray(image_ids)
    axes, tables = ("layer", "head")[: lost.ndim - 1], []
    for groups in (np.repeat("all", len(lost)), families):
        names = order_families(groups)
        of_names = pd.Categorical(groups, names)
        table = bootstrap_by_group(lost, of_names, image_ids, n_resamples, seed, axes, bounds)
        members = [groups == name for name in names]
        tests = [mean_difference_test(lost[rows], image_ids[rows], axes) for rows in members]
        tables.append(table.assign(p=pd.concat(tests, ignore_index=True)["p"]))
    table = pd.concat(tables, ignore_index=True)
    table = table.rename(columns={"group": "family", "estimate": "drop"})
    table["told"] = has_enough_data(table["n"], table["n_images"])
    table["p_corrected"] = correct_p(table["p"].where(table["told"]))
    table["significant"] = table["p_corrected"] < 0.05
    columns = ["family", "drop", "low", "high", "p", "p_corrected", "told", "significant"]
    if "head" in axes:
        table["name"], columns = name_heads(table), ["name", *columns]
    return table[[*axes, *columns, "n", "n_images"]]


def told_families(families: Sequence[str], image_ids: ArrayLike, chosen: np.ndarray) -> list[str]:
    """The families with enough questions both among the chosen (question,) and among the others."""
    questions = pd.DataFrame({"family": families, "half": chosen, "image": image_ids})
    halves = questions.groupby(["family", "half"], sort=False)["image"]
    is_told = has_enough_data(halves.size(), halves.nunique())
    counts = halves.size()[is_told].groupby("family", sort=False).size()
    return counts.index[counts == 2].tolist()


def family_losses(lost: np.ndarray, families: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Mean points that each of the named families loses: (family, layer, head)."""
    return np.stack([lost[families == name].mean(0) for name in names])


def specialist_loss(
    lost: np.ndarray, families: np.ndarray, names: Sequence[str], chosen: np.ndarray
) -> np.ndarray:
    """What the head that serves one family alone costs this family: (question,), points.

    lost: (question, layer, head), points; names: two or more families. In the chosen questions
    every other family loses less than NEEDED without the head, and its own most of all such heads.
    The values are of the other questions, for `stats.mean_over_models`: their mean is the family's
    loss (`linearise_ratio`). All 0 where there is no such head.
    """
    losses = family_losses(lost[chosen], families[chosen], names)
    *_, others, largest = np.sort(losses, axis=0)
    largest = np.where(others < NEEDED, largest, -np.inf)
    head = np.unravel_index(largest.argmax(), largest.shape)
    if np.isinf(largest[head]):
        return np.zeros(np.sum(~chosen))
    of_family = families[~chosen] == names[losses[:, *head].argmax()]
    return linearise_ratio(of_family * lost[~chosen][:, *head], of_family.astype(float))


def carried_by_few(lost: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Percent of all heads' losses that the costliest quarter of the heads holds: (question,).

    lost, chosen: as in `specialist_loss`. The heads are those that cost most in the chosen
    questions; the values are of the others. Their mean is the sum of these heads' losses over the
    sum of all heads' (`linearise_ratio`), NaN where that is 0.
    """
    flat = lost.reshape(len(lost), -1)
    costliest = np.argsort(-flat[chosen].mean(0), kind="stable")[: round(flat.shape[1] / 4)]
    rest = flat[~chosen]
    return 100 * linearise_ratio(rest[:, costliest].sum(1), rest.sum(1))


def count_needed(
    lost: np.ndarray, families: np.ndarray, names: Sequence[str], chosen: np.ndarray
) -> np.ndarray:
    """How many more heads counting needs than the next family: a number a head, their sum the lead.

    lost, names, chosen: as in `specialist_loss`. A family needs a head whose removal costs it more
    than NEEDED. Counting is "how many"; the next is the other family that needs most heads in the
    chosen questions; both are counted in the others. Returns (heads,): 1 for a head that counting
    needs and the next does not, -1 the other way round, else 0.
    """
    before, after = (
        dict(zip(names, family_losses(lost[half], families[half], names) > NEEDED, strict=True))
        for half in (chosen, ~chosen)
    )
    others = [name for name in names if name != "how many"]
    following = max(others, key=lambda name: before[name].sum())
    return after["how many"].ravel().astype(float) - after[following].ravel()


def mean_lead(
    leads: Sequence[np.ndarray], image_ids: ArrayLike, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """Mean over models of the sums of `count_needed`, for further models.

    leads: (heads,) of each model; image_ids: of the questions counted in. With one model, or equal
    leads, the interval is of a bootstrap over the first one's heads.
    """
    n_heads = len(leads[0])
    by_head = bootstrap_mean(leads[0], np.arange(n_heads), n_resamples, seed, bounds=(-1, 1))
    alone = (n_heads * by_head.low, n_heads * by_head.high)
    sizes = len(image_ids), len(np.unique(image_ids))
    return mean_of_models([lead.sum() for lead in leads], *sizes, alone)


def rank_over_models(
    measures: Sequence[np.ndarray],
    lost: Sequence[np.ndarray],
    image_ids: ArrayLike,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Does a measure rank heads as their removal does? Mean rank correlation over models.

    measures: (layer, head), lost: (question, layer, head) of each model. With one model the
    interval is over its heads. NaN where a model has no correlation.
    """
    pairs = zip(measures, lost, strict=True)
    ranks = [rank_correlation(one, cost.mean(0), n_resamples, seed) for one, cost in pairs]
    sizes = len(image_ids), len(np.unique(image_ids))
    return mean_of_models([rank.estimate for rank in ranks], *sizes, ranks[0][1:3], (-1, 1))


def needed_heads(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """How many heads does each family need, over models? A row a family, the neediest first.

    tables: of `removal_effects`, one each model. Columns: family, heads (whose removal costs it
    more than NEEDED, mean over models), fewest, most, undecided (heads whose interval reaches both
    sides of NEEDED, mean over models), n (questions).
    """
    every = pd.concat(tables, keys=range(len(tables)), names=["model", "row"])
    every = every[every["told"] & (every["family"] != "all")]
    near = (every["low"] <= NEEDED) & (every["high"] > NEEDED)
    every = every.assign(needed=every["drop"] > NEEDED, near=near)
    counts = every.groupby(["family", "model"])[["needed", "near"]].sum().groupby("family")
    table = counts["needed"].agg(heads="mean", fewest="min", most="max")
    table["undecided"], table["n"] = counts["near"].mean(), every.groupby("family")["n"].first()
    return table.sort_values("heads", ascending=False, kind="stable").reset_index()


def normalise_by_layer(importance: np.ndarray) -> np.ndarray:
    """Importance (layer, head) over its layer's L2 norm, NaN in a layer of zeros.

    Gradients differ in size between layers for reasons that have nothing to do with heads
    (Molchanov et al. 2017, equation 10).
    """
    return divide_or_nan(importance, np.linalg.norm(importance, axis=1, keepdims=True))


def rank_measures(
    measures: dict[str, np.ndarray], n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Do measures of importance (layer, head) rank the heads alike? A row a pair of measures.

    Columns: over ("all heads", or "within layers": each less its layer's mean), first, second,
    correlation, low, high (of `rank_correlation`), n (heads), p (`rank_permutation_test` within
    layers: heads of a layer are alike, so that an interval over all heads leaves out 0 in 8 to 20 %
    of cases where nothing is in common).
    """
    rows = []
    for over in ("all heads", "within layers"):
        for pair in combinations(measures, 2):
            values = [np.asarray(measures[name], float) for name in pair]
            if over == "within layers":
                values = [value - value.mean(1, keepdims=True) for value in values]
            values = [value.round(9) for value in values]  # so that equal values are ties
            rank = rank_correlation(*values, n_resamples, seed)
            p = rank_permutation_test(*values, strata=np.indices(values[0].shape)[0])[1]
            rows.append((over, *pair, *map(float, rank[:3]), int(rank.n), p))
    columns = ["over", "first", "second", "correlation", "low", "high", "n", "p"]
    return pd.DataFrame(rows, columns=columns)


def logits_lost(table: AttentionTable) -> np.ndarray:
    """How far each variant lowers the logit of the model's answer: (question, variant)."""
    values = np.column_stack([table.probability, table.variant_probability]).astype(float)
    logits = logit(values.clip(1e-7, 1 - 1e-7))
    return logits[:, :1] - logits[:, 1:]


def fit_contributions(gains: np.ndarray, lost: ArrayLike) -> tuple[np.ndarray, float]:
    """What each head contributes, from sets of heads removed: contributions (layer, head), R^2.

    gains: of `sample_sets`; lost: (set,), such as the mean of `logits_lost`. Ridge regression on
    the heads of each set. R^2: of each set predicted from the others (leave-one-out, from the
    leverages), with the one of PENALTIES that predicts best.
    """
    removed, lost = 1 - gains.reshape(len(gains), -1), np.asarray(lost, dtype=float)
    x, y, n = removed - removed.mean(0), lost - lost.mean(), len(lost)
    fits = []
    for penalty in PENALTIES:
        solve = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T)
        leverage = (x * solve.T).sum(1) + 1 / n
        left_out = (y - x @ (solve @ y)) / (1 - leverage)
        total = (y**2).sum() * (n / (n - 1)) ** 2
        fits.append((1 - (left_out**2).sum() / total, solve @ y))
    r2, contributions = max(fits, key=lambda fit: fit[0])
    return contributions.reshape(gains.shape[1:]), float(r2)


def pair_excess(lost: np.ndarray, pairs: np.ndarray, n_heads: int) -> np.ndarray:
    """What a pair costs beyond what its two heads cost alone: (question, pair), from `pair_gains`.

    Above 0 where two heads stand in for each other.
    """
    single, _, together = split_variants(lost, n_heads)
    return together - single[:, pairs].sum(2)


def share_of_backups(excess: Sequence[np.ndarray], image_ids: ArrayLike) -> Interval:
    """Percent of pairs whose `pair_excess` (of each model) is over 2 points, over models."""

    def share(model: int, rows: np.ndarray) -> float:
        return 100 * np.mean(excess[model][rows].mean(0) > 2 + 1e-6)  # not by rounding

    return jackknife_over_models(share, len(excess), image_ids, limits=(0, 100))


def tabulate_pairs(
    excess: Sequence[np.ndarray], pairs: np.ndarray, n_heads_a_layer: int, half: np.ndarray
) -> pd.DataFrame:
    """Every pair of heads of every model: a row each; half: (question,), half of the images.

    Columns: model, first, second (heads as L3H7), excess (points, `pair_excess`), excess_a,
    excess_b (on each half).
    """
    layer_head = (np.stack(divmod(own, n_heads_a_layer), axis=1) for own in pairs.T)
    first, second = (name_heads(pd.DataFrame(x, columns=["layer", "head"])) for x in layer_head)
    parts, tables = {"excess": slice(None), "excess_a": half, "excess_b": ~half}, []
    for model, each in enumerate(excess):
        means = {name: each[rows].mean(0) for name, rows in parts.items()}
        tables.append(pd.DataFrame({"model": model, "first": first, "second": second, **means}))
    return pd.concat(tables, ignore_index=True)


def tabulate_emphasis(
    lost: Sequence[np.ndarray], families: ArrayLike, image_ids: ArrayLike, n_heads: int
) -> pd.DataFrame:
    """What rises and what falls when one head says more, or nothing: a row a family and factor.

    lost: (question, variant) of `pair_gains`, a model each. Columns: family ("all" first), factor
    (0: removed), estimate, low, high (points lost, mean over heads and models), risen and fallen
    (heads a model that gain or lose more than 2 points), n, n_models.
    """
    parts = [split_variants(of_model, n_heads)[:2] for of_model in lost]
    lost = np.stack([np.concatenate([one[:, None], more], axis=1) for one, more in parts])
    families, image_ids, tables = np.asarray(families), np.asarray(image_ids), []
    for family in ("all", *order_families(families)):
        own = (families == family) | (family == "all")
        means = lost[:, own].mean(1)  # (model, factor, head)
        risen, fallen = ((sign * means > 2).sum(2).mean(0) for sign in (-1, 1))
        over = mean_over_models(lost[:, own].mean(3), image_ids[own])
        table = over.to_table({"factor": (0.0, *FACTORS)}).assign(n_models=over.n_models)
        tables.append(table.assign(family=family, risen=risen, fallen=fallen))
    names = ["family", "factor", "estimate", "low", "high", "risen", "fallen", "n", "n_models"]
    return pd.concat(tables, ignore_index=True)[names]


def compare_contributions(
    measures: Mapping[str, Sequence[np.ndarray]], sets: Sequence[tuple[AttentionTable, np.ndarray]]
) -> pd.DataFrame:
    """Do measures rank heads as their contributions to sets do? A row a measure.

    measures: name -> (layer, head), sets: of `measure_joint`, of each model. Columns: measure,
    correlation, low, high (of `rank_over_models`), r2 (mean of `fit_contributions`), n_models.
    """
    fits = [fit_contributions(gains, logits_lost(table).mean(0)) for table, gains in sets]
    contributions, r2 = [of_heads[None] for of_heads, _ in fits], np.mean([r2 for _, r2 in fits])
    rows = []
    for name, values in measures.items():
        over = rank_over_models(values, contributions, [])
        rows.append((name, over.estimate, over.low, over.high, r2, over.n_models))
    return pd.DataFrame(rows, columns=["measure", "correlation", "low", "high", "r2", "n_models"])
