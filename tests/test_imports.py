"""The shape of the helpers: imports run one way, pure modules stay pure, modules stay small."""

import ast
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"
PURE = ("vqa", "clustered", "plots", "steps")  # import no sibling; plotting modules build on plots alone
MODELS = ("torch", "transformers", "datasets")


def read_imports(path: Path) -> tuple[set[str], set[str]]:
    """Sibling modules and outside packages that a module imports, also inside functions."""
    siblings, packages = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "helpers":
            siblings |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("helpers."):
            siblings.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: relative import"
            packages.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
    return siblings, packages


IMPORTS = {path.stem: read_imports(path) for path in sorted(HELPERS.glob("*.py")) if path.stem != "__init__"}


def test_imports_run_one_way():
    """Modules whose siblings are all placed can be placed: an order exists, so there is no cycle."""
    placed = set()
    while len(placed) < len(IMPORTS):
        ready = {name for name, (siblings, _) in IMPORTS.items() if name not in placed and siblings <= placed}
        assert ready, f"a cycle among {sorted(set(IMPORTS) - placed)}"
        placed |= ready


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_no_sibling(name):
    assert IMPORTS[name][0] == set()


@pytest.mark.parametrize("name", [name for name in IMPORTS if name.startswith("plots")])
def test_plots_take_arrays_and_never_models(name):
    siblings, packages = IMPORTS[name]
    assert siblings <= {"plots"}
    assert not packages & set(MODELS)


def test_nothing_imports_a_notebook_or_the_chain():
    assert not [name for name, (siblings, _) in IMPORTS.items() if "chain" in siblings]


@pytest.mark.parametrize("path", sorted(HELPERS.glob("*.py")), ids=lambda path: path.stem)
def test_public_functions_are_documented(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


@pytest.mark.parametrize("path", sorted(HELPERS.glob("*.py")), ids=lambda path: path.stem)
def test_library_code_does_not_print_or_import_everything(path):
    if path.stem in ("chain", "launch"):
        return  # the command lines
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), (
            f"{path.name} prints"
        )
        assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), f"{path.name}: import *"
