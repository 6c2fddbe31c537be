"""Sentences of notebook 05 about roles: who has one, whether it is found again, whether it is needed.

Every function takes tables of the notebook and returns text that is true whether or not something was found.
"""

import pandas as pd

from helpers.sentences import agree, count_of, say_interval
from helpers.stats import enough


def describe_roles(scores: pd.DataFrame, n_weak: int, n_weak_untrained: int) -> str:
    """How many heads have a role that no untrained head shows, and the clearest.

    scores: of `heads.score_roles`. n_weak: pairs of head and role beyond the same head untrained alone;
    n_weak_untrained: as many of untrained heads against their neighbours.
    """
    n, n_images, n_heads = scores["n"].max(), scores["n_clusters"].max(), scores["name"].nunique()
    if not enough(n, n_images):
        return f"{n} questions about {n_images} images are not enough questions to tell the role of any head."
    passed = scores[scores["passes"]]
    weak = (
        f"Against the same head untrained alone {n_weak} would pass, but so do {n_weak_untrained} untrained heads "
        "against their neighbours."
    )
    if passed.empty:
        return (
            f"None of {n_heads} heads has any of {scores['role'].nunique()} roles (n = {n:,} questions about "
            f"{n_images:,} images). {weak}"
        )
    clear, counts = passed.loc[passed["score"].idxmax()], passed["role"].value_counts()
    dead = (~passed["reaches_answer"]).sum()
    habits = agree(dead, "is a habit", "are habits")
    return (
        f"{passed['name'].nunique()} of {n_heads} heads {agree(passed['name'].nunique(), 'has', 'have')} a role; "
        f"{len(passed)} of {len(scores)} pairs of head and role {agree(len(passed), 'passes', 'pass')} "
        f"({_say_chance(scores)}), most often “{counts.index[0]}” (in {counts.iloc[0]}). The clearest is "
        f"{clear['name']} as “{clear['role']}”: {clear['score']:.2f} {say_interval(clear, 2)}, {clear['null']:.2f} "
        f"untrained (n = {clear['n']:,} questions about {clear['n_clusters']:,} images). "
        f"{f'{dead} {habits} of the last layer that cannot reach the answer. ' if dead else ''}{weak}"
    )


def count_lucky(scores: pd.DataFrame) -> float:
    """Pairs of head and role expected above all untrained heads if training did nothing: 1 / (1 + heads) of them."""
    return len(scores) / (1 + scores["name"].nunique())


def _say_chance(scores: pd.DataFrame) -> str:
    if round(count_lucky(scores)) >= scores["passes"].sum():
        return f"no more than chance alone would give: about {count_lucky(scores):.0f}"
    return f"chance alone: about {count_lucky(scores):.0f}"


def describe_stability(again: pd.DataFrame, changes: pd.DataFrame, gained: int, given_up: int) -> str:
    """Whether roles are found again in other images and other models, and what fine-tuning changed.

    again: of `heads.compare_roles`, a row a comparison and role; changes: of `heads.compare_scores`. gained,
    given_up: pairs of head and role that pass after fine-tuning only, and before it only.
    """
    said = "; ".join(
        f"{'those ' if name.startswith('before') else 'the ' if not name.startswith('another') else ''}{name}: "
        f"{_say_agreement(own)}"
        for name, own in again.groupby("comparison", sort=False)
    )
    sure = changes[(changes["p_corrected"] < 0.05) & enough(changes["n"], changes["n_clusters"])]
    if sure.empty:
        changed = "that fine-tuning changed any head's score cannot be shown with these questions"
    else:
        most = sure.loc[sure["change"].abs().idxmax()]
        changed = (
            f"by fine-tuning heads gained {gained} and lost {given_up} of {len(changes)} possible roles; it changed "
            f"{len(sure)} of {len(changes)} scores beyond chance, most of all {most['name']} as “{most['role']}”, from "
            f"{most['first']:.2f} to {most['second']:.2f} (change {most['change']:+.2f} "
            f"{say_interval(most, 2, True)}, n = {most['n']:,} questions)"
        )
    return f"This model's roles against {said}; {changed}."


def _say_agreement(own: pd.DataFrame) -> str:
    ranks = own["correlation"].dropna()
    spread = "no role sets the heads apart"
    if len(ranks):
        spread = f"rank correlations over heads from {ranks.min():.2f} to {ranks.max():.2f} (median {ranks.median():.2f})"
    if not own["told"].all():
        return f"{spread}; not enough questions for verdicts"
    a, b = (own[side].sum() / own["n_heads"].sum() for side in ("passes_a", "passes_b"))
    by_chance = 100 * (a * b + (1 - a) * (1 - b))
    return f"{spread}; {100 * own['agreement'].mean():.0f} % of verdicts are the same ({by_chance:.0f} % were it chance)"


def describe_cards(cards: pd.DataFrame, n: int, n_removed: int) -> str:
    """Whether the best head of each role is needed by a family.

    cards: of `heads.make_role_cards`. n: questions behind roles; n_removed: questions behind removals.
    """
    passing = cards[cards["passes"]]
    if passing.empty:
        return f"No head has a role here (n = {n:,} questions), so there is no role to check by removal."
    needed = passing[passing["hit_significant"] & (passing["hit_drop"] > 0)]
    whom = "" if (passing["hit_family"] == "all").all() else "a family of questions "
    text = (
        f"Of {count_of(len(passing), 'role')} that some head has, {len(needed) or 'none'} "
        f"{agree(len(needed) or 1, 'belongs', 'belong')} to a head "
        f"whose removal costs {whom}accuracy beyond chance (n = {n_removed:,} questions)"
    )
    if len(needed):
        strong = needed.loc[needed["hit_drop"].idxmax()]
        ends = say_interval({"low": strong["hit_low"], "high": strong["hit_high"]})
        loser = f"“{strong['hit_family']}” loses"
        loser = "all questions together lose" if strong["hit_family"] == "all" else loser
        text += (
            f", most of all “{strong['role']}” ({strong['name']}): {loser} "
            f"{strong['hit_drop']:.1f} points {ends}"
        )
    idle = [
        f"“{row.role}” ({row.name})" for row in passing.drop(needed.index)[["role", "name"]].itertuples(False)
    ]
    doubt = "the answer does not need it, other heads have it too, or it takes more questions to see"
    return f"{text}." + (f" For {', '.join(idle)} no such cost is shown: {doubt}." if idle else "")


def summarise_roles(scores: pd.DataFrame) -> str:
    """How many heads have a role, as a clause of the notebook's answer."""
    if not enough(scores["n"].max(), scores["n_clusters"].max()):
        return "There are not enough questions to tell any head's role"
    passed, n_heads = scores[scores["passes"]], scores["name"].nunique()
    often = f", most often “{passed['role'].value_counts().index[0]}”" if len(passed) else ""
    n_with = passed["name"].nunique()
    return (
        f"{n_with} of {n_heads} heads {agree(n_with, 'has', 'have')} a role that no untrained head shows ({len(passed)} "
        f"of {len(scores)} pairs of head and role{often}; {_say_chance(scores)})"
    )
