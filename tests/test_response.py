"""Our responses against gunicorn's own: the same bytes on the wire, the same errors.

Differences on purpose, each with a test of its own: head and first piece of the body leave in one
call; whether the connection stays is decided when the head is written; a piece that is not bytes
is refused before the head is out, so that the client can get an error page; a new head after an
exception replaces the first one instead of adding to it (PEP 3333).
"""

from __future__ import annotations

import functools
import logging
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.errors import InvalidResponseHeader, InvalidResponseHeaderName
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keepalive_worker import response as module
from keepalive_worker.connection import Connection, Reason, Terms
from keepalive_worker.counters import Counters
from keepalive_worker.holding import Holding
from keepalive_worker.response import PlainRequest, Response, ResponseMemory, response_class
from keepalive_worker.settings import Options

DATE = re.compile(rb"\r\nDate: [^\r]+\r\n")


# ------------------------------------------------------------------------ two writers


class Request:
    """As much of gunicorn's request as a response looks at."""

    def __init__(self, method: str, version: tuple[int, int], close: bool) -> None:
        self.method = method
        self.version = version
        self.uri = "/"
        self._close = close

    def should_close(self) -> bool:
        """Whether the client asked for the end."""
        return self._close


class Recorder:
    """A socket for gunicorn's response."""

    def __init__(self) -> None:
        self.sent = b""

    def sendall(self, data: bytes) -> None:
        """Keep it."""
        self.sent += bytes(data)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> None:
        """Keep that, too."""
        self.sent += os.pread(file.fileno(), count or 0, offset)


class Clock:
    """Time as the test has it."""

    now = 5000.0

    def __call__(self) -> float:
        return self.now


class Wire:
    """A connection of ours over a socket pair, with a loop whose waits are reads by the client."""

    def __init__(self, *, small: bool = False, **terms: Any) -> None:
        self.clock = Clock()
        self.counters = Counters()
        self.options = Options()
        self.terms = Terms(self.clock, **({"timeout": 5.0, "grace": 1.0} | terms))
        self.holding = Holding(None)
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.setblocking(False)
        if small:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self._ours = ours
        self.received = b""
        self.waits = 0
        listener: Any = self
        heads: Any = None
        self.conn = Connection(1, ours.fileno(), "127.0.0.1", 1, listener, heads, self.terms, self.clock())
        self.conn.requests = 1

    tls_context = None

    def peer_address(self, host: str, port: int) -> Any:
        """As a listener has it."""
        return (host, port)

    def wait_writable(self, conn: Connection, deadline: float, error: Any) -> None:
        """The client reads some of what has come."""
        self.waits += 1
        self.received += self.theirs.recv(65536)

    def give_way(self) -> None:
        """Nobody else is there."""

    def respond(
        self,
        method: str = "GET",
        version: str = "HTTP/1.1",
        *,
        close: bool = False,
        cfg: Config | None = None,
    ) -> Response:
        """A response for a request."""
        loop: Any = self
        cfg = cfg or config()
        head = f"{method} / {version}\r\n\r\n".encode()
        return response_class(cfg, loop).to_plain(self.conn, method, version, close, head, len(head))

    def read(self) -> bytes:
        """All that the client has got."""
        while True:
            try:
                data = self.theirs.recv(1 << 20)
            except BlockingIOError:
                return self.received
            if not data:
                return self.received
            self.received += data

    def close(self) -> None:
        """Give the sockets back."""
        self._ours.close()
        self.theirs.close()


@contextmanager
def wire(**options: Any) -> Iterator[Wire]:
    """A :class:`Wire`, closed at the end."""
    made = Wire(**options)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def _forgetful() -> None:
    forget()


def forget() -> None:
    """Let nothing be known of statuses and header names."""
    module._statuses.clear()
    module._names.clear()


@functools.cache
def config(protocol: str = "http") -> Config:
    """gunicorn's configuration."""
    cfg = Config()
    cfg.set("protocol", protocol)
    return cfg


@dataclass
class Case:
    """A request, and what an application does for it."""

    method: str = "GET"
    version: tuple[int, int] = (1, 1)
    #: Whether the client asked for the connection's end, and whether the server wants it.
    close: bool = False
    last: bool = False
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    protocol: str = "http"


def answer_at_once(response: Any, piece: Any) -> None:
    """What a worker does with a list of one piece."""
    if not (isinstance(response, Response) and response.send_whole(piece)):
        response.write(piece)
        response.close()


def play(response: Any, steps: list[tuple[Any, ...]]) -> list[Any]:
    """Do the steps; the kinds of errors, None for a step that went well."""
    errors: list[Any] = []
    for name, *args in steps:
        try:
            if name == "start":
                returned = response.start_response(*args)
                assert returned == response.write
            elif name == "write":
                response.write(*args)
            elif name == "file":
                with tempfile.TemporaryFile() as file:
                    file.write(args[0])
                    file.seek(args[1])
                    response.write_file(wsgi.FileWrapper(file))
            elif name == "close":
                response.close()
            elif name == "list":  # the application returned a list of one piece
                answer_at_once(response, *args)
            errors.append(None)
        except Exception as error:
            errors.append(type(error))
            break  # What comes after depends on the worker, not on the response.
    return errors


def by_gunicorn(case: Case) -> tuple[bytes, list[Any], Any]:
    """What gunicorn's own response sends."""
    recorder = Recorder()
    close = case.close or case.version <= (1, 0)
    response = wsgi.Response(Request(case.method, case.version, close), recorder, config(case.protocol))
    if case.last:
        response.force_close()
    errors = play(response, case.steps)
    return recorder.sent, errors, response


def by_us(case: Case) -> tuple[bytes, list[Any], Response]:
    """What ours sends."""
    with wire(small=True, requests=1 if case.last else 0) as bench:
        version = "HTTP/{}.{}".format(*case.version)
        close = case.close or case.version <= (1, 0)
        response = bench.respond(case.method, version, close=close, cfg=config(case.protocol))
        errors = play(response, case.steps)
        got = bench.read()
        assert bench.conn.bytes_sent == len(got) == bench.counters.bytes_sent
        return got, errors, response


def compare(case: Case) -> bytes:
    """Check that both do the same, with and without knowledge of what was used before."""
    theirs, their_errors, their_response = by_gunicorn(case)
    theirs = DATE.sub(b"\r\nDate: now\r\n", theirs)
    forget()
    for _ in range(3):
        ours, errors, response = by_us(case)
        ours = DATE.sub(b"\r\nDate: now\r\n", ours)
        assert errors == their_errors
        assert ours == theirs
        assert response.headers_sent == their_response.headers_sent
        assert response.status == their_response.status
        if response.status is not None:
            assert response.status_code == their_response.status_code
            assert list(response.headers) == their_response.headers
            assert response.response_length == their_response.response_length
            if not any(name == "file" for name, *_ in case.steps):  # gunicorn does not count those
                assert response.sent == their_response.sent
            if errors[-1] is None:
                assert response.chunked == their_response.chunked
                assert response.should_close() == their_response.should_close()
                assert (response.ending is not None) == their_response.should_close() or not response.headers_sent
    return ours


# -------------------------------------------------------------------------- the property

STATUSES = st.one_of(
    st.sampled_from(["200 OK", "200 OK", "201 Created", "404 Not Found", "500 Internal Server Error"]),
    st.sampled_from(
        ["204 No Content", "304 Not Modified", "205 Reset Content", "101 Switching Protocols", "100 Continue"]
    ),
    st.sampled_from(["200", "200 ", "999 Odd", "200 \xe9t\xe9", "302 Found\tthere", "103 Early Hints", "199 x"]),
    st.sampled_from(
        [
            "",
            "OK",
            "20 OK",
            "2000 OK",
            "200\r\nX: y",
            "200 \u20ac",
            "200OK",
            " 200 OK",
            "200 OK\n",
            "\u0662\u0660\u0660 OK",
        ]
    ),
    st.sampled_from([b"200 OK", 200, None]),
)
LENGTHS = st.sampled_from(
    [
        "0",
        "5",
        "7",
        "100",
        "000",
        " 5",
        "5 ",
        "5\t",
        "+5",
        "-5",
        "1_0",
        "",
        "5.0",
        "x",
        "\u0665",
        "5, 5",
        "-1",
        "0x5",
    ]
)
HEADERS = st.one_of(
    st.tuples(
        st.sampled_from(["Content-Type", "X-A", "ETag", "Set-Cookie", "set-cookie", "Vary", "X-B"]),
        st.one_of(
            st.sampled_from(["text/plain", "a=b; Path=/", "", " padded ", "\tpadded\t", "caf\xe9", "a\tb", "\x80\xff"]),
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=10),
        ),
    ),
    st.tuples(st.sampled_from(["Content-Length", "content-length", "CONTENT-LENGTH"]), LENGTHS),
    st.sampled_from(
        [
            ("Connection", "close"),
            ("Connection", "Upgrade"),
            ("Connection", "keep-alive"),
            ("Upgrade", "websocket"),
            ("Upgrade", "h2c"),
            ("Transfer-Encoding", "chunked"),
            ("Keep-Alive", "timeout=5"),
            ("Server", "mine"),
            ("Date", "yesterday"),
            ("TE", "trailers"),
            ("Trailers", "x"),
            ("Proxy-Authenticate", "Basic"),
        ]
    ),
    st.sampled_from(
        [
            ("X-A", "split\r\nX-B: c"),
            ("X-A", "nul\0"),
            ("X-A", "\x7f"),
            ("X-A", "\u20ac"),
            ("X-A", b"bytes"),
            ("X-A", 5),
            ("X-A", None),
            (b"X-A", "a"),
            ("X A", "a"),
            ("X\xc9", "a"),
            ("", "a"),
            ("X:", "a"),
            ("X-A\r\nX-B", "a"),
            (5, "a"),
        ]
    ),
)
PLAIN_HEADERS = st.tuples(st.sampled_from(["Content-Type", "X-A", "ETag"]), st.sampled_from(["a", "b; c=d", ""]))
PIECES = st.one_of(
    st.sampled_from([b"", b"hello", b"ab", b"\r\n", b"0\r\n\r\n"]),
    st.binary(max_size=12),
    st.integers(1000, 60_000).map(lambda size: bytes(size)),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A response of an application, well-behaved or not."""
    kind = HEADERS if draw(st.booleans()) else PLAIN_HEADERS
    headers: list[Any] = draw(st.lists(kind, max_size=4))
    if draw(st.booleans()):
        headers.insert(draw(st.integers(0, len(headers))), ("Content-Length", draw(LENGTHS)))
    steps: list[tuple[Any, ...]] = [("start", draw(STATUSES), headers)]
    kind_of_body = draw(st.sampled_from(["list", "pieces", "pieces", "file"]))
    if kind_of_body == "list":
        steps.append(("list", draw(PIECES)))
    elif kind_of_body == "pieces":
        steps += [("write", piece) for piece in draw(st.lists(PIECES, max_size=4))]
        steps.append(("close",))
    else:
        steps += [("file", draw(PIECES), draw(st.integers(0, 3))), ("close",)]
    return Case(
        draw(st.sampled_from(["GET", "POST", "HEAD"])),
        draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (1, 0), (1, 2), (0, 9), (2, 0)])),
        draw(st.booleans()),
        draw(st.booleans()),
        steps,
        draw(st.sampled_from(["http", "http", "http", "uwsgi"])),
    )


@given(cases())
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_same_bytes_and_the_same_errors(case: Case) -> None:
    compare(case)


def start(*headers: tuple[str, str], status: str = "200 OK") -> tuple[Any, ...]:
    """The step that starts a response."""
    return ("start", status, list(headers))


TYPE = ("Content-Type", "text/plain")
FIVE = ("Content-Length", "5")

BODY = [("write", b"hello"), ("close",)]
CASES = {
    "one piece": Case(steps=[start(TYPE, FIVE), *BODY]),
    "chunked": Case(steps=[start(TYPE), ("write", b"a"), ("write", b""), ("write", b"bc"), ("close",)]),
    "no body": Case(steps=[start(TYPE), ("close",)]),
    "empty": Case(steps=[start(("Content-Length", "0")), ("write", b""), ("close",)]),
    "list": Case(steps=[start(TYPE, FIVE), ("list", b"hello")]),
    "list, chunked": Case(steps=[start(TYPE), ("list", b"hello")]),
    "list, too much": Case(steps=[start(FIVE), ("list", b"hello world")]),
    "list, too little": Case(steps=[start(FIVE), ("list", b"hell")]),
    "list, empty": Case(steps=[start(("Content-Length", "0")), ("list", b"")]),
    "list for HEAD": Case("HEAD", steps=[start(FIVE), ("list", b"hello")]),
    "list after write()": Case(steps=[start(FIVE), ("write", b"hello"), ("list", b"hello")]),
    "list, large": Case(steps=[start(("Content-Length", "300000")), ("list", bytes(300_000))]),
    "too much": Case(steps=[start(FIVE), ("write", b"hel"), ("write", b"lo world"), ("write", b"!"), ("close",)]),
    "too little": Case(steps=[start(FIVE), ("write", b"he"), ("close",)]),
    "length below zero": Case(steps=[start(("Content-Length", "-5")), ("write", b"hello world"), ("close",)]),
    "two lengths": Case(steps=[start(("Content-Length", "3"), FIVE), *BODY]),
    "HEAD": Case("HEAD", steps=[start(TYPE, FIVE), *BODY]),
    "HEAD without a length": Case("HEAD", steps=[start(TYPE), *BODY]),
    "204": Case(steps=[start(FIVE, status="204 No Content"), *BODY]),
    "304": Case(steps=[start(FIVE, status="304 Not Modified"), *BODY]),
    "HTTP/1.0": Case(version=(1, 0), steps=[start(TYPE), *BODY]),
    "HTTP/1.0 HEAD": Case("HEAD", version=(1, 0), steps=[start(TYPE), ("close",)]),
    "HTTP/0.9": Case(version=(0, 9), steps=[start(TYPE), *BODY]),
    "HTTP/1.2": Case(version=(1, 2), steps=[start(TYPE), *BODY]),
    "close": Case(close=True, steps=[start(TYPE, FIVE), *BODY]),
    "last": Case(last=True, steps=[start(TYPE, FIVE), *BODY]),
    "upgrade": Case(
        steps=[
            start(("Upgrade", "websocket"), ("Connection", "Upgrade"), status="101 Switching Protocols"),
            ("close",),
        ]
    ),
    "hop by hop": Case(steps=[start(("Keep-Alive", "timeout=9"), ("Transfer-Encoding", "gzip"), TYPE), *BODY]),
    "large": Case(steps=[start(TYPE), ("write", bytes(300_000)), ("write", b"x" * 50_000), ("close",)]),
    "large with a length": Case(steps=[start(("Content-Length", "300000")), ("write", bytes(300_000)), ("close",)]),
    "uWSGI": Case(protocol="uwsgi", steps=[start(TYPE), *BODY]),
    "uWSGI with a length": Case(protocol="uwsgi", steps=[start(FIVE), *BODY]),
    "file": Case(steps=[start(TYPE), ("file", b"0123456789", 3), ("close",)]),
    "file with a length": Case(steps=[start(FIVE), ("file", b"0123456789", 0), ("close",)]),
    "file for HEAD": Case("HEAD", steps=[start(FIVE), ("file", b"0123456789", 0), ("close",)]),
    "headers of several kinds": Case(steps=[("start", "200 OK", (TYPE, FIVE)), *BODY]),
    "headers from a dictionary": Case(steps=[("start", "200 OK", dict([TYPE, FIVE]).items()), *BODY]),
    "empty headers": Case(steps=[start(), *BODY]),
    "twice": Case(steps=[start(TYPE), start(TYPE)]),
    "status is bytes": Case(steps=[("start", b"200 OK", []), *BODY]),
    "status without a reason": Case(steps=[start(status="200"), *BODY]),
    "header is bytes": Case(steps=[("start", "200 OK", [("X-A", b"a")]), *BODY]),
    "header is split": Case(steps=[start(("X-A", "a\r\nX-B: b")), *BODY]),
    "name is split": Case(steps=[start(("X-A: b\r\nX-C", "a")), *BODY]),
    "three in a header": Case(steps=[("start", "200 OK", [("X-A", "a", "b")]), *BODY]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_in_known_cases(name: str) -> None:
    compare(CASES[name])


def test_a_generator_of_headers_is_read_once() -> None:
    # PEP 3333 asks for a list; gunicorn takes whatever can be iterated over.
    for _ in range(3):
        with wire() as bench:
            response = bench.respond()
            response.start_response("200 OK", iter([TYPE, ("X-New", "a"), FIVE]))  # type: ignore[arg-type]
            response.write(b"hello")
            assert b"\r\nContent-Type: text/plain\r\nX-New: a\r\nContent-Length: 5\r\n\r\nhello" in bench.read()


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ([("X-A", "a\nb")], InvalidResponseHeader),
        ([("X-A", "\0")], InvalidResponseHeader),
        ([("X-A", "\u20ac")], InvalidResponseHeader),
        ([("X A", "a")], InvalidResponseHeaderName),
        ([("X-A", 1)], TypeError),
        ([(1, "a")], TypeError),
        ([("Content-Length", "abc")], ValueError),
        ([["X-A"]], ValueError),
    ],
)
def test_bad_headers_are_refused_before_anything_is_sent(headers: Any, error: type[Exception]) -> None:
    # Also when the other names were used before, and known good then.
    for _ in range(3):
        with wire() as bench:
            with pytest.raises(error):
                bench.respond().start_response("200 OK", [("X-Known", "a"), *headers])
            bench.respond().start_response("200 OK", [("X-Known", "a"), ("X-A", "a")])
            assert bench.read() == b""


def test_a_str_in_disguise_is_examined() -> None:
    class Sly(str):
        """Says that it is printable."""

        __slots__ = ()

        def isprintable(self) -> bool:
            return True

        def isascii(self) -> bool:
            return True

    with wire() as bench:
        bench.respond().start_response("200 OK", [("X-A", "a")])
        with pytest.raises(InvalidResponseHeader):
            bench.respond().start_response("200 OK", [("X-A", Sly("a\r\nX-B: b"))])


# ------------------------------------------------------------------ differences on purpose


def test_head_and_body_leave_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    for name in ("write", "writev"):
        real = getattr(os, name)

        def count(fd: int, data: Any, real: Any = real) -> int:
            calls.append(fd)
            sent: int = real(fd, data)
            return sent

        monkeypatch.setattr(os, name, count)
    for piece in (b"hello", bytes(30_000)):
        for headers in ([TYPE], [TYPE, ("Content-Length", str(len(piece)))]):
            with wire() as bench:
                response = bench.respond()
                response.start_response("200 OK", headers)
                calls.clear()
                response.write(piece)
                assert calls == [bench.conn.fd]
                assert piece in bench.read()


def test_what_is_not_bytes_is_refused_before_the_head_is_out() -> None:
    for bad in ("text", None, 5, bytearray(b"x"), memoryview(b"x")):
        with wire() as bench:
            response = bench.respond()
            response.start_response("200 OK", [TYPE, ("Content-Length", "1")])
            with pytest.raises(TypeError):
                answer_at_once(response, bad)
            assert bench.read() == b""
            assert not response.headers_sent


def test_a_response_that_was_never_started_is_an_error() -> None:
    for name in ("write", "close"):
        with wire() as bench:
            response = bench.respond()
            with pytest.raises(AssertionError, match="start_response"):
                response.write(b"x") if name == "write" else response.close()
            assert bench.read() == b""


def boom() -> Any:
    """An exc_info."""
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        return sys.exc_info()


def test_a_new_head_replaces_the_one_that_was_not_sent() -> None:
    for _ in range(3):
        with wire() as bench:
            response = bench.respond()
            response.start_response("200 OK", [TYPE, FIVE, ("Connection", "Upgrade")])
            response.start_response("500 Oh", [("X-Error", "yes")], boom())
            response.write(b"failed")
            response.close()
            got = bench.read()
            assert got.startswith(b"HTTP/1.1 500 Oh\r\n")
            assert b"X-Error: yes\r\n" in got
            assert b"Content-Type" not in got
            assert b"Content-Length" not in got
            assert b"Connection: keep-alive\r\n" in got
            assert got.endswith(b"6\r\nfailed\r\n0\r\n\r\n")


def test_after_the_head_the_exception_is_raised_again() -> None:
    with wire() as bench:
        response = bench.respond()
        response.start_response("200 OK", [TYPE])
        response.write(b"x")
        before = bench.read()
        with pytest.raises(RuntimeError, match="boom"):
            response.start_response("500 Oh", [], boom())
        assert bench.read() == before


def test_whether_it_stays_is_decided_when_the_head_is_written() -> None:
    with wire() as bench:
        early, late = bench.respond(), bench.respond()
        for response in (early, late):
            response.start_response("200 OK", [("Content-Length", "0")])
        early.close()
        assert b"Connection: keep-alive\r\n" in bench.read()
        assert early.ending is None
        bench.terms.draining = True
        late.close()
        assert bench.read().count(b"Connection: close\r\n") == 1
        assert late.ending is Reason.SHUTDOWN
        assert early.ending is None, "the promise is kept"


@pytest.mark.parametrize(
    ("terms", "requests", "reason"),
    [
        ({}, 1, None),
        ({"requests": 3}, 2, None),
        ({"requests": 3}, 3, Reason.REQUEST_CAP),
        ({"lifetime": 10.0}, 1, Reason.LIFETIME),
        ({"timeout": 0.0}, 1, Reason.RESPONSE),
    ],
)
def test_why_it_ends(terms: dict[str, Any], requests: int, reason: Reason | None) -> None:
    with wire(**terms) as bench:
        bench.conn.requests = requests
        bench.clock.now += 11.0
        response = bench.respond()
        response.start_response("200 OK", [("Content-Length", "0")])
        response.close()
        assert response.ending is reason
        assert (b"Connection: close\r\n" in bench.read()) == (reason is not None)


def test_the_app_asks_for_the_end() -> None:
    with wire() as bench:
        response = bench.respond()
        response.start_response("200 OK", [("Content-Length", "0")])
        bench.conn.close()
        response.close()
        assert response.ending is Reason.RESPONSE


# ------------------------------------------------------------------------ Keep-Alive


def advertised(bench: Wire, status: str = "200 OK", **options: Any) -> tuple[bytes, bytes]:
    """The fields Connection and Keep-Alive of a response."""
    bench.conn.advertise = True
    response = bench.respond(**options)
    response.start_response(status, [("Content-Length", "0")])
    response.close()
    fields = dict(line.split(b": ", 1) for line in bench.read().split(b"\r\n")[1:-2])
    bench.received = b""
    return fields[b"Connection"], fields.get(b"Keep-Alive", b"")


def test_the_promise_is_told() -> None:
    with wire() as bench:
        assert advertised(bench) == (b"keep-alive", b"timeout=5")
        bench.conn.keep_idle(90.7)
        assert advertised(bench) == (b"keep-alive", b"timeout=90")
    with wire(requests=10) as bench:
        bench.conn.requests = 4
        assert advertised(bench) == (b"keep-alive", b"timeout=5, max=6")


def test_nothing_is_promised_where_it_ends() -> None:
    with wire(requests=10) as bench:
        bench.conn.requests = 10
        assert advertised(bench) == (b"close", b"")
    with wire() as bench:
        assert advertised(bench, close=True) == (b"close", b"")
        bench.terms.draining = True
        assert advertised(bench) == (b"close", b"")


def test_nothing_is_promised_that_is_less_than_a_second() -> None:
    with wire(timeout=0.5) as bench:
        assert advertised(bench) == (b"keep-alive", b"")


def test_nothing_is_told_unless_the_middleware_asked_for_it() -> None:
    with wire() as bench:
        response = bench.respond()
        response.start_response("200 OK", [("Content-Length", "0"), ("Keep-Alive", "timeout=99")])
        response.close()
        assert b"Keep-Alive:" not in bench.read()


# ------------------------------------------------------------------- slow and lost clients


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=4), st.booleans())
@settings(max_examples=20, deadline=None)
def test_slow_clients_get_every_byte(sizes: list[int], chunked: bool) -> None:
    pieces = [bytes([index + 65]) * size for index, size in enumerate(sizes)]
    headers = [] if chunked else [("Content-Length", str(sum(sizes)))]
    with wire(small=True) as bench:
        response = bench.respond()
        response.start_response("200 OK", headers)
        for piece in pieces:
            response.write(piece)
        response.close()
        _, _, body = bench.read().partition(b"\r\n\r\n")
        if chunked:
            expected = b"".join(b"%X\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"
        else:
            expected = b"".join(pieces)
        assert body == expected
        assert bench.waits > 0 or sum(sizes) < 200_000
        assert bench.conn.bytes_sent == len(bench.received) == bench.counters.bytes_sent
        assert response.is_complete()
        assert response.why_lost is None


def test_a_client_that_is_gone_is_noticed() -> None:
    for size in (5, 30_000):
        with wire() as bench:
            response = bench.respond()
            response.start_response("200 OK", [TYPE])
            bench.theirs.close()
            with pytest.raises(OSError, match="Broken pipe"):
                response.write(bytes(size))
            assert isinstance(response.why_lost, BrokenPipeError)
            assert not response.is_complete()


@pytest.mark.parametrize(
    ("method", "status", "length", "sent", "complete"),
    [
        ("GET", "200 OK", "5", b"hello", True),
        ("GET", "200 OK", "5", b"hell", False),
        ("GET", "200 OK", "5", b"hello!", True),
        ("HEAD", "200 OK", "5", b"", True),
        ("GET", "304 Not Modified", "5", b"", True),
        ("GET", "200 OK", None, b"", True),
    ],
)
def test_completeness(method: str, status: str, length: str | None, sent: bytes, complete: bool) -> None:
    with wire() as bench:
        response = bench.respond(method)
        response.start_response(status, [("Content-Length", length)] if length else [])
        response.write(sent)
        response.close()
        assert response.is_complete() is complete


def test_a_body_where_none_belongs_is_dropped_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with wire() as bench, caplog.at_level(logging.WARNING):
        response = bench.respond("HEAD")
        response.start_response("200 OK", [TYPE])
        response.write(b"a")
        response.write(b"b")
        response.close()
        assert bench.read().endswith(b"\r\n\r\n")
        assert len(caplog.records) == 1


def test_early_hints() -> None:
    with wire() as bench:
        response = bench.respond()
        response.send_early_hints([("Link", "</a.css>; rel=preload")])
        response.start_response("200 OK", [FIVE])
        response.write(b"hello")
        response.send_early_hints([("Link", "too late")])
        got = bench.read()
        assert got.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert b"too late" not in got
    with wire() as bench:
        bench.respond(version="HTTP/1.0", close=True).send_early_hints([("Link", "x")])
        assert bench.read() == b""


# ---------------------------------------------------------------------- what is remembered


def test_what_is_remembered_is_bounded() -> None:
    with wire() as bench:
        for number in range(1500):
            response = bench.respond()
            response.start_response(f"200 Number {number}", [(f"X-{number}", "a")])
    assert len(module._statuses) <= module._MAX_KNOWN
    assert len(module._names) <= module._MAX_KNOWN


def test_date_follows_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.25 + clock.now - 5000.0)
    memory = ResponseMemory()

    def seconds() -> str:
        lines = memory.first_lines(clock.now, "HTTP/1.1", "200 OK", "close").decode()
        found = re.search(r"Date: .* \d\d:\d\d:(\d\d) GMT\r\n", lines)
        assert found is not None
        return found[1]

    seen = []
    for clock.now in (5000.0, 5000.7, 5000.76, 5001.7, 5001.8, 5010.0):
        seen.append(seconds())
    assert seen == ["20", "20", "21", "21", "22", "30"]


def test_the_first_lines() -> None:
    memory = ResponseMemory()
    for _ in range(2):
        for version, status, connection in [
            ("HTTP/1.1", "200 OK", "close"),
            ("HTTP/1.0", "200 OK", "close"),
            ("HTTP/1.1", "404 Not Found", "close"),
            ("HTTP/1.1", "200 OK", "keep-alive"),
        ]:
            lines = memory.first_lines(1.0, version, status, connection).decode().split("\r\n")
            assert lines[0] == f"{version} {status}"
            assert lines[1] == f"Server: {wsgi.SERVER}"
            assert lines[2].startswith("Date: ")
            assert lines[3:] == [f"Connection: {connection}", ""]


# ------------------------------------------------------------- the request, when somebody looks


def test_a_request_is_made_only_when_somebody_looks() -> None:
    with wire() as bench:
        response = bench.respond()
        response.start_response("200 OK", [TYPE])
        response.start_response("200 OK", [TYPE], boom())
        response.close()
        again = bench.respond()
        again.start_response("200 OK", [TYPE])
        again.write(b"x")
        again.close()
        assert again._req is None
        assert isinstance(again.req, PlainRequest)
        assert again.req is again.req
        assert again.req.version == (1, 1)
        with pytest.raises(AttributeError):
            _ = again.req.no_such_attribute
