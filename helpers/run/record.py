"""What a run keeps: tables, figures, and one line about it."""

from __future__ import annotations

import io
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from helpers.run.cache import write_atomic
from helpers.run.settings import Study, check_plain_name

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure

ENDS = {"low": "95 % from", "high": "to"}  # of an interval, in a displayed table


def save_table(study: Study, name: str, frame: pd.DataFrame, parquet: bool = False) -> None:
    """Write a data frame (its columns, not its index) to tables/<name>.csv of the run.

    Returns nothing, as a notebook would print a path at a cell's end, and paths are the machine's.
    parquet: for free text; read_csv takes answers such as "None" and "n/a" for empty cells.
    """
    path = study.folder("tables") / check_plain_name(name)
    if parquet:
        write_atomic(Path(f"{path}.parquet"), frame.to_parquet(index=False))
    else:
        write_atomic(Path(f"{path}.csv"), frame.to_csv(index=False, lineterminator="\n"))


def save_figure(study: Study, name: str, fig: Figure, dpi: int = 110) -> Path:
    """Write a matplotlib figure to figures/<name>.png of the run. dpi: dots an inch."""
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=dpi, bbox_inches="tight")
    return write_atomic(study.folder("figures") / f"{check_plain_name(name)}.png", png.getvalue())


def save_slide(study: Study, name: str, fig: Figure) -> Path:
    """Write a figure as a slide shows it to figures/<name>_slide.png: smaller, without its title.

    Its text keeps its size, so that it is read from the last row. The figure is not to be used
    again.
    """
    fig.suptitle("")
    fig.set_size_inches(0.62 * fig.get_size_inches())
    return save_figure(study, f"{name}_slide", fig, dpi=180)


def show(
    study: Study,
    name: str,
    thing: Figure | pd.DataFrame,
    rows: int = 12,
    slide: bool = False,
    columns: dict[str, str] | None = None,
) -> None:
    """Save a figure or a table in the run's folder and display it: `show(study, "03_layers", fig)`.

    Of a table all rows are saved and the first `rows` displayed, numbers rounded to 2 places, with
    interval ends named as such and without the number of images.
    columns: of a table, the columns to display and their headings, the first as the index.
    slide: the slides show this figure, so it is saved for them as well.
    """
    from IPython.display import Image, display

    if hasattr(thing, "savefig"):
        png = save_figure(study, name, thing).read_bytes()
        display(Image(png))  # to draw it once more takes half a second
        if slide:
            save_slide(study, name, thing)
    else:
        save_table(study, name, thing)
        shown = thing.head(rows).round(2).drop(columns="n_images", errors="ignore")
        shown = shown[list(columns or shown)].rename(columns=ENDS | (columns or {}))
        display(shown.set_index(shown.columns[0]))


def read_versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    packages = ("torch", "transformers", "datasets", "numpy")
    installed = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **installed}


def describe(study: Study) -> str:
    """One line for a notebook's head: profile, seed, versions, device."""
    device = study.device_name()
    if device == "cuda":
        import torch

        device = torch.cuda.get_device_name(device)
    stated = [f"{name} {version}" for name, version in read_versions().items()]
    about = [study.profile, f"run {study.run_name}", f"seed {study.seed}", *stated, device]
    return " · ".join(about)
