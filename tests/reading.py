"""What a reader sees in a matplotlib axis: texts, ticks, error bars. For the tests of the plots."""

import numpy as np
from matplotlib.collections import LineCollection


def render(figure) -> None:
    """Lay a figure out and draw it, but for its pixels: what cannot be drawn warns or fails.

    canvas.draw() would do nothing once pyplot has let go of the figure.
    """
    figure.draw_without_rendering()


def read_texts(axis) -> list[str]:
    """All free texts in an axis, in the order in which they were written."""
    return [text.get_text() for text in axis.texts]


def read_ticks(axis, which: str) -> list[str]:
    """The tick labels of "x" or "y"."""
    return [label.get_text() for label in getattr(axis, f"get_{which}ticklabels")()]


def read_bars(container, axis: int = 1) -> np.ndarray:
    """Low and high (n, 2) of the bars that a container draws, along y (axis 1) or x (axis 0)."""
    bars: LineCollection = container.lines[2][0]
    return np.array([[first[axis], last[axis]] for first, last in filter(len, bars.get_segments())])


def is_hollow(line) -> bool:
    """Is a marker white inside?"""
    return line.get_markerfacecolor() == "white"


def read_grid(axis) -> np.ndarray:
    """The numbers of a heatmap, NaN for its empty cells."""
    return axis.collections[0].get_array().astype(float).filled(np.nan)
