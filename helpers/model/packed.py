"""ViLT's encoder over packed tokens: no padding is computed, and attention is held a few questions at a time.

    walk = PackedForward(model, inputs, groups)
    for layer in walk:
        for tile, attention in layer:   # (question, head, query, key), softmax in float32
            ...
    walk.logits

A batch's questions differ in words and patches, so a padded forward computes many tokens for nothing; here the
linear layers run on the valid tokens only, one row each. Of the last layer only the text [CLS] goes on, because
the pooler reads nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CACHE = 4_000_000  # bytes of attention held at once on a CPU: what its cache takes
GPU_SHARE = 1_000_000_000  # and on a GPU
ROWS = 1024  # tokens that a feed-forward layer sees at once: 12 MB for its wide middle, which are quickly had


@dataclass(frozen=True)
class Tile:
    """Questions whose attention is computed at once: at ViLT-B/32 size on a CPU one, so that nothing is padded.

    questions: their places in the batch (t,). n_text: text tokens, after which the image's own CLS stands.
    groups: bool (t, 5, tokens), as `attention.token_groups`, cut to the tile's longest text and image. rows: (t,
    tokens), each token's row among the packed ones, 0 at padding; valid: bool (t, tokens), or None without padding.
    """

    questions: Tensor
    n_text: int
    groups: Tensor
    rows: Tensor
    valid: Tensor | None

    def take(self, packed: Tensor) -> Tensor:
        """The tile's part of (valid tokens, head, d): (question, head, token, d)."""
        rows = packed.index_select(0, self.rows.flatten())
        return rows.view(*self.rows.shape, *packed.shape[1:]).transpose(1, 2)

    def put(self, packed: Tensor, part: Tensor) -> None:
        """Write (question, head, token, d) back to its rows of (valid tokens, head, d)."""
        rows, part = self.rows.flatten(), part.transpose(1, 2).flatten(0, 1)
        if self.valid is not None:
            rows, part = rows[self.valid.flatten()], part[self.valid.flatten()]
        packed.index_copy_(0, rows, part)


def cut_tiles(groups: Tensor, n_text: int, size: int) -> list[Tile]:
    """Cut a batch into tiles of `size` questions: groups (batch, 5, tokens), of which n_text hold text."""
    valid = groups.any(1)
    rows = (valid.flatten().cumsum(0) - 1).view(valid.shape)
    n_words = valid[:, :n_text].sum(1).tolist()
    n_image = valid[:, n_text:].sum(1).tolist()
    tiles = []
    for start in range(0, len(groups), size):
        part = slice(start, start + size)
        longest, largest = max(n_words[part]), max(n_image[part])
        kept = [*range(longest), *range(n_text, n_text + largest)]
        inside = valid[part][:, kept]
        padded = min(n_words[part]) < longest or min(n_image[part]) < largest
        place = torch.arange(start, min(start + size, len(groups)), device=groups.device)
        own = (rows[part][:, kept] * inside, inside if padded else None)
        tiles.append(Tile(place, longest, groups[part][:, :, kept], *own))
    return tiles


class PackedForward:
    """One forward pass of ViLT in eval mode, to be walked layer by layer; equal to the stock pass up to rounding.

    model: a ViLT of transformers, or its inner ViltModel. inputs: a batch with image_embeds (see
    `attention.prepare_batch`). groups: its tokens' groups. tile_size: questions a tile, by default as many as the
    cache of a CPU holds (few large kernels would wait for memory) or 1 GB of a GPU (many small ones would wait for
    their launch).
    Each layer must be walked to its end: its tiles make the context that the next layer reads. `logits`
    (question, answer) stand after the last layer; None for a model without a classifier.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        groups: Tensor,
        tile_size: int | None = None,
    ):
        if model.training:
            raise ValueError(
                "in train mode attention is seen after dropout: call model.eval() first."
            )
        self.model, self.core = model, getattr(model, "vilt", model)
        names = ("input_ids", "attention_mask", "token_type_ids")
        text = {name: inputs.get(name) for name in names}
        images = {"image_embeds": inputs["image_embeds"], "pixel_mask": inputs["pixel_mask"]}
        hidden, _ = self.core.embeddings(
            **text, **images, pixel_values=None, inputs_embeds=None, image_token_type_idx=1
        )
        self.hidden = hidden[groups.any(1)]  # (valid tokens, hidden)
        one = 4 * self.core.config.num_attention_heads * hidden.shape[1] ** 2
        size = tile_size or max(1, (CACHE if hidden.device.type == "cpu" else GPU_SHARE) // one)
        self.tiles = cut_tiles(groups, inputs["input_ids"].shape[1], size)
        self.first = torch.cat([tile.rows[:, 0] for tile in self.tiles])  # each question's [CLS]
        self.logits = None

    def __iter__(self) -> Iterator["PackedLayer"]:
        for index in range(len(self.core.encoder.layer)):
            layer = self.enter_layer(index, self.hidden)
            yield layer
            self.hidden = self.leave_layer(index, layer.context, self.hidden)
        self.logits = self.read_answer(self.hidden)

    def finish(self, index: int, context: Tensor | None) -> Tensor | None:
        """The logits if layer `index`, where the walk stands, made this context (valid tokens, head, d_head) instead.

        None: if the layer were left out. What comes before need not be computed again; the walk goes on untouched.
        """
        n_layers = len(self.core.encoder.layer)
        if context is not None:
            hidden = self.leave_layer(index, context, self.hidden)
        else:
            hidden = self.hidden[self.first] if index == n_layers - 1 else self.hidden
        for later in range(index + 1, n_layers):
            layer = self.enter_layer(later, hidden)
            for _ in layer:
                pass  # its context is all that is wanted
            hidden = self.leave_layer(later, layer.context, hidden)
        return self.read_answer(hidden)

    def enter_layer(self, index: int, hidden: Tensor) -> "PackedLayer":
        """Layer `index` on hidden states (valid tokens, hidden), to be walked."""
        return PackedLayer(self.core.encoder.layer[index], hidden, self.tiles)

    def leave_layer(self, index: int, context: Tensor, hidden: Tensor) -> Tensor:
        """From the context (valid tokens, head, d_head) of layer `index` and what it was entered with to its output.

        Of the last layer only each question's [CLS] row: (question, hidden).
        """
        module, context = self.core.encoder.layer[index], context.flatten(1)
        if index == len(self.core.encoder.layer) - 1:
            context, hidden = context[self.first], hidden[self.first]
        attended = module.attention.output(context, hidden) + hidden
        parts = (
            module.output(module.intermediate(module.layernorm_after(part)), part)
            for part in attended.split(ROWS)
        )
        return torch.cat(list(parts))

    def read_answer(self, hidden: Tensor) -> Tensor | None:
        """Logits (question, answer) from the [CLS] rows that the last layer left; None without a classifier."""
        if not hasattr(self.model, "classifier"):
            return None
        return self.model.classifier(self.core.pooler(self.core.layernorm(hidden)[:, None]))


class PackedLayer:
    """One layer of a PackedForward: walk it for (tile, attention (question, head, query, key) in float32).

    values: (valid tokens, head, d_head), as attention weighs them. projection: the weight
    (hidden, head * d_head) of the layer's output projection.
    """

    def __init__(self, module: nn.Module, hidden: Tensor, tiles: list[Tile]):
        attend, normed = module.attention.attention, module.layernorm_before(hidden)
        shape = (len(hidden), -1, attend.attention_head_size)
        self.query, self.key, self.values = (
            part(normed).view(shape) for part in (attend.query, attend.key, attend.value)
        )
        self.tiles, self.projection = tiles, module.attention.output.dense.weight
        self.context = torch.empty_like(self.values)

    def __iter__(self) -> Iterator[tuple[Tile, Tensor]]:
        scale = self.query.shape[-1] ** -0.5
        for tile in self.tiles:
            query, key, values = (tile.take(part) for part in (self.query, self.key, self.values))
            scores = (
                query.float() * scale
            ) @ key.float().mT  # half precision would blur the softmax
            if tile.valid is not None:
                scores.masked_fill_(~tile.valid[:, None, None], float("-inf"))
            attention = scores.softmax(-1)
            tile.put(self.context, attention.to(values.dtype) @ values)
            yield tile, attention
