"""Figures of notebook 05: role scores and the role map, from `heads.score_roles`; figures are returned, not shown."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Patch, Rectangle

from helpers.figures.style import (
    GREY,
    IMAGE_COLOR,
    TEXT_COLOR,
    close_figure,
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
                _name_heads(
                    axes[shown[-1], column], scores.drop_duplicates("name").reset_index(drop=True)
                )
        axes[0, 0].set_ylim(LEAST_SCORE - 0.08, 1.08)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.supylabel("role score (0: uniform or chance, 1: the most possible)", fontsize=10)
        figure.suptitle(
            "Role scores of every head, trained and untrained (95 % intervals over images)",
            fontsize=11,
        )
    return close_figure(figure)


def _draw_role(axis, heads: pd.DataFrame) -> None:
    """One panel of `plot_role_scores`: points at their score, or an arrow at the edge where it is lower."""
    place = np.arange(len(heads))
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axhline(
        heads["null"].max(), color=GREY, linewidth=1, linestyle=":", label="highest untrained head"
    )
    axis.plot(
        place,
        heads["null"].clip(lower=LEAST_SCORE),
        "s",
        color=GREY,
        markersize=4,
        label="untrained",
    )
    size = 5 if len(heads) <= 32 else 3
    for passes, face, label in (
        (False, "white", "trained"),
        (True, TEXT_COLOR, "trained, has the role"),
    ):
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
                dark = (
                    np.dot(mpl.colors.to_rgb(color), (0.299, 0.587, 0.114)) < 0.45
                    and row.reaches_answer
                )
                axis.text(head, bottom + part / 2, short if row.reaches_answer else f"({short})", ha="center",
                          va="center_baseline", fontsize=min(9, 52 * high * part), color="white" if dark else "black")  # fmt: skip
        for layer, head in np.ndindex(n_layers, n_heads):
            axis.add_patch(
                Rectangle(
                    (head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor="#444444", linewidth=0.8
                )
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
