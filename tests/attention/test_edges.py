"""Knockout against patterns edited by hand, and against models that never had the cut edges."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from small import ANSWERS, stub_study

from helpers.attention.edges import (
    DIRECTIONS,
    edge_shares,
    knockout,
    knockout_measures,
    list_spans,
    number_edges,
    tabulate_losses,
    uniform_shares,
)
from helpers.attention.extract import extract_once
from helpers.attention.image_share import attention_measures, average_queries, prepare_batch
from helpers.data.vqa import vqa_accuracy
from helpers.model.forward import PackedForward, forward_raster, trace

assert_close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)


def mark_cut(groups, edges):
    """Which query cannot attend to which key: bool (question, query, key)."""
    cut = torch.zeros(len(groups), groups.shape[2], groups.shape[2], dtype=torch.bool)
    for queries, keys in number_edges(edges)[:5, :5].nonzero().tolist():  # no object is known
        cut |= groups[:, queries][:, :, None] & groups[:, keys][:, None]
    return cut


@torch.no_grad()
def answer_without(model, batch, cut, layers):
    """Logits of the stock modules whose patterns lose these edges and are rescaled to sum to 1."""

    def rescale(_, pattern):
        left = pattern * ~cut[:, None]
        return left / left.sum(-1, keepdim=True).clamp_min(1e-30)

    with trace(model, edit={"pattern": rescale}, layers=layers):
        return forward_raster(model, batch).logits


@pytest.mark.parametrize("layers", [[0], [3], [1, 2], [0, 1, 2, 3]])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_knockout_equals_edited_patterns(model, batch, name, layers):
    edges = DIRECTIONS[name]
    cut = mark_cut(prepare_batch(model, batch).groups, edges)
    expected = answer_without(model, batch, cut, layers)
    assert_close(knockout(model, batch, edges, layers), expected)


@torch.no_grad()
def test_nothing_cut_is_the_stock_pass(model, batch):
    stock = forward_raster(model, batch).logits
    for edges, layers in (([], range(4)), ([("text", "image")], [])):
        assert_close(knockout(model, batch, edges, layers), stock)


@torch.no_grad()
def test_text_cut_off_from_the_image_answers_as_without_any_image_token(model, batch):
    core, rows = model.vilt, []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        hidden = core.embeddings.text_embeddings(ids[None, mask.bool()])
        hidden = hidden + core.embeddings.token_type_embeddings(torch.zeros(1, 1, dtype=torch.long))
        for layer in core.encoder.layer:
            hidden = layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        rows.append(model.classifier(core.pooler(core.layernorm(hidden))))
    cut = knockout(model, batch, [("text", "image")], range(4))
    assert_close(cut, torch.cat(rows))
    assert (cut - forward_raster(model, batch).logits).abs().max() > 1e-3


@torch.no_grad()
def test_cut_edges_have_no_mass_and_rows_still_sum_to_one(model, batch):
    inputs, groups, _ = prepare_batch(model, batch)
    forward = PackedForward(model, inputs, groups)
    forward.blocked = {1: number_edges([("words", "patches")]), 2: number_edges([("cls", "image")])}
    for index, layer in enumerate(forward):
        for part, attention in layer:
            split = average_queries(attention, part.groups) @ part.groups.float().mT[:, None]
            has_words = part.groups[:, 1].any(1)
            np.testing.assert_allclose(split[has_words].sum(-1), 1, atol=1e-5)
            assert (split[has_words][:, :, 1, 4] == 0).all() == (index == 1)
            assert (split[:, :, 0, 3:] == 0).all() == (index == 2)


@torch.no_grad()
def test_measures_agree_with_single_knockouts(model, batch):
    found, spans = knockout_measures(model, batch), list_spans(4)
    stock = forward_raster(model, batch).logits
    assert_close(found["logits"], stock)
    best = stock.argmax(1)
    for direction, edges in enumerate(DIRECTIONS.values()):
        for first, last in ((0, 0), (1, 3), (0, 2), (3, 3)):
            span = spans.index((first, last))
            cut = knockout(model, batch, edges, range(first, last + 1))
            sure = cut.gather(1, best[:, None])[:, 0].sigmoid()
            own = found["cut_probability"][:, direction, span]
            assert_close(own, sure)
            top = cut.topk(2, dim=1).values
            clear = top[:, 0] - top[:, 1] > 1e-3
            assert (found["cut_answer"][:, direction, span] == cut.argmax(1))[clear].all()


def test_spans_of_four_and_twelve_layers():
    assert list_spans(4) == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 3), (2, 2), (2, 3), (3, 3),
    ]  # fmt: skip
    twelve = list_spans(12)
    assert {(4, 7), (0, 11), (11, 11), (5, 11), (0, 4)} <= set(twelve)
    assert len(twelve) == len(set(twelve)) == 12 + 9 + 12 + 11 - 3 - 2 + 1
    assert list_spans(1) == [(0, 0)]


@pytest.mark.parametrize(
    ("edges", "layers", "culprit"),
    [
        ([("cls", "picture")], [0], "picture"),
        ([("cls", "image")], [4], "layer 4"),
        ([("cls", "text"), ("cls", "image")], [0], "nothing to attend to"),
    ],
)
def test_wrong_edges_and_layers_are_named(model, batch, edges, layers, culprit):
    with pytest.raises(ValueError, match=culprit):
        knockout(model, batch, edges, layers)


def test_losses_over_a_data_set_are_those_of_single_questions(vilt, encoded, tmp_path):
    model, answers = vilt[0], encoded.questions["answers"].tolist()
    given = stub_study(tmp_path), "knockout", model, encoded, knockout_measures
    table = extract_once(*given, count=5)
    ids = encoded.questions["question_id"].tolist()
    rows = [ids.index(question) for question in table.questions["question_id"]]
    assert len(rows) == 5
    own = [answers[row] for row in rows]
    lost = table.points_lost("cut_answer", encoded, ANSWERS)
    spans = list_spans(4)
    assert lost.shape == (5, len(DIRECTIONS), len(spans)) == table.cut_probability.shape
    for place, row in enumerate(rows):
        single = encoded.collate([encoded[row]])
        whole, cut = (
            ANSWERS[int(knockout(model, single, edges, range(4)).argmax())]
            for edges in ([], DIRECTIONS["image <- text"])
        )
        difference = vqa_accuracy(whole, own[place]) - vqa_accuracy(cut, own[place])
        assert lost[place, 1, spans.index((0, 3))] == pytest.approx(100 * difference)


@torch.no_grad()
def test_edge_shares_are_the_mean_mass_on_cut_edges(model, batch):
    inputs, groups, _ = prepare_batch(model, batch)
    measures = attention_measures(model, batch)
    counts = {"n_words": groups[:, 1].sum(1), "n_patches": groups[:, 4].sum(1)}
    shares = edge_shares(measures["flow"].numpy(), pd.DataFrame(counts))
    for direction, edges in enumerate(DIRECTIONS.values()):
        cut = mark_cut(groups, edges)
        asking = cut.any(2)
        for index, layer in enumerate(PackedForward(model, inputs, groups)):
            ((_, attention),) = layer
            mass = (attention.mean(1) * cut).sum(2)  # (question, query)
            expected = (mass * asking).sum(1) / asking.sum(1)
            some = asking.any(1)
            np.testing.assert_allclose(shares[some, direction, index], expected[some], atol=1e-5)


def test_uniform_shares_by_hand():
    counts = pd.DataFrame({"n_words": [3], "n_patches": [4]})  # of 10 tokens, with three special
    shares = dict(zip(DIRECTIONS, uniform_shares(counts)[0], strict=True))
    assert shares["text <- image"] == shares["[CLS] <- image"] == pytest.approx(5 / 10)
    assert shares["patches <- words"] == pytest.approx(3 / 10)


def test_table_of_losses_by_hand():
    spans, questions = list_spans(2), pd.DataFrame({"image_id": [1, 1, 2], "family": list("aab")})
    assert spans == [(0, 0), (0, 1), (1, 1)]
    lost = np.zeros((2, 3, len(DIRECTIONS), 3))
    lost[0, :, 0, 1] = 10, 20, 60  # model, question, direction, span
    lost[1, :, 0, 1] = 30, 40, 20
    table = tabulate_losses(lost, questions, 2, ["a", "b"]).set_index(["panel", "column"])
    text = table[table["direction"] == "text <- image"]["estimate"]
    assert text["onward", "L0"] == pytest.approx(30)
    assert text["type", "a"] == pytest.approx(25)
    assert text["type", "b"] == pytest.approx(40)
    assert (text["one"] == 0).all()
    assert len(table) == len(DIRECTIONS) * (2 + 2 + 2)


@torch.no_grad()
def test_the_objects_patches_are_cut_apart_from_the_others(model, batch):
    """Against patterns edited by hand; with both cut, no patch is left to look at."""
    objects = torch.zeros(6, 2, 36, dtype=torch.bool)
    objects[:, 0, [3, 7]] = True  # raster indices
    marked, n_text = {**batch, "objects": objects}, batch["input_ids"].shape[1]
    cut = mark_cut(prepare_batch(model, batch).groups, [])  # none yet
    cut[:, 0, [n_text + 1 + patch for patch in (3, 7)]] = True
    found = knockout(model, marked, [("cls", "object")], range(4))
    assert_close(found, answer_without(model, batch, cut, range(4)))
    parts, whole = [("cls", "object"), ("cls", "other patches")], [("cls", "patches")]
    expected = knockout(model, batch, whole, range(4))
    for edges in (parts, whole):
        assert_close(knockout(model, marked, edges, range(4)), expected)
