"""Roles against heads planted by hand."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_boxes

from helpers.attention import extract
from helpers.attention.grounding import mask_boxes
from helpers.data import prepare
from helpers.heads import roles
from helpers.model.vilt import list_answers
from helpers.run.settings import Study


def uniform_table(shapes, n_layers=1, n_heads=1):
    """What extract_attention would say of heads that attend to all tokens alike.

    shapes: (words, rows, columns) of each question; two questions share an image.
    """
    words, rows, columns = np.array(shapes).T
    patches, number, one = rows * columns, np.arange(len(shapes)), np.ones_like(words)
    questions = pd.DataFrame({"question_id": number, "image_id": number // 2, "n_words": words})
    questions = questions.assign(n_patches=patches, grid_rows=rows, grid_cols=columns)
    sizes = np.stack([one, words, one, one, patches], axis=-1)
    text = [np.mean([abs(i - j) for i in range(n) for j in range(n)]) for n in words]
    patch = [mean_patch_distance(r, c) for _, r, c in shapes]

    def for_each_head(values, *tail):
        values = np.asarray(values, np.float32)
        values = values.reshape(len(shapes), 1, 1, *[1] * len(tail[:-1]), *values.shape[1:])
        return np.broadcast_to(values, (len(shapes), n_layers, n_heads, *tail)).copy()

    return SimpleNamespace(
        questions=questions,
        split=for_each_head(sizes / sizes.sum(1, keepdims=True), 3, 5),
        text_distance=for_each_head(text),
        patch_distance=for_each_head(patch),
        sink=np.zeros((len(shapes), n_layers, n_heads, 3, 2), np.float32),
        n_sinks=np.full(len(shapes), 3),
        top_patch=np.zeros((len(shapes), n_layers, n_heads, 3), int),
    )


def make_data(table, boxes, image_ids=0):
    """The data set of a table's questions, on pictures with patches of 10 x 10 pixels."""
    sizes = (10 * table.questions[f"grid_{side}"] for side in ("cols", "rows"))
    return make_boxes(boxes, *sizes, image_ids)


def make_facts(table, box=None, chance=np.nan):
    """Facts of a table's questions, which all ask about the same box, or about none."""
    data = make_data(table, [[box] if box else []] * len(table.questions))
    chance = np.full(len(data), chance, float)
    return roles.QuestionFacts(mask_boxes(table.questions, data), chance, "object")


def mean_patch_distance(rows, columns):
    cells = list(itertools.product(range(rows), range(columns)))
    return np.mean([np.hypot(a - c, b - d) for a, b in cells for c, d in cells])


def concentrate(table, head, queries, keys, text=None, patch=None):
    """Put all mass of these query groups of a head on these key groups; scale its distances."""
    for query in queries:
        table.split[:, 0, head, query] = 0
        table.split[:, 0, head, query, keys] = 1 / len(keys)
    if text is not None:
        table.text_distance[:, 0, head] *= text
    if patch is not None:
        table.patch_distance[:, 0, head] *= patch


PLANTED = {  # role: queries, keys, ratios of text and patch distance to those of uniform attention
    "text reader of image": ((1,), [4], None, None),
    "image reader of text": ((2,), [1], None, None),
    "[CLS] reader of words": ((0,), [1], None, None),
    "[CLS] reader of patches": ((0,), [4], None, None),
    "text local": ((1,), [1], 0.0, None),
    "text global": ((1,), [1], 1.0, None),
    "patch local": ((2,), [4], None, 0.0),
    "patch global": ((2,), [4], None, 1.1),
    "sink": ((1, 2), [0, 2, 3], None, None),
}


def planted_tables(n=24):
    """A head for each role of PLANTED, one that finds the box, and one that attends uniformly.

    And a table in which all are uniform; the box is patch 1, objects are four.
    """
    shapes = [(4 + i % 5, 3, 4 + i % 3) for i in range(n)]
    table, uniform = uniform_table(shapes, 1, 11), uniform_table(shapes, 1, 11)
    for head, plan in enumerate(PLANTED.values()):
        concentrate(table, head, *plan)
    table.sink[:, 0, 8] = 1  # its special tokens hand on nothing
    table.top_patch[:, 0, 9, :2] = 1
    return table, uniform, make_facts(table, [10, 0, 10, 10], chance=1 / 4)


def score_planted(table, facts, random):
    """`score_roles` of what `planted_tables` gave."""
    image_ids = table.questions["image_id"].to_numpy()
    by_question = roles.score_by_question(table, facts)
    return roles.score_roles(by_question, image_ids, random, n_resamples=50)


def random_heads(*scores, n_models=24, n_layers=1, n_heads=11):
    """What random heads score: these in the first model's first layer, all others 0.01."""
    of_role = np.full((n_models, n_layers, n_heads), 0.01)
    of_role[0, 0, : len(scores)] = scores
    return dict.fromkeys(roles.ROLES, of_role)


def score_one(table, facts, random, role, head):
    """The row of score_roles about one role and head, as if there were no other role."""
    by_question = {role: roles.score_by_question(table, facts)[role]}
    image_ids = table.questions["image_id"].to_numpy()
    scores = roles.score_roles(by_question, image_ids, random, n_resamples=50)
    return scores.set_index("head").loc[head]


def test_uniform_patch_distance_by_hand():
    # 1 x 2: (0 + 1 + 1 + 0) / 4; 2 x 2: per patch 0, 1, 1, sqrt 2
    found = roles.uniform_patch_distance([[1, 2], [2, 2], [1, 2], [3, 5]])
    expected = [0.5, (2 + np.sqrt(2)) / 4, 0.5, mean_patch_distance(3, 5)]
    np.testing.assert_allclose(found, expected)


SHAPES = st.tuples(st.integers(2, 12), st.integers(1, 5), st.integers(2, 6))


@settings(deadline=None, max_examples=25)
@given(st.lists(SHAPES, min_size=1, max_size=5))
def test_uniform_attention_scores_zero_in_every_role(shapes):
    table = uniform_table(shapes, 2, 3)
    scores = roles.score_by_question(table, make_facts(table))
    assert set(scores) == set(roles.ROLES)
    assert np.isnan(scores.pop("grounding")).all()  # no boxes
    assert (scores.pop("sink") < 0).all()  # their values are not small
    for values in scores.values():
        assert values.shape == (len(shapes), 2, 3)
        np.testing.assert_allclose(values, 0, atol=1e-4)


def test_scores_by_hand():
    # 5 words, 3 x 4 patches: 20 keys; uniform: words 0.25, patches 0.6, image 0.65, special 0.15
    table = uniform_table([(5, 3, 4)])
    table.split[0, 0, 0] = [
        [0.1, 0.5, 0.1, 0.1, 0.2],
        [0.1, 0.4, 0.1, 0.1, 0.3],
        [0.2, 0.0, 0.1, 0.0, 0.7],
    ]
    table.text_distance[:] *= 0.7
    table.patch_distance[:] *= 1.2
    table.sink[:] = [[0, 0], [0.5, 0.4], [0.7, 0.4]]  # on sinks, and reading nothing there
    table.top_patch[:] = [0, 5, 0]  # [CLS] looks into the box
    table.n_sinks[:] = 5  # two words are empty
    facts = make_facts(table, [0, 0, 10, 10], chance=0.3)
    scores = roles.score_by_question(table, facts)
    assert {role: float(score[0, 0, 0]) for role, score in scores.items()} == pytest.approx({
        "text reader of image": (0.4 - 0.65) / 0.35,
        "image reader of text": (0.3 - 0.35) / 0.65,
        "[CLS] reader of words": (0.5 - 0.25) / 0.75,
        "[CLS] reader of patches": (0.2 - 0.6) / 0.4,
        "text local": 0.4 * 0.3,
        "text global": (0.4 - 0.25) / 0.75 * 0.4,
        "patch local": -0.7 * 0.2,
        "patch global": (0.7 - 0.6) / 0.4,
        "sink": (0.4 - 0.25) / 0.75,
        "grounding": (0.5 - 0.3) / 0.7,
    }, abs=1e-5)  # fmt: skip


def test_planted_heads_score_one_and_get_their_role():
    table, _, facts = planted_tables()
    scores = score_planted(table, facts, random_heads()).set_index(["name", "role"])
    passed = scores.index[scores["passes"]]
    for head, role in enumerate([*PLANTED, "grounding"]):
        assert scores.loc[(f"L0H{head}", role), "score"] == pytest.approx(1, abs=1e-5)
        # [CLS] and [SEP] are text, so patches that rest on them also read text
        also = ["image reader of text"] if role == "sink" else []
        assert set(passed[passed.get_level_values("name") == f"L0H{head}"]) == {
            (f"L0H{head}", name) for name in [role, *also]
        }
    assert "L0H10" not in passed.get_level_values("name")


class TestFacts:
    def gather(self, boxes, image_ids):
        table = uniform_table([(4, 3, 4)] * 4, 1, 2)
        data = make_data(table, boxes, image_ids)
        table.top_patch[:, 0, 0] = 1
        return table, roles.gather_facts(table, data)

    objects = [[0, 0, 10, 10]], [[10, 0, 10, 10]], [[20, 0, 20, 20]], []

    def test_chance_is_a_random_object_of_the_picture(self):
        """One of three objects, whatever their size; a question without a box tells nothing."""
        table, facts = self.gather(self.objects, [1] * 4)
        assert facts.chance_of == "object"
        np.testing.assert_allclose(facts.chance, [1 / 3] * 3 + [np.nan])
        found = roles.score_by_question(table, facts)["grounding"][:, 0, 0]
        np.testing.assert_allclose(found, [-1 / 2, 1, -1 / 2, np.nan])
        part = facts.select(np.array([2, 0]))
        assert part.inside.sum(1).tolist() == [4, 1]

    def test_where_no_other_object_is_known_chance_is_the_area(self):
        _, facts = self.gather(self.objects, [1, 2, 3, 4])
        assert facts.chance_of == "patch"
        np.testing.assert_allclose(facts.chance, [1 / 12, 1 / 12, 4 / 12, np.nan])

    def test_without_boxes_there_is_no_grounding(self):
        table, facts = self.gather([[]] * 4, [1] * 4)
        assert facts.chance_of == ""
        by_question = roles.score_by_question(table, facts)
        scores = roles.score_roles(by_question, range(4), random_heads(), n_resamples=10)
        assert set(roles.ROLES) - set(scores["role"]) == {"grounding"}


def test_p_is_the_share_of_random_heads_at_least_as_high():
    p = roles.empirical_p([0.5, 0.2, 0.9, np.nan], [[0.1, 0.2], [0.5, np.nan]])
    np.testing.assert_allclose(p, [2 / 4, 3 / 4, 1 / 4, np.nan])
    assert np.isnan(roles.empirical_p([1.0], [np.nan])).all()


def test_random_heads_score_the_mean_over_their_questions():
    table, uniform, facts = planted_tables(4)
    random = roles.mean_scores([uniform, table], facts)
    assert random["text local"].shape == (2, 1, 11)
    np.testing.assert_allclose(random["text local"][:, 0, 4], [0, 1], atol=1e-5)
    np.testing.assert_allclose(random["grounding"][:, 0, 9], [-1 / 3, 1])


def test_one_role_against_264_random_heads_by_hand():
    (table, uniform, facts), role = planted_tables(), "text reader of image"
    table.split[:, :, 10] = (table.split[:, :, 0] + uniform.split[:, :, 0]) / 2  # half of head 0
    row = score_one(table, facts, random_heads(0.4), role, 10)
    assert (row["score"], row["null"]) == pytest.approx((0.5, 0.4), abs=1e-4)
    assert (row["p"], row["p_corrected"]) == pytest.approx((1 / 265, 11 / 2 / 265))  # 2 of 11
    assert row["passes"]
    row = score_one(table, facts, random_heads(*[0.6] * 3), role, 10)
    assert (row["p"], row["p_corrected"]) == pytest.approx((4 / 265, 11 / 2 * 4 / 265))
    assert not row["passes"]


def test_heads_with_a_role_are_counted_with_those_undecided():
    score = {"score": [0.5, 0.12, 0.08, 0.0], "low": [0.4, 0.09, 0.05, -0.1]}
    rest = {"high": [0.6, 0.15, 0.11, 0.09], "passes": [True, True, False, False]}
    scores = pd.DataFrame({"role": "sink", **score, **rest, "null": 0.07, "p_corrected": 0.01})
    counts = roles.count_roles(scores).iloc[0]
    assert counts[["heads", "undecided", "highest", "random"]].tolist() == [2, 2, 0.5, 0.07]
    far = roles.count_roles(scores.assign(p_corrected=0.5)).iloc[0]
    assert far["undecided"] == 0  # as high as random heads


def test_the_share_of_heads_with_a_habit_by_hand():
    rows = [("L0H0", 0.9, 0.5, True), ("L0H0", 0.1, 0.5, False), ("L0H1", 0.4, 0.5, True)]
    scores = pd.DataFrame(rows, columns=["name", "score", "null", "passes"])
    share, low, high = roles.habit_share(scores)  # the second passes, but not beyond every head
    assert share == 50
    assert low + high == pytest.approx(100)
    assert 5 < low < 50


def test_agreement_of_scores_leaves_out_roles_without_a_rank():
    flat = dict.fromkeys(roles.ROLES, np.ones((1, 2, 2)))  # of one question
    up = np.array([[[1, 2], [3, 4]]])
    first = flat | {"sink": up, "grounding": up}
    second = flat | {"sink": np.array([[[1, 2], [4, 3]]]), "grounding": np.full((1, 2, 2), np.nan)}
    assert roles.agree_on_heads(first, second, 20)[0] == pytest.approx(0.8)  # one swap of four
    second["grounding"] = 5 - up
    assert roles.agree_on_heads(first, second, 20)[0] == pytest.approx((0.8 - 1) / 2)
    assert np.isnan(roles.agree_on_heads(flat, flat)).all()


def test_small_effects_and_few_questions_do_not_pass():
    (table, uniform, facts), role = planted_tables(), "image reader of text"
    table.split = 0.95 * uniform.split + 0.05 * table.split
    weak = score_one(table, facts, random_heads(), role, 1)
    assert weak["score"] == pytest.approx(0.05, abs=1e-4)
    assert not weak["passes"]
    assert weak["p_corrected"] < 0.05
    few, _, facts = planted_tables(6)
    assert not score_planted(few, facts, random_heads())["passes"].any()


def test_the_last_layer_reaches_the_answer_through_cls_only():
    table = uniform_table([(4, 2, 2)] * 4, n_layers=2)
    facts, random = make_facts(table, [0, 0, 9, 9], chance=0.5), random_heads(n_layers=2)
    reached = score_planted(table, facts, random).query("reaches_answer")
    assert set(reached.query("layer == 0")["role"]) == set(roles.ROLES)
    last = {"[CLS] reader of words", "[CLS] reader of patches", "grounding"}
    assert set(reached.query("layer == 1")["role"]) == last


def test_halves_agree_on_planted_heads_and_not_on_noise():
    table, _, facts = planted_tables(60)
    image_ids, random = table.questions["image_id"], random_heads()
    by_question = roles.score_by_question(table, facts)
    steady = roles.compare_image_halves(by_question, image_ids, random, 50).set_index("role")
    assert steady["agreement"].eq(1).all()
    assert steady.loc["sink", ["passes_a", "passes_b", "n_heads"]].tolist() == [1, 1, 11]
    noise = {"sink": np.random.default_rng(0).normal(size=(60, 1, 11))}
    (shaky,) = roles.compare_image_halves(noise, image_ids, random, 50)["correlation"]
    assert abs(shaky) < 0.7


@pytest.mark.slow
def test_the_checkpoint_answers_the_same_questions_with_other_weights(study, finetuned):
    model, processor, data = finetuned
    encoded = prepare.encode(study, data["validation"], processor)
    table = extract.measure_attention(study, model, encoded)
    before = roles.measure_before_finetuning(study, encoded, list_answers(model))
    assert before.questions["question_id"].equals(table.questions["question_id"])
    assert np.abs(before.split - table.split).max() > 0.01


def test_what_a_model_was_fine_tuned_from_lies_beside_it(tmp_path):
    folders = [tmp_path / name for name in ("0", "1", "1-pretrained", "2")]
    for folder in folders:
        folder.mkdir()
    study = Study.load("phantom", models=tuple(map(str, [*folders[:2], folders[3]])))
    found = [roles.find_pretrained(study, number) for number in range(3)]
    assert found == [None, str(folders[2]), None]
    assert roles.find_pretrained(Study.load()) == Study.load().checkpoint
    as_it_is = Study.load(checkpoint=str(folders[0]), finetune=False)
    assert roles.find_pretrained(as_it_is) is None
    alone = Study.load("phantom", models=(), checkpoint="fresh-small")
    assert roles.find_pretrained(alone) == "fresh-small"
