"""helpers/explore.py: turning the widgets draws the attention they name."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from reading import read_title

from helpers.attention import QuestionMaps
from helpers.explore import MEAN, AttentionExplorer, make_card, select_map

LAYERS, HEADS = 3, 2
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
    tokens = ["[CLS]", *words, "[SEP]", "[IMG]", *(f"{r},{c}" for r in range(rows) for c in range(columns))]
    return QuestionMaps(attention, tokens, grid, groups)


@pytest.fixture(scope="module")
def maps():
    return [make_maps(3, (4, 5), 0), make_maps(6, (5, 4), 1)]


@pytest.fixture
def explorer(maps):
    pictures = [Image.new("RGB", (240, 192), "white"), Image.new("RGB", (192, 240), "white")]
    boxes = [[[10, 20, 30, 40]], []]
    parts = zip(maps, pictures, ("What?", "Where is it?"), boxes, strict=True)
    return AttentionExplorer([make_card(*part) for part in parts])


def read_attention(maps, layer, head, token):
    """The same map by another way: one patch at a time."""
    rows, columns = maps.grid
    start = maps.groups["patches"].start
    heads = range(HEADS) if head == MEAN else [head]
    return [
        [
            np.mean([maps.attention[layer, h, token, start + r * columns + c].item() for h in heads])
            for c in range(columns)
        ]
        for r in range(rows)
    ]


def test_it_starts_with_the_first_question_layer_0_mean_of_heads_and_cls(explorer, maps):
    np.testing.assert_allclose(explorer.drawn, read_attention(maps[0], 0, MEAN, 0), rtol=1e-5)
    assert [label for label, _ in explorer.token.options] == [
        "0: [CLS]",
        "1: the",
        "2: the",
        "3: the",
        "4: [SEP]",
    ]


@pytest.mark.parametrize(("layer", "head", "token"), [(0, 1, 2), (2, 0, 4), (1, MEAN, 3), (2, MEAN, 0)])
def test_widgets_draw_what_they_name(explorer, maps, layer, head, token):
    explorer.layer.value, explorer.head.value, explorer.token.value = layer, head, token
    np.testing.assert_allclose(explorer.drawn, read_attention(maps[0], layer, head, token), rtol=1e-5)
    assert read_title(explorer.axis).startswith(
        f"L{layer}, mean of heads" if head == MEAN else f"L{layer}H{head}"
    )


def test_another_question_has_its_own_words_grid_and_boxes(explorer, maps):
    explorer.layer.value, explorer.token.value = 1, 4
    assert len(explorer.axis.patches) == 1  # the box
    explorer.question.value = 1
    assert len(explorer.token.options) == 8
    assert explorer.token.value == 0
    assert not explorer.axis.patches
    np.testing.assert_allclose(explorer.drawn, read_attention(maps[1], 1, MEAN, 0), rtol=1e-5)
    explorer.token.value = 7
    np.testing.assert_allclose(explorer.drawn, read_attention(maps[1], 1, MEAN, 7), rtol=1e-5)
    explorer.question.value = 0  # whose question has no eighth token
    np.testing.assert_allclose(explorer.drawn, read_attention(maps[0], 1, MEAN, 0), rtol=1e-5)


def test_each_turn_gives_another_picture_in_the_same_figure(explorer):
    figure, before = explorer.figure, explorer.image.value
    explorer.layer.value = 2
    assert explorer.figure is figure  # so that a slider follows the hand
    assert len(explorer.axis.images) == 2  # picture and heatmap, not one more heatmap a turn
    assert explorer.image.value != before
    assert Image.open(io.BytesIO(explorer.image.value)).format == "PNG"
    explorer.layer.value = 0
    assert explorer.image.value == before


def test_axis_names_direction_and_unit(explorer):
    label = explorer.figure.axes[1].get_ylabel()
    assert "%" in label
    assert "text query → image key" in label


def test_the_colour_scale_follows_the_map(explorer):
    for layer in range(LAYERS):
        explorer.layer.value = layer
        assert explorer.artist.get_clim() == (0, pytest.approx(100 * explorer.drawn.max()))


def test_the_title_states_the_mass_on_the_patches(explorer, maps):
    explorer.head.value, explorer.token.value = 1, 2
    mass = maps[0].attention[0, 1, 2, maps[0].groups["patches"]].sum().item()
    assert f"{100 * mass:.0f} % to the patches" in read_title(explorer.axis)


def test_a_card_keeps_only_text_queries_and_patch_keys(maps):
    card = make_card(maps[0], Image.new("RGB", (240, 192)), "What?")
    assert card["weights"].shape == (LAYERS, HEADS, 5, 4, 5)
    assert card["tokens"] == ["[CLS]", "the", "the", "the", "[SEP]"]
    card["weights"][:] = 0  # its own memory: the whole matrices can go
    assert maps[0].attention.min() > 0
    assert select_map(card, 0, MEAN, 0).shape == (4, 5)


def test_attention_of_nothing_is_drawn_and_no_questions_are_an_error(maps):
    card = make_card(maps[0], Image.new("RGB", (240, 192)), "What?")
    card["weights"] = np.zeros_like(card["weights"])
    assert not AttentionExplorer([card]).drawn.any()
    with pytest.raises(ValueError, match="at least one question"):
        AttentionExplorer([])
