"""Settings: presets, overrides, what is refused, folders."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.run.settings import Study

ROOT = Path(__file__).resolve().parents[2]


def test_profiles_differ_where_they_should():
    phantom, colab, full = (Study.load(name) for name in ("phantom", "colab", "full"))
    assert Study.load() == phantom
    assert (phantom.run_name, colab.run_name, full.run_name) == ("phantom", "colab", "full")
    assert (phantom.data_root, phantom.download) == (None, False)
    assert colab.download
    assert not Study.load("colab", data_root="own").download  # nothing is put into a folder unasked
    assert Study.load("colab", data_root="own", download=True).download


def test_overrides_win_and_none_means_as_in_the_profile():
    study = Study.load("colab", epochs=7, batch_size=None, run_name="mine")
    assert (study.epochs, study.batch_size, study.run_name) == (7, 64, "mine")
    assert Study.load("colab", train_per_family="all").train_per_family is None


@pytest.mark.parametrize("given", [{"epochs": 2, "seed": 4}, '{"epochs": 2, "seed": 4}'])
def test_settings_as_a_dict_or_its_json_win(given):
    study = Study.load("phantom", given, seed=1, runs_root=None)
    assert (study.epochs, study.seed) == (2, 4)
    assert all(Study.load("phantom", none) == Study.load("phantom") for none in (None, "", {}))


@pytest.mark.parametrize("given", ["epochs=2", "[2]", "{'epochs': 2}", 5])
def test_settings_that_are_no_dict_are_refused(given):
    with pytest.raises(ValueError, match=r"^SETTINGS=.*expected a dict such as .*$"):
        Study.load("phantom", given)


def test_texts_and_numpy_numbers_are_converted():
    given = {"epochs": "3", "learning_rate": "1e-4", "seed": np.int64(5), "data_root": Path("a/x"),
             "show_photographs": "true", "download": "0"}  # fmt: skip
    study = Study.load(**given)
    assert [*study.settings(*given).values()] == [3, 1e-4, 5, "a/x", True, False]
    assert type(study.seed) is int


@pytest.mark.parametrize(
    ("profile", "overrides", "message"),
    [
        ("phantm", {}, r"profile 'phantm'. Did you mean 'phantom'\? Known: phantom, colab, full"),
        ("phantom", {"epoch": 3}, r"setting 'epoch'. Did you mean 'epochs'\? Known: profile, run"),
        ("phantom", {"zzz": 3}, "unknown setting 'zzz'. Known: "),
    ],
)
def test_unknown_names_list_the_known_ones(profile, overrides, message):
    with pytest.raises(ValueError, match=message):
        Study.load(profile, **overrides)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": "three"}, {"epochs": 0}, {"epochs": 2.5}, {"epochs": True}, {"epochs": ""},
        {"learning_rate": 0}, {"learning_rate": float("nan")}, {"train_per_family": "some"},
        {"seed": -1}, {"seed": 2**32}, {"max_missing": float("inf")}, {"checkpoint": ""},
        {"show_photographs": "maybe"}, {"device": "cuda:1"}, {"precision": "fp8"},
    ],
)  # fmt: skip
def test_wrong_values_name_the_setting(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=re.escape(f"setting {name}={value!r}: expected")):
        Study.load(**wrong)
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(Study.load(), **wrong)


@pytest.mark.parametrize(
    "name", ["..", ".", "../x", "a/b", "/tmp/x", "a\\b", ".hidden", "", " ", "a b", "a\n"]
)
def test_run_name_cannot_leave_the_runs_folder(name):
    with pytest.raises(ValueError, match="run_name"):
        Study.load(run_name=name)


def test_folders_and_paths(tmp_path):
    study = Study.load(run_name="r1.a-b_c", runs_root=tmp_path / "runs")
    assert study.run_dir == tmp_path / "runs" / "r1.a-b_c"
    assert not study.run_dir.exists()
    assert study.folder("tables") == study.run_dir / "tables"
    assert study.folder("tables").is_dir()
    assert Study.load().run_dir == ROOT / "runs" / "phantom"
    assert study.path("data/vqav2") == ROOT / "data" / "vqav2"
    assert study.path(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("name", "is_path"),
    [("dandelin/vilt-b32-mlm@refs/pr/4", False), ("fresh-small", False), ("helpers", True),
     ("data/mistyped", True)],
)  # fmt: skip
def test_a_name_on_the_hub_is_no_path(name, is_path):
    assert Study.load(checkpoint=name).path(name) == (ROOT / name if is_path else name)


def test_device_name():
    assert Study.load(device="cpu").device_name() == "cpu"
    import torch

    assert Study.load().device_name() == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device='cuda'.*no GPU"):
            Study.load(device="cuda").device_name()


def test_importing_study_is_quick():
    """Notebooks and make call it before anything else: no torch, pandas, transformers."""
    slow = "{'torch', 'pandas', 'transformers'} & set(sys.modules)"
    command = [sys.executable, "-c", f"import sys, helpers.run.settings; print(*{slow})"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == "\n"


def test_models_are_the_replicas_unless_data_or_checkpoint_are_ones_own():
    replicas = Study.load("phantom").models
    assert len(replicas) > 1
    assert all((ROOT / name / "model.safetensors").is_file() for name in replicas)
    assert Study.load("phantom", seed=3, epochs=1).models
    assert Study.load("phantom", checkpoint="fresh-small").models == ()
    assert Study.load("colab").models == ()
    assert Study.load("colab", models="a/b,data/c").models == ("a/b", "data/c")
