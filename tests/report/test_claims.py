"""Claims: what verdict a number gives, and that a run never rewords one."""

import numpy as np
import pandas as pd
import pytest

from helpers.report import claims
from helpers.run.settings import Study
from helpers.stats.models import mean_over_models

IMAGES = np.repeat(np.arange(30), 2)


@pytest.fixture
def study(tmp_path):
    return Study.load(runs_root=str(tmp_path))


def mean_of(*centers, spread=1.0):
    noise = np.random.default_rng(0).normal(0, spread, 60)
    return mean_over_models([center + noise - noise.mean() for center in centers], IMAGES)


@pytest.mark.parametrize(
    ("low", "high", "relation", "threshold", "verdict"),
    [
        (5.1, 6, ">", 5, "supported"),
        (4, 6, ">", 5, "undecided"),
        (3, 4.9, ">", 5, "contradicted"),
        (3, 4.9, "<", 5, "supported"),
        (5.1, 6, "<", 5, "contradicted"),
        (-0.05, 0.09, "within", 0.1, "supported"),
        (-0.05, 0.11, "within", 0.1, "undecided"),
        (0.2, 0.3, "within", 0.1, "contradicted"),
        (-0.3, -0.2, "within", 0.1, "contradicted"),
        (np.nan, np.nan, ">", 5, "undecided"),
    ],
)
def test_verdicts_by_hand(low, high, relation, threshold, verdict):
    assert claims.judge(low, high, relation, threshold) == verdict


def test_a_claim_counts_the_models_in_which_it_holds(study):
    claims.record_claim(study, "needs-image", mean_of(30, 31, 19, 32, 33))
    row = claims.read_claims(study.run_dir).set_index("key").loc["needs-image"]
    assert (row["n_models"], row["k_models"]) == (5, 4)
    assert (row["n_questions"], row["n_images"]) == (60, 30)
    assert row["estimate"] == pytest.approx(29)


def test_what_random_weights_show_as_well_is_no_finding(study):
    lone = mean_of(40, 41, 42)
    claims.record_claim(study, "heads-divide", lone, random=[10, 12])
    assert read(study, "heads-divide")["verdict"] == "supported"
    claims.record_claim(study, "heads-divide", lone, random=[10, 60])
    assert read(study, "heads-divide")["verdict"] == "contradicted"
    assert read(study, "heads-divide")["threshold"] == 60


def read(study, key):
    return claims.read_claims(study.run_dir).set_index("key").loc[key]


def test_untestable_says_why_and_the_rest_is_not_measured_yet(study):
    claims.record_untestable(study, "finds-object", "the data has no boxes")
    table = claims.read_claims(study.run_dir)
    assert read(study, "finds-object")["reason"] == "the data has no boxes"
    assert (table["verdict"] == "not measured yet").sum() == len(table) - 1
    assert list(table) == claims.COLUMNS


def test_an_unknown_claim_is_refused(study):
    with pytest.raises(ValueError, match="needs-images"):
        claims.record_claim(study, "needs-images", mean_of(1))


def test_every_claim_has_a_known_relation_a_notebook_and_at_most_25_words():
    table = pd.read_csv(claims.CLAIMS, dtype={"notebook": str})
    assert set(table["relation"]) == {">", "<", "within"}
    assert set(table["notebook"]) <= {"02", "03", "03b", "04", "05", "06"}
    assert table["key"].is_unique
    assert (table["claim"].str.split().str.len() <= 25).all()


def test_a_table_of_claims_is_markdown_with_a_line_a_claim(study):
    claims.record_claim(study, "needs-image", mean_of(30, 31, 19))
    claims.record_untestable(study, "beats-words", "no | words")
    table = claims.format_claims(claims.read_claims(study.run_dir)).splitlines()
    cells = [line.strip("|").split("|") for line in table]
    assert {len(row) for row in cells} == {5}
    shown = [[cell.strip() for cell in row] for row in cells[2:]]
    assert len(shown) == len(pd.read_csv(claims.CLAIMS))
    assert [row[1] for row in shown[:3]] == [
        "**undecided**",
        "**not testable**",
        "**not measured yet**",
    ]
    assert shown[0][2].startswith("26.7 [")
    assert shown[0][3:] == ["> 20", "2 of 3"]
    assert [shown[2][column] for column in (2, 4)] == ["", ""]
    assert claims.format_claims(claims.read_claims(study.run_dir).iloc[:0]) == ""


def test_means_are_judged_where_questions_are_enough(study):
    noise = np.random.default_rng(0).normal(30, 1, (2, 60))
    values = np.where(np.arange(60) < 20, np.nan, noise)
    claims.judge_means(study, "needs-image", values, IMAGES)
    row = claims.read_claims(study.run_dir).set_index("key").loc["needs-image"]
    assert (row["verdict"], row["n_questions"], row["n_images"]) == ("supported", 40, 20)
    assert row["estimate"] == pytest.approx(noise[:, 20:].mean())
    for few in (None, values[:, :21]):
        claims.judge_means(study, "needs-image", few, IMAGES[:21], reason="one question")
        row = claims.read_claims(study.run_dir).set_index("key").loc["needs-image"]
        assert (row["verdict"], row["reason"]) == ("not testable", "one question")
