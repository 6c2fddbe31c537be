"""Gradient importance against finite differences of the loss in a gate, in float64."""

import copy

import numpy as np
import pytest
import torch
from small import ANSWERS, encode_noise

from helpers.data.vqa import soft_targets
from helpers.heads import importance
from helpers.model.vilt import forward_raster


@torch.no_grad()
def loss_with(model, batch, targets, layer, head, gate):
    """Loss of one question with a head's columns of the output projection scaled."""
    edited = copy.deepcopy(model)
    edited.vilt.encoder.layer[layer].attention.output.dense.weight[
        :, 16 * head : 16 * (head + 1)
    ] *= gate
    logits = forward_raster(edited, batch).logits[0]
    return torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="sum"
    ).item()


@pytest.fixture(scope="module")
def labelled(vilt):
    return encode_noise(vilt[1], [(64, 64), (64, 96), (96, 64)], ANSWERS)


def test_importance_is_the_slope_of_the_loss(vilt, labelled):
    model = copy.deepcopy(vilt[0]).double()
    for rows, batch in labelled.batches(2, [7, 2, 11]):
        batch["pixel_values"] = batch["pixel_values"].double()
        found = importance.importance_measures(model, batch)
        assert found["importance"].shape == (len(rows), 4, 4)
        for place, row in enumerate(rows):
            alone = labelled.collate([labelled[row]])
            alone["pixel_values"] = alone["pixel_values"].double()
            targets = torch.from_numpy(
                soft_targets(list(labelled.questions["answers"][row]), ANSWERS)
            ).double()
            torch.testing.assert_close(
                found["logits"][place], forward_raster(model, alone).logits[0].detach()
            )
            for layer, head in [(0, 0), (1, 3), (3, 2)]:
                gates = (1 + 1e-4, 1 - 1e-4)
                up, down = (loss_with(model, alone, targets, layer, head, gate) for gate in gates)
                slope = found["importance"][place, layer, head].item()
                assert slope == pytest.approx(abs(up - down) / 2e-4, rel=1e-3, abs=1e-7)


def test_nothing_is_left_behind(vilt, labelled):
    model = vilt[0]
    batch = labelled.collate([labelled[0], labelled[5]])
    before = forward_raster(model, batch).logits
    assert (importance.importance_measures(model, batch)["importance"] > 0).all()
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
    )
    torch.testing.assert_close(forward_raster(model, batch).logits, before)


def test_questions_without_labels_are_refused(vilt, encoded):
    with pytest.raises(ValueError, match="answers="):
        importance.importance_measures(vilt[0], encoded.collate([encoded[0]]))


def test_layers_are_normalised_by_hand():
    found = importance.normalise_by_layer(np.array([[3, 4], [0, 0], [0, 2]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [np.nan, np.nan], [0, 1]])


def test_measures_are_ranked_by_hand():
    up = np.array([[1.0, 2, 3], [4, 5, 6]])
    mixed = np.array(
        [[3.0, 2, 1], [6, 5, 4]]
    )  # falls within each layer, rises from one to the next
    table = importance.rank_measures(
        {"up": up, "mixed": mixed, "flat": np.ones((2, 3))}, n_resamples=50
    )
    found = table.set_index(["over", "first", "second"])["correlation"]
    # Spearman by hand: ranks 1..6 against 3 2 1 6 5 4: 1 - 6 * 16 / (6 * 35)
    assert found["all heads", "up", "mixed"] == pytest.approx(1 - 96 / 210)
    assert found["within layers", "up", "mixed"] == pytest.approx(-1)
    assert np.isnan(found["all heads", "up", "flat"])
    assert len(table) == 6
    assert set(table["n"]) == {6}
