"""How long a model takes to answer, and what memory: models in turn, so that other work disturbs all alike.

turns = time_in_turns({"whole": model, "light": lighter}, {1: one, 32: many}, rounds=31, threads=2)
compare_turns(turns, "whole")       # seconds, and how many times as fast as the whole model
"""

import copy
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.model.forward import forward_raster, fused_attention

HALF = {"cuda": ("fp16", torch.float16), "cpu": ("bf16", torch.bfloat16)}
WARM_UP = 3  # rounds that are not counted: first calls choose kernels and fill caches


@contextmanager
def fix_threads(threads: int) -> Iterator[None]:
    """Inside, PyTorch computes with so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def time_in_turns(
    models: Mapping[str, nn.Module],
    batches: Mapping[int, dict[str, Tensor]],
    rounds: int,
    threads: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Seconds of one forward pass, all models once a round in a new random order.

    Columns: model, questions, round, seconds. models: all on one device. batches: by the number of their
    questions. The pass is `forward_raster` with the fused attention, from pixels and words to logits:
    resizing pictures and cutting words into pieces is left out. Three rounds before the first warm up.
    """
    names, device = list(models), next(iter(models.values())).device
    generator, rows = np.random.default_rng(seed), []
    with fix_threads(threads), ExitStack() as stack:
        for model in models.values():
            stack.enter_context(fused_attention(model))
        for questions, batch in batches.items():
            held = {name: value.to(device) for name, value in batch.items()}
            for number in range(-WARM_UP, rounds):
                order = generator.permutation(names).tolist()
                seconds = {name: time_pass(models[name], held) for name in order}
                rows += [(name, questions, number, seconds[name]) for name in names if number >= 0]
    return pd.DataFrame(rows, columns=["model", "questions", "round", "seconds"])


def time_pass(model: nn.Module, batch: dict[str, Tensor]) -> float:
    """Seconds of one forward pass, to the end of what it started on a GPU."""
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    forward_raster(model, batch)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare_turns(turns: pd.DataFrame, reference: str) -> pd.DataFrame:
    """How many times as fast as the reference model each is, in pairs within a round.

    turns: of `time_in_turns`. Columns: model, questions, seconds (median of a pass), faster (median of the
    reference's seconds over the model's own in the same round), low, high (its 95 % interval, from order
    statistics: Conover 1999, "Practical Nonparametric Statistics", section 3.2; NaN below 6 rounds), rounds.
    """
    rows = []
    for (questions, model), own in turns.groupby(["questions", "model"], sort=False):
        both = turns[(turns["questions"] == questions) & (turns["model"] == reference)]
        paired = own.merge(both, on="round", suffixes=("", "_reference"))
        ratios = (paired["seconds_reference"] / paired["seconds"]).to_numpy()
        low, high = np.nan, np.nan
        if len(ratios) >= 6:  # with fewer no two of them enclose the median with 95 % confidence
            low, high = stats.quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)
        rows.append(
            (model, questions, own["seconds"].median(), np.median(ratios), low, high, len(ratios))
        )
    columns = ["model", "questions", "seconds", "faster", "low", "high", "rounds"]
    return pd.DataFrame(rows, columns=columns)


def lower_precisions(model: nn.Module) -> dict[str, nn.Module]:
    """Copies in what the device has beside float32: "fp16" on a GPU, "bf16" and "int8" on a CPU.

    int8: weights of linear layers, activations quantised as they come (PyTorch's dynamic quantisation); left
    out where this PyTorch or this CPU has none.
    """
    name, dtype = HALF[model.device.type]
    copies = {name: copy.deepcopy(model).to(dtype)}
    if model.device.type == "cpu" and (quantized := quantize_int8(model)) is not None:
        copies["int8"] = quantized
    return copies


def quantize_int8(model: nn.Module) -> nn.Module | None:
    """A copy on the CPU with linear layers in int8, or None where PyTorch cannot."""
    quantize = getattr(getattr(torch.ao, "quantization", None), "quantize_dynamic", None)
    if quantize is None or torch.backends.quantized.engine == "none":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated; its successor is another package
        return quantize(model, {nn.Linear}, dtype=torch.qint8)


def measure_weights(model: nn.Module) -> int:
    """Bytes that a model's weights take, packed int8 ones included."""
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    weights = [getattr(module, "weight", None) for module in model.modules()]
    packed = [
        weight() for weight in weights if callable(weight)
    ]  # a method where the weight is packed
    return sum(tensor.nbytes for tensor in (*held.values(), *packed))


@torch.inference_mode()
def measure_memory(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Bytes of tensors held at the peak of a forward pass, weights included and the batch not.

    On a GPU what PyTorch's allocator counts. On a CPU what operations return, counted as it comes and goes:
    the same on every machine, without what kernels hold inside and what the process itself takes.
    """
    held = {name: value.to(model.device) for name, value in batch.items()}
    with fused_attention(model):
        if model.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            forward_raster(model, held)
            return measure_weights(model) + torch.cuda.max_memory_allocated() - before
        known = (*model.parameters(), *model.buffers(), *held.values())
        with MemoryLedger(known) as ledger:
            forward_raster(model, held)
    return measure_weights(model) + ledger.peak


class MemoryLedger(TorchDispatchMode):
    """Counts the bytes of tensors that operations make inside, while they live; known: those not to count."""

    def __init__(self, known):
        super().__init__()
        self.held, self.peak = {}, 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage) -> None:
        """Count a storage that is new, until it is gone."""
        key = storage._cdata
        if key in self.held or storage.data_ptr() in self.known:
            return
        self.held[key] = storage.nbytes()
        self.peak = max(self.peak, sum(self.held.values()))
        weakref.finalize(storage, self.held.pop, key, None)
