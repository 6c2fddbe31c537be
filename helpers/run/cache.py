"""Steps done once: folders that appear whole or not at all, and continue where a kill left them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]  # of the project
RECORD = "made.json"  # in a step's folder: its inputs, their fingerprint, the seconds it took


def cached_step(folder: Path, make: Callable[[Path], None], inputs: dict) -> Path:
    """Do a step unless it is up to date: `cached_step(run / "model", train, {"epochs": 3})`.

    folder: up to date if its record holds the same inputs, compared as JSON.
    make: called with the hidden folder `.{name}.{fingerprint}.part` beside it, which may hold what
        an earlier, killed call with the same inputs left there; it becomes `folder` afterwards.
    Killed at any moment, either the old or the new folder is whole, or the next call continues the
    work. A second process waits for the first and finds the folder made.
    """
    folder, key = Path(folder), fingerprint(inputs)
    part = folder.with_name(f".{folder.name}.{key[:12]}.part")
    trash = folder.with_name(f".{folder.name}.trash")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock_path(folder):
        for stale in [trash, *folder.parent.glob(f".{folder.name}.{'[0-9a-f]' * 12}.part")]:
            if stale != part:
                _discard(stale, trash)
        if find_record(folder).get("fingerprint") == key:
            return folder
        if find_record(part).get("fingerprint") != key:
            part.mkdir(exist_ok=True)
            start = time.perf_counter()
            make(part)
            write_record(part, inputs, seconds=round(time.perf_counter() - start, 3))
        _discard(folder, trash)
        os.rename(part, folder)
    return folder


def _discard(folder: Path, trash: Path) -> None:
    """Remove a folder under another name, so that half of it never passes for the whole."""
    if trash.exists():  # a killed call left it
        shutil.rmtree(trash)
    if folder.exists():
        os.rename(folder, trash)
        shutil.rmtree(trash)


def write_record(folder: Path, inputs: dict, **facts: object) -> None:
    """Record what a folder was made from, and further facts about it."""
    record = {"inputs": inputs, "fingerprint": fingerprint(inputs), **facts}
    write_atomic(folder / RECORD, json.dumps(record, indent=1))


def find_record(folder: Path) -> dict:
    """What `write_record` wrote about a folder; {} where there is nothing readable."""
    record = read_json(folder / RECORD) or {}
    return record if "fingerprint" in record else {}


def read_record(folder: Path, advice: str = "") -> dict:
    """As `find_record`, with a FileNotFoundError, and the advice, where there is nothing readable.

    The error names run and step, not the machine's own path: it may end up in a saved notebook.
    """
    if not (record := find_record(folder)):
        raise FileNotFoundError(f"{'/'.join(folder.parts[-2:])} is missing or unfinished{advice}")
    return record


def require(folder: Path, made_by: str) -> Path:
    """A step's folder; FileNotFoundError that says which notebook makes it, if it is missing."""
    advice = f": run notebooks/{made_by}.ipynb with RUN_NAME={folder.parent.name!r} first"
    read_record(folder, advice)
    return folder


def fingerprint(inputs: object) -> str:
    """SHA-256 (hex) of `inputs` as JSON, whatever the order of its keys."""
    try:
        plain = json.loads(json.dumps(inputs, allow_nan=False))  # all keys are strings now
    except (TypeError, ValueError) as error:
        kinds = "dict, list, str, number, None"
        raise ValueError(f"inputs must be plain JSON ({kinds}): {error}") from None
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> dict | None:
    """The object that a JSON file holds; None where the file is missing, empty or cut."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digest(*folders: str) -> str:
    """SHA-256 (hex) of the sources in folders of the project, so that changed code redoes a step.

    source_digest("helpers/data", "helpers/model"); ValueError for a folder that holds none.
    """
    digest = hashlib.sha256()
    for folder in sorted(folders):
        sources = sorted((ROOT / folder).glob("*.py"))
        if not sources:
            raise ValueError(f"source_digest: there is no code in {folder}")
        for source in sources:
            digest.update(f"{folder}/{source.name}\n{source.read_text('utf-8')}\n".encode())
    return digest.hexdigest()


def lock_path(path: Path) -> FileLock:
    """Keep other processes of this machine from working on `path`; a killed process lets go of it.

    The lock is in the machine's temporary folder: on a mounted drive it could outlive the machine.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"vilt-attention-{user}"
    folder.mkdir(exist_ok=True)
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:24]
    return FileLock(folder / f"{name}.lock")


def write_atomic(path: Path, data: bytes | str) -> Path:
    """Write a file that is there whole or not at all; text as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
