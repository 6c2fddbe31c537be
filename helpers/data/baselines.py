"""What an answerer that never sees the image reaches: the scores that any claim about looking must beat."""

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import nn

from helpers.data.vqa import build_vocabulary, soft_targets

MAX_QUESTIONS = (
    50_000  # that predict_from_words learns from: 0.6 GB of targets, as much again of gradients
)


def predict_prior(train: Dataset, validation: Dataset) -> pd.DataFrame:
    """Answer every question with the most common answer of its question type in training (alphabetical ties).

    The "prior" baseline of Goyal et al. 2017, per question type; the most common answer of all for new types.
    """
    seen = train.select_columns(["question_type", "multiple_choice_answer"]).to_pandas()
    modes = seen.groupby("question_type")["multiple_choice_answer"].agg(
        lambda answers: answers.mode().min()
    )
    overall = seen["multiple_choice_answer"].mode().min()
    answers = [modes.get(kind, overall) for kind in validation["question_type"]]
    return pd.DataFrame({"question_id": validation["question_id"], "prediction": answers})


def predict_from_words(
    train: Dataset, validation: Dataset, max_answers: int, device: str = "cpu"
) -> pd.DataFrame:
    """Answer every question from its words alone: a linear classifier over words and word pairs.

    Words and pairs count that at least two training questions have. Trained on the soft targets with binary
    cross-entropy, as the model is; full batches, 150 steps of Adam from zero, so nothing is random. Of more than
    MAX_QUESTIONS training questions evenly spaced ones are used: their targets are kept dense.
    """
    train = train.select(range(0, len(train), -(-len(train) // MAX_QUESTIONS)))
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
    return pd.DataFrame(
        {"question_id": validation["question_id"], "prediction": [answers[i] for i in best]}
    )


def _bag(question: str) -> set[str]:
    words = question.lower().removesuffix("?").split()
    return {*words, *(" ".join(pair) for pair in itertools.pairwise(words))}


def _number_words(bags: list[set[str]], index: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bags as EmbeddingBag reads them: all numbers, and where each bag starts; unseen words are left out."""
    numbers = [[index[word] for word in sorted(bag) if word in index] for bag in bags]
    starts = np.cumsum([0, *map(len, numbers)])[:-1]
    return torch.tensor(
        list(itertools.chain.from_iterable(numbers)), dtype=torch.long
    ), torch.from_numpy(starts)
