"""The study's claims, and what a run finds of each.

    lost = stats.mean_over_models(100 * accuracy_lost, image_ids)  # (model, question), (question,)
    record_claim(study, "needs-image", lost)                       # in notebook 02
    read_claims(study.run_dir)                                     # in notebook 07

A claim (`data/claims.csv`) is a sentence, a threshold and a direction, written down before the data
are seen. A run never rewords one: it gives a verdict. **supported**: the interval lies beyond the
threshold. **contradicted**: it lies on the other side. **undecided**: the threshold is in it.
**not testable**: this data or model cannot say, and why. Without a record: not measured yet.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from IPython.display import Markdown
from numpy.typing import ArrayLike

from helpers.run.cache import ROOT, read_json, write_atomic
from helpers.run.settings import Study
from helpers.stats.bootstrap import Interval
from helpers.stats.cluster_robust import has_enough_data
from helpers.stats.models import mean_over_models

CLAIMS = ROOT / "data" / "claims.csv"
COLUMNS = ["key", "notebook", "claim", "verdict", "estimate", "low", "high", "unit", "threshold",
           "relation", "random", "n_questions", "n_images", "n_models", "k_models",
           "reason"]  # fmt: skip
SHOWN = ("verdict", "estimate", "asked", "models")  # of `say_claims`, beside each claim
SHARED = ("runs_root", "bootstrap_draws", "device")  # settings that one study sets for all runs


def record_claim(
    study: Study, key: str, mean: Interval, random: ArrayLike | None = None
) -> Markdown:
    """Judge a claim of the study, keep it in run_dir/claims, and return its row to be shown.

    mean: of `stats.mean_over_models`, in the claim's unit. random: the same number of each
    random-weight model, where the claim says "more than random weights": then it has to lie beyond
    all of them as well. An estimate that is not finite is not testable. ValueError where no claim
    has that key.
    """
    claim = find_claim(key)
    if not np.isfinite(mean.estimate).all():
        return record_untestable(study, key, "nothing is lost, or nothing differs")
    threshold, random = float(claim["threshold"]), np.ravel([] if random is None else random)
    most = random.max() if len(random) else np.nan
    if claim["relation"] == ">":
        threshold = np.fmax(threshold, most)
    of_models = [judge(one, one, claim["relation"], threshold) for one in np.ravel(mean.by_model)]
    numbers = {
        "estimate": mean.estimate, "low": mean.low, "high": mean.high, "threshold": threshold,
        "random": most, "n_questions": mean.n, "n_images": mean.n_images,
        "n_models": mean.n_models, "k_models": of_models.count("supported"),
    }  # fmt: skip
    numbers = {name: float(np.ravel(value)[0]) for name, value in numbers.items()}
    known = {name: value for name, value in numbers.items() if np.isfinite(value)}
    verdict = judge(mean.low, mean.high, claim["relation"], threshold)
    return _keep(study, key, {"verdict": verdict, **known})


def judge_means(
    study: Study,
    key: str,
    values: ArrayLike | None,
    image_ids: np.ndarray,
    random: ArrayLike | None = None,
    reason: str = "too few questions",
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Markdown:
    """`record_claim` of a mean over models, or `record_untestable` where questions are too few.

    values: (model, question), in the claim's unit, NaN where a question does not tell; None: too
    few to choose on one half and judge on the other. image_ids: (question,). limits: the least and
    most that a mean can be.
    """
    if values is not None:
        values = np.asarray(values, dtype=float)
        known = np.isfinite(values.mean(0))
        if has_enough_data(known.sum(), len(np.unique(image_ids[known]))):
            mean = mean_over_models(values[:, known], image_ids[known], limits)
            return record_claim(study, key, mean, random)
    return record_untestable(study, key, reason)


def record_untestable(study: Study, key: str, reason: str) -> Markdown:
    """Keep that this data or model cannot judge a claim, and why; returns its row to be shown."""
    return _keep(study, key, {"verdict": "not testable", "reason": reason})


def stop_without_answers(study: Study, dataset: Dataset, *keys: str) -> None:
    """End a notebook in one sentence, and as done, where no question of `dataset` has an answer.

    The claims `keys`, which it would have judged, are kept as not testable. A study that has to
    train a model says itself that it cannot. Papermill takes SystemExit(0) for a good end.
    """
    if study.models and not any(dataset["answers"][:]):
        for key in keys:
            record_untestable(study, key, "no answers are known")
        print("No question has an answer: there is nothing to score from here on.")  # noqa: T201
        raise SystemExit(0)


def read_claims(run_folder: str | Path) -> pd.DataFrame:
    """Every claim of the study with what a run found, in the study's order: COLUMNS."""
    claims = pd.read_csv(CLAIMS, dtype={"notebook": str})
    known = [read_json(Path(run_folder) / "claims" / f"{key}.json") or {} for key in claims["key"]]
    found = pd.DataFrame(known, index=claims.index)
    table = claims.drop(columns=["measure", *(set(found) & set(claims))]).join(found)
    table = table.reindex(columns=COLUMNS)
    table["threshold"] = table["threshold"].fillna(claims["threshold"])
    table["verdict"] = table["verdict"].astype(object).fillna("not measured yet")
    return table


def show_claims(study: Study, *keys: str) -> Markdown:
    """What a run says of some claims (of all, if none is named), as a notebook shows it."""
    table = read_claims(study.run_dir)
    rows = table.set_index("key", drop=False).loc[list(keys)] if keys else table
    return Markdown(format_claims(rows, [*SHOWN, "questions"]))


def format_claims(table: pd.DataFrame, columns: Sequence[str] = SHOWN) -> str:
    """Rows of `read_claims` as a Markdown table, "" without any: claims, and columns of say_claims.

    Plain Markdown, so that GitHub, Colab and nbconvert each draw it in their own colours.
    """
    said = say_claims(table)[["claim", *columns]].replace(r"\|", "/", regex=True)
    lines = [
        "|:---" * said.shape[1] + "|",
        *("| " + " | ".join(row) + " |" for row in said.to_numpy()),
    ]
    return "\n".join([f"| {' | '.join(said)} |", *lines]) if len(table) else ""


def say_claims(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `read_claims` as texts, such as a table has; "" where nothing was measured.

    Columns: claim, verdict (bold), estimate, asked (of the estimate: "> 20", "within ±0.1"),
    models (in how many the claim holds: "4 of 5") and questions.
    """
    words = {">": "> ", "<": "< ", "within": "within ±"}
    asked = zip(table["relation"].map(words), table["threshold"], strict=True)
    models = [
        f"{k:.0f} of {n:.0f}" for k, n in zip(table["k_models"], table["n_models"], strict=True)
    ]
    said = {
        "claim": table["claim"],
        "verdict": [f"**{verdict}**" for verdict in table["verdict"]],
        "estimate": [say_estimate(row) for _, row in table.iterrows()],
        "asked": [f"{word}{threshold:.3g}" for word, threshold in asked],
        "models": np.where(table["n_models"].isna(), "", models),
        "questions": ["" if np.isnan(n) else f"{n:,.0f}" for n in table["n_questions"]],
    }
    return pd.DataFrame(said, index=table.index)


def say_estimate(row: pd.Series) -> str:
    """An estimate with its interval and unit, "12.3 [10.1, 14.5] points"; else the reason."""
    if np.isnan(row["estimate"]):
        return row["reason"] if isinstance(row["reason"], str) else ""
    form = ".1f" if row["unit"] in ("points", "%") else ".2f"
    low, high = (f"{row[bound]:{form}}" for bound in ("low", "high"))
    return f"{row['estimate']:{form}} [{low}, {high}] {row['unit']}"


def judge(low: float, high: float, relation: str, threshold: float) -> str:
    """supported, contradicted or undecided: where an interval lies beside a threshold.

    relation: ">" or "<" the threshold, or "within" plus and minus it. Bounds of NaN decide nothing.
    """
    holds, fails = {
        ">": (low > threshold, high < threshold),
        "<": (high < threshold, low > threshold),
        "within": (-threshold < low and high < threshold, low > threshold or high < -threshold),
    }[relation]
    return "supported" if holds else "contradicted" if fails else "undecided"


def find_claim(key: str) -> pd.Series:
    """A claim's row in data/claims.csv; ValueError that lists the keys where there is none."""
    claims = pd.read_csv(CLAIMS, dtype={"notebook": str}).set_index("key")
    if key not in claims.index:
        raise ValueError(f"there is no claim {key!r}; known: {', '.join(claims.index)}")
    return claims.loc[key]


def _keep(study: Study, key: str, row: dict) -> Markdown:
    find_claim(key)
    path = study.folder("claims") / f"{key}.json"
    write_atomic(path, json.dumps(row, indent=1) + "\n")
    return show_claims(study, key)


def find_runs(study: Study, names: Sequence[str]) -> list[Study]:
    """The named runs beside this one (same runs_root), with the settings that they record.

    ValueError where a run is named twice or holds no claims, with the runs that do.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"RUNS={list(names)}: a run is named twice, which would hide the spread")
    own = {field.name for field in fields(Study)} - {*SHARED, "run_name"}
    found = []
    for name in names:
        run = replace(study, run_name=name)
        if not (run.run_dir / "claims").is_dir():
            known = sorted(path.parent.name for path in run.run_dir.parent.glob("[!.]*/claims"))
            known = f"Runs that do: {', '.join(known) or 'none'}"
            raise ValueError(f"RUNS: {name!r} holds no claims in {study.runs_root}. {known}")
        recorded = (read_json(run.run_dir / "run.json") or {}).get("settings", {})
        found.append(replace(run, **{key: recorded[key] for key in own & set(recorded)}))
    return found


def compare_claims(runs: Sequence[Study]) -> pd.DataFrame:
    """Every claim that some run has judged, a row a run: run, seed, and what `read_claims` has."""
    tables = (read_claims(run.run_dir).assign(run=run.run_name, seed=run.seed) for run in runs)
    table = pd.concat(tables, ignore_index=True)
    judged = table.loc[table["verdict"] != "not measured yet", "key"]
    columns = ["run", "seed", "key", "claim", "verdict", "estimate", "low", "high", "unit",
               "threshold", "relation", "reason"]  # fmt: skip
    return table.loc[table["key"].isin(judged), columns].reset_index(drop=True)


def tabulate_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Of `compare_claims`, a row a claim and a column a run: "supported: 12.3 [10.1, 14.5] %"."""
    says = [f"{row['verdict']}: {say_estimate(row)}".strip(": ") for _, row in table.iterrows()]
    wide = table.assign(says=says).set_index(["claim", "run"])["says"].unstack()  # noqa: PD010
    return wide.loc[table["claim"].unique(), table["run"].unique()].reset_index()


def list_differences(runs: Sequence[Study]) -> pd.DataFrame:
    """The settings in which the runs differ, a column each and a row a run ("run")."""
    settings = pd.DataFrame([asdict(run) for run in runs]).rename(columns={"run_name": "run"})
    settings = settings.drop(columns="runs_root")
    differing = [name for name in settings if settings[name].astype(str).nunique() > 1]
    return settings[["run", *(name for name in differing if name != "run")]]
