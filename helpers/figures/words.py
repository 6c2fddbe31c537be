"""Figures of notebook 04 on words: which classes of words look at the image, and some questions word by word.

Shares of attention come in [0, 1]; axes show percentage points.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.transforms import offset_copy

from helpers.figures.style import GREY, close_figure, draw_intervals, figure_style, name_layers

CLASS_STYLE = {  # a colour and a marker, the same in every figure; text blue and image vermilion are taken
    "question word": ("#882255", "v"), "colour word": ("#E69F00", "D"), "noun": ("#009E73", "o"),
    "other content": ("#56B4E9", "s"), "function word": ("#333333", "X"), "punctuation": (GREY, "P"),
}  # fmt: skip
EMPTY = "#EFEFEF"
UNREAD = "no answer reads this"


def plot_class_layers(table: pd.DataFrame):
    """Excess image share of each class of words by layer, with intervals: a line a class.

    table: word_class, layer, estimate, low, high, n (questions with such words), enough. Open markers where
    the questions are too few; the last layer is shaded: no answer reads its words.
    """
    n_layers, table = table["layer"].max() + 1, table.dropna(subset=["estimate"])
    classes = list(table["word_class"].unique())
    with figure_style():
        figure, axis = plt.subplots(figsize=(10, 4.6))
        axis.axvspan(n_layers - 1.5, n_layers - 0.5, color=EMPTY, zorder=-1)
        axis.text(n_layers - 0.53, 0.02, UNREAD, ha="right", va="bottom", fontsize=7.5, color="#5A5A5A",
                  rotation=90, transform=axis.get_xaxis_transform())  # fmt: skip
        axis.axhline(0, color=GREY, linestyle="--", linewidth=1.2, zorder=0)
        axis.text(
            1.005,
            0,
            "uniform",
            color="#5A5A5A",
            fontsize=8,
            va="center",
            transform=axis.get_yaxis_transform(),
        )
        for number, name in enumerate(classes):
            rows = table[table["word_class"] == name].sort_values("layer")
            place = rows["layer"] + 0.09 * (number - (len(classes) - 1) / 2)
            draw_class(axis, rows, place, name)
        axis.set_xlim(-0.5, n_layers - 0.5)
        axis.set_ylabel("excess image share, points\n(word query, image key; share − uniform)")
        axis.set_title("How much more than uniform does each class of words look at the image?")
        name_layers(axis, n_layers)
        axis.grid(axis="y", alpha=0.25)
        figure.legend(loc="outside lower center", ncols=len(classes), fontsize=8.5)
    return close_figure(figure)


def draw_class(axis, rows: pd.DataFrame, place, name: str) -> None:
    """One class's points and intervals in percentage points, joined by a thin line."""
    color, marker = CLASS_STYLE[name]
    scaled = 100 * rows[["estimate", "low", "high"]].astype(float)
    enough = rows["enough"].all()
    label = f"{name}\nn = {rows['n'].max():,}" + ("" if enough else "\ntoo few")
    draw_intervals(axis, scaled, place, color, label, marker)
    axis.plot(place, scaled["estimate"], color=color, linewidth=0.8, alpha=0.7)
    if not enough:
        axis.containers[-1].lines[0].set_markerfacecolor("white")


def plot_class_families(table: pd.DataFrame, layer: int):
    """Excess image share by question family (down) and class of words (across) in one layer, in points.

    table: family, word_class, estimate, n, enough; families and classes in order. A class that a family's
    questions have not is hatched; in a cell with too few questions the number stands in brackets.
    """
    families, classes = list(table["family"].unique()), list(table["word_class"].unique())
    cells = np.full((len(families), len(classes)), np.nan)
    largest = np.nanmax([*100 * table["estimate"].abs(), 1])
    with figure_style():
        figure, axis = plt.subplots(figsize=(10, 0.5 * len(families) + 1.6))
        for row in table.itertuples():
            x, y = classes.index(row.word_class), families.index(row.family)
            cells[y, x] = 100 * row.estimate
            write_share(axis, (x, y), cells[y, x], row.n, row.enough, largest)
        artist = axis.imshow(cells, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        axis.set_xticks(range(len(classes)), classes)
        axis.set_yticks(range(len(families)), families)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(f"Excess image share of the words of each family, L{layer}")
        figure.colorbar(artist, ax=axis, label="excess image share, points", pad=0.01)
    return close_figure(figure)


def write_share(
    axis, place: tuple[int, int], points: float, n: int, enough: bool, largest: float
) -> None:
    """A cell's number and n; hatching where there is none."""
    if np.isnan(points):
        corner = (place[0] - 0.5, place[1] - 0.5)
        look = {"facecolor": EMPTY, "edgecolor": "#BDBDBD", "hatch": "//", "linewidth": 0}
        axis.add_patch(plt.Rectangle(corner, 1, 1, **look))
        return
    text = f"{round(points):+d}" if enough else f"({round(points):+d})"
    color = "white" if abs(points) > 0.55 * largest else "black"
    axis.text(*place, f"{text}   n = {n:,}", ha="center", va="center", fontsize=8, color=color)


def plot_strips(examples: Sequence[dict]):
    """Questions word by word: tokens across, layers down, how much of a token's attention lies on the image.

    examples: dicts with title, words (word pieces), classes and share (layer, word) in [0, 1], the mean over
    heads; the widths of the panels follow the number of words. One colour scale for all. The last layer is
    hatched: no answer reads its words.
    """
    n_layers = len(examples[0]["share"])
    lengths = [len(example["words"]) for example in examples]
    with figure_style():
        size = (10, max(2.6, 0.26 * n_layers + 1.9))
        figure, axes = plt.subplots(
            1, len(examples), figsize=size, width_ratios=lengths, squeeze=False, sharey=True
        )
        for axis, example in zip(axes[0], examples, strict=True):
            artist = draw_strip(axis, example)
        axes[0, 0].set_yticks(range(n_layers), [f"L{layer}" for layer in range(n_layers)])
        figure.colorbar(artist, ax=axes, label="attention on\nthe image, %", pad=0.01)
        seen = {name for example in examples for name in example["classes"]}
        handles = [
            plt.Line2D([], [], color=color, marker=marker, linestyle="", label=name)
            for name, (color, marker) in CLASS_STYLE.items() if name in seen
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8.5)
    return close_figure(figure)


def draw_strip(axis, example: dict):
    """One question's strip, its words underneath, the marker of a word's class above."""
    share = 100 * np.asarray(example["share"], float)
    n_layers, n_words = share.shape
    artist = axis.imshow(share, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    look = {"facecolor": (1, 1, 1, 0.75), "edgecolor": GREY, "hatch": "//", "linewidth": 0}
    axis.add_patch(plt.Rectangle((-0.5, n_layers - 1.5), n_words, 1, **look))
    axis.set_xticks(
        range(n_words), example["words"], rotation=45, ha="right", rotation_mode="anchor"
    )
    above = offset_copy(axis.get_xaxis_transform(), axis.figure, y=7, units="points")
    for place, name in enumerate(example["classes"]):
        color, marker = CLASS_STYLE[name]
        axis.plot(place, 1, marker, color=color, markersize=5, clip_on=False, transform=above)
    axis.set(xlim=(-0.5, n_words - 0.5), ylim=(n_layers - 0.5, -0.5))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(example["title"], fontsize=9, pad=16)
    return artist
