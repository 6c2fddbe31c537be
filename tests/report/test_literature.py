"""helpers/report/literature.py: published numbers stand beside the run's own, and the phantom's are never comparable."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from handmade import make_run

from helpers.report.compare import (
    compare_with_literature,
    find_answer_type,
    find_own,
    say_incomparable,
)
from helpers.report.headlines import read_table
from helpers.run.settings import save_table


def make_answered(tmp_path):
    """A run with 24 questions about 12 images: a yes/no (right for even images) and another one (wrong) each."""
    study = make_run(tmp_path)
    ids = np.arange(24)
    scored = pd.DataFrame(
        {"question_id": ids, "image_id": ids // 2, "accuracy": (ids % 4 == 0).astype(float)}
    )
    save_table(study, "02_predictions", scored)
    shuffled = Dataset.from_dict(
        {"question_id": ids[::-1], "answer_type": ["other", "yes/no"] * 12}
    )
    DatasetDict({"validation": shuffled}).save_to_disk(study.run_dir / "dataset")
    return study


def test_each_published_number_has_the_runs_own_beside_it(tmp_path):
    table = compare_with_literature(make_answered(tmp_path)).set_index("what")
    assert table.loc["VQA accuracy", "published"] == 71.32
    assert table.loc["VQA accuracy", "estimate"] == 50
    assert table.loc["VQA accuracy", "own"] == "50.0 % [40.0, 62.5] (n = 40)"
    assert table.loc["language prior", "estimate"] == 25
    assert table.loc["language only", "estimate"] == 37.5
    np.testing.assert_allclose(table.loc["textual share (MM-SHAP)", "estimate"], [70, 70])
    assert (table["comparison"] == "not comparable: phantom").all()
    assert len(table) == len(pd.read_csv(make_run(tmp_path).root / "data" / "literature.csv"))


def test_another_profile_says_what_differs(tmp_path):
    study = replace(
        make_run(tmp_path), profile="colab", data_root="vqav2", checkpoint="dandelin/vilt-b32-mlm"
    )
    table = compare_with_literature(study)
    assert not table["comparison"].str.contains("comparable").any()
    assert (table["comparison"].str.len() > 10).all()
    assert say_incomparable(study) == ""


def test_data_of_ones_own_are_not_called_the_phantom(tmp_path):
    """The profile is the phantom's still; what is not comparable then is the small model."""
    study = replace(make_run(tmp_path), data_root="vqav2")
    assert set(compare_with_literature(study)["comparison"]) == {"not comparable: small model"}
    assert "generated" not in say_incomparable(study)
    assert say_incomparable(replace(study, checkpoint="fresh-small")).startswith("small model")
    assert say_incomparable(replace(study, checkpoint="dandelin/vilt-b32-mlm")) == ""
    assert say_incomparable(make_run(tmp_path)).startswith("phantom")


def test_accuracy_by_answer_type(tmp_path):
    study = make_answered(tmp_path)
    found = find_answer_type(study, "yes/no")  # even ids, half of them right
    assert (found.value, found.n, found.n_clusters) == (50, 12, 12)
    assert found.low < 50 < found.high
    assert find_answer_type(study, "other").value == 0
    assert find_answer_type(study, "number") is None


def test_few_questions_of_a_type_tell_nothing(tmp_path):
    study = make_answered(tmp_path)
    save_table(study, "02_predictions", read_table(study, "02_predictions").head(8))
    found = find_answer_type(study, "yes/no")
    assert np.isnan([found.value, found.low, found.high]).all()
    assert found.n == 4


def test_what_is_missing_is_said(tmp_path):
    study = make_run(tmp_path)  # without a dataset
    for path in study.folder("tables").glob("06_*.csv"):
        path.unlink()
    table = compare_with_literature(study).set_index("what")
    removable = table[table.index.str.startswith("heads removable")]
    assert (removable["own"] == "No number: 06 has not been run.").all()
    assert removable["estimate"].isna().all()
    assert "02 has not been run" in table.loc["VQA accuracy on other questions", "own"]


def test_a_number_that_no_run_can_have_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"literature\.csv, own='bleu': expected accuracy, "):
        find_own(make_run(tmp_path), "bleu")
