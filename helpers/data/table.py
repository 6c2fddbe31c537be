"""Questions of your own: a table of pictures, questions and answers, in the columns of VQAv2."""

import csv
import warnings
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
from datasets import Dataset

from helpers.data.vqa import (
    COLUMNS,
    FAMILIES,
    N_ANSWERS,
    QUESTION_TYPES,
    has_words,
    question_type,
    rank,
    warn_left_out,
)

TABLE = "questions.csv"  # in a study's data_root, it is that study's data


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
        if isinstance(table.features.get("image"), datasets.Image):
            table = table.cast_column("image", datasets.Image(decode=False))
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
    given = {answer.lower() for answer in answers}
    numbers = bool(given) and all(answer.isdigit() for answer in given)
    return {
        "question_id": number, "image": image, "question": row["question"], "family": family,
        "question_type": kind, "answers": answers,
        "answer_type": "yes/no" if given & {"yes", "no"} else "number" if numbers else "other",
        "multiple_choice_answer": rank(answers)[0] if answers else "",
    }  # fmt: skip
