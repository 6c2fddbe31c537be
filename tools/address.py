"""Write the project's address into badges and setup cells; it stands in pyproject.toml.

make address ADDRESS=https://github.com/you/your-fork
"""

import re
import sys
import tomllib
from pathlib import Path

from helpers.run.cache import ROOT, write_atomic
from tools.run_notebooks import list_notebooks

GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+)")
# in a setup cell, and in a badge
PLACES = (re.compile(r'(?<=GIT = ).*https://github\.com/([\w.-]+/[\w.-]+)(?=\\")'),
          re.compile(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob"))  # fmt: skip


def read_address(root: Path = ROOT) -> str:
    """The project's address, as pyproject.toml says it."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["project"]["urls"]["Repository"]


def write_address(root: Path, address: str) -> None:
    """Write an address into pyproject.toml and all notebooks; ValueError if it is not on GitHub."""
    if not (found := GITHUB.fullmatch(address)):
        raise ValueError(f"{address!r}: expected https://github.com/owner/name, as Colab opens it")

    def put(match: re.Match) -> str:
        return match[0].replace(match[1], found[1])

    own = root / "pyproject.toml"
    text = own.read_text(encoding="utf-8")
    write_atomic(own, text.replace(read_address(root), address))
    for path in list_notebooks(root):
        text = path.read_text(encoding="utf-8")
        for place in PLACES:
            text = place.sub(put, text)
        write_atomic(path, text)


if __name__ == "__main__":
    try:
        write_address(ROOT, sys.argv[1])
    except ValueError as error:
        sys.exit(f"stopped: {error}")
