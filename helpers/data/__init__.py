"""VQAv2 and the phantom: files, download, subset, and batches that ViLT reads."""
