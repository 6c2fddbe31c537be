"""Steps done once: what is up to date, what is redone, what a kill leaves behind."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.run import cache
from helpers.run.cache import cached_step, fingerprint, read_record, require, write_atomic

# Fingerprints


VALUES = st.integers() | st.text() | st.lists(st.floats(allow_nan=False, allow_infinity=False))


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
def test_fingerprint_survives_json_and_order(inputs):
    for same in (dict(reversed(inputs.items())), json.loads(json.dumps(inputs))):
        assert fingerprint(same) == fingerprint(inputs)


def test_fingerprint_tells_values_apart_and_refuses_what_is_not_json():
    assert len({fingerprint({"a": value}) for value in (1, 1.5, True, "1", None, [1])}) == 6
    for value in (Path("x"), {1, 2}, float("nan"), np.float32(1)):
        with pytest.raises(ValueError, match="plain JSON"):
            fingerprint({"a": value})


# Steps


def make_two(text: str):
    def make(part: Path) -> None:
        for name in ("first", "second"):
            (part / name).write_text(text)

    return make


def refuse(part: Path) -> None:
    raise AssertionError("made again")


def assert_whole(folder: Path) -> None:
    """The folder holds all that its record says, old or new."""
    text = {1: "old", 2: "new"}[read_record(folder)["inputs"]["v"]]
    assert [(folder / name).read_text() for name in ("first", "second")] == [text, text]


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.parent.iterdir() if p != folder)


def test_a_step_is_made_once(tmp_path):
    folder = tmp_path / "runs" / "model"
    assert cached_step(folder, make_two("old"), {"epochs": 3, "size": (1, 2)}) == folder
    assert cached_step(folder, refuse, {"size": [1, 2], "epochs": 3}) == folder
    assert read_record(folder)["inputs"] == {"epochs": 3, "size": [1, 2]}
    assert leftovers(folder) == []


def test_changed_settings_replace_the_whole_folder(tmp_path):
    folder = cached_step(tmp_path / "model", make_two("old"), {"v": 1})
    (folder / "stray").write_text("only in the old one")
    cached_step(folder, make_two("new"), {"v": 2})
    assert sorted(p.name for p in folder.iterdir()) == ["first", "made.json", "second"]
    assert (folder / "first").read_text() == "new"
    assert leftovers(folder) == []


@pytest.mark.parametrize("made", [None, "", "{", "[]", '{"inputs": {"v": 2}, "fingerprint": "x"}'])
def test_a_folder_with_no_cut_or_other_record_is_made_again(tmp_path, made):
    folder = tmp_path / "model"
    folder.mkdir()
    if made is not None:
        (folder / "made.json").write_text(made)
    cached_step(folder, make_two("new"), {"v": 1})
    assert (folder / "second").read_text() == "new"


def test_a_failed_step_leaves_the_old_folder_and_is_continued(tmp_path):
    folder = cached_step(tmp_path / "model", make_two("old"), {"v": 1})

    def fail(part):
        (part / "first").write_text("begun")
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        cached_step(folder, fail, {"v": 2})
    assert (folder / "first").read_text() == "old"
    part = tmp_path / f".model.{fingerprint({'v': 2})[:12]}.part"
    assert leftovers(folder) == [part.name]
    cached_step(folder, lambda part: None, {"v": 2})
    assert (folder / "first").read_text() == "begun"
    assert leftovers(folder) == []


def test_unfinished_work_of_other_settings_goes_but_not_that_of_other_folders(tmp_path):
    stale, other = tmp_path / f".a.{'0' * 12}.part", tmp_path / f".a.b.{'0' * 12}.part"
    for folder in (stale, other):
        folder.mkdir()
        (folder / "file").write_text("x")
    cached_step(tmp_path / "a", make_two("new"), {})
    assert not stale.exists()
    assert (other / "file").exists()


def make_and_die(folder: Path, kill_at: int) -> None:
    """Make a step; die at the n-th point before, after or amid a change to the disk."""
    count, remove = 0, shutil.rmtree

    def tick() -> None:
        nonlocal count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def with_ticks(change):
        def changed(*args):
            tick()
            change(*args)
            tick()

        return changed

    def remove_in_halves(path):
        files = sorted(Path(path).iterdir())
        for file in files[: len(files) // 2]:
            file.unlink()
        tick()
        remove(path)

    def make(part):
        for name in ("first", "second"):
            (part / name).write_text("new")
            tick()

    changes = (os.rename, os.replace, remove_in_halves)
    os.rename, os.replace, shutil.rmtree = map(with_ticks, changes)
    cached_step(folder, make, {"v": 2})


@pytest.mark.parametrize("next_version", [1, 2])
def test_a_kill_between_any_two_changes_leaves_old_or_new(fork, tmp_path, next_version):
    """next_version: the inputs of the call after the kill, the old or the new ones."""
    for kill_at in range(99):
        folder = tmp_path / str(kill_at) / "model"
        cached_step(folder, make_two("old"), {"v": 1})
        process = fork(make_and_die, folder, kill_at)
        process.join()
        if folder.exists():
            assert_whole(folder)
        if kill_at % 2:
            folder.mkdir(exist_ok=True)  # as Study.folder() does
        cached_step(folder, make_two({1: "old", 2: "new"}[next_version]), {"v": next_version})
        assert read_record(folder)["inputs"] == {"v": next_version}
        assert_whole(folder)
        assert leftovers(folder) == []
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert kill_at > 8


def test_several_processes_make_a_step_once(fork, tmp_path):
    def make_slowly(part):
        time.sleep(0.3)
        with (tmp_path / "log").open("a") as log:
            log.write("made\n")

    processes = [fork(cached_step, tmp_path / "a", make_slowly, {"v": 1}) for _ in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "made\n"


def test_missing_steps_are_named(tmp_path):
    folder = tmp_path / "my-run" / "model"
    for made in (False, True):
        if made:
            folder.mkdir(parents=True)
        with pytest.raises(FileNotFoundError, match=r"^my-run/model is missing"):
            read_record(folder)
        advice = r"^my-run/model is .*: run .*02_finetune.ipynb with RUN_NAME='my-run' first"
        with pytest.raises(FileNotFoundError, match=advice):
            require(folder, made_by="02_finetune")
    cached_step(folder, make_two("x"), {})
    assert require(folder, made_by="02_finetune") == folder


def test_source_digest_follows_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text("x = 1\n")
    before = cache.source_digest("a", "b")
    assert before == cache.source_digest("b", "a") != cache.source_digest("a")
    (tmp_path / "b" / "code.py").write_text("x = 2\n")
    assert cache.source_digest("a", "b") != before
    with pytest.raises(ValueError, match="no code in c"):
        cache.source_digest("c")


# Files


def test_write_atomic_writes_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "deep" / "file", "é")
    assert path.read_bytes() == "é".encode()
    write_atomic(path, b"\x00")
    assert path.read_bytes() == b"\x00"

    def fail(*_):
        raise OSError("full disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full disk"):
        write_atomic(path, "never seen")
    assert path.read_bytes() == b"\x00"
    assert list(path.parent.iterdir()) == [path]
