"""The command line that `make run` and `accelerate launch` share: settings as options."""

import argparse

NAMED = ("profile", "seed", "run_name", "data_root", "checkpoint")  # parameters of the notebooks


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add options for settings; an empty value, as make hands it over, means: as in the profile."""
    for name in ("--profile", "--run-name", "--data-root", "--checkpoint"):
        parser.add_argument(name, default=None)
    parser.add_argument("--seed", type=int, default=0)
    about = "any setting of helpers/run/settings.py"
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help=about)


def read_settings(arguments: argparse.Namespace) -> dict:
    """The settings that were given, for `Study.load`; ValueError for one that is no pair."""
    unclear = [pair for pair in arguments.set if "=" not in pair]
    if unclear:
        raise ValueError(f"--set {unclear[0]}: expected NAME=VALUE, such as epochs=5")
    named = {name: getattr(arguments, name) or None for name in NAMED}
    given = {name: value for name, value in named.items() if value is not None}
    return given | dict(pair.split("=", 1) for pair in arguments.set)
