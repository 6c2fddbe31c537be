"""Figures of notebook 03: attention by layer and head, over pictures, as a flow; faithful maps.

Attention comes as shares in [0, 1] and is drawn in per cent; layers run downwards, heads across.
"""

from collections.abc import Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path

from helpers.figures import style
from helpers.figures.style import GREEN, GREY, IMAGE_COLOR, ORANGE, PINK, SKY, TEXT_COLOR

QUERY_STYLE = {  # name, direction of the mass on the image, colour, marker, line: two cues for each
    "cls": ("[CLS] query", "text query → image key", "#000000", "o", "-"),
    "words": ("words as queries", "text query → image key", TEXT_COLOR, "^", "-."),
    "patches": ("patches as queries", "image query → image key", IMAGE_COLOR, "s", "--"),
}
MEASURES = {  # of `plot_layer_measures`: unit
    "image share": "attention on the image, %",
    "special": "attention on [CLS], [SEP]\nand image CLS, %",
    "entropy": "entropy, % of its maximum\n(100: all keys alike)",
}
MAP_STYLE = {  # colour and marker of each map; controls are grey and differ by their lines
    "raw, last layer": (SKY, "s"), "raw, all layers": (TEXT_COLOR, "o"),
    "value-weighted": (GREEN, "^"), "rollout": (ORANGE, "v"), "relevance": (IMAGE_COLOR, "D"),
}  # fmt: skip
HIT_STYLE = {  # of `plot_hits`, by what stands against the head
    "the head": (TEXT_COLOR, "o", "-"), "same head, another question": (PINK, "v", "-."),
    "best heads, random weights": (GREY, "D", ":"),
}  # fmt: skip
SCORES = {  # of `plot_scoreboard`: title, unit
    "deletion_gain": ("deletion: lost sooner", "points over random order"),
    "insertion_gain": ("insertion: won sooner", "points over random order"),
    "pointing": ("pointing game", "largest weight in the box, %"),
}
FLOW_GAPS = np.array([0, 0.03, 0.06, 0.18, 0.21])  # free height above each group, in units of mass
FLOW_BOTTOM = -1 - FLOW_GAPS[-1]
NODE_WIDTH, FAINT = 0.1, 0.22  # in layers; opacity of what the residual path carries
HATCHES = {"img_cls": "////", "patches": "////", "sep": "...."}  # [SEP] is as grey as [CLS]
FLOW_LOOKS = {
    group: {"facecolor": color, "edgecolor": "white", "hatch": HATCHES.get(group), "linewidth": 0}
    for group, color in style.GROUP_COLORS.items()
}


@style.styled
def plot_layer_measures(layers: pd.DataFrame, baselines: dict[str, float]) -> Figure:
    """Image share, special tokens and entropy (downwards) by layer, for each query group (across).

    layers: rows with measure (of MEASURES), model ("trained"; "untrained": the mean, lowest and
    highest of models with random weights), query, layer, estimate, low, high, reaches_answer (else
    the marker is hollow). baselines: measure -> its value for
    uniform attention.
    """
    n_layers = layers["layer"].max() + 1
    figure, axes = plt.subplots(3, 3, figsize=(10, 8.4), sharey="row")
    for (row, column), axis in np.ndenumerate(axes):
        measure, query = list(MEASURES)[row], list(QUERY_STYLE)[column]
        name, direction, *look = QUERY_STYLE[query]
        panel = layers[(layers["measure"] == measure) & (layers["query"] == query)]
        axis.axhline(100 * baselines[measure], label="uniform attention", **style.BASELINE)
        random = ("untrained", [GREY, "D", ":"], "random weights (lowest to highest model)", 0.05)
        for model, looks, label, shift in (random, ("trained", look, f"trained, {name}", -0.05)):
            rows = panel[panel["model"] == model]
            style.plot_layers(axis, rows, *looks, label, shift, hollow=~rows["reaches_answer"])
        style.name_layers(axis, n_layers)
        axis.tick_params(axis="x", labelsize=10 if n_layers <= 8 else 7)
        axis.set_xlabel("layer" if row == 2 else "")
        unit = f"{MEASURES[measure]}\n({direction})" if row == 0 else MEASURES[measure]
        axis.set_ylabel(unit, fontsize=9)
        axis.set_title(name if row == 0 else "")
    for measure, axis in zip(MEASURES, axes[:, 0], strict=True):  # once a row has all its points
        axis.set_ylim(0, 105 if measure == "entropy" else None)
    look = {"linestyle": "", "marker": "o", "color": "black", "markerfacecolor": "white"}
    axes[0, 2].plot([], [], label="hollow: cannot reach the answer", **look)
    style.place_legend(figure, axes[0], ncols=3)
    title = "Where attention goes and how spread it is, layer by layer (mean over heads)"
    return style.set_title(figure, title)


@style.styled
def plot_heads(grids: dict[str, np.ndarray], undecided: dict[str, np.ndarray]) -> Figure:
    """Excess image share of every head for the [CLS] query, a panel a model.

    grids: title -> (layer, head) shares above uniform, in [-1, 1]; undecided: title -> bool (layer,
    head), the heads whose interval holds 0 (their number is bracketed).
    """
    widest = 100 * max((float(np.nanmax(np.abs(grid))) for grid in grids.values()), default=0) or 1
    size = style.size_heads_grid(*next(iter(grids.values())).shape)
    figure, axes = plt.subplots(1, len(grids), figsize=size, squeeze=False)
    for axis, (name, grid) in zip(axes[0], grids.items(), strict=True):
        texts = style.format_cells(100 * grid, "+", unsure=undecided[name])
        image = style.plot_heads_grid(axis, 100 * grid, texts, (-widest, widest))
        axis.set_title(name)
    label = "image share above uniform, points\n([CLS] query; text query → image key)"
    figure.colorbar(image, ax=axes, label=label)
    title = "Each head's image share for the [CLS] query, against uniform attention"
    return style.set_title(figure, title)


@style.styled
def plot_maps(
    picture: style.Picture,
    weights: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    boxes: style.Boxes = (),
    shared: bool = True,
    label: str = "attention on a patch, % (text query → image key)",
) -> Figure:
    """A grid of maps over one picture, such as layers downwards and heads across.

    weights: (row, column, patch rows, patch columns), shares. shared: one colour scale for all
    panels, else one for each column of panels. label: what the colours say.
    """
    weights, shape = 100 * np.asarray(weights, dtype=float), np.asarray(picture).shape
    n_rows, n_columns = weights.shape[:2]
    width = min(9.0 / n_columns, 1.55 if n_rows > 1 else 2.8)
    height = min(width * shape[0] / shape[1], 11.0 / n_rows)
    size = (width * n_columns + 1, height * n_rows + (0.7 if shared else 1.4))
    largest = np.full(n_columns, weights.max()) if shared else weights.max(axis=(0, 2, 3))
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False)
    for (row, column), axis in np.ndenumerate(axes):
        name = columns[column] if row == 0 else ""
        image = style.plot_map(axis, picture, weights[row, column], name, boxes, largest[column])
        if column == 0:
            axis.set_ylabel(rows[row], rotation=0, ha="right", va="center")
        if not shared and row == n_rows - 1:
            look = {"location": "bottom", "aspect": 12, "shrink": 0.9, "ticks": plt.MaxNLocator(3)}
            figure.colorbar(image, ax=axes[:, column], **look).ax.tick_params(labelsize=8)
    if shared:
        figure.colorbar(image, ax=axes, label=fill(label, 28), shrink=0.8, aspect=30)
    else:
        figure.supxlabel(label, fontsize=10)
    return style.set_title(figure, title)


def flow_masses(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow the answer's [CLS] down through the layers: how much of it comes from each group.

    flow: (layer, query group, key group), 5 groups each in the order of GROUP_NAMES: the mean over
    heads and over the group's queries of the attention on the group's keys. Rows sum to 1, or are
    NaN for a group without tokens. Returns masses (layer + 1, group) and bands (layer, query group,
    key group): masses[l] is what layer l reads, the last row is 1 on [CLS]. With T[l] =
    0.5 flow[l] + 0.5 identity (Abnar and Zuidema 2020: half attention, half residual path),
    bands[l, q, k] = masses[l + 1, q] T[l, q, k] and masses[l] = bands[l].sum(0). Unlike the exact
    rollout, all tokens of a group count as alike. ValueError for another shape, or where a row that
    counts does not sum to 1.
    """
    flow = np.asarray(flow, dtype=float)
    if flow.ndim != 3 or flow.shape[1:] != (5, 5):
        shape = f"but its shape is {flow.shape}"
        raise ValueError(f"flow must be (layer, 5 query groups, 5 key groups), {shape}.")
    mixing = 0.5 * np.where(np.isnan(flow), 0, flow) + 0.5 * np.eye(5)  # nothing from empty groups
    masses, bands = np.zeros((len(flow) + 1, 5)), np.zeros_like(flow)
    masses[-1, 0] = 1
    for layer in reversed(range(len(flow))):
        bands[layer] = masses[layer + 1][:, None] * mixing[layer]
        masses[layer] = bands[layer].sum(0)
        if abs(masses[layer].sum() - 1) > 0.01:
            problem = "a row that counts does not sum to 1; pass shares, not per cent"
            raise ValueError(f"flow of L{layer}: {problem}.")
    return masses, bands


@style.styled
def plot_flow(panels: dict[str, np.ndarray]) -> Figure:
    """Where the answer's [CLS] draws from, a panel a case, as bands through the layers.

    panels: title -> flow (layer, 5, 5), see `flow_masses`; one question, or the mean over the
    questions of a family. A band is as thick as what attention and the residual path carry. The
    tokens that go in are at the left, the answer at the right; each column of nodes sums to 1. A
    band has the colour of the group that it comes from; image groups are hatched, [SEP] is dotted.
    """
    size = (10, 2.9 * len(panels) + 0.9)
    figure, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False)
    for axis, (title, flow) in zip(axes[:, 0], panels.items(), strict=True):
        masses, bands = flow_masses(flow)
        _plot_bands(axis, masses, bands)
        n_layers, text_masses = len(bands), masses[:, :3].sum(1)
        for name, of_stages, height, side, color in (
            ("text", text_masses, 0.03, "bottom", TEXT_COLOR),
            ("image", 1 - text_masses, FLOW_BOTTOM - 0.03, "top", IMAGE_COLOR),
        ):
            look = {"va": side, "color": color}
            axis.text(-0.35, height, name, ha="right", fontweight="bold", **look)
            for stage, mass in enumerate(of_stages):
                axis.text(stage, height, f"{100 * mass:.0f} %", ha="center", fontsize=8.5, **look)
        names = ["\ninput", *(f"L{layer}" for layer in range(n_layers)), "\nanswer"]
        axis.set_xticks([0, *np.arange(n_layers) + 0.5, n_layers], names)
        limits = {"xlim": (-0.65, n_layers + 0.3), "ylim": (FLOW_BOTTOM - 0.15, 0.15)}
        axis.set(**limits, yticks=[], title=fill(title, 95))
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    axes[-1, 0].set_xlabel("layer: what it reads at its left, what it hands on at its right")
    handles = [Patch(**FLOW_LOOKS[group], label=name) for group, name in style.GROUP_NAMES.items()]
    handles.append(Patch(facecolor=TEXT_COLOR, alpha=FAINT, label="pale: residual path"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    halves = "half attention, mean over heads; half residual path"
    return style.set_title(figure, f"Where the answer's [CLS] draws from ({halves})")


def _plot_bands(axis: Axes, masses: np.ndarray, bands: np.ndarray) -> None:
    """Nodes as high as their mass, text above and image below, and the bands between them."""
    looks = list(FLOW_LOOKS.values())
    tops = -(np.cumsum(masses, axis=1) - masses + FLOW_GAPS)
    for layer, band in enumerate(bands):  # (query, key)
        left = tops[layer] - (np.cumsum(band, axis=0) - band)
        right = tops[layer + 1][:, None] - (np.cumsum(band, axis=1) - band)
        for query, key in np.argwhere(band > 0):
            ends, thick = (left[query, key], right[query, key]), band[query, key]
            if query == key:  # half of what the query had was its own; the rest is attention
                residual = 0.5 * masses[layer + 1, query]
                look = {"facecolor": looks[key]["facecolor"], "alpha": FAINT, "linewidth": 0}
                _plot_band(axis, layer, *ends, residual, **look)
                ends, thick = (ends[0] - residual, ends[1] - residual), thick - residual
            _plot_band(axis, layer, *ends, thick, **looks[key], alpha=0.6)
    for (stage, group), mass in np.ndenumerate(masses):
        if mass > 0:
            corner = (stage - NODE_WIDTH / 2, tops[stage, group] - mass)
            axis.add_patch(Rectangle(corner, NODE_WIDTH, mass, **looks[group]))


def _plot_band(
    axis: Axes, layer: int, left: float, right: float, thickness: float, **look: object
) -> None:
    """A band through one layer; its upper edge runs from height `left` to height `right`."""
    start, middle, end = layer + NODE_WIDTH / 2, layer + 0.5, layer + 1 - NODE_WIDTH / 2
    above = [(start, left), (middle, left), (middle, right), (end, right)]
    below = [(x, y - thickness) for x, y in reversed(above)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    axis.add_patch(PathPatch(Path([*above, *below, above[0]], codes), **look))


@style.styled
def plot_hits(table: pd.DataFrame, chance: float, by_object: float) -> Figure:
    """How often the favoured patch lies in the box asked about: each layer's best head.

    table: rows with layer, against (of HIT_STYLE), estimate, low, high, and label (the head).
    chance: share of patches in the box; by_object: of a random object of the picture, or NaN.
    """
    figure, axis = plt.subplots(figsize=(10, 3.9))
    axis.axhline(100 * chance, label="chance: share of patches in the box", **style.BASELINE)
    look = style.BASELINE | {"linestyle": ":"}
    axis.axhline(100 * by_object, label="chance: a random object of the picture", **look)
    for number, (against, looks) in enumerate(HIT_STYLE.items()):
        rows = table[table["against"] == against]
        style.plot_layers(axis, rows, *looks, against, 0.05 * (number - 1))
    for row in table[table["against"] == "the head"].itertuples():
        top = (row.layer, 100 * np.fmax(row.estimate, row.high))
        box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "linewidth": 0, "alpha": 0.8}
        look = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "bbox": box}
        axis.annotate(row.label.replace(", ", "\n"), top, (0, 5), **look)
    style.name_layers(axis, table["layer"].max() + 1)
    axis.set(ylabel="favoured patch in the box, %\n(text query → image key)", ylim=(0, 110))
    style.place_legend(figure, [axis], fontsize=9)
    title = "The best head of each layer, chosen on one half of the images, scored on the other"
    return style.set_title(figure, title)


def style_map(order: str) -> dict:
    """Colour, marker and line of a map, or of a control."""
    if order in MAP_STYLE:
        color, marker = MAP_STYLE[order]
        return {"color": color, "marker": marker, "linestyle": "-"}
    return {"color": GREY, "marker": "x", "linestyle": "--"}


@style.styled
def plot_curves(table: pd.DataFrame) -> Figure:
    """How the answer fares while patches go (left) or come (right), the most important first.

    table: order (the map, a line each), kind ("deletion", "insertion"), fraction in [0, 1],
    estimate, low, high (probabilities).
    """
    orders = list(table["order"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True)
    for axis, kind, verb in zip(axes, ("deletion", "insertion"), ("removed", "kept"), strict=True):
        for number, order in enumerate(orders):
            rows = table[(table["order"] == order) & (table["kind"] == kind)]
            share = 100 * rows["fraction"] + 0.6 * (number - len(orders) / 2)  # bars side by side
            look = {"label": order, "elinewidth": 0.9, "capsize": 0} | style_map(order)
            style.plot_intervals(axis, share, rows, scale=100, **look)
        axis.set(xlabel=f"patches {verb}, % (the most important first)", title=kind, xlim=(-3, 103))
        axis.grid(axis="y")
    axes[0].set(ylabel="probability of the\nintact model's answer, %", ylim=(0, 103))
    style.place_legend(figure, axes, ncols=4, fontsize=9)
    return style.set_title(figure, "Does the answer need the patches that a map calls important?")


@style.styled
def plot_scoreboard(table: pd.DataFrame) -> Figure:
    """Maps downwards, a panel for each measure of SCORES: points with intervals, chance dashed.

    table: order (the map), measure, estimate, low, high (shares in [0, 1]), and chance.
    """
    table = table[table["measure"].isin(SCORES)].dropna(subset=["estimate"])
    best_first = table[table["measure"] == "deletion_gain"].sort_values("estimate", ascending=False)
    orders, measures = list(best_first["order"]), [m for m in SCORES if m in set(table["measure"])]
    size = (10, 1.5 + 0.36 * len(orders))
    figure, axes = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
    for axis, measure in zip(axes[0], measures, strict=True):
        title, unit = SCORES[measure]
        rows = table[table["measure"] == measure]
        for order, row in rows.groupby("order"):
            color, marker, _ = style_map(order).values()
            look = {"horizontal": True, "color": color, "marker": marker}
            style.plot_intervals(axis, [orders.index(order)], row, scale=100, **look)
        axis.axvline(100 * rows["chance"].mean(), **style.BASELINE)
        axis.set(title=title, xlabel=unit)
        axis.grid(axis="x")
    style.name_rows(axes[0, 0], orders)
    title = "Which map finds the patches that the answer needs? (dashed: chance)"
    return style.set_title(figure, title)
