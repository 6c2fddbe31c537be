"""Maps beyond raw attention: what heads hand on, and what an answer owes to each token.

    explanation = explain(model, batch)[0]
    explanation.weights("relevance")[-1, 0]   # what the answer owes to each token: (key,)
    patch_maps(explanation)["relevance"]      # the same over the picture: (rows, columns)

Attention says where a head reads. Value-weighted norms (Kobayashi et al. 2020) weight each key by
the vector that the head hands on. Relevance (Chefer, Gur and Wolf 2021) weights attention by the
gradient of the answer's logit and multiplies the layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from helpers.attention.image_share import (
    Batch,
    PreparedBatch,
    QuestionMaps,
    attention_maps,
    prepare_batch,
    rollout,
    value_norms,
)
from helpers.model.forward import forward_raster, trace


def propagate_relevance(attentions: Tensor, gradients: Tensor) -> Tensor:
    """What each token of a question owes to each token after each layer: (layer, query, key).

    attentions, gradients: (layer, head, query, key). R starts as the identity; a layer adds A' R,
    A' the mean over heads of (gradient * attention)+ (Chefer et al. 2021, equations 5 and 6).
    """
    relevance = torch.eye(attentions.shape[-1], dtype=attentions.dtype, device=attentions.device)
    layers = []
    for weights in (gradients * attentions).clamp_min(0).mean(1):
        relevance = relevance + weights @ relevance
        layers.append(relevance)
    return torch.stack(layers)


@dataclass
class Explanation:
    """One question's attention, and what explains an answer from it; padding removed."""

    maps: QuestionMaps
    answer: str  # the label that is explained
    gradients: Tensor  # of its logit by each attention weight: (layer, head, query, key)
    value_norms: Tensor  # (layer, head, key)

    def weights(self, method: str) -> Tensor:
        """The weights of a method; ValueError for an unknown one.

        (layer, head, query, key): "attention"; "value-weighted", attention times value norm, in
        units of the hidden space; "gradient-weighted", the positive part of gradient times
        attention. (layer, query, key), of all up to a layer: "rollout", "relevance".
        """
        attention = self.maps.attention
        methods = {
            "attention": lambda: attention,
            "value-weighted": lambda: attention * self.value_norms[:, :, None],
            "gradient-weighted": lambda: (self.gradients * attention).clamp_min(0),
            "rollout": lambda: rollout(attention),
            "relevance": lambda: propagate_relevance(attention, self.gradients),
        }
        if method not in methods:
            raise ValueError(f"unknown method {method!r}: known are {', '.join(methods)}.")
        return methods[method]()


def explain(
    model: nn.Module, batch: Batch, answers: Sequence[int] | None = None
) -> list[Explanation]:
    """Explain the answers to a few questions: twice layers * heads * tokens^2 floats each.

    batch: as for `attention_maps`. answers: the index of each question's answer, by default what
    the model answers. Parameters get no gradient.
    """
    prepared = prepare_batch(model, batch)
    with trace(model, read=["value"]) as seen:
        _, gradients, _, chosen = differentiate(model, prepared, answers)
    layers = zip(seen["value"], model.vilt.encoder.layer, strict=True)
    norms = [
        value_norms(values.detach().transpose(1, 2), layer.attention.output.dense.weight.detach())
        for values, layer in layers
    ]
    maps = attention_maps(model, {**prepared.inputs, "patch_grids": prepared.grids})
    explanations = []
    for row, question in enumerate(maps):
        valid = prepared.groups[row].any(0).nonzero()[:, 0]
        answer = model.config.id2label[int(chosen[row])]
        gradient = torch.stack([layer[row][:, valid][:, :, valid] for layer in gradients])
        lengths = torch.stack([layer[row][:, valid] for layer in norms])
        explanations.append(Explanation(question, answer, gradient, lengths))
    return explanations


def differentiate(
    model: nn.Module, prepared: PreparedBatch, answers: Sequence[int] | None = None
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Each layer's attention (batch, head, query, key), the answer's gradient by it, the logits.

    And the answers' indices (batch,). One backward pass of the sum of logits: questions do not
    meet, so each gets its own gradient.
    """
    embeds = prepared.inputs["image_embeds"].detach().requires_grad_()
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learnt:  # or autograd would keep what only their own gradients need
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad(), trace(model, read=["pattern"]) as seen:
            logits = forward_raster(model, {**prepared.inputs, "image_embeds": embeds}).logits
            best = logits.argmax(1)
            chosen = best if answers is None else torch.as_tensor(answers, device=best.device)
            explained = logits.gather(1, chosen[:, None]).sum()
            gradients = torch.autograd.grad(explained, seen["pattern"])
    finally:
        for parameter in learnt:
            parameter.requires_grad_()
    attentions = [layer.detach() for layer in seen["pattern"]]
    return attentions, list(gradients), logits.detach(), chosen


def relevance_measures(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What the model's answers owe to each group of tokens, for a batch.

    relevance (question, 5): the [CLS] row of `propagate_relevance`, less the identity, as shares of
    KEY_GROUPS that sum to 1; NaN where nothing is left. Only the row is carried, from the last
    layer down: e (I + A'_L) ... (I + A'_1). logits (question, answer).
    """
    prepared = prepare_batch(model, batch)
    attentions, gradients, logits, _ = differentiate(model, prepared)
    keys = prepared.groups.float().mT  # (question, token, 5)
    row = torch.zeros_like(keys[:, None, :, 0])  # (question, 1, token)
    row[:, :, 0] = 1
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        row = row + row @ (gradient * attention).float().clamp_min_(0).mean(1)
    row[:, :, 0] -= 1
    owed = (row @ keys)[:, 0]
    return {"relevance": owed / owed.sum(1, keepdim=True), "logits": logits}  # 0 / 0 is NaN


def patch_maps(explanation: Explanation) -> dict[str, np.ndarray]:
    """How much [CLS] weights each patch, by five methods: name -> (rows, columns)."""
    attention = explanation.weights("attention")
    rows = {
        "raw, last layer": attention[-1].mean(0)[0],
        "raw, all layers": attention.mean((0, 1))[0],
        "value-weighted": explanation.weights("value-weighted").mean((0, 1))[0],
        "rollout": explanation.weights("rollout")[-1, 0],
        "relevance": explanation.weights("relevance")[-1, 0],
    }
    patches, grid = explanation.maps.groups["patches"], explanation.maps.grid
    return {name: row[patches].reshape(grid).float().cpu().numpy() for name, row in rows.items()}
