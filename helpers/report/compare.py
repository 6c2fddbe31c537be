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

import pandas as pd
from datasets import load_from_disk

from helpers.report import headlines
from helpers.report.findings import say_missing
from helpers.report.headlines import HEADLINES, NAN, NOTEBOOK, Headline, say_value
from helpers.report.sentences import count_of, say_number
from helpers.run.cache import read_record
from helpers.run.settings import Study

SHARED = ("runs_root", "bootstrap_draws", "device")  # settings that one study sets for all runs
SMALL = ("phantom-vilt", "fresh-small")  # checkpoints, by the last part of their names
ANSWER_TYPES = ("yes/no", "number", "other")  # VQAv2's own


def find_runs(study: Study, names: Sequence[str]) -> list[Study]:
    """The named runs beside this one (same runs_root), with the settings that they record.

    ValueError where a run is named twice or holds no tables, with the runs that do.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"RUNS={list(names)}: a run is named twice, which would hide the spread")
    shared = {name: getattr(study, name) for name in SHARED}
    found = []
    for name in names:
        run = replace(study, run_name=name)
        if not (run.run_dir / "tables").is_dir():
            known = sorted(path.parent.name for path in run.run_dir.parent.glob("[!.]*/tables"))
            known = f"Runs that do: {', '.join(known) or 'none'}"
            raise ValueError(f"RUNS: {name!r} holds no tables in {study.runs_root}. {known}")
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


def compare_runs(runs: Sequence[Study]) -> pd.DataFrame:
    """Every headline of every run, those that no run has left out.

    value is NaN where the run lacks the notebook or enough questions.
    """
    rows = []
    for name, find in HEADLINES.items():
        found = [find(run) for run in runs]
        known = next(filter(None, found), None)
        for run, headline in zip(runs, found if known else (), strict=False):
            headline = headline or Headline(name, "", "", "", NAN)
            values = (headline.value, headline.low, headline.high, headline.n)
            rows.append((run.run_name, run.seed, name, known.label, known.unit, *values))
    columns = ["run", "seed", "headline", "label", "unit", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def summarise_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over runs of each headline: headline, label, unit, runs, mean, sd, min, max.

    table: of `compare_runs`. runs: those with a number. sd: of the sample (n - 1), NaN with fewer
    than two runs.
    """
    grouped = table.groupby(["headline", "label", "unit"], sort=False)["value"]
    return grouped.agg(runs="count", mean="mean", sd="std", min="min", max="max").reset_index()


def list_differences(runs: Sequence[Study]) -> pd.DataFrame:
    """The settings in which the runs differ, a column each and a row a run ("run")."""
    settings = pd.DataFrame([asdict(run) for run in runs]).rename(columns={"run_name": "run"})
    settings = settings.drop(columns="runs_root")
    differing = [name for name in settings if settings[name].astype(str).nunique() > 1]
    return settings[["run", *(name for name in differing if name != "run")]]


def say_spread(summary: pd.DataFrame, n_runs: int) -> str:
    """Mean, SD and range over runs of every headline that several runs can tell."""
    told = summary[summary["runs"] > 1]
    if told.empty:
        return f"{count_of(n_runs, 'run')}: too few to tell how far the numbers spread."
    parts = []
    for row in told.itertuples():
        values = (row.mean, row.sd, row.min, row.max)
        mean, sd, low, high = (say_number(each, 2 if row.unit == "times" else 1) for each in values)
        some = "" if row.runs == n_runs else f"; {row.runs} runs"
        parts.append(f"{row.label} {mean} {row.unit} (SD {sd}, {low} to {high}{some})")
    return f"Mean over {n_runs} runs: {'; '.join(parts)}."


def compare_with_literature(study: Study) -> pd.DataFrame:
    """Published numbers (data/literature.csv, in order) with this run's own beside them.

    Columns: what, published, unit, model, data, source; estimate, low, high, n of this run (NaN: no
    number); own (its number in words, or what is missing); comparison (in words: what differs;
    numbers of the phantom, and of a small model, are never comparable).
    """
    published = pd.read_csv(study.root / "data" / "literature.csv")
    found = {name: find_own(study, name) for name in published["own"].unique()}
    reason = say_incomparable(study).partition(":")[0]
    rows = []
    for line in published.to_dict("records"):
        name, caveat = line.pop("own"), line.pop("caveat")
        headline = found[name] or Headline(name, "", "", "", NAN)
        numbers = {"estimate": headline.value, "low": headline.low, "high": headline.high}
        own = f"{say_value(headline)} (n = {headline.n:,.0f})"
        if found[name] is None:
            own = say_missing(study, NOTEBOOK.get(name, "02"), "number")
        comparison = f"not comparable: {reason}" if reason else caveat
        rows.append(line | numbers | {"n": headline.n, "own": own, "comparison": comparison})
    return pd.DataFrame(rows)


def say_incomparable(study: Study) -> str:
    """Why no number of a study can stand beside a published one, after a short name; or ""."""
    if study.data_root is None:
        return "phantom: its questions are generated from few templates"
    if Path(study.checkpoint).name in SMALL:
        size = "the one that was studied is far smaller than ViLT-B/32"
        return f"small model: {size} and has seen few photographs"
    return ""


def find_own(study: Study, name: str) -> Headline | None:
    """This run's number beside a published one, by the `own` of data/literature.csv; or None."""
    if name in ANSWER_TYPES:
        return find_answer_type(study, name)
    answerers = {"prior": "type prior", "words": "words only"}
    if name in answerers:
        return headlines.find_accuracy(study, answerers[name])
    known = ("accuracy", "text_share", "removable")
    if name not in known:
        expected = ", ".join([*known, *answerers, *ANSWER_TYPES])
        raise ValueError(f"data/literature.csv, own={name!r}: expected {expected}")
    return HEADLINES[name](study)


def find_answer_type(study: Study, answer_type: str) -> Headline | None:
    """VQA accuracy on the validation questions of one of VQAv2's answer types, in percent.

    None where 02 has not been run, or where there is no such question.
    """
    scored, folder = headlines.read_table(study, "02_predictions"), study.run_dir / "dataset"
    if scored is None or not folder.is_dir():
        return None
    known = load_from_disk(folder)["validation"].select_columns(["question_id", "answer_type"])
    scored = scored.merge(known.to_pandas(), on="question_id", validate="one_to_one")
    scored = scored[scored["answer_type"] == answer_type]
    if scored.empty:
        return None
    row = headlines.average_over_images(study, scored["accuracy"], scored["image_id"])
    labels = ("accuracy", "VQA accuracy", f"{answer_type} questions", "%")
    return headlines.take_row(labels, row, scale=100)
