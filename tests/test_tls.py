"""Persistent connections over TLS (RFC 8446, RFC 9110 4.2.2)."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest
from harness import IS_OURS, Certificates, Client, NoAnswerError, Server, chunked, request, wait_until

if TYPE_CHECKING:
    from conftest import Serve

GALLERY = "gallery:app"
BODY = b"Hello, world!\n"


@pytest.fixture
def server(serve: Serve, certificates: Certificates) -> Server:
    """The gallery over TLS."""
    return serve(GALLERY, certificates=certificates)


class Records:
    """A TLS client that decides itself which bytes go into which record and packet."""

    def __init__(self, server: Server, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.client: Client = server.connect_plain()
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                self._receive()
            else:
                self.flush()
                break

    def _receive(self) -> None:
        if self.client.receive():
            self._incoming.write(bytes(self.client.pending))
            self.client.pending.clear()
        else:
            self._incoming.write_eof()

    def record(self, data: bytes) -> None:
        """Put *data* into a record of its own, not sent yet."""
        assert self._tls.write(data) == len(data)

    def flush(self) -> None:
        """Send all records made so far in one packet."""
        self.client.send(self._outgoing.read())

    def outgoing(self) -> bytes:
        """The records made so far, not sent."""
        return self._outgoing.read()

    def read(self, size: int) -> bytes:
        """Exactly *size* decrypted bytes."""
        got = b""
        while len(got) < size:
            try:
                got += self._tls.read(size - len(got))
            except ssl.SSLWantReadError:
                self._receive()
        return got

    def read_head(self) -> bytes:
        """Decrypted bytes up to the end of a head."""
        got = b""
        while not got.endswith(b"\r\n\r\n"):
            got += self.read(1)
        return got

    def read_hello(self) -> None:
        """A whole response of ``/``."""
        assert self.read_head().startswith(b"HTTP/1.1 200 OK\r\n")
        assert self.read(len(BODY)) == BODY


@pytest.fixture
def records(server: Server, certificates: Certificates) -> Records:
    """A connection that is made record by record."""
    return Records(server, certificates.client_context())


# --- requests ----------------------------------------------------------------------------------


def test_many_requests_on_one_connection(server: Server) -> None:
    client = server.connect()
    for number in range(100):
        environ = client.get(f"/introspection/environ?{number}").json()
        assert (environ["QUERY_STRING"], environ["wsgi.url_scheme"]) == (str(number), "https")
        assert environ["REMOTE_PORT"] == str(client.port)


def test_environ_is_the_same_as_from_gunicorns_worker(
    serve: Serve, reference: Serve, certificates: Certificates
) -> None:
    seen = []
    for start in (serve, reference):
        server = start("reveal:app", certificates=certificates)
        client = server.connect()
        seen.append([client.get("/a?b", "X-A: 1", method="POST", body=b"c").json() for _ in range(3)])
    assert seen[0] == seen[1]


def test_connection_per_request(server: Server) -> None:
    for _ in range(20):
        assert server.get("/").body == BODY


@pytest.mark.parametrize("protocol", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions(server: Server, certificates: Certificates, protocol: ssl.TLSVersion) -> None:
    context = certificates.client_context()
    context.minimum_version = context.maximum_version = protocol
    client = server.connect(tls=context)
    for _ in range(3):
        assert client.get("/").body == BODY
        server.settle()


def test_large_bodies_both_ways(server: Server) -> None:
    body = hashlib.sha512(b"tls").digest() * 100_000
    client = server.connect(timeout=30)
    for _ in range(2):
        client.send(request("/uploads/echo", f"Content-Length: {len(body)}", method="POST"))
        client.send(body)
        assert client.read_response().body == body
    assert client.get("/lengths/large_unknown").body == bytes(range(256)) * (3 << 12)
    assert client.get("/").body == BODY


def test_chunked_upload(server: Server) -> None:
    client = server.connect()
    client.send(
        request("/uploads/digest", "Transfer-Encoding: chunked", method="POST")
        + chunked(*[b"x" * 20000] * 50)
    )
    assert client.read_response().json()["size"] == 1_000_000
    assert client.get("/").body == BODY


@pytest.mark.parametrize("function", ["real", "unknown", "offset", "memory"])
def test_files(server: Server, function: str) -> None:
    """No sendfile over TLS, but the same bytes."""
    content = bytes(range(256)) * 100
    client = server.connect()
    assert client.get(f"/files/{function}").body == (content[1000:] if function == "offset" else content)
    assert client.get("/").body == BODY


def test_streamed_response(server: Server) -> None:
    client = server.connect()
    client.send(request("/streaming/gated?name=tls"))
    client.read_head()
    assert client.read_chunk() == b"before"
    client.assert_open()
    server.get("/streaming/open_gate?name=tls")
    assert client.read_chunk() == b"after"
    assert client.read_chunk() == b""
    assert client.get("/").body == BODY


def test_expect_continue(server: Server) -> None:
    client = server.connect()
    client.send(request("/uploads/echo", "Content-Length: 5", "Expect: 100-continue", method="POST"))
    assert client.read_response().status == 100
    client.send(b"hello")
    assert client.read_response().body == b"hello"


def test_slow_reader_delays_nobody(server: Server) -> None:
    client = server.connect(receive_buffer=4096, timeout=30)
    client.send(request("/streaming/watched?name=tls-slow&count=200"))
    client.read_head()
    for _ in range(10):
        assert server.get("/").body == BODY
    assert server.get("/streaming/state?name=tls-slow").json()["made"] < 200
    size = 0
    while chunk := client.read_chunk():
        size += len(chunk)
    assert size == 200 << 16
    assert client.get("/").body == BODY


# --- records -----------------------------------------------------------------------------------


def test_requests_pipelined_in_one_record(records: Records) -> None:
    for count in (1, 2, 10):
        records.record(request("/") * count)
        records.flush()
        for _ in range(count):
            records.read_hello()


def test_requests_in_records_that_come_together(records: Records) -> None:
    """The second record is decrypted, or not, but no longer in the socket: nothing will announce it."""
    for count in (2, 3, 10):
        for _ in range(count):
            records.record(request("/"))
        records.flush()
        for _ in range(count):
            records.read_hello()


def test_request_over_many_records_that_come_together(records: Records) -> None:
    sent = request("/", "X-Long: " + "x" * 5000)
    for at in range(0, len(sent), 100):
        records.record(sent[at : at + 100])
    records.flush()
    records.read_hello()


def test_head_and_body_in_records_that_come_together(records: Records) -> None:
    for _ in range(3):
        records.record(request("/uploads/echo", "Content-Length: 10", method="POST"))
        records.record(b"01234")
        records.record(b"56789" + request("/")[:5])
        records.record(request("/")[5:])
        records.flush()
        assert b"Content-Length: 10\r\n" in records.read_head()
        assert records.read(10) == b"0123456789"
        records.read_hello()


def test_half_a_head_after_a_response(server: Server, records: Records) -> None:
    """A parked TLS connection has to come back for half a head, too."""
    for _ in range(3):
        records.record(request("/"))
        records.flush()
        records.read_hello()
        server.settle()
        records.record(request("/")[:10])
        records.flush()
        server.settle()
        records.record(request("/")[10:])
        records.flush()
        records.read_hello()


def test_record_split_over_packets(server: Server, records: Records) -> None:
    """Readable, but nothing to read yet."""
    for _ in range(2):
        records.record(request("/") + request("/"))
        packet = records.outgoing()
        for at in range(0, len(packet), 7):
            records.client.send(packet[at : at + 7])
            server.settle()
        records.read_hello()
        records.read_hello()


@pytest.mark.only_ours("gunicorn's has no limit on it")
def test_parts_of_a_record_are_no_part_of_a_body(serve: Serve, certificates: Certificates) -> None:
    """A byte of one now and then does not begin the wait anew."""
    server = serve(GALLERY, "--body-timeout", "0.5", "--min-data-rate", "0", certificates=certificates)
    records = Records(server, certificates.client_context())
    records.record(request("/uploads/echo", "Content-Length: 10000", method="POST"))
    records.flush()
    records.record(b"x" * 10_000)
    client, rest = records.client, iter(records.outgoing())
    until = time.monotonic() + 5.0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while not client.eof:
            assert time.monotonic() < until, "the connection is still open"
            client.send(bytes((next(rest),)))
            with contextlib.suppress(NoAnswerError):
                client.receive(time.monotonic() + 0.05)


def test_more_data_than_a_read_takes(records: Records) -> None:
    """Requests of together more than the worker may read at once, in the largest records there are."""
    sent = request("/", "X-Long: " + "x" * 6000) * 30
    for at in range(0, len(sent), 16384):
        records.record(sent[at : at + 16384])
    records.flush()
    for _ in range(30):
        records.read_hello()


# --- the ends of connections -------------------------------------------------------------------


@pytest.mark.only_ours("closes the socket without the alert")
@pytest.mark.parametrize("path", ["/", "/lengths/pieces", "/lengths/large"])
def test_server_ends_with_the_closure_alert(server: Server, path: str) -> None:
    """RFC 8446 6.1: without it, the client cannot tell the end from an attack."""
    client = server.connect()
    client.get(path, "Connection: close")
    client.assert_closed()
    assert not client.ragged
    assert not client.reset


@pytest.mark.only_ours("closes the socket without the alert")
def test_http_1_0_response_ends_with_the_closure_alert(server: Server) -> None:
    """Its end is the only sign that it is complete."""
    client = server.connect()
    client.send(request("/lengths/large_unknown", version="1.0"))
    assert client.read_response().body == bytes(range(256)) * (3 << 12)
    assert not client.ragged


@pytest.mark.parametrize("how", ["alert", "fin", "reset"])
@pytest.mark.parametrize("when", ["idle", "head", "body", "response"])
def test_client_that_goes_costs_nothing(server: Server, when: str, how: str) -> None:
    """With close_notify, without it, and by reset, at any time."""
    before = server.get("/introspection/worker").json()
    log = server.log_size
    sent = {
        "idle": request("/"),
        "head": request("/")[:-5],
        "body": request("/uploads/digest", "Content-Length: 100", method="POST") + b"part",
        "response": request("/lengths/large") * 3,
    }[when]
    for _ in range(5):
        client = server.connect(receive_buffer=4096)
        client.send(sent)
        if when == "idle":
            assert client.read_response().body == BODY
        server.settle()
        if how == "alert":
            assert isinstance(client.sock, ssl.SSLSocket)
            client.sock.settimeout(0)
            # It sends the alert, and complains that the answer to it is not there yet.
            with contextlib.suppress(ssl.SSLError):
                client.sock.unwrap()
            client.close()
        elif how == "fin":
            socket.socket.shutdown(client.sock, socket.SHUT_WR)
            client.close()
        else:
            client.abort()

    def recovered() -> bool:
        now = server.get("/introspection/worker").json()
        return bool(now["descriptors"] <= before["descriptors"] and now["pid"] == before["pid"])

    wait_until(recovered, f"as many descriptors as before: {before}")
    # gunicorn's own worker sometimes warns of an invalid request when a client says goodbye.
    assert not IS_OURS or server.complaints(log) == []


# --- handshakes --------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [(), ("--do-handshake-on-connect",)], ids=["lazy", "on-connect"])
def test_handshake_options(serve: Serve, certificates: Certificates, option: tuple[str, ...]) -> None:
    server = serve(GALLERY, *option, certificates=certificates)
    stalled = [server.connect_plain() for _ in range(5)]
    stalled[0].send(b"\x16\x03\x01")
    client = server.connect()
    for _ in range(3):
        assert client.get("/").body == BODY
    assert server.get("/").body == BODY
    for one in stalled:
        one.close()


@pytest.mark.silent_only_here
def test_stalled_handshake_delays_nobody(server: Server) -> None:
    """Neither one that has not begun nor one that stands still half way."""
    silent = [server.connect_plain() for _ in range(20)]
    half = [server.connect_plain() for _ in range(20)]
    for client in half:
        client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    begin = time.monotonic()
    for _ in range(10):
        assert server.get("/").body == BODY
    assert time.monotonic() - begin < 5
    for client in silent + half:
        client.close()
    assert server.get("/").body == BODY


@pytest.mark.silent_only_here
@pytest.mark.parametrize(
    "sent",
    [
        request("/"),
        b"\x16\x03\x01\x00\x05hello",
        b"\0" * 100,
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"SSH-2.0-x\r\n",
    ],
    ids=["http", "bad-hello", "zeros", "alert", "ssh"],
)
def test_what_is_no_tls_costs_its_connection_only(server: Server, sent: bytes) -> None:
    """Plain HTTP sent to the TLS port, and worse."""
    pid = server.worker
    bystander = server.connect()
    assert bystander.get("/").body == BODY
    client = server.connect_plain()
    client.send(sent)
    client.read_until_closed()
    assert bystander.get("/").body == BODY
    assert server.get("/").body == BODY
    assert server.worker == pid


@pytest.mark.silent_only_here
def test_client_that_has_gone_before_anybody_looks(server: Server) -> None:
    """Its descriptor is closed once, and not for whoever has got the number since."""
    kept = [server.connect() for _ in range(5)]
    for _ in range(20):
        # Sent and reset while the worker still has the others to serve.
        for client in kept:
            client.send(request("/"))
        hasty = [server.connect_plain() for _ in range(10)]
        for client in hasty:
            client.send(b"\x16\x03\x01")
            client.abort()
        for client in kept:
            assert client.read_response().body == BODY
    server.settle()
    for client in kept:
        client.assert_open()


def test_client_that_does_not_trust_the_server(server: Server) -> None:
    """Its alert is no reason to log an error or to disturb others."""
    with pytest.raises(ssl.SSLCertVerificationError):
        server.connect(tls=ssl.create_default_context())
    assert server.get("/").body == BODY


@pytest.mark.silent_only_here
def test_client_certificates(serve: Serve, certificates: Certificates) -> None:
    server = serve(
        GALLERY, "--cert-reqs", "2", "--ca-certs", str(certificates.ca_file), certificates=certificates
    )
    client = server.connect(tls=certificates.client_context(with_certificate=True))
    for _ in range(3):
        assert client.get("/").body == BODY
    got = b""
    # With TLS 1.3 the client learns of the refusal only after its handshake.
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        stranger = server.connect(tls=certificates.client_context())
        stranger.send(request("/"))
        got = stranger.read_until_closed()
    assert got == b"", "a client without a certificate got an answer"
    assert client.get("/").body == BODY


def test_own_ssl_context(serve: Serve, certificates: Certificates) -> None:
    """The ssl_context hook of the configuration decides (gunicorn's setting)."""
    config = (
        "import ssl\n"
        "def ssl_context(config, default):\n"
        "    context = default()\n"
        "    context.maximum_version = ssl.TLSVersion.TLSv1_2\n"
        "    return context\n"
    )
    server = serve(GALLERY, config=config, certificates=certificates)
    client = server.connect()
    assert client.get("/").body == BODY
    assert isinstance(client.sock, ssl.SSLSocket)
    assert client.sock.version() == "TLSv1.2"


def test_idle_connections_beside_a_busy_one(server: Server) -> None:
    idle = [server.connect() for _ in range(100)]
    for client in idle:
        assert client.get("/").body == BODY
    busy = server.connect()
    for _ in range(200):
        assert busy.get("/").body == BODY
    for client in idle:
        client.assert_open()
        assert client.get("/").body == BODY


def test_silent_connection_may_speak_later(server: Server) -> None:
    """Load balancers open connections ahead of need, the handshake included."""
    client = server.connect()
    server.settle()
    client.timeout = 0.2
    with pytest.raises(NoAnswerError):
        client.receive()
    client.timeout = 10
    assert client.get("/").body == BODY
