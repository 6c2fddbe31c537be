"""helpers/report/explore.py: questions and words are shown as they are written, whatever they are."""

import io

import ipywidgets as widgets
import numpy as np
import pytest
from PIL import Image
from reading import read_title
from traitlets import TraitError

from helpers.report.explore import MEAN, AttentionExplorer

pytestmark = pytest.mark.usefixtures("tidy_figures")
ODD = [
    "<b>bold</b><script>alert(1)</script>?",
    "is it $5 or $6?",
    r"what is $\foo$?",
    "",
    "100 %s {0} \n ünï",
]


def make_card(
    question="What?",
    tokens=("[CLS]", "what", "[SEP]"),
    shape=(2, 2),
    picture=None,
    seed=0,
    answer="no",
) -> dict:
    """A card by hand: random shares for (layer, head, query token, 3, 4)."""
    weights = np.random.default_rng(seed).random((*shape, len(tokens), 3, 4)) / 20
    return {
        "picture": Image.new("RGB", (40, 30), "white") if picture is None else picture,
        "question": question,
        "boxes": [],
        "answer": answer,
        "tokens": list(tokens),
        "grid": (3, 4),
        "maps": {"attention": weights},
        "totals": {"attention": np.ones(weights.shape[:3])},
    }


def list_widgets(widget) -> list:
    """A widget and all that it holds."""
    return [
        widget,
        *(each for child in getattr(widget, "children", ()) for each in list_widgets(child)),
    ]


def test_no_widget_reads_html():
    """Drop-down lists show options as text; HTML widgets and HTML descriptions would run what a question holds."""
    explorer = AttentionExplorer([make_card(ODD[0], ["[CLS]", "<img src=x>", "[SEP]"])])
    held = list_widgets(explorer.box)
    assert (
        len(held) == 10
    )  # a box of three rows: question; method, word; layer, head; and the image
    for widget in held:
        assert not isinstance(widget, (widgets.HTML, widgets.HTMLMath))
        assert not getattr(widget, "description_allow_html", False)
        assert "<" not in getattr(widget, "description", "")
    assert explorer.question.options == ((f"1: {ODD[0]}", 0),)
    assert ("1: <img src=x>", 1) in explorer.token.options


@pytest.mark.parametrize("odd", ODD)
def test_odd_questions_and_words_are_drawn(odd):
    card = make_card(odd, ["[CLS]", odd, "[SEP]"], answer=odd)
    explorer = AttentionExplorer([card])
    explorer.token.value = 1
    np.testing.assert_allclose(explorer.drawn, card["maps"]["attention"][0, :, 1].mean(0))
    assert repr(odd) in read_title(explorer.axis)
    assert repr(odd) in explorer.axis.get_xlabel()
    assert Image.open(io.BytesIO(explorer.image.value)).format == "PNG"


def test_the_same_question_twice_is_two_options():
    cards = [make_card(seed=0), make_card(seed=1)]
    explorer = AttentionExplorer(cards)
    explorer.layer.value, explorer.head.value, explorer.token.value = 1, 1, 2
    explorer.question.value = 1
    token = explorer.token.value
    np.testing.assert_allclose(explorer.drawn, cards[1]["maps"]["attention"][1, 1, token])
    assert f"{100 * cards[1]['maps']['attention'][1, 1, token].sum():.0f} %" in read_title(
        explorer.axis
    )
    assert repr(cards[1]["tokens"][token]) in read_title(explorer.axis)


def test_a_model_of_one_layer_and_one_head():
    explorer = AttentionExplorer([make_card(shape=(1, 1))])
    assert (explorer.layer.min, explorer.layer.max) == (0, 0)
    assert [value for _, value in explorer.head.options] == [MEAN, 0]
    mean = explorer.drawn.copy()
    explorer.head.value = 0
    np.testing.assert_array_equal(explorer.drawn, mean)


def test_layers_and_heads_out_of_range_cannot_be_chosen():
    explorer = AttentionExplorer([make_card(shape=(12, 12))])
    explorer.layer.value = 99
    assert explorer.layer.value == 11
    assert [label for label, _ in explorer.head.options] == [
        "mean of heads",
        *(f"H{head}" for head in range(12)),
    ]
    for widget in (explorer.method, explorer.head, explorer.token, explorer.question):
        with pytest.raises(TraitError):
            widget.value = 99


def test_a_grey_picture():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    explorer = AttentionExplorer([make_card(picture=Image.fromarray(grey))])
    np.testing.assert_array_equal(explorer.axis.images[0].get_array(), grey)
    assert explorer.artist.get_extent() == [0, 8, 6, 0]
