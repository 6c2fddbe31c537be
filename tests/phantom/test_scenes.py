"""The phantom: deterministic, balanced given the words, with boxes where the objects are."""

import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.data.vqa import question_family, question_type, read_vqa, vqa_accuracy
from phantom.questions import NUMBERS, ask_questions, collect_answers, list_controls
from phantom.scenes import CELL, SPLITS, make_scene, read_truth, render_scene, write_phantom
from phantom.sprites import SPRITES, draw_sprite


def ask(scene):
    return ask_questions(scene, np.random.default_rng([*scene.key, 2]))


@pytest.fixture(scope="module")
def asked():
    """All questions of 1,500 scenes, with their scenes."""
    scenes = [make_scene("train", 0, index) for index in range(1500)]
    return [(scene, question) for scene in scenes for question in ask(scene)]


def test_the_same_scene_renders_the_same_pixels():
    pictures = [np.asarray(render_scene(make_scene("val", 5, 7))) for _ in range(2)]
    assert np.array_equal(*pictures)
    assert not np.array_equal(pictures[0], np.asarray(render_scene(make_scene("val", 6, 7))))


def test_a_thousand_scenes_take_seconds():
    start = time.process_time()
    for index in range(50):
        render_scene(make_scene("train", 0, index))
    assert time.process_time() - start < 1.5  # loose: a guard against regressions, no benchmark


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SPLITS)), st.integers(0, 99), st.integers(0, 999), st.integers(1, 5))
def test_boxes_lie_in_the_picture_and_over_their_cell(split, seed, index, groups):
    scene = make_scene(split, seed, index, groups)
    width, height = scene.size
    assert sorted({scene.rows, scene.columns}) in ([4], [4, 5])
    cells = [(thing.row, thing.column) for thing in scene.objects]
    assert len(set(cells)) == len(cells)
    for thing in scene.objects:
        x, y, w, h = thing.box
        assert min(x, y) >= 0
        assert min(w, h) > 5
        middle = (x + w / 2) // CELL, (y + h / 2) // CELL
        assert middle == (thing.column, thing.row)
        # a sprite may lose a pixel or two at the border
        assert min(x + w, width) - max(x, 0) >= 0.9 * w
        assert min(y + h, height) - max(y, 0) >= 0.9 * h


def test_a_box_is_where_the_object_was_painted():
    scene = make_scene("train", 0, 3)
    empty = scene.__class__(scene.rows, scene.columns, (), scene.key, "")
    picture, bare = (np.asarray(render_scene(each)).astype(int) for each in (scene, empty))
    painted = np.abs(picture - bare).max(axis=2) > 25
    inside = np.zeros_like(painted)
    for x, y, w, h in (thing.box for thing in scene.objects):
        assert painted[y : y + h, x : x + w].mean() > 0.2
        inside[y : y + h, x : x + w] = True
    assert not (painted & ~inside).any()


def test_every_sprite_can_be_drawn_and_differs():
    drawn = {kind: draw_sprite(kind, "red", None, 48).tobytes() for kind in SPRITES}
    assert len(set(drawn.values())) == len(SPRITES)


def test_question_types_follow_the_official_rule(asked):
    for _, question in asked:
        assert question_type(question.question) == question.question_type, question.question
    types = {question.question_type for _, question in asked}
    families = {question_family(name) for name in types}
    assert len(types) >= 8
    assert families == {"what", "what color", "where", "why", "how many", "who", "is/are"}


def test_answers_are_uniform_given_the_words(asked):
    """Chi-square of each question text against uniform: few may stand out by chance."""
    by_text = defaultdict(list)
    for _, question in asked:
        if question.needs_image:
            by_text[question.question].append(question)
    checked = surprising = 0
    for questions in by_text.values():
        choices = questions[0].choices
        if len(questions) < 15 * len(choices) or questions[0].question_type == "is the":
            continue  # "Is the ball red?" is uniform given the kind, not given the colour
        counts = np.array([sum(q.answer == choice for q in questions) for choice in choices])
        expected = len(questions) / len(choices)
        checked += 1
        surprising += ((counts - expected) ** 2 / expected).sum() > 2.5 * (len(choices) - 1) + 5
    assert checked >= 20
    assert surprising <= max(1, 0.05 * checked)


def test_yes_and_no_are_even_for_colours(asked):
    answers = Counter(q.answer for _, q in asked if q.question_type == "is the")
    assert abs(answers["yes"] - answers["no"]) < 4 * np.sqrt(sum(answers.values()))


def test_answers_are_true_of_the_scene(asked):
    """Recompute answers from the scene by rules of this test's own."""
    checked = Counter()
    for scene, question in asked:
        words = question.question.rstrip("?").split()
        if question.question_type == "where is the":
            (thing,) = [t for t in scene.objects if t.kind == words[-1]]
            x, y, w, h = thing.box
            across = "left" if x + w / 2 < scene.size[0] / 2 else "right"
            down = "top" if y + h / 2 < scene.size[1] / 2 else "bottom"
            assert question.answer == f"{down} {across}"
        elif question.question_type == "why is the":
            (vehicle,) = [t for t in scene.objects if t.kind == words[3]]
            near = [t.kind for t in scene.objects if t.category == "cause"
                    and abs(t.row - vehicle.row) <= 1
                     and abs(t.column - vehicle.column) <= 1]  # fmt: skip
            assert near == [question.answer]
        elif question.question_type == "how many people are in":
            assert question.answer == str(sum(t.category == "person" for t in scene.objects))
        elif question.question_type in ("is there a", "are there any"):
            plural = {t.kind: {"bus": "buses"}.get(t.kind, t.kind + "s") for t in scene.objects}
            assert question.answer == ("yes" if words[-1] in {*plural, *plural.values()} else "no")
        elif question.question_type == "who is" and question.needs_image:
            assert [t.kind for t in scene.objects if t.item == words[-1]] == [question.answer]
        else:
            continue
        checked[question.question_type] += 1
    assert len(checked) == 6
    assert min(checked.values()) > 50


def test_controls_have_one_answer_whatever_the_scene(asked):
    known = {c.question: c.answer for controls in list_controls().values() for c in controls}
    seen = [q for _, q in asked if not q.needs_image]
    assert len(seen) > 500
    assert all(known[q.question] == q.answer and not q.boxes for q in seen)
    assert not {q.question for _, q in asked if q.needs_image} & set(known)


def test_ten_annotators_disagree_but_the_truth_scores_one():
    rng = np.random.default_rng(0)
    question = list_controls()["how many"][0]
    annotations = [collect_answers(question, rng) for _ in range(300)]
    told = [[given["answer"] for given in a["answers"]] for a in annotations]
    assert all(len(answers) == 10 for answers in told)
    assert all(vqa_accuracy(question.answer, answers) == 1 for answers in told)
    unanimous = sum(len(set(answers)) == 1 for answers in told)
    assert 30 < unanimous < 270
    assert {a["answer_type"] for a in annotations} == {"number"}
    assert {answer for answers in told for answer in answers} <= set(NUMBERS)


def test_splits_share_no_picture():
    pictures = {name: {render_scene(make_scene(name, 0, i)).tobytes() for i in range(20)}
                for name in SPLITS}  # fmt: skip
    assert not pictures["pretrain"] & (pictures["train"] | pictures["val"])
    assert not pictures["train"] & pictures["val"]


def test_written_files_are_read_as_vqav2(phantom_root):
    for split, scenes in (("train", 40), ("val", 20)):
        data = read_vqa(phantom_root, split)
        truth = read_truth(phantom_root, split)
        assert len(set(data["image_id"])) == scenes
        assert set(data["question_id"]) == set(truth)
        assert set(data["question_type"]) <= {question_type(q) for q in data["question"]}
        sizes = {data[i]["image"].size for i in range(0, len(data), 5)}
        assert sizes <= {(192, 192), (240, 192), (192, 240)}
    train, val = (set(read_vqa(phantom_root, split)["image_id"]) for split in ("train", "val"))
    assert not train & val


def test_written_boxes_lie_in_the_picture(tmp_path):
    write_phantom(tmp_path, "val", 50, seed=0)
    data, truth = read_vqa(tmp_path, "val"), read_truth(tmp_path, "val")
    sizes = {row["question_id"]: row["image"].size for row in data}
    boxes = [(box, sizes[number]) for number, row in truth.items() for box in row["boxes"]]
    assert len(boxes) > 150
    for (x, y, w, h), (width, height) in boxes:
        assert min(x, y) >= 0
        assert x + w <= width
        assert y + h <= height


def test_writing_twice_gives_the_same_bytes(tmp_path, phantom_root):
    write_phantom(tmp_path, "val", 20, seed=3)
    for path in sorted(Path(tmp_path).rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (phantom_root / path.relative_to(tmp_path)).read_bytes()


def test_an_unknown_split_is_named(tmp_path):
    with pytest.raises(ValueError, match="'test'"):
        write_phantom(tmp_path, "test", 1, seed=0)


def test_real_data_has_no_truth(tmp_path):
    assert read_truth(tmp_path, "train") == {}
