"""Does the default run give the numbers that the project states? `make verify`.

    python -m tools.verify                  # run the study into runs/verify, and compare
    python -m tools.verify --run phantom    # compare a run that is there: its name or folder
    python -m tools.verify --write phantom  # take a run's numbers as the golden ones

tests/golden/ holds a CSV file for each main table of the default run, `claims.csv`, and
`tolerances.json`: how far a number may differ, a table and column. What has no tolerance there has
to be equal. Numbers of models that are trained in the run itself, and times, are left out.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.report.claims import read_claims
from helpers.run.cache import ROOT, write_atomic
from helpers.run.settings import Study
from tools.run_notebooks import NotebookError, run_study

GOLDEN = ROOT / "tests" / "golden"
TOLERANCES = "tolerances.json"
LEFT_OUT = (
    "02_models", "02_predictions",  # of the model that 02 fine-tunes; large
    "06_candidates", "06_pareto",  # of models that 06 fine-tunes
    "06_latency", "a6_speed",  # times
    "04_pairs", "05_pairs",  # large; their claims are compared
    "a5_truths",  # rounding errors among its numbers
    "07_*", "dictionary",  # made of the others
)  # fmt: skip
LIVE_CLAIMS = ("quarter-free",)  # of a model that 06 fine-tunes
CLAIMS = ["key", "verdict", "estimate", "low", "high", "threshold", "n_questions", "n_images",
          "n_models", "k_models"]  # fmt: skip


class Comparison(NamedTuple):
    """How far a table of a run is from the golden one."""

    table: str
    n_rows: int
    largest: str  # the largest difference that is tolerated, and where; "" where there is none
    problems: list[str]  # what differs

    def __str__(self) -> str:
        """A line where the table agrees, else a line a problem."""
        if self.problems:
            return "\n".join(f"{self.table:<20} DIFFERS  {problem}" for problem in self.problems)
        return f"{self.table:<20} agrees   {self.n_rows} rows{self.largest}"


def read_tables(run_folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a run that are compared, by name, its claims among them."""
    paths = sorted((run_folder / "tables").glob("*.csv"))
    chosen = [path for path in paths if not any(path.match(f"{name}.csv") for name in LEFT_OUT)]
    claims = read_claims(run_folder)
    claims = claims.loc[~claims["key"].isin(LIVE_CLAIMS), CLAIMS].reset_index(drop=True)
    return {path.stem: pd.read_csv(path) for path in chosen} | {"claims": claims}


def compare_run(run_folder: Path, golden: Path) -> list[Comparison]:
    """Compare a run's tables with the golden ones."""
    tables = read_tables(run_folder)
    tolerances = json.loads((golden / TOLERANCES).read_text(encoding="utf-8"))
    comparisons = []
    for path in sorted(golden.glob("*.csv")):
        name, expected = path.stem, pd.read_csv(path)
        if name in tables:
            own = tolerances.get(name, {})
            comparisons.append(compare_tables(name, expected, tables[name], own))
        else:
            comparisons.append(Comparison(name, 0, "", ["the run has no such table"]))
    return comparisons


def compare_tables(
    name: str, golden: pd.DataFrame, found: pd.DataFrame, tolerances: dict[str, float]
) -> Comparison:
    """Compare two tables row by row; tolerances: of columns of numbers, others have to be equal."""
    problems = [f"column {column!r} is missing" for column in golden if column not in found]
    problems += [f"column {column!r} is not golden" for column in found if column not in golden]
    if len(golden) != len(found):
        problems.append(f"{len(found)} rows, golden: {len(golden)}")
        return Comparison(name, len(found), "", problems)
    worst = (0.0, "")
    for column in [column for column in golden if column in found]:
        tolerance = tolerances.get(column, 0.0)
        differences = measure_differences(golden[column], found[column])
        wrong = differences > tolerance
        row = int(np.argmax(differences)) if len(differences) else 0
        if wrong.any():
            cell = f"{found[column].iloc[row]}, golden: {golden[column].iloc[row]}"
            problems.append(
                f"column {column!r}: {wrong.sum()} of {len(wrong)} cells by more than "
                f"{tolerance:g}, most in row {row} ({name_row(golden, row, tolerances)}): {cell}"
            )
        elif len(differences) and differences[row] > worst[0]:
            largest = f", largest difference {differences[row]:.1g} of {tolerance:g} in {column!r}"
            worst = (differences[row], largest)
    return Comparison(name, len(found), worst[1], problems)


def measure_differences(golden: pd.Series, found: pd.Series) -> np.ndarray:
    """How far each cell is from the golden one: infinitely where texts differ or one is empty."""
    unequal = np.where((golden == found) | (golden.isna() & found.isna()), 0.0, np.inf)
    are_numbers = [pd.api.types.is_numeric_dtype(column) for column in (golden, found)]
    if not all(are_numbers) or golden.dtype == bool or found.dtype == bool:
        return unequal
    distance = (golden.astype(float) - found.astype(float)).abs().to_numpy()
    return np.where(np.isfinite(distance), distance, unequal)


def name_row(table: pd.DataFrame, row: int, tolerances: dict[str, float]) -> str:
    """What a row is of: its first columns that hold no measured number."""
    exact = [column for column in table if column not in tolerances][:4]
    return ", ".join(f"{column} {table[column].iloc[row]}" for column in exact)


def write_golden(run_folder: Path, golden: Path) -> list[str]:
    """Write a run's tables as the golden ones, with tolerances; returns the tables' names.

    A tolerance that is there already stays; a new column gets `suggest_tolerance`.
    """
    golden.mkdir(parents=True, exist_ok=True)
    path, tables = golden / TOLERANCES, read_tables(run_folder)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tolerances = {}
    for old in golden.glob("*.csv"):
        old.unlink()
    for name, table in tables.items():
        numbers = [column for column in table if table[column].dtype == float]
        own = {column: suggest_tolerance(table[column]) for column in numbers}
        tolerances[name] = own | {
            column: value for column, value in known.get(name, {}).items() if column in own
        }
        text = table.to_csv(index=False, lineterminator="\n", float_format="%.8g")
        write_atomic(golden / f"{name}.csv", text)
    write_atomic(path, json.dumps(tolerances, indent=1) + "\n")
    return list(tables)


def suggest_tolerance(values: pd.Series) -> float:
    """At most a thousandth of a column's largest number, a power of ten: 98.6 gives 0.01."""
    largest = values.abs().replace(np.inf, np.nan).max()
    return 1e-6 if not largest > 0 else float(f"1e{int(np.floor(np.log10(largest))) - 3}")


def find_run(name: str) -> Path:
    """The folder of a run, given by its name or folder; ValueError where there is none."""
    folders = [Path(name), Study.load().run_dir.parent / name]
    for folder in folders:
        if (folder / "tables").is_dir():
            return folder
    raise ValueError(f"no run {name!r}: {folders[1]} holds no tables")


def run_default() -> Path:
    """Run the default study into runs/verify from nothing; returns that folder."""
    folder = Study.load(run_name="verify").run_dir
    shutil.rmtree(folder, ignore_errors=True)
    run_study({"run_name": "verify"}, [])
    return folder


def main(words: list[str] | None = None, golden: Path = GOLDEN) -> int:
    """Command line of `make verify`; returns the exit status: 1 where a number differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--run", help="compare this run instead of running the study")
    one.add_argument("--write", metavar="RUN", help="take this run's numbers as the golden ones")
    given = parser.parse_args(words)
    try:
        if given.write:
            names = write_golden(find_run(given.write), golden)
            print(f"wrote {len(names)} tables to {golden}: {', '.join(names)}")
            return 0
        if not any(golden.glob("*.csv")):
            raise ValueError(f"{golden} holds no golden tables: write them with --write first")
        comparisons = compare_run(find_run(given.run) if given.run else run_default(), golden)
    except (NotebookError, ValueError, OSError) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    for comparison in comparisons:
        print(comparison)
    wrong = [comparison.table for comparison in comparisons if comparison.problems]
    agreeing = len(comparisons) - len(wrong)
    print(f"{agreeing} of {len(comparisons)} tables agree with {golden.name}/")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
