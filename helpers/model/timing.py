"""How long models take to answer, and what memory, in lower precisions too.

turns = time_in_turns({"whole": model, "light": lighter}, {1: one, 32: many}, rounds=31, threads=2)
compare_turns(turns, "whole")       # milliseconds, and how many times as fast as the whole model
"""

import copy
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils import benchmark
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.model.forward import forward_raster, fused_attention

WARM_UP = 3  # rounds that are not counted: first calls choose kernels and fill caches


def time_run(run: Callable[[], object]) -> float:
    """Seconds of one call, to the end of what it started on a GPU."""
    start = benchmark.timer()  # waits for a GPU first
    run()
    return benchmark.timer() - start


@torch.inference_mode()
def time_in_turns(
    models: Mapping[str, nn.Module],
    batches: Mapping[int, dict[str, Tensor]],
    rounds: int,
    threads: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Seconds of one forward pass, all models once a round in a new random order.

    Other work on the machine then disturbs all models alike: `benchmark.Timer` does not see to it.
    models: all on one device. batches: by the number of their questions. Columns: model, questions,
    round, seconds, of `forward_raster` with the fused attention, from pixels and tokens to logits.
    """
    names, device = list(models), next(iter(models.values())).device
    generator, rows = np.random.default_rng(seed), []
    with benchmark.set_torch_threads(threads), ExitStack() as stack:
        for model in models.values():
            stack.enter_context(fused_attention(model))
        for questions, batch in batches.items():
            inputs = {name: value.to(device) for name, value in batch.items()}
            for number in range(-WARM_UP, rounds):
                order = generator.permutation(names).tolist()
                runs = {name: partial(forward_raster, models[name], inputs) for name in order}
                seconds = {name: time_run(run) for name, run in runs.items()}
                rows += [(name, questions, number, seconds[name]) for name in names if number >= 0]
    return pd.DataFrame(rows, columns=["model", "questions", "round", "seconds"])


def compare_turns(turns: pd.DataFrame, reference: str) -> pd.DataFrame:
    """How many times as fast as the reference model each is, in pairs within a round.

    turns: of `time_in_turns`. Columns: model, questions, milliseconds (median of a pass), faster
    (median of the reference's seconds over the model's in the same round), low, high (95 %, from
    order statistics: Conover 1999, "Practical Nonparametric Statistics", section 3.2; NaN below 6
    rounds), rounds.
    """
    references, rows = turns[turns["model"] == reference], []
    paired = turns.merge(references, on=["questions", "round"], suffixes=("", "_reference"))
    for (questions, model), timed in paired.groupby(["questions", "model"], sort=False):
        ratios = (timed["seconds_reference"] / timed["seconds"]).to_numpy()
        low, high = np.nan, np.nan
        if len(ratios) >= 6:  # with fewer no two of them enclose the median with 95 % confidence
            low, high = stats.quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)
        milliseconds, faster = 1000 * timed["seconds"].median(), np.median(ratios)
        rows.append((model, questions, milliseconds, faster, low, high, len(ratios)))
    columns = ["model", "questions", "milliseconds", "faster", "low", "high", "rounds"]
    return pd.DataFrame(rows, columns=columns)


def lower_precisions(model: nn.Module) -> dict[str, nn.Module]:
    """Copies in what the device has beside float32: "fp16" on a GPU, "bf16" and "int8" on a CPU.

    int8: PyTorch's dynamic quantisation of linear layers, left out where there is none.
    """
    if model.device.type == "cuda":
        return {"fp16": copy.deepcopy(model).half()}
    copies = {"bf16": copy.deepcopy(model).bfloat16()}
    quantize = getattr(getattr(torch.ao, "quantization", None), "quantize_dynamic", None)
    if quantize is not None and torch.backends.quantized.engine != "none":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated; its successor is another package
            copies["int8"] = quantize(model, {nn.Linear}, dtype=torch.qint8)
    return copies


def measure_weights(model: nn.Module) -> int:
    """Bytes that a model's weights take, packed int8 ones included."""
    weights = [getattr(module, "weight", None) for module in model.modules()]
    packed = [weight() for weight in weights if callable(weight)]  # a packed weight is a method
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), *packed))


@torch.inference_mode()
def measure_memory(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Bytes of tensors held at the peak of a forward pass, weights included and the batch not.

    On a GPU what PyTorch's allocator counts. On a CPU what operations return (`MemoryLedger`): the
    same on every machine, without what kernels hold inside and the process takes.
    """
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    with fused_attention(model):
        if model.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            forward_raster(model, inputs)
            return measure_weights(model) + torch.cuda.max_memory_allocated() - before
        with MemoryLedger((*model.parameters(), *model.buffers(), *inputs.values())) as ledger:
            forward_raster(model, inputs)
    return measure_weights(model) + ledger.peak


class MemoryLedger(TorchDispatchMode):
    """Counts the bytes of tensors that operations make while the block runs; known: not to count.

    torch.profiler has no public peak on a CPU, and writes to stderr, into notebooks.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.held, self.peak = {}, 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(out)):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.held and storage.data_ptr() not in self.known:
                self.held[key] = storage.nbytes()
                self.peak = max(self.peak, sum(self.held.values()))
                weakref.finalize(storage, self.held.pop, key, None)
        return out
