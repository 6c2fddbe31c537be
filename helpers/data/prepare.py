"""The study's questions: found or generated, drawn, checked, and kept in the run folder."""

import json
import logging
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, List, Value, concatenate_datasets, load_from_disk
from PIL import Image
from transformers import ViltProcessor

from helpers.data import download, vqa
from helpers.data.encode import EncodedQuestions, Pictures, load_rgb, write_pictures
from helpers.run import cache
from helpers.run.settings import Study
from phantom.scenes import read_truth, write_phantom

logger = logging.getLogger(__name__)

POOLED_SHARE = 0.4  # of the images held out where a sample's own validation file is too small


def find_data(study: Study) -> Path:
    """Folder with the study's official files: `study.data_root`, or the phantom, generated once.

    With `study.download` the official files that data_root lacks are fetched. FileNotFoundError
    where data_root is no folder and nothing may be fetched; DownloadError where fetching fails.
    """
    if study.data_root is not None:
        folder = Path(study.path(study.data_root))
        if study.download:
            url = study.questions_url or download.QUESTIONS_URL
            return download.download_questions(folder, url)
        if not folder.is_dir():
            problem = f"there is no folder {study.data_root} (counted from the repository)"
            raise FileNotFoundError(f"data_root: {problem}")
        return folder

    def generate(folder: Path) -> None:
        write_phantom(folder, "train", study.train_scenes, study.seed)
        write_phantom(folder, "val", study.validation_scenes, study.seed)

    scenes = study.settings("train_scenes", "validation_scenes", "seed")
    inputs = {**scenes, "code": cache.source_digest("phantom")}
    name = f"phantom-{study.train_scenes}-{study.validation_scenes}-seed{study.seed}"
    return cache.cached_step(study.root / "data" / "generated" / name, generate, inputs)


def prepare_dataset(study: Study) -> Path:
    """Draw the study's questions into run_dir/dataset: `train` and `validation`, by image.

    Where the official validation file holds fewer than `study.min_validation` questions (a sample),
    both files are pooled and a share of the *images* is held out instead.
    Columns beside those of `read_vqa`: `split`, the official file; `picture`, the image's file
    under the data's folder (fetched with `study.download`), its `width` and `height` in pixels;
    what only the phantom knows (None elsewhere): `needs_image`, `wording` (an id), `new_wording`
    (no model is trained on it) and `boxes` ([x, y, width, height] in pixels; [] elsewhere).
    """
    root = find_data(study)
    files = sorted(path for path in root.glob("*.json") if path.name != "made.json")
    if set(download.JSON_OF.values()) - {path.name for path in files}:  # then zips are read
        zips = [root / name for name in download.JSON_OF if (root / name).is_file()]
        files += zips or sorted(root.glob("*.zip"))
    pictures = () if study.download else sorted(root.glob("*2014/*"))
    sizes = [[path.name, path.stat().st_size] for path in pictures]
    inputs = {
        **study.settings("seed", "train_per_family", "validation_per_family", "min_validation"),
        "files": {path.name: cache.hash_file(path) for path in files},
        # fetched pictures are what the questions ask for: they do not tell whether the step stands
        "pictures": None if study.download else cache.fingerprint(sizes),
        "families": vqa.QUESTION_TYPES,
        "code": cache.source_digest("helpers/data"),
    }

    def draw(folder: Path) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            parts = sample_subset(study, root)
            files = {name for part in parts.values() for name in part["picture"][:]}
            _fetch_images(study, sorted(files), root)
            checked = {name: _measure_images(part) for name, part in parts.items()}
            DatasetDict(checked).save_to_disk(folder)
        notes = [str(warning.message).replace(str(root), root.name) for warning in caught]
        cache.write_atomic(folder / "notes.json", json.dumps(notes, indent=1))

    return cache.cached_step(study.folder() / "dataset", draw, inputs)


def sample_subset(study: Study, root: Path) -> dict[str, Dataset]:
    """`train` and `validation` as drawn from the official files, before any image is touched."""
    train, validation = (_read_split(root, split) for split in ("train", "val"))
    if (n := len(validation)) < study.min_validation:
        logger.info("%d validation questions: pooling both files, holding out images", n)
        pooled = concatenate_datasets([train, validation])
        train, validation = vqa.split_by_image(pooled, POOLED_SHARE, study.seed).values()
    train = vqa.stratified_subset(train, study.train_per_family, study.seed)
    validation = vqa.stratified_subset(validation, study.validation_per_family, study.seed)
    if both := set(train["image_id"][:]) & set(validation["image_id"][:]):
        raise ValueError(f"{len(both)} images are in training and in validation, like {min(both)}")
    return {"train": train, "validation": validation}


def read_notes(study: Study) -> list[str]:
    """What was left out of the dataset and why, one line for each kind of trouble."""
    folder = cache.require(study.folder() / "dataset", made_by="01_setup")
    return json.loads((folder / "notes.json").read_text())


def load_dataset(study: Study) -> DatasetDict:
    """The questions that 01 prepared; FileNotFoundError that says so where they are missing."""
    return load_from_disk(cache.require(study.folder() / "dataset", made_by="01_setup"))


def load_pictures(study: Study, processor: ViltProcessor) -> Pictures:
    """The pictures of the study's questions at the processor's size, resized once for all.

    They are kept in data/generated (0.7 MB each at ViLT-B/32 size), as the run's folder may lie on
    a small and slow drive, and made again where they are missing.
    """
    image_processor, files = processor.image_processor, {}
    for part in load_dataset(study).values():
        files |= dict(zip(part["image_id"][:], part["picture"][:], strict=True))
    source = cache.read_record(study.run_dir / "dataset")["inputs"]
    inputs = {  # nothing of the questions: studies that ask about the same images share them
        "names": cache.fingerprint(sorted(files.values())),
        "source": {name: source[name] for name in ("files", "pictures")},
        "size": image_processor.size["shortest_edge"],
        "divisor": image_processor.size_divisor,
        "resample": int(image_processor.resample),
        "code": cache.source_digest("helpers/data"),
    }

    def write(folder: Path) -> None:
        root = find_data(study)
        if gone := _fetch_images(study, sorted(files.values()), root):
            problem = f"{len(gone)} of the study's images are no longer served, like {gone[0]}"
            remedy = (
                f"run this again later, or delete {study.run_name}/dataset to draw without them"
            )
            raise FileNotFoundError(f"{problem}: {remedy}")
        write_pictures({key: root / name for key, name in files.items()}, image_processor, folder)

    folder = study.root / "data" / "generated" / f"pictures-{cache.fingerprint(inputs)[:12]}"
    return Pictures(cache.cached_step(folder, write, inputs))


def encode(
    study: Study, questions: Dataset, processor: ViltProcessor, answers: Sequence[str] | None = None
) -> EncodedQuestions:
    """Questions of `load_dataset` ready for ViLT; answers: the vocabulary, for their targets."""
    return EncodedQuestions(questions, processor, answers, load_pictures(study, processor))


def _fetch_images(study: Study, files: list[str], root: Path) -> list[str]:
    """Fetch what lacks of these, where the study may; returns those that are not served."""
    if not study.download:
        return []
    url = study.images_url or download.IMAGES_URL
    return download.download_images(files, root, url, max_missing=study.max_missing)


def _read_split(root: Path, split: str) -> Dataset:
    """A split with what the phantom's truth adds.

    Columns are read whole, by [:]: one by one takes 100 times as long.
    """
    dataset = vqa.read_vqa(root, split)
    truth = read_truth(root, split)
    known = [truth.get(number, {}) for number in dataset["question_id"][:]]
    files = [vqa.name_image(split, image_id) for image_id in dataset["image_id"][:]]
    for name, column, kind in (
        ("split", [split] * len(dataset), Value("string")),
        ("needs_image", [row.get("needs_image") for row in known], Value("bool")),
        ("wording", [row.get("wording") for row in known], Value("string")),
        ("new_wording", [row.get("new_wording") for row in known], Value("bool")),
        ("boxes", [row.get("boxes", []) for row in known], List(List(Value("int32")))),
        ("picture", files, Value("string")),
    ):
        dataset = dataset.add_column(name, column, feature=kind)
    return dataset


def _measure_images(dataset: Dataset) -> Dataset:
    """Leave out questions whose image cannot be read; note the others' sizes, drop the paths."""
    dataset = check_images(dataset)
    stored = dataset.cast_column("image", datasets.Image(decode=False))["image"][:]
    image_ids = dataset["image_id"][:]
    paths = {key: image["path"] for key, image in zip(image_ids, stored, strict=True)}
    sizes = {key: Image.open(path).size for key, path in paths.items()}
    for axis, name in enumerate(("width", "height")):
        dataset = dataset.add_column(name, [sizes[key][axis] for key in image_ids])
    return dataset.remove_columns("image")


def check_images(dataset: Dataset) -> Dataset:
    """Decode each distinct image once, and leave out the questions about broken or missing ones.

    One counted warning for missing files and one for unreadable ones; ValueError if nothing is
    left. Takes about 5 ms an image and core, so draw the subset first.
    """
    stored = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    image_ids, question_ids = (np.array(dataset[name][:]) for name in ("image_id", "question_id"))
    _, rows, image_of = np.unique(image_ids, return_index=True, return_inverse=True)
    with ThreadPoolExecutor() as pool:
        problems = np.array([*pool.map(lambda row: _find_problem(stored[int(row)]["image"]), rows)])
    good = np.flatnonzero(problems[image_of] == "")
    if not len(good):
        problem = "neither this nor any other image can be read; download or unzip them"
        raise ValueError(f"{stored[0]['image']['path']}: {problem}")
    for problem in ("a missing", "an unreadable"):
        left_out = np.flatnonzero(problems[image_of] == problem)
        if len(left_out):
            n_more = (problems == problem).sum() - 1
            place = stored[int(left_out[0])]["image"]["path"]
            place += f" and {n_more} more" if n_more else ""
            vqa.warn_left_out(place, f"questions about {problem} image", question_ids[left_out])
    return dataset if len(good) == len(dataset) else dataset.select(good)


def _find_problem(stored: dict) -> str:
    """What is wrong with an image as datasets stores it (path, or bytes); "" if nothing."""
    if stored["bytes"] is None and not Path(stored["path"]).is_file():
        return "a missing"
    try:
        source = stored["path"] if stored["bytes"] is None else BytesIO(stored["bytes"])
        with Image.open(source) as image:
            load_rgb(image)
    except Exception:  # Pillow raises a dozen types for broken files
        return "an unreadable"
    return ""


def show_image(study: Study, row: dict) -> Image.Image:
    """The picture of a question for a figure, or a grey field of its size.

    Photographs have licences of their own: they are shown only with `study.show_photographs`.
    """
    if study.data_root is None or study.show_photographs:
        with Image.open(find_data(study) / row["picture"]) as picture:
            return load_rgb(picture)
    return Image.new("RGB", (row["width"], row["height"]), (200, 200, 200))
