"""Where a ViLT's heads look: the image share and other exact measures of a batch, and whole maps.

    split = attention_split(model, batch)     # (question, layer, head, QUERY_GROUPS, KEY_GROUPS)
    image_share(split)                        # share of attention on the image, in [0, 1]
    uniform_baseline(n_words, n_patches)      # the share of uniform attention
    attention_maps(model, batch)[0]           # one question's matrices, patches in raster order
    seen = look(model, processor, "cat.jpg", "What color is the cat?")
    seen.answer, seen.image_share[11], seen.baseline, seen.plot()

"Words" are word pieces throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import ViltProcessor

from helpers.attention.word_classes import CLASSES, mark_classes
from helpers.figures.attention import plot_look
from helpers.model.forward import (
    Microbatch,
    PackedForward,
    PackedLayer,
    embed_batch,
    forward_raster,
    patch_grids,
    trace,
)

KEY_GROUPS = ("cls", "words", "sep", "img_cls", "patches")
QUERY_GROUPS = ("cls", "words", "patches")
IMAGE = slice(3, 5)  # among KEY_GROUPS
SPECIAL = [0, 2, 3]  # cls, sep, img_cls as keys
FUNCTION = [CLASSES.index("function word"), CLASSES.index("punctuation")]
QUERY_INDEX = [0, 1, 4]  # QUERY_GROUPS among KEY_GROUPS
READERS = ("cls", "patches")  # of `word_read`
READER_INDEX = [0, 4]  # READERS among KEY_GROUPS
# what `LayerMeasures.list_columns` lets keys carry, for the sums that `attend` gives of it
COLUMNS = {"split": slice(0, 5), "value_norm": slice(5, 10), "sink": slice(10, 12)}
CARRIED = slice(12, 17)
Array = TypeVar("Array", np.ndarray, Tensor)
Picture = Image.Image | np.ndarray | str | Path
Batch = dict[str, Tensor]  # of the processor, or of `EncodedQuestions.collate` or `.batches`


def image_share(split: Array) -> Array:
    """Share of attention on the image, its own CLS and its patches: (..., KEY_GROUPS) -> (...)."""
    # 7 times as fast in NumPy as a sum over an axis of two
    return split[..., IMAGE.start] + split[..., IMAGE.start + 1]


def special_mass(split: Array) -> Array:
    """Share of attention on [CLS], [SEP] and the image's own CLS: (..., KEY_GROUPS) -> (...)."""
    return split[..., SPECIAL].sum(-1)


def uniform_baseline(n_words: Array, n_patches: Array) -> Array:
    """Image share of a query that attends to every key alike: image keys / valid keys."""
    return (1 + n_patches) / (n_words + 3 + n_patches)  # beside them [CLS], [SEP], the image's CLS


def rollout(attentions: Tensor) -> Tensor:
    """How much of each input token is in each token after each layer, were attention all that acts.

    (layer, head, query, key) of one question -> (layer, query, key), whose rows sum to 1: products
    over layers of half the mean over heads and half the identity (Abnar and Zuidema 2020).
    """
    flows = [torch.eye(attentions.shape[-1], dtype=attentions.dtype, device=attentions.device)]
    for layer in attentions.mean(1):
        flows.append(0.5 * (layer @ flows[-1] + flows[-1]))
    return torch.stack(flows[1:])


def value_norms(values: Tensor, projection: Tensor) -> Tensor:
    """Norm of the vector that a head hands on for each key, before attention scales it.

    values: (batch, head, token, d_head), bias included; projection: the weight (hidden, head *
    d_head) of the layer's output projection. Returns (batch, head, token). Kobayashi et al. 2020,
    equations 3 to 5, a head at a time: |v W|^2 = v (W W^T) v^T, with the head's own slice W.
    """
    slices = projection.float().unflatten(1, (values.shape[1], -1))  # (hidden, head, d_head)
    gram = torch.einsum("ohi,ohj->hij", slices, slices)
    return torch.linalg.vecdot(values.float() @ gram, values.float()).clamp_min(0).sqrt()


def sink_columns(norms: Tensor, sinks: Tensor, others: Tensor) -> Tensor:
    """Two columns that tell what attention rests on sinks, and what of it reads next to nothing.

    norms: of the values, (..., 1, key); sinks, others: bool (..., 1, key), the keys that hardly
    depend on the question (special tokens, function words, punctuation), and all other valid ones.
    Returns (..., key, 2), to be summed with attention (..., query, key): which keys are sinks; and
    by how much smaller their value is than the mean value of the others, max(0, 1 - norm / mean).
    The second sum is 1 where all attention rests on sinks whose values are 0, and 0 where their
    values are as large as the others'.
    """
    mean = (norms * others).sum(-1, keepdim=True) / others.sum(-1, keepdim=True)
    smaller = (1 - norms / mean.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0)
    return torch.cat([sinks.expand_as(norms), sinks * smaller], dim=-2).mT


def token_groups(attention_mask: Tensor, image_mask: Tensor) -> Tensor:
    """Which token belongs to which of KEY_GROUPS: bool (batch, 5, token), all False at padding.

    attention_mask: (batch, text); image_mask: (batch, 1 + P), of the image's CLS and patches.
    ValueError where either has padding anywhere but at its end.
    """
    lengths = attention_mask.sum(1, keepdim=True)
    text = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    if not torch.equal(attention_mask.bool(), text < lengths) or bool((lengths < 2).any()):
        raise ValueError("attention_mask must hold [CLS] words [SEP] first and padding after them.")
    counts = image_mask.sum(1, keepdim=True)
    if not torch.equal(image_mask.bool(), torch.arange(image_mask.shape[1]).to(counts) < counts):
        raise ValueError("pixel_mask must hold the image's CLS and patches first, then padding.")
    shape = (len(lengths), 5, len(text) + image_mask.shape[1])
    groups = attention_mask.new_zeros(shape, dtype=torch.bool)
    groups[:, 0, 0] = True
    groups[:, 1, : len(text)] = (text > 0) & (text < lengths - 1)
    groups[:, 2, : len(text)] = text == lengths - 1
    groups[:, 3, len(text)] = True
    groups[:, 4, len(text) + 1 :] = image_mask[:, 1:].bool()
    return groups


def mark_objects(batch: Batch, groups: Tensor) -> Tensor:
    """Which tokens are patches of the known objects: bool (batch, 2, token), see `objects`.

    batch: of a `grounding.MarkedQuestions`; of any other batch none are. groups: of `token_groups`.
    """
    marks = torch.zeros_like(groups[:, :2])
    if "objects" in batch:
        marks[..., -batch["objects"].shape[2] :] = batch["objects"]
    return marks


def query_weights(groups: Tensor) -> Tensor:
    """Weights that average over each group: bool (batch, group, token) -> float; NaN if empty."""
    members = groups.float()
    return members / members.sum(2, keepdim=True)


@cache
def query_index(device: torch.device) -> Tensor:
    """Places of QUERY_GROUPS among KEY_GROUPS; kept on the device, where a list would be copied."""
    return torch.tensor(QUERY_INDEX, device=device)


def average_queries(attention: Tensor, groups: Tensor) -> Tensor:
    """Mean row of each of QUERY_GROUPS: (batch, head, query, key) -> (batch, head, 3, key)."""
    some = groups.index_select(1, query_index(groups.device))
    return query_weights(some)[:, None] @ attention


def mean_distance(attention: Tensor, distance: Tensor, members: Tensor) -> Tensor:
    """Mean distance from a query to where it looks, among members only: (batch, head), in steps.

    attention (batch, head, token, token) is renormalised over the members (batch, token);
    distance: (batch or 1, token, token). A query that misses them all is left out; NaN for none.
    """
    keys = members[:, None].float()  # (batch, 1, token)
    mass = (attention @ keys[..., None])[..., 0]
    reach = (attention * (distance * keys)[:, None]).sum(-1)
    counted = members[:, None] & (mass > 0)
    steps = torch.where(counted, reach / mass, 0)
    return steps.sum(-1) / counted.sum(-1)


def grid_distance(grids: Tensor, n_patches: int) -> Tensor:
    """Euclidean distance between patches in grid steps: grids (batch, 2) -> (batch, P, P)."""
    index, columns = torch.arange(n_patches, device=grids.device), grids[:, 1:]
    down, across = (x[:, :, None] - x[:, None] for x in (index // columns, index % columns))
    return (down.square() + across.square()).float().sqrt()


class PreparedBatch(NamedTuple):
    """A batch on the model's device, as `prepare_batch` returns it."""

    inputs: Batch  # for `forward_raster`
    groups: Tensor  # of `token_groups`
    grids: Tensor | None  # (batch, 2), rows and columns of patches


def prepare_batch(model: nn.Module, batch: Batch, with_grids: bool = True) -> PreparedBatch:
    """Embed a batch's pictures once, and sort its tokens into groups.

    A batch with `image_embeds` must bring its grids as `patch_grids`, where they are asked for.
    """
    device = next(model.parameters()).device
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: batch[name].to(device) for name in names if name in batch}
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    inputs["image_embeds"], inputs["pixel_mask"] = embed_batch(model, batch)
    grids = batch.get("patch_grids") if with_grids else None
    if with_grids and "pixel_values" in batch:
        mask = batch.get("pixel_mask", torch.ones_like(batch["pixel_values"][:, 0]))
        grids = patch_grids(mask, model.config.patch_size)[batch.get("picture_of", slice(None))]
    elif with_grids and grids is None:
        raise ValueError("a batch of image_embeds needs patch_grids (batch, 2): rows, columns.")
    grids = None if grids is None else grids.to(device)
    groups = token_groups(inputs["attention_mask"], inputs["pixel_mask"])
    return PreparedBatch(inputs, groups, grids)


def pack_forward(model: nn.Module, batch: Batch) -> PackedForward:
    """A packed forward pass over a batch."""
    inputs, groups, _ = prepare_batch(model, batch, with_grids=False)
    return PackedForward(model, inputs, groups)


def keep_patches(inputs: Batch, patches: Sequence[np.ndarray]) -> Batch:
    """A prepared batch with only some patches of each question, and the image's CLS.

    patches: raster indices, an array a question. The others' tokens leave the sequence.
    """
    embeds = inputs["image_embeds"]
    rows = [torch.from_numpy(np.r_[0, np.sort(kept) + 1].astype(int)) for kept in patches]
    where = pad_sequence(rows, batch_first=True).to(embeds.device)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    embeds = embeds.gather(1, where[..., None].expand(-1, -1, embeds.shape[2]))
    return {**inputs, "image_embeds": embeds, "pixel_mask": mask.to(embeds.device)}


def check_eval_mode(model: nn.Module) -> None:
    """ValueError for a model in train mode."""
    if model.training:
        raise ValueError("in train mode dropout blurs every answer: call model.eval() first.")


def check_heads(model: nn.Module) -> None:
    """ValueError unless every layer has as many heads: the measures share one array."""
    layers = getattr(model, "vilt", model).encoder.layer
    counts = [layer.attention.attention.num_attention_heads for layer in layers]
    if len(set(counts)) > 1:
        advice = "attention is measured where all have as many heads; look at the whole model."
        raise ValueError(f"the layers have {counts} heads: {advice}")


@torch.no_grad()
def attention_split(model: nn.Module, batch: Batch, fused: bool | None = None) -> Tensor:
    """Split every head's attention: float32 (question, layer, head, QUERY_GROUPS, KEY_GROUPS).

    The mean over a group's queries of the mass on a group's keys; sums to 1 over keys, NaN for
    queries of a group without tokens. batch: what the processor or `EncodedQuestions.collate`
    returns, or `image_embeds` with `pixel_mask` (batch, 1 + P). fused: by `PackedLayer.attend`, as
    None means on a GPU. On a CPU patterns of a few questions, which fit its cache, are faster.
    """
    check_heads(model)
    forward, layers = pack_forward(model, batch), []
    fused = forward.valid.device.type == "cuda" if fused is None else fused
    marks = forward.groups.mT[forward.valid][:, None]  # (valid token, 1, 5)
    for layer in forward:
        if fused:
            sums, _ = layer.attend(marks.expand(-1, layer.values.shape[1], -1))
            parts = [(part, part.gather(sums)) for part in forward.microbatches]
        else:
            parts = ((part, pattern @ part.groups.float().mT[:, None]) for part, pattern in layer)
        splits = [average_queries(masses, part.groups) for part, masses in parts]
        layers.append(torch.cat(splits))
    return torch.stack(layers, dim=1)


@torch.no_grad()
def attention_measures(model: nn.Module, batch: Batch, matrix: bool = True) -> dict[str, Tensor]:
    """All measures in one pass; batch as in `attention_split`, axes (question, layer, head, ...).

    split (..., 3, 5).
    entropy (..., 3): -sum p log p / log(valid keys), mean over the group's queries; 1 is uniform.
    text_distance: in word pieces, from word queries to word keys; 0 for one word, NaN for none.
    patch_distance: in grid steps, from patch queries to patch keys. For both see `mean_distance`.
    top_patch (..., 3): raster index of the patch with the most mean attention; -1 if empty.
    value_norm (..., 3, 5): as split, each key weighted by `value_norms`, in units of the hidden
        space.
    sink (..., 3, 2): attention on [CLS], [SEP], the image's CLS, function words and punctuation,
        and the part of it that reads next to nothing, see `sink_columns`.
    n_sinks (question,): how many tokens these are.
    flow (question, layer, 5, 5): mean over heads of the split, with all KEY_GROUPS as queries.
    rollout (question, 5): what the `rollout` of all layers gives [CLS] from each group.
    logits (question, answer), where the model has them.
    matrix=False leaves out patch_distance and top_patch, which need whole patterns; the rest then
    comes from `PackedLayer.attend`, which holds none.
    """
    check_heads(model)
    inputs, groups, grids = prepare_batch(model, batch, with_grids=matrix)
    forward, layers = PackedForward(model, inputs, groups), []
    function = mark_classes(model, inputs)[:, FUNCTION].any(1)  # none without a tokenizer
    parts = [LayerMeasures(part, function, grids) for part in forward.microbatches]
    for layer in forward:
        norms = value_norms(layer.values.transpose(0, 1)[None], layer.projection)[0]
        if matrix:
            found = [part.update(seen, norms) for part, (_, seen) in zip(parts, layer, strict=True)]
        else:
            found = measure_fused(layer, parts, norms)
        layers.append({name: torch.cat([part[name] for part in found]) for name in found[0]})
    measures = {name: torch.stack([layer[name] for layer in layers], dim=1) for name in layers[0]}
    measures["rollout"] = torch.cat([part.carried[:, 0] for part in parts])
    measures["n_sinks"] = len(SPECIAL) + function.sum(1)
    return measures if forward.logits is None else {**measures, "logits": forward.logits}


def measure_fused(
    layer: PackedLayer, parts: "list[LayerMeasures]", norms: Tensor
) -> list[dict[str, Tensor]]:
    """A layer's measures of each microbatch, of a layer that has not been run and then has."""
    columns = norms.new_empty(*layer.key.shape[:2], CARRIED.stop)
    for part in parts:
        carried = part.carried[:, None].expand(-1, len(norms), -1, -1)
        each = torch.cat([part.list_columns(norms), carried], dim=-1)
        part.microbatch.scatter(columns, each)
    sums, lse = layer.attend(torch.cat([columns, layer.key.float()], dim=-1))
    # sum p log p = sum p (score - lse) = q . sum p k / sqrt(d) - lse
    scores = torch.linalg.vecdot(layer.query.float(), sums[..., CARRIED.stop :])
    surprise = lse[..., 0] - scores * layer.query.shape[-1] ** -0.5
    return [part.read_sums(layer, sums, lse, surprise[..., None]) for part in parts]


class LayerMeasures:
    """Measures of a microbatch, layer after layer; what all layers share is computed once."""

    def __init__(self, microbatch: Microbatch, function: Tensor, grids: Tensor | None) -> None:
        n_text, n_tokens = microbatch.n_text, microbatch.groups.shape[2]
        self.microbatch, function = microbatch, function[microbatch.questions]
        self.text, self.image = slice(0, n_text), slice(n_text + 1, n_tokens)
        self.words = microbatch.groups[:, 1, self.text]
        self.patches = microbatch.groups[:, 4, self.image]
        row = torch.tensor([[1, n_text]], device=function.device)  # words stand in one
        self.word_steps = grid_distance(row, n_text)
        if grids is not None:
            grids = grids[microbatch.questions]
            self.patch_steps = grid_distance(grids, n_tokens - n_text - 1)
        valid, sinks = microbatch.groups.any(1), microbatch.groups[:, SPECIAL].any(1)
        sinks[:, self.text] |= function[:, self.text]
        self.sinks, self.others = sinks[:, None, None], (valid & ~sinks)[:, None, None]
        self.keys = microbatch.groups.float().mT  # (question, token, 5)
        self.weights = query_weights(microbatch.groups)
        self.entropy_scale = 1 / valid.sum(1).log()[:, None, None]
        self.carried = self.keys  # the `rollout` so far: of each group, in each token

    def update(self, attention: Tensor, norms: Tensor) -> dict[str, Tensor]:
        """One layer: attention (question, head, query, key); norms (head, valid token)."""
        self.carried = 0.5 * (attention.mean(1) @ self.carried + self.carried)
        rows = self.weights[:, None] @ attention  # (question, head, 5, key)
        among_patches = attention[..., self.image, self.image]
        tiny = torch.finfo(attention.dtype).tiny  # 0 log 0 counts 0
        surprise = -attention.clamp_min(tiny).log_().mul_(attention).sum(-1, keepdim=True)
        queries, among_words = self.pick(rows), attention[..., self.text, self.text]
        top_patch = queries[..., self.image].argmax(-1)
        return self.name_sums(rows @ self.list_columns(norms), surprise, among_words) | {
            "patch_distance": mean_distance(among_patches, self.patch_steps, self.patches),
            "top_patch": top_patch.masked_fill(queries[..., 0].isnan(), -1),
        }

    def list_columns(self, norms: Tensor) -> Tensor:
        """What keys carry, for attention to sum: (question, head, token, COLUMNS)."""
        norms = self.microbatch.gather(norms.T[..., None]).mT  # (question, head, 1, key)
        keys = self.keys[:, None].expand(-1, norms.shape[1], -1, -1)
        sinks = sink_columns(norms, self.sinks, self.others)
        return torch.cat([keys, keys * norms.mT, sinks], dim=-1)

    def name_sums(self, rows: Tensor, surprise: Tensor, among_words: Tensor) -> dict[str, Tensor]:
        """The measures from what each group's queries sum of the columns, and from the queries.

        rows: (question, head, 5, column); surprise: -sum p log p, (question, head, query, 1);
        among_words: attention (question, head, text, text).
        """
        entropy = self.pick(self.weights[:, None] @ surprise)[..., 0] * self.entropy_scale
        return {name: self.pick(rows[..., part]) for name, part in COLUMNS.items()} | {
            "entropy": entropy,
            "text_distance": mean_distance(among_words, self.word_steps, self.words),
            "flow": rows[..., COLUMNS["split"]].mean(1),
        }

    def read_sums(
        self, layer: PackedLayer, sums: Tensor, lse: Tensor, surprise: Tensor
    ) -> dict[str, Tensor]:
        """One layer from what a fused kernel summed of these columns: see `measure_fused`."""
        packed = (sums, lse, surprise, layer.query, layer.key)
        sums, lse, surprise, query, key = map(self.microbatch.gather, packed)
        self.carried = 0.5 * (sums[..., CARRIED].mean(1) + self.carried)
        query, key, lse = (each[:, :, self.text].float() for each in (query, key, lse))
        scores = query @ key.mT * query.shape[-1] ** -0.5
        scores.masked_fill_(~self.words[:, None, None], float("-inf"))
        return self.name_sums(self.weights[:, None] @ sums, surprise, (scores - lse).exp())

    def pick(self, groups: Tensor) -> Tensor:
        """QUERY_GROUPS of all groups: (question, head, 5, ...) -> (question, head, 3, ...)."""
        return groups.index_select(2, query_index(groups.device))


@torch.no_grad()
def word_measures(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Attention from and to the words of each class.

    word_image (question, layer, head, CLASSES): mean over the class's word pieces, as queries, of
        the mass on the image (its CLS and patches).
    word_read (question, layer, head, READERS, CLASSES): mean over the class's word pieces, as keys,
        of the mass that a reader (text [CLS]; mean over patches) puts on one.
    word_place (question, CLASSES): mean position of the class's word pieces; the first is 1.
    logits (question, answer).
    NaN where a question has no word of the class. ValueError without `model.tokenizer`.
    """
    if getattr(model, "tokenizer", None) is None:
        advice = "load the model with load_vilt, or set it."
        raise ValueError(f"word classes need model.tokenizer: {advice}")
    inputs, groups, _ = prepare_batch(model, batch, with_grids=False)
    members, layers = mark_classes(model, inputs), []
    forward = PackedForward(model, inputs, groups)
    for layer in forward:
        found = [read_classes(part, attention, members) for part, attention in layer]
        layers.append([torch.cat(parts) for parts in zip(*found, strict=True)])
    image, read = (torch.stack(parts, dim=1) for parts in zip(*layers, strict=True))
    positions = torch.arange(members.shape[2], device=members.device, dtype=torch.float32)
    place = query_weights(members) @ positions
    return {"word_image": image, "word_read": read, "word_place": place, "logits": forward.logits}


def read_classes(part: Microbatch, attention: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """word_image and word_read of one layer; attention: (question, head, query, key)."""
    n_text, groups = part.n_text, part.groups
    # (question, 1, class, text) and (question, 1, reader, token)
    weights = query_weights(members[part.questions, :, :n_text])[:, None]
    readers = query_weights(groups[:, READER_INDEX])[:, None]
    image = groups[:, IMAGE].any(1).float()[:, None, :, None]
    word_image = weights @ (attention[:, :, :n_text] @ image)
    return word_image[..., 0], readers @ attention[..., :n_text] @ weights.mT


@dataclass
class QuestionMaps:
    """Full attention of one question, padding removed, patches in raster order.

    A heatmap over the picture: attention[layer, head, 0, groups["patches"]].reshape(grid).
    """

    attention: Tensor  # (layer, head, query, key)
    tokens: list[str]  # word pieces, "[IMG]" for the image's own CLS, "row,column" for patches
    grid: tuple[int, int]  # rows and columns of patches
    groups: dict[str, slice]  # positions of each of KEY_GROUPS


@torch.no_grad()
def attention_maps(model: nn.Module, batch: Batch) -> tuple[QuestionMaps, ...]:
    """Full attention matrices of a few questions: layers * heads * tokens^2 floats each.

    Token strings come from `model.tokenizer`, without one they are ids. RuntimeError where
    the model attends to padding, ValueError in train mode.
    """
    inputs, groups, grids = prepare_batch(model, batch)
    with trace(model, read=["pattern"]) as seen:
        forward_raster(model, inputs)
    layers, padding = seen["pattern"], ~groups.any(1)[:, None, :, None]
    leak = (layers[0] @ padding.to(layers[0].dtype)).nan_to_num().max()
    if leak > 1e-6:
        raise RuntimeError(f"the attention on padding is {leak:.2g}, not 0: masking is off.")
    tokenizer, maps = getattr(model, "tokenizer", None), []
    for row, (n_rows, n_columns) in enumerate(grids.tolist()):
        valid = groups[row].any(0).nonzero()[:, 0]
        attention = torch.stack([layer[row][:, valid][:, :, valid] for layer in layers])
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        words = tokenizer.convert_ids_to_tokens(ids) if tokenizer else [str(token) for token in ids]
        patches = [f"{down},{across}" for down in range(n_rows) for across in range(n_columns)]
        ends = torch.tensor([0, *groups[row].sum(1).tolist()]).cumsum(0).tolist()
        slices = dict(zip(KEY_GROUPS, map(slice, ends, ends[1:]), strict=True))
        tokens = [*words, "[IMG]", *patches]
        maps.append(QuestionMaps(attention, tokens, (n_rows, n_columns), slices))
    return tuple(maps)


@dataclass(frozen=True)
class Look:
    """What a ViLT makes of one picture and one question; L layers, H heads, T tokens."""

    question: str
    picture: Image.Image  # upright, RGB, in its own size
    answer: str
    answers: pd.Series  # probability of each of the five likeliest answers
    split: np.ndarray  # (L, H, 3, 5): attention from QUERY_GROUPS to KEY_GROUPS, rows sum to 1
    baseline: float  # image share of uniform attention
    attention: QuestionMaps  # all matrices (L, H, T, T), token strings, patch grid

    @property
    def image_share(self) -> np.ndarray:
        """Share of [CLS]'s attention that goes to the image: (layer, head), in [0, 1]."""
        return image_share(self.split[:, :, 0])

    @property
    def maps(self) -> np.ndarray:
        """[CLS]'s attention on each patch: (layer, head, row, column)."""
        on_patches = self.attention.attention[:, :, 0, self.attention.groups["patches"]]
        return on_patches.unflatten(-1, self.attention.grid).float().cpu().numpy()

    def plot(self) -> Figure:
        """The picture, the image share of every head, and a map for each layer (mean of heads)."""
        title = f"{self.question}  →  {self.answer}"
        return plot_look(self.picture, title, self.image_share, self.baseline, self.maps.mean(1))


def look(model: nn.Module, processor: ViltProcessor, picture: Picture, question: str) -> Look:
    """Ask a ViLT one question about one picture, and measure where it looks.

    model, processor: of `load_vilt`, in eval mode. picture: a PIL image, an array (height, width
    or height, width, 3) of bytes, or a file; grey, transparent and turned ones too. A question
    longer than the model reads (40 word pieces in ViLT-B/32) is cut, with a warning. ValueError for
    an empty question, and for a picture that is too long and thin for patches.
    """
    if not question.strip():
        raise ValueError("the question is empty: ask something about the picture.")
    picture = open_upright(picture)
    batch = encode_one(processor, picture, question)
    with torch.no_grad():
        logits = forward_raster(model, batch).logits[0].float().cpu()
    split, maps = attention_split(model, batch)[0], attention_maps(model, batch)[0]
    names = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    maps = replace(maps, tokens=[*names, *maps.tokens[len(names) :]])
    best = logits.sigmoid().sort(descending=True)
    labels = [model.config.id2label[number] for number in best.indices[:5].tolist()]
    n_words, n_patches = (len(maps.tokens[maps.groups[name]]) for name in ("words", "patches"))
    return Look(
        question=question,
        picture=picture,
        answer=labels[0],
        answers=pd.Series(best.values[:5].numpy(), labels, name="probability"),
        split=split.cpu().numpy(),
        baseline=uniform_baseline(n_words, n_patches),
        attention=maps,
    )


def open_upright(picture: Picture) -> Image.Image:
    """A picture as RGB, turned as its camera says."""
    from helpers.data.encode import load_rgb  # here, as it takes `datasets`

    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    elif not isinstance(picture, Image.Image):
        picture = Image.open(picture)
    return load_rgb(picture)


def encode_one(processor: ViltProcessor, picture: Image.Image, question: str) -> Batch:
    """A batch of one question, with the processor's own names and values."""
    from helpers.data.encode import encode_text, normalise_levels, pad_pictures, resize_image

    ids = encode_text([question], processor.tokenizer)[0][None]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pixels = resize_image(picture, processor.image_processor)
    return text | pad_pictures([pixels], normalise_levels(processor.image_processor))
