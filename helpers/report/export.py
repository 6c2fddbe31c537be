"""The report and the slides of a run: two HTML files that ask nothing of the network.

    write_pages(study)                      # report.html and slides.html in the run's folder
    write_pages(study, runs=["seed1"])      # the report compares this run with others

Both are made from the run's claims and figures and from the fixed text of `sections`.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from nbconvert.filters import markdown2html
from PIL import Image

from helpers.report import sections
from helpers.report.claims import (
    read_claims,
    say_estimate,
    say_models,
    say_questions,
    say_threshold,
)
from helpers.report.compare import compare_claims, find_runs, tabulate_runs
from helpers.run.cache import write_atomic
from helpers.run.settings import Study

SLIDES = (  # a claim, and the figures that show it: the first that the run holds
    ("needs-image", "02_accuracy"),
    ("stock-noise", "03_noise"),
    ("text-first", "03_layers"),
    ("finds-object", "03_hits", "03_words"),
    ("cls-fetches", "03b_knockout", "03_flow"),
    ("what-why", "04_families", "04_layers"),
    ("all-need", "04_needs"),
    ("habits", "05_role_map", "05_roles"),
    ("gradient-predicts", "05_importance"),
    ("order-matters", "06_curves"),
)
WIDE = 2.0  # width / height of figures that have their number above, not beside them
FORBIDDEN = ("script", "style", "iframe", "object", "embed", "link", "meta", "form", "base")
KEPT = ("href", "src", "alt", "colspan", "rowspan")  # attributes


def write_pages(study: Study, runs: Sequence[str] = ()) -> list[Path]:
    """Write report.html and slides.html into the run's folder; returns their paths.

    runs: names of other runs beside this one. The same run gives the same files.
    """
    claims = describe_claims(read_claims(study.run_dir))
    shared = {"title": sections.TITLE, "about": describe_run(study, claims)}
    report = {
        "hero": load_figure(study, sections.HERO),
        "sentences": sections.say_sentences(study),
        "claims": claims.to_dict("records"),
        "verdicts": sections.VERDICTS,
        "sections": [load_section(study, claims, section) for section in sections.SECTIONS],
        "runs": load_runs(study, runs),
    }
    slides = [
        {"claim": claims.loc[key].to_dict(), "figure": load_figure(study, names)}
        for key, *names in SLIDES
    ]
    pages = {
        "report.html": render("report.html.j2", **shared, **report),
        "slides.html": render("slides.html.j2", **shared, slides=slides),
    }
    return [write_atomic(study.run_dir / name, page) for name, page in pages.items()]


def describe_claims(table: pd.DataFrame) -> pd.DataFrame:
    """Claims by key, with what the pages say of each: number, models, needs, n, and its look."""
    rows = [row for _, row in table.iterrows()]
    table = table.assign(
        number=[say_estimate(row) for row in rows],
        models=[say_models(row) for row in rows],
        needs=[f"{say_threshold(row)} {row['unit']}" for row in rows],
        n=[say_questions(row) for row in rows],
        look=table["verdict"].str.replace(" ", "-"),
    )
    return table.set_index("key", drop=False)


def describe_run(study: Study, claims: pd.DataFrame) -> list[str]:
    """Lines about a run: what was analysed, and that drawings are no photographs."""
    n_models = claims["n_models"].max()
    models = "" if pd.isna(n_models) else f" · models analysed: {n_models:.0f}"
    line = f"profile {study.profile} · run {study.run_name} · seed {study.seed}{models}"
    return [line, sections.DRAWINGS] if study.data_root is None else [line]


def load_section(study: Study, claims: pd.DataFrame, section: sections.Section) -> dict:
    """A section as the template shows it."""
    own = claims[claims["notebook"] == section.notebook].to_dict("records")
    return section._asdict() | {"claims": own, "figure": load_figure(study, section.figures)}


def load_figure(study: Study, names: Sequence[str]) -> dict | None:
    """The first of these figures that the run holds: its bytes as an address, caption, shape."""
    found = sections.find_figure(study, names)
    if found is None:
        return None
    path, caption = found
    with Image.open(path) as image:
        wide = image.width > WIDE * image.height
    data = base64.b64encode(path.read_bytes()).decode()
    return {"src": f"data:image/png;base64,{data}", "caption": caption, "wide": wide}


def load_runs(study: Study, names: Sequence[str]) -> list[dict]:
    """This run's claims beside those of others, a dict a claim; [] without others."""
    names = [study.run_name, *(name for name in names if name != study.run_name)]
    if len(names) == 1:
        return []
    return tabulate_runs(compare_claims(find_runs(study, names))).to_dict("records")


def render(template: str, **values: object) -> str:
    """Fill a template beside this module, whose own script is the only one that may run."""
    folder = Path(__file__).parent
    source = (folder / template).read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = hashlib.sha256(script[1].encode() if script else b"").digest()
    values["script_hash"] = f"sha256-{base64.b64encode(digest).decode()}"
    options = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, **options)
    environment.filters |= {"markdown": render_markdown, "line": render_line, "plain": render_plain}
    return environment.get_template(template).render(**values)


def render_markdown(source: str) -> Markup:
    """Markdown as safe HTML."""
    return Markup(clean(markdown2html(source)))


def render_line(source: str) -> Markup:
    """A line of Markdown as safe HTML, without the paragraph around it."""
    paragraph = str(render_markdown(source))
    return Markup(re.sub(r"^<p>(.*)</p>$", r"\1", paragraph, flags=re.DOTALL))


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
        pattern = r"^((?:appendix/)?[\da]\d\w?_\w+)\.ipynb"
        link["href"] = re.sub(pattern, r"notebooks/\1.html", link["href"])
        if not re.match(r"https?://|notebooks/[\w/]+\.html", link["href"]):
            link.unwrap()
    for table in soup.find_all("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "table", "tabindex": "0"}))
    return str(soup).strip()
