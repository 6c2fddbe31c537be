"""What heads and layers do for an answer: removal, its estimate by gradients, and patching.

    with ablate_heads(model, [(3, 7), (5, 0)]):
        forward_raster(model, batch)

    measure = partial(removal_measures, means=mean_z(model, encoded))
    extract_attention(model, encoded, folder, 32, 500, measure=measure, layout=REMOVALS)
    lost = score_removals(read_attention(folder), "zero_head", answers, model.config.id2label)
    effects = removal_effects(lost, families, image_ids)

    change, total_change = patch_heads(model, encoded, find_pairs(encoded, predictions, correct))
    effect = patching_effect(change, total_change)    # percent of the change that a head carries

What comes before a head is computed once for all interventions on a batch.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from itertools import chain, combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import ViltProcessor

from helpers.attention.extract import (
    AttentionTable,
    extract_once,
    in_measuring_precision,
    measure_once,
    name_heads,
    sample_questions,
)
from helpers.attention.image_share import prepare_batch
from helpers.data.encode import EncodedQuestions
from helpers.data.prepare import encode
from helpers.data.vqa import score_answers
from helpers.model.forward import PackedForward, forward_raster, trace
from helpers.model.vilt import list_answers
from helpers.run.cache import source_digest
from helpers.run.settings import Study
from helpers.stats.bootstrap import bootstrap_by_group, rank_correlation, spearman_rows
from helpers.stats.cluster_robust import (
    correct_p,
    divide_or_nan,
    has_enough_data,
    mean_difference_test,
)

HEAD_AXES, LAYER_AXES = ("layer", "head"), ("layer",)
ABLATION_MODES = {  # mode: its name in tables, and what is removed one at a time
    "zero_head": ("zero", HEAD_AXES),  # 0 in place of the head's z
    "mean_head": ("mean", HEAD_AXES),  # its mean over the data in place of the head's z
    "zero_attention": ("attention", LAYER_AXES),  # 0 in place of the z of all heads of a layer
    "skip_layer": ("layer", LAYER_AXES),  # the layer left out, feed-forward part included
}
# of `removal_measures`, `loss_increases`, `importance_measures`; name: type, further axes
REMOVALS = {
    "probability": ("float32", ()),
    **{f"{name}_answer": ("int32", axes) for name, axes in ABLATION_MODES.values()},
    **{f"{name}_probability": ("float32", axes) for name, axes in ABLATION_MODES.values()},
}
LOSS_INCREASES = {"head_loss": ("float32", HEAD_AXES), "layer_loss": ("float32", LAYER_AXES)}
IMPORTANCE = {"importance": ("float32", HEAD_AXES)}
Pair = tuple[int, int]  # rows of two questions: source, target


class Intervention(NamedTuple):
    """One variant of a forward pass: z in place of these heads' z in the layer.

    z: (valid tokens, or 1 for all; heads; d_head), of the last layer (questions or 1; heads;
    d_head). None: the layer is left out.
    """

    layer: int
    heads: slice
    z: Tensor | None

    def edit(self, layer: int, z: Tensor) -> Tensor:
        """The z of a layer with this intervention, for `trace`."""
        z = z.clone()
        z[..., self.heads, :] = self.z.to(z)
        return z


def replace_heads(zs: Iterable[Tensor]) -> list[Intervention]:
    """A variant for each head, layer by layer; zs: (tokens or 1, head, d_head) of each layer."""
    return [
        Intervention(layer, slice(head, head + 1), z[:, head : head + 1])
        for layer, z in enumerate(zs)
        for head in range(z.shape[1])
    ]


def replace_layers(zs: Iterable[Tensor | None]) -> list[Intervention]:
    """A variant for each layer, which replaces all its heads or, where z is None, leaves it out."""
    return [Intervention(layer, slice(None), z) for layer, z in enumerate(zs)]


def ablate_heads(
    model: nn.Module, heads: Sequence[tuple[int, int]], means: Tensor | None = None
) -> AbstractContextManager:
    """Silence heads while the block runs, several at once: `with ablate_heads(model, [(3, 7)]):`.

    heads: (layer, head). Puts 0 in place of a head's z (its output before the layer's projection),
    or with means, of `mean_z`, its mean means[layer, head].
    """
    layers, chosen = model.vilt.encoder.layer, defaultdict(list)
    counts = [layer.attention.attention.num_attention_heads for layer in layers]
    for layer, head in heads:
        if not (0 <= layer < len(counts) and 0 <= head < counts[layer]):
            raise ValueError(f"L{layer}H{head} is not in this model: layers have {counts} heads")
        chosen[layer].append(head)

    def silence(layer: int, z: Tensor) -> Tensor:
        z = z.clone()
        z[..., chosen[layer], :] = 0 if means is None else means[layer, chosen[layer]].to(z)
        return z

    return trace(model, edit={"z": silence}, layers=chosen)


@torch.no_grad()
def mean_z(model: nn.Module, encoded: EncodedQuestions, batch_size: int = 64) -> Tensor:
    """Each head's mean z over the tokens at which it is read: (layer, head, d_head), on the CPU.

    These are all tokens but padding, and in the last layer, of which the answer reads nothing else,
    each question's [CLS].
    """
    sums, n_tokens = 0, 0
    for _, batch in encoded.batches(batch_size):
        zs = read_z(pack_forward(model, batch))
        sums = sums + torch.stack([z.double().sum(0).cpu() for z in zs])
        n_tokens = n_tokens + torch.tensor([len(z) for z in zs])
    return (sums / n_tokens[:, None, None]).float()


def pack_forward(model: nn.Module, batch: dict[str, Tensor]) -> PackedForward:
    """A packed forward pass over a batch."""
    inputs, groups, _ = prepare_batch(model, batch)
    return PackedForward(model, inputs, groups)


def read_z(forward: PackedForward) -> list[Tensor]:
    """Run a packed pass: each layer's z, (valid token, head, d_head), [CLS] alone in the last."""
    with trace(forward.model, read=["z"]) as seen:
        forward.run()
    return seen["z"]


def forward_with_interventions(
    forward: PackedForward, interventions: Sequence[Intervention]
) -> Iterator[tuple[int, Tensor]]:
    """Run a packed pass once; yield (row of interventions, logits (question, answer)).

    Yields layer by layer. Each variant costs only what comes after its intervention.
    `forward.logits`, in the end, are those without any.
    """
    for index, layer in enumerate(forward):
        z = layer.run()
        for row, intervention in enumerate(interventions):
            if intervention.layer != index:
                continue
            if intervention.z is None:
                logits = forward.resume(index + 1)
            else:
                with trace(forward.model, edit={"z": intervention.edit}, layers=[index]):
                    logits = forward.resume(index, z)
            yield row, logits


@torch.no_grad()
def removal_measures(
    model: nn.Module, batch: dict[str, Tensor], means: Tensor
) -> dict[str, Tensor]:
    """The answers to a batch without each head and each layer in turn, laid out as REMOVALS.

    means: of `mean_z`. <name>_answer, for the names of ABLATION_MODES: number of the answer.
    <name>_probability, and probability of the intact model: sigmoid of the logit of the intact
    model's answer, which moves before the answer does. logits: intact, (question, answer).
    """
    zeros = torch.zeros_like(means)[:, None]  # (layer, 1, head, d_head)
    variants = [  # in the order of ABLATION_MODES
        replace_heads(zeros),
        replace_heads(means[:, None]),
        replace_layers(zeros),
        replace_layers([None] * len(means)),
    ]
    modes = np.repeat([*ABLATION_MODES], [len(interventions) for interventions in variants])
    forward = pack_forward(model, batch)
    without = list(forward_with_interventions(forward, list(chain(*variants))))
    answers = forward.logits.argmax(1)

    def answer_probability(logits: Tensor) -> Tensor:
        return logits.float().gather(1, answers[:, None])[:, 0].sigmoid()

    measures = {"logits": forward.logits, "probability": answer_probability(forward.logits)}
    for mode, (name, axes) in ABLATION_MODES.items():
        of_mode, shape = [logits for row, logits in without if modes[row] == mode], means.shape
        changed = torch.stack([logits.argmax(1) for logits in of_mode], 1)
        probability = torch.stack([answer_probability(logits) for logits in of_mode], 1)
        measures[f"{name}_answer"] = changed.unflatten(1, shape[: len(axes)])
        measures[f"{name}_probability"] = probability.unflatten(1, shape[: len(axes)])
    return measures


@torch.no_grad()
def loss_increases(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """How much the loss on each question rises without each head and each whole layer.

    Loss: binary cross-entropy with batch["labels"], summed over answers, as in training. Returns
    head_loss (question, layer, head), with 0 in place of the head's z; layer_loss (question,
    layer); logits, intact (question, answer).
    """
    labels, config = batch["labels"].to(model.device), model.config
    n_layers, n_heads = config.num_hidden_layers, config.num_attention_heads
    zero = torch.zeros(1, n_heads, config.hidden_size // n_heads, device=model.device)
    interventions = replace_heads([zero] * n_layers) + replace_layers([None] * n_layers)
    losses = torch.zeros(len(labels), len(interventions), device=model.device)
    forward = pack_forward(model, batch)

    def measure_loss(logits: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits.float(), labels, reduction="none").sum(1)

    for row, logits in forward_with_interventions(forward, interventions):
        losses[:, row] = measure_loss(logits)
    losses -= measure_loss(forward.logits)[:, None]
    heads, layers = losses.tensor_split([n_layers * n_heads], dim=1)
    heads = heads.unflatten(1, (n_layers, n_heads))
    return {"head_loss": heads, "layer_loss": layers, "logits": forward.logits}


def score_removals(
    table: AttentionTable, mode: str, answers: Iterable[Sequence[str]], labels: Mapping[int, str]
) -> np.ndarray:
    """Points of VQA accuracy that each question loses by each removal: (question, layer[, head]).

    table: of REMOVALS. mode: one of ABLATION_MODES. answers: each question's ten. labels: the
    answer of each number. From -100 to 100, below 0 where the model does better without.
    """
    name = ABLATION_MODES[mode][0]
    scores = score_answers(getattr(table, f"{name}_answer"), answers, labels)
    intact = table.questions["accuracy"].to_numpy().reshape(-1, *[1] * (scores.ndim - 1))
    return 100 * (intact - scores)


def removal_effects(
    lost: np.ndarray,
    families: Sequence[str],
    image_ids: Sequence[int],
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """What each removal costs over all questions and per family: a row a removal and family.

    lost: (question, layer[, head]) of `score_removals`; families, image_ids: (question,).
    Columns: layer, head and name (where lost has heads), family ("all" first), drop (mean points
    lost), low, high (95 %, bootstrap over images), p (of neither loss nor gain, errors clustered by
    image), p_corrected (Benjamini-Hochberg over all rows), told (whether there are enough
    questions), significant, n, n_clusters.
    """
    families, image_ids = np.asarray(families), np.asarray(image_ids)
    axes, tables = HEAD_AXES[: lost.ndim - 1], []
    for groups in (np.repeat("all", len(lost)), families):
        table = bootstrap_by_group(lost, groups, image_ids, n_resamples, seed, axes, (-100, 100))
        members = [groups == group for group in pd.unique(groups)]
        tests = [mean_difference_test(lost[rows], image_ids[rows], axes) for rows in members]
        tables.append(table.assign(p=pd.concat(tests, ignore_index=True)["p"]))
    table = pd.concat(tables, ignore_index=True)
    table = table.rename(columns={"group": "family", "estimate": "drop"})
    table["told"] = has_enough_data(table["n"], table["n_clusters"])
    table["p_corrected"] = correct_p(table["p"].where(table["told"]))
    table["significant"] = table["p_corrected"] < 0.05
    columns = ["family", "drop", "low", "high", "p", "p_corrected", "told", "significant"]
    if "head" in axes:
        table["name"], columns = name_heads(table), ["name", *columns]
    return table[[*axes, *columns, "n", "n_clusters"]]


def find_leaders(values: np.ndarray, image_ids: Sequence[int]) -> list[str]:
    """The head (or layer) with the highest mean, and those that it cannot be told from: names.

    values: (question, layer[, head]), such as points lost. A name is left out where the interval of
    the highest's lead over it, paired by question, lies above 0. With one name left, that one leads
    all others; the highest comes first, the others in order of their means.
    """
    axes = HEAD_AXES[: values.ndim - 1]
    means = values.mean(0)
    top = np.unravel_index(means.argmax(), means.shape)
    lead = mean_difference_test(
        values[:, *top].reshape(-1, *[1] * means.ndim) - values, image_ids, axes
    )
    near = lead[~(lead["low"] > 0)].sort_values("estimate", kind="stable")
    return name_heads(near).tolist()


def told_families(
    families: Sequence[str], image_ids: Sequence[int], chosen: np.ndarray
) -> list[str]:
    """The families with enough questions both among the chosen (question,) and among the others."""
    families, image_ids = np.asarray(families), np.asarray(image_ids)

    def is_told(rows: np.ndarray) -> bool:
        return bool(has_enough_data(rows.sum(), len(np.unique(image_ids[rows]))))

    def has_both(family: str) -> bool:
        return all(is_told((families == family) & half) for half in (chosen, ~chosen))

    return [family for family in pd.unique(families) if has_both(family)]


def family_losses(lost: np.ndarray, families: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Mean points that each of the named families loses: (family, layer, head)."""
    return np.stack([lost[families == name].mean(0) for name in names])


def find_specialist(
    lost: np.ndarray, families: np.ndarray, names: Sequence[str], most_of_others: float = 5
) -> tuple[int, int, str] | None:
    """The head that serves one family alone: layer, head, and the family that loses most.

    lost: (question, layer, head), points; names: two or more families, such as `told_families`. Of
    the heads without which every other family loses less than `most_of_others`, the one whose own
    family loses most; None where there is no such head. Measure its loss on other images.
    """
    losses = family_losses(lost, families, names)
    ordered = np.sort(losses, axis=0)
    largest = np.where(ordered[-2] < most_of_others, ordered[-1], -np.inf)
    layer, head = np.unravel_index(largest.argmax(), largest.shape)
    if np.isinf(largest[layer, head]):
        return None
    return int(layer), int(head), names[losses[:, layer, head].argmax()]


def specialist_loss(
    lost: np.ndarray, families: np.ndarray, names: Sequence[str], chosen: np.ndarray
) -> np.ndarray:
    """What `find_specialist` of the chosen questions costs its family in the others: (question,).

    Values of the questions outside `chosen`, for `stats.mean_over_models`: their mean is the
    family's loss (`linearise_ratio`). All 0 where no head serves one family alone.
    """
    found, rest = find_specialist(lost[chosen], families[chosen], names), lost[~chosen]
    if found is None:
        return np.zeros(len(rest))
    layer, head, family = found
    of_family = (families[~chosen] == family).astype(float)
    return linearise_ratio(of_family * rest[:, layer, head], of_family)


def carried_by_few(lost: np.ndarray, chosen: np.ndarray, share: float = 0.25) -> np.ndarray:
    """Percent of all heads' losses that the costliest `share` of the heads holds: (question,).

    lost: (question, layer, head), points. The heads are those that cost most in the chosen
    questions; the values are of the others, for `stats.mean_over_models`: their mean is the sum of
    these heads' losses over the sum of all heads' (`linearise_ratio`), NaN where that is 0.
    """
    flat = lost.reshape(len(lost), -1)
    costliest = np.argsort(-flat[chosen].mean(0), kind="stable")[: round(share * flat.shape[1])]
    rest = flat[~chosen]
    return 100 * linearise_ratio(rest[:, costliest].sum(1), rest.sum(1))


def count_needed(
    lost: np.ndarray, families: np.ndarray, names: Sequence[str], chosen: np.ndarray,
    family: str = "how many", least: float = 5,
) -> np.ndarray:  # fmt: skip
    """How many more heads a family needs than the next: a number a head, whose sum is the lead.

    lost: (question, layer, head), points; names: the families to compare. A family needs a head
    whose removal costs it more than `least`. The next is the other family that needs most heads in
    the chosen questions; both are counted in the others. Returns (heads,): 1 for a head that the
    family needs and the next does not, -1 the other way round, else 0.
    """
    before, after = (
        family_losses(lost[half], families[half], names) > least for half in (chosen, ~chosen)
    )
    counts = {name: needed.sum() for name, needed in zip(names, before, strict=True)}
    following = max((name for name in names if name != family), key=counts.get)
    own, other = (after[names.index(name)].ravel().astype(float) for name in (family, following))
    return own - other


def sample_for_removal(
    study: Study, model: nn.Module, processor: ViltProcessor, data: Dataset
) -> tuple[EncodedQuestions, dict]:
    """`ablation_questions` of the data, drawn with the seed; and inputs of `extract_once`."""
    chosen = sample_questions(len(data), study.ablation_questions, study.seed, "permutation")
    encoded = encode(study, data.select(chosen), processor, list_answers(model))
    inputs = {"used": source_digest("helpers/heads")}
    return encoded, study.settings("seed", "ablation_questions") | inputs


def measure_removals(
    study: Study, model: nn.Module, processor: ViltProcessor, data: Dataset, number: int = 0
) -> tuple[AttentionTable, AttentionTable]:
    """Remove each head and each layer in turn, and measure each head's gradient importance; once.

    On `sample_for_removal` of data, the validation questions; number: which of the study's models.
    Returns REMOVALS, measured in half precision on a GPU as attention is, and IMPORTANCE, in the
    model's own precision; kept in shards in run_dir/removals and run_dir/importance (of the second
    model removals_1 and importance_1), so that a killed run continues.
    """
    encoded, inputs = sample_for_removal(study, model, processor, data)
    lower = in_measuring_precision(model, study)
    means = cache(lambda: mean_z(lower, encoded, study.extract_batch_size))  # only when needed

    def measure(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return removal_measures(model, batch, means())

    gradient, suffix = (importance_measures, IMPORTANCE), f"_{number}" if number else ""
    inputs, names = inputs | {"number": number}, ("removals" + suffix, "importance" + suffix)
    removals = extract_once(study, names[0], lower, encoded, measure, REMOVALS, **inputs)
    return removals, extract_once(study, names[1], model, encoded, *gradient, **inputs)


def importance_measures(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """How much the loss on each question depends on each head: importance (question, layer, head).

    |dL / dg| at g = 1, where g scales the head's z (Michel, Levy and Neubig 2019, "Are sixteen
    heads really better than one?", equation 2): one backward pass for all heads. L: the loss of
    `loss_increases`. logits: (question, answer). ValueError without labels.
    """
    if "labels" not in batch:
        raise ValueError("the batch has no labels: encode with answers=, the model's own.")
    inputs, config = prepare_batch(model, batch).inputs, model.config
    shape = (config.num_hidden_layers, len(batch["labels"]), config.num_attention_heads)
    gates = torch.ones(shape, device=model.device, dtype=model.dtype, requires_grad=True)

    def scale(layer: int, z: Tensor) -> Tensor:
        return z * gates[layer][:, None, :, None]

    with trace(model, edit={"z": scale}), torch.enable_grad():
        logits = forward_raster(model, inputs).logits
        loss = binary_cross_entropy_with_logits(logits, batch["labels"].to(logits), reduction="sum")
        (slope,) = torch.autograd.grad(loss, gates)
    return {"importance": slope.abs().transpose(0, 1), "logits": logits.detach()}


def normalise_by_layer(importance: np.ndarray) -> np.ndarray:
    """Importance (layer, head) over its layer's L2 norm, NaN in a layer of zeros.

    Gradients differ in size between layers for reasons that have nothing to do with heads
    (Molchanov et al. 2017, equation 10).
    """
    return divide_or_nan(importance, np.linalg.norm(importance, axis=1, keepdims=True))


def rank_measures(
    measures: dict[str, np.ndarray], n_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Do measures of importance (layer, head) rank the heads alike? A row a pair of measures.

    Columns: over ("all heads", or "within layers": each less its layer's mean), first, second,
    correlation (Spearman), low, high (95 %, bootstrap over heads, as if drawn independently), n
    (heads), p (`permute_within_layers`: heads of a layer are alike, so that an interval over all
    heads leaves out 0 in 8 to 20 % of cases where two measures have nothing in common).
    """
    rows = []
    for over in ("all heads", "within layers"):
        for pair in combinations(measures, 2):
            values = [np.asarray(measures[name], float) for name in pair]
            if over == "within layers":
                values = [value - value.mean(1, keepdims=True) for value in values]
            values = [value.round(9) for value in values]  # so that equal values are ties
            rank = rank_correlation(*values, n_resamples, seed)
            p = permute_within_layers(*values, n_resamples, seed)
            rows.append((over, *pair, *map(float, rank[:3]), int(rank.n), p))
    columns = ["over", "first", "second", "correlation", "low", "high", "n", "p"]
    return pd.DataFrame(rows, columns=columns)


def permute_within_layers(
    x: np.ndarray, y: np.ndarray, n_resamples: int = 1000, seed: int = 0
) -> float:
    """Two-sided p that heads which rank alike do so within their layers too, by permutation.

    x, y: (layer, head); a layer with a NaN is left out. The heads of y change places within their
    layers: a correlation that comes from the layers alone stays. NaN where a layer-wise order
    cannot matter (a constant, or too few heads).
    """
    known = ~np.isnan(x + y).any(1)
    x, y = x[known], y[known]
    copies = np.repeat(y[None], n_resamples, axis=0)
    mixed = np.random.default_rng(seed).permuted(copies, axis=2).reshape(n_resamples, -1)
    flat = np.broadcast_to(x.ravel(), mixed.shape)
    drawn, found = spearman_rows(flat, mixed), spearman_rows(x.reshape(1, -1), y.reshape(1, -1))
    if not known.any() or np.isnan(found).any() or np.ptp(drawn) == 0:
        return np.nan
    tails = (drawn >= found - 1e-12).sum(), (drawn <= found + 1e-12).sum()
    return float(min(1, 2 * (1 + min(tails)) / (1 + n_resamples)))


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


def linearise_ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Values (n, ...) whose mean is sum(part) / sum(whole) and whose spread gives its interval.

    r + (part - r whole) / mean(whole), r being the ratio (Cochran 1977, "Sampling Techniques",
    section 6.4); NaN where the
    whole sums to 0.
    """
    ratio = divide_or_nan(part.sum(0), whole.sum(0))
    return ratio + divide_or_nan(len(whole) * (part - ratio * whole), whole.sum(0))


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
