"""A study on two processes (gloo, on the CPU) against the same study on one."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.attention.extract import extract_attention, random_weight_model, read_attention
from helpers.attention.relevance import relevance_measures
from helpers.data import prepare
from helpers.model import finetune
from helpers.run.settings import Study
from tools import launch

ROOT = Path(__file__).parents[2]
SIZES = {"epochs": 2, "batch_size": 32, "shard_size": 16, "extract_batch_size": 8,
         "random_models": 2, "ablation_questions": 8, "knockout_questions": 8,
         "joint_questions": 8, "pair_questions": 8, "joint_sets": 4, "withheld_questions": 8,
         "shapley_questions": 2, "shapley_permutations": 1}  # fmt: skip
LAUNCH = "--multi_gpu --num_processes=2 --main_process_port=0 --num_machines=1 --dynamo_backend=no"


def launch_two(settings: dict[str, object]) -> None:
    """`accelerate launch` with two CPU processes."""
    given = [f"{name}={value}" for name, value in settings.items()]
    options = [*LAUNCH.split(), "--mixed_precision=no", "-m", "tools.launch", "--set"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes" in done.stdout + done.stderr


def run_as_one_of_two(rank: int, port: int, settings: dict[str, object]) -> None:
    """What `accelerate launch` runs, in the environment that it makes, without its imports."""
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}  # fmt: skip
    launch.main(["--set", *(f"{name}={value}" for name, value in settings.items())])


def kill_in_second_epoch(settings: dict[str, object], run_dir: Path, start_process) -> None:
    """Start a study on two processes and kill both once the second epoch has a checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start_process(run_as_one_of_two, rank, port, settings) for rank in range(2)]
    wanted = {f"checkpoint-{step}" for step in range(9, 16)}
    checkpoints = ".model.*.part/checkpoints/checkpoint-*/trainer_state.json"
    deadline = time.monotonic() + 600  # beside other load
    while not {path.parent.name for path in run_dir.glob(checkpoints)} & wanted:
        assert time.monotonic() < deadline
        assert all(process.is_alive() for process in processes), "it ended by itself"
        time.sleep(0.01)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    assert not (run_dir / "model").is_dir(), "it ended before it could be killed"


@pytest.fixture(scope="module")
def studies(tmp_path_factory, phantom_root, float64_checkpoint, start_process):
    """The study on one process; and on two, killed inside the second epoch and started again."""
    runs_root = tmp_path_factory.mktemp("runs")
    given = {"data_root": phantom_root, "runs_root": runs_root, "checkpoint": float64_checkpoint}
    settings = {**given, "device": "cpu", **SIZES}
    one, two = (Study.load("phantom", **settings, run_name=name) for name in ("one", "two"))
    launch.run_steps(one)
    kill_in_second_epoch({**settings, "run_name": "two"}, two.run_dir, start_process)
    launch_two({**settings, "run_name": "two"})
    return one, two


@pytest.mark.slow
def test_two_processes_killed_and_started_again_train_as_one(studies):
    """The same curves (the Trainer sums the loss in float32) and the same weights."""
    curves = [pd.read_csv(study.run_dir / "model" / "training.csv") for study in studies]
    for name in ("step", "loss", "eval_accuracy"):
        first, second = (curve[name].dropna() for curve in curves)
        np.testing.assert_allclose(first, second, rtol=1e-6)
    models = [finetune.load_finetuned(study)[0] for study in studies]
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_two_processes_measure_the_same_table(studies, tmp_path):
    """The table that two processes left against one process's of the same model."""
    _, study = studies
    model, processor = finetune.load_finetuned(study)
    encoded = prepare.encode(study, prepare.load_dataset(study)["validation"], processor)
    random = random_weight_model(model, study.seed + 1)
    for name, each in {"attention": model, "attention_random/01": random}.items():
        two, folder = read_attention(study.run_dir / name), tmp_path / name
        sizes = study.extract_batch_size, study.shard_size
        one = read_attention(extract_attention(each, encoded, folder, *sizes))
        pd.testing.assert_frame_equal(one.questions, two.questions)
        for measure in ("split", "entropy", "text_distance", "patch_distance"):
            np.testing.assert_allclose(getattr(one, measure), getattr(two, measure), atol=1e-5)
    two = read_attention(study.run_dir / "relevance")
    one = relevance_measures(model, encoded.collate([encoded[3]]))
    np.testing.assert_allclose(two.relevance[3], one["relevance"][0], atol=1e-4)


@pytest.mark.slow
def test_what_is_up_to_date_is_not_done_again(studies):
    _, two = studies
    made = {path: path.stat().st_mtime_ns for path in two.run_dir.rglob("made.json")}
    samples = {"removals", "importance", "knockout", "pairs", "sets", "modality",
               "spare_losses", "spare_gradients", "spare_attention", "spare_sets"}  # fmt: skip
    assert samples < {path.parent.name for path in made}
    assert len(made) == 6 + len(samples)  # dataset, model, attention, relevance, two random ones
    launch.run_steps(two)
    assert made == {path: path.stat().st_mtime_ns for path in two.run_dir.rglob("made.json")}


def test_a_wrong_setting_is_one_sentence(capsys):
    assert launch.main(["--set", "epoch=1"]) == 1
    assert "Did you mean 'epochs'" in capsys.readouterr().err
