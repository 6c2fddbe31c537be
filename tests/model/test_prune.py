"""Cutting heads and layers: against silencing, wrong choices, and saved and loaded again."""

import copy

import pytest
import torch

from helpers.attention.image_share import attention_split
from helpers.heads.removal import ablate_heads, mean_z
from helpers.model.forward import forward_raster, fused_attention
from helpers.model.vilt import load_vilt, name_original, prune_model

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@torch.no_grad()
def logits_of(model, encoded):
    return torch.cat([forward_raster(model, batch).logits for _, batch in encoded.batches(5)])


@pytest.mark.parametrize(
    ("heads", "layers"),
    [
        ([(3, 3), (3, 0), (3, 1)], []),
        ([(1, 2), (0, 1)], [3]),
        ([], [1, 3, 2]),
        ([[2, 0], [0, 1]], []),  # as JSON keeps them
        ([], []),
    ],
)
def test_cutting_equals_silencing(vilt, encoded, heads, layers):
    model, silent = vilt[0], copy.deepcopy(vilt[0])
    lighter = prune_model(model, heads, layers)
    rest = [layer for number, layer in enumerate(silent.vilt.encoder.layer) if number not in layers]
    with ablate_heads(silent, heads):
        silent.vilt.encoder.layer = torch.nn.ModuleList(rest)
        silenced = logits_of(silent, encoded)
    torch.testing.assert_close(logits_of(lighter, encoded), silenced, **CLOSE)
    if heads or layers:
        assert (silenced - logits_of(model, encoded)).abs().max() > 1e-3
    with fused_attention(lighter):
        torch.testing.assert_close(logits_of(lighter, encoded), silenced, **CLOSE)


def test_what_is_cut_is_counted(vilt):
    model = vilt[0]  # hidden size 64, four heads of 16
    lighter = prune_model(model, [(1, 0), (1, 2)], [2])
    head = 3 * (16 * 64 + 16) + 64 * 16
    layer = sum(parameter.numel() for parameter in model.vilt.encoder.layer[2].parameters())
    assert model.num_parameters() - lighter.num_parameters() == 2 * head + layer


def test_the_model_itself_and_the_random_state_stay(vilt, encoded):
    model, before = vilt[0], {name: weight.clone() for name, weight in vilt[0].state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    lighter = prune_model(model, [(0, 0)], [1])
    torch.testing.assert_close(torch.rand(3), expected)
    with torch.no_grad():
        for parameter in lighter.parameters():
            parameter.zero_()  # no weight is shared with the model
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name])
    assert not hasattr(model.config, "kept_heads")
    assert model.config.num_hidden_layers == 4
    assert lighter.tokenizer is model.tokenizer


@pytest.mark.parametrize(("heads", "layers", "says"), [
    ([(0, 4)], [], r"L0H4 cannot be removed: this model has \[4, 4, 4, 4\] heads"),
    ([(4, 0)], [], "L4H0 cannot be removed"),
    ([], [-1], "L-1H0 cannot be removed"),
    ([(1, 2), (0, 0), (1, 2)], [], "L1H2 is removed twice"),
    ([(2, 1)], [2], "L2H1 is removed twice"),
    ([(1, 0), (1, 1), (1, 2), (1, 3)], [], "nothing is left of L1's heads: keep one"),
    ([], [0, 1, 2, 3], "all 4 layers are removed: keep one"),
])  # fmt: skip
def test_impossible_cuts_are_refused(vilt, heads, layers, says):
    with pytest.raises(ValueError, match=says):
        prune_model(vilt[0], heads, layers)


def test_a_second_cut_counts_in_the_model_as_it_is(vilt, encoded):
    model = vilt[0]
    first = prune_model(model, [(2, 0), (3, 1)], [1])
    assert name_original(first) == [(0, [0, 1, 2, 3]), (2, [1, 2, 3]), (3, [0, 2, 3])]
    second = prune_model(first, [(1, 0), (2, 1)], [0])  # L1 is what was L2: its H0 was H1
    assert name_original(second) == [(2, [2, 3]), (3, [0, 3])]
    at_once = prune_model(model, [(2, 0), (2, 1), (3, 1), (3, 2)], [0, 1])
    torch.testing.assert_close(logits_of(second, encoded), logits_of(at_once, encoded))
    assert second.config.kept_heads == at_once.config.kept_heads
    with pytest.raises(ValueError, match=r"L1H3 cannot be removed: this model has \[4, 3, 3\]"):
        prune_model(first, [(1, 3)])
    with ablate_heads(first, [(1, 0)]):
        silenced = logits_of(first, encoded)
    cut = prune_model(model, [(2, 0), (2, 1), (3, 1)], [1])
    torch.testing.assert_close(silenced, logits_of(cut, encoded), **CLOSE)


def test_attention_of_a_lighter_model_with_equal_layers(vilt, encoded):
    """One head less in each layer: the first layer's other heads attend as before."""
    model = vilt[0]
    lighter = prune_model(model, [(layer, 1) for layer in range(4)])
    batch = encoded.collate([encoded[0], encoded[5]])
    before, after = attention_split(model, batch), attention_split(lighter, batch)
    assert after.shape == (2, 4, 3, 3, 5)
    torch.testing.assert_close(after[:, 0], before[:, 0, [0, 2, 3]], **CLOSE)
    assert mean_z(lighter, encoded).shape == (4, 3, 16)


def test_attention_of_unequal_layers_is_refused(vilt, encoded):
    lighter = prune_model(vilt[0], [(0, 1)])
    with pytest.raises(ValueError, match="as many heads"):
        attention_split(lighter, encoded.collate([encoded[0]]))


def test_a_lighter_model_is_loaded_as_it_was_saved_or_with_a_new_head(vilt, encoded, tmp_path):
    model, processor = vilt
    lighter = prune_model(prune_model(model, [(0, 1), (2, 3)], [3]), [(2, 0)])
    lighter.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_vilt(tmp_path)
    torch.testing.assert_close(logits_of(again, encoded), logits_of(lighter, encoded), **CLOSE)
    assert again.config.kept_heads == [[0, 2, 3], [0, 1, 2, 3], [1, 2]]
    assert again.config.kept_layers == [0, 1, 2]
    cut_again = prune_model(again, [(2, 1)])
    assert name_original(cut_again)[2] == (2, [1])
    other, _ = load_vilt(tmp_path, answers=["cat", "dog", "cow"], seed=1)
    assert other.config.num_labels == other.classifier[3].out_features == 3
    assert other.config.kept_heads == again.config.kept_heads
