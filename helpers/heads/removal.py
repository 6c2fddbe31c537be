"""The answers without heads or layers, with heads scaled or of another question; and the gradient.

with ablate_heads(model, [(3, 7), (5, 0)]):
    forward_raster(model, batch)

removals, gradients = measure_removals(study, model, processor, data)    # every one in turn
lost = removals.points_lost("zero_head_answer", encoded, model.config.id2label)
sets = measure_joint(study, model, encoded, "sets")                      # random sets of heads

Removed one at a time, two heads that can each do the other's work both look idle. Random sets of
heads show them, as in the datamodels of Ilyas et al. (2022, "Predicting predictions from training
data"); heads scaled up as in CogVision (2025).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from itertools import chain, combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm.auto import tqdm
from transformers import ViltProcessor

from helpers.attention.extract import AttentionTable, extract_once, measure_once, sample_questions
from helpers.attention.image_share import Batch, pack_forward, prepare_batch
from helpers.data.encode import EncodedQuestions
from helpers.data.prepare import encode
from helpers.heads.gains import pair_gains, sample_sets
from helpers.model.forward import (
    PackedForward,
    Variant,
    answer_variants,
    forward_raster,
    run_variants,
    trace,
)
from helpers.model.vilt import list_answers
from helpers.run.cache import source_digest
from helpers.run.settings import Study
from helpers.stats.models import linearise_ratio

Pair = tuple[int, int]  # rows of two questions: source, target
ABLATION_MODES = (  # what is removed one at a time
    "zero_head",  # 0 in place of the head's z
    "mean_head",  # its mean over the data in place of the head's z
    "zero_attention",  # 0 in place of the z of all heads of a layer
    "skip_layer",  # the layer left out, feed-forward part included
)


def replace_heads(zs: Iterable[Tensor]) -> list[Variant]:
    """A variant for each head, layer by layer; zs: of each, (token or 1, head, d_head or 1)."""

    def replace(z: Tensor, head: int, new: Tensor) -> Tensor:
        z = z.clone()
        z[:, head] = new.to(z)
        return z

    return [
        {layer: partial(replace, head=head, new=z[:, head])}
        for layer, z in enumerate(zs)
        for head in range(z.shape[1])
    ]


def scale_heads(gains: np.ndarray) -> list[Variant]:
    """Variants of a pass from gains (variant, layer, head): 0 removes a head, 1 keeps it."""

    @cache  # layers scaled alike share an edit, and variants with it what comes before
    def scale(of_layer: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
        gains = torch.tensor(of_layer)[:, None]
        return lambda z: z * gains.to(z)

    return [
        {layer: scale(tuple(row)) for layer, row in enumerate(rows) if set(row) != {1.0}}
        for rows in np.asarray(gains, dtype=float).tolist()
    ]


def ablate_heads(model: nn.Module, heads: Sequence[tuple[int, int]]) -> AbstractContextManager:
    """Silence heads (layer, head) while the block runs: 0 in place of their z, several at once."""
    chosen = group_heads(model, heads)

    def silence(layer: int, z: Tensor) -> Tensor:
        return z.index_fill(-2, torch.tensor(chosen[layer], device=z.device), 0)

    return trace(model, edit={"z": silence}, layers=chosen)


def group_heads(model: nn.Module, heads: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """Heads (layer, head) by their layer; ValueError for one that is not in the model."""
    layers, chosen = model.vilt.encoder.layer, defaultdict(list)
    counts = [layer.attention.attention.num_attention_heads for layer in layers]
    for layer, head in heads:
        if not (0 <= layer < len(counts) and 0 <= head < counts[layer]):
            raise ValueError(f"L{layer}H{head} is not in this model: layers have {counts} heads")
        chosen[layer].append(head)
    return chosen


@torch.no_grad()
def mean_z(model: nn.Module, encoded: EncodedQuestions, batch_size: int = 64) -> Tensor:
    """Each head's mean z over the tokens at which it is read: (layer, head, d_head), on the CPU.

    These are all tokens but padding, and in the last layer, of which the answer reads nothing else,
    each question's [CLS].
    """
    sums, n_tokens = 0, 0
    for _, batch in encoded.batches(batch_size):
        forward = pack_forward(model, batch)
        zs = [layer.run() for layer in forward]
        zs[-1] = zs[-1][forward.cls_rows]
        sums = sums + torch.stack([z.double().sum(0).cpu() for z in zs])
        n_tokens = n_tokens + torch.tensor([len(z) for z in zs])
    return (sums / n_tokens[:, None, None]).float()


@torch.no_grad()
def predict_in_batches(
    model: nn.Module,
    encoded: EncodedQuestions,
    answer: Callable[[PackedForward], Tensor],
    n_variants: int,
    batch_size: int = 64,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """Number of the answer to each question in each variant of a pass: (question, variant).

    answer: gets a batch's pass, not begun, and gives (question, n_variants). rows: some questions.
    """
    rows = np.arange(len(encoded)) if rows is None else np.asarray(rows)
    predicted = np.zeros((len(encoded), n_variants), dtype=int)
    batches = encoded.batches(batch_size, rows)
    for own, batch in tqdm(batches, "answers", -(-len(rows) // batch_size), unit="batch"):
        predicted[own] = answer(pack_forward(model, batch)).cpu()
    return predicted[rows]


@torch.no_grad()
def removal_measures(
    model: nn.Module,
    batch: Batch,
    means: Tensor | None = None,
    modes: Iterable[str] = ABLATION_MODES,
) -> dict[str, Tensor]:
    """The answers to a batch without each head and each layer in turn.

    means: of `mean_z`, for mean_head. Returns <mode>_answer and <mode>_probability (question,
    layer[, head]), and the intact model's logits and probability, all as in `answer_variants`.
    """
    layers = range(model.config.num_hidden_layers)
    silent = torch.zeros(len(layers), 1, model.config.num_attention_heads, 1)
    make = {
        "zero_head": lambda: replace_heads(silent),
        "mean_head": lambda: replace_heads(means[:, None]),
        "zero_attention": lambda: [{layer: torch.zeros_like} for layer in layers],
        "skip_layer": lambda: [{layer: None} for layer in layers],
    }
    variants = {mode: make[mode]() for mode in modes}
    measures = answer_variants(pack_forward(model, batch), list(chain(*variants.values())))
    counts = [len(of_mode) for of_mode in variants.values()]
    for quantity in ("answer", "probability"):
        parts = measures.pop(f"variant_{quantity}").split(counts, dim=1)
        for mode, part in zip(variants, parts, strict=True):
            of_heads = mode.endswith("head")
            part = part.unflatten(1, (len(layers), -1)) if of_heads else part
            measures[f"{mode}_{quantity}"] = part
    return measures


@torch.no_grad()
def loss_increases(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """How much the loss on each question rises without each head and each whole layer.

    Loss: binary cross-entropy with batch["labels"], summed over answers, as in training. Returns
    head_loss (question, layer, head); layer_loss (question, layer); logits, the intact model's.
    """
    labels, n_layers = batch["labels"].to(model.device), model.config.num_hidden_layers
    silent = torch.zeros(n_layers, 1, model.config.num_attention_heads, 1)
    variants = replace_heads(silent) + [{layer: None} for layer in range(n_layers)]
    losses = torch.zeros(len(labels), len(variants), device=model.device)

    def measure_loss(logits: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits.float(), labels, reduction="none").sum(1)

    runs = run_variants(pack_forward(model, batch), variants)
    _, intact = next(runs)
    for row, logits in runs:
        losses[:, row] = measure_loss(logits)
    losses -= measure_loss(intact)[:, None]
    heads = losses[:, :-n_layers].unflatten(1, (n_layers, -1))
    return {"head_loss": heads, "layer_loss": losses[:, -n_layers:], "logits": intact}


def sample_for_removal(
    study: Study, model: nn.Module, processor: ViltProcessor, data: Dataset
) -> tuple[EncodedQuestions, dict]:
    """`ablation_questions` of the data, drawn with the seed; and inputs of `extract_once`."""
    chosen = sample_questions(len(data), study.ablation_questions, study.seed, "permutation")
    encoded = encode(study, data.select(chosen), processor, list_answers(model))
    inputs = {"used": source_digest("helpers/heads")}
    return encoded, study.settings("seed", "ablation_questions") | inputs


def measure_removals(
    study: Study, model: nn.Module, processor: ViltProcessor, data: Dataset, number: int = 0
) -> tuple[AttentionTable, AttentionTable]:
    """Remove each head and each layer in turn, and measure each head's gradient importance; once.

    On `sample_for_removal` of data, the validation questions; number: which of the study's models.
    Returns `removal_measures`, of the first model in all ABLATION_MODES and of the others in
    zero_head alone, in half precision on a GPU as attention is; and `importance_measures`, in the
    model's own precision. Kept in shards in run_dir/removals and run_dir/importance.
    """
    encoded, inputs = sample_for_removal(study, model, processor, data)
    inputs |= {"number": number}
    modes, size = ("zero_head",) if number else ABLATION_MODES, study.extract_batch_size
    means = cache(lambda model: mean_z(model, encoded, size))  # only when needed

    def measure(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return removal_measures(model, batch, means(model) if "mean_head" in modes else None, modes)

    step = ("importance", model, encoded, importance_measures)
    importance = extract_once(study, *step, exact=True, **inputs)
    return extract_once(study, "removals", model, encoded, measure, **inputs), importance


class Variants(NamedTuple):
    """Answers of a model whose heads are scaled: a row of `gains` a variant of the table."""

    table: AttentionTable  # variant_answer, variant_probability: (question, variant)
    gains: np.ndarray  # (variant, layer, head), that a head's z is multiplied by


def list_pairs(n_heads: int, n_pairs: int, seed: int = 0) -> np.ndarray:
    """Pairs of heads (pair, 2), counted over all layers: all, or n_pairs drawn at random."""
    pairs = np.array([*combinations(range(n_heads), 2)])
    return pairs[sample_questions(len(pairs), n_pairs, seed)]


def measure_joint(
    study: Study, model: nn.Module, encoded: EncodedQuestions, kind: str, number: int = 0
) -> Variants:
    """The answers to a sample of questions with heads scaled together; once, in shards.

    kind: "pairs", `pair_gains` of at most `joint_sets` pairs on `pair_questions`; else `joint_sets`
    of `sample_sets` on `joint_questions`. number: which of the study's models. Kept in run_dir.
    """
    shape = model.config.num_hidden_layers, model.config.num_attention_heads
    setting, gains = "joint_questions", sample_sets(shape, study.joint_sets, study.seed)
    if kind == "pairs":
        pairs = list_pairs(shape[0] * shape[1], study.joint_sets, study.seed)
        setting, gains = "pair_questions", pair_gains(shape, pairs)
    variants = scale_heads(gains)

    @torch.no_grad()
    def measure(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return answer_variants(pack_forward(model, batch), variants)

    inputs = {"sets": study.joint_sets, "used": source_digest("helpers/heads"), "number": number}
    step = kind, model, encoded, measure, getattr(study, setting)
    return Variants(extract_once(study, *step, **inputs), gains)


def importance_measures(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """How much the loss on each question depends on each head: importance (question, layer, head).

    |dL / dg| at g = 1, where g scales the head's z (Michel, Levy and Neubig 2019, "Are sixteen
    heads really better than one?", equation 2): one backward pass for all heads. L: the loss of
    `loss_increases`. logits: (question, answer). ValueError without labels.
    """
    if "labels" not in batch:
        raise ValueError("the batch has no labels: encode with answers=, the model's own.")
    inputs, config = prepare_batch(model, batch).inputs, model.config
    shape = (config.num_hidden_layers, len(batch["labels"]), config.num_attention_heads)
    gates = torch.ones(shape, device=model.device, dtype=model.dtype, requires_grad=True)

    def scale(layer: int, z: Tensor) -> Tensor:
        return z * gates[layer][:, None, :, None]

    with trace(model, edit={"z": scale}), torch.enable_grad():
        logits = forward_raster(model, inputs).logits
        loss = binary_cross_entropy_with_logits(logits, batch["labels"].to(logits), reduction="sum")
        (slope,) = torch.autograd.grad(loss, gates)
    return {"importance": slope.abs().transpose(0, 1), "logits": logits.detach()}


def find_pairs(
    encoded: EncodedQuestions, predictions: Sequence[str], correct: Sequence[bool]
) -> list[Pair]:
    """Pairs of questions in the same words about different images, with different correct answers.

    predictions: the model's answers. correct: whether each counts as correct. A pair's pictures
    have one shape, so that tokens correspond one to one. Each image is in one pair at most, so that
    pairs are independent. Returns rows (source, target), in the order of the data.
    """
    unpaired, pairs, used = defaultdict(list), [], set()
    for row in np.flatnonzero(correct).tolist():
        image = encoded.image_of[row]
        if image in used:
            continue
        candidates = unpaired[tuple(encoded.input_ids[row].tolist()), encoded.sizes[image]]
        for other in candidates:
            is_new = encoded.image_of[other] not in used | {image}
            if is_new and predictions[other] != predictions[row]:
                pairs.append((other, row))
                used |= {image, encoded.image_of[other]}
                break
        else:
            candidates.append(row)
    return pairs


def find_rewordings(encoded: EncodedQuestions) -> list[Pair]:
    """Pairs of questions that differ in a single word piece: rows (other, row), one an image.

    Asked about the picture of the second, the first is the same question with one word changed.
    """
    written, pairs = defaultdict(dict), {}
    holes = [
        (row, (*ids[:at], None, *ids[at + 1 :]), ids[at])
        for row, ids in enumerate(ids.tolist() for ids in encoded.input_ids)
        for at in range(1, len(ids) - 1)
    ]
    for row, rest, piece in holes:
        written[rest].setdefault(piece, row)
    for row, rest, piece in holes:
        others = [other for own, other in written[rest].items() if own != piece]
        if others:
            pairs.setdefault(int(encoded.image_of[row]), (others[0], row))
    return list(pairs.values())


@torch.no_grad()
def patch_heads(
    model: nn.Module,
    encoded: EncodedQuestions,
    pairs: Sequence[Pair],
    batch_size: int = 32,
    reworded: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """How far does the answer move when one head's z comes from another question?

    pairs: rows (source, target), of `find_pairs`; or of `find_rewordings`, whose source asks its
    words about the target's picture (reworded; as Golovanevsky et al. 2025, "NOTICE"). The target's
    pass takes one head's z from the source's, at every token (Vig et al. 2020, "Causal mediation
    analysis for interpreting neural NLP"; Wang et al. 2023, "Interpretability in the wild"). With D
    the logit of the source's answer minus that of the target's answer, returns change (pair, layer,
    head): D patched - D target, and total_change (pair,): D source - D target. Heads overlap and
    oppose each other: ratios need not sum to 1.
    """
    n_layers, n_heads = model.config.num_hidden_layers, model.config.num_attention_heads
    order = sorted(range(len(pairs)), key=lambda number: encoded.length_key(pairs[number][1]))
    change, total_change = np.zeros((len(pairs), n_layers * n_heads)), np.zeros(len(pairs))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        rows = zip(*(pairs[number] for number in numbers), strict=True)
        sources, targets = ([encoded[row] for row in side] for side in rows)
        if reworded:
            words = ({"input_ids": source["input_ids"]} for source in sources)
            sources = [target | own for target, own in zip(targets, words, strict=True)]
        batches = map(encoded.collate, (sources, targets))
        source, target = (pack_forward(model, batch) for batch in batches)
        runs = run_variants(target, replace_heads([layer.run() for layer in source]))
        _, intact = next(runs)
        answers = [logits.argmax(1) for logits in (source.logits, intact)]
        base = logit_difference(intact, *answers)
        total_change[numbers] = (logit_difference(source.logits, *answers) - base).cpu()
        for row, logits in runs:
            change[numbers, row] = (logit_difference(logits, *answers) - base).cpu()
    return change.reshape(len(pairs), n_layers, n_heads), total_change


def patching_effect(change: np.ndarray, total_change: np.ndarray) -> np.ndarray:
    """Percent of the total change that each head carries: (pair, layer, head).

    The mean over pairs is sum(change) / sum(total_change) (`linearise_ratio`): a pair's own ratio
    would be extreme where its total_change is small.
    """
    return 100 * linearise_ratio(change, total_change[:, None, None])


def logit_difference(logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Logit of the first answer minus logit of the second, question by question."""
    return (logits.gather(1, first[:, None]) - logits.gather(1, second[:, None]))[:, 0].float()


def measure_patching(
    study: Study,
    model: nn.Module,
    processor: ViltProcessor,
    data: Dataset,
    table: AttentionTable,
    reworded: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patch each head between pairs of validation questions; once.

    data: the validation questions. table: their attention, with the model's answers. Of
    `find_pairs` (reworded: `find_rewordings`, those with two answers) at most `ablation_questions`,
    drawn with the study's seed. Returns pairs (pair, 2) as rows of data, and `patch_heads` of them;
    kept in run_dir/patching/pairs.npz, reworded in patching_words.
    """

    def patch(folder: Path) -> None:
        encoded, asked = encode(study, data, processor), table.questions
        if reworded:
            pairs = find_rewordings(encoded)
        else:
            pairs = find_pairs(encoded, asked["prediction"].tolist(), asked["accuracy"] >= 0.5)
        drawn = sample_questions(len(pairs), study.ablation_questions, study.seed, "permutation")
        pairs, size = np.array(pairs, int).reshape(-1, 2)[drawn], study.extract_batch_size
        change, total = patch_heads(model, encoded, pairs, size, reworded)
        told = total != 0  # else both answers are one
        np.savez(folder / "pairs.npz", pairs=pairs[told], moved=change[told], whole=total[told])

    inputs = study.settings("seed", "ablation_questions") | {"used": source_digest("helpers/heads")}
    name = "patching_words" if reworded else "patching"
    with np.load(measure_once(study, name, patch, **inputs) / "pairs.npz") as arrays:
        return arrays["pairs"], arrays["moved"], arrays["whole"]
