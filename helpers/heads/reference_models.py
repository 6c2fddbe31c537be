"""The study's model from another fine-tuning seed, and before fine-tuning: whose are the roles, the model's or the run's?

Both start from the same checkpoint as the study's own model, so a head keeps its place: L3H7 is the same head in all of
them. Another seed means another order of the questions, another new answer head, and other dropout. All are
measured in the precision of `measure_attention`, so that a difference between models is not one of rounding.
"""

from dataclasses import replace

from datasets import DatasetDict

from helpers.attention.extract import AttentionTable, extract_once, in_measuring_precision
from helpers.data.encode import EncodedQuestions
from helpers.model.finetune import finetune
from helpers.model.vilt import load_vilt
from helpers.run.cache import read_record
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
    model = in_measuring_precision(load_vilt(folder, device=study.device_name())[0], study)
    second = read_record(folder)["fingerprint"]
    return extract_once(study, "attention_second", model, encoded, second=second)


def measure_before(study: Study, encoded: EncodedQuestions, answers: list[str]) -> AttentionTable:
    """Measure the attention of the checkpoint before fine-tuning, with a new answer head; once.

    answers: the fine-tuned model's, for the head, whose answers mean nothing. Kept in run_dir/attention_before.
    """
    model = load_vilt(
        study.path(study.checkpoint), device=study.device_name(), answers=answers, seed=study.seed
    )[0]
    model, inputs = in_measuring_precision(model, study), study.settings("checkpoint", "seed")
    return extract_once(study, "attention_before", model, encoded, **inputs)
