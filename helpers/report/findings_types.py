"""Sentences of notebook 04 about question families: what its tables show, and what they do not.

Every function takes tables of the notebook and returns text that is true whether or not something was found.
Shares are between 0 and 1 in the tables and said in points (of 100).
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from helpers.report.sentences import Row, agree, count_of, say_interval, say_number

POINTS = {"digits": 0, "sign": True, "scale": 100}  # how shares are said
BANDS = {  # a procedure is off where its whole interval lies outside
    "single test": (0, 0.07), "after correction": (0, 0.05), "interval": (0.92, 1),
}  # fmt: skip


class Separation(NamedTuple):
    """How many heads and queries, and pairs of families in them, were tested and told apart."""

    tested: int  # heads and queries
    separating: int  # of these, where families differ (omnibus, corrected)
    pairs_tested: int
    n: int  # questions


def say_too_few(told: Sequence[str], n_families: int, n: int, n_images: int) -> str:
    """Why families cannot be compared. told: the families that have enough questions."""
    return (
        "Not enough questions to tell: a comparison needs two families with at least 10 questions on 5 images each, "
        f"and of the {n_families} here (n = {n:,} questions on {n_images:,} images) {len(told) or 'none'} "
        "has so many."
    )


def describe_layers(by_layer: pd.DataFrame, told: Sequence[str], uniform: float) -> str:
    """In which layer families lie furthest apart, for both queries; empty where nothing can be compared.

    by_layer: a row a family, layer and query with estimate, low, high and n. told: families with enough
    questions. uniform: image share of uniform attention.
    """
    said = [
        _describe_query(by_layer[by_layer["family"].isin(told)], query)
        for query in ("[CLS]", "words")
    ]
    if len(told) < 2 or not any(said):
        return ""
    baseline = f"Points count from uniform attention, which is {100 * uniform:.0f} % visual here; mean over heads."
    return " ".join([*filter(None, said), baseline])


def _describe_query(rows: pd.DataFrame, query: str) -> str:
    last = rows["layer"].max()
    rows = rows[(rows["query"] == query) & ((query == "[CLS]") | (rows["layer"] < last))]
    if rows.empty:
        return ""
    layer = rows.groupby("layer")["estimate"].agg(lambda means: means.max() - means.min()).idxmax()
    ends = rows[rows["layer"] == layer].sort_values("estimate").iloc[[-1, 0]].to_dict("records")
    most, least = (f"{_say_points(row)} ({row['family']}, n = {row['n']:,})" for row in ends)
    apart = ends[0]["low"] > ends[1]["high"]
    overlap = "" if apart else " (their intervals overlap: this alone shows no difference)"
    return f"With the {query} query, families lie furthest apart in L{layer}: from {most} down to {least}{overlap}."


def describe_pair(row: Row) -> str:
    """Two families that differ in a head, the one with more attention to the image first.

    row: of the pairs, with label ("a > b"), size, low, high, hedges_g, n_a, n_b, layer, head, query.
    """
    more, less = row["label"].split(" > ")
    low, high = sorted(abs(row[side]) for side in ("low", "high"))
    style = {"digits": 0 if row["size"] >= 0.1 else 1, "scale": 100}
    return (
        f"{more} above {less} by {say_number(row['size'], **style)} points "
        f"{say_interval({'low': low, 'high': high}, **style)} in L{row['layer']}H{row['head']}, {row['query']} query "
        f"(Hedges g {abs(row['hedges_g']):.1f}, n = {row['n_a'] + row['n_b']:,} questions)"
    )


def describe_heads(found: pd.DataFrame, counts: Separation) -> str:
    """How many heads and pairs tell families apart, and the largest difference.

    found: the pairs beyond chance, the largest first.
    """
    by_chance = f"about {0.05 * counts.pairs_tested:.0f} would pass uncorrected by chance"
    counted = (
        f"Families differ in {counts.separating} of {counts.tested} heads and queries (omnibus); {len(found)} of "
        f"{counts.pairs_tested} pairwise differences {agree(len(found), 'is', 'are')} beyond chance (corrected over all; {by_chance})"
    )
    if found.empty:
        return f"{counted}: no difference between families could be shown."
    return f"{counted}. The largest: {describe_pair(found.iloc[0])}."


def describe_adjusted(both: pd.DataFrame, n: int, n_varied: int, n_told: int) -> str:
    """Whether differences stay at equal question length and patch count.

    both: the pairs that could be compared raw and adjusted, with difference, adjusted, apart, adjusted_p and
    verdict. n_varied: of n_told families, how many have questions of more than one length.
    """
    if both.empty:
        return (
            "Cannot be told here: question length and patch count go with the family, so that their parts cannot "
            "be separated."
        )
    n_raw, n_adjusted = int(both["apart"].sum()), int((both["adjusted_p"] < 0.05).sum())
    if n_raw:
        n_kept = (both["verdict"] == "survives").sum()
        kept = f"{n_kept} of {n_raw} differences {agree(n_kept, 'keeps its sign and stays', 'keep their sign and stay')} beyond chance"
    elif n_adjusted:
        kept = f"{count_of(n_adjusted, 'difference')} {agree(n_adjusted, 'is beyond chance that is', 'are beyond chance that are')} not without the adjustment"
    else:
        kept = "no more than before can be shown"
    change = 100 * (both["adjusted"].abs() - both["difference"].abs()).median()
    return (
        f"At equal length and patch count {kept} (n = {n:,} questions); the size of a difference changes by "
        f"{say_number(change, sign=True)} points (median). {_say_lengths(n_varied, n_told)}"
    )


def _say_lengths(n_varied: int, n_told: int) -> str:
    if n_varied == n_told:
        return "Length varies within every family."
    if not n_varied:
        return "Length varies within no family: the adjustment is for patch count alone."
    return f"Length varies within {n_varied} of {n_told} families; for the rest the adjustment leans on these."


def describe_calibration(rates: pd.DataFrame, n: int, n_images: int, likeness: float) -> str:
    """How often tests and intervals are wrong where the truth is known.

    rates: of `helpers.stats.simulate`, a row a procedure. likeness: correlation of the values on one image, as made up.
    """
    rows = rates.set_index("procedure").to_dict("index")
    said = {
        name: f"{say_number(row['rate'], scale=100)} % {say_interval(row, scale=100)}"
        for name, row in rows.items()
    }
    off = [
        name for name, row in rows.items()
        if row["low"] > BANDS[row["kind"]][1] or row["high"] < BANDS[row["kind"]][0]
    ]  # fmt: skip
    verdict = (
        f"Too often wrong: {', '.join(off)}"
        if off
        else "Within the error of the simulation all are as good as asked for here (single tests at most 7 %, after correction 5 %, intervals at least 92 %)"
    )
    return (
        f"With no difference between families, on these {n:,} questions and {n_images:,} images (values on one image "
        f"correlated by {likeness:.2f}, as in the head where they are most alike), a single comparison of two families rejects in {said['pair']} of "
        f"simulations (promised: 5 %), at equal length and patch count in {said['pair, adjusted']}. After correction "
        f"four heads yield any false finding in {said['any pair, Holm']} (Holm), and "
        f"{said['false among found, B-H']} of what is found is false (Benjamini-Hochberg). 95 % intervals hold a "
        f"family's mean in {said['mean of a family']} and a difference in {said['difference of two']}. {verdict}."
    )


def describe_power(pairs: pd.DataFrame, level: float) -> str:
    """The smallest difference that could be seen, for the luckiest and the unluckiest pair of families.

    pairs: with detectable (a share), p, p_corrected. level: what p, not corrected, has to be below. Empty where
    nothing was tested.
    """
    visible = pairs.dropna(subset=["detectable"]).groupby(["group_a", "group_b"], sort=False)
    visible = visible.agg(
        detectable=("detectable", "median"), n_a=("n_a", "first"), n_b=("n_b", "first")
    )
    if visible.empty:
        return ""
    ends = [
        f"{100 * row.detectable:.1f} points between {' and '.join(row.Index)} (n = {row.n_a:,} and {row.n_b:,})"
        for row in visible.sort_values("detectable").iloc[[0, -1]].itertuples()
    ]
    other = f", and {ends[1]} at the other end" if len(visible) > 1 else ""
    n_tested, n_missed = pairs["p"].count(), (pairs["p_corrected"] >= 0.05).sum()
    rest = "All measured differences are beyond chance."
    if n_missed:
        rest = (
            f"{n_missed:,} of the {n_tested:,} measured differences {agree(n_missed, 'is', 'are')} not beyond "
            "chance, which says little about differences below these sizes."
        )
    return (
        f"The smallest difference that a comparison here could see (80 % power; to be found among these "
        f"{n_tested:,} tests, p has to lie below {level:.2g}; median over heads) is {ends[0]}{other}. {rest}"
    )


def describe_controls(checked: pd.DataFrame, by_kind: pd.DataFrame) -> str:
    """Whether questions that need the image look at it more than controls that do not.

    checked: a row a layer and query, with the difference at equal family; by_kind: means of both kinds.
    """
    if checked.empty:
        return "Not enough questions to tell: too few image-needing questions or too few controls."
    beyond = checked[checked["p_corrected"] < 0.05]["difference"]
    top, late = (
        checked.loc[checked["difference"].idxmax()],
        checked[checked["query"] == "[CLS]"].iloc[-1],
    )
    ends = by_kind[(by_kind["query"] == "[CLS]") & (by_kind["layer"] == by_kind["layer"].max())]
    means = ends.groupby("kind", observed=True)["estimate"].mean()
    needing, control = (
        say_number(means[kind], **POINTS) for kind in ("needs the image", "words are enough")
    )
    verdict = "The measure shows what it should."
    if not late["low"] > 0:
        verdict = "In the last layer the measure does not show what was expected."
    return (
        f"At equal family, questions that need the image look at it more than words-only controls in "
        f"{(beyond > 0).sum()} of {len(checked)} layers and queries, and less in {(beyond < 0).sum()} (beyond chance, "
        f"corrected): {_say_points(top, 'difference')} in L{top['layer']} ({top['query']} query), "
        f"{_say_points(late, 'difference')} in the last layer's [CLS] query, which the answer is read from (there "
        f"{needing} against {control} from uniform, mean over families; n = {top['n_a']:,} questions and "
        f"{top['n_b']:,} controls). {verdict}"
    )


def describe_examples(
    here: pd.DataFrame, aim: pd.DataFrame, layer: int, trio: Sequence[str]
) -> str:
    """How the families of the example maps look at the image, and whether at what is asked about.

    here: estimate, low, high, n, enough by family; aim: the same of hits above chance, NaN without boxes.
    """
    sentences = []
    for family in [name for name in trio if here["enough"].get(name, False)]:
        sentence = f"{family}: {_say_points(here.loc[family])}"
        if aim["enough"].get(family, False):
            sentence += f", favourite patch in a box asked about {_say_points(aim.loc[family])} against chance"
        sentences.append(f"{sentence} (n = {here.loc[family, 'n']:,})")
    boxes = aim["estimate"].notna().any()
    unknown = (
        "" if boxes else " This data has no boxes to say whether it looks at what is asked about."
    )
    if not sentences:
        return f"Not enough questions of {', '.join(trio)} to tell.{unknown}"
    looks = f"How much more than uniform [CLS] looks at the image in L{layer} (mean over heads)"
    return f"{looks}: {'; '.join(sentences)}.{unknown}"


def describe_answer(
    found: pd.DataFrame,
    counts: Separation,
    both: pd.DataFrame,
    ranks: pd.DataFrame,
    checks: pd.DataFrame,
) -> str:
    """The notebook's answer: do families differ, does it stay when adjusted, do shares rank them as causes do?

    found, both: as in `describe_heads` and `describe_adjusted`; ranks: Spearman correlations, that of the last
    layer's share first (NaN: cannot be told); checks: measures held against the truth, empty where none is known.
    """
    if found.empty:
        text = (
            f"None of {counts.pairs_tested} differences between families in {counts.tested} heads and queries is "
            f"beyond chance (n = {counts.n:,} questions): these questions do not show that the division of attention "
            "depends on what is asked."
        )
    else:
        kept = "length and patch count cannot be told apart from the family here"
        if len(both):
            n_kept, n_raw = (both["verdict"] == "survives").sum(), both["apart"].sum()
            kept = f"{n_kept} of {n_raw} pairwise differences {agree(n_kept, 'stays', 'stay')} at equal question length and patch count"
        where = "Yes" if counts.separating >= counts.tested / 2 else "In places"
        text = (
            f"{where}: families differ in how much they look at the image in {counts.separating} of {counts.tested} "
            f"heads and queries, most of all {describe_pair(found.iloc[0])}; {kept}."
        )
    late = ranks.iloc[0]
    if pd.notna(late["estimate"]):
        ranking = "is not shown to go with"
        if late["low"] > 0:
            ranking = "goes with"
        elif late["high"] < 0:
            ranking = "goes against"
        text += (
            f" From family to family, the [CLS] share of the last layer {ranking} the accuracy lost with another image "
            f"(Spearman {say_number(late['estimate'], 2, True)} {say_interval(late, 2, True)}, "
            f"{late['n']} families)."
        )
    if len(checks):
        wrong, n_right = ", ".join(checks.loc[~checks["right"], "measure"]), checks["right"].sum()
        text += (
            f" Of {len(checks)} measures {n_right} {agree(n_right, 'tells', 'tell')} questions that need the image from controls "
            f"that do not{f' (not shown for: {wrong})' if wrong else ''}."
        )
    return text


def _say_points(row: Row, column: str = "estimate") -> str:
    """A share with its interval in points from its baseline: "+12 points [+10, +14]"."""
    return f"{say_number(row[column], **POINTS)} points {say_interval(row, **POINTS)}"
