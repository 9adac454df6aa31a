"""HTTP/2 over TLS and in clear text, as far as gunicorn's own worker speaks it (RFC 9113)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx
import pytest
from harness import Certificates, Client, Server, request, wait_until

if TYPE_CHECKING:
    from conftest import Serve

GALLERY = "gallery:app"
BODY = b"Hello, world!\n"
H2 = ("--http-protocols", "h2,h1")


@pytest.fixture
def server(serve: Serve, certificates: Certificates) -> Server:
    """The gallery with HTTP/2 over TLS."""
    return serve(GALLERY, *H2, certificates=certificates)


class Http2Client:
    """HTTP/2 frames over a :class:`harness.Client`."""

    def __init__(self, client: Client, *, upgraded: bool = False) -> None:
        self.client = client
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.bodies: dict[int, bytes] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()
        self.interim: dict[int, list[dict[str, str]]] = {}
        self.resets: dict[int, int] = {}
        #: The error code of GOAWAY, and the last stream that it says was served.
        self.goaway: int | None = None
        self.last_served: int | None = None
        if not upgraded:
            self.h2.initiate_connection()
            self.flush()

    def flush(self) -> None:
        """Send what h2 has to send."""
        self.client.send(self.h2.data_to_send())

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, *headers: tuple[str, str]
    ) -> int:
        """Send a request; its stream's number."""
        stream: int = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "localhost")]
        self.h2.send_headers(stream, [*pseudo, *headers], end_stream=body is None)
        if body is not None:
            self.h2.send_data(stream, body, end_stream=True)
        return stream

    def receive(self) -> None:
        """Take in the frames that come next."""
        assert self.client.receive(), "the connection was closed"
        self.handle(bytes(self.client.pending))
        self.client.pending.clear()

    def handle(self, data: bytes) -> None:
        """Take in frames."""
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self.headers[event.stream_id] = {
                    k.decode(): v.decode() for k, v in event.headers
                }  # fmt: skip
            elif isinstance(event, h2.events.InformationalResponseReceived):
                hints = {k.decode(): v.decode() for k, v in event.headers}
                self.interim.setdefault(event.stream_id, []).append(hints)
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.resets[event.stream_id] = int(event.error_code or 0)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = int(event.error_code or 0)
                self.last_served = event.last_stream_id
        self.flush()

    def read_to_the_end(self) -> None:
        """Take in all frames until the server closes."""
        while self.client.receive():
            self.handle(bytes(self.client.pending))
            self.client.pending.clear()

    def finish(self, stream: int) -> tuple[str, bytes]:
        """Status and body of a stream's response."""
        while stream not in self.ended:
            assert stream not in self.resets, f"stream {stream} was reset"
            self.receive()
        return self.headers[stream][":status"], self.bodies.get(stream, b"")


@pytest.fixture
def client(server: Server, certificates: Certificates) -> Http2Client:
    """A connection on which HTTP/2 was negotiated."""
    connection = server.connect(tls=certificates.client_context("h2"))
    assert connection.sock.selected_alpn_protocol() == "h2"  # type: ignore[attr-defined]
    return Http2Client(connection)


# --- over TLS ----------------------------------------------------------------------------------


def test_requests_with_httpx(server: Server, certificates: Certificates) -> None:
    with httpx.Client(http2=True, verify=certificates.client_context(), base_url=server.url) as session:
        for _ in range(20):
            response = session.get("/")
            assert (response.http_version, response.content) == ("HTTP/2", BODY)
        posted = session.post("/uploads/echo", content=b"x" * 100_000)
        assert posted.content == b"x" * 100_000
        with session.stream("GET", "/streaming/watched?name=h2&count=20") as streamed:
            sizes = [len(part) for part in streamed.iter_raw()]
        assert sum(sizes) == 20 << 16
        assert session.head("/").content == b""
        environ = session.get("/introspection/environ").json()
        assert (environ["SERVER_PROTOCOL"], environ["wsgi.url_scheme"]) == ("HTTP/2.0", "https")


def test_environ_is_the_same_as_from_gunicorns_worker(
    serve: Serve, reference: Serve, certificates: Certificates
) -> None:
    seen = []
    for start in (serve, reference):
        server = start("reveal:app", *H2, certificates=certificates)
        client = Http2Client(server.connect(tls=certificates.client_context("h2")))
        one = client.ask("/a%20b?c=d", "GET", None, ("x-one", "1"), ("cookie", "a=b"), ("cookie", "c=d"))
        two = client.ask("/upload", "POST", b"body", ("content-type", "a/b"))
        client.flush()
        answers = [client.finish(one), client.finish(two)]
        headers = [dict(client.headers[stream]) for stream in (one, two)]
        for fields in headers:
            assert fields.pop("date")
        seen.append((answers, headers))
    assert seen[0] == seen[1]


def test_many_streams_at_once(client: Http2Client) -> None:
    streams = [client.ask(f"/introspection/environ?{number}") for number in range(50)]
    client.flush()
    for number, stream in enumerate(streams):
        status, body = client.finish(stream)
        assert status == "200"
        assert f'"QUERY_STRING": "{number}"'.encode() in body


def test_many_streams_one_after_the_other(client: Http2Client) -> None:
    for number in range(100):
        stream = client.ask("/uploads/echo", "POST", b"%d" % number)
        client.flush()
        assert client.finish(stream) == ("200", b"%d" % number)


@pytest.mark.only_ours("gunicorn's own workers do not count")
def test_a_client_that_always_has_the_next_request_ready_lets_others_have_theirs(
    serve: Serve, certificates: Certificates, tmp_path: Path
) -> None:
    """One that came later is not the last to be served."""
    server = serve("facts:wrapped", *H2, certificates=certificates)
    busy = Http2Client(server.connect(tls=certificates.client_context("h2")))
    other, blocker = server.connect(), server.connect()
    busy.finish(_asked(busy, "/"))
    before = other.get("/stats").json()["totals"]["requests"]
    blocker.send(request(f"/spin?file={tmp_path}/go"))
    wait_until((tmp_path / "go.begun").exists, "the worker to be busy")
    streams = [busy.ask("/") for _ in range(100)]
    busy.flush()
    other.send(request("/stats"))
    (tmp_path / "go").touch()
    assert other.read_response().json()["totals"]["requests"] - before < 50
    for stream in streams:
        assert busy.finish(stream)[0] == "200"


def _asked(client: Http2Client, path: str) -> int:
    stream = client.ask(path)
    client.flush()
    return stream


def test_large_bodies_both_ways(server: Server, certificates: Certificates) -> None:
    body = hashlib.sha512(b"h2").digest() * 16384
    with httpx.Client(
        http2=True, verify=certificates.client_context(), base_url=server.url, timeout=30
    ) as session:
        assert session.post("/uploads/echo", content=body).content == body
        assert session.get("/lengths/large").content == bytes(range(256)) * (3 << 12)
        assert session.get("/files/real").content == bytes(range(256)) * 100


def test_responses_without_a_body(client: Http2Client) -> None:
    for path, method, expected in (
        ("/", "HEAD", "200"),
        ("/lengths/no_content", "GET", "204"),
        ("/lengths/not_modified", "GET", "304"),
        ("/lengths/empty_list", "GET", "200"),
    ):
        stream = client.ask(path, method)
        client.flush()
        assert client.finish(stream) == (expected, b"")


def test_connection_headers_are_not_for_http_2(client: Http2Client) -> None:
    """RFC 9113 8.2.2."""
    stream = client.ask("/lengths/pieces")
    client.flush()
    assert client.finish(stream) == ("200", BODY)
    assert not {"connection", "keep-alive", "transfer-encoding"} & client.headers[stream].keys()


def test_early_hints(client: Http2Client) -> None:
    stream = client.ask("/lengths/hinted")
    client.flush()
    assert client.finish(stream) == ("200", BODY)
    hints = {":status": "103", "link": "</a.css>; rel=preload; as=style"}
    assert client.interim[stream] == [hints]


@pytest.mark.logs_traceback
def test_failure_costs_its_stream_only(server: Server, client: Http2Client) -> None:
    before = server.log_size
    failing, good = client.ask("/failures/at_once"), client.ask("/")
    client.flush()
    assert client.finish(failing)[0] == "500"
    assert client.finish(good) == ("200", BODY)
    # gunicorn's HTTP/2 code logs it itself, twice.
    assert 1 <= server.log(before).count("Traceback") <= 2


@pytest.mark.logs_traceback
def test_failure_after_the_head_resets_its_stream(client: Http2Client) -> None:
    failing, good = client.ask("/failures/after_head"), client.ask("/")
    client.flush()
    assert client.finish(good) == ("200", BODY)
    while failing not in client.resets:
        assert failing not in client.ended, "the broken-off response looks complete"
        client.receive()


def test_reset_by_the_client_is_no_error(server: Server, client: Http2Client) -> None:
    before = server.log_size
    stream = client.ask("/streaming/watched?name=h2-reset&count=200")
    client.flush()
    while stream not in client.headers:
        client.receive()
    client.h2.reset_stream(stream)
    good = client.ask("/")
    client.flush()
    assert client.finish(good) == ("200", BODY)
    assert server.complaints(before) == []


@pytest.mark.parametrize("how", ["goaway", "close", "reset"])
def test_client_that_goes_costs_nothing(server: Server, client: Http2Client, how: str) -> None:
    before = server.log_size
    stream = client.ask("/")
    client.flush()
    assert client.finish(stream) == ("200", BODY)
    if how == "goaway":
        client.h2.close_connection()
        client.flush()
        client.client.read_until_closed()
    elif how == "close":
        client.client.close()
    else:
        client.client.abort()
    assert server.get("/").body == BODY
    assert server.complaints(before) == []


def test_http_1_1_beside_http_2(server: Server, certificates: Certificates, client: Http2Client) -> None:
    old = server.connect(tls=certificates.client_context("http/1.1"))
    none = server.connect(tls=certificates.client_context())
    for _ in range(3):
        assert old.get("/").body == BODY
        assert none.get("/").body == BODY
        stream = client.ask("/")
        client.flush()
        assert client.finish(stream) == ("200", BODY)


def test_what_is_no_http_2_costs_its_connection_only(server: Server, certificates: Certificates) -> None:
    connection = server.connect(tls=certificates.client_context("h2"))
    connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    connection.read_until_closed()
    assert server.get("/").body == BODY


def test_idle_http_2_connection_stays_open(serve: Serve, certificates: Certificates) -> None:
    """As long as the idle time of HTTP/1.1 at the least: streams come and go, the connection stays."""
    server = serve(GALLERY, *H2, "--keep-alive", "1", certificates=certificates)
    client = Http2Client(server.connect(tls=certificates.client_context("h2")))
    for pause in (0.9, 0.0):
        stream = client.ask("/")
        client.flush()
        assert client.finish(stream) == ("200", BODY)
        # What is tested is what happens when this much time passes.
        time.sleep(pause)


# --- how connections end -----------------------------------------------------------------------


def _end(client: Http2Client) -> tuple[int | None, int | None]:
    """GOAWAY's error code and last stream, when the server has ended the connection in good order."""
    client.read_to_the_end()
    assert not client.client.reset
    assert not client.client.ragged
    return client.goaway, client.last_served


@contextlib.contextmanager
def _closed_for(server: Server, certificates: Certificates, reason: str) -> Iterator[None]:
    """One connection is counted as closed for *reason* meanwhile."""

    def count() -> int:
        with server.connect(tls=certificates.client_context()) as asking:
            return int(asking.get("/closed").json()[reason])

    before = count()
    yield
    wait_until(lambda: count() > before, f"one more closed for {reason}")


@pytest.mark.only_ours("gunicorn's has no such thing")
def test_the_application_ends_a_connection(serve: Serve, certificates: Certificates) -> None:
    """After its response and those to what had come by then; GOAWAY names the last one (RFC 9113 6.8)."""
    server = serve("closing:app", *H2, certificates=certificates)
    with _closed_for(server, certificates, "response"):
        client = Http2Client(server.connect(tls=certificates.client_context("h2")))
        streams = [client.ask(path) for path in ("/", "/close", "/", "/")]
        client.flush()
        assert [client.finish(stream) for stream in streams] == [("200", b"ok")] * 4
        assert _end(client) == (0, streams[-1])


@pytest.mark.only_ours("gunicorn's has no such thing")
@pytest.mark.parametrize("h2c", [False, True])
def test_a_connection_has_its_number_of_requests(serve: Serve, certificates: Certificates, h2c: bool) -> None:
    cap = ("--keep-alive-requests", "3")
    if h2c:
        client = Http2Client(serve("closing:app", *H2, "--http2-cleartext", "both", *cap).connect())
    else:
        server = serve("closing:app", *H2, *cap, certificates=certificates)
        client = Http2Client(server.connect(tls=certificates.client_context("h2")))
    for _ in range(3):
        stream = client.ask("/")
        client.flush()
        assert client.finish(stream) == ("200", b"ok")
    assert _end(client) == (0, stream)


@pytest.mark.only_ours("gunicorn's own workers do not count")
def test_idle_time_runs_out(serve: Serve, certificates: Certificates) -> None:
    server = serve("closing:app", *H2, "--keep-alive", "1", certificates=certificates)
    with _closed_for(server, certificates, "idle_timeout"):
        client = Http2Client(server.connect(tls=certificates.client_context("h2")))
        stream = client.ask("/")
        client.flush()
        client.finish(stream)
        assert _end(client)[0] == 0


@pytest.mark.only_ours("gunicorn's tells an idle connection when its idle time is over")
def test_a_stop_is_told_by_goaway(serve: Serve, certificates: Certificates) -> None:
    """An idle connection at once, a busy one after its response; nobody waits for the idle one."""
    server = serve(
        "closing:app", *H2, "--drain-timeout", "20", "--graceful-timeout", "30", "--keep-alive", "60",
        certificates=certificates, fresh=True,
    )  # fmt: skip
    idle, busy = (Http2Client(server.connect(tls=certificates.client_context("h2"))) for _ in range(2))
    earlier = idle.ask("/")
    idle.flush()
    idle.finish(earlier)
    slow = busy.ask("/slow?1.5")
    busy.flush()
    server.wait_for_log("slow begins")
    server.send_signal(signal.SIGTERM)
    assert _end(idle) == (0, earlier)
    assert server.process.poll() is None
    assert busy.finish(slow) == ("200", b"ok")
    assert _end(busy) == (0, slow)
    assert server.wait() == 0


@pytest.mark.only_ours("gunicorn's ends the stream in good order")
def test_a_stream_that_outlives_the_graceful_timeout_is_not_ended(serve: Serve, certificates: Certificates) -> None:
    server = serve("steady:app", *H2, "--graceful-timeout", "4", certificates=certificates, fresh=True)
    client = Http2Client(server.connect(tls=certificates.client_context("h2")))
    stream = client.ask("/stream?seconds=60")
    client.flush()
    while client.bodies.get(stream) != b"begun\n":
        client.receive()
    server.send_signal(signal.SIGTERM)
    client.read_to_the_end()
    assert stream not in client.ended
    assert server.wait() == 0


@pytest.mark.only_ours("gunicorn's recycles all at once")
def test_max_requests_loses_no_request(serve: Serve, certificates: Certificates) -> None:
    """Every stream sent is answered, or GOAWAY says that it was not looked at.

    Also on the connections that a worker takes while it is about to leave, with nobody else there.
    """
    server = serve(
        "closing:app", *H2, "--max-requests", "10", "--drain-timeout", "0.3",
        certificates=certificates, fresh=True,
    )  # fmt: skip
    answered = 0
    while server.log().count("Autorestarting") < 3:
        client = Http2Client(server.connect(tls=certificates.client_context("h2")))
        while client.goaway is None:
            streams = [client.ask("/") for _ in range(3)]
            client.flush()
            while client.client.receive():
                client.handle(bytes(client.client.pending))
                client.client.pending.clear()
                if client.ended.issuperset(streams):
                    break
            last = streams[-1] if client.last_served is None else client.last_served
            assert {stream for stream in streams if stream <= last} <= client.ended
            answered += len(client.ended.intersection(streams))
    assert answered >= 30


# --- in clear text -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["prior-knowledge", "both"])
def test_prior_knowledge(serve: Serve, mode: str) -> None:
    """RFC 9113 3.3."""
    server = serve(GALLERY, *H2, "--http2-cleartext", mode)
    client = Http2Client(server.connect())
    streams = [client.ask("/uploads/echo", "POST", b"%d" % number) for number in range(10)]
    client.flush()
    for number, stream in enumerate(streams):
        assert client.finish(stream) == ("200", b"%d" % number)


def test_prior_knowledge_byte_by_byte(serve: Serve) -> None:
    server = serve(GALLERY, *H2, "--http2-cleartext", "both")
    connection, other = server.connect(), server.connect()
    http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http2.initiate_connection()
    preface = http2.data_to_send()
    for position in range(len(preface)):
        connection.send(preface[position : position + 1])
        assert other.get("/").status == 200
    client = Http2Client(connection, upgraded=True)
    client.h2 = http2
    stream = client.ask("/")
    client.flush()
    assert client.finish(stream) == ("200", BODY)


@pytest.mark.parametrize("mode", ["upgrade", "both"])
@pytest.mark.parametrize("body", [b"", b"with a body"])
def test_upgrade(serve: Serve, mode: str, body: bytes) -> None:
    """RFC 7540 3.2; on the second request of a connection as well as on the first."""
    server = serve(GALLERY, *H2, "--http2-cleartext", mode)
    for earlier in (0, 2):
        connection = server.connect()
        for _ in range(earlier):
            assert connection.get("/").body == BODY
        http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        settings = http2.initiate_upgrade_connection()
        assert settings is not None
        headers = [
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            f"HTTP2-Settings: {settings.decode()}",
        ]
        connection.send(request("/uploads/echo", *headers, method="POST", body=body))
        switched = connection.read_response()
        assert (switched.status, (switched.header("Upgrade") or "").lower()) == (101, "h2c")
        client = Http2Client(connection, upgraded=True)
        client.h2 = http2
        client.flush()
        client.handle(bytes(connection.pending))
        connection.pending.clear()
        assert client.finish(1) == ("200", body)
        stream = client.ask("/")
        client.flush()
        assert client.finish(stream) == ("200", BODY)


@pytest.mark.parametrize("mode", ["off", "prior-knowledge", "upgrade", "both"])
def test_what_is_not_offered_is_not_done(serve: Serve, reference: Serve, mode: str) -> None:
    """The same answers as gunicorn's worker gives, to both ways of asking and to plain HTTP/1.1."""
    settings = base64.urlsafe_b64encode(b"\0\3\0\0\0d").rstrip(b"=").decode()
    upgrade = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", f"HTTP2-Settings: {settings}"]
    seen = []
    for start in (serve, reference):
        server = start(GALLERY, *H2, "--http2-cleartext", mode)
        answers = []
        for sent in (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
            request("/", *upgrade),
            request("/", *upgrade, "HTTP2-Settings: !"),
            request("/", *upgrade[:2]),
            request("/", "Connection: close"),
            b"PRI * HTTP/2.0\r\n\r\nXX",
        ):
            client = server.connect()
            client.send(sent)
            client.receive()
            answers.append(bytes(client.pending[:12]))
        seen.append(answers)
    assert seen[0] == seen[1]
    assert seen[0][4] == (b"HTTP/1.1 400" if mode == "prior-knowledge" else b"HTTP/1.1 200")
