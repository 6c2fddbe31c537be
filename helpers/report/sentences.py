"""Parts of sentences that findings are made of: an estimate, its interval, a count."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

Row = Mapping | pd.Series


def say_interval(row: Row, digits: int = 1, sign: bool = False, scale: float = 1) -> str:
    """The 95 % interval of a row with low and high: "[1.2, 3.4]"; "[no interval]" where it has none.

    sign: write "+" before what is positive; scale: 100 turns shares into percent or points.
    """
    if np.isnan(row["low"]) or np.isnan(row["high"]):
        return "[no interval]"
    return f"[{', '.join(say_number(row[side], digits, sign, scale) for side in ('low', 'high'))}]"


def say_number(value: float, digits: int = 1, sign: bool = False, scale: float = 1) -> str:
    """A number rounded for a sentence: "+3.4"; never "-0.0"."""
    return f"{round(scale * value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def count_of(number: int, noun: str) -> str:
    """A count with its noun: "1 head", "1,200 heads"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def agree(number: int, one: str, many: str) -> str:
    """The form of a verb that goes with a number: `agree(1, "stays", "stay")`."""
    return one if number == 1 else many
