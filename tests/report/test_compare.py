"""Claims of several runs side by side."""

import json

import pytest

from helpers.report import compare
from helpers.report.compare import compare_claims, find_runs
from helpers.run.cache import cached_step
from helpers.run.settings import Study


def make_run(folder, name, seed, **claims):
    """A run that holds these claims: an estimate each, or why it is not testable."""
    study = Study.load(run_name=name, seed=seed, runs_root=str(folder))
    for key, value in claims.items():
        row = {"verdict": "not testable", "reason": value}
        if not isinstance(value, str):
            row = {"verdict": "supported", "estimate": value, "low": value - 1, "high": value + 1}
        path = study.folder("claims") / f"{key.replace('_', '-')}.json"
        path.write_text(json.dumps(row))
    record = {"settings": {"seed": seed, "epochs": study.epochs}}
    (study.run_dir / "run.json").write_text(json.dumps(record))
    return study


@pytest.fixture
def runs(tmp_path):
    return [
        make_run(tmp_path, "run0", 0, needs_image=40.0, beats_words=3.0),
        make_run(tmp_path, "run1", 1, needs_image=50.0, beats_words="no words"),
        make_run(tmp_path, "run2", 2, needs_image=60.0),
    ]


def test_a_row_is_a_run_and_a_claim_that_some_run_has_judged(runs):
    table = compare_claims(runs)
    assert list(table["key"]) == ["needs-image", "beats-words"] * 3
    assert list(table["seed"]) == [0, 0, 1, 1, 2, 2]
    image, words = (table[table["key"] == key] for key in ("needs-image", "beats-words"))
    assert list(image["estimate"]) == [40, 50, 60]
    assert list(words["verdict"]) == ["supported", "not testable", "not measured yet"]


def test_a_claim_is_a_row_and_a_run_a_column(runs):
    table = compare.tabulate_runs(compare_claims(runs))
    assert list(table) == ["claim", "run0", "run1", "run2"]
    assert table["run0"][0] == "supported: 40.0 [39.0, 41.0] points"
    assert list(table.loc[1, ["run1", "run2"]]) == ["not testable: no words", "not measured yet"]


def test_runs_are_found_with_their_own_settings(runs):
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
    with pytest.raises(ValueError, match=r"'nope' holds no claims .* do: run0, run1, run2"):
        find_runs(runs[0], ["run0", "nope"])
    with pytest.raises(ValueError, match="named twice"):
        find_runs(runs[0], ["run1", "run1"])
