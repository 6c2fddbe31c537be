"""The download of VQAv2's files and images, against a server on the loopback that misbehaves as told."""

import hashlib
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data.test_fetch import DATA, assert_plain, list_files, short_waits  # noqa: F401 (a fixture of each test here)
from loopback import (
    Loopback,
    answer,
    cut_after,
    hang_up,
    misstate_length,
    send_other,
    stall_after,
    trickle,
)
from PIL import Image

from helpers.data import download, fetch
from helpers.data.download import OFFICIAL_FILES, check_image, download_images, download_questions
from helpers.data.fetch import DownloadError
from helpers.data.vqa import check_images, read_vqa

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS_ZIP = "v2_Questions_Train_mscoco.zip"
QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"


@pytest.fixture
def server():
    with Loopback({"a.zip": DATA}) as running:
        yield running


def make_image(number: int, size=(60, 40)) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "jpeg")
    return buffer.getvalue()


def name_image(number: int, split="val") -> str:
    return f"{split}2014/COCO_{split}2014_{number:012d}.jpg"


# No network, full disk


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://nowhere.invalid/"])
def test_no_network(tmp_path, url):
    for call in (
        lambda: download_questions(tmp_path / "vqav2", url),
        lambda: download_images([name_image(1)], tmp_path / "vqav2", url),
    ):
        start = time.monotonic()
        with pytest.raises(
            DownloadError, match="no connection: check the network, then run this again"
        ) as error:
            call()
        assert time.monotonic() - start < 10
        assert_plain(error, tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_names_the_folder_and_what_is_needed(tmp_path, official):
    folder = tmp_path / "data" / "vqav2"
    folder.mkdir(parents=True)
    parts = [folder / f".{name}.part" for name in (QUESTIONS_ZIP, "a.jpg")]
    for part in parts:
        part.symlink_to("/dev/full")
    with Loopback(official | {"a.jpg": make_image(1)}) as server:
        calls = (
            (lambda: download_questions(folder, server.url, state_files(official)), r"0\.0"),
            (lambda: download_images(["a.jpg"], folder, server.url), r"0\.2"),
        )
        for call, megabytes in calls:
            with pytest.raises(
                DownloadError, match=f"no space left for data/vqav2: free about {megabytes} MB"
            ) as error:
                call()
            assert_plain(error, tmp_path)
        for part in parts:
            part.unlink()
        for call, _ in calls:
            call()


IN_A_SMALL_DISK = """
import json, sys
from pathlib import Path
from helpers.data import download
folder, url, files = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
download.DISK_RATIO = 2
ballast = folder / "ballast"
ballast.write_bytes(bytes(400_000))
for _ in range(2):
    try:
        download.download_questions(folder, url, files)
        print("done", flush=True)
    except download.DownloadError as error:
        print(error, flush=True)
        print((folder / f".{next(iter(files))}.part").stat().st_size, flush=True)
    ballast.unlink(missing_ok=True)
try:
    download.download_images([f"val2014/{i}.jpg" for i in range(50)], folder, url, workers=2)
except download.DownloadError as error:
    print(error)
"""


def test_a_disk_that_fills_up_and_is_cleared(tmp_path):
    """A real file system of 512 KB, in a namespace of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = 'mount -t tmpfs -o size=512k none "$0" && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c", mount, folder]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no file system may be mounted here")
    data = zip_files({QUESTIONS: DATA})
    images = {f"val2014/{i}.jpg": make_image(i, (150, 100)) for i in range(50)}
    with Loopback({QUESTIONS_ZIP: data} | images) as server:
        files = json.dumps(state_files({QUESTIONS_ZIP: data}))
        command = [*inside, sys.executable, "-c", IN_A_SMALL_DISK, folder, server.url, files]
        answered = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert answered.returncode == 0, answered.stderr
        zips, kept, done, images = answered.stdout.splitlines()
        assert 60_000 < int(kept) < 130_000
        assert (
            zips
            == f"no space left for {tmp_path.name}/disk: free about 0.4 MB, then run this again"
        )
        assert done == "done"
        assert server.asked(QUESTIONS_ZIP)[1]["Range"] == f"bytes={kept}-"
        assert re.match(
            rf"no space left for {tmp_path.name}/disk: free about [678]\.\d MB, then", images
        )


def environment() -> dict:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(server, tmp_path):
    folder = tmp_path / "vqav2"
    folder.mkdir()
    folder.chmod(0o500)
    with pytest.raises(
        DownloadError, match=r"cannot write in .*/vqav2 \(Permission denied\)"
    ) as error:
        download_images(["a.zip"], folder, server.url)
    assert_plain(error, tmp_path)


def test_a_file_where_the_folder_should_be(server, tmp_path):
    (tmp_path / "vqav2").write_text("no folder")
    for call in (
        lambda: download_images(["a.zip"], tmp_path / "vqav2", server.url),
        lambda: download_questions(tmp_path / "vqav2", server.url),
    ):
        with pytest.raises(DownloadError, match=r"cannot write in .*/vqav2 \(") as error:
            call()
        assert_plain(error, tmp_path)


# Questions


def zip_files(members: dict) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def state_files(zips: dict[str, bytes]) -> dict:
    return {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in zips.items()}


@pytest.fixture
def official():
    """The four zips, small: two questions on one image in each split."""
    zips = {}
    for split, key in (("train", 7), ("val", 9)):
        asked = [
            {"image_id": key, "question": "Is it?", "question_id": key * 1000 + i} for i in range(2)
        ]
        told = [
            {
                "question_type": "is it",
                "multiple_choice_answer": "yes",
                "answers": [
                    {"answer": "yes", "answer_confidence": "yes", "answer_id": i} for i in range(10)
                ],
                "image_id": key,
                "answer_type": "yes/no",
                "question_id": question["question_id"],
            }
            for question in asked
        ]
        head = {"data_subtype": f"{split}2014"}
        for kind, name, records in (
            ("Questions", f"v2_OpenEnded_mscoco_{split}2014_questions.json", asked),
            ("Annotations", f"v2_mscoco_{split}2014_annotations.json", told),
        ):
            text = json.dumps({**head, kind.lower(): records})
            zips[f"v2_{kind}_{split.title()}_mscoco.zip"] = zip_files({name: text})
    return zips


def test_the_table_is_the_designs():
    assert (
        sum(size for size, _ in OFFICIAL_FILES.values()) == 7239401 + 3494929 + 21708861 + 10518930
    )
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for _, sha256 in OFFICIAL_FILES.values())


def test_questions_and_images_are_read_as_vqav2(tmp_path, official):
    images = {name_image(7, "train"): make_image(7), name_image(9): make_image(9)}
    with Loopback(official | images) as server:
        folder = download_questions(tmp_path / "data" / "vqav2", server.url, state_files(official))
        assert folder == tmp_path / "data" / "vqav2"
        assert len(list(folder.glob("*.json"))) == 4
        assert download_images(list(images), folder, server.url) == []
        for split, key in (("train", 7), ("val", 9)):
            dataset = check_images(read_vqa(folder, split))
            assert dataset["question_id"][:] == [key * 1000, key * 1000 + 1]
            assert dataset[0]["image"].size == (60, 40)
        asked = len(server.seen)
        assert asked == 6
        download_questions(folder, server.url, state_files(official))
        assert download_images(list(images), folder, server.url) == []
        assert len(server.seen) == asked


def test_only_what_the_folder_lacks_is_fetched(tmp_path, official):
    names = list(official)
    json_of = {
        name: zipfile.ZipFile(io.BytesIO(data)).namelist()[0] for name, data in official.items()
    }
    (tmp_path / json_of[names[0]]).write_text("a JSON file without its zip stands")
    (tmp_path / names[1]).write_bytes(official[names[1]])  # a zip that is right
    (tmp_path / names[2]).write_bytes(official[names[2]][:-1])  # one that is not
    with Loopback(official) as server:
        download_questions(tmp_path, server.url, state_files(official))
        assert sorted(name for name, *_ in server.seen) == sorted(names[2:])
    assert (tmp_path / json_of[names[0]]).read_text() == "a JSON file without its zip stands"
    for name in names[1:]:
        assert (tmp_path / name).read_bytes() == official[name]
        assert json.loads((tmp_path / json_of[name]).read_text())["data_subtype"]
    assert len(list_files(tmp_path)) == 7


def write_link(name: str) -> bytes:
    link = zipfile.ZipInfo(name)
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zip_files({link: "/etc/passwd"})


GOOD = {QUESTIONS: "{}"}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (zip_files(GOOD | {"../evil.json": "x"}), "'../evil.json' in it leads out"),
        (zip_files(GOOD | {"deep/../../evil.json": "x"}), "leads out"),
        (zip_files(GOOD | {"/evil.json": "x"}), "leads out"),
        (zip_files(GOOD | {"C:\\evil.json": "x"}), "leads out"),
        (zip_files(GOOD | {"..\\evil.json": "x"}), "leads out"),
        (zip_files({f"../{QUESTIONS}": "x"}), "leads out"),
        (write_link(QUESTIONS), "leads out"),
        (zip_files({"other.json": "{}"}), f"no {QUESTIONS} is in it"),
        (zip_files({f"{QUESTIONS}/": ""}), f"no {QUESTIONS} is in it"),
        (zip_files(GOOD)[:-10], "not a zip file"),
        (zip_files({QUESTIONS: DATA})[: -len(DATA) // 2], "not a zip file"),
        (zip_files({QUESTIONS: DATA}).replace(DATA[50:90], bytes(40)), "CRC|Error -3"),
        (b"", "not a zip file"),
        (zip_files({QUESTIONS: bytes(60_000), "more": bytes(60_000)}), "it would take 0.1 MB"),
    ],
)
def test_bad_zips_leave_nothing_behind(tmp_path, monkeypatch, data, problem):
    monkeypatch.setattr(download, "MAX_UNPACKED", 100_000 + len(DATA) * (len(data) > 1000))
    folder = tmp_path / "data" / "vqav2"
    with (
        Loopback({QUESTIONS_ZIP: data}) as server,
        pytest.raises(DownloadError, match=problem) as error,
    ):
        download_questions(folder, server.url, state_files({QUESTIONS_ZIP: data}))
    assert_plain(error, tmp_path)
    assert f"{QUESTIONS_ZIP} cannot be unpacked" in str(error.value)
    assert "delete it in data/vqav2 and run this again" in str(error.value)
    assert list_files(tmp_path) == [QUESTIONS_ZIP]


def test_the_json_is_found_in_a_folder_of_the_zip(tmp_path):
    data = zip_files({f"inner/{QUESTIONS}": "{}", "__MACOSX/x": "", "inner/readme": "x"})
    with Loopback({QUESTIONS_ZIP: data}) as server:
        download_questions(tmp_path, server.url.rstrip("/"), state_files({QUESTIONS_ZIP: data}))
    assert list_files(tmp_path) == sorted([QUESTIONS_ZIP, QUESTIONS])


def test_a_zip_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'other\.zip' is none of VQAv2's"):
        download_questions(tmp_path, "http://127.0.0.1:9/", {"other.zip": (1, "x")})


# Images


@pytest.fixture
def gallery():
    images = {name_image(i): make_image(i) for i in range(40)}
    with Loopback(images) as running:
        yield running


def test_images_come_several_at_a_time_and_once(gallery, tmp_path):
    names = list(gallery.files)
    for name in names:
        gallery.script(name, always=trickle(2000, 0.02))
    (tmp_path / "val2014").mkdir()
    (tmp_path / names[3]).write_bytes(b"already there")
    assert download_images([*names, names[0]], tmp_path, gallery.url, workers=8) == []
    assert sorted(name for name, *_ in gallery.seen) == sorted(set(names) - {names[3]})
    assert 4 <= gallery.most_active <= 8
    assert (tmp_path / names[3]).read_bytes() == b"already there"
    for name in set(names) - {names[3]}:
        assert (tmp_path / name).read_bytes() == gallery.files[name]
    assert len(list_files(tmp_path)) == 40
    assert download_images(names, tmp_path, gallery.url) == []
    assert download_images([], tmp_path, gallery.url) == []
    assert len(gallery.seen) == 39


def test_a_folder_that_has_all_is_not_touched(gallery, tmp_path, monkeypatch):
    monkeypatch.delattr(fetch, "lock_path")  # not even a lock: the folder may be read-only
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert download_images(["a.jpg"], tmp_path, gallery.url) == []
    assert [p.name for p in tmp_path.iterdir()] == ["a.jpg"]


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
    else:
        with pytest.raises(
            DownloadError, match=r"^4 of 40 images are not to be had at 127\.0\.0\.1"
        ) as error:
            download_images(names, tmp_path, gallery.url, max_missing=max_missing)
        assert_plain(error, tmp_path)
        assert "2 x HTTP 404" in str(error.value)
        assert f"{names[20]}, {names[25]}, {names[30]}, ..." in str(error.value)
    assert set(names) - {name for name in names if (tmp_path / name).exists()} == set(gone)
    assert len(gallery.seen) == 20


def test_a_share_is_not_missed_by_rounding(gallery, tmp_path):
    names = [f"{i}.jpg" for i in range(100)]
    for name in names[29:]:
        (tmp_path / name).write_bytes(b"x")
    assert (
        len(download_images(names, tmp_path, gallery.url, max_missing=0.29)) == 29
    )  # 0.29 * 100 < 29


@pytest.mark.parametrize(
    "wrong",
    [b"<html>sign in</html>", b"", make_image(0, (300, 300))[:-5000], b"GIF89a", bytes(5000)],
)
def test_bytes_that_stay_no_image_are_missing(gallery, tmp_path, wrong):
    names = list(gallery.files)
    gallery.script(names[0], send_other(wrong))  # once
    gallery.script(names[1], always=send_other(wrong))
    assert download_images(names, tmp_path, gallery.url, max_missing=0.025) == [names[1]]
    assert (tmp_path / names[0]).read_bytes() == gallery.files[names[0]]
    assert len(gallery.asked(names[0])) == 2
    assert len(gallery.asked(names[1])) == fetch.WRONG_ATTEMPTS
    assert len(list_files(tmp_path)) == 39  # and no part


def test_a_truncated_image_is_fetched_again(gallery, tmp_path):
    names = list(gallery.files)[:4]
    gallery.script(names[0], cut_after(500))
    gallery.script(names[1], misstate_length(-500))
    gallery.script(names[2], stall_after(500))
    assert download_images(names, tmp_path, gallery.url) == []
    assert all((tmp_path / name).read_bytes() == gallery.files[name] for name in names)


@pytest.mark.parametrize("failure", [answer(500), answer(418), cut_after(100), hang_up])
def test_lasting_trouble_is_an_error_and_not_missing(gallery, tmp_path, monkeypatch, failure):
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    names = list(gallery.files)
    gallery.script(names[5], always=failure)
    before = threading.active_count()
    with pytest.raises(DownloadError) as error:
        download_images(names, tmp_path, gallery.url, workers=2, max_missing=1)
    assert_plain(error, tmp_path)
    download_threads = [t for t in threading.enumerate() if "ThreadPoolExecutor" in t.name]
    assert download_threads == [], before
    assert all(check_image(tmp_path / name) is None for name in names if (tmp_path / name).exists())
    gallery.script(names[5])
    assert download_images(names, tmp_path, gallery.url) == []
    fetched = [name for name, *_ in gallery.seen if name != names[5]]
    assert (
        len(fetched) == len(set(fetched)) or len(fetched) <= 41
    )  # at most the one under way comes twice


def test_an_address_that_has_no_image_at_all_is_given_up_early(gallery, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "GIVE_UP", 5)
    names = [f"{i}.jpg" for i in range(500)]
    with pytest.raises(DownloadError, match="of 500 images are not to be had"):
        download_images(names, tmp_path, gallery.url, workers=2, max_missing=0.01)
    assert len(gallery.seen) < 50


@pytest.mark.parametrize(
    "name",
    ["../a.jpg", "/etc/a.jpg", "val2014/../../a.jpg", "val2014/../a.jpg", "..", ".", "", "./a.jpg", "a//b.jpg", "a/",
     "..\\a.jpg", "C:\\a.jpg", "C:a.jpg", "a\\b.jpg", "a\0.jpg", "//host/a.jpg"],
)  # fmt: skip
def test_names_that_leave_the_folder(gallery, tmp_path, name):
    with pytest.raises(ValueError, match="expected a path below the folder"):
        download_images([name_image(1), name], tmp_path / "vqav2", gallery.url)
    assert gallery.seen == []
    assert list(tmp_path.iterdir()) == []


def test_odd_names_are_asked_for_as_they_are(gallery, tmp_path):
    name = "val2014/50 % #1? é.jpg"
    gallery.files["val2014/50%20%25%20%231%3F%20%C3%A9.jpg"] = make_image(1)
    assert download_images([name], tmp_path, gallery.url) == []
    assert (tmp_path / name).read_bytes() == make_image(1)


# Kills


DOWNLOAD = """
import json, signal, sys
from pathlib import Path
from helpers.data import download
from helpers.data import fetch
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
folder, url, files = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
fetch.CONNECT_TIMEOUT = fetch.READ_TIMEOUT = 5
try:
    if sys.argv[4] == "questions":
        download.download_questions(folder, url, files)
    else:
        print(download.download_images(files, folder, url, workers=4))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def start_download(folder: Path, url: str, files, kind: str) -> subprocess.Popen:
    command = [sys.executable, "-c", DOWNLOAD, folder, url, json.dumps(files), kind]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)


def wait_until(condition, seconds=20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def measure(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_questions_killed_in_the_middle_are_continued(tmp_path):
    zips = {QUESTIONS_ZIP: zip_files({QUESTIONS: json.dumps({"questions": [DATA.hex()]})})}
    with Loopback(zips) as server:
        server.script(QUESTIONS_ZIP, trickle(5000, 0.02))
        killed = start_download(tmp_path, server.url, state_files(zips), "questions")
        wait_until(lambda: measure(tmp_path / f".{QUESTIONS_ZIP}.part") > 60_000)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        assert list_files(tmp_path) == [f".{QUESTIONS_ZIP}.part"]
        kept = measure(tmp_path / f".{QUESTIONS_ZIP}.part")
        assert start_download(tmp_path, server.url, state_files(zips), "questions").wait() == 0
        assert [headers.get("Range") for headers in server.asked(QUESTIONS_ZIP)] == [
            None,
            f"bytes={kept}-",
        ]
    assert list_files(tmp_path) == sorted([QUESTIONS_ZIP, QUESTIONS])
    assert (tmp_path / QUESTIONS_ZIP).read_bytes() == zips[QUESTIONS_ZIP]
    assert json.loads((tmp_path / QUESTIONS).read_text()) == {"questions": [DATA.hex()]}


def test_images_killed_in_the_middle_are_completed(gallery, tmp_path):
    names = list(gallery.files)
    for name in names:
        gallery.script(name, always=trickle(1000, 0.02))
    killed = start_download(tmp_path, gallery.url, names, "images")
    wait_until(lambda: len(list(tmp_path.glob("val2014/COCO*"))) >= 8)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    whole = [name for name in names if (tmp_path / name).exists()]
    assert 8 <= len(whole) < 40
    assert all((tmp_path / name).read_bytes() == gallery.files[name] for name in whole)
    assert start_download(tmp_path, gallery.url, names, "images").communicate()[0] == "[]\n"
    assert all((tmp_path / name).read_bytes() == gallery.files[name] for name in names)
    assert len(list_files(tmp_path)) == 40
    assert all(len(gallery.asked(name)) == 1 for name in whole)


@pytest.mark.parametrize("kind", ["questions", "images"])
def test_two_processes_share_the_work(tmp_path, gallery, official, kind):
    files = state_files(official) if kind == "questions" else list(gallery.files)
    gallery.files |= official
    for name in gallery.files:
        gallery.script(name, always=trickle(1000, 0.01))
    processes = [start_download(tmp_path, gallery.url, files, kind) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(name for name, *_ in gallery.seen) == sorted(files)


def test_an_interrupt_ends_what_runs_what_rests_and_what_waits(tmp_path):
    images = {name_image(i): make_image(i, (400, 300)) for i in range(40)}
    assert all(len(image) > 50_000 for image in images.values())
    with Loopback(images) as server:
        for name in images:
            server.script(name, always=trickle(2000, 0.2))  # more than 5 s an image
        server.script(name_image(0), always=answer(503, Retry_After="30"))
        running = start_download(tmp_path, server.url, list(images), "images")
        wait_until(lambda: len(server.seen) >= 4)
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        start = time.monotonic()
        try:
            assert running.communicate(timeout=20)[0] == "interrupted\n"
        finally:
            running.kill()
        assert time.monotonic() - start < 4
        assert len(server.seen) == 4
