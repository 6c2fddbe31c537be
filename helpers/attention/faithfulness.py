"""Do the patches that a map calls important matter to the answer? Deletion and insertion.

    orders = {"relevance": [rank_patches(each) for each in maps]}
    orders["random"] = random_orders(counts, seed)
    curves = perturbation_curves(model, encoded, indices, orders)
    map_gains(curves)       # (map, KINDS, question), above the order "random"

A removed patch leaves the sequence, as in the perturbation tests of Chefer et al. (2021), so that
the model sees no made-up pixels. Words, the image's CLS and the other patches' positions stay.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.attention.extract import measure_once
from helpers.attention.image_share import check_eval_mode, keep_patches, prepare_batch
from helpers.attention.relevance import explain, patch_maps
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import forward_raster
from helpers.model.vilt import random_weight_model
from helpers.run.settings import Study
from helpers.stats.bootstrap import Interval
from helpers.stats.models import mean_over_models

FRACTIONS = (0, 1 / 3, 2 / 3, 1)  # few, so that many models can be asked
KINDS = ("deletion", "insertion")


@dataclass
class Curves:
    """How the answer fares as patches go or come.

    fractions: of the patches removed (deletion) or kept (insertion). probability: of the intact
    model's answer, the sigmoid of its logit: (order, KINDS, question, fraction). first_patch: the
    one that goes or comes first: (order, question).
    """

    orders: list[str]
    fractions: Sequence[float]
    probability: np.ndarray
    first_patch: np.ndarray


def rank_patches(weights: np.ndarray) -> np.ndarray:
    """Raster indices of a map's patches, the most important first; of equals, the first."""
    return np.argsort(-np.ravel(weights), kind="stable")


def random_orders(counts: Sequence[int], seed: int) -> list[np.ndarray]:
    """A random order of each question's patches; counts: how many each has."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(count) for count in counts]


@torch.no_grad()
def perturbation_curves(
    model: nn.Module,
    encoded: EncodedQuestions,
    indices: Sequence[int],
    orders: Mapping[str, Sequence[np.ndarray]],
    fractions: Sequence[float] = FRACTIONS,
    batch_size: int = 64,
) -> Curves:
    """Remove the first patches of each order in steps (deletion), or keep only them (insertion).

    indices: of the questions. orders: for each name an order of every question's patches; the first
    round(f * P) count. Keeping the first k is removing the last P - k, so an insertion is the
    deletion of the reversed order, read backwards. ValueError for a model in train mode, a
    question given twice, and an order that does not hold each patch once.
    """
    check_eval_mode(model)
    if np.diff(fractions).min(initial=1) <= 0 or not 0 <= fractions[0] <= fractions[-1] <= 1:
        raise ValueError(f"fractions {tuple(fractions)} must rise within 0 and 1.")
    row_of = {index: row for row, index in enumerate(indices)}
    if len(row_of) < len(indices):
        raise ValueError("indices names a question more than once: give each question once.")
    for name, ranked in orders.items():
        if len(ranked) != len(indices):
            asked = f"indices names {len(indices)}"
            raise ValueError(f"order {name!r} is for {len(ranked)} questions, but {asked}.")
    shape = (len(orders), len(KINDS), len(indices), len(fractions))
    probability = np.zeros(shape)
    for part, batch in encoded.batches(batch_size, indices):
        rows = [row_of[index] for index in part]
        inputs = prepare_batch(model, batch).inputs
        counts = inputs["pixel_mask"][:, 1:].sum(1).tolist()
        best = forward_raster(model, inputs).logits.argmax(1, keepdim=True)
        ends = {0: None, sum(counts): None}  # every order begins and ends alike
        for number, (name, all_ranked) in enumerate(orders.items()):
            ranked = [all_ranked[row] for row in rows]
            for each, count, index in zip(ranked, counts, part, strict=True):
                check_order(each, count, name, index)
            for step, fraction in enumerate(fractions):
                removed = [count_patches(fraction, count) for count in counts]
                # counted from the other end, so that a half is rounded alike in both
                inserted = [count - count_patches(1 - fraction, count) for count in counts]
                kept = (
                    [each[n:] for each, n in zip(ranked, removed, strict=True)],
                    [each[:n] for each, n in zip(ranked, inserted, strict=True)],
                )
                for kind, patches in enumerate(kept):
                    logits = forward_kept(model, inputs, patches, ends)
                    where = (number, kind, rows, step)
                    probability[where] = logits.gather(1, best)[:, 0].sigmoid().cpu()
    first = np.array([[ranked[0] for ranked in all_ranked] for all_ranked in orders.values()])
    return Curves(list(orders), fractions, probability, first)


def forward_kept(
    model: nn.Module, inputs: dict[str, Tensor], patches: list[np.ndarray], known: dict
) -> Tensor:
    """Logits with only these patches; known: how many in all -> logits, None at first."""
    n_kept = sum(map(len, patches))
    if (logits := known.get(n_kept)) is None:
        logits = forward_raster(model, keep_patches(inputs, patches)).logits.float()
    if n_kept in known:
        known[n_kept] = logits
    return logits


def count_patches(fraction: float, count: int) -> int:
    """The nearest whole number of patches, the same for 0.1 and 1 - 0.9, which are not equal."""
    return round(round(fraction * count, 6))


def check_order(order: np.ndarray, count: int, name: str, index: int) -> None:
    """ValueError that names the question unless the order holds each of `count` patches once."""
    if not np.array_equal(np.sort(order), np.arange(count)):
        rule = f"must hold each of its {count} patches once"
        raise ValueError(f"order {name!r} of question {index} {rule}.")


def curve_area(values: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Area under curves (..., fraction) by the trapezoid rule, over the width: a mean value."""
    return np.trapezoid(values, fractions, axis=-1) / (fractions[-1] - fractions[0])


def rank_maps(
    model: nn.Module,
    encoded: EncodedQuestions,
    rows: Sequence[int],
    explained_by: nn.Module | None = None,
    batch_size: int = 8,
) -> dict[str, list[np.ndarray]]:
    """Each of `patch_maps` as an order of every question's patches: name -> an order a question.

    The maps are of the model's answers. explained_by: whose maps they are; by default the model's.
    """
    orders = defaultdict(dict)
    for part, batch in encoded.batches(batch_size, rows):
        with torch.no_grad():
            answers = forward_raster(model, batch).logits.argmax(1).tolist()
        explanations = explain(explained_by or model, batch, answers)
        for row, explanation in zip(part, explanations, strict=True):
            for name, weights in patch_maps(explanation).items():
                orders[name][row] = rank_patches(weights)
    return {name: [ranked[row] for row in rows] for name, ranked in orders.items()}


def map_gains(curves: Curves) -> np.ndarray:
    """How much sooner than by the order "random" an answer is lost and won: (map, KINDS, question).

    In area under the curves: random minus map for deletion, map minus random for insertion; 0 for
    chance. The maps are all orders but "random", in their order.
    """
    areas, random = curve_area(curves.probability, curves.fractions), curves.orders.index("random")
    gains = (areas - areas[random]) * np.array([-1, 1])[:, None]
    return np.delete(gains, random, axis=0)


def measure_curves(
    study: Study, model: nn.Module, encoded: EncodedQuestions, rows: Sequence[int], number: int = 0
) -> Curves:
    """The curves of each of `patch_maps` and of a "random" order on some questions; once.

    number: which of the study's models it is. Kept in run_dir/faithfulness, faithfulness_1, ...
    """
    rows = [int(row) for row in rows]

    def measure(folder: Path) -> None:
        orders = rank_maps(model, encoded, rows)
        counts = [len(order) for order in next(iter(orders.values()))]
        orders["random"] = random_orders(counts, study.seed)
        curves = perturbation_curves(model, encoded, rows, orders)
        np.savez(folder / "curves.npz", **asdict(curves))

    name = f"faithfulness_{number}" if number else "faithfulness"
    inputs = {**study.settings("seed"), "rows": rows}
    folder = measure_once(study, name, measure, number=number, **inputs)
    with np.load(folder / "curves.npz") as kept:
        arrays = {field.name: kept[field.name] for field in fields(Curves)}
    return Curves(**arrays | {"orders": arrays["orders"].tolist()})


def measure_random_gains(
    study: Study,
    model: nn.Module,
    encoded: EncodedQuestions,
    rows: Sequence[int],
    name: str,
    n_models: int = 24,
) -> np.ndarray:
    """The gain of a map that has learnt nothing, mean over KINDS: (random model, question); once.

    Patches go and come in the model in the order of the map `name` (of `patch_maps`) that each of
    `n_models` random-weight models draws of the model's answer. Kept in faithfulness_random.
    """
    rows = [int(row) for row in rows]

    def measure(folder: Path) -> None:
        orders = {}
        for seed in range(n_models):
            other = random_weight_model(model, study.seed + seed)
            orders[str(seed)] = rank_maps(model, encoded, rows, other)[name]
        orders["random"] = random_orders([len(order) for order in orders["0"]], study.seed)
        gains = map_gains(perturbation_curves(model, encoded, rows, orders))
        np.save(folder / "gains.npy", gains.mean(1))

    inputs = {**study.settings("seed"), "rows": rows, "map": name, "n_models": n_models}
    return np.load(measure_once(study, "faithfulness_random", measure, **inputs) / "gains.npy")


def tabulate_curves(curves: Sequence[Curves], image_ids: np.ndarray) -> pd.DataFrame:
    """Mean probability along the curves of several models, with a 95 % interval for both.

    curves: one a model, of the same orders and questions. Columns: order, kind, fraction,
    estimate, low, high (probabilities), n, n_clusters (images).
    """
    first = curves[0]
    values = np.array([np.moveaxis(each.probability, 2, 0) for each in curves])
    mean = mean_over_models(values, image_ids)
    low, high = np.clip([mean.low, mean.high], 0, 1)
    table = Interval(mean.estimate, low, high, mean.n, mean.n_images)
    table = Interval(*np.broadcast_arrays(*table)).to_table(("order", "kind", "fraction"))
    names = {"order": first.orders, "kind": KINDS, "fraction": first.fractions}
    return table.assign(**{axis: np.array(names[axis])[table[axis]] for axis in names})


def tabulate_maps(names: Sequence[str], values: np.ndarray, image_ids: np.ndarray) -> pd.DataFrame:
    """Mean of a measure of each map over models and questions, with a 95 % interval for both.

    values: (model, map, question). Columns: order, estimate, low, high, n, n_clusters (images).
    """
    rows = []
    for name, of_map in zip(names, np.swapaxes(values, 0, 1), strict=True):
        mean = mean_over_models(of_map, image_ids)
        numbers = {"estimate": mean.estimate, "low": mean.low, "high": mean.high}
        rows.append({"order": name, **numbers, "n": mean.n, "n_clusters": mean.n_images})
    return pd.DataFrame(rows)
