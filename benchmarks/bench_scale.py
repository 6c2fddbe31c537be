"""Does memory stay flat when questions are many, and how long does summarising a large table take?

python benchmarks/bench_scale.py       extraction of 1,000 and 10,000, a table of 200,000 questions
python benchmarks/bench_scale.py --questions 20000     a smaller table

Extraction: the phantom's ViLT with new answers, each count of questions in a process of its own;
memory is what the extraction adds at its peak to the loaded model and questions. The table:
generated numbers at ViLT-B/32's 12 layers of 12 heads, 5 questions an image, written by
`extract_attention` itself and dropped from the disk cache; then a process that has two cores
reads it and bootstraps over images: excess image share of [CLS] and words and entropy by layer
and head, and the excess of [CLS] by family. Peak memory is the whole process's; seconds are
without its imports.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from bench_extract import make_questions, read_status
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.attention.extract import extract_attention, read_attention
from helpers.data.encode import EncodedQuestions
from helpers.model.vilt import load_vilt
from helpers.stats.bootstrap import bootstrap_by_group, bootstrap_mean

ROOT = Path(__file__).parents[1]
COUNTS = (1000, 10_000)  # questions extracted
PICTURES = 20  # that they share
GRID = (12, 16)  # rows and columns of patches in the generated table
PER_IMAGE, FAMILIES = 5, 10
HEADS = ("layer", "head")
SHAPES = {  # of `attention_measures`, after the question
    "split": (12, 12, 3, 5), "entropy": (12, 12, 3), "text_distance": (12, 12),
    "patch_distance": (12, 12), "value_norm": (12, 12, 3, 5), "sink": (12, 12, 3, 2),
    "flow": (12, 5, 5), "rollout": (5,),
}  # fmt: skip


def measure_extraction(count: int, shard_size: int) -> None:
    """Print what extraction adds at its peak to the loaded model and questions, in MB."""
    model, processor = load_vilt(ROOT / "data" / "phantom-vilt", answers=["yes", "no"])
    with tempfile.TemporaryDirectory() as folder:
        encoded = EncodedQuestions(
            make_questions(Path(folder), PICTURES, count // PICTURES), processor
        )
        # Linux: forget the peak so far, which was loading
        Path("/proc/self/clear_refs").write_text("5")
        before = read_status("VmRSS")
        extract_attention(
            model, encoded, Path(folder) / "shards", batch_size=64, shard_size=shard_size
        )
        print(read_status("VmHWM") - before)


def bench_extraction(threads: int, shard_size: int) -> None:
    """Peaks of few and many questions, their ratio, and the growth a question."""
    runs = [
        run_alone(threads, "--extract", str(count), "--shard-size", str(shard_size)).split()
        for count in COUNTS
    ]
    few, many = (float(run[-1]) for run in runs)
    growth = 1e6 * (many - few) / (COUNTS[1] - COUNTS[0])
    print(
        f"extraction, shards of {shard_size}: {few:.0f} MB added for {COUNTS[0]:,} questions, "
        f"{many:.0f} MB for "
        f"{COUNTS[1]:,}: {many / few:.2f} x, {growth:.0f} bytes a question"
    )


def run_alone(threads: int, *arguments: str) -> str:
    """What this script prints in a process of its own that has so many cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS")
    return subprocess.run(
        [sys.executable, __file__, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **dict.fromkeys(names, str(len(cores))), "TQDM_DISABLE": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    ).stdout


class GeneratedQuestions:
    """What extraction needs of EncodedQuestions: 4 to 11 words, pictures of one size."""

    def __init__(self, count: int):
        rng, numbers = np.random.default_rng(0), np.arange(count)
        families = [f"family {number}" for number in rng.integers(FAMILIES, size=count)]
        columns = {"question_id": numbers, "image_id": numbers // PER_IMAGE, "family": families}
        self.questions, self.words = (
            pd.DataFrame(columns),
            torch.from_numpy(rng.integers(4, 12, count)),
        )

    def __len__(self) -> int:
        return len(self.questions)

    def batches(
        self, batch_size: int, rows: range
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        for start in range(rows.start, rows.stop, batch_size):
            indices = list(range(start, min(start + batch_size, rows.stop)))
            text = torch.arange(int(self.words.max()) + 2) < self.words[indices, None] + 2
            picture_of = torch.zeros(len(indices), dtype=torch.long)
            pixels = torch.ones(1, *GRID, dtype=torch.bool)  # one pixel a patch
            yield (
                indices,
                {"attention_mask": text.long(), "pixel_mask": pixels, "picture_of": picture_of},
            )


class GeneratedModel(nn.Module):
    """As much of a ViLT-B/32 as extraction asks for."""

    config = SimpleNamespace(
        num_hidden_layers=12, num_attention_heads=12, patch_size=1, id2label={0: "yes", 1: "no"}
    )
    dtype = torch.float32


def generate_measures(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Noise of every measure's type and shape; splits sum to 1."""
    n = len(batch["attention_mask"])
    found = {name: torch.rand(n, *shape) for name, shape in SHAPES.items()}
    found["top_patch"] = torch.randint(GRID[0] * GRID[1], (n, 12, 12, 3))
    found["logits"] = torch.rand(n, 2)
    found["split"] /= found["split"].sum(-1, keepdim=True)
    return found


def write_table(folder: Path, count: int) -> None:
    """Shards of generated numbers, which the disk cache no longer holds."""
    start = time.perf_counter()
    extract_attention(
        GeneratedModel(), GeneratedQuestions(count), folder, 512, 4096, measure=generate_measures
    )
    seconds, paths = time.perf_counter() - start, sorted(folder.glob("part-*"))
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    size = sum(path.stat().st_size for path in paths)
    print(
        f"table: {count:,} questions x 144 heads, {len(SHAPES) + 1} measures, {len(paths)} shards, "
        f"{size / 1e9:.2f} GB "
        f"({size / count / 1e3:.1f} KB a question), written in {seconds:.0f} s"
    )


def summarise_table(folder: str, draws: int) -> None:
    """Read the table, bootstrap over images, and print seconds and peak memory after each part."""
    begun = time.perf_counter()
    table = timed("questions", lambda: read_attention(folder))
    images, families = (table.questions[name].to_numpy() for name in ("image_id", "family"))
    excess = timed("excess image share, read", lambda: table.excess)
    timed("  of [CLS] and words, by head", lambda: bootstrap_mean(excess[..., :2], images, draws))
    timed(
        "  of [CLS], by head and family",
        lambda: bootstrap_by_group(excess[..., 0], families, images, draws, axes=HEADS),
    )
    entropy = timed("entropy, read", lambda: table.entropy)
    timed("  by head", lambda: bootstrap_mean(entropy, images, draws))
    print(
        f"all: {time.perf_counter() - begun:.1f} s and at most {peak_memory():.2f} GB "
        f"on {len(os.sched_getaffinity(0))} cores, {draws} draws"
    )


def timed(name: str, run: Callable):
    """What `run` returns; prints its seconds, and the process's peak memory so far."""
    start = time.perf_counter()
    found = run()
    print(f"  {name:<32} {time.perf_counter() - start:6.1f} s   peak {peak_memory():.2f} GB")
    return found


def peak_memory() -> float:
    """Most memory that this process has held, in GB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=200_000, help="in the generated table")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--shard-size", type=int, default=512, help="questions a shard that is extracted"
    )
    parser.add_argument("--extract", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.extract:
        measure_extraction(options.extract, options.shard_size)
    elif options.read:
        summarise_table(options.read, options.draws)
    else:
        bench_extraction(options.threads, options.shard_size)
        with tempfile.TemporaryDirectory() as folder:
            write_table(Path(folder), options.questions)
            print(
                run_alone(options.threads, "--read", folder, "--draws", str(options.draws)), end=""
            )


if __name__ == "__main__":
    main()
