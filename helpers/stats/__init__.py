"""Statistics for questions that come in images: intervals and tests."""

from helpers.stats.bootstrap import (
    bootstrap_by_group,
    bootstrap_mean,
    rank_correlation,
    rank_permutation_test,
)
from helpers.stats.cluster_robust import (
    compare_groups,
    correct_p,
    effective_alpha,
    has_enough_data,
    mean_difference_test,
    minimum_detectable_effect,
)
from helpers.stats.models import (
    count_beyond,
    find_leaders,
    jackknife_over_models,
    mean_over_models,
)

__all__ = [
    "bootstrap_by_group",  # mean and interval of each group of questions, as a table
    "bootstrap_mean",  # mean over questions, with an interval that resamples images
    "compare_groups",  # do groups of questions differ, and which pairs?
    "correct_p",  # p values corrected for many tests
    "count_beyond",  # how many intervals lie beyond a threshold, and how many are undecided
    "effective_alpha",  # how small one more uncorrected p must be to count
    "find_leaders",  # the largest of several, or the set that cannot be told from it
    "has_enough_data",  # are there enough questions and images to tell anything?
    "jackknife_over_models",  # mean over models of a correlation or an AUC over questions
    "mean_difference_test",  # is the mean of a paired difference 0?
    "mean_over_models",  # mean over models and questions, with an interval for both
    "minimum_detectable_effect",  # the smallest effect that a test finds with 80 % power
    "rank_correlation",  # Spearman's correlation of two scores of the same heads
    "rank_permutation_test",  # Spearman's correlation and its permutation p
]
