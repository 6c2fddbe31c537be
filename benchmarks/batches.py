"""What several benchmarks run: batches of noise in COCO's sizes, and the usual way to the split."""

from itertools import cycle, islice

import torch
from torch import Tensor, nn

# height, width
COCO_SIZES = [(384, 512)] * 2 + [(384, 576)] * 3 + [(512, 384), (576, 384), (384, 384)]
TOKENS = [8, 9, 10, 7, 12, 8, 9, 10]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_batch(n: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Noise pictures and random words of COCO's sizes, as the processor pads them."""
    sizes, tokens = list(islice(cycle(COCO_SIZES), n)), torch.tensor(list(islice(cycle(TOKENS), n)))
    shape = [max(size[axis] for size in sizes) for axis in (0, 1)]
    pixels, mask = torch.zeros(n, 3, *shape), torch.zeros(n, *shape, dtype=torch.long)
    for place, (height, width) in enumerate(sizes):
        pixels[place, :, :height, :width] = torch.randn(3, height, width)
        mask[place, :height, :width] = 1
    attention_mask = (torch.arange(tokens.max()) < tokens[:, None]).long()
    ids = torch.randint(5, 50, attention_mask.shape) * attention_mask
    batch = {"input_ids": ids, "attention_mask": attention_mask, "pixel_mask": mask}
    return {
        name: value.to(device)
        for name, value in {**batch, "pixel_values": pixels.to(dtype)}.items()
    }


def reduce_stock(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The usual way: all layers' matrices at once, then each query's mass on text and image."""
    layers = model(**batch, output_attentions=True).attentions
    n_text = batch["input_ids"].shape[1]
    return torch.stack(
        [torch.stack([a[..., :n_text].sum(-1), a[..., n_text:].sum(-1)]) for a in layers]
    )
