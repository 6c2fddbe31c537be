"""helpers/report/webpage.py: the standalone explorer holds the cards' numbers, shows them, and asks nothing of the network."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import browser
import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.figures.style import IMAGE_COLOR, TEXT_COLOR
from helpers.report.explore import MEAN, METHODS
from helpers.report.webpage import escape_json, write_explorer

driver = browser.make_fixture()

LAYERS, HEADS = 3, 2
COMBINED = ("rollout", "relevance")
HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">&amp; </script> <!-- \u2028 {{data}} {{title}} $& \\1'
WORDS = ("[CLS]", "what", "is", "it", "[SEP]")


def make_card(
    question="What is it?", tokens=WORDS, grid=(3, 4), seed=0, methods=METHODS, heads=HEADS
) -> dict:
    """A card by hand: random weights, of which the patches get a random part."""
    draw = np.random.default_rng(seed)
    maps, totals = {}, {}
    for method in methods:
        axes = (LAYERS,) if method in COMBINED else (LAYERS, heads)
        maps[method] = draw.random((*axes, len(tokens), *grid)).astype(np.float32) / (
            grid[0] * grid[1]
        )
        totals[method] = maps[method].sum((-2, -1)) * (1 + draw.random((*axes, len(tokens))))
    return {
        "picture": Image.new("RGB", (40 * grid[1], 40 * grid[0]), (200, 150, 100)),
        "question": question,
        "boxes": [[40, 0, 20, 60]],
        "answer": f"answer {seed}",
        "tokens": list(tokens),
        "grid": grid,
        "maps": maps,
        "totals": totals,
    }


def select(values, method, layer, head, token):
    """One map, or one total, by its definition."""
    if method in COMBINED:
        return values[method][layer, token]
    heads = range(values[method].shape[1]) if head == MEAN else [head]
    return np.mean([values[method][layer, each, token] for each in heads], axis=0)


class Elements(HTMLParser):
    """Names and attributes of a page's elements, and the text of those that have an id."""

    def __init__(self, page: str):
        super().__init__()
        self.found, self.texts, self.names = [], {}, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.names.append(dict(attributes).get("id"))

    def handle_data(self, data):
        if self.names:
            self.texts.setdefault(self.names[-1], data)


def read_data(path: Path) -> dict:
    """The data in a page, as a browser finds it."""
    return json.loads(Elements(path.read_text(encoding="utf-8")).texts["data"])


def unpack(text: str, kind: str, shape) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind).reshape(shape).astype(np.float64)


# The file


def test_the_file_holds_the_cards_numbers(tmp_path):
    cards = [make_card(seed=0), make_card("And why?", WORDS[:3], (2, 5), seed=1)]
    found = read_data(write_explorer(tmp_path / "page.html", cards, "Title"))
    assert (found["title"], found["layers"], found["heads"]) == ("Title", LAYERS, HEADS)
    assert [each["combined"] for each in found["methods"]] == [name in COMBINED for name in METHODS]
    for card, packed in zip(cards, found["cards"], strict=True):
        assert [packed[name] for name in ("question", "answer", "tokens")] == [
            card[name] for name in ("question", "answer", "tokens")
        ]
        assert packed["grid"] == list(card["grid"])
        for method, maps in card["maps"].items():
            values, shape = packed["maps"][method], maps.shape[:-2]
            maxima = unpack(values["maxima"], "<f4", shape)
            np.testing.assert_array_equal(maxima, maps.max((-2, -1)))
            np.testing.assert_allclose(
                unpack(values["sums"], "<f4", shape), maps.sum((-2, -1)), rtol=1e-6
            )
            np.testing.assert_allclose(
                unpack(values["totals"], "<f4", shape), card["totals"][method], rtol=1e-6
            )
            restored = unpack(values["bytes"], "u1", maps.shape) * maxima[..., None, None] / 255
            assert (abs(restored - maps) <= maxima[..., None, None] / 509).all()


def test_a_map_of_nothing_is_zeros(tmp_path):
    card = make_card()
    card["maps"]["attention"][:] = 0
    packed = read_data(write_explorer(tmp_path / "page.html", [card], "Title"))["cards"][0]["maps"][
        "attention"
    ]
    assert not any(base64.b64decode(packed["bytes"]))


def test_texts_are_never_read_as_html(tmp_path):
    card = make_card(HOSTILE, ["[CLS]", HOSTILE, "[SEP]"]) | {"answer": HOSTILE}
    page = write_explorer(tmp_path / "page.html", [card], HOSTILE).read_text(encoding="utf-8")
    plain = write_explorer(tmp_path / "plain.html", [make_card()], "Title").read_text(
        encoding="utf-8"
    )
    elements = Elements(page)
    assert [tag for tag, _ in elements.found] == [tag for tag, _ in Elements(plain).found]
    data = json.loads(elements.texts["data"])
    card = data["cards"][0]
    assert [data["title"], card["question"], card["answer"], card["tokens"][1]] == [HOSTILE] * 4
    assert not re.search("[<>&\u2028\u2029]", elements.texts["data"])


@given(st.text())
def test_escaped_json_gives_back_any_text(text):
    escaped = escape_json({text: [text]})
    assert json.loads(escaped) == {text: [text]}
    assert escaped.isascii()
    assert not set("<>&") & set(escaped)


def test_the_page_loads_nothing(tmp_path):
    """No address outside data, and a policy under which a browser would not follow one."""
    path = write_explorer(tmp_path / "page.html", [make_card()], "Title")
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
    page = path.read_text(encoding="utf-8")
    elements = Elements(page).found
    assert not [tag for tag, attributes in elements if {"src", "href", "srcset"} & set(attributes)]
    assert not {"link", "iframe", "object", "base", "form"} & {tag for tag, _ in elements}
    assert not re.search(r"https?://|@import|url\(", page)
    policy = next(
        each["content"]
        for _, each in elements
        if each.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "img-src data:;" in policy


def test_the_same_cards_give_the_same_file(tmp_path):
    first, second = (
        write_explorer(tmp_path / name, [make_card()], "T").read_bytes() for name in "ab"
    )
    assert first == second


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1])
def test_maps_that_cannot_be_drawn_are_an_error_and_the_old_file_stands(tmp_path, wrong):
    path = tmp_path / "page.html"
    path.write_text("old")
    card = make_card()
    card["maps"]["rollout"][1, 2, 0, 0] = wrong
    with pytest.raises(ValueError, match=r"rollout maps of 'What is it\?'"):
        write_explorer(path, [card], "Title")
    assert path.read_text() == "old"


def test_cards_that_do_not_fit_together_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one question"):
        write_explorer(tmp_path / "page.html", [], "Title")
    cards = [make_card(), make_card(heads=HEADS + 1)]
    with pytest.raises(ValueError, match="question 2 has other methods, layers or heads"):
        write_explorer(tmp_path / "page.html", cards, "Title")


def test_pictures_are_small_and_boxes_are_parts_of_their_sides(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    pictures = [
        Image.fromarray(noise),  # a photograph is smaller as JPEG
        Image.new("RGB", (600, 800), "red"),
        np.full((20, 30), 7, dtype=np.uint8),  # an array, grey, and small enough
    ]
    cards = [make_card() | {"picture": picture, "boxes": [[3, 5, 6, 10]]} for picture in pictures]
    found = read_data(write_explorer(tmp_path / "page.html", cards, "Title"))["cards"]
    kinds, sizes = [], []
    for packed in found:
        head, _, body = packed["picture"].partition(",")
        image = Image.open(io.BytesIO(base64.b64decode(body)))
        assert head == f"data:image/{image.format.lower()};base64"
        kinds.append(image.format)
        sizes.append(image.size)
    assert kinds == ["JPEG", "PNG", "PNG"]
    assert sizes == [(384, 288), (288, 384), (30, 20)]
    np.testing.assert_allclose(found[2]["boxes"], [[0.1, 0.25, 0.2, 0.5]])
    np.testing.assert_allclose(
        found[1]["boxes"], [[3 / 600, 5 / 800, 6 / 600, 10 / 800]], atol=1e-4
    )


def test_the_page_has_the_houses_colours(tmp_path):
    page = write_explorer(tmp_path / "page.html", [make_card()], "Title")
    assert {TEXT_COLOR, IMAGE_COLOR} <= set(
        re.findall("#[0-9A-F]{6}", page.read_text(encoding="utf-8"))
    )
    colors = bytes.fromhex(read_data(page)["colors"])
    assert len(colors) == 3 * 256
    for level in (0, 51, 255):
        assert (
            tuple(colors[3 * level : 3 * level + 3])
            == mpl.colormaps["cividis"](level, bytes=True)[:3]
        )


# In a browser


@pytest.fixture(scope="module")
def cards():
    first, second = make_card(), make_card("Where?", ("[CLS]", "where", "[SEP]"), (4, 3), seed=1)
    planted = first["maps"]["attention"][1, 1, 2]
    planted[:], planted[2, 1], planted[0, 3] = 0, 0.5, 0.1
    first["totals"]["attention"][1, 1, 2] = 0.8
    first["maps"]["gradient-weighted"][2, :, 1] = first["totals"]["gradient-weighted"][2, :, 1] = 0
    return [first, second]


@pytest.fixture
def page(driver, cards, tmp_path):
    """The driver, with a page of the two cards opened anew."""
    browser.open_page(driver, write_explorer(tmp_path / "page.html", cards, "Where it looks"))
    yield driver
    assert browser.console_errors(driver) == []
    assert browser.list_requests(driver) == []


def find(driver, selector: str):
    return driver.find_element("css selector", selector)


def list_texts(driver, selector: str) -> list[str]:
    return [
        each.get_attribute("textContent") for each in driver.find_elements("css selector", selector)
    ]


def click_word(driver, token: int) -> None:
    driver.find_elements("css selector", "#words button")[token].click()


def choose(driver, name: str, place: int) -> None:
    """Pick an option of a list."""
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
    at_most = drawn[np.unravel_index(weights.argmax(), card["grid"])]
    np.testing.assert_array_equal(at_most, mpl.colormaps["cividis"](255, bytes=True))


def test_it_starts_with_cls_in_the_last_layer(page, cards):
    assert find(page, "h1").text == page.title == "Where it looks"
    assert find(page, "#answer").text == "answer 0"
    assert list_texts(page, "#words button") == list(WORDS)
    assert list_texts(page, "#words [aria-pressed=true]") == ["[CLS]"]
    assert list_texts(page, "#method option") == list(METHODS)
    check_drawn(page, cards[0], "attention", 2, MEAN, 0)


def test_a_planted_patch_is_lit_alone(page):
    click_word(page, 2)
    slide(page, 1)
    choose(page, "head", 2)  # mean, H0, H1
    cividis, drawn = mpl.colormaps["cividis"], browser.read_canvas(page, "#map")
    assert tuple(drawn[2, 1]) == cividis(255, bytes=True)
    assert tuple(drawn[0, 3]) == cividis(51, bytes=True)  # a fifth of the largest
    drawn[2, 1] = drawn[0, 3] = cividis(0, bytes=True)
    assert (drawn == cividis(0, bytes=True)).all()
    status = find(page, "#status").text
    assert status.startswith("L1H1: “is” gives 75 % of its attention to the patches")  # 0.6 of 0.8
    assert "spread evenly: 67 %" in status  # 12 patches among them, 5 words and the image's own CLS
    assert (
        find(page, "#largest").text
        == "50 % of the query's attention, a patch (text query → image key)"
    )
    assert "the most, 50 %, in row 3 of 3, column 2 of 4" in find(page, "#map").get_attribute(
        "aria-label"
    )


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
        assert (
            f"{WORDS[token]}” gives {100 * share:.0f} % of its {METHODS[method].noun}"
            in find(page, "#status").text
        )
        assert METHODS[method].unit.removeprefix("% ") in find(page, "#largest").text


def test_pointing_at_a_word_shows_it_and_leaving_brings_the_pinned_one_back(page, cards):
    from selenium.webdriver import ActionChains

    click_word(page, 1)
    mouse, words = (
        ActionChains(page, duration=0),
        page.find_elements("css selector", "#words button"),
    )
    mouse.move_to_element(words[3]).perform()
    check_drawn(page, cards[0], "attention", 2, MEAN, 3)
    assert list_texts(page, "#words [aria-pressed=true]") == ["what"]
    mouse.move_to_element(find(page, "h1")).perform()
    check_drawn(page, cards[0], "attention", 2, MEAN, 1)


def test_words_by_the_keyboard(page, cards):
    from selenium.webdriver.common.keys import Keys

    chips = page.find_elements("css selector", "#words button")
    chips[0].send_keys(Keys.ARROW_RIGHT)
    check_drawn(page, cards[0], "attention", 2, MEAN, 1)  # the focus shows it
    chips[1].send_keys(Keys.ENTER)
    assert list_texts(page, "#words [aria-pressed=true]") == ["what"]
    chips[1].send_keys(Keys.TAB)
    check_drawn(page, cards[0], "attention", 2, MEAN, 2)
    page.execute_script("document.activeElement.blur()")
    check_drawn(page, cards[0], "attention", 2, MEAN, 1)


def test_the_grid_states_masses_and_chooses_layer_and_head(page, cards):
    from selenium.webdriver.common.keys import Keys

    click_word(page, 2)
    masses = cards[0]["maps"]["attention"][:, :, 2].sum((-2, -1))
    rows = [
        [float(text) for text in list_texts(page, f"#grid tbody tr:nth-child({layer + 1}) button")]
        for layer in range(3)
    ]
    np.testing.assert_allclose(rows, 100 * np.c_[masses, masses.mean(1)], atol=0.5)
    assert list_texts(page, "#grid thead th") == ["", "H0", "H1", "mean"]
    find(page, "#grid [data-layer='1'][data-head='0']").click()
    check_drawn(page, cards[0], "attention", 1, 0, 2)
    assert find(page, "#layer").get_attribute("value") == "1"
    assert find(page, "#head").get_attribute("value") == "0"
    page.switch_to.active_element.send_keys(Keys.ARROW_UP + Keys.ARROW_RIGHT)
    check_drawn(page, cards[0], "attention", 0, 1, 2)
    page.switch_to.active_element.send_keys(
        Keys.ARROW_UP + Keys.ARROW_RIGHT + Keys.ARROW_RIGHT
    )  # to the edges
    check_drawn(page, cards[0], "attention", 0, MEAN, 2)
    assert len(page.find_elements("css selector", "#grid [aria-pressed=true]")) == 1
    assert (
        len(page.find_elements("css selector", "#grid [tabindex='0']")) == 1
    )  # one stop of the tab key


def test_a_combined_method_has_no_heads(page, cards):
    choose(page, "head", 2)
    choose(page, "method", list(METHODS).index("relevance"))
    assert not find(page, "#head").is_enabled()
    assert list_texts(page, "#grid thead th") == ["", "all heads"]
    assert len(page.find_elements("css selector", "#grid button")) == LAYERS
    find(page, "#grid [data-layer='0']").click()
    check_drawn(page, cards[0], "relevance", 0, MEAN, 0)
    assert find(page, "#status").text.startswith("Up to L0: ")
    choose(page, "method", 0)
    assert find(page, "#head").is_enabled()
    check_drawn(page, cards[0], "attention", 0, 1, 0)  # the head that was chosen before


def test_another_question_brings_its_picture_words_and_grid(page, cards):
    before = find(page, "#picture").get_attribute("src")
    slide(page, 1)
    page.execute_script(
        "document.querySelectorAll('#words button')[4].click()"
    )  # no pointer is left there
    choose(page, "question", 1)
    assert find(page, "#picture").get_attribute("src") != before
    assert find(page, "#under").get_attribute("src") == find(page, "#picture").get_attribute("src")
    assert "Where?" in find(page, "#picture").get_attribute("alt")
    assert list_texts(page, "#words button") == ["[CLS]", "where", "[SEP]"]
    assert find(page, "#answer").text == "answer 1"
    check_drawn(page, cards[1], "attention", 1, MEAN, 0)
    choose(page, "question", 0)
    check_drawn(page, cards[0], "attention", 1, MEAN, 0)


def test_boxes_and_heatmap_lie_on_the_picture(page):
    """The box covers its own part of the picture's sides: x 40 to 60 of 160 pixels, y 0 to 60 of 120."""
    for stage in page.find_elements("css selector", ".stage"):
        picture = stage.find_element("css selector", "img").rect
        box = stage.find_element("css selector", "span").rect
        assert box["x"] - picture["x"] == pytest.approx(picture["width"] / 4, abs=1)
        assert box["width"] == pytest.approx(picture["width"] / 8, abs=1)
        assert box["y"] == pytest.approx(picture["y"], abs=1)
        assert box["height"] == pytest.approx(picture["height"] / 2, abs=1)
    below, map_ = find(page, "#under").rect, find(page, "#map").rect
    assert [map_[side] for side in ("x", "y", "width", "height")] == pytest.approx(
        [below[side] for side in ("x", "y", "width", "height")], abs=1
    )


def test_pointing_at_a_patch_reads_its_number(page):
    from selenium.webdriver import ActionChains

    click_word(page, 2)
    find(page, "#grid [data-layer='1'][data-head='1']").click()
    canvas = find(page, "#map")
    across, down = (
        canvas.size["width"] / 4,
        canvas.size["height"] / 3,
    )  # offsets count from the centre
    mouse = ActionChains(page, duration=0)
    mouse.move_to_element_with_offset(canvas, round(-0.5 * across), round(down)).perform()
    assert find(page, "#pointed").text == "Row 3, column 2: 50 % of the query's attention."
    slide(page, 0)
    assert "50 %" not in find(page, "#pointed").text  # not the number of another map


def test_what_does_not_reach_the_answer_is_said_to(page):
    choose(page, "method", list(METHODS).index("gradient-weighted"))
    click_word(page, 1)
    status = find(page, "#status").text
    assert status.startswith("L2, mean of heads: “what” has no relevance here.")
    assert "does not reach the answer" in status
    assert (browser.read_canvas(page, "#map") == mpl.colormaps["cividis"](0, bytes=True)).all()
    click_word(page, 0)
    assert "does not reach" not in find(page, "#status").text


def test_hostile_texts_stay_texts(driver, tmp_path):
    from selenium.common.exceptions import NoAlertPresentException

    card = make_card(HOSTILE, ["[CLS]", HOSTILE, "[SEP]"]) | {"answer": HOSTILE}
    browser.open_page(driver, write_explorer(tmp_path / "page.html", [card], HOSTILE))
    click_word(driver, 1)
    for selector in ("h1", "#answer", "#words button:nth-child(2)"):
        assert list_texts(driver, selector) == [HOSTILE]
    assert list_texts(driver, "#question option") == [f"1: {HOSTILE}"]
    assert HOSTILE in find(driver, "#status").get_attribute("textContent")
    assert len(driver.find_elements("css selector", "script")) == 2
    assert len(driver.find_elements("css selector", "img")) == 2
    with pytest.raises(NoAlertPresentException):
        driver.switch_to.alert.accept()
    assert browser.console_errors(driver) == []
    assert browser.list_requests(driver) == []
    check_drawn(driver, card, "attention", 2, MEAN, 1)


def test_the_policy_keeps_a_page_from_the_network(driver, cards, tmp_path):
    browser.open_page(driver, write_explorer(tmp_path / "page.html", cards, "Title"))
    driver.execute_script(
        "new Image().src = 'http://127.0.0.1:9/a'; fetch('http://127.0.0.1:9/b').catch(() => {})"
    )
    errors = [
        error for error in browser.console_errors(driver) if "Content Security Policy" in error
    ]
    for name in "ab":
        assert any(f"http://127.0.0.1:9/{name}" in error for error in errors)


@pytest.mark.parametrize("width", [400, 1100])
def test_it_fits_the_window(driver, tmp_path, width):
    """Also with twelve heads, a long question and a word without a place to break it."""
    words = ["[CLS]", *["antidisestablishmentarianism" * 4] * 3, "[SEP]"]
    cards = [make_card("What " + "w" * 200, words, heads=12)]
    browser.open_page(driver, write_explorer(tmp_path / "page.html", cards, "t" * 100), width)
    for method in range(len(METHODS)):
        choose(driver, "method", method)
        click_word(driver, method)
        assert browser.page_width(driver) <= width
    assert browser.console_errors(driver) == []


def test_a_page_of_one_combined_method(driver, tmp_path):
    card = make_card(methods=["rollout"])
    browser.open_page(driver, write_explorer(tmp_path / "page.html", [card], "Title"))
    assert not find(driver, "#head").is_enabled()
    check_drawn(driver, card, "rollout", 2, MEAN, 0)
    assert browser.console_errors(driver) == []
