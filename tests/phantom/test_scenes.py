"""The phantom: deterministic, balanced given the words, with boxes where the objects are."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.data.vqa import question_family, question_type, read_vqa, vqa_accuracy
from phantom.questions import (
    FAMILIES,
    NUMBERS,
    WORDINGS,
    ask_questions,
    collect_answers,
    list_controls,
)
from phantom.scenes import (
    CELL,
    SPLITS,
    USUAL_CAUSE,
    Scene,
    make_scene,
    read_truth,
    render_scene,
    write_phantom,
)
from phantom.sprites import COLORS


def ask(scene):
    return ask_questions(scene, np.random.default_rng([*scene.key, 2]), new=True)


@pytest.fixture(scope="module")
def asked():
    """All questions of 700 scenes, with their scenes."""
    scenes = [make_scene("train", 0, index) for index in range(700)]
    return [(scene, question) for scene in scenes for question in ask(scene)]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SPLITS)), st.integers(0, 99), st.integers(0, 999), st.integers(1, 5))
def test_boxes_lie_in_the_picture_and_over_their_cells(split, seed, index, groups):
    scene = make_scene(split, seed, index, groups)
    width, height = scene.size
    assert sorted({scene.rows, scene.columns}) in ([5], [5, 6])
    cells = [
        (thing.row + down, thing.column + across)
        for thing in scene.objects
        for down, across in np.ndindex(thing.span, thing.span)
    ]
    assert len(set(cells)) == len(cells)
    for thing in scene.objects:
        x, y, w, h = thing.box
        assert min(x, y) >= 0
        assert min(w, h) > 5 * thing.span
        middle = (x + w / 2) / CELL - thing.column, (y + h / 2) / CELL - thing.row
        assert all(0 < place < thing.span for place in middle)
        # a sprite may lose a pixel or two at the border
        assert min(x + w, width) - x >= 0.9 * w
        assert min(y + h, height) - y >= 0.9 * h


def test_a_box_is_where_the_object_was_painted():
    scene = make_scene("train", 0, 3)
    picture = np.asarray(render_scene(scene)).astype(int)
    bare = np.asarray(render_scene(Scene(scene.rows, scene.columns, (), scene.key))).astype(int)
    painted = np.abs(picture - bare).max(axis=2) > 25
    inside = np.zeros_like(painted)
    for x, y, w, h in (thing.box for thing in scene.objects):
        assert painted[y : y + h, x : x + w].mean() > 0.2
        inside[y : y + h, x : x + w] = True
    assert not (painted & ~inside).any()


def test_every_wording_belongs_to_its_family_by_the_official_rule(asked):
    seen = {question.wording for _, question in asked}
    assert seen == {
        f"{subject}/{number}"
        for subject, (old, new) in WORDINGS.items()
        for number in range(len(old + new))
    }
    for _, question in asked:
        family = question_family(question_type(question.question))
        assert question.wording.rsplit("/", 2)[0] == family, question.question


def test_each_family_has_eight_wordings_half_of_them_new_and_made_of_known_words():
    counts, words = defaultdict(lambda: [0, 0]), [set(), set()]
    for subject, both in WORDINGS.items():
        for number, texts in enumerate(both):
            counts[subject.rpartition("/")[0]][number] += len(texts)
            words[number] |= set(re.findall("[a-z]+", re.sub("{.*?}", "", " ".join(texts).lower())))
    assert set(counts) == set(FAMILIES)
    assert all(old == new and old + new >= 8 for old, new in counts.values())
    assert words[1] <= words[0]


def test_new_wordings_are_asked_in_validation_only(phantom_root):
    splits = ("train", "val")
    new = {s: [row["new_wording"] for row in read_truth(phantom_root, s).values()] for s in splits}
    assert not any(new["train"])
    assert 0.4 < np.mean(new["val"]) < 0.6


def test_answers_are_uniform_given_the_words(asked):
    """Chi-square of each subject against uniform: few may stand out by chance."""
    by_text = defaultdict(list)
    for _, question in asked:
        if question.needs_image and not question.wording.startswith(("why", "is/are/color")):
            by_text[question.wording.rpartition("/")[0]].append(question)
    surprising = 0
    for questions in by_text.values():
        choices = questions[0].choices
        counts = np.array([sum(q.answer == choice for q in questions) for choice in choices])
        expected = len(questions) / len(choices)
        surprising += ((counts - expected) ** 2 / expected).sum() > 2.5 * (len(choices) - 1) + 5
    assert len(by_text) >= 9
    assert surprising <= 1
    answers = Counter(q.answer for _, q in asked if q.wording.startswith("is/are/color"))
    assert abs(answers["yes"] - answers["no"]) < 4 * np.sqrt(sum(answers.values()))


def test_a_vehicle_has_a_usual_cause_that_the_words_tell(asked):
    stops = [q for _, q in asked if q.wording.startswith("why/vehicle")]
    usual = [
        USUAL_CAUSE[next(kind for kind in USUAL_CAUSE if kind in q.question)] == q.answer
        for q in stops
    ]
    assert len(stops) > 200
    assert np.mean(usual) == pytest.approx(0.7, abs=4 * np.sqrt(0.21 / len(stops)))


def find_quadrant(scene, things):
    ((x, y, w, h),) = (thing.box for thing in things)
    across = "left" if x + w / 2 < scene.size[0] / 2 else "right"
    return f"{'top' if y + h / 2 < scene.size[1] / 2 else 'bottom'} {across}"


def find_cause(scene, things):
    (vehicle,) = things
    (cause,) = (
        thing.kind
        for thing in scene.objects
        if thing.category == "cause"
        and 0 <= thing.row - vehicle.row < vehicle.span
        and thing.column - vehicle.column in (-1, vehicle.span)
    )
    return cause


TRUE_ANSWERS = {  # from the scene, and from the objects that the question names
    "where/object": find_quadrant,
    "why/vehicle": find_cause,
    "what/item": lambda _, things: things[0].item,
    "who/item": lambda _, things: things[0].kind,
    "how many/people": lambda scene, _: str(sum(t.category == "person" for t in scene.objects)),
    "how many/objects": lambda _, things: str(len(things)),
    "what color/one": lambda _, things: things[0].color if len(things) == 1 else None,
    "what color/many": lambda _, things: things[0].color if len(things) > 1 else None,
    "is/are/color": lambda _, things: "yes" if things else "no",
    "is/are/presence": lambda _, things: "yes" if things else "no",
}


def test_answers_are_true_of_the_scene(asked):
    """Recompute answers from the scene by rules of this test's own."""
    checked = Counter()
    for scene, question in asked:
        subject, text = question.wording.rpartition("/")[0], question.question
        if subject not in TRUE_ANSWERS:
            continue
        sizes = {"large": 2, "small": 1}
        spans = {span for word, span in sizes.items() if word in text} or {1, 2}
        colors = {color for color in COLORS if re.search(rf"\b{color}\b", text)}
        about = [
            thing for thing in scene.objects
            if re.search(rf"\b({thing.kind}|{thing.item})(s|es)?\b", text)
            and thing.span in spans and (not colors or thing.color in colors)
        ]  # fmt: skip
        assert TRUE_ANSWERS[subject](scene, about) == question.answer, (text, scene.key)
        checked[subject] += 1
    assert len(checked) == len(TRUE_ANSWERS)
    assert min(checked.values()) > 50


def test_controls_have_one_answer_whatever_the_scene(asked):
    controls = list_controls()
    assert set(controls) == set(FAMILIES)
    known = {
        c.word(n).question: c.answer for each in controls.values() for c in each for n in (0, 1)
    }
    seen = [q for _, q in asked if not q.needs_image]
    assert len(seen) > 300
    assert all(known.get(q.question, q.answer) == q.answer and not q.boxes for q in seen)
    assert not {q.question for _, q in asked if q.needs_image} & set(known)


def test_ten_annotators_disagree_but_the_truth_scores_one():
    rng = np.random.default_rng(0)
    question = list_controls()["how many"][0].word(0)
    annotations = [collect_answers(question, rng) for _ in range(300)]
    told = [[given["answer"] for given in a["answers"]] for a in annotations]
    assert all(len(answers) == 10 for answers in told)
    assert all(vqa_accuracy(question.answer, answers) == 1 for answers in told)
    unanimous = sum(len(set(answers)) == 1 for answers in told)
    assert 30 < unanimous < 270
    assert {a["answer_type"] for a in annotations} == {"number"}
    assert {answer for answers in told for answer in answers} <= set(NUMBERS)


def test_written_files_are_read_as_vqav2(phantom_root):
    for split, scenes in (("train", 40), ("val", 20)):
        data = read_vqa(phantom_root, split)
        truth = read_truth(phantom_root, split)
        assert len(set(data["image_id"])) == scenes
        assert set(data["question_id"]) == set(truth)
        assert set(data["question_type"]) <= {question_type(q) for q in data["question"]}
        sizes = {data[i]["image"].size for i in range(0, len(data), 5)}
        assert sizes <= {(240, 240), (288, 240), (240, 288)}
    assert not set(read_vqa(phantom_root, "train")["image_id"]) & set(
        read_vqa(phantom_root, "val")["image_id"]
    )


def test_writing_twice_gives_the_same_bytes(tmp_path, phantom_root):
    write_phantom(tmp_path, "val", 20, seed=3)
    for path in sorted(Path(tmp_path).rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (phantom_root / path.relative_to(tmp_path)).read_bytes()


def test_an_unknown_split_is_named_and_real_data_has_no_truth(tmp_path):
    with pytest.raises(ValueError, match="'test'"):
        write_phantom(tmp_path, "test", 1, seed=0)
    assert read_truth(tmp_path, "train") == {}
