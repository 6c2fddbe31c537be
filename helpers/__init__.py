"""What the notebooks of the ViLT attention study call, one concept a module."""
