"""The report and the slides, as text and in a browser."""

import base64
import io
import re

import browser
import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from helpers.report.export import clean, list_shown_cells, write_pages
from helpers.run.settings import Study

driver = browser.make_fixture()

OPENING = """# 07 · What *is* it?

[![badge](https://example.org/badge.svg)](https://example.org) [index](../README.md)

**Answer.** <!--answer-->42 % [40, 44]. **Layers.** Four.<!--/answer-->

**You will learn**
- nothing"""
HOSTILE = (
    '<script>window.hurt = 1</script><img src="https://example.org/x.png" '
    'onerror="window.hurt = 2"> {{body}} {% x %} \\1'
)
LONG = "antidisestablishmentarianism" * 8


def make_png(width=900, height=400) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "steelblue").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def markdown(text, *tags):
    return new_markdown_cell(text, metadata={"tags": list(tags)})


def code(kind=None, value="", *tags, source="code_that_nobody_shall_see()"):
    data = {kind: value, "text/plain": "plain"}
    outputs = [new_output("display_data", data=data)] if kind else []
    return new_code_cell(source, metadata={"tags": list(tags)}, outputs=outputs)


def make_cells():
    table = "<table border='1' class='dataframe'><tr>" + f"<td>{LONG}</td>" * 6 + "</tr></table>"
    return [
        markdown(OPENING, "slide"),
        markdown("## 7.1 First\n\nA [notebook](03_layer_attention.ipynb).", "slide", "page"),
        code("text/markdown", "**42 %**<br>headline", "on-slide", "headline"),
        code("image/png", make_png(), "slide"),
        markdown(
            '*Figure 7.1. A "figure" of `this` & that, from [03](03_layer_attention.ipynb).*\n\n'
            "Text after it."
        ),
        markdown(f"## 7.2 Second {HOSTILE}\n\n{LONG}", "slide"),
        code("text/html", table, "on-slide"),
        code(None),
        markdown("*Figure 7.2. A caption without a figure.*"),
        code("text/markdown", "not for the report", "report-out"),
    ]


def export_run(tmp_path, cells, name="run"):
    study = Study.load(run_name=name, runs_root=str(tmp_path))
    path = study.folder("notebooks") / "07_report.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return write_pages(study, path)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return export_run(tmp_path_factory.mktemp("runs"), make_cells())


def read(path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def texts(soup, selector):
    return [each.get_text(" ", strip=True) for each in soup.select(selector)]


def test_the_report_has_a_title_an_answer_and_a_table_of_contents(pages):
    report = read(pages[0])
    assert report.title.get_text() == "What is it?"
    assert texts(report, "header h1") == ["What is it?"]
    lines = report.header.p.get_text("\n").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    assert lines == ["Answer.", "42 % [40, 44].", "Layers.", "Four."]
    breaks = [str(line.find_next_sibling("strong")) for line in report.header.select("br")]
    assert breaks == ["<strong>Layers.</strong>"]
    assert "You will learn" not in report.get_text()
    assert "run run · seed 0" in report.header.get_text()
    assert [text[:9] for text in texts(report, "nav a")] == ["7.1 First", "7.2 Secon"]
    for link in report.select("nav a"):
        assert len(report.find_all(id=link["href"][1:])) == 1
    assert [section.get("class") for section in report.select("section")] == [["page"], None]


def test_figures_have_their_caption_and_a_text_alternative(pages):
    report = read(pages[0])
    assert len(report.select("figure")) == len(report.select("img")) == 1
    assert report.img["alt"] == 'Figure 7.1. A "figure" of this & that, from 03.'
    assert report.figcaption.get_text() == report.img["alt"]
    assert report.img["src"].startswith("data:image/png;base64,")
    assert "A caption without a figure" not in report.get_text()
    assert "Text after it." in report.get_text()


def test_code_and_cells_that_are_kept_out_are_not_in_the_report(pages):
    report = read(pages[0])
    assert not re.search("code_that_nobody_shall_see|not for the report", report.get_text())
    assert report.select(".headline strong")[0].get_text() == "42 %"


def test_slides_are_the_tagged_cells_in_order(pages):
    slides = read(pages[1]).select("body > section")
    assert [slide["data-page"] for slide in slides] == ["1 / 4", "2 / 4", "3 / 4", "4 / 4"]
    assert texts(slides[0], "h1") == ["What is it?"]
    assert texts(slides[1], "h2, .headline strong") == ["7.1 First", "42 %"]
    assert texts(slides[2], ".running") == ["7.1 First"]
    assert len(slides[2].select("img")) == 1
    assert len(slides[3].select("table")) == 1
    assert "Text after it" not in read(pages[1]).get_text()


def test_the_pages_hold_nothing_that_runs_or_is_fetched(pages):
    for page in pages:
        soup = read(page)
        runs = "iframe, object, embed, link, base, form, [onerror], [onload], body [style]"
        assert not soup.select(runs)
        assert all(image["src"].startswith("data:") for image in soup.select("img"))
        assert "window.hurt" not in "".join(each.get_text() for each in soup.select("script"))
        assert not re.search(r"@import|url\(", page.read_text(encoding="utf-8"))
        policy = soup.select_one('meta[http-equiv="Content-Security-Policy"]')["content"]
        assert "default-src 'none'" in policy
        assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    assert not read(pages[0]).select("script")


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("<p onclick='x()'>a<script>b</script></p>", "<p>a</p>"),
        ("<img src='https://example.org/a.png' alt='a'>", ""),
        ("<a href='javascript:x()'>a</a>", "a"),
        ("<a href='https://example.org'>a</a>", '<a href="https://example.org">a</a>'),
        ("<a href='02_finetune.ipynb'>a</a>", '<a href="notebooks/02_finetune.html">a</a>'),
        ("<a href='../README.md'>a</a>", "a"),
        ("<table class='b'></table>", '<div class="table" tabindex="0"><table></table></div>'),
    ],
)
def test_cleaning(source, left):
    assert clean(source) == left


SHOWN = code("text/markdown", "a")


@pytest.mark.parametrize(("cells", "says"), [
    ([markdown(OPENING, "slide"), code()], r"07_report\.ipynb has no outputs: execute it"),
    ([markdown("no heading", "slide"), SHOWN], "no title"),
    ([markdown(OPENING), SHOWN], 'tagged "slide"'),
    ([markdown(OPENING, "on-slide"), SHOWN], '"on-slide", but no cell before'),
])  # fmt: skip
def test_wrong_notebooks_are_errors_that_say_what_to_do(tmp_path, cells, says):
    with pytest.raises(ValueError, match=says):
        export_run(tmp_path, cells)


def test_outputs_that_are_no_figure_table_or_text_are_left_out():
    printed = new_code_cell("print(1)", outputs=[new_output("stream", name="stdout", text="1")])
    assert list_shown_cells([printed, code("application/json", {"a": 1})]) == []


def check_quiet(driver):
    assert browser.console_errors(driver) == []
    asked = [url.partition("#")[0] for url in browser.list_requests(driver)]
    assert set(asked) <= {driver.current_url.partition("#")[0]}
    assert driver.execute_script("return window.hurt") is None


@pytest.mark.browser
@pytest.mark.parametrize("width", [1100, 390])
def test_the_report_fits_desktop_and_phone(driver, pages, width):
    browser.open_page(driver, pages[0], width)
    assert browser.page_width(driver) <= width
    assert driver.execute_script("return document.images[0].getBoundingClientRect().width") <= width
    check_quiet(driver)


def shown(driver) -> list[str]:
    """The numbers of the slides that can be seen."""
    script = (
        "return [...document.querySelectorAll('section')]"
        ".filter(slide => slide.getClientRects().length).map(slide => slide.dataset.page)"
    )
    return driver.execute_script(script)


def press(driver, key):
    driver.find_element("css selector", "body").send_keys(key)


@pytest.mark.browser
def test_slides_go_by_key_button_and_address(driver, pages):
    from selenium.webdriver.common.keys import Keys

    browser.open_page(driver, pages[1], 1280, 720)
    assert shown(driver) == ["1 / 4"]
    keys = [
        (Keys.ARROW_RIGHT, 2), (" ", 3), (Keys.PAGE_UP, 2), (Keys.END, 4), (Keys.ARROW_RIGHT, 4),
        (Keys.HOME, 1), (Keys.ARROW_LEFT, 1),
    ]  # fmt: skip
    for key, page in keys:
        press(driver, key)
        assert shown(driver) == [f"{page} / 4"]
    assert not driver.find_element("id", "back").is_enabled()
    driver.find_element("id", "next").click()
    assert shown(driver) == ["2 / 4"]
    assert driver.find_element("id", "page").text == "2 / 4"
    driver.execute_script("location.hash = '3'")
    driver.execute_async_script("setTimeout(arguments[0], 50)")
    assert shown(driver) == ["3 / 4"]
    check_quiet(driver)


def swipe(driver, across: int, down: int = 0) -> None:
    point = {"x": 200, "y": 300}
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    end = {"x": point["x"] + across, "y": point["y"] + down}
    for kind, points in (("touchStart", [point]), ("touchMove", [end]), ("touchEnd", [])):
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    driver.execute_async_script("setTimeout(arguments[0], 50)")


@pytest.mark.browser
def test_slides_go_by_touch_on_a_phone_and_fit_it(driver, pages):
    browser.open_page(driver, pages[1], 390, 800)
    for across, down, page in ((-150, 5, 2), (-150, 5, 3), (150, 0, 2), (20, 150, 2)):
        swipe(driver, across, down)
        assert shown(driver) == [f"{page} / 4"]
    for number in range(4):
        driver.execute_script(f"location.hash = '{number + 1}'")
        driver.execute_async_script("setTimeout(arguments[0], 50)")
        assert browser.page_width(driver) <= 390
        width = "return document.querySelector('section.on').scrollWidth"
        assert driver.execute_script(width) <= 390
    check_quiet(driver)


@pytest.mark.browser
def test_print_is_one_slide_a_page(driver, pages):
    browser.open_page(driver, pages[1])
    settings = {"preferCSSPageSize": True, "printBackground": True}
    pdf = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", settings)["data"])
    sizes = re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", pdf)
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf)) == 4
    assert {(round(float(width)), round(float(height))) for width, height in sizes} == {(960, 540)}
