"""What a run records: tables, figures and run.json."""

import base64
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from helpers.run import record
from helpers.run.record import record_run, save_figure, save_table
from helpers.run.settings import Study


def test_tables_and_figures_land_in_the_run(tmp_path):
    study = Study.load(runs_root=tmp_path)
    table = save_table(study, "shares", pd.DataFrame({"layer": [0, 1], "share": [0.5, 0.25]}))
    assert table == study.run_dir / "tables" / "shares.csv"
    assert table.read_text() == "layer,share\n0,0.5\n1,0.25\n"
    figure = save_figure(study, "shares", Figure())
    assert figure == study.run_dir / "figures" / "shares.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"plain name .*'../x'"):
        save_table(study, "../x", pd.DataFrame())


def test_a_table_is_saved_whole_and_shown_as_asked(tmp_path, capsys):
    study = Study.load(runs_root=tmp_path)
    table = pd.DataFrame({"layer": [0], "low": [0.256], "high": [0.5], "n_clusters": [9]})
    record.show(study, "all", table)
    record.show(study, "some", table, columns={"low": "from", "layer": "after layer"})
    shown = capsys.readouterr().out.split()
    assert shown == ["95", "%", "from", "to", "layer", "0", "0.26", "0.5",
                     "after", "layer", "from", "0.26", "0"]  # fmt: skip
    for name in ("all", "some"):
        saved = pd.read_csv(study.run_dir / "tables" / f"{name}.csv")
        pd.testing.assert_frame_equal(saved, table)


def test_a_figure_is_shown_as_it_is_saved(tmp_path, monkeypatch):
    study, displayed = Study.load(runs_root=tmp_path), []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    record.show(study, "shares", Figure())
    (shown,) = displayed
    png = (study.run_dir / "figures" / "shares.png").read_bytes()
    assert shown._repr_mimebundle_()[0]["image/png"] == base64.b64encode(png).decode()


def test_record_run_adds_steps(tmp_path):
    study = Study.load(runs_root=tmp_path, device="cpu")
    record_run(study, steps={"01_setup": 1.5})
    path = record_run(study, steps={"02_finetune": 20})
    written = json.loads(path.read_text())
    assert path == study.run_dir / "run.json"
    assert written["steps"] == {"01_setup": 1.5, "02_finetune": 20}
    assert written["settings"] == json.loads(json.dumps(dataclasses.asdict(study)))
    assert written["device"] == "cpu"
    assert written["versions"]["numpy"] == np.__version__
    assert {"python", "torch", "transformers", "datasets", "commit"} < set(written["versions"])


@pytest.mark.parametrize("left", ["", '{"steps": {"01_se', "[]"])
def test_a_cut_record_of_the_run_is_begun_anew(tmp_path, left):
    study = Study.load(runs_root=tmp_path, device="cpu")
    (study.folder() / "run.json").write_text(left)
    written = json.loads(record_run(study, steps={"01_setup": 1.5}).read_text())
    assert written["steps"] == {"01_setup": 1.5}
