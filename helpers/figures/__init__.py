"""What notebooks draw. Functions take tables or arrays, return the figure, and never call show."""

from helpers.figures import attention, heads, models, style

__all__ = [
    "attention",  # 03, 03b, 04, a1, a2: layers, heads, maps, flow, knockout, question types, words
    "heads",  # 05, 06, a4: roles, removal of heads, what predicts its effect, lighter models
    "models",  # 01, 02, 07: study, data, training, accuracy, runs
    "style",  # colours, settings, and the four primitives
]
