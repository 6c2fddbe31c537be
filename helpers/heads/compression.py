"""Which heads and layers can go, judged on validation questions; and which patches on the way.

    order = order_heads(losses.head_loss.mean(0))               # the least important head first
    predict_without(model, encoded, [(order[:k], []) for k in counts])  # (question, removal)
    folder = prune_and_finetune(study, "heads", (order[:8], []), data, selection_rows)
    predict_thinned(model, encoded, [Thinning(layer=1, share=0.5)])     # (question, plan)

Silencing heads gives the logits of a pruned model (`prune_model`) to rounding, so orders are
compared without a copy of the model for each. Patches leave after a layer's attention, before its
feed-forward part, and take no part in what follows; words, [CLS] and the image's own CLS stay. By
the attention that [CLS] and words pay them in that layer, as in FastV (Chen et al. 2024, "An image
is worth 1/2 tokens after layer 2"), or at random; "fused" puts all that leave into the last one
that stays, weighted by that attention, as EViT does (Liang et al. 2022, equation 5). "frozen"
leaves them where they can be looked at, but no later layer changes them: the layer's feed-forward
part is the last that they go through.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from transformers import ViltProcessor

from helpers.attention.extract import AttentionTable, extract_once, sample_questions
from helpers.attention.image_share import query_weights
from helpers.data.encode import EncodedQuestions
from helpers.data.prepare import encode
from helpers.heads.effects import fit_contributions, logits_lost
from helpers.heads.removal import (
    answer_variants,
    group_heads,
    importance_measures,
    loss_increases,
    measure_joint,
    predict_in_batches,
    sample_for_removal,
    scale_heads,
)
from helpers.model.finetune import load_finetuned, train_model
from helpers.model.forward import PackedForward, PackedLayer
from helpers.model.vilt import hash_model, list_answers, prune_model, quiet_transformers
from helpers.run.cache import cached_step, read_record, source_digest, write_atomic
from helpers.run.settings import Study

# at the full learning rate a trained model forgets more than a short training restores
LEARNING_RATE_FACTOR = 0.3
TRAIN_SHARE = 0.5  # of the training questions, drawn with the study's seed: a *short* training
Head = tuple[int, int]  # layer, head
Removal = tuple[Sequence[Head], Sequence[int]]  # heads, and whole layers


def measure_importance_on_train(
    study: Study, model: nn.Module, processor: ViltProcessor, train: Dataset
) -> tuple[AttentionTable, AttentionTable, AttentionTable, np.ndarray]:
    """Measure the importance of each head and layer in four ways on training questions; once.

    On `sample_for_removal` of the training questions, so that no validation question decides what
    is removed. Returns `loss_increases`, `importance_measures`, the attention, and
    `fit_contributions` of random sets of heads; kept in shards in run_dir/spare_losses,
    spare_gradients, spare_attention and spare_sets.
    """
    encoded, inputs = sample_for_removal(study, model, processor, train)
    losses = extract_once(study, "spare_losses", model, encoded, loss_increases, **inputs)
    step = ("spare_gradients", model, encoded, importance_measures)
    gradients = extract_once(study, *step, exact=True, **inputs)
    attention = extract_once(study, "spare_attention", model, encoded, **inputs)
    sets = measure_joint(study, model, encoded, "spare_sets")
    contributions, _ = fit_contributions(sets.gains, logits_lost(sets.table).mean(0))
    return losses, gradients, attention, contributions


def order_heads(importance: np.ndarray) -> list[Head]:
    """Heads in the order of removal, the least important first; importance: (layer, head).

    Each layer's most important head is left out, because a layer needs a head. NaN (the answer does
    not depend on the head) goes first; of equals, the first.
    """
    filled = np.where(np.isnan(importance), -np.inf, importance)
    most_important = set(enumerate(filled.argmax(1).tolist()))
    flat = np.argsort(filled, axis=None, kind="stable").tolist()
    heads = [divmod(index, filled.shape[1]) for index in flat]
    return [head for head in heads if head not in most_important]


def sample_orders(n_layers: int, n_heads: int, n_orders: int, seed: int) -> list[list[Head]]:
    """Random orders of removal, the baseline that an order of `order_heads` must beat."""
    generator = np.random.default_rng(seed)
    return [order_heads(generator.random((n_layers, n_heads))) for _ in range(n_orders)]


def choose_counts(n: int, n_points: int = 10) -> list[int]:
    """How many of n heads to remove at each point of a curve: evenly up to n, at most n_points."""
    points = min(n, n_points) + 1
    return np.unique(np.linspace(0, n, points).round().astype(int))[1:].tolist()


def predict_without(
    model: nn.Module,
    encoded: EncodedQuestions,
    removals: Sequence[Removal],
    batch_size: int = 64,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """Number of the answer to each question without these heads and layers: (question, removal).

    removals: heads and layers silenced together, ([], []) for the intact model. rows: of encoded.
    """
    shape = model.config.num_hidden_layers, model.config.num_attention_heads
    gains = np.ones((len(removals), *shape))
    for of_heads, (heads, _) in zip(gains, removals, strict=True):
        for layer, own in group_heads(model, heads).items():
            of_heads[layer, own] = 0
    scaled = zip(scale_heads(gains), removals, strict=True)
    variants = [edits | dict.fromkeys(layers) for edits, (_, layers) in scaled]  # None: left out

    def answer(forward: PackedForward) -> Tensor:
        return answer_variants(forward, variants)["variant_answer"]

    return predict_in_batches(model, encoded, answer, len(variants), batch_size, rows)


def prune_and_finetune(
    study: Study, name: str, removal: Removal, data: DatasetDict, selection_rows: Sequence[int]
) -> Path:
    """Prune heads and layers of the fine-tuned model and fine-tune the rest; once.

    As `finetune.finetune`, for `prune_epochs` passes over TRAIN_SHARE of the training questions at
    LEARNING_RATE_FACTOR times `learning_rate` throughout; a killed training continues.
    selection_rows: validation questions whose accuracy selects the checkpoint, none of them one
    that the model is tested on. Returns run_dir/light_<name>, which `load_vilt` loads.
    """
    heads, layers = [*map(tuple, removal[0])], [*removal[1]]
    names = ("seed", "prune_epochs", "batch_size", "learning_rate", "precision", "patience")
    inputs = {
        **study.settings(*names),
        "share": TRAIN_SHARE,
        "heads": heads,
        "layers": layers,
        "watched": [int(row) for row in selection_rows],
        "model": hash_model(study),
        "dataset": read_record(study.run_dir / "dataset")["fingerprint"],
        "code": source_digest("helpers/data", "helpers/model", "helpers/heads"),
    }
    rate = LEARNING_RATE_FACTOR * study.learning_rate
    shorter = replace(study, epochs=study.prune_epochs, learning_rate=rate, head_learning_rate=rate)

    def load() -> tuple[nn.Module, EncodedQuestions, EncodedQuestions]:
        model, processor = load_finetuned(study)
        n = len(data["train"])
        drawn = sample_questions(n, math.ceil(TRAIN_SHARE * n), study.seed, "permutation")
        parts = (data["train"].select(drawn), data["validation"].select(selection_rows))
        encoded = (encode(study, part, processor, list_answers(model)) for part in parts)
        return prune_model(model, heads, layers), *encoded

    folder = study.folder() / f"light_{name}"
    return cached_step(folder, lambda part: train_model(shorter, load, part), inputs)


def select_smallest(candidates: pd.DataFrame, tolerance: float) -> str:
    """The model with the fewest parameters that loses at most `tolerance` points of accuracy.

    candidates: columns model (its name), parameters, selection (change of accuracy on the
    selection half, points; NaN: not enough questions to tell). The whole model comes first, and is
    selected where none is within the tolerance.
    """
    within = candidates[candidates["selection"] >= -tolerance]
    within = within if len(within) else candidates.iloc[:1]
    return within.sort_values("parameters", kind="stable")["model"].iloc[0]


def save_selected(study: Study, model: nn.Module, processor: ViltProcessor, name: str) -> Path:
    """Save the selected model, its processor and its name in run_dir/model_light; once."""
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.cpu().numpy().tobytes())
    shape = {key: getattr(model.config, key, None) for key in ("kept_heads", "kept_layers")}

    def save(folder: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        write_atomic(folder / "chosen.json", json.dumps({"model": name, **shape}, indent=1))

    code = source_digest("helpers/heads")
    inputs = {"model": name, **shape, "weights": digest.hexdigest(), "code": code}
    return cached_step(study.folder() / "model_light", save, inputs)


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
    """Number of the answer to each question with each plan: (question, plan). rows: some questions.

    seed: of the random choices, begun anew in each batch.
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

    packed: (valid tokens, ...). weights: (valid tokens,), 0 if not fused. last: bool, one a
    question.
    """
    owner = valid.nonzero()[:, 0]
    share = weights / weights.new_zeros(len(valid)).index_add(0, owner, weights)[owner]
    parts = packed * share.view(-1, *[1] * (packed.dim() - 1))
    sums = packed.new_zeros(len(valid), *packed.shape[1:]).index_add(0, owner, parts)
    fused = packed.clone()
    fused[last] = sums
    return fused
