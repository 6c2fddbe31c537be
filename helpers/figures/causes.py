"""Figures of notebook 05's second half: what removal costs, what foretells it, and which heads carry an answer.

Effects come from `ablate.removal_effects`; figures are returned, not shown.
"""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from helpers.figures.style import GREY, close_figure, draw_intervals, figure_style, measure_bars

MODES = {  # what stands in for what is taken away
    "zero": "head's output replaced by zero",
    "mean": "head's output replaced by its mean",
    "attention": "all heads of the layer replaced by zero",
    "layer": "whole layer left out",
}
OUTCOME_LOOKS = [("o", "#000000"), ("s", "#CC79A7"), ("D", "#009E73")]  # marker, colour
MODE_LOOKS = {"zero": ("o", "#000000"), "mean": ("s", "#CC79A7")}  # marker, colour


def plot_ablation(effects: pd.DataFrame, most: int = 24):
    """Accuracy lost without each head or layer, per family: these downwards, families across, a panel a mode.

    effects: columns mode (of MODES), name, family, drop, n, told (enough questions), significant; names in the order to be
    shown. Significant cells are framed and bold; families with too few questions stay grey. Of more than `most` names,
    those with the largest effects are shown.
    """
    told = effects[effects["told"]]
    largest = max(1.0, told["drop"].abs().max()) if len(told) else 1.0
    sizes = effects["drop"].abs().where(effects["told"], 0)
    weight = sizes.groupby(effects["name"], sort=False).max()
    kept = set(weight.nlargest(most).index)
    names = [name for name in weight.index if name in kept]
    families, modes = list(effects["family"].unique()), list(effects["mode"].unique())
    counts = effects.groupby("family")["n"].first()
    with figure_style():
        size = (max(6.5, len(modes) * (0.52 * len(families) + 0.5) + 1.6), 0.27 * len(names) + 2.1)
        figure, axes = plt.subplots(1, len(modes), figsize=size, sharey=True, squeeze=False)
        for axis, mode in zip(axes.flat, modes, strict=True):
            own = effects[effects["mode"] == mode].set_index(["name", "family"])
            grid = own[own["told"]].pivot_table(index="name", columns="family", values="drop")
            grid = grid.reindex(index=names, columns=families)
            colors = mpl.colormaps["RdBu_r"].with_extremes(bad="#EEEEEE")
            artist = axis.imshow(
                grid.to_numpy(float), cmap=colors, vmin=-largest, vmax=largest, aspect="auto"
            )
            for row, column in zip(*np.nonzero(grid.notna().to_numpy()), strict=True):
                cell = own.loc[(names[row], families[column])]
                _write_cell(axis, row, column, cell["drop"], bool(cell["significant"]), largest)
            axis.set_xticks(
                range(len(families)),
                [f"{f}\nn={counts[f]}" for f in families],
                rotation=55,
                fontsize=8,
            )
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.set_title(MODES[mode])
            axis.set_xlabel("question family")
            axis.tick_params(length=0)
        what = "head" if "head" in effects else "layer"
        axes[0, 0].set_ylabel(what)
        figure.colorbar(artist, ax=axes, label="accuracy lost, points", pad=0.01)
        some = f"the {len(names)} of {len(weight)} {what}s that matter most"
        which = f"each {what}" if len(names) == len(weight) else some
        figure.suptitle(f"Accuracy lost without {which}", fontsize=11)
    return close_figure(figure)


def _write_cell(
    axis, row: int, column: int, drop: float, significant: bool, largest: float
) -> None:
    color = "white" if abs(drop) > 0.6 * largest else "black" if significant else "#666666"
    axis.text(column, row, f"{drop:.0f}".replace("-0", "0") if abs(drop) < 0.5 else f"{drop:.0f}".replace("-", "−"),
              ha="center", va="center", fontsize=7.5, color=color, fontweight="bold" if significant else "normal")  # fmt: skip
    if significant:
        axis.add_patch(
            Rectangle(
                (column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="black", linewidth=1
            )
        )


def plot_largest_effects(effects: pd.DataFrame):
    """The largest effects with their intervals, for each way of ablation; zero is no effect.

    effects: columns mode, name, family, drop, low, high, n; heads and families in the order to be shown.
    """
    table = effects.rename(columns={"drop": "estimate"})
    cells = table.drop_duplicates(["name", "family"])
    with figure_style():
        figure, axis = plt.subplots(figsize=(10, 3.9))
        axis.axhline(0, color=GREY, linewidth=1, linestyle="--")
        for number, (mode, own) in enumerate(table.groupby("mode", sort=False)):
            rows = cells[["name", "family"]].merge(own, how="left", on=["name", "family"])
            place = np.arange(len(cells)) + 0.24 * number - 0.12
            marker, color = MODE_LOOKS[mode]
            draw_intervals(
                axis,
                rows,
                place,
                color,
                f"replaced by {'its mean' if mode == 'mean' else 'zero'}",
                marker,
            )
        labels = [
            f"{c.name}\n{c.family}\nn={c.n}"
            for c in cells[["name", "family", "n"]].itertuples(index=False)
        ]
        axis.set_xticks(range(len(cells)), labels, fontsize=8.5)
        axis.set(ylabel="accuracy lost, points", xlabel="head and question family",
                 title=f"The {len(cells)} largest effects of removing one head (95 % intervals over images)")  # fmt: skip
        axis.grid(axis="y", alpha=0.25)
        axis.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=2,
            fontsize=9,
            columnspacing=1,
            borderpad=0.1,
        )
    return close_figure(figure)


def plot_importance(table: pd.DataFrame, measures: dict[str, str], named: int = 5):
    """Does attention predict importance? Accuracy lost without a head against what it attends to.

    table: a row a head with layer, name, drop, low, high and the columns of `measures`, {column: axis label with its
    unit}. The `named` heads that matter most are labelled; colour and marker of a point: its layer.
    """
    n_layers = int(table["layer"].max()) + 1
    colors = mpl.colormaps["cividis"](np.linspace(0, 0.95, n_layers))
    with figure_style():
        figure, axes = plt.subplots(1, len(measures), figsize=(10, 4), sharey=True, squeeze=False)
        for axis, (column, label) in zip(axes.flat, measures.items(), strict=True):
            axis.axhline(0, color=GREY, linewidth=1, linestyle="--")
            axis.axvline(0, color=GREY, linewidth=1, linestyle="--")
            for layer, own in table.groupby("layer"):
                spread = measure_bars(own["drop"], own["low"], own["high"])
                axis.errorbar(own[column], own["drop"], yerr=spread, fmt="osD^"[layer % 4], color=colors[layer], label=f"L{layer}",
                              markersize=5, linewidth=0.8)  # fmt: skip
            first = table.nlargest(named, "drop")
            for number, (name, x, y) in enumerate(
                zip(first["name"], first[column], first["drop"], strict=True)
            ):
                axis.annotate(
                    name,
                    (x, y),
                    xytext=(5, (3, -10)[number % 2]),
                    textcoords="offset points",
                    fontsize=8,
                )
            axis.set(xlabel=label)
        axes[0, 0].set_yscale(
            "symlog", linthresh=1
        )  # a few heads cost tens of points, most about one
        axes[0, 0].yaxis.set_major_locator(
            mpl.ticker.SymmetricalLogLocator(linthresh=1, base=10, subs=(1, 2, 5))
        )
        axes[0, 0].yaxis.set_major_formatter("{x:g}")
        axes[0, 0].set_ylabel("accuracy lost without the head, points\n(logarithmic above 1)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", title="layer")
        title = "Attention to the image against accuracy lost, one point a head (95 % intervals over images)"
        figure.suptitle(title, fontsize=11)
    return close_figure(figure)


def plot_agreement(table: pd.DataFrame, predictors: Sequence[str], outcomes: Sequence[str]):
    """Do cheap measures of a head foretell what interventions find? Rank correlations, a panel for each value of `over`.

    table: of `importance.rank_measures`. predictors: measures in rows; outcomes: those they are held against, three at most.
    """
    panels = list(table["over"].unique())
    with figure_style():
        size = (10, 0.46 * len(predictors) + 1.7)
        figure, axes = plt.subplots(
            1, len(panels), figsize=size, squeeze=False, sharey=True, sharex=True
        )
        for axis, over in zip(axes.flat, panels, strict=True):
            axis.axvline(0, color=GREY, linewidth=1, linestyle="--")
            own = table[table["over"] == over].set_index(["first", "second"])
            for number, outcome in enumerate(outcomes):
                rows = own.reindex([(predictor, outcome) for predictor in predictors])
                place = np.arange(len(predictors)) + 0.24 * (number - (len(outcomes) - 1) / 2)
                spread = measure_bars(rows["correlation"], rows["low"], rows["high"])
                marker, color = OUTCOME_LOOKS[number]
                axis.errorbar(rows["correlation"], place, xerr=spread, fmt=marker, color=color, markersize=5,
                              linewidth=1.2, label=outcome)  # fmt: skip
            axis.set_yticks(range(len(predictors)), predictors, fontsize=9)
            axis.set(
                title=over,
                xlim=(-1.05, 1.05),
                xlabel="rank correlation over heads",
                xticks=(-1, -0.5, 0, 0.5, 1),
            )
            axis.grid(axis="y", alpha=0.25)
        axes[0, 0].invert_yaxis()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(labels), title="against"
        )
        figure.suptitle(
            "What foretells the effect of an intervention on a head? (95 % intervals over heads)",
            fontsize=11,
        )
    return close_figure(figure)


def plot_carriers(table: pd.DataFrame, named: int = 12):
    """Which heads carry an answer from one image to another: a map of all heads, and the strongest with intervals.

    table: a row a head with layer, head, name, share, low, high (in percent of the whole change), significant.
    """
    grid = table.pivot_table(index="layer", columns="head", values="share", dropna=False)
    largest = max(1.0, table["share"].abs().max())
    crowded = grid.shape[1] > 8
    with figure_style():
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(10, max(3.2, 0.3 * grid.shape[0] + 1.6)), width_ratios=(1.25, 1)
        )
        artist = left.imshow(grid, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        for row in table.dropna(subset=["share"]).itertuples():
            color = "white" if abs(row.share) > 0.65 * largest else "black"
            left.text(row.head, row.layer, f"{row.share:.0f}".replace("-", "−").replace("−0", "0"), ha="center", va="center",
                      fontsize=7 if crowded else 9, color=color, fontweight="bold" if row.significant else "normal")  # fmt: skip
            if row.significant:
                left.add_patch(
                    Rectangle(
                        (row.head - 0.46, row.layer - 0.46), 0.92, 0.92, fill=False, linewidth=1
                    )
                )
        left.set_xticks(range(grid.shape[1]), [f"H{head}" for head in grid.columns], fontsize=8)
        left.set_yticks(range(grid.shape[0]), [f"L{layer}" for layer in grid.index], fontsize=8)
        left.set(xlabel="head", ylabel="layer (L0 reads the embeddings)", title="every head")
        left.tick_params(length=0)
        figure.colorbar(artist, ax=left, label="% of the change carried", pad=0.02)
        first = (
            table.assign(size=table["share"].abs()).nlargest(named, "size").reset_index(drop=True)
        )
        spread = measure_bars(first["share"], first["low"], first["high"])
        right.axvline(0, color="#777777", linewidth=1, linestyle="--")
        right.errorbar(
            first["share"],
            first.index,
            xerr=spread,
            fmt="o",
            color="black",
            markersize=4,
            linewidth=1,
        )
        right.set_yticks(first.index, first["name"], fontsize=8)
        right.invert_yaxis()
        right.set(
            xlabel="% of the change carried", title=f"the {len(first)} largest (95 % intervals)"
        )
        figure.suptitle(
            "The answer's change that comes with one head from another image", fontsize=11
        )
    return close_figure(figure)
