"""VQAv2, the phantom and your own data: files, download, subset, batches that ViLT reads."""

from helpers.data import encode, prepare, vqa
from helpers.data.vqa import (
    question_family,
    question_type,
    read_table,
    read_vqa,
    score_answers,
    soft_targets,
    vqa_accuracy,
)

__all__ = [
    "encode",  # pictures at ViLT's size, padded batches
    "prepare",  # a study's questions: drawn, checked, kept in its run folder
    "question_family",  # the family of an official question type
    "question_type",  # the official type of a question
    "read_table",  # your own questions as a Dataset like read_vqa's
    "read_vqa",  # VQAv2's official files as a Dataset
    "score_answers",  # VQA accuracy of a model's answers
    "soft_targets",  # training targets of a question
    "vqa",  # all that is known of VQAv2, and baselines from the words alone
    "vqa_accuracy",  # the official accuracy of one answer
]
