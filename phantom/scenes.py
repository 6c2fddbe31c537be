"""Synthetic VQA with known ground truth: scenes, questions, ten annotators, official files.

    write_phantom(folder, "train", scenes=1600, seed=0)  # questions, annotations, images, truth
    truth = read_truth(folder, "train")  # which question needs the image; its boxes; its wording

Named after the objects of known content that calibrate a scanner. A scene is a grid of square cells
(5 x 5, 5 x 6 or 6 x 5), each about one patch of the small ViLT; an object fills one cell or two by
two. Beside what is asked about stand others of its kind, colour or category. What is asked and in
which words: `phantom.questions`.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from helpers.run.cache import write_atomic
from phantom.questions import ask_questions, collect_answers
from phantom.sprites import ANIMALS, CAUSES, COLORS, ITEMS, PEOPLE, THINGS, VEHICLES, draw_sprite

logger = logging.getLogger(__name__)

CELL = 48  # pixels
GRIDS = ((5, 5), (5, 6), (6, 5))  # rows, columns: square, landscape, portrait
TRUTH = ("needs_image", "wording", "new_wording")  # what is known of a question beside its boxes
SPLITS = {"train": 0, "val": 1, "pretrain": 2}  # each draws from random streams of its own
BACKGROUNDS = ((222, 232, 214), (238, 228, 205), (214, 226, 238), (232, 222, 228), (226, 226, 226))
USUAL_CAUSE = dict(zip(VEHICLES, CAUSES, strict=False))  # of each kind of vehicle having stopped
USUAL_SHARE = 0.7  # how often that is the cause


class Member(NamedTuple):
    """What is to be put into a scene: see SceneObject."""

    category: str
    kind: str
    color: str | None = None
    item: str | None = None
    span: int = 1
    counted: bool = False


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene: what it is, its cell, and its size and place in pixels.

    span: cells it fills, to each side of its first (row, column). counted: it belongs to a group
    that was drawn one to four times with equal chances.
    """

    category: str
    kind: str
    color: str | None
    item: str | None
    span: int
    counted: bool
    row: int
    column: int
    size: int
    x: int
    y: int

    @property
    def box(self) -> list[int]:
        """What of the object can be seen: [x, y, width, height] in pixels."""
        sprite = draw_sprite(self.kind, self.color, self.item, self.size)
        left, top, right, bottom = sprite.getbbox()
        return [self.x + left, self.y + top, right - left, bottom - top]


@dataclass(frozen=True)
class Scene:
    """A scene: its grid, its objects, and the key of its random streams."""

    rows: int
    columns: int
    objects: tuple[SceneObject, ...]
    key: tuple[int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.columns * CELL, self.rows * CELL

    def quadrant(self, thing: SceneObject) -> int | None:
        """0 top left, 1 top right, 2 bottom left, 3 bottom right; None on a middle line."""
        down = 2 * thing.row + thing.span - self.rows
        across = 2 * thing.column + thing.span - self.columns
        return 2 * (down > 0) + (across > 0) if down and across else None


def make_scene(split: str, seed: int, index: int, groups: int = 4) -> Scene:
    """Draw the scene of one (split, seed, index): the same triple always gives the same scene.

    groups: how many of the five groups of objects it holds (a traffic situation, people, animals,
    copies of a thing, another thing). Fewer make an easier scene, which the pre-training starts
    with.
    """
    rng = np.random.default_rng([SPLITS[split], seed, index])
    rows, columns = GRIDS[rng.integers(len(GRIDS))]
    objects = None
    while objects is None:  # about one drawing in two thousand has no room for all
        objects = place_members(draw_members(rng, groups), rows, columns, rng)
    return Scene(rows, columns, tuple(objects), (SPLITS[split], seed, index))


def draw_members(rng: np.random.Generator, groups: int) -> list[Member]:
    """What a scene holds, in the order of placing: traffic, then what is large, then the rest."""
    chosen = rng.permutation(5)[:groups]
    things, color, *others = rng.permutation(list(THINGS)), *rng.permutation(list(COLORS))
    traffic, rest = [], []
    for group in sorted(chosen):
        if group == 0:
            traffic = _draw_traffic(rng)
        elif group == 1:
            rest += _draw_people(rng)
        elif group == 2:
            kind, another = rng.permutation(list(ANIMALS))[:2]
            count = rng.integers(1, 5)
            span = 2 if count == 1 and rng.random() < 0.5 else 1
            rest += [Member("animal", str(kind), span=span, counted=True)] * count
            if rng.random() < 0.4:
                rest.append(Member("animal", str(another)))
        elif group == 3:
            count, same_kind = rng.integers(1, 5), rng.random() < 0.5
            rest += [Member("thing", str(things[0]), str(color), counted=True)] * count
            if same_kind:
                rest.append(Member("thing", str(things[0]), str(others[0]), span=2))
        else:
            same_color = rng.random() < 0.3
            shade = color if same_color else rng.choice(list(COLORS))
            rest.append(Member("thing", str(things[1]), str(shade), span=int(rng.integers(1, 3))))
    return traffic + sorted(rest, key=lambda member: -member.span)


def _draw_traffic(rng: np.random.Generator) -> list[Member]:
    """A vehicle, what has stopped it, and as often as not an innocent second cause."""
    kind = str(rng.choice(list(VEHICLES)))
    usual, others = USUAL_CAUSE[kind], [name for name in CAUSES if name != USUAL_CAUSE[kind]]
    cause = usual if rng.random() < USUAL_SHARE else str(rng.choice(others))
    second = [str(rng.choice([name for name in CAUSES if name != cause]))]
    causes = [cause, *(second if rng.random() < 0.5 else [])]
    vehicle = Member("vehicle", kind, str(rng.choice(list(COLORS))), span=int(rng.integers(1, 3)))
    return [vehicle, *(Member("cause", name) for name in causes)]


def _draw_people(rng: np.random.Generator) -> list[Member]:
    """One to four people; the first holds something, a second often something else."""
    people = rng.permutation(list(PEOPLE))[: rng.integers(1, 5)]
    items = rng.permutation(list(ITEMS))[: 1 + (rng.random() < 0.5)].tolist()
    held = [*items, None, None, None]
    return [
        Member("person", str(kind), item=item) for kind, item in zip(people, held, strict=False)
    ]


def place_members(
    members: list[Member], rows: int, columns: int, rng: np.random.Generator
) -> list[SceneObject] | None:
    """Put members into cells of their own, loosely aligned; None where one finds no room."""
    free = set(np.ndindex(rows, columns))
    objects: list[SceneObject] = []
    for member in members:
        cells = find_cells(member, objects, free)
        if not cells:
            return None
        row, column = cells[rng.integers(len(cells))]
        free -= {(row + down, column + across) for down, across in np.ndindex((member.span,) * 2)}
        room = member.span * CELL
        size = int(rng.integers(room - 4 * member.span - 4, room - 1))
        x, y = np.array([column, row]) * CELL + rng.integers(-2, 3, size=2) + (room - size) // 2
        objects.append(SceneObject(*member, row, column, size, max(int(x), 0), max(int(y), 0)))
    return objects


def find_cells(
    member: Member, objects: list[SceneObject], free: set[tuple[int, int]]
) -> list[tuple[int, int]]:
    """First cells at which a member fits: what stopped a vehicle beside it, another cause away."""
    span = list(np.ndindex((member.span,) * 2))
    cells = [
        (r, c) for r, c in free if all((r + down, c + across) in free for down, across in span)
    ]
    if member.category == "cause":
        vehicle = objects[0]
        first, last = vehicle.row, vehicle.row + vehicle.span - 1
        left, right = vehicle.column - 1, vehicle.column + vehicle.span
        if len(objects) == 1:
            cells = [(r, c) for r, c in cells if first <= r <= last and c in (left, right)]
        else:
            cells = [
                (r, c) for r, c in cells if not (first - 1 <= r <= last + 1 and left <= c <= right)
            ]
    return sorted(cells)


def render_scene(scene: Scene) -> Image.Image:
    """Paint a scene as an RGB picture of scene.size; a scene always gives the same pixels."""
    rng = np.random.default_rng([*scene.key, 1])
    width, height = scene.size
    base = np.array(BACKGROUNDS[rng.integers(len(BACKGROUNDS))], dtype=np.float32)
    shade = np.linspace(-6, 6, height, dtype=np.float32)[:, None, None] * rng.choice([-1.0, 1.0])
    noise = rng.integers(-5, 6, size=(height, width, 1))
    picture = Image.fromarray((base + shade + noise).clip(0, 255).astype(np.uint8))
    for thing in scene.objects:
        sprite = draw_sprite(thing.kind, thing.color, thing.item, thing.size)
        picture.paste(sprite, (thing.x, thing.y), sprite)
    return picture


def write_phantom(folder: Path, split: str, scenes: int, seed: int) -> None:
    """Write one split of the phantom in VQAv2's own files, the truth of each question beside.

    folder: gets `v2_OpenEnded_mscoco_{split}2014_questions.json`,
    `v2_mscoco_{split}2014_annotations.json`, `{split}2014/COCO_{split}2014_%012d.jpg` and
    `phantom_{split}2014_truth.json`. split: "train" or "val".
    About seven questions a scene, one for each family. ValueError on another split.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split is {split!r}: the phantom has 'train' and 'val', as VQAv2 has")
    from helpers.data.vqa import question_type  # not above: helpers.data imports this module

    folder = Path(folder)
    (folder / f"{split}2014").mkdir(parents=True, exist_ok=True)
    questions, annotations, truth = [], [], []
    for index in range(scenes):
        image_id = index + 1 + SPLITS[split] * 500_000
        scene = make_scene(split, seed, index)
        name = f"COCO_{split}2014_{image_id:012d}.jpg"
        render_scene(scene).save(folder / f"{split}2014" / name, quality=95, subsampling=0)
        rng = np.random.default_rng([*scene.key, 2])
        for number, asked in enumerate(ask_questions(scene, rng, new=split == "val")):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + number}
            questions.append({**ids, "question": asked.question})
            kind = question_type(asked.question)
            annotations.append({**ids, "question_type": kind, **collect_answers(asked, rng)})
            boxes = [clip_box(box, scene.size) for box in asked.boxes]
            known = {name: getattr(asked, name) for name in TRUTH}
            truth.append({**ids, **known, "boxes": boxes})
    description = "Phantom scenes in the format of VQA v2.0"
    header = {
        "info": {"description": description, "version": "1.0", "year": 2026},
        "license": {"name": "MIT License", "url": "https://opensource.org/license/mit"},
        "data_subtype": f"{split}2014",
    }
    asked = {**header, "task_type": "Open-Ended", "data_type": "phantom", "questions": questions}
    given = {**header, "data_type": "phantom", "annotations": annotations}
    for name, content in (
        (f"v2_OpenEnded_mscoco_{split}2014_questions.json", asked),
        (f"v2_mscoco_{split}2014_annotations.json", given),
        (f"phantom_{split}2014_truth.json", truth),
    ):
        write_atomic(folder / name, json.dumps(content))
    text = "wrote %d scenes with %d questions (%s, seed %d)"
    logger.info(text, scenes, len(questions), split, seed)


def clip_box(box: list[int], size: tuple[int, int]) -> list[int]:
    """The part of a box [x, y, width, height] that lies in a picture of this width and height."""
    x, y, width, height = box
    return [x, y, min(width, size[0] - x), min(height, size[1] - y)]


def read_truth(folder: Path, split: str) -> dict[int, dict]:
    """What is known of each question, by its id: `needs_image`, `wording`, `new_wording`, `boxes`.

    Empty where the data has no such file: real VQAv2 does not say what a question is about.
    """
    path = Path(folder) / f"phantom_{split}2014_truth.json"
    if not path.is_file():
        return {}
    return {row["question_id"]: row for row in json.loads(path.read_text())}
