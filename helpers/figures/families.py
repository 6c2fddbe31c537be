"""Figures of attention by question family: layers, heads, pairs of families, controls, examples.

Tables come in tidy form, shares of attention in [0, 1]; axes show percentage points. `query` is the text query
("[CLS]" or "words"), a panel each, in order of appearance.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from helpers.figures.style import (
    GREY,
    IMAGE_COLOR,
    TEXT_COLOR,
    close_figure,
    draw_intervals,
    figure_style,
    name_layers,
    show_heatmap,
    show_picture,
)

FAMILY_STYLE = {  # a colour (mostly Okabe-Ito) and a marker, the same in every figure
    "what": ("#0072B2", "o"), "what color": ("#D55E00", "s"), "where": ("#009E73", "^"), "why": ("#CC79A7", "v"),
    "how many": ("#E69F00", "D"), "how": ("#882255", "P"), "who": ("#333333", "X"), "which": ("#A6A000", "<"),
    "is/are": ("#56B4E9", ">"), "other": (GREY, "*"),
}  # fmt: skip
EMPTY = "#EFEFEF"  # cells in which nothing was found; those not tested are hatched as well
TOO_FEW = "not enough questions to tell"
VERDICTS = {  # of a difference, raw and adjusted; colour and marker
    "survives": (IMAGE_COLOR, "s"), "does not survive": (TEXT_COLOR, "o"),
    "only when adjusted": ("#009E73", "^"), "never beyond chance": (GREY, "."),
}  # fmt: skip


def style_family(name: str) -> tuple[str, str]:
    """Colour and marker of a family; grey and a dot for one that has none of its own."""
    return FAMILY_STYLE.get(name, (GREY, "."))


def name_family(name: str, n: int, enough: bool) -> str:
    """A family as axes and legends name it: n under the name, and a mark where the questions are too few."""
    return f"{name}\nn = {n:,}" + ("" if enough else "\ntoo few")


def plot_family_layers(table: pd.DataFrame):
    """Excess image share of each family by layer, with intervals; open markers where the questions are too few.

    table: family, query, layer, estimate, low, high, n, enough. The words' last layer is shaded: no answer reads it.
    """
    queries, families = list(table["query"].unique()), list(table["family"].unique())
    n_layers = table["layer"].max() + 1
    with figure_style():
        figure, axes = plt.subplots(1, len(queries), figsize=(10, 4.6), sharey=True, squeeze=False)
        for axis, query in zip(axes.flat, queries, strict=True):
            for number, family in enumerate(families):
                rows = table[(table["family"] == family) & (table["query"] == query)].sort_values(
                    "layer"
                )
                place = rows["layer"] + 0.07 * (number - (len(families) - 1) / 2)
                draw_family(axis, rows, place, *style_family(family))
            draw_baseline(axis, n_layers, f"{query} query")
            if query != "[CLS]":
                shade_unread(axis, n_layers)
        axes[0, 0].set_ylabel(
            "excess image share, points\n(text query, image key; share − uniform)"
        )
        handles = [axes[0, 0].containers[number] for number in range(len(families))]
        labels = [name_family(*row) for row in summarise_families(table)]
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(len(families), 10), fontsize=8.5
        )
        figure.suptitle(
            "How much more than uniform does each family look at the image?", fontsize=11
        )
    return close_figure(figure)


def summarise_families(table: pd.DataFrame) -> list[tuple]:
    """(family, n, enough) of each family, in order of appearance."""
    first = table.groupby("family", sort=False, observed=True)[["n", "enough"]].first()
    return list(first.itertuples(name=None))


def draw_family(axis, rows: pd.DataFrame, place, color: str, marker: str, line: str = "-") -> None:
    """One family's (or kind's) points and intervals in percentage points, joined by a thin line."""
    scaled = 100 * rows[["estimate", "low", "high"]].astype(float)
    draw_intervals(axis, scaled, place, color, "", marker)
    axis.plot(place, scaled["estimate"], color=color, linewidth=0.8, linestyle=line, alpha=0.7)
    if not rows["enough"].all():
        axis.containers[-1].lines[0].set_markerfacecolor("white")


def draw_baseline(axis, n_layers: int, title: str) -> None:
    """Layers across, the uniform baseline at 0, and light lines to read values by."""
    name_layers(axis, n_layers)
    axis.axhline(0, color=GREY, linestyle="--", linewidth=1.2, zorder=0)
    axis.text(-0.45, 0, "uniform", color="#5A5A5A", fontsize=8, va="bottom")
    axis.set(xlim=(-0.5, n_layers - 0.5), title=title)
    axis.grid(axis="y", alpha=0.25)


def shade_unread(axis, n_layers: int) -> None:
    """Shade the last layer, where only the [CLS] query reaches the answer."""
    axis.axvspan(n_layers - 1.5, n_layers - 0.5, color=EMPTY, zorder=-1)
    axis.text(n_layers - 0.53, 0.02, "no answer reads this", ha="right", va="bottom", fontsize=7.5, color="#5A5A5A",
              rotation=90, transform=axis.get_xaxis_transform())  # fmt: skip


def plot_separation(table: pd.DataFrame):
    """Which heads separate families, and by how much: a cell a head, layers downwards, heads across.

    table: query, layer, head, difference (size of the largest difference found, NaN for none), label (which
    pair, "more > less"), tested. With more than eight heads a cell shows the number alone.
    """
    queries = list(table["query"].unique())
    shape = (table["layer"].max() + 1, table["head"].max() + 1)
    height = max(3.0, 0.62 * shape[0] + 1.6) if shape[1] <= 8 else 0.36 * shape[0] + 1.6
    largest = 100 * np.nanmax([*table["difference"], 0.01])
    labels = (
        table["label"].astype(object).fillna("").str.replace(" > ", " >\n")
    )  # or long pairs leave their cell
    longest = max(len(line) for label in labels for line in ("what color >", *label.split("\n")))
    font = min(8, 600 / (len(queries) * shape[1]) / (0.62 * longest)) if shape[1] <= 8 else 6.8
    with figure_style():
        figure, axes = plt.subplots(1, len(queries), figsize=(10, height), squeeze=False)
        for axis, query in zip(axes.flat, queries, strict=True):
            rows = table.assign(label=labels)[table["query"] == query]
            cells = np.full(shape, np.nan)
            cells[rows["layer"], rows["head"]] = 100 * rows["difference"]
            artist = axis.imshow(cells, cmap="cividis", vmin=0, vmax=largest, aspect="auto")
            axis.set_facecolor(EMPTY)
            for row in rows.itertuples():
                digits = 0 if row.difference >= 0.01 else 1
                text = "" if np.isnan(row.difference) else f"{100 * row.difference:.{digits}f}"
                text += f"\n{row.label}" if text and shape[1] <= 8 else ""
                write_cell(
                    axis,
                    row.head,
                    row.layer,
                    text,
                    100 * row.difference / largest,
                    row.tested,
                    font,
                )
            name_cells(
                axis,
                *(
                    [f"{mark}{i}" for i in range(size)]
                    for mark, size in zip("HL", shape[::-1], strict=True)
                ),
            )
            axis.set(xlabel="head", ylabel="layer", title=f"{query} query")
        figure.colorbar(artist, ax=axes, label="largest difference, points", pad=0.01)
        figure.suptitle(
            "Largest difference in image share between two families, head by head", fontsize=11
        )
    return close_figure(figure)


def write_cell(
    axis, x: int, y: int, text: str, shade: float, tested: bool, size: float = 6.8
) -> None:
    """Text in a cell, light on dark and dark on light; hatching where nothing was tested."""
    if not tested:
        axis.add_patch(
            plt.Rectangle(
                (x - 0.5, y - 0.5),
                1,
                1,
                facecolor=EMPTY,
                edgecolor="#BDBDBD",
                hatch="//",
                linewidth=0,
            )
        )
    elif text:
        axis.text(
            x,
            y,
            text,
            ha="center",
            va="center",
            fontsize=size,
            color="black" if shade > 0.55 else "white",
        )


def name_cells(axis, across: Sequence[str], down: Sequence[str]) -> None:
    """Name columns and rows of a grid of cells, with white lines between the cells."""
    axis.set_xticks(range(len(across)), across, fontsize=8)
    axis.set_yticks(range(len(down)), down, fontsize=8)
    axis.set_xticks(np.arange(len(across) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(down) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)


def plot_pairs(table: pd.DataFrame, sizes: pd.DataFrame):
    """Which families differ: for each pair, how many heads tell it apart, and the median size of the effect.

    table: query, group_a, group_b, heads (tested), apart (of these, how many tell the pair apart), g (median size
    of Hedges g over the heads tested). sizes: indexed by family, columns questions and enough. A pair with no head
    tested is hatched.
    """
    queries, families = list(table["query"].unique()), list(sizes.index)
    labels = [name_family(row.Index, row.questions, row.enough) for row in sizes.itertuples()]
    place, size = {name: i for i, name in enumerate(families)}, len(families)
    with figure_style():
        figure, axes = plt.subplots(
            1, max(1, len(queries)), figsize=(10, 0.48 * size + 1.9), squeeze=False, sharey=True
        )
        figure.suptitle("How many heads tell two families apart?", fontsize=11)
        if table.empty:
            axes[0, 0].text(0.5, 0.5, TOO_FEW, ha="center", va="center")
            axes[0, 0].axis("off")
            return close_figure(figure)
        for axis, query in zip(axes.flat, queries, strict=True):
            cells = np.full((size, size), np.nan)
            for row in table[table["query"] == query].itertuples():
                x, y = sorted((place[row.group_a], place[row.group_b]))
                share = row.apart / row.heads if row.heads else np.nan
                cells[y, x] = 100 * share
                text = f"{row.apart} of {row.heads}\ng {row.g:.1f}"
                write_cell(axis, x, y, text, share, row.heads > 0)
            artist = axis.imshow(cells, cmap="cividis", vmin=0, vmax=100, aspect="auto")
            name_cells(axis, families, labels)
            axis.set(title=f"{query} query", xlim=(-0.5, size - 1.5), ylim=(size - 0.5, 0.5))
            axis.tick_params(axis="x", rotation=35)
        figure.colorbar(artist, ax=axes, label="heads that tell them apart, %", pad=0.01)
    return close_figure(figure)


def plot_adjustment(table: pd.DataFrame):
    """Differences between families, raw against adjusted for question length and patch count: a point a head and pair.

    table: query, difference, adjusted, verdict (one of VERDICTS).
    """
    queries = list(table["query"].unique())
    verdicts = {name: look for name, look in VERDICTS.items() if (table["verdict"] == name).any()}
    drawn = table.dropna(subset=["difference", "adjusted"])
    reach = 105 * max(
        0.01, drawn[["difference", "adjusted"]].abs().max().max() if len(drawn) else 0
    )
    with figure_style():
        figure, axes = plt.subplots(1, max(1, len(queries)), figsize=(10, 4.9), squeeze=False)
        if table.empty:
            axes[0, 0].text(0.5, 0.5, TOO_FEW, ha="center", va="center")
            axes[0, 0].axis("off")
        for axis, query in zip(axes.flat, queries, strict=False):
            axis.plot([-reach, reach], [-reach, reach], color=GREY, linestyle="--", linewidth=1)
            for verdict, (color, marker) in verdicts.items():
                rows = drawn[(drawn["query"] == query) & (drawn["verdict"] == verdict)]
                axis.scatter(100 * rows["difference"], 100 * rows["adjusted"], color=color, marker=marker, s=16,
                             alpha=0.6, linewidths=0, label=verdict)  # fmt: skip
            axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=f"{query} query",
                     xlabel="raw difference, points", ylabel="adjusted difference, points")  # fmt: skip
            if drawn.empty:
                axis.text(0, 0, TOO_FEW, ha="center", va="center")
        if len(drawn):
            figure.legend(
                *axes[0, 0].get_legend_handles_labels(),
                loc="outside lower center",
                ncols=len(verdicts),
            )
        figure.suptitle(
            "Do differences in image share survive equal length and patch count?", fontsize=11
        )
    return close_figure(figure)


def plot_controls(table: pd.DataFrame):
    """Image-needing questions against words-only controls of the same families, by layer, with intervals.

    table: family, query, kind (two, in order), layer, estimate, low, high, n, enough. A row of panels a query.
    """
    queries, families, kinds = (list(table[name].unique()) for name in ("query", "family", "kind"))
    n_layers = table["layer"].max() + 1
    width = max(5.5, 2.05 * len(families))
    with figure_style():
        figure, axes = plt.subplots(len(queries), len(families), figsize=(width, 2.5 * len(queries) + 0.9),
                                    sharex=True, sharey=True, squeeze=False)  # fmt: skip
        for (i, j), axis in np.ndenumerate(axes):
            rows = table[(table["query"] == queries[i]) & (table["family"] == families[j])]
            for number, kind in enumerate(kinds):
                own = rows[rows["kind"] == kind].sort_values("layer")
                look = (
                    (style_family(families[j])[0], "o", "-")
                    if number == 0
                    else ("#5A5A5A", "s", ":")
                )
                draw_family(axis, own, own["layer"] + 0.12 * (2 * number - 1), *look)
            counts = rows.groupby("kind", sort=False, observed=True)["n"].first()
            draw_baseline(
                axis,
                n_layers,
                f"{families[j]}\nn = {' and '.join(f'{n:,}' for n in counts)}" if i == 0 else "",
            )
            axis.set_xlabel("layer" if i == len(queries) - 1 else "")
            if j == 0:
                axis.set_ylabel(f"{queries[i]} query\nexcess image share, points")
            if queries[i] != "[CLS]":
                shade_unread(axis, n_layers)
        figure.legend(axes[0, 0].containers[:2], kinds, loc="outside lower center", ncols=2)
        figure.suptitle(
            "Words-only controls against image-needing questions of the same family", fontsize=11
        )
    return close_figure(figure)


def plot_maps(examples: Sequence[dict], query: str):
    """Questions side by side: above, the picture with the boxes asked about; below, one query's attention over it.

    examples: dicts with picture, boxes, title, weights (rows, columns; shares in [0, 1]) and caption. One colour
    scale for all, so that pictures can be compared.
    """
    largest = 100 * max(float(np.max(example["weights"])) for example in examples)
    with figure_style():
        size = (max(5.5, 3.3 * len(examples)), 6.6)
        figure, axes = plt.subplots(2, len(examples), figsize=size, squeeze=False)
        for (above, below), example in zip(axes.T, examples, strict=True):
            show_picture(above, example["picture"], example["title"], example["boxes"])
            weights = 100 * np.asarray(example["weights"])
            artist = show_heatmap(below, example["picture"], weights, "", example["boxes"], largest)
            below.set_xlabel(example["caption"], fontsize=8.5)
        figure.colorbar(artist, ax=axes, label=f"{query} query's attention, % a patch", pad=0.01)
    return close_figure(figure)
