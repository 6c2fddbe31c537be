"""What the notebooks call, in eight rooms; a room imports only those above it.

run, stats, figures, report, data, model, attention, heads.
"""
