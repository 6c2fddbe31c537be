"""The figure of several runs: how far each headline number spreads over seeds or settings."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from helpers.figures.style import GREY, TEXT_COLOR, close_figure, figure_style, measure_bars

COLUMNS = 3
UNITS = {"%": "%", "points": "points", "heads": "heads", "times": "times as fast"}


def plot_runs(table: pd.DataFrame):
    """A panel a headline, a point a run with its 95 % interval; line: mean of the runs, band: mean ± 1 SD.

    table: run, headline, label, unit, value, low, high (`compare.compare_runs`). A run without a number says so
    in its place; with one number there is no band.
    """
    names, runs = list(dict.fromkeys(table["headline"])), list(dict.fromkeys(table["run"]))
    n_rows = math.ceil(len(names) / COLUMNS)
    with figure_style():
        height = n_rows * (0.27 * len(runs) + 1.15) + 0.4
        figure, axes = plt.subplots(
            n_rows, COLUMNS, figsize=(10, height), sharey=True, squeeze=False
        )
        for axis, name in zip(axes.flat, names, strict=False):
            draw_headline(axis, table[table["headline"] == name].reset_index(drop=True))
        for axis in axes.flat[len(names) :]:
            axis.remove()
        axes[0, 0].set_ylim(len(runs) - 0.4, -0.6)
        axes[0, 0].set_yticks(range(len(runs)), runs)
        figure.suptitle("How far do the headline numbers spread over runs?", fontsize=11)
    return close_figure(figure)


def draw_headline(axis, rows: pd.DataFrame) -> None:
    """One panel: a line a run, the first at the top."""
    values = rows["value"].to_numpy(float)
    told = np.isfinite(values)
    if told.sum() > 1:
        mean, sd = values[told].mean(), values[told].std(ddof=1)
        axis.axvspan(mean - sd, mean + sd, color="#EFEFEF", zorder=-1)
        axis.axvline(mean, color=GREY, linestyle="--", linewidth=1.2, zorder=0)
    bars = measure_bars(values, rows["low"], rows["high"])
    places = np.arange(len(rows))
    axis.errorbar(
        values[told],
        places[told],
        xerr=bars[:, told],
        fmt="o",
        color=TEXT_COLOR,
        capsize=2.5,
        markersize=5,
    )
    for place in places[~told]:
        said = {
            "ha": "center",
            "va": "center",
            "fontsize": 8,
            "color": "#5A5A5A",
            "backgroundcolor": "white",
        }
        axis.text(0.5, place, "no number", transform=axis.get_yaxis_transform(), **said)
    axis.xaxis.set_major_locator(MaxNLocator(3, integer=rows["unit"][0] == "heads", min_n_ticks=1))
    if not told.any():
        axis.set_xticks([])
    elif np.ptp(values[told]) == 0 and not bars[:, told].any():
        axis.set_xlim(
            values[told][0] - 1, values[told][0] + 1
        )  # else the axis would magnify nothing
    axis.set_xlabel(UNITS[rows["unit"][0]], fontsize=9)
    axis.set_title(wrap(rows["label"][0]), fontsize=9)
    axis.tick_params(axis="y", length=0)


def wrap(label: str, width: int = 42) -> str:
    """A label on at most two lines, broken at the space that makes them most alike."""
    if len(label) <= width:
        return label
    spaces = [place for place, sign in enumerate(label) if sign == " "]
    middle = min(spaces, key=lambda place: abs(place - len(label) / 2), default=None)
    return label if middle is None else f"{label[:middle]}\n{label[middle + 1 :]}"
