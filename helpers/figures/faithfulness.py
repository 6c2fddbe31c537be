"""Figures of notebook 03 on the faithfulness of maps: curves, the scoreboard, and heads against boxes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from helpers.figures.style import GREY, close_figure, figure_style, measure_bars

STYLES = {  # color, marker of each map; the controls are grey and differ by their lines
    "raw, last layer": ("#56B4E9", "s"),
    "raw, all layers": ("#0072B2", "o"),
    "value-weighted": ("#009E73", "^"),
    "rollout": ("#E69F00", "v"),
    "relevance": ("#D55E00", "D"),
}
CONTROLS = {"random": "--", "reversed relevance": ":", "untrained relevance": "-."}
PANELS = {  # measure of the scoreboard: title, scale, unit
    "deletion_gain": ("deletion: lost sooner", 100, "points over random order"),
    "insertion_gain": ("insertion: won sooner", 100, "points over random order"),
    "pointing": ("pointing game", 100, "largest weight in the box, %"),
    "mass": ("mass in the box", 1, "over the box's area"),
}


def find_style(order: str) -> dict:
    """Colour, marker and line of a map, or of a control."""
    if order in STYLES:
        color, marker = STYLES[order]
        return {"color": color, "marker": marker, "linestyle": "-"}
    return {"color": GREY, "marker": "", "linestyle": CONTROLS.get(order, (0, (1, 3)))}


def plot_curves(table: pd.DataFrame):
    """How the answer fares while patches go (left) or come (right), the most important first; a line a map.

    table: order (the map), kind ("deletion", "insertion"), fraction in [0, 1], estimate, low, high (probabilities).
    """
    orders = list(table["order"].unique())
    with figure_style():
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True)
        for axis, (kind, verb) in zip(
            axes, {"deletion": "removed", "insertion": "kept"}.items(), strict=True
        ):
            for place, order in enumerate(orders):
                rows, look = (
                    table[(table["order"] == order) & (table["kind"] == kind)],
                    find_style(order),
                )
                share = 100 * rows["fraction"] + 0.35 * (
                    place - len(orders) / 2
                )  # bars beside, not on, each other
                bars = 100 * measure_bars(rows["estimate"], rows["low"], rows["high"])
                axis.errorbar(share, 100 * rows["estimate"], yerr=bars, label=order, markersize=4.5, linewidth=1.4,
                              elinewidth=0.9, **look)  # fmt: skip
            axis.set(
                xlabel=f"patches {verb}, % (the most important first)",
                title=f"{kind}",
                xlim=(-3, 103),
            )
            axis.grid(axis="y", alpha=0.25)
        axes[0].set(ylabel="probability of the\nintact model's answer, %", ylim=(0, 103))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
        figure.suptitle(
            "Does the answer need the patches that a map calls important?",
            x=0.01,
            ha="left",
            fontsize=11,
        )
    return close_figure(figure)


def plot_scoreboard(table: pd.DataFrame):
    """Maps downwards, a panel for each measure of PANELS that the table has: points with 95 % intervals, chance dashed.

    table: order (the map), measure, estimate, low, high, and chance where the measure has one (else 0).
    """
    table = table[table["measure"].isin(PANELS)].dropna(subset=["estimate"])
    first = table[table["measure"] == "deletion_gain"].sort_values("estimate")
    place = {order: number for number, order in enumerate(first["order"])}
    measures = [name for name in PANELS if name in set(table["measure"])]
    with figure_style():
        size = (10, 1.5 + 0.36 * len(place))
        figure, axes = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
        for axis, measure in zip(axes[0], measures, strict=True):
            title, scale, unit = PANELS[measure]
            rows = table[table["measure"] == measure]
            for row in rows.itertuples():
                look = find_style(row.order)
                bars = scale * measure_bars([row.estimate], [row.low], [row.high])
                marker = look["marker"] or "x"
                axis.errorbar(
                    scale * row.estimate,
                    place[row.order],
                    xerr=bars,
                    fmt=marker,
                    color=look["color"],
                    capsize=2.5,
                )
            chance = rows["chance"].dropna().mean() if "chance" in rows else np.nan
            axis.axvline(
                0 if np.isnan(chance) else scale * chance, color=GREY, linestyle="--", linewidth=1
            )
            axis.set(title=title, xlabel=unit)
            axis.grid(axis="x", alpha=0.25)
        axes[0, 0].set_yticks(range(len(place)), list(place))
        axes[0, 0].set_ylim(-0.6, len(place) - 0.4)
        figure.suptitle(
            "Which map finds the patches that the answer needs? (dashed: chance)",
            x=0.01,
            ha="left",
            fontsize=11,
        )
    return close_figure(figure)


def plot_pointing(table: pd.DataFrame):
    """Each head's [CLS] attention against the boxes: pointing game and mass in the box, layers downwards, heads across.

    table: layer, head, measure ("pointing": share of questions; "mass": over the box's area), estimate, low, high,
    chance. A number whose interval holds chance is in brackets.
    """
    panels = {"pointing": ("pointing game, % (chance: {:.0f} %)", 100, "{:.0f}"),
              "mass": ("mass in the box over its area (chance: {:.0f})", 1, "{:.1f}")}  # fmt: skip
    n_layers, n_heads = table["layer"].max() + 1, table["head"].max() + 1
    with figure_style():
        size = (10, max(2.4, 1.1 + 4.3 * n_layers / n_heads * (0.8 if n_heads <= 6 else 1)))
        figure, axes = plt.subplots(1, 2, figsize=size)
        for axis, (measure, (title, scale, form)) in zip(axes, panels.items(), strict=True):
            rows = table[table["measure"] == measure]
            middle, values = scale * rows["chance"].mean(), scale * rows["estimate"]
            widest = max((values - middle).abs().max(), 1e-9)
            grid = np.full((n_layers, n_heads), np.nan)
            grid[rows["layer"], rows["head"]] = values
            axis.imshow(
                grid, cmap="RdBu_r", vmin=middle - widest, vmax=middle + widest, aspect="auto"
            )
            for row in rows.itertuples():
                value, decided = scale * row.estimate, row.low > row.chance or row.high < row.chance
                text = form.format(value) if decided else f"({form.format(value)})"
                look = {"ha": "center", "va": "center", "fontsize": 9 if n_heads <= 6 else 6}
                axis.text(
                    row.head,
                    row.layer,
                    text,
                    color="white" if abs(value - middle) > 0.6 * widest else "black",
                    **look,
                )
            axis.set_xticks(range(n_heads), [f"H{head}" for head in range(n_heads)])
            axis.set_yticks(range(n_layers), [f"L{layer}" for layer in range(n_layers)])
            axis.tick_params(labelsize=10 if n_heads <= 8 else 7.5)
            axis.set(xlabel="head", ylabel="layer", title=title.format(middle))
            axis.spines[:].set_visible(False)
        figure.suptitle("Does a head's [CLS] attention (text query → image key) lie on what is asked about?", x=0.01,
                        ha="left", fontsize=11)  # fmt: skip
    return close_figure(figure)
