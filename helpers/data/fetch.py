"""A file fetched over HTTP: whole and checked or not at all, and continued after a kill or a broken connection.

requests streams, tenacity tries a whole transfer again (urllib3's Retry ends at the headers); papermill needs
both, and Colab has them. pooch neither continues a partial file nor fetches several files at once.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path
from urllib.parse import quote

import requests
from requests.exceptions import ConnectTimeout, ProxyError, TooManyRedirects
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    wait_exponential,
    wait_random,
)
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.util import Retry

from helpers.run.cache import hash_file, lock_path

logger = logging.getLogger(__name__)

ATTEMPTS = 6  # at a file, where the server or the line fails
OFFLINE_ATTEMPTS = 3  # where no connection comes about
WRONG_ATTEMPTS = 3  # where all bytes arrive and are wrong
FIRST_WAIT = 1.0  # seconds before the second attempt, doubled for each further one
LONGEST_WAIT = 60.0  # seconds, also where the server asks for more (Retry-After)
CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 20.0  # seconds without a byte; Ctrl-C may take as long
CHUNK = 1 << 14  # bytes; what a broken connection can cost
PASSING = (408, 429, 500, 502, 503, 504)  # statuses worth another attempt
LACKING = (403, 404, 410, 451)  # statuses of a file that is not there; S3 says 403


class DownloadError(OSError):
    """What failed and what to do, in one sentence; what has arrived stays, and the next call goes on from there.

    attempts, wait: how often to try before this is final, and the seconds between where the server sets them.
    lacking: why the server does not have the file ("HTTP 404"); "" where that is not the trouble.
    """

    def __init__(
        self, message: str, attempts: int = 1, wait: float | None = None, lacking: str = ""
    ):
        super().__init__(message)
        self.attempts, self.wait, self.lacking = attempts, wait, lacking


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
    transfer = _Transfer(
        url, Path(target), size, sha256, check, session or requests.Session(), stop
    )
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
    validator: str | None = (
        None  # ETag or date of what the part holds, if this transfer received it
    )

    def __post_init__(self):
        self.part = name_part(self.target)

    def try_once(self) -> Path:
        """Fetch what the part lacks, and give it its name if it is right."""
        if self.stop.is_set():
            raise CancelledError
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if not self.size or self.count_usable() < self.size:
            self.receive(self.count_usable())
        self.verify()
        settle_part(self.part, self.target)
        return self.target

    def count_usable(self) -> int:
        """Bytes of the part that can be continued."""
        if not self.part.is_file() or not (self.sha256 or self.validator):
            return 0
        have = self.part.stat().st_size
        return 0 if self.size is not None and have > self.size else have

    def receive(self, have: int) -> None:
        """Ask for what follows `have` bytes, and write it to the part as it comes."""
        headers = {
            "Accept-Encoding": "identity"
        }  # so that lengths and ranges count the file's own bytes
        if have:
            headers |= {"Range": f"bytes={have}-"} | (
                {"If-Range": self.validator} if self.validator else {}
            )
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
            raise self.fail(
                f"is not there (HTTP {status}): check the address", lacking=f"HTTP {status}"
            )
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
            raise self.fail(
                f"arrives wrong ({problem}): check the address", WRONG_ATTEMPTS, lacking=problem
            )

    def fail(self, what: str, *args, **more) -> DownloadError:
        return DownloadError(f"{self.target.name} at {name_host(self.url)} {what}", *args, **more)


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
        reason, host = getattr(next(iter(error.args), None), "reason", None), name_host(url)
        if isinstance(error, ValueError | TooManyRedirects):
            problem, attempts = "the address leads nowhere: check it, and the proxy's", 1
        elif isinstance(error, ProxyError):
            problem, attempts = (
                "the proxy gives no connection: check HTTP(S)_PROXY",
                OFFLINE_ATTEMPTS,
            )
        elif "CERTIFICATE_VERIFY_FAILED" in str(error) or "CA certificate" in str(error):
            problem, attempts = (
                "its certificate is not accepted: check the clock and REQUESTS_CA_BUNDLE",
                1,
            )
        elif isinstance(error, ConnectTimeout) or isinstance(reason, NewConnectionError):
            problem, attempts = "no connection: check the network", OFFLINE_ATTEMPTS
        else:
            problem, attempts = "the connection broke: check the network", ATTEMPTS
        raise DownloadError(f"{host}: {problem}, then run this again", attempts) from None


@contextmanager
def use_folder(folder: Path, count_needed: Callable[[], int]) -> Iterator[None]:
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
        problem = f"cannot write in {shorten(folder)} ({error.strerror}): check the folder"
        if error.errno in (ENOSPC, EDQUOT):
            problem = (
                f"no space left for {shorten(folder)}: free about {count_needed() / 1e6:.1f} MB"
            )
        raise DownloadError(f"{problem}, then run this again") from None


def name_part(target: Path) -> Path:
    """The hidden partial file beside a file that is under way."""
    return target.with_name(f".{target.name}.part")


def settle_part(part: Path, target: Path) -> None:
    """Give a whole file its name, its bytes on the disk first."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)


def join_url(base_url: str, name: str) -> str:
    """The address of a file below a base address, its odd characters quoted."""
    return f"{base_url.rstrip('/')}/{quote(name)}"


def name_host(url: str) -> str:
    """The host and port of an address, for a message: without user, password and path."""
    match = re.match(r"https?://(?:[^/@]*@)?([^/]+)", url)
    return match[1] if match else "this address"


def shorten(folder: Path) -> str:
    """A folder without the machine's own path: a message may end up in a committed notebook."""
    return "/".join(folder.absolute().parts[1:][-2:])
