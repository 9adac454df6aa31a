"""The servers that are compared. A new one is one more :class:`Peer` in :data:`PEERS`."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import tls
from benchmarks.servers import APPS, Peer, Setup

#: Where ``--install-peers`` puts the servers that this project does not depend on.
FOLDER = Path(__file__).resolve().parent / ".peers"

#: The peer that ratios refer to.
BASELINE = "gunicorn gevent"
#: The one that is being measured.
OURS = "keepalive_worker"

GTHREAD = "gunicorn gthread"
PYWSGI = "gunicorn gevent_pywsgi"
GRANIAN = "granian"
BJOERN = "bjoern"
CHEROOT = "cheroot"
WAITRESS = "waitress"
UWSGI = "uWSGI"
#: No application at all: an answer from memory, or a file. What the machine and the clients allow.
NGINX = "nginx (static)"

_INSTALL = "python -m benchmarks --install-peers"


def cannot_import(modules: Iterable[str], python: str = sys.executable) -> str | None:
    """Why a server could not import *modules*, in a line; None where it can.

    In a process of its own and from the folder of the applications, like the servers: what counts is
    what is installed, not what lies in the checkout.
    """
    for module in modules:
        command = [python, "-c", f"import {module}"]
        result = subprocess.run(command, cwd=APPS, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = result.stderr.splitlines() or [f"cannot import {module}"]
            return lines[-1]
    return None


@functools.cache
def _version(package: str, python: str) -> str:
    """Of an installed package.

    :raises OSError: it cannot be asked
    """
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if result.returncode:
        raise OSError(f"{package} is not installed")
    return result.stdout.strip()


def _gunicorn(name: str, module: str, worker: str, *options: str, package: str = "gunicorn") -> Peer:
    def command(setup: Setup, port: int, _: Path) -> list[str]:
        result = [
            *(sys.executable, "-m", "gunicorn", f"{setup.app}:app"),
            *("--bind", f"127.0.0.1:{port}"),
            *("--worker-class", worker),
            *("--workers", str(setup.workers)),
            *("--keep-alive", str(setup.keep_alive)),
            *("--worker-connections", str(setup.connections)),
            *("--log-level", "warning"),
            "--no-control-socket",
            *(option.format(threads=setup.threads) for option in options),
        ]
        if setup.tls:
            certificate = tls.certificate()
            result += ["--certfile", str(certificate.chain), "--keyfile", str(certificate.key)]
        if name == OURS:
            result += setup.deadlines
        return result

    def missing() -> str | None:
        reason = cannot_import((module,))
        return reason and f"{reason}: pip install '.[bench]' in the checkout"

    return Peer(name, missing, lambda: _version(package, sys.executable), command)


def _from_pip(
    name: str, package: str, command: Callable[[Setup, int, Path], list[str]], lacks: Iterable[str] = ()
) -> Peer:
    python = str(FOLDER / "bin" / "python")

    def missing() -> str | None:
        if not Path(python).exists():
            return f"not installed: {_INSTALL}"
        try:
            _version(package, python)
        except OSError as error:
            return f"{error}: {_INSTALL}"
        return None

    return Peer(name, missing, lambda: _version(package, python), command, frozenset(lacks))


def _program(name: str) -> str:
    return str(FOLDER / "bin" / name)


def _granian(setup: Setup, port: int, _: Path) -> list[str]:
    # Its own default of the header timeout, 30 s, counts from the last answer on: it is the idle timeout too.
    result = [
        *(_program("granian"), "--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", str(setup.workers), "--http", "1", "--no-ws", "--log-level", "warning"),
        *("--backlog", "2048", "--http1-header-read-timeout", str(min(60, max(1, setup.keep_alive)) * 1000)),
        "--http1-keep-alive" if setup.keep_alive else "--no-http1-keep-alive",
    ]
    if setup.threads != Setup.threads:
        result += ["--blocking-threads", str(setup.threads)]
    if setup.tls:
        certificate = tls.certificate()
        result += ["--ssl-certificate", str(certificate.chain), "--ssl-keyfile", str(certificate.key)]
    return [*result, f"{setup.app}:app"]


def _bjoern(setup: Setup, port: int, _: Path) -> list[str]:
    code = f"import bjoern, {setup.app}; bjoern.run({setup.app}.app, '127.0.0.1', {port}, listen_backlog=2048)"
    return [_program("python"), "-c", code]


def _cheroot(setup: Setup, port: int, _: Path) -> list[str]:
    return [
        *(_program("cheroot"), "--bind", f"127.0.0.1:{port}", "--threads", str(setup.threads)),
        *("--timeout", str(setup.keep_alive), "--request-queue-size", "2048", f"{setup.app}:app"),
    ]


def _waitress(setup: Setup, port: int, _: Path) -> list[str]:
    return [
        *(_program("waitress-serve"), f"--listen=127.0.0.1:{port}", f"--threads={setup.threads}"),
        *(f"--connection-limit={setup.connections}", f"--channel-timeout={setup.keep_alive}"),
        *("--backlog=2048", "--asyncore-use-poll", f"{setup.app}:app"),
    ]


def _uwsgi(setup: Setup, port: int, _: Path) -> list[str]:
    # Only its HTTP router holds connections that no worker is busy with; the router is a process of its own.
    listen = f"127.0.0.1:{port}"
    if setup.tls:
        certificate = tls.certificate()
        binding = ["--https", f"{listen},{certificate.chain},{certificate.key}"]
    else:
        binding = ["--http", listen]
    return [
        *(_program("uwsgi"), *binding, f"--http-keepalive={setup.keep_alive}", "--http-auto-chunked"),
        *("--master", "--workers", str(setup.workers), "--threads", str(setup.threads), "--listen", "2048"),
        *("--need-app", "--disable-logging", "--die-on-term", "--max-fd", "20000", "--module", f"{setup.app}:app"),
    ]


_NGINX_CONFIGURATION = """\
daemon off; master_process on; {user}
worker_processes {workers}; worker_rlimit_nofile 20000;
error_log stderr warn; pid {folder}/nginx.pid;
events {{ worker_connections {connections}; }}
http {{
  access_log off; sendfile on; tcp_nopush on; default_type text/plain;
  keepalive_timeout {keep_alive}; keepalive_requests 1000000000; keepalive_time 1d;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} {listen} backlog=4096;
    {certificate}
    root {folder};
    location = / {{ return 200 "Hello, World!\\n"; }}
    location = /file {{ try_files /large =404; }}
  }}
}}
"""


def _nginx(setup: Setup, port: int, folder: Path) -> list[str]:
    certificate = ""
    if setup.tls:
        files = tls.certificate()
        certificate = f"ssl_certificate {files.chain}; ssl_certificate_key {files.key};"
    configuration = folder / "nginx.conf"
    configuration.write_text(
        _NGINX_CONFIGURATION.format(
            user="user root;" if os.geteuid() == 0 else "",
            workers=setup.workers,
            connections=setup.connections,
            keep_alive=setup.keep_alive,
            folder=folder,
            port=port,
            listen="ssl" if certificate else "",
            certificate=certificate,
        )
    )
    return [_nginx_program(), "-p", str(folder), "-c", str(configuration)]


def _nginx_program() -> str:
    # Debian has it where only root looks.
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") or ""


def _nginx_missing() -> str | None:
    return None if _nginx_program() else "not installed: apt-get install nginx-light (Debian, Ubuntu)"


def _nginx_version() -> str:
    result = subprocess.run([_nginx_program(), "-v"], capture_output=True, text=True, check=False)
    return result.stderr.strip().rpartition("/")[2]


PEERS = (
    _gunicorn(BASELINE, "gunicorn.workers.ggevent", "gevent"),
    _gunicorn(GTHREAD, "gunicorn.workers.gthread", "gthread", "--threads", "{threads}"),
    _gunicorn(PYWSGI, "gunicorn.workers.ggevent", "gevent_pywsgi"),
    _gunicorn(OURS, "keepalive_worker.worker", "keepalive_worker.KeepaliveWorker", package="keepalive-worker"),
    _from_pip(GRANIAN, "granian", _granian),
    _from_pip(BJOERN, "bjoern", _bjoern, ("TLS", "several workers")),
    _from_pip(CHEROOT, "cheroot", _cheroot, ("TLS", "several workers")),
    _from_pip(WAITRESS, "waitress", _waitress, ("TLS", "several workers")),
    _from_pip(UWSGI, "uWSGI", _uwsgi),
    Peer(NGINX, _nginx_missing, _nginx_version, _nginx, frozenset({"applications"})),
)


def install(tell: Callable[[str], None]) -> None:
    """Install what pip has into :data:`FOLDER`, each by itself: what fails is told, and left out.

    The frameworks come in the version that this worker is measured with.
    """
    if not (FOLDER / "bin" / "python").exists():
        tell(f"Making {FOLDER}")
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
    for package in ("granian", "cheroot", "waitress", "bjoern", "uWSGI", "flask", "werkzeug", "django"):
        wanted = package
        if package in ("flask", "werkzeug", "django"):
            try:
                wanted = f"{package}=={_version(package, sys.executable)}"
            except OSError:
                continue
        tell(f"Installing {wanted}")
        command = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "-q", "--upgrade", wanted]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            tell(f"{result.stderr.strip()}\n{wanted} cannot be installed, so it is left out.")
            if package in ("bjoern", "uWSGI"):
                tell("It is compiled: apt-get install gcc python3-dev libev-dev (Debian, Ubuntu).")
