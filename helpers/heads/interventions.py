"""The study's interventions on the model, each done once: heads and layers removed, gradients, heads patched."""

from functools import cache
from pathlib import Path

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import ViltProcessor

from helpers.attention.extract import (
    AttentionTable,
    extract_once,
    in_measuring_precision,
    measure_once,
    sample_questions,
)
from helpers.data import prepare
from helpers.heads.patching import find_pairs, patch_heads
from helpers.heads.removal import (
    IMPORTANCE,
    REMOVALS,
    importance_measures,
    mean_z,
    removal_measures,
)
from helpers.run.cache import source_digest
from helpers.run.settings import Study


def measure_removals(
    study: Study, model: nn.Module, processor: ViltProcessor, data: Dataset
) -> tuple[AttentionTable, AttentionTable]:
    """Take away each head and each layer in turn, and weigh each head by its gradient; done once.

    On `ablation_questions` of the validation questions, drawn with the study's seed. Kept in run_dir/removals and
    run_dir/importance, in shards: a killed run continues. Returns both tables: `removal.REMOVALS`, measured in half
    precision on a GPU as attention is, and `removal.IMPORTANCE`, in the model's own.
    """
    chosen = sample_questions(len(data), study.ablation_questions, study.seed, "permutation")
    answers = [model.config.id2label[number] for number in range(model.config.num_labels)]
    encoded = prepare.encode(study, data.select(chosen), processor, answers)
    lower = in_measuring_precision(model, study)
    means = cache(lambda: mean_z(lower, encoded, study.extract_batch_size))
    inputs = study.settings("seed", "ablation_questions")
    inputs["used"] = source_digest("helpers/heads")

    def measure(model: nn.Module, batch: dict) -> dict:
        return removal_measures(model, batch, means())

    removals = extract_once(study, "removals", lower, encoded, measure, REMOVALS, **inputs)
    return removals, extract_once(
        study, "importance", model, encoded, importance_measures, IMPORTANCE, **inputs
    )


def measure_patching(
    study: Study, model: nn.Module, processor: ViltProcessor, data: Dataset, table: AttentionTable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hand each head's z from one question to another in the same words, about another image; done once.

    table: the attention of all validation questions, whose answers say which pairs `patching.find_pairs` finds. At most
    `ablation_questions` pairs, drawn with the study's seed. Kept in run_dir/patching/pairs.npz. Returns pairs (pair, 2)
    as rows of data, and moved, whole of `patching.patch_heads`.
    """

    def patch(folder: Path) -> None:
        encoded = prepare.encode(study, data, processor)
        asked = table.questions
        right = (asked["accuracy"] >= 0.5).tolist()
        pairs = find_pairs(encoded, asked["prediction"].tolist(), right)
        drawn = sample_questions(len(pairs), study.ablation_questions, study.seed, "permutation")
        pairs = [pairs[number] for number in drawn]
        moved, whole = patch_heads(model, encoded, pairs, study.extract_batch_size)
        pairs = np.array(pairs, int).reshape(-1, 2)
        np.savez(folder / "pairs.npz", pairs=pairs, moved=moved, whole=whole)

    inputs = study.settings("seed", "ablation_questions")
    inputs["used"] = source_digest("helpers/heads")
    with np.load(measure_once(study, "patching", patch, **inputs) / "pairs.npz") as kept:
        return kept["pairs"], kept["moved"], kept["whole"]
