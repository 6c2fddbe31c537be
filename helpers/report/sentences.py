"""Sentences that state what a run's tables show, one section a notebook.

    sentences.describe_roles(scores, n_weak, n_weak_untrained)      # str

Functions take a notebook's tables and return text that is true for either outcome: found, not
found, the other way round, or too few questions to tell. Shares (0 to 1) are said in points of
100, accuracy in percent. n counts questions and n_clusters images; `told` and `has_enough_data`
say that these are enough; p_corrected below 0.05 is "beyond chance".
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.stats.cluster_robust import MIN_GROUPS, has_enough_data

Row = Mapping | pd.Series
Table = pd.DataFrame
Names = Sequence[str]
SHARE = {"digits": 0, "sign": True, "scale": 100}  # how shares are said
FINE_SHARE = {"digits": 1, "sign": True, "scale": 100}
WHOLE = {"digits": 0, "sign": True}  # how points of accuracy lost are said
RANK = {"digits": 2, "sign": True}  # how rank correlations of families are said
NOT_TOLD = "not enough questions to tell"


def say_interval(row: Row, digits: int = 1, sign: bool = False, scale: float = 1) -> str:
    """The 95 % interval of a row: "[1.2, 3.4]", or "[no interval]"; the style is `say_number`'s."""
    if np.isnan(row["low"]) or np.isnan(row["high"]):
        return "[no interval]"
    return f"[{', '.join(say_number(row[side], digits, sign, scale) for side in ('low', 'high'))}]"


def say_number(value: float, digits: int = 1, sign: bool = False, scale: float = 1) -> str:
    """A number scaled (100: shares to points) and rounded: never "-0.0"; sign: "+3.4"."""
    return f"{round(scale * value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def say_estimate(row: Row, column: str = "estimate", unit: str = "", **style: float) -> str:
    """A number with its unit and interval: "+3.4 points [+1.2, +5.6]". style: of `say_number`."""
    return f"{say_number(row[column], **style)}{unit} {say_interval(row, **style)}"


_say_share = partial(say_estimate, unit=" points", **SHARE)
_say_drop = partial(say_estimate, column="drop", unit=" points")
_say_part = partial(say_estimate, column="share", unit=" %", digits=0)
_say_correlation = partial(say_estimate, column="correlation", digits=2)


def count_of(number: int, noun: str) -> str:
    """A count with its noun: "1 head", "1,200 heads"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def agree(number: int, one: str = "is", many: str = "are") -> str:
    """The form of a verb that goes with a number: `agree(1, "stays", "stay")`."""
    return one if number == 1 else many


def _by_sign(row: Row, above: str, below: str, between: str) -> str:
    """One of three texts: the whole interval lies above 0, below 0, or neither."""
    return above if row["low"] > 0 else below if row["high"] < 0 else between


def _by_p(row: Row, above: str, below: str, between: str) -> str:
    """One of three texts: above 0 with p < 0.05, below 0 with p < 0.05, or neither."""
    return between if not row["p"] < 0.05 else above if row["estimate"] > 0 else below


# Notebook 04: attention by question family


BANDS = {  # a procedure is off where its whole interval lies outside
    "single test": (0, 0.07), "after correction": (0, 0.05), "interval": (0.92, 1),
}  # fmt: skip


class Separation(NamedTuple):
    """How many heads and queries, and pairs of families in them, were tested and told apart."""

    tested: int  # heads and queries
    separating: int  # of these, where families differ (omnibus, corrected)
    pairs_tested: int
    n: int  # questions


def say_too_few(told: Names, n_families: int, n: int, n_images: int) -> str:
    """Why families cannot be compared. told: the families that have enough questions."""
    return (
        "Not enough questions to tell: a comparison needs two families with at least 10 questions "
        f"on 5 images each, and of the {n_families} here (n = {n:,} questions on {n_images:,} "
        f"images) {len(told) or 'none'} has so many."
    )


def describe_family_layers(by_layer: Table, told: Names, uniform: float) -> str:
    """In which layer families lie furthest apart, for both queries; "" where none compare."""
    rows = by_layer[by_layer["family"].isin(told)]
    found = [*filter(None, (_describe_query(rows, query) for query in ("[CLS]", "words")))]
    if len(told) < 2 or not found:
        return ""
    baseline = f"Points count from uniform attention, which is {100 * uniform:.0f} % visual here"
    return f"{' '.join(found)} {baseline}; mean over heads."


def _describe_query(rows: Table, query: str) -> str:
    last = rows["layer"].max()
    rows = rows[(rows["query"] == query) & ((query == "[CLS]") | (rows["layer"] < last))]
    if rows.empty:
        return ""
    layer = rows.groupby("layer")["estimate"].agg(lambda means: means.max() - means.min()).idxmax()
    ends = rows[rows["layer"] == layer].sort_values("estimate").iloc[[-1, 0]].to_dict("records")
    most, least = (f"{_say_share(row)} ({row['family']}, n = {row['n']:,})" for row in ends)
    overlap = " (their intervals overlap: this alone shows no difference)"
    return (
        f"With the {query} query, families lie furthest apart in L{layer}: from {most} down to "
        f"{least}{'' if ends[0]['low'] > ends[1]['high'] else overlap}."
    )


def describe_pair(row: Row) -> str:
    """Two families that differ in a head, the one with more attention to the image first."""
    more, less = row["label"].split(" > ")
    low, high = sorted(abs(row[side]) for side in ("low", "high"))
    style = {"digits": 0 if row["size"] >= 0.1 else 1, "scale": 100}
    size = {"size": row["size"], "low": low, "high": high}
    return (
        f"{more} above {less} by {say_estimate(size, 'size', ' points', **style)} in "
        f"L{row['layer']}H{row['head']}, {row['query']} query (Hedges g "
        f"{abs(row['hedges_g']):.1f}, n = {row['n_a'] + row['n_b']:,} questions)"
    )


def describe_heads(found: Table, counts: Separation) -> str:
    """How many heads and pairs tell families apart. found: pairs beyond chance, largest first."""
    largest = ": no difference between families could be shown"
    if len(found):
        largest = f". The largest: {describe_pair(found.iloc[0])}"
    return (
        f"Families differ in {counts.separating} of {counts.tested} heads and queries (omnibus); "
        f"{len(found)} of {counts.pairs_tested} pairwise differences {agree(len(found))} beyond "
        f"chance (corrected over all; about {0.05 * counts.pairs_tested:.0f} would pass "
        f"uncorrected by chance){largest}."
    )


def describe_adjusted(both: Table, n: int, n_varied: int, n_told: int) -> str:
    """Whether differences stay at equal length and patch count. both: pairs with both estimates.
    n_varied: of n_told families, how many have questions of several lengths."""
    if both.empty:
        few = "Cannot be told here: question length and patch count go with the family"
        return f"{few}, so that their parts cannot be separated."
    n_raw, n_adjusted = int(both["apart"].sum()), int((both["adjusted_p"] < 0.05).sum())
    kept, verb = "no more than before can be shown", agree(n_adjusted)
    if n_raw:
        n_kept = (both["verdict"] == "survives").sum()
        stays = agree(n_kept, "keeps its sign and stays", "keep their sign and stay")
        kept = f"{n_kept} of {n_raw} differences {stays} beyond chance"
    elif n_adjusted:
        found = f"{count_of(n_adjusted, 'difference')} {verb} beyond chance"
        kept = f"{found} that {verb} not without the adjustment"
    change = 100 * (both["adjusted"].abs() - both["difference"].abs()).median()
    lengths = f"{n_varied} of {n_told} families; for the rest the adjustment leans on these"
    if n_varied == n_told:
        lengths = "every family"
    elif not n_varied:
        lengths = "no family: the adjustment is for patch count alone"
    return (
        f"At equal length and patch count {kept} (n = {n:,} questions); the size of a difference "
        f"changes by {say_number(change, sign=True)} points (median). Length varies within "
        f"{lengths}."
    )


def describe_calibration(rates: Table, n: int, n_images: int, likeness: float) -> str:
    """How often tests and intervals are wrong where the truth is known."""
    rows = rates.set_index("procedure").to_dict("index")
    rate = {name: say_estimate(row, "rate", " %", scale=100) for name, row in rows.items()}
    bands = rates["kind"].map(BANDS).str
    off = rates.loc[(rates["low"] > bands[1]) | (rates["high"] < bands[0]), "procedure"]
    verdict = f"Too often wrong: {', '.join(off)}"
    if off.empty:
        verdict = "Within the error of the simulation all are as good as asked for here (single "
        verdict += "tests at most 7 %, after correction 5 %, intervals at least 92 %)"
    return (
        f"With no difference between families, on these {n:,} questions and {n_images:,} images "
        f"(values on one image correlated by {likeness:.2f}, as in the head where they are most "
        f"alike), a single comparison of two families rejects in {rate['pair']} of simulations "
        f"(promised: 5 %), at equal length and patch count in {rate['pair, adjusted']}. After "
        f"correction four heads yield any false finding in {rate['any pair, Holm']} (Holm), and "
        f"{rate['false among found, B-H']} of what is found is false (Benjamini-Hochberg). 95 % "
        f"intervals hold a family's mean in {rate['mean of a family']} and a difference in "
        f"{rate['difference of two']}. {verdict}."
    )


def describe_power(pairs: Table, level: float) -> str:
    """The smallest difference that could be seen, for the luckiest and unluckiest pair of families.
    level: what p, not corrected, has to be below. "" where nothing was tested."""
    tested = pairs.dropna(subset=["detectable"]).groupby(["group_a", "group_b"], sort=False)
    smallest = tested.agg({"detectable": "median", "n_a": "first", "n_b": "first"})
    if smallest.empty:
        return ""
    ends = [
        f"{100 * row.detectable:.1f} points between {' and '.join(row.Index)} (n = {row.n_a:,} and "
        f"{row.n_b:,})"
        for row in smallest.sort_values("detectable").iloc[[0, -1]].itertuples()
    ]
    other = f", and {ends[1]} at the other end" if len(smallest) > 1 else ""
    n_tested, n_missed = pairs["p"].count(), (pairs["p_corrected"] >= 0.05).sum()
    rest = "All measured differences are beyond chance."
    if n_missed:
        rest = (
            f"{n_missed:,} of the {n_tested:,} measured differences {agree(n_missed)} not beyond "
            "chance, which says little about differences below these sizes."
        )
    return (
        "The smallest difference that a comparison here could see (80 % power; to be found among "
        f"these {n_tested:,} tests, p has to lie below {level:.2g}; median over heads) is "
        f"{ends[0]}{other}. {rest}"
    )


def describe_controls(checked: Table, by_kind: Table) -> str:
    """Whether questions that need the image look at it more than controls that do not."""
    if checked.empty:
        return "Not enough questions to tell: too few image-needing questions or too few controls."
    beyond = checked[checked["p_corrected"] < 0.05]["difference"]
    top = checked.loc[checked["difference"].idxmax()]
    late = checked[checked["query"] == "[CLS]"].iloc[-1]
    ends = by_kind[(by_kind["query"] == "[CLS]") & (by_kind["layer"] == by_kind["layer"].max())]
    means = ends.groupby("kind", observed=True)["estimate"].mean()
    kinds = ("needs the image", "words are enough")
    needing, control = (say_number(means[kind], **SHARE) for kind in kinds)
    shows = "shows what it should" if late["low"] > 0 else "does not show what was expected"
    return (
        "At equal family, questions that need the image look at it more than words-only controls "
        f"in {(beyond > 0).sum()} of {len(checked)} layers and queries, and less in "
        f"{(beyond < 0).sum()} (beyond chance, corrected): {_say_share(top, 'difference')} in "
        f"L{top['layer']} ({top['query']} query), {_say_share(late, 'difference')} in the last "
        f"layer's [CLS] query, which the answer is read from (there {needing} against {control} "
        f"from uniform, mean over families; n = {top['n_a']:,} questions and {top['n_b']:,} "
        f"controls). {'The' if late['low'] > 0 else 'In the last layer the'} measure {shows}."
    )


def describe_examples(here: Table, aim: Table, layer: int, trio: list[str]) -> str:
    """How the families of the example maps look at the image, and whether at the boxes."""
    parts = []
    for family in [name for name in trio if here["enough"].get(name, False)]:
        part = f"{family}: {_say_share(here.loc[family])}"
        if aim["enough"].get(family, False):
            hits = _say_share(aim.loc[family])
            part += f", favourite patch in a box asked about {hits} against chance"
        parts.append(f"{part} (n = {here.loc[family, 'n']:,})")
    unknown = " This data has no boxes to say whether it looks at what is asked about."
    unknown = "" if aim["estimate"].notna().any() else unknown
    if not parts:
        return f"Not enough questions of {', '.join(trio)} to tell.{unknown}"
    looks = f"How much more than uniform [CLS] looks at the image in L{layer} (mean over heads)"
    return f"{looks}: {'; '.join(parts)}.{unknown}"


def describe_family_answer(
    found: Table, counts: Separation, both: Table, ranks: Table, checks: Table
) -> str:
    """The notebook's answer: do families differ, does it stay when adjusted, do shares rank them?
    ranks: of the last layer's share first; checks: empty where no truth is known."""
    text = (
        f"None of {counts.pairs_tested} differences between families in {counts.tested} heads "
        f"and queries is beyond chance (n = {counts.n:,} questions): these questions do not "
        "show that the division of attention depends on what is asked."
    )
    if len(found):
        kept = "length and patch count cannot be told apart from the family here"
        if len(both):
            n_kept, n_raw = (both["verdict"] == "survives").sum(), both["apart"].sum()
            stays = f"{agree(n_kept, 'stays', 'stay')} at equal question length and patch count"
            kept = f"{n_kept} of {n_raw} pairwise differences {stays}"
        text = (
            f"{'Yes' if counts.separating >= counts.tested / 2 else 'In places'}: families differ "
            f"in how much they look at the image in {counts.separating} of {counts.tested} heads "
            f"and queries, most of all {describe_pair(found.iloc[0])}; {kept}."
        )
    late = ranks.iloc[0]
    if pd.notna(late["estimate"]):
        goes = _by_p(late, "goes with", "goes against", "is not shown to go with")
        text += (
            f" From family to family, the [CLS] share of the last layer {goes} the accuracy lost "
            f"with another image (Spearman {say_estimate(late, **RANK)}, {late['n']} families)."
        )
    if len(checks):
        wrong, n_right = ", ".join(checks.loc[~checks["right"], "measure"]), checks["right"].sum()
        text += (
            f" Of {len(checks)} measures {n_right} {agree(n_right, 'tells', 'tell')} questions "
            "that need the image from controls that do not"
            f"{f' (not shown for: {wrong})' if wrong else ''}."
        )
    return text


# Notebook 04: classes of words, and what answers need


def describe_words(against: Table, strongest: Table, uniform: float) -> str:
    """Which class of words looks at the image more than function words of the same questions."""
    tested = against.dropna(subset=["p"])
    if tested.empty or strongest.empty:
        return "Not enough questions to tell which words look at the image."
    beyond = against[against["p_corrected"] < 0.05]
    above, below = beyond[beyond["estimate"] > 0], beyond[beyond["estimate"] < 0]
    firm = above[(above["placed"] > 0) & (above["p_corrected_placed"] < 0.05)]
    first = strongest.iloc[0]
    others = tested[tested["word_class"] != first["word_class"]]
    others = others.sort_values("estimate", ascending=False).drop_duplicates("word_class")
    rest = "; ".join(map(_say_class, others.to_dict("records")))
    rest = f" The other classes, where they are highest: {rest}." if rest else ""
    at_place = ", as they stand and at equal place in the question" if len(firm) else ""
    lead, more = "No class of words can be shown to look more", "; the highest is"
    if len(above):
        lead, more = "Of the classes of words that look more", f"{at_place}, the highest is"
    return (
        f"{lead} at the image than the function words of the same questions{more} "
        f"{_say_class(first)} (uniform attention: {100 * uniform:.0f} % visual; the last "
        f"layer's words, which no answer reads, left out).{rest} Of {len(tested)} layers and "
        f"classes {len(above)} {agree(len(above), 'lies', 'lie')} above the function words and "
        f"{len(below)} below beyond chance (corrected){_say_place(above, firm)}."
    )


def _say_place(above: Table, firm: Table) -> str:
    if above.empty:
        return ""
    placeable = above["p_placed"].notna().sum()
    if not placeable:
        return "; whether by class or by place cannot be told"
    stay = agree(len(firm), "stays", "stay")
    return f"; at equal place in the question {len(firm)} of {placeable} of these {stay} above"


def _say_class(row: Row) -> str:
    """A class against the function words of its questions, and at equal place if that is known."""
    at_place = ""
    if pd.notna(row["placed"]):
        placed = {"estimate": row["placed"], "low": row["low_placed"], "high": row["high_placed"]}
        at_place = f"; at equal place {say_estimate(placed, **FINE_SHARE)}"
    found, asked = _say_share(row, **FINE_SHARE), count_of(row["n"], "question")
    return f"{row['word_class']}: {found} in L{row['layer']} (n = {asked}{at_place})"


def describe_words_read(extra: Table) -> str:
    """From which words [CLS] reads in the last layer, as multiples of uniform attention."""
    tested = extra.dropna(subset=["p"]).sort_values("estimate", ascending=False)
    if tested.empty:
        return "Not enough questions to tell from which words [CLS] reads."
    parts = [
        f"{row['word_class']} {row['times']:.1f}, against {row['times'] - row['estimate']:.1f} "
        f"(difference {say_estimate(row, sign=True)}, n = {row['n']:,}"
        f"{'' if row['p_corrected'] < 0.05 else '; not beyond chance'})"
        for row in tested.to_dict("records")
    ]
    return (
        "In the last layer the [CLS] query pays one word piece this many times what uniform "
        "attention would (mean over heads), against the function words of the same questions: "
        f"{'; '.join(parts)}. Corrected over classes."
    )


def describe_losses(by_need: Table, losses: Names, intact: Row) -> str:
    """What families lose when something is withheld: the most and the least of each loss."""
    if not by_need["enough"].any():
        size = f"n = {intact['n']:,} questions on {intact['n_clusters']:,} images"
        return f"Not enough questions to tell what any family loses ({size})."
    told = by_need[(by_need["kind"] == "questions") & by_need["enough"]].dropna(subset=["estimate"])
    parts = [_say_loss(told[told["measure"] == measure], measure) for measure in losses]
    return (
        f"Points of VQA accuracy lost (intact: {intact['estimate']:.1f} {say_interval(intact)}, "
        f"n = {intact['n']:,} questions; words-only controls, where known, left out of the "
        f"families): {'; '.join(parts)}. Corrected over all families and losses."
    )


def _say_loss(rows: Table, measure: str) -> str:
    if rows.empty:
        return f"{measure}: not enough questions to tell"
    ends = rows.loc[list(dict.fromkeys([rows["estimate"].idxmax(), rows["estimate"].idxmin()]))]
    spans = " down to ".join(
        f"{row['family']} {say_estimate(row, **WHOLE)} (n = {row['n']:,})"
        for row in ends.to_dict("records")
    )
    less = ((rows["p_corrected"] < 0.05) & (rows["estimate"] > 0)).sum()
    return f"{measure}: a loss beyond chance in {less} of {len(rows)} families, {spans}"


def describe_ranks(ranks: Table, shares: Names, asked: Table, n_families: int) -> str:
    """Whether shares of attention, and other measures, rank families as the loss of the image does.
    ranks: a row a measure, n of families, p by exact permutation. asked: every question's
    measures, NaN where left out."""
    ranked, told = ranks.dropna(subset=["estimate"]), int(ranks["n"].max())
    if ranked.empty and told >= MIN_GROUPS:
        return (
            "There are no ranks to compare: exchanging the image, or each of the measures, comes "
            f"to the same in all of the {told} families."
        )
    if ranked.empty:
        return (
            "Not enough questions to tell whether the measures rank the families alike: at least "
            f"{MIN_GROUPS} families need 10 questions on 5 images each, and of the {n_families} "
            f"here {told or 'none'} {agree(told or 1, 'has', 'have')} so many."
        )
    sure = (ranked["p"] < 0.05) & (ranked["estimate"] > 0)
    agreeing = (ranked["measure"].isin(shares) & sure).sum()
    sizes = asked[["image exchanged", "MM-SHAP"]].notna().sum()
    ways = ("the same way", "the opposite way", "in no way that can be told")
    parts = [
        f"{row['measure']} {say_estimate(row, **RANK)} ({_by_p(row, *ways)})"
        for row in ranked.to_dict("records")
    ]
    unknown = ranks.loc[ranks["estimate"].isna(), "measure"]
    parts += [f"{name} cannot be told" for name in unknown]
    return (
        f"Of {len(shares)} shares of attention, {agreeing} can be shown to rank the families as "
        f"the loss of the image does. Over {told} families (n = {sizes['image exchanged']:,} "
        f"questions, controls left out; MM-SHAP {sizes['MM-SHAP']:,}), Spearman correlation with "
        f"the accuracy lost when the image is exchanged: {'; '.join(parts)}. 0 is no agreement; "
        f"with {told} families even a large correlation says little about other families."
    )


def describe_needs(checks: Table, costs: Sequence[Row], losses: Names, untold: Names = ()) -> str:
    """Which measures tell questions that need the image from controls that do not. costs: points
    that needing questions, and controls, lose with another image; untold: measures that checks has
    no row of."""
    if checks.empty:
        few = (
            "Not enough questions to tell: too few words-only controls, or too few other questions"
        )
        return f"{few} of the same families."
    needing, control = (f"{row['estimate']:.1f} points {say_interval(row)}" for row in costs)
    parts = [_say_check(row, row["measure"] in losses) for row in checks.to_dict("records")]
    parts += [f"{measure}: not enough questions to tell" for measure in untold]
    return (
        f"Exchanging the image costs the questions that need it {needing} (n = {costs[0]['n']:,}) "
        f"of VQA accuracy, and words-only controls of the same families {control} (n = "
        f"{costs[1]['n']:,}). Needing minus control at equal family (0: no difference), and how "
        "often the needing question of a pair has the larger value (0.5: chance), with 95 % "
        f"intervals for each measure alone: {'; '.join(parts)}."
    )


def _say_check(row: Row, of_accuracy: bool) -> str:
    verdict = "right" if row["right"] else "cannot tell"
    if not row["right"] and (row["high"] < 0 or row["auc_high"] < 0.5):
        verdict = "not right"
    unit = " points of accuracy" if of_accuracy else " points"
    ends = {"low": row["auc_low"], "high": row["auc_high"]}
    return (
        f"{row['measure']} {say_estimate(row, 'difference', unit, **WHOLE)}, AUC {row['auc']:.2f} "
        f"{say_interval(ends, 2)} (n = {row['n_a']:,} and {row['n_b']:,}): {verdict}"
    )


# Notebook 05: roles of heads


def describe_roles(scores: Table) -> str:
    """How many heads have a role that random heads do not show, and an example."""
    n, n_images, n_heads = scores["n"].max(), scores["n_clusters"].max(), scores["name"].nunique()
    asked = f"{count_of(n, 'question')} about {count_of(n_images, 'image')}"
    if not has_enough_data(n, n_images):
        return f"{asked} {agree(n)} not enough to tell the role of any head."
    passed = scores[scores["passes"]]
    if passed.empty:
        roles = count_of(scores["role"].nunique(), "role")
        return f"None of {count_of(n_heads, 'head')} has any of {roles} (n = {asked})."
    clear, counts = passed.loc[passed["score"].idxmax()], passed["role"].value_counts()
    n_with, dead = passed["name"].nunique(), (~passed["reaches_answer"]).sum()
    beyond = (passed["score"] > passed["null"]).sum()
    habits = agree(dead, "is a habit", "are habits")
    habits = f" {dead} {habits} of the last layer that cannot reach the answer." if dead else ""
    return (
        f"{n_with} of {count_of(n_heads, 'head')} {agree(n_with, 'has', 'have')} a role; "
        f"{len(passed)} of {len(scores)} pairs of head and role "
        f"{agree(len(passed), 'passes', 'pass')}, {beyond} of them beyond every random head, most "
        f"often “{counts.index[0]}” (in {counts.iloc[0]}). For example, {clear['name']} as "
        f"“{clear['role']}” scores {clear['score']:.2f} {say_interval(clear, 2)}, the highest "
        f"random head {say_number(clear['null'], 2)} (n = {clear['n']:,} questions about "
        f"{clear['n_clusters']:,} images).{habits}"
    )


def describe_stability(again: Table, changes: Table, gained: int, given_up: int) -> str:
    """Whether roles are found again in other images and models, and what fine-tuning changed.
    gained, given_up: pairs of head and role that pass after fine-tuning only, and before it
    only."""
    parts = []
    for name, rows in again.groupby("comparison", sort=False):
        article = "those " if name.startswith("before") else "the "
        parts.append(f"{article}{name}: {_say_agreement(rows)}")
    told = has_enough_data(changes["n"], changes["n_clusters"])
    sure = changes[(changes["p_corrected"] < 0.05) & told]
    changed = "that fine-tuning changed any head's score cannot be shown with these questions"
    if len(sure):
        most = sure.loc[sure["change"].abs().idxmax()]
        changed = (
            f"by fine-tuning heads gained {gained} and lost {given_up} of {len(changes)} possible "
            f"roles; it changed {len(sure)} of {len(changes)} scores beyond chance, for example "
            f"{most['name']} as “{most['role']}”, from {say_number(most['first'], 2)} to "
            f"{say_number(most['second'], 2)} (change {say_estimate(most, 'change', **RANK)}, n = "
            f"{most['n']:,} questions)"
        )
    return f"This model's roles against {'; '.join(parts)}; {changed}."


def _say_agreement(rows: Table) -> str:
    ranks = rows["correlation"].dropna()
    spread = "no role sets the heads apart"
    if len(ranks) == 1:
        only = say_number(ranks.iloc[0], 2)
        spread = f"rank correlation over heads {only}, for the one role that sets them apart"
    elif len(ranks):
        ends = (say_number(rank, 2) for rank in (ranks.min(), ranks.max(), ranks.median()))
        spread = "rank correlations over heads from {} to {} (median {})".format(*ends)
    if not rows["told"].all():
        return f"{spread}; not enough questions for verdicts"
    a, b = (rows[side].sum() / rows["n_heads"].sum() for side in ("passes_a", "passes_b"))
    by_chance, same = 100 * (a * b + (1 - a) * (1 - b)), 100 * rows["agreement"].mean()
    return f"{spread}; {same:.0f} % of verdicts are the same ({by_chance:.0f} % were it chance)"


def summarise_roles(scores: Table) -> str:
    """How many heads have a role, as a clause of the notebook's answer."""
    if not has_enough_data(scores["n"].max(), scores["n_clusters"].max()):
        return "There are not enough questions to tell any head's role"
    passed, n_heads = scores[scores["passes"]], scores["name"].nunique()
    often = f", most often “{passed['role'].value_counts().index[0]}”" if len(passed) else ""
    n_with = passed["name"].nunique()
    return (
        f"{n_with} of {count_of(n_heads, 'head')} {agree(n_with, 'has', 'have')} a role, held "
        f"against heads with random weights ({len(passed)} of {len(scores)} pairs of head and "
        f"role{often})"
    )


# Notebook 05: what removals cost, and what carries an answer


LOOKING = ("excess image share of [CLS]", "excess image share of words")


class RemovalQuestions(NamedTuple):
    """The questions that heads are removed on, and what the intact model scores on them."""

    n: int
    n_images: int
    n_heads: int
    intact: dict  # percent: estimate, low, high

    def say_intact(self) -> str:
        """The intact model's accuracy."""
        return f"{self.intact['estimate']:.1f} % {say_interval(self.intact)}"


class Special(NamedTuple):
    """The head whose removal costs one family most beyond the next, and its effects on the two."""

    name: str
    first: dict
    second: dict

    def leads(self) -> bool:
        """Whether it costs the first family anything, and more than the second."""
        return self.first["drop"] > max(self.second["drop"], 0)

    def say_loss(self) -> str:
        """What the first family loses without it."""
        lost = f"“{self.first['family']}” questions lose {_say_drop(self.first)}"
        return f"is {self.name}: without it {lost}"

    def say_next(self) -> str:
        """What no other family loses more than."""
        return f"no other family more than {max(self.second['drop'], 0):.1f}"


def say_most(leaders: Names, verb: str) -> str:
    """Which heads cost most: one that leads all others, or the set that cannot be told apart.
    leaders: of `removal.find_leaders`."""
    if len(leaders) == 1:
        return f"{leaders[0]} {verb}s most,"
    names = f"{', '.join(leaders[:-1])} and {leaders[-1]}"
    return f"{names} {verb} most and cannot be told apart; {leaders[0]}"


def describe_ablation(
    overall: Table, questions: RemovalQuestions, alike: Row, leaders: Names
) -> str:
    """What the removal of single heads costs overall, and whether zero and mean say the same.
    overall: the costliest head first. alike: rank correlation of zero- and mean-ablation. leaders:
    the heads that may cost most, of `removal.find_leaders`."""
    cheap = (overall["drop"] < 1).sum()
    better = overall[overall["significant"] & (overall["drop"] < 0)]
    # if no answer changes, up to 3 / n may have
    n_sure = ((overall["drop"] < 1) & (overall["high"].clip(lower=300 / questions.n) < 1)).sum()
    few, by_interval = "any of them costs at least", ""
    if cheap:
        few, by_interval = f"{cheap} of them costs less than", f", {n_sure} by the whole interval"
    top, most = overall.iloc[0], "none costs anything"
    if top["drop"] > 0.05:
        doubt = "not significant after correction" if top["told"] else NOT_TOLD
        doubt = "" if top["significant"] else f" ({doubt})"
        most = f"{say_most(leaders, 'cost')} {_say_drop(top)}{doubt}"
    helps = f"without {' or '.join(better['name'])} the model is better"
    helps = helps if len(better) else "that any removal helps is not shown"
    ranks = ""
    if not np.isnan(alike["estimate"]):
        found = say_estimate(alike, digits=2)
        ranks = f" Put to their mean instead, heads rank by cost with correlation {found} to zero."
    return (
        f"Intact, the model scores {questions.say_intact()} on {count_of(questions.n, 'question')} "
        f"about {count_of(questions.n_images, 'image')}. Of its {questions.n_heads} heads, one at "
        f"a time put to zero, {most}. Removing {few} 1 point in the estimate{by_interval}; {helps}."
        f"{ranks}"
    )


def find_special(found: tuple[str, str] | None, effects: Table) -> Special | None:
    """The head that serves one family alone, and what that family and the next lose.
    found: name and family, chosen on other images (`removal.find_specialist`). effects: measured on
    these, of `removal.removal_effects`. None without such a head, or with too few questions."""
    if found is None:
        return None
    name, family = found
    told = effects["told"] & (effects["family"] != "all") & (effects["name"] == name)
    rows = effects[told].sort_values("drop", ascending=False, kind="stable")
    own, others = (rows[is_own].to_dict("records") for is_own in
                   (rows["family"] == family, rows["family"] != family))  # fmt: skip
    return Special(name, own[0], others[0]) if own and others else None


def describe_special(special: Special | None) -> str:
    """Which family is lost without the most specific head, and that the others are not."""
    if special is None:
        few = "No head costs one family of questions accuracy and all others less than 5 points"
        return f"{few}, or fewer than two families have 10 questions on 5 images."
    if not special.leads():
        return "The head that seemed to serve one family does not on images it was not chosen on."
    _, first, second = special
    doubt = "; this is not significant after correction over all heads and families"
    return (
        f"Chosen on half of the images, the head that serves one family alone "
        f"{special.say_loss()} on the other half (n = {first['n']:,}), and "
        f"{special.say_next()} (“{second['family']}” {say_interval(second)}, n = {second['n']:,})"
        f"{'' if first['significant'] else doubt}."
    )


def describe_layer_removals(
    whole: Table, joint: Table, questions: RemovalQuestions, leaders: Names
) -> str:
    """What the removal of whole layers costs, and whether a layer's heads stand in for each other.
    joint: points that all heads of a layer cost together beyond their sum. leaders: the layers that
    may cost most, of `removal.find_leaders`."""
    if not whole["told"].any():
        few = f"{count_of(questions.n, 'question')} {agree(questions.n)}"
        return f"{few} not enough to tell what a layer's removal costs."
    free = [f"L{layer}" for layer in whole.index[~whole["significant"] | ~(whole["drop"] > 0)]]
    shown = "Every layer's removal costs accuracy beyond chance."
    if len(free) == len(whole):
        shown = "That any layer's removal costs accuracy is not shown."
    elif free:
        shown = f"That {', '.join(free)} {agree(len(free), 'costs', 'cost')} anything is not shown."
    gaps = joint[(joint["p_corrected"] < 0.05) & (joint["estimate"] > 0)]
    joined = "No layer's heads cost more together than one by one in sum, beyond chance."
    if len(gaps):
        gap = gaps.loc[gaps["estimate"].idxmax()]
        together = (
            f"All heads of L{gap['layer']:.0f} together cost {say_estimate(gap, unit=' points')}"
        )
        joined = f"{together} more than one by one in sum: they stand in for each other."
    return (
        f"Left out, {say_most(leaders, 'cost')} {_say_drop(whole.loc[whole['drop'].idxmax()])} "
        f"(n = {questions.n:,} questions; intact {questions.say_intact()}). {shown} {joined}"
    )


def find_correlations(agreement: Table) -> dict[str, Row] | None:
    """Rank correlations of measures with the accuracy lost when heads are put to zero. By measure;
    None where one that sentences name has no value."""
    zeroed = agreement["second"] == "accuracy lost, head zeroed"
    rows = agreement[zeroed & (agreement["over"] == "all heads")].set_index("first")
    named = [*LOOKING, "gradient", "number of the layer"]
    return None if rows.loc[named, "correlation"].isna().any() else rows.to_dict("index")


def _rank_sign(row: Row) -> int:
    """1 or -1: the sign of a rank correlation over heads that permutation within layers tells from
    chance (`removal.rank_measures`); else 0."""
    return int(np.sign(row["correlation"])) if row["p"] < 0.05 else 0


def describe_importance(correlations: dict[str, Row] | None, n_heads: int, n: int) -> str:
    """Which measures rank heads as their removal does."""
    if correlations is None:
        few = "No head's removal has an effect that can be told from nothing with"
        return f"{few} {count_of(n, 'question')}, so there is no importance to predict."
    names = (*LOOKING, "number of the layer", "gradient")
    cls, words, layer, gradient = (_say_correlation(correlations[name]) for name in names)
    more = any(_rank_sign(correlations[name]) > 0 for name in LOOKING)
    less = any(_rank_sign(correlations[name]) < 0 for name in LOOKING)
    verdict = "that attention to the image predicts what a head's removal costs is not shown"
    if more and less:
        verdict = "whether heads that attend more to the image cost more depends on the query"
    elif more or less:
        verdict = f"heads that attend more to the image cost {'more' if more else 'less'}"
    by_gradient = "heads with larger gradients cost more"
    if not _rank_sign(correlations["gradient"]) > 0:
        by_gradient = f"that {by_gradient} is not shown"
    return (
        f"Over {n_heads} heads, the accuracy lost without a head has rank correlation {cls} with "
        f"the excess image share of [CLS], {words} with that of the words (without the last "
        f"layer's), {layer} with the number of the layer alone, and {gradient} with the gradient "
        f"(n = {n:,} questions): {verdict}; {by_gradient}."
    )


def describe_patching(
    carriers: Table | None, agreement: Table | None, n_pairs: int, leaders: Names
) -> str:
    """Which heads carry what differs between two images, and whether those are the needed ones.
    carriers: None where pairs are too few. agreement: None where no removal can be told. leaders:
    the heads that may carry most, of `removal.find_leaders`."""
    if carriers is None:
        few = f"{count_of(n_pairs, 'pair')} of questions in the same words {agree(n_pairs)}"
        return f"{few} not enough to tell which heads carry an answer."
    moving = carriers[carriers["family"] == "all"]
    beyond = carriers[carriers["significant"] & (carriers["share"] > 0)]
    sure = beyond[beyond["family"] == "all"]
    strong = (sure if len(sure) else moving).nlargest(1, "share").iloc[0]
    most = _say_part(strong)
    related = "" if agreement is None else _say_needed(agreement)
    part = "part of the change from one image's answer to another's"
    pairs = f"n = {n_pairs:,} pairs of questions in the same words"
    if sure.empty:
        return (
            f"That any of {len(moving)} heads carries {part} is not shown ({pairs}); the largest "
            f"estimate is {strong['name']}'s: {most}.{related}"
        )
    return (
        f"{len(sure)} of {len(moving)} heads {agree(len(sure), 'carries', 'carry')} {part} "
        f"({pairs}); {say_most(leaders, 'hold')} {most}.{related}"
    )


def _say_needed(agreement: Table) -> str:
    zeroed = agreement["first"].eq("accuracy lost, head zeroed")
    costly = agreement[zeroed & agreement["second"].eq("change carried (5.9)")].iloc[0]
    if np.isnan(costly["correlation"]):
        return ""
    ways = ("are not shown to go together", "go together", "go against each other")
    go = ways[_rank_sign(costly)]
    return (
        f" Heads rank by it with correlation {_say_correlation(costly)} to what their removal "
        f"costs: to be needed and to carry what differs between images {go}."
    )


def describe_role_answer(
    scores: Table, overall: Table, questions: RemovalQuestions,
    special: Special | None, correlations: dict[str, Row] | None, carriers: Table | None,
    leaders: Names,
) -> str:  # fmt: skip
    """The notebook's answer: roles, costs, who is served, what predicts the costs. leaders: the
    heads that may carry most between images."""
    roles, costs = summarise_roles(scores), _answer_costs(overall, questions)
    parts = [f"{roles}; {costs} (n = {questions.n:,} questions)."]
    if special is not None and special.first["significant"] and special.leads():
        parts.append(f"One that serves a family alone {special.say_loss()}, {special.say_next()}.")
    if correlations is not None:
        parts.append(_answer_predicted(correlations))
    if carriers is not None:
        moving = carriers[carriers["family"] == "all"]
        strong = moving.loc[moving["share"].idxmax()]
        if strong["significant"] and strong["share"] > 0:
            parts.append(f"Between images, {say_most(leaders, 'hold')} {_say_part(strong)}.")
    return " ".join(parts)


def _answer_costs(overall: Table, questions: RemovalQuestions) -> str:
    sure = overall[overall["significant"] & (overall["drop"] > 0)]
    n_cheap = (overall["drop"] < 1).sum()
    if not overall["told"].any():
        return "there are not enough questions to tell what removing a head costs"
    if sure.empty:
        return "that removing any one head costs accuracy is not shown"
    top = sure.iloc[0]
    return (
        f"removing one costs up to {top['drop']:.1f} points of accuracy {say_interval(top)} "
        f"(intact: {questions.say_intact()}), while {n_cheap or 'none'} "
        f"{agree(n_cheap or 1)} estimated to cost less than 1"
    )


def _answer_predicted(correlations: dict[str, Row]) -> str:
    gradient, looking = correlations["gradient"], correlations[LOOKING[0]]
    foretold, looks = _rank_sign(gradient) > 0, "[CLS]'s attention to the image"
    also = f"{looks} is not shown to" if foretold else f"nor is {looks}"
    if _rank_sign(looking) > 0:
        also = f"{looks} does too" if foretold else f"but {looks} does"
    if _rank_sign(looking) < 0:
        but = "and" if foretold else "but"
        also = f"{but} heads whose [CLS] attends more to the image cost less"
    return (
        f"The gradient {'foretells' if foretold else 'is not shown to foretell'} what a head's "
        f"removal costs (rank correlation {_say_correlation(gradient)}), {also} "
        f"({_say_correlation(looking)})."
    )


# Notebook 06: lighter models


class TestSplit(NamedTuple):
    """The validation questions that no model was chosen on and that score them all."""

    __test__ = False  # no test, whatever pytest thinks of the name

    n: int
    n_images: int

    def can_tell(self) -> bool:
        """Whether they are enough."""
        return bool(has_enough_data(self.n, self.n_images))

    def __str__(self) -> str:
        """Their numbers, for a sentence."""
        return f"n = {count_of(self.n, 'question')} about {count_of(self.n_images, 'image')}"


class Lightest(NamedTuple):
    """The smallest model that one half of the images selects, as the other half measures it."""

    name: str  # "whole" if there is none
    n_models: int  # candidates, the whole one among them
    n_selection: int  # questions that it was selected on
    fewer: float  # percent of the parameters that it does without
    change: dict  # points of accuracy, on the test half: estimate, low, high
    tolerance: float  # points that it may lose
    speeds: dict[int, Row]  # by questions at once: faster, low, high
    control: dict | None = None  # change of the whole model, if fine-tuned as long

    def say_fewer(self) -> str:
        """How many parameters it has less: a single head of many is less than 1 %, not "0 %"."""
        return f"{self.fewer:{'.0f' if self.fewer >= 1 else '.1g'}} % fewer parameters"

    def say_speeds(self) -> str:
        """Its speed on one question and on many."""
        batches = {size: "one question" if size == 1 else f"{size} at once" for size in self.speeds}
        parts = (f"{_say_speed(row)} on {batches[size]}" for size, row in self.speeds.items())
        text = next(parts)
        return " and ".join([text, *(part.replace(" times as fast", " times") for part in parts)])

    def say_verdict(self) -> str:
        """What it loses on the test half, in whole points, and whether that is tolerated."""
        verdict = say_tolerated(self.change, self.tolerance)
        return f"loses {say_range(self.change)} of accuracy on the other half, {verdict}"


def say_tolerated(change: Row, tolerance: float) -> str:
    """Where an interval of a change of accuracy lies beside the tolerated loss."""
    limit = f"{tolerance:g} {agree(tolerance, 'point', 'points')}"
    if change["low"] >= -tolerance:
        return f"which is within the tolerance of {limit}"
    if change["high"] < -tolerance:
        return f"which is more than the tolerance of {limit}"
    return f"so that it is undecided whether this is within the tolerance of {limit}"


def say_range(change: Row) -> str:
    """An interval of a change of accuracy as a loss in whole points, rounded outwards.

    What is trained anew in every run differs in the decimals from machine to machine.
    """
    if np.isnan(change["low"]) or np.isnan(change["high"]):
        return f"{say_number(-change['estimate'], 0)} points [no interval]"
    return f"{math.floor(-change['high']) + 0:g} to {math.ceil(-change['low']) + 0:g} points"


def _say_accuracy(row: Row) -> str:
    return f"{say_number(row['estimate'], sign=True)} points {say_interval(row)}"


def _say_speed(row: Row) -> str:
    return f"{row['faster']:.2f} times as fast {say_interval(row, 2)}"


def _say_tolerance(tolerance: float) -> str:
    return f"{tolerance:g} {agree(tolerance, 'point', 'points')}"


def describe_helps(single: Table) -> str:
    """Whether the removal of any one head or layer lowers the loss on training questions."""
    best = single.loc[single["estimate"].idxmin()]
    if not has_enough_data(best["n"], best["n_clusters"]):
        few = f"{count_of(best['n'], 'training question')} {agree(best['n'])}"
        return f"{few} not enough to tell whether any removal helps."
    size = f"n = {best['n']:,} training questions about {best['n_clusters']:,} images"
    behind = f"({size}; p corrected over {len(single)} heads and layers)"
    helps = single[(single["estimate"] < 0) & (single["p_corrected"] < 0.05)].to_dict("records")
    if helps:
        named = ", ".join(f"{row['part']} ({say_estimate(row, digits=3)})" for row in helps)
        lowers = f"the removal of {named} lowers the loss on training questions"
        return f"One at a time, {lowers} {behind}: it helps."
    least = f"{say_number(best['estimate'], 3, True)} {say_interval(best, 3)}"
    none = "That the removal of any one head or layer lowers the loss is not shown"
    return f"{none}. The cheapest is {best['part']}: {least} {behind}."


def describe_orders(halfway: Table, ahead: Row, base: Row) -> str:
    """How much accuracy is left, by the order of removal. ahead: points by which the order by
    ablation beats n random ones, interval over these and over images. base: the whole model's
    accuracy."""
    if not has_enough_data(base["n"], base["n_clusters"]):
        few = f"{count_of(base['n'], 'question')} about {count_of(base['n_clusters'], 'image')}"
        return f"{few} {agree(base['n'])} not enough to tell the orders apart."
    measured = halfway[~halfway.index.str.startswith("random")]
    left = [f"{say_estimate(row, unit=' %')} by {name}" for name, row in measured.iterrows()]
    removed, total = _count_removed(halfway)
    n_orders, over = count_of(int(ahead["n"]), "random order"), ""
    if ahead["n"] > 1:
        over = ", interval over random orders and images"
    sure = ("better than chance", "worse than chance", "not to be told from chance")
    return (
        f"With {removed} of {total} heads removed, {say_estimate(base, unit=' %')} becomes "
        f"{', '.join(left)} and {say_estimate(halfway.loc['random'], unit=' %')} in the mean of "
        f"{n_orders} (n = {base['n']:,} questions). The order by ablation is "
        f"{_by_sign(ahead, *sure)}: {_say_accuracy(ahead)}{over}."
    )


def _count_removed(halfway: Table) -> tuple[int, int]:
    """Heads removed, and all heads."""
    row = halfway.iloc[0]
    return int(row["removed"]), round(row["removed"] / row["share"])


def describe_families(costs: Table, quarter: Table, share: str, layer: str) -> str:
    """Which family loses most, and whether any gains. quarter: of costs, those with a quarter of
    the heads gone; share: "4 of 16 heads"."""
    text = _say_losers(quarter[quarter["told"]], share)
    alone = costs[(costs["what"] == "layers removed") & (costs["family"] == "all") & costs["told"]]
    if len(alone):
        lost = _say_drop(alone.iloc[0])
        text += f" Without the cheapest layer, {layer}, all questions together lose {lost}."
    better = costs[costs["significant"] & (costs["drop"] < 0)].sort_values("drop")
    if better.empty:
        return f"{text} That any removal makes a family better is not shown."
    gains = "; ".join(
        f"“{row['family']}” with {_say_removed(row)}, {-row['drop']:.1f} points"
        for row in better[:3].to_dict("records")
    )
    cells = f"In {len(better)} of {len(costs)} cells a removal makes the model better beyond chance"
    return f"{text} {cells}: {gains}."


def _say_losers(rows: Table, share: str) -> str:
    """The families that lose most and least, if any loses."""
    if rows.empty:
        few = "No family has 10 questions on 5 images"
        return f"{few}: not enough questions to tell who loses most."
    ordered = rows.sort_values("drop", ascending=False).to_dict("records")
    begin, most = f"With {share} removed (order by ablation)", ordered[0]
    if most["drop"] <= 0:
        gain = {"estimate": -most["drop"], "low": -most["high"], "high": -most["low"]}
        least = f"“{most['family']}” gains least: {_say_accuracy(gain)} (n = {most['n']:,})"
        return f"{begin} no family loses accuracy in the estimate; {least}."
    first, last = (
        f"“{row['family']}”: {_say_drop(row)} (n = {row['n']:,})" for row in (most, ordered[-1])
    )
    least = f", the one that loses least {last}" if len(ordered) > 1 else ""
    return f"{begin} the family that loses most is {first}{least}."


def _say_removed(row: Mapping) -> str:
    """What is gone: "4 heads removed"; of layers the last of those that went."""
    if row["what"] == "heads removed":
        return f"{count_of(int(row['removed']), 'head')} removed"
    return f"layers removed up to {row['removed'].lstrip('+').split()[-1]}"


def describe_recovery(recovery: Table, gains: Mapping[str, Row], test_split: TestSplit) -> str:
    """What a short training brings back to the pruned model that gains most, and the whole one."""
    if not test_split.can_tell():
        return f"Not enough questions to tell what a training brings back ({test_split})."
    most = max(
        (name for name in gains if name != "whole"), key=lambda name: gains[name]["estimate"]
    )
    row, gain, control = recovery.set_index("model").loc[most], gains[most], gains["whole"]
    begin = "The most is brought back"
    if not gain["low"] > 0:
        begin = "That a training brings anything back is not shown. The most, in the estimate,"
    before, after = (say_number(-row[when], 0) for when in ("before", "after"))
    return (
        f"{begin} to “{most}”: about {before} points less than the whole model before the "
        f"training, {after} less after it, a gain of {_say_gain(gain)}. The whole model, trained "
        f"on just as long, gains {_say_gain(control)} ({test_split})."
    )


def _say_gain(gain: Row) -> str:
    """An interval of a gain in whole points, rounded outwards: "19 to 25 points"."""
    loss = {"estimate": -gain["estimate"], "low": -gain["high"], "high": -gain["low"]}
    return say_range(loss)


def describe_precision(
    tried: Mapping[str, dict], batch: int, test_split: TestSplit, rounds: int, device: str
) -> str:
    """What lower precisions of the whole model cost and give."""
    if not tried:
        return f"No lower precision is available on this device ({device})."
    doubt = "" if test_split.can_tell() else " (too few questions to tell)"
    parts = "; ".join(
        f"{bits} is {_say_speed(row)} as fp32, at {_say_accuracy(row['change'])} of accuracy"
        f"{doubt} and {row['bytes']:.2f} of its bytes"
        for bits, row in tried.items()
    )
    absent = "" if "int8" in tried else " Dynamic int8 is not available on this device."
    size = "one question" if batch == 1 else f"{batch} questions"
    behind = f"{test_split}; {rounds} rounds, {device}"
    return f"For the whole model with {size} at once, {parts} ({behind}).{absent}"


def describe_lightest(
    found: Lightest, test_split: TestSplit, faster: tuple[str, Row] | None, quickest: Row
) -> str:
    """The model that the selection half selects, what the test half says of it, and its speed.
    faster: its fastest lower precision that the selection half allows. quickest: the fastest model
    in fp32."""
    if not test_split.can_tell():
        few = "Not enough questions to tell whether any lighter model answers as well"
        return f"{few} ({test_split}); the whole model stays."
    text = f"{_say_none(found)}: here nothing can be spared."
    if found.name != "whole":
        text = _say_chosen(found, test_split, faster)
    if quickest["model"] == found.name:
        return text
    if quickest["model"] == "whole":
        return f"{text} In fp32 no model measured faster than the whole one."
    speed = f"{_say_speed(quickest)}, at {say_range(quickest['change'])} of accuracy less"
    return f"{text} The fastest in fp32, “{quickest['model']}”, is {speed}."


def _say_chosen(found: Lightest, test_split: TestSplit, faster: tuple[str, Row] | None) -> str:
    control, bits = "", "no lower precision that this half allows is faster"
    if found.control is not None:
        control = f" The whole model, trained on just as long, loses {say_range(found.control)}."
    if faster is not None:
        name, speed = faster
        times = f"{speed['faster']:.2f} times {say_interval(speed, 2)}"
        bits = f"of the precisions that this half allows, {name} is the fastest ({times})"
    return (
        f"Of {found.n_models} models one half of the images selects “{found.name}”, with "
        f"{found.say_fewer()}. It {found.say_verdict()} ({test_split}).{control} On this machine "
        f"it measured {found.say_speeds()}; {bits}."
    )


def _say_none(found: Lightest) -> str:
    limit = f"{found.tolerance:g} {agree(found.tolerance, 'point', 'points')}"
    return (
        f"Of {found.n_models - 1} smaller models none is selected: on the half of the images that "
        f"selects, each loses more than {limit} (n = {found.n_selection:,} questions)"
    )


def describe_compression_answer(
    found: Lightest, test_split: TestSplit, whole: float, halfway: Table, base: Row
) -> str:
    """The notebook's answer: is there a lighter model, and what is left without training?"""
    if not test_split.can_tell():
        text = "There are not enough questions to tell whether a lighter model answers as well"
        text += f" ({test_split})."
    elif found.name == "whole":
        text = f"Not here. {_say_none(found)}."
    else:
        text = (
            f"One half of the images selects “{found.name}”, with {found.say_fewer()}. It "
            f"{found.say_verdict()} (whole model: {whole:.1f} %; {test_split})."
        )
    if not has_enough_data(base["n"], base["n_clusters"]):
        return text
    orders = ("ablation", "gradient", "attention", "random")
    left = {name: f"{halfway['estimate'][name]:.1f} %" for name in orders}
    removed, total = _count_removed(halfway)
    return (
        f"{text} Without further training, removing {removed} of {total} heads turns "
        f"{base['estimate']:.1f} % {say_interval(base)} into {left['ablation']} in the order by "
        f"ablation, {left['gradient']} by gradient, {left['attention']} by attention and "
        f"{left['random']} by chance."
    )
