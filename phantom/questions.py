"""What is asked about a phantom scene, and what ten annotators answer.

Wherever the image decides, the answer is uniform given the words of the question (a fair coin for
yes and no), so the words alone are worth no more than a guess. The controls need no image at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from phantom.sprites import ANIMALS, CATEGORIES, CAUSES, COLORS, ITEMS, PEOPLE, VEHICLES

if TYPE_CHECKING:
    from phantom.scenes import Scene, SceneObject

PLURALS = {"bus": "buses"}
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("1", "2", "3", "4")
YES_NO = ("yes", "no")
CONTROL_SHARE = 0.15  # of the questions of a family that has controls
COLOR_OF = {
    "a ripe banana": "yellow", "fresh grass": "green", "coal": "black", "ocean water": "blue",
    "a ripe tomato": "red", "grape juice": "purple",
}  # fmt: skip
NUMBER_OF = {
    "noses does a dog": "1", "wheels does a unicycle": "1", "legs does a bird": "2",
    "wheels does a bicycle": "2", "sides does a triangle": "3", "wheels does a tricycle": "3",
    "legs does a cow": "4", "wheels does a car": "4",
}  # fmt: skip
PERSON_WHO = {
    "cooks the food": "chef", "grows the food": "farmer", "heals the sick": "nurse",
    "jokes": "clown",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question with its truth: the answer, other choices, whether the image decides, where."""

    question: str
    question_type: str
    answer: str
    choices: tuple[str, ...]
    needs_image: bool = True
    boxes: list[list[int]] = field(default_factory=list)


def list_controls() -> dict[str, list[Question]]:
    """Questions whose answer is in the words, by family: other images must not matter."""

    def ask(kind: str, choices: Iterable[str], rows: list[tuple[str, str]]) -> list[Question]:
        return [Question(text, kind, answer, tuple(choices), False) for text, answer in rows]

    names = {"an animal": ANIMALS, "a vehicle": VEHICLES, "a person": PEOPLE}
    others = {"an animal": "a vehicle", "a vehicle": "a person", "a person": "an animal"}
    kinds = [(kind, name) for name, members in names.items() for kind in members]
    what = [(f"What is a {kind}?", name.split()[1]) for kind, name in kinds]
    colors = [(f"What color is {thing}?", color) for thing, color in COLOR_OF.items()]
    counts = [(f"How many {part} have?", number) for part, number in NUMBER_OF.items()]
    who = [(f"Who is it that {job}?", person) for job, person in PERSON_WHO.items()]
    true = [(f"Is a {kind} {name}?", "yes") for kind, name in kinds]
    false = [(f"Is a {kind} {others[name]}?", "no") for kind, name in kinds]
    return {
        "what": ask("what is", ("animal", "vehicle", "person"), what),
        "what color": ask("what color is", COLORS, colors),
        "how many": ask("how many", NUMBERS, counts),
        "who": ask("who is", PEOPLE, who),
        "is/are": ask("is", YES_NO, true + false),
    }


def ask_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Ask at most one question of each family about a scene, in a fixed order of families.

    About one in seven questions of a family with controls is a control.
    """
    about_scene = {
        "what": _ask_what(scene),
        "what color": _ask_color(scene),
        "where": _ask_where(scene),
        "why": _ask_why(scene),
        "how many": _ask_how_many(scene),
        "who": _ask_who(scene),
        "is/are": _ask_is(scene, rng),
    }
    controls = list_controls()
    asked = []
    for family, candidates in about_scene.items():
        if family in controls and rng.random() < CONTROL_SHARE:
            candidates = controls[family]
        if candidates:
            asked.append(candidates[rng.integers(len(candidates))])
    return asked


def collect_answers(asked: Question, rng: np.random.Generator) -> dict:
    """Let ten annotators answer: a question's annotation as in VQAv2's files, without the ids.

    Each question has its own difficulty; at most four annotators err, so the truth scores 1.
    """
    wrong = [choice for choice in asked.choices if choice != asked.answer]
    errors = min(4, rng.binomial(10, rng.beta(1, 8)))
    spoken = [asked.answer] * (10 - errors) + [str(rng.choice(wrong)) for _ in range(errors)]
    answers = []
    for number, answer in enumerate(rng.permutation(spoken).tolist(), 1):
        sure = "yes" if answer == asked.answer else str(rng.choice(["maybe", "no"]))
        answers.append({"answer": answer, "answer_confidence": sure, "answer_id": number})
    kind = {YES_NO: "yes/no", NUMBERS: "number"}.get(asked.choices, "other")
    return {
        "question_type": asked.question_type,
        "answer_type": kind,
        "multiple_choice_answer": asked.answer,
        "answers": answers,
    }


def _group_kinds(scene: Scene, *categories: str) -> dict[str, list[SceneObject]]:
    groups: dict[str, list[SceneObject]] = {}
    for thing in scene.objects:
        if thing.category in categories:
            groups.setdefault(thing.kind, []).append(thing)
    return groups


def _boxes(things: Sequence[SceneObject]) -> list[list[int]]:
    return [thing.box for thing in things]


def _plural(kind: str) -> str:
    return PLURALS.get(kind, kind + "s")


def _ask_what(scene: Scene) -> list[Question]:
    animals, vehicles = _group_kinds(scene, "animal"), _group_kinds(scene, "vehicle")
    asked = [
        Question(text, question_type, kind, tuple(choices), boxes=_boxes(things))
        for text, question_type, choices, groups in (
            ("What animal is in the picture?", "what animal is", ANIMALS, animals),
            ("What kind of vehicle is this?", "what kind of", VEHICLES, vehicles),
        )
        for kind, things in groups.items()
    ]
    for person in scene.objects:
        if person.item:
            text, choices = f"What is the {person.kind} holding?", tuple(ITEMS)
            asked.append(Question(text, "what is the", person.item, choices, boxes=[person.box]))
    return asked


def _ask_color(scene: Scene) -> list[Question]:
    asked = []
    for kind, things in _group_kinds(scene, "thing", "vehicle").items():
        one = len(things) == 1
        question_type = f"what color {'is' if one else 'are'} the"
        text = f"{question_type.capitalize()} {kind if one else _plural(kind)}?"
        color, choices = things[0].color, tuple(COLORS)
        asked.append(Question(text, question_type, color, choices, boxes=_boxes(things)))
    return asked


def _ask_where(scene: Scene) -> list[Question]:
    """Ask for the quarter of the picture, of what is there once and not in the middle."""
    asked = []
    for kind, things in _group_kinds(scene, "thing", "animal", "person").items():
        across, down = 2 * things[0].column + 1 - scene.columns, 2 * things[0].row + 1 - scene.rows
        if len(things) == 1 and across and down:
            quadrant, text = QUADRANTS[2 * (down > 0) + (across > 0)], f"Where is the {kind}?"
            asked.append(Question(text, "where is the", quadrant, QUADRANTS, boxes=[things[0].box]))
    return asked


def _ask_why(scene: Scene) -> list[Question]:
    stopped = [thing for thing in scene.objects if thing.category in ("vehicle", "cause")][:2]
    if len(stopped) < 2:
        return []
    text, choices = f"Why is the {stopped[0].kind} stopped?", tuple(CAUSES)
    return [Question(text, "why is the", stopped[1].kind, choices, boxes=_boxes(stopped))]


def _ask_how_many(scene: Scene) -> list[Question]:
    """Count what was drawn one to four times with equal chances: people, animals, things."""
    people = [thing for thing in scene.objects if thing.category == "person"]
    counted = [("How many people are in the picture?", "how many people are in", people)]
    for kind, things in _group_kinds(scene, "animal", "thing").items():
        if kind != scene.single_kind:
            counted.append((f"How many {_plural(kind)} are there?", "how many", things))
    return [
        Question(text, question_type, str(len(things)), NUMBERS, boxes=_boxes(things))
        for text, question_type, things in counted
        if things
    ]


def _ask_who(scene: Scene) -> list[Question]:
    people, choices = [person for person in scene.objects if person.item], tuple(PEOPLE)
    return [
        Question(f"Who is holding the {p.item}?", "who is", p.kind, choices, boxes=[p.box])
        for p in people
    ]


def _ask_is(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Toss a coin for the answer, then ask of a kind that makes it true.

    Absent kinds are of a category that is present.
    """
    asked = []
    for category, members in CATEGORIES.items():
        present = _group_kinds(scene, category)
        absent = [kind for kind in members if kind not in present]
        if not present or not absent:
            continue
        yes = rng.random() < 0.5
        kind = str(rng.choice(list(present) if yes else absent))
        answer, boxes = ("yes", _boxes(present[kind])) if yes else ("no", [])
        plural = f"Are there any {_plural(kind)}?"
        asked.append(Question(f"Is there a {kind}?", "is there a", answer, YES_NO, boxes=boxes))
        asked.append(Question(plural, "are there any", answer, YES_NO, boxes=boxes))
    for kind, things in _group_kinds(scene, "thing", "vehicle").items():
        if len(things) == 1:
            color = things[0].color
            other = str(rng.choice([c for c in COLORS if c != color]))
            named, answer = (color, "yes") if rng.random() < 0.5 else (other, "no")
            text, boxes = f"Is the {kind} {named}?", _boxes(things)
            asked.append(Question(text, "is the", answer, YES_NO, boxes=boxes))
    return asked
