"""How much does an answer need the words and the image? Withhold them, and see what it costs.

    withheld = withheld_accuracy(model, encoded, indices, seed)         # whole modalities
    shares = mm_shap(model, encoded, indices, permutations=8, seed=0)   # token by token

A withheld token leaves the sequence: no other token attends to it. [CLS], [SEP] and the image's
own CLS always stay, and so do the positions of the tokens that are left.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from helpers.attention.extract import measure_once, sample_questions
from helpers.attention.image_share import check_eval_mode, keep_patches, prepare_batch
from helpers.attention.word_classes import join_pieces
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import forward_raster
from helpers.run.settings import Study
from helpers.stats.bootstrap import Interval, spearman_rows
from helpers.stats.cluster_robust import (
    MIN_GROUPS,
    check_rows,
    divide_or_nan,
    has_enough_data,
    sum_by_image,
)

CONDITIONS = ("intact", "image removed", "image exchanged", "words removed")


def keep_words(inputs: dict[str, Tensor], words: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """A prepared batch with only some word pieces of each question (from 0), [CLS] and [SEP]."""
    whole = inputs["attention_mask"]
    mask = torch.zeros(whole.shape, dtype=whole.dtype)
    for row, (kept, length) in enumerate(zip(words, whole.sum(1).tolist(), strict=True)):
        mask[row, [0, *(np.asarray(kept, dtype=int) + 1).tolist(), length - 1]] = 1
    return {**inputs, "attention_mask": mask.to(whole.device)}


def find_first_words(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """The word pieces, from 0, of each question's first word; ids: (batch, text)."""
    rows = [tokenizer.convert_ids_to_tokens(row[1:]) for row in ids.tolist()]
    counts = [0 if row[0] == tokenizer.sep_token else join_pieces(row)[1].count(0) for row in rows]
    return [np.arange(count) for count in counts]


@torch.no_grad()
def withheld_accuracy(
    model: nn.Module,
    encoded: EncodedQuestions,
    indices: Sequence[int],
    seed: int,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Answer each question with everything, and with a modality withheld or exchanged.

    CONDITIONS: "intact"; "image removed" (no patches); "image exchanged" (`shuffle_images(seed)`;
    NaN where there is a single picture); "words removed" (all but the first: what, where, is).
    Columns: question (row), condition, accuracy (VQA accuracy, NaN without answers), probability
    (of the intact model's answer, the sigmoid of its logit). ValueError in train mode.
    """
    check_eval_mode(model)
    indices = [int(index) for index in indices]
    row_of = {index: row for row, index in enumerate(indices)}
    labels = np.full((len(CONDITIONS), len(row_of)), -1)
    probability, best = np.full(labels.shape, np.nan), torch.zeros(len(row_of), dtype=torch.long)

    def answer(condition: str, rows: list[int], inputs: dict[str, Tensor]) -> None:
        logits = forward_raster(model, inputs).logits.float().cpu()
        if condition == "intact":
            best[rows] = logits.argmax(1)
        number = CONDITIONS.index(condition)
        labels[number, rows] = logits.argmax(1)
        probability[number, rows] = logits.gather(1, best[rows][:, None])[:, 0].sigmoid()

    for part, batch in encoded.batches(batch_size, indices):
        rows, inputs = [row_of[index] for index in part], prepare_batch(model, batch).inputs
        answer("intact", rows, inputs)
        answer("image removed", rows, keep_patches(inputs, [np.arange(0)] * len(rows)))
        first = find_first_words(batch["input_ids"], encoded.processor.tokenizer)
        answer("words removed", rows, keep_words(inputs, first))
    if len(encoded.sizes) > 1:
        for part, batch in encoded.shuffle_images(seed).batches(batch_size, indices):
            inputs = prepare_batch(model, batch).inputs
            answer("image exchanged", [row_of[index] for index in part], inputs)
    accuracy = encoded.score(labels.T, indices, model.config.id2label).T
    tables = [
        pd.DataFrame({"question": list(row_of), "condition": condition, "accuracy": scores})
        for condition, scores in zip(CONDITIONS, accuracy, strict=True)
    ]
    return pd.concat(tables, ignore_index=True).assign(probability=probability.ravel())


def lose_points(withheld: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """Points lost, 100 (intact - condition): a row a question, a column a condition.

    withheld: of `withheld_accuracy`; value: "accuracy" or "probability".
    """
    values = withheld.set_index(["condition", "question"])[value]
    return pd.DataFrame({name: 100 * (values["intact"] - values[name]) for name in CONDITIONS[1:]})


def cut_blocks(grid: tuple[int, int], count: int) -> np.ndarray:
    """Cut a grid (rows, columns) into about `count` near-square blocks: each patch's, (patches,).

    So that both modalities have about as many players (Parcalabescu and Frank 2023).
    """
    rows, columns = grid
    down = min(max(round(np.sqrt(count * rows / columns)), 1), rows)
    across = min(max(round(count / down), 1), columns)
    row_blocks = np.arange(rows) * down // rows
    return np.add.outer(row_blocks * across, np.arange(columns) * across // columns).ravel()


def draw_orders(n_players: int, permutations: int, seed: int | Sequence[int]) -> np.ndarray:
    """Random orders of the players, each followed by its reverse: (2 * permutations, players).

    Such antithetic pairs lower the variance (Mitchell et al. 2022, "Sampling permutations for
    Shapley value estimation").
    """
    generator = np.random.default_rng(seed)
    drawn = generator.permuted(np.tile(np.arange(n_players), (permutations, 1)), axis=1)
    return np.stack([drawn, drawn[:, ::-1]], axis=1).reshape(-1, n_players)


def shapley_values(game: Callable[[np.ndarray], np.ndarray], orders: np.ndarray) -> np.ndarray:
    """What each player adds when it joins, averaged over orders: (orders, players) -> (players,).

    game: values (m,) of coalitions, bool (m, players); asked once, and no coalition twice. The sum
    is game(all) - game(none) for any orders; over all orders it is the Shapley value.
    """
    n_orders, n_players = orders.shape
    joined = np.argsort(orders, axis=1)  # when each player joins
    coalitions = joined[:, None] < np.arange(n_players + 1)[:, None]  # (order, size, player)
    asked, where = np.unique(coalitions.reshape(-1, n_players), axis=0, return_inverse=True)
    values = np.asarray(game(asked), dtype=float)[where.reshape(n_orders, n_players + 1)]
    return np.take_along_axis(np.diff(values, axis=1), joined, axis=1).mean(0)


@torch.no_grad()
def mm_shap(
    model: nn.Module,
    encoded: EncodedQuestions,
    indices: Sequence[int],
    permutations: int,
    seed: int,
    batch_size: int = 64,
) -> pd.DataFrame:
    """How much of an answer is owed to the words and how much to the image: a row a question.

    text_share is T-SHAP = Phi_T / (Phi_T + Phi_V), with Phi the sum of |phi| over a modality's
    players: the word pieces, and as many blocks of patches (Parcalabescu and Frank 2023, "MM-SHAP:
    A Performance-agnostic Metric for Measuring Multimodal Contributions"). A coalition's value is
    the probability (sigmoid) of the intact model's answer with all other tokens withheld; the
    authors mask tokens where they stand, take the softmax and cut other blocks.
    Columns: question (row), text_share (NaN where all phi are 0), phi_text, phi_image (Phi),
    signed_text, signed_image (sums of phi, which add up to what all tokens add), n_words, n_blocks.
    permutations: pairs of orders (`draw_orders`), drawn by seed and question_id, so that rows are
    independent. Noise enlarges every |phi|, which draws text_share towards 1/2. batch_size:
    coalitions a pass. ValueError for a model in train mode.
    """
    check_eval_mode(model)
    rows = []
    for index in tqdm(indices, desc="MM-SHAP", unit="question"):
        prepared = prepare_batch(model, encoded.collate([encoded[index]]))
        n_words = int(prepared.groups[0, 1].sum())
        blocks = cut_blocks(tuple(prepared.grids[0].tolist()), max(n_words, 1))
        n_blocks = int(blocks.max()) + 1
        game = partial(play_coalitions, model, prepared.inputs, blocks, batch_size)
        seeds = [seed, int(encoded.questions["question_id"].iloc[index])]
        phi = shapley_values(game, draw_orders(n_words + n_blocks, permutations, seeds))
        text, image = np.abs(phi[:n_words]).sum(), np.abs(phi[n_words:]).sum()
        rows.append({
            "question": int(index), "text_share": float(divide_or_nan(text, text + image)),
            "phi_text": text, "phi_image": image,
            "signed_text": phi[:n_words].sum(), "signed_image": phi[n_words:].sum(),
            "n_words": n_words, "n_blocks": n_blocks,
        })  # fmt: skip
    return pd.DataFrame(rows)


@torch.no_grad()
def play_coalitions(
    model: nn.Module,
    inputs: dict[str, Tensor],
    blocks: np.ndarray,
    batch_size: int,
    coalitions: np.ndarray,
) -> np.ndarray:
    """Probability (m,) of one question's intact answer with only the tokens of each coalition.

    inputs: prepared; blocks: of `cut_blocks`; coalitions: bool (m, words + blocks).
    """
    best = int(forward_raster(model, inputs).logits[0].argmax())
    n_words = coalitions.shape[1] - blocks.max() - 1
    words, patches = coalitions[:, :n_words], coalitions[:, n_words:][:, blocks]
    by_size = np.argsort(patches.sum(1), kind="stable")  # so that little is padded
    values = np.empty(len(coalitions))
    for part in np.array_split(by_size, -(-len(by_size) // batch_size)):
        copies = {name: each.expand(len(part), *each.shape[1:]) for name, each in inputs.items()}
        kept = keep_words(copies, [np.flatnonzero(row) for row in words[part]])
        kept = keep_patches(kept, [np.flatnonzero(row) for row in patches[part]])
        values[part] = forward_raster(model, kept).logits[:, best].float().sigmoid().cpu()
    return values


def rank_agreement(
    x: np.ndarray,
    y: np.ndarray,
    groups: Sequence[str],
    image_ids: np.ndarray,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Spearman correlation of two measures' means over groups (question families).

    x, y (NaN where unknown), groups, image_ids: (question,). n counts the groups with enough data
    in both (`has_enough_data`), n_clusters their images; NaN for fewer than MIN_GROUPS. The 95 %
    percentile interval resamples images, and both means with them: it is of these groups' ranks.
    Resampling adds noise, so where means are close the interval can lie below the estimate.
    """
    codes, names = pd.factorize(np.asarray(groups))
    values, images = check_rows(np.column_stack([x, y]), image_ids)
    by_group = np.where(codes[:, None] == np.arange(len(names)), values.T[..., None], np.nan)
    cells = [sum_by_image(measure, images) for measure in by_group]  # (image, group)
    used = np.all([has_enough_data(count.sum(0), (count > 0).sum(0)) for _, count in cells], axis=0)
    n = int(used.sum())
    n_used_images = int(np.any([count[:, used].any(1) for _, count in cells], axis=0).sum())
    if n < MIN_GROUPS:
        return Interval(np.nan, np.nan, np.nan, n, n_used_images)
    weights = _resample_images(images, n_resamples, seed)
    means = (divide_or_nan(weights @ v[:, used], weights @ count[:, used]) for v, count in cells)
    return Interval(*_percentile_interval(spearman_rows(*means)), n, n_used_images)


def stratified_auc(
    values: np.ndarray,
    positive: np.ndarray,
    groups: Sequence[str],
    image_ids: np.ndarray,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """AUC of a measure for two kinds of questions, within groups (question families).

    The chance that a positive question has the larger value than a negative one of its group, ties
    counting half: Mann-Whitney U / (n1 n2), averaged over the groups with both kinds by number of
    questions. values (NaN left out), positive (bool), groups, image_ids: (question,). n and
    n_clusters count these groups' questions and images. The 95 % interval resamples images. NaN
    unless there is enough data of both kinds.
    """
    values, images = check_rows(values, image_ids)
    columns = {"value": values, "positive": np.asarray(positive, dtype=bool), "image": images}
    table = pd.DataFrame(columns).assign(group=np.asarray(groups)).dropna()
    table = table[table.groupby("group")["positive"].transform("nunique") == 2]
    counts = table.groupby("positive")["image"].agg(["size", "nunique"])
    n, n_used_images = len(table), table["image"].nunique()
    if not n or not has_enough_data(counts["size"], counts["nunique"]).all():
        return Interval(np.nan, np.nan, np.nan, n, n_used_images)
    weights, total, seen = _resample_images(images, n_resamples, seed), 0, 0
    for _, rows in table.groupby("group", sort=False):
        kinds = [rows[rows["positive"]], rows[~rows["positive"]]]
        more, less = (weights[:, kind["image"]] for kind in kinds)  # (resample, question)
        wins = (np.sign(np.subtract.outer(*(kind["value"].to_numpy() for kind in kinds))) + 1) / 2
        pairs, size = more.sum(1) * less.sum(1), more.sum(1) + less.sum(1)
        auc = divide_or_nan(((more @ wins) * less).sum(1), pairs)  # NaN without either kind
        total, seen = total + np.nan_to_num(auc) * size, seen + size * (pairs > 0)
    return Interval(*_percentile_interval(divide_or_nan(total, seen)), n, n_used_images)


def _resample_images(images: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """How often each of images 0, 1, ... counts: (1 + n_resamples, image), first once each."""
    n_images = images.max() + 1
    shares = np.full(n_images, 1 / n_images)
    drawn = np.random.default_rng(seed).multinomial(n_images, shares, n_resamples)
    return np.concatenate([np.ones((1, n_images)), drawn])


def _percentile_interval(replicates: np.ndarray) -> tuple[float, float, float]:
    """The first replicate, which is the estimate, and 95 % percentile bounds of the others."""
    drawn = replicates[1:][~np.isnan(replicates[1:])]
    if np.isnan(replicates[0]) or not len(drawn):
        return np.nan, np.nan, np.nan
    return float(replicates[0]), *(float(bound) for bound in np.percentile(drawn, [2.5, 97.5]))


def measure_modality(
    study: Study, model: nn.Module, encoded: EncodedQuestions, number: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What answers lose without words or image, and what they owe to either by MM-SHAP; once.

    In run_dir/modality: withheld.parquet, `withheld_accuracy` of all questions; shapley.parquet,
    the `mm_shap` of `shapley_questions`, drawn with the study's seed. In the model's own precision,
    as differences of probabilities are small. number: which of the study's models it is. The folder
    of the second is modality_1, and it is asked a quarter of the first one's `shapley_questions`.
    """
    size = study.extract_batch_size

    def measure(folder: Path) -> None:
        rows = range(len(encoded))
        withheld = withheld_accuracy(model, encoded, rows, study.seed, size)
        withheld.to_parquet(folder / "withheld.parquet", index=False)
        chosen = sample_questions(len(encoded), study.shapley_questions, study.seed)
        chosen = chosen[::4] if number else chosen
        shares = mm_shap(model, encoded, chosen, study.shapley_permutations, study.seed, size)
        shares.to_parquet(folder / "shapley.parquet", index=False)

    inputs = study.settings("seed", "shapley_questions", "shapley_permutations")
    name = f"modality_{number}" if number else "modality"
    folder = measure_once(study, name, measure, number=number, **inputs)
    return pd.read_parquet(folder / "withheld.parquet"), pd.read_parquet(folder / "shapley.parquet")
