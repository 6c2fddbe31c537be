"""The figure of how far tests and intervals can be trusted: simulated rates against the stated ones."""

import matplotlib.pyplot as plt
import pandas as pd

from helpers.figures.style import GREY, close_figure, figure_style, measure_bars

LOOKS = {  # marker and colour (Okabe-Ito) of each kind of rate
    "single test": ("o", "#009E73"), "after correction": ("s", "#CC79A7"), "interval": ("D", "#E69F00"),
}  # fmt: skip
ERRORS = {
    "line": 5,
    "band": (3, 7),
    "label": "false rejections, %",
    "title": "Finding what is not there",
}
COVERAGE = {
    "line": 95,
    "band": (92, 98),
    "label": "intervals that hold the truth, %",
    "title": "Holding what is there",
}


def plot_calibration(table: pd.DataFrame):
    """Simulated rates with their intervals, against the stated 5 % (tests) and 95 % (intervals).

    table: procedure, kind (a key of LOOKS; "interval" goes to the right), rate, low, high in [0, 1], a row each,
    drawn kind by kind.
    Shaded: what is held to be good enough, 3 to 7 % and 92 to 98 %. A rate that is NaN is said to be missing.
    """
    table = table.sort_values("kind", key=lambda kinds: kinds.map([*LOOKS].index), kind="stable")
    right = table["kind"] == "interval"
    with figure_style():
        size = (10, 0.36 * max((~right).sum(), right.sum()) + 1.7)
        figure, axes = plt.subplots(1, 2, figsize=size, width_ratios=(1.15, 1))
        for axis, rows, goal in zip(
            axes, (table[~right], table[right]), (ERRORS, COVERAGE), strict=True
        ):
            draw_rates(axis, rows, goal)
        axes[0].set_xlim(left=0)
        axes[1].set_xlim(right=100)
        figure.legend(*collect_legend(axes), loc="outside lower center", ncols=len(LOOKS))
        figure.suptitle("How often are the study's own tests and intervals wrong?", fontsize=11)
    return close_figure(figure)


def draw_rates(axis, rows: pd.DataFrame, goal: dict) -> None:
    """One panel: a line a procedure, the first at the top, with the stated rate and the band around it."""
    axis.axvspan(*goal["band"], color="#EFEFEF", zorder=-1)
    axis.axvline(goal["line"], color=GREY, linestyle="--", linewidth=1.2, zorder=0)
    for kind, (marker, color) in LOOKS.items():
        own = [place for place, name in enumerate(rows["kind"]) if name == kind]
        part = 100 * rows.iloc[own][["rate", "low", "high"]].astype(float)
        if len(part):
            bars = measure_bars(part["rate"], part["low"], part["high"])
            axis.errorbar(
                part["rate"],
                own,
                xerr=bars,
                fmt=marker,
                color=color,
                capsize=2.5,
                markersize=6,
                label=kind,
            )
    for place, rate in enumerate(rows["rate"]):
        if pd.isna(rate):
            said = {"ha": "center", "va": "center", "fontsize": 8.5}
            axis.text(
                goal["line"],
                place,
                "not enough questions to tell",
                backgroundcolor="#EFEFEF",
                **said,
            )
    reach = 100 * rows[["low", "high"]].astype(float)
    low, high = (
        (reach["low"].min(), reach["high"].max()) if reach.notna().any(axis=None) else goal["band"]
    )
    axis.set_xlim(min(goal["band"][0] - 1, low - 0.5), max(goal["band"][1] + 1, high + 0.5))
    axis.set(xlabel=goal["label"], title=goal["title"], ylim=(len(rows) - 0.5, -0.5))
    axis.set_yticks(range(len(rows)), rows["procedure"])
    axis.tick_params(axis="y", length=0)


def collect_legend(axes) -> tuple[list, list]:
    """Handles and labels of both panels, for one legend."""
    found = [axis.get_legend_handles_labels() for axis in axes]
    return [part for handles, _ in found for part in handles], [
        part for _, labels in found for part in labels
    ]
