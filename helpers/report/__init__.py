"""Report: the study's claims, the exported pages, the viewer."""

from helpers.report import claims, viewer  # not export: with it comes nbconvert, half a second
from helpers.report.claims import read_claims, record_claim

__all__ = [
    "claims",  # the study's claims, what a run finds of each, and several runs side by side
    "export",  # report.html and slides.html of a run, and what they say of each question
    "read_claims",  # every claim, with what a run found
    "record_claim",  # judge a claim from its number, and keep the verdict
    "viewer",  # attention over the picture: a page that any browser opens, and a widget of it
]
