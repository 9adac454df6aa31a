"""Responses by how their length is known, or is not, or is wrong (PEP 3333, RFC 9112 6.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

BODY = b"Hello, world!\n"
TEXT = ("Content-Type", "text/plain")


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """In one piece, with its length."""
    start_response("200 OK", [TEXT, ("Content-Length", str(len(BODY)))])
    return [BODY]


def unknown(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """In one piece, without its length."""
    start_response("200 OK", [TEXT])
    return [BODY]


def pieces(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """In three pieces, without the length."""
    start_response("200 OK", [TEXT])
    return [b"Hello", b", ", b"world!\n"]


def pieces_with_length(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """In three pieces, with the length."""
    start_response("200 OK", [TEXT, ("Content-Length", str(len(BODY)))])
    return [b"Hello", b", ", b"world!\n"]


def generator(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """A generator function: start_response is called when the first piece is asked for."""
    start_response("200 OK", [TEXT])
    yield b"Hello"
    yield b", world!\n"


def empty_list(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """No piece at all, without a length."""
    start_response("200 OK", [TEXT])
    return []


def empty_list_with_length(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """No piece at all, and the length says so."""
    start_response("200 OK", [TEXT, ("Content-Length", "0")])
    return []


def empty_generator(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """A generator that starts the response and yields nothing."""
    start_response("200 OK", [TEXT])
    yield from ()


def empty_pieces(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Pieces, some of them empty: an empty chunk would end a chunked body."""
    start_response("200 OK", [TEXT])
    return [b"", b"Hello", b"", b", world!\n", b""]


def empty_pieces_with_length(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Pieces, some of them empty, with the length."""
    start_response("200 OK", [TEXT, ("Content-Length", str(len(BODY)))])
    return [b"", b"Hello", b"", b", world!\n", b""]


def only_empty_piece(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """One piece with nothing in it."""
    start_response("200 OK", [TEXT])
    return [b""]


def write(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The callable that start_response returns, and nothing from the iterable."""
    put = start_response("200 OK", [TEXT])
    put(b"Hello")
    put(b"")
    put(b", world!\n")
    return []


def write_with_length(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """write() for one part, the iterable for the other, with the length of both."""
    put = start_response("200 OK", [TEXT, ("Content-Length", str(len(BODY)))])
    put(b"Hello")
    return [b", world!\n"]


def write_and_return(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """write() for one part, the iterable for the other, without the length."""
    put = start_response("200 OK", [TEXT])
    put(b"Hello")
    return [b", world!\n"]


def more_than_promised(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Content-Length 5 and more to come."""
    start_response("200 OK", [TEXT, ("Content-Length", "5")])
    return [b"Hel", b"lo, wo", b"rld!"]


def more_than_promised_at_once(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Content-Length 5 and one piece that is longer."""
    start_response("200 OK", [TEXT, ("Content-Length", "5")])
    return [BODY]


def more_than_nothing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Content-Length 0 and a body."""
    start_response("200 OK", [TEXT, ("Content-Length", "0")])
    return [BODY]


def less_than_promised(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Content-Length 100 and only a few bytes."""
    start_response("200 OK", [TEXT, ("Content-Length", "100")])
    return [b"Hel", b"lo"]


def less_than_promised_at_once(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Content-Length 100 and one piece of a few bytes."""
    start_response("200 OK", [TEXT, ("Content-Length", "100")])
    return [b"Hello"]


def nothing_of_promised(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Content-Length 100 and nothing."""
    start_response("200 OK", [TEXT, ("Content-Length", "100")])
    return []


def no_content(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """204 as it should be."""
    start_response("204 No Content", [])
    return []


def no_content_with_body(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """204 with a body and a length, neither of which may be sent (RFC 9110 15.3.5)."""
    start_response("204 No Content", [TEXT, ("Content-Length", str(len(BODY)))])
    return [BODY]


def not_modified(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """304 as it should be."""
    start_response("304 Not Modified", [("ETag", '"1"')])
    return []


def not_modified_with_length(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """304 with the length that a 200 would have (RFC 9110 15.4.5) and a body it must not have."""
    start_response("304 Not Modified", [("Content-Length", str(len(BODY)))])
    return [BODY]


def reset_content(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """205 without a body."""
    start_response("205 Reset Content", [("Content-Length", "0")])
    return []


def large(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """One piece of 3 MB, with its length."""
    start_response("200 OK", [("Content-Length", str(3 << 20))])
    return [bytes(range(256)) * (3 << 12)]


def large_unknown(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """One piece of 3 MB, without its length."""
    start_response("200 OK", [])
    return [bytes(range(256)) * (3 << 12)]


def thousand_pieces(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A thousand pieces of one byte."""
    start_response("200 OK", [])
    return (b"%d" % (n % 10) for n in range(1000))


def tuple_body(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A tuple is an iterable, too."""
    start_response("200 OK", [TEXT])
    return (b"Hello", b", world!\n")


def bytes_body(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A bytes object is an iterable, of integers: a mistake that has to be reported."""
    start_response("200 OK", [TEXT])
    body: Iterable[bytes] = BODY  # type: ignore[assignment]
    return body


def text_body(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Pieces of str: a mistake that has to be reported."""
    start_response("200 OK", [TEXT])
    return ["Hello"]  # type: ignore[list-item]


def many_headers(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Repeated and unusual, but right, headers, in this order."""
    headers = [("Set-Cookie", "a=1"), ("X-Odd!#$%&'*+-.^_`|~", "  spaces around \t"), ("Set-Cookie", "b=2")]
    start_response("299 Gut so \xe9", [*headers, ("X-Latin", "caf\xe9"), ("X-Empty", ""), ("x-lower", "x")])
    return [b"x"]


def hop_by_hop(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Headers that are the server's affair (PEP 3333, "Other HTTP Features")."""
    headers = [("Keep-Alive", "timeout=99"), ("Server", "me"), ("Date", "never"), ("Transfer-Encoding", "x")]
    start_response("200 OK", [*headers, ("Trailers", "x"), ("TE", "x"), ("Upgrade", "x"), ("X-Mine", "1")])
    return [BODY]


def no_reason(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A status with an empty reason phrase."""
    start_response("200 ", [("Content-Length", "0")])
    return []


def early_hints(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Two interim responses before the real one, and one that comes too late (RFC 8297)."""
    hint = environ["wsgi.early_hints"]
    hint([("Link", "</a.css>; rel=preload; as=style")])
    hint([(b"Link", b"</b.css>; rel=preload; as=style"), ("X-More", " padded ")])
    put = start_response("200 OK", [("Content-Length", "2")])
    put(b"o")
    hint([("Link", "</too-late.css>")])
    return [b"k"]


def hinted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """One interim response before the real one."""
    environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload; as=style")])
    return hello(environ, start_response)
