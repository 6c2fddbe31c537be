"""Ablation against models edited by hand: heads, all heads of a layer, whole layers."""

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch

from helpers.attention.extract import extract_attention, read_attention
from helpers.data.vqa import vqa_accuracy
from helpers.heads import removal as ablate
from helpers.model.vilt import forward_raster, predict


def slice_of(model, head):
    size = model.config.hidden_size // model.config.num_attention_heads
    return slice(head * size, (head + 1) * size)


def edit_model(model, chosen, means=None):
    """A copy in which the heads' columns of the output projection are 0, and its bias holds their means."""
    edited = copy.deepcopy(model)
    for layer, head in chosen:
        dense = edited.vilt.encoder.layer[layer].attention.output.dense
        columns = slice_of(model, head)
        with torch.no_grad():
            if means is not None:
                dense.bias += dense.weight[:, columns] @ means[layer, head]
            dense.weight[:, columns] = 0
    return edited


@torch.no_grad()
def logits_of(model, encoded):
    return torch.cat([forward_raster(model, batch).logits for _, batch in encoded.batches(5)])


@pytest.mark.parametrize("chosen", [[(0, 0)], [(3, 3)], [(1, 2), (1, 0), (2, 1)]])
@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_ablation_equals_an_edited_model(vilt, encoded, chosen, mode):
    model = vilt[0]
    means = (
        torch.randn(4, 4, 16, generator=torch.Generator().manual_seed(0))
        if mode == "mean"
        else None
    )
    intact = logits_of(model, encoded)
    with ablate.ablate_heads(model, chosen, mode, means):
        ablated = logits_of(model, encoded)
    torch.testing.assert_close(
        ablated, logits_of(edit_model(model, chosen, means), encoded), atol=1e-5, rtol=1e-4
    )
    assert (ablated - intact).abs().max() > 1e-3
    torch.testing.assert_close(logits_of(model, encoded), intact)  # the hooks have left


@torch.no_grad()
def test_mean_z_equal_a_walk_over_single_questions(vilt, encoded):
    model = vilt[0]
    contexts = [[] for _ in model.vilt.encoder.layer]
    with pytest.MonkeyPatch.context() as patch:
        for kept, layer in zip(contexts, model.vilt.encoder.layer, strict=True):
            inner = layer.attention.output.forward

            def record(hidden, residual, kept=kept, inner=inner):
                kept.append(hidden[0])
                return inner(hidden, residual)

            patch.setattr(layer.attention.output, "forward", record)
        for index in range(len(encoded)):  # alone, a question has no padding
            forward_raster(model, encoded.collate([encoded[index]]))
    contexts[-1] = [kept[:1] for kept in contexts[-1]]  # of the last layer only [CLS] is read
    expected = torch.stack([torch.cat(kept).mean(0).reshape(4, 16) for kept in contexts])
    torch.testing.assert_close(
        ablate.mean_z(model, encoded, batch_size=5), expected, atol=1e-5, rtol=1e-4
    )
    some = ablate.mean_z(model, encoded, indices=[0])
    torch.testing.assert_close(
        some, torch.stack([kept[0].mean(0).reshape(4, 16) for kept in contexts])
    )


def test_hooks_leave_after_an_error(vilt):
    model = vilt[0]
    with pytest.raises(KeyError), ablate.ablate_heads(model, [(0, 1)]):
        raise KeyError
    assert not any(
        layer.attention.output.dense._forward_pre_hooks for layer in model.vilt.encoder.layer
    )


@pytest.mark.parametrize(("chosen", "mode", "means", "says"), [
    ([(4, 0)], "zero", None, "L4H0 is not in this model"),
    ([(0, 1), (0, 4)], "zero", None, "L0H4 is not in this model"),
    ([(0, -1)], "zero", None, "L0H-1 is not in this model"),
    ([(0, 0)], "mean", None, "means=mean_z"),
    ([(0, 0)], "half", None, "'half'"),
])  # fmt: skip
def test_impossible_ablations_are_refused(vilt, chosen, mode, means, says):
    with pytest.raises(ValueError, match=says), ablate.ablate_heads(vilt[0], chosen, mode, means):
        pass


def test_train_mode_is_refused(vilt, encoded):
    model = copy.deepcopy(vilt[0]).train()
    with pytest.raises(ValueError, match=r"model\.eval"):
        ablate.removal_measures(model, encoded.collate([encoded[0]]), torch.zeros(4, 4, 16))


def vary_answers(model, encoded):
    """A copy whose answers differ between questions: an untrained one tends to give all the same."""
    varied = copy.deepcopy(model)
    with torch.no_grad():
        varied.classifier[3].bias -= logits_of(model, encoded).mean(0)
    return varied


@torch.no_grad()
def answer_each(model, encoded):
    """Logits of each question by itself, in the order of the data."""
    return torch.cat([forward_raster(model, encoded.collate([item])).logits for item in encoded])


@pytest.fixture(scope="module")
def measured(vilt, encoded, tmp_path_factory):
    """A model with varied answers, its mean contexts, and the table of its removals."""
    model = vary_answers(vilt[0], encoded)
    assert predict(model, encoded)["prediction"].nunique() > 2
    means, folder = ablate.mean_z(model, encoded), tmp_path_factory.mktemp("removals")
    measure = partial(ablate.removal_measures, means=means)
    extract_attention(model, encoded, folder, 3, 5, measure=measure, layout=ablate.REMOVALS)
    return model, means, read_attention(folder)


def compare_with_edited(measured, encoded, way, place, edited):
    """Answers, probabilities and points lost against those of a model edited by hand, question by question."""
    model, _, table = measured
    logits, intact = answer_each(edited, encoded), answer_each(model, encoded)
    expected = logits.sigmoid().gather(1, intact.argmax(1, keepdim=True))[:, 0]
    found = getattr(table, f"{way}_probability")[:, *place]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert getattr(table, f"{way}_answer")[:, *place].tolist() == logits.argmax(1).tolist()
    answers, labels = [list(given) for given in encoded.questions["answers"]], model.config.id2label
    before, after = (
        np.array(
            [
                vqa_accuracy(labels[best], given)
                for best, given in zip(each.argmax(1).tolist(), answers, strict=True)
            ]
        )
        for each in (intact, logits)
    )
    lost = ablate.score_removals(table, way, answers, labels)[:, *place]
    np.testing.assert_allclose(lost, 100 * (before - after))
    return lost


@pytest.mark.parametrize("way", ["zero", "mean"])
def test_removed_heads_equal_edited_models(measured, encoded, way):
    model, means, _ = measured
    changed = 0
    for place in itertools.product(range(4), range(4)):
        edited = edit_model(model, [place], means if way == "mean" else None)
        changed += (compare_with_edited(measured, encoded, way, place, edited) != 0).any()
    assert changed  # else this would compare nothing


@pytest.mark.parametrize("layer", range(4))
def test_removed_layers_equal_edited_models(measured, encoded, layer):
    model = measured[0]
    silent, shorter = edit_model(model, [(layer, head) for head in range(4)]), copy.deepcopy(model)
    del shorter.vilt.encoder.layer[layer]
    compare_with_edited(measured, encoded, "attention", (layer,), silent)
    compare_with_edited(measured, encoded, "layer", (layer,), shorter)


def test_the_intact_model_is_kept(measured, encoded):
    model, _, table = measured
    intact = answer_each(model, encoded)
    np.testing.assert_allclose(table.probability, intact.sigmoid().amax(1), atol=1e-5)
    assert table.questions["prediction"].tolist() == [
        model.config.id2label[i] for i in intact.argmax(1).tolist()
    ]


def test_effects_by_hand():
    lost = np.zeros((4, 3, 2))
    lost[:, 2, 0] = [100, 60, 0, 0]
    table = ablate.removal_effects(
        lost, ["what", "what", "why", "why"], [1, 1, 2, 3], n_resamples=50
    )
    assert len(table) == 3 * 6
    drops = table.set_index(["name", "family"])["drop"]
    assert drops.loc["L0H1"].tolist() == [0, 0, 0]
    assert drops.loc["L2H0"].to_dict() == pytest.approx({"all": 40, "what": 80, "why": 0})
    row = table.query("name == 'L2H0' and family == 'all'").iloc[0]
    assert (row["layer"], row["head"], row["n"], row["n_clusters"]) == (2, 0, 4, 3)
    assert row["low"] == 0
    assert row["high"] == pytest.approx(80)
    what = table.query("name == 'L2H0' and family == 'what'").iloc[0]
    assert np.isnan(what["low"])  # one image
    assert not table["told"].any()  # and four questions in all
    assert not table["significant"].any()


def test_only_a_planted_loss_is_significant():
    """Layer 0 costs `why` half of its answers; layer 1 swaps right and wrong ones, as many either way."""
    rng = np.random.default_rng(0)
    families, lost = np.repeat(["what", "why"], 100), np.zeros((200, 2))
    lost[100:, 0] = 100 * (rng.random(100) < 0.5)
    lost[:16, 1] = np.repeat([100, -100], 8)
    table = ablate.removal_effects(lost, families, np.arange(200) // 2)
    assert "name" not in table
    found = table[table["significant"]]
    assert set(zip(found["layer"], found["family"], strict=True)) == {(0, "all"), (0, "why")}
    tested = table.dropna(subset=["p"])
    assert (tested["p_corrected"] >= tested["p"]).all()
