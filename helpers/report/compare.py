"""A run beside others: other runs of the study, and published numbers.

    runs = compare.find_runs(study, ["phantom-seed0", "phantom-seed1"])
    table = compare.compare_runs(runs)          # a row a run and headline
    compare.summarise_runs(table)               # a row a headline: mean, SD, smallest, largest
    compare.compare_with_literature(study)      # a row a published number

Nothing is measured here. What a run does not hold is said in words.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import load_from_disk

from helpers.report.findings import say_missing
from helpers.report.headlines import (
    HEADLINES,
    NOTEBOOK,
    Headline,
    find_accuracy,
    find_removable,
    find_text_share,
    read_headlines,
    read_table,
    say_value,
)
from helpers.report.sentences import count_of, say_number
from helpers.run.cache import read_record
from helpers.run.settings import Study
from helpers.stats.bootstrap import bootstrap_mean
from helpers.stats.cluster_robust import has_enough_data

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
        return {"seed": read_record(run.run_dir / "dataset")["inputs"]["seed"]}
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


SMALL = ("phantom-vilt", "fresh-small")  # checkpoints, by the last part of their names
ANSWER_TYPES = ("yes/no", "number", "other")  # VQAv2's own


def compare_with_literature(study: Study) -> pd.DataFrame:
    """Published numbers (data/literature.csv, in order) with this run's own beside them.

    Columns: what, published, unit, model, data, source, estimate, low, high, n (of this run; NaN: no number),
    own (the run's number in words, or what is missing), comparison (in words: what differs; numbers of the phantom,
    and of a small model, are never comparable).
    """
    published = pd.read_csv(study.root / "data" / "literature.csv")
    found = {name: find_own(study, name) for name in published["own"].unique()}
    rows, hindrance = [], say_incomparable(study).partition(":")[0]
    for line in published.to_dict("records"):
        own, name = found[line["own"]], line.pop("own")
        caveat = line.pop("caveat")
        values = [float("nan")] * 4 if own is None else [own.value, own.low, own.high, own.n]
        numbers = dict(zip(("estimate", "low", "high", "n"), values, strict=True))
        comparison = f"not comparable: {hindrance}" if hindrance else caveat
        rows.append({**line, **numbers, "own": say_own(study, own, name), "comparison": comparison})
    return pd.DataFrame(rows)


def say_incomparable(study: Study) -> str:
    """Why no number of a study can stand beside a published one, after a short name; empty where some can."""
    if study.data_root is None:
        return "phantom: its questions are generated from few templates"
    if Path(study.checkpoint).name in SMALL:
        return "small model: the one that was studied is far smaller than ViLT-B/32 and has seen few photographs"
    return ""


def find_own(study: Study, name: str) -> Headline | None:
    """This run's number beside a published one, by the `own` of data/literature.csv; None where it has none."""
    if name in ANSWER_TYPES:
        return find_answer_type(study, name)
    found = {
        "accuracy": find_accuracy, "text_share": find_text_share, "removable": find_removable,
        "prior": lambda study: find_accuracy(study, "type prior"),
        "words": lambda study: find_accuracy(study, "words only"),
    }  # fmt: skip
    if name not in found:
        raise ValueError(
            f"data/literature.csv, own={name!r}: expected {', '.join([*found, *ANSWER_TYPES])}"
        )
    return found[name](study)


def find_answer_type(study: Study, answer_type: str) -> Headline | None:
    """VQA accuracy on the validation questions of an answer type, in percent, as VQAv2's annotations sort them.

    None where 02 has not been run, or where there is no such question. Interval: bootstrap over images.
    """
    scored, folder = read_table(study, "02_predictions"), study.run_dir / "dataset"
    if scored is None or not folder.is_dir():
        return None
    known = (
        load_from_disk(folder)["validation"]
        .select_columns(["question_id", "answer_type"])
        .to_pandas()
    )
    scored = scored.merge(known, on="question_id", validate="one_to_one")
    scored = scored[scored["answer_type"] == answer_type]
    if scored.empty:
        return None
    interval = bootstrap_mean(
        scored["accuracy"], scored["image_id"], study.bootstrap_draws, study.seed
    )
    told = 100 if has_enough_data(interval.n, interval.n_clusters) else float("nan")
    values = (float(told * value) for value in interval[:3])
    size = (float(interval.n), float(interval.n_clusters))
    return Headline("accuracy", "VQA accuracy", f"{answer_type} questions", *values, *size, "%")


def say_own(study: Study, own: Headline | None, name: str) -> str:
    """A run's number with its number of questions, or why there is none."""
    if own is None:
        return say_missing(study, NOTEBOOK.get(name, "02"), "number")
    return f"{say_value(own)} (n = {own.n:,.0f})"
