"""Timing in turns, paired ratios, lower precisions and memory, by hand where it can be."""

import copy
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.model import timing
from helpers.model.forward import forward_raster
from helpers.model.vilt import prune_model


def make_turns(seconds: dict[str, list[float]], questions: int = 1) -> pd.DataFrame:
    frame = pd.DataFrame(seconds).rename_axis("round").reset_index()
    turns = frame.melt("round", var_name="model", value_name="seconds")
    return turns.assign(questions=questions)


def test_ratios_are_paired_within_a_round():
    """Every round is slower than the last: only pairs tell that one model is twice as fast."""
    slow = [1.0, 2, 4, 8, 16, 32, 64]
    turns = make_turns({"whole": slow, "light": [s / 2 for s in slow]})
    table = timing.compare_turns(turns, "whole")
    assert table["model"].tolist() == ["whole", "light"]
    assert table["faster"].tolist() == [1, 2]
    assert table["low"].tolist() == table["high"].tolist() == [1, 2]
    assert table["milliseconds"].tolist() == [8000, 4000]
    assert table["rounds"].tolist() == [7, 7]


def test_interval_of_the_median_by_order_statistics():
    """Of 10 ratios the second and the ninth enclose the median with 97.9 %: binomial(10, 1/2)."""
    ratios = np.array([1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0])
    turns = make_turns({"whole": ratios.tolist(), "light": [1.0] * 10})
    row = timing.compare_turns(turns, "whole").iloc[1]
    assert row["faster"] == pytest.approx(1.55)
    assert (row["low"], row["high"]) == pytest.approx((1.2, 1.9))


@torch.no_grad()
def test_lower_precisions_answer_nearly_alike(vilt, encoded):
    model, batch = vilt[0], encoded.collate([encoded[row] for row in range(12)])
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copies = timing.lower_precisions(model)
    assert copies["bf16"].dtype == torch.bfloat16
    whole = forward_raster(model, batch).logits
    spread = whole.std()
    for each in copies.values():
        logits = forward_raster(each, batch).logits.float()
        assert 0 < (logits - whole).abs().mean() < 0.2 * spread
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name])


def test_weights_by_hand():
    layer = torch.nn.Linear(10, 6)
    assert timing.measure_weights(layer) == 4 * 66
    assert timing.measure_weights(copy.deepcopy(layer).to(torch.bfloat16)) == 2 * 66
    tied = torch.nn.Sequential(layer, layer)
    assert timing.measure_weights(tied) == 4 * 66  # held once


def test_the_ledger_by_hand():
    """Two tensors of 4,000 bytes, then one of 8,000 alone; views and known ones count nothing."""
    known = torch.zeros(1000)
    with timing.MemoryLedger([known]) as ledger:
        first = known + 1
        second = first * 2
        view = second[10:20]
        known.add_(1)
        assert ledger.peak == 8000
        del first, second, view
        third = torch.ones(2000)
    assert ledger.peak == 8000
    with timing.MemoryLedger([known]) as ledger:
        kept = [known + number for number in range(3)]
    assert ledger.peak == 12000
    assert len(kept) == 3
    assert third.numel() == 2000


def test_a_lighter_model_takes_less(vilt, encoded):
    model = vilt[0]
    lighter = prune_model(model, [(layer, head) for layer in range(4) for head in (0, 1)])
    one, many = (encoded.collate([encoded[row] for row in range(size)]) for size in (1, 12))
    whole = timing.measure_memory(model, one)
    assert timing.measure_memory(lighter, one) < whole < timing.measure_memory(model, many)
    assert whole > timing.measure_weights(model)
    assert whole == timing.measure_memory(model, one)  # counted, not sampled


def test_models_take_turns(vilt, encoded, monkeypatch):
    """Each round times every model once, warm-up rounds left out; threads come back."""
    model, seen = vilt[0], []
    models = {"whole": model, "light": prune_model(model, layers=[0])}
    names = {id(each): name for name, each in models.items()}

    def note(run):
        seen.append((names[id(run.args[0])], torch.get_num_threads()))
        return float(len(seen))

    monkeypatch.setattr(timing, "time_run", note)
    before = torch.get_num_threads()
    batches = {size: encoded.collate([encoded[row] for row in range(size)]) for size in (1, 3)}
    turns = timing.time_in_turns(models, batches, rounds=5, threads=1, seed=0)
    assert torch.get_num_threads() == before
    assert {threads for _, threads in seen} == {1}
    rounds = {tuple(name for name, _ in seen[start : start + 2]) for start in range(0, 32, 2)}
    assert rounds == {("whole", "light"), ("light", "whole")}  # in a random order
    assert len(seen) == 2 * 2 * (5 + timing.WARM_UP)
    assert len(turns) == 2 * 2 * 5
    assert turns["seconds"].min() > 2 * timing.WARM_UP  # what the warm-up took is not among them
    table = timing.compare_turns(turns, "whole")  # five rounds cannot enclose a median
    assert table["questions"].tolist() == [1, 1, 3, 3]
    assert table[["low", "high"]].isna().all(axis=None)
