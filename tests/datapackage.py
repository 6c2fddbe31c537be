"""Validates a run's datapackage.json against its tables, and against data/columns.csv."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from tools.record import COLUMNS, read_entries

ROOT = Path(__file__).parents[1]
ROUNDING = 1 / 256  # shares measured in bf16, which keeps eight bits, pass 0 and 1 by as much


def check_package(folder: Path) -> list[str]:
    """What is wrong, a sentence each: columns that nothing describes, values that break a rule."""
    package, problems = json.loads((folder / "datapackage.json").read_text(encoding="utf-8")), []
    entries = read_entries(ROOT / COLUMNS)
    for resource in package["resources"]:
        table, fields = resource["name"], {f["name"]: f for f in resource["schema"]["fields"]}
        paths = resource["path"] if isinstance(resource["path"], list) else [resource["path"]]
        for path in paths:
            for column, values in read_columns(folder / path):
                for problem in check_values(values, fields.get(column, {})):
                    problems.append(f"{path}, column {column!r}: {problem}")
        own = [each["column"] for each in entries if each["table"] == table and not each["absent"]]
        problems += [f"{table}: no column {name!r}" for name in own if name not in fields]
    return problems


def check_values(values: pd.Series, field: dict) -> Iterator[str]:
    if "description" not in field:
        yield f"no entry in {COLUMNS}"
        return
    kind = field.get("arrayItem", field)
    filled = values.dropna()
    if kind["constraints"].get("required") and len(filled) < len(values):
        yield f"{len(values) - len(filled)} empty cells"
    outside = filled[find_outside(filled, kind["type"], kind["constraints"])]
    if len(outside):
        yield f"{len(outside)} values are not {kind}, such as {outside.iloc[0]}"


def read_columns(path: Path) -> Iterator[tuple[str, pd.Series]]:
    """The columns of a file, one at a time: name and values, those of lists one by one."""
    if path.suffix == ".csv":
        # only an empty cell is empty: "None" and "NA" may be answers
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""], low_memory=False)
        yield from frame.items()
        return
    with pq.ParquetFile(path) as file:
        for name in file.schema_arrow.names:
            values = file.read([name])[name].combine_chunks()
            yield name, (values.flatten() if hasattr(values, "flatten") else values).to_pandas()


def find_outside(values: pd.Series, kind: str, constraints: dict) -> np.ndarray:
    """Which of the values, none empty, are not of the type or break a constraint: bool (n,)."""
    if kind in ("string", "boolean"):
        text = values.astype(str)
        allowed = ["True", "False"] if kind == "boolean" else constraints.get("enum")
        outside = np.zeros(len(values), bool) if allowed is None else ~text.isin(allowed).to_numpy()
        if "pattern" in constraints:
            outside |= ~text.str.fullmatch(constraints["pattern"]).to_numpy(bool)
        return outside
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
    slack = 0 if kind == "integer" else ROUNDING
    outside = ~np.isfinite(numbers) | (numbers < constraints.get("minimum", -np.inf) - slack)
    outside |= numbers > constraints.get("maximum", np.inf) + slack
    outside |= numbers <= constraints.get("exclusiveMinimum", -np.inf)
    return outside | (numbers != np.round(numbers)) if kind == "integer" else outside
