"""What the answer needs: attention edges cut, from one group of tokens to another, layer by layer.

    logits = knockout(model, batch, [("cls", "image")], layers=[2, 3])  # one cut, one batch
    table = extract_once(study, "knockout", model, encoded, knockout_measures, count=300)
    lost = table.points_lost("cut_answer", encoded, labels)      # (question, direction, span)

Where queries cannot attend to keys, their scores are minus infinity before the softmax, in all
heads: attention knockout (Geva et al. 2023, "Dissecting recall of factual associations in
auto-regressive language models"; Zhang et al. 2025, "Cross-modal information flow in multimodal
large language models"). At ViLT-B/32 size all cuts take about 100 s a question on one CPU core.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.attention.image_share import Batch, mark_objects, prepare_batch
from helpers.model.forward import PackedForward, answer_variants
from helpers.stats.models import mean_over_models

GROUPS = {  # among KEY_GROUPS; the patches of the object asked about come last, where known
    "cls": (0,), "words": (1,), "patches": (4, 5), "text": (0, 1, 2), "image": (3, 4, 5),
    "object": (5,), "other patches": (4,),
}  # fmt: skip
DIRECTIONS = {  # query groups that cannot attend to key groups
    "text <- image": [("text", "image")],
    "image <- text": [("image", "text")],
    "[CLS] <- image": [("cls", "image")],
    "words <- image": [("words", "image")],
    "[CLS] <- words": [("cls", "words")],
    "patches <- words": [("patches", "words")],
    "[CLS], patches <- words": [("cls", "words"), ("patches", "words")],
}
OBJECT_DIRECTIONS = {  # for `grounding.MarkedQuestions`
    "[CLS] <- object": [("cls", "object")],
    "[CLS] <- other patches": [("cls", "other patches")],
}
Edges = Sequence[tuple[str, str]]


@torch.no_grad()
def knockout(model: nn.Module, batch: Batch, edges: Edges, layers: Iterable[int]) -> Tensor:
    """Logits (question, answer) of a forward pass in which some attention edges are cut.

    In each of `layers` queries of one group cannot attend to keys of another: edges are pairs
    (query group, key group) of GROUPS. batch: as in `attention_split`; with `objects` (see
    `grounding.MarkedQuestions`) the patches of the object asked about are a group of their own.
    ValueError for an unknown group or layer, and where a query could attend to nothing.
    """
    forward, n_layers = start_forward(model, batch), model.config.num_hidden_layers
    forward.blocked = dict.fromkeys(layers, number_edges(edges).to(forward.hidden.device))
    if outside := forward.blocked.keys() - range(n_layers):
        raise ValueError(f"layer {min(outside)} is not in this model: it has {n_layers} layers")
    return forward.run()


def start_forward(model: nn.Module, batch: Batch) -> PackedForward:
    """A packed pass whose tokens are in six groups: KEY_GROUPS, and the object asked about."""
    inputs, groups, _ = prepare_batch(model, batch, with_grids=False)
    groups = torch.cat([groups, mark_objects(batch, groups)[:, :1]], dim=1)
    groups[:, 4] &= ~groups[:, 5]
    return PackedForward(model, inputs, groups)


def number_edges(edges: Edges) -> Tensor:
    """Edges between GROUPS as bool (query, key), 6 x 6; ValueError as in `knockout`."""
    if unknown := {name for edge in edges for name in edge} - set(GROUPS):
        raise ValueError(f"unknown group {min(unknown)!r}: known are {', '.join(GROUPS)}")
    blocked = torch.zeros(6, 6, dtype=torch.bool)
    for queries, keys in edges:
        blocked[np.ix_(GROUPS[queries], GROUPS[keys])] = True
    if blocked.all(1).any():
        raise ValueError(f"edges {list(edges)} leave queries nothing to attend to")
    return blocked


def list_spans(n_layers: int) -> list[tuple[int, int]]:
    """Spans of layers (first, last) to cut: each layer, each third, all from a layer, all up to it.

    A third is each window of a third of the layers, rounded: one layer of four, four of twelve.
    """
    third, last = max(1, round(n_layers / 3)), n_layers - 1
    windows = [(first, first + size - 1) for size in (1, third) for first in range(n_layers)]
    cumulative = [span for layer in range(n_layers) for span in ((0, layer), (layer, last))]
    return sorted({span for span in windows + cumulative if span[1] <= last})


@torch.no_grad()
def knockout_measures(
    model: nn.Module, batch: Batch, directions: Mapping[str, Edges] = DIRECTIONS
) -> dict[str, Tensor]:
    """The answers to a batch with each direction cut in each of `list_spans`.

    directions: such as OBJECT_DIRECTIONS, for batches of `grounding.MarkedQuestions`.
    cut_answer (question, direction, span): number of the answer. cut_probability, and probability
    of the intact model: sigmoid of the logit of the intact model's answer. logits: intact.
    """
    forward, spans = start_forward(model, batch), list_spans(model.config.num_hidden_layers)
    edges = [number_edges(each).to(forward.hidden.device) for each in directions.values()]
    cuts = [
        dict.fromkeys(range(first, last + 1), blocked) for blocked in edges for first, last in spans
    ]
    found, shape = answer_variants(forward, cuts), (len(edges), len(spans))
    for name in ("answer", "probability"):
        found[f"cut_{name}"] = found.pop(f"variant_{name}").unflatten(1, shape)
    return found


def edge_shares(flow: np.ndarray, questions: pd.DataFrame) -> np.ndarray:
    """Attention that runs along each direction's edges: (question, direction, layer), in [0, 1].

    The mean over all tokens that query in a direction of their mass on its keys. flow: of
    `attention_measures`, (question, layer, 5, 5); questions: with columns n_words, n_patches.
    """
    sizes, flow, shares = count_tokens(questions), np.nan_to_num(flow), []
    for edges in DIRECTIONS.values():
        cut = number_edges(edges).numpy()[:5, :5]  # no object is known apart
        mass = np.einsum("nq,nlqk,qk->nl", sizes, flow, cut)
        shares.append(mass / (sizes @ cut.any(1))[:, None])
    return np.stack(shares, axis=1)


def uniform_shares(questions: pd.DataFrame) -> np.ndarray:
    """`edge_shares` of queries that attend to all tokens alike: (question, direction)."""
    sizes = count_tokens(questions)
    even = sizes / sizes.sum(1, keepdims=True)
    return edge_shares(np.tile(even[:, None, None], (1, 1, 5, 1)), questions)[..., 0]


def count_tokens(questions: pd.DataFrame) -> np.ndarray:
    """How many tokens each of KEY_GROUPS has: (question, 5)."""
    columns = ["one", "n_words", "one", "one", "n_patches"]
    return questions.assign(one=1)[columns].to_numpy(float)


def tabulate_losses(
    lost: np.ndarray, questions: pd.DataFrame, n_layers: int, types: Sequence[str]
) -> pd.DataFrame:
    """Mean losses over models and questions with 95 % intervals, as `plot_knockout` draws them.

    lost: (model, question, direction, span); questions: with image_id and family. types: question
    types to list. Columns: panel ("one": cut in this layer alone; "onward": from it on; "type": in
    all layers), direction, column (layer or type), estimate, low, high, n, n_images, n_models.
    """
    spans, last = list_spans(n_layers), n_layers - 1
    everyone, family = np.ones(len(questions), dtype=bool), questions["family"].to_numpy()
    columns = [("one", f"L{layer}", (layer, layer), everyone) for layer in range(n_layers)]
    columns += [("onward", f"L{layer}", (layer, last), everyone) for layer in range(n_layers)]
    columns += [("type", name, (0, last), family == name) for name in types]
    image_ids, parts = questions["image_id"].to_numpy(), []
    for panel, column, span, asked in columns:
        mean = mean_over_models(lost[:, asked][..., spans.index(span)], image_ids[asked])
        table = mean.to_table({"direction": list(DIRECTIONS)})
        parts.append(table.assign(panel=panel, column=column, n_models=mean.n_models))
    names = ["panel", "direction", "column", "estimate", "low", "high", "n", "n_images"]
    return pd.concat(parts, ignore_index=True)[[*names, "n_models"]]
