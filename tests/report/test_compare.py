"""Runs side by side and beside published numbers, with which the phantom never compares."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from handmade import make_run
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.report import compare
from helpers.report.compare import compare_runs, compare_with_literature, find_runs
from helpers.run.cache import cached_step
from helpers.run.settings import save_table


@pytest.fixture
def runs(tmp_path):
    """Three runs with accuracies 40, 50 and 60 %; the last has not been pruned."""
    made = [make_run(tmp_path, f"run{seed}", seed, 0.4 + seed / 10) for seed in range(3)]
    for path in made[2].folder("tables").glob("06_*.csv"):
        path.unlink()
    return made


def test_mean_and_spread_over_runs(runs):
    table = compare_runs(runs)
    assert list(table[table["headline"] == "accuracy"]["seed"]) == [0, 1, 2]
    summary = compare.summarise_runs(table).set_index("headline")
    found = summary.loc["accuracy", ["runs", "mean", "sd", "min", "max"]]
    np.testing.assert_allclose(found.astype(float), [3, 50, 10, 40, 60])
    assert summary.loc["removed", "runs"] == 2
    assert summary.loc["costliest", "sd"] == 0
    speed = table[table["headline"] == "speed"]
    assert list(speed["value"].isna()) == [False, False, True]


@settings(max_examples=25)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6))
def test_the_spread_of_any_values(values):
    table = pd.DataFrame({"headline": "a", "label": "b", "unit": "%", "value": values})
    row = compare.summarise_runs(table).iloc[0]
    mean = sum(values) / len(values)
    by_definition = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    np.testing.assert_allclose([row["mean"], row["sd"]], [mean, by_definition], atol=1e-6)
    assert (row["min"], row["max"]) == (min(values), max(values))


def test_the_spread_in_words(runs):
    said = compare.say_spread(compare.summarise_runs(compare_runs(runs)), 3)
    assert said.startswith("Mean over 3 runs: VQA accuracy 50.0 % (SD 10.0, 40.0 to 60.0); ")
    assert "the whole one 1.50 times (SD 0.00, 1.50 to 1.50; 2 runs)" in said


def test_runs_are_found_with_their_own_settings(runs, tmp_path):
    found = find_runs(runs[0], ["run1", "run2"])
    assert [(run.run_name, run.seed) for run in found] == [("run1", 1), ("run2", 2)]
    assert [run.run_dir for run in found] == [runs[1].run_dir, runs[2].run_dir]
    differences = compare.list_differences(found)
    assert list(differences) == ["run", "seed"]
    assert differences.to_dict("list") == {"run": ["run1", "run2"], "seed": [1, 2]}


def test_a_setting_that_differs_is_shown(runs):
    path = runs[1].run_dir / "run.json"
    path.write_text(json.dumps({"settings": {"seed": 1, "epochs": 7, "an_old_setting": 1}}))
    differences = compare.list_differences(find_runs(runs[0], ["run0", "run1"]))
    assert list(differences["epochs"]) == [3, 7]


def test_a_run_made_without_the_chain_is_known_by_its_data(runs):
    (runs[1].run_dir / "run.json").unlink()
    cached_step(runs[1].run_dir / "dataset", lambda folder: None, {"seed": 11})
    assert find_runs(runs[0], ["run1"])[0].seed == 11


def test_wrong_runs_are_errors(runs):
    with pytest.raises(ValueError, match=r"'nope' holds no tables .* do: run0, run1, run2"):
        find_runs(runs[0], ["run0", "nope"])
    with pytest.raises(ValueError, match="named twice"):
        find_runs(runs[0], ["run1", "run1"])


# Published numbers


def make_answered(tmp_path):
    """A run of 24 questions on 12 images: a yes/no one (half are right) and a wrong one each."""
    study = make_run(tmp_path)
    ids = np.arange(24)
    scored = {"question_id": ids, "image_id": ids // 2, "accuracy": (ids % 4 == 0).astype(float)}
    save_table(study, "02_predictions", pd.DataFrame(scored))
    shuffled = {"question_id": ids[::-1], "answer_type": ["other", "yes/no"] * 12}
    dataset = DatasetDict({"validation": Dataset.from_dict(shuffled)})
    dataset.save_to_disk(study.run_dir / "dataset")
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
    photographs = {"data_root": "vqav2", "checkpoint": "dandelin/vilt-b32-mlm"}
    study = replace(make_run(tmp_path), profile="colab", **photographs)
    table = compare_with_literature(study)
    assert not table["comparison"].str.contains("comparable").any()
    assert (table["comparison"].str.len() > 10).all()
    assert compare.say_incomparable(study) == ""


def test_data_of_ones_own_are_not_called_the_phantom(tmp_path):
    """The profile is the phantom's still; what is not comparable then is the small model."""
    study = replace(make_run(tmp_path), data_root="vqav2")
    assert set(compare_with_literature(study)["comparison"]) == {"not comparable: small model"}
    assert "generated" not in compare.say_incomparable(study)
    fresh = replace(study, checkpoint="fresh-small")
    assert compare.say_incomparable(fresh).startswith("small model")
    assert compare.say_incomparable(replace(study, checkpoint="dandelin/vilt-b32-mlm")) == ""
    assert compare.say_incomparable(make_run(tmp_path)).startswith("phantom")


def test_accuracy_by_answer_type(tmp_path):
    study = make_answered(tmp_path)
    found = compare.find_answer_type(study, "yes/no")  # even ids, half of them right
    assert (found.value, found.n, found.n_clusters) == (50, 12, 12)
    assert found.low < 50 < found.high
    assert compare.find_answer_type(study, "other").value == 0
    assert compare.find_answer_type(study, "number") is None


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
        compare.find_own(make_run(tmp_path), "bleu")
