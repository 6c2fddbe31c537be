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
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from helpers.attention.extract import measure_once
from helpers.attention.image_share import check_eval_mode, keep_patches, prepare_batch
from helpers.attention.relevance import explain, patch_maps
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import forward_raster
from helpers.model.vilt import random_weight_model
from helpers.run.settings import Study

FRACTIONS = (0, 1 / 3, 2 / 3, 1)  # few, so that many models can be asked
KINDS = ("deletion", "insertion")


class Curves(NamedTuple):
    """How the answer fares as patches go or come.

    fractions: of the patches removed (deletion) or kept (insertion), from 0 to 1. probability: of
    the intact model's answer, the sigmoid of its logit: (order, KINDS, question, fraction).
    first_patch: the one that goes or comes first: (order, question).
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

    indices: of the questions, each once. orders: for each name an order of every question's
    patches; the first round(f * P) count. Keeping the first k is removing the last P - k, so an
    insertion is the deletion of the reversed order, read backwards. ValueError for a model in train
    mode, and for an order that does not hold each patch once.
    """
    check_eval_mode(model)
    row_of = {index: row for row, index in enumerate(indices)}
    gone = np.array([fractions, np.subtract(1, fractions)])  # (kind, step)
    probability = np.zeros((len(orders), len(KINDS), len(indices), len(fractions)))
    for part, batch in encoded.batches(batch_size, indices):
        rows, inputs = [row_of[index] for index in part], prepare_batch(model, batch).inputs
        counts = inputs["pixel_mask"][:, 1:].sum(1).tolist()
        best = forward_raster(model, inputs).logits.argmax(1, keepdim=True)
        known = {}  # every order begins and ends alike: how many patches in all -> probability
        for number, (name, of_all) in enumerate(orders.items()):
            ranked = [of_all[row] for row in rows]
            for order, count, index in zip(ranked, counts, part, strict=True):
                if not np.array_equal(np.sort(order), np.arange(count)):
                    rule = f"must hold each of its {count} patches once"
                    raise ValueError(f"order {name!r} of question {index} {rule}.")
            for (kind, step), share in np.ndenumerate(gone):
                turned = [each[::-1] if kind else each for each in ranked]
                patches = [each[count_patches(share, len(each)) :] for each in turned]
                n_kept = sum(map(len, patches))
                if (found := known.get(n_kept)) is None:
                    logits = forward_raster(model, keep_patches(inputs, patches)).logits.float()
                    found = logits.gather(1, best)[:, 0].sigmoid().cpu()
                if n_kept in (0, sum(counts)):
                    known[n_kept] = found
                probability[number, kind, rows, step] = found
    first = np.array([[ranked[0] for ranked in of_all] for of_all in orders.values()])
    return Curves(list(orders), fractions, probability, first)


def count_patches(fraction: float, count: int) -> int:
    """The nearest whole number of patches, the same for 0.1 and 1 - 0.9, which are not equal."""
    return round(round(fraction * count, 6))


def rank_maps(
    model: nn.Module, encoded: EncodedQuestions, rows: Sequence[int], explained_by: nn.Module
) -> dict[str, list[np.ndarray]]:
    """Each of `patch_maps` as an order of every question's patches: name -> an order a question.

    The maps are those that the model `explained_by` draws of the answers of `model`.
    """
    orders = defaultdict(dict)
    for part, batch in encoded.batches(8, rows):  # few: an explanation holds whole matrices
        with torch.no_grad():
            answers = forward_raster(model, batch).logits.argmax(1).tolist()
        explanations = explain(explained_by, batch, answers)
        for row, explanation in zip(part, explanations, strict=True):
            for name, weights in patch_maps(explanation).items():
                orders[name][row] = rank_patches(weights)
    return {name: [ranked[row] for row in rows] for name, ranked in orders.items()}


def map_gains(curves: Curves) -> np.ndarray:
    """How much sooner than by the order "random" an answer is lost and won: (map, KINDS, question).

    In area under the curves: random minus map for deletion, map minus random for insertion; 0 for
    chance. The maps are all orders but "random", in their order.
    """
    areas = np.trapezoid(curves.probability, curves.fractions)
    random = curves.orders.index("random")
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
        orders = rank_maps(model, encoded, rows, model)
        counts = [len(order) for order in next(iter(orders.values()))]
        orders["random"] = random_orders(counts, study.seed)
        curves = perturbation_curves(model, encoded, rows, orders)
        np.savez(folder / "curves.npz", **curves._asdict())

    inputs = {**study.settings("seed"), "rows": rows, "number": number}
    folder = measure_once(study, "faithfulness", measure, **inputs)
    with np.load(folder / "curves.npz") as kept:
        return Curves(**kept)._replace(orders=kept["orders"].tolist())


def measure_random_gains(
    study: Study, model: nn.Module, encoded: EncodedQuestions, rows: Sequence[int], name: str
) -> np.ndarray:
    """The gain of a map that has learnt nothing, mean over KINDS: (random model, question); once.

    Patches go and come in the model in the order of the map `name` (of `patch_maps`) that each of
    `random_models` draws of the model's answer. Kept in faithfulness_random.
    """
    rows, n_models = [int(row) for row in rows], study.random_models

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
