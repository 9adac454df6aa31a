"""Chromium, and how long it takes to load apps/page.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile

from benchmarks.servers import Server

#: Seconds for Chromium to start, load the page and end.
_PATIENCE = 60


def _program() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def missing() -> str | None:
    """Why there is no browser, or None."""
    return None if _program() else "Chromium is not installed: apt-get install chromium (Debian, Ubuntu)"


def load_page(server: Server, cpu: int | None) -> float:
    """Seconds from the beginning of the navigation until page and images are there, in a new browser.

    :raises RuntimeError: the page has not loaded
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-browser-", ignore_cleanup_errors=True) as profile:
        command = [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
        command += [str(_program()), "--headless", "--disable-gpu", f"--user-data-dir={profile}", "--no-first-run"]
        command += ["--ignore-certificate-errors", "--disable-background-networking", "--dump-dom"]
        if os.geteuid() == 0:
            command.append("--no-sandbox")
        result = subprocess.run(
            [*command, server.url + "/"], capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
    found = re.search(r'<p id="taken">([\d.]+)</p>', result.stdout)
    if found is None:
        raise RuntimeError(f"Chromium has not loaded the page:\n{result.stderr}")
    return float(found[1]) / 1000
