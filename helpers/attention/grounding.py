"""Do heads and maps point at what a question asks about? Boxes, pointing game, mass in the box.

    hits, chance = pointing_hits(table.top_patch, table.questions, dataset)
    by_object = object_chance(table.questions, dataset)     # of pointing at any known object
    inside = boxes_to_patch_mask(row["boxes"], grid=(12, 16), size=(row["width"], row["height"]))
    mass_in_box(weights, inside)    # 1 is chance

A box is [x, y, width, height] in pixels of the original image, over which the patch grid is
stretched. A patch is in a box if its centre is inside or on the edge; of a box that holds no
centre, the patch at the box's own centre is.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from datasets import Dataset

from helpers.attention.image_share import QuestionMaps
from helpers.stats.bootstrap import bootstrap_mean
from helpers.stats.cluster_robust import divide_or_nan


def boxes_to_patch_mask(
    boxes: Sequence[Sequence[float]], grid: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Which patches are in any of the boxes: bool (rows, columns). size: (width, height)."""
    (rows, columns), (image_width, image_height) = grid, size
    across = (np.arange(columns) + 0.5) / columns * image_width
    down = (np.arange(rows) + 0.5) / rows * image_height
    mask = np.zeros(grid, dtype=bool)
    for x, y, width, height in boxes:
        inside = np.outer((down >= y) & (down <= y + height), (across >= x) & (across <= x + width))
        if not inside.any():
            row = int(np.clip((y + height / 2) / image_height * rows, 0, rows - 1))
            column = int(np.clip((x + width / 2) / image_width * columns, 0, columns - 1))
            inside[row, column] = True
        mask |= inside
    return mask


def mask_boxes(questions: pd.DataFrame, dataset: Dataset) -> np.ndarray:
    """Which patches lie in a box asked about: bool (question, patch), all False without a box.

    questions: of an AttentionTable; dataset: the same questions. Smaller grids end in False.
    """
    grids = questions[["grid_rows", "grid_cols"]].to_numpy()
    inside = np.zeros((len(grids), grids.prod(1).max(initial=0)), dtype=bool)
    columns = (dataset[name][:] for name in ("boxes", "width", "height"))
    for row, (boxes, *size) in enumerate(zip(*columns, strict=True)):
        if boxes:
            inside[row, : grids[row].prod()] = boxes_to_patch_mask(boxes, grids[row], size).ravel()
    return inside


def find_hits(top_patch: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """1 where the patch lies inside, 0 elsewhere: (question, ...); NaN without a patch or a box.

    top_patch: (question, ...) raster indices, below 0 for none; inside: of `mask_boxes`.
    """
    rows = np.arange(len(top_patch)).reshape(-1, *[1] * (top_patch.ndim - 1))
    untold = (top_patch < 0) | ~inside.any(1)[rows]
    return np.where(untold, np.nan, inside[rows, top_patch])


def pointing_hits(
    top_patch: np.ndarray, questions: pd.DataFrame, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray]:
    """Does the patch with the most attention lie in a box that the question is about?

    top_patch: (question, ...) raster indices, below 0 for none. questions: of an AttentionTable;
    dataset: the same questions. Returns hits (question, ...), 0 or 1, and chance (question,), the
    share of patches in a box; NaN for a question without a box.
    """
    if not len(top_patch) == len(questions) == len(dataset):
        rows = f"{len(top_patch)}, {len(questions)} and {len(dataset)}"
        raise ValueError(f"top_patch, questions and dataset have {rows} rows: one each a question")
    inside = mask_boxes(questions, dataset)
    n_patches = questions[["grid_rows", "grid_cols"]].prod(axis=1).to_numpy()
    chance = np.where(inside.any(1), inside.sum(1) / n_patches, np.nan)
    return find_hits(top_patch, inside), chance


def object_chance(questions: pd.DataFrame, dataset: Dataset) -> np.ndarray:
    """How often a random object of the picture would be hit: the chance of who looks at objects.

    A picture's known objects are the boxes of all questions about it, each box once: what nobody
    asks about is not known. Chance (question,) is the share of a random object's patches that lie
    in a box asked about, mean over the objects, those asked about included: about 1 / objects. NaN
    for a question without a box, and where nobody asks about another object of the picture.
    questions, dataset: as for `pointing_hits`.
    """
    chance = np.full(len(dataset), np.nan)
    grids = [tuple(grid) for grid in questions[["grid_rows", "grid_cols"]].to_numpy()]
    boxes = [[tuple(box) for box in asked] for asked in dataset["boxes"][:]]
    sizes = list(zip(dataset["width"][:], dataset["height"][:], strict=True))
    by_picture = pd.Series(range(len(dataset))).groupby(np.array(dataset["image_id"]))
    for rows in by_picture.groups.values():
        known = sorted({box for row in rows for box in boxes[row]})
        where = (grids[rows[0]], sizes[rows[0]])  # of the picture
        objects = np.array([boxes_to_patch_mask([box], *where).ravel() for box in known], float)
        for row in rows:
            if boxes[row] and len(set(boxes[row])) < len(known):
                inside = boxes_to_patch_mask(boxes[row], *where).ravel()
                chance[row] = (objects @ inside / objects.sum(1)).mean()
    return chance


def hits_over_chance(hits: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Values (question, ...) whose mean is the mean of hits over that of chance; 1 is chance.

    Their variance over images is that of the ratio (linearised, the delta method). hits: (question,
    ...); chance: (question,); NaN where either is.
    """
    chance = np.where(np.isnan(hits), np.nan, chance.reshape(-1, *[1] * (hits.ndim - 1)))
    hits = np.where(np.isnan(chance), np.nan, hits)
    level = np.nanmean(chance, axis=0)
    ratio = divide_or_nan(np.nanmean(hits, axis=0), level)
    return ratio + divide_or_nan(hits - ratio * chance, level)


def point_in_box(weights: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pointing game (Zhang et al. 2018): 1 where a map's largest weight lies inside, else 0.

    weights: (..., patch), of equals the first counts; inside: bool (patch,). NaN for a map of
    zeros, and where no patch is inside.
    """
    hit = inside[weights.argmax(-1)].astype(float)
    return np.where((weights.max(-1) > 0) & inside.any(), hit, np.nan)


def mass_in_box(weights: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """A map's share of mass inside, over that of patches: 1 is chance. As `point_in_box`."""
    share = divide_or_nan(weights[..., inside].sum(-1), weights.sum(-1))
    return divide_or_nan(share, inside.mean())


def ground_maps(
    row: int, question: QuestionMaps, maps: dict[str, np.ndarray], example: dict
) -> pd.DataFrame:
    """Pointing and mass of each map and of each head's [CLS] query on one question.

    maps: (rows, columns) each; example: the question's row of the data set. Columns: question
    (row), map, layer, head (both -1 for a map), pointing, mass, chance (share of patches in a box:
    0, and the others NaN, without a box).
    """
    size = (example["width"], example["height"])
    inside = boxes_to_patch_mask(example["boxes"], question.grid, size).ravel()
    heads = question.attention[:, :, 0, question.groups["patches"]].float().cpu().numpy()
    cells = [*np.ndindex(heads.shape[:2])]
    layer, head = np.array([(-1, -1)] * len(maps) + cells).T
    names = [*maps, *(f"L{layer}H{head}" for layer, head in cells)]
    weights = np.stack([*map(np.ravel, maps.values()), *heads.reshape(len(cells), -1)])
    table = pd.DataFrame({"question": row, "map": names, "layer": layer, "head": head})
    hits, mass = point_in_box(weights, inside), mass_in_box(weights, inside)
    return table.assign(pointing=hits, mass=mass, chance=inside.mean())


def score_boxes(
    boxes: pd.DataFrame, image_ids: np.ndarray, n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Mean pointing and mass of each map and head, with 95 % intervals over images.

    boxes: of `ground_maps`; image_ids: of its rows. Columns: map, layer, head, measure ("pointing",
    "mass"), those of an interval, chance (mean share of patches in a box; 1 for mass).
    """
    tables = [pd.DataFrame()]
    for (name, layer, head), rows in boxes.groupby(["map", "layer", "head"], sort=False):
        values = rows[["pointing", "mass"]].to_numpy()
        interval = bootstrap_mean(values, image_ids[rows.index], n_resamples, seed)
        columns = {"map": name, "layer": layer, "head": head, "measure": ["pointing", "mass"]}
        chance = [rows["chance"].mean(), 1.0]
        tables.append(interval.to_table(("measure",)).assign(**columns, chance=chance))
    return pd.concat(tables, ignore_index=True)
