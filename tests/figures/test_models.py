"""Figures of notebooks 01 and 07: the numbers drawn are the table's."""

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
