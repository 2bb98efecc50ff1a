"""Pages for tests: as a file, and in a real headless Chromium (Debian's packages chromium and chromium-driver, or a Chrome)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# it asks nobody for updates, and works in a container
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
)


class Content(HTMLParser):
    """What a report holds without being run: tables' rows, figures, plots, examples (id, heading, reason), tags, links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.figures: dict[str, float] = {}
        self.tags: list[str] = []
        self.links: list[str] = []
        self.examples: list[list[str]] = []
        self._table: list[list[str]] = []
        self._cell = self._json = self._told = False
        self._data = ""
        self.feed(page)
        self.plots = {plot["id"]: plot for plot in json.loads(self._data)}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        if tag == "table":
            self._table = self.tables[str(named["id"])] = []
        elif tag == "tr":
            self._table.append([])
        elif tag == "td":
            self._cell = "data-v" not in named
            self._table[-1].append(str(named.get("data-v") or ""))
        elif tag == "article":
            self.examples.append([str(named["data-id"])])
        elif tag in ("strong", "p") and self.examples and len(self.examples[-1]) < 3:
            self._told = tag == "strong" or named.get("class") == "reason"
        elif tag == "dd":
            self.figures[str(named["data-figure"])] = float(str(named["data-v"]))
        self.links += [str(named[name]) for name in ("href", "src") if named.get(name)]
        self._json = tag == "script" and named.get("type") == "application/json"

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag != "td"
        self._json = self._json and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._told:
            self.examples[-1].append(data)
            self._told = False
        if self._cell:
            self._table[-1][-1] += data
        if self._json:
            self._data += data

    def rows(self, table: str) -> list[list[str]]:
        return [row for row in self.tables[f"table-{table}"] if row]


class Browser:
    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Wait until the page has drawn itself."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        self.driver.get(page.as_uri())
        self.wait("return document.documentElement.dataset.drawn !== undefined")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def each(self, selector: str, what: str) -> list[Any]:
        """`what`, an expression of the element e, of every element."""
        return list(self.run(f"return [...document.querySelectorAll(arguments[0])].map((e) => {what})", selector))

    def count(self, selector: str) -> int:
        """Of the elements that are not hidden by the filters."""
        return self.each(selector, "e.closest('[hidden]') === null").count(True)

    def wait(self, script: str, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < deadline, (script, self.log())
            time.sleep(0.05)

    def log(self, *levels: str) -> list[str]:
        """What the page's scripts, and the browser about the page, said since it was asked last; default everything."""
        return [json.dumps(entry) for entry in self.driver.get_log("browser") if not levels or entry["level"] in levels]

    def fill(self, field: str, value: str) -> None:
        """Give a field of the filters a value, as a user's input, and wait for what follows."""
        self.run("delete document.documentElement.dataset.shows")
        self.run("document.getElementById(arguments[0]).value = arguments[1]", field, value)
        self.run("document.getElementById(arguments[0]).dispatchEvent(new Event('input', {bubbles: true}))", field)
        self.wait("return document.documentElement.dataset.shows !== undefined")

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        actions = ActionChains(self.driver)
        for key in keys:
            actions.send_keys(key)
        actions.perform()

    def picture(self, path: Path) -> None:
        """The whole page, as a PNG."""
        size = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], 12000), "scale": 1}
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(taken["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """Skips the test where there is no browser."""
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no browser: install Debian's packages chromium and chromium-driver")
    os.environ["SE_AVOID_STATS"] = "true"  # Selenium tells its makers of its use otherwise
    os.environ["SE_OFFLINE"] = "true"
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(opened)
    finally:
        opened.quit()
