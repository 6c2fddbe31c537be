"""What the report says of each question: fixed text, the run's claims, one figure.

    for section in sections.SECTIONS:
        sections.show_section(study, section)   # in notebook 07

No text here depends on what a run found: verdicts stand in their place, numbers in tables.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
from IPython.display import Image, Markdown, display

from helpers.report.claims import format_claims, read_claims, say_estimate
from helpers.run.settings import Study

CAPTION = re.compile(r"\*(Figure [^*]+)\*\s*")  # the cell under a figure begins with it
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
    "lies on the other side. **Undecided**: what it asks is in it. That was fixed before these "
    "models were measured, as a number or as a rule (*more than random weights*: beyond the "
    "most extreme of 24 models with random weights). Intervals are for further images and, "
    "where several models are analysed, further models; *models* says in how many the estimate "
    "alone is on the claimed side. The intervals are not corrected for the number of claims."
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
        "answers with the right picture and with another question's picture, and is held against "
        "a classifier that sees only the question. The difference is what the picture is worth.",
        "It does not show which part of a picture was used. Accuracy on held-out questions of one "
        "data set says little about other kinds of pictures.",
    ),
    Section(
        "03", "Where does it look, layer by layer?", ("03_layers", "03_heads"),
        "A token's attention is a share: it sums to 100 % over all tokens. Most tokens are patches "
        "of the picture, so attention spread evenly would already look visual; shares are given as "
        "points above or below that (dashed in the figure). [CLS] is the token that the answer is "
        "read from. Models with random weights show what a model that has learnt nothing does.",
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
        "between heads counts where it holds in both halves of a type's wordings and where models "
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


def say_sentences(study: Study) -> list[str]:
    """The five sentences that open the report, as Markdown, with this run's verdicts."""
    said = {}
    for _, row in read_claims(study.run_dir).iterrows():
        number = "" if np.isnan(row["estimate"]) else f", {say_estimate(row)}"
        said[row["key"]] = f"**{row['verdict']}**{number}"
    return [sentence.format_map(said) for sentence in SENTENCES]


def find_figure(study: Study, names: Sequence[str]) -> tuple[Path, str] | None:
    """The first of these figures that the run holds, and its caption in the notebooks; or None."""
    for name in names:
        path = study.run_dir / "figures" / f"{name}.png"
        if path.is_file():
            return path, find_caption(study.root, name)
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
        path, caption = figure
        display(Image(path.read_bytes(), alt=caption), Markdown(f"*{caption}*"))
    reading = f"**How to read it.** {section.reading}"
    display(Markdown(f"{reading}\n\n**What it does not show.** {section.limits}"))
