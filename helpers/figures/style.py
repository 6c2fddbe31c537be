"""The look of every figure, and the pictures with boxes and heatmaps that all notebooks share.

A plotting function takes arrays or tables, returns the matplotlib figure, and never calls show.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.patches import FancyArrowPatch, Rectangle

TEXT_COLOR, IMAGE_COLOR, GREY = (
    "#0072B2",
    "#D55E00",
    "#8C8C8C",
)  # Okabe-Ito blue and vermilion; grey: baselines
GROUP_COLORS = {
    "cls": "#5A5A5A", "words": TEXT_COLOR, "sep": "#9A9A9A", "img_cls": "#E69F00", "patches": IMAGE_COLOR,
}  # fmt: skip
GROUP_NAMES = {
    "cls": "[CLS]",
    "words": "words",
    "sep": "[SEP]",
    "img_cls": "image CLS",
    "patches": "patches",
}
STYLE = {
    "figure.dpi": 100, "savefig.dpi": 110, "figure.constrained_layout.use": True, "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "axes.titlelocation": "left",
    "legend.frameon": False, "image.cmap": "cividis", "text.parse_math": False,  # a question may hold two dollar signs
}  # fmt: skip


@contextmanager
def figure_style() -> Iterator[None]:
    """Inside, figures have the project's look: `with figure_style(): figure, axes = plt.subplots()`."""
    with mpl.rc_context(STYLE):
        yield


def close_figure(figure):
    """Return a figure that pyplot no longer holds, so that a notebook shows it once and memory stays flat."""
    plt.close(figure)
    return figure


def show_picture(axis, picture, title: str = "", boxes: Sequence[Sequence[float]] = ()) -> None:
    """Draw a picture (PIL or array) with its boxes [x, y, width, height] in its own pixels."""
    picture = np.asarray(picture)
    height, width = picture.shape[:2]
    look = {"cmap": "gray", "clim": (0, 255)}  # counts for a grey picture only
    axis.imshow(picture, extent=(0, width, height, 0), **look)
    for x, y, w, h in boxes:
        axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="white", linewidth=3.2))
        axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="black", linewidth=1.4))
    if title:  # wrapping measures what lies between two dollar signs as mathematics, unless they are escaped
        axis.set_title(title.replace("$", r"\$"), fontsize=9, wrap=True, parse_math=True)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def show_heatmap(
    axis, picture, weights: np.ndarray, title: str = "", boxes=(), largest: float | None = None
):
    """Lay attention over a picture: weights (rows, columns), the patch grid stretched over the whole picture.

    largest: the weight that gets the full colour; None: the largest here. Returns the image artist (for a colour bar).
    """
    picture = np.asarray(picture)
    height, width = picture.shape[:2]
    show_picture(axis, picture.mean(-1) if picture.ndim == 3 else picture, title)
    artist = axis.imshow(
        weights, extent=(0, width, height, 0), cmap="cividis", alpha=0.72, vmin=0,
        vmax=largest or max(float(np.max(weights)), 1e-12), interpolation="nearest",
    )  # fmt: skip
    for x, y, w, h in boxes:
        axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="white", linewidth=2))
    return artist


def measure_bars(estimate, low, high) -> np.ndarray:
    """Lengths (2, n) of error bars below and above; 0 where there is no interval, or on the side that it leaves out."""
    lengths = [np.subtract(estimate, low, dtype=float), np.subtract(high, estimate, dtype=float)]
    return np.nan_to_num(lengths).clip(min=0)


def draw_intervals(
    axis, table: pd.DataFrame, place: Sequence[float], color: str, label: str, marker: str = "o"
):
    """Points with their 95 % intervals from columns estimate, low, high (an absent interval draws no bar)."""
    estimate = table["estimate"].to_numpy(float)
    spread = measure_bars(estimate, table["low"], table["high"])
    axis.errorbar(
        place,
        estimate,
        yerr=spread,
        fmt=marker,
        color=color,
        capsize=2.5,
        label=label,
        markersize=5,
    )


def name_layers(axis, n_layers: int) -> None:
    """Give an axis one tick a layer, L0 at the left."""
    axis.set_xticks(range(n_layers), [f"L{layer}" for layer in range(n_layers)])
    axis.set_xlabel("layer (L0 reads the embeddings)")


def plot_study(tokens: Sequence[str], grid: tuple[int, int]):
    """The study in one picture: the data flow, and the token sequence of one ViLT input by group.

    tokens: the question's tokens with [CLS] and [SEP]; grid: rows and columns of the image's patches.
    """
    steps = ["question\n+ image", "one sequence\nof tokens", "ViLT: one stack\nof layers", "text [CLS]\n→ answer",
             "every layer, head:\nattention → split", "families, roles,\nablation"]  # fmt: skip
    n_patches = grid[0] * grid[1]
    groups = ["cls"] + ["words"] * (len(tokens) - 2) + ["sep", "img_cls"] + ["patches"] * n_patches
    with figure_style():
        figure, (flow, line) = plt.subplots(2, 1, figsize=(10, 3.6), height_ratios=(1, 1.1))
        for place, step in enumerate(steps):
            flow.text(place, 0, step, ha="center", va="center", fontsize=9,
                      bbox={"boxstyle": "round,pad=0.45", "facecolor": "#F3F3F3", "edgecolor": GREY})  # fmt: skip
            if place:
                flow.add_patch(
                    FancyArrowPatch(
                        (place - 0.60, 0), (place - 0.44, 0), arrowstyle="-|>", mutation_scale=11
                    )
                )
        flow.set(xlim=(-0.5, len(steps) - 0.5), ylim=(-0.6, 0.6))
        flow.set_title("What happens to a question and its image, and what is measured")
        for place, group in enumerate(groups):
            line.add_patch(Rectangle((place, 0), 0.92, 1, color=GROUP_COLORS[group]))
        names = [*tokens, "image\nCLS"]
        for place, name in enumerate(names):
            line.text(
                place + 0.46,
                -0.15,
                name,
                rotation=55,
                ha="right",
                va="top",
                fontsize=8,
                rotation_mode="anchor",
            )
        middle = len(names) + n_patches / 2
        line.text(
            middle,
            -0.25,
            f"{grid[0]} × {grid[1]} patches, row by row",
            ha="center",
            va="top",
            fontsize=9,
        )
        for place, text, color in (
            (len(tokens) / 2, "text", TEXT_COLOR),
            (middle, "image", IMAGE_COLOR),
        ):
            line.text(place, 1.12, text, ha="center", color=color, fontweight="bold")
        line.set(xlim=(-0.5, len(groups) + 0.5), ylim=(-2.1, 1.7))
        line.set_title("The token sequence: five groups of keys, one softmax over all of them")
        flow.axis("off")
        line.axis("off")
    return close_figure(figure)


def plot_dataset(questions: pd.DataFrame, top_answers: int = 12):
    """The data at a glance: families, answers, question lengths, patch counts.

    questions: one row a question with part (train, validation), family, multiple_choice_answer, n_words, n_patches.
    """
    with figure_style():
        figure, axes = plt.subplots(2, 2, figsize=(10, 6.2))
        families = questions["family"].value_counts().index
        colors = ["#56B4E9", GREY][: questions["part"].nunique()]
        sns.countplot(
            questions, y="family", hue="part", order=families, palette=colors, ax=axes[0, 0]
        )
        axes[0, 0].set(xlabel="questions", ylabel="", title="Questions of each family")
        axes[0, 0].legend(title=None, loc="lower center", bbox_to_anchor=(0.5, -0.36), ncols=2)
        common = questions["multiple_choice_answer"].value_counts().head(top_answers).index
        sns.countplot(
            questions, y="multiple_choice_answer", order=common, color="#009E73", ax=axes[0, 1]
        )
        axes[0, 1].set(
            xlabel="questions", ylabel="", title=f"The {len(common)} most common answers"
        )
        sns.histplot(
            questions,
            x="n_words",
            discrete=True,
            shrink=0.8,
            color=TEXT_COLOR,
            alpha=1,
            ax=axes[1, 0],
        )
        axes[1, 0].set(xlabel="word pieces", ylabel="questions", title="Word pieces in a question")
        sns.histplot(
            questions,
            x="n_patches",
            discrete=True,
            shrink=0.8,
            color=IMAGE_COLOR,
            alpha=1,
            ax=axes[1, 1],
        )
        axes[1, 1].set(xlabel="patches", ylabel="questions", title="Patches in an image")
        for axis in axes[1]:
            axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, min_n_ticks=1))
    return close_figure(figure)


def plot_examples(examples: Sequence[dict], columns: int = 3):
    """Questions with their pictures: dicts with picture, title, boxes and a caption under the picture."""
    rows = -(-len(examples) // columns)
    with figure_style():
        figure, axes = plt.subplots(
            rows, columns, figsize=(3.4 * columns, 3.5 * rows), squeeze=False
        )
        for axis in axes.flat[len(examples) :]:
            axis.axis("off")
        for axis, example in zip(axes.flat, examples, strict=False):
            show_picture(axis, example["picture"], example["title"], example.get("boxes", ()))
            axis.set_xlabel(example.get("caption", ""), fontsize=8)
    return close_figure(figure)


def plot_patches(picture, resized: np.ndarray, grid: tuple[int, int]):
    """What pre-processing does to one picture: as it came, resized, and cut into numbered patches."""
    with figure_style():
        figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
        height, width = np.asarray(picture).shape[:2]
        show_picture(axes[0], picture, f"as it came: {width} × {height} pixels")
        rows, columns = resized.shape[:2]
        show_picture(axes[1], resized, f"resized for ViLT: {columns} × {rows} pixels")
        show_picture(axes[2], resized, f"{grid[0]} × {grid[1]} patches, numbered in raster order")
        high, wide = rows / grid[0], columns / grid[1]
        for patch in range(grid[0] * grid[1]):
            y, x = divmod(patch, grid[1])
            axes[2].add_patch(
                Rectangle(
                    (x * wide, y * high), wide, high, fill=False, edgecolor="white", linewidth=1
                )
            )
            if grid[0] * grid[1] <= 60:
                axes[2].text((x + 0.06) * wide, (y + 0.06) * high, str(patch), va="top", fontsize=8,
                             bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "linewidth": 0})  # fmt: skip
    return close_figure(figure)


def plot_training(curves: pd.DataFrame, prior: float):
    """Loss and validation accuracy against the step: columns step, loss, eval_accuracy (NaN where not measured)."""
    with figure_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
        loss, accuracy = curves.dropna(subset=["loss"]), curves.dropna(subset=["eval_accuracy"])
        left.plot(loss["step"], loss["loss"], color="#009E73", marker=".")
        left.set(
            xlabel="training step",
            ylabel="BCE × number of answers",
            title="Training loss (lower is better)",
        )
        left.set_ylim(bottom=0)
        right.plot(accuracy["step"], 100 * accuracy["eval_accuracy"], color=TEXT_COLOR, marker="o")
        right.axhline(100 * prior, color=GREY, linestyle="--")
        right.text(
            accuracy["step"].max(),
            100 * prior + 1,
            "type prior",
            ha="right",
            va="bottom",
            color=GREY,
        )
        right.set(
            xlabel="training step",
            ylabel="VQA accuracy, %",
            ylim=(0, 102),
            title="Accuracy on validation questions",
        )
    return close_figure(figure)


def plot_accuracy(table: pd.DataFrame):
    """VQA accuracy of each answerer by family with intervals.

    table: columns family, answerer, estimate, low, high (in [0, 1]) and n; families and answerers in order.
    """
    colors = ("#009E73", "#CC79A7", "#56B4E9", GREY)
    families, answerers = list(table["family"].unique()), list(table["answerer"].unique())
    counts = table.groupby("family", sort=False)["n"].first()
    with figure_style():
        figure, axis = plt.subplots(figsize=(10, 4))
        for number, answerer in enumerate(answerers):
            rows = table[table["answerer"] == answerer].set_index("family").reindex(families)
            scaled = 100 * rows[["estimate", "low", "high"]]
            place = np.arange(len(families)) + 0.16 * (number - (len(answerers) - 1) / 2)
            draw_intervals(axis, scaled, place, colors[number % 4], answerer, "os^D"[number % 4])
        axis.set_xticks(
            range(len(families)), [f"{family}\nn={counts[family]}" for family in families]
        )
        axis.set(
            ylabel="VQA accuracy, %",
            ylim=(-3, 103),
            title="Accuracy by question family (95 % intervals over images)",
        )
        axis.grid(axis="y", alpha=0.25)
        axis.legend(ncols=len(answerers), loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return close_figure(figure)
