"""The limits on notebooks, claims and helpers: what is over one is named."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import check_counts

WIDE = "\n".join(["x" * 88] * 8 + [""] + ["x" * 88] * 6)  # 15 lines, the empty one counted


def make_empty(n_cells):
    return [new_markdown_cell("") for _ in range(n_cells)]


def write(root, name, *cells):
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)


def list_kinds(root):
    return [(each.kind, each.count) for each in check_counts.find_excesses(root)]


def test_what_is_within_the_limits_is_not_named(tmp_path):
    write(tmp_path, "01_setup", *[new_code_cell(WIDE) for _ in range(35)])
    assert list_kinds(tmp_path) == []


def test_each_limit_is_named_with_its_count(tmp_path):
    write(tmp_path, "01_setup", new_markdown_cell("x" * 89), *make_empty(35))
    write(tmp_path, "02_finetune", new_code_cell(WIDE + "\nx"))
    setup = new_code_cell("x\n" * 15, metadata={"tags": ["setup"]})
    write(tmp_path, "07_report", setup, *make_empty(20))
    assert list_kinds(tmp_path) == [
        ("cells", 36), ("columns", 89), ("lines", 16), ("cells", 21), ("setup lines", 15),
    ]  # fmt: skip
