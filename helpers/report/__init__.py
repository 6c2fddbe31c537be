"""Report: findings and their sentences, the numbers of a run, the viewer, the exported pages."""

from helpers.report import compare, findings, headlines, sentences, viewer
from helpers.report.findings import state_finding

__all__ = [
    "compare",  # this run beside others and beside the literature
    "findings",  # the findings of a run, shown with its numbers and figures
    "headlines",  # the numbers of a run, read from its own tables
    "sentences",  # what tables show, as text
    "state_finding",  # show a finding and keep it for the report
    "viewer",  # attention over the picture: a page that any browser opens, and a widget of it
]
