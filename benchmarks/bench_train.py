"""How fast is a training step, and what does it hold, against the stock model's own loop?

python benchmarks/bench_train.py                        ViLT-B/32, batch 8 (CPU) or 32 and 64 (GPU)
python benchmarks/bench_train.py --data-root FOLDER     real photographs instead of generated ones

Three loops over the same questions in one run, alternating; the fastest pass of each counts.
Memory is what a pass adds to the loaded model: gradients, AdamW's state, activations, batches.
stock the model as transformers has it (eager attention), pictures decoded and resized by the
processor for every batch stock fed the same model, fed with prepared batches in random order:
what preparing alone brings ours prepared batches alike in size, raster-order embeddings, fused
attention, fused AdamW On a GPU also ours in the precision that fine-tuning takes there. Weights
are random: time does not depend on them.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from bench_prepare import find_pictures
from datasets import Dataset
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.data.encode import EncodedQuestions, Pictures, write_pictures
from helpers.model.finetune import BucketSampler, build_optimizer, choose_precision, cut
from helpers.model.forward import forward_raster, fused_attention
from helpers.model.vilt import load_vilt
from helpers.run.settings import Study

ANSWERS = [f"answer {number}" for number in range(3129)]  # as many as ViLT's own head has


def make_questions(root: str | None, folder: Path, count: int) -> tuple[Dataset, dict[int, Path]]:
    """Questions of 6 to 14 words with one answer each, and the files of their pictures."""
    files = find_pictures(root, folder, count)
    rng, keys = np.random.default_rng(0), list(files)
    chosen = [keys[number % len(keys)] for number in range(count)]
    texts = ["a " * rng.integers(6, 15) + "?" for _ in chosen]
    answers = [[ANSWERS[number]] * 10 for number in rng.integers(len(ANSWERS), size=count)]
    rows = {
        "question_id": list(range(count)),
        "image_id": chosen,
        "question": texts,
        "answers": answers,
    }
    return Dataset.from_dict(rows), files


def measure_alone(name: str, options: argparse.Namespace, batch_size: int) -> float:
    """Most memory that a pass adds to the loaded model, in GB, in a process of its own."""
    command = [sys.executable, __file__, "--only", name, "--batch-size", str(batch_size)]
    command += ["--steps", str(options.steps), "--threads", str(options.threads)]
    command += ["--data-root", options.data_root] if options.data_root else []
    return float(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def step(model: nn.Module, optimizer, loss: Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def list_loops(
    model, processor, encoded: EncodedQuestions, files: dict, batch_size: int, device: str
) -> dict:
    """Name -> a pass over all questions."""
    stock_optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    optimizer = build_optimizer(model, Study.load("colab"))
    questions = encoded.questions
    order = np.random.default_rng(0).permutation(len(encoded)).tolist()

    def process() -> Iterator[dict[str, Tensor]]:
        for part in cut(order, batch_size):
            images = [
                Image.open(files[key]).convert("RGB") for key in questions["image_id"].iloc[part]
            ]
            batch = processor(
                images, questions["question"].iloc[part].tolist(), padding=True, return_tensors="pt"
            )
            batch["labels"] = torch.stack([encoded[index]["labels"] for index in part])
            yield batch

    def prepare(indices: list[int]) -> Iterator[dict[str, Tensor]]:
        for part in cut(indices, batch_size):
            yield encoded.collate([encoded[index] for index in part])

    def run_stock(batches) -> None:
        for batch in batches:
            step(
                model,
                stock_optimizer,
                model(**{name: values.to(device) for name, values in batch.items()}).loss,
            )

    def run_ours(precision: str) -> None:
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16}
        autocast = torch.autocast(device, kinds[precision]) if precision in kinds else nullcontext()
        with fused_attention(model):
            for batch in prepare(list(BucketSampler(encoded, batch_size, seed=0))):
                with autocast:
                    loss = forward_raster(model, batch).loss
                step(model, optimizer, loss)

    loops = {
        "stock": lambda: run_stock(process()),
        "stock fed": lambda: run_stock(prepare(order)),
        "ours, fp32": lambda: run_ours("fp32"),
    }
    precision = choose_precision("auto", device)
    if precision != "fp32":
        loops[f"ours, {precision}"] = lambda: run_ours(precision)
    return loops


def bench(loops: dict[str, Callable[[], None]], steps: int, rounds: int) -> dict[str, float]:
    """Fastest pass of each loop, in steps a second."""
    seconds = dict.fromkeys(loops, np.inf)
    for _ in range(rounds):
        for name, run in loops.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: steps / best for name, best in seconds.items()}


def report(loops: dict, options: argparse.Namespace, batch_size: int) -> None:
    """Time and memory of every loop, and their ratios to the stock loop."""
    speed = bench(loops, options.steps, options.rounds)
    held = {name: measure_alone(name, options, batch_size) for name in loops}
    print(
        f"batch {batch_size}, {options.steps} steps:   steps/s   x stock    added memory   x stock"
    )
    for name in loops:
        print(
            f"  {name:<26} {speed[name]:7.3f} {speed[name] / speed['stock']:9.2f} "
            f"{held[name]:12.2f} GB "
            f"{held[name] / held['stock']:9.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-root", help="folder of official VQAv2 files, whose photographs are read"
    )
    parser.add_argument(
        "--batch-size", type=int, nargs="*", help="default: 8 on a CPU, 32 and 64 on a GPU"
    )
    parser.add_argument("--steps", type=int, default=4, help="steps a pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load_vilt("fresh-b32", device, ANSWERS)
    model.train()
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {options.threads} threads"
    print(f"{name}, torch {torch.__version__}, ViLT-B/32 with random weights, AdamW")
    for batch_size in options.batch_size or ([32, 64] if device == "cuda" else [8]):
        with tempfile.TemporaryDirectory() as folder:
            data, files = make_questions(
                options.data_root, Path(folder), options.steps * batch_size
            )
            kept = Pictures(write_pictures(files, processor.image_processor, Path(folder)))
            encoded = EncodedQuestions(data, processor, ANSWERS, kept)
            loops = list_loops(model, processor, encoded, files, batch_size, device)
            if options.only:
                before = reset_peak()
                loops[options.only]()
                print(read_peak() - before)
            else:
                report(loops, options, batch_size)


def reset_peak() -> float:
    """Let the peak start from what is held now; returns it, in GB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux
    return read_peak()


def read_peak() -> float:
    """Most memory held since the peak was reset, in GB: the GPU's, or else this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


if __name__ == "__main__":
    main()
