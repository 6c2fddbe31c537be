"""transformers' Trainer for ViLT: patches in raster order, batches alike in picture size, a bar that batch runs can silence."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from transformers import EarlyStoppingCallback, ProgressCallback, Trainer, TrainerCallback

from helpers.data.encode import EncodedQuestions
from helpers.model.vilt import forward_raster

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
        """Which epoch's order comes next: see EpochSetter."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.encoded) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.encoded))[: len(self)].tolist()
        pools = (
            sorted(pool, key=self.encoded.weigh) for pool in cut(order, POOL * self.batch_size)
        )
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
        self.model_accepts_loss_kwargs = False  # the loss is a mean: those of parts are averaged

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
            loss, outputs = self.compute_loss(
                model, self._prepare_inputs(inputs), return_outputs=True
            )
        accuracy = soft_accuracy(outputs.logits, inputs["labels"].to(outputs.logits.device))
        return loss, accuracy, accuracy


class EpochSetter(TrainerCallback):
    """Tells the sampler each epoch; accelerate's own set_epoch misses it where several processes continue a run."""

    def __init__(self, sampler: BucketSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class Patience(EarlyStoppingCallback):
    """Early stopping that stays: a run that was killed after it had stopped trains one step, whose weights are dropped."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        control.should_training_stop = (
            self.early_stopping_patience_counter >= self.early_stopping_patience
        )


class StepsBar(ProgressCallback):
    """A tqdm bar over the training steps, with the last loss and accuracy; TQDM_DISABLE silences it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None:
            shown = {name: logs[name] for name in ("loss", "eval_accuracy") if name in (logs or {})}
            self.training_bar.set_postfix(shown)

    def on_prediction_step(self, args, state, control, **kwargs):
        """No second bar while the model is evaluated."""


def soft_accuracy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """VQA accuracy of each question's top answer, in [0, 1]: logits and soft targets (question, answer) -> (question,)."""
    return targets.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]
