"""Sentences about question families, in each outcome: found, not found, the other way round, too few."""

import numpy as np
import pandas as pd
import pytest
from prose import check_prose

from helpers.report import sentences as findings

COUNTS = findings.Separation(tested=28, separating=20, pairs_tested=100, n=900)
PAIR = {
    "label": "what > why", "size": 0.2512, "low": -0.3, "high": -0.2, "hedges_g": -1.25, "n_a": 500, "n_b": 600,
    "layer": 2, "head": 1, "query": "words",
}  # fmt: skip
SAID_PAIR = (
    "what above why by 25 points [20, 30] in L2H1, words query (Hedges g 1.2, n = 1,100 questions)"
)
NONE_FOUND = pd.DataFrame(columns=list(PAIR))
RANKS = pd.DataFrame({"measure": ["last", "all"], "estimate": [0.6, 0.1], "low": [0.2, -0.3], "high": [0.9, 0.4], "n": [7, 7]})  # fmt: skip


def make_layers(*rows) -> pd.DataFrame:
    columns = ["family", "layer", "query", "estimate", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def test_layers_name_the_widest_and_leave_out_words_of_the_last():
    rows = make_layers(
        ("what", 0, "[CLS]", 0.10, 0.08, 0.12, 500), ("why", 0, "[CLS]", 0.05, 0.02, 0.11, 400),
        ("what", 1, "[CLS]", -0.10, -0.12, -0.08, 500), ("why", 1, "[CLS]", -0.45, -0.5, -0.4, 400),
        ("what", 0, "words", 0.10, 0.05, 0.15, 500), ("why", 0, "words", 0.08, 0.03, 0.12, 400),
        ("what", 1, "words", 0.90, 0.80, 1.00, 500), ("why", 1, "words", 0.00, -0.1, 0.1, 400),
        ("where", 0, "[CLS]", 0.99, -0.9, 1.9, 3),
    )  # fmt: skip
    text = check_prose(findings.describe_family_layers(rows, ["what", "why"], 0.714))
    assert (
        "in L1: from -10 points [-12, -8] (what, n = 500) down to -45 points [-50, -40] (why, n = 400). "
        in text
    )
    assert (
        "in L0: from +10 points [+5, +15] (what, n = 500) down to +8 points [+3, +12] (why" in text
    )
    assert text.count("their intervals overlap") == 1
    assert "71 % visual" in text
    assert "where" not in text


def test_layers_say_nothing_of_one_family_and_only_what_a_single_layer_holds():
    rows = make_layers(
        ("what", 0, "[CLS]", 0.1, 0.0, 0.2, 9), ("why", 0, "[CLS]", 0.0, -0.1, 0.05, 9)
    )
    assert findings.describe_family_layers(rows, ["what"], 0.7) == ""
    assert findings.describe_family_layers(rows[:0], [], 0.7) == ""
    text = check_prose(findings.describe_family_layers(rows, ["what", "why"], 0.7))
    assert "words" not in text


def test_a_pair_is_said_from_the_family_that_looks_more():
    assert findings.describe_pair(PAIR) == SAID_PAIR
    small = {**PAIR, "size": 0.0123, "low": 0.004, "high": 0.02}
    assert "by 1.2 points [0.4, 2.0]" in findings.describe_pair(small)


def test_heads_are_counted_with_what_chance_would_give():
    text = check_prose(findings.describe_heads(pd.DataFrame([PAIR]), COUNTS))
    assert "in 20 of 28 heads and queries" in text
    assert "1 of 100 pairwise differences is beyond chance" in text
    assert "about 5 would pass" in text
    assert text.endswith(f"The largest: {SAID_PAIR}.")
    assert check_prose(findings.describe_heads(NONE_FOUND, COUNTS)).endswith("could be shown.")


def make_adjusted(verdicts: list[str]) -> pd.DataFrame:
    apart = [verdict in ("survives", "does not survive") for verdict in verdicts]
    adjusted_p = [
        0.01 if verdict in ("survives", "only when adjusted") else 0.5 for verdict in verdicts
    ]
    n = len(verdicts)
    return pd.DataFrame(
        {"difference": [-0.2] * n, "adjusted": [-0.25] * n, "apart": apart, "adjusted_p": adjusted_p, "verdict": verdicts}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["survives", "survives", "does not survive"], "2 of 3 differences keep their sign"),
        (
            ["only when adjusted", "never beyond chance"],
            "1 difference is beyond chance that is not without",
        ),
        (["only when adjusted"] * 2, "2 differences are beyond chance that are not without"),
        (["never beyond chance"], "no more than before can be shown"),
    ],
)
def test_adjusted_differences_stay_or_not(verdicts, said):
    text = check_prose(findings.describe_adjusted(make_adjusted(verdicts), 900, 5, 7))
    assert said in text
    assert "changes by +5.0 points" in text
    assert "within 5 of 7 families; for the rest" in text
    every = check_prose(findings.describe_adjusted(make_adjusted(verdicts), 900, 7, 7))
    assert every.endswith("Length varies within every family.")
    none = check_prose(findings.describe_adjusted(make_adjusted(verdicts), 900, 0, 7))
    assert none.endswith("Length varies within no family: the adjustment is for patch count alone.")


def test_lengths_that_go_with_the_family_cannot_be_adjusted_for():
    assert "Cannot be told here" in check_prose(
        findings.describe_adjusted(make_adjusted([]), 900, 0, 7)
    )


def make_rates(**changed) -> pd.DataFrame:
    kinds = {
        "pair": "single test", "pair, adjusted": "single test", "any pair, Holm": "after correction",
        "false among found, B-H": "after correction", "mean of a family": "interval", "difference of two": "interval",
    }  # fmt: skip
    rates = {name: 0.95 if kind == "interval" else 0.05 for name, kind in kinds.items()} | changed
    return pd.DataFrame(
        [{"procedure": name, "kind": kind, "rate": rates[name], "low": rates[name] - 0.01, "high": rates[name] + 0.01}
         for name, kind in kinds.items()]
    )  # fmt: skip


def test_calibration_names_what_is_wrong_too_often():
    good = check_prose(findings.describe_calibration(make_rates(), 900, 300, 0.123))
    assert "rejects in 5.0 % [4.0, 6.0]" in good
    assert "correlated by 0.12" in good
    assert "all are as good as asked for here (single tests at most 7 %" in good
    rates = make_rates(
        **{"pair": 0.2, "mean of a family": 0.8, "any pair, Holm": 0.0}
    )  # Holm may be cautious
    assert check_prose(findings.describe_calibration(rates, 900, 300, 0.1)).endswith(
        "Too often wrong: pair, mean of a family."
    )


def test_power_tells_the_best_and_the_worst_pair():
    pairs = pd.DataFrame(
        [("what", "why", 0.02, 0.5, 0.5, 50, 60), ("what", "why", 0.04, 0.01, 0.02, 50, 60), ("what", "who", 0.1, 0.01, 0.02, 50, 9),
         ("why", "who", np.nan, np.nan, np.nan, 60, 9)],
        columns=["group_a", "group_b", "detectable", "p", "p_corrected", "n_a", "n_b"],
    )  # fmt: skip
    text = check_prose(findings.describe_power(pairs, 0.0123))
    assert "to be found among these 3 tests, p has to lie below 0.012;" in text
    assert (
        "is 3.0 points between what and why (n = 50 and 60), and 10.0 points between what and who"
        in text
    )
    assert "1 of the 3 measured differences is not beyond chance" in text
    found = check_prose(findings.describe_power(pairs[1:], 0.05))
    assert found.endswith("All measured differences are beyond chance.")
    assert "other end" not in check_prose(findings.describe_power(pairs[:2], 0.05))
    assert findings.describe_power(pairs[3:], 0.05) == ""


def make_controls(late: tuple) -> tuple[pd.DataFrame, pd.DataFrame]:
    checked = pd.DataFrame(
        [(0, "[CLS]", 0.36, 0.33, 0.38, 0.001, 200, 30), (0, "words", -0.1, -0.2, -0.05, 0.001, 200, 30), (1, "[CLS]", *late, 200, 30)],
        columns=["layer", "query", "difference", "low", "high", "p_corrected", "n_a", "n_b"],
    )  # fmt: skip
    kinds = ["needs the image", "words are enough"]
    by_kind = pd.DataFrame(
        {
            "kind": kinds * 2,
            "query": "[CLS]",
            "layer": [0, 0, 1, 1],
            "estimate": [0.5, 0.5, -0.11, -0.42],
        }
    )
    return checked, by_kind


def test_controls_show_what_they_should_or_do_not():
    text = check_prose(findings.describe_controls(*make_controls((0.31, 0.29, 0.33, 0.001))))
    assert "in 2 of 3 layers and queries, and less in 1 " in text
    assert "+36 points [+33, +38] in L0 ([CLS] query)" in text
    assert "(there -11 against -42 from uniform" in text
    assert text.endswith("The measure shows what it should.")
    text = check_prose(findings.describe_controls(*make_controls((-0.05, -0.08, -0.02, 0.001))))
    assert text.endswith("In the last layer the measure does not show what was expected.")
    assert "Not enough" in check_prose(findings.describe_controls(pd.DataFrame(), None))


def test_examples_say_what_is_known_of_each_family():
    here = pd.DataFrame(
        {
            "estimate": [-0.2, -0.4],
            "low": [-0.3, -0.5],
            "high": [-0.1, -0.3],
            "n": [500, 4],
            "enough": [True, False],
        },
        index=["what", "where"],
    )
    aim = pd.DataFrame(
        {"estimate": [0.24], "low": [0.2], "high": [0.3], "enough": [True]}, index=["what"]
    )
    text = check_prose(findings.describe_examples(here, aim, 1, ["what", "where", "why"]))
    assert (
        "what: -20 points [-30, -10], favourite patch in a box asked about +24 points [+20, +30]"
        in text
    )
    assert "where" not in text
    unknown = aim.assign(estimate=np.nan, enough=False)
    text = check_prose(findings.describe_examples(here, unknown, 1, ["what"]))
    assert "favourite" not in text
    assert "has no boxes" in text
    text = check_prose(findings.describe_examples(here, unknown, 1, ["where", "why"]))
    assert text.startswith("Not enough questions of where, why to tell.")


def test_the_answer_in_every_outcome():
    checks = pd.DataFrame({"measure": ["last", "MM-SHAP"], "right": [True, False]})
    found, adjusted = pd.DataFrame([PAIR]), make_adjusted(["survives", "does not survive"])
    text = check_prose(findings.describe_family_answer(found, COUNTS, adjusted, RANKS, checks))
    assert text.startswith("Yes: families differ")
    assert SAID_PAIR in text
    assert "1 of 2 pairwise differences stays" in text
    assert (
        "From family to family, the [CLS] share of the last layer goes with the accuracy lost with another image (Spearman +0.60 [+0.20, +0.90], 7"
        in text
    )
    assert "Of 2 measures 1 tells" in text
    assert "(not shown for: MM-SHAP)" in text
    opposite = RANKS.assign(estimate=-0.6, low=-0.9, high=-0.2)
    assert "goes against the accuracy lost" in findings.describe_family_answer(
        found, COUNTS, adjusted, opposite, checks
    )
    few = COUNTS._replace(separating=3)
    unsure = RANKS.assign(low=-0.2)
    text = check_prose(
        findings.describe_family_answer(found, few, adjusted[:0], unsure, checks[:0])
    )
    assert text.startswith("In places")
    assert "cannot be told apart from the family" in text
    assert "is not shown to go with the accuracy lost" in text
    assert "measures" not in text
    unknown = RANKS.assign(estimate=np.nan, low=np.nan, high=np.nan)
    text = check_prose(
        findings.describe_family_answer(NONE_FOUND, COUNTS, adjusted, unknown, checks[:0])
    )
    assert text.startswith("None of 100 differences")
    assert "Spearman" not in text


def test_too_few_questions_are_counted():
    assert "of the 7 here (n = 12 questions on 3 images) none has" in check_prose(
        findings.say_too_few([], 7, 12, 3)
    )
    assert "of the 7 here (n = 40 questions on 9 images) 1 has" in check_prose(
        findings.say_too_few(["what"], 7, 40, 9)
    )
