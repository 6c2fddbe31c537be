"""helpers/attention/modality.py: withheld tokens, Shapley values, AUC."""

from itertools import permutations, product
from math import factorial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats
from small import encode_noise, stub_study

from helpers.attention import modality
from helpers.attention.image_share import keep_patches, prepare_batch
from helpers.attention.modality import (
    CONDITIONS,
    cut_blocks,
    draw_orders,
    find_first_words,
    keep_words,
    lose_points,
    mm_shap,
    shapley_values,
    stratified_auc,
    stratified_rank,
    withheld_accuracy,
)
from helpers.data.vqa import vqa_accuracy
from helpers.model.forward import forward_raster


@torch.no_grad()
def answer_without(model, inputs, words, patches) -> torch.Tensor:
    """Logits of one question whose other tokens are cut out of the sequence; there is no mask."""
    length = inputs["input_ids"].shape[1]
    hidden, _ = model.vilt.embeddings(
        inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"], None,
        inputs["pixel_mask"], None, inputs["image_embeds"], image_token_type_idx=1,
    )  # fmt: skip
    kept = [0, *(np.asarray(words, dtype=int) + 1), length - 1, length]
    hidden = hidden[:, [*kept, *(np.asarray(patches, dtype=int) + length + 1)]]
    for layer in model.vilt.encoder.layer:
        hidden = layer(hidden)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return model.classifier(model.vilt.pooler(model.vilt.layernorm(hidden)))[0]


def prepare_one(model, encoded, index) -> dict:
    return prepare_batch(model, encoded.collate([encoded[index]])).inputs


@torch.no_grad()
@pytest.mark.parametrize(
    ("words", "patches"), [([0, 2, 3], range(24)), ([1], [5, 6, 20]), ([], []), ([2, 5], [0])]
)
def test_a_withheld_token_is_as_good_as_cut_out(vilt, encoded, words, patches):
    """A gap in the text's mask removes a word as a key; the others keep their positions."""
    model, inputs = vilt[0], prepare_one(vilt[0], encoded, 6)
    kept = keep_patches(keep_words(inputs, [np.array(words)]), [np.array(patches)])
    logits = forward_raster(model, kept).logits[0]
    np.testing.assert_allclose(logits, answer_without(model, inputs, words, patches), atol=1e-5)


def test_the_first_word_has_all_its_pieces():
    texts = ["[CLS] what is it [SEP]", "[CLS] who ##m ##ever ? [SEP]", "[CLS] why [SEP] [PAD]"]
    texts.append("[CLS] [SEP] [PAD]")
    names = sorted({piece for text in texts for piece in text.split()})
    tokenizer = SimpleNamespace(
        sep_token="[SEP]", convert_ids_to_tokens=lambda row: [names[i] for i in row]
    )
    for text, n_pieces in zip(texts, (1, 3, 1, 0), strict=True):
        ids = torch.tensor([[names.index(piece) for piece in text.split()]])
        (found,) = find_first_words(ids, tokenizer)
        assert found.tolist() == list(range(n_pieces))


def test_conditions_are_those_asked_one_question_at_a_time(vilt, encoded):
    model, indices = vilt[0], [7, 2, 0, 9]
    table = withheld_accuracy(model, encoded, indices, seed=1, batch_size=3)
    assert table["condition"].unique().tolist() == list(CONDITIONS)
    shuffled, n_words = encoded.shuffle_images(1), encoded.input_ids
    for index in indices:
        inputs, exchanged = (prepare_one(model, each, index) for each in (encoded, shuffled))
        everything = range(len(n_words[index]) - 2)
        patches, others = (range(each["image_embeds"].shape[1] - 1) for each in (inputs, exchanged))
        slow = {"intact": answer_without(model, inputs, everything, patches),
                "image removed": answer_without(model, inputs, everything, []),
                "image exchanged": answer_without(model, exchanged, everything, others),
                "words removed": answer_without(model, inputs, [0], patches),
                "both removed": answer_without(model, inputs, [0], [])}  # fmt: skip
        own = table[table["question"] == index].set_index("condition")
        best = int(slow["intact"].argmax())
        for condition, logits in slow.items():
            sure = float(logits[best].sigmoid())
            assert own["probability"][condition] == pytest.approx(sure, abs=1e-5)
            said = model.config.id2label[int(logits.argmax())]
            given = list(encoded.questions["answers"].iloc[index])
            assert own["accuracy"][condition] == pytest.approx(vqa_accuracy(said, given))


def test_one_picture_cannot_be_exchanged(vilt):
    alone = encode_noise(vilt[1], [(64, 64)])
    table = withheld_accuracy(vilt[0], alone, range(4), seed=0)
    known = table.dropna().groupby("condition").size()
    assert known.to_dict() == dict.fromkeys(set(CONDITIONS) - {"image exchanged"}, 4)
    assert np.isnan(lose_points([table], 4)["image exchanged"]).all()


def test_points_lost_by_hand():
    accuracy = [1, 0.3, 0, 0.3, 0.5, 0.9, 1, 0, 0, 0.3]
    columns = {"condition": np.repeat(CONDITIONS, 2), "question": [2, 0] * 5}
    table = pd.DataFrame({**columns, "accuracy": accuracy})
    lost = lose_points([table, table.assign(accuracy=0.5)], 3)
    of_first = np.array([values[0] for values in lost.values()])  # (condition, question)
    np.testing.assert_allclose(of_first[:4, 2], [100, 50, 0, 100])
    np.testing.assert_allclose(of_first[:4, 0], [0, -60, 30, 0])
    assert np.isnan(of_first[:, 1]).all()  # not asked
    assert all((values[1, [0, 2]] == 0).all() for values in lost.values())


@pytest.mark.parametrize(
    ("both", "words", "image", "none", "joint"),
    [(1, 0, 0, 0, 100),  # the answer needs both
     (1, 1, 0, 0, 0),  # the words are enough, as in a control
     (0.9, 0.5, 0.6, 0.2, 0),  # each brings its own part: 30 and 40 points
     (1, 1, 1, 0, -100),  # either is enough: one stands in for the other
     (1, 0.3, 0.3, 0.3, 70)],
)  # fmt: skip
def test_what_words_and_image_bring_only_together_by_hand(both, words, image, none, joint):
    of = {"intact": both, "image removed": words, "image exchanged": 0, "words removed": image,
          "both removed": none}  # fmt: skip
    table = pd.DataFrame({"condition": [*of], "question": 0, "accuracy": [*of.values()]})
    lost = {name: values.item() for name, values in lose_points([table], 1).items()}
    assert lost["joint"] == pytest.approx(joint)
    alone = 100 * (words - none) + 100 * (image - none)
    assert lost["both removed"] == pytest.approx(alone + lost["joint"])
    game = {(True, True): both, (True, False): words, (False, True): image, (False, False): none}
    orders = np.array([*permutations(range(2))])
    phi = shapley_values(lambda asked: np.array([game[tuple(row)] for row in asked]), orders)
    assert 100 * phi[1] == pytest.approx(100 * (image - none) + joint / 2)  # shared out equally


def test_blocks_are_rectangles_that_cover_every_patch_once():
    for rows, columns, count in product((1, 3, 8, 12), (1, 5, 16), (1, 2, 7, 40)):
        blocks = cut_blocks((rows, columns), count)
        assert blocks.shape == (rows * columns,)
        assert np.unique(blocks).tolist() == list(range(blocks.max() + 1))
        for number in range(blocks.max() + 1):
            down, across = np.nonzero(blocks.reshape(rows, columns) == number)
            assert (np.ptp(down) + 1) * (np.ptp(across) + 1) == len(down)
        if max(rows, columns) <= 2 * min(rows, columns) and count <= rows * columns:
            assert count / 2 <= blocks.max() + 1 <= 2 * count


def test_orders_come_with_their_reverse_and_follow_the_seed():
    orders = draw_orders(6, 50, [3, 4])
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    np.testing.assert_array_equal(orders[::2], orders[1::2, ::-1])
    np.testing.assert_array_equal(orders, draw_orders(6, 50, [3, 4]))
    assert (orders != draw_orders(6, 50, [3, 5])).any()
    assert len(np.unique(orders[::2, 0])) == 6


def enumerate_shapley(values: dict[frozenset, float], n_players: int) -> np.ndarray:
    """Shapley's own formula, over all coalitions."""
    phi = np.zeros(n_players)
    for members, value in values.items():
        for player in range(n_players):
            without = len(members - {player})
            weight = factorial(without) * factorial(n_players - without - 1) / factorial(n_players)
            phi[player] += weight * value if player in members else -weight * value
    return phi


def list_coalitions(n_players: int) -> np.ndarray:
    return np.arange(2**n_players)[:, None] >> np.arange(n_players) & 1 == 1


def list_members(coalition: np.ndarray) -> frozenset:
    return frozenset(np.flatnonzero(coalition).tolist())


def play(values: dict[frozenset, float]):
    return lambda coalitions: [values[list_members(row)] for row in coalitions]


def draw_game(n_players: int, seed: int) -> dict[frozenset, float]:
    rng = np.random.default_rng(seed)
    return {list_members(row): rng.normal() for row in list_coalitions(n_players)}


def test_all_orders_give_the_exact_values_and_some_give_their_sum():
    for n_players in range(1, 5):
        values = draw_game(n_players, seed=n_players)
        exact = enumerate_shapley(values, n_players)
        orders = np.array(list(permutations(range(n_players))))
        np.testing.assert_allclose(shapley_values(play(values), orders), exact, atol=1e-12)
        some = shapley_values(play(values), draw_orders(n_players, 2, 0))
        assert some.sum() == pytest.approx(exact.sum(), abs=1e-12)


def test_more_orders_come_nearer_and_no_coalition_is_asked_twice():
    values, asked = draw_game(5, 5), []

    def game(coalitions):
        asked.append(len(coalitions))
        assert len(np.unique(coalitions, axis=0)) == len(coalitions)
        return play(values)(coalitions)

    exact = enumerate_shapley(values, 5)
    found = [shapley_values(game, draw_orders(5, n, 0)) for n in (1, 1000)]
    few, many = (np.abs(values - exact).max() for values in found)
    assert many < 0.08 < few
    assert asked[1] == 32


@pytest.fixture
def all_orders(monkeypatch):
    """Every order of the players in place of some."""
    orders = lambda n, *_: np.array(list(permutations(range(n))))  # noqa: E731
    monkeypatch.setattr(modality, "draw_orders", orders)


@pytest.mark.usefixtures("all_orders")
def test_a_question_of_two_words_against_enumeration(vilt, encoded):
    # "what?" about 64 x 96 pixels: 4 x 6 patches in 2 blocks, side by side
    model, index = vilt[0], 4
    inputs = prepare_one(model, encoded, index)
    assert inputs["input_ids"].shape[1] == 4
    halves = [np.flatnonzero(np.tile(np.arange(6) // 3 == half, 4)) for half in (0, 1)]
    best = int(answer_without(model, inputs, [0, 1], range(24)).argmax())
    values = {}
    for members in list_coalitions(4):
        there = [half for half, plays in zip(halves, members[2:], strict=True) if plays]
        patches = np.concatenate([[], *there])
        logits = answer_without(model, inputs, np.flatnonzero(members[:2]), patches)
        values[list_members(members)] = float(logits[best].sigmoid())
    phi = enumerate_shapley(values, 4)
    row = mm_shap(model, encoded, [index], permutations=1, seed=0, batch_size=5).iloc[0]
    names = ["phi_text", "phi_image", "signed_text", "signed_image"]
    expected = [abs(phi[:2]).sum(), abs(phi[2:]).sum(), phi[:2].sum(), phi[2:].sum()]
    np.testing.assert_allclose(row[names].astype(float), expected, atol=1e-6)
    assert row["text_share"] == pytest.approx(abs(phi[:2]).sum() / abs(phi).sum(), abs=1e-4)
    assert (row["question"], row["n_words"], row["n_blocks"]) == (index, 2, 2)


def test_shares_add_up_and_do_not_depend_on_the_others(vilt, encoded):
    model, columns = vilt[0], ["text_share", "phi_text", "phi_image", "signed_text", "signed_image"]
    table = mm_shap(model, encoded, [6, 1, 11], permutations=2, seed=3, batch_size=64)
    assert table["question"].tolist() == [6, 1, 11]
    alone = mm_shap(model, encoded, [11], permutations=2, seed=3, batch_size=7)
    np.testing.assert_allclose(alone[columns], table[columns].iloc[2:], atol=1e-5)
    other = mm_shap(model, encoded, [11], permutations=2, seed=4)
    assert not np.allclose(other["phi_text"], alone["phi_text"], atol=1e-5)
    for row in table.itertuples():
        inputs = prepare_one(model, encoded, row.question)
        n_patches = inputs["image_embeds"].shape[1] - 1
        whole = answer_without(model, inputs, range(row.n_words), range(n_patches))
        nothing = answer_without(model, inputs, [], [])
        best = int(whole.argmax())
        gain = float(whole[best].sigmoid() - nothing[best].sigmoid())
        assert row.signed_text + row.signed_image == pytest.approx(gain, abs=1e-5)


def test_the_step_is_done_once_on_questions_drawn_by_the_seed(vilt, encoded, tmp_path):
    few = {"withheld_questions": 5, "shapley_questions": 2, "shapley_permutations": 1}
    study = stub_study(tmp_path, **few, seed=5)
    withheld, shapley = modality.measure_modality(study, vilt[0], encoded)
    asked = withheld["question"].unique()
    assert len(asked) == 5
    expected = withheld_accuracy(vilt[0], encoded, asked, 5)
    pd.testing.assert_frame_equal(withheld, expected, atol=1e-5)
    drawn = shapley["question"].tolist()
    assert sorted(set(drawn)) == drawn
    pd.testing.assert_frame_equal(shapley, mm_shap(vilt[0], encoded, drawn, 1, 5), atol=1e-5)
    again = modality.measure_modality(study, None, encoded)  # no model: nothing is measured anew
    pd.testing.assert_frame_equal(again[1], shapley)


def test_the_auc_of_one_family_is_mann_whitneys():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 6, 80).astype(float), np.arange(80) % 3 > 0
    values[positive] += rng.integers(0, 3, positive.sum())
    u = scipy_stats.mannwhitneyu(values[positive], values[~positive]).statistic
    found = stratified_auc(values, positive, ["a"] * 80)
    assert found == pytest.approx(u / (positive.sum() * (~positive).sum()))
    assert stratified_auc(values, ~positive, ["a"] * 80) == pytest.approx(1 - found)
    assert stratified_auc(np.ones(80), positive, ["a"] * 80) == 0.5


def test_the_auc_compares_within_families_only():
    """Separated in a (20 questions), the wrong way round in b (10); c holds one kind only."""
    groups = np.repeat(["a", "b", "c"], [20, 10, 15])
    positive = np.r_[np.arange(20) % 2 == 0, np.arange(10) % 2 == 0, np.ones(15, dtype=bool)]
    values = np.where(groups == "b", 1000.0 - positive, positive)
    assert stratified_auc(values, positive, groups) == pytest.approx((20 * 1 + 10 * 0) / 30)
    values[groups == "b"] = np.nan
    assert stratified_auc(values, positive, groups) == 1
    assert np.isnan(stratified_auc(values[groups == "c"], positive[groups == "c"], ["c"] * 15))


def test_words_that_only_one_kind_has_tell_the_kinds_apart_on_other_images():
    texts = pd.Series(["Is a car a vehicle?", "Is the car red?"] * 20)
    positive, images = np.arange(40) % 2 == 1, np.arange(40) // 2
    scores = modality.score_by_words(texts, positive, images)
    assert stratified_auc(scores, positive, ["is"] * 40) == 1
    alike = modality.score_by_words(pd.Series(["Is it red?"] * 40), positive, images)
    assert stratified_auc(alike, positive, ["is"] * 40) == pytest.approx(0.5)
    assert np.isnan(modality.score_by_words(texts, np.ones(40, dtype=bool), images)).all()


def test_ranks_within_families_are_spearmans_and_ignore_what_lies_between_them():
    rng = np.random.default_rng(1)
    x, y, groups = rng.normal(size=40), rng.integers(0, 5, 40).astype(float), np.arange(40) // 20
    by_hand = [scipy_stats.spearmanr(x[groups == g], y[groups == g]).statistic for g in (0, 1)]
    for apart in (0, 9):
        found = stratified_rank(x + apart * groups, y - apart * groups, groups)
        assert found == pytest.approx(np.mean(by_hand))
    y[groups == 1] = 7  # a constant has no ranks
    assert stratified_rank(x, y, groups) == pytest.approx(by_hand[0])
    assert np.isnan(stratified_rank(x, np.full(40, np.nan), groups))
