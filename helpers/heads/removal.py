"""The answers without a head or a layer, and the gradient's estimate of what that costs.

    with ablate_heads(model, [(3, 7), (5, 0)]):
        forward_raster(model, batch)

    removals, gradients = measure_removals(study, model, processor, data)    # every one in turn
    lost = score_removals(removals, "zero_head", answers, model.config.id2label)

What comes before a head is computed once for all interventions on a batch.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import ViltProcessor

from helpers.attention.extract import (
    AttentionTable,
    Layout,
    extract_once,
    in_measuring_precision,
    sample_questions,
)
from helpers.attention.image_share import prepare_batch
from helpers.data.encode import EncodedQuestions
from helpers.data.prepare import encode
from helpers.data.vqa import score_answers
from helpers.model.forward import PackedForward, forward_raster, trace
from helpers.model.vilt import list_answers
from helpers.run.cache import source_digest
from helpers.run.settings import Study

HEAD_AXES, LAYER_AXES = ("layer", "head"), ("layer",)
ABLATION_MODES = {  # mode: its name in tables, and what is removed one at a time
    "zero_head": ("zero", HEAD_AXES),  # 0 in place of the head's z
    "mean_head": ("mean", HEAD_AXES),  # its mean over the data in place of the head's z
    "zero_attention": ("attention", LAYER_AXES),  # 0 in place of the z of all heads of a layer
    "skip_layer": ("layer", LAYER_AXES),  # the layer left out, feed-forward part included
}


def list_measures(modes: Iterable[str] = ABLATION_MODES) -> Layout:
    """The measures of `removal_measures`; name: type, further axes."""
    measures = {"probability": ("float32", ())}
    for name, axes in map(ABLATION_MODES.get, modes):
        measures[f"{name}_answer"] = ("int32", axes)
        measures[f"{name}_probability"] = ("float32", axes)
    return measures


# of `loss_increases` and `importance_measures`
LOSS_INCREASES = {"head_loss": ("float32", HEAD_AXES), "layer_loss": ("float32", LAYER_AXES)}
IMPORTANCE = {"importance": ("float32", HEAD_AXES)}


class Intervention(NamedTuple):
    """One variant of a forward pass: z in place of these heads' z in the layer.

    z: (valid tokens, or 1 for all; heads; d_head), of the last layer (questions or 1; heads;
    d_head). None: the layer is left out.
    """

    layer: int
    heads: slice
    z: Tensor | None

    def edit(self, layer: int, z: Tensor) -> Tensor:
        """The z of a layer with this intervention, for `trace`."""
        z = z.clone()
        z[..., self.heads, :] = self.z.to(z)
        return z


def replace_heads(zs: Iterable[Tensor]) -> list[Intervention]:
    """A variant for each head, layer by layer; zs: (tokens or 1, head, d_head) of each layer."""
    return [
        Intervention(layer, slice(head, head + 1), z[:, head : head + 1])
        for layer, z in enumerate(zs)
        for head in range(z.shape[1])
    ]


def replace_layers(zs: Iterable[Tensor | None]) -> list[Intervention]:
    """A variant for each layer, which replaces all its heads or, where z is None, leaves it out."""
    return [Intervention(layer, slice(None), z) for layer, z in enumerate(zs)]


def ablate_heads(
    model: nn.Module, heads: Sequence[tuple[int, int]], means: Tensor | None = None
) -> AbstractContextManager:
    """Silence heads while the block runs, several at once: `with ablate_heads(model, [(3, 7)]):`.

    heads: (layer, head). Puts 0 in place of a head's z (its output before the layer's projection),
    or with means, of `mean_z`, its mean means[layer, head].
    """
    layers, chosen = model.vilt.encoder.layer, defaultdict(list)
    counts = [layer.attention.attention.num_attention_heads for layer in layers]
    for layer, head in heads:
        if not (0 <= layer < len(counts) and 0 <= head < counts[layer]):
            raise ValueError(f"L{layer}H{head} is not in this model: layers have {counts} heads")
        chosen[layer].append(head)

    def silence(layer: int, z: Tensor) -> Tensor:
        z = z.clone()
        z[..., chosen[layer], :] = 0 if means is None else means[layer, chosen[layer]].to(z)
        return z

    return trace(model, edit={"z": silence}, layers=chosen)


@torch.no_grad()
def mean_z(model: nn.Module, encoded: EncodedQuestions, batch_size: int = 64) -> Tensor:
    """Each head's mean z over the tokens at which it is read: (layer, head, d_head), on the CPU.

    These are all tokens but padding, and in the last layer, of which the answer reads nothing else,
    each question's [CLS].
    """
    sums, n_tokens = 0, 0
    for _, batch in encoded.batches(batch_size):
        zs = read_z(pack_forward(model, batch))
        sums = sums + torch.stack([z.double().sum(0).cpu() for z in zs])
        n_tokens = n_tokens + torch.tensor([len(z) for z in zs])
    return (sums / n_tokens[:, None, None]).float()


def pack_forward(model: nn.Module, batch: dict[str, Tensor]) -> PackedForward:
    """A packed forward pass over a batch."""
    inputs, groups, _ = prepare_batch(model, batch)
    return PackedForward(model, inputs, groups)


def read_z(forward: PackedForward) -> list[Tensor]:
    """Run a packed pass: each layer's z, (valid token, head, d_head), [CLS] alone in the last."""
    with trace(forward.model, read=["z"]) as seen:
        forward.run()
    return seen["z"]


def forward_with_interventions(
    forward: PackedForward, interventions: Sequence[Intervention]
) -> Iterator[tuple[int, Tensor]]:
    """Run a packed pass once; yield (row of interventions, logits (question, answer)).

    Yields layer by layer. Each variant costs only what comes after its intervention.
    `forward.logits`, in the end, are those without any.
    """
    for index, layer in enumerate(forward):
        z = layer.run()
        for row, intervention in enumerate(interventions):
            if intervention.layer != index:
                continue
            if intervention.z is None:
                logits = forward.resume(index + 1)
            else:
                with trace(forward.model, edit={"z": intervention.edit}, layers=[index]):
                    logits = forward.resume(index, z)
            yield row, logits


@torch.no_grad()
def removal_measures(
    model: nn.Module,
    batch: dict[str, Tensor],
    means: Tensor | None = None,
    modes: Iterable[str] = ABLATION_MODES,
) -> dict[str, Tensor]:
    """The answers to a batch without each head and each layer in turn, as `list_measures` says.

    means: of `mean_z`, for mean_head. <name>_answer, for the names of the modes: number of the
    answer. <name>_probability, and probability of the intact model: sigmoid of the logit of the
    intact model's answer, which moves before the answer does. logits: intact, (question, answer).
    """
    config = model.config
    n_layers, n_heads = config.num_hidden_layers, config.num_attention_heads
    zero = torch.zeros(1, n_heads, config.hidden_size // n_heads, device=model.device)
    make = {
        "zero_head": lambda: replace_heads([zero] * n_layers),
        "mean_head": lambda: replace_heads(means[:, None]),
        "zero_attention": lambda: replace_layers([zero] * n_layers),
        "skip_layer": lambda: replace_layers([None] * n_layers),
    }
    variants = {mode: make[mode]() for mode in modes}
    mode_of = [mode for mode, interventions in variants.items() for _ in interventions]
    forward = pack_forward(model, batch)
    without = list(forward_with_interventions(forward, list(chain(*variants.values()))))
    answers = forward.logits.argmax(1)

    def answer_probability(logits: Tensor) -> Tensor:
        return logits.float().gather(1, answers[:, None])[:, 0].sigmoid()

    measures = {"logits": forward.logits, "probability": answer_probability(forward.logits)}
    for mode in variants:
        name, axes = ABLATION_MODES[mode]
        shape = (n_layers, n_heads)[: len(axes)]
        of_mode = [logits for row, logits in without if mode_of[row] == mode]
        changed = torch.stack([logits.argmax(1) for logits in of_mode], 1)
        probability = torch.stack([answer_probability(logits) for logits in of_mode], 1)
        measures[f"{name}_answer"] = changed.unflatten(1, shape)
        measures[f"{name}_probability"] = probability.unflatten(1, shape)
    return measures


@torch.no_grad()
def loss_increases(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """How much the loss on each question rises without each head and each whole layer.

    Loss: binary cross-entropy with batch["labels"], summed over answers, as in training. Returns
    head_loss (question, layer, head), with 0 in place of the head's z; layer_loss (question,
    layer); logits, intact (question, answer).
    """
    labels, config = batch["labels"].to(model.device), model.config
    n_layers, n_heads = config.num_hidden_layers, config.num_attention_heads
    zero = torch.zeros(1, n_heads, config.hidden_size // n_heads, device=model.device)
    interventions = replace_heads([zero] * n_layers) + replace_layers([None] * n_layers)
    losses = torch.zeros(len(labels), len(interventions), device=model.device)
    forward = pack_forward(model, batch)

    def measure_loss(logits: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits.float(), labels, reduction="none").sum(1)

    for row, logits in forward_with_interventions(forward, interventions):
        losses[:, row] = measure_loss(logits)
    losses -= measure_loss(forward.logits)[:, None]
    heads, layers = losses.tensor_split([n_layers * n_heads], dim=1)
    heads = heads.unflatten(1, (n_layers, n_heads))
    return {"head_loss": heads, "layer_loss": layers, "logits": forward.logits}


def score_removals(
    table: AttentionTable, mode: str, answers: Iterable[Sequence[str]], labels: Mapping[int, str]
) -> np.ndarray:
    """Points of VQA accuracy that each question loses by each removal: (question, layer[, head]).

    table: of `measure_removals`. mode: one of ABLATION_MODES. answers: each question's ten. labels:
    the answer of each number. From -100 to 100, below 0 where the model does better without.
    """
    name = ABLATION_MODES[mode][0]
    scores = score_answers(getattr(table, f"{name}_answer"), answers, labels)
    intact = table.questions["accuracy"].to_numpy().reshape(-1, *[1] * (scores.ndim - 1))
    return 100 * (intact - scores)


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
    Returns `removal_measures`, of the first model in all ABLATION_MODES and of the others with
    heads put to zero alone, in half precision on a GPU as attention is; and IMPORTANCE, in the
    model's own precision. Kept in shards in run_dir/removals and run_dir/importance (of the second
    model removals_1 and importance_1), so that a killed run continues.
    """
    encoded, inputs = sample_for_removal(study, model, processor, data)
    lower, modes = (
        in_measuring_precision(model, study),
        ("zero_head",) if number else ABLATION_MODES,
    )
    means = cache(lambda: mean_z(lower, encoded, study.extract_batch_size))  # only when needed

    def measure(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return removal_measures(model, batch, means() if "mean_head" in modes else None, modes)

    gradient, suffix = (importance_measures, IMPORTANCE), f"_{number}" if number else ""
    inputs, names = inputs | {"number": number}, ("removals" + suffix, "importance" + suffix)
    removals = extract_once(
        study, names[0], lower, encoded, measure, list_measures(modes), **inputs
    )
    return removals, extract_once(study, names[1], model, encoded, *gradient, **inputs)


def importance_measures(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
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
