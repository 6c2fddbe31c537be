"""Pictures of every kind, resized once: what comes back, what a kill leaves, ViLT's own sizes."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from helpers.data import encode
from helpers.data.encode import (
    EncodedQuestions,
    Pictures,
    load_rgb,
    read_picture,
    write_pictures,
)
from helpers.data.vqa import read_vqa
from helpers.model.vilt import load_vilt

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="module")
def processor():
    return load_vilt("fresh-small")[1]


@pytest.fixture
def files(tmp_path):
    """Six pictures of several sizes and kinds, by image_id, out of order."""
    paths = {}
    kinds = [((90, 60), "RGB"), ((60, 90), "L"), ((64, 64), "RGBA")] * 2
    for number, (size, mode) in enumerate(kinds):
        paths[900 - 7 * number] = tmp_path / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(paths[900 - 7 * number])
    return paths


@pytest.mark.parametrize(
    "flags",
    [{}, {"do_normalize": False}, {"do_rescale": False}, {"do_resize": False},
     {"size": {"height": 64, "width": 64}}, {"image_mean": [0.1, 0.2, 0.3], "size_divisor": 8}],
)  # fmt: skip
def test_a_processor_is_followed_or_refused(flags):
    processor = load_vilt("fresh-small")[1]
    kind, given = type(processor.image_processor), processor.image_processor.to_dict()
    processor.image_processor = kind(**{**given, **flags})
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    row = {"image_id": [7], "question": ["is it?"], "image": [Image.fromarray(noise)]}
    data = Dataset.from_dict(row)
    if flags.keys() & {"do_resize", "size"}:
        with pytest.raises(ValueError, match="image_id 7: the processor does not resize"):
            EncodedQuestions(data, processor)
        return
    encoded = EncodedQuestions(data, processor)
    batch = encoded.collate([encoded[0]])
    expected = processor.image_processor(data[0]["image"], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected.float())


def test_a_killed_call_keeps_what_stands(files, processor, tmp_path, monkeypatch):
    seen = []

    def read_or_die(path):
        seen.append(path)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return read_picture(path)

    monkeypatch.setattr(encode, "read_picture", read_or_die)
    monkeypatch.setattr(encode.os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        write_pictures(files, processor.image_processor, tmp_path / "kept")
    kept = Pictures(write_pictures(files, processor.image_processor, tmp_path / "kept"))
    assert sorted(seen) == sorted([*files.values(), seen[4]]), "only the fifth is read again"
    assert all(kept[image_id].shape[1:] == size for image_id, size in kept.sizes.items())


def test_a_picture_that_cannot_be_resized_is_named(files, processor, tmp_path):
    Image.new("RGB", (900, 10)).save(files[900])
    with pytest.raises(ValueError, match=r"^image_id 900 \(0.png\): .*900x10"):
        write_pictures(files, processor.image_processor, tmp_path / "kept")
    files[893].write_bytes(files[893].read_bytes()[:100])
    with pytest.raises(ValueError, match=r"^image_id 893 \(1.png\): no whole picture"):
        write_pictures({893: files[893]}, processor.image_processor, tmp_path / "other")


def test_questions_read_from_kept_pictures_make_the_same_batches(phantom_root, processor, tmp_path):
    data = read_vqa(phantom_root, "val")
    files = {row["image_id"]: row["image"].filename for row in data}
    kept = Pictures(write_pictures(files, processor.image_processor, tmp_path / "kept"))
    fresh = EncodedQuestions(data, processor)
    stored = EncodedQuestions(data, processor, pictures=kept)
    for (mine, batch), (other, expected) in zip(stored.batches(16), fresh.batches(16), strict=True):
        assert mine == other
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


# Kinds of pictures

LEFT_TO_RIGHT = np.tile(np.linspace(0, 1, 256), (4, 1))  # grey, black to white


def save(picture, form, **options) -> io.BytesIO:
    picture.save(file := io.BytesIO(), form, **options)
    return file


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("RGB", (1, 2, 3), (1, 2, 3)), ("L", 77, (77, 77, 77)), ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)), ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)), ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (0, 0, 0, 127), (128, 128, 128)), ("LA", (9, 0), (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)), ("I", 257, (1, 1, 1)), ("F", 0.2, (51, 51, 51)),
        ("F", 51.0, (51, 51, 51)), ("F", float("nan"), (0, 0, 0)),
    ],
)  # fmt: skip
def test_load_rgb(mode, value, expected):
    rgb = load_rgb(Image.new(mode, (2, 2), value))
    assert (rgb.mode, rgb.size, rgb.getpixel((1, 1))) == ("RGB", (2, 2), expected)


def test_load_rgb_of_a_palette():
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert load_rgb(palette).getpixel((0, 0)) == (9, 8, 7)
    palette.info["transparency"] = 1
    assert load_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("form", "top", "dtype"), [
    ("png", 65535, np.uint16), ("tiff", 65535, np.uint16), ("tiff", 65535, np.int32),
    ("tiff", 1, np.float32), ("tiff", 255, np.float32),
])  # fmt: skip
def test_deep_greyscale_keeps_its_shades(form, top, dtype):
    with Image.open(save(Image.fromarray((LEFT_TO_RIGHT * top).astype(dtype)), form)) as picture:
        row = np.asarray(load_rgb(picture))[0, :, 0]
    assert np.abs(row.astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("form", "orientation", "side"),
    [
        ("jpeg", 1, "left"), ("jpeg", 2, "right"), ("jpeg", 3, "right"), ("jpeg", 4, "left"),
        ("png", 5, "top"), ("tiff", 6, "top"), ("webp", 7, "bottom"), ("jpeg", 8, "bottom"),
    ],
)  # fmt: skip
def test_pictures_stand_upright(form, orientation, side, tmp_path):
    """A camera's picture, 80 x 40, its left half red, is shown as the camera's note says."""
    lying = Image.new("RGB", (80, 40), "white")
    lying.paste("red", (0, 0, 40, 40))
    exif = lying.getexif()
    exif[0x0112] = orientation
    (tmp_path / "p").write_bytes(save(lying, form, exif=exif).getvalue())
    upright = read_picture(tmp_path / "p")
    red = np.asarray(upright)[..., 1] < 128
    assert upright.size == ((80, 40) if orientation <= 4 else (40, 80))
    columns, rows = red.mean(0) > 0.9, red.mean(1) > 0.9
    halves = {"left": columns[:35], "right": columns[45:], "top": rows[:35], "bottom": rows[45:]}
    assert [name for name, half in halves.items() if half.size and half.all()] == [side]


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "tiff"])
def test_half_a_file_is_no_picture(form, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    whole = save(Image.fromarray(noise), form, **{"progressive": True} if form == "jpeg" else {})
    half = len(whole.getvalue()) // 2
    (tmp_path / "half").write_bytes(whole.getvalue()[:half])
    with pytest.raises(ValueError, match="no whole picture"):
        read_picture(tmp_path / "half")
    (tmp_path / "whole").write_bytes(whole.getvalue() + bytes(50))  # padded by a camera or a disk
    assert read_picture(tmp_path / "whole").size == (90, 90)
