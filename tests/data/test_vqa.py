"""VQAv2's files, types, accuracy, targets and subsets, by hand and against the official tools."""

import copy
import json
import re
import warnings
import zipfile
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.data.encode import load_rgb
from helpers.data.prepare import check_images
from helpers.data.vqa import (
    FAMILIES,
    QUESTION_TYPES,
    build_vocabulary,
    normalize_answer,
    question_family,
    question_type,
    read_vqa,
    score_answers,
    soft_targets,
    split_by_image,
    stratified_subset,
    vqa_accuracy,
)

SHARED = Path(__file__).resolve().parents[3] / "shared"
OFFICIAL, SAMPLE = SHARED / "official", SHARED / "vqav2_sample"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the official samples are not here")

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"


@pytest.fixture
def records():
    """Three questions on two images, and their annotations, as VQAv2 lists them."""
    questions, annotations = [], []
    for key, image, question, kind, answer in (
        (7000, 7, "What color is the cat?", "what color is the", "red"),
        (7001, 7, "Is it sad?", "is it", "yes"),
        (8000, 8, "How many cats are there?", "how many", "2"),
    ):
        ids = {"image_id": image, "question_id": key}
        questions.append({**ids, "question": question})
        given = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(10)]
        majority = {"question_type": kind, "multiple_choice_answer": answer}
        annotations.append({**ids, **majority, "answers": given})
    return questions, annotations


def write_files(root: Path, questions, annotations, split="train") -> Path:
    root.mkdir(exist_ok=True)
    header = {"data_subtype": f"{split}2014"}
    (root / QUESTIONS).write_text(json.dumps({**header, "questions": questions}))
    (root / ANNOTATIONS).write_text(json.dumps({**header, "annotations": annotations}))
    return root


def write_image(root: Path, image_id: int) -> Path:
    path = root / "train2014" / f"COCO_train2014_{image_id:012d}.jpg"
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(image_id).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


# Question types and families


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What color is it?", "what color is"), ("What colors are there?", "what"),
        ("What's this?", "none of the above"),  # punctuation stays: "what's" is another word
        ("How many people can you see?", "how many"), ("IS   this\tan apple ?", "is this an"),
        ("Which", "which"), ("Where?", "none of the above"), ("", "none of the above"),
    ],
)  # fmt: skip
def test_question_type(question, expected):
    assert question_type(question) == expected


@needs_shared
def test_the_committed_table_lists_the_official_types():
    assert list(QUESTION_TYPES) == (OFFICIAL / "mscoco_question_types.txt").read_text().splitlines()


def test_families():
    counts = Counter(QUESTION_TYPES.values())
    assert set(counts) == set(FAMILIES)
    assert sum(counts.values()) == 65
    of_families = {
        "what color": ["what color is the", "what is the color of the"], "where": ["where are the"],
        "what": ["what is the", "what time"], "why": ["why", "why is the"], "who": ["who is"],
        "how many": ["how many people are"], "how": ["how"], "which": ["which"],
        "is/are": ["are they", "can you", "do", "does this", "has", "was", "could",
                   "is this person"], "other": ["none of the above"],
    }  # fmt: skip
    expected = {name: family for family, names in of_families.items() for name in names}
    assert {name: question_family(name) for name in expected} == expected
    with pytest.raises(ValueError, match=r"'what colour'.*65 in"):
        question_family("what colour")


# Accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Dog.", "dog"), ("a\nb\tc", "b c"), ("two and  none", "2 and 0"), ("eleven", "eleven"),
        ("black, white", "black white"),  # the comma stands before a space: removed
        ("black,white", "black white"),  # it does not: a space instead
        ("a-b c-d", "b c d"),
        ("a-b -c", "ab c"),  # one dash beside a space decides for all dashes
        ("1,000", "1000"),
        ("t-shirt 1,000", "tshirt 1000"),  # a comma between digits decides for all marks
        ("t-shirt", "t shirt"),
        ("u.s.a.", "usa"), ("2.5 3. .5", "2.5 3 .5"), ("10:30", "10:30"), ("it's", "it's"),
        ("dont", "don't"), ("couldntve", "couldntve"), ("shes", "shes"), ("ow's'at", "'ow's'at"),
        ("couldnt've couldn'tve", "couldn't've couldn't've"), ("somebody'd", "somebodyd"),
        ("Im", "im"),  # the table's entry has a capital, the text no longer
        ("5 oclock", "5 o'clock"), ("an", ""), ("", ""),
        ("." * 40, "." * 8),  # only 32 points are removed
    ],
)  # fmt: skip
def test_normalize_answer(answer, expected):
    assert normalize_answer(answer) == expected


@needs_shared
def test_accuracy_of_the_official_cases():
    cases = json.loads((OFFICIAL / "vqa_accuracy_cases.json").read_text())
    assert len(cases) == 22
    got = [vqa_accuracy(case["prediction"], case["answers"]) for case in cases]
    assert got == pytest.approx([case["accuracy"] for case in cases], abs=1e-12)


@needs_shared
def test_accuracy_of_the_official_scores():
    table = read_vqa(SAMPLE, "train").remove_columns("image").to_pandas()
    official = json.loads((OFFICIAL / "vqav2_sample_train_scores.json").read_text())
    rules = {"always_yes": ["yes"] * len(table), "mca": table["multiple_choice_answer"],
             "first_answer": table["answers"].str[0]}  # fmt: skip
    for rule, answers in rules.items():
        table["score"] = 100 * score_answers(answers, table["answers"])
        assert round(table["score"].mean(), 6) == official[rule]["overall"]
        means = table.groupby("question_type")["score"].mean().round(6).to_dict()
        assert means == official[rule]["perQuestionType"]


@pytest.mark.parametrize("matches", range(11))
def test_accuracy_is_the_mean_over_nine_of_ten(matches):
    answers = ["red"] * matches + ["blue", "green"] * 5
    answers = answers[:10]
    by_hand = np.mean([min(1, nine.count("red") / 3) for nine in combinations(answers, 9)])
    assert vqa_accuracy("red", answers) == pytest.approx(by_hand, abs=1e-12)
    assert vqa_accuracy("red", answers) == [0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1][matches]


def test_unanimous_answers_are_compared_as_they_are():
    assert vqa_accuracy("Dog", ["dog"] * 10) == 0
    assert vqa_accuracy("Dog", ["dog"] * 9 + ["cat"]) == 1
    assert vqa_accuracy(" dog\n", ["dog", "dog "] * 5) == 1  # cleaned, they are unanimous
    assert vqa_accuracy("a dog", ["dog"] * 9 + ["dog\t"]) == 0
    for no_list in ("yes", []):
        with pytest.raises(ValueError, match="answers of one question"):
            vqa_accuracy("yes", no_list)


def test_scores_of_answers_by_hand():
    answers = [["red"] * 10, ["yes"] * 2 + ["no"] * 8]
    numbers = np.array([[1, 1, 0], [0, 2, -1]])  # (question, removal); -1: no answer
    two_of_ten = vqa_accuracy("yes", answers[1])
    assert 0 < two_of_ten < 1
    scores = score_answers(numbers, answers, ["yes", "red", "no"])
    np.testing.assert_array_equal(scores, [[1, 1, 0], [two_of_ten, 1, np.nan]])
    np.testing.assert_array_equal(score_answers(["red", "yes"], answers), [1, two_of_ten])
    with pytest.raises(ValueError, match="argument"):
        score_answers(["red"], answers)


# Targets and vocabulary


def test_soft_targets_by_hand():
    answers = ["yes"] * 4 + ["no"] * 3 + ["maybe"] * 2 + ["up"]
    targets = soft_targets(answers, ["up", "absent", "maybe", "no", "yes"])
    assert targets.dtype == np.float32
    assert targets == pytest.approx([0.3, 0, 0.6, 0.9, 1])
    vocabulary = ["t shirt", "shirt", "t-shirt"]
    assert soft_targets(["T-shirt"] * 9 + ["x"], vocabulary).tolist() == [1, 0, 1]
    assert soft_targets(["t-shirt"] * 10, vocabulary).tolist() == [0, 0, 1]


WORDS = st.sampled_from(
    ["yes", "Yes", "yes.", "no", "a dog", "dog", "dog ", "2", "two", "1,000", "1000", ""]
)


@given(st.lists(WORDS, min_size=10, max_size=10), st.lists(WORDS, max_size=8))
def test_a_target_is_the_accuracy_the_entry_would_score(answers, vocabulary):
    expected = [vqa_accuracy(entry, answers) for entry in vocabulary]
    assert soft_targets(answers, vocabulary) == pytest.approx(expected, abs=1e-6)


def test_build_vocabulary():
    of_questions = [["yes"] * 10, ["yes"] * 6 + ["no"] * 4, ["b"] * 5 + ["a"] * 5]
    of_questions += [["red "] * 9 + ["x"], ["no"] * 10]
    # majorities: yes, yes, a (tie with b), red, no
    assert build_vocabulary(of_questions, 100) == ["yes", "a", "no", "red"]
    assert build_vocabulary(of_questions, 2) == ["yes", "a"]


# Reading


def test_read_vqa(tmp_path, records):
    root = write_files(tmp_path / "100%s d", *records)
    write_image(root, 7)
    before = sorted(root.rglob("*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = read_vqa(root, "train")
    first = dataset[0]
    picture = first.pop("image")
    assert (picture.size, picture.mode) == ((50, 40), "RGB")
    assert first == {
        "question_id": 7000, "image_id": 7, "question": "What color is the cat?",
        "question_type": "what color is the", "family": "what color",
        "answers": ["red"] * 10, "multiple_choice_answer": "red",
    }  # fmt: skip
    assert dataset["question_id"][:] == [7000, 7001, 8000]
    assert dataset["family"][:] == ["what color", "is/are", "how many"]
    assert dataset["answers"][:] == [["red"] * 10, ["yes"] * 10, ["2"] * 10]
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("inner", ["", "folder/"])
def test_read_vqa_from_the_official_zips(tmp_path, records, inner):
    plain, zipped = write_files(tmp_path / "plain", *records), tmp_path / "zipped"
    zipped.mkdir()
    for kind, name in (("Questions", QUESTIONS), ("Annotations", ANNOTATIONS)):
        path = zipped / f"v2_{kind}_Train_mscoco.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(plain / name, inner + name)
    write_files(plain, records[0], records[1][::-1])  # in whatever order
    expected, got = (read_vqa(root, "train").remove_columns("image") for root in (plain, zipped))
    assert got.to_list() == expected.to_list()
    whole = (zipped / "v2_Questions_Train_mscoco.zip").read_bytes()
    (zipped / "v2_Questions_Train_mscoco.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"v2_Questions_Train_mscoco\.zip: truncated"):
        read_vqa(zipped, "train")


@needs_shared
@pytest.mark.parametrize(("split", "n_questions", "n_images"), [("train", 66, 43), ("val", 5, 2)])
def test_read_the_real_sample(split, n_questions, n_images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = check_images(read_vqa(SAMPLE, split))
    table = dataset.remove_columns("image").to_pandas()
    assert (len(table), table["image_id"].nunique()) == (n_questions, n_images)
    assert table["question"].map(question_type).tolist() == table["question_type"].tolist()
    assert {load_rgb(image).mode for image in dataset["image"]} == {"RGB"}


# Broken files: one error or one counted warning


def test_missing_files_and_splits(tmp_path, records):
    with pytest.raises(ValueError, match=r"split='test'.*train, val"):
        read_vqa(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match=f"neither {QUESTIONS} nor v2_Questions_Train"):
        read_vqa(tmp_path, "train")
    (write_files(tmp_path, *records) / ANNOTATIONS).unlink()
    with pytest.raises(FileNotFoundError, match=f"neither {ANNOTATIONS} nor v2_Annotations_Train"):
        read_vqa(tmp_path, "train")


@pytest.mark.parametrize("name", [QUESTIONS, ANNOTATIONS])
@pytest.mark.parametrize(
    "content",
    [
        None,  # half of the file
        b"", b"\xff\xfe\x00garbage", b"[]", b'{"images": []}',
        b'{"questions": 3, "annotations": null}', b'{"questions": [3], "annotations": ["x"]}',
        b'{"data_subtype": "val2014", "questions": [], "annotations": []}',
    ],
)  # fmt: skip
def test_files_that_are_broken_as_a_whole(tmp_path, records, name, content):
    file = write_files(tmp_path, *records) / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=f"{name}: "):
        read_vqa(tmp_path, "train")


@pytest.mark.parametrize(
    ("kind", "field", "value", "place"),
    [
        ("questions", "question_id", None, ""), ("questions", "image_id", "7", ""),
        ("questions", "question_id", 10**19, ""), ("questions", "image_id", -1, ""),
        ("questions", "question", "half an emoji: \ud83d", ""),
        ("annotations", "question_id", True, ""),
        ("annotations", "question_type", "what colour", ": .*'what colour' is none of the 65"),
        ("annotations", "answers", "yes", ""), ("annotations", "answers", [{}], r"\.0\.answer"),
        ("annotations", "answers", [{"answer": "\ude00"}], r"\.0\.answer"),
    ],
)  # fmt: skip
def test_missing_or_wrong_fields_name_the_place(tmp_path, records, kind, field, value, place):
    record = records[kind == "annotations"][1]
    record.pop(field) if value is None else record.update({field: value})
    name = QUESTIONS if kind == "questions" else ANNOTATIONS
    with pytest.raises(ValueError, match=rf"{name}: {kind}\.1\.{field}{place}"):
        read_vqa(write_files(tmp_path, *records), "train")


@pytest.mark.parametrize("side", [0, 1])
def test_duplicate_ids(tmp_path, records, side):
    records[side].append(copy.deepcopy(records[side][1]))
    with pytest.warns(UserWarning, match=r": 1 exact copies .*left out \(question_id 7001\)$"):
        dataset = read_vqa(write_files(tmp_path, *records), "train")
    assert dataset["question_id"][:] == [7000, 7001, 8000]
    records[side][-1]["image_id"] = 8
    with pytest.raises(ValueError, match=r"question_id 7001 occurs twice and differs"):
        read_vqa(write_files(tmp_path, *records), "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({2: {"image_id": 7}}, "question_id 8000 is about another image"),
        ({number: {"answers": [{"answer": "yes"}] * 9} for number in range(3)},
         f"{ANNOTATIONS}: no question has exactly 10 answers"),
        ({number: {"question_id": number} for number in range(3)}, "share no question"),
    ],
)  # fmt: skip
def test_annotations_that_do_not_go_with_the_questions(tmp_path, records, changes, message):
    for number, change in changes.items():
        records[1][number].update(change)
    with pytest.raises(ValueError, match=message):
        read_vqa(write_files(tmp_path, *records), "train")


def test_one_warning_a_kind_counts_what_is_left_out(tmp_path):
    ids = [{"question_id": key, "image_id": key} for key in range(1, 31)]
    types = {"question_type": "is it", "multiple_choice_answer": "yes"}
    questions = [{**own, "question": "Is it?"} for own in ids]
    questions[14]["question"], questions[15]["question"] = " \n", "\u200b"  # 15 and 16
    annotations = [{**own, **types, "answers": [{"answer": "yes"}] * 10} for own in ids]
    for annotation in annotations[:7]:  # questions 1-7
        annotation["answers"].pop()
    annotations[7]["answers"] *= 2  # question 8
    root = write_files(tmp_path, questions[:-2], annotations[:10] + annotations[13:])
    with pytest.warns(UserWarning, match="left out") as caught:
        dataset = read_vqa(root, "train")
    found = [str(warning.message).removeprefix(f"{root}/").split(" ", 1) for warning in caught]
    assert [(name, re.findall(r"\d+|\.\.\.", text)) for name, text in found] == [
        (f"{QUESTIONS}:", ["3", "11", "12", "13"]),  # without annotation
        (f"{ANNOTATIONS}:", ["2", "29", "30"]),  # without question
        (f"{QUESTIONS}:", ["2", "15", "16"]),  # without words
        (f"{ANNOTATIONS}:", ["8", "10", "1", "2", "3", "4", "5", "..."]),  # without ten answers
    ]
    assert dataset["question_id"][:] == [9, 10, 14, *range(17, 29)]


# Images


def test_check_images_measures_sound_ones_and_fails_without_any(tmp_path, records):
    root = write_files(tmp_path, *records)
    with pytest.raises(ValueError, match=r"000000000007\.jpg: neither this nor any other"):
        check_images(read_vqa(root, "train"))
    write_image(root, 7), write_image(root, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = check_images(read_vqa(root, "train"))
    assert (dataset["width"][:], dataset["height"][:]) == ([50] * 3, [40] * 3)


@pytest.mark.parametrize("damage", ["missing", "folder", "cut", "zeros", "empty", "text", "thin"])
def test_check_images_leaves_out_broken_ones(tmp_path, records, damage):
    root = write_files(tmp_path, *records)
    broken, whole = write_image(root, 7), write_image(root, 8).read_bytes()
    half = len(whole) // 2
    broken.unlink()
    if damage == "folder":
        broken.mkdir()
    elif damage == "thin":
        Image.new("RGB", (640, 30)).save(broken)
    elif damage != "missing":
        zeros = whole[:half] + bytes(len(whole) - half)  # Pillow alone takes it for whole
        contents = {"cut": whole[:half], "zeros": zeros, "empty": b"", "text": b"<html>404</html>"}
        broken.write_bytes(contents[damage])
    with pytest.warns(UserWarning, match="left out") as caught:
        checked = check_images(read_vqa(root, "train"))
    (warning,) = caught
    problem = {"missing": "missing", "folder": "missing", "thin": "thin"}.get(damage, "unreadable")
    assert re.match(rf"{broken}: 2 .*{problem} .*7000, 7001\)", str(warning.message))
    assert checked["question_id"][:] == [8000]


# Subsets

ROWS = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from(FAMILIES[:4])), min_size=1, max_size=60
)


def make_dataset(rows) -> Dataset:
    images, families = zip(*rows, strict=True)
    numbers = range(len(rows))
    return Dataset.from_dict({"image_id": images, "family": families, "question_id": numbers})


@settings(max_examples=15)
@given(ROWS, st.integers(1, 8), st.integers(0, 99))
def test_stratified_subset(rows, per_family, seed):
    dataset = make_dataset(rows)
    assert stratified_subset(dataset, None, seed)["question_id"][:] == dataset["question_id"][:]
    subset = stratified_subset(dataset, per_family, seed)
    have, got = Counter(dataset["family"][:]), Counter(subset["family"][:])
    assert got == {family: min(count, per_family) for family, count in have.items()}
    kept = subset["question_id"][:]
    assert kept == sorted(set(kept))
    assert stratified_subset(dataset, per_family, seed)["question_id"][:] == kept
    # No image is passed over for a family: only the last drawn of it gives some but not all.
    for family in have:
        all_of = Counter(image for image, name in rows if name == family)
        pairs = zip(subset["image_id"][:], subset["family"][:], strict=True)
        kept_of = Counter(image for image, name in pairs if name == family)
        assert sum(kept_of[image] < all_of[image] for image in kept_of) <= 1


def test_stratified_subset_draws_images_evenly_and_by_seed():
    dataset = make_dataset([(image, family) for image in range(100) for family in ("what", "how")])
    drawn = [set(stratified_subset(dataset, 10, seed)["image_id"][:]) for seed in range(80)]
    assert all(len(images) == 10 for images in drawn)  # ten images serve both families
    assert len({frozenset(images) for images in drawn}) == 80
    counts = Counter(image for images in drawn for image in images)
    assert set(counts) == set(range(100))
    assert max(counts.values()) < 21  # 8 expected, standard deviation 2.7


@settings(max_examples=15)
@given(ROWS, st.floats(0.01, 0.99), st.integers(0, 99))
def test_split_by_image(rows, share, seed):
    dataset = make_dataset(rows)
    n_images = len({image for image, _ in rows})
    if n_images == 1:
        with pytest.raises(ValueError, match="cannot split 1 images"):
            split_by_image(dataset, share, seed)
        return
    parts = split_by_image(dataset, share, seed)
    train, validation = (set(parts[name]["image_id"][:]) for name in ("train", "validation"))
    assert min(len(train), len(validation)) > 0
    assert not train & validation
    assert abs(len(validation) - share * n_images) <= 1
    questions = [parts[name]["question_id"][:] for name in ("train", "validation")]
    assert sorted(questions[0] + questions[1]) == list(range(len(rows)))
    assert questions == [sorted(side) for side in questions]
    again = split_by_image(dataset, share, seed)
    assert [again[name]["question_id"][:] for name in ("train", "validation")] == questions
