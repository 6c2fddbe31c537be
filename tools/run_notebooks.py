"""Run the notebooks in order into a run folder, those that are not up to date: `make run`.

    python -m tools.run_notebooks --profile phantom --seed 1 --run-name second --set epochs=2
    python -m tools.run_notebooks --seeds 0 1 2   # a sweep: a run a seed, the last compares them
    python -m tools.run_notebooks --render        # the default run, back into notebooks/

The appendix (notebooks/appendix/) runs before the report. A notebook is up to date while its
source, the helpers, its parameters, its input files and what the run folder holds are unchanged,
and so are the notebooks before it. A failing notebook stops the others; what was done before stays.
"""

import argparse
import asyncio
import base64
import io
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from helpers.report.claims import find_runs, format_claims, read_claims, say_estimate
from helpers.report.export import CAPTION
from helpers.run import cache
from helpers.run.cache import fingerprint, hash_file, write_atomic
from helpers.run.settings import Study
from tools.command import NAMED, add_settings, read_settings
from tools.record import record_run, write_datapackage

# what notebooks are made with: the helpers, their page templates, the small tables that they read
CODE = ("helpers/**/*.py", "helpers/**/*.html*", "helpers/**/*.toml", "phantom/*.py", "data/*.csv")
MADE = ("tables/*", "figures/*", "claims/*", "notebooks/*", "notebooks/appendix/*",
        f"*/{cache.RECORD}", "report.html", "slides.html")  # fmt: skip
REPORT = "07_report"  # the notebook that makes report.html and slides.html
CLAIMS_EMPTY = "<!--claims-->\n<!--/claims-->"
CLAIMS = re.compile(r"<!--claims-->.*?<!--/claims-->", flags=re.DOTALL)  # filled in by a run
LEGEND = (
    "Supported: all of the 95 % interval (brackets; over models and images) meets what is\n"
    "asked. Contradicted: none of it does. Undecided: a part does. Asked: the bar, fixed\n"
    "beforehand; where a claim asks for more than random weights show, it is raised to what\n"
    "they reach. Models: how many of them meet it by their estimate alone."
)
# what a notebook links to, and what stands in its place in a run's folder
RUN_LINKS = ((r"((?:\.\./)+)README\.md", r"\1report.html"), (r"explorer\.html", "../explorer.html"))
PHONE = """<style>@media (max-width: 600px) {
  .border-box-sizing { padding-left: 0 !important; padding-right: 0 !important; }
  div#notebook-container { padding: 8px; }
  div.output_subarea { max-width: 100%; }
  .rendered_html th, .rendered_html td { padding: 4px 2px; font-size: 11px; }
}</style></head>"""  # of a notebook's page: else its tables do not fit
PNG = "image/png"
WIDGET = "application/vnd.jupyter.widget-view+json"


class NotebookError(RuntimeError):
    """A notebook failed: the message names the notebook, the cell and what was raised."""


class OwnKernel(AsyncKernelManager):
    """The kernel of this interpreter, whatever another environment has installed as "python3"."""

    kernel_spec = KernelSpec(**get_kernel_dict())


def run_notebooks(
    study: Study, parameters: dict, report: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Run every notebook of the study that is not up to date; returns the executed ones in order.

    parameters: values for the notebooks' `parameters` cells. report: called with a line of progress
    for each notebook. NotebookError where one fails: it is kept as `<name>.failed.ipynb`.
    """
    sources, folder = list_notebooks(study.root), study.folder("notebooks")
    finished = read_finished(study)
    code = sorted(file for pattern in CODE for file in study.root.glob(pattern))
    code = fingerprint([hash_file(file) for file in code])
    inputs = {"files": list_input_files(study), "code": code}
    inputs |= {source.stem: describe_notebook(study, source, parameters) for source in sources}
    targets = {source: folder / source.relative_to(sources[0].parent) for source in sources}

    def say(source: Path, took: str) -> None:
        report(f"[{sources.index(source) + 1}/{len(sources)}] {source.stem:<20} {took:>10}")

    def run(source: Path) -> None:
        start = time.perf_counter()
        execute(source, targets[source], parameters)
        finish(study, targets[source])
        seconds = time.perf_counter() - start
        record_run(study, steps={source.stem: round(seconds, 1)})
        done[source.stem] = inputs[source.stem]
        say(source, f"{seconds:.1f} s")

    done = {name: inputs[name] for name in ("files", "code")}  # what is up to date by now
    for stage in plan_stages(study, sources):
        stood = done.items() <= finished.items()  # all stages before this one
        late = [
            source
            for source in stage
            if not (stood and finished.get(source.stem) == inputs[source.stem])
        ]
        for source in stage:
            if source not in late:
                done[source.stem] = inputs[source.stem]
                say(source, "up to date")
        if late:
            cache.write_record(folder, done, files=hash_run(study), running=True)
            try:
                run_side_by_side(run, late)
            finally:
                cache.write_record(folder, done, files=hash_run(study))
    if fill_openings(study, [*targets.values()]):
        cache.write_record(folder, done, files=hash_run(study))
    write_datapackage(study)
    return [*targets.values()]


def plan_stages(study: Study, sources: list[Path]) -> list[list[Path]]:
    """Notebooks that can run side by side, in stages: each needs only what stages before it made.

    One after the other on a GPU. Where other models are analysed than its own, 02 takes as long as
    03 and 00 together, which keeps two processes busy.
    """
    if study.device_name() != "cpu":
        return [[source] for source in sources]
    stage_of = {"01": 0, "02": 1, "00": 1, "03": 1 if study.models else 2, "07": 4}
    stages: dict[int, list[Path]] = {}
    for source in sources:
        number = source.stem.split("_")[0]
        stages.setdefault(stage_of.get(number, 3), []).append(source)
    return [stages[key] for key in sorted(stages)]


def run_side_by_side(run: Callable[[Path], None], sources: list[Path]) -> None:
    """Run notebooks, as many at a time as there are cores, which share the threads.

    The first error is raised once what is running has ended; nothing further is begun.
    """

    def run_in_thread(source: Path) -> None:
        try:
            run(source)
        finally:
            with suppress(RuntimeError):  # without a loop there is nothing to close
                asyncio.get_event_loop().close()  # nbclient has made it for this thread
                asyncio.set_event_loop(None)

    cores = os.cpu_count() or 1
    workers = min(len(sources), cores)
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads or str(cores // workers)  # kernels inherit it
    pool = ThreadPoolExecutor(workers)
    try:
        for future in as_completed([pool.submit(run_in_thread, source) for source in sources]):
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]


def read_finished(study: Study) -> dict:
    """Inputs of the notebooks that an earlier call finished; {} where a file was changed since.

    After a kill, what was changed since the record is taken for the work of the killed notebook.
    """
    record = cache.find_record(study.run_dir / "notebooks")
    if "files" not in record:
        return {}
    killed_since = (study.run_dir / "notebooks" / cache.RECORD).stat().st_mtime_ns
    for name, digest in record["files"].items():
        path = study.run_dir / name
        if not path.is_file():
            return {}
        by_killed = "running" in record and path.stat().st_mtime_ns >= killed_since
        if not by_killed and hash_file(path) != digest:
            return {}
    return record["inputs"]


def hash_run(study: Study) -> dict[str, str]:
    """Digests of a run's tables, figures, notebooks, pages and records of steps, by path."""
    paths = sorted(path for pattern in MADE for path in study.run_dir.glob(pattern))
    skipped = (".failed.", ".running.")
    names = {path.relative_to(study.run_dir).as_posix(): path for path in paths if path.is_file()}
    names.pop(f"notebooks/{cache.RECORD}", None)
    return {
        name: hash_file(path)
        for name, path in names.items()
        if not path.name.startswith(".") and not any(part in path.name for part in skipped)
    }


def list_notebooks(root: Path) -> list[Path]:
    """The numbered notebooks and the appendix, in the order of a run: the report comes last."""
    numbered = sorted(root.glob("notebooks/[0-9][0-9]*_*.ipynb"))
    appendix = sorted(root.glob("notebooks/appendix/a*.ipynb"))
    return sorted([*numbered, *appendix], key=lambda path: path.stem == REPORT)


def list_input_files(study: Study) -> list:
    """Names, sizes and times of the files from outside: official files, pictures, models.

    A folder that the study itself downloads into is left out: it fills while the notebooks run.
    """
    names = (None if study.download else study.data_root, study.checkpoint, *study.models)
    folders = [Path(study.path(name)) for name in names if name]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def describe_notebook(study: Study, source: Path, parameters: dict) -> dict:
    """What one notebook is made from: its cells, its parameters, and the runs it is compared with.

    Outputs do not count, nor does the table of claims in the opening, which a run fills in.
    """
    cells = nbformat.read(source, as_version=4).cells
    chosen = choose_parameters(source, parameters)
    others = [study.run_dir.parent / name for name in chosen.get("RUNS", [])]
    kinds = ("run.json", "claims/*.json")
    compared = [
        hash_file(path)
        for other in others
        if other != study.run_dir
        for kind in kinds
        for path in sorted(other.glob(kind))
    ]
    digest = fingerprint([[cell.cell_type, CLAIMS.sub("", cell.source)] for cell in cells])
    return {"source": digest, "parameters": chosen, "compared": compared}


def choose_parameters(source: Path, parameters: dict) -> dict:
    """The parameters that a notebook has: RUNS is 07's alone, and changes no other notebook."""
    known = papermill.inspect_notebook(source)
    return {name: value for name, value in parameters.items() if name in known}


def execute(source: Path, target: Path, parameters: dict) -> None:
    """Run one notebook with papermill; the target appears only when it has succeeded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    running, failed = (target.with_suffix(f".{end}.ipynb") for end in ("running", "failed"))
    chosen = choose_parameters(source, parameters)
    folder = {"metadata": {"path": str(source.parent)}}  # papermill's cwd would be this process's
    options = {"kernel_name": "python3", "kernel_manager_class": OwnKernel}
    options |= {"resources": folder, "progress_bar": False}
    try:
        papermill.execute_notebook(source, running, chosen, **options)
    except PapermillExecutionError as error:
        cell = f"cell {error.cell_index} (In [{error.exec_count}])"
        reason = f"{error.ename}: {error.evalue}"
    except (DeadKernelError, CellTimeoutError) as error:
        cells = nbformat.read(running, as_version=4).cells
        started = [cell.metadata.get("papermill", {}).get("start_time") for cell in cells]
        cell = f"cell {max((n for n, time in enumerate(started) if time), default=0)}"
        reason = f"{error} (out of memory?)"
    else:
        failed.unlink(missing_ok=True)
        running.replace(target)
        return
    running.replace(failed)
    raise NotebookError(f"{source.stem}, {cell}: {reason}\nThe half-run notebook: {failed}")


def finish(study: Study, target: Path) -> None:
    """Clean an executed notebook, fill in the claims of its opening, and export it as HTML."""
    notebook = clean_notebook(nbformat.read(target, as_version=4))
    notebook.cells[0].source = fill_claims(study, notebook)
    write_notebook(notebook, target)


def fill_openings(study: Study, executed: list[Path]) -> bool:
    """Fill the openings once more, as a later notebook may have measured a claim of an earlier one.

    Returns whether any has changed.
    """
    changed = False
    for path in executed:
        notebook = nbformat.read(path, as_version=4)
        opening = fill_claims(study, notebook)
        if opening != notebook.cells[0].source:
            notebook.cells[0].source, changed = opening, True
            write_notebook(notebook, path)
    return changed


def write_notebook(notebook: NotebookNode, target: Path) -> None:
    """Write a notebook, and beside it the same as HTML, whose links lead to what a run holds."""
    exporter = HTMLExporter(template_name="classic")  # the template that keeps alternative texts
    page, _ = exporter.from_notebook_node(notebook)
    docs = Path(os.path.relpath(cache.ROOT / "docs", target.parent)).as_posix()
    for link, new in (*RUN_LINKS, (r"(?:\.\./)+docs(?=/)", docs)):
        page = re.sub(rf'(?<=href="){link}', new, page)
    page = page.replace("</head>", PHONE, 1)
    write_atomic(target.with_suffix(".html"), page)
    write_atomic(target, nbformat.writes(notebook) + "\n")


def fill_claims(study: Study, notebook: NotebookNode) -> str:
    """The opening of a notebook with a table of its claims and what the run says of them.

    Its claims are those listed under its number in data/claims.csv; in the appendix, those that its
    code names.
    """
    opening, claims = notebook.cells[0].source, read_claims(study.run_dir)
    number = re.match(r"# (\w+) ·", opening)
    own = claims["notebook"] == (number and number[1])
    if not own.any():
        own = claims["key"].isin(find_keys(notebook))
    table = format_claims(claims[own])
    return CLAIMS.sub(lambda _: mark_claims(table and f"{table}\n\n{LEGEND}"), opening)


def find_keys(notebook: NotebookNode) -> set[str]:
    """What stands in double quotes in a notebook's code: the keys of its claims are among it."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return set(re.findall(r'"([\w-]+)"', code))


def mark_claims(table: str) -> str:
    """A table between the marks by which the next run finds it."""
    return f"<!--claims-->\n\n{table}\n\n<!--/claims-->" if table else CLAIMS_EMPTY


def clean_notebook(notebook: NotebookNode) -> NotebookNode:
    """Remove live widgets and papermill's paths and times; shrink the figures and describe them."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    captions = [CAPTION.match(cell.source) for cell in notebook.cells[1:]] + [None]
    for cell, found in zip(notebook.cells, captions, strict=True):
        caption = found and " ".join(found[1].split()).replace("*", "")
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if WIDGET not in each.get("data", {})]
            if "error" in [each.output_type for each in cell.outputs]:  # SystemExit(0): a good end
                cell.outputs = [each for each in cell.outputs if each.get("name") == "stdout"]
            for output in cell.outputs:
                if PNG in output.get("data", {}):
                    output.data[PNG] = shrink_png(output.data[PNG])
                    own = output.get("metadata", {}).get(PNG, {}).get("alt")
                    output.metadata = {PNG: {"alt": caption or own}} if caption or own else {}
    return notebook


def shrink_png(encoded: str) -> str:
    """A figure with 256 colours, a third of its bytes: GitHub shows no notebook over 1 MB."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    if picture.mode == "P":
        return encoded
    method = Image.Quantize.MAXCOVERAGE  # rare colours stay: those of a scale, or of a small box
    small = io.BytesIO()
    palette = picture.convert("RGB").quantize(256, method, dither=Image.Dither.NONE)
    palette.save(small, format="PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def render(study: Study) -> None:
    """Run the default study into notebooks/, and its claims and figures into the README."""
    folder = study.root / "notebooks"
    for path in run_notebooks(study, {}, print):
        notebook = clean_notebook(nbformat.read(path, as_version=4))
        target = folder / path.relative_to(study.folder("notebooks"))
        write_atomic(target, nbformat.writes(notebook) + "\n")
    readme = study.root / "README.md"
    text = readme.read_text(encoding="utf-8")
    table = format_claims(read_claims(study.run_dir), ["verdict"])
    write_atomic(readme, CLAIMS.sub(lambda _: mark_claims(table), text))
    for name in sorted(set(re.findall(r"notebooks/images/(\w+\.png)", text))):
        write_atomic(folder / "images" / name, (study.run_dir / "figures" / name).read_bytes())
    write_atomic(folder / "explorer.html", (study.run_dir / "explorer.html").read_bytes())


def run_study(settings: dict, runs: list[str]) -> None:
    """Run the notebooks with these settings and print the claims. runs: to compare with."""
    study = Study.load(**settings)
    parameters = {name.upper(): getattr(study, name) for name in NAMED if name in settings}
    if others := {name: value for name, value in settings.items() if name not in NAMED}:
        parameters["SETTINGS"] = others
    if runs:
        find_runs(study, [name for name in runs if name != study.run_name])  # its errors come first
        parameters["RUNS"] = runs
    run_notebooks(study, parameters, print)
    print(list_claims(study))
    print(f"read them: {study.run_dir / 'report.html'}, slides.html and notebooks/ beside it")


def list_claims(study: Study) -> str:
    """The claims as a terminal shows them, a line each, with verdict and estimate."""
    rows = [row for _, row in read_claims(study.run_dir).iterrows()]
    return "\n".join(
        f"{row['verdict']:<16} {row['claim'].replace('*', '')} {say_estimate(row)}".strip()
        for row in rows
    )


def sweep(settings: dict, seeds: list[int]) -> None:
    """Run the study once a seed, into <run name>-seed<seed>; the last report compares them all."""
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {' '.join(map(str, seeds))}: a seed is given twice")
    base = Study.load(**settings).run_name
    names = [f"{base}-seed{seed}" for seed in seeds]
    for name, seed in zip(names, seeds, strict=True):
        runs = names if name == names[-1] else []
        run_study({**settings, "seed": seed, "run_name": name}, runs)


def main(words: list[str] | None = None) -> int:
    """Command line of `make run` and `make render`; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_settings(parser)
    add = parser.add_argument
    add("--render", action="store_true", help="run the default study into notebooks/")
    add("--runs", nargs="*", default=[], metavar="RUN", help="finished runs to compare with")
    add("--seeds", nargs="*", type=int, metavar="SEED", help="a sweep: a run a seed, compared")
    given = parser.parse_args(words)
    sys.stdout.reconfigure(errors="backslashreplace")  # no letter of a path may fail a finished run
    try:
        if given.render:
            render(Study.load())
        elif given.seeds and given.runs:
            raise ValueError("--runs: a sweep compares its own runs; leave out --runs or --seeds")
        elif given.seeds:
            sweep(read_settings(given), given.seeds)
        else:
            run_study(read_settings(given), given.runs)
    except (NotebookError, ValueError, OSError) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
