"""Attention measured: where it goes, maps over a picture, and whether they can be trusted."""
