"""Attention by layer and head, over pictures, as a flow.

Attention comes as shares in [0, 1] and is drawn in per cent; layers run downwards, heads across.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from helpers.figures import style
from helpers.figures.style import GREY, IMAGE_COLOR, TEXT_COLOR
from helpers.stats.bootstrap import Interval

QUERIES = {  # title, label of trained models, colour
    "cls": ("[CLS] as query", "trained, text query", TEXT_COLOR),
    "words": ("words as queries", "trained, text query", TEXT_COLOR),
    "patches": ("patches as queries", "trained, image query", IMAGE_COLOR),
}
MEASURES = {  # of `plot_layer_measures`: unit
    "image share": "attention on the image, %",
    "special": "attention on [CLS], [SEP]\nand image CLS, %",
    "entropy": "entropy, % of its maximum\n(100: all keys alike)",
}
KNOCKOUTS = {  # column `panel` of the table: what its columns are
    "one": "cut in this layer alone", "onward": "cut from this layer on",
    "type": "cut in all layers, by question type", "share": "attention paid, %",
}  # fmt: skip
NEEDS = {  # of `plot_needs`: title, unit
    "image share, last layer": ("[CLS] looks\nat the image", "points above uniform"),
    "image removed": ("accuracy lost:\nimage removed", "points"),
    "image exchanged": ("accuracy lost:\nimage exchanged", "points"),
    "words removed": ("accuracy lost: all words\nbut the first removed", "points"),
    "joint": ("accuracy that words and\nimage bring only together", "points"),
}
MEANS = {  # panels of `plot_means`: title, unit; and what says nothing: its name, where it lies
    "share": ("", "image share above uniform, points ([CLS] attends to image)",
              "uniform attention", 0),
    "within": ("share and loss, within a type", "Spearman's rank correlation", "nothing told", 0),
    "telling": ("needs the image, or a control?", "AUC, at equal type", "nothing told", 0.5),
}  # fmt: skip
LAYER = "layer (L0 reads the embeddings)"
KNOWN = {  # places of `plot_known`
    "read-out": "answer read out of [CLS]", "[CLS]": "told by a probe of [CLS]",
    "its patches": "told by a probe of the object's patches",
}  # fmt: skip
FLOW_GAPS = np.array([0, 0.03, 0.06, 0.18, 0.21])  # free height above each group, in units of mass
FLOW_BOTTOM = -1 - FLOW_GAPS[-1]
NODE_WIDTH, FAINT = 0.1, 0.22  # in layers; opacity of what the residual path carries
HATCHES = {"image CLS": "////", "patches": "////", "[SEP]": "...."}  # [SEP] is as grey as [CLS]
FLOW_LOOKS = {
    group: {"facecolor": color, "edgecolor": "white", "hatch": HATCHES.get(group), "linewidth": 0}
    for group, color in style.GROUP_COLORS.items()
}


@style.styled("Where attention goes and how spread it is, layer by layer (mean over heads)")
def plot_layer_measures(layers: pd.DataFrame, baselines: dict[str, float]) -> Figure:
    """Image share, special tokens and entropy (downwards) by layer, for each query group (across).

    layers: rows with measure (of MEASURES), model ("trained"; "untrained": the mean, lowest and
    highest of models with random weights), query, layer, estimate, low, high, reaches_answer (else
    the marker is hollow). baselines: measure -> its value for uniform attention.
    """
    random, panels = "random weights (lowest to highest model)", [*product(MEASURES, QUERIES)]
    layers = layers[layers["measure"].isin(MEASURES)]
    trained = layers["query"].map({query: label for query, (_, label, _) in QUERIES.items()})
    layers = layers.assign(
        line=trained.where(layers["model"] == "trained", random),
        panel=[panels.index(pair) for pair in zip(layers["measure"], layers["query"], strict=True)],
        uniform=100 * layers["measure"].map(baselines),
        hollow=~layers["reaches_answer"].astype(bool),
    ).sort_values("panel", kind="stable")
    looks = {label: (color, "o") for _, label, color in QUERIES.values()}
    look = {"panel": "panel", "across": 3, "sharey": "row", "height": 2.6, "limits": (None, None)}
    look |= {"looks": looks, "hollow": "hollow", "spread": 0.1, "scale": 100}
    lines = {"uniform attention": "uniform"}
    figure = style.draw_lines(layers, "layer", "line", ("layer", ""), baselines=lines, **look)
    for axis, (measure, query) in zip(figure.axes, panels, strict=True):
        title, _, color = QUERIES[query]
        axis.set_title(title if measure == "image share" else "", color=color)
        axis.set_ylabel(MEASURES[measure] if query == "cls" else "", fontsize=9)
        axis.set(ylim=(0, None), xlabel="layer" if measure == "entropy" else "")
    return figure


@style.styled("Each head's image share for the [CLS] query, against uniform attention")
def plot_heads(heads: pd.DataFrame) -> Figure:
    """Grids of a table: model (a panel each), layer, head, estimate, low, high (shares above
    uniform, in [-1, 1]). In brackets: the interval includes 0.
    """
    unsure = (heads["low"] <= 0) & (heads["high"] >= 0)
    texts = style.format_cells(100 * heads["estimate"], "+", unsure=unsure)
    table = heads.assign(points=100 * heads["estimate"], text=texts)
    label = "points above uniform\n(text attends to image)"
    return style.draw_grids(table, "points", panel="model", label=label, row_height=0.5)


@style.styled()
def plot_maps(
    picture: style.Picture,
    weights: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    boxes: style.Boxes = (),
    shared: bool = True,
    label: str = "attention on a patch, % (text attends to image)",
) -> Figure:
    """A grid of maps over one picture, such as layers downwards and heads across.

    weights: (row, column, patch rows, patch columns), shares. shared: one colour scale for all
    panels, else one for each column of panels. label: what the colours say.
    """
    cards = [
        {"picture": picture, "boxes": boxes, "weights": each,
         "title": columns[column] if row == 0 else "", "name": rows[row] if column == 0 else ""}
        for row, of_row in enumerate(np.asarray(weights)) for column, each in enumerate(of_row)
    ]  # fmt: skip
    look = {"most": 1.55 if len(rows) > 1 else 2.8, "title": title}
    return style.draw_maps(cards, len(columns), label, shared, **look)


@style.styled()
def plot_look(
    picture: style.Picture, title: str, shares: np.ndarray, baseline: float, maps: np.ndarray
) -> Figure:
    """One picture and one question at a glance: every head's image share, a map for each layer.

    shares: (layer, head) of [CLS]'s attention that goes to the image, in [0, 1]; baseline: that of
    uniform attention. maps: (layer, patch row, patch column), [CLS]'s attention, mean over heads.
    """
    n_rows, across = -(-len(maps) // 6), min(len(maps), 6)
    figure = plt.figure(figsize=(10, 4.2 + 1.9 * n_rows))
    above, below = figure.subfigures(2, 1, height_ratios=[3.6, 1.9 * n_rows + 0.4])
    left, right = above.subplots(1, 2, width_ratios=[1, 1.5])
    style.plot_map(left, picture)
    excess, texts = 100 * (shares - baseline), style.format_cells(100 * shares)
    limits = -100 * baseline, 100 * (1 - baseline)  # the excess of a share of 0 and of 1
    drawn = style.plot_grid(right, excess, limits, texts)
    right.set_title(f"[CLS] ← image, % (uniform attention: {100 * baseline:.0f} %)")
    scale = {"ticks": (limits[0], 0, limits[1]), "format": "%.0f"}
    above.colorbar(drawn, ax=right, label="points above uniform", **scale)
    axes, largest = below.subplots(n_rows, across, squeeze=False), 100 * float(maps.max())
    for axis in axes.flat:
        axis.set_axis_off()
    for layer, (axis, weights) in enumerate(zip(axes.flat, 100 * maps, strict=False)):
        drawn = style.plot_map(axis, picture, weights, f"L{layer}", largest=largest)
    below.colorbar(drawn, ax=axes, label="attention on a patch, %")
    return style.set_title(figure, title)


def flow_masses(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow the answer's [CLS] down through the layers: how much of it comes from each group.

    flow: (layer, query group, key group), 5 groups each in the order of GROUP_COLORS: the mean over
    heads and over the group's queries of the attention on the group's keys. Rows sum to 1, or are
    NaN for a group without tokens. Returns masses (layer + 1, group) and bands (layer, query group,
    key group): masses[l] is what layer l reads, the last row is 1 on [CLS]. With T[l] =
    0.5 flow[l] + 0.5 identity (Abnar and Zuidema 2020: half attention, half residual path),
    bands[l, q, k] = masses[l + 1, q] T[l, q, k] and masses[l] = bands[l].sum(0). Unlike the exact
    rollout, all tokens of a group count as alike. ValueError for another shape, or where a row that
    counts does not sum to 1.
    """
    flow = np.asarray(flow, dtype=float)
    if flow.ndim != 3 or flow.shape[1:] != (5, 5):
        raise ValueError(f"flow must have the shape (layer, 5, 5), but has {flow.shape}.")
    mixing = 0.5 * np.where(np.isnan(flow), 0, flow) + 0.5 * np.eye(5)  # nothing from empty groups
    masses, bands = np.zeros((len(flow) + 1, 5)), np.zeros_like(flow)
    masses[-1, 0] = 1
    for layer in reversed(range(len(flow))):
        bands[layer] = masses[layer + 1][:, None] * mixing[layer]
        masses[layer] = bands[layer].sum(0)
        if abs(masses[layer].sum() - 1) > 0.01:
            raise ValueError(f"flow of L{layer} does not sum to 1: pass shares, not per cent.")
    return masses, bands


@style.styled(
    "Where the answer's [CLS] draws from (half attention, mean over heads; half residual path)"
)
def plot_flow(panels: dict[str, np.ndarray]) -> Figure:
    """Where the answer's [CLS] draws from, a panel a case, as bands through the layers.

    panels: title -> flow (layer, 5, 5), see `flow_masses`; one question, or the mean over the
    questions of a family. A band is as thick as what attention and the residual path carry. The
    tokens that go in are at the left, the answer at the right; each column of nodes sums to 1. A
    band has the colour of the group that it comes from; image groups are hatched, [SEP] is dotted.
    """
    size = (10, 2.9 * len(panels) + 0.9)
    figure, axes = plt.subplots(len(panels), 1, figsize=size, squeeze=False)
    for axis, (title, flow) in zip(axes[:, 0], panels.items(), strict=True):
        masses, bands = flow_masses(flow)
        _plot_bands(axis, masses, bands)
        n_layers, text_masses = len(bands), masses[:, :3].sum(1)
        for name, of_stages, height, side, color in (
            ("text", text_masses, 0.03, "bottom", TEXT_COLOR),
            ("image", 1 - text_masses, FLOW_BOTTOM - 0.03, "top", IMAGE_COLOR),
        ):
            look = {"va": side, "color": color}
            axis.text(-0.35, height, name, ha="right", fontweight="bold", **look)
            for stage, mass in enumerate(of_stages):
                axis.text(stage, height, f"{100 * mass:.0f} %", ha="center", fontsize=8.5, **look)
        names = ["\ninput", *(f"L{layer}" for layer in range(n_layers)), "\nanswer"]
        axis.set_xticks([0, *np.arange(n_layers) + 0.5, n_layers], names)
        limits = {"xlim": (-0.65, n_layers + 0.3), "ylim": (FLOW_BOTTOM - 0.15, 0.15)}
        axis.set(**limits, yticks=[], title=fill(title, 95))
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    axes[-1, 0].set_xlabel("layer: what it reads at its left, what it hands on at its right")
    handles = [Patch(**look, label=group) for group, look in FLOW_LOOKS.items()]
    handles.append(Patch(facecolor=TEXT_COLOR, alpha=FAINT, label="pale: residual path"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _plot_bands(axis: Axes, masses: np.ndarray, bands: np.ndarray) -> None:
    """Nodes as high as their mass, text above and image below, and the bands between them."""
    tops, looks = -(np.cumsum(masses, axis=1) - masses + FLOW_GAPS), list(FLOW_LOOKS.values())
    for (stage, group), mass in np.ndenumerate(masses):
        axis.bar(stage, -mass, NODE_WIDTH, tops[stage, group], **looks[group])
    way = np.linspace(0, 1, 50)  # through a layer
    for layer, band in enumerate(bands):  # (query, key)
        left = tops[layer] - (np.cumsum(band, axis=0) - band)
        right = tops[layer + 1][:, None] - (np.cumsum(band, axis=1) - band)
        x = layer + NODE_WIDTH / 2 + (1 - NODE_WIDTH) * way
        for query, key in np.argwhere(band > 0):
            top = left[query, key] + (right - left)[query, key] * way**2 * (3 - 2 * way)
            # half of what a group had was its own; the rest is attention
            middle = top - (0.5 * masses[layer + 1, query] if query == key else 0)
            axis.fill_between(x, top, middle, **looks[key] | {"hatch": None, "alpha": FAINT})
            axis.fill_between(x, middle, top - band[query, key], **looks[key], alpha=0.6)


@style.styled("The best head of each layer, chosen on one half of the images, scored on the other")
def plot_hits(table: pd.DataFrame, chance: float, by_object: float) -> Figure:
    """Lines of a table: layer, against (the head, or what stands against it), estimate, low, high.

    chance: share of patches in the box; by_object: of a random object of the picture, or NaN.
    """
    lines = {"chance: share of patches in the box": 100 * chance,
             "chance: a random object of the picture": 100 * by_object}  # fmt: skip
    labels = LAYER, "favoured patch in the box, %\n(text attends to image)"
    look = {"baselines": lines, "scale": 100, "spread": 0.1, "ncols": 3}
    return style.draw_lines(table, "layer", "against", labels, **look)


@style.styled("Does the answer need the patches that a map calls important?")
def plot_curves(table: pd.DataFrame) -> Figure:
    """Lines of a table: order (the map, a column of panels each, or "random", in all), kind (a row
    of panels each), fraction of the patches in [0, 1], the most important first, estimate, low,
    high (probabilities).
    """
    by_map = table["order"] != "random"
    maps = pd.DataFrame({"order": table.loc[by_map, "order"].unique()})
    random = table[~by_map].drop(columns="order").merge(maps, how="cross")
    table = pd.concat([table[by_map].assign(by="order of the map"),
                       random.assign(by="random order")])  # fmt: skip
    table = table.assign(share=100 * table["fraction"], panel=table["kind"] + table["order"])
    table = table.sort_values("kind", kind="stable")
    look = {"across": len(maps), "height": 2.4, "scale": 100}
    labels = "", "probability of the\nintact model's answer, %"
    figure = style.draw_lines(table, "share", "by", labels, "panel", **look)
    panels = product(["patches removed, %", "patches kept, %"], maps["order"])
    for axis, (unit, order) in zip(figure.axes, panels, strict=True):
        axis.set(title=order, xlabel=unit)
    return figure


@style.styled("Points lost where attention is cut (query ← key)")
def plot_knockout(table: pd.DataFrame) -> Figure:
    """Grids of points of accuracy lost by direction and layer or type, and of attention shares.

    table: columns panel (of KNOCKOUTS), direction, column (a layer such as "L2", or a question
    type), estimate, low, high; rows in the order to draw. In brackets: the interval includes 0.
    """
    unsure = (table["low"] <= 0) & (table["high"] >= 0)
    table = table.assign(text=style.format_cells(table["estimate"], unsure=unsure))
    table["direction"] = table["direction"].str.replace("<-", "←")
    table["column"] = table["column"].str.replace(" ", "\n")
    table["panel"] = table["panel"].map(KNOCKOUTS)
    look = {"panel": "panel", "limits": (-100, 100), "row_height": 0.36}
    figure = style.draw_grids(table, "estimate", "direction", "column", **look)
    if KNOCKOUTS["share"] in set(table["panel"]):  # the last: no loss, so another colour
        figure.axes[-1].collections[0].set(cmap="Greys", clim=(0, 100))
    return figure


@style.styled("Attention on the image, above or below uniform attention")
def plot_group_layers(table: pd.DataFrame, column: str, random: ArrayLike = ()) -> Figure:
    """Excess image share by layer, with intervals: a line a question type or class of words.

    table: the names in `column`, query ("[CLS]", "words": a panel each), layer, estimate, low,
    high, n, enough (else hollow). random: of random-weight models (model, group, layer, query),
    drawn as a band that holds all. Where words are queries, no answer reads the last layer.
    """
    table = table.assign(label=style.name_with_n(table, column), few=~table["enough"].astype(bool))
    queries, last, band = table["query"].unique(), table["layer"].max(), "random weights"
    shares = np.reshape(random, (-1, last + 1, len(queries)))
    if len(shares):
        layers, numbers = np.indices(shares.shape[1:]).reshape(2, -1)
        ends = {"low": np.nanmin(shares, axis=0).ravel(), "high": np.nanmax(shares, axis=0).ravel()}
        ends |= {"layer": layers, "query": queries[numbers], "label": band}
        table = pd.concat([table, pd.DataFrame(ends)])
    labels = LAYER, "image share above uniform, points\n(text attends to image)"
    look = {"baselines": {"uniform attention": 0}, "limits": (None, None)}
    look |= {"bands": [band] if len(shares) else []}
    look |= {"scale": 100, "hollow": "few", "spread": 0.4, "height": 4.1}
    figure = style.draw_lines(table, "layer", "label", labels, "query", **look)
    for axis, query in zip(figure.axes, queries, strict=True):
        if query != "[CLS]":
            axis.axvspan(last - 0.5, last + 0.5, color=style.PALE, zorder=-2)
        unread = "" if query == "[CLS]" else f" (no answer reads L{last})"
        axis.set_title(f"{query} as query{unread}")
    return figure


@style.styled("Does the share of attention on the image go with the need for it?")
def plot_means(
    panels: Mapping[str, Mapping[str, Interval]],
    random: Mapping[str, ArrayLike],
    words: float | None = None,
) -> Figure:
    """Forests of means over models, with the number of each model and of each random-weight model.

    panels: of MEANS, name -> mean over models; one without numbers is not drawn. random: name ->
    the same number of the random-weight models, where known. words: AUC of the words alone.
    """
    rows = [
        mean._asdict() | {"panel": panel, "name": name, "random": np.ravel(random.get(name, ()))}
        for panel, means in panels.items() for name, mean in means.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table["label"] = style.name_with_n(table, "name")
    table["nothing"] = [MEANS[panel][3] for panel in table["panel"]]
    table["words"] = np.where(table["panel"] == "telling", words, np.nan).astype(float)
    lines = {MEANS[table["panel"][0]][2]: "nothing"}
    lines |= {} if words is None else {"words alone": "words"}
    labels = {panel: each[:2] for panel, each in MEANS.items()}
    look = {"color": IMAGE_COLOR, "label": "mean, 95 %", "baselines": lines}
    return style.draw_forest(table, "label", "", "panel", labels, **look)


@style.styled("In how many pairs of question types does a head tell the two apart?")
def plot_separation(separated: np.ndarray, apart: ArrayLike, random: ArrayLike) -> Figure:
    """In how many pairs of types a head tells the two apart, and the share of all, by model.

    separated: whether, in the first model: (pair, layer, head, query [CLS] or words), NaN where not
    tested. apart, random: the share in per cent, of each trained and each random-weight model.
    """
    counts = np.sum(separated, axis=0)  # (layer, head, query)
    size = (10, max(3.2, 0.5 * len(counts) + 1.5))
    figure, (*grids, right) = plt.subplots(1, 3, figsize=size, width_ratios=(1, 1, 0.8))
    for number, (axis, query) in enumerate(zip(grids, ("[CLS]", "words"), strict=True)):
        style.plot_grid(axis, counts[..., number], (0, len(separated)), cmap="cividis")
        axis.set_title(f"{query} query: pairs, of {len(separated)}")
    models = {f"trained\n({len(apart)})": apart, f"random\nweights ({len(random)})": random}
    sns.swarmplot(models, palette=[IMAGE_COLOR, GREY], ax=right)
    right.set(ylim=(0, None), title="of all heads and pairs, %")
    right.grid(axis="y")
    return figure


@style.styled()
def plot_strips(examples: Sequence[dict]) -> Figure:
    """Questions word by word: tokens across, layers down, a token's attention on the image.

    examples: dicts with title, words (word pieces), classes and share (layer, word) in [0, 1], the
    mean over heads. The widths of the panels follow the number of words; one colour scale for all.
    The last layer is hatched: no answer reads its words.
    """
    cells = [
        {"title": example["title"], "layer": f"L{layer}", "word": f"{number} {word} ({name})",
         "share": 100 * share, "text": ""}
        for example in examples for layer, shares in enumerate(example["share"])
        for number, (word, name, share) in
        enumerate(zip(example["words"], example["classes"], shares, strict=True), start=1)
    ]  # fmt: skip
    table, last = pd.DataFrame(cells), f"L{len(examples[0]['share']) - 1}"
    table["share"] = table["share"].mask(table["layer"] == last)
    look = {"limits": (0, 100), "cmap": "cividis", "label": "attention on\nthe image, %"}
    figure = style.draw_grids(table, "share", "layer", "word", "title", row_height=0.5, **look)
    for axis in figure.axes[: len(examples)]:
        axis.tick_params(axis="x", labelrotation=90)
    return figure


@style.styled("What do the answers of each question type need?")
def plot_needs(table: pd.DataFrame) -> Figure:
    """Forests of a table: family, kind (the first in colour; controls and random weights grey),
    measure (those of NEEDS have a panel if they have numbers), estimate, low, high (points), n,
    enough (else hollow).
    """
    table = table[table["measure"].isin(NEEDS)].dropna(subset=["estimate"])
    table = table.assign(few=~table["enough"].astype(bool))
    looks = (IMAGE_COLOR, "o"), (GREY, "s"), (GREY, "d")
    kinds = dict(zip(table["kind"].unique(), looks, strict=False))
    look = {"hue": "kind", "looks": kinds, "hollow": "few"}
    return style.draw_forest(table, "family", "", "measure", NEEDS, {"no effect": 0}, **look)


@style.styled("How often the answer read out, or a probe, is right after each layer, %")
def plot_known(table: pd.DataFrame) -> Figure:
    """Grids of the share right, of trained models: levels downwards, what is told across.

    table: of `readout.tabulate_known`; a panel a place. In brackets: the interval is not above the
    highest control there (random weights, shuffled labels); the last row is that of all levels.
    """
    cell, control = ["place", "what", "level"], table["model"] != "trained"
    highest = table[control].groupby(cell)["estimate"].max().rename("control")
    own = table[~control].join(highest, on=cell)
    levels = pd.DataFrame({"level": range(own["level"].max() + 1)})
    own = own[cell[:2]].drop_duplicates().merge(levels, how="cross").merge(own, how="left")
    highest = highest.groupby(cell[:2]).max().rename("estimate").reset_index()
    table = pd.concat([own, highest.assign(level=-1)])
    percent, unsure = 100 * table["estimate"], table["low"] <= table["control"]
    table = table.assign(percent=percent, text=style.format_cells(percent, unsure=unsure))
    names = {-1: "control", 0: "in"} | {level: f"L{level - 1}" for level in levels["level"][1:]}
    of_all = (table["place"] == "read-out") & (table["what"] == "answer")
    table["what"] = table["what"].mask(of_all, "all types").str.replace(" ", "\n")
    table = table.assign(level=table["level"].map(names), place=table["place"].map(KNOWN))
    look = {"limits": (0, 100), "cmap": "cividis", "label": "right, %", "row_height": 0.42}
    figure = style.draw_grids(table, "percent", "level", "what", "place", **look)
    for axis in figure.axes:
        axis.tick_params(labelsize=8)
    return figure
