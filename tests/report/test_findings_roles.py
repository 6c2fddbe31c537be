"""Sentences about roles, in each outcome: some, none, habits, too few questions."""

import numpy as np
import pandas as pd
import pytest
from prose import check_prose

from helpers.report import sentences as findings


def make_scores(passes: list[bool], n: int = 900, reaches: bool = True) -> pd.DataFrame:
    """Two heads with two roles each."""
    return pd.DataFrame({
        "name": ["L0H0", "L0H0", "L0H1", "L0H1"], "role": ["sink", "grounding"] * 2, "score": [0.9, 0.2, 0.5, 0.3],
        "low": [0.8, 0.1, 0.4, 0.2], "high": [1.0, 0.3, 0.6, 0.4], "null": [0.04, 0.0, 0.1, 0.1], "passes": passes,
        "reaches_answer": reaches, "n": n, "n_clusters": max(1, n // 3),
    })  # fmt: skip


def test_roles_are_counted_against_chance():
    text = check_prose(findings.describe_roles(make_scores([True, True, False, True]), 5, 3))
    assert text.startswith(
        "2 of 2 heads have a role; 3 of 4 pairs of head and role pass (chance alone: about 1), most"
    )
    assert "most often “grounding” (in 2)" in text
    assert (
        "The clearest is L0H0 as “sink”: 0.90 [0.80, 1.00], 0.04 untrained (n = 900 questions about 300 images)"
        in text
    )
    assert "alone 5 would pass, but so do 3 pairs of untrained heads" in text
    assert "habit" not in text
    assert "no more than" not in text


def test_roles_that_chance_would_give_are_called_so():
    text = check_prose(findings.describe_roles(make_scores([False, True, False, False]), 5, 3))
    assert (
        "1 of 4 pairs of head and role passes (no more than chance alone would give: about 1), most"
        in text
    )
    said = findings.summarise_roles(make_scores([False, True, False, False]))
    assert said.endswith("“grounding”; no more than chance alone would give: about 1)")


def test_one_head_one_role_and_habits_that_reach_no_answer():
    text = check_prose(
        findings.describe_roles(make_scores([True, False, False, False], reaches=False), 5, 3)
    )
    assert text.startswith("1 of 2 heads has a role; 1 of 4 pairs of head and role passes")
    assert "1 is a habit of the last layer that cannot reach the answer." in text


def test_no_roles_and_too_few_questions():
    text = check_prose(findings.describe_roles(make_scores([False] * 4), 5, 3))
    assert text.startswith(
        "None of 2 heads has any of 2 roles (n = 900 questions about 300 images)."
    )
    text = check_prose(findings.describe_roles(make_scores([False] * 4, n=6), 0, 0))
    assert text == "6 questions about 2 images are not enough to tell the role of any head."
    text = check_prose(findings.describe_roles(make_scores([False] * 4, n=1), 0, 0))
    assert text == "1 question about 1 image is not enough to tell the role of any head."


def test_one_head_and_a_null_that_rounds_to_zero():
    one = make_scores([True, False, False, False])[:2].assign(null=-0.001)
    text = check_prose(findings.describe_roles(one, 5, 3))
    assert text.startswith("1 of 1 head has a role; 1 of 2 pairs")
    assert "0.90 [0.80, 1.00], 0.00 untrained" in text
    assert findings.describe_roles(one.assign(passes=False), 5, 3).startswith(
        "None of 1 head has any of 2 roles"
    )


@pytest.mark.parametrize(
    ("weak", "untrained", "said"),
    [
        (51, 34, "51 would pass, but so do 34 pairs of untrained heads against their neighbours."),
        (1, 1, "1 would pass, but so does 1 pair of untrained heads against their neighbours."),
        (51, 0, "51 would pass, and no untrained head does against its neighbour."),
        (0, 0, "none would pass, and no untrained head does against its neighbour."),
        (0, 3, "none would pass, while 3 pairs of untrained heads against their neighbours do."),
        (0, 1, "none would pass, while 1 pair of untrained heads against their neighbours does."),
    ],
)
def test_a_weaker_test_is_judged_by_what_untrained_heads_pass(weak, untrained, said):
    for passes in ([True] * 4, [False] * 4):
        text = check_prose(findings.describe_roles(make_scores(passes), weak, untrained))
        assert text.endswith(f"Against the same head untrained alone {said}")


@pytest.mark.parametrize(
    ("passes", "n", "said"),
    [
        ([True] * 4, 900, "2 of 2 heads have a role that no untrained head shows (4 of 4 pairs of head and role, most often “"),
        ([False] * 4, 900, "0 of 2 heads have a role that no untrained head shows (0 of 4 pairs of head and role; no more than chance"),
        ([True, False, False, False], 900, "1 of 2 heads has a role that no untrained head shows (1 of 4 pairs"),
        ([False] * 4, 6, "There are not enough questions to tell any head's role"),
    ],
)  # fmt: skip
def test_the_answer_on_roles(passes, n, said):
    assert findings.summarise_roles(make_scores(passes, n)).startswith(said)


def make_again(told: bool = True, correlation: float = 0.9) -> pd.DataFrame:
    rows = {"role": ["sink", "grounding"], "correlation": [correlation, correlation - 0.1], "agreement": [1.0, 0.5], "n_heads": 2, "told": told}  # fmt: skip
    each = pd.DataFrame(rows).assign(passes_a=[2, 1], passes_b=[2, 2])
    names = ("other half of the images", "another fine-tuning seed", "before fine-tuning")
    return pd.concat([each.assign(comparison=name) for name in names])


CHANGES = pd.DataFrame(
    {"name": ["L0H0", "L0H1"], "role": "sink", "first": [0.5, 0.1], "second": [-0.2, 0.2], "change": [-0.7, 0.1], "low": [-0.8, 0.0],
     "high": [-0.6, 0.2], "p_corrected": [0.001, 0.3], "n": 900, "n_clusters": 300}
)  # fmt: skip


def test_roles_are_found_again():
    text = check_prose(findings.describe_stability(make_again(), CHANGES, 2, 1))
    assert text.startswith(
        "This model's roles against the other half of the images: rank correlations over heads from 0.80 to 0.90 (median 0.85)"
    )
    # three of four verdicts pass on one side, four of four on the other: chance agrees in 3/4 * 1
    assert "75 % of verdicts are the same (75 % were it chance); another fine-tuning seed: " in text
    assert "; those before fine-tuning: " in text
    assert "gained 2 and lost 1 of 2 possible roles; it changed 1 of 2 scores beyond chance" in text
    assert (
        "L0H0 as “sink”, from 0.50 to -0.20 (change -0.70 [-0.80, -0.60], n = 900 questions)."
        in text
    )


def test_one_role_has_one_correlation_and_no_number_is_minus_zero():
    again = make_again().query("role == 'sink'")
    text = check_prose(findings.describe_stability(again, CHANGES.assign(first=-0.001), 0, 0))
    assert (
        "images: rank correlation over heads 0.90, for the one role that sets them apart; 100 % of"
        in text
    )
    assert "from 0.00 to -0.20" in text
    assert "rank correlations over heads from 0.00 to 0.10" in findings.describe_stability(
        make_again(correlation=0.099), CHANGES, 0, 0
    )


def test_enough_questions_but_no_change_beyond_chance():
    for changes in (
        CHANGES.assign(p_corrected=0.3),
        CHANGES.assign(p_corrected=np.nan),
        CHANGES[:0],
    ):
        text = check_prose(findings.describe_stability(make_again(), changes, 2, 1))
        assert text.endswith(
            "that fine-tuning changed any head's score cannot be shown with these questions."
        )


def test_scores_that_rise_are_said_with_their_sign():
    risen = CHANGES.assign(first=-0.2, second=0.5, change=0.7, low=0.6, high=0.8)
    assert "from -0.20 to 0.50 (change +0.70 [+0.60, +0.80], n =" in check_prose(
        findings.describe_stability(make_again(), risen, 1, 0)
    )


def test_too_few_questions_to_find_roles_again():
    text = check_prose(
        findings.describe_stability(make_again(False, np.nan), CHANGES.assign(n=5), 0, 0)
    )
    assert "no role sets the heads apart; not enough questions for verdicts; another" in text
    assert text.endswith(
        "that fine-tuning changed any head's score cannot be shown with these questions."
    )


def make_cards(*rows) -> pd.DataFrame:
    columns = [
        "role",
        "name",
        "passes",
        "hit_significant",
        "hit_drop",
        "hit_low",
        "hit_high",
        "hit_family",
    ]
    return pd.DataFrame(rows, columns=columns)


def test_cards_say_who_is_needed_and_who_is_not():
    cards = make_cards(
        ("sink", "L0H0", True, True, 40.0, 30.0, 50.0, "why"),
        ("local", "L0H1", True, False, 3.0, -1.0, 6.0, "is/are"),
        ("grounding", "L1H1", False, True, 90.0, 80.0, 99.0, "who"),
    )
    text = check_prose(findings.describe_cards(cards, 900, 400))
    assert text.startswith(
        "Of 2 roles that some head has, 1 belongs to a head whose removal costs a family"
    )
    assert (
        "(n = 400 questions), most of all “sink” (L0H0): “why” loses 40.0 points [30.0, 50.0]."
        in text
    )
    assert (
        "For “local” (L0H1) no such cost is shown: the answer does not need it, other heads have it too"
        in text
    )
    text = check_prose(findings.describe_cards(cards[1:2], 900, 400))
    assert text.startswith(
        "Of 1 role that some head has, none belongs to a head whose removal costs"
    )
    whole = make_cards(("sink", "L0H0", True, True, 40.0, 30.0, 50.0, "all"))
    text = findings.describe_cards(whole, 90, 40)
    assert "1 belongs to a head whose removal costs accuracy beyond chance" in text
    assert "“sink” (L0H0): all questions together lose 40.0" in text
    assert "no such cost is shown" not in check_prose(findings.describe_cards(cards[:1], 900, 400))
    assert "no role to check" in check_prose(findings.describe_cards(cards[2:], 900, 400))


def test_cards_of_one_question_without_interval_or_with_a_gain():
    card = ("sink", "L0H0", True, True, 40.0, np.nan, np.nan, "why")
    text = check_prose(findings.describe_cards(make_cards(card), 1, 1))
    assert (
        "(n = 1 question), most of all “sink” (L0H0): “why” loses 40.0 points [no interval]."
        in text
    )
    for none in (make_cards(card)[:0], make_cards(card).assign(passes=False)):
        assert check_prose(findings.describe_cards(none, 1, 1)) == (
            "No head has a role here (n = 1 question), so there is no role to check by removal."
        )
    gain = make_cards(("sink", "L0H0", True, True, -9.0, -12.0, -6.0, "why"))
    text = check_prose(findings.describe_cards(gain, 900, 400))
    assert "none belongs to a head" in text
    assert "most of all" not in text
