"""Which words of a question look at the image, and which are read: attention by class of words.

    classify_pieces(["what", "color", "are", "the", "chair", "##s", "?"])
    word_measures(model, batch)["word_image"][0, 2]  # first question, third layer: (head, CLASSES)

A word's class comes from the lexicon data/word_classes.csv and from its place; no tagger is needed.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from helpers.attention.extract import AttentionTable, extract_once
from helpers.attention.image_share import IMAGE, prepare_batch, query_weights
from helpers.data.encode import EncodedQuestions
from helpers.model.forward import Microbatch, PackedForward
from helpers.run.cache import hash_file
from helpers.run.settings import Study

CLASSES = ("question word", "colour word", "noun", "other content", "function word", "punctuation")
READERS = ("cls", "patches")  # of `word_read`
READER_INDEX = [0, 4]  # READERS among KEY_GROUPS
WORD_MEASURES = {  # of `word_measures`; name: type, axes after the question
    "word_image": ("float32", ("layer", "head", len(CLASSES))),
    "word_read": ("float32", ("layer", "head", len(READERS), len(CLASSES))),
    "word_place": ("float32", (len(CLASSES),)),
}
LEXICON = Path(__file__).resolve().parents[2] / "data" / "word_classes.csv"
with LEXICON.open(encoding="utf-8") as _table:
    WORD_CLASSES = {row["word"]: row["class"] for row in csv.DictReader(_table)}
# what opens a yes-no question; "isn" and the like are what tokenizers leave of "isn't"
OPENERS = {
    "is", "are", "was", "were", "am", "do", "does", "did", "can", "could", "will", "would", "may",
    "should", "shall", "might", "has", "have", "had", "isn", "aren", "wasn", "weren", "don",
    "doesn", "didn", "couldn", "won", "wouldn", "shouldn", "hasn", "haven",
}  # fmt: skip
DETERMINERS = {
    "a", "an", "the", "this", "that", "these", "those", "my", "your", "his", "her", "its", "our",
    "their", "any", "some", "no", "each", "every", "many", "what", "which", "whose",
}  # fmt: skip


def classify_words(words: Sequence[str]) -> list[str]:
    """The class, one of CLASSES, of each word of a question, in lower case, punctuation apart.

    punctuation: without a letter or digit. question word: the first what, which, who, where, when,
    why or how; or a first word such as is, are, do or can (a yes-no question); and many or much
    right after how ("how many" asks as a whole; "what color" is a question word and a colour
    word). A later who or which is relative: a function word. All others are looked up in the
    lexicon, as they stand or without -s, -es, -ies. A word not found is a noun right after a
    determiner and before a function word or the end ("is this a terminal?"), else other content.
    """
    classes = [look_up(word) for word in words]
    asking = next((i for i, name in enumerate(classes) if name == "question word"), len(words))
    if words and words[0] in OPENERS:
        asking = 0
    for i, name in enumerate(classes):
        how_many = i == asking + 1 and words[asking] == "how" and words[i] in ("many", "much")
        if i == asking or how_many:
            classes[i] = "question word"
        elif name == "question word":
            classes[i] = "function word"
    for i, name in enumerate(classes):
        if name is None:
            after = classes[i + 1] if i + 1 < len(words) else "punctuation"
            ends = after in ("function word", "punctuation")
            noun = i > 0 and words[i - 1] in DETERMINERS and ends
            classes[i] = "noun" if noun else "other content"
    return classes


def look_up(word: str) -> str | None:
    """A word's class in the lexicon, whatever its place; None for a word that is not there."""
    if not any(map(str.isalnum, word)):
        return "punctuation"
    if word[0].isdigit():
        return "other content"
    if word in WORD_CLASSES:
        return WORD_CLASSES[word]
    endings = {"ies": "y", "es": "", "s": ""}
    stems = (word.removesuffix(end) + rest for end, rest in endings.items() if word.endswith(end))
    found = (WORD_CLASSES.get(stem) for stem in stems)
    return next((name for name in found if name in ("noun", "colour word", "other content")), None)


def join_pieces(pieces: Sequence[str]) -> tuple[list[str], list[int]]:
    """Whole words ("chair", "##s": "chairs"), and for each piece the number of its word."""
    words, word_of = [], []
    for piece in pieces:
        if piece.startswith("##") and words:
            words[-1] += piece.removeprefix("##")
        else:
            words.append(piece)
        word_of.append(len(words) - 1)
    return words, word_of


def classify_pieces(pieces: Sequence[str]) -> list[str]:
    """The class of each word piece, that of its word; pieces: without [CLS] and [SEP]."""
    words, word_of = join_pieces(pieces)
    classes = classify_words(words)
    return [classes[word] for word in word_of]


def mark_classes(
    tokenizer: PreTrainedTokenizerBase, input_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """Which text token is of which class: bool (batch, CLASSES, text); specials are of none."""
    members = torch.zeros(len(input_ids), len(CLASSES), input_ids.shape[1], dtype=torch.bool)
    lengths = attention_mask.sum(1).tolist()
    for row, (ids, length) in enumerate(zip(input_ids.tolist(), lengths, strict=True)):
        pieces = tokenizer.convert_ids_to_tokens(ids[1 : length - 1])
        for token, name in enumerate(classify_pieces(pieces), start=1):
            members[row, CLASSES.index(name), token] = True
    return members


@torch.no_grad()
def word_measures(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Attention from and to the words of each class; a measure for `extract_attention`.

    word_image (question, layer, head, CLASSES): mean over the class's word pieces, as queries, of
        the mass on the image (its CLS and patches).
    word_read (question, layer, head, READERS, CLASSES): mean over the class's word pieces, as keys,
        of the mass that a reader (text [CLS]; mean over patches) puts on one.
    word_place (question, CLASSES): mean position of the class's word pieces; the first is 1.
    logits (question, answer).
    NaN where a question has no word of the class. ValueError without `model.tokenizer`.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            "word classes need model.tokenizer: load the model with load_vilt, or set it."
        )
    inputs, groups, _ = prepare_batch(model, batch, with_grids=False)
    members = mark_classes(tokenizer, inputs["input_ids"], inputs["attention_mask"])
    members = members.to(groups.device)
    forward, layers = PackedForward(model, inputs, groups), []
    for layer in forward:
        found = [read_classes(part, attention, members) for part, attention in layer]
        layers.append([torch.cat(parts) for parts in zip(*found, strict=True)])
    image, read = (torch.stack(parts, dim=1) for parts in zip(*layers, strict=True))
    positions = torch.arange(members.shape[2], device=members.device, dtype=torch.float32)
    place = query_weights(members) @ positions
    return {"word_image": image, "word_read": read, "word_place": place, "logits": forward.logits}


def read_classes(
    microbatch: Microbatch, attention: Tensor, members: Tensor
) -> tuple[Tensor, Tensor]:
    """word_image and word_read of one layer; attention: (question, head, query, key)."""
    n_text, groups = microbatch.n_text, microbatch.groups
    # (question, 1, class, text) and (question, 1, reader, token)
    weights = query_weights(members[microbatch.questions, :, :n_text])[:, None]
    readers = query_weights(groups[:, READER_INDEX])[:, None]
    image = groups[:, IMAGE].any(1).float()[:, None, :, None]
    word_image = weights @ (attention[:, :, :n_text] @ image)
    return word_image[..., 0], readers @ attention[..., :n_text] @ weights.mT


def measure_words(study: Study, model: nn.Module, encoded: EncodedQuestions) -> AttentionTable:
    """`word_measures` of every validation question, in the model's own precision; once.

    Kept in run_dir/words.
    """
    inputs = {"lexicon": hash_file(LEXICON)}
    return extract_once(study, "words", model, encoded, word_measures, WORD_MEASURES, **inputs)
