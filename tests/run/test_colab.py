"""Colab: what the setup cell fetches and installs there, and leaves alone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from helpers.run import colab

ROOT = Path(__file__).parents[2]
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "01_setup.ipynb", as_version=4)
TAGGED = {tag: cell.source for cell in NOTEBOOK.cells for tag in cell.metadata.get("tags", [])}
SETUP, PARAMETERS = TAGGED["setup"], TAGGED["parameters"]
STUDY = next(cell.source for cell in NOTEBOOK.cells if "Study.load" in cell.source)
ADDRESS = re.search(r"https://github\.com/[\w/-]+", SETUP)[0]
PINS = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))


def run_cells(code, folder, *paths, on_colab=True, **environment):
    """Run cells as a kernel started in `folder` would; `paths` are searched for modules first."""
    code = "import google.colab\n" * on_colab + code
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **environment}
    options = {"cwd": folder, "env": given, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-c", code], **options)


def redirect_git(folder, target):
    """The environment in which git looks for the project's address at `target`."""
    config = folder / "gitconfig"
    config.write_text(f'[url "{target}"]\n    insteadOf = {ADDRESS}\n')
    return {"GIT_CONFIG_GLOBAL": str(config), "GIT_CONFIG_NOSYSTEM": "1"}


@pytest.fixture(scope="module")
def fake_colab(tmp_path_factory):
    """A `google.colab` whose Drive says where it was mounted."""
    folder = tmp_path_factory.mktemp("colab")
    package = folder / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "drive.py").write_text("def mount(place):\n    print('mounted', place)\n")
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The address of a git repository with two commits of what the setup cell needs."""
    source = tmp_path_factory.mktemp("published")
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "helpers", source / "helpers", ignore=skipped)
    shutil.copy(ROOT / "requirements.txt", source)
    git = ["git", "-C", str(source), "-c", "user.name=test", "-c", "user.email=test@test"]
    for command in ("init -q", "add .", "commit -qm 1", "commit -qm 2 --allow-empty"):
        subprocess.run([*git, *command.split()], check=True, capture_output=True)
    return source.as_uri()


def test_a_bare_colab_fetches_the_last_commit_once(tmp_path, fake_colab, published):
    content = tmp_path / "content"
    content.mkdir()
    clone = content / "vilt-attention"
    expected = f"Every package is there: nothing was installed.\n{clone}\n"
    code = f"{SETUP}\nprint(sys.path[0])"
    result = run_cells(code, content, fake_colab, **redirect_git(tmp_path, published))
    assert (result.stdout, result.stderr) == (expected, "")
    count = ["git", "-C", clone, "rev-list", "--count", "HEAD"]
    assert subprocess.check_output(count) == b"1\n", "the whole history was fetched"
    before = (clone / ".git").stat().st_mtime_ns
    nowhere = redirect_git(tmp_path, "file:///nowhere/at-all")
    assert run_cells(code, content, fake_colab, **nowhere).stdout == expected
    assert (clone / ".git").stat().st_mtime_ns == before


@pytest.mark.parametrize("is_zip", [True, False])
def test_without_an_address_the_project_comes_from_drive_or_a_zip(tmp_path, fake_colab, is_zip):
    content = tmp_path / "content"
    project = tmp_path / "made" / "vilt-attention-main"  # as GitHub names what it zips
    shutil.copytree(ROOT / "helpers", project / "helpers")
    shutil.copy(ROOT / "requirements.txt", project)
    content.mkdir()
    place = content if is_zip else content / "drive" / "MyDrive"
    if is_zip:
        shutil.make_archive(content / project.name, "zip", project.parent, project.name)
    else:  # mounted by hand
        shutil.copytree(project, place / project.name)
    nowhere = redirect_git(tmp_path, "file:///nowhere/at-all")
    result = run_cells(f"{SETUP}\nprint(sys.path[0])", content, fake_colab, **nowhere)
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == str(place / project.name)


def test_a_failing_fetch_says_why(tmp_path, fake_colab):
    (tmp_path / "content").mkdir()
    nowhere = redirect_git(tmp_path, "file:///nowhere/at-all")
    result = run_cells(SETUP, tmp_path / "content", fake_colab, **nowhere)
    assert result.returncode
    assert "/nowhere/at-all" in result.stdout
    assert "helpers/run/colab.py" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("start", [".", "notebooks", "notebooks/appendix", ".."])
def test_outside_colab_the_cell_only_finds_the_root(tmp_path, start):
    """No git, no pip, no word; and another project's `helpers` is out of the way."""
    project, stale = tmp_path / "vilt-attention", tmp_path / "stale"
    for folder in (project / "notebooks" / "appendix", stale / "helpers"):
        folder.mkdir(parents=True)
    (project / "helpers").symlink_to(ROOT / "helpers")
    (stale / "helpers" / "__init__.py").touch()
    before = "import os, subprocess\nos.popen = subprocess.run = None\nimport helpers\n"
    after = "from helpers.run import Study\nroot = sys.path[0]\n"
    after += "print(sys.path.count(root), root)"
    result = run_cells(f"{before}{SETUP}\n{SETUP}\n{after}", project / start, stale, on_colab=False)
    assert (result.stdout, result.stderr) == (f"1 {project}\n", "")


@pytest.mark.parametrize(
    ("given", "on_colab", "place"),
    [
        ("DRIVE = True", True, "/content/drive/MyDrive/vilt-attention-runs/phantom"),
        ("DRIVE = True; SETTINGS = {'runs_root': '/else'}", True, "/else/phantom"),
        ("DRIVE = False", True, "runs/phantom"),
        ("DRIVE = True", False, "runs/phantom"),
    ],
)
def test_drive_keeps_the_run_on_colab_and_changes_nothing_elsewhere(
    fake_colab, given, on_colab, place
):
    study = STUDY.partition("print(")[0]  # without the versions, which take seconds
    code = "\n".join([SETUP, PARAMETERS, given, study, "print(study.run_dir)"])
    result = run_cells(code, ROOT, fake_colab, on_colab=on_colab)
    assert result.stdout.splitlines()[-1:] == [str(ROOT / place)], result.stderr
    assert ("mounted /content/drive\n" in result.stdout) == (on_colab and "True" in given)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with `installed`: `asked` records what pip is asked to do there."""
    pins = "# pins|torch==2.13.0|Transformers==5.23.0  # ours|scipy==1.17.1|numpy==2.4.6|ruff==1"
    (tmp_path / "requirements.txt").write_text(pins.replace("|", "\n"))
    installed = {"torch": "2.9.0+cu126", "numpy": "2.0.2"}
    world = SimpleNamespace(root=tmp_path, installed=installed, asked=[])
    world.answer = SimpleNamespace(returncode=0, stdout="", stderr="")

    def run(command, **_):
        world.asked = [word for word in command if "==" in word]
        world.installed |= dict(pin.split("==") for pin in world.asked)
        return world.answer

    monkeypatch.setattr(colab, "_find_version", lambda name: world.installed.get(name))
    monkeypatch.setattr(colab, "_list_loaded", lambda: {"numpy", "torch"})
    monkeypatch.setattr(colab.subprocess, "run", run)
    return world


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ({}, ["transformers==5.23.0", "scipy==1.17.1"]),
        ({"scipy": None}, ["transformers==5.23.0", "scipy==1.17.1"]),
        ({"scipy": "2", "transformers": "5.4.0"}, ["transformers==5.23.0"]),
        ({"scipy": "2", "transformers": "5.5.0rc1"}, []),
        ({"scipy": "2", "transformers": "5.10.2"}, []),
    ],
)
def test_missing_is_what_is_absent_or_too_old(machine, there, missing):
    machine.installed |= there
    assert colab.missing_packages(machine.root) == missing


def test_what_is_installed_moves_nothing_that_must_stay(machine):
    assert colab.install_missing(machine.root) == "Installed transformers==5.23.0, scipy==1.17.1."
    stay = ["torch==2.9.0+cu126", "numpy==2.0.2"]
    assert machine.asked == [*stay, "transformers==5.23.0", "scipy==1.17.1"]
    machine.asked = None
    assert colab.install_missing(machine.root) == "Every package is there: nothing was installed."
    assert machine.asked is None


def test_a_package_replaced_after_its_import_asks_for_a_restart(machine, monkeypatch):
    machine.installed["transformers"] = "4.57.6"
    monkeypatch.setattr(colab, "_list_loaded", lambda: {"numpy", "transformers"})
    line = colab.install_missing(machine.root)
    assert "Replaced after import: transformers. Restart" in line


def test_without_torch_nothing_is_installed(machine):
    del machine.installed["torch"]
    with pytest.raises(SystemExit, match="PyTorch is not installed"):
        colab.install_missing(machine.root)
    assert machine.asked == []


def test_why_pip_failed_is_told(machine):
    machine.answer = SimpleNamespace(returncode=1, stdout="", stderr="ERROR: No a==9\nERROR: x")
    with pytest.raises(SystemExit, match=r"scipy==1\.17\.1 could not be installed: No a==9"):
        colab.install_missing(machine.root)


def test_every_least_version_is_met_by_its_pin():
    assert all(colab._numbers(PINS[name]) >= least for name, least in colab.LEAST.items())
    assert {*colab.TOOLS, "torch", "ipywidgets", "ipykernel"} <= {*PINS}
