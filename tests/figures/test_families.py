"""Figures of notebook 04: families by layer, by head, in pairs, adjusted, and against controls."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from reading import is_hollow, read_bars, read_legend, read_texts, read_ticks, read_title, render

from helpers.data.vqa import FAMILIES
from helpers.figures import families as plots

pytestmark = pytest.mark.usefixtures("tidy_figures")
TOO_FEW = "not enough questions to tell"


def make_layers(
    families=("what", "why"), n_layers=3, queries=("[CLS]", "words"), kinds=None
) -> pd.DataFrame:
    """Shares that tell their place: tenths by family, hundredths by layer, thousandths by query and kind."""
    rows = [
        {"family": family, "query": query, "kind": kind, "layer": layer, "estimate": estimate, "low": estimate - 0.01,
         "high": estimate + 0.02, "n": 1000 * (f + 1) + k, "enough": True}
        for f, family in enumerate(families) for q, query in enumerate(queries) for k, kind in enumerate(kinds or [None])
        for layer in range(n_layers) for estimate in [0.1 * f + 0.01 * layer + 0.001 * q + 0.002 * k - 0.1]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def find_shade(axis) -> list[tuple[float, float]]:
    """Ends of the shaded layers."""
    return [
        (p.get_x(), p.get_x() + p.get_width()) for p in axis.patches if isinstance(p, Rectangle)
    ]


# -------------------------------------------------------------------------------------------------- families


def test_every_family_has_a_look_of_its_own():
    looks = {family: plots.style_family(family) for family in FAMILIES}
    colors, markers = zip(*looks.values(), strict=True)
    assert len(set(colors)) == len(set(markers)) == len(FAMILIES)
    assert plots.style_family("never heard of") not in looks.values()


def test_name_of_a_family_says_n_and_too_few():
    assert plots.name_family("why", 1234, True) == "why\nn = 1,234"
    assert plots.name_family("why", 3, False).endswith("\ntoo few")


def test_families_by_layer():
    table = make_layers()
    table.loc[table["family"] == "why", "enough"] = False
    figure = plots.plot_family_layers(table.sample(frac=1, random_state=3))
    render(figure)
    assert [read_title(axis) for axis in figure.axes] in (
        ["[CLS] query", "words query"],
        ["words query", "[CLS] query"],
    )
    for axis in figure.axes:
        q = "words" in read_title(axis)
        for f, family in enumerate(("what", "why")):
            color, marker = plots.style_family(family)
            container = next(c for c in axis.containers if c.lines[0].get_color() == color)
            expected = 100 * np.array(
                [0.1 * f + 0.01 * layer + 0.001 * q - 0.1 for layer in range(3)]
            )
            np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
            np.testing.assert_allclose(container.lines[0].get_xydata()[:, 0], [0, 1, 2], atol=0.3)
            np.testing.assert_allclose(
                read_bars(container), np.stack([expected - 1, expected + 2], axis=1)
            )
            assert container.lines[0].get_marker() == marker
            assert is_hollow(container.lines[0]) == (
                family == "why"
            )  # too few questions: open marker
        assert "uniform" in read_texts(axis)
        assert any(
            np.all(np.asarray(line.get_ydata()) == 0) and line.get_linestyle() == "--"
            for line in axis.lines
        )
        assert find_shade(axis) == (
            [(1.5, 2.5)] if q else []
        )  # no answer reads the last layer's words
        assert read_ticks(axis, "x") == ["L0", "L1", "L2"]
    assert set(read_legend(figure.legends[0])) == {"what\nn = 1,000", "why\nn = 2,000\ntoo few"}
    assert "text query, image key" in figure.axes[0].get_ylabel()
    assert "points" in figure.axes[0].get_ylabel()


def test_legend_of_families_points_at_their_marks():
    figure = plots.plot_family_layers(make_layers())
    legend = figure.legends[0]
    for handle, label in zip(legend.legend_handles, read_legend(legend), strict=True):
        family = label.split("\n")[0]
        assert to_hex(handle.get_color()[0]) == plots.style_family(family)[0].lower()


@pytest.mark.parametrize(
    ("families", "n_layers"), [(("other",), 1), (FAMILIES, 12)], ids=["one", "all"]
)
def test_families_of_other_numbers_and_without_intervals(families, n_layers):
    table = make_layers(families, n_layers).assign(low=np.nan, high=np.nan)
    table["family"] = pd.Categorical(
        table["family"], FAMILIES
    )  # as the notebook has it, with unused categories
    figure = plots.plot_family_layers(table)
    render(figure)
    assert [len(axis.containers) for axis in figure.axes] == [len(families)] * 2
    bars = read_bars(figure.axes[0].containers[0])
    np.testing.assert_array_equal(bars[:, 0], bars[:, 1])
    assert len(read_legend(figure.legends[0])) == len(families)


# -------------------------------------------------------------------------------------------------- separation


def make_cells(
    n_layers: int, n_heads: int, label="what color > how many", queries=("[CLS]", "words")
) -> pd.DataFrame:
    """Hundredths by head and layer; head 0 of layer 0 found nothing; the last layer's words were not tested."""
    rows = []
    for query in queries:
        for layer, head in np.ndindex(n_layers, n_heads):
            tested = query == "[CLS]" or layer < n_layers - 1
            found = tested and (layer, head) != (0, 0)
            size = (1 + layer + n_layers * head) / 200 if found else np.nan
            rows.append((query, layer, head, size, label if found else np.nan, tested))
    return pd.DataFrame(rows, columns=["query", "layer", "head", "difference", "label", "tested"])


def test_separation_shows_size_and_pair():
    figure = plots.plot_separation(make_cells(3, 2))
    cls, words, bar = figure.axes
    drawn = np.ma.filled(cls.images[0].get_array(), np.nan)
    np.testing.assert_allclose(drawn, [[np.nan, 2], [1, 2.5], [1.5, 3]])
    assert np.isnan(np.ma.filled(words.images[0].get_array(), np.nan)[2]).all()
    assert cls.images[0].get_clim() == words.images[0].get_clim() == (0, 3)
    for axis, name in ((cls, "[CLS] query"), (words, "words query")):
        assert read_title(axis) == name
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("head", "layer")
        assert read_ticks(axis, "x") == ["H0", "H1"]
        assert read_ticks(axis, "y") == ["L0", "L1", "L2"]
        assert axis.yaxis_inverted()
    written = {text.get_position(): text.get_text().split() for text in cls.texts}  # (head, layer)
    assert set(written) == {(1, 0), (0, 1), (1, 1), (0, 2), (1, 2)}  # nothing found: an empty cell
    assert written[1, 0] == ["2", "what", "color", ">", "how", "many"]
    assert "points" in bar.get_ylabel()


def test_cells_that_were_not_tested_are_hatched():
    cls, words, _ = plots.plot_separation(make_cells(3, 2)).axes
    assert not cls.patches
    assert {(p.get_x() + 0.5, p.get_y() + 0.5) for p in words.patches if p.get_hatch()} == {
        (0, 2),
        (1, 2),
    }


def test_text_is_light_on_dark_and_dark_on_light():
    table = make_cells(1, 3, queries=["[CLS]"]).assign(difference=[0.05, 0.2, 1.0], label="a > b")
    texts = plots.plot_separation(table).axes[0].texts
    assert [text.get_color() for text in texts] == [
        "white",
        "white",
        "black",
    ]  # cividis: yellow is large


@pytest.mark.parametrize(
    ("n_layers", "n_heads", "label"),
    [(4, 4, "what color > how many"), (2, 6, "what color > how many"), (2, 8, "none of the above > what color"),
     (12, 12, "what color > how many")],
)  # fmt: skip
def test_labels_stay_in_their_cells(n_layers, n_heads, label):
    figure = plots.plot_separation(make_cells(n_layers, n_heads, label))
    render(figure)
    for axis in figure.axes[:2]:
        assert axis.texts
        assert min(text.get_fontsize() for text in axis.texts) >= (
            6.5 if n_heads <= 6 else 3
        )  # to be read
        for text in axis.texts:
            x, y = text.get_position()
            ends = axis.transData.transform([(x - 0.5, y + 0.5), (x + 0.5, y - 0.5)])
            box = text.get_window_extent()
            assert ends[0, 0] <= box.x0 < box.x1 <= ends[1, 0], text.get_text()
            assert ends[0, 1] <= box.y0 < box.y1 <= ends[1, 1], text.get_text()


def test_many_heads_show_the_number_alone():
    axis = plots.plot_separation(make_cells(12, 12)).axes[0]
    assert len(axis.texts) == 143
    assert all(text.get_text().isdigit() for text in axis.texts)


@pytest.mark.parametrize("empty", [np.nan, None])
def test_separation_where_nothing_was_found_or_tested(empty):
    table = make_cells(2, 1).assign(difference=np.nan, label=empty)
    table.loc[0, "tested"] = True
    table.loc[1:, "tested"] = False
    figure = plots.plot_separation(table)
    render(figure)
    cls, words, _ = figure.axes
    assert not cls.texts
    assert not words.texts
    assert len(cls.patches) + len(words.patches) == 3


# --------------------------------------------------------------------------------------------------- all pairs


def make_sizes(*families) -> pd.DataFrame:
    return pd.DataFrame(
        {"questions": 1500, "enough": [f != "why" for f in families]}, index=list(families)
    )


def test_pairs_count_heads_below_the_diagonal():
    rows = [("[CLS]", "what", "where", 16, 4, 0.51), ("[CLS]", "why", "what", 0, 0, np.nan),
            ("[CLS]", "where", "why", 0, 0, np.nan), ("words", "where", "what", 12, 12, 1.96)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["query", "group_a", "group_b", "heads", "apart", "g"])
    figure = plots.plot_pairs(table, make_sizes("what", "where", "why"))
    render(figure)
    cls, words, bar = figure.axes
    np.testing.assert_allclose(
        cls.images[0].get_array().filled(-1), [[-1, -1, -1], [25, -1, -1], [-1, -1, -1]]
    )
    np.testing.assert_allclose(
        words.images[0].get_array().filled(-1)[1], [100, -1, -1]
    )  # in either order of names
    assert {text.get_position(): text.get_text() for text in cls.texts} == {
        (0, 1): "4 of 16\ng 0.5"
    }
    assert read_texts(words) == ["12 of 12\ng 2.0"]
    hatched = {(p.get_x() + 0.5, p.get_y() + 0.5) for p in cls.patches if p.get_hatch()}
    assert hatched == {(0, 2), (1, 2)}  # what-why and where-why: too few questions
    assert cls.images[0].get_clim() == (0, 100)
    assert read_ticks(cls, "y") == [
        "what\nn = 1,500",
        "where\nn = 1,500",
        "why\nn = 1,500\ntoo few",
    ]
    assert read_ticks(cls, "x") == ["what", "where", "why"]
    assert cls.get_ylim() == (2.5, 0.5)  # the first row and the last column would be empty
    assert cls.get_xlim() == (-0.5, 1.5)
    assert "%" in bar.get_ylabel()


@pytest.mark.parametrize("families", [("what",), ()], ids=["one", "none"])
def test_pairs_of_fewer_than_two_families(families):
    table = pd.DataFrame(columns=["query", "group_a", "group_b", "heads", "apart", "g"])
    figure = plots.plot_pairs(table, make_sizes(*families))
    render(figure)
    assert read_texts(figure.axes[0]) == [TOO_FEW]


# -------------------------------------------------------------------------------------------------- adjustment


def test_adjustment_draws_a_point_a_pair():
    rows = [("[CLS]", 0.3, 0.2, "survives"), ("[CLS]", -0.1, 0.0, "does not survive"), ("[CLS]", 0.4, 0.4, "survives"),
            ("words", -0.5, -0.2, "survives"), ("words", np.nan, np.nan, "never beyond chance"),
            ("words", 0.1, np.nan, "survives")]  # fmt: skip
    table = pd.DataFrame(rows, columns=["query", "difference", "adjusted", "verdict"])
    figure = plots.plot_adjustment(table)
    render(figure)
    cls, words = figure.axes
    drawn = {
        dots.get_label(): dots.get_offsets().tolist()
        for dots in cls.collections
        if len(dots.get_offsets())
    }
    assert drawn == {"survives": [[30, 20], [40, 40]], "does not survive": [[-10, 0]]}
    assert np.concatenate([dots.get_offsets() for dots in words.collections]).tolist() == [
        [-50, -20]
    ]
    colors = [
        to_hex(dots.get_facecolor()[0]) for dots in cls.collections if len(dots.get_offsets())
    ]
    assert len(set(colors)) == 2
    assert read_legend(figure.legends[0]) == ["survives", "does not survive", "never beyond chance"]
    alone = plots.plot_adjustment(
        table[table["verdict"] == "does not survive"]
    )  # looks the same in every run
    assert to_hex(alone.axes[0].collections[0].get_facecolor()[0]) == colors[1]
    for axis in figure.axes:
        low, high = axis.get_xlim()
        assert low == -high
        assert high > 50
        assert axis.get_ylim() == (low, high)
        assert axis.get_aspect() == 1
        diagonal = axis.lines[0].get_xydata()
        np.testing.assert_array_equal(diagonal[:, 0], diagonal[:, 1])
        assert "points" in axis.get_xlabel()
        assert axis.get_ylabel().startswith("adjusted")


@pytest.mark.parametrize(
    "rows",
    [[], [("[CLS]", np.nan, np.nan, "never"), ("words", np.nan, np.nan, "never")]],
    ids=["no pair", "untested"],
)
def test_adjustment_of_nothing(rows):
    table = pd.DataFrame(rows, columns=["query", "difference", "adjusted", "verdict"])
    table = table.astype({"difference": float, "adjusted": float})
    figure = plots.plot_adjustment(table)
    render(figure)
    assert len(figure.axes) == max(1, len(rows))
    assert all(read_texts(axis) == [TOO_FEW] for axis in figure.axes)
    assert not figure.legends


# ---------------------------------------------------------------------------------------------------- controls


def test_controls_beside_the_questions_they_control():
    kinds = ["needs the image", "words are enough"]
    figure = plots.plot_controls(make_layers(kinds=kinds))
    render(figure)
    panels = np.array(figure.axes).reshape(2, 2)  # queries down, families across
    assert [read_title(axis) for axis in panels[0]] == [
        "what\nn = 1,000 and 1,001",
        "why\nn = 2,000 and 2,001",
    ]
    assert [read_title(axis) for axis in panels[1]] == ["", ""]
    for (q, f), axis in np.ndenumerate(panels):
        assert len(axis.containers) == 2
        for k, container in enumerate(axis.containers):
            expected = 100 * np.array(
                [0.1 * f + 0.01 * layer + 0.001 * q + 0.002 * k - 0.1 for layer in range(3)]
            )
            np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
            np.testing.assert_allclose(
                read_bars(container), np.stack([expected - 1, expected + 2], axis=1)
            )
        needs, enough = (container.lines[0] for container in axis.containers)
        assert needs.get_marker() != enough.get_marker()
        assert needs.get_color() != enough.get_color()
        assert (
            np.less(needs.get_xdata(), enough.get_xdata())
        ).all()  # side by side: no bar hides the other
        assert find_shade(axis) == ([(1.5, 2.5)] if q else [])
        assert axis.get_xlabel() == ("layer" if q else "")
    assert panels[0, 0].get_ylabel().startswith("[CLS] query")
    assert panels[1, 0].get_ylabel().startswith("words query")
    assert read_legend(figure.legends[0]) == kinds


def test_controls_of_one_family_with_too_few_questions():
    table = make_layers(("how",), 12, ("[CLS]",), ["a", "b"]).assign(low=np.nan, high=np.nan)
    table["enough"] = table["kind"] == "a"
    table["kind"] = pd.Categorical(table["kind"], ["a", "b"])
    figure = plots.plot_controls(table)
    render(figure)
    assert [is_hollow(container.lines[0]) for container in figure.axes[0].containers] == [
        False,
        True,
    ]
    assert len(figure.axes) == 1


# ---------------------------------------------------------------------------------------------------- examples


def make_example(name: str, weights, grey=False) -> dict:
    picture = np.full((20, 30) if grey else (20, 30, 3), 99, np.uint8)
    return {"picture": picture, "boxes": [(2, 3, 4, 5)] if name == "what" else [], "title": f"{name}: is it?",
            "weights": np.asarray(weights), "caption": f"answer: {name}"}  # fmt: skip


def test_examples_share_one_scale():
    examples = [
        make_example("what", [[0.1, 0.2, 0.0]]),
        make_example("where", [[0.0], [0.4]], grey=True),
    ]
    figure = plots.plot_maps(examples, "[CLS], L2")
    render(figure)
    above, below, bar = figure.axes[:2], figure.axes[2:4], figure.axes[4]
    assert [read_title(axis) for axis in above] == ["what: is it?", "where: is it?"]
    assert [axis.get_xlabel() for axis in below] == ["answer: what", "answer: where"]
    np.testing.assert_allclose(below[0].images[1].get_array(), [[10, 20, 0]])
    np.testing.assert_allclose(below[1].images[1].get_array(), [[0], [40]])
    assert {axis.images[1].get_clim() for axis in below} == {(0, 40)}
    assert [len(axis.patches) for axis in above] == [2, 0]  # a white and a black frame
    assert [len(axis.patches) for axis in below] == [1, 0]
    assert bar.get_ylabel() == "[CLS], L2 query's attention, % a patch"


def test_one_example_without_attention():
    figure = plots.plot_maps([make_example("why", np.zeros((2, 3)))], "words, L0")
    render(figure)
    assert len(figure.axes) == 3
