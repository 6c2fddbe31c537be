"""Headline numbers of a run as numbers: one function a headline, each of which reads the run's own tables.

    for headline in read_headlines(study):
        print(headline.label, say_value(headline))

A headline is None where its notebook has not been run, and its value NaN where the questions are too few to tell.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.report.sentences import count_of, say_interval, say_number
from helpers.run.settings import Study
from helpers.stats.bootstrap import bootstrap_mean
from helpers.stats.cluster_robust import has_enough_data


class Headline(NamedTuple):
    """A number of one run. low, high: its 95 % interval over images, NaN without one; n: NaN if not of questions."""

    name: str
    label: str  # what the number is, in any run
    detail: str  # what this run adds to it: which head, out of how many
    value: float
    low: float
    high: float
    n: float  # questions
    n_clusters: float  # images
    unit: str


def read_table(study: Study, name: str) -> pd.DataFrame | None:
    """A table of the run (tables/<name>.csv); None where the notebook that writes it has not been run."""
    path = study.run_dir / "tables" / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def find_accuracy(study: Study, answerer: str = "ViLT") -> Headline | None:
    """VQA accuracy on all validation questions, in percent. answerer: as in 02_accuracy ("type prior", ...)."""
    table = read_table(study, "02_accuracy")
    if table is None:
        return None
    row = table[(table["family"] == "all") & (table["answerer"] == answerer)].iloc[0]
    row = row.rename({"images": "n_clusters"})
    return _take(row, "accuracy", "VQA accuracy", answerer, "%", scale=100)


def find_excess(study: Study) -> Headline | None:
    """Excess image share of [CLS] (text query, image key) in the last layer, which the answer is read from."""
    table = read_table(study, "03_layers")
    if table is None:
        return None
    rows = table[
        (table["query"] == "cls") & (table["measure"] == "excess") & (table["model"] == "trained")
    ]
    row = rows.loc[rows["layer"].idxmax()]
    detail = f"L{row['layer']}, mean over heads; uniform attention: 0"
    return _take(
        row, "excess", "excess image share of [CLS], last layer", detail, "points", scale=100
    )


def find_telling(study: Study) -> Headline | None:
    """Share of heads and queries in which question families differ (omnibus test, corrected p below 0.05)."""
    table = read_table(study, "04_omnibus")
    if table is None:
        return None
    tested = table.dropna(subset=["p_corrected"])
    value = 100 * (tested["p_corrected"] < 0.05).mean()  # NaN if nothing could be tested
    most = tested.iloc[0] if len(tested) else {"n": 0, "n_clusters": 0}
    label, detail = (
        "heads and queries that tell question families apart",
        f"of {len(tested)} tested",
    )
    return _count("telling", label, detail, value, most["n"], most["n_clusters"], "%")


def find_text_share(study: Study) -> Headline | None:
    """Textual share of MM-SHAP (T-SHAP: Parcalabescu and Frank 2023), mean over its questions."""
    path = study.run_dir / "modality" / "shapley.parquet"
    predictions = read_table(study, "02_predictions")
    if predictions is None or not path.is_file():
        return None
    shares = pd.read_parquet(
        path, columns=["question", "text_share"]
    )  # question: row of the validation part
    images = predictions["image_id"].to_numpy()[shares["question"]]
    interval = bootstrap_mean(shares["text_share"], images, study.bootstrap_draws, study.seed)
    if not has_enough_data(interval.n, interval.n_clusters):
        interval = interval._replace(estimate=np.nan, low=np.nan, high=np.nan)
    detail = "the image has the rest"
    return _take(
        interval._asdict(), "text_share", "textual share (MM-SHAP)", detail, "%", scale=100
    )


def find_roles(study: Study) -> Headline | None:
    """Number of heads with at least one role that no untrained head shows."""
    table = read_table(study, "05_role_scores")
    if table is None:
        return None
    n, n_clusters = table["n"].max(), table["n_clusters"].max()
    with_role = table.groupby(["layer", "head"])["passes"].any()
    value = float(with_role.sum()) if has_enough_data(n, n_clusters) else np.nan
    detail = f"of {len(with_role)} heads, against all untrained heads"
    return _count("roles", "heads with a role", detail, value, n, n_clusters, "heads")


def find_costliest(study: Study) -> Headline | None:
    """VQA accuracy lost without the one head whose removal costs most (its output put to zero)."""
    table = read_table(study, "05_ablation")
    if table is None:
        return None
    rows = table[(table["mode"] == "zero") & (table["family"] == "all")]
    row = rows.loc[rows["drop"].idxmax()]
    told = {} if row["told"] else dict.fromkeys(("drop", "low", "high"), np.nan)
    detail = f"{row['name']}, put to zero" if row["told"] else "put to zero"
    row = {**row, **told, "estimate": told.get("drop", row["drop"])}
    return _take(row, "costliest", "accuracy lost without the costliest head", detail, "points")


def find_removed(study: Study) -> Headline | None:
    """Share of heads that the lightest model within the tolerated loss does without, whole layers included.

    It was chosen on one half of the images; what it loses on the other is said in the detail.
    """
    chosen, total = find_lightest(study), count_parts(study)
    if chosen is None or total is None:
        return None
    gone = chosen["heads"] + chosen["layers"] * total["head"] / total["layer"]
    value = np.nan if np.isnan(chosen["difference"]) else 100 * gone / total["head"]
    label = "heads that the lightest model within the tolerance does without"
    judged = f"{say_number(chosen['judged'], sign=True)} points {say_interval(chosen)}"
    detail = f"“{chosen['model']}”; {judged} on the images that it was not chosen on"
    if chosen["model"] == "whole":
        detail = "the whole model stays"
    return _count("removed", label, detail, value, chosen["n"], np.nan, "%")


def find_speed(study: Study) -> Headline | None:
    """How many times as fast as the whole model the lightest one within the tolerated loss is, on many questions."""
    chosen, table = find_lightest(study), read_table(study, "06_latency")
    if chosen is None or table is None:
        return None
    many = table["questions"].max()
    row = (
        table[(table["model"] == chosen["model"]) & (table["questions"] == many)].iloc[0].to_dict()
    )
    if np.isnan(chosen["difference"]):
        row |= dict.fromkeys(("faster", "low", "high"), np.nan)
    row |= {"estimate": row["faster"], "n": np.nan, "n_clusters": np.nan}
    detail = f"{many} questions at once, median of {row['rounds']} rounds"
    if chosen["model"] == "whole":  # a time against itself
        row |= {"low": np.nan, "high": np.nan}
        detail = "it is the whole one"
    return _take(row, "speed", "speed of the lightest model against the whole one", detail, "times")


def find_removable(study: Study) -> Headline | None:
    """Share of heads that can be put to zero within the tolerated loss, without training (order by ablation).

    The most heads up to which no step of the curve loses more than the tolerance; interval: none.
    """
    table, total = read_table(study, "06_families"), count_parts(study)
    if table is None or total is None:
        return None
    rows = table[(table["what"] == "heads removed") & (table["family"] == "all")]
    rows = rows.assign(removed=rows["removed"].astype(int)).sort_values("removed")
    within = (rows["drop"] <= study.prune_tolerance).cummin()
    value = (
        100 * rows["removed"].where(within, 0).max() / total["head"]
        if rows["told"].all()
        else np.nan
    )
    label = "heads removable without training"
    detail = f"within {study.prune_tolerance:g} point, in the order by ablation, of {total['head']} heads"
    return _count("removable", label, detail, value, rows["n"].max(), rows["n_clusters"].max(), "%")


def find_lightest(study: Study) -> dict | None:
    """The row of the chosen model in 06_candidates; None where 06 has not been run. difference: NaN if not to be told."""
    table = read_table(study, "06_candidates")
    return None if table is None else table[table["chosen"]].iloc[0].to_dict()


def count_parts(study: Study) -> pd.Series | None:
    """How many heads ("head") and layers ("layer") the whole model has, of 06_losses; None where 06 has not been run."""
    table = read_table(study, "06_losses")
    return None if table is None else table["what"].value_counts()


HEADLINES: dict[str, Callable[[Study], Headline | None]] = {
    "accuracy": find_accuracy, "excess": find_excess, "telling": find_telling, "text_share": find_text_share,
    "roles": find_roles, "costliest": find_costliest, "removed": find_removed, "removable": find_removable,
    "speed": find_speed,
}  # fmt: skip
NOTEBOOK = {
    "accuracy": "02", "excess": "03", "telling": "04", "text_share": "04", "roles": "05", "costliest": "05",
    "removed": "06", "removable": "06", "speed": "06",
}  # fmt: skip


def read_headlines(study: Study, names=tuple(HEADLINES)) -> list[Headline]:
    """The headlines of a run that its tables hold, in order; those of notebooks not yet run are left out."""
    found = (HEADLINES[name](study) for name in names)
    return [headline for headline in found if headline is not None]


def say_value(headline: Headline) -> str:
    """A headline's number with its interval: "98.9 % [98.6, 99.2]"."""
    digits = {"heads": 0, "times": 2}.get(headline.unit, 1)
    if np.isnan(headline.value):
        return "not enough questions to tell"
    style = {"digits": digits, "sign": headline.name == "excess"}
    unit = {"times": "times as fast"}.get(headline.unit, headline.unit)
    unit = "head" if unit == "heads" and headline.value == 1 else unit
    said = f"{say_number(headline.value, **style)} {unit}"
    return said if np.isnan(headline.low) else f"{said} {say_interval(headline._asdict(), **style)}"


def say_size(headline: Headline) -> str:
    """How many questions about how many images a headline rests on; empty where it rests on none."""
    if np.isnan(headline.n):
        return ""
    images = headline.n_clusters
    about = "" if np.isnan(images) else f" about {count_of(int(images), 'image')}"
    return f"n = {headline.n:,.0f} questions{about}"


def _take(row, name: str, label: str, detail: str, unit: str, scale: float = 1) -> Headline:
    """A headline of a row with estimate, low, high, n and n_clusters."""
    values = (scale * float(row[key]) for key in ("estimate", "low", "high"))
    return Headline(name, label, detail, *values, float(row["n"]), float(row["n_clusters"]), unit)


def _count(name: str, label: str, detail: str, value, n, n_clusters, unit: str) -> Headline:
    """A headline without an interval."""
    return Headline(
        name, label, detail, float(value), np.nan, np.nan, float(n), float(n_clusters), unit
    )
