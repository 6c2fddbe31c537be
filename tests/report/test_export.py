"""The report and the slides, as text and in a browser."""

import re

import browser
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image
from small import claim_by_hand

from helpers.report import export
from helpers.report.claims import CLAIMS
from helpers.report.export import TEXT, render_markdown, write_pages
from helpers.run.settings import Study

driver = browser.make_fixture()

HOSTILE = (
    '<script>window.hurt = 1</script><img src="https://example.org/x.png" '
    'onerror="window.hurt = 2"> {{body}} {% x %} \\1'
)


def make_png(path, width, height):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "steelblue").save(path, "PNG")


def make_run(folder, name="run"):
    """A run with two figures and two claims: one judged, one that cannot be, for an odd reason."""
    study = claim_by_hand(folder, name, needs_image=42.0, beats_words=HOSTILE)
    make_png(study.run_dir / "figures" / "02_accuracy.png", 900, 400)
    make_png(study.run_dir / "figures" / "03_layers.png", 900, 800)
    return study


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return write_pages(make_run(tmp_path_factory.mktemp("runs")))


def read(path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def texts(soup, selector):
    return [each.get_text(" ", strip=True) for each in soup.select(selector)]


def test_every_claim_stands_in_the_table_and_in_its_question(pages):
    report = read(pages[0])
    keys = pd.read_csv(CLAIMS, dtype=str)
    rows = [texts(row, "td") for row in report.select("table tbody tr")]
    assert len(rows) == len(keys) == len(report.select("ul.claims li"))
    assert rows[0][1:3] == ["supported", "42.0 [41.0, 43.0] points"]
    assert rows[1][1:3] == ["not testable", HOSTILE], "a reason is shown as it is"
    for link in report.select("td a:not(.place)"):
        assert len(report.find_all(id=link["href"][1:])) == 1
    root, places = Study.load().root, [link["href"] for link in report.select("td a.place")]
    assert len(places) == len(keys), "each claim is judged in a notebook"
    assert all("." in name for name in texts(report, "td a.place")), "in a section of it"
    for place in places:
        assert (root / place.partition("#")[0]).with_suffix(".ipynb").is_file()


def test_each_slide_is_a_claim_with_its_verdict_and_number(pages):
    slides = read(pages[1]).select("body > section")
    assert texts(slides[0], ".verdict, .number") == ["supported", "42.0 [41.0, 43.0] points"]
    assert len({slide.h1.get_text() for slide in slides}) == len(slides) == 10


def test_every_figure_that_the_pages_want_is_shown_in_a_notebook_with_a_caption():
    wanted = [*TEXT["hero"], *(name for _, *names in TEXT["slides"] for name in names)]
    wanted += [name for section in TEXT["sections"] for name in section["figures"]]
    root = Study.load().root
    assert [name for name in wanted if not export.find_caption(root, name)] == []


def test_other_runs_stand_beside_this_one(tmp_path):
    make_run(tmp_path, "other")
    report = read(write_pages(make_run(tmp_path), ["other", "run"])[0])
    assert texts(report, "#runs th") == ["claim", "run", "other"]
    assert texts(report, "#runs tbody tr:first-child td")[1:] == [
        "supported: 42.0 [41.0, 43.0] points"
    ] * 2  # fmt: skip


def test_a_run_that_holds_nothing_still_has_pages(tmp_path):
    report, slides = write_pages(Study.load(runs_root=str(tmp_path)))
    assert not read(report).select("img")
    assert len(read(slides).select("section")) == 10


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
        ("a<script>b</script>", "<p>a&lt;script&gt;b&lt;/script&gt;</p>"),
        ("b ![a](https://example.org/a.png)", "<p>b </p>"),
        ("[a](javascript:x())", '<p><a href="#harmful-link">a</a></p>'),
        ("[a](https://example.org)", '<p><a href="https://example.org">a</a></p>'),
        ("[a](02_finetune.ipynb)", '<p><a href="notebooks/02_finetune.html">a</a></p>'),
        ("[a](../04_x.ipynb)", '<p><a href="notebooks/04_x.html">a</a></p>'),
    ],
)
def test_markdown_holds_nothing_that_runs_or_is_fetched(source, left):
    assert render_markdown(source) == left


def shown(driver) -> list[str]:
    """The numbers of the slides that can be seen."""
    script = (
        "return [...document.querySelectorAll('section')]"
        ".filter(slide => slide.getClientRects().length).map(slide => slide.dataset.page)"
    )
    return driver.execute_script(script)


@pytest.mark.browser
def test_slides_go_by_key_button_and_address(driver, pages):
    from selenium.webdriver.common.keys import Keys

    browser.open_page(driver, pages[1], 1280, 720)
    assert shown(driver) == ["1 / 10"]
    right = Keys.ARROW_RIGHT
    for key, page in ((right, 2), (Keys.END, 10), (right, 10), (Keys.HOME, 1)):
        driver.find_element("css selector", "body").send_keys(key)
        assert shown(driver) == [f"{page} / 10"]
    driver.find_element("id", "next").click()
    assert shown(driver) == ["2 / 10"]
    driver.execute_script("location.hash = '3'")
    driver.execute_async_script("setTimeout(arguments[0], 50)")
    assert shown(driver) == ["3 / 10"]
    assert browser.console_errors(driver) == []
    asked = [url.partition("#")[0] for url in browser.list_requests(driver)]
    assert set(asked) <= {driver.current_url.partition("#")[0]}
