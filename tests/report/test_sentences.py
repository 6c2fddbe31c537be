"""Parts of sentences: rounding, signs, missing intervals, plurals."""

import numpy as np
import pandas as pd
import pytest

from helpers.report.sentences import agree, count_of, say_interval, say_number


@pytest.mark.parametrize(
    ("value", "digits", "sign", "scale", "said"),
    [
        (3.44, 1, False, 1, "3.4"),
        (-0.04, 1, False, 1, "0.0"),
        (-0.0004, 0, True, 100, "+0"),
        (0.123, 0, True, 100, "+12"),
        (-0.125, 1, False, 100, "-12.5"),
    ],
)
def test_numbers_are_rounded_and_never_minus_zero(value, digits, sign, scale, said):
    assert say_number(value, digits, sign, scale) == said


def test_intervals_are_said_from_any_row_or_are_missing():
    assert say_interval({"low": -0.04, "high": 2}) == "[0.0, 2.0]"
    assert say_interval(pd.Series({"low": 0.01, "high": 0.2}), 0, True, 100) == "[+1, +20]"
    assert say_interval({"low": np.nan, "high": np.nan}) == "[no interval]"


def test_counts_agree_with_their_noun():
    assert [count_of(number, "head") for number in (0, 1, 1200)] == [
        "0 heads",
        "1 head",
        "1,200 heads",
    ]
    assert [agree(number, "stays", "stay") for number in (0, 1, 2)] == ["stay", "stays", "stay"]
