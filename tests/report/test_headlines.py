"""Each headline is the number that stands in the run's tables, or None, or NaN."""

import numpy as np
import pandas as pd
import pytest
from handmade import make_run

from helpers.report import headlines
from helpers.report.headlines import HEADLINES, NOTEBOOK, Headline, read_table, say_value
from helpers.run.settings import save_table


@pytest.fixture
def study(tmp_path):
    return make_run(tmp_path)


def read(study, name) -> Headline:
    return HEADLINES[name](study)


def change(study, table, **columns):
    save_table(study, table, read_table(study, table).assign(**columns))


def test_every_headline_is_the_number_in_the_tables(study):
    expected = {  # worked out from tests/handmade.py
        "accuracy": (50, 40, 62.5, 40),
        "excess": (12.5, 7.5, 17.5, 40),  # the last layer, trained, [CLS]
        "telling": (200 / 3, np.nan, np.nan, 40),  # two of the three that could be tested
        "roles": (2, np.nan, np.nan, 40),
        "costliest": (4, 3, 5, 40),
        "removed": (75, np.nan, np.nan, 20),  # a layer of two heads and one more, of four
        # 3 heads lose too much, so 4 do not count although they lose less
        "removable": (50, np.nan, np.nan, 40),
        "speed": (1.5, 1.4, 1.6, np.nan),
    }
    for name, values in expected.items():
        found = read(study, name)
        numbers = (found.value, found.low, found.high, found.n)
        np.testing.assert_allclose(numbers, values, err_msg=name)
    assert read(study, "text_share").value == pytest.approx(70)
    assert read(study, "text_share").n_clusters == 5  # ten questions, two about each image
    assert "L1H0" in read(study, "costliest").detail
    assert "on the other loses -1 to 2 points" in read(study, "removed").detail
    assert "undecided" in read(study, "removed").detail
    assert headlines.find_accuracy(study, "type prior").value == 25


def test_what_has_not_been_run_is_none(study):
    for path in study.folder("tables").glob("06_*.csv"):
        path.unlink()
    found = [headline.name for headline in headlines.read_headlines(study)]
    assert found == [name for name in HEADLINES if NOTEBOOK[name] != "06"]
    (study.run_dir / "modality" / "shapley.parquet").unlink()
    assert read(study, "text_share") is None


def test_too_few_questions_give_nan(study):
    change(study, "04_omnibus", p_corrected=np.nan)
    change(study, "05_role_scores", n=9)
    change(study, "05_ablation", told=False)
    change(study, "06_candidates", difference=np.nan, chosen=[True, False])  # as 06 writes it
    change(study, "06_families", told=False)
    for name in ("telling", "roles", "costliest", "removed", "speed", "removable"):
        found = read(study, name)
        assert np.isnan([found.value, found.low, found.high]).all(), name
        assert say_value(found) == "not enough questions to tell"
        assert "nan" not in found.detail


def test_where_no_lighter_model_will_do_the_whole_one_is_named(study):
    change(study, "06_candidates", chosen=[True, False])
    assert read(study, "removed").detail == "the whole model stays"
    assert say_value(read(study, "removed")) == "0.0 %"
    speed = read(study, "speed")
    assert (say_value(speed), speed.detail) == ("1.00 times as fast", "it is the whole one")


def test_no_head_can_go_where_the_first_step_may_cost_too_much(study):
    families = read_table(study, "06_families")
    families.loc[families["removed"] == "1", "high"] = 1.01
    save_table(study, "06_families", families)
    assert read(study, "removable").value == 0
    assert "undecided up to 50 %" in read(study, "removable").detail


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-2.0, -0.9, "undecided"), (-2.0, -1.1, "more than"), (-0.9, 0.5, "is within")],
)
def test_the_half_that_gives_the_number_gives_the_verdict(study, low, high, verdict):
    """-1.4 [-2.0, -0.9] at a tolerance of 1 was "within the tolerance": of the other half."""
    change(study, "06_candidates", judged=(low + high) / 2, low=low, high=high)
    assert verdict in read(study, "removed").detail


@pytest.mark.parametrize(
    ("name", "unit", "numbers", "said"),
    [
        ("accuracy", "%", (98.94, 98.55, 99.25), "98.9 % [98.5, 99.2]"),
        ("excess", "points", (-0.01, -1.0, 2.0), "+0.0 points [-1.0, +2.0]"),
        ("roles", "heads", (16, np.nan, np.nan), "16 heads"),
        ("roles", "heads", (1, np.nan, np.nan), "1 head"),
        ("speed", "times", (1.259, 1.2, 1.3), "1.26 times as fast [1.20, 1.30]"),
    ],
)
def test_numbers_in_words(name, unit, numbers, said):
    assert say_value(Headline(name, "label", "detail", unit, *numbers, 10, 5)) == said


def test_a_text_share_of_too_few_questions_is_not_told(study):
    few = pd.DataFrame({"question": [0, 1, 3], "text_share": [0.5, 0.7, 0.9]})
    few.to_parquet(study.run_dir / "modality" / "shapley.parquet")
    found = read(study, "text_share")
    assert np.isnan([found.value, found.low, found.high]).all()
    assert (found.n, found.n_clusters) == (3, 2)
