"""What an application may do and what must come of it (PEP 3333, RFC 9112, RFC 9110).

One test compares every response of the gallery with gunicorn's gevent worker; the others say what is
right, whoever serves it.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from gallery_path import function_names
from harness import Client, Response, Server, TruncatedError, request, wait_until

if TYPE_CHECKING:
    from conftest import Serve

GALLERY = "gallery:app"
BODY = b"Hello, world!\n"
FILE = bytes(range(256)) * 100

_names = (f"name-{number}" for number in itertools.count())


@pytest.fixture
def name() -> str:
    """A name that no other test uses in the application."""
    return next(_names)


@pytest.fixture
def server(serve: Serve) -> Server:
    """The gallery, with one worker, which has written all log lines of the test before."""
    server = serve(GALLERY)
    server.settle()
    return server


@pytest.fixture
def client(server: Server) -> Client:
    """A connection to it."""
    return server.connect()


# --- the same response as gunicorn's own worker ------------------------------------------------

#: Their responses are no responses, or gunicorn lets the client wait for the rest of them.
_NOT_COMPARED = {
    "less_than_promised",
    "less_than_promised_at_once",
    "nothing_of_promised",
    "bytes_body",
    "text_body",
}
_COMPARED = [
    f"/lengths/{function}" for function in function_names("lengths") if function not in _NOT_COMPARED
]
_COMPARED += [
    f"/files/{function}"
    for function in function_names("files")
    if function not in {"shorter_than_promised", "huge", "closings"}
]
_COMPARED += ["/failures/at_once", "/failures/after_start", "/failures/in_generator", "/nowhere"]

_FORMS = [
    (method, version, headers)
    for method in ("GET", "HEAD", "POST")
    for version, headers in (
        ("1.1", ()),
        ("1.1", ("Connection: close",)),
        ("1.1", ("Connection: Keep-Alive",)),
        ("1.0", ()),
        ("1.0", ("Connection: keep-alive",)),
    )
]


def _answers(client: Client, sent: bytes, method: str) -> tuple[list[Response], bool]:
    """All responses to one request, and whether another request can follow on the connection."""
    client.send(sent)
    responses = [client.read_response(method)]
    while responses[-1].status == 103:
        responses.append(client.read_response(method))
    if responses[-1].keeps_alive:
        assert client.get("/").body == BODY, "the connection is out of step after this response"
        return responses, True
    client.assert_closed()
    return responses, False


@pytest.mark.logs_traceback
@pytest.mark.parametrize("path", _COMPARED)
def test_response_is_the_same_as_from_gunicorns_worker(serve: Serve, reference: Serve, path: str) -> None:
    ours, theirs = serve(GALLERY), reference(GALLERY)
    for method, version, headers in _FORMS:
        if method == "HEAD" and path.startswith("/failures"):
            continue  # gunicorn sends the body of a 500 to a HEAD request, which RFC 9110 9.3.2 forbids
        sent = request(path, *headers, method=method, version=version)
        expected, expected_open = _answers(theirs.connect(), sent, method)
        answered, is_open = _answers(ours.connect(), sent, method)
        form = f"{method} HTTP/{version} {headers}"
        assert [r.comparable() for r in answered] == [r.comparable() for r in expected], form
        assert is_open == expected_open, form


def test_gallery_is_compared_whole() -> None:
    """A new function of the gallery is compared, or left out on purpose."""
    assert len(_COMPARED) > 40
    assert set(function_names("lengths")) >= _NOT_COMPARED


# --- lengths -----------------------------------------------------------------------------------


def test_response_in_one_piece_with_length(client: Client) -> None:
    response = client.get("/")
    assert (response.status, response.reason, response.framing) == (200, "OK", "length")
    assert response.body == BODY
    assert response.header("Connection") == "keep-alive"
    assert response.header("Server") is not None
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", response.header("Date") or "")


@pytest.mark.parametrize(
    "function",
    [
        "unknown",
        "pieces",
        "pieces_with_length",
        "generator",
        "empty_pieces",
        "empty_pieces_with_length",
        "write",
        "write_with_length",
        "write_and_return",
        "tuple_body",
    ],
)
def test_body_is_whole_and_connection_goes_on(client: Client, function: str) -> None:
    response = client.get(f"/lengths/{function}")
    assert response.body == BODY
    assert response.framing == ("length" if "length" in function else "chunked")
    assert client.get("/").body == BODY


@pytest.mark.parametrize(
    "function", ["empty_list", "empty_generator", "empty_list_with_length", "only_empty_piece"]
)
def test_empty_response_ends_at_once(client: Client, function: str) -> None:
    response = client.get(f"/lengths/{function}")
    assert (response.status, response.body) == (200, b"")
    assert client.get("/").body == BODY


@pytest.mark.parametrize("function", ["large", "large_unknown", "thousand_pieces"])
def test_large_response_is_whole(client: Client, function: str) -> None:
    expected = b"0123456789" * 100 if function == "thousand_pieces" else bytes(range(256)) * (3 << 12)
    assert client.get(f"/lengths/{function}").body == expected
    assert client.get("/").body == BODY


@pytest.mark.parametrize("function", ["more_than_promised", "more_than_promised_at_once"])
def test_bytes_past_content_length_are_not_sent(client: Client, function: str) -> None:
    """RFC 9112 6.3: they would be read as the start of the next response."""
    response = client.get(f"/lengths/{function}")
    assert (response.header("Content-Length"), response.body) == ("5", b"Hello")
    assert client.get("/").body == BODY
    assert client.get("/lengths/more_than_nothing").body == b""
    assert client.get("/").body == BODY


@pytest.mark.only_ours("leaves the client waiting for the rest, and takes the next request meanwhile")
@pytest.mark.parametrize(
    "path",
    [
        "/lengths/less_than_promised",
        "/lengths/less_than_promised_at_once",
        "/lengths/nothing_of_promised",
        "/files/shorter_than_promised",
    ],
)
def test_response_shorter_than_content_length_ends_the_connection(client: Client, path: str) -> None:
    """RFC 9112 8: the client has to be able to tell that the response is incomplete."""
    client.send(request(path))
    client.timeout = 3
    with pytest.raises(TruncatedError) as caught:
        client.read_response()
    assert client.eof
    assert caught.value.response is not None
    assert caught.value.response.status == 200


@pytest.mark.only_ours("leaves the client waiting for the rest")
def test_short_response_does_not_swallow_the_next_pipelined_one(server: Server) -> None:
    """The second response must not come where the client counts on the rest of the first."""
    client = server.connect(timeout=3)
    client.send(request("/lengths/less_than_promised") + request("/"))
    with pytest.raises(TruncatedError) as caught:
        client.read_response()
    assert client.eof
    assert caught.value.got == b"Hello"


# --- responses without a body ------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/lengths/pieces",
        "/lengths/large",
        "/lengths/write",
        "/files/real",
        "/files/unknown",
        "/lengths/generator",
        "/lengths/thousand_pieces",
    ],
)
def test_head_has_the_headers_of_get_and_no_body(client: Client, path: str) -> None:
    """RFC 9110 9.3.2."""
    response = client.get(path, method="HEAD")
    assert client.get("/").body == BODY
    same = client.get(path)
    assert response.header("Content-Length") == same.header("Content-Length")
    assert (response.status, response.header("Transfer-Encoding")) == (same.status, None)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    ("function", "length"),
    [
        ("no_content", None),
        ("no_content_with_body", None),
        ("not_modified", None),
        ("not_modified_with_length", "14"),
    ],
)
def test_status_without_body(client: Client, function: str, length: str | None, method: str) -> None:
    """RFC 9110 8.6: no Content-Length on 204; RFC 9112 6.3: nothing after the head of a 204 or 304."""
    response = client.get(f"/lengths/{function}", method=method)
    assert (response.header("Content-Length"), response.header("Transfer-Encoding")) == (length, None)
    assert response.keeps_alive
    assert client.get("/").body == BODY


def test_early_hints_come_before_the_response(client: Client) -> None:
    """RFC 8297."""
    client.send(request("/lengths/early_hints"))
    first, second, last = (client.read_response() for _ in range(3))
    assert (first.status, first.all("Link")) == (103, ["</a.css>; rel=preload; as=style"])
    assert (second.status, second.header("X-More")) == (103, "padded")
    assert (last.status, last.body) == (200, b"ok")
    assert client.get("/").body == BODY


def test_early_hints_are_not_for_http_1_0(client: Client) -> None:
    """RFC 9110 15.2: a client that speaks HTTP/1.0 knows no interim responses."""
    client.send(request("/lengths/early_hints", version="1.0"))
    assert client.read_response().status == 200
    client.assert_closed()


@pytest.mark.logs_traceback
def test_early_hint_that_would_split_the_response_is_refused(client: Client) -> None:
    assert client.get("/failures/bad_hint").status == 500


# --- HTTP/1.0 ----------------------------------------------------------------------------------


def test_http_1_0_closes_by_default(client: Client) -> None:
    client.send(request("/", version="1.0"))
    response = client.read_response()
    assert (response.version, response.header("Connection"), response.body) == ("1.0", "close", BODY)
    client.assert_closed()
    assert not client.reset


def test_http_1_0_with_keep_alive_goes_on(client: Client) -> None:
    for _ in range(3):
        client.send(request("/", "Connection: keep-alive", version="1.0"))
        response = client.read_response()
        assert (response.header("Connection"), response.body) == ("keep-alive", BODY)


@pytest.mark.parametrize("headers", [(), ("Connection: keep-alive",)])
@pytest.mark.parametrize(
    "path", ["/lengths/pieces", "/lengths/empty_pieces", "/lengths/write", "/files/unknown"]
)
def test_http_1_0_body_of_unknown_length_ends_with_the_connection(
    client: Client, path: str, headers: tuple[str, ...]
) -> None:
    """RFC 9112 6.1: chunked is not for HTTP/1.0."""
    client.send(request(path, *headers, version="1.0"))
    response = client.read_response()
    assert (response.framing, response.header("Connection")) == ("close", "close")
    assert response.body == (FILE if "files" in path else BODY)
    assert not client.reset


def test_connection_close_is_honoured(client: Client) -> None:
    response = client.get("/", "Connection: close")
    assert response.header("Connection") == "close"
    client.assert_closed()
    assert not client.reset


# --- headers of the response -------------------------------------------------------------------


def test_headers_reach_the_client_in_order_and_unchanged(client: Client) -> None:
    response = client.get("/lengths/many_headers")
    own = [(k, v) for k, v in response.headers if k.startswith(("Set-", "X-", "x-"))]
    assert own == [
        ("Set-Cookie", "a=1"),
        ("X-Odd!#$%&'*+-.^_`|~", "spaces around"),
        ("Set-Cookie", "b=2"),
        ("X-Latin", "caf\xe9"),
        ("X-Empty", ""),
        ("x-lower", "x"),
    ]
    assert (response.status, response.reason) == (299, "Gut so \xe9")


def test_hop_by_hop_headers_are_the_servers_own(client: Client) -> None:
    """PEP 3333, "Other HTTP Features"."""
    response = client.get("/lengths/hop_by_hop")
    assert response.header("X-Mine") == "1"
    for header in ("Keep-Alive", "Trailers", "TE", "Upgrade"):
        assert response.header(header) is None
    assert response.header("Transfer-Encoding") == "chunked"
    assert (response.header("Server"), response.header("Date")) != ("me", "never")
    assert client.get("/").body == BODY


def _one_traceback(log: str, mark: str) -> bool:
    return log.count("Traceback") == 1 and log.count(mark) == 1


_BAD_HEADERS = [
    *(f"name-{what}" for what in ("space", "empty", "colon", "newline", "latin", "bytes")),
    *(f"value-{what}" for what in ("crlf", "lf", "cr", "nul", "del", "wide", "bytes", "int")),
    *(f"length-{what}" for what in ("word", "twice")),
]


@pytest.mark.logs_traceback
@pytest.mark.parametrize("which", _BAD_HEADERS)
def test_bad_response_header_is_a_500(server: Server, which: str) -> None:
    before = server.log_size
    client = server.connect()
    response = client.get(f"/failures/bad_header?which={which}")
    assert response.status == 500
    assert b"Injected" not in response.raw
    client.assert_closed()
    assert server.log(before).count("Traceback") == 1


@pytest.mark.logs_traceback
@pytest.mark.parametrize(
    "which", ["word", "short", "long", "newline", "no-space", "empty", "int", "bytes", "wide"]
)
def test_bad_status_is_a_500(server: Server, which: str) -> None:
    before = server.log_size
    client = server.connect()
    response = client.get(f"/failures/bad_status?which={which}")
    assert response.status == 500
    assert b"Injected" not in response.raw
    client.assert_closed()
    assert server.log(before).count("Traceback") == 1


# --- failing applications ----------------------------------------------------------------------


@pytest.mark.logs_traceback
@pytest.mark.parametrize("function", ["at_once", "after_start", "in_generator"])
@pytest.mark.parametrize("kind", ["RuntimeError", "OddError"])
def test_failure_before_the_head_is_a_500_logged_once(
    server: Server, name: str, function: str, kind: str
) -> None:
    before = server.log_size
    client = server.connect()
    response = client.get(f"/failures/{function}?kind={kind}&mark=the-{name}-")
    assert (response.status, response.reason) == (500, "Internal Server Error")
    assert response.header("Connection") == "close"
    assert response.header("X-Never") is None
    client.assert_closed()
    assert not client.reset
    log = server.log(before)
    assert log.count("Traceback") == 1, log
    assert f"{kind}: the-{name}-" in log
    assert f"Error handling request GET /failures/{function}" in log


@pytest.mark.logs_traceback
@pytest.mark.parametrize(
    "function",
    ["after_head", "after_head_with_length", "after_write", "replaced_too_late"],
)
def test_failure_after_the_head_breaks_the_response_off(server: Server, name: str, function: str) -> None:
    """The client must see that the response is incomplete (RFC 9112 8), and no 500 inside its body."""
    before = server.log_size
    client = server.connect()
    client.send(request(f"/failures/{function}?mark=the-{name}-"))
    with pytest.raises(TruncatedError) as caught:
        client.read_response()
    assert client.eof
    response = caught.value.response
    assert response is not None
    assert response.status == 200
    assert b"".join(response.chunks) + caught.value.got in (b"first", b"")
    log = server.log(before)
    assert log.count("Traceback") == 1, log
    assert f"RuntimeError: the-{name}-" in log


@pytest.mark.logs_traceback
@pytest.mark.parametrize("kind", ["OSError", "BrokenPipeError", "TimeoutError"])
def test_oserror_of_the_application_costs_its_connection_only(server: Server, name: str, kind: str) -> None:
    """It must not be taken for a failure of the client's socket in a way that leaves the client waiting."""
    pid = server.worker
    client = server.connect(timeout=5)
    client.send(request(f"/failures/at_once?kind={kind}&mark=the-{name}-"))
    answer = client.read_until_closed()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 500 ")
    assert server.get("/").body == BODY
    assert server.worker == pid


@pytest.mark.only_ours("answers nothing and keeps the connection")
@pytest.mark.logs_traceback
@pytest.mark.parametrize("kind", ["SystemExit", "GreenletExit"])
@pytest.mark.parametrize("function", ["at_once", "in_generator"])
def test_exit_raised_by_the_application_ends_its_connection_only(
    server: Server, function: str, kind: str
) -> None:
    pid = server.worker
    client = server.connect(timeout=3)
    client.send(request(f"/failures/{function}?kind={kind}"))
    answer = client.read_until_closed()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 500 ")
    assert server.get("/").body == BODY
    assert server.worker == pid


_LEAKS_500 = pytest.mark.only_ours("writes its 500 into the body that is under way")


@pytest.mark.logs_traceback
@pytest.mark.parametrize("function", ["after_head", "after_head_with_length"])
@pytest.mark.parametrize(
    "kind",
    [
        "SystemExit",
        pytest.param("KeyboardInterrupt", marks=_LEAKS_500),
        pytest.param("OddError", marks=_LEAKS_500),
    ],
)
def test_exit_raised_after_the_head_breaks_the_response_off(server: Server, function: str, kind: str) -> None:
    pid = server.worker
    client = server.connect(timeout=5)
    client.send(request(f"/failures/{function}?kind={kind}"))
    head = client.read_head()
    rest = client.read_until_closed()
    assert head.status == 200
    assert rest == (b"first" if "length" in function else b"5\r\nfirst\r\n")
    assert server.get("/").body == BODY
    assert server.worker == pid


@pytest.mark.logs_traceback
def test_keyboard_interrupt_raised_by_the_application_does_not_end_the_worker(server: Server) -> None:
    pid = server.worker
    client = server.connect(timeout=5)
    client.send(request("/failures/at_once?kind=KeyboardInterrupt"))
    answer = client.read_until_closed()
    assert answer == b"" or answer.startswith(b"HTTP/1.1 500 ")
    assert server.get("/").body == BODY
    assert server.worker == pid


@pytest.mark.logs_traceback
@pytest.mark.parametrize("function", ["no_start", "no_start_empty", "start_twice", "returns_none"])
def test_application_that_breaks_the_protocol_is_a_500(server: Server, function: str) -> None:
    before = server.log_size
    client = server.connect()
    assert client.get(f"/failures/{function}").status == 500
    client.assert_closed()
    assert server.log(before).count("Traceback") == 1


@pytest.mark.logs_traceback
@pytest.mark.parametrize("function", ["bytes_body", "text_body"])
def test_pieces_that_are_not_bytes_are_an_error(server: Server, function: str) -> None:
    before = server.log_size
    client = server.connect()
    client.send(request(f"/lengths/{function}"))
    answer = client.read_until_closed()
    assert answer.startswith(b"HTTP/1.1 500 ") or b"\r\n0\r\n" not in answer, "it looks complete"
    assert server.log(before).count("Traceback") == 1


def test_response_replaced_in_time(client: Client) -> None:
    """PEP 3333: start_response with exc_info while nothing is out yet."""
    response = client.get("/failures/replaced")
    assert (response.status, response.reason, response.body) == (503, "Later", b"later")
    assert response.header("X-Second") == "2"
    assert client.get("/").body == BODY


def test_response_ended_in_good_order_after_exc_info_came_too_late(client: Client) -> None:
    response = client.get("/failures/caught_late")
    assert (response.status, response.body) == (200, b"first last")
    assert client.get("/").body == BODY


@pytest.mark.logs_traceback
def test_failing_close_of_the_iterable_is_logged_once(server: Server, name: str) -> None:
    before = server.log_size
    client = server.connect()
    response = client.get(f"/failures/in_close?mark=the-{name}-")
    assert (response.status, response.body) == (200, b"whole")
    wait_until(lambda: f"RuntimeError: the-{name}-" in server.log(before), "the log line")
    assert server.get("/").body == BODY
    log = server.log(before)
    assert log.count("Traceback") == 1, log


# --- close() of the iterable -------------------------------------------------------------------


def _state(server: Server, name: str) -> dict[str, int]:
    known: dict[str, int] = server.get(f"/streaming/state?name={name}").json()
    return known


def _assert_closed_once(server: Server, name: str) -> None:
    wait_until(lambda: _state(server, name)["closed"], "a call of close()")
    assert _state(server, name)["closed"] == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("query", ["count=3", "count=3&length", "count=0", "count=2&status=204+No+Content"])
def test_close_is_called_once_after_the_response(server: Server, name: str, query: str, method: str) -> None:
    client = server.connect()
    client.get(f"/streaming/watched?name={name}&{query}", method=method)
    _assert_closed_once(server, name)


@pytest.mark.logs_traceback
@pytest.mark.parametrize("function", ["watched_failure", "watched_wrong_type", "watched_no_start"])
def test_close_is_called_once_after_a_failure(server: Server, name: str, function: str) -> None:
    client = server.connect()
    client.send(request(f"/streaming/{function}?name={name}"))
    client.read_until_closed()
    _assert_closed_once(server, name)


@pytest.mark.parametrize("length", ["", "&length"])
@pytest.mark.parametrize("abort", [False, True])
def test_close_is_called_once_when_the_client_goes(
    server: Server, name: str, length: str, abort: bool
) -> None:
    client = server.connect(receive_buffer=4096)
    client.send(request(f"/streaming/watched?name={name}&count=1000{length}"))
    client.read_until(b"\r\n\r\n")
    if abort:
        client.abort()
    else:
        client.close()
    _assert_closed_once(server, name)
    assert _state(server, name)["made"] < 1000


def test_files_are_closed(server: Server) -> None:
    """PEP 3333: the wrapper has a close() that closes the file."""
    client = server.connect()
    before = int(client.get("/files/closings").body)
    functions = ["real", "unknown", "offset", "part", "empty"]
    for function in functions:
        client.get(f"/files/{function}")
        client.get(f"/files/{function}", method="HEAD")
    wait_until(
        lambda: int(client.get("/files/closings").body) == before + 2 * len(functions), "all files closed"
    )


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--no-sendfile",)])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("real", FILE),
        ("unknown", FILE),
        ("offset", FILE[1000:]),
        ("part", FILE[1000:1500]),
        ("empty", b""),
        ("memory", FILE),
        ("memory_unknown", FILE),
        ("pipe", b"through a pipe"),
        ("plain_file", b"one\ntwo\nthree"),
    ],
)
def test_file(serve: Serve, function: str, expected: bytes, options: tuple[str, ...]) -> None:
    client = serve(GALLERY, *options).connect()
    response = client.get(f"/files/{function}")
    assert response.body == expected
    assert client.get("/").body == BODY


def test_huge_file_with_a_slow_start(server: Server) -> None:
    client = server.connect(receive_buffer=1 << 16)
    client.send(request("/files/huge"))
    assert server.get("/").body == BODY
    client.timeout = 30
    response = client.read_response()
    assert len(response.body) == 100 << 20
    assert response.body[-1:] == b"!"
    assert not response.body.strip(b"\0!")
    assert client.get("/").body == BODY


# --- streaming ---------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["gated", "gated_write", "gated_with_length"])
def test_piece_arrives_before_the_next_is_made(server: Server, name: str, function: str) -> None:
    """PEP 3333, "Buffering and Streaming": a server must not delay a piece."""
    client = server.connect()
    client.send(request(f"/streaming/{function}?name={name}"))
    response = client.read_head()
    with_length = response.header("Content-Length") is not None
    assert (client.read_exactly(6) if with_length else client.read_chunk()) == b"before"
    assert _state(server, name)["waiting"] == 1
    client.assert_open()
    assert server.get(f"/streaming/open_gate?name={name}").status == 200
    assert (client.read_exactly(5) if with_length else client.read_chunk()) == b"after"
    if not with_length:
        assert client.read_chunk() == b""
    assert client.get("/").body == BODY


def test_slow_application_delays_nobody_else(server: Server, name: str) -> None:
    waiting = [server.connect() for _ in range(20)]
    for client in waiting:
        client.send(request(f"/streaming/slow?name={name}"))
    wait_until(lambda: _state(server, name)["waiting"] == 20, "twenty requests at once")
    assert server.get("/").body == BODY
    server.get(f"/streaming/open_gate?name={name}")
    for client in waiting:
        assert client.read_response().body == b"done"
        assert client.get("/").body == BODY


# --- environ -----------------------------------------------------------------------------------

_ENVIRON_REQUESTS = {
    "plain": request("/a/b?c=d"),
    "no-query": request("/"),
    "escapes": request("/%41%2F%e4%c3%a4/a%20b?x=%20&y=+;&%41"),
    "latin": request("/?q=%FC"),
    "empty-query": request("/a?"),
    "two-questions": request("/a?b?c"),
    "fragment": request("/a?b#c"),
    "double-slash": request("//a//b"),
    "dots": request("/a/../b/./c"),
    "absolute": request("http://example.org:81/x?y=z"),
    "absolute-no-path": request("http://example.org"),
    "options-asterisk": request("*", method="OPTIONS"),
    "connect": request("example.org:443", method="CONNECT"),
    "headers": request("/", "Accept: text/html", "X-One: 1", "x-two: 2", "X-THREE:3", "Cookie: a=b; c=d"),
    "repeated": request("/", "X-A: 1", "Accept: a", "X-A: 2", "Accept: b", "X-A:"),
    "cookies": request("/", "Cookie: a=b", "Cookie: c=d"),
    "spaces": request("/", "X-Spaces: \t  a  b \t "),
    "latin-value": request("/", "X-Latin: caf\xe9"),
    "empty-value": request("/", "X-Empty:"),
    "no-host": b"GET / HTTP/1.1\r\nX-A: 1\r\n\r\n",
    "no-headers": b"GET / HTTP/1.1\r\n\r\n",
    "host-port": b"GET / HTTP/1.1\r\nHost: example.org:8000\r\n\r\n",
    "http-1-0": request("/", version="1.0"),
    "http-1-0-keep-alive": request("/", "Connection: keep-alive", version="1.0"),
    "post": request("/", "Content-Type: text/plain", method="POST", body=b"body"),
    "post-empty": request("/", "Content-Length: 0", method="POST"),
    "get-with-body": request("/", body=b"body"),
    "chunked": request("/", "Transfer-Encoding: chunked", method="POST") + b"4\r\nbody\r\n0\r\n\r\n",
    "chunked-trailer": request("/", "Transfer-Encoding: chunked", "Trailer: X-T", method="PUT")
    + b"4;ext=1\r\nbody\r\n0\r\nX-T: 1\r\n\r\n",
    "content-type-header": request("/", "Content-Type: text/html; charset=utf-8"),
    "methods": request("/", method="PROPFIND"),
    "odd-method": request("/", method="M-SEARCH"),
    "authorization": request("/", "Authorization: Basic dTpw"),
    "connection-list": request("/", "Connection: close, te", "TE: trailers"),
    "upgrade": request("/", "Connection: Upgrade", "Upgrade: websocket"),
    "forwarded": request(
        "/", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "Forwarded: for=1.1.1.1"
    ),
    "leading-crlf": b"\r\n" + request("/after-empty-line"),
    "name-characters": request("/", "X!#$%&'*+-.^`|~9: odd"),
    "expect": request("/", "Expect: 100-continue", "Content-Length: 0"),
    "long": request("/" + "x" * 3000, "X-Long: " + "y" * 3000),
    "many": request("/", *(f"X-{n}: {n}" for n in range(90))),
}

#: What is different in each run, or is the worker's own affair.
_ENVIRON_SET_ASIDE = {"REMOTE_PORT", "SERVER_PORT"}
_ENVIRON_TYPES_SET_ASIDE = {"gunicorn.socket", "wsgi.input", "wsgi.early_hints", "wsgi.errors"}


def _environ(server: Server, sent: bytes) -> dict[str, object]:
    client = server.connect()
    client.send(sent)
    response = client.read_response()
    if response.status == 100:
        response = client.read_response()
    assert response.status == 200, response
    environ: dict[str, object] = response.json()
    if "REMOTE_PORT" in environ and isinstance(server.address, tuple):
        assert environ["REMOTE_PORT"] == str(client.port)
        assert environ["SERVER_PORT"] == str(server.port)
    kept = {key: value for key, value in environ.items() if key not in _ENVIRON_SET_ASIDE}
    kept = {key: value for key, value in kept.items() if not key.startswith("keepalive.")}
    return {key: "there" if key in _ENVIRON_TYPES_SET_ASIDE else value for key, value in kept.items()}


@pytest.mark.parametrize("sent", _ENVIRON_REQUESTS.values(), ids=_ENVIRON_REQUESTS)
def test_environ_is_the_same_as_from_gunicorns_worker(serve: Serve, reference: Serve, sent: bytes) -> None:
    expected = _environ(reference("environ_dump:app"), sent)
    assert _environ(serve("environ_dump:app"), sent) == expected


def test_environ_is_the_same_for_every_request_of_a_connection(serve: Serve, reference: Serve) -> None:
    """What the first request left behind must not show in the second."""
    ours, theirs = serve("environ_dump:app").connect(), reference("environ_dump:app").connect()
    for sent in _ENVIRON_REQUESTS.values():
        if b"\nConnection: close" in sent or b"HTTP/1.0" in sent or sent.startswith(b"CONNECT"):
            continue
        seen = []
        for client in (ours, theirs):
            client.send(sent)
            response = client.read_response()
            if response.status == 100:
                response = client.read_response()
            varying = _ENVIRON_SET_ASIDE | _ENVIRON_TYPES_SET_ASIDE
            environ = {
                key: value
                for key, value in response.json().items()
                if key not in varying and not key.startswith("keepalive.")
            }
            seen.append(environ)
        assert seen[0] == seen[1], sent


def test_environ_is_a_dictionary_of_its_own_for_each_request(server: Server) -> None:
    """PEP 3333: the application may change it as it likes; the gallery does."""
    client = server.connect()
    first, second = (
        client.get("/introspection/environ?a=1").json(),
        client.get("/introspection/environ").json(),
    )
    assert (first["QUERY_STRING"], second["QUERY_STRING"]) == ("a=1", "")
    assert first.keys() == second.keys()


@pytest.mark.parametrize("path", ["/", "/length", "/write", "/204"])
@pytest.mark.parametrize("body", [b"", b"some body"])
def test_wsgiref_validator_finds_nothing(serve: Serve, path: str, body: bytes) -> None:
    server = serve("validated:app")
    before = server.log_size
    client = server.connect()
    for _ in range(2):
        response = client.get(path, method="POST" if body else "GET", body=body)
        assert response.body == (b"" if path == "/204" else body or b"no body")
    assert client.get(path, method="HEAD").status in (200, 204)
    server.settle()
    # The validator raises, or complains on standard error; only gunicorn warns of a body for HEAD.
    log = [line for line in server.log(before).splitlines() if not line.startswith("WSGI app sent body")]
    assert log == []


@pytest.mark.only_ours("has one context for a whole connection")
def test_context_variables_are_fresh_for_each_request(server: Server) -> None:
    client = server.connect()
    assert [client.get("/introspection/context").json() for _ in range(3)] == ["fresh"] * 3
    clients = [server.connect() for _ in range(5)]
    assert [one.get("/introspection/context").json() for one in clients] == ["fresh"] * 5


def test_wsgi_errors_and_standard_error_reach_the_log(server: Server, name: str) -> None:
    before = server.log_size
    assert server.get(f"/introspection/errors?mark={name}").json() == "written"
    assert server.log(before) == f"to wsgi.errors: {name}\nto stderr: {name}\n"


@pytest.fixture(autouse=True)
def _worker_survives(serve: Serve) -> Iterator[None]:
    """Nothing that an application does may end the worker."""
    server = serve(GALLERY)
    pid = server.worker
    yield
    assert server.worker == pid


def test_digest_of_a_streamed_response(server: Server, name: str) -> None:
    expected = hashlib.sha256(
        b"".join(hashlib.sha256(b"%d" % number).digest() * 2048 for number in range(40))
    ).hexdigest()
    client = server.connect()
    for length in ("", "&length"):
        body = client.get(f"/streaming/watched?name={name}&count=40{length}").body
        assert hashlib.sha256(body).hexdigest() == expected
