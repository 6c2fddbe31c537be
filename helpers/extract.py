"""Attention measures of a whole data set: one row a question, in shards that a killed run continues."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn
from tqdm.auto import tqdm

from helpers.attention import attention_measures, excess_image_share, image_share, uniform_baseline
from helpers.encode import EncodedQuestions
from helpers.vilt import patch_grids
from helpers.vqa import vqa_accuracy

MEASURES = {  # name: type, axes after (question, layer, head)
    "split": (np.float32, (3, 5)),
    "entropy": (np.float32, (3,)),
    "text_distance": (np.float32, ()),
    "patch_distance": (np.float32, ()),
    "top_patch": (np.int16, (3,)),
}
COUNTS = ("n_words", "n_patches", "grid_rows", "grid_cols")


def extract_attention(
    model: nn.Module,
    encoded: EncodedQuestions,
    folder: str | Path,
    batch_size: int,
    shard_size: int,
    process: tuple[int, int] = (0, 1),
) -> Path:
    """Measure the attention of every question and write one row each to folder/part-00000.parquet, ...

    Columns: question_id, image_id, family, question_type, n_words, n_patches, grid_rows, grid_cols,
    prediction, accuracy (NaN without answers), and the measures of `attention_measures`, flattened.
    Rows are in the data set's order. Shards that stand whole are kept, so a killed run goes on where it
    was; memory holds one shard. Read the result with `read_attention`.
    process: (number, processes), where several share the work: each measures every so many-th shard.
    Raises ValueError where the folder holds shards of other questions, another model or shard size.
    """
    if not len(encoded):
        raise ValueError("no questions to extract attention from: the data set is empty.")
    if batch_size < 1 or shard_size < 1:
        raise ValueError(f"batch_size={batch_size} and shard_size={shard_size} must be at least 1.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(encoded), shard_size)
    names = [f"part-{number:05d}.parquet" for number in range(len(starts))]
    strangers = sorted({path.name for path in folder.glob("part-*.parquet")} - set(names))
    if strangers:
        raise ValueError(
            f"{folder / strangers[0]} is none of these {len(names)} shards: empty the folder first."
        )
    source = describe_source(model, len(encoded))
    number, processes = process
    mine = list(zip(names, starts, strict=True))[number::processes]
    total = sum(min(shard_size, len(encoded) - start) for _, start in mine)
    with tqdm(total=total, desc="attention", unit="question") as progress:
        for name, start in mine:
            rows = range(start, min(start + shard_size, len(encoded)))
            if (folder / name).exists():
                check_shard(folder / name, source, encoded, rows)
                progress.update(len(rows))
            else:
                table = measure_rows(model, encoded, rows, batch_size, progress, source)
                pq.write_table(table, folder / f".{name}.tmp")
                os.replace(folder / f".{name}.tmp", folder / name)
    return folder


def describe_source(model: nn.Module, n_questions: int) -> dict:
    """What all shards of a folder share: the model's geometry and weights, and how many questions they hold together."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    geometry = {"layers": model.config.num_hidden_layers, "heads": model.config.num_attention_heads}
    return {**geometry, "weights": digest.hexdigest()[:16], "questions": n_questions}


def check_shard(path: Path, source: dict, encoded: EncodedQuestions, rows: range) -> None:
    """ValueError unless a shard that stands holds these rows, measured on this very model."""
    if read_source(path) != source:
        raise ValueError(
            f"{path} is of another model or data set ({read_source(path)}, not {source}): empty the folder."
        )
    held = pq.read_table(path, columns=["question_id"])["question_id"].to_pylist()
    if held != encoded.questions["question_id"].iloc[rows].tolist():
        raise ValueError(f"{path} holds other questions than rows {rows.start} to {rows.stop - 1}.")


def read_source(path: Path) -> dict:
    """What describe_source said when a shard was written; ValueError where it is no shard."""
    try:
        return json.loads(pq.read_schema(path).metadata[b"source"])
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no attention shard: delete it and extract again.") from error


def measure_rows(
    model: nn.Module, encoded: EncodedQuestions, rows: range, batch_size: int, progress: tqdm, source: dict
) -> pa.Table:
    """One shard: batches are bucketed within it, its rows are in the data set's order."""
    axes = (source["layers"], source["heads"])
    measures = {name: np.zeros((len(rows), *axes, *tail), kind) for name, (kind, tail) in MEASURES.items()}
    counts = np.zeros((len(rows), len(COUNTS)), np.int16)
    answers = np.zeros(len(rows), np.int64)
    for indices, batch in encoded.batches(batch_size, rows):
        places = np.array(indices) - rows.start
        found = attention_measures(model, batch)
        for name, values in measures.items():
            values[places] = found[name].cpu().numpy()
        grids = patch_grids(batch["pixel_mask"], model.config.patch_size).numpy()
        words = batch["attention_mask"].sum(1).numpy() - 2
        counts[places] = np.column_stack([words, grids.prod(1), grids])
        answers[places] = found["logits"].argmax(1).cpu().numpy()
        progress.update(len(indices))
    questions = describe_rows(encoded, rows, [model.config.id2label[answer] for answer in answers.tolist()])
    questions[list(COUNTS)] = counts
    return tabulate(questions, measures, source)


def describe_rows(encoded: EncodedQuestions, rows: range, predictions: list[str]) -> pd.DataFrame:
    """What the data set says of these questions, with the model's answer and its accuracy."""
    names = ("question_id", "image_id", "family", "question_type", "answers")
    given = encoded.questions.iloc[rows]
    table = given[[name for name in names if name in given]].reset_index(drop=True)
    table["prediction"], table["accuracy"] = predictions, np.nan
    if "answers" in table:
        pairs = zip(predictions, table.pop("answers"), strict=True)
        table["accuracy"] = [vqa_accuracy(prediction, list(answers)) for prediction, answers in pairs]
    return table


def tabulate(questions: pd.DataFrame, measures: dict[str, np.ndarray], source: dict) -> pa.Table:
    """Questions and measures as one Arrow table; a measure is a fixed-size list of its flattened axes."""
    table = pa.Table.from_pandas(questions, preserve_index=False)
    for name, values in measures.items():
        flat = pa.array(values.reshape(-1))
        table = table.append_column(name, pa.FixedSizeListArray.from_arrays(flat, values[0].size))
    return table.replace_schema_metadata({"source": json.dumps(source)})


@dataclass
class AttentionTable:
    """Measures of all questions. Axes: question, layer, head, then QUERY_GROUPS, then KEY_GROUPS.

    questions: question_id, image_id, family, question_type, counts, prediction, accuracy.
    split (n, L, H, 3, 5); entropy, top_patch (n, L, H, 3); text_distance, patch_distance (n, L, H).
    """

    questions: pd.DataFrame
    split: np.ndarray
    entropy: np.ndarray
    text_distance: np.ndarray
    patch_distance: np.ndarray
    top_patch: np.ndarray

    @property
    def image_share(self) -> np.ndarray:
        """Share of attention on the image: (n, L, H, 3)."""
        return image_share(self.split)

    @property
    def baseline(self) -> np.ndarray:
        """Image share of uniform attention, for each question: (n,)."""
        words, patches = (self.questions[name].to_numpy(np.float32) for name in ("n_words", "n_patches"))
        return uniform_baseline(words, patches)

    @property
    def excess(self) -> np.ndarray:
        """Image share minus the uniform baseline: (n, L, H, 3)."""
        return excess_image_share(self.split, self.baseline)


def read_attention(folder: str | Path) -> AttentionTable:
    """Read the shards that `extract_attention` wrote, in order.

    FileNotFoundError where there are none; ValueError where they are of different models, or do not hold all questions.
    """
    paths = sorted(Path(folder).glob("part-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no attention shards: run extract_attention first.")
    source = read_source(paths[0])
    for path in paths:
        if read_source(path) != source:
            raise ValueError(f"{path} has {read_source(path)}, but {paths[0].name} has {source}.")
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    if len(table) != source["questions"]:
        raise ValueError(
            f"{folder} holds {len(table)} of {source['questions']} questions: run extract_attention again."
        )
    axes = (len(table), source["layers"], source["heads"])
    measures = {}
    for name, (_, tail) in MEASURES.items():
        flat = table[name].combine_chunks().flatten()
        measures[name] = flat.to_numpy(zero_copy_only=False).reshape(*axes, *tail)
    return AttentionTable(table.drop_columns(list(MEASURES)).to_pandas(), **measures)
