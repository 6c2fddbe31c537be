"""How much does an answer need the words and the image? Withhold them, and see what it costs.

    withheld = withheld_accuracy(model, encoded, indices, seed)         # whole modalities
    shares = mm_shap(model, encoded, indices, permutations=8, seed=0)   # token by token

A token is withheld by taking it out of the sequence: no other token attends to it. [CLS], [SEP] and the
image's own CLS always stay, and so do the positions of the tokens that are left.
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

from helpers.attention.extract import measure_once, sample_questions
from helpers.attention.image_share import keep_patches, prepare_batch
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import forward_raster
from helpers.run.settings import Study
from helpers.stats.bootstrap import Interval
from helpers.stats.cluster_robust import MIN_GROUPS, divide_or_nan, has_enough_data

CONDITIONS = ("intact", "image removed", "image exchanged", "words removed")


def keep_words(inputs: dict[str, Tensor], words: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """A prepared batch with some words only: each question's word pieces, from 0; [CLS] and [SEP] stay."""
    whole = inputs["attention_mask"]
    mask = torch.zeros(whole.shape, dtype=whole.dtype)
    for row, (kept, length) in enumerate(zip(words, whole.sum(1).tolist(), strict=True)):
        mask[row, [0, *(np.asarray(kept, dtype=int) + 1).tolist(), length - 1]] = 1
    return {**inputs, "attention_mask": mask.to(whole.device)}


def find_first_words(ids: Tensor, tokenizer) -> list[np.ndarray]:
    """The word pieces of each question's first word, numbered from 0: ids (batch, text) -> one array each."""
    found = []
    for row in ids.tolist():
        pieces = tokenizer.convert_ids_to_tokens(row[1:])
        end = next(
            (place for place, piece in enumerate(pieces[1:], 1) if not piece.startswith("##")), 1
        )
        found.append(np.arange(end) if pieces[0] != tokenizer.sep_token else np.arange(0))
    return found


@torch.no_grad()
def withheld_accuracy(
    model: nn.Module,
    encoded: EncodedQuestions,
    indices: Sequence[int],
    seed: int,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Ask each question with everything, without its image, with another's, and with its first word only.

    CONDITIONS: "intact"; "image removed" (no patches); "image exchanged" (`encoded.shuffle_images(seed)`; NaN
    where there is one picture only); "words removed" (all but the first word: what, where, is). Columns, a
    row a question and condition: question (row), condition, accuracy (VQA accuracy, NaN without answers),
    probability (sigmoid of the logit of the intact model's answer). ValueError for a model in train mode.
    """
    check_mode(model)
    place = {int(index): number for number, index in enumerate(indices)}
    labels = np.full((len(CONDITIONS), len(place)), -1)
    probability, best = np.full(labels.shape, np.nan), torch.zeros(len(place), dtype=torch.long)

    def answer(condition: str, rows: list[int], inputs: dict[str, Tensor]) -> None:
        logits = forward_raster(model, inputs).logits.float().cpu()
        if condition == "intact":
            best[rows] = logits.argmax(1)
        number = CONDITIONS.index(condition)
        labels[number, rows] = logits.argmax(1)
        probability[number, rows] = logits.gather(1, best[rows][:, None])[:, 0].sigmoid()

    for part, batch in encoded.batches(batch_size, indices):
        rows, inputs = [place[index] for index in part], prepare_batch(model, batch).inputs
        answer("intact", rows, inputs)
        answer("image removed", rows, keep_patches(inputs, [np.arange(0)] * len(rows)))
        first = find_first_words(batch["input_ids"], encoded.processor.tokenizer)
        answer("words removed", rows, keep_words(inputs, first))
    if len(encoded.sizes) > 1:
        for part, batch in encoded.shuffle_images(seed).batches(batch_size, indices):
            answer(
                "image exchanged",
                [place[index] for index in part],
                prepare_batch(model, batch).inputs,
            )
    tables = [
        pd.DataFrame({"question": list(place), "condition": condition, "probability": probability[number],
                      "accuracy": encoded.score(labels[number], list(place), model.config.id2label)})
        for number, condition in enumerate(CONDITIONS)
    ]  # fmt: skip
    return pd.concat(tables, ignore_index=True)[
        ["question", "condition", "accuracy", "probability"]
    ]


def check_mode(model: nn.Module) -> None:
    """ValueError for a model in train mode."""
    if model.training:
        raise ValueError("in train mode dropout blurs every answer: call model.eval() first.")


def lose_points(withheld: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """Points that questions lose, 100 (intact - condition): a row a question, a column a condition.

    withheld: of `withheld_accuracy`; value: "accuracy" or "probability". Below 0 it is better off without.
    """
    own = {
        condition: rows.set_index("question")[value]
        for condition, rows in withheld.groupby("condition")
    }
    return pd.DataFrame(
        {condition: 100 * (own["intact"] - own[condition]) for condition in CONDITIONS[1:]}
    )


def cut_blocks(grid: tuple[int, int], count: int) -> np.ndarray:
    """Cut a grid (rows, columns) into about `count` blocks, near to square: each patch's block, (patches,).

    Parcalabescu and Frank (2023): about as many parts as the text has tokens, so that the modalities have as
    many players. Blocks are rectangles; at the finest each holds one patch.
    """
    rows, columns = grid
    down = min(max(round(np.sqrt(count * rows / columns)), 1), rows)
    across = min(max(round(count / down), 1), columns)
    return np.add.outer(
        np.arange(rows) * down // rows * across, np.arange(columns) * across // columns
    ).ravel()


def draw_orders(n_players: int, permutations: int, seed) -> np.ndarray:
    """Random orders of the players, each followed by its reverse: (2 * permutations, players).

    Antithetic pairs (Mitchell et al. 2022, "Sampling permutations for Shapley value estimation"): who is
    early in one is late in the other, which evens out the estimate. seed: of numpy's default_rng.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.tile(np.arange(n_players), (permutations, 1)), axis=1)
    return np.stack([drawn, drawn[:, ::-1]], axis=1).reshape(-1, n_players)


def shapley_values(game: Callable[[np.ndarray], np.ndarray], orders: np.ndarray) -> np.ndarray:
    """What each player adds to the game when it joins, averaged over orders: (orders, players) -> (players,).

    game: values (m,) of coalitions, bool (m, players); asked once, and no coalition twice. What players add
    sums to game(all) - game(none) for any orders; over all orders of the players it is the Shapley value.
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

    MM-SHAP (Parcalabescu and Frank 2023, "MM-SHAP: A Performance-agnostic Metric for Measuring Multimodal
    Contributions in Vision and Language Models & Tasks"): text_share = T-SHAP = Phi_T /
    (Phi_T + Phi_V), where Phi is the sum of |phi| over a modality's players: the word pieces, and as many
    blocks of patches (`cut_blocks`). The value of a coalition is the probability (sigmoid of the logit) of
    the answer that the intact model gives, with the other tokens withheld. Their code masks tokens where they
    stand, takes the softmax, and cuts ceil(sqrt(tokens))^2 blocks: shares are not to be compared as if alike.
    Columns: question (row),
    text_share (NaN where all phi are 0), phi_text, phi_image (Phi), signed_text, signed_image (sums of phi,
    which add up to what all tokens together add), n_words, n_blocks.

    permutations: pairs of orders a question (`draw_orders`), drawn by seed and question_id, so that a
    question's row does not depend on the others. Noise makes every |phi| a little too large, and so tends to
    draw text_share towards 1/2. batch_size: coalitions a forward pass. ValueError for a model in train mode.
    """
    check_mode(model)
    rows = []
    for index in tqdm(indices, desc="MM-SHAP", unit="question"):
        prepared = prepare_batch(model, encoded.collate([encoded[index]]))
        n_words = int(prepared.groups[0, 1].sum())
        blocks = cut_blocks(tuple(prepared.grids[0].tolist()), max(n_words, 1))
        n_blocks = int(blocks.max()) + 1
        game = partial(play_coalitions, model, prepared.inputs, blocks, batch_size)
        question_id = int(encoded.questions["question_id"].iloc[index])
        phi = shapley_values(
            game, draw_orders(n_words + n_blocks, permutations, [seed, question_id])
        )
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
    """The game of `mm_shap` on one question: probability (m,) of the intact answer with each coalition only.

    inputs: of the question, prepared; coalitions: bool (m, words + blocks); blocks: of `cut_blocks`.
    """
    best = int(forward_raster(model, inputs).logits[0].argmax())
    n_words = coalitions.shape[1] - blocks.max() - 1
    words, patches = coalitions[:, :n_words], coalitions[:, n_words:][:, blocks]
    by_size = np.argsort(
        patches.sum(1), kind="stable"
    )  # alike in a batch, so that little is padded
    values = np.empty(len(coalitions))
    for part in np.array_split(by_size, -(-len(by_size) // batch_size)):
        copies = {name: each.expand(len(part), *each.shape[1:]) for name, each in inputs.items()}
        kept = keep_words(copies, [np.flatnonzero(row) for row in words[part]])
        kept = keep_patches(kept, [np.flatnonzero(row) for row in patches[part]])
        values[part] = forward_raster(model, kept).logits[:, best].float().sigmoid().cpu()
    return values


def rank_agreement(x, y, groups, clusters, n_resamples: int = 1000, seed: int = 0) -> Interval:
    """Does x rank the groups (question families) as y does? Spearman correlation of the groups' means.

    x, y: (n,) values of questions, NaN where unknown: they may be known on different questions. groups,
    clusters: (n,). n is the number of groups that both can tell (`stats.has_enough_data`), n_clusters that of their
    images; NaN for fewer than 4. The 95 % percentile interval redraws images, and with them both
    means together: it says how sure the ranks of these groups are, not what other groups would show.
    Redrawing adds noise to noise: where means are close, the interval can lie below the estimate.
    """
    codes, names = pd.factorize(np.asarray(groups))
    clusters, n_clusters = _code_clusters(clusters)
    sums, counts, told = [], [], np.ones(len(names), dtype=bool)
    for values in (np.asarray(x, dtype=float), np.asarray(y, dtype=float)):
        known = ~np.isnan(values) & (codes >= 0)
        cells = (clusters[known], codes[known])
        for tables, weights in ((sums, values[known]), (counts, 1.0)):
            tables.append(np.zeros((n_clusters, len(names))))
            np.add.at(tables[-1], cells, weights)
        told &= has_enough_data(counts[-1].sum(0), (counts[-1] > 0).sum(0))
    used = int((sum(counts)[:, told] > 0).any(1).sum())
    if told.sum() < MIN_GROUPS:
        return Interval(np.nan, np.nan, np.nan, int(told.sum()), used)
    weights = _draw_weights(n_clusters, n_resamples, seed)  # the first: every image once
    means = [
        divide_or_nan(weights @ a[:, told], weights @ b[:, told])
        for a, b in zip(sums, counts, strict=True)
    ]
    ranks = [
        rankdata(mean, axis=1, nan_policy="propagate") - (told.sum() + 1) / 2 for mean in means
    ]
    spread = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    return Interval(
        *_bound(divide_or_nan((ranks[0] * ranks[1]).sum(1), spread)), int(told.sum()), used
    )


def tell_apart(
    values, positive, groups, clusters, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """How well a measure tells two kinds of questions apart, at equal group (question family): the AUC.

    The chance that a positive question has the larger value than a negative one of the same group, a tie
    counting half: Mann-Whitney U / (n1 n2), averaged over the groups that hold both kinds, by number of
    questions. 1/2: not at all; below: the wrong way round. values (NaN left out), positive (bool), groups,
    clusters: (n,). n and n_clusters count these groups' questions; the 95 % interval redraws images. NaN
    unless both kinds are `stats.has_enough_data`.
    """
    values, groups = np.asarray(values, dtype=float), np.asarray(groups)
    positive = np.asarray(positive, dtype=bool)
    clusters, n_clusters = _code_clusters(clusters)
    used = ~np.isnan(values) & ~pd.isna(groups)
    mixed = [
        name
        for name in pd.unique(groups[used])
        if len(np.unique(positive[used & (groups == name)])) == 2
    ]
    used &= np.isin(groups, mixed)
    n, own = int(used.sum()), len(np.unique(clusters[used]))
    kinds = [used & positive, used & ~positive]
    if not all(has_enough_data(kind.sum(), len(np.unique(clusters[kind]))) for kind in kinds):
        return Interval(np.nan, np.nan, np.nan, n, own)
    weights, total, seen = _draw_weights(n_clusters, n_resamples, seed), 0, 0
    for name in mixed:
        rows = [kind & (groups == name) for kind in kinds]
        more, less = (weights[:, clusters[row]] for row in rows)  # (draw, question)
        wins = (np.sign(np.subtract.outer(values[rows[0]], values[rows[1]])) + 1) / 2
        pairs, size = more.sum(1) * less.sum(1), more.sum(1) + less.sum(1)
        auc = divide_or_nan(
            ((more @ wins) * less).sum(1), pairs
        )  # NaN in a draw without either kind
        total, seen = total + np.nan_to_num(auc) * size, seen + size * (pairs > 0)
    return Interval(*_bound(divide_or_nan(total, seen)), n, own)


def _code_clusters(clusters) -> tuple[np.ndarray, int]:
    """Clusters as numbers from 0, and how many there are."""
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1].reshape(-1)
    return codes, int(codes.max(initial=-1)) + 1


def _draw_weights(n_clusters: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each cluster counts: (1 + n_resamples, clusters), first once each, then as a bootstrap draws."""
    drawn = np.random.default_rng(seed).multinomial(
        n_clusters, np.full(n_clusters, 1 / n_clusters), n_resamples
    )
    return np.concatenate([np.ones((1, n_clusters)), drawn])


def _bound(replicates: np.ndarray) -> tuple[float, float, float]:
    """The first replicate, the estimate, and the 95 % percentile bounds of the others; NaN draws left out."""
    drawn = replicates[1:][~np.isnan(replicates[1:])]
    if np.isnan(replicates[0]) or not len(drawn):
        return np.nan, np.nan, np.nan
    return float(replicates[0]), *(float(bound) for bound in np.percentile(drawn, [2.5, 97.5]))


def measure_modality(
    study: Study, model: nn.Module, encoded: EncodedQuestions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What answers lose without their words or their image, and what they owe to either by MM-SHAP; measured once.

    Kept in run_dir/modality: withheld.parquet, of all questions (`withheld_accuracy`), and
    shapley.parquet, of `shapley_questions` questions drawn with the study's seed (`mm_shap`). Returns
    both tables. In the model's own precision: differences of probabilities are small.
    """
    size = study.extract_batch_size

    def measure(folder: Path) -> None:
        rows = range(len(encoded))
        withheld = withheld_accuracy(model, encoded, rows, study.seed, size)
        withheld.to_parquet(folder / "withheld.parquet", index=False)
        chosen = sample_questions(len(encoded), study.shapley_questions, study.seed)
        shares = mm_shap(model, encoded, chosen, study.shapley_permutations, study.seed, size)
        shares.to_parquet(folder / "shapley.parquet", index=False)

    inputs = study.settings("seed", "shapley_questions", "shapley_permutations")
    folder = measure_once(study, "modality", measure, **inputs)
    return pd.read_parquet(folder / "withheld.parquet"), pd.read_parquet(folder / "shapley.parquet")
