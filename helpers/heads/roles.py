"""What each head does: scores on roles, held against heads of 24 models with random weights.

    facts = gather_facts(table, data)                     # what the questions say beside attention
    by_question = score_by_question(table, facts)         # role -> (question, layer, head)
    random = mean_scores(random_tables, facts.select(sampled))
    scores = score_roles(by_question, image_ids, random)  # a row a role and head

Layers and heads are counted from 0; head 7 of layer 3 is written L3H7.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset
from numpy.typing import ArrayLike
from scipy import stats
from torch import nn

from helpers.attention.extract import AttentionTable, extract_once, name_heads
from helpers.attention.grounding import find_hits, mask_boxes, object_chance, pointing_hits
from helpers.attention.image_share import attention_maps, image_share, uniform_baseline
from helpers.data.encode import EncodedQuestions
from helpers.model.vilt import load_vilt
from helpers.run.settings import PROFILES, Study
from helpers.stats.bootstrap import bootstrap_mean, rank_correlation, spearman_rows, split_images
from helpers.stats.cluster_robust import correct_p, divide_or_nan, has_enough_data

Scores = dict[str, np.ndarray]  # role -> (question or model, layer, head)

CLS, WORDS, PATCHES = range(3)  # in attention.QUERY_GROUPS
WORD_KEYS, PATCH_KEYS = 1, 4  # in attention.KEY_GROUPS
EMPTY = 1  # in the measure `sink`: the part of the mass that reads next to nothing
MIN_SCORE = 0.1  # of a head that has a role
ROLES = {  # role: its queries, and what it means; what 0 and 1 mean: `score_by_question`
    "text reader of image": (("words",), "words look at the picture"),
    "image reader of text": (("patches",), "patches look at the question"),
    "[CLS] reader of words": (("cls",), "[CLS] collects the question's words"),
    "[CLS] reader of patches": (("cls",), "[CLS] collects the picture's patches"),
    "text local": (("words",), "words look at their neighbours"),
    "text global": (("words",), "words look at words far away"),
    "patch local": (("patches",), "patches look at their neighbours"),
    "patch global": (("patches",), "patches look across the picture"),
    "sink": (("words", "patches"), "rests where there is nothing to read"),
    "grounding": (("cls", "words"), "points at the object asked about"),
}
OF_WORDS = (  # roles that are about words, which a card shows as bars
    "image reader of text", "[CLS] reader of words", "text local", "text global", "sink",
)  # fmt: skip


class QuestionFacts(NamedTuple):
    """What roles need to know of questions beside their attention; rows as in the table."""

    inside: np.ndarray  # bool (question, patch), in a box that is asked about
    chance: np.ndarray  # (question,), of pointing right by chance; NaN where it cannot be said
    chance_of: str  # "object", "patch" or "" (no boxes): who points at random

    def select(self, rows: np.ndarray) -> "QuestionFacts":
        """The facts of some questions: rows of whole numbers."""
        return QuestionFacts(*(fact[rows] for fact in self[:2]), self.chance_of)


def gather_facts(table: AttentionTable, data: Dataset) -> QuestionFacts:
    """What the questions say of boxes; table, data: the same questions.

    Chance is that of who points at a random known object of the picture (`object_chance`). Where no
    picture has two known objects, it is that of a random patch: the share of patches in the box.
    """
    inside, chance_of = mask_boxes(table.questions, data), "object"
    chance = object_chance(table.questions, data)
    if np.isnan(chance).all():
        chance, chance_of = pointing_hits(table.top_patch, table.questions, data)[1], "patch"
    if np.isnan(chance).all():
        chance_of = ""
    return QuestionFacts(inside, chance, chance_of)


def score_by_question(table: AttentionTable, facts: QuestionFacts) -> Scores:
    """Score every head on every role of ROLES: role -> (question, layer, head).

    facts: of `gather_facts`. 0 is uniform attention or chance, 1 the most possible; NaN where a
    question cannot tell (no box, a single word). With mass m on the role's keys and m0 that of
    uniform attention over all tokens:

    readers:    (m - m0) / (1 - m0), at least -m0 / (1 - m0): far below -1 where m0 is near 1.
    local:      m (1 - d / d0), with d the mean distance to keys of the query's own kind and d0 that
                of uniform attention over them, the token itself included.
    global:     (m - m0) / (1 - m0), times 0 for d / d0 <= 1/2, rising to 1 for d / d0 >= 1.
    sink:       as readers, m being the mass on sinks whose values are small (reads nothing); sinks
                are [CLS], [SEP], the image's CLS, function words and punctuation.
    grounding:  (hit - chance) / (1 - mean chance), the mean of the [CLS] and the words query.

    Text includes [CLS] and [SEP], image its CLS: a sink can be a reader too.
    """
    counts = table.questions[["n_words", "n_patches"]].to_numpy(float)
    words, patches = counts.T[:, :, None, None]  # (question, 1, 1) each
    keys, split = words + patches + 3, table.split
    image, baseline = image_share(split), uniform_baseline(words, patches)
    word_mass, patch_mass = split[..., WORDS, WORD_KEYS], split[..., PATCHES, PATCH_KEYS]
    grids = table.questions[["grid_rows", "grid_cols"]].to_numpy(int)
    # the mean |i - j| over all pairs of n words is (n^2 - 1) / 3n
    word_ratio = divide_or_nan(table.text_distance * 3 * words, words**2 - 1)
    patch_ratio = divide_or_nan(table.patch_distance, uniform_patch_distance(grids)[:, None, None])
    empty = table.sink[..., [WORDS, PATCHES], EMPTY].mean(-1)
    hits = find_hits(table.top_patch[..., [CLS, WORDS]], facts.inside)
    known = facts.chance[np.isfinite(facts.chance)]
    most = 1 - known.mean() if len(known) else np.nan
    return {
        "text reader of image": _rescale(image[..., WORDS], baseline),
        "image reader of text": _rescale(1 - image[..., PATCHES], 1 - baseline),
        "[CLS] reader of words": _rescale(split[..., CLS, WORD_KEYS], words / keys),
        "[CLS] reader of patches": _rescale(split[..., CLS, PATCH_KEYS], patches / keys),
        "text local": word_mass * (1 - word_ratio),
        "text global": _rescale(word_mass, words / keys) * np.clip(2 * word_ratio - 1, 0, 1),
        "patch local": patch_mass * (1 - patch_ratio),
        "patch global": _rescale(patch_mass, patches / keys) * np.clip(2 * patch_ratio - 1, 0, 1),
        "sink": _rescale(empty, table.n_sinks[:, None, None] / keys),
        "grounding": divide_or_nan(hits.mean(-1) - facts.chance[:, None, None], most),
    }


def uniform_patch_distance(grids: np.ndarray) -> np.ndarray:
    """Mean distance in grid steps over all pairs of patches, a patch with itself included.

    grids: (question, 2), rows and columns. Returns (question,).
    """
    shapes, shape_of = np.unique(grids, axis=0, return_inverse=True)
    steps = ([np.subtract.outer(range(side), range(side)) for side in shape] for shape in shapes)
    means = np.array([np.hypot.outer(*both).mean() for both in steps])
    return means[shape_of.reshape(-1)]


def _rescale(value: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Signed score of a share in [0, 1]: 0 at its null value, 1 at its maximum of 1."""
    return divide_or_nan(value - null, 1 - null)


def mean_scores(tables: Sequence[AttentionTable], facts: QuestionFacts) -> Scores:
    """The scores of several models' heads: role -> (model, layer, head), means over questions.

    tables: of each model, such as those of `extract.measure_random_models`, on the same questions.
    """
    scored = [score_by_question(table, facts) for table in tables]
    return {role: np.stack([average_first(one[role]) for one in scored]) for role in ROLES}


def average_first(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is left."""
    return divide_or_nan(np.nansum(values, axis=0, dtype=float), (~np.isnan(values)).sum(0))


def score_roles(
    by_question: Scores,
    image_ids: ArrayLike,
    random: Scores,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Which head has which role? A row a role and head, with intervals over images.

    by_question: of `score_by_question`; image_ids: (question,). random: `mean_scores` of models
    with random weights. Roles of which no question tells anything are left out.
    Columns: layer, head, name, role, score, low, high, n, n_images, null (score of the highest
    random head), p (`empirical_p` over all heads of all random models, as a head has no partner in
    a model with other weights), p_corrected (over roles and heads), reaches_answer (False where no
    answer depends on the queries: in the last layer only [CLS] is read), passes (the questions are
    enough, score >= MIN_SCORE, and p_corrected < 0.05).
    """
    tables = []
    for role, values in by_question.items():
        if np.isnan(values).all():
            continue
        of_heads = bootstrap_mean(values, image_ids, n_resamples, seed)
        heads = of_heads.to_table(("layer", "head")).rename(columns={"estimate": "score"})
        heads["role"], heads["null"] = role, random[role].max()
        heads["p"] = empirical_p(heads["score"], random[role])
        is_last = heads["layer"] == heads["layer"].max()
        heads["reaches_answer"] = ~is_last | ("cls" in ROLES[role][0])
        tables.append(heads)
    scores = pd.concat(tables, ignore_index=True)
    scores["name"], scores["p_corrected"] = name_heads(scores), correct_p(scores["p"])
    scores["passes"] = has_enough_data(scores["n"], scores["n_images"]) & (
        (scores["score"] >= MIN_SCORE) & (scores["p_corrected"] < 0.05)
    )
    columns = ["layer", "head", "name", "role", "score", "low", "high", "n", "n_images", "null"]
    return scores[[*columns, "p", "p_corrected", "reaches_answer", "passes"]]


def empirical_p(values: ArrayLike, random: ArrayLike) -> np.ndarray:
    """(1 + random numbers at least as high) / (1 + random numbers) of each value; NaN stays NaN."""
    values, ordered = np.asarray(values, float), np.sort(np.ravel(random))
    ordered = ordered[~np.isnan(ordered)]
    p = (1 + len(ordered) - np.searchsorted(ordered, values)) / (1 + len(ordered))
    return np.where(np.isnan(values) | (len(ordered) == 0), np.nan, p)


def count_roles(scores: pd.DataFrame) -> pd.DataFrame:
    """How many heads have each role, and for how many it is not certain: a row a role.

    scores: of `score_roles`. Columns: role, meaning, heads (that have it), undecided (the interval
    reaches both sides of MIN_SCORE), highest (score), random (the highest random head's).
    """
    near = (scores["low"] < MIN_SCORE) & (scores["high"] >= MIN_SCORE)
    near &= scores["p_corrected"] < 0.05
    of_role = scores.assign(near=near).groupby("role", sort=False)
    columns = {"heads": ("passes", "sum"), "undecided": ("near", "sum")}
    table = of_role.agg(**columns, highest=("score", "max"), random=("null", "max")).reset_index()
    table.insert(1, "meaning", [ROLES[role][1] for role in table["role"]])
    return table


def find_example(
    card: dict, by_question: Scores, model: nn.Module, encoded: EncodedQuestions
) -> dict:
    """What a card's head looks at in a typical question, the one whose score is nearest its mean.

    card: a row of `score_roles`; by_question: of `score_by_question`. Returns row (of encoded),
    question and weights, from the first of the role's queries: over text tokens and, last, all
    patches, with their names in tokens; or, where the role is about patches, (rows, columns).
    """
    layer, head, role = card["layer"], card["head"], card["role"]
    scores = by_question[role][:, layer, head]
    row = int(np.nanargmin(np.abs(scores - np.nanmean(scores))))
    maps = attention_maps(model, encoded.collate([encoded[row]]))[0]
    queries = maps.groups[ROLES[role][0][0]]
    weights = maps.attention[layer, head, queries].mean(0).float().cpu().numpy()
    example = {"row": row, "question": encoded.questions["question"].iloc[row]}
    patches = maps.groups["patches"]
    if role not in OF_WORDS:
        return example | {"weights": weights[patches].reshape(maps.grid)}
    tokens = [*maps.tokens[: patches.start], "patches"]
    weights = np.append(weights[: patches.start], weights[patches].sum())
    return example | {"tokens": tokens, "weights": weights}


def habit_share(scores: pd.DataFrame) -> tuple[float, float, float]:
    """Percent of the heads with a role in which they lie beyond every random head, low and high.

    scores: of `score_roles`. The interval is Wilson's, as if heads were drawn independently.
    """
    firm = scores["passes"] & (scores["score"] > scores["null"])
    with_habit = firm.groupby(scores["name"]).any()
    test = stats.binomtest(int(with_habit.sum()), len(with_habit))
    return tuple(100 * share for share in (test.statistic, *test.proportion_ci(method="wilson")))


def agree_on_heads(
    first: Scores, second: Scores, n_resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Rank correlation over heads of one model's scores in two states, mean over roles; low, high.

    first, second: `score_by_question`, such as before and after fine-tuning. Roles that set no
    heads apart are left out. The interval is a bootstrap over heads, all roles of a head together,
    as if heads were drawn independently; NaN without any such role.
    """
    pairs = [
        tuple(average_first(state[role]).ravel() for state in (first, second)) for role in ROLES
    ]
    pairs = [pair for pair in pairs if not np.isnan(rank_correlation(*pair, 1).estimate)]
    if not pairs:
        return np.nan, np.nan, np.nan
    n_heads = len(pairs[0][0])
    rows = np.random.default_rng(seed).integers(n_heads, size=(n_resamples, n_heads))
    drawn = [spearman_rows(x[rows], y[rows]) for x, y in pairs]
    low, high = np.nanpercentile(average_first(np.array(drawn)), [2.5, 97.5])
    whole = np.mean([spearman_rows(x[None], y[None])[0] for x, y in pairs])
    return float(whole), float(low), float(high)


def compare_image_halves(
    by_question: Scores,
    image_ids: ArrayLike,
    random: Scores,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Would the roles be found on other images? Two random halves of the images, a row a role.

    by_question, image_ids, random: of `score_roles`. Columns: role, correlation, low, high (of
    `rank_correlation`), passes_a, passes_b (heads that pass in each half), agreement (share of
    heads with the same verdict), n_heads.
    """
    half, image_ids, tables = split_images(image_ids, seed), np.asarray(image_ids), []
    for rows in (half, ~half):
        of_half = {role: values[rows] for role, values in by_question.items()}
        tables.append(score_roles(of_half, image_ids[rows], random, n_resamples, seed))
    both = tables[0].merge(tables[1], on=["role", "layer", "head"], suffixes=("_a", "_b"))
    rows = []
    for role, heads in both.groupby("role", sort=False):
        rank = rank_correlation(heads["score_a"], heads["score_b"], n_resamples, seed)
        a, b = heads["passes_a"], heads["passes_b"]
        rows.append((role, *rank[:3], int(a.sum()), int(b.sum()), (a == b).mean(), len(heads)))
    columns = ["role", "correlation", "low", "high", "passes_a", "passes_b"]
    return pd.DataFrame(rows, columns=[*columns, "agreement", "n_heads"])


def find_pretrained(study: Study, number: int = 0) -> str | None:
    """The checkpoint that a model of the study was fine-tuned from; None where it is not known.

    That of a folder is `<folder>-pretrained` beside it, where there is one, as for the replicas.
    Else the setting `checkpoint` is that of the run's own model, and of a profile's first one.
    """
    of_profile = study.models in ((), PROFILES[study.profile].get("models"))
    if number == 0 and of_profile:
        return study.checkpoint
    name = f"{study.models[number]}-pretrained"
    return name if (study.root / name).is_dir() else None


def measure_before_finetuning(
    study: Study, encoded: EncodedQuestions, answers: list[str], number: int = 0
) -> AttentionTable:
    """Measure the attention of the checkpoint that fine-tuning starts from; once.

    encoded: validation questions. answers: the fine-tuned model's, for a new answer head whose
    answers mean nothing. number: of a model that `find_pretrained` knows. Kept in attention_before.
    """
    checkpoint, device = find_pretrained(study, number), study.device_name()
    model = load_vilt(study.path(checkpoint), device=device, answers=answers, seed=study.seed)[0]
    inputs = {"checkpoint": checkpoint, "seed": study.seed, "rows": len(encoded), "number": number}
    return extract_once(study, "attention_before", model, encoded, **inputs)
