"""Sentences of notebook 04 about words, and about what answers need: withheld image and words, MM-SHAP, controls.

As in `helpers.report.findings_types`: tables in, text out, true for either outcome.
"""

from collections.abc import Sequence

import pandas as pd

from helpers.report.sentences import Row, agree, count_of, say_interval, say_number
from helpers.stats.cluster_robust import MIN_GROUPS


def describe_words(against: pd.DataFrame, strongest: pd.DataFrame, uniform: float) -> str:
    """Which class of words looks at the image more than the function words of the same questions.

    against: a row a layer and class with estimate, low, high, p, p_corrected, n, and the same at equal place
    (placed, low_placed, ...). strongest: the row to name first (one, or none). uniform: share of uniform attention.
    """
    tested = against.dropna(subset=["p"])
    if tested.empty or strongest.empty:
        return "Not enough questions to tell which words look at the image."
    beyond = against[against["p_corrected"] < 0.05]
    above, below = beyond[beyond["estimate"] > 0], beyond[beyond["estimate"] < 0]
    firm = above[(above["placed"] > 0) & (above["p_corrected_placed"] < 0.05)]
    first = strongest.iloc[0]
    best = tested[tested["word_class"] != first["word_class"]].sort_values(
        "estimate", ascending=False
    )
    best = best.drop_duplicates("word_class").to_dict("records")
    rest = (
        f" The other classes, where they are highest: {'; '.join(map(_say_class, best))}."
        if best
        else ""
    )
    return (
        f"{_lead(len(above), len(firm))} {_say_class(first)} (uniform attention: {100 * uniform:.0f} % visual; the last "
        f"layer's words, which no answer reads, left out).{rest} Of {len(tested)} layers and classes {len(above)} "
        f"{agree(len(above), 'lies', 'lie')} above the function words and {len(below)} below beyond chance (corrected){_say_place(above, firm)}."
    )


def _lead(n_above: int, n_firm: int) -> str:
    if not n_above:
        return (
            "No class of words can be shown to look more at the image than the function words of the same questions; "
            "the highest is"
        )
    placed = ", as they stand and at equal place in the question" if n_firm else ""
    return (
        "Of the classes of words that look more at the image than the function words of the same questions"
        f"{placed}, the highest is"
    )


def _say_place(above: pd.DataFrame, firm: pd.DataFrame) -> str:
    if above.empty:
        return ""
    placeable = above["p_placed"].notna().sum()
    if not placeable:
        return "; whether by class or by place cannot be told"
    return f"; at equal place in the question {len(firm)} of {placeable} of these {agree(len(firm), 'stays', 'stay')} above"


def _say_class(row: Row) -> str:
    """A class against the function words of its questions, and at equal place where that can be told."""
    style, at_place = {"sign": True, "scale": 100}, ""
    if pd.notna(row["placed"]):
        ends = {"low": row["low_placed"], "high": row["high_placed"]}
        at_place = (
            f"; at equal place {say_number(row['placed'], **style)} {say_interval(ends, **style)}"
        )
    found = f"{say_number(row['estimate'], **style)} points {say_interval(row, **style)}"
    return f"{row['word_class']}: {found} in L{row['layer']} (n = {count_of(row['n'], 'question')}{at_place})"


def describe_words_read(extra: pd.DataFrame) -> str:
    """From which words [CLS] reads in the last layer, as multiples of uniform attention.

    extra: a row a class: times, estimate (its difference to function words), low, high, p, p_corrected, n.
    """
    shown = extra.dropna(subset=["p"]).sort_values("estimate", ascending=False).to_dict("records")
    if not shown:
        return "Not enough questions to tell from which words [CLS] reads."
    sentences = []
    for row in shown:
        doubt = "" if row["p_corrected"] < 0.05 else "; not beyond chance"
        sentences.append(
            f"{row['word_class']} {row['times']:.1f}, against {row['times'] - row['estimate']:.1f} (difference "
            f"{say_number(row['estimate'], sign=True)} {say_interval(row, sign=True)}, n = {row['n']:,}{doubt})"
        )
    return (
        "In the last layer the [CLS] query pays one word piece this many times what uniform attention would (mean over "
        f"heads), against the function words of the same questions: {'; '.join(sentences)}. Corrected over classes."
    )


def describe_losses(by_need: pd.DataFrame, losses: Sequence[str], intact: Row) -> str:
    """What every family loses when something is withheld: the most and the least of each loss.

    by_need: a row a family, kind and measure; losses: its measures that are points of accuracy lost; intact: the
    accuracy before, in percent, with low, high, n and n_clusters.
    """
    if not by_need["enough"].any():
        size = f"n = {intact['n']:,} questions on {intact['n_clusters']:,} images"
        return f"Not enough questions to tell what any family loses ({size})."
    told = by_need[(by_need["kind"] == "questions") & by_need["enough"]].dropna(subset=["estimate"])
    said = [_say_loss(told[told["measure"] == measure], measure) for measure in losses]
    return (
        f"Points of VQA accuracy lost (intact: {intact['estimate']:.1f} {say_interval(intact)}, n = {intact['n']:,} "
        f"questions; words-only controls, where known, left out of the families): {'; '.join(said)}. Corrected over "
        "all families and losses."
    )


def _say_loss(rows: pd.DataFrame, measure: str) -> str:
    if rows.empty:
        return f"{measure}: not enough questions to tell"
    ends = rows.loc[list(dict.fromkeys([rows["estimate"].idxmax(), rows["estimate"].idxmin()]))]
    spans = [
        f"{row['family']} {say_number(row['estimate'], 0, True)} {say_interval(row, 0, True)} (n = {row['n']:,})"
        for row in ends.to_dict("records")
    ]
    less = ((rows["p_corrected"] < 0.05) & (rows["estimate"] > 0)).sum()
    return f"{measure}: a loss beyond chance in {less} of {len(rows)} families, {' down to '.join(spans)}"


def describe_ranks(
    ranks: pd.DataFrame, shares: Sequence[str], asked: pd.DataFrame, n_families: int
) -> str:
    """Whether shares of attention, and other measures, rank the families as the loss of the image does.

    ranks: a row a measure with Spearman's estimate, low, high and n (families). shares: those that are shares of
    attention. asked: every question's measures, NaN where it is left out or not measured.
    """
    ranked, told = ranks.dropna(subset=["estimate"]), int(ranks["n"].max())
    if ranked.empty and told >= MIN_GROUPS:
        return (
            "There are no ranks to compare: exchanging the image, or each of the measures, comes to the same in all of "
            f"the {told} families."
        )
    if ranked.empty:
        return (
            f"Not enough questions to tell whether the measures rank the families alike: at least {MIN_GROUPS} families "
            f"need 10 questions on 5 images each, and of the {n_families} here {told or 'none'} {agree(told or 1, 'has', 'have')} so many."
        )
    agreeing = (ranked["measure"].isin(shares) & (ranked["low"] > 0)).sum()
    sizes = asked[["image exchanged", "MM-SHAP"]].notna().sum()
    untold = "".join(
        f"; {name} cannot be told" for name in ranks.loc[ranks["estimate"].isna(), "measure"]
    )
    return (
        f"Of {len(shares)} shares of attention, {agreeing} can be shown to rank the families as the loss of the image "
        f"does. Over {told} families (n = {sizes['image exchanged']:,} questions, controls left out; MM-SHAP "
        f"{sizes['MM-SHAP']:,}), Spearman correlation with the accuracy lost when the image is exchanged: "
        f"{'; '.join(map(_say_rank, ranked.to_dict('records')))}{untold}. 0 is no agreement; with {told} families even a large "
        "correlation says little about other families."
    )


def _say_rank(row: Row) -> str:
    verdict = "in no way that can be told"
    if row["low"] > 0:
        verdict = "the same way"
    elif row["high"] < 0:
        verdict = "the opposite way"
    found = f"{say_number(row['estimate'], 2, True)} {say_interval(row, 2, True)}"
    return f"{row['measure']} {found} ({verdict})"


def describe_needs(
    checks: pd.DataFrame, costs: Sequence[Row], losses: Sequence[str], untold: Sequence[str] = ()
) -> str:
    """Which measures tell questions that need the image from controls that do not.

    checks: a row a measure with its difference at equal family and its AUC, both with intervals, and right.
    costs: points lost with another image by needing questions, and by controls. untold: measures without a row.
    """
    if checks.empty:
        return "Not enough questions to tell: too few words-only controls, or too few other questions of the same families."
    needing, control = (f"{row['estimate']:.1f} points {say_interval(row)}" for row in costs)
    said = [_say_check(row, row["measure"] in losses) for row in checks.to_dict("records")]
    said += [f"{measure}: not enough questions to tell" for measure in untold]
    return (
        f"Exchanging the image costs the questions that need it {needing} (n = {costs[0]['n']:,}) of VQA accuracy, and "
        f"words-only controls of the same families {control} (n = {costs[1]['n']:,}). Needing minus control at equal "
        "family (0: no difference), and how often the needing question of a pair has the larger value (0.5: chance), "
        "with 95 % intervals for each measure alone: "
        f"{'; '.join(said)}."
    )


def _say_check(row: Row, of_accuracy: bool) -> str:
    verdict = "cannot tell"
    if row["right"]:
        verdict = "right"
    elif row["high"] < 0 or row["auc_high"] < 0.5:
        verdict = "not right"
    found = (
        f"{say_number(row['difference'], 0, True)} points{' of accuracy' if of_accuracy else ''}"
    )
    ends = {"low": row["auc_low"], "high": row["auc_high"]}
    return (
        f"{row['measure']} {found} {say_interval(row, 0, True)}, AUC {row['auc']:.2f} {say_interval(ends, 2)} "
        f"(n = {row['n_a']:,} and {row['n_b']:,}): {verdict}"
    )
