"""What answers lose where attention is cut, beside how much attention runs along the same edges."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from helpers.figures.style import format_cells, plot_cells, set_title, styled

PANELS = {  # column `panel` of the table: what its columns are
    "one": "cut in this layer alone",
    "onward": "cut from this layer on",
    "type": "cut in all layers, by question type",
    "share": "attention along these edges, %",
}


@styled
def plot_knockout(table: pd.DataFrame) -> Figure:
    """Grids of points of accuracy lost by direction and layer or type, and of attention shares.

    table: columns panel (of PANELS), direction, column (a layer such as "L2", or a question type),
    estimate, low, high; rows in the order to draw them. In brackets: the interval holds 0.
    """
    directions = list(table["direction"].unique())
    panels = [panel for panel in PANELS if (table["panel"] == panel).any()]
    widths = [1.2 + table.loc[table["panel"] == panel, "column"].nunique() for panel in panels]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(11, 1.6 + 0.36 * len(directions)), squeeze=False,
        gridspec_kw={"width_ratios": widths},
    )  # fmt: skip
    for axis, panel in zip(axes[0], panels, strict=True):
        rows = table[table["panel"] == panel]
        columns = list(rows["column"].unique())
        rows = rows.assign(unsure=((rows["low"] <= 0) & (rows["high"] >= 0)).astype(float))
        values, unsure = (
            rows.pivot_table(name, "direction", "column", sort=False)
            .reindex(index=directions, columns=columns)
            .to_numpy(float)
            for name in ("estimate", "unsure")
        )
        limits, color = ((0, 100), "cividis") if panel == "share" else ((-100, 100), "RdBu_r")
        names = [name.replace(" ", "\n") for name in columns]
        look = {"cmap": color, "fontsize": 8}
        arrows = [name.replace("<-", "←") for name in directions]
        plot_cells(
            axis, values, format_cells(values, unsure=unsure == 1), arrows, names, limits, **look
        )
        axis.set_title(PANELS[panel], fontsize=9)
        if axis is not axes[0, 0]:
            axis.set_yticklabels([])
    return set_title(figure, "What an answer loses where attention is cut (query ← key), in points")
