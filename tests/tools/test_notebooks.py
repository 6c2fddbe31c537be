"""The notebooks: as committed, as `make test` has just run them, and on real VQAv2."""

import os
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from datapackage import check_package

from helpers.report.claims import CLAIMS, read_claims
from helpers.run.settings import Study
from tools.record import write_datapackage
from tools.run_notebooks import (
    CODE,
    WIDGET,
    find_keys,
    list_notebooks,
    run_notebooks,
)

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
    """What all notebooks leave: a record of each claim, figures, tables as described."""
    measured = read_claims(study.run_dir).query("verdict != 'not measured yet'")
    assert set(measured["key"]) == list_recorded()
    assert not (measured["estimate"].isna() & measured["reason"].isna()).any()
    assert len(list((study.run_dir / "figures").glob("*.png"))) >= 10
    assert len(list((study.run_dir / "tables").glob("*.csv"))) >= 5
    write_datapackage(study)
    assert check_package(study.run_dir) == []


def list_recorded():
    """The keys of the claims that some notebook records."""
    notebooks = [nbformat.read(path, as_version=4) for path in COMMITTED]
    named = set().union(*(find_keys(notebook) for notebook in notebooks))
    return named & set(pd.read_csv(CLAIMS)["key"])


@pytest.fixture(scope="module")
def default_run():
    """The default run as nbval has left it, if that was with the code as it is now."""
    study = Study.load()
    left = [path.stat().st_mtime for path in study.run_dir.glob("claims/*.json")]
    code = [path for pattern in CODE for path in ROOT.glob(pattern)]
    if not left:
        pytest.skip("no default run here: make test runs the notebooks first")
    if min(left) < max(path.stat().st_mtime for path in code):
        pytest.skip("the code has changed since the default run")
    return study


@pytest.mark.notebooks
def test_the_default_run_is_whole_and_every_claim_can_be_tested(default_run):
    """On the phantom, boxes and controls are known."""
    check_run(default_run)
    assert "not testable" not in set(read_claims(default_run.run_dir)["verdict"])


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
    for path in paths:
        assert path.with_suffix(".html").stat().st_size > 10_000
    assert (study.run_dir / "run.json").is_file()
    claims = read_claims(study.run_dir).set_index("key")
    assert claims.loc["needs-image", "low"] < claims.loc["needs-image", "high"]
    assert claims.loc["finds-object", "verdict"] == "not testable"
    assert claims.loc["controls-tell", "verdict"] == "not testable"


@pytest.mark.parametrize("name", ["02_finetune", "05_head_roles"])
def test_a_notebook_opened_alone_says_which_one_to_run_first(name, tmp_path):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    code = [cell.source for cell in cells[2:] if cell.cell_type == "code"]  # without the setup
    code.insert(1, f"RUN_NAME, SETTINGS = 'alone', {{'runs_root': {str(tmp_path)!r}}}")
    advice = r"run notebooks/01_setup\.ipynb with RUN_NAME='alone'"
    with pytest.raises(FileNotFoundError, match=advice):
        exec("\n".join(code), {"print": lambda line: None})


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
    check_outputs([path])
    for cell in code:
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                caption = output.metadata["image/png"]["alt"]
                assert caption.startswith("Figure "), "a figure without a caption under it"


def test_setup_and_parameters_are_the_same_in_all_notebooks():
    cells = [nbformat.read(path, as_version=4).cells[1:3] for path in COMMITTED]
    assert len({setup.source for setup, _ in cells}) == 1
    # 00 has parameters of its own, 07 one more
    heads = [given.source.partition("\nRUNS = ")[0] for _, given in cells[1:]]
    assert len(set(heads)) == 1
