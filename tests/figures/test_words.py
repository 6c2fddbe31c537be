"""helpers/figures/words.py: the figures draw the tables' numbers, and say which are few or missing."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from reading import is_hollow, read_bars, read_legend, read_texts, read_ticks, read_title, render

from helpers.attention.word_classes import CLASSES
from helpers.figures import words as plots

pytestmark = pytest.mark.usefixtures("tidy_figures")


def make_layers(n_layers=3) -> pd.DataFrame:
    rows = [
        (name, layer, 0.1 * number - 0.05 * layer, 100 + number)
        for (number, name), layer in product(enumerate(CLASSES), range(n_layers))
    ]
    table = pd.DataFrame(rows, columns=["word_class", "layer", "estimate", "n"])
    return table.assign(low=table["estimate"] - 0.02, high=table["estimate"] + 0.01, enough=True)


def test_classes_have_a_look_each():
    assert set(plots.CLASS_STYLE) == set(CLASSES)
    colors, markers = zip(*plots.CLASS_STYLE.values(), strict=True)
    assert len(set(colors)) == len(set(markers)) == len(CLASSES)


def test_layers_draw_every_class_in_points():
    table = make_layers()
    figure = plots.plot_class_layers(table)
    render(figure)
    axis = figure.axes[0]
    assert len(axis.containers) == len(CLASSES)
    for name, container in zip(CLASSES, axis.containers, strict=True):
        rows, line = table[table["word_class"] == name], container.lines[0]
        np.testing.assert_allclose(line.get_ydata(), 100 * rows["estimate"])
        np.testing.assert_allclose(np.round(line.get_xdata().astype(float)), rows["layer"])
        np.testing.assert_allclose(read_bars(container), 100 * rows[["low", "high"]])
        assert (to_hex(line.get_color()).upper(), line.get_marker()) == plots.CLASS_STYLE[name]
    assert read_legend(figure.legends[0]) == [
        f"{name}\nn = {100 + i}" for i, name in enumerate(CLASSES)
    ]
    assert read_ticks(axis, "x") == ["L0", "L1", "L2"]
    assert plots.UNREAD in read_texts(axis)
    assert "points" in axis.get_ylabel()


def test_few_questions_are_hollow_and_missing_classes_are_left_out():
    table = make_layers()
    noun, color = table["word_class"] == "noun", table["word_class"] == "colour word"
    table.loc[noun, "enough"] = False
    table.loc[noun, ["low", "high"]] = np.nan
    table.loc[color, ["estimate", "low", "high"]] = np.nan
    figure = plots.plot_class_layers(table)
    render(figure)
    hollow = [is_hollow(container.lines[0]) for container in figure.axes[0].containers]
    assert hollow == [False, True, False, False, False]
    labels = read_legend(figure.legends[0])
    assert "noun\nn = 102\ntoo few" in labels
    assert not any("colour" in label for label in labels)


def test_families_against_classes():
    rows = [("what", "noun", 0.25, 1200, True), ("what", "question word", -0.1, 30, False),
            ("why", "noun", np.nan, 0, False), ("why", "question word", 0.5, 40, True)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["family", "word_class", "estimate", "n", "enough"])
    figure = plots.plot_class_families(table, 2)
    render(figure)
    axis = figure.axes[0]
    cells = np.ma.filled(axis.images[0].get_array().astype(float), np.nan)
    np.testing.assert_allclose(cells, [[25, -10], [np.nan, 50]])
    assert axis.images[0].get_clim() == (-50, 50)
    assert read_ticks(axis, "x") == ["noun", "question word"]
    assert read_ticks(axis, "y") == ["what", "why"]
    assert read_texts(axis) == ["+25   n = 1,200", "(-10)   n = 30", "+50   n = 40"]
    assert [patch.get_xy() for patch in axis.patches] == [
        (-0.5, 0.5)
    ]  # hatched where there is nothing
    assert "L2" in read_title(axis)


def test_families_without_any_number():
    rows = [("what", "noun", np.nan, 0, False)]
    table = pd.DataFrame(rows, columns=["family", "word_class", "estimate", "n", "enough"])
    render(plots.plot_class_families(table, 0))


def test_strips_show_words_across_and_layers_down():
    share = np.arange(8).reshape(2, 4) / 10
    first = {"title": "where", "words": ["where", "is", "it", "?"], "share": share,
             "classes": ["question word", "function word", "function word", "punctuation"]}  # fmt: skip
    second = {
        "title": "who",
        "words": ["who", "?"],
        "share": share[:, :2],
        "classes": ["question word", "punctuation"],
    }
    figure = plots.plot_strips([first, second])
    render(figure)
    for axis, example in zip(figure.axes, (first, second), strict=False):
        np.testing.assert_allclose(axis.images[0].get_array(), 100 * example["share"])
        assert axis.images[0].get_clim() == (0, 100)
        assert read_ticks(axis, "x") == example["words"]
        assert [line.get_marker() for line in axis.lines] == [
            plots.CLASS_STYLE[c][1] for c in example["classes"]
        ]
        assert read_title(axis) == example["title"]
        assert axis.patches[0].get_y() == 0.5  # the last of two layers is hatched
    assert read_ticks(figure.axes[0], "y") == ["L0", "L1"]
    assert read_legend(figure.legends[0]) == ["question word", "function word", "punctuation"]
