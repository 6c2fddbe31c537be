"""Roles of heads, what their removal costs, lighter models: layers downwards, heads across."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from helpers.figures import style
from helpers.figures.style import GREEN, GREY, IMAGE_COLOR, ORANGE, PINK, SKY, TEXT_COLOR

ROLE_LOOKS = {  # role: short name, colour
    "text reader of image": ("W←I", IMAGE_COLOR), "image reader of text": ("P←T", TEXT_COLOR),
    "[CLS] reader of words": ("C←W", SKY), "[CLS] reader of patches": ("C←P", ORANGE),
    "text local": ("T near", GREEN), "text global": ("T far", "#8FD9C0"),
    "patch local": ("P near", PINK), "patch global": ("P far", "#EBC9DC"),
    "sink": ("sink", "#B0B0B0"), "grounding": ("box", "#F0E442"),
}  # fmt: skip
MOST_NAMES = 24  # rows in a figure of what is lost
MODES = {  # what stands in for what is taken away
    "zero": "head's output replaced by zero",
    "mean": "head's output replaced by its mean",
    "attention": "all heads of the layer replaced by zero",
    "layer": "whole layer left out",
}


@style.styled("Roles of each head, the clearest on top and as its colour")
def plot_role_map(scores: pd.DataFrame) -> Figure:
    """Which head has which roles: a cell names them all, and has the colour of the clearest.

    scores: columns layer, head, role, score, passes, reaches_answer. A role that the answer cannot
    depend on stands in brackets; a head without a role is white.
    """
    passed = scores[scores["passes"]].sort_values("score", ascending=False, kind="stable")
    short = passed["role"].map({role: name for role, (name, _) in ROLE_LOOKS.items()})
    passed["text"] = short.where(passed["reaches_answer"], "(" + short + ")")
    passed["number"] = passed["role"].map(list(ROLE_LOOKS).index).astype(float)  # also of none
    heads = ["layer", "head"]
    cells = passed.groupby(heads).agg({"number": "first", "text": "\n".join})
    cells = scores[heads].drop_duplicates().join(cells, on=heads)
    colors = mpl.colors.ListedColormap([color for _, color in ROLE_LOOKS.values()])
    look = {"cmap": colors, "limits": (-0.5, len(ROLE_LOOKS) - 0.5), "row_height": 0.75}
    figure = style.draw_grids(cells, "number", **look)
    axis = figure.axes[0]
    axis.patch.set(facecolor="white", hatch=None)
    for role, (name, color) in ROLE_LOOKS.items():
        if (passed["role"] == role).any():
            axis.plot([], [], "s", color=color, label=f"{role} ({name})")
    style.place_legend(figure, [axis], ncols=3)
    return figure


@style.styled("Each head's role scores before and after fine-tuning")
def plot_before_after(
    before: dict[str, np.ndarray], after: dict[str, np.ndarray], random: dict[str, np.ndarray]
) -> Figure:
    """Has fine-tuning changed the heads' roles? A panel a role, a point a head: before, after.

    before, after: role -> scores (layer, head), NaN where nothing is known; random: role -> scores
    of random heads. On the diagonal nothing has changed. Scores below -1 are drawn at the edge.
    """
    points = pd.concat([pd.DataFrame({"role": role, "head": "a head",
                                      "before": np.ravel(before[role]).clip(min=-1),
                                      "estimate": np.ravel(after[role]).clip(min=-1)})
                        for role in before]).dropna()  # fmt: skip
    points = points.assign(low=np.nan, high=np.nan, most=points["role"].map(random).map(np.max))
    look = {"baselines": {"highest random head": "most"}, "limits": (-1.1, 1.1), "height": 2.2}
    look |= {"looks": {"a head": (TEXT_COLOR, "o", "")}, "across": 5}
    labels = "score before", "score after fine-tuning"
    figure = style.draw_lines(points, "before", "head", labels, "role", **look)
    for axis in figure.axes:
        axis.plot((-1, 1), (-1, 1), **style.BASELINE | {"linestyle": ":"})
    return figure


@style.styled("Accuracy lost, by question type")
def plot_costs(costs: pd.DataFrame, panel: str, down: str, across: str) -> Figure:
    """Accuracy lost, as grids side by side: one for each value of the column `panel`.

    costs: columns `panel`, `down` and `across` (names in the order to be shown; one of them is
    "family"), drop (points), n, told (enough questions), significant (framed). Of more than
    MOST_NAMES rows, those with the largest effects are shown.
    """
    largest = costs["drop"].abs().where(costs["told"], 0).groupby(costs[down]).max()
    costs = costs[costs[down].isin(largest.nlargest(MOST_NAMES).index)].replace({panel: MODES})
    family = style.name_with_n(costs, "family")
    if across == "family":
        family = [name.replace(" (n = ", "\nn=").strip(")").replace(" ", "\n") for name in family]
    costs = costs.assign(family=family, drop=costs["drop"].where(costs["told"].astype(bool)))
    costs["framed"] = costs["significant"] & costs["drop"].notna()
    look = {"label": "accuracy lost, points", "framed": "framed"}
    look["row_height"] = 0.42 if down == "family" else 0.27
    return style.draw_grids(costs, "drop", down, across, panel, **look)


@style.styled("What predicts the accuracy lost without a head? One point a head (95 % intervals)")
def plot_importance(table: pd.DataFrame, measures: dict[str, str]) -> Figure:
    """Points of a table, a row a head: layer (colour and marker), name, drop, low, high and the
    columns of `measures`, {column: axis label with its unit}.
    """
    table = table.assign(label="L" + table["layer"].astype(str)).sort_values("layer")
    names = table["label"].unique()
    colors = sns.color_palette("cividis", len(names) + 1)
    looks = {name: (colors[i], "osD^"[i % 4], "") for i, name in enumerate(names)}
    points = [table.assign(at=table[column], measure=label) for column, label in measures.items()]
    look = {"value": "drop", "linewidth": 0.8, "capsize": 0, "markeredgecolor": "white"}
    look |= {"markersize": 6.5, "looks": looks, "baselines": {"nothing lost": 0}, "ncols": 13}
    look["limits"] = (None, None)
    labels = "", "accuracy lost without the head, points\n(logarithmic above 1)"
    figure = style.draw_lines(pd.concat(points), "at", "label", labels, "measure", **look)
    first = figure.axes[0]
    first.set_yscale("symlog", linthresh=1)  # a few heads cost tens of points, most about one
    ticks = mpl.ticker.SymmetricalLogLocator(base=10, linthresh=1, subs=(1, 2, 5))
    first.yaxis.set_major_locator(ticks)
    first.yaxis.set_major_formatter("{x:g}")
    for axis, label in zip(figure.axes, measures.values(), strict=True):
        axis.axvline(0, **style.BASELINE)
        axis.set(xlabel=label, title="")
    return figure


@style.styled("Accuracy as heads are removed, by the order of removal (95 % intervals)")
def plot_removal_curves(curves: pd.DataFrame, intact: float, tolerance: float) -> Figure:
    """Accuracy as more and more heads are removed, a line an order, with 95 % intervals.

    curves: columns order ("ablation", "random", ..., or "random 1", ... for single random orders),
    removed (heads), share (of all heads), estimate, low, high (accuracy in %). intact: accuracy of
    the whole model, in %; tolerance: points below it.
    """
    n_random = curves["order"].str.match("random .").sum()
    single, within = f"each of {n_random} random orders", "loss that is tolerated"
    ends = curves["share"].agg(["min", "max"])
    kept = pd.DataFrame({"order": within, "share": ends, "low": intact - tolerance, "high": intact})
    names = {"random .+": single, "^random$": "random, their mean"}
    curves = pd.concat([curves.replace({"order": names}, regex=True), kept])
    curves = curves.assign(share=100 * curves["share"])
    curves.loc[curves["order"] == single, ["low", "high"]] = np.nan
    look = {"baselines": {"whole model": intact}, "bands": [within], "spread": 1.4, "ncols": 5}
    look["looks"] = {single: (GREY, "_", "")}
    labels = "heads removed (put to zero), % of all", "VQA accuracy, %"
    return style.draw_lines(curves, "share", "order", labels, **look)


@style.styled("Accuracy and measured latency of each model (95 % intervals over images)")
def plot_pareto(table: pd.DataFrame) -> Figure:
    """Forests of a table, the best model on top: model, questions (a pass), milliseconds (of a
    pass), accuracy, low, high (in %), chosen (the model that the selection half selects).
    """
    name = table["model"] + np.where(table["chosen"], " (selected)", "")
    table = table.assign(name=name).sort_values("accuracy", ascending=False, kind="stable")
    right = table.drop_duplicates("model").assign(panel="VQA accuracy, %")
    right["estimate"] = right["accuracy"]
    times = table.assign(estimate=table["milliseconds"], low=np.nan, high=np.nan)
    unit = np.where(times["questions"] == 1, " question", " questions")
    times["panel"] = "milliseconds for " + times["questions"].astype(str) + unit
    rows = pd.concat([right, times.sort_values("questions", kind="stable")])
    figure = style.draw_forest(rows, "name", panel="panel", color="black")
    for axis, (_, part) in zip(figure.axes[1:], times.groupby("questions"), strict=True):
        most = 1.5 * part["estimate"].median()  # a time far out would squeeze the others
        for row, time in enumerate(part["estimate"]):
            if time > most:
                axis.text(most, row, f"{time:.0f} →", ha="right", va="center")
                axis.set_xlim(right=most)
    return figure


@style.styled("A pair of heads removed: loss beyond the sum of both")
def plot_pairs(pairs: pd.DataFrame) -> Figure:
    """What pairs of heads cost beyond the sum of their heads, of one model.

    pairs: columns first, second, excess (points).
    """
    grid = pairs.pivot_table("excess", "second", "first", sort=False)
    figure, axis = plt.subplots(figsize=(8, 5.5))
    look = {"center": 0, "cmap": "RdBu_r", "cbar_kws": {"label": "points of accuracy"}}
    sns.heatmap(grid, ax=axis, square=True, **look)
    axis.set(xlabel="", ylabel="")
    return figure
