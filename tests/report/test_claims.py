"""Claims: what verdict a number gives, that no run rewords one, several runs side by side."""

import numpy as np
import pandas as pd
import pytest
from small import claim_by_hand

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


def read(study, key):
    return claims.read_claims(study.run_dir).set_index("key").loc[key]


def test_a_claim_counts_the_models_in_which_it_holds(study):
    claims.record_claim(study, "needs-image", mean_of(30, 31, 19, 32, 33))
    row = read(study, "needs-image")
    assert (row["n_models"], row["k_models"]) == (5, 4)
    assert (row["n_questions"], row["n_images"]) == (60, 30)
    assert row["estimate"] == pytest.approx(29)


@pytest.mark.parametrize("left", ["", '{"key": "needs-im'], ids=["empty", "cut"])
def test_a_claim_whose_file_is_cut_is_not_measured_yet(study, left):
    claims.record_claim(study, "needs-image", mean_of(30))
    (study.run_dir / "claims" / "needs-image.json").write_text(left)
    assert read(study, "needs-image")["verdict"] == "not measured yet"


def test_what_random_weights_show_as_well_is_no_finding(study):
    lone = mean_of(40, 41, 42)
    claims.record_claim(study, "heads-divide", lone, random=[10, 12])
    assert read(study, "heads-divide")["verdict"] == "supported"
    claims.record_claim(study, "heads-divide", lone, random=[10, 60])
    assert read(study, "heads-divide")["verdict"] == "contradicted"
    assert read(study, "heads-divide")["threshold"] == 60


def test_untestable_says_why_and_the_rest_is_not_measured_yet(study):
    claims.record_untestable(study, "finds-object", "the data has no boxes")
    table = claims.read_claims(study.run_dir)
    assert read(study, "finds-object")["reason"] == "the data has no boxes"
    assert (table["verdict"] == "not measured yet").sum() == len(table) - 1
    assert list(table) == claims.COLUMNS


@pytest.mark.parametrize("estimate", [np.nan, np.inf])
def test_a_share_of_nothing_is_not_testable_and_says_why(study, estimate):
    mean = mean_of(1)._replace(estimate=estimate)
    claims.record_claim(study, "question-first", mean)
    assert read(study, "question-first")["verdict"] == "not testable"
    assert read(study, "question-first")["reason"]


def test_an_unknown_claim_is_refused(study):
    with pytest.raises(ValueError, match="needs-images"):
        claims.record_claim(study, "needs-images", mean_of(1))


def test_every_claim_has_a_key_of_its_own_a_known_relation_and_a_notebook():
    table = pd.read_csv(claims.CLAIMS, dtype={"notebook": str})
    assert set(table["relation"]) == {">", "<", "within"}
    assert set(table["notebook"]) <= {"02", "03", "03b", "04", "05", "06"}
    assert table["key"].is_unique


def test_a_table_of_claims_is_markdown_with_a_line_a_claim(study):
    claims.record_claim(study, "needs-image", mean_of(30, 31, 19))
    claims.record_untestable(study, "beats-words", "no | words")
    table = claims.format_claims(claims.read_claims(study.run_dir)).splitlines()
    cells = [line.strip("|").split("|") for line in table]
    assert {len(row) for row in cells} == {5}
    assert len(cells) == 2 + len(pd.read_csv(claims.CLAIMS))
    verdicts = [row[1].strip(" *") for row in cells[2:5]]
    assert verdicts == ["undecided", "not testable", "not measured yet"]


def test_means_are_judged_where_questions_are_enough(study):
    noise = np.random.default_rng(0).normal(30, 1, (2, 60))
    values = np.where(np.arange(60) < 20, np.nan, noise)
    claims.judge_means(study, "needs-image", values, IMAGES)
    row = read(study, "needs-image")
    assert (row["verdict"], row["n_questions"], row["n_images"]) == ("supported", 40, 20)
    assert row["estimate"] == pytest.approx(noise[:, 20:].mean())
    for few in (None, values[:, :21]):
        claims.judge_means(study, "needs-image", few, IMAGES[:21], reason="one question")
        row = read(study, "needs-image")
        assert (row["verdict"], row["reason"]) == ("not testable", "one question")


@pytest.fixture
def runs(tmp_path):
    return [
        claim_by_hand(tmp_path, "run0", 0, needs_image=40.0, beats_words=3.0),
        claim_by_hand(tmp_path, "run1", 1, needs_image=50.0, beats_words="no words"),
        claim_by_hand(tmp_path, "run2", 2, needs_image=60.0),
    ]


def test_a_row_is_a_run_and_a_claim_that_some_run_has_judged(runs):
    table = claims.compare_claims(runs)
    assert list(table["key"]) == ["needs-image", "beats-words"] * 3
    assert list(table["seed"]) == [0, 0, 1, 1, 2, 2]
    image, words = (table[table["key"] == key] for key in ("needs-image", "beats-words"))
    assert list(image["estimate"]) == [40, 50, 60]
    assert list(words["verdict"]) == ["supported", "not testable", "not measured yet"]


def test_a_claim_is_a_row_and_a_run_a_column(runs):
    table = claims.tabulate_runs(claims.compare_claims(runs))
    assert list(table) == ["claim", "run0", "run1", "run2"]
    assert table["run0"][0] == "supported: 40.0 [39.0, 41.0] points"
    assert list(table.loc[1, ["run1", "run2"]]) == ["not testable: no words", "not measured yet"]


def test_runs_are_found_with_their_own_settings(runs):
    found = claims.find_runs(runs[0], ["run1", "run2"])
    assert [(run.run_name, run.seed) for run in found] == [("run1", 1), ("run2", 2)]
    assert [run.run_dir for run in found] == [runs[1].run_dir, runs[2].run_dir]
    differences = claims.list_differences(found)
    assert list(differences) == ["run", "seed"]
    assert differences.to_dict("list") == {"run": ["run1", "run2"], "seed": [1, 2]}


def test_wrong_runs_are_errors(runs):
    with pytest.raises(ValueError, match=r"'nope' holds no claims .* do: run0, run1, run2"):
        claims.find_runs(runs[0], ["run0", "nope"])
    with pytest.raises(ValueError, match="named twice"):
        claims.find_runs(runs[0], ["run1", "run1"])
