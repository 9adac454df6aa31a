"""keepalive-top: its logic without any I/O, what it says of servers that have no report, and the live view
in a real terminal."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from harness import APPS, IS_OURS, ROOT, Server, wait_until
from interpreter import environment
from terminal import Terminal, needs_tmux

from keepalive_worker.top import view
from keepalive_worker.top.command import main
from keepalive_worker.top.endpoint import AwayError, Endpoint, NoReportError, NotOursError, RefusedError

if TYPE_CHECKING:
    from conftest import Serve

STATS = ("--stats-path", "/stats")
TOP = (sys.executable, "-m", "keepalive_worker.top")

needs_worker = pytest.mark.skipif(not IS_OURS, reason="other workers have no such endpoint")


def report(at: int = 0, connections: list[dict[str, Any]] | None = None, **totals: Any) -> dict[str, Any]:
    """A report made *at* seconds past noon."""
    return {
        "generated_at": f"2030-01-01T12:{at // 60:02d}:{at % 60:02d}.000Z",
        "worker_pid": 7,
        "workers": [{"pid": 7, "state": "running"}],
        "connections": connections or [],
        "totals": {
            "connections_accepted": 0,
            "connections_open": 0,
            "connections_idle": 0,
            "connections_active": 0,
            "requests": 0,
            "requests_reused": 0,
            "reuse_ratio": 0.0,
            "bytes_received": 0,
            "bytes_sent": 0,
            "closed": {"client": 0, "evicted": 0},
        }
        | totals,
    }


def connection(peer: str = "192.0.2.1:1000", **values: Any) -> dict[str, Any]:
    """A row of a report."""
    return {
        "id": 1,
        "worker_pid": 7,
        "peer": peer,
        "state": "idle",
        "protocol": "HTTP/1.1",
        "requests": 1,
        "age": 1.0,
        "idle": 1.0,
        "closes_in": 1.0,
        "bytes_received": 10,
        "bytes_sent": 10,
    } | values


@pytest.fixture(scope="module")
def backend() -> None:
    """The default one: what the worker runs on makes no difference to who looks at it from outside."""


# --- rates ------------------------------------------------------------------------------------


def test_rates_are_what_happened_per_second() -> None:
    before = report(0, requests=100, requests_reused=50, closed={"client": 1})
    after = report(
        4,
        requests=140,
        requests_reused=80,
        connections_accepted=8,
        bytes_received=400,
        bytes_sent=4000,
        closed={"client": 2, "evicted": 3},
    )
    made = view.rates(before, after)
    assert made == view.Rates(
        seconds=4, requests=10, accepted=2, closed=1, received=100, sent=1000, reuse=pytest.approx(0.75)
    )


def test_no_reuse_where_there_were_no_requests() -> None:
    made = view.rates(report(0, requests=5), report(1, requests=5))
    assert made is not None
    assert made.reuse is None


@pytest.mark.parametrize("counter", ["requests", "requests_reused", "connections_accepted", "bytes_sent"])
def test_no_rates_across_a_restart(counter: str) -> None:
    assert view.rates(report(0, **{counter: 5}), report(1, **{counter: 4})) is None


def test_no_rates_where_no_time_has_passed() -> None:
    assert view.rates(report(1), report(1)) is None
    assert view.rates(report(1), report(0)) is None


def test_history_has_a_gap_where_the_server_was_away() -> None:
    history = view.History()
    assert history.add(report(0, requests=0)) is None
    assert history.add(report(1, requests=8)) is not None
    history.gap()
    history.gap()
    assert history.add(report(9, requests=10)) is None
    assert history.add(report(10, requests=11)) is not None
    assert list(history.open) == [0, 0, None, 0, 0]
    assert history.spark("requests", 10) == "█▂"


def test_history_is_bounded() -> None:
    history = view.History(length=3)
    for second in range(10):
        history.add(report(second, requests=second))
    assert len(history.rates) == len(history.open) == 3


# --- sparklines -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 5, ""),
        ([0, 0], 5, "▁▁"),
        ([0, 7], 5, "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([100, 1, 2], 2, "▅█"),  # what is not shown does not count for the scale
        ([1, None, 1], 5, "█ █"),
        ([None], 5, " "),
        ([1, 2], 0, ""),
    ],
)
def test_sparkline(values: list[float | None], width: int, line: str) -> None:
    assert view.sparkline(values, width) == line


# --- connections ------------------------------------------------------------------------------


def test_sorting_by_numbers_begins_with_the_greatest() -> None:
    rows = [connection(requests=number) for number in (2, 10, 1)]
    assert [row["requests"] for row in view.sorted_by(rows, "requests")] == [10, 2, 1]
    assert [row["requests"] for row in view.sorted_by(rows, "requests", reverse=True)] == [1, 2, 10]


def test_sorting_leaves_what_has_no_value_for_last() -> None:
    rows = [connection(closes_in=value) for value in (5.0, None, 2.0)]
    assert [row["closes_in"] for row in view.sorted_by(rows, "closes_in")] == [2.0, 5.0, None]
    assert [row["closes_in"] for row in view.sorted_by(rows, "closes_in", reverse=True)] == [5.0, 2.0, None]


def test_sorting_by_peer_is_by_address_and_port() -> None:
    peers = ["10.0.0.2:80", "[::1]:5", "9.0.0.1:80", "10.0.0.2:9", ""]
    rows = [connection(peer) for peer in peers]
    expected = ["9.0.0.1:80", "10.0.0.2:9", "10.0.0.2:80", "[::1]:5", ""]
    assert [row["peer"] for row in view.sorted_by(rows, "peer")] == expected


@pytest.mark.parametrize("name", list(view.BY_NAME))
def test_every_column_can_be_sorted_by(name: str) -> None:
    assert len(view.sorted_by([connection(), connection("")], name)) == 2


def test_filtering_needs_every_word() -> None:
    rows = [
        connection("10.0.0.1:1"),
        connection("10.0.0.1:2", state="handling"),
        connection("10.0.0.2:3", protocol="HTTP/2", worker_pid=99),
    ]
    found = {
        words: [row["peer"][-1] for row in view.matching(rows, words)] for words in ("", "10.0.0.1 IDLE", "99", "x")
    }
    assert found == {"": ["1", "2", "3"], "10.0.0.1 IDLE": ["1"], "99": ["3"], "x": []}


def test_nothing_reaches_the_terminal_that_it_would_obey() -> None:
    made = report(connections=[connection("\x1b[2J\x07evil")], closed={"\x1b]0;x\x07": 1})
    text = view.page(made | {"notes": ["\x1b[31m"]}, "http://x/")
    assert "evil" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)


# --- lines ------------------------------------------------------------------------------------


def test_lines_of_totals() -> None:
    history = view.History()
    history.add(report(0))
    now = history.add(
        report(2, requests=1000, requests_reused=900, reuse_ratio=0.9, connections_open=12345, bytes_sent=4_000_000)
    )
    lines = view.totals(history.latest or {}, now, history, 100)
    assert [line.split() for line in lines] == [
        ["Open", "12,345", "0", "idle,", "0", "active", "▁█"],
        ["Accepted", "0", "0.0/s"],
        ["Requests", "1,000", "500.0/s", "90.0", "%", "reused", "(now", "90.0", "%)", "█"],
        ["Received", "0", "B", "0", "B/s", "▁"],
        ["Sent", "4.0", "MB", "2.0", "MB/s", "█"],
    ]


def test_closes_are_listed_most_frequent_first_and_marked_where_they_matter() -> None:
    closed = {"client": 5, "evicted": 9, "lifetime": 0}
    assert view.closes(report(closed=closed)) == [("evicted", "9", True), ("client", "5", False)]


def test_the_headline_says_who_is_leaving() -> None:
    made = report(65) | {"workers": [{"state": "running"}, {"state": "draining"}]}
    assert view.headline(made, "http://x/s") == "http://x/s  2 workers (1 draining)  12:01:05 UTC"


def test_a_table_is_aligned() -> None:
    lines = view.table([column.title for column in view.COLUMNS], [view.cells(connection(requests=12345))])
    assert lines[0].startswith("Peer            State")
    assert lines[1].startswith("192.0.2.1:1000  idle ")
    assert lines[0].index("Requests") + len("Requests") == lines[1].index("12,345") + len("12,345")


# --- servers that give no report --------------------------------------------------------------


@contextmanager
def answering(status: int, body: bytes, **fields: str) -> Iterator[str]:
    """A server that answers everything in one way; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/stats"
        finally:
            server.shutdown()
            thread.join()


def complaint(url: str, **keywords: Any) -> NoReportError:
    """What is said of a URL."""
    endpoint = Endpoint(url, **keywords)
    with pytest.raises(NoReportError) as caught:
        endpoint.report()
    endpoint.close()
    return caught.value


def test_nobody_listens() -> None:
    with answering(200, b"") as url:
        pass
    error = complaint(url)
    assert isinstance(error, AwayError)
    assert str(error) == f"{url} does not answer: connection refused. Is the server running, and is that its port?"


def test_no_such_host() -> None:
    error = complaint("http://keepalive.invalid/stats")
    assert isinstance(error, AwayError)
    assert "name cannot be resolved" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "fields", "kind", "words"),
    [
        (403, b"", {}, RefusedError, "--stats-token as --token"),
        (401, b"", {}, RefusedError, "refuses (401)"),
        (404, b"", {}, NotOursError, "answers 404. Is that the path which the server has as --stats-path?"),
        (302, b"", {"Location": "/login"}, NotOursError, "redirects to /login: give that URL"),
        (502, b"", {}, AwayError, "answers 502"),
        (503, b"No connection data is available: x is not ours\n", {}, NotOursError, "x is not ours"),
        (200, b"<p>", {"Content_Type": "text/html"}, NotOursError, "answers with text/html, not with JSON"),
        (200, b"[1]", {}, NotOursError, "other JSON"),
        (200, b'{"totals": {}}', {}, NotOursError, "other JSON"),
        (200, json.dumps(report() | {"generated_at": "now"}).encode(), {}, NotOursError, "other JSON"),
    ],
)
def test_answers_that_are_no_report(
    status: int, body: bytes, fields: dict[str, str], kind: type[NoReportError], words: str
) -> None:
    with answering(status, body, **fields) as url:
        error = complaint(url)
    assert type(error) is kind
    assert words in str(error)


def test_a_wrong_token_is_called_so() -> None:
    with answering(403, b"") as url:
        assert "the token is not the server's" in str(complaint(url, token="wrong"))


def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = complaint(f"127.0.0.1:{silent.getsockname()[1]}/stats", timeout=0.05)
    assert isinstance(error, AwayError)
    assert "nothing came within 0.05 s" in str(error)


@pytest.mark.parametrize("url", ["ftp://x/", "http://", "http://x:99999/", "http://x/ä", "http://x/a b"])
def test_what_is_no_url_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([url, "--once"])
    assert caught.value.code == 2
    assert "URL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--interval", "0"), ("--interval", "nan"), ("--limit", "-1"), ("--sort", "x")]
)
def test_bad_options_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["http://x/", option, value])
    assert caught.value.code == 2
    assert option in capsys.readouterr().err


# --- for scripts ------------------------------------------------------------------------------


def run_top(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run keepalive-top to its end."""
    variables = environment(PYTHONPATH=str(ROOT), **env)
    return subprocess.run([*TOP, *arguments], capture_output=True, text=True, timeout=60, env=variables, check=False)


def test_imports_neither_gunicorn_nor_gevent() -> None:
    code = """
import sys
import keepalive_worker.top.screen, keepalive_worker.top.command
print(*[name for name in sys.modules if name.partition(".")[0] in ("gunicorn", "gevent")])
"""
    variables = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import site; site.main()\n{code}"],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_without_the_extra_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["textual"] = None
sys.modules["textual.app"] = None
from keepalive_worker.top.command import main
sys.exit(main(["http://127.0.0.1:1/"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 6
    assert done.stderr.startswith("keepalive-top: the live view needs a package that is not installed.")
    assert "pip install 'keepalive-worker[top]'" in done.stderr


def test_without_a_terminal_it_says_what_to_do_instead() -> None:
    done = run_top("http://127.0.0.1:1/")
    assert done.returncode == 2
    assert "--once and --json" in done.stderr


@needs_worker
def test_once(serve: Serve) -> None:
    server = serve("steady:app", *STATS, fresh=True)
    clients = [server.connect() for _ in range(3)]
    for number, client in enumerate(clients):
        for _ in range(number + 1):
            client.get()
    done = run_top(
        f"http://127.0.0.1:{server.port}/stats", "--once", "--sort", "requests", "--filter", "idle", "--limit", "2"
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"http://127.0.0.1:{server.port}/stats  1 worker  ")
    assert next(line for line in lines if line.startswith("Requests ")).split()[1] == "7"
    rows = lines[lines.index("") :][-2:]
    assert [row.split()[0] for row in rows] == [f"127.0.0.1:{client.port}" for client in clients[:0:-1]]


@needs_worker
def test_json_lines_carry_rates(serve: Serve) -> None:
    server = serve("steady:app", *STATS, "--stats-allow", "192.0.2.1", "--stats-token", "secret", fresh=True)
    url = f"http://127.0.0.1:{server.port}/stats"
    refused = run_top(url, "--json", "--once")
    assert refused.returncode == 4
    assert "--token" in refused.stderr
    command = [*TOP, url, "--json", "--interval", "0.1"]
    variables = environment(PYTHONPATH=str(ROOT), KEEPALIVE_TOP_TOKEN="secret")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as top:
        assert top.stdout is not None
        first, second = (json.loads(top.stdout.readline()) for _ in range(2))
        top.terminate()
    assert first["rates"] is None
    # Its own requests, over one connection.
    assert second["rates"]["requests"] > 0
    assert second["rates"]["accepted"] == 0
    assert second["totals"]["connections_open"] == 1


@needs_worker
def test_json_waits_for_a_server_that_has_gone(serve: Serve) -> None:
    server = serve("steady:app", *STATS, fresh=True)
    command = [*TOP, f"http://127.0.0.1:{server.port}/stats", "--json", "--interval", "0.1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(PYTHONPATH=str(ROOT))
    ) as top:
        assert top.stdout is not None
        assert top.stderr is not None
        top.stdout.readline()
        server.stop()
        assert "Trying again." in top.stderr.readline()
        again = serve("steady:app", *STATS, fresh=True, binds=(f"127.0.0.1:{server.port}",))
        pids = set(again.workers())
        wait_until(lambda: json.loads(top.stdout.readline())["worker_pid"] in pids, "a report of the new server")  # type: ignore[union-attr]
        top.terminate()


# --- the live view ----------------------------------------------------------------------------


def first_row(terminal: Terminal) -> str:
    """The peer in the connection table's first row."""
    lines = terminal.lines()
    titles = [number for number, line in enumerate(lines) if line.lstrip().startswith("Peer")]
    return lines[titles[0] + 1].split()[0] if titles else ""


def wait_for_first(terminal: Terminal, port: int) -> None:
    """Wait until the client with this port is in the first row."""
    wait_until(lambda: first_row(terminal) == f"127.0.0.1:{port}", "\n".join(terminal.lines()), 20)


@needs_worker
@needs_tmux
def test_keys(serve: Serve) -> None:
    server = serve("steady:app", *STATS, "--keep-alive", "300", fresh=True)
    clients = [server.connect() for _ in range(5)]
    for number, client in enumerate(clients):
        for _ in range(10 * number + 1):
            client.get()
    url = f"http://127.0.0.1:{server.port}/stats"
    with Terminal(*TOP, url, "--interval", "0.5") as terminal:
        terminal.wait_for("6 of 6 connections")
        assert "1 worker" in terminal.wait_for(url)
        assert "5 idle, 1 active" in terminal.wait_for("Open")
        # Rates and sparklines come with the second report.
        assert re.search(r"\d/s .* reused \(now [\d.]+ %\) +[▁-█]", terminal.wait_for("/s  9"))
        wait_for_first(terminal, clients[0].port)
        terminal.press("n")
        terminal.wait_for("Requests ▼")
        wait_for_first(terminal, clients[-1].port)
        terminal.press("r")
        terminal.wait_for("Requests ▲")
        terminal.press("]", "]", "]", "]", "]")
        terminal.wait_for("Id ▼")
        terminal.press("[", "[", "[", "[", "[", "[", "[", "[", "[", "[")
        terminal.wait_for("Peer ▲")
        terminal.press("/")
        terminal.wait_for("words to find")
        terminal.press("-l", str(clients[2].port))
        terminal.wait_for(f"1 of 6 connections, with “{clients[2].port}”")
        wait_for_first(terminal, clients[2].port)
        terminal.press("Enter")
        terminal.press("Escape")
        terminal.wait_for("6 of 6 connections")
        terminal.press("+")
        terminal.wait_for("every 1 s")
        terminal.press("Space")
        terminal.wait_for("paused")
        clients[0].close()
        terminal.press("Space")
        terminal.wait_for("5 of 5 connections")
        terminal.wait_for("client 1")
        terminal.press("q")
        terminal.wait_for("exit status 0")


@needs_worker
@needs_tmux
def test_a_server_that_comes_back_is_picked_up_again(serve: Serve) -> None:
    server = serve("steady:app", *STATS, fresh=True)
    client = server.connect()
    client.get()
    with Terminal(*TOP, f"http://127.0.0.1:{server.port}/stats", "--interval", "0.5") as terminal:
        terminal.wait_for(f"127.0.0.1:{client.port}")
        client.close()
        server.stop()
        terminal.wait_for("connection refused")
        again = serve("steady:app", *STATS, fresh=True, binds=(f"127.0.0.1:{server.port}",))
        newcomer = again.connect()
        newcomer.get()
        terminal.wait_for(f"127.0.0.1:{newcomer.port}")
        terminal.wait_until_gone("connection refused")
        terminal.press("q")
        terminal.wait_for("exit status 0")


@needs_worker
@needs_tmux
def test_a_server_that_refuses_is_told_before_anything_is_drawn() -> None:
    server = Server("steady:app", *STATS, "--stats-allow", "192.0.2.1", chdir=APPS)
    try:
        with Terminal(*TOP, f"http://127.0.0.1:{server.port}/stats") as terminal:
            terminal.wait_for("refuses (403). Give the server's --stats-token as --token")
            terminal.wait_for("exit status 4")
        with Terminal(*TOP, f"http://127.0.0.1:{server.port}/") as terminal:
            terminal.wait_for("exit status 5")
    finally:
        server.kill()
