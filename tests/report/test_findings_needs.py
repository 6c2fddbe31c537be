"""Sentences about words and about what answers need, in each outcome."""

import numpy as np
import pandas as pd
from prose import check_prose

from helpers.report import sentences as findings


def make_words(
    noun: float, p: float, placed: float = np.nan, p_placed: float = np.nan
) -> pd.DataFrame:
    rows = [("noun", 2, noun, p, placed, p_placed), ("noun", 0, noun - 0.01, 0.9, placed, p_placed), ("colour word", 1, -0.02, 0.5, np.nan, np.nan)]  # fmt: skip
    table = pd.DataFrame(
        rows,
        columns=["word_class", "layer", "estimate", "p_corrected", "placed", "p_corrected_placed"],
    )
    bounds = {
        "low": table["estimate"] - 0.01,
        "high": table["estimate"] + 0.01,
        "p": table["p_corrected"],
        "n": 1200,
    }
    places = {
        "low_placed": placed - 0.02,
        "high_placed": placed + 0.02,
        "p_placed": table["p_corrected_placed"],
    }
    return table.assign(**bounds, **places)


def test_words_that_look_also_at_equal_place():
    against = make_words(0.09, 0.001, 0.12, 0.001)
    text = check_prose(findings.describe_words(against, against[:1], 0.71))
    assert (
        "function words of the same questions, as they stand and at equal place in the question, the highest is noun: +9.0 points [+8.0, +10.0] in L2"
        in text
    )
    assert "(n = 1,200 questions; at equal place +12.0 [+10.0, +14.0])" in text
    assert (
        "The other classes, where they are highest: colour word: -2.0 points [-3.0, -1.0] in L1"
        in text
    )
    assert text.endswith("1 lies above the function words and 0 below beyond chance (corrected); at equal place in the "
                         "question 1 of 1 of these stays above.")  # fmt: skip


def test_words_that_look_only_by_their_place_or_nobody_knows():
    against = make_words(0.09, 0.001, -0.02, 0.3)
    text = check_prose(findings.describe_words(against, against[:1], 0.71))
    assert "function words of the same questions, the highest is noun" in text
    assert text.endswith("0 of 1 of these stay above.")
    against = make_words(0.09, 0.001)
    assert "whether by class or by place cannot be told." in check_prose(
        findings.describe_words(against, against[:1], 0.7)
    )


def test_no_word_that_looks_and_too_few_questions():
    against = make_words(0.09, 0.4)
    text = check_prose(findings.describe_words(against, against[:1], 0.71))
    assert text.startswith("No class of words can be shown")
    assert "equal place in the question" not in text
    single = check_prose(
        findings.describe_words(against.assign(n=1), against.assign(n=1)[:1], 0.71)
    )
    assert "(n = 1 question)" in single
    untold = against.assign(p=np.nan, p_corrected=np.nan)
    assert "Not enough" in check_prose(findings.describe_words(untold, untold[:0], 0.71))


def test_words_that_are_read():
    extra = pd.DataFrame(
        {"word_class": ["noun", "punctuation", "colour word"], "times": [1.9, 0.4, 1.0], "estimate": [0.8, -0.6, np.nan], "low": [0.7, -0.7, np.nan],
         "high": [0.9, 0.1, np.nan], "p": [0.001, 0.2, np.nan], "p_corrected": [0.001, 0.2, np.nan], "n": [1000, 1000, 2]}
    )  # fmt: skip
    text = check_prose(findings.describe_words_read(extra))
    assert (
        "noun 1.9, against 1.1 (difference +0.8 [+0.7, +0.9], n = 1,000); punctuation 0.4, against 1.0"
        in text
    )
    assert "n = 1,000; not beyond chance)" in text
    assert "colour" not in text
    assert "Not enough" in check_prose(findings.describe_words_read(extra[2:]))


def make_needs() -> pd.DataFrame:
    rows = [
        ("what", "questions", "image removed", 70.0, 60.0, 80.0, 0.001, 300, True),
        ("is/are", "questions", "image removed", 1.0, -3.0, 5.0, 0.6, 200, True),
        ("why", "questions", "image removed", 90.0, np.nan, np.nan, np.nan, 2, False),
        ("what", "words-only controls", "image removed", 0.0, 0.0, 0.0, np.nan, 50, True),
        ("what", "questions", "words removed", -4.0, -6.0, -2.0, 0.001, 300, True),
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "family",
            "kind",
            "measure",
            "estimate",
            "low",
            "high",
            "p_corrected",
            "n",
            "enough",
        ],
    )


def test_losses_name_the_most_and_the_least_and_who_gains():
    intact = {"estimate": 98.8, "low": 98.4, "high": 99.2, "n": 500, "n_clusters": 80}
    losses = ["image removed", "image exchanged", "words removed"]
    text = check_prose(findings.describe_losses(make_needs(), losses, intact))
    assert "(intact: 98.8 [98.4, 99.2], n = 500 questions;" in text
    assert (
        "image removed: a loss beyond chance in 1 of 2 families, what +70 [+60, +80] (n = 300) down to is/are +1"
        in text
    )
    assert "image exchanged: not enough questions to tell" in text
    assert (
        "words removed: a loss beyond chance in 0 of 1 families, what -4 [-6, -2] (n = 300)."
        in text
    )
    few = make_needs().assign(enough=False)
    assert "Not enough questions" in check_prose(findings.describe_losses(few, losses, intact))


def test_ranks_agree_disagree_or_cannot_be_told():
    ranks = pd.DataFrame(
        {"measure": ["last", "all", "MM-SHAP"], "estimate": [0.6, -0.5, 0.1], "low": [0.2, -0.9, -0.3], "high": [0.9, -0.1, 0.4], "n": [7, 7, 7]}
    )  # fmt: skip
    asked = pd.DataFrame({"image exchanged": [1.0, 2.0, np.nan], "MM-SHAP": [np.nan, 1.0, np.nan]})
    text = check_prose(findings.describe_ranks(ranks, ["last", "all"], asked, 7))
    assert text.startswith("Of 2 shares of attention, 1 can be shown")
    assert "(n = 2 questions, controls left out; MM-SHAP 1)" in text
    assert (
        "last +0.60 [+0.20, +0.90] (the same way); all -0.50 [-0.90, -0.10] (the opposite way); MM-SHAP"
        in text
    )
    assert "(in no way that can be told)" in text
    part = ranks.assign(estimate=[0.6, -0.5, np.nan])
    assert "; MM-SHAP cannot be told. 0 is" in check_prose(
        findings.describe_ranks(part, ["last", "all"], asked, 7)
    )
    untold = ranks.assign(estimate=np.nan, n=0)
    alike = check_prose(findings.describe_ranks(untold.assign(n=7), ["last"], asked, 7))
    assert "in all of the 7 families" in alike
    assert "Not enough" not in alike
    few = untold.assign(n=2)
    assert "of the 3 here 2 have so many" in check_prose(
        findings.describe_ranks(few, ["last"], asked, 3)
    )
    assert "of the 3 here none has so many" in check_prose(
        findings.describe_ranks(untold, ["last"], asked, 3)
    )


def test_measures_get_the_truth_right_wrong_or_cannot_tell():
    checks = pd.DataFrame(
        [("last", 31.0, 29.0, 33.0, 0.87, 0.85, 0.9, True), ("image removed", -3.0, -5.0, -1.0, 0.4, 0.35, 0.45, False), ("MM-SHAP", 3.0, -5.0, 9.0, 0.6, 0.45, 0.7, False)],
        columns=["measure", "difference", "low", "high", "auc", "auc_low", "auc_high", "right"],
    ).assign(n_a=2000, n_b=30)  # fmt: skip
    costs = [
        {"estimate": 61.1, "low": 59.0, "high": 63.0, "n": 2000},
        {"estimate": 0.0, "low": 0.0, "high": 0.0, "n": 30},
    ]
    text = check_prose(findings.describe_needs(checks, costs, ["image removed"]))
    assert (
        "costs the questions that need it 61.1 points [59.0, 63.0] (n = 2,000) of VQA accuracy"
        in text
    )
    assert "last +31 points [+29, +33], AUC 0.87 [0.85, 0.90] (n = 2,000 and 30): right; " in text
    assert (
        "image removed -3 points of accuracy [-5, -1], AUC 0.40 [0.35, 0.45] (n = 2,000 and 30): not right; "
        in text
    )
    assert text.endswith("cannot tell.")
    text = check_prose(findings.describe_needs(checks[:1], costs, [], ["MM-SHAP"]))
    assert text.endswith("right; MM-SHAP: not enough questions to tell.")
    assert "Not enough" in check_prose(findings.describe_needs(checks[:0], costs, []))
