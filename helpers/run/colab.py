"""Setting up a kernel; on Google Colab also installing what it lacks, and keeping runs on Drive.

    runpy.run_path("helpers/run/colab.py")["set_up"]()  # before all imports of the project

So this file imports nothing but the standard library.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

TOOLS = ("nbval", "pytest", "pytest-xdist", "hypothesis", "selenium", "ruff")  # of the tests only
NEVER = ("torch", "ipywidgets", "ipykernel", "notebook")  # Colab's own fit its drivers
# no version of these may move
KEEP = (*NEVER, "torchvision", "torchaudio", "ipython", "tornado", "numpy", "pandas")
PACKAGES = ("helpers", "phantom", "tools")  # of this project
LEAST = {  # older ones count as missing; of anything else any version will do
    "transformers": (5, 5),  # the first whose ViltImageProcessorPil works without torchvision
    "datasets": (4,),  # the first with datasets.List
    "pydantic": (2,),
}


def set_up() -> None:
    """Put the project that this file belongs to first on sys.path; on Colab, install what it needs.

    Modules of another `helpers`, or of an older state of this one, are forgotten.
    """
    root = Path(os.path.abspath(__file__)).parents[2]  # a link stays as it is
    sys.path[:] = [str(root), *(path for path in sys.path if path != str(root))]
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]
    if "google.colab" in sys.modules:
        print(install_missing(root))  # noqa: T201


def mount_drive() -> str | None:
    """Mount Google Drive and name its folder for runs: `Study.load(runs_root=mount_drive())`.

    None where this is not Colab, which for Study.load means: as in the profile.
    """
    if "google.colab" not in sys.modules:
        return None
    from google.colab import drive

    drive.mount("/content/drive")
    return "/content/drive/MyDrive/vilt-attention-runs"


def missing_packages(root: str | Path) -> list[str]:
    """What the notebooks need and this Python lacks, as pinned: ["papermill==2.7.0"].

    root: the folder of requirements.txt. A package that is there in any version is not missing,
    unless it is older than LEAST. Never names TOOLS, nor what is NEVER to be installed.
    """
    lines = Path(root, "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [re.match(r"([\w.-]+)==([^\s;#]+)", line.lower()) for line in lines]
    wanted = [pin.groups() for pin in pins if pin and pin[1] not in (*TOOLS, *NEVER)]
    found = {name: _numbers(_find_version(name)) for name, _ in wanted}
    return [f"{name}=={pin}" for name, pin in wanted if found[name] < LEAST.get(name, (0,))]


def install_missing(root: str | Path) -> str:
    """Install `missing_packages(root)` and move nothing in KEEP: `print(install_missing(ROOT))`.

    Returns one line about what was done. Ends the notebook's run with one sentence where torch is
    missing or pip cannot do it. Where nothing is missing pip is not called.
    """
    if _find_version("torch") is None:
        raise SystemExit("PyTorch is not installed here, and is not installed by this project.")
    missing = missing_packages(root)
    if not missing:
        return "Every package is there: nothing was installed."
    before = {name: _find_version(name) for name in _list_loaded()}
    _run_pip(missing)
    importlib.invalidate_caches()
    replaced = [name for name, version in before.items() if _find_version(name) != version]
    line = f"Installed {', '.join(missing)}."
    if replaced:
        line += f" Replaced after import: {', '.join(sorted(replaced))}."
        line += " Restart the session, then run this again."
    return line


def _run_pip(missing: list[str]) -> None:
    """Install exactly these and move nothing in KEEP; SystemExit with pip's reason."""
    kept = [f"{name}=={version}" for name in KEEP if (version := _find_version(name))]
    command = [sys.executable, "-m", "pip", "install", "--no-input", "--progress-bar=off"]
    command += ["--disable-pip-version-check", *kept, *missing]
    pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        errors = re.findall(r"^ERROR: (.*?[^:])(?: \(from versions:.*)?$", pip.stderr, re.MULTILINE)
        reason = (errors or pip.stderr.splitlines()[-1:] or ["pip did not say why"])[0]
        raise SystemExit(f"{', '.join(missing)} could not be installed: {reason}")


def _find_version(name: str) -> str | None:
    return next((found.version for found in metadata.distributions(name=name)), None)


def _numbers(version: str | None) -> tuple[int, ...]:
    """(5, 5, 0) of "5.5.0.dev1"; () of None, which is less than any version."""
    leading = re.match(r"\d+(\.\d+)*", version or "")
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


def _list_loaded() -> set[str]:
    """The distributions of which a module is imported; name spaces such as google do not count."""
    owners = metadata.packages_distributions()
    loaded = [name for name in owners if getattr(sys.modules.get(name), "__file__", None)]
    return {owner for name in loaded for owner in owners[name]}
