"""How requests are read: whole, in pieces, one after the other, broken off and malformed (RFC 9112)."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness import (
    IS_OURS,
    SETTLE,
    Server,
    chunked,
    outcome,
    peak_memory,
    request,
    reset_peak_memory,
    wait_until,
    without_date,
)
from malformed import AFTER, CASES, FOLLOWED

if TYPE_CHECKING:
    from conftest import Serve

GALLERY = "gallery:app"
BODY = b"Hello, world!\n"

_names = (f"requests-{number}" for number in itertools.count())

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


@pytest.fixture
def name() -> str:
    """A name that no other test uses in the application."""
    return next(_names)


@pytest.fixture
def server(serve: Serve) -> Server:
    """The gallery, with one worker."""
    return serve(GALLERY)


def _state(server: Server, name: str) -> dict[str, int]:
    known: dict[str, int] = server.get(f"/streaming/state?name={name}").json()
    return known


# --- one after the other -----------------------------------------------------------------------


def test_many_requests_on_one_connection(server: Server) -> None:
    """RFC 9112 9.3."""
    client = server.connect()
    port = client.port
    for number in range(300):
        response = client.get(f"/introspection/environ?number={number}")
        environ = response.json()
        assert (environ["QUERY_STRING"], environ["REMOTE_PORT"]) == (f"number={number}", str(port))
        assert response.keeps_alive


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    """RFC 9112 9.3.2."""
    client = server.connect()
    paths = [f"/introspection/environ?number={number}" for number in range(50)]
    client.send(b"".join(request(path) for path in paths))
    for number in range(50):
        assert client.read_response().json()["QUERY_STRING"] == f"number={number}"
    client.assert_open()
    assert client.get("/").body == BODY


def test_pipelined_requests_of_all_kinds(server: Server) -> None:
    client = server.connect()
    client.send(
        request("/lengths/pieces")
        + request("/uploads/echo", method="POST", body=b"first")
        + request("/", method="HEAD")
        + request("/lengths/no_content")
        + request("/uploads/echo", "Transfer-Encoding: chunked", method="POST")
        + chunked(b"sec", b"ond")
        + request("/files/real")
        + request("/uploads/none", method="POST", body=b"never read")
        + request("/lengths/empty_generator")
        + request("/uploads/half", method="PUT", body=b"0123456789")
        + request("/")
    )
    bodies = [client.read_response("HEAD" if number == 2 else "GET").body for number in range(10)]
    expected = [BODY, b"first", b"", b"", b"second", bytes(range(256)) * 100, b"unread", b"", b"01234", BODY]
    assert bodies == expected
    client.assert_open()


def test_pipelined_large_responses_are_whole(server: Server, name: str) -> None:
    client = server.connect()
    client.send(request("/lengths/large") * 3 + request("/lengths/large_unknown") * 2 + request("/"))
    for _ in range(5):
        assert client.read_response().body == bytes(range(256)) * (3 << 12)
    assert client.read_response().body == BODY


def test_requests_pipelined_behind_close_are_not_answered(server: Server, name: str) -> None:
    """RFC 9112 9.6."""
    client = server.connect()
    client.send(request("/", "Connection: close") + request(f"/streaming/watched?name={name}&count=1"))
    assert client.read_response().body == BODY
    client.assert_closed()
    assert _state(server, name)["made"] == 0


def test_end_of_the_connection_follows_at_once(server: Server) -> None:
    """Clients that read to the end (HTTP/1.0, ab, nc) must not wait for it."""
    for sent in (request("/", "Connection: close"), request("/lengths/pieces", version="1.0")):
        for _ in range(3):
            client = server.connect()
            client.send(sent)
            client.read_until_closed(within=0.7)
            assert not client.reset


def test_connection_per_request_loses_none(server: Server) -> None:
    for _ in range(200):
        assert server.get("/").body == BODY


# --- in pieces ---------------------------------------------------------------------------------

_PAIR = request("/uploads/echo", "X-Pad: yes", method="POST", body=b"hello") + request("/", "Accept: */*")
_CHUNKED_PAIR = (
    request("/uploads/echo", "Transfer-Encoding: chunked", method="POST")
    + chunked(b"hel", b"lo", trailer=b"X-T: 1\r\n")
    + request("/")
)


@pytest.mark.parametrize("pair", [_PAIR, _CHUNKED_PAIR], ids=["length", "chunked"])
def test_pipeline_split_at_every_byte(server: Server, pair: bytes) -> None:
    """The worker has seen all of the first part, and no more, before the rest is sent."""
    splits = range(1, len(pair))
    clients = []
    for split in splits:
        client = server.connect()
        client.send(pair[:split])
        clients.append(client)
    server.settle()
    for split, client in zip(splits, clients, strict=True):
        client.send(pair[split:])
    for client in clients:
        assert client.read_response().body == b"hello"
        assert client.read_response().body == BODY
        client.assert_open()


@pytest.mark.parametrize("pair", [_PAIR, _CHUNKED_PAIR], ids=["length", "chunked"])
def test_requests_byte_by_byte(server: Server, pair: bytes) -> None:
    client, other = server.connect(), server.connect()
    for position in range(len(pair)):
        client.send(pair[position : position + 1])
        assert other.get("/").status == 200
    assert client.read_response().body == b"hello"
    assert client.read_response().body == BODY


def test_head_in_pieces_after_other_requests(server: Server) -> None:
    """A parked connection has to come back for half a head, too."""
    client = server.connect()
    for _ in range(3):
        assert client.get("/").body == BODY
        server.settle()
        client.send(b"GET / HT")
        server.settle()
        client.assert_open()
        client.send(b"TP/1.1\r\nHost: x\r\n")
        server.settle()
        client.assert_open()
        client.send(b"\r\n")
        assert client.read_response().body == BODY


def test_second_head_in_the_same_packet_as_the_end_of_a_body(server: Server) -> None:
    client = server.connect()
    sent = request("/uploads/echo", method="POST", body=b"0123456789")
    client.send(sent[:-5])
    server.settle()
    client.send(sent[-5:] + request("/")[:10])
    assert client.read_response().body == b"0123456789"
    server.settle()
    client.send(request("/")[10:])
    assert client.read_response().body == BODY


def test_big_head(server: Server) -> None:
    """More than one read of the worker, below gunicorn's limits."""
    headers = [f"X-{number}: {'v' * 1000}" for number in range(90)]
    client = server.connect()
    for _ in range(2):
        environ = client.get("/introspection/environ", *headers).json()
        assert sum(key.startswith("HTTP_X_") for key in environ) == 90
        assert environ["HTTP_X_89"] == "v" * 1000


# --- bodies ------------------------------------------------------------------------------------


def _pattern(size: int) -> bytes:
    block = hashlib.sha512(b"pattern").digest() * 1024
    return (block * (size // len(block) + 1))[:size]


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, 65535, 65536, 65537, 1 << 20])
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_body_is_echoed(server: Server, size: int, coding: str) -> None:
    body, client = _pattern(size), server.connect()
    if coding == "length":
        sent = request("/uploads/echo", f"Content-Length: {size}", method="POST") + body
    else:
        pieces = [body[at : at + 10000] for at in range(0, size, 10000)]
        sent = request("/uploads/echo", "Transfer-Encoding: chunked", method="POST") + chunked(*pieces)
    client.send(sent)
    assert client.read_response().body == body
    assert client.get("/").body == BODY


def test_body_by_lines(server: Server) -> None:
    """PEP 3333, "Input and Error Streams"."""
    client = server.connect()
    body = b"first line\nsecond line\nthird\n\nlast"
    expected = ["first line\n", "secon", "d line\n", "third\n", "\n", "last", ""]
    assert client.get("/uploads/lines", method="POST", body=body).json() == expected
    assert client.get("/").body == BODY


@pytest.mark.parametrize("body", [b"", b"hello"])
def test_reading_past_the_end_of_a_body_gives_nothing(server: Server, body: bytes) -> None:
    client = server.connect()
    client.send(request("/uploads/beyond", method="POST", body=body) + request("/"))
    assert client.read_response().json() == [len(body), 0, 0, 0]
    assert client.read_response().body == BODY
    client.send(
        request("/uploads/beyond", "Transfer-Encoding: chunked", method="POST")
        + chunked(b"abc")
        + request("/")
    )
    assert client.read_response().json() == [3, 0, 0, 0]
    assert client.read_response().body == BODY


@needs_proc
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_large_upload_in_bounded_memory(server: Server, coding: str) -> None:
    megabyte = _pattern(1 << 20)
    count = 50
    sha = hashlib.sha256()
    client = server.connect(timeout=30)
    client.get("/uploads/digest", method="POST", body=megabyte)
    reset_peak_memory(server.worker)
    before = peak_memory(server.worker)
    if coding == "length":
        client.send(request("/uploads/digest", f"Content-Length: {count << 20}", method="POST"))
    else:
        client.send(request("/uploads/digest", "Transfer-Encoding: chunked", method="POST"))
    for _ in range(count):
        client.send(megabyte if coding == "length" else chunked(megabyte)[:-5])
        sha.update(megabyte)
    if coding == "chunked":
        client.send(b"0\r\n\r\n")
    assert client.read_response().json() == {"size": count << 20, "sha256": sha.hexdigest()}
    assert peak_memory(server.worker) - before < 16 << 20
    assert client.get("/").body == BODY


def test_upload_echoed_while_it_comes(server: Server) -> None:
    """The application gets each part of a body without having to wait for the rest."""
    client = server.connect()
    part = _pattern(1 << 16)
    client.send(request("/uploads/mirror", f"Content-Length: {4 << 16}", method="POST"))
    for number in range(4):
        client.send(part)
        if number == 0:
            assert client.read_head().header("Content-Length") == str(4 << 16)
        assert client.read_exactly(1 << 16) == part
    assert client.get("/").body == BODY


@pytest.mark.parametrize("function", ["none", "half", "none_streamed"])
@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize("size", [10, 1000, 100_000, 3 << 20])
def test_unread_body_does_not_become_the_next_request(
    server: Server, function: str, coding: str, size: int
) -> None:
    """RFC 9112 9.3: the server reads the whole body, or closes."""
    smuggled = request("/smuggled")
    body = (smuggled * (size // len(smuggled) + 1))[:size]
    headers = [f"Content-Length: {size}" if coding == "length" else "Transfer-Encoding: chunked"]
    client = server.connect()
    client.send(request(f"/uploads/{function}", *headers, method="POST"))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.send(body if coding == "length" else chunked(body))
        client.send(request("/"))
    response = client.read_response()
    assert response.body == (body[:5] if function == "half" else b"unread")
    if not response.keeps_alive:
        client.assert_closed()
    else:
        assert client.read_response().body == BODY
        assert client.get("/").body == BODY


def test_body_that_comes_after_the_response(server: Server) -> None:
    """The application has answered without reading; only then does the client send its body."""
    client = server.connect()
    client.send(request("/uploads/none", "Content-Length: 10", method="POST"))
    response = client.read_response()
    assert response.body == b"unread"
    if response.keeps_alive:
        client.send(b"0123456789" + request("/"))
        assert client.read_response().body == BODY


# --- Expect: 100-continue ----------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_expect_continue(server: Server, coding: str) -> None:
    """RFC 9110 10.1.1."""
    client = server.connect()
    headers = [
        "Content-Length: 5" if coding == "length" else "Transfer-Encoding: chunked",
        "Expect: 100-continue",
    ]
    for _ in range(2):
        client.send(request("/uploads/echo", *headers, method="POST"))
        interim = client.read_response()
        assert (interim.status, interim.headers) == (100, [])
        client.assert_open()
        client.send(b"hello" if coding == "length" else chunked(b"hello"))
        final = client.read_response()
        assert (final.status, final.body) == (200, b"hello")


def test_expect_continue_of_a_client_that_did_not_wait(server: Server) -> None:
    client = server.connect()
    client.send(request("/uploads/echo", "Expect: 100-continue", method="POST", body=b"hello") + request("/"))
    response = client.read_response()
    if response.status == 100:
        response = client.read_response()
    assert response.body == b"hello"
    assert client.read_response().body == BODY


def test_expect_continue_is_not_for_http_1_0(server: Server) -> None:
    client = server.connect()
    client.send(
        request("/uploads/echo", "Expect: 100-continue", "Content-Length: 5", method="POST", version="1.0")
    )
    server.settle()
    client.assert_open()
    client.send(b"hello")
    response = client.read_response()
    assert (response.status, response.body) == (200, b"hello")


def test_other_expectations_fail(server: Server) -> None:
    client = server.connect()
    assert client.get("/", "Expect: the-unexpected").status == 417
    client.assert_closed()


# --- clients that half-close -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", BODY),
        ("/lengths/pieces", BODY),
        ("/lengths/large", bytes(range(256)) * (3 << 12)),
        ("/lengths/large_unknown", bytes(range(256)) * (3 << 12)),
        ("/files/real", bytes(range(256)) * 100),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_half_closed_client_gets_its_whole_response(
    server: Server, path: str, expected: bytes, version: str
) -> None:
    """``printf ... | nc`` closes its sending side at once."""
    client = server.connect()
    client.send(request(path, version=version))
    client.finish()
    assert client.read_response().body == expected
    client.assert_closed()
    assert not client.reset


def test_half_closed_client_gets_all_pipelined_responses(server: Server) -> None:
    client = server.connect()
    client.send(request("/lengths/large") + request("/lengths/pieces") + request("/") * 20)
    client.finish()
    assert client.read_response().body == bytes(range(256)) * (3 << 12)
    for _ in range(21):
        assert client.read_response().body == BODY
    client.assert_closed()
    assert not client.reset


def test_half_closed_client_waits_for_a_slow_application(server: Server, name: str) -> None:
    client = server.connect()
    client.send(request(f"/streaming/slow?name={name}"))
    client.finish()
    wait_until(lambda: _state(server, name)["waiting"], "the application to run")
    client.assert_open()
    server.get(f"/streaming/open_gate?name={name}")
    assert client.read_response().body == b"done"
    client.assert_closed()


def test_half_closed_client_gets_a_stream_to_its_end(server: Server, name: str) -> None:
    client = server.connect()
    client.send(request(f"/streaming/gated?name={name}"))
    client.read_head()
    assert client.read_chunk() == b"before"
    client.finish()
    server.settle()
    server.get(f"/streaming/open_gate?name={name}")
    assert client.read_chunk() == b"after"
    assert client.read_chunk() == b""
    client.assert_closed()


def test_half_closed_client_gets_its_upload_answered(server: Server) -> None:
    body = _pattern(300_000)
    client = server.connect()
    client.send(request("/uploads/echo", method="POST", body=body))
    client.finish()
    assert client.read_response().body == body
    client.assert_closed()


def test_half_closed_before_any_request(server: Server) -> None:
    client = server.connect()
    client.finish()
    client.assert_closed()
    client = server.connect()
    assert client.get("/").body == BODY
    client.finish()
    client.assert_closed()
    assert not client.reset


# --- clients that vanish -----------------------------------------------------------------------


@pytest.mark.parametrize("abort", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        request("/"),
        request("/lengths/large") * 5,
        request("/uploads/echo", "Content-Length: 100000", method="POST") + b"part",
        request("/uploads/digest", "Transfer-Encoding: chunked", method="POST") + b"ffff\r\npart",
        request("/uploads/none", "Content-Length: 100000", method="POST") + b"part",
        request("/files/huge"),
        request("/lengths/large_unknown") + request("/uploads/mirror", "Content-Length: 9", method="POST"),
    ],
    ids=["nothing", "head", "one", "large", "body", "chunk", "unread", "file", "pipeline"],
)
def test_client_that_vanishes_costs_nothing(server: Server, sent: bytes, abort: bool) -> None:
    """Descriptors and greenlets come back, and nothing is logged as an error."""
    before = server.get("/introspection/worker").json()
    log = server.log_size
    clients = [server.connect(receive_buffer=4096) for _ in range(20)]
    for client in clients:
        client.send(sent)
    server.settle()
    for client in clients:
        if abort:
            client.abort()
        else:
            client.close()

    def recovered() -> bool:
        now = server.get("/introspection/worker").json()
        few_greenlets = now["greenlets"] <= before["greenlets"] + 25
        return bool(
            now["descriptors"] <= before["descriptors"] and few_greenlets and now["pid"] == before["pid"]
        )

    wait_until(recovered, f"as many descriptors as before: {before}")
    assert server.complaints(log) == []


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_broken_off_body_is_the_same_to_the_application_as_under_gunicorn(
    serve: Serve, reference: Serve, name: str, coding: str
) -> None:
    """What reading a body raises or returns when the client has gone."""
    headers = ["Content-Length: 100" if coding == "length" else "Transfer-Encoding: chunked"]
    seen = []
    for server in (serve(GALLERY), reference(GALLERY)):
        before = server.log_size
        client = server.connect()
        client.send(request(f"/uploads/mishap?mark={name}", *headers, method="POST"))
        client.send(b"part" if coding == "length" else b"64\r\npart")
        server.settle()
        client.close()
        seen.append(server.wait_for_log(f"mishap {name}: (.*)", since=before)[1])
    assert seen[0] == seen[1]


# --- slow readers ------------------------------------------------------------------------------


@needs_proc
@pytest.mark.parametrize("length", ["", "&length"], ids=["chunked", "length"])
def test_large_response_to_a_slow_reader(server: Server, name: str, length: str) -> None:
    """The application is not asked for more than the client takes, and nobody else has to wait."""
    count = 400
    server.get(f"/streaming/watched?name={name}-warm&count=10{length}")
    reset_peak_memory(server.worker)
    before = peak_memory(server.worker)
    client = server.connect(receive_buffer=4096, timeout=30)
    client.send(request(f"/streaming/watched?name={name}&count={count}{length}"))
    head = client.read_head()
    assert head.status == 200
    for _ in range(20):
        assert server.get("/").body == BODY
    assert _state(server, name)["made"] < count
    expected = hashlib.sha256()
    got = hashlib.sha256()
    for number in range(count):
        piece = hashlib.sha256(b"%d" % number).digest() * 2048
        expected.update(piece)
    if length:
        for _ in range(count):
            got.update(client.read_exactly(1 << 16))
    else:
        while chunk := client.read_chunk():
            got.update(chunk)
    assert got.digest() == expected.digest()
    assert peak_memory(server.worker) - before < 8 << 20
    assert client.get("/").body == BODY


def test_slow_reader_of_a_response_in_one_piece(server: Server) -> None:
    client = server.connect(receive_buffer=4096)
    client.send(request("/lengths/large") * 2)
    for _ in range(20):
        assert server.get("/").body == BODY
    for _ in range(2):
        assert client.read_response().body == bytes(range(256)) * (3 << 12)


# --- malformed requests ------------------------------------------------------------------------

_PLAIN_OPTIONS = ("--access-logfile", "{dir}/access.log", "--access-logformat", '%(s)s "%(r)s" %(b)s')
_TIGHT = ("--limit-request-line", "100", "--limit-request-fields", "5", "--limit-request-field_size", "50")

#: gunicorn's answers, by the options and the bytes they are for.
_expected: dict[tuple[tuple[str, ...], bytes], tuple[Any, ...]] = {}


def _assert_same(ours: Server, theirs: Server, options: tuple[str, ...], sent: bytes) -> None:
    if (options, sent) not in _expected:
        _expected[options, sent] = outcome(theirs, sent)
    pid = ours.worker
    bystander = ours.connect()
    assert bystander.get(SETTLE).status == 200
    got = outcome(ours, sent)
    expected = _expected[options, sent]
    assert got == expected, f"sent:     {sent!r}\nanswered: {got!r}\nexpected: {expected!r}"
    assert bystander.get(SETTLE).status == 200
    assert ours.worker == pid


def test_the_table_is_large() -> None:
    assert len(CASES) > 200


@pytest.mark.logs_traceback
@pytest.mark.parametrize("sent", CASES.values(), ids=CASES)
def test_malformed_request_is_treated_as_gunicorn_treats_it(
    serve: Serve, reference: Serve, sent: bytes
) -> None:
    """The same bytes, log lines and access log lines; and it costs only its connection."""
    _assert_same(serve("reveal:app", *_PLAIN_OPTIONS), reference("reveal:app", *_PLAIN_OPTIONS), (), sent)


@pytest.mark.logs_traceback
@pytest.mark.parametrize("sent", CASES.values(), ids=CASES)
def test_malformed_request_after_a_good_one(serve: Serve, reference: Serve, sent: bytes) -> None:
    """The same where the connection has served requests before, one of them in the same packet."""
    sent = request("/") + sent
    _assert_same(serve("reveal:app", *_PLAIN_OPTIONS), reference("reveal:app", *_PLAIN_OPTIONS), (), sent)


def _answers(server: Server, sent: bytes, cuts: list[int]) -> list[bytes]:
    """What comes back on connections that get the bytes in two parts, each cut in another place.

    The server has seen the first parts before the rest is sent.
    """
    clients = [server.connect() for _ in cuts]
    for client, cut in zip(clients, cuts, strict=True):
        client.send(sent[:cut])
    server.settle()
    answers = []
    for client, cut in zip(clients, cuts, strict=True):
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.send(sent[cut:])
        with contextlib.suppress(OSError):
            client.finish()
        answers.append(re.sub(rb"(too large \()\d+", rb"\1N", without_date(client.read_until_closed())))
        client.close()
    return answers


@pytest.mark.logs_traceback
@pytest.mark.parametrize("sent", FOLLOWED.values(), ids=FOLLOWED)
def test_malformed_request_in_two_parts(serve: Serve, reference: Serve, sent: bytes) -> None:
    """Cut at the ends of lines, within them, and before what follows."""
    ends = [match.start() for match in re.finditer(rb"\r|\n", sent)][:6]
    cuts = sorted({1, *ends, *(end + 1 for end in ends), len(sent) // 2, len(sent) - 1, len(sent)})
    ours, theirs = serve("reveal:app", *_PLAIN_OPTIONS), reference("reveal:app", *_PLAIN_OPTIONS)
    expected = dict(zip(cuts, _answers(theirs, sent + AFTER, cuts), strict=True))
    assert dict(zip(cuts, _answers(ours, sent + AFTER, cuts), strict=True)) == expected


_BODIES = {name: sent for name, sent in FOLLOWED.items() if sent.startswith(b"POST /upload HTTP/1.")}


@pytest.mark.logs_traceback
@pytest.mark.parametrize("function", ["none", "half"])
@pytest.mark.parametrize("name", _BODIES)
def test_malformed_body_that_is_not_read_to_its_end(
    serve: Serve, reference: Serve, name: str, function: str
) -> None:
    """What follows it is answered, or it is not, as by gunicorn.

    But for a body that nobody can read to its end: gunicorn answers the request, and then again, with a
    400 that a front may take for the answer to another one.
    """
    sent = _BODIES[name] + AFTER
    can_be_read = reference("reveal:app", *_PLAIN_OPTIONS).exchange(sent).startswith(b"HTTP/1.1 200 ")
    sent = sent.replace(b"/upload ", f"/uploads/{function} ".encode(), 1)
    expected = without_date(reference(GALLERY).exchange(sent))
    if IS_OURS and expected.startswith(b"HTTP/1.1 200 ") and not can_be_read:
        expected = re.split(rb"HTTP/1\.1 4\d\d ", expected)[0]
    assert without_date(serve(GALLERY).exchange(sent)) == expected


_LIMIT_CASES = {
    "line-100": b"GET /" + b"a" * 86 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "line-101": b"GET /" + b"a" * 87 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "line-no-end": b"GET /" + b"a" * 200,
    "fields-5": request("/", "A: 1", "B: 1", "C: 1", "D: 1"),
    "fields-6": request("/", "A: 1", "B: 1", "C: 1", "D: 1", "E: 1"),
    "field-50": request("/", "X: " + "a" * 45),
    "field-51": request("/", "X: " + "a" * 46),
    "field-no-end": b"GET / HTTP/1.1\r\nX: " + b"a" * 2000,
    "fields-no-end": b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200,
    "trailer-fields-6": request("/upload", "Transfer-Encoding: chunked", method="POST")
    + b"0\r\n" + b"X: 1\r\n" * 6 + b"\r\n",
    "trailer-field-51": request("/upload", "Transfer-Encoding: chunked", method="POST")
    + b"0\r\nX: " + b"a" * 46 + b"\r\n\r\n",
    "chunk-line-long": request("/upload", "Transfer-Encoding: chunked", method="POST")
    + b"1;" + b"a" * 60 + b"\r\nx\r\n0\r\n\r\n",
    "after-the-limits": request("/") + request("/", "X: " + "a" * 46),
}  # fmt: skip


@pytest.mark.logs_traceback
@pytest.mark.parametrize("sent", _LIMIT_CASES.values(), ids=_LIMIT_CASES)
def test_limits(serve: Serve, reference: Serve, sent: bytes) -> None:
    """limit_request_line, limit_request_fields, limit_request_field_size: 414 and 431."""
    options = (*_PLAIN_OPTIONS, *_TIGHT)
    _assert_same(serve("reveal:app", *options), reference("reveal:app", *options), _TIGHT, sent)


_LAX = (
    "--permit-obsolete-folding",
    "--strip-header-spaces",
    "--permit-unconventional-http-method",
    "--permit-unconventional-http-version",
    "--casefold-http-method",
    "--header-map",
    "dangerous",
)
_LAX_CASES = [
    name
    for name in CASES
    if re.search(r"folded|colon|underscore|method|version|case|script|path-info|remote-user|space", name)
]


@pytest.mark.logs_traceback
@pytest.mark.parametrize("name", _LAX_CASES)
def test_compatibility_settings(serve: Serve, reference: Serve, name: str) -> None:
    """What gunicorn can be told to accept is accepted."""
    options = (*_PLAIN_OPTIONS, *_LAX)
    _assert_same(serve("reveal:app", *options), reference("reveal:app", *options), _LAX, CASES[name])


def test_compatibility_settings_matter(reference: Serve) -> None:
    """Otherwise the test before would say nothing."""
    strict, lax = reference("reveal:app", *_PLAIN_OPTIONS), reference("reveal:app", *_PLAIN_OPTIONS, *_LAX)
    for name in ("lower-case-method", "folded-value", "space-before-colon", "mixed-case-method"):
        assert strict.exchange(CASES[name]).startswith(b"HTTP/1.1 400 ")
        assert lax.exchange(CASES[name]).startswith(b"HTTP/1.1 200 ")


@pytest.mark.logs_traceback
def test_flood_of_malformed_requests_leaves_the_worker_as_it_was(server: Server) -> None:
    before = server.get("/introspection/worker").json()
    for sent in itertools.islice(CASES.values(), 0, None, 3):
        server.exchange(sent)

    def recovered() -> bool:
        now = server.get("/introspection/worker").json()
        return bool(now["pid"] == before["pid"] and now["descriptors"] <= before["descriptors"])

    wait_until(recovered, "as many descriptors as before")
    assert server.get("/").body == BODY


def test_client_gets_the_refusal_although_it_is_still_sending(server: Server) -> None:
    """RFC 9112 9.6: closing with unread data resets the connection, which can eat the response."""
    client = server.connect()
    client.send(request("/", "Bad Header: 1", "Content-Length: 3000000", method="POST"))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.send(os.urandom(300_000))
    response = client.read_response()
    assert response.status == 400
    assert b"Bad Header" in response.body
