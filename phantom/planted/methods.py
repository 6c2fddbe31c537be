"""What the project's methods say of a model and its heads, one table of scores for all.

scores = score_methods(model, encoded=encoded, pairs=pairs, batch_size=64)
scores["removal (zero)"]    # (layer, head), points of accuracy
scores["rollout"]           # a row of percentages
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from helpers.attention.edges import knockout, number_edges
from helpers.attention.image_share import (
    attention_measures,
    image_share,
    pack_forward,
    prepare_batch,
    rollout,
)
from helpers.attention.modality import mm_shap
from helpers.attention.relevance import propagate_relevance, relevance_measures
from helpers.data.encode import EncodedQuestions
from helpers.heads.effects import normalise_by_layer
from helpers.heads.removal import (
    Pair,
    ablate_heads,
    answer_variants,
    importance_measures,
    mean_z,
    patch_heads,
    patching_effect,
    removal_measures,
    replace_heads,
)
from phantom.planted.edits import Head
from phantom.planted.training import Blocked, fuse_in_layer, open_pass

Scores = dict[str, np.ndarray]
PARTNER = (0, 0)  # the head together with which others are removed
HEAD_METHODS = (
    "attention share", "value-weighted norm", "gradient", "gradient, normalised",
    "removal (zero)", "removal (mean)", "removal (resample)", "joint removal", "patching",
)  # fmt: skip
MODEL_METHODS = ("image share", "rollout", "relevance", "knockout", "MM-SHAP")
SHAPLEY = 8  # questions whose tokens are withheld one by one


def score_methods(
    model: nn.Module,
    methods: Sequence[str] = (*HEAD_METHODS, *MODEL_METHODS),
    *,
    encoded: EncodedQuestions,
    pairs: Sequence[Pair],
    batch_size: int,
    partner: Head = PARTNER,
) -> Scores:
    """Every method's scores: HEAD_METHODS (layer, head), MODEL_METHODS a row of percentages each.

    "attention share" and "image share": of [CLS], by head and by layer. "value-weighted norm": of
    all that a head hands [CLS]. Removals: points of accuracy lost. "joint removal": those that a
    head's removal adds to that of `partner`, and of the partner what it costs alone. "patching":
    of `patching_effect`. "rollout", "relevance": by KEY_GROUPS. "knockout": accuracy lost with text
    <- image cut in each layer, and in all. "MM-SHAP": text share of SHAPLEY questions.
    """
    attention = run_measure(attention_measures, model, encoded, batch_size)
    share, scores = 100 * image_share(attention["split"][..., 0, :]).mean(0), {}
    if MODEL_METHODS[0] in methods:
        relevance = run_measure(relevance_measures, model, encoded, batch_size)["relevance"]
        shap = mm_shap(model, encoded, range(min(SHAPLEY, len(encoded))), permutations=2, seed=0)
        scores |= {
            "image share": share.mean(1).numpy(),
            "rollout": 100 * attention["rollout"].mean(0).numpy(),
            "relevance": 100 * relevance.nanmean(0).numpy(),
            "knockout": knockout_losses(model, encoded, batch_size),
            "MM-SHAP": 100 * shap["text_share"].to_numpy(),
        }
    if HEAD_METHODS[0] in methods:
        norms = attention["value_norm"][..., 0, :].sum(-1).mean(0)
        scores |= {"attention share": share.numpy(), "value-weighted norm": norms.numpy()}
        scores |= score_heads(model, encoded, pairs, batch_size, partner)
    return scores


def score_heads(
    model: nn.Module,
    encoded: EncodedQuestions,
    pairs: Sequence[Pair],
    batch_size: int,
    partner: Head,
) -> Scores:
    """The methods of HEAD_METHODS that ask what heads do; see `score_methods`."""
    gradient = run_measure(importance_measures, model, encoded, batch_size)["importance"]
    gradient = gradient.mean(0).numpy()
    without = partial(removal_measures, modes=("zero_head",))
    means = mean_z(model, encoded, batch_size)
    at_mean = partial(removal_measures, means=means, modes=("mean_head",))
    zero, mean = (run_measure(each, model, encoded, batch_size) for each in (without, at_mean))
    order = [row for rows, _ in encoded.batches(batch_size) for row in rows]
    lost = partial(accuracy_lost, model, encoded)
    intact = zero["logits"].argmax(1)
    with ablate_heads(model, [partner]):
        beside = run_measure(without, model, encoded, batch_size)
    joint = lost(beside["logits"].argmax(1), beside["zero_head_answer"], order)
    joint[partner] = lost(intact, beside["logits"].argmax(1), order)
    scores = {
        "gradient": gradient,
        "gradient, normalised": normalise_by_layer(gradient),
        "removal (zero)": lost(intact, zero["zero_head_answer"], order),
        "removal (mean)": lost(intact, mean["mean_head_answer"], order),
        "joint removal": joint,
    }
    if pairs:
        change, total_change = patch_heads(model, encoded, pairs, batch_size)
        scores["removal (resample)"] = resample_losses(model, encoded, pairs, batch_size)
        scores["patching"] = patching_effect(change, total_change).mean(0)
    return scores


def run_measure(
    measure: Callable, model: nn.Module, encoded: EncodedQuestions, batch_size: int
) -> dict[str, Tensor]:
    """A measure of all questions, in the order of `encoded.batches`."""
    found = [measure(model, batch) for _, batch in encoded.batches(batch_size)]
    return {name: torch.cat([each[name] for each in found]).cpu() for name in found[0]}


def accuracy_lost(
    model: nn.Module,
    encoded: EncodedQuestions,
    intact: np.ndarray | Tensor,
    without: np.ndarray | Tensor,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """Points of VQA accuracy lost, mean over questions: answers (question, ...) -> (...).

    intact: the answers (question,) or (question, 1) of the intact model; rows: the questions.
    """
    rows = range(len(encoded)) if rows is None else rows
    intact, without = (torch.as_tensor(each).cpu().numpy() for each in (intact, without))
    scores = [encoded.score(each, rows, model.config.id2label) for each in (intact, without)]
    return 100 * (scores[0].mean(0) - scores[1].mean(0))


def resample_losses(
    model: nn.Module, encoded: EncodedQuestions, pairs: Sequence[Pair], batch_size: int
) -> np.ndarray:
    """Accuracy lost with a head's z from the same question about another image: (layer, head)."""
    pairs = sorted(pairs, key=lambda pair: encoded.length_key(pair[0]))
    intact, without = [], []
    for start in range(0, len(pairs), batch_size):
        sides = zip(*pairs[start : start + batch_size], strict=True)
        batches = [encoded.collate([encoded[row] for row in side]) for side in sides]
        source, target = (pack_forward(model, batch) for batch in batches)
        with torch.no_grad():
            found = answer_variants(target, replace_heads([layer.run() for layer in source]))
        intact.append(found["logits"].argmax(1))
        without.append(found["variant_answer"])
    rows = [target for _, target in pairs]
    lost = accuracy_lost(model, encoded, torch.cat(intact), torch.cat(without), rows)
    return lost.reshape(model.config.num_hidden_layers, -1)


def knockout_losses(model: nn.Module, encoded: EncodedQuestions, batch_size: int) -> np.ndarray:
    """Accuracy lost with text <- image cut in each layer, then in all: (layer + 1,)."""
    n_layers = model.config.num_hidden_layers
    cuts = [[], *([layer] for layer in range(n_layers)), [*range(n_layers)]]
    order, answers = [], []
    for rows, batch in encoded.batches(batch_size):
        inputs = prepare_batch(model, batch, with_grids=False).inputs
        logits = [knockout(model, inputs, [("text", "image")], layers) for layers in cuts]
        answers.append(torch.stack([each.argmax(1) for each in logits], 1))
        order += rows
    answers = torch.cat(answers)
    return accuracy_lost(model, encoded, answers[:, :1], answers[:, 1:], order)


def find_fusion(model: nn.Module, encoded: EncodedQuestions, layer: int) -> dict[str, int]:
    """The layer in which text gets most from the image, by each method that tells layers apart.

    model: trained with `fuse_in_layer(model, layer)`, which stays in force. Rollout and relevance
    add up over layers: of these the layer with the largest rise.
    """
    blocked, n_layers = fuse_in_layer(model, layer), model.config.num_hidden_layers
    n_some = min(SHAPLEY, len(encoded))
    some = [weigh_edges(model, encoded.collate([encoded[row]]), blocked) for row in range(n_some)]
    found = {name: int(np.mean([each[name] for each in some], axis=0).argmax()) for name in some[0]}
    edges, answers, order = number_edges([("text", "image")]), [], []
    for rows, batch in encoded.batches(64):
        cuts = [blocked, *({number: edges} | blocked for number in range(n_layers))]
        with torch.no_grad():
            logits = [open_pass(model, batch, each).run() for each in cuts]
        answers.append(torch.stack([each.argmax(1) for each in logits], 1))
        order += rows
    answers = torch.cat(answers)
    lost = accuracy_lost(model, encoded, answers[:, :1], answers[:, 1:], order)
    return found | {"knockout": int(lost.argmax())}


def weigh_edges(model: nn.Module, batch: dict[str, Tensor], blocked: Blocked) -> Scores:
    """What text gets from the image in each layer of one question: method -> (layer,)."""
    n_text, attentions = batch["input_ids"].shape[1], []
    forward = open_pass(model, batch, blocked)
    for layer in forward:
        attentions += [attention for _, attention in layer]
    gradients = torch.autograd.grad(forward.logits.max(), attentions)
    attentions = torch.cat(attentions).detach()
    totals = {"rollout": rollout(attentions)}
    totals["relevance"] = propagate_relevance(attentions, torch.cat(gradients))
    share = attentions.mean(1)[:, :n_text, n_text:].sum(2).mean(1)
    edges = {name: each[:, :n_text, n_text:].sum(2).mean(1) for name, each in totals.items()}
    rises = {name: torch.diff(each, prepend=each.new_zeros(1)) for name, each in edges.items()}
    return {name: each.cpu().numpy() for name, each in {"image share": share, **rises}.items()}
