"""A study on two processes (gloo, on the CPU) against the same study on one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from helpers.attention.extract import (
    extract_attention,
    load_attention,
    random_weight_model,
    read_attention,
)
from helpers.attention.relevance import relevance_measures
from helpers.data import prepare
from helpers.model import finetune
from helpers.run.settings import Study
from tools import launch

ROOT = Path(__file__).parents[2]
SIZES = {"epochs": 3, "batch_size": 32, "shard_size": 16, "extract_batch_size": 8}
NAMES = ("data_root", "runs_root", "checkpoint", "device", *SIZES)
LAUNCH = "--multi_gpu --num_processes=2 --main_process_port=0 --num_machines=1 --dynamo_backend=no"


def start_two(settings):
    """`accelerate launch` with two CPU processes."""
    given = [f"{name}={value}" for name, value in settings.items()]
    options = [*LAUNCH.split(), "--mixed_precision=no", "-m", "tools.launch", "--set"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **piped)


def run_two(settings):
    process = start_two(settings)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "2 processes" in stdout


@pytest.fixture(scope="module")
def studies(tmp_path_factory, phantom_root, float64_checkpoint):
    """The study on one process, and on two."""
    runs_root = tmp_path_factory.mktemp("runs")
    given = {"data_root": phantom_root, "runs_root": runs_root, "checkpoint": float64_checkpoint}
    settings = {**given, "device": "cpu", **SIZES}
    one, two = (Study.load("phantom", **settings, run_name=name) for name in ("one", "two"))
    launch.run_steps(one)
    run_two({**settings, "run_name": "two"})
    return one, two


@pytest.mark.slow
def test_two_processes_measure_the_same_table(studies, tmp_path):
    """The table that two processes left against one process's of the same model."""
    _, study = studies
    model, processor = finetune.load_finetuned(study)
    encoded = prepare.encode(study, prepare.load_dataset(study)["validation"], processor)
    models = {False: model, True: random_weight_model(model, study.seed)}
    for untrained, each in models.items():
        two = load_attention(study, untrained)
        sizes = study.extract_batch_size, study.shard_size
        one = read_attention(extract_attention(each, encoded, tmp_path / str(untrained), *sizes))
        pd.testing.assert_frame_equal(one.questions, two.questions)
        for name in ("split", "entropy", "text_distance", "patch_distance"):
            np.testing.assert_allclose(getattr(one, name), getattr(two, name), atol=1e-5)
    two = read_attention(study.run_dir / "relevance")
    one = relevance_measures(model, encoded.collate([encoded[3]]))
    np.testing.assert_allclose(two.relevance[3], one["relevance"][0], atol=1e-4)


def assert_same_training(one, two):
    """The same curves (the Trainer sums the loss in float32) and the same weights."""
    curves = [pd.read_csv(study.run_dir / "model" / "training.csv") for study in (one, two)]
    for name in ("step", "loss", "eval_accuracy"):
        first, second = (curve[name].dropna() for curve in curves)
        np.testing.assert_allclose(first, second, rtol=1e-6)
    models = [finetune.load_finetuned(study)[0] for study in (one, two)]
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_two_processes_train_the_same_steps(studies):
    assert_same_training(*studies)


@pytest.mark.slow
def test_what_is_up_to_date_is_not_done_again(studies):
    _, two = studies
    made = {path: path.stat().st_mtime_ns for path in two.run_dir.glob("*/made.json")}
    assert len(made) == 5  # dataset, model, both attention tables, relevance
    run_two({**two.settings(*NAMES), "run_name": "two"})
    assert made == {path: path.stat().st_mtime_ns for path in two.run_dir.glob("*/made.json")}


@pytest.mark.slow
def test_two_processes_killed_inside_the_second_epoch_end_the_same(studies):
    _, two = studies
    settings = {**two.settings(*NAMES), "run_name": "killed"}
    process = start_two(settings)
    found = two.run_dir.parent / "killed"
    wanted = {f"checkpoint-{step}" for step in range(9, 16)}  # 8 steps an epoch
    deadline = time.monotonic() + 600  # beside other load
    checkpoints = ".model.*.part/checkpoints/checkpoint-*/trainer_state.json"
    while not {path.parent.name for path in found.glob(checkpoints)} & wanted:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for each in [process, *psutil.Process(process.pid).children(recursive=True)]:
        each.kill()
    process.communicate()
    assert not (found / "model").is_dir(), "it ended before it could be killed"
    run_two(settings)
    assert_same_training(two, Study.load("phantom", **settings))


def test_a_wrong_setting_is_one_sentence(capsys):
    assert launch.main(["--set", "epoch=1"]) == 1
    assert "Did you mean 'epochs'" in capsys.readouterr().err
