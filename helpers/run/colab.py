"""Google Colab: installing what it lacks without moving what it has, and keeping runs on Drive."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

TOOLS = ("nbval", "pytest", "hypothesis", "selenium", "ruff")  # of the tests only
NEVER = ("torch", "ipywidgets", "ipykernel", "notebook")  # Colab's own fit its drivers
# no version of these may move
KEEP = (*NEVER, "torchvision", "torchaudio", "ipython", "tornado", "numpy", "pandas")
LEAST = {  # older ones count as missing; of anything else any version will do
    "transformers": (5, 5),  # the first whose ViltImageProcessorPil works without torchvision
    "datasets": (4,),  # the first with datasets.List
    "pydantic": (2,),
}


def in_colab() -> bool:
    """Whether this is a notebook on Google Colab."""
    return "google.colab" in sys.modules


def mount_drive(folder: str = "vilt-attention-runs") -> str | None:
    """Mount Google Drive and name a folder on it for runs: `Study.load(runs_root=mount_drive())`.

    None where this is not Colab, which for Study.load means: as in the profile.
    """
    if not in_colab():
        return None
    from google.colab import drive

    drive.mount("/content/drive")
    return f"/content/drive/MyDrive/{folder}"


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
    before, loaded = _list_versions(), _list_loaded()
    _run_pip(missing)
    importlib.invalidate_caches()
    after = _list_versions()
    replaced = sorted(name for name in loaded if before.get(name) != after.get(name))
    line = f"Installed {', '.join(missing)}."
    if replaced:
        line += f" Replaced after import: {', '.join(replaced)}."
        line += " Restart the session, then run this again."
    return line


def _run_pip(missing: list[str]) -> None:
    """Install exactly these and move nothing in KEEP; SystemExit with pip's reason."""
    kept = [f"{name}=={version}\n" for name in KEEP if (version := _find_version(name))]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("".join(kept), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--no-input", "--progress-bar=off"]
        command += ["--disable-pip-version-check", "--constraint", str(constraints), *missing]
        pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        reason = _read_reason(pip.stdout, pip.stderr)
        raise SystemExit(f"{', '.join(missing)} could not be installed: {reason}")


def _read_reason(stdout: str, stderr: str) -> str:
    """pip's first error, and what it says conflicts, on one line."""
    errors = re.findall(r"^error: (.*[^:])$", stderr, flags=re.MULTILINE | re.IGNORECASE)
    errors = errors or stderr.strip().splitlines()[-1:] or ["pip did not say why"]
    causes = re.search(r"The conflict is caused by:\n(.+?)\n\s*\n", stdout, flags=re.DOTALL)
    first = re.sub(r" \(from versions:.+\)", "", errors[0])
    lines = [first, *(causes[1].splitlines() if causes else [])]
    return "; ".join(line.strip().rstrip(".") for line in lines) + "."


def _find_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str | None) -> tuple[int, ...]:
    """(5, 5, 0) of "5.5.0.dev1"; () of None, which is less than any version."""
    leading = re.match(r"\d+(\.\d+)*", version or "")
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


def _list_versions() -> dict[str, str]:
    return {item.metadata["Name"]: item.version for item in metadata.distributions()}


def _list_loaded() -> set[str]:
    """The distributions of which a module is imported; name spaces such as google do not count."""
    owners = metadata.packages_distributions()
    loaded = [name for name in owners if getattr(sys.modules.get(name), "__file__", None)]
    return {owner for name in loaded for owner in owners[name]}
