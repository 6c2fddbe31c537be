"""Intervals over images, tests between question families, and their calibration."""
