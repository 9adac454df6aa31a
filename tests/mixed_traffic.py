"""Clients of all kinds at the same time: some that behave, whose every response is checked, and some that do not.

The polite ones keep their connections alive and use them as a connection pool does. The rude ones break
off, stall, reset, vanish or send what is no HTTP, each on connections of its own. Both go on, on threads,
until :meth:`MixedTraffic.stop`; what each does next is drawn from a seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import httpx
from harness import TIMEOUT, Client, Response, Server, TruncatedError, chunked, request
from malformed import CASES
from traffic import was_closed

_Kind = TypeVar("_Kind")

HELLO = b"Hello, world!\n"
LARGE = bytes(range(256)) * (3 << 12)
FILE = bytes(range(256)) * 100

#: Seconds that a polite client waits for a response: the machine may be busy with other tests.
PATIENCE = 3 * TIMEOUT
#: Most seconds that a polite client rests, well below the server's keep-alive time.
REST = 0.15
#: Linux's socket option by which a process takes a connection away from the kernel; closing it then sends nothing.
_TCP_REPAIR = 19

#: What goes wrong on a connection whose server has gone or has closed it.
FAILURES = (OSError, TruncatedError, httpx.TransportError)


class WrongResponseError(AssertionError):
    """A response that is not what was asked for."""


def _check(response: Response, status: int = 200, body: bytes | None = None) -> Response:
    if response.status != status or (body is not None and response.body != body):
        raise WrongResponseError(f"expected {status} and {len(body or b'')} bytes: {response.raw[:500]!r}")
    return response


def _tls(server: Server) -> ssl.SSLContext | None:
    return None if server.certificates is None else server.certificates.client_context()


def _http2_session(server: Server) -> httpx.Client:
    # A context of its own: httpx changes what it offers by ALPN.
    context = _tls(server)
    assert context is not None
    return httpx.Client(http2=True, verify=context, base_url=server.url, timeout=PATIENCE)


# --- what polite clients do ------------------------------------------------------------------------

Exchange = Callable[[Client, random.Random], Response]


def _bytes(dice: random.Random, most: int) -> bytes:
    return dice.randbytes(dice.choice((0, 1, dice.randrange(most), most)))


def hello(client: Client, dice: random.Random) -> Response:
    return _check(client.get("/"), body=HELLO)


def head(client: Client, dice: random.Random) -> Response:
    return _check(client.get("/", method="HEAD"), body=b"")


def nap(client: Client, dice: random.Random) -> Response:
    return _check(client.get(f"/nap?seconds={dice.uniform(0.01, 0.3):.2f}"), body=b"rested")


def echo(client: Client, dice: random.Random) -> Response:
    body = _bytes(dice, 200_000)
    client.send(request("/uploads/echo", f"Content-Length: {len(body)}", method="POST") + body)
    return _check(client.read_response(), body=body)


def echo_in_chunks(client: Client, dice: random.Random) -> Response:
    pieces = [dice.randbytes(dice.randint(1, 20_000)) for _ in range(dice.randint(0, 8))]
    client.send(request("/uploads/echo", "Transfer-Encoding: chunked", method="POST") + chunked(*pieces))
    return _check(client.read_response(), body=b"".join(pieces))


def upload_in_parts(client: Client, dice: random.Random) -> Response:
    body = dice.randbytes(300_000)
    client.send(request("/uploads/digest", f"Content-Length: {len(body)}", method="POST"))
    for at in range(0, len(body), 50_000):
        time.sleep(dice.uniform(0, 0.03))
        client.send(body[at : at + 50_000])
    response = _check(client.read_response())
    if response.json() != {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}:
        raise WrongResponseError(f"another digest: {response.body!r}")
    return response


def upload_that_nobody_reads(client: Client, dice: random.Random) -> Response:
    client.send(request("/uploads/none", method="POST", body=dice.randbytes(30_000)))
    return _check(client.read_response(), body=b"unread")


def upload_after_100_continue(client: Client, dice: random.Random) -> Response:
    client.send(request("/uploads/echo", "Expect: 100-continue", "Content-Length: 5", method="POST"))
    _check(client.read_response(), 100)
    client.send(b"hello")
    return _check(client.read_response(), body=b"hello")


def download(client: Client, dice: random.Random) -> Response:
    return _check(client.get(dice.choice(("/lengths/large", "/lengths/large_unknown"))), body=LARGE)


def download_at_leisure(client: Client, dice: random.Random) -> Response:
    client.send(request("/lengths/large"))
    response = _check(client.read_head())
    for at in range(0, len(LARGE), 1 << 18):
        time.sleep(dice.uniform(0, 0.05))
        if client.read_exactly(1 << 18) != LARGE[at : at + (1 << 18)]:
            raise WrongResponseError(f"other bytes from {at} on")
    return response


def stream(client: Client, dice: random.Random) -> Response:
    return _check(client.get("/lengths/thousand_pieces"), body=b"0123456789" * 100)


def pipeline(client: Client, dice: random.Random) -> Response:
    """Requests in one go, cut anywhere (RFC 9112 9.3.2)."""
    body = dice.randbytes(1000)
    kinds = [
        (request("/"), "GET", HELLO),
        (request("/", method="HEAD"), "HEAD", b""),
        (request("/lengths/pieces"), "GET", HELLO),
        (request("/uploads/echo", method="POST", body=body), "POST", body),
        (request("/uploads/half", method="POST", body=body), "POST", body[:5]),
        (request("/uploads/none", "Transfer-Encoding: chunked", method="POST") + chunked(body), "POST", b"unread"),
    ]
    drawn = dice.choices(kinds, k=dice.randint(2, 12))
    sent = b"".join(one[0] for one in drawn)
    cut = dice.randrange(len(sent))
    client.send(sent[:cut])
    time.sleep(dice.uniform(0, 0.02))
    client.send(sent[cut:])
    for _, method, expected in drawn:
        response = _check(client.read_response(method), body=expected)
    return response


def byte_by_byte(client: Client, dice: random.Random) -> Response:
    for byte in request("/uploads/echo", method="POST", body=b"hello"):
        client.send(bytes((byte,)))
        time.sleep(dice.uniform(0, 0.005))
    return _check(client.read_response(), body=b"hello")


def last_request(client: Client, dice: random.Random) -> Response:
    return _check(client.get("/lengths/pieces", "Connection: close"), body=HELLO)


def file(client: Client, dice: random.Random) -> Response:
    """The application opens one; while descriptors are short it cannot."""
    response = client.get("/files/real")
    return _check(response, body=FILE) if response.status != 500 else response


def half_close(client: Client, dice: random.Random) -> Response:
    client.send(request("/lengths/large") + request("/"))
    client.finish()
    _check(client.read_response(), body=LARGE)
    response = _check(client.read_response(), body=HELLO)
    if client.read_until_closed() or client.reset:
        raise WrongResponseError("no clean end after a half-close")
    return response


EXCHANGES: tuple[Exchange, ...] = (
    hello, head, nap, echo, echo_in_chunks, upload_in_parts, upload_that_nobody_reads, upload_after_100_continue,
    download, download_at_leisure, stream, pipeline, byte_by_byte, last_request, file,
)  # fmt: skip


# --- what rude clients do --------------------------------------------------------------------------


class Rude:
    """Ways to misbehave, each a method; all of them return within seconds or when *over* is set.

    :param server: towards which
    :param over: set when there shall be no more
    """

    def __init__(self, server: Server, over: threading.Event) -> None:
        self._server = server
        self._tls = _tls(server)
        self._over = over

    def _connect(self, receive_buffer: int | None = None) -> Client:
        return Client(self._server.address, tls=self._tls, timeout=PATIENCE, receive_buffer=receive_buffer)

    def come_and_go(self, dice: random.Random) -> None:
        with self._connect():
            pass

    def reset_anywhere_in_a_request(self, dice: random.Random) -> None:
        with self._connect() as client:
            sent = request("/uploads/digest", method="POST", body=dice.randbytes(100_000))
            client.send(sent[: dice.choice((dice.randrange(60), dice.randrange(len(sent))))])
            client.abort()

    def reset_while_it_is_answered(self, dice: random.Random) -> None:
        with self._connect(receive_buffer=4096) as client:
            target = dice.choice(("/lengths/large", "/lengths/large_unknown", "/files/huge", "/nap?seconds=0.2"))
            client.send(request(target) * dice.randint(1, 3))
            if target != "/nap?seconds=0.2":
                client.read_head()
            client.abort()

    def break_an_upload_off(self, dice: random.Random) -> None:
        with self._connect() as client:
            coding = dice.choice(("Content-Length: 100000", "Transfer-Encoding: chunked"))
            target = dice.choice(("/uploads/echo", "/uploads/none", "/uploads/mishap?mark=soak"))
            client.send(request(target, coding, method="POST") + b"8000\r\n" + dice.randbytes(dice.randrange(50_000)))

    def half_close_anywhere(self, dice: random.Random) -> None:
        with self._connect() as client:
            sent = request("/uploads/echo", method="POST", body=b"x" * 50)
            client.send(sent[: dice.randrange(len(sent))])
            client.finish()
            client.read_until_closed()

    def send_garbage(self, dice: random.Random) -> None:
        with self._connect() as client:
            sent = dice.choice((*CASES.values(), dice.randbytes(dice.randint(1, 5000))))
            client.send(dice.choice((b"", request("/"))) + sent)
            if self._tls is None:
                client.finish()
            client.read_until_closed()

    def send_a_head_without_end(self, dice: random.Random) -> None:
        with self._connect() as client:
            client.send(b"GET / HTTP/1.1\r\n")
            while not self._over.wait(0.3) and not select.select([client.sock], [], [], 0)[0]:
                client.send(b"X: y\r\n")
            if not self._over.is_set():
                _check(client.read_response(), 408)

    def stall_an_upload(self, dice: random.Random) -> None:
        with self._connect() as client:
            client.send(request("/uploads/digest", "Content-Length: 100000", method="POST") + b"some")
            while not self._over.wait(0.1) and not select.select([client.sock], [], [], 0)[0]:
                pass
            if not self._over.is_set():
                _check(client.read_response(), 408)

    def take_nothing(self, dice: random.Random) -> None:
        """Until the server has had enough of it."""
        with self._connect(receive_buffer=4096) as client:
            client.send(request("/lengths/large") * 3)
            poller = select.poll()
            poller.register(client.sock, select.POLLHUP)
            while not self._over.is_set() and not poller.poll(100):
                pass

    def fall_silent(self, dice: random.Random) -> None:
        """A handful of connections are used once and then left to the server."""
        with contextlib.ExitStack() as clients:
            for _ in range(4):
                client = clients.enter_context(self._connect())
                client.get("/")
            while not self._over.is_set() and not select.select([client.sock], [], [], 0.2)[0]:
                pass

    def vanish(self, dice: random.Random) -> None:
        """Without FIN or reset, as from a laptop that is closed; where we may not do that, by a reset."""
        with self._connect() as client:
            client.send(request(dice.choice(("/", "/lengths/large", "/nap?seconds=0.2"))))
            try:
                client.sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
            except OSError:
                client.abort()
            else:
                os.close(client.sock.detach())  # By its number: a TLS object would say goodbye.

    def speak_no_tls(self, dice: random.Random) -> None:
        with Client(self._server.address) as client:
            client.send(dice.choice((request("/"), b"\x16\x03\x01\x02\x00\x01\x00", dice.randbytes(100))))
            client.finish()
            client.read_until_closed()

    def break_a_stream_off(self, dice: random.Random) -> None:
        """HTTP/2: a response that is not read to its end, then the whole connection."""
        with (
            _http2_session(self._server) as session,
            session.stream("GET", "/lengths/large") as response,
        ):
            next(response.iter_raw(10_000))


# --- all of them -----------------------------------------------------------------------------------


class MixedTraffic:
    """Polite and rude clients of one server, from construction until :meth:`stop`.

    :param server: whose application is ``soaked:app``, and which offers HTTP/2 where it speaks TLS
    :param seed: of all that they do
    :param polite: how many of these; on TLS two more speak HTTP/2
    :param rude: how many of those
    """

    def __init__(self, server: Server, seed: int, polite: int, rude: int) -> None:
        self.losses: list[str] = []
        #: How often each kind of exchange came to its end, and each kind of misbehaviour.
        self.done: Counter[str] = Counter()
        #: What failed in the hands of a worker that was killed, or for want of descriptors.
        self.excused: list[str] = []
        #: Workers that were killed, entered just before; by whoever does it.
        self.killed: list[int] = []
        #: Odd while descriptors are short, and another number after each such time.
        self.shortages = 0
        self._server = server
        self._tls = _tls(server)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._exchanges = (*EXCHANGES, half_close) if self._tls is None else EXCHANGES
        rude_one = Rude(server, self._over)
        self._misdeeds = [
            rude_one.come_and_go, rude_one.reset_anywhere_in_a_request, rude_one.reset_while_it_is_answered,
            rude_one.break_an_upload_off, rude_one.send_garbage, rude_one.send_a_head_without_end,
            rude_one.stall_an_upload, rude_one.take_nothing, rude_one.fall_silent, rude_one.vanish,
        ]  # fmt: skip
        roles = [self._be_polite] * polite + [self._be_rude] * rude
        if self._tls is None:
            self._misdeeds.append(rude_one.half_close_anywhere)
        else:
            self._misdeeds += [rude_one.speak_no_tls, rude_one.break_a_stream_off]
            roles += [self._be_polite_over_http2] * 2
        self._threads = [
            threading.Thread(target=role, args=(random.Random(f"{seed} {number}"),), daemon=True)
            for number, role in enumerate(roles)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def kinds(self) -> set[str]:
        """Everything that is done now and then."""
        kinds = {what.__name__ for what in (*self._exchanges, *self._misdeeds)}
        return kinds if self._tls is None else kinds | {"http2"}

    def stop(self) -> None:
        """Have all clients end what they are doing, and leave."""
        self._over.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            assert not thread.is_alive()

    def _count(self, what: str) -> None:
        with self._lock:
            self.done[what] += 1

    def _shuffled(self, dice: random.Random, kinds: Sequence[_Kind]) -> Iterator[_Kind]:
        """Each kind equally often, in changing order, until it is over."""
        while True:
            for kind in dice.sample(kinds, len(kinds)):
                if self._over.is_set():
                    return
                yield kind

    # polite

    def _be_polite(self, dice: random.Random) -> None:
        client: Client | None = None
        worker: int | None = None
        for exchange in self._shuffled(dice, self._exchanges):
            self._over.wait(dice.uniform(0, REST))
            before = len(self.killed), self.shortages
            if client is not None and was_closed(client):
                if client.reset:
                    self._lose("idle", ConnectionResetError("by the server"), worker, before)
                client.close()
                client = None
            try:
                if client is None:
                    worker = None
                    client = Client(self._server.address, tls=self._tls, timeout=PATIENCE)
                response = exchange(client, dice)
            except Exception as error:
                self._lose(exchange.__name__, error, worker, before)
                if client is not None:
                    client.close()
                client = None
                continue
            if response.status == 500 and not self._were_short(before[1]):
                self._lose(exchange.__name__, WrongResponseError(f"{response.raw[:500]!r}"), worker, before)
            if response.status == 200:
                worker = int(response.header("X-Worker") or 0)
            self._count(exchange.__name__)
            if not response.keeps_alive or client.eof:
                client.close()
                client = None
        if client is not None:
            client.close()

    def _be_polite_over_http2(self, dice: random.Random) -> None:
        with _http2_session(self._server) as session:
            worker: int | None = None
            while not self._over.wait(dice.uniform(0, REST)):
                before = len(self.killed), self.shortages
                body = dice.choice((b"", dice.randbytes(100_000)))
                path, expected = ("/uploads/echo", body) if body else ("/lengths/pieces", HELLO)
                try:
                    response = session.request("POST" if body else "GET", path, content=body)
                    got = response.http_version, response.status_code, response.content
                    if got != ("HTTP/2", 200, expected):
                        raise WrongResponseError(f"{got!r}"[:500])
                except Exception as error:
                    self._lose("http2", error, worker, before)
                    worker = None
                else:
                    worker = int(response.headers["X-Worker"])
                    self._count("http2")

    def _were_short(self, before: int) -> bool:
        """Whether descriptors are short or were since :attr:`shortages` was *before*."""
        return before % 2 == 1 or self.shortages != before

    def _lose(self, what: str, error: Exception, worker: int | None, before: tuple[int, int]) -> None:
        """Of a failed exchange: note it, unless it failed visibly and there was a reason."""
        since = self.killed if worker is not None else self.killed[before[0] :]
        killed = worker in since or (worker is None and bool(since))
        if isinstance(error, FAILURES) and (killed or self._were_short(before[1])):
            self._note(self.excused, f"{what}, worker {worker} {'killed' if killed else 'short'}", error)
        else:
            self._note(self.losses, f"{what}, worker {worker}", error)

    def _note(self, notes: list[str], what: str, error: Exception) -> None:
        with self._lock:
            notes.append(f"{time.strftime('%H:%M:%S')} {what}: {error!r}"[:600])

    # rude

    def _be_rude(self, dice: random.Random) -> None:
        for misdeed in self._shuffled(dice, self._misdeeds):
            self._over.wait(dice.uniform(0, REST))
            try:
                # What becomes of these is the server's choice, as long as it is no wrong response.
                with contextlib.suppress(*FAILURES):
                    misdeed(dice)
            except Exception as error:
                self._note(self.losses, misdeed.__name__, error)
            self._count(misdeed.__name__)
