"""A run's tables written by hand, as notebooks 02 to 06 write them."""

import json

import numpy as np
import pandas as pd

from helpers.run.record import save_table
from helpers.run.settings import Study

SIZE = {"n": 40, "n_clusters": 20}


def make_run(folder, name="test", seed=3, accuracy=0.5, **settings) -> Study:
    """A study whose run folder holds the tables of all notebooks: 2 layers x 2 heads."""
    study = Study.load(run_name=name, seed=seed, runs_root=str(folder), **settings)
    write_answers(study, accuracy)
    write_attention(study)
    write_heads(study)
    write_lighter(study)
    record = {"settings": {"seed": seed, "epochs": study.epochs}}
    (study.run_dir / "run.json").write_text(json.dumps(record))
    return study


def write_answers(study: Study, accuracy: float) -> None:
    """Notebook 02: all questions and one family; 12 scored questions about six images."""
    rows = [
        ("all", "ViLT", accuracy, 0.4, 0.625, 40, 20),
        ("what", "ViLT", 0.9, 0.8, 1.0, 10, 5),
        ("all", "type prior", 0.25, 0.2, 0.3, 40, 20),
        ("all", "words only", 0.375, 0.3, 0.45, 40, 20),
    ]
    columns = ["family", "answerer", "estimate", "low", "high", "n", "images"]
    save_table(study, "02_accuracy", pd.DataFrame(rows, columns=columns))
    scored = pd.DataFrame({"question_id": range(12), "image_id": np.repeat(range(6), 2),
                           "accuracy": [1.0, 0.5] * 6})  # fmt: skip
    save_table(study, "02_predictions", scored, parquet=True)


def write_attention(study: Study) -> None:
    """Notebooks 03 and 04: two layers; three of four heads and queries tested, two below 0.05."""
    rows = [
        (layer, query, value, value - 0.05, value + 0.05, 40, 20, measure, model)
        for layer, value in enumerate((-0.3, 0.125))
        for query, measure, model in (
            ("cls", "excess", "trained"), ("cls", "excess", "untrained"),
            ("words", "excess", "trained"), ("cls", "image share", "trained"),
        )
    ]  # fmt: skip
    columns = ["layer", "query", "estimate", "low", "high", "n", "n_clusters", "measure", "model"]
    layers = pd.DataFrame(rows, columns=columns)
    layers.loc[layers["model"] == "untrained", "estimate"] = 0.9
    layers.loc[layers["query"] == "words", "estimate"] = 0.8
    save_table(study, "03_layers", layers)
    shares = pd.DataFrame({"question": range(10), "text_share": [0.5, 0.9] * 5})
    shares.to_parquet(study.folder("modality") / "shapley.parquet")


def write_heads(study: Study) -> None:
    """Notebook 05: L0H0 has two roles, L1H1 one; L1H0 costs most when put to zero."""
    passing = {(0, 0, "sink"), (0, 0, "grounding"), (1, 1, "sink")}
    heads = [(layer, head) for layer in range(2) for head in range(2)]
    roles = [{"layer": layer, "head": head, "role": role,
              "passes": (layer, head, role) in passing, **SIZE}
             for layer, head in heads for role in ("sink", "grounding")]  # fmt: skip
    save_table(study, "05_role_scores", pd.DataFrame(roles))
    drops = {"L0H0": 1.0, "L0H1": 0.5, "L1H0": 4.0, "L1H1": -1.0}
    rows = [
        {"name": name, "family": family, "drop": 2 * drop if family != "all" else drop,
         "low": drop - 1, "high": drop + 1, "told": True, "mode": mode, **SIZE}
        for mode, sign in (("zero", 1), ("mean", 9)) for family in ("all", "what")
        for name, drop in ((name, sign * drop) for name, drop in drops.items())
    ]  # fmt: skip
    save_table(study, "05_ablation", pd.DataFrame(rows))


def write_lighter(study: Study) -> None:
    """Notebook 06: one layer and one head are gone; two heads can go untrained, not three."""
    parts = pd.DataFrame(
        {"what": ["head"] * 4 + ["layer"] * 2, "part": ["L0H0", "L0H1", "L1H0", "L1H1", "L0", "L1"]}
    )
    save_table(study, "06_losses", parts)
    candidates = pd.DataFrame({"model": ["whole", "light"], "heads": [0, 1], "layers": [0, 1],
                               "difference": [0.0, -0.5], "judged": [0.0, -1.5], "low": [0.0, -2.0],
                               "high": [0.0, 0.25], "n": 20.0,
                               "chosen": [False, True]})  # fmt: skip
    save_table(study, "06_candidates", candidates)
    rows = [(model, size, fast, fast - 0.1, fast + 0.1, 31) for model, size, fast in
            (("whole", 1, 1.0), ("light", 1, 1.25),
             ("whole", 32, 1.0), ("light", 32, 1.5))]  # fmt: skip
    columns = ["model", "questions", "faster", "low", "high", "rounds"]
    save_table(study, "06_latency", pd.DataFrame(rows, columns=columns))
    lost = [("heads removed", "1", 0.5), ("heads removed", "2", 0.7), ("heads removed", "3", 1.5),
            ("heads removed", "4", 0.2), ("layers removed", "+L1", 0.0)]  # fmt: skip
    rows = [{"what": what, "removed": removed, "family": family, "drop": drop + extra,
             "low": drop + extra - 0.2, "high": drop + extra + 0.2, "told": True, **SIZE}
            for what, removed, drop in lost
            for family, extra in (("all", 0), ("what", -5))]  # fmt: skip
    save_table(study, "06_families", pd.DataFrame(rows))
