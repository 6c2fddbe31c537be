"""On CUDA: `make gpu` runs these; `-m gpu` alone does too. Against the CPU in float32."""

import copy
import os
import signal

import pandas as pd
import pytest
import torch

from helpers.attention.image_share import attention_measures, attention_split
from helpers.model.forward import forward_raster, fused_attention, has_packed_kernel
from helpers.model.vilt import load_vilt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
BOUNDS = {torch.float32: 2e-4, torch.float16: 0.01, torch.bfloat16: 0.1}
EACH_DTYPE = pytest.mark.parametrize("dtype", BOUNDS)
SETTINGS = {"device": "cuda", "checkpoint": "fresh-small", "train_per_family": 16, "epochs": 2,
            "validation_per_family": 4, "batch_size": 16, "patience": 9}  # fmt: skip


@pytest.fixture(scope="module")
def models():
    """The same small model on the CPU and on the GPU."""
    model = load_vilt("fresh-small", answers=["yes", "no", "red"], seed=3)[0].requires_grad_(False)
    return model, copy.deepcopy(model).to("cuda")


def assert_close(found, expected, bound):
    torch.testing.assert_close(
        found.float().cpu(), expected.float(), rtol=0, atol=bound, equal_nan=True
    )


@EACH_DTYPE
def test_the_split_by_the_fused_kernel(models, batch, dtype):
    lower = copy.deepcopy(models[1]).to(dtype)
    split = attention_split(lower, batch)
    assert_close(split, attention_split(models[0], batch), BOUNDS[dtype])
    assert_close(split, attention_split(lower, batch, fused=False).cpu(), BOUNDS[dtype])


@EACH_DTYPE
def test_the_kernel_for_packed_questions_is_here(dtype):
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("no bfloat16 in this card")
    assert has_packed_kernel(torch.device("cuda", 0), dtype)


@EACH_DTYPE
@pytest.mark.parametrize("matrix", [True, False])
def test_all_measures(models, batch, dtype, matrix):
    found = attention_measures(copy.deepcopy(models[1]).to(dtype), batch, matrix)
    expected = attention_measures(models[0], batch)
    for name in set(found) & {"split", "entropy", "text_distance", "flow", "rollout", "sink"}:
        assert_close(found[name], expected[name], BOUNDS[dtype])


def test_knockout(models, batch):
    pytest.importorskip("pyarrow")
    from helpers.attention.edges import knockout

    on_cpu, on_gpu = (knockout(model, batch, [("text", "image")], [0, 1, 2]) for model in models)
    assert_close(on_gpu, on_cpu, 1e-3)


def test_a_fused_training_step_has_the_stock_gradients(models, batch):
    model = copy.deepcopy(models[1]).requires_grad_(True)
    inputs = {name: value.to("cuda") for name, value in batch.items()}
    inputs["labels"] = torch.rand(len(batch["input_ids"]), 3, device="cuda")
    model(**inputs).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with fused_attention(model):
        forward_raster(model, inputs).loss.backward()
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, parameter in model.named_parameters():
        if name in expected:
            assert (parameter.grad - expected[name]).norm() < 1e-3 * total, name


@pytest.fixture(scope="module")
def make_study(tmp_path_factory, phantom_root):
    """make_study(run name, setting=...): a small study on the GPU, prepared."""
    for package in ("datasets", "accelerate"):
        pytest.importorskip(package)
    from helpers.data import prepare
    from helpers.run.settings import Study

    places = {"data_root": str(phantom_root), "runs_root": str(tmp_path_factory.mktemp("runs"))}

    def make(name, **settings):
        study = Study.load("phantom", **places, **SETTINGS | settings, run_name=name)
        prepare.prepare_dataset(study)
        return study, prepare.load_dataset(study)

    return make


def train(study, data, on_step=lambda step, n_questions: None):
    """Fine-tune a study; `on_step` hears of each training pass. Returns its curves."""
    from helpers.model import finetune

    compute = finetune.RasterTrainer.compute_loss

    def compute_and_tell(self, model, inputs, *args, **kwargs):
        if model.training:
            on_step(self.state.global_step, len(inputs["input_ids"]))
        return compute(self, model, inputs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.RasterTrainer, "compute_loss", compute_and_tell)
        finetune.finetune(study, data)
    return pd.read_csv(study.run_dir / "model" / "training.csv")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_training_lowers_the_loss(make_study, precision):
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("no bfloat16 in this card")
    losses = train(*make_study(precision, precision=precision))["loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]


def test_a_batch_that_does_not_fit_is_halved(make_study):
    """A sixth of the free memory a question: 16 and 8 really fail, 4 fit."""
    share, seen = torch.cuda.mem_get_info()[0] // 6, []

    def take(_, n_questions):
        seen.append(n_questions)
        torch.empty(n_questions * share, dtype=torch.uint8, device="cuda")

    curves = train(*make_study("halved", precision="fp32"), take)
    assert seen[:3] == [16, 8, 4]
    assert set(seen[2:]) == {4}
    assert curves["loss"].notna().any()


def train_and_die(study, data):
    """In another process: killed in step 12 of 14."""
    train(study, data, lambda step, _: step == 12 and os.kill(os.getpid(), signal.SIGKILL))


def test_a_killed_training_goes_on(make_study, start_process):
    study, data = make_study("killed", precision="fp32")
    process = start_process(train_and_die, study, data)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    steps = []
    curves = train(study, data, lambda step, _: steps.append(step))
    assert 0 < steps[0] <= 12  # from the last checkpoint
    whole = train(*make_study("whole", precision="fp32"))
    assert curves["step"].tolist() == whole["step"].tolist()
    losses = (each["loss"].dropna().to_numpy() for each in (curves, whole))
    assert abs(next(losses) - next(losses)).max() < 0.1
