"""helpers/report/compare.py and plots_runs.py: several runs, the spread of their numbers, and its figure."""

import json

import numpy as np
import pandas as pd
import pytest
from handmade import make_run
from hypothesis import given
from hypothesis import strategies as st
from reading import read_texts, read_ticks, read_title, render

from helpers.figures.runs import plot_runs, wrap
from helpers.report.compare import (
    compare_runs,
    find_runs,
    list_differences,
    say_spread,
    summarise_runs,
)
from helpers.run.cache import cached_step

pytestmark = pytest.mark.usefixtures("tidy_figures")


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
    summary = summarise_runs(table).set_index("headline")
    found = summary.loc["accuracy", ["runs", "mean", "sd", "min", "max"]]
    np.testing.assert_allclose(found.astype(float), [3, 50, 10, 40, 60])
    assert summary.loc["removed", "runs"] == 2
    assert summary.loc["costliest", "sd"] == 0
    speed = table[table["headline"] == "speed"]
    assert list(speed["value"].isna()) == [False, False, True]


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6))
def test_the_spread_of_any_values(values):
    table = pd.DataFrame({"headline": "a", "label": "b", "unit": "%", "value": values})
    row = summarise_runs(table).iloc[0]
    mean = sum(values) / len(values)
    by_definition = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    np.testing.assert_allclose([row["mean"], row["sd"]], [mean, by_definition], atol=1e-6)
    assert (row["min"], row["max"]) == (min(values), max(values))


def test_one_run_has_no_spread(runs):
    summary = summarise_runs(compare_runs(runs[:1]))
    assert summary["sd"].isna().all()
    assert say_spread(summary, 1) == "1 run: too few to tell how far the numbers spread."


def test_the_spread_in_words(runs):
    said = say_spread(summarise_runs(compare_runs(runs)), 3)
    assert said.startswith("Mean over 3 runs: VQA accuracy 50.0 % (SD 10.0, 40.0 to 60.0); ")
    assert (
        "speed of the lightest model against the whole one 1.50 times (SD 0.00, 1.50 to 1.50; 2 runs)"
        in said
    )


def test_runs_are_found_with_their_own_settings(runs, tmp_path):
    found = find_runs(runs[0], ["run1", "run2"])
    assert [(run.run_name, run.seed) for run in found] == [("run1", 1), ("run2", 2)]
    assert [run.run_dir for run in found] == [runs[1].run_dir, runs[2].run_dir]
    differences = list_differences(found)
    assert list(differences) == ["run", "seed"]
    assert differences.to_dict("list") == {"run": ["run1", "run2"], "seed": [1, 2]}


def test_a_setting_that_differs_is_shown(runs):
    path = runs[1].run_dir / "run.json"
    path.write_text(json.dumps({"settings": {"seed": 1, "epochs": 7, "an_old_setting": 1}}))
    differences = list_differences(find_runs(runs[0], ["run0", "run1"]))
    assert list(differences["epochs"]) == [3, 7]


def test_a_tolerance_that_differs_is_shown(runs):
    """Each run's lightest model was chosen within its own: another one would not make the numbers mean the same."""
    path = runs[1].run_dir / "run.json"
    path.write_text(json.dumps({"settings": {"seed": 1, "prune_tolerance": 3}}))
    found = find_runs(runs[0], ["run0", "run1"])
    assert list(list_differences(found)["prune_tolerance"]) == [1, 3]


def test_a_run_made_without_the_chain_is_known_by_its_data(runs):
    (runs[1].run_dir / "run.json").unlink()
    cached_step(runs[1].run_dir / "dataset", lambda folder: None, {"seed": 11})
    assert find_runs(runs[0], ["run1"])[0].seed == 11


def test_wrong_runs_are_errors(runs):
    with pytest.raises(
        ValueError, match=r"'nope' holds no tables .*Runs that do: run0, run1, run2"
    ):
        find_runs(runs[0], ["run0", "nope"])
    with pytest.raises(ValueError, match="named twice"):
        find_runs(runs[0], ["run1", "run1"])


def test_the_figure_has_a_panel_a_headline_and_a_point_a_run(runs):
    table = compare_runs(runs)
    figure = plot_runs(table)
    render(figure)
    panels = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert len(panels) == len(figure.axes) == table["headline"].nunique()
    assert read_title(panels[0]) == "VQA accuracy"
    assert read_ticks(panels[0], "y") == ["run0", "run1", "run2"]
    points = panels[0].containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(points, [[40, 0], [50, 1], [60, 2]])
    (speed,) = [axis for axis in panels if read_title(axis).startswith("speed")]
    assert read_texts(speed) == ["no number"]


def test_the_figure_of_one_run_and_of_no_number(runs):
    table = compare_runs(runs[:1])
    table.loc[table["headline"] == "accuracy", ["value", "low", "high"]] = np.nan
    figure = plot_runs(table)
    render(figure)
    assert read_texts(figure.axes[0]) == ["no number"]
    assert read_ticks(figure.axes[0], "x") == []


def test_long_labels_are_broken_in_the_middle():
    assert wrap("short") == "short"
    assert (
        wrap("a label of words that is far too long for a panel")
        == "a label of words that is\nfar too long for a panel"
    )
