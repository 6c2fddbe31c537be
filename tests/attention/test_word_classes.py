"""Classes of words by hand, and their attention against full maps."""

import csv

import numpy as np
import pytest
from small import ANSWERS, encode_noise

from helpers.attention import word_classes
from helpers.attention.image_share import attention_maps, word_measures
from helpers.attention.word_classes import CLASSES, classify_pieces, classify_words, join_pieces
from helpers.model.vilt import load_vilt
from phantom import sprites

SHORT = dict(zip("qcnofp", CLASSES, strict=True))


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("what color is the chair ?", "q c f f n p"),
        ("how many people are in the picture ?", "q q n f f f n p"),
        ("how are many people dressed ?", "q f f n o p"),  # many asks only right after how
        ("is there a red ball ?", "q f f c n p"),
        ("where is the cat ?", "q f f n p"),  # is opens nothing here
        ("is the man who is running wearing blue ?", "q f n f f o o c p"),  # who is relative
        ("on what street is this ?", "f q n f f p"),
        ("isn ' t this a dog ?", "q p f f f n p"),
        ("are these 2 buses or 3 berries ?", "q f o n f o n p"),
        ("does he look left ?", "q f o o p"),
        ("is this a zorp ?", "q f f n p"),  # unknown: named by an article, and the end follows
        ("is this a zorp dog ?", "q f f o n p"),  # unknown before a noun: may well be an adjective
        ("is it zorp ?", "q f o p"),
        ("what zorp is this ?", "q n f f p"),
        ("zorp", "o"),
        ("who ?", "q p"),
        ("", ""),
    ],
)
def test_classes_of_questions_by_hand(question, expected):
    assert classify_words(question.split()) == [SHORT[letter] for letter in expected.split()]


def test_pieces_have_the_class_of_their_word():
    assert classify_pieces(["how", "many", "chair", "##s", "are", "gr", "##ee", "##n", "?"]) == [
        *["question word"] * 2, "noun", "noun", "function word", *["colour word"] * 3,
        "punctuation",
    ]  # fmt: skip
    assert classify_pieces(["##s", "?"]) == ["other content", "punctuation"]  # cut off in front
    assert classify_pieces([]) == []
    assert join_pieces(["how", "chair", "##s", "gr", "##ee", "##n"]) == (
        ["how", "chairs", "green"],
        [0, 1, 1, 2, 2, 2],
    )


def test_the_lexicon_holds_what_it_should():
    with word_classes.LEXICON.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    listed = [row["word"] for row in rows]
    assert len(set(listed)) == len(listed)
    assert listed == [word.lower() for word in listed]
    assert {row["class"] for row in rows} == set(CLASSES) - {"punctuation"}
    kinds = [*sprites.CATEGORIES["thing"], *sprites.ANIMALS, *sprites.VEHICLES, *sprites.PEOPLE]
    assert {word_classes.look_up(word) for word in [*kinds, *sprites.ITEMS]} == {"noun"}
    colours = [*sprites.COLORS, "color", "colors"]
    assert {word_classes.look_up(word) for word in colours} == {"colour word"}


def average_by_hand(model, batch):
    """The measures from full attention maps, a word at a time, in float64."""
    for maps in attention_maps(model, batch):
        attention = maps.attention.double().numpy()
        start, stop = maps.groups["words"].start, maps.groups["words"].stop
        classes = classify_pieces(maps.tokens[start:stop])
        image = range(maps.groups["img_cls"].start, attention.shape[-1])
        shape = attention.shape[:2]
        looked, read = np.full((*shape, 6), np.nan), np.full((*shape, 2, 6), np.nan)
        places = np.full(6, np.nan)
        for number, name in enumerate(CLASSES):
            own = [start + i for i, each in enumerate(classes) if each == name]
            if own:
                looked[..., number] = np.mean(
                    [attention[:, :, i, image].sum(-1) for i in own], axis=0
                )
                read[..., 0, number] = np.mean([attention[:, :, 0, i] for i in own], axis=0)
                patches = attention[:, :, maps.groups["patches"]]
                read[..., 1, number] = np.mean([patches[..., i].mean(-1) for i in own], axis=0)
                places[number] = np.mean(own)  # [CLS] is token 0, so the first word piece is 1
        yield {"word_image": looked, "word_read": read, "word_place": places}


def test_measures_are_means_over_single_words(model, encoded, batch):
    """Of questions; and of words that make no sense, about pictures of many shapes."""
    for each in (*(part for _, part in encoded.batches(5)), batch):
        found = word_measures(model, each)
        for row, expected in enumerate(average_by_hand(model, each)):
            for name, values in expected.items():
                np.testing.assert_allclose(found[name][row], values, atol=1e-5, err_msg=name)


def test_without_a_tokenizer_the_message_says_what_to_do():
    model, processor = load_vilt("fresh-small", answers=ANSWERS)
    encoded = encode_noise(processor, [(64, 64)])
    del model.tokenizer
    with pytest.raises(ValueError, match="load_vilt"):
        word_measures(model, encoded.collate([encoded[0]]))
