"""Figures about roles: comparisons of verdicts, and role cards."""

import itertools

import numpy as np
import pandas as pd
import pytest
from reading import read_bars, read_legend, read_ticks, read_title, render

from helpers.figures import roles as plots

pytestmark = pytest.mark.usefixtures("tidy_figures")


def make_comparisons() -> pd.DataFrame:
    """Two roles in three comparisons, numbers that tell their place; the last has no verdicts."""
    rows = [
        (name, role, 0.1 * c + 0.5 * r, 0.25 + 0.25 * r if c < 2 else np.nan)
        for c, name in enumerate(("halves", "seed", "before"))
        for r, role in enumerate(("sink", "grounding"))
    ]
    table = pd.DataFrame(rows, columns=["comparison", "role", "correlation", "agreement"])
    return table.assign(low=table["correlation"] - 0.1, high=table["correlation"] + 0.2)


def test_comparisons_of_scores_and_verdicts():
    figure = plots.plot_comparisons(make_comparisons())
    render(figure)
    left, right = figure.axes
    assert read_ticks(left, "y") == ["sink", "grounding"]
    assert left.yaxis_inverted()
    assert read_legend(figure.legends[0]) == ["halves", "seed", "before"]
    for number, container in enumerate(left.containers):
        points = container.lines[0].get_xydata()
        np.testing.assert_allclose(points[:, 0], [0.1 * number, 0.1 * number + 0.5])
        np.testing.assert_allclose(read_bars(container, 0), points[:, :1] + [[-0.1, 0.2]])
    assert len({container.lines[0].get_marker() for container in left.containers}) == 3
    np.testing.assert_allclose(right.lines[1].get_xdata(), [25, 50])
    assert np.isnan(right.lines[2].get_xdata()).all()


def make_card(role: str, **more) -> dict:
    drops = pd.DataFrame(
        {"family": ["all", "why"], "drop": [3.0, -1.0], "significant": [True, False]}
    )
    return {"role": role, "name": "L1H2", "passes": role != "sink", "score": -0.25, "low": -0.5, "high": 0.5,
            "highest_null": 0.75, "question": "What costs $2 or $3?", "drops": drops, **more}  # fmt: skip


def test_cards_show_tokens_or_pictures_and_costs():
    rng = np.random.default_rng(0)
    picture = {
        "picture": rng.integers(0, 255, (64, 96, 3), dtype=np.uint8),
        "weights": rng.random((2, 3)),
        "boxes": [[10, 10, 20, 20]],
    }
    words = {
        "tokens": ["[CLS]", "what", "$2", "patches"],
        "weights": np.array([0.1, 0.2, 0.3, 0.4]),
    }
    figure = plots.plot_role_cards(
        [
            make_card("grounding", **picture),
            make_card("sink", **words),
            make_card("text local", **words),
        ]
    )
    render(figure)
    parts = figure.subfigs
    titles = [part.get_suptitle().split("\n") for part in parts[:3]]
    assert [title[0] for title in titles] == [
        "grounding: L1H2",
        "sink: L1H2 (no role)",
        "text local: L1H2",
    ]
    assert titles[0][1] == "score −0.25 [−0.50, 0.50], untrained at most 0.75"
    assert not parts[3].axes  # an odd number of cards leaves a place free
    shown, cost = parts[0].axes
    np.testing.assert_allclose(shown.images[-1].get_array(), picture["weights"])
    assert read_title(shown) == r"What costs \$2 or \$3?"
    assert read_ticks(cost, "y") == ["all", "why"]
    assert [bar.get_width() for bar in cost.patches] == [3, -1]
    assert cost.patches[0].get_facecolor() != cost.patches[1].get_facecolor()
    tokens = parts[1].axes[0]
    assert [bar.get_width() for bar in tokens.patches] == [0.1, 0.2, 0.3, 0.4]
    assert tokens.yaxis_inverted()
    assert cost.yaxis_inverted()


def test_names_of_many_tokens_stay_apart_and_few_bars_stay_slim():
    many, drops = (
        list("abcdefghijklmnopqrstuvwxyz"),
        pd.DataFrame({"family": ["all"], "drop": 3.0, "significant": True}),
    )
    card = make_card("sink", tokens=many, weights=np.full(26, 1 / 26)) | {"drops": drops}
    figure = plots.plot_role_cards([card])
    render(figure)
    shown, cost = figure.subfigs[0].axes
    boxes = [label.get_window_extent() for label in shown.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(boxes))
    assert cost.patches[0].get_window_extent().height < shown.get_window_extent().height / 3
