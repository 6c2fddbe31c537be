"""Figures of the notebooks: they take tables or arrays and return a matplotlib figure."""
