"""Figures of notebook 04, a2 and a3: attention by question family, what answers need, words.

Tables come in tidy form, shares of attention in [0, 1]; axes show percentage points. `query` is the
text query ("[CLS]" or "words"), a panel each, in order of appearance.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy
from numpy.typing import ArrayLike

from helpers.figures import style
from helpers.figures.style import GREEN, GREY, IMAGE_COLOR, ORANGE, PINK, SKY, TEXT_COLOR
from helpers.stats.models import ModelMean

FAMILY_STYLE = {  # a colour and a marker, the same in every figure
    "what": (TEXT_COLOR, "o"), "what color": (IMAGE_COLOR, "s"), "where": (GREEN, "^"),
    "why": (PINK, "v"), "how many": (ORANGE, "D"), "how": ("#882255", "P"), "who": ("#333333", "X"),
    "which": ("#A6A000", "<"), "is/are": (SKY, ">"), "other": (GREY, "*"),
}  # fmt: skip
CLASS_STYLE = {  # the same for classes of words; blue for text and vermilion for image are taken
    "question word": ("#882255", "v"), "colour word": (ORANGE, "D"), "noun": (GREEN, "o"),
    "other content": (SKY, "s"), "function word": ("#333333", "X"), "punctuation": (GREY, "P"),
}  # fmt: skip
NEEDS = {  # title: (unit, baseline, colour, measures with the name of each)
    "[CLS] looks at the image": (
        "excess image share, points", 0, IMAGE_COLOR,
        {"image share, last layer": "last layer"},
    ),
    "answer without the image": (
        "accuracy lost, points", 0, IMAGE_COLOR,
        {"image removed": "removed", "image exchanged": "exchanged"},
    ),
    "answer with the first word only": (
        "accuracy lost, points", 0, TEXT_COLOR, {"words removed": "other words removed"},
    ),
}  # fmt: skip
RATE_LOOKS = {  # colour and marker of a kind of rate
    "single test": (GREEN, "o"), "after correction": (PINK, "s"), "interval": (ORANGE, "D"),
}  # fmt: skip
RATE_GOALS = (  # stated rate, what is good enough, axis, title: of tests, of intervals
    (5, (3, 7), "false rejections, %", "Finding what is not there"),
    (95, (92, 98), "intervals that hold the truth, %", "Holding what is there"),
)
UNIFORM = "excess image share, points\n({} query, image key; share − uniform)"


def name_group(name: str, n: int, enough: bool) -> str:
    """A family or class with n under its name, and a mark where the questions are too few."""
    return f"{name}\nn = {n:,}" + ("" if enough else "\ntoo few")


def plot_groups(axis: Axes, table: pd.DataFrame, column: str, looks: dict, spread: float) -> None:
    """A line over layers for each group (family or word class), and the uniform baseline at 0.

    table: the column that names the group, layer, estimate, low, high, n, enough. Markers are open
    where questions are too few. spread: layers between the first and the last group.
    """
    groups = list(table[column].unique())
    for number, group in enumerate(groups):
        rows = table[table[column] == group]
        enough = bool(rows["enough"].all())
        color, marker = looks.get(group, (GREY, "."))
        shift = spread * (number / max(len(groups) - 1, 1) - 0.5)
        label = name_group(group, rows["n"].max(), enough)
        style.plot_layers(axis, rows, color, marker, "-", label, shift, hollow=not enough)
    axis.axhline(0, **style.BASELINE)
    look = {"color": style.DARK_GREY, "fontsize": 8, "transform": axis.get_yaxis_transform()}
    axis.text(0.005, 0, "uniform", va="bottom", **look)
    style.name_layers(axis, int(table["layer"].max()) + 1)


def fill_band(axis: Axes, random: np.ndarray) -> None:
    """A grey band over layers that holds random-weight models: shares (model, layer, group)."""
    bounds = (100 * bound(random, axis=(0, 2)) for bound in (np.nanmin, np.nanmax))
    look = {"color": GREY, "alpha": 0.35, "linewidth": 0, "label": "random weights"}
    axis.fill_between(range(random.shape[1]), *bounds, **look)


@style.styled
def plot_family_layers(table: pd.DataFrame, random: ArrayLike = ()) -> Figure:
    """Excess image share of each family by layer, with intervals; open markers: too few questions.

    table: family, query, layer, estimate, low, high, n, enough. random: means of random-weight
    models (model, family, layer, query), drawn as a band that holds all. The words' last layer is
    shaded: no answer reads it.
    """
    figure, panels = style.make_panels(table, "query", (10, 4.6), sharey=True)
    for axis, query, rows in panels:
        plot_groups(axis, rows, "family", FAMILY_STYLE, 0.4)
        if np.size(random):
            number = list(table["query"].unique()).index(query)
            fill_band(axis, np.swapaxes(np.asarray(random)[..., number], 1, 2))
        axis.set_title(f"{query} query")
        if query != "[CLS]":
            style.shade_unread_layer(axis, int(table["layer"].max()) + 1)
    figure.axes[0].set_ylabel(UNIFORM.format("text"))
    style.place_legend(figure, figure.axes[:1], ncols=10, fontsize=8.5)
    return style.set_title(
        figure, "How much more than uniform do question types look at the image?"
    )


def plot_forest(
    axis: Axes,
    means: Mapping[str, ModelMean],
    random: Mapping[str, ArrayLike] | None = None,
    looks: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """A row a name: mean over models with its interval, each model, and random-weight models.

    means: the first at the top. random: the same number of each random-weight model. looks: colour
    and marker of a name; without, those of the image.
    """
    for row, (name, mean) in enumerate(means.items()):
        color, marker = (looks or {}).get(name, (IMAGE_COLOR, "o"))
        chance = np.ravel((random or {}).get(name, ()))
        look = {"marker": "|", "s": 45, "color": GREY, "linewidths": 1}
        axis.scatter(chance, np.full(len(chance), row + 0.22), **look)
        look = {"s": 14, "color": color, "alpha": 0.55, "linewidths": 0}
        axis.scatter(mean.by_model, np.full(len(mean.by_model), row - 0.22), **look)
        interval = pd.DataFrame([mean._asdict()]).drop(columns="by_model")
        look = {"horizontal": True, "color": color, "marker": marker}
        style.plot_intervals(axis, [row], interval, **look)
    legend = {"mean, 95 %": "o-", "each model": "."}  # grey: each row has a colour of its own
    legend |= {"random weights": "|"} if random else {}
    for label, marks in legend.items():
        axis.plot([], [], marks, color=GREY, label=label)
    style.name_rows(axis, [f"{name}\nn = {mean.n:,}" for name, mean in means.items()])
    axis.grid(axis="x")


@style.styled
def plot_family_models(means: Mapping[str, ModelMean], random: Mapping[str, ArrayLike]) -> Figure:
    """Excess image share of [CLS] in the last layer by family, over models, in points."""
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.48 * len(means)))
    axis.axvline(0, **style.BASELINE)
    plot_forest(axis, means, random, FAMILY_STYLE)
    axis.set_xlabel("excess image share, points ([CLS] query, image key; 0: uniform attention)")
    axis.set_title("How much does [CLS] look at the image in the last layer? All models")
    style.place_legend(figure, [axis])
    return figure


@style.styled
def plot_separation(separated: np.ndarray, apart: ArrayLike, random: ArrayLike) -> Figure:
    """In how many pairs of types a head tells the two apart, and the share of all, by model.

    separated: whether, in the first model: (pair, layer, head, query [CLS] or words), NaN where not
    tested. apart, random: the share in per cent, of each trained and each random-weight model.
    """
    n_pairs, grids = len(separated), np.moveaxis(separated.sum(axis=0), 2, 0)
    size = (10, max(3.0, 0.5 * grids.shape[1] + 1.5))
    figure, axes = plt.subplots(1, 3, figsize=size, width_ratios=(1, 1, 0.8))
    for axis, values, query in zip(axes, grids, ("[CLS]", "words"), strict=False):
        look = {"cmap": "cividis", "hatched": np.isnan(values)}
        texts = style.format_cells(values)
        image = style.plot_heads_grid(axis, values, texts, (0, n_pairs), **look)
        axis.set_title(f"{query} query")
    figure.colorbar(image, ax=axes[:2], label=f"pairs told apart, of {n_pairs}", pad=0.02)
    for row, (shares, color) in enumerate(((apart, IMAGE_COLOR), (random, GREY))):
        spread = row + np.linspace(-0.15, 0.15, len(shares))
        axes[2].scatter(spread, shares, color=color, marker="os"[row], s=22, alpha=0.8)
    names = [f"trained\n({len(apart)})", f"random\nweights ({len(random)})"]
    axes[2].set_xticks([0, 1], names)
    axes[2].set(xlim=(-0.5, 1.5), ylim=(0, None))
    axes[2].set_title("of all heads and pairs, %")  # a label would touch the colour bar's
    figure.get_layout_engine().set(wspace=0.06)
    axes[2].grid(axis="y")
    return style.set_title(figure, "Which heads tell types apart, in both halves of the wordings?")


@style.styled
def plot_example_maps(examples: Sequence[dict], query: str) -> Figure:
    """Questions side by side: the picture with the boxes asked about, and below it the attention.

    examples: dicts with picture, boxes, title, weights (rows, columns; shares in [0, 1]) and
    caption. One colour scale for all, so that pictures can be compared; it starts clear, so that
    the picture is seen.
    """
    largest = 100 * max(float(np.max(example["weights"])) for example in examples)
    ramp = LinearSegmentedColormap.from_list("clear", [(*to_rgb(IMAGE_COLOR), a) for a in (0, 0.9)])
    heights = [np.shape(e["picture"])[0] / np.shape(e["picture"])[1] for e in examples]
    size = (10, 0.8 + 2 * max(heights) * 8.6 / max(len(examples), 2))
    figure, axes = plt.subplots(2, len(examples), figsize=size, squeeze=False)
    for (above, below), example in zip(axes.T, examples, strict=True):
        picture, boxes = np.asarray(example["picture"]), example["boxes"]
        style.plot_picture(above, picture, example["title"], boxes)
        above.title.set_fontsize(10)
        grey = picture.mean(-1) if picture.ndim == 3 else picture
        style.plot_picture(below, grey, boxes=boxes)
        height, width = picture.shape[:2]
        look = {"vmin": 0, "vmax": largest or 1, "interpolation": "nearest"}
        weights = 100 * np.asarray(example["weights"])
        image = below.imshow(weights, extent=(0, width, height, 0), cmap=ramp, **look)
        below.set_xlabel(example["caption"])
    figure.colorbar(image, ax=axes, label=f"attention of {query}, % a patch", pad=0.01)
    return figure


@style.styled
def plot_class_layers(table: pd.DataFrame, random: np.ndarray) -> Figure:
    """Excess image share of each class of words by layer, with intervals: a line a class.

    table: word_class, layer, estimate, low, high, n (questions with such words), enough. random:
    means of a random-weight model (layer, class), drawn as a band that holds all classes. Open
    markers: too few questions; the last layer is shaded: no answer reads its words.
    """
    n_layers = table["layer"].max() + 1
    figure, axis = plt.subplots(figsize=(10, 4.6))
    style.shade_unread_layer(axis, n_layers)
    plot_groups(axis, table.dropna(subset=["estimate"]), "word_class", CLASS_STYLE, 0.45)
    fill_band(axis, np.asarray(random)[None])
    style.name_layers(axis, n_layers)
    axis.set_ylabel(UNIFORM.format("word"))
    axis.set_title("How much more than uniform does each class of words look at the image?")
    style.place_legend(figure, [axis], ncols=6, fontsize=8.5)
    return figure


@style.styled
def plot_class_families(table: pd.DataFrame, layer: int) -> Figure:
    """Excess image share by question family (down) and class of words (across) in one layer.

    table: family, word_class, estimate, n, enough; families and classes in order. A class that a
    family's questions have not is hatched; with too few questions the number stands in brackets.
    """
    families, classes = list(table["family"].unique()), list(table["word_class"].unique())
    points = 100 * table["estimate"]
    largest = np.nanmax([*points.abs(), 1])
    numbers = style.format_cells(points, "+", unsure=~table["enough"].astype(bool))
    texts = [f"{number}   n = {n:,}" for number, n in zip(numbers, table["n"], strict=True)]
    table = table.assign(points=points, text=texts)
    grids = (table.pivot_table(c, "family", "word_class", "first") for c in ("points", "text"))
    points, texts = (g.reindex(index=families, columns=classes).to_numpy() for g in grids)
    figure, axis = plt.subplots(figsize=(10, 0.42 * len(families) + 1.4))
    look = {"limits": (-largest, largest), "hatched": np.isnan(points)}
    image = style.plot_cells(axis, points, texts, families, classes, **look)
    axis.set_title(f"Excess image share of the words of each family, L{layer}")
    figure.colorbar(image, ax=axis, label="excess image share, points", pad=0.01)
    return figure


@style.styled
def plot_strips(examples: Sequence[dict]) -> Figure:
    """Questions word by word: tokens across, layers down, a token's attention on the image.

    examples: dicts with title, words (word pieces), classes and share (layer, word) in [0, 1], the
    mean over heads. The widths of the panels follow the number of words; one colour scale for all.
    The last layer is hatched: no answer reads its words.
    """
    n_layers, lengths = len(examples[0]["share"]), [len(example["words"]) for example in examples]
    grid = {"ncols": len(examples), "width_ratios": lengths, "squeeze": False, "sharey": True}
    figure, axes = plt.subplots(**grid, figsize=(10, max(2.6, 0.26 * n_layers + 1.9)))
    for axis, example in zip(axes[0], examples, strict=True):
        image = _plot_strip(axis, example)
    axes[0, 0].set_yticks(range(n_layers), [f"L{layer}" for layer in range(n_layers)])
    figure.colorbar(image, ax=axes, label="attention on\nthe image, %", pad=0.01)
    style.place_legend(figure, axes[0], ncols=6, fontsize=8.5)
    return figure


def _plot_strip(axis: Axes, example: dict) -> AxesImage:
    """One question's strip, its words underneath, the marker of a word's class above."""
    share = 100 * np.asarray(example["share"], float)
    n_layers, n_words = share.shape
    image = axis.imshow(share, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    look = {"facecolor": (1, 1, 1, 0.75), "edgecolor": GREY, "hatch": "//", "linewidth": 0}
    axis.add_patch(Rectangle((-0.5, n_layers - 1.5), n_words, 1, **look))
    look = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(n_words), example["words"], **look)
    above = offset_copy(axis.get_xaxis_transform(), axis.figure, y=7, units="points")
    for position, name in enumerate(example["classes"]):
        color, marker = CLASS_STYLE[name]
        look = {"color": color, "marker": marker, "linestyle": "", "label": name}
        axis.plot(position, 1, clip_on=False, transform=above, **look)
    axis.set(xlim=(-0.5, n_words - 0.5), ylim=(n_layers - 0.5, -0.5))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(example["title"], fontsize=9, pad=16)
    return image


@style.styled
def plot_needs(table: pd.DataFrame) -> Figure:
    """The measures of what answers need: a family a row, a panel each of NEEDS.

    table: family, kind (the first in colour; a second, controls, grey and below), measure (those of
    NEEDS), estimate, low, high (points or %), n, enough. Measures without numbers get no panel.
    Hollow: the panel's second measure; faint: too few questions to tell. A panel whose n are not
    those at the left writes its own.
    """
    table = table.dropna(subset=["estimate"])
    families, kinds = list(table["family"].unique()), list(table["kind"].unique())
    panels = {t: panel for t, panel in NEEDS.items() if table["measure"].isin(panel[3]).any()}
    counts = _count_questions(table, families, kinds)
    size = (10, 1.9 + (0.3 + 0.18 * len(kinds)) * len(families))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (title, (unit, baseline, color, names)) in zip(axes[0], panels.items(), strict=True):
        axis.axvline(baseline, **style.BASELINE)
        rows = table[table["measure"].isin(names)]
        _plot_needs_panel(axis, rows, families, kinds, list(names), color)
        panel_counts = _count_questions(rows, families, kinds)
        if panel_counts != counts:
            for row, n in enumerate(panel_counts):
                _write_beside(axis, row, f"n = {n}")
        marked = zip("●◇" if len(names) > 1 else " ", names.items(), strict=False)
        used = [f"{m} {name}".strip() for m, (k, name) in marked if k in set(rows["measure"])]
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"{unit}\n{'  '.join(used)}", fontsize=9)
        axis.grid(axis="x")
    labels = [f"{family}\nn = {n}" for family, n in zip(families, counts, strict=True)]
    style.name_rows(axes[0, 0], labels)
    controls = f" (grey squares: {kinds[1]})" if kinds[1:] else ""
    return style.set_title(figure, f"What do the answers of each question type need?{controls}")


def _plot_needs_panel(
    axis: Axes, table: pd.DataFrame, families: list, kinds: list, measures: list, color: str
) -> None:
    """Points and intervals: in a family's row kinds one below the other, and measures within."""
    for index, row in table.iterrows():
        family_kinds = set(table["kind"][table["family"] == row["family"]])
        shown = [kind for kind in kinds if kind in family_kinds]
        measure, number = measures.index(row["measure"]), len(shown) * len(measures)
        step = shown.index(row["kind"]) * len(measures) + measure - (number - 1) / 2
        position = families.index(row["family"]) + 0.64 * step / max(len(kinds) * len(measures), 2)
        is_first = row["kind"] == kinds[0]
        look = {"color": color if is_first else style.DARK_GREY, "capsize": 2}
        look |= {"marker": "oD"[measure] if is_first else "s", "alpha": 1 if row["enough"] else 0.4}
        look |= {"horizontal": True, "hollow": measure > 0}
        style.plot_intervals(axis, [position], table.loc[[index]], **look)


def _count_questions(table: pd.DataFrame, families: list, kinds: list) -> list[str]:
    """The most questions behind a number of each family, kind by kind, such as "428 + 72"."""
    most = table.pivot_table(index="family", columns="kind", values="n", aggfunc="max")
    most = most.reindex(index=families, columns=kinds)
    most[kinds[0]] = most[kinds[0]].fillna(0)
    return [" + ".join(f"{n:,.0f}" for n in row[~np.isnan(row)]) for row in most.to_numpy()]


def _write_beside(axis: Axes, row: int, text: str) -> None:
    """A small text at the right of an axis, beside a row."""
    look = {"va": "center", "fontsize": 8, "color": style.DARK_GREY}
    axis.text(1.02, row, text, transform=axis.get_yaxis_transform(), **look)


@style.styled
def plot_scores(
    within: Mapping[str, ModelMean],
    telling: Mapping[str, ModelMean],
    random_within: Mapping[str, ArrayLike],
    random_telling: Mapping[str, ArrayLike],
) -> Figure:
    """Left: rank correlation of share and loss by family; right: AUC of measures for controls.

    random_within, random_telling: the same numbers of the random-weight models. A score without
    numbers has no panel.
    """
    panels = [
        (within, random_within, 0, "share and loss, within a type", "Spearman's rank correlation"),
        (telling, random_telling, 0.5, "needs the image, or a control?", "AUC, at equal type"),
    ]
    panels = [panel for panel in panels if panel[0]]
    size = (10 if len(panels) > 1 else 6.5, 1.4 + 0.46 * max(len(panel[0]) for panel in panels))
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for axis, (means, random, nothing, title, label) in zip(axes[0], panels, strict=True):
        axis.axvline(nothing, **style.BASELINE)
        plot_forest(axis, means, random, FAMILY_STYLE)
        axis.set(title=title, xlabel=label)
    style.place_legend(figure, axes[0])
    title = "Does the share of attention on the image go with the need for it?"
    return style.set_title(figure, title)


@style.styled
def plot_calibration(table: pd.DataFrame) -> Figure:
    """Simulated rates with their intervals, against the stated 5 % (tests) and 95 % (intervals).

    table: procedure, kind (a key of RATE_LOOKS; "interval" goes to the right), rate, low, high in
    [0, 1]. Shaded: what is held to be good enough. A rate that is NaN is said to be missing.
    """
    order = table["kind"].map([*RATE_LOOKS].index)
    table = table.loc[order.sort_values(kind="stable").index]
    is_interval = table["kind"] == "interval"
    size = (10, 0.36 * max((~is_interval).sum(), is_interval.sum()) + 1.7)
    figure, axes = plt.subplots(1, 2, figsize=size, width_ratios=(1.15, 1))
    panels = zip(axes, (table[~is_interval], table[is_interval]), RATE_GOALS, strict=True)
    for axis, rows, (stated, band, label, title) in panels:
        axis.axvspan(*band, color=style.PALE, zorder=-1)
        axis.axvline(stated, **style.BASELINE)
        rows = rows.reset_index(drop=True)
        for kind, of_kind in rows.groupby("kind", sort=False):
            color, marker = RATE_LOOKS[kind]
            look = {"horizontal": True, "color": color, "marker": marker, "label": kind}
            style.plot_intervals(axis, of_kind.index, of_kind, "rate", 100, **look)
        for position in rows.index[rows["rate"].isna()]:
            look = {"ha": "center", "va": "center", "fontsize": 8.5, "backgroundcolor": style.PALE}
            axis.text(stated, position, style.TOO_FEW, **look)
        low, high = 100 * np.nanmin([*rows["low"], 1.0]), 100 * np.nanmax([*rows["high"], 0.0])
        low, high = min(band[0] - 1, low - 0.5), max(band[1] + 1, high + 0.5)
        axis.set_xlim(low if stated > 50 else 0, high if stated < 50 else 100)
        axis.set(xlabel=label, title=title)
        style.name_rows(axis, list(rows["procedure"]))
        axis.tick_params(axis="y", length=0)
    style.place_legend(figure, axes)
    return style.set_title(figure, "How often are the study's own tests and intervals wrong?")
