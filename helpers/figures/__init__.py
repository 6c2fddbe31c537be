"""What notebooks draw. Functions take tables or arrays, return the figure, and never call show."""

from helpers.figures import attention, families, heads, knockout, models, style

__all__ = [
    "attention",  # 03: layers, heads, maps, flow, pointing, faithfulness of maps
    "families",  # 04: question families, word classes, what answers need, calibration
    "heads",  # 05: roles, removal of heads, what predicts its effect
    "knockout",  # 03b: what answers lose where attention is cut
    "models",  # 01, 02, 06, 07: study, data, training, accuracy, smaller models, runs
    "style",  # colours, settings, and what is drawn in many figures
]
