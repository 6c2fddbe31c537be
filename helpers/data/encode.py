"""Questions and their pictures as ViLT reads them: tokenised, resized once, then batched."""

import copy
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, ViltProcessor
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from helpers.data.vqa import score_answers, soft_targets
from helpers.run.cache import write_atomic

logger = logging.getLogger(__name__)


class EncodedQuestions(torch.utils.data.Dataset):
    """Questions ready for ViLT: tokens, and pictures decoded and resized once, kept as bytes.

    encoded = EncodedQuestions(read_vqa(root, "val"), processor, answers=vocabulary)
    for indices, batch in encoded.batches(32): ...

    dataset: columns of `read_vqa` (`image` only where `pictures` is None); questions with the same
        image_id share one picture.
    answers: the vocabulary; with it each item carries `labels`, its soft targets.
    pictures: resized beforehand (`prepare.load_pictures`) and read from disk as needed. Without
        them the data set's own are resized now and kept in memory, 0.7 MB each at ViLT-B/32 size.
    `questions` is the table of the other columns, `sizes` the (height, width) of each picture.
    A question longer than the model reads is cut, [SEP] kept, with a warning.
    """

    def __init__(
        self,
        dataset: Dataset,
        processor: ViltProcessor,
        answers: Sequence[str] | None = None,
        pictures: "Pictures | None" = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the dataset holds no questions: nothing to encode.")
        self.processor = processor
        self.questions = dataset.remove_columns({"image"} & set(dataset.column_names)).to_pandas()
        self.input_ids = encode_text(self.questions["question"].tolist(), processor.tokenizer)
        self.image_of, self.image_ids = pd.factorize(self.questions["image_id"])
        if pictures is None:
            rows = dataset.select(self.questions.drop_duplicates("image_id").index.tolist())
            pictures = {row["image_id"]: _resize_row(row, processor) for row in rows}
            sizes = {image_id: tuple(picture.shape[1:]) for image_id, picture in pictures.items()}
        else:
            sizes = pictures.sizes
        self.sizes = [sizes[image_id] for image_id in self.image_ids]
        self.pictures, self.levels = pictures, normalise_levels(processor.image_processor)
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
            entries, scores = self.targets[index]
            item["labels"] = torch.zeros(self.n_answers)
            item["labels"][entries] = torch.from_numpy(scores).float()
        return item

    def collate(
        self, items: list[dict[str, Tensor]], shown: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Items as one padded batch, with the processor's names and values; pixel_mask is bool.

        shown: the batch's pictures, where they are not each item's own.
        """
        ids = [item["input_ids"] for item in items]
        lengths = torch.tensor([len(tokens) for tokens in ids])
        pad = self.processor.tokenizer.pad_token_id
        batch = {"input_ids": pad_sequence(ids, batch_first=True, padding_value=pad)}
        batch["attention_mask"] = (torch.arange(lengths.max()) < lengths[:, None]).long()
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        batch |= shown or pad_pictures([item["pixels"] for item in items], self.levels)
        if self.targets is not None:
            batch["labels"] = torch.stack([item["labels"] for item in items])
        return batch

    def length_key(self, index: int) -> tuple[int, int, int]:
        """What makes a question costly, to sort by before batching: pixels, height, word pieces."""
        height, width = self.sizes[self.image_of[index]]
        return height * width, height, len(self.input_ids[index])

    def batches(
        self, batch_size: int, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Yield (indices, batch) of all questions or some, alike in picture size, then by picture.

        For `forward_raster` and `prepare_batch`: a picture that several questions share stands in a
        batch once, and `picture_of` (batch,) says which is whose; pixels are bytes, an eighth of
        what would travel to a GPU, and `levels` (3, 256) what each stands for. Else as `collate`.
        """

        def key(index: int) -> tuple[int, int, int, int, int]:
            pixels, height, length = self.length_key(index)
            return pixels, height, self.image_of[index], length, index

        order = sorted(map(int, range(len(self)) if indices is None else indices), key=key)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            items, images = [self[index] for index in part], self.image_of[part]
            _, first, picture_of = np.unique(images, return_index=True, return_inverse=True)
            shown = pad_pictures([items[number]["pixels"] for number in first])
            shown |= {"levels": self.levels, "picture_of": torch.from_numpy(picture_of)}
            yield part, self.collate(items, shown)

    def score(
        self,
        predictions: np.ndarray | Sequence[str],
        indices: Sequence[int],
        labels: Mapping[int, str] | None = None,
    ) -> np.ndarray:
        """`score_answers` of predictions (question, ...) for these rows; NaN without answers."""
        if "answers" not in self.questions:
            return np.full(np.shape(predictions), np.nan)
        return score_answers(predictions, self.questions["answers"].iloc[list(indices)], labels)

    def select(self, rows: Sequence[int]) -> "EncodedQuestions":
        """The same questions' data for some rows only, in their order; pictures are shared."""
        some, rows = copy.copy(self), list(map(int, rows))
        some.questions = self.questions.iloc[rows].reset_index(drop=True)
        some.input_ids = [self.input_ids[row] for row in rows]
        some.image_of = self.image_of[rows]
        some.targets = None if self.targets is None else [self.targets[row] for row in rows]
        return some

    def shuffle_images(self, seed: int) -> "EncodedQuestions":
        """A copy in which each picture is shown with the questions of another: the words alone.

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


def encode_text(questions: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Token ids of each question, cut to the model's length with [SEP] kept and a warning."""
    longest = tokenizer.model_max_length
    ids = tokenizer(questions, add_special_tokens=True, verbose=False)["input_ids"]
    if n_cut := sum(len(tokens) > longest for tokens in ids):
        say = "%d of %d questions are longer than %d tokens and were cut."
        logger.warning(say, n_cut, len(ids), longest)
    cut = (part if len(part) <= longest else [*part[: longest - 1], part[-1]] for part in ids)
    return [torch.tensor(part) for part in cut]


def _resize_row(row: dict, processor: ViltProcessor) -> Tensor:
    try:
        return resize_image(load_rgb(row["image"]), processor.image_processor)
    except ValueError as error:
        raise ValueError(f"image_id {row['image_id']}: {error}") from None


def normalise_levels(image_processor: ViltImageProcessorPil) -> Tensor:
    """The processor's value of each byte (3, 256), as it says itself of a ramp of greys."""
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3)))
    values = image_processor(ramp, do_resize=False, return_tensors="pt")["pixel_values"]
    return values[0, :, 0].float()


def read_levels(pixels: Tensor, levels: Tensor) -> Tensor:
    """The values that bytes (picture, 3, height, width) stand for; levels: `normalise_levels`."""
    channels = zip(levels, pixels.unbind(1), strict=True)  # index_select: 3 times as fast as []
    values = [of.index_select(0, channel.flatten().int()) for of, channel in channels]
    return torch.stack(values).view(3, *pixels[:, 0].shape).transpose(0, 1)


def pad_pictures(pictures: list[Tensor], levels: Tensor | None = None) -> dict[str, Tensor]:
    """pixel_values (batch, 3, height, width) of bytes (3, ...), padded to the largest; pixel_mask.

    levels: of `normalise_levels`; None: the bytes themselves.
    """
    height, width = (max(picture.shape[side] for picture in pictures) for side in (1, 2))
    dtype = torch.uint8 if levels is None else levels.dtype
    values = torch.zeros(len(pictures), 3, height, width, dtype=dtype)
    mask = torch.zeros(len(pictures), height, width, dtype=torch.bool)  # an eighth of long
    for number, picture in enumerate(pictures):
        _, rows, columns = picture.shape
        shown = picture if levels is None else read_levels(picture[None], levels)[0]
        values[number, :, :rows, :columns] = shown
        mask[number, :rows, :columns] = True
    return {"pixel_values": values, "pixel_mask": mask}


class Pictures:
    """Resized pictures by image_id, left by `write_pictures`: uint8 tensors (3, height, width).

    pictures = Pictures(folder)
    pictures[image_id]; pictures.sizes[image_id]  # (height, width), known without reading it
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        sizes = json.loads((self.folder / "sizes.json").read_text())
        self.sizes = {int(image_id): tuple(size) for image_id, size in sizes.items()}

    def __getitem__(self, image_id: int) -> Tensor:
        return torch.from_numpy(np.load(self.folder / f"{image_id}.npy"))


def write_pictures(
    paths: Mapping[int, str | Path], image_processor: ViltImageProcessorPil, folder: str | Path
) -> Path:
    """Resize the pictures at `paths` (by image_id) into `folder`, for `Pictures(folder)` to read.

    Each becomes <image_id>.npy, their sizes sizes.json. Files that stand are kept, so a killed call
    goes on where it was. ValueError names a picture that cannot be resized.
    """
    folder = Path(folder)

    def resize(image_id: int) -> tuple[int, ...]:
        path, target = Path(paths[image_id]), folder / f"{image_id}.npy"
        if target.is_file():
            return np.load(target, mmap_mode="r").shape
        try:
            resized = resize_image(read_picture(path), image_processor)
        except (OSError, ValueError) as error:
            reason = str(error).replace(str(path), path.name)
            raise ValueError(f"image_id {image_id} ({path.name}): {reason}") from None
        np.save(file := io.BytesIO(), resized.numpy())
        write_atomic(target, file.getvalue())
        return resized.shape

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shapes = tqdm(pool.map(resize, paths), desc="resizing", total=len(paths), unit="picture")
        sizes = {image_id: shape[1:] for image_id, shape in zip(paths, shapes, strict=True)}
    write_atomic(folder / "sizes.json", json.dumps(sizes))
    return folder


def resize_image(picture: Image.Image, image_processor: ViltImageProcessorPil) -> Tensor:
    """An RGB picture as bytes (3, height, width), resized by ViLT's processor.

    ValueError for a picture that is too long and thin, and for a processor without a size for it.
    """
    if not (image_processor.do_resize and image_processor.size.get("shortest_edge")):
        given = f"do_resize={image_processor.do_resize}, size={dict(image_processor.size)}"
        raise ValueError(f"the processor does not resize to a shortest_edge, as ViLT's do: {given}")
    as_bytes = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    try:
        return image_processor(picture, **as_bytes)["pixel_values"][0]
    except ValueError:  # a side of no patch
        size = f"{picture.width}x{picture.height}"
        raise ValueError(f"a picture of {size} is too long and thin for ViLT.") from None


def read_picture(path: str | Path) -> Image.Image:
    """A picture file as `load_rgb` makes it; ValueError unless it decodes to its end."""
    data = Path(path).read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            # Pillow takes a JPEG whose rest is zeros for whole: its end mark is missing then
            if picture.format == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
                raise ValueError("it breaks off")
            return load_rgb(picture)
    except Exception:  # Pillow raises a dozen types for broken files
        raise ValueError("no whole picture") from None


def load_rgb(picture: Image.Image) -> Image.Image:
    """A picture upright and in RGB bytes; of an animation the first frame.

    Turned as its camera says; transparency over white; 16-bit grey from 0 to 65,535 and
    floating-point grey from 0 to 1 (or to 255, where a value is above 1) scaled to bytes.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        grey = np.nan_to_num(np.asarray(picture, dtype=float))
        top = (1 if grey.max() <= 1 else 255) if picture.mode == "F" else 65535
        picture = Image.fromarray((grey / top * 255).clip(0, 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
