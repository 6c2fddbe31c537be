"""The study's interventions: the questions drawn, done once, and continued after a kill."""

from dataclasses import replace

import numpy as np
import pytest
from small import train_small

from helpers.attention.extract import measure_attention
from helpers.data import prepare
from helpers.heads import interventions, removal
from helpers.model import finetune


@pytest.fixture(scope="module")
def study(tmp_path_factory, phantom_root):
    return train_small(
        phantom_root,
        tmp_path_factory.mktemp("runs"),
        shard_size=30,
        extract_batch_size=16,
        ablation_questions=70,
    )


@pytest.fixture(scope="module")
def given(study):
    return (*finetune.load_finetuned(study), prepare.load_dataset(study)["validation"])


def test_removals_of_the_questions_drawn(study, given):
    model, processor, data = given
    removals, gradients = interventions.measure_removals(study, model, processor, data)
    assert len(removals.questions) == 70 < len(data)
    assert removals.questions["question_id"].isin(data["question_id"]).all()
    assert removals.questions["question_id"].is_unique
    assert gradients.questions["question_id"].equals(removals.questions["question_id"])
    row = data["question_id"].index(removals.questions["question_id"][3])
    batch = prepare.encode(study, data.select([row]), processor).batches(1)
    drawn = data.select(
        [data["question_id"].index(number) for number in removals.questions["question_id"]]
    )
    means = removal.mean_z(model, prepare.encode(study, drawn, processor))
    alone = removal.removal_measures(model, next(batch)[1], means)
    np.testing.assert_allclose(
        removals.mean_probability[3], alone["mean_probability"][0], atol=1e-4
    )
    np.testing.assert_allclose(
        removals.layer_probability[3], alone["layer_probability"][0], atol=1e-4
    )


def test_removals_are_measured_once_and_go_on_after_a_kill(study, given, monkeypatch):
    model, processor, data = given
    other = replace(study, ablation_questions=65)
    measure_now, calls = removal.removal_measures, []

    def die(*args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure_now(*args, **more)

    monkeypatch.setattr(interventions, "removal_measures", die)
    with pytest.raises(KeyboardInterrupt):
        interventions.measure_removals(other, model, processor, data)
    monkeypatch.setattr(
        interventions,
        "removal_measures",
        lambda *args, **more: calls.append(2) or measure_now(*args, **more),
    )
    interventions.measure_removals(other, model, processor, data)
    assert calls == [1, 1, 1, 2, 2, 2]  # of three shards (two batches, two, one) the first stood
    interventions.measure_removals(other, model, processor, data)
    assert len(calls) == 6


def test_patching_pairs_are_drawn_and_kept(study, given):
    model, processor, data = given
    table = measure_attention(study, model, prepare.encode(study, data, processor))
    pairs, moved, whole = interventions.measure_patching(study, model, processor, data, table)
    assert moved.shape == (len(pairs), 4, 4)
    assert whole.shape == (len(pairs),)
    assert len(pairs) > 0
    questions, images = np.array(data["question"]), np.array(data["image_id"])
    assert (questions[pairs[:, 0]] == questions[pairs[:, 1]]).all()
    assert len(np.unique(images[pairs])) == 2 * len(pairs)
    assert (whole > 0).all()  # each question's own answer is the best of the two in its own pass
    again = interventions.measure_patching(study, model, processor, data, table)
    np.testing.assert_array_equal(again[1], moved)
