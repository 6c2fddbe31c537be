"""The report and the slides of a run: two HTML files that ask nothing of the network.

    write_pages(study)                      # report.html and slides.html in the run's folder
    write_pages(study, runs=["seed1"])      # the report compares this run with others
    for section in SECTIONS:
        show_section(study, section)        # what the report says of each question, in notebook 07

Both are made from the run's claims and figures and from fixed text. No text depends on what a run
found: verdicts stand in their place, numbers in tables.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

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
TITLE = "Where does a vision-language transformer look?"
HERO = ("03b_knockout", "03_flow", "03_layers")  # figures, the first that a run holds is taken
SENTENCES = (
    "ViLT reads a question and a picture together and answers. Does it need the picture? With "
    "another picture it loses accuracy: {needs-image}.",
    "Does it look at the picture more for *what* than for *why* questions, as the plan of the "
    "study expected? {what-why}.",
    "Is looking the same as needing? The answer is read from one token, [CLS]. Cutting its look at "
    "the picture costs more than cutting the words' look: {cls-fetches}.",
    "Which attention heads matter? How sensitive an answer is to a head tells what its removal "
    "costs: {gradient-predicts}. That its attention to the picture does not tell: "
    "{attention-blind}.",
    "Can the model be lighter? A quarter of the heads can be cut for at most one point of "
    "accuracy: {quarter-free}.",
)
VERDICTS = (
    "**Supported**: the 95 % interval lies beyond what the claim asks. **Contradicted**: it "
    "lies on the other side. **Undecided**: what the claim asks lies in the interval. What it asks "
    "was fixed before these models were measured, as a number or as a rule (*more than random "
    "weights*: beyond the most extreme of 24 models with random weights). *Chosen / judged*: "
    "picked on one half of the images, measured on the other. Intervals are for further images "
    "and, where several models are analysed, further models. *models* says in how many the "
    "estimate alone is on the claimed side. The intervals are not corrected for the number of "
    "claims. *r* and *rho* are correlations (*rho*: of ranks)."
)
DRAWINGS = (
    "The pictures of this run are drawings of a generated data set, and its models are small: "
    "nothing here is a statement about photographs."
)


class Section(NamedTuple):
    """One question of the study, as the report shows it."""

    notebook: str  # its number; its claims are the section's
    question: str
    figures: tuple[str, ...]  # the first that the run holds is shown
    reading: str
    limits: str


SECTIONS = (
    Section(
        "02", "Does the model need the image?", ("02_accuracy",),
        "VQA accuracy gives full marks for an answer that at least three of ten people gave (on "
        "the drawings, ten made-up annotators with realistic disagreement). Each model "
        "answers with the right picture and with another question's picture, and is compared with "
        "a classifier that sees only the question. The difference is what the picture is worth.",
        "It does not show which part of a picture was used. Accuracy on held-out questions of one "
        "data set says little about other kinds of pictures.",
    ),
    Section(
        "03", "Where does it look, layer by layer?", ("03_layers", "03_heads"),
        "A token's attention is a share: it sums to 100 % over all tokens. Most tokens are patches "
        "of the picture, so attention spread evenly would already look visual; claims give shares "
        "as points above or below that (dashed in the figure). [CLS] is the token that the answer "
        "is read from. Models with random weights show what a model that has learnt nothing does.",
        "A share says where a head reads from. It does not say what the head hands on, nor what "
        "the answer needs: only taking something away says that. A mean over heads hides heads "
        "that differ more than layers do.",
    ),
    Section(
        "03b", "Which attention does the answer need?", ("03b_knockout",),
        "Attention from one group of tokens to another is cut, and the answers that go wrong are "
        "counted. A row with much attention and no loss is attention that the answer can do "
        "without. Where a row turns to 0, nothing that comes along these edges later is needed.",
        "A cut changes what is not cut as well, because the other shares are scaled up. Where a "
        "cut costs nothing, a second way may stand in for it.",
    ),
    Section(
        "04", "Do question types look differently?", ("04_families", "04_needs", "04_layers"),
        "Questions are grouped by their first words: what, where, how many and so on. A difference "
        "between types counts where it holds in both halves of a type's wordings and where models "
        "with random weights do not show it. Notebook 04 repeats the comparison of types at equal "
        "length of the question and number of patches.",
        "A type is a bundle of wordings, so types differ in their words as well as in what they "
        "ask. What words and picture contribute depends on how a token is taken away.",
    ),
    Section(
        "05", "What does each head do, and what is lost without it?",
        ("05_ablation", "05_role_map", "05_roles"),
        "A head is one of several attention units that work side by side in a layer. It has a "
        "habit where its score is at least 0.1 and beyond every head of every random model. Its "
        "cost is the accuracy that is lost when its output is taken out.",
        "Heads are mostly removed one at a time, so two that stand in for each other both look "
        "cheap. A habit is read from attention and a cost is not: one need not follow the other.",
    ),
    Section(
        "06", "Can a lighter model answer as well?", ("06_curves",),
        "Heads go in the order that a score suggests, the least important first; random orders "
        "show what any removal costs. What is chosen is chosen on one half of the images and "
        "measured on the other.",
        "A few shapes were tried out of very many, each trained shortly and once. Speed is a fact "
        "of one machine and is no claim.",
    ),
)  # fmt: skip
SLIDES = (  # a claim, and the figures that show it: the first that the run holds
    ("needs-image", "02_accuracy"),
    ("stock-noise", "03_noise"),
    ("text-first", "03_heads", "03_layers"),
    ("finds-object", "03_hits", "03_words"),
    ("cls-fetches", "03b_knockout", "03_flow"),
    ("what-why", "04_families", "04_layers"),
    ("all-need", "04_needs"),
    ("habits", "05_role_map", "05_roles"),
    ("gradient-predicts", "05_importance"),
    ("order-matters", "06_curves"),
)
WIDE = 1.7  # width / height of figures that have their number above, not beside them


def write_pages(study: Study, runs: Sequence[str] = ()) -> list[Path]:
    """Write report.html and slides.html into the run's folder; returns their paths.

    runs: names of other runs beside this one. The same run gives the same files.
    """
    claims = describe_claims(study)
    shared = {"title": TITLE, "about": describe_run(study, claims)}
    names = [study.run_name, *(name for name in runs if name != study.run_name)]
    compared = tabulate_runs(compare_claims(find_runs(study, names))) if names[1:] else None
    report = {
        "hero": find_figure(study, HERO),
        "sentences": say_sentences(study),
        "claims": claims.to_dict("records"),
        "verdicts": VERDICTS,
        "sections": [
            section._asdict() | {
                "claims": claims[claims["notebook"] == section.notebook].to_dict("records"),
                "figure": find_figure(study, section.figures)}
            for section in SECTIONS
        ],
        "runs": [] if compared is None else compared.to_dict("records"),
    }  # fmt: skip
    slides = [
        {"claim": claims.loc[key].to_dict(), "figure": find_figure(study, names, "_slide")}
        for key, *names in SLIDES
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
            for key in re.findall(r'"([a-z-]+)"', cell.source) if heading else ():
                places.setdefault(key, place)
    return places


def describe_run(study: Study, claims: pd.DataFrame) -> list[str]:
    """Lines about a run: what was analysed, and that drawings are no photographs."""
    n_models = claims["n_models"].max()
    models = "" if pd.isna(n_models) else f" · models analysed: {n_models:.0f}"
    line = f"profile {study.profile} · run {study.run_name} · seed {study.seed}{models}"
    return [line, DRAWINGS] if study.data_root is None else [line]


def say_sentences(study: Study) -> list[str]:
    """The five sentences that open the report, as Markdown, with this run's verdicts."""
    table = read_claims(study.run_dir)
    said = say_claims(table)
    number = (", " + said["estimate"]).where(table["estimate"].notna(), "")
    said = dict(zip(table["key"], said["verdict"] + number, strict=True))
    return [sentence.format_map(said) for sentence in SENTENCES]


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


def show_section(study: Study, section: Section) -> None:
    """Show a section in a notebook: its claims, its figure, how to read it, what it leaves open."""
    claims = read_claims(study.run_dir)
    claims = claims[claims["notebook"] == section.notebook]
    display(Markdown(f"### {section.notebook} · {section.question}\n\n{format_claims(claims)}"))
    if figure := find_figure(study, section.figures):
        caption = figure["caption"]
        display(Image(figure["path"].read_bytes(), alt=caption), Markdown(f"*{caption}*"))
    reading = f"**How to read it.** {section.reading}"
    display(Markdown(f"{reading}\n\n**What it does not show.** {section.limits}"))


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
