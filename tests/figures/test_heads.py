"""Figures of notebook 05: scores and roles of heads."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from reading import is_hollow, read_bars, read_legend, read_ticks, read_title, render

from helpers.figures import heads as plots
from helpers.heads.roles import ROLES

pytestmark = pytest.mark.usefixtures("tidy_figures")


def make_scores(
    n_layers=2, n_heads=2, roles=("sink", "text local", "[CLS] reader of words")
) -> pd.DataFrame:
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
        np.testing.assert_allclose(
            read_bars(passes), np.stack([score - 0.02, score + 0.03], axis=1)[[0, 2]]
        )
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
        look = (
            band.get_y(),
            text.get_text(),
            to_hex(band.get_facecolor()).upper(),
            band.get_alpha(),
        )
        bands.setdefault((round(y), round(x)), []).append(look)
    return {place: [look[1:] for look in sorted(looks)] for place, looks in bands.items()}


def test_role_map_puts_the_clearest_role_on_top():
    rows = [(0, 0, "sink", 0.3, True, True), (0, 0, "text local", 0.7, True, True), (0, 1, "sink", 0.9, False, True),
            (1, 1, "grounding", 0.2, True, False), (1, 0, "sink", 0.1, False, True)]  # fmt: skip
    table = pd.DataFrame(
        rows, columns=["layer", "head", "role", "score", "passes", "reaches_answer"]
    )
    table["name"] = "x"
    figure = plots.plot_role_map(table)
    render(figure)
    axis = figure.axes[0]
    assert axis.yaxis_inverted()
    looks = plots.ROLE_LOOKS
    assert find_bands(axis) == {
        (0, 0): [(*looks["text local"], 1), (*looks["sink"], 1)],
        (1, 1): [
            (f"({looks['grounding'][0]})", looks["grounding"][1], 0.35)
        ],  # cannot reach the answer
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
