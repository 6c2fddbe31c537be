"""Command lines that nobody imports: run the notebooks, pre-train a model, use several GPUs."""
