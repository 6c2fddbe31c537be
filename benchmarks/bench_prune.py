"""How much faster is a ViLT-B/32 with fewer heads or layers, and in lower precision?

python benchmarks/bench_prune.py
python benchmarks/bench_prune.py --device cuda --batch-size 32 --rounds 31

Weights are random ("fresh-b32"): time does not depend on them, nor on which heads and layers go.
One question at once, and a batch of mixed COCO sizes; models in turn within a round, ratios in
pairs.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from batches import make_batch

from helpers.model.timing import (
    compare_turns,
    lower_precisions,
    measure_memory,
    measure_weights,
    time_in_turns,
)
from helpers.model.vilt import load_vilt, prune_model


def make_models(device: str) -> dict:
    """The whole model, three cuts, and the whole in lower precision."""
    model = load_vilt("fresh-b32", device=device)[0]
    quarter, half = (
        [(layer, head) for layer in range(12) for head in range(count)] for count in (3, 6)
    )
    return {
        "whole": model,
        "1/4 of the heads cut": prune_model(model, quarter),
        "1/2 of the heads cut": prune_model(model, half),
        "3 of 12 layers left out": prune_model(model, layers=[3, 6, 9]),
        "6 of 12 layers left out": prune_model(model, layers=[1, 3, 5, 7, 9, 11]),
        **{f"whole, {bits}": each for bits, each in lower_precisions(model).items()},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    models = make_models(given.device)
    batches = {n: make_batch(n, given.device, torch.float32) for n in (1, given.batch_size)}
    turns = time_in_turns(models, batches, given.rounds, given.threads)
    print(f"{given.device}, {given.threads} threads, {given.rounds} rounds")
    for row in compare_turns(turns, "whole").itertuples():
        model = models[row.model]
        memory = measure_memory(model, batches[row.questions])
        parameters = models[row.model.partition(",")[0]].num_parameters()
        print(
            f"{row.questions:3} at once  {row.model:24} {row.milliseconds:8.1f} ms  "
            f"{row.faster:5.2f} times as fast "
            f"[{row.low:.2f}, {row.high:.2f}]  {parameters / 1e6:6.1f} M parameters  "
            f"weights {measure_weights(model) / 1e6:5.0f} MB, peak {memory / 1e6:5.0f} MB"
        )


if __name__ == "__main__":
    main()
