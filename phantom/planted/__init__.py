"""Models of which something is certain, to hold the project's methods against.

    table = judge_methods(model, encoded, pairs)    # method, truth, passed, value, expected

A folder of its own, so that a change here does not draw the phantom's scenes anew.
"""

from phantom.planted.judge import judge_methods, measure_truths

__all__ = [
    "judge_methods",  # every method against every planted truth
    "measure_truths",  # the same for a study; once
]
