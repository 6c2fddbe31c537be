"""Classes of a question's words: question words, nouns, function words, ...

    classify_pieces(["what", "color", "are", "the", "chair", "##s", "?"])

A word's class comes from the lexicon data/word_classes.csv and from its place; no tagger is needed.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

CLASSES = ("question word", "colour word", "noun", "other content", "function word", "punctuation")
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


def mark_classes(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Which text token is of which class: bool (batch, CLASSES, text); specials are of none.

    Without `model.tokenizer` none is of any. inputs: of `prepare_batch`.
    """
    ids, tokenizer = inputs["input_ids"], getattr(model, "tokenizer", None)
    members = torch.zeros(len(ids), len(CLASSES), ids.shape[1], dtype=torch.bool)
    lengths = inputs["attention_mask"].sum(1).tolist()
    for row, (own, length) in enumerate(zip(ids.tolist(), lengths, strict=True)):
        pieces = tokenizer.convert_ids_to_tokens(own[1 : length - 1]) if tokenizer else []
        for token, name in enumerate(classify_pieces(pieces), start=1):
            members[row, CLASSES.index(name), token] = True
    return members.to(ids.device)
