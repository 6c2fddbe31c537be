"""The project's address: in one place, and from there in every badge and setup cell."""

import re
import shutil
from pathlib import Path

import pytest

from tools import address
from tools.run_notebooks import list_notebooks

ROOT = Path(__file__).parents[2]


def find_addresses(root):
    """All owner/name that notebooks name on GitHub and in badges; how many a notebook."""
    texts = [path.read_text(encoding="utf-8") for path in list_notebooks(root)]
    found = [re.findall(r"github(?:\.com)?/([\w.-]+/[\w.-]+)", text) for text in texts]
    return {name for own in found for name in own if "vilt" in name}, [len(own) for own in found]


def test_another_address_reaches_every_badge_and_setup_cell(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    before, counts = find_addresses(tmp_path)
    assert before == {address.read_address().removeprefix("https://github.com/")}
    assert min(counts) >= 2
    address.write_address(tmp_path, "https://github.com/me/my-vilt.fork")
    assert find_addresses(tmp_path) == ({"me/my-vilt.fork"}, counts)
    assert address.read_address(tmp_path) == "https://github.com/me/my-vilt.fork"


def test_an_address_elsewhere_is_one_sentence():
    with pytest.raises(ValueError, match=r"expected https://github\.com/owner/name"):
        address.write_address(ROOT, "https://example.org/me/fork")
