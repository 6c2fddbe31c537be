"""One picture, one question: what does a ViLT answer, and where does it look?

model, processor = load_vilt("dandelin/vilt-b32-finetuned-vqa")
seen = look(model, processor, "cat.jpg", "What color is the cat?")
seen.answer, seen.image_share[11], seen.baseline
seen.plot()
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from transformers import ViltProcessor

from helpers.attention.image_share import (
    QuestionMaps,
    attention_maps,
    attention_split,
    image_share,
    uniform_baseline,
)
from helpers.figures.attention import plot_look
from helpers.model.forward import forward_raster


@dataclass(frozen=True)
class Look:
    """What a ViLT makes of one picture and one question; L layers, H heads, T tokens."""

    question: str
    picture: Image.Image  # upright, RGB, in its own size
    answer: str
    answers: pd.Series  # probability of each of the five likeliest answers
    split: np.ndarray  # (L, H, 3, 5): attention from QUERY_GROUPS to KEY_GROUPS, rows sum to 1
    baseline: float  # image share of uniform attention
    attention: QuestionMaps  # all matrices (L, H, T, T), token strings, patch grid

    @property
    def image_share(self) -> np.ndarray:
        """Share of [CLS]'s attention that goes to the image: (layer, head), in [0, 1]."""
        return image_share(self.split[:, :, 0])

    @property
    def maps(self) -> np.ndarray:
        """[CLS]'s attention on each patch: (layer, head, row, column)."""
        on_patches = self.attention.attention[:, :, 0, self.attention.groups["patches"]]
        return on_patches.unflatten(-1, self.attention.grid).float().cpu().numpy()

    def plot(self) -> Figure:
        """The picture, the image share of every head, and a map for each layer (mean of heads)."""
        title = f"{self.question}  →  {self.answer}"
        return plot_look(self.picture, title, self.image_share, self.baseline, self.maps.mean(1))


def look(
    model: nn.Module,
    processor: ViltProcessor,
    picture: Image.Image | np.ndarray | str | Path,
    question: str,
) -> Look:
    """Ask a ViLT one question about one picture, and measure where it looks.

    model, processor: of `load_vilt`, in eval mode. picture: a PIL image, an array (height, width
    or height, width, 3) of bytes, or a file; grey, transparent and turned ones too. A question
    longer than the model reads (40 word pieces in ViLT-B/32) is cut, with a warning. ValueError for
    an empty question, and for a picture that is too long and thin for patches.
    """
    if not question.strip():
        raise ValueError("the question is empty: ask something about the picture.")
    picture = open_upright(picture)
    batch = encode_one(processor, picture, question)
    with torch.no_grad():
        logits = forward_raster(model, batch).logits[0].float().cpu()
    split, maps = attention_split(model, batch)[0], attention_maps(model, batch)[0]
    names = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    maps = replace(maps, tokens=[*names, *maps.tokens[len(names) :]])
    best = logits.sigmoid().sort(descending=True)
    labels = [model.config.id2label[number] for number in best.indices[:5].tolist()]
    n_words, n_patches = (len(maps.tokens[maps.groups[name]]) for name in ("words", "patches"))
    return Look(
        question=question,
        picture=picture,
        answer=labels[0],
        answers=pd.Series(best.values[:5].numpy(), labels, name="probability"),
        split=split.cpu().numpy(),
        baseline=uniform_baseline(n_words, n_patches),
        attention=maps,
    )


def open_upright(picture: Image.Image | np.ndarray | str | Path) -> Image.Image:
    """A picture as RGB, turned as its camera says."""
    from helpers.data.encode import load_rgb  # here, as it takes `datasets`

    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    elif not isinstance(picture, Image.Image):
        picture = Image.open(picture)
    return load_rgb(picture)


def encode_one(processor: ViltProcessor, picture: Image.Image, question: str) -> dict[str, Tensor]:
    """A batch of one question, with the processor's own names and values."""
    from helpers.data.encode import encode_text, normalise_levels, pad_pictures, resize_image

    ids = encode_text([question], processor.tokenizer)[0][None]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pixels = resize_image(picture, processor.image_processor)
    return text | pad_pictures([pixels], normalise_levels(processor.image_processor))
