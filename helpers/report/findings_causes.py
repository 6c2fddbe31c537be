"""Sentences of notebook 05 about causes: what removals cost, what foretells it, what carries an answer.

Its answer too. As in `helpers.report.findings_roles`: tables in, text out, true for either outcome.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.report.findings_roles import summarise_roles
from helpers.report.sentences import Row, agree, count_of, say_interval, say_number

LOOKING = (
    "excess image share of [CLS]",
    "excess image share of words",
)  # measures of looking at the image


class Asked(NamedTuple):
    """The questions that heads are removed on, and what the intact model scores on them, in percent."""

    n: int
    n_images: int
    n_heads: int
    intact: dict  # estimate, low, high

    def say_intact(self) -> str:
        return f"{self.intact['estimate']:.1f} % {say_interval(self.intact)}"


class Special(NamedTuple):
    """The head whose removal costs one family most beyond the next: its name, and its effects on the two."""

    name: str
    first: dict
    second: dict

    def leads(self) -> bool:
        """Whether it costs the first family anything, and more than the second."""
        return self.first["drop"] > max(self.second["drop"], 0)


def describe_ablation(overall: pd.DataFrame, asked: Asked, alike: Row) -> str:
    """What the removal of single heads costs overall, and whether the mean in place of zero says the same.

    overall: effects of zero-ablation on all questions, the costliest head first. alike: rank correlation of
    zero- and mean-ablation.
    """
    cheap, better = (
        overall[overall["drop"] < 1],
        overall[overall["significant"] & (overall["drop"] < 0)],
    )
    by_interval = (
        cheap["high"].clip(lower=300 / asked.n) < 1
    )  # if no answer changes, up to 3 / n may have
    few = "Removing any of them costs at least 1 point in the estimate"
    if len(cheap):
        few = f"Removing {len(cheap)} of them costs less than 1 point in the estimate, "
        few += f"{by_interval.sum()} by the whole interval"
    top, most = overall.iloc[0], "none costs anything"
    if top["drop"] > 0.05:
        doubt = (
            " (not significant after correction)"
            if top["told"]
            else " (not enough questions to tell)"
        )
        doubt = "" if top["significant"] else doubt
        most = f"{top['name']} costs most, {top['drop']:.1f} points {say_interval(top)}{doubt}"
    helps = f"without {' or '.join(better['name'])} the model is better" if len(better) else ""
    ranks = ""
    if not np.isnan(alike["estimate"]):
        found = f"{say_number(alike['estimate'], 2)} {say_interval(alike, 2)}"
        ranks = f" Put to their mean instead, heads rank by cost with correlation {found} to zero."
    return (
        f"Intact, the model scores {asked.say_intact()} on {count_of(asked.n, 'question')} about "
        f"{count_of(asked.n_images, 'image')}. Of its {asked.n_heads} heads, one at a time put to zero, "
        f"{most}. {few}; {helps or 'that any removal helps is not shown'}.{ranks}"
    )


def find_special(told: pd.DataFrame) -> Special | None:
    """The head that serves one family most before any other; None with fewer than two families.

    told: effects of zero-ablation on families with enough questions. A gain counts as no loss: who loses
    nothing is not served.
    """
    wide = told[told["family"] != "all"].pivot_table(index="name", columns="family", values="drop")
    if wide.shape[1] < 2:
        return None
    ordered = np.sort(wide.clip(lower=0), axis=1)
    name = wide.index[(ordered[:, -1] - ordered[:, -2]).argmax()]
    return Special(name, *told[told["name"] == name].nlargest(2, "drop").to_dict("records"))


def describe_special(special: Special | None) -> str:
    """Which family is lost without the most specific head, and that the others are not.

    Also where no family loses more than the next, where that is not significant, and with fewer than two.
    """
    if special is None:
        few = "Fewer than two families have 10 questions on 5 images"
        return f"{few}: not enough questions to tell whom a head serves."
    if not special.leads():
        return "No head's removal costs one family of questions more accuracy than the next, in the estimate."
    name, first, second = special
    doubt = "; this is not significant after correction over all heads and families"
    return (
        f"The most specific head is {name}: without it “{first['family']}” questions lose "
        f"{first['drop']:.1f} points {say_interval(first)} (n = {first['n']:,}), and no other family more "
        f"than {max(second['drop'], 0):.1f} (“{second['family']}” {say_interval(second)}, "
        f"n = {second['n']:,}){'' if first['significant'] else doubt}."
    )


def describe_layers(whole: pd.DataFrame, joint: pd.DataFrame, asked: Asked) -> str:
    """What the removal of whole layers costs, and whether a layer's heads stand in for each other.

    whole: effects of leaving a layer out, on all questions, by layer. joint: points that all heads of a layer
    cost together beyond their sum, with p_corrected.
    """
    if not whole["told"].any():
        few = f"{count_of(asked.n, 'question')} {agree(asked.n, 'is', 'are')}"
        return f"{few} not enough to tell what a layer's removal costs."
    high, low = whole["drop"].idxmax(), whole["drop"].idxmin()
    said = [
        f"L{at}: {say_number(whole['drop'][at])} points {say_interval(whole.loc[at])}"
        for at in (high, low)
    ]
    free = [
        f"L{at}" for at in whole.index if not (whole["significant"][at] and whole["drop"][at] > 0)
    ]
    shown = "Every layer's removal costs accuracy beyond chance."
    if len(free) == len(whole):
        shown = "That any layer's removal costs accuracy is not shown."
    elif free:
        shown = f"That {', '.join(free)} {agree(len(free), 'costs', 'cost')} anything is not shown."
    gaps = joint[(joint["p_corrected"] < 0.05) & (joint["estimate"] > 0)]
    joined = "No layer's heads cost more together than one by one in sum, beyond chance."
    if len(gaps):
        gap = gaps.loc[gaps["estimate"].idxmax()]
        joined = (
            f"All heads of L{gap['layer']:.0f} together cost {gap['estimate']:.1f} points "
            f"{say_interval(gap)} more than one by one in sum: they stand in for each other."
        )
    return (
        f"Left out, the costliest layer is {said[0]}, the cheapest {said[1]} (n = {asked.n:,} questions; "
        f"intact {asked.say_intact()}). {shown} {joined}"
    )


def find_correlations(agreement: pd.DataFrame) -> dict[str, Row] | None:
    """Rank correlations of measures with the accuracy lost when heads are put to zero, by measure.

    agreement: of `importance.rank_measures`. None where one that sentences name has no value.
    """
    rows = agreement[
        (agreement["second"] == "accuracy lost, head zeroed") & (agreement["over"] == "all heads")
    ]
    rows = rows.set_index("first")
    named = [*LOOKING, "gradient", "number of the layer"]
    return None if rows.loc[named, "correlation"].isna().any() else rows.to_dict("index")


def describe_importance(foretold: dict[str, Row] | None, n_heads: int, n: int) -> str:
    """Which measures rank heads as their removal does.

    foretold: of `find_correlations`; None where no removal has an effect that can be told from nothing.
    """
    if foretold is None:
        return (
            f"No head's removal has an effect that can be told from nothing with {count_of(n, 'question')}, "
            "so there is no importance to predict."
        )
    quoted = [
        _say_correlation(foretold[name]) for name in (*LOOKING, "number of the layer", "gradient")
    ]
    more = any(foretold[name]["low"] > 0 for name in LOOKING)
    less = any(foretold[name]["high"] < 0 for name in LOOKING)
    verdict = "that attention to the image predicts what a head's removal costs is not shown"
    if more and less:
        verdict = "whether heads that attend more to the image cost more depends on the query"
    elif more or less:
        verdict = f"heads that attend more to the image cost {'more' if more else 'less'}"
    by_gradient = "heads with larger gradients cost more"
    if not foretold["gradient"]["low"] > 0:
        by_gradient = f"that {by_gradient} is not shown"
    return (
        f"Over {n_heads} heads, the accuracy lost without a head has rank correlation {quoted[0]} with the excess image "
        f"share of [CLS], {quoted[1]} with that of the words (without the last layer's), {quoted[2]} with the number of the layer alone, and "
        f"{quoted[3]} with the gradient (n = {n:,} questions): {verdict}; {by_gradient}."
    )


def _say_correlation(row: Row) -> str:
    return f"{say_number(row['correlation'], 2)} {say_interval(row, 2)}"


def describe_patching(
    carriers: pd.DataFrame | None, agreement: pd.DataFrame | None, n_pairs: int
) -> str:
    """Which heads carry what differs between two images, and whether those are the needed ones.

    carriers: a row a family and head with share (percent of the change), the interval and significant; None:
    too few pairs. agreement: of `importance.rank_measures`; None where no removal can be told from nothing.
    """
    if carriers is None:
        few = f"{count_of(n_pairs, 'pair')} of questions in the same words {agree(n_pairs, 'is', 'are')}"
        return f"{few} not enough to tell which heads carry an answer."
    moving = carriers[carriers["family"] == "all"]
    beyond = carriers[carriers["significant"] & (carriers["share"] > 0)]
    sure, own = (
        beyond[beyond["family"] == "all"],
        beyond[beyond["family"] != "all"].nlargest(1, "share"),
    )
    strong = (sure if len(sure) else moving).nlargest(1, "share").iloc[0]
    mostly = "".join(
        f", and in “{row['family']}” pairs (n = {row['n']}) {row['name']}: {_say_share(row)}"
        for row in own.to_dict("records")
    )
    related = "" if agreement is None else _say_needed(agreement)
    part = "part of the change from one image's answer to another's"
    pairs = f"n = {n_pairs:,} pairs of questions in the same words"
    if sure.empty:
        return (
            f"That any of {len(moving)} heads carries {part} is not shown ({pairs}); the "
            f"largest estimate is {strong['name']}'s: {_say_share(strong)}.{related}"
        )
    return (
        f"{len(sure)} of {len(moving)} heads {agree(len(sure), 'carries', 'carry')} {part} ({pairs}), most "
        f"of all {strong['name']}: {_say_share(strong)}{mostly}.{related}"
    )


def _say_share(row: Row) -> str:
    return f"{say_number(row['share'], 0)} % {say_interval(row, 0)}"


def _say_needed(agreement: pd.DataFrame) -> str:
    first, second = agreement["first"], agreement["second"]
    costly = agreement[
        first.eq("accuracy lost, head zeroed") & second.eq("change carried (5.9)")
    ].iloc[0]
    if np.isnan(costly["correlation"]):
        return ""
    same = "go together" if costly["low"] > 0 else "are not shown to go together"
    same = "go against each other" if costly["high"] < 0 else same
    return (
        f" Heads rank by it with correlation {_say_correlation(costly)} to what their removal costs: to be "
        f"needed and to carry what differs between images {same}."
    )


def describe_answer(
    scores: pd.DataFrame, overall: pd.DataFrame, asked: Asked, special: Special | None,
    foretold: dict[str, Row] | None, carriers: pd.DataFrame | None,
) -> str:  # fmt: skip
    """The notebook's answer, from the facts of the findings: roles, costs, who is served, what foretells."""
    parts = [
        f"{summarise_roles(scores)}; {_answer_costs(overall, asked)} (n = {asked.n:,} questions).",
        _answer_special(special),
        _answer_foretold(foretold),
        _answer_carried(carriers),
    ]
    return " ".join(filter(None, parts))


def _answer_costs(overall: pd.DataFrame, asked: Asked) -> str:
    sure, n_cheap = (
        overall[overall["significant"] & (overall["drop"] > 0)],
        (overall["drop"] < 1).sum(),
    )
    if not overall["told"].any():
        return "there are not enough questions to tell what removing a head costs"
    if sure.empty:
        return "that removing any one head costs accuracy is not shown"
    top = sure.iloc[0]
    cheap = f"{n_cheap or 'none'} {agree(n_cheap or 1, 'is', 'are')}"
    return (
        f"removing one costs up to {top['drop']:.1f} points of accuracy {say_interval(top)} ({top['name']}; "
        f"intact: {asked.say_intact()}), while {cheap} estimated to cost less than 1"
    )


def _answer_special(special: Special | None) -> str:
    if special is None or not (special.first["significant"] and special.leads()):
        return ""
    name, first, second = special
    return (
        f"The most specific is {name}: without it “{first['family']}” questions lose {first['drop']:.1f} "
        f"points {say_interval(first)}, no other family more than {max(second['drop'], 0):.1f}."
    )


def _answer_foretold(foretold: dict[str, Row] | None) -> str:
    if foretold is None:
        return ""
    grad, looking = foretold["gradient"], foretold[LOOKING[0]]
    by_gradient, by_looking = grad["low"] > 0, looking["low"] > 0
    looks = "[CLS]'s attention to the image"
    also = {
        (True, True): f"{looks} does too", (True, False): f"{looks} is not shown to",
        (False, True): f"but {looks} does", (False, False): f"nor is {looks}",
    }[by_gradient, by_looking]  # fmt: skip
    if looking["high"] < 0:
        also = f"{'and' if by_gradient else 'but'} heads whose [CLS] attends more to the image cost less"
    foretells = "foretells" if by_gradient else "is not shown to foretell"
    return (
        f"The gradient {foretells} what a head's removal costs (rank correlation "
        f"{_say_correlation(grad)}), {also} ({_say_correlation(looking)})."
    )


def _answer_carried(carriers: pd.DataFrame | None) -> str:
    if carriers is None:
        return ""
    moving = carriers[carriers["family"] == "all"]
    strong = moving.loc[moving["share"].idxmax()]
    if not (strong["significant"] and strong["share"] > 0):
        return ""
    most = "carries more of the answer than any other head"
    return f"Between images, {strong['name']} {most}: {_say_share(strong)}."
