"""Every configuration of docs/behind-a-load-balancer.md as it stands: requests, and what the application sees."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import websocket
from conftest import Serve
from fronts import RECIPES, Front, Recipe, headings_with_code, worker_configuration
from harness import Certificates, Client, Server, chunked, request, wait_until

pytestmark = pytest.mark.only_ours("asks for the statistics of this worker")

STATS = "/keepalive-stats"
TOKEN = "t0ken"
#: Where the fronts' clients come from; the fronts themselves connect from 127.0.0.1.
CLIENT = "127.0.0.2"
CLIENTS = 6
ROUNDS = 3
WHOLE = [name for name, recipe in RECIPES.items() if not recipe.part]
#: Writes down how each connection ended: asking the worker over another one would count, too.
NOTE_ENDS = """
def connection_closed(worker, connection, reason):
    with open("{dir}/ends", "a") as file:
        file.write(reason + "\\n")
"""

Worker = Callable[..., Server]


@pytest.fixture(scope="module")
def backend() -> str:
    """One event backend: what differs between them is tested elsewhere."""
    return "epoll"


@pytest.fixture
def worker(serve: Serve, certificates: Certificates) -> Worker:
    """Start gunicorn as a recipe says: ``worker(RECIPES["nginx"])``."""

    def start(recipe: Recipe, app: str = "gallery:app") -> Server:
        options = [*recipe.worker_options, "--stats-path", STATS, "--stats-token", TOKEN]
        config = worker_configuration() + NOTE_ENDS
        keywords: dict[str, Any] = {"config": config, "keepalive": None, "fresh": True}
        if "--bind" in options:
            at = options.index("--bind")
            assert options[at + 1] == "unix:/run/app.sock"
            del options[at : at + 2]
            keywords["binds"] = ("unix:{dir}/app.sock",)
        if "--certfile" in options:
            at = options.index("--certfile")
            assert options[at : at + 4] == ["--certfile", "...", "--keyfile", "..."]
            del options[at : at + 4]
            keywords["certificates"] = certificates
        return serve(app, *options, **keywords)

    return start


def test_every_configuration_of_the_page_is_run() -> None:
    assert {recipe.heading for recipe in RECIPES.values()} == set(headings_with_code()) - {"The worker"}


# --- requests ------------------------------------------------------------------------------------


def _body(seed: int) -> bytes:
    """2 MB that no other seed gives."""
    return hashlib.shake_128(b"%d" % seed).digest(2 << 20)


def _all_kinds(client: Client, number: int, large: bool) -> None:
    """One request of each kind, the answers checked; *large* ones among these or not."""
    assert client.get("/").body == b"Hello, world!\n"
    body = _body(number)
    expected = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    upload = client.get("/uploads/digest", method="POST", body=body)
    assert (upload.status, upload.json()) == (200, expected)
    client.send(request("/uploads/digest", "Transfer-Encoding: chunked", method="POST"))
    client.send(chunked(body[:1000], body[1000:]))
    assert client.read_response().json() == expected
    if large:
        assert client.get("/lengths/large").body == bytes(range(256)) * (3 << 12)
    else:
        assert client.get("/lengths/pieces").body == b"Hello, world!\n"
    count = 24 if large else 0
    query = urlencode({"name": f"front {number}", "count": count})
    assert len(client.get(f"/streaming/watched?{query}").body) == count << 16
    assert client.get("/lengths/hello", method="HEAD").body == b""


KINDS = 6
#: HAProxy 2.6.12 now and then does not pass on the last kilobytes of a large response that a server has sent
#: over TLS, not before its timeout (the page says so): seen under load, with all bytes acknowledged to the worker.
HOLDS_BACK = "haproxy-tls"


@pytest.mark.parametrize("name", RECIPES)
def test_requests_of_all_kinds(worker: Worker, name: str) -> None:
    """Answered as without the front, over few connections, which the front ends."""
    recipe = RECIPES[name]
    server = worker(recipe)
    failed: list[BaseException] = []

    def run(front: Front, number: int) -> None:
        try:
            with Client(front.address, source=CLIENT) as client:
                for round_ in range(ROUNDS):
                    _all_kinds(client, number * ROUNDS + round_, name != HOLDS_BACK)
        except BaseException as error:
            failed.append(error)

    with recipe.start(server) as front:
        threads = [threading.Thread(target=run, args=(front, number)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failed == []
        requests = CLIENTS * ROUNDS * KINDS
        front.wait_for_exchanges(requests)
        assert front.troubles() == []
        with Client(front.address) as client:
            totals = client.get(STATS, f"Authorization: Bearer {TOKEN}").json()["totals"]
    assert totals["requests"] == requests + 1
    accepted = totals["connections_accepted"]
    if name == "nginx-uwsgi":
        assert accepted == requests + 1
    else:
        # Each of a front's two processes or threads has a pool of its own.
        assert accepted <= 2 * CLIENTS + 1
        assert totals["requests_reused"] == totals["requests"] - accepted
    # It has gone now.
    wait_until(lambda: server.file("ends").count("\n") == accepted, "the end of all connections")
    # Without HTTP's chunks the end of a response without a length is the connection's.
    by_us = {"response"} if name == "nginx-uwsgi" else set()
    assert set(server.file("ends").split()) == {"client"} | by_us


# --- what the application sees -------------------------------------------------------------------

#: What a client might send to be taken for somebody else; and what the worker would refuse.
FORGED = (
    "X-Forwarded-Proto: https",
    "X-Forwarded-For: 192.0.2.1",
    "X_Forwarded_For: 192.0.2.2",
    "X-Forwarded-Ssl: on",
    "X-Forwarded-Protocol: ssl",
    "SCRIPT_NAME: /introspection",
    "REMOTE_USER: root",
)


def _environ(client: Client, *headers: str) -> dict[str, Any]:
    response = client.get("/introspection/environ", *headers)
    assert response.status == 200, response.raw
    environ: dict[str, Any] = response.json()
    return environ


@pytest.mark.parametrize("name", RECIPES)
def test_a_client_cannot_pass_itself_off_as_the_front(worker: Worker, name: str) -> None:
    server = worker(RECIPES[name])
    with RECIPES[name].start(server) as front, Client(front.address, source=CLIENT) as client:
        environ = _environ(client, *FORGED)
    assert environ["wsgi.url_scheme"] == environ["HTTP_X_FORWARDED_PROTO"] == "http"
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/introspection/environ")
    assert "HTTP_REMOTE_USER" not in environ
    assert environ["HTTP_HOST"] == "localhost"
    # Whatever the client says, what the front knows comes last.
    assert environ["HTTP_X_FORWARDED_FOR"].replace(" ", "").split(",")[-1] == CLIENT
    if name == "haproxy-proxy":
        assert environ["REMOTE_ADDR"] == CLIENT
    else:
        assert environ["REMOTE_ADDR"] == ("" if name.endswith("-unix") else "127.0.0.1")


@pytest.mark.parametrize("name", WHOLE)
def test_the_scheme_comes_from_the_front(
    worker: Worker, certificates: Certificates, tmp_path: Path, name: str
) -> None:
    recipe = RECIPES[name]
    both = tmp_path / "both.pem"
    both.write_bytes(certificates.cert_file.read_bytes() + certificates.key_file.read_bytes())
    plain, secure = recipe.front.secure
    for word, file in {"CERTIFICATE": certificates.cert_file, "KEY": certificates.key_file, "BOTH": both}.items():
        secure = secure.replace(word, str(file))
    with (
        recipe.start(worker(recipe), {plain: secure}) as front,
        Client(front.address, tls=certificates.client_context()) as client,
    ):
        environ = _environ(client, "X-Forwarded-Proto: http")
    assert environ["wsgi.url_scheme"] == environ["HTTP_X_FORWARDED_PROTO"] == "https"


@pytest.mark.parametrize("name", WHOLE)
def test_the_workers_promise_is_not_passed_on(worker: Worker, name: str) -> None:
    """``Keep-Alive`` is for the connection between front and worker (RFC 9110 7.6.1)."""
    recipe = RECIPES[name]
    server = worker(recipe)
    assert server.get("/").header("Keep-Alive") is None
    with server.connect() as direct:
        assert direct.get("/").header("Keep-Alive") == "timeout=75"
    with recipe.start(server) as front, Client(front.address) as client:
        assert client.get("/").header("Keep-Alive") is None


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_each_client_behind_the_proxy_protocol_is_itself(worker: Worker, version: str) -> None:
    """Also when several of them are served by turns."""
    recipe = RECIPES["haproxy-proxy"]
    addresses = [f"127.0.0.{number}" for number in range(2, 8)]
    with recipe.start(worker(recipe), {"send-proxy-v2": version}) as front:
        clients = [Client(front.address, source=address) for address in addresses]
        for _ in range(3):
            assert [_environ(client)["REMOTE_ADDR"] for client in clients] == addresses
        for client in clients:
            client.close()


def test_websockets_beside_requests(worker: Worker) -> None:
    recipe = RECIPES["nginx-websocket"]
    with recipe.start(worker(recipe, "websocket_echo:app")) as front, Client(front.address) as client:
        host, port = front.address
        connection = websocket.create_connection(f"ws://{host}:{port}/echo", timeout=10)
        try:
            for size in (1, 1000, 100_000):
                connection.send("x" * size)
                assert connection.recv() == "x" * size
                assert client.get("/").body == b"Hello, world!\n"
            connection.close()
        finally:
            connection.shutdown()  # type: ignore[no-untyped-call]
        assert client.get("/").status == 200
