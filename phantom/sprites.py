"""The things a phantom scene is made of, drawn as small pictures.

A sprite is a list of primitives on the unit square, `(shape, points, fill)`; the fill "C" is
the object's own colour. The table is data, so that a new kind is a new line and nothing else.
"""

from functools import lru_cache

from PIL import Image, ImageDraw

Primitive = tuple[str, tuple[float, ...], str | tuple[int, int, int]]  # shape, points, fill
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (245, 205, 20),
    "purple": (140, 60, 190),
    "black": (25, 25, 25),
}
_SKIN, _WOOD, _GLASS, _DARK = (240, 200, 165), (140, 95, 55), (205, 235, 250), (50, 50, 55)
_WHITE, _GRAY, _STRAW, _TEAL = (252, 252, 252), (128, 128, 132), (226, 178, 72), (90, 205, 195)


def _wheels(*centers: float) -> list[Primitive]:
    return [("ellipse", (x - 0.11, 0.66, x + 0.11, 0.88), _DARK) for x in centers]


def _person(body: tuple[int, int, int], hat: list[Primitive]) -> list[Primitive]:
    return [
        ("rectangle", (0.12, 0.52, 0.50, 0.90), body),
        ("ellipse", (0.14, 0.18, 0.48, 0.54), _SKIN),
        *hat,
        ("rectangle", (0.14, 0.90, 0.28, 0.99), _DARK),
        ("rectangle", (0.34, 0.90, 0.48, 0.99), _DARK),
    ]


THINGS = {
    "ball": [
        ("ellipse", (0.12, 0.12, 0.88, 0.88), "C"),
        ("arc", (0.34, 0.12, 1.10, 0.88, 126, 234), _WHITE),
    ],
    "cup": [
        ("ellipse", (0.58, 0.32, 0.96, 0.74), "C"),
        ("ellipse", (0.68, 0.42, 0.86, 0.64), _WHITE),
        ("polygon", (0.08, 0.15, 0.74, 0.15, 0.64, 0.90, 0.18, 0.90), "C"),
        ("ellipse", (0.08, 0.08, 0.74, 0.24), _WHITE),
    ],
    "chair": [
        ("rectangle", (0.14, 0.05, 0.30, 0.95), "C"),
        ("rectangle", (0.14, 0.48, 0.86, 0.64), "C"),
        ("rectangle", (0.72, 0.60, 0.86, 0.95), "C"),
    ],
    "kite": [
        ("polygon", (0.50, 0.02, 0.90, 0.36, 0.50, 0.82, 0.10, 0.36), "C"),
        ("polygon", (0.50, 0.82, 0.64, 0.98, 0.36, 0.98), _DARK),
    ],
}
VEHICLES = {
    "car": [
        ("polygon", (0.18, 0.52, 0.32, 0.28, 0.68, 0.28, 0.82, 0.52), _GLASS),
        ("rectangle", (0.03, 0.50, 0.97, 0.74), "C"),
        *_wheels(0.25, 0.75),
    ],
    "bus": [
        ("rectangle", (0.03, 0.12, 0.97, 0.76), "C"),
        *[("rectangle", (x, 0.22, x + 0.20, 0.44), _GLASS) for x in (0.10, 0.40, 0.70)],
        *_wheels(0.22, 0.78),
    ],
    "truck": [
        ("rectangle", (0.02, 0.12, 0.60, 0.74), "C"),
        ("rectangle", (0.64, 0.34, 0.97, 0.74), _GRAY),
        ("rectangle", (0.74, 0.40, 0.92, 0.54), _GLASS),
        *_wheels(0.18, 0.48, 0.80),
    ],
}
ANIMALS = {
    "dog": [
        ("rectangle", (0.08, 0.42, 0.66, 0.68), _WOOD),
        ("ellipse", (0.54, 0.18, 0.96, 0.56), _WOOD),
        ("ellipse", (0.56, 0.20, 0.70, 0.54), _DARK),
        ("rectangle", (0.12, 0.66, 0.22, 0.94), _WOOD),
        ("rectangle", (0.52, 0.66, 0.62, 0.94), _WOOD),
        ("rectangle", (0.02, 0.24, 0.12, 0.50), _WOOD),
    ],
    "cat": [
        ("ellipse", (0.22, 0.44, 0.78, 0.98), (250, 150, 50)),
        ("ellipse", (0.22, 0.16, 0.78, 0.62), (250, 150, 50)),
        ("polygon", (0.22, 0.34, 0.24, 0.02, 0.46, 0.20), (250, 150, 50)),
        ("polygon", (0.78, 0.34, 0.76, 0.02, 0.54, 0.20), (250, 150, 50)),
        ("ellipse", (0.34, 0.32, 0.42, 0.42), _DARK),
        ("ellipse", (0.58, 0.32, 0.66, 0.42), _DARK),
    ],
    "bird": [
        ("ellipse", (0.14, 0.34, 0.76, 0.80), (70, 190, 235)),
        ("ellipse", (0.54, 0.14, 0.88, 0.48), (70, 190, 235)),
        ("polygon", (0.86, 0.26, 1.00, 0.34, 0.86, 0.40), (250, 150, 50)),
        ("polygon", (0.16, 0.50, 0.00, 0.30, 0.02, 0.62), (30, 130, 190)),
        ("rectangle", (0.42, 0.78, 0.48, 0.98), (250, 150, 50)),
    ],
    "cow": [
        ("rectangle", (0.06, 0.34, 0.70, 0.68), _WHITE),
        ("rectangle", (0.16, 0.34, 0.34, 0.52), _DARK),
        ("rectangle", (0.46, 0.48, 0.62, 0.68), _DARK),
        ("ellipse", (0.60, 0.20, 0.98, 0.56), _WHITE),
        ("ellipse", (0.78, 0.38, 0.99, 0.56), (245, 170, 180)),
        ("rectangle", (0.10, 0.66, 0.20, 0.94), _DARK),
        ("rectangle", (0.56, 0.66, 0.66, 0.94), _DARK),
    ],
}
PEOPLE = {
    "chef": _person(
        _WHITE,
        [
            ("rectangle", (0.18, 0.02, 0.44, 0.28), _WHITE),
            ("rectangle", (0.28, 0.56, 0.34, 0.88), _DARK),
        ],
    ),
    "farmer": _person(
        (60, 100, 190),
        [
            ("ellipse", (0.02, 0.14, 0.60, 0.32), _STRAW),
            ("rectangle", (0.20, 0.06, 0.42, 0.24), _STRAW),
        ],
    ),
    "nurse": _person(
        _TEAL,
        [
            ("rectangle", (0.16, 0.08, 0.46, 0.26), _WHITE),
            ("rectangle", (0.26, 0.09, 0.36, 0.25), (214, 39, 40)),
        ],
    ),
    "clown": _person(
        (250, 130, 180),
        [
            ("polygon", (0.16, 0.24, 0.31, 0.00, 0.46, 0.24), (44, 160, 44)),
            ("ellipse", (0.25, 0.34, 0.37, 0.46), (214, 39, 40)),
        ],
    ),
}
ITEMS = {  # what a person can hold, drawn in the right half of the person's square
    "umbrella": [
        ("pieslice", (0.48, 0.10, 1.00, 0.66, 180, 360), (140, 60, 190)),
        ("rectangle", (0.72, 0.36, 0.77, 0.86), _DARK),
    ],
    "flag": [
        ("rectangle", (0.58, 0.12, 0.63, 0.92), _DARK),
        ("rectangle", (0.63, 0.14, 0.99, 0.44), (214, 39, 40)),
    ],
    "balloon": [
        ("ellipse", (0.54, 0.06, 0.96, 0.54), (245, 205, 20)),
        ("rectangle", (0.73, 0.54, 0.77, 0.84), _DARK),
    ],
    "book": [
        ("rectangle", (0.52, 0.50, 0.98, 0.86), (44, 120, 60)),
        ("rectangle", (0.58, 0.56, 0.92, 0.80), _WHITE),
    ],
}
STOP_SIGN = (
    0.34, 0.04, 0.66, 0.04, 0.86, 0.24, 0.86, 0.44, 0.66, 0.64, 0.34, 0.64, 0.14, 0.44, 0.14, 0.24
)  # fmt: skip
CAUSES = {  # what a vehicle can be stopped by
    "red light": [
        ("rectangle", (0.28, 0.04, 0.72, 0.76), _DARK),
        ("ellipse", (0.34, 0.08, 0.66, 0.38), (255, 50, 40)),
        ("ellipse", (0.38, 0.46, 0.62, 0.70), (70, 90, 70)),
        ("rectangle", (0.46, 0.76, 0.54, 0.98), _GRAY),
    ],
    "stop sign": [
        ("polygon", STOP_SIGN, (200, 20, 30)),
        ("rectangle", (0.22, 0.28, 0.78, 0.40), _WHITE),
        ("rectangle", (0.46, 0.64, 0.54, 0.98), _GRAY),
    ],
    "rock": [
        ("polygon", (0.04, 0.88, 0.16, 0.44, 0.44, 0.24, 0.76, 0.34, 0.96, 0.88), (110, 110, 115)),
        ("polygon", (0.20, 0.50, 0.44, 0.30, 0.56, 0.52), (165, 165, 170)),
    ],
    "cone": [
        ("polygon", (0.38, 0.06, 0.62, 0.06, 0.82, 0.84, 0.18, 0.84), (255, 120, 20)),
        ("polygon", (0.31, 0.34, 0.69, 0.34, 0.74, 0.54, 0.26, 0.54), _WHITE),
        ("rectangle", (0.08, 0.82, 0.92, 0.94), (255, 120, 20)),
    ],
}
SPRITES = {**THINGS, **VEHICLES, **ANIMALS, **PEOPLE, **CAUSES}
CATEGORIES = {"thing": THINGS, "vehicle": VEHICLES, "animal": ANIMALS, "person": PEOPLE}


@lru_cache(maxsize=2048)
def draw_sprite(kind: str, color: str | None, item: str | None, size: int) -> Image.Image:
    """One object as an RGBA picture of size x size pixels, transparent around it.

    Drawn four times too large and scaled down, so that edges are smooth. KeyError on an unknown
    kind, colour or item.
    """
    big = size * 4
    canvas = Image.new("RGBA", (big, big))
    pen = ImageDraw.Draw(canvas)
    for shape, points, fill in SPRITES[kind] + (ITEMS[item] if item else []):
        fill = COLORS[color] if fill == "C" else fill
        n_points = 4 if shape in ("arc", "pieslice") else len(points)  # two angles follow
        scaled, angles = [p * big for p in points[:n_points]], points[n_points:]
        width = {"width": big // 14} if shape == "arc" else {}
        getattr(pen, shape)(scaled, *angles, fill=fill, **width)
    return canvas.resize((size, size), Image.Resampling.BOX)
