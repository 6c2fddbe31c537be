"""Fine-tuning ViLT with transformers' Trainer, and what it must beat: answers from the words alone."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from helpers.encode import EncodedQuestions
from helpers.steps import hash_file, make_once, read_fingerprint, require, source_digest
from helpers.study import Study
from helpers.vilt import forward_raster, load_vilt
from helpers.vqa import build_vocabulary, soft_targets, vqa_accuracy

EVALUATIONS = 8  # points on the accuracy curve


class RasterTrainer(Trainer):
    """Trainer whose forward pass keeps the patches in raster order (and so draws no random permutation)."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = forward_raster(model, inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def finetune(study: Study, data: DatasetDict) -> Path:
    """Fine-tune the study's checkpoint with a new answer head; returns run_dir/model (model, processor, curves).

    Starts from `study.checkpoint`, answers from the training questions only. A killed run continues from its
    last epoch. `training.csv` keeps one row per log entry: step, epoch, loss, validation accuracy.
    """
    names = (
        "checkpoint",
        "seed",
        "max_answers",
        "epochs",
        "batch_size",
        "learning_rate",
        "head_learning_rate",
    )
    depends = {
        **study.settings(*names),
        "dataset": read_fingerprint(study.run_dir / "dataset"),
        "weights": _checkpoint_stamp(study),
        "code": source_digest("finetune", "vilt", "encode"),
    }
    return make_once(study.folder() / "model", lambda folder: _train(study, data, folder), depends)


def load_finetuned(study: Study):
    """(model, processor) that 02 fine-tuned; FileNotFoundError that says so where it is missing."""
    folder = require(study.folder() / "model", made_by="02_finetune")
    return load_vilt(folder, device=study.device_name())


def _checkpoint_stamp(study: Study) -> dict[str, str]:
    """Digest of each file of a local checkpoint; empty for a hub name or a fresh model."""
    folder = Path(study.path(study.checkpoint))
    return {f.name: hash_file(f) for f in sorted(folder.glob("*")) if f.is_file()} if folder.is_dir() else {}


def _train(study: Study, data: DatasetDict, folder: Path) -> None:
    answers = build_vocabulary(data["train"]["answers"], study.max_answers)
    model, processor = load_vilt(study.path(study.checkpoint), study.device_name(), answers, study.seed)
    train, validation = (EncodedQuestions(data[part], processor, answers) for part in ("train", "validation"))
    start_bias(model, data["train"], answers)
    steps = -(-len(train) // study.batch_size) * study.epochs
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=study.epochs,
        per_device_train_batch_size=study.batch_size,
        per_device_eval_batch_size=4 * study.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
        max_grad_norm=1.0,
        eval_strategy="steps",
        eval_steps=max(1, steps // EVALUATIONS),
        logging_steps=max(1, steps // (4 * EVALUATIONS)),
        save_strategy="epoch",
        save_total_limit=1,
        seed=study.seed,
        use_cpu=study.device_name() == "cpu",
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = RasterTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=train.collate,
        compute_metrics=lambda seen: {"accuracy": soft_accuracy(*seen)},
        optimizers=(build_optimizer(model, study), None),
    )
    trainer.remove_callback(PrinterCallback)
    checkpoints = Path(arguments.output_dir)
    for unfinished in checkpoints.glob("checkpoint-*"):  # the Trainer writes trainer_state.json last
        if not (unfinished / "trainer_state.json").is_file():
            shutil.rmtree(unfinished)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None)
    pd.DataFrame(trainer.state.log_history).to_csv(folder / "training.csv", index=False)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    shutil.rmtree(checkpoints)


def build_optimizer(model: nn.Module, study: Study) -> torch.optim.Optimizer:
    """AdamW with a higher rate for the new head; biases and norms are not decayed (as ViLT's authors do)."""
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("classifier"), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        {
            "params": parameters,
            "lr": study.head_learning_rate if is_head else study.learning_rate,
            "weight_decay": 0.01 if is_matrix else 0.0,
        }
        for (is_head, is_matrix), parameters in groups.items()
    )


def start_bias(model: nn.Module, train: Dataset, answers: list[str]) -> None:
    """Start the head's bias at the answers' log-odds, so that training need not learn the prior first."""
    mean = np.mean([soft_targets(list(given), answers) for given in train["answers"]], axis=0).clip(
        1e-4, 1 - 1e-4
    )
    with torch.no_grad():
        model.classifier[3].bias.copy_(torch.from_numpy(np.log(mean / (1 - mean))))


def soft_accuracy(logits: np.ndarray, targets: np.ndarray) -> float:
    """VQA accuracy of the top answers, in [0, 1]: the soft target of each (question, answer) argmax."""
    return float(targets[np.arange(len(targets)), logits.argmax(axis=1)].mean())


def score_predictions(predictions: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Official accuracy of each prediction, beside what splits it: one row a question, in dataset order."""
    columns = ["question_id", "image_id", "question", "question_type", "family", "needs_image", "answers"]
    table = dataset.select_columns([*columns, "multiple_choice_answer"]).to_pandas()
    table = table.merge(predictions, on="question_id", validate="one_to_one")
    table["accuracy"] = [
        vqa_accuracy(p, list(a)) for p, a in zip(table["prediction"], table["answers"], strict=True)
    ]
    return table.drop(columns="answers")


def predict_prior(train: Dataset, validation: Dataset) -> pd.DataFrame:
    """Answer every question with the most common answer of its question type in training (alphabetical ties).

    The "prior" baseline of Goyal et al. 2017, per question type; the most common answer of all for new types.
    """
    seen = train.select_columns(["question_type", "multiple_choice_answer"]).to_pandas()
    modes = seen.groupby("question_type")["multiple_choice_answer"].agg(lambda answers: answers.mode().min())
    overall = seen["multiple_choice_answer"].mode().min()
    answers = [modes.get(kind, overall) for kind in validation["question_type"]]
    return pd.DataFrame({"question_id": validation["question_id"], "prediction": answers})


def predict_from_words(train: Dataset, validation: Dataset, max_answers: int) -> pd.DataFrame:
    """Answer every question from its words alone: a linear classifier over words and word pairs.

    Trained on the soft targets with binary cross-entropy, as the model is; full batches, 150 steps of Adam from
    zero, so nothing is random.
    """
    answers = build_vocabulary(train["answers"], max_answers)
    bags = [[_bag(question) for question in part["question"]] for part in (train, validation)]
    index = {word: i for i, word in enumerate(sorted(set().union(*bags[0])))}
    seen, new = (_number_words(part, index) for part in bags)
    targets = torch.from_numpy(np.stack([soft_targets(list(given), answers) for given in train["answers"]]))
    scores = nn.EmbeddingBag.from_pretrained(torch.zeros(len(index), len(answers)), freeze=False, mode="sum")
    bias = nn.Parameter(torch.zeros(len(answers)))
    optimizer = torch.optim.Adam([scores.weight, bias], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(scores(*seen) + bias, targets).backward()
        optimizer.step()
    best = (scores(*new) + bias).argmax(dim=1).tolist()
    return pd.DataFrame({"question_id": validation["question_id"], "prediction": [answers[i] for i in best]})


def _bag(question: str) -> set[str]:
    words = question.lower().removesuffix("?").split()
    return {*words, *(" ".join(pair) for pair in itertools.pairwise(words))}


def _number_words(bags: list[set[str]], index: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bags as EmbeddingBag reads them: all numbers, and where each bag starts; unseen words are left out."""
    numbers = [[index[word] for word in sorted(bag) if word in index] for bag in bags]
    starts = np.cumsum([0, *map(len, numbers)])[:-1]
    return torch.tensor(list(itertools.chain.from_iterable(numbers)), dtype=torch.long), torch.from_numpy(
        starts
    )
