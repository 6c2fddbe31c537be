"""The whole chain by papermill: at a small setting on the phantom, and on real VQAv2 where it is at hand."""

import re
from pathlib import Path

import nbformat
import pytest

from helpers.report.findings import read_findings
from helpers.run.schema import check_tables
from helpers.run.settings import Study
from tools.run_notebooks import WIDGET, ChainError, execute, list_notebooks, run_chain

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "vqav2_sample"
COMMITTED = list_notebooks(ROOT)


def run(profile, runs_root, **settings):
    """Run the chain as `make run` does; returns the study and its executed notebooks."""
    few = {"bootstrap_draws": 100, "shapley_permutations": 2, "latency_rounds": 3, "prune_draws": 2}
    settings = {**few, **settings, "runs_root": str(runs_root)}
    study = Study.load(profile, run_name="test", **settings)
    named = {name: settings.pop(name) for name in ("data_root", "checkpoint") if name in settings}
    parameters = {"PROFILE": profile, "RUN_NAME": "test", "SETTINGS": settings}
    return study, run_chain(
        study, {**parameters, **{name.upper(): value for name, value in named.items()}}
    )


def check_outputs(paths):
    for path in paths:
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                assert output.output_type != "error", path.name
                assert output.get("name") != "stderr", f"{path.name}: {output.text}"
                assert WIDGET not in output.get("data", {})


def check_run(study, paths):
    assert [path.name for path in paths] == [path.name for path in COMMITTED]
    check_outputs(paths)
    answers = [text for name, text in read_findings(study).items() if name.endswith(".answer")]
    assert len(answers) == len(COMMITTED)
    for path, answer in zip(paths, answers, strict=True):
        assert answer in nbformat.read(path, as_version=4).cells[0].source
        assert path.with_suffix(".html").stat().st_size > 10_000
    assert not [
        text for text in read_findings(study).values() if re.search(r"\bnan\b|\binf\b", text)
    ]
    assert (study.run_dir / "run.json").is_file()
    assert len(list((study.run_dir / "figures").glob("*.png"))) >= 10
    assert len(list((study.run_dir / "tables").glob("*.csv"))) >= 5
    assert check_tables(study) == []
    assert (study.run_dir / "tables" / "dictionary.csv").is_file()


def test_the_chain_runs_small_on_the_phantom(tmp_path):
    settings = {
        "train_scenes": 20,
        "validation_scenes": 8,
        "epochs": 1,
        "batch_size": 32,
        "ablation_questions": 40,
        "second_seed": False,
    }
    check_run(*run("phantom", tmp_path, **settings))


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="no real VQAv2 sample beside the project")
def test_the_chain_runs_on_real_questions_and_photographs(tmp_path):
    given = {
        "data_root": str(SAMPLE),
        "checkpoint": "data/phantom-vilt",
        "epochs": 1,
        "device": "cpu",
    }
    study, paths = run("colab", tmp_path, **given)
    check_run(study, paths)
    findings = read_findings(study)
    assert "29 validation questions" in findings["02.answer"]
    assert "[" in findings["02.answer"], "no interval"
    assert "does not say which questions need the image" in findings["02.controls"]
    assert "does not say where the answer lies" in findings["03.boxes"]


@pytest.mark.parametrize(
    ("notebook", "maker"), [("02_finetune", "01_setup"), ("05_head_roles", "01_setup")]
)
def test_a_notebook_opened_alone_says_which_one_to_run_first(tmp_path, notebook, maker):
    settings = {"runs_root": str(tmp_path)}
    with pytest.raises(
        ChainError,
        match=rf"{notebook}, cell \d+ .*run notebooks/{maker}\.ipynb with RUN_NAME='alone'",
    ):
        execute(
            ROOT / "notebooks" / f"{notebook}.ipynb",
            tmp_path / "out.ipynb",
            {"RUN_NAME": "alone", "SETTINGS": settings},
        )


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
    assert not re.search(r"<!--answer--><!--/answer-->", notebook.cells[0].source), (
        "the answer is missing"
    )
    assert max(len(cell.source.splitlines()) for cell in code) <= 25
    check_outputs([path])
    for cell in code:
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert output.metadata["image/png"]["alt"].startswith("Figure "), (
                    "a figure without a caption under it"
                )


def test_the_readme_quotes_the_committed_notebooks():
    quoted = re.findall(
        r"<!--(\d\d)\.answer-->(.+?)<!--/", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    opened = [
        (path.name[:2], nbformat.read(path, as_version=4).cells[0].source) for path in COMMITTED
    ]
    assert [number for number, _ in quoted] == [number for number, _ in opened]
    assert all(answer in opening for (_, answer), (_, opening) in zip(quoted, opened, strict=True))


def test_setup_and_parameters_are_the_same_in_all_notebooks():
    heads = [
        [cell.source for cell in nbformat.read(path, as_version=4).cells[1:4]] for path in COMMITTED
    ]
    heads[-1][1] = heads[-1][1].partition("\nRUNS = ")[0]  # 07 has one parameter more
    assert all(head == heads[0] for head in heads)
