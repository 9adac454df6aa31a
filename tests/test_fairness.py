"""One client's request, however long its body or its response, leaves the others their turn."""

from __future__ import annotations

import sys

import pytest
from conftest import Serve
from harness import Certificates, request

#: As the application has them.
PIECES, ROWS = 15, 15
BODY = 4096 * PIECES

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
    pytest.mark.only_ours("gunicorn's serves one until it has to wait"),
]


@pytest.mark.parametrize("tls", [False, True])
def test_an_upload_that_is_there_faster_than_it_is_read(serve: Serve, certificates: Certificates, tls: bool) -> None:
    server = serve("busy:app", certificates=certificates if tls else None, fresh=True)
    upload, other = server.connect(), server.connect()
    upload.get("/")
    other.get("/")
    with server.stopped():
        upload.send(request("/read?seconds=0.01", method="POST", body=b"x" * BODY))
        other.send(request("/steps"))
    assert int(other.read_response().body) < PIECES
    assert int(upload.read_response().body) == PIECES


@pytest.mark.parametrize("tls", [False, True])
def test_a_stream_whose_client_takes_all_at_once(serve: Serve, certificates: Certificates, tls: bool) -> None:
    server = serve("busy:app", certificates=certificates if tls else None, fresh=True)
    stream, other = server.connect(), server.connect()
    stream.get("/")
    other.get("/")
    with server.stopped():
        stream.send(request("/rows?seconds=0.01"))
        other.send(request("/steps"))
    assert int(other.read_response().body) < ROWS
    assert stream.read_response().body == b"a row\n" * ROWS
