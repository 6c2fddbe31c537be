"""Do the patches that a map calls important matter to the answer? Deletion, insertion, and boxes.

    orders = {"relevance": [rank_patches(map) for map in maps], "random": random_orders(counts, seed)}
    curves = perturbation_curves(model, encoded, indices, orders)
    score_maps(curves, image_ids)

A patch is removed by leaving its token out of the sequence, as in the perturbation tests of Chefer et al. (2021), so
the model sees no made-up pixels; words, the image's own CLS and the places of the other patches stay.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from helpers.attention.extract import measure_once, sample_questions
from helpers.attention.grounding import ground_maps
from helpers.attention.image_share import keep_patches, prepare_batch
from helpers.attention.relevance import explain, patch_maps
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import forward_raster
from helpers.run.settings import Study
from helpers.stats.bootstrap import bootstrap_mean

FRACTIONS = tuple(np.linspace(0, 1, 11).round(3).tolist())
KINDS = ("deletion", "insertion")


@dataclass
class Curves:
    """How the answer fares as patches go or come: arrays (order, kind, question, fraction).

    probability: of the answer that the intact model gives (sigmoid of its logit); accuracy: VQA accuracy, NaN without
    answers. kind: KINDS. orders: their names; fractions: of the patches that are removed (deletion) or kept (insertion).
    """

    orders: list[str]
    fractions: Sequence[float]
    probability: np.ndarray
    accuracy: np.ndarray


def rank_patches(weights) -> np.ndarray:
    """Raster indices of a map's patches, the most important first; of equals, the first."""
    return np.argsort(-np.ravel(weights), kind="stable")


def random_orders(counts: Sequence[int], seed: int) -> list[np.ndarray]:
    """A random order of each question's patches: counts (n,) of patches."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(count) for count in counts]


@torch.no_grad()
def perturbation_curves(
    model: nn.Module,
    encoded: EncodedQuestions,
    indices: Sequence[int],
    orders: Mapping[str, Sequence[np.ndarray]],
    fractions: Sequence[float] = FRACTIONS,
    batch_size: int = 64,
) -> Curves:
    """Remove the first patches of each order step by step (deletion), or keep only these (insertion).

    orders: for each name an order of every question's patches, in the sequence of `indices`. The first round(f * P)
    patches count. Keeping the first k is removing the last P - k: insertion is the deletion of the reversed order, read
    backwards, so a reversed order needs no case of its own.
    ValueError for a model in train mode, a question given twice, and an order that does not hold each patch once.
    """
    if model.training:
        raise ValueError("in train mode dropout blurs every answer: call model.eval() first.")
    if np.diff(fractions).min(initial=1) <= 0 or not 0 <= fractions[0] <= fractions[-1] <= 1:
        raise ValueError(f"fractions {tuple(fractions)} must rise within 0 and 1.")
    place = {index: number for number, index in enumerate(indices)}
    if len(place) < len(indices):
        raise ValueError("indices names a question more than once: give each question once.")
    for name, ranked in orders.items():
        if len(ranked) != len(indices):
            raise ValueError(
                f"order {name!r} is for {len(ranked)} questions, but indices names {len(indices)}."
            )
    shape = (len(orders), len(KINDS), len(indices), len(fractions))
    probability, labels = np.zeros(shape), np.zeros(shape, dtype=int)
    for part, batch in encoded.batches(batch_size, indices):
        rows = [place[index] for index in part]
        inputs = prepare_batch(model, batch).inputs
        counts = inputs["pixel_mask"][:, 1:].sum(1).tolist()
        best = forward_raster(model, inputs).logits.argmax(1, keepdim=True)
        for number, (name, ranked) in enumerate(orders.items()):
            own = [
                check_order(ranked[row], count, name, index)
                for row, count, index in zip(rows, counts, part, strict=True)
            ]
            for step, fraction in enumerate(fractions):
                gone = [count_patches(fraction, count) for count in counts]
                # counted from the other end, so that a half rounds alike in both
                come = [count - count_patches(1 - fraction, count) for count in counts]
                kept = ([order[cut:] for order, cut in zip(own, gone, strict=True)],
                        [order[:cut] for order, cut in zip(own, come, strict=True)])  # fmt: skip
                for kind, patches in enumerate(kept):
                    logits = forward_raster(model, keep_patches(inputs, patches)).logits.float()
                    probability[number, kind, rows, step] = (
                        logits.gather(1, best)[:, 0].sigmoid().cpu()
                    )
                    labels[number, kind, rows, step] = logits.argmax(1).cpu()
    labels = np.moveaxis(labels, 2, 0)  # question first
    accuracy = np.moveaxis(encoded.score(labels, indices, model.config.id2label), 0, 2)
    return Curves(list(orders), fractions, probability, accuracy)


def count_patches(fraction: float, count: int) -> int:
    """The nearest whole number of patches; 0.1 and 1 - 0.9, which differ in the last bit, give the same."""
    return round(round(fraction * count, 6))


def check_order(order: np.ndarray, count: int, name: str, index: int) -> np.ndarray:
    """The order, if it holds each of `count` patches once; else a ValueError that names it and the question."""
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise ValueError(
            f"order {name!r} of question {index} must hold each of its {count} patches once."
        )
    return order


def curve_area(values: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Area under curves (..., fraction) by the trapezoid rule, over the width: a constant v gives v."""
    return np.trapezoid(values, fractions, axis=-1) / (fractions[-1] - fractions[0])


def tabulate_curves(curves: Curves, clusters, n_resamples=1000, seed=0) -> pd.DataFrame:
    """Mean probability along the curves, with 95 % intervals over images: order, kind, fraction, estimate, low, high, n, ..."""
    values = np.moveaxis(curves.probability, 2, 0)  # (question, order, kind, fraction)
    table = bootstrap_mean(values, clusters, n_resamples, seed).to_table(
        ("order", "kind", "fraction")
    )
    names = {"order": curves.orders, "kind": KINDS, "fraction": curves.fractions}
    return table.assign(
        **{axis: [known[place] for place in table[axis]] for axis, known in names.items()}
    )


def score_maps(
    curves: Curves, clusters, random: str = "random", n_resamples=1000, seed=0
) -> pd.DataFrame:
    """The scoreboard: area under each order's curves of probability, and what it gains over the random order.

    clusters: (question,) image ids, which the 95 % intervals resample. Columns: order, measure, estimate, low, high, n,
    n_clusters. measure: "deletion" and "insertion" (areas); "deletion_gain" (random minus own: how much faster the answer
    is lost) and "insertion_gain" (own minus random), paired by question; above 0 the map is better than chance.
    """
    if random not in curves.orders:
        raise ValueError(
            f"no order is named {random!r}: the curves have {', '.join(curves.orders)}."
        )
    areas = curve_area(curves.probability, curves.fractions)  # (order, kind, question)
    chance, rows = areas[curves.orders.index(random)], []
    for order, (deletion, insertion) in zip(curves.orders, areas, strict=True):
        values = {"deletion": deletion, "insertion": insertion, "deletion_gain": chance[0] - deletion,
                  "insertion_gain": insertion - chance[1]}  # fmt: skip
        for measure, each in values.items():
            interval = bootstrap_mean(each, clusters, n_resamples, seed)
            rows.append({"order": order, "measure": measure, **interval._asdict()})
    return pd.DataFrame(rows)


def measure_faithfulness(
    study: Study, model: nn.Module, twin: nn.Module, encoded: EncodedQuestions, dataset: Dataset
) -> tuple[np.ndarray, Curves, pd.DataFrame]:
    """Take patches away in the order of each map, and hold the maps against the boxes asked about; done once.

    On `faithfulness_questions` validation questions, drawn with the study's seed. twin: the `random_weight_model`, whose
    relevance is the control with random weights. Kept in run_dir/faithfulness: curves.npz (the arrays of Curves, and
    question: the rows drawn) and boxes.parquet. Returns these rows; the curves, with orders for each of
    `patch_maps`, "random", "reversed relevance" and "untrained relevance"; and a table with a row for each map
    and head (its [CLS] query) of each question with a box: question (row), map, layer, head (-1 for a combined map),
    pointing, mass (see `grounding.point_in_box`, `mass_in_box`), chance (share of patches in the box).
    """
    chosen = sample_questions(len(encoded), study.faithfulness_questions, study.seed)

    def measure(folder: Path) -> None:
        orders, boxes = defaultdict(list), []
        for row in tqdm(chosen.tolist(), desc="maps", unit="question"):
            batch = encoded.collate([encoded[row]])
            explanation = explain(model, batch)[0]
            maps = patch_maps(explanation)
            control = patch_maps(explain(twin, batch, [explanation.answer])[0])["relevance"]
            for name, weights in {**maps, "untrained relevance": control}.items():
                orders[name].append(rank_patches(weights))
            orders["reversed relevance"].append(orders["relevance"][-1][::-1])
            boxes.append(ground_maps(row, explanation.maps, maps, dataset[row]))
        counts = [len(order) for order in orders["relevance"]]
        orders["random"] = random_orders(counts, study.seed)
        curves = perturbation_curves(model, encoded, chosen.tolist(), orders)
        np.savez(folder / "curves.npz", question=chosen, **asdict(curves))
        known = [each for each in boxes if len(each)] or boxes[:1]  # concat warns of empty tables
        pd.concat(known).to_parquet(folder / "boxes.parquet", index=False)

    inputs = study.settings("seed", "faithfulness_questions")
    folder = measure_once(study, "faithfulness", measure, **inputs)
    with np.load(folder / "curves.npz") as kept:
        arrays = (kept[name] for name in ("fractions", "probability", "accuracy"))
        curves = Curves(kept["orders"].tolist(), *arrays)
        return chosen, curves, pd.read_parquet(folder / "boxes.parquet")
