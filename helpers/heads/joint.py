"""Heads removed or emphasised together: what each contributes, and which stand in for each other.

    sets = measure_joint(study, model, encoded, "sets")    # random sets of heads removed
    contributions, r2 = fit_contributions(sets.gains, logits_lost(sets.table).mean(0))

Removed one at a time, two heads that can each do the other's work both look idle. Random sets of
heads show them, as in the datamodels of Ilyas et al. (2022, "Predicting predictions from training
data"); heads scaled up as in CogVision (2025).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.special import logit
from torch import Tensor, nn

from helpers.attention.extract import (
    AttentionTable,
    extract_once,
    in_measuring_precision,
    name_heads,
    points_lost,
    sample_questions,
)
from helpers.data.encode import EncodedQuestions
from helpers.data.vqa import order_families, score_answers
from helpers.heads.effects import rank_over_models
from helpers.heads.removal import answer_variants, pack_forward, scale_heads
from helpers.run.cache import source_digest
from helpers.run.settings import Study
from helpers.stats.models import ModelMean, jackknife_over_models, mean_over_models

FACTORS = (1.5, 2.0, 3.0)  # that the output of an emphasised head is multiplied by
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # of the ridge regression, of which one is selected


class Variants(NamedTuple):
    """Answers of a model whose heads are scaled: a row of `gains` a variant of the table."""

    table: AttentionTable  # variant_answer, variant_probability: (question, variant)
    gains: np.ndarray  # (variant, layer, head), that a head's z is multiplied by

    def lost(self, answers: Sequence[Sequence[str]], labels: Mapping[int, str]) -> np.ndarray:
        """Points of VQA accuracy that each question loses by each variant: (question, variant).

        answers: each question's ten; labels: the answer of each number.
        """
        scores = score_answers(self.table.variant_answer, answers, labels)
        return points_lost(self.table.questions, scores)


def list_pairs(n_heads: int, n_pairs: int, seed: int = 0) -> np.ndarray:
    """Pairs of heads (pair, 2), counted over all layers: all, or n_pairs drawn at random."""
    pairs = np.array([*combinations(range(n_heads), 2)])
    return pairs[sample_questions(len(pairs), n_pairs, seed)]


def pair_gains(shape: tuple[int, int], pairs: np.ndarray) -> np.ndarray:
    """Gains (variant, layer, head): each head removed, each at all FACTORS; each pair removed."""
    n_heads = shape[0] * shape[1]
    factors = np.repeat([0.0, *FACTORS], n_heads)
    gains = np.ones((len(factors) + len(pairs), n_heads))
    gains[np.arange(len(factors)), np.tile(np.arange(n_heads), len(FACTORS) + 1)] = factors
    gains[len(factors) + np.arange(len(pairs))[:, None], pairs] = 0
    return gains.reshape(-1, *shape)


def sample_sets(shape: tuple[int, int], n_sets: int, seed: int = 0) -> np.ndarray:
    """Gains (set, layer, head) of random sets of heads removed, of one up to half of the heads."""
    generator, n_heads = np.random.default_rng(seed), shape[0] * shape[1]
    gains = np.ones((n_sets, n_heads))
    for row in gains:
        size = generator.integers(1, n_heads // 2 + 1)
        row[generator.choice(n_heads, size, replace=False)] = 0
    return gains.reshape(-1, *shape)


def measure_joint(
    study: Study, model: nn.Module, encoded: EncodedQuestions, kind: str, number: int = 0
) -> Variants:
    """The answers to a sample of questions with heads scaled together; once, in shards.

    kind: "pairs", `pair_gains` of at most `joint_sets` pairs on `pair_questions`; else `joint_sets`
    of `sample_sets` on `joint_questions`. number: which of the study's models it is. Kept in
    run_dir/<kind>_<number>.
    """
    shape = model.config.num_hidden_layers, model.config.num_attention_heads
    setting, gains = "joint_questions", sample_sets(shape, study.joint_sets, study.seed)
    if kind == "pairs":
        pairs = list_pairs(shape[0] * shape[1], study.joint_sets, study.seed)
        setting, gains = "pair_questions", pair_gains(shape, pairs)
    variants, axes = scale_heads(gains), (len(gains),)

    @torch.no_grad()
    def measure(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return answer_variants(pack_forward(model, batch), variants)

    some = encoded.select(sample_questions(len(encoded), getattr(study, setting), study.seed))
    of_variants = {"variant_answer": ("int32", axes), "variant_probability": ("float32", axes)}
    layout = {"probability": ("float32", ()), **of_variants}
    inputs = study.settings("seed", "joint_sets", setting) | {"number": number}
    inputs["used"] = source_digest("helpers/heads")
    step = f"{kind}_{number}", in_measuring_precision(model, study), some, measure, layout
    return Variants(extract_once(study, *step, **inputs), gains)


def logits_lost(table: AttentionTable) -> np.ndarray:
    """How far each variant lowers the logit of the model's answer: (question, variant)."""
    whole, changed = (
        logit(np.clip(values.astype(float), 1e-7, 1 - 1e-7))
        for values in (table.probability, table.variant_probability)
    )
    return whole[:, None] - changed


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


def split_variants(values: np.ndarray, n_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (question, variant) of `pair_gains` apart; n_heads: over all layers.

    Of heads removed (question, head), emphasised (question, factor, head), pairs (question, pair).
    """
    ends = n_heads, n_heads * (len(FACTORS) + 1)
    single, emphasised, pairs = np.split(values, ends, axis=1)
    return single, emphasised.reshape(len(values), len(FACTORS), n_heads), pairs


def pair_excess(lost: np.ndarray, pairs: np.ndarray, n_heads: int) -> np.ndarray:
    """What a pair costs beyond what its two heads cost alone: (question, pair), from `pair_gains`.

    Above 0 where two heads stand in for each other.
    """
    single, _, together = split_variants(lost, n_heads)
    return together - single[:, pairs].sum(2)


def share_of_backups(
    excess: Sequence[np.ndarray], image_ids: ArrayLike, least: float = 2
) -> ModelMean:
    """Percent of pairs whose `pair_excess` (of each model) is over `least` points, over models."""

    def share(model: int, rows: np.ndarray) -> float:
        return 100 * np.mean(excess[model][rows].mean(0) > least + 1e-6)  # not by rounding

    return jackknife_over_models(share, len(excess), image_ids, limits=(0, 100))


def tabulate_pairs(
    excess: Sequence[np.ndarray], pairs: np.ndarray, n_heads_a_layer: int, half: np.ndarray
) -> pd.DataFrame:
    """Every pair of heads of every model: a row each; half: (question,), half of the images.

    Columns: model, first, second (heads as L3H7), excess (points, `pair_excess`), excess_a,
    excess_b (on each half).
    """
    first, second = (
        name_heads(
            pd.DataFrame(np.stack(divmod(own, n_heads_a_layer), 1), columns=["layer", "head"])
        )
        for own in pairs.T
    )
    tables = []
    for model, each in enumerate(excess):
        means = {"excess": each, "excess_a": each[half], "excess_b": each[~half]}
        means = {name: part.mean(0) for name, part in means.items()}
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
        over = mean_over_models(lost[:, own].mean(3), image_ids[own])._asdict()
        columns = {name: over[name] for name in ("estimate", "low", "high", "n", "n_models")}
        columns |= {"family": family, "factor": (0.0, *FACTORS), "risen": risen, "fallen": fallen}
        tables.append(pd.DataFrame(columns))
    names = ["family", "factor", "estimate", "low", "high", "risen", "fallen", "n", "n_models"]
    return pd.concat(tables, ignore_index=True)[names]


def compare_contributions(
    measures: Mapping[str, Sequence[np.ndarray]], sets: Sequence[Variants]
) -> pd.DataFrame:
    """Do measures rank heads as their contributions to sets do? A row a measure.

    measures: name -> (layer, head) of each model; sets: of `measure_joint`, of each model. Columns:
    measure, correlation, low, high (of `rank_over_models`), r2 (of `fit_contributions`, mean over
    models), n_models.
    """
    fits = [fit_contributions(each.gains, logits_lost(each.table).mean(0)) for each in sets]
    contributions, r2 = [of_heads[None] for of_heads, _ in fits], np.mean([r2 for _, r2 in fits])
    rows = []
    for name, values in measures.items():
        over = rank_over_models(values, contributions, [])
        rows.append((name, over.estimate, over.low, over.high, r2, over.n_models))
    return pd.DataFrame(rows, columns=["measure", "correlation", "low", "high", "r2", "n_models"])
