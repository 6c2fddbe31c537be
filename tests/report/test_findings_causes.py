"""Sentences about removals, importance and patching, in each outcome."""

import numpy as np
import pandas as pd
from prose import check_prose
from report.test_findings_roles import make_scores

from helpers.report import sentences as findings

ASKED = findings.RemovalQuestions(400, 150, 3, {"estimate": 98.4, "low": 97.6, "high": 99.1})


def make_overall(drops, significant, told=True) -> pd.DataFrame:
    drops = np.array(drops, dtype=float)
    bounds = {"low": drops - 0.5, "high": drops + 0.5}
    names = [f"L0H{head}" for head in range(len(drops))]
    return pd.DataFrame(
        {"name": names, "drop": drops, **bounds, "significant": significant, "told": told}
    )


ALIKE = {"estimate": 0.93, "low": 0.62, "high": 1.0}


def test_removals_that_cost_and_that_do_not():
    text = check_prose(
        findings.describe_ablation(
            make_overall([46.5, 2.0, 0.1], [True, True, False]), ASKED, ALIKE
        )
    )
    assert text.startswith(
        "Intact, the model scores 98.4 % [97.6, 99.1] on 400 questions about 150 images. Of its 3 heads"
    )
    assert (
        "L0H0 costs most, 46.5 points [46.0, 47.0]. Removing 1 of them costs less than 1 point"
        in text
    )
    assert "estimate, 1 by the whole interval; that any removal helps is not shown." in text
    assert text.endswith("heads rank by cost with correlation 0.93 [0.62, 1.00] to zero.")


def test_no_answer_changed_leaves_a_doubt_of_three_in_n():
    same = make_overall([1.0, 0.0], [False, False]).assign(low=0.0, high=0.0)
    for n, sure in ((301, 1), (299, 0)):
        asked = ASKED._replace(n=n)
        assert f"{sure} by the whole interval" in findings.describe_ablation(same, asked, ALIKE)


def test_removals_that_help_are_uncertain_or_free():
    better = make_overall([1.0, -2.0, -3.0], [False, True, True])
    text = check_prose(
        findings.describe_ablation(
            better, ASKED, {"estimate": np.nan, "low": np.nan, "high": np.nan}
        )
    )
    assert "1.0 points [0.5, 1.5] (not significant after correction)" in text
    assert text.endswith("without L0H1 or L0H2 the model is better.")
    few = make_overall([1.0, 0.0], [False, False], told=False)
    assert "(not enough questions to tell)" in check_prose(
        findings.describe_ablation(few, ASKED, ALIKE)
    )
    all_cost = make_overall([46.5, 20.0], [True, True])
    text = check_prose(findings.describe_ablation(all_cost, ASKED, ALIKE))
    assert (
        ". Removing any of them costs at least 1 point in the estimate; that any removal helps"
        in text
    )
    text = answer(make_scores([True] * 4), all_cost)
    assert text.endswith("while none is estimated to cost less than 1 (n = 400 questions).")
    assert "none costs anything" in check_prose(findings.describe_ablation(few[1:], ASKED, ALIKE))


def make_families(significant: bool = True) -> pd.DataFrame:
    rows = [
        ("L0H0", "why", 30.0),
        ("L0H0", "who", 28.0),
        ("L0H1", "why", -1.0),
        ("L0H1", "who", 12.0),
    ]
    table = pd.DataFrame(rows, columns=["name", "family", "drop"])
    return table.assign(
        low=table["drop"] - 2, high=table["drop"] + 2, n=100, significant=significant
    )


def test_the_special_head_leads_by_most():
    special = findings.find_special(make_families())
    assert special.name == "L0H1"  # 13 points ahead of the next family, L0H0 only 2
    text = check_prose(findings.describe_special(special))
    assert (
        "without it “who” questions lose 12.0 points [10.0, 14.0] (n = 100), and no other family more than 0.0 "
        in text
    )
    assert "(“why” [-3.0, 1.0], n = 100)." in text
    assert "not significant" in check_prose(
        findings.describe_special(findings.find_special(make_families(False)))
    )
    assert findings.find_special(make_families().query("family == 'who'")) is None
    assert "not enough questions" in check_prose(findings.describe_special(None))


def test_a_head_without_which_no_family_loses_is_not_called_special():
    for drops in ([-1.0, -20.0, -0.02, -0.5], [0.0] * 4, [5.0, 5.0, 0.0, -3.0]):
        special = findings.find_special(make_families().assign(drop=drops))
        assert check_prose(findings.describe_special(special)) == (
            "No head's removal costs one family of questions more accuracy than the next, in the estimate."
        )
        text = answer(make_scores([True] * 4), make_overall([46.5, 0.2], [True, False]), special)
        assert "most specific" not in text
    served = make_families().assign(drop=[-1.0, -60.0, 9.0, 2.0])  # a gain of 60 is no lead of 59
    assert findings.find_special(served).name == "L0H1"


def make_layers(second: float, told: bool = True) -> pd.DataFrame:
    drops = pd.Series([90.0, second])
    return pd.DataFrame(
        {
            "drop": drops,
            "low": drops - 5,
            "high": drops + 5,
            "significant": [True, second > 5],
            "told": told,
        }
    )


def test_layers_that_cost_and_heads_that_stand_in_for_each_other():
    joint = pd.DataFrame(
        {
            "layer": [0, 1],
            "estimate": [-3.0, 6.0],
            "low": [-5, 4.0],
            "high": [-1, 8.0],
            "p_corrected": [0.001, 0.01],
        }
    )
    text = check_prose(findings.describe_layer_removals(make_layers(12.0), joint, ASKED))
    assert (
        "the costliest layer is L0: 90.0 points [85.0, 95.0], the cheapest L1: 12.0 points [7.0, 17.0] (n = 400"
        in text
    )
    assert (
        "Every layer's removal costs accuracy beyond chance. All heads of L1 together cost 6.0 points [4.0, 8.0] more"
        in text
    )
    less = joint.assign(estimate=[-3.0, -1.0])
    text = check_prose(findings.describe_layer_removals(make_layers(2.0), less, ASKED))
    assert "That L1 costs anything is not shown. No layer's heads cost more together" in text
    assert "not enough to tell" in check_prose(
        findings.describe_layer_removals(make_layers(2.0, False), joint, ASKED)
    )
    one = ASKED._replace(n=1, n_images=1)
    assert findings.describe_layer_removals(make_layers(2.0, False), joint, one).startswith(
        "1 question is not enough"
    )
    assert "on 1 question about 1 image. Of" in findings.describe_ablation(
        make_overall([1.0], False), one, ALIKE
    )
    none = make_layers(2.0).assign(significant=False)
    assert ". That any layer's removal costs accuracy is not shown. No" in check_prose(
        findings.describe_layer_removals(none, less, ASKED)
    )


def test_heads_that_stand_in_beyond_chance_go_before_a_larger_estimate_that_is_not():
    bounds = {"low": [-1.0, 4.0], "high": [17.0, 8.0]}
    joint = pd.DataFrame(
        {"layer": [0, 1], "estimate": [8.0, 6.0], **bounds, "p_corrected": [0.2, 0.01]}
    )
    text = check_prose(findings.describe_layer_removals(make_layers(12.0), joint, ASKED))
    assert "All heads of L1 together cost 6.0 points [4.0, 8.0] more" in text


def test_layers_that_change_nothing_or_help_or_were_not_tested_together():
    joint = pd.DataFrame(
        {"layer": [0], "estimate": [6.0], "low": [4.0], "high": [8.0], "p_corrected": [np.nan]}
    )
    for untested in (joint, joint[:0]):
        text = check_prose(findings.describe_layer_removals(make_layers(-0.02), untested, ASKED))
        assert "the cheapest L1: 0.0 points [-5.0, 5.0]" in text
        assert text.endswith(
            "No layer's heads cost more together than one by one in sum, beyond chance."
        )
    helped = make_layers(-12.0).assign(significant=True)
    text = check_prose(findings.describe_layer_removals(helped, joint, ASKED))
    assert "the cheapest L1: -12.0 points" in text
    assert "That L1 costs anything is not shown." in text


def make_agreement(cls=0.0, words=0.0, gradient=0.8, moved=0.1) -> pd.DataFrame:
    zeroed, carried = "accuracy lost, head zeroed", "change carried (5.9)"
    values = {
        "excess image share of [CLS]": cls,
        "excess image share of words": words,
        "number of the layer": -0.5,
        "gradient": gradient,
    }
    rows = [(name, zeroed, value) for name, value in values.items()] + [(zeroed, carried, moved)]
    table = pd.DataFrame(rows, columns=["first", "second", "correlation"]).assign(over="all heads")
    return table.assign(low=table["correlation"] - 0.3, high=table["correlation"] + 0.3)


def describe_importance(**values) -> str:
    return check_prose(
        findings.describe_importance(findings.find_correlations(make_agreement(**values)), 16, 400)
    )


def test_importance_is_foretold_or_not():
    text = describe_importance()
    assert "rank correlation 0.00 [-0.30, 0.30] with the excess image share of [CLS]" in text
    assert (
        "-0.50 [-0.80, -0.20] with the number of the layer alone, and 0.80 [0.50, 1.10] with the gradient"
        in text
    )
    assert text.endswith("is not shown; heads with larger gradients cost more.")
    assert "heads that attend more to the image cost more; " in describe_importance(cls=0.5)
    assert "heads that attend more to the image cost less; " in describe_importance(words=-0.5)
    assert "depends on the query; " in describe_importance(cls=0.5, words=-0.5)
    assert describe_importance(gradient=0.1).endswith(
        "that heads with larger gradients cost more is not shown."
    )
    assert findings.find_correlations(make_agreement(cls=np.nan)) is None
    assert "nothing with 400 questions, so there is no importance" in check_prose(
        findings.describe_importance(None, 16, 400)
    )


def make_carriers(share: float = 23.0, significant: bool = True) -> pd.DataFrame:
    rows = [
        ("all", "L0H1", share, significant, 246),
        ("all", "L0H0", -4.0, True, 246),
        ("who", "L0H1", 115.0, significant, 18),
    ]
    table = pd.DataFrame(rows, columns=["family", "name", "share", "significant", "n"])
    return table.assign(low=table["share"] - 4, high=table["share"] + 5)


def test_patching_says_who_carries_and_whether_they_are_needed():
    text = check_prose(findings.describe_patching(make_carriers(), make_agreement(), 246))
    assert text.startswith(
        "1 of 2 heads carries part of the change from one image's answer to another's (n = 246 pairs"
    )
    assert (
        "most of all L0H1: 23 % [19, 28], and in “who” pairs (n = 18) L0H1: 115 % [111, 120]. Heads rank"
        in text
    )
    assert "0.10 [-0.20, 0.40] to what their removal costs" in text
    assert text.endswith("are not shown to go together.")
    assert check_prose(
        findings.describe_patching(make_carriers(), make_agreement(moved=0.6), 9)
    ).endswith("go together.")
    text = check_prose(
        findings.describe_patching(
            make_carriers(significant=False), make_agreement(moved=np.nan), 246
        )
    )
    assert text.startswith(
        "That any of 2 heads carries"
    )  # the other is significant, but the other way
    assert "correlation" not in text
    sure = make_carriers(23.0, False).assign(
        share=[23.0, 8.0, -115.0], significant=[False, True, True]
    )
    text = check_prose(findings.describe_patching(sure, None, 246))
    assert text.startswith("1 of 2 heads carries")
    assert (
        "most of all L0H0: 8 % [" in text
    )  # the largest beyond chance, and a family only if it has one
    assert "pairs (n = 18)" not in text
    none = make_carriers(significant=False).assign(significant=False)
    text = check_prose(findings.describe_patching(none, None, 246))
    assert text == (
        "That any of 2 heads carries part of the change from one image's answer to another's is not shown (n = 246 pairs of "
        "questions in the same words); the largest estimate is L0H1's: 23 % [19, 28]."
    )
    small = none.assign(share=[-0.3, -4.0, -2.0])
    assert "L0H1's: 0 % [" in check_prose(findings.describe_patching(small, None, 246))
    opposed = check_prose(
        findings.describe_patching(make_carriers(), make_agreement(moved=-0.8), 246)
    )
    assert opposed.endswith("to carry what differs between images go against each other.")
    assert "their removal costs" not in check_prose(
        findings.describe_patching(make_carriers(), None, 246)
    )
    assert "3 pairs" in check_prose(findings.describe_patching(None, make_agreement(), 3))
    assert "1 pair of questions in the same words is not" in findings.describe_patching(
        None, None, 1
    )


def answer(scores, overall, special=None, foretold=None, carriers=None) -> str:
    return check_prose(
        findings.describe_role_answer(scores, overall, ASKED, special, foretold, carriers)
    )


def test_the_answer_names_the_costliest_head_beyond_chance():
    unsure = make_overall([9.0, 8.0, 0.5], [False, True, False])
    text = answer(make_scores([True] * 4), unsure)
    assert "removing one costs up to 8.0 points of accuracy [7.5, 8.5] (L0H1;" in text
    text = answer(make_scores([True] * 4), make_overall([0.1, -8.0], [False, True]))
    assert "; that removing any one head costs accuracy is not shown (n = 400 questions)." in text
    few = make_overall([9.0, -8.0], [False, False], told=False)
    assert "; there are not enough questions to tell what removing a head costs (n =" in answer(
        make_scores([True] * 4), few
    )


def test_the_answer_in_every_outcome():
    special = findings.find_special(make_families())
    foretold = findings.find_correlations(make_agreement(cls=0.5))
    overall = make_overall([46.5, 0.2], [True, False])
    text = answer(make_scores([True] * 4), overall, special, foretold, make_carriers())
    assert (
        "removing one costs up to 46.5 points of accuracy [46.0, 47.0] (L0H0; intact: 98.4 % [97.6, 99.1]), while 1 is"
        in text
    )
    assert (
        "The most specific is L0H1: without it “who” questions lose 12.0 points [10.0, 14.0], no other family more than 0.0."
        in text
    )
    assert "The gradient foretells what a head's removal costs" in text
    assert "[CLS]'s attention to the image does too (0.50 [0.20, 0.80])." in text
    assert text.endswith(
        "Between images, L0H1 carries more of the answer than any other head: 23 % [19, 28]."
    )
    poor = findings.find_correlations(make_agreement(cls=0.5, gradient=0.1))
    text = answer(make_scores([False] * 4), overall, None, poor, make_carriers(-1.0))
    assert "is not shown to foretell" in text
    assert "[CLS]'s attention to the image does (" in text
    assert "Between images" not in text
    assert "0.40]), but [CLS]'s attention to the image does (" in text
    for gradient, said in ((0.8, "and"), (0.1, "but")):  # where looking foretells the opposite
        less = findings.find_correlations(make_agreement(cls=-0.5, gradient=gradient))
        text = answer(make_scores([True] * 4), overall, None, less)
        assert (
            f"), {said} heads whose [CLS] attends more to the image cost less (-0.50 [-0.80, -0.20])."
            in text
        )
    neither = findings.find_correlations(make_agreement(gradient=0.1))
    assert "nor is [CLS]'s attention to the image (0.00 [" in answer(
        make_scores([True] * 4), overall, None, neither
    )
    text = answer(make_scores([False] * 4, n=6), make_overall([0.1], [False]))
    assert text == (
        "There are not enough questions to tell any head's role; that removing any one head costs accuracy is not "
        "shown (n = 400 questions)."
    )
