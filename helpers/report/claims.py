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
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown
from numpy.typing import ArrayLike

from helpers.run.cache import ROOT, read_json, write_atomic
from helpers.run.settings import Study
from helpers.stats.cluster_robust import has_enough_data
from helpers.stats.models import ModelMean, mean_over_models

CLAIMS = ROOT / "data" / "claims.csv"
COLUMNS = ["key", "notebook", "claim", "verdict", "estimate", "low", "high", "unit", "threshold",
           "relation", "random", "n_questions", "n_images", "n_models", "k_models",
           "reason"]  # fmt: skip
SHOWN = ("verdict", "estimate", "asked", "models")  # of SAYS, beside each claim


def record_claim(
    study: Study, key: str, mean: ModelMean, random: ArrayLike | None = None
) -> Markdown:
    """Judge a claim of the study, keep it in run_dir/claims, and return its row to be shown.

    mean: of `stats.mean_over_models`, in the claim's unit. random: the same number of each
    random-weight model, where the claim says "more than random weights": then it has to lie beyond
    all of them as well. ValueError where no claim has that key.
    """
    claim = find_claim(key)
    threshold, random = float(claim["threshold"]), np.ravel([] if random is None else random)
    most = random.max() if len(random) else np.nan
    if claim["relation"] == ">":
        threshold = np.fmax(threshold, most)
    by_model = np.ravel(mean.by_model).astype(float)
    verdict = judge(mean.low, mean.high, claim["relation"], threshold)
    row = {
        "verdict": verdict, "estimate": mean.estimate, "low": mean.low, "high": mean.high,
        "threshold": threshold, "random": most, "n_questions": mean.n, "n_images": mean.n_images,
        "n_models": mean.n_models,
        "k_models": sum(holds(value, claim["relation"], threshold) for value in by_model),
    }  # fmt: skip
    return _keep(study, key, {name: _plain(value) for name, value in row.items()})


def judge_means(
    study: Study,
    key: str,
    values: ArrayLike | None,
    image_ids: np.ndarray,
    random: ArrayLike | None = None,
    reason: str = "too few questions",
) -> Markdown:
    """`record_claim` of a mean over models, or `record_untestable` where questions are too few.

    values: (model, question), in the claim's unit, NaN where a question does not tell; None: too
    few to choose on one half and judge on the other. image_ids: (question,).
    """
    if values is not None:
        values = np.asarray(values, dtype=float)
        known = np.isfinite(values.mean(0))
        if has_enough_data(known.sum(), len(np.unique(image_ids[known]))):
            mean = mean_over_models(values[:, known], image_ids[known])
            return record_claim(study, key, mean, random)
    return record_untestable(study, key, reason)


def record_untestable(study: Study, key: str, reason: str) -> Markdown:
    """Keep that this data or model cannot judge a claim, and why; returns its row to be shown."""
    return _keep(study, key, {"verdict": "not testable", "reason": reason})


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
    """Rows of `read_claims` as a Markdown table, "" without any: the claims, and some of SAYS.

    Plain Markdown, so that GitHub, Colab and nbconvert each draw it in their own colours.
    """
    names = ["claim", *columns]
    lines = [f"| {' | '.join(names)} |", "|:---" * len(names) + "|"]
    for _, row in table.iterrows():
        cells = [row["claim"], *(SAYS[name](row) for name in columns)]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) if len(table) else ""


def say_verdict(row: pd.Series) -> str:
    """A verdict in bold."""
    return f"**{row['verdict']}**"


def say_questions(row: pd.Series) -> str:
    """How many questions a number rests on; "" where it was not measured."""
    return "" if np.isnan(row["n_questions"]) else f"{row['n_questions']:,.0f}"


def say_threshold(row: pd.Series) -> str:
    """What a claim asks of its number: "> 20", "within ±0.1"."""
    relation = "within ±" if row["relation"] == "within" else f"{row['relation']} "
    return f"{relation}{row['threshold']:.3g}"


def say_models(row: pd.Series) -> str:
    """In how many models a claim holds, "4 of 5"; "" where it was not measured."""
    known = not np.isnan(row["n_models"])
    return f"{row['k_models']:.0f} of {row['n_models']:.0f}" if known else ""


def say_estimate(row: pd.Series) -> str:
    """An estimate with its interval and unit, "12.3 [10.1, 14.5] points"; else the reason."""
    if np.isnan(row["estimate"]):
        return row["reason"] if isinstance(row["reason"], str) else ""
    form = ".1f" if row["unit"] in ("points", "%") else ".2f"
    low, high = (f"{row[bound]:{form}}" for bound in ("low", "high"))
    return f"{row['estimate']:{form}} [{low}, {high}] {row['unit']}"


SAYS = {  # columns of a table of claims
    "verdict": say_verdict,
    "estimate": say_estimate,
    "asked": say_threshold,  # of the estimate
    "models": say_models,
    "questions": say_questions,
}


def judge(low: float, high: float, relation: str, threshold: float) -> str:
    """supported, contradicted or undecided: where an interval lies beside a threshold.

    relation: ">" or "<" the threshold, or "within" plus and minus it. Bounds of NaN decide nothing.
    """
    if relation == "within":
        if -threshold < low and high < threshold:
            return "supported"
        return "contradicted" if low > threshold or high < -threshold else "undecided"
    if relation == "<":
        low, high, threshold = -high, -low, -threshold
    if low > threshold:
        return "supported"
    return "contradicted" if high < threshold else "undecided"


def holds(value: float, relation: str, threshold: float) -> bool:
    """Whether one model's own number lies on the claimed side of the threshold."""
    return judge(value, value, relation, threshold) == "supported"


def find_claim(key: str) -> pd.Series:
    """A claim's row in data/claims.csv; ValueError that lists the keys where there is none."""
    claims = pd.read_csv(CLAIMS, dtype={"notebook": str}).set_index("key")
    if key not in claims.index:
        raise ValueError(f"there is no claim {key!r}; known: {', '.join(claims.index)}")
    return claims.loc[key]


def _plain(value: object) -> object:
    """A number as JSON has it: None for NaN."""
    if isinstance(value, str):
        return value
    number = float(np.ravel(value)[0])
    return number if np.isfinite(number) else None


def _keep(study: Study, key: str, row: dict) -> Markdown:
    find_claim(key)
    path = study.folder("claims") / f"{key}.json"
    write_atomic(path, json.dumps(row, indent=1) + "\n")
    return show_claims(study, key)
