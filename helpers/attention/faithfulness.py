"""Do the patches that a map calls important matter to the answer? Deletion, insertion, and boxes.

    orders = {"relevance": [rank_patches(map) for map in maps], "random": random_orders(counts, seed)}
    curves = perturbation_curves(model, encoded, indices, orders)
    score_maps(curves, image_ids)

A patch is removed by leaving its token out of the sequence, as in the perturbation tests of Chefer et al. (2021), so
the model sees no made-up pixels; words, the image's own CLS and the places of the other patches stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from helpers.attention.measures import prepare_batch
from helpers.data.encode import EncodedQuestions
from helpers.heads.roles import cover_box
from helpers.model.vilt import forward_raster
from helpers.stats.bootstrap import bootstrap_mean
from helpers.stats.cluster_robust import divide_or_nan

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


def keep_patches(inputs: dict[str, Tensor], patches: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """A prepared batch with some patches only, in place: patches lists those of each question; the image's CLS stays."""
    device = inputs["image_embeds"].device
    rows = [
        torch.from_numpy(np.concatenate([[0], np.sort(kept) + 1]).astype(int)) for kept in patches
    ]
    where = pad_sequence(rows, batch_first=True).to(device)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)
    embeds = inputs["image_embeds"].gather(
        1, where[..., None].expand(-1, -1, inputs["image_embeds"].shape[2])
    )
    return {**inputs, "image_embeds": embeds, "pixel_mask": mask}


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


def score_boxes(boxes: pd.DataFrame, clusters, n_resamples=1000, seed=0) -> pd.DataFrame:
    """Pointing and mass in the box of each map and head over the questions with a box, with 95 % intervals over images.

    boxes: a row a question and map, with map, layer, head, pointing, mass, chance; clusters: their image ids. Columns:
    map, layer, head, measure ("pointing", "mass"), estimate, low, high, n, n_clusters, chance (mean share of patches in
    the box; 1 for mass, which is counted in it).
    """
    tables = [pd.DataFrame()]
    for (name, layer, head), rows in boxes.groupby(["map", "layer", "head"], sort=False):
        values = rows[["pointing", "mass"]].to_numpy()
        table = bootstrap_mean(values, clusters[rows.index], n_resamples, seed).to_table(
            ("measure",)
        )
        chance = [rows["chance"].mean(), 1.0]
        tables.append(
            table.assign(
                map=name, layer=layer, head=head, measure=["pointing", "mass"], chance=chance
            )
        )
    return pd.concat(tables, ignore_index=True)


def cover_boxes(boxes, grid, size) -> np.ndarray:
    """The patches that lie in any of the boxes: bool (rows, columns), none without boxes; see `heads.cover_box`."""
    return np.any(
        [np.zeros(grid, dtype=bool), *(cover_box(box, grid, size) for box in boxes)], axis=0
    )


def point_in_box(weights: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pointing game (Zhang et al. 2018): 1 where a map's largest weight lies inside, else 0.

    weights: (..., patch) or (..., rows, columns); inside: bool (patch,) or (rows, columns). Of equals the first counts.
    NaN for a map of zeros, and where no patch is inside (a question without a box).
    """
    flat = weights.reshape(*weights.shape[: weights.ndim - inside.ndim], inside.size)
    hit = inside.ravel()[flat.argmax(-1)].astype(float)
    return np.where((flat.max(-1) > 0) & inside.any(), hit, np.nan)


def mass_in_box(weights: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Share of a map's mass that lies inside, over the share of patches inside: 1 is chance.

    weights, not negative, and inside: as `point_in_box`. NaN for a map of zeros, and where no patch is inside.
    """
    flat = weights.reshape(*weights.shape[: weights.ndim - inside.ndim], inside.size)
    return divide_or_nan(
        divide_or_nan(flat[..., inside.ravel()].sum(-1), flat.sum(-1)), inside.mean()
    )[()]
