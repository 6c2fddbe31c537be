"""Where a figure's look is set: colours, matplotlib's settings, and what is drawn in many figures.

A plotting function takes arrays or tables, returns the matplotlib figure, and never calls show.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from textwrap import fill

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL.Image import Image

Picture = Image | np.ndarray
Boxes = Sequence[Sequence[float]]  # [x, y, width, height] each, in pixels

# Okabe-Ito; grey for baselines
TEXT_COLOR, IMAGE_COLOR, GREY = "#0072B2", "#D55E00", "#8C8C8C"
GREEN, PINK, SKY, ORANGE = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
DARK_GREY, PALE = "#5A5A5A", "#EFEFEF"  # small remarks; bands and empty cells
GROUP_COLORS = {
    "cls": DARK_GREY, "words": TEXT_COLOR, "sep": "#9A9A9A", "img_cls": ORANGE,
    "patches": IMAGE_COLOR,
}  # fmt: skip
GROUP_NAMES = {
    "cls": "[CLS]", "words": "words", "sep": "[SEP]", "img_cls": "image CLS", "patches": "patches",
}  # fmt: skip
BASELINE = {"color": GREY, "linestyle": "--", "linewidth": 1.2, "zorder": 0}
TOO_FEW = "not enough questions to tell"
STYLE = {
    "figure.dpi": 100, "savefig.dpi": 110, "figure.constrained_layout.use": True, "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
    "axes.titlelocation": "left", "grid.alpha": 0.25, "legend.frameon": False,
    "image.cmap": "cividis", "errorbar.capsize": 2.5, "lines.markersize": 5,
    "text.parse_math": False,  # a question may hold two dollar signs
}  # fmt: skip


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a plotting function: the project's look inside, and pyplot lets go of the figure.

    So a notebook shows a figure once, and memory stays flat.
    """

    @wraps(plot)
    def plot_with_style(*args: object, **kwargs: object) -> Figure:
        with mpl.rc_context(STYLE):
            figure = plot(*args, **kwargs)
        plt.close(figure)
        return figure

    return plot_with_style


def set_title(figure: Figure, title: str) -> Figure:
    """Give a whole figure its title, at the left, in lines of at most 95 characters."""
    figure.suptitle(fill(title, 95), x=0.01, ha="left", fontsize=11)
    return figure


def make_panels(
    table: pd.DataFrame, column: str, size: tuple[float, float], **grid: object
) -> tuple[Figure, list[tuple[Axes, str, pd.DataFrame]]]:
    """A figure with a panel for each value of a column, side by side: axis, value and its rows."""
    names = list(table[column].unique())
    figure, axes = plt.subplots(1, max(1, len(names)), figsize=size, squeeze=False, **grid)
    panels = zip(axes[0], names, strict=False)
    return figure, [(axis, name, table[table[column] == name]) for axis, name in panels]


def place_legend(figure: Figure, axes: Iterable[Axes], ncols: int = 5, **look: object) -> None:
    """One legend below the figure for all axes, each label once."""
    entries = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        look |= {"loc": "outside lower center", "ncols": min(len(entries), ncols)}
        figure.legend(entries.values(), entries, **look)


def format_points(value: float, sign: str = "", digits: int = 0) -> str:
    """A number for a cell: a true minus sign, no -0. sign: "+" writes it for positive numbers."""
    text = f"{value:{sign}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def format_cells(
    values: ArrayLike, sign: str = "", digits: int = 0, unsure: ArrayLike = False
) -> np.ndarray:
    """Numbers as texts for cells, "" for NaN; in brackets where the bool of `unsure` says so."""
    write = np.vectorize(lambda value: format_points(value, sign, digits), otypes=[object])
    texts = write(values)
    texts = np.where(unsure, "(" + texts + ")", texts)
    return np.where(np.isnan(np.asarray(values, dtype=float)), "", texts)


def measure_bars(estimate: ArrayLike, low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """Lengths (2, n) of error bars below and above; 0 where there is no interval.

    Also 0 on a side where the interval leaves the estimate out.
    """
    lengths = [np.subtract(estimate, low, dtype=float), np.subtract(high, estimate, dtype=float)]
    return np.nan_to_num(lengths).clip(min=0)


def plot_intervals(
    axis: Axes,
    position: ArrayLike,
    rows: pd.DataFrame,
    value: str = "estimate",
    scale: float = 1,
    horizontal: bool = False,
    hollow: bool = False,
    **look: object,
) -> ErrorbarContainer:
    """Points with their 95 % intervals: the columns `value`, low, high of a table times `scale`.

    position: one for each row, along the other axis; horizontal: the values run along x. An absent
    interval draws no bar. hollow: markers are white inside. look: of matplotlib's errorbar.
    """
    estimate, low, high = (scale * rows[name].to_numpy(float) for name in (value, "low", "high"))
    bars, position = measure_bars(estimate, low, high), np.asarray(position, dtype=float)
    look = {"marker": "o", "linestyle": "", "linewidth": 1.2} | look
    look |= {"markerfacecolor": "white"} if hollow else {}
    if horizontal:
        return axis.errorbar(estimate, position, xerr=bars, **look)
    return axis.errorbar(position, estimate, yerr=bars, **look)


def dodge(rows: Sequence, number: int, names: Sequence, step: float) -> np.ndarray:
    """Positions 0, 1, ... of rows, moved so that the points of all `names` stand side by side."""
    return np.arange(len(rows)) + step * (number - (len(names) - 1) / 2)


def count_under(table: pd.DataFrame, column: str, form: str = "{0}\nn={1}") -> dict[str, str]:
    """Labels of a column's values, in order of appearance, with n beside the name."""
    counts = table.groupby(column, sort=False, observed=True)["n"].first()
    return {name: form.format(name, n) for name, n in counts.items()}


def plot_layers(
    axis: Axes,
    rows: pd.DataFrame,
    color: str,
    marker: str,
    line: str = "-",
    label: str = "",
    shift: float = 0,
    hollow: ArrayLike = False,
) -> ErrorbarContainer:
    """A line over layers in per cent, with intervals.

    rows: a row a layer, with layer, estimate, low, high (shares in [0, 1]). shift: to the right, in
    layers, so that neighbouring bars do not hide each other. hollow: bool, or one for each row;
    those markers are white inside (too few questions, or a layer that cannot reach the answer).
    """
    rows = rows.assign(hollow=hollow).sort_values("layer")
    positions, is_open = rows["layer"].to_numpy() + shift, rows["hollow"].to_numpy(bool)
    look = {"color": color, "marker": marker, "markersize": 5.5}
    line_look = look | {"linestyle": line, "label": label}
    container = plot_intervals(axis, positions, rows, scale=100, hollow=is_open.all(), **line_look)
    estimate = 100 * rows["estimate"].to_numpy(float)
    look |= {"linestyle": "", "markerfacecolor": "white", "markeredgewidth": 1.5, "zorder": 3}
    axis.plot(positions[is_open], estimate[is_open], **look)
    return container


def name_layers(axis: Axes, n_layers: int) -> None:
    """Give an axis one tick a layer, L0 at the left, and light lines to read values by."""
    axis.set_xticks(range(n_layers), [f"L{layer}" for layer in range(n_layers)])
    axis.set(xlabel="layer (L0 reads the embeddings)", xlim=(-0.5, n_layers - 0.5))
    axis.grid(axis="y")


def name_rows(axis: Axes, names: Sequence[str], **look: object) -> None:
    """Name the rows of a plot of horizontal intervals or bars, the first at the top."""
    axis.set_yticks(range(len(names)), names, **look)
    axis.set_ylim(len(names) - 0.45, -0.55)


def shade_unread_layer(axis: Axes, n_layers: int) -> None:
    """Shade the last layer, where only the [CLS] query reaches the answer."""
    axis.axvspan(n_layers - 1.5, n_layers - 0.5, color=PALE, zorder=-1)
    axis.text(
        n_layers - 0.53, 0.02, "no answer reads this", ha="right", va="bottom", fontsize=7.5,
        color=DARK_GREY, rotation=90, transform=axis.get_xaxis_transform(),
    )  # fmt: skip


def plot_cells(
    axis: Axes,
    values: ArrayLike,
    texts: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    limits: tuple[float, float],
    cmap: str = "RdBu_r",
    fontsize: float = 8,
    framed: np.ndarray | None = None,
    hatched: np.ndarray | None = None,
) -> AxesImage:
    """A grid of coloured cells with a text in each, such as layers downwards and heads across.

    values: (row, column), NaN for an empty cell; texts: the same shape, "" for none. limits: values
    of the first and the last colour. framed: bool (row, column), bold in a frame (significant);
    hatched: bool (row, column), not tested. Returns the image, for a colour bar.
    """
    values, texts = np.asarray(values, dtype=float), np.asarray(texts, dtype=object)
    colors = mpl.colormaps[cmap].with_extremes(bad=PALE)
    image = axis.imshow(values, cmap=colors, vmin=limits[0], vmax=limits[1], aspect="auto")
    framed = np.zeros(values.shape, bool) if framed is None else framed
    hatched = np.zeros(values.shape, bool) if hatched is None else hatched
    for (row, column), text in np.ndenumerate(texts):
        corner, is_framed = (column - 0.5, row - 0.5), framed[row, column]
        if hatched[row, column]:
            look = {"facecolor": PALE, "edgecolor": "#BDBDBD", "hatch": "//", "linewidth": 0}
            axis.add_patch(Rectangle(corner, 1, 1, **look))
        elif text:
            color = pick_ink(image.to_rgba(values[row, column]))
            weight = "bold" if is_framed else "normal"
            look = {"ha": "center", "va": "center", "fontsize": fontsize, "fontweight": weight}
            axis.text(column, row, text, color=color, **look)
        if is_framed:
            corner = (column - 0.46, row - 0.46)
            axis.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="black"))
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.2, alpha=1)
    axis.tick_params(which="both", length=0, labelsize=8.5 if len(columns) <= 8 else 7.5)
    axis.spines[:].set_visible(False)
    return image


def plot_heads_grid(
    axis: Axes, values: np.ndarray, texts: ArrayLike, limits: tuple[float, float], **look: object
) -> AxesImage:
    """`plot_cells` of (layer, head): layers downwards, heads across."""
    n_layers, n_heads = np.shape(values)
    layers, heads = [f"L{i}" for i in range(n_layers)], [f"H{i}" for i in range(n_heads)]
    look = {"fontsize": 9 if n_heads <= 8 else 6} | look
    image = plot_cells(axis, values, texts, layers, heads, limits, **look)
    axis.set(xlabel="head", ylabel="layer")
    return image


def plot_drops(
    axis: Axes,
    effects: pd.DataFrame,
    index: tuple[str, str],
    rows: Sequence[str],
    columns: Sequence[str],
    largest: float,
    fontsize: float = 7.5,
) -> AxesImage:
    """A grid of accuracy lost: cells framed where significant, empty where questions are too few.

    effects: the two columns of `index` (down, across), drop, told, significant.
    """
    told = effects[effects["told"]].astype({"drop": float, "significant": float})
    tables = [told.pivot_table(name, *index) for name in ("drop", "significant")]
    values, significant = (t.reindex(index=rows, columns=columns).to_numpy(float) for t in tables)
    limits = (-max(1.0, largest), max(1.0, largest))
    look = {"framed": significant == 1, "fontsize": fontsize}
    return plot_cells(axis, values, format_cells(values), rows, columns, limits, **look)


def size_heads_grid(n_layers: int, n_heads: int) -> tuple[float, float]:
    """Inches of a figure with two such grids side by side."""
    return 10, max(2.4, 1.1 + 4.3 * n_layers / n_heads * (0.8 if n_heads <= 6 else 1))


def fill_grid(rows: pd.DataFrame, column: str, shape: tuple[int, int]) -> np.ndarray:
    """One column of a table with layer and head as an array (layer, head).

    Cells without a row are NaN, or "" in a column of texts.
    """
    is_number = pd.api.types.is_numeric_dtype(rows[column])
    grid = np.full(shape, np.nan) if is_number else np.full(shape, "", dtype=object)
    grid[rows["layer"], rows["head"]] = rows[column]
    return grid


def pick_ink(color: Sequence[float]) -> str:
    """Black or white, whichever is read better on a colour (RGB or RGBA in [0, 1])."""
    return "white" if np.dot(color[:3], (0.299, 0.587, 0.114)) < 0.45 else "black"


def plot_picture(axis: Axes, picture: Picture, title: str = "", boxes: Boxes = ()) -> None:
    """Draw a picture (PIL or array) with its boxes, in its own pixels."""
    picture = np.asarray(picture)
    height, width = picture.shape[:2]
    look = {"cmap": "gray", "clim": (0, 255)}  # counts for a grey picture only
    axis.imshow(picture, extent=(0, width, height, 0), **look)
    _outline(axis, boxes, white=3.2, black=1.4)
    if title:  # wrapping takes what lies between two dollar signs as mathematics, unless escaped
        axis.set_title(title.replace("$", r"\$"), fontsize=9, wrap=True, parse_math=True)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def plot_map(
    axis: Axes,
    picture: Picture,
    weights: np.ndarray,
    title: str = "",
    boxes: Boxes = (),
    largest: float | None = None,
) -> AxesImage:
    """Lay attention over a picture: weights (rows, columns), the patch grid over all of it.

    largest: the weight that gets the full colour; None: the largest here. Returns the image, for a
    colour bar.
    """
    picture = np.asarray(picture)
    height, width = picture.shape[:2]
    plot_picture(axis, picture.mean(-1) if picture.ndim == 3 else picture, title)
    largest = largest or max(float(np.max(weights)), 1e-12)
    look = {"alpha": 0.72, "vmin": 0, "vmax": largest, "interpolation": "nearest"}
    image = axis.imshow(weights, extent=(0, width, height, 0), cmap="cividis", **look)
    _outline(axis, boxes, white=2)
    return image


def _outline(axis: Axes, boxes: Boxes, **lines: float) -> None:
    """Boxes as outlines: a line of the given width for each named colour, one upon the other."""
    for x, y, width, height in boxes:
        for color, line in lines.items():
            look = {"fill": False, "edgecolor": color, "linewidth": line}
            axis.add_patch(Rectangle((x, y), width, height, **look))
