"""Figures of notebook 05: role scores, the role map, stability, ablation, attention against importance.

Scores come from `heads.score_roles`, effects from `heads.ablation_effects`; figures are returned, not shown.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Patch, Rectangle

from helpers.plots import (
    GREY,
    IMAGE_COLOR,
    TEXT_COLOR,
    close_figure,
    draw_intervals,
    figure_style,
    measure_bars,
)

ROLE_LOOKS = {  # role: short name, colour; the short name stands beside the colour everywhere
    "text->image reader": ("W→I", IMAGE_COLOR),
    "image->text reader": ("P→T", TEXT_COLOR),
    "[CLS] reader of words": ("C→W", "#56B4E9"),
    "[CLS] reader of patches": ("C→P", "#E69F00"),
    "text local": ("T near", "#009E73"),
    "text global": ("T far", "#8FD9C0"),
    "patch local": ("P near", "#CC79A7"),
    "patch global": ("P far", "#EBC9DC"),
    "sink": ("sink", "#B0B0B0"),
    "grounding": ("box", "#F0E442"),
}
MODE_LOOKS = {"zero": ("o", "#000000"), "mean": ("s", "#CC79A7")}  # marker, colour
LEAST_SCORE = -1.0  # scores of readers can fall far below; they are drawn at this edge


def plot_role_scores(scores: pd.DataFrame):
    """Every head's score on every role, with intervals, against its untrained self: a panel a role.

    scores: columns layer, head, name, role, score, low, high, null, passes.
    """
    roles = list(scores["role"].unique())
    rows = -(-len(roles) // 2)
    with figure_style():
        figure, axes = plt.subplots(
            rows, 2, figsize=(10, 1.9 * rows + 0.6), sharex=True, sharey=True, squeeze=False
        )
        for axis in axes.flat[len(roles) :]:
            axis.axis("off")
        for axis, role in zip(axes.flat, roles, strict=False):
            _draw_role(axis, scores[scores["role"] == role].reset_index(drop=True))
            axis.set_title(f"{role} ({ROLE_LOOKS[role][0]})", fontsize=9.5)
        for column in range(2):
            shown = [row for row in range(rows) if 2 * row + column < len(roles)]
            if shown:
                _name_heads(axes[shown[-1], column], scores.drop_duplicates("name").reset_index(drop=True))
        axes[0, 0].set_ylim(LEAST_SCORE - 0.08, 1.08)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.supylabel("role score (0: uniform or chance, 1: the most possible)", fontsize=10)
        figure.suptitle(
            "Role scores of every head, trained and untrained (95 % intervals over images)", fontsize=11
        )
    return close_figure(figure)


def _draw_role(axis, heads: pd.DataFrame) -> None:
    """One panel of `plot_role_scores`: points at their score, or an arrow at the edge where it is lower."""
    place = np.arange(len(heads))
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axhline(heads["null"].max(), color=GREY, linewidth=1, linestyle=":", label="highest untrained head")
    axis.plot(place, heads["null"].clip(lower=LEAST_SCORE), "s", color=GREY, markersize=4, label="untrained")
    size = 5 if len(heads) <= 32 else 3
    for passes, face, label in ((False, "white", "trained"), (True, TEXT_COLOR, "trained, has the role")):
        rows = heads["passes"].to_numpy(bool) == passes
        inside = rows & (heads["score"] >= LEAST_SCORE).to_numpy()
        score = heads["score"].to_numpy(float)
        spread = measure_bars(score, heads["low"], heads["high"])
        axis.errorbar(place[inside], score[inside], yerr=spread[:, inside], fmt="o", color=TEXT_COLOR,
                      markerfacecolor=face, markersize=size, linewidth=1, label=label)  # fmt: skip
        below = rows & (score < LEAST_SCORE)
        axis.plot(place[below], np.full(below.sum(), LEAST_SCORE), "v", color=TEXT_COLOR, markerfacecolor="white",
                  markersize=size)  # fmt: skip
    for start in np.flatnonzero(np.diff(heads["layer"])):
        axis.axvline(start + 0.5, color="#DDDDDD", linewidth=0.8, zorder=0)


def _name_heads(axis, heads: pd.DataFrame, most: int = 32) -> None:
    """A tick a head, or a tick a layer where there are more heads than fit."""
    axis.tick_params(labelbottom=True)
    if len(heads) <= most:
        axis.set_xticks(range(len(heads)), heads["name"], rotation=90, fontsize=8)
    else:
        middle = pd.Series(range(len(heads))).groupby(heads["layer"]).mean()
        axis.set_xticks(middle, [f"L{layer}" for layer in middle.index], fontsize=8)
    axis.set_xlabel("head (first layer at the left)")


def plot_role_map(scores: pd.DataFrame):
    """Which head has which roles: layers downwards, heads across, a coloured and named band for each role.

    scores: columns layer, head, name, role, score, passes, reaches_answer. Best role on top; a role that the
    answer cannot depend on is pale and in brackets; a head without a role is white.
    """
    n_layers, n_heads = scores["layer"].max() + 1, scores["head"].max() + 1
    wide, high = (1.5, 0.95) if n_heads <= 6 else (0.8, 0.72)  # inches a head
    passed = scores[scores["passes"]].sort_values("score", ascending=False, kind="stable")
    with figure_style():
        size = (max(7.5, wide * n_heads + 1), high * n_layers + 1.9)
        figure, axis = plt.subplots(figsize=size)
        for (layer, head), own in passed.groupby(["layer", "head"]):
            for number, row in enumerate(own.itertuples()):
                short, color = ROLE_LOOKS[row.role]
                bottom, part = layer - 0.5 + number / len(own), 1 / len(own)
                axis.add_patch(Rectangle((head - 0.5, bottom), 1, part, facecolor=color, linewidth=0,
                                         alpha=1 if row.reaches_answer else 0.35))  # fmt: skip
                dark = np.dot(mpl.colors.to_rgb(color), (0.299, 0.587, 0.114)) < 0.45 and row.reaches_answer
                axis.text(head, bottom + part / 2, short if row.reaches_answer else f"({short})", ha="center",
                          va="center_baseline", fontsize=min(9, 52 * high * part), color="white" if dark else "black")  # fmt: skip
        for layer, head in np.ndindex(n_layers, n_heads):
            axis.add_patch(
                Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor="#444444", linewidth=0.8)
            )
        axis.set(xlim=(-0.5, n_heads - 0.5), ylim=(n_layers - 0.5, -0.5))
        axis.set_title("Roles of each head, the clearest on top")
        axis.set_xticks(range(n_heads), [f"H{head}" for head in range(n_heads)])
        axis.set_yticks(range(n_layers), [f"L{layer}" for layer in range(n_layers)])
        axis.set(xlabel="head", ylabel="layer (L0 reads the embeddings)")
        axis.tick_params(length=0)
        handles = [Patch(facecolor=ROLE_LOOKS[role][1], label=f"{ROLE_LOOKS[role][0]}: {role}")
                   for role in scores["role"].unique()]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5)
    return close_figure(figure)


def plot_stability(both: pd.DataFrame, agreement: pd.DataFrame):
    """Do two halves of the images tell the same? Scores against each other, and agreement a role.

    both: a row a head and role with role, score_a, score_b; agreement: of `heads.compare_roles`, its column
    `agreement` NaN where a half has not enough questions for verdicts.
    """
    with figure_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), width_ratios=(1, 1.25))
        ends = np.array([both[["score_a", "score_b"]].min().min(), 1.0])
        left.plot(ends, ends, color=GREY, linestyle="--", linewidth=1)
        for number, (role, own) in enumerate(both.groupby("role", sort=False)):
            left.plot(own["score_a"], own["score_b"], "osD^v"[number % 5], color=ROLE_LOOKS[role][1], label=ROLE_LOOKS[role][0],
                      markersize=5, markeredgecolor="#444444", markeredgewidth=0.5)  # fmt: skip
        left.set(xlabel="role score, first half of the images", ylabel="role score, other half",
                 title="Every head and role, half against half")  # fmt: skip
        left.legend(fontsize=8, loc="upper left", handletextpad=0.1, labelspacing=0.25)
        place = np.arange(len(agreement))
        value = agreement["correlation"].to_numpy(float)
        spread = measure_bars(value, agreement["low"], agreement["high"])
        right.errorbar(value, place, xerr=spread, fmt="o", color=TEXT_COLOR, capsize=2.5, markersize=5)
        for row, own in zip(place, agreement.itertuples(), strict=True):
            text = f"{100 * own.agreement:.0f} % ({own.passes_a} and {own.passes_b} of {own.n_heads})"
            text = "not enough questions" if np.isnan(own.agreement) else text
            right.text(1.06, row, text, va="center", fontsize=8.5, transform=right.get_yaxis_transform())
            if np.isnan(own.correlation):
                right.text(0.5, row, "heads do not differ", va="center", ha="center", fontsize=8.5, color=GREY,
                           transform=right.get_yaxis_transform())  # fmt: skip
        right.text(1.06, -0.9, "same verdict\n(heads that pass)", va="bottom", fontsize=8.5, transform=right.get_yaxis_transform())  # fmt: skip
        right.axvline(0, color=GREY, linewidth=0.8)
        right.set_yticks(
            place, [f"{role} ({ROLE_LOOKS[role][0]})" for role in agreement["role"]], fontsize=8.5
        )
        right.set(xlim=(min(-0.05, np.fmin.reduce(agreement["low"], initial=0) - 0.05), 1.05), ylim=(len(agreement) - 0.5, -0.8), title="Agreement of the halves",
                  xlabel="rank correlation over heads")  # fmt: skip
    return close_figure(figure)


def plot_ablation(effects: pd.DataFrame, most: int = 24):
    """Accuracy lost without each head, per family: heads downwards, families across, a panel a mode.

    effects: columns mode, layer, head, name, family, drop, n, told (enough questions), significant. Significant
    cells are framed and bold; families with too few questions stay grey. Of more than `most` heads, those
    with the largest effects are shown.
    """
    told = effects[effects["told"]]
    largest = max(1.0, told["drop"].abs().max()) if len(told) else 1.0
    weight = (
        effects.assign(size=effects["drop"].abs().where(effects["told"], 0))
        .groupby(["layer", "head", "name"])["size"]
        .max()
    )
    names = list(
        weight.sort_values(ascending=False, kind="stable")
        .head(most)
        .sort_index()
        .index.get_level_values("name")
    )
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
                range(len(families)), [f"{f}\nn={counts[f]}" for f in families], rotation=55, fontsize=8
            )
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.set_title(f"head's output replaced by {'its mean' if mode == 'mean' else 'zero'}")
            axis.set_xlabel("question family")
            axis.tick_params(length=0)
        axes[0, 0].set_ylabel("head")
        figure.colorbar(artist, ax=axes, label="accuracy lost, points (red: worse without it)", pad=0.01)
        some = f"the {len(names)} of {len(weight)} heads that matter most"
        which = "each head" if len(names) == len(weight) else some
        figure.suptitle(f"Accuracy lost without {which}", fontsize=11)
    return close_figure(figure)


def _write_cell(axis, row: int, column: int, drop: float, significant: bool, largest: float) -> None:
    color = "white" if abs(drop) > 0.6 * largest else "black" if significant else "#666666"
    axis.text(column, row, f"{drop:.0f}".replace("-0", "0") if abs(drop) < 0.5 else f"{drop:.0f}".replace("-", "−"),
              ha="center", va="center", fontsize=7.5, color=color, fontweight="bold" if significant else "normal")  # fmt: skip
    if significant:
        axis.add_patch(
            Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="black", linewidth=1)
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
                axis, rows, place, color, f"replaced by {'its mean' if mode == 'mean' else 'zero'}", marker
            )
        labels = [
            f"{c.name}\n{c.family}\nn={c.n}" for c in cells[["name", "family", "n"]].itertuples(index=False)
        ]
        axis.set_xticks(range(len(cells)), labels, fontsize=8.5)
        axis.set(ylabel="accuracy lost, points", xlabel="head and question family",
                 title=f"The {len(cells)} largest effects of removing one head (95 % intervals over images)")  # fmt: skip
        axis.grid(axis="y", alpha=0.25)
        axis.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=9, columnspacing=1, borderpad=0.1
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
                    name, (x, y), xytext=(5, (3, -10)[number % 2]), textcoords="offset points", fontsize=8
                )
            axis.set(xlabel=label)
        axes[0, 0].set_yscale("symlog", linthresh=1)  # a few heads cost tens of points, most about one
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
