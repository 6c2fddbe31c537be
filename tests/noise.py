"""Batches of noise pictures and random words, without a data set."""

import torch

GRIDS = [(4, 4), (4, 6), (6, 4), (5, 5), (4, 5), (6, 6)]
LENGTHS = [5, 9, 4, 3, 7, 12]  # tokens, [CLS] and [SEP] counted


def make_batch(grids=GRIDS, lengths=LENGTHS, patch=16, words=20, seed=0):
    """Noise pictures and random words, each question the same in whatever batch it stands."""
    height, width = (max(grid[axis] for grid in grids) * patch for axis in (0, 1))
    batch = {
        "input_ids": torch.zeros(len(grids), max(lengths), dtype=torch.long),
        "attention_mask": torch.zeros(len(grids), max(lengths), dtype=torch.long),
        "pixel_values": torch.zeros(len(grids), 3, height, width),
        "pixel_mask": torch.zeros(len(grids), height, width, dtype=torch.long),
    }
    for place, ((rows, columns), length) in enumerate(zip(grids, lengths, strict=True)):
        generator = torch.Generator().manual_seed(1000 * seed + 100 * rows + 10 * columns + length)
        ids = torch.randint(5, words, (length,), generator=generator)
        ids[0], ids[-1] = 2, 3
        batch["input_ids"][place, :length], batch["attention_mask"][place, :length] = ids, 1
        pixels = torch.randn(3, rows * patch, columns * patch, generator=generator)
        batch["pixel_values"][place, :, : rows * patch, : columns * patch] = pixels
        batch["pixel_mask"][place, : rows * patch, : columns * patch] = 1
    return batch
