"""Libraries and browsers that people use, with persistent connections, against the worker.

Which connections they used is told by the server, in environ and in its statistics.
"""

from __future__ import annotations

import hashlib
import itertools
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from harness import Certificates, Server, process_exists, wait_until
from real_clients import SESSIONS, Session

if TYPE_CHECKING:
    from conftest import Serve

pytestmark = pytest.mark.only_ours("gunicorn's own workers do not tell of their connections")

APP = "gallery:app"
STATS = ("--stats-path", "/stats")
CONNECTION = "/introspection/connection"
UPLOAD = "/uploads/announced"
#: Bytes of an upload; no multiple of anything.
SIZE = 5_000_011

#: Serial numbers for what the application is to remember under a name.
_names = itertools.count()


@pytest.fixture(scope="module")
def backend() -> str:
    """One event backend: what differs between them is tested elsewhere."""
    return "epoll"


@pytest.fixture(params=SESSIONS)
def kind(request: pytest.FixtureRequest) -> type[Session]:
    """Each client in turn."""
    return SESSIONS[request.param]


class Start:
    """Starts the server that a client is to have: TLS and HTTP/2 where it speaks that."""

    def __init__(self, serve: Serve, certificates: Certificates, kind: type[Session]) -> None:
        self._serve = serve
        self._kind = kind
        self._certificates = certificates
        self.servers: list[tuple[Server, int]] = []

    def __call__(self, *options: str, **keywords: Any) -> Server:
        if self._kind.protocols:
            options = ("--http-protocols", self._kind.protocols, *options)
            keywords["certificates"] = self._certificates
        server = self._serve(APP, *STATS, *options, **keywords)
        self.servers.append((server, server.log_size))
        return server


@pytest.fixture
def start(serve: Serve, certificates: Certificates, kind: type[Session]) -> Iterator[Start]:
    """Starts servers, and looks at the end whether they complained."""
    start = Start(serve, certificates, kind)
    yield start
    for server, before in start.servers:
        assert server.complaints(before) == []


@pytest.fixture
def session(start: Start, kind: type[Session]) -> Iterator[Session]:
    """A client with a server that keeps its connections."""
    with kind(start()) as session:
        yield session


def _report(server: Server) -> Any:
    return server.get("/stats").json()


def _rows(server: Server) -> dict[int, Any]:
    return {row["id"]: row for row in _report(server)["connections"]}


def _connection(session: Session) -> int:
    """The connection that the client's next request comes on; one that it has used before."""
    (facts,) = session.get(CONNECTION)
    return int(facts["id"])


def test_many_requests_take_few_connections(session: Session) -> None:
    count = 120
    before = _report(session.server)["totals"]
    answers = session.get(CONNECTION, count)
    after = _report(session.server)["totals"]
    last = {facts["id"]: facts["requests"] for facts in answers}
    assert len(answers) == count
    assert 1 <= len(last) <= session.connections
    assert {facts["protocol"] for facts in answers} == {"HTTP/2" if session.protocols else "HTTP/1.1"}
    # The other one is the connection that asks for the statistics.
    assert after["connections_accepted"] - before["connections_accepted"] <= session.connections + 1
    assert after["requests"] - before["requests"] >= count + 1
    rows = _rows(session.server)
    assert {number: rows[number]["requests"] for number in last} == last
    assert {rows[number]["state"] for number in last} == {"idle"}


@pytest.mark.parametrize("how", ["length", "streamed", "expect"])
def test_an_upload_arrives_whole_and_the_connection_stays(session: Session, how: str) -> None:
    if how == "streamed" and not session.streams_uploads:
        pytest.skip("it sends no body whose length it does not know")
    if how == "expect" and not session.expects:
        pytest.skip("it knows no Expect: 100-continue")
    first = session.get(CONNECTION)[0]
    for _ in range(2):
        sent, answer = session.upload(UPLOAD, SIZE, streamed=how == "streamed", expect=how == "expect")
        assert (answer["size"], answer["sha256"]) == (SIZE, sent)
        assert answer["HTTP_EXPECT"] == ("100-continue" if how == "expect" else None)
        if how == "streamed":
            assert answer["CONTENT_LENGTH"] is None
            assert answer["HTTP_TRANSFER_ENCODING"] == (None if session.protocols else "chunked")
        else:
            assert answer["CONTENT_LENGTH"] == str(SIZE)
    last = session.get(CONNECTION)[0]
    if session.connections == 1:
        assert (last["id"], last["requests"]) == (first["id"], first["requests"] + 3)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_large_download_is_byte_exact(session: Session, framing: str) -> None:
    count = 192
    expected = hashlib.sha256(
        b"".join(hashlib.sha256(b"%d" % number).digest() * 2048 for number in range(count))
    ).hexdigest()
    first = session.get(CONNECTION)[0]
    length = "&length=1" if framing == "length" else ""
    for _ in range(2):
        path = f"/streaming/watched?name=client-{next(_names)}&count={count}{length}"
        assert session.download(path) == expected
    last = session.get(CONNECTION)[0]
    if session.connections == 1:
        assert (last["id"], last["requests"]) == (first["id"], first["requests"] + 3)


@pytest.mark.parametrize("how", ["gated", "gated_with_length", "gated_write"])
def test_pieces_of_a_response_come_as_they_are_made(session: Session, how: str) -> None:
    """The second is made only after the client has the first."""
    name = f"client-{next(_names)}"
    session.open(f"/streaming/{how}?name={name}")
    assert session.read() == "before"
    assert session.server.get(f"/streaming/open_gate?name={name}").status == 200
    assert session.read() == "after"
    assert session.read() == ""
    assert session.get(CONNECTION)


def test_a_connection_that_the_server_has_closed_is_not_used_again(start: Start, kind: type[Session]) -> None:
    """Nor is anything lost, POSTs among it, of which no client may send one twice (RFC 9110 9.2.2)."""
    server = start("--keep-alive", "0.3", "--keep-alive-grace", "0.2")
    with kind(server) as session:
        seen = set()
        for _ in range(3):
            number = _connection(session)
            assert number not in seen
            seen.add(number)
            wait_until(lambda number=number: number not in _rows(server), "the idle connection to end")
            sent, answer = session.upload(UPLOAD, 1000)
            assert answer["sha256"] == sent
            wait_until(lambda: len(_rows(server)) == 1, "all idle connections to end")
        closed = _report(server)["totals"]["closed"]
        assert closed["idle_timeout"] >= 6
        assert closed["error"] == closed["shutdown"] == 0


def test_a_reload_costs_no_request(start: Start, kind: type[Session]) -> None:
    """Neither one that comes while the old worker still takes it, nor one after its end."""
    server = start("--drain-timeout", "1", fresh=True)
    with kind(server) as session:
        (old,) = {facts["pid"] for facts in session.get(CONNECTION, 6)}
        server.send_signal(signal.SIGHUP)
        pid = old
        while pid == old:
            sent, answer = session.upload(UPLOAD, 1000)
            assert answer["sha256"] == sent
            pid = session.get(CONNECTION)[0]["pid"]
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: not process_exists(pid), "the end of the old worker")
        sent, answer = session.upload(UPLOAD, 1000)
        assert answer["sha256"] == sent
        assert session.get(CONNECTION)[0]["pid"] not in (old, pid)
