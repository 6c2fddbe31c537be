"""What the model loses without a head or a layer.

    measure = partial(removal_measures, means=mean_contexts(model, encoded))
    extract_attention(model, encoded, folder, batch_size, shard_size, measure=measure, layout=REMOVALS)
    lost = score_removals(read_attention(folder), "zero", answers, model.config.id2label)
    effects = removal_effects(lost, families, images)

What comes before a part is the same with and without it, so it is computed once a batch, for all parts.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.attention.measures import prepare_batch
from helpers.data.encode import EncodedQuestions
from helpers.data.vqa import score_answers
from helpers.heads.roles import name_heads
from helpers.model.packed import PackedForward
from helpers.stats.tests import bootstrap_by_group, correct_p, enough, test_mean

HEAD_AXES, LAYER_AXES = ("layer", "head"), ("layer",)
WAYS = {  # to take something away, and what it is taken from; see `removal_measures`
    "zero": HEAD_AXES,
    "mean": HEAD_AXES,
    "attention": LAYER_AXES,
    "layer": LAYER_AXES,
}
REMOVALS = {  # of `removal_measures`; name: type, axes after the question
    "probability": ("float32", ()),
    **{f"{way}_answer": ("int32", axes) for way, axes in WAYS.items()},
    **{f"{way}_probability": ("float32", axes) for way, axes in WAYS.items()},
}


class Change(NamedTuple):
    """What one variant of a forward pass does otherwise.

    context: put in place of the context of these heads of the layer, (valid tokens, or 1 for all; heads; d_head); None:
    the layer is left out, feed-forward part included, and its residual stream stays as it was.
    """

    layer: int
    heads: slice
    context: Tensor | None


def count_heads(model: nn.Module) -> list[int]:
    """How many heads each layer has."""
    return [layer.attention.attention.num_attention_heads for layer in model.vilt.encoder.layer]


@contextmanager
def ablate_heads(
    model, heads: Sequence[tuple[int, int]], mode="zero", means=None
) -> Iterator[None]:
    """Silence heads while the block runs, several at once; the hooks leave with it.

    with ablate_heads(model, [(3, 7), (5, 0)]):
        forward_raster(model, batch)

    heads: (layer, head). mode "zero" puts 0 in place of a head's output (its slice of the context that the
    layer's output projection reads), "mean" puts means[layer, head], from `mean_contexts`.
    """
    if mode not in ("zero", "mean") or (mode == "mean") != (means is not None):
        raise ValueError(
            f"mode {mode!r}: use 'zero' without means, or 'mean' with means=mean_contexts(...)"
        )
    layers, counts, chosen = model.vilt.encoder.layer, count_heads(model), defaultdict(list)
    for layer, head in heads:
        if not (0 <= layer < len(layers) and 0 <= head < counts[layer]):
            raise ValueError(
                f"L{layer}H{head} is not in this model: it has {counts} heads in its layers"
            )
        chosen[layer].append(head)

    def silence(layer, _, args):
        context = args[0].unflatten(-1, (counts[layer], -1)).clone()  # (batch, token, head, d_head)
        context[..., chosen[layer], :] = (
            0 if means is None else means[layer, chosen[layer]].to(context)
        )
        return (context.flatten(-2),)

    with ExitStack() as stack:
        for layer in chosen:
            projection = layers[layer].attention.output.dense
            stack.enter_context(projection.register_forward_pre_hook(partial(silence, layer)))
        yield


@torch.no_grad()
def mean_contexts(model, encoded: EncodedQuestions, batch_size=64, indices=None) -> Tensor:
    """Each head's mean output over the tokens at which it is read: (layers, heads, d_head), on the CPU.

    These are all tokens (not padding) of the questions, and in the last layer each question's [CLS] alone: a mean over
    its patches would be what the answer never sees.
    """
    sums, seen = 0, 0
    for _, batch in encoded.batches(batch_size, indices):
        walk = open_walk(model, batch)
        contexts = read_contexts(walk)
        contexts[-1] = contexts[-1][walk.first]
        sums = sums + torch.stack([context.double().sum(0).cpu() for context in contexts])
        seen = seen + torch.tensor([len(context) for context in contexts])
    return (sums / seen[:, None, None]).float()


def read_contexts(walk: PackedForward) -> list[Tensor]:
    """What each layer's heads say at each token, before the output projection: [(valid tokens, head, d_head)]."""
    contexts = []
    for layer in walk:
        for _ in layer:
            pass  # walking it to its end makes the context
        contexts.append(layer.context)
    return contexts


def open_walk(model: nn.Module, batch: dict[str, Tensor]) -> PackedForward:
    """A forward pass over a batch, to be walked layer by layer."""
    prepared = prepare_batch(model, batch)
    return PackedForward(model, prepared.inputs, prepared.groups)


def vary_forward(walk: PackedForward, changes: Sequence[Change]) -> Iterator[tuple[int, Tensor]]:
    """Walk a batch once and yield (row of changes, logits (question, answer)) of each variant as it is reached.

    Each variant costs only what comes after its change; `walk.logits`, in the end, are those without any.
    """
    for index, layer in enumerate(walk):
        for _ in layer:
            pass
        for row, change in enumerate(changes):
            if change.layer != index:
                continue
            context = None
            if change.context is not None:
                context = layer.context.clone()
                context[:, change.heads] = change.context.to(context)
            yield row, walk.finish(index, context)


def list_removals(model: nn.Module, means: Tensor) -> dict[tuple, Change]:
    """The changes that take away each head in two ways, and each layer in two: (way, layer[, head]) -> Change."""
    changes = {}
    for layer, count in enumerate(count_heads(model)):
        nothing = torch.zeros_like(means[layer])[None]  # (1, head, d_head)
        for way, context in (("zero", nothing), ("mean", means[layer][None])):
            for head in range(count):
                own = slice(head, head + 1)
                changes[way, layer, head] = Change(layer, own, context[:, own])
        changes["attention", layer] = Change(layer, slice(None), nothing)
        changes["layer", layer] = Change(layer, slice(None), None)
    return changes


@torch.no_grad()
def removal_measures(
    model: nn.Module, batch: dict[str, Tensor], means: Tensor
) -> dict[str, Tensor]:
    """The answers to a batch without each head and each layer in turn; see REMOVALS for the layout.

    Ways: "zero" puts 0 in place of a head's context, "mean" its mean (means, of `mean_contexts`);
    "attention" puts 0 for all heads of a layer, "layer" leaves the layer out, feed-forward part included.
    <way>_answer: number of the answer. <way>_probability, and probability intact: sigmoid of the logit of the answer that
    the intact model gives, which moves before the answer does. logits: intact, (question, answer).
    """
    walk, changes = open_walk(model, batch), list_removals(model, means)
    found = list(vary_forward(walk, list(changes.values())))
    best, size = walk.logits.argmax(1, keepdim=True), len(walk.logits)
    shape = (len(means), means.shape[1])
    kept = {
        "logits": walk.logits,
        "probability": walk.logits.float().gather(1, best)[:, 0].sigmoid(),
    }
    for way, axes in WAYS.items():
        kept[f"{way}_answer"] = best.new_zeros(size, *shape[: len(axes)])
        kept[f"{way}_probability"] = torch.zeros_like(kept[f"{way}_answer"], dtype=torch.float32)
    names = list(changes)
    for row, logits in found:
        way, *place = names[row]
        kept[f"{way}_answer"][:, *place] = logits.argmax(1)
        kept[f"{way}_probability"][:, *place] = logits.float().gather(1, best)[:, 0].sigmoid()
    return kept


def score_removals(
    table, way: str, answers: Iterable[Sequence[str]], labels: dict[int, str]
) -> np.ndarray:
    """Points of VQA accuracy that each question loses by each removal: (n, layer[, head]), -100 to 100.

    table: of `extract_attention` with REMOVALS. way: one of WAYS. answers: each question's ten; labels: of the answers'
    numbers. Below 0 the model does better without.
    """
    scores = score_answers(getattr(table, f"{way}_answer"), answers, labels)
    intact = table.questions["accuracy"].to_numpy().reshape(-1, *[1] * (scores.ndim - 1))
    return 100 * (intact - scores)


def removal_effects(lost: np.ndarray, families, clusters, draws=1000, seed=0) -> pd.DataFrame:
    """What each removal costs, over all questions and per family, as a tidy table.

    lost: (n, layer[, head]) of `score_removals`; families, clusters: (n,). Columns: layer, head and name (where lost has
    heads), family ("all" first), drop (mean points lost), low, high (95 %, bootstrap over clusters), p (that there is
    neither loss nor gain, errors clustered), p_corrected (Benjamini-Hochberg over all rows), told (questions enough to
    tell), significant, n, n_clusters.
    """
    families, clusters, axes = (
        np.asarray(families),
        np.asarray(clusters),
        HEAD_AXES[: lost.ndim - 1],
    )
    tables = []
    for groups in (np.repeat("all", len(lost)), families):
        table = bootstrap_by_group(lost, groups, clusters, draws, seed, axes=axes)
        tests = [
            test_mean(lost[groups == own], clusters[groups == own], axes)
            for own in pd.unique(groups)
        ]
        tables.append(table.assign(p=pd.concat(tests, ignore_index=True)["p"]))
    table = pd.concat(tables, ignore_index=True).rename(
        columns={"group": "family", "estimate": "drop"}
    )
    table["told"] = enough(table["n"], table["n_clusters"])
    table["p_corrected"] = correct_p(table["p"].where(table["told"]))
    table["significant"] = table["p_corrected"] < 0.05
    if "head" in axes:
        table["name"] = name_heads(table)
    axes = [*axes, "name"] if "head" in axes else list(axes)
    tested = ["drop", "low", "high", "p", "p_corrected", "told", "significant", "n", "n_clusters"]
    return table[[*axes, "family", *tested]]
