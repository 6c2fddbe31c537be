"""Report: findings and their sentences, the numbers of a run, the viewer, the exported pages."""

from helpers.report import claims, compare, findings, headlines, sentences, viewer
from helpers.report.claims import record_claim
from helpers.report.findings import state_finding

__all__ = [
    "claims",  # the study's claims, and what a run finds of each
    "compare",  # this run beside others and beside the literature
    "findings",  # the findings of a run, shown with its numbers and figures
    "headlines",  # the numbers of a run, read from its own tables
    "record_claim",  # judge a claim from its number, and keep the verdict
    "sentences",  # what tables show, as text
    "state_finding",  # show a finding and keep it for the report
    "viewer",  # attention over the picture: a page that any browser opens, and a widget of it
]
