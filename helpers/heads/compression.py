"""Which heads and layers a model can spare: measured on training questions, tried on validation questions.

    losses, gradients, attention = measure_spare(study, model, processor, data["train"])
    order = order_heads(losses.head_loss.mean(0))                     # first what is missed least
    given = answer_without(model, encoded, [(order[:k], []) for k in steps], 64)
    folder = tune_lighter(study, "heads", (order[:8], []), data, watched)   # cut for good, and trained on

Silencing equals cutting (`prune_model`) to rounding, so that orders are compared without a copy of the model
each.
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm.auto import tqdm

from helpers.attention.extract import MEASURES, AttentionTable, extract_attention, read_attention
from helpers.attention.measures import attention_measures
from helpers.attention.study_measures import choose_dtype, describe_inputs
from helpers.data.encode import EncodedQuestions
from helpers.data.prepare import encode
from helpers.heads.importance import IMPORTANCE, importance_measures
from helpers.heads.removal import (
    Intervention,
    ablate_heads,
    count_heads,
    forward_with_interventions,
    pack_forward,
)
from helpers.model.finetune import load_finetuned, train_model
from helpers.model.prune import prune_model
from helpers.model.trace import trace
from helpers.model.vilt import embed_batch, forward_raster, fused_attention, quiet_transformers
from helpers.run.cache import make_once, read_fingerprint, source_digest, write_atomic
from helpers.run.study import Study
from helpers.stats.tests import Interval, bootstrap_mean

LOSSES = {  # of `removal_losses`; name: type, axes after the question
    "head_loss": ("float32", ("layer", "head")),
    "layer_loss": ("float32", ("layer",)),
}
RATE = 0.3  # of the learning rate: at the full one a trained model forgets more than a short training mends
SPLIT = {"split": MEASURES["split"]}
Removal = tuple[Sequence[tuple[int, int]], Sequence[int]]  # heads (layer, head), and whole layers


def name_labels(model: nn.Module) -> list[str]:
    """The model's answers in the order of its logits."""
    return [model.config.id2label[number] for number in range(model.config.num_labels)]


@torch.no_grad()
def removal_losses(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """How much the loss on each question rises without each head and each whole layer: below 0 it falls.

    Loss: binary cross-entropy with the soft targets, batch["labels"], summed over answers, which is what the
    model was trained on. Returns head_loss (question, layer, head), its z put to 0; layer_loss
    (question, layer); logits, intact.
    """
    labels, counts = batch["labels"].to(model.device), count_heads(model)
    size = model.vilt.encoder.layer[0].attention.attention.attention_head_size
    nothing = torch.zeros(1, 1, size, device=model.device)
    interventions = [
        Intervention(at, slice(h, h + 1), nothing) for at, n in enumerate(counts) for h in range(n)
    ]
    interventions += [Intervention(at, slice(None), None) for at in range(len(counts))]
    rises = torch.zeros(len(labels), len(interventions), device=model.device)
    forward = pack_forward(model, batch)

    def measure_loss(logits: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits.float(), labels, reduction="none").sum(1)

    for row, logits in forward_with_interventions(forward, interventions):
        rises[:, row] = measure_loss(logits)
    rises -= measure_loss(forward.logits)[:, None]
    heads, layers = rises.split([sum(counts), len(counts)], dim=1)
    return {
        "head_loss": heads.unflatten(1, (len(counts), -1)),
        "layer_loss": layers,
        "logits": forward.logits,
    }


def lower_copy(study: Study, model: nn.Module) -> nn.Module:
    """The model in the precision that it is measured in: itself, or on a GPU a copy in half."""
    dtype = choose_dtype(study.precision, model.device.type)
    return model if model.dtype == dtype else copy.deepcopy(model).to(dtype)


def measure_spare(
    study: Study, model: nn.Module, processor, data: Dataset
) -> tuple[AttentionTable, AttentionTable, AttentionTable]:
    """What training questions say of each head and layer: loss without it, gradient, attention; done once.

    On `ablation_questions` of data (the training questions, so that none that a lighter model is judged by
    has a say in what is cut), drawn with the study's seed. Kept in shards in run_dir/spare_losses (LOSSES),
    spare_gradients (`importance.IMPORTANCE`) and spare_attention (split); a killed run continues.
    """
    count = min(study.ablation_questions, len(data))
    chosen = np.sort(np.random.default_rng(study.seed).permutation(len(data))[:count])
    encoded = encode(study, data.select(chosen), processor, name_labels(model))
    lower = lower_copy(study, model)
    own = study.settings("seed", "ablation_questions", "precision")
    depends = describe_inputs(study, **own, used=source_digest("helpers/heads"))
    tables = []
    for name, used, measure, layout in (
        ("spare_losses", lower, removal_losses, LOSSES),
        ("spare_gradients", model, importance_measures, IMPORTANCE),
        ("spare_attention", lower, attention_measures, SPLIT),
    ):
        sizes = (study.extract_batch_size, study.shard_size)
        make = partial(_extract, used, encoded, sizes, measure, layout)
        tables.append(read_attention(make_once(study.folder() / name, make, depends)))
    return tuple(tables)


def _extract(model, encoded, sizes, measure, layout, folder: Path) -> None:
    extract_attention(model, encoded, folder, *sizes, (0, 1), measure, layout)


def order_heads(importance: np.ndarray) -> list[tuple[int, int]]:
    """Heads (layer, head) in the order of removal: the least important first; importance: (layer, head).

    Each layer's most important head is left out, as a layer without heads is no layer. NaN (nothing hangs on
    the head) goes first; of equals, the first.
    """
    filled = np.where(np.isnan(importance), -np.inf, importance)
    kept = set(enumerate(filled.argmax(1).tolist()))
    flat = np.argsort(filled, axis=None, kind="stable")
    cells = zip(*(axis.tolist() for axis in np.unravel_index(flat, filled.shape)), strict=True)
    return [cell for cell in cells if cell not in kept]


def random_orders(
    n_layers: int, n_heads: int, draws: int, seed: int
) -> list[list[tuple[int, int]]]:
    """So many orders of removal by chance alone."""
    generator = np.random.default_rng(seed)
    return [order_heads(generator.random((n_layers, n_heads))) for _ in range(draws)]


def average_draws(values: np.ndarray) -> Interval:
    """Mean over random draws with a 95 % t interval over them: another set of draws would differ.

    values: (draw, ...), each the mean over questions of one draw. Fields of shape (...); n: draws; low and
    high are NaN of a single one. The questions are the same in all draws: their own sampling is not in the
    interval.
    """
    draws, mean = len(values), np.mean(values, axis=0)
    half = np.full(mean.shape, np.nan)
    if draws > 1:
        half = stats.t.ppf(0.975, draws - 1) * np.std(values, axis=0, ddof=1) / np.sqrt(draws)
    n = np.full(mean.shape, draws)
    return Interval(mean, mean - half, mean + half, n, n)


def average_lead(gaps: np.ndarray, clusters, draws: int = 1000, seed: int = 0) -> Interval:
    """Mean lead of one order over random ones: its 95 % interval covers other draws and other images alike.

    gaps: (random order, question), points by which the order is ahead of that one. The distances to the estimate
    of the two intervals, `average_draws` and a bootstrap over images (clusters), add up as squares (Zou and
    Donner 2008). NaN limits with a single random order. n: random orders; n_clusters: images.
    """
    by_draw, by_image = (
        average_draws(gaps.mean(1)),
        bootstrap_mean(gaps.mean(0), clusters, draws, seed),
    )
    mean = by_draw.estimate
    low, high = (
        np.hypot(getattr(by_draw, side) - mean, getattr(by_image, side) - mean)
        for side in ("low", "high")
    )
    return Interval(mean, mean - low, mean + high, by_draw.n, by_image.n_clusters)


def choose_steps(n: int, most: int = 10) -> list[int]:
    """How many of n heads to remove at each point of a curve: from 1 to n, evenly, at most so many points."""
    return np.unique(np.linspace(0, n, min(n, most) + 1).round().astype(int))[1:].tolist()


@torch.no_grad()
def answer_without(
    model: nn.Module,
    encoded: EncodedQuestions,
    removals: Sequence[Removal],
    batch_size: int = 64,
    indices=None,
) -> np.ndarray:
    """The number of the answer to each question without these heads and layers: (removal, question).

    removals: of heads and layers each, all silenced together ([], [] for the intact model). indices: some of
    the questions. A batch's pictures are embedded once for all.
    """
    rows = np.arange(len(encoded)) if indices is None else np.asarray(indices)
    places = {row: place for place, row in enumerate(rows.tolist())}
    given = np.zeros((len(removals), len(rows)), dtype=int)
    with (
        fused_attention(model),
        tqdm(total=len(rows), desc="removals", unit="question") as progress,
    ):
        for numbers, batch in encoded.batches(batch_size, rows):
            embeds, mask = embed_batch(model, batch)
            text = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
            inputs = {**text, "image_embeds": embeds, "pixel_mask": mask}
            columns = [places[number] for number in numbers]
            for place, (heads, layers) in enumerate(removals):
                with ablate_heads(model, heads), trace(model, skip=layers):
                    given[place, columns] = forward_raster(model, inputs).logits.argmax(1).cpu()
            progress.update(len(numbers))
    return given


def tune_lighter(
    study: Study, name: str, removal: Removal, data: DatasetDict, watched: Sequence[int]
) -> Path:
    """Cut heads and layers out of the fine-tuned model for good and train what is left on; done once.

    For `prune_epochs` passes over the training questions, at RATE times `learning_rate` throughout (the
    answer head is no longer new), as `finetune.finetune` trains; a killed training continues. watched: rows
    of the validation questions whose accuracy says which weights are kept and when to stop; those that the
    model is judged by should not be among them. Returns run_dir/light_<name>, which `load_vilt` loads.
    """
    heads, layers = ([*map(tuple, removal[0])], [*removal[1]])
    names = ("seed", "prune_epochs", "batch_size", "learning_rate", "precision", "patience")
    depends = {
        **study.settings(*names),
        "heads": heads,
        "layers": layers,
        "watched": [int(row) for row in watched],
        "model": read_fingerprint(study.run_dir / "model"),
        "dataset": read_fingerprint(study.run_dir / "dataset"),
        "code": source_digest("helpers/data", "helpers/model", "helpers/heads"),
    }
    rate = RATE * study.learning_rate
    shorter = replace(study, epochs=study.prune_epochs, learning_rate=rate, head_learning_rate=rate)

    def load():
        model, processor = load_finetuned(study)
        parts = (data["train"], data["validation"].select(watched))
        encoded = (encode(study, part, processor, name_labels(model)) for part in parts)
        return prune_model(model, heads, layers), *encoded

    return make_once(
        study.folder() / f"light_{name}", lambda folder: train_model(shorter, load, folder), depends
    )


def choose_lightest(candidates: pd.DataFrame, tolerance: float) -> str:
    """The model with the fewest parameters that loses at most `tolerance` points; the whole one if none does.

    candidates: columns model (its name), parameters, difference (points of accuracy against the whole model,
    below 0 where it loses; NaN: not enough questions to tell); the whole model comes first.
    """
    fit = candidates[candidates["difference"] >= -tolerance]
    fit = fit if len(fit) else candidates.iloc[:1]
    return fit.sort_values("parameters", kind="stable")["model"].iloc[0]


def keep_light(study: Study, model: nn.Module, processor, name: str) -> Path:
    """Save the chosen model and its processor in run_dir/model_light, which `load_vilt` loads; done once.

    name: what it is called in the run's tables; kept in chosen.json.
    """
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.cpu().numpy().tobytes())
    shape = {key: getattr(model.config, key, None) for key in ("kept_heads", "kept_layers")}

    def save(folder: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        write_atomic(folder / "chosen.json", json.dumps({"model": name, **shape}, indent=1))

    depends = {
        "model": name,
        **shape,
        "weights": digest.hexdigest(),
        "code": source_digest("helpers/heads"),
    }
    return make_once(study.folder() / "model_light", save, depends)
