"""Arbitrary bytes through our fast path and through gunicorn's parser: the same request, or the same refusal.

The first byte of an input chooses how the server is configured and who asks, the second how many
requests the connection had; the rest is what comes over the wire. What is left behind a request is
the next one. ``__main__.py`` makes inputs; the test suite runs those with which it begins.
"""

from __future__ import annotations

from collections.abc import Iterator

from malformed import CASES
from test_heads import NOT_PLAIN, PLAIN, SPECIAL, FastServer, Outcome, Setup, compare

SETUPS = (
    Setup(),
    Setup({"header_map": "refuse", "forwarder_headers": "REMOTE_USER"}, peer=("10.1.2.3", 1)),
    Setup({"header_map": "dangerous", "forwarded_allow_ips": "*"}, server="/run/app.sock", peer=""),
    Setup({"limit_request_line": 40, "limit_request_fields": 3, "limit_request_field_size": 40}),
    Setup({"limit_request_line": 0, "limit_request_fields": 0, "limit_request_field_size": 0, "certfile": "a.pem"}),
    Setup(
        {
            "strip_header_spaces": True,
            "permit_obsolete_folding": True,
            "casefold_http_method": True,
            "permit_unconventional_http_method": True,
            "permit_unconventional_http_version": True,
        }
    ),
    Setup({"secure_scheme_headers": {"X_FORWARDED_PROTO": "https", "CONTENT-TYPE": "text/plain"}}),
    Setup({"http2_cleartext": "both"}, server=("::1", 443, 0, 0), peer=("::1", 7)),
    Setup(script_name="/app"),
)

#: Inputs that once broke the property.
FOUND: tuple[bytes, ...] = ()

#: What requests are made of, for a fuzzer that would not guess it.
WORDS = (
    *(b"GET ", b"POST ", b"CONNECT ", b"PRI ", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"HTTP/2.0", b"HTTP/1.2"),
    *(b"Host: a\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"),
    *(b"Connection: close\r\n", b"keep-alive", b"Content-Type: text/plain\r\n", b"X-Forwarded-Proto: https\r\n"),
    *(b"X-Forwarded-Ssl: on", b"Script_Name: /x\r\n", b"Remote_User: x\r\n", b"Upgrade: h2c\r\n", b"0\r\n\r\n"),
    *(b"HTTP2-Settings: AA\r\n", b"/app", b"http://", b"[::1]", b"//", b"%2F", b"\r\n", b"\r\n\r\n"),
    *(b"\xdf", b"\xb2", b"\x85", b"\xa0", b"\xad", b"\x1c", b"\x00", b"\x7f", b"\t", b"_", b"#", b"?"),
)


class Target:
    """The property, and servers to check it with, which are made once."""

    def __init__(self) -> None:
        self._servers: dict[int, FastServer] = {}

    def check(self, data: bytes) -> None:
        """The property, for one input.

        :raises AssertionError: where it does not hold
        """
        if len(data) < 2:
            return
        number = data[0] % len(SETUPS)
        setup = SETUPS[number]
        with setup.environment():
            server = self._servers.get(number)
            if server is None:
                server = self._servers[number] = FastServer(setup)
            for _ in range(2):  # so that an input alone decides what happens
                server.memory.age()
            requests, raw = data[1] % 2, data[2:]
            while raw and compare(server, raw, requests) == "plain":
                got = server.ask(raw, server.connect(requests))
                assert isinstance(got, Outcome)
                requests, raw = requests + 1, got.rest

    def close(self) -> None:
        """Give the descriptors back."""
        for server in self._servers.values():
            server.close()


def seeds() -> Iterator[bytes]:
    """What the tests have in tables, as inputs."""
    for number, raw in enumerate((*NOT_PLAIN.values(), *CASES.values())):
        yield bytes((0, number % 2)) + raw
    for number in range(len(SETUPS)):
        for _, raw in (*PLAIN.values(), *SPECIAL.values()):
            yield bytes((number, number % 2)) + raw
    yield from FOUND
