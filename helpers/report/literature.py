"""This run beside the literature: published numbers of data/literature.csv, each with the run's own where it has one.

    compare_with_literature(study)      # a row a published number

Nothing is measured here; what the run does not hold is said in words.
"""

from pathlib import Path

import pandas as pd
from datasets import load_from_disk

from helpers.report.findings import say_missing
from helpers.report.headlines import (
    NOTEBOOK,
    Headline,
    find_accuracy,
    find_removable,
    find_text_share,
    read_table,
    say_value,
)
from helpers.run.study import Study
from helpers.stats.bootstrap import bootstrap_mean
from helpers.stats.cluster_robust import has_enough_data

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
