"""Fine-tune ViLT once, on whatever device there is, continued after a kill; score its answers."""

import gc
import itertools
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViltForQuestionAnswering,
    ViltProcessor,
)
from transformers.trainer_utils import get_last_checkpoint

from helpers.data.encode import EncodedQuestions
from helpers.data.prepare import load_pictures
from helpers.data.vqa import build_vocabulary, score_answers
from helpers.model.forward import forward_raster, fused_attention
from helpers.model.vilt import load_vilt, model_folder, name_original, quiet_transformers
from helpers.run import cache
from helpers.run.settings import Study

logger = logging.getLogger(__name__)

POOL = 50  # batches whose questions are sorted by picture size together
EVALUATIONS = 8  # points on the accuracy curve, each with a checkpoint


def finetune(study: Study, data: DatasetDict, once: Callable = cache.cached_step) -> Path:
    """Fine-tune the study's checkpoint with a new answer head: run_dir/model, for `load_vilt`.

    The answers are those of the training questions. Keeps the weights with the best accuracy on
    `study.watched_questions` of the validation questions, drawn with its seed, and stops after
    `study.patience` evaluations without improvement. A killed run continues from its last
    checkpoint. A step too large for the memory of a single GPU is divided until it fits.
    `training.csv` has a row per log entry: step, epoch, loss, accuracy.
    once: makes the folder once; `launch` passes the form for several processes.
    """
    start = Path(study.path(study.checkpoint))  # no folder for a hub name or a fresh model
    names = ("checkpoint", "seed", "max_answers", "epochs", "batch_size", "learning_rate",
             "head_learning_rate", "precision", "patience", "watched_questions")  # fmt: skip
    files = [path for path in sorted(start.glob("*")) if path.is_file()]
    inputs = {
        **study.settings(*names),
        "dataset": cache.read_record(study.run_dir / "dataset")["fingerprint"],
        "weights": {path.name: cache.hash_file(path) for path in files},
        "code": cache.source_digest("helpers/data", "helpers/model"),
    }

    def load() -> tuple[nn.Module, EncodedQuestions, EncodedQuestions]:
        answers = build_vocabulary(data["train"]["answers"], study.max_answers)
        model, processor = load_checkpoint(study, answers)
        pictures = load_pictures(study, processor)
        n = len(data["validation"])
        order = np.random.default_rng(study.seed).permutation(n)[: study.watched_questions]
        splits = data["train"], data["validation"].select(np.sort(order))
        train, watched = (EncodedQuestions(split, processor, answers, pictures) for split in splits)
        start_bias(model, train)
        return model, train, watched

    return once(study.folder() / "model", lambda folder: train_model(study, load, folder), inputs)


def load_checkpoint(
    study: Study, answers: Sequence[str]
) -> tuple[ViltForQuestionAnswering, ViltProcessor]:
    """The model that fine-tuning starts from, with a new head for these answers; its processor."""
    return load_even(study.path(study.checkpoint), answers=answers, seed=study.seed)


def load_finetuned(study: Study, number: int = 0) -> tuple[ViltForQuestionAnswering, ViltProcessor]:
    """A model that the study analyses, and its processor: `study.models[number]`.

    Where the study names none, the one that notebook 02 fine-tuned; FileNotFoundError if missing.
    """
    return load_even(model_folder(study, number), device=study.device_name())


def load_even(
    checkpoint: str | Path, **options: Any
) -> tuple[ViltForQuestionAnswering, ViltProcessor]:
    """`load_vilt`; ValueError if heads were cut out of some layers: tables need a grid."""
    model, processor = load_vilt(checkpoint, **options)
    counts = {len(heads) for _, heads in name_original(model)}
    if len(counts) > 1:
        has = f"{min(counts)} to {max(counts)} heads in its layers"
        raise ValueError(f"{checkpoint} has {has}: analyse the model that it was cut from.")
    return model, processor


def check_models(study: Study) -> None:
    """Load each model that a study trains or analyses: one that does not fit is refused at once.

    Questions are encoded once for all, so ValueError where processors encode otherwise.
    """
    _, first = load_checkpoint(study, ["any"])
    picture = Image.linear_gradient("L").resize((640, 480)).convert("RGB")
    pixels = first.image_processor(picture, return_tensors="np")["pixel_values"]
    for number, name in enumerate(study.models):
        _, processor = load_finetuned(study, number)
        own = processor.image_processor(picture, return_tensors="np")["pixel_values"]
        same_words = processor.tokenizer.get_vocab() == first.tokenizer.get_vocab()
        if not (same_words and np.array_equal(own, pixels)):
            raise ValueError(
                f"{name} knows other words or picture sizes than {study.checkpoint}: analyse it in "
                "a run of its own, as checkpoint with finetune=False."
            )


def load_all_finetuned(study: Study) -> list[ViltForQuestionAnswering]:
    """Every model that the study analyses: five replicas on the phantom, else mostly one."""
    return [load_finetuned(study, number)[0] for number in range(max(1, len(study.models)))]


def train_model(study: Study, load: Callable, folder: Path) -> None:
    """Train the model that `load` returns into a folder.

    load: gives the model, and the training and validation questions, encoded with labels. Each time
    that a GPU's memory is too small, the step is divided further and the model loaded anew.
    """
    parts = count_parts(study, study.device_batch_size or study.batch_size)
    while not (folder / "training.csv").is_file():  # written last
        try:
            _train_in_parts(study, load, folder, parts)
        except torch.cuda.OutOfMemoryError:
            size = study.batch_size // (parts * count_processes())
            if size == 1 or count_processes() > 1:
                raise  # other devices would wait for this one for ever: lower device_batch_size
            parts = count_parts(study, size // 2)
            logger.warning("out of memory in a step: dividing it into %d parts", parts)
        gc.collect()  # the model that did not fit is in cycles
        torch.cuda.empty_cache()


def count_processes() -> int:
    """How many processes train together, as `accelerate launch` tells them."""
    return int(os.environ.get("WORLD_SIZE", 1))


def count_parts(study: Study, device_batch_size: int) -> int:
    """Equal passes of a step, with at most `device_batch_size` questions on a device each."""
    share, rest = divmod(study.batch_size, count_processes())
    if rest:
        problem = f"{count_processes()} devices cannot share it evenly"
        raise ValueError(f"setting batch_size={study.batch_size}: {problem}")
    fewest = -(-share // device_batch_size)
    return next(parts for parts in range(fewest, share + 1) if share % parts == 0)


def _train_in_parts(study: Study, load: Callable, folder: Path, parts: int) -> None:
    """Train from the last checkpoint, if any, with each step divided into `parts` passes."""
    model, train, validation = load()
    sampler = BucketSampler(train, study.batch_size, study.seed)
    trainer = RasterTrainer(
        model=model,
        args=build_arguments(study, folder / "checkpoints", len(train), parts),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=train.collate,
        compute_metrics=lambda seen: {"accuracy": float(seen.predictions.mean())},
        optimizers=(build_optimizer(model, study), None),
        callbacks=[sampler, Patience(study.patience), StepsBar()],
    )
    trainer.sampler = sampler
    trainer.model_accepts_loss_kwargs = False  # the loss is a mean: average that of parts
    trainer.remove_callback(PrinterCallback)
    checkpoints = Path(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        drop_incomplete(checkpoints)
    trainer.accelerator.wait_for_everyone()
    with fused_attention(model), quiet_transformers():
        last = get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None
        trainer.train(resume_from_checkpoint=last)
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            model.save_pretrained(folder)
            train.processor.save_pretrained(folder)
            log = pd.DataFrame(trainer.state.log_history).to_csv(index=False)
            cache.write_atomic(folder / "training.csv", log)
            shutil.rmtree(checkpoints)
    trainer.accelerator.wait_for_everyone()


def drop_incomplete(folder: Path) -> None:
    """Remove the checkpoints that a kill left incomplete."""
    names = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state*")
    for checkpoint in folder.glob("checkpoint-*"):
        state = cache.read_json(checkpoint / "trainer_state.json")
        if state is None or not all(any(checkpoint.glob(name)) for name in names):
            shutil.rmtree(checkpoint)


def build_arguments(study: Study, folder: Path, n_questions: int, parts: int) -> TrainingArguments:
    """The Trainer's arguments for a study, with each step in `parts` passes on every device."""
    on_gpu = study.device_name() != "cpu"
    precision = choose_precision(study.precision, study.device_name())
    steps = max(1, n_questions // study.batch_size) * study.epochs
    logging_steps = -(-steps // (4 * EVALUATIONS))
    evaluation_steps = -(-steps // EVALUATIONS) if logging_steps == 1 else 4 * logging_steps
    size = study.batch_size // (parts * count_processes())  # even: see count_parts
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=study.epochs,
        per_device_train_batch_size=size,
        per_device_eval_batch_size=size,
        gradient_accumulation_steps=parts,
        fp16=precision == "fp16",
        bf16=precision == "bf16",
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
        logging_steps=logging_steps,
        eval_strategy="steps",
        eval_steps=evaluation_steps,
        save_steps=evaluation_steps,
        save_total_limit=1,  # and the best
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        restore_callback_states_from_checkpoint=True,
        seed=study.seed,
        use_cpu=not on_gpu,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=max(1, min(8, os.cpu_count() // local_processes)) if on_gpu else 0,
        dataloader_persistent_workers=on_gpu,  # not forked anew for each evaluation
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    if arguments.world_size == 1:  # one process, one GPU: the Trainer would use all by DataParallel
        arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def choose_precision(setting: str, device: str) -> str:
    """fp32, fp16 or bf16: the setting, or for "auto" what the device's hardware has (T4: fp16)."""
    if setting == "fp16" and device == "cpu":
        raise ValueError("setting precision='fp16' wants a GPU: use bf16, fp32 or auto on a CPU")
    if setting != "auto":
        return setting
    if device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def build_optimizer(model: nn.Module, study: Study) -> torch.optim.Optimizer:
    """AdamW with a higher rate for the new head and no decay of biases and norms, as in ViLT."""
    by_rates = defaultdict(list)
    for name, parameter in model.named_parameters():
        rate = study.head_learning_rate if name.startswith("classifier") else study.learning_rate
        by_rates[rate, 0.01 if parameter.ndim > 1 else 0.0].append(parameter)
    groups = [
        {"params": own, "lr": rate, "weight_decay": decay}
        for (rate, decay), own in by_rates.items()
    ]
    # the fused form would leave overflows in fp16 unnoticed
    fused = choose_precision(study.precision, study.device_name()) != "fp16"
    return torch.optim.AdamW(groups, fused=fused)


def start_bias(model: nn.Module, train: EncodedQuestions) -> None:
    """Start the head's bias at the answers' log-odds, so that the prior need not be learnt."""
    total = np.zeros(train.n_answers)
    for answers, scores in train.targets:
        total[answers] += scores
    mean = (total / len(train)).clip(1e-4, 1 - 1e-4)
    with torch.no_grad():
        model.classifier[3].bias.copy_(torch.from_numpy(np.log(mean / (1 - mean))))


def score_predictions(predictions: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Each question with its prediction and its official accuracy, in the order of the data set."""
    columns = ["question_id", "image_id", "question", "question_type", "family", "needs_image",
               "answers"]  # fmt: skip
    table = dataset.select_columns([*columns, "multiple_choice_answer"]).to_pandas()
    table = table.merge(predictions, on="question_id", validate="one_to_one")
    table["accuracy"] = score_answers(table["prediction"], table["answers"])
    return table.drop(columns="answers")


def predict(
    model: ViltForQuestionAnswering, encoded: EncodedQuestions, batch_size: int = 64
) -> pd.DataFrame:
    """Answer every question, in order.

    Columns: question_id, prediction, confidence (sigmoid of the top logit).
    """
    best, confidence = torch.zeros(len(encoded), dtype=torch.long), torch.zeros(len(encoded))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for indices, batch in encoded.batches(batch_size):
            score, answer = forward_raster(model, batch).logits.float().sigmoid().max(dim=1)
            confidence[indices], best[indices] = score.cpu(), answer.cpu()
    model.train(was_training)
    answers = [model.config.id2label[index] for index in best.tolist()]
    columns = {"question_id": encoded.questions["question_id"], "prediction": answers}
    return pd.DataFrame({**columns, "confidence": confidence.numpy()})


class BucketSampler(torch.utils.data.Sampler, TrainerCallback):
    """Random batches of questions alike in picture size, so that little is padding.

    Questions are shuffled, sorted within pools of POOL batches, cut into batches, and these are
    shuffled, alike for a seed and epoch. The costliest batch comes first, so that too large a batch
    size fails at once. Incomplete batches are dropped, so that gradient accumulation weights every
    question equally. As a callback it is told each epoch: accelerate forgets to where several
    processes continue a run.
    """

    def __init__(self, encoded: EncodedQuestions, batch_size: int, seed: int) -> None:
        self.encoded, self.seed, self.epoch = encoded, seed, 0
        self.batch_size = min(batch_size, len(encoded))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first batch of an epoch: its order comes next."""
        self.epoch = int(state.epoch or 0)

    def __len__(self) -> int:
        return len(self.encoded) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.encoded))[: len(self)].tolist()
        cost, size = self.encoded.length_key, self.batch_size
        pools = [sorted(pool, key=cost) for pool in cut(order, POOL * size)]
        batches = [batch for pool in pools for batch in cut(pool, size)]
        generator.shuffle(batches)
        costs = [max(map(cost, batch)) for batch in batches]
        batches.insert(0, batches.pop(costs.index(max(costs))))
        return itertools.chain.from_iterable(batches)


def cut(items: list, size: int) -> list[list]:
    """Consecutive parts of `size` items, of which the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


class RasterTrainer(Trainer):
    """Trainer with patches in raster order and batches from a BucketSampler, its `sampler`."""

    def _get_train_sampler(self, train_dataset: Any = None) -> BucketSampler:
        return self.sampler

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The loss of a batch in raster order, with the model's outputs if wanted."""
        with self.accelerator.autocast():  # images are embedded outside of the model's own forward
            outputs = forward_raster(model, inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_eval_sampler(self, eval_dataset: EncodedQuestions) -> list[int]:
        return sorted(range(len(eval_dataset)), key=eval_dataset.length_key)

    def prediction_step(
        self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, and each question's accuracy in place of its logits: 2.7 GB for all of VQAv2."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        accuracy = soft_accuracy(outputs.logits, inputs["labels"].to(outputs.logits.device))
        return loss, accuracy, accuracy


class Patience(EarlyStoppingCallback):
    """Early stopping that survives a restart, also where the run's folder has moved.

    A run resumed after stopping takes one extra step, which is discarded.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop at once if the run that is resumed had stopped."""
        super().on_train_begin(args, state, control, **kwargs)
        if best := state.best_global_step:
            state.best_model_checkpoint = f"{args.output_dir}/checkpoint-{best}"
        waited = self.early_stopping_patience_counter
        control.should_training_stop = waited >= self.early_stopping_patience


class StepsBar(ProgressCallback):
    """A tqdm bar over the training steps with the last loss and accuracy; mind TQDM_DISABLE."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss and accuracy that were logged."""
        if self.training_bar is not None:
            shown = {name: logs[name] for name in ("loss", "eval_accuracy") if name in (logs or {})}
            self.training_bar.set_postfix(shown)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """No second bar while the model is evaluated."""


def soft_accuracy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """VQA accuracy of each top answer, in [0, 1]: twice (question, answer) -> (question,)."""
    return targets.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]
