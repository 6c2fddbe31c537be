"""What the notebooks of the ViLT attention study call, in eight rooms; a room imports only those above it.

run, stats, figures, report, data, model, attention, heads.
"""
