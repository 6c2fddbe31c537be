"""One small fine-tuned study for the tests of this room."""

import pytest
from small import train_small

from helpers.data import prepare
from helpers.model import finetune


@pytest.fixture(scope="package")
def study(tmp_path_factory, phantom_root):
    sizes = {"shard_size": 12, "extract_batch_size": 8, "ablation_questions": 28, "joint_sets": 6,
             "joint_questions": 8}  # fmt: skip
    return train_small(phantom_root, tmp_path_factory.mktemp("runs"), **sizes)


@pytest.fixture(scope="package")
def finetuned(study):
    """The study's model, its processor, and its data set."""
    return (*finetune.load_finetuned(study), prepare.load_dataset(study))
