"""Report: the study's claims, the exported pages, several runs side by side, the viewer."""

from helpers.report import claims, compare, export, sections, viewer
from helpers.report.claims import record_claim

__all__ = [
    "claims",  # the study's claims, and what a run finds of each
    "compare",  # the claims of several runs side by side
    "export",  # report.html and slides.html of a run
    "record_claim",  # judge a claim from its number, and keep the verdict
    "sections",  # what the report says of each question, in fixed text
    "viewer",  # attention over the picture: a page that any browser opens, and a widget of it
]
