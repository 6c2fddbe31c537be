"""What does reusing the computation before the removed head save, over all layers, at ViLT-B/32
size?

python benchmarks/bench_ablate.py
python benchmarks/bench_ablate.py --device cuda --batch-size 32 --heads 12

For some heads of each of the 12 layers (all with --heads 12), on one batch of mixed COCO sizes:
(a) a stock forward pass for each head, silenced by a hook; (b) ours, from the head's layer on.
Weights are random ("fresh-b32"). Medians of the ratios within a round.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from batches import make_batch

from helpers.attention.image_share import pack_forward
from helpers.heads.removal import ablate_heads, run_variants, scale_heads
from helpers.model.forward import forward_raster
from helpers.model.timing import time_run
from helpers.model.vilt import load_vilt


def remove_stock(model, batch, heads) -> torch.Tensor:
    """Logits without each head, each by a whole pass with a hook."""
    logits = []
    for head in heads:
        with ablate_heads(model, [head]):
            logits.append(forward_raster(model, batch).logits)
    return torch.stack(logits)


def remove_from_prefix(model, batch, heads) -> torch.Tensor:
    """The same in one packed walk, each from its own layer on."""
    gains = np.ones((len(heads), 12, 12))
    for of_heads, head in zip(gains, heads, strict=True):
        of_heads[head] = 0
    found = dict(run_variants(pack_forward(model, batch), scale_heads(gains)))
    return torch.stack([found[row] for row in range(len(heads))])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--heads", type=int, default=2, help="of each layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load_vilt("fresh-b32")[0].to(given.device)
    batch = make_batch(given.batch_size, given.device, torch.float32)
    heads = [(layer, head) for layer in range(12) for head in range(given.heads)]
    variants = {
        "(a) stock, a pass each": lambda: remove_stock(model, batch, heads),
        "(b) from the head's layer on": lambda: remove_from_prefix(model, batch, heads),
    }
    with torch.no_grad():
        logits = [run() for run in variants.values()]
        apart = max((each - logits[0]).abs().max().item() for each in logits)
        turns = [
            {name: time_run(run) for name, run in variants.items()} for _ in range(given.rounds)
        ]
    *_, ours = variants
    print(
        f"{len(heads)} heads of 12 layers, batch {given.batch_size}, {given.device}, "
        f"{given.threads} threads"
    )
    print(f"logits agree to {apart:.1e}")
    for name in variants:
        seconds = statistics.median(turn[name] for turn in turns)
        faster = statistics.median(turn[name] / turn[ours] for turn in turns)
        print(f"{name:30} {seconds:6.1f} s   ours is {faster:.2f} times as fast")


if __name__ == "__main__":
    main()
