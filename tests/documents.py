"""The documentation as tests see it: the code in its pages, and what it takes to do as they say.

:func:`code` gives the blocks of a page, :class:`Shell` types commands as a reader would, :class:`Site` is a server
that was started by a command of a page.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import ROOT, TIMEOUT, Client, wait_until
from interpreter import environment
from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from typing_extensions import Self

DOCS = ROOT / "docs"

#: Every page, by the name that tests call it.
PAGES = {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob("*.md"))} | {"README.md": ROOT / "README.md"}

#: Where the pages' servers listen, and where a test's does.
ADDRESS = "127.0.0.1:8000"

#: Seconds for a command; some install packages.
COMMAND_TIMEOUT = 240


@dataclass(frozen=True)
class Block:
    """A piece of code in a page."""

    page: str
    #: Of its first line in the file.
    line: int
    #: The nearest heading above.
    heading: str
    #: What the fence says; empty for an indented block.
    language: str
    #: The name of the file that it is, where the page says so.
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def with_changes(self, changes: Mapping[str, str]) -> str:
        """The text with every key of *changes* replaced; each has to be there."""
        text = self.text
        for old, new in changes.items():
            assert old in text, f"{self}: no {old!r} in:\n{text}"
            text = text.replace(old, new)
        return text

    def write(self, directory: Path, changes: Mapping[str, str] | None = None) -> Path:
        """Write the file that it is, below *directory* by the name that the page gives it."""
        path = directory / self.title.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.with_changes(changes or {}))
        return path


def code(page: str) -> list[Block]:
    """Every block of code in a page; directives of the documentation's builder are none."""
    blocks = []
    heading = ""
    tokens = MarkdownIt("commonmark").parse(PAGES[page].read_text())
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and following is not None:
            heading = following.content
        if token.type not in ("fence", "code_block") or token.info.startswith("{"):
            continue
        language, _, rest = token.info.partition(" ")
        title = re.fullmatch(r'title="([^"]+)"', rest)
        assert title or not rest, f"{page}: ```{token.info}"
        assert token.map is not None
        line = token.map[0] + (1 if token.type == "code_block" else 2)
        blocks.append(Block(page, line, heading, language, title[1] if title else "", token.content))
    return blocks


def block(page: str, beginning: str) -> Block:
    """The one block of *page* that begins so, or whose title is that."""
    found = [each for each in code(page) if each.text.startswith(beginning) or each.title == beginning]
    assert len(found) == 1, f"{page} has {len(found)} blocks that begin with or are called {beginning!r}"
    return found[0]


class Shell:
    """Types commands into bash; what one leaves in the environment, the next one finds.

    :param directory: where it is
    :param variables: changes to the environment variables
    """

    def __init__(self, directory: Path, variables: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.variables = environment(**(variables or {}))

    @property
    def path(self) -> str:
        return self.variables["PATH"]

    def run(self, commands: str) -> str:
        """Run *commands* to their end, each of which has to succeed, and return what they printed."""
        # Not among the working directory's files, which a page may list.
        left = self.directory.with_name(f"{self.directory.name}.environment")
        script = f"set -e\n{commands}\nenv -0 > '{left}'\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.directory,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        pairs = (pair.partition("=") for pair in left.read_text().split("\0") if pair)
        self.variables = {name: value for name, _, value in pairs}
        return done.stdout

    def serve(self, command: str, *options: str) -> Site:
        """Start the server that *command* starts; it listens at some port of loopback."""
        return Site(self, command, options)


_LISTENING = re.compile(r"Listening at: http://127\.0\.0\.1:(\d+) ")


class Site:
    """A server that was started by a page's command.

    :param options: what a test has to add to the command, read from ``GUNICORN_CMD_ARGS``: the command itself is
        run as it stands
    """

    def __init__(self, shell: Shell, command: str, options: tuple[str, ...] = ()) -> None:
        self._log = shell.directory / "server.log"
        added = " ".join(("--bind 127.0.0.1:0", "--no-control-socket", *options))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", f"exec env {command}"],
                cwd=shell.directory,
                env=shell.variables | {"GUNICORN_CMD_ARGS": added},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._is_up, f"{command} to listen", timeout=30)
        except BaseException:
            self.stop()
            raise
        listening = _LISTENING.search(self.log())
        assert listening is not None
        self.port = int(listening[1])

    def _is_up(self) -> bool:
        log = self.log()
        ended = self.process.poll()
        assert ended is None, f"the server ended with {ended}:\n{log}"
        return _LISTENING.search(log) is not None and "Booting worker" in log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        log = self.log()
        assert "Traceback" not in log, log

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def log(self) -> str:
        """All that the server has printed."""
        return self._log.read_text("utf-8", "replace")

    def connect(self) -> Client:
        """A client of the server."""
        return Client(("127.0.0.1", self.port))

    def here(self, commands: str) -> str:
        """*commands* of a page, for this server."""
        assert ADDRESS in commands
        return commands.replace(ADDRESS, self.address)

    def stop(self) -> None:
        """End the server's processes."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(TIMEOUT)
        # The session was made for this server: the group is the master and its workers.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)


def program(name: str, package: str) -> str:
    """The path of a program that a test needs; the test is skipped where there is none."""
    import pytest

    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} (Debian package {package})")
    return found
