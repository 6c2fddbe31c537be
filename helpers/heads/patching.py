"""Which heads carry an answer from one image to another? Activation patching between questions in the same words.

pairs = find_pairs(encoded, predictions, right)
moved, whole = patch_heads(model, encoded, pairs)
moved.sum(1) / whole.sum()      # share of the change that each head carries
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from helpers.data.encode import EncodedQuestions
from helpers.heads.removal import (
    Intervention,
    forward_with_interventions,
    pack_forward,
    read_z,
)
from helpers.stats.cluster_robust import divide_or_nan


def find_pairs(
    encoded: EncodedQuestions, predictions: Sequence[str], right: Sequence[bool]
) -> list[tuple[int, int]]:
    """Pairs of questions in the same words about different images, both answered right and differently.

    predictions: the model's answer to each question; right: whether it counts. A pair's pictures have the same shape,
    so that tokens correspond one to one. Each image is in one pair at most, so that pairs are independent. Pairs of rows
    (source, target), in the order of the data.
    """
    waiting, pairs, used = defaultdict(list), [], set()
    for row in np.flatnonzero(right).tolist():
        image = encoded.image_of[row]
        if image in used:
            continue
        alike = waiting[tuple(encoded.input_ids[row].tolist()), encoded.sizes[image]]
        for other in alike:
            fresh = encoded.image_of[other] not in used and encoded.image_of[other] != image
            if fresh and predictions[other] != predictions[row]:
                pairs.append((other, row))
                used |= {image, encoded.image_of[other]}
                break
        else:
            alike.append(row)
    return pairs


@torch.no_grad()
def patch_heads(
    model: nn.Module,
    encoded: EncodedQuestions,
    pairs: Sequence[tuple[int, int]],
    batch_size: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """How much of the change of answer does each head carry? Activation patching between questions in the same words.

    The target's forward pass is run with one head's z taken from the source's, at every token (Vig et al. 2020,
    "Causal mediation analysis for interpreting neural NLP"; Wang et al. 2023, "Interpretability in the wild"). With D =
    logit of the source's answer - logit of the target's answer, returns moved (pair, layer, head): D patched - D target,
    and whole (pair,): D source - D target. moved / whole is 0 where a head carries nothing, 1 where it carries everything;
    heads overlap and oppose each other, so shares need not sum to 1.
    """
    n_layers, n_heads = model.config.num_hidden_layers, model.config.num_attention_heads
    places = list(np.ndindex(n_layers, n_heads))
    order = sorted(range(len(pairs)), key=lambda number: encoded.weigh(pairs[number][0]))
    moved, whole = np.zeros((len(pairs), n_layers, n_heads)), np.zeros(len(pairs))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        source, target = (
            pack_forward(
                model, encoded.collate([encoded[pairs[number][side]] for number in numbers])
            )
            for side in (0, 1)
        )
        zs = read_z(source)
        interventions = [
            Intervention(layer, slice(head, head + 1), zs[layer][:, head : head + 1])
            for layer, head in places
        ]
        found = list(forward_with_interventions(target, interventions))
        answers = [forward.logits.argmax(1) for forward in (source, target)]
        base = subtract_answers(target.logits, *answers)
        whole[numbers] = (subtract_answers(source.logits, *answers) - base).cpu()
        for row, logits in found:
            moved[numbers, *places[row]] = (subtract_answers(logits, *answers) - base).cpu()
    return moved, whole


def carried_share(moved: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Percent of the whole change that each head carries: (pair, layer, head), whose mean is sum(moved) / sum(whole).

    Linearised about that ratio r, 100 * (r + (moved - r whole) / mean(whole)), so that an interval of the mean is one of
    the ratio (Cochran 1977, "Sampling Techniques", section 6.4); a pair's own ratio would be wild where whole is small.
    """
    whole = whole[:, None, None]
    ratio = divide_or_nan(moved.sum(0), whole.sum(0))
    return 100 * (ratio + divide_or_nan(len(whole) * (moved - ratio * whole), whole.sum(0)))


def subtract_answers(logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Logit of the first answer minus logit of the second, question by question."""
    return (logits.gather(1, first[:, None]) - logits.gather(1, second[:, None]))[:, 0].float()
