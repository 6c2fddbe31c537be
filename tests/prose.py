"""What every sentence of a finding has to be, whatever it says."""

import re

SLIPS = re.compile(r"\b(nan|inf|NaN|None(?! of))\b|  |\.\.|,,|[{}]|\( | \)")


def check_prose(text: str) -> str:
    """The text itself, if no number is missing in it and it ends as a sentence does."""
    assert not SLIPS.search(text), text
    assert text.endswith("."), text
    return text
