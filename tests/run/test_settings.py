"""Settings, run folders, and what is written there about a run."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers.run.settings import Study, describe, record_run, save_figure, save_table

ROOT = Path(__file__).resolve().parents[2]


# Settings


def test_profiles_differ_where_they_should():
    phantom, colab, full = (Study.load(name) for name in ("phantom", "colab", "full"))
    assert Study.load() == phantom
    assert (phantom.run_name, colab.run_name, full.run_name) == ("phantom", "colab", "full")
    assert (phantom.data_root, phantom.checkpoint) == (None, "data/phantom-vilt")
    assert (colab.train_per_family, colab.validation_per_family) == (2000, 500)
    assert (full.train_per_family, full.validation_per_family) == (None, None)
    assert colab.checkpoint == full.checkpoint == "dandelin/vilt-b32-mlm@refs/pr/4"
    assert (phantom.download, colab.download, full.download) == (False, True, True)
    with pytest.raises((dataclasses.FrozenInstanceError, ValueError)):
        phantom.epochs = 4


def test_overrides_win_and_none_means_as_in_the_profile():
    study = Study.load("colab", epochs=7, batch_size=None, run_name="mine")
    assert (study.epochs, study.batch_size, study.run_name) == (7, 64, "mine")
    assert Study.load("colab", train_per_family="all").train_per_family is None


def test_texts_and_numpy_numbers_are_converted():
    given = {"epochs": "3", "learning_rate": "1e-4", "seed": np.int64(5), "data_root": Path("a/x")}
    study = Study.load(**given)
    assert study.settings(*given) == dict(zip(given, (3, 1e-4, 5, "a/x"), strict=True))
    assert type(study.seed) is int


def test_switches_are_converted():
    given = [True, "true", "0", 0]
    switches = [Study.load(show_photographs=switch).show_photographs for switch in given]
    assert switches == [True, True, False, False]


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
        {"epochs": "three"}, {"epochs": 0}, {"epochs": -1}, {"epochs": 2.5}, {"epochs": True},
        {"epochs": [3]}, {"epochs": ""}, {"learning_rate": 0}, {"learning_rate": float("nan")},
        {"learning_rate": "fast"}, {"train_per_family": -5}, {"train_per_family": "some"},
        {"seed": -1}, {"seed": 2**32}, {"seed": False}, {"max_missing": float("inf")},
        {"checkpoint": ""}, {"checkpoint": 3}, {"show_photographs": "maybe"}, {"device": "gpu"},
        {"device": "cuda:1"}, {"precision": "fp8"},
    ],
)  # fmt: skip
def test_wrong_values_name_the_setting(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=re.escape(f"setting {name}={value!r}: expected")):
        Study.load(**wrong)


@pytest.mark.parametrize(
    "name", ["..", ".", "../x", "a/b", "/tmp/x", "a\\b", ".hidden", "", " ", "a b", "a\n"]
)
def test_run_name_cannot_leave_the_runs_folder(name):
    with pytest.raises(ValueError, match="run_name"):
        Study.load(run_name=name)


def test_replace_checks_the_new_value():
    with pytest.raises(ValueError, match="epochs"):
        dataclasses.replace(Study.load(), epochs=0)


def test_folders_and_paths(tmp_path):
    study = Study.load(run_name="r1.a-b_c", runs_root=tmp_path / "runs")
    assert study.run_dir == tmp_path / "runs" / "r1.a-b_c"
    assert not study.run_dir.exists()
    assert study.folder("tables") == study.run_dir / "tables"
    assert study.folder("tables").is_dir()
    assert Study.load().run_dir == ROOT / "runs" / "phantom"
    assert study.path("data/vqav2") == ROOT / "data" / "vqav2"
    assert study.path(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["dandelin/vilt-b32-mlm@refs/pr/4", "fresh-small"])
def test_a_name_on_the_hub_is_no_path(name):
    assert Study.load(checkpoint=name).path(name) == name


@pytest.mark.parametrize("name", ["helpers", "data/nope"])
def test_a_local_checkpoint_is_a_path_even_if_mistyped(name):
    assert Study.load(checkpoint=name).path(name) == ROOT / name


def test_device_name():
    assert Study.load(device="cpu").device_name() == "cpu"
    import torch

    assert Study.load().device_name() == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device='cuda'.*no GPU"):
            Study.load(device="cuda").device_name()


def test_tables_and_figures_land_in_the_run(tmp_path):
    from matplotlib.figure import Figure

    study = Study.load(runs_root=tmp_path)
    table = save_table(study, "shares", pd.DataFrame({"layer": [0, 1], "share": [0.5, 0.25]}))
    assert table == study.run_dir / "tables" / "shares.csv"
    assert table.read_text() == "layer,share\n0,0.5\n1,0.25\n"
    figure = save_figure(study, "shares", Figure())
    assert figure == study.run_dir / "figures" / "shares.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"plain name .*'../x'"):
        save_table(study, "../x", pd.DataFrame())


def test_record_run_adds_steps(tmp_path):
    study = Study.load(runs_root=tmp_path, device="cpu")
    record_run(study, steps={"01_setup": 1.5})
    path = record_run(study, steps={"02_finetune": 20})
    record = json.loads(path.read_text())
    assert path == study.run_dir / "run.json"
    assert record["steps"] == {"01_setup": 1.5, "02_finetune": 20}
    assert record["settings"] == json.loads(json.dumps(dataclasses.asdict(study)))
    assert record["device"] == "cpu"
    assert record["versions"]["numpy"] == np.__version__
    assert {"python", "torch", "transformers", "datasets", "commit"} < set(record["versions"])


@pytest.mark.parametrize("left", ["", '{"steps": {"01_se', "[]"])
def test_a_cut_record_of_the_run_is_begun_anew(tmp_path, left):
    study = Study.load(runs_root=tmp_path, device="cpu")
    (study.folder() / "run.json").write_text(left)
    record = json.loads(record_run(study, steps={"01_setup": 1.5}).read_text())
    assert record["steps"] == {"01_setup": 1.5}


def test_describe_is_one_line_without_paths(tmp_path):
    line = describe(Study.load(runs_root=tmp_path, device="cpu", run_name="r"))
    assert "\n" not in line
    assert "/" not in line
    assert line.startswith("phantom · run r · seed 0 · python 3.")
    assert line.endswith(f"numpy {np.__version__} · cpu")


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
