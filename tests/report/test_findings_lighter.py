"""Sentences about lighter models, in each outcome."""

import numpy as np
import pandas as pd
import pytest
from prose import check_prose

from helpers.report import sentences as findings

FEW, MANY = findings.TestSplit(6, 1), findings.TestSplit(1648, 250)


def span(estimate: float, half: float = 1.0) -> dict:
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half}


def make_single(estimate: float, p: float, n: int = 1000) -> pd.DataFrame:
    rows = [
        {"part": "L0H0", **span(0.5, 0.1), "p_corrected": 0.001},
        {"part": "L1", **span(estimate, 0.01), "p_corrected": p},
    ]
    return pd.DataFrame(rows).assign(n=n, n_clusters=max(1, n // 2))


def test_removals_that_help_or_do_not():
    text = check_prose(findings.describe_helps(make_single(0.015, 0.2)))
    assert (
        "is not shown. The cheapest is L1: +0.015 [0.005, 0.025] (n = 1,000 training questions about 500 images"
        in text
    )
    assert "p corrected over 2 heads and layers" in text
    assert "is not shown. The cheapest is L1: -0.015" in check_prose(
        findings.describe_helps(make_single(-0.015, 0.2))
    )
    text = check_prose(findings.describe_helps(make_single(-0.015, 0.01)))
    assert text.startswith(
        "One at a time, the removal of L1 (-0.015 [-0.025, -0.005]) lowers the loss"
    )
    text = check_prose(findings.describe_helps(make_single(-0.0004, 0.01)))
    assert "L1 (0.000 [-0.010, 0.010])" in text  # not "-0.000"
    both = make_single(-0.015, 0.01).assign(estimate=-0.015, low=-0.02, high=-0.01)
    text = check_prose(findings.describe_helps(both))
    assert "removal of L0H0 (-0.015 [-0.020, -0.010]), L1 (-0.015 [-0.020, -0.010]) lowers" in text
    few = {n: check_prose(findings.describe_helps(make_single(0.1, np.nan, n))) for n in (1, 4)}
    assert few[4] == "4 training questions are not enough to tell whether any removal helps."
    assert few[1].startswith("1 training question is not enough")


def make_halfway() -> pd.DataFrame:
    rows = {
        "ablation": span(79.4),
        "gradient": span(58.9),
        "attention": span(12.9),
        "random": span(34.1, 15.0),
    }
    return pd.DataFrame(rows).T.assign(removed=8, share=0.5)


BASE = {**span(98.4), "n": 1000, "n_clusters": 455}
FREE = {"ablation": 1, "gradient": 0, "attention": 0, "random": 0}


def describe_orders(ahead: dict, base=BASE, tolerance: float = 1.0) -> str:
    return check_prose(
        findings.describe_orders(make_halfway(), {"n": 5, **ahead}, base, FREE, tolerance)
    )


def test_orders_against_chance():
    text = describe_orders(span(45.4, 15.0))
    assert text.startswith(
        "With 8 of 16 heads removed, 98.4 % [97.4, 99.4] becomes 79.4 % [78.4, 80.4] by ablation"
    )
    assert (
        "34.1 % [19.1, 49.1] by chance (mean and interval of 5 orders) (n = 1,000 questions)"
        in text
    )
    assert "is better than chance: +45.4 points [30.4, 60.4]" in text
    assert "1 point (in the estimate) pays for 1 head by ablation, 0 by gradient" in text
    assert "is worse than chance: -45.4 points" in describe_orders(span(-45.4, 15.0))
    assert "is not to be told from chance" in describe_orders(span(4.0, 15.0))
    assert "2.5 points (in the estimate) pay for" in describe_orders(span(4.0), tolerance=2.5)
    alone = describe_orders({"estimate": 4.0, "low": np.nan, "high": np.nan, "n": 1})
    assert "by chance (a single order) (n = 1,000" in alone
    assert "is not to be told from chance: +4.0 points [no interval]. Without" in alone
    few = {n: describe_orders(span(1.0), {**BASE, "n": n, "n_clusters": 1}) for n in (1, 6)}
    assert few[6] == "6 questions about 1 image are not enough to tell the orders apart."
    assert few[1].startswith("1 question about 1 image is not enough")


def make_costs(*rows) -> pd.DataFrame:
    costs = pd.DataFrame(rows, columns=["what", "removed", "family", "drop", "significant", "told"])
    return costs.assign(low=costs["drop"] - 2, high=costs["drop"] + 2, n=147)


def describe_families(costs: pd.DataFrame) -> str:
    quarter = costs[(costs["what"] == "heads removed") & (costs["family"] != "all")]
    return check_prose(findings.describe_families(costs, quarter, "4 of 16 heads", "L2"))


HEADS, LAYERS = "heads removed", "layers removed"
RARE = (HEADS, "4", "rare", 80.0, False, False)


def test_families_that_lose_most_and_least():
    costs = make_costs(
        (HEADS, "4", "why", 9.8, True, True), (HEADS, "4", "who", 0.0, False, True), RARE, (LAYERS, "+L2", "all", 12.8, True, True)
    )  # fmt: skip
    text = describe_families(costs)
    assert (
        "loses most is “why”: 9.8 points [7.8, 11.8] (n = 147), the one that loses least “who”: 0.0 points"
        in text
    )
    assert (
        "Without the cheapest layer, L2, all questions together lose 12.8 points [10.8, 14.8]."
        in text
    )
    assert text.endswith("That any removal makes a family better is not shown.")
    assert "rare" not in text


def test_families_that_gain_and_runs_of_one_layer_or_too_few():
    text = describe_families(
        make_costs(
            (HEADS, "4", "why", -9.8, True, True), (LAYERS, "+L2\nL1", "who", -3.0, True, True)
        )
    )
    assert (
        "In 2 of 2 cells a removal makes the model better beyond chance: “why” with 4 heads removed, 9.8 points; "
        in text
    )
    assert "“who” with layers removed up to L1, 3.0 points." in text
    text = describe_families(make_costs((HEADS, "1", "why", -9.8, True, True)))
    assert "“why” with 1 head removed, 9.8 points." in text
    text = describe_families(make_costs((HEADS, "4", "why", 5.0, True, True)))
    assert text.startswith(
        "With 4 of 16 heads removed (order by ablation) the family that loses most is “why”: "
        "5.0 points [3.0, 7.0] (n = 147). That"
    )
    text = describe_families(make_costs(RARE))
    assert text.startswith("No family has 10 questions on 5 images")
    assert "cheapest layer" not in text


def test_families_none_of_which_loses():
    rows = [(HEADS, "4", "why", -9.8, True, True), (HEADS, "4", "who", -2.5, False, True)]
    text = describe_families(make_costs(*rows))
    assert (
        "no family loses accuracy in the estimate; “who” gains least: +2.5 points [0.5, 4.5] (n = 147)."
        in text
    )
    assert text.endswith("In 1 of 2 cells a removal makes the model better beyond chance: “why” with 4 heads removed, 9.8 points.")  # fmt: skip
    text = describe_families(make_costs((HEADS, "4", "why", 0.0, False, True)))
    assert "“why” gains least: +0.0 points" in text
    lost = [(HEADS, "4", "who", 1.0, False, True), (HEADS, "4", "why", -0.04, False, True), (LAYERS, "+L2", "all", -0.04, False, True)]  # fmt: skip
    text = describe_families(make_costs(*lost))
    assert "least “why”: 0.0 points" in text
    assert "lose 0.0 points" in text
    empty = make_costs(RARE).iloc[:0]
    text = check_prose(findings.describe_families(empty, empty, "1 of 4 heads", "L0"))
    assert text.startswith("No family has 10 questions")


def test_training_brings_back():
    recovery = pd.DataFrame(
        {
            "model": ["whole", "4 heads cut", "L2 left out"],
            "before": [0.0, -4.6, -13.0],
            "after": [-0.2, -0.8, -2.0],
        }
    )
    gains = {"whole": span(20.0), "4 heads cut": span(3.8), "L2 left out": span(11.0)}
    text = check_prose(findings.describe_recovery(recovery, gains, MANY))
    assert (
        "to “L2 left out”: -13.0 points against the whole model before the training, -2.0 after it, a gain of 11.0"
        in text
    )
    assert (
        "The whole model, trained on just as long, gains 20.0 [19.0, 21.0] (n = 1,648 questions about 250 images)"
        in text
    )
    text = check_prose(findings.describe_recovery(recovery, gains, FEW))
    assert (
        text
        == "Not enough questions to tell what a training brings back (n = 6 questions about 1 image)."
    )
    one = check_prose(
        findings.describe_recovery(recovery.iloc[:2], dict(list(gains.items())[:2]), MANY)
    )
    assert "to “4 heads cut”: -4.6 points" in one
    worse = {**gains, "4 heads cut": span(-3.8), "L2 left out": span(-11.0)}
    text = check_prose(findings.describe_recovery(recovery, worse, MANY))
    assert text.startswith("That a training brings anything back is not shown.")
    assert "a gain of -3.8 [-4.8, -2.8]" in text
    nothing = {name: span(0.0) for name in gains}
    text = check_prose(findings.describe_recovery(recovery, nothing, MANY))
    assert text.startswith(
        "That a training brings anything back is not shown. The most, in the estimate, to “4 heads cut”: "
    )


FAST = {"faster": 1.034, "low": 1.006, "high": 1.052}


def test_lower_precisions():
    tried = {
        "bf16": {**FAST, "change": span(-0.04, 0.02), "bytes": 0.5},
        "int8": {**FAST, "change": span(-1.0), "bytes": 0.37},
    }
    text = check_prose(findings.describe_precision(tried, 32, MANY, 31, "CPU"))
    assert (
        "with 32 questions at once, bf16 is 1.03 times as fast [1.01, 1.05] as fp32, at 0.0 points [-0.1, 0.0]"
        in text.replace("+0.0", "0.0")
    )
    assert (
        "int8 is 1.03 times as fast [1.01, 1.05] as fp32, at -1.0 points [-2.0, 0.0] of accuracy and 0.37 of its bytes"
        in text
    )
    text = check_prose(findings.describe_precision({"bf16": tried["bf16"]}, 1, FEW, 31, "a GPU"))
    assert "one question at once" in text
    assert "(too few questions to tell)" in text
    assert text.endswith("Dynamic int8 is not available on this device.")
    assert "No lower precision" in check_prose(findings.describe_precision({}, 1, FEW, 31, "CPU"))


def make_found(change: float, name: str = "4 heads cut", half: float = 0.5) -> findings.Lightest:
    speeds = {1: {**FAST, "faster": 1.2}, 32: FAST}
    return findings.Lightest(name, 7, 1600, 6.4, span(change, half), 1.0, speeds)


QUICK = {"model": "L2 left out", "faster": 1.27, "low": 1.24, "high": 1.3, "change": span(-7.9)}


@pytest.mark.parametrize(
    ("change", "said", "sure"),
    [
        (-0.3, "confirms", "Yes: "), (-0.8, "can neither confirm nor exclude", "Yes, in the estimate: "),
        (-1.2, "can neither confirm nor exclude", "Not for certain: "), (-2.0, "contradicts", "Not the one that was chosen: "),
    ],
)  # fmt: skip
def test_the_lightest_model_by_what_the_judges_say(change, said, sure):
    text = check_prose(findings.describe_lightest(make_found(change), MANY, None, QUICK))
    assert (
        "Of 7 models the lightest within 1 point of the whole one, on the images that choose, is “4 heads cut”, "
        f"with 6 % fewer parameters. The other half {said} that: {change:+.1f} points" in text
    )
    assert (
        "measured 1.20 times as fast [1.01, 1.05] on one question and 1.03 times [1.01, 1.05] on 32 at once; no lower"
        in text
    )
    assert (
        "The fastest in fp32, “L2 left out”, is 1.27 times as fast [1.24, 1.30], at -7.9 points [-8.9, -6.9]."
        in text
    )
    assert check_prose(
        findings.describe_compression_answer(make_found(change), MANY, 98.8, make_halfway(), BASE)
    ).startswith(sure)


def test_precisions_of_the_lightest_and_the_fastest_that_is_the_lightest():
    text = check_prose(
        findings.describe_lightest(
            make_found(-0.3), MANY, ("bf16", FAST), {**QUICK, "model": "4 heads cut"}
        )
    )
    assert text.endswith(
        "of its precisions, bf16 is the fastest within the tolerance (1.03 times [1.01, 1.05])."
    )
    control = make_found(-0.3)._replace(control=span(4.2))  # more training alone gains more
    text = check_prose(findings.describe_lightest(control, MANY, None, QUICK))
    assert (
        "about 250 images). The whole model, trained on just as long: +4.2 points [3.2, 5.2]. It measured"
        in text
    )
    one_size = make_found(-0.3)._replace(
        fewer=0.17, speeds={1: FAST}, tolerance=2.5
    )  # 1 head of 144
    text = check_prose(
        findings.describe_lightest(one_size, FEW._replace(n=10, n_images=5), None, QUICK)
    )
    assert "within 2.5 points of the whole one" in text
    assert "with 0.2 % fewer parameters. The other half confirms that" in text
    assert "measured 1.03 times as fast [1.01, 1.05] on one question; no lower" in text
    slower = {"model": "whole", "faster": 1.0, "low": 1.0, "high": 1.0, "change": span(0.0)}
    text = check_prose(findings.describe_lightest(make_found(-0.3), MANY, None, slower))
    assert text.endswith("In fp32 no model measured faster than the whole one.")


def test_no_lighter_model_and_too_few_questions():
    none = make_found(0.0, "whole")
    text = check_prose(findings.describe_lightest(none, MANY, None, QUICK))
    assert text.startswith(
        "None of 6 other models stays within 1 point of the whole one with fewer parameters (n = 1,600 "
        "questions that choose): here nothing can be spared. The fastest in fp32, “L2 left out”,"
    )
    assert "1,648" not in text  # the half that judges has no part in it
    text = check_prose(findings.describe_lightest(none, MANY, None, {**QUICK, "model": "whole"}))
    assert text.endswith("here nothing can be spared.")
    text = check_prose(findings.describe_compression_answer(none, MANY, 98.8, make_halfway(), BASE))
    assert text.startswith("Not here: none of 6 other models stays")
    assert "with fewer parameters (n = 1,600 questions that choose). Without" in text
    assert text.endswith(
        "removing 8 of 16 heads turns 98.4 % [97.4, 99.4] into 79.4 % in the order by ablation, "
        "12.9 % in that by attention and 34.1 % by chance."
    )
    assert "the whole model stays." in check_prose(
        findings.describe_lightest(none, FEW, None, QUICK)
    )
    few = {**BASE, "n": 6, "n_clusters": 1}
    text = check_prose(findings.describe_compression_answer(none, FEW, 98.8, make_halfway(), few))
    assert (
        text
        == "There are not enough questions to tell whether a lighter model answers as well (n = 6 questions about 1 image)."
    )
