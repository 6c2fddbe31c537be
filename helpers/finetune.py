"""Fine-tuning ViLT with transformers' Trainer, and what it must beat: answers from the words alone."""

import itertools
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from helpers.encode import EncodedQuestions
from helpers.prepare import encode
from helpers.steps import hash_file, make_once, read_fingerprint, require, source_digest
from helpers.study import Study
from helpers.vilt import forward_raster, fused_attention, load_vilt, quiet_transformers
from helpers.vqa import build_vocabulary, soft_targets, vqa_accuracy

logger = logging.getLogger(__name__)

EVALUATIONS = 8  # points on the accuracy curve, each with a checkpoint
MAX_WORDS_QUESTIONS = 50_000  # that the words-only answerer learns from: 1.3 GB of targets and gradients
POOL = 50  # batches whose questions are sorted by picture size together


class BucketSampler(torch.utils.data.Sampler):
    """Random batches of questions alike in picture size, so that little is padding; the same for seed and epoch.

    Questions are shuffled, sorted within pools of POOL batches, cut into batches, and these shuffled. The costliest
    batch comes first, so that too large a batch size fails at once. What does not fill a batch waits for another
    epoch: so a step in parts weighs every question as the whole step does.
    """

    def __init__(self, encoded: EncodedQuestions, batch_size: int, seed: int):
        self.encoded, self.seed, self.epoch = encoded, seed, 0
        self.batch_size = min(batch_size, len(encoded))

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch, a continued one too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.encoded) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.encoded))[: len(self)].tolist()
        pools = (sorted(pool, key=self.encoded.weigh) for pool in cut(order, POOL * self.batch_size))
        batches = [batch for pool in pools for batch in cut(pool, self.batch_size)]
        generator.shuffle(batches)
        costs = [max(map(self.encoded.weigh, batch)) for batch in batches]
        batches.insert(0, batches.pop(costs.index(max(costs))))
        return itertools.chain.from_iterable(batches)


def cut(items: list, size: int) -> list[list]:
    """Consecutive parts of `size` items; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


class RasterTrainer(Trainer):
    """Trainer whose forward pass keeps the patches in raster order, with batches from a BucketSampler."""

    def __init__(self, *args, sampler: BucketSampler, **kwargs):
        super().__init__(*args, **kwargs)
        self.sampler = sampler
        self.model_accepts_loss_kwargs = (
            False  # the loss is a mean over questions: accumulated ones are averaged
        )

    def _get_train_sampler(self, train_dataset=None) -> BucketSampler:
        return self.sampler

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        with self.accelerator.autocast():  # images are embedded outside of the model's own forward
            outputs = forward_raster(model, inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_eval_sampler(self, eval_dataset) -> list[int]:
        return sorted(range(len(eval_dataset)), key=eval_dataset.weigh)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, and each question's accuracy in place of its logits, which take 2.7 GB for all of VQAv2."""
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        accuracy = soft_accuracy(outputs.logits, inputs["labels"].to(outputs.logits.device))
        return loss, accuracy, accuracy


class StepsBar(ProgressCallback):
    """A tqdm bar over the training steps, with the last loss and accuracy; TQDM_DISABLE silences it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None:
            shown = {name: logs[name] for name in ("loss", "eval_accuracy") if name in (logs or {})}
            self.training_bar.set_postfix(shown)

    def on_prediction_step(self, args, state, control, **kwargs):
        """No second bar while the model is evaluated."""


def finetune(study: Study, data: DatasetDict, once: Callable = make_once) -> Path:
    """Fine-tune the study's checkpoint with a new answer head; returns run_dir/model (model, processor, curves).

    Starts from `study.checkpoint`, answers from the training questions only. Keeps the weights with the best
    accuracy on the validation questions, and stops when `study.patience` evaluations brought no better ones. A
    killed run continues from its last checkpoint. Where a GPU's memory is too small for a step, the step is divided
    into halves until it fits. `training.csv` keeps one row per log entry: step, epoch, loss, validation accuracy.
    once: how the step is done once; `launch` passes the form for several processes.
    """
    names = (
        "checkpoint",
        "seed",
        "max_answers",
        "epochs",
        "batch_size",
        "learning_rate",
        "head_learning_rate",
        "precision",
        "patience",
    )
    depends = {
        **study.settings(*names),
        "dataset": read_fingerprint(study.run_dir / "dataset"),
        "weights": _checkpoint_stamp(study),
        "code": source_digest("finetune", "vilt", "encode", "pictures"),
    }
    return once(study.folder() / "model", lambda folder: _train(study, data, folder), depends)


def load_finetuned(study: Study):
    """(model, processor) that 02 fine-tuned; FileNotFoundError that says so where it is missing."""
    folder = require(study.folder() / "model", made_by="02_finetune")
    return load_vilt(folder, device=study.device_name())


def _checkpoint_stamp(study: Study) -> dict[str, str]:
    """Digest of each file of a local checkpoint; empty for a hub name or a fresh model."""
    folder = Path(study.path(study.checkpoint))
    return {f.name: hash_file(f) for f in sorted(folder.glob("*")) if f.is_file()} if folder.is_dir() else {}


def _train(study: Study, data: DatasetDict, folder: Path) -> None:
    """Train, dividing the step further each time that a GPU's memory is too small for it."""
    parts = 1 if study.device_batch_size is None else -(-study.batch_size // study.device_batch_size)
    while True:
        try:
            return _train_in_parts(study, data, folder, parts)
        except torch.cuda.OutOfMemoryError:
            if parts >= study.batch_size or torch.distributed.is_initialized():
                raise  # other devices would wait for this one for ever: device_batch_size is the remedy there
        parts *= 2
        logger.warning("the GPU's memory is too small for a step: dividing it into %d parts", parts)
        torch.cuda.empty_cache()


def _train_in_parts(study: Study, data: DatasetDict, folder: Path, parts: int) -> None:
    """Train with each step divided into `parts` passes over all devices, from the last checkpoint if there is one."""
    answers = build_vocabulary(data["train"]["answers"], study.max_answers)
    model, processor = load_vilt(study.path(study.checkpoint), answers=answers, seed=study.seed)
    train, validation = (encode(study, data[part], processor, answers) for part in ("train", "validation"))
    start_bias(model, train)
    trainer = RasterTrainer(
        model=model,
        args=build_arguments(study, folder / "checkpoints", len(train), parts),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=train.collate,
        compute_metrics=lambda seen: {"accuracy": float(seen.predictions.mean())},
        optimizers=(build_optimizer(model, study), None),
        callbacks=[EarlyStoppingCallback(study.patience), StepsBar()],
        sampler=BucketSampler(train, study.batch_size, study.seed),
    )
    trainer.remove_callback(PrinterCallback)
    checkpoints = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        for unfinished in checkpoints.glob("checkpoint-*"):  # the Trainer writes trainer_state.json last
            if not (unfinished / "trainer_state.json").is_file():
                shutil.rmtree(unfinished)
    trainer.accelerator.wait_for_everyone()
    with fused_attention(model), quiet_transformers():
        trainer.train(
            resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None
        )
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            pd.DataFrame(trainer.state.log_history).to_csv(folder / "training.csv", index=False)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            shutil.rmtree(checkpoints)


def build_arguments(study: Study, folder: Path, n_questions: int, parts: int) -> TrainingArguments:
    """The Trainer's arguments for a study: each step's questions over all devices, in `parts` passes on each."""
    on_gpu = study.device_name() != "cpu"
    precision = choose_precision(study.precision, study.device_name())
    steps = max(1, n_questions // study.batch_size) * study.epochs
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=study.epochs,
        gradient_accumulation_steps=parts,
        fp16=precision == "fp16",
        bf16=precision == "bf16",
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
        max_grad_norm=1.0,
        eval_strategy="steps",
        eval_steps=max(1, steps // EVALUATIONS),
        logging_steps=max(1, steps // (4 * EVALUATIONS)),
        save_strategy="steps",
        save_steps=max(1, steps // EVALUATIONS),
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        restore_callback_states_from_checkpoint=True,
        seed=study.seed,
        use_cpu=not on_gpu,
        dataloader_num_workers=min(8, os.cpu_count()) if on_gpu else 0,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    together = parts * arguments.world_size
    arguments.per_device_train_batch_size = -(-study.batch_size // together)
    arguments.per_device_eval_batch_size = 2 * arguments.per_device_train_batch_size
    return arguments


def choose_precision(setting: str, device: str) -> str:
    """fp32, fp16 or bf16: the setting, or for "auto" what the device has hardware for (a T4 has none for bf16)."""
    if setting != "auto":
        return setting
    if device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def build_optimizer(model: nn.Module, study: Study) -> torch.optim.Optimizer:
    """AdamW with a higher rate for the new head; biases and norms are not decayed (as ViLT's authors do)."""
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("classifier"), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": study.head_learning_rate if is_head else study.learning_rate,
                "weight_decay": 0.01 if is_matrix else 0.0,
            }
            for (is_head, is_matrix), parameters in groups.items()
        ],
        fused=True,
    )


def start_bias(model: nn.Module, train: EncodedQuestions) -> None:
    """Start the head's bias at the answers' log-odds, so that training need not learn the prior first."""
    total = np.zeros(train.n_answers)
    for where, scores in train.targets:
        total[where] += scores
    mean = (total / len(train)).clip(1e-4, 1 - 1e-4)
    with torch.no_grad():
        model.classifier[3].bias.copy_(torch.from_numpy(np.log(mean / (1 - mean))))


def soft_accuracy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """VQA accuracy of each question's top answer, in [0, 1]: logits and soft targets (question, answer) -> (question,)."""
    return targets.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]


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


def predict_from_words(
    train: Dataset, validation: Dataset, max_answers: int, device: str = "cpu"
) -> pd.DataFrame:
    """Answer every question from its words alone: a linear classifier over words and word pairs.

    Words and pairs count that at least two training questions have. Trained on the soft targets with binary
    cross-entropy, as the model is; full batches, 150 steps of Adam from zero, so nothing is random. Of more than
    MAX_WORDS_QUESTIONS training questions evenly spaced ones are used: their targets are kept dense.
    """
    train = train.select(range(0, len(train), -(-len(train) // MAX_WORDS_QUESTIONS)))
    answers = build_vocabulary(train["answers"], max_answers)
    bags = [[_bag(question) for question in part["question"]] for part in (train, validation)]
    counts = Counter(itertools.chain.from_iterable(bags[0]))
    index = {word: i for i, word in enumerate(sorted(word for word in counts if counts[word] > 1))}
    seen, new = ([numbers.to(device) for numbers in _number_words(part, index)] for part in bags)
    targets = torch.from_numpy(
        np.stack([soft_targets(list(given), answers) for given in train["answers"]])
    ).to(device)
    weights = torch.zeros(len(index), len(answers), device=device)
    scores = nn.EmbeddingBag.from_pretrained(weights, freeze=False, mode="sum")
    bias = nn.Parameter(torch.zeros(len(answers), device=device))
    optimizer = torch.optim.Adam([scores.weight, bias], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(scores(*seen) + bias, targets).backward()
        optimizer.step()
    with torch.no_grad():
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
