"""``KeepAliveMiddleware``: tells clients how long connections stay, and operators how they do.

Plain WSGI (PEP 3333). It knows the worker only by two keys of environ, and where they are missing
it changes nothing:

``keepalive.connection``  the connection; ``advertise`` on it has the worker send ``Keep-Alive``
``keepalive.statistics``  gives the report of the whole server
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_to_bytes

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header
from werkzeug.wrappers import Response

from keepalive_worker import prometheus, settings
from keepalive_worker.statistics import MOST_CONNECTIONS, SORTS, json_parts

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

FORMATS = ("html", "json", "prometheus")

#: What a proxy adds to a request that it passes on; also whatever begins with X-Forwarded.
_FORWARDING = frozenset(("HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA"))
_X_FORWARDED = "HTTP_X_FORWARDED"

#: A request target in origin or absolute form (RFC 9112 3.2); its path as it stands there.
_TARGET = re.compile(r"(?:https?://[^/?#]*)?([^?#]*)(?:\?[^#]*)?", re.IGNORECASE)


class ParameterError(Exception):
    """A request's query has something in it that the endpoint does not know."""


class KeepAliveMiddleware:
    """Announces keep-alive terms to clients and, at ``stats_path``, answers with statistics.

    On a response that leaves the connection open, clients get ``Keep-Alive: timeout=T`` or
    ``Keep-Alive: timeout=T, max=M``: the seconds for which an idle connection is promised to stay
    open, and how many more requests it takes. Clients that heed it (Node's fetch, for one) do not
    lose requests to connections that are just being closed.

    All parameters but the first are keyword-only.

    :param app: the WSGI application
    :param stats_path: path of the debug endpoint as it stands in a URL, or None for no endpoint
    :param allow: IP addresses and networks that may read it, for requests straight from there
    :param token: secret that lets anybody read it, sent as ``Authorization: Bearer TOKEN``
    :param advertise: whether to send ``Keep-Alive``
    :raises TypeError: *app* cannot be called
    :raises ValueError: another parameter is not as it must be; the message names it
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        stats_path: str | None = None,
        allow: str | Sequence[str] | AbstractSet[str] = ("127.0.0.1", "::1"),
        token: str | None = None,
        advertise: bool = True,
    ) -> None:
        if not callable(app):
            raise TypeError(f"app must be a WSGI application (PEP 3333), not {app!r}")
        self._app = app
        self._stats_path: str | None = _checked("stats_path", settings.path(), stats_path)
        networks = _checked("allow", settings.networks(), allow)
        self._allow = [ip_network(network) for network in networks]
        secret = _checked("token", settings.token(), token, secret=True)
        self._token: bytes | None = None if secret is None else secret.encode("ascii")
        self._advertise: bool = _checked("advertise", settings.switch(), advertise)
        #: What PATH_INFO is for a request to stats_path; None is never equal to it.
        self._path_info = None
        if self._stats_path is not None:
            self._path_info = unquote_to_bytes(self._stats_path).decode("latin-1")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """As PEP 3333 has it."""
        if self._advertise:
            connection = environ.get("keepalive.connection")
            if connection is not None:
                connection.advertise = True
        if environ.get("PATH_INFO", "") == self._path_info and self._is_spelled_out(environ):
            return self._answer(environ)(environ, start_response)
        return self._app(environ, start_response)

    # ------------------------------------------------------------------- who may see it

    def _is_spelled_out(self, environ: WSGIEnvironment) -> bool:
        """Whether the path stands in the request target letter for letter.

        ``/%73tats`` decodes to ``/stats``, but a proxy in front that keeps ``/stats`` from the
        public by comparing text would let it pass. Only our worker's environ has the target.
        """
        target = environ.get("RAW_URI")
        if target is None or self._stats_path is None:
            return True
        match = _TARGET.fullmatch(target)
        if match is None or not match[1].endswith(self._stats_path):
            return False
        mount = match[1][: -len(self._stats_path)]
        return unquote_to_bytes(mount).decode("latin-1") == str(environ.get("SCRIPT_NAME", ""))

    def _may_see(self, environ: WSGIEnvironment) -> bool:
        return self._has_token(environ) or (self._comes_straight(environ) and self._is_allowed(environ))

    def _has_token(self, environ: WSGIEnvironment) -> bool:
        """Whether the request has ``Authorization: Bearer`` with the right token (RFC 6750 2.1)."""
        # Not werkzeug's Authorization: it takes a token with "=" in it for a list of parameters.
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if self._token is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip(" ").encode("latin-1", "replace"), self._token)

    def _comes_straight(self, environ: WSGIEnvironment) -> bool:
        """Whether REMOTE_ADDR is who sent the request, as far as can be told."""
        if any(key in _FORWARDING or key.startswith(_X_FORWARDED) for key in environ):
            return False
        if "PROXY_PROTOCOL" in environ:
            return False
        connection = environ.get("keepalive.connection")
        if connection is None:
            return True
        if connection.has_front:
            return False
        # Somebody may have put another address into environ (PROXY protocol, an outer middleware).
        peer = str(connection.peer)
        return peer.rpartition(":")[0].strip("[]") == str(environ.get("REMOTE_ADDR", ""))

    def _is_allowed(self, environ: WSGIEnvironment) -> bool:
        """Whether REMOTE_ADDR is in ``allow``; what is no IP address, as on a unix socket, is not."""
        try:
            address = ip_address(environ.get("REMOTE_ADDR", ""))
        except ValueError:
            return False
        addresses = [address]
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            addresses.append(address.ipv4_mapped)  # An IPv4 peer on a socket for both.
        return any(each in network for each in addresses for network in self._allow)

    # ------------------------------------------------------------------- the endpoint

    def _answer(self, environ: WSGIEnvironment) -> Response:
        if not self._may_see(environ):
            return _refusal(
                403,
                "Not allowed. These statistics are for the addresses in --stats-allow (the middleware's allow), asking"
                " directly and not through a proxy, and for requests with Authorization: Bearer and the --stats-token"
                " (its token).",
            )
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refusal(405, "Only GET and HEAD are allowed here.", Allow="GET, HEAD")
        try:
            format_, sort, limit = _parameters(environ)
        except ParameterError as error:
            return _refusal(400, str(error))
        statistics = environ.get("keepalive.statistics")
        if statistics is None:
            server = environ.get("SERVER_SOFTWARE", "this server")
            return _refusal(
                503,
                f"No connection data is available: {server} is not running keepalive-worker's worker class."
                " Start the application with: gunicorn -k keepalive_worker",
            )
        if format_ == "prometheus":
            return _response(prometheus.render(statistics.report(limit=0)), prometheus.CONTENT_TYPE)
        report = statistics.report(sort=sort, limit=limit)
        if format_ == "json":
            return _response(_in_turns(json_parts(report), statistics), "application/json")
        from keepalive_worker import page

        nonce = secrets.token_urlsafe(16)
        headers = {
            "Content-Security-Policy": page.content_security_policy(nonce),
            "Referrer-Policy": "no-referrer",
        }
        document = _in_turns(page.parts(report, nonce=nonce), statistics)
        return _response(document, "text/html; charset=utf-8", headers)


def _checked(name: str, kind: settings.Kind, value: object, *, secret: bool = False) -> Any:
    """*value* as the setting of the same meaning reads it."""
    try:
        return kind.read(value)
    except ValueError as error:
        given = "" if secret else f", not {value!r}"
        detail = f" ({error})" if str(error) else ""
        raise ValueError(f"{name} must be {kind.accepts}{given}{detail}") from None


def _parameters(environ: WSGIEnvironment) -> tuple[str, str, int]:
    """The parameters ``format``, ``sort`` and ``limit``.

    :raises ParameterError: one is not known, is there twice, or has a value that it cannot have
    """
    try:
        pairs = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True, max_num_fields=10)
    except ValueError:
        raise ParameterError("format, sort and limit are all the parameters there are.") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in ("format", "sort", "limit"):
            raise ParameterError(f"{name!r} is not a parameter: there are format, sort and limit.")
        if name in given:
            raise ParameterError(f"{name} must not be given twice.")
        given[name] = value
    format_ = _choice("format", given.get("format"), FORMATS) or _preferred(environ)
    sort = _choice("sort", given.get("sort"), SORTS) or SORTS[0]
    text = given.get("limit", "100")
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) <= MOST_CONNECTIONS):
        raise ParameterError(f"limit must be a whole number from 0 to {MOST_CONNECTIONS}, not {text!r}.")
    return format_, sort, int(text)


def _choice(name: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value is None or value in choices:
        return value
    raise ParameterError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, not {value!r}.")


def _preferred(environ: WSGIEnvironment) -> str:
    """``html`` for browsers, which like it better than JSON and say so; ``json`` for all others."""
    accept = parse_accept_header(environ.get("HTTP_ACCEPT"), MIMEAccept)
    return "html" if accept.quality("text/html") > accept.quality("application/json") else "json"


def _in_turns(parts: Iterator[bytes], statistics: Any) -> bytes:
    """All parts together; other requests go first between one and the next."""
    done: list[bytes] = []
    for part in parts:
        done.append(part)
        statistics.pause()
    return b"".join(done)


def _response(
    body: bytes, content_type: str, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    response = Response(body, status, content_type=content_type)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    for name, value in (headers or {}).items():
        response.headers[name] = value
    return response


def _refusal(status: int, text: str, **headers: str) -> Response:
    return _response(f"{text}\n".encode("utf-8", "replace"), "text/plain; charset=utf-8", headers, status)
