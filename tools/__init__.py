"""Command lines: run the notebooks, verify and count, make the replicas, calibrate the tests."""
