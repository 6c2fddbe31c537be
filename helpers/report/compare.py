"""Several runs side by side: mean and spread of each headline number over seeds or settings.

    runs = find_runs(study, ["phantom-seed0", "phantom-seed1"])
    table = compare_runs(runs)          # a row a run and headline
    summarise_runs(table)               # a row a headline: mean, SD, smallest, largest

Runs are told apart by name; which settings differ between them is said by `list_differences`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace

import numpy as np
import pandas as pd

from helpers.report.headlines import HEADLINES, read_headlines
from helpers.report.sentences import count_of, say_number
from helpers.run.cache import read_depends
from helpers.run.study import Study

OWN = (
    "run_name",
    "runs_root",
)  # differ between any two runs, and say nothing about what was measured


def find_runs(study: Study, names: Sequence[str]) -> list[Study]:
    """The named runs beside this one (same runs_root), with the settings that they record.

    The resampling of `study` holds for all. ValueError where a run is named twice or holds no tables, with the runs
    that do.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"RUNS={list(names)}: a run is named twice, which would hide the spread")
    found = []
    for name in names:
        run = replace(study, run_name=name)
        if not (run.run_dir / "tables").is_dir():
            known = sorted(path.parent.name for path in run.run_dir.parent.glob("[!.]*/tables"))
            raise ValueError(
                f"RUNS: {name!r} holds no tables in {study.runs_root}. Runs that do: {', '.join(known) or 'none'}"
            )
        keep = {key: getattr(study, key) for key in (*OWN[1:], "bootstrap_draws", "device")}
        found.append(replace(run, **(_read_settings(run) | keep | {"run_name": name})))
    return found


def _read_settings(run: Study) -> dict:
    """The settings in a run's run.json that Study still knows; of a run without the chain its seed alone."""
    path = run.run_dir / "run.json"
    if not path.is_file():
        return {"seed": read_depends(run.run_dir / "dataset")["seed"]}
    known = {field.name for field in fields(Study)}
    recorded = json.loads(path.read_text(encoding="utf-8")).get("settings", {})
    return {name: value for name, value in recorded.items() if name in known}


def compare_runs(runs: Sequence[Study]) -> pd.DataFrame:
    """Every headline of every run: run, seed, headline, label, unit, value, low, high, n.

    A row for each pair, in the order of the headlines; value is NaN where the run lacks its notebook, or where its
    questions are too few. Headlines that no run has are left out.
    """
    rows = []
    for name in HEADLINES:
        found = [(run, read_headlines(run, [name])) for run in runs]
        known = next((own[0] for _, own in found if own), None)
        if known is None:
            continue
        for run, own in found:
            values = [own[0].value, own[0].low, own[0].high, own[0].n] if own else [np.nan] * 4
            rows.append((run.run_name, run.seed, name, known.label, known.unit, *values))
    columns = ["run", "seed", "headline", "label", "unit", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def summarise_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over runs of each headline: headline, label, unit, runs, mean, sd, min, max.

    table: of `compare_runs`. runs: those with a number. sd: the standard deviation of the sample (n - 1), NaN with
    fewer than two runs.
    """
    grouped = table.groupby(["headline", "label", "unit"], sort=False)["value"]
    found = grouped.agg(runs="count", mean="mean", sd="std", min="min", max="max")
    return found.reset_index()


def list_differences(runs: Sequence[Study]) -> pd.DataFrame:
    """The settings in which the runs differ, a column each and a row a run; run is the first column."""
    settings = pd.DataFrame([asdict(run) for run in runs]).drop(columns=OWN[1])
    differing = [name for name in settings if settings[name].astype(str).nunique() > 1]
    kept = [name for name in differing if name != "run_name"]
    return settings[["run_name", *kept]].rename(columns={"run_name": "run"})


def say_spread(summary: pd.DataFrame, n_runs: int) -> str:
    """A sentence: mean, SD and range of every headline over runs.

    With one run there is no spread, which it says; headlines that one run at most could tell are left out.
    """
    told = summary[summary["runs"] > 1]
    if not len(told):
        return f"{count_of(n_runs, 'run')}: too few to tell how far the numbers spread."
    parts = []
    for row in told.itertuples():
        digits = {"times": 2}.get(row.unit, 1)
        mean, sd, low, high = (
            say_number(value, digits) for value in (row.mean, row.sd, row.min, row.max)
        )
        some = "" if row.runs == n_runs else f"; {row.runs} runs"
        parts.append(f"{row.label} {mean} {row.unit} (SD {sd}, {low} to {high}{some})")
    return f"Mean over {n_runs} runs: {'; '.join(parts)}."
