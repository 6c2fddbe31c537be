"""A physically smaller ViLT: heads cut out of the projections, whole layers left out.

    lighter = prune_model(model, heads=[(0, 3), (2, 1)], layers=[3])
    lighter.save_pretrained(folder)         # its shape stands in config.json
    lighter, processor = load_vilt(folder)  # in any later process

Before any further training the answers are those of `heads.ablate_heads` in mode "zero".
`attention_split` wants as many heads in every layer, and `extract_attention` a model of which only
whole layers were left out.
"""

import copy
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import ViltConfig, ViltForQuestionAnswering

PARTS = ("query", "key", "value")


class LighterViltForQuestionAnswering(ViltForQuestionAnswering):
    """ViLT whose layers may have fewer heads than config.num_attention_heads.

    config.kept_heads: for each layer the numbers of its heads in the model that was first pruned.
    config.kept_layers: the numbers of its layers there. `load_vilt` takes this class for a
    checkpoint whose configuration has kept_heads.
    """

    def __init__(self, config: ViltConfig) -> None:
        super().__init__(config)
        for layer, kept in zip(self.vilt.encoder.layer, config.kept_heads, strict=True):
            resize_attention(layer.attention, len(kept), config)


def resize_attention(attention: nn.Module, n_heads: int, config: ViltConfig) -> None:
    """Give a layer's attention new projections for n_heads heads."""
    inner, width = attention.attention, n_heads * attention.attention.attention_head_size
    inner.num_attention_heads, inner.all_head_size = n_heads, width
    for part in PARTS:
        setattr(inner, part, nn.Linear(config.hidden_size, width, bias=config.qkv_bias))
    attention.output.dense = nn.Linear(width, config.hidden_size)


def prune_model(
    model: ViltForQuestionAnswering,
    heads: Sequence[tuple[int, int]] = (),
    layers: Sequence[int] = (),
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
    heads = [tuple(head) for head in heads]
    for layer, *rest in (*heads, *((layer,) for layer in layers)):
        head = rest[0] if rest else 0
        if not (0 <= layer < len(counts) and 0 <= head < counts[layer]):
            what = f"L{layer}H{head}" if rest else f"L{layer}"
            has = f"this model has {counts} heads in its layers"
            raise ValueError(f"{what} cannot be removed: {has}.")
    names = [f"L{layer}H{head}" for layer, head in heads] + [f"L{layer}" for layer in layers]
    twice = [name for name, times in Counter(names).items() if times > 1]
    twice += [f"L{layer}H{head}" for layer, head in heads if layer in set(layers)]
    if twice:
        raise ValueError(f"{twice[0]} is removed twice (a layer has its heads): name it once.")
    gone = set(heads)
    kept = {
        layer: [head for head in range(count) if (layer, head) not in gone]
        for layer, count in enumerate(counts)
        if layer not in set(layers)
    }
    if not kept:
        raise ValueError(f"all {len(counts)} layers are removed: keep one at least.")
    empty = [layer for layer, own in kept.items() if not own]
    if empty:
        what = f"nothing is left of L{empty[0]}'s heads"
        raise ValueError(f"{what}: keep one, or remove the whole layer.")
    return kept


def slice_weights(model: nn.Module, kept: dict[int, list[int]]) -> dict[str, Tensor]:
    """The weights of these heads of these layers, under their names in the pruned model."""
    prefix, weights = "vilt.encoder.layer.", {}
    size = model.vilt.encoder.layer[0].attention.attention.attention_head_size
    places = {old: new for new, old in enumerate(kept)}
    for name, weight in model.state_dict().items():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            if int(number) not in kept:
                continue
            rows = [head * size + row for head in kept[int(number)] for row in range(size)]
            if rest.startswith(tuple(f"attention.attention.{part}." for part in PARTS)):
                weight = weight[rows]
            elif rest == "attention.output.dense.weight":
                weight = weight[:, rows]
            name = f"{prefix}{places[int(number)]}.{rest}"
        weights[name] = weight
    return weights


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())
