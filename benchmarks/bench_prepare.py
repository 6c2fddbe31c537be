"""How long does preparing take at VQAv2's size, and what does resizing once save?

python benchmarks/bench_prepare.py                      generated pictures of COCO's sizes
python benchmarks/bench_prepare.py --data-root FOLDER   the photographs there

First: official-format files with as many questions as VQAv2 has (443,757 and 214,354) are generated
and read, and a subset is drawn, in a process of its own. Then: images a second, with the processor
for every batch and with pictures resized once.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.data.encode import EncodedQuestions, Pictures, write_pictures
from helpers.data.prepare import sample_subset
from helpers.data.vqa import QUESTION_TYPES, read_vqa
from helpers.model.vilt import load_vilt
from helpers.run.settings import Study

QUESTIONS = {"train": 443_757, "val": 214_354}
IMAGES = {"train": 82_783, "val": 40_504}
SHARES = {  # of the families, roughly VQAv2's: what matters is that some are rare
    "is/are": 0.38, "what": 0.27, "how many": 0.12, "what color": 0.10, "other": 0.06,
    "where": 0.03, "how": 0.012,
    "which": 0.012, "why": 0.01, "who": 0.006,
}  # fmt: skip


def write_official(folder: Path, split: str, rng: np.random.Generator) -> None:
    """A split of VQAv2's size and format: real question types, random words, ten answers each."""
    families, weights = list(SHARES), np.array(list(SHARES.values()))
    types = {
        family: [kind for kind, of in QUESTION_TYPES.items() if of == family] for family in families
    }
    drawn = rng.choice(len(families), QUESTIONS[split], p=weights / weights.sum())
    offset = {"train": 0, "val": 1_000_000}[split]
    images = np.sort(rng.integers(IMAGES[split], size=QUESTIONS[split])) + offset
    tails, answers = (
        rng.integers(5000, size=(len(drawn), 4)),
        rng.zipf(1.4, size=len(drawn)) % 20_000,
    )
    questions, annotations = [], []
    for number, (family, image, tail, answer) in enumerate(
        zip(drawn, images.tolist(), tails, answers, strict=True)
    ):
        kinds = types[families[family]]
        kind = kinds[number % len(kinds)]
        ids = {"image_id": image, "question_id": image * 1000 + number % 1000}
        words = " ".join(f"word{word}" for word in tail)
        opening = "" if kind == "none of the above" else kind
        questions.append({**ids, "question": f"{opening} {words}?"})
        given = [f"answer {answer + (vote % 3 == 2) * vote}" for vote in range(10)]
        votes = [
            {"answer": said, "answer_confidence": "yes", "answer_id": vote + 1}
            for vote, said in enumerate(given)
        ]
        annotations.append(
            {
                **ids,
                "question_type": kind,
                "answer_type": "other",
                "multiple_choice_answer": given[0],
                "answers": votes,
            }
        )
    head = {"data_type": "mscoco", "data_subtype": f"{split}2014"}
    for name, kind, records in (
        (f"v2_OpenEnded_mscoco_{split}2014_questions.json", "questions", questions),
        (f"v2_mscoco_{split}2014_annotations.json", "annotations", annotations),
    ):
        (folder / name).write_text(json.dumps({**head, kind: records}))


def measure_drawing(root: str, profile: str) -> None:
    """Read both splits, draw the profile's subset, say what it took: in a process of its own."""
    study = Study.load(profile, data_root=root)
    start = time.perf_counter()
    parts = sample_subset(study, Path(root))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    images = {name: len(set(part["image_id"])) for name, part in parts.items()}
    sizes = {
        name: f"{len(part):,} questions about {images[name]:,} images"
        for name, part in parts.items()
    }
    print(
        f"profile {profile}: read and drawn in {seconds:.0f} s, peak memory {peak:.1f} GB: {sizes}"
    )


def draw_pictures(folder: Path, count: int) -> dict[int, Path]:
    """Smooth noise in COCO's common sizes, as JPEG."""
    rng, paths = np.random.default_rng(0), {}
    for number in range(count):
        size = [(640, 480), (640, 427), (480, 640), (427, 640), (500, 375)][number % 5]
        small = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        paths[number] = folder / f"{number}.jpg"
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(
            paths[number], quality=92
        )
    return paths


def find_pictures(root: str | None, folder: Path, count: int) -> dict[int, Path]:
    """Files by image_id: the photographs under `root`, or `count` pictures drawn into `folder`."""
    if root is None:
        return draw_pictures(folder, count)
    parts = [read_vqa(root, split) for split in ("train", "val")]
    return {
        key: Path(image.filename)
        for part in parts
        for key, image in zip(part["image_id"], part["image"], strict=True)
    }


def bench_images(paths: dict[int, Path], batch_size: int) -> None:
    """Images a second: the processor for every batch, and pictures resized once."""
    _, processor = load_vilt("fresh-b32")
    keys = list(paths)
    text = ["is it a cat ?"] * len(keys)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        kept = Pictures(write_pictures(paths, processor.image_processor, folder))
        once = time.perf_counter() - start
        columns = {"question_id": keys, "image_id": keys, "question": text}
        encoded = EncodedQuestions(Dataset.from_dict(columns), processor, pictures=kept)

        def process_each_time() -> None:
            for at in range(0, len(keys), batch_size):
                images = [
                    Image.open(paths[key]).convert("RGB") for key in keys[at : at + batch_size]
                ]
                processor(images, text[at : at + batch_size], padding=True, return_tensors="pt")

        def read_resized() -> None:
            for _ in encoded.batches(batch_size):
                pass

        best = {}
        for _ in range(3):
            for run in (process_each_time, read_resized):
                start = time.perf_counter()
                run()
                best[run] = min(best.get(run, np.inf), time.perf_counter() - start)
    before, after = (len(keys) / best[run] for run in (process_each_time, read_resized))
    print(
        f"{len(keys)} images, batches of {batch_size}, {torch.get_num_threads()} threads: "
        f"the processor for every "
        f"batch {before:.0f} images/s, resized once {after:.0f} images/s: {after / before:.1f} x "
        f"(resizing once, {os.cpu_count()} cores seen: {len(keys) / once:.0f} images/s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-root", help="folder of official VQAv2 files, whose photographs are read"
    )
    parser.add_argument(
        "--images", type=int, default=400, help="generated pictures, where there is no data root"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draw", nargs=2, metavar=("FOLDER", "PROFILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.draw:
        measure_drawing(*options.draw)
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for split in QUESTIONS:
            write_official(Path(folder), split, rng)
        for profile in ("colab", "full"):
            subprocess.run([sys.executable, __file__, "--draw", folder, profile], check=True)
    with tempfile.TemporaryDirectory() as folder:
        bench_images(
            find_pictures(options.data_root, Path(folder), options.images), options.batch_size
        )


if __name__ == "__main__":
    main()
