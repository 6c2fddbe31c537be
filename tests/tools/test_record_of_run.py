"""A run's own records: run.json, the data package, and the entries of data/columns.csv."""

import dataclasses
import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datapackage import check_package

from helpers.heads.roles import ROLES
from helpers.run.record import save_table
from helpers.run.settings import Study
from tools import record
from tools.run_notebooks import list_notebooks

ROOT = Path(__file__).parents[2]


def test_record_run_adds_steps(tmp_path):
    study = Study.load(runs_root=tmp_path, device="cpu")
    record.record_run(study, steps={"01_setup": 1.5})
    path = record.record_run(study, steps={"02_finetune": 20})
    written = json.loads(path.read_text())
    assert path == study.run_dir / "run.json"
    assert written["steps"] == {"01_setup": 1.5, "02_finetune": 20}
    assert written["settings"] == json.loads(json.dumps(dataclasses.asdict(study)))
    assert written["device"] == "cpu"
    assert written["versions"]["numpy"] == np.__version__
    assert {"python", "torch", "transformers", "datasets", "commit"} < set(written["versions"])


@pytest.mark.parametrize("left", ["", '{"steps": {"01_se', "[]"])
def test_a_cut_record_of_the_run_is_begun_anew(tmp_path, left):
    study = Study.load(runs_root=tmp_path, device="cpu")
    (study.folder() / "run.json").write_text(left)
    written = json.loads(record.record_run(study, steps={"01_setup": 1.5}).read_text())
    assert written["steps"] == {"01_setup": 1.5}


def write_shard(folder, number, rows):
    """A shard as extraction writes it: each row of `rows` (n, 2) is one cell of a measure."""
    flat = pa.array(np.array(rows, np.float32).reshape(-1))
    arrays = pa.FixedSizeListArray.from_arrays(flat, 2)
    table = pa.table({"n_words": list(range(len(rows))), "split": arrays})
    pq.write_table(table, folder / f"part-{number:05d}.parquet")


@pytest.fixture
def study(tmp_path):
    """A run with a CSV table, a measure in two shards, and what is no table of it."""
    study = Study.load(run_name="Hand", runs_root=tmp_path)
    small = {"layer": [0, 1, 2], "p": [0.5, np.nan, 1.0], "prediction": ["None", "NA", "two, 3"]}
    save_table(study, "09_small", pd.DataFrame(small))
    write_shard(study.folder("attention"), 0, [[0.25, 0.75], [np.nan, np.nan]])
    write_shard(study.folder("attention"), 1, [[0.0, 1.001]])  # as half precision rounds
    (study.folder("tables") / "findings.json").write_text("{}")
    write_shard(study.folder(".attention.0123456789ab.part"), 0, [[7.0, 7.0]])
    return study


def check(study):
    record.write_datapackage(study)
    return [p for p in check_package(study.run_dir) if "no column" not in p]


def test_the_package_describes_every_column_by_the_standard(study):
    path = record.write_datapackage(study)
    package = json.loads(path.read_text())
    assert path == study.run_dir / "datapackage.json"
    assert package["name"] == "hand"
    measure, small = package["resources"]
    assert small["path"] == "tables/09_small.csv"
    assert measure["path"] == ["attention/part-00000.parquet", "attention/part-00001.parquet"]
    layer, p, prediction = small["schema"]["fields"]
    assert layer["description"] == "layer of the transformer, counted from 0 at the input"
    assert (layer["name"], layer["type"], layer["unit"]) == ("layer", "integer", "layer")
    assert layer["constraints"] == {"minimum": 0, "required": True}
    assert p["constraints"] == {"minimum": 0, "maximum": 1}
    assert "not tested" in p["empty"]
    assert prediction["type"] == "string"
    split = measure["schema"]["fields"][1]
    assert (split["type"], split["arrayItem"]["type"]) == ("array", "number")
    assert check(study) == []


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"layer": [0], "lost": [1]}, "tables/10_new.csv, column 'lost': no entry"),
        ({"layer": [0, np.nan]}, "column 'layer': 1 empty cells"),
        ({"p": [0.5, 1.5, -0.25, np.inf]}, "column 'p': 3 values"),
        ({"name": ["L0H1", "head 3"]}, "such as head 3"),
    ],
)
def test_what_disagrees_is_named(study, columns, named):
    save_table(study, "10_new", pd.DataFrame(columns))
    (problem,) = check(study)
    assert named in problem


def test_a_described_column_may_lack_only_where_the_entry_says_so(study):
    save_table(study, "01_families", pd.DataFrame({"family": ["what"], "part": ["train"]}))
    record.write_datapackage(study)
    assert "01_families: no column 'questions'" in check_package(study.run_dir)


@pytest.mark.parametrize(
    ("table", "meaning"),
    [("seen", "exact"), ("seen_seed", "long"), ("seeds", "short"), ("other", "anywhere")],
)
def test_the_closest_entry_counts(table, meaning):
    kinds = {"*": "anywhere", "see*": "short", "seen*": "long", "seen": "exact"}
    entries = [{"table": k, "column": "split", "meaning": text} for k, text in kinds.items()]
    assert record.find_entry(table, "split", entries)["meaning"] == meaning
    assert record.find_entry(table, "mass", entries) is None


# The committed entries


@pytest.fixture(scope="module")
def committed():
    return record.read_entries(ROOT / record.COLUMNS)


def test_committed_entries_are_whole(committed):
    places = [(entry["table"], entry["column"]) for entry in committed]
    assert len(set(places)) == len(places)
    for entry in committed:
        place = entry["table"], entry["column"]
        assert None not in entry, f"{place}: a cell with a comma needs double quotes"
        assert None not in entry.values(), f"{place}: a cell is missing"
        assert all((entry["meaning"], entry["unit"])), place
        assert entry["type"] in ("string", "integer", "number", "boolean"), place
        for name, limit in record.describe_field(entry)["constraints"].items():
            assert name not in record.BOUNDS or isinstance(limit, int | float), place
        re.compile(entry["pattern"])


def test_every_table_that_a_notebook_saves_is_described_and_no_other(committed):
    saved, shown = set(), set()  # what is shown is a table or a figure
    for path in list_notebooks(ROOT):
        code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        saved |= set(re.findall(r"save_table\(\s*study,\s*\"([^\"]+)\"", code))
        shown |= set(re.findall(r"show\(\s*study,\s*\"([^\"]+)\"", code))
    tables = {each["table"] for each in committed} - {"*"}
    described = {name for name in tables if re.match(r"(\d\db?|a\d)_", name)}
    assert len(saved | shown) >= 10
    missing = [name for name in saved if not any(fnmatchcase(name, known) for known in tables)]
    assert missing == [], f"add entries to {record.COLUMNS}"
    used = saved | shown
    unused = [known for known in described if not any(fnmatchcase(name, known) for name in used)]
    assert unused == [], f"no notebook saves these: remove them from {record.COLUMNS}"


def test_words_of_the_code_are_the_words_of_the_entries(committed):
    def find_enum(table, column):
        return set(record.find_entry(table, column, committed)["enum"].split("|"))

    families = set(pd.read_csv(ROOT / "data" / "question_types.csv")["family"])
    assert find_enum("04_layers", "family") == families | {"all"}
    assert find_enum("04_pairs", "group_a") == find_enum("04_pairs", "group_b") == families
    assert find_enum("05_role_scores", "role") == find_enum("05_stability", "role") == set(ROLES)
