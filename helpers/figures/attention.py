"""Figures of notebook 03: attention by layer and head, over the picture, and as a flow from group to group.

Functions take arrays and tables (never models) and return the figure. Attention comes as shares in [0, 1] and
is drawn in per cent; layers run downwards and heads across in grids.
"""

from collections.abc import Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path

from helpers.figures.style import (
    GREY,
    GROUP_COLORS,
    GROUP_NAMES,
    IMAGE_COLOR,
    TEXT_COLOR,
    close_figure,
    figure_style,
    measure_bars,
    name_layers,
    show_heatmap,
)  # fmt: skip

QUERY_STYLE = {  # name, direction of the mass on the image, colour, marker, line: two cues for each
    "cls": ("[CLS] query", "text query → image key", "#000000", "o", "-"),
    "words": ("words as queries", "text query → image key", TEXT_COLOR, "^", "-."),
    "patches": ("patches as queries", "image query → image key", IMAGE_COLOR, "s", "--"),
}
TITLE_WIDTH = 95  # characters a line: questions of VQAv2 can be long
FLOW_GAPS = np.array([0, 0.03, 0.06, 0.18, 0.21])  # free height above each group, in units of mass
NODE_WIDTH, PALE = 0.1, 0.22  # of the flow: in layers; opacity of what the residual path carries
HATCHES = {
    "img_cls": "////",
    "patches": "////",
    "sep": "....",
}  # [SEP] is as grey as a band of [CLS]
FLOW_LOOKS = {
    group: {"facecolor": color, "edgecolor": "white", "hatch": HATCHES.get(group)}
    for group, color in GROUP_COLORS.items()
}


def plot_runs(picture, runs: dict[str, np.ndarray], title: str, boxes=()):
    """The same heatmap from several runs on the same input, side by side.

    runs: title of the panel -> attention on the patches (rows, columns), one colour scale for all.
    """
    runs = {name: 100 * np.asarray(weights) for name, weights in runs.items()}
    largest = max(float(weights.max()) for weights in runs.values())
    with figure_style():
        figure, axes = plt.subplots(1, len(runs), figsize=(10, 3.1), squeeze=False)
        for axis, (name, weights) in zip(axes[0], runs.items(), strict=True):
            artist = show_heatmap(axis, picture, weights, name, boxes, largest)
        figure.colorbar(
            artist, ax=axes, shrink=0.8, label="attention on a patch, %\n(text query → image key)"
        )
        figure.suptitle(fill(title, TITLE_WIDTH), x=0.01, ha="left", fontsize=11)
    return close_figure(figure)


def draw_layers(
    axis, rows: pd.DataFrame, color: str, marker: str, line: str, label: str, shift=0.0
) -> None:
    """One line over the layers with 95 % intervals; a layer that the answer cannot depend on is hollow.

    rows: one row a layer with layer, estimate, low, high (shares) and reaches_answer. An absent interval draws
    no bar. shift: to the right, in layers, so that neighbouring bars do not hide each other.
    """
    rows = rows.sort_values("layer")
    place, estimate = rows["layer"].to_numpy() + shift, 100 * rows["estimate"].to_numpy(float)
    spread = measure_bars(estimate, 100 * rows["low"], 100 * rows["high"])
    axis.errorbar(
        place, estimate, yerr=spread, color=color, linestyle=line, capsize=2.5, linewidth=1.4
    )
    alive = rows["reaches_answer"].to_numpy(bool)
    axis.plot(
        place[alive],
        estimate[alive],
        linestyle="",
        marker=marker,
        color=color,
        markersize=6,
        label=label,
    )
    axis.plot(place[~alive], estimate[~alive], linestyle="", marker=marker, color=color, markersize=7,
              markerfacecolor="white", markeredgewidth=1.5, zorder=3)  # fmt: skip


def draw_baseline(axis, value: float, label: str) -> None:
    """A dashed grey line at a share."""
    axis.axhline(
        100 * value, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2, label=label, zorder=1
    )


def plot_layers(layers: pd.DataFrame, baselines: dict[str, float]):
    """Image share, special tokens and entropy (downwards) by layer, for each group of queries (across).

    layers: rows with measure ("image share", "special", "entropy"), model ("trained", "untrained"), query, layer,
    estimate, low, high, reaches_answer. baselines: measure -> its value for uniform attention.
    """
    units = {
        "image share": "attention on the image, %",
        "special": "attention on [CLS], [SEP]\nand image CLS, %",
        "entropy": "entropy, % of its maximum\n(100: all keys alike)",
    }
    with figure_style():
        figure, axes = plt.subplots(3, 3, figsize=(10, 8.4), sharey="row")
        for line, (measure, unit) in zip(axes, units.items(), strict=True):
            for axis, (query, (name, direction, *look)) in zip(
                line, QUERY_STYLE.items(), strict=True
            ):
                rows = layers[(layers["measure"] == measure) & (layers["query"] == query)]
                draw_baseline(axis, baselines[measure], "uniform attention")
                untrained, trained = (
                    rows[rows["model"] == model] for model in ("untrained", "trained")
                )
                draw_layers(axis, untrained, GREY, "D", ":", "untrained twin", 0.05)
                draw_layers(axis, trained, *look, f"trained, {name}", -0.05)
                name_layers(axis, layers["layer"].max() + 1)
                axis.tick_params(axis="x", labelsize=10 if len(trained) <= 8 else 7)
                axis.set_xlabel("layer" if measure == "entropy" else "")
                axis.set_ylabel(
                    f"{unit}\n({direction})" if measure == "image share" else unit, fontsize=9
                )
                axis.grid(axis="y", alpha=0.25)
                if measure == "image share":
                    axis.set_title(name)
            line[0].set_ylim(0, 105 if measure == "entropy" else None)
        found = {}
        for axis in axes[0]:
            found |= {
                label: handle
                for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
            }
        found["hollow: cannot reach the answer"] = plt.Line2D(
            [], [], linestyle="", marker="o", color="black", markerfacecolor="white"
        )
        figure.legend(found.values(), found, loc="outside lower center", ncols=3)
        figure.suptitle(
            "Where attention goes and how spread it is, layer by layer (mean over heads)",
            x=0.01,
            ha="left",
        )
    return close_figure(figure)


def plot_heads(grids: dict[str, np.ndarray], undecided: dict[str, np.ndarray]):
    """Excess image share of every head for the [CLS] query: layers downwards, heads across, a panel a model.

    grids: title -> (layer, head) shares above uniform, in [-1, 1]; undecided: title -> bool (layer, head), the
    heads whose interval holds 0 (their number is bracketed).
    """
    widest = 100 * max((float(np.nanmax(np.abs(grid))) for grid in grids.values()), default=0) or 1
    with figure_style():
        n_layers, n_heads = next(iter(grids.values())).shape
        size = (10, max(2.4, 1.1 + 4.3 * n_layers / n_heads * (0.8 if n_heads <= 6 else 1)))
        figure, axes = plt.subplots(1, len(grids), figsize=size, squeeze=False)
        for axis, (name, grid) in zip(axes[0], grids.items(), strict=True):
            artist = axis.imshow(
                100 * grid, cmap="RdBu_r", vmin=-widest, vmax=widest, aspect="auto"
            )
            for (layer, head), value in np.ndenumerate(100 * grid):
                text = "0" if abs(value) < 0.5 else f"{value:+.0f}".replace("-", "−")
                text = f"({text})" if undecided[name][layer, head] else text
                color = "white" if abs(value) > 0.6 * widest else "black"
                axis.text(
                    head,
                    layer,
                    text,
                    ha="center",
                    va="center",
                    color=color,
                    fontsize=9 if n_heads <= 6 else 6,
                )
            axis.set_xticks(range(n_heads), [f"H{head}" for head in range(n_heads)])
            axis.set_yticks(range(n_layers), [f"L{layer}" for layer in range(n_layers)])
            axis.tick_params(labelsize=10 if n_heads <= 8 else 7.5)
            axis.set(xlabel="head", ylabel="layer", title=name)
            axis.spines[:].set_visible(False)
        label = "image share above uniform, points\n([CLS] query; text query → image key)"
        figure.colorbar(artist, ax=axes, label=label)
        figure.suptitle(
            "Each head's image share for the [CLS] query, against uniform attention",
            x=0.01,
            ha="left",
        )
    return close_figure(figure)


def plot_maps(picture, weights: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, boxes=(),
              shared: bool = True, label="attention on a patch, % (text query → image key)"):  # fmt: skip
    """A grid of heatmaps over one picture, such as layers downwards and heads across.

    weights: (row, column, patch rows, patch columns), shares. shared: one colour scale for all panels, else one
    for each column of panels. label: what the colours say.
    """
    weights, shape = 100 * np.asarray(weights, dtype=float), np.asarray(picture).shape
    n_rows, n_columns = weights.shape[:2]
    panel = min(9.0 / n_columns, 1.55)
    high = min(panel * shape[0] / shape[1], 11.0 / n_rows)
    largest = np.full(n_columns, weights.max()) if shared else weights.max(axis=(0, 2, 3))
    with figure_style():
        figure, axes = plt.subplots(
            n_rows,
            n_columns,
            figsize=(panel * n_columns + 1, high * n_rows + (0.7 if shared else 1.4)),
            squeeze=False,
        )
        for (row, column), axis in np.ndenumerate(axes):
            name = columns[column] if row == 0 else ""
            artist = show_heatmap(axis, picture, weights[row, column], name, boxes, largest[column])
            if column == 0:
                axis.set_ylabel(rows[row], rotation=0, ha="right", va="center")
            if not shared and row == n_rows - 1:
                bar = figure.colorbar(
                    artist, ax=axes[:, column], location="bottom", aspect=12, shrink=0.9
                )
                bar.ax.tick_params(labelsize=8)
                bar.locator = plt.MaxNLocator(3)
                bar.update_ticks()
        if shared:
            figure.colorbar(artist, ax=axes, label=label, shrink=0.7, aspect=30)
        else:
            figure.supxlabel(label, fontsize=10)
        figure.suptitle(fill(title, TITLE_WIDTH), x=0.01, ha="left", fontsize=11)
    return close_figure(figure)


def flow_masses(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow the answer's [CLS] down through the layers: how much of it comes from each group of tokens.

    flow: (layer, query group, key group), 5 groups each in the order of GROUP_NAMES: the mean over heads and over
    the group's queries of the attention on the group's keys; rows sum to 1, NaN for a group without tokens.
    Returns masses (layer + 1, group): masses[l] is what layer l reads, the last row is 1 on [CLS]; and bands
    (layer, query group, key group): with T[l] = 0.5 * flow[l] + 0.5 * identity (Abnar and Zuidema 2020: half
    attention, half residual path), bands[l, q, k] = masses[l + 1, q] * T[l, q, k] and masses[l] = bands[l].sum(0).
    A product over groups, not the exact rollout: within a group it takes all tokens for alike.
    """
    flow = np.asarray(flow, dtype=float)
    if flow.ndim != 3 or flow.shape[1:] != (5, 5):
        raise ValueError(
            f"flow must be (layer, 5 query groups, 5 key groups), but its shape is {flow.shape}."
        )
    mixing = 0.5 * np.where(np.isnan(flow), 0, flow) + 0.5 * np.eye(
        5
    )  # nothing draws from an empty group
    masses, bands = np.zeros((len(flow) + 1, 5)), np.zeros_like(flow)
    masses[-1, 0] = 1
    for layer in reversed(range(len(flow))):
        bands[layer] = masses[layer + 1][:, None] * mixing[layer]
        masses[layer] = bands[layer].sum(0)
        if abs(masses[layer].sum() - 1) > 0.01:
            raise ValueError(
                f"flow of L{layer}: a row that counts does not sum to 1; pass shares, not per cent."
            )
    return masses, bands


def draw_band(axis, layer: int, left: float, right: float, thickness: float, **look) -> None:
    """A band through one layer, of one thickness: its upper edge runs from height `left` to height `right`."""
    start, middle, end = layer + NODE_WIDTH / 2, layer + 0.5, layer + 1 - NODE_WIDTH / 2
    above = [(start, left), (middle, left), (middle, right), (end, right)]
    below = [(x, y - thickness) for x, y in reversed(above)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    axis.add_patch(PathPatch(Path([*above, *below, above[0]], codes), linewidth=0, **look))


def draw_flow(axis, masses: np.ndarray, bands: np.ndarray) -> None:
    """Nodes as high as their mass, text above and image below, and the bands between them; of `flow_masses`."""
    groups = list(GROUP_NAMES)
    tops = -(np.cumsum(masses, axis=1) - masses + FLOW_GAPS)
    for layer, band in enumerate(bands):
        left = tops[layer] - (
            np.cumsum(band, axis=0) - band
        )  # (query, key): a key's bands in the order of queries
        right = tops[layer + 1][:, None] - (np.cumsum(band, axis=1) - band)
        for query, key in np.argwhere(band > 0):
            look, ends, thick = (
                FLOW_LOOKS[groups[key]],
                (left[query, key], right[query, key]),
                band[query, key],
            )
            if (
                query == key
            ):  # half of what the query had was its own; the rest of the band is attention
                kept = 0.5 * masses[layer + 1, query]
                draw_band(axis, layer, *ends, kept, facecolor=look["facecolor"], alpha=PALE)
                ends, thick = (ends[0] - kept, ends[1] - kept), thick - kept
            draw_band(axis, layer, *ends, thick, **look, alpha=0.6)
    for (stage, group), mass in np.ndenumerate(masses):
        if mass > 0:
            corner = (stage - NODE_WIDTH / 2, tops[stage, group] - mass)
            axis.add_patch(
                Rectangle(corner, NODE_WIDTH, mass, linewidth=0, **FLOW_LOOKS[groups[group]])
            )
    bottom = -1 - FLOW_GAPS[-1]
    for stage, text in enumerate(masses[:, :3].sum(1)):
        axis.text(
            stage,
            0.03,
            f"{100 * text:.0f} %",
            ha="center",
            va="bottom",
            color=TEXT_COLOR,
            fontsize=8.5,
        )
        axis.text(stage, bottom - 0.03, f"{100 - 100 * text:.0f} %", ha="center", va="top", color=IMAGE_COLOR,
                  fontsize=8.5)  # fmt: skip


def plot_flow(panels: dict[str, np.ndarray]):
    """Where the answer's [CLS] draws from: bands as thick as the attention and the residual path carry, a panel a case.

    panels: title -> flow (layer, 5, 5), see `flow_masses`; one question, or the mean over the questions of a family.
    The tokens that go in are at the left, the answer at the right; each column of nodes sums to 1. A band has the
    colour of the group that it comes from; image groups are hatched, [SEP] is dotted.
    """
    with figure_style():
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(10, 2.9 * len(panels) + 0.9), squeeze=False
        )
        for axis, (title, flow) in zip(axes[:, 0], panels.items(), strict=True):
            masses, bands = flow_masses(flow)
            draw_flow(axis, masses, bands)
            n_layers, bottom = len(bands), -1 - FLOW_GAPS[-1]
            for name, place, color in (
                ("text", 0.03, TEXT_COLOR),
                ("image", bottom - 0.03, IMAGE_COLOR),
            ):
                side = "bottom" if name == "text" else "top"
                axis.text(-0.35, place, name, ha="right", va=side, color=color, fontweight="bold")
            layers = [f"L{layer}" for layer in range(n_layers)]
            names = ["\ninput", *layers, "\nanswer"]  # a line lower, as twelve layers stand close
            axis.set_xticks([0, *np.arange(n_layers) + 0.5, n_layers], names)
            axis.set(xlim=(-0.65, n_layers + 0.3), ylim=(bottom - 0.15, 0.15), yticks=[])
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set_title(fill(title, TITLE_WIDTH))
        axes[-1, 0].set_xlabel("layer: what it reads at its left, what it hands on at its right")
        handles = [
            Patch(**FLOW_LOOKS[group], linewidth=0, label=name)
            for group, name in GROUP_NAMES.items()
        ]
        handles.append(
            Patch(facecolor=TEXT_COLOR, alpha=PALE, linewidth=0, label="pale: residual path")
        )
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        figure.suptitle("Where the answer's [CLS] draws from (half attention, mean over heads; half residual path)",
                        x=0.01, ha="left", fontsize=11)  # fmt: skip
    return close_figure(figure)


def plot_hits(table: pd.DataFrame, chance: float):
    """How often the favoured patch lies in the box asked about: each layer's best head on held-out images.

    table: rows with layer, against, estimate, low, high, and label (the head). against: "the head", "same head,
    untrained", "same head, another question". chance: share of patches in the box.
    """
    styles = {"the head": (TEXT_COLOR, "o", "-"), "same head, another question": ("#CC79A7", "v", "-."),
              "same head, untrained": (GREY, "D", ":")}  # fmt: skip
    table = table.assign(reaches_answer=True)
    with figure_style():
        figure, axis = plt.subplots(figsize=(10, 3.9))
        draw_baseline(axis, chance, "chance: share of patches in the box")
        for number, (against, style) in enumerate(styles.items()):
            draw_layers(
                axis, table[table["against"] == against], *style, against, 0.05 * (number - 1)
            )
        for row in table[table["against"] == "the head"].itertuples():
            top = 100 * np.fmax(row.estimate, row.high)
            axis.annotate(
                row.label.replace(", ", "\n"),
                (row.layer, top),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                bbox={
                    "boxstyle": "square,pad=0.1",
                    "facecolor": "white",
                    "linewidth": 0,
                    "alpha": 0.8,
                },
            )
        name_layers(axis, table["layer"].max() + 1)
        axis.set(ylabel="favoured patch in the box, %\n(text query → image key)", ylim=(0, 110))
        axis.set_title(
            "The best head of each layer, chosen on one half of the images, scored on the other"
        )
        axis.grid(axis="y", alpha=0.25)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize=9)
    return close_figure(figure)
