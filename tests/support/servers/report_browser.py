"""A headless Chromium that has no profile and no network, for tests of the report."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INSTALL = (
    "expected chromium and chromedriver on the PATH; apt-get install chromium chromium-driver, or deselect "
    "these tests with -m 'not browser'"
)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
_WAIT = 60.0


def program(*names: str) -> str:
    """Path of the first of these programs that there is."""
    for name in names:
        if found := shutil.which(name):
            return found
    raise AssertionError(INSTALL)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A driver of a new browser. Fails, naming what to install, where there is none."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = program("chromium", "chromium-browser", "google-chrome")
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(program("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def open_report(
    driver: Any, path: Path, width: int = 1400, height: int = 1000, *, dark: bool = False
) -> None:
    """Open a report in a window of this size and wait until all of it is there."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(path.absolute().as_uri())
    wait_until(
        lambda: driver.execute_script("return document.documentElement.dataset.ready === 'yes'"), "ready"
    )


def wait_until(condition: Any, what: str) -> Any:
    """Wait for a condition; a page draws when it gets to it."""
    end = time.monotonic() + _WAIT
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not {what} within {_WAIT:.0f} s")


def complaints(driver: Any) -> list[str]:
    """Warnings and errors on the console."""
    return [line["message"] for line in driver.get_log("browser") if line["level"] in ("WARNING", "SEVERE")]


def requests(driver: Any) -> list[str]:
    """Addresses that pages asked for, but for files, data, what scripts made themselves, and a browser's own page."""
    found = []
    for line in driver.get_log("performance"):
        message = json.loads(line["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            parameters = message["params"]
            found.append(parameters.get("url") or parameters["request"]["url"])
    return [
        url
        for url in found
        if not url.startswith(("file:", "data:", "blob:", "chrome:", "chrome-untrusted:"))
    ]
