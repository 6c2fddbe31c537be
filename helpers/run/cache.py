"""Steps that are done once: folders that appear whole or not at all, and continue where a kill left them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]  # of the project


def cached_step(folder: Path, make: Callable[[Path], None], inputs: dict) -> Path:
    """Do a step unless it has been done: `cached_step(study.folder() / "model", train, {"epochs": 3})`.

    folder: stands if its made.json holds the same `inputs` (compared as JSON: a tuple equals a list).
    make: called with the hidden folder `.{name}.{fingerprint}.part` beside it, which may hold what an
        earlier, killed call left there for the same `inputs`; whole at return, it becomes `folder`.
    Killed at any moment, the old or the new folder stands, or the next call continues the work. A second
    process waits for the first and finds the folder made.
    """
    folder = Path(folder)
    key = fingerprint(inputs)
    part = folder.with_name(f".{folder.name}.{key[:12]}.part")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock_path(folder):
        _settle_kill(folder, keep=part)
        if _is_made(folder, key):
            return folder
        if not _is_made(part, key):
            part.mkdir(exist_ok=True)
            start = time.perf_counter()
            make(part)
            seconds = round(time.perf_counter() - start, 3)
            made = {"inputs": inputs, "fingerprint": key, "seconds": seconds}
            write_atomic(part / "made.json", json.dumps(made, indent=1))
        _replace_folder(part, folder)
    return folder


def _replace_folder(part: Path, folder: Path) -> None:
    """Let `part` become `folder`. Two folders cannot be swapped at once: _settle_kill mends a kill."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(part, folder)
    if old.exists():
        _discard(old, folder)


def _settle_kill(folder: Path, keep: Path) -> None:
    """Undo what a killed call left half done, and remove unfinished work of other settings."""
    old, trash = (folder.with_name(f".{folder.name}.{end}") for end in ("old", "trash"))
    if trash.exists():
        shutil.rmtree(trash)
    if old.exists() and _read_made(folder) is None:
        if folder.exists():  # Study.folder() may have created it, empty, since the kill
            _discard(folder, folder)
        os.rename(old, folder)
    elif old.exists():
        _discard(old, folder)
    is_part = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{12}}\.part")
    for path in folder.parent.iterdir():
        if is_part.fullmatch(path.name) and path != keep:
            _discard(path, folder)


def _discard(path: Path, folder: Path) -> None:
    """Remove a folder under another name first, so that half of it never passes for the whole."""
    trash = folder.with_name(f".{folder.name}.trash")
    os.rename(path, trash)
    shutil.rmtree(trash)


def lock_path(path: Path) -> FileLock:
    """Keeps other processes of this machine from working on `path`; the lock of a killed process is gone with it.

    The lock lies in the machine's own temporary folder: on a mounted drive it could outlive the machine.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"vilt-attention-{user}"
    folder.mkdir(exist_ok=True)
    return FileLock(
        folder / f"{hashlib.sha256(str(Path(path).absolute()).encode()).hexdigest()[:24]}.lock"
    )


def _read_made(folder: Path) -> dict | None:
    """What cached_step wrote about `folder`; None if it did not make it."""
    try:
        made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return made if isinstance(made, dict) and "fingerprint" in made else None


def _is_made(folder: Path, key: str) -> bool:
    made = _read_made(folder)
    return made is not None and fingerprint(made.get("inputs")) == key


def to_json(value, what: str):
    """`value` as it comes back from JSON (tuples as lists, keys as strings)."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} must be plain JSON (dict, list, str, number, None): {error}"
        ) from None


def fingerprint(inputs) -> str:
    """SHA-256 (hex) of `inputs` as JSON, whatever the order of its keys."""
    text = json.dumps(to_json(inputs, "inputs"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(folder: Path) -> dict:
    """What cached_step recorded about a folder: inputs, fingerprint, seconds.

    FileNotFoundError where the folder is missing or unfinished.
    """
    made = _read_made(Path(folder))
    if made is None:
        raise FileNotFoundError(
            f"{_short(folder)} is missing or unfinished (no readable made.json in it)"
        )
    return made


def require(folder: Path, made_by: str) -> Path:
    """`folder` if cached_step has made it, else a FileNotFoundError that says which notebook makes it."""
    folder = Path(folder)
    if _read_made(folder) is None:
        advice = f"run notebooks/{made_by}.ipynb with RUN_NAME={folder.parent.name!r} first"
        raise FileNotFoundError(f"{_short(folder)} is missing: {advice}")
    return folder


def _short(folder: Path) -> str:
    """Run and step, without the machine's own path: a message may end up in a committed notebook."""
    return "/".join(Path(folder).parts[-2:])


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
            digest.update(
                f"{folder}/{source.name}\n{source.read_text(encoding='utf-8')}\n".encode()
            )
    return digest.hexdigest()


def write_atomic(path: Path, data: bytes | str) -> Path:
    """Write a file that is there whole or not at all; text as UTF-8."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
