"""VQAv2's official question files, and the single COCO images that a subset needs.

requests with urllib3's Retry: pooch asks for one file at a time, each over a connection of its own.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from functools import partial
from pathlib import Path
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import RequestException
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from helpers.data.encode import read_picture
from helpers.data.vqa import FILES, SPLITS
from helpers.run.cache import hash_file, lock_path

QUESTIONS_URL = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
IMAGES_URL = "http://images.cocodataset.org/"
OFFICIAL_FILES = {  # zip: (bytes, sha256)
    "v2_Questions_Train_mscoco.zip": (
        7239401, "05a64b6e2582d06d7585f5429674a9a33851878be1bff9f8668cdcf792df611e"),
    "v2_Questions_Val_mscoco.zip": (
        3494929, "e71f6c5c3e97a51d050f28243e262b28cd0c48d11a6b4632d769d30d3f93222a"),
    "v2_Annotations_Train_mscoco.zip": (
        21708861, "fb101bcefe91422c543c2bb6d70af11eb3119d0ff745ae283d09acdf66250853"),
    "v2_Annotations_Val_mscoco.zip": (
        10518930, "0caae7c8d1dafd852727f5ac046bc1efca9b72026bd6ffa34fc489f3a7b3291e"),
}  # fmt: skip
JSON_OF = {  # official zip: the JSON file in it
    zipped.format(split, split.title()): name.format(split)
    for name, zipped in FILES.values()
    for split in SPLITS
}

ATTEMPTS = 3  # at a file that breaks off or arrives wrong
# A Retry-After header may ask for hours: the backoff bounds every wait instead.
RETRY = Retry(
    total=5, connect=2, other=0, status_forcelist=(408, 429, 500, 502, 503, 504),
    raise_on_status=False, backoff_factor=0.5, backoff_max=10, backoff_jitter=0.5,
    respect_retry_after_header=False,
)  # fmt: skip
TIMEOUT = (10.0, 20.0)  # seconds to connect, and without a byte
CHUNK = 1 << 14  # bytes; on a slow line, what an interrupt waits for
ABSENT = (403, 404, 410, 451)  # statuses of a file that is not there; S3 says 403
IMAGE_BYTES = 165_000  # of a COCO image, on average
CHECK = {  # what to check after an error of requests; an OSError has no certificates to read
    "ProxyError": "HTTP(S)_PROXY", "SSLError": "the clock and REQUESTS_CA_BUNDLE",
    "OSError": "REQUESTS_CA_BUNDLE",
}  # fmt: skip


class DownloadError(OSError):
    """Which file failed, what was wrong and what to do, in one sentence."""


class AbsentError(DownloadError):
    """The server has no file of that name, or has it only broken."""


def download_questions(
    folder: Path, base_url: str = QUESTIONS_URL, files: Mapping = OFFICIAL_FILES
) -> Path:
    """Fetch the official zips that a folder lacks: `read_vqa(download_questions(folder), "val")`.

    files: zip name -> (bytes, sha256). A zip of the right size, or its JSON file, stays as it is.
    """
    folder = Path(folder)

    def is_absent(name: str) -> bool:
        path = folder / name
        whole = path.is_file() and path.stat().st_size == files[name][0]
        return not (whole or (folder / JSON_OF[name]).is_file())

    if absent := list(filter(is_absent, files)):
        with _use_folder(folder, sum(files[name][0] for name in absent)), open_session() as session:
            # asked again, as another process may have fetched some
            for name in tqdm(list(filter(is_absent, absent)), desc="question files", unit="file"):
                check = partial(check_sha256, expected=files[name][1])
                fetch_file(base_url, name, folder, check, session)
    return folder


def download_images(
    names: Sequence[str],
    folder: Path,
    base_url: str = IMAGES_URL,
    workers: int = 16,
    max_missing: float = 0.01,
) -> list[str]:
    """Fetch the images that a folder lacks: `download_images([name_image("val", 262148)], folder)`.

    names: below the folder as below base_url. Returns those that the server does not have, or has
    only broken; DownloadError once they are more than the share max_missing of all names, or if
    anything else fails. What has arrived stays, so that the next call fetches the rest.
    """
    folder, names = Path(folder), sorted(set(names))
    stop, missing = threading.Event(), []

    def fetch(name: str) -> AbsentError | None:
        if stop.is_set() or (folder / name).is_file():  # another process may have fetched it
            return None
        try:
            fetch_file(base_url, name, folder, read_picture, session, stop)
        except AbsentError as error:
            return error

    if not (absent := [name for name in names if not (folder / name).is_file()]):
        return []
    with (
        _use_folder(folder, len(absent) * IMAGE_BYTES),
        open_session(workers) as session,
        ThreadPoolExecutor(workers) as pool,
    ):
        try:
            bar = tqdm(pool.map(fetch, absent), total=len(absent), desc="images", unit="image")
            for name, error in zip(absent, bar, strict=True):
                missing += [name] if error else []
                if error and len(missing) / len(names) > max_missing:
                    counts = f"{len(missing)} of {len(names)} images are missing"
                    limit = f"more than the share {max_missing=:g}"
                    raise DownloadError(f"{counts}, {limit}; the last of them: {error}")
        finally:  # on an error or Ctrl-C: what waits does nothing, what runs ends after its CHUNK
            stop.set()
    return missing


def open_session(workers: int = 1) -> requests.Session:
    """A session that repeats requests which fail before the first byte, for several threads."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # Content-Length counts the file's own bytes
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=workers, max_retries=RETRY))
    return session


def fetch_file(
    base_url: str,
    name: str,
    folder: Path,
    check: Callable[[Path], object],
    session: requests.Session,
    stop: threading.Event | None = None,
) -> None:
    """Fetch a file that appears whole and checked, or not at all.

    check: called with the whole file before it gets its name; ValueError if its bytes are wrong.
    stop: once set, the transfer ends with a CancelledError.
    A transfer that breaks off or stalls begins again, ATTEMPTS times in all.
    """
    target, url = folder / name, f"{base_url.rstrip('/')}/{quote(name)}"
    host = re.match(r"https?://(?:[^/@]*@)?([^/]+)", url)  # without user and password
    place = f"{target.name} at {host[1] if host else 'this address'}"
    part = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        try:
            with _request(session, url, place) as response, part.open("wb") as file:
                for chunk in response.iter_content(CHUNK):
                    if stop and stop.is_set():
                        raise CancelledError
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            check(part)
            os.replace(part, target)
            return
        except RequestException:
            problem = "the connection broke: check the network, then run this again"
            failure = DownloadError(f"{place}: {problem}")
        except ValueError as error:
            failure = AbsentError(f"{place}: it arrives wrong ({error}): check the address")
    part.unlink()
    raise failure


def _request(session: requests.Session, url: str, place: str) -> requests.Response:
    """The answer to a request for a file, its bytes still to be read; DownloadError if it has none.

    What requests raises is replaced: its sentences are full of objects' addresses.
    """
    try:
        response = session.get(url, stream=True, timeout=TIMEOUT)
    except (OSError, HTTPError) as error:
        kind = type(error).__name__
        problem = f"no connection ({kind}): check {CHECK.get(kind, 'the network and the address')}"
        raise DownloadError(f"{place}: {problem}, then run this again") from None
    if (status := response.status_code) == 200:
        return response
    response.close()
    if status in ABSENT:
        raise AbsentError(f"{place} is not there (HTTP {status}): check the address")
    remedy = "try later" if status in RETRY.status_forcelist else "check the address"
    raise DownloadError(f"{place} is not served (HTTP {status}): {remedy}")


def check_sha256(path: Path, expected: str) -> None:
    """ValueError unless the file's SHA-256 is the expected one."""
    if (digest := hash_file(path)) != expected:
        raise ValueError(f"its SHA-256 is {digest[:12]}..., not {expected[:12]}...")


@contextmanager
def _use_folder(folder: Path, needed: int) -> Iterator[None]:
    """Create the folder, and keep other processes from downloading into it.

    needed: bytes that are still to come, which the error says where the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_path(folder / "download"):
            yield
    except DownloadError:
        raise
    except OSError as error:
        full = error.errno in (ENOSPC, EDQUOT)
        remedy = f"free about {needed / 1e6:.1f} MB" if full else "check the folder"
        name = "/".join(folder.absolute().parts[1:][-2:])  # without the machine's own path
        problem = f"cannot write in {name} ({error.strerror}): {remedy}"
        raise DownloadError(f"{problem}, then run this again") from None
