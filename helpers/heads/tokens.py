"""Fewer image tokens on the way: which patches can leave, and after which layer?

    plans = [Thinning(layer=1, share=0.5, by="attention")]
    predict_thinned(model, encoded, plans)          # number of each answer, (question, plan)

Patches leave after a layer's attention, before its feed-forward part, and take no part in what
follows; words, [CLS] and the image's own CLS stay. By the attention that [CLS] and words pay them
in that layer, as in FastV (Chen et al. 2024, "An image is worth 1/2 tokens after layer 2"), or at
random; "fused" puts all that leave into the last one that stays, weighted by that attention, as
EViT does (Liang et al. 2022, equation 5). "frozen" leaves them where they can be looked at, but no
later layer changes them: the layer's feed-forward part is the last that they go through.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from helpers.attention.image_share import query_weights
from helpers.data.encode import EncodedQuestions
from helpers.heads.removal import predict_in_batches
from helpers.model.forward import PackedForward, PackedLayer


class Thinning(NamedTuple):
    """What leaves: after which layer, which share of the patches stays, and who chooses."""

    layer: int
    share: float
    by: Literal["attention", "fused", "frozen", "random"] = "attention"


def predict_thinned(
    model: nn.Module,
    encoded: EncodedQuestions,
    plans: Sequence[Thinning],
    batch_size: int = 64,
    rows: Sequence[int] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Number of the answer to each question with each plan: (question, plan).

    rows: some of the questions. seed: of the random choices, begun anew in each batch.
    """

    def answer(forward: PackedForward) -> Tensor:
        logits = dict(run_thinned(forward, plans, seed))
        return torch.stack([logits[number].argmax(1) for number in range(len(plans))], dim=1)

    return predict_in_batches(model, encoded, answer, len(plans), batch_size, rows)


def run_thinned(
    forward: PackedForward, plans: Sequence[Thinning], seed: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Yield (number of the plan, logits) of a packed pass; what comes before is computed once.

    The pass itself is walked no further than the last plan needs. seed: of the random choices.
    """
    generator = torch.Generator().manual_seed(seed)
    needed = 1 + max((plan.layer for plan in plans), default=-1)
    for index, layer in zip(range(needed), forward, strict=False):
        looked = look_at_patches(forward, layer)
        chance = torch.rand(looked.shape, generator=generator).to(looked.device)
        for number, plan in enumerate(plans):
            if plan.layer == index:
                weights = chance if plan.by == "random" else looked
                yield number, go_on(forward, index, layer.z, weights, plan)


def look_at_patches(forward: PackedForward, layer: PackedLayer) -> Tensor:
    """Run a layer; the attention of [CLS] and words to each token, mean over heads: (token,)."""
    looked = layer.z.new_zeros(len(layer.z), 1, 1)
    for part, pattern in layer:
        text = query_weights(part.groups[:, :2].any(1, keepdim=True))  # (question, 1, query)
        part.scatter(looked, (text @ pattern.mean(1))[:, None].mT.to(looked.dtype))
    return looked[:, 0, 0]


def go_on(forward: PackedForward, index: int, z: Tensor, weights: Tensor, plan: Thinning) -> Tensor:
    """Logits of a pass that drops patches in layer `index`, whose z is known; the pass stays.

    weights: of each token, (valid tokens,); the patches with the largest stay.
    """
    valid, patches = forward.valid, forward.groups[:, 4]
    padded = weights.new_full(valid.shape, -torch.inf)
    padded[valid] = weights
    padded[valid & ~patches] = torch.inf  # what is no patch stays
    stays = (plan.share * patches.sum(1)).ceil() + (valid & ~patches).sum(1)
    rank = padded.argsort(dim=1, descending=True, stable=True).argsort(1)
    kept = rank < stays[:, None]
    hidden, last = forward.hidden, (rank == stays[:, None] - 1)[valid]
    if plan.by == "fused":
        leaves = weights * (~kept[valid] | last)
        hidden, z = (fuse(each, leaves, last, valid) for each in (hidden, z))
    frozen, last_layer = plan.by == "frozen", len(forward.core.encoder.layer) - 1
    few, rows = (forward, slice(None)) if frozen else (forward.drop(kept), kept[valid])
    hidden = few.leave(index, z[rows], hidden[rows])
    for number in range(index + 1, last_layer + 1):
        onward = few.leave(number, few.attend(number, hidden), hidden)
        holds = frozen and number < last_layer  # after the last layer [CLS] alone is read
        hidden = torch.where(kept[valid][:, None], onward, hidden) if holds else onward
    return few.read_answer(hidden)


def fuse(packed: Tensor, weights: Tensor, last: Tensor, valid: Tensor) -> Tensor:
    """Put the weighted mean of a question's tokens into its last one that stays.

    packed: (valid tokens, ...). weights: (valid tokens,), 0 for what is not fused. last: bool, one
    token a question.
    """
    owner = valid.nonzero()[:, 0]
    share = weights / weights.new_zeros(len(valid)).index_add(0, owner, weights)[owner]
    parts = packed * share.view(-1, *[1] * (packed.dim() - 1))
    sums = packed.new_zeros(len(valid), *packed.shape[1:]).index_add(0, owner, parts)
    fused = packed.clone()
    fused[last] = sums
    return fused
