"""The report and the slides of a run: two HTML files, made by nbconvert from the notebook 07.

    write_pages(study, study.run_dir / "notebooks" / "07_report.ipynb")

Code is left out. Tags of cells say what is shown where: "page" begins a new page of the printed
report, "slide" a new slide, "on-slide" adds to the slide before it, "report-out" keeps a cell out
of the report; "headline" and "findings" have a look of their own. The pages ask nothing of the
network, for which the slides have a template of their own: nbconvert's fetch reveal.js from one.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from nbformat.v4 import new_output

from helpers.run.cache import write_atomic
from helpers.run.settings import Study

CAPTION = re.compile(r"\*(Figure [^*]+)\*\s*")  # the cell under a figure begins with it
KINDS = ["image/png", "text/html", "text/markdown"]  # of outputs, the best first; no others
FORBIDDEN = ("script", "style", "iframe", "object", "embed", "link", "meta", "form", "base")
KEPT = ("href", "src", "alt", "colspan", "rowspan")  # attributes


def write_pages(study: Study, path: Path) -> list[Path]:
    """Write report.html and slides.html into the run's folder; returns their paths.

    path: the executed notebook. The same notebook gives the same files. ValueError where it has not
    been executed, has no title, or has no slide.
    """
    notebook = nbformat.read(path, as_version=4)
    if not any(cell.get("outputs") for cell in notebook.cells):
        raise ValueError(f"{path.name} has no outputs: execute it before its pages are made")
    cells = list_shown_cells(notebook.cells)
    cells[0].source, title = rewrite_opening(cells[0].source)
    cells[0].metadata["about"] = f"{study.profile} · run {study.run_name} · seed {study.seed}"
    slides, n_slides = cut_slides(cells)
    report, contents = cut_sections(cells)
    pages = {
        "report.html": render(report, "report.html.j2", title=title, contents=contents),
        "slides.html": render(slides, "slides.html.j2", title=title, slides=n_slides),
    }
    return [write_atomic(study.run_dir / name, page) for name, page in pages.items()]


def render(cells: Sequence[NotebookNode], template: str, **resources: object) -> str:
    """The cells in a template beside this module, whose own script is the only one that may run."""
    path = Path(__file__).with_name(template)
    script = re.search(r"<script>(.*?)</script>", path.read_text(encoding="utf-8"), re.DOTALL)
    digest = hashlib.sha256(script[1].encode() if script else b"").digest()
    resources["script_hash"] = f"sha256-{base64.b64encode(digest).decode()}"
    filters = {"clean": clean, "markdown": render_markdown, "plain": render_plain}
    exporter = HTMLExporter(template_file=str(path), filters=filters, exclude_input=True)
    notebook = nbformat.v4.new_notebook(cells=list(cells))
    return exporter.from_notebook_node(notebook, resources=resources)[0]


def list_shown_cells(cells: Sequence[NotebookNode]) -> list[NotebookNode]:
    """The cells that show something: text, or outputs of KINDS, each of its best kind alone.

    The caption in the cell under a figure moves into the figure's metadata.
    """
    shown, caption = [], ""
    for cell in reversed(cells):  # a caption comes before its figure
        following, caption = caption, ""
        if cell.cell_type == "markdown":
            found = CAPTION.match(cell.source)
            caption = " ".join(found[1].split()) if found else ""
            cell.source = CAPTION.sub("", cell.source, count=1)
        outputs = []
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            kind = next((kind for kind in KINDS if kind in data), None)
            if kind:
                metadata = {"caption": following}
                outputs.append(new_output("display_data", {kind: data[kind]}, metadata=metadata))
        if cell.cell_type == "code":
            cell.outputs = outputs
        if outputs or (cell.cell_type == "markdown" and cell.source.strip()):
            shown.insert(0, cell)
    return shown


def rewrite_opening(source: str) -> tuple[str, str]:
    """The opening cell with its title and answer alone; the title as text, without its number."""
    heading = re.match(r"# (?:\d\d · )?(.+)", source)
    if heading is None:
        raise ValueError("the notebook's first cell has no title (# ...)")
    answer = next((part for part in source.split("\n\n") if part.startswith("**Answer")), "")
    answer = re.sub(r" (?=\*\*\w)", "  \n", answer)  # what is bold begins a line
    return f"# {heading[1]}\n\n{answer}", render_plain(heading[1])


def find_heading(cell: NotebookNode) -> str:
    """The text of a cell's heading of level 2, or ""."""
    found = cell.cell_type == "markdown" and re.search(r"^## (.+)", cell.source, re.MULTILINE)
    return render_plain(found[1]) if found else ""


def cut_sections(cells: Sequence[NotebookNode]) -> tuple[list[NotebookNode], list[str]]:
    """The report's cells, those that begin a section with its number ("part"); the headings."""
    report = [cell for cell in cells if "report-out" not in cell.metadata.get("tags", [])]
    contents = []
    for cell in report:
        if heading := find_heading(cell):
            contents.append(heading)
            cell.metadata["part"] = len(contents)
    return report, contents


def cut_slides(cells: Sequence[NotebookNode]) -> tuple[list[NotebookNode], int]:
    """The cells on slides, the first of each with its number ("slide"); how many slides there are.

    A slide without a heading gets that of the part it belongs to ("running").
    """
    chosen, n_slides, running = [], 0, ""
    for cell in cells:
        tags, heading = set(cell.metadata.get("tags", [])), find_heading(cell)
        if "slide" in tags:
            n_slides += 1
            cell.metadata |= {"slide": n_slides, "running": "" if heading else running}
        if {"slide", "on-slide"} & tags:
            if not n_slides:
                raise ValueError('a cell is tagged "on-slide", but no cell before it "slide"')
            chosen.append(cell)
        running = heading or running
    if not n_slides:
        raise ValueError('no cell of the notebook is tagged "slide"')
    return chosen, n_slides


def render_markdown(source: str) -> str:
    """Markdown as safe HTML."""
    return clean(markdown2html(source))


def render_plain(source: str) -> str:
    """The text of Markdown, for an attribute or a title."""
    return BeautifulSoup(render_markdown(source), "html.parser").get_text().strip()


def clean(source: str) -> str:
    """HTML without what a browser would run or fetch.

    Links lead to the run's own notebooks or to the web, and wide tables can be scrolled.
    """
    soup = BeautifulSoup(source, "html.parser")
    for element in soup.find_all(True):
        if element.decomposed:
            continue
        outside = element.name == "img" and not element.get("src", "").startswith("data:")
        if element.name in FORBIDDEN or outside or "anchor-link" in element.get("class", []):
            element.decompose()
            continue
        element.attrs = {name: element[name] for name in KEPT if name in element.attrs}
    for link in soup.find_all("a", href=True):
        link["href"] = re.sub(r"^(\d\d_\w+)\.ipynb", r"notebooks/\1.html", link["href"])
        if not re.match(r"https?://|notebooks/\d\d_\w+\.html", link["href"]):
            link.unwrap()
    for table in soup.find_all("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "table", "tabindex": "0"}))
    return str(soup).strip()
