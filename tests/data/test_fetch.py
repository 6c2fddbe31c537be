"""The fetching of one file, from a server on the loopback that misbehaves as told."""

import hashlib
import os
import re
import subprocess
import time
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from loopback import (
    Loopback,
    answer,
    cut_after,
    hang_up,
    ignore_range,
    misstate_length,
    omit_length,
    send_chunked,
    send_on_and_on,
    send_other,
    stall_after,
)

from helpers.data import fetch
from helpers.data.fetch import DownloadError, fetch_file

DATA = np.random.default_rng(0).bytes(200_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Waits of milliseconds, and none of the machine's own proxies."""
    monkeypatch.setattr(fetch, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(fetch, "LONGEST_WAIT", 2.0)
    monkeypatch.setattr(fetch, "READ_TIMEOUT", 0.4)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def server():
    with Loopback({"a.zip": DATA}) as running:
        yield running


def list_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def assert_plain(error, folder: Path) -> None:
    """One sentence for a notebook: no line break, no machine's path, no object's address."""
    text = str(error.value)
    assert "\n" not in text
    assert str(folder) not in text
    assert not re.search(r"0x[0-9a-f]{6}|/tmp|/home|/work|Errno", text)
    assert len(text) < 400


# One file


@pytest.mark.parametrize("known", [{}, {"size": len(DATA)}, {"size": len(DATA), "sha256": SHA256}])
def test_a_file_arrives_whole(server, tmp_path, known):
    target = fetch_file(server.url + "a.zip", tmp_path / "deep" / "a.zip", **known)
    assert target.read_bytes() == DATA
    assert list_files(tmp_path) == ["a.zip"]
    (headers,) = server.asked("a.zip")
    assert "Range" not in headers
    assert headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("known", [{}, {"size": len(DATA), "sha256": SHA256}])
@pytest.mark.parametrize("break_off", [cut_after, stall_after])
def test_a_broken_transfer_is_continued_where_it_broke(server, tmp_path, known, break_off):
    server.script("a.zip", break_off(70_000), break_off(50_000))
    start = time.monotonic()
    assert fetch_file(server.url + "a.zip", tmp_path / "a.zip", **known).read_bytes() == DATA
    assert time.monotonic() - start < 3
    assert list_files(tmp_path) == ["a.zip"]
    first, second, third = server.asked("a.zip")
    assert "Range" not in first
    starts = [
        int(headers["Range"].removeprefix("bytes=").removesuffix("-"))
        for headers in (second, third)
    ]
    assert 70_000 - fetch.CHUNK < starts[0] <= 70_000
    assert starts[0] + 50_000 - fetch.CHUNK < starts[1] <= starts[0] + 50_000
    assert second["If-Range"] == third["If-Range"] == '"one"'


@pytest.mark.parametrize(
    "failure", [answer(code) for code in (408, 429, 500, 502, 503, 504)] + [hang_up]
)
def test_passing_failures_are_tried_again(server, tmp_path, failure):
    server.script("a.zip", failure, failure)
    assert fetch_file(server.url + "a.zip", tmp_path / "a.zip").read_bytes() == DATA
    assert len(server.asked("a.zip")) == 3


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        (answer(503), "HTTP 503"),
        (cut_after(0), "connection broke"),
        (hang_up, "connection broke"),
        (stall_after(10), "connection broke"),
    ],
)
def test_lasting_failures_end_after_the_attempts(server, tmp_path, monkeypatch, failure, problem):
    monkeypatch.setattr(fetch, "ATTEMPTS", 3)
    server.script("a.zip", always=failure)
    with pytest.raises(DownloadError, match=problem) as error:
        fetch_file(server.url + "a.zip", tmp_path / "a.zip")
    assert_plain(error, tmp_path)
    assert len(server.asked("a.zip")) == 3
    assert not (tmp_path / "a.zip").exists()


def test_waits_grow_and_are_bounded(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(fetch, "LONGEST_WAIT", 0.4)
    server.script("a.zip", *[answer(500)] * 5)
    fetch_file(server.url + "a.zip", tmp_path / "a.zip")
    waits = np.diff(server.times("a.zip"))
    assert (waits > [0.1, 0.2, 0.39, 0.39, 0.39]).all()
    assert (waits < [0.3, 0.4, 0.6, 0.6, 0.6]).all()


@pytest.mark.parametrize(("status", "asks"), [(429, "1"), (503, "date")])
def test_the_server_says_how_long_to_wait(server, tmp_path, status, asks):
    wish = (
        formatdate(time.time() + 2, usegmt=True) if asks == "date" else asks
    )  # a date has whole seconds
    server.script("a.zip", answer(status, Retry_After=wish))
    assert fetch_file(server.url + "a.zip", tmp_path / "a.zip").read_bytes() == DATA
    (wait,) = np.diff(server.times("a.zip"))
    assert 0.9 < wait < 2.3


@pytest.mark.parametrize(
    "wish", ["99999", "Fri, 31 Dec 9999 23:59:59 GMT", "soon", "9" * 5000, "-1"]
)
def test_odd_wishes_are_bounded(server, tmp_path, monkeypatch, wish):
    monkeypatch.setattr(fetch, "LONGEST_WAIT", 0.2)
    server.script("a.zip", answer(429, Retry_After=wish))
    assert fetch_file(server.url + "a.zip", tmp_path / "a.zip").read_bytes() == DATA
    assert np.diff(server.times("a.zip")) < 0.6


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 204, 304])
def test_lasting_answers_are_not_tried_again(server, tmp_path, status):
    server.script("a.zip", always=answer(status, b""))
    with pytest.raises(
        DownloadError, match=rf"a\.zip at 127\.0\.0\.1:\d+ is .*HTTP {status}\): check"
    ) as error:
        fetch_file(server.url + "a.zip", tmp_path / "a.zip")
    assert_plain(error, tmp_path)
    assert len(server.asked("a.zip")) == 1
    assert list_files(tmp_path) == []


def test_redirects_are_followed_and_loops_are_not(server, tmp_path):
    server.script("old.zip", always=answer(302, Location="/a.zip"))
    assert (
        fetch_file(server.url + "old.zip", tmp_path / "b.zip", sha256=SHA256).read_bytes() == DATA
    )
    server.script("a.zip", always=answer(301, Location="/old.zip"))
    with pytest.raises(DownloadError, match="address leads nowhere") as error:
        fetch_file(server.url + "old.zip", tmp_path / "c.zip")
    assert_plain(error, tmp_path)


# What is kept of a partial file


def put_part(folder: Path, data: bytes) -> Path:
    part = folder / ".a.zip.part"
    part.write_bytes(data)
    return part


def test_a_part_is_continued_where_a_digest_will_tell(server, tmp_path):
    put_part(tmp_path, DATA[:150_000])
    fetch_file(server.url + "a.zip", tmp_path / "a.zip", sha256=SHA256)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert [headers["Range"] for headers in server.asked("a.zip")] == ["bytes=150000-"]


def test_a_part_of_unknown_origin_is_not_trusted(server, tmp_path):
    put_part(tmp_path, b"other" * 1000)
    assert fetch_file(server.url + "a.zip", tmp_path / "a.zip").read_bytes() == DATA
    assert [headers.get("Range") for headers in server.asked("a.zip")] == [None]


def test_a_part_of_other_bytes_is_thrown_away(server, tmp_path):
    put_part(tmp_path, b"x" * 150_000)
    fetch_file(server.url + "a.zip", tmp_path / "a.zip", len(DATA), SHA256)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert [headers.get("Range") for headers in server.asked("a.zip")] == ["bytes=150000-", None]


@pytest.mark.parametrize("known", [{"sha256": SHA256}, {"size": len(DATA), "sha256": SHA256}])
@pytest.mark.parametrize("length", [len(DATA), len(DATA) + 10])
def test_a_part_as_long_as_the_file_or_longer(server, tmp_path, known, length):
    put_part(tmp_path, (DATA + b"x" * 10)[:length])
    fetch_file(server.url + "a.zip", tmp_path / "a.zip", **known)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    whole = length == len(DATA) and "size" in known
    assert len(server.asked("a.zip")) == (0 if whole else 1 if "size" in known else 2)


def test_a_server_without_ranges_starts_over(server, tmp_path):
    put_part(tmp_path, DATA[:150_000])
    server.script("a.zip", ignore_range)
    fetch_file(server.url + "a.zip", tmp_path / "a.zip", len(DATA), SHA256)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert len(server.asked("a.zip")) == 1


def test_a_file_that_changed_meanwhile_starts_over(server, tmp_path):
    """Without a digest only the server can tell: its ETag."""
    server.script("a.zip", cut_after(100_000, etag='"another version"'))
    assert fetch_file(server.url + "a.zip", tmp_path / "a.zip").read_bytes() == DATA
    assert server.asked("a.zip")[1]["If-Range"] == '"another version"'


def test_a_weak_or_absent_tag_vouches_for_no_byte(server, tmp_path):
    server.script("a.zip", cut_after(100_000, etag='W/"weak"'))
    assert fetch_file(server.url + "a.zip", tmp_path / "a.zip").read_bytes() == DATA
    assert "Range" not in server.asked("a.zip")[1]


def test_a_wrong_range_is_not_appended(server, tmp_path):
    put_part(tmp_path, DATA[:150_000])
    server.script("a.zip", answer(206, DATA[:50_000], Content_Range=f"bytes 0-49999/{len(DATA)}"))
    fetch_file(server.url + "a.zip", tmp_path / "a.zip", len(DATA), SHA256)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert len(server.asked("a.zip")) == 2


def test_a_wrong_range_is_not_appended_where_no_digest_would_tell(server, tmp_path):
    wrong = answer(206, DATA[:50_000], Content_Range=f"bytes 0-49999/{len(DATA)}")
    server.script("a.zip", cut_after(100_000), wrong)
    assert fetch_file(server.url + "a.zip", tmp_path / "a.zip").read_bytes() == DATA
    assert "Range" not in server.asked("a.zip")[2]


# Wrong bytes


def test_bytes_without_end_are_cut_off(server, tmp_path):
    server.script("a.zip", always=send_on_and_on)
    with pytest.raises(DownloadError, match="not 200000 bytes"):
        fetch_file(server.url + "a.zip", tmp_path / "a.zip", len(DATA))
    assert server.sent < 30_000_000  # what the sockets' buffers take, three times


def test_wrong_bytes_once_are_fetched_again_from_zero(server, tmp_path):
    server.script("a.zip", send_other(b"x" * len(DATA)), send_other(DATA[:-1]))
    fetch_file(server.url + "a.zip", tmp_path / "a.zip", len(DATA), SHA256)
    assert (tmp_path / "a.zip").read_bytes() == DATA
    assert [headers.get("Range") for headers in server.asked("a.zip")] == [None, None, None]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (b"x" * len(DATA), "another SHA-256"),
        (DATA[:-1], "not 200000 bytes"),
        (DATA + bytes(1_000_000), "not 200000 bytes"),
    ],
)
def test_wrong_bytes_always_are_an_error(server, tmp_path, wrong, problem):
    (tmp_path / "a.zip").write_bytes(b"as before")
    server.script("a.zip", always=send_other(wrong))
    with pytest.raises(DownloadError, match=problem) as error:
        fetch_file(server.url + "a.zip", tmp_path / "a.zip", len(DATA), SHA256)
    assert_plain(error, tmp_path)
    assert len(server.asked("a.zip")) == fetch.WRONG_ATTEMPTS
    assert (tmp_path / "a.zip").read_bytes() == b"as before"
    assert list_files(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("difference", [-1000, 1000])
def test_a_wrong_length_does_not_pass(server, tmp_path, difference):
    server.script("a.zip", misstate_length(difference))
    fetch_file(server.url + "a.zip", tmp_path / "a.zip", len(DATA), SHA256)
    assert (tmp_path / "a.zip").read_bytes() == DATA


@pytest.mark.parametrize("send", [omit_length, send_chunked])
def test_a_file_of_unsaid_length(server, tmp_path, send):
    server.script("a.zip", send)
    assert fetch_file(server.url + "a.zip", tmp_path / "a.zip", sha256=SHA256).read_bytes() == DATA


# No network


@pytest.mark.parametrize(
    "url", ["no address", "ftp://host/", "http://[bad/", "http://a..b/", "/tmp/x"]
)
def test_no_address(tmp_path, url):
    with pytest.raises(DownloadError, match="address") as error:
        fetch_file(url + "a.zip", tmp_path / "a.zip")
    assert_plain(error, tmp_path)


def test_a_proxy_that_is_down(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="the proxy gives no connection: check HTTP") as error:
        fetch_file("http://images.cocodataset.org/a.zip", tmp_path / "a.zip")
    assert_plain(error, tmp_path)


def test_a_certificate_that_nobody_vouches_for(tmp_path, monkeypatch):
    certificate = tmp_path / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=127.0.0.1",
    ]
    try:
        subprocess.run(
            [*command, "-out", certificate, "-keyout", tmp_path / "key"],
            check=True,
            capture_output=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no openssl here")
    certificate.write_bytes(certificate.read_bytes() + (tmp_path / "key").read_bytes())
    with Loopback({"a.zip": DATA}, certificate) as server:
        with pytest.raises(DownloadError, match="its certificate is not accepted: check") as error:
            fetch_file(server.url + "a.zip", tmp_path / "a.zip")
        assert_plain(error, tmp_path)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
        with pytest.raises(DownloadError, match="REQUESTS_CA_BUNDLE") as error:
            fetch_file(server.url + "a.zip", tmp_path / "a.zip")
        assert_plain(error, tmp_path)
        assert server.seen == []
