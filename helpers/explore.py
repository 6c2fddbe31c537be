"""An explorer of attention over the picture, with widgets: question, layer, head and query word.

    explorer = AttentionExplorer(cards)
    explorer.box             # the widget, shown by a notebook
    explorer.layer.value = 2  # what a hand on the slider does: the picture is drawn anew
    explorer.drawn            # (rows, columns): what is drawn, shares of the query's attention

Only text queries and patch keys are kept, so that a dozen questions fit in memory.
"""

import io
from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from helpers.plots import figure_style, show_heatmap

MEAN = -1  # the head's value for "mean of heads"


def make_card(maps, picture, question: str, boxes=()) -> dict:
    """What the explorer needs of one question, a small part of its QuestionMaps: text queries, patch keys.

    Returns picture, question, boxes, tokens, and weights (layer, head, query token, patch row, patch column).
    """
    text = slice(0, maps.groups["sep"].stop)
    weights = maps.attention[:, :, text, maps.groups["patches"]].float().cpu().numpy().copy()
    return {
        "picture": picture,
        "question": question,
        "boxes": list(boxes),
        "tokens": maps.tokens[text],
        "weights": weights.reshape(*weights.shape[:3], *maps.grid),
    }


def select_map(card: dict, layer: int, head: int, token: int) -> np.ndarray:
    """Attention of one text token on the patches, (rows, columns); head MEAN averages the heads."""
    heads = card["weights"][layer, :, token]
    return heads.mean(0) if head == MEAN else heads[head]


class AttentionExplorer:
    """Widgets over the cards of some questions (`make_card`); `box` shows them, `drawn` is what they show."""

    def __init__(self, cards: Sequence[dict]):
        if not cards:
            raise ValueError("the explorer needs at least one question: pass a list of make_card(...)")
        self.cards = list(cards)
        n_layers, n_heads = self.cards[0]["weights"].shape[:2]
        names = [(f"{place + 1}: {card['question']}", place) for place, card in enumerate(self.cards)]
        heads = [("mean of heads", MEAN), *((f"H{head}", head) for head in range(n_heads))]
        wide = widgets.Layout(width="32em")
        self.question = widgets.Dropdown(options=names, description="question", layout=wide)
        self.layer = widgets.IntSlider(0, 0, n_layers - 1, description="layer")
        self.head = widgets.Dropdown(options=heads, value=MEAN, description="head")
        self.token = widgets.Dropdown(options=self._name_tokens(), description="query word")
        self.image = widgets.Image(format="png")
        self.box = widgets.VBox(
            [self.question, widgets.HBox([self.layer, self.head, self.token]), self.image]
        )
        self.shown = None  # the question that the figure was made for
        self._redraw()
        self.question.observe(self._change_question, names="value")
        for widget in (self.layer, self.head, self.token):
            widget.observe(self._redraw, names="value")

    @property
    def card(self) -> dict:
        """The question that is shown."""
        return self.cards[self.question.value]

    @property
    def drawn(self) -> np.ndarray:
        """The shares on the patches as drawn, (rows, columns)."""
        return np.asarray(self.artist.get_array()) / 100

    def _name_tokens(self) -> list[tuple[str, int]]:
        # the place makes a word that occurs twice two options
        return [(f"{place}: {token}", place) for place, token in enumerate(self.card["tokens"])]

    def _change_question(self, change) -> None:
        self.token.options = self._name_tokens()  # which goes back to [CLS]
        self._redraw()

    def _start_figure(self) -> None:
        """A new figure for a new question: picture, boxes, heatmap and colour bar."""
        card, label = self.card, "attention on a patch, %\n(text query → image key)"
        # without the style's constrained layout, which would move everything a little at each turn
        self.figure = Figure(figsize=(5.6, 3.9), dpi=90)
        with figure_style():
            place = {"left": 0.03, "right": 0.96, "bottom": 0.04, "top": 0.92}
            self.axis = self.figure.subplots(gridspec_kw=place)
            empty = np.zeros(card["weights"].shape[-2:])
            self.artist = show_heatmap(self.axis, card["picture"], empty, boxes=card["boxes"])
            self.figure.colorbar(self.artist, ax=self.axis, label=label)
            self.axis.set_anchor("W")
        self.shown = self.question.value

    def _redraw(self, change=None) -> None:
        """New colours in the figure that stands, which is quicker than a new one for each step of a slider."""
        if self.shown != self.question.value:
            self._start_figure()
        layer, head, token = self.layer.value, self.head.value, self.token.value
        weights = select_map(self.card, layer, head, token)
        self.artist.set_data(100 * weights)
        self.artist.set_clim(0, max(100 * float(weights.max()), 1e-6))
        name = f"L{layer}, mean of heads" if head == MEAN else f"L{layer}H{head}"
        word = self.card["tokens"][token]
        title = f"{name}: {word!r} gives {100 * weights.sum():.0f} % to the patches"
        self.axis.set_title(title, loc="left", fontsize=10)
        png = io.BytesIO()
        self.figure.savefig(png, format="png", dpi=90)
        self.image.value = png.getvalue()
