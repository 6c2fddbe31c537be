"""What several tests begin with: noise questions, and a small fine-tuned study."""

import copy
import itertools
import json

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from helpers.data import prepare
from helpers.data.encode import EncodedQuestions
from helpers.model import finetune
from helpers.run.cache import cached_step
from helpers.run.settings import Study

ANSWERS = ["yes", "no", "red", "blue", "2", "3", "left", "dog"]
QUESTIONS = ["what?", "is it red?", "how many dogs are left?", "what color is the dog on the left?"]
FAMILIES = ["what", "is/are", "how many", "what"]


SIZES = ((64, 64), (64, 96), (96, 64))


def encode_noise(processor, sizes=SIZES, answers=None) -> EncodedQuestions:
    """Four questions about each picture of these sizes (height, width); half the answers are yes.

    answers: the vocabulary, for labels.
    """
    rng = np.random.default_rng(0)
    pictures = [
        PILImage.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes
    ]
    rows = [
        {"question_id": 10 * i + j, "image_id": i, "image": picture, "question": QUESTIONS[j],
         "question_type": FAMILIES[j], "family": FAMILIES[j],
         "answers": [ANSWERS[(i + j) % 8]] * 5 + ["yes"] * 5}
        for (i, picture), j in itertools.product(enumerate(pictures), range(4))
    ]  # fmt: skip
    kinds = {"question_id": Value("int64"), "image_id": Value("int64"), "image": Image(),
             "question": Value("string"), "question_type": Value("string"),
             "family": Value("string"), "answers": List(Value("string"))}  # fmt: skip
    return EncodedQuestions(Dataset.from_list(rows, features=Features(kinds)), processor, answers)


def scale_copy(model, heads, factors=0.0, means=None):
    """A copy in which the heads' columns of the output projection are scaled by factors.

    With means, what the heads write on average is added to its bias.
    """
    edited, size = copy.deepcopy(model), 16
    for (layer, head), factor in zip(heads, np.broadcast_to(factors, len(heads)), strict=True):
        dense = edited.vilt.encoder.layer[layer].attention.output.dense
        columns = slice(head * size, (head + 1) * size)
        with torch.no_grad():
            if means is not None:
                dense.bias += dense.weight[:, columns] @ means[layer, head]
            dense.weight[:, columns] *= float(factor)
    return edited


def make_boxes(boxes, width, height, image_ids=0) -> Dataset:
    """A data set that knows of each question its boxes, and the size and number of its image."""
    facts = {"width": width, "height": height, "image_id": image_ids}
    columns = {name: np.broadcast_to(values, len(boxes)).tolist() for name, values in facts.items()}
    kinds = {"boxes": List(List(Value("int32"))), **dict.fromkeys(facts, Value("int32"))}
    return Dataset.from_dict({"boxes": boxes, **columns}, features=Features(kinds))


def stub_study(runs, **settings) -> Study:
    """A study on the CPU whose data set and model count as made, though they are empty."""
    own = {"runs_root": str(runs), "device": "cpu", "shard_size": 5, "extract_batch_size": 4,
           "models": (), "random_models": 2}  # fmt: skip
    study = Study.load("phantom", **own | settings)
    for name in ("model", "dataset"):
        cached_step(study.folder() / name, lambda folder: None, {})
    return study


def claim_by_hand(folder, name, seed=0, **found) -> Study:
    """A run that holds these claims: an estimate each, or why it is not testable."""
    study = Study.load(run_name=name, seed=seed, runs_root=str(folder))
    for key, value in found.items():
        row = {"verdict": "not testable", "reason": value}
        if not isinstance(value, str):
            row = {"verdict": "supported", "estimate": value, "low": value - 1, "high": value + 1}
        path = study.folder("claims") / f"{key.replace('_', '-')}.json"
        path.write_text(json.dumps(row))
    record = {"settings": {"seed": seed, "epochs": study.epochs}}
    (study.run_dir / "run.json").write_text(json.dumps(record))
    return study


def train_small(phantom_root, runs, **settings) -> Study:
    """A study of the small phantom, on the CPU, prepared and fine-tuned for one epoch."""
    own = {
        "data_root": str(phantom_root),
        "runs_root": str(runs),
        "run_name": "test",
        "device": "cpu",
    }
    study = Study.load("phantom", **own, epochs=1, **settings)
    prepare.prepare_dataset(study)
    finetune.finetune(study, prepare.load_dataset(study))
    return study
