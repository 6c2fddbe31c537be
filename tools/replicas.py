"""Make the embedded models: `make replicas` pre-trains and fine-tunes five small ViLTs.

The real study starts from a ViLT that millions of captions have taught to bind words to places.
Each replica is taught the same by questions about phantom scenes that no study sees (random streams
of their own, see phantom.scenes.SPLITS). Its answer head is thrown away, and the rest is fine-tuned
as in notebook 02. The replicas differ in every random choice: weights, scenes, order.

What makes a small ViLT learn in minutes: a curriculum from one group of objects to all, position
embeddings that start as low-frequency cosines, wide initial weights, answers that start at their
log-odds, and Muon (Jordan et al. 2024) for the encoder's matrices.
"""

import argparse
import logging
import math
import os
import re
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import BertTokenizer, ViltConfig, ViltForQuestionAnswering, ViltProcessor

from helpers.data.encode import EncodedQuestions, normalise_levels, resize_image
from helpers.data.prepare import load_dataset, load_pictures, prepare_dataset
from helpers.data.vqa import QUESTION_TYPES
from helpers.model.finetune import finetune, predict, score_predictions
from helpers.model.forward import forward_raster
from helpers.model.vilt import build_image_processor, load_vilt
from helpers.run.cache import write_atomic
from helpers.run.settings import Study
from phantom.questions import ask_questions
from phantom.scenes import make_scene, render_scene

logger = logging.getLogger(__name__)

GEOMETRY = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256,
    "hidden_act": "relu", "image_size": 60, "patch_size": 12, "initializer_range": 0.15,
}  # fmt: skip
# groups of objects a scene holds; until which share of the steps; with which share of the scenes
STAGES = ((1, 0.10, 0.125), (3, 0.33, 0.25), (4, 1.0, 0.625))
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DATA = Path(__file__).resolve().parents[1] / "data"
HELD_OUT = 400  # scenes that the accuracy of a pre-training is measured on
SAVE_EVERY = 500  # steps between the states that a killed pre-training continues from


def pretrained_folder(number: int) -> Path:
    """Where the pre-trained model of a replica is: notebook 02 starts from the first one's."""
    return DATA / "replicas" / f"{number}-pretrained" if number else DATA / "phantom-vilt"


def make_replica(number: int, scenes: int, steps: int, batch_size: int) -> str:
    """Pre-train and fine-tune one replica, from seed `number`, as far as it is not there yet.

    Returns a line that says how well it answers.
    """
    torch.set_num_threads(1)  # the same sums on every machine, as far as that goes
    start, folder = pretrained_folder(number), DATA / "replicas" / str(number)
    if not (start / "README.md").is_file():
        pretrain(start, scenes, steps, batch_size, number)
    study = Study.load(
        run_name=f"replica-{number}", seed=number, checkpoint=str(start.relative_to(DATA.parent)),
        watched_questions=100_000,  # all
    )  # fmt: skip
    if not (folder / "README.md").is_file():
        prepare_dataset(study)
        made = finetune(study, load_dataset(study))
        validation = load_dataset(study)["validation"]
        model, processor = load_vilt(made)
        encoded = EncodedQuestions(validation, processor, None, load_pictures(study, processor))
        accuracy = 100 * score_predictions(predict(model, encoded), validation)["accuracy"].mean()
        shutil.copytree(
            made, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("made.json")
        )
        write_atomic(folder / "README.md", write_replica_card(study, accuracy))
    return f"replica {number}: {(folder / 'README.md').read_text().splitlines()[-1]}"


def write_replica_card(study: Study, accuracy: float) -> str:
    """The model card of a fine-tuned replica."""
    return f"""---
license: mit
library_name: transformers
pipeline_tag: visual-question-answering
---
# Replica {study.seed}: a small ViLT fine-tuned on phantom questions

`ViltForQuestionAnswering`, fine-tuned by this project from its own pre-trained model
(`{study.checkpoint}`) on {study.train_scenes:,} scenes for {study.epochs} epochs, both from seed
{study.seed}. It is one of five that differ in every random choice, so that a finding can be held
against models as well as against questions. Reproduce: `make replicas`.

VQA accuracy on {study.validation_scenes} validation scenes (seed {study.seed}): {accuracy:.1f} %
"""


def pretrain(folder: Path, scenes: int, steps: int, batch_size: int, seed: int) -> dict[str, float]:
    """Pre-train the small ViLT and save it with its processor and model card in `folder`.

    Returns the facts that the model card states: accuracy on further scenes, weights, minutes.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    bounds = np.cumsum([0, *(round(share * scenes) for *_, share in STAGES)])
    stages = [
        make_examples(range(first, last), groups, seed)
        for (groups, *_), first, last in zip(STAGES, bounds, bounds[1:], strict=False)
    ]
    held_out = make_examples(range(scenes, scenes + HELD_OUT), STAGES[-1][0], seed)
    tokenizer = build_tokenizer([asked.question for stage in stages for _, asked in stage])
    answers = sorted({asked.answer for _, asked in stages[-1]})
    model = build_model(len(tokenizer), answers)
    stages = [encode_examples(stage, model, tokenizer, answers) for stage in stages]
    held_out = encode_examples(held_out, model, tokenizer, answers)
    start_weights(model, torch.cat([labels for *_, labels in stages[-1]]))
    state = folder.with_name(f".{folder.name}.state.pt")
    state.parent.mkdir(parents=True, exist_ok=True)
    train(model, stages, steps, batch_size, seed, state)
    facts = {
        "accuracy": measure_accuracy(model, held_out),
        "weights": sum(p.numel() for p in model.vilt.parameters()),
        "minutes": (time.perf_counter() - start) / 60,
    }
    recipe = {"scenes": scenes, "steps": steps, "batch_size": batch_size, "seed": seed}
    save(model, tokenizer, folder, facts, recipe)
    state.unlink(missing_ok=True)
    return facts


def make_examples(indices: range, groups: int, seed: int) -> list[tuple]:
    """(scene, Question) pairs from the pre-training's own random streams."""
    scenes = [make_scene("pretrain", seed, index, groups) for index in indices]
    return [
        (scene, asked)
        for scene in scenes
        for asked in ask_questions(scene, np.random.default_rng([*scene.key, 2]))
    ]


def build_tokenizer(questions: list[str]) -> BertTokenizer:
    """A WordPiece tokenizer of the questions' words and of those in VQAv2's question types.

    Plurals are spelled with a suffix piece ("dogs" is "dog ##s"), so that word pieces occur.
    """
    words = set(re.findall(r"[a-z]+", " ".join([*questions, *QUESTION_TYPES]).lower()))
    for word in sorted(words):
        for suffix in ("es", "s"):
            if word.endswith(suffix) and word[: -len(suffix)] in words and len(word) > 3:
                words.discard(word)
    pieces = [*SPECIAL, *"?.,!'-", *"0123456789", "##s", "##es", *sorted(words)]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})


def build_model(n_words: int, answers: list[str]) -> ViltForQuestionAnswering:
    """The untrained small ViLT, attention in transformers' eager form."""
    labels = dict(enumerate(answers))
    config = ViltConfig(**GEOMETRY, vocab_size=n_words, pad_token_id=0, id2label=labels,
                        label2id={answer: index for index, answer in labels.items()})  # fmt: skip
    config._attn_implementation = "eager"
    return ViltForQuestionAnswering(config)


def encode_examples(
    examples: list[tuple], model: nn.Module, tokenizer: BertTokenizer, answers: list[str]
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Examples as tensors, one tuple for each picture size, so that no batch needs image padding.

    Each: pictures (scene, 3, height, width) uint8; scene, token ids and answer of each question.
    """
    image_processor = build_image_processor(model.config)
    questions = [asked.question for _, asked in examples]
    ids = tokenizer(questions, padding=True, return_tensors="pt")["input_ids"]
    sizes: dict[tuple, dict] = {}
    for (scene, asked), tokens in zip(examples, ids, strict=True):
        pictures, rows = sizes.setdefault(scene.size, ({}, []))
        if scene.key not in pictures:
            pictures[scene.key] = len(pictures), resize_image(render_scene(scene), image_processor)
        rows.append((pictures[scene.key][0], tokens, answers.index(asked.answer)))
    encoded = []
    for pictures, rows in sizes.values():
        which, tokens, labels = zip(*rows, strict=True)
        stacked = torch.stack([picture for _, picture in pictures.values()])
        encoded.append((stacked, torch.tensor(which), torch.stack(tokens), torch.tensor(labels)))
    return encoded


def start_weights(model: ViltForQuestionAnswering, labels: Tensor) -> None:
    """Start patch positions from cosines of row and column, and answers at their log-odds."""
    parts, config = model.vilt.embeddings, model.config
    side = config.image_size // config.patch_size
    angles = math.pi * torch.outer(torch.arange(side) + 0.5, torch.arange(1, 4)) / side
    waves = torch.cos(angles)  # (side, 3)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    places = torch.cat([rows, columns], dim=-1)
    share = (torch.bincount(labels, minlength=config.num_labels) / len(labels)).clamp(min=1e-4)
    with torch.no_grad():
        parts.position_embeddings[0, 1:] = places.flatten(0, 1) @ torch.randn(6, config.hidden_size)
        parts.position_embeddings[0, 0].normal_(std=config.initializer_range)
        parts.cls_token.normal_(std=config.initializer_range)
        model.classifier[3].bias.copy_(torch.logit(share))


def make_batch(part: tuple, rows: Tensor, levels: Tensor) -> dict[str, Tensor]:
    """The chosen questions of one picture size as a ViLT batch."""
    pictures, which, tokens, _ = part
    tokens = tokens[rows]
    tokens = tokens[:, : int((tokens != 0).sum(1).max())]
    pixels = pictures[which[rows]].int()
    values = torch.stack([levels[channel][pixels[:, channel]] for channel in range(3)], dim=1)
    return {"input_ids": tokens, "attention_mask": (tokens != 0).long(), "pixel_values": values}


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum of matrices (Jordan et al. 2024).

    As torch.optim.Muon, but in float32 and for all matrices of a shape at once: that one works in
    bfloat16, matrix by matrix, which takes 40 % of a training step on a CPU without bfloat16.
    """

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float) -> None:
        by_shape: dict[tuple, list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
        groups = [{"params": alike} for alike in by_shape.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:
        """One update, with Nesterov's momentum."""
        for group in self.param_groups:
            matrices, momentum = group["params"], group["momentum"]
            gradient = torch.stack([matrix.grad for matrix in matrices])
            state = self.state[matrices[0]]
            mean = state.setdefault("mean", torch.zeros_like(gradient))
            mean.lerp_(gradient, 1 - momentum)
            direction = orthogonalise(gradient.lerp(mean, momentum))
            rate = group["lr"] * max(1, gradient.shape[1] / gradient.shape[2]) ** 0.5
            for matrix, update in zip(matrices, direction, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns) with all singular values near 1: five steps of Newton-Schulz."""
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = wide / matrices.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.mT if wide is not matrices else x


def train(
    model: nn.Module,
    stages: list[list[tuple]],
    steps: int,
    batch_size: int,
    seed: int,
    state: Path,
) -> None:
    """Train in place, stage by stage: Muon for the encoder's matrices, AdamW for all else.

    state: a file in which to keep all that a killed training needs to go on.
    """
    matrices = [p for name, p in model.named_parameters() if "encoder" in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not ("encoder" in name and p.ndim == 2)]
    optimizers = [
        torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01),
        Muon(matrices, lr=0.01, weight_decay=0.01),
    ]
    warm = max(1, steps // 50)

    def rate(step: int) -> float:  # warm-up and cosine
        cosine = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
        return min(1, (step + 1) / warm) * cosine

    schedules = [torch.optim.lr_scheduler.LambdaLR(each, rate) for each in optimizers]
    keepers = [model, *optimizers, *schedules]
    levels = normalise_levels(build_image_processor(model.config))
    rng = np.random.default_rng(seed)
    model.train()
    done = 0
    if state.is_file():
        kept = torch.load(state, weights_only=True)
        done, rng.bit_generator.state = kept["done"], kept["rng"]
        for keeper, values in zip(keepers, kept["keepers"], strict=True):
            keeper.load_state_dict(values)
    for step in tqdm(range(done, steps), desc="pre-training", initial=done, total=steps):
        pairs = zip(stages, STAGES, strict=True)
        parts = next(stage for stage, (_, until, _) in pairs if step <= until * steps)
        sizes = np.array([len(part[3]) for part in parts])
        part = parts[rng.choice(len(parts), p=sizes / sizes.sum())]
        rows = torch.from_numpy(rng.integers(len(part[3]), size=batch_size))
        targets = nn.functional.one_hot(part[3][rows], model.config.num_labels).float()
        forward_raster(model, {**make_batch(part, rows, levels), "labels": targets}).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if (step + 1) % SAVE_EVERY == 0:
            kept = {"done": step + 1, "rng": rng.bit_generator.state}
            kept["keepers"] = [keeper.state_dict() for keeper in keepers]
            part = state.with_suffix(".part")
            torch.save(kept, part)
            part.replace(state)
    model.eval()


def measure_accuracy(model: nn.Module, parts: list[tuple]) -> float:
    """Share of right answers, in [0, 1]."""
    levels = normalise_levels(build_image_processor(model.config))
    right = []
    with torch.no_grad():
        for part in parts:
            for rows in torch.arange(len(part[3])).split(512):
                best = forward_raster(model, make_batch(part, rows, levels)).logits.argmax(dim=1)
                right.append(best == part[3][rows])
    return torch.cat(right).float().mean().item()


def save(
    model: nn.Module, tokenizer: BertTokenizer, folder: Path, facts: dict, recipe: dict
) -> None:
    """Save the model without its answer head, its processor and model card, in place of the old."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}  # the answers go with the head
    model.vilt.save_pretrained(part)
    ViltProcessor(build_image_processor(model.config), tokenizer).save_pretrained(part)
    write_atomic(part / "README.md", write_card(model.config, facts, recipe))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def write_card(config: ViltConfig, facts: dict, recipe: dict) -> str:
    """The model card, with the numbers of this very training."""
    return f"""---
license: mit
library_name: transformers
pipeline_tag: visual-question-answering
---
# phantom-vilt: a small ViLT for the embedded study

`ViltModel` with {facts["weights"]:,} weights: {config.num_hidden_layers} layers,
{config.num_attention_heads} heads, hidden size {config.hidden_size},
{config.patch_size}-pixel patches, shorter side {config.image_size} pixels (25 or 30 patches a
picture). This project pre-trained it from random weights on questions about synthetic scenes
(`phantom/scenes.py`), without photographs or other text. It has no answer head; notebook 02 adds
one.

- Data: {recipe["scenes"]:,} scenes from random streams that no split of a study uses, seed
  {recipe["seed"]}.
- Training: {recipe["steps"]:,} steps of {recipe["batch_size"]} questions, which took
  {facts["minutes"]:.1f} minutes.
- Accuracy on {HELD_OUT} further scenes, with the head of its pre-training:
  {100 * facts["accuracy"]:.1f} %.
- Reproduce: `make replicas`.
- Limits: it knows the words of the phantom only, and no photographs. Use it for this study only.
"""


def main() -> None:
    """Command line of `make replicas`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--replicas", type=int, default=5)
    parser.add_argument("--scenes", type=int, default=16_000)
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--batch-size", type=int, default=64)
    recipe = vars(parser.parse_args())
    numbers = range(recipe.pop("replicas"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with ProcessPoolExecutor(os.cpu_count()) as pool:  # one thread each: two take as long as one
        for line in pool.map(partial(make_replica, **recipe), numbers):
            logger.info(line)


if __name__ == "__main__":
    main()
