"""Figures of notebook 06: what is lost as heads and layers go, what training brings back, what it saves.

Tables come from notebook 06; figures are returned, not shown.
"""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from helpers.figures.style import GREY, close_figure, draw_intervals, figure_style, measure_bars

ORDER_LOOKS = {  # order of removal: marker, line, colour
    "ablation": ("o", "-", "#000000"),
    "gradient": ("s", "-", "#009E73"),
    "attention": ("^", "-", "#CC79A7"),
    "random": ("D", "--", "#777777"),
}
PRECISION_MARKERS = {"fp32": "o", "fp16": "s", "bf16": "s", "int8": "^"}
MEGA = 1e6


def plot_removal_curves(curves: pd.DataFrame, intact: float, tolerance: float):
    """Accuracy as more and more heads are removed, a line an order, with 95 % intervals.

    curves: columns order (of ORDER_LOOKS, or "random 1", ... for single draws, which are thin), removed
    (heads), share (of all heads), estimate, low, high (accuracy in %), n. intact: accuracy of the whole
    model, in %; tolerance: points below it.
    """
    orders = [name for name in ORDER_LOOKS if name in set(curves["order"])]
    with figure_style():
        figure, axis = plt.subplots(figsize=(10, 4.2))
        axis.axhline(intact, color=GREY, linewidth=1, linestyle="--")
        axis.axhspan(intact - tolerance, intact, color=GREY, alpha=0.18, linewidth=0)
        drawn = curves[curves["order"].str.match("random .")].groupby("order")
        for number, (_, own) in enumerate(drawn):
            label = f"each of {drawn.ngroups} random orders" if number == 0 else None
            axis.plot(
                100 * own["share"], own["estimate"], color="#BBBBBB", linewidth=0.8, label=label
            )
        for number, name in enumerate(orders):
            own, (marker, line, color) = curves[curves["order"] == name], ORDER_LOOKS[name]
            place = 100 * own["share"].to_numpy() + 0.35 * (number - (len(orders) - 1) / 2)
            axis.plot(place, own["estimate"], color=color, linestyle=line, linewidth=1.2)
            label = "random, mean (interval over draws)" if name == "random" else f"by {name}"
            draw_intervals(axis, own, place, color, label, marker)
        steps = curves.drop_duplicates("removed").sort_values("removed")
        axis.set_xticks(
            100 * steps["share"],
            [
                f"{100 * s:.0f} %\n{r}"
                for s, r in zip(steps["share"], steps["removed"], strict=True)
            ],
        )
        axis.set(xlabel="share and number of heads removed (put to zero)", ylabel="VQA accuracy, %", ylim=(0, 103),
                 title="Accuracy as heads are removed, by the order of removal (95 % intervals)")  # fmt: skip
        axis.grid(axis="y", alpha=0.25)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), title="order")
    return close_figure(figure)


def plot_family_costs(costs: pd.DataFrame):
    """Accuracy lost per question family as more is removed: a panel for heads and one for layers.

    costs: columns what (panel: its title), removed (column label, in order), family, drop (points lost), n,
    told (enough questions), significant. Significant cells are bold; families with too few questions are
    grey.
    """
    panels, families = list(costs["what"].unique()), list(costs["family"].unique())
    counts = costs.groupby("family")["n"].first()
    widths = [costs.loc[costs["what"] == what, "removed"].nunique() for what in panels]
    largest = max(1.0, costs["drop"].where(costs["told"]).abs().max(skipna=True) or 0)
    largest = 1.0 if np.isnan(largest) else largest
    with figure_style():
        size = (10, 0.3 * len(families) + 1.9)
        figure, axes = plt.subplots(
            1, len(panels), figsize=size, width_ratios=widths, sharey=True, squeeze=False
        )
        colors = mpl.colormaps["RdBu_r"].with_extremes(bad="#EEEEEE")
        for axis, what in zip(axes.flat, panels, strict=True):
            own = costs[costs["what"] == what]
            columns = list(own["removed"].unique())
            bold = own.set_index(["family", "removed"])["significant"]
            grid = own[own["told"]].pivot_table(index="family", columns="removed", values="drop")
            grid = grid.reindex(index=families, columns=columns)
            artist = axis.imshow(
                grid.to_numpy(float), cmap=colors, vmin=-largest, vmax=largest, aspect="auto"
            )
            for row, column in zip(*np.nonzero(grid.notna().to_numpy()), strict=True):
                drop, place = grid.iloc[row, column], (families[row], columns[column])
                axis.text(column, row, f"{drop:.0f}".replace("-0", "0").replace("-", "−"), ha="center", va="center",
                          fontsize=7.5, fontweight="bold" if bold[place] else "normal",
                          color="white" if abs(drop) > 0.6 * largest else "black")  # fmt: skip
            axis.set_xticks(range(len(columns)), columns, fontsize=8)
            axis.set_yticks(
                range(len(families)), [f"{f}, n={counts[f]:,}" for f in families], fontsize=8
            )
            axis.set(title=what, xlabel="one after the other" if "layer" in what else "how many")
            axis.tick_params(length=0)
        figure.colorbar(artist, ax=axes, label="accuracy lost, points", pad=0.01)
        figure.suptitle(
            "Accuracy lost by question family, before any further training", fontsize=11
        )
    return close_figure(figure)


def plot_recovery(table: pd.DataFrame, tolerance: float):
    """What a short training brings back: accuracy before it (hollow) and after it (filled).

    table: a row a model with model (name), before and after, each with _low and _high: difference from the
    whole model in points (95 % interval over images).
    """
    looks = {
        "before": ("white", -0.13, "cut, not trained"),
        "after": ("black", 0.13, "cut and trained on"),
    }
    with figure_style():
        figure, axis = plt.subplots(figsize=(10, 0.5 * len(table) + 1.6))
        axis.axvline(0, color=GREY, linewidth=1, linestyle="--")
        axis.axvspan(-tolerance, 0, color=GREY, alpha=0.18, linewidth=0)
        for when, (fill, shift, label) in looks.items():
            spread = measure_bars(table[when], table[f"{when}_low"], table[f"{when}_high"])
            axis.errorbar(table[when], np.arange(len(table)) + shift, xerr=spread, fmt="o", color="black",
                          markerfacecolor=fill, capsize=2.5, markersize=6, linewidth=1, label=label)  # fmt: skip
        axis.set_yticks(range(len(table)), table["model"])
        axis.invert_yaxis()
        axis.set(xlabel="VQA accuracy less that of the whole model, points (right: better)",
                 title="What a short training brings back (95 % intervals over images)")  # fmt: skip
        axis.grid(axis="x", alpha=0.25)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return close_figure(figure)


def plot_pareto(table: pd.DataFrame):
    """Accuracy against latency, a panel a batch size; every model is named, the best at their speed joined.

    table: columns model, precision (of PRECISION_MARKERS), questions (a pass), seconds (of a pass),
    accuracy, low, high (in %), chosen (the lightest model within the tolerance).
    """
    sizes = sorted(table["questions"].unique())
    n_models = table["model"].nunique()
    with figure_style():
        figure, axes = plt.subplots(
            len(sizes), 1, figsize=(10, len(sizes) * max(2.4, 0.25 * n_models + 1.1)), squeeze=False
        )
        for axis, questions in zip(axes.flat, sizes, strict=True):
            own = table[table["questions"] == questions].sort_values("seconds")
            own = own.assign(time=1000 * own["seconds"])
            best = own[own["accuracy"] >= own["accuracy"].cummax()]
            axis.plot(
                best["time"], best["accuracy"], color=GREY, linewidth=1, drawstyle="steps-post"
            )
            for precision in [name for name in PRECISION_MARKERS if name in set(own["precision"])]:
                rows = own[own["precision"] == precision]
                spread = measure_bars(rows["accuracy"], rows["low"], rows["high"])
                axis.errorbar(rows["time"], rows["accuracy"], yerr=spread, fmt=PRECISION_MARKERS[precision], color="black",
                              linewidth=0.8, markersize=6, markerfacecolor="white", label=precision)  # fmt: skip
            chosen = own[own["chosen"]]
            axis.plot(
                chosen["time"],
                chosen["accuracy"],
                "*",
                color="#D55E00",
                markersize=13,
                label="lightest within the tolerance",
            )
            _name_points(axis, own)
            axis.set(
                ylabel="VQA accuracy, %",
                title=f"{questions} question{'s' if questions > 1 else ''} at once",
            )
            axis.grid(alpha=0.25)
        axes[-1, 0].set_xlabel("milliseconds of a forward pass (median; left: faster)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.suptitle(
            "Accuracy against measured latency (95 % intervals over images)", fontsize=11
        )
    return close_figure(figure)


def _name_points(axis, points: pd.DataFrame) -> None:
    """Name every point in a column at the right, each at its own height, with a line to its point."""
    ordered = points.sort_values(["accuracy", "seconds"], ascending=False)
    heights = np.linspace(0.97, 0.03, len(ordered)) if len(ordered) > 1 else [0.5]
    for height, row in zip(heights, ordered.itertuples(), strict=True):
        axis.annotate(
            f"{row.model}: {_say_number(row.time)} ms, {row.accuracy:.1f} %", (row.time, row.accuracy), xytext=(1.04, height),
            textcoords="axes fraction", fontsize=8, va="center", annotation_clip=False,
            fontweight="bold" if row.chosen else "normal",
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.6, "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def _say_number(value: float) -> str:
    """Three digits, or as many as stand before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot_sizes(table: pd.DataFrame, questions: Sequence[int]):
    """What each model takes: parameters, weights in memory, and memory at the peak of a forward pass.

    table: a row a model with model, parameters, weights (bytes), and memory_<questions> (bytes) for each of
    `questions`.
    """
    columns = {"parameters": "parameters, millions", "weights": "weights, MB"}
    columns |= {f"memory_{size}": f"peak memory, MB\n({size} at once)" for size in questions}
    with figure_style():
        size = (10, 0.3 * len(table) + 1.5)
        figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False)
        for axis, (column, label) in zip(axes.flat, columns.items(), strict=True):
            values = table[column] / MEGA
            axis.barh(np.arange(len(table)), values, color="#56B4E9", height=0.66)
            for row, value in enumerate(values):
                axis.text(value, row, f" {_say_number(value)}", va="center", fontsize=8)
            axis.set(xlabel=label, xlim=(0, 1.3 * values.max()))
            axis.set_yticks(range(len(table)), table["model"], fontsize=9)
            axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(3))
        axes[0, 0].invert_yaxis()
        figure.suptitle("What each model takes (shorter: lighter)", fontsize=11)
    return close_figure(figure)
