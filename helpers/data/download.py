"""VQAv2's official files, and the single COCO images that a subset needs: what a folder lacks is fetched.

How one file is fetched, so that a kill costs little, is in `helpers.data.fetch`.
"""

import shutil
import stat
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath, PureWindowsPath

import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm

from helpers.data.fetch import (
    DownloadError,
    fetch_file,
    join_url,
    name_host,
    name_part,
    settle_part,
    shorten,
    use_folder,
)
from helpers.data.vqa import FILES, SPLITS
from helpers.run.cache import hash_file

QUESTIONS_URL = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
IMAGES_URL = "http://images.cocodataset.org/"
OFFICIAL_FILES = {  # zip: (bytes, sha256)
    "v2_Questions_Train_mscoco.zip": (7239401, "05a64b6e2582d06d7585f5429674a9a33851878be1bff9f8668cdcf792df611e"),
    "v2_Questions_Val_mscoco.zip": (3494929, "e71f6c5c3e97a51d050f28243e262b28cd0c48d11a6b4632d769d30d3f93222a"),
    "v2_Annotations_Train_mscoco.zip": (21708861, "fb101bcefe91422c543c2bb6d70af11eb3119d0ff745ae283d09acdf66250853"),
    "v2_Annotations_Val_mscoco.zip": (10518930, "0caae7c8d1dafd852727f5ac046bc1efca9b72026bd6ffa34fc489f3a7b3291e"),
}  # fmt: skip
# official zip: the JSON file in it
JSON_OF = {
    zipped.format(s, s.title()): name.format(s) for name, zipped in FILES.values() for s in SPLITS
}

MAX_UNPACKED = 2_000_000_000  # bytes; the largest official JSON file has 0.4 GB
IMAGE_BYTES = 165_000  # of a COCO image, on average
DISK_RATIO = 16  # bytes on the disk of an official zip and the JSON file in it, to those of the zip
GIVE_UP = 50  # images in a row from the start that the server lacks


def download_questions(
    folder: Path, base_url: str = QUESTIONS_URL, files: Mapping = OFFICIAL_FILES
) -> Path:
    """Fetch and unpack the official JSON files a folder lacks: `read_vqa(download_questions(folder), "val")`.

    files: zip name -> (bytes, sha256). A zip that is right, or a JSON file that is there, is not fetched again.
    """
    folder = Path(folder)
    if unknown := sorted(set(files) - set(JSON_OF)):
        raise ValueError(
            f"files: {unknown[0]!r} is none of VQAv2's official zips ({', '.join(JSON_OF)})"
        )

    def list_absent() -> list[str]:
        return [name for name in files if not (folder / JSON_OF[name]).is_file()]

    if not list_absent():
        return folder
    needed = DISK_RATIO * sum(files[name][0] for name in list_absent())
    with use_folder(folder, lambda: needed), requests.Session() as session:
        for name in tqdm(list_absent(), desc="question files", unit="file"):
            zipped, (size, sha256) = folder / name, files[name]
            if not (
                zipped.is_file() and zipped.stat().st_size == size and hash_file(zipped) == sha256
            ):
                fetch_file(join_url(base_url, name), zipped, size, sha256, session=session)
            _unpack_member(zipped, folder / JSON_OF[name])
    return folder


def _unpack_member(zipped: Path, target: Path) -> None:
    """Unpack the one file of that name, from whatever folder in the zip: whole or not at all."""
    part = name_part(target)
    try:
        with zipfile.ZipFile(zipped) as archive:
            member = _find_member(archive.infolist(), target.name)
            with (
                archive.open(member) as source,
                part.open("wb") as file,
            ):  # yields file_size at most
                shutil.copyfileobj(source, file, 1 << 20)
        settle_part(part, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        remedy = f"delete it in {shorten(zipped.parent)} and run this again"
        raise DownloadError(f"{zipped.name} cannot be unpacked ({error}): {remedy}") from None
    finally:
        part.unlink(missing_ok=True)


def _find_member(members: Sequence[zipfile.ZipInfo], name: str) -> zipfile.ZipInfo:
    """The member of that name; ValueError if any leads out of the folder, or all are too large."""
    for member in members:
        path = PureWindowsPath(member.filename)  # knows both kinds of slash
        if path.anchor or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"{member.filename!r} in it leads out of the folder")
    if (size := sum(member.file_size for member in members)) > MAX_UNPACKED:
        raise ValueError(f"it would take {size / 1e6:.1f} MB")
    found = [m for m in members if PurePosixPath(m.filename).name == name and not m.is_dir()]
    if not found:
        raise ValueError(f"no {name} is in it")
    return found[0]


def download_images(
    names: Sequence[str],
    folder: Path,
    base_url: str = IMAGES_URL,
    workers: int = 16,
    max_missing: float = 0.01,
) -> list[str]:
    """Fetch the images that a folder lacks: `download_images(["val2014/COCO_val2014_000000262148.jpg"], folder)`.

    names: below the folder as below base_url. Returns those that the server does not have (or has only broken);
    DownloadError where they are more than the share max_missing of all names.
    """
    folder, names = Path(folder), list(dict.fromkeys(names))
    for name in names:
        path = PureWindowsPath(name)  # knows both kinds of slash
        if (
            not path.name
            or path.anchor
            or ".." in path.parts
            or path.as_posix() != name
            or "\0" in name
        ):
            raise ValueError(
                f"image name {name!r}: expected a path below the folder, like val2014/name.jpg"
            )

    def list_absent() -> list[str]:
        return [name for name in names if not (folder / name).is_file()]

    if not list_absent():
        return []
    with use_folder(folder, lambda: len(list_absent()) * IMAGE_BYTES):
        targets = {folder / name: join_url(base_url, name) for name in list_absent()}
        lacking = _fetch_images(targets, workers, bearable=max(max_missing * len(names), GIVE_UP))
    missing = [name for name in names if folder / name in lacking]
    if missing and len(missing) / len(names) > max_missing:
        reasons = ", ".join(
            f"{count} x {why}" for why, count in Counter(lacking.values()).most_common()
        )
        raise DownloadError(
            f"{len(missing)} of {len(names)} images are not to be had at {name_host(base_url)} ({reasons}: "
            f"{', '.join(missing[:3])}{', ...' * (len(missing) > 3)}), more than the share max_missing="
            f"{max_missing:g}: check the address, or allow more"
        )
    return missing


def _fetch_images(targets: Mapping[Path, str], workers: int, bearable: float) -> dict[Path, str]:
    """Fetch all; returns those that the server lacks, and why. Ends early where it lacks too many and had none."""
    stop, lacking = threading.Event(), {}
    with requests.Session() as session, ThreadPoolExecutor(workers) as pool:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=workers))
        shared = dict(check=check_image, session=session, stop=stop)
        futures = {
            pool.submit(fetch_file, url, target, **shared): target
            for target, url in targets.items()
        }
        try:
            with tqdm(
                as_completed(futures), total=len(futures), desc="images", unit="image"
            ) as bar:
                for done, future in enumerate(bar, 1):
                    error = future.exception()
                    if error and not getattr(error, "lacking", ""):
                        raise error
                    if error:
                        lacking[futures[future]] = error.lacking
                    if len(lacking) == done > bearable:
                        break
        finally:  # on an error or Ctrl-C: what waits is dropped, what runs ends after its next CHUNK
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return lacking


def check_image(path: Path) -> None:
    """ValueError unless the file is an image that decodes to its end."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:  # Pillow raises a dozen types for broken files
        raise ValueError("no whole image") from None
