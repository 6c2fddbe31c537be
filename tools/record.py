"""The records of a run: run.json, and datapackage.json, which says what its tables' columns mean.

That is in data/columns.csv, a row a column: table (a name, a pattern such as `attention*`, or `*`
for what means the same everywhere), column, meaning, unit, type and constraints as in the standard
Table Schema (specs.frictionlessdata.io), empty (what an empty cell means; nothing: there is none),
absent (when a table lacks the column; nothing: never).
"""

import json
import shutil
import subprocess
from collections import defaultdict
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from helpers.run.cache import ROOT, lock_path, read_json, write_atomic
from helpers.run.record import read_versions
from helpers.run.settings import Study

COLUMNS = "data/columns.csv"
PROFILE = "https://datapackage.org/profiles/2.0/datapackage.json"
BOUNDS = ("minimum", "maximum", "exclusiveMinimum")


def record_run(study: Study, steps: dict[str, float]) -> Path:
    """Write run.json of a run: settings, versions, device, and seconds a step, added to the old.

    A run.json that cannot be read is begun anew.
    """
    path = study.folder() / "run.json"
    with lock_path(path):
        steps = (read_json(path) or {}).get("steps", {}) | steps
        versions = read_versions() | {"commit": _read_commit()}
        facts = {"settings": asdict(study), "versions": versions, "device": study.device_name()}
        return write_atomic(path, json.dumps({"steps": steps, **facts}, indent=1) + "\n")


def _read_commit() -> str:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return commit or "unknown"


def write_datapackage(study: Study) -> Path:
    """Write datapackage.json of the run, a Frictionless data package: a resource for each table.

    Any program that knows the standard can then read and validate the tables. A column without an
    entry in data/columns.csv has no description; a measure's arrays (lists in Parquet) are arrays.
    """
    entries, resources = read_entries(study.root / COLUMNS), []
    for table, paths in list_tables(study).items():
        fields = []
        for column, is_array in list_columns(paths[0]).items():
            entry = find_entry(table, column, entries)
            fields.append({"name": column} | (describe_field(entry, is_array) if entry else {}))
        files = [path.relative_to(study.run_dir).as_posix() for path in paths]
        resource = {"name": table.lower(), "path": files if len(files) > 1 else files[0]}
        form = {"format": paths[0].suffix[1:], "schema": {"fields": fields}}
        resources.append(resource | form)
    package = {"$schema": PROFILE, "name": study.run_name.lower(), "resources": resources}
    text = json.dumps(package, indent=1, ensure_ascii=False)
    return write_atomic(study.run_dir / "datapackage.json", text + "\n")


def read_entries(path: Path) -> list[dict[str, str]]:
    """The rows of data/columns.csv."""
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")


def find_entry(table: str, column: str, entries: list[dict]) -> dict | None:
    """The entry for a column: of the table's own name, else of the longest pattern that fits."""
    own = [entry for entry in entries if entry["column"] == column]
    fitting = [entry for entry in own if fnmatchcase(table, entry["table"])]
    return max(fitting, key=lambda e: (e["table"] == table, len(e["table"])), default=None)


def describe_field(entry: dict[str, str], is_array: bool = False) -> dict:
    """An entry as a field of Table Schema; `unit` and `empty` are properties of our own."""
    constraints = {name: json.loads(entry[name]) for name in BOUNDS if entry[name]}
    if entry["enum"]:
        constraints["enum"] = entry["enum"].split("|")
    if entry["pattern"]:
        constraints["pattern"] = entry["pattern"]
    if not entry["empty"]:
        constraints["required"] = True
    gaps = entry["type"] == "integer" and entry["empty"]  # pandas writes such columns as "3.0"
    kind = {"type": "number" if gaps else entry["type"], "constraints": constraints}
    field = {"description": entry["meaning"], "unit": entry["unit"]}
    field |= {"type": "array", "arrayItem": kind} if is_array else kind
    return field | ({"empty": entry["empty"]} if entry["empty"] else {})


def list_tables(study: Study) -> dict[str, list[Path]]:
    """The files of a run's tables, by name; those of unfinished steps are left out.

    tables/04_pairs.csv is "04_pairs", the shards attention/part-*.parquet are "attention", any
    other file is named after its folder as well: "faithfulness/boxes".
    """
    found = defaultdict(list)
    for path in sorted(study.run_dir.glob("[!.]*/[!.]*.*")):
        if path.suffix in (".csv", ".parquet"):
            folder, name = path.parent.name, path.stem
            own = {"tables": name}.get(folder, f"{folder}/{name}")
            found[folder if name.startswith("part-") else own].append(path)
    return found


def list_columns(path: Path) -> dict[str, bool]:
    """The columns of a file, and whether each cell of them holds a list."""
    if path.suffix == ".csv":
        return dict.fromkeys(pd.read_csv(path, nrows=0), False)
    return {field.name: "list" in str(field.type) for field in pq.read_schema(path)}
