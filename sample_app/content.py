"""What both applications serve: pages, JSON, streams. Nothing here knows a web framework.

The templates keep to what Jinja and Django's template language have in common, so that each page is
written once. ``flask_app.py`` and ``django_app.py`` only connect URLs to what is here.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

HERE = Path(__file__).resolve().parent
TEMPLATES = HERE / "templates"
STATIC = HERE / "static"

#: Where KeepAliveMiddleware answers in both applications.
STATS_PATH = "/keepalive-stats"

#: How many small resources ``/resources`` loads.
RESOURCES = 30

#: Bytes read or made at a time, so that no upload or download is ever held in memory as a whole.
PIECE = 64 * 1024

#: The longest body that ``/api/echo`` takes, in bytes.
ECHO_LIMIT = 1 << 20

#: What ``/ws`` is configured with (simple-websocket); the size in bytes, the interval in seconds.
WEBSOCKET_OPTIONS = {"max_message_size": 1 << 16, "ping_interval": 25}

#: What ``environ["keepalive.connection"]`` tells; see docs of the worker for each.
FACTS = (
    "id", "requests", "reused", "age", "idle", "bytes_received", "bytes_sent", "requests_left", "timeout",
    "peer", "protocol", "tls",
)  # fmt: skip

#: Sent with every response: all that a page loads or asks comes from this application.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

NAVIGATION = (
    {"name": "home", "href": "/", "label": "Overview"},
    {"name": "resources", "href": "/resources", "label": "Resources"},
    {"name": "upload", "href": "/upload", "label": "Upload"},
    {"name": "stats", "href": STATS_PATH, "label": "Statistics"},
)


class Readable(Protocol):
    """What a request body is read from."""

    def read(self, size: int, /) -> bytes:
        """At most *size* bytes; none at the end."""


class Refused(Exception):
    """The request gets no more than a status and a sentence that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Page(NamedTuple):
    """The name of a template and what it is filled with."""

    template: str
    context: dict[str, Any]


# --- parameters ------------------------------------------------------------------------------

N = TypeVar("N", int, float)

_KINDS: dict[type, str] = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Parameter(Generic[N]):
    """A number in the query string, from *least* to *most*."""

    name: str
    kind: type[N]
    default: N
    least: N
    most: N

    def of(self, query: Mapping[str, str]) -> N:
        """The number in *query*, or the default where there is none.

        :raises Refused: 400 for anything but a number within the bounds
        """
        text = query.get(self.name)
        if text is None:
            return self.default
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        if value is None or not self.least <= value <= self.most:
            what = f"{_KINDS[self.kind]} from {self.least} to {self.most}"
            raise Refused(400, f"{self.name} must be {what}, not {text[:40]!r}.")
        return value


SECONDS = Parameter("seconds", float, default=1, least=0, most=30)
LINES = Parameter("lines", int, default=10, least=1, most=1000)
EVENTS = Parameter("events", int, default=10, least=1, most=1000)
LINE_PAUSE = Parameter("pause", float, default=0.2, least=0, most=5)
EVENT_PAUSE = Parameter("pause", float, default=1, least=0, most=30)
MEGABYTES = Parameter("mb", int, default=10, least=0, most=1000)
KEEP_IDLE = Parameter("keep_idle", float, default=10, least=0, most=60)


def keepalive_wanted(query: Mapping[str, str]) -> bool:
    """What the switch ``keepalive=on|off`` says; on where it is missing.

    :raises Refused: 400 for anything else
    """
    text = query.get("keepalive", "on")
    if text not in ("on", "off"):
        raise Refused(400, f"keepalive must be on or off, not {text[:40]!r}.")
    return text == "on"


# --- the connection --------------------------------------------------------------------------


def connection_facts(environ: WSGIEnvironment) -> dict[str, Any] | None:
    """What the worker tells about the connection of this request; None under any other server."""
    connection = environ.get("keepalive.connection")
    if connection is None:
        return None
    facts = {name: getattr(connection, name) for name in FACTS}
    return {name: round(fact, 3) if isinstance(fact, float) else fact for name, fact in facts.items()}


def response_headers(environ: WSGIEnvironment) -> dict[str, str]:
    """The headers that every response of the application carries.

    With a worker's process id, the id of a connection is unique on the whole server.
    """
    headers = dict(SECURITY_HEADERS)
    # A page says which connection it came over, so it must not come out of a cache; the files beside
    # it may, after the browser has asked whether they are still the same.
    headers["Cache-Control"] = "no-cache" if environ["PATH_INFO"].startswith("/static/") else "no-store"
    connection = environ.get("keepalive.connection")
    if connection is not None:
        headers["X-Connection-Id"] = str(connection.id)
        headers["X-Connection-Requests"] = str(connection.requests)
        headers["X-Worker-Pid"] = str(os.getpid())
    return headers


def _seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def _facts_in_words(facts: dict[str, Any]) -> list[tuple[str, str]]:
    left = facts["requests_left"]
    return [
        ("Connection", f"no. {facts['id']}"),
        ("Request on it", f"no. {facts['requests']}"),
        ("Open for", _seconds(facts["age"])),
        ("Idle before this", _seconds(facts["idle"])),
        ("May stay idle", _seconds(facts["timeout"])),
        ("Requests left", "no limit" if left is None else str(left)),
        ("Received", _size(facts["bytes_received"])),
        ("Sent before this", _size(facts["bytes_sent"])),
        ("Protocol", facts["protocol"] + (" over TLS" if facts["tls"] else "")),
        ("Your end", facts["peer"] or "unix socket"),
    ]


# --- pages -----------------------------------------------------------------------------------


def _page(template: str, environ: WSGIEnvironment, framework: str, **context: Any) -> Page:
    server = environ.get("SERVER_SOFTWARE", "an unnamed server")
    return Page(
        template,
        {
            "connected": "keepalive.connection" in environ,
            "framework": framework,
            "links": NAVIGATION,
            "server": server,
            "stats_path": STATS_PATH,
            **context,
        },
    )


def home(environ: WSGIEnvironment, framework: str, websocket: bool) -> Page:
    """The overview, with everything to try.

    :param websocket: whether this application has ``/ws``
    """
    facts = connection_facts(environ)
    return _page(
        "home.html",
        environ,
        framework,
        current="home",
        connection_key=f"{os.getpid()}-{facts['id']}" if facts else "",
        events=EVENTS,
        event_pause=EVENT_PAUSE,
        facts=_facts_in_words(facts) if facts else [],
        keep_idle=KEEP_IDLE,
        line_pause=LINE_PAUSE,
        lines=LINES,
        megabytes=MEGABYTES,
        resources=RESOURCES,
        seconds=SECONDS,
        websocket=websocket,
    )


def resources_page(environ: WSGIEnvironment, framework: str, query: Mapping[str, str]) -> Page:
    """The page that loads thirty resources and counts their connections.

    :raises Refused: 400 for a bad ``keepalive``
    """
    return _page(
        "resources.html",
        environ,
        framework,
        current="resources",
        keepalive="on" if keepalive_wanted(query) else "off",
        numbers=range(1, RESOURCES + 1),
        resources=RESOURCES,
    )


def upload_page(environ: WSGIEnvironment, framework: str, received: dict[str, Any] | None = None) -> Page:
    """The form, and under it what :func:`digest` found in the upload that it answers."""
    size = f"{received['size']:,}" if received else ""
    return _page("upload.html", environ, framework, current="upload", received=received, size=size)


#: What is said of errors that the content does not know about.
ERRORS = {
    404: "There is no page at this address.",
    405: "This address does not take this method.",
    500: "The application failed. Its log says why.",
}


def error_message(status: int) -> str:
    """A sentence for an error that came without one."""
    return ERRORS.get(status) or HTTPStatus(status).description


def error_page(environ: WSGIEnvironment, framework: str, status: int, message: str) -> Page:
    """A page that says what went wrong."""
    known = HTTPStatus(status)
    # Python 3.10 writes a member of an enumeration of numbers by its name.
    shown = {"status": known.value, "title": known.phrase, "message": message}
    return _page("error.html", environ, framework, current="", **shown)


def wants_html(environ: WSGIEnvironment) -> bool:
    """Whether a person is to read the answer: scripts and command-line tools get JSON."""
    return "text/html" in environ.get("HTTP_ACCEPT", "")


# --- resources -------------------------------------------------------------------------------


def resource(number: int, environ: WSGIEnvironment, query: Mapping[str, str]) -> str:
    """One of the thirty: a small SVG tile with its number on it.

    :raises Refused: 404 for a number without a resource, 400 for a bad ``keepalive``
    """
    if not 1 <= number <= RESOURCES:
        raise Refused(404, f"The resources are numbered from 1 to {RESOURCES}.")
    connection = environ.get("keepalive.connection")
    if not keepalive_wanted(query) and connection is not None:
        # An application must not set Connection itself (PEP 3333): it asks the worker to.
        connection.close()
    hue = 360 * (number - 1) // RESOURCES
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="48" height="48" viewBox="0 0 48 48" role="img">'
        f"<title>Resource {number}</title>"
        f'<rect width="48" height="48" rx="10" fill="hsl({hue}, 52%, 34%)"/>'
        '<text x="24" y="31" text-anchor="middle" font-family="system-ui, sans-serif" font-size="19" '
        f'font-weight="600" fill="#fff">{number}</text></svg>\n'
    )


# --- JSON ------------------------------------------------------------------------------------


def to_json(value: dict[str, Any]) -> str:
    """JSON that a person can read as well."""
    return json.dumps(value, indent=2) + "\n"


def _time() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def now(environ: WSGIEnvironment, query: Mapping[str, str]) -> str:
    """The time as JSON, and what the worker knows of the connection.

    With ``keep_idle`` in *query* the connection gets that idle timeout from now on.

    :raises Refused: 400 for a bad ``keep_idle``
    """
    if KEEP_IDLE.name in query:
        seconds = KEEP_IDLE.of(query)
        if "keepalive.connection" in environ:
            environ["keepalive.connection"].keep_idle(seconds)
    return to_json(
        {
            "time": _time(),
            "worker_pid": os.getpid(),
            "connection": connection_facts(environ),
        }
    )


def echo(body: Readable, environ: WSGIEnvironment) -> str:
    """The JSON that was sent, and over which connection it came.

    :raises Refused: 415, 413 or 400 for what is not JSON of a reasonable size
    """
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "Send JSON, with the header Content-Type: application/json.")
    received = bytearray()
    for piece in pieces(body):
        received += piece
        if len(received) > ECHO_LIMIT:
            raise Refused(413, f"Send at most {ECHO_LIMIT} bytes.")
    try:
        # Python reads NaN and 1e999, for which JSON has no words, and writing them is refused here.
        return json.dumps(
            {"echo": json.loads(received), "connection": connection_facts(environ)}, allow_nan=False
        )
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is not JSON: {str(error)[:100]}.") from error


def slow(query: Mapping[str, str]) -> str:
    """Wait, then answer; under gevent only this request waits.

    :raises Refused: 400 for bad ``seconds``
    """
    seconds = SECONDS.of(query)
    begin = time.monotonic()
    time.sleep(seconds)
    return to_json({"asked_for": seconds, "waited": round(time.monotonic() - begin, 3)})


# --- streams ---------------------------------------------------------------------------------


def lines(query: Mapping[str, str]) -> Iterator[bytes]:
    """Lines of text, each made when it is due.

    :raises Refused: 400 for bad ``lines`` or ``pause``, before the first line
    """
    return _lines(LINES.of(query), LINE_PAUSE.of(query))


def _lines(count: int, pause: float) -> Iterator[bytes]:
    begin = time.monotonic()
    for number in range(1, count + 1):
        if number > 1:
            time.sleep(pause)
        yield f"line {number} of {count}, after {time.monotonic() - begin:.2f} s\n".encode()


def events(query: Mapping[str, str]) -> Iterator[bytes]:
    """Server-sent events, the last of which says that it is the last.

    :raises Refused: 400 for bad ``events`` or ``pause``, before the first event
    """
    return _events(EVENTS.of(query), EVENT_PAUSE.of(query))


def _events(count: int, pause: float) -> Iterator[bytes]:
    for number in range(1, count + 1):
        if number > 1:
            time.sleep(pause)
        told = json.dumps({"number": number, "of": count, "time": _time()})
        yield f"id: {number}\nevent: tick\ndata: {told}\n\n".encode()
    # Without it a browser would take the end for a lost connection and ask again.
    yield b"event: end\ndata: {}\n\n"


# --- upload and download ---------------------------------------------------------------------


def pieces(body: Readable) -> Iterator[bytes]:
    """The body, a piece at a time."""
    while piece := body.read(PIECE):
        yield piece


def digest(body: Readable) -> dict[str, Any]:
    """Size and SHA-256 of *body*, which may be of any size."""
    size = 0
    sha256 = hashlib.sha256()
    for piece in pieces(body):
        size += len(piece)
        sha256.update(piece)
    return {"size": size, "sha256": sha256.hexdigest()}


#: The same bytes in every worker and every run, and no compression shortens them.
_DOWNLOAD_PIECE = random.Random(2616).randbytes(PIECE)


class Download(NamedTuple):
    """A body of known size, made while it is sent."""

    size: int
    headers: dict[str, str]
    body: Iterator[bytes]


def download(query: Mapping[str, str]) -> Download:
    """A file of as many MB (of 1,000,000 bytes) as asked for.

    :raises Refused: 400 for bad ``mb``
    """
    megabytes = MEGABYTES.of(query)
    size = megabytes * 1_000_000
    name = f'attachment; filename="{megabytes}mb.bin"'
    headers = {"Content-Length": str(size), "Content-Disposition": name}
    return Download(size, headers, _noise(size))


def _noise(size: int) -> Iterator[bytes]:
    for _ in range(size // PIECE):
        yield _DOWNLOAD_PIECE
    if size % PIECE:
        yield _DOWNLOAD_PIECE[: size % PIECE]
