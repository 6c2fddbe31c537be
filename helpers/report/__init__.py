"""Findings, report and slides, the viewer, and several runs side by side."""
