"""Settings of a run, steps done once, and what is recorded about a run."""

from importlib import import_module

MODULES = {
    "Study": "settings",  # every setting of a run, its folders and its device
    "describe": "record",  # one line about a run: seed, versions, device
    "show": "record",  # save a figure or a table in the run's folder and display it
    "save_figure": "record",  # a figure into the run's figures/
    "save_slide": "record",  # a figure as a slide shows it
    "save_table": "record",  # a table into the run's tables/
    "mount_drive": "colab",  # a folder on Google Drive for runs
    "install_missing": "colab",  # what the notebooks need and Colab lacks
}
__all__ = list(MODULES)


def __getattr__(name: str) -> object:
    """Import a public name at its first use: install_missing must work without pydantic."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
