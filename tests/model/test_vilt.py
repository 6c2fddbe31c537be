"""helpers/model/vilt.py and helpers/data/encode.py against transformers' own ViLT and processor."""

import hashlib
import json
import random
from copy import deepcopy
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from transformers import ViltConfig, ViltForMaskedLM, ViltForQuestionAnswering, ViltModel
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from helpers.data.encode import EncodedQuestions, load_rgb
from helpers.model.finetune import predict
from helpers.model.forward import embed_batch, embed_images, forward_raster, patch_grids
from helpers.model.vilt import build_image_processor, load_vilt

SHARED = Path(__file__).parents[3] / "shared"
ANSWERS = ["yes", "no", "red", "2"]
SIZES = [(96, 96), (150, 100), (100, 150), (64, 64), (133, 71), (300, 60)]  # width, height


def make_picture(size, mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PillowImage.fromarray(pixels).convert(mode)


@pytest.fixture(scope="module")
def loaded():
    return load_vilt("fresh-small", answers=ANSWERS)


@pytest.fixture(scope="module")
def dataset():
    """18 questions on 6 pictures, some grey, of several sizes."""
    pictures = [make_picture(size, "L" if i % 2 else "RGB", i) for i, size in enumerate(SIZES)]
    rows = {
        "question_id": [1000 + i for i in range(18)],
        "image_id": [i % 6 for i in range(18)],
        "image": [pictures[i % 6] for i in range(18)],
        "question": ["is it " + "a " * (i % 5) + "cat?" for i in range(18)],
        "answers": [[ANSWERS[i % 4]] * (i % 11) + ["other"] * (10 - i % 11) for i in range(18)],
    }
    texts = {"question": Value("string"), "answers": List(Value("string"))}
    numbers = {"question_id": Value("int64"), "image_id": Value("int64")}
    return Dataset.from_dict(rows, features=Features({**numbers, "image": Image(), **texts}))


@pytest.fixture(scope="module")
def encoded(dataset, loaded):
    return EncodedQuestions(dataset, loaded[1], ANSWERS)


def process(dataset, processor, indices):
    """The stock processor on the same questions."""
    images = [load_rgb(dataset[i]["image"]) for i in indices]
    texts = [dataset[i]["question"] for i in indices]
    return processor(images, texts, padding=True, return_tensors="pt")


def save_checkpoint(folder, kind, model, processor):
    """What a user may have saved: the model of one class, with its processor."""
    other = kind(model.config)
    other.save_pretrained(folder)
    processor.save_pretrained(folder)
    return getattr(other, "vilt", other).state_dict()


class TestLoading:
    def test_fresh_model_is_ready_to_use(self, loaded):
        model, processor = loaded
        assert not model.training
        assert model.config._attn_implementation == "eager"
        assert model.config.id2label == dict(enumerate(ANSWERS))
        assert model.config.label2id == {answer: i for i, answer in enumerate(ANSWERS)}
        assert model.classifier[3].out_features == len(ANSWERS)
        assert type(processor.image_processor) is ViltImageProcessorPil
        assert processor.tokenizer.model_max_length == 40

    def test_seed_decides_fresh_weights(self, loaded):
        again = load_vilt("fresh-small", answers=ANSWERS)[0].state_dict()
        other = load_vilt("fresh-small", seed=1)[0].state_dict()
        for name, value in loaded[0].state_dict().items():
            assert torch.equal(value, again[name]), name
        name = "vilt.encoder.layer.0.attention.attention.query.weight"
        assert not torch.equal(again[name], other[name])

    @pytest.mark.parametrize("kind", [ViltForQuestionAnswering, ViltModel, ViltForMaskedLM])
    def test_folder_keeps_body_and_draws_head(self, kind, loaded, tmp_path):
        body = save_checkpoint(tmp_path, kind, *loaded)
        answers = ["a", "b", "c", "d"]  # as many as the saved head has
        model, _ = load_vilt(tmp_path, answers=answers)
        for name, value in model.vilt.state_dict().items():
            assert torch.equal(value, body[name]), name
        torch.testing.assert_close(model.classifier[0].weight.std().item(), 0.15, rtol=0.1, atol=0)
        again, _ = load_vilt(tmp_path, answers=answers)
        assert torch.equal(model.classifier[3].weight, again.classifier[3].weight)
        other, _ = load_vilt(tmp_path, answers=answers, seed=1)
        assert not torch.equal(model.classifier[3].weight, other.classifier[3].weight)

    def test_half_precision_checkpoint_is_read_as_float32(self, loaded, tmp_path):
        loaded[1].save_pretrained(tmp_path)
        load_vilt("fresh-small", answers=ANSWERS)[0].half().save_pretrained(tmp_path)
        model, _ = load_vilt(tmp_path)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    def test_no_random_state_moves(self, loaded, tmp_path):
        save_checkpoint(tmp_path, ViltForMaskedLM, *loaded)
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        load_vilt(tmp_path, answers=["a", "b"], seed=3)
        load_vilt("fresh-small", answers=["a", "b"], seed=3)
        assert torch.equal(states[0], torch.get_rng_state())
        assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
        assert states[2] == random.getstate()

    def test_folder_of_weights_alone_gets_stand_ins(self, loaded, tmp_path, caplog):
        ViltModel(loaded[0].config).save_pretrained(tmp_path)
        _, processor = load_vilt(tmp_path, answers=ANSWERS)
        assert "stand-in reads the questions" in caplog.text
        assert processor.image_processor.size["shortest_edge"] == 64
        mine, stock = (each.tokenizer("is it?")["input_ids"] for each in (processor, loaded[1]))
        assert mine == stock

    def test_clear_errors(self, loaded, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            load_vilt(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match="there is no folder tests/nowhere"):
            load_vilt("tests/nowhere")
        save_checkpoint(tmp_path / "mlm", ViltForMaskedLM, *loaded)
        with pytest.raises(ValueError, match="no answer head: pass answers"):
            load_vilt(tmp_path / "mlm")
        for answers, problem in (([], "empty"), (["a", "b", "a"], "'a' more than once")):
            with pytest.raises(ValueError, match=problem):
                load_vilt("fresh-small", answers=answers)


class TestEncodedQuestions:
    def test_batch_equals_the_processor(self, dataset, encoded, loaded):
        indices = [0, 1, 2, 3, 4, 5, 10]
        batch = encoded.collate([encoded[i] for i in indices])
        expected = process(dataset, loaded[1], indices)
        assert set(expected) == set(batch) - {"labels"}
        for name, value in expected.items():
            assert torch.equal(batch[name], value), name
            assert batch[name].dtype == (torch.bool if name == "pixel_mask" else value.dtype), name

    @pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
    def test_photographs_equal_the_original_vilt(self):
        cases = json.loads((SHARED / "official" / "vilt_resize_cases.json").read_text())
        _, processor = load_vilt("fresh-small")
        processor.image_processor = build_image_processor(ViltConfig())  # ViLT-B/32's
        files = [next(SHARED.glob(f"vqav2_sample/*/{case['file']}")) for case in cases]
        rows = {"image_id": list(range(len(files))), "image": [str(file) for file in files]}
        rows["question"] = ["is it?"] * len(files)
        types = {"image_id": Value("int64"), "image": Image(), "question": Value("string")}
        data = Dataset.from_dict(rows, features=Features(types))
        encoded = EncodedQuestions(data, processor)
        for case, item in zip(cases, encoded, strict=True):
            batch = encoded.collate([item])
            pixels = batch["pixel_values"][0].numpy()
            assert list(pixels.shape[1:]) == case["out"], case["file"]
            assert patch_grids(batch["pixel_mask"], 32).prod() == case["patches"]
            rounded = np.round(pixels, 3).astype(np.float32).tobytes()
            assert hashlib.sha256(rounded).hexdigest() == case["sha256"], case["file"]

    def test_long_questions_are_cut_before_sep(self, dataset, loaded, caplog):
        questions = ["is it a cat? " * 9 + text for text in dataset["question"][:2]]
        long = dataset.select([0, 1]).remove_columns("question").add_column("question", questions)
        tokenizer = loaded[1].tokenizer
        encoded = EncodedQuestions(long, loaded[1])
        assert caplog.text.count("2 of 2 questions are longer than 40 tokens") == 1
        for place, question in enumerate(long["question"]):
            expected = tokenizer(question, truncation=True, max_length=40)["input_ids"]
            assert encoded[place]["input_ids"].tolist() == expected
            assert expected[-1] == tokenizer.sep_token_id

    @settings(max_examples=20, deadline=None)
    @given(size=st.integers(1, 20), chosen=st.sets(st.integers(0, 17), min_size=1))
    def test_batches_hold_each_question_once_in_order_of_size(self, encoded, loaded, size, chosen):
        found = list(encoded.batches(size, sorted(chosen, reverse=True)))
        order = [index for part, _ in found for index in part]
        assert sorted(order) == sorted(chosen)
        assert all(len(part) == size for part, _ in found[:-1])
        items = [encoded[index] for index in order]
        sizes = [(item["pixels"].numel(), item["pixels"].shape) for item in items]
        assert sizes == sorted(sizes)
        images = encoded.image_of[order]
        assert len([*groupby(images)]) == len({*images})  # a picture's questions stand together
        assert [part for part, _ in found] == [part for part, _ in encoded.batches(size, chosen)]
        for part, batch in found:
            for place, index in enumerate(part):
                length = int(batch["attention_mask"][place].sum())
                assert torch.equal(batch["input_ids"][place, :length], encoded[index]["input_ids"])
            whole = encoded.collate([encoded[index] for index in part])
            assert len(batch["pixel_values"]) == len({*encoded.image_of[part]})  # each picture once
            both = (embed_batch(loaded[0], each) for each in (batch, whole))
            for found, expected in zip(*both, strict=True):
                torch.testing.assert_close(found, expected)  # of bytes, and of values

    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 2**32))
    def test_shuffled_images_are_a_derangement(self, encoded, seed):
        shuffled = encoded.shuffle_images(seed)
        pairs = {(int(a), int(b)) for a, b in zip(encoded.image_of, shuffled.image_of, strict=True)}
        assert len(pairs) == 6  # one picture for one picture
        assert all(a != b for a, b in pairs)
        assert {b for _, b in pairs} == set(range(6))
        assert np.array_equal(shuffled.image_of, encoded.shuffle_images(seed).image_of)
        assert torch.equal(shuffled[7]["input_ids"], encoded[7]["input_ids"])
        assert shuffled[7]["pixels"] is encoded.pictures[encoded.image_ids[shuffled.image_of[7]]]

    def test_clear_errors(self, dataset, loaded):
        with pytest.raises(ValueError, match="holds no questions"):
            EncodedQuestions(dataset.select([]), loaded[1])
        with pytest.raises(ValueError, match="at least two pictures"):
            EncodedQuestions(dataset.select([0, 6]), loaded[1]).shuffle_images(0)
        thin = dataset.select([0]).map(lambda row: {"image": make_picture((900, 10))})
        with pytest.raises(ValueError, match="900x10 is too long and thin"):
            EncodedQuestions(thin, loaded[1])


def stock_embeds(model, pixel_values, pixel_mask):
    """ViLT's own embedding with its random patch order undone: (embeds, mask), raster order."""
    embeds, mask, (places, (_, columns)) = model.vilt.embeddings.visual_embed(
        pixel_values, pixel_mask, -1
    )
    raster = places[..., 0] * columns + places[..., 1]
    raster = torch.where(mask[:, 1:] == 1, raster, raster + 10**6)  # padding last
    order = torch.cat([torch.zeros_like(mask[:, :1]), 1 + raster.argsort(1)], dim=1)
    return embeds.gather(1, order[..., None].expand_as(embeds)), mask.gather(1, order)


class TestEmbedImages:
    @settings(max_examples=15, deadline=None)
    @given(chosen=st.lists(st.integers(0, 5), min_size=1, max_size=7), seed=st.integers(0, 99))
    def test_equals_stock_in_raster_order(self, loaded, encoded, chosen, seed):
        batch = encoded.collate([encoded[i] for i in chosen])
        torch.manual_seed(seed)
        with torch.no_grad():
            given_ = loaded[0], batch["pixel_values"], batch["pixel_mask"]
            expected, expected_mask = stock_embeds(*given_)
            state = torch.get_rng_state()
            embeds, mask = embed_images(*given_)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(mask, expected_mask)
        assert mask.dtype == torch.long
        torch.testing.assert_close(embeds[mask == 1], expected[mask == 1], rtol=0, atol=1e-5)
        assert not embeds[mask == 0].any()

    @settings(max_examples=15, deadline=None)
    @given(chosen=st.lists(st.integers(0, 17), min_size=1, max_size=7))
    def test_logits_and_loss_equal_stock(self, loaded, encoded, chosen):
        """In float64: in float32 the stock model's random order alone moves a logit by 2e-6."""
        model, batch = deepcopy(loaded[0]).double(), encoded.collate([encoded[i] for i in chosen])
        batch["pixel_values"], batch["labels"] = (
            batch[name].double() for name in ("pixel_values", "labels")
        )
        with torch.no_grad():
            ours, stock = forward_raster(model, batch), model(**batch)
        torch.testing.assert_close(ours.logits, stock.logits, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours.loss, stock.loss, rtol=1e-12, atol=1e-12)

    def test_grids_are_rows_and_columns(self):
        mask = torch.zeros(3, 96, 112)
        mask[0, :64, :112], mask[1, :96, :64], mask[2] = 1, 1, 1
        assert patch_grids(mask, 16).tolist() == [[4, 7], [6, 4], [6, 7]]

    def test_subsampling_is_refused(self, loaded, monkeypatch):
        monkeypatch.setattr(loaded[0].config, "max_image_length", 10)
        with pytest.raises(ValueError, match="drop patches at random"):
            embed_images(loaded[0], torch.zeros(1, 3, 64, 64))


class TestPredict:
    def test_rows_are_in_order_and_equal_single_runs(self, loaded, encoded):
        model = loaded[0].train()
        table = predict(model, encoded, batch_size=5)
        training, _ = model.training, model.eval()
        assert training
        assert table["question_id"].tolist() == list(range(1000, 1018))
        for place in range(18):
            with torch.no_grad():
                logits = model(**encoded.collate([encoded[place]])).logits[0]
            assert table["prediction"][place] == ANSWERS[logits.argmax()]
            confidence = logits.max().sigmoid().item()
            assert table["confidence"][place] == pytest.approx(confidence, abs=1e-5)
