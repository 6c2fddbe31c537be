"""Figures of notebooks 01, 02, 06 and 07: study, data, training, accuracy, smaller models, runs."""

import math
from collections.abc import Sequence
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from helpers.figures import style
from helpers.figures.style import GREEN, GREY, IMAGE_COLOR, PINK, SKY, TEXT_COLOR

STUDY_STEPS = (
    "question\n+ image", "one sequence\nof tokens", "ViLT: one stack\nof layers",
    "text [CLS]\n→ answer", "every layer, head:\nattention → split", "families, roles,\nablation",
)  # fmt: skip
ANSWERER_LOOKS = ((GREEN, "o"), (PINK, "s"), (SKY, "^"), (GREY, "D"))
ORDER_LOOKS = {  # order of removal: marker, line, colour
    "ablation": ("o", "-", "#000000"), "gradient": ("s", "-", GREEN),
    "normalised gradient": ("v", ":", SKY), "attention": ("^", "-", PINK),
    "random": ("D", "--", "#777777"),
}  # fmt: skip
PRECISION_MARKERS = {"fp32": "o", "fp16": "s", "bf16": "s", "int8": "^"}
RUN_COLUMNS = 3
ACCURACY = "VQA accuracy, %"


@style.styled
def plot_study(tokens: Sequence[str], grid: tuple[int, int]) -> Figure:
    """The study in one picture: the data flow, and the tokens of one ViLT input by group.

    tokens: the question's tokens with [CLS] and [SEP]; grid: rows and columns of patches.
    """
    n_patches = grid[0] * grid[1]
    groups = ["cls"] + ["words"] * (len(tokens) - 2) + ["sep", "img_cls"] + ["patches"] * n_patches
    figure, (flow, line) = plt.subplots(2, 1, figsize=(10, 3.6), height_ratios=(1, 1.1))
    box = {"boxstyle": "round,pad=0.45", "facecolor": "#F3F3F3", "edgecolor": GREY}
    for number, step in enumerate(STUDY_STEPS):
        flow.text(number, 0, step, ha="center", va="center", fontsize=9, bbox=box)
        if number:
            ends = {"xy": (number - 0.44, 0), "xytext": (number - 0.6, 0)}
            flow.annotate("", **ends, arrowprops={"arrowstyle": "-|>"})
    flow.set(xlim=(-0.5, len(STUDY_STEPS) - 0.5), ylim=(-0.6, 0.6))
    flow.set_title("What happens to a question and its image, and what is measured")
    for position, group in enumerate(groups):
        line.add_patch(Rectangle((position, 0), 0.92, 1, color=style.GROUP_COLORS[group]))
    look = {"rotation": 55, "ha": "right", "va": "top", "fontsize": 8, "rotation_mode": "anchor"}
    for position, name in enumerate([*tokens, "image\nCLS"]):
        line.text(position + 0.46, -0.15, name, **look)
    middle = len(tokens) + 1 + n_patches / 2
    rows = f"{grid[0]} × {grid[1]} patches, row by row"
    line.text(middle, -0.25, rows, ha="center", va="top", fontsize=9)
    look = {"ha": "center", "fontweight": "bold"}
    line.text(len(tokens) / 2, 1.12, "text", color=TEXT_COLOR, **look)
    line.text(middle, 1.12, "image", color=IMAGE_COLOR, **look)
    line.set(xlim=(-0.5, len(groups) + 0.5), ylim=(-2.1, 1.7))
    line.set_title("The token sequence: five groups of keys, one softmax over all of them")
    flow.axis("off")
    line.axis("off")
    return figure


@style.styled
def plot_dataset(questions: pd.DataFrame) -> Figure:
    """The data at a glance: families, answers, question lengths, patch counts.

    questions: one row a question with part (train, validation), family, multiple_choice_answer,
    n_words, n_patches.
    """
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.2))
    (families, answers), (words, patches) = axes
    order = questions["family"].value_counts().index
    palette = [SKY, GREY][: questions["part"].nunique()]
    sns.countplot(questions, y="family", hue="part", order=order, palette=palette, ax=families)
    families.set(xlabel="questions", ylabel="", title="Questions of each family")
    families.legend(title=None, loc="lower center", bbox_to_anchor=(0.5, -0.36), ncols=2)
    common = questions["multiple_choice_answer"].value_counts().head(12).index
    look = {"order": common, "color": GREEN}
    sns.countplot(questions, y="multiple_choice_answer", ax=answers, **look)
    answers.set(xlabel="questions", ylabel="", title=f"The {len(common)} most common answers")
    look = {"discrete": True, "shrink": 0.8, "alpha": 1}
    sns.histplot(questions, x="n_words", color=TEXT_COLOR, ax=words, **look)
    words.set(xlabel="word pieces", ylabel="questions", title="Word pieces in a question")
    sns.histplot(questions, x="n_patches", color=IMAGE_COLOR, ax=patches, **look)
    patches.set(xlabel="patches", ylabel="questions", title="Patches in an image")
    for axis in (words, patches):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


@style.styled
def plot_examples(examples: Sequence[dict]) -> Figure:
    """Questions with their pictures: dicts with picture, title, boxes, and a caption below."""
    n_rows = math.ceil(len(examples) / 3)
    figure, axes = plt.subplots(n_rows, 3, figsize=(10.2, 3.5 * n_rows), squeeze=False)
    for axis in axes.flat[len(examples) :]:
        axis.axis("off")
    for axis, example in zip(axes.flat, examples, strict=False):
        style.plot_picture(axis, example["picture"], example["title"], example["boxes"])
        axis.set_xlabel(example["caption"], fontsize=8)
    return figure


@style.styled
def plot_patches(picture: style.Picture, resized: np.ndarray, grid: tuple[int, int]) -> Figure:
    """What pre-processing does to one picture: as it came, resized, and cut into patches."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    height, width = np.asarray(picture).shape[:2]
    style.plot_picture(axes[0], picture, f"as it came: {width} × {height} pixels")
    rows, columns = resized.shape[:2]
    style.plot_picture(axes[1], resized, f"resized for ViLT: {columns} × {rows} pixels")
    style.plot_picture(axes[2], resized, f"{grid[0]} × {grid[1]} patches, numbered in raster order")
    high, wide = rows / grid[0], columns / grid[1]
    axes[2].hlines(high * np.arange(1, grid[0]), 0, columns, "white", linewidth=1)
    axes[2].vlines(wide * np.arange(1, grid[1]), 0, rows, "white", linewidth=1)
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "linewidth": 0}
    for patch in range(grid[0] * grid[1] if grid[0] * grid[1] <= 60 else 0):
        y, x = divmod(patch, grid[1])
        corner = ((x + 0.06) * wide, (y + 0.06) * high)
        axes[2].text(*corner, str(patch), va="top", fontsize=8, bbox=box)
    return figure


@style.styled
def plot_training(curves: pd.DataFrame, prior: float) -> Figure:
    """Loss and validation accuracy against the step.

    curves: columns step, loss, eval_accuracy (NaN where not measured); prior: accuracy in [0, 1] of
    answering by question type alone.
    """
    loss, accuracy = curves.dropna(subset=["loss"]), curves.dropna(subset=["eval_accuracy"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    left.plot(loss["step"], loss["loss"], color=GREEN, marker=".")
    left.set(xlabel="training step", ylabel="BCE × number of answers")
    left.set_title("Training loss (lower is better)")
    left.set_ylim(bottom=0)
    right.plot(accuracy["step"], 100 * accuracy["eval_accuracy"], color=TEXT_COLOR, marker="o")
    right.axhline(100 * prior, **style.BASELINE)
    look = {"ha": "right", "va": "bottom", "color": GREY}
    right.text(accuracy["step"].max(), 100 * prior + 1, "type prior", **look)
    right.set(xlabel="training step", ylabel=ACCURACY, ylim=(0, 102))
    right.set_title("Accuracy on validation questions")
    return figure


@style.styled
def plot_accuracy(table: pd.DataFrame) -> Figure:
    """VQA accuracy of each answerer by family with intervals.

    table: columns family, answerer, estimate, low, high (in [0, 1]) and n; in the order shown.
    """
    labels, answerers = style.count_under(table, "family"), list(table["answerer"].unique())
    figure, axis = plt.subplots(figsize=(10, 4))
    for number, answerer in enumerate(answerers):
        rows = table[table["answerer"] == answerer].set_index("family").reindex(list(labels))
        color, marker = ANSWERER_LOOKS[number % 4]
        look = {"color": color, "marker": marker, "label": answerer}
        position = style.dodge(labels, number, answerers, 0.16)
        style.plot_intervals(axis, position, rows, scale=100, **look)
    axis.set_xticks(range(len(labels)), labels.values())
    axis.set(ylabel=ACCURACY, ylim=(-3, 103))
    axis.set_title("Accuracy by question family (95 % intervals over images)")
    axis.grid(axis="y")
    style.place_legend(figure, [axis])
    return figure


@style.styled
def plot_models(table: pd.DataFrame, lines: dict[str, float]) -> Figure:
    """Accuracy of several models with each question's own image and with another image.

    table: columns model, image ("its own", "another"), estimate, low, high (accuracy in %). lines:
    accuracy in % of what sees no image, by name, drawn as upright lines.
    """
    names = list(table["model"].unique())
    figure, axis = plt.subplots(figsize=(10, 0.38 * len(names) + 1.6))
    looks = {"its own": (TEXT_COLOR, False), "another": (IMAGE_COLOR, True)}
    for image, (color, hollow) in looks.items():
        rows = table[table["image"] == image].set_index("model").loc[names]
        look = {"horizontal": True, "hollow": hollow, "color": color, "markersize": 7}
        label = f"with {image} image"
        style.plot_intervals(axis, np.arange(len(names)), rows, **look, label=label)
    for (name, value), line in zip(lines.items(), ("--", ":"), strict=False):
        axis.axvline(value, **style.BASELINE | {"linestyle": line}, label=name)
    style.name_rows(axis, names)
    axis.set(xlabel=ACCURACY, xlim=(0, 102))
    axis.set_title("Accuracy of each model, with its own image and with another")
    axis.grid(axis="x")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@style.styled
def plot_removal_curves(curves: pd.DataFrame, intact: float, tolerance: float) -> Figure:
    """Accuracy as more and more heads are removed, a line an order, with 95 % intervals.

    curves: columns order (of ORDER_LOOKS, or "random 1", ... for single random orders), removed
    (heads), share (of all heads), estimate, low, high (accuracy in %), n. intact: accuracy of the
    whole model, in %; tolerance: points below it.
    """
    orders = [name for name in ORDER_LOOKS if name in set(curves["order"])]
    figure, axis = plt.subplots(figsize=(10, 4.2))
    axis.axhline(intact, **style.BASELINE)
    axis.axhspan(intact - tolerance, intact, color=GREY, alpha=0.18, linewidth=0)
    singles = curves[curves["order"].str.match("random .")]
    label = f"each of {singles['order'].nunique()} random orders"
    look = {"color": GREY, "marker": "_", "markersize": 14, "linestyle": "", "label": label}
    axis.plot(100 * singles["share"], singles["estimate"], **look)
    for number, name in enumerate(orders):
        rows, (marker, line, color) = curves[curves["order"] == name], ORDER_LOOKS[name]
        position = 100 * rows["share"] + 0.35 * (number - (len(orders) - 1) / 2)
        label = "random, their mean" if name == "random" else f"by {name}"
        look = {"marker": marker, "linestyle": line, "color": color, "label": label}
        style.plot_intervals(axis, position, rows, **look)
    steps = curves.drop_duplicates("removed").sort_values("removed")
    labels = [f"{100 * row.share:.0f} %\n{row.removed}" for row in steps.itertuples()]
    axis.set_xticks(100 * steps["share"], labels)
    axis.set(xlabel="share and number of heads removed (put to zero)", ylabel=ACCURACY)
    axis.set_ylim(0, 103)
    axis.set_title("Accuracy as heads are removed, by the order of removal (95 % intervals)")
    axis.grid(axis="y")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), title="order")
    return figure


@style.styled
def plot_family_costs(costs: pd.DataFrame) -> Figure:
    """Accuracy lost per question family as more is removed: a panel for heads and one for layers.

    costs: columns what (panel: its title), removed (column label, in order), family, drop (points
    lost), n, told (enough questions), significant. Significant cells are framed and bold; families
    with too few questions are grey.
    """
    labels = style.count_under(costs, "family", "{}, n={:,}")
    widths = costs.groupby("what", sort=False)["removed"].nunique()
    largest = np.nanmax([*costs["drop"].abs().where(costs["told"]), 1.0])
    grid = {"size": (10, 0.3 * len(labels) + 1.9), "width_ratios": widths, "sharey": True}
    figure, panels = style.make_panels(costs, "what", **grid)
    for axis, what, rows in panels:
        cells = ("family", "removed"), list(labels), list(rows["removed"].unique())
        image = style.plot_drops(axis, rows, *cells, largest)
        axis.set(title=what, xlabel="one after the other" if "layer" in what else "how many")
        axis.set_yticks(range(len(labels)), labels.values())
    figure.colorbar(image, ax=figure.axes, label="accuracy lost, points", pad=0.01)
    title = "Accuracy lost by question family, before any further training"
    return style.set_title(figure, title)


@style.styled
def plot_recovery(candidates: pd.DataFrame, tolerance: float) -> Figure:
    """What a short training brings back: accuracy before it (hollow) and after it (filled).

    candidates: columns model (a shape's name, and the name with ", trained"), judged, low, high:
    difference from the whole model in points (95 % interval over images).
    """
    rows = candidates.set_index("model")
    shapes = [name for name in rows.index if f"{name}, trained" in rows.index]
    figure, axis = plt.subplots(figsize=(10, 0.5 * len(shapes) + 1.6))
    axis.axvline(0, **style.BASELINE)
    axis.axvspan(-tolerance, 0, color=GREY, alpha=0.18, linewidth=0)
    for ending, shift, label in (("", -0.13, "just cut"), (", trained", 0.13, "cut and trained")):
        own = rows.loc[[f"{name}{ending}" for name in shapes]]
        look = {"horizontal": True, "color": "black", "markersize": 6, "hollow": ending == ""}
        position = np.arange(len(shapes)) + shift
        style.plot_intervals(axis, position, own, "judged", **look, label=label)
    style.name_rows(axis, shapes)
    axis.set_xlabel("VQA accuracy less that of the whole model, points (right: better)")
    axis.set_title("What a short training brings back (95 % intervals over images)")
    axis.grid(axis="x")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@style.styled
def plot_pareto(table: pd.DataFrame) -> Figure:
    """Accuracy against latency, a panel a batch size; the best models at their speed are joined.

    table: columns model, precision (of PRECISION_MARKERS), questions (a pass), seconds (of a pass),
    accuracy, low, high (in %), chosen (the model that the selection half selects). Every model is
    named at the right.
    """
    sizes = sorted(table["questions"].unique())
    height = len(sizes) * max(2.4, 0.25 * table["model"].nunique() + 1.1)
    figure, axes = plt.subplots(len(sizes), 1, figsize=(10, height), squeeze=False)
    for axis, questions in zip(axes.flat, sizes, strict=True):
        models = table[table["questions"] == questions].sort_values("seconds")
        models = models.assign(time=1000 * models["seconds"])
        best = models[models["accuracy"] >= models["accuracy"].cummax()]
        look = {"color": GREY, "linewidth": 1, "drawstyle": "steps-post"}
        axis.plot(best["time"], best["accuracy"], **look)
        for precision in [name for name in PRECISION_MARKERS if name in set(models["precision"])]:
            rows = models[models["precision"] == precision]
            look = {"marker": PRECISION_MARKERS[precision], "color": "black", "label": precision}
            look |= {"hollow": True, "linewidth": 0.8, "capsize": 0}
            style.plot_intervals(axis, rows["time"], rows, "accuracy", **look)
        chosen = models[models["chosen"]]
        look = {"color": IMAGE_COLOR, "markersize": 13, "label": "selected on the other half"}
        axis.plot(chosen["time"], chosen["accuracy"], "*", **look)
        _name_points(axis, models)
        title = f"{questions} question{'s' if questions > 1 else ''} at once"
        axis.set(ylabel=ACCURACY, title=title)
        axis.grid()
    axes[-1, 0].set_xlabel("milliseconds of a forward pass (median; left: faster)")
    style.place_legend(figure, axes[0])
    title = "Accuracy against measured latency (95 % intervals over images)"
    return style.set_title(figure, title)


def _name_points(axis: Axes, points: pd.DataFrame) -> None:
    """Name every point in a column at the right, each at its own height, with a line to it."""
    ordered = points.sort_values(["accuracy", "seconds"], ascending=False)
    heights = np.linspace(0.97, 0.03, len(ordered)) if len(ordered) > 1 else [0.5]
    arrow = {"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.6, "shrinkB": 3}
    look = {"textcoords": "axes fraction", "fontsize": 8, "va": "center", "annotation_clip": False}
    look["arrowprops"] = arrow | {"relpos": (0, 0.5)}
    for height, row in zip(heights, ordered.itertuples(), strict=True):
        text = f"{row.model}: {_say_number(row.time)} ms, {row.accuracy:.1f} %"
        weight = "bold" if row.chosen else "normal"
        axis.annotate(text, (row.time, row.accuracy), (1.04, height), fontweight=weight, **look)


def _say_number(value: float) -> str:
    """Three digits, or as many as stand before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@style.styled
def plot_runs(table: pd.DataFrame) -> Figure:
    """A panel a claim, a point a run with its 95 % interval and verdict; dashed: the threshold.

    table: run, key, claim, unit, threshold, verdict, estimate, low, high (of
    `compare.compare_claims`). Claims without a number in any run are left out.
    """
    table = table[table.groupby("key")["estimate"].transform("count") > 0]
    keys, runs = list(table["key"].unique()), list(table["run"].unique())
    n_rows = max(1, math.ceil(len(keys) / RUN_COLUMNS))
    size = (10, n_rows * (0.3 * len(runs) + 1.2) + 0.4)
    figure, axes = plt.subplots(n_rows, RUN_COLUMNS, figsize=size, sharey=True, squeeze=False)
    for axis, key in zip(axes.flat, keys, strict=False):
        _plot_claim(axis, table[table["key"] == key].reset_index(drop=True))
    for axis in axes.flat[len(keys) :]:
        axis.remove()
    style.name_rows(axes[0, 0], runs)
    return style.set_title(figure, "Do the claims hold in every run? (95 % intervals)")


def _plot_claim(axis: Axes, rows: pd.DataFrame) -> None:
    """One panel: a line a run, the first at the top; what has no number shows its verdict."""
    known = rows[np.isfinite(rows["estimate"].astype(float))]
    axis.axvline(known["threshold"].iloc[0], **style.BASELINE)
    style.plot_intervals(axis, known.index, known, horizontal=True, color=TEXT_COLOR)
    look = {"va": "center", "fontsize": 8, "color": style.DARK_GREY}
    look |= {"transform": axis.get_yaxis_transform()}
    for position, row in rows.iterrows():
        shift = -0.32 if position in known.index else 0
        axis.text(0.98, position + shift, row["verdict"], ha="right", **look)
    axis.xaxis.set_major_locator(MaxNLocator(3, min_n_ticks=1))
    axis.set_xlabel(rows["unit"][0], fontsize=9)
    axis.set_title("\n".join(wrap(rows["claim"][0].replace("*", ""), 42)), fontsize=9)
    axis.tick_params(axis="y", length=0)
