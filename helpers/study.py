"""Settings of a run, its folder, and steps that are done once."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import math
import numbers
import os
import platform
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

from filelock import FileLock

# What each profile sets differently from the field defaults below, which are the phantom's.
PROFILES = {
    "phantom": {},
    "colab": dict(
        checkpoint="dandelin/vilt-b32-mlm", data_root="data/downloads/vqav2", train_per_family=2000,
        validation_per_family=500, epochs=4, batch_size=32, learning_rate=5e-5, head_learning_rate=5e-4,
        extract_batch_size=32, ablation_questions=2000,
    ),
    "full": dict(
        checkpoint="dandelin/vilt-b32-mlm", data_root="data/downloads/vqav2", epochs=10, learning_rate=1e-4,
        head_learning_rate=1e-3, extract_batch_size=64, shard_size=4096, ablation_questions=5000,
    ),
}  # fmt: skip
PACKAGES = ("torch", "transformers", "datasets", "numpy")
MAY_BE_ZERO = ("seed", "min_validation")  # every other number must be positive
PLAIN_NAME = re.compile(r"\w[\w.-]*")  # no separators, no leading dot: it cannot leave its folder


@dataclass(frozen=True)
class Study:
    """Every setting of a run: `Study.load("phantom", epochs=5).folder("tables")`.

    Wrong values raise a ValueError that names the setting. Paths count from the repository root.
    """

    profile: str = "phantom"  # preset that the other settings came from
    run_name: str | None = None  # folder under runs_root; None: the profile's name
    seed: int = 0  # of data, training, bootstrap; below 2**32
    checkpoint: str = "data/phantom-vilt"  # model to start from: folder, hub name, fresh-small or fresh-b32
    data_root: str | None = None  # folder of VQAv2's official files; None: generate the phantom
    train_scenes: int = 1600  # generated images to train on (phantom only)
    validation_scenes: int = 500  # generated images to validate on (phantom only)
    train_per_family: int | None = None  # training questions a family at most; None or "all": all
    validation_per_family: int | None = None  # validation questions a family at most; None or "all": all
    max_answers: int = 3129  # answers in the vocabulary at most; ViLT's VQA head has 3129
    min_validation: int = 50  # validation questions, below which images of both official files are pooled
    epochs: int = 3  # passes over the training questions
    batch_size: int = 64  # questions a training step
    learning_rate: float = 1e-3  # peak, of the transformer
    head_learning_rate: float = 3e-3  # peak, of the answer head
    extract_batch_size: int = 128  # questions a forward pass when attention is read
    shard_size: int = 512  # questions a file of attention; what a kill can cost
    ablation_questions: int = 1000  # validation questions that each ablated head is scored on
    bootstrap_draws: int = 1000  # resamples behind an interval
    show_photographs: bool = (
        False  # show photographs in figures (their licences differ); the phantom always is
    )
    device: str = "auto"  # auto (cuda where there is one), cpu, cuda or cuda:N
    runs_root: str = "runs"  # folder of all runs

    def __post_init__(self):
        for field in fields(self):
            value = _convert_setting(field.name, field.type, getattr(self, field.name))
            object.__setattr__(self, field.name, value)  # the dataclass is frozen only from here on
        _check_known("profile", self.profile, PROFILES)
        if self.run_name is None:
            object.__setattr__(self, "run_name", self.profile)
        _check_plain("run_name", self.run_name)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"setting device={self.device!r}: expected auto, cpu, cuda or cuda:N")
        if self.seed >= 2**32:
            raise ValueError(f"setting seed={self.seed}: expected less than 2**32 (numpy's limit)")

    @classmethod
    def load(cls, profile: str = "phantom", **overrides) -> Study:
        """The preset `profile` with overrides; an override of None means: as in the profile."""
        _check_known("profile", profile, PROFILES)
        for name in overrides:
            _check_known("setting", name, [field.name for field in fields(cls)])
        chosen = {name: value for name, value in overrides.items() if value is not None}
        return cls(**{"profile": profile, **PROFILES[profile], **chosen})

    @property
    def root(self) -> Path:
        """The repository's root."""
        return Path(__file__).resolve().parents[1]

    @property
    def run_dir(self) -> Path:
        """The run's own folder; `folder()` creates it."""
        return self.root / self.runs_root / self.run_name

    def folder(self, *parts: str) -> Path:
        """A folder inside the run's folder, created if absent: `study.folder("tables")`."""
        path = self.run_dir.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def path(self, name: str) -> Path | str:
        """`name` counted from the repository root; a checkpoint that is no folder there stays as it is."""
        path = self.root / name
        if name == self.checkpoint and not path.exists():
            return name  # a hub name, or fresh-small
        return path

    def device_name(self) -> str:
        """The device to compute on, "cpu" or "cuda" (or "cuda:N"); ValueError if it is not there."""
        if self.device == "cpu":
            return "cpu"
        import torch  # slow to import, and nothing else here needs it

        if torch.cuda.is_available():
            return "cuda" if self.device == "auto" else self.device
        if self.device == "auto":
            return "cpu"
        raise ValueError(f"setting device={self.device!r}: torch sees no GPU here; use 'auto' or 'cpu'")

    def settings(self, *names: str) -> dict:
        """The named settings, for the `depends` of a step."""
        return {name: getattr(self, name) for name in names}


def _check_known(what: str, name: str, known) -> None:
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown {what} {name!r}.{hint} Known: {', '.join(known)}")


def _check_plain(what: str, name: str) -> None:
    if not PLAIN_NAME.fullmatch(name):
        raise ValueError(f"{what}={name!r}: expected a plain name (letters, digits, _ - .), not a path")


def _convert_setting(name: str, kind: str, value):
    """`value` as the type that the field's annotation names ("int | None"), else a ValueError."""
    kind, _, optional = kind.partition(" | ")
    if optional and (value is None or (kind == "int" and value == "all")):
        return None
    if kind == "str":
        if isinstance(value, str | os.PathLike) and os.fspath(value):
            return os.fspath(value)
        raise ValueError(f"setting {name}={value!r}: expected a text that is not empty")
    if kind == "bool":
        if str(value) in ("True", "true", "1", "False", "false", "0"):
            return str(value) in ("True", "true", "1")
        raise ValueError(f"setting {name}={value!r}: expected True or False")
    abstract, convert = {"int": (numbers.Integral, int), "float": (numbers.Real, float)}[kind]
    least = "0 or more" if name in MAY_BE_ZERO else "more than 0"
    try:
        if isinstance(value, bool) or not isinstance(value, str | abstract):
            raise ValueError
        number = convert(value)  # papermill and make may hand over "3"
        if not math.isfinite(number) or number < 0 or (number == 0 and name not in MAY_BE_ZERO):
            raise ValueError
    except ValueError:
        what = "a whole number" if kind == "int" else "a number"
        raise ValueError(f"setting {name}={value!r}: expected {what}, {least}") from None
    return number


def make_once(folder: Path, make: Callable[[Path], None], depends: dict) -> Path:
    """Do a step unless it has been done: `make_once(study.folder() / "model", train, {"epochs": 3})`.

    folder: stands if its made.json holds the same `depends` (compared as JSON: a tuple equals a list).
    make: called with the hidden folder `.{name}.{fingerprint}.part` beside it, which may hold what an
        earlier, killed call left there for the same `depends`; whole at return, it becomes `folder`.
    Killed at any moment, the old or the new folder stands, or the next call continues the work. A second
    process waits for the first and finds the folder made.
    """
    folder = Path(folder)
    key = fingerprint(depends)
    part = folder.with_name(f".{folder.name}.{key[:12]}.part")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        _settle_kill(folder, keep=part)
        if _is_made(folder, key):
            return folder
        if not _is_made(part, key):
            part.mkdir(exist_ok=True)
            start = time.perf_counter()
            make(part)
            seconds = round(time.perf_counter() - start, 3)
            made = {"depends": depends, "fingerprint": key, "seconds": seconds}
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


def _lock(path: Path) -> FileLock:
    """Keeps other processes from working on `path`; the lock of a killed process is gone with it."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def _read_made(folder: Path) -> dict | None:
    """What make_once wrote about `folder`; None if it did not make it."""
    try:
        made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return made if isinstance(made, dict) and "fingerprint" in made else None


def _is_made(folder: Path, key: str) -> bool:
    made = _read_made(folder)
    return made is not None and fingerprint(made.get("depends")) == key


def _as_json(value, what: str):
    """`value` as it comes back from JSON (tuples as lists, keys as strings)."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be plain JSON (dict, list, str, number, None): {error}") from None


def fingerprint(depends) -> str:
    """SHA-256 (hex) of `depends` as JSON, whatever the order of its keys."""
    text = json.dumps(_as_json(depends, "depends"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_fingerprint(folder: Path) -> str:
    """Fingerprint of a folder that make_once made; FileNotFoundError if there is none."""
    made = _read_made(Path(folder))
    if made is None:
        raise FileNotFoundError(f"{_short(folder)} is missing or unfinished (no readable made.json in it)")
    return made["fingerprint"]


def require(folder: Path, made_by: str) -> Path:
    """`folder` if make_once has made it, else a FileNotFoundError that says which notebook makes it."""
    folder = Path(folder)
    if _read_made(folder) is None:
        advice = f"run notebooks/{made_by}.ipynb with RUN_NAME={folder.parent.name!r} first"
        raise FileNotFoundError(f"{_short(folder)} is missing: {advice}")
    return folder


def _short(folder: Path) -> str:
    """Run and step, without the machine's own path: a message may end up in a committed notebook."""
    return "/".join(Path(folder).parts[-2:])


def source_digest(*module_names: str) -> str:
    """SHA-256 (hex) of the named helpers' sources, so that changed code redoes a step."""
    digest = hashlib.sha256()
    for name in sorted(module_names):
        source = Path(__file__).with_name(f"{name}.py")
        if not source.is_file():
            raise ValueError(f"source_digest: there is no helpers/{name}.py")
        digest.update(f"{name}\n{source.read_text(encoding='utf-8')}\n".encode())
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


def save_table(study: Study, name: str, frame) -> Path:
    """Write a data frame (its columns, not its index) to tables/<name>.csv of the run."""
    _check_plain("table name", name)
    text = frame.to_csv(index=False, lineterminator="\n")
    return write_atomic(study.folder("tables") / f"{name}.csv", text)


def save_figure(study: Study, name: str, fig) -> Path:
    """Write a matplotlib figure to figures/<name>.png of the run, at 110 dots an inch."""
    _check_plain("figure name", name)
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=110, bbox_inches="tight")
    return write_atomic(study.folder("figures") / f"{name}.png", png.getvalue())


def record_run(study: Study, **entries) -> Path:
    """Merge entries into the run's run.json: `record_run(study, steps={"02_finetune": seconds})`.

    An entry that is a dict adds to the one recorded before, any other replaces it. Settings, versions
    and device are always recorded.
    """
    path = study.folder() / "run.json"
    with _lock(path):
        recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": {}}
        versions = {**_read_versions(), "commit": _read_commit(study.root)}
        facts = {"settings": asdict(study), "versions": versions, "device": study.device_name()}
        for name, entry in (facts | _as_json(entries, "entries")).items():
            before = recorded.get(name)
            recorded[name] = before | entry if isinstance(before, dict) and isinstance(entry, dict) else entry
        return write_atomic(path, json.dumps(recorded, indent=1) + "\n")


def _read_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def _read_commit(root: Path) -> str:
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # The ceiling keeps git from reporting the commit of a repository around an unpacked archive.
    ceiling = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.parent)}
    try:
        answer = subprocess.run(command, capture_output=True, text=True, env=ceiling)
    except FileNotFoundError:  # no git here
        return "unknown"
    return answer.stdout.strip() or "unknown"


def describe(study: Study) -> str:
    """One line for a notebook's head: profile, seed, versions, device."""
    device = study.device_name()
    if device.startswith("cuda"):
        import torch

        device = torch.cuda.get_device_name(device)
    stated = " · ".join(f"{name} {version}" for name, version in _read_versions().items())
    return f"{study.profile} · run {study.run_name} · seed {study.seed} · {stated} · {device}"
