"""Sentences hold the right numbers in each outcome: found, not found, reversed, too few, one."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prose import check_prose

from helpers.report import sentences
from helpers.report.sentences import say_interval, say_number


def span(estimate: float, half: float = 1.0) -> dict:
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half}


def table(columns: str, *rows, half: float | None = None, of: str = "estimate", **more):
    """A table of rows; half: of an interval about the column `of`."""
    made = pd.DataFrame(rows, columns=columns.split())
    if half is not None:
        made = made.assign(low=made[of] - half, high=made[of] + half)
    return made.assign(**more)


def say(name: str, *arguments) -> str:
    return check_prose(getattr(sentences, name)(*arguments))


@given(st.floats(-1e4, 1e4), st.integers(0, 3), st.booleans())
def test_numbers_are_rounded_and_never_minus_zero(value, digits, sign):
    text = say_number(value, digits, sign)
    assert abs(float(text) - value) <= 0.51 * 10**-digits
    assert not (text.startswith("-") and float(text) == 0)
    assert text.startswith(("+", "-")) or not sign


def test_intervals():
    assert say_interval({"low": -0.014, "high": 0.2}, 0, True, 100) == "[-1, +20]"
    assert say_interval({"low": np.nan, "high": 1.0}) == "[no interval]"


# Notebook 04

COUNTS = sentences.Separation(tested=28, separating=20, pairs_tested=100, n=900)
PAIR = {
    "label": "what > why", "size": 0.2512, "low": -0.3, "high": -0.2, "hedges_g": -1.25,
    "n_a": 500, "n_b": 600, "layer": 2, "head": 1, "query": "words",
}  # fmt: skip
SAID_PAIR = "what above why by 25 points [20, 30] in L2H1, words query (Hedges g 1.2, n = 1,100"
FOUND, NONE_FOUND = pd.DataFrame([PAIR]), pd.DataFrame(columns=list(PAIR))


def test_layers_name_the_widest_and_leave_out_words_of_the_last():
    rows = table(
        "family layer query estimate low high n",
        ("what", 0, "[CLS]", 0.10, 0.08, 0.12, 500), ("why", 0, "[CLS]", 0.05, 0.02, 0.11, 400),
        ("what", 1, "[CLS]", -0.10, -0.12, -0.08, 500), ("why", 1, "[CLS]", -0.45, -0.5, -0.4, 400),
        ("what", 0, "words", 0.10, 0.05, 0.15, 500), ("why", 0, "words", 0.08, 0.03, 0.12, 400),
        ("what", 1, "words", 0.90, 0.80, 1.00, 500), ("why", 1, "words", 0.00, -0.1, 0.1, 400),
        ("where", 0, "[CLS]", 0.99, -0.9, 1.9, 3),
    )  # fmt: skip
    text = say("describe_family_layers", rows, ["what", "why"], 0.714)
    assert "L1: from -10 points [-12, -8] (what, n = 500) down to -45 points [-50, -40]" in text
    assert "L0: from +10 points [+5, +15] (what, n = 500) down to +8 points [+3, +12] (why" in text
    assert text.count("their intervals overlap") == 1
    assert "71 % visual" in text
    assert "where" not in text
    assert sentences.describe_family_layers(rows, ["what"], 0.7) == ""
    assert sentences.describe_family_layers(rows[:0], [], 0.7) == ""
    assert "words" not in say("describe_family_layers", rows[:2], ["what", "why"], 0.7)


def test_pairs_are_counted_with_what_chance_would_give():
    text = say("describe_heads", FOUND, COUNTS)
    assert "in 20 of 28 heads and queries" in text
    assert "1 of 100 pairwise differences is beyond chance" in text
    assert "about 5 would pass" in text
    assert SAID_PAIR in text
    assert "could be shown" in say("describe_heads", NONE_FOUND, COUNTS)
    small = {**PAIR, "size": 0.0123, "low": 0.004, "high": 0.02}
    assert "by 1.2 points [0.4, 2.0]" in sentences.describe_pair(small)
    assert "(n = 12 questions on 3 images) none has" in say("say_too_few", [], 7, 12, 3)


def make_adjusted(*verdicts: str) -> pd.DataFrame:
    apart = [verdict in ("survives", "does not survive") for verdict in verdicts]
    p = [0.01 if verdict in ("survives", "only when adjusted") else 0.5 for verdict in verdicts]
    made = pd.DataFrame({"apart": apart, "adjusted_p": p, "verdict": verdicts})
    return made.assign(difference=-0.2, adjusted=-0.25)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (("survives", "survives", "does not survive"), "2 of 3 differences keep their sign"),
        (("only when adjusted", "neither"), "1 difference is beyond chance that is not without"),
        (("only when adjusted",) * 2, "2 differences are beyond chance that are not without"),
        (("neither",), "no more than before can be shown"),
    ],
)
def test_adjusted_differences_stay_or_not(verdicts, said):
    text = say("describe_adjusted", make_adjusted(*verdicts), 900, 5, 7)
    assert said in text
    assert "changes by +5.0 points" in text
    assert "within 5 of 7 families" in text
    assert "Cannot be told here" in say("describe_adjusted", make_adjusted(), 900, 0, 7)


def test_the_answer_on_families_in_every_outcome():
    checks = table("measure right", ("last", True), ("MM-SHAP", False))
    ranks = table("estimate n", (0.6, 7), half=0.3).assign(p=0.03)
    adjusted = make_adjusted("survives", "does not survive")
    text = say("describe_family_answer", FOUND, COUNTS, adjusted, ranks, checks)
    assert text.startswith("Yes: families differ")
    assert SAID_PAIR in text
    assert "1 of 2 pairwise differences stays" in text
    assert "goes with the accuracy lost with another image (Spearman +0.60 [+0.30, +0.90]" in text
    assert "Of 2 measures 1 tells" in text
    assert "(not shown for: MM-SHAP)" in text
    against, unsure = ranks.assign(estimate=-0.6), ranks.assign(p=0.2)
    few = COUNTS._replace(separating=3)
    text = say("describe_family_answer", FOUND, few, adjusted[:0], against, checks[:0])
    assert text.startswith("In places")
    assert "goes against" in text
    text = say("describe_family_answer", NONE_FOUND, COUNTS, adjusted, unsure, checks[:0])
    assert text.startswith("None of 100 differences")
    assert "is not shown to go with" in text
    untold = ranks.assign(estimate=np.nan)
    text = say("describe_family_answer", NONE_FOUND, COUNTS, adjusted, untold, checks[:0])
    assert "Spearman" not in text


def test_losses_name_the_most_and_the_least():
    by_need = table(
        "family kind measure estimate p_corrected n enough",
        ("what", "questions", "image removed", 70.0, 0.001, 300, True),
        ("is/are", "questions", "image removed", 1.0, 0.6, 200, True),
        ("why", "questions", "image removed", 90.0, np.nan, 2, False),
        ("what", "words-only controls", "image removed", 0.0, np.nan, 50, True),
        half=10,
    )
    intact, losses = {**span(98.8, 0.4), "n": 500, "n_clusters": 80}, ["image removed", "other"]
    text = say("describe_losses", by_need, losses, intact)
    assert "(intact: 98.8 [98.4, 99.2], n = 500 questions;" in text
    assert "in 1 of 2 families, what +70 [+60, +80] (n = 300) down to is/are +1" in text
    assert "other: not enough questions to tell" in text
    assert "Not enough" in say("describe_losses", by_need.assign(enough=False), losses, intact)


def test_ranks_agree_disagree_or_cannot_be_told():
    rows = [("last", 0.6), ("all", -0.5), ("MM-SHAP", 0.1), ("none", np.nan)]
    ranks = table("measure estimate", *rows, half=0.4, n=7).assign(p=[0.04, 0.04, 0.8, np.nan])
    asked = pd.DataFrame({"image exchanged": [1.0, 2.0, np.nan], "MM-SHAP": [np.nan, 1.0, np.nan]})
    text = say("describe_ranks", ranks, ["last", "all"], asked, 7)
    assert text.startswith("Of 2 shares of attention, 1 can be shown")
    assert "(n = 2 questions, controls left out; MM-SHAP 1)" in text
    assert "last +0.60 [+0.20, +1.00] (the same way); all -0.50 [-0.90, -0.10] (the opp" in text
    assert "(in no way that can be told); none cannot be told. 0 is" in text
    untold = ranks.assign(estimate=np.nan)
    assert "in all of the 7 families" in say("describe_ranks", untold, ["last"], asked, 7)
    for n, said in ((2, "of the 3 here 2 have"), (0, "of the 3 here none has")):
        assert said in say("describe_ranks", untold.assign(n=n), ["last"], asked, 3)


def test_measures_get_the_truth_right_wrong_or_cannot_tell():
    checks = table(
        "measure difference low high auc auc_low auc_high right",
        ("last", 31.0, 29.0, 33.0, 0.87, 0.85, 0.9, True),
        ("image removed", -3.0, -5.0, -1.0, 0.4, 0.35, 0.45, False),
        ("MM-SHAP", 3.0, -5.0, 9.0, 0.6, 0.45, 0.7, False),
        n_a=2000, n_b=30,
    )  # fmt: skip
    costs = [{**span(61.1, 2), "n": 2000}, {**span(0.0, 0), "n": 30}]
    text = say("describe_needs", checks, costs, ["image removed"], ["other"])
    assert "costs the questions that need it 61.1 points [59.1, 63.1] (n = 2,000)" in text
    assert "last +31 points [+29, +33], AUC 0.87 [0.85, 0.90] (n = 2,000 and 30): right; " in text
    assert "-3 points of accuracy [-5, -1], AUC 0.40 [0.35, 0.45] (n = 2,000 and 30): not r" in text
    assert text.endswith("cannot tell; other: not enough questions to tell.")
    assert "Not enough" in say("describe_needs", checks[:0], costs, [])


# Notebook 05


def make_scores(*passes: bool, n: int = 900, **more) -> pd.DataFrame:
    """Two heads with two roles each."""
    rows = [("L0H0", "sink", 0.9), ("L0H0", "grounding", 0.2), ("L0H1", "sink", 0.5),
            ("L0H1", "grounding", 0.3)]  # fmt: skip
    scores = table("name role score", *rows, half=0.1, of="score", passes=passes, n=n)
    return scores.assign(
        **{"reaches_answer": True, "n_clusters": max(1, n // 3), "null": -0.001} | more
    )


NO, ONE, ALL = [False] * 4, [True, False, False, False], [True] * 4


def test_roles_are_counted_against_random_heads():
    text = say("describe_roles", make_scores(True, True, False, True, null=0.25))
    assert "2 of 2 heads have a role; 3 of 4 pairs of head and role pass, 2 of them beyond" in text
    assert "most often “grounding” (in 2)" in text
    assert "L0H0 as “sink” scores 0.90 [0.80, 1.00], the highest random head 0.25 (n = 900" in text
    text = say("describe_roles", make_scores(*ONE, reaches_answer=False))
    assert "1 of 2 heads has a role; 1 of 4 pairs of head and role passes" in text
    assert "1 is a habit of the last layer" in text
    assert "None of 2 heads has any of 2 roles" in say("describe_roles", make_scores(*NO))
    for n, said in ((6, "6 questions about 2 images are"), (1, "1 question about 1 image is")):
        assert say("describe_roles", make_scores(*NO, n=n)).startswith(f"{said} not enough")


ASKED = sentences.RemovalQuestions(400, 150, 3, span(98.4, 0.8))


def make_overall(drops, significant, told=True) -> pd.DataFrame:
    rows = [(f"L0H{head}", float(drop)) for head, drop in enumerate(drops)]
    return table("name drop", *rows, half=0.5, of="drop", significant=significant, told=told)


def test_removals_cost_help_or_cannot_be_told():
    overall = make_overall([46.5, 2.0, 0.1], [True, True, False])
    text = say("describe_ablation", overall, ASKED, span(0.93, 0.1), ["L0H0"])
    assert "98.4 % [97.6, 99.2] on 400 questions about 150 images. Of its 3 heads" in text
    assert "L0H0 costs most, 46.5 points [46.0, 47.0]. Removing 1 of them costs less" in text
    assert "estimate, 1 by the whole interval; that any removal helps is not shown." in text
    assert text.endswith("correlation 0.93 [0.83, 1.03] to zero.")
    better = make_overall([1.0, -2.0, -3.0], [False, True, True])
    text = say("describe_ablation", better, ASKED, span(np.nan), ["L0H0", "L0H1"])
    assert "L0H0 and L0H1 cost most and cannot be told apart; L0H0 1.0 points" in text
    assert "1.0 points [0.5, 1.5] (not significant after correction)" in text
    assert text.endswith("without L0H1 or L0H2 the model is better.")
    few = make_overall([1.0, 0.0], [False, False], told=False)
    one = ASKED._replace(n=1, n_images=1)
    text = say("describe_ablation", few, one, span(1), ["L0H0"])
    assert "(not enough questions to tell)" in text
    assert "on 1 question about 1 image. Of" in text
    assert "none costs anything" in say("describe_ablation", few[1:], ASKED, span(1), ["L0H1"])


def test_no_answer_changed_leaves_a_doubt_of_three_in_n():
    same = make_overall([1.0, 0.0], [False, False]).assign(low=0.0, high=0.0)
    for n, sure in ((301, 1), (299, 0)):
        text = say("describe_ablation", same, ASKED._replace(n=n), span(1), ["L0H0"])
        assert f"{sure} by the whole interval" in text


def make_families(*drops: float, significant: bool = True) -> pd.DataFrame:
    places = [("L0H0", "why"), ("L0H0", "who"), ("L0H1", "why"), ("L0H1", "who")]
    rows = [(*place, drop) for place, drop in zip(places, drops, strict=True)]
    return table("name family drop", *rows, half=2, of="drop", n=100, significant=significant)


def test_the_special_head_was_chosen_on_other_images():
    table = make_families(30, 28, -1, 12).assign(told=True)
    special = sentences.find_special(("L0H1", "who"), table)
    text = say("describe_special", special)
    assert "“who” questions lose 12.0 points [10.0, 14.0] on the other half (n = 100)" in text
    assert "no other family more than 0.0 (“why” [-3.0, 1.0], n = 100)." in text
    unsure = make_families(30, 28, -1, 12, significant=False).assign(told=True)
    assert "not significant" in say(
        "describe_special", sentences.find_special(("L0H1", "who"), unsure)
    )
    text = say("describe_special", sentences.find_special(("L0H1", "why"), table))
    assert "does not on images it was not chosen on" in text
    for found, effects in ((None, table), (("L0H1", "who"), table[::2])):
        assert sentences.find_special(found, effects) is None
    assert "No head costs one family" in say("describe_special", None)


def make_agreement(cls=0.0, words=0.0, gradient=0.8, moved=0.1) -> pd.DataFrame:
    zeroed, carried = "accuracy lost, head zeroed", "change carried (5.9)"
    names = (*sentences.LOOKING, "number of the layer", "gradient")
    values = zip(names, (cls, words, -0.5, gradient), strict=True)
    rows = [(name, zeroed, value) for name, value in values] + [(zeroed, carried, moved)]
    ranks = table("first second correlation", *rows, half=0.3, of="correlation", over="all heads")
    return ranks.assign(p=np.where(ranks["correlation"].abs() > 0.3, 0.01, 0.4))


def make_carriers(*shares: float, significant=True) -> pd.DataFrame:
    places = [("all", "L0H1", 246), ("all", "L0H0", 246), ("who", "L0H1", 18)]
    rows = [(*place, share) for place, share in zip(places, shares, strict=True)]
    return table("family name n share", *rows, half=4, of="share", significant=significant)


ONLY = ["L0H1"]


def test_patching_says_who_carries_and_whether_they_are_needed():
    text = say("describe_patching", make_carriers(23, -4, 115), make_agreement(), 246, ONLY)
    assert text.startswith("1 of 2 heads carries part of the change")
    assert "L0H1 holds most, 23 % [19, 27]." in text
    assert "0.10 [-0.20, 0.40] to what their removal costs" in text
    assert text.endswith("are not shown to go together.")
    for moved, said in ((0.6, "images go together."), (-0.8, "go against each other.")):
        agreement = make_agreement(moved=moved)
        assert say("describe_patching", make_carriers(23, -4, 115), agreement, 9, ONLY).endswith(
            said
        )
    sure = make_carriers(23, 8, -115, significant=[False, True, True])
    text = say("describe_patching", sure, None, 246, ["L0H0", "L0H1"])
    assert "L0H0 and L0H1 hold most and cannot be told apart; L0H0 8 % [4, 12]." in text
    none = make_carriers(-0.3, -4, -2, significant=False)
    text = say("describe_patching", none, make_agreement(moved=np.nan), 246, ONLY)
    assert text.startswith("That any of 2 heads carries")
    assert "L0H1's: 0 % [" in text
    assert "1 pair of questions in the same words is not" in say(
        "describe_patching", None, None, 1, ONLY
    )


def test_the_answer_on_heads_in_every_outcome():
    table = make_families(30, 28, -1, 12).assign(told=True)
    special = sentences.find_special(("L0H1", "who"), table)
    found = sentences.find_correlations(make_agreement(cls=0.5))
    unsure = make_overall([60.0, 46.5, 0.2], [False, True, False])
    carriers = make_carriers(23, -4, 115)
    arguments = (make_scores(*ALL), unsure, ASKED, special, found, carriers, ONLY)
    text = say("describe_role_answer", *arguments)
    assert "2 of 2 heads have a role, held against heads with random weights (4 of 4 pairs" in text
    assert "up to 46.5 points of accuracy [46.0, 47.0] (intact: 98.4 % [97.6, 99.2])" in text
    assert "while 1 is estimated to cost less than 1 (n = 400" in text
    assert (
        "One that serves a family alone is L0H1: without it “who” questions lose 12.0 points"
        in text
    )
    assert "The gradient foretells what a head's removal costs" in text
    assert "attention to the image does too (0.50 [0.20, 0.80])." in text
    assert text.endswith("Between images, L0H1 holds most, 23 % [19, 27].")
    few = make_overall([0.1], [False], told=False)
    text = say("describe_role_answer", make_scores(*NO, n=6), few, ASKED, None, None, None, [])
    assert text.startswith("There are not enough questions to tell any head's role; there are not")
    gain = make_overall([0.1, -8.0], [False, True])
    for values, said in (
        ({"gradient": 0.1}, "nor is"), ({"cls": 0.5, "gradient": 0.1}, "but [CLS]'s"),
        ({"cls": -0.5}, "and heads whose [CLS] attends more"),
    ):  # fmt: skip
        found = sentences.find_correlations(make_agreement(**values))
        text = say("describe_role_answer", make_scores(*ONE), gain, ASKED, None, found, None, [])
        assert said in text
        assert "that removing any one head costs accuracy is not shown" in text


# Notebook 06

FEW, MANY = sentences.TestSplit(6, 1), sentences.TestSplit(1648, 250)
HALFWAY = pd.DataFrame(
    {
        "ablation": span(79.4), "gradient": span(78.2), "normalised gradient": span(58.9),
        "attention": span(12.9), "random 1": span(99), "random": span(34.1, 15),
    }
).T.assign(removed=8, share=0.5)  # fmt: skip
BASE = {**span(98.4), "n": 1000, "n_clusters": 455}
FAST = {"faster": 1.034, "low": 1.006, "high": 1.052}
QUICK = {"model": "L2 left out", "faster": 1.27, "low": 1.24, "high": 1.3, "change": span(-7.9)}


def test_removals_that_help_or_do_not():
    for estimate, p, said in (
        (0.015, 0.2, "is not shown. The cheapest is L1: +0.015 [0.005, 0.025] (n = 1,000 training"),
        (-0.015, 0.01, "the removal of L1 (-0.015 [-0.025, -0.005]) lowers the loss"),
        (-0.0004, 0.01, "L1 (0.000 [-0.010, 0.010])"),  # not "-0.000"
    ):
        rows = [("L0H0", 0.5, 0.001), ("L1", estimate, p)]
        single = table("part estimate p_corrected", *rows, half=0.01, n=1000, n_clusters=500)
        assert said in say("describe_helps", single)
    assert say("describe_helps", single.assign(n=1)).startswith("1 training question is not enough")


def test_orders_against_chance():
    for ahead, verdict in ((45.4, "better than chance"), (-45.4, "worse"), (4, "not to be told")):
        text = say("describe_orders", HALFWAY, {**span(ahead, 15), "n": 40}, BASE)
        assert verdict in text
        assert "8 of 16 heads removed, 98.4 % [97.4, 99.4] becomes 79.4 % [78.4, 80.4] by" in text
        assert "78.2 % [77.2, 79.2] by gradient, 58.9 % [57.9, 59.9] by normalised grad" in text
        assert "34.1 % [19.1, 49.1] in the mean of 40 random orders" in text
        assert "random 1" not in text
    alone = {"estimate": 4.0, "low": np.nan, "high": np.nan, "n": 1}
    text = say("describe_orders", HALFWAY, alone, BASE)
    assert "of 1 random order (n" in text
    assert text.endswith("chance: +4.0 points [no interval].")
    few = say("describe_orders", HALFWAY, alone, {**BASE, "n": 1, "n_clusters": 1})
    assert few.startswith("1 question about 1 image is not enough")


@pytest.mark.parametrize(
    ("change", "verdict", "lost"),
    [
        (-0.3, "which is within", "-1 to 1 points"),
        (-0.8, "undecided", "0 to 2 points"),
        (-1.4, "undecided", "0 to 2 points"),
        (-2.0, "which is more than", "1 to 3 points"),
    ],
)
def test_the_selected_model_by_what_the_test_half_says(change, verdict, lost):
    speeds = {1: {**FAST, "faster": 1.2}, 32: FAST}
    arguments = ("4 heads cut", 7, 1600, 0.17, span(change, 0.5), 1.0, speeds, span(4.2))
    found = sentences.Lightest(*arguments)
    text = say("describe_lightest", found, MANY, ("bf16", FAST), QUICK)
    answer = say("describe_compression_answer", found, MANY, 98.8, HALFWAY, BASE)
    for said in (text, answer):
        assert "“4 heads cut”, with 0.2 % fewer parameters. It loses" in said
        assert verdict in said
        assert lost in said
        assert "tolerance of 1 point (" in said
    assert "on one question and 1.03 times [1.01, 1.05] on 32 at once; of the precisions" in text
    assert "“L2 left out”, is 1.27 times as fast [1.24, 1.30], at 6 to 9 points" in text
    assert "times" not in answer  # times are facts of a machine
    assert "8 of 16 heads turns 98.4 % [97.4, 99.4] into 79.4 % in the order by ablation" in answer
    none = found._replace(name="whole")
    text = say("describe_lightest", none, MANY, None, {**QUICK, "model": "whole"})
    assert text.startswith("Of 6 smaller models none is selected")
    assert "(n = 1,600 questions)" in text
    assert "1,648" not in text  # the half that scores has no part in it
    answer = say("describe_compression_answer", none, MANY, 98.8, HALFWAY, BASE)
    assert answer.startswith("Not here. Of 6 smaller models")
    assert "the whole model stays" in say("describe_lightest", found, FEW, None, QUICK)
