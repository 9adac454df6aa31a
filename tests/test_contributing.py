"""CONTRIBUTING.md is true: its map has every module, its profiler profiles."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Client, request, wait_until
from interpreter import ROOT, TIMEOUT, environment

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PACKAGE = ROOT / "keepalive_worker"
BIN = os.path.dirname(sys.executable)

#: Enough work for a sampler that looks a hundred times a second.
REQUESTS = 20_000
BATCH = 100


def test_the_map_has_every_module() -> None:
    rows = TEXT.partition("| `keepalive_worker/` |")[2].partition("\n\n")[0].splitlines()
    named = [name for row in rows[2:] for name in re.findall("`(.+?)`", row.split("|")[1])]
    modules = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    packages = [f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(named) == sorted(modules + packages)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a profiler needs root")
@pytest.mark.skipif(shutil.which("py-spy", path=BIN) is None, reason="no py-spy")
def test_the_profiler_shows_a_worker_at_work(tmp_path: Path) -> None:
    command = re.search(r"^    \.venv/bin/py-spy record .+$", TEXT, re.MULTILINE)
    assert command is not None
    # Until it is interrupted: how long a busy machine takes to start a server cannot be known.
    line = re.sub(r"--duration \d+ ", "", command[0])
    words = shlex.split(line.replace(".venv/bin", BIN))
    address, profile = tmp_path / "socket", tmp_path / "profile.svg"
    words[words.index("profile.svg")] = str(profile)
    options = f"--bind unix:{address} --drain-timeout 0 --no-control-socket"
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment(GUNICORN_CMD_ARGS=options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as profiler:
        try:
            wait_until(lambda: address.exists() or profiler.poll() is not None, "a server under py-spy", TIMEOUT)
            if profiler.poll() is not None:
                assert profiler.stdout is not None
                said = profiler.stdout.read()
                if re.search("permission denied|not permitted", said, re.IGNORECASE):
                    pytest.skip(f"processes may not be looked at here: {said}")
                raise AssertionError(said)
            with Client(str(address), timeout=TIMEOUT) as client:
                for _ in range(REQUESTS // BATCH):
                    client.send(request("/") * BATCH)
                    for _ in range(BATCH):
                        assert client.read_response().status == 200
                profiler.send_signal(signal.SIGINT)
                # py-spy kills the master; the worker sees that and leaves.
                client.read_until_closed()
        finally:
            profiler.send_signal(signal.SIGINT)
            said = profiler.communicate(timeout=TIMEOUT)[0]
    assert profile.is_file(), said
    assert "RequestHandler" in profile.read_text(), said
