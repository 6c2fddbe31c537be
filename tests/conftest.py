"""Shared by the tests: bars and hub look-ups off, two small data sets written once."""

import multiprocessing
import os
import warnings

import pytest
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# the models here are small: more threads wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("shared machine", deadline=None, max_examples=40)
settings.load_profile("shared machine")


def pytest_collection_modifyitems(items):
    """Long files first: at the end they would keep one of two processes waiting."""
    long = {item.path for item in items for name in ("slow", "browser")
            if item.get_closest_marker(name)}  # fmt: skip
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def start_process():
    """`start_process(function, *args)`: in a process forked from one that imports torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.model.finetune"])
    started = []

    def start(function, *args):
        started.append(context.Process(target=function, args=args))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def fork():
    """`fork(function, *args)`: in a process forked from this one, for what trains nothing."""
    started = []

    def start(function, *args):
        started.append(multiprocessing.get_context("fork").Process(target=function, args=args))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory):
    """A small phantom: 40 training and 20 validation scenes in VQAv2's own files."""
    from phantom.scenes import write_phantom

    root = tmp_path_factory.mktemp("phantom")
    write_phantom(root, "train", 40, seed=3)
    write_phantom(root, "val", 20, seed=3)
    return root


@pytest.fixture(scope="session")
def vilt():
    """A small random ViLT and its processor: to be read, not changed."""
    from small import ANSWERS

    from helpers.model.vilt import load_vilt

    return load_vilt("fresh-small", answers=ANSWERS, seed=3)


@pytest.fixture(scope="session")
def model(vilt):
    """The model of `vilt` alone."""
    return vilt[0]


@pytest.fixture(scope="session")
def batch():
    """Six questions of different lengths about pictures of different shapes, as a processor's."""
    from noise import make_batch

    return make_batch()


@pytest.fixture(scope="session")
def encoded(vilt):
    """Twelve questions about three pictures of different shapes."""
    from small import encode_noise

    return encode_noise(vilt[1])


@pytest.fixture
def tidy_figures():
    """A warning fails the test, and so does a figure that pyplot still holds at its end."""
    import matplotlib.pyplot as plt

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # ipywidgets 7.7 (Colab's) under a newer ipykernel
        warnings.filterwarnings("ignore", message=".*ipykernel.comm.Comm.* deprecated")
        yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == [], "a plotting function left its figure open"


@pytest.fixture(scope="session")
def float64_checkpoint(tmp_path_factory):
    """A small random ViLT in float64, to train where two trainings are compared.

    Rounding grows with training: two threads against one differ by 3e-4 to 4e-3 in the weights
    after an epoch in float32, by less than 1e-11 in float64. So 1e-8 tells the same training from
    another.
    """
    from helpers.model.vilt import load_vilt

    folder = tmp_path_factory.mktemp("float64")
    model, processor = load_vilt("fresh-small", answers=["yes", "no"], seed=3)
    model.double().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
