"""ViLT loaded, run in raster order, fine-tuned, cut and timed."""
