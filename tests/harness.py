"""A real gunicorn at one end and raw bytes at the other.

:class:`Server` runs ``python -m gunicorn`` in a process of its own, :class:`Client` is a socket that
sends exactly the bytes it is given and reads responses strictly by RFC 9112. Nothing here waits
without a deadline, and nothing sleeps where there is something to wait for.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds after which a test that waits for something has failed.
TIMEOUT = 10.0

TESTS = Path(__file__).resolve().parent
APPS = TESTS / "apps"
ROOT = TESTS.parent

OURS = "keepalive_worker.KeepaliveWorker"
#: The worker under test; ``gevent`` runs the suite against gunicorn's own as the reference.
WORKER = os.environ.get("TEST_WORKER", OURS)
IS_OURS = "keepalive" in WORKER
#: The environment variable by which our worker is told which event backend to use.
BACKEND_VARIABLE = "KEEPALIVE_WORKER_BACKEND"

#: What :meth:`Server.settle` asks for.
SETTLE = "/settle"

Address = tuple[str, int] | str


# --- waiting ---------------------------------------------------------------------------------


def wait_until(condition: Callable[[], Any], what: str, timeout: float = TIMEOUT) -> Any:
    """Return the first true value of *condition*; for what only another process can know."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.01)


def process_fields(pid: int) -> list[str]:
    """What ``/proc`` says of a process from its state on: field 3 and those after it of proc(5), ``stat``.

    :raises OSError: there is no such process, or no ``/proc``
    """
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def process_exists(pid: int) -> bool:
    """Whether there is a process *pid*, a zombie not counted where that can be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return process_fields(pid)[0] != "Z"
    return True


#: What :func:`descriptors` calls the file by which a worker shows gunicorn's master that it is alive.
HEARTBEAT = "heartbeat"


def descriptors(pid: int) -> Counter[str]:
    """What a process has open, by kind: all sockets are one, and so are all pipes (Linux)."""
    found = Counter[str]()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            link = os.readlink(entry)
            found[HEARTBEAT if "/wgunicorn-" in link else re.sub(r"\d+", "N", link)] += 1
    return found


def reset_peak_memory(pid: int) -> None:
    """Begin a new measurement of :func:`peak_memory` (Linux)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_memory(pid: int) -> int:
    """The most memory *pid* has held resident since :func:`reset_peak_memory`, in bytes (Linux)."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


# --- responses -------------------------------------------------------------------------------

_STATUS_LINE = re.compile(rb"HTTP/(\d\.\d) (\d{3}) ([\t \x21-\x7e\x80-\xff]*)")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*(.*?)[ \t]*", re.DOTALL)


class TruncatedError(AssertionError):
    """The connection ended, or nothing more came, before the response was complete."""

    def __init__(self, why: str, got: bytes, response: Response | None = None) -> None:
        shown = got if len(got) < 500 else got[:400] + b" ... " + got[-100:]
        super().__init__(f"{why} after {len(got)} bytes: {shown!r}")
        self.got = got
        self.response = response


class NoAnswerError(TruncatedError):
    """The connection stayed open, but nothing more came before the deadline."""


@dataclass
class Response:
    """One response as it was on the wire."""

    version: str
    status: int
    reason: str
    headers: list[tuple[str, str]]
    head: bytes
    body: bytes = b""
    raw: bytes = b""
    #: How the body ended: ``length``, ``chunked``, ``close`` or ``none`` (RFC 9112 6.3).
    framing: str = "none"
    chunks: list[bytes] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """The value of a header that must not be there twice."""
        values = self.all(name)
        assert len(values) < 2, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def keeps_alive(self) -> bool:
        """Whether the response promises that the connection stays open (RFC 9112 9.3)."""
        connection = (self.header("Connection") or "").lower()
        return connection == "keep-alive" if self.version == "1.0" else connection != "close"

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def comparable(self) -> tuple[Any, ...]:
        """All that two servers should agree on."""
        headers = [(name, value) for name, value in self.headers if name.lower() != "date"]
        return self.version, self.status, self.reason, headers, self.framing, self.body


def without_date(data: bytes) -> bytes:
    """A byte stream in which no two runs differ by the time of day."""
    return re.sub(rb"\r\nDate: [^\r\n]*", b"", data)


def request(
    target: str = "/", *headers: str, method: str = "GET", version: str = "1.1", body: bytes = b""
) -> bytes:
    """The bytes of a request; Host and, for a body, Content-Length are added."""
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    """A chunked body of exactly these chunks."""
    sent = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return sent + b"0\r\n" + trailer + b"\r\n"


# --- the client ------------------------------------------------------------------------------


class Client:
    """A connection to a server that is given bytes and has a deadline for everything."""

    def __init__(
        self,
        address: Address,
        *,
        tls: ssl.SSLContext | None = None,
        timeout: float = TIMEOUT,
        receive_buffer: int | None = None,
        source: str | None = None,
    ) -> None:
        self.timeout = timeout
        #: Bytes received and not yet read as part of a response.
        self.pending = bytearray()
        self.eof = False
        #: Whether the end came as a reset instead of a FIN.
        self.reset = False
        #: Whether a TLS connection ended without the closure alert (RFC 8446 6.1).
        self.ragged = False
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        if isinstance(address, tuple) and ":" in address[0]:
            family = socket.AF_INET6
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if receive_buffer is not None:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.sock.settimeout(timeout)
            if source is not None:
                self.sock.bind((source, 0))
            self.sock.connect(address)
            if family != socket.AF_UNIX:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self.sock = tls.wrap_socket(
                    self.sock, server_hostname="localhost", suppress_ragged_eofs=False
                )
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """Our end's port number."""
        return int(self.sock.getsockname()[1])

    # sending

    def send(self, data: bytes) -> None:
        """Send all of *data*."""
        self.sock.settimeout(self.timeout)
        self.sock.sendall(data)

    def finish(self) -> None:
        """Half-close: say that nothing more will be sent."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close with a FIN, or a reset where data is unread (as the kernel has it)."""
        self.sock.close()

    def abort(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # receiving

    def receive(self, deadline: float | None = None, size: int = 1 << 16) -> bool:
        """Wait for more bytes into :attr:`pending`; False at the end of the connection."""
        if self.eof:
            return False
        if deadline is None:
            deadline = time.monotonic() + self.timeout
        self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self.sock.recv(size)
        except ConnectionResetError:
            data, self.reset = b"", True
        except ssl.SSLEOFError:
            data, self.ragged = b"", True
        except TimeoutError:
            raise NoAnswerError("nothing more came", bytes(self.pending)) from None
        if not data:
            self.eof = True
            return False
        self.pending += data
        return True

    def _take(self, size: int) -> bytes:
        data = bytes(self.pending[:size])
        del self.pending[:size]
        return data

    def read_until(self, mark: bytes, within: float | None = None) -> bytes:
        """All bytes up to and with the first *mark*."""
        deadline = time.monotonic() + (self.timeout if within is None else within)
        searched = 0
        while (found := self.pending.find(mark, searched)) < 0:
            searched = max(0, len(self.pending) - len(mark) + 1)
            if not self.receive(deadline):
                raise TruncatedError(f"closed before {mark!r}", bytes(self.pending))
        return self._take(found + len(mark))

    def read_exactly(self, size: int, within: float | None = None) -> bytes:
        """The next *size* bytes."""
        deadline = time.monotonic() + (self.timeout if within is None else within)
        while len(self.pending) < size:
            if not self.receive(deadline, max(1 << 16, size - len(self.pending))):
                raise TruncatedError(f"closed before byte {size}", bytes(self.pending))
        return self._take(size)

    def read_head(self, within: float | None = None) -> Response:
        """A response's head alone, every line of it checked."""
        head = self.read_until(b"\r\n\r\n", within)
        status_line, *lines = head[:-4].split(b"\r\n")
        match = _STATUS_LINE.fullmatch(status_line)
        assert match is not None, f"status line {status_line!r}"
        headers = []
        for line in lines:
            pair = _FIELD.fullmatch(line)
            assert pair is not None, f"header line {line!r}"
            headers.append((pair[1].decode("latin-1"), pair[2].decode("latin-1")))
        return Response(match[1].decode(), int(match[2]), match[3].decode("latin-1"), headers, head, raw=head)

    def read_chunk(self, within: float | None = None) -> bytes:
        """The next chunk of a chunked body; empty for the last one, its trailer section included."""
        size = int(self.read_until(b"\r\n", within)[:-2], 16)
        data = self.read_exactly(size, within)
        end = self.read_exactly(2, within)
        assert end == b"\r\n", f"chunk ends in {end!r}"
        return data

    def read_response(self, method: str = "GET", within: float | None = None) -> Response:
        """A whole response; interim ones (1xx) count as responses of their own.

        :raises TruncatedError: with what there was of it in ``response``
        """
        response = self.read_head(within)
        length, coding = response.header("Content-Length"), response.header("Transfer-Encoding")
        assert length is None or coding is None, "Content-Length beside Transfer-Encoding (RFC 9112 6.2)"
        try:
            if method == "HEAD" or response.status < 200 or response.status in (204, 304):
                response.framing = "none"
            elif coding is not None:
                assert coding == "chunked"
                response.framing = "chunked"
                while chunk := self.read_chunk(within):
                    response.chunks.append(chunk)
                response.body = b"".join(response.chunks)
            elif length is not None:
                response.framing = "length"
                response.body = self.read_exactly(int(length), within)
            else:
                response.framing = "close"
                response.body = self.read_until_closed(within)
        except TruncatedError as end:
            end.response = response
            raise
        response.raw += response.body
        return response

    def read_until_closed(self, within: float | None = None) -> bytes:
        """Everything up to the end of the connection, see :attr:`reset`."""
        deadline = time.monotonic() + (self.timeout if within is None else within)
        while self.receive(deadline, 1 << 20):
            pass
        return self._take(len(self.pending))

    def get(self, target: str = "/", *headers: str, method: str = "GET", body: bytes = b"") -> Response:
        """Send one request and read its response."""
        self.send(request(target, *headers, method=method, body=body))
        return self.read_response(method)

    def drip(self, read: Callable[..., Response]) -> Response:
        """Send a field of a head every now and then, until there is an answer, which *read* gives."""
        while True:
            try:
                return read(within=0.15)
            except NoAnswerError:
                self.send(b"X-Drip: 1\r\n")

    def assert_open(self, for_: float = 0.0) -> None:
        """Nothing has come, not even the end, and nothing does for that many seconds."""
        assert not self.pending, f"unexpected bytes: {bytes(self.pending[:200])!r}"
        assert not self.eof, "the connection is closed"
        deadline = time.monotonic() + for_
        while select.select([self.sock], [], [], max(deadline - time.monotonic(), 0.0))[0]:
            # Readable on TLS may mean no more than a session ticket.
            with contextlib.suppress(NoAnswerError):
                ended = not self.receive(time.monotonic() + 0.001)
                got = bytes(self.pending[:200])
                raise AssertionError("the connection was closed" if ended else f"unexpected bytes: {got!r}")

    def assert_closed(self, within: float = TIMEOUT) -> None:
        """The server ends the connection and sends nothing more."""
        rest = self.read_until_closed(within)
        assert rest == b"", f"unexpected bytes before the end: {rest[:200]!r}"


# --- TLS -------------------------------------------------------------------------------------


class Certificates:
    """A certificate authority of our own with one server and one client certificate."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.cert_file = directory / "server.pem"
        self.key_file = directory / "server.key"
        self.authority.cert_pem.write_to_path(str(self.ca_file))
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(str(self.key_file))
        for blob in issued.cert_chain_pems:
            blob.write_to_path(str(self.cert_file), append=True)
        self._client = self.authority.issue_cert("client@example.org", common_name="a client")

    def server_options(self) -> list[str]:
        """What turns TLS on in gunicorn."""
        return ["--certfile", str(self.cert_file), "--keyfile", str(self.key_file)]

    def client_context(self, *alpn: str, with_certificate: bool = False) -> ssl.SSLContext:
        """A context that trusts the server, and shows a certificate where it is to."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if with_certificate:
            self._client.configure_cert(context)
        return context


# --- the server ------------------------------------------------------------------------------

_LISTENING = re.compile(r"Listening at: (\S*) \((\d+)\)")
#: Starts gunicorn as its console script does; ``python -m gunicorn`` cannot execute itself anew (USR2).
_SCRIPT = "from gunicorn.app.wsgiapp import run\nrun()\n"
_BOOTING = re.compile(r"Booting worker with pid: (\d+)")
_COMPLAINT = re.compile(r"^\[[^]]*\] \[\d+\] (\[(?:WARNING|ERROR|CRITICAL)\] .*)$", re.MULTILINE)
_LEFT_OUT_OF_ENVIRONMENT = ("GUNICORN_CMD_ARGS", "SCRIPT_NAME", "FORWARDED_ALLOW_IPS", "WEB_CONCURRENCY")


class Server:
    """A gunicorn master with its workers, in a directory of its own.

    ``{dir}`` in an option stands for that directory. Standard output, standard error and the error
    log are one file, :meth:`log`.

    :param app: what gunicorn is to run, found in ``tests/apps`` unless *chdir* says otherwise
    :param options: the command line; a later option wins over an earlier one and over the defaults
    :param config: the text of a configuration file, ``{dir}`` in it as in the options
    :param certificates: turns TLS on
    :param as_script: start gunicorn in the way of its console script
    :param keepalive: the value of ``--keep-alive``, None to leave it to gunicorn and *options*
    """

    def __init__(
        self,
        app: str,
        *options: str,
        worker: str = WORKER,
        backend: str | None = None,
        config: str | None = None,
        env: Mapping[str, str] | None = None,
        binds: Sequence[str] = ("127.0.0.1:0",),
        chdir: Path = APPS,
        certificates: Certificates | None = None,
        pass_fds: Sequence[int] = (),
        as_script: bool = False,
        keepalive: float | None = 20,
    ) -> None:
        self.certificates = certificates
        # Not below pytest's own folders: a unix socket's path is at most 107 bytes long.
        self.directory = Path(tempfile.mkdtemp(prefix="kw-"))
        self._log_file = self.directory / "log"
        self._clients: list[Client] = []
        # Not "-m gunicorn": after SIGUSR2 gunicorn runs its own __main__.py as a script, which puts
        # its package on the path in front of the standard library's "http".
        script = Path(sysconfig.get_path("scripts")) / "gunicorn"
        command = [sys.executable, str(script), "--no-control-socket", "--error-logfile", "-"]
        command += ["-k", worker, "--chdir", str(chdir)]
        if keepalive is not None:
            command += ["--keep-alive", str(keepalive)]
        for bind in binds:
            command += ["--bind", bind]
        if certificates is not None:
            command += certificates.server_options()
        if config is not None:
            (self.directory / "gunicorn.conf.py").write_text(config.replace("{dir}", str(self.directory)))
            command += ["--config", str(self.directory / "gunicorn.conf.py")]
        command += [*options, app]
        command = [word.replace("{dir}", str(self.directory)) for word in command]
        environment = {k: v for k, v in os.environ.items() if k not in _LEFT_OUT_OF_ENVIRONMENT}
        paths = [str(ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        environment.pop(BACKEND_VARIABLE, None)
        if backend is not None:
            environment[BACKEND_VARIABLE] = backend
        environment.update(env or {})
        with self._log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=environment,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        #: The process id of gunicorn's master.
        self.pid = self.process.pid
        try:
            listening = self.wait_for_log(_LISTENING.pattern, timeout=30)
            #: Where the server listens, in the order of *binds*.
            self.addresses = [self._address(url) for url in listening[1].split(",") if url]
            if not self.addresses:
                # With reuse_port each worker listens for itself.
                self.addresses = [self._address(f"http://{bind}") for bind in binds]
            self.wait_for_log(_BOOTING.pattern, timeout=30)
        except BaseException:
            self.kill()
            raise

    @staticmethod
    def _address(url: str) -> Address:
        if url.startswith("unix:"):
            return url[len("unix:") :]
        host, _, port = url.partition("://")[2].rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def address(self) -> Address:
        """The first of :attr:`addresses`."""
        return self.addresses[0]

    @property
    def port(self) -> int:
        """The port of the first address."""
        return int(self.address[1])

    @property
    def url(self) -> str:
        """The base URL, without a slash at the end."""
        return f"{'https' if self.certificates else 'http'}://localhost:{self.port}"

    # the log

    @property
    def log_size(self) -> int:
        """Where the log ends now, to look only at what comes after."""
        return self._log_file.stat().st_size

    def log(self, since: int = 0) -> str:
        """The log, from an earlier :attr:`log_size` on."""
        with self._log_file.open("rb") as log:
            log.seek(since)
            return log.read().decode("utf-8", "replace")

    def wait_for_log(self, pattern: str, timeout: float = TIMEOUT, since: int = 0) -> re.Match[str]:
        """Wait for a line that matches; fails at once when gunicorn has ended without it."""
        compiled = re.compile(pattern)
        deadline = time.monotonic() + timeout
        while True:
            ended = self.process.poll()
            if match := compiled.search(self.log(since)):
                return match
            if ended is not None:
                raise AssertionError(f"gunicorn ended with {ended} and no {pattern!r}:\n{self.log(since)}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {pattern!r} within {timeout:g} s in:\n{self.log(since)}")
            time.sleep(0.01)

    def complaints(self, since: int = 0) -> list[str]:
        """What the workers logged as a warning or worse, without time and process id."""
        return _COMPLAINT.findall(self.log(since))

    def file(self, name: str) -> str:
        """A file of the server's directory, empty where it is not there yet."""
        path = self.directory / name
        return path.read_text() if path.exists() else ""

    # processes

    def workers(self) -> list[int]:
        """The process ids of the workers that run, oldest first."""
        return [int(pid) for pid in _BOOTING.findall(self.log()) if process_exists(int(pid))]

    @property
    def worker(self) -> int:
        """The process id of the one worker."""
        (pid,) = self.workers()
        return pid

    def wait_for_workers(self, count: int, timeout: float = 15.0) -> list[int]:
        """Wait until exactly *count* workers run."""
        wait_until(lambda: len(self.workers()) == count, f"{count} workers", timeout)
        return self.workers()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        os.kill(self.pid, number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 15.0) -> int:
        """Send the master a signal and return its exit status, within *timeout*."""
        self.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait until the master has ended by itself."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            log = self.log()
            self.kill()
            raise AssertionError(f"gunicorn still ran after {timeout:g} s:\n{log}") from None

    def kill(self) -> None:
        """End whatever is left of the processes, at once, and the directory."""
        for client in self._clients:
            client.close()
        # The session was made for this server: its group is the master and what it has forked.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)
        shutil.rmtree(self.directory, ignore_errors=True)

    # clients

    def connect(
        self,
        *,
        bind: int = 0,
        tls: ssl.SSLContext | None = None,
        timeout: float = TIMEOUT,
        receive_buffer: int | None = None,
    ) -> Client:
        """A new client, which is closed at the end of the test at the latest."""
        if tls is None and self.certificates is not None:
            tls = self.certificates.client_context()
        client = Client(self.addresses[bind], tls=tls, timeout=timeout, receive_buffer=receive_buffer)
        self._clients.append(client)
        return client

    def connect_plain(self) -> Client:
        """A client that speaks no TLS, also where the server does."""
        client = Client(self.address)
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        """Close all clients that :meth:`connect` has made."""
        for client in self._clients:
            client.close()
        self._clients.clear()

    def get(self, target: str = "/", *headers: str, method: str = "GET", body: bytes = b"") -> Response:
        """One request over a connection of its own."""
        with self.connect() as client:
            return client.get(target, "Connection: close", *headers, method=method, body=body)

    def exchange(self, data: bytes, *, finish: bool = True) -> bytes:
        """Send bytes, half-close, and return all that comes back until the server closes."""
        with self.connect() as client:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                client.send(data)
            if finish:
                with contextlib.suppress(OSError):
                    client.finish()
            return client.read_until_closed()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What is sent meanwhile is there all at once, in its order, when the worker goes on."""
        worker = self.worker
        self.settle()
        os.kill(worker, signal.SIGSTOP)
        try:
            wait_until(lambda: process_fields(worker)[0] == "T", "the worker to stop")
            yield
        finally:
            os.kill(worker, signal.SIGCONT)

    def settle(self) -> None:
        """Return when the worker has seen all that was sent to it before.

        It answers a request that came later on another connection, and the kernel reports what
        is ready in the order in which it became ready.
        """
        assert self.get(SETTLE).status < 500


def outcome(server: Server, sent: bytes) -> tuple[bytes, list[str], list[str]]:
    """All that comes of some bytes: the answer, the complaints and the lines of the access log.

    What is different from run to run is taken out. The access log is ``{dir}/access.log``.
    """
    log, access = server.log_size, _whole_lines(server.file("access.log"))
    answer = server.exchange(sent)
    # A line is written when its response is out; by the time another one is answered it is there.
    server.settle()
    lines = _whole_lines(server.file("access.log"))[len(access) :].splitlines()
    # How much of an endless line was there to be counted is a matter of how it was read.
    answer = re.sub(rb"(too large \()\d+", rb"\1N", without_date(answer))
    complaints = [re.sub(r"(too large \()\d+", r"\1N", line) for line in server.complaints(log)]
    return answer, complaints, [line for line in lines if SETTLE not in line]


def _whole_lines(text: str) -> str:
    """A log without the line that is being written at this moment.

    Who has got a response may look before its line is complete: a write that crosses a page of the
    file is seen in two parts.
    """
    return text[: text.rfind("\n") + 1]


def quit_all(servers: Iterable[Server]) -> None:
    """Tell servers to end at once, without waiting for it."""
    for server in servers:
        server.close_clients()
        if server.process.poll() is None:
            server.send_signal(signal.SIGQUIT)


def stop_all(servers: Iterable[Server]) -> None:
    """End servers side by side: first as an operator would in a hurry, then by force."""
    running = list(servers)
    quit_all(running)
    deadline = time.monotonic() + 3.0
    for server in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(max(deadline - time.monotonic(), 0.01))
        server.kill()
