"""Are notebooks short, lines narrow, claims brief? `make lint` runs it.

    python -m tools.check_counts

Prints what is over a limit. LIMITS that hold for all notebooks make the exit status 1; the others
are reported only.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd
from nbformat import NotebookNode

from helpers.report.claims import CLAIMS
from helpers.run.cache import ROOT
from tools.run_notebooks import REPORT, list_notebooks

CELLS = 35  # of a notebook
REPORT_CELLS = 20  # of 07
CELL_LINES = 15  # of a code cell, empty ones included
COLUMNS = 88  # of a notebook's lines
SETUP_LINES = 8  # of code, imports aside
CLAIM_WORDS = 25
HELPERS_LINES = 8000
REPORTED = ("helpers",)  # kinds that fail nothing
LINKS = ("http", "](", "<!--", "| ")  # a line with a long address or a table cannot be broken


class Excess(NamedTuple):
    """What is over its limit, and by how much."""

    kind: str
    place: str
    count: int
    limit: int

    def __str__(self) -> str:
        """One line of the report."""
        return f"{self.place}: {self.count} {self.kind}, at most {self.limit}"


def check_notebook(path: Path) -> Iterator[Excess]:
    """Cells, the longest code cell, the widest line and the setup cell of one notebook."""
    cells, name = nbformat.read(path, as_version=4).cells, path.stem
    yield Excess("cells", name, len(cells), REPORT_CELLS if name == REPORT else CELLS)
    own = {number: cell for number, cell in enumerate(cells) if not has_tag(cell, "parameters")}
    code = {number: cell for number, cell in own.items() if cell.cell_type == "code"}
    setup = [number for number in code if has_tag(code[number], "setup")]
    for number in setup:
        yield Excess("setup lines", name, count_lines(code.pop(number).source), SETUP_LINES)
    lines = {number: len(cell.source.splitlines()) for number, cell in code.items()}
    widths = {number: measure_width(cell.source) for number, cell in own.items()}
    for kind, counts, limit in (("lines", lines, CELL_LINES), ("columns", widths, COLUMNS)):
        most = max(counts, key=counts.get, default=None)
        if most is not None:
            yield Excess(kind, f"{name}, cell {most}", counts[most], limit)


def has_tag(cell: NotebookNode, tag: str) -> bool:
    """Whether a cell is tagged so."""
    return tag in cell.metadata.get("tags", [])


def count_lines(source: str) -> int:
    """Lines of code that are not empty; imports do not count."""
    imports = {
        line
        for node in ast.parse(source).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = enumerate(source.splitlines(), start=1)
    return sum(bool(line.strip()) and number not in imports for number, line in lines)


def measure_width(source: str) -> int:
    """Columns of the widest line that could have been broken."""
    lines = [line for line in source.splitlines() if not any(mark in line for mark in LINKS)]
    return max(map(len, lines), default=0)


def check_claims() -> Iterator[Excess]:
    """Words of each claim."""
    for row in pd.read_csv(CLAIMS).itertuples():
        yield Excess("words", f"claim {row.key}", len(row.claim.split()), CLAIM_WORDS)


def check_helpers(root: Path) -> Iterator[Excess]:
    """Lines of all helpers."""
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in root.glob("helpers/**/*.py"))
    yield Excess("helpers", "helpers/, lines", lines, HELPERS_LINES)


def find_excesses(root: Path) -> list[Excess]:
    """All that is over its limit."""
    checks = [check_claims(), check_helpers(root), *map(check_notebook, list_notebooks(root))]
    return [found for check in checks for found in check if found.count > found.limit]


def main(root: Path = ROOT) -> int:
    """Print what is over a limit; returns 1 where something that must hold is."""
    found = find_excesses(root)
    for excess in found:
        note = " (reported only)" if excess.kind in REPORTED else ""
        print(f"{excess}{note}")
    return int(any(excess.kind not in REPORTED for excess in found))


if __name__ == "__main__":
    sys.exit(main())
