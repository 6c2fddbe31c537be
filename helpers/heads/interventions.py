"""The study's interventions on the model, each done once: heads and layers removed, gradients, heads patched."""

import copy
from functools import partial

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import ViltProcessor

from helpers.attention.extract import AttentionTable, extract_attention, read_attention
from helpers.attention.study_measures import choose_dtype, describe_inputs
from helpers.data import prepare
from helpers.heads.importance import IMPORTANCE, importance_measures
from helpers.heads.patching import find_pairs, patch_heads
from helpers.heads.removal import REMOVALS, mean_z, removal_measures
from helpers.run.cache import cached_step, source_digest
from helpers.run.settings import Study


def measure_removals(
    study: Study, model: nn.Module, processor: ViltProcessor, data: Dataset
) -> tuple[AttentionTable, AttentionTable]:
    """Take away each head and each layer in turn, and weigh each head by its gradient; done once.

    On `ablation_questions` of the validation questions, drawn with the study's seed. Kept in run_dir/removals and
    run_dir/importance, in shards: a killed run continues. Returns both tables: `ablate.REMOVALS`, measured in half
    precision on a GPU as attention is, and `importance.IMPORTANCE`, in the model's own.
    """
    count = min(study.ablation_questions, len(data))
    chosen = np.sort(np.random.default_rng(study.seed).permutation(len(data))[:count])
    answers = [model.config.id2label[number] for number in range(model.config.num_labels)]
    encoded = prepare.encode(study, data.select(chosen), processor, answers)
    sizes, own = (
        (study.extract_batch_size, study.shard_size),
        study.settings("seed", "ablation_questions"),
    )
    lower = choose_dtype(study.precision, model.device.type)

    def remove(folder) -> None:
        used = model if model.dtype == lower else copy.deepcopy(model).to(lower)
        means = mean_z(used, encoded, study.extract_batch_size)
        extract_attention(
            used, encoded, folder, *sizes, (0, 1), partial(removal_measures, means=means), REMOVALS
        )

    def differentiate(folder) -> None:
        extract_attention(model, encoded, folder, *sizes, (0, 1), importance_measures, IMPORTANCE)

    steps = {"removals": remove, "importance": differentiate}
    return tuple(
        read_attention(
            cached_step(
                study.folder() / name,
                make,
                describe_inputs(
                    study, **own, **study.settings("precision"), used=source_digest("helpers/heads")
                ),
            )
        )
        for name, make in steps.items()
    )


def measure_patching(
    study: Study, model: nn.Module, processor: ViltProcessor, data: Dataset, table: AttentionTable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hand each head's z from one question to another in the same words, about another image; done once.

    table: the attention of all validation questions, whose answers say which pairs `patching.find_pairs` finds. At most
    `ablation_questions` pairs, drawn with the study's seed. Kept in run_dir/patching/pairs.npz. Returns pairs (pair, 2)
    as rows of data, and moved, whole of `patching.patch_heads`.
    """

    def patch(folder) -> None:
        encoded = prepare.encode(study, data, processor)
        asked = table.questions
        pairs = find_pairs(
            encoded, asked["prediction"].tolist(), (asked["accuracy"] >= 0.5).tolist()
        )
        drawn = np.random.default_rng(study.seed).permutation(len(pairs))[
            : study.ablation_questions
        ]
        pairs = [pairs[number] for number in np.sort(drawn)]
        moved, whole = patch_heads(model, encoded, pairs, study.extract_batch_size)
        np.savez(
            folder / "pairs.npz",
            pairs=np.array(pairs, int).reshape(-1, 2),
            moved=moved,
            whole=whole,
        )

    own = study.settings("seed", "ablation_questions")
    inputs = describe_inputs(study, **own, used=source_digest("helpers/heads"))
    with np.load(cached_step(study.folder() / "patching", patch, inputs) / "pairs.npz") as kept:
        return kept["pairs"], kept["moved"], kept["whole"]
