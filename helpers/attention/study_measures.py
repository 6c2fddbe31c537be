"""The study's two attention tables: of the fine-tuned model, and of its untrained twin as a null."""

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from helpers.attention import faithfulness, modality
from helpers.attention.extract import AttentionTable, extract_attention, read_attention
from helpers.attention.relevance import (
    RELEVANCE,
    Explanation,
    explain,
    patch_maps,
    relevance_measures,
)
from helpers.attention.word_classes import LEXICON, WORD_MEASURES, word_measures
from helpers.data.encode import EncodedQuestions
from helpers.heads.roles import box_hits
from helpers.run.cache import cached_step, hash_file, read_record, require, source_digest
from helpers.run.settings import Study

CODE = ("helpers/data", "helpers/model", "helpers/attention")


def measure_attention(
    study: Study,
    model: nn.Module,
    encoded: EncodedQuestions,
    untrained: bool = False,
    once: Callable = cached_step,
    process: tuple[int, int] = (0, 1),
) -> AttentionTable:
    """Measure the attention of every validation question, once, and open its table.

    model: the fine-tuned model, or with `untrained` its `untrained_twin`. Kept in run_dir/attention (or
    attention_untrained), in shards; a killed run continues. once and process: how the step is done once, and which
    share of the shards is measured here; `launch` passes the forms for several processes.
    """
    dtype = choose_dtype(study.precision, model.device.type)

    def extract(folder) -> None:
        lower = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)
        extract_attention(
            lower, encoded, folder, study.extract_batch_size, study.shard_size, process
        )

    name = "attention_untrained" if untrained else "attention"
    seed = study.settings("seed") if untrained else {}
    return read_attention(
        once(
            study.folder() / name,
            extract,
            describe_inputs(study, **study.settings("precision"), **seed),
        )
    )


def measure_relevance(
    study: Study,
    model: nn.Module,
    encoded: EncodedQuestions,
    once: Callable = cached_step,
    process: tuple[int, int] = (0, 1),
) -> AttentionTable:
    """What the model's answer to every validation question owes to each group of tokens, measured once.

    Kept in run_dir/relevance, in shards as `measure_attention`'s; the measures are `relevance.RELEVANCE`. Always in the
    model's own precision: gradients of half numbers underflow. once, process: as in `measure_attention`.
    """

    def extract(folder) -> None:
        sizes = (study.extract_batch_size, study.shard_size)
        extract_attention(model, encoded, folder, *sizes, process, relevance_measures, RELEVANCE)

    return read_attention(once(study.folder() / "relevance", extract, describe_inputs(study)))


def measure_words(study: Study, model: nn.Module, encoded: EncodedQuestions) -> AttentionTable:
    """How much each class of words looks at the image and is read, for every validation question; measured once.

    Kept in run_dir/words, in shards as `measure_attention`'s; the measures are `words.WORD_MEASURES`. Always in the
    model's own precision.
    """

    def extract(folder) -> None:
        sizes = (study.extract_batch_size, study.shard_size)
        extract_attention(
            model, encoded, folder, *sizes, measure=word_measures, layout=WORD_MEASURES
        )

    inputs = describe_inputs(study, lexicon=hash_file(LEXICON))
    return read_attention(cached_step(study.folder() / "words", extract, inputs))


def measure_faithfulness(
    study: Study, model: nn.Module, twin: nn.Module, encoded: EncodedQuestions, dataset: Dataset
) -> tuple[np.ndarray, faithfulness.Curves, pd.DataFrame]:
    """Take patches away in the order of each map, and hold the maps against the boxes asked about; done once.

    On `faithfulness_questions` validation questions, drawn with the study's seed. twin: the `untrained_twin`, whose
    relevance is the control with random weights. Kept in run_dir/faithfulness: curves.npz (the arrays of Curves, and
    question: the rows drawn) and boxes.parquet. Returns these rows; the curves, with orders for each of
    `relevance.patch_maps`, "random", "reversed relevance" and "untrained relevance"; and a table with a row for each map
    and head (its [CLS] query) of each question with a box: question (row), map, layer, head (-1 for a combined map),
    pointing, mass (see `faithfulness.point_in_box`, `mass_in_box`), chance (share of patches in the box).
    """
    count = min(study.faithfulness_questions, len(encoded))
    chosen = np.sort(np.random.default_rng(study.seed).choice(len(encoded), count, replace=False))

    def measure(folder) -> None:
        orders, boxes = defaultdict(list), []
        for row in tqdm(chosen.tolist(), desc="maps", unit="question"):
            batch = encoded.collate([encoded[row]])
            explanation = explain(model, batch)[0]
            maps = patch_maps(explanation)
            control = patch_maps(explain(twin, batch, [explanation.answer])[0])["relevance"]
            for name, weights in {**maps, "untrained relevance": control}.items():
                orders[name].append(faithfulness.rank_patches(weights))
            orders["reversed relevance"].append(orders["relevance"][-1][::-1])
            boxes.append(ground_maps(row, explanation, maps, dataset[row]))
        counts = [len(order) for order in orders["relevance"]]
        orders["random"] = faithfulness.random_orders(counts, study.seed)
        curves = faithfulness.perturbation_curves(model, encoded, chosen.tolist(), orders)
        np.savez(folder / "curves.npz", question=chosen, **asdict(curves))
        known = [each for each in boxes if len(each)] or boxes[:1]  # concat warns of empty tables
        pd.concat(known).to_parquet(folder / "boxes.parquet", index=False)

    own = {**study.settings("seed", "faithfulness_questions")}
    inputs = describe_inputs(study, **own)
    folder = cached_step(study.folder() / "faithfulness", measure, inputs)
    with np.load(folder / "curves.npz") as kept:
        curves = faithfulness.Curves(
            kept["orders"].tolist(),
            *(kept[name] for name in ("fractions", "probability", "accuracy")),
        )
        return chosen, curves, pd.read_parquet(folder / "boxes.parquet")


def measure_modality(
    study: Study, model: nn.Module, encoded: EncodedQuestions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What answers lose without their words or their image, and what they owe to either by MM-SHAP; measured once.

    Kept in run_dir/modality: withheld.parquet, of all questions (`modality.withheld_accuracy`), and
    shapley.parquet, of `shapley_questions` questions drawn with the study's seed (`modality.mm_shap`). Returns
    both tables. In the model's own precision: differences of probabilities are small.
    """
    count, size = min(study.shapley_questions, len(encoded)), study.extract_batch_size

    def measure(folder) -> None:
        rows = range(len(encoded))
        withheld = modality.withheld_accuracy(model, encoded, rows, study.seed, size)
        withheld.to_parquet(folder / "withheld.parquet", index=False)
        chosen = np.sort(
            np.random.default_rng(study.seed).choice(len(encoded), count, replace=False)
        )
        shares = modality.mm_shap(
            model, encoded, chosen, study.shapley_permutations, study.seed, size
        )
        shares.to_parquet(folder / "shapley.parquet", index=False)

    own = study.settings("seed", "shapley_questions", "shapley_permutations")
    inputs = describe_inputs(study, **own)
    folder = cached_step(study.folder() / "modality", measure, inputs)
    return pd.read_parquet(folder / "withheld.parquet"), pd.read_parquet(folder / "shapley.parquet")


def ground_maps(
    row: int, explanation: Explanation, maps: dict[str, np.ndarray], example: dict
) -> pd.DataFrame:
    """Pointing and mass of each combined map and each head's [CLS] attention on one question; empty without a box."""
    if not example["boxes"]:
        return pd.DataFrame(
            columns=["question", "map", "layer", "head", "pointing", "mass", "chance"]
        )
    size = (example["width"], example["height"])
    inside = faithfulness.cover_boxes(example["boxes"], explanation.maps.grid, size).ravel()
    heads = (
        explanation.maps.attention[:, :, 0, explanation.maps.groups["patches"]]
        .float()
        .cpu()
        .numpy()
    )
    cells = [(-1, -1), *np.ndindex(heads.shape[:2])]
    names = [*maps, *(f"L{layer}H{head}" for layer, head in cells[1:])]
    weights = np.concatenate(
        [[each.ravel() for each in maps.values()], heads.reshape(-1, heads.shape[2])]
    )
    layer, head = np.array([cells[0]] * len(maps) + cells[1:]).T
    scores = {
        "pointing": faithfulness.point_in_box(weights, inside),
        "mass": faithfulness.mass_in_box(weights, inside),
    }
    return pd.DataFrame(
        {
            "question": row,
            "map": names,
            "layer": layer,
            "head": head,
            **scores,
            "chance": inside.mean(),
        }
    )


def describe_inputs(study: Study, **more) -> dict:
    """What a table of measures depends on: sizes, model, data, code and whatever else."""
    return {
        **study.settings("extract_batch_size", "shard_size"),
        "model": read_record(study.run_dir / "model")["fingerprint"],
        "dataset": read_record(study.run_dir / "dataset")["fingerprint"],
        "code": source_digest(*CODE),
        **more,
    }


def choose_dtype(setting: str, device: str) -> torch.dtype:
    """What attention is measured in: half precision on a GPU, unless the setting `precision` says otherwise.

    On a CPU always float32: half is slower there. "auto" is fp16, which has eight times the resolution of bf16: against
    fp32, single splits of the phantom differ by at most 0.01 in fp16 and 0.1 in bf16, averages far less.
    """
    chosen = {
        "auto": torch.float16,
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
        "fp32": torch.float32,
    }[setting]
    return torch.float32 if device == "cpu" else chosen


def load_attention(study: Study, untrained: bool = False) -> AttentionTable:
    """The table that 03 measured; FileNotFoundError that says so where it is missing."""
    name = "attention_untrained" if untrained else "attention"
    return read_attention(require(study.folder() / name, made_by="03_layer_attention"))


def untrained_twin(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with fresh random weights from `seed`: what attention looks like before learning.

    Patch positions and CLS tokens are drawn too (transformers starts them at zero, which no trained ViLT has).
    The caller's random state is untouched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = type(model)(copy.deepcopy(model.config))
        parts = twin.vilt.embeddings
        for parameter in (parts.cls_token, parts.position_embeddings):
            nn.init.normal_(parameter, std=model.config.initializer_range)
    twin.tokenizer = model.tokenizer
    return twin.to(next(model.parameters()).device).eval()


def find_hits(table: AttentionTable, dataset: Dataset, top_patch: np.ndarray | None = None):
    """Whether each head's most-attended patch lies in a box asked about: see heads.box_hits.

    top_patch: (question, layer, head, 3) in place of the table's own. Returns (hits (question, layer, head, 3), chance
    (question,)), NaN where a question has no box.
    """
    known = dataset.select_columns(["boxes", "width", "height"]).to_pandas()
    grids = table.questions[["grid_rows", "grid_cols"]].to_numpy()
    return box_hits(
        table.top_patch if top_patch is None else top_patch,
        grids,
        [list(map(list, b)) for b in known["boxes"]],
        known[["width", "height"]].to_numpy(),
    )
