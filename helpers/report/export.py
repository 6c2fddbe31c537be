"""The report and the slides of a run: two HTML files that ask nothing of the network.

    write_pages(study)                      # report.html and slides.html in the run's folder
    write_pages(study, runs=["seed1"])      # the report compares this run with others
    for section in SECTIONS:
        show_section(study, section)        # what the report says of each question, in notebook 07

Both are made from the run's claims and figures and from fixed text (`pages.toml` beside this
module). No text depends on what a run found: verdicts stand in their place, numbers in tables.
"""

import base64
import hashlib
import re
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import nbformat
import pandas as pd
from IPython.display import Image, Markdown, display
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image as PictureFile

from helpers.report.claims import (
    CLAIMS,
    compare_claims,
    find_runs,
    format_claims,
    read_claims,
    say_claims,
    tabulate_runs,
)
from helpers.run.cache import write_atomic
from helpers.run.settings import Study

CAPTION = re.compile(r"\*(Figure .+?)\*\s*(?:\n\n|\Z)", re.DOTALL)  # begins the cell below it
TEXT = tomllib.loads(Path(__file__).with_name("pages.toml").read_text(encoding="utf-8"))
SECTIONS = TEXT["sections"]  # one question of the study each: its claims are its notebook's
WIDE = 1.7  # width / height of figures that have their number above, not beside them


def write_pages(study: Study, runs: Sequence[str] = ()) -> list[Path]:
    """Write report.html and slides.html into the run's folder; returns their paths.

    runs: names of other runs beside this one. The same run gives the same files.
    """
    claims = describe_claims(study)
    shared = {"title": TEXT["title"], "about": describe_run(study, claims)}
    names = [study.run_name, *(name for name in runs if name != study.run_name)]
    compared = tabulate_runs(compare_claims(find_runs(study, names))) if names[1:] else None
    report = {
        "hero": find_figure(study, TEXT["hero"]),
        "sentences": say_sentences(study),
        "legend": TEXT["legend"],
        "claims": claims.to_dict("records"),
        "verdicts": TEXT["verdicts"],
        "sections": [
            section | {
                "claims": claims[claims["notebook"] == section["notebook"]].to_dict("records"),
                "figure": find_figure(study, section["figures"])}
            for section in SECTIONS
        ],
        "runs": [] if compared is None else compared.to_dict("records"),
    }  # fmt: skip
    slides = [
        {"claim": claims.loc[key].to_dict(), "figure": find_figure(study, names, "_slide")}
        for key, *names in TEXT["slides"]
    ]
    pages = {
        "report.html": render("report.html.j2", **shared, **report),
        "slides.html": render("slides.html.j2", **shared, slides=slides),
    }
    return [write_atomic(study.run_dir / name, page) for name, page in pages.items()]


def describe_claims(study: Study) -> pd.DataFrame:
    """Claims by key, with what the pages say of each, its look, and where a notebook judges it."""
    table = read_claims(study.run_dir)
    said = say_claims(table)[["estimate", "asked", "models", "questions"]]
    said["asked"] += " " + table["unit"]
    places = find_places(study.root)
    table = table[["key", "notebook", "claim", "verdict", "n_models"]].join(said)
    table["measure"] = pd.read_csv(CLAIMS)["measure"]
    table["look"] = table["verdict"].str.replace(" ", "-")
    table["place"] = [places.get(key) for key in table["key"]]
    return table.set_index("key", drop=False)


def find_places(root: Path) -> dict[str, dict]:
    """Where the notebooks judge each claim: key -> address of the section, and its number."""
    places = {}
    for path in sorted((root / "notebooks").rglob("[0-9a]*_*.ipynb")):
        heading = ""
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                heading = next(iter(re.findall(r"^##? (.*)", cell.source, re.MULTILINE)), heading)
                continue
            page = path.relative_to(root).with_suffix(".html").as_posix()
            place = {"address": f"{page}#{heading.replace(' ', '-')}", "name": heading.split()[0]}
            judging = re.sub(r"stop_without_answers\(.*?\)", "", cell.source, flags=re.DOTALL)
            for key in re.findall(r'"([a-z-]+)"', judging) if heading else ():
                places.setdefault(key, place)
    return places


def describe_run(study: Study, claims: pd.DataFrame) -> list[str]:
    """Lines about a run: what was analysed, and that drawings are no photographs."""
    n_models = claims["n_models"].max()
    models = "" if pd.isna(n_models) else f" · models analysed: {n_models:.0f}"
    line = f"profile {study.profile} · run {study.run_name} · seed {study.seed}{models}"
    return [line, TEXT["drawings"]] if study.data_root is None else [line]


def say_sentences(study: Study) -> list[str]:
    """The five sentences that open the report, as Markdown, with this run's verdicts."""
    table = read_claims(study.run_dir)
    said = say_claims(table)
    number = (", " + said["estimate"]).where(table["estimate"].notna(), "")
    said = dict(zip(table["key"], said["verdict"] + number, strict=True))
    return [" ".join(sentence.split()).format_map(said) for sentence in TEXT["sentences"]]


def find_figure(study: Study, names: Sequence[str], ending: str = "") -> dict | None:
    """The first of these figures that the run holds, or None: path, src, caption, and its shape.

    ending: "_slide" prefers it as it was saved for slides. src: its bytes as an address. caption:
    of the notebooks. wide: whether it is, for a slide.
    """
    for name in names:
        for path in (study.run_dir / "figures" / f"{name}{end}.png" for end in (ending, "")):
            if path.is_file():
                src = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
                with PictureFile.open(path) as image:
                    wide = image.width > WIDE * image.height
                caption = find_caption(study.root, name)
                return {"path": path, "src": src, "caption": caption, "wide": wide}
    return None


def find_caption(root: Path, name: str) -> str:
    """The caption under the cell that saves a figure, "Figure 3.1. ..."; "" where there is none."""
    for path in sorted((root / "notebooks").rglob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        if name not in text:
            continue
        for cell, following in pairwise(nbformat.reads(text, as_version=4).cells):
            found = CAPTION.match(following.source)
            if cell.cell_type == "code" and f'"{name}"' in cell.source and found:
                return " ".join(found[1].split())
    return ""


def show_section(study: Study, section: dict) -> None:
    """Show a section in a notebook: its claims, its figure, how to read it, what it leaves open."""
    table = read_claims(study.run_dir)
    table = format_claims(table[table["notebook"] == section["notebook"]])
    display(Markdown(f"### {section['notebook']} · {section['question']}\n\n{table}"))
    if figure := find_figure(study, section["figures"]):
        caption = figure["caption"]
        display(Image(figure["path"].read_bytes(), alt=caption), Markdown(f"*{caption}*"))
    reading = f"**How to read it.** {section['reading']}"
    display(Markdown(f"{reading}\n\n**What it does not show.** {section['limits']}"))


def render(template: str, **values: object) -> str:
    """Fill a template beside this module, whose own script is the only one that may run."""
    folder = Path(__file__).parent
    source = (folder / template).read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = hashlib.sha256(script[1].encode() if script else b"").digest()
    values["script_hash"] = f"sha256-{base64.b64encode(digest).decode()}"
    options = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, **options)
    environment.filters |= {"markdown": render_markdown, "line": render_line}
    return environment.get_template(template).render(**values)


def render_markdown(source: str) -> Markup:
    """Markdown as safe HTML: its own HTML is text, and no picture or harmful address is fetched.

    Links to a notebook lead to the run's own copy of it.
    """
    renderer = IPythonRenderer(escape=True, allow_harmful_protocols=False)
    page = MarkdownWithMath(renderer=renderer).render(source)
    page = re.sub(r"<img\b[^>]*>", "", page)
    page = re.sub(r'href="(?:\.\./)?((?:appendix/)?\w+)\.ipynb', r'href="notebooks/\1.html', page)
    return Markup(page.strip())


def render_line(source: str) -> Markup:
    """A line of Markdown as safe HTML, without the paragraph around it."""
    return Markup(re.sub(r"^<p>(.*)</p>$", r"\1", str(render_markdown(source)), flags=re.DOTALL))
