"""Measures of a whole data set: a row a question, made once, continued after a kill.

    table = measure_attention(study, model, encoded)    # of all validation questions
    table.image_share                                   # (question, layer, head, QUERY_GROUPS)

Other measures of a study go through `extract_once`, and what is no table through `measure_once`.
"""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers.attention.image_share import (
    QUERY_GROUPS,
    Batch,
    attention_measures,
    image_share,
    special_mass,
    uniform_baseline,
)
from helpers.attention.word_classes import LEXICON
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import patch_grids
from helpers.model.vilt import hash_model, random_weight_model
from helpers.run.cache import cached_step, hash_file, read_record, require, source_digest
from helpers.run.settings import Study
from helpers.stats.models import mean_over_models

Measure = Callable[[nn.Module, Batch], dict[str, Tensor]]
Labels = Mapping[int, str] | Sequence[str]  # the answer of each number
# how far a share in lower precision may be from that in float32, and rounding there
TOLERANCES = {"torch.float32": 1e-4, "torch.float16": 0.02, "torch.bfloat16": 0.2}
RANDOM_QUESTIONS = 500  # that random-weight models are measured on
COUNTS = ["n_words", "n_patches", "grid_rows", "grid_cols"]


def extract_attention(
    model: nn.Module,
    encoded: EncodedQuestions,
    folder: str | Path,
    batch_size: int,
    shard_size: int,
    process: tuple[int, int] = (0, 1),
    measure: Measure = attention_measures,
) -> Path:
    """Measure every question and write a row each to folder/part-00000.parquet, ...

    measure: gives a batch's measures by name, the question first, and "logits". All but logits are
    kept, as float32 or int32. process: (rank, world_size); rank r measures shards r, r +
    world_size, ...
    Columns: question_id, image_id, family, question_type, COUNTS, prediction, accuracy (NaN without
    answers), and the measures, flattened; rows in the data set's order. Whole shards are kept, so a
    killed run continues; memory holds one. `read_attention` reads them. ValueError where the folder
    holds shards of other weights or questions, and for numbers that are not finite.
    """
    folder, (rank, world_size) = Path(folder), process
    folder.mkdir(parents=True, exist_ok=True)
    source = describe_source(model, encoded, shard_size)
    for path in sorted(folder.glob("part-*.parquet")):
        if (found := read_facts(path)[0]) != source:
            raise ValueError(f"{path} is of {found}, not {source}: empty the folder.")
    every, starts = range(len(encoded)), range(0, len(encoded), shard_size)
    own = [*enumerate(every[start:][:shard_size] for start in starts)][rank::world_size]
    total = sum(len(rows) for _, rows in own)
    with tqdm(total=total, desc="attention", unit="question") as progress:
        for number, rows in own:
            path = folder / f"part-{number:05d}.parquet"
            if path.exists():
                progress.update(len(rows))
            else:
                shard = measure_rows(model, encoded, rows, batch_size, progress, measure)
                write_shard(path, *shard, source)
    return folder


def describe_source(model: nn.Module, encoded: EncodedQuestions, shard_size: int) -> dict:
    """What a folder's shards share: the model and the questions."""
    digest = hashlib.sha256(encoded.questions["question_id"].to_numpy().tobytes())
    for parameter in model.parameters():
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    facts = {"dtype": str(model.dtype), "questions": len(encoded), "shard_size": shard_size}
    return {"weights and questions": digest.hexdigest()[:16], **facts}


def measure_rows(
    model: nn.Module,
    encoded: EncodedQuestions,
    rows: range,
    batch_size: int,
    progress: tqdm,
    measure: Measure,
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """One shard, in the data set's order: its questions, and their measures by name."""
    parts, order = [], []
    for indices, batch in encoded.batches(batch_size, rows):
        found = measure(model, batch)
        if len(broken := (~found["logits"].isfinite().all(1)).nonzero()):
            question = encoded.questions["question_id"].iloc[indices[broken[0]]]
            half = model.dtype != torch.float32
            advice = "; use precision='fp32'." if half else ": the model's weights are broken."
            where = f"question_id {question}: the logits in {model.dtype}"
            raise ValueError(f"{where} are not finite{advice}")
        grids = patch_grids(batch["pixel_mask"], model.config.patch_size)[batch["picture_of"]]
        words = batch["attention_mask"].sum(1) - 2
        counts = torch.column_stack([words, grids.prod(1), grids])
        found |= {"answers": found["logits"].argmax(1), "counts": counts}
        parts.append({
            name: (values.float() if values.is_floating_point() else values.int()).cpu()
            for name, values in found.items() if not name.endswith("logits")
        })  # fmt: skip
        order += indices
        progress.update(len(indices))
    place = np.argsort(order)
    measures = {name: torch.cat([part[name] for part in parts])[place].numpy() for name in parts[0]}
    predictions = [model.config.id2label[answer] for answer in measures.pop("answers").tolist()]
    names = ("question_id", "image_id", "family", "question_type")
    questions = encoded.questions.filter(names).iloc[rows].reset_index(drop=True)
    questions = questions.assign(prediction=predictions, accuracy=encoded.score(predictions, rows))
    questions[COUNTS] = measures.pop("counts")
    return questions, measures


def write_shard(
    path: Path, questions: pd.DataFrame, measures: dict[str, np.ndarray], source: dict
) -> None:
    """One Arrow table, in which a measure is a fixed-size list of its flattened axes."""
    table = pa.Table.from_pandas(questions, preserve_index=False)
    for name, values in measures.items():
        flat = pa.array(values.reshape(-1))
        element = pa.field("element", flat.type, nullable=False)  # reads 1.3 times as fast
        kind, shape = pa.list_(element, values[0].size), {"shape": json.dumps(values.shape[1:])}
        column = pa.FixedSizeListArray.from_arrays(flat, type=kind)
        table = table.append_column(pa.field(name, kind, False, shape), column)
    table = table.replace_schema_metadata({"source": json.dumps(source)})
    temporary = path.with_name(f".{path.name}.tmp")
    # dictionaries of floats that hardly repeat cost time and save nothing
    pq.write_table(table, temporary, use_dictionary=list(questions.columns))
    os.replace(temporary, path)


class AttentionTable:
    """Measures of all questions: table.split is (question, layer, head, QUERY_GROUPS, KEY_GROUPS).

    questions: the other columns. dtype: what the model ran in, such as "torch.float16". Each
    measure (see `attention_measures`) is an attribute whose first axis is the question, read from
    the shards when first asked for, and then kept. At 200,000 questions x 144 heads a split takes
    1.7 GB; `image_share`, `excess` and `reduce` read it shard by shard and keep a part.
    """

    def __init__(
        self, questions: pd.DataFrame, paths: list[Path], shapes: dict[str, list[int]], dtype: str
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
        whole, start = None, 0
        for path in self._paths:
            flat = pq.read_table(path, columns=[name])[name].combine_chunks().flatten()
            part = function(flat.to_numpy(zero_copy_only=False).reshape(-1, *self._shapes[name]))
            if whole is None:
                whole = np.empty((len(self.questions), *part.shape[1:]), part.dtype)
            whole[start : start + len(part)] = part
            start += len(part)
        return whole

    @property
    def tolerance(self) -> float:
        """How far a share in this table may be from the same measured in float32."""
        return TOLERANCES[self.dtype]

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

    def points_lost(self, name: str, encoded: EncodedQuestions, labels: Labels) -> np.ndarray:
        """Points of VQA accuracy that each question loses by other answers: (question, ...).

        name: of the measure that holds their numbers, such as "cut_answer". encoded: holds the
        table's questions. From -100 to 100, below 0 where the other is better; NaN without answers.
        """
        ids = pd.Index(encoded.questions["question_id"])
        rows = ids.get_indexer(self.questions["question_id"])
        scores = encoded.score(getattr(self, name), rows, labels)
        accuracy = self.questions["accuracy"].to_numpy().reshape(-1, *[1] * (scores.ndim - 1))
        return 100 * (accuracy - scores)


def read_attention(folder: str | Path) -> AttentionTable:
    """Open the shards that `extract_attention` wrote, in order.

    FileNotFoundError where there are none; ValueError where they differ or miss questions.
    """
    paths = sorted(Path(folder).glob("part-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no attention shards: run extract_attention first.")
    source, shapes = read_facts(paths[0])
    for path in paths:
        if (found := read_facts(path)) != (source, shapes):
            raise ValueError(f"{path} has {found}, but {paths[0].name} has {(source, shapes)}.")
    columns = [name for name in pq.read_schema(paths[0]).names if name not in shapes]
    parts = [pq.read_table(path, columns=columns) for path in paths]
    questions = pa.concat_tables(parts).to_pandas()
    if len(questions) != source["questions"]:
        held = f"{len(questions)} of {source['questions']} questions"
        raise ValueError(f"{folder} holds {held}: run extract_attention again.")
    return AttentionTable(questions, paths, shapes, source["dtype"])


def read_facts(path: Path) -> tuple[dict, dict[str, list[int]]]:
    """What `describe_source` said of a shard, and each measure's axes after the question."""
    try:
        schema = pq.read_schema(path)
        source = json.loads(schema.metadata[b"source"])
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no attention shard of this version: delete it.") from error
    known = {field.name: field.metadata or {} for field in schema}
    shapes = {name: json.loads(each[b"shape"]) for name, each in known.items() if b"shape" in each}
    return source, shapes


def measure_once(
    study: Study,
    name: str,
    measure: Callable[[Path], None],
    once: Callable = cached_step,
    number: int = 0,
    **inputs: object,
) -> Path:
    """Make run_dir/<name> unless it is up to date; returns the folder.

    measure: gets the folder to write to, which may hold what a killed call left. number: which of
    the study's models; the second one's folder is <name>_1. inputs: what the step depends on beside
    model, data set, sizes, lexicon and code. once: how a step is done once; `tools.launch` passes a
    form for several processes.
    """
    known = study.settings("extract_batch_size", "shard_size") | {
        "model": hash_model(study, number),
        "dataset": read_record(study.run_dir / "dataset")["fingerprint"],
        "code": source_digest("helpers/data", "helpers/model", "helpers/attention"),
        "lexicon": hash_file(LEXICON),
    }
    folder = study.folder() / (f"{name}_{number}" if number else name)
    return once(folder, measure, {**known, **inputs})


def extract_once(
    study: Study,
    name: str,
    model: nn.Module,
    encoded: EncodedQuestions,
    measure: Measure = attention_measures,
    count: int | None = None,
    exact: bool = False,
    process: tuple[int, int] = (0, 1),
    **inputs: object,
) -> AttentionTable:
    """`extract_attention` to run_dir/<name>, unless it is up to date; returns the table.

    count: of the questions at most this many, drawn with the study's seed. exact: in the model's
    own precision, as small differences need, instead of `in_measuring_precision`, on which the step
    depends: a table begun in half precision on a GPU is begun again on a CPU. process, measure: see
    `extract_attention`; once, inputs, number: see `measure_once`.
    """
    if count is not None:
        encoded = encoded.select(sample_questions(len(encoded), count, study.seed))
        inputs |= {"seed": study.seed, "count": count}
    model = model if exact else in_measuring_precision(model, study)

    def extract(folder: Path) -> None:
        sizes = (study.extract_batch_size, study.shard_size)
        extract_attention(model, encoded, folder, *sizes, process, measure)

    dtype = str(model.dtype)
    return read_attention(measure_once(study, name, extract, dtype=dtype, **inputs))


def measure_attention(
    study: Study, model: nn.Module, encoded: EncodedQuestions, number: int = 0, **together: object
) -> AttentionTable:
    """Measure the attention of every validation question; once, in run_dir/attention.

    number: see `measure_once`. together: once and process of `extract_once`.
    """
    return extract_once(study, "attention", model, encoded, number=number, **together)


def measure_random_models(
    study: Study, model: nn.Module, encoded: EncodedQuestions, **together: object
) -> tuple[np.ndarray, list[AttentionTable]]:
    """What models that have learnt nothing attend to: the rows drawn, and a table for each model.

    study.random_models random-weight models of the architecture of `model`, from seeds study.seed,
    study.seed + 1, ..., on the same RANDOM_QUESTIONS of the encoded questions, drawn from the
    study's seed. Kept in run_dir/attention_random. together: as of `measure_attention`.
    """
    rows = sample_questions(len(encoded), RANDOM_QUESTIONS, study.seed)
    some, tables = encoded.select(rows), []
    for number in range(study.random_models):
        name, seed = f"attention_random/{number:02d}", study.seed + number
        random, inputs = random_weight_model(model, seed), {"rows": len(rows), "random_seed": seed}
        tables.append(extract_once(study, name, random, some, **inputs, **together))
    return rows, tables


def average_heads(table: AttentionTable) -> dict[str, np.ndarray]:
    """Measures by layer, mean over heads: name -> (question, layer, QUERY_GROUPS).

    image share, excess (minus uniform attention), special (on [CLS], [SEP], the image's CLS) and
    entropy (0: one key, 1: all keys alike).
    """
    special = table.reduce("split", special_mass)
    measures = {"image share": table.image_share, "excess": table.excess,
                "special": special, "entropy": table.entropy}  # fmt: skip
    return {name: values.mean(2) for name, values in measures.items()}


def tabulate_layers(
    tables: list[AttentionTable], random_tables: list[AttentionTable]
) -> pd.DataFrame:
    """`average_heads` by layer and query: means over models, and what random weights show.

    tables: of the same questions, one a model. Rows with model "trained" hold `mean_over_models`
    with its interval; those with "untrained" the mean, lowest and highest of the random models.
    reaches_answer: False for words and patches in the last layer, which nothing reads.
    """
    trained, random = ([*map(average_heads, each)] for each in (tables, random_tables))
    image_ids, random_ids = (each[0].questions["image_id"] for each in (tables, random_tables))
    parts = []
    for measure, values in trained[0].items():
        limits = (-1 if measure == "excess" else 0, 1)
        mean = mean_over_models([each[measure] for each in trained], image_ids, limits)
        spread = np.array([np.nanmean(each[measure], axis=0) for each in random])
        bounds = {"estimate": spread.mean(0), "low": spread.min(0), "high": spread.max(0)}
        untrained = mean._replace(n=len(random_ids), n_images=random_ids.nunique(), **bounds)
        axes = {"layer": range(values.shape[1]), "query": QUERY_GROUPS}
        for model, cells in {"trained": mean, "untrained": untrained}.items():
            parts.append(cells.to_table(axes).assign(measure=measure, model=model))
    table = pd.concat(parts, ignore_index=True)
    is_last = table["layer"] == table["layer"].max()
    return table.assign(reaches_answer=~is_last | (table["query"] == "cls"))


def load_attention(study: Study) -> AttentionTable:
    """The table that notebook 03 measured; FileNotFoundError that names 03 where it is missing."""
    return read_attention(require(study.folder() / "attention", made_by="03_layer_attention"))


def in_measuring_precision(model: nn.Module, study: Study) -> nn.Module:
    """The model in the precision that attention is measured in: itself, or a copy."""
    dtype = choose_dtype(study.precision, model.device.type)
    return model if model.dtype == dtype else copy.deepcopy(model).to(dtype)


def choose_dtype(setting: str, device: str) -> torch.dtype:
    """Half precision on a GPU, unless the setting `precision` says otherwise; float32 on a CPU.

    Half is slower on a CPU. "auto" is fp16: against fp32 single splits of the phantom differ by at
    most 0.01, in bf16 by 0.1, averages far less.
    """
    halves = {"auto": torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16}
    return torch.float32 if device == "cpu" else halves.get(setting, torch.float32)


def sample_questions(n: int, count: int, seed: int, method: str = "choice") -> np.ndarray:
    """Rows of at most `count` of n questions, drawn without replacement; in ascending order.

    method: of NumPy's generator, "choice" or "permutation": simple random samples, but not the same
    of a seed. Each measure keeps its own, so that its numbers stay what they were.
    """
    generator, count = np.random.default_rng(seed), min(count, n)
    if method == "permutation":
        return np.sort(generator.permutation(n)[:count])
    return np.sort(generator.choice(n, count, replace=False))


def name_heads(table: pd.DataFrame) -> pd.Series:
    """L3H7 for each row of a table with columns layer and head; L3 where it has no heads."""
    names = "L" + table["layer"].astype(str)
    return names + "H" + table["head"].astype(str) if "head" in table else names
