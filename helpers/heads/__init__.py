"""What heads and layers do: their roles, what happens without them, and which can go."""

from helpers.attention.extract import name_heads
from helpers.heads import compression, effects, removal, roles
from helpers.heads.effects import normalise_by_layer, removal_effects
from helpers.heads.removal import ablate_heads

__all__ = [
    "ablate_heads",  # silence heads while a block runs
    "compression",  # orders of removal, smaller models, and what training restores
    "effects",  # what removals cost each family, how few heads carry it, what predicts it, pairs
    "name_heads",  # L3H7 for each row of a table
    "normalise_by_layer",  # importance over its layer's norm
    "removal",  # answers without heads and layers, alone and together, or with another's heads
    "removal_effects",  # what removals cost, over all questions and by family, with intervals
    "roles",  # scores of heads on roles, against heads with random weights
]
