"""Findings: sentences computed from a run's tables, shown in the notebook and kept for the report.

    state_finding(study, "03", "sinks", text)      # in notebook 03
    findings.show_findings(study, "layers")        # in notebook 07

Notebook 07 shows what a run holds, by the parts of the study, and says what it does not hold.
"""

import io
import json
from math import isnan
from typing import NamedTuple

from IPython.display import Image as ShownImage
from IPython.display import Markdown
from PIL import Image

from helpers.report.headlines import NOTEBOOK, Headline, read_headlines, say_size, say_value
from helpers.run.cache import write_atomic
from helpers.run.settings import Study

ANSWER = "answer"  # the finding that a notebook opens with
FIGURE_WIDTH = 880  # pixels of a figure in the report
NOTEBOOKS = {
    "01": "01_setup", "02": "02_finetune", "03": "03_layer_attention", "04": "04_question_types",
    "05": "05_head_roles", "06": "06_optimise",
}  # fmt: skip


class Part(NamedTuple):
    """What the report's page on one of the study's questions shows, by name."""

    notebook: str
    headlines: tuple[str, ...]
    figure: str
    findings: tuple[str, ...]


PARTS = {
    "layers": Part("03", ("excess",), "03_layers", ("layers", "heads", "boxes", "trust")),
    "types": Part("04", ("telling", "text_share"), "04_needs",
                  ("heads", "adjusted", "lost", "ranks")),
    "heads": Part("05", ("roles", "costliest"), "05_role_map",
                  ("roles", "ablation", "importance", "patching")),
    "optimise": Part("06", ("removed", "speed"), "06_curves",
                     ("lightest", "helps", "orders", "families", "recovery", "precision")),
}  # fmt: skip
CLAUSES = {  # of the report's answer, by headline: {0} is its value, {1} its detail
    "accuracy": "{1} reaches a VQA accuracy of {0}.",
    "excess": "**Layers.** In the last one, [CLS]'s share on the image differs from uniform "
    "attention by {0}.",
    "telling": "**Question types.** Attention to the image differs between them in {0} of heads "
    "and queries.",
    "text_share": "By MM-SHAP, words contribute {0} to an answer.",
    "roles": "**Heads.** A role is found in {0}.",
    "costliest": "The costliest ({1}) takes {0} of accuracy with it.",
    "removed": "**Optimising.** The selected model does without {0} of the heads ({1}).",
    "speed": "It is {0} as the whole one ({1}).",
}


def state_finding(study: Study, notebook: str, name: str, text: str) -> Markdown:
    """Show a finding under its figure and keep it in tables/findings.json of the run.

    notebook: "03"; name: what it is about ("sinks"), or ANSWER for the sentence the notebook opens
    with; text: Markdown with effect, interval, n and baseline, computed from the data.
    """
    findings = read_findings(study) | {f"{notebook}.{name}": text}
    data = json.dumps(dict(sorted(findings.items())), indent=1, ensure_ascii=False)
    write_atomic(study.folder("tables") / "findings.json", f"{data}\n")
    return Markdown(f"**Finding.** {text}")


def read_findings(study: Study) -> dict[str, str]:
    """All findings of a run so far: {"03.answer": text, ...}; empty before the first."""
    path = study.run_dir / "tables" / "findings.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def list_missing(study: Study) -> list[str]:
    """The numbers of the notebooks whose answer this run does not hold: ["06"]."""
    findings = read_findings(study)
    return [number for number in NOTEBOOKS if f"{number}.{ANSWER}" not in findings]


def say_missing(study: Study, number: str, what: str) -> str:
    """Why a run lacks `what` ("number") of a notebook: not run, or too few questions for it."""
    missing = number in list_missing(study)
    reason = "has not been run" if missing else "gave none from these questions"
    return f"No {what}: {number} {reason}."


def show_headlines(study: Study, part: str) -> Markdown:
    """Headline numbers of a part (of PARTS, or one headline), a paragraph each, with n and run."""
    lines = []
    for name in PARTS[part].headlines if part in PARTS else (part,):
        if not (found := read_headlines(study, [name])):
            lines.append(say_missing(study, NOTEBOOK[name], "number"))
            continue
        headline = found[0]
        about = ", ".join(filter(None, [say_size(headline), _name_run(study)]))
        what = f"{headline.label} ({headline.detail}; {about})"
        lines.append(f"**{say_value(headline)}**<br>{what}")
    return Markdown("\n\n".join(dict.fromkeys(lines)))  # a missing notebook is named once


def _name_run(study: Study) -> str:
    return f"run {study.run_name}, seed {study.seed}"


def show_findings(study: Study, part: str) -> Markdown:
    """The findings of a part (of PARTS), a list item each with its key; absent ones left out."""
    findings, notebook = read_findings(study), PARTS[part].notebook
    keys = [key for name in PARTS[part].findings if (key := f"{notebook}.{name}") in findings]
    if not keys:
        return Markdown(say_missing(study, notebook, "finding"))
    return Markdown("\n".join(f"- {findings[key]} `{key}`" for key in keys))


def show_figure(study: Study, part: str) -> ShownImage | Markdown:
    """The figure of a part (of PARTS), reduced for the report; a sentence where it is missing."""
    path = study.run_dir / "figures" / f"{PARTS[part].figure}.png"
    if not path.is_file():
        return Markdown(say_missing(study, PARTS[part].notebook, "figure"))
    return ShownImage(reduce_png(path.read_bytes()))


def reduce_png(data: bytes) -> bytes:
    """A PNG at most FIGURE_WIDTH pixels wide, with a palette of at most 128 colours."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if picture.width > FIGURE_WIDTH:
        size = (FIGURE_WIDTH, round(picture.height * FIGURE_WIDTH / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    small = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return small.getvalue()


def summarise(study: Study) -> str:
    """The study's answer, a sentence a headline of this run, and what is missing or unknown."""
    found = read_headlines(study, tuple(CLAUSES))
    told = [headline for headline in found if not isnan(headline.value)]
    whole_stays = any(headline.name == "removed" and headline.value == 0 for headline in told)
    left_out = PARTS["optimise"].headlines if whole_stays else ()
    parts = [say_clause(headline) for headline in told if headline.name not in left_out]
    if whole_stays:
        parts.append("**Optimising.** No model with fewer heads was selected.")
    if untold := [headline.label for headline in found if isnan(headline.value)]:
        parts.append(f"Not enough questions to tell: {'; '.join(untold)}.")
    if missing := list_missing(study):
        parts.append(f"Not run yet: {', '.join(missing)}.")
    return f"{' '.join(parts).removesuffix('.')} ({_name_run(study)})."


def say_clause(headline: Headline) -> str:
    """A headline's sentence in the answer, with the number of its own questions."""
    text = CLAUSES[headline.name].format(say_value(headline), headline.detail)
    if isnan(headline.n):
        return text
    size = say_size(headline) if headline.name == "accuracy" else f"n = {headline.n:,.0f}"
    if text.endswith(")."):
        return f"{text.removesuffix(').')}; {size})."
    return f"{text.removesuffix('.')} ({size})."
