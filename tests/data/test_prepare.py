"""The study's questions: drawn once, images on one side only, truth kept, small samples pooled."""

import hashlib
import io
import itertools
import json
import multiprocessing
import shutil
import zipfile
from functools import partial
from pathlib import Path

import multiprocess
import numpy as np
import pytest
import torch
from loopback import Loopback, answer
from PIL import Image

from helpers.data import download, prepare
from helpers.data.download import DownloadError, download_questions
from helpers.data.vqa import FILES
from helpers.model.vilt import load_vilt
from helpers.run.settings import Study
from phantom.scenes import read_truth


@pytest.fixture
def make_study(tmp_path, phantom_root):
    def make(**settings):
        given = {"runs_root": str(tmp_path / "runs"), "data_root": str(phantom_root)}
        return Study.load("phantom", **{**given, "run_name": "test", **settings})

    return make


def test_questions_keep_their_truth_and_sizes(make_study, phantom_root):
    prepare.prepare_dataset(study := make_study())
    data = prepare.load_dataset(study)
    assert [len(set(part["image_id"])) for part in data.values()] == [40, 20]
    truth = read_truth(phantom_root, "val")
    for row in data["validation"].select(range(0, 60, 7)):
        assert row["boxes"] == truth[row["question_id"]]["boxes"]
        assert row["needs_image"] == truth[row["question_id"]]["needs_image"]
        assert (row["width"], row["height"]) == Image.open(phantom_root / row["picture"]).size
    assert prepare.read_notes(study) == []


def test_the_subset_is_balanced_and_drawn_once(make_study):
    study = make_study(train_per_family=10, validation_per_family=5)
    folder = prepare.prepare_dataset(study)
    before = (folder / "made.json").stat().st_mtime_ns
    data = prepare.load_dataset(study)
    for name, size in (("train", 10), ("validation", 5)):
        assert data[name].to_pandas()["family"].value_counts().tolist() == [size] * 7
    prepare.prepare_dataset(study)
    assert (folder / "made.json").stat().st_mtime_ns == before
    prepare.prepare_dataset(make_study(train_per_family=10, validation_per_family=6))
    assert (folder / "made.json").stat().st_mtime_ns != before


def test_a_small_validation_file_is_pooled_by_image(make_study):
    study = make_study(min_validation=1000)
    prepare.prepare_dataset(study)
    data = prepare.load_dataset(study)
    sides = [set(part["image_id"]) for part in data.values()]
    assert not sides[0] & sides[1]
    assert len(sides[0]) + len(sides[1]) == 60
    assert len(sides[1]) == round(0.4 * 60)
    assert set(data["validation"]["split"]) == {"train", "val"}


@pytest.mark.parametrize("clash", ["image_id", "question_id"])
def test_one_number_in_both_files_is_refused(make_study, phantom_root, tmp_path, clash):
    """Numbered from 1 in each file, pooled questions would get another's picture."""
    for split, kind in itertools.product(("train", "val"), FILES):
        name = FILES[kind][0].format(split)
        content = json.loads((phantom_root / name).read_text())
        for number, record in enumerate(content[kind], 1):
            record[clash] = number
        (tmp_path / name).write_text(json.dumps(content))
    study = make_study(data_root=str(tmp_path), min_validation=1000)
    with pytest.raises(ValueError, match=f"{clash} are in both files, like 1: number them apart"):
        prepare.prepare_dataset(study)


def test_a_broken_picture_is_left_out_until_it_is_mended(make_study, phantom_root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(phantom_root, copy)
    picture = sorted(copy.glob("val2014/*.jpg"))[3]
    whole = picture.read_bytes()
    picture.write_bytes(whole[:700])
    study = make_study(data_root=str(copy))
    prepare.prepare_dataset(study)
    (note,) = prepare.read_notes(study)
    assert "unreadable" in note
    assert picture.name in note
    assert str(tmp_path) not in note
    assert int(picture.stem[-12:]) not in prepare.load_dataset(study)["validation"]["image_id"]
    picture.write_bytes(whole)
    prepare.prepare_dataset(study)
    assert prepare.read_notes(study) == []
    assert int(picture.stem[-12:]) in prepare.load_dataset(study)["validation"]["image_id"]


def test_preparing_starts_no_process(make_study, monkeypatch):
    """Asked for processes, even for one, datasets starts a pool that runs a script again."""
    for package in (multiprocessing, multiprocess):
        monkeypatch.delattr(package.process.BaseProcess, "start")
    prepare.prepare_dataset(study := make_study())
    assert len(prepare.load_dataset(study)["train"]) > 0


def test_what_is_missing_is_said(make_study):
    with pytest.raises(FileNotFoundError, match="run notebooks/01_setup"):
        prepare.load_dataset(make_study())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare.prepare_dataset(make_study(data_root="nowhere"))


def test_photographs_are_shown_only_on_request(make_study, phantom_root):
    prepare.prepare_dataset(make_study())
    row = prepare.load_dataset(make_study())["validation"][0]
    hidden = prepare.show_image(make_study(), row)
    assert hidden.size == (row["width"], row["height"])
    assert len(hidden.getcolors()) == 1
    shown = prepare.show_image(make_study(show_photographs=True), row)
    assert np.array_equal(np.asarray(shown), np.asarray(Image.open(phantom_root / row["picture"])))


def test_the_phantom_is_generated_once_for_a_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "root", property(lambda self: tmp_path))
    study = Study.load("phantom", train_scenes=3, validation_scenes=2, seed=5)
    folder = prepare.find_data(study)
    assert len(list(folder.glob("train2014/*.jpg"))) == 3
    made = json.loads((folder / "made.json").read_text())
    assert made["inputs"]["seed"] == 5
    assert prepare.find_data(study) == folder
    other = Study.load("phantom", train_scenes=3, validation_scenes=2, seed=6)
    assert prepare.find_data(other) != folder


@pytest.fixture
def served(phantom_root, monkeypatch):
    """The small phantom as the official servers would have it: zips, and images in folders."""
    files = {}
    for split in ("train", "val"):
        for pattern, zipped in FILES.values():
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(phantom_root / pattern.format(split), pattern.format(split))
            files[zipped.format(split, split.title())] = buffer.getvalue()
    sizes = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    monkeypatch.setattr(download, "download_questions", partial(download_questions, files=sizes))
    paths = phantom_root.glob("*/*.jpg")
    images = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}
    with Loopback(files | images) as server:
        yield server


@pytest.fixture
def far_study(make_study, served, tmp_path):
    def make(**settings):
        given = {"data_root": str(tmp_path / "far"), "download": True}
        sizes = {"train_per_family": 4, "validation_per_family": 3}
        urls = {"questions_url": served.url, "images_url": served.url}
        return make_study(**{**given, **sizes, **urls, **settings})

    return make


def list_asked(server):
    return sorted({name for name, _ in server.seen if name.endswith(".jpg")})


def test_only_the_images_that_the_subset_needs_are_fetched(far_study, make_study, served):
    study = far_study()
    prepare.prepare_dataset(study)
    data = prepare.load_dataset(study)
    needed = sorted({name for part in data.values() for name in part["picture"]})
    assert list_asked(served) == needed
    assert len(needed) < 30 < 60
    local = make_study(run_name="local", train_per_family=4, validation_per_family=3)
    prepare.prepare_dataset(local)
    for name, part in prepare.load_dataset(local).items():
        assert part["question_id"] == data[name]["question_id"]
        assert part["picture"] == data[name]["picture"]
    before = len(served.seen)
    prepare.prepare_dataset(study)
    assert len(served.seen) == before, "what stands is asked for again"


def test_a_missing_image_is_noted_and_too_many_are_an_error(far_study, served):
    study = far_study(max_missing=0.2)
    prepare.prepare_dataset(far_study(run_name="first"))
    gone = list_asked(served)[0]
    shutil.rmtree(Path(study.data_root) / "train2014")
    served.script(gone, always=answer(404))
    prepare.prepare_dataset(study)
    (note,) = prepare.read_notes(study)
    assert "missing" in note
    assert Path(gone).name in note
    assert gone not in prepare.load_dataset(study)["train"]["picture"]
    with pytest.raises(DownloadError, match=r"more than the share max_missing=0\.01"):
        prepare.prepare_dataset(far_study(max_missing=0.01, run_name="strict"))


def test_after_a_disconnect_pictures_come_back(far_study, served, tmp_path, monkeypatch):
    """On a new machine, with the run's folder only, images are fetched again when needed."""
    monkeypatch.setattr(Study, "root", tmp_path / "machine")
    study = far_study(runs_root=str(tmp_path / "drive"))
    processor = load_vilt("fresh-small")[1]
    prepare.prepare_dataset(study)
    first = prepare.load_pictures(study, processor)
    before = {key: first[key] for key in first.sizes}
    shutil.rmtree(tmp_path / "machine")
    shutil.rmtree(tmp_path / "far")
    n_asked = len(served.seen)
    data = prepare.load_dataset(study)
    assert len(served.seen) == n_asked, "reading the questions needs no image"
    encoded = prepare.encode(study, data["validation"], processor)
    assert all(torch.equal(encoded.pictures[key], before[key]) for key in encoded.image_ids)
    assert len(served.seen) > n_asked
    shutil.rmtree(tmp_path / "far")
    n_asked = len(served.seen)
    prepare.load_pictures(study, processor)
    assert len(served.seen) == n_asked, "kept pictures need no image"


def test_an_image_that_is_gone_later_is_named(far_study, served, tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "root", tmp_path / "machine")
    study = far_study(max_missing=0.5)
    prepare.prepare_dataset(study)
    shutil.rmtree(tmp_path / "far")
    gone = prepare.load_dataset(study)["train"]["picture"][0]
    served.script(gone, always=answer(404))
    with pytest.raises(FileNotFoundError, match=f"1 of .* are no longer served, like {gone}"):
        prepare.load_pictures(study, load_vilt("fresh-small")[1])
