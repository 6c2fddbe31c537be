"""The download of VQAv2's files and images, from a loopback server that misbehaves as told."""

import hashlib
import io
import os
import re
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from loopback import (
    Loopback,
    answer,
    cut_after,
    hang_up,
    misstate_length,
    send_chunked,
    send_other,
    stall_after,
    trickle,
)
from PIL import Image

from helpers.data import download
from helpers.data.download import DownloadError, download_images, download_questions
from helpers.data.encode import read_picture
from helpers.data.vqa import name_image

QUESTIONS_ZIP = "v2_Questions_Train_mscoco.zip"
DATA = np.random.default_rng(0).bytes(200_000)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Waits of milliseconds between attempts, and none of the machine's own proxies.

    A server may take its time beside other work; only tests of a stalled one wait for less.
    """
    quick = download.RETRY.new(backoff_factor=0.01, backoff_jitter=0)
    monkeypatch.setattr(download, "RETRY", quick)
    monkeypatch.setattr(download, "TIMEOUT", (60.0, 60.0))
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def server():
    with Loopback({"a.zip": DATA}) as running:
        yield running


@pytest.fixture
def gallery():
    images = {name_image("val", i): make_image(i) for i in range(40)}
    with Loopback(images) as running:
        yield running


def fetch(server: Loopback, folder: Path) -> None:
    check = partial(download.check_sha256, expected=hashlib.sha256(DATA).hexdigest())
    with download.open_session() as session:
        download.fetch_file(server.url, "a.zip", folder, check, session)


def make_image(number: int, size=(60, 40)) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "jpeg")
    return buffer.getvalue()


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


@pytest.mark.parametrize(
    "trouble",
    [
        [],
        [cut_after(70_000), stall_after(50_000)],
        [hang_up, hang_up],
        [answer(status) for status in (408, 429, 500, 502)],
        [answer(429, Retry_After="99999")],
        [send_other(b"x" * len(DATA)), send_other(DATA[:-1])],
        [misstate_length(-1000), misstate_length(1000)],
        [send_chunked],
    ],
)
def test_a_file_arrives_whole_after_passing_trouble(server, tmp_path, trouble, monkeypatch):
    if len(trouble) == 2:  # one of these stalls
        monkeypatch.setattr(download, "TIMEOUT", (60.0, 2.0))
    server.script("a.zip", *trouble)
    fetch(server, tmp_path / "deep")
    assert (tmp_path / "deep" / "a.zip").read_bytes() == DATA
    assert list_files(tmp_path) == ["a.zip"]
    assert server.asked("a.zip")[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("trouble", "problem"),
    [
        (answer(503), r"not served \(HTTP 503\): try later"),
        (cut_after(10), "connection broke: check the network"),
        (stall_after(10), "connection"),
        (hang_up, r"no connection \(\w+\): check the network"),
        (send_other(DATA[:-1]), r"arrives wrong \(its SHA-256 is [0-9a-f]+\.\.\., not .*: check"),
        *[(answer(status, b""), f"HTTP {status}") for status in (400, 401, 403, 404, 418, 204)],
    ],
)
def test_lasting_trouble_ends_in_one_sentence(server, tmp_path, trouble, problem, monkeypatch):
    if "connection" in problem:  # a stalled server; however slow the machine, it fails
        monkeypatch.setattr(download, "TIMEOUT", (60.0, 0.3))
    (tmp_path / "a.zip").write_bytes(b"as before")
    server.script("a.zip", always=trouble)
    with pytest.raises(DownloadError, match=rf"a\.zip at 127\.0\.0\.1:\d+.*{problem}") as error:
        fetch(server, tmp_path)
    assert_plain(error, tmp_path)
    assert (tmp_path / "a.zip").read_bytes() == b"as before"
    assert list_files(tmp_path) == ["a.zip"]


# The network and the disk


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_names_the_folder_and_what_is_needed(tmp_path, official):
    folder = tmp_path / "data" / "vqav2"
    folder.mkdir(parents=True)
    parts = [folder / f".{name}.part" for name in (QUESTIONS_ZIP, "a.jpg")]
    for part in parts:
        part.symlink_to("/dev/full")
    with Loopback(official | {"a.jpg": make_image(1)}) as server:
        questions = partial(download_questions, files=state_files(official))
        calls = ((questions, r"0\.0"), (partial(download_images, ["a.jpg"]), r"0\.2"))
        for call, megabytes in calls:
            problem = rf"cannot write in data/vqav2 \(No space .*: free about {megabytes} MB"
            with pytest.raises(DownloadError, match=problem) as error:
                call(folder=folder, base_url=server.url)
            assert_plain(error, tmp_path)
        for part, (call, _) in zip(parts, calls, strict=True):
            part.unlink()
            call(folder=folder, base_url=server.url)


@pytest.mark.parametrize(
    ("blocked", "problem"),
    [(False, r"no connection \(\w+\): check the network"), (True, r"cannot write in .*/vqav2 \(")],
)
def test_no_network_and_a_file_where_the_folder_should_be(tmp_path, blocked, problem):
    if blocked:
        (tmp_path / "vqav2").write_text("no folder")
    for call in (download_questions, partial(download_images, ["a.jpg"])):
        with pytest.raises(DownloadError, match=problem) as error:
            call(folder=tmp_path / "vqav2", base_url="http://127.0.0.1:9/")
        assert_plain(error, tmp_path)


# Questions


def state_files(zips: dict[str, bytes]) -> dict:
    return {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in zips.items()}


@pytest.fixture
def official():
    """Bytes for each of the four zips."""
    return {name: name.encode() * 50 for name in download.JSON_OF}


def test_only_what_the_folder_lacks_is_fetched(tmp_path, official):
    names = list(official)
    json_file = tmp_path / download.JSON_OF[names[0]]
    json_file.write_text("a JSON file without its zip stands")
    (tmp_path / names[1]).write_bytes(official[names[1]])  # a zip that is right
    (tmp_path / names[2]).write_bytes(official[names[2]][:-1])  # one that is not
    with Loopback(official) as server:
        download_questions(tmp_path, server.url.rstrip("/"), state_files(official))
        assert sorted(name for name, _ in server.seen) == sorted(names[2:])
    assert json_file.read_text() == "a JSON file without its zip stands"
    assert all((tmp_path / name).read_bytes() == official[name] for name in names[1:])


# Images


def test_images_come_several_at_a_time_and_once(gallery, tmp_path):
    names = list(gallery.files)
    for name in names:
        gallery.script(name, always=trickle(2000, 0.02))
    (tmp_path / "val2014").mkdir()
    (tmp_path / names[3]).write_bytes(b"already there")
    assert download_images([*names, names[0]], tmp_path, gallery.url, workers=8) == []
    fetched = set(names) - {names[3]}
    assert sorted(name for name, _ in gallery.seen) == sorted(fetched)
    assert 4 <= gallery.most_active <= 8
    assert (tmp_path / names[3]).read_bytes() == b"already there"
    assert all((tmp_path / name).read_bytes() == gallery.files[name] for name in fetched)
    assert len(list_files(tmp_path)) == 40
    assert download_images(names, tmp_path, gallery.url) == []
    assert download_images([], tmp_path, gallery.url) == []
    assert len(gallery.seen) == 39


@pytest.mark.parametrize(
    ("max_missing", "passes"), [(0.1, True), (0.099, False), (0, False), (1, True)]
)
def test_missing_images_are_counted_against_all(gallery, tmp_path, max_missing, passes):
    names = list(gallery.files)
    (tmp_path / "val2014").mkdir()
    for name in names[:20]:
        (tmp_path / name).write_bytes(gallery.files[name])
    gone = [names[30], names[20], names[35], names[25]]  # 4 of 40, though 4 of 20 fetched
    for name, status in zip(gone, (404, 403, 410, 404), strict=True):
        gallery.script(name, always=answer(status))
    if passes:
        missing = download_images([*names, *gone], tmp_path, gallery.url, max_missing=max_missing)
        assert missing == sorted(gone)
        assert {name for name in names if not (tmp_path / name).exists()} == set(gone)
        assert {name for name, _ in gallery.seen} == set(names[20:])
    else:
        problem = r"^\d of 40 images are missing, .* at 127\.0\.0\.1:\d+ is not there \(HTTP 4"
        with pytest.raises(DownloadError, match=problem) as error:
            download_images(names, tmp_path, gallery.url, max_missing=max_missing)
        assert_plain(error, tmp_path)


@pytest.mark.parametrize(
    "wrong", [b"<html>sign in</html>", b"", make_image(0, (300, 300))[:-5000], bytes(5000)]
)
def test_bytes_that_stay_no_image_are_missing(gallery, tmp_path, wrong):
    names = list(gallery.files)[:8]
    gallery.script(names[0], send_other(wrong))  # once
    gallery.script(names[1], always=send_other(wrong))
    assert download_images(names, tmp_path, gallery.url, max_missing=0.125) == [names[1]]
    assert (tmp_path / names[0]).read_bytes() == gallery.files[names[0]]
    assert len(gallery.asked(names[1])) == download.ATTEMPTS
    assert len(list_files(tmp_path)) == 7  # and no part


@pytest.mark.parametrize("trouble", [answer(500), answer(418), cut_after(100), hang_up])
def test_lasting_trouble_is_an_error_and_not_missing(gallery, tmp_path, trouble):
    names = list(gallery.files)
    gallery.script(names[5], always=trouble)
    with pytest.raises(DownloadError) as error:
        download_images(names, tmp_path, gallery.url, workers=2, max_missing=1)
    assert_plain(error, tmp_path)
    assert not [t for t in threading.enumerate() if "ThreadPoolExecutor" in t.name]
    for path in tmp_path.glob("val2014/COCO*"):
        read_picture(path)
    gallery.script(names[5])
    assert download_images(names, tmp_path, gallery.url) == []
    fetched = [name for name, _ in gallery.seen if name != names[5]]
    assert len(fetched) <= 41  # at most the one under way comes twice


def test_an_address_that_has_no_image_at_all_is_given_up_early(gallery, tmp_path):
    names = [f"{i}.jpg" for i in range(500)]
    with pytest.raises(DownloadError, match="6 of 500 images are missing"):
        download_images(names, tmp_path, gallery.url, workers=2, max_missing=0.01)
    assert len(gallery.seen) < 50


# Kills


def fetch_all(folder: Path, url: str, names: list[str]) -> None:
    """In another process: fetch images; exits with 3 on SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        download_images(names, folder, url, workers=4)
    except KeyboardInterrupt:
        sys.exit(3)


def wait_until(condition, process) -> None:
    while not condition():
        assert process.is_alive()
        time.sleep(0.005)


def test_killed_images_end_with_identical_files(fork, gallery, tmp_path):
    names = list(gallery.files)
    for name in names:
        gallery.script(name, trickle(1000, 0.02))
    killed = fork(fetch_all, tmp_path, gallery.url, names)
    wait_until(lambda: len(list(tmp_path.glob("val2014/COCO*"))) >= 8, killed)
    killed.kill()
    killed.join()
    whole = [name for name in names if (tmp_path / name).exists()]
    assert 8 <= len(whole) < 40
    assert all((tmp_path / name).read_bytes() == gallery.files[name] for name in whole)
    assert download_images(names, tmp_path, gallery.url) == []
    assert all((tmp_path / name).read_bytes() == gallery.files[name] for name in names)
    assert len(list_files(tmp_path)) == 40
    assert all(len(gallery.asked(name)) == 1 for name in whole)


def test_two_processes_share_the_work(fork, tmp_path, gallery):
    files = list(gallery.files)
    for name in files:
        gallery.script(name, always=trickle(1000, 0.01))
    for process in [fork(fetch_all, tmp_path, gallery.url, files) for _ in range(2)]:
        process.join()
        assert process.exitcode == 0
    assert sorted(name for name, _ in gallery.seen) == sorted(files)


def test_an_interrupt_ends_what_runs_and_what_waits(fork, tmp_path):
    images = {name_image("val", i): make_image(i, (600, 400)) for i in range(40)}
    with Loopback(images) as server:
        for name in images:
            server.script(name, always=trickle(2000, 0.2))  # more than 20 s an image
        running = fork(fetch_all, tmp_path, server.url, list(images))
        wait_until(lambda: len(server.seen) >= 4, running)
        os.kill(running.pid, signal.SIGINT)
        running.join()
        assert running.exitcode == 3
        assert len(server.seen) == 4
