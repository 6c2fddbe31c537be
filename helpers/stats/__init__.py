"""Statistics for questions that come in images, and for models: intervals and tests."""

from helpers.stats import bootstrap, models
from helpers.stats.bootstrap import bootstrap_by_group, bootstrap_mean
from helpers.stats.cluster_robust import (
    compare_groups,
    correct_p,
    has_enough_data,
    mean_difference_test,
)
from helpers.stats.models import mean_over_models

__all__ = [
    "bootstrap",  # split_images in halves; means and ranks by resampling
    "bootstrap_by_group",  # mean and interval of each group of questions, as a table
    "bootstrap_mean",  # mean over questions, with an interval that resamples images
    "compare_groups",  # do groups of questions differ, and which pairs? also at equal strata
    "correct_p",  # p values corrected for many tests
    "has_enough_data",  # are there enough questions and images to tell anything?
    "mean_difference_test",  # is the mean of a paired difference 0?
    "mean_over_models",  # mean over models and questions, with an interval for both
    "models",  # differences, correlations and other statistics over models
]
