"""Measures of a whole data set: a row a question, made once, continued after a kill.

    table = measure_attention(study, model, encoded)    # of all validation questions
    table.image_share                                   # (question, layer, head, QUERY_GROUPS)

Other measures of a study go through `measure_once` and, where they are tables, `extract_once`.
"""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers.attention.image_share import attention_measures, image_share, uniform_baseline
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import patch_grids
from helpers.run.cache import cached_step, read_record, require, source_digest
from helpers.run.settings import Study

Measure = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
Layout = Mapping[str, tuple[str, tuple]]
MEASURES: Layout = {  # of `attention_measures`; name: type, axes after the question
    "split": ("float32", ("layer", "head", 3, 5)),
    "entropy": ("float32", ("layer", "head", 3)),
    "text_distance": ("float32", ("layer", "head")),
    "patch_distance": ("float32", ("layer", "head")),
    "top_patch": ("int16", ("layer", "head", 3)),
    "value_norm": ("float32", ("layer", "head", 3, 5)),
    "flow": ("float32", ("layer", 5, 5)),
    "rollout": ("float32", (5,)),
}
COUNTS = ("n_words", "n_patches", "grid_rows", "grid_cols")


# ------------------------------------------------------------------------------- write the shards


def extract_attention(
    model: nn.Module,
    encoded: EncodedQuestions,
    folder: str | Path,
    batch_size: int,
    shard_size: int,
    process: tuple[int, int] = (0, 1),
    measure: Measure = attention_measures,
    layout: Layout = MEASURES,
) -> Path:
    """Measure every question and write a row each to folder/part-00000.parquet, ...

    measure, layout: what gives a batch's measures (with "logits"), and the type and axes of those
    to keep. process: (rank, world_size). Rank r measures shards r, r + world_size, ...
    Columns: question_id, image_id, family, question_type, COUNTS, prediction, accuracy (NaN
    without answers), and the measures, flattened. Rows are in the data set's order. Whole shards
    are kept, so a killed run continues; memory holds one. Read them with `read_attention`.
    ValueError where the folder holds shards of other questions, another model, shard size or
    measures, and where the model's numbers are not finite.
    """
    if not len(encoded):
        raise ValueError("no questions to extract attention from: the data set is empty.")
    if batch_size < 1 or shard_size < 1:
        raise ValueError(f"batch_size={batch_size} and shard_size={shard_size} must be at least 1.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(encoded), shard_size)
    names = [f"part-{number:05d}.parquet" for number in range(len(starts))]
    others = sorted({path.name for path in folder.glob("part-*.parquet")} - set(names))
    if others:
        raise ValueError(
            f"{folder / others[0]} is none of these {len(names)} shards: empty the folder first."
        )
    source = describe_source(model, len(encoded), layout)
    rank, world_size = process
    shards = [
        (folder / name, range(start, min(start + shard_size, len(encoded))))
        for name, start in zip(names[rank::world_size], starts[rank::world_size], strict=True)
    ]
    total = sum(len(rows) for _, rows in shards)
    with tqdm(total=total, desc="attention", unit="question") as progress:
        for path, rows in shards:
            if path.exists():
                check_shard(path, source, encoded, rows)
                progress.update(len(rows))
            else:
                table = measure_rows(model, encoded, rows, batch_size, progress, source, measure)
                temporary = path.with_name(f".{path.name}.tmp")
                # dictionaries of floats that hardly repeat cost time and save nothing
                pq.write_table(table, temporary, use_dictionary=table.column_names[: -len(layout)])
                os.replace(temporary, path)
    return folder


def describe_source(model: nn.Module, n_questions: int, layout: Layout) -> dict:
    """What all shards of a folder share: the model's shape and weights, the measures, the count."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return {
        "layers": model.config.num_hidden_layers,
        "heads": model.config.num_attention_heads,
        "weights": digest.hexdigest()[:16],
        "dtype": str(model.dtype),
        "questions": n_questions,
        "measures": {name: [kind, *axes] for name, (kind, axes) in layout.items()},
    }


def measure_shapes(source: dict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of a question's measures: {"split": ("float32", (12, 12, 3, 5)), ...}."""
    sizes = {"layer": source["layers"], "head": source["heads"]}
    return {
        name: (kind, tuple(sizes.get(axis, axis) for axis in axes))
        for name, (kind, *axes) in source["measures"].items()
    }


def check_shard(path: Path, source: dict, encoded: EncodedQuestions, rows: range) -> None:
    """ValueError unless a shard holds these rows, measured on this model."""
    if (found := read_source(path)) != source:
        raise ValueError(
            f"{path} is of another model or data set ({found}, not {source}): empty the folder."
        )
    held = pq.read_table(path, columns=["question_id"])["question_id"].to_pylist()
    if held != encoded.questions["question_id"].iloc[rows].tolist():
        raise ValueError(f"{path} holds other questions than rows {rows.start} to {rows.stop - 1}.")


def measure_rows(
    model: nn.Module,
    encoded: EncodedQuestions,
    rows: range,
    batch_size: int,
    progress: tqdm,
    source: dict,
    measure: Measure,
) -> pa.Table:
    """One shard. Batches are bucketed within it; its rows are in the data set's order."""
    shapes = measure_shapes(source).items()
    measures = {name: np.zeros((len(rows), *shape), kind) for name, (kind, shape) in shapes}
    counts = np.zeros((len(rows), len(COUNTS)), np.int16)
    answers = np.zeros(len(rows), np.int64)
    for indices, batch in encoded.batches(batch_size, rows):
        places = np.array(indices) - rows.start
        found = measure(model, batch)
        check_finite(found["logits"], encoded, indices, model.dtype)
        for name, values in measures.items():
            values[places] = found[name].cpu().numpy()
        grids = patch_grids(batch["pixel_mask"], model.config.patch_size)
        grids = grids[batch["picture_of"]].numpy()
        words = batch["attention_mask"].sum(1).numpy() - 2
        counts[places] = np.column_stack([words, grids.prod(1), grids])
        answers[places] = found["logits"].argmax(1).cpu().numpy()
        progress.update(len(indices))
    predictions = [model.config.id2label[answer] for answer in answers.tolist()]
    questions = describe_rows(encoded, rows, predictions)
    questions[list(COUNTS)] = counts
    return to_arrow(questions, measures, source)


def check_finite(
    logits: Tensor, encoded: EncodedQuestions, indices: list[int], dtype: torch.dtype
) -> None:
    """ValueError that names a question whose logits overflowed, as half precision can."""
    overflown = (~logits.isfinite().all(1)).nonzero()[:, 0].tolist()
    if overflown:
        question = encoded.questions["question_id"].iloc[indices[overflown[0]]]
        half = dtype != torch.float32
        advice = "; use precision='fp32'." if half else ": the model's weights are broken."
        raise ValueError(f"question_id {question}: the logits in {dtype} are not finite{advice}")


def describe_rows(encoded: EncodedQuestions, rows: range, predictions: list[str]) -> pd.DataFrame:
    """What the data set says of these questions, with the model's answer and its accuracy."""
    names = ("question_id", "image_id", "family", "question_type")
    given = encoded.questions.iloc[rows]
    table = given[[name for name in names if name in given]].reset_index(drop=True)
    return table.assign(prediction=predictions, accuracy=encoded.score(predictions, rows))


def to_arrow(questions: pd.DataFrame, measures: dict[str, np.ndarray], source: dict) -> pa.Table:
    """One Arrow table, in which a measure is a fixed-size list of its flattened axes."""
    table = pa.Table.from_pandas(questions, preserve_index=False)
    for name, values in measures.items():
        flat = pa.array(values.reshape(-1))
        element = pa.field("element", flat.type, nullable=False)  # reads 1.3 times as fast
        kind = pa.list_(element, values[0].size)
        column = pa.FixedSizeListArray.from_arrays(flat, type=kind)
        table = table.append_column(pa.field(name, kind, nullable=False), column)
    return table.replace_schema_metadata({"source": json.dumps(source)})


# -------------------------------------------------------------------------------- read the shards


class AttentionTable:
    """Measures of all questions: table.split is (question, layer, head, QUERY_GROUPS, KEY_GROUPS).

    questions: question_id, image_id, family, question_type, counts, prediction, accuracy. dtype:
    what the model ran in, such as "torch.float16". Each measure (see `attention_measures`) is an
    attribute whose first axis is the question, read from the shards when first asked for, and then
    kept. At 200,000 questions x 144 heads a split takes 1.7 GB; `image_share`, `excess` and
    `reduce` read it shard by shard and keep a part.
    """

    def __init__(
        self, questions: pd.DataFrame, paths: list[Path], shapes: Mapping[str, tuple], dtype: str
    ) -> None:
        self.questions, self.dtype, self._paths, self._shapes = questions, dtype, paths, shapes

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_") or name not in self._shapes:
            held = "" if name.startswith("_") else f"; it holds {', '.join(self._shapes)}"
            raise AttributeError(f"this table has no measure {name!r}{held}")
        setattr(self, name, self.reduce(name))
        return getattr(self, name)

    def reduce(self, name: str, function: Callable = np.asarray) -> np.ndarray:
        """`function` of a measure (question, ...), shard by shard; it keeps the first axis."""
        kind, shape = self._shapes[name]
        whole, start = None, 0
        for path in self._paths:
            column = pq.read_table(path, columns=[name])[name].combine_chunks()
            part = function(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape))
            if whole is None:
                whole = np.empty((len(self.questions), *part.shape[1:]), kind)
            whole[start : start + len(part)] = part
            start += len(part)
        return whole

    @cached_property
    def image_share(self) -> np.ndarray:
        """Share of attention on the image: (question, layer, head, QUERY_GROUPS)."""
        return self.reduce("split", image_share)

    @property
    def baseline(self) -> np.ndarray:
        """Image share of uniform attention: (question,)."""
        names = ("n_words", "n_patches")
        return uniform_baseline(*(self.questions[name].to_numpy(np.float32) for name in names))

    @property
    def excess(self) -> np.ndarray:
        """Image share minus its uniform baseline: (question, layer, head, QUERY_GROUPS)."""
        return self.image_share - self.baseline[:, None, None, None]


def read_attention(folder: str | Path) -> AttentionTable:
    """Open the shards that `extract_attention` wrote, in order.

    FileNotFoundError where there are none; ValueError where they are of different models, or do
    not hold all questions.
    """
    paths = sorted(Path(folder).glob("part-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no attention shards: run extract_attention first.")
    source = read_source(paths[0])
    if "measures" not in source or "dtype" not in source:
        raise ValueError(
            f"{paths[0]} does not say which measures it holds (an earlier version wrote it):"
            " empty the folder."
        )
    for path in paths:
        if read_source(path) != source:
            raise ValueError(f"{path} has {read_source(path)}, but {paths[0].name} has {source}.")
    columns = [name for name in pq.read_schema(paths[0]).names if name not in source["measures"]]
    parts = [pq.read_table(path, columns=columns) for path in paths]
    questions = pa.concat_tables(parts).to_pandas()
    if len(questions) != source["questions"]:
        raise ValueError(
            f"{folder} holds {len(questions)} of {source['questions']} questions:"
            " run extract_attention again."
        )
    return AttentionTable(questions, paths, measure_shapes(source), source["dtype"])


def read_source(path: Path) -> dict:
    """What `describe_source` said when a shard was written; ValueError where it is no shard."""
    try:
        return json.loads(pq.read_schema(path).metadata[b"source"])
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no attention shard: delete it and extract again.") from error


# ------------------------------------------------------------------------------ measures of a study


def measure_once(
    study: Study,
    name: str,
    measure: Callable[[Path], None],
    once: Callable = cached_step,
    **inputs: object,
) -> Path:
    """Make run_dir/<name> unless it is up to date; returns the folder.

    measure: gets the folder to write to, which may hold what a killed call left. inputs: what the
    step depends on beside the study's model, data set and sizes, and this room's code. once: how a
    step is done once; `tools.launch` passes a form for several processes.
    """
    rooms = ("helpers/data", "helpers/model", "helpers/attention")
    known = {
        **study.settings("extract_batch_size", "shard_size"),
        "model": read_record(study.run_dir / "model")["fingerprint"],
        "dataset": read_record(study.run_dir / "dataset")["fingerprint"],
        "code": source_digest(*rooms),
    }
    return once(study.folder() / name, measure, {**known, **inputs})


def extract_once(
    study: Study,
    name: str,
    model: nn.Module,
    encoded: EncodedQuestions,
    measure: Measure = attention_measures,
    layout: Layout = MEASURES,
    once: Callable = cached_step,
    process: tuple[int, int] = (0, 1),
    **inputs: object,
) -> AttentionTable:
    """`extract_attention` to run_dir/<name>, unless it is up to date; returns the table.

    model: in the precision to measure in (see `in_measuring_precision`). The step depends on that
    precision and not on the setting, so a table begun on a GPU in half precision is begun again on
    a CPU. process, measure, layout: see `extract_attention`; once, inputs: see `measure_once`.
    """

    def extract(folder: Path) -> None:
        sizes = (study.extract_batch_size, study.shard_size)
        extract_attention(model, encoded, folder, *sizes, process, measure, layout)

    dtype = str(model.dtype)
    return read_attention(measure_once(study, name, extract, once, dtype=dtype, **inputs))


def measure_attention(
    study: Study,
    model: nn.Module,
    encoded: EncodedQuestions,
    untrained: bool = False,
    once: Callable = cached_step,
    process: tuple[int, int] = (0, 1),
) -> AttentionTable:
    """Measure the attention of every validation question; once.

    model: the fine-tuned model, or with `untrained` its `random_weight_model`. Kept in
    run_dir/attention or run_dir/attention_untrained. once, process: see `extract_once`.
    """
    name = "attention_untrained" if untrained else "attention"
    inputs = study.settings("seed") if untrained else {}
    model = in_measuring_precision(model, study)
    return extract_once(study, name, model, encoded, once=once, process=process, **inputs)


def load_attention(study: Study, untrained: bool = False) -> AttentionTable:
    """The table that notebook 03 measured; FileNotFoundError that names 03 where it is missing."""
    name = "attention_untrained" if untrained else "attention"
    return read_attention(require(study.folder() / name, made_by="03_layer_attention"))


def in_measuring_precision(model: nn.Module, study: Study) -> nn.Module:
    """The model in the precision that attention is measured in: itself, or a copy."""
    dtype = choose_dtype(study.precision, model.device.type)
    return model if model.dtype == dtype else copy.deepcopy(model).to(dtype)


def choose_dtype(setting: str, device: str) -> torch.dtype:
    """Half precision on a GPU, unless the setting `precision` says otherwise; float32 on a CPU.

    Half is slower on a CPU. "auto" is fp16, which has eight times the resolution of bf16. Against
    fp32 single splits of the phantom differ by at most 0.01 in fp16 and 0.1 in bf16, averages far
    less.
    """
    halves = {"auto": torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16}
    return torch.float32 if device == "cpu" else halves.get(setting, torch.float32)


def sample_questions(n: int, count: int, seed: int, method: str = "choice") -> np.ndarray:
    """Rows of at most `count` of n questions, drawn without replacement; in ascending order.

    method: "choice" or "permutation" of NumPy's generator. Both are simple random samples, but not
    the same one of a seed. Each measure keeps its own, so that its numbers stay what they were.
    """
    generator, count = np.random.default_rng(seed), min(count, n)
    if method == "permutation":
        return np.sort(generator.permutation(n)[:count])
    return np.sort(generator.choice(n, count, replace=False))


def name_heads(table: pd.DataFrame) -> pd.Series:
    """L3H7 for each row of a table with columns layer and head; L3 where it has no heads."""
    names = "L" + table["layer"].astype(str)
    return names + "H" + table["head"].astype(str) if "head" in table else names


def random_weight_model(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with random weights from `seed`: a model that has learnt nothing.

    Patch positions and CLS tokens are random too; transformers starts them at zero, where no
    trained ViLT has them. The caller's random state is untouched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA as well
        random = type(model)(copy.deepcopy(model.config))
        embeddings = random.vilt.embeddings
        for parameter in (embeddings.cls_token, embeddings.position_embeddings):
            nn.init.normal_(parameter, std=model.config.initializer_range)
    random.tokenizer = model.tokenizer
    return random.to(next(model.parameters()).device).eval()
