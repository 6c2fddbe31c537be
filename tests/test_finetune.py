"""Fine-tuning and the baselines it must beat."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

from helpers import finetune, prepare
from helpers.encode import EncodedQuestions
from helpers.study import Study
from helpers.vilt import forward_raster, load_vilt, predict
from helpers.vqa import build_vocabulary


def make_questions(rows):
    """A data set of (question, type, answer) rows, each answered alike by all ten annotators."""
    return Dataset.from_dict(
        {
            "question_id": list(range(len(rows))),
            "image_id": list(range(len(rows))),
            "question": [question for question, _, _ in rows],
            "question_type": [kind for _, kind, _ in rows],
            "family": ["what"] * len(rows),
            "needs_image": [None] * len(rows),
            "multiple_choice_answer": [answer for *_, answer in rows],
            "answers": [[answer] * 10 for *_, answer in rows],
        }
    )


TRAIN = make_questions(
    [
        ("What is red?", "what is", "ball"),
        ("What is blue?", "what is", "sea"),
        ("What is a sea?", "what is", "sea"),
    ]
    + [("Is it red?", "is it", "yes")] * 2
)


def test_prior_is_the_most_common_answer_of_the_type():
    asked = make_questions([("What is big?", "what is", "?"), ("Is it?", "is it", "?"), ("Why?", "why", "?")])
    answers = finetune.predict_prior(TRAIN, asked)["prediction"].tolist()
    assert answers == [
        "sea",
        "yes",
        "sea",
    ]  # unseen type: sea and yes are equally common, the alphabet decides


def test_words_alone_learn_what_the_words_decide():
    asked = make_questions([("What is red?", "what is", "?"), ("Is it red?", "is it", "?")])
    found = finetune.predict_from_words(TRAIN, asked, 10)
    assert found["prediction"].tolist() == ["ball", "yes"]
    again = finetune.predict_from_words(TRAIN, asked, 10)
    assert found.equals(again)


def test_scores_join_predictions_with_the_official_accuracy():
    predictions = pd.DataFrame(
        {"question_id": [4, 0, 1, 2, 3], "prediction": ["no", "ball", "ball", "sea", "yes"]}
    )
    scored = finetune.score_predictions(predictions, TRAIN)
    assert scored["question_id"].tolist() == [0, 1, 2, 3, 4]
    assert scored["accuracy"].tolist() == [1, 0, 1, 1, 0]


def test_soft_accuracy_reads_the_target_of_the_top_answer():
    logits = np.array([[0.1, 2.0], [3.0, -1.0]])
    targets = np.array([[1.0, 0.6], [0.3, 0.0]])
    assert finetune.soft_accuracy(logits, targets) == pytest.approx(0.45)


@pytest.fixture
def study(tmp_path, phantom_root):
    settings = {
        "data_root": str(phantom_root),
        "runs_root": str(tmp_path / "runs"),
        "checkpoint": "fresh-small",
    }
    study = Study.load("phantom", run_name="test", epochs=2, batch_size=16, device="cpu", **settings)
    prepare.prepare_dataset(study)
    return study


def test_bias_starts_at_the_log_odds(study):
    data = prepare.load_dataset(study)
    answers = build_vocabulary(data["train"]["answers"], 50)
    model, _ = load_vilt("fresh-small", answers=answers, seed=0)
    finetune.start_bias(model, data["train"], answers)
    yes = np.mean([min(1.0, 0.3 * list(given).count("yes")) for given in data["train"]["answers"]])
    found = torch.sigmoid(model.classifier[3].bias[answers.index("yes")]).item()
    assert found == pytest.approx(yes, abs=0.02)


def test_optimizer_gives_the_head_its_own_rate_and_spares_biases(study):
    model, _ = load_vilt("fresh-small", answers=["a", "b"], seed=0)
    groups = finetune.build_optimizer(model, study).param_groups
    rates = {(group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {
        (rate, decay) for rate in (study.learning_rate, study.head_learning_rate) for decay in (0.01, 0)
    }
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_training_lowers_the_loss_and_the_model_loads_again(study):
    data = prepare.load_dataset(study)
    folder = finetune.finetune(study, data)
    curves = pd.read_csv(folder / "training.csv")
    losses = curves["loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]
    assert curves["eval_accuracy"].notna().sum() >= 4
    model, processor = finetune.load_finetuned(study)
    encoded = EncodedQuestions(data["validation"], processor)
    first, second = (predict(model, encoded, size) for size in (7, 64))
    assert first["prediction"].tolist() == second["prediction"].tolist()
    assert not list(folder.glob("checkpoints"))
    made = (folder / "made.json").stat().st_mtime_ns
    finetune.finetune(study, data)
    assert (folder / "made.json").stat().st_mtime_ns == made


KILLED = """
import sys
sys.path.insert(0, {root!r})
from helpers import finetune, prepare
from helpers.study import Study
study = Study.load("phantom", **{settings!r})
finetune.finetune(study, prepare.load_dataset(study))
"""


def test_a_killed_training_continues_and_ends_the_same(study, tmp_path):
    """SIGKILL after the first epoch's checkpoint, start again: same losses and weights as an unbroken run."""
    names = ("data_root", "runs_root", "checkpoint", "run_name", "epochs", "batch_size", "device")
    settings = {**study.settings(*names), "epochs": 8}
    broken = Study.load("phantom", **settings)
    command = [sys.executable, "-c", KILLED.format(root=str(study.root), settings=settings)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(Path(broken.run_dir).glob(".model.*.part/checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    data = prepare.load_dataset(broken)
    finetune.finetune(broken, data)
    whole = Study.load("phantom", **{**settings, "run_name": "whole"})
    prepare.prepare_dataset(whole)
    finetune.finetune(whole, data)
    models = [finetune.load_finetuned(each)[0] for each in (broken, whole)]
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_that_a_kill_left_half_written_does_not_block_the_run(study):
    data = prepare.load_dataset(study)
    finetune.finetune(study, data)
    made = json.loads((study.run_dir / "model" / "made.json").read_text())
    shutil.rmtree(study.run_dir / "model")
    part = study.run_dir / f".model.{made['fingerprint'][:12]}.part" / "checkpoints" / "checkpoint-3"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(b"half")
    assert (finetune.finetune(study, data) / "model.safetensors").stat().st_size > 1000


def test_raster_trainer_uses_the_raster_forward(study):
    """The loss that the Trainer sees is that of forward_raster, and no random permutation is drawn."""
    data = prepare.load_dataset(study)
    answers = build_vocabulary(data["train"]["answers"], 50)
    model, processor = load_vilt("fresh-small", answers=answers, seed=0)
    encoded = EncodedQuestions(data["train"].select(range(8)), processor, answers)
    batch = encoded.collate([encoded[i] for i in range(8)])
    state = torch.random.get_rng_state()
    loss = finetune.RasterTrainer.compute_loss(None, model, batch)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(loss, forward_raster(model, batch).loss)
