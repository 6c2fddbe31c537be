"""Fine-tuning and the baselines it must beat."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

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
from helpers.model.vilt import load_vilt
from helpers.run.settings import Study


def make_questions(rows):
    """A data set of (question, type, answer) rows, each answered alike by all ten annotators."""
    questions, kinds, answers = zip(*rows, strict=True)
    columns = {"question_id": range(len(rows)), "image_id": range(len(rows))}
    columns |= {"question": questions, "question_type": kinds, "family": ["what"] * len(rows)}
    columns |= {"needs_image": [None] * len(rows), "multiple_choice_answer": answers}
    return Dataset.from_dict({**columns, "answers": [[answer] * 10 for answer in answers]})


TRAIN = make_questions(
    [
        ("What is red?", "what is", "ball"),
        ("What is blue?", "what is", "sea"),
        ("What is a sea?", "what is", "sea"),
    ]
    + [("Is it red?", "is it", "yes")] * 2
)


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
    logits, targets = torch.tensor([[-1.0, 2.0], [0.1, 0.5]]), torch.tensor([[0, 0.9], [1, 0.3]])
    assert finetune.soft_accuracy(logits, targets).tolist() == pytest.approx([0.9, 0.3])


LONG = {"patience": 9}  # trains to the end


@pytest.fixture(scope="module")
def study(tmp_path_factory, phantom_root, float64_checkpoint):
    """112 questions to train on, seven steps an epoch."""
    runs = tmp_path_factory.mktemp("runs")
    given = {"data_root": str(phantom_root), "checkpoint": str(float64_checkpoint)}
    given |= {"train_per_family": 16, "validation_per_family": 4, "batch_size": 16}
    study = Study.load("phantom", epochs=2, device="cpu", runs_root=str(runs), **given)
    prepare.prepare_dataset(study)
    return study


@pytest.fixture(scope="module")
def data(study):
    return prepare.load_dataset(study)


def run_again(study, name, data, **settings):
    """The study once more under another name, with other settings; returns it, fine-tuned."""
    other = replace(study, run_name=name, **settings)
    shutil.copytree(study.run_dir, other.run_dir, dirs_exist_ok=True)  # prepared
    finetune.finetune(other, data)
    return other


def read_curves(study):
    return pd.read_csv(study.run_dir / "model" / "training.csv")


def read_accuracies(study):
    return read_curves(study)["eval_accuracy"].dropna().to_numpy()


def assert_same_weights(studies):
    models = [finetune.load_finetuned(study)[0] for study in studies]
    for mine, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-8)


@pytest.fixture(scope="module")
def whole(study, data):
    """The study, fine-tuned without a trouble."""
    return run_again(study, "whole", data, **LONG)


def test_only_the_watched_questions_select_the_weights(study, data, monkeypatch):
    seen = []
    monkeypatch.setattr(finetune, "train_model", lambda study, load, folder: seen.append(load()))
    for limit, n in ((5, 5), (None, len(data["validation"]))):
        some = replace(study, watched_questions=limit)
        finetune.finetune(some, data, once=lambda folder, make, inputs: make(folder))
        _, train, watched = seen.pop()
        assert (len(train), len(watched)) == (len(data["train"]), n)
        assert set(watched.questions["question_id"]) <= set(data["validation"]["question_id"])


def test_bias_starts_at_the_log_odds(study, data):
    answers = build_vocabulary(data["train"]["answers"], 50)
    model, processor = load_vilt("fresh-small", answers=answers, seed=0)
    finetune.start_bias(model, prepare.encode(study, data["train"], processor, answers))
    yes = np.mean([min(1.0, 0.3 * list(given).count("yes")) for given in data["train"]["answers"]])
    found = torch.sigmoid(model.classifier[3].bias[answers.index("yes")]).item()
    assert found == pytest.approx(yes, abs=0.02)


@pytest.mark.slow
def test_training_lowers_the_loss_and_the_model_loads_again(whole, data):
    curves, folder = read_curves(whole), whole.run_dir / "model"
    losses = curves["loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]
    assert curves["eval_accuracy"].notna().sum() >= 4
    model, processor = finetune.load_finetuned(whole)
    encoded = prepare.encode(whole, data["validation"], processor)
    first, second = (predict(model, encoded, size) for size in (7, 64))
    assert first["prediction"].tolist() == second["prediction"].tolist()
    assert not list(folder.glob("checkpoints"))
    made = (folder / "made.json").stat().st_mtime_ns
    finetune.finetune(whole, data)
    assert (folder / "made.json").stat().st_mtime_ns == made


def train_and_die(study):
    """In another process: fine-tune until SIGKILL in step 12 of 14, after a checkpoint."""

    def die(self, args, state, control, **kwargs):
        if state.global_step == 12:
            os.kill(os.getpid(), signal.SIGKILL)

    finetune.StepsBar.on_step_end = die
    finetune.finetune(study, prepare.load_dataset(study))


@pytest.fixture(scope="module")
def killed(study, start_process):
    """The study, killed in the second epoch; returns its checkpoints."""
    unlucky = replace(study, run_name="killed", **LONG)
    shutil.copytree(study.run_dir, unlucky.run_dir)
    process = start_process(train_and_die, unlucky)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (folder,) = Path(study.run_dir).parent.glob("killed/.model.*.part/checkpoints")
    return folder


def sort_checkpoints(folder):
    return sorted(folder.iterdir(), key=lambda path: int(path.name.split("-")[1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"],
)
def test_a_checkpoint_that_a_kill_left_half_is_not_continued(killed, tmp_path, file):
    folder = shutil.copytree(killed, tmp_path / "checkpoints")
    *others, last = sort_checkpoints(folder)
    (last / file).unlink()
    finetune.drop_incomplete(folder)
    assert sort_checkpoints(folder) == others
    finetune.drop_incomplete(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_killed_training_continues_and_ends_the_same(study, data, killed, whole):
    """SIGKILL in the second epoch, start again: metrics and weights of an unbroken run."""
    assert {"checkpoint-12", "checkpoint-14"}.isdisjoint(path.name for path in killed.iterdir())
    continued = run_again(study, "killed", data, **LONG)
    for name in ("step", "loss", "eval_loss", "eval_accuracy"):
        curves = [read_curves(each)[name] for each in (continued, whole)]
        np.testing.assert_allclose(*curves, rtol=1e-6)
    assert_same_weights((continued, whole))


@pytest.mark.slow
def test_a_run_killed_after_it_had_stopped_early_does_not_train_on(study, data, monkeypatch):
    """Stopped by patience, killed before it was saved, started again: ends the same."""
    early = {"patience": 1, "epochs": 4}
    whole = run_again(study, "early", data, **early)
    with monkeypatch.context() as patch:
        save = die_on_model_folder(ViltForQuestionAnswering.save_pretrained)
        patch.setattr(ViltForQuestionAnswering, "save_pretrained", save)
        with pytest.raises(KeyboardInterrupt):
            run_again(study, "killed", data, **early)
    killed = run_again(study, "killed", data, **early)
    assert read_accuracies(killed).tolist() == read_accuracies(whole).tolist()
    assert_same_weights((killed, whole))


def die_on_model_folder(save):
    def save_or_die(self, folder, *args, **kwargs):
        if "checkpoint-" not in str(folder):
            raise KeyboardInterrupt
        return save(self, folder, *args, **kwargs)

    return save_or_die


@pytest.mark.parametrize(
    ("batch_size", "most", "processes", "parts"),
    [(64, 64, 1, 1), (64, 24, 1, 4), (50, 25, 1, 2), (50, 12, 1, 5), (16, 8, 2, 1),
     (256, 32, 4, 2), (7, 3, 1, 7)],
)  # fmt: skip
def test_a_step_is_divided_evenly(monkeypatch, batch_size, most, processes, parts):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert finetune.count_parts(Study.load(batch_size=batch_size), most) == parts
    assert batch_size % (parts * processes) == 0


@pytest.fixture(scope="module")
def encoded_train(phantom_root):
    _, processor = load_vilt("fresh-small")
    processor.image_processor.size = {"shortest_edge": 80}  # at 64 pixels 5 to 6 becomes square
    return EncodedQuestions(read_vqa(phantom_root, "train"), processor)


class TestBucketSampler:
    def test_every_question_once_an_epoch_and_the_same_for_seed_and_epoch(self, encoded_train):
        sampler = finetune.BucketSampler(encoded_train, 16, seed=3)
        first = list(sampler)
        assert len(set(first)) == len(first) == len(sampler) == len(encoded_train) // 16 * 16
        assert first == list(finetune.BucketSampler(encoded_train, 16, seed=3))
        assert first != list(finetune.BucketSampler(encoded_train, 16, seed=4))
        sampler.epoch = 1
        second = list(sampler)
        assert second != first
        other = finetune.BucketSampler(encoded_train, 16, seed=3)
        other.epoch = 1
        assert second == list(other)

    def test_batches_are_alike_in_size_and_the_costliest_comes_first(self, encoded_train):
        sampler = finetune.BucketSampler(encoded_train, 16, seed=3)
        batches = finetune.cut(list(sampler), 16)
        mixed = np.random.default_rng(0).permutation(len(encoded_train))[: len(sampler)].tolist()

        def count_kinds(batch):
            return len({tuple(encoded_train.sizes[encoded_train.image_of[i]]) for i in batch})

        few, many = (
            np.mean([*map(count_kinds, each)]) for each in (batches, finetune.cut(mixed, 16))
        )
        assert few < 0.7 * many
        costs = [max(map(encoded_train.length_key, batch)) for batch in batches]
        assert costs[0] == max(costs)
        assert costs != sorted(costs, reverse=True), "batches come in order of size, not at random"


@pytest.mark.slow
def test_too_large_a_batch_is_halved(study, data, whole, monkeypatch, caplog):
    """A device that holds 5 questions: 16 and 2 x 8 fail, 4 x 4 fit and train as 16 do."""
    compute, seen = finetune.RasterTrainer.compute_loss, []

    def compute_if_it_fits(self, model, inputs, *args, **kwargs):
        if model.training:
            seen.append(len(inputs["input_ids"]))
            if seen[-1] > 5:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(finetune.RasterTrainer, "compute_loss", compute_if_it_fits)
    halved = run_again(study, "halved", data, **LONG)
    assert seen[:3] == [16, 8, 4]
    assert max(seen[2:]) == 4
    assert "dividing it into 4 parts" in caplog.text
    for name in ("step", "loss", "eval_accuracy"):
        curves = [read_curves(each)[name] for each in (whole, halved)]
        np.testing.assert_allclose(*curves, rtol=1e-6)


@pytest.mark.slow
def test_training_stops_when_nothing_gets_better_and_keeps_the_best(study, data, monkeypatch):
    """Accuracies 0.1, 0.5, 0.4, 0.3, 0.2: patience 2 stops at the fourth, keeps the second."""
    told, now, weights = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1]), [0.0], []
    evaluate = finetune.RasterTrainer.evaluate

    def evaluate_as_told(self, *args, **kwargs):
        now[0] = next(told)
        weights.append(self.model.classifier[0].weight.detach().clone())
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(finetune.RasterTrainer, "evaluate", evaluate_as_told)
    monkeypatch.setattr(
        finetune, "soft_accuracy", lambda logits, _: torch.full((len(logits),), now[0])
    )
    stopped = run_again(study, "stopped", data, patience=2)
    assert read_accuracies(stopped).tolist() == pytest.approx([0.1, 0.5, 0.4, 0.3])
    model, _ = finetune.load_finetuned(stopped)
    torch.testing.assert_close(model.classifier[0].weight, weights[1])
    assert not torch.allclose(weights[1], weights[3])


@pytest.mark.slow
def test_half_precision_trains_and_saves_full_weights(study, data):
    """bf16 autocast on a CPU: losses near those of fp32, not equal; saved weights are fp32."""
    few = DatasetDict({name: part.select(range(16)) for name, part in data.items()})
    full = {"checkpoint": "fresh-small", "epochs": 3}  # in float32
    kinds = ("fp32", "bf16")
    runs = [run_again(study, kind, few, precision=kind, **full) for kind in kinds]
    fp32, bf16 = (read_curves(run)["loss"].dropna().to_numpy() for run in runs)
    assert not np.array_equal(fp32, bf16)
    np.testing.assert_allclose(bf16, fp32, rtol=0.05)
    model, _ = finetune.load_finetuned(runs[1])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
