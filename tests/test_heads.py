"""The fast path for plain heads against gunicorn's Python parser.

The property: what the fast path accepts gives exactly the environ, the body and the end of the
request that gunicorn's parser and ``gunicorn.http.wsgi.create`` give, and what gunicorn refuses it
never accepts. To leave a head to gunicorn's parser is always right.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.parser import RequestParser
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from keepalive_worker.connection import HANDLING, Connection, Terms
from keepalive_worker.counters import Counters
from keepalive_worker.handler import RequestHandler
from keepalive_worker.heads import MAX_WAITING_HEAD, Head, Heads, Limits, Memory, RequestLines
from keepalive_worker.holding import Holding
from keepalive_worker.listeners import Listener
from keepalive_worker.settings import Options

#: What differs by its nature: objects that are made for one request.
OBJECTS = {"gunicorn.socket", "keepalive.connection", "wsgi.early_hints", "wsgi.errors", "wsgi.input"}

TCP = ("127.0.0.1", 8000)
LOOPBACK = ("127.0.0.1", 50000)


# ------------------------------------------------------------------------ two servers


@dataclass(frozen=True)
class Setup:
    """How a server is configured, and who asks it."""

    settings: dict[str, Any] = field(default_factory=dict)
    server: Any = TCP
    peer: Any = LOOPBACK
    script_name: str = ""

    @cached_property
    def config(self) -> Config:
        """gunicorn's configuration."""
        cfg = Config()
        cfg.set("http_parser", "python")
        for name, value in self.settings.items():
            cfg.set(name, value)
        return cfg

    @contextmanager
    def environment(self) -> Iterator[None]:
        """With SCRIPT_NAME in the process's environment, where gunicorn looks for it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("SCRIPT_NAME", raising=False)
            if self.script_name:
                patch.setenv("SCRIPT_NAME", self.script_name)
            yield


@dataclass
class Outcome:
    """What a server made of a request."""

    environ: dict[str, Any]
    body: bytes
    #: Bytes of body in all, those that have not come included.
    length: int
    close: bool
    rest: bytes
    request: Any


class NoSocket:
    """Takes what is sent and forgets it."""

    def send(self, data: bytes) -> int:
        """Nothing."""
        return len(data)


def comparable(environ: dict[str, Any]) -> dict[str, Any]:
    """environ without objects of the request."""
    return {key: value for key, value in environ.items() if key not in OBJECTS}


def by_gunicorn(setup: Setup, raw: bytes) -> Outcome | BaseException:
    """What gunicorn's gevent worker with its Python parser makes of *raw*, or why it refuses."""
    cfg = setup.config
    try:
        parser = RequestParser(cfg, [raw], setup.peer)
        request = next(parser)
        _, environ = wsgi.create(request, NoSocket(), setup.peer, setup.server, cfg)
    except Exception as error:
        return error
    environ["wsgi.multithread"] = True  # as gunicorn's gevent worker says
    length = getattr(request.body.reader, "length", -1)
    try:
        body = request.body.read()
    except Exception:
        body = b""  # Not all of it has come, or it is malformed; the head is what counts here.
    return Outcome(
        comparable(environ),
        body,
        length,
        request.should_close(),
        parser.unreader.take_buffered(),
        request,
    )


class BoundSocket:
    """A listening socket as far as a listener looks at it."""

    def __init__(self, name: Any) -> None:
        self.family = socket.AF_UNIX if isinstance(name, str) else socket.AF_INET
        self._name = name
        self._socket = socket.socket(self.family, socket.SOCK_STREAM)
        self.fileno = self._socket.fileno
        self.close = self._socket.close

    def getsockname(self) -> Any:
        """Where it pretends to be bound."""
        return self._name


class Log:
    """A log that nobody reads."""

    access_log_enabled = False

    class error_log:  # noqa: N801
        """As on gunicorn's logger."""

        @staticmethod
        def isEnabledFor(level: int) -> bool:  # noqa: N802
            """No."""
            return False

    def access(self, *args: Any) -> None:
        """Nothing."""


class FastServer:
    """Our handler with everything around it left out; also its event loop, pool and worker."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.cfg = setup.config
        self.log = Log()
        self.app_callable = None
        self.options = Options()
        self.counters = Counters()
        self.terms = Terms(self.clock, 5.0, 1.0)
        self.holding = Holding(None)
        self.memory = Memory()
        #: What the handler decided: ("plain", environ, response), ("parsed",) or ("wait",).
        self.decided: list[tuple[Any, ...]] = []
        limits = Limits(self.cfg)
        base = wsgi.base_environ(self.cfg)
        base["wsgi.multithread"] = True
        base["SCRIPT_NAME"] = setup.script_name
        bound = BoundSocket(setup.server)
        self.listener = Listener(bound, self.cfg, base, limits, self.memory)
        this: Any = self
        self.handler = RequestHandler(this, this, this, limits, self.memory)

    def clock(self) -> float:
        """It stands still."""
        return 1000.0

    def wait_for_head(self, conn: Connection, data: bytes) -> None:
        """As on the event loop."""
        self.decided.append(("wait",))

    def lead(self, work: Any) -> None:
        """As on the pool."""
        work()

    def run(self, function: Any, conn: Connection, *args: Any) -> None:
        """As on the pool."""
        if function == self.handler._handle:
            self.decided.append(("plain", *args))
        else:
            assert function == self.handler._serve_parsed
            self.decided.append(("parsed", *args))

    def connect(self, requests: int = 0) -> Connection:
        """A connection that had so many requests."""
        host, port = ("", -1) if isinstance(self.setup.peer, str) else self.setup.peer[:2]
        conn = Connection(1, 99, host, port, self.listener, self.listener.heads_for(host), self.terms, self.clock())
        conn.requests = requests
        return conn

    def ask(self, raw: bytes, conn: Connection | None = None) -> Outcome | str:
        """What becomes of *raw*: the outcome, or ``parsed`` or ``wait``."""
        conn = conn or self.connect()
        self.handler.begin(conn, raw)
        kind, *rest = self.decided.pop()
        assert not self.decided, "one decision for one request"
        if kind == "plain":
            environ, response = rest
            body = environ["wsgi.input"]
            assert conn.state == HANDLING
            if isinstance(body, io.BytesIO):
                came = body.read()
                length = len(came)
            else:
                length = body.reader.length
                came = response.unreader.take_buffered()
                response.unreader.unread(came)
            seen = comparable(environ)
            environ.clear()  # as an application may; it must not reach the next request
            return Outcome(seen, came, length, response.must_close, conn.buffer or b"", response.req)
        if kind == "parsed":
            assert rest == [raw], "gunicorn's parser gets the bytes untouched"
        return str(kind)

    def close(self) -> None:
        """Give the descriptors back."""
        self.listener.close()


@contextmanager
def fast_server(setup: Setup | None = None) -> Iterator[FastServer]:
    """A :class:`FastServer`, closed at the end."""
    setup = setup or Setup()
    with setup.environment():
        server = FastServer(setup)
        try:
            yield server
        finally:
            server.close()


#: What loggers and hooks may read of a request.
REQUEST_ATTRIBUTES = (
    "fragment",
    "headers",
    "limit_request_field_size",
    "limit_request_fields",
    "limit_request_line",
    "method",
    "must_close",
    "path",
    "peer_addr",
    "proxy_protocol_info",
    "query",
    "remote_addr",
    "req_number",
    "scheme",
    "trailers",
    "uri",
    "version",
)


def compare(server: FastServer, raw: bytes, requests: int = 0) -> str:
    """Check the property for one request; what our side did."""
    theirs = by_gunicorn(server.setup, raw)
    # Parsed, parsed and kept, remembered.
    for _ in range(3):
        ours = server.ask(raw, server.connect(requests))
        _check(ours, theirs)
    if isinstance(ours, str):
        return ours
    # Behind another request, and the same as the one before.
    for _ in range(2):
        _check(server.ask(raw, server.connect(requests + 1)), theirs)
    return "plain"


def _check(ours: Outcome | str, theirs: Outcome | BaseException) -> None:
    """That our side made of a request what gunicorn does, or left it alone."""
    if ours == "wait":
        assert isinstance(theirs, BaseException), "we wait for the rest of a request that is complete"
    elif isinstance(ours, Outcome):
        assert not isinstance(theirs, BaseException), f"gunicorn refuses: {theirs!r}"
        assert ours.environ == theirs.environ
        assert {type(value) for value in ours.environ.values()} == {
            type(value) for value in theirs.environ.values()
        }
        assert (ours.body, ours.length, ours.rest) == (theirs.body, theirs.length, theirs.rest)
        assert ours.close == theirs.close
        for name in REQUEST_ATTRIBUTES:
            if name != "req_number":
                assert getattr(ours.request, name) == getattr(theirs.request, name), name
        assert ours.request.should_close() == theirs.request.should_close()


# ------------------------------------------------------------------------- strategies

SETTINGS: dict[str, list[Any]] = {
    "limit_request_line": [4094, 0, 80, 40],
    "limit_request_fields": [100, 0, 3, 1],
    "limit_request_field_size": [8190, 0, 80, 40],
    "header_map": ["drop", "refuse", "dangerous"],
    "forwarded_allow_ips": ["127.0.0.1,::1", "*", "10.0.0.0/8", ""],
    "forwarder_headers": ["SCRIPT_NAME,PATH_INFO", "*", "REMOTE_USER", ""],
    "secure_scheme_headers": [
        {"X-FORWARDED-PROTOCOL": "ssl", "X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"},
        {"X-FORWARDED-PROTO": "https"},
        {},
        {"x-forwarded-proto": "https"},
        {"X_FORWARDED_PROTO": "https"},
        {"HOST": "secure", "CONTENT-TYPE": "text/plain"},
        {"CONTENT_TYPE": "text/plain", "X-FORWARDED-SSL": ""},
    ],
    "strip_header_spaces": [False, True],
    "permit_obsolete_folding": [False, True],
    "casefold_http_method": [False, True],
    "permit_unconventional_http_method": [False, True],
    "permit_unconventional_http_version": [False, True],
    "http2_cleartext": ["off", "upgrade", "prior-knowledge", "both"],
    "certfile": [None, "server.pem"],
}


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    """A configuration: the defaults but for some settings."""
    names = draw(st.lists(st.sampled_from(sorted(SETTINGS)), max_size=5, unique=True))
    values = {name: draw(st.sampled_from(SETTINGS[name])) for name in names}
    server, peer = draw(
        st.sampled_from(
            [
                (TCP, LOOPBACK),
                (TCP, ("10.1.2.3", 1)),
                (TCP, ("198.51.100.9", 65535)),
                (("::1", 443, 0, 0), ("::1", 7)),
                ("/run/app.sock", ""),
                ("/run/a:b.sock", ""),
            ]
        )
    )
    script_name = draw(st.sampled_from(["", "", "", "", "", "", "/app", "/app", "/a b", "/%61"]))
    return Setup(values, server, peer, script_name)


TOKENS = st.text("abcXYZ019!#$%&'*+-.^`|~", min_size=1, max_size=8)
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
ODD_TEXT = st.text(
    st.one_of(st.sampled_from(' \t:,;_-"\\\r\n\0\x0b\x7f\x85\xa0\xad\xb2\xdf\xff'), st.characters(max_codepoint=255)),
    max_size=8,
)


def words(text: str) -> st.SearchStrategy[str]:
    """One of the words of a text."""
    return st.sampled_from(text.split())


def mostly(good: st.SearchStrategy[str], odd: st.SearchStrategy[str], share: int = 8) -> st.SearchStrategy[str]:
    """Good ones, and odd ones one time in *share*; for a request must be good all over to be accepted."""
    return st.integers(1, share).flatmap(lambda number: odd if number == share else good)


NAMES = mostly(
    st.one_of(
        words("Host Connection Content-Length Content-Type Accept Cookie X-Forwarded-Proto X-Forwarded-Ssl"),
        words("X-Forwarded-Proto X-FORWARDED-PROTOCOL X-Forwarded-For Script-Name Remote-User Path-Info"),
        words("Keep-Alive TE Trailer Proxy-Connection Content-length CONTENT-LENGTH host Upgrade"),
        TOKENS,
    ),
    st.one_of(
        words("Transfer-Encoding Expect HTTP2-Settings X_Forwarded_Proto Script_Name Remote_User Path_Info"),
        words("Content_Length Content_Type Transfer_Encoding _ wsgi.input"),
        st.sampled_from(["", " Host", "Host ", "Host\t", "H\xe9", "Na(me", "Content-Length ", "\tfold", "a\0b"]),
    ),
)

ODD_NUMBERS = [
    "+1",
    "-1",
    "1_0",
    "0x5",
    "1.0",
    "1e1",
    " 5",
    "05",
    "²",
    "5,5",
    "5, 5",
    "5\t",
    "",
    "\x0c5",
    "5\xa0",
    "Ù¥",
]
ODD_NUMBERS += ["9" * 18, "9" * 19, "9" * 5000]

#: For the fields that mean something to the parser: good values and odd ones.
VALUES = {
    "content-length": mostly(st.integers(0, 30).map(str), st.sampled_from(ODD_NUMBERS)),
    "transfer-encoding": words("chunked Chunked identity gzip,chunked chunked,identity chunked, xchunked"),
    "connection": mostly(
        words("close keep-alive Close KEEP-ALIVE keep-alive,close upgrade"),
        st.sampled_from(["", "close\t", " close", "\xa0close", "keep-alive, close"]),
    ),
    "host": mostly(
        words("a.example a.example:8080 secure 127.0.0.1 a b"),
        st.sampled_from(["", ":80", "a:", "[::1]:80", "[::1]", "a b", "a:b:c", "\xe9"]),
    ),
    "expect": words("100-continue 100-Continue 200-ok"),
    "content-type": words("text/plain text/plain;charset=utf-8"),
    "upgrade": words("websocket h2c h2c,websocket"),
    "http2-settings": words("AAMAAABkAAQCAAAAAAIAAAAA"),
}
SCHEMES = st.one_of(words("https http ssl on HTTPS https,http off"), st.just(""))


@st.composite
def header_lines(draw: st.DrawFn, setup: Setup) -> str:
    """One line of a header block, mostly well-formed."""
    size = setup.settings.get("limit_request_field_size", 8190) or 8190
    if draw(st.integers(1, 20)) == 20:
        # Just below, at and just above the limit, the line's CRLF included.
        length = size - 2 + draw(st.integers(-2, 2))
        return ("X-Long: " + "v" * length)[:length]
    name = draw(NAMES)
    lower = name.strip(" \t").lower().replace("_", "-")
    usual = SCHEMES if lower.startswith("x-forwarded") else VALUES.get(lower, PRINTABLE)
    value = draw(mostly(usual, ODD_TEXT, share=12))
    colon = draw(mostly(st.just(": "), st.sampled_from([":", ":  ", ":\t", " : ", "\t:", "", " "]), share=12))
    end = draw(mostly(st.just(""), st.sampled_from([" ", "\t", "\r\n fold", "\r\n\tfold", "\n X: y", "\r"]), share=20))
    return f"{name}{colon}{value}{end}"


METHODS = mostly(
    words("GET GET POST HEAD OPTIONS PUT DELETE PRI CONNECTED"),
    st.one_of(words("CONNECT get Get GE M-SEARCH G#T ABC1"), st.sampled_from(["", "G\xc9T", "A" * 20, "A" * 21])),
)
PATH_TEXT = st.text("abc/.~-_;=@:+!$'()*,", max_size=12)
PATHS = mostly(
    st.one_of(
        PATH_TEXT.map(lambda text: "/" + text.lstrip("/")),
        words("/ /app/x /a%20b/c /%2F /%61pp/x /%zz /% /%c3%a9 /%00 /%0d%0a /a//b /;a=b /../.. /./ /a://b"),
    ),
    st.one_of(
        words("// //a/b /// # /a#b * /* /[x] /{} /a\\b http://h/p http://h http://[::1]/p http://[/p h:80"),
        words('example.com:443 :// /a|b /a^b /a`b /a"b /a<b>'),
        st.sampled_from(["", "/a b", "/\xe9", "/a\tb", "/a\x7fb"]),
    ),
)
QUERIES = mostly(
    st.one_of(
        st.just(""),
        words('? ?a=b ?a=b&c=%20 ?? ?[x]={} ?" ?// ?|^`\\'),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=6).map(lambda text: "?" + text),
    ),
    st.sampled_from(["?a#b", "?\xe9", "?a b", "?\x7f"]),
)
VERSIONS = mostly(
    words("HTTP/1.1 HTTP/1.1 HTTP/1.0"),
    st.sampled_from(
        ["HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "HTTP/11.1", "http/1.1", "HTTP/1.1 ", "HTTP/1.", "", "HTTP/1.¹"]
    ),
    share=12,
)


@st.composite
def request_lines(draw: st.DrawFn, setup: Setup) -> str:
    """A request line, mostly well-formed."""
    method, target, version = draw(METHODS), draw(PATHS) + draw(QUERIES), draw(VERSIONS)
    if setup.script_name and draw(st.integers(0, 3)):
        target = setup.script_name + target
    limit = setup.settings.get("limit_request_line", 4094)
    if limit and draw(st.integers(1, 12)) == 12:
        # Just below, at and just above the limit.
        line = f"GET / {version}"
        return f"GET /{'p' * (limit - len(line) + draw(st.integers(-1, 2)))} {version}"
    gap = draw(mostly(st.just(" "), st.sampled_from(["  ", "\t", ""]), share=20))
    return f"{method}{gap}{target} {version}"


@st.composite
def requests(draw: st.DrawFn) -> tuple[Setup, bytes]:
    """A server, and bytes for it that are a request or nearly one."""
    setup = draw(setups())
    fields = setup.settings.get("limit_request_fields", 100) or 100
    lines = [draw(header_lines(setup)) for _ in range(draw(st.sampled_from([0, 1, 2, 2, 3, 4])))]
    if draw(st.integers(1, 15)) == 15:
        # As many fields as the limit, one less, one more.
        lines += [f"X-{number}: v" for number in range(fields - len(lines) + draw(st.integers(-1, 1)))]
    start = draw(mostly(st.just(""), st.sampled_from(["\r\n", "\n", " ", "\r\n\r\n"]), share=20))
    first_end = draw(mostly(st.just("\r\n"), st.sampled_from(["\n", "\r", "\r\n ", " \r\n"]), share=20))
    end = draw(mostly(st.just("\r\n"), st.sampled_from(["\n", "\r", "\r\r\n"]), share=20))
    text = start + draw(request_lines(setup)) + first_end + "".join(line + end for line in lines) + "\r\n"
    body = draw(st.sampled_from([b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 40]))
    return setup, text.encode("latin-1") + body


PIECES = st.one_of(
    st.sampled_from(
        [
            b"\r",
            b"\n",
            b"\r\n",
            b"\r\n\r\n",
            b" ",
            b"\t",
            b":",
            b"\x00",
            b"\x7f",
            b"\x80",
            b"\xad",
            b"_",
            b"-",
            b"%",
            b"#",
            b"//",
            b"Host: b\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"\xc4\xb2",
            b"\x1c",
            b"\x85",
        ]
    ),
    st.binary(min_size=1, max_size=2),
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Setup, bytes]:
    """As :func:`requests`, with some of the bytes changed."""
    setup, raw = draw(requests())
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(raw)))
        until = min(len(raw), place + draw(st.sampled_from([0, 0, 1, 2, 8])))
        raw = raw[:place] + draw(PIECES) + raw[until:]
    return setup, raw


#: Runs of each of the two great comparisons; they find what there is to find within some thousands.
EXAMPLES = 300

BY_THE_BOOK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])


def get(*lines: str, line: str = "GET /p?q=1 HTTP/1.1", body: bytes = b"") -> bytes:
    """A request of these header lines."""
    return "\r\n".join([line, *lines, "", ""]).encode("latin-1") + body


# ----------------------------------------------------------------------- the property


@given(requests())
@settings(BY_THE_BOOK, max_examples=EXAMPLES)
def test_what_the_fast_path_accepts_is_what_gunicorn_makes_of_it(case: tuple[Setup, bytes]) -> None:
    setup, raw = case
    with fast_server(setup) as server:
        compare(server, raw, requests=1)
        compare(server, raw, requests=0)


@given(mutated())
@settings(BY_THE_BOOK, max_examples=EXAMPLES)
def test_the_same_for_damaged_requests(case: tuple[Setup, bytes]) -> None:
    setup, raw = case
    with fast_server(setup) as server:
        compare(server, raw, requests=1)


@given(st.binary(max_size=60), st.booleans())
@settings(BY_THE_BOOK, max_examples=150)
def test_the_same_for_any_bytes(raw: bytes, terminated: bool) -> None:
    with fast_server() as server:
        compare(server, raw + b"\r\n\r\n" * terminated)
        compare(server, b"GET / HTTP/1.1\r\n" + raw + b"\r\n\r\n" * terminated)


@given(requests(), st.data())
@settings(BY_THE_BOOK, max_examples=100)
def test_a_request_in_pieces_comes_to_the_same(case: tuple[Setup, bytes], data: st.DataObject) -> None:
    setup, raw = case
    with fast_server(setup) as server:
        whole = server.ask(raw)
        cut = data.draw(st.integers(1, max(1, len(raw) - 1)))
        conn = server.connect()
        first = server.ask(raw[:cut], conn)
        if first != "wait":
            # What is left to gunicorn's parser stays with it; what was a whole head had a body to come.
            assume(first == "parsed")
            return
        again = server.ask(raw, conn)
        if isinstance(whole, Outcome):
            assert isinstance(again, Outcome)
            assert (again.environ, again.body, again.rest) == (whole.environ, whole.body, whole.rest)
        else:
            assert again == whole


SPECIAL = {
    "SCRIPT_NAME in percent-encoding": (Setup(script_name="/app"), get(line="GET /%61pp/x HTTP/1.1")),
    "SCRIPT_NAME with a space": (Setup(script_name="/a b"), get(line="GET /a%20b HTTP/1.1")),
    "SCRIPT_NAME with a percent sign": (Setup(script_name="/a%20b"), get(line="GET /a%20b/c HTTP/1.1")),
    "scheme by a name with an underscore": (
        Setup({"secure_scheme_headers": {"X_FORWARDED_PROTO": "https"}}),
        get("X-Forwarded-Proto: https", "Host: a"),
    ),
    "scheme by a content type": (
        Setup({"secure_scheme_headers": {"CONTENT-TYPE": "a/b"}}),
        get("Content-Type: a/b", "Host: a"),
    ),
    "scheme by a content length": (
        Setup({"secure_scheme_headers": {"CONTENT-LENGTH": "0"}}),
        get("Content-Length: 0", "Host: a"),
    ),
    "unix socket with a colon in its path": (Setup(server="/run/a:b.sock", peer=""), get("Host: a.example")),
    "unix socket with an IPv6 host": (Setup(server="/run/app.sock", peer=""), get("Host: [::1]:80")),
    "unix socket with an empty host": (Setup(server="/run/app.sock", peer=""), get("Host: ")),
    "unix socket with an empty port": (Setup(server="/run/app.sock", peer=""), get("Host: a:")),
    "unix socket without a host": (Setup(server="/run/app.sock", peer=""), get()),
    "TLS behind a proxy that says http": (
        Setup({"certfile": "server.pem"}),
        get("Host: a", "X-Forwarded-Proto: http"),
    ),
    "method in lower case": (Setup({"casefold_http_method": True}), get(line="get / HTTP/1.1")),
    "CONNECT with a path": (Setup(), get(line="CONNECT /a HTTP/1.1")),
    "method of two letters": (Setup(), get(line="GE / HTTP/1.1")),
    "method of twenty letters": (Setup(), get(line=f"{'A' * 20} / HTTP/1.1")),
    "method of twenty-one letters": (Setup(), get(line=f"{'A' * 21} / HTTP/1.1")),
    "HTTP/1.2": (Setup({"permit_unconventional_http_version": True}), get(line="GET / HTTP/1.2")),
    "space before the colon": (Setup({"strip_header_spaces": True}), get("Host : a")),
    "folded": (Setup({"permit_obsolete_folding": True}), get("A: b", " c")),
    "dangerous": (Setup({"header_map": "dangerous"}), get("X_A: b", "X-A: c")),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_the_same_in_special_cases(name: str) -> None:
    setup, raw = SPECIAL[name]
    with fast_server(setup) as server:
        compare(server, raw)


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_in_every_place(byte: int) -> None:
    piece = bytes([byte])
    with fast_server() as server:
        for raw in (
            b"GET /a%sb HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /a?b%sc HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET%s/ HTTP/1.1\r\nHost: a\r\n\r\n",
            b"G%sT / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.%s\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nA%sb: c\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: b%sc\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: %sc\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: c%s\r\n\r\n",
            b"GET / HTTP/1.1\r\nA:%s\r\n\r\n",
            b"GET / HTTP/1.1\r\n%sA: c\r\n\r\n",
            b"GET / HTTP/1.1\r\nA%s: c\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: %s\r\n\r\nxxxxxxxxxx",
            b"POST / HTTP/1.1\r\nContent-Length: 1%s\r\n\r\nxxxxxxxxxx",
            b"GET / HTTP/1.1\r\nA: c%s\n\r\n",
            b"GET / HTTP/1.1%s\n\r\n",
            b"%sGET / HTTP/1.1\r\n\r\n",
        ):
            compare(server, raw.replace(b"%s", piece), requests=1)


def limit_cases() -> Iterator[Any]:
    """Requests just below, at, and just above each limit."""
    for over in (-1, 0, 1):
        line = f"GET /{'p' * (50 - 14 + over)} HTTP/1.1"
        yield pytest.param({"limit_request_line": 50}, get(line=line), over, id=f"line{over:+}")
        lines = [f"X-{number}: v" for number in range(5 + over)]
        yield pytest.param({"limit_request_fields": 5}, get(*lines), over, id=f"fields{over:+}")
        long = "X: " + "v" * (50 - 2 - 3 + over)
        yield pytest.param({"limit_request_field_size": 50}, get("Host: a", long), over, id=f"size{over:+}")
        long = "X: " + "v" * (8190 - 2 - 3 + over)
        yield pytest.param({"limit_request_field_size": 0}, get("Host: a", long), over, id=f"default{over:+}")


@pytest.mark.parametrize(("settings_", "raw", "over"), list(limit_cases()))
def test_limits_are_met_to_the_byte(settings_: dict[str, Any], raw: bytes, over: int) -> None:
    setup = Setup(settings_)
    with fast_server(setup) as server:
        assert isinstance(by_gunicorn(setup, raw), BaseException) == (over > 0)
        assert compare(server, raw) == ("plain" if over <= 0 else "parsed")


# --------------------------------------------------------------- it is a fast path

BROWSER = get(
    "Host: www.example.com",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/115.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
    "Accept-Language: en-US,en;q=0.5",
    "Accept-Encoding: gzip, deflate, br",
    "Connection: keep-alive",
    "Referer: https://www.example.com/a?b=c",
    "Cookie: session=0123456789abcdef; theme=dark",
    "Upgrade-Insecure-Requests: 1",
    "Sec-Fetch-Dest: document",
)

PLAIN = {
    "browser": (Setup(), BROWSER),
    "http10": (Setup(), get(line="GET / HTTP/1.0")),
    "http10 keep-alive": (Setup(), get("Connection: Keep-Alive", line="GET / HTTP/1.0")),
    "close": (Setup(), get("Host: a", "Connection: close")),
    "post": (Setup(), get("Host: a", "Content-Length: 5", line="POST / HTTP/1.1", body=b"hello")),
    "post in part": (Setup(), get("Host: a", "Content-Length: 500", line="POST / HTTP/1.1", body=b"hello")),
    "pipelined": (Setup(), get("Host: a", body=BROWSER)),
    "percent": (Setup(), get(line="GET /%E2%82%AC/a%20b?x=%20 HTTP/1.1")),
    "empty query": (Setup(), get(line="GET /? HTTP/1.1")),
    "unix": (Setup(server="/run/app.sock", peer=""), get("Host: a.example:8080")),
    "unix https": (
        Setup(server="/run/app.sock", peer=""),
        get("Host: a.example", "X-Forwarded-Proto: https"),
    ),
    "proxy": (
        Setup(),
        get("Host: a", "X-Forwarded-Proto: https", "X-Forwarded-Ssl: on", "X-Forwarded-For: ::1"),
    ),
    "untrusted": (Setup(peer=("192.0.2.1", 9)), get("Host: a", "X-Forwarded-Proto: https")),
    "script name": (Setup(script_name="/app"), get(line="GET /app/x HTTP/1.1")),
    "tls": (Setup({"certfile": "server.pem"}), get("Host: a")),
    "ipv6": (Setup(server=("::1", 80, 0, 0), peer=("::1", 7)), get("Host: [::1]")),
    "delete": (Setup(), get("Host: a", line="DELETE /x HTTP/1.1")),
    "latin": (Setup(), get("X-Name: caf\xe9")),
    "websocket": (Setup(), get("Host: a", "Upgrade: websocket", "Connection: Upgrade")),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_requests_take_the_fast_path(name: str) -> None:
    setup, raw = PLAIN[name]
    with fast_server(setup) as server:
        assert compare(server, raw) == "plain"


@given(
    names=st.lists(TOKENS.filter(lambda name: name.lower() != "te"), max_size=8, unique_by=str.lower),
    values=st.lists(PRINTABLE, min_size=8, max_size=8),
)
@settings(BY_THE_BOOK, max_examples=60)
def test_plain_fields_take_the_fast_path(names: list[str], values: list[str]) -> None:
    with fast_server() as server:
        raw = get(*[f"{name}: {value}" for name, value in zip(names, values, strict=False)])
        assert compare(server, raw) == "plain"


NOT_PLAIN = {
    "chunked": get("Host: a", "Transfer-Encoding: chunked", line="POST / HTTP/1.1"),
    "expect": get("Host: a", "Expect: 100-continue", "Content-Length: 5", line="POST / HTTP/1.1"),
    "two hosts": get("Host: a", "Host: b"),
    "two lengths": get("Content-Length: 5", "Content-Length: 5", line="POST / HTTP/1.1"),
    "two cookies": get("Cookie: a", "cookie: b"),
    "underscore": get("X_Real_IP: 1"),
    "folded": get("A: b", " c"),
    "tab": get("A: b\tc"),
    "bare LF": b"GET / HTTP/1.1\r\nA: b\n\r\n\r\n",
    "connect": get(line="CONNECT a:443 HTTP/1.1"),
    "absolute": get(line="GET http://a/b HTTP/1.1"),
    "two slashes": get(line="GET //a HTTP/1.1"),
    "fragment": get(line="GET /a#b HTTP/1.1"),
    "asterisk": get(line="OPTIONS * HTTP/1.1"),
    "empty line first": b"\r\n" + get(),
    "http 2": get(line="GET / HTTP/2.0"),
    "schemes disagree": get("X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"),
    "long length": get("Content-Length: " + "9" * 30, line="POST / HTTP/1.1"),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_anything_else_is_left_to_gunicorn(name: str) -> None:
    with fast_server() as server:
        assert compare(server, NOT_PLAIN[name]) == "parsed"


def test_the_first_request_is_left_to_gunicorn_where_something_may_come_before_it() -> None:
    for name, value in (
        ("proxy_protocol", "auto"),
        ("http2_cleartext", "both"),
        ("http2_cleartext", "prior-knowledge"),
    ):
        with fast_server(Setup({name: value})) as server:
            assert server.ask(BROWSER) == "parsed"
            assert isinstance(server.ask(BROWSER, server.connect(requests=1)), Outcome)


def test_an_offer_of_http2_is_left_to_gunicorn_where_it_is_taken() -> None:
    raw = get("Host: a", "Connection: Upgrade", "Upgrade: h2c")
    for value, expected in (("off", "plain"), ("upgrade", "parsed")):
        with fast_server(Setup({"http2_cleartext": value})) as server:
            assert compare(server, raw) == expected


def test_later_requests_of_a_proxied_connection_keep_the_client_s_address() -> None:
    info = {
        "proxy_protocol": "TCP4",
        "client_addr": "203.0.113.5",
        "client_port": 4711,
        "proxy_addr": "192.0.2.2",
        "proxy_port": 80,
    }
    with fast_server(Setup({"proxy_protocol": "auto"})) as server:
        conn = server.connect(requests=1)
        conn.own_overrides().proxy_info = info
        ours = server.ask(BROWSER, conn)
        assert isinstance(ours, Outcome)
        assert ours.environ["REMOTE_ADDR"] == "203.0.113.5"
        assert ours.environ["REMOTE_PORT"] == "4711"
        assert ours.environ["PROXY_PROTOCOL"] == "TCP4"
        assert ours.environ["PROXY_ADDR"] == "192.0.2.2"
        assert ours.request.proxy_protocol_info == info


# ------------------------------------------------------------------- unfinished heads


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_head_is_waited_for_at_every_byte(name: str) -> None:
    setup, raw = PLAIN[name]
    head = raw.index(b"\r\n\r\n") + 4
    with fast_server(setup) as server:
        for cut in range(1, head):
            assert server.ask(raw[:cut]) == "wait", raw[:cut]


def test_the_loop_does_not_wait_for_heads_without_end() -> None:
    for setting in ({}, {"limit_request_line": 0}):
        with fast_server(Setup(setting)) as server:
            assert server.ask(b"GET / HTTP/1.1\r\nA: " + b"a" * MAX_WAITING_HEAD) == "parsed"
            assert server.ask(b"GET /" + b"a" * MAX_WAITING_HEAD) == "parsed"


def test_what_gunicorn_refuses_at_once_is_not_waited_for() -> None:
    for raw in (
        b"GET / HTTP/1.1\r\nA: b\n",
        b"GET / HTTP/1.1\n",
        b"get / http\r\n",
        b"GET  / HTTP/1.1\r\n",
        b"\n",
    ):
        with fast_server() as server:
            assert server.ask(raw) == "parsed"


# ----------------------------------------------------------------------------- memory


class Remembering:
    """Heads that remember, and their memory."""

    def __init__(self, memory: Memory | None = None, trusted: bool = False) -> None:
        cfg = Config()
        self.memory = memory or Memory()
        self.heads = Heads(cfg, Limits(cfg), {"wsgi.url_scheme": "http", "SERVER_NAME": "a"}, trusted, self.memory)

    def ask(self, block: bytes) -> Head | None:
        """As the handler does."""
        return self.heads.young.get(block) or self.heads.lookup(block)

    @property
    def kept(self) -> set[bytes]:
        """The blocks that are remembered."""
        return {*self.heads.young, *self.heads.old}

    @property
    def lines(self) -> set[bytes]:
        """The field lines that are remembered."""
        return set(self.heads.fields)

    @property
    def size(self) -> int:
        """Bytes of what is remembered, by the estimate that the bound is about."""
        return 6 * sum(map(len, self.kept | self.lines))


def block(number: int, size: int = 0) -> bytes:
    """A header block that is like no other."""
    return b"Host: a\r\nX-Number: %d\r\nX-Pad: %s\r\n\r\n" % (number, b"p" * size)


def test_the_same_request_again_is_told_from_one_that_differs_anywhere() -> None:
    raw = b"GET /a?b HTTP/1.1\r\nHost: a\r\nX-Number: 1\r\n\r\n"
    others = (
        raw.replace(b"GET", b"PUT"),
        raw.replace(b"/a", b"/c"),
        raw.replace(b"?b", b"?c"),
        raw.replace(b"1.1", b"1.0"),
        raw.replace(b": 1", b": 2"),
        raw + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n",
        raw.replace(b"X-Number: 1", b"Content-Length: 3") + b"abc",
        raw.replace(b"X-Number: 1", b"Content-Length: 3") + b"xyz",
    )
    with fast_server() as server:
        for other in others:
            for _ in range(4):
                assert compare(server, raw, 1) == "plain"
            for _ in range(4):
                assert compare(server, other, 1) == "plain"


def test_a_block_is_kept_when_it_comes_the_second_time() -> None:
    bench = Remembering()
    first = bench.ask(block(1))
    assert bench.kept == set()
    second = bench.ask(block(1))
    assert bench.kept == {block(1)}
    assert first == second
    assert bench.ask(block(1)) is second, "the third time nothing is parsed"


def test_blocks_that_never_repeat_are_not_kept() -> None:
    bench = Remembering()
    for number in range(3000):
        bench.ask(block(number))
    assert bench.kept == set()


def test_what_is_not_plain_is_not_kept() -> None:
    bench = Remembering()
    for bad in (
        b"A: b\r\nA: c\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"A b\r\n\r\n",
        b"A: \x00\r\n\r\n",
    ):
        for _ in range(5):
            assert bench.ask(bad) is None
    assert bench.kept == set()
    assert bench.lines == set()
    assert bench.memory._bytes == 0


def test_lines_of_blocks_that_are_new_in_part_are_kept() -> None:
    bench = Remembering()
    bench.ask(b"Host: a\r\nX-Number: 1\r\n\r\n")
    assert bench.lines == set()
    for number in range(2, 100):
        bench.ask(b"Host: a\r\nX-Number: %d\r\n\r\n" % number)
        assert bench.lines == {b"Host: a"}
    bench.memory.age()
    assert bench.lines == set()


def test_a_line_counts_as_it_stands() -> None:
    """Another case of its name, a space more: another line, with the same result."""
    bench = Remembering()
    for value in (b"X-A: 1", b"x-a: 1", b"X-A:1", b"X-A:  1 "):
        for number in range(3):
            head = bench.ask(b"%s\r\nX-Number: %d\r\n\r\n" % (value, number))
            assert head is not None
            assert head[0]["HTTP_X_A"] == "1"
    # Known lines that are refused together are not taken by themselves.
    assert bench.ask(b"X-A: 1\r\nx-a: 1\r\n\r\n") is None


def test_long_lines_are_not_kept() -> None:
    bench = Remembering()
    for number in range(3):
        bench.ask(b"Cookie: %s\r\nX-Number: %d\r\n\r\n" % (b"c" * Heads.MAX_LINE, number))
    assert bench.lines == set()


def test_what_was_not_used_for_two_generations_is_forgotten() -> None:
    bench = Remembering()
    for _ in range(2):
        bench.ask(block(1))
        bench.ask(block(2))
    bench.memory.age()
    assert bench.kept == {block(1), block(2)}
    bench.ask(block(1))
    bench.memory.age()
    assert bench.kept == {block(1)}
    bench.memory.age()
    assert bench.kept == set()


def test_what_is_used_in_every_generation_stays() -> None:
    bench = Remembering()
    bench.ask(block(1))
    kept = bench.ask(block(1))
    for _ in range(10):
        bench.memory.age()
        assert bench.ask(block(1)) is kept


def test_a_block_seen_once_in_each_generation_is_not_kept() -> None:
    bench = Remembering()
    for _ in range(5):
        bench.ask(block(1))
        bench.memory.age()
    assert bench.kept == set()


def test_large_blocks_are_not_kept() -> None:
    bench = Remembering()
    large = b"".join(b"X-%d: %s\r\n" % (number, b"v" * 1000) for number in range(9)) + b"\r\n"
    assert len(large) > Memory.MAX_BLOCK
    for _ in range(5):
        assert bench.ask(large) is not None
    assert bench.kept == set()


def test_trusted_and_untrusted_peers_share_nothing() -> None:
    memory = Memory()
    untrusted, trusted = Remembering(memory), Remembering(memory, trusted=True)
    secure = b"Host: a\r\nX-Forwarded-Proto: https\r\n\r\n"
    for _ in range(3):
        for bench, scheme in ((untrusted, "http"), (trusted, "https")):
            head = bench.ask(secure)
            assert head is not None
            assert head[0]["wsgi.url_scheme"] == scheme


@given(st.lists(st.one_of(st.integers(0, 40), st.just("age")), max_size=120))
@settings(BY_THE_BOOK, max_examples=60)
def test_memory_is_bounded_and_right(steps: list[int | str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Memory, "MAX_BYTES", 6 * 1000)
        bench = Remembering()
        for step in steps:
            if isinstance(step, str):
                bench.memory.age()
                continue
            asked = block(step, 7 * step)
            head = bench.ask(asked)
            assert head == Remembering().ask(asked)
            assert bench.size <= 2 * (Memory.MAX_BYTES + 6 * len(asked))


#: Lines of blocks that have much in common, and what makes a block special: fields that others depend on,
#: repeated ones, ones that are left to gunicorn.
SIMILAR = (
    [b"Host: a", b"Host: b"],
    [b"X-Id: 1", b"X-Id: 2", b"X-Id: 3", b"x-id:3", b"X-Other: 1", b"Cookie: a=b", b"Cookie: \xe4", b"X-Id: a\x01b"],
    [b"Accept: */*", b"Connection: close", b"Connection: keep-alive", b"Content-Length: 3", b"Content-Length: x"],
    [b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http", b"X-Forwarded-Ssl: on", b"Accept: */*", b"X-Id: 1"],
    [b"Referer: x", b"Referer: y", b"Transfer-Encoding: chunked", b"X-Id: 2", b"Cookie: a=b", b"a b"],
)


@given(
    st.lists(
        st.one_of(
            st.tuples(*map(st.sampled_from, SIMILAR)),
            st.lists(st.sampled_from([line for lines in SIMILAR for line in lines]), max_size=6),
            st.just("age"),
        ),
        max_size=60,
    ),
    st.booleans(),
)
@settings(BY_THE_BOOK, max_examples=300)
def test_blocks_that_have_much_in_common_come_to_what_they_do_alone(steps: list[Any], trusted: bool) -> None:
    bench = Remembering(trusted=trusted)
    for step in steps:
        if step == "age":
            bench.memory.age()
            continue
        asked = b"".join(line + b"\r\n" for line in step) + b"\r\n"
        assert bench.ask(asked) == Remembering(trusted=trusted).ask(asked)


def test_a_block_that_differs_in_one_line_is_not_parsed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Remembering()
    for number in range(2):
        assert bench.ask(b"Host: a\r\nX-Number: %d\r\nAccept: */*\r\n\r\n" % number) is not None
    monkeypatch.setattr(bench.heads, "parse", lambda block: None)
    for number in (7, 12345):
        head = bench.ask(b"Host: a\r\nX-Number: %d\r\nAccept: */*\r\n\r\n" % number)
        assert head is not None
        assert head[0]["HTTP_X_NUMBER"] == str(number)
    # The gap may hold more lines, none that is there already, and never too many.
    head = bench.ask(b"Host: a\r\nX-Number: 3\r\nX-More: 4\r\nAccept: */*\r\n\r\n")
    assert head is not None
    assert (head[0]["HTTP_X_NUMBER"], head[0]["HTTP_X_MORE"]) == ("3", "4")
    many = b"".join(b"X-%d: a\r\n" % number for number in range(98))
    assert bench.ask(b"Host: a\r\n%sAccept: */*\r\n\r\n" % many) is not None
    for gap in (b"Host: a\r\n", b"X-Number: 3\r\nX-NUMBER: 3\r\n", b"X: \n\r\n", b"\r\n", b"X-98: a\r\n" + many):
        assert bench.ask(b"Host: a\r\n%sAccept: */*\r\n\r\n" % gap) is None
    bench.memory.age()
    assert bench.ask(b"Host: a\r\nX-Number: 7\r\nAccept: */*\r\n\r\n") is None, "forgotten with the rest"


def test_memory_is_bounded_when_everything_is_used_in_every_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Many clients, each with cookies of its own, each asking once a second or so.
    monkeypatch.setattr(Memory, "MAX_BYTES", 100_000)
    bench = Remembering()
    for generation in range(20):
        for number in range(20 * (generation + 1)):
            bench.ask(block(number, 500))
            bench.ask(block(number, 500))
        bench.memory.age()
        assert bench.size <= 2 * Memory.MAX_BYTES + 6 * 600


def test_hashes_of_blocks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "MAX_SEEN", 50)
    bench = Remembering()
    for number in range(200):
        bench.ask(block(number))
    assert len(bench.memory._seen) <= 50
    bench.memory.age()
    assert not bench.memory._seen


def test_names_of_fields_are_bounded() -> None:
    bench = Remembering()
    for number in range(3000):
        assert bench.ask(b"X-%d: a\r\n\r\n" % number) is not None
    assert len(bench.heads._keys) <= 1024
    # And later ones are parsed all the same.
    head = bench.ask(b"X-2999: b\r\n\r\n")
    assert head is not None
    assert head[0]["HTTP_X_2999"] == "b"


# ------------------------------------------------------------------- the request line


@given(request_lines(Setup()))
@settings(BY_THE_BOOK, max_examples=100)
def test_only_request_lines_that_gunicorn_takes_are_plain(line: str) -> None:
    setup = Setup({"limit_request_line": 0})
    lines = RequestLines(Limits(setup.config), Memory())
    ours = lines.check(line.encode("latin-1"))
    theirs = by_gunicorn(setup, line.encode("latin-1") + b"\r\n\r\n")
    if ours is not None:
        assert isinstance(theirs, Outcome)
        assert tuple(ours) == tuple(
            theirs.environ[key]
            for key in ("REQUEST_METHOD", "RAW_URI", "PATH_INFO", "QUERY_STRING", "SERVER_PROTOCOL")
        )


def test_request_lines_are_remembered_for_a_while() -> None:
    memory = Memory()
    lines = RequestLines(Limits(Setup().config), memory)
    result = lines.check(b"GET /a%20b?c HTTP/1.1")
    assert lines.known == {b"GET /a%20b?c HTTP/1.1": result}
    for number in range(3000):
        assert lines.check(b"GET /%d HTTP/1.1" % number) is not None
    assert len(lines.known) <= RequestLines.MAX_KNOWN
    memory.age()
    assert not lines.known
    assert lines.check(b"GET /" + b"a" * 1000 + b" HTTP/1.1") is not None
    assert lines.check(b"GET nowhere HTTP/1.1") is None
    assert not lines.known, "neither what is large nor what is not plain"
