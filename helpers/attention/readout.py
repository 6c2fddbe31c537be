"""What is known where: the answer read out after each layer, and linear probes of its state.

    table = extract_once(study, "readout", model, marked, readout_measures, PROBED)
    known = score_levels(table, marked, labels, learns_on)  # name -> (question, level)
    assign_roles(evidence)                                  # what each layer does, by a fixed rule

Level 0 is what enters the first layer, level l + 1 the residual stream after layer l. The read-out
puts the final layer norm, the pooler and the classifier on [CLS] at each level: the logit lens
(nostalgebraist 2020; Belrose et al. 2023, "Eliciting latent predictions from transformers with the
tuned lens"). They were trained on the last level only, so what they do not find before it may be
there in another form: hence the probes (Alain and Bengio 2017, "Understanding intermediate layers
using linear classifier probes").
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.attention.extract import AttentionTable, Labels
from helpers.attention.image_share import Batch, mark_objects, pack_forward, query_weights
from helpers.data.encode import EncodedQuestions
from helpers.stats.models import mean_over_models

PROBED = 5000  # questions at most: a state of ViLT-B/32 takes 3 KB
PENALTY, LEAST = 0.1, 5  # of a probe: the ridge beside a mean square, questions that teach a label
MATTERS = 5  # points that a piece of evidence for a layer's role has to show
PROBES = {  # what is asked about: the question families whose answer names it
    "object": ("what", "who"),
    "colour": ("what color",),
    "place": ("where",),
    "number": ("how many",),
}
ROLES = {  # what a layer does: the evidence, each of which has to show it
    "reads the question": ("cut: [CLS], patches <- words", "rise: type of question at [CLS]"),
    "marks the object": ("cut: patches <- words", "rise: asked about at its patches"),
    "fetches the answer": (
        "cut: [CLS] <- image",
        "rise: answer at read-out",
        "rise: answer at [CLS]",
    ),
}


@torch.no_grad()
def readout_measures(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What the residual stream holds at each level; a measure for `extract_once`.

    read_logits (question, level, answer), of which read_answer is the best answer's number.
    cls_state (question, level, hidden): [CLS]. object_state (question, layer, 2, hidden): the mean
    over the patches of the object asked about, and of the other known objects, as they enter each
    layer; NaN without any. batch: as in `attention_split`, with the `objects` of a
    `grounding.MarkedQuestions`, if known.
    """
    forward, cls, objects = pack_forward(model, batch), [], []
    weights = query_weights(mark_objects(batch, forward.groups))  # (question, 2, token)
    for layer in forward:
        tokens = forward.hidden.new_zeros(*forward.valid.shape, forward.hidden.shape[1])
        tokens[forward.valid] = forward.hidden
        cls.append(tokens[:, 0])
        objects.append(weights @ tokens.float())
        layer.run()
    cls = torch.stack([*cls, forward.hidden], dim=1)
    logits = forward.read_answer(cls.flatten(0, 1)).unflatten(0, cls.shape[:2]).float()
    return {
        "logits": logits[:, -1], "read_logits": logits, "read_answer": logits.argmax(2),
        "cls_state": cls, "object_state": torch.stack(objects, dim=1),
    }  # fmt: skip


def probe(states: np.ndarray, labels: Sequence, learns_on: np.ndarray) -> np.ndarray:
    """Is a label told rightly from a state by a linear classifier? (question, level), 0 or 1.

    states: (question, level, hidden); labels: (question,), None where unknown; learns_on: bool
    (question,). At each level a ridge regression of one column a label on the state, scaled to unit
    variance. NaN where the probe learnt, where no label or state is known, and for labels that
    fewer than LEAST questions teach.
    """
    codes, names = pd.factorize(np.asarray(labels, dtype=object))
    known = (codes >= 0) & np.isfinite(states).all((1, 2))
    taught = np.bincount(codes[known & learns_on], minlength=len(names) + 1)  # -1: the last, none
    known &= taught[codes] >= LEAST
    learns, judged = known & learns_on, known & ~learns_on
    hits = np.full(states.shape[:2], np.nan)
    if not judged.any():
        return hits
    targets = np.eye(len(names))[codes[learns]]
    for level in range(states.shape[1]):
        x = states[:, level].astype(float)
        center, scale = x[learns].mean(0), x[learns].std(0)
        x = (x - center) / np.maximum(scale, 1e-6)
        gram = x[learns].T @ x[learns] / learns.sum() + PENALTY * np.eye(x.shape[1])
        slopes = np.linalg.solve(gram, x[learns].T @ (targets - targets.mean(0)) / learns.sum())
        scores = x[judged] @ slopes + targets.mean(0)
        hits[judged, level] = scores.argmax(1) == codes[judged]
    return hits


def score_levels(
    table: AttentionTable,
    encoded: EncodedQuestions,
    labels: Labels,
    learns_on: np.ndarray,
    shuffle: int | None = None,
) -> dict[str, np.ndarray]:
    """What is known at each level: name -> (question, level), shares right, NaN where not asked.

    "what color at read-out", a family each: VQA accuracy of the answer read out. "type of question
    at [CLS]", "colour at [CLS]", "colour at its patches", ... (see PROBES): is it told by a `probe`
    of [CLS], and of the patches of the object asked about? "asked about at its patches": of two
    objects, which one is asked about? By chance half is right. "answer": all answers together.
    Where boxes are known, only answers with a box are probed. encoded: of which the table was
    measured; labels: the answer of each number; learns_on: bool (question,). shuffle: seed of a
    random order of what the probes are taught and asked.
    """
    rows = pd.Index(encoded.questions["question_id"]).get_indexer(table.questions["question_id"])
    questions, objects = encoded.questions.iloc[rows], table.object_state
    family, boxed = questions["family"].to_numpy(), np.isfinite(objects[:, 0, 0, 0])
    answers = questions.get("multiple_choice_answer")
    asked = {"type of question": family} | {
        name: np.where(np.isin(family, families) & (boxed | ~boxed.any()), answers, None)
        for name, families in PROBES.items()
    }
    swapped = np.zeros(len(family), dtype=bool)
    if shuffle is not None:
        rng = np.random.default_rng(shuffle)
        asked = {name: shuffle_known(each, rng) for name, each in asked.items()}
        swapped = rng.random(len(family)) < 0.5
    known = {"answer at read-out": encoded.score(table.read_answer, rows, labels)}
    for name in dict.fromkeys(family):
        own = family[:, None] == name
        known[f"{name} at read-out"] = np.where(own, known["answer at read-out"], np.nan)
    for name, each in asked.items():
        known[f"{name} at [CLS]"] = probe(table.cls_state, each, learns_on)
    known["answer at [CLS]"] = np.fmax.reduce([known[f"{name} at [CLS]"] for name in PROBES])
    if boxed.any():
        for name in PROBES:
            known[f"{name} at its patches"] = probe(objects[:, :, 0], asked[name], learns_on)
        pair = np.concatenate([objects[:, :, 0], objects[:, :, 1]])
        found = probe(pair, np.concatenate([~swapped, swapped]), np.tile(learns_on, 2))
        known["asked about at its patches"] = found.reshape(2, len(family), -1).mean(0)
    return known


def shuffle_known(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels in a random order, None where it was."""
    known, shuffled = pd.notna(labels), labels.astype(object)
    shuffled[known] = rng.permutation(shuffled[known])
    return shuffled


def tabulate_known(
    known: Mapping[str, Sequence[Mapping[str, np.ndarray]]], image_ids: np.ndarray
) -> pd.DataFrame:
    """Means over models and questions of what is known, with 95 % intervals for both.

    known: kind of model ("trained", ...) -> `score_levels` of each model; image_ids: (question,).
    Columns: place ("read-out", "[CLS]", "its patches"), what, model (the kind), level, estimate,
    low, high, n, n_images.
    """
    parts = []
    for kind, models in known.items():
        for name in models[0]:
            values, (what, place) = np.stack([each[name] for each in models]), name.split(" at ")
            if np.isfinite(values).any():
                mean, levels = mean_over_models(values, image_ids, (0, 1)), range(values.shape[2])
                table = mean.to_table({"level": levels})
                parts.append(table.assign(place=place, what=what, model=kind))
    names = ["place", "what", "model", "level", "estimate", "low", "high", "n", "n_images"]
    return pd.concat(parts, ignore_index=True)[names] if parts else pd.DataFrame(columns=names)


def assign_roles(evidence: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """What each layer does, by the evidence of ROLES: a row a role, layer and piece of evidence.

    evidence: name -> points (model, question, layer) that are lost with edges cut in the layer, or
    gained across it, and image_ids (question,). A piece says yes where its 95 % interval over
    models and images lies above MATTERS points, no where it lies below, else it is undecided. A
    layer has the role where all say yes, and has it not where one says no; a missing piece leaves
    it undecided.
    Columns: role, layer, evidence, estimate, low, high, n, n_images, says, has_role.
    """
    parts = []
    for role, names in ROLES.items():
        for name in [name for name in names if name in evidence]:
            values, image_ids = evidence[name]
            mean = mean_over_models(values, image_ids)
            rows = mean.to_table({"layer": [f"L{layer}" for layer in range(values.shape[2])]})
            parts.append(rows.assign(role=role, evidence=name))
    table = pd.concat(parts, ignore_index=True)
    sure = [table["low"] > MATTERS, table["high"] <= MATTERS]
    table["says"] = np.select(sure, ["yes", "no"], "undecided")
    said = table.groupby(["role", "layer"])["says"]
    complete = said.transform("size") == table["role"].map(ROLES).map(len)
    against = said.transform(lambda says: (says == "no").any()).astype(bool)
    unanimous = said.transform(lambda says: (says == "yes").all()).astype(bool)
    table["has_role"] = np.select([against, unanimous & complete], ["no", "yes"], "undecided")
    names = ["role", "layer", "evidence", "estimate", "low", "high", "n", "n_images"]
    return table[[*names, "says", "has_role"]]
