"""The viewer's page holds the cards' numbers, shows them, and asks nothing of the network."""

import base64
import json
import re
from dataclasses import dataclass

import browser
import ipywidgets as widgets
import matplotlib as mpl
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.attention.image_share import QuestionMaps
from helpers.report import viewer
from helpers.report.viewer import METHODS, pack_card, render_page, show_page, write_page

driver = browser.make_fixture()

LAYERS, HEADS, MEAN = 3, 2, -1
COMBINED = ("rollout", "relevance")
HOSTILE = (
    '<script>alert(1)</script><img src=x onerror="alert(2)">&amp; </script> <!-- \u2028 '
    '{{data}} {{title}} $& $\\foo$ \\1 {"a": 1}'
)
WORDS = ("[CLS]", "what", "is", "it", "[SEP]")


def plant_card(question="What is it?", tokens=WORDS, grid=(3, 4), seed=0, heads=HEADS) -> dict:
    """A card by hand: random weights, of which the patches get a random part."""
    rng = np.random.default_rng(seed)
    maps, totals = {}, {}
    for method in METHODS:
        axes = (LAYERS,) if method in COMBINED else (LAYERS, heads)
        weights = rng.random((*axes, len(tokens), *grid)).astype(np.float32)
        maps[method] = weights / (grid[0] * grid[1])
        totals[method] = maps[method].sum((-2, -1)) * (1 + rng.random((*axes, len(tokens))))
    return {
        "picture": Image.new("RGB", (40 * grid[1], 40 * grid[0]), (200, 150, 100)),
        "question": question, "boxes": [[40, 0, 20, 60]], "answer": f"answer {seed}",
        "tokens": list(tokens), "grid": grid, "maps": maps, "totals": totals,
    }  # fmt: skip


def select(values, method, layer, head, token):
    """One map, or one total, by its definition."""
    if method in COMBINED:
        return values[method][layer, token]
    heads = range(values[method].shape[1]) if head == MEAN else [head]
    return np.mean([values[method][layer, each, token] for each in heads], axis=0)


def parse(page: str) -> BeautifulSoup:
    return BeautifulSoup(page, "html.parser")


def read_data(page: str) -> dict:
    """The data in a page, as a browser finds it."""
    return json.loads(parse(page).find(id="data").string)


def unpack(text: str, kind: str, shape) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind).reshape(shape).astype(np.float64)


@dataclass
class StandIn:
    """What make_card asks of an Explanation: each method's weights are random and its own."""

    maps: QuestionMaps
    answer: str = "a cup"

    def weights(self, method: str) -> torch.Tensor:
        if method == "attention":
            return self.maps.attention
        n_tokens = len(self.maps.tokens)
        generator = torch.Generator().manual_seed(list(METHODS).index(method))
        axes = (LAYERS,) if method in COMBINED else (LAYERS, HEADS)
        weights = torch.rand(*axes, n_tokens, n_tokens, generator=generator)
        return weights + torch.eye(n_tokens) if method == "relevance" else weights


def make_explanation(rows=4, columns=5) -> StandIn:
    """Random attention of the question "the the the" about a picture of rows times columns."""
    ends = np.cumsum([0, 1, 3, 1, 1, rows * columns]).tolist()
    names = ("cls", "words", "sep", "img_cls", "patches")
    groups = {name: slice(*ends[i : i + 2]) for i, name in enumerate(names)}
    attention = torch.rand(LAYERS, HEADS, ends[-1], ends[-1]).softmax(-1)
    patches = [f"{row},{column}" for row in range(rows) for column in range(columns)]
    tokens = ["[CLS]", "the", "the", "the", "[SEP]", "[IMG]", *patches]
    return StandIn(QuestionMaps(attention, tokens, (rows, columns), groups))


def test_a_card_keeps_the_text_queries_and_patch_keys_of_each_method():
    explanation = make_explanation()
    card = viewer.make_card(explanation, Image.new("RGB", (240, 192)), "What?")
    assert list(card["maps"]) == list(METHODS)
    assert (card["answer"], card["grid"]) == ("a cup", (4, 5))
    assert card["tokens"] == ["[CLS]", "the", "the", "the", "[SEP]"]
    for method, maps in card["maps"].items():
        weights, heads = explanation.weights(method), () if method in COMBINED else (HEADS,)
        assert maps.dtype == np.float32
        assert maps.shape == (LAYERS, *heads, 5, 4, 5)
        for token, row, column in ((0, 0, 0), (3, 2, 4), (4, 3, 1)):  # patch by patch
            expected = weights[..., token, 6 + 5 * row + column]
            np.testing.assert_array_equal(maps[..., token, row, column], expected)
        given_away = weights[..., :5, :].sum(-1) - int(method == "relevance")
        np.testing.assert_allclose(card["totals"][method], given_away, rtol=1e-5)
    card["maps"]["attention"][:] = 0  # memory of its own: the whole matrices can go
    assert explanation.maps.attention.min() > 0


def test_cards_that_cannot_be_shown_together_are_an_error():
    with pytest.raises(ValueError, match="at least one question"):
        render_page([], "Title")
    with pytest.raises(ValueError, match="question 2 has other methods, layers or heads"):
        render_page([plant_card(), plant_card(heads=HEADS + 1)], "Title")


def test_the_page_holds_the_cards_numbers():
    cards = [plant_card(seed=0), plant_card("And why?", WORDS[:3], (2, 5), seed=1)]
    cards[1]["maps"]["attention"][0] = 0  # a map of nothing is zeros
    found = read_data(render_page(cards, "Title"))
    assert (found["title"], found["layers"], found["heads"]) == ("Title", LAYERS, HEADS)
    assert [each["combined"] for each in found["methods"]] == [name in COMBINED for name in METHODS]
    colors = bytes.fromhex(found["colors"])
    assert tuple(colors[3 * 51 : 3 * 52]) == mpl.colormaps["cividis"](51, bytes=True)[:3]
    for card, packed in zip(cards, found["cards"], strict=True):
        for name in ("question", "answer", "tokens"):
            assert packed[name] == card[name]
        assert packed["grid"] == list(card["grid"])
        for method, maps in card["maps"].items():
            values, shape = packed["maps"][method], maps.shape[:-2]
            exact = (unpack(values[name], "<f4", shape) for name in ("maxima", "sums", "totals"))
            maxima, sums, totals = exact
            np.testing.assert_array_equal(maxima, maps.max((-2, -1)))
            np.testing.assert_allclose(sums, maps.sum((-2, -1)), rtol=1e-6)
            np.testing.assert_allclose(totals, card["totals"][method], rtol=1e-6)
            restored = unpack(values["bytes"], "u1", maps.shape) * maxima[..., None, None] / 255
            assert (abs(restored - maps) <= maxima[..., None, None] / 509).all()


def test_texts_are_never_read_as_html():
    card = plant_card(HOSTILE, ["[CLS]", HOSTILE, "[SEP]"]) | {"answer": HOSTILE}
    page, plain = render_page([card], HOSTILE), render_page([plant_card()], "T")
    tags = [[element.name for element in parse(each).find_all()] for each in (page, plain)]
    assert tags[0] == tags[1]
    data = read_data(page)
    card = data["cards"][0]
    assert [data["title"], card["question"], card["answer"], card["tokens"][1]] == [HOSTILE] * 4


@settings(max_examples=40)
@given(st.text(st.characters(exclude_categories=())))  # half an emoji included
def test_escaped_json_gives_back_any_text(text):
    escaped = viewer.escape_json({text: [text]})
    assert json.loads(escaped) == {text: [text]}
    assert escaped.isascii()
    assert not set("<>&") & set(escaped)


def test_the_page_loads_nothing_and_is_the_same_each_time(tmp_path):
    path = write_page(tmp_path / "page.html", [plant_card()], "Title")
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
    page = path.read_text(encoding="utf-8")
    assert page == render_page([plant_card()], "Title")
    fetching = "[src], [href], [srcset], link, iframe, object, base, form"
    assert not parse(page).select(fetching)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page  # a browser would not follow an address either


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1])
def test_maps_that_cannot_be_drawn_are_an_error_and_the_old_file_stands(tmp_path, wrong):
    path = tmp_path / "page.html"
    path.write_text("old")
    card = plant_card()
    card["maps"]["rollout"][1, 2, 0, 0] = wrong
    with pytest.raises(ValueError, match=r"rollout maps of 'What is it\?'"):
        write_page(path, [card], "Title")
    assert path.read_text() == "old"


def read_frame(box: widgets.VBox) -> str:
    """The page that the widget shows."""
    (frame,) = parse(box.children[1].value).find_all()
    assert frame["sandbox"] == ["allow-scripts"]
    return frame["srcdoc"]


@pytest.mark.parametrize("odd", [HOSTILE, "", "half \ud83d", "100 %s {0} \n ünï"])
def test_the_widget_steps_through_questions_and_layers(odd):
    """Options are shown as text, and the page is one attribute of one element."""
    cards = [plant_card(), plant_card(odd, ["[CLS]", odd], seed=1)]
    box = show_page(cards, odd, token=3)
    question, layer = box.children[0].children
    assert (layer.min, layer.value, layer.max) == (0, LAYERS - 1, LAYERS - 1)
    assert not any(each.description_allow_html for each in (question, layer))
    json.dumps([box.children[1].value, question.options], ensure_ascii=False).encode("utf-8")
    first = read_data(read_frame(box))
    assert first["cards"] == [json.loads(json.dumps(pack_card(cards[0])))]
    assert first["start"] == {"layer": LAYERS - 1, "token": 3}
    layer.value, question.value = 1, 1
    second = read_data(read_frame(box))
    assert second["cards"][0]["question"] == odd
    assert second["start"] == {"layer": 1, "token": 1}  # this question has no fourth word
    layer.value = 99
    assert layer.value == LAYERS - 1


@pytest.fixture(scope="module")
def cards():
    first, second = plant_card(), plant_card("Where?", ("[CLS]", "where", "[SEP]"), (4, 3), seed=1)
    planted = first["maps"]["attention"][1, 1, 2]
    planted[:], planted[2, 1], planted[0, 3] = 0, 0.5, 0.1
    first["totals"]["attention"][1, 1, 2] = 0.8
    return [first, second]


@pytest.fixture
def page(driver, cards, tmp_path):
    """The driver, with a page of the two cards opened anew."""
    browser.open_page(driver, write_page(tmp_path / "page.html", cards, "Where it looks"))
    yield driver
    assert browser.console_errors(driver) == []
    assert browser.list_requests(driver) == []


def find(driver, selector: str):
    return driver.find_element("css selector", selector)


def list_texts(driver, selector: str) -> list[str]:
    elements = driver.find_elements("css selector", selector)
    return [each.get_attribute("textContent") for each in elements]


def click_word(driver, token: int) -> None:
    driver.find_elements("css selector", "#words button")[token].click()


def choose(driver, name: str, place: int) -> None:
    find(driver, f"#{name} option:nth-of-type({place + 1})").click()


def slide(driver, layer: int) -> None:
    """Move the slider by its keys."""
    from selenium.webdriver.common.keys import Keys

    find(driver, "#layer").send_keys(Keys.HOME + layer * Keys.ARROW_RIGHT)


def check_drawn(driver, card, method, layer, head, token) -> None:
    """Each patch has the colour of its weight; a byte a patch may move it by one colour of 256."""
    weights = select(card["maps"], method, layer, head, token)
    levels = (255 * weights / weights.max()).round().astype(int)
    colors = mpl.colormaps["cividis"](levels, bytes=True).astype(int)
    drawn = browser.read_canvas(driver, "#map")
    assert drawn.shape == (*card["grid"], 4)
    assert abs(drawn - colors).max() <= 4


@pytest.mark.browser
def test_a_planted_patch_is_lit_alone(page, cards):
    check_drawn(page, cards[0], "attention", 2, MEAN, 0)  # it starts with [CLS] in the last layer
    click_word(page, 2)
    slide(page, 1)
    choose(page, "head", 2)  # mean, H0, H1
    cividis, drawn = mpl.colormaps["cividis"], browser.read_canvas(page, "#map")
    assert tuple(drawn[2, 1]) == cividis(255, bytes=True)
    assert tuple(drawn[0, 3]) == cividis(51, bytes=True)  # a fifth of the largest
    drawn[2, 1] = drawn[0, 3] = cividis(0, bytes=True)
    assert (drawn == cividis(0, bytes=True)).all()
    status = find(page, "#status").text
    assert "75 %" in status  # 0.6 of 0.8
    assert "67 %" in status  # evenly: 12 patches among them, 5 words and the image's own CLS


@pytest.mark.browser
@pytest.mark.parametrize("place", range(len(METHODS)))
def test_methods_layers_heads_and_words_draw_what_they_name(page, cards, place):
    method = list(METHODS)[place]
    choose(page, "method", place)
    for layer, head, token in ((0, 1, 3), (2, 0, 0), (1, MEAN, 4)):
        slide(page, layer)
        if method not in COMBINED:
            choose(page, "head", head + 1)
        click_word(page, token)
        check_drawn(page, cards[0], method, layer, head, token)
        share = select(cards[0]["maps"], method, layer, head, token).sum()
        share /= select(cards[0]["totals"], method, layer, head, token)
        status = find(page, "#status").text
        assert (
            f"{WORDS[token]}” gives {100 * share:.0f} % of its {METHODS[method]['noun']}" in status
        )


@pytest.mark.browser
def test_hostile_texts_stay_texts_in_a_frame_that_reaches_nothing_outside(driver, tmp_path):
    """As a notebook does, the frame is put into a page by innerHTML."""
    card = plant_card(HOSTILE, ["[CLS]", HOSTILE, "is", "[SEP]"]) | {"answer": HOSTILE}
    box = show_page([card], HOSTILE, token=1)
    box.children[0].children[1].value = 1
    path = tmp_path / "notebook.html"
    path.write_text('<meta charset="utf-8"><div></div>')
    browser.open_page(driver, path)
    script = "document.querySelector('div').innerHTML = arguments[0]"
    driver.execute_script(script, box.children[1].value)
    driver.switch_to.frame(find(driver, "iframe"))
    for selector in ("h1", "#answer", "#words [aria-pressed=true]"):
        assert list_texts(driver, selector) == [HOSTILE]
    assert list_texts(driver, "#question option") == [f"1: {HOSTILE}"]
    assert HOSTILE in find(driver, "#status").get_attribute("textContent")
    assert len(driver.find_elements("css selector", "script")) == 2
    assert len(driver.find_elements("css selector", "img")) == 2
    check_drawn(driver, card, "attention", 1, MEAN, 1)
    assert find(driver, "#layer").get_attribute("value") == "1"
    outside = "try { return String(parent.document) } catch (error) { return error.name }"
    assert driver.execute_script(outside) == "SecurityError"
    driver.switch_to.default_content()
    assert browser.console_errors(driver) == []
    assert browser.list_requests(driver) == []
