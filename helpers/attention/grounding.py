"""Do heads and maps point at what a question asks about? Boxes and the pointing game.

    hits, chance = pointing_hits(table.top_patch, table.questions, dataset)
    by_object = object_chance(table.questions, dataset)     # of pointing at any known object
    faithful_grounding(model, encoded, mask_boxes(table.questions, dataset), indices)    # FPVG

A box is [x, y, width, height] in pixels of the original image, over which the patch grid is
stretched. A patch is in a box if its centre is inside or on the edge; of a box that holds no
centre, the patch at the box's own centre is.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor, nn

from helpers.attention.extract import AttentionTable
from helpers.attention.image_share import check_eval_mode, keep_patches, prepare_batch
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import forward_raster, patch_grids
from helpers.stats.bootstrap import Interval, bootstrap_mean, spearman_rows
from helpers.stats.models import linearise_ratio


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


class MarkedQuestions(EncodedQuestions):
    """Encoded questions whose batches say which patches the known objects cover.

    marked = MarkedQuestions(encoded, model.config.patch_size)

    A batch then holds objects (batch, 2, patch), bool: the patches in a box asked about, and those
    of the picture's other known objects, the boxes of all other questions about it. Both are empty
    where boxes are not known.
    """

    def __init__(self, encoded: EncodedQuestions, patch_size: int) -> None:
        self.__dict__ |= vars(encoded) | {"patch_size": patch_size}
        if "boxes" in self.questions:
            by_picture = self.questions.explode("boxes").dropna(subset="boxes")
            known = by_picture.groupby("image_id")["boxes"].agg(list)
            self.questions = self.questions.join(known.rename("known"), on="image_id")

    def batches(
        self, batch_size: int, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """As of `EncodedQuestions.batches`, with `objects`."""
        for rows, batch in super().batches(batch_size, indices):
            grids = patch_grids(batch["pixel_mask"], self.patch_size)[batch["picture_of"]].tolist()
            objects = torch.zeros(len(rows), 2, max(map(math.prod, grids)), dtype=torch.bool)
            asked = self.questions.iloc[rows].itertuples() if "boxes" in self.questions else ()
            for mark, grid, question in zip(objects, grids, asked, strict=False):
                if len(question.boxes):
                    given = grid, (question.width, question.height)
                    own = boxes_to_patch_mask(question.boxes, *given)
                    others = boxes_to_patch_mask(question.known, *given) & ~own
                    mark[:, : own.size] = torch.from_numpy(np.stack([own, others])).flatten(1)
            yield rows, {**batch, "objects": objects}


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


def hits_of_another_question(
    top_patch: np.ndarray, questions: pd.DataFrame, dataset: Dataset
) -> np.ndarray:
    """`pointing_hits`, with what each head favours for another question about the same picture.

    The next question with a box about the picture, of the last one the first; NaN where that one
    asks about the same boxes.
    """
    boxes, image_ids = dataset["boxes"][:], np.array(dataset["image_id"])
    boxed, other = np.flatnonzero([len(each) > 0 for each in boxes]), np.arange(len(boxes))
    for _, rows in pd.Series(boxed).groupby(image_ids[boxed]):
        other[rows] = np.roll(rows, -1)
    hits = pointing_hits(top_patch[other], questions, dataset)[0]
    hits[[boxes[row] == boxes[another] for row, another in enumerate(other)]] = np.nan
    return hits


def best_heads(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The head and query of each layer that hits most often: head, query, rate, (layer,) each.

    hits: (question, layer, head, QUERY_GROUPS), of `pointing_hits`. Queries are [CLS] (0) and words
    (1); in the last layer [CLS] alone, as nothing reads what words attend to there.
    """
    rates = np.nanmean(hits[..., :2], axis=0)
    rates[-1, :, 1] = -1
    rates = rates.reshape(len(rates), -1)
    return *np.divmod(rates.argmax(1), 2), rates.max(1)


def tabulate_hits(
    against: dict[str, np.ndarray],
    random_hits: Sequence[np.ndarray],
    image_ids: np.ndarray,
    chosen_on: np.ndarray,
    random_rows: np.ndarray,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How often each layer's best head hits: chosen on some questions, scored on the others.

    against: name -> hits (question, layer, head, QUERY_GROUPS); the first choose. random_hits: of
    random-weight models on the rows `random_rows`; each chooses its own heads. Columns: layer,
    those of a 95 % interval over images (of the random models mean, lowest and highest), against,
    label.
    """
    heads, queries, _ = best_heads(next(iter(against.values()))[chosen_on])
    layers, scored, tables = np.arange(len(heads)), ~chosen_on, []
    pairs = zip(layers, heads, np.array(["[CLS]", "words"])[queries], strict=True)
    label = [f"L{layer}H{head}, {query}" for layer, head, query in pairs]
    for name, hits in against.items():
        rates = hits[scored][:, layers, heads, queries]
        interval = bootstrap_mean(rates, image_ids[scored], n_resamples, seed)
        tables.append(interval.to_table(("layer",)).assign(against=name, label=label))
    choose, lucky = chosen_on[random_rows], []
    for hits in random_hits:
        cells = best_heads(hits[choose])[:2]
        lucky.append(np.nanmean(hits[~choose][:, layers, *cells], axis=0))
    ids = image_ids[random_rows][~choose & ~np.isnan(random_hits[0][:, 0, 0, 0])]
    spread = (np.mean(lucky, 0), np.min(lucky, 0), np.max(lucky, 0), len(ids), len(np.unique(ids)))
    table = Interval(*spread).to_table(("layer",))
    tables.append(table.assign(against="best heads, random weights", label=""))
    return pd.concat(tables, ignore_index=True)


def best_head_over_chance(
    hits: np.ndarray, chance: np.ndarray, chosen_on: np.ndarray
) -> np.ndarray:
    """Values whose mean is the best head's mean of hits over that of chance; 1 is chance.

    The head is chosen on some questions and scored on the others, of which these are the values,
    NaN where hits or chance are. Their variance over images is that of the ratio. hits: as for
    `best_heads`; chance: (question,), of `object_chance`; chosen_on: bool (question,).
    """
    heads, queries, rates = best_heads(hits[chosen_on])
    layer = rates.argmax()
    of_best, chance = hits[~chosen_on][:, layer, heads[layer], queries[layer]], chance[~chosen_on]
    unknown = np.isnan(of_best) | np.isnan(chance)
    return linearise_ratio(np.where(unknown, np.nan, of_best), np.where(unknown, np.nan, chance))


def score_locators(table: AttentionTable) -> np.ndarray:
    """How much each head looks at few patches, for which no box need be known.

    Of the queries [CLS] and words: attention on patches times 1 - entropy, (question, layer, head,
    2), from 0 (nothing on patches, or all keys alike) to 1 (one patch). After Kang et al. (2025,
    "Your large vision-language model only needs a few attention heads for visual grounding"), who
    ask for much attention on the image and few connected regions of it; the entropy here is that of
    the attention over all keys, which is in the table.
    """
    return table.split[..., :2, 4] * (1 - table.entropy[..., :2])


def judge_locators(
    table: AttentionTable, inside: np.ndarray, chosen_on: np.ndarray
) -> dict[str, float]:
    """Do `score_locators` find the heads that point at the boxes?

    inside: of `mask_boxes`; chosen_on: bool (question,). Scores are means over the questions chosen
    on, hits over the others. rank: Spearman's correlation of both over heads and queries. Hits in
    percent: of the best score, of the best hits where chosen on, and the mean over all heads.
    """
    hits = find_hits(table.top_patch[..., :2], inside)
    by_question = (score_locators(table)[chosen_on], hits[chosen_on], hits[~chosen_on])
    scores, known, judged = (np.nanmean(values, axis=0) for values in by_question)
    for values in (scores, known, judged):
        values[-1, :, 1] = np.nan  # what words attend to in the last layer, nothing reads
    is_read = ~np.isnan(judged)
    return {
        "rank": spearman_rows(scores[is_read][None], judged[is_read][None])[0],
        "best score": 100 * judged.flat[np.nanargmax(scores)],
        "best hits": 100 * judged.flat[np.nanargmax(known)],
        "mean head": 100 * np.nanmean(judged),
    }


@torch.no_grad()
def faithful_grounding(
    model: nn.Module, encoded: EncodedQuestions, inside: np.ndarray, indices: Sequence[int]
) -> pd.DataFrame:
    """Is the answer the right objects' alone? It stays with them alone and changes without them.

    FPVG (Reich, Putze and Schultz 2023, "Measuring faithful and plausible visual grounding in VQA")
    with patches for objects: the tokens of all others leave the sequence. inside: of `mask_boxes`,
    for all questions of encoded; indices: rows with a box. Columns, a row a question: question
    (row), stays, changes, grounded (both). No answer needs to be right. ValueError in train mode.
    """
    check_eval_mode(model)
    parts = []
    for rows, batch in encoded.batches(64, indices):
        inputs, _, grids = prepare_batch(model, batch)
        masks = [inside[row, :n] for row, n in zip(rows, grids.prod(1).tolist(), strict=True)]
        relevant = keep_patches(inputs, [np.flatnonzero(mask) for mask in masks])
        rest = keep_patches(inputs, [np.flatnonzero(~mask) for mask in masks])
        logits = [forward_raster(model, each).logits for each in (inputs, relevant, rest)]
        whole, alone, without = torch.stack([each.argmax(1) for each in logits]).cpu().numpy()
        columns = {"question": rows, "stays": alone == whole, "changes": without != whole}
        parts.append(pd.DataFrame(columns))
    table = pd.concat(parts).set_index("question").loc[[*indices]].reset_index()
    return table.assign(grounded=table["stays"] & table["changes"])
