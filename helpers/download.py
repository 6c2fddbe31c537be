"""VQAv2's official zips, and the single COCO images that a subset needs, fetched so that a kill costs little.

requests streams, tenacity tries a whole transfer again (urllib3's Retry ends at the headers); papermill needs
both, and Colab has them. pooch neither continues a partial file nor fetches several files at once.
"""

import logging
import os
import re
import shutil
import stat
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import quote

import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectTimeout, ProxyError, TooManyRedirects
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, wait_exponential, wait_random
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.util import Retry

from helpers.steps import hash_file, lock_path
from helpers.vqa import FILES, SPLITS

logger = logging.getLogger(__name__)

QUESTIONS_URL = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
IMAGES_URL = "http://images.cocodataset.org/"
OFFICIAL_FILES = {  # zip: (bytes, sha256)
    "v2_Questions_Train_mscoco.zip": (7239401, "05a64b6e2582d06d7585f5429674a9a33851878be1bff9f8668cdcf792df611e"),
    "v2_Questions_Val_mscoco.zip": (3494929, "e71f6c5c3e97a51d050f28243e262b28cd0c48d11a6b4632d769d30d3f93222a"),
    "v2_Annotations_Train_mscoco.zip": (21708861, "fb101bcefe91422c543c2bb6d70af11eb3119d0ff745ae283d09acdf66250853"),
    "v2_Annotations_Val_mscoco.zip": (10518930, "0caae7c8d1dafd852727f5ac046bc1efca9b72026bd6ffa34fc489f3a7b3291e"),
}  # fmt: skip
# official zip: the JSON file in it
JSON_OF = {zipped.format(s, s.title()): name.format(s) for name, zipped in FILES.values() for s in SPLITS}

ATTEMPTS = 6  # at a file, where the server or the line fails
OFFLINE_ATTEMPTS = 3  # where no connection comes about
WRONG_ATTEMPTS = 3  # where all bytes arrive and are wrong
FIRST_WAIT = 1.0  # seconds before the second attempt, doubled for each further one
LONGEST_WAIT = 60.0  # seconds, also where the server asks for more (Retry-After)
CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 20.0  # seconds without a byte; Ctrl-C may take as long
CHUNK = 1 << 14  # bytes; what a broken connection can cost
MAX_UNPACKED = 2_000_000_000  # bytes; the largest official JSON file has 0.4 GB
IMAGE_BYTES = 165_000  # of a COCO image, on average
DISK_RATIO = 16  # bytes on the disk of an official zip and the JSON file in it, to those of the zip
GIVE_UP = 50  # images in a row from the start that the server lacks
PASSING = (408, 429, 500, 502, 503, 504)  # statuses worth another attempt
LACKING = (403, 404, 410, 451)  # statuses of a file that is not there; S3 says 403


class DownloadError(OSError):
    """What failed and what to do, in one sentence; what has arrived stays, and the next call goes on from there.

    attempts, wait: how often to try before this is final, and the seconds between where the server sets them.
    lacking: why the server does not have the file ("HTTP 404"); "" where that is not the trouble.
    """

    def __init__(self, message: str, attempts: int = 1, wait: float | None = None, lacking: str = ""):
        super().__init__(message)
        self.attempts, self.wait, self.lacking = attempts, wait, lacking


def download_questions(folder: Path, base_url: str = QUESTIONS_URL, files: Mapping = OFFICIAL_FILES) -> Path:
    """Fetch and unpack the official JSON files a folder lacks: `read_vqa(download_questions(folder), "val")`.

    files: zip name -> (bytes, sha256). A zip that is right, or a JSON file that is there, is not fetched again.
    """
    folder = Path(folder)
    if unknown := sorted(set(files) - set(JSON_OF)):
        raise ValueError(f"files: {unknown[0]!r} is none of VQAv2's official zips ({', '.join(JSON_OF)})")

    def list_absent() -> list[str]:
        return [name for name in files if not (folder / JSON_OF[name]).is_file()]

    if not list_absent():
        return folder
    needed = DISK_RATIO * sum(files[name][0] for name in list_absent())
    with _use_folder(folder, lambda: needed), requests.Session() as session:
        for name in tqdm(list_absent(), desc="question files", unit="file"):
            zipped, (size, sha256) = folder / name, files[name]
            if not (zipped.is_file() and zipped.stat().st_size == size and hash_file(zipped) == sha256):
                fetch_file(_join_url(base_url, name), zipped, size, sha256, session=session)
            _unpack_member(zipped, folder / JSON_OF[name])
    return folder


def _unpack_member(zipped: Path, target: Path) -> None:
    """Unpack the one file of that name, from whatever folder in the zip: whole or not at all."""
    part = _name_part(target)
    try:
        with zipfile.ZipFile(zipped) as archive:
            member = _find_member(archive.infolist(), target.name)
            with archive.open(member) as source, part.open("wb") as file:  # yields file_size at most
                shutil.copyfileobj(source, file, 1 << 20)
        _settle(part, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        remedy = f"delete it in {_shorten(zipped.parent)} and run this again"
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
        if not path.name or path.anchor or ".." in path.parts or path.as_posix() != name or "\0" in name:
            raise ValueError(f"image name {name!r}: expected a path below the folder, like val2014/name.jpg")

    def list_absent() -> list[str]:
        return [name for name in names if not (folder / name).is_file()]

    if not list_absent():
        return []
    with _use_folder(folder, lambda: len(list_absent()) * IMAGE_BYTES):
        targets = {folder / name: _join_url(base_url, name) for name in list_absent()}
        lacking = _fetch_images(targets, workers, bearable=max(max_missing * len(names), GIVE_UP))
    missing = [name for name in names if folder / name in lacking]
    if missing and len(missing) / len(names) > max_missing:
        reasons = ", ".join(f"{count} x {why}" for why, count in Counter(lacking.values()).most_common())
        raise DownloadError(
            f"{len(missing)} of {len(names)} images are not to be had at {_name_host(base_url)} ({reasons}: "
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
        futures = {pool.submit(fetch_file, url, target, **shared): target for target, url in targets.items()}
        try:
            with tqdm(as_completed(futures), total=len(futures), desc="images", unit="image") as bar:
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


def fetch_file(
    url: str,
    target: Path,
    size: int | None = None,
    sha256: str | None = None,
    check: Callable[[Path], None] | None = None,
    session: requests.Session | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Fetch a file that appears whole and checked, or not at all: `fetch_file(url, folder / "a.zip", size, sha256)`.

    check: called with the whole file before it gets its name; its ValueError says what is wrong with the bytes.
    stop: once set, the transfer ends with a CancelledError.
    A part that another call left (killed, or failed) is continued where sha256 will tell whether the halves fit.
    DownloadError where the transfer fails; what the disk raises passes through.
    """
    stop = stop or threading.Event()
    transfer = _Transfer(url, Path(target), size, sha256, check, session or requests.Session(), stop)
    retrying = Retrying(
        retry=retry_if_exception_type(DownloadError),
        stop=lambda state: state.attempt_number >= state.outcome.exception().attempts,
        wait=_choose_wait,
        sleep=stop.wait,
        before_sleep=before_sleep_log(logger, logging.INFO),
        reraise=True,
    )
    return retrying(transfer.try_once)


@dataclass
class _Transfer:
    """A file on its way, by way of the hidden partial file beside it."""

    url: str
    target: Path
    size: int | None
    sha256: str | None
    check: Callable[[Path], None] | None
    session: requests.Session
    stop: threading.Event
    validator: str | None = None  # ETag or date of what the part holds, if this transfer received it

    def __post_init__(self):
        self.part = _name_part(self.target)

    def try_once(self) -> Path:
        """Fetch what the part lacks, and give it its name if it is right."""
        if self.stop.is_set():
            raise CancelledError
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if not self.size or self.count_usable() < self.size:
            self.receive(self.count_usable())
        self.verify()
        _settle(self.part, self.target)
        return self.target

    def count_usable(self) -> int:
        """Bytes of the part that can be continued."""
        if not self.part.is_file() or not (self.sha256 or self.validator):
            return 0
        have = self.part.stat().st_size
        return 0 if self.size is not None and have > self.size else have

    def receive(self, have: int) -> None:
        """Ask for what follows `have` bytes, and write it to the part as it comes."""
        headers = {"Accept-Encoding": "identity"}  # so that lengths and ranges count the file's own bytes
        if have:
            headers |= {"Range": f"bytes={have}-"} | ({"If-Range": self.validator} if self.validator else {})
        with _explain_network(self.url):
            timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
            response = self.session.get(self.url, headers=headers, stream=True, timeout=timeout)
        with response:
            have = self.read_head(response, have)
            with self.part.open("ab" if have else "wb") as file:
                for chunk in _read_chunks(response, self.url):
                    if self.stop.is_set():
                        raise CancelledError
                    file.write(chunk)
                    file.flush()  # a killed process loses none of it
                    have += len(chunk)
                    if self.size is not None and have > self.size:
                        return  # verify says so

    def read_head(self, response: requests.Response, have: int) -> int:
        """Where the answer's bytes begin: after `have`, or at 0. DownloadError if it has none."""
        status, headers = response.status_code, response.headers
        begins = headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and (status == 416 or (status == 206 and not begins)):
            self.part.unlink()
            raise self.fail("could not be continued: run this again", ATTEMPTS, wait=0)
        if status in PASSING:
            wait = _read_retry_after(response)
            raise self.fail(f"is not served now (HTTP {status}): try later", ATTEMPTS, wait)
        if status in LACKING:
            raise self.fail(f"is not there (HTTP {status}): check the address", lacking=f"HTTP {status}")
        if status not in ((200, 206) if have else (200,)):
            raise self.fail(f"is refused (HTTP {status}): check the address")
        etag = headers.get("ETag", "W/")  # a weak one vouches for no byte
        self.validator = headers.get("Last-Modified") if etag.startswith("W/") else etag
        return have if status == 206 else 0

    def verify(self) -> None:
        """DownloadError, and no part, unless the part is all that the file should be."""
        problem = ""
        if self.size is not None and self.part.stat().st_size != self.size:
            problem = f"not {self.size} bytes"
        elif self.sha256 is not None and hash_file(self.part) != self.sha256:
            problem = "another SHA-256"
        elif self.check is not None:
            try:
                self.check(self.part)
            except ValueError as error:
                problem = str(error)
        if problem:
            self.part.unlink()
            raise self.fail(f"arrives wrong ({problem}): check the address", WRONG_ATTEMPTS, lacking=problem)

    def fail(self, what: str, *args, **more) -> DownloadError:
        return DownloadError(f"{self.target.name} at {_name_host(self.url)} {what}", *args, **more)


def _read_chunks(response: requests.Response, url: str) -> Iterator[bytes]:
    """The bytes as they come; urllib3 counts them against Content-Length."""
    with _explain_network(url):
        yield from response.iter_content(CHUNK)


def _read_retry_after(response: requests.Response) -> float | None:
    try:
        return Retry().get_retry_after(response.raw)  # knows seconds and dates
    except (HTTPError, ValueError, OverflowError):
        return None


def _choose_wait(state) -> float:
    asked = state.outcome.exception().wait
    backoff = wait_exponential(FIRST_WAIT, LONGEST_WAIT) + wait_random(0, FIRST_WAIT)
    return min(backoff(state) if asked is None else asked, LONGEST_WAIT)


@contextmanager
def _explain_network(url: str) -> Iterator[None]:
    """A DownloadError for what requests raises, in sentences that are full of objects' addresses."""
    try:
        yield
    except (OSError, HTTPError) as error:
        reason, host = getattr(next(iter(error.args), None), "reason", None), _name_host(url)
        if isinstance(error, ValueError | TooManyRedirects):
            problem, attempts = "the address leads nowhere: check it, and the proxy's", 1
        elif isinstance(error, ProxyError):
            problem, attempts = "the proxy gives no connection: check HTTP(S)_PROXY", OFFLINE_ATTEMPTS
        elif "CERTIFICATE_VERIFY_FAILED" in str(error) or "CA certificate" in str(error):
            problem, attempts = "its certificate is not accepted: check the clock and REQUESTS_CA_BUNDLE", 1
        elif isinstance(error, ConnectTimeout) or isinstance(reason, NewConnectionError):
            problem, attempts = "no connection: check the network", OFFLINE_ATTEMPTS
        else:
            problem, attempts = "the connection broke: check the network", ATTEMPTS
        raise DownloadError(f"{host}: {problem}, then run this again", attempts) from None


@contextmanager
def _use_folder(folder: Path, count_needed: Callable[[], int]) -> Iterator[None]:
    """Creates the folder, keeps other processes from downloading into it, and says what is wrong with the disk.

    count_needed: the bytes still needed, asked for where the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_path(folder / "download"):
            yield
    except DownloadError:
        raise
    except OSError as error:
        problem = f"cannot write in {_shorten(folder)} ({error.strerror}): check the folder"
        if error.errno in (ENOSPC, EDQUOT):
            problem = f"no space left for {_shorten(folder)}: free about {count_needed() / 1e6:.1f} MB"
        raise DownloadError(f"{problem}, then run this again") from None


def _name_part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _settle(part: Path, target: Path) -> None:
    """Give a whole file its name, its bytes on the disk first."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)


def _join_url(base_url: str, name: str) -> str:
    return f"{base_url.rstrip('/')}/{quote(name)}"


def _name_host(url: str) -> str:
    match = re.match(r"https?://(?:[^/@]*@)?([^/]+)", url)
    return match[1] if match else "this address"


def _shorten(folder: Path) -> str:
    """Without the machine's own path: a message may end up in a committed notebook."""
    return "/".join(folder.absolute().parts[1:][-2:])
