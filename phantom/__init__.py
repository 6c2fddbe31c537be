"""Synthetic VQA with known truth: scenes, questions about them, and the sprites that draw them."""
