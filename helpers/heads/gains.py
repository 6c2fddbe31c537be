"""Which heads are removed or emphasised, alone and together, as arrays of gains.

Gains (variant, layer, head) multiply each head's z: 0 removes a head, 1 keeps it.
"""

import numpy as np

FACTORS = (1.5, 2.0, 3.0)  # that the output of an emphasised head is multiplied by


def pair_gains(shape: tuple[int, int], pairs: np.ndarray) -> np.ndarray:
    """Gains (variant, layer, head): each head removed, each at all FACTORS; each pair removed."""
    eye = np.eye(shape[0] * shape[1])
    alone = [1 + (factor - 1) * eye for factor in (0, *FACTORS)]
    return np.concatenate([*alone, 1 - eye[pairs].sum(1)]).reshape(-1, *shape)


def sample_sets(shape: tuple[int, int], n_sets: int, seed: int = 0) -> np.ndarray:
    """Gains (set, layer, head) of random sets of heads removed, of one up to half of the heads."""
    generator, n_heads = np.random.default_rng(seed), shape[0] * shape[1]
    gains = np.ones((n_sets, n_heads))
    for row in gains:
        size = generator.integers(1, n_heads // 2 + 1)
        row[generator.choice(n_heads, size, replace=False)] = 0
    return gains.reshape(-1, *shape)


def split_variants(values: np.ndarray, n_heads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (question, variant) of `pair_gains` apart; n_heads: over all layers.

    Of heads removed (question, head), emphasised (question, factor, head), pairs (question, pair).
    """
    ends = n_heads, n_heads * (len(FACTORS) + 1)
    single, emphasised, pairs = np.split(values, ends, axis=1)
    return single, emphasised.reshape(len(values), len(FACTORS), n_heads), pairs
