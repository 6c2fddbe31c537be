"""Figures of notebook 05 about roles: whether they would be found again, and a card for each."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from helpers.figures.style import (
    GREY,
    IMAGE_COLOR,
    TEXT_COLOR,
    close_figure,
    figure_style,
    measure_bars,
    show_heatmap,
)

COMPARISON_LOOKS = [("o", TEXT_COLOR), ("s", IMAGE_COLOR), ("D", "#009E73")]  # marker, colour


def plot_comparisons(table: pd.DataFrame):
    """Would the same heads have the same roles again? Rank correlations of scores and equal verdicts, role by role.

    table: of `heads.compare_roles`, with a column comparison (three at most); NaN draws nothing.
    """
    roles, names = list(table["role"].unique()), list(table["comparison"].unique())
    with figure_style():
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(10, 0.42 * len(roles) + 1.6), sharey=True
        )
        for number, name in enumerate(names):
            own = table[table["comparison"] == name].set_index("role").reindex(roles)
            place = np.arange(len(roles)) + 0.22 * (number - (len(names) - 1) / 2)
            (marker, color), bars = (
                COMPARISON_LOOKS[number],
                measure_bars(own["correlation"], own["low"], own["high"]),
            )
            left.errorbar(own["correlation"], place, xerr=bars, fmt=marker, color=color, markersize=5, linewidth=1,
                          label=name)  # fmt: skip
            right.plot(100 * own["agreement"], place, marker, color=color, markersize=5)
        left.axvline(0, color=GREY, linewidth=1, linestyle="--")
        left.set_yticks(range(len(roles)), roles, fontsize=9)
        left.set(
            title="Do scores rank the heads alike?",
            xlabel="rank correlation over heads",
            xlim=(-1.05, 1.05),
        )
        right.set(
            title="Do the same heads have the role?",
            xlabel="% of heads with the same verdict",
            xlim=(-3, 103),
        )
        for axis in (left, right):
            axis.grid(axis="y", alpha=0.25)
        left.invert_yaxis()
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return close_figure(figure)


def plot_role_cards(cards: Sequence[dict]):
    """A card for each role: the head that shows it most, a typical map, its score, and what its removal costs.

    cards: dicts with role, name, question, passes, score, low, high, highest_null; drops: a table with family, drop,
    significant; and either tokens and weights (token,), or picture, weights (rows, columns) and boxes.
    """
    rows = -(-len(cards) // 2)
    with figure_style():
        figure = plt.figure(figsize=(10.5, 2.5 * rows))
        grid = figure.subfigures(rows, 2, squeeze=False, wspace=0.02, hspace=0.02)
        for part, card in zip(grid.flat, cards, strict=False):
            verdict = "" if card["passes"] else " (no role)"
            score = f"score {card['score']:.2f} [{card['low']:.2f}, {card['high']:.2f}], untrained at most {card['highest_null']:.2f}"
            title = f"{card['role']}: {card['name']}{verdict}\n" + score.replace("-", "−")
            part.suptitle(title, fontsize=9.5, x=0.02, ha="left")
            left, right = part.subplots(1, 2, width_ratios=(1.25, 1))
            if "tokens" in card:
                draw_tokens(left, card["tokens"], card["weights"])
            else:
                show_heatmap(left, card["picture"], card["weights"], boxes=card["boxes"])
            left.set_title(card["question"].replace("$", r"\$"), fontsize=8, wrap=True)
            draw_costs(right, card["drops"])
    return close_figure(figure)


def draw_tokens(axis, tokens: Sequence[str], weights: np.ndarray) -> None:
    """Attention to each token as bars, the tokens downwards."""
    axis.barh(range(len(tokens)), weights, color=TEXT_COLOR)
    size = min(7, 75 / len(tokens))  # the card is about 100 points high
    axis.set_yticks(
        range(len(tokens)), [token.replace("$", r"\$") for token in tokens], fontsize=size
    )
    axis.invert_yaxis()
    axis.set_xlabel("share of attention", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)


def draw_costs(axis, drops: pd.DataFrame) -> None:
    """Points lost by family without the head; coloured where significant."""
    colors = [IMAGE_COLOR if sure else "#BBBBBB" for sure in drops["significant"]]
    axis.barh(range(len(drops)), drops["drop"], color=colors)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set_yticks(range(len(drops)), drops["family"], fontsize=7)
    axis.set_ylim(max(4, len(drops)) - 0.5, -0.5)  # first at the top
    axis.set_xlabel("points lost without it", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
