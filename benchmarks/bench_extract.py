"""What do measures of attention cost at ViLT-B/32 size, in time and memory?

python benchmarks/bench_extract.py                                a batch, and a generated data set
python benchmarks/bench_extract.py --data-root FOLDER             the photographs there

On a CPU; bench_gpu.py is for a GPU. One batch of mixed COCO sizes, the variants in turn: (a) the
stock forward without attentions; (b) the stock forward with output_attentions=True, reduced to the
split; (c) ours: split, and all measures. Then a data set: ours against the tutorials' way,
processor and stock forward one question at a time. Weights are random ("fresh-b32"): time does not
depend on them. Medians and ratios within a round, so that other work on the machine disturbs them
little.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from batches import make_batch, reduce_stock
from datasets import Dataset, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertTokenizer, ViltProcessor

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.attention.extract import extract_attention
from helpers.attention.image_share import attention_measures, attention_split
from helpers.data.encode import EncodedQuestions
from helpers.data.vqa import read_vqa
from helpers.model.timing import time_run
from helpers.model.vilt import load_vilt


def measure_memory(name: str, n: int, threads: int) -> float:
    """What a variant adds at its peak to the loaded model, in MB, in a process of its own."""
    torch.set_num_threads(threads)
    model = load_vilt("fresh-b32")[0]
    run = list_variants(model, make_batch(n, "cpu", torch.float32))[name]
    with torch.no_grad():
        # Linux: forget the peak so far, which was loading
        Path("/proc/self/clear_refs").write_text("5")
        before = read_status("VmRSS")
        run()
        return read_status("VmHWM") - before


def read_status(name: str) -> float:
    """A line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


def measure_rate() -> float:
    """The machine's rate of matrix products at ViLT-B/32's largest layer, in FLOP a second."""
    tokens = torch.randn(1832, 768)
    layer = torch.nn.Linear(768, 3072)
    runs = [time_run(lambda: [layer(tokens) for _ in range(10)]) for _ in range(6)]
    return 10 * 2 * 1832 * 768 * 3072 / min(runs[1:])


def count_operations(run: Callable) -> int:
    """Floating-point operations of all matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def list_variants(model, batch: dict[str, Tensor]) -> dict[str, Callable]:
    """What is compared, by name."""
    return {
        "(a) stock forward": lambda: model(**batch),
        "(b) stock, output_attentions=True, reduced": lambda: reduce_stock(model, batch),
        "(c) ours: split": lambda: attention_split(model, batch),
        "(c) ours: split, entropy and all measures": lambda: attention_measures(model, batch),
    }


def bench_batch(model, n: int, rounds: int) -> None:
    """(a), (b) and (c) on one batch: seconds, ratios within a round, added memory, operations."""
    batch = make_batch(n, "cpu", torch.float32)
    variants = list_variants(model, batch)
    turns = [{name: time_run(run) for name, run in variants.items()} for _ in range(rounds + 1)][1:]
    fresh = {
        "mp_context": multiprocessing.get_context("spawn"),
        "max_tasks_per_child": 1,
        "max_workers": 1,
    }
    with ProcessPoolExecutor(**fresh) as pool:
        settings = (n, torch.get_num_threads())
        added = {name: pool.submit(measure_memory, name, *settings).result() for name in variants}
    rate, (stock, usual, *_) = measure_rate(), variants
    shape = (
        f"{tuple(batch['pixel_values'].shape)} pixels, {batch['input_ids'].shape[1]} tokens of text"
    )
    print(f"batch {shape}; {torch.get_num_threads()} threads, {rounds} rounds")
    print(f"matrix products here: {rate / 1e9:.0f} GFLOP/s (1832 x 768 by 768 x 3072)")
    for name, run in variants.items():
        seconds = statistics.median(turn[name] for turn in turns)
        ratio = statistics.median(turn[name] / turn[stock] for turn in turns)
        memory = f"{added[name]:6.0f} MB added, {added[name] / added[usual]:.2f} of (b)"
        work = count_operations(run)
        print(
            f"{seconds:7.3f} s  {ratio:5.2f} of (a)  {memory}  "
            f"{work / 1e9:5.0f} GFLOP at {work / seconds / rate:4.0%}"
            f" of that rate  {name}"
        )


def make_questions(folder: Path, n_images: int, per_image: int) -> Dataset:
    """Noise pictures of COCO's sizes, each with a few questions of ordinary length."""
    rng, rows = np.random.default_rng(0), []
    for image_id in range(n_images):
        pixels = rng.integers(
            255, size=((480, 640), (427, 640), (640, 480))[image_id % 3] + (3,), dtype=np.uint8
        )
        path = folder / f"{image_id}.jpg"
        Image.fromarray(pixels).save(path, quality=90)
        for _ in range(per_image):
            question = " ".join(f"w{word}" for word in rng.integers(50, size=rng.integers(4, 10)))
            rows.append(
                {
                    "question_id": len(rows),
                    "image_id": image_id,
                    "question": question,
                    "image": str(path),
                }
            )

    return Dataset.from_list(rows).cast_column("image", ImageFeature())


def give_words(processor: ViltProcessor, dataset: Dataset) -> None:
    """A tokenizer that knows a data set's words: BERT's own is on the hub."""
    words = {
        word for text in dataset["question"] for word in text.lower().replace("?", " ?").split()
    }
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    processor.tokenizer = BertTokenizer(
        vocab={word: place for place, word in enumerate(vocabulary)}
    )


def bench_data(model, processor, dataset: Dataset, folder: Path, batch_size: int) -> None:
    """A whole data set: ours from prepared pictures, the tutorials' one question at a time."""
    give_words(processor, dataset)
    start = time.perf_counter()
    encoded = EncodedQuestions(dataset, processor)  # decodes and resizes each picture once
    prepared = time.perf_counter() - start
    ours = time_run(lambda: extract_attention(model, encoded, folder / "shards", batch_size, 1024))
    some = dataset.select(range(0, len(dataset), max(1, len(dataset) // 24)))

    def follow_tutorials():
        for row in some:
            inputs = processor(row["image"].convert("RGB"), row["question"], return_tensors="pt")
            reduce_stock(model, inputs)

    theirs = time_run(follow_tutorials) / len(some)
    batches = [batch for _, batch in encoded.batches(batch_size)]
    split = time_run(lambda: [attention_split(model, batch) for batch in batches])
    work = sum(count_operations(partial(attention_measures, model, batch)) for batch in batches)
    known = (split, ours, prepared, work / measure_rate())
    split, ours, prepared, products = (seconds / len(dataset) for seconds in known)
    pictures = len(encoded.sizes)
    print(
        f"\n{len(dataset)} questions about {pictures} pictures, batches of {batch_size}; "
        f"tutorials on {len(some)}"
    )
    for seconds, name in (
        (theirs, "processor and stock forward with output_attentions=True, one question at a time"),
        (split, "ours: split"),
        (ours, "ours: all measures, written to shards"),
        (ours + prepared, "the same, with resizing each picture once"),
        (products, "its matrix products alone, at the rate above: no way of measuring saves them"),
    ):
        print(f"{seconds:7.3f} s a question  {seconds / theirs:.2f}  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-root", help="folder of official VQAv2 files, of which all questions are run"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, processor = load_vilt("fresh-b32")
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        bench_batch(model, options.batch_size, options.rounds)
        if options.data_root:
            dataset = concatenate_datasets(
                [read_vqa(options.data_root, split) for split in ("train", "val")]
            )
        else:
            dataset = make_questions(Path(folder), n_images=24, per_image=4)
        bench_data(model, processor, dataset, Path(folder), options.batch_size)


if __name__ == "__main__":
    main()
