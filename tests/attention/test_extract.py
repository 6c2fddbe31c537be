"""helpers/attention/extract.py: rows, shards, and what happens when a run is killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PillowImage

from helpers.attention.extract import MEASURES, extract_attention, read_attention
from helpers.attention.image_share import attention_measures, image_share, uniform_baseline
from helpers.data.encode import EncodedQuestions
from helpers.data.vqa import vqa_accuracy
from helpers.model.finetune import predict
from helpers.model.vilt import load_vilt

ROOT = Path(__file__).parents[2]
ANSWERS = ["yes", "no"]
LAYERS = HEADS = 4  # of fresh-small


def make_dataset(n_questions=23):
    """Questions on pictures of three sizes; as many words as the question's place says."""
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (96, 64), (64, 96)]
    pixels = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]
    rows = {
        "question_id": [500 + i for i in range(n_questions)],
        "image_id": [i % 3 for i in range(n_questions)],
        "image": [PillowImage.fromarray(pixels[i % 3]) for i in range(n_questions)],
        "question": [" ".join("a" * (1 + i % 7)) for i in range(n_questions)],
        "question_type": ["is it"] * n_questions,
        "family": [("is/are", "other")[i % 2] for i in range(n_questions)],
        "answers": [["yes"] * (i % 11) + ["no"] * (10 - i % 11) for i in range(n_questions)],
    }
    numbers = {"question_id": Value("int64"), "image_id": Value("int64"), "image": Image()}
    texts = {name: Value("string") for name in ("question", "question_type", "family")}
    return Dataset.from_dict(
        rows, features=Features({**numbers, **texts, "answers": List(Value("string"))})
    )


@pytest.fixture(scope="module")
def model():
    return load_vilt("fresh-small", answers=ANSWERS)[0]


@pytest.fixture(scope="module")
def encoded():
    return EncodedQuestions(make_dataset(), load_vilt("fresh-small")[1])


@pytest.fixture(scope="module")
def folder(model, encoded, tmp_path_factory):
    return extract_attention(
        model, encoded, tmp_path_factory.mktemp("whole"), batch_size=4, shard_size=5
    )


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class TestRows:
    def test_shards_and_columns(self, folder):
        assert list(read_bytes(folder)) == [f"part-{i:05d}.parquet" for i in range(5)]
        table = pq.read_table(folder / "part-00000.parquet")
        assert table.column_names == [
            "question_id", "image_id", "family", "question_type", "prediction", "accuracy",
            "n_words", "n_patches", "grid_rows", "grid_cols",
            "split", "entropy", "text_distance", "patch_distance", "top_patch", "value_norm",
            "flow", "rollout",
        ]  # fmt: skip
        assert len(table) == 5
        assert table.schema.field("split").type.list_size == LAYERS * HEADS * 15

    def test_rows_equal_single_questions_in_order(self, model, encoded, folder):
        table = read_attention(folder)
        assert table.questions["question_id"].tolist() == list(range(500, 523))
        assert table.split.shape == (23, LAYERS, HEADS, 3, 5)
        assert table.entropy.shape == table.top_patch.shape == (23, LAYERS, HEADS, 3)
        assert table.text_distance.shape == table.patch_distance.shape == (23, LAYERS, HEADS)
        for place in range(23):
            found = attention_measures(model, encoded.collate([encoded[place]]))
            for name in MEASURES:
                values = getattr(table, name)[place]
                assert values.dtype == MEASURES[name][0]
                np.testing.assert_allclose(
                    values, found[name][0], rtol=1e-5, atol=1e-5, err_msg=name
                )

    def test_questions_counts_and_accuracy(self, model, encoded, folder):
        questions = read_attention(folder).questions
        assert questions["n_words"].tolist() == [1 + i % 7 for i in range(23)]
        grids = [[4, 4], [4, 6], [6, 4]]
        assert questions[["grid_rows", "grid_cols"]].to_numpy().tolist() == [
            grids[i % 3] for i in range(23)
        ]
        assert questions["n_patches"].tolist() == [(16, 24, 24)[i % 3] for i in range(23)]
        assert questions["family"].tolist() == [("is/are", "other")[i % 2] for i in range(23)]
        assert questions["prediction"].tolist() == predict(model, encoded)["prediction"].tolist()
        for place, answers in enumerate(make_dataset()["answers"]):
            expected = vqa_accuracy(questions["prediction"][place], answers)
            assert questions["accuracy"][place] == pytest.approx(expected)

    def test_shares_follow_from_the_split(self, folder):
        table = read_attention(folder)
        np.testing.assert_array_equal(table.image_share, image_share(table.split))
        for place, question in table.questions.iterrows():
            baseline = uniform_baseline(question["n_words"], question["n_patches"])
            assert table.baseline[place] == pytest.approx(baseline)
            np.testing.assert_allclose(
                table.excess[place], table.image_share[place] - baseline, atol=1e-6
            )

    def test_shard_and_batch_size_do_not_matter(self, model, encoded, folder, tmp_path):
        other, table = (
            read_attention(
                extract_attention(model, encoded, tmp_path, batch_size=9, shard_size=100)
            ),
            read_attention(folder),
        )
        for name in MEASURES:
            np.testing.assert_allclose(
                getattr(other, name), getattr(table, name), rtol=1e-5, atol=1e-5
            )

    def test_measures_are_read_when_asked_for(self, folder):
        table = read_attention(folder)
        assert not set(MEASURES) & set(vars(table))
        excess = table.excess
        assert not set(MEASURES) & set(vars(table))  # the split went by shard by shard
        whole = table.split[..., 3:].sum(-1) - table.baseline[:, None, None, None]
        np.testing.assert_allclose(excess, whole, atol=1e-6)
        assert set(MEASURES) & set(vars(table)) == {"split"}
        largest = table.reduce("entropy", lambda values: values.max((1, 2)))
        np.testing.assert_array_equal(largest, table.entropy.max((1, 2)))
        assert table.dtype == "torch.float32"
        with pytest.raises(AttributeError, match="no measure 'splits'; it holds split, entropy"):
            table.splits  # noqa: B018

    def test_questions_without_answers_have_no_accuracy(self, model, tmp_path):
        data = make_dataset(2).remove_columns(["answers", "family"])
        encoded = EncodedQuestions(data, load_vilt("fresh-small")[1])
        questions = read_attention(extract_attention(model, encoded, tmp_path, 2, 2)).questions
        assert questions["accuracy"].isna().all()
        assert "family" not in questions


OWN_LAYOUT = {
    "by_layer": ("float32", ("layer", 2)),
    "by_head": ("float32", ("layer", "head")),
    "alone": ("int16", ()),
}


def measure_own(model, batch):
    """Numbers that tell question, layer and head apart: how many words, 10 a layer, 1 a head."""
    words = batch["attention_mask"].sum(1).float() - 2
    layers, heads = 10 * torch.arange(LAYERS), torch.arange(HEADS)
    return {
        "by_layer": (words[:, None] + layers)[..., None] * torch.tensor([1.0, -1.0]),
        "by_head": words[:, None, None] + layers[:, None] + heads,
        "alone": words.short(),
        "logits": torch.stack([words, 10 - words], dim=1),  # "yes" from 5 words
        "not kept": words,
    }


class TestLayouts:
    def extract(self, model, encoded, folder, layout=OWN_LAYOUT):
        return extract_attention(model, encoded, folder, 4, 5, measure=measure_own, layout=layout)

    def test_another_set_of_measures(self, model, encoded, tmp_path):
        table = read_attention(self.extract(model, encoded, tmp_path))
        words = np.array([1 + place % 7 for place in range(23)])
        assert table.alone.dtype == np.int16
        np.testing.assert_array_equal(table.alone, words)
        assert table.by_layer.shape == (23, LAYERS, 2)
        np.testing.assert_array_equal(table.by_layer[:, 3, 0], words + 30)
        np.testing.assert_array_equal(table.by_layer[:, 2, 1], -words - 20)
        assert table.by_head.shape == (23, LAYERS, HEADS)
        np.testing.assert_array_equal(table.by_head[:, 1, 2], words + 12)
        assert table.questions["prediction"].tolist() == ["yes" if n >= 5 else "no" for n in words]
        assert not hasattr(table, "not kept")

    def test_shards_of_another_layout_are_refused(self, model, encoded, folder, tmp_path):
        self.extract(model, encoded, tmp_path)
        (tmp_path / "part-00004.parquet").unlink()
        with pytest.raises(ValueError, match=r"part-00000.parquet is of another model or data set"):
            extract_attention(model, encoded, tmp_path, 4, 5)
        with pytest.raises(ValueError, match=r"part-00000.parquet is of another model or data set"):
            self.extract(
                model, encoded, tmp_path, {**OWN_LAYOUT, "by_head": ("float64", ("layer", "head"))}
            )
        (tmp_path / "part-00004.parquet").write_bytes((folder / "part-00004.parquet").read_bytes())
        with pytest.raises(ValueError, match=r"part-00004.parquet has .*'split'"):
            read_attention(tmp_path)


SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from attention.test_extract import extract_many

torch.set_num_threads({threads})
extract_many({folder!r})
"""


def extract_many(folder):
    model, processor = load_vilt("fresh-small", answers=ANSWERS)
    return extract_attention(
        model, EncodedQuestions(make_dataset(400), processor), folder, 4, shard_size=20
    )


def assert_same_measures(first, second):
    """The same shards, rows, and measures to 1e-5: last bits differ between processes."""
    assert list(read_bytes(first)) == list(read_bytes(second))
    one, other = read_attention(first), read_attention(second)
    assert one.questions["question_id"].tolist() == other.questions["question_id"].tolist()
    for name in ("split", "entropy", "text_distance", "patch_distance"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-5)


class TestResuming:
    def test_whole_shards_are_kept_and_a_missing_one_is_made_equal(
        self, model, encoded, folder, tmp_path
    ):
        for path in folder.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "part-00002.parquet").unlink()
        kept = (tmp_path / "part-00001.parquet").stat().st_mtime_ns
        extract_attention(model, encoded, tmp_path, batch_size=4, shard_size=5)
        assert_same_measures(tmp_path, folder)
        assert (tmp_path / "part-00001.parquet").stat().st_mtime_ns == kept

    @pytest.mark.slow
    def test_killed_run_continues_to_the_same_files(self, tmp_path):
        folder = tmp_path / "killed"
        places = {"root": str(ROOT), "tests": str(ROOT / "tests"), "folder": str(folder)}
        script = SCRIPT.format(**places, threads=torch.get_num_threads())
        killed = subprocess.Popen([sys.executable, "-c", script])
        deadline = time.monotonic() + 300
        while not (folder / "part-00002.parquet").exists():
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        stood = {path.name: path.read_bytes() for path in folder.glob("part-*")}
        assert 3 <= len(stood) < 20
        extract_many(folder)
        assert stood.items() <= read_bytes(folder).items()
        assert_same_measures(folder, extract_many(tmp_path / "whole"))


class TestErrors:
    def test_empty_data_set(self, model, tmp_path):
        with pytest.raises(ValueError, match="the data set is empty"):
            extract_attention(model, [], tmp_path, 4, 5)

    @pytest.mark.parametrize(("batch_size", "shard_size"), [(0, 5), (4, 0)])
    def test_sizes(self, model, encoded, tmp_path, batch_size, shard_size):
        with pytest.raises(ValueError, match="must be at least 1"):
            extract_attention(model, encoded, tmp_path, batch_size, shard_size)

    def test_shards_of_another_run_are_refused(self, model, encoded, tmp_path):
        extract_attention(model, encoded, tmp_path, batch_size=4, shard_size=10)
        with pytest.raises(
            ValueError, match=r"part-00000.parquet holds other questions than rows 0 to 7"
        ):
            extract_attention(model, encoded, tmp_path, batch_size=4, shard_size=8)
        with pytest.raises(ValueError, match=r"part-00002.parquet is none of these 2 shards"):
            extract_attention(model, encoded, tmp_path, batch_size=4, shard_size=20)
        other = load_vilt("fresh-small", answers=ANSWERS)[0]
        other.config.num_attention_heads = 2
        with pytest.raises(ValueError, match=r"'heads': 4.*, not .*'heads': 2"):
            extract_attention(other, encoded, tmp_path, batch_size=4, shard_size=10)

    def test_shards_of_other_weights_are_refused(self, model, encoded, tmp_path):
        extract_attention(model, encoded, tmp_path, batch_size=4, shard_size=10)
        other = load_vilt("fresh-small", answers=ANSWERS, seed=99)[0]
        with pytest.raises(ValueError, match="another model"):
            extract_attention(other, encoded, tmp_path, batch_size=4, shard_size=10)

    def test_an_unfinished_extraction_is_not_read(self, model, encoded, tmp_path):
        extract_attention(model, encoded, tmp_path, batch_size=4, shard_size=8)
        (tmp_path / "part-00001.parquet").unlink()
        with pytest.raises(
            ValueError, match=rf"holds {len(encoded) - 8} of {len(encoded)} questions"
        ):
            read_attention(tmp_path)

    def test_reading(self, model, encoded, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no attention shards"):
            read_attention(tmp_path)
        extract_attention(model, encoded, tmp_path, batch_size=8, shard_size=12)
        second = tmp_path / "part-00001.parquet"
        table = pq.read_table(second)
        pq.write_table(
            table.replace_schema_metadata(
                {"source": '{"layers": 2, "measures": {}, "dtype": "torch.float32"}'}
            ),
            second,
        )
        with pytest.raises(ValueError, match=r"part-00001.parquet has .*'layers': 2"):
            read_attention(tmp_path)
        second.write_bytes(second.read_bytes()[:100])
        with pytest.raises(
            ValueError, match=r"part-00001.parquet is no attention shard of this version"
        ):
            read_attention(tmp_path)

    def test_shards_of_an_earlier_version_are_named(self, model, encoded, tmp_path):
        extract_attention(model, encoded, tmp_path, batch_size=8, shard_size=50)
        shard = tmp_path / "part-00000.parquet"
        table = pq.read_table(shard)
        pq.write_table(
            table.replace_schema_metadata({"source": '{"layers": 2, "heads": 8}'}), shard
        )
        with pytest.raises(ValueError, match="no attention shard of this version"):
            read_attention(tmp_path)
