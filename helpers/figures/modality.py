"""Figures of notebook 04 on how much answers need words and image: by family, and how measures agree."""

import matplotlib.pyplot as plt
import pandas as pd

from helpers.figures.style import (
    GREY,
    IMAGE_COLOR,
    TEXT_COLOR,
    close_figure,
    figure_style,
    measure_bars,
)

CONTROL_COLOR = "#6E6E6E"
MARKERS = (
    "oD",
    "ss",
)  # of a panel's first and second measure: questions, controls; the second is hollow
PANELS = {  # title: (unit, baseline, colour, measures with the name of each); the second measure is hollow
    "[CLS] looks at the image": (
        "excess image share, points", 0, IMAGE_COLOR,
        {"image share, last layer": "last layer", "image share, all layers": "mean of layers"},
    ),
    "answer without the image": (
        "accuracy lost, points", 0, IMAGE_COLOR,
        {"image removed": "removed", "image exchanged": "exchanged"},
    ),
    "answer without the words": (
        "accuracy lost, points", 0, TEXT_COLOR, {"words removed": "all but the first word"},
    ),
    "image's part by MM-SHAP": ("share of |Shapley values|, %", 50, IMAGE_COLOR, {"MM-SHAP": "image blocks"}),
}  # fmt: skip
SCORES = {  # title: (axis, value that says nothing, limits)
    "ranks": ("does it rank families as the loss does?", "Spearman, over n families", 0, (-1.1, 1.1)),
    "controls": ("does it tell controls apart?", "AUC, over n questions", 0.5, (-0.03, 1.03)),
}  # fmt: skip


def plot_needs(table: pd.DataFrame):
    """The measures of what answers need, side by side: a family a row, the first at the top, a panel each of
    PANELS.

    table: family, kind (the first in colour; a second, controls, grey and below), measure (those of PANELS),
    estimate, low, high (points or %), n, enough. Measures without numbers get no panel. Hollow: the panel's
    second measure; faint: too few questions to tell. A panel whose n are not those at the left writes its
    own.
    """
    table = table.dropna(subset=["estimate"])
    families, kinds = list(table["family"].unique()), list(table["kind"].unique())
    panels = {
        title: panel for title, panel in PANELS.items() if table["measure"].isin(panel[3]).any()
    }
    counts = count_questions(table).reindex(index=families, columns=kinds)
    counts[kinds[0]] = counts[kinds[0]].fillna(0)
    with figure_style():
        size = (10, 1.9 + (0.3 + 0.18 * len(kinds)) * len(families))
        figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
        for axis, (title, (unit, baseline, color, names)) in zip(
            axes[0], panels.items(), strict=True
        ):
            axis.axvline(baseline, color=GREY, linestyle="--", linewidth=1)
            rows = table[table["measure"].isin(names)]
            draw_rows(axis, rows, families, kinds, list(names), color)
            write_counts(axis, rows, families, counts)
            axis.set_title(title, fontsize=10)
            marks = (
                dict(zip(names, "●◇", strict=False)) if len(names) > 1 else dict.fromkeys(names, "")
            )
            drawn = [
                f"{marks[key]} {name}".strip()
                for key, name in names.items()
                if key in set(rows["measure"])
            ]
            axis.set_xlabel(f"{unit}\n{'  '.join(drawn)}", fontsize=9)
            axis.grid(axis="x", alpha=0.25)
        labels = [f"{family}\nn = {join_counts(counts.loc[family])}" for family in families]
        axes[0, 0].set_yticks(range(len(families)), labels)
        axes[0, 0].set_ylim(len(families) - 0.45, -0.55)
        title = "What do the answers of each family need?" + (
            f" (grey squares: {kinds[1]})" if kinds[1:] else ""
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return close_figure(figure)


def draw_rows(
    axis, table: pd.DataFrame, families: list, kinds: list, measures: list, color: str
) -> None:
    """One panel's points and intervals: in a family's row kinds one below the other, and measures within."""
    for row in table.itertuples():
        here = [kind for kind in kinds if kind in set(table["kind"][table["family"] == row.family])]
        kind, measure = kinds.index(row.kind), measures.index(row.measure)
        step = here.index(row.kind) * len(measures) + measure - (len(here) * len(measures) - 1) / 2
        look = color if kind == 0 else CONTROL_COLOR
        face = "white" if measure else look
        axis.errorbar(
            row.estimate, families.index(row.family) + 0.64 * step / max(len(kinds) * len(measures), 2),
            xerr=measure_bars([row.estimate], [row.low], [row.high]), color=look, markerfacecolor=face,
            fmt=MARKERS[min(kind, 1)][measure], markersize=5, capsize=2, linewidth=1.2,
            alpha=1 if row.enough else 0.4,
        )  # fmt: skip


def write_counts(axis, table: pd.DataFrame, families: list, stated: pd.DataFrame) -> None:
    """Numbers of questions at the right of a panel, if not those stated at the left of the figure."""
    own = count_questions(table).reindex(index=stated.index, columns=stated.columns)
    own = own.fillna(0).where(stated.notna())
    if (own.fillna(0) == stated.fillna(0)).all(axis=None):
        return
    for family in families:
        write_beside(axis, families.index(family), f"n = {join_counts(own.loc[family])}")


def write_beside(axis, row: int, text: str) -> None:
    """A small text at the right of an axis, beside a row."""
    look = {"va": "center", "fontsize": 8, "color": CONTROL_COLOR}
    axis.text(1.02, row, text, transform=axis.get_yaxis_transform(), **look)


def count_questions(table: pd.DataFrame) -> pd.DataFrame:
    """The most questions behind a number, family by kind; NaN where there is no number."""
    return table.pivot_table(index="family", columns="kind", values="n", aggfunc="max")


def join_counts(counts: pd.Series) -> str:
    """Numbers of questions of each kind: "428 + 72"; a kind that a family has not (NaN) is left out."""
    return " + ".join(f"{n:,.0f}" for n in counts.dropna())


def plot_scores(table: pd.DataFrame):
    """How the measures fare: their agreement over families with the accuracy lost, and how they tell controls
    apart.

    table: measure (the first at the top), score ("ranks", "controls"), estimate, low, high, n. A score
    without numbers gets no panel; dashed: what a measure that knows nothing would get.
    """
    table = table.dropna(subset=["estimate"])
    place = {measure: number for number, measure in enumerate(table["measure"].unique())}
    scores = [name for name in SCORES if name in set(table["score"])]
    with figure_style():
        size = (10 if len(scores) > 1 else 6.5, 1.5 + 0.36 * len(place))
        figure, axes = plt.subplots(1, len(scores), figsize=size, sharey=True, squeeze=False)
        for axis, score in zip(axes[0], scores, strict=True):
            title, unit, nothing, limits = SCORES[score]
            rows = table[table["score"] == score]
            axis.axvline(nothing, color=GREY, linestyle="--", linewidth=1)
            for row in rows.itertuples():
                attention = row.measure.startswith("image share")
                color, marker = (IMAGE_COLOR, "o") if attention else ("#009E73", "^")
                bars = measure_bars([row.estimate], [row.low], [row.high])
                axis.errorbar(
                    row.estimate,
                    place[row.measure],
                    xerr=bars,
                    fmt=marker,
                    color=color,
                    markersize=6,
                    capsize=2.5,
                )
                write_beside(axis, place[row.measure], f"n = {row.n:,}")
            axis.set(title=title, xlabel=unit, xlim=limits)
            axis.grid(axis="x", alpha=0.25)
        axes[0, 0].set_yticks(range(len(place)), list(place))
        axes[0, 0].set_ylim(len(place) - 0.4, -0.6)
        title = "Attention (circles) and interventions (triangles); dashed: nothing is told"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return close_figure(figure)
