"""What of the documentation is made from the code, and the site as it is built."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from documents import DOCS, PAGES, block
from harness import ROOT
from interpreter import environment
from test_connection import PUBLIC

from keepalive_worker import holding, loop, stream
from keepalive_worker.connection import CLOSED, HANDLING, IDLE, LINGERING, TRANSITIONS

sys.path.append(str(ROOT))  # what builds the documentation is in the checkout, it is not installed

from docs_build import PARTS, benchmark, diagram, reference

# --- what is made from the code ----------------------------------------------------------------------------


def test_every_part_is_made_and_asked_for() -> None:
    text = "\n".join(path.read_text() for path in PAGES.values())
    asked = re.findall(r"^<!-- generated: (.+?) -->$", text, re.MULTILINE)
    assert sorted(asked) == sorted(PARTS)
    for make in PARTS.values():
        assert make()


def test_public_attributes_are_described() -> None:
    assert set(reference.CONNECTION_ATTRIBUTES) == PUBLIC


def test_a_reason_without_a_description_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "REASONS", dict(list(reference.REASONS.items())[1:]))
    with pytest.raises(reference.DisagreementError, match="client"):
        reference.reasons()


def test_a_key_without_a_description_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "REPORT", reference.REPORT | {"histogram": {"count": "", "sum": ""}})
    with pytest.raises(reference.DisagreementError, match="buckets"):
        reference.report_keys("histogram")


def drawn_transitions() -> set[tuple[str, str]]:
    drawn = set()
    for arrow in ET.fromstring(diagram.svg()).iter("{http://www.w3.org/2000/svg}path"):
        if "data-from" in arrow.attrib:
            drawn |= {(start, arrow.attrib["data-to"]) for start in arrow.attrib["data-from"].split()}
    return drawn


def test_the_diagram_is_the_table_of_states() -> None:
    names = diagram.NAMES
    assert names[HANDLING] == "HANDLING"
    assert drawn_transitions() == {(names[a], names[b]) for a, others in TRANSITIONS.items() for b in others}
    states = [each.attrib["data-state"] for each in ET.fromstring(diagram.svg()).iter() if "data-state" in each.attrib]
    assert sorted(states) == sorted(names.values())


@pytest.mark.parametrize(
    "changed",
    [
        {IDLE: TRANSITIONS[IDLE] - {HANDLING}},
        {LINGERING: TRANSITIONS[LINGERING] | {IDLE}},
        {CLOSED: frozenset((IDLE,))},
    ],
)
def test_a_diagram_of_another_table_is_not_made(monkeypatch: pytest.MonkeyPatch, changed: Any) -> None:
    monkeypatch.setattr(diagram, "TRANSITIONS", TRANSITIONS | changed)
    with pytest.raises(reference.DisagreementError, match="IDLE"):
        diagram.svg()


def test_modules_that_the_architecture_names_exist() -> None:
    text = PAGES["architecture.md"].read_text()
    names = set(re.findall(r"`(\w+\.py)`", text))
    modules = {path.name for path in (ROOT / "keepalive_worker").glob("*.py")} - {"__init__.py"}
    assert names - {"__main__.py"} <= modules


def test_what_is_said_of_sending_and_receiving_is_so() -> None:
    text = PAGES["performance.md"].read_text()
    assert f"received {stream._RECEIVE // 1024} KB at a time" in text
    assert (loop.SLICE, holding.CALM) == (0.005, 0.1)
    assert "five milliseconds" in text
    assert "tenth of a second" in text
    assert f"between {holding.WORTH_IT * 1e6:.0f} µs and {holding.SHORT * 1e3:.0f} ms" in text


# --- the site ----------------------------------------------------------------------------------------------


#: The README's command.
BUILD = block("README.md", ".venv/bin/sphinx-build")


def test_continuous_integration_builds_the_site() -> None:
    assert BUILD.text.strip() in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built documentation, without a warning."""
    made = tmp_path_factory.mktemp("docs") / "site"
    program, *options, source, site = shlex.split(BUILD.text)
    assert (program, source, site) == (".venv/bin/sphinx-build", "docs", "site")
    command = [sys.executable, "-m", "sphinx", *options, "-d", str(made.parent / "doctrees"), str(DOCS), str(made)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return made


LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\bsrc=["']?(?:https?:)?//|<link[^>]*\bhref=["']?(?:https?:)?//"""
)


def test_pages_load_nothing_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES) - 1
    for page in pages:
        assert LOADED.search(page.read_text()) is None, page
    for sheet in site.rglob("*.css"):
        assert re.search(r"""(?:url\(["']?|@import ["'])(?:https?:)?//""", sheet.read_text()) is None, sheet


def test_pages_have_what_was_generated(site: Path) -> None:
    assert 'id="min-data-rate"' in (site / "reference" / "settings.html").read_text()
    assert "keepalive_connections_closed_total" in (site / "reference" / "metrics.html").read_text()
    assert 'data-from="IDLE"' in (site / "architecture.html").read_text()
    for page in site.rglob("*.html"):
        assert "generated:" not in page.read_text()


def test_links_within_the_site_have_a_target(site: Path) -> None:
    ids = {page: set(re.findall(r'\bid="([^"]+)"', page.read_text())) for page in site.rglob("*.html")}
    followed = 0
    for page in ids:
        for path, fragment in re.findall(r'<a class="reference internal" href="([^"#]*)#?([^"]*)"', page.read_text()):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {path}"
            assert not fragment or fragment in ids[target], f"{page.name}: {path}#{fragment}"
            followed += 1
    assert followed > 100


# --- figures -------------------------------------------------------------------------------------------------


def test_the_readme_has_the_figures_of_the_published_report() -> None:
    assert benchmark.summary() in (ROOT / "README.md").read_text()


def test_the_table_of_python_s_part_is_what_the_command_prints() -> None:
    """Its rows, that is: the figures are those of one day."""
    from benchmarks.inside import PARTS as ROWS

    lines = [line for line in benchmark.inside().splitlines() if line.startswith("| ")]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert rows[2:] == [title for title, _ in ROWS]


def test_the_readme_says_what_an_idle_connection_costs() -> None:
    """In the table of reasons: rounded figures of the same report."""
    cases = {case["name"]: case for case in json.loads(benchmark.REPORT.read_text())["cases"]}
    measured = [
        benchmark.figure(cases["idle-15000"], server, "KB per idle connection")
        for server in ("gunicorn gevent", "gunicorn gthread", "keepalive_worker")
    ]
    (row,) = re.findall(r"^\| an idle connection costs .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    said = [float(number) for number in re.findall(r"([\d.]+) KB", row)]
    assert said == [round(measured[0]), round(measured[1]), round(measured[2], 1)]
