"""Where a ViLT's heads look: exact measures of attention, with patches in raster order; words are pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from helpers.model.forward import (
    Microbatch,
    PackedForward,
    embed_batch,
    forward_raster,
    patch_grids,
    trace,
)

KEY_GROUPS = ("cls", "words", "sep", "img_cls", "patches")
QUERY_GROUPS = ("cls", "words", "patches")
TEXT, IMAGE = slice(0, 3), slice(3, 5)
SPECIAL = [0, 2, 3]  # cls, sep, img_cls as keys
QUERY_INDEX = [0, 1, 4]  # QUERY_GROUPS among KEY_GROUPS


def image_share(split):
    """Share of attention that goes to the image: split (..., 5) -> (...), in [0, 1]."""
    return (
        split[..., IMAGE.start] + split[..., IMAGE.start + 1]
    )  # 7 times as fast in NumPy as a sum over two


def special_mass(split):
    """Share of attention that rests on [CLS], [SEP] and the image's own CLS: split (..., 5) -> (...)."""
    return split[..., SPECIAL].sum(-1)


def uniform_baseline(n_words, n_patches):
    """Image share of a query that attends to every key alike: image keys / valid keys, in (0, 1)."""
    return (1 + n_patches) / (n_words + 3 + n_patches)  # keys: cls, words, sep; img_cls, patches


def excess_image_share(split, baseline):
    """Image share (question, ...) minus its baseline, a number or (question,); below 0 text is preferred."""
    share = image_share(split)
    return share - align_baseline(baseline, share)


def per_token_lift(split, baseline):
    """Image share over the uniform baseline; 1 is no preference. Shapes as `excess_image_share`."""
    share = image_share(split)
    return share / align_baseline(baseline, share)


def align_baseline(baseline, share):
    """Give a (question,) baseline the trailing axes that broadcasting against `share` needs."""
    missing = share.ndim - getattr(baseline, "ndim", share.ndim)
    return baseline.reshape(*baseline.shape, *[1] * missing) if missing else baseline


def propagate_rollout(attentions: Tensor) -> Tensor:
    """How much of each input token reaches each token after each layer, were attention all that mixes them.

    attentions: (layer, head, query, key) of one question. Returns (layer, query, key), rows summing to 1.
    Abnar and Zuidema (2020): product over layers of 0.5 * (mean over heads) + 0.5 * identity.
    """
    flows = [torch.eye(attentions.shape[-1], dtype=attentions.dtype, device=attentions.device)]
    for layer in attentions.mean(1):
        flows.append(0.5 * (layer @ flows[-1] + flows[-1]))
    return torch.stack(flows[1:])


def rollout(attentions: Tensor) -> Tensor:
    """What `propagate_rollout` ends with, after the last layer: (layer, head, query, key) -> (query, key)."""
    return propagate_rollout(attentions)[-1]


def value_norms(values: Tensor, projection: Tensor) -> Tensor:
    """How large a key's vector is as a head hands it on, before attention scales it: (batch, head, token).

    values: (batch, head, token, d_head), from the layer-normed input, bias included; projection: the weight
    (hidden, head * d_head) of the layer's output projection. The norm of a_j f(x_j) is a_j times this (Kobayashi et
    al. 2020, equations 3 to 5, one head at a time): |v W|^2 = v (W W^T) v^T with the head's own slice W of it.
    """
    slices = projection.float().unflatten(1, (values.shape[1], -1))  # (hidden, head, d_head)
    gram = torch.einsum("ohi,ohj->hij", slices, slices)
    return torch.linalg.vecdot(values.float() @ gram, values.float()).clamp_min(0).sqrt()


def token_groups(attention_mask: Tensor, image_mask: Tensor) -> Tensor:
    """Which token belongs to which of KEY_GROUPS: bool (batch, 5, tokens), all False at padding.

    attention_mask: (batch, text), 1 on [CLS] words [SEP], padding after; image_mask: (batch, 1 + P).
    """
    lengths = attention_mask.sum(1, keepdim=True)
    text = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    if not torch.equal(attention_mask.bool(), text < lengths) or bool((lengths < 2).any()):
        raise ValueError("attention_mask must hold [CLS] words [SEP] first and padding after them.")
    counts = image_mask.sum(1, keepdim=True)
    if not torch.equal(
        image_mask.bool(), torch.arange(image_mask.shape[1], device=counts.device) < counts
    ):
        raise ValueError(
            "pixel_mask must hold the image's CLS and patches first and padding after them."
        )
    groups = attention_mask.new_zeros(
        len(lengths), 5, len(text) + image_mask.shape[1], dtype=torch.bool
    )
    groups[:, 0, 0] = True
    groups[:, 1, : len(text)] = (text > 0) & (text < lengths - 1)
    groups[:, 2, : len(text)] = text == lengths - 1
    groups[:, 3, len(text)] = True
    groups[:, 4, len(text) + 1 :] = image_mask[:, 1:].bool()
    return groups


def query_weights(groups: Tensor) -> Tensor:
    """What averages over each group's queries: (batch, 5, token), rows summing to 1, NaN for a group without tokens."""
    members = groups.float()
    return members / members.sum(2, keepdim=True)


def average_queries(attention: Tensor, groups: Tensor) -> Tensor:
    """Mean row of each of QUERY_GROUPS: (batch, head, query, key) -> (batch, head, 3, key); NaN if empty."""
    return query_weights(groups)[:, None, QUERY_INDEX] @ attention


def check_masking(rows: Tensor, groups: Tensor) -> None:
    """RuntimeError where attention rows (batch, head, query, key) lie on padding."""
    padding = ~groups.any(1)
    leak = (rows @ padding.to(rows.dtype)[:, None, :, None]).nan_to_num().max()
    if leak > 1e-6:
        raise RuntimeError(
            f"the attention on padding is {leak:.2g}, not 0: the model's masking is off."
        )


def average_entropy(attention: Tensor, weights: Tensor) -> Tensor:
    """Mean entropy of rows: (batch, head, query, key), weights (batch, group, query) -> (batch, head, group), nats."""
    tiny = torch.finfo(attention.dtype).tiny  # 0 log 0 counts 0
    entropy = -attention.clamp_min(tiny).log_().mul_(attention).sum(-1, keepdim=True)
    return (weights[:, None] @ entropy)[..., 0]


def mean_distance(attention: Tensor, distance: Tensor, members: Tensor) -> Tensor:
    """Mean distance from a query to where it looks, among members only: (batch, head), in steps.

    attention: (batch, head, token, token); distance: (batch or 1, token, token); members: bool
    (batch, token). Attention is renormalised over the members; a query whose attention misses them
    all is left out; NaN where no query remains.
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
    place = torch.stack([index // columns, index % columns], dim=-1).float()  # (batch, P, 2)
    return torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist")


class Prepared(NamedTuple):
    """A batch on the model's device, its pictures embedded; groups as `token_groups`, grids (batch, 2)."""

    inputs: dict[str, Tensor]
    groups: Tensor
    grids: Tensor | None


def prepare_batch(model: nn.Module, batch: dict[str, Tensor], with_grids: bool = True) -> Prepared:
    """Embed a batch's pictures once and sort its tokens into groups; `inputs` go to `forward_raster`.

    A batch that comes with `image_embeds` brings the rows and columns of its grids as `patch_grids`.
    """
    device = next(model.parameters()).device
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: batch[name].to(device) for name in names if name in batch}
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    inputs["image_embeds"], inputs["pixel_mask"] = embed_batch(model, batch)
    grids = batch.get("patch_grids")
    if "pixel_values" in batch:
        pixels = batch["pixel_values"]
        grids = patch_grids(
            batch.get("pixel_mask", torch.ones_like(pixels[:, 0])), model.config.patch_size
        )
        grids = grids[batch.get("picture_of", slice(None))]
    elif grids is None and with_grids:
        raise ValueError("a batch of image_embeds needs patch_grids (batch, 2): rows, columns.")
    grids = None if grids is None else grids.to(device)
    return Prepared(inputs, token_groups(inputs["attention_mask"], inputs["pixel_mask"]), grids)


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


def check_heads(model: nn.Module) -> None:
    """ValueError unless every layer has as many heads: the measures stand in one array."""
    layers = getattr(model, "vilt", model).encoder.layer
    counts = [layer.attention.attention.num_attention_heads for layer in layers]
    if len(set(counts)) > 1:
        raise ValueError(
            f"the layers have {counts} heads: attention is measured where all have as many heads; look at the whole model."
        )


@torch.no_grad()
def attention_split(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Split every head's attention over the groups of keys, a question and a layer at a time.

    batch: what the processor or `EncodedQuestions.collate` returns, or `image_embeds` with `pixel_mask`
    (batch, 1 + P). Returns (question, layer, head, QUERY_GROUPS, KEY_GROUPS) float32: the mean over the
    group's queries of the mass on the group's keys; sums to 1 over keys, NaN for a group without tokens.
    """
    check_heads(model)
    inputs, groups, _ = prepare_batch(model, batch, with_grids=False)
    layers = []
    for layer in PackedForward(model, inputs, groups):
        splits = [
            average_queries(attention, microbatch.groups) @ microbatch.groups.float().mT[:, None]
            for microbatch, attention in layer
        ]
        layers.append(torch.cat(splits))
    return torch.stack(layers, dim=1)


@torch.no_grad()
def attention_measures(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """All measures in one pass; batch as in `attention_split`, axes (question, layer, head, ...):

    split (..., 3, 5).
    entropy (..., 3): -sum p log p / log(valid keys), mean over the group's queries; 0 one key, 1 uniform.
    text_distance: word pieces from word queries to word keys, 0 for a question of one word, NaN for none.
    patch_distance: grid steps from patch queries to patch keys. See `mean_distance` for both.
    top_patch (..., 3): raster index of the patch that the group's mean attention favours; -1 if empty.
    value_norm (..., 3, 5): as split, but each key counts attention times the norm of its vector as the head hands
    it on (`value_norms`), in units of the hidden space.
    flow (question, layer, 5, 5): mean over heads of the split, with all of KEY_GROUPS as queries too.
    rollout (question, 5): what the `rollout` of all layers gives [CLS] from each group; sums to 1.
    logits (question, answer), of a model that has them.
    """
    check_heads(model)
    inputs, groups, grids = prepare_batch(model, batch)
    walk, layers = PackedForward(model, inputs, groups), []
    gauges = [Gauge(microbatch, grids[microbatch.questions]) for microbatch in walk.microbatches]
    for layer in walk:
        norms = value_norms(layer.values.transpose(0, 1)[None], layer.projection)[
            0
        ]  # (head, packed token)
        found = [gauge.read(*seen, norms) for gauge, seen in zip(gauges, layer, strict=True)]
        layers.append({name: torch.cat([each[name] for each in found]) for name in found[0]})
    found = {name: torch.stack([layer[name] for layer in layers], dim=1) for name in layers[0]}
    found["rollout"] = torch.cat([gauge.roll_out() for gauge in gauges])
    return found if walk.logits is None else {**found, "logits": walk.logits}


class Gauge:
    """Reads the measures off a microbatch's attention, layer after layer; what does not change is worked out once."""

    def __init__(self, microbatch: Microbatch, grids: Tensor):
        n_text, n_tokens = microbatch.n_text, microbatch.groups.shape[2]
        self.text, self.image = slice(0, n_text), slice(n_text + 1, n_tokens)
        self.words, self.patches = (
            microbatch.groups[:, 1, self.text],
            microbatch.groups[:, 4, self.image],
        )
        self.word_steps = grid_distance(
            grids.new_tensor([[1, n_text]]), n_text
        )  # words stand in one row
        self.patch_steps = grid_distance(grids, n_tokens - n_text - 1)
        self.keys = microbatch.groups.float().mT  # (question, token, 5)
        self.weights = query_weights(microbatch.groups)
        self.scale = 1 / microbatch.groups.any(1).sum(1).log()[:, None, None]
        self.means = []  # of each layer over heads: (question, query, key)

    def read(self, microbatch: Microbatch, attention: Tensor, norms: Tensor) -> dict[str, Tensor]:
        """Measures of one layer: attention (question, head, query, key); norms (head, packed token)."""
        rows = self.weights[:, None] @ attention  # (question, head, 5, key)
        mass, asked = rows @ self.keys[:, None], rows[:, :, QUERY_INDEX]
        self.means.append(attention.mean(1))
        best = asked[..., self.image].argmax(-1)
        return {
            "split": mass[:, :, QUERY_INDEX],
            "entropy": average_entropy(attention, self.weights[:, QUERY_INDEX]) * self.scale,
            "text_distance": mean_distance(
                attention[..., self.text, self.text], self.word_steps, self.words
            ),
            "patch_distance": mean_distance(
                attention[..., self.image, self.image], self.patch_steps, self.patches
            ),
            "top_patch": best.masked_fill(asked[..., 0].isnan(), -1),
            "value_norm": (asked * microbatch.gather(norms.T[..., None]).mT) @ self.keys[:, None],
            "flow": mass.mean(1),
        }

    def roll_out(self) -> Tensor:
        """What [CLS] gets from each group by `rollout` of all layers read: (question, 5). Its row alone, from the top."""
        row = torch.zeros_like(self.means[0][:, :1])
        row[..., 0] = 1
        for attention in reversed(self.means):
            row = 0.5 * (row @ attention + row)
        return (row @ self.keys)[:, 0]


@dataclass
class QuestionMaps:
    """Full attention of one question, padding removed.

    attention: (layer, head, query, key); tokens: what each of the N positions is (word pieces, then
    "[IMG]" for the image's own CLS and "row,column" for patches); grid: (rows, columns) of the patches,
    which are in raster order; groups: the slice of positions of each of KEY_GROUPS.
    A heatmap over the picture: attention[layer, head, 0, groups["patches"]].reshape(grid).
    """

    attention: Tensor
    tokens: list[str]
    grid: tuple[int, int]
    groups: dict[str, slice]


class AttentionMaps(tuple):
    """The maps of a few questions, a tuple of QuestionMaps: `attention_maps(model, batch)[0].tokens`."""


@torch.no_grad()
def attention_maps(model: nn.Module, batch: dict[str, Tensor], tokenizer=None) -> AttentionMaps:
    """Full attention matrices of a few questions: layers * heads * tokens^2 floats each. See QuestionMaps.

    Token strings come from `tokenizer`, else from `model.tokenizer` (left there by `load_vilt`); without
    either, words are named by their ids.
    """
    inputs, groups, grids = prepare_batch(model, batch)
    with trace(model, read=["pattern"]) as seen:
        forward_raster(model, inputs)
    layers = seen["pattern"]
    check_masking(layers[0], groups)
    tokenizer = tokenizer or getattr(model, "tokenizer", None)
    maps = []
    for place, (rows, columns) in enumerate(grids.tolist()):
        kept = groups[place].any(0).nonzero()[:, 0]
        attention = torch.stack([layer[place][:, kept][:, :, kept] for layer in layers])
        ids = inputs["input_ids"][place][inputs["attention_mask"][place].bool()].tolist()
        words = tokenizer.convert_ids_to_tokens(ids) if tokenizer else [str(token) for token in ids]
        patches = [f"{row},{column}" for row in range(rows) for column in range(columns)]
        ends = torch.tensor([0, *groups[place].sum(1).tolist()]).cumsum(0).tolist()
        slices = {name: slice(*ends[i : i + 2]) for i, name in enumerate(KEY_GROUPS)}
        maps.append(QuestionMaps(attention, [*words, "[IMG]", *patches], (rows, columns), slices))
    return AttentionMaps(maps)
