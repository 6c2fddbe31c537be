"""How much the loss hangs on each head, by gradients: one backward pass for all heads, where removal takes one each."""

from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from helpers.attention.image_share import prepare_batch
from helpers.model.trace import trace
from helpers.model.vilt import forward_raster
from helpers.stats.bootstrap import rank_correlation
from helpers.stats.cluster_robust import divide_or_nan

IMPORTANCE = {
    "importance": ("float32", ("layer", "head"))
}  # of `importance_measures`; name: type, axes


def importance_measures(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """How much the loss on each question of a batch hangs on each head: importance (question, layer, head), at least 0.

    |dL / dg| at g = 1, where g scales the head's z (Michel, Levy and Neubig 2019, "Are sixteen heads really better
    than one?", equation 2). L: binary cross-entropy with the soft targets, batch["labels"], summed over answers. logits:
    (question, answer). ValueError without labels: give EncodedQuestions the model's answers.
    """
    if "labels" not in batch:
        raise ValueError(
            "the batch has no labels: encode the questions with answers=, the model's own."
        )
    prepared, config = prepare_batch(model, batch), model.config
    shape = (config.num_hidden_layers, len(batch["labels"]), config.num_attention_heads)
    gates = torch.ones(shape, device=model.device, dtype=model.dtype, requires_grad=True)

    def scale(layer: int, z: Tensor) -> Tensor:
        return z * gates[layer][:, None, :, None]

    with trace(model, edit={"z": scale}), torch.enable_grad():
        logits = forward_raster(model, prepared.inputs).logits
        loss = binary_cross_entropy_with_logits(logits, batch["labels"].to(logits), reduction="sum")
        (slope,) = torch.autograd.grad(loss, gates)
    return {"importance": slope.abs().transpose(0, 1), "logits": logits.detach()}


def normalise_by_layer(importance: np.ndarray) -> np.ndarray:
    """Importance (layer, head) over its layer's L2 norm (Molchanov et al. 2017, equation 10; NaN in a layer of zeros).

    Gradients differ in size between layers for reasons that have nothing to do with heads.
    """
    return divide_or_nan(importance, np.linalg.norm(importance, axis=1, keepdims=True))


def rank_measures(
    measures: dict[str, np.ndarray], n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Do measures of importance (layer, head) rank the heads alike? Every pair, over all heads and within layers.

    Columns: over ("all heads", or "within layers": each less its layer's mean), first, second, correlation (Spearman), low,
    high (95 %, bootstrap over heads, see `stats.rank_correlation`), n (heads).
    """
    rows = []
    for over in ("all heads", "within layers"):
        for first, second in combinations(measures, 2):
            values = [np.asarray(measures[name], float) for name in (first, second)]
            if over == "within layers":
                values = [each - each.mean(1, keepdims=True) for each in values]
            found = rank_correlation(
                *(each.round(9) for each in values), n_resamples, seed
            )  # ties are ties
            rows.append((over, first, second, *map(float, found[:3]), int(found.n)))
    return pd.DataFrame(
        rows, columns=["over", "first", "second", "correlation", "low", "high", "n"]
    )
