"""One client's request, however long its body or its response, leaves the others their turn."""

from __future__ import annotations

import sys

import pytest
from conftest import Serve
from harness import Certificates, request

#: How often the application is busy in one request, as it has it: for each row, and each piece that it reads.
STEPS = 15
PIECE = 4096

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
    pytest.mark.only_ours("gunicorn's serves one until it has to wait"),
]

LONG = {
    "an upload that is there faster than it is read": (
        request("/read?seconds=0.01", method="POST", body=b"x" * PIECE * STEPS),
        b"%d" % STEPS,
    ),
    "a stream whose client takes all at once": (request("/rows?seconds=0.01"), b"a row\n" * STEPS),
}


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("what", LONG)
def test_others_have_their_turn_meanwhile(serve: Serve, certificates: Certificates, what: str, tls: bool) -> None:
    server = serve("busy:app", certificates=certificates if tls else None, fresh=True)
    long, other = server.connect(), server.connect()
    long.get("/")
    other.get("/")
    sent, answer = LONG[what]
    with server.stopped():
        long.send(sent)
        other.send(request("/steps"))
    assert int(other.read_response().body) < STEPS
    assert long.read_response().body == answer
