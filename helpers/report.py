"""Findings: sentences computed from a run's tables, shown in the notebook and kept for the report."""

import json

from IPython.display import Markdown

from helpers.steps import write_atomic
from helpers.study import Study

ANSWER = "answer"  # the finding that a notebook opens with


def state_finding(study: Study, notebook: str, name: str, text: str) -> Markdown:
    """Show a finding under its figure and keep it in tables/findings.json of the run.

    notebook: "03"; name: what it is about ("sinks"), or ANSWER for the sentence the notebook opens with.
    text: Markdown with effect, interval, n and baseline, computed from the data.
    """
    path = study.folder("tables") / "findings.json"
    findings = read_findings(study)
    findings[f"{notebook}.{name}"] = text
    write_atomic(path, json.dumps(dict(sorted(findings.items())), indent=1, ensure_ascii=False) + "\n")
    return Markdown(f"**Finding.** {text}")


def read_findings(study: Study) -> dict[str, str]:
    """All findings of a run so far: {"03.answer": text, ...}; empty before the first."""
    path = study.run_dir / "tables" / "findings.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
