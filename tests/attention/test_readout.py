"""Answers read out layer by layer, and probes, against the stock model and planted directions."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from small import stub_study

from helpers.attention.extract import extract_once
from helpers.attention.grounding import MarkedQuestions
from helpers.attention.readout import (
    PROBES,
    ROLES,
    assign_roles,
    probe,
    readout_measures,
    score_levels,
    tabulate_known,
)
from helpers.data.vqa import vqa_accuracy
from helpers.figures.attention import plot_known
from helpers.model.forward import forward_raster

assert_close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def marked(model, encoded):
    """The twelve questions, of which the first two of each picture have a box of one patch."""
    some = copy.copy(encoded)
    boxes = [[[0, 0, 16, 16]], [[40, 40, 8, 8]], [], []] * 3
    size = {"width": [64] * 4 + [96] * 4 + [64] * 4, "height": [64] * 8 + [96] * 4}
    answers = [answers[0] for answers in encoded.questions["answers"]]
    some.questions = encoded.questions.assign(boxes=boxes, multiple_choice_answer=answers, **size)
    return MarkedQuestions(some, model.config.patch_size)


@torch.no_grad()
def test_the_last_level_gives_the_models_answers_and_the_first_is_blind(model, batch):
    found = readout_measures(model, batch)["read_logits"]
    stock = forward_raster(model, batch).logits
    assert found.shape == (6, 5, len(stock[0]))
    assert_close(found[:, -1], stock)
    assert found[:, 0].std(0).max() < 1e-6  # [CLS] has seen nothing yet
    assert found[:, 1].std(0).max() > 1e-4


@torch.no_grad()
def test_states_are_those_of_the_stock_model(model, marked):
    ((rows, batch),) = marked.batches(4, [4, 5, 6, 7])
    found = readout_measures(model, batch)
    hidden = forward_raster(model, batch, output_hidden_states=True).hidden_states
    n_text = batch["input_ids"].shape[1]
    for place, row in enumerate(rows):
        for level, states in enumerate(hidden):
            assert_close(found["cls_state"][place, level], states[place, 0])
        # grid 4 x 6 of 16 pixels: the first patch, and that in row 2, column 2
        patches = {4: (0, 14), 5: (14, 0)}.get(row)
        if patches is None:
            assert found["object_state"][place].isnan().all()
            continue
        for layer, states in enumerate(hidden[:-1]):
            expected = states[place, [n_text + 1 + patch for patch in patches]]
            assert_close(found["object_state"][place, layer], expected)


def test_without_boxes_no_patch_is_marked(model, encoded, marked):
    none = copy.copy(encoded)
    none.questions = marked.questions.drop(columns="known").assign(boxes=[[]] * 12)
    for questions in (encoded, none):
        ((_, batch),) = MarkedQuestions(questions, model.config.patch_size).batches(12)
        assert not batch["objects"].any()


def test_answers_read_out_are_scored_over_a_data_set(model, marked, tmp_path):
    table = extract_once(stub_study(tmp_path), "readout", model, marked, readout_measures)
    known = score_levels(table, marked, model.config.id2label, np.arange(12) < 8)
    accuracy = known["answer at read-out"]
    np.testing.assert_allclose(accuracy[:, -1], table.questions["accuracy"])
    said = [model.config.id2label[number] for number in table.read_answer[3]]
    given = list(marked.questions["answers"].iloc[3])
    expected = [vqa_accuracy(answer, given) for answer in said]
    np.testing.assert_allclose(accuracy[3], expected)
    for name in PROBES:
        assert known[f"{name} at [CLS]"].shape == (12, 5)
        assert known[f"{name} at its patches"].shape == (12, 4)  # nothing reads the last level
    means = tabulate_known({"trained": [known, known]}, table.questions["image_id"].to_numpy())
    row = means.query("place == 'read-out' and what == 'how many' and level == 2").iloc[0]
    mine = table.questions["family"] == "how many"
    assert row["estimate"] == pytest.approx(accuracy[mine, 2].mean())
    assert row["n"] == mine.sum()
    assert len(plot_known(means).axes) == means["place"].nunique() + 1  # and the colours' bar


class TestProbe:
    rng = np.random.default_rng(0)
    labels = np.array(["red", "green", "blue"] * 60, dtype=object)
    learns_on = rng.random(180) < 0.5
    states = rng.normal(size=(180, 2, 10))
    directions = rng.normal(size=(3, 10))
    states[:, 1] += 3 * directions[np.arange(180) % 3]

    def test_a_planted_direction_is_found_and_noise_is_not(self):
        hits = probe(self.states, self.labels, self.learns_on)
        assert np.isnan(hits[self.learns_on]).all()
        noise, planted = hits[~self.learns_on].mean(0)
        assert planted > 0.95
        assert abs(noise - 1 / 3) < 0.2

    def test_the_scale_of_a_state_does_not_matter(self):
        scaled = 1000 * self.states - 7
        found = [probe(each, self.labels, self.learns_on) for each in (self.states, scaled)]
        np.testing.assert_array_equal(*found)

    def test_unknown_and_rare_labels_are_left_out(self):
        labels, states = self.labels.copy(), self.states.copy()
        labels[:20], labels[20:24], states[30:40] = None, "rare", np.nan
        hits = probe(states, labels, self.learns_on)
        assert np.isnan(hits[:24]).all()
        assert np.isnan(hits[30:40]).all()
        known = ~self.learns_on & (np.arange(180) >= 40)
        assert np.isfinite(hits[known]).all()
        assert np.isnan(probe(states, np.full(180, None), self.learns_on)).all()


def test_roles_by_hand():
    """A layer has a role where all evidence says so, and none where one piece says no."""
    images, rng = np.arange(40), np.random.default_rng(0)
    columns = {  # points by layer
        "cut: [CLS], patches <- words": [30, 30, 0], "rise: type of question at [CLS]": [50, 0, 0],
        "cut: patches <- words": [30, 5, 0], "rise: asked about at its patches": [20, 20],
        "cut: [CLS] <- image": [0, 20, 20], "rise: answer at read-out": [20, 20, 5],
        "rise: answer at [CLS]": [20, 20, 30],
    }  # fmt: skip
    evidence = {}
    for name, points in columns.items():
        noise = rng.normal(size=(3, 40, len(points)))
        evidence[name] = noise - noise.mean((0, 1)) + points, images
    table = assign_roles(evidence)
    roles = table.drop_duplicates(["role", "layer"]).set_index(["role", "layer"])["has_role"]
    assert roles["reads the question"].tolist() == ["yes", "no", "no"]
    assert roles["marks the object"].tolist() == ["yes", "undecided", "no"]
    assert roles["fetches the answer"].tolist() == ["no", "yes", "undecided"]
    assert set(table["evidence"]) == {name for names in ROLES.values() for name in names}
    del evidence["cut: patches <- words"]  # a layer cannot have a role on half of the evidence
    rest = assign_roles(evidence).query("role == 'marks the object'")
    assert set(rest["has_role"]) == {"undecided"}
