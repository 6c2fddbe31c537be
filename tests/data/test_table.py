"""Questions of one's own: a table becomes the same data set as VQAv2's files, whatever is in it."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from helpers.attention import attention_split
from helpers.data import prepare
from helpers.data.encode import EncodedQuestions
from helpers.data.vqa import COLUMNS, build_vocabulary, read_table, score_answers
from helpers.run.settings import Study

ROOT = Path(__file__).parents[2]


def write_table(folder: Path, text: str) -> Path:
    """A table, and a picture of noise for each name in it."""
    (folder / "questions.csv").write_text(text, encoding="utf-8")
    for number, name in enumerate(sorted(set(re.findall(r"^[\w-]+\.(?:jpg|png)", text, re.M)))):
        noise = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder / "questions.csv"


def read(path, pictures=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return read_table(path, pictures), [str(warning.message) for warning in caught]


@pytest.fixture
def documented(tmp_path):
    """The example of docs/own-data.md."""
    page = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    return write_table(tmp_path, re.search(r"```csv\n(.+?)```", page, re.DOTALL)[1])


def test_the_documented_example_is_read_as_vqav2(documented):
    dataset, notes = read(documented)
    assert dataset.features == COLUMNS
    table = dataset.remove_columns("image").to_pandas()
    assert table["question_id"].tolist() == [*range(1, 13)]
    assert table["image_id"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert [*table["multiple_choice_answer"][[1, 10, 11]]] == ["yes", "None", "n/a"]
    assert [*table["family"][:5]] == ["what", "is/are", "what color", "what", "how many"]
    assert dataset[4]["image"].size == (60, 40)
    (note,) = notes
    assert "12 questions" in note
    assert "exact match" in note
    scores = score_answers(["cat", "no", "grey"], table["answers"][:3])
    assert scores.tolist() == [1, 0, 1]


def test_the_documented_example_is_a_study(documented, tmp_path):
    study = Study.load("colab", data_root=documented.parent, runs_root=tmp_path / "runs")
    prepare.prepare_dataset(study)
    data = prepare.load_dataset(study)
    sides = [set(part["image_id"]) for part in data.values()]
    assert [len(side) for side in sides] == [2, 2]
    assert not sides[0] & sides[1]
    assert prepare.show_image(study, data["train"][0]).size == (60, 40)
    assert "exact match" in prepare.read_notes(study)[0]
    made = prepare.prepare_dataset(study) / "made.json"
    before = made.stat().st_mtime_ns
    picture = documented.parent / data["train"][0]["picture"]
    whole = picture.read_bytes()
    picture.write_bytes(whole[:200] + bytes(len(whole) - 200))  # replaced, of the same size
    prepare.prepare_dataset(study)
    assert made.stat().st_mtime_ns > before
    assert "unreadable" in str(prepare.read_notes(study))


def test_a_dataset_with_its_pictures_gives_what_the_table_gives(documented):
    expected = read(documented)[0]
    columns = {name: expected[name][:] for name in ("question", "answers", "family")}
    given = Dataset.from_dict(columns | {"image": [image.copy() for image in expected["image"]]})
    found = read(given)[0]
    for name in set(COLUMNS) - {"image"}:
        assert found[name][:] == expected[name][:]
    assert np.array_equal(found[3]["image"], expected[3]["image"])


def test_answers_types_and_families_are_taken_as_given(tmp_path):
    path = write_table(tmp_path, (
        "question_type,image,question,answers,family\n"
        "colour,a.png,Which colour?,red| red |blue,what color\n,a.png,Who is it?,,\n"
        ",a.png,\u200b,red,\n,a.png,$5 or \U0001f600?,None|$_,\n"
    ))  # fmt: skip
    dataset, notes = read(path, tmp_path)
    row, odd = dataset.remove_columns("image").to_list()
    assert (odd["question_id"], odd["question"]) == (4, "$5 or \U0001f600?")
    assert odd["answers"] == ["None", "$_"]
    assert (row["question_type"], row["family"]) == ("colour", "what color")
    assert (row["answers"], row["multiple_choice_answer"]) == (["red", "red", "blue"], "red")
    assert all(
        any(f"left out (question_id {number})" in note for note in notes) for number in (2, 3)
    )


@pytest.mark.parametrize("answers", [["t-shirt"] * 3 + ["t shirt", *"bcdefg"], ["yes"] * 10])
def test_ten_answers_are_scored_as_vqav2s(answers, tmp_path):
    path = write_table(tmp_path, f"image,question,answers\na.png,Is it?,{'|'.join(answers)}\n")
    dataset, notes = read(path)
    assert notes == []
    assert dataset[0]["answers"] == answers
    assert score_answers(["t shirt"], dataset["answers"]) == (answers[0] == "t-shirt")


def test_a_table_without_answers_is_for_attention(tmp_path, vilt):
    path = write_table(tmp_path, "image,question\na.png,Is it?\nb.png,Is it?\n")
    dataset, (note,) = read(path)
    assert "exact match" not in note
    encoded = EncodedQuestions(dataset, vilt[1])
    (indices, batch), *_ = encoded.batches(2)
    assert torch.isfinite(attention_split(vilt[0], batch)).all()
    assert np.isnan(encoded.score(["yes", "no"], indices)).all()
    with pytest.raises(ValueError, match="no question has an answer"):
        build_vocabulary(dataset["answers"], 10)


@pytest.mark.slow
def test_the_documented_lines_make_a_table_of_easy_vqa(tmp_path, monkeypatch):
    pytest.importorskip("easy_vqa")
    page = (ROOT / "docs" / "easy-vqa.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.+?)```", page, re.DOTALL)[1], {})
    dataset, _ = read("data/downloads/easy-vqa/questions.csv")
    assert len(dataset) == 48_248
    assert len(set(dataset["image_id"][:])) == 5000
    assert set(dataset["family"][:]) == {"what", "what color", "is/are"}
    assert len(set(dataset["multiple_choice_answer"][:])) == 13
    assert dataset[0]["image"].size == (64, 64)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "questions.csv: it holds no question"),
        ("image,question\na.png,a?\na.png,Is it red, or blue?\n", "row 2: not a cell for each"),
        ("image,question,answer\na.png,a?\n", "row 1: not a cell for each"),
        ("image,answer\na.png,yes\n", "no column question"), ("image,question\n", "no question"),
        ("image,question\n,Is it?\n", "row 1: no image"),
        ("image,question,family\na.png,a?,what\na.png,a?,when\n", "row 2: family 'when' .*is/are"),
        ("image,question\na.png,?\udcff", "questions.csv: it cannot be read"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_named_with_its_row(text, problem, tmp_path):
    (tmp_path / "questions.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=problem):
        read(tmp_path / "questions.csv")
