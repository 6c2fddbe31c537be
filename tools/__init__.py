"""Command lines and checks: run the notebooks, pre-train, use several GPUs, calibrate the tests."""
