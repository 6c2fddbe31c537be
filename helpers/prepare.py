"""The study's questions: found or generated, drawn, split by image, checked, and kept in the run folder."""

import json
import logging
import warnings
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets, load_from_disk
from PIL import Image

from helpers.phantom import read_truth, write_phantom
from helpers.steps import fingerprint, hash_file, make_once, require, source_digest, write_atomic
from helpers.study import Study
from helpers.vqa import QUESTION_TYPES, check_images, load_rgb, read_vqa, split_by_image, stratified_subset

logger = logging.getLogger(__name__)

POOLED_SHARE = 0.4  # of the images held out where a sample's own validation file is too small


def find_data(study: Study) -> Path:
    """Folder with the study's official files: `study.data_root`, or the phantom, generated where it is absent.

    FileNotFoundError where data_root is no folder.
    """
    if study.data_root is not None:
        folder = Path(study.path(study.data_root))
        if not folder.is_dir():
            raise FileNotFoundError(
                f"data_root: there is no folder {study.data_root} (counted from the repository)"
            )
        return folder
    scenes = study.settings("train_scenes", "validation_scenes", "seed")
    code = source_digest("phantom", "phantom_questions", "sprites")

    def generate(folder: Path) -> None:
        write_phantom(folder, "train", study.train_scenes, study.seed)
        write_phantom(folder, "val", study.validation_scenes, study.seed)

    name = f"phantom-{study.train_scenes}-{study.validation_scenes}-seed{study.seed}"
    return make_once(study.root / "data" / "generated" / name, generate, {**scenes, "code": code})


def prepare_dataset(study: Study) -> Path:
    """Draw the study's questions into run_dir/dataset: `train` and `validation`, no image on both sides.

    Validation comes from the official validation file. Where that holds fewer than `study.min_validation`
    questions (a sample), both files are pooled and a share of the *images* is held out instead; the column
    `split` keeps the official file of each question. Further columns: `width` and `height` of the image in
    pixels; `needs_image` (None where unknown) and `boxes` ([x, y, width, height] in pixels; [] where unknown).
    """
    root = find_data(study)
    names = ("profile", "seed", "train_per_family", "validation_per_family", "min_validation")
    files = sorted(
        path for pattern in ("*.json", "*.zip") for path in root.glob(pattern) if path.name != "made.json"
    )
    official = {path.name: hash_file(path) for path in files}
    depends = {
        **study.settings(*names),
        "files": official,
        "pictures": fingerprint([[p.name, p.stat().st_size] for p in sorted(root.glob("*2014/*"))]),
        "families": QUESTION_TYPES,
        "code": source_digest("prepare", "vqa"),
    }

    def draw(folder: Path) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            draw_parts().save_to_disk(folder)
        notes = [str(warning.message).replace(str(root), root.name) for warning in caught]
        write_atomic(folder / "notes.json", json.dumps(notes, indent=1))

    def draw_parts() -> DatasetDict:
        train, validation = (_read_split(root, split) for split in ("train", "val"))
        if len(validation) < study.min_validation:
            logger.info("%d validation questions: pooling both files, holding out images", len(validation))
            halves = split_by_image(concatenate_datasets([train, validation]), POOLED_SHARE, study.seed)
            train, validation = halves["train"], halves["validation"]
        parts = DatasetDict(
            train=_finish(stratified_subset(train, study.train_per_family, study.seed)),
            validation=_finish(stratified_subset(validation, study.validation_per_family, study.seed)),
        )
        shared = set(parts["train"]["image_id"]) & set(parts["validation"]["image_id"])
        if shared:
            raise ValueError(f"{len(shared)} images are in training and in validation, like {min(shared)}")
        return parts

    return make_once(study.folder() / "dataset", draw, depends)


def read_notes(study: Study) -> list[str]:
    """What was left out of the dataset and why, one line for each kind of trouble; empty where all was well."""
    return json.loads((require(study.folder() / "dataset", made_by="01_setup") / "notes.json").read_text())


def load_dataset(study: Study) -> DatasetDict:
    """The questions that 01 prepared; FileNotFoundError that says so where they are missing."""
    return load_from_disk(require(study.folder() / "dataset", made_by="01_setup"))


def _read_split(root: Path, split: str):
    dataset = read_vqa(root, split)
    truth = read_truth(root, split)
    known = [truth.get(number, {}) for number in dataset["question_id"]]
    columns = {
        "split": [split] * len(dataset),
        "needs_image": [row.get("needs_image") for row in known],
        "boxes": [row.get("boxes", []) for row in known],
    }
    types = {"split": Value("string"), "needs_image": Value("bool"), "boxes": List(List(Value("int32")))}
    for name, column in columns.items():
        dataset = dataset.add_column(name, column, feature=Features({name: types[name]})[name])
    return dataset


def _finish(dataset: Dataset) -> Dataset:
    """Leave out questions whose image cannot be read, and note the size of every other image."""
    dataset = check_images(dataset)
    stored = dataset.cast_column("image", datasets.Image(decode=False))
    paths = {
        image_id: image["path"] for image_id, image in zip(stored["image_id"], stored["image"], strict=True)
    }
    sizes = {image_id: Image.open(path).size for image_id, path in paths.items()}
    for place, name in enumerate(("width", "height")):
        dataset = dataset.add_column(name, [sizes[image_id][place] for image_id in dataset["image_id"]])
    return dataset


def show_image(study: Study, row: dict) -> Image.Image:
    """The picture of a question for a figure: itself, or a grey field of its size where it must not be shown.

    Photographs have licences of their own; they are shown only where `study.show_photographs` is on.
    The phantom's pictures are the project's own and always shown.
    """
    picture = load_rgb(row["image"])
    if study.data_root is None or study.show_photographs:
        return picture
    return Image.new("RGB", picture.size, (200, 200, 200))
