"""What heads and layers do: their roles, what happens without them, and which can go."""

from helpers.attention.extract import name_heads
from helpers.heads import compression, removal, roles
from helpers.heads.removal import ablate_heads, normalise_by_layer, removal_effects

__all__ = [
    "ablate_heads",  # silence heads while a block runs
    "compression",  # orders of removal, smaller models, and what training restores
    "name_heads",  # L3H7 for each row of a table
    "normalise_by_layer",  # importance over its layer's norm
    "removal",  # answers without heads and layers, the gradient's estimate, patching
    "removal_effects",  # what removals cost, over all questions and by family, with intervals
    "roles",  # scores of heads on roles, against heads with random weights
]
