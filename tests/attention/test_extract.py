"""helpers/attention/extract.py: rows, shards, kills, and the tables of a study."""

import copy
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small import ANSWERS, stub_study

from helpers.attention import extract
from helpers.attention.extract import extract_attention, read_attention
from helpers.attention.image_share import attention_measures, uniform_baseline
from helpers.data.vqa import vqa_accuracy
from helpers.model.finetune import predict
from helpers.model.vilt import load_vilt
from helpers.run.settings import Study

LAYERS = HEADS = 4  # of fresh-small
MEASURES = {"split", "entropy", "text_distance", "patch_distance", "top_patch", "value_norm",
            "sink", "n_sinks", "flow", "rollout"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(vilt, encoded, tmp_path_factory):
    """Twelve questions in shards of five, five and two."""
    return extract_attention(vilt[0], encoded, tmp_path_factory.mktemp("whole"), 4, 5)


@pytest.fixture
def table(folder):
    return read_attention(folder)


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class TestRows:
    def test_rows_equal_single_questions_in_order(self, vilt, encoded, table):
        assert table.split.shape == (12, LAYERS, HEADS, 3, 5)
        assert table.entropy.shape == table.top_patch.shape == (12, LAYERS, HEADS, 3)
        assert table.text_distance.shape == table.patch_distance.shape == (12, LAYERS, HEADS)
        for place in range(12):
            found = attention_measures(vilt[0], encoded.collate([encoded[place]]))
            for name in MEASURES:
                values, expected = getattr(table, name)[place], found[name][0]
                assert values.dtype == ("int32" if name in ("top_patch", "n_sinks") else "float32")
                np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5, err_msg=name)

    def test_questions_counts_and_accuracy(self, vilt, encoded, table):
        questions, asked = table.questions, encoded.questions
        for name in ("question_id", "image_id", "family"):
            assert questions[name].tolist() == asked[name].tolist()
        assert questions["n_words"].tolist() == [len(ids) - 2 for ids in encoded.input_ids]
        grids = np.repeat([[4, 4], [4, 6], [6, 4]], 4, axis=0)
        np.testing.assert_array_equal(questions[["grid_rows", "grid_cols"]], grids)
        np.testing.assert_array_equal(questions["n_patches"], grids.prod(1))
        predictions = predict(vilt[0], encoded)["prediction"].tolist()
        assert questions["prediction"].tolist() == predictions
        accuracy = list(map(vqa_accuracy, predictions, asked["answers"]))
        assert questions["accuracy"].tolist() == pytest.approx(accuracy)

    def test_measures_are_read_when_asked_for(self, table):
        assert not MEASURES & set(vars(table))
        excess = table.excess
        assert not MEASURES & set(vars(table))  # the split went by shard by shard
        whole = table.split[..., 3:].sum(-1) - table.baseline[:, None, None, None]
        np.testing.assert_allclose(excess, whole, atol=1e-6)
        asked = table.questions.loc[7]
        baseline = uniform_baseline(asked["n_words"], asked["n_patches"])
        assert table.baseline[7] == pytest.approx(baseline)
        assert MEASURES & set(vars(table)) == {"split"}
        largest = table.reduce("entropy", lambda values: values.max((1, 2)))
        np.testing.assert_array_equal(largest, table.entropy.max((1, 2)))
        assert table.dtype == "torch.float32"
        with pytest.raises(AttributeError, match="no measure 'splits'; it holds split, "):
            table.splits  # noqa: B018


def test_a_killed_run_continues_to_the_same_files(vilt, encoded, tmp_path, monkeypatch):
    """It ends where the third shard is written and does not have its name yet."""
    folder, replace, ready = tmp_path / "killed", os.replace, []

    def die_at_the_third(*paths):
        ready.append(paths)
        if len(ready) == 3:
            raise KeyboardInterrupt
        replace(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            extract_attention(vilt[0], encoded, folder, 4, 3)
    left = read_bytes(folder)
    unnamed, *stood = left
    assert unnamed == ".part-00002.parquet.tmp"
    assert stood == ["part-00000.parquet", "part-00001.parquet"]
    extract_attention(vilt[0], encoded, folder, 4, 3)
    now = read_bytes(folder)
    assert all(now[name] == left[name] for name in stood)
    whole = extract_attention(vilt[0], encoded, tmp_path / "whole", 4, 3)
    assert list(now) == list(read_bytes(whole))
    one, other = read_attention(folder), read_attention(whole)
    assert one.questions.equals(other.questions)
    for name in MEASURES:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-5)


class TestErrors:
    def test_shards_of_another_run_are_refused(self, vilt, encoded, folder):
        other = load_vilt("fresh-small", answers=ANSWERS, seed=99)[0]
        double = copy.deepcopy(vilt[0]).double()
        for run in (
            lambda: extract_attention(vilt[0], encoded, folder, 4, 4),
            lambda: extract_attention(vilt[0], encoded.select(range(1, 12)), folder, 4, 5),
            lambda: extract_attention(other, encoded, folder, 4, 5),
            lambda: extract_attention(double, encoded, folder, 4, 5),
        ):
            with pytest.raises(ValueError, match=r"part-00000.parquet is of .* empty the folder"):
                run()

    def test_numbers_that_overflow_are_named(self, vilt, encoded, tmp_path):
        broken = copy.deepcopy(vilt[0]).half()
        broken.classifier[-1].weight.data.fill_(60_000)
        message = r"question_id \d+: the logits in torch.float16 are not finite; use precision"
        with pytest.raises(ValueError, match=message):
            extract_attention(broken, encoded, tmp_path, 32, 50)

    def test_shards_that_do_not_fit_are_not_read(self, folder, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no attention shards"):
            read_attention(tmp_path)
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        second = tmp_path / "part-00001.parquet"
        table = pq.read_table(second)
        other = {"source": '{"questions": 2, "dtype": "torch.float32"}'}
        pq.write_table(table.replace_schema_metadata(other), second)
        with pytest.raises(ValueError, match=r"part-00001.parquet has .*'questions': 2"):
            read_attention(tmp_path)
        pq.write_table(table.drop_columns("flow"), second)  # of another measure
        with pytest.raises(ValueError, match=r"part-00001.parquet has .*but .*'flow'"):
            read_attention(tmp_path)
        second.write_bytes(second.read_bytes()[:100])
        with pytest.raises(ValueError, match=r"00001.* is no attention shard of this version"):
            read_attention(tmp_path)
        second.unlink()
        with pytest.raises(ValueError, match="holds 7 of 12 questions"):
            read_attention(tmp_path)


class TestStudy:
    def test_the_table_is_that_of_the_extraction_and_stands(self, vilt, encoded, table, tmp_path):
        study = stub_study(tmp_path)
        measured = extract.measure_attention(study, vilt[0], encoded)
        np.testing.assert_allclose(measured.split, table.split, atol=1e-5)
        made = study.run_dir / "attention" / "made.json"
        before = made.stat().st_mtime_ns
        extract.measure_attention(study, vilt[0], encoded)
        assert made.stat().st_mtime_ns == before
        np.testing.assert_array_equal(extract.load_attention(study).split, measured.split)

    def test_what_is_missing_is_said(self, tmp_path):
        study = Study.load("phantom", runs_root=str(tmp_path), run_name="empty")
        with pytest.raises(FileNotFoundError, match="03_layer_attention"):
            extract.load_attention(study)

    @pytest.mark.parametrize(
        ("setting", "device", "expected"),
        [("auto", "cuda", torch.float16), ("bf16", "cuda", torch.bfloat16),
         ("fp32", "cuda", torch.float32),
         ("auto", "cpu", torch.float32), ("bf16", "cpu", torch.float32)],
    )  # fmt: skip
    def test_precision(self, setting, device, expected):
        assert extract.choose_dtype(setting, device) == expected

    def test_a_table_begun_on_a_gpu_is_begun_again_on_a_cpu(
        self, vilt, encoded, table, tmp_path, monkeypatch
    ):
        """The setting is the same ("auto"), what it means is not: no half shard is kept."""
        given, calls, measure = (stub_study(tmp_path), vilt[0], encoded), [], extract.measure_rows

        def die(*args):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return measure(*args)

        with monkeypatch.context() as on_gpu:
            on_gpu.setattr(extract, "choose_dtype", lambda *_: torch.float16)
            on_gpu.setattr(extract, "measure_rows", die)
            with pytest.raises(KeyboardInterrupt):
                extract.measure_attention(*given)
        moved = extract.measure_attention(*given)
        assert moved.dtype == "torch.float32"
        np.testing.assert_allclose(moved.split, table.split, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_shares_in_half_precision_lie_within_the_tolerance_of_their_table(
        self, vilt, encoded, table, tmp_path, monkeypatch, dtype
    ):
        """What notebooks compare with shares worked out in float32."""
        monkeypatch.setattr(extract, "choose_dtype", lambda *_: dtype)
        half = extract.measure_attention(stub_study(tmp_path), vilt[0], encoded)
        assert (half.dtype, table.tolerance) == (str(dtype), 1e-4)
        apart = np.abs(half.split - table.split).max()
        assert table.tolerance < apart < half.tolerance

    def test_random_weights_are_seeded_and_leave_the_random_state(self, vilt):
        state = torch.random.get_rng_state()
        twins = [extract.random_weight_model(vilt[0], seed) for seed in (1, 1, 2)]
        assert torch.equal(state, torch.random.get_rng_state())
        weights = [twin.vilt.encoder.layer[0].intermediate.dense.weight for twin in twins]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert twins[0].vilt.embeddings.position_embeddings.std() > 0.05


def test_random_models_are_measured_on_the_same_sample(tmp_path, vilt, encoded, monkeypatch):
    study, model = stub_study(tmp_path), vilt[0]
    monkeypatch.setattr(extract, "RANDOM_QUESTIONS", 7)
    rows, tables = extract.measure_random_models(study, model, encoded)
    assert len(rows) == 7
    ids = encoded.questions["question_id"].iloc[rows].tolist()
    assert all(table.questions["question_id"].tolist() == ids for table in tables)
    assert np.abs(tables[0].split - tables[1].split).max() > 1e-3
    twin = extract.random_weight_model(model, study.seed + 1)
    indices, batch = next(encoded.batches(7, rows))
    split = extract.attention_measures(twin, batch)["split"].numpy()
    order = np.argsort(indices)
    np.testing.assert_allclose(tables[1].split, split[order], atol=1e-5)


def test_the_layers_table_holds_means_over_models_and_the_spread_of_random_ones(
    tmp_path, vilt, encoded, monkeypatch
):
    study, model = stub_study(tmp_path), vilt[0]
    monkeypatch.setattr(extract, "RANDOM_QUESTIONS", 7)
    whole = extract.extract_once(study, "attention", model, encoded)
    _, random = extract.measure_random_models(study, model, encoded)
    table = extract.tabulate_layers([whole, whole], random)
    cells = table.set_index(["model", "measure", "layer", "query"]).sort_index()
    own = cells.loc[("trained", "excess", 1, "words")]
    assert own["estimate"] == pytest.approx(whole.excess[:, 1, :, 1].mean(), abs=1e-6)
    assert own["low"] < own["estimate"] < own["high"]
    assert own[["n", "n_images"]].tolist() == [12, 3]
    spread = [each.entropy[:, 0, :, 2].mean() for each in random]
    found = cells.loc[("untrained", "entropy", 0, "patches"), ["estimate", "low", "high"]]
    expected = [np.mean(spread), min(spread), max(spread)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    unread = table[~table["reaches_answer"]]
    assert set(unread["query"]) == {"words", "patches"}
    assert unread["layer"].unique().tolist() == [table["layer"].max()]
