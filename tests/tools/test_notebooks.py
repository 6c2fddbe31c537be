"""The notebooks: as committed, as `make test` has just run them, and on real VQAv2."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from datapackage import check_package

from helpers.report.findings import read_findings
from helpers.run.schema import write_datapackage
from helpers.run.settings import Study
from tools.run_notebooks import CODE, WIDGET, NotebookError, execute, list_notebooks, run_notebooks

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "vqav2_sample"
COMMITTED = list_notebooks(ROOT)


def check_outputs(paths):
    for path in paths:
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                assert output.output_type != "error", path.name
                assert output.get("name") != "stderr", f"{path.name}: {output.text}"
                assert WIDGET not in output.get("data", {})


def check_run(study):
    """What notebooks 01 to 07 leave: findings, figures, tables as described."""
    findings = read_findings(study)
    answers = [name for name in findings if name.endswith(".answer")]
    assert answers == [f"{path.name[:2]}.answer" for path in COMMITTED]
    assert not [text for text in findings.values() if re.search(r"\bnan\b|\binf\b", text)]
    assert len(list((study.run_dir / "figures").glob("*.png"))) >= 10
    assert len(list((study.run_dir / "tables").glob("*.csv"))) >= 5
    write_datapackage(study)
    assert check_package(study.run_dir) == []


@pytest.fixture(scope="module")
def default_run():
    """The default run as nbval has left it, if that was with the code as it is now."""
    study = Study.load()
    left = study.run_dir / "tables" / "findings.json"
    code = [path for pattern in CODE for path in ROOT.glob(pattern)]
    if not left.is_file():
        pytest.skip("no default run here: make test runs the notebooks first")
    if left.stat().st_mtime < max(path.stat().st_mtime for path in code):
        pytest.skip("the code has changed since the default run")
    return study


@pytest.mark.notebooks
def test_the_default_run_is_whole_and_as_described(default_run):
    check_run(default_run)


@pytest.mark.notebooks
def test_the_default_run_states_every_finding(default_run):
    """All that the notebooks' code names: on the phantom, boxes and controls are known."""
    stated = set()
    for path in COMMITTED:
        code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        stated |= set(re.findall(r'state_finding\(\s*study,\s*"(\d\d)",\s*"(\w+)"', code))
    missing = {f"{number}.{name}" for number, name in stated} - set(read_findings(default_run))
    assert missing == set()


@pytest.mark.notebooks
@pytest.mark.skipif(
    not (SAMPLE.is_dir() and os.environ.get("TEST_SAMPLE")),
    reason="asks for real VQAv2 beside the project and TEST_SAMPLE=1: make test-sample",
)
def test_the_notebooks_run_on_real_questions_and_photographs(tmp_path):
    few = {"bootstrap_draws": 100, "shapley_permutations": 2, "latency_rounds": 3, "prune_draws": 2}
    others = {**few, "epochs": 1, "device": "cpu", "runs_root": str(tmp_path)}
    named = {"run_name": "test", "data_root": str(SAMPLE), "checkpoint": "data/phantom-vilt"}
    study = Study.load("colab", **named, **others)
    parameters = {name.upper(): value for name, value in named.items()}
    paths = run_notebooks(study, {"PROFILE": "colab", **parameters, "SETTINGS": others})
    check_run(study)
    check_outputs(paths)
    findings = read_findings(study)
    for path in paths:
        opening = nbformat.read(path, as_version=4).cells[0].source
        assert findings[f"{path.name[:2]}.answer"] in opening
        assert path.with_suffix(".html").stat().st_size > 10_000
    assert (study.run_dir / "run.json").is_file()
    assert "29 validation questions" in findings["02.answer"]
    assert "[" in findings["02.answer"], "no interval"
    assert "does not say which questions need the image" in findings["02.controls"]
    assert "does not say where the answer lies" in findings["03.boxes"]


@pytest.mark.notebooks
@pytest.mark.parametrize("name", ["02_finetune", "05_head_roles"])
def test_a_notebook_opened_alone_says_which_one_to_run_first(tmp_path, name):
    advice = rf"{name}, cell \d+ .*run notebooks/01_setup\.ipynb with RUN_NAME='alone'"
    parameters = {"RUN_NAME": "alone", "SETTINGS": {"runs_root": str(tmp_path)}}
    with pytest.raises(NotebookError, match=advice):
        execute(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "out.ipynb", parameters)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebooks_are_executed_clean_and_tagged(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tags = [tag for cell in code for tag in cell.metadata.get("tags", [])]
    assert len(text) < 1_000_000
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert tags.count("parameters") == 1
    assert "nbval-check-output" in tags
    assert "widgets" not in notebook.metadata
    assert not re.search(r'"[^"]*/(root|home|tmp|work)/', text), "an absolute path"
    assert "<!--answer--><!--/answer-->" not in notebook.cells[0].source, "no answer"
    imports = re.compile(r"^(?:from|import) [^(\n]+(?:\([^)]*\))?\n", flags=re.MULTILINE)
    assert max(len(imports.sub("", cell.source).splitlines()) for cell in code) <= 25
    check_outputs([path])
    for cell in code:
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                caption = output.metadata["image/png"]["alt"]
                assert caption.startswith("Figure "), "a figure without a caption under it"


def test_the_readme_quotes_the_committed_notebooks():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = dict(re.findall(r"<!--(\d\d)\.answer-->(.+?)<!--/", readme))
    assert list(quoted) == [path.name[:2] for path in COMMITTED]
    for path in COMMITTED:
        opening = nbformat.read(path, as_version=4).cells[0].source
        assert quoted[path.name[:2]] in opening, path.name


def test_setup_and_parameters_are_the_same_in_all_notebooks():
    cells = [nbformat.read(path, as_version=4).cells[1:4] for path in COMMITTED]
    heads = [[cell.source for cell in head] for head in cells]
    heads[-1][1] = heads[-1][1].partition("\nRUNS = ")[0]  # 07 has one parameter more
    assert all(head == heads[0] for head in heads)
