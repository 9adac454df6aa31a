"""Request heads that can be proven plain, without gunicorn's parser and mostly without parsing.

gunicorn's Python parser is the reference for what is accepted and what environ holds. It takes
about 60 microseconds for a browser's head. This module serves the heads for which the outcome is
beyond doubt (one strict pattern for the request line, known-good names and printable values for
the fields) and says None for all others, which then go to gunicorn's parser with their bytes
untouched. It never refuses anything itself.

What a kept-alive client sends again and again is its header block, byte for byte. So the result
is kept for blocks that were seen twice within seconds, looked up by the exact bytes after the
request line, separately for each listener and for peers that are trusted with forwarding headers
and those that are not, because the result depends on these. Request lines that were found plain
are kept as well, apart from the blocks, and so are single field lines, for blocks of which only a
part is new. Blocks and lines hold cookies: they are forgotten seconds after their last use.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple, Protocol

from gunicorn import util
from gunicorn.http.message import DEFAULT_MAX_HEADERFIELD_SIZE, MAX_HEADERS, MAX_REQUEST_LINE, TOKEN_RE

# RFC 9112 3: origin-form only, and of RFC 3986's characters those which urllib.parse.urlsplit
# and percent-decoding leave alone; "//" at the start, "#" and CONNECT take the long way.
_REQUEST_LINE = re.compile(
    r"(?!CONNECT )([A-Z]{3,20}) ((/(?!/)[A-Za-z0-9\-._~!$&'()*+,;=:@/%]*)(?:\?([!\"$-~]*))?) (HTTP/1\.[01])"
)

#: Bytes of a head up to which the event loop itself waits for the rest of it.
MAX_WAITING_HEAD = 16384

#: Fields that decide about framing or protocol in ways only gunicorn's parser may judge.
_NEVER_PLAIN = frozenset(("EXPECT", "TRANSFER-ENCODING", "HTTP2-SETTINGS"))
_WITHOUT_PREFIX = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}
#: No request: nothing that comes is equal to None.
_NONE: tuple[bytes | None, RequestLine, Head] = (None, ("", "", "", "", ""), ({}, None, 0))
#: Keys of environ that other parts of a :data:`Head` depend on, beside the secure scheme headers'.
_DECISIVE = frozenset(("CONTENT_LENGTH", "HTTP_CONNECTION", "HTTP_HOST"))
#: Names an application's clients really use are few; beyond this they are not remembered.
_MAX_NAMES = 1024


# Plain tuples: to take one with named fields apart takes 0.1 µs, ten times as long.

#: What a request line comes to: the method; the target as it was sent (``RAW_URI``); the path,
#: percent-decoded and without ``SCRIPT_NAME``; the query; ``HTTP/1.0`` or ``HTTP/1.1``.
RequestLine = tuple[str, str, str, str, str]

#: What a header block comes to: a template of environ, with the fields and all else that does not
#: change from request to request; whether ``Connection`` asked for close (True), for keep-alive
#: (False) or for neither (None); the bytes of body that follow.
Head = tuple[dict[str, Any], bool | None, int]


class Shape(NamedTuple):
    """A header block with a gap: what the last two new blocks had in common around lines that differed.

    A client whose every request has an identifier or a cookie of its own sends blocks that are new
    each time, and the same but for that.
    """

    before: bytes
    after: bytes
    #: What the lines before and after come to.
    head: Head
    #: How many lines these are.
    fields: int


class Limits:
    """gunicorn's limits on heads, with its rules for values that are out of range.

    :param cfg: gunicorn's configuration
    """

    __slots__ = ("field_size", "fields", "line")

    def __init__(self, cfg: Any) -> None:
        line = cfg.limit_request_line
        #: Longest request line in bytes; 0 in the setting means no limit.
        self.line = MAX_REQUEST_LINE if line < 0 or line > MAX_REQUEST_LINE else line or 1 << 30
        fields = cfg.limit_request_fields
        self.fields = fields if 0 < fields <= MAX_HEADERS else MAX_HEADERS
        self.field_size = cfg.limit_request_field_size or DEFAULT_MAX_HEADERFIELD_SIZE


class Remembering(Protocol):
    """What remembers something of requests."""

    def age(self) -> None:
        """Begin a new generation."""


class Memory:
    """A bound on what all :class:`Heads` of a worker remember together, and how they forget.

    There are two generations: what is used moves to the young one, and :meth:`age` drops the old.
    """

    MAX_BYTES = 4 << 20
    MAX_BLOCK = 8192
    MAX_SEEN = 16384

    def __init__(self) -> None:
        self._all: list[Remembering] = []
        self._bytes = 0
        self._seen: set[int] = set()

    def join(self, one: Remembering) -> None:
        """Have *one* forget with the others."""
        self._all.append(one)

    def worth_keeping(self, block: bytes) -> bool:
        """Whether *block*, or a line of one, came before in this generation, and is not too large to keep.

        Remembering the hash alone first keeps clients whose blocks never repeat from filling the
        memory with dictionaries that nobody will ask for.
        """
        digest = hash(block)
        if digest not in self._seen:
            if len(self._seen) < self.MAX_SEEN:
                self._seen.add(digest)
            return False
        return len(block) <= self.MAX_BLOCK

    def charge(self, block: bytes) -> None:
        """Count *block*, or a line of one, as kept in the young generation."""
        # A dictionary and its strings take about six times the bytes they were parsed from.
        self._bytes += 6 * len(block)
        if self._bytes > self.MAX_BYTES:
            self.age()

    def age(self) -> None:
        """Begin a new generation; what was not used during the last one is forgotten."""
        self._seen.clear()
        self._bytes = 0
        for one in self._all:
            one.age()


class RequestLines:
    """Checks request lines, and remembers those that are plain.

    :param limits: the limits beyond which gunicorn's parser refuses
    :param memory: what says when to forget
    """

    MAX_KNOWN = 1024
    #: Longest line that is kept.
    MAX_LINE = 512

    def __init__(self, limits: Limits, memory: Memory) -> None:
        self.known: dict[bytes, RequestLine] = {}
        self._limit = limits.line
        self._script_name = script_name()
        memory.join(self)

    def age(self) -> None:
        """Forget them all: checking one again costs little."""
        self.known.clear()

    def check(self, line: bytes) -> RequestLine | None:
        """The result for a request line, without its CRLF; None if it is not plain."""
        match = _REQUEST_LINE.fullmatch(line.decode("latin-1"))
        if match is None or len(line) > self._limit:
            return None
        method, target, path, query, protocol = match.groups("")
        if not path.startswith(self._script_name):
            return None
        path = path[len(self._script_name) :]
        if "%" in path:
            path = util.unquote_to_wsgi_str(path)
        result = method, target, path, query, protocol
        if len(self.known) < self.MAX_KNOWN and len(line) <= self.MAX_LINE:
            self.known[line] = result
        return result


class Heads:
    """Parses header blocks that come from one kind of peer on one listener.

    :param cfg: gunicorn's configuration
    :param limits: the limits beyond which gunicorn's parser refuses
    :param template: the part of environ that every request here has
    :param trusted: whether the peer may set the scheme by ``secure_scheme_headers``
    :param memory: where remembered blocks are counted
    """

    #: Longest field line that is kept.
    MAX_LINE = 1024

    def __init__(
        self, cfg: Any, limits: Limits, template: dict[str, Any], trusted: bool, memory: Memory
    ) -> None:
        self.trusted = trusted
        self.template = template
        self.young: dict[bytes, Head] = {}
        self.old: dict[bytes, Head] = {}
        #: The last request with a block that was known and no body, whole, and what it came to. Where the
        #: next one is the same to the byte, to compare them takes a tenth of what looking up takes.
        self.latest = _NONE
        #: Field lines with what they come to. Where a block is new, most of its lines are not: a browser
        #: changes a cookie or the referring page, and the rest need not be looked at again.
        self.fields: dict[bytes, tuple[str, str]] = {}
        #: The lines of the last block that was parsed, and what it has in common with the one before.
        self._lines: list[bytes] = []
        self._shape: Shape | None = None
        self._limits = limits
        self._memory = memory
        self._keys: dict[str, str] = {}
        self._schemes = (
            [(_environ_key(name), value) for name, value in cfg.secure_scheme_headers.items() if "_" not in name]
            if trusted
            else []
        )
        self._scheme_keys = frozenset(key for key, _ in self._schemes)
        self._decisive = _DECISIVE | self._scheme_keys
        self._never_plain = _NEVER_PLAIN | ({"UPGRADE"} if cfg.http2_cleartext in ("upgrade", "both") else set())
        memory.join(self)

    def age(self) -> None:
        """Forget what was not used since the last call."""
        self.old = self.young
        self.young = {}
        self.latest = _NONE
        self.fields.clear()
        self._lines = []
        self._shape = None

    def lookup(self, block: bytes) -> Head | None:
        """The result for a header block, from memory or parsed; None if it is not plain.

        :param block: everything after the request line, the empty line at the end included
        """
        head = self.old.get(block)
        if head is None:
            head = self._fill_in(block) or self.parse(block)
            if head is None or not self._memory.worth_keeping(block):
                return head
        self._memory.charge(block)
        self.young[block] = head
        return head

    def parse(self, block: bytes) -> Head | None:
        """The result for a header block that was not seen lately; None if it is not plain."""
        lines = block[:-4].split(b"\r\n") if len(block) > 2 else []
        if len(lines) > self._limits.fields:
            return None
        environ = self.template.copy()
        size = len(environ)
        known = self.fields
        fresh: list[tuple[bytes, tuple[str, str]]] = []
        for line in lines:
            field = known.get(line)
            if field is None:
                field = self._field(line)
                if field is None:
                    return None
                fresh.append((line, field))
            environ[field[0]] = field[1]
        if len(environ) - size != len(lines):
            return None  # Repeated fields are joined, or refused, by gunicorn's rules.
        length = environ.get("CONTENT_LENGTH", "0")
        if length != "0" and not (length.isdecimal() and length.isascii() and len(length) <= 18):
            return None
        if not environ.keys().isdisjoint(self._scheme_keys) and not self._set_scheme(environ):
            return None
        if "SERVER_NAME" not in environ and not self._set_server(environ):
            return None
        connection = environ.get("HTTP_CONNECTION")
        close = None
        if connection is not None:
            connection = connection.lower()
            close = True if connection == "close" else False if connection == "keep-alive" else None
        for line, field in fresh:
            if len(line) <= self.MAX_LINE and self._memory.worth_keeping(line):
                self._memory.charge(line)
                known[line] = field
        head = environ, close, int(length)
        if len(block) <= self._memory.MAX_BLOCK:
            if len(lines) == len(self._lines):
                self._make_shape(lines, head)
            self._lines = lines
        return head

    def _make_shape(self, lines: list[bytes], head: Head) -> None:
        """Keep what *lines* have in common with the last block's, which were as many."""
        differ = [number for number, pair in enumerate(zip(lines, self._lines, strict=True)) if pair[0] != pair[1]]
        if not differ:
            return
        first, last = differ[0], differ[-1] + 1
        environ = head[0].copy()
        for line in lines[first:last]:
            field = self.fields.get(line) or self._field(line)
            if field is None or field[0] in self._decisive:
                return
            del environ[field[0]]
        before = b"".join([line + b"\r\n" for line in lines[:first]])
        after = b"".join([b"\r\n" + line for line in lines[last:]]) + b"\r\n\r\n"
        self._shape = Shape(before, after, (environ, head[1], head[2]), len(lines) - (last - first))

    def _fill_in(self, block: bytes) -> Head | None:
        """The result for a block of the shape, its gap filled, None for any other."""
        shape = self._shape
        if shape is None:
            return None
        before, after, (environ, close, length), count = shape
        if not (block.startswith(before) and block.endswith(after, len(before))):
            return None
        environ = environ.copy()
        lines = block[len(before) : -len(after)].split(b"\r\n")
        for line in lines:
            field = self.fields.get(line) or self._field(line)
            # Repeated fields, and those that decide about more than themselves, are for parse().
            if field is None or field[0] in environ or field[0] in self._decisive:
                return None
            environ[field[0]] = field[1]
        return (environ, close, length) if count + len(lines) <= self._limits.fields else None

    def _field(self, line: bytes) -> tuple[str, str] | None:
        """The environ key and the value of a field line, without its CRLF; None if it is not plain."""
        text = line.decode("latin-1")
        name, colon, value = text.partition(":")
        key = self._keys.get(name) or self._key(name)
        # No control characters, so no bare CR or LF either (RFC 9110 5.5). isprintable() also leaves
        # out tabs and C1 controls, which are allowed but rare.
        if not key or not colon or not text.isprintable() or len(line) + 2 > self._limits.field_size:
            return None
        return key, value.strip(" ")

    def _key(self, name: str) -> str | None:
        """The environ key of a field, or None for a name that is not plain."""
        # Underscores map to the same key as hyphens: header_map decides, in gunicorn's parser.
        if "_" in name or not TOKEN_RE.fullmatch(name):
            return None
        upper = name.upper()
        if upper in self._never_plain:
            return None
        key = _environ_key(upper)
        if len(self._keys) < _MAX_NAMES:
            self._keys[name] = key
        return key

    def _set_scheme(self, environ: dict[str, Any]) -> bool:
        """Apply ``secure_scheme_headers``; False when two of them disagree."""
        said = {"https" if environ[key] == value else "http" for key, value in self._schemes if key in environ}
        if said:
            environ["wsgi.url_scheme"] = said.pop()
        return not said

    def _set_server(self, environ: dict[str, Any]) -> bool:
        """On a unix socket the ``Host`` field names the server, by the rule in gunicorn's ``wsgi.create``."""
        name, colon, port = environ.get("HTTP_HOST", "").partition(":")
        if not name or ":" in port:
            return False
        environ["SERVER_NAME"] = name
        environ["SERVER_PORT"] = port if colon else "80" if environ["wsgi.url_scheme"] == "http" else "443"
        return True


def _environ_key(name: str) -> str:
    """Where PEP 3333 has the value of the field *name*, which is in upper case."""
    return _WITHOUT_PREFIX.get(name) or "HTTP_" + name.replace("-", "_")


def script_name() -> str:
    """The path prefix that gunicorn takes from the process's environment (``SCRIPT_NAME``)."""
    return os.environ.get("SCRIPT_NAME", "")
