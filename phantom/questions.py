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

    def ask(
        question_type: str, choices: Iterable[str], rows: list[tuple[str, str]]
    ) -> list[Question]:
        return [
            Question(question, question_type, answer, tuple(choices), needs_image=False)
            for question, answer in rows
        ]

    colors = (
        ("a ripe banana", "yellow"),
        ("fresh grass", "green"),
        ("coal", "black"),
        ("ocean water", "blue"),
    )
    colors += ("a ripe tomato", "red"), ("grape juice", "purple")
    parts = (
        ("noses", "dog", "1"),
        ("wheels", "unicycle", "1"),
        ("legs", "bird", "2"),
        ("wheels", "bicycle", "2"),
    )
    parts += (
        ("sides", "triangle", "3"),
        ("wheels", "tricycle", "3"),
        ("legs", "cow", "4"),
        ("wheels", "car", "4"),
    )
    jobs = (
        ("cooks the food", "chef"),
        ("grows the food", "farmer"),
        ("heals the sick", "nurse"),
        ("jokes", "clown"),
    )
    names = ("an animal", "a vehicle", "a person")
    kinds = [
        (k, name)
        for name, members in zip(names, (ANIMALS, VEHICLES, PEOPLE), strict=True)
        for k in members
    ]
    others = dict(zip(names, names[1:] + names[:1], strict=True))
    return {
        "what": ask(
            "what is",
            ("animal", "vehicle", "person"),
            [(f"What is a {k}?", n.split()[1]) for k, n in kinds],
        ),
        "what color": ask(
            "what color is", COLORS, [(f"What color is {thing}?", color) for thing, color in colors]
        ),
        "how many": ask(
            "how many", NUMBERS, [(f"How many {p} does a {k} have?", n) for p, k, n in parts]
        ),
        "who": ask("who is", PEOPLE, [(f"Who is it that {job}?", person) for job, person in jobs]),
        "is/are": ask("is", YES_NO, [(f"Is a {k} {n}?", "yes") for k, n in kinds])
        + ask("is", YES_NO, [(f"Is a {k} {others[n]}?", "no") for k, n in kinds]),
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
    answers = [
        {
            "answer": answer,
            "answer_confidence": "yes"
            if answer == asked.answer
            else str(rng.choice(["maybe", "no"])),
            "answer_id": number + 1,
        }
        for number, answer in enumerate(rng.permutation(spoken).tolist())
    ]
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
        Question(
            "What animal is in the picture?",
            "what animal is",
            kind,
            tuple(ANIMALS),
            boxes=_boxes(things),
        )
        for kind, things in animals.items()
    ]
    asked += [
        Question(
            "What kind of vehicle is this?",
            "what kind of",
            kind,
            tuple(VEHICLES),
            boxes=_boxes(things),
        )
        for kind, things in vehicles.items()
    ]
    asked += [
        Question(
            f"What is the {p.kind} holding?", "what is the", p.item, tuple(ITEMS), boxes=[p.box]
        )
        for p in scene.objects
        if p.item
    ]
    return asked


def _ask_color(scene: Scene) -> list[Question]:
    return [
        Question(
            f"What color is the {kind}?"
            if len(things) == 1
            else f"What color are the {_plural(kind)}?",
            "what color is the" if len(things) == 1 else "what color are the",
            things[0].color,
            tuple(COLORS),
            boxes=_boxes(things),
        )
        for kind, things in _group_kinds(scene, "thing", "vehicle").items()
    ]


def _ask_where(scene: Scene) -> list[Question]:
    """Ask for the quarter of the picture, of what is there once and not in the middle."""
    asked = []
    for kind, things in _group_kinds(scene, "thing", "animal", "person").items():
        across, down = 2 * things[0].column + 1 - scene.columns, 2 * things[0].row + 1 - scene.rows
        if len(things) == 1 and across and down:
            quadrant = QUADRANTS[2 * (down > 0) + (across > 0)]
            asked.append(
                Question(
                    f"Where is the {kind}?",
                    "where is the",
                    quadrant,
                    QUADRANTS,
                    boxes=[things[0].box],
                )
            )
    return asked


def _ask_why(scene: Scene) -> list[Question]:
    stopped = [thing for thing in scene.objects if thing.category in ("vehicle", "cause")][:2]
    if len(stopped) < 2:
        return []
    vehicle, cause = stopped
    return [
        Question(
            f"Why is the {vehicle.kind} stopped?",
            "why is the",
            cause.kind,
            tuple(CAUSES),
            boxes=_boxes(stopped),
        )
    ]


def _ask_how_many(scene: Scene) -> list[Question]:
    """Count what was drawn one to four times with equal chances: people, animals, things."""
    asked = []
    people = [thing for thing in scene.objects if thing.category == "person"]
    if people:
        question = "How many people are in the picture?"
        asked.append(
            Question(
                question, "how many people are in", str(len(people)), NUMBERS, boxes=_boxes(people)
            )
        )
    for kind, things in _group_kinds(scene, "animal", "thing").items():
        if kind != scene.single_kind:
            question = f"How many {_plural(kind)} are there?"
            asked.append(
                Question(question, "how many", str(len(things)), NUMBERS, boxes=_boxes(things))
            )
    return asked


def _ask_who(scene: Scene) -> list[Question]:
    return [
        Question(
            f"Who is holding the {person.item}?",
            "who is",
            person.kind,
            tuple(PEOPLE),
            boxes=[person.box],
        )
        for person in scene.objects
        if person.item
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
        asked.append(Question(f"Is there a {kind}?", "is there a", answer, YES_NO, boxes=boxes))
        asked.append(
            Question(
                f"Are there any {_plural(kind)}?", "are there any", answer, YES_NO, boxes=boxes
            )
        )
    for kind, things in _group_kinds(scene, "thing", "vehicle").items():
        if len(things) == 1:
            color = things[0].color
            other = str(rng.choice([c for c in COLORS if c != color]))
            named, answer = (color, "yes") if rng.random() < 0.5 else (other, "no")
            asked.append(
                Question(f"Is the {kind} {named}?", "is the", answer, YES_NO, boxes=[things[0].box])
            )
    return asked
