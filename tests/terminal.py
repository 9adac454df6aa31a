"""A real terminal (tmux), for programs that draw on one and take keys."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: apt-get install tmux")


class Terminal:
    """A terminal in which *command* runs; it shows ``exit status N`` when that has ended.

    The tmux behind it is a server of its own, without anybody's configuration.
    """

    def __init__(self, *command: object, columns: int = 140, rows: int = 40) -> None:
        # A unix socket's path is at most 107 bytes long.
        self._folder = tempfile.mkdtemp(prefix="kw-")
        line = " ".join(f"'{word}'" for word in command)
        script = f"unset COLUMNS LINES; export LC_ALL=C.UTF-8; {line}; echo exit status $?; sleep 600"
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", columns, "-y", rows, "sh", "-c", script)

    def _tmux(self, *arguments: object) -> str:
        command = ["tmux", "-S", str(Path(self._folder, "socket")), *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._tmux("kill-server")
        shutil.rmtree(self._folder, ignore_errors=True)

    def lines(self) -> list[str]:
        """What is on the screen."""
        return self._tmux("capture-pane", "-p").splitlines()

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names for them."""
        self._tmux("send-keys", *keys)

    def wait_for(self, text: str) -> str:
        """Wait for a line with *text* in it."""
        return self._wait(lambda: next((line for line in self.lines() if text in line), ""), f"{text!r}")

    def wait_until_gone(self, text: str) -> None:
        """Wait until no line has *text* in it."""
        self._wait(lambda: not any(text in line for line in self.lines()), f"a screen without {text!r}")

    def _wait(self, condition: object, what: str) -> str:
        try:
            return str(wait_until(condition, what, 20))  # type: ignore[arg-type]
        except AssertionError as error:
            screen = "\n".join(self.lines())
            raise AssertionError(f"{error}; the screen:\n{screen}") from None
