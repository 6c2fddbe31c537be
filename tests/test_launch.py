"""A study on two processes (gloo, on the CPU) against the same study on one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import finetune, launch, measure
from helpers.study import Study

ROOT = Path(__file__).parents[1]
TWO = ["accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1", "--dynamo_backend=no"]


def run_two(settings):
    """`accelerate launch` as the README has it, with two CPU processes."""
    given = [f"{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", *TWO, "--mixed_precision=no", "-m", "helpers.launch", "--set", *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def studies(tmp_path_factory, phantom_root):
    """The study on one process, and on two."""
    settings = {
        "data_root": str(phantom_root),
        "runs_root": str(tmp_path_factory.mktemp("runs")),
        "device": "cpu",
    }
    settings |= {"epochs": 1, "batch_size": 32, "shard_size": 16, "extract_batch_size": 8}
    one, two = (Study.load("phantom", **settings, run_name=name) for name in ("one", "two"))
    launch.run_steps(one)
    done = run_two({**settings, "run_name": "two"})
    assert done.returncode == 0, done.stderr
    return one, two


def test_two_processes_measure_the_same_table(studies):
    for untrained in (False, True):
        one, two = (measure.load_attention(study, untrained) for study in studies)
        assert one.questions["question_id"].tolist() == two.questions["question_id"].tolist()
        for name in ("split", "entropy", "text_distance", "patch_distance"):
            np.testing.assert_allclose(getattr(one, name), getattr(two, name), atol=1e-4)


def test_two_processes_train_the_same_steps(studies):
    one, two = (pd.read_csv(study.run_dir / "model" / "training.csv") for study in studies)
    assert one["step"].tolist() == two["step"].tolist()
    np.testing.assert_allclose(one["loss"].dropna(), two["loss"].dropna(), rtol=1e-3)
    models = [finetune.load_finetuned(study)[0] for study in studies]
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-3)


def test_what_stands_is_not_done_again(studies):
    _, two = studies
    made = {path: path.stat().st_mtime_ns for path in two.run_dir.glob("*/made.json")}
    assert len(made) == 4  # dataset, model, both attention tables
    names = ("data_root", "runs_root", "device", "epochs", "batch_size", "shard_size", "extract_batch_size")
    assert run_two({**two.settings(*names), "run_name": "two"}).returncode == 0
    assert made == {path: path.stat().st_mtime_ns for path in two.run_dir.glob("*/made.json")}


def test_a_wrong_setting_is_one_sentence(capsys):
    assert launch.main(["--set", "epoch=1"]) == 1
    assert "Did you mean 'epochs'" in capsys.readouterr().err
