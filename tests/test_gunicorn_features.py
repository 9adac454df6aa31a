"""What gunicorn offers around the worker has to go on working: hooks, logs, signals, settings, protocols."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import Server, TruncatedError, outcome, process_exists, request, wait_until

if TYPE_CHECKING:
    from conftest import Serve

GALLERY = "gallery:app"
BODY = b"Hello, world!\n"
CLOSE = "Connection: close"


# --- hooks -------------------------------------------------------------------------------------

_HOOKS = """
import json

def on_starting(server): server.log.info("hook: on_starting")
def on_reload(server): server.log.info("hook: on_reload")
def when_ready(server): server.log.info("hook: when_ready")
def pre_fork(server, worker): server.log.info("hook: pre_fork")
def post_fork(server, worker): server.log.info("hook: post_fork %d", worker.pid)
def post_worker_init(worker): worker.log.info("hook: post_worker_init %d", worker.pid)
def worker_int(worker): worker.log.info("hook: worker_int %d", worker.pid)
def worker_abort(worker): worker.log.info("hook: worker_abort %d", worker.pid)
def child_exit(server, worker): server.log.info("hook: child_exit %d", worker.pid)
def worker_exit(server, worker): worker.log.info("hook: worker_exit %d", worker.pid)
def nworkers_changed(server, new, old): server.log.info("hook: nworkers_changed %s %s", new, old)
def on_exit(server): server.log.info("hook: on_exit")

def pre_request(worker, req):
    noted = [req.method, req.uri, req.path, req.query, req.version, req.headers, req.scheme]
    worker.log.info("hook: pre_request %s", json.dumps(noted))
    if req.path == "/refused":
        raise RuntimeError("pre_request says no")
    req.headers.append(("X-ADDED", "by pre_request"))

def post_request(worker, req, environ, resp):
    noted = [req.method, req.uri, req.headers, environ.get("PATH_INFO"), environ.get("HTTP_X_ADDED")]
    if resp is not None:
        noted += [resp.status, resp.headers, resp.sent, resp.response_length, resp.chunked, resp.headers_sent]
    worker.log.info("hook: post_request %s", json.dumps(noted))
    if req.path == "/lengths/hello":
        raise RuntimeError("post_request fails")
"""


def _hooks(server: Server, since: int = 0) -> list[str]:
    return re.findall(r"hook: (.*)", server.log(since))


def test_hooks_of_a_life(serve: Serve) -> None:
    server = serve(GALLERY, config=_HOOKS, fresh=True)
    assert server.get("/").body == BODY
    pid = server.worker
    server.wait_for_log(f"hook: post_worker_init {pid}")
    assert server.stop() == 0
    hooks = [hook for hook in _hooks(server) if "request" not in hook]
    assert hooks.index(f"post_fork {pid}") < hooks.index(f"post_worker_init {pid}")
    assert hooks.index(f"post_worker_init {pid}") < hooks.index(f"worker_exit {pid}")
    for hook in (
        "on_starting",
        "when_ready",
        "pre_fork",
        f"worker_exit {pid}",
        f"child_exit {pid}",
        "on_exit",
    ):
        assert hooks.count(hook) == 1, hooks


@pytest.mark.logs_traceback
@pytest.mark.parametrize(
    ("number", "hook"),
    [(signal.SIGINT, "worker_int"), (signal.SIGQUIT, "worker_int"), (signal.SIGABRT, "worker_abort")],
)
def test_hooks_of_signals(serve: Serve, number: signal.Signals, hook: str) -> None:
    """The worker ends, its replacement goes on; a signal may strike while a response ends."""
    server = serve(GALLERY, config=_HOOKS)
    assert server.get("/").body == BODY
    pid = server.worker
    before = server.log_size
    server.wait_for_log(f"hook: post_worker_init {pid}")
    os.kill(pid, number)
    server.wait_for_log(f"hook: {hook} {pid}", since=before)
    server.wait_for_log(f"hook: child_exit {pid}", since=before)
    server.wait_for_log("hook: post_worker_init", since=before)
    assert server.get("/").body == BODY
    assert server.worker != pid


@pytest.mark.logs_traceback
def test_request_hooks_see_what_they_see_under_gunicorns_worker(serve: Serve, reference: Serve) -> None:
    """The same calls in the same order with the same attributes, on one connection."""
    sent = [
        request("/", "X-One: 1", "X-One: 2"),
        request("/lengths/pieces?a=b"),
        request("/lengths/no_content"),
        request("/", method="HEAD"),
        request("/uploads/echo", "Content-Type: a/b", method="POST", body=b"hello"),
        request("/files/memory"),
        request("/lengths/generator"),
        request("/lengths/write"),
        request("/lengths/hello"),
        request("/", version="1.0") + b"",
    ]
    seen = []
    for server in (serve(GALLERY, config=_HOOKS), reference(GALLERY, config=_HOOKS)):
        # What is logged after a response may be late: first have all of the test before.
        server.settle()
        before = server.log_size
        client = server.connect()
        for data in sent:
            client.send(data)
            client.read_response("HEAD" if data.startswith(b"HEAD") else "GET")
        client.assert_closed()
        server.wait_for_log(
            r'hook: post_request \["GET", "/", \[\["HOST", "localhost"\], \["X-ADDED"', since=before
        )
        server.settle()
        seen.append([hook for hook in _hooks(server, before) if "_request" in hook and "/settle" not in hook])
        assert server.log(before).count("Exception in post_request hook") == 1
    assert len(seen[1]) == 2 * len(sent)
    assert seen[0] == seen[1]


@pytest.mark.logs_traceback
@pytest.mark.parametrize(
    "path", ["/refused", "/failures/at_once", "/failures/after_head", "/failures/start_twice"]
)
def test_request_hooks_of_failures(serve: Serve, reference: Serve, path: str) -> None:
    seen = []
    for server in (serve(GALLERY, config=_HOOKS), reference(GALLERY, config=_HOOKS)):
        # What is logged after a response may be late: first have all of the test before.
        server.settle()
        before = server.log_size
        answer = server.exchange(request(path))
        server.settle()
        assert answer.startswith(b"HTTP/1.1 200" if "after_head" in path else b"HTTP/1.1 500")
        assert server.log(before).count("Traceback") == 1
        seen.append([hook for hook in _hooks(server, before) if "_request" in hook and "/settle" not in hook])
    assert seen[0] == seen[1]


def test_request_hooks_of_two_and_three_arguments(serve: Serve) -> None:
    """gunicorn takes older signatures of post_request, too."""
    for arguments in ("worker, req", "worker, req, environ"):
        config = (
            f"def post_request({arguments}):\n    worker.log.info('hook: old post_request %s', req.path)\n"
        )
        server = serve(GALLERY, config=config, fresh=True)
        assert server.get("/").body == BODY
        server.wait_for_log("hook: old post_request /")


# --- logs --------------------------------------------------------------------------------------

_ATOMS = ["h", "l", "u", "t", "r", "s", "m", "U", "q", "H", "b", "B", "f", "a", "T", "D", "M", "L", "p"]
_ATOMS += ["{x-one}i", "{X-Nothing}i", "{content-type}o", "{content-length}o", "{server_name}e", "{nothing}e"]
_ATOMS += ["{wsgi.url_scheme}e"]
_FORMAT = "\t".join(f"{atom}=%({atom})s" for atom in _ATOMS)
_LOGGED = ("--access-logfile", "{dir}/access.log", "--access-logformat", _FORMAT)

_LOGGED_REQUESTS = [
    request("/", CLOSE),
    request("/a?b=c&d", CLOSE),
    request("/lengths/pieces", CLOSE, "Referer: http://x/", 'User-Agent: "agent"', "X-One: 1"),
    request("/lengths/large", CLOSE),
    request("/lengths/no_content_with_body", CLOSE),
    request("/lengths/more_than_promised", CLOSE),
    request("/lengths/empty_list", CLOSE),
    request("/lengths/write", version="1.0"),
    request("/", CLOSE, method="HEAD"),
    request("/files/memory", CLOSE),
    request("/uploads/echo", CLOSE, "Authorization: Basic dXNlcjpwYXNz", method="POST", body=b"hello"),
    request("/%41%20b", CLOSE, "X-One: 1", "X-One: 2"),
    request("/", method="OPTIONS") + request("/", CLOSE, "X-One: second"),
    request("/failures/at_once"),
    request("/failures/after_start"),
    request("/failures/in_close"),
    request("/", "Bad Header: 1"),
    request("/", "Content-Length: x"),
    request("/", "Expect: x"),
]
_VARYING = r"\b(t|T|D|M|L|p)=([^\t]*)"


@pytest.mark.logs_traceback
@pytest.mark.parametrize("sent", _LOGGED_REQUESTS, ids=range(len(_LOGGED_REQUESTS)))
def test_access_log_is_gunicorns(serve: Serve, reference: Serve, sent: bytes) -> None:
    ours, theirs = serve(GALLERY, *_LOGGED), reference(GALLERY, *_LOGGED)
    (_, _, got), (_, _, expected) = outcome(ours, sent), outcome(theirs, sent)
    assert [re.sub(_VARYING, "", line) for line in got] == [re.sub(_VARYING, "", line) for line in expected]
    for line in got:
        varying = dict(re.findall(_VARYING, line))
        assert re.fullmatch(r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+\d{4}\]", varying["t"])
        assert varying["p"] == f"<{ours.worker}>"
        assert int(varying["D"]) < 10_000_000
        assert varying["T"] in "0123456789"
        assert int(varying["D"]) // 1000 == int(varying["M"])
        assert re.fullmatch(r"\d\.\d{6}", varying["L"])


@pytest.mark.only_ours("logs 0 bytes for what sendfile has sent")
@pytest.mark.parametrize(
    ("path", "size"), [("/files/real", 25600), ("/files/unknown", 25600), ("/files/part", 500)]
)
def test_access_log_counts_the_bytes_of_files(serve: Serve, path: str, size: int) -> None:
    _, _, (line,) = outcome(serve(GALLERY, *_LOGGED), request(path, CLOSE))
    assert f"b={size}\tB={size}\t" in line


def test_access_log_says_how_long_a_response_took(serve: Serve) -> None:
    """From before the application runs until after its response, not the connection's idle time."""
    server = serve(GALLERY, *_LOGGED)
    client = server.connect()
    asked = time.monotonic()
    client.send(request("/streaming/slow?name=log"))
    wait_until(lambda: server.get("/streaming/state?name=log").json()["waiting"], "the application to run")
    running = time.monotonic()
    for _ in range(20):
        server.settle()
    let_go = time.monotonic()
    server.get("/streaming/open_gate?name=log")
    assert client.read_response().body == b"done"
    wait_until(lambda: "U=/streaming/slow" in server.file("access.log"), "the line")
    logged = time.monotonic()
    (took,) = re.findall(r"U=/streaming/slow\t.*\tD=(\d+)", server.file("access.log"))
    assert let_go - running <= int(took) / 1e6 <= logged - asked


def test_standard_access_log_on_standard_output(serve: Serve) -> None:
    server = serve(GALLERY, "--access-logfile", "-")
    before = server.log_size
    server.get("/nowhere", "User-Agent: me")
    server.wait_for_log(r'127\.0\.0\.1 - - \[[^]]+\] "GET /nowhere HTTP/1\.1" 404 0 "-" "me"\n', since=before)


def test_statsd(serve: Serve) -> None:
    """Metrics over UDP, one set for each request."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        sink.settimeout(10)
        host = f"127.0.0.1:{sink.getsockname()[1]}"
        server = serve(GALLERY, "--statsd-host", host, "--statsd-prefix", "test", fresh=True)
        client = server.connect()
        client.get("/")
        client.get("/nowhere")
        got: list[str] = []
        wanted = {"test.gunicorn.request.status.200:1|c|@1.0", "test.gunicorn.request.status.404:1|c|@1.0"}
        while not wanted <= set(got):
            got.append(sink.recv(4096).decode())
    assert got.count("test.gunicorn.requests:1|c|@1.0") == 2
    durations = [line for line in got if re.fullmatch(r"test\.gunicorn\.request\.duration:[\d.]+\|ms", line)]
    assert len(durations) == 2


def test_own_logger_class(serve: Serve, reference: Serve) -> None:
    options = ("--logger-class", "own_logger.OwnLogger")
    seen = []
    for server in (serve(GALLERY, *options), reference(GALLERY, *options)):
        before = server.log_size
        for sent in _LOGGED_REQUESTS[:13]:
            server.exchange(sent)
        server.settle()
        seen.append(
            [line for line in re.findall(r"own logger: (.*)", server.log(before)) if "/settle" not in line]
        )
    assert len(seen[1]) == 14
    assert seen[0] == seen[1]


@pytest.mark.logs_traceback
@pytest.mark.parametrize("path", ["/", "/failures/at_once"])
def test_a_logger_that_fails_costs_its_connection(serve: Serve, path: str) -> None:
    """Also where the error page of the one failure brings the next: it is not left open for ever."""
    config = """
from gunicorn.glogging import Logger
class logger_class(Logger):
    def access(self, *args):
        raise RuntimeError("no room on the disk")
"""
    server = serve(GALLERY, config=config)
    client = server.connect()
    client.send(request(path))
    client.read_until_closed()
    assert server.process.poll() is None


def test_usr1_reopens_the_logs(serve: Serve) -> None:
    server = serve(GALLERY, "--access-logfile", "{dir}/access.log", fresh=True)
    server.get("/first")
    wait_until(lambda: "/first" in server.file("access.log"), "the first line")
    (server.directory / "access.log").rename(server.directory / "access.old")
    server.send_signal(signal.SIGUSR1)

    def reopened() -> bool:
        server.get("/probe")
        return "/probe" in server.file("access.log")

    wait_until(reopened, "a new file")
    server.get("/last")
    wait_until(lambda: "/last" in server.file("access.log"), "the last line")
    assert "/first" in server.file("access.old")
    assert "/last" not in server.file("access.old")


def test_usr1_reopens_the_log_that_wsgi_errors_writes_to(serve: Serve) -> None:
    """Also for a head that was seen before, and where an application has closed what is not its own."""
    # Beside the log on standard error, from which the harness reads where the server listens.
    config = """
import logging
def post_worker_init(worker):
    logging.getLogger("gunicorn.error").addHandler(logging.FileHandler("{dir}/error.log"))
"""
    server = serve(GALLERY, config=config, fresh=True)
    client = server.connect()

    def write(mark: str) -> None:
        assert client.get(f"/introspection/errors?mark={mark}").json() == "written"

    for _ in range(3):
        write("before")
    (server.directory / "error.log").rename(server.directory / "error.old")
    server.send_signal(signal.SIGUSR1)
    wait_until((server.directory / "error.log").exists, "a new file")
    assert client.get("/introspection/close_errors").json() == "closed"
    write("after")
    assert server.file("error.log") == "to wsgi.errors: after\n"
    assert server.file("error.old") == "to wsgi.errors: before\n" * 3


# --- signals and processes ---------------------------------------------------------------------


def _wait_for_end(pid: int) -> None:
    wait_until(lambda: not process_exists(pid), f"worker {pid} to end", 15)


def test_ttin_and_ttou(serve: Serve) -> None:
    server = serve(GALLERY, fresh=True)
    server.wait_for_workers(1)
    assert server.get("/").body == BODY
    server.send_signal(signal.SIGTTIN)
    server.wait_for_workers(2)
    assert server.get("/").body == BODY
    server.send_signal(signal.SIGTTOU)
    server.wait_for_workers(1)
    for _ in range(20):
        assert server.get("/").body == BODY


def test_hup_reloads_the_configuration(serve: Serve) -> None:
    config = "raw_env = ['FROM_CONFIG=before']\n"
    server = serve(GALLERY, config=config, fresh=True)
    assert server.get("/").body == BODY
    (old,) = server.workers()
    before = server.log_size
    config_file = server.directory / "gunicorn.conf.py"
    config_file.write_text("def post_worker_init(worker): worker.log.info('the new configuration')\n")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("the new configuration", since=before)
    _wait_for_end(old)
    assert server.get("/").body == BODY


def test_usr2_hands_over_to_a_new_master(serve: Serve) -> None:
    """The listening sockets go on; no request is lost in between."""
    server = serve(GALLERY, as_script=True, fresh=True)
    assert server.get("/").body == BODY
    before = server.log_size
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log("Booting worker", since=before, timeout=15)
    assert server.stop() == 0
    for _ in range(5):
        assert server.get("/").body == BODY


def test_term_lets_a_response_finish(serve: Serve) -> None:
    server = serve(GALLERY, "--keep-alive", "2", fresh=True)
    client, other = server.connect(), server.connect()
    client.send(request("/streaming/gated?name=term"))
    client.read_head()
    assert client.read_chunk() == b"before"
    assert other.get("/").body == BODY
    server.send_signal(signal.SIGTERM)
    server.wait_for_log("Handling signal: term")
    # The gate is opened by a request that is under way when the worker stops.
    other.send(request("/streaming/open_gate?name=term"))
    assert other.read_response().status == 200
    assert client.read_chunk() == b"after"
    assert client.read_chunk() == b""
    assert server.wait(15) == 0


def test_quit_ends_at_once(serve: Serve) -> None:
    server = serve(GALLERY, fresh=True)
    client = server.connect()
    client.send(request("/streaming/gated?name=quit"))
    client.read_head()
    assert server.stop(signal.SIGQUIT, timeout=8) == 0
    assert client.read_chunk() == b"before"
    with pytest.raises(TruncatedError):
        client.read_chunk()


def test_max_requests(serve: Serve) -> None:
    """A connection is told to close, no earlier than it has to be; a new worker takes over."""
    server = serve(GALLERY, "--max-requests", "3", fresh=True)
    pids = []
    for _ in range(2):
        client = server.connect()
        responses = [client.get("/introspection/worker")]
        while responses[-1].keeps_alive:
            responses.append(client.get("/introspection/worker"))
        assert len(responses) >= 3
        client.assert_closed()
        pids.append({response.json()["pid"] for response in responses})
        server.wait_for_log(rf"Worker exiting \(pid: {min(pids[-1])}\)")
    server.wait_for_log("Autorestarting worker after current request")
    assert [len(of_one_connection) for of_one_connection in pids] == [1, 1]
    assert pids[0] != pids[1]


def test_max_requests_loses_no_request(serve: Serve) -> None:
    server = serve(GALLERY, "--max-requests", "5", fresh=True)
    for restarts in (1, 2):
        while server.log().count("Autorestarting worker") < restarts:
            assert server.get("/").body == BODY
        # The old worker is on its way out, the new one on its way in.
        for _ in range(5):
            assert server.get("/").body == BODY
        pids = re.findall(r"\[(\d+)\] \[INFO\] Autorestarting", server.log())
        _wait_for_end(int(pids[-1]))


def test_worker_that_dies_is_replaced(serve: Serve) -> None:
    server = serve(GALLERY, fresh=True)
    assert server.get("/").body == BODY
    pid = server.worker
    os.kill(pid, signal.SIGKILL)
    server.wait_for_log(f"Booting worker with pid: (?!{pid})")
    assert server.get("/").body == BODY


def test_reload(serve: Serve, tmp_path: Path) -> None:
    source = (
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Length', '{length}')])\n"
        "    return [b'{text}']\n"
    )
    module = tmp_path / "changing.py"
    module.write_text(source.format(length=3, text="old"))
    server = serve(
        "changing:app", "--reload", "--reload-engine", "poll", "--keep-alive", "2", chdir=tmp_path, fresh=True
    )
    assert server.get("/").body == b"old"
    idle = server.connect()
    assert idle.get("/").body == b"old"
    module.write_text(source.format(length=7, text="changed"))
    # Newer by more than the resolution of the file system's time.
    os.utime(module, (2_000_000_000, 2_000_000_000))
    server.wait_for_log("Worker reloading: .*changing.py modified")
    wait_until(lambda: len(re.findall("Booting worker", server.log())) > 1, "a new worker", 15)
    assert server.get("/").body == b"changed"


@pytest.mark.parametrize("preload", [False, True])
def test_preload_app(serve: Serve, preload: bool) -> None:
    server = serve("preloaded:app", *(["--preload"] if preload else []))
    imported_by, answered_by = map(int, server.get("/").body.split())
    assert answered_by == server.worker
    assert imported_by == (server.pid if preload else server.worker)


@pytest.mark.only_ours("gunicorn's gevent worker leaves the garbage collector as it is")
@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["loaded", "preloaded"])
def test_the_garbage_collector_is_spared_the_application(serve: Serve, options: tuple[str, ...]) -> None:
    server = serve("frozen:app", *options)
    assert server.get("/").body == b"spared"


def test_several_workers(serve: Serve) -> None:
    server = serve("preloaded:app", "--workers", "3")
    server.wait_for_workers(3)
    for _ in range(30):
        _, answered_by = map(int, server.get("/").body.split())
        assert answered_by in server.workers()
    environ = serve(GALLERY, "--workers", "2").get("/introspection/environ").json()
    assert environ["wsgi.multiprocess"] is True


def test_threads_are_ignored(serve: Serve, reference: Serve) -> None:
    options = ("--threads", "4")
    server = serve("environ_dump:app", *options)
    assert server.get("/").json()["wsgi.multithread"] is True
    chosen = re.search("Using worker: (.*)", server.log())
    assert chosen is not None
    assert chosen[1] != "gthread"


def test_raw_env(serve: Serve) -> None:
    server = serve("reveal:app", "--env", "SCRIPT_NAME=/prefix", "-e", "OTHER=1")
    environ = server.get("/prefix/path").json()
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/prefix", "/path")


# --- listening ---------------------------------------------------------------------------------


def test_several_binds(serve: Serve) -> None:
    binds = ("127.0.0.1:0", "127.0.0.1:0", "unix:{dir}/first.sock", "unix:{dir}/second.sock")
    server = serve(GALLERY, binds=binds)
    assert len(server.addresses) == 4
    clients = [server.connect(bind=bind) for bind in range(4)]
    for _ in range(3):
        for bind, client in enumerate(clients):
            environ = client.get("/introspection/environ").json()
            if bind < 2:
                assert environ["SERVER_PORT"] == str(server.addresses[bind][1])
                assert environ["REMOTE_ADDR"] == "127.0.0.1"
            else:
                assert environ["REMOTE_ADDR"] == ""


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 on this machine")
def test_ipv6(serve: Serve, reference: Serve) -> None:
    ours, theirs = (server(GALLERY, binds=("[::1]:0",)) for server in (serve, reference))
    seen = []
    for server in (ours, theirs):
        environ = server.get("/introspection/environ").json()
        assert environ.pop("SERVER_PORT") == str(server.port)
        seen.append({key: environ[key] for key in ("REMOTE_ADDR", "SERVER_NAME")})
    assert seen[0] == seen[1]


@pytest.mark.parametrize("host", ["Host: example.org", "Host: example.org:8000", "X-No: host"])
def test_unix_socket(serve: Serve, reference: Serve, host: str) -> None:
    """The environ has no address, and its server's name comes from Host, as under gunicorn's worker."""
    seen = []
    for start in (serve, reference):
        server = start("environ_dump:app", binds=("unix:{dir}/http.sock",))
        client = server.connect()
        for _ in range(2):
            client.send(f"GET /path HTTP/1.1\r\n{host}\r\nX-Forwarded-Proto: https\r\n\r\n".encode())
            environ = client.read_response().json()
        own = [key for key in environ if key.startswith("keepalive.")]
        for key in ("gunicorn.socket", "wsgi.input", "wsgi.early_hints", "wsgi.errors", *own):
            environ.pop(key)
        if environ["SERVER_NAME"] == str(server.address):
            environ["SERVER_NAME"] = "the path"
        seen.append(environ)
    assert seen[0] == seen[1]


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT on this system")
def test_reuse_port(serve: Serve) -> None:
    with socket.socket() as holder:
        # Holds the port without listening on it.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{holder.getsockname()[1]}"
        server = serve(GALLERY, "--reuse-port", "--workers", "2", binds=(bind,), fresh=True)
    server.wait_for_workers(2)
    for _ in range(10):
        assert server.get("/").body == BODY


def test_inherited_socket(serve: Serve) -> None:
    """``--bind fd://N``, as systemd and other supervisors pass sockets."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        fd = listener.fileno()
        server = serve(GALLERY, binds=(f"fd://{fd}",), pass_fds=(fd,), fresh=True)
        assert server.addresses == [listener.getsockname()]
        client = server.connect()
        for _ in range(3):
            assert client.get("/").body == BODY


# --- behind a proxy ----------------------------------------------------------------------------

_SCHEME_HEADERS = "secure_scheme_headers = {'X-FORWARDED-PROTO': 'https', 'X-SSL': 'on'}\n"
_TRUST: dict[str, tuple[tuple[str, ...], str | None]] = {
    "default": ((), None),
    "untrusted": (("--forwarded-allow-ips", "10.0.0.1"), _SCHEME_HEADERS),
    "anybody-refuse": (("--forwarded-allow-ips", "*", "--header-map", "refuse"), _SCHEME_HEADERS),
    "dangerous": (("--header-map", "dangerous"), None),
    "network-remote-user": (
        ("--forwarded-allow-ips", "127.0.0.0/8", "--forwarder-headers", "REMOTE_USER,SCRIPT_NAME"),
        None,
    ),
}
_FORWARDED = {
    "https": request("/x", CLOSE, "X-Forwarded-Proto: https"),
    "http": request("/x", CLOSE, "X-Forwarded-Proto: http"),
    "https-upper-case": request("/x", CLOSE, "X-Forwarded-Proto: HTTPS"),
    "protocol": request("/x", CLOSE, "X-Forwarded-Protocol: ssl"),
    "ssl": request("/x", CLOSE, "X-Forwarded-Ssl: on"),
    "own-scheme-header": request("/x", CLOSE, "X-Ssl: on"),
    "contradictory": request("/x", CLOSE, "X-Forwarded-Proto: https", "X-Forwarded-Ssl: off", "X-Ssl: off"),
    "twice": request("/x", CLOSE, "X-Forwarded-Proto: https", "X-Forwarded-Proto: http"),
    "for": request("/x", CLOSE, "X-Forwarded-For: 1.2.3.4, 5.6.7.8", "Forwarded: for=9.9.9.9"),
    "script-name": request("/pre/x", CLOSE, "SCRIPT_NAME: /pre"),
    "script-name-elsewhere": request("/x", CLOSE, "SCRIPT_NAME: /pre"),
    "path-info": request("/x", CLOSE, "PATH_INFO: /y"),
    "remote-user": request("/x", CLOSE, "REMOTE_USER: root"),
    "underscores": request("/x", CLOSE, "X_Forwarded_For: 1.1.1.1", "X-Forwarded-For: 2.2.2.2"),
    "second": request("/x", "X-Forwarded-Proto: https", "REMOTE_USER: root") + request("/y", CLOSE),
}


@pytest.mark.logs_traceback
@pytest.mark.parametrize("trust", _TRUST)
@pytest.mark.parametrize("name", _FORWARDED)
def test_forwarded_headers_count_as_for_gunicorns_worker(
    serve: Serve, reference: Serve, trust: str, name: str
) -> None:
    """forwarded_allow_ips, secure_scheme_headers, forwarder_headers, header_map."""
    options, config = _TRUST[trust]
    ours = serve("reveal:app", *options, config=config)
    theirs = reference("reveal:app", *options, config=config)
    assert outcome(ours, _FORWARDED[name]) == outcome(theirs, _FORWARDED[name])


def test_forwarding_settings_matter(reference: Serve) -> None:
    """Otherwise the test before would say nothing."""
    scheme: dict[str, str] = {}
    for trust in ("default", "untrusted"):
        options, config = _TRUST[trust]
        server = reference("reveal:app", *options, config=config)
        scheme[trust] = server.get("/x", "X-Forwarded-Proto: https").json()["wsgi.url_scheme"]
    assert scheme == {"default": "https", "untrusted": "http"}


_V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 1111 2222\r\n"
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def _v2(
    command: int = 1, family: int = 1, protocol: int = 1, extra: bytes = b"", address: bytes = b""
) -> bytes:
    if not address:
        size = 4 if family == 1 else 16
        address = bytes(range(1, size + 1)) + bytes(range(101, 101 + size)) + struct.pack(">HH", 1111, 2222)
    data = address + extra
    return _SIGNATURE + bytes((0x20 | command, family << 4 | protocol)) + struct.pack(">H", len(data)) + data


_AGAIN = request("/one") + request("/two", "X-Two: 2") + request("/three", CLOSE)
_PROXIED = {
    "v1": _V1 + _AGAIN,
    "v1-ipv6": b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n" + _AGAIN,
    "v1-unknown": b"PROXY UNKNOWN\r\n" + _AGAIN,
    "v1-bad-address": b"PROXY TCP4 192.0.2.999 198.51.100.2 1 2\r\n" + _AGAIN,
    "v1-bad-port": b"PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n" + _AGAIN,
    "v1-short": b"PROXY TCP4 192.0.2.1\r\n" + _AGAIN,
    "v1-bare-lf": b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n" + _AGAIN,
    "v1-twice": _V1 + _V1 + _AGAIN,
    "v1-later": request("/one") + _V1 + request("/two", CLOSE),
    "v1-alone": _V1,
    "v2": _v2() + _AGAIN,
    "v2-ipv6": _v2(family=2) + _AGAIN,
    "v2-local": _v2(command=0) + _AGAIN,
    "v2-unspecified": _v2(family=0) + _AGAIN,
    "v2-datagram": _v2(protocol=2) + _AGAIN,
    "v2-tlv": _v2(extra=b"\x04\x00\x03abc") + _AGAIN,
    "v2-too-short": _v2(address=b"abc") + _AGAIN,
    "v2-bad-version": _SIGNATURE + b"\x31\x11\0\0" + _AGAIN,
    "v2-alone": _v2(),
    "v2-cut": _v2()[:20],
    "none": _AGAIN,
    "none-short": b"GET / HTTP",
}


@pytest.mark.logs_traceback
@pytest.mark.parametrize("mode", ["auto", "v1", "v2"])
@pytest.mark.parametrize("name", _PROXIED)
def test_proxy_protocol(serve: Serve, reference: Serve, mode: str, name: str) -> None:
    """The information of the PROXY header goes for every request of the connection."""
    options = ("--proxy-protocol", mode)
    ours, theirs = serve("reveal:app", *options), reference("reveal:app", *options)
    assert outcome(ours, _PROXIED[name]) == outcome(theirs, _PROXIED[name])


@pytest.mark.parametrize(("header", "peer"), [(_V1, "192.0.2.1"), (_v2(), "1.2.3.4")], ids=["v1", "v2"])
def test_proxy_protocol_goes_for_the_whole_connection(serve: Serve, header: bytes, peer: str) -> None:
    """Also when the header came alone, in pieces, and the connection was parked between requests."""
    server = serve("reveal:app", "--proxy-protocol", "auto")
    client, other = server.connect(), server.connect()
    for position in range(len(header)):
        client.send(header[position : position + 1])
        other.get("/settle")
    for _ in range(3):
        environ = client.get("/").json()
        assert (environ["REMOTE_ADDR"], environ["PROXY_PORT"]) == (peer, "2222")
        server.settle()
    assert other.get("/").json()["REMOTE_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("header", [_V1, _v2()], ids=["v1", "v2"])
def test_proxy_protocol_is_for_those_allowed(serve: Serve, reference: Serve, header: bytes) -> None:
    options = ("--proxy-protocol", "auto", "--proxy-allow-from", "10.0.0.1")
    ours, theirs = serve("reveal:app", *options), reference("reveal:app", *options)
    expected = outcome(theirs, header + _AGAIN)
    assert expected[0].startswith(b"HTTP/1.1 403 ")
    assert outcome(ours, header + _AGAIN) == expected


# --- the uWSGI protocol ------------------------------------------------------------------------


def _uwsgi(body: bytes = b"", modifier: int = 0, **variables: str) -> bytes:
    known = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/path",
        "QUERY_STRING": "q=1",
        "SERVER_PROTOCOL": "HTTP/1.1",
    }
    if body:
        known["CONTENT_LENGTH"] = str(len(body))
    block = b"".join(
        struct.pack("<H", len(text)) + text.encode("latin-1")
        for pair in (known | variables).items()
        for text in pair
    )
    return struct.pack("<BHB", modifier, len(block), 0) + block + body


#: Each ends the connection: to the end of an open one, gunicorn's worker answers with a 500.
_UWSGI_END = _uwsgi(HTTP_CONNECTION="close")
_UWSGI = {
    "one": _UWSGI_END,
    "two": _uwsgi(PATH_INFO="/one") + _UWSGI_END,
    "headers": _uwsgi(HTTP_X_ONE="1", HTTP_HOST="example.org:80", CONTENT_TYPE="a/b", HTTPS="on")
    + _UWSGI_END,
    "body": _uwsgi(b"hello", REQUEST_METHOD="POST") + _uwsgi(b"again", REQUEST_METHOD="PUT") + _UWSGI_END,
    "keep-alive": _uwsgi(HTTP_CONNECTION="keep-alive") + _UWSGI_END + _uwsgi(),
    "modifier": _uwsgi(modifier=5),
    "bad-block": struct.pack("<BHB", 0, 4, 0) + b"\xff\xffab",
    "bad-second": _uwsgi() + struct.pack("<BHB", 0, 4, 0) + b"\xff\xffab",
    "http": request("/"),
}


@pytest.mark.logs_traceback
@pytest.mark.parametrize("name", _UWSGI)
def test_uwsgi_protocol(serve: Serve, reference: Serve, name: str) -> None:
    """``--protocol uwsgi``, as nginx's uwsgi_pass speaks it, with persistent connections."""
    ours, theirs = (start("reveal:app", "--protocol", "uwsgi") for start in (serve, reference))
    got, expected = (_uwsgi_outcome(server, _UWSGI[name]) for server in (ours, theirs))
    assert got == expected


def _uwsgi_outcome(server: Server, sent: bytes) -> tuple[bytes, list[str]]:
    """As :func:`harness.outcome`, for a server that speaks no HTTP."""
    before = server.log_size
    answer = server.exchange(sent)
    # Another exchange, so that the log lines of the first are written.
    assert server.exchange(_UWSGI_END).startswith(b"HTTP/1.1 200")
    answer = re.sub(rb"\r\nDate: [^\r\n]*", b"", answer)
    return answer, server.complaints(before)


def test_uwsgi_protocol_persists(serve: Serve) -> None:
    server = serve("reveal:app", "--protocol", "uwsgi")
    client = server.connect()
    for number in range(5):
        client.send(_uwsgi(b"body", PATH_INFO=f"/{number}", REQUEST_METHOD="POST"))
        response = client.read_response()
        assert (response.json()["PATH_INFO"], response.json()["body"]) == (f"/{number}", "body")
        client.assert_open()


# --- starting ----------------------------------------------------------------------------------


@pytest.mark.logs_traceback
def test_application_that_cannot_be_loaded_ends_gunicorn(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('cannot load')\n")
    server = serve("broken:app", chdir=tmp_path, fresh=True)
    assert server.wait(15) == 3
    assert "RuntimeError: cannot load" in server.log()


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs POSIX")
def test_configuration_is_checked_without_starting(tmp_path: Path) -> None:
    """The harness itself would hide a worker that prints warnings when it is imported."""
    import subprocess

    from harness import APPS, ROOT, WORKER

    result = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-k", WORKER, "--check-config", "--chdir", str(APPS), GALLERY],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_environ_of_the_configuration(serve: Serve, reference: Serve) -> None:
    """What a JSON dump shows of two servers with many settings at once."""
    options = ("--workers", "2", "--forwarded-allow-ips", "*", "--limit-request-line", "0")
    seen = []
    for start in (serve, reference):
        environ = start("reveal:app", *options).get("/" + "x" * 9000, "X-Forwarded-Proto: https").json()
        seen.append(json.dumps(environ, sort_keys=True))
    assert seen[0] == seen[1]
