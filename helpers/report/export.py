"""The report and the presentation: two files that any browser opens, made from the executed notebook 07.

    write_pages(study, study.run_dir / "notebooks" / "07_report.ipynb")     # report.html, slides.html of the run

Code is left out. What is shown, and where, is said by the tags of the cells: "page" begins a new page of the
printed report, "slide" a new slide, "on-slide" adds to the slide before it, "report-out" keeps a cell out of the
report; "headline" and "findings" have a look of their own. The pages ask nothing of the network.
"""

import base64
import hashlib
import html
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
from bs4 import BeautifulSoup
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

from helpers.run.cache import write_atomic
from helpers.run.settings import Study

CAPTION = re.compile(r"\*(Figure [^*]+)\*\s*")  # the cell under a figure begins with it
SCRIPT = re.compile(r"<script>(.*?)</script>", flags=re.DOTALL)
KINDS = (
    "image/png",
    "text/html",
    "text/markdown",
)  # of an output, the best first; others are not shown
LOOKS = ("headline", "findings")
FORBIDDEN = ("script", "style", "iframe", "object", "embed", "link", "meta", "form", "base")


class Block(NamedTuple):
    """What one cell shows: HTML that is safe to embed, and the tags of the cell."""

    html: str
    tags: tuple[str, ...]


def write_pages(study: Study, path: Path) -> list[Path]:
    """Write report.html and slides.html into the run's folder; returns their paths. Same notebook, same files.

    path: the executed notebook. ValueError where it has not been executed, has no title, or has no slide.
    """
    notebook = nbformat.read(path, as_version=4)
    if not any(cell.get("outputs") for cell in notebook.cells):
        raise ValueError(f"{path.name} has no outputs: execute it before its pages are made")
    blocks = list_blocks(notebook.cells)
    opening, title = read_opening(blocks[0])
    about = html.escape(f"{study.profile} · run {study.run_name} · seed {study.seed}")
    blocks[0] = Block(f'{opening}\n<p class="about">{about}</p>', blocks[0].tags)
    slides = fill("slides.html", title=html.escape(title), body=join_slides(blocks))
    contents, body = join_sections(blocks[1:])
    report = fill(
        "report.html",
        title=html.escape(title),
        opening=opening,
        about=about,
        contents=contents,
        body=body,
    )
    pages = {"report.html": report, "slides.html": slides}
    return [write_atomic(study.run_dir / name, page) for name, page in pages.items()]


def list_blocks(cells: list[NotebookNode]) -> list[Block]:
    """What the cells show, in order; cells that show nothing are left out.

    A caption joins the figure above it, and is left out where nothing was drawn.
    """
    blocks = []
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        tags = tuple(cell.metadata.get("tags", []))
        if cell.cell_type == "markdown":
            shown = render_markdown(CAPTION.sub("", cell.source, count=1))
        else:
            caption = after and after.cell_type == "markdown" and CAPTION.match(after.source)
            shown = "\n".join(
                filter(None, (show_output(each, caption) for each in cell.get("outputs", [])))
            )
        if shown.strip():
            look = " ".join(tag for tag in tags if tag in LOOKS)
            blocks.append(Block(f'<div class="{look}">\n{shown}\n</div>' if look else shown, tags))
    return blocks


def show_output(output: NotebookNode, caption: re.Match | None) -> str:
    """An output as HTML: a figure with its caption, which is its text alternative as well, a table or a text."""
    data = output.get("data", {})
    kind = next((kind for kind in KINDS if kind in data), None)
    if kind == "image/png":
        said = " ".join(caption[1].split()) if caption else ""
        source = "data:image/png;base64," + "".join(data[kind].split())
        image = f'<img src="{source}" alt="{html.escape(plain(said), quote=True)}">'
        return f"<figure>{image}<figcaption>{inline(said)}</figcaption></figure>"
    if kind == "text/html":
        return clean(data[kind])
    return render_markdown(data[kind]) if kind else ""


def render_markdown(source: str) -> str:
    """Markdown as safe HTML."""
    return clean(markdown2html(source))


def inline(source: str) -> str:
    """One paragraph of Markdown without its paragraph."""
    return render_markdown(source).removeprefix("<p>").removesuffix("</p>")


def plain(source: str) -> str:
    """The text of Markdown, for an attribute."""
    return BeautifulSoup(markdown2html(source), "html.parser").get_text().strip()


def clean(source: str) -> str:
    """HTML without what a browser would run or fetch; links lead to the run's own notebooks, tables can scroll."""
    soup = BeautifulSoup(source, "html.parser")
    for element in soup.find_all(True):
        if element.decomposed:
            continue
        outside = element.name == "img" and not element.get("src", "").startswith("data:")
        if element.name in FORBIDDEN or outside or "anchor-link" in element.get("class", []):
            element.decompose()
            continue
        element.attrs = {
            name: element[name]
            for name in ("href", "src", "alt", "colspan", "rowspan")
            if name in element.attrs
        }
    for link in soup.find_all("a", href=True):
        link["href"] = re.sub(r"^(\d\d_\w+)\.ipynb", r"notebooks/\1.html", link["href"])
        if not re.match(r"https?://|notebooks/\d\d_\w+\.html", link["href"]):
            link.unwrap()
    for table in soup.find_all("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "table", "tabindex": "0"}))
    return str(soup).strip()


def read_opening(block: Block) -> tuple[str, str]:
    """The heading and the answer of the notebook's first cell, as HTML, and the heading's text, without its number."""
    soup = BeautifulSoup(block.html, "html.parser")
    if soup.h1 is None:
        raise ValueError("the notebook's first cell has no title (# ...)")
    soup.h1.string = re.sub(r"^\d\d · ", "", soup.h1.get_text())
    answer = next((p for p in soup.find_all("p") if p.get_text().startswith("Answer")), "")
    by_topic = str(answer).replace(" <strong>", "<br>\n<strong>")  # what is bold begins a line
    return f"{soup.h1}\n{by_topic}", soup.h1.get_text()


def join_sections(blocks: list[Block]) -> tuple[str, str]:
    """The table of contents (list items) and the body of the report: a section for each heading of level 2."""
    contents, parts = [], []
    for block in blocks:
        if "report-out" in block.tags:
            continue
        heading = BeautifulSoup(block.html, "html.parser").h2
        if heading is not None:
            name = f"part-{len(contents) + 1}"
            contents.append(f'<li><a href="#{name}">{html.escape(heading.get_text())}</a></li>')
            parts.append("</section>" if len(contents) > 1 else "")
            parts.append(f'<section id="{name}"{" class=page" if "page" in block.tags else ""}>')
        parts.append(block.html)
    return "\n".join(contents), "\n".join([*parts, "</section>" if contents else ""])


def join_slides(blocks: list[Block]) -> str:
    """The slides: a section each. One without a heading of its own says in a line which part it belongs to."""
    slides, running = [], ""
    for block in blocks:
        heading = BeautifulSoup(block.html, "html.parser").h2
        running = html.escape(heading.get_text()) if heading else running
        if "slide" in block.tags:
            own = heading or not running
            slides.append([] if own else [f'<p class="running">{running}</p>'])
        if {"slide", "on-slide"} & set(block.tags):
            if not slides:
                raise ValueError('a cell is tagged "on-slide", but no cell before it "slide"')
            slides[-1].append(block.html)
    if not slides:
        raise ValueError('no cell of the notebook is tagged "slide"')
    total = len(slides)
    return "\n".join(
        f'<section data-page="{number} / {total}">\n' + "\n".join(parts) + "\n</section>"
        for number, parts in enumerate(slides, start=1)
    )


def fill(template: str, **parts: str) -> str:
    """A template beside this module with its {{names}} filled in; {{hash}} is that of its script, for its policy."""
    page = Path(__file__).with_name(template).read_text(encoding="utf-8")
    if script := SCRIPT.search(page):
        parts["hash"] = (
            f"sha256-{base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()}"
        )
    # one pass, by a function: what a text holds is neither a placeholder nor a group's number
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts.get(match[1], match[0]), page)
