"""How much time and memory do attention measures take at ViLT-B/32 size?

python benchmarks/bench_extract.py                                      ratios to the stock forward pass
python benchmarks/bench_extract.py --data-root ../shared/vqav2_sample   also a whole extraction

Weights are random ("fresh-b32"): time does not depend on them. Runs alternate between the variants and the
fastest of each counts, so that other work on the machine disturbs the ratios little.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import BertTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.attention import attention_measures, attention_split
from helpers.encode import EncodedQuestions
from helpers.extract import extract_attention
from helpers.vilt import forward_raster, load_vilt
from helpers.vqa import read_vqa

COCO_SIZES = [(384, 512)] * 2 + [(384, 576)] * 3 + [(512, 384), (576, 384), (384, 384)]  # height, width
TOKENS = [8, 9, 10, 7, 12, 8, 9, 10]


def make_batch(sizes: list[tuple[int, int]], tokens: list[int]) -> dict[str, Tensor]:
    """Noise pictures and random words of these sizes, as the processor pads them."""
    shape = [max(size[axis] for size in sizes) for axis in (0, 1)]
    pixels, mask = torch.zeros(len(sizes), 3, *shape), torch.zeros(len(sizes), *shape, dtype=torch.long)
    for place, (height, width) in enumerate(sizes):
        pixels[place, :, :height, :width] = torch.randn(3, height, width)
        mask[place, :height, :width] = 1
    attention_mask = (torch.arange(max(tokens)) < torch.tensor(tokens)[:, None]).long()
    ids = torch.randint(5, 50, attention_mask.shape) * attention_mask
    return {"input_ids": ids, "attention_mask": attention_mask, "pixel_values": pixels, "pixel_mask": mask}


def reduce_stock(model, batch: dict[str, Tensor]) -> Tensor:
    """The usual way: every layer's matrices at once, then mass on text and on image for each query."""
    layers = model(**batch, output_attentions=True).attentions
    n_text = batch["input_ids"].shape[1]
    return torch.stack([torch.stack([a[..., :n_text].sum(-1), a[..., n_text:].sum(-1)]) for a in layers])


def time_alternating(variants: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Fastest run of each variant in seconds; one round warms up."""
    best = dict.fromkeys(variants, float("inf"))
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def peak_memory() -> float:
    """Most memory that this process has held so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # Linux counts in kB


def load_questions(root: str) -> tuple[Dataset, BertTokenizer]:
    """All questions of both splits, and a tokenizer that knows their words (BERT's own is on the hub)."""
    dataset = concatenate_datasets([read_vqa(root, split) for split in ("train", "val")])
    words = sorted({word for text in dataset["question"] for word in text.lower().replace("?", " ?").split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    return dataset, BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})


def bench_ratios(model, rounds: int) -> None:
    batch = make_batch(COCO_SIZES, TOKENS)
    variants = {
        "stock forward": lambda: model(**batch),
        "raster forward": lambda: forward_raster(model, batch),
        "attention_split": lambda: attention_split(model, batch),
        "attention_measures": lambda: attention_measures(model, batch),
        "stock with output_attentions, reduced": lambda: reduce_stock(model, batch),
    }
    with torch.no_grad():
        seconds = time_alternating(variants, rounds)
    stock = seconds["stock forward"]
    print(f"batch of {len(TOKENS)}, mixed COCO sizes, {torch.get_num_threads()} threads; stock {stock:.2f} s")
    for name, value in seconds.items():
        print(f"{value / stock:6.2f} x  {name}")


def bench_extraction(model, processor, root: str, batch_size: int, shard_size: int) -> None:
    dataset, processor.tokenizer = load_questions(root)
    start = time.perf_counter()
    encoded = EncodedQuestions(dataset, processor)
    print(
        f"encoding: {(time.perf_counter() - start) / len(encoded.images):.3f} s a picture, {len(encoded.images)}"
    )
    before, start = peak_memory(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        extract_attention(model, encoded, folder, batch_size, shard_size)
    seconds = (time.perf_counter() - start) / len(encoded)
    print(f"extraction: {seconds:.3f} s a question, {len(encoded)} questions, batches of {batch_size}")
    print(f"peak memory: {before:.2f} GB before, {peak_memory():.2f} GB after")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", help="folder of official VQAv2 files, of which all questions are run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--shard-size", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, processor = load_vilt("fresh-b32")
    if options.data_root:  # first, so that its peak memory is its own
        bench_extraction(model, processor, options.data_root, options.batch_size, options.shard_size)
    bench_ratios(model, options.rounds)


if __name__ == "__main__":
    main()
