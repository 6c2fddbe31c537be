"""Headline numbers of a run: one function a headline, each of which reads the run's own tables.

    for headline in headlines.read_headlines(study):
        print(headline.label, headlines.say_value(headline))

A headline is None where its notebook has not been run, and its value NaN where the questions are
too few to tell.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.report.sentences import (
    Row,
    count_of,
    say_interval,
    say_number,
    say_range,
    say_tolerated,
)
from helpers.run.settings import Study
from helpers.stats.bootstrap import bootstrap_mean
from helpers.stats.cluster_robust import has_enough_data

NAN = float("nan")


class Headline(NamedTuple):
    """A number of one run, with its 95 % interval over images (NaN without one)."""

    name: str
    label: str  # what the number is, in any run
    detail: str  # what this run adds to it: which head, out of how many
    unit: str
    value: float
    low: float = NAN
    high: float = NAN
    n: float = NAN  # questions; NaN if the number is not of questions
    n_clusters: float = NAN  # images


def read_table(study: Study, name: str) -> pd.DataFrame | None:
    """A table of the run (tables/<name>.csv); None where its notebook has not been run."""
    path = study.run_dir / "tables" / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


HEADLINES: dict[str, Callable[..., Headline | None]] = {}
NOTEBOOK: dict[str, str] = {}  # that a headline comes from: "02"


def reads(name: str, notebook: str, *tables: str) -> Callable:
    """List a function of (study, *tables) as a headline: None where a table is missing."""

    def register(find: Callable) -> Callable:
        @wraps(find)
        def find_headline(study: Study, *options: str) -> Headline | None:
            found = [read_table(study, table) for table in tables]
            missing = any(table is None for table in found)
            return None if missing else find(study, *found, *options)

        HEADLINES[name], NOTEBOOK[name] = find_headline, notebook
        return find_headline

    return register


@reads("accuracy", "02", "02_accuracy")
def find_accuracy(study: Study, table: pd.DataFrame, answerer: str = "ViLT") -> Headline:
    """VQA accuracy on all validation questions, in percent; answerer: as in 02_accuracy."""
    row = table[(table["family"] == "all") & (table["answerer"] == answerer)].iloc[0]
    row = row.rename({"images": "n_clusters"})
    return take_row(("accuracy", "VQA accuracy", answerer, "%"), row, scale=100)


@reads("excess", "03", "03_layers")
def find_excess(study: Study, table: pd.DataFrame) -> Headline:
    """Excess image share of [CLS] in the last layer, which the answer is read from."""
    rows = table.query("query == 'cls' and measure == 'excess' and model == 'trained'")
    row = rows.loc[rows["layer"].idxmax()]
    detail = f"L{row['layer']}, mean over heads; uniform attention: 0"
    label = "excess image share of [CLS], last layer"
    return take_row(("excess", label, detail, "points"), row, scale=100)


@reads("telling", "04", "04_omnibus")
def find_telling(study: Study, table: pd.DataFrame) -> Headline:
    """Share of heads and queries in which question families differ (omnibus, corrected)."""
    tested = table.dropna(subset=["p_corrected"])
    value = 100 * (tested["p_corrected"] < 0.05).mean()  # NaN if nothing could be tested
    size = tested.iloc[0] if len(tested) else {"n": 0, "n_clusters": 0}
    label = "heads and queries that tell question families apart"
    return _count(("telling", label, f"of {len(tested)} tested", "%"), value, size)


@reads("text_share", "04", "02_predictions")
def find_text_share(study: Study, predictions: pd.DataFrame) -> Headline | None:
    """Textual share of MM-SHAP (T-SHAP: Parcalabescu and Frank 2023), mean over its questions."""
    path = study.run_dir / "modality/shapley.parquet"
    if not path.is_file():
        return None
    shares = pd.read_parquet(path, columns=["question", "text_share"])  # question: its row in 02's
    images = predictions["image_id"].to_numpy()[shares["question"]]
    row = average_over_images(study, shares["text_share"], images)
    labels = ("text_share", "textual share (MM-SHAP)", "the image has the rest", "%")
    return take_row(labels, row, scale=100)


def average_over_images(study: Study, values: Sequence[float], images: Sequence[int]) -> dict:
    """Mean of questions' values with its interval over images; NaN where they are too few."""
    row = bootstrap_mean(values, images, study.bootstrap_draws, study.seed)._asdict()
    if not has_enough_data(row["n"], row["n_clusters"]):
        row |= dict.fromkeys(("estimate", "low", "high"), NAN)
    return row


@reads("roles", "05", "05_role_scores")
def find_roles(study: Study, table: pd.DataFrame) -> Headline:
    """Number of heads with at least one role."""
    size = table[["n", "n_clusters"]].max()
    with_role = table.groupby(["layer", "head"])["passes"].any()
    value = with_role.sum() if has_enough_data(*size) else NAN
    detail = f"of {len(with_role)} heads, against heads with random weights"
    return _count(("roles", "heads with a role", detail, "heads"), value, size)


@reads("costliest", "05", "05_ablation")
def find_costliest(study: Study, table: pd.DataFrame) -> Headline:
    """VQA accuracy lost without the one head whose removal costs most (its output put to zero)."""
    rows = table[(table["mode"] == "zero") & (table["family"] == "all")]
    row = rows.loc[rows["drop"].idxmax()].to_dict()
    detail = f"{row['name']}, put to zero" if row["told"] else "put to zero"
    if not row["told"]:
        row |= dict.fromkeys(("drop", "low", "high"), NAN)
    label = "accuracy lost without the costliest head"
    return take_row(("costliest", label, detail, "points"), row, "drop")


@reads("removed", "06", "06_candidates", "06_losses")
def find_removed(study: Study, candidates: pd.DataFrame, losses: pd.DataFrame) -> Headline:
    """Share of heads, those of whole layers among them, that the selected model does without.

    One half of the images selected it; the detail says what it loses on the other half.
    """
    chosen, total = candidates[candidates["chosen"]].iloc[0], losses["what"].value_counts()
    gone = chosen["heads"] + chosen["layers"] * total["head"] / total["layer"]
    value = NAN if np.isnan(chosen["difference"]) else 100 * gone / total["head"]
    change = {"estimate": chosen["judged"], "low": chosen["low"], "high": chosen["high"]}
    verdict = say_tolerated(change, study.prune_tolerance)
    detail = f"“{chosen['model']}” was selected on one half of the images and on the other loses "
    detail += f"{say_range(change)} of accuracy, {verdict}"
    if chosen["model"] == "whole":
        detail = "the whole model stays"
    label = "heads that the selected model does without"
    return _count(("removed", label, detail, "%"), value, {"n": chosen["n"], "n_clusters": NAN})


@reads("removable", "06", "06_families", "06_losses")
def find_removable(study: Study, table: pd.DataFrame, losses: pd.DataFrame) -> Headline:
    """Share of heads that can be put to zero within the tolerated loss, without training.

    In the order by ablation, the most heads up to which every step's loss is within the tolerance,
    its interval included; the detail says up to how many it is undecided.
    """
    n_heads = (losses["what"] == "head").sum()
    rows = table[(table["what"] == "heads removed") & (table["family"] == "all")]
    rows = rows.assign(removed=rows["removed"].astype(int)).sort_values("removed")

    def count_within(bound: str) -> float:
        within = (rows[bound] <= study.prune_tolerance).cummin()
        return 100 * rows["removed"].where(within, 0).max() / n_heads

    detail = f"within {study.prune_tolerance:g} point, in the order by ablation, of {n_heads} heads"
    detail += f"; undecided up to {count_within('low'):.0f} %"
    value = count_within("high") if rows["told"].all() else NAN
    labels = ("removable", "heads removable without training", detail, "%")
    return _count(labels, value, rows[["n", "n_clusters"]].max())


@reads("speed", "06", "06_candidates", "06_latency")
def find_speed(study: Study, candidates: pd.DataFrame, latency: pd.DataFrame) -> Headline:
    """How many times as fast as the whole model the selected one is, on many questions at once."""
    chosen, many = candidates[candidates["chosen"]].iloc[0], latency["questions"].max()
    rows = latency[(latency["model"] == chosen["model"]) & (latency["questions"] == many)]
    row = rows.iloc[0].to_dict() | {"n": NAN, "n_clusters": NAN}
    detail = f"{many} questions at once, median of {row['rounds']} rounds"
    if np.isnan(chosen["difference"]):
        row |= dict.fromkeys(("faster", "low", "high"), NAN)
    if chosen["model"] == "whole":  # a time against itself
        row |= {"low": NAN, "high": NAN}
        detail = "it is the whole one"
    label = "speed of the selected model against the whole one"
    return take_row(("speed", label, detail, "times"), row, "faster")


def take_row(labels: tuple, row: Row, column: str = "estimate", scale: float = 1) -> Headline:
    """A headline of a table's row. labels: name, label, detail, unit."""
    values = (scale * float(row[key]) for key in (column, "low", "high"))
    return Headline(*labels, *values, float(row["n"]), float(row["n_clusters"]))


def _count(labels: tuple, value: float, size: Row) -> Headline:
    """A headline without an interval."""
    return Headline(*labels, float(value), NAN, NAN, float(size["n"]), float(size["n_clusters"]))


def read_headlines(study: Study, names: Sequence[str] = tuple(HEADLINES)) -> list[Headline]:
    """The headlines of a run, in order; those of notebooks not yet run are left out."""
    found = (HEADLINES[name](study) for name in names)
    return [headline for headline in found if headline is not None]


def say_value(headline: Headline) -> str:
    """A headline's number with its interval: "98.9 % [98.6, 99.2]"."""
    if np.isnan(headline.value):
        return "not enough questions to tell"
    digits = {"heads": 0, "times": 2}.get(headline.unit, 1)
    style = {"digits": digits, "sign": headline.name == "excess"}
    unit = "times as fast" if headline.unit == "times" else headline.unit
    unit = "head" if unit == "heads" and headline.value == 1 else unit
    interval = "" if np.isnan(headline.low) else f" {say_interval(headline._asdict(), **style)}"
    return f"{say_number(headline.value, **style)} {unit}{interval}"


def say_size(headline: Headline) -> str:
    """How many questions about how many images a headline rests on; "" where on none."""
    if np.isnan(headline.n):
        return ""
    images = headline.n_clusters
    about = "" if np.isnan(images) else f" about {count_of(int(images), 'image')}"
    return f"n = {headline.n:,.0f} questions{about}"
