"""What each head does: scores on roles, against what an untrained head shows. Heads are written L3H7."""

import numpy as np
import pandas as pd

from helpers.attention.measures import image_share, special_mass, uniform_baseline
from helpers.stats.tests import (
    bootstrap_mean,
    correct_p,
    divide,
    enough,
    interval_table,
    rank_correlation,
    test_mean,
)

CLS, WORDS, PATCHES = range(3)  # in attention.QUERY_GROUPS
WORD_KEYS, PATCH_KEYS = 1, 4  # in attention.KEY_GROUPS
ALIKE = "attends to all tokens alike"
ROLES = {  # role: (queries it is read from, what a score of 0 means, what 1 means); below 0 is less than at 0
    "text->image reader": (("words",), ALIKE, "words attend to the image only"),
    "image->text reader": (("patches",), ALIKE, "patches attend to the text only"),
    "[CLS] reader of words": (("cls",), ALIKE, "[CLS] attends to words only"),
    "[CLS] reader of patches": (("cls",), ALIKE, "[CLS] attends to patches only"),
    "text local": (
        ("words",),
        "they look as far as by chance, or not at words",
        "at the word itself",
    ),
    "text global": (
        ("words",),
        "words as by chance, or near ones only",
        "words only, far as chance",
    ),
    "patch local": (
        ("patches",),
        "they look as far as by chance, or not at patches",
        "at the patch itself",
    ),
    "patch global": (
        ("patches",),
        "patches as by chance, or near ones only",
        "patches only, far as chance",
    ),
    "sink": (("words", "patches"), ALIKE, "attends to [CLS], [SEP] and the image's CLS only"),
    "grounding": (
        ("cls", "words"),
        "top patch in the box as often as by chance",
        "always in the box",
    ),
}


def score_questions(table, hits=None) -> dict[str, np.ndarray]:
    """Score every head on every role of ROLES, question by question: role -> (n, layers, heads).

    table: an AttentionTable. hits: what `box_hits` returned, or None (grounding is then NaN). Scores are
    signed; 0 is uniform attention or chance, 1 the most possible; NaN where a question cannot tell (no box,
    a single word). With mass m on the role's keys and m0 that of uniform attention over all tokens:

    readers, sink:  (m - m0) / (1 - m0). Below 0 it reaches -m0 / (1 - m0), far below -1 where m0 is near 1.
    local:          m (1 - d / d0), d the mean distance to the keys of its own kind and d0 that of uniform
                    attention over them. It counts the token itself, at distance 0.
    global:         (m - m0) / (1 - m0), times 0 for d / d0 <= 1/2, rising to 1 for d / d0 >= 1.
    grounding:      (hit - chance) / (1 - chance), mean of [CLS] and words query; chance: patches in the box.
    Text includes [CLS] and [SEP], image its CLS: a sink can pass as a reader too, with a lower score.
    """
    counts = table.questions[["n_words", "n_patches"]].to_numpy(float)
    words, patches = counts.T[:, :, None, None]  # (n, 1, 1) each
    keys, split, special = words + patches + 3, table.split, special_mass(table.split)
    image, baseline = image_share(split), uniform_baseline(words, patches)
    word_mass, patch_mass = split[..., WORDS, WORD_KEYS], split[..., PATCHES, PATCH_KEYS]
    grids = table.questions[["grid_rows", "grid_cols"]].to_numpy(int)
    word_ratio = divide(
        table.text_distance * 3 * words, words**2 - 1
    )  # over the mean |i - j| of all pairs
    patch_ratio = divide(table.patch_distance, uniform_patch_distance(grids)[:, None, None])
    scores = {
        "text->image reader": _rescale(image[..., WORDS], baseline),
        "image->text reader": _rescale(1 - image[..., PATCHES], 1 - baseline),
        "[CLS] reader of words": _rescale(split[..., CLS, WORD_KEYS], words / keys),
        "[CLS] reader of patches": _rescale(split[..., CLS, PATCH_KEYS], patches / keys),
        "text local": word_mass * (1 - word_ratio),
        "text global": _rescale(word_mass, words / keys) * np.clip(2 * word_ratio - 1, 0, 1),
        "patch local": patch_mass * (1 - patch_ratio),
        "patch global": _rescale(patch_mass, patches / keys) * np.clip(2 * patch_ratio - 1, 0, 1),
        "sink": _rescale((special[..., WORDS] + special[..., PATCHES]) / 2, 3 / keys),
    }
    hit, chance = hits or (np.full(split.shape[:4], np.nan), np.full(len(split), np.nan))
    scores["grounding"] = _rescale((hit[..., CLS] + hit[..., WORDS]) / 2, chance[:, None, None])
    return scores


def uniform_patch_distance(grids) -> np.ndarray:
    """Mean distance in grid steps over all pairs of patches, itself included; grids: (n, 2) rows, columns."""
    shapes, which = np.unique(grids, axis=0, return_inverse=True)
    steps = [
        [np.subtract.outer(np.arange(side), np.arange(side)) for side in shape] for shape in shapes
    ]
    return np.array([np.hypot.outer(down, across).mean() for down, across in steps])[
        which.reshape(-1)
    ]


def _rescale(value, null):
    """Signed score of a share in [0, 1]: 0 at its null value, 1 at its maximum of 1."""
    return divide(value - null, 1 - null)


def score_roles(
    table,
    null,
    hits=None,
    null_hits=None,
    clusters=None,
    draws=1000,
    seed=0,
    minimum=0.1,
    rows=slice(None),
    layers=False,
) -> pd.DataFrame:
    """Which head has which role? A row per role and head, with intervals over images.

    table, null: AttentionTables of the trained and of an untrained model on the same questions, in the same
    order. hits, null_hits: `box_hits` of each. clusters: (n,), by default table.questions.image_id. rows:
    the questions to use. layers: score whole layers instead, each as the mean of its heads. Columns: layer, head, name,
    role, score, low, high, n, n_clusters, null (the same head's score untrained), highest_null (of all untrained heads),
    difference (score - null), diff_low, diff_high, p (that it is 0, errors clustered by image), p_corrected
    (Benjamini-Hochberg over roles and heads), passes, reaches_answer; no head for layers.

    passes: the questions are enough to tell, the score is at least `minimum`, it is above the same head's untrained one
    (p_corrected < 0.05), and its interval is above the highest of all untrained heads: random heads have habits too, and
    which of them stands in the same place is an accident. reaches_answer is False for what the answer cannot depend on:
    in the last layer only the [CLS] query is read.
    """
    if not np.array_equal(table.questions["question_id"], null.questions["question_id"]):
        raise ValueError(
            "table and null hold different questions: extract both on the same data set"
        )
    clusters = np.asarray(table.questions["image_id"] if clusters is None else clusters)[rows]
    trained, untrained = score_questions(table, hits), score_questions(null, null_hits)
    axes = ("layer",) if layers else ("layer", "head")
    tables = []
    for role, (queries, *_) in ROLES.items():
        own, other = (
            scored[role][rows].mean(2) if layers else scored[role][rows]
            for scored in (trained, untrained)
        )
        score, gain = (
            bootstrap_mean(values, clusters, draws, seed) for values in (own, own - other)
        )
        part = interval_table(score, axes).rename(columns={"estimate": "score"})
        part.insert(
            len(axes), "name", "L" + part["layer"].astype(str) if layers else name_heads(part)
        )
        part.insert(len(axes) + 1, "role", role)
        part["null"] = bootstrap_mean(other, clusters, draws=1).estimate.ravel()
        part["highest_null"] = part["null"].max()
        part["difference"], part["diff_low"], part["diff_high"] = (
            bound.ravel() for bound in gain[:3]
        )
        part["p"] = test_mean(own - other, clusters, axes)["p"]
        part["reaches_answer"] = (part["layer"] < part["layer"].max()) | ("cls" in queries)
        tables.append(part)
    scores = pd.concat(tables, ignore_index=True)
    scores.insert(scores.columns.get_loc("p") + 1, "p_corrected", correct_p(scores["p"]))
    above = (
        (scores["difference"] > 0)
        & (scores["p_corrected"] < 0.05)
        & (scores["low"] > scores["highest_null"])
    )
    scores["passes"] = (
        enough(scores["n"], scores["n_clusters"]) & (scores["score"] >= minimum) & above
    )
    return scores


def compare_scores(first, second, hits=None, second_hits=None) -> pd.DataFrame:
    """What changes in each head's roles from one model to another, on the same questions (before and after fine-tuning)?

    first, second: AttentionTables; hits: `box_hits` of each. A row per role and head: layer, head, name, role, first,
    second (mean scores), change (second - first, paired by question), low, high (95 %, errors clustered by image), p,
    p_corrected (Benjamini-Hochberg over roles and heads), n, n_clusters.
    """
    if not np.array_equal(first.questions["question_id"], second.questions["question_id"]):
        raise ValueError(
            "first and second hold different questions: extract both on the same data set"
        )
    before, after = score_questions(first, hits), score_questions(second, second_hits)
    clusters, tables = first.questions["image_id"].to_numpy(), []
    for role in ROLES:
        part = test_mean(after[role] - before[role], clusters, ("layer", "head")).rename(
            columns={"estimate": "change"}
        )
        part.insert(2, "name", name_heads(part))
        part.insert(3, "role", role)
        for place, (name, scored) in enumerate((("first", before), ("second", after))):
            mean = bootstrap_mean(scored[role], clusters, draws=1).estimate
            part.insert(4 + place, name, mean.ravel())
        tables.append(part.drop(columns=["se", "df"]))
    changes = pd.concat(tables, ignore_index=True)
    changes.insert(changes.columns.get_loc("p") + 1, "p_corrected", correct_p(changes["p"]))
    return changes


def make_role_cards(scores: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """For each role the head that shows it most, and what its removal costs: a row a role.

    scores: of `score_roles`; effects: of `ablate.removal_effects` for one way of removal. Columns: role, definition,
    name, layer, head, score, low, high, highest_null, passes, reaches_answer, drop, drop_low, drop_high (points lost over
    all questions), hit_family (that loses most, beyond chance if any does), hit_drop, hit_low, hit_high, hit_significant.
    """
    rows = []
    for role, own in scores.dropna(subset=["score"]).groupby("role", sort=False):
        best = own.sort_values(["passes", "score"], ascending=False, kind="stable").iloc[0]
        cost = effects[effects["name"] == best["name"]]
        whole, families = (
            cost[cost["family"] == "all"].iloc[0],
            cost[cost["told"] & (cost["family"] != "all")],
        )
        sure = families[families["significant"] & (families["drop"] > 0)]
        families = sure if len(sure) else families
        most = families.loc[families["drop"].idxmax()] if len(families) else whole
        kept = best[
            [
                "name",
                "layer",
                "head",
                "score",
                "low",
                "high",
                "highest_null",
                "passes",
                "reaches_answer",
            ]
        ]
        rows.append(
            {"role": role, "definition": f"0: {ROLES[role][1]}; 1: {ROLES[role][2]}"}
            | kept.to_dict()
            | {"drop": whole["drop"], "drop_low": whole["low"], "drop_high": whole["high"], "hit_family": most["family"],
               "hit_drop": most["drop"], "hit_low": most["low"], "hit_high": most["high"], "hit_significant": most["significant"]}
        )  # fmt: skip
    return pd.DataFrame(rows)


def name_heads(table: pd.DataFrame) -> pd.Series:
    """L3H7 for each row of a table with columns layer and head."""
    return "L" + table["layer"].astype(str) + "H" + table["head"].astype(str)


def assign_roles(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a head from `score_roles`: layer, head, name, roles (passed, best first), strongest, score.

    A head may have several roles or none; `strongest` is then "none" and `score` NaN.
    """
    rows = []
    for (layer, head, name), own in scores.groupby(["layer", "head", "name"], sort=True):
        passed = own[own["passes"]].sort_values("score", ascending=False, kind="stable")
        best = (
            (passed["role"].iloc[0], passed["score"].iloc[0]) if len(passed) else ("none", np.nan)
        )
        rows.append((layer, head, name, list(passed["role"]), *best))
    return pd.DataFrame(rows, columns=["layer", "head", "name", "roles", "strongest", "score"])


def compare_roles(first: pd.DataFrame, second: pd.DataFrame, draws=1000, seed=0) -> pd.DataFrame:
    """Do two tables of `score_roles` agree about the same heads? A row a role.

    correlation, low, high: Spearman over heads; passes_a, passes_b: heads that pass; agreement: share of
    heads with the same verdict; phi: correlation of the verdicts, NaN where all are alike.
    """
    both = first.merge(second, on=["role", "layer", "head"], suffixes=("_a", "_b"), sort=False)
    rows = []
    for role, heads in both.groupby("role", sort=False):
        rank = rank_correlation(heads["score_a"], heads["score_b"], draws, seed)
        a, b = heads["passes_a"].to_numpy(float), heads["passes_b"].to_numpy(float)
        phi = divide(np.mean((a - a.mean()) * (b - b.mean())), a.std() * b.std())
        rows.append(
            (role, *rank[:3], int(a.sum()), int(b.sum()), (a == b).mean(), float(phi), len(heads))
        )
    columns = [
        "role",
        "correlation",
        "low",
        "high",
        "passes_a",
        "passes_b",
        "agreement",
        "phi",
        "n_heads",
    ]
    return pd.DataFrame(rows, columns=columns)


def stability(
    table, null, hits=None, null_hits=None, clusters=None, draws=1000, seed=0, minimum=0.1
):
    """Would the roles be the same on other images? `compare_roles` of two random halves of the images."""
    clusters = np.asarray(table.questions["image_id"] if clusters is None else clusters)
    images = np.random.default_rng(seed).permutation(np.unique(clusters))
    inside = np.isin(clusters, images[::2])
    given = (table, null, hits, null_hits, clusters, draws, seed, minimum)
    return compare_roles(score_roles(*given, inside), score_roles(*given, ~inside), draws, seed)


def box_hits(top_patch, grids, boxes, sizes) -> tuple[np.ndarray, np.ndarray]:
    """Does the patch that a head favours lie in the box that the question is about?

    top_patch: (n, ...) raster indices, below 0 for none. grids: (n, 2) rows, columns. boxes: for each
    question a list of [x, y, width, height] in pixels of the original image, or None. sizes: (n, 2) width,
    height of that image. Returns hits (n, ...), 0 or 1, and chance (n,), the share of patches in a box;
    NaN for a question without a box.

    The patch grid is stretched over the image; a patch is in a box if its centre is inside or on the edge.
    Of a box too small to hold a centre, the patch at the box's own centre counts.
    """
    top_patch = np.asarray(top_patch)
    if not len(top_patch) == len(grids) == len(boxes) == len(sizes):
        rows = [len(part) for part in (top_patch, grids, boxes, sizes)]
        raise ValueError(
            f"top_patch, grids, boxes and sizes have {rows} rows: one each for every question"
        )
    hits, chance = np.full(top_patch.shape, np.nan), np.full(len(top_patch), np.nan)
    for question, (grid, own, size) in enumerate(zip(grids, boxes, sizes, strict=True)):
        if own is None or len(own) == 0:
            continue
        inside = np.any([cover_box(box, grid, size) for box in own], axis=0).ravel()
        chance[question] = inside.mean()
        hits[question] = np.where(top_patch[question] >= 0, inside[top_patch[question]], np.nan)
    return hits, chance


def cover_box(box, grid, size) -> np.ndarray:
    """Which patches a box [x, y, width, height] holds: bool (rows, columns); the rule of `box_hits`."""
    x, y, width, height = box
    (rows, columns), (image_width, image_height) = grid, size
    across = (np.arange(columns) + 0.5) / columns * image_width
    down = (np.arange(rows) + 0.5) / rows * image_height
    inside = np.outer((down >= y) & (down <= y + height), (across >= x) & (across <= x + width))
    if not inside.any():
        row = int(np.clip((y + height / 2) / image_height * rows, 0, rows - 1))
        column = int(np.clip((x + width / 2) / image_width * columns, 0, columns - 1))
        inside[row, column] = True
    return inside
