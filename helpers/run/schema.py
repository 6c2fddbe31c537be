"""What each column of a run's tables means, so that they can be read without the code.

    write_dictionary(study)     # tables/dictionary.csv of the run: a row for each table and column
    check_tables(study)         # sentences about what does not agree with data/columns.csv; [] is all well

The meanings stand in data/columns.csv, a row each: table (a name, a pattern such as `attention*`, or `*` for
what means the same everywhere), column, meaning, unit, range, empty (what an empty cell means; nothing:
there is none), absent (when a table lacks the column; nothing: never). A range is one of

    text                            anything
    number, [0, 1], >=0, >0, <=1    finite numbers, within bounds that belong to the range (all but the > one)
    whole >=0, whole [0, 1], whole  the same, without fractions
    train|validation                one of these words
    /L[0-9]+H[0-9]+/                a regular expression that the whole cell fits
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.run.settings import Study, save_table

COLUMNS = "data/columns.csv"
FIELDS = ["table", "column", "meaning", "unit", "range", "empty", "absent"]
NAME = "dictionary"  # of the table that write_dictionary writes; it does not describe itself
NUMBER = r"-?\d+(?:\.\d+)?"
BOUNDS = re.compile(rf"\[({NUMBER}), ({NUMBER})\]|(>=|<=|>)({NUMBER})|number|")
ROUNDING = (
    1 / 256
)  # shares measured in half precision pass 0 and 1 by as much (bf16 keeps eight bits)


def write_dictionary(study: Study) -> Path:
    """Write tables/dictionary.csv of the run: `describe_tables`, without its checks."""
    described = describe_tables(study)
    return save_table(study, NAME, described.drop(columns=["n_outside", "example"]))


def describe_tables(study: Study, entries: pd.DataFrame | None = None) -> pd.DataFrame:
    """What a run's tables hold, a row for each table and column, in the order of the tables.

    entries: of `read_entries`, by default of data/columns.csv. Columns: table, column, meaning, unit, range,
    empty (NaN without an entry), rows (of the table), n_empty (empty values; a cell of a measure holds many),
    n_outside (values outside the range), example (the first of these, as text; NaN: none). No row for a run
    without tables.
    """
    entries = read_entries(study.root / COLUMNS) if entries is None else entries
    rows = []
    for table, paths in list_tables(study).items():
        found = {}
        for path in paths:
            for column, values, n_rows in read_columns(path):
                known = found.setdefault(column, describe_column(table, column, entries))
                count_values(known, values, n_rows)
        rows += found.values()
    return pd.DataFrame(rows, columns=list(describe_column("", "", entries)))


def check_tables(study: Study, entries: pd.DataFrame | None = None) -> list[str]:
    """What does not agree between a run's tables and data/columns.csv, a sentence each; [] if all does.

    A column without an entry, a value outside its range, an empty cell where none may be, and a column that
    the table of that very name lacks. A table that the run does not have is no problem: some need boxes, or more
    questions. entries: as in `describe_tables`. Only data/columns.csv itself can raise, see `read_entries`.
    """
    entries = read_entries(study.root / COLUMNS) if entries is None else entries
    described = describe_tables(study, entries)
    problems = (
        []
        if len(described)
        else [f"{study.run_name}: this run has no tables yet: run its notebooks"]
    )
    for row in described.itertuples():
        place = f"{row.table}, column {row.column!r}"
        if pd.isna(row.meaning):
            line = pd.DataFrame([[row.table, row.column, *FIELDS[2:]]]).to_csv(
                header=False, index=False
            )
            problems.append(f"{place}: no entry; add one to {COLUMNS}: {line.strip()}")
            continue
        if row.n_outside:
            what = f"{row.n_outside} values are outside the range {row.range}"
            problems.append(f"{place}: {what} of {COLUMNS}, such as {row.example}")
        if row.n_empty and not row.empty:
            problems.append(
                f"{place}: {row.n_empty} empty cells, but {COLUMNS} says nothing of what they mean"
            )
    held = set(zip(described["table"], described["column"], strict=True))
    for entry in entries[
        entries["table"].isin(described["table"]) & (entries["absent"] == "")
    ].itertuples():
        if (entry.table, entry.column) not in held:
            problems.append(f"{entry.table}: no column {entry.column!r}, which {COLUMNS} describes")
    return problems


def read_entries(path: Path) -> pd.DataFrame:
    """The entries of data/columns.csv, all cells as text.

    ValueError that names the entry where a cell is missing, a range cannot be read or an entry stands twice.
    """
    try:
        entries = pd.read_csv(path, dtype=str, keep_default_na=False).fillna(
            ""
        )  # a short line has NaN
    except pd.errors.ParserError as error:
        raise ValueError(
            f"{path.name}: {str(error).strip()}; a cell with a comma needs double quotes"
        ) from None
    if list(entries) != FIELDS:
        raise ValueError(
            f"{path.name}: has columns {', '.join(entries)}; expected {', '.join(FIELDS)}"
        )
    for row in entries.itertuples():
        place = f"{path.name}, {row.table}, column {row.column!r}"
        missing = [name for name in FIELDS[:5] if not getattr(row, name)]
        if missing:
            raise ValueError(f"{place}: no {missing[0]}")
        if row.meaning.endswith("."):
            raise ValueError(f"{place}: write the meaning without a full stop at its end")
        try:
            find_outside(pd.Series(dtype=float), row.range)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    twice = entries[entries.duplicated(["table", "column"])]
    if len(twice):
        table, column = twice.iloc[0][["table", "column"]]
        raise ValueError(f"{path.name}, {table}, column {column!r}: two entries; keep one")
    return entries


def find_entry(table: str, column: str, entries: pd.DataFrame) -> pd.Series | None:
    """The entry for a column: of the table's own name, else of the longest pattern that fits, or None."""
    own = entries[entries["column"] == column]
    fitting = own[[fnmatchcase(table, pattern) for pattern in own["table"]]]
    if not len(fitting):
        return None
    order = (fitting["table"] == table) * 1000 + fitting["table"].str.len()
    return fitting.loc[order.idxmax()]


def list_tables(study: Study) -> dict[str, list[Path]]:
    """The files of a run's tables, by name.

    tables/04_pairs.csv is "04_pairs", the shards attention/part-*.parquet are "attention", any other file is
    named after its folder as well: "faithfulness/boxes". Unfinished steps and the dictionary are left out.
    """
    found = defaultdict(list)
    for path in sorted(study.run_dir.glob("[!.]*/[!.]*.*")):
        if path.suffix not in (".csv", ".parquet"):
            continue
        folder = path.parent.name
        if folder == "tables":
            found[path.stem].append(path)
        else:
            found[folder if path.stem.startswith("part-") else f"{folder}/{path.stem}"].append(path)
    found.pop(NAME, None)
    return dict(found)


def read_columns(path: Path) -> Iterator[tuple[str, pd.Series, int]]:
    """The columns of a file, one at a time: name, values, rows. A measure's lists are flattened."""
    if path.suffix == ".csv":
        # only an empty cell is empty: "None" and "NA" may be answers
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""], low_memory=False)
        yield from ((name, frame[name], len(frame)) for name in frame)
        return
    with pq.ParquetFile(path) as file:
        for name in file.schema_arrow.names:
            values = file.read([name])[name].combine_chunks()
            n_rows = len(values)
            if pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
                values = values.flatten()
            yield name, values.to_pandas(), n_rows


def describe_column(table: str, column: str, entries: pd.DataFrame) -> dict:
    """A row of `describe_tables` before any value has been seen."""
    entry = find_entry(table, column, entries)
    fields = FIELDS[2:6]
    said = dict.fromkeys(fields, np.nan) if entry is None else entry[fields].to_dict()
    return {
        "table": table,
        "column": column,
        **said,
        "rows": 0,
        "n_empty": 0,
        "n_outside": 0,
        "example": np.nan,
    }


def count_values(known: dict, values: pd.Series, n_rows: int) -> None:
    """Add the values of one file to a row of `describe_tables`."""
    filled = values.dropna()
    known["rows"] += n_rows
    known["n_empty"] += len(values) - len(filled)
    if isinstance(known["range"], str):
        outside = filled[find_outside(filled, known["range"])]
        if len(outside) and not known["n_outside"]:
            known["example"] = str(outside.iloc[0])
        known["n_outside"] += len(outside)


def find_outside(values: pd.Series, allowed: str) -> np.ndarray:
    """Which values are outside a range of data/columns.csv: bool (n,).

    values: none empty. Numbers may pass their bounds by ROUNDING, whole ones not at all. ValueError for a
    range that cannot be read.
    """
    if allowed == "text":
        return np.zeros(len(values), dtype=bool)
    if len(allowed) > 2 and allowed[0] == allowed[-1] == "/":
        return np.array(
            [not re.fullmatch(allowed[1:-1], str(value)) for value in values], dtype=bool
        )
    kind, _, limits = allowed.partition(" ") if allowed.startswith("whole") else ("", "", allowed)
    bounds = BOUNDS.fullmatch(limits)
    if bounds and allowed and kind in ("", "whole"):
        return _find_beyond(
            pd.to_numeric(values, errors="coerce").to_numpy(float), bounds, kind == "whole"
        )
    if "|" in allowed:
        return ~values.astype(str).isin(allowed.split("|")).to_numpy()
    raise ValueError(
        f"cannot read the range {allowed!r}: see helpers/run/schema.py for the forms it can have"
    )


def _find_beyond(numbers: np.ndarray, bounds: re.Match, whole: bool) -> np.ndarray:
    low, high, sign, bound = bounds.groups()
    slack = 0 if whole else ROUNDING
    outside = ~np.isfinite(numbers)
    if whole:
        outside |= numbers != np.round(numbers)
    if low is not None:
        outside |= (numbers < float(low) - slack) | (numbers > float(high) + slack)
    elif sign == "<=":
        outside |= numbers > float(bound) + slack
    elif sign is not None:
        outside |= (numbers < float(bound) - slack) if sign == ">=" else (numbers <= float(bound))
    return outside
