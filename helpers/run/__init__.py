"""Settings of a run, steps done once, and what a run folder records."""
