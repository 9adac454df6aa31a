"""Load from wrk: as many requests as the server answers, over a number of connections."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers import Server

_SCRIPT = Path(__file__).resolve().parent / "load.lua"

#: In the value of a header: another number in each request.
CHANGING = "{n}"

#: What a browser sends with each request of a page, about 800 bytes.
BROWSER_HEADERS: Mapping[str, str] = {
    "Connection": "keep-alive",
    "Cache-Control": "max-age=0",
    "sec-ch-ua": '"Chromium";v="134", "Not:A-Brand";v="24", "Google Chrome";v="134"',
    "sec-ch-ua-mobile": "?0",
    "sec-ch-ua-platform": '"Linux"',
    "Upgrade-Insecure-Requests": "1",
    "User-Agent": (
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/134.0.0.0 Safari/537.36"
    ),
    "Accept": (
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
        "application/signed-exchange;v=b3;q=0.7"
    ),
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-User": "?1",
    "Sec-Fetch-Dest": "document",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "en-GB,en;q=0.9,de;q=0.8",
    "Cookie": "session=eyJ1c2VyIjo0NzExfQ.Zx1y2A.q4cT9d0mXk7Yb1sVfJr3LhWnE8o; theme=dark; seen=1000000000",
}

#: The same with a cookie that is never the same twice.
CHANGING_HEADERS: Mapping[str, str] = {
    **BROWSER_HEADERS,
    "Cookie": BROWSER_HEADERS["Cookie"].replace("1000000000", CHANGING),
}


@dataclass(frozen=True)
class Load:
    """What wrk saw; latencies in milliseconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    p999: float
    slowest: float
    errors: int

    @property
    def requests_per_second(self) -> float:
        """Answered requests over time."""
        return self.requests / self.seconds


def missing() -> str | None:
    """Why there can be no load, or None."""
    if shutil.which("wrk") is None:
        return "wrk is not installed: apt-get install wrk (Debian, Ubuntu)"
    return None


def parse(output: str) -> Load:
    """Read the line that load.lua has wrk print.

    :raises ValueError: wrk did not come to its end, or not a single request did
    """
    for line in output.splitlines():
        if line.startswith("RESULT "):
            result = json.loads(line.removeprefix("RESULT "))
            break
    else:
        raise ValueError(f"wrk printed no result:\n{output}")
    if not result["requests"]:
        raise ValueError("wrk: no request was answered")
    return Load(
        requests=result["requests"],
        seconds=result["microseconds"] / 1e6,
        p50=result["p50"] / 1000,
        p99=result["p99"] / 1000,
        p999=result["p999"] / 1000,
        slowest=result["max"] / 1000,
        errors=result["errors"],
    )


def run(
    server: Server,
    seconds: float,
    cpu: int | None,
    *,
    path: str = "/",
    connections: int = 64,
    headers: Mapping[str, str] | None = None,
    body: Path | None = None,
) -> Load:
    """Load *server* from one thread of wrk.

    :param seconds: for how long
    :param cpu: the core to run wrk on, or None for any
    :param headers: sent beside ``Host``; :data:`CHANGING` in a value becomes another number each time
    :param body: the file with the body of a POST; without it, it is a GET
    :raises ValueError: nothing was answered
    """
    # wrk knows whole seconds only, but ends with its result at an interrupt, too.
    command = ["timeout", "--signal=INT", f"{seconds}s"]
    command += [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
    command += ["wrk", "--threads", "1", "--connections", str(connections), "--timeout", "10s"]
    command += ["--duration", f"{math.ceil(seconds) + 1}s", "--script", str(_SCRIPT)]
    for name, value in (headers or {}).items():
        command += ["--header", f"{name}: {value}"]
    command.append(server.url + path)
    environment = {**os.environ, "BENCHMARK_BODY": str(body or "")}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return parse(result.stdout + result.stderr)
