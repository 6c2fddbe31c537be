"""Findings are kept, and the report says what a run holds and what it does not hold."""

import io

import numpy as np
import pytest
from handmade import make_run
from IPython.display import Image as ShownImage
from PIL import Image

from helpers.report.findings import (
    CLAUSES,
    FIGURE_WIDTH,
    NOTEBOOKS,
    PARTS,
    read_findings,
    show_figure,
    show_findings,
    show_headlines,
    state_finding,
    summarise,
)
from helpers.report.headlines import HEADLINES, read_table
from helpers.run.settings import Study, save_table


@pytest.fixture
def study(tmp_path):
    """A run in which all notebooks but 06 have given their answer."""
    study = make_run(tmp_path)
    for path in study.folder("tables").glob("06_*.csv"):
        path.unlink()
    for number in ("01", "02", "03", "04", "05"):
        state_finding(study, number, "answer", f"answer of {number}")
    return study


def make_png(width=900, height=60) -> bytes:
    """A picture of noise: no palette suits it."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def test_findings_are_kept_in_order_and_restated_in_place(tmp_path):
    study = Study.load(run_name="new", runs_root=str(tmp_path))
    assert read_findings(study) == {}
    state_finding(study, "05", "roles", "first")
    state_finding(study, "03", "answer", "an “answer”")
    shown = state_finding(study, "05", "roles", "second")
    assert shown.data == "**Finding.** second"
    kept = [("03.answer", "an “answer”"), ("05.roles", "second")]
    assert list(read_findings(study).items()) == kept


def test_a_headline_has_its_interval_n_run_and_seed(study):
    assert show_headlines(study, "accuracy").data == (
        "**50.0 % [40.0, 62.5]**<br>VQA accuracy (ViLT; n = 40 questions about 20 images, "
        "run test, seed 3)"
    )
    both = show_headlines(study, "heads").data.split("\n\n")
    assert [each[:6] for each in both] == ["**2 he", "**4.0 "]


def test_a_missing_notebook_is_named_once(study):
    said = show_headlines(study, "optimise").data
    assert said == "No number: 06 has not been run."


def test_findings_are_listed_as_chosen_and_absent_ones_left_out(study):
    state_finding(study, "03", "trust", "trust this")
    state_finding(study, "03", "boxes", "in the box")
    shown = show_findings(study, "layers").data
    assert shown == "- in the box `03.boxes`\n- trust this `03.trust`"
    assert show_findings(study, "optimise").data == "No finding: 06 has not been run."


def test_a_figure_is_shown_small_and_a_missing_one_explained(study):
    (study.folder("figures") / "03_layers.png").write_bytes(make_png())
    shown = show_figure(study, "layers")
    assert isinstance(shown, ShownImage)
    assert Image.open(io.BytesIO(shown.data)).width == FIGURE_WIDTH
    assert show_figure(study, "optimise").data == "No figure: 06 has not been run."
    assert show_figure(study, "heads").data == "No figure: 05 gave none from these questions."


def test_the_summary_quotes_the_headlines_and_what_is_missing(study):
    text = summarise(study)
    for part in ("+12.5 points", "66.7 %", "2 heads", "L1H0", "Not run yet: 06"):
        assert part in text
    assert "a VQA accuracy of 50.0 % [40.0, 62.5] (n = 40 questions about 20 images)." in text
    assert "contribute 70.0 % [70.0, 70.0] to an answer (n = 10)." in text
    assert text.endswith("(run test, seed 3).")
    assert "Optimising" not in text


def test_the_summary_where_no_lighter_model_will_do(tmp_path):
    study = make_run(tmp_path)
    text = summarise(study)
    assert "does without 75.0 % of the heads (“light” was selected on one half" in text
    assert "tolerance of 1 point; n = 20)." in text
    assert "times as fast [1.40, 1.60] as the whole one (32 questions at once, median" in text
    candidates = read_table(study, "06_candidates").assign(chosen=[True, False])
    save_table(study, "06_candidates", candidates)
    text = summarise(study)
    assert "**Optimising.** No model with fewer heads was selected" in text
    assert "times as fast" not in text


def test_names_agree_with_what_the_project_has():
    """Headlines, notebooks and findings are named in one place each; a new name would go unseen."""
    root = Study.load().root
    assert set(CLAUSES) <= set(HEADLINES)
    for number, name in NOTEBOOKS.items():
        assert name.startswith(number)
    for part in PARTS.values():
        assert set(part.headlines) <= set(HEADLINES)
        source = root / "notebooks" / f"{NOTEBOOKS[part.notebook]}.ipynb"
        text = source.read_text(encoding="utf-8")
        assert f'save_figure(study, \\"{part.figure}\\"' in text
        for finding in part.findings:
            assert f'\\"{part.notebook}\\", \\"{finding}\\"' in text, finding
