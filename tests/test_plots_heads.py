"""Figures of notebook 05: scores and roles of heads, their stability, and what their removal costs."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from reading import is_hollow, read_bars, read_legend, read_texts, read_ticks, read_title, render

from helpers import plots_heads as plots
from helpers.heads import ROLES

pytestmark = pytest.mark.usefixtures("tidy_figures")


def make_scores(n_layers=2, n_heads=2, roles=("sink", "text local", "[CLS] reader of words")) -> pd.DataFrame:
    """Scores that tell their place: tenths by role, hundredths by head; even heads pass."""
    rows = [
        {"layer": layer, "head": head, "name": f"L{layer}H{head}", "role": role, "score": score, "low": score - 0.02,
         "high": score + 0.03, "null": score - 0.1, "passes": head % 2 == 0, "reaches_answer": layer < n_layers - 1 or "CLS" in role}
        for r, role in enumerate(roles) for layer, head in np.ndindex(n_layers, n_heads)
        for score in [0.1 + 0.1 * r + 0.01 * (layer * n_heads + head)]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_every_role_has_a_name_and_a_colour_of_its_own():
    assert set(plots.ROLE_LOOKS) == set(ROLES)
    names, colors = zip(*plots.ROLE_LOOKS.values(), strict=True)
    assert len(set(names)) == len(set(colors)) == len(ROLES)


# ------------------------------------------------------------------------------------------------- role scores


def test_role_scores_against_the_untrained_self():
    figure = plots.plot_role_scores(make_scores())
    render(figure)
    panels = [axis for axis in figure.axes if axis.axison]
    assert (len(figure.axes), len(panels)) == (4, 3)  # an odd number of roles leaves a panel empty
    short = [plots.ROLE_LOOKS[role][0] for role in ("sink", "text local", "[CLS] reader of words")]
    assert [read_title(axis) for axis in panels] == [
        f"sink ({short[0]})", f"text local ({short[1]})", f"[CLS] reader of words ({short[2]})",
    ]  # fmt: skip
    for r, axis in enumerate(panels):
        trained = {c.get_label(): c for c in axis.containers}
        fails, passes = trained["trained"], trained["trained, has the role"]
        score = 0.1 + 0.1 * r + 0.01 * np.arange(4)
        np.testing.assert_array_equal(fails.lines[0].get_xdata(), [1, 3])
        np.testing.assert_array_equal(passes.lines[0].get_xdata(), [0, 2])
        np.testing.assert_allclose(fails.lines[0].get_ydata(), score[[1, 3]])
        np.testing.assert_allclose(passes.lines[0].get_ydata(), score[[0, 2]])
        np.testing.assert_allclose(read_bars(passes), np.stack([score - 0.02, score + 0.03], axis=1)[[0, 2]])
        assert is_hollow(fails.lines[0])
        assert not is_hollow(passes.lines[0])
        lines = {line.get_label(): line for line in axis.lines}
        np.testing.assert_allclose(lines["untrained"].get_ydata(), score - 0.1)
        np.testing.assert_allclose(lines["highest untrained head"].get_ydata(), score[3] - 0.1)
    assert [t for t in read_ticks(panels[2], "x") if t] == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert set(read_legend(figure.legends[0])) == {
        "highest untrained head", "untrained", "trained", "trained, has the role",
    }  # fmt: skip
    assert "0: uniform or chance, 1: the most possible" in figure.get_supylabel()
    assert "95 %" in figure.get_suptitle()


def test_scores_below_the_edge_become_arrows():
    table = make_scores(roles=["sink"]).assign(
        score=[-3.0, 0.5, -0.9, 0.2], null=[-2.0, 0, 0, 0], passes=False
    )
    table[["low", "high"]] = np.nan
    axis = plots.plot_role_scores(table).axes[0]
    arrows = [line for line in axis.lines if line.get_marker() == "v" and len(line.get_xdata())]
    assert [line.get_xydata().tolist() for line in arrows] == [[[0, -1]]]
    points = next(c for c in axis.containers if c.get_label() == "trained")
    assert points.lines[0].get_xydata().tolist() == [[1, 0.5], [2, -0.9], [3, 0.2]]
    bars = read_bars(points)
    np.testing.assert_array_equal(bars[:, 0], bars[:, 1])  # no interval: no bar
    squares = next(line for line in axis.lines if line.get_label() == "untrained")
    assert squares.get_ydata().tolist() == [-1, 0, 0, 0]
    low, high = axis.get_ylim()
    assert low < -1
    assert high > 1


def test_scores_of_twelve_by_twelve_heads_name_layers():
    figure = plots.plot_role_scores(make_scores(12, 12, list(ROLES)))
    axis = figure.axes[-1]
    assert len(figure.axes) == len(ROLES)
    assert read_ticks(axis, "x") == [f"L{layer}" for layer in range(12)]
    np.testing.assert_allclose(
        axis.get_xticks(), 12 * np.arange(12) + 5.5
    )  # in the middle of its twelve heads
    apart = [line for line in axis.lines if list(line.get_xdata()) == [11.5, 11.5]]
    assert len(apart) == 1  # between L0 and L1


# ---------------------------------------------------------------------------------------------------- role map


def find_bands(axis) -> dict:
    """(layer, head) -> [(text, colour, alpha), ...], the top band first."""
    filled = [p for p in axis.patches if isinstance(p, Rectangle) and p.get_fill()]
    bands = {}
    for band, text in zip(filled, axis.texts, strict=True):
        x, y = text.get_position()
        assert band.get_x() <= x <= band.get_x() + band.get_width()
        assert band.get_y() <= y <= band.get_y() + band.get_height()
        look = (band.get_y(), text.get_text(), to_hex(band.get_facecolor()).upper(), band.get_alpha())
        bands.setdefault((round(y), round(x)), []).append(look)
    return {place: [look[1:] for look in sorted(looks)] for place, looks in bands.items()}


def test_role_map_puts_the_clearest_role_on_top():
    rows = [(0, 0, "sink", 0.3, True, True), (0, 0, "text local", 0.7, True, True), (0, 1, "sink", 0.9, False, True),
            (1, 1, "grounding", 0.2, True, False), (1, 0, "sink", 0.1, False, True)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["layer", "head", "role", "score", "passes", "reaches_answer"])
    table["name"] = "x"
    figure = plots.plot_role_map(table)
    render(figure)
    axis = figure.axes[0]
    assert axis.yaxis_inverted()
    looks = plots.ROLE_LOOKS
    assert find_bands(axis) == {
        (0, 0): [(*looks["text local"], 1), (*looks["sink"], 1)],
        (1, 1): [(f"({looks['grounding'][0]})", looks["grounding"][1], 0.35)],  # cannot reach the answer
    }
    frames = [p for p in axis.patches if isinstance(p, Rectangle) and not p.get_fill()]
    assert len(frames) == 4  # every head, also one without a role
    assert read_ticks(axis, "x") == ["H0", "H1"]
    assert read_ticks(axis, "y") == ["L0", "L1"]
    assert axis.get_xlabel() == "head"
    assert axis.get_ylabel().startswith("layer")
    labels = [f"{looks[role][0]}: {role}" for role in ("sink", "text local", "grounding")]
    assert read_legend(figure.legends[0]) == labels


def test_role_map_of_nobody():
    figure = plots.plot_role_map(make_scores(1, 1).assign(passes=False))
    render(figure)
    assert find_bands(figure.axes[0]) == {}


@pytest.mark.parametrize(("n_heads", "n_roles"), [(4, 6), (12, 4)])
def test_roles_fit_their_bands(n_heads, n_roles):
    scores = make_scores(3, n_heads, list(ROLES)[:n_roles]).assign(passes=True)
    figure = plots.plot_role_map(scores)
    render(figure)
    axis = figure.axes[0]
    assert len(axis.texts) == 3 * n_heads * n_roles
    cell = axis.get_window_extent().width / n_heads
    band = axis.get_window_extent().height / 3 / n_roles
    for text in axis.texts[: 2 * n_roles]:
        assert text.get_window_extent().width <= cell
        assert text.get_fontsize() * figure.dpi / 72 <= 1.1 * band


# --------------------------------------------------------------------------------------------------- stability


def make_agreement(roles) -> pd.DataFrame:
    rows = [(role, 0.9 - 0.1 * i, 0.5, 1.0, 3, 4, 0.75, 16) for i, role in enumerate(roles)]
    names = ["role", "correlation", "low", "high", "passes_a", "passes_b", "agreement", "n_heads"]
    return pd.DataFrame(rows, columns=names)


def test_stability_of_scores_and_verdicts():
    both = pd.DataFrame(
        {"role": ["sink", "sink", "grounding"], "score_a": [0.1, 0.2, -0.4], "score_b": [0.3, 0.5, 0.6]}
    )
    agreement = make_agreement(["sink", "grounding"])
    agreement.loc[1, ["correlation", "low", "high"]] = np.nan
    figure = plots.plot_stability(both, agreement)
    render(figure)
    left, right = figure.axes
    diagonal, sink, grounding = left.lines
    assert diagonal.get_xydata().tolist() == [[-0.4, -0.4], [1, 1]]
    assert sink.get_xydata().tolist() == [[0.1, 0.3], [0.2, 0.5]]
    assert grounding.get_xydata().tolist() == [[-0.4, 0.6]]
    assert sink.get_marker() != grounding.get_marker()
    assert sink.get_color() == plots.ROLE_LOOKS["sink"][1]
    assert read_legend(left.get_legend()) == ["sink", "box"]
    container = right.containers[0]
    np.testing.assert_array_equal(container.lines[0].get_xydata()[0], [0.9, 0])
    np.testing.assert_allclose(read_bars(container, axis=0), [[0.5, 1]])
    assert read_ticks(right, "y") == ["sink (sink)", "grounding (box)"]
    assert right.yaxis_inverted()  # the first role on top
    texts = read_texts(right)
    assert texts.count("75 % (3 and 4 of 16)") == 2
    assert texts.count("heads do not differ") == 1  # no correlation can be told
    assert "correlation" in right.get_xlabel()
    assert "first half" in left.get_xlabel()
    assert "other half" in left.get_ylabel()


def test_stability_withholds_verdicts_where_a_half_has_too_few_questions():
    both = pd.DataFrame({"role": ["sink"], "score_a": [0.1], "score_b": [0.3]})
    figure = plots.plot_stability(
        both, make_agreement(["sink"]).assign(agreement=np.nan, low=np.nan, high=np.nan)
    )
    render(figure)
    texts = read_texts(figure.axes[1])
    assert "not enough questions" in texts
    assert not any("nan" in text for text in texts)


def test_stability_of_every_role():
    both = pd.DataFrame({"role": list(ROLES), "score_a": 0.5, "score_b": 0.5})
    figure = plots.plot_stability(both, make_agreement(ROLES))
    render(figure)
    looks = {(line.get_marker(), line.get_color()) for line in figure.axes[0].lines[1:]}
    assert len(looks) == len(ROLES)


# ---------------------------------------------------------------------------------------------------- ablation


def make_effects(
    n_layers=2, n_heads=2, families=("all", "what", "why"), modes=("zero", "mean")
) -> pd.DataFrame:
    """Points that tell their place: fives by head, ones by family, tens by mode; `why` has too few questions."""
    rows = [
        {"mode": mode, "layer": layer, "head": head, "name": f"L{layer}H{head}", "family": family, "drop": drop,
         "low": drop - 2, "high": drop + 3, "n": 7 if family == "why" else 40, "told": family != "why",
         "significant": family == "what" and head == 1}
        for m, mode in enumerate(modes) for f, family in enumerate(families) for layer, head in np.ndindex(n_layers, n_heads)
        for drop in [5.0 * (layer * n_heads + head) + f - 10 * m]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_ablation_by_head_and_family():
    figure = plots.plot_ablation(make_effects())
    render(figure)
    zero, mean, bar = figure.axes
    expected = np.array([[0, 1, np.nan], [5, 6, np.nan], [10, 11, np.nan], [15, 16, np.nan]])
    np.testing.assert_allclose(zero.images[0].get_array().filled(np.nan), expected)
    np.testing.assert_allclose(mean.images[0].get_array().filled(np.nan), expected - 10)
    assert (
        zero.images[0].get_clim() == mean.images[0].get_clim() == (-16, 16)
    )  # 0 is the middle of the colours
    assert zero.images[0].get_cmap()(0.5)[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.02)
    assert to_hex(zero.images[0].get_cmap().get_bad()) == "#eeeeee"  # too few questions: grey
    assert read_ticks(zero, "y") == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert zero.yaxis_inverted()
    assert read_ticks(zero, "x") == ["all\nn=40", "what\nn=40", "why\nn=7"]
    written = {text.get_position()[::-1]: text.get_text() for text in mean.texts}  # (head, family)
    assert written == {
        (0, 0): "−10", (1, 0): "−5", (2, 0): "0", (3, 0): "5", (0, 1): "−9", (1, 1): "−4", (2, 1): "1", (3, 1): "6",
    }  # fmt: skip
    bold = {text.get_position() for text in zero.texts if text.get_fontweight() == "bold"}
    assert bold == {(1, 1), (1, 3)}  # significant: framed and bold
    frames = {(round(p.get_x() + 0.47), round(p.get_y() + 0.46)) for p in zero.patches}
    assert frames == bold
    assert read_title(zero).endswith("zero")
    assert read_title(mean).endswith("its mean")
    assert "points" in bar.get_ylabel()
    assert figure.get_suptitle() == "Accuracy lost without each head"


def test_small_losses_have_no_sign():
    table = make_effects(1, 3, ["all"], ["zero"]).assign(drop=[-0.4, 0.4, -0.6])
    assert read_texts(plots.plot_ablation(table).axes[0]) == ["0", "0", "−1"]


def test_ablation_of_twelve_by_twelve_heads_shows_the_largest_effects():
    table = make_effects(12, 12, ["all"], ["zero"]).assign(drop=0.1)
    large = [("L11H0", -30.0), ("L0H3", 20.0), ("L5H11", 10.0)]
    for name, drop in large:
        table.loc[table["name"] == name, "drop"] = drop
    figure = plots.plot_ablation(table, most=3)
    axis = figure.axes[0]
    assert read_ticks(axis, "y") == ["L0H3", "L5H11", "L11H0"]  # in the order of the model
    np.testing.assert_allclose(axis.images[0].get_array()[:, 0], [20, 10, -30])
    assert "3 of 144" in figure.get_suptitle()
    assert len(read_ticks(plots.plot_ablation(table).axes[0], "y")) == 24


def test_ablation_with_one_question():
    table = make_effects(1, 1, ["all", "what"]).assign(
        n=1, told=False, significant=False, low=np.nan, high=np.nan
    )
    figure = plots.plot_ablation(table)
    render(figure)
    assert not figure.axes[0].texts
    assert figure.axes[0].images[0].get_array().mask.all()
    assert read_ticks(figure.axes[0], "x") == ["all\nn=1", "what\nn=1"]


def test_families_that_are_not_told_do_not_set_the_scale():
    table = make_effects(1, 1)
    table.loc[table["family"] == "why", "drop"] = 80.0
    assert plots.plot_ablation(table).axes[0].images[0].get_clim() == (-10, 10)


def test_largest_effects_keep_their_order_and_intervals():
    rows = [("zero", "L1H0", "what", 60.0, 50.0, 70.0, 40), ("zero", "L0H1", "why", 30.0, np.nan, np.nan, 7),
            ("mean", "L1H0", "what", 20.0, 15.0, 26.0, 40)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["mode", "name", "family", "drop", "low", "high", "n"])
    figure = plots.plot_largest_effects(table)
    render(figure)
    axis = figure.axes[0]
    assert read_ticks(axis, "x") == ["L1H0\nwhat\nn=40", "L0H1\nwhy\nn=7"]
    zero, mean = axis.containers
    np.testing.assert_allclose(zero.lines[0].get_ydata(), [60, 30])
    np.testing.assert_allclose(mean.lines[0].get_ydata(), [20, np.nan])
    np.testing.assert_allclose(read_bars(zero), [[50, 70], [30, 30]])
    np.testing.assert_allclose(read_bars(mean), [[15, 26]])
    assert (np.array(zero.lines[0].get_xdata()) < np.array(mean.lines[0].get_xdata())).all()
    assert zero.lines[0].get_marker() != mean.lines[0].get_marker()
    assert read_legend(axis.get_legend()) == ["replaced by zero", "replaced by its mean"]
    assert any(list(line.get_ydata()) == [0, 0] and line.get_linestyle() == "--" for line in axis.lines)
    assert "points" in axis.get_ylabel()
    assert "2 largest" in read_title(axis)


def test_largest_effects_of_one_way():
    table = make_effects(1, 1, ["all"], ["mean"])
    figure = plots.plot_largest_effects(table)
    render(figure)
    assert read_legend(figure.axes[0].get_legend()) == ["replaced by its mean"]


# -------------------------------------------------------------------------------------------------- importance


def make_importance(n_layers: int, n_heads: int) -> pd.DataFrame:
    table = make_effects(n_layers, n_heads, ["all"], ["zero"])
    return table.assign(words=0.01 * np.arange(len(table)), cls=0.5 - 0.02 * np.arange(len(table)))


def test_importance_against_attention():
    labels = {"words": "words → image: share − uniform", "cls": "[CLS] → image: share − uniform"}
    figure = plots.plot_importance(make_importance(2, 2), labels, named=1)
    render(figure)
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel()) == tuple(labels.values())
    assert "points" in left.get_ylabel()
    for axis, x in ((left, [[0, 0.01], [0.02, 0.03]]), (right, [[0.5, 0.48], [0.46, 0.44]])):
        first, second = axis.containers  # a layer each
        for container, across, drop in ((first, x[0], np.array([0, 5])), (second, x[1], np.array([10, 15]))):
            np.testing.assert_allclose(container.lines[0].get_xydata()[:, 0], across)
            np.testing.assert_allclose(container.lines[0].get_xydata()[:, 1], drop)
            np.testing.assert_allclose(read_bars(container), np.stack([drop - 2, drop + 3], axis=1))
        assert first.lines[0].get_marker() != second.lines[0].get_marker()
        assert [(note.get_text(), *note.xy) for note in axis.texts] == [("L1H1", x[1][1], 15)]  # matters most
    assert read_legend(figure.legends[0]) == ["L0", "L1"]


@pytest.mark.parametrize(("n_layers", "n_heads", "named"), [(12, 12, 5), (1, 1, 1)])
def test_importance_of_other_sizes_without_intervals(n_layers, n_heads, named):
    table = make_importance(n_layers, n_heads).assign(low=np.nan, high=np.nan)
    figure = plots.plot_importance(table, {"words": "x"})
    render(figure)
    assert len(figure.axes[0].containers) == n_layers
    assert len(figure.axes[0].texts) == named
    bars = read_bars(figure.axes[0].containers[0])
    np.testing.assert_array_equal(bars[:, 0], bars[:, 1])
