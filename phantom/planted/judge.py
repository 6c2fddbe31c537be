"""Hold the project's methods against planted truths: which of them say what is known to be so?

    table = judge_methods(model, encoded, pairs, fused={1: model_1, 2: model_2}, useless=shuffled)
    table.pivot(index="method", columns="truth", values="passed")

The rules stand in RULES, written before any method was held against them. Two were changed after
the first trial: what must stay the same may move by 0.1 points, not 1 (edits keep the function, so
all beyond rounding is wrong), and a decoy is held against the mean head, as the median may be 0.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from helpers.attention.extract import measure_once
from helpers.attention.image_share import IMAGE
from helpers.data.encode import EncodedQuestions
from helpers.heads.removal import Pair, find_pairs
from helpers.model.finetune import predict
from helpers.model.vilt import random_weight_model
from helpers.run.cache import ROOT, hash_file, source_digest
from helpers.run.settings import Study
from helpers.stats.cluster_robust import divide_or_nan
from phantom.planted import edits
from phantom.planted.edits import Head
from phantom.planted.methods import (
    HEAD_METHODS,
    MODEL_METHODS,
    PARTNER,
    Scores,
    find_fusion,
    score_methods,
)
from phantom.planted.training import ROUTE

Values = dict[str, dict[str, float]]  # truth -> method -> value
WORK = 960  # heads times pairs of questions that methods are tried on: 60 pairs for 16 heads
FEW = 10  # pairs, where what is known holds of each question
SAME_SCORE = ("largest change, % of the largest score", 0, 1)
SAME_SHARE = ("largest change, points", 0, 0.1)
CREDIT = ("credit, % of what the first model gets", 0, 10)
RULES = {  # truth: {methods: (value, least, most)}; a method passes where its value lies between
    "permuted": {"heads": SAME_SCORE, "model": SAME_SHARE},
    "rescaled": {"heads": SAME_SCORE, "model": SAME_SHARE},
    "decoy": {"heads": ("score of the decoy, % of the mean head's", 0, 1), "model": SAME_SHARE},
    "split": {"heads": ("both slots together, % of the head", 90, 110), "model": SAME_SHARE},
    "routed": {"heads": ("rank of that head for that family", 1, 1)},
    "fusion": {"model": ("models in which it points to the layer, %", 100, 100)},
    "image useless": {"model": CREDIT},
    "random weights": {"heads": CREDIT, "model": CREDIT},
}


def measure_truths(
    study: Study, model: nn.Module, encoded: EncodedQuestions, **trained: object
) -> pd.DataFrame:
    """`judge_methods` of the study's first model, on fewer questions where it has more heads; once.

    trained: its fused, routed and useless. Kept in run_dir/planted/truths.parquet.
    """

    def judge(folder: Path) -> None:
        n_heads = model.config.num_hidden_layers * model.config.num_attention_heads
        some, pairs = sample_pairs(model, encoded, max(4, WORK // n_heads))
        judge_methods(model, some, pairs, **trained).to_parquet(folder / "truths.parquet")

    files = sorted((ROOT / "data" / "planted").glob("*/*.safetensors"))
    inputs = {
        "planted": [hash_file(file) for file in files] if trained else [],
        "used": source_digest("helpers/heads", "phantom/planted"),
    }
    return pd.read_parquet(measure_once(study, "planted", judge, **inputs) / "truths.parquet")


def sample_pairs(
    model: nn.Module, encoded: EncodedQuestions, count: int
) -> tuple[EncodedQuestions, list[Pair]]:
    """2 * count questions, those of `find_pairs` first, and at most count pairs among them.

    Pairs about ROUTE's family come first.
    """
    given = predict(model, encoded)["prediction"]
    correct = (encoded.score(given.to_numpy(), range(len(encoded))) >= 0.5).tolist()
    family = encoded.questions["family"].to_numpy()
    pairs = find_pairs(encoded, given.tolist(), correct)
    pairs = sorted(pairs, key=lambda pair: family[pair[0]] != ROUTE[0])[:count]
    paired = [row for pair in pairs for row in pair]
    others = [row for row in range(len(encoded)) if row not in paired]
    return select_pairs(encoded, pairs, others[: 2 * count - len(paired)])


def select_pairs(
    encoded: EncodedQuestions, pairs: Sequence[Pair], others: Sequence[int] = ()
) -> tuple[EncodedQuestions, list[Pair]]:
    """The questions of some pairs, and other rows beside them; the pairs as rows of these."""
    rows = sorted([*others, *(row for pair in pairs for row in pair)])
    return encoded.select(rows), [(rows.index(one), rows.index(two)) for one, two in pairs]


def judge_methods(
    model: nn.Module,
    encoded: EncodedQuestions,
    pairs: Sequence[Pair],
    fused: Mapping[int, nn.Module] | None = None,
    useless: nn.Module | None = None,
    routed: nn.Module | None = None,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Every method against every truth: a row each, with method, truth, passed, value, expected.

    model: a fine-tuned ViLT, edited in the ways of `edits`. encoded, pairs: of `sample_pairs`.
    fused: layer -> a model trained with `fuse_in_layer(model, layer)`; useless: one trained on
    `shuffle_answers`; routed: one trained with ROUTE. expected: the rule in words. A method to
    which a truth does not apply has no row.
    """
    measure = partial(score_methods, encoded=encoded, pairs=pairs, batch_size=batch_size)
    whole = measure(model)
    few = select_pairs(encoded, pairs[:FEW]) if pairs else (encoded, [])
    measure_few = partial(measure, encoded=few[0], pairs=few[1])
    values = judge_exact_edits(model, measure_few) | {"split": judge_split(model, whole, measure)}
    if routed is not None:
        values["routed"] = judge_route(routed, encoded, pairs, batch_size)
    if fused:
        found = [(find_fusion(each, encoded, layer), layer) for layer, each in fused.items()]
        values["fusion"] = {
            name: 100 * float(np.mean([row[name] == layer for row, layer in found]))
            for name in found[0][0]
        }
    credit = credit_image(whole)
    if useless is not None:
        own = credit_image(measure(useless, MODEL_METHODS))
        values["image useless"] = {name: percent(abs(own[name]), credit[name]) for name in credit}
    values["random weights"] = judge_random(model, whole, measure)
    return tabulate(values)


def tabulate(values: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Values, truth -> method -> value, held against RULES."""
    rows = []
    for truth, method in product(RULES, (*HEAD_METHODS, *MODEL_METHODS)):
        value = values.get(truth, {}).get(method, np.nan)
        if np.isfinite(value):
            what, least, most = RULES[truth]["heads" if method in HEAD_METHODS else "model"]
            expected = f"{what}: {least} to {most}"
            rows.append((method, truth, least <= value <= most, value, expected))
    return pd.DataFrame(rows, columns=["method", "truth", "passed", "value", "expected"])


def judge_exact_edits(model: nn.Module, measure: Callable[..., Scores]) -> Values:
    """The truths that hold of every single question: permuted, rescaled, decoy."""
    whole = measure(model)
    head, decoy = (strongest(whole[name]) for name in ("removal (zero)", "attention share"))
    order = [*range(model.config.num_attention_heads)][::-1]
    partner = (PARTNER[0], order.index(PARTNER[1]))
    moved = {name: each[:, order] for name, each in whole.items() if name in HEAD_METHODS}
    permuted = measure(edits.permute_heads(model, order), partner=partner)
    values = {"permuted": compare(whole | moved, permuted)}
    values["rescaled"] = compare(whole, measure(edits.rescale_values(model, head, 4.0)))
    silent = edits.silence(model, decoy)
    before, after = measure(silent), measure(edits.look_evenly(silent, decoy), MODEL_METHODS)
    values["decoy"] = compare({name: before[name] for name in MODEL_METHODS}, after)
    for name in set(before) & set(HEAD_METHODS):
        scores = np.abs(before[name])
        values["decoy"][name] = percent(scores[decoy], scores.mean())
    return values


def judge_split(
    model: nn.Module, whole: Scores, measure: Callable[..., Scores]
) -> dict[str, float]:
    """What the two slots of a split head get together: of the most important head."""
    head = strongest(whole["removal (zero)"])
    costs = whole["removal (zero)"][head[0]].copy()
    costs[head[1]] = np.inf
    slot = (head[0], int(costs.argmin()))  # the least important other head of the layer
    freed = edits.silence(model, slot)
    split = edits.split_head(freed, head, slot[1])
    before, halves = (measure(each, partner=slot) for each in (freed, split))
    values = compare({name: before[name] for name in MODEL_METHODS}, halves)
    for name in set(before) & set(HEAD_METHODS):
        values[name] = percent(halves[name][head] + halves[name][slot], before[name][head])
    return values


def percent(part: float, whole: float) -> float:
    """Part of whole in percent; NaN where the whole is 0."""
    return float(100 * divide_or_nan(part, whole))


def strongest(scores: np.ndarray) -> Head:
    """The head with the largest score."""
    layer, head = np.unravel_index(np.nanargmax(scores), scores.shape)
    return int(layer), int(head)


def compare(before: Scores, after: Scores) -> dict[str, float]:
    """Largest change of each method: of heads in % of the largest score, of the rest in points."""
    changes = {}
    for name, values in before.items():
        change = np.abs(after[name] - values).max()
        is_score = name in HEAD_METHODS
        changes[name] = percent(change, np.abs(values).max()) if is_score else float(change)
    return changes


def judge_route(
    model: nn.Module, encoded: EncodedQuestions, pairs: Sequence[Pair], batch_size: int
) -> dict[str, float]:
    """Rank of ROUTE's head by how much more a method gives each head for ROUTE's family.

    More than for the other families, each in % of its largest score.
    """
    family, planted = ROUTE
    inside = (encoded.questions["family"] == family).to_numpy()
    halves = []
    for rows in (np.flatnonzero(inside), np.flatnonzero(~inside)):
        own = [pair for pair in pairs if pair[0] in rows]
        others = np.setdiff1d(rows, np.ravel(own)).tolist()
        some, own = select_pairs(encoded, own, others)
        given = {"encoded": some, "pairs": own, "batch_size": batch_size}
        halves.append(score_methods(model, HEAD_METHODS, **given))
    ranks = {}
    for name in set(halves[0]) & set(halves[1]):
        ours, others = (divide_or_nan(half[name], np.abs(half[name]).max()) for half in halves)
        more = ours - others
        ranks[name] = float((more >= more[planted]).sum())
    return ranks


def judge_random(model: nn.Module, whole: Scores, measure: Callable[..., Scores]) -> dict:
    """What methods make of a model that knows nothing, in % of what they make of this one."""
    random = measure(random_weight_model(model, seed=0))
    credit, own = credit_image(whole), credit_image(random)
    values = {name: percent(abs(own[name]), credit[name]) for name in credit}
    for name in set(whole) & set(HEAD_METHODS):
        values[name] = percent(*(np.abs(each[name]).max() for each in (random, whole)))
    return values


def credit_image(scores: Scores) -> dict[str, float]:
    """What each method of MODEL_METHODS says that the image is worth, in its own unit."""
    return {
        "image share": scores["image share"].mean(),
        "rollout": scores["rollout"][IMAGE].sum(),
        "relevance": scores["relevance"][IMAGE].sum(),
        "knockout": scores["knockout"][-1],
        "MM-SHAP": 100 - scores["MM-SHAP"].mean(),
    }
