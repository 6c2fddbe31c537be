"""Findings of notebooks that do not record claims yet."""

import json

from IPython.display import Markdown

from helpers.run.cache import read_json, write_atomic
from helpers.run.settings import Study


def state_finding(study: Study, notebook: str, name: str, text: str) -> Markdown:
    """Show a finding under its figure and keep it in tables/findings.json of the run."""
    path = study.folder("tables") / "findings.json"
    findings = (read_json(path) or {}) | {f"{notebook}.{name}": text}
    data = json.dumps(dict(sorted(findings.items())), indent=1, ensure_ascii=False)
    write_atomic(path, f"{data}\n")
    return Markdown(f"**Finding.** {text}")
