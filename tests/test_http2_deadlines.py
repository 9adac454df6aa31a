"""HTTP/2 clients that are slow, silent or hostile: who is cut, when, and what it is counted as."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import h2.errors
import h2.settings
import pytest
from harness import Certificates, Client, NoAnswerError, Server, wait_until
from test_frames import CONTINUATION, DATA, END_HEADERS, HEADERS, PING, PREFACE, SETTINGS
from test_http2 import H2, Http2Client

if TYPE_CHECKING:
    from conftest import Serve

pytestmark = pytest.mark.only_ours("gunicorn's does not count")

#: An idle time that no other deadline may be taken for.
LONG = ("--keep-alive", "30")
RST_STREAM = 3


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame's bytes."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack("!I", stream) + payload


BEGIN = PREFACE + frame(SETTINGS, 0, 0)
#: GET / of https://localhost without a body, in HPACK's static table (RFC 7541 A).
GET = bytes((0x82, 0x84, 0x87, 0x41, 9)) + b"localhost"


@contextmanager
def _counted(server: Server, reason: str) -> Iterator[None]:
    """One connection is closed meanwhile, for *reason*, beside those that ask."""

    def closed() -> dict[str, int]:
        return {key: count for key, count in server.get("/closed").json().items() if key != "response"}

    before = closed()
    yield
    wait_until(lambda: closed() != before, "one more is closed")
    assert closed() == before | {reason: before[reason] + 1}


def _ends_within(client: Client, seconds: float, again: Callable[[], bytes] | None = None) -> None:
    """The server closes, in time, though the client sends *again* something every tenth of a second."""
    until = time.monotonic() + seconds
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while True:
            try:
                if not client.receive(min(until, time.monotonic() + 0.1)):
                    return
            except NoAnswerError:
                assert time.monotonic() < until, "it was not ended"
                if again is not None:
                    client.send(again())


@pytest.fixture
def connect(certificates: Certificates) -> Callable[[Server], Client]:
    """Makes a connection on which HTTP/2 was negotiated and nothing sent."""
    return lambda server: server.connect(tls=certificates.client_context("h2"))


Connect = Callable[[Server], Client]


# --- between streams -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [PREFACE[:10], BEGIN + frame(PING, 0, 0, bytes(8))[:-1], BEGIN + b"\0", BEGIN + frame(HEADERS, 1, 1, GET)],
    ids=["half a preface", "half a frame", "a byte", "half a header block"],
)
def test_what_has_begun_has_to_end(
    serve: Serve, certificates: Certificates, connect: Connect, sent: bytes
) -> None:
    server = serve("late:app", *H2, *LONG, "--header-timeout", "0.5", certificates=certificates)
    client = connect(server)
    with _counted(server, "header_timeout"):
        client.send(sent)
        _ends_within(client, 3.0)


def test_a_drop_now_and_then_does_not_help(serve: Serve, certificates: Certificates, connect: Connect) -> None:
    server = serve("late:app", *H2, *LONG, "--header-timeout", "0.5", certificates=certificates)
    client = connect(server)
    drops = iter(frame(HEADERS, 1, 1, GET * 20))
    with _counted(server, "header_timeout"):
        client.send(BEGIN)
        _ends_within(client, 3.0, lambda: bytes((next(drops),)))


def test_a_ping_is_no_request(serve: Serve, certificates: Certificates, connect: Connect) -> None:
    server = serve("late:app", *H2, "--keep-alive", "0.5", "--keep-alive-grace", "0.5", certificates=certificates)
    client = Http2Client(connect(server))
    stream = client.ask("/")
    client.flush()
    client.finish(stream)
    until = time.monotonic() + 4.0
    with _counted(server, "idle_timeout"):
        while client.goaway is None:
            assert time.monotonic() < until, "it was not ended"
            client.h2.ping(bytes(8))
            client.flush()
            client.receive()
            # What is tested is what happens while time passes.
            time.sleep(0.05)
    assert (client.goaway, client.last_served) == (0, stream)


def test_without_keep_alive_it_is_idle_for_the_grace(
    serve: Serve, certificates: Certificates, connect: Connect
) -> None:
    server = serve(
        "late:app", *H2, "--keep-alive", "0", "--header-timeout", "0.5", certificates=certificates
    )  # fmt: skip
    client = Http2Client(connect(server))
    stream = client.ask("/")
    client.flush()
    assert client.finish(stream)[0] == "200"
    client.read_to_the_end()
    assert (client.goaway, client.last_served) == (0, stream)


def test_an_idle_one_gives_way(serve: Serve, certificates: Certificates, connect: Connect) -> None:
    """The longest idle first, as on HTTP/1.1."""
    server = serve("late:app", *H2, *LONG, "--worker-connections", "3", certificates=certificates, fresh=True)
    clients = []
    for _ in range(3):
        client = Http2Client(connect(server))
        stream = client.ask("/")
        client.flush()
        client.finish(stream)
        clients.append(client)
    assert server.get("/closed").json()["evicted"] == 1
    clients[0].read_to_the_end()
    assert (clients[0].goaway, clients[0].last_served) == (0, 1)
    for client in clients[1:]:
        stream = client.ask("/")
        client.flush()
        assert client.finish(stream) == ("200", b"ok")


def _takes(seconds: float, began: float) -> None:
    """A deadline is never early, and soon enough on a machine that has other things to do."""
    assert seconds - 0.01 <= time.monotonic() - began < seconds + 3.0


def test_who_says_nothing_is_idle(serve: Serve, certificates: Certificates, connect: Connect) -> None:
    """A new connection has the header timeout, or its idle time where that is longer."""
    server = serve(
        "late:app", *H2, "--keep-alive", "0.5", "--keep-alive-grace", "0.5", "--header-timeout", "0.5",
        certificates=certificates,
    )  # fmt: skip
    with _counted(server, "idle_timeout"):
        began = time.monotonic()
        client = Http2Client(connect(server))
        client.read_to_the_end()
        _takes(1.0, began)
    assert client.goaway == 0


def test_the_application_says_how_long_it_may_be_idle(
    serve: Serve, certificates: Certificates, connect: Connect
) -> None:
    server = serve("closing:app", *H2, "--keep-alive", "0.2", "--keep-alive-grace", "0.2", certificates=certificates)
    with _counted(server, "idle_timeout"):
        client = Http2Client(connect(server))
        stream = client.ask("/keep-idle?1.5")
        client.flush()
        assert client.finish(stream) == ("200", b"ok")
        began = time.monotonic()
        client.read_to_the_end()
        _takes(1.5, began)
    assert (client.goaway, client.last_served) == (0, stream)


def test_at_the_end_of_its_lifetime(serve: Serve, certificates: Certificates, connect: Connect) -> None:
    """However busy it is; what GOAWAY says was served is answered."""
    server = serve("closing:app", *H2, *LONG, "--keep-alive-lifetime", "0.5", certificates=certificates)
    with _counted(server, "lifetime"):
        began = time.monotonic()
        client = Http2Client(connect(server))
        streams = []
        while client.goaway is None:
            assert time.monotonic() < began + 4.0, "it was not ended"
            streams.append(client.ask("/"))
            client.flush()
            while streams[-1] not in client.ended and client.client.receive():
                client.handle(bytes(client.client.pending))
                client.client.pending.clear()
        assert time.monotonic() >= began + 0.4
        assert {stream for stream in streams if stream <= (client.last_served or 0)} <= client.ended


def test_who_does_not_read_is_cut(serve: Serve, certificates: Certificates) -> None:
    """Though its windows are open (RFC 9113 5.2): it is the connection that stands, not a stream."""
    server = serve("closing:app", *H2, *LONG, "--send-timeout", "0.5", certificates=certificates)
    with _counted(server, "send_timeout"):
        client = Http2Client(server.connect(tls=certificates.client_context("h2"), receive_buffer=4096))
        client.h2.increment_flow_control_window(1 << 30)
        stream = client.ask("/large")
        client.h2.increment_flow_control_window(1 << 30, stream)
        client.flush()
        while stream not in client.headers:
            client.receive()


# --- in a stream ---------------------------------------------------------------------------------


def _post(client: Http2Client, path: str) -> int:
    """The head of a request whose body is still to come."""
    stream: int = client.h2.get_next_available_stream_id()
    pseudo = [(":method", "POST"), (":path", path), (":scheme", "https"), (":authority", "localhost")]
    client.h2.send_headers(stream, pseudo)
    return stream


def _reset_in_time(client: Http2Client, stream: int, seconds: float, again: Callable[[], None] | None = None) -> None:
    until = time.monotonic() + seconds
    while stream not in client.resets:
        try:
            client.client.receive(time.monotonic() + 0.1)
        except NoAnswerError:
            assert time.monotonic() < until, "the stream was not reset"
            if again is not None:
                again()
                client.flush()
        client.handle(bytes(client.client.pending))
        client.client.pending.clear()
    assert client.resets[stream] == h2.errors.ErrorCodes.CANCEL
    # It was the stream's fault: the connection has others.
    good = client.ask("/")
    client.flush()
    assert client.finish(good) == ("200", b"ok")


@pytest.mark.logs_traceback
@pytest.mark.parametrize("path", ["/give_up_reading", "/read"])
def test_a_body_that_does_not_come_costs_its_stream(
    serve: Serve, certificates: Certificates, connect: Connect, path: str
) -> None:
    server = serve("late:app", *H2, *LONG, "--body-timeout", "0.5", certificates=certificates)
    client = Http2Client(connect(server))
    for _ in range(2):
        stream = _post(client, path)
        client.h2.send_data(stream, b"a beginning")
        client.flush()
        _reset_in_time(client, stream, 3.0)


def test_a_body_that_trickles_costs_its_stream(serve: Serve, certificates: Certificates, connect: Connect) -> None:
    """After the five seconds that are free for each stream."""
    server = serve("late:app", *H2, *LONG, "--min-data-rate", "1000", certificates=certificates)
    client = Http2Client(connect(server))
    stream = _post(client, "/read")
    client.flush()
    _reset_in_time(client, stream, 9.0, lambda: client.h2.send_data(stream, b"x"))


@pytest.mark.parametrize(
    ("option", "slit", "seconds"),
    [(("--send-timeout", "0.5"), 0, 3.0), (("--min-data-rate", "1000"), 1, 9.0)],
    ids=["shut", "a byte at a time"],
)
def test_a_window_that_hardly_opens_costs_its_stream(
    serve: Serve, certificates: Certificates, connect: Connect, option: tuple[str, str], slit: int, seconds: float
) -> None:
    server = serve("late:app", *H2, *LONG, *option, certificates=certificates)
    client = Http2Client(connect(server))
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    client.flush()
    stream = client.ask("/large")
    client.flush()
    until = time.monotonic() + seconds
    while stream not in client.resets:
        assert time.monotonic() < until, "the stream was not reset"
        if slit:
            client.h2.increment_flow_control_window(slit, stream)
            client.flush()
        client.receive()
        # What is tested is what happens while time passes.
        time.sleep(0.05)
    assert client.resets[stream] == h2.errors.ErrorCodes.CANCEL


@pytest.mark.logs_traceback
@pytest.mark.parametrize("kind", ["OddError", "SystemExit", "KeyboardInterrupt"])
def test_what_is_no_exception_costs_its_stream(
    serve: Serve, certificates: Certificates, connect: Connect, kind: str
) -> None:
    server = serve("gallery:app", *H2, *LONG, certificates=certificates)
    client = Http2Client(connect(server))
    failing, good = client.ask(f"/failures/at_once?kind={kind}"), client.ask("/")
    client.flush()
    assert client.finish(good)[0] == "200"
    assert failing in client.resets


# --- what is no HTTP/2, or too much of it ----------------------------------------------------------

FLOODS = {
    "rapid reset": b"".join(
        frame(HEADERS, END_HEADERS | 1, stream, GET) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
        for stream in range(1, 1001, 2)
    ),
    "continuation": frame(HEADERS, 1, 1, GET) + frame(CONTINUATION, 0, 1) * 1000,
    "settings": frame(SETTINGS, 0, 0) * 3000,
    "ping": frame(PING, 0, 0, bytes(8)) * 3000,
    "even stream": frame(HEADERS, END_HEADERS | 1, 2, GET),
    "bad HPACK": frame(HEADERS, END_HEADERS | 1, 1, b"\xff" * 9),
    "data on no stream": frame(DATA, 0, 0, b"x"),
    "too large": frame(DATA, 0, 1, bytes(1 << 20)),
    "no preface": b"x" * 100,
}


@pytest.mark.parametrize("what", FLOODS)
def test_abuse_costs_one_connection(
    serve: Serve, certificates: Certificates, connect: Connect, what: str
) -> None:
    """CVE-2023-44487 and the like; the worker serves the others meanwhile."""
    server = serve("late:app", *H2, *LONG, certificates=certificates)
    before = server.log_size
    client = connect(server)
    with _counted(server, "bad_request"), contextlib.suppress(ConnectionResetError, BrokenPipeError):
        client.send((b"" if what == "no preface" else BEGIN) + FLOODS[what])
        client.read_until_closed()
    assert server.get("/").body == b"ok"
    assert server.complaints(before) == []


def test_abuse_while_a_body_is_read(serve: Serve, certificates: Certificates, connect: Connect) -> None:
    """It comes to light in the application's read(), and is the client's doing all the same."""
    server = serve("late:app", *H2, *LONG, certificates=certificates)
    before = server.log_size
    client = Http2Client(connect(server))
    with _counted(server, "bad_request"):
        _post(client, "/read")
        client.flush()
        client.client.send(FLOODS["data on no stream"])
        client.client.read_until_closed()
    assert server.complaints(before) == []
