"""What a reader sees in a matplotlib axis: texts, ticks, error bars. For the tests of the plots."""

import io

import numpy as np
from matplotlib.collections import LineCollection
from PIL import Image


def render(figure) -> np.ndarray:
    """Draw a figure as a notebook does; returns its pixels (rows, columns, RGB)."""
    buffer = (
        io.BytesIO()
    )  # not canvas.draw(), which does nothing once pyplot has let go of the figure
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


def read_texts(axis) -> list[str]:
    """All free texts in an axis, in the order in which they were written."""
    return [text.get_text() for text in axis.texts]


def read_title(axis) -> str:
    """The title of an axis, at the left or in the middle."""
    return axis.get_title(loc="left") or axis.get_title()


def read_ticks(axis, which: str) -> list[str]:
    """The tick labels of "x" or "y"."""
    return [label.get_text() for label in getattr(axis, f"get_{which}ticklabels")()]


def read_legend(legend) -> list[str]:
    """The labels of a legend."""
    return [text.get_text() for text in legend.get_texts()]


def read_bars(container, axis: int = 1) -> np.ndarray:
    """Low and high (n, 2) of the bars that a container draws, along y (axis 1) or x (axis 0)."""
    bars: LineCollection = container.lines[2][0]
    return np.array([[first[axis], last[axis]] for first, last in filter(len, bars.get_segments())])


def is_hollow(line) -> bool:
    """Is a marker white inside?"""
    return line.get_markerfacecolor() == "white"
