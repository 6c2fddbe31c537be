"""helpers/attention/image_share.py against transformers' attentions in raster order."""

import copy
from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import GRIDS, LENGTHS, make_batch
from PIL import Image
from transformers import ViltConfig, ViltForQuestionAnswering
from transformers.models.vilt import modeling_vilt

from helpers.attention.image_share import (
    attention_maps,
    attention_measures,
    attention_split,
    image_share,
    mean_distance,
    prepare_batch,
    rollout,
    sink_columns,
    special_mass,
    token_groups,
    uniform_baseline,
)
from helpers.model import forward
from helpers.model.forward import attend_padded
from helpers.model.vilt import load_vilt

assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5, equal_nan=True)


def stock_attentions(model, batch):
    """Eager attentions a question (layer, head, query, key): float64, no padding, raster order."""
    embeddings, caught = model.vilt.embeddings, []
    stock = embeddings.visual_embed

    def catch(*args, **kwargs):
        caught.append(stock(*args, **kwargs))
        return caught[-1]

    embeddings.visual_embed = catch
    try:
        with torch.no_grad():
            layers = model(**batch, output_attentions=True).attentions
    finally:
        del embeddings.visual_embed
    _, mask, (places, (_, width)) = caught[0]
    n_text, found = batch["input_ids"].shape[1], []
    for b in range(len(mask)):
        text = [i for i in range(n_text) if batch["attention_mask"][b, i]]
        raster = {
            int(places[b, i, 0] * width + places[b, i, 1]): i
            for i in range(len(places[b]))
            if mask[b, 1 + i]
        }
        order = [*text, n_text, *(n_text + 1 + raster[cell] for cell in sorted(raster))]
        found.append(
            np.stack([layer[b].numpy()[:, order][:, :, order] for layer in layers]).astype(float)
        )
    return found


def reduce_by_hand(full, n_text, grid):
    """Every measure of one question by the definitions of the design, with plain loops."""
    layers, heads, n, _ = full.shape
    keys = [[0], list(range(1, n_text - 1)), [n_text - 1], [n_text], list(range(n_text + 1, n))]
    queries = [keys[0], keys[1], keys[4]]
    flow = np.full((layers, 5, 5), np.nan)
    for layer, (q, members), (k, group) in product(range(layers), enumerate(keys), enumerate(keys)):
        if members:
            flow[layer, q, k] = full[layer][:, members][:, :, group].sum(-1).mean()
    mixed = np.eye(n)
    for layer in full.mean(1):
        mixed = (layer + np.eye(n)) / 2 @ mixed
    cell = {key: divmod(i, grid[1]) for i, key in enumerate(keys[4])}
    found = {
        "flow": flow,
        "rollout": [mixed[0, group].sum() for group in keys],
        "split": np.full((layers, heads, 3, 5), np.nan),
        "entropy": np.full((layers, heads, 3), np.nan),
        "text_distance": np.full((layers, heads), np.nan),
        "patch_distance": np.full((layers, heads), np.nan),
        "top_patch": np.full((layers, heads, 3), -1),
    }
    for layer, head in np.ndindex(layers, heads):
        rows = full[layer, head]
        for q, members in enumerate(queries):
            if not members:
                continue
            for k, group in enumerate(keys):
                found["split"][layer, head, q, k] = np.mean(
                    [sum(rows[i, j] for j in group) for i in members]
                )
            terms = [-sum(p * np.log(p) for p in rows[i] if p > 0) / np.log(n) for i in members]
            found["entropy"][layer, head, q] = np.mean(terms)
            found["top_patch"][layer, head, q] = np.argmax(rows[members].mean(0)[keys[4]])
        for name, group in (("text_distance", keys[1]), ("patch_distance", keys[4])):
            steps = []
            for i in group:
                apart = [
                    abs(i - j) if name[0] == "t" else np.hypot(*np.subtract(cell[i], cell[j]))
                    for j in group
                ]
                steps.append(np.dot(rows[i, group], apart) / rows[i, group].sum())
            found[name][layer, head] = np.mean(steps) if steps else np.nan
    return found


class TestShares:
    split = np.array([[0.1, 0.2, 0.1, 0.2, 0.4], [0.5, 0.5, 0, 0, 0]])

    @pytest.mark.parametrize("kind", [np.array, torch.tensor])
    def test_by_hand(self, kind):
        split = kind(self.split)
        np.testing.assert_allclose(image_share(split), [0.6, 0])
        np.testing.assert_allclose(special_mass(split), [0.4, 0.5])

    def test_sinks_by_hand(self):
        """Three sinks, with values of 0, of half and of twice the others' mean; a padded key."""
        attention = torch.tensor([[0.3, 0.2, 0.1, 0.2, 0.2, 0], [0.25, 0.25, 0, 0.5, 0, 0]])
        norms = torch.tensor([[0.0, 2, 8, 3, 5, 100]])
        sinks = torch.tensor([[True, True, True, False, False, False]])
        others = torch.tensor([[False, False, False, True, True, False]])
        found = attention @ sink_columns(norms, sinks, others)
        np.testing.assert_allclose(found, [[0.6, 0.3 + 0.1], [0.5, 0.25 + 0.125]], rtol=1e-6)
        nothing = attention @ sink_columns(0 * norms, sinks, others)
        np.testing.assert_allclose(nothing[:, 1], [0.6, 0.5], rtol=1e-6)

    def test_baseline_counts_keys(self):
        # the design's example: uniform is 94 % visual
        assert uniform_baseline(10, 192) == 193 / 205
        found = uniform_baseline(np.array([0, 5]), np.array([1, 24]))
        np.testing.assert_allclose(found, [2 / 4, 25 / 32])


def test_rollout_of_two_layers_by_hand():
    # means over heads [[.5, .5], [1, 0]] and [[0, 1], [0, 1]]
    first = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
    second = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    # 0.5 A + 0.5 I: [[.75, .25], [.5, .5]], then [[.5, .5], [0, 1]] @ that
    after = [[0.5 * 0.75 + 0.5 * 0.5, 0.5 * 0.25 + 0.5 * 0.5], [0.5, 0.5]]
    expected = [[[0.75, 0.25], [0.5, 0.5]], after]
    np.testing.assert_allclose(rollout(torch.stack([first, second])), expected)


class TestGroups:
    def test_by_hand(self):
        text = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        groups = token_groups(text, torch.tensor([[1, 1, 0], [1, 1, 1]]))
        where = [[row.nonzero()[:, 0].tolist() for row in question] for question in groups]
        assert where == [[[0], [1, 2], [3], [4], [5]], [[0], [], [1], [4], [5, 6]]]

    def test_padding_on_the_left_is_refused(self):
        with pytest.raises(ValueError, match="padding after them"):
            token_groups(torch.tensor([[0, 1, 1]]), torch.ones(1, 2))


class TestAgainstStock:
    @pytest.mark.slow
    def test_vilt_b32_split(self):
        torch.manual_seed(0)
        model = ViltForQuestionAnswering(ViltConfig(vocab_size=200, initializer_range=0.05)).eval()
        torch.nn.init.normal_(model.vilt.embeddings.position_embeddings, std=0.5)
        lengths = [8, 12]
        batch = make_batch([(12, 16), (7, 12)], lengths, patch=32, words=200)
        split = attention_split(model, batch)
        assert split.shape == (2, 12, 12, 3, 5)
        assert split.dtype == torch.float32
        for place, full in enumerate(stock_attentions(model, batch)):
            n_text, n = lengths[place], full.shape[-1]
            ends = [0, 1, n_text - 1, n_text, n_text + 1, n]
            mass = np.stack([full[..., a:b].sum(-1) for a, b in pairwise(ends)], axis=-1)
            words, patches = mass[:, :, 1 : n_text - 1], mass[:, :, n_text + 1 :]
            queries = (mass[:, :, 0], words.mean(2), patches.mean(2))
            np.testing.assert_allclose(split[place], np.stack(queries, axis=2), rtol=0, atol=5e-6)
        assert split[..., 4].std() > 0.01  # not all the same

    def test_all_measures(self, model, batch):
        found, full = attention_measures(model, batch), stock_attentions(model, batch)
        assert_close(found["split"], attention_split(model, batch))
        for place, (grid, length) in enumerate(zip(GRIDS, LENGTHS, strict=True)):
            for name, expected in reduce_by_hand(full[place], length, grid).items():
                np.testing.assert_allclose(
                    found[name][place], expected, rtol=1e-5, atol=5e-6, err_msg=name
                )
        with torch.no_grad():
            assert_close(found["logits"], model(**batch).logits)

    def test_bodies_of_other_classes(self, model, batch):
        assert_close(attention_split(model.vilt, batch), attention_split(model, batch))
        assert "logits" not in attention_measures(model.vilt, batch)


class TestInvariance:
    @settings(max_examples=5, deadline=None)
    @given(order=st.permutations(range(6)), size=st.integers(1, 6), seed=st.integers(0, 2**31))
    def test_seed_batch_size_and_order_do_not_matter(self, model, batch, order, size, seed):
        whole = attention_measures(model, batch)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        for start in range(0, 6, size):
            part = order[start : start + size]
            found = attention_measures(
                model, make_batch([GRIDS[i] for i in part], [LENGTHS[i] for i in part])
            )
            for name, value in found.items():
                assert_close(value, whole[name][list(part)], msg=name)
        assert torch.equal(state, torch.get_rng_state())

    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.003), (torch.bfloat16, 0.03)])
    def test_half_precision_stays_close(self, model, batch, dtype, bound):
        half = copy.deepcopy(model).to(dtype)
        found, exact = attention_measures(half, batch), attention_measures(model, batch)
        for name in ("split", "entropy", "flow", "rollout"):
            assert found[name].dtype == torch.float32
            assert_close(found[name], exact[name], rtol=0, atol=bound, msg=name)
            apart = (found[name] - exact[name]).nanmean(0).abs()  # questions even out
            assert apart.max() < bound / 5
        assert_close(found["split"].sum(-1), torch.ones(6, 4, 4, 3))
        assert_close(attention_split(half, batch), found["split"])


GRID_CASES = st.lists(st.tuples(st.sampled_from(GRIDS), st.integers(2, 12)), min_size=1, max_size=5)


def run_packed(query, key, value, bias, starts, _, longest, *rest):
    """By hand, what PyTorch's private kernel for packed questions does (only on a GPU)."""
    sums = torch.full((*query.shape[:-1], value.shape[-1]), torch.nan, dtype=query.dtype)
    lse = torch.full((len(starts) - 1, query.shape[2], -(-longest // 32) * 32), torch.inf)
    for question, (start, end) in enumerate(pairwise(starts.tolist())):
        own = (each[:, start:end].transpose(1, 2) for each in (query, key, value))
        found, scores = attend_padded(*own, None)
        sums[:, start:end] = found.transpose(1, 2)
        lse[question, :, : end - start] = scores[0, ..., 0]
    return sums, lse, None, None, longest, longest


class TestFused:
    """One kernel whose values carry more columns, against patterns in microbatches."""

    @settings(max_examples=8, deadline=None)
    @given(cases=GRID_CASES, packed=st.booleans(), microbatch=st.sampled_from([10**4, 10**9]))
    def test_equals_the_patterns_at_every_composition(self, model, cases, packed, microbatch):
        batch = make_batch(*map(list, zip(*cases, strict=True)))
        expected = attention_measures(model, batch)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forward, "CACHE", microbatch)
            if packed:
                patch.setattr(forward, "has_packed_kernel", lambda *_: True)
                patch.setattr(torch.ops.aten, "_efficient_attention_forward", run_packed)
            split = attention_split(model, batch, fused=True)
            found = attention_measures(model, batch, matrix=False)
        assert set(expected) - set(found) == {"patch_distance", "top_patch"}
        for name, value in found.items():
            assert_close(value, expected[name], msg=name)
        assert_close(split, found["split"])


class TestUniformAndEmpty:
    """A head whose query is 0 attends to all keys alike, so every measure is known."""

    @pytest.fixture
    def flat(self):
        model = load_vilt("fresh-small")[0]
        for name, parameter in model.named_parameters():
            if ".query." in name:
                torch.nn.init.zeros_(parameter)
        return model

    def test_measures_by_hand(self, flat):
        found = attention_measures(flat, make_batch([(4, 4), (4, 6)], [7, 3]))
        np.testing.assert_allclose(found["entropy"], 1, atol=1e-6)
        shares = image_share(found["split"])[0]
        np.testing.assert_allclose(shares, uniform_baseline(5, 16), atol=1e-6)
        # mean |i - j|
        np.testing.assert_allclose(found["text_distance"][0], (5**2 - 1) / (3 * 5), atol=1e-6)
        np.testing.assert_array_equal(found["text_distance"][1], 0)  # one word
        steps = [np.hypot(a - c, b - d) for a, b, c, d in np.ndindex(4, 6, 4, 6)]
        np.testing.assert_allclose(found["patch_distance"][1], np.mean(steps), atol=1e-5)

    def test_a_query_that_misses_all_members_is_left_out(self):
        # query 1 looks outside only
        attention = torch.tensor([[[[0.5, 0.5, 0], [0, 0, 1], [0, 0, 1]]]])
        steps = torch.tensor([[[0.0, 1, 2], [1, 0, 1], [2, 1, 0]]])
        members = torch.tensor([[True, True, False]])
        assert mean_distance(attention, steps, members).tolist() == [[0.5]]

    def test_question_without_words_is_nan(self, flat):
        found = attention_measures(flat, make_batch([(4, 4), (4, 6)], [2, 5]))
        assert found["split"][0, :, :, 1].isnan().all()
        assert found["entropy"][0, :, :, 1].isnan().all()
        assert found["text_distance"][0].isnan().all()
        assert (found["top_patch"][0, :, :, 1] == -1).all()
        for name in ("split", "entropy", "text_distance", "patch_distance"):
            assert not found[name][1].isnan().any()
        assert not found["split"][0, :, :, [0, 2]].isnan().any()


def plant(model, layer, head, channel=5):
    """Make one head look for white: a white patch writes `channel`, the head's key reads it."""
    d_head = model.config.hidden_size // model.config.num_attention_heads
    with torch.no_grad():
        projection = model.vilt.embeddings.patch_embeddings.projection
        projection.weight[channel], projection.bias[channel] = 60 / projection.weight[0].numel(), 0
        attention = model.vilt.encoder.layer[layer].attention.attention
        mine = slice(head * d_head, (head + 1) * d_head)
        for part in (attention.query, attention.key):
            part.weight[mine], part.bias[mine] = 0, 0
        attention.query.bias[mine.start] = 10.0
        attention.key.weight[mine.start, channel] = 10.0


def show_patches(cells, mates=()):
    """Black pictures of 4 x 6 patches with one white patch each, after noise pictures."""
    lengths = [*range(3, 3 + len(mates)), *[6] * len(cells)]
    batch = make_batch([*mates, *[(4, 6)] * len(cells)], lengths)
    for pixels, cell in zip(batch["pixel_values"][len(mates) :], cells, strict=True):
        row, column = divmod(cell, 6)
        pixels[:, :64, :96] = -1
        pixels[:, 16 * row : 16 * (row + 1), 16 * column : 16 * (column + 1)] = 1
    return batch


@pytest.fixture(scope="module", params=[(0, 1), (2, 3)], ids=["L0H1", "L2H3"])
def planted(request):
    model = load_vilt("fresh-small")[0]
    plant(model, *request.param)
    return model, *request.param


class TestPlantedPatch:
    """The golden test: the map lights the patch that the head looks for, and no other."""

    @pytest.mark.parametrize("mates", [[], [(4, 6)], [(5, 5), (6, 4), (4, 5)]])
    def test_every_position_in_company(self, planted, mates):
        (model, layer, head), batch, first = planted, show_patches(range(24), mates), len(mates)
        for cell, shown in enumerate(attention_maps(model, batch)[first:]):
            heat = shown.attention[layer, head, :, shown.groups["patches"]]
            assert shown.grid == (4, 6)
            assert (heat.argmax(-1) == cell).all()
            assert heat[:, cell].min() > 0.99
        found = attention_measures(model, batch)
        top_patch = found["top_patch"][first:, layer, head]
        assert torch.equal(top_patch, torch.arange(24)[:, None].expand(-1, 3).to(top_patch))
        assert found["split"][first:, layer, head, :, 4].min() > 0.99
        assert found["entropy"][first:, layer, head].max() < 0.02
        assert found["logits"].isfinite().all()

    def test_stock_maps_do_not(self, planted):
        """Why the module exists: through output_attentions the same head lights random patches."""
        model, layer, head = planted
        batch, lit = show_patches([8]), set()
        for seed in range(8):
            torch.manual_seed(seed)
            with torch.no_grad():
                heat = model(**batch, output_attentions=True).attentions[layer][0, head, 0, 7:]
            assert heat.max() > 0.99
            lit.add(int(heat.argmax()))
        assert len(lit) > 4


class TestMaps:
    def test_tokens_grid_and_groups(self):
        model, processor = load_vilt("fresh-small")
        pictures = [Image.new("RGB", (96, 64), color) for color in ("red", "blue")]
        batch = processor(pictures, ["is it red?", "a"], padding=True, return_tensors="pt")
        maps = attention_maps(model, batch)
        tokenizer = processor.tokenizer
        words = tokenizer.convert_ids_to_tokens(tokenizer("is it red?")["input_ids"])
        first, n_text = maps[0], len(words)
        assert first.grid == (4, 6)
        assert first.tokens[:n_text] == words
        assert first.tokens[n_text : n_text + 3] == ["[IMG]", "0,0", "0,1"]
        assert first.attention.shape == (4, 4, len(first.tokens), len(first.tokens))
        assert {name: first.tokens[part] for name, part in first.groups.items()} == {
            "cls": ["[CLS]"],
            "words": words[1:-1],
            "sep": ["[SEP]"],
            "img_cls": ["[IMG]"],
            "patches": [f"{row},{column}" for row in range(4) for column in range(6)],
        }
        assert len(maps[1].tokens) == 1 + 1 + 1 + 1 + 24
        split = attention_split(model, batch)[0]
        for place, part in enumerate(first.groups.values()):
            assert_close(first.attention[:, :, 0, part].sum(-1), split[:, :, 0, place])
        del model.tokenizer
        assert attention_maps(model, batch)[0].tokens[0] == str(tokenizer.cls_token_id)


class TestRefusals:
    @pytest.mark.parametrize("measure", [attention_split, attention_measures, attention_maps])
    def test_training_is_refused(self, model, batch, measure):
        model.train()
        try:
            with pytest.raises(ValueError, match=r"call model\.eval"):
                measure(model, batch)
        finally:
            model.eval()

    def test_other_kernels_are_refused(self, model, batch, monkeypatch):
        monkeypatch.setattr(model.config, "_attn_implementation_internal", "sdpa")
        with pytest.raises(ValueError, match="'sdpa' ViLT does not mask padding"):
            attention_maps(model, batch)

    def test_attention_on_padding_is_an_error(self, model, batch, monkeypatch):
        monkeypatch.setattr(modeling_vilt, "create_bidirectional_mask", lambda **_: None)
        with pytest.raises(RuntimeError, match="attention on padding is"):
            attention_maps(model, batch)

    @pytest.mark.parametrize("measure", [attention_split, attention_measures, attention_maps])
    def test_a_gap_among_the_patches_is_refused(self, model, batch, measure):
        inputs, _, grids = prepare_batch(model, batch)
        inputs["pixel_mask"][1, 3] = 0
        with pytest.raises(ValueError, match="patches first, then padding"):
            measure(model, {**inputs, "patch_grids": grids})
