"""Debian's Chromium without a screen, driven by selenium."""

from __future__ import annotations

import importlib.util
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

#: Seconds that a script in a page may take.
TIMEOUT = 30.0


def start_chromium(*arguments: str, timeout: float = TIMEOUT) -> Chrome:
    """A browser, to be ended by ``quit()``; skips the test where there is none.

    It takes any certificate and keeps what pages write to their console.
    """
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    for name, there in (
        ("Chromium (Debian: chromium)", binary),
        ("its driver (Debian: chromium-driver)", chromedriver),
        ("selenium (PyPI)", importlib.util.find_spec("selenium")),
    ):
        if there is None:
            pytest.skip(f"not tested in a browser: {name} is missing")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(binary)
    options.accept_insecure_certs = True
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-proxy-server",
        *arguments,
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    driver.set_script_timeout(timeout)
    return driver
