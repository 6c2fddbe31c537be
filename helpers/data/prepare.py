"""The study's questions: found or generated, drawn, checked, and kept in the run folder."""

import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from PIL import Image
from transformers import ViltProcessor

from helpers.data import download, vqa
from helpers.data.encode import EncodedQuestions, Pictures, read_picture, write_pictures
from helpers.run import cache
from helpers.run.settings import Study
from phantom.scenes import read_truth, write_phantom

POOLED_SHARE = 0.4  # of the images held out where a sample's own validation file is too small
TRUTH = Features({
    "needs_image": Value("bool"), "wording": Value("string"), "new_wording": Value("bool"),
    "boxes": List(List(Value("int32"))), "picture": Value("string"), "split": Value("string"),
})  # fmt: skip
MAX_ASPECT = 19  # longer side over shorter: of anything thinner ViLT-B/32 keeps no patch


def find_data(study: Study) -> Path:
    """Folder with the study's files: `study.data_root`, or the phantom, generated once.

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
    and of a table of your own (see `read_table`), a share of all *images* is held out instead.
    Columns beside those of `read_vqa`: `split`, the official file or "own"; `picture`, the image's
    file under the data's folder (fetched with `study.download`), its `width` and `height` in
    pixels; what only the phantom knows (None elsewhere): `needs_image`, `wording` (an id),
    `new_wording` (no model is trained on it) and `boxes` ([x, y, width, height] in pixels; []
    elsewhere).
    """
    root = find_data(study)
    own = (root / vqa.TABLE).is_file()
    files = [path for path in root.glob("*.json") if path.name != "made.json"]
    if own:
        files = [root / vqa.TABLE]
    elif set(download.JSON_OF.values()) - {path.name for path in files}:  # then zips are read
        files += [root / name for name in download.JSON_OF if (root / name).is_file()]
    pictures = () if study.download else sorted(root.rglob("*") if own else root.glob("*2014/*"))
    mine = study.data_root is not None  # a picture may be replaced by one of the same size
    stats = [[path.name, path.stat().st_size, mine * path.stat().st_mtime_ns] for path in pictures]
    inputs = {
        **study.settings("seed", "train_per_family", "validation_per_family", "min_validation"),
        "files": {path.name: cache.hash_file(path) for path in files},
        # fetched pictures are what the questions ask for: they do not tell whether the step stands
        "pictures": None if study.download else cache.fingerprint(stats),
        "families": vqa.QUESTION_TYPES,
        "code": cache.source_digest("helpers/data"),
    }

    def draw(folder: Path) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            parts = sample_subset(study, root)
            files = {name for part in parts.values() for name in part["picture"][:]}
            _fetch_images(study, sorted(files), root)
            checked = {name: check_images(part) for name, part in parts.items()}
            DatasetDict(checked).remove_columns("image").save_to_disk(folder)
        notes = [str(warning.message).replace(str(root), root.name) for warning in caught]
        cache.write_atomic(folder / "notes.json", json.dumps(notes, indent=1))

    return cache.cached_step(study.folder() / "dataset", draw, inputs)


def sample_subset(study: Study, root: Path) -> dict[str, Dataset]:
    """`train` and `validation` as drawn from the files, before any image is touched."""
    if (root / vqa.TABLE).is_file():
        parts = [_add_truth(vqa.read_table(root / vqa.TABLE), root, "own")]
    else:
        parts = [_add_truth(vqa.read_vqa(root, split), root, split) for split in vqa.SPLITS]
        for name in ("image_id", "question_id"):  # pictures and answers are kept by these
            if both := set.intersection(*(set(part[name][:]) for part in parts)):
                problem = f"{len(both)} {name} are in both files, like {min(both)}"
                raise ValueError(f"{problem}: number them apart, as VQAv2 does")
    if len(parts) == 1 or len(parts[1]) < study.min_validation:
        pooled = concatenate_datasets(parts)
        parts = vqa.split_by_image(pooled, POOLED_SHARE, study.seed).values()
    train, validation = parts
    train = vqa.stratified_subset(train, study.train_per_family, study.seed)
    validation = vqa.stratified_subset(validation, study.validation_per_family, study.seed)
    return {"train": train, "validation": validation}


def read_notes(study: Study) -> list[str]:
    """What was left out of the dataset and why, one line for each kind of trouble."""
    folder = cache.require(study.folder() / "dataset", made_by="01_setup")
    return json.loads((folder / "notes.json").read_text())


def load_dataset(study: Study) -> DatasetDict:
    """The questions that 01 prepared; FileNotFoundError that says so where they are missing."""
    return datasets.load_from_disk(cache.require(study.folder() / "dataset", made_by="01_setup"))


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
        "processor": image_processor.to_dict(),
        "code": cache.source_digest("helpers/data"),
    }

    def write(folder: Path) -> None:
        root = find_data(study)
        if gone := _fetch_images(study, sorted(files.values()), root):
            problem = f"{len(gone)} of the study's images are no longer served, like {gone[0]}"
            remedy = f"try later, or delete {study.run_name}/dataset to draw without them"
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


def _add_truth(dataset: Dataset, root: Path, split: str) -> Dataset:
    """A split with where its pictures are, and what the phantom's truth adds.

    Columns are read whole, by [:]: one by one takes 100 times as long.
    """
    truth = read_truth(root, split)
    known = [truth.get(number, {}) for number in dataset["question_id"][:]]
    stored = dataset.cast_column("image", datasets.Image(decode=False))["image"][:]
    files = [image["path"].removeprefix(f"{root.absolute()}/") for image in stored]
    columns = {name: [row.get(name) for row in known] for name in TRUTH}
    columns |= {"boxes": [row.get("boxes", []) for row in known], "picture": files}
    columns["split"] = [split] * len(dataset)
    return concatenate_datasets([dataset, Dataset.from_dict(columns, TRUTH)], axis=1)


def check_images(dataset: Dataset) -> Dataset:
    """Decode each image once: add `width` and `height`, leave out questions about no sound picture.

    One counted warning for missing files, unreadable ones, and such as are longer than MAX_ASPECT
    times their width; ValueError if nothing is left. Takes about 5 ms an image and core.
    """
    frame = dataset.select_columns(["question_id"]).to_pandas()
    stored = dataset.cast_column("image", datasets.Image(decode=False))["image"][:]
    frame["path"] = [image["path"] for image in stored]
    paths = frame["path"].unique()
    with ThreadPoolExecutor() as pool:
        found = dict(zip(paths, pool.map(_measure, paths), strict=True))
    frame[["width", "height", "problem"]] = [found[path] for path in frame["path"]]
    sound = frame["problem"] == ""
    if not sound.any():
        problem = "neither this nor any other image can be read; download or unzip them"
        raise ValueError(f"{paths[0]}: {problem}")
    for problem, rows in frame[~sound].groupby("problem"):
        n_more = rows["path"].nunique() - 1
        place = rows["path"].iloc[0] + (f" and {n_more} more" if n_more else "")
        what = f"questions about {problem} image"
        vqa.warn_left_out(place, what, rows["question_id"].tolist())
    sizes = Dataset.from_pandas(frame.loc[sound, ["width", "height"]], preserve_index=False)
    return concatenate_datasets([dataset.select(np.flatnonzero(sound)), sizes], axis=1)


def _measure(path: str) -> tuple[int, int, str]:
    """Width and height in pixels of an upright picture, and what is wrong with it ("": nothing)."""
    try:
        width, height = read_picture(path).size
    except (OSError, ValueError) as error:
        return 0, 0, "a missing" if isinstance(error, OSError) else "an unreadable"
    thin = max(width, height) > MAX_ASPECT * min(width, height)
    return width, height, "a too long and thin" * thin


def show_image(study: Study, row: dict) -> Image.Image:
    """The picture of a question for a figure, or a grey field of its size.

    Photographs have licences of their own: they are shown only with `study.show_photographs`.
    """
    if study.data_root is None or study.show_photographs:
        return read_picture(find_data(study) / row["picture"])
    return Image.new("RGB", (row["width"], row["height"]), (200, 200, 200))
