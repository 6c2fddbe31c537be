"""Which heads carry an answer from one image to another? Activation patching between two questions.

pairs = find_pairs(encoded, predictions, correct)    # in the same words about different images
change, total_change = patch_heads(model, encoded, pairs)
patching_effect(change, total_change)                # percent of the change that a head carries
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import ViltProcessor

from helpers.attention.extract import AttentionTable, measure_once, sample_questions
from helpers.data.encode import EncodedQuestions
from helpers.data.prepare import encode
from helpers.heads.removal import forward_with_interventions, pack_forward, read_z, replace_heads
from helpers.run.cache import source_digest
from helpers.run.settings import Study
from helpers.stats.models import linearise_ratio

Pair = tuple[int, int]  # rows of two questions: source, target


def find_pairs(
    encoded: EncodedQuestions, predictions: Sequence[str], correct: Sequence[bool]
) -> list[Pair]:
    """Pairs of questions in the same words about different images, with different correct answers.

    predictions: the model's answers. correct: whether each counts as correct. A pair's pictures
    have one shape, so that tokens correspond one to one. Each image is in one pair at most, so that
    pairs are independent. Returns rows (source, target), in the order of the data.
    """
    unpaired, pairs, used = defaultdict(list), [], set()
    for row in np.flatnonzero(correct).tolist():
        image = encoded.image_of[row]
        if image in used:
            continue
        candidates = unpaired[tuple(encoded.input_ids[row].tolist()), encoded.sizes[image]]
        for other in candidates:
            unused = encoded.image_of[other] not in used and encoded.image_of[other] != image
            if unused and predictions[other] != predictions[row]:
                pairs.append((other, row))
                used |= {image, encoded.image_of[other]}
                break
        else:
            candidates.append(row)
    return pairs


@torch.no_grad()
def patch_heads(
    model: nn.Module, encoded: EncodedQuestions, pairs: Sequence[Pair], batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """How far does the answer move when one head's z comes from another question?

    pairs: of `find_pairs`. The target's forward pass is run with one head's z taken from the
    source's, at every token (Vig et al. 2020, "Causal mediation analysis for interpreting neural
    NLP"; Wang et al. 2023, "Interpretability in the wild"). With D the logit of the source's answer
    minus that of the target's answer, returns change (pair, layer, head): D patched - D target, and
    total_change (pair,): D source - D target. Their ratio is 0 where a head carries nothing and 1
    where it carries everything. Heads overlap and oppose each other: ratios need not sum to 1.
    """
    n_layers, n_heads = model.config.num_hidden_layers, model.config.num_attention_heads
    order = sorted(range(len(pairs)), key=lambda number: encoded.length_key(pairs[number][0]))
    change, total_change = np.zeros((len(pairs), n_layers * n_heads)), np.zeros(len(pairs))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        rows = zip(*(pairs[number] for number in numbers), strict=True)
        batches = (encoded.collate([encoded[row] for row in side]) for side in rows)
        source, target = (pack_forward(model, batch) for batch in batches)
        patched = list(forward_with_interventions(target, replace_heads(read_z(source))))
        answers = [forward.logits.argmax(1) for forward in (source, target)]
        base = logit_difference(target.logits, *answers)
        total_change[numbers] = (logit_difference(source.logits, *answers) - base).cpu()
        for row, logits in patched:
            change[numbers, row] = (logit_difference(logits, *answers) - base).cpu()
    return change.reshape(len(pairs), n_layers, n_heads), total_change


def patching_effect(change: np.ndarray, total_change: np.ndarray) -> np.ndarray:
    """Percent of the total change that each head carries: (pair, layer, head).

    The mean over pairs is the ratio sum(change) / sum(total_change), about which each pair's value
    is linearised (`linearise_ratio`): a pair's own would be extreme where total_change is small.
    """
    return 100 * linearise_ratio(change, total_change[:, None, None])


def logit_difference(logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Logit of the first answer minus logit of the second, question by question."""
    return (logits.gather(1, first[:, None]) - logits.gather(1, second[:, None]))[:, 0].float()


def measure_patching(
    study: Study, model: nn.Module, processor: ViltProcessor, data: Dataset, table: AttentionTable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patch each head between pairs of validation questions; once.

    data: the validation questions. table: their attention, with the model's answers. Of the pairs
    of `find_pairs` at most `ablation_questions`, drawn with the study's seed. Returns pairs
    (pair, 2) as rows of data, and `patch_heads` of them; kept in run_dir/patching/pairs.npz.
    """

    def patch(folder: Path) -> None:
        encoded, asked = encode(study, data, processor), table.questions
        correct = (asked["accuracy"] >= 0.5).tolist()
        pairs = find_pairs(encoded, asked["prediction"].tolist(), correct)
        drawn = sample_questions(len(pairs), study.ablation_questions, study.seed, "permutation")
        pairs = [pairs[number] for number in drawn]
        change, total_change = patch_heads(model, encoded, pairs, study.extract_batch_size)
        pairs = np.array(pairs, int).reshape(-1, 2)
        np.savez(folder / "pairs.npz", pairs=pairs, moved=change, whole=total_change)

    inputs = study.settings("seed", "ablation_questions") | {"used": source_digest("helpers/heads")}
    with np.load(measure_once(study, "patching", patch, **inputs) / "pairs.npz") as arrays:
        return arrays["pairs"], arrays["moved"], arrays["whole"]
