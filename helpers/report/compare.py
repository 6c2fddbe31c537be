"""Claims of several runs side by side: how far do a verdict and an estimate depend on the run?

runs = compare.find_runs(study, ["phantom-seed0", "phantom-seed1"])
table = compare.compare_claims(runs)        # a row a run and claim
compare.tabulate_runs(table)                # a row a claim, a column a run
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace

import pandas as pd

from helpers.report.claims import read_claims, say_estimate
from helpers.run.cache import read_record
from helpers.run.settings import Study

SHARED = ("runs_root", "bootstrap_draws", "device")  # settings that one study sets for all runs


def find_runs(study: Study, names: Sequence[str]) -> list[Study]:
    """The named runs beside this one (same runs_root), with the settings that they record.

    ValueError where a run is named twice or holds no claims, with the runs that do.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"RUNS={list(names)}: a run is named twice, which would hide the spread")
    shared = {name: getattr(study, name) for name in SHARED}
    found = []
    for name in names:
        run = replace(study, run_name=name)
        if not (run.run_dir / "claims").is_dir():
            known = sorted(path.parent.name for path in run.run_dir.parent.glob("[!.]*/claims"))
            known = f"Runs that do: {', '.join(known) or 'none'}"
            raise ValueError(f"RUNS: {name!r} holds no claims in {study.runs_root}. {known}")
        found.append(replace(run, **(_read_settings(run) | shared | {"run_name": name})))
    return found


def _read_settings(run: Study) -> dict:
    """The settings in run.json that Study still knows; without that file, the seed of its data."""
    path = run.run_dir / "run.json"
    if not path.is_file():
        return {"seed": read_record(run.run_dir / "dataset")["inputs"]["seed"]}
    known = {field.name for field in fields(Study)}
    recorded = json.loads(path.read_text(encoding="utf-8")).get("settings", {})
    return {name: value for name, value in recorded.items() if name in known}


def compare_claims(runs: Sequence[Study]) -> pd.DataFrame:
    """Every claim that some run has judged, a row a run: run, seed, and what `read_claims` has."""
    tables = [
        read_claims(run.run_dir).assign(run=run.run_name, seed=run.seed) for run in runs
    ]  # fmt: skip
    table = pd.concat(tables, ignore_index=True)
    judged = table.loc[table["verdict"] != "not measured yet", "key"]
    columns = ["run", "seed", "key", "claim", "verdict", "estimate", "low", "high", "unit",
               "threshold", "relation", "reason"]  # fmt: skip
    return table.loc[table["key"].isin(judged), columns].reset_index(drop=True)


def tabulate_runs(table: pd.DataFrame) -> pd.DataFrame:
    """A row a claim and a column a run, "supported: 12.3 [10.1, 14.5] points"."""
    says = [f"{row['verdict']}: {say_estimate(row)}".strip(": ") for _, row in table.iterrows()]
    wide = table.assign(says=says).set_index(["claim", "run"])["says"].unstack()  # noqa: PD010
    return wide.loc[table["claim"].unique(), table["run"].unique()].reset_index()


def list_differences(runs: Sequence[Study]) -> pd.DataFrame:
    """The settings in which the runs differ, a column each and a row a run ("run")."""
    settings = pd.DataFrame([asdict(run) for run in runs]).rename(columns={"run_name": "run"})
    settings = settings.drop(columns="runs_root")
    differing = [name for name in settings if settings[name].astype(str).nunique() > 1]
    return settings[["run", *(name for name in differing if name != "run")]]
