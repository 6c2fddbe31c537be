"""Synthetic VQA with known ground truth: scenes, questions, ten annotators, official files.

    write_phantom(folder, "train", scenes=1600, seed=0)  # questions, annotations, images, truth
    truth = read_truth(folder, "train")  # which question needs the image; its boxes

Named after the objects of known content that calibrate a scanner. A scene is a grid of square cells
(4 x 4, 5 x 4 or 4 x 5) with at most one object in each, so that one object is about one patch of
the small ViLT. Every question that needs the image has an answer that is uniform given its *words*:
who answers from the words alone gets 1 / (number of answers) right, and no more. Controls are
answered by the words alone.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.run.cache import write_atomic
from phantom.questions import ask_questions, collect_answers
from phantom.sprites import ANIMALS, CAUSES, COLORS, ITEMS, PEOPLE, THINGS, VEHICLES, draw_sprite

logger = logging.getLogger(__name__)

CELL = 48  # pixels
GRIDS = ((4, 4), (4, 5), (5, 4))  # rows, columns: square, landscape, portrait
SPLITS = {"train": 0, "val": 1, "pretrain": 2}  # each draws from random streams of its own
Member = tuple[str, str, str | None, str | None]  # category, kind, colour, item
BACKGROUNDS = ((222, 232, 214), (238, 228, 205), (214, 226, 238), (232, 222, 228), (226, 226, 226))


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene: what it is, its cell, and its size and place in pixels."""

    kind: str
    category: str
    color: str | None
    item: str | None
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
    single_kind: str  # the kind of thing that is never drawn more than once

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.columns * CELL, self.rows * CELL


def make_scene(split: str, seed: int, index: int, groups: int = 4) -> Scene:
    """Draw the scene of one (split, seed, index): the same triple always gives the same scene.

    groups: how many of the five groups of objects it holds (a traffic situation, people, animals,
    two kinds of things). Fewer make an easier scene, which the pre-training starts with.
    """
    rng = np.random.default_rng([SPLITS[split], seed, index])
    rows, columns = GRIDS[rng.integers(len(GRIDS))]
    things = rng.permutation(list(THINGS))
    makers = [
        lambda: _draw_traffic(rng),
        lambda: _draw_people(rng),
        lambda: _draw_copies("animal", rng.choice(list(ANIMALS)), None, rng.integers(1, 5)),
        lambda: _draw_copies("thing", things[0], rng.choice(list(COLORS)), rng.integers(1, 5)),
        lambda: _draw_copies("thing", things[1], rng.choice(list(COLORS)), 1),
    ]
    # traffic first: it needs two neighbouring cells
    chosen = sorted(rng.permutation(len(makers))[:groups])
    free = {(r, c) for r in range(rows) for c in range(columns)}
    objects = []
    for maker in chosen:
        members = makers[maker]()
        if len(members) > len(free) - 1 or (groups == 1 and maker != 0):
            members = members[:1]
        objects += _place(rng, members, free, columns, stopped=maker == 0)
    return Scene(rows, columns, tuple(objects), (SPLITS[split], seed, index), str(things[1]))


def _draw_traffic(rng: np.random.Generator) -> list[Member]:
    """A vehicle, what has stopped it, and now and then an innocent second cause."""
    vehicle = ("vehicle", rng.choice(list(VEHICLES)), rng.choice(list(COLORS)), None)
    causes = rng.permutation(list(CAUSES))[: 1 + (rng.random() < 0.3)]
    return [vehicle, *(("cause", cause, None, None) for cause in causes)]


def _draw_people(rng: np.random.Generator) -> list[Member]:
    """One to four people; the first holds something."""
    people = rng.permutation(list(PEOPLE))[: rng.integers(1, 5)]
    items = [rng.choice(list(ITEMS)), None, None, None]
    return [("person", kind, None, item) for kind, item in zip(people, items, strict=False)]


def _draw_copies(category: str, kind: str, color: str | None, count: int) -> list[Member]:
    return [(category, kind, color, None)] * int(count)


def _place(
    rng: np.random.Generator,
    members: list[Member],
    free: set[tuple[int, int]],
    columns: int,
    stopped: bool,
) -> list[SceneObject]:
    """Put the members into free cells, loosely aligned; a stop's cause right of its vehicle."""
    objects = []
    for number, (category, kind, color, item) in enumerate(members):
        if stopped and number == 0:
            cells = [cell for cell in free if cell[1] < columns - 1]
        elif stopped and number == 1:
            cells = [(objects[0].row, objects[0].column + 1)]
        elif stopped:  # an innocent cause stands away from the vehicle
            row, column = objects[0].row, objects[0].column
            cells = [c for c in free if max(abs(c[0] - row), abs(c[1] - column)) > 1]
        else:
            cells = list(free)
        row, column = sorted(cells)[rng.integers(len(cells))]
        free.discard((row, column))
        size = int(rng.integers(40, 47))
        dx, dy = rng.integers(-3, 4, size=2) + (CELL - size) // 2
        x, y = np.clip([column * CELL + dx, row * CELL + dy], 0, None)
        x, y = min(int(x), (column + 1) * CELL - size + 2), min(int(y), (row + 1) * CELL - size + 2)
        names = str(kind), category, color and str(color), item and str(item)
        objects.append(SceneObject(*names, row, column, size, x, y))
    return objects


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
    folder = Path(folder)
    (folder / f"{split}2014").mkdir(parents=True, exist_ok=True)
    questions, annotations, truth = [], [], []
    for index in range(scenes):
        image_id = index + 1 + SPLITS[split] * 500_000
        scene = make_scene(split, seed, index)
        name = f"COCO_{split}2014_{image_id:012d}.jpg"
        render_scene(scene).save(folder / f"{split}2014" / name, quality=95, subsampling=0)
        rng = np.random.default_rng([*scene.key, 2])
        for number, asked in enumerate(ask_questions(scene, rng)):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + number}
            questions.append({**ids, "question": asked.question})
            annotations.append({**ids, **collect_answers(asked, rng)})
            boxes = [clip_box(box, scene.size) for box in asked.boxes]
            truth.append({**ids, "needs_image": asked.needs_image, "boxes": boxes})
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
    """What is known of each question: {id: {"needs_image": bool, "boxes": [[x, y, w, h], ...]}}.

    Empty where the data has no such file: real VQAv2 does not say what a question is about.
    """
    path = Path(folder) / f"phantom_{split}2014_truth.json"
    if not path.is_file():
        return {}
    return {row["question_id"]: row for row in json.loads(path.read_text())}
