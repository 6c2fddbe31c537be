"""Pictures at ViLT's size: decoded, converted to RGB and resized once, kept as bytes, then read without decoding."""

import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers.models.vilt import image_processing_pil_vilt as vilt_images

from helpers.data.vqa import load_rgb
from helpers.run.cache import write_atomic

PART_SIZE = 512  # pictures a file: 0.3 GB at ViLT-B/32 size, and what a kill can cost


class Pictures(Mapping):
    """Resized pictures by image_id, as `write_pictures` left them: uint8 tensors (3, height, width).

    pictures = Pictures(folder)
    pictures[image_id]; pictures.sizes[image_id]  # (height, width), known without reading the picture
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.sizes: dict[int, tuple[int, int]] = {}
        self._places: dict[int, tuple[str, int]] = {}
        self._parts: dict[str, np.ndarray] = {}  # files are mapped when first read
        for index in sorted(self.folder.glob("part-*.csv")):
            for row in pd.read_csv(index).itertuples():
                self.sizes[row.image_id] = (row.height, row.width)
                self._places[row.image_id] = (index.stem, row.offset)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self):
        return iter(self.sizes)

    def __getitem__(self, image_id: int) -> Tensor:
        part, offset = self._places[image_id]
        if part not in self._parts:
            self._parts[part] = np.load(self.folder / f"{part}.npy", mmap_mode="r")
        height, width = self.sizes[image_id]
        flat = self._parts[part][
            offset : offset + 3 * height * width
        ].copy()  # the map is read-only
        return torch.from_numpy(flat.reshape(3, height, width))

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_parts": {}}  # a pickled map would carry its bytes along


def write_pictures(paths: Mapping[int, str | Path], image_processor, folder: str | Path) -> Path:
    """Decode and resize the pictures at `paths` (by image_id) into `folder`; read them with `Pictures(folder)`.

    A part is part-00000.npy (its pictures' bytes end to end, each (3, height, width)) and part-00000.csv (image_id,
    offset in bytes, height, width), written last. Parts that stand are kept, so a killed call goes on where it was.
    ValueError, with the image_id, for a picture that cannot be resized.
    """
    folder, image_ids = Path(folder), sorted(paths)
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(paths), unit="picture") as progress,
    ):
        progress.set_description("resizing")
        for number, start in enumerate(range(0, len(image_ids), PART_SIZE)):
            chosen = image_ids[start : start + PART_SIZE]
            index = folder / f"part-{number:05d}.csv"
            if not index.is_file():
                resized = list(
                    pool.map(lambda key: _resize_file(key, paths[key], image_processor), chosen)
                )
                _write_part(index, chosen, resized)
            progress.update(len(chosen))
    return folder


def _resize_file(image_id: int, path: str | Path, image_processor) -> Tensor:
    try:
        with Image.open(path) as picture:
            return resize_image(picture, image_processor)
    except (OSError, ValueError) as error:
        reason = str(error).replace(str(path), Path(path).name)
        raise ValueError(f"image_id {image_id} ({Path(path).name}): {reason}") from None


def _write_part(index: Path, image_ids: list[int], pictures: list[Tensor]) -> None:
    flat = io.BytesIO()
    np.save(flat, np.concatenate([picture.numpy().ravel() for picture in pictures]))
    write_atomic(index.with_suffix(".npy"), flat.getbuffer())
    sizes = np.array([picture.shape for picture in pictures])
    ends = np.cumsum(sizes.prod(axis=1))
    columns = {
        "image_id": image_ids,
        "offset": ends - sizes.prod(axis=1),
        "height": sizes[:, 1],
        "width": sizes[:, 2],
    }
    write_atomic(index, pd.DataFrame(columns).to_csv(index=False))


def resize_image(image: Image.Image, image_processor) -> Tensor:
    """A picture at ViLT's size as bytes (3, height, width), pixel for pixel as the processor resizes it."""
    picture = load_rgb(image)
    shorter = image_processor.size["shortest_edge"]
    longer = int(vilt_images.MAX_LONGER_EDGE / vilt_images.MAX_SHORTER_EDGE * shorter)
    shape = np.broadcast_to(
        np.uint8(0), (3, picture.height, picture.width)
    )  # the rule reads a shape only
    height, width = vilt_images.get_resize_output_image_size(
        shape, shorter, longer, image_processor.size_divisor, input_data_format="channels_first"
    )
    if not (height and width):
        raise ValueError(
            f"a picture of {picture.width}x{picture.height} is too long and thin for ViLT."
        )
    resized = np.array(picture.resize((width, height), resample=image_processor.resample))
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()
