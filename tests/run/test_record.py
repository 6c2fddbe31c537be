"""What a run records: tables, figures and run.json."""

import base64

import pandas as pd
import pytest
from matplotlib.figure import Figure

from helpers.run import record
from helpers.run.record import save_figure, save_table
from helpers.run.settings import Study


def test_tables_and_figures_land_in_the_run(tmp_path):
    study = Study.load(runs_root=tmp_path)
    frame = pd.DataFrame({"layer": [0, 1], "share": [0.5, 0.25]})
    assert save_table(study, "shares", frame) is None, "a path at a cell's end is printed"
    table = study.run_dir / "tables" / "shares.csv"
    assert table.read_text() == "layer,share\n0,0.5\n1,0.25\n"
    figure = save_figure(study, "shares", Figure())
    assert figure == study.run_dir / "figures" / "shares.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"plain name .*'../x'"):
        save_table(study, "../x", pd.DataFrame())


def test_a_table_is_saved_whole_and_shown_as_asked(tmp_path, capsys):
    study = Study.load(runs_root=tmp_path)
    table = pd.DataFrame({"layer": [0], "low": [0.256], "high": [0.5], "n_images": [9]})
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
