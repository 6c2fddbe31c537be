"""The study's two attention tables: of the fine-tuned model, and of its untrained twin as a null."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from helpers.encode import EncodedQuestions
from helpers.extract import AttentionTable, extract_attention, read_attention
from helpers.heads import box_hits
from helpers.relevance import RELEVANCE, relevance_measures
from helpers.steps import make_once, read_fingerprint, require, source_digest
from helpers.study import Study

CODE = ("measure", "attention", "packed", "relevance", "extract", "encode", "pictures", "vilt")


def measure_attention(
    study: Study,
    model: nn.Module,
    encoded: EncodedQuestions,
    untrained: bool = False,
    once: Callable = make_once,
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
        extract_attention(lower, encoded, folder, study.extract_batch_size, study.shard_size, process)

    name = "attention_untrained" if untrained else "attention"
    seed = study.settings("seed") if untrained else {}
    return read_attention(
        once(study.folder() / name, extract, describe_inputs(study, precision=str(dtype), **seed))
    )


def measure_relevance(study: Study, model: nn.Module, encoded: EncodedQuestions) -> AttentionTable:
    """What the model's answer to every validation question owes to each group of tokens, measured once.

    Kept in run_dir/relevance, in shards as `measure_attention`'s; the measures are `relevance.RELEVANCE`. Always in the
    model's own precision: gradients of half numbers underflow.
    """

    def extract(folder) -> None:
        sizes = (study.extract_batch_size, study.shard_size)
        extract_attention(model, encoded, folder, *sizes, measure=relevance_measures, layout=RELEVANCE)

    return read_attention(make_once(study.folder() / "relevance", extract, describe_inputs(study)))


def describe_inputs(study: Study, **more) -> dict:
    """What a table of measures depends on: sizes, model, data, code and whatever else."""
    return {
        **study.settings("extract_batch_size", "shard_size"),
        "model": read_fingerprint(study.run_dir / "model"),
        "dataset": read_fingerprint(study.run_dir / "dataset"),
        "code": source_digest(*CODE),
        **more,
    }


def choose_dtype(setting: str, device: str) -> torch.dtype:
    """What attention is measured in: half precision on a GPU, unless the setting `precision` says otherwise.

    On a CPU always float32: half is slower there. "auto" is fp16, which has eight times the resolution of bf16: against
    fp32, single splits of the phantom differ by at most 0.01 in fp16 and 0.1 in bf16, averages far less.
    """
    chosen = {"auto": torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[
        setting
    ]
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
