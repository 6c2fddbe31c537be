"""Edits of a ViLT's weights whose effect is known: what every method should say of them is certain.

    model = permute_heads(model, [3, 2, 1, 0])    # the same answers, heads in another order
    model = silence(model, (1, 2))                # the head attends as before and writes nothing
    model = split_head(model, (1, 0), slot=2)     # the same answers, one head in two slots

Each returns a copy. A head is (layer, head).
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Head = tuple[int, int]
PARTS = ("query", "key", "value")


class LayerWeights:
    """One layer's attention weights, heads apart: views of a model's own parameters.

    weights: of query, key and value, (head, d_head, hidden); biases: (head, d_head); output:
    (hidden, head, d_head), what each head writes.
    """

    def __init__(self, model: nn.Module, layer: int) -> None:
        attention = model.vilt.encoder.layer[layer].attention
        shape = (attention.attention.num_attention_heads, -1)
        linears = {part: getattr(attention.attention, part) for part in PARTS}
        self.weights = {part: linear.weight.data.unflatten(0, shape) for part, linear in
                        linears.items()}  # fmt: skip
        self.biases = {part: linear.bias.data.unflatten(0, shape) for part, linear in
                       linears.items()}  # fmt: skip
        self.output = attention.output.dense.weight.data.unflatten(1, shape)

    def inputs(self) -> list[Tensor]:
        """What decides where heads look and what they read: head first."""
        return [*self.weights.values(), *self.biases.values()]


def edit_copy(model: nn.Module, layer: int, edit: Callable[[LayerWeights], None]) -> nn.Module:
    """A copy of a model in which `edit` has changed a layer's weights."""
    edited = copy.deepcopy(model)
    with torch.no_grad():
        edit(LayerWeights(edited, layer))
    return edited


def permute_heads(model: nn.Module, order: Sequence[int]) -> nn.Module:
    """The same function with every layer's heads in another order: head h becomes order[h]'s."""
    order = list(order)

    def edit(weights: LayerWeights) -> None:
        for each in weights.inputs():
            each.copy_(each[order].clone())
        weights.output.copy_(weights.output[:, order].clone())

    for layer in range(model.config.num_hidden_layers):
        model = edit_copy(model, layer, edit)
    return model


def silence(model: nn.Module, head: Head) -> nn.Module:
    """A decoy: the head attends and reads as before, and its part of the output projection is 0."""

    def edit(weights: LayerWeights) -> None:
        weights.output[:, head[1]] = 0

    return edit_copy(model, head[0], edit)


def look_evenly(model: nn.Module, head: Head) -> nn.Module:
    """The head attends to all tokens alike. Of a silent head this changes no answer."""

    def edit(weights: LayerWeights) -> None:
        weights.weights["query"][head[1]] = 0
        weights.biases["query"][head[1]] = 0

    return edit_copy(model, head[0], edit)


def split_head(model: nn.Module, head: Head, slot: int) -> nn.Module:
    """The head twice: `slot` gets its query, key and value, and each writes half of what it wrote.

    The same function where the slot was silent. slot: another head of the layer.
    """

    def edit(weights: LayerWeights) -> None:
        for each in weights.inputs():
            each[slot] = each[head[1]]
        weights.output[:, head[1]] /= 2
        weights.output[:, slot] = weights.output[:, head[1]]

    return edit_copy(model, head[0], edit)


def rescale_values(model: nn.Module, head: Head, factor: float) -> nn.Module:
    """The same function: the head's values times `factor`, its output projection divided by it."""

    def edit(weights: LayerWeights) -> None:
        weights.weights["value"][head[1]] *= factor
        weights.biases["value"][head[1]] *= factor
        weights.output[:, head[1]] /= factor

    return edit_copy(model, head[0], edit)
