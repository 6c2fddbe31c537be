"""The chain behind `make run`: papermill runs the notebooks in order into the run folder.

    python -m tools.run_notebooks --profile phantom --seed 1 --run-name second --set epochs=2
    python -m tools.run_notebooks --seeds 0 1 2   # a sweep: a run a seed, compared in the last one's report
    python -m tools.run_notebooks --render    # the default study, back into notebooks/

A notebook stands, and is not run again, while its source, the helpers, its parameters, its inputs and what it
made are unchanged. A failing notebook stops the chain; what was done before stays.
"""

import argparse
import base64
import hashlib
import io
import json
import re
import sys
import time
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from helpers.report.compare import find_runs
from helpers.report.export import CAPTION, write_pages
from helpers.report.findings import ANSWER, read_findings
from helpers.run.cache import fingerprint, hash_file, write_atomic
from helpers.run.schema import NAME, write_dictionary
from helpers.run.settings import Study, record_run
from tools.command import NAMED, add_settings, read_settings

PNG = "image/png"
# the README's figures
SHOWN = (
    "01_study",
    "03_layers",
    "03_words",
    "03_flow",
    "03_scoreboard",
    "04_layers",
    "05_ablation",
)
REPORT = "07_report"  # the notebook that report.html and slides.html are made of
PAGES = ("report.html", "slides.html")
CODE = (
    "helpers/**/*.py",
    "helpers/**/*.html",
    "phantom/*.py",
    "data/*.csv",
)  # what notebooks are made with
STATE = "chain.json"  # beside the executed notebooks: what stands
WIDGET = "application/vnd.jupyter.widget-view+json"
MARKED = re.compile(r"(<!--(\d\d\.\w+)-->).*?(<!--/\2-->)")  # where the README quotes a finding
OPENING = re.compile(r"(<!--answer-->).*?(<!--/answer-->)", flags=re.DOTALL)


class ChainError(RuntimeError):
    """A notebook failed: the message names the notebook, the cell and what was raised."""


def run_chain(study: Study, parameters: dict, say=lambda line: None) -> list[Path]:
    """Run every notebook of the study that does not stand; returns the executed notebooks in order.

    parameters: values for the notebooks' `parameters` cells. say: called with a progress line a notebook.
    ChainError where a notebook fails: the executed half is kept as `<name>.failed.ipynb`.
    """
    sources = list_notebooks(study.root)
    done, state = [], read_state(study)
    key = fingerprint([list_inputs(study), digest_helpers(study.root)])
    for number, source in enumerate(sources, start=1):
        chosen = choose_parameters(source, parameters)
        key = fingerprint(
            [key, digest_notebook(source), chosen, *digest_compared(study, chosen.get("RUNS", []))]
        )
        target = study.folder("notebooks") / source.name
        took = "stands"
        if not (state["keys"].get(source.stem) == key and target.is_file()):
            start = time.perf_counter()
            execute(source, target, parameters)
            finish(study, target)
            if source.stem == REPORT:
                write_pages(study, target)
            seconds = time.perf_counter() - start
            record_run(study, steps={source.stem: round(seconds, 1)})
            state["keys"] = {
                name: kept for name, kept in state["keys"].items() if name < source.stem
            }
            state["keys"][source.stem] = key
            write_atomic(
                study.folder("notebooks") / STATE,
                json.dumps({**state, **list_made(study)}, indent=1),
            )
            took = f"{seconds:.1f} s"
        say(f"[{number}/{len(sources)}] {source.stem:<20} {took:>8}")
        done.append(target)
    write_dictionary(study)
    return done


def read_state(study: Study) -> dict:
    """What an earlier chain left: the key of each notebook that stands.

    None stands where anything that the chain had found or made has changed since, or is gone: then something else
    has written into the run folder, and its notebooks are run again (their steps stand by themselves).
    """
    path = study.run_dir / "notebooks" / STATE
    state = (
        json.loads(path.read_text(encoding="utf-8"))
        if path.is_file()
        else {"keys": {}, "made": {}, "files": {}}
    )
    now = list_made(study)
    if any(now[kind].get(name) != seen for kind in now for name, seen in state[kind].items()):
        state["keys"] = {}
    return state


def list_made(study: Study) -> dict[str, dict[str, str]]:
    """Fingerprints of the run's steps, and digests of its tables, figures and executed notebooks."""
    steps = {
        p.parent.name: json.loads(p.read_text())["fingerprint"]
        for p in study.run_dir.glob("*/made.json")
    }
    files = [
        p
        for name in ("tables", "figures", "notebooks")
        for p in study.run_dir.glob(f"{name}/[!.]*.*")
    ]
    files += [study.run_dir / name for name in PAGES if (study.run_dir / name).is_file()]
    kept = {
        f"{p.parent.name}/{p.name}": p
        for p in files
        if p.name not in (STATE, f"{NAME}.csv")
        and ".failed." not in p.name
        and ".running." not in p.name
    }
    return {"made": steps, "files": {name: hash_file(path) for name, path in kept.items()}}


def list_notebooks(root: Path) -> list[Path]:
    """The numbered notebooks, in order."""
    return sorted(root.glob("notebooks/[0-9][0-9]_*.ipynb"))


def list_inputs(study: Study) -> list:
    """Names, sizes and times of the files that come from outside: official files, pictures, checkpoint.

    A folder that the study itself downloads into is left out: it fills while the chain runs.
    """
    names = (None if study.download else study.data_root, study.checkpoint)
    folders = [study.path(name) for name in names if name]
    files = [f for folder in folders for f in sorted(Path(folder).rglob("*")) if f.is_file()]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def digest_compared(study: Study, names: list[str]) -> list[str]:
    """Digests of what the report reads of the runs that it compares this one with."""
    others = [study.run_dir.parent / name for name in names if name != study.run_name]
    kinds = ("run.json", "tables/*.csv", "modality/shapley.parquet")
    return [
        hash_file(path) for other in others for kind in kinds for path in sorted(other.glob(kind))
    ]


def digest_notebook(path: Path) -> str:
    """SHA-256 of a notebook's cells without outputs, and without the opening answer, which a run fills in."""
    cells = nbformat.read(path, as_version=4).cells
    return fingerprint([[cell.cell_type, OPENING.sub("", cell.source)] for cell in cells])


def digest_helpers(root: Path) -> str:
    """SHA-256 of all helpers, their page templates, and the small tables in data/ that they read."""
    files = sorted(f for pattern in CODE for f in root.glob(pattern))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def choose_parameters(source: Path, parameters: dict) -> dict:
    """Those of the parameters that a notebook has: RUNS is 07's alone, and changes no other notebook."""
    known = papermill.inspect_notebook(source)
    return {name: value for name, value in parameters.items() if name in known}


def execute(source: Path, target: Path, parameters: dict) -> None:
    """Run one notebook with papermill; the target appears only when it has succeeded."""
    running = target.with_suffix(".running.ipynb")
    failed = target.with_suffix(".failed.ipynb")
    chosen = choose_parameters(source, parameters)
    try:
        papermill.execute_notebook(
            source, running, chosen, kernel_name="python3", cwd=source.parent, progress_bar=False
        )
    except PapermillExecutionError as error:
        running.replace(failed)
        place = f"{source.stem}, cell {error.cell_index} (In [{error.exec_count}])"
        raise ChainError(
            f"{place}: {error.ename}: {error.evalue}\nThe half-run notebook: {failed}"
        ) from None
    except (DeadKernelError, CellTimeoutError) as error:
        running.replace(failed)
        cells = enumerate(nbformat.read(failed, as_version=4).cells)
        begun = [
            number for number, cell in cells if cell.metadata.get("papermill", {}).get("start_time")
        ]
        place = f"{source.stem}, cell {max(begun, default=0)}"
        raise ChainError(
            f"{place}: {error} (out of memory?)\nThe half-run notebook: {failed}"
        ) from None
    failed.unlink(missing_ok=True)
    running.replace(target)


def finish(study: Study, target: Path) -> None:
    """Clean an executed notebook, write the answer into its opening, and export it as HTML."""
    notebook = clean_notebook(nbformat.read(target, as_version=4))
    answer = read_findings(study).get(f"{target.stem[:2]}.{ANSWER}")
    if answer:
        opening = notebook.cells[0]
        opening.source = OPENING.sub(lambda found: found[1] + answer + found[2], opening.source)
    page, _ = HTMLExporter(template_name="classic").from_notebook_node(
        notebook
    )  # the template that keeps alt texts
    write_atomic(target.with_suffix(".html"), page)
    write_atomic(target, nbformat.writes(notebook) + "\n")


def clean_notebook(notebook):
    """Remove what does not belong in a saved notebook: live widgets, papermill's paths and times; shrink its PNGs."""
    for name in ("papermill", "widgets"):
        notebook.metadata.pop(name, None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    following = [CAPTION.match(cell.source) for cell in notebook.cells[1:]] + [None]
    for cell, found in zip(notebook.cells, following, strict=True):
        caption = found and " ".join(found[1].split())
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if WIDGET not in output.get("data", {})
            ]
            for output in cell.outputs:
                if PNG in output.get("data", {}):
                    output.data[PNG] = shrink_png(output.data[PNG])
                    output.metadata = {PNG: {"alt": caption}} if caption else {}
    return notebook


def shrink_png(encoded: str) -> str:
    """A figure with a palette of at most 256 colours, about a third of its bytes: GitHub renders no notebook over 1 MB."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    if picture.mode == "P":
        return encoded
    small = io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        small, format="PNG", optimize=True
    )
    return base64.b64encode(small.getvalue()).decode()


def render(study: Study, say) -> None:
    """Run the default study; put its notebooks, explorer and the README's figures into notebooks/, its findings into it."""
    for path in run_chain(study, {}, say):
        notebook = clean_notebook(nbformat.read(path, as_version=4))
        write_atomic(study.root / "notebooks" / path.name, nbformat.writes(notebook) + "\n")
    readme, findings = study.root / "README.md", read_findings(study)
    filled = MARKED.sub(
        lambda found: f"{found[1]}{findings[found[2]]}{found[3]}",
        readme.read_text(encoding="utf-8"),
    )
    write_atomic(readme, filled)
    for name in SHOWN:
        picture = (study.run_dir / "figures" / f"{name}.png").read_bytes()
        write_atomic(study.root / "notebooks" / "images" / f"{name}.png", picture)
    write_atomic(
        study.root / "notebooks" / "explorer.html", (study.run_dir / "explorer.html").read_bytes()
    )


def main(words: list[str] | None = None) -> int:
    """Command line of `make run` and `make render`; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_settings(parser)
    parser.add_argument(
        "--render", action="store_true", help="run the default study into notebooks/"
    )
    parser.add_argument(
        "--runs", nargs="*", default=[], metavar="RUN", help="finished runs to compare with"
    )
    parser.add_argument(
        "--seeds", nargs="*", type=int, metavar="SEED", help="a sweep: a run a seed, compared"
    )
    arguments = parser.parse_args(words)
    try:
        if arguments.render:
            render(Study.load(), print)
        elif arguments.seeds and arguments.runs:
            raise ValueError("--runs: a sweep compares its own runs; leave out --runs or --seeds")
        elif arguments.seeds:
            sweep(read_settings(arguments), arguments.seeds)
        else:
            run_command(read_settings(arguments), arguments.runs)
    except (ChainError, ValueError, OSError) as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    return 0


def sweep(settings: dict, seeds: list[int]) -> None:
    """Run the study once a seed, into <run name>-seed<seed>; the last report compares them all."""
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {' '.join(map(str, seeds))}: a seed is given twice")
    base = Study.load(**settings).run_name
    names = [f"{base}-seed{seed}" for seed in seeds]
    for name, seed in zip(names, seeds, strict=True):
        run_command(
            {**settings, "seed": seed, "run_name": name}, names if name == names[-1] else []
        )


def run_command(settings: dict, runs: list[str]) -> None:
    """Run the chain with these settings and print its answers. runs: to compare with in the report."""
    study = Study.load(**settings)
    parameters = {name.upper(): getattr(study, name) for name in NAMED if name in settings}
    if others := {name: value for name, value in settings.items() if name not in NAMED}:
        parameters["SETTINGS"] = others
    if runs:
        beside = [name for name in runs if name != study.run_name]
        find_runs(study, beside)  # its errors come now, not when six notebooks have run
        parameters["RUNS"] = runs
    run_chain(study, parameters, print)
    for name, text in read_findings(study).items():
        if name.endswith(f".{ANSWER}"):
            print(f"{name[:2]}: {text.replace('**', '')}")  # no Markdown in a terminal
    print(f"read them: {study.run_dir / PAGES[0]}, {PAGES[1]} and notebooks/ beside it")


if __name__ == "__main__":
    sys.exit(main())
