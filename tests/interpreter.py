"""Python processes of their own, for what happens when an interpreter or gunicorn starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOOK_FILE = ROOT / "build_backend" / "keepalive_worker.pth"

#: Seconds after which a process is given up.
TIMEOUT = 60

#: What would make a process behave otherwise than a user's.
OURS_TO_SET = ("GUNICORN_CMD_ARGS", "KEEPALIVE_WORKER_NO_HOOK", "PYTHONPATH", "PYTHONWARNINGS", "VIRTUAL_ENV")

#: The gunicorn command with the checkout's start-up hook, whether the package is installed or not.
GUNICORN = (
    "from keepalive_worker import hook; hook.install(); from gunicorn.app.wsgiapp import run; run('gunicorn')"
)


def environment(**changes: str) -> dict[str, str]:
    """The environment variables of this process, less those that matter here, and *changes*.

    No bytecode is written: pip does not know what ``-OO`` leaves in site-packages, and what is left of a
    package there hides an editable installation.
    """
    kept = {key: value for key, value in os.environ.items() if key not in OURS_TO_SET}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"} | changes


def run(
    *command: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = TIMEOUT
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it printed."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment() if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def gunicorn(*options: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run gunicorn with our settings, from the folder *cwd*."""
    return run(
        sys.executable, "-c", GUNICORN, *options, cwd=cwd, env=environment(PYTHONPATH=str(ROOT), **env)
    )
