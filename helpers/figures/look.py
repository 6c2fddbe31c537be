"""One picture and one question at a glance: what every head reads, and a map for each layer."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from helpers.figures.style import (
    Picture,
    format_cells,
    plot_heads_grid,
    plot_map,
    plot_picture,
    set_title,
    styled,
)

ACROSS = 6  # maps in a row


@styled
def plot_look(
    picture: Picture, title: str, shares: np.ndarray, baseline: float, maps: np.ndarray
) -> Figure:
    """The picture, the image share of every head, and under them a map for each layer.

    shares: (layer, head) of [CLS]'s attention that goes to the image, in [0, 1]; baseline: that of
    uniform attention. maps: (layer, patch row, patch column), [CLS]'s attention, mean over heads.
    """
    n_layers, n_heads = shares.shape
    n_rows = -(-n_layers // ACROSS)
    figure = plt.figure(figsize=(10, 4.2 + 1.9 * n_rows))
    above, below = figure.subfigures(2, 1, height_ratios=[3.6, 1.9 * n_rows + 0.4])
    left, right = above.subplots(1, 2, width_ratios=[1, 1.5])
    plot_picture(left, picture)
    texts = format_cells(100 * shares) if n_heads <= 12 else np.full(shares.shape, "", object)
    image = plot_heads_grid(right, 100 * (shares - baseline), texts, (-100, 100), cmap="RdBu_r")
    right.set_title(f"[CLS] → image, % (uniform attention: {100 * baseline:.0f} %)", fontsize=9)
    above.colorbar(image, ax=right, label="points above uniform")
    axes = below.subplots(n_rows, min(n_layers, ACROSS), squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for layer, (axis, weights) in enumerate(zip(axes, 100 * maps, strict=False)):
        drawn = plot_map(axis, picture, weights, f"L{layer}", largest=100 * float(maps.max()))
    below.colorbar(drawn, ax=list(axes), label="attention on a patch, %")
    return set_title(figure, title)
