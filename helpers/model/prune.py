"""A physically smaller ViLT: heads cut out of the projections, whole layers left out.

    lighter = prune_model(model, heads=[(0, 3), (2, 1)], layers=[3])
    lighter.save_pretrained(folder)         # its shape stands in config.json
    lighter, processor = load_vilt(folder)  # in any later process

Before any further training the answers are those of `heads.ablate_heads` in mode "zero".
`attention_split` wants as many heads in every layer, and `extract_attention` a model of which only
whole layers were left out.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import ViltConfig, ViltForQuestionAnswering

PARTS = ("query", "key", "value")


class LighterViltForQuestionAnswering(ViltForQuestionAnswering):
    """ViLT whose layers may have fewer heads than config.num_attention_heads.

    config.kept_heads, config.kept_layers: each layer's heads, and the layers, by their numbers in
    the model that was first pruned. `load_vilt` takes this class where a config has kept_heads.
    """

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        for layer, kept in zip(self.vilt.encoder.layer, config.kept_heads, strict=True):
            inner = layer.attention.attention
            width = len(kept) * inner.attention_head_size
            inner.num_attention_heads, inner.all_head_size = len(kept), width
            for part in PARTS:
                setattr(inner, part, nn.Linear(config.hidden_size, width, bias=config.qkv_bias))
            layer.attention.output.dense = nn.Linear(width, config.hidden_size)


def prune_model(
    model: nn.Module, heads: Sequence[tuple[int, int]] = (), layers: Sequence[int] = ()
) -> LighterViltForQuestionAnswering:
    """A copy of a model without these heads (layer, head) and without these whole layers.

    Numbers count in `model` as it is, even if it has been pruned before (`name_original` gives the
    first names). ValueError if something is removed twice or does not exist, or if nothing would be
    left of a layer or of the model.
    """
    kept = choose_kept(model, heads, layers)
    names = name_original(model)
    config = copy.deepcopy(model.config)
    config.kept_heads = [[names[layer][1][head] for head in own] for layer, own in kept.items()]
    config.kept_layers = [names[layer][0] for layer in kept]
    config.num_hidden_layers = len(kept)
    with torch.random.fork_rng(devices=[]):  # weights are drawn only to be replaced
        lighter = LighterViltForQuestionAnswering(config)
    lighter.load_state_dict(slice_weights(model, kept))
    if hasattr(model, "tokenizer"):
        lighter.tokenizer = model.tokenizer
    return lighter.to(model.device, model.dtype).train(model.training)


def name_original(model: nn.Module) -> list[tuple[int, list[int]]]:
    """Each layer's number and those of its heads, as they were before any pruning."""
    layers = model.vilt.encoder.layer
    whole = [[*range(layer.attention.attention.num_attention_heads)] for layer in layers]
    numbers = getattr(model.config, "kept_layers", None) or [*range(len(layers))]
    return list(zip(numbers, getattr(model.config, "kept_heads", None) or whole, strict=True))


def choose_kept(
    model: nn.Module, heads: Sequence[tuple[int, int]], layers: Sequence[int]
) -> dict[int, list[int]]:
    """The heads that stay, by layer, for `prune_model`; its errors are raised here."""
    counts = [len(own) for _, own in name_original(model)]
    kept = {layer: [*range(count)] for layer, count in enumerate(counts)}
    for layer, head in (*((layer, None) for layer in layers), *heads):
        name = f"L{layer}" if head is None else f"L{layer}H{head}"
        if layer not in range(len(counts)) or (head or 0) not in range(counts[layer]):
            has = f"this model has {counts} heads in its layers"
            raise ValueError(f"{name} cannot be removed: {has}.")
        if layer not in kept or head not in (None, *kept[layer]):
            raise ValueError(f"{name} is removed twice (a layer has its heads): name it once.")
        if head is None:
            del kept[layer]
        else:
            kept[layer].remove(head)
    if not kept:
        raise ValueError(f"all {len(counts)} layers are removed: keep one at least.")
    if empty := [f"L{layer}" for layer, own in kept.items() if not own]:
        raise ValueError(f"nothing is left of {empty[0]}'s heads: keep one, or remove the layer.")
    return kept


def slice_weights(model: nn.Module, kept: dict[int, list[int]]) -> dict[str, Tensor]:
    """The weights of these heads of these layers, under their names in the pruned model."""
    prefix, weights = "vilt.encoder.layer.", model.state_dict()
    weights = {name: weight for name, weight in weights.items() if not name.startswith(prefix)}
    for new, (old, heads) in enumerate(kept.items()):
        layer = model.vilt.encoder.layer[old]
        size = layer.attention.attention.attention_head_size
        rows = [head * size + row for head in heads for row in range(size)]
        for name, weight in layer.state_dict().items():
            if name.startswith(tuple(f"attention.attention.{part}." for part in PARTS)):
                weight = weight[rows]
            elif name == "attention.output.dense.weight":
                weight = weight[:, rows]
            weights[f"{prefix}{new}.{name}"] = weight
    return weights
