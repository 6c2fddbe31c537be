"""Which heads and layers can go: ranked on training questions, judged on validation questions.

    losses, *others = measure_importance_on_train(study, model, processor, train)
    order = order_heads(losses.head_loss.mean(0))                  # the least important head first
    answers = predict_without(model, encoded, [(order[:k], []) for k in counts], 64)
    folder = prune_and_finetune(study, "heads", (order[:8], []), data, selection_rows)

Silencing heads gives the logits of a pruned model (`prune_model`) to rounding, so orders are
compared without a copy of the model for each.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from transformers import ViltProcessor

from helpers.attention.extract import AttentionTable, extract_once, sample_questions
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
from helpers.model.finetune import hash_model, load_finetuned, train_model
from helpers.model.forward import PackedForward
from helpers.model.vilt import list_answers, prune_model, quiet_transformers
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
    spare_gradients, spare_attention and spare_sets; a killed run continues.
    """
    encoded, inputs = sample_for_removal(study, model, processor, train)
    given = (model, encoded)
    losses = extract_once(study, "spare_losses", *given, loss_increases, **inputs)
    step = ("spare_gradients", *given, importance_measures)
    gradients = extract_once(study, *step, exact=True, **inputs)
    attention = extract_once(study, "spare_attention", *given, **inputs)
    sets = measure_joint(study, *given, "spare_sets")
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

    removals: heads and layers that are silenced together, ([], []) for the intact model. rows: some
    of the questions.
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
    selected where no other is within the tolerance.
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
