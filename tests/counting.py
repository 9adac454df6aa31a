"""What the server of ``apps/closing.py`` says of the ends of its connections, and how long they took."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from harness import Client, Server, wait_until

#: Seconds that a deadline may be late on a busy machine; an idle one keeps within 0.25.
LATE = 1.0


def closed(server: Server) -> dict[str, int]:
    """How many connections have ended for each reason."""
    tls = server.certificates.client_context() if server.certificates else None
    with Client(server.address, tls=tls) as client:
        counts: dict[str, int] = json.loads(client.get("/closed").body)
    return counts


@contextmanager
def counted(server: Server, reason: str, times: int = 1) -> Iterator[None]:
    """Exactly so many connections end for this reason meanwhile."""
    before = closed(server)[reason]
    yield
    wait_until(lambda: closed(server)[reason] >= before + times, f"{times} more closed for {reason}")
    assert closed(server)[reason] == before + times


@contextmanager
def takes(seconds: float) -> Iterator[None]:
    """What is done meanwhile takes so long, and not much longer."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert seconds - 0.05 <= took <= seconds + LATE, f"{took:.2f} s instead of {seconds}"
