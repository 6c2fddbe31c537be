"""Figures of notebook 05: roles of heads, what their removal costs, and what predicts it.

Layers run downwards, heads across. Tables come from helpers.heads: `roles.score_roles`,
`effects.removal_effects`, `effects.rank_measures`.
"""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from helpers.figures import style
from helpers.figures.style import GREEN, GREY, IMAGE_COLOR, ORANGE, PINK, SKY, TEXT_COLOR

ROLE_LOOKS = {  # role: short name, colour; the short name stands beside the colour everywhere
    "text->image reader": ("W→I", IMAGE_COLOR), "image->text reader": ("P→T", TEXT_COLOR),
    "[CLS] reader of words": ("C→W", SKY), "[CLS] reader of patches": ("C→P", ORANGE),
    "text local": ("T near", GREEN), "text global": ("T far", "#8FD9C0"),
    "patch local": ("P near", PINK), "patch global": ("P far", "#EBC9DC"),
    "sink": ("sink", "#B0B0B0"), "grounding": ("box", "#F0E442"),
}  # fmt: skip
MOST_NAMES = 24  # heads in the figure of their removal
LEAST_SCORE = -1.0  # scores of readers can fall far below; they are drawn at this edge
OUTCOME_LOOKS = (("o", "#000000"), ("s", PINK), ("D", GREEN))
MODES = {  # what stands in for what is taken away
    "zero": "head's output replaced by zero",
    "mean": "head's output replaced by its mean",
    "attention": "all heads of the layer replaced by zero",
    "layer": "whole layer left out",
}
CORRELATION = {"xlabel": "rank correlation over heads", "xlim": (-1.05, 1.05)}


@style.styled
def plot_role_scores(scores: pd.DataFrame) -> Figure:
    """Every head's score on every role, with intervals, against random heads: a panel a role.

    scores: columns layer, head, name, role, score, low, high, passes, null (the highest random
    head).
    """
    roles = list(scores["role"].unique())
    n_rows = -(-len(roles) // 2)
    size = (10, 1.9 * n_rows + 0.6)
    figure, axes = plt.subplots(n_rows, 2, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(roles) :]:
        axis.axis("off")
    for number, role in enumerate(roles):
        axis, rows = axes.flat[number], scores[scores["role"] == role].reset_index(drop=True)
        _plot_role(axis, rows)
        axis.set_title(_name_role(role), fontsize=9.5)
        if number + 2 >= len(roles):  # the last panel of its column
            _name_heads(axis, rows)
    axes[0, 0].set_ylim(LEAST_SCORE - 0.08, 1.08)
    style.place_legend(figure, axes.flat)
    figure.supylabel("role score (0: uniform or chance, 1: the most possible)", fontsize=10)
    title = "Role scores of every head and the highest random one (95 % intervals over images)"
    return style.set_title(figure, title)


def _plot_role(axis: Axes, heads: pd.DataFrame) -> None:
    """One panel of `plot_role_scores`: points, or an arrow at the edge where a score is lower."""
    axis.axhline(0, color=GREY, linewidth=0.8)
    look = {"color": GREY, "linewidth": 1, "linestyle": ":"}
    axis.axhline(heads["null"].max(), label="highest random head", **look)
    look = {"color": TEXT_COLOR, "markersize": 5 if len(heads) <= 32 else 3}
    passes = heads["passes"].astype(bool)
    for has_role, label in ((False, "head"), (True, "head that has the role")):
        rows = heads[(passes == has_role) & (heads["score"] >= LEAST_SCORE)]
        options = {"hollow": not has_role, "capsize": 0, "label": label}
        style.plot_intervals(axis, rows.index, rows, "score", **options, **look)
    below = heads.index[heads["score"] < LEAST_SCORE]
    axis.plot(below, [LEAST_SCORE] * len(below), "v", markerfacecolor="white", **look)
    for start in np.flatnonzero(np.diff(heads["layer"])):
        axis.axvline(start + 0.5, color="#DDDDDD", linewidth=0.8, zorder=0)


def _name_heads(axis: Axes, heads: pd.DataFrame) -> None:
    """A tick a head, or a tick a layer where there are more heads than fit."""
    axis.tick_params(labelbottom=True)
    if len(heads) <= 32:
        axis.set_xticks(range(len(heads)), heads["name"], rotation=90, fontsize=8)
    else:
        middle = pd.Series(range(len(heads))).groupby(heads["layer"]).mean()
        axis.set_xticks(middle, [f"L{layer}" for layer in middle.index], fontsize=8)
    axis.set_xlabel("head (first layer at the left)")


@style.styled
def plot_role_map(scores: pd.DataFrame) -> Figure:
    """Which head has which roles: a coloured and named band for each role, the clearest on top.

    scores: columns layer, head, name, role, score, passes, reaches_answer. A role that the answer
    cannot depend on is pale and in brackets; a head without a role is white.
    """
    n_layers, n_heads = scores["layer"].max() + 1, scores["head"].max() + 1
    width, height = (1.5, 0.95) if n_heads <= 6 else (0.8, 0.72)  # inches a head
    passed = scores[scores["passes"]].sort_values("score", ascending=False, kind="stable")
    size = (max(7.5, width * n_heads + 1), height * n_layers + 1.9)
    figure, axis = plt.subplots(figsize=size)
    for (layer, head), roles in passed.groupby(["layer", "head"]):
        share = 1 / len(roles)  # of the cell's height
        font = min(9, 52 * height * share)
        text_look = {"ha": "center", "va": "center_baseline", "fontsize": font}
        for number, (role, reaches) in enumerate(roles[["role", "reaches_answer"]].to_numpy()):
            (short, color), bottom = ROLE_LOOKS[role], layer - 0.5 + number * share
            look = {"facecolor": color, "linewidth": 0, "alpha": 1 if reaches else 0.35}
            axis.add_patch(Rectangle((head - 0.5, bottom), 1, share, **look))
            ink = style.pick_ink(mpl.colors.to_rgb(color)) if reaches else "black"
            name = short if reaches else f"({short})"
            axis.text(head, bottom + share / 2, name, color=ink, **text_look)
    for layer, head in np.ndindex(n_layers, n_heads):
        look = {"fill": False, "edgecolor": "#444444", "linewidth": 0.8}
        axis.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, **look))
    axis.set(xlim=(-0.52, n_heads - 0.48), ylim=(n_layers - 0.48, -0.52))  # borders whole
    axis.set_title("Roles of each head, the clearest on top")
    axis.set_xticks(range(n_heads), [f"H{head}" for head in range(n_heads)])
    axis.set_yticks(range(n_layers), [f"L{layer}" for layer in range(n_layers)])
    axis.set(xlabel="head", ylabel="layer (L0 reads the embeddings)")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)  # the heads have borders
    shown = [role for role in ROLE_LOOKS if role in set(passed["role"])]
    handles = [Patch(facecolor=ROLE_LOOKS[role][1], label=_name_role(role)) for role in shown]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def _name_role(role: str, between: str = " ") -> str:
    """A role with its short name in brackets, where that is another."""
    short = ROLE_LOOKS[role][0]
    return role if short == role else f"{role}{between}({short})"


@style.styled
def plot_before_after(
    before: dict[str, np.ndarray], after: dict[str, np.ndarray], random: dict[str, np.ndarray]
) -> Figure:
    """Has fine-tuning changed the heads' roles? A panel a role, a point a head: before, after.

    before, after: role -> scores (layer, head), NaN where nothing is known; random: role -> scores
    of random heads. On the dashed line nothing has changed, the dotted one is the highest random
    head. Scores below LEAST_SCORE are drawn at the edge.
    """
    roles = [role for role in before if not np.isnan(before[role]).all()]
    n_rows = -(-len(roles) // 5)
    grid = {"figsize": (10, 2.25 * n_rows + 0.7), "sharex": True, "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(n_rows, 5, **grid)
    for axis in axes.flat[len(roles) :]:
        axis.axis("off")
    for axis, role in zip(axes.flat, roles, strict=False):
        axis.plot((LEAST_SCORE, 1), (LEAST_SCORE, 1), **style.BASELINE)
        axis.axhline(random[role].max(), color=GREY, linestyle=":")
        points = [np.ravel(state[role]).clip(min=LEAST_SCORE) for state in (before, after)]
        look = {"color": ROLE_LOOKS[role][1], "markeredgecolor": "#444444"}
        axis.plot(*points, "o", markeredgewidth=0.6, **look)
        axis.set_title(_name_role(role, "\n"), fontsize=8.5)
        axis.set(xlim=(LEAST_SCORE - 0.1, 1.1), ylim=(LEAST_SCORE - 0.1, 1.1), aspect="equal")
    figure.supxlabel("score before fine-tuning", fontsize=10)
    figure.supylabel("score after fine-tuning", fontsize=10)
    return style.set_title(figure, "Each head's role scores before and after fine-tuning")


@style.styled
def plot_role_cards(cards: Sequence[dict]) -> Figure:
    """A card for each role: its clearest head, a typical map, its score, what its removal costs.

    cards: dicts with role, name, question, passes, score, low, high, null; drops: a table
    with family, drop, significant; and either tokens and weights (token,), or picture, weights
    (rows, columns) and boxes.
    """
    n_rows = -(-len(cards) // 2)
    most = max((len(card.get("tokens", ())) for card in cards), default=0)
    size = min(7, 100 / max(most, 1))  # of all tokens: a card's bars are about 125 points high
    figure = plt.figure(figsize=(10.5, 2.9 * n_rows))
    subfigures = figure.subfigures(n_rows, 2, squeeze=False, wspace=0.02, hspace=0.02)
    for subfigure, card in zip(subfigures.flat, cards, strict=False):
        verdict = "" if card["passes"] else " (no role)"
        names = ("score", "low", "high", "null")
        score, low, high, null = style.format_cells([card[name] for name in names], digits=2)
        title = f"score {score} [{low}, {high}], random heads at most {null}"
        title = f"{card['role']}: {card['name']}{verdict}\n{title}"
        subfigure.suptitle(title, fontsize=9.5, x=0.02, ha="left")
        left, right = subfigure.subplots(1, 2, width_ratios=(1.25, 1))
        if "tokens" in card:
            tokens = [token.replace("$", r"\$") for token in card["tokens"]]
            _plot_bars(left, card["weights"], tokens, TEXT_COLOR, "share of attention", size)
        else:
            style.plot_map(left, card["picture"], card["weights"], boxes=card["boxes"])
        left.set_title(card["question"].replace("$", r"\$"), fontsize=8, wrap=True)
        drops = card["drops"]
        colors = np.where(drops["significant"], IMAGE_COLOR, "#BBBBBB")
        _plot_bars(right, drops["drop"], drops["family"], colors, "points lost without it", 7)
        right.axvline(0, color=GREY, linewidth=0.8)
        right.set_ylim(max(4, len(drops)) - 0.5, -0.5)
    return figure


def _plot_bars(
    axis: Axes,
    values: Sequence[float],
    names: Sequence[str],
    color: str | np.ndarray,
    label: str,
    fontsize: float,
) -> None:
    """Horizontal bars in a card, the first at the top."""
    axis.barh(range(len(names)), values, color=color)
    style.name_rows(axis, names, fontsize=fontsize)
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(axis="x", labelsize=7)


@style.styled
def plot_ablation(effects: pd.DataFrame) -> Figure:
    """Accuracy lost without each head or layer, families across, a panel a mode below the other.

    effects: columns mode (of MODES), name, family, drop, n, told (enough questions), significant;
    names in the order to be shown. Significant cells are framed and bold; families with too few
    questions stay grey. Of more than MOST_NAMES, those with the largest effects are shown.
    """
    drops = effects["drop"].abs().where(effects["told"], 0)
    largest = drops.groupby(effects["name"], sort=False).max()
    names = list(largest.index[largest.index.isin(largest.nlargest(MOST_NAMES).index)])
    labels = style.count_under(effects, "family")
    labels = [label.replace(" ", "\n") for label in labels.values()], list(labels)
    what, modes = "head" if "head" in effects else "layer", list(effects["mode"].unique())
    size = (max(6.5, 0.75 * len(labels[1]) + 1.6), len(modes) * (0.26 * len(names) + 1.2) + 0.4)
    figure, axes = plt.subplots(len(modes), 1, figsize=size, squeeze=False)
    for axis, mode in zip(axes[:, 0], modes, strict=True):
        cells = effects[effects["mode"] == mode], ("name", "family"), names, labels[1]
        image = style.plot_drops(axis, *cells, largest.max(), fontsize=9)
        axis.set_xticks(range(len(labels[1])), labels[0], fontsize=8.5)
        axis.set(title=MODES[mode], ylabel=what)
    axis.set_xlabel("question type")
    bar = figure.colorbar(image, ax=figure.axes, label="accuracy lost, points", pad=0.01)
    ends = effects["drop"].where(effects["told"]).agg(["min", "max"])
    if ends["min"] < ends["max"]:
        bar.ax.set_ylim(*ends)  # the colours that occur
    some = f"the {len(names)} of {len(largest)} {what}s that matter most"
    which = f"each {what}" if len(names) == len(largest) else some
    return style.set_title(figure, f"Accuracy lost without {which}")


@style.styled
def plot_importance(table: pd.DataFrame, measures: dict[str, str]) -> Figure:
    """What predicts importance? Accuracy lost without a head against cheap measures of it.

    table: a row a head with layer, name, drop, low, high and the columns of `measures`,
    {column: axis label with its unit}. The five heads that matter most are named where
    there is room; colour and marker of a point: its layer.
    """
    colors = mpl.colormaps["cividis"](np.linspace(0, 0.75, int(table["layer"].max()) + 1))
    figure, axes = plt.subplots(1, len(measures), figsize=(10, 4), sharey=True, squeeze=False)
    for axis, (column, label) in zip(axes.flat, measures.items(), strict=True):
        axis.axhline(0, **style.BASELINE)
        axis.axvline(0, **style.BASELINE)
        for layer, rows in table.groupby("layer"):
            look = {"marker": "osD^"[layer % 4], "color": colors[layer], "label": f"L{layer}"}
            look |= {"linewidth": 0.8, "capsize": 0, "markeredgecolor": "white", "markersize": 6.5}
            style.plot_intervals(axis, rows[column], rows, "drop", **look)
        axis.set_xlabel(label)
    axis = axes[0, 0]
    axis.set_yscale("symlog", linthresh=1)  # a few heads cost tens of points, most about one
    ticks = mpl.ticker.SymmetricalLogLocator(linthresh=1, base=10, subs=(1, 2, 5))
    axis.yaxis.set_major_locator(ticks)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("accuracy lost without the head, points\n(logarithmic above 1)")
    for axis, column in zip(axes.flat, measures, strict=True):
        _name_points(axis, table.assign(x=table[column]), table.nlargest(5, "drop").index)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", title="layer")
    title = "What predicts the accuracy lost without a head? One point a head (95 % intervals)"
    return style.set_title(figure, title)


def _name_points(axis: Axes, table: pd.DataFrame, named: Sequence[int]) -> None:
    """Write the names of some points beside them, where no marker, bar or other name is.

    table: a row a point, with name, x, drop, low, high; named: index of the rows to be named.
    """
    table = table.assign(**{y: table[y].fillna(table["drop"]) for y in ("low", "high")})
    ends = (axis.transData.transform(table[["x", y]]) for y in ("low", "high"))
    points = dict(zip(table.index, axis.transData.transform(table[["x", "drop"]]), strict=True))
    unit, size = axis.figure.dpi / 72, 8  # pixels a point; of the letters
    bars = zip(*ends, strict=True)
    taken = [(x - 4, low - 4, x + 4, high + 4) for (x, low), (_, high) in bars]
    for row in named:
        (x, y), name = points[row], table.loc[row, "name"]
        width, height = 0.7 * size * len(name) * unit, 1.2 * size * unit
        for side, up in ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            left = x + 5 * unit if side > 0 else x - 5 * unit - width
            bottom = y - height / 2 + up * height
            box = left, bottom, left + width, bottom + height
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3]
                       for b in taken):  # fmt: skip
                look = {"ha": "left" if side > 0 else "right", "va": "center", "fontsize": size}
                at = {"xytext": (5 * side, up * 1.2 * size), "textcoords": "offset points"}
                axis.annotate(name, (table.loc[row, "x"], table.loc[row, "drop"]), **at, **look)
                taken.append(box)
                break


@style.styled
def plot_agreement(
    table: pd.DataFrame, predictors: Sequence[str], outcomes: Sequence[str]
) -> Figure:
    """Do cheap measures of a head predict what interventions find? A panel a value of `over`.

    table: of `rank_measures` (rank correlations). predictors: measures in rows; outcomes: those
    they are held against, three at most.
    """
    size = (10, 0.46 * len(predictors) + 1.7)
    figure, panels = style.make_panels(table, "over", size, sharey=True)
    for axis, over, of_panel in panels:
        axis.axvline(0, **style.BASELINE)
        for number, outcome in enumerate(outcomes):
            marker, color = OUTCOME_LOOKS[number]
            rows = of_panel[of_panel["second"] == outcome].set_index("first").reindex(predictors)
            look = {"horizontal": True, "marker": marker, "color": color, "label": outcome}
            position = style.dodge(predictors, number, outcomes, 0.24)
            style.plot_intervals(axis, position, rows, "correlation", capsize=0, **look)
        axis.set(title=over, xticks=(-1, -0.5, 0, 0.5, 1), **CORRELATION)
        axis.grid(axis="y")
    style.name_rows(figure.axes[0], predictors, fontsize=9)
    style.place_legend(figure, figure.axes[:1], title="against")
    question = "What predicts the effect of an intervention on a head?"
    return style.set_title(figure, f"{question} (95 % intervals over heads)")


@style.styled
def plot_carriers(table: pd.DataFrame) -> Figure:
    """Which heads carry an answer from one image to another: all heads, and the strongest twelve.

    table: a row a head with layer, head, name, share, low, high (in % of the whole change),
    significant.
    """
    shape = (table["layer"].max() + 1, table["head"].max() + 1)
    largest = max(1.0, table["share"].abs().max())
    size = (10, max(3.2, 0.3 * shape[0] + 1.6))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1.25, 1))
    values = style.fill_grid(table, "share", shape)
    framed = style.fill_grid(table.assign(framed=1.0 * table["significant"]), "framed", shape) == 1
    look = {"limits": (-largest, largest), "framed": framed}
    image = style.plot_heads_grid(left, values, style.format_cells(values), **look)
    left.set_title("every head, % of the change carried")
    figure.colorbar(image, ax=left, pad=0.02)
    first = table.loc[table["share"].abs().nlargest(12).index].reset_index(drop=True)
    right.axvline(0, **style.BASELINE)
    look = {"horizontal": True, "color": "black", "markersize": 4, "capsize": 0}
    style.plot_intervals(right, first.index, first, "share", **look)
    style.name_rows(right, first["name"], fontsize=8)
    right.set_title(f"the {len(first)} largest (95 % intervals)")
    right.set_xlabel("% of the change carried")
    title = "The answer's change that comes with one head from another image"
    return style.set_title(figure, title)
