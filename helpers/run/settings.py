"""Settings of a run, its folder, and what is written there about it."""

from __future__ import annotations

import difflib
import io
import json
import math
import numbers
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

from helpers.run.cache import lock_path, to_json, write_atomic

# The hub's main branch holds pickled weights only; its conversion to safetensors stands in this pull request.
VILT = "dandelin/vilt-b32-mlm@refs/pr/4"
# What each profile sets differently from the field defaults below, which are the phantom's.
PROFILES = {
    "phantom": {},
    "colab": dict(
        checkpoint=VILT, data_root="data/downloads/vqav2", download=True, train_per_family=2000,
        validation_per_family=500, epochs=4, batch_size=64, learning_rate=5e-5, head_learning_rate=5e-4,
        extract_batch_size=32, ablation_questions=500,
        faithfulness_questions=300, shapley_questions=300, shapley_permutations=6,
    ),
    "full": dict(  # the recipe of ViLT's authors (Kim et al. 2021, appendix): batch, rates, epochs
        checkpoint=VILT, data_root="data/downloads/vqav2", download=True, epochs=10, batch_size=256,
        learning_rate=1e-4, head_learning_rate=1e-3, extract_batch_size=64, shard_size=4096,
        ablation_questions=1000, shapley_questions=1000, shapley_permutations=8, second_seed=False,
    ),
}  # fmt: skip
PACKAGES = ("torch", "transformers", "datasets", "numpy")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
MAY_BE_ZERO = ("seed", "min_validation", "max_missing")  # every other number must be positive
PLAIN_NAME = re.compile(r"\w[\w.-]*")  # no separators, no leading dot: it cannot leave its folder


@dataclass(frozen=True)
class Study:
    """Every setting of a run: `Study.load("phantom", epochs=5).folder("tables")`.

    Wrong values raise a ValueError that names the setting. Paths count from the repository root.
    """

    profile: str = "phantom"  # preset that the other settings came from
    run_name: str | None = None  # folder under runs_root; None: the profile's name
    seed: int = 0  # of data, training, bootstrap; below 2**32
    checkpoint: str = (
        "data/phantom-vilt"  # to start from: folder, hub name[@revision], fresh-small, fresh-b32
    )
    data_root: str | None = None  # folder of VQAv2's official files; None: generate the phantom
    download: bool = (
        False  # fetch what data_root lacks: official files, and the images of the subset
    )
    questions_url: str | None = None  # where the official zips lie; None: VQAv2's own address
    images_url: str | None = (
        None  # where val2014/COCO_val2014_*.jpg and train2014/ lie; None: COCO's own
    )
    max_missing: float = 0.01  # share of the subset's images that may be missing there
    train_scenes: int = 1600  # generated images to train on (phantom only)
    validation_scenes: int = 500  # generated images to validate on (phantom only)
    train_per_family: int | None = None  # training questions a family at most; None or "all": all
    validation_per_family: int | None = (
        None  # validation questions a family at most; None or "all": all
    )
    max_answers: int = 3129  # answers in the vocabulary at most; ViLT's VQA head has 3129
    min_validation: int = (
        50  # validation questions, below which images of both official files are pooled
    )
    epochs: int = 3  # passes over the training questions
    batch_size: int = 64  # questions a training step, over all devices
    device_batch_size: int | None = (
        None  # of these at once on a device; None: all, or as many as fit
    )
    precision: str = (
        "auto"  # of training and measuring: auto (half on a GPU, fp32 elsewhere), fp32, fp16, bf16
    )
    patience: int = (
        3  # evaluations (of about 8) without a better accuracy, after which training stops
    )
    second_seed: bool = (
        True  # fine-tune once more from another seed, to see whether heads keep their roles
    )
    learning_rate: float = 1e-3  # peak, of the transformer
    head_learning_rate: float = 3e-3  # peak, of the answer head
    extract_batch_size: int = 128  # questions a forward pass when attention is read
    shard_size: int = 512  # questions a file of attention; what a kill can cost
    faithfulness_questions: int = (
        200  # validation questions whose patches are taken away, map by map
    )
    shapley_questions: int = 250  # validation questions whose tokens are withheld one by one
    shapley_permutations: int = (
        16  # random orders in which they are; each is gone through backwards as well
    )
    ablation_questions: int = 1000  # validation questions that each ablated head is scored on
    prune_draws: int = 5  # random orders of removing heads, beside those that are measured
    prune_heads: float = 0.25  # share of the heads cut out before a lighter model is trained on; also tried: twice it
    prune_layers: float = 0.25  # share of the layers that are
    prune_epochs: int = 1  # passes over the training questions after the cut
    prune_tolerance: float = 1.0  # points of accuracy that the lightest model may lose
    latency_rounds: int = 31  # times that each model is timed, in turn with the others
    bootstrap_draws: int = 1000  # resamples behind an interval
    show_photographs: bool = (
        False  # in figures (their licences differ); the phantom is always shown
    )
    device: str = "auto"  # auto (cuda where there is one), cpu or cuda; CUDA_VISIBLE_DEVICES chooses among GPUs
    runs_root: str = "runs"  # folder of all runs

    def __post_init__(self):
        for field in fields(self):
            value = _convert_setting(field.name, field.type, getattr(self, field.name))
            object.__setattr__(self, field.name, value)  # the dataclass is frozen only from here on
        _check_known("profile", self.profile, PROFILES)
        if self.run_name is None:
            object.__setattr__(self, "run_name", self.profile)
        _check_plain("run_name", self.run_name)
        if self.device not in ("auto", "cpu", "cuda"):
            hint = (
                "; CUDA_VISIBLE_DEVICES chooses among GPUs"
                if self.device.startswith("cuda")
                else ""
            )
            raise ValueError(f"setting device={self.device!r}: expected auto, cpu or cuda{hint}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"setting precision={self.precision!r}: expected {', '.join(PRECISIONS)}"
            )
        if self.seed >= 2**32:
            raise ValueError(f"setting seed={self.seed}: expected less than 2**32 (numpy's limit)")

    @classmethod
    def load(cls, profile: str = "phantom", **overrides) -> Study:
        """The preset `profile` with overrides; an override of None means: as in the profile.

        A data_root of one's own is not downloaded into unless download=True is given as well.
        """
        _check_known("profile", profile, PROFILES)
        for name in overrides:
            _check_known("setting", name, [field.name for field in fields(cls)])
        chosen = {name: value for name, value in overrides.items() if value is not None}
        own_data = {"download": False} if "data_root" in chosen else {}
        return cls(**{"profile": profile, **PROFILES[profile], **own_data, **chosen})

    @property
    def root(self) -> Path:
        """The repository's root."""
        return Path(__file__).resolve().parents[2]

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
        if (
            name == self.checkpoint
            and not path.exists()
            and not (self.root / Path(name).parts[0]).is_dir()
        ):
            return (
                name  # a hub name, or fresh-small; "data/typo" stays a path, and its error is clear
            )
        return path

    def device_name(self) -> str:
        """The device to compute on, "cpu" or "cuda"; ValueError if it is not there."""
        if self.device == "cpu":
            return "cpu"
        import torch  # slow to import, and nothing else here needs it

        if torch.cuda.is_available():
            return "cuda"
        if self.device == "auto":
            return "cpu"
        raise ValueError(
            f"setting device={self.device!r}: torch sees no GPU here; use 'auto' or 'cpu'"
        )

    def settings(self, *names: str) -> dict:
        """The named settings, for the `inputs` of a step."""
        return {name: getattr(self, name) for name in names}


def _check_known(what: str, name: str, known) -> None:
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown {what} {name!r}.{hint} Known: {', '.join(known)}")


def _check_plain(what: str, name: str) -> None:
    if not PLAIN_NAME.fullmatch(name):
        raise ValueError(
            f"{what}={name!r}: expected a plain name (letters, digits, _ - .), not a path"
        )


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
    with lock_path(path):
        recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": {}}
        versions = {**_read_versions(), "commit": _read_commit(study.root)}
        facts = {"settings": asdict(study), "versions": versions, "device": study.device_name()}
        for name, entry in (facts | to_json(entries, "entries")).items():
            before = recorded.get(name)
            recorded[name] = (
                before | entry if isinstance(before, dict) and isinstance(entry, dict) else entry
            )
        return write_atomic(path, json.dumps(recorded, indent=1) + "\n")


def _read_versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def _read_commit(root: Path) -> str:
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
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
