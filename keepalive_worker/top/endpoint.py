"""Fetches reports from a server, and tells in words what is wrong where none is to be had."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

from keepalive_worker.top.report import is_report, printable

#: Seconds to wait for the server each time. It answers within half a second, also for stuck workers.
TIMEOUT = 5.0

#: Bytes; ten thousand connections are 3 MB.
_MOST_BYTES = 64_000_000

#: How the endpoint's answer begins under another WSGI server.
_NO_DATA = "No connection data is available"


class NoReportError(Exception):
    """The server gave no report; the message says why and what to do."""

    #: What the command exits with.
    exit_status = 1


class AwayError(NoReportError):
    """Nobody answers, or only somebody in front of the server."""

    exit_status = 3


class RefusedError(NoReportError):
    """The server answers, but does not let us see."""

    exit_status = 4


class NotOursError(NoReportError):
    """What answers is not the endpoint of a keepalive-worker."""

    exit_status = 5


class Endpoint:
    """A debug endpoint, asked over one connection as long as that lasts.

    :param url: where it is; ``http://`` may be left out
    :param token: the server's ``--stats-token``
    :param timeout: seconds to wait for the server
    :raises ValueError: *url* is none, with a message for the user
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = TIMEOUT) -> None:
        if "://" not in url:
            url = f"http://{url}"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{url} is not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is not the URL of a web page: it has to begin with http:// or https://")
        if not url.isascii() or any(character <= " " for character in url):
            raise ValueError(f"{url!r} is not a URL: it has characters in it that have to be %-encoded")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path or '/'}"
        self._path = parts.path or "/"
        self._headers = {"Accept": "application/json", "User-Agent": "keepalive-top"}
        self._has_token = token is not None
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout = timeout
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection = kind(parts.hostname, port, timeout=timeout)

    def report(self, sort: str = "idle", limit: int = 100) -> dict[str, Any]:
        """The report of this moment.

        :raises NoReportError: there is none
        """
        target = f"{self._path}?{urlencode({'format': 'json', 'sort': sort, 'limit': limit})}"
        try:
            status, headers, body = self._get(target)
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise AwayError(
                f"{self.url}: the server's certificate is not trusted ({error.verify_message}). For one of your"
                " own authority, put its file into the environment variable SSL_CERT_FILE."
            ) from None
        except (OSError, HTTPException) as error:
            self.close()
            raise AwayError(f"{self.url} does not answer: {self._in_words(error)}") from None
        return self._read(status, headers, body)

    def close(self) -> None:
        """Close the connection; the next report opens another."""
        self._connection.close()

    def _get(self, target: str) -> tuple[int, dict[str, str], bytes]:
        kept = self._connection.sock is not None
        try:
            return self._exchange(target)
        except (ConnectionError, HTTPException):
            # A kept connection may have been closed since: that says nothing of the server.
            self.close()
            if not kept:
                raise
        return self._exchange(target)

    def _exchange(self, target: str) -> tuple[int, dict[str, str], bytes]:
        self._connection.request("GET", target, headers=self._headers)
        with contextlib.closing(self._connection.getresponse()) as response:
            return response.status, _fields(response), response.read(_MOST_BYTES)

    def _in_words(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"nothing came within {self._timeout:g} s."
        if isinstance(error, ConnectionRefusedError):
            return "connection refused. Is the server running, and is that its port?"
        if isinstance(error, socket.gaierror):
            return f"its name cannot be resolved ({error.strerror})."
        if isinstance(error, ssl.SSLError):
            return f"no TLS connection could be made ({error.reason}). Is it http:// and not https://?"
        if isinstance(error, OSError) and error.strerror:
            return f"{error.strerror[:1].lower()}{error.strerror[1:]}."
        return f"what came is no complete HTTP response ({type(error).__name__})."

    def _read(self, status: int, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        text = printable(body[:300].decode("utf-8", "replace").strip())
        if status in (401, 403):
            if self._has_token:
                raise RefusedError(f"{self.url} refuses ({status}): the token is not the server's --stats-token.")
            raise RefusedError(
                f"{self.url} refuses ({status}). Give the server's --stats-token as --token, or have it allow this"
                " machine's address (--stats-allow) and ask it directly, not through a proxy."
            )
        if text.startswith(_NO_DATA):
            raise NotOursError(f"{self.url}: {text}")
        if status in (502, 503, 504):
            raise AwayError(f"{self.url} answers {status}: what stands in front of the server does not reach it.")
        if 300 <= status < 400:
            raise NotOursError(f"{self.url} redirects to {printable(headers.get('location', '?'))}: give that URL.")
        if status != 200:
            raise NotOursError(f"{self.url} answers {status}. Is that the path which the server has as --stats-path?")
        try:
            report = json.loads(body)
        except ValueError:
            kind = printable(headers.get("content-type", "no content type"))
            raise NotOursError(self._not_ours(f"answers with {kind}, not with JSON")) from None
        if not is_report(report):
            raise NotOursError(self._not_ours("answers with other JSON"))
        return dict(report)

    def _not_ours(self, what: str) -> str:
        return f"{self.url} {what}: that is no keepalive-worker's endpoint. Give the URL that has its --stats-path."


def _fields(response: HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}
