"""Pictures resized once: what comes back, what a kill leaves, and the original ViLT's own sizes."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViltConfig

from helpers.data import encode
from helpers.data.encode import EncodedQuestions, Pictures, resize_image, write_pictures
from helpers.data.vqa import read_vqa
from helpers.model.vilt import build_image_processor, load_vilt

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


def test_pictures_come_back_as_the_processor_resizes_them(files, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "PART_SIZE", 4)
    kept = Pictures(write_pictures(files, processor.image_processor, tmp_path / "kept"))
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 2
    assert sorted(kept) == sorted(files)
    levels = encode.normalise_levels(processor.image_processor)
    for image_id, path in files.items():
        picture = encode.load_rgb(Image.open(path))
        expected = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]
        found = [levels[channel][kept[image_id][channel].int()] for channel in range(3)]
        assert torch.equal(torch.stack(found), expected)
        assert kept.sizes[image_id] == tuple(expected.shape[1:])


def test_a_killed_call_keeps_the_parts_that_stand(files, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "PART_SIZE", 2)
    monkeypatch.setattr(encode, "resize_image", lambda *given: resize_or_die(*given))
    seen = []

    def resize_or_die(picture, image_processor):
        seen.append(picture.filename)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return resize_image(picture, image_processor)

    monkeypatch.setattr(encode.os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        write_pictures(files, processor.image_processor, tmp_path / "kept")
    # a part without its table does not count
    (tmp_path / "kept" / "part-00002.npy").write_bytes(b"half")
    before = len(seen)
    kept = Pictures(write_pictures(files, processor.image_processor, tmp_path / "kept"))
    assert len(seen) - before == 2, "only the third part is done again"
    for image_id, path in files.items():
        expected = resize_image(Image.open(path), processor.image_processor)
        assert torch.equal(kept[image_id], expected)


def test_a_picture_that_cannot_be_resized_is_named(files, processor, tmp_path):
    Image.new("RGB", (900, 10)).save(files[900])
    with pytest.raises(ValueError, match=r"image_id 900 \(0.png\).*900x10 is too long and thin"):
        write_pictures(files, processor.image_processor, tmp_path / "kept")
    files[893].write_bytes(files[893].read_bytes()[:100])
    with pytest.raises(ValueError, match=r"image_id 893 \(1.png\)") as caught:
        write_pictures({893: files[893]}, processor.image_processor, tmp_path / "other")
    assert str(tmp_path) not in str(caught.value)


def test_a_copy_for_another_process_carries_no_bytes(files, processor, tmp_path):
    kept = Pictures(write_pictures(files, processor.image_processor, tmp_path / "kept"))
    first = kept[900]
    copied = pickle.dumps(kept)
    assert len(copied) < 3000
    assert torch.equal(pickle.loads(copied)[900], first)
    first.zero_()  # a reader may write into what it got
    assert kept[900].any()


def test_questions_read_from_kept_pictures_make_the_same_batches(phantom_root, processor, tmp_path):
    data = read_vqa(phantom_root, "val")
    files = {row["image_id"]: row["image"].filename for row in data}
    kept = Pictures(write_pictures(files, processor.image_processor, tmp_path / "kept"))
    fresh = EncodedQuestions(data, processor)
    stored = EncodedQuestions(data, processor, pictures=kept)
    for (mine, batch), (other, expected) in zip(stored.batches(16), fresh.batches(16), strict=True):
        assert mine == other
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no original ViLT cases beside the project")
def test_kept_photographs_agree_with_the_original_vilt(tmp_path):
    """Size and patch count exactly, mean within 1e-3, on all 43 cases of the original code."""
    cases = json.loads((SHARED / "official" / "vilt_resize_cases.json").read_text())
    image_processor = build_image_processor(ViltConfig())  # ViLT-B/32's own
    found = (next(SHARED.glob(f"vqav2_sample/*/{case['file']}")) for case in cases)
    files = dict(enumerate(found))
    kept = Pictures(write_pictures(files, image_processor, tmp_path))
    for place, case in enumerate(cases):
        height, width = kept.sizes[place]
        assert [height, width] == case["out"]
        assert (height // 32) * (width // 32) == case["patches"]
        values = kept[place].double() / 127.5 - 1
        assert values.mean().item() == pytest.approx(case["mean"], abs=1e-3)
        assert values.std().item() == pytest.approx(case["std"], abs=1e-3)
