"""The figure of simulated rates: every rate at its place, stated rates and bands drawn, missing ones said."""

import numpy as np
import pandas as pd
import pytest

from helpers.figures import simulate as plots_simulate

KINDS = ["single test", "single test", "after correction", "interval"]


def make_table(rates=(0.05, 0.062, 0.021, 0.94)):
    rates = np.array(rates, dtype=float)
    names = ["pair", "omnibus", "any pair, Holm", "mean of a family"]
    return pd.DataFrame(
        {
            "procedure": names,
            "kind": KINDS,
            "rate": rates,
            "low": rates - 0.01,
            "high": rates + 0.02,
            "n": 200,
        }
    )


def read_points(axis):
    """{procedure: (rate, low, high)} in the axis' units."""
    names, found = [tick.get_text() for tick in axis.get_yticklabels()], {}
    for container in axis.containers:
        points, bars = container.lines[0], container.lines[2][0].get_segments()
        for (x, y), bar in zip(points.get_xydata(), bars, strict=True):
            found[names[int(y)]] = (x, bar[0][0], bar[1][0])
    return found


def test_rates_stand_at_their_place_in_percent():
    left, right = plots_simulate.plot_calibration(make_table()).axes
    found = read_points(left)
    assert list(found) == ["pair", "omnibus", "any pair, Holm"]
    assert found["omnibus"] == pytest.approx((6.2, 5.2, 8.2))
    assert read_points(right)["mean of a family"] == pytest.approx((94, 93, 96))
    assert left.yaxis_inverted()  # the first procedure at the top
    assert len({container.lines[0].get_marker() for container in left.containers}) == 2


def test_stated_rates_and_bands_are_drawn():
    for axis, line, band in zip(
        plots_simulate.plot_calibration(make_table()).axes, (5, 95), ((3, 7), (92, 98)), strict=True
    ):
        assert line in [
            x for artist in axis.lines for x in artist.get_xdata() if len(artist.get_xdata()) == 2
        ]
        low, _, width, _ = axis.patches[0].get_bbox().bounds
        assert (low, low + width) == pytest.approx(band)
        assert axis.get_xlim()[0] < band[0]
        assert axis.get_xlim()[1] > band[1]


def test_rates_far_from_the_band_are_in_sight():
    left, right = plots_simulate.plot_calibration(make_table((0.3, 0.05, 0.02, 0.6))).axes
    assert left.get_xlim()[1] > 32
    assert left.get_xlim()[0] == 0
    assert right.get_xlim()[0] < 59


def test_what_cannot_be_told_is_said():
    some = plots_simulate.plot_calibration(make_table((0.05, np.nan, 0.03, np.nan)))
    assert [len(axis.texts) for axis in some.axes] == [1, 1]
    none = plots_simulate.plot_calibration(make_table([np.nan] * 4))
    assert [text.get_text() for text in none.axes[1].texts] == ["not enough questions to tell"]
    assert len(none.axes[0].texts) == 3
