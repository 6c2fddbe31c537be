"""One picture and one question, against transformers' own processor and model."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.attention import look
from helpers.attention.image_share import attention_split


def noise(size, mode="RGB", seed=0):
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze())


def test_answer_and_split_are_those_of_the_stock_model(vilt):
    model, processor = vilt
    picture, question = noise((90, 130)), "what color is the dog?"
    seen = look(model, processor, picture, question)
    batch = dict(processor(images=picture, text=question, return_tensors="pt"))
    with torch.no_grad():
        logits = model(**batch).logits[0]
    assert seen.answer == model.config.id2label[int(logits.argmax())]
    np.testing.assert_allclose(seen.answers.iloc[0], logits.max().sigmoid(), atol=1e-5)
    split = attention_split(model, batch)[0].numpy()
    np.testing.assert_allclose(seen.split, split, atol=1e-5)
    np.testing.assert_allclose(seen.image_share, split[:, :, 0, 3:].sum(-1), atol=1e-5)
    n_patches, n_text = np.prod(seen.attention.grid), batch["input_ids"].shape[1]
    assert seen.baseline == pytest.approx((1 + n_patches) / (1 + n_patches + n_text))
    assert seen.maps.shape == (4, 4, *seen.attention.grid)
    np.testing.assert_allclose(seen.maps.sum((2, 3)), split[:, :, 0, 4], atol=1e-5)
    assert seen.attention.tokens[0] == "[CLS]"
    assert len(seen.plot().axes) > 4


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (300, 200)), ("RGBA", (30, 40)), ("LA", (64, 64))]
)
def test_grey_and_transparent_pictures_of_any_size(vilt, mode, size):
    seen = look(*vilt, noise(size, mode), "is it red?")
    np.testing.assert_allclose(seen.split[:, :, 0].sum(-1), 1, atol=1e-5)
    assert seen.picture.mode == "RGB"


def test_a_file_turned_by_its_camera_is_upright(vilt, tmp_path):
    picture, exif = noise((60, 120)), Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    seen = look(*vilt, tmp_path / "turned.png", "what?")
    assert seen.picture.size == (60, 120)
    upright = look(*vilt, np.asarray(picture.rotate(-90, expand=True)), "what?")
    np.testing.assert_allclose(seen.split, upright.split, atol=1e-5)


def test_long_questions_are_cut_and_empty_ones_refused(vilt):
    model, processor = vilt
    seen = look(model, processor, noise((64, 64)), "dog " * 60)
    assert seen.attention.groups["sep"].stop == processor.tokenizer.model_max_length
    with pytest.raises(ValueError, match="empty"):
        look(model, processor, noise((64, 64)), "  ")
    with pytest.raises(ValueError, match="thin"):
        look(model, processor, noise((2, 400)), "what?")
