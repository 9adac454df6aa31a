"""Libraries and browsers that people use, with persistent connections, against the worker.

Which connections they used is told by the server, in environ and in its statistics.
"""

from __future__ import annotations

import hashlib
import itertools
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from harness import IS_OURS, Certificates, Server, process_exists, wait_until
from real_clients import SESSIONS, Session

if TYPE_CHECKING:
    from conftest import Serve

pytestmark = pytest.mark.skipif(not IS_OURS, reason="gunicorn's own workers do not tell of their connections")

APP = "gallery:app"
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


@pytest.fixture(scope="module", params=SESSIONS)
def session(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Session]:
    """Each client in turn, for all its tests."""
    with SESSIONS[request.param](certificates) as session:
        yield session


#: Starts a server as the client is to have it, with TLS and HTTP/2 where it speaks that, and has it go there.
Visit = Callable[..., Server]


@pytest.fixture
def visit(serve: Serve, certificates: Certificates, session: Session) -> Iterator[Visit]:
    """Servers, of whom is asked at the end whether they complained."""
    visited: list[tuple[Server, int]] = []

    def visit(*options: str, **keywords: Any) -> Server:
        if session.protocols:
            options = ("--http-protocols", session.protocols, *options)
            keywords["certificates"] = certificates
        server = serve(APP, "--stats-path", "/stats", *options, **keywords)
        visited.append((server, server.log_size))
        session.visit(server)
        return server

    yield visit
    for server, before in visited:
        assert server.complaints(before) == []


@pytest.fixture
def server(visit: Visit) -> Server:
    """A server that keeps the client's connections."""
    return visit()


def _report(server: Server) -> Any:
    return server.get("/stats").json()


def _rows(server: Server) -> dict[int, Any]:
    return {row["id"]: row for row in _report(server)["connections"]}


def test_many_requests_take_few_connections(server: Server, session: Session) -> None:
    count = 120
    before = _report(server)["totals"]
    answers = session.get(CONNECTION, count)
    after = _report(server)["totals"]
    last = {facts["id"]: facts["requests"] for facts in answers}
    assert len(answers) == count
    assert 1 <= len(last) <= session.connections
    assert {facts["protocol"] for facts in answers} == {"HTTP/2" if session.protocols else "HTTP/1.1"}
    # The other one is the connection that asks for the statistics.
    assert after["connections_accepted"] - before["connections_accepted"] <= session.connections + 1
    assert after["requests"] - before["requests"] >= count + 1
    rows = _rows(server)
    # A browser may have asked for its icon since, and closed a connection that it did not need.
    there = last.keys() & rows.keys()
    assert there
    assert sum(rows[number]["requests"] - last[number] for number in there) in (0, 1)
    assert {rows[number]["state"] for number in last} == {"idle"}


def test_an_upload_arrives_whole_and_the_connection_stays(server: Server, session: Session) -> None:
    first = session.get(CONNECTION)[0]
    for how in session.uploads:
        sent, answer = session.upload(UPLOAD, SIZE, how)
        assert (answer["size"], answer["sha256"]) == (SIZE, sent)
        assert answer["HTTP_EXPECT"] == ("100-continue" if how == "expect" else None)
        is_chunked = how == "streamed" and not session.protocols
        assert answer["HTTP_TRANSFER_ENCODING"] == ("chunked" if is_chunked else None)
        assert answer["CONTENT_LENGTH"] == (None if how == "streamed" else str(SIZE))
    last = session.get(CONNECTION)[0]
    if session.connections == 1:
        assert (last["id"], last["requests"]) == (first["id"], first["requests"] + len(session.uploads) + 1)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_large_download_is_byte_exact(server: Server, session: Session, framing: str) -> None:
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


@pytest.mark.parametrize("how", ["gated", "gated_with_length"])
def test_pieces_of_a_response_come_as_they_are_made(server: Server, session: Session, how: str) -> None:
    """The second is made only after the client has the first."""
    name = f"client-{next(_names)}"
    session.open(f"/streaming/{how}?name={name}")
    assert session.read() == "before"
    assert server.get(f"/streaming/open_gate?name={name}").status == 200
    assert session.read() == "after"
    assert session.read() == ""
    assert session.get(CONNECTION)


def _idle_ones_ended(server: Server) -> bool:
    """Not those that have sent nothing yet, which browsers open ahead of need and may keep for longer."""
    return not any(row["state"] == "idle" and row["requests"] for row in _rows(server).values())


def _post(session: Session) -> None:
    """A request that no client may send a second time by itself (RFC 9110 9.2.2)."""
    sent, answer = session.upload(UPLOAD, 1000)
    assert answer["sha256"] == sent


def test_a_connection_that_the_server_has_closed_is_not_used_again(visit: Visit, session: Session) -> None:
    server = visit("--keep-alive", "0.3", "--keep-alive-grace", "0.1")
    seen: set[int] = set()
    for _ in range(2):
        numbers = {facts["id"] for facts in session.get(CONNECTION, session.abreast)}
        assert not numbers & seen
        seen |= numbers
        wait_until(lambda: _idle_ones_ended(server), "all idle connections to end")
        session.catch_up()
        if session.looks:
            _post(session)
            wait_until(lambda: _idle_ones_ended(server), "all idle connections to end")
            session.catch_up()
    assert _report(server)["totals"]["closed"]["idle_timeout"] >= len(seen)


def test_a_reload_costs_no_request(visit: Visit, session: Session) -> None:
    """Neither one that comes while the old worker still takes it, nor one after its end."""
    server = visit("--drain-timeout", "0.5", fresh=True)
    (old,) = {facts["pid"] for facts in session.get(CONNECTION, session.abreast)}
    server.send_signal(signal.SIGHUP)
    pid = old
    while pid == old:
        _post(session)
        pid = session.get(CONNECTION)[0]["pid"]
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: not process_exists(pid), "the end of the old worker")
    session.catch_up()
    if session.looks:
        _post(session)
    assert session.get(CONNECTION)[0]["pid"] not in (old, pid)
