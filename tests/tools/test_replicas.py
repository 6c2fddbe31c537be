"""The embedded model and the recipe that makes it."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, ViltModel

from helpers.model.forward import forward_raster
from helpers.model.vilt import load_vilt
from phantom.questions import ask_questions
from phantom.scenes import SPLITS, make_scene, render_scene
from tools import pretrain


@pytest.fixture
def float64():
    """New models are in float64, in which a training repeats to far less than 1e-8."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_a_tiny_recipe_runs_saves_loads_and_repeats(tmp_path, float64):
    first, second = tmp_path / "first", tmp_path / "second"
    facts = pretrain.pretrain(first, scenes=80, steps=12, batch_size=16, seed=1)
    pretrain.pretrain(second, scenes=80, steps=12, batch_size=16, seed=1)
    weights, again = (ViltModel.from_pretrained(each).state_dict() for each in (first, second))
    assert facts["weights"] == sum(tensor.numel() for tensor in weights.values())
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, again[name], rtol=0, atol=1e-8, msg=name)
    model, processor = load_vilt(first, answers=["yes", "no"])
    batch = processor(render_scene(make_scene("val", 0, 0)), "Is it?", return_tensors="pt")
    assert forward_raster(model, batch).logits.shape == (1, 2)
    assert "12 steps" in (first / "README.md").read_text()


def test_plurals_are_spelled_with_a_suffix_piece():
    tokenizer = pretrain.build_tokenizer(
        ["Is there a dog?", "Are there any dogs?", "A bus?", "Many buses?", "this"]
    )
    assert tokenizer.tokenize("Dogs, buses") == ["dog", "##s", ",", "bus", "##es"]
    assert tokenizer.tokenize("is this") == ["is", "this"]


def test_positions_start_as_a_row_and_a_column_and_answers_at_their_log_odds():
    model = pretrain.build_model(20, ["a", "b"])
    pretrain.start_weights(model, torch.tensor([0, 0, 0, 1]))
    places = model.vilt.embeddings.position_embeddings[0, 1:].view(4, 4, -1)
    columns = places - places[:, :1]
    torch.testing.assert_close(columns, columns[:1].expand(4, -1, -1), rtol=0, atol=1e-4)
    assert columns.norm(dim=-1)[:, 1:].min() > 0.1
    assert torch.allclose(model.classifier[3].bias.sigmoid(), torch.tensor([0.75, 0.25]), atol=1e-5)


def test_the_embedded_model_is_small_whole_and_knows_the_phantom():
    folder = pretrain.CHECKPOINT
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
