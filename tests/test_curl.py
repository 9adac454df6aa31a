"""curl, which looks at its idle connections before it uses one: HTTP/1.1 and HTTP/2, with TLS and without."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import IS_OURS, Certificates, Server, process_exists, wait_until

if TYPE_CHECKING:
    from conftest import Serve

pytestmark = [
    pytest.mark.skipif(not IS_OURS, reason="gunicorn's own workers do not tell of their connections"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="no curl (Debian package curl)"),
]

APP = "gallery:app"
CONNECTION = "/introspection/connection"
UPLOAD = "/uploads/announced"
#: Bytes of an upload: more than those above which curl asks first whether it may send them.
SIZE = 5_000_011
#: Seconds that curl may take for anything at all.
PATIENCE = "60"

#: Options of curl, and whether there is TLS. HTTP/2 in clear text by Upgrade: with prior knowledge, Debian 12's curl
#: fails at the second request on a connection, whoever the server is (https://github.com/curl/curl/issues/10634).
VERSIONS = {
    "h1": (["--http1.1"], False),
    "h1-tls": (["--http1.1"], True),
    "h2-tls": (["--http2"], True),
    "h2c": (["--http2"], False),
}


class Curl:
    """curl with the options of one version of HTTP."""

    def __init__(self, version: str, certificates: Certificates) -> None:
        options, self.tls = VERSIONS[version]
        self.is_http2 = version.startswith("h2")
        # Waiting for 100 Continue longer than for anything else shows that it came.
        waiting = ["--max-time", PATIENCE, "--expect100-timeout", "1000"]
        output = ["--silent", "--show-error", "--no-progress-meter", "--fail"]
        self._options = [*options, *waiting, *output, "--cacert", str(certificates.ca_file)]

    def command(self, *words: str) -> list[str]:
        """What to run; the options hold up to the first ``--next``, and after each again."""
        line = ["curl", "-q", *self._options]
        for word in words:
            line += [word, *self._options] if word == "--next" else [word]
        return line

    def run(self, *words: str, stdin: bytes | None = None) -> bytes:
        """Run it to its end; what it prints."""
        done = subprocess.run(self.command(*words), input=stdin, capture_output=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stderr == b""
        return done.stdout

    @contextlib.contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run it until it ends, which has to be well, at the end of the block."""
        with subprocess.Popen(self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                yield process
                _, errors = process.communicate(timeout=30)
                assert (process.returncode, errors) == (0, b"")
            finally:
                process.kill()


@pytest.fixture(scope="module")
def backend() -> str:
    """One event backend: what differs between them is tested elsewhere."""
    return "epoll"


@pytest.fixture(params=VERSIONS)
def curl(request: pytest.FixtureRequest, certificates: Certificates) -> Curl:
    """curl with each version of HTTP."""
    return Curl(request.param, certificates)


@pytest.fixture
def start(serve: Serve, certificates: Certificates, curl: Curl) -> Iterator[Callable[..., Server]]:
    """Start servers, of whom is asked at the end whether they complained."""
    started: list[tuple[Server, int]] = []

    def start(*options: str, **keywords: Any) -> Server:
        if curl.is_http2:
            options = ("--http-protocols", "h2,h1", "--http2-cleartext", "both", *options)
        keywords["certificates"] = certificates if curl.tls else None
        server = serve(APP, "--stats-path", "/stats", *options, **keywords)
        started.append((server, server.log_size))
        return server

    yield start
    for server, before in started:
        assert server.complaints(before) == []


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    """A server that keeps the connections."""
    return start()


def _accepted(server: Server) -> int:
    return int(server.get("/stats").json()["totals"]["connections_accepted"])


def _lines(output: bytes) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


def test_many_requests_take_one_connection(server: Server, curl: Curl) -> None:
    before = _accepted(server)
    answers = _lines(curl.run("--write-out", "\n", f"{server.url}{CONNECTION}?[1-100]"))
    assert [facts["requests"] for facts in answers] == list(range(1, 101))
    assert {facts["protocol"] for facts in answers} == {"HTTP/2" if curl.is_http2 else "HTTP/1.1"}
    assert {facts["tls"] for facts in answers} == {curl.tls}
    # The other one is that which asks.
    assert (len({facts["id"] for facts in answers}), _accepted(server)) == (1, before + 2)


def test_requests_abreast_take_few_connections(server: Server, curl: Curl, tmp_path: Path) -> None:
    """Over HTTP/2 one, as streams of it."""
    out = ["--output", str(tmp_path / "#1"), "--write-out", "%{num_connects}\n"]
    opened = curl.run("--parallel", "--parallel-max", "5", *out, f"{server.url}{CONNECTION}?[1-100]")
    answers = [json.loads(file.read_bytes()) for file in tmp_path.iterdir()]
    connections = {facts["id"] for facts in answers}
    assert len(answers) == 100
    assert len(connections) == sum(map(int, opened.split())) <= (1 if curl.is_http2 else 5)
    for number in connections:
        requests = sorted(facts["requests"] for facts in answers if facts["id"] == number)
        assert requests == list(range(1, len(requests) + 1))


@pytest.mark.parametrize("how", ["length", "unknown"])
def test_uploads_arrive_whole_and_the_connection_stays(server: Server, curl: Curl, tmp_path: Path, how: str) -> None:
    data = os.urandom(SIZE)
    (tmp_path / "data").write_bytes(data)
    upload = ["--upload-file", str(tmp_path / "data") if how == "length" else "-", server.url + UPLOAD]
    get = [server.url + CONNECTION]
    lines = ["--write-out", "\n"]
    _, answer, facts = _lines(curl.run(*lines, *get, "--next", *lines, *upload, "--next", *lines, *get, stdin=data))
    assert (answer["size"], answer["sha256"]) == (SIZE, hashlib.sha256(data).hexdigest())
    assert answer["CONTENT_LENGTH"] == (str(SIZE) if how == "length" else None)
    assert facts["requests"] == 3
    if not curl.is_http2:
        assert answer["HTTP_EXPECT"] == "100-continue"
        assert answer["HTTP_TRANSFER_ENCODING"] == (None if how == "length" else "chunked")


def test_large_downloads_are_byte_exact(server: Server, curl: Curl, tmp_path: Path) -> None:
    file = tmp_path / "file"
    get = ["--write-out", "\n", server.url + CONNECTION]
    download = ["--output", str(file), f"{server.url}/streaming/watched?name=curl&count=192"]
    # Not as the first one: curl cannot take more than 64 KB together with the answer to its Upgrade.
    output = curl.run(*get, "--next", *download, "--next", *get)
    assert [facts["requests"] for facts in _lines(output)] == [1, 3]
    assert file.read_bytes() == b"".join(hashlib.sha256(b"%d" % number).digest() * 2048 for number in range(192))


@pytest.mark.parametrize("curl", ["h1"], indirect=True)
def test_a_file_that_the_kernel_sends(server: Server, curl: Curl, tmp_path: Path) -> None:
    file = tmp_path / "file"
    output = curl.run("--output", str(file), f"{server.url}/files/huge", "--next", server.url + CONNECTION)
    assert json.loads(output)["requests"] == 2
    assert file.read_bytes() == bytes((100 << 20) - 1) + b"!"


@pytest.mark.parametrize("how", ["gated", "gated_with_length", "gated_write"])
def test_pieces_of_a_response_come_as_they_are_made(server: Server, curl: Curl, how: str) -> None:
    """The second is made only after curl has printed the first."""
    name = f"curl-{how}-{curl.is_http2}"
    with curl.running("--no-buffer", f"{server.url}/streaming/{how}?name={name}") as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == b"before"
        assert server.get(f"/streaming/open_gate?name={name}").status == 200
        assert process.stdout.read(5) == b"after"


@contextlib.contextmanager
def _post_held_back(curl: Curl, server: Server, directory: Path) -> Iterator[None]:
    """A GET and, when the block ends, a POST by the same curl; it holds the connection idle meanwhile.

    What is got has no Content-Length. Where it has, curl leaves the empty frame unread that ends a stream of HTTP/2,
    and finds that, instead of the GOAWAY behind it, when it looks whether the connection is still good.
    """
    fifo, first = directory / "fifo", directory / "first"
    os.mkfifo(fifo)
    get = ["--output", str(first), f"{server.url}/uploads/none_streamed"]
    # Without Expect: where it comes with an Upgrade to HTTP/2, gunicorn waits for the body and says nothing.
    post = ["--next", "--request", "POST", "--header", "Expect:", "--upload-file", str(fifo), server.url + UPLOAD]
    with subprocess.Popen(curl.command(*get, *post), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: first.exists() and first.stat().st_size == 6, "the first response")
            yield
            # Opening it lets go curl, which waits in open(2).
            with fifo.open("wb") as opened:
                opened.write(b"x" * 1000)
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, b"")
    assert json.loads(output)["size"] == 1000


def test_a_connection_that_the_server_has_closed_is_not_used_again(
    start: Callable[..., Server], curl: Curl, tmp_path: Path
) -> None:
    server = start("--keep-alive", "0.3", "--keep-alive-grace", "0.1")
    before = server.get("/stats").json()["totals"]["closed"]["idle_timeout"]

    def closed() -> bool:
        return bool(server.get("/stats").json()["totals"]["closed"]["idle_timeout"] == before + 1)

    with _post_held_back(curl, server, tmp_path):
        wait_until(closed, "the idle connection to end")


@pytest.mark.parametrize("when", ["draining", "gone"])
def test_a_reload_costs_no_request(start: Callable[..., Server], curl: Curl, tmp_path: Path, when: str) -> None:
    server = start("--drain-timeout", "0.5" if when == "gone" else "20", fresh=True)
    old = server.worker
    with _post_held_back(curl, server, tmp_path):
        server.send_signal(signal.SIGHUP)
        if when == "gone":
            wait_until(lambda: not process_exists(old), "the end of the old worker")
        else:
            wait_until(lambda: len(server.workers()) == 2, "the new worker")
