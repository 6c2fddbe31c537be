"""Where a figure's look is set: colours, matplotlib's settings, and four primitives.

`draw_grids`: coloured cells, such as layers downwards and heads across. `draw_forest`: names
downwards, intervals across. `draw_lines`: lines over layers or over numbers. `draw_maps`: pictures,
and maps over them. Each is a figure with a panel for each value of a column, or for each picture.

Intervals come computed from room stats and are drawn by matplotlib: seaborn's functions compute
their own, and seaborn.objects (0.13.2) calls pandas in a way that pandas 4 will refuse.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import wraps
from textwrap import fill

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import (
    Colormap,
    LinearSegmentedColormap,
    Normalize,
    TwoSlopeNorm,
    to_rgb,
)
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL.Image import Image

Picture = Image | np.ndarray
Boxes = Sequence[Sequence[float]]  # [x, y, width, height] each, in pixels
Looks = Mapping[str, tuple]  # of a group: colour, marker, and a line's style where it has one
Labels = Mapping[str, tuple[str, str]]  # of a panel: its title, and the unit of its values
Baselines = Mapping[str, float | str]  # their name: where they stand, or the column that says so

# Okabe-Ito; grey for baselines
TEXT_COLOR, IMAGE_COLOR, GREY = "#0072B2", "#D55E00", "#8C8C8C"
GREEN, PINK, SKY, ORANGE = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
PALE = "#EFEFEF"  # bands and empty cells
COLORS = (GREEN, PINK, ORANGE, SKY, "#333333", "#882255", "#A6A000", TEXT_COLOR, IMAGE_COLOR, GREY)
GROUP_COLORS = {  # of tokens
    "[CLS]": "#5A5A5A", "words": TEXT_COLOR, "[SEP]": "#9A9A9A", "image CLS": ORANGE,
    "patches": IMAGE_COLOR,
}  # fmt: skip
BASELINE = {"color": GREY, "linestyle": "--", "linewidth": 1.2, "zorder": 0}
CLEAR = LinearSegmentedColormap.from_list(  # of a map: nothing hides nothing of the picture
    "clear", [(*to_rgb(IMAGE_COLOR), opacity) for opacity in (0, 0.9)]
)
STYLE = {
    "figure.dpi": 100, "savefig.dpi": 110, "figure.constrained_layout.use": True, "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10.5,
    "axes.titlelocation": "left", "grid.alpha": 0.25, "legend.frameon": False,
    "legend.fontsize": 9, "image.cmap": "cividis", "errorbar.capsize": 2, "lines.markersize": 5,
    "text.parse_math": False,  # a question may hold two dollar signs
}  # fmt: skip


def styled(title: str = "") -> Callable:
    """Decorate a plotting function: the project's look, a title over all panels if there is one.

    The function then takes another `title` as well. pyplot lets go of the figure, so that a
    notebook shows it once and memory stays flat.
    """

    def decorate(plot: Callable[..., Figure]) -> Callable[..., Figure]:
        @wraps(plot)
        def plot_with_style(*args: object, title: str = title, **kwargs: object) -> Figure:
            with mpl.rc_context(STYLE):
                figure = plot(*args, **kwargs)
                if title:
                    set_title(figure, title)
            plt.close(figure)
            return figure

        return plot_with_style

    return decorate


def set_title(figure: Figure, title: str) -> Figure:
    """Give a whole figure its title, at the left, in lines of at most 95 characters."""
    figure.suptitle(fill(title, 95), x=0.01, ha="left", fontsize=11)
    return figure


def make_panels(
    table: pd.DataFrame,
    column: str | None,
    height: float,
    across: int | None = None,
    **grid: object,
) -> tuple[Figure, list[tuple[Axes, str, pd.DataFrame]]]:
    """A figure with a panel for each value of a column (None: one): axis, value and its rows.

    height: of a row of panels, in inches; across: panels in a row (None: all).
    """
    groups = [("", table)] if column is None else list(table.groupby(column, sort=False))
    across = max(1, min(across or len(groups), len(groups)))
    n_rows = max(1, -(-len(groups) // across))
    size = (10, height * n_rows + 0.7)
    figure, axes = plt.subplots(n_rows, across, figsize=size, squeeze=False, **grid)
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    panels = zip(axes.flat, groups, strict=False)
    return figure, [(axis, name, rows) for axis, (name, rows) in panels]


def plot_baselines(
    axis: Axes, rows: pd.DataFrame, baselines: Baselines | None, upright: bool = False
) -> None:
    """Up to two grey lines across an axis, dashed and dotted; rows: of the axis."""
    for (label, at), line in zip((baselines or {}).items(), ("--", ":"), strict=False):
        at = rows[at].mean() if isinstance(at, str) else at
        draw = axis.axvline if upright else axis.axhline
        draw(at, label=label, **BASELINE | {"linestyle": line})


def place_legend(figure: Figure, axes: Iterable[Axes], ncols: int = 5) -> None:
    """One legend below the figure for all axes, each label once."""
    entries = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        look = {"loc": "outside lower center", "ncols": min(len(entries), ncols)}
        figure.legend(entries.values(), entries, **look)


def choose_looks(names: Iterable[str]) -> Looks:
    """A colour and a marker for each name, the same in all panels; what is random is grey."""
    looks = dict(zip(dict.fromkeys(names), zip(COLORS, "osD^vX<>P*", strict=True), strict=False))
    return {name: (GREY, "d", ":") if "random" in name else look for name, look in looks.items()}


def format_cells(
    values: ArrayLike, sign: str = "", digits: int = 0, unsure: ArrayLike = False
) -> np.ndarray:
    """Numbers as texts: a true minus sign, no -0, "" for NaN.

    sign: "+" writes it for positive numbers. unsure: bools, these stand in brackets.
    """

    def say(value: float, is_unsure: bool) -> str:
        text = f"{value:{sign}.{digits}f}"
        text = text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")
        return "" if np.isnan(value) else f"({text})" if is_unsure else text

    return np.vectorize(say, otypes=[object])(np.asarray(values, dtype=float), unsure)


def name_with_n(table: pd.DataFrame, column: str) -> pd.Series:
    """The names in a column with the most questions behind a number: "what (n = 350)"."""
    most = table.groupby(column, observed=True)["n"].max()
    names = {name: f"{name} (n = {n:,.0f})" for name, n in most.items()}
    return table[column].astype(object).map(names)


def plot_intervals(
    axis: Axes,
    rows: pd.DataFrame,
    along: str,
    hue: str | None = None,
    looks: Looks | None = None,
    value: str = "estimate",
    scale: float = 1,
    horizontal: bool = False,
    spread: float = 0,
    hollow: str | None = None,
    **look: object,
) -> None:
    """Points with their 95 % intervals, a colour and a marker for each value of `hue`.

    rows: columns `along` (the position), `value`, low, high (these three times `scale`). No bar
    where the interval is NaN. looks: of each value of hue.
    horizontal: the values run along x. spread: from the first group's points to the last's, which
    else hide each other. hollow: a column of bools; those markers are white inside.
    """
    groups = list(rows[hue].unique()) if hue else [None]
    for number, group in enumerate(groups):
        own = rows[rows[hue] == group] if hue else rows
        shift = spread * (number / (len(groups) - 1) - 0.5) if len(groups) > 1 else 0
        at = own[along].to_numpy(float) + shift
        estimate, low, high = (scale * own[name].to_numpy(float) for name in (value, "low", "high"))
        bars = np.nan_to_num([estimate - low, high - estimate]).clip(min=0)
        names = zip(("color", "marker", "linestyle"), (looks or {}).get(group, ()), strict=False)
        drawn = {"marker": "o", "linestyle": "", "linewidth": 1.2, "color": TEXT_COLOR}
        drawn |= dict(names) | look | ({"label": group} if hue else {})
        is_open = own[hollow].to_numpy(bool) if hollow else np.zeros(len(own), dtype=bool)
        drawn |= {"markerfacecolor": "white"} if len(own) and is_open.all() else {}
        places = (estimate, at) if horizontal else (at, estimate)
        line = axis.errorbar(*places, **{"xerr" if horizontal else "yerr": bars}, **drawn)[0]
        white = {"marker": drawn["marker"], "color": drawn["color"], "linestyle": ""}
        white |= {"markerfacecolor": "white", "zorder": line.get_zorder() + 1}
        axis.plot(places[0][is_open], places[1][is_open], **white)


def plot_dots(axis: Axes, rows: pd.DataFrame) -> None:
    """The numbers of single models, in the columns by_model and random, around their `row`."""
    for label, column, shift, look in (
        ("each model", "by_model", -0.22, {"color": IMAGE_COLOR, "alpha": 0.55, "s": 18}),
        ("random weights", "random", 0.22, {"color": GREY, "marker": "|", "s": 45}),
    ):
        points = rows.explode(column).dropna(subset=[column])
        if len(points):
            axis.scatter(points[column], points["row"] + shift, label=label, linewidths=1, **look)


@styled()
def draw_forest(
    table: pd.DataFrame,
    column: str,
    xlabel: str = "",
    panel: str | None = None,
    labels: Labels | None = None,
    baselines: Baselines | None = None,
    across: int | None = None,
    hue: str | None = None,
    **look: object,
) -> Figure:
    """Names downwards, points with intervals across, a panel for each value of the column `panel`.

    table: the names in `column`, in their order, estimate, low, high: see `plot_intervals`; and
    perhaps by_model and random: see `plot_dots`. Panels that have a name in common share all.
    labels: of each panel, else its value and `xlabel`. across: panels in a row.
    """
    names, groups = table[column].unique(), table.groupby(panel or (lambda row: ""))[column]
    sharey = groups.nunique().sum() > len(names)
    height = 0.9 + 0.42 * (len(names) if sharey else groups.nunique().max())
    figure, panels = make_panels(table, panel, height, across, sharey=sharey)
    look = {"looks": choose_looks(table[hue]) if hue else None, "spread": 0.4} | look
    for axis, name, rows in panels:
        plot_baselines(axis, rows, baselines, upright=True)
        shown = names if sharey else rows[column].unique()
        rows = rows.assign(row=pd.Index(shown).get_indexer(rows[column]))
        if "by_model" in rows:
            plot_dots(axis, rows)
        plot_intervals(axis, rows, "row", hue, horizontal=True, **look)
        title, unit = (labels or {}).get(name, (name, xlabel))
        axis.set(title=title, xlabel=unit, ylim=(len(shown) - 0.45, -0.55))
        axis.set_yticks(range(len(shown)), shown)
        axis.grid(axis="x")
    place_legend(figure, figure.axes)
    return figure


@styled()
def draw_lines(
    table: pd.DataFrame,
    along: str,
    hue: str,
    labels: tuple[str, str],
    panel: str | None = None,
    baselines: Baselines | None = None,
    looks: Looks | None = None,
    bands: Collection[str] = (),
    limits: tuple[float | None, float | None] = (0, 103),
    height: float = 3.9,
    across: int | None = None,
    ncols: int = 4,
    sharey: bool | str = True,
    **look: object,
) -> Figure:
    """Lines with intervals, one for each value of `hue`, a panel for each value of `panel`.

    table: columns `along` (layers from L0, or a number), `hue`, estimate, low, high; see
    `plot_intervals`. labels: of x and y. looks: of some values of hue, in place of the usual ones.
    bands: values of hue that are drawn as a grey band from low to high. limits: of y. height: of a
    row of panels, in inches. ncols: of the legend.
    """
    names = [name for name in table[hue].unique() if name not in bands]
    place = pd.Index(names).get_indexer  # the table's order is that of the legend
    looks = {name: (*own, "-")[:3] for name, own in (choose_looks(names) | (looks or {})).items()}
    figure, panels = make_panels(table, panel, height, across, sharey=sharey)
    for axis, name, rows in panels:
        rows = rows.sort_values(along).sort_values(hue, key=place, kind="stable")
        for band in bands:
            ends = rows.loc[rows[hue] == band, [along, "low", "high"]].to_numpy(float).T
            filled = {"color": GREY, "alpha": 0.35, "linewidth": 0, "zorder": -1, "label": band}
            axis.fill_between(ends[0], *(look.get("scale", 1) * ends[1:]), **filled)
        plot_baselines(axis, rows, baselines)
        plot_intervals(axis, rows[~rows[hue].isin(bands)], along, hue, looks, **look)
        axis.set(title=name, xlabel=labels[0], ylim=limits)
        axis.grid(axis="y")
        if along == "layer":
            n_layers = int(rows["layer"].max()) + 1
            axis.set_xticks(range(n_layers), [f"L{layer}" for layer in range(n_layers)])
            axis.set_xlim(-0.5, n_layers - 0.5)
            axis.tick_params(axis="x", labelsize=10 if n_layers <= 8 else 7.5)
    figure.axes[0].set_ylabel(labels[1])
    place_legend(figure, figure.axes, ncols)
    return figure


def plot_grid(
    axis: Axes,
    table: pd.DataFrame | np.ndarray,
    limits: tuple[float, float],
    texts: ArrayLike | None = None,
    framed: ArrayLike = False,
    cmap: str | Colormap = "RdBu_r",
) -> ScalarMappable:
    """A grid of coloured cells with a text in each: seaborn's heatmap with this project's marks.

    table: numbers, its index names the rows and its columns the columns, or an array (layer, head);
    NaN cells (not tested, or too few questions) are hatched. limits: values of the first and the
    last colour. texts: (row, column), else the numbers; framed: bools of that shape (significant).
    Returns what a colour bar needs.
    """
    if not isinstance(table, pd.DataFrame):
        table = pd.DataFrame(table).rename(index="L{}".format, columns="H{}".format)
    texts = format_cells(table) if texts is None else texts
    n_columns = table.shape[1]
    look = {"annot_kws": {"fontsize": 9 if n_columns <= 8 else 7.5}, "linewidths": 1.2}
    look |= {"xticklabels": True, "yticklabels": True, "cbar": False, "fmt": "", "cmap": cmap}
    low, high = limits
    look["norm"] = TwoSlopeNorm(0, low, high) if low < 0 < high else Normalize(low, high)
    sns.heatmap(table, vmin=low, vmax=high, annot=texts, ax=axis, **look)
    axis.patch.set(facecolor=PALE, hatch="//", edgecolor="#BDBDBD")
    for row, column in np.argwhere(np.broadcast_to(framed, table.shape)):
        frame = {"fill": False, "edgecolor": "black", "linewidth": 1.1}
        axis.add_patch(Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, **frame))
    axis.tick_params(length=0, labelsize=9 if n_columns <= 8 else 7.5)
    axis.tick_params(labelrotation=0)
    axis.set(xlabel="", ylabel="")
    return axis.collections[0]


def arrange(rows: pd.DataFrame, down: str, across: str, value: str) -> pd.DataFrame:
    """One column of a table as a grid; names in order of appearance, NaN where there is no row."""
    cells = rows.set_index([rows[down].astype(object), rows[across].astype(object)])[value]
    downwards, sideways = rows[down].unique(), rows[across].unique()
    cells = cells.reindex(pd.MultiIndex.from_product([downwards, sideways])).to_numpy()
    return pd.DataFrame(cells.reshape(len(downwards), -1), downwards, sideways)


@styled()
def draw_grids(
    table: pd.DataFrame,
    value: str,
    down: str = "layer",
    across: str = "head",
    panel: str | None = None,
    label: str = "",
    limits: tuple[float, float] | None = None,
    framed: str | None = None,
    cmap: str | Colormap = "RdBu_r",
    n_across: int | None = None,
    row_height: float = 0.3,
) -> Figure:
    """A figure of grids side by side, one for each value of the column `panel`: `plot_grid`.

    table: numbers in the column `value`, their names in `down` and `across`, layers and heads by
    their number; perhaps text (in the cells, else the numbers). framed: a column of bools. label:
    of the colours, which go from blue over white at 0 to red. n_across: grids in a row.
    """
    if (down, across) == ("layer", "head"):
        names = {"layer": "L" + table["layer"].astype(str), "head": "H" + table["head"].astype(str)}
        table = table.assign(**names)
    if "text" not in table:
        table = table.assign(text=format_cells(table[value]))
    largest = np.nanmax([*table[value].abs(), 1e-12])
    widths = 1.2 + table.groupby(panel or (lambda row: ""), sort=False)[across].nunique()
    grid = {"width_ratios": widths[:n_across], "sharey": True}
    height = 0.8 + row_height * table[down].nunique()
    figure, panels = make_panels(table, panel, height, n_across, **grid)
    for axis, name, rows in panels:
        values, texts = (arrange(rows, down, across, column) for column in (value, "text"))
        frames = arrange(rows, down, across, framed).eq(True) if framed else False
        drawn = plot_grid(axis, values, limits or (-largest, largest), texts, frames, cmap)
        axis.set_title(name)
    if label:
        figure.colorbar(drawn, ax=figure.axes, label=label, pad=0.01)
    return figure


def plot_map(
    axis: Axes,
    picture: Picture,
    weights: np.ndarray | None = None,
    title: str = "",
    boxes: Boxes = (),
    largest: float | None = None,
) -> ScalarMappable:
    """Draw a picture with its boxes, in its own pixels; with weights over it, it is grey.

    weights: (rows, columns), the patch grid. largest: the weight that gets the full colour; None:
    the largest here. Returns what a colour bar needs.
    """
    picture = np.asarray(picture)
    height, width = picture.shape[:2]
    if weights is not None and picture.ndim == 3:
        picture = picture.mean(-1)
    look = {"cmap": "gray", "clim": (0, 255)}  # counts for a grey picture only
    drawn = axis.imshow(picture, extent=(0, width, height, 0), **look)
    if weights is not None:
        look = {"vmin": 0, "vmax": largest or max(float(np.max(weights)), 1e-12)}
        look |= {"cmap": CLEAR, "interpolation": "nearest"}
        drawn = axis.imshow(weights, extent=(0, width, height, 0), **look)
    for x, y, wide, high in boxes:
        for color, line in (("white", 3.2), ("black", 1.4)):
            frame = {"fill": False, "edgecolor": color, "linewidth": line}
            axis.add_patch(Rectangle((x, y), wide, high, **frame))
    if title:  # wrapping takes what lies between two dollar signs as mathematics, unless escaped
        axis.set_title(title.replace("$", r"\$"), fontsize=9, wrap=True, parse_math=True)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return drawn


@styled()
def draw_maps(
    cards: Sequence[dict],
    across: int,
    label: str = "",
    shared: bool = True,
    above: bool = False,
    most: float = 3.4,
) -> Figure:
    """Pictures side by side, and maps over pictures: `plot_map`.

    cards: dicts with picture, and perhaps weights (rows, columns; shares in [0, 1]), boxes, title,
    name (at the left) and caption (below). label: what the colours say. shared: one scale of
    colours for all maps, else one for each column of panels. above: the picture above its map.
    most: inches that a picture is wide.
    """
    if above:
        pictures = [card | {"weights": None} for card in cards]
        cards = [*pictures, *(card | {"title": ""} for card in cards)]
    sides, every = np.shape(cards[0]["picture"]), range(len(cards))
    wide, room = min(9 / across, most), 0.6 if "caption" in cards[0] and not above else 0.05
    height = min(wide * sides[0] / sides[1] + room, 11 * across / len(cards))
    figure, panels = make_panels(pd.DataFrame({"card": every}), "card", height, across)
    figure.set_figwidth(wide * across + 1)
    axes = [axis for axis, *_ in panels]
    for scale in [every] if shared else [every[column::across] for column in range(across)]:
        maps = {number: cards[number].get("weights") for number in scale}
        maps = {number: 100 * np.asarray(each) for number, each in maps.items() if each is not None}
        largest = max((float(each.max()) for each in maps.values()), default=0)
        for number in scale:
            axis, card = axes[number], cards[number]
            shown = card.get("title", ""), card.get("boxes", ())
            drawn = plot_map(axis, card["picture"], maps.get(number), *shown, largest)
            axis.set_ylabel(card.get("name", ""), rotation=0, ha="right", va="center")
            axis.set_xlabel(card.get("caption", ""), fontsize=8)
        look = {"location": "bottom", "aspect": 12, "ticks": plt.MaxNLocator(3)}
        if shared:
            look = {"label": fill(label, 20), "shrink": 0.8, "aspect": 30, "pad": 0.01}
        if maps:
            figure.colorbar(drawn, ax=[axes[number] for number in scale], **look)
    if not shared:
        figure.supxlabel(label, fontsize=10)
    return figure
