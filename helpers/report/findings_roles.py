"""Sentences of notebook 05 about roles: who has one, whether it is found again, whether it is needed.

Every function takes tables of the notebook and returns text that is true whether or not something was found.
"""

import pandas as pd

from helpers.report.sentences import agree, count_of, say_interval, say_number
from helpers.stats.cluster_robust import has_enough_data


def describe_roles(scores: pd.DataFrame, n_weak: int, n_weak_untrained: int) -> str:
    """How many heads have a role that no untrained head shows, and the clearest.

    scores: of `heads.score_roles`. n_weak: pairs of head and role beyond the same head untrained alone;
    n_weak_untrained: as many of untrained heads against their neighbours. Also where no head has a role, and
    where the questions are too few to tell.
    """
    n, n_images, n_heads = scores["n"].max(), scores["n_clusters"].max(), scores["name"].nunique()
    asked = f"{count_of(n, 'question')} about {count_of(n_images, 'image')}"
    if not has_enough_data(n, n_images):
        return f"{asked} {agree(n, 'is', 'are')} not enough to tell the role of any head."
    passed, weak = scores[scores["passes"]], _say_weak(n_weak, n_weak_untrained)
    if passed.empty:
        roles = count_of(scores["role"].nunique(), "role")
        return f"None of {count_of(n_heads, 'head')} has any of {roles} (n = {asked}). {weak}"
    clear, counts = passed.loc[passed["score"].idxmax()], passed["role"].value_counts()
    n_with, dead = passed["name"].nunique(), (~passed["reaches_answer"]).sum()
    habits = f"{dead} {agree(dead, 'is a habit', 'are habits')} of the last layer that cannot reach the answer. "
    return (
        f"{n_with} of {count_of(n_heads, 'head')} {agree(n_with, 'has', 'have')} a role; "
        f"{len(passed)} of {len(scores)} pairs of head and role {agree(len(passed), 'passes', 'pass')} "
        f"({_say_chance(scores)}), most often “{counts.index[0]}” (in {counts.iloc[0]}). The clearest is "
        f"{clear['name']} as “{clear['role']}”: {clear['score']:.2f} {say_interval(clear, 2)}, "
        f"{say_number(clear['null'], 2)} untrained (n = {clear['n']:,} questions about "
        f"{clear['n_clusters']:,} images). {habits if dead else ''}{weak}"
    )


def _say_weak(n_weak: int, n_untrained: int) -> str:
    """How many pairs of head and role the same head untrained alone would let pass, and how many untrained ones."""
    also = f"{count_of(n_untrained, 'pair')} of untrained heads against their neighbours"
    verdict = f"{n_weak:,} would pass, but so {agree(n_untrained, 'does', 'do')} {also}"
    if not n_untrained:
        verdict = f"{n_weak or 'none'} would pass, and no untrained head does against its neighbour"
    elif not n_weak:
        verdict = f"none would pass, while {also} {agree(n_untrained, 'does', 'do')}"
    return f"Against the same head untrained alone {verdict}."


def count_lucky(scores: pd.DataFrame) -> float:
    """Pairs of head and role expected above all untrained heads by chance: 1 / (1 + heads) of them."""
    return len(scores) / (1 + scores["name"].nunique())


def _say_chance(scores: pd.DataFrame) -> str:
    if round(count_lucky(scores)) >= scores["passes"].sum():
        return f"no more than chance alone would give: about {count_lucky(scores):.0f}"
    return f"chance alone: about {count_lucky(scores):.0f}"


def describe_stability(
    again: pd.DataFrame, changes: pd.DataFrame, gained: int, given_up: int
) -> str:
    """Whether roles are found again in other images and other models, and what fine-tuning changed.

    again: of `heads.compare_roles`, a row a comparison and role; changes: of `heads.compare_scores`. gained,
    given_up: pairs of head and role that pass after fine-tuning only, and before it only. Also where no score
    sets the heads apart, where the questions are too few for verdicts, and where no change is beyond chance.
    """
    said = "; ".join(
        f"{'those ' if name.startswith('before') else '' if name.startswith('another') else 'the '}{name}: "
        f"{_say_agreement(own)}"
        for name, own in again.groupby("comparison", sort=False)
    )
    sure = changes[
        (changes["p_corrected"] < 0.05) & has_enough_data(changes["n"], changes["n_clusters"])
    ]
    if sure.empty:
        changed = "that fine-tuning changed any head's score cannot be shown with these questions"
    else:
        most = sure.loc[sure["change"].abs().idxmax()]
        first, second = say_number(most["first"], 2), say_number(most["second"], 2)
        changed = (
            f"by fine-tuning heads gained {gained} and lost {given_up} of {len(changes)} possible roles; it "
            f"changed {len(sure)} of {len(changes)} scores beyond chance, most of all {most['name']} as "
            f"“{most['role']}”, from {first} to {second} (change {say_number(most['change'], 2, True)} "
            f"{say_interval(most, 2, True)}, n = {most['n']:,} questions)"
        )
    return f"This model's roles against {said}; {changed}."


def _say_agreement(own: pd.DataFrame) -> str:
    ranks = own["correlation"].dropna()
    spread = "no role sets the heads apart"
    if len(ranks) == 1:
        only = say_number(ranks.iloc[0], 2)
        spread = f"rank correlation over heads {only}, for the one role that sets them apart"
    elif len(ranks):
        low, high, middle = (
            say_number(rank, 2) for rank in (ranks.min(), ranks.max(), ranks.median())
        )
        spread = f"rank correlations over heads from {low} to {high} (median {middle})"
    if not own["told"].all():
        return f"{spread}; not enough questions for verdicts"
    a, b = (own[side].sum() / own["n_heads"].sum() for side in ("passes_a", "passes_b"))
    by_chance = 100 * (a * b + (1 - a) * (1 - b))
    same = 100 * own["agreement"].mean()
    return f"{spread}; {same:.0f} % of verdicts are the same ({by_chance:.0f} % were it chance)"


def describe_cards(cards: pd.DataFrame, n: int, n_removed: int) -> str:
    """Whether the best head of each role is needed by a family.

    cards: of `heads.make_role_cards`. n: questions behind roles; n_removed: questions behind removals. Names
    the strongest need, and every role whose best head is not shown to be needed. Also where no head has any.
    """
    passing = cards[cards["passes"]]
    if passing.empty:
        asked = count_of(n, "question")
        return f"No head has a role here (n = {asked}), so there is no role to check by removal."
    needed = passing[passing["hit_significant"] & (passing["hit_drop"] > 0)]
    whom = "" if (passing["hit_family"] == "all").all() else "a family of questions "
    text = (
        f"Of {count_of(len(passing), 'role')} that some head has, {len(needed) or 'none'} "
        f"{agree(len(needed) or 1, 'belongs', 'belong')} to a head "
        f"whose removal costs {whom}accuracy beyond chance (n = {count_of(n_removed, 'question')})"
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
        f"“{row.role}” ({row.name})"
        for row in passing.drop(needed.index)[["role", "name"]].itertuples(False)
    ]
    doubt = (
        "the answer does not need it, other heads have it too, or it takes more questions to see"
    )
    return f"{text}." + (f" For {', '.join(idle)} no such cost is shown: {doubt}." if idle else "")


def summarise_roles(scores: pd.DataFrame) -> str:
    """How many heads have a role, as a clause of the notebook's answer."""
    if not has_enough_data(scores["n"].max(), scores["n_clusters"].max()):
        return "There are not enough questions to tell any head's role"
    passed, n_heads = scores[scores["passes"]], scores["name"].nunique()
    often = f", most often “{passed['role'].value_counts().index[0]}”" if len(passed) else ""
    n_with = passed["name"].nunique()
    return (
        f"{n_with} of {count_of(n_heads, 'head')} {agree(n_with, 'has', 'have')} a role that no untrained "
        f"head shows ({len(passed)} of {len(scores)} pairs of head and role{often}; {_say_chance(scores)})"
    )
