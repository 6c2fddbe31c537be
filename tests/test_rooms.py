"""The shape of the helpers: a room imports only rooms above it."""

import ast
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("run", "stats", "figures", "report", "data", "model", "attention", "heads")
CALLED = {  # from outside of the project
    "data": ("question_type", "question_family", "vqa_accuracy", "read_vqa"),
    "model": ("load_vilt", "forward_raster"),
    "attention": ("attention_split", "attention_maps", "knockout", "look"),
    "run": ("Study",),
    "report": ("read_claims",),
}


def imported_modules(path: Path) -> set[str]:
    """Dotted names that a file imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_above_it(room):
    for path in (ROOT / "helpers" / room).glob("*.py"):
        names = [name.split(".") for name in imported_modules(path)]
        below = {name[1] for name in names if name[0] == "helpers"} - set(
            ROOMS[: ROOMS.index(room) + 1]
        )
        assert not below, f"{path.name} imports {below}"
        assert not [name for name in names if name[0] == "tools"], (
            f"{path.name} imports a command line"
        )


def test_no_module_stands_on_a_chain_of_more_than_six_others():
    """What is imported with a module, not inside a function."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
             for path in (ROOT / "helpers").glob("*/*.py")}  # fmt: skip

    @cache
    def depth(module: str) -> int:
        body = ast.parse(files[module].read_text(encoding="utf-8")).body
        names = [(node.module, alias.name) for node in body if isinstance(node, ast.ImportFrom)
                 for alias in node.names]  # fmt: skip
        found = [".".join(name) if ".".join(name) in files else name[0] for name in names]
        return 1 + max((depth(name) for name in found if name in files), default=0)

    depths = {module: depth(module) for module in files if not module.endswith("__init__")}
    assert max(depths.values()) <= 7, max(depths, key=depths.get)


def test_a_fresh_process_finds_every_name_behind_the_model_rooms_door():
    """Other tests import modules one by one, which hides what the door alone does not open."""
    code = "from helpers import model; [getattr(model, name) for name in model.__all__]"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("room", CALLED)
def test_what_is_called_from_outside_stands_in_the_door_and_is_no_module(room):
    door = importlib.import_module(f"helpers.{room}")
    assert [name for name in CALLED[room] if not callable(getattr(door, name))] == []
