"""Headless Chromium for the tests of pages; where there is none they are skipped.

driver = browser.make_fixture()  # in a test module, shared by its tests

def test_it(driver, tmp_path):
    browser.open_page(driver, tmp_path / "page.html")
    assert not browser.console_errors(driver)
"""

import base64
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def make_fixture():
    """A fixture of a test module: a Selenium driver, closed after the module's last test."""

    @pytest.fixture(scope="module")
    def driver(tmp_path_factory):
        pytest.importorskip("selenium")
        started = start_browser(tmp_path_factory.mktemp("chromium"))
        yield started
        started.quit()

    return driver


def start_browser(folder: Path):
    """Chromium with its profile in `folder`; skips the test where there is none."""
    from selenium import webdriver

    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with a chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver, env={**os.environ, "HOME": str(folder)})
    return webdriver.Chrome(options=options, service=service)


def open_page(driver, path: Path, width: int = 1100, height: int = 900) -> None:
    """Open a file in a window `width` pixels wide (a phone below 600); forget earlier logs."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get("about:blank")
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get(Path(path).absolute().as_uri())


def console_errors(driver) -> list[str]:
    """What the page has written to the console since the last call, blocked requests too."""
    return [entry["message"] for entry in driver.get_log("browser")]


def list_requests(driver) -> list[str]:
    """Addresses requested since the last call, but for the page itself and data addresses."""
    seen = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [
        each["params"]["request"]["url"]
        for each in seen
        if each["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in asked if url != driver.current_url and not url.startswith("data:")]


def read_canvas(driver, selector: str) -> np.ndarray:
    """The pixels of a canvas: (rows, columns, RGBA)."""
    address = driver.execute_script(
        "return document.querySelector(arguments[0]).toDataURL()", selector
    )
    png = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)
