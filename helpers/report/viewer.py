"""A viewer of attention over the picture: one page that any browser opens, shown in notebooks too.

    cards = [viewer.make_card(explanation, picture, question, boxes)]
    viewer.write_page(study.run_dir / "explorer.html", cards, "Where ViLT looks")
    viewer.show_page(cards, "Where ViLT looks")      # the same page as a widget

The page (viewer.html beside this module) needs no Python, no network and no framework. It shows
questions and words as they are written, whatever they hold: none is read as HTML.
"""

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib as mpl
import numpy as np
from PIL import Image

from helpers.run.cache import write_atomic

LONGEST_SIDE = 384  # pixels of an embedded picture: ViLT itself sees as much of the shorter side


METHODS = {  # how their weights are named: a query gives `noun`; weight times `scale` is in `unit`
    "attention": {"noun": "attention", "scale": 100, "unit": "% of the query's attention"},
    "value-weighted": {"noun": "norm", "scale": 1, "unit": "norm of what the head hands on"},
    "gradient-weighted": {
        "noun": "relevance", "scale": 1, "unit": "relevance for the answer (no unit)"},
    "rollout": {"noun": "flow", "scale": 100, "unit": "% of the flow"},
    "relevance": {"noun": "relevance", "scale": 1, "unit": "relevance for the answer (no unit)"},
}  # fmt: skip


def make_card(
    explanation: Any, picture: Image.Image | np.ndarray, question: str,
    boxes: Sequence[Sequence[float]] = (),
) -> dict:  # fmt: skip
    """What the viewer shows of one question: text queries and patch keys, in memory of their own.

    explanation: of `relevance.explain`; boxes: [x, y, width, height] in pixels.
    Of each method, maps are (layer, head, query, patch row, patch column), float32, and totals the
    sums over all keys (layer, head, query), without the head where heads are combined. Relevance's
    totals leave out the 1 of the identity that it starts from.
    """
    found = explanation.maps
    text, maps, totals = slice(0, found.groups["sep"].stop), {}, {}
    for method in METHODS:
        rows = explanation.weights(method)[..., text, :].float().cpu().numpy()
        on_patches = rows[..., found.groups["patches"]]
        maps[method] = on_patches.reshape(*on_patches.shape[:-1], *found.grid).copy()
        totals[method] = rows.sum(-1) - (1 if method == "relevance" else 0)
    return {
        "picture": picture, "question": question, "boxes": list(boxes), "maps": maps,
        "totals": totals, "answer": explanation.answer, "tokens": found.tokens[text],
        "grid": tuple(found.grid),
    }  # fmt: skip


def write_page(path: str | Path, cards: Sequence[dict], title: str) -> Path:
    """Write the cards as one standalone HTML file, whole or not at all; returns its path."""
    return write_atomic(Path(path), render_page(cards, title))


def show_page(cards: Sequence[dict], title: str, token: int = 0) -> widgets.VBox:
    """The page of one question as a widget, under controls that step through questions and layers.

    The page stands in a frame of its own (srcdoc, as folium's maps do) because notebooks run no
    script of a widget's HTML; it can reach nothing outside. token: the query that it starts with.
    """
    n_layers, _ = check_cards(cards)
    # a message to the browser is UTF-8, which half an emoji is not
    names = [card["question"].encode("utf-8", "replace").decode() for card in cards]
    options = [(f"{number}: {name}", number - 1) for number, name in enumerate(names, start=1)]
    question = widgets.Dropdown(options=options, description="question")
    layer = widgets.IntSlider(n_layers - 1, 0, n_layers - 1, description="layer")
    frame = widgets.HTML()

    def draw(change: dict | None = None) -> None:
        card = cards[question.value]
        start = min(token, len(card["tokens"]) - 1)
        page = html.escape(render_page([card], title, layer.value, start))
        style = "width: 100%; height: 900px; border: 0"
        frame.value = f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{page}"></iframe>'

    for control in (question, layer):
        control.observe(draw, names="value")
    draw()
    return widgets.VBox([widgets.HBox([question, layer]), frame])


def render_page(cards: Sequence[dict], title: str, layer: int | None = None, token: int = 0) -> str:
    """The page's HTML. layer, token: what it starts with (the last layer, [CLS]).

    ValueError where there is no card, where cards differ in methods, layers or heads, or where a
    map is negative or not finite.
    """
    n_layers, n_heads = check_cards(cards)
    methods = [
        {"name": name, **METHODS[name], "combined": maps.ndim == 4}
        for name, maps in cards[0]["maps"].items()
    ]
    data = {
        "title": title, "layers": n_layers, "heads": n_heads, "methods": methods,
        "start": {"layer": n_layers - 1 if layer is None else layer, "token": token},
        "colors": mpl.colormaps["cividis"](np.arange(256), bytes=True)[:, :3].tobytes().hex(),
        "cards": [pack_card(card) for card in cards],
    }  # fmt: skip
    template = Path(__file__).with_name("viewer.html").read_text(encoding="utf-8")
    # as ASCII, so that half an emoji can be written as well
    heading = html.escape(title).encode("ascii", "xmlcharrefreplace").decode()
    parts = {"title": heading, "data": escape_json(data)}
    # one pass, by a function: what a text holds is neither a placeholder nor a group's number
    return re.sub(r"\{\{(title|data)\}\}", lambda match: parts[match[1]], template)


def check_cards(cards: Sequence[dict]) -> tuple[int, int]:
    """How many layers and heads the cards have: 0 heads where every method combines them.

    ValueError where there is no card, or where cards do not fit together.
    """
    if not cards:
        raise ValueError("the viewer needs at least one question: pass a list of make_card(...)")
    shapes = [{name: maps.shape[:-3] for name, maps in card["maps"].items()} for card in cards]
    if odd := [number for number, shape in enumerate(shapes, start=1) if shape != shapes[0]]:
        raise ValueError(f"question {odd[0]} has other methods, layers or heads than question 1")
    axes = list(shapes[0].values())
    return axes[0][0], max(axis[1] if len(axis) == 2 else 0 for axis in axes)


def pack_card(card: dict) -> dict:
    """A card as JSON: texts, grid, picture, maps, and boxes as parts of the picture's sides."""
    picture = card["picture"]
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    sides = np.array([*picture.size, *picture.size], dtype=float)
    boxes = [(np.asarray(box, dtype=float) / sides).round(4).tolist() for box in card["boxes"]]
    maps = {method: pack_maps(card, method) for method in card["maps"]}
    return {
        "question": card["question"], "answer": card["answer"], "tokens": list(card["tokens"]),
        "grid": [int(side) for side in card["grid"]], "boxes": boxes,
        "picture": encode_picture(picture), "maps": maps,
    }  # fmt: skip


def pack_maps(card: dict, method: str) -> dict[str, str]:
    """A method's maps in base64, in C order, one byte a patch: (layer, head, token, row, column).

    A weight is byte * maximum / 255, at most maximum / 510 off. maxima, sums and totals (layer,
    head, token), float32, are exact: the largest weight on a patch, the sum over patches, and the
    sum over all keys. Methods that combine heads have no head axis.
    """
    maps = np.asarray(card["maps"][method], dtype=np.float64)
    if not np.isfinite(maps).all() or (maps < 0).any():
        wrong = f"the {method} maps of {card['question']!r} hold negative numbers or NaN"
        raise ValueError(f"{wrong}: a heatmap starts at 0.")
    maxima = maps.max((-2, -1))
    levels = maps * (255 / np.where(maxima > 0, maxima, 1))[..., None, None]
    exact = {"maxima": maxima, "sums": maps.sum((-2, -1)), "totals": card["totals"][method]}
    floats = {name: np.asarray(values, dtype="<f4").tobytes() for name, values in exact.items()}
    packed = {"bytes": levels.round().astype(np.uint8).tobytes(), **floats}
    return {name: base64.b64encode(data).decode() for name, data in packed.items()}


def encode_picture(picture: Image.Image) -> str:
    """A picture as a data address (WebP), at most LONGEST_SIDE pixels."""
    small = picture.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    small.save(file := io.BytesIO(), "webp", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def escape_json(value: object) -> str:
    """JSON that can stand in a script element: no text in it can end the element or begin another.

    ASCII throughout, so that U+2028, U+2029 and lone surrogates are escaped as well.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return re.sub(r"[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)
