"""Activation patching against a model whose hooks hand over a head's output, and pairs by hand."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import encode_noise

from helpers.attention.extract import measure_attention
from helpers.data import prepare
from helpers.heads import removal
from helpers.model.finetune import load_finetuned
from helpers.model.forward import forward_raster


@pytest.fixture(scope="module")
def alike(vilt):
    """Four questions about each of three pictures; the first two pictures have one shape."""
    return encode_noise(vilt[1], [(64, 96), (64, 96), (96, 64), (64, 96)])


@torch.no_grad()
def run_hooked(model, batch, layer, hook):
    """Logits of a question with a hook on what a layer's output projection reads."""
    dense = model.vilt.encoder.layer[layer].attention.output.dense
    handle = dense.register_forward_pre_hook(hook)
    logits = forward_raster(model, batch).logits[0]
    handle.remove()
    return logits


def test_patching_equals_hooks(vilt, alike):
    model, pairs = vilt[0], [(0, 4), (5, 13), (7, 3)]
    change, total_change = removal.patch_heads(model, alike, pairs, batch_size=2)
    assert change.shape == (3, 4, 4)
    for pair, layer in itertools.product(range(3), range(4)):
        source, target = (alike.collate([alike[index]]) for index in pairs[pair])
        zs = []
        of_source = run_hooked(model, source, layer, lambda _, args, zs=zs: zs.append(args[0]))
        of_target = run_hooked(model, target, layer, lambda *_: None)
        a, b = of_source.argmax(), of_target.argmax()
        base, whole = float(of_target[a] - of_target[b]), float(of_source[a] - of_source[b])
        assert total_change[pair] == pytest.approx(whole - base, abs=1e-4)
        for head in range(4):
            columns = slice(16 * head, 16 * (head + 1))

            def hand_over(_, args, columns=columns, z=zs[0]):
                patched = args[0].clone()
                patched[..., columns] = z[..., columns]
                return (patched,)

            logits = run_hooked(model, target, layer, hand_over)
            expected = float(logits[a] - logits[b]) - base
            assert change[pair, layer, head] == pytest.approx(expected, abs=1e-4)


def test_another_word_is_asked_about_the_same_picture(vilt, encoded):
    """Against patching two rows that show one picture."""
    some = encoded.select([0, 1, 2, 3, 9])
    some.input_ids[4] = some.input_ids[0].clone()
    some.input_ids[4][2] += 1
    pairs = removal.find_rewordings(some)
    assert pairs == [(4, 0), (0, 4)]

    other, row = pairs[-1]
    asked = some.select([other, row])  # both about the second's picture
    asked.image_of = asked.image_of[[1, 1]]
    expected = removal.patch_heads(vilt[0], asked, [(0, 1)])
    found = removal.patch_heads(vilt[0], some, pairs, reworded=True)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[-1:], two, atol=1e-4)


def test_pairs_by_hand():
    words = ["what", "what", "what", "why", "what", "what", "what"]
    encoded = SimpleNamespace(
        input_ids=[torch.tensor([101, len(word), ord(word[-1]), 102]) for word in words],
        image_of=np.array([0, 1, 2, 3, 4, 0, 5]),
        sizes=[(32, 32), (32, 32), (32, 32), (32, 32), (64, 32), (32, 32)],
    )
    answers = ["cat", "cat", "dog", "dog", "dog", "dog", "owl"]
    correct = [True] * 7
    # 0 and 1 have one answer; 2 differs from 0; 3 asks something else; 4 has another shape; 5 shows
    # 0's image again; 6 pairs with what is left
    assert removal.find_pairs(encoded, answers, correct) == [(0, 2), (1, 6)]
    correct[0] = False
    assert removal.find_pairs(encoded, answers, correct) == [(1, 2), (5, 6)]
    assert removal.find_pairs(encoded, answers, [False] * 7) == []


def test_effects_are_ratios_of_sums():
    change, total_change = np.array([1.0, 3.0, 0.0])[:, None, None], np.array([2.0, 4.0, 10.0])
    effect = removal.patching_effect(change, total_change)
    assert effect.shape == (3, 1, 1)
    assert effect.mean() == pytest.approx(100 * 4 / 16)
    # delta method: a ratio r of means varies as (change - r total_change) / mean(total_change)
    residual = 100 * (change[:, 0, 0] - 0.25 * total_change) / (16 / 3)
    np.testing.assert_allclose(effect[:, 0, 0] - 25, residual)
    assert removal.patching_effect(np.zeros((0, 1, 1)), np.zeros(0)).shape == (0, 1, 1)


@pytest.mark.slow
def test_a_study_patches_pairs_once(study, finetuned):
    study = replace(study, models=("data/replicas/0",))  # answers well enough for pairs
    model, processor = load_finetuned(study)
    data = finetuned[2]["validation"]
    table = measure_attention(study, model, prepare.encode(study, data, processor))
    pairs, change, total_change = removal.measure_patching(study, model, processor, data, table)
    assert len(pairs) > 0
    assert change.shape == (len(pairs), 4, 4)
    assert (total_change > 0).all()  # each question's own answer is the best of the two
    questions, images = np.array(data["question"]), np.array(data["image_id"])
    assert (questions[pairs[:, 0]] == questions[pairs[:, 1]]).all()
    assert len(np.unique(images[pairs])) == 2 * len(pairs)
    again = removal.measure_patching(study, None, processor, data, table)
    np.testing.assert_array_equal(again[1], change)
