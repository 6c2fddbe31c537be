"""The runner: order, what is up to date, what is redone, and what a failure leaves behind."""

import contextlib
import io
import json
from pathlib import Path

import browser
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from papermill.engines import Engine, papermill_engines

from helpers.report.claims import format_claims, read_claims
from helpers.run.cache import cached_step
from helpers.run.settings import Study
from tools import run_notebooks as runner

driver = browser.make_fixture()
OPENING = "# {number} · Title\n\n<!--claims-->\n<!--/claims-->\n\n**You will learn**"
SETUP = """
import json, sys
if {root!r} not in sys.path:
    sys.path.insert(0, {root!r})
from helpers.run import Study
study = Study.load("phantom", run_name=RUN_NAME, **SETTINGS)

def record_untestable(study, key, reason):  # as helpers.report does, which is slow to import
    text = json.dumps({{"verdict": "not testable", "reason": reason}})
    (study.folder("claims") / f"{{key}}.json").write_text(text)
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
    opening = new_markdown_cell(OPENING.format(number=name[:2]), metadata={"tags": ["slide"]})
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


class SourcesAsPage:
    """In place of nbconvert's exporter, which takes most of the time of such small notebooks."""

    def __init__(self, template_name):
        pass

    def from_notebook_node(self, notebook):
        return "\n".join(cell.source for cell in notebook.cells), {}


@pytest.fixture
def world(tmp_path, monkeypatch, request):
    """A study in a folder of its own, with two notebooks instead of the project's.

    The test marked slow executes them in Jupyter kernels and exports pages, the others neither.
    """
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setitem(papermill_engines._engines, None, InThisProcess)
        monkeypatch.setattr(runner, "HTMLExporter", SourcesAsPage)
    sources = tmp_path / "sources"
    sources.mkdir()
    write_notebook(sources, "01_first", 'record_untestable(study, "beats-words", f"seed {SEED}")')
    write_notebook(sources, "02_second", "print(sum([1, 2]))")
    monkeypatch.setattr(runner, "list_notebooks", lambda root: sorted(sources.rglob("*.ipynb")))
    settings = {"runs_root": str(tmp_path / "runs"), "device": "cpu"}
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


def test_a_report_is_made_anew_where_a_run_that_it_compares_with_has_changed(world):
    """RUNS is the report's alone: no other notebook is run again for it."""
    sources, study, run, lines = world
    write_notebook(sources, "07_report", "print(1)", more="RUNS = []")
    other = study.run_dir.parent / "other" / "claims"
    other.mkdir(parents=True)
    (other / "needs-image.json").write_text('{"estimate": 1}')
    run()
    run(RUNS=["other", "test"])
    assert ["up to date" in line for line in lines] == [True, True, False]
    run(RUNS=["other", "test"])
    assert all("up to date" in line for line in lines)
    (other / "needs-image.json").write_text('{"estimate": 2}')
    run(RUNS=["other", "test"])
    assert ["up to date" in line for line in lines] == [True, True, False]


def test_a_run_to_compare_with_that_is_not_there_is_said_before_anything_is_run(
    world, monkeypatch, capsys
):
    _, study, _, _ = world
    monkeypatch.setattr(runner, "run_notebooks", lambda *arguments: pytest.fail("ran"))
    words = ["--set", f"runs_root={study.runs_root}", "--runs", "nope"]
    assert runner.main(words) == 1
    assert "RUNS: 'nope' holds no claims" in capsys.readouterr().err
    assert runner.main(["--seeds", "0", "1", "--runs", "another"]) == 1
    assert "--runs" in capsys.readouterr().err


def test_a_sweep_is_a_run_a_seed_and_the_last_compares_them(monkeypatch):
    seen = []
    monkeypatch.setattr(runner, "run_study", lambda settings, runs: seen.append((settings, runs)))
    assert runner.main(["--seeds", "0", "3", "--set", "epochs=1"]) == 0
    names = ["phantom-seed0", "phantom-seed3"]
    assert [(own["run_name"], own["seed"]) for own, _ in seen] == [(names[0], 0), (names[1], 3)]
    assert [own["epochs"] for own, _ in seen] == ["1", "1"]
    assert [runs for _, runs in seen] == [[], names]
    assert runner.main(["--seeds", "1", "1"]) == 1


def list_verdicts(path):
    """Verdict and estimate of each row of the table in a notebook's opening."""
    opening = nbformat.read(path, as_version=4).cells[0].source
    assert opening.startswith("# ")
    assert opening.endswith("\n\n**You will learn**")
    rows = [line.split("|")[1:-1] for line in opening.splitlines() if line[:1] == "|"][2:]
    return [(row[1].strip(" *"), row[2].strip()) for row in rows]


def test_a_claim_that_a_later_notebook_measures_stands_in_the_openings_of_both(world):
    """The claims of 02: one is measured in 02, one in the appendix, one not at all."""
    sources, _study, run, lines = world
    write_notebook(sources, "02_second", 'record_untestable(study, "beats-words", "no image")')
    record = 'record_untestable(study, "needs-image", f"no {SEED}")'
    (sources / "appendix").mkdir()
    write_notebook(sources / "appendix", "a1_more", record)
    for seed in (1, 2):
        done = run(SEED=seed)
        assert done[2].parent.name == "appendix"
        assert done[2].with_suffix(".html").is_file()
        late = ("not testable", f"no {seed}")
        expected = [late, ("not testable", "no image"), ("not measured yet", "")]
        assert list_verdicts(done[1]) == expected
        assert list_verdicts(done[2]) == [late]
        assert f"no {seed}" in done[1].with_suffix(".html").read_text()
    run(SEED=2)
    assert all("up to date" in line for line in lines), "a filled opening has unsettled the run"


def test_what_a_run_writes_into_an_opening_is_no_change_of_the_notebook(world):
    sources, study, run, lines = world
    run()
    path = sources / "01_first.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = runner.fill_claims(study, notebook)
    assert "not testable" in notebook.cells[0].source
    nbformat.write(notebook, path)
    run()
    assert all("up to date" in line for line in lines)


def test_the_appendix_comes_before_the_report(tmp_path):
    names = ["01_setup", "06_optimise", "07_report", "appendix/a1_maps", "appendix/a2_words"]
    for name in names:
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    listed = [path.stem for path in runner.list_notebooks(tmp_path)]
    assert listed == ["01_setup", "06_optimise", "a1_maps", "a2_words", "07_report"]


def test_a_failing_notebook_stops_the_others_and_keeps_what_was_done(world):
    sources, study, run, lines = world
    write_notebook(sources, "02_second", "x = 1", "raise RuntimeError('no such head')")
    write_notebook(sources, "07_third", "print(3)")
    message = r"02_second, cell \d+ .*RuntimeError: no such head"
    with pytest.raises(runner.NotebookError, match=message):
        run()
    folder = study.folder("notebooks")
    names = [path.name for path in sorted(folder.glob("*.ipynb"))]
    assert names == ["01_first.ipynb", "02_second.failed.ipynb"]
    kept = (folder / "01_first.ipynb").stat().st_mtime_ns
    write_notebook(sources, "02_second", "x = 1")
    run()
    assert "up to date" in lines[0]
    assert (folder / "01_first.ipynb").stat().st_mtime_ns == kept
    assert not (folder / "02_second.failed.ipynb").exists()


@pytest.mark.slow
def test_in_kernels_side_by_side_one_that_dies_does_not_undo_the_other(
    world, tmp_path, monkeypatch
):
    """In kernels of this Python, whatever "python3" is elsewhere; and a notebook may end early."""
    foreign = tmp_path / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    sources, study, run, lines = world
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    write_notebook(sources, "04_fourth", "x = 1", kill, "y = 2")
    check = f"import os; assert os.getcwd() == {str(sources)!r}"
    write_notebook(sources, "05_fifth", check, "raise SystemExit(0)", "1 / 0")
    (sources / "02_second.ipynb").unlink()
    here = Path.cwd()
    with pytest.raises(runner.NotebookError, match=r"04_fourth, cell 5: .*died"):
        run(SEED=7)
    assert Path.cwd() == here, "a notebook's folder has become this process's"
    folder = study.folder("notebooks")
    assert list_verdicts(folder / "01_first.ipynb") == [("not testable", "seed 7")]
    assert "seed 7" in (folder / "01_first.html").read_text()
    assert (folder / "04_fourth.failed.ipynb").is_file()
    assert not list(folder.glob("*.running.ipynb"))
    assert "SystemExit" not in str(nbformat.read(folder / "05_fifth.ipynb", 4).cells[-2].outputs)
    kept = (folder / "05_fifth.ipynb").stat().st_mtime_ns
    write_notebook(sources, "04_fourth", "x = 1")
    done = run(SEED=7)
    assert done[2].stat().st_mtime_ns == kept
    assert ["up to date" in line for line in lines] == [True, True, False]


def test_stages_keep_what_needs_another_apart(monkeypatch):
    names = ["00_z", "01_a", "02_b", "03_c", "03b_d", "04_e", "06_f", "07_g"]
    sources = [Path(f"{name}.ipynb") for name in names]

    def stages(study):
        return [[path.stem[:3] for path in stage] for stage in runner.plan_stages(study, sources)]

    own = Study.load("colab", device="cpu")
    assert stages(Study.load(device="cpu")) == [
        ["01_"], ["00_", "02_", "03_"], ["03b", "04_", "06_"], ["07_"],
    ]  # fmt: skip
    assert stages(own) == [["01_"], ["00_", "02_"], ["03_"], ["03b", "04_", "06_"], ["07_"]]
    monkeypatch.setattr(Study, "device_name", lambda study: "cuda")
    assert [len(stage) for stage in stages(own)] == [1] * 8


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


@pytest.mark.parametrize("folder", ["notebooks", "notebooks/appendix"])
def test_links_of_a_page_lead_to_what_a_run_holds(tmp_path, folder, monkeypatch):
    """The index is its report, the viewer lies beside that, the docs are the project's."""
    monkeypatch.setattr(runner, "HTMLExporter", SourcesAsPage)
    up, target = "../" * (folder.count("/") + 1), tmp_path / "run" / folder / "01_a.ipynb"
    links = [f"{up}README.md", f"{up}docs/own-data.md", "02_b.html", "https://x.org/README.md"]
    links += ["explorer.html"] * (folder == "notebooks")
    source = "\n".join(f'<a href="{link}">' for link in links)
    runner.write_notebook(new_notebook(cells=[new_markdown_cell(source)]), target)
    lines = target.with_suffix(".html").read_text().splitlines()
    index, docs, *others = [line.removeprefix('<a href="').removesuffix('">') for line in lines]
    assert index == f"{up}report.html"
    assert (target.parent / docs).resolve() == Study.load().root / "docs" / "own-data.md"
    assert others == ["02_b.html", "https://x.org/README.md", "../explorer.html"][: len(others)]


def test_a_step_made_anew_unsettles_the_run_only_where_no_notebook_made_it(world):
    """It once unsettled the notebooks before the one that made it."""
    sources, study, run, lines = world
    write_notebook(sources, "02_second", MAKE.format(name="model", inputs="{'x': SEED}"))
    run(SEED=1)
    run(SEED=2)
    run(SEED=2)
    assert all("up to date" in line for line in lines)
    cached_step(study.run_dir / "model", lambda folder: None, {"x": 1})  # by hand
    run(SEED=2)
    assert not any("up to date" in line for line in lines)


def test_a_terminal_that_lacks_a_letter_fails_no_run(monkeypatch):
    monkeypatch.setattr(runner, "run_study", lambda settings, runs: print("/home/rené/report.html"))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert runner.main([]) == 0


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


@pytest.mark.parametrize(
    "spoil",
    ["claims/beats-words.json", "notebooks/01_first.html", "made/made.json", "report.html"],
)
def test_what_is_deleted_or_changed_by_others_is_made_again(world, spoil):
    sources, study, run, lines = world
    write_notebook(sources, "02_second", MAKE.format(name="made", inputs="{'x': 1}"))
    write_notebook(sources, "07_report", "(study.run_dir / 'report.html').write_text('a page')")
    run(SEED=7)
    (study.run_dir / spoil).unlink()
    run(SEED=7)
    assert not any("up to date" in line for line in lines)
    assert (study.run_dir / spoil).is_file()
    run(SEED=7)
    assert all("up to date" in line for line in lines)


@pytest.mark.parametrize("left", ['{"inputs": {"01', '{"inputs": {}, "fingerprint": ""}'])
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
    record = 'record_untestable(study, "{key}", f"{what}")'
    write_notebook(sources, "02_second", record.format(key="needs-image", what="seed {SEED}"))
    run(SEED=1)
    interrupt = "raise RuntimeError('killed')"
    half = record.format(key="needs-image", what="half")
    write_notebook(sources, "02_second", half, interrupt)
    with pytest.raises(runner.NotebookError):
        run(SEED=1)
    write_notebook(sources, "02_second", record.format(key="needs-image", what="seed {SEED}"))
    run(SEED=1)
    assert ["up to date" in line for line in lines] == [True, False]
    found = read_claims(study.run_dir).set_index("key")
    assert found.loc[["needs-image", "beats-words"], "reason"].tolist() == ["seed 1", "seed 1"]
    (study.run_dir / "claims" / "beats-words.json").unlink()
    run(SEED=1)
    assert not any("up to date" in line for line in lines)


@pytest.mark.browser
def test_on_a_phone_the_claims_of_an_opening_keep_every_column(driver, tmp_path):
    study = Study.load(run_name="test", runs_root=str(tmp_path), device="cpu")
    claims = read_claims(study.run_dir).head(7)
    numbers = {"estimate": -10.5, "low": -20.8, "high": -31.4, "k_models": 3, "n_models": 5}
    table = format_claims(claims.assign(verdict="contradicted", unit="points", **numbers))
    notebook = new_notebook(cells=[new_markdown_cell(f"# Title\n\n{table}")])
    runner.write_notebook(notebook, tmp_path / "page.ipynb")
    browser.open_page(driver, tmp_path / "page.html", width=390)
    table = "document.querySelector('table')"
    wide, room = driver.execute_script(
        f"return [{table}.scrollWidth, {table}.parentElement.clientWidth]"
    )
    assert wide <= room
