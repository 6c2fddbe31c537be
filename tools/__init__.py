"""Command lines that nobody imports: run the notebooks, pre-train the embedded model, use several GPUs."""
