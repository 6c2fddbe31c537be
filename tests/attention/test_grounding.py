"""helpers/attention/grounding.py: boxes, the pointing game, the best heads."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import concatenate_datasets
from small import make_boxes

from helpers.attention.extract import extract_attention, read_attention
from helpers.attention.grounding import (
    best_head_over_chance,
    best_heads,
    boxes_to_patch_mask,
    faithful_grounding,
    hits_of_another_question,
    judge_locators,
    object_chance,
    pointing_hits,
    score_locators,
    tabulate_hits,
)
from helpers.attention.image_share import prepare_batch
from helpers.data.encode import EncodedQuestions
from helpers.data.vqa import read_vqa
from helpers.model.forward import forward_raster
from helpers.model.vilt import load_vilt
from helpers.run.cache import ROOT
from helpers.stats.bootstrap import spearman_rows, split_images

SAMPLE = ROOT.parent / "shared" / "vqav2_sample"


def test_boxes_by_hand():
    # 400 x 200 under 2 x 4 patches of 100 x 100, centres at 50, 150, ...; the edge counts
    pair = [[0, 0, 60, 60], [340, 140, 60, 60]]
    boxes = [[[0, 0, 150, 50]], [[0, 0, 160, 160]], [[310, 110, 10, 10]], pair, []]
    top = np.array([[0, 1], [5, 2], [-1, 6], [7, 3], [0, 0]])  # -1: no patch
    questions = pd.DataFrame({"grid_rows": 2, "grid_cols": 4}, index=range(5))
    hits, chance = pointing_hits(top, questions, make_boxes(boxes, 400, 200))
    np.testing.assert_array_equal(hits, [[1, 1], [1, 0], [np.nan, 0], [1, 0], [np.nan] * 2])
    np.testing.assert_array_equal(chance, [2 / 8, 4 / 8, 1 / 8, 2 / 8, np.nan])


def test_boxes_agree_with_a_walk_over_the_patches():
    rng = np.random.default_rng(0)
    for _ in range(30):
        (rows, columns), (width, height) = rng.integers(1, 7, 2), rng.integers(20, 300, 2)
        x, y = rng.integers(width), rng.integers(height)
        box = [x, y, rng.integers(1, width - x + 1), rng.integers(1, height - y + 1)]
        found = boxes_to_patch_mask([box], (rows, columns), (width, height))
        inside = np.zeros((rows, columns), dtype=bool)
        for row, column in np.ndindex(rows, columns):
            # in whole numbers, doubled: centre = (2 column + 1) * width / (2 columns)
            across, down = (2 * column + 1) * width, (2 * row + 1) * height
            beside = 2 * columns * x <= across <= 2 * columns * (x + box[2])
            inside[row, column] = beside and 2 * rows * y <= down <= 2 * rows * (y + box[3])
        if inside.any():
            np.testing.assert_array_equal(found, inside)
        else:  # the one patch that holds the box's centre
            assert found.sum() == 1
            ((row,), (column,)) = found.nonzero()
            assert column * width <= (x + box[2] / 2) * columns <= (column + 1) * width
            assert row * height <= (y + box[3] / 2) * rows <= (row + 1) * height


class TestObjectChance:
    # patches of 100 x 100 pixels; three objects: one patch, two patches, and one over two of four
    first, second, third = [0, 0, 100, 100], [100, 0, 200, 100], [200, 0, 100, 200]

    def chance(self, boxes, image_ids):
        questions = pd.DataFrame({"grid_rows": 2, "grid_cols": 4}, index=range(len(boxes)))
        return object_chance(questions, make_boxes(boxes, 400, 200, image_ids))

    def test_by_hand(self):
        """Asked twice, an object is one object; where objects overlap, a part of it is hit."""
        asked = [[self.first], [self.first], [self.second], [self.third, self.first], []]
        apart = [[self.first], [self.second]]
        chance = self.chance(asked + apart, [1] * 5 + [2] * 2)
        expected = [1 / 3, 1 / 3, (0 + 1 + 1 / 2) / 3, (1 + 1 / 2 + 1) / 3, np.nan, 1 / 2, 1 / 2]
        np.testing.assert_allclose(chance, expected)

    def test_a_picture_with_one_known_object_tells_nothing(self):
        assert np.isnan(self.chance([[self.first], [self.first], []], [1, 1, 1])).all()


def test_the_best_heads_hits_are_a_ratio_to_chance_where_there_is_one():
    rng = np.random.default_rng(0)
    hits, chance = (rng.random(450) < 0.6).astype(float), rng.uniform(0.1, 0.4, 450)
    chance[50:57], hits[57:59] = np.nan, np.nan
    one_head = np.stack([hits, 0 * hits], axis=1)[:, None, None]
    values, kept = best_head_over_chance(one_head, chance, np.arange(450) < 50), slice(59, None)
    assert np.isnan(values[:9]).all()
    assert np.nanmean(values) == pytest.approx(hits[kept].mean() / chance[kept].mean())


def test_hits_of_another_question_by_hand():
    """Three questions on one picture; the third has no box, the first two swap their patches."""
    left, right = [0, 0, 100, 100], [100, 0, 100, 100]
    boxes = [[left], [right], [], [left], [left]]
    questions = pd.DataFrame({"grid_rows": 1, "grid_cols": 2}, index=range(5))
    data = make_boxes(boxes, 200, 100, [1, 1, 1, 2, 2])
    top = np.array([[1, 0], [0, 0], [0, 0], [0, 0], [0, 0]])  # two heads
    hits = hits_of_another_question(top, questions, data)
    np.testing.assert_array_equal(hits[:2], [[1, 1], [1, 0]])
    assert np.isnan(hits[2:]).all()  # no box; the same box is asked about


@pytest.fixture
def finder():
    """Hits (question, 2 layers, 2 heads, 3 queries) at a rate of each cell, on 30 pictures."""
    rates = np.full((2, 2, 3), 0.2)
    rates[0, 1, 1], rates[1, 0, 1], rates[1, 1, 0], rates[0, 0, 2] = 0.9, 1.0, 0.6, 1.0
    return (np.random.default_rng(0).random((600, 2, 2, 3)) < rates).astype(float)


def test_the_best_head_is_one_whose_query_reaches_the_answer(finder):
    heads, queries, rates = best_heads(finder)
    assert heads.tolist() == [1, 1]
    assert queries.tolist() == [1, 0]  # words; in the last layer [CLS]
    assert rates == pytest.approx([0.9, 0.6], abs=0.06)


def test_a_head_is_scored_where_it_was_not_chosen(finder):
    chosen_on, images = np.arange(600) < 300, np.repeat(range(30), 20)
    finder[:300, 0, 0, 0] = 1  # perfect where it is chosen, and 0.2 where it is scored
    score = best_head_over_chance(finder, np.full(600, 0.1), chosen_on)
    assert np.nanmean(score) == pytest.approx(finder[300:, 0, 0, 0].mean() / 0.1)
    rows, lucky = np.arange(0, 600, 3), np.zeros((200, 2, 2, 3))
    lucky[::2] = 1
    given = ([lucky, 0 * lucky], images, chosen_on, rows)
    table = tabulate_hits({"the head": finder, "other": 0 * finder}, *given, n_resamples=20)
    assert table["label"].tolist()[:2] == ["L0H0, [CLS]", "L1H1, [CLS]"]
    first = table[table["layer"] == 0].set_index("against")
    assert first.loc["the head", "estimate"] == pytest.approx(finder[300:, 0, 0, 0].mean())
    assert first.loc["other", "estimate"] == 0
    random = first.loc["best heads, random weights"]
    assert random[["estimate", "low", "high", "n"]].tolist() == [0.25, 0, 0.5, 100]


def test_grounding_asks_for_the_answer_of_masked_patches(model, encoded):
    """By hand: the patches that must go are masked where they stand, one question at a time."""
    inside = np.random.default_rng(0).random((len(encoded), 40)) < 0.4
    inside[:, :2] = [True, False]
    rows = [7, 2, 0, 9]
    table = faithful_grounding(model, encoded, inside, rows)
    assert table["question"].tolist() == rows
    for row, found in zip(rows, table.itertuples(), strict=True):
        inputs = prepare_batch(model, encoded.collate([encoded[row]])).inputs
        mask = torch.from_numpy(inside[row, : inputs["pixel_mask"].shape[1] - 1])
        answers = []
        for kept in (torch.ones_like(mask), mask, ~mask):
            pixel_mask = torch.cat([inputs["pixel_mask"][:, :1], kept[None].long()], dim=1)
            with torch.no_grad():
                logits = forward_raster(model, inputs | {"pixel_mask": pixel_mask}).logits
            answers.append(logits.argmax().item())
        assert found.stays == (answers[1] == answers[0])
        assert found.changes == (answers[2] != answers[0])
        assert found.grounded == (found.stays and found.changes)


def make_locators(split, entropy, top_patch) -> SimpleNamespace:
    return SimpleNamespace(split=split, entropy=entropy, top_patch=top_patch)


def test_locators_score_by_hand():
    split, entropy = np.zeros((1, 1, 4, 3, 5)), np.zeros((1, 1, 4, 3))
    split[0, 0, ..., 4] = [[1, 1, 0], [0.5, 1, 0], [0.25, 0, 0], [0, 0, 0]]
    entropy[0, 0] = [[0, 0, 0], [0.4, 1, 0], [0.2, 0.1, 0], [0, 0.5, 0]]
    scores = score_locators(make_locators(split, entropy, None))
    np.testing.assert_allclose(scores[0, 0], [[1, 1], [0.3, 0], [0.2, 0], [0, 0]])


def test_heads_that_locate_are_found_without_boxes_by_hand():
    """Head h looks at patches with mass h / 3, and hits in h of 3 questions of the other half."""
    split, entropy = np.zeros((6, 1, 4, 3, 5)), np.full((6, 1, 4, 3), 0.5)
    split[..., 4] = np.arange(4)[:, None] / 3  # (head, query)
    top = np.ones((6, 1, 4, 3), int)
    for head in range(4):
        top[3 : 3 + head, 0, head, 0] = 0
    top[:3, 0, 1, 0] = 0  # hits best where heads are chosen: one of three on the others
    inside, chosen_on = np.tile([True, False], (6, 1)), np.arange(6) < 3
    told = judge_locators(make_locators(split, entropy, top), inside, chosen_on)
    expected = {"rank": 1, "best score": 100, "best hits": 100 / 3, "mean head": 50}
    assert told == pytest.approx(expected)
    turned = make_locators(split[:, :, ::-1], entropy, top)
    assert judge_locators(turned, inside, chosen_on)["rank"] == pytest.approx(-1)
    assert judge_locators(turned, inside, chosen_on)["best score"] == pytest.approx(0)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="asks for real VQAv2 beside the project")
def test_heads_have_locating_scores_on_photographs_without_boxes(tmp_path):
    data = concatenate_datasets([read_vqa(SAMPLE, split) for split in ("train", "val")])
    model, processor = load_vilt(ROOT / "data" / "replicas" / "0")
    extract_attention(model, EncodedQuestions(data, processor), tmp_path, 64, 512)
    table = read_attention(tmp_path)
    scores, first = score_locators(table), split_images(np.array(data["image_id"]))
    assert scores.shape == (71, 4, 4, 2)
    assert ((scores >= 0) & (scores <= 1)).all()
    halves = [scores[rows].mean(0).ravel()[None] for rows in (first, ~first)]
    assert spearman_rows(*halves)[0] > 0.9  # other photographs rank the heads alike
