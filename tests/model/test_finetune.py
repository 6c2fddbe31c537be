"""Fine-tuning and the baselines it must beat."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import ViltForQuestionAnswering

from helpers.data import prepare, vqa
from helpers.data.encode import EncodedQuestions
from helpers.data.vqa import build_vocabulary, read_vqa
from helpers.model import finetune
from helpers.model.finetune import predict
from helpers.model.forward import forward_raster, fused_attention
from helpers.model.vilt import load_vilt
from helpers.run.settings import Study


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
    asked = make_questions(
        [("What is big?", "what is", "?"), ("Is it?", "is it", "?"), ("Why?", "why", "?")]
    )
    answers = vqa.predict_prior(TRAIN, asked)["prediction"].tolist()
    assert answers == [
        "sea",
        "yes",
        "sea",
    ]  # unseen type: sea and yes are equally common, the alphabet decides


def test_words_alone_learn_what_the_words_decide():
    asked = make_questions([("What is red?", "what is", "?"), ("Is it red?", "is it", "?")])
    found = vqa.predict_from_words(TRAIN, asked, 10)
    assert found["prediction"].tolist() == ["ball", "yes"]
    again = vqa.predict_from_words(TRAIN, asked, 10)
    assert found.equals(again)


def test_scores_join_predictions_with_the_official_accuracy():
    predictions = pd.DataFrame(
        {"question_id": [4, 0, 1, 2, 3], "prediction": ["no", "ball", "ball", "sea", "yes"]}
    )
    scored = finetune.score_predictions(predictions, TRAIN)
    assert scored["question_id"].tolist() == [0, 1, 2, 3, 4]
    assert scored["accuracy"].tolist() == [1, 0, 1, 1, 0]


def test_soft_accuracy_reads_the_target_of_the_top_answer():
    targets = torch.tensor([[0.0, 0.9], [1.0, 0.3]])
    assert finetune.soft_accuracy(
        torch.tensor([[-1.0, 2.0], [0.1, 0.5]]), targets
    ).tolist() == pytest.approx([0.9, 0.3])


@pytest.fixture
def study(tmp_path, phantom_root, float64_checkpoint):
    settings = {
        "data_root": str(phantom_root),
        "runs_root": str(tmp_path / "runs"),
        "checkpoint": str(float64_checkpoint),
    }
    study = Study.load(
        "phantom", run_name="test", epochs=2, batch_size=16, device="cpu", **settings
    )
    prepare.prepare_dataset(study)
    return study


def test_bias_starts_at_the_log_odds(study):
    data = prepare.load_dataset(study)
    answers = build_vocabulary(data["train"]["answers"], 50)
    model, processor = load_vilt("fresh-small", answers=answers, seed=0)
    finetune.start_bias(model, prepare.encode(study, data["train"], processor, answers))
    yes = np.mean([min(1.0, 0.3 * list(given).count("yes")) for given in data["train"]["answers"]])
    found = torch.sigmoid(model.classifier[3].bias[answers.index("yes")]).item()
    assert found == pytest.approx(yes, abs=0.02)


def test_optimizer_gives_the_head_its_own_rate_and_spares_biases(study):
    model, _ = load_vilt("fresh-small", answers=["a", "b"], seed=0)
    groups = finetune.build_optimizer(model, study).param_groups
    rates = {(group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {
        (rate, decay)
        for rate in (study.learning_rate, study.head_learning_rate)
        for decay in (0.01, 0)
    }
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.slow
def test_training_lowers_the_loss_and_the_model_loads_again(study):
    data = prepare.load_dataset(study)
    folder = finetune.finetune(study, data)
    curves = pd.read_csv(folder / "training.csv")
    losses = curves["loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]
    assert curves["eval_accuracy"].notna().sum() >= 4
    model, processor = finetune.load_finetuned(study)
    encoded = prepare.encode(study, data["validation"], processor)
    first, second = (predict(model, encoded, size) for size in (7, 64))
    assert first["prediction"].tolist() == second["prediction"].tolist()
    assert not list(folder.glob("checkpoints"))
    made = (folder / "made.json").stat().st_mtime_ns
    finetune.finetune(study, data)
    assert (folder / "made.json").stat().st_mtime_ns == made


KILLED = """
import sys
sys.path.insert(0, {root!r})
from helpers.data import vqa
from helpers.model import finetune
from helpers.data import prepare
from helpers.run.settings import Study
study = Study.load("phantom", **{settings!r})
finetune.finetune(study, prepare.load_dataset(study))
"""


@pytest.mark.slow
def test_a_killed_training_continues_and_ends_the_same(study, tmp_path):
    """SIGKILL in the second epoch, start again: metrics and weights of an unbroken run."""
    names = ("data_root", "runs_root", "checkpoint", "run_name", "epochs", "batch_size", "device")
    settings = {**study.settings(*names), "epochs": 3, "patience": 9, "device_batch_size": 8}
    broken = Study.load("phantom", **settings)
    command = [sys.executable, "-c", KILLED.format(root=str(study.root), settings=settings)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600  # beside other load
    wanted = {f"checkpoint-{step}" for step in range(17, 32)}  # 16 steps an epoch
    checkpoints = ".model.*.part/checkpoints/checkpoint-*/trainer_state.json"
    while not {path.parent.name for path in Path(broken.run_dir).glob(checkpoints)} & wanted:
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
    curves = [pd.read_csv(each.run_dir / "model" / "training.csv") for each in (broken, whole)]
    for name in ("step", "loss", "eval_loss", "eval_accuracy"):
        np.testing.assert_allclose(curves[0][name], curves[1][name], rtol=1e-6)
    models = [finetune.load_finetuned(each)[0] for each in (broken, whole)]
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-8)


@pytest.fixture(scope="module")
def checkpoints(phantom_root, tmp_path_factory):
    """The checkpoints of a training stopped before it could tidy up: best first, last later."""
    root = tmp_path_factory.mktemp("stopped")
    settings = {
        "data_root": str(phantom_root),
        "runs_root": str(root),
        "checkpoint": "fresh-small",
        "patience": 9,
    }
    study = Study.load(
        "phantom", run_name="test", epochs=2, batch_size=16, device="cpu", **settings
    )
    prepare.prepare_dataset(study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "shutil", SimpleNamespace(rmtree=lambda folder: None))
        folder = finetune.finetune(study, prepare.load_dataset(study))
    return folder / "checkpoints"


@pytest.mark.parametrize(
    "file",
    ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"],
)
@pytest.mark.slow
def test_a_checkpoint_that_a_kill_left_half_is_not_continued(checkpoints, tmp_path, file):
    shutil.copytree(checkpoints, tmp_path / "checkpoints")
    *others, last = sorted(
        (tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1])
    )
    (last / file).unlink()
    finetune.mend_checkpoints(tmp_path / "checkpoints")
    assert sorted((tmp_path / "checkpoints").iterdir()) == sorted(others)
    finetune.mend_checkpoints(tmp_path / "nowhere")


@pytest.mark.slow
def test_the_best_checkpoint_is_found_where_the_run_has_moved(checkpoints, tmp_path):
    shutil.copytree(checkpoints, tmp_path / "moved")
    last = max((tmp_path / "moved").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    before = json.loads((last / "trainer_state.json").read_text())["best_model_checkpoint"]
    finetune.mend_checkpoints(tmp_path / "moved")
    after = json.loads((last / "trainer_state.json").read_text())["best_model_checkpoint"]
    assert Path(after) == tmp_path / "moved" / Path(before).name != Path(before)
    assert Path(after).is_dir()


@pytest.mark.slow
def test_a_run_killed_after_it_had_stopped_early_does_not_train_on(study, monkeypatch):
    """Stopped by patience, killed before it was saved, started again: ends the same."""
    data = prepare.load_dataset(study)
    whole = run_again(study, "whole", data, patience=1, epochs=4)
    with monkeypatch.context() as patch:
        patch.setattr(
            ViltForQuestionAnswering,
            "save_pretrained",
            die_on_model_folder(ViltForQuestionAnswering.save_pretrained),
        )
        with pytest.raises(KeyboardInterrupt):
            run_again(study, "killed", data, patience=1, epochs=4)
    killed = run_again(study, "killed", data, patience=1, epochs=4)
    assert (
        accuracies(killed.run_dir / "model").tolist()
        == accuracies(whole.run_dir / "model").tolist()
    )
    models = [finetune.load_finetuned(each)[0] for each in (killed, whole)]
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-8)


def die_on_model_folder(save):
    def save_or_die(self, folder, *args, **kwargs):
        if "checkpoint-" not in str(folder):
            raise KeyboardInterrupt
        return save(self, folder, *args, **kwargs)

    return save_or_die


@pytest.mark.parametrize(
    ("batch_size", "most", "processes", "parts"),
    [
        (64, 64, 1, 1),
        (64, 24, 1, 4),
        (50, 25, 1, 2),
        (50, 12, 1, 5),
        (16, 8, 2, 1),
        (256, 32, 4, 2),
        (7, 3, 1, 7),
    ],
)
def test_a_step_is_divided_evenly(monkeypatch, batch_size, most, processes, parts):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert finetune.count_parts(Study.load(batch_size=batch_size), most) == parts
    assert batch_size % (parts * processes) == 0


def test_a_step_that_devices_cannot_share_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="batch_size=256: 3 devices cannot share it evenly"):
        finetune.count_parts(Study.load(batch_size=256), 64)


def test_fp16_wants_a_gpu():
    assert finetune.choose_precision("auto", "cpu") == "fp32"
    with pytest.raises(ValueError, match="precision='fp16'"):
        finetune.choose_precision("fp16", "cpu")


@pytest.fixture(scope="module")
def encoded_train(phantom_root):
    _, processor = load_vilt("fresh-small")
    return EncodedQuestions(read_vqa(phantom_root, "train"), processor)


class TestBucketSampler:
    def test_every_question_once_an_epoch_and_the_same_for_seed_and_epoch(self, encoded_train):
        sampler = finetune.BucketSampler(encoded_train, 16, seed=3)
        first = list(sampler)
        assert len(set(first)) == len(first) == len(sampler) == len(encoded_train) // 16 * 16
        assert first == list(finetune.BucketSampler(encoded_train, 16, seed=3))
        assert first != list(finetune.BucketSampler(encoded_train, 16, seed=4))
        sampler.set_epoch(1)
        second = list(sampler)
        assert second != first
        other = finetune.BucketSampler(encoded_train, 16, seed=3)
        other.set_epoch(1)
        assert second == list(other)

    def test_batches_are_alike_in_size_and_the_costliest_comes_first(self, encoded_train):
        order = list(finetune.BucketSampler(encoded_train, 16, seed=3))
        batches = [order[start : start + 16] for start in range(0, len(order), 16)]
        sizes = [
            {tuple(encoded_train.sizes[encoded_train.image_of[i]]) for i in batch}
            for batch in batches
        ]
        shuffled = np.random.default_rng(0).permutation(len(encoded_train))
        mixed = [
            {
                tuple(encoded_train.sizes[encoded_train.image_of[i]])
                for i in shuffled[start : start + 16]
            }
            for start in range(0, len(order), 16)
        ]
        assert np.mean([len(kinds) for kinds in sizes]) < 0.7 * np.mean(
            [len(kinds) for kinds in mixed]
        )
        costs = [max(map(encoded_train.length_key, batch)) for batch in batches]
        assert costs[0] == max(costs)
        assert costs != sorted(costs, reverse=True), "batches come in order of size, not at random"

    def test_fewer_questions_than_a_batch(self, encoded_train):
        assert sorted(finetune.BucketSampler(encoded_train, 10_000, seed=0)) == list(
            range(len(encoded_train))
        )


def accuracies(folder):
    return pd.read_csv(folder / "training.csv")["eval_accuracy"].dropna().to_numpy()


@pytest.mark.slow
def test_a_step_in_parts_is_the_same_step(study):
    """Gradient accumulation: 16 questions at once, or 8 and 8, give the same training."""
    data = prepare.load_dataset(study)
    whole, parts = (
        pd.read_csv(
            run_again(study, name, data, device_batch_size=size).run_dir / "model" / "training.csv"
        )
        for name, size in (("whole", None), ("parts", 8))
    )
    assert whole["step"].tolist() == parts["step"].tolist()
    np.testing.assert_allclose(whole["loss"].dropna(), parts["loss"].dropna(), rtol=1e-6)


def run_again(study, name, data, **settings):
    """The study once more under another name, with other settings; returns it, fine-tuned."""
    names = ("data_root", "runs_root", "checkpoint", "epochs", "batch_size", "device")
    other = Study.load("phantom", **{**study.settings(*names), "run_name": name, **settings})
    prepare.prepare_dataset(other)
    finetune.finetune(other, data)
    return other


@pytest.mark.slow
def test_too_large_a_batch_is_halved(study, monkeypatch, caplog):
    """A device that holds 5 questions: 16 and 2 x 8 fail, 4 x 4 fit and train as 16 do."""
    data = prepare.load_dataset(study)
    compute, seen = finetune.RasterTrainer.compute_loss, []

    def compute_if_it_fits(self, model, inputs, *args, **kwargs):
        if model.training:
            seen.append(len(inputs["input_ids"]))
            if seen[-1] > 5:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return compute(self, model, inputs, *args, **kwargs)

    whole = accuracies(run_again(study, "whole", data).run_dir / "model")
    monkeypatch.setattr(finetune.RasterTrainer, "compute_loss", compute_if_it_fits)
    halved = accuracies(run_again(study, "halved", data).run_dir / "model")
    assert seen[:3] == [16, 8, 4]
    assert max(seen[2:]) == 4
    assert "dividing it into 4 parts" in caplog.text
    np.testing.assert_allclose(whole, halved, rtol=1e-6)


@pytest.mark.slow
def test_a_batch_of_one_that_does_not_fit_is_an_error(study, monkeypatch):
    def run_out(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(finetune.RasterTrainer, "compute_loss", run_out)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        finetune.finetune(study, prepare.load_dataset(study))


@pytest.mark.slow
def test_training_stops_when_nothing_gets_better_and_keeps_the_best(study, monkeypatch):
    """Accuracies 0.1, 0.5, 0.4, 0.3, 0.2: patience 2 stops at the fourth, keeps the second."""
    data = prepare.load_dataset(study)
    told, weights = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1]), []
    evaluate = finetune.RasterTrainer.evaluate

    def evaluate_as_told(self, *args, **kwargs):
        weights.append(self.model.classifier[0].weight.detach().clone())
        return evaluate(self, *args, **kwargs)

    def soft_accuracy(logits, targets):
        return torch.full((len(logits),), told_now[0])

    told_now = [0.0]

    def evaluate_and_move_on(self, *args, **kwargs):
        told_now[0] = next(told)
        return evaluate_as_told(self, *args, **kwargs)

    monkeypatch.setattr(finetune.RasterTrainer, "evaluate", evaluate_and_move_on)
    monkeypatch.setattr(finetune, "soft_accuracy", soft_accuracy)
    stopped = run_again(study, "stopped", data, patience=2)
    assert accuracies(stopped.run_dir / "model").tolist() == pytest.approx([0.1, 0.5, 0.4, 0.3])
    model, _ = finetune.load_finetuned(stopped)
    torch.testing.assert_close(model.classifier[0].weight, weights[1])
    assert not torch.allclose(weights[1], weights[3])


@pytest.mark.slow
def test_half_precision_trains_and_saves_full_weights(study):
    """bf16 autocast on a CPU: losses near those of fp32, not equal; saved weights are fp32."""
    data = prepare.load_dataset(study)
    few = DatasetDict({name: part.select(range(32)) for name, part in data.items()})
    full = {"checkpoint": "fresh-small"}  # in float32
    runs = {kind: run_again(study, kind, few, precision=kind, **full) for kind in ("fp32", "bf16")}
    losses = {
        kind: pd.read_csv(run.run_dir / "model" / "training.csv")["loss"].dropna().to_numpy()
        for kind, run in runs.items()
    }
    assert not np.array_equal(losses["fp32"], losses["bf16"])
    np.testing.assert_allclose(losses["bf16"], losses["fp32"], rtol=0.05)
    model, _ = finetune.load_finetuned(runs["bf16"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.fixture(scope="module")
def padded(phantom_root):
    """Eight questions of several lengths on pictures of several sizes: padding on both axes."""
    data = read_vqa(phantom_root, "train")
    answers = build_vocabulary(data["answers"], 50)
    _, processor = load_vilt("fresh-small", answers=answers)
    encoded = EncodedQuestions(data.select(range(0, 160, 20)), processor, answers)
    batch = encoded.collate([encoded[i] for i in range(8)])
    assert not batch["attention_mask"].all()
    assert not batch["pixel_mask"].all()
    return answers, batch


class TestFusedAttention:
    def test_losses_and_gradients_equal_the_stock_models(self, padded):
        """The stock model (eager, random patch order) against ours: 1e-4, relative."""
        answers, inputs = padded
        model, _ = load_vilt("fresh-small", answers=answers)
        stock = model(**inputs).loss
        stock.backward()
        expected = {
            name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
        }
        model.zero_grad()
        with fused_attention(model):
            loss = forward_raster(model, inputs).loss
            loss.backward()
        torch.testing.assert_close(loss, stock, rtol=1e-4, atol=0)
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        for (
            name,
            gradient,
        ) in found.items():  # a key's bias has no gradient but rounding: softmax ignores it
            allowed = 1e-4 * expected[name].norm() + 1e-7 * total
            assert (gradient - expected[name]).norm() < allowed, name

    def test_it_is_gone_afterwards_and_refuses_to_show_attention(self, padded):
        answers, inputs = padded
        model, _ = load_vilt("fresh-small", answers=answers)
        with fused_attention(model), pytest.raises(ValueError, match="holds no pattern"):
            forward_raster(model, inputs, output_attentions=True)
        assert forward_raster(model, inputs, output_attentions=True).attentions[0] is not None

    def test_dropout_of_attention_is_kept(self, padded):
        answers, inputs = padded
        model, _ = load_vilt("fresh-small", answers=answers)
        for layer in model.vilt.encoder.layer:
            layer.attention.attention.dropout.p = 0.5
        with fused_attention(model), torch.no_grad():
            calm = [forward_raster(model, inputs).logits for _ in range(2)]
            model.train()
            wild = [forward_raster(model, inputs).logits for _ in range(2)]
        assert torch.equal(*calm)
        assert not torch.allclose(*wild, atol=1e-3)


def test_raster_trainer_uses_the_raster_forward(study):
    """The Trainer's loss is that of forward_raster, and no random permutation is drawn."""
    data = prepare.load_dataset(study)
    answers = build_vocabulary(data["train"]["answers"], 50)
    model, processor = load_vilt("fresh-small", answers=answers, seed=0)
    encoded = prepare.encode(study, data["train"].select(range(8)), processor, answers)
    batch = encoded.collate([encoded[i] for i in range(8)])
    state = torch.random.get_rng_state()
    owner = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    loss = finetune.RasterTrainer.compute_loss(owner, model, batch)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(loss, forward_raster(model, batch).loss)
