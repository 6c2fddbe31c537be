"""The study's questions: drawn once, images on one side only, truth kept, small samples pooled."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers import prepare
from helpers.phantom import read_truth
from helpers.study import Study


@pytest.fixture
def make_study(tmp_path, phantom_root):
    def make(**settings):
        given = {"runs_root": str(tmp_path / "runs"), "data_root": str(phantom_root), "run_name": "test"}
        return Study.load("phantom", **{**given, **settings})

    return make


def test_questions_keep_their_truth_and_sizes(make_study, phantom_root):
    study = make_study()
    prepare.prepare_dataset(study)
    data = prepare.load_dataset(study)
    assert (len(set(data["train"]["image_id"])), len(set(data["validation"]["image_id"]))) == (40, 20)
    truth = read_truth(phantom_root, "val")
    for row in data["validation"].select(range(0, 60, 7)):
        assert row["boxes"] == truth[row["question_id"]]["boxes"]
        assert row["needs_image"] == truth[row["question_id"]]["needs_image"]
        assert (row["width"], row["height"]) == row["image"].size
    assert prepare.read_notes(study) == []


def test_the_subset_is_balanced_and_drawn_once(make_study):
    study = make_study(train_per_family=10, validation_per_family=5)
    folder = prepare.prepare_dataset(study)
    before = (folder / "made.json").stat().st_mtime_ns
    data = prepare.load_dataset(study)
    assert data["train"].to_pandas().groupby("family").size().tolist() == [10] * 7
    assert data["validation"].to_pandas().groupby("family").size().tolist() == [5] * 7
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


def test_a_broken_picture_is_noted_and_its_questions_left_out(make_study, phantom_root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(phantom_root, copy)
    broken = sorted(copy.glob("val2014/*.jpg"))[3]
    broken.write_bytes(broken.read_bytes()[:700])
    study = make_study(data_root=str(copy))
    prepare.prepare_dataset(study)
    (note,) = prepare.read_notes(study)
    assert "unreadable" in note
    assert broken.name in note
    assert str(tmp_path) not in note
    assert int(broken.stem[-12:]) not in prepare.load_dataset(study)["validation"]["image_id"]


def test_a_picture_that_comes_back_is_used_again(make_study, phantom_root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(phantom_root, copy)
    picture = sorted(copy.glob("val2014/*.jpg"))[0]
    kept = picture.read_bytes()
    picture.unlink()
    study = make_study(data_root=str(copy))
    prepare.prepare_dataset(study)
    assert len(prepare.read_notes(study)) == 1
    picture.write_bytes(kept)
    prepare.prepare_dataset(study)
    assert prepare.read_notes(study) == []
    assert int(picture.stem[-12:]) in prepare.load_dataset(study)["validation"]["image_id"]


def test_a_script_without_a_main_guard_can_prepare(make_study, tmp_path):
    """datasets starts a pool that runs the script again if it is asked for processes, even for one."""
    study = make_study()
    script = tmp_path / "script.py"
    given = study.settings("data_root", "runs_root", "run_name")
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(study.root)!r})\n"
        "from helpers import prepare\nfrom helpers.study import Study\n"
        f"prepare.prepare_dataset(Study.load('phantom', **{given!r}))\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, timeout=100)
    assert len(prepare.load_dataset(study)["train"]) > 0


def test_what_is_missing_is_said(make_study):
    with pytest.raises(FileNotFoundError, match="run notebooks/01_setup"):
        prepare.load_dataset(make_study())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare.prepare_dataset(make_study(data_root="nowhere"))


def test_photographs_are_shown_only_on_request(make_study, phantom_root):
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    hidden = prepare.show_image(make_study(), {"image": picture})
    assert hidden.size == picture.size
    assert len(np.unique(np.asarray(hidden))) == 1
    shown = prepare.show_image(make_study(show_photographs=True), {"image": picture})
    assert np.array_equal(np.asarray(shown), np.asarray(picture))


def test_the_phantom_is_generated_once_for_a_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "root", property(lambda self: tmp_path))
    study = Study.load("phantom", train_scenes=3, validation_scenes=2, seed=5)
    folder = prepare.find_data(study)
    assert len(list(folder.glob("train2014/*.jpg"))) == 3
    made = json.loads((folder / "made.json").read_text())
    assert made["depends"]["seed"] == 5
    assert prepare.find_data(study) == folder
    assert prepare.find_data(Study.load("phantom", train_scenes=3, validation_scenes=2, seed=6)) != folder
