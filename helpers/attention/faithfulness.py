"""Do the patches that a map calls important matter to the answer? Deletion and insertion.

    orders = {"relevance": [rank_patches(each) for each in maps]}
    orders["random"] = random_orders(counts, seed)
    curves = perturbation_curves(model, encoded, indices, orders)
    score_maps(curves, image_ids)

A removed patch leaves the sequence, as in the perturbation tests of Chefer et al. (2021), so that
the model sees no made-up pixels. Words, the image's CLS and the other patches' positions stay.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers.attention.extract import measure_once, random_weight_model, sample_questions
from helpers.attention.grounding import ground_maps
from helpers.attention.image_share import check_eval_mode, keep_patches, prepare_batch
from helpers.attention.relevance import explain, patch_maps
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import forward_raster
from helpers.run.settings import Study
from helpers.stats.bootstrap import bootstrap_mean

FRACTIONS = tuple(np.linspace(0, 1, 11).round(3).tolist())
KINDS = ("deletion", "insertion")
GAIN_FRACTIONS = (0, 1 / 3, 2 / 3, 1)  # of `measure_gains`: few, for many models


@dataclass
class Curves:
    """How the answer fares as patches go or come: arrays (order, KINDS, question, fraction).

    fractions: of the patches removed (deletion) or kept (insertion). probability: of the intact
    model's answer, the sigmoid of its logit. accuracy: VQA accuracy, NaN without answers.
    """

    orders: list[str]
    fractions: Sequence[float]
    probability: np.ndarray
    accuracy: np.ndarray


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
    probability, labels = np.zeros(shape), np.zeros(shape, dtype=int)
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
                    labels[where] = logits.argmax(1).cpu()
    labels = np.moveaxis(labels, 2, 0)  # question first
    accuracy = np.moveaxis(encoded.score(labels, indices, model.config.id2label), 0, 2)
    return Curves(list(orders), fractions, probability, accuracy)


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


def tabulate_curves(
    curves: Curves, image_ids: np.ndarray, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Mean probability along the curves: order, kind, fraction, 95 % interval over images."""
    values = np.moveaxis(curves.probability, 2, 0)  # question first
    names = {"order": curves.orders, "kind": KINDS, "fraction": curves.fractions}
    table = bootstrap_mean(values, image_ids, n_resamples, seed).to_table(tuple(names))
    return table.assign(**{axis: np.array(names[axis])[table[axis]] for axis in names})


def score_maps(
    curves: Curves,
    image_ids: np.ndarray,
    random: str = "random",
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Area under each order's curves of probability, and its gain over the order named `random`.

    Columns: order; measure: "deletion" and "insertion" (areas), "deletion_gain" (random minus this
    order) and "insertion_gain" (this order minus random), paired by question and above 0 where the
    map is better than chance; those of a 95 % interval over images.
    """
    if random not in curves.orders:
        known = ", ".join(curves.orders)
        raise ValueError(f"no order is named {random!r}: the curves have {known}.")
    areas = curve_area(curves.probability, curves.fractions)  # (order, kind, question)
    chance, rows = areas[curves.orders.index(random)], []
    for order, (deletion, insertion) in zip(curves.orders, areas, strict=True):
        gains = {"deletion_gain": chance[0] - deletion, "insertion_gain": insertion - chance[1]}
        for measure, values in {"deletion": deletion, "insertion": insertion, **gains}.items():
            interval = bootstrap_mean(values, image_ids, n_resamples, seed)
            rows.append({"order": order, "measure": measure, **interval._asdict()})
    return pd.DataFrame(rows)


def measure_faithfulness(
    study: Study,
    model: nn.Module,
    random_model: nn.Module,
    encoded: EncodedQuestions,
    dataset: Dataset,
) -> tuple[np.ndarray, Curves, pd.DataFrame]:
    """Remove patches in the order of each map, and hold maps and heads against the boxes; once.

    On `faithfulness_questions` validation questions, drawn with the study's seed. random_model: of
    `random_weight_model`, whose relevance is the control. Kept in run_dir/faithfulness, curves.npz
    and boxes.parquet. Returns the rows drawn; the curves, of each of `patch_maps`, "untrained
    relevance", "reversed relevance" and "random"; the `ground_maps` of all rows with a box.
    """
    chosen = sample_questions(len(encoded), study.faithfulness_questions, study.seed)

    def measure(folder: Path) -> None:
        orders, boxes = defaultdict(list), []
        for row in tqdm(chosen.tolist(), desc="maps", unit="question"):
            batch = encoded.collate([encoded[row]])
            explanation = explain(model, batch)[0]
            maps = patch_maps(explanation)
            control = explain(random_model, batch, [explanation.answer])[0]
            control = {"untrained relevance": patch_maps(control)["relevance"]}
            for name, weights in {**maps, **control}.items():
                orders[name].append(rank_patches(weights))
            orders["reversed relevance"].append(orders["relevance"][-1][::-1])
            boxes.append(ground_maps(row, explanation.maps, maps, dataset[row]))
        orders["random"] = random_orders(list(map(len, orders["relevance"])), study.seed)
        curves = perturbation_curves(model, encoded, chosen.tolist(), orders)
        np.savez(folder / "curves.npz", question=chosen, **asdict(curves))
        boxes = pd.concat(boxes).query("chance > 0")
        boxes.to_parquet(folder / "boxes.parquet", index=False)

    inputs = study.settings("seed", "faithfulness_questions")
    folder = measure_once(study, "faithfulness", measure, **inputs)
    with np.load(folder / "curves.npz") as kept:
        arrays = [kept[name] for name in ("fractions", "probability", "accuracy")]
        curves = Curves(kept["orders"].tolist(), *arrays)
    return chosen, curves, pd.read_parquet(folder / "boxes.parquet")


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


def measure_gains(
    study: Study,
    model: nn.Module,
    encoded: EncodedQuestions,
    rows: Sequence[int],
    maps: Sequence[str],
    number: int = 0,
    n_random: int = 0,
) -> np.ndarray:
    """How much sooner an answer is lost and won by a map's order than by a random one; once.

    The area between a map's curves (insertion minus deletion), less that of a random order, halved:
    in [-1, 1], 0 for chance. maps: names of `patch_maps`. number: which of the study's models it
    is. Returns (map, question). n_random: instead of the model's own maps, those of so many
    random-weight models of its answers: (random model, map, question). Kept in run_dir/gains.
    """
    rows, maps = [int(row) for row in rows], list(maps)

    def measure(folder: Path) -> None:
        orders = {}
        for seed in range(max(1, n_random)):
            other = random_weight_model(model, study.seed + seed) if n_random else None
            ranked = rank_maps(model, encoded, rows, other)
            orders |= {f"{name}, {seed}": ranked[name] for name in maps}
        counts = [len(order) for order in next(iter(orders.values()))]
        orders["random"] = random_orders(counts, study.seed)
        curves = perturbation_curves(model, encoded, rows, orders, GAIN_FRACTIONS)
        areas = curve_area(curves.probability, curves.fractions)  # (order, kind, question)
        gains = (areas[:, 1] - areas[:, 0]) / 2
        np.save(folder / "gains.npy", gains[:-1] - gains[-1])

    inputs = {**study.settings("seed"), "rows": rows, "maps": maps, "n_random": n_random}
    name = f"gains/{'random_' if n_random else ''}{number}"
    gains = np.load(measure_once(study, name, measure, number=number, **inputs) / "gains.npy")
    return gains.reshape(n_random, len(maps), len(rows)) if n_random else gains
