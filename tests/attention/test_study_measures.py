"""The study's attention tables: measured once, redone when the model changes, and their null."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.attention import extract as measure
from helpers.attention.extract import extract_attention, read_attention
from helpers.attention.faithfulness import measure_faithfulness
from helpers.attention.grounding import pointing_hits, score_boxes
from helpers.attention.relevance import RELEVANCE, relevance_measures
from helpers.data import prepare
from helpers.model import finetune
from helpers.run.settings import Study

pytestmark = pytest.mark.slow  # a study is trained first


@pytest.fixture(scope="module")
def study(tmp_path_factory, phantom_root):
    runs = str(tmp_path_factory.mktemp("runs"))
    settings = {
        "data_root": str(phantom_root),
        "runs_root": runs,
        "run_name": "test",
        "device": "cpu",
    }
    study = Study.load("phantom", epochs=1, shard_size=50, extract_batch_size=32, **settings)
    prepare.prepare_dataset(study)
    finetune.finetune(study, prepare.load_dataset(study))
    return study


@pytest.fixture(scope="module")
def measured(study):
    data = prepare.load_dataset(study)["validation"]
    model, processor = finetune.load_finetuned(study)
    encoded = prepare.encode(study, data, processor)
    return data, model, encoded, measure.measure_attention(study, model, encoded)


def test_the_table_is_that_of_the_extraction_and_stands(study, measured, tmp_path):
    data, model, encoded, table = measured
    plain = read_attention(extract_attention(model, encoded, tmp_path / "plain", 32, 50))
    np.testing.assert_allclose(table.split, plain.split, atol=1e-5)
    assert table.questions["question_id"].tolist() == data["question_id"]
    folder = study.run_dir / "attention"
    before = (folder / "made.json").stat().st_mtime_ns
    measure.measure_attention(study, model, encoded)
    assert (folder / "made.json").stat().st_mtime_ns == before
    assert np.array_equal(measure.load_attention(study).split, table.split)


def test_relevance_is_measured_once_and_shared_out(study, measured):
    data, model, encoded, _ = measured
    given = (study, "relevance", model, encoded, relevance_measures, RELEVANCE)
    owed = measure.extract_once(*given)
    assert owed.questions["question_id"].tolist() == data["question_id"]
    np.testing.assert_allclose(owed.relevance.sum(1), 1, atol=1e-5)
    batch = encoded.collate([encoded[7]])
    np.testing.assert_allclose(
        owed.relevance[7], relevance_measures(model, batch)["relevance"][0], atol=1e-4
    )
    before = (study.run_dir / "relevance" / "made.json").stat().st_mtime_ns
    measure.extract_once(*given)
    assert (study.run_dir / "relevance" / "made.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("setting", "device", "expected"),
    [("auto", "cuda", torch.float16), ("bf16", "cuda", torch.bfloat16),
     ("fp32", "cuda", torch.float32),
     ("auto", "cpu", torch.float32), ("bf16", "cpu", torch.float32)],
)  # fmt: skip
def test_precision(setting, device, expected):
    assert measure.choose_dtype(setting, device) == expected


def test_a_table_begun_on_a_gpu_is_begun_again_on_a_cpu(study, measured, monkeypatch):
    """The setting is the same ("auto"), what it means is not: no half shard is kept."""
    _, model, encoded, table = measured
    given = {"model": model, "encoded": encoded, "study": replace(study, run_name="moved")}
    for name in ("model", "dataset"):
        shutil.copytree(study.run_dir / name, given["study"].run_dir / name)
    monkeypatch.setattr(measure, "choose_dtype", lambda *_: torch.float16)
    shards, calls = measure.measure_rows, []

    def die(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return shards(*args)

    monkeypatch.setattr(measure, "measure_rows", die)
    with pytest.raises(KeyboardInterrupt):
        measure.measure_attention(**given)
    monkeypatch.undo()
    moved = measure.measure_attention(**given)
    assert moved.dtype == "torch.float32"
    np.testing.assert_allclose(moved.split, table.split, atol=1e-5)


def test_half_precision_agrees_with_full_on_average(measured, tmp_path):
    """fp16, as on a GPU: single splits within 0.01, means over questions within 0.0005."""
    _, model, encoded, table = measured
    half = extract_attention(copy.deepcopy(model).half(), encoded, tmp_path, 32, 50)
    difference = read_attention(half).split - table.split
    assert np.nanmax(np.abs(difference)) < 0.01
    assert np.abs(np.nanmean(difference, axis=0)).max() < 5e-4


def test_numbers_that_overflow_are_named(measured, tmp_path):
    _, model, encoded, _ = measured
    broken = copy.deepcopy(model).half()
    broken.classifier[-1].weight.data.fill_(60_000)
    with pytest.raises(
        ValueError,
        match=r"question_id \d+: the logits in torch.float16 are not finite; use precision",
    ):
        extract_attention(broken, encoded, tmp_path, 32, 50)


def test_what_is_missing_is_said(tmp_path):
    study = Study.load("phantom", runs_root=str(tmp_path), run_name="empty")
    with pytest.raises(FileNotFoundError, match="03_layer_attention"):
        measure.load_attention(study)


def test_the_twin_is_untrained_seeded_and_leaves_the_random_state(study, measured):
    _, model, encoded, table = measured
    state = torch.random.get_rng_state()
    twins = [measure.random_weight_model(model, seed) for seed in (1, 1, 2)]
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [twin.vilt.encoder.layer[0].intermediate.dense.weight for twin in twins]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert twins[0].vilt.embeddings.position_embeddings.std() > 0.05
    null = measure.measure_attention(study, twins[0], encoded, untrained=True)
    assert null.split.shape == table.split.shape
    assert not np.allclose(null.split, table.split, atol=0.01)


def test_hits_are_missing_exactly_where_there_is_no_box(measured):
    data, _, _, table = measured
    hits, chance = pointing_hits(table.top_patch, table.questions, data)
    no_box = np.array([not boxes for boxes in data["boxes"]])
    assert np.array_equal(np.isnan(hits).all(axis=(1, 2, 3)), no_box)
    assert np.array_equal(np.isnan(chance), no_box)
    assert ((chance[~no_box] > 0) & (chance[~no_box] < 1)).all()


def test_faithfulness_is_measured_once_and_maps_are_held_against_boxes(study, measured):
    data, model, encoded, _ = measured
    few = replace(study, faithfulness_questions=12)
    twin = measure.random_weight_model(model, 0)
    chosen, curves, boxes = measure_faithfulness(few, model, twin, encoded, data)
    assert len(set(chosen.tolist())) == 12
    assert curves.orders[:5] == [
        "raw, last layer",
        "raw, all layers",
        "value-weighted",
        "rollout",
        "relevance",
    ]
    assert set(curves.orders[5:]) == {"untrained relevance", "reversed relevance", "random"}
    assert curves.probability.shape == curves.accuracy.shape == (8, 2, 12, 11)
    forth, back = (curves.orders.index(name) for name in ("relevance", "reversed relevance"))
    np.testing.assert_allclose(
        curves.probability[forth, 0], curves.probability[back, 1, :, ::-1], atol=1e-4
    )
    boxed = [row for row in chosen.tolist() if data[row]["boxes"]]
    assert sorted(set(boxes["question"])) == boxed
    assert len(boxes) == len(boxed) * (5 + 16)  # combined maps, heads
    row = boxed[0]
    hits, chance = pointing_hits(measured[3].top_patch, measured[3].questions, data)
    heads = boxes[(boxes["question"] == row) & (boxes["layer"] >= 0)]
    np.testing.assert_array_equal(heads["pointing"], hits[row, heads["layer"], heads["head"], 0])
    assert heads["chance"].unique() == pytest.approx([chance[row]])
    before = (study.run_dir / "faithfulness" / "made.json").stat().st_mtime_ns
    _, again, table = measure_faithfulness(few, model, twin, encoded, data)
    assert (study.run_dir / "faithfulness" / "made.json").stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.probability, curves.probability)
    assert again.orders == curves.orders
    pd.testing.assert_frame_equal(table.reset_index(drop=True), boxes.reset_index(drop=True))


def test_faithfulness_without_boxes(study, measured):
    data, model, encoded, _ = measured
    blind = data.map(lambda row: {"boxes": []})
    few = replace(study, faithfulness_questions=2)
    _, _, boxes = measure_faithfulness(few, model, model, encoded, blind)
    assert boxes.empty
    assert score_boxes(boxes, np.array([])).empty
