"""ViLT's forward pass: in raster order, fused, traced, and packed."""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle
from transformers.models.vilt.modeling_vilt import ViltSelfAttention
from transformers.utils import ModelOutput

logger = logging.getLogger(__name__)
# what a pass does otherwise, by layer: a new z from the layer's z (valid token, head, d_head), all
# heads'; which edges are cut, as `PackedForward.blocked`; or None, the layer left out
Variant = Mapping[int, Callable[[Tensor], Tensor] | Tensor | None]

SITES = {  # the module of a layer that hands the value on; z is what its module receives
    "value": "attention.attention.value",
    "pattern": "attention.attention.dropout",
    "z": "attention.output.dense",
    "layer": "output",
}
CACHE = 4_000_000  # bytes of attention held at once on a CPU: what its cache takes
GPU_SHARE = 1_000_000_000  # and on a GPU
ROWS = 1024  # tokens a call of a feed-forward layer on a CPU: its activations take about 12 MB
WIDEST = 128  # value columns a kernel keeps in registers
# cuDNN's, first on an H100, would build a plan for every new length: half a second each
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
TRAINING = "in train mode attention is seen after dropout: call model.eval() first."
FUSED = "fused attention holds no pattern: leave fused_attention to look at one."
PACKED = "the packed pass keeps no pattern and no residual stream: trace it at 'value' and 'z'."


def patch_grids(pixel_mask: Tensor, patch_size: int) -> Tensor:
    """Rows and columns of each picture's patches: (batch, height, width) mask -> (batch, 2) long.

    A patch counts where its first pixel does: ViLT's own rule (ViltEmbeddings.visual_embed).
    """
    counts = []
    for edge in (pixel_mask[:, :, 0], pixel_mask[:, 0]):  # a picture is a rectangle
        size = edge.shape[1] // patch_size
        counts.append(nn.functional.interpolate(edge[:, None].float(), size=size).sum((1, 2)))
    return torch.stack(counts, dim=1).long()


def embed_images(
    model: nn.Module, pixel_values: Tensor, pixel_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Embed pictures for ViLT with their patches in raster order, without randomness.

    ViltEmbeddings.visual_embed does so in a random order that it then drops; logits are equal.
    pixel_values: (batch, 3, height, width). pixel_mask: (batch, height, width), 1 on the picture.
    Returns, to pass as `image_embeds` and `pixel_mask`: (batch, 1 + patches, hidden), the image's
    own CLS first and zeros at padding, and (batch, 1 + patches) long. Differentiable.
    """
    model = getattr(model, "module", model)  # out of DistributedDataParallel
    modules = getattr(model, "vilt", model).embeddings
    config = modules.config
    if pixel_mask is None:
        pixel_mask = pixel_values.new_ones(pixel_values.shape[0], *pixel_values.shape[2:])
    patches = project_patches(modules.patch_embeddings.projection, pixel_values)
    grids = patch_grids(pixel_mask, config.patch_size)
    counts = grids.prod(1)
    if 0 <= config.max_image_length < counts.max():
        raise ValueError("config.max_image_length would drop patches at random: set it to -1.")
    side = config.image_size // config.patch_size
    trained = modules.position_embeddings[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
    dtype = torch.promote_types(patches.dtype, trained.dtype)  # they differ under autocast
    embeds = patches.new_zeros(len(patches), int(counts.max()), patches.shape[-1], dtype=dtype)
    for rows, columns in grids.unique(dim=0).tolist():
        alike = ((grids[:, 0] == rows) & (grids[:, 1] == columns)).nonzero()[:, 0]
        shape, mode = (rows, columns), "bilinear"
        positions = nn.functional.interpolate(trained, shape, mode=mode, align_corners=True)
        placed = patches[alike, :rows, :columns] + positions.permute(0, 2, 3, 1)
        embeds[alike, : rows * columns] = placed.flatten(1, 2)
    cls = modules.cls_token + modules.position_embeddings[:, :1]
    image_cls = cls.expand(len(patches), -1, -1)
    image_mask = torch.arange(embeds.shape[1] + 1, device=counts.device) <= counts[:, None]
    return modules.dropout(torch.cat([image_cls, embeds], dim=1)), image_mask.long()


def project_patches(convolution: nn.Conv2d, pixel_values: Tensor) -> Tensor:
    """ViLT's embedding of patches as one product: (batch, row, column, hidden).

    The convolution itself takes 4.3 ms for 64 pictures in half precision on an H100, and in
    float32 TF32 unless it is switched off.
    """
    size = convolution.kernel_size[0]
    rows, columns = (edge // size for edge in pixel_values.shape[2:])
    cut = pixel_values[:, :, : rows * size, : columns * size].to(convolution.weight.dtype)
    pixels = cut.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
    weight = convolution.weight.flatten(1)
    return nn.functional.linear(pixels.flatten(3), weight, convolution.bias)


def embed_batch(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A batch's `image_embeds` and `pixel_mask` (batch, 1 + patches), on the model's device.

    As given, or embedded from `pixel_values`, which may hold a picture once for several questions;
    picture_of (batch,) then says which picture is whose. levels (3, 256): the values of each
    channel's bytes, where pixels are bytes.
    """
    some, names = next(model.parameters()), ("pixel_mask", "picture_of")
    given = {name: batch[name].to(some.device) for name in names if name in batch}
    if "image_embeds" in batch:
        if "pixel_mask" not in given:
            raise ValueError("a batch of image_embeds needs pixel_mask (batch, 1 + patches).")
        return batch["image_embeds"].to(some), given["pixel_mask"]
    pixels = batch["pixel_values"].to(some.device)
    if "levels" in batch:
        from helpers.data.encode import read_levels  # here, as it takes `datasets`

        pixels = read_levels(pixels, batch["levels"].to(some))
    embeds, mask = embed_images(model, pixels.to(some), given.get("pixel_mask"))
    picture_of = given.get("picture_of", slice(None))
    return embeds[picture_of], mask[picture_of]


def forward_raster(model: nn.Module, batch: dict[str, Tensor], **kwargs: Any) -> ModelOutput:
    """Run ViLT on a batch with its patches in raster order; `labels` in the batch give the loss.

    forward_raster(model, batch).logits     # (question, answer)

    batch: what the processor, `EncodedQuestions.collate` or `.batches` returns, or `image_embeds`
    in place of pixels (see `embed_batch`). kwargs: for the model, such as output_attentions.
    """
    names = ("input_ids", "attention_mask", "token_type_ids", "labels")
    device = next(model.parameters()).device
    inputs = {name: batch[name].to(device) for name in names if name in batch}
    embeds, mask = embed_batch(model, batch)
    return model(**inputs, image_embeds=embeds, pixel_mask=mask, **kwargs)


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[None]:
    """Let ViLT attend with PyTorch's fused kernel while the block runs: fast, nothing to look at.

    with fused_attention(model):
        forward_raster(model, batch).loss.backward()

    Equal to transformers' eager form up to rounding, dropout of attention included. Asking for the
    attention is a ValueError. No `trace`: it puts one kernel for several steps and edits none.
    """
    modules = [module for module in model.modules() if isinstance(module, ViltSelfAttention)]
    for module in modules:
        module.forward = partial(_attend_fused, module)
    try:
        with sdpa_kernel(KERNELS):
            yield
    finally:
        for module in modules:
            del module.forward


def _attend_fused(
    module: ViltSelfAttention, hidden: Tensor, mask: Tensor | None, output_attentions: bool
) -> tuple[Tensor]:
    """ViltSelfAttention.forward with scaled_dot_product_attention in place of its softmax."""
    if output_attentions:
        raise ValueError(FUSED)
    shape = (*hidden.shape[:-1], -1, module.attention_head_size)
    linears = (module.query, module.key, module.value)
    query, key, value = (linear(hidden).view(shape).transpose(1, 2) for linear in linears)
    mask = None if mask is None else mask.to(query.dtype)
    dropout = module.dropout.p if module.training else 0.0
    z = nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout)
    return (z.transpose(1, 2).flatten(2),)


@contextmanager
def trace(
    model: nn.Module,
    read: Collection[str] = (),
    edit: Mapping[str, Callable[[int, Tensor], Tensor]] | None = None,
    layers: Iterable[int] | None = None,
) -> Iterator[dict[str, list[Tensor | None]]]:
    """Read or edit the forward passes of a model while the block runs.

    with trace(model, read=["pattern"]) as seen:
        forward_raster(model, batch)
    seen["pattern"][3]     # what layer 3 attends to
    with trace(model, edit={"z": lambda layer, z: z / 2}):
        forward_raster(model, batch)    # every head says half as much

    Sites, in the order of a layer: "value", what each head reads (question, token, head, d_head);
    "pattern", the attention probabilities (question, head, query, key); "z", each head's output
    before the projection (question, token, head, d_head); "layer", the residual stream after the
    layer (question, token, hidden).
    read: sites to keep, after any edit: the block gets seen[site][layer], None where none passed.
    edit: for each site a function (layer, value) that returns the new value.
    layers: where to read and edit, by default everywhere.

    A `PackedForward` is traced alike at "value" and "z", where it has (valid token, head, d_head),
    and of the last layer's z each question's [CLS] alone. Its patterns and residual stream are what
    walking it gives. ValueError for an unknown site, and for a pattern where there is none to see.
    """
    edit, modules = edit or {}, getattr(model, "vilt", model).encoder.layer
    seen, sites = {site: [None] * len(modules) for site in read}, {*read, *edit}
    check_trace(model, sites)

    def visit(site: str, layer: int, value: Tensor) -> Tensor:
        if site in edit:
            value = edit[site](layer, value)
        if site in read:
            seen[site][layer] = value
        return value

    with ExitStack() as stack:
        for number in range(len(modules)) if layers is None else layers:
            for site in sites:
                handle = add_hook(modules[number], site, partial(visit, site, number))
                stack.callback(handle.remove)
        yield seen


def add_hook(layer: nn.Module, site: str, visit: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Hand a site's value, heads apart, to `visit` and what that returns back to the layer."""
    module, size = layer.get_submodule(SITES[site]), layer.attention.attention.attention_head_size

    def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor | None = None) -> Tensor:
        value = inputs[0] if output is None else output
        if site in ("pattern", "layer"):
            return visit(value)
        return visit(value.unflatten(-1, (-1, size))).flatten(-2)

    if site == "z":
        return module.register_forward_pre_hook(hook)
    return module.register_forward_hook(hook)


def check_trace(model: nn.Module, sites: set[str]) -> None:
    """ValueError for an unknown site, and for attention that cannot be seen."""
    if unknown := sites - set(SITES):
        raise ValueError(f"unknown site {min(unknown)!r}: known are {', '.join(SITES)}.")
    if "pattern" not in sites:
        return
    if model.training:
        raise ValueError(TRAINING)
    if (used := model.config._attn_implementation) != "eager":
        raise ValueError(f"with attention {used!r} ViLT does not mask padding: load it as 'eager'.")
    layers = getattr(model, "vilt", model).encoder.layer
    if any("forward" in vars(layer.attention.attention) for layer in layers):
        raise ValueError(FUSED)


@dataclass(frozen=True)
class Microbatch:
    """Questions whose attention is computed at once; at ViLT-B/32 size on a CPU a single one.

    questions: their places in the batch (q,). n_text: text tokens, after which the image's own CLS
    stands. groups: bool (q, 5, tokens), as `image_share.token_groups`, cut to the longest text and
    image here. rows: (q, tokens), each token's row among the packed ones, 0 at padding. valid: bool
    (q, tokens), or None without padding. inside: where valid is True, counted through it.
    """

    questions: Tensor
    n_text: int
    groups: Tensor
    rows: Tensor
    valid: Tensor | None
    inside: Tensor | None

    def gather(self, packed: Tensor) -> Tensor:
        """These questions' tokens: (valid tokens, head, d) -> (question, head, token, d)."""
        rows = packed.index_select(0, self.rows.flatten())
        return rows.view(*self.rows.shape, *packed.shape[1:]).transpose(1, 2)

    def scatter(self, packed: Tensor, values: Tensor) -> None:
        """Write (question, head, token, d) to these tokens' rows of (valid tokens, head, d).

        A single token of each question is its [CLS].
        """
        rows = self.rows[:, : values.shape[2]].flatten()
        values = values.transpose(1, 2).flatten(0, 1)
        if self.inside is not None and len(rows) == self.rows.numel():
            rows, values = (each.index_select(0, self.inside) for each in (rows, values))
        packed.index_copy_(0, rows, values)


def split_microbatches(groups: Tensor, n_text: int, size: int) -> list[Microbatch]:
    """Split a batch, groups (batch, 5, tokens) with n_text of text, into `size` questions each."""
    valid, questions = groups.any(1), torch.arange(len(groups), device=groups.device)
    rows = (valid.flatten().cumsum(0) - 1).view(valid.shape)
    text_lengths = valid[:, :n_text].sum(1).tolist()
    image_lengths = valid[:, n_text:].sum(1).tolist()
    microbatches = []
    for start in range(0, len(groups), size):
        part = slice(start, start + size)
        text, image = text_lengths[part], image_lengths[part]
        columns = [*range(max(text)), *range(n_text, n_text + max(image))]
        inside = valid[part][:, columns]
        padded = min(text) < max(text) or min(image) < max(image)
        own_groups, own_rows = groups[part][:, :, columns], rows[part][:, columns] * inside
        padding = (inside, inside.flatten().nonzero()[:, 0]) if padded else (None, None)
        microbatches.append(Microbatch(questions[part], max(text), own_groups, own_rows, *padding))
    return microbatches


class PackedForward:
    """One forward pass of ViLT in eval mode, walked layer by layer; the stock pass up to rounding.

    model: a ViLT of transformers, or its inner ViltModel. inputs: a batch with image_embeds (see
    `image_share.prepare_batch`). groups: its tokens' groups. Attention is held at once of as many
    questions as fit the cache of a CPU or 1 GB of a GPU.
    Each layer must be run to its end, as its microbatches make the z that the next one reads.
    hidden: the residual stream (valid tokens, hidden) that enters the layer in hand, questions end
    to end. logits (question, answer): after the last layer; None for a model without a classifier.
    blocked: for a layer, bool (group, group), from which groups of queries to which of keys no
    attention can go.
    """

    def __init__(self, model: nn.Module, inputs: dict, groups: Tensor) -> None:
        if model.training:
            raise ValueError(TRAINING)
        self.model, self.core = model, getattr(model, "vilt", model)
        for layer in self.core.encoder.layer:  # inside a trace of what is not computed in one piece
            if layer.output._forward_hooks or layer.attention.attention.dropout._forward_hooks:
                raise ValueError(PACKED)
        names = ("input_ids", "attention_mask", "token_type_ids")
        given = {name: inputs.get(name) for name in (*names, "image_embeds", "pixel_mask")}
        unused = {"pixel_values": None, "inputs_embeds": None}
        hidden, _ = self.core.embeddings(**given, **unused, image_token_type_idx=1)
        one = 4 * self.core.config.num_attention_heads * hidden.shape[1] ** 2
        held = CACHE if hidden.device.type == "cpu" else GPU_SHARE
        self.size, self.n_text = max(1, held // one), inputs["input_ids"].shape[1]
        self.lay_out(groups)
        self.hidden = hidden[self.valid]
        self.logits, self.blocked = None, {}

    def lay_out(self, groups: Tensor) -> None:
        """Say which tokens there are, and where each question's begin."""
        self.groups, self.valid = groups, groups.any(1)
        self.microbatches = split_microbatches(groups, self.n_text, self.size)
        self.starts = nn.functional.pad(self.valid.sum(1).cumsum(0), (1, 0)).int()
        self.cls_rows = self.starts[:-1]  # each [CLS]

    def drop(self, kept: Tensor) -> "PackedForward":
        """A copy that goes on with only some of the patches; kept: bool (batch, token), all text.

        Its residual stream, and the z of the layer in hand, are the caller's to cut.
        """
        few, groups = copy(self), self.groups.clone()
        counts = (kept & groups[:, 4]).sum(1, keepdim=True)
        places = torch.arange(groups.shape[2], device=kept.device) - self.n_text - 1
        groups[:, 4] = (places >= 0) & (places < counts)
        few.lay_out(groups)
        return few

    def __iter__(self) -> Iterator["PackedLayer"]:
        for index in range(len(self.core.encoder.layer)):
            layer = self.enter(index, self.hidden)
            yield layer
            self.hidden = self.leave(index, layer.z, self.hidden)
        self.logits = self.read_answer(self.hidden)

    def run(self) -> Tensor | None:
        """The whole pass at once, for its logits or for a `trace` around it."""
        for layer in self:
            layer.run()
        return self.logits

    def enter(self, index: int, hidden: Tensor, blocked: Tensor | None = None) -> "PackedLayer":
        """Layer `index` on a residual stream (valid tokens, hidden), to be run; see `blocked`."""
        blocked = self.blocked.get(index) if blocked is None else blocked
        return PackedLayer(self, self.core.encoder.layer[index], hidden, blocked)

    def attend(self, index: int, hidden: Tensor, blocked: Tensor | None = None) -> Tensor:
        """A layer's z without a look; of the last, 0 but at each [CLS], which alone is read."""
        layer = self.enter(index, hidden, blocked)
        return layer.run(index == len(self.core.encoder.layer) - 1)

    def leave(self, index: int, z: Tensor, hidden: Tensor) -> Tensor:
        """The residual stream after layer `index`, from its z and the stream before it.

        z: (valid tokens, head, d_head). Of the last layer the [CLS] rows alone: (question, hidden).
        """
        module, z = self.core.encoder.layer[index], z.flatten(1)
        if index == len(self.core.encoder.layer) - 1:
            z, hidden = z[self.cls_rows], hidden[self.cls_rows]
        attended = module.attention.output(z, hidden) + hidden
        parts, rows = [], ROWS if attended.device.type == "cpu" else len(attended)
        for part in attended.split(rows):
            inner = module.intermediate(module.layernorm_after(part))
            parts.append(module.output(inner, part))
        return torch.cat(parts)

    def read_answer(self, hidden: Tensor) -> Tensor | None:
        """Logits (question, answer) from the last layer's [CLS] rows; None without a classifier."""
        if not hasattr(self.model, "classifier"):
            return None
        return self.model.classifier(self.core.pooler(self.core.layernorm(hidden)[:, None]))


def run_variants(
    forward: PackedForward, variants: Sequence[Variant]
) -> Iterator[tuple[int, Tensor]]:
    """Variants of a packed pass that has not begun: yields (row of variants, logits).

    First come the logits of the pass itself, with row -1. Variants with the same edits up to some
    layer share the computation up to there; so each costs only what sets it apart.
    """
    n_layers = len(forward.core.encoder.layer)

    def walk(layer: int, hidden: Tensor, rows: list[int]) -> Iterator[tuple[int, Tensor]]:
        if layer == n_layers:
            logits = forward.read_answer(hidden)
            yield from ((row, logits) for row in rows)
            return
        z, alike = None, defaultdict(list)
        for row in rows:
            alike[variants[row].get(layer, keep) if row >= 0 else keep].append(row)
        for edit, own in alike.items():
            if edit is None:
                onward = hidden if layer < n_layers - 1 else hidden[forward.cls_rows]
            elif isinstance(edit, Tensor):
                cut = forward.attend(layer, hidden, edit)
                onward = forward.leave(layer, cut, hidden)
            else:
                z = forward.attend(layer, hidden) if z is None else z
                onward = forward.leave(layer, edit(z), hidden)
            yield from walk(layer + 1, onward, own)

    def keep(z: Tensor) -> Tensor:
        return z

    yield from walk(0, forward.hidden, [-1, *range(len(variants))])


def answer_variants(forward: PackedForward, variants: Sequence[Variant]) -> dict[str, Tensor]:
    """The answers of `run_variants`: variant_answer and variant_probability (question, variant).

    And, of the pass itself, logits (question, answer) and probability (question,). A probability is
    that of the pass's own answer, sigmoid of its logit.
    """
    runs = run_variants(forward, variants)
    _, intact = next(runs)
    answers = intact.argmax(1, keepdim=True)
    changed = answers.repeat(1, len(variants))
    probability = torch.zeros_like(changed, dtype=torch.float32)
    for row, logits in runs:
        changed[:, row] = logits.argmax(1)
        probability[:, row] = logits.float().gather(1, answers)[:, 0].sigmoid()
    own = intact.float().gather(1, answers)[:, 0].sigmoid()
    of_variants = {"variant_answer": changed, "variant_probability": probability}
    return {"logits": intact, "probability": own, **of_variants}


class PackedLayer:
    """One layer of a PackedForward: walk it for (microbatch, attention), or run it for z alone.

    attention: (question, head, query, key) in float32. values: (valid tokens, head, d_head), as
    attention weighs them. z: the same shape, each head's output before the layer's output
    projection, whose weight (hidden, head * d_head) is `projection`. starts: see `attend_packed`.
    """

    def __init__(
        self, forward: PackedForward, module: nn.Module, hidden: Tensor, blocked: Tensor | None
    ) -> None:
        attend, normed = module.attention.attention, module.layernorm_before(hidden)
        shape = (len(hidden), -1, attend.attention_head_size)
        self.query, self.key, self.values = (
            linear(normed).view(shape) for linear in (attend.query, attend.key, attend.value)
        )
        self.microbatches, self.starts, self.blocked = forward.microbatches, forward.starts, blocked
        self.projection = module.attention.output.dense.weight
        self.z = torch.empty_like(self.values)

    def __iter__(self) -> Iterator[tuple[Microbatch, Tensor]]:
        return self.walk()

    def walk(self, n_queries: int | None = None) -> Iterator[tuple[Microbatch, Tensor]]:
        """Attend from the first queries of each question alone, by default from all."""
        scale, packed = self.query.shape[-1] ** -0.5, (self.query, self.key, self.values)
        for microbatch in self.microbatches:
            query, key, values = map(microbatch.gather, packed)
            query = query[:, :, :n_queries]
            # half precision would blur the softmax
            scores = (query.float() * scale) @ key.float().mT
            if microbatch.valid is not None:
                scores.masked_fill_(~microbatch.valid[:, None, None], float("-inf"))
            if self.blocked is not None:
                of = microbatch.groups.int().argmax(1)  # the group of each token
                edges = self.blocked[of[:, :n_queries, None], of[:, None]]
                scores.masked_fill_(edges[:, None], float("-inf"))
            attention = scores.softmax(-1)
            microbatch.scatter(self.z, attention.to(values.dtype) @ values)
            yield microbatch, attention

    def attend(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Attend by one fused kernel, which holds no pattern, and sum more than values; sets z.

        columns: (valid tokens, head, c), what else each key carries. Returns what each query's
        attention sums of it, and the log-sum-exp of the query's scores: float32 (valid tokens,
        head, c) and (valid tokens, head, 1). Not for layers that are `blocked`.
        """
        width, spare = self.values.shape[-1], -columns.shape[-1] % 8  # kernels want multiples of 8
        columns = nn.functional.pad(columns.to(self.values.dtype), (0, spare))
        packed = self.query, self.key, torch.cat([self.values, columns], dim=-1)
        if has_packed_kernel(self.values.device, self.values.dtype):
            longest = max(part.rows.shape[1] for part in self.microbatches)
            sums, lse = attend_packed(*packed, self.starts, longest)
        else:
            sums = torch.empty_like(packed[2])
            lse = sums.new_empty(*sums.shape[:2], 1, dtype=torch.float32)
            for part in self.microbatches:
                padded = attend_padded(*map(part.gather, packed), part.valid)
                part.scatter(sums, padded[0])
                part.scatter(lse, padded[1])
        self.z = sums[..., :width]
        return sums[..., width : sums.shape[-1] - spare].float(), lse

    def run(self, from_cls: bool = False) -> Tensor:
        """Attend in all microbatches without a look: z; or from each [CLS] alone, 0 elsewhere."""
        if from_cls:
            self.z.zero_()
        for _ in self.walk(1 if from_cls else None):
            pass
        return self.z


def attend_padded(
    query: Tensor, key: Tensor, values: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """scaled_dot_product_attention, and the log-sum-exp of the scores, which takes another pass.

    query, key, values: (question, head, token, d or more); valid: bool (question, key), or None for
    all. Returns the sums, as wide as the values, and float32 (question, head, query, 1).
    """
    mask = None if valid is None else valid[:, None, None]
    with sdpa_kernel(KERNELS):
        sums = nn.functional.scaled_dot_product_attention(query, key, values, mask)
    scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().mT
    if valid is not None:
        scores.masked_fill_(~mask, float("-inf"))
    return sums, scores.logsumexp(-1, keepdim=True)


def attend_packed(
    query: Tensor, key: Tensor, values: Tensor, starts: Tensor, longest: int
) -> tuple[Tensor, Tensor]:
    """`attend_padded` of questions end to end, (token, head, d): nothing padded, one pass.

    starts: int32 (question + 1), where each begins and the last ends. longest: tokens of a question
    at most. By the memory-efficient kernel's private form, the one that takes lengths, values wider
    than queries and float32, from a T4 on, and returns the log-sum-exp (question, head, position).
    """
    run = torch.ops.aten._efficient_attention_forward
    given = (None, starts, starts, longest, longest, 0.0, 0, True)  # no bias, dropout or mask
    parts = [run(query[None], key[None], part[None], *given) for part in values.split(WIDEST, -1)]
    tokens = torch.arange(len(query), device=query.device)
    owner = torch.bucketize(tokens, starts[1:], right=True)
    lse = parts[0][1].mT[owner, tokens - starts[owner]]
    return torch.cat([part[0][0] for part in parts], dim=-1), lse[..., None]


@cache
def has_packed_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `attend_packed` runs here and is right: tried once, against `attend_padded`.

    Without it attention is padded, which a warning says.
    """
    if device.type == "cpu":
        return False
    tokens = torch.linspace(-20, 20, 7 * 2 * 56, device=device).sin().view(7, 2, 56)
    packed = tokens.to(dtype).split((16, 16, 24), dim=-1)
    starts = torch.tensor([0, 3, 7], device=device).int()
    bound = max(1e-4, 4 * torch.finfo(dtype).eps)
    try:
        found = torch.cat(attend_packed(*packed, starts, 7), dim=-1).float()
        for part in (slice(0, 3), slice(3, 7)):
            own = [each[part].transpose(0, 1)[None].float() for each in packed]
            right = torch.cat(attend_padded(*own, None), dim=-1)[0].transpose(0, 1)
            torch.testing.assert_close(found[part], right, rtol=0, atol=bound)
    except (AttributeError, TypeError, RuntimeError, AssertionError) as error:
        say = "%s, %s: no right kernel for packed questions (%s), so they are padded"
        logger.warning(say, device, dtype, type(error).__name__)
        return False
    return True
