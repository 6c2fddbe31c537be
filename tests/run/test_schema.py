"""The data dictionary: what is found in a run, what does not agree, and the committed entries themselves."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.heads.roles import ROLES
from helpers.run import schema as dictionary
from helpers.run.settings import Study, save_table

ROOT = Path(__file__).parents[2]
ENTRIES = [  # table, column, meaning, unit, range, empty, absent
    ("*", "layer", "layer of the transformer", "layer", "whole >=0", "", ""),
    ("*", "said", "an answer", "text", "text", "", ""),
    ("09_small", "p", "p of no effect", "probability", "[0, 1]", "not tested", ""),
    ("09_small", "chance", "what chance gives", "0 to 1", "[0, 1]", "", "no boxes"),
    ("seen*", "split", "attention by group", "share", "[0, 1]", "no words", ""),
    ("seen/boxes", "hit", "pointing game", "hit", "whole [0, 1]", "", ""),
]


def make_entries(*more):
    return pd.DataFrame([*ENTRIES, *more], columns=dictionary.FIELDS)


def write_shard(folder, number, rows):
    """A shard as extract writes it: each row of `rows` (n, 2) is one cell of a measure."""
    flat = pa.array(np.array(rows, np.float32).reshape(-1))
    table = pa.table(
        {"layer": list(range(len(rows))), "split": pa.FixedSizeListArray.from_arrays(flat, 2)}
    )
    pq.write_table(table, folder / f"part-{number:05d}.parquet")


@pytest.fixture
def study(tmp_path):
    """A run with a CSV table, a measure in two shards, a Parquet table, and what is none of these."""
    study = Study.load(run_name="hand", runs_root=str(tmp_path))
    small = {"layer": [0, 1, 2], "p": [0.5, np.nan, 1.0], "said": ["None", "NA", "two, three"]}
    save_table(study, "09_small", pd.DataFrame(small))
    write_shard(study.folder("seen"), 0, [[0.25, 0.75], [np.nan, np.nan]])
    write_shard(study.folder("seen"), 1, [[0.0, 1.001]])  # as half precision rounds
    pd.DataFrame({"hit": [0.0, 1.0]}).to_parquet(
        study.folder("seen") / "boxes.parquet", index=False
    )
    (study.folder("tables") / "findings.json").write_text("{}")
    write_shard(study.folder(".seen.0123456789ab.part"), 0, [[7.0, 7.0]])
    return study


def test_tables_are_named_after_their_files(study):
    assert {name: len(paths) for name, paths in dictionary.list_tables(study).items()} == {
        "09_small": 1,
        "seen": 2,
        "seen/boxes": 1,
    }


def test_every_column_is_described_and_counted(study):
    found = dictionary.describe_tables(study, make_entries()).set_index(["table", "column"])
    counts = found[["rows", "n_empty", "n_outside"]].apply(tuple, axis=1).to_dict()
    assert counts == {
        ("seen/boxes", "hit"): (2, 0, 0),
        ("seen", "layer"): (3, 0, 0),
        ("seen", "split"): (3, 2, 0),  # cells of two values
        ("09_small", "layer"): (3, 0, 0),
        ("09_small", "p"): (3, 1, 0),
        ("09_small", "said"): (3, 0, 0),  # "None" and "NA" are answers
    }
    said = found.loc[("09_small", "p"), ["meaning", "unit", "range", "empty"]]
    assert said.tolist() == ["p of no effect", "probability", "[0, 1]", "not tested"]


def test_a_run_that_agrees_has_no_problems(study):
    assert dictionary.check_tables(study, make_entries()) == []


@pytest.mark.parametrize(("name", "cell"), [("lost", "lost"), ("lost, zero", '"lost, zero"')])
def test_an_unknown_column_is_named_with_the_line_to_add(study, name, cell):
    save_table(study, "10_new", pd.DataFrame({"layer": [0], name: [1]}))
    assert dictionary.check_tables(study, make_entries()) == [
        f"10_new, column {name!r}: no entry; add one to data/columns.csv: "
        f"10_new,{cell},meaning,unit,range,empty,absent"
    ]


def test_values_outside_are_counted_over_all_shards_and_one_is_shown(study):
    write_shard(study.folder("seen"), 1, [[0.0, 1.5]])
    write_shard(study.folder("seen"), 2, [[-0.25, np.inf]])
    (problem,) = dictionary.check_tables(study, make_entries())
    assert "seen, column 'split': 3 values are outside the range [0, 1]" in problem
    assert problem.endswith("such as 1.5")


def test_an_empty_cell_without_a_meaning_is_a_problem(study):
    save_table(
        study, "09_small", pd.DataFrame({"layer": [0, None], "p": [None, 1], "said": ["a", None]})
    )
    problems = dictionary.check_tables(study, make_entries())
    assert [problem.split(":")[0] for problem in problems] == [
        "09_small, column 'layer'",
        "09_small, column 'said'",
    ]
    assert all("1 empty cells" in problem for problem in problems)


def test_a_described_column_may_lack_only_where_the_entry_says_so(study):
    save_table(study, "09_small", pd.DataFrame({"layer": [0]}))
    assert dictionary.check_tables(study, make_entries()) == [
        "09_small: no column 'p', which data/columns.csv describes"
    ]


def test_a_table_without_rows_has_no_problems(study):
    save_table(study, "09_small", pd.DataFrame({"layer": [], "p": [], "said": []}))
    assert dictionary.check_tables(study, make_entries()) == []


def test_a_run_without_tables_is_said_to_have_none(tmp_path):
    study = Study.load(run_name="none", runs_root=str(tmp_path))
    assert dictionary.check_tables(study) == ["none: this run has no tables yet: run its notebooks"]
    kept = pd.read_csv(dictionary.write_dictionary(study))
    assert len(kept) == 0
    assert "meaning" in kept


@pytest.mark.parametrize(
    ("table", "meaning"),
    [
        ("seen", "exact"),
        ("seen_seed", "long pattern"),
        ("seeds", "short pattern"),
        ("other", "anywhere"),
    ],
)
def test_the_closest_entry_counts(table, meaning):
    kinds = {"*": "anywhere", "see*": "short pattern", "seen*": "long pattern", "seen": "exact"}
    more = [(name, "split", text, "share", "text", "", "") for name, text in kinds.items()]
    entries = pd.DataFrame(more, columns=dictionary.FIELDS)
    assert dictionary.find_entry(table, "split", entries)["meaning"] == meaning
    assert dictionary.find_entry(table, "mass", entries) is None


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        ("text", ["", "a|b", 3], []),
        ("number", [-1e9, 0.5], [np.inf, "x"]),
        ("[-1, 0.5]", [-1, 0.5, 0.501, "0.2"], [-1.1, 0.6, "low"]),
        (">=0", [0, -0.001, 7], [-0.1, np.inf]),
        (">0", [0.001], [0, -1]),
        ("<=1", [1, -9], [1.1]),
        ("whole", [-3, 2.0], [0.5]),
        ("whole [0, 2]", [0, 1, 2.0], [-1, 0.999, 3]),
        ("whole >=-1", [-1, 5], [-2, 0.5]),
        ("True|False", [True, False, "True"], ["true", 1]),
        ("is/are|all", ["is/are", "all"], ["is", "al", "is/are|all"]),
        ("/L[0-9]+H[0-9]+/", ["L0H11"], ["L0", "L0H1x", "xL0H1"]),
    ],
)
def test_ranges_hold_what_they_say(allowed, inside, outside):
    values = pd.Series([*inside, *outside], dtype=object)
    expected = [False] * len(inside) + [True] * len(outside)
    assert dictionary.find_outside(values, allowed).tolist() == expected


@given(st.lists(st.integers(-20, 20)), st.integers(-20, 20), st.integers(-20, 20))
def test_bounds_of_whole_numbers_are_exact(values, low, high):
    found = dictionary.find_outside(pd.Series(values, dtype=float), f"whole [{low}, {high}]")
    assert found.tolist() == [not low <= value <= high for value in values]


@pytest.mark.parametrize(
    "allowed", ["", "[0, 1", "[0,1]", "0 to 1", "whole>=0", "true", ">= 0", "whole x"]
)
def test_a_range_that_cannot_be_read_is_an_error(allowed):
    with pytest.raises(ValueError, match="cannot read the range"):
        dictionary.find_outside(pd.Series([1.0]), allowed)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("a", "x", "", "u", "text", "", ""), "c.csv, a, column 'x': no meaning"),
        (("a", "x", "m", "u", "", "", ""), "c.csv, a, column 'x': no range"),
        (("a", "x", "m.", "u", "text", "", ""), "without a full stop"),
        (("a", "x", "m", "u", "any", "", ""), "c.csv, a, column 'x': cannot read the range 'any'"),
        (("*", "layer", "m", "u", "text", "", ""), r"c.csv, \*, column 'layer': two entries"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, entry, message):
    make_entries(entry).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(ValueError, match=message):
        dictionary.read_entries(tmp_path / "c.csv")


def test_entries_with_other_columns_are_an_error(tmp_path):
    make_entries().drop(columns="unit").to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(ValueError, match="expected table, column, meaning, unit"):
        dictionary.read_entries(tmp_path / "c.csv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,x,one, two,u,text,,", r"c.csv: .* line 8.*; a cell with a comma needs double quotes"),
        ("a,x,m,u", "c.csv, a, column 'x': no range"),
    ],
)
def test_a_line_with_too_many_or_too_few_cells_is_named(tmp_path, line, message):
    make_entries().to_csv(tmp_path / "c.csv", index=False)
    with (tmp_path / "c.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        dictionary.read_entries(tmp_path / "c.csv")


def test_the_dictionary_is_written_and_does_not_describe_itself(study):
    first = dictionary.write_dictionary(study).read_text()
    assert dictionary.write_dictionary(study).read_text() == first
    kept = pd.read_csv(study.run_dir / "tables" / "dictionary.csv", keep_default_na=False)
    assert list(kept) == ["table", "column", "meaning", "unit", "range", "empty", "rows", "n_empty"]
    assert len(kept) == 6
    layer = kept[(kept["table"] == "09_small") & (kept["column"] == "layer")].iloc[0]
    assert layer["unit"] == "layer"  # of the committed entries
    assert kept[kept["column"] == "said"].iloc[0]["meaning"] == ""  # unknown to them


# The committed entries


@pytest.fixture(scope="module")
def committed():
    return dictionary.read_entries(ROOT / dictionary.COLUMNS)


def find_range(entries, table, column):
    return set(dictionary.find_entry(table, column, entries)["range"].split("|"))


def test_committed_entries_are_one_tidy_line_each(committed):
    cells = committed.to_numpy().ravel().tolist()
    assert [cell for cell in cells if cell != " ".join(cell.split()) or cell.endswith(".")] == []
    assert (committed["meaning"].str.len() >= 10).all()


def test_every_table_that_a_notebook_saves_is_described_and_no_other(committed):
    saved = set()
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        saved |= set(re.findall(r"save_table\(\s*study,\s*\"([^\"]+)\"", code))
    described = {name for name in committed["table"] if re.match(r"\d\d_", name)}
    assert len(saved) >= 10
    missing = [name for name in saved if not any(fnmatchcase(name, known) for known in described)]
    assert missing == [], f"add entries to {dictionary.COLUMNS}"
    unused = [known for known in described if not any(fnmatchcase(name, known) for name in saved)]
    assert unused == [], f"no notebook saves these: remove them from {dictionary.COLUMNS}"


def test_words_of_the_code_are_the_words_of_the_entries(committed):
    families = set(pd.read_csv(ROOT / "data" / "question_types.csv")["family"])
    assert find_range(committed, "04_layers", "family") == families | {"all"}
    assert find_range(committed, "04_pairs", "group_a") == families
    assert find_range(committed, "04_pairs", "group_b") == families
    assert find_range(committed, "05_role_scores", "role") == set(ROLES)
    assert find_range(committed, "05_stability", "role") == set(ROLES)


def test_patterns_reach_the_measures_of_other_models(committed):
    for table in ("attention", "attention_untrained", "attention_before"):
        assert dictionary.find_entry(table, "split", committed)["range"] == "[0, 1]"
    assert dictionary.find_entry("relevance", "split", committed) is None
