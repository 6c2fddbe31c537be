"""The explorer as one file that any browser opens: no Python, no network, no framework.

    write_explorer(study.run_dir / "explorer.html", cards, "Where ViLT looks")

The page itself is explorer.html beside this module; here it gets its data. A map goes in as one byte a patch, a
256th of its own maximum apart; maxima and sums go in exactly, so that every share on the page is exact.
"""

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image

from helpers.report.explore import METHODS, check_cards, combines_heads
from helpers.run.cache import write_atomic

LONGEST_SIDE = (
    384  # pixels of an embedded picture, which is what ViLT itself sees of the shorter side
)
LEVELS = 255


def write_explorer(path: str | Path, cards: Sequence[dict], title: str) -> Path:
    """Write the cards (`explore.make_card`) as a standalone page; returns its path.

    All cards hold the same methods, layers and heads; ValueError where they do not, where there is none, or where a map
    is negative or not finite. The file appears whole or not at all. Texts may hold anything: none is read as HTML.
    """
    n_layers, n_heads = check_cards(cards)
    methods = [
        {"name": name, **METHODS[name]._asdict(), "combined": combines_heads(cards[0], name)}
        for name in cards[0]["maps"]
    ]
    data = {
        "title": title,
        "layers": n_layers,
        "heads": n_heads,
        "methods": methods,
        "colors": (mpl.colormaps["cividis"](np.arange(256), bytes=True)[:, :3]).tobytes().hex(),
        "cards": [pack_card(card) for card in cards],
    }
    template = Path(__file__).with_name("explorer.html").read_text(encoding="utf-8")
    parts = {"title": html.escape(title), "data": escape_json(data)}
    # one pass, by a function: what a text holds is neither a placeholder nor a group's number
    page = re.sub(r"\{\{(title|data)\}\}", lambda match: parts[match[1]], template)
    return write_atomic(path, page)


def pack_card(card: dict) -> dict:
    """A card as plain JSON: texts, grid, boxes as parts of the picture's sides, picture as a data address, maps."""
    picture = (
        card["picture"]
        if isinstance(card["picture"], Image.Image)
        else Image.fromarray(card["picture"])
    )
    sides = np.array([*picture.size, *picture.size], dtype=float)
    return {
        "question": card["question"],
        "answer": card["answer"],
        "tokens": list(card["tokens"]),
        "grid": [int(side) for side in card["grid"]],
        "boxes": [
            (np.asarray(box, dtype=float) / sides).round(4).tolist() for box in card["boxes"]
        ],
        "picture": encode_picture(picture),
        "maps": {name: pack_maps(card, name) for name in card["maps"]},
    }


def pack_maps(card: dict, method: str) -> dict[str, str]:
    """A method's maps in base64, C order: bytes (layer, head, token, row, column), no head where heads are combined.

    A weight is byte * maximum / 255, at most maximum / 510 off. maxima, sums and totals (layer, head, token), float32,
    are a map's largest weight, its sum over the patches, and the sum over all keys.
    """
    maps = np.asarray(card["maps"][method], dtype=np.float64)
    if not np.isfinite(maps).all() or (maps < 0).any():
        raise ValueError(
            f"the {method} maps of {card['question']!r} hold negative numbers or NaN: a heatmap starts at 0."
        )
    maxima = maps.max((-2, -1))
    steps = maps * (LEVELS / np.where(maxima > 0, maxima, 1))[..., None, None]
    exact = {"maxima": maxima, "sums": maps.sum((-2, -1)), "totals": card["totals"][method]}
    packed = {
        name: encode_bytes(np.asarray(values, dtype="<f4").tobytes())
        for name, values in exact.items()
    }
    return {"bytes": encode_bytes(steps.round().astype(np.uint8).tobytes()), **packed}


def encode_picture(picture: Image.Image) -> str:
    """A picture as a data address, at most LONGEST_SIDE pixels: PNG for drawings, JPEG where that is smaller."""
    small = picture.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    found = {}
    for kind, settings in {"png": {"optimize": True}, "jpeg": {"quality": 88}}.items():
        file = io.BytesIO()
        small.save(file, kind, **settings)
        found[kind] = file.getvalue()
    kind = min(found, key=lambda name: len(found[name]))
    return f"data:image/{kind};base64,{encode_bytes(found[kind])}"


def encode_bytes(data: bytes) -> str:
    """Base64 as text."""
    return base64.b64encode(data).decode("ascii")


def escape_json(value) -> str:
    """JSON that can stand in a script element: no text in it can end the element or begin another."""
    text = json.dumps(
        value, allow_nan=False, separators=(",", ":")
    )  # ASCII: U+2028 and U+2029 are escaped already
    return re.sub(r"[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)
