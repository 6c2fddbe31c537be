"""Shared by the tests: bars and hub look-ups off, two small data sets written once."""

import os

import pytest

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory):
    """A small phantom: 40 training and 20 validation scenes in VQAv2's own files."""
    from helpers.phantom import write_phantom

    root = tmp_path_factory.mktemp("phantom")
    write_phantom(root, "train", 40, seed=3)
    write_phantom(root, "val", 20, seed=3)
    return root
