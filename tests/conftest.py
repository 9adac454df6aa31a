"""Fixtures of the functional tests; see harness.py for what they hand out."""

from __future__ import annotations

import select
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from harness import IS_OURS, WORKER, Certificates, Server, quit_all, stop_all

#: Seconds after which a functional test is given up, whatever it does.
TEST_TIMEOUT = 90

Serve = Callable[..., Server]

# How fast an example is made or tried says more about the machine than about us.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Name our marks."""
    for line in (
        "only_ours(reason): what gunicorn's own worker cannot do; there, the test has to fail",
        "logs_traceback: the application makes the server log a traceback here",
        "silent_only_here: other workers log a traceback where ours has none to log",
    ):
        config.addinivalue_line("markers", line)


def pytest_report_header() -> str:
    """Say what is being tested."""
    return f"worker under test: {WORKER}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each functional test its deadline; expect of other workers what they cannot do."""
    has_timeouts = config.pluginmanager.hasplugin("timeout")
    for item in items:
        functional = {"serve", "reference"} & set(getattr(item, "fixturenames", ()))
        if functional and has_timeouts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT))
        mark = item.get_closest_marker("only_ours")
        if mark is not None and not IS_OURS:
            item.add_marker(pytest.mark.xfail(reason=str(mark.args[0]), strict=True))


def _backends() -> list[Any]:
    if not IS_OURS:
        return [pytest.param(None, id=WORKER)]
    no_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll on this system")
    return [pytest.param("epoll", marks=no_epoll), pytest.param("portable")]


@pytest.fixture(scope="module", params=_backends())
def backend(request: pytest.FixtureRequest) -> str | None:
    """Each event backend of the worker under test, one after the other."""
    name: str | None = request.param
    return name


@pytest.fixture(scope="session")
def certificates() -> Iterator[Certificates]:
    """Certificates made for this run."""
    with tempfile.TemporaryDirectory(prefix="kw-") as directory:
        yield Certificates(Path(directory))


class Pool:
    """Servers that run, by what they were started with, so that tests can share them."""

    def __init__(self, **defaults: Any) -> None:
        self.defaults = defaults
        self.servers: dict[Any, Server] = {}
        #: Servers of single tests, told to quit and not waited for yet.
        self.leaving: list[Server] = []

    def get(self, app: str, *options: str, **keywords: Any) -> Server:
        """The server with these options, started where there is none yet."""
        keywords = self.defaults | keywords
        key = (app, options, repr(sorted(keywords.items(), key=lambda item: item[0])))
        server = self.servers.get(key)
        if server is not None and server.process.poll() is not None:
            log = server.log()
            server.kill()
            del self.servers[key]
            raise AssertionError(f"a shared server has ended by itself:\n{log}")
        if server is None:
            server = self.servers[key] = Server(app, *options, **keywords)
        return server

    def dismiss(self, server: Server) -> None:
        """End a server that nobody else uses, while the next tests run."""
        quit_all([server])
        self.leaving.append(server)

    def close(self) -> None:
        """End all servers."""
        stop_all([*self.leaving, *self.servers.values()])
        self.leaving.clear()
        self.servers.clear()


@pytest.fixture(scope="module")
def server_pool(backend: str | None) -> Iterator[Pool]:
    """The servers that the tests of a module share."""
    pool = Pool(backend=backend)
    try:
        yield pool
    finally:
        pool.close()


@pytest.fixture(scope="session")
def reference_pool() -> Iterator[Pool]:
    """gunicorn's gevent worker with its Python parser, for comparison."""
    pool = Pool(worker="gevent")
    try:
        yield pool
    finally:
        pool.close()


@pytest.fixture
def serve(request: pytest.FixtureRequest, server_pool: Pool, backend: str | None) -> Iterator[Serve]:
    """Start the worker under test: ``serve("gallery:app", "--keep-alive", "5")``.

    Tests of one module that ask for the same options get the same server, unless they say
    ``fresh=True``. No test may leave a traceback in the log unless it is marked so.
    """
    used: dict[int, tuple[Server, int]] = {}
    fresh_servers: list[Server] = []

    def start(app: str, *options: str, fresh: bool = False, **keywords: Any) -> Server:
        if fresh:
            server = Server(app, *options, **({"backend": backend} | keywords))
            fresh_servers.append(server)
            used[id(server)] = (server, 0)
        else:
            known = len(server_pool.servers)
            server = server_pool.get(app, *options, **keywords)
            begin = 0 if len(server_pool.servers) > known else server.log_size
            used.setdefault(id(server), (server, begin))
        return server

    try:
        yield start
        marked = request.node.get_closest_marker("logs_traceback") is not None
        ours_alone = ("only_ours", "silent_only_here")
        expected_to_fail = not IS_OURS and any(map(request.node.get_closest_marker, ours_alone))
        if not marked and not expected_to_fail:
            for server, begin in used.values():
                log = server.log(begin)
                assert "Traceback" not in log, f"the server logged a traceback:\n{log}"
    finally:
        for server, _ in used.values():
            server.close_clients()
        for server in fresh_servers:
            server_pool.dismiss(server)


@pytest.fixture
def reference(reference_pool: Pool) -> Iterator[Serve]:
    """As ``serve``, but gunicorn's gevent worker with ``--http-parser python``."""
    used: list[Server] = []

    def start(app: str, *options: str, **keywords: Any) -> Server:
        server = reference_pool.get(app, "--http-parser", "python", *options, **keywords)
        used.append(server)
        return server

    try:
        yield start
    finally:
        for server in used:
            server.close_clients()
