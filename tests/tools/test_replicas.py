"""The embedded model and the recipe that makes it."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, ViltModel

from helpers.model.forward import forward_raster
from helpers.model.vilt import load_vilt
from phantom.questions import ask_questions
from phantom.scenes import SPLITS, make_scene, render_scene
from tools import replicas


@pytest.fixture
def float64():
    """New models are in float64, in which a training repeats to far less than 1e-8."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_a_tiny_recipe_runs_saves_loads_and_repeats(tmp_path, float64, monkeypatch):
    monkeypatch.setattr(replicas, "HELD_OUT", 10)
    first, second = tmp_path / "first", tmp_path / "second"
    facts = replicas.pretrain(first, scenes=80, steps=6, batch_size=8, seed=1)
    replicas.pretrain(second, scenes=80, steps=6, batch_size=8, seed=1)
    weights, again = (ViltModel.from_pretrained(each).state_dict() for each in (first, second))
    assert facts["weights"] == sum(tensor.numel() for tensor in weights.values())
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, again[name], rtol=0, atol=1e-8, msg=name)
    model, processor = load_vilt(first, answers=["yes", "no"])
    batch = processor(render_scene(make_scene("val", 0, 0)), "Is it?", return_tensors="pt")
    assert forward_raster(model, batch).logits.shape == (1, 2)
    assert "6 steps" in (first / "README.md").read_text()


def test_muon_steps_as_the_one_of_torch():
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((6, 6), (6, 6), (12, 6), (6, 12))]
    gradients = [[torch.randn_like(matrix) for matrix in start] for _ in range(3)]
    ends = []
    for kind in (replicas.Muon, torch.optim.Muon):
        matrices = [nn.Parameter(matrix.clone()) for matrix in start]
        optimizer = kind(matrices, lr=0.1, weight_decay=0.01)
        for step in gradients:
            for matrix, gradient in zip(matrices, step, strict=True):
                matrix.grad = gradient.clone()
            optimizer.step()
        ends.append(torch.cat([matrix.detach().flatten() for matrix in matrices]))
    assert (ends[0] - ends[1]).abs().max() < 0.02  # torch's works in bfloat16
    assert (ends[0] - torch.cat([matrix.flatten() for matrix in start])).abs().max() > 0.1


def test_plurals_are_spelled_with_a_suffix_piece():
    tokenizer = replicas.build_tokenizer(
        ["Is there a dog?", "Are there any dogs?", "A bus?", "Many buses?", "this"]
    )
    assert tokenizer.tokenize("Dogs, buses") == ["dog", "##s", ",", "bus", "##es"]
    assert tokenizer.tokenize("is this") == ["is", "this"]


def test_the_embedded_model_is_small_whole_and_knows_the_phantom():
    folder = replicas.pretrained_folder(0)
    parts = ("model.safetensors", "config.json", "tokenizer.json", "processor_config.json")
    assert all((folder / name).is_file() for name in (*parts, "README.md"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for index in range(200):
        scene = make_scene("train", 0, index)
        for asked in ask_questions(scene, np.random.default_rng(index)):
            assert tokenizer.unk_token not in tokenizer.tokenize(asked.question), asked.question


def test_pretraining_scenes_come_from_a_stream_of_their_own():
    def draw(split, **options):
        return {render_scene(make_scene(split, 0, n, **options)).tobytes() for n in range(30)}

    own = draw("pretrain", groups=1) | draw("pretrain", groups=4)
    assert SPLITS["pretrain"] not in (SPLITS["train"], SPLITS["val"])
    assert not own & (draw("train") | draw("val"))
