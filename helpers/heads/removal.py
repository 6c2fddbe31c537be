"""What the model loses without a head or a layer.

    measure = partial(removal_measures, means=mean_z(model, encoded))
    extract_attention(model, encoded, folder, batch_size, shard_size, measure=measure, layout=REMOVALS)
    lost = score_removals(read_attention(folder), "zero", answers, model.config.id2label)
    effects = removal_effects(lost, families, images)

What comes before a part is the same with and without it, so it is computed once a batch, for all parts.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.attention.image_share import prepare_batch
from helpers.data.encode import EncodedQuestions
from helpers.data.vqa import score_answers
from helpers.heads.roles import name_heads
from helpers.model.packed import PackedForward
from helpers.model.trace import trace
from helpers.stats.bootstrap import bootstrap_by_group
from helpers.stats.cluster_robust import correct_p, has_enough_data, mean_difference_test

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


class Intervention(NamedTuple):
    """What one variant of a forward pass does otherwise.

    z: put in place of these heads' z in the layer, (valid tokens, or 1 for all; heads; d_head), of the
    last layer (questions or 1; heads; d_head). None: the layer is left out, feed-forward part included.
    """

    layer: int
    heads: slice
    z: Tensor | None

    def edit(self, layer: int, z: Tensor) -> Tensor:
        """The z of a layer with this intervention, for `trace`."""
        z = z.clone()
        z[..., self.heads, :] = self.z.to(z)
        return z


def count_heads(model: nn.Module) -> list[int]:
    """How many heads each layer has."""
    return [layer.attention.attention.num_attention_heads for layer in model.vilt.encoder.layer]


def ablate_heads(
    model: nn.Module,
    heads: Sequence[tuple[int, int]],
    mode: str = "zero",
    means: Tensor | None = None,
) -> AbstractContextManager:
    """Silence heads while the block runs, several at once.

    with ablate_heads(model, [(3, 7), (5, 0)]):
        forward_raster(model, batch)

    heads: (layer, head). mode "zero" puts 0 in place of a head's z (its output before the layer's
    projection), "mean" puts means[layer, head], from `mean_z`.
    """
    if mode not in ("zero", "mean") or (mode == "mean") != (means is not None):
        raise ValueError(
            f"mode {mode!r}: use 'zero' without means, or 'mean' with means=mean_z(...)"
        )
    counts, chosen = count_heads(model), defaultdict(list)
    for layer, head in heads:
        if not (0 <= layer < len(counts) and 0 <= head < counts[layer]):
            raise ValueError(
                f"L{layer}H{head} is not in this model: it has {counts} heads in its layers"
            )
        chosen[layer].append(head)

    def silence(layer: int, z: Tensor) -> Tensor:
        z = z.clone()
        z[..., chosen[layer], :] = 0 if means is None else means[layer, chosen[layer]].to(z)
        return z

    return trace(model, edit={"z": silence}, layers=chosen)


@torch.no_grad()
def mean_z(
    model: nn.Module,
    encoded: EncodedQuestions,
    batch_size: int = 64,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Each head's mean output over the tokens at which it is read: (layers, heads, d_head), on the CPU.

    These are all tokens (not padding) of the questions, and in the last layer each question's [CLS]
    alone, as in `PackedForward`: a mean over its patches would be what the answer never sees.
    """
    sums, seen_tokens = 0, 0
    for _, batch in encoded.batches(batch_size, indices):
        zs = read_z(pack_forward(model, batch))
        sums = sums + torch.stack([z.double().sum(0).cpu() for z in zs])
        seen_tokens = seen_tokens + torch.tensor([len(z) for z in zs])
    return (sums / seen_tokens[:, None, None]).float()


def read_z(forward: PackedForward) -> list[Tensor]:
    """Run a packed pass: the z of each layer, (valid tokens, head, d_head), [CLS] alone in the last."""
    with trace(forward.model, read=["z"]) as seen:
        forward.run()
    return seen["z"]


def pack_forward(model: nn.Module, batch: dict[str, Tensor]) -> PackedForward:
    """A packed forward pass over a batch."""
    prepared = prepare_batch(model, batch)
    return PackedForward(model, prepared.inputs, prepared.groups)


def forward_with_interventions(
    forward: PackedForward, interventions: Sequence[Intervention]
) -> Iterator[tuple[int, Tensor]]:
    """Run a packed pass once and yield (row of interventions, logits (question, answer)) as reached.

    Each variant costs only what comes after its intervention. `forward.logits`, in the end, are
    those without any.
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


def list_removals(model: nn.Module, means: Tensor) -> dict[tuple, Intervention]:
    """Each head removed in two ways, and each layer in two: (way, layer[, head]) -> Intervention."""
    interventions = {}
    for layer, count in enumerate(count_heads(model)):
        nothing = torch.zeros_like(means[layer])[None]  # (1, head, d_head)
        for way, z in (("zero", nothing), ("mean", means[layer][None])):
            for head in range(count):
                own = slice(head, head + 1)
                interventions[way, layer, head] = Intervention(layer, own, z[:, own])
        interventions["attention", layer] = Intervention(layer, slice(None), nothing)
        interventions["layer", layer] = Intervention(layer, slice(None), None)
    return interventions


@torch.no_grad()
def removal_measures(
    model: nn.Module, batch: dict[str, Tensor], means: Tensor
) -> dict[str, Tensor]:
    """The answers to a batch without each head and each layer in turn; see REMOVALS for the layout.

    Ways: "zero" puts 0 in place of a head's z, "mean" its mean (means, of `mean_z`);
    "attention" puts 0 for all heads of a layer, "layer" leaves the layer out, feed-forward part included.
    <way>_answer: number of the answer. <way>_probability, and probability intact: sigmoid of the logit of the answer that
    the intact model gives, which moves before the answer does. logits: intact, (question, answer).
    """
    forward, interventions = pack_forward(model, batch), list_removals(model, means)
    found = list(forward_with_interventions(forward, list(interventions.values())))
    best, size = forward.logits.argmax(1, keepdim=True), len(forward.logits)
    shape = (len(means), means.shape[1])
    kept = {
        "logits": forward.logits,
        "probability": forward.logits.float().gather(1, best)[:, 0].sigmoid(),
    }
    for way, axes in WAYS.items():
        kept[f"{way}_answer"] = best.new_zeros(size, *shape[: len(axes)])
        kept[f"{way}_probability"] = torch.zeros_like(kept[f"{way}_answer"], dtype=torch.float32)
    names = list(interventions)
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


def removal_effects(lost: np.ndarray, families, clusters, n_resamples=1000, seed=0) -> pd.DataFrame:
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
        table = bootstrap_by_group(lost, groups, clusters, n_resamples, seed, axes=axes)
        tests = [
            mean_difference_test(lost[groups == own], clusters[groups == own], axes)
            for own in pd.unique(groups)
        ]
        tables.append(table.assign(p=pd.concat(tests, ignore_index=True)["p"]))
    table = pd.concat(tables, ignore_index=True).rename(
        columns={"group": "family", "estimate": "drop"}
    )
    table["told"] = has_enough_data(table["n"], table["n_clusters"])
    table["p_corrected"] = correct_p(table["p"].where(table["told"]))
    table["significant"] = table["p_corrected"] < 0.05
    if "head" in axes:
        table["name"] = name_heads(table)
    axes = [*axes, "name"] if "head" in axes else list(axes)
    tested = ["drop", "low", "high", "p", "p_corrected", "told", "significant", "n", "n_clusters"]
    return table[[*axes, "family", *tested]]
