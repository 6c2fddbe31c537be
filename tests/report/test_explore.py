"""helpers/report/explore.py: turning the widgets draws the attention they name."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from reading import read_title

from helpers.attention.measures import QuestionMaps
from helpers.report.explore import (
    MEAN,
    METHODS,
    AttentionExplorer,
    make_card,
    patch_share,
    select_map,
)

LAYERS, HEADS = 3, 2
COMBINED = ("rollout", "relevance")
pytestmark = pytest.mark.usefixtures("tidy_figures")


def make_maps(n_words: int, grid: tuple[int, int], seed: int) -> QuestionMaps:
    """Random attention of a question of `n_words` words about a picture of `grid` patches."""
    rows, columns = grid
    ends = np.cumsum([0, 1, n_words, 1, 1, rows * columns]).tolist()
    names = ("cls", "words", "sep", "img_cls", "patches")
    groups = {name: slice(*ends[i : i + 2]) for i, name in enumerate(names)}
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(LAYERS, HEADS, ends[-1], ends[-1], generator=generator).softmax(-1)
    words = ["the"] * n_words  # a word that occurs twice must not make two options one
    tokens = [
        "[CLS]",
        *words,
        "[SEP]",
        "[IMG]",
        *(f"{r},{c}" for r in range(rows) for c in range(columns)),
    ]
    return QuestionMaps(attention, tokens, grid, groups)


@dataclass
class StandIn:
    """What the explorer asks of an Explanation: each method's weights are random and its own."""

    maps: QuestionMaps
    answer: str

    def weights(self, method: str) -> torch.Tensor:
        if method == "attention":
            return self.maps.attention
        n_tokens = len(self.maps.tokens)
        generator = torch.Generator().manual_seed(list(METHODS).index(method))
        axes = (LAYERS,) if method in COMBINED else (LAYERS, HEADS)
        weights = torch.rand(*axes, n_tokens, n_tokens, generator=generator)
        return weights + torch.eye(n_tokens) if method == "relevance" else weights


@pytest.fixture(scope="module")
def explanations():
    return [StandIn(make_maps(3, (4, 5), 0), "a cup"), StandIn(make_maps(6, (5, 4), 1), "no")]


@pytest.fixture
def explorer(explanations):
    pictures = [Image.new("RGB", (240, 192), "white"), Image.new("RGB", (192, 240), "white")]
    boxes = [[[10, 20, 30, 40]], []]
    parts = zip(explanations, pictures, ("What?", "Where is it?"), boxes, strict=True)
    return AttentionExplorer([make_card(*part) for part in parts])


def read_patches(explanation, method, layer, head, token):
    """The same map by another way: one patch at a time."""
    rows, columns = explanation.maps.grid
    start = explanation.maps.groups["patches"].start
    weights = explanation.weights(method)
    heads = range(HEADS) if head == MEAN else [head]
    places = [(layer, token)] if method in COMBINED else [(layer, each, token) for each in heads]
    return [
        [
            np.mean([weights[(*place, start + r * columns + c)].item() for place in places])
            for c in range(columns)
        ]
        for r in range(rows)
    ]


def test_it_starts_with_the_first_question_layer_0_mean_of_heads_and_cls(explorer, explanations):
    np.testing.assert_allclose(
        explorer.drawn, read_patches(explanations[0], "attention", 0, MEAN, 0), rtol=1e-5
    )
    assert [label for label, _ in explorer.token.options] == [
        "0: [CLS]",
        "1: the",
        "2: the",
        "3: the",
        "4: [SEP]",
    ]


@pytest.mark.parametrize(
    ("layer", "head", "token"), [(0, 1, 2), (2, 0, 4), (1, MEAN, 3), (2, MEAN, 0)]
)
def test_widgets_draw_what_they_name(explorer, explanations, layer, head, token):
    explorer.layer.value, explorer.head.value, explorer.token.value = layer, head, token
    np.testing.assert_allclose(
        explorer.drawn, read_patches(explanations[0], "attention", layer, head, token), rtol=1e-5
    )
    assert read_title(explorer.axis).startswith(
        f"L{layer}, mean of heads" if head == MEAN else f"L{layer}H{head}"
    )


def test_another_question_has_its_own_words_grid_and_boxes(explorer, explanations):
    explorer.layer.value, explorer.token.value = 1, 4
    assert len(explorer.axis.patches) == 1  # the box
    explorer.question.value = 1
    assert len(explorer.token.options) == 8
    assert explorer.token.value == 0
    assert not explorer.axis.patches
    np.testing.assert_allclose(
        explorer.drawn, read_patches(explanations[1], "attention", 1, MEAN, 0), rtol=1e-5
    )
    explorer.token.value = 7
    np.testing.assert_allclose(
        explorer.drawn, read_patches(explanations[1], "attention", 1, MEAN, 7), rtol=1e-5
    )
    explorer.question.value = 0  # whose question has no eighth token
    np.testing.assert_allclose(
        explorer.drawn, read_patches(explanations[0], "attention", 1, MEAN, 0), rtol=1e-5
    )


def test_each_turn_gives_another_picture_in_the_same_figure(explorer):
    figure, before = explorer.figure, explorer.image.value
    explorer.layer.value = 2
    assert explorer.figure is figure  # so that a slider follows the hand
    assert len(explorer.axis.images) == 2  # picture and heatmap, not one more heatmap a turn
    assert explorer.image.value != before
    assert Image.open(io.BytesIO(explorer.image.value)).format == "PNG"
    explorer.layer.value = 0
    assert explorer.image.value == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("layer", "head", "token"), [(0, 1, 2), (2, MEAN, 3)])
def test_each_method_draws_its_own_numbers(explorer, explanations, method, layer, head, token):
    explorer.method.value = method
    explorer.layer.value, explorer.head.value, explorer.token.value = layer, head, token
    np.testing.assert_allclose(
        explorer.drawn, read_patches(explanations[0], method, layer, head, token), rtol=1e-5
    )
    assert f", {method}\n" in read_title(explorer.axis)
    assert explorer.axis.get_xlabel() == "the model answers 'a cup'"


@pytest.mark.parametrize("method", METHODS)
def test_a_combined_method_has_no_head_to_choose(explorer, method):
    explorer.head.value, explorer.layer.value = 1, 2
    explorer.method.value = method
    assert explorer.head.disabled == (method in COMBINED)
    assert read_title(explorer.axis).startswith("up to L2" if method in COMBINED else "L2H1")
    explorer.method.value = "attention"
    assert not explorer.head.disabled
    assert read_title(explorer.axis).startswith("L2H1")  # the head that was chosen before


def test_the_method_stays_when_the_question_changes(explorer, explanations):
    explorer.method.value, explorer.layer.value = "relevance", 1
    explorer.question.value = 1
    assert (explorer.method.value, explorer.layer.value, explorer.head.disabled) == (
        "relevance",
        1,
        True,
    )
    np.testing.assert_allclose(
        explorer.drawn, read_patches(explanations[1], "relevance", 1, MEAN, 0), rtol=1e-5
    )
    assert explorer.axis.get_xlabel() == "the model answers 'no'"


@pytest.mark.parametrize(
    ("method", "unit"),
    [
        ("attention", "% of the query's attention"),
        ("value-weighted", "norm"),
        ("gradient-weighted", "relevance"),
        ("rollout", "% of the flow"),
        ("relevance", "relevance"),
    ],
)
def test_axis_names_direction_and_unit(explorer, method, unit):
    explorer.method.value = method
    label = explorer.figure.axes[1].get_ylabel()
    assert unit in label
    assert "text query → image key" in label


@pytest.mark.parametrize("method", METHODS)
def test_the_colour_scale_follows_the_map(explorer, method):
    explorer.method.value = method
    scale = 100 if method in ("attention", "rollout") else 1
    for layer in range(LAYERS):
        explorer.layer.value = layer
        assert explorer.artist.get_clim() == (0, pytest.approx(scale * explorer.drawn.max()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head", [1, MEAN])
def test_the_title_states_the_part_that_goes_to_the_patches(explorer, explanations, method, head):
    """Of all that the word gives to any token; relevance starts from 1 on the token itself, which it does not give."""
    explorer.method.value, explorer.head.value, explorer.token.value = method, head, 2
    groups, weights = explanations[0].maps.groups, explanations[0].weights(method)
    row = (
        weights[0, 2]
        if method in COMBINED
        else weights[0, :, 2].mean(0)
        if head == MEAN
        else weights[0, head, 2]
    )
    row = row.tolist()
    whole = sum(row) - (method == "relevance")
    share = sum(row[groups["patches"]]) / whole
    noun = {"attention": "attention", "value-weighted": "norm", "rollout": "flow"}.get(
        method, "relevance"
    )
    assert f"gives {100 * share:.0f} % of its {noun} to the patches" in read_title(explorer.axis)


def test_a_word_that_gives_nothing_is_said_to(explanations):
    """In the last layer the answer's gradient is 0 for every query but [CLS]."""
    card = make_card(
        explanations[0], Image.new("RGB", (240, 192)), "What?", methods=["gradient-weighted"]
    )
    card["maps"]["gradient-weighted"][2, :, 1] = 0
    card["totals"]["gradient-weighted"][2, :, 1] = 0
    explorer = AttentionExplorer([card])
    explorer.layer.value, explorer.token.value = 2, 1
    assert not explorer.drawn.any()
    assert "'the' has no relevance here" in read_title(explorer.axis)
    assert np.isnan(patch_share(card, "gradient-weighted", 2, MEAN, 1))


def test_a_card_keeps_only_text_queries_and_patch_keys(explanations):
    card = make_card(explanations[0], Image.new("RGB", (240, 192)), "What?")
    assert list(card["maps"]) == list(METHODS)
    for method, weights in card["maps"].items():
        assert weights.dtype == np.float32
        heads = () if method in COMBINED else (HEADS,)
        assert weights.shape == (LAYERS, *heads, 5, 4, 5)
        assert card["totals"][method].shape == (LAYERS, *heads, 5)
    assert (card["answer"], card["grid"]) == ("a cup", (4, 5))
    assert card["tokens"] == ["[CLS]", "the", "the", "the", "[SEP]"]
    card["maps"]["attention"][:] = 0  # its own memory: the whole matrices can go
    assert explanations[0].maps.attention.min() > 0
    assert select_map(card, "attention", 0, MEAN, 0).shape == (4, 5)


def test_only_the_methods_asked_for_are_kept(explanations):
    card = make_card(explanations[0], Image.new("RGB", (240, 192)), "What?", methods=["rollout"])
    assert list(card["maps"]) == list(card["totals"]) == ["rollout"]
    explorer = AttentionExplorer([card])
    assert explorer.method.options == ("rollout",)
    assert explorer.head.disabled
    np.testing.assert_allclose(
        explorer.drawn, read_patches(explanations[0], "rollout", 0, MEAN, 0), rtol=1e-5
    )


def test_attention_of_nothing_is_drawn(explanations):
    card = make_card(explanations[0], Image.new("RGB", (240, 192)), "What?")
    card["maps"]["attention"] = np.zeros_like(card["maps"]["attention"])
    assert not AttentionExplorer([card]).drawn.any()


def test_cards_that_cannot_be_shown_together_are_an_error(explanations):
    with pytest.raises(ValueError, match="at least one question"):
        AttentionExplorer([])
    picture = Image.new("RGB", (240, 192))
    cards = [
        make_card(explanations[0], picture, "What?", methods=some)
        for some in (["attention"], ["rollout"])
    ]
    with pytest.raises(ValueError, match="question 2 has other methods"):
        AttentionExplorer(cards)
    with pytest.raises(ValueError, match="hold no maps"):
        AttentionExplorer([make_card(explanations[0], picture, "What?", methods=[])])
