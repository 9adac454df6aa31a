"""Real nginx and HAProxy in front of a server, configured as the documentation says.

The configurations are those in ``docs/behind-a-load-balancer.md``, word for word but for addresses, paths and times,
so that the page cannot say what was not tested. A front runs in the foreground in a process of its own on a
loopback port, and tells by its log what became of each request.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import ROOT, TIMEOUT, Address, Server, wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

PAGE = ROOT / "docs" / "behind-a-load-balancer.md"

_BLOCK = re.compile(r"^```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OPTIONS = re.compile(r"`gunicorn (--[^`]*)`")


def sections() -> dict[str, str]:
    """The page's sections by their headings, without what is under deeper headings."""
    # A line of a code block may begin with "#", but not with "## ".
    parts = re.split(r"^##+ (.*)\n", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def block(heading: str) -> str:
    """The first code block of a section."""
    found = _BLOCK.search(sections()[heading])
    assert found is not None, f"no code under {heading!r}"
    return found[1]


def headings_with_code() -> list[str]:
    """The headings of all sections that show how to configure something."""
    return [heading for heading, section in sections().items() if _BLOCK.search(section)]


def worker_configuration() -> str:
    """The page's configuration file for gunicorn."""
    return block("The worker")


def changed(text: str, changes: Mapping[str, str]) -> str:
    """*text* with every key of *changes* replaced; each has to be there."""
    for old, new in changes.items():
        assert old in text, f"no {old!r} in:\n{text}"
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Exchange:
    """What a front logged of one request."""

    status: int
    method: str
    #: Whether something was wrong with the server, even where a retry then made up for it.
    trouble: bool
    line: str


class Front:
    """A front that runs; :meth:`stop` ends it.

    :param configuration: the recipe, ``127.0.0.1:PORT`` in it stands for the address to listen at
    """

    #: The program, its Debian package's name as well.
    program: str
    #: What the recipes listen at, and the same with ``127.0.0.1:PORT`` for it.
    listen: tuple[str, str]
    #: The latter, and the same with TLS; CERTIFICATE, KEY and BOTH stand for the names of files.
    secure: tuple[str, str]

    def __init__(self, configuration: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kw-front-"))
        try:
            # Between looking for a free port and listening there somebody else may have taken it.
            for _ in range(5):
                port = _free_port()
                if self._start(configuration.replace("PORT", str(port)), port):
                    break
            else:
                raise AssertionError(f"{self.program} does not start:\n{self.log()}")
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        #: Where the front listens.
        self.address: Address = ("127.0.0.1", port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _start(self, configuration: str, port: int) -> bool:
        file = self.directory / "configuration"
        file.write_text(self._frame(configuration))
        with (self.directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                self._command(file), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(lambda: self.process.poll() is not None or _listens(port), f"{self.program} to listen")
        return self.process.poll() is None

    def _frame(self, configuration: str) -> str:
        raise NotImplementedError

    def _command(self, file: Path) -> list[str]:
        raise NotImplementedError

    def _exchange(self, line: str) -> Exchange | None:
        raise NotImplementedError

    def log(self) -> str:
        """All that the front has written."""
        files = [self.directory / name for name in ("output", "errors", "access")]
        return "".join(file.read_text("utf-8", "replace") for file in files if file.exists())

    def exchanges(self) -> list[Exchange]:
        """The requests that the front has logged, in the order in which they ended."""
        found = map(self._exchange, self.log().splitlines())
        return [exchange for exchange in found if exchange is not None]

    def wait_for_exchanges(self, count: int) -> None:
        """Wait until exactly that many requests are counted, which may be after they were answered."""
        wait_until(lambda: self._count() >= count, f"{count} requests in the log of {self.program}")
        assert self._count() == count

    def _count(self) -> int:
        return len(self.exchanges())

    def troubles(self) -> list[str]:
        """What was wrong with the server, even where a retry made up for it, and what was not answered by 200."""
        return [item.line for item in self.exchanges() if item.trouble or item.status != 200]

    def stop(self) -> None:
        """End the front's processes."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                self.process.wait(TIMEOUT)
        finally:
            # The session was made for this front: the group is the front and its workers.
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(TIMEOUT)
            shutil.rmtree(self.directory, ignore_errors=True)


class Nginx(Front):
    """nginx with two processes, each with a pool of its own."""

    program = "nginx"
    listen = ("listen 80;", "listen 127.0.0.1:PORT;")
    secure = (listen[1], "listen 127.0.0.1:PORT ssl;\nssl_certificate CERTIFICATE;\nssl_certificate_key KEY;\n")

    def _frame(self, configuration: str) -> str:
        directory = self.directory
        # Beside the configuration, where "include uwsgi_params" looks for it.
        (directory / "uwsgi_params").symlink_to("/etc/nginx/uwsgi_params")
        temporary = "".join(
            f"{name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
        )
        # Started by root, its processes would change to a user who may not enter our directory.
        user = "user root;\n" if os.geteuid() == 0 else ""
        return (
            f"{user}daemon off;\nworker_processes 2;\npid {directory}/pid;\nerror_log {directory}/errors warn;\n"
            "events { worker_connections 512; }\n"
            "http {\n"
            """log_format fronts 'exchange $status $request_method "$upstream_status" $upstream_addr "$request"';\n"""
            f"access_log {directory}/access fronts;\n"
            f"client_max_body_size 100m;\n{temporary}{configuration}}}\n"
        )

    def _command(self, file: Path) -> list[str]:
        return ["nginx", "-e", str(self.directory / "errors"), "-c", str(file)]

    def _exchange(self, line: str) -> Exchange | None:
        match = re.match(r'exchange (\d+) (\S+) "(.*?)" ', line)
        if match is None:
            return None
        status, method, upstream = match.groups()
        # With a retry there are several, with a comma between them.
        return Exchange(int(status), method, not re.fullmatch("[1234]..", upstream), line)


#: HAProxy's counters of failed connects and responses, retries, and responses with an error.
_BAD = ("econ", "eresp", "wretr", "wredis", "hrsp_4xx", "hrsp_5xx", "hrsp_other")


class HAProxy(Front):
    """HAProxy with two threads."""

    program = "haproxy"
    listen = ("bind :80", "bind 127.0.0.1:PORT")
    secure = (listen[1], f"{listen[1]} ssl crt BOTH")

    def _frame(self, configuration: str) -> str:
        logging = (
            "    log stdout format raw daemon\n    option dontlognull\n"
            '    log-format "exchange %ST %HM %ts %rc"\n'
        )
        general = f"global\n    nbthread 2\n    stats socket {self.directory}/statistics\n\n"
        return general + changed(configuration, {"defaults\n": "defaults\n" + logging})

    def _command(self, file: Path) -> list[str]:
        return ["haproxy", "-db", "-f", str(file)]

    def troubles(self) -> list[str]:
        """Also what is only counted: with several threads, lines of the log get lost under load."""
        totals = self._totals()
        counted = [f"{name} {totals[name]}" for name in _BAD if totals[name] != "0"]
        return super().troubles() + counted

    def _count(self) -> int:
        totals = self._totals()
        return sum(int(totals[f"hrsp_{kind}"]) for kind in ("1xx", "2xx", "3xx", "4xx", "5xx", "other"))

    def _totals(self) -> dict[str, str]:
        table = csv.DictReader(self._ask("show stat").removeprefix("# ").splitlines())
        (totals,) = [row for row in table if row["svname"] == "BACKEND"]
        return totals

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rw") as file:
            sock.connect(str(self.directory / "statistics"))
            file.write(command + "\n")
            file.flush()
            return file.read().strip()

    def _exchange(self, line: str) -> Exchange | None:
        match = re.match(r"exchange (-?\d+) (\S+) (..) (\+?\d+)$", line)
        if match is None:
            return None
        status, method, ending, retries = match.groups()
        # "C-": a client that gave up by itself, "c-": one that was idle for too long.
        return Exchange(int(status), method, ending[0] not in "-Cc" or retries != "0", line)


_APACHE_MODULES = "/usr/lib/apache2/modules"


class Apache(Front):
    """Apache httpd with two processes of 32 threads, each process with a pool of its own."""

    program = "apache2"
    listen = ("<VirtualHost *:80>", "Listen 127.0.0.1:PORT\n<VirtualHost 127.0.0.1:PORT>")

    secure = (
        listen[1],
        (
            f"LoadModule ssl_module {_APACHE_MODULES}/mod_ssl.so\n{listen[1]}\n"
            "SSLEngine on\nSSLCertificateFile CERTIFICATE\nSSLCertificateKeyFile KEY"
        ),
    )
    _MODULES = ("mpm_event", "authz_core", "proxy", "proxy_http", "headers")

    def _frame(self, configuration: str) -> str:
        directory = self.directory
        modules = "".join(
            f"LoadModule {name}_module {_APACHE_MODULES}/mod_{name}.so\n" for name in self._MODULES
        )
        # Started by root, it insists on another user.
        user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
        return (
            f"{modules}{user}ServerName localhost\nServerRoot {directory}\nPidFile {directory}/pid\n"
            f"DefaultRuntimeDir {directory}\nErrorLog {directory}/errors\nLogLevel warn\n"
            "StartServers 2\nServerLimit 2\nThreadsPerChild 32\nMaxRequestWorkers 64\n"
            f"""LogFormat "exchange %s %m" fronts\nCustomLog {directory}/access fronts\n"""
            f"{configuration}"
        )

    def _command(self, file: Path) -> list[str]:
        return ["apache2", "-DFOREGROUND", "-f", str(file)]

    def _exchange(self, line: str) -> Exchange | None:
        match = re.match(r"exchange (\d+) (\S+)$", line)
        return Exchange(int(match[1]), match[2], False, line) if match is not None else None

    def troubles(self) -> list[str]:
        """Also what it says of the server in the error log."""
        return super().troubles() + [line for line in self.log().splitlines() if "[proxy" in line]


class Caddy(Front):
    """Caddy, without its administration endpoint."""

    program = "caddy"
    listen = (":80 {\n", "http://:PORT {\n    bind 127.0.0.1\n    log\n")
    secure = ("http://:PORT {\n", "https://:PORT {\n    tls CERTIFICATE KEY\n")

    def _frame(self, configuration: str) -> str:
        options = f"admin off\n    auto_https off\n    storage file_system {self.directory}"
        return f"{{\n    {options}\n}}\n{configuration}"

    def _command(self, file: Path) -> list[str]:
        return ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)]

    def _exchange(self, line: str) -> Exchange | None:
        try:
            entry = json.loads(line)
        except ValueError:
            return None
        if "status" not in entry:
            return None
        return Exchange(entry["status"], entry["request"]["method"], entry["level"] == "error", line)


@dataclass(frozen=True)
class Recipe:
    """A configuration of the page: a whole one, or such a one with a part in place of another."""

    front: type[Front]
    #: The heading of the whole configuration.
    whole: str
    #: The heading of the part, and a pattern of the lines that it takes the place of.
    part: str = ""
    replaced: str = ""

    @property
    def heading(self) -> str:
        """The section that is about this configuration."""
        return self.part or self.whole

    @property
    def worker_options(self) -> list[str]:
        """What the section adds to gunicorn's configuration."""
        added = _OPTIONS.search(sections()[self.heading])
        return added[1].split() if added else []

    def text(self) -> str:
        """The front's configuration."""
        whole = block(self.whole)
        if not self.part:
            return whole
        # It stands where the first of these lines was.
        parts = iter([block(self.part)])
        text, count = re.subn(self.replaced, lambda _: next(parts, ""), whole, flags=re.MULTILINE)
        assert count, f"no {self.replaced!r} in:\n{whole}"
        return text

    def start(self, server: Server, changes: Mapping[str, str] | None = None) -> Front:
        """The front before *server*; *changes* are made to its configuration."""
        program = self.front.program
        if shutil.which(program) is None:
            pytest.skip(f"no {program} (Debian package {program})")
        text = changed(self.text(), dict([self.front.listen]) | _addresses(server) | dict(changes or {}))
        return self.front(text)


def _addresses(server: Server) -> dict[str, str]:
    """What the page has for the address of the server and its certificate's authority, and what to have instead."""
    found = {}
    if isinstance(server.address, str):
        found["/run/app.sock"] = server.address
    else:
        found["127.0.0.1:8000"] = f"127.0.0.1:{server.port}"
    if server.certificates is not None:
        found["/etc/ssl/app-ca.pem"] = str(server.certificates.ca_file)
    return found


_SERVER = r"^ +server .*\n"

#: Every configuration of the page.
RECIPES = {
    "nginx": Recipe(Nginx, "nginx"),
    "nginx-unix": Recipe(Nginx, "nginx", "nginx: a unix socket", r"^ +server 127.*\n"),
    "nginx-tls": Recipe(Nginx, "nginx", "nginx: TLS to the worker", r"^ +proxy_pass .*\n"),
    "nginx-websocket": Recipe(Nginx, "nginx", "nginx: WebSockets", r"(?<=listen 80;\n)\n"),
    "nginx-uwsgi": Recipe(Nginx, "nginx", "nginx: the uWSGI protocol", r"^ +proxy_.*\n"),
    "haproxy": Recipe(HAProxy, "HAProxy"),
    "haproxy-proxy": Recipe(HAProxy, "HAProxy", "HAProxy: the PROXY protocol", _SERVER),
    "haproxy-tls": Recipe(HAProxy, "HAProxy", "HAProxy: TLS to the worker", _SERVER),
    "haproxy-unix": Recipe(HAProxy, "HAProxy", "HAProxy: a unix socket", _SERVER),
    "apache": Recipe(Apache, "Apache"),
    "caddy": Recipe(Caddy, "Caddy"),
}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
