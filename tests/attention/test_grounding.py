"""helpers/attention/grounding.py: boxes, pointing game, mass in the box."""

import itertools

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.attention.grounding import (
    boxes_to_patch_mask,
    hits_over_chance,
    mass_in_box,
    object_chance,
    point_in_box,
    pointing_hits,
    score_boxes,
)
from helpers.stats.bootstrap import bootstrap_mean


def point(top_patch, grids, boxes, sizes):
    """`pointing_hits` of questions with these boxes on images of these (width, height)."""
    questions = pd.DataFrame(grids, columns=["grid_rows", "grid_cols"])
    width, height = zip(*sizes, strict=True)
    numbers = {"width": Value("int32"), "height": Value("int32")}
    features = Features({"boxes": List(List(Value("int32"))), **numbers})
    columns = {"boxes": boxes, "width": width, "height": height}
    return pointing_hits(top_patch, questions, Dataset.from_dict(columns, features=features))


def test_boxes_by_hand():
    # 400 x 200 under 2 x 4 patches of 100 x 100, centres at 50, 150, ...; the edge counts
    pair = [[0, 0, 60, 60], [340, 140, 60, 60]]
    boxes = [[[0, 0, 150, 50]], [[0, 0, 160, 160]], [[310, 110, 10, 10]], pair, []]
    top = np.array([[0, 1], [5, 2], [7, 6], [7, 3], [0, 0]])
    hits, chance = point(top, [[2, 4]] * 5, boxes, [[400, 200]] * 5)
    np.testing.assert_array_equal(hits, [[1, 1], [1, 0], [1, 0], [1, 0], [np.nan] * 2])
    np.testing.assert_array_equal(chance, [2 / 8, 4 / 8, 1 / 8, 2 / 8, np.nan])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(20, 300), st.integers(20, 300), st.data())
def test_boxes_agree_with_a_walk_over_the_patches(rows, columns, width, height, data):
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = [x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))]
    inside = []
    for row, column in itertools.product(range(rows), range(columns)):
        # in whole numbers, doubled: centre = (2 column + 1) * width / (2 columns)
        across, down = (2 * column + 1) * width, (2 * row + 1) * height
        inside.append(2 * columns * x <= across <= 2 * columns * (x + box[2])
                      and 2 * rows * y <= down <= 2 * rows * (y + box[3]))  # fmt: skip
    every = np.arange(rows * columns)[None]
    hits, chance = point(every, [[rows, columns]], [[box]], [[width, height]])
    if any(inside):
        assert hits[0].tolist() == inside
    else:
        row, column = divmod(int(hits[0].argmax()), columns)
        assert hits.sum() == 1
        assert column * width <= (x + box[2] / 2) * columns <= (column + 1) * width
        assert row * height <= (y + box[3] / 2) * rows <= (row + 1) * height
    assert chance[0] == hits.mean()


def test_no_patch_is_no_hit_and_rows_must_agree():
    hits, chance = point(np.array([[-1, 0]]), [[2, 2]], [[[0, 0, 9, 9]]], [[9, 9]])
    assert np.isnan(hits[0, 0])
    assert hits[0, 1] == chance[0] == 1
    with pytest.raises(ValueError, match="1, 1 and 2 rows"):
        point(np.zeros((1, 2), int), [[2, 2]], [[], []], [[9, 9]] * 2)


class TestObjectChance:
    # patches of 100 x 100 pixels; three objects: one patch, two patches, and one over two of four
    first, second, third = [0, 0, 100, 100], [100, 0, 200, 100], [200, 0, 100, 200]

    def chance(self, boxes, image_ids):
        questions = pd.DataFrame({"grid_rows": 2, "grid_cols": 4}, index=range(len(boxes)))
        numbers = {"width": Value("int32"), "height": Value("int32"), "image_id": Value("int32")}
        features = Features({"boxes": List(List(Value("int32"))), **numbers})
        size = {"width": [400] * len(boxes), "height": [200] * len(boxes)}
        columns = {"boxes": boxes, **size, "image_id": image_ids}
        return object_chance(questions, Dataset.from_dict(columns, features=features))

    def test_by_hand(self):
        """Asked twice, an object is one object; where objects overlap, a part of it is hit."""
        asked = [[self.first], [self.first], [self.second], [self.third, self.first], []]
        apart = [[self.first], [self.second]]
        chance = self.chance(asked + apart, [1] * 5 + [2] * 2)
        expected = [1 / 3, 1 / 3, (0 + 1 + 1 / 2) / 3, (1 + 1 / 2 + 1) / 3, np.nan, 1 / 2, 1 / 2]
        np.testing.assert_allclose(chance, expected)

    def test_a_picture_with_one_known_object_tells_nothing(self):
        assert np.isnan(self.chance([[self.first], [self.first], []], [1, 1, 1])).all()

    def test_who_points_at_random_objects_has_a_ratio_of_one(self):
        """One patch each: pointing at each of the objects in turn hits as often as chance says."""
        objects = [[0, 0, 9, 9], [100, 100, 9, 9], [300, 0, 9, 9]]
        chance = self.chance([[box] for box in objects], [1] * 3)
        top = np.tile([0, 5, 3], (3, 1))
        hits, _ = point(top, [[2, 4]] * 3, [[box] for box in objects], [[400, 200]] * 3)
        assert np.nanmean(hits_over_chance(hits, chance)) == pytest.approx(1)


def test_a_ratio_of_means_with_the_spread_of_the_ratio():
    """Against leaving out one image at a time; a question without a chance is left out."""
    rng = np.random.default_rng(0)
    hits, chance = (rng.random(400) < 0.6).astype(float), rng.uniform(0.1, 0.4, 400)
    chance[:7], hits[7:9] = np.nan, np.nan
    values, kept = hits_over_chance(hits, chance), slice(9, None)
    assert np.isnan(values[:9]).all()
    assert np.nanmean(values) == pytest.approx(hits[kept].mean() / chance[kept].mean())
    total = np.array([hits[kept].sum(), chance[kept].sum()])
    left_out = total[:, None] - np.array([hits[kept], chance[kept]])
    spread = np.sqrt(390 * (left_out[0] / left_out[1]).var())
    assert values[kept].std(ddof=1) / np.sqrt(391) == pytest.approx(spread, rel=0.02)


class TestBoxes:
    # patches of 100 x 100 pixels
    inside = boxes_to_patch_mask([[0, 0, 100, 50], [250, 150, 20, 20]], (2, 3), (300, 200))

    def test_boxes_join(self):
        assert self.inside.tolist() == [[True, False, False], [False, False, True]]

    def test_pointing_and_mass_by_hand(self):
        maps = np.array(
            [[0.1, 0, 0.2, 0, 0.3, 0.4], [0.5, 0.5, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], np.zeros(6)]
        )
        inside = self.inside.ravel()
        np.testing.assert_array_equal(point_in_box(maps, inside), [1, 1, 0, np.nan])
        np.testing.assert_allclose(mass_in_box(maps, inside), [0.5 / (2 / 6), 0.5 * 3, 0, np.nan])
        assert mass_in_box(np.ones(6), inside) == pytest.approx(1)  # an even map: chance

    def test_a_question_without_boxes_has_no_score(self):
        inside = boxes_to_patch_mask([], (2, 3), (300, 200))
        assert inside.tolist() == [[False] * 3] * 2
        assert np.isnan(point_in_box(np.ones((4, 6)), inside.ravel())).all()
        assert np.isnan(mass_in_box(np.ones((4, 6)), inside.ravel())).all()

    def test_box_scores_resample_images(self):
        point = np.repeat([0.0, 1, 1, 0, 1, 0], 4)  # four questions an image, all alike
        scores = {"pointing": point, "mass": point, "chance": 0.1}
        boxes = pd.DataFrame({"map": "rollout", "layer": -1, "head": -1, **scores})
        both = pd.concat([boxes.assign(map="other"), boxes], ignore_index=True)
        # a map's own rows: not the first 24
        clusters = np.r_[np.arange(24), np.repeat(np.arange(6), 4)]
        row = score_boxes(both, clusters, n_resamples=200).set_index("map").loc["rollout"].iloc[0]
        expected = bootstrap_mean(point, clusters[24:], 200, 0)
        assert row[["low", "high", "n_clusters"]].tolist() == pytest.approx(
            [expected.low, expected.high, 6]
        )

    def test_scores_are_means_over_questions(self):
        rows = [(question, name, layer, layer, point, mass, 0.1 * question)
                for question, point, mass in ((1, 1, 2.0), (2, 0, 1.0), (4, np.nan, np.nan))
                for name, layer in (("rollout", -1), ("L0H0", 0))]  # fmt: skip
        boxes = pd.DataFrame(
            rows, columns=["question", "map", "layer", "head", "pointing", "mass", "chance"]
        )
        boxes.loc[boxes["map"] == "L0H0", "mass"] *= 3
        table = score_boxes(boxes, np.array([5, 5, 6, 6, 7, 7]), n_resamples=50).set_index(
            ["map", "measure"]
        )
        assert table["estimate"].to_dict() == {
            ("rollout", "pointing"): 0.5, ("rollout", "mass"): 1.5,
            ("L0H0", "pointing"): 0.5, ("L0H0", "mass"): 4.5,
        }  # fmt: skip
        assert (table["n"] == 2).all()
        assert table.loc[("L0H0", "pointing"), ["layer", "head"]].tolist() == [0, 0]
        assert table["chance"].tolist() == pytest.approx([0.7 / 3, 1] * 2)

    def test_no_boxes_no_scores(self):
        assert score_boxes(
            pd.DataFrame(columns=["map", "layer", "head", "pointing", "mass", "chance"]), []
        ).empty
