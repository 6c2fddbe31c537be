"""Figures of notebooks 01, 02, 07 and a3: the numbers drawn are the table's."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from reading import read_bars, read_texts, render

from helpers.figures import models as figures

pytestmark = pytest.mark.usefixtures("tidy_figures")
PICTURE = Image.new("RGB", (64, 48), (10, 20, 30))


def test_patches_are_numbered_in_raster_order():
    axis = figures.plot_patches(PICTURE, np.zeros((96, 128, 3)), (3, 4)).axes[2]
    render(axis.figure)
    assert read_texts(axis) == [str(number) for number in range(12)]
    assert axis.texts[5].get_position() == pytest.approx((1.06 * 32, 1.06 * 32))


def test_training_draws_loss_and_accuracy():
    curves = {"step": [1, 2, 2], "loss": [3, 2, np.nan], "eval_accuracy": [np.nan, np.nan, 0.4]}
    figure = figures.plot_training(pd.DataFrame(curves), 0.25)
    render(figure)
    loss, accuracy = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 3], [2, 2]])
    np.testing.assert_array_equal(accuracy.lines[0].get_xydata(), [[2, 40]])
    assert set(accuracy.lines[1].get_ydata()) == {25}


def test_runs_are_points_beside_the_threshold():
    rows = [
        ("a", "needs-image", 50.0, 40.0, 60.0),
        ("b", "needs-image", 60.0, 5.0, 65.0),
        ("a", "habits", 3, 2, 4),
        ("b", "habits", np.nan, np.nan, np.nan),
        ("a", "backup", np.nan, np.nan, np.nan),
    ]
    table = pd.DataFrame(rows, columns=["run", "key", "estimate", "low", "high"])
    figure = figures.plot_runs(table.assign(claim="A claim.", unit="points", threshold=20.0))
    render(figure)
    image, habits = figure.axes  # what no run could measure has no panel
    np.testing.assert_allclose(image.containers[0].lines[0].get_xydata(), [[50, 0], [60, 1]])
    np.testing.assert_allclose(read_bars(image.containers[0], 0), [[40, 60], [5, 65]])
    np.testing.assert_allclose(habits.containers[0].lines[0].get_xdata(), [3, np.nan])
    assert habits.lines[0].get_xdata()[0] == 20


@pytest.mark.parametrize("rates", [(0.05, 0.03, 0.04, 0.94), (np.nan, 0.4, np.nan, np.nan)])
def test_calibration_draws_rates_beside_the_stated_ones(rates):
    kinds = ["after correction", "single test", "single test", "interval"]
    table = pd.DataFrame({"procedure": list("abcd"), "kind": kinds, "rate": rates})
    table = table.assign(low=table["rate"] - 0.01, high=table["rate"] + 0.02)
    figure = figures.plot_calibration(table)
    render(figure)
    points = [
        tuple(np.round(point, 9)) for axis in figure.axes for c in axis.containers
        for point in c.lines[0].get_xydata() if not np.isnan(point[0])
    ]  # fmt: skip
    rows = [2, 0, 1, 0]  # single tests first
    expected = {(100 * rate, row) for rate, row in zip(rates, rows, strict=True) if rate == rate}
    assert set(points) == expected
    assert {axis.lines[0].get_xdata()[0] for axis in figure.axes} == {5, 95}
