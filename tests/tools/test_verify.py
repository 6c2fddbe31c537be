"""`make verify`: what agrees with the golden tables, and what is named where something differs."""

import numpy as np
import pandas as pd
import pytest

from tools import verify

LAYERS = pd.DataFrame(
    {
        "layer": [0, 0, 1],
        "query": ["cls", "words", "cls"],
        "estimate": [0.125, 0.5, np.nan],
        "significant": [True, False, True],
    }
)
TOLERANCE = {"estimate": 0.001}


@pytest.fixture
def folders(tmp_path):
    """A run's folder and the golden tables that were written from it."""
    run, golden = tmp_path / "run", tmp_path / "golden"
    (run / "tables").mkdir(parents=True)
    write(run, LAYERS)
    LAYERS.to_csv(run / "tables" / "06_latency.csv", index=False)  # a live table
    assert verify.main(["--write", str(run)], golden) == 0
    return run, golden


def write(run, table, name="03_layers"):
    table.to_csv(run / "tables" / f"{name}.csv", index=False)


def change(column, row, value):
    table = LAYERS.copy()
    table.loc[row, column] = value
    return table


def compare(table):
    return verify.compare_tables("03_layers", LAYERS, table, TOLERANCE)


@pytest.mark.parametrize(
    "table", [LAYERS, change("estimate", 0, 0.1259), change("estimate", 1, 0.4991)]
)
def test_numbers_within_the_tolerance_agree(table):
    assert compare(table).problems == []


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (change("estimate", 1, 0.502), ["'estimate'", "1 of 3", "row 1", "query words", "0.502"]),
        (change("estimate", 1, np.nan), ["'estimate'", "row 1", "nan, golden: 0.5"]),
        (change("estimate", 2, 0.1), ["'estimate'", "row 2"]),
        (change("query", 2, "words"), ["'query'", "row 2", "words, golden: cls"]),
        (change("significant", 0, False), ["'significant'", "row 0"]),
        (LAYERS.drop(columns="estimate"), ["'estimate' is missing"]),
        (LAYERS.assign(new=1), ["'new' is not golden"]),
        (LAYERS[:2], ["2 rows, golden: 3"]),
        (LAYERS.assign(estimate="much"), ["'estimate'", "3 of 3", "much"]),
    ],
)
def test_what_differs_is_named(table, said):
    (problem,) = compare(table).problems
    for part in said:
        assert part in problem


def test_a_run_agrees_with_what_was_written_from_it(folders, capsys):
    run, golden = folders
    assert {path.stem for path in golden.glob("*.csv")} == {"03_layers", "claims"}
    assert verify.main(["--run", str(run)], golden) == 0
    assert "2 of 2 tables agree" in capsys.readouterr().out


def test_a_difference_a_missing_table_and_another_verdict_are_named(folders, capsys):
    run, golden = folders
    (run / "claims").mkdir()
    (run / "claims" / "needs-image.json").write_text('{"verdict": "contradicted"}')
    write(run, change("estimate", 1, 0.6))
    assert verify.main(["--run", str(run)], golden) == 1
    printed = capsys.readouterr().out
    assert "query words" in printed
    assert "contradicted, golden: not measured yet" in printed
    (run / "tables" / "03_layers.csv").unlink()
    assert verify.main(["--run", str(run)], golden) == 1
    assert "the run has no such table" in capsys.readouterr().out


def test_a_tolerance_set_by_hand_stays(folders):
    run, golden = folders
    path = golden / verify.TOLERANCES
    path.write_text(path.read_text().replace("0.0001", "0.2"))
    assert verify.main(["--write", str(run)], golden) == 0
    write(run, change("estimate", 1, 0.6))
    assert verify.main(["--run", str(run)], golden) == 0


def test_without_golden_tables_or_a_run_it_stops_with_the_reason(folders, tmp_path, capsys):
    assert verify.main([], tmp_path) == 1
    assert "no golden tables" in capsys.readouterr().err
    assert verify.main(["--run", "nowhere"], folders[1]) == 1
    assert "no run 'nowhere'" in capsys.readouterr().err
