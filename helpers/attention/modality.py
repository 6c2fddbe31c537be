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
from scipy.stats import rankdata
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from helpers.attention.extract import measure_once, sample_questions
from helpers.attention.image_share import Batch, check_eval_mode, keep_patches, prepare_batch
from helpers.attention.word_classes import join_pieces
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import forward_raster
from helpers.run.settings import Study
from helpers.stats.bootstrap import spearman_rows, split_images
from helpers.stats.cluster_robust import divide_or_nan

CONDITIONS = ("intact", "image removed", "image exchanged", "words removed", "both removed")


def keep_words(inputs: Batch, words: Sequence[np.ndarray]) -> Batch:
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

    CONDITIONS: "image removed" (no patches); "image exchanged" (`shuffle_images(seed)`; NaN where
    there is a single picture); "words removed" (all but the first: what, where, is); "both removed"
    (no patches, and the first word alone). Columns: condition, question (row), accuracy (of VQA,
    NaN without answers), probability (sigmoid of the logit of the intact model's answer).
    ValueError in train mode.
    """
    check_eval_mode(model)
    indices, shape = [int(index) for index in indices], (len(CONDITIONS), len(encoded))
    labels, probability = np.full(shape, -1), np.full(shape, np.nan)

    def answer(condition: str, rows: list[int], inputs: Batch) -> None:
        number = CONDITIONS.index(condition)
        logits = forward_raster(model, inputs).logits.float().cpu()
        labels[number, rows] = logits.argmax(1)
        intact = torch.from_numpy(labels[0, rows])[:, None]
        probability[number, rows] = logits.gather(1, intact)[:, 0].sigmoid()

    for rows, batch in encoded.batches(batch_size, indices):
        inputs = prepare_batch(model, batch).inputs
        answer("intact", rows, inputs)
        no_image = keep_patches(inputs, [np.arange(0)] * len(rows))
        answer("image removed", rows, no_image)
        first = find_first_words(batch["input_ids"], encoded.processor.tokenizer)
        answer("words removed", rows, keep_words(inputs, first))
        answer("both removed", rows, keep_words(no_image, first))
    if len(encoded.sizes) > 1:
        for rows, batch in encoded.shuffle_images(seed).batches(batch_size, indices):
            answer("image exchanged", rows, prepare_batch(model, batch).inputs)
    accuracy = encoded.score(labels[:, indices].T, indices, model.config.id2label).T
    asked = pd.MultiIndex.from_product([CONDITIONS, indices], names=["condition", "question"])
    values = {"accuracy": accuracy.ravel(), "probability": probability[:, indices].ravel()}
    return pd.DataFrame(values, asked).reset_index()


def lose_points(
    parts: Sequence[pd.DataFrame], n_questions: int, value: str = "accuracy"
) -> dict[str, np.ndarray]:
    """Points lost by each condition, 100 (intact - condition): (model, question), NaN if not asked.

    parts: `withheld_accuracy` of each model; value: "accuracy" or "probability". "joint" is what
    words and image bring only together: 100 (intact - image removed - words removed + both
    removed), of two players the dividend of Harsanyi (1963, "A simplified bargaining model for the
    n-person cooperative game") and the interaction index of Grabisch and Roubens (1999, "An
    axiomatic approach to the concept of interaction among players in cooperative games"). So what
    is lost with both removed is what the words bring alone, plus the image alone, plus joint.
    """
    cells = pd.MultiIndex.from_product([range(n_questions), CONDITIONS])
    of_parts = [part.set_index(["question", "condition"])[value].reindex(cells) for part in parts]
    values = 100 * np.reshape(of_parts, (len(parts), n_questions, -1))
    gaps = np.moveaxis(values[..., :1] - values[..., 1:], 2, 0)
    lost = dict(zip(CONDITIONS[1:], gaps, strict=True))
    joint = lost["image removed"] + lost["words removed"] - lost["both removed"]
    return lost | {"joint": joint}


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
    what `play_coalitions` gives; the authors mask tokens where they stand, take the softmax and cut
    other blocks. Noise enlarges every |phi|, which draws text_share towards 1/2.
    permutations: pairs of orders (`draw_orders`), drawn by seed and question_id, so that rows are
    independent. batch_size: coalitions a pass. ValueError in train mode.
    Columns: question (row), text_share (NaN where all phi are 0), phi_text, phi_image (Phi),
    signed_text, signed_image (sums of phi, which add up to what all tokens add), n_words, n_blocks.
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
        text, image = phi[:n_words], phi[n_words:]
        sums = [np.abs(text).sum(), np.abs(image).sum(), text.sum(), image.sum()]
        share = float(divide_or_nan(sums[0], sums[0] + sums[1]))
        rows.append([int(index), share, *sums, n_words, n_blocks])
    columns = ["question", "text_share", "phi_text", "phi_image", "signed_text", "signed_image"]
    return pd.DataFrame(rows, columns=[*columns, "n_words", "n_blocks"])


@torch.no_grad()
def play_coalitions(
    model: nn.Module, inputs: Batch, blocks: np.ndarray, batch_size: int, coalitions: np.ndarray
) -> np.ndarray:
    """Probability (sigmoid) of the intact answer with only the tokens of each coalition: (m,).

    inputs: one question's, prepared; blocks: of `cut_blocks`; coalitions: bool (m, words + blocks).
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


def stratified_auc(values: np.ndarray, positive: np.ndarray, groups: Sequence[str]) -> float:
    """AUC of a measure for two kinds of questions, within groups (question families).

    The chance that a positive question has the larger value than a negative one of its group, ties
    counting half: Mann-Whitney U / (n1 n2), averaged over the groups with both kinds by number of
    questions. values (NaN left out), positive (bool), groups: (question,). NaN without such groups.
    """
    scores, sizes = [], []
    for rows in split_groups(groups, values):
        kinds, n = positive[rows], len(rows)
        if 0 < kinds.sum() < n:
            u = rankdata(values[rows])[kinds].sum() - kinds.sum() * (kinds.sum() + 1) / 2
            scores.append(u / (kinds.sum() * (n - kinds.sum())))
            sizes.append(n)
    return float(np.average(scores, weights=sizes)) if sizes else np.nan


def score_by_words(texts: pd.Series, positive: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """How much the words of each question speak for the positive kind (log odds): naive Bayes.

    What a measure tells of two kinds of questions, their wording may tell as well. Learnt on one
    half of the images and applied to the other, both ways round. texts, positive (bool), image_ids:
    (question,). NaN where a half holds one kind only.
    """
    scores, first = np.full(len(texts), np.nan), split_images(image_ids)
    if not all(0 < positive[half].sum() < half.sum() for half in (first, ~first)):
        return scores
    words = texts.str.lower().str.findall(r"\w+").str.join(" ").str.get_dummies(" ").to_numpy()
    for half in (first, ~first):
        kinds = [words[half & kind] for kind in (positive, ~positive)]
        rates = [(own.sum(0) + 1) / (len(own) + 2) for own in kinds]
        scores[~half] = words[~half] @ np.log(rates[0] / rates[1])
    return scores


def stratified_rank(x: np.ndarray, y: np.ndarray, groups: Sequence[str]) -> float:
    """Spearman's correlation of two measures within groups (question families), mean over groups.

    x, y (NaN left out), groups: (question,). A group without a correlation (fewer than three
    questions, or a constant) is left out; NaN where all are.
    """
    parts = [rows for rows in split_groups(groups, x + y) if len(rows) > 2]
    found = pd.Series([spearman_rows(x[None, rows], y[None, rows])[0] for rows in parts])
    return float(found.mean())


def split_groups(groups: Sequence[str], values: np.ndarray) -> list[np.ndarray]:
    """The rows of each group whose value is known."""
    known = pd.Series(range(len(values)))[~np.isnan(values)]
    return [rows.to_numpy() for _, rows in known.groupby(np.asarray(groups)[known], sort=False)]


def measure_modality(
    study: Study, model: nn.Module, encoded: EncodedQuestions, number: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What answers lose without words or image, and what they owe to either by MM-SHAP; once.

    In run_dir/modality: withheld.parquet, the `withheld_accuracy` of `withheld_questions`, and
    shapley.parquet, the `mm_shap` of `shapley_questions`, drawn with the study's seed. In the
    model's own precision, as differences of probabilities are small. number: which of the study's
    models it is; all are asked the same questions. The folder of the second is modality_1.
    """
    size, seed = study.extract_batch_size, study.seed

    def measure(folder: Path) -> None:
        rows = sample_questions(len(encoded), study.withheld_questions, seed)
        withheld = withheld_accuracy(model, encoded, rows, seed, size)
        withheld.to_parquet(folder / "withheld.parquet", index=False)
        rows = sample_questions(len(encoded), study.shapley_questions, seed)
        shares = mm_shap(model, encoded, rows, study.shapley_permutations, seed, size)
        shares.to_parquet(folder / "shapley.parquet", index=False)

    names = "seed", "withheld_questions", "shapley_questions", "shapley_permutations"
    folder = measure_once(study, "modality", measure, number=number, **study.settings(*names))
    return pd.read_parquet(folder / "withheld.parquet"), pd.read_parquet(folder / "shapley.parquet")
