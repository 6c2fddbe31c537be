"""The study, its data, training, accuracy, runs."""

from collections.abc import Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helpers.figures import style
from helpers.figures.style import GREEN, GREY, IMAGE_COLOR, SKY, TEXT_COLOR

ACCURACY = "VQA accuracy, %"


@style.styled()
def plot_study(tokens: Sequence[str], grid: tuple[int, int]) -> Figure:
    """The tokens of one ViLT input, coloured by the five groups of keys.

    tokens: the question's tokens with [CLS] and [SEP]; grid: rows and columns of patches.
    """
    n_patches = grid[0] * grid[1]
    groups = ["[CLS]"] + ["words"] * (len(tokens) - 2) + ["[SEP]", "image CLS"]
    groups += ["patches"] * n_patches
    figure, line = plt.subplots(figsize=(10, 2))
    line.bar(range(len(groups)), 1, 0.92, color=[style.GROUP_COLORS[group] for group in groups])
    names, look = [*tokens, "image\nCLS"], {"rotation": 55, "rotation_mode": "anchor"}
    line.set_xticks(range(len(names)), names, ha="right", fontsize=8, **look)
    middle, rows = len(tokens) + n_patches / 2, f"{grid[0]} × {grid[1]} patches, row by row"
    line.text(middle, -0.25, rows, ha="center", va="top", fontsize=9)
    look = {"ha": "center", "fontweight": "bold"}
    line.text((len(tokens) - 1) / 2, 1.12, "text", color=TEXT_COLOR, **look)
    line.text(middle, 1.12, "image", color=IMAGE_COLOR, **look)
    line.set(xlim=(-1, len(groups)), ylim=(0, 1.7), yticks=[])
    line.set_title("The token sequence: five groups of keys, one softmax over all of them")
    line.tick_params(length=0)
    line.spines[:].set_visible(False)
    return figure


@style.styled()
def plot_dataset(questions: pd.DataFrame, families_in_order: Sequence[str]) -> Figure:
    """The data at a glance: families, answers, question lengths, patch counts.

    questions: one row a question with part (train, validation), family, multiple_choice_answer,
    n_words, n_patches. Families without a question are not drawn.
    """
    figure, ((families, answers), (words, patches)) = plt.subplots(2, 2, figsize=(10, 6.2))
    asked = set(questions["family"])
    order = [family for family in families_in_order if family in asked]
    palette = [SKY, GREY][: questions["part"].nunique()]
    sns.countplot(questions, y="family", hue="part", order=order, palette=palette, ax=families)
    families.set(xlabel="questions", ylabel="", title="Questions of each type")
    families.legend(title=None, loc="lower center", bbox_to_anchor=(0.5, -0.36), ncols=2)
    common = questions["multiple_choice_answer"].value_counts().head(12).index
    look = {"order": common, "color": GREEN}
    sns.countplot(questions, y="multiple_choice_answer", ax=answers, **look)
    answers.set(xlabel="questions", ylabel="", title=f"The {len(common)} most common answers")
    for axis, column, color, label in (
        (words, "n_words", TEXT_COLOR, "word pieces in a question"),
        (patches, "n_patches", IMAGE_COLOR, "patches in a picture"),
    ):
        look = {"discrete": True, "shrink": 0.8, "alpha": 1, "color": color}
        sns.histplot(questions, x=column, ax=axis, **look)
        axis.set(xlabel=label, ylabel="questions", title=label.capitalize())
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


@style.styled()
def plot_patches(picture: style.Picture, resized: np.ndarray, grid: tuple[int, int]) -> Figure:
    """What pre-processing does to one picture: as it came, resized, and cut into patches."""
    (height, width), (rows, columns) = np.shape(picture)[:2], resized.shape[:2]
    titles = {
        f"as it came: {width} × {height} pixels": picture,
        f"resized for ViLT: {columns} × {rows} pixels": resized,
        f"{grid[0]} × {grid[1]} patches, numbered in raster order": resized,
    }
    cards = [{"title": title, "picture": shown} for title, shown in titles.items()]
    figure = style.draw_maps(cards, 3)
    axis, high, wide = figure.axes[2], rows / grid[0], columns / grid[1]
    axis.hlines(high * np.arange(1, grid[0]), 0, columns, "white", linewidth=1)
    axis.vlines(wide * np.arange(1, grid[1]), 0, rows, "white", linewidth=1)
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "linewidth": 0}
    for patch in range(grid[0] * grid[1] if grid[0] * grid[1] <= 60 else 0):
        y, x = divmod(patch, grid[1])
        corner = ((x + 0.06) * wide, (y + 0.06) * high)
        axis.text(*corner, str(patch), va="top", fontsize=8, bbox=box)
    return figure


@style.styled()
def plot_training(curves: pd.DataFrame, prior: float) -> Figure:
    """Loss and validation accuracy against the step.

    curves: columns step, loss, eval_accuracy (NaN where not measured); prior: accuracy in [0, 1] of
    answering by question type alone.
    """
    loss, accuracy = "training loss (cross-entropy, summed over answers)", f"validation, {ACCURACY}"
    curves = curves.assign(**{loss: curves["loss"], accuracy: 100 * curves["eval_accuracy"]})
    table = curves.melt("step", [loss, accuracy], "what", "estimate").dropna()
    prior = np.where(table["what"] == accuracy, 100 * prior, np.nan)
    table = table.assign(low=np.nan, high=np.nan, prior=prior, model="the model in training")
    look = {"baselines": {"type prior": "prior"}, "limits": (0, None), "sharey": False}
    return style.draw_lines(table, "step", "model", ("training step", ""), "what", **look)


@style.styled("Accuracy by question type (95 % intervals over images)")
def plot_accuracy(table: pd.DataFrame) -> Figure:
    """Forest of a table: family, answerer, estimate, low, high (in [0, 1]), n; in their order."""
    table = table.assign(name=style.name_with_n(table, "family"))
    return style.draw_forest(table, "name", ACCURACY, hue="answerer", scale=100)


@style.styled("Do the claims hold in every run? (95 % intervals)")
def plot_runs(table: pd.DataFrame) -> Figure:
    """Forests of a table: run, key, claim (a panel each), unit, threshold, estimate, low, high (of
    `compare_claims`). Claims without a number in any run are left out.
    """
    table = table[table.groupby("key")["estimate"].transform("count") > 0]
    labels = {key: (fill(rows["claim"].iloc[0].replace("*", ""), 34), rows["unit"].iloc[0])
              for key, rows in table.groupby("key")}  # fmt: skip
    look = {"baselines": {"what is asked": "threshold"}, "across": 3}
    return style.draw_forest(table, "run", "", "key", labels, **look)
