"""The study's model from another fine-tuning seed, and before fine-tuning: whose are the roles, the model's or the run's?

Both start from the same checkpoint as the study's own model, so a head keeps its place: L3H7 is the same head in all of
them. Another seed means another order of the questions, another new answer head, and other dropout.
"""

import copy
from dataclasses import replace

from datasets import DatasetDict
from torch import nn

from helpers.attention.extract import AttentionTable, extract_attention, read_attention
from helpers.attention.study_measures import choose_dtype, describe_inputs
from helpers.data.encode import EncodedQuestions
from helpers.model.finetune import finetune
from helpers.model.vilt import load_vilt
from helpers.run.cache import cached_step, read_record
from helpers.run.settings import Study


def measure_second_seed(
    study: Study, data: DatasetDict, encoded: EncodedQuestions
) -> AttentionTable:
    """Fine-tune once more, from the next seed, and measure its attention; once.

    encoded: the validation questions. Kept in run_dir/model_second and run_dir/attention_second: same data, same
    settings. Returns the table; its questions hold the second model's answers.
    """
    other = replace(study, seed=(study.seed + 1) % 2**32)
    folder = finetune(other, data, name="model_second")
    model = load_vilt(folder, device=study.device_name())[0]
    return measure_variant(
        study, model, encoded, "second", {"second": read_record(folder)["fingerprint"]}
    )


def measure_before(study: Study, encoded: EncodedQuestions, answers: list[str]) -> AttentionTable:
    """Measure the attention of the checkpoint before fine-tuning, with a new answer head; once.

    answers: the fine-tuned model's, for the head, whose answers mean nothing. Kept in run_dir/attention_before.
    """
    model = load_vilt(
        study.path(study.checkpoint), device=study.device_name(), answers=answers, seed=study.seed
    )[0]
    return measure_variant(study, model, encoded, "before", study.settings("checkpoint", "seed"))


def measure_variant(
    study: Study, model: nn.Module, encoded: EncodedQuestions, name: str, inputs: dict
) -> AttentionTable:
    """The attention of a model on the validation questions, in run_dir/attention_<name>; once.

    In the precision of `measure_attention`, so that a difference between models is not one of rounding.
    """
    dtype = choose_dtype(study.precision, model.device.type)

    def extract(folder) -> None:
        lower = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)
        extract_attention(lower, encoded, folder, study.extract_batch_size, study.shard_size)

    folder = study.folder() / f"attention_{name}"
    inputs = describe_inputs(study, **study.settings("precision"), **inputs)
    return read_attention(cached_step(folder, extract, inputs))
