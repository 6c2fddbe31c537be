"""Questions and their pictures as ViLT reads them: tokenised, decoded and resized once, then batched."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import ViltProcessor

from helpers.data.pictures import Pictures, resize_image
from helpers.data.vqa import score_answers, soft_targets

logger = logging.getLogger(__name__)


class EncodedQuestions(torch.utils.data.Dataset):
    """Questions ready for ViLT: tokens, and pictures decoded and resized once, kept as bytes.

    encoded = EncodedQuestions(read_vqa(root, "val"), processor, answers=vocabulary)
    for indices, batch in encoded.batches(32): ...

    dataset: columns of `read_vqa` (`image` only where `pictures` is None); questions with the same image_id share one picture.
    answers: the vocabulary; with it each item carries `labels`, its soft targets.
    pictures: resized beforehand (`prepare.load_pictures`) and read from disk as needed; without them the data set's
        own are decoded and resized now and kept in memory, 0.7 MB each at ViLT-B/32 size.
    `questions` is the table of the other columns, `sizes` the (height, width) of each picture, `n_truncated` how
    many questions were cut to the model's length ([SEP] kept).
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: ViltProcessor,
        answers: Sequence[str] | None = None,
        pictures: Pictures | None = None,
    ):
        if len(dataset) == 0:
            raise ValueError("the dataset holds no questions: nothing to encode.")
        self.processor = processor
        self.questions = dataset.remove_columns({"image"} & set(dataset.column_names)).to_pandas()
        self.input_ids, self.n_truncated = encode_text(
            list(dataset["question"]), processor.tokenizer
        )
        self.image_of, self.image_ids = pd.factorize(self.questions["image_id"])
        if pictures is None:
            rows = dataset.select(self.questions.drop_duplicates("image_id").index.tolist())
            pictures = {row["image_id"]: resize_row(row, processor.image_processor) for row in rows}
            self.sizes = [tuple(pictures[image_id].shape[1:]) for image_id in self.image_ids]
        else:
            self.sizes = [pictures.sizes[image_id] for image_id in self.image_ids]
        self.pictures = pictures
        self.levels = normalise_levels(processor.image_processor)
        self.targets, self.n_answers = None, None
        if answers is not None:  # kept sparse: a question has at most ten answers of thousands
            dense = (soft_targets(list(given), answers) for given in self.questions["answers"])
            self.targets = [(np.flatnonzero(row), row[np.flatnonzero(row)]) for row in dense]
            self.n_answers = len(answers)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        picture = self.pictures[self.image_ids[self.image_of[index]]]
        item = {"input_ids": self.input_ids[index], "pixels": picture}
        if self.targets is not None:
            where, scores = self.targets[index]
            item["labels"] = torch.zeros(self.n_answers)
            item["labels"][where] = torch.from_numpy(scores).float()
        return item

    def collate(self, items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Items as one padded batch, with the names and values that the processor would give; pixel_mask is bool."""
        return self._join(items, [item["pixels"] for item in items])

    def _join(self, items: list[dict[str, Tensor]], pictures: list[Tensor]) -> dict[str, Tensor]:
        batch = {**self.pad_text(items), **self.pad_pictures(pictures)}
        if self.targets is not None:
            batch["labels"] = torch.stack([item["labels"] for item in items])
        return batch

    def pad_text(self, items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Words of some items: input_ids, attention_mask, token_type_ids (batch, longest)."""
        ids = [item["input_ids"] for item in items]
        lengths = torch.tensor([len(tokens) for tokens in ids])
        padded = pad_sequence(
            ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id
        )
        mask = (torch.arange(lengths.max()) < lengths[:, None]).long()
        return {
            "input_ids": padded,
            "attention_mask": mask,
            "token_type_ids": torch.zeros_like(padded),
        }

    def pad_pictures(self, pictures: list[Tensor]) -> dict[str, Tensor]:
        """Pictures (3, height, width) of bytes as the model's numbers: pixel_values, and where they are: pixel_mask."""
        height, width = (max(picture.shape[side] for picture in pictures) for side in (1, 2))
        values = torch.zeros(len(pictures), 3, height, width)
        mask = torch.zeros(len(pictures), height, width, dtype=torch.bool)  # an eighth of long
        for place, picture in enumerate(pictures):
            _, rows, columns = picture.shape
            for channel in range(3):
                pixels = picture[channel].flatten().int()
                levels = self.levels[channel].index_select(
                    0, pixels
                )  # 3 times as fast as levels[pixels]
                values[place, channel, :rows, :columns] = levels.view(rows, columns)
            mask[place, :rows, :columns] = True
        return {"pixel_values": values, "pixel_mask": mask}

    def weigh(self, index: int) -> tuple[int, int, int]:
        """What makes a question costly, and batches of unlike questions padded: pixels, height, word pieces."""
        height, width = self.sizes[self.image_of[index]]
        return height * width, height, len(self.input_ids[index])

    def batches(
        self, batch_size: int, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Yield (indices, batch) over all questions or some, alike in picture size, then by picture.

        A picture that several questions share stands in a batch once: `picture_of` (batch,) says which is whose, for
        `forward_raster` and `prepare_batch`. Otherwise a batch is what `collate` gives.
        """
        chosen = range(len(self)) if indices is None else indices
        order = sorted((int(index) for index in chosen), key=self._place_in_batches)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            items = [self[index] for index in part]
            _, first, picture_of = np.unique(
                self.image_of[part], return_index=True, return_inverse=True
            )
            batch = self._join(items, [items[place]["pixels"] for place in first])
            yield part, {**batch, "picture_of": torch.from_numpy(picture_of)}

    def _place_in_batches(self, index: int) -> tuple[int, int, int, int, int]:
        pixels, height, length = self.weigh(index)
        return pixels, height, self.image_of[index], length, index

    def score(
        self,
        predictions: np.ndarray | Sequence[str],
        indices: Sequence[int],
        labels: Mapping[int, str] | None = None,
    ) -> np.ndarray:
        """`score_answers` of predictions (question, ...) for these questions; NaN without answers."""
        if "answers" not in self.questions:
            return np.full(np.shape(predictions), np.nan)
        return score_answers(predictions, self.questions["answers"].iloc[list(indices)], labels)

    def shuffle_images(self, seed: int) -> "EncodedQuestions":
        """A copy in which each picture is shown with the questions of another: the language-only control.

        Sattolo's algorithm (1986): one random cycle through all pictures, so none keeps its own.
        """
        if len(self.sizes) < 2:
            raise ValueError("shuffling needs at least two pictures.")
        other, generator = np.arange(len(self.sizes)), np.random.default_rng(seed)
        for last in range(len(other) - 1, 0, -1):
            swap = generator.integers(last)
            other[[last, swap]] = other[[swap, last]]
        shuffled = copy.copy(self)
        shuffled.image_of = other[self.image_of]
        return shuffled


def encode_text(questions: list[str], tokenizer) -> tuple[list[Tensor], int]:
    """Token ids of each question, cut to the model's length with [SEP] kept, and how many were cut."""
    longest = tokenizer.model_max_length
    ids = tokenizer(questions, add_special_tokens=True, verbose=False)["input_ids"]
    n_cut = sum(len(tokens) > longest for tokens in ids)
    if n_cut:
        logger.warning(
            "%d of %d questions are longer than %d tokens and were cut.", n_cut, len(ids), longest
        )
    cut = (
        tokens if len(tokens) <= longest else [*tokens[: longest - 1], tokens[-1]] for tokens in ids
    )
    return [torch.tensor(tokens) for tokens in cut], n_cut


def resize_row(row: dict, image_processor) -> Tensor:
    """The picture of a question at ViLT's size; an error names the question and the image."""
    try:
        return resize_image(row["image"], image_processor)
    except ValueError as error:
        raise ValueError(
            f"question_id {row['question_id']}, image_id {row['image_id']}: {error}"
        ) from None


def normalise_levels(image_processor) -> Tensor:
    """The processor's value of each byte: (3, 256), by its own arithmetic, so that pixels are equal."""
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (3, 256, 1))
    scaled = image_processor.rescale(levels, image_processor.rescale_factor)
    values = image_processor.normalize(
        scaled, image_processor.image_mean, image_processor.image_std
    )
    return torch.from_numpy(np.ascontiguousarray(values[..., 0]))
