"""ViLT's encoder over packed tokens: no padding is computed, and attention is held in parts.

    forward = PackedForward(model, inputs, groups)
    for layer in forward:
        for microbatch, attention in layer:   # (question, head, query, key), softmax in float32
            ...
    forward.logits

A batch's questions differ in words and patches, so a padded forward pass computes many tokens for
nothing. Here the linear layers run on the valid tokens only, one row each. Of the last layer only
the text [CLS] goes on, because the pooler reads nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helpers.model.trace import check_packed

CACHE = 4_000_000  # bytes of attention held at once on a CPU: what its cache takes
GPU_SHARE = 1_000_000_000  # and on a GPU
ROWS = 1024  # tokens a call of a feed-forward layer: keeps its activations at about 12 MB


@dataclass(frozen=True)
class Microbatch:
    """Questions whose attention is computed at once; at ViLT-B/32 size on a CPU a single one.

    questions: their places in the batch (q,). n_text: text tokens, after which the image's own CLS
    stands. groups: bool (q, 5, tokens), as `attention.token_groups`, cut to the longest text and
    image here. rows: (q, tokens), each token's row among the packed ones, 0 at padding. valid: bool
    (q, tokens), or None without padding.
    """

    questions: Tensor
    n_text: int
    groups: Tensor
    rows: Tensor
    valid: Tensor | None

    def gather(self, packed: Tensor) -> Tensor:
        """These questions' tokens: (valid tokens, head, d) -> (question, head, token, d)."""
        rows = packed.index_select(0, self.rows.flatten())
        return rows.view(*self.rows.shape, *packed.shape[1:]).transpose(1, 2)

    def scatter(self, packed: Tensor, values: Tensor) -> None:
        """Write (question, head, token, d) to these tokens' rows of (valid tokens, head, d)."""
        rows, values = self.rows.flatten(), values.transpose(1, 2).flatten(0, 1)
        if self.valid is not None:
            rows, values = rows[self.valid.flatten()], values[self.valid.flatten()]
        packed.index_copy_(0, rows, values)


def split_microbatches(groups: Tensor, n_text: int, size: int) -> list[Microbatch]:
    """Split a batch, groups (batch, 5, tokens) with n_text of text, into `size` questions each."""
    valid = groups.any(1)
    rows = (valid.flatten().cumsum(0) - 1).view(valid.shape)
    text_lengths = valid[:, :n_text].sum(1).tolist()
    image_lengths = valid[:, n_text:].sum(1).tolist()
    microbatches = []
    for start in range(0, len(groups), size):
        part = slice(start, start + size)
        shortest, longest = min(text_lengths[part]), max(text_lengths[part])
        smallest, largest = min(image_lengths[part]), max(image_lengths[part])
        columns = [*range(longest), *range(n_text, n_text + largest)]
        inside = valid[part][:, columns]
        padded = shortest < longest or smallest < largest
        microbatches.append(
            Microbatch(
                questions=torch.arange(len(groups), device=groups.device)[part],
                n_text=longest,
                groups=groups[part][:, :, columns],
                rows=rows[part][:, columns] * inside,
                valid=inside if padded else None,
            )
        )
    return microbatches


class PackedForward:
    """One forward pass of ViLT in eval mode, walked layer by layer; the stock pass up to rounding.

    model: a ViLT of transformers, or its inner ViltModel. inputs: a batch with image_embeds (see
    `attention.prepare_batch`). groups: its tokens' groups. microbatch_size: questions whose
    attention is held at once, by default as many as fit the cache of a CPU (a few large kernels
    would wait for memory) or 1 GB of a GPU (many small ones would wait for their launch).
    Each layer must be run to its end, as its microbatches make the z that the next one reads.
    hidden: the residual stream (valid tokens, hidden) that enters the layer in hand. logits
    (question, answer): after the last layer; None for a model without a classifier.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        groups: Tensor,
        microbatch_size: int | None = None,
    ) -> None:
        if model.training:
            raise ValueError(
                "in train mode attention is seen after dropout: call model.eval() first."
            )
        check_packed(model)
        self.model, self.core = model, getattr(model, "vilt", model)
        names = ("input_ids", "attention_mask", "token_type_ids")
        text = {name: inputs.get(name) for name in names}
        images = {name: inputs[name] for name in ("image_embeds", "pixel_mask")}
        hidden, _ = self.core.embeddings(
            **text, **images, pixel_values=None, inputs_embeds=None, image_token_type_idx=1
        )
        self.hidden = hidden[groups.any(1)]
        one = 4 * self.core.config.num_attention_heads * hidden.shape[1] ** 2
        held = CACHE if hidden.device.type == "cpu" else GPU_SHARE
        size = microbatch_size or max(1, held // one)
        self.microbatches = split_microbatches(groups, inputs["input_ids"].shape[1], size)
        # the row of each question's [CLS]
        self.cls_rows = torch.cat([microbatch.rows[:, 0] for microbatch in self.microbatches])
        self.logits = None

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

    def resume(self, index: int, z: Tensor | None = None) -> Tensor | None:
        """The logits of a pass that goes on at layer `index` with the residual stream of now.

        z: of that layer, where it has been computed. For variants that share what came before: edit
        the rest by a `trace` around this. The walk itself stays where it is.
        """
        n_layers = len(self.core.encoder.layer)
        hidden = self.hidden if index < n_layers else self.hidden[self.cls_rows]
        for number in range(index, n_layers):
            z = self.enter(number, hidden).run() if z is None else z
            hidden, z = self.leave(number, z, hidden), None
        return self.read_answer(hidden)

    def enter(self, index: int, hidden: Tensor) -> "PackedLayer":
        """Layer `index` on a residual stream (valid tokens, hidden), to be run."""
        return PackedLayer(self.core.encoder.layer[index], hidden, self.microbatches)

    def leave(self, index: int, z: Tensor, hidden: Tensor) -> Tensor:
        """The residual stream after layer `index`, from its z and the stream before it.

        z: (valid tokens, head, d_head). Of the last layer the [CLS] rows alone: (question, hidden).
        """
        module, z = self.core.encoder.layer[index], z.flatten(1)
        if index == len(self.core.encoder.layer) - 1:
            z, hidden = z[self.cls_rows], hidden[self.cls_rows]
        attended = module.attention.output(z, hidden) + hidden
        parts = (
            module.output(module.intermediate(module.layernorm_after(part)), part)
            for part in attended.split(ROWS)
        )
        return torch.cat(list(parts))

    def read_answer(self, hidden: Tensor) -> Tensor | None:
        """Logits (question, answer) from the last layer's [CLS] rows; None without a classifier."""
        if not hasattr(self.model, "classifier"):
            return None
        return self.model.classifier(self.core.pooler(self.core.layernorm(hidden)[:, None]))


class PackedLayer:
    """One layer of a PackedForward: walk it for (microbatch, attention), or `run` it for z.

    attention: (question, head, query, key) in float32. values: (valid tokens, head, d_head), as
    attention weighs them. z: the same shape, each head's output before the layer's output
    projection, whose weight (hidden, head * d_head) is `projection`.
    """

    def __init__(self, module: nn.Module, hidden: Tensor, microbatches: list[Microbatch]) -> None:
        attend, normed = module.attention.attention, module.layernorm_before(hidden)
        shape = (len(hidden), -1, attend.attention_head_size)
        self.query, self.key, self.values = (
            linear(normed).view(shape) for linear in (attend.query, attend.key, attend.value)
        )
        self.microbatches, self.projection = microbatches, module.attention.output.dense.weight
        self.z = torch.empty_like(self.values)

    def __iter__(self) -> Iterator[tuple[Microbatch, Tensor]]:
        scale, packed = self.query.shape[-1] ** -0.5, (self.query, self.key, self.values)
        for microbatch in self.microbatches:
            query, key, values = map(microbatch.gather, packed)
            # half precision would blur the softmax
            scores = (query.float() * scale) @ key.float().mT
            if microbatch.valid is not None:
                scores.masked_fill_(~microbatch.valid[:, None, None], float("-inf"))
            attention = scores.softmax(-1)
            microbatch.scatter(self.z, attention.to(values.dtype) @ values)
            yield microbatch, attention

    def run(self) -> Tensor:
        """Attend in all microbatches without a look: z."""
        for _ in self:
            pass
        return self.z
