"""Settings of a run, its folder and its device."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from helpers.run.cache import ROOT

# The hub's main branch holds pickled weights only; this pull request holds them as safetensors.
VILT = "dandelin/vilt-b32-mlm@refs/pr/4"
# What each profile sets differently from the defaults below, which are the phantom's.
PROFILES = {
    "phantom": dict(models=tuple(f"data/replicas/{number}" for number in range(5))),
    "colab": dict(
        checkpoint=VILT, data_root="data/downloads/vqav2", download=True, train_per_family=2000,
        validation_per_family=500, epochs=4, batch_size=64, learning_rate=5e-5,
        head_learning_rate=5e-4, extract_batch_size=32, ablation_questions=500,
        faithfulness_questions=300, withheld_questions=4500, shapley_questions=300,
        shapley_permutations=6, joint_sets=2000,
    ),
    "full": dict(  # the recipe of ViLT's authors (Kim et al. 2021, appendix): batch, rates, epochs
        checkpoint=VILT, data_root="data/downloads/vqav2", download=True, epochs=10, batch_size=256,
        learning_rate=1e-4, head_learning_rate=1e-3, extract_batch_size=64, shard_size=4096,
        watched_questions=None,
        ablation_questions=1000, withheld_questions=20000, shapley_questions=1000,
        shapley_permutations=8, joint_sets=2000,
    ),
}  # fmt: skip


def check_plain_name(name: str) -> str:
    """`name`, if it is a plain name that cannot leave its folder; else a ValueError."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"a plain name (letters, digits, _ - .), not a path: {name!r}")
    return name


def _refuse_bool(value: object) -> object:
    """Python counts True as 1; a setting does not."""
    if isinstance(value, bool):
        raise ValueError("a number, not True or False")
    return value


NUMBER = BeforeValidator(_refuse_bool)
PATH = BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)
SPLIT = BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)
ALL = BeforeValidator(lambda value: None if value == "all" else value)
Text = Annotated[str, PATH, Field(min_length=1)]
Count = Annotated[int, NUMBER, Field(gt=0)]
CountOrZero = Annotated[int, NUMBER, Field(ge=0)]
Texts = Annotated[tuple[Text, ...], SPLIT]
Limit = Annotated[Count | None, ALL]  # None or "all": no limit
Amount = Annotated[float, NUMBER, Field(gt=0, allow_inf_nan=False)]
AmountOrZero = Annotated[float, NUMBER, Field(ge=0, allow_inf_nan=False)]


# A dataclass of pydantic's, not a BaseModel: dataclasses.replace checks the new values as well.
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Study:
    """Every setting of a run: `Study.load("phantom", epochs=5).folder("tables")`.

    Texts such as "3" or "True", which make and papermill hand over, are converted. A wrong value is
    a ValueError that names the setting. Paths count from the repository root.
    """

    profile: Text = "phantom"  # preset that the other settings came from
    run_name: Annotated[Text, AfterValidator(check_plain_name)] = "phantom"  # folder in runs_root
    seed: Annotated[CountOrZero, Field(lt=2**32)] = 0  # of data, training, bootstrap
    checkpoint: Text = "data/phantom-vilt"  # folder, hub name[@revision], fresh-small or fresh-b32
    finetune: bool = True  # False: no training in 02; the checkpoint is analysed, with its answers
    models: Texts = ()  # fine-tuned models to analyse (folders); (): the run's own
    data_root: Text | None = None  # folder of VQAv2's official files; None: generate the phantom
    download: bool = False  # fetch what data_root lacks: official files, images of the subset
    questions_url: Text | None = None  # where the official zips are; None: VQAv2's own address
    images_url: Text | None = None  # where val2014/ and train2014/ are; None: COCO's own address
    max_missing: AmountOrZero = 0.01  # share of the subset's images that may be missing there
    train_scenes: Count = 1600  # generated images to train on (phantom only)
    validation_scenes: Count = 350  # generated images to validate on (phantom only)
    train_per_family: Limit = None  # training questions a family at most
    validation_per_family: Limit = None  # validation questions a family at most
    max_answers: Count = 3129  # answers in the vocabulary at most; ViLT's VQA head has 3129
    min_validation: CountOrZero = 50  # with fewer to validate on, images of both files are pooled
    epochs: Count = 3  # passes over the training questions
    batch_size: Count = 64  # questions a training step, over all devices
    device_batch_size: Count | None = None  # of these at once on a device; None: as many as fit
    # of training and measuring; auto: half precision on a GPU, fp32 elsewhere
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    watched_questions: Limit = 1000  # validation questions asked at each evaluation in training
    patience: Count = 3  # evaluations (of about 8) without a better accuracy before training stops
    learning_rate: Amount = 1e-3  # peak, of the transformer
    head_learning_rate: Amount = 3e-3  # peak, of the answer head
    extract_batch_size: Count = 128  # questions a forward pass when attention is measured
    random_models: Count = 24  # models with random weights that heads are compared with
    shard_size: Count = 512  # questions a file of attention; what a kill can cost
    faithfulness_questions: Count = 100  # validation questions whose patches are deleted by map
    withheld_questions: Count = 1000  # validation questions asked without image or words
    shapley_questions: Count = 50  # validation questions whose tokens are withheld one by one
    shapley_permutations: Count = 4  # random orders of withholding, each also taken backwards
    knockout_questions: Count = 300  # validation questions whose attention edges are cut
    joint_sets: Count = 240  # random sets of heads removed together; at most as many pairs of heads
    joint_questions: Count = 100  # validation questions that are asked without each set
    pair_questions: Count = 300  # validation questions asked without each pair of heads
    ablation_questions: Count = 500  # validation questions that each ablated head is scored on
    prune_draws: Count = 40  # random orders of removing heads, beside the measured ones
    prune_heads: Amount = 0.25  # share of the heads pruned before fine-tuning; twice it as well
    prune_layers: Amount = 0.25  # share of the layers pruned before fine-tuning
    prune_epochs: CountOrZero = 1  # passes over the training questions after pruning; 0: cut only
    prune_tolerance: Amount = 1.0  # points of accuracy that the selected model may lose
    latency_rounds: Count = 21  # times that each model is timed, in turn with the others
    bootstrap_draws: Count = 1000  # resamples behind an interval
    show_photographs: bool = False  # in figures (licences differ); the phantom is always shown
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    runs_root: Text = "runs"  # folder of all runs

    @classmethod
    def load(
        cls, profile: str = "phantom", settings: dict | str | None = None, **overrides: object
    ) -> Study:
        """The preset `profile` with overrides; an override of None means: as in the profile.

        settings: further overrides, which win; a dict, or its JSON, as `papermill -p` hands it on.
        A data_root of one's own is not downloaded into unless download=True is given as well. With
        a data_root or checkpoint of one's own the run's own model is analysed, unless others are
        given as `models`; with finetune=False that is the checkpoint itself.
        """
        _check_known("profile", profile, PROFILES)
        overrides |= _read_settings(settings)
        for name in overrides:
            _check_known("setting", name, [field.name for field in fields(cls)])
        chosen = {name: value for name, value in overrides.items() if value is not None}
        own = {"download": False} if "data_root" in chosen else {}
        own |= {"models": ()} if {"data_root", "checkpoint"} & set(chosen) else {}
        preset = {"profile": profile, "run_name": profile, **PROFILES[profile]}
        try:
            study = cls(**preset | own | chosen)
        except ValidationError as error:
            raise ValueError(_say_first(error)) from None
        is_analysed = not (study.finetune or study.models)
        return replace(study, models=(study.checkpoint,)) if is_analysed else study

    @property
    def root(self) -> Path:
        """The repository's root."""
        return ROOT

    @property
    def run_dir(self) -> Path:
        """The run's own folder; `folder()` creates it."""
        return ROOT / self.runs_root / self.run_name

    def folder(self, *parts: str) -> Path:
        """A folder inside the run's folder, created if absent: `study.folder("tables")`."""
        path = self.run_dir.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def path(self, name: str) -> Path | str:
        """`name` counted from the repository root; a checkpoint's hub name stays as it is.

        "data/typo" stays a path, as data/ is a folder here, so that its error names the path.
        """
        path = ROOT / name
        local = path.exists() or (ROOT / Path(name).parts[0]).is_dir()
        return path if local or name not in (self.checkpoint, *self.models) else name

    def device_name(self) -> str:
        """The device to compute on, "cpu" or "cuda"; ValueError if it is not there."""
        if self.device == "cpu":
            return "cpu"
        import torch  # slow to import

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("setting device='cuda': torch sees no GPU; use 'auto' or 'cpu'")
        return "cuda" if torch.cuda.is_available() else "cpu"

    def settings(self, *names: str) -> dict[str, object]:
        """The named settings, for the `inputs` of a step."""
        return {name: getattr(self, name) for name in names}


def _read_settings(given: dict | str | None) -> dict:
    try:
        return dict(json.loads(given or "{}") if isinstance(given, str) else given or {})
    except (TypeError, ValueError):
        raise ValueError(f'SETTINGS={given!r}: expected a dict such as {{"epochs": 5}}') from None


def _check_known(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown {what} {name!r}.{hint} Known: {', '.join(known)}")


def _say_first(error: ValidationError) -> str:
    """The first of pydantic's errors: "setting epochs=0: expected greater than 0"."""
    first = error.errors()[0]
    (name, *_), value = first["loc"], first["input"]
    reason = re.sub(r"^Value error, |^Input should be |^\w+ should ", "", first["msg"])
    hint = "; CUDA_VISIBLE_DEVICES chooses among GPUs" if name == "device" else ""
    return f"setting {name}={value!r}: expected {reason}{hint}"
