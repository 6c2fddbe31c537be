"""An explorer of attention over the picture, with widgets: question, method, layer, head and query word.

    explorer = AttentionExplorer(cards)
    explorer.box             # the widget, shown by a notebook
    explorer.layer.value = 2  # what a hand on the slider does: the picture is drawn anew
    explorer.drawn            # (rows, columns): what is drawn, in the method's own unit (shares for attention)

Only text queries and patch keys are kept, so that a dozen questions fit in memory. `webpage.write_explorer` shows the
same cards on a page without Python.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from helpers.figures.style import figure_style, show_heatmap

MEAN = -1  # the head's value for "mean of heads"


class Method(NamedTuple):
    """How a method's weights are named: `noun` is what a query gives, a patch's weight times `scale` is in `unit`."""

    noun: str
    scale: int
    unit: str


METHODS = {
    "attention": Method("attention", 100, "% of the query's attention"),
    "value-weighted": Method("norm", 1, "norm of what the head hands on"),
    "gradient-weighted": Method("relevance", 1, "relevance for the answer (no unit)"),
    "rollout": Method("flow", 100, "% of the flow"),
    "relevance": Method("relevance", 1, "relevance for the answer (no unit)"),
}


def make_card(
    explanation, picture, question: str, boxes=(), methods: Sequence[str] = tuple(METHODS)
) -> dict:
    """What the explorer needs of one question, a small part of its Explanation: text queries, patch keys.

    explanation: has maps (QuestionMaps), answer, and weights(method), as `relevance.explain` returns them; picture: PIL
    or array; boxes: [x, y, width, height] in its pixels; methods: of METHODS.
    Returns picture, question, boxes, answer, tokens, grid, and for each method: maps (layer, head, query token, patch
    row, patch column) float32, without the head for methods that combine heads and layers; totals (layer, head, query
    token), the sum over all keys, of which a map's own sum is the part on the patches. Relevance's total leaves out the
    1 of the identity it starts from.
    """
    found = explanation.maps
    text, maps, totals = slice(0, found.groups["sep"].stop), {}, {}
    for method in methods:
        rows = explanation.weights(method)[..., text, :].float().cpu().numpy()
        on_patches = rows[..., found.groups["patches"]]
        maps[method] = on_patches.reshape(*on_patches.shape[:-1], *found.grid).copy()
        totals[method] = rows.sum(-1) - (1 if method == "relevance" else 0)
    return {
        "picture": picture,
        "question": question,
        "boxes": list(boxes),
        "answer": explanation.answer,
        "tokens": found.tokens[text],
        "grid": tuple(found.grid),
        "maps": maps,
        "totals": totals,
    }


def check_cards(cards: Sequence[dict]) -> tuple[int, int]:
    """How many layers and heads the cards have; ValueError where there is no card, or they do not fit together.

    Heads are 0 where every method combines them.
    """
    if not cards:
        raise ValueError("the explorer needs at least one question: pass a list of make_card(...)")
    shapes = [{name: each.shape[:-3] for name, each in card["maps"].items()} for card in cards]
    odd = next((place for place, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        raise ValueError(
            f"question {odd + 1} has other methods, layers or heads than question 1: {shapes[odd]} against "
            f"{shapes[0]}; make all cards with one model and the same methods."
        )
    if not shapes[0]:
        raise ValueError(f"the cards hold no maps: give make_card methods of {', '.join(METHODS)}.")
    leading = list(shapes[0].values())
    return leading[0][0], max(shape[1] if len(shape) == 2 else 0 for shape in leading)


def combines_heads(card: dict, method: str) -> bool:
    """Whether a method's maps have no heads: what they show is everything up to and including a layer."""
    return card["maps"][method].ndim == 4


def select_map(card: dict, method: str, layer: int, head: int, token: int) -> np.ndarray:
    """Weights of one text token on the patches, (rows, columns); MEAN averages heads, combined methods have none."""
    return _select(card, card["maps"][method], method, layer, head, token)


def patch_share(card: dict, method: str, layer: int, head: int, token: int) -> float:
    """Part of all that a text token gives which goes to the patches, in [0, 1]; NaN where it gives nothing."""
    total = float(_select(card, card["totals"][method], method, layer, head, token))
    return (
        float(select_map(card, method, layer, head, token).sum()) / total
        if total > 0
        else float("nan")
    )


def _select(card, values, method, layer, head, token):
    if combines_heads(card, method):
        return values[layer, token]
    return values[layer, :, token].mean(0) if head == MEAN else values[layer, head, token]


def name_place(card: dict, method: str, layer: int, head: int) -> str:
    """Which part of the model a map shows: L2H3; L2, mean of heads; or up to L2."""
    if combines_heads(card, method):
        return f"up to L{layer}"
    return f"L{layer}, mean of heads" if head == MEAN else f"L{layer}H{head}"


class AttentionExplorer:
    """Widgets over the cards of some questions (`make_card`); `box` shows them, `drawn` is what they show."""

    def __init__(self, cards: Sequence[dict]):
        n_layers, n_heads = check_cards(cards)
        self.cards = list(cards)
        names = [
            (f"{place + 1}: {card['question']}", place) for place, card in enumerate(self.cards)
        ]
        heads = [("mean of heads", MEAN), *((f"H{head}", head) for head in range(n_heads))]
        wide = widgets.Layout(width="32em")
        self.question = widgets.Dropdown(options=names, description="question", layout=wide)
        self.method = widgets.Dropdown(options=list(self.cards[0]["maps"]), description="method")
        self.layer = widgets.IntSlider(0, 0, n_layers - 1, description="layer")
        self.head = widgets.Dropdown(options=heads, value=MEAN, description="head")
        self.token = widgets.Dropdown(options=self._name_tokens(), description="query word")
        self.image = widgets.Image(format="png")
        rows = [[self.question], [self.method, self.token], [self.layer, self.head]]
        self.box = widgets.VBox([*map(widgets.HBox, rows), self.image])
        self.shown = None  # the question that the figure was made for
        self._redraw()
        self.question.observe(self._change_question, names="value")
        for widget in (self.method, self.layer, self.head, self.token):
            widget.observe(self._redraw, names="value")

    @property
    def card(self) -> dict:
        """The question that is shown."""
        return self.cards[self.question.value]

    @property
    def drawn(self) -> np.ndarray:
        """The weights on the patches as drawn, (rows, columns): shares for attention and rollout."""
        return np.asarray(self.artist.get_array()) / METHODS[self.method.value].scale

    def _name_tokens(self) -> list[tuple[str, int]]:
        # the place makes a word that occurs twice two options
        return [(f"{place}: {token}", place) for place, token in enumerate(self.card["tokens"])]

    def _change_question(self, change) -> None:
        self.token.options = self._name_tokens()  # which goes back to [CLS]
        self._redraw()

    def _start_figure(self) -> None:
        """A new figure for a new question: picture, boxes, heatmap and colour bar."""
        card = self.card
        # without the style's constrained layout, which would move everything a little at each turn
        self.figure = Figure(figsize=(6, 4.1), dpi=90)
        with figure_style():
            place = {"left": 0.03, "right": 0.93, "bottom": 0.07, "top": 0.87}
            self.axis = self.figure.subplots(gridspec_kw=place)
            self.artist = show_heatmap(
                self.axis, card["picture"], np.zeros(card["grid"]), boxes=card["boxes"]
            )
            self.bar = self.figure.colorbar(self.artist, ax=self.axis)
            self.bar.formatter.set_powerlimits(
                (-2, 4)
            )  # long numbers would push the label out of the figure
            self.axis.set_anchor("W")
            self.axis.set_xlabel(f"the model answers {card['answer']!r}", loc="left")
        self.shown = self.question.value

    def _redraw(self, change=None) -> None:
        """New colours in the figure that stands, which is quicker than a new one for each step of a slider."""
        if self.shown != self.question.value:
            self._start_figure()
        chosen = self.method.value, self.layer.value, self.head.value, self.token.value
        method, weights = METHODS[self.method.value], select_map(self.card, *chosen)
        self.head.disabled = combines_heads(self.card, self.method.value)
        self.artist.set_data(method.scale * weights)
        self.artist.set_clim(0, max(method.scale * float(weights.max()), 1e-12))
        self.bar.set_label(f"{method.unit}, a patch\n(text query → image key)")
        self.axis.set_title(self._write_title(), loc="left", fontsize=10)
        png = (
            io.BytesIO()
        )  # hardly compressed: a third of the time went into making the file smaller
        self.figure.savefig(png, format="png", dpi=90, pil_kwargs={"compress_level": 1})
        self.image.value = png.getvalue()

    def _write_title(self) -> str:
        """What is drawn, and which part of all that the word gives it is."""
        card, token, method = self.card, self.token.value, self.method.value
        place = name_place(card, method, self.layer.value, self.head.value)
        share = patch_share(card, method, self.layer.value, self.head.value, token)
        noun, word = METHODS[method].noun, card["tokens"][token]
        told = (
            f"has no {noun} here"
            if np.isnan(share)
            else f"gives {100 * share:.0f} % of its {noun} to the patches"
        )
        return f"{place}, {method}\n{word!r} {told}"
