"""Do heads and maps point at what a question asks about? Boxes, pointing game, mass in the box.

    hits, chance = pointing_hits(table.top_patch, table.questions, dataset)
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


def box_to_patch_mask(
    box: Sequence[float], grid: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Which patches are in a box: bool (rows, columns). size: (width, height) of the image."""
    x, y, width, height = box
    (rows, columns), (image_width, image_height) = grid, size
    across = (np.arange(columns) + 0.5) / columns * image_width
    down = (np.arange(rows) + 0.5) / rows * image_height
    inside = np.outer((down >= y) & (down <= y + height), (across >= x) & (across <= x + width))
    if not inside.any():
        row = int(np.clip((y + height / 2) / image_height * rows, 0, rows - 1))
        column = int(np.clip((x + width / 2) / image_width * columns, 0, columns - 1))
        inside[row, column] = True
    return inside


def boxes_to_patch_mask(
    boxes: Sequence[Sequence[float]], grid: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Which patches are in any of the boxes: bool (rows, columns), all False without boxes."""
    masks = [box_to_patch_mask(box, grid, size) for box in boxes]
    return np.any([np.zeros(grid, dtype=bool), *masks], axis=0)


def pointing_hits(
    top_patch: np.ndarray, questions: pd.DataFrame, dataset: Dataset
) -> tuple[np.ndarray, np.ndarray]:
    """Does the patch with the most attention lie in a box that the question is about?

    top_patch: (question, ...) raster indices, below 0 for none. questions: columns grid_rows and
    grid_cols, as an AttentionTable has them. dataset: the same questions, with columns boxes,
    width and height. Returns hits (question, ...), 0 or 1, and chance (question,), the share of
    patches in a box; NaN for a question without a box.
    """
    if not len(top_patch) == len(questions) == len(dataset):
        rows = f"{len(top_patch)}, {len(questions)} and {len(dataset)}"
        raise ValueError(f"top_patch, questions and dataset have {rows} rows: one each a question")
    hits, chance = np.full(top_patch.shape, np.nan), np.full(len(top_patch), np.nan)
    grids = questions[["grid_rows", "grid_cols"]].to_numpy()
    columns = (dataset[name][:] for name in ("boxes", "width", "height"))
    for row, (boxes, *size) in enumerate(zip(*columns, strict=True)):
        if boxes:
            inside = boxes_to_patch_mask(boxes, grids[row], size).ravel()
            chance[row] = inside.mean()
            hits[row] = np.where(top_patch[row] >= 0, inside[top_patch[row]], np.nan)
    return hits, chance


def point_in_box(weights: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pointing game (Zhang et al. 2018): 1 where a map's largest weight lies inside, else 0.

    weights: (..., patch) or (..., rows, columns); inside: bool (patch,) or (rows, columns). Of
    equals the first counts. NaN for a map of zeros, and where no patch is inside.
    """
    flat = weights.reshape(*weights.shape[: weights.ndim - inside.ndim], inside.size)
    hit = inside.ravel()[flat.argmax(-1)].astype(float)
    return np.where((flat.max(-1) > 0) & inside.any(), hit, np.nan)


def mass_in_box(weights: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Share of a map's mass inside, over the share of patches inside: 1 is chance.

    weights (not negative), inside and NaN: as `point_in_box`.
    """
    flat = weights.reshape(*weights.shape[: weights.ndim - inside.ndim], inside.size)
    share = divide_or_nan(flat[..., inside.ravel()].sum(-1), flat.sum(-1))
    return divide_or_nan(share, inside.mean())[()]


def ground_maps(
    row: int, question: QuestionMaps, maps: dict[str, np.ndarray], example: dict
) -> pd.DataFrame:
    """Pointing and mass of each map and of each head's [CLS] query on one question.

    maps: (rows, columns) each; example: the question's row of the data set. Columns: question
    (row), map, layer, head (both -1 for a map), pointing, mass, chance (share of patches in a box).
    Empty without a box.
    """
    if not example["boxes"]:
        return pd.DataFrame(
            columns=["question", "map", "layer", "head", "pointing", "mass", "chance"]
        )
    size = (example["width"], example["height"])
    inside = boxes_to_patch_mask(example["boxes"], question.grid, size).ravel()
    heads = question.attention[:, :, 0, question.groups["patches"]].float().cpu().numpy()
    cells = [*np.ndindex(heads.shape[:2])]
    layer, head = np.array([(-1, -1)] * len(maps) + cells).T
    names = [*maps, *(f"L{layer}H{head}" for layer, head in cells)]
    combined = [weights.ravel() for weights in maps.values()]
    weights = np.concatenate([combined, heads.reshape(-1, heads.shape[2])])
    table = pd.DataFrame({"question": row, "map": names, "layer": layer, "head": head})
    return table.assign(
        pointing=point_in_box(weights, inside),
        mass=mass_in_box(weights, inside),
        chance=inside.mean(),
    )


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
