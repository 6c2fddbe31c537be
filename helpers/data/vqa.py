"""VQAv2 as it comes, and a table of your own: types, official accuracy, targets, subsets, words."""

import csv
import itertools
import json
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.types import FailFast
from torch import nn
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from helpers.run.cache import ROOT

FAMILIES = (
    "what", "what color", "where", "why", "how many", "how", "who", "which", "is/are", "other"
)  # fmt: skip
_TYPES = (ROOT / "data" / "question_types.csv").read_text("utf-8").splitlines()
QUESTION_TYPES = dict(csv.reader(_TYPES[1:]))

SPLITS = ("train", "val")
# kind of file: (json, official zip that holds it), for split.format(split, split.title())
FILES = {
    "questions": ("v2_OpenEnded_mscoco_{0}2014_questions.json", "v2_Questions_{1}_mscoco.zip"),
    "annotations": ("v2_mscoco_{0}2014_annotations.json", "v2_Annotations_{1}_mscoco.zip"),
}
COLUMNS = Features({
    "question_id": Value("int64"), "image_id": Value("int64"), "image": Image(),
    "question": Value("string"), "question_type": Value("string"), "family": Value("string"),
    "answers": List(Value("string")), "multiple_choice_answer": Value("string"),
})  # fmt: skip
TABLE = "questions.csv"  # in a study's data_root, it is that study's data
OFFICIAL = "get the official file"
N_ANSWERS = 10  # annotators a question
MAX_QUESTIONS = 50_000  # that predict_from_words learns from: 0.6 GB of targets, and of gradients

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,\d")
# The official pattern means to keep the points of numbers; its lookbehind is mistyped, so that it
# drops every point that no digit follows. It also hands re.UNICODE (32) to sub as the count.
POINT = re.compile(r"\.(?!\d)")
MAX_POINTS = 32
NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS.split())} | {"none": "0"}
# The official table has each of these written without one of its apostrophes. It maps no "shes" or
# "lets", takes the apostrophe out of "somebody'd", and its entries with a capital never apply.
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've"""
CONTRACTED = {
    full[: mark.start()] + full[mark.end() :]: full
    for full in CONTRACTIONS.split()
    for mark in re.finditer("'", full)
} | {"somebody'd": "somebodyd"}


def question_type(question: str) -> str:
    """The official type of a question: its longest beginning in the list of 65 types."""
    words = question.lower().strip().removesuffix("?").split()
    for length in range(len(words), 0, -1):
        if (beginning := " ".join(words[:length])) in QUESTION_TYPES:
            return beginning
    return "none of the above"


def question_family(question_type: str) -> str:
    """The family (one of FAMILIES) of an official question type; ValueError for any other text."""
    if question_type not in QUESTION_TYPES:
        raise ValueError(f"{question_type!r} is none of the 65 in data/question_types.csv")
    return QUESTION_TYPES[question_type]


def order_families(names: Iterable[str]) -> list[str]:
    """Each name once, in the order of FAMILIES; other names last, as they appear."""
    rank_of = {name: place for place, name in enumerate(FAMILIES)}
    return sorted(dict.fromkeys(names), key=lambda name: rank_of.get(name, len(FAMILIES)))


Number = Annotated[int, Field(ge=0, lt=10**18)]
Text = Annotated[str, Field(min_length=0)]  # any limit makes pydantic refuse half characters
TypeName = Annotated[str, AfterValidator(lambda name: question_family(name) and name)]
RECORDS = {  # the fields of the official files that are read
    "questions": TypedDict(
        "Question", {"question_id": Number, "image_id": Number, "question": Text}
    ),
    "annotations": TypedDict("Annotation", {
        "question_id": Number, "image_id": Number, "question_type": TypeName,
        "multiple_choice_answer": Text, "answers": list[TypedDict("Answer", {"answer": Text})],
    }),
}  # fmt: skip


def _clean_answer(answer: str) -> str:
    """What the official evaluator does to every answer and prediction."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=2**16)
def normalize_answer(answer: str) -> str:
    """The official normalisation of punctuation, number words, articles and contractions.

    Its oddities are kept: a mark becomes a space, or nothing if it stands beside a space anywhere
    in the answer or if the answer has a comma between digits; apostrophes and colons stay. Source:
    the VQA API's evaluator, https://github.com/GT-Vision-Lab/VQA.
    """
    cleaned = _clean_answer(answer)
    squeeze = DIGIT_COMMA.search(cleaned) is not None
    marks = {
        mark: "" if squeeze or f"{mark} " in cleaned or f" {mark}" in cleaned else " "
        for mark in PUNCTUATION
    }
    text = POINT.sub("", cleaned.translate(str.maketrans(marks)), count=MAX_POINTS)
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTED.get(word, word) for word in words if word not in ("a", "an", "the"))


def _comparable(answers: Sequence[str]) -> tuple[list[str], bool]:
    """Answers as the evaluator compares them, and whether it normalises (unless unanimous)."""
    if isinstance(answers, str) or not len(answers):
        raise ValueError(f"expected the answers of one question, a list of texts, not {answers!r}")
    cleaned = [_clean_answer(answer) for answer in answers]
    if len(set(cleaned)) == 1:
        return cleaned, False
    return [normalize_answer(answer) for answer in cleaned], True


def _leave_one_out(matches: int, n: int) -> float:
    """Mean over the n ways to leave one answer out of min(1, matches among the rest / 3).

    With fewer answers than VQAv2's ten, where that would not reach 1: whether there is a match.
    """
    if n < N_ANSWERS:
        return float(matches > 0)
    return (matches * min(3, matches - 1) + (n - matches) * min(3, matches)) / (3 * n)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official VQA accuracy of a prediction, in [0, 1], as the 2021 evaluator computes it.

    answers: the question's ten; with fewer, any match counts as 1. They and the prediction are
    normalised only where they differ, so "a dog" scores 0 against ten times "dog". Source: as
    normalize_answer.
    """
    compared, normalised = _comparable(answers)
    prediction = normalize_answer(prediction) if normalised else _clean_answer(prediction)
    return _leave_one_out(compared.count(prediction), len(compared))


def score_answers(
    predictions: np.ndarray | Sequence[str],
    answers: Iterable[Sequence[str]],
    labels: Mapping[int, str] | Sequence[str] | None = None,
) -> np.ndarray:
    """VQA accuracy of a model's answers: `score_answers(table["prediction"], table["answers"])`.

    predictions: (question, ...) answers, or with labels their numbers, where -1 stands for none.
    answers: each question's ten, or [] where none is known. labels: the answer of each number.
    Returns float64 (question, ...) in [0, 1], NaN for no answer or none known. Each distinct answer
    of a question is scored once, so that many predictions a question cost little more than one.
    """
    predictions = np.asarray(predictions)
    scores = np.full_like(predictions, np.nan, dtype=float)
    for row, given in zip(range(len(predictions)), answers, strict=True):
        if not len(given):
            continue
        of_question = predictions[row : row + 1].ravel().tolist()
        score_of = {-1: np.nan} if labels is not None else {}
        for key in set(of_question) - score_of.keys():
            score_of[key] = vqa_accuracy(key if labels is None else labels[key], given)
        scores[row] = np.reshape([score_of[key] for key in of_question], predictions.shape[1:])
    return scores


def soft_targets(answers: Sequence[str], vocabulary: Sequence[str]) -> np.ndarray:
    """Training targets (len(vocabulary),) float32: the accuracy that each entry would score.

    With ten answers: 0, 0.3, 0.6, 0.9 and 1 for 0, 1, 2, 3 and 4 or more matches. Without any: 0.
    """
    targets = np.zeros(len(vocabulary), dtype=np.float32)
    if not len(answers):
        return targets
    compared, normalised = _comparable(answers)
    entries = _index_vocabulary(tuple(vocabulary), normalised)
    for answer, matches in Counter(compared).items():
        targets[entries.get(answer, [])] = _leave_one_out(matches, len(compared))
    return targets


@lru_cache(maxsize=8)
def _index_vocabulary(vocabulary: tuple[str, ...], normalised: bool) -> dict[str, list[int]]:
    """Positions of the entries that count as each answer ("hot dog" and "hot-dog")."""
    entries: dict[str, list[int]] = {}
    compare = normalize_answer if normalised else _clean_answer
    for position, entry in enumerate(vocabulary):
        entries.setdefault(compare(entry), []).append(position)
    return entries


def build_vocabulary(answers: Iterable[Sequence[str]], max_answers: int) -> list[str]:
    """The answers a model chooses from: the most frequent majority answers of the questions.

    answers: each training question's ten. Ties go to the alphabet, in a question and in frequency.
    """
    answers = [of_question for of_question in answers if len(of_question)]
    if not answers:
        remedy = "finetune=False measures a fine-tuned checkpoint as it is"
        raise ValueError(f"no question has an answer to train on: {remedy}")
    majorities = Counter(rank(map(_clean_answer, of_question))[0] for of_question in answers)
    return rank(majorities)[:max_answers]


def rank(items: Iterable[str]) -> list[str]:
    """Distinct items, the most frequent first, ties in alphabetical order."""
    counts = Counter(items)
    return sorted(counts, key=lambda item: (-counts[item], item))


def read_vqa(root: str | Path, split: str) -> Dataset:
    """Read VQAv2's official files (json, or their zips): `read_vqa(root, "val")`, a row a question.

    root: folder that holds them. split: "train" or "val". Columns: see COLUMNS; `image` is a path
    under root that is opened when read (`prepare.check_images` says whether it can be).
    A broken file raises one ValueError that names file, place and remedy; questions without
    annotation, ten answers or words are left out, with one counted warning a kind.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    root = Path(root)
    file, questions = _read_records(root, split, "questions")
    answers_file, annotations = _read_records(root, split, "annotations")
    both = questions.join(annotations.rename(columns={"image_id": "annotated"}), how="inner")
    if both.empty:
        problem = "share no question: are they of the same split?"
        raise ValueError(f"{file} and {answers_file} {problem}")
    if len(moved := both.index[both["image_id"] != both["annotated"]]):
        problem = f"question_id {moved[0]} is about another image than in {file.name}"
        raise ValueError(f"{answers_file}: {problem}")
    wordless = both.index[~both["question"].map(has_words)]
    odd = both.index[both["answers"].map(len) != N_ANSWERS]
    for place, what, left_out in (
        (file, "questions without annotation", questions.index.difference(annotations.index)),
        (answers_file, "annotations without question", annotations.index.difference(both.index)),
        (file, "questions without words", wordless),
        (answers_file, f"questions without exactly {N_ANSWERS} answers", odd),
    ):
        warn_left_out(place, what, sorted(left_out))
    both = both.drop(wordless.union(odd)).reset_index()
    if both.empty:
        raise ValueError(f"{answers_file}: no question has exactly {N_ANSWERS} answers; {OFFICIAL}")
    both["family"] = both["question_type"].map(QUESTION_TYPES)
    folder = f"{root.absolute()}/"  # joined as text: pathlib takes nine times as long
    paths = (folder + name_image(split, image) for image in both["image_id"])
    both["image"] = [{"bytes": None, "path": path} for path in paths]
    return Dataset.from_pandas(both[list(COLUMNS)], COLUMNS, preserve_index=False)


def has_words(question: str) -> bool:
    """Whether a tokenizer finds anything in a question: a character that can be seen."""
    return any(mark.isprintable() and not mark.isspace() for mark in question)


def name_image(split: str, image_id: int) -> str:
    """COCO's file of an image below the data's folder: val2014/COCO_val2014_000000262148.jpg."""
    return f"{split}2014/COCO_{split}2014_{image_id:012d}.jpg"


def _read_records(root: Path, split: str, kind: str) -> tuple[Path, pd.DataFrame]:
    """The file that was read, and its checked records by question_id, in the file's order."""
    file, data = _read_json(root, split, kind)
    data = data if isinstance(data, dict) else {}
    other = SPLITS[split == SPLITS[0]]
    if data.get("data_subtype") == f"{other}2014":
        raise ValueError(f"{file}: holds the {other} split (data_subtype); expected {split}")
    schema = TypeAdapter(Annotated[list[RECORDS[kind]], FailFast()])
    try:
        records = schema.validate_python(data.get(kind), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, (kind, *problem["loc"])))  # annotations.1.answers.0.answer
        raise ValueError(f"{file}: {place}: {problem['msg']}; {OFFICIAL}") from None
    for record in records if kind == "annotations" else ():
        record["answers"] = tuple(item["answer"] for item in record["answers"])
    frame = pd.DataFrame(records, columns=list(RECORDS[kind].__annotations__))
    copies = frame.duplicated()
    numbers = frame.loc[~copies, "question_id"]
    if len(twice := numbers[numbers.duplicated()]):
        raise ValueError(f"{file}: question_id {twice.iloc[0]} occurs twice and differs")
    warn_left_out(file, f"exact copies of other {kind}", frame.loc[copies, "question_id"].tolist())
    return file, frame[~copies].set_index("question_id")


def _read_json(root: Path, split: str, kind: str) -> tuple[Path, object]:
    """The file of a kind that is there, itself or its official zip, and what is in it, parsed."""
    name, zip_name = (pattern.format(split, split.title()) for pattern in FILES[kind])
    if not (file := root / name).is_file() and not (file := root / zip_name).is_file():
        remedy = "the setting download=True fetches VQAv2"
        raise FileNotFoundError(f"{root} has neither {name} nor {zip_name}: {remedy}")
    try:
        if file.name == name:
            return file, json.loads(file.read_bytes())
        with zipfile.ZipFile(file) as archive:
            member = next((m for m in archive.namelist() if Path(m).name == name), name)
            return file, json.loads(archive.read(member))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file}: truncated or not JSON ({error}); get the file again") from None


def warn_left_out(place: str | Path, what: str, ids: Sequence[int]) -> None:
    """One warning for all of a kind, if there are any."""
    if len(ids):
        first = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
        warnings.warn(f"{place}: {len(ids)} {what}, left out (question_id {first})", stacklevel=3)


def read_table(table: str | Path | Dataset, pictures: str | Path | None = None) -> Dataset:
    """Your own questions as `read_vqa` gives VQAv2's: `read_table("questions.csv", "pictures")`.

    table: a CSV file in UTF-8, or a Dataset, a row a question, with the columns `image` (a file
    below the folder `pictures`, by default the CSV's own; in a Dataset also the picture itself) and
    `question`; and where there are any, `answer` (a text) or `answers` (a list; in a CSV parted by
    |), `question_type`, and `family` (one of FAMILIES).
    question_id is the row's number, from 1, and rows with one image share its image_id; a type that
    is not given follows the question's words. ValueError for a column that is lacking and for a
    cell that cannot be used. Questions without words, or without answers where others have some,
    are left out with a warning; another says what accuracy is with fewer than ten answers or none.
    """
    if isinstance(table, Dataset):
        place, folder = "the Dataset", Path(pictures or "")
        if isinstance(table.features.get("image"), Image):
            table = table.cast_column("image", Image(decode=False))
        rows = table.to_list()
    else:
        place, folder = Path(table).name, Path(pictures or Path(table).parent)
        rows = _read_csv(Path(table))
    for name in ("image", "question"):
        if rows and name not in rows[0]:
            raise ValueError(f"{place}: it has no column {name}")
    rows = [_read_row(f"{place}, row {n}", n, row, folder) for n, row in enumerate(rows, 1)]
    wordless = [row["question_id"] for row in rows if not has_words(row["question"])]
    silent = [row["question_id"] for row in rows if not row["answers"]]
    silent = silent if len(silent) < len(rows) else []  # a table without answers is for attention
    warn_left_out(place, "questions without words", wordless)
    warn_left_out(place, "questions without answers", silent)
    rows = [row for row in rows if row["question_id"] not in {*wordless, *silent}]
    if not rows:
        raise ValueError(f"{place}: it holds no question")
    n_few = sum(len(row["answers"]) < N_ANSWERS for row in rows)
    what = f"{n_few} questions have fewer than {N_ANSWERS} answers"
    effect = "accuracy is exact match with any of them"
    if not rows[0]["answers"]:
        what, effect = "no question has an answer", "attention can be measured, accuracy not"
    if n_few:
        warnings.warn(f"{place}: {what}, so {effect}", stacklevel=2)
    keys = [row["image"]["bytes"] or row["image"]["path"] for row in rows]
    for row, number in zip(rows, pd.factorize(pd.Series(keys, dtype=object))[0], strict=True):
        row["image_id"] = int(number) + 1
    return Dataset(pa.Table.from_pylist(rows, schema=COLUMNS.arrow_schema))


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        problem = f"it cannot be read, save it as CSV in UTF-8 ({error})"
        raise ValueError(f"{path.name}: {problem}") from None
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            remedy = "put double quotes around a text with a comma"
            raise ValueError(f"{path.name}, row {number}: not a cell for each column; {remedy}")
    return rows


def _read_row(place: str, number: int, row: dict, folder: Path) -> dict:
    """A row in the columns of `read_vqa`, but for the image_id."""
    image, answers = row["image"], row.get("answers", row.get("answer"))
    if not image:
        raise ValueError(f"{place}: no image")
    if isinstance(image, str):
        image = {"bytes": None, "path": str(folder.absolute() / image)}
    if isinstance(answers, str | None):
        answers = (answers or "").split("|") if "answers" in row else [answers or ""]
    answers = [answer.strip() if isinstance(answer, str) else answer for answer in answers]
    answers = [answer for answer in answers if answer != ""]
    for name, value in [("question", row["question"]), *(("answers", text) for text in answers)]:
        if not isinstance(value, str):
            raise ValueError(f"{place}: no usable '{name}'")
    kind = row.get("question_type") or question_type(row["question"])
    family = row.get("family") or QUESTION_TYPES.get(kind, "other")
    if family not in FAMILIES:
        raise ValueError(f"{place}: family {family!r} is none of {', '.join(FAMILIES)}")
    return {
        "question_id": number, "image": image, "question": row["question"], "family": family,
        "question_type": kind, "answers": answers,
        "multiple_choice_answer": rank(answers)[0] if answers else "",
    }  # fmt: skip


def stratified_subset(dataset: Dataset, per_family: int | None, seed: int) -> Dataset:
    """At most `per_family` questions of each family (None: all), in the order of the source.

    The seed orders the images; each gives its questions of the families that are not full yet. So
    few images serve many questions, and a small family keeps all of its own.
    """
    if per_family is None:
        return dataset
    frame = dataset.select_columns(["image_id", "family"]).to_pandas()
    images = np.unique(frame["image_id"])
    turn = np.random.default_rng(seed).permutation(len(images))
    frame["turn"] = turn[np.searchsorted(images, frame["image_id"])]
    # the first of each family in this order are those that drawing one by one would keep
    kept = frame.sort_values("turn", kind="stable").groupby("family").head(per_family).index
    return dataset.select(np.sort(kept))


def split_by_image(dataset: Dataset, validation_share: float, seed: int) -> DatasetDict:
    """`train` and `validation`, with no image on both sides; the share is one of the images."""
    image_ids = np.asarray(dataset["image_id"][:])
    images = np.unique(image_ids)
    if len(images) < 2:
        raise ValueError(f"cannot split {len(images)} images")
    n_held_out = min(max(round(validation_share * len(images)), 1), len(images) - 1)
    held_out = np.isin(image_ids, np.random.default_rng(seed).permutation(images)[:n_held_out])
    train, validation = (dataset.select(np.flatnonzero(side)) for side in (~held_out, held_out))
    return DatasetDict({"train": train, "validation": validation})


def predict_from_words(
    train: Dataset, validation: Dataset, max_answers: int, device: str = "cpu"
) -> pd.DataFrame:
    """Answer every question from its words alone: a linear classifier over words and word pairs.

    Uses words and pairs that two or more training questions have, and at most MAX_QUESTIONS evenly
    spaced questions. Binary cross-entropy on the soft targets; full batches, 150 steps of Adam from
    zero, so that nothing is random. Returns question_id, prediction.
    """
    train = train.select(range(0, len(train), -(-len(train) // MAX_QUESTIONS)))
    answers = build_vocabulary(train["answers"], max_answers)
    bags = [[_bag(question) for question in part["question"]] for part in (train, validation)]
    counts = Counter(itertools.chain.from_iterable(bags[0]))
    index = {word: i for i, word in enumerate(sorted(word for word in counts if counts[word] > 1))}
    seen, new = ([numbers.to(device) for numbers in _number_words(part, index)] for part in bags)
    dense = np.stack([soft_targets(list(given), answers) for given in train["answers"]])
    targets = torch.from_numpy(dense).to(device)
    weights = torch.zeros(len(index), len(answers), device=device)
    scores = nn.EmbeddingBag.from_pretrained(weights, freeze=False, mode="sum")
    bias = nn.Parameter(torch.zeros(len(answers), device=device))
    optimizer = torch.optim.Adam([scores.weight, bias], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(scores(*seen) + bias, targets).backward()
        optimizer.step()
    with torch.no_grad():
        best = [answers[i] for i in (scores(*new) + bias).argmax(dim=1).tolist()]
    return pd.DataFrame({"question_id": validation["question_id"], "prediction": best})


def _bag(question: str) -> set[str]:
    words = question.lower().removesuffix("?").split()
    return {*words, *(" ".join(pair) for pair in itertools.pairwise(words))}


def _number_words(bags: list[set[str]], index: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bags as EmbeddingBag reads them: all known words' numbers, and where each bag starts."""
    numbers = [[index[word] for word in sorted(bag) if word in index] for bag in bags]
    starts = np.cumsum([0, *map(len, numbers)])[:-1]
    flat = list(itertools.chain.from_iterable(numbers))
    return torch.tensor(flat, dtype=torch.long), torch.from_numpy(starts)
