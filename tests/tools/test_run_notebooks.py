"""The runner: order, what is up to date, what is redone, and what a failure leaves behind."""

import base64
import contextlib
import io

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from papermill.engines import Engine, papermill_engines
from PIL import Image

from helpers.report.findings import read_findings
from helpers.run.cache import cached_step
from helpers.run.settings import Study
from tools import run_notebooks as runner

OPENING = "# Title\n\n**Answer.** <!--answer--><!--/answer-->"
SETUP = """
import json, sys
if {root!r} not in sys.path:
    sys.path.insert(0, {root!r})
from helpers.run import Study
study = Study.load("phantom", run_name=RUN_NAME, **SETTINGS)

def state_finding(study, number, name, text):  # as helpers.report does, which is slow to import
    path = study.folder("tables") / "findings.json"
    findings = json.loads(path.read_text()) if path.is_file() else {{}}
    path.write_text(json.dumps(findings | {{f"{{number}}.{{name}}": text}}))
"""


MAKE = """
from helpers.run.cache import cached_step
cached_step(study.folder() / "{name}", lambda folder: None, {inputs})
"""


def write_notebook(folder, name, *cells, more=""):
    """more: further parameters."""
    given = f"RUN_NAME = None\nSETTINGS = {{}}\nSEED = 0\n{more}"
    parameters = new_code_cell(given, metadata={"tags": ["parameters"]})
    setup = new_code_cell(SETUP.format(root=str(Study.load().root)))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    opening = new_markdown_cell(OPENING, metadata={"tags": ["slide"]})
    code = [parameters, setup, *map(new_code_cell, cells)]
    notebook = new_notebook(cells=[opening, *code], metadata=kernel)
    nbformat.write(notebook, folder / f"{name}.ipynb")


class InThisProcess(Engine):
    """Executes the cells of papermill's notebook here: a Jupyter kernel takes seconds to start."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **_):
        names = {}
        for cell in [cell for cell in nb_man.nb.cells if cell.cell_type == "code"]:
            printed = io.StringIO()
            try:
                with contextlib.redirect_stdout(printed):
                    exec(cell.source, names)
            except RuntimeError as error:
                raised = {"ename": type(error).__name__, "evalue": str(error), "traceback": []}
                cell.outputs = [new_output("error", **raised)]
                return
            cell.outputs = [new_output("stream", name="stdout", text=printed.getvalue())]


@pytest.fixture
def world(tmp_path, monkeypatch, request):
    """A study in a folder of its own, with two notebooks instead of the project's.

    Tests marked slow execute them in a Jupyter kernel, the others in this process.
    """
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setitem(papermill_engines._engines, None, InThisProcess)
    sources = tmp_path / "sources"
    sources.mkdir()
    write_notebook(sources, "01_first", "state_finding(study, '01', 'answer', f'seed {SEED}')")
    write_notebook(sources, "02_second", "print(sum([1, 2]))")
    monkeypatch.setattr(runner, "list_notebooks", lambda root: sorted(sources.glob("*.ipynb")))
    settings = {"runs_root": str(tmp_path / "runs")}
    study = Study.load(run_name="test", **settings)
    lines = []

    def run(**parameters):
        del lines[:]
        given = {"RUN_NAME": "test", "SETTINGS": settings, **parameters}
        return runner.run_notebooks(study, given, lines.append)

    return sources, study, run, lines


def test_a_second_run_redoes_nothing_and_a_changed_notebook_only_what_follows(world):
    sources, _study, run, lines = world
    done = run()
    assert [path.name for path in done] == ["01_first.ipynb", "02_second.ipynb"]
    assert [line[:5] for line in lines] == ["[1/2]", "[2/2]"]
    first, second = (path.stat().st_mtime_ns for path in done)
    run()
    assert all("up to date" in line for line in lines)
    assert (first, second) == tuple(path.stat().st_mtime_ns for path in done)
    write_notebook(sources, "02_second", "print(sum([1, 2, 3]))")
    run()
    assert done[0].stat().st_mtime_ns == first
    assert done[1].stat().st_mtime_ns != second
    assert "6" in done[1].read_text()
    assert done[1].with_suffix(".html").is_file()


def test_a_parameter_changes_only_the_notebooks_that_have_it(world):
    _, _, run, lines = world
    run(SEED=1)
    run(SEED=1, RUNS=["another"])
    assert all("up to date" in line for line in lines)
    run(SEED=2)
    assert not any("up to date" in line for line in lines)


def test_a_report_is_made_anew_where_a_run_that_it_compares_with_has_changed(world):
    sources, study, run, lines = world
    write_notebook(sources, "07_report", "print(1)", more="RUNS = []")
    other = study.run_dir.parent / "other" / "tables"
    other.mkdir(parents=True)
    (other / "02_accuracy.csv").write_text("estimate\n0.5\n")
    run(RUNS=["other", "test"])
    run(RUNS=["other", "test"])
    assert all("up to date" in line for line in lines)
    (other / "02_accuracy.csv").write_text("estimate\n0.6\n")
    run(RUNS=["other", "test"])
    assert ["up to date" in line for line in lines] == [True, True, False]


def test_a_run_to_compare_with_that_is_not_there_is_said_before_anything_is_run(
    world, monkeypatch, capsys
):
    _, study, _, _ = world
    monkeypatch.setattr(runner, "run_notebooks", lambda *arguments: pytest.fail("ran"))
    words = ["--set", f"runs_root={study.runs_root}", "--runs", "nope"]
    assert runner.main(words) == 1
    assert "RUNS: 'nope' holds no tables" in capsys.readouterr().err
    assert runner.main(["--seeds", "0", "1", "--runs", "another"]) == 1
    assert "--runs" in capsys.readouterr().err


def test_the_report_becomes_pages_and_is_made_anew_without_them(world):
    sources, study, run, lines = world
    write_notebook(sources, "07_report", "print('a finding')")
    run()
    pages = [study.run_dir / name for name in ("report.html", "slides.html")]
    assert all("Title" in page.read_text() for page in pages)
    run()
    assert all("up to date" in line for line in lines)
    pages[0].unlink()
    run()
    assert pages[0].is_file()


def test_a_sweep_is_a_run_a_seed_and_the_last_compares_them(monkeypatch):
    seen = []
    monkeypatch.setattr(runner, "run_study", lambda settings, runs: seen.append((settings, runs)))
    assert runner.main(["--seeds", "0", "3", "--set", "epochs=1"]) == 0
    names = ["phantom-seed0", "phantom-seed3"]
    assert [(own["run_name"], own["seed"]) for own, _ in seen] == [(names[0], 0), (names[1], 3)]
    assert [own["epochs"] for own, _ in seen] == ["1", "1"]
    assert [runs for _, runs in seen] == [[], names]
    assert runner.main(["--seeds", "1", "1"]) == 1


@pytest.mark.slow
def test_parameters_reach_the_notebook_and_its_answer_opens_it(world):
    _, study, run, _ = world
    done = run(SEED=7)
    opening = nbformat.read(done[0], as_version=4).cells[0].source
    assert read_findings(study) == {"01.answer": "seed 7"}
    assert opening.endswith("<!--answer-->seed 7<!--/answer-->")


@pytest.mark.slow
def test_a_failing_notebook_stops_the_others_and_keeps_what_was_done(world):
    sources, study, run, lines = world
    write_notebook(sources, "02_second", "x = 1", "raise RuntimeError('no such head')")
    write_notebook(sources, "03_third", "print(3)")
    message = r"02_second, cell \d+ .*RuntimeError: no such head"
    with pytest.raises(runner.NotebookError, match=message):
        run()
    folder = study.folder("notebooks")
    assert (folder / "01_first.ipynb").is_file()
    assert not (folder / "02_second.ipynb").exists()
    assert (folder / "02_second.failed.ipynb").is_file()
    assert not (folder / "03_third.ipynb").exists()
    kept = (folder / "01_first.ipynb").stat().st_mtime_ns
    write_notebook(sources, "02_second", "x = 1")
    run()
    assert "up to date" in lines[0]
    assert (folder / "01_first.ipynb").stat().st_mtime_ns == kept
    assert not (folder / "02_second.failed.ipynb").exists()


def test_a_notebook_is_not_up_to_date_once_what_it_had_made_is_gone(world):
    sources, study, run, _ = world
    make = MAKE.format(name="made", inputs="{'x': 1}")
    write_notebook(sources, "02_second", make)
    done = run()
    before = done[1].stat().st_mtime_ns
    (study.run_dir / "made" / "made.json").unlink()
    run()
    assert done[1].stat().st_mtime_ns != before
    assert (study.run_dir / "made" / "made.json").is_file()


def test_cleaning_removes_widgets_and_papermill_and_keeps_tags():
    widget = new_output("display_data", data={runner.WIDGET: {"model_id": "1"}})
    text = new_output("stream", name="stdout", text="kept")
    tags = {"tags": ["a"], "papermill": {"duration": 1}}
    cell = new_code_cell("x", outputs=[widget, text], metadata=tags)
    paths = {"papermill": {"input_path": "/x"}, "widgets": {"state": {}}}
    cleaned = runner.clean_notebook(new_notebook(cells=[cell], metadata=paths))
    assert cleaned.cells[0].outputs == [text]
    assert cleaned.cells[0].metadata == {"tags": ["a"]}
    assert set(cleaned.metadata) == {"kernelspec", "language_info"}


def test_a_stale_run_folder_does_not_make_early_notebooks_run_twice(world):
    """What a later notebook makes anew does not unsettle an earlier one (it once did)."""
    sources, _, run, lines = world
    make = MAKE.format(name="late", inputs="{'x': SEED}")
    write_notebook(sources, "02_second", make)
    run(SEED=1)
    run(SEED=2)
    run(SEED=2)
    assert all("up to date" in line for line in lines)


def test_shrinking_keeps_a_figure_readable():
    figure = Image.effect_noise((300, 200), 60).convert("RGB")
    figure.paste((0, 114, 178), (20, 20, 120, 120))
    buffer = io.BytesIO()
    figure.save(buffer, format="PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    small = runner.shrink_png(encoded)
    assert len(small) < 0.6 * len(encoded)
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(small))).convert("RGB")).astype(int)
    assert seen.shape == (200, 300, 3)
    assert np.abs(seen - np.asarray(figure)).mean() < 6
    assert runner.shrink_png(small) == small


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "epoch=3"], "Did you mean 'epochs'"),
        (["--set", "epochs"], "expected NAME=VALUE"),
        (["--set", "seed=x"], "seed='x'"),
        (["--profile", "phantum"], "phantom"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(words, message, capsys):
    assert runner.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("stopped: ")
    assert message in said


def test_any_setting_can_be_set_on_the_command_line(world, monkeypatch):
    _, study, _, _ = world
    seen = {}

    def record(study, parameters, report):
        seen.update(study=study, given=parameters)

    monkeypatch.setattr(runner, "run_notebooks", record)
    words = ["--run-name", "", "--set", "seed=3", "run_name=test", "epochs=2"]
    assert runner.main([*words, f"runs_root={study.runs_root}"]) == 0
    assert (seen["study"].seed, seen["study"].run_name, seen["study"].epochs) == (3, "test", 2)
    others = {"runs_root": study.runs_root, "epochs": "2"}
    assert seen["given"] == {"SEED": 3, "RUN_NAME": "test", "SETTINGS": others}


@pytest.mark.parametrize("spoil", ["tables/findings.json", "notebooks/01_first.html"])
def test_what_is_deleted_or_changed_by_others_is_made_again(world, spoil):
    _, study, run, lines = world
    run(SEED=7)
    (study.run_dir / spoil).unlink()
    run(SEED=7)
    assert not any("up to date" in line for line in lines)
    assert (study.run_dir / spoil).is_file()
    run(SEED=7)
    assert all("up to date" in line for line in lines)


def test_a_step_redone_by_hand_with_other_settings_unsettles_the_run(world):
    sources, study, run, lines = world
    make = MAKE.format(name="model", inputs="{'x': SEED}")
    write_notebook(sources, "02_second", make)
    run(SEED=1)
    cached_step(study.run_dir / "model", lambda folder: None, {"x": 2})
    run(SEED=1)
    assert not any("up to date" in line for line in lines)


@pytest.mark.parametrize("left", ["", '{"inputs": {"01', "{}", '{"inputs": {}, "fingerprint": ""}'])
def test_a_cut_record_means_run_again(world, left):
    _, study, run, lines = world
    run(SEED=7)
    for path in (study.run_dir / "notebooks" / "made.json", study.run_dir / "run.json"):
        path.write_text(left)
    (study.folder("cut") / "made.json").write_text(left)
    run(SEED=7)
    assert not any("up to date" in line for line in lines)
    run(SEED=7)
    assert all("up to date" in line for line in lines)


def test_a_killed_run_continues_with_the_notebook_it_was_killed_in(world):
    """02 had begun to write over what 01 and an earlier 02 left; 01 is not run again for that."""
    sources, study, run, lines = world
    write_notebook(sources, "02_second", "state_finding(study, '02', 'answer', f'seed {SEED}')")
    run(SEED=1)
    interrupt = "raise RuntimeError('killed')"
    write_notebook(sources, "02_second", "state_finding(study, '02', 'answer', 'half')", interrupt)
    with pytest.raises(runner.NotebookError):
        run(SEED=1)
    write_notebook(sources, "02_second", "state_finding(study, '02', 'answer', f'seed {SEED}')")
    run(SEED=1)
    assert ["up to date" in line for line in lines] == [True, False]
    assert read_findings(study) == {"01.answer": "seed 1", "02.answer": "seed 1"}
    (study.run_dir / "tables" / "findings.json").unlink()
    run(SEED=1)
    assert not any("up to date" in line for line in lines)


@pytest.mark.slow
def test_a_kernel_that_dies_is_reported_with_its_cell(world):
    sources, study, run, _ = world
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    write_notebook(sources, "02_second", "x = 1", kill, "y = 2")
    with pytest.raises(runner.NotebookError, match=r"02_second, cell 5: .*died"):
        run()
    folder = study.folder("notebooks")
    assert (folder / "02_second.failed.ipynb").is_file()
    assert not list(folder.glob("*.running.ipynb"))
