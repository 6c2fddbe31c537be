"""What does a GPU say? `make gpu`: one command, under seven minutes on a data-centre card.

python benchmarks/bench_gpu.py                          status 1: a part failed; 3: no GPU is here
python benchmarks/bench_gpu.py --small --device cpu     a rehearsal of the benchmarks

Nothing is downloaded, and what is not installed is skipped by name. In turn: the tests marked gpu;
passes at ViLT-B/32 size with random weights, in time and in memory added; a fine-tuning step
against the stock loop; measures of a data set; the study, smaller than `make run`'s. Ends in one
table, which runs/gpu.json holds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from batches import DTYPES, make_batch, reduce_stock

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.attention.edges import knockout_measures
from helpers.attention.image_share import attention_measures, attention_split
from helpers.heads.removal import removal_measures
from helpers.model.forward import forward_raster, fused_attention, has_packed_kernel
from helpers.model.timing import time_run
from helpers.model.vilt import load_vilt

ROOT = Path(__file__).parents[1]
NO_GPU = 3
SECONDS = 400  # in all; the study gets what the rest leaves
TESTS = ("pytest",)  # packages, and those of the study
STUDY = ("datasets", "papermill", "nbconvert", "ipykernel", "accelerate", "pydantic", "statsmodels",
         "seaborn", "pyarrow", "ipywidgets")  # fmt: skip
SMALLER = ("models=data/replicas/0,data/replicas/1", "train_scenes=300", "validation_scenes=120",
           "min_validation=10", "random_models=4", "epochs=1", "knockout_questions=60",
           "joint_sets=60", "pair_questions=60", "ablation_questions=100", "prune_draws=4",
           "faithfulness_questions=20", "latency_rounds=3")  # fmt: skip
STOCK, MODES = "stock forward", ("zero_head", "zero_attention", "skip_layer")


def list_passes(model: torch.nn.Module, batch: dict) -> dict[str, Callable]:
    """What is compared, by name."""
    return {
        STOCK: partial(model, **batch),
        "stock, output_attentions": partial(reduce_stock, model, batch),
        "split, fused": partial(attention_split, model, batch, fused=True),
        "split, from patterns": partial(attention_split, model, batch, fused=False),
        "measures without patterns": partial(attention_measures, model, batch, matrix=False),
        "all measures": partial(attention_measures, model, batch),
    }


def measure(run: Callable, device: str, rounds: int) -> tuple[float, float]:
    """Median seconds of a call, and MB that it adds to what is held (0 on a CPU: not measured)."""
    if device == "cpu":
        return statistics.median(time_run(run) for _ in range(rounds)), 0
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    added = (torch.cuda.max_memory_allocated() - before) / 1e6
    return statistics.median([time_run(run) for _ in range(rounds + 2)][2:]), added


def bench_passes(options: argparse.Namespace, ends: float) -> Iterator[dict]:
    """A row for each precision, batch size and pass."""
    for name, dtype in DTYPES.items():
        model = load_vilt(options.model, options.device, answers=[*map(str, range(3129))])[0]
        model = model.to(dtype).requires_grad_(False)
        for n in options.batch_sizes:
            batch, stock = make_batch(n, options.device, dtype), None
            for what, run in list_passes(model, batch).items():
                row = {"precision": name, "batch": n, "what": what}
                if time.time() > ends:
                    yield row | {"skipped": "no time is left"}
                    continue
                try:
                    seconds, added = measure(run, options.device, options.rounds)
                except torch.cuda.OutOfMemoryError:
                    yield row | {"skipped": "out of memory"}
                    continue
                stock = seconds if what == STOCK else stock
                ratio = None if stock is None else seconds / stock
                yield row | {"ms": 1e3 * seconds, "of_stock": ratio, "added_mb": added}


def bench_training(options: argparse.Namespace) -> Iterator[dict]:
    """A fine-tuning step on one batch, AdamW, a loop each: rows as of `bench_passes`."""
    n, stock, half = options.batch_sizes[-1] // 2, None, "fp16"
    if options.device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False):
        half = "bf16"
    for what, precision in (("stock", "fp32"), ("ours", "fp32"), ("ours", half)):
        model = load_vilt(options.model, options.device, answers=[*map(str, range(3129))])[0]
        batch, ours = make_batch(n, options.device, torch.float32), what == "ours"
        batch["labels"] = torch.rand(n, 3129, device=options.device)
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-6, fused=ours)
        forward = partial(forward_raster, model, batch) if ours else partial(model, **batch)
        run = partial(train_once, forward, optimizer, options.device, DTYPES[precision])
        with fused_attention(model) if ours else nullcontext():
            seconds, added = measure(run, options.device, options.rounds)
        stock = stock or seconds
        row = {"precision": precision, "batch": n, "what": f"training step, {what}"}
        yield row | {"ms": 1e3 * seconds, "of_stock": seconds / stock, "added_mb": added}


@torch.no_grad()
def bench_data(options: argparse.Namespace) -> Iterator[dict]:
    """Measures of a data set of four questions a picture, decoded and resized before; a question.

    Knockout: seven directions in all spans of layers. Removal: each head, each layer.
    """
    from bench_extract import give_words, make_questions  # these need datasets

    from helpers.data.encode import EncodedQuestions

    model, processor = load_vilt(options.model, options.device, answers=[*map(str, range(3129))])
    with tempfile.TemporaryDirectory() as folder:
        data = make_questions(Path(folder), options.batch_sizes[-1], 4)
        give_words(processor, data)
        encoded = EncodedQuestions(data, processor)
    size, remove = options.batch_sizes[-1], partial(removal_measures, modes=MODES)
    measures = ((attention_split, "split", len(data)),
                (attention_measures, "all measures", len(data)),
                (knockout_measures, "knockout", size), (remove, "removal", size))  # fmt: skip
    for name in ("fp32", "fp16"):
        model = model.to(DTYPES[name]).requires_grad_(False)
        for function, what, n in measures:
            run = partial(measure_questions, function, model, encoded, n, size)
            seconds, added = measure(run, options.device, 1)
            row = {"precision": name, "batch": size, "what": f"{what}, a question"}
            yield row | {"ms": 1e3 * seconds / n, "added_mb": added}


def measure_questions(
    function: Callable, model: torch.nn.Module, encoded: Sequence, n: int, size: int
) -> None:
    """A measure of the first questions of a data set, which are batched on the way."""
    for _, batch in encoded.batches(size, range(n)):
        function(model, batch)


def train_once(
    forward: Callable, optimizer: torch.optim.Optimizer, device: str, dtype: torch.dtype
) -> None:
    """One step of a loop; other precisions than float32 by autocast."""
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        loss = forward().loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def run_elsewhere(packages: tuple[str, ...], command: list[str], seconds: float) -> dict:
    """A command in a process of its own, ended after `seconds`: its status and last lines."""
    if lacking := [name for name in packages if find_spec(name) is None]:
        return {"skipped": f"not installed: {', '.join(lacking)}"}
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    begun, options = time.time(), {"cwd": ROOT, "env": environment, "text": True}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([sys.executable, "-m", *command], **options, **streams)
    try:
        said, ended = process.communicate(timeout=max(1, seconds))[0], process.returncode
    except subprocess.TimeoutExpired:
        process.terminate()
        said, ended = process.communicate()[0], f"stopped after {seconds:.0f} s"
    lines = said.strip().splitlines()
    return {"ended": ended, "seconds": time.time() - begun, "said": lines}


def describe_machine(device: str) -> dict:
    """Card, versions, and which kernel splits attention in which precision."""
    names = ("torch", "transformers", *TESTS, *STUDY)
    versions = {name: metadata.version(name) for name in names if find_spec(name)}
    kernels = {name: has_packed_kernel(torch.device(device), kind) for name, kind in DTYPES.items()}
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU: a rehearsal"
    return {"card": card, "versions": versions, "packed_kernel": kernels}


def format_row(row: dict) -> str:
    """A line of the table."""
    head = f"{row['precision']:5} {row['batch']:3}  {row['what']:34}"
    if "skipped" in row:
        return f"{head} {row['skipped']}"
    ratio = f"{row['of_stock']:6.2f} of stock" if "of_stock" in row else " " * 15
    return f"{head} {row['ms']:9.2f} ms {ratio} {row['added_mb']:8.0f} MB"


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a toy model, for a rehearsal")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was run or measured.")
        return NO_GPU
    options.model, options.batch_sizes, options.rounds = "fresh-b32", (1, 16, 64), 7
    if options.small:
        options.model, options.batch_sizes, options.rounds = "fresh-small", (1, 2), 1
    ends, report, failed = time.time() + SECONDS, {"machine": describe_machine(options.device)}, []
    print(json.dumps(report["machine"], indent=1), flush=True)
    if options.device == "cuda":
        command = ["pytest", "-m", "gpu", "tests/test_gpu.py"]
        report["tests"] = run_elsewhere(TESTS, command, 150)
        print(
            "tests", *list(report["tests"].get("said", report["tests"].values()))[-40:], sep="\n  "
        )
    report["passes"] = rows = []
    with torch.no_grad():
        for row in bench_passes(options, ends - 120):
            rows.append(row)
            print(format_row(row), flush=True)
    for bench in (bench_training, bench_data):
        try:
            for row in bench(options):
                rows.append(row)
                print(format_row(row), flush=True)
        except ImportError as error:
            print(f"{bench.__name__}: {error}")
        except RuntimeError as error:
            failed.append(f"{bench.__name__}: {error}")
    if options.device == "cuda":
        command = ["tools.run_notebooks", "--run-name", "gpu", "--set", *SMALLER]
        report["study"] = run_elsewhere(STUDY, command, ends - time.time())
        print(
            "study", *list(report["study"].get("said", report["study"].values()))[-40:], sep="\n  "
        )
    failed += [part for part in ("tests", "study") if report.get(part, {}).get("ended", 0) != 0]
    report["failed"] = failed
    path = ROOT / "runs" / "gpu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    print(
        f"\n{report['machine']['card']}, torch {torch.__version__}",
        *map(format_row, rows),
        sep="\n",
    )
    print(f"failed: {', '.join(failed) or 'nothing'}; {path.relative_to(ROOT)} holds all of it")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
