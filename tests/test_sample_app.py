"""The sample site: what it answers, in both frameworks, and what a browser makes of it."""

from __future__ import annotations

import contextlib
import hashlib
import html.parser
import http.client
import importlib
import io
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from werkzeug.serving import make_server
from werkzeug.test import Client, TestResponse, create_environ, run_wsgi_app

ROOT = Path(__file__).resolve().parent.parent
APPS = {"flask": "sample_app.flask_app:app", "django": "sample_app.django_app:application"}
PAGES = ("/", "/resources", "/upload")
HTML = {"Accept": "text/html,*/*;q=0.8"}
JSON = {"Content-Type": "application/json"}

sys.path.append(str(ROOT))  # the site runs from the checkout, it is not installed


class FakeConnection:
    """Stands in for ``environ["keepalive.connection"]``."""

    id = 12
    requests = 3
    reused = True
    age = 4.25
    idle = 1.5
    bytes_received = 1234
    bytes_sent = 56_789
    requests_left: int | None = 7
    timeout = 2.0
    peer = "192.0.2.1:5000"
    protocol = "HTTP/1.1"
    tls = False

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def keep_idle(self, seconds: float) -> None:
        self.timeout = seconds


class Site:
    """One of the two applications and a client that asks from this machine."""

    def __init__(self, framework: str) -> None:
        module, _, name = APPS[framework].partition(":")
        self.framework = framework
        self.application: Any = getattr(importlib.import_module(module), name)
        self.client = Client(self.application)

    def ask(
        self, method: str, url: str, connection: FakeConnection | None = None, **options: Any
    ) -> TestResponse:
        environ = {"REMOTE_ADDR": "127.0.0.1", "SERVER_SOFTWARE": "tests", **options.pop("environ", {})}
        if connection is not None:
            environ["keepalive.connection"] = connection
        options = {"buffered": True, **options}
        return self.client.open(url, method=method, environ_overrides=environ, **options)

    def get(self, url: str, connection: FakeConnection | None = None, **options: Any) -> TestResponse:
        return self.ask("GET", url, connection, **options)

    def post(self, url: str, connection: FakeConnection | None = None, **options: Any) -> TestResponse:
        return self.ask("POST", url, connection, **options)


@pytest.fixture(params=APPS)
def site(request: pytest.FixtureRequest) -> Site:
    """Each of the two applications."""
    return Site(request.param)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the site slept, in seconds, without the waiting."""
    content = importlib.import_module("sample_app.content")
    naps: list[float] = []
    clock = itertools.count()

    class Time:
        sleep = staticmethod(naps.append)
        monotonic = staticmethod(lambda: float(next(clock)))

    monkeypatch.setattr(content, "time", Time)
    return naps


def json_of(answer: TestResponse) -> Any:
    """The value of a JSON body."""
    assert answer.mimetype == "application/json"
    return json.loads(answer.data)


class Tags(html.parser.HTMLParser):
    """All start tags of a page, each with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def addresses(self) -> set[str]:
        """Everything that the page links to, loads or sends forms to."""
        values = (a.get(name) for _, a in self.found for name in ("href", "src", "action"))
        return {value for value in values if value and not value.startswith("#")}


# --- pages -----------------------------------------------------------------------------------


def test_the_overview_links_to_everything(site: Site) -> None:
    addresses = Tags(site.get("/").text).addresses()
    expected = {
        "/resources", "/upload", "/keepalive-stats", "/api/time", "/api/echo", "/slow", "/stream", "/events",
        "/download",
    }  # fmt: skip
    assert expected <= addresses


@pytest.mark.parametrize("page", PAGES)
def test_each_link_of_a_page_leads_somewhere(site: Site, page: str, slept: list[float]) -> None:
    for address in Tags(site.get(page).text).addresses():
        assert site.get(address).status_code != 404, address


def test_the_statistics_are_for_this_machine(site: Site) -> None:
    assert site.get("/keepalive-stats").status_code not in (403, 404)
    assert site.get("/keepalive-stats", environ={"REMOTE_ADDR": "192.0.2.1"}).status_code == 403
    assert site.get("/keepalive-stats/").status_code == 404


@pytest.mark.parametrize("page", PAGES)
def test_both_frameworks_make_the_same_page(page: str) -> None:
    texts = []
    for framework in APPS:
        text = Site(framework).get(page, FakeConnection(), headers=HTML).text
        text = re.sub(r"(?s)<form[^>]*data-call=\"websocket\".*?</form>", "", text)
        text = re.sub(r"uploads and a WebSocket", "uploads", text)
        texts.append(re.sub(r"(Flask|Django) [\d.]+", "FRAMEWORK", " ".join(text.split())))
    assert texts[0] == texts[1]
    assert "FRAMEWORK on tests" in texts[0]


def test_the_overview_tells_about_its_connection(site: Site) -> None:
    words = " ".join(re.sub(r"<[^>]*>", " ", site.get("/", FakeConnection()).text).split())
    for fact in (
        "Connection no. 12", "Request on it no. 3", "Open for 4.25 s", "Idle before this 1.5 s",
        "May stay idle 2 s", "Requests left 7", "Received 1.2 kB", "Sent before this 56.8 kB",
        "Protocol HTTP/1.1", "Your end 192.0.2.1:5000",
    ):  # fmt: skip
        assert fact in words
    assert "not keepalive_worker" not in words


def test_the_overview_says_that_there_is_no_cap(site: Site) -> None:
    connection = FakeConnection()
    connection.requests_left = None
    assert "no limit" in site.get("/", connection).text


@pytest.mark.parametrize("page", ["/", "/resources"])
def test_a_page_says_that_the_server_is_another(site: Site, page: str) -> None:
    assert "server is not keepalive_worker" in site.get(page).text
    assert "server is not keepalive_worker" not in site.get(page, FakeConnection()).text


def test_what_comes_from_outside_is_escaped(site: Site) -> None:
    connection = FakeConnection()
    connection.peer = "<script>peer</script>"
    answers = [
        site.get("/", connection, environ={"SERVER_SOFTWARE": "<script>server</script>"}),
        site.get("/slow?seconds=<script>query</script>", headers=HTML),
    ]
    for answer in answers:
        assert "&lt;script&gt;" in answer.text
        assert not re.search("<script>(peer|server|query)", answer.text)


@pytest.mark.parametrize("page", [*PAGES, "/no/such/page"])
def test_pages_are_made_for_a_strict_policy(site: Site, page: str) -> None:
    answer = site.get(page, FakeConnection(), headers=HTML)
    tags = Tags(answer.text)
    policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) == {"'self'", "'none'"}
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for tag, attributes in tags.found:
        assert tag != "style"
        assert tag != "script" or "src" in attributes
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
    assert all(re.match(r"/(?!/)", address) for address in tags.addresses())


def test_no_file_names_another_host() -> None:
    static = ROOT / "sample_app" / "static"
    for path in [*static.iterdir(), *(ROOT / "sample_app" / "templates").iterdir()]:
        hosts = set(re.findall(r"(?<!:)//[\w-]+\.[\w.-]+", path.read_text()))
        assert hosts <= {"//www.w3.org"}, path.name  # the name of SVG, which nobody loads


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_for_everybody(site: Site, page: str) -> None:
    tags = Tags(site.get(page, FakeConnection()).text).found
    assert ("html", {"lang": "en"}) in tags
    names = [tag for tag, _ in tags]
    assert names.count("h1") == names.count("main") == names.count("title") == 1
    ids = {a["id"] for _, a in tags if "id" in a}
    for tag, attributes in tags:
        assert tag != "img" or attributes.get("alt") is not None
        assert tag != "pre" or attributes.get("tabindex") == "0", "cannot be scrolled by keyboard"
        assert attributes.get("aria-labelledby", "title") in {*ids, "title"}
        if attributes.get("href", "").startswith("#"):  # type: ignore[union-attr]
            assert attributes["href"][1:] in ids  # type: ignore[index]


def test_static_files(site: Site) -> None:
    answer = site.get("/static/site.css")
    assert answer.data == (ROOT / "sample_app" / "static" / "site.css").read_bytes()
    assert answer.mimetype == "text/css"
    assert answer.headers["Cache-Control"] == "no-cache"
    since = {"If-Modified-Since": answer.headers["Last-Modified"]}
    assert site.get("/static/site.css", headers=since).status_code == 304
    for bad in ("/static/../content.py", "/static/none.css", "/static/"):
        assert site.get(bad).status_code == 404


# --- resources -------------------------------------------------------------------------------


def test_there_are_thirty_resources(site: Site) -> None:
    answers = [site.get(f"/resources/{number}.svg") for number in range(1, 31)]
    assert {answer.mimetype for answer in answers} == {"image/svg+xml"}
    titles = [ElementTree.fromstring(answer.data)[0].text for answer in answers]
    assert titles == [f"Resource {number}" for number in range(1, 31)]
    assert max(len(answer.data) for answer in answers) < 1000
    for number in ("0", "31", "-1", "x", "1.5"):
        assert site.get(f"/resources/{number}.svg").status_code == 404
    links = [address for address in Tags(site.get("/resources").text).addresses() if address.endswith(".svg")]
    assert len([link for link in links if link.startswith("/resources/")]) == 30


def test_a_resource_says_which_connection_it_came_over(site: Site) -> None:
    headers = site.get("/resources/7.svg", FakeConnection()).headers
    assert headers["X-Connection-Id"] == "12"
    assert headers["X-Connection-Requests"] == "3"
    assert headers["X-Worker-Pid"] == str(os.getpid())
    assert headers["Cache-Control"] == "no-store"
    assert "X-Connection-Id" not in site.get("/resources/7.svg").headers


def test_the_switch_closes_the_connection(site: Site) -> None:
    for query, closed in (("", False), ("?keepalive=on", False), ("?keepalive=off", True)):
        connection = FakeConnection()
        answer = site.get(f"/resources/1.svg{query}", connection)
        assert answer.status_code == 200
        assert connection.closed is closed, query
        assert "Connection" not in answer.headers, "an application may not set it (PEP 3333)"
    assert site.get("/resources/1.svg?keepalive=off").status_code == 200


def test_the_page_knows_its_switch(site: Site) -> None:
    connection = FakeConnection()
    assert 'data-keepalive="off"' in site.get("/resources?keepalive=off", connection).text
    assert not connection.closed, "the page itself is not one of the resources"
    assert 'data-keepalive="on"' in site.get("/resources").text


# --- JSON ------------------------------------------------------------------------------------


def test_the_time_comes_with_the_connection(site: Site) -> None:
    told = json_of(site.get("/api/time", FakeConnection()))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", told.pop("time"))
    assert told == {
        "worker_pid": os.getpid(),
        "connection": {
            "id": 12,
            "requests": 3,
            "reused": True,
            "age": 4.25,
            "idle": 1.5,
            "bytes_received": 1234,
            "bytes_sent": 56_789,
            "requests_left": 7,
            "timeout": 2.0,
            "peer": "192.0.2.1:5000",
            "protocol": "HTTP/1.1",
            "tls": False,
        },
    }
    assert json_of(site.get("/api/time"))["connection"] is None


def test_keep_idle_is_passed_on(site: Site) -> None:
    connection = FakeConnection()
    assert json_of(site.get("/api/time?keep_idle=20.5", connection))["connection"]["timeout"] == 20.5
    assert connection.timeout == 20.5
    assert site.get("/api/time?keep_idle=20.5").status_code == 200


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5, "grüße \ud800", [1, [2, {"a": None}]], {"a": {"b": []}}]
)
def test_echo(site: Site, value: Any) -> None:
    answer = site.post("/api/echo", FakeConnection(), data=json.dumps(value), headers=JSON)
    assert json_of(answer)["echo"] == value
    assert json_of(answer)["connection"]["id"] == 12


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff\xfe\x00", "application/json", 400),
        (b"NaN", "application/json", 400),
        (b"1e999", "application/json", 400),
        (b"9" * 5000, "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"[" * 100_000 + b"]" * 100_000, "application/json", 400),
        (b'"' + b"x" * (1 << 20) + b'"', "application/json", 413),
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
        (b'"fits"', "Application/JSON; charset=utf-8", 200),
        (b'"' + b"x" * ((1 << 20) - 2) + b'"', "application/json", 200),
    ],
)
def test_echo_takes_nothing_but_json(site: Site, body: bytes, content_type: str, status: int) -> None:
    answer = site.post("/api/echo", data=body, headers={"Content-Type": content_type})
    assert answer.status_code == status
    assert status == 200 or isinstance(json_of(answer)["error"], str)


def test_slow_waits_as_long_as_it_was_asked_to(site: Site, slept: list[float]) -> None:
    assert json_of(site.get("/slow")) == {"asked_for": 1.0, "waited": 1.0}
    assert json_of(site.get("/slow?seconds=0.25"))["asked_for"] == 0.25
    assert site.get("/slow?seconds=30").status_code == 200
    assert slept == [1, 0.25, 30]


# --- bad parameters and other errors ---------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *(
            f"/slow?seconds={text}"
            for text in ("-0.1", "30.01", "nan", "inf", "-inf", "1e999", "", "x", "1,5")
        ),
        *(f"/stream?lines={text}" for text in ("0", "1001", "1.5", "9" * 5000, "")),
        *(f"/stream?pause={text}" for text in ("-1", "5.1", "nan")),
        *(f"/events?events={text}" for text in ("0", "1001", "2.0")),
        *(f"/events?pause={text}" for text in ("-1", "31")),
        *(f"/download?mb={text}" for text in ("-1", "1001", "0.5")),
        *(f"/api/time?keep_idle={text}" for text in ("-1", "61", "nan")),
        *(
            f"{path}?keepalive={text}"
            for path in ("/resources", "/resources/1.svg")
            for text in ("", "ON", "no")
        ),
    ],
)
def test_a_bad_parameter_is_named(site: Site, url: str, slept: list[float]) -> None:
    connection = FakeConnection()
    answer = site.get(url, connection)
    name, _, value = url.partition("?")[2].partition("=")
    assert answer.status_code == 400
    assert json_of(answer)["error"].startswith(f"{name} must be ")
    assert json_of(answer)["error"].endswith(f"not {value[:40]!r}.")
    assert slept == []
    assert not connection.closed
    assert connection.timeout == 2.0


def test_errors_are_pages_for_browsers(site: Site) -> None:
    cases = {
        "/slow?seconds=99": (400, "Bad Request", "seconds must be a number from 0 to 30, not"),
        "/none": (404, "Not Found", "There is no page at this address."),
        "/api/echo": (405, "Method Not Allowed", "does not take this method"),
    }
    for url, (status, title, message) in cases.items():
        answer = site.get(url, FakeConnection(), headers=HTML)
        assert answer.status_code == status
        assert answer.mimetype == "text/html"
        assert re.search(rf"<title>{status} {title} ", answer.text)
        assert message in answer.text
        assert answer.headers["X-Connection-Id"] == "12"
        answer = site.get(url)
        assert answer.status_code == status
        assert message in json_of(answer)["error"]


def test_other_methods_are_refused(site: Site) -> None:
    for url in (
        "/",
        "/resources",
        "/resources/1.svg",
        "/api/time",
        "/slow",
        "/stream",
        "/events",
        "/download",
    ):
        answer = site.post(url)
        assert answer.status_code == 405, url
        assert {"GET", "HEAD"} <= {method.strip() for method in answer.headers["Allow"].split(",")}
    assert "POST" in site.get("/api/echo").headers["Allow"]
    assert site.ask("DELETE", "/upload").status_code == 405


def test_a_failure_is_answered_and_logged(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    content = importlib.import_module("sample_app.content")
    monkeypatch.setattr(content, "slow", lambda query: 1 // 0)
    answer = site.get("/slow", FakeConnection())
    assert answer.status_code == 500
    assert json_of(answer) == {"error": "The application failed. Its log says why."}
    assert "Content-Security-Policy" in answer.headers
    assert "ZeroDivisionError" in caplog.text + capsys.readouterr().err


def test_a_head_has_no_body(site: Site, slept: list[float]) -> None:
    for url in ("/", "/resources/1.svg", "/api/time", "/upload", "/static/site.css"):
        answer = site.ask("HEAD", url)
        assert answer.status_code == 200, url
        assert answer.headers["Content-Type"] == site.get(url).headers["Content-Type"]
    assert site.ask("HEAD", "/download?mb=1000").headers["Content-Length"] == "1000000000"
    for url in ("/stream", "/events", "/download"):
        body, _, _ = run_wsgi_app(site.application, create_environ(url, method="HEAD"), buffered=True)
        assert b"".join(body) == b"", "a server would wait for what it does not send"
    assert slept == []


# --- streams ---------------------------------------------------------------------------------


def test_a_stream_is_made_while_it_is_read(site: Site, slept: list[float]) -> None:
    answer = site.get("/stream", buffered=False)
    assert answer.mimetype == "text/plain"
    assert "Content-Length" not in answer.headers
    body = answer.iter_encoded()
    assert re.fullmatch(rb"line 1 of 10, after [\d.]+ s\n", next(body))
    assert slept == []
    assert next(body).startswith(b"line 2 of 10")
    assert slept == [0.2]
    assert len(list(body)) == 8
    assert slept == [0.2] * 9


def test_a_stream_as_long_as_asked_for(site: Site, slept: list[float]) -> None:
    assert site.get("/stream?lines=3&pause=1.5").text.count("\n") == 3
    assert slept == [1.5, 1.5]


def test_events(site: Site, slept: list[float]) -> None:
    answer = site.get("/events?events=2&pause=3")
    assert answer.mimetype == "text/event-stream"
    first, second, end, rest = answer.text.split("\n\n")
    assert rest == ""
    for number, event in enumerate((first, second), 1):
        fields = dict(line.split(": ", 1) for line in event.split("\n"))
        assert fields["id"] == str(number)
        assert fields["event"] == "tick"
        data = json.loads(fields["data"])
        assert (data["number"], data["of"]) == (number, 2)
    assert end == "event: end\ndata: {}"
    assert slept == [3]


# --- upload and download ---------------------------------------------------------------------


class Body(io.RawIOBase):
    """A ``wsgi.input`` of zeros that remembers how it was read."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.most = 0

    def read(self, size: int = -1) -> bytes:
        count = self.left if size < 0 else min(size, self.left)
        self.most = max(self.most, count)
        self.left -= count
        return bytes(count)

    def readinto(self, buffer: Any) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


ZEROS = 20_000_000
ZEROS_DIGEST = {"size": ZEROS, "sha256": hashlib.sha256(bytes(ZEROS)).hexdigest()}


def test_an_upload_is_read_piece_by_piece(site: Site) -> None:
    body = Body(ZEROS)
    answer = site.post("/upload", environ={"wsgi.input": body, "CONTENT_LENGTH": str(ZEROS)})
    assert json_of(answer) == ZEROS_DIGEST
    assert 0 < body.most <= 1 << 20


def test_an_upload_of_unknown_length(site: Site) -> None:
    body = Body(ZEROS)
    environ = {"wsgi.input": body, "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    answer = site.post("/upload", environ=environ)
    assert json_of(answer) == ZEROS_DIGEST
    assert 0 < body.most <= 1 << 20


def test_an_upload_is_not_taken_for_a_form(site: Site) -> None:
    form = "application/x-www-form-urlencoded"  # what curl --data-binary calls any file
    answer = site.post("/upload", data=b"a=1&b", headers={"Content-Type": form})
    assert json_of(answer) == {"size": 5, "sha256": hashlib.sha256(b"a=1&b").hexdigest()}


def test_an_empty_upload(site: Site) -> None:
    assert json_of(site.post("/upload")) == {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}


def form(field: str, content: bytes) -> dict[str, Any]:
    """What a browser sends for a form with a file."""
    head = f'--limit\r\nContent-Disposition: form-data; name="{field}"; filename="a.bin"\r\n\r\n'
    body = head.encode() + content + b"\r\n--limit--\r\n"
    return {"data": body, "headers": HTML | {"Content-Type": "multipart/form-data; boundary=limit"}}


def test_an_upload_by_the_form(site: Site) -> None:
    content = os.urandom(3_000_000)  # more than either framework keeps in memory
    answer = site.post("/upload", **form("file", content))
    assert answer.mimetype == "text/html"
    assert "3,000,000" in answer.text
    assert hashlib.sha256(content).hexdigest() in answer.text
    assert 'id="received" hidden' not in answer.text
    assert 'id="received" hidden' in site.get("/upload").text
    answer = site.post("/upload", **form("other", b"x"))
    assert answer.status_code == 400
    assert "The form has no file." in answer.text


def test_a_download(site: Site) -> None:
    answer = site.get("/download?mb=3")
    assert answer.mimetype == "application/octet-stream"
    assert answer.headers["Content-Length"] == "3000000"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="3mb.bin"'
    assert len(answer.data) == 3_000_000
    assert answer.data == site.get("/download?mb=3").data
    assert len(site.get("/download").data) == 10_000_000
    assert site.get("/download?mb=0").data == b""


def test_a_download_is_made_while_it_is_sent(site: Site) -> None:
    answer = site.get("/download?mb=1000", buffered=False)
    assert len(next(answer.iter_encoded())) <= 1 << 16
    answer.close()


# --- WebSocket -------------------------------------------------------------------------------


def test_a_plain_request_for_the_websocket() -> None:
    pytest.importorskip("flask_sock")
    answer = Site("flask").get("/ws")
    assert answer.status_code == 400
    assert json_of(answer) == {"error": "This address speaks WebSocket only."}
    assert Site("django").get("/ws").status_code == 404


def test_the_websocket_sends_back() -> None:
    pytest.importorskip("flask_sock")
    websockets = importlib.import_module("simple_websocket")
    server = make_server("127.0.0.1", 0, Site("flask").application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        websocket = websockets.Client(f"ws://127.0.0.1:{server.server_port}/ws")
        for message in ("hello", "grüße", b"\x00\xff", "x" * 60_000):
            websocket.send(message)
            assert websocket.receive(timeout=10) == message
        websocket.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_flask_application_works_without_flask_sock() -> None:
    code = (
        "import sys; sys.modules['flask_sock'] = None\n"
        "from sample_app.flask_app import app\n"
        "from werkzeug.test import Client\n"
        "client = Client(app)\n"
        "assert client.get('/ws').status_code == 404\n"
        "assert 'WebSocket' not in client.get('/').text\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


# --- under the worker ------------------------------------------------------------------------

Run = Callable[[str], int]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start the worker with one of the applications, as the README says; gives the port."""
    with contextlib.ExitStack() as stack:

        def start(app: str) -> int:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            log = stack.enter_context((tmp_path / "log").open("w+"))
            command = [sys.executable, "-m", "gunicorn", "-k", "keepalive_worker.KeepaliveWorker", app]
            command += ["--bind", f"fd://{listener.fileno()}", "--no-control-socket", "--keep-alive", "20"]
            process = subprocess.Popen(command, cwd=ROOT, pass_fds=[listener.fileno()], stderr=log)
            stack.callback(_end, process)
            deadline = time.monotonic() + 30
            while "Booting worker" not in (told := (tmp_path / "log").read_text()):
                assert process.poll() is None, told
                assert time.monotonic() < deadline, told
                time.sleep(0.02)
            port: int = listener.getsockname()[1]
            return port

        yield start


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.mark.parametrize("app", APPS.values())
def test_one_connection_serves_everything(run: Run, app: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", run(app), timeout=30)
    ids = []

    def ask(method: str, url: str, body: Any = None, headers: Any = None) -> bytes:
        connection.request(method, url, body, headers or {})
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 200, (url, data)
        ids.append((answer.getheader("X-Connection-Id"), answer.getheader("X-Connection-Requests")))
        promise = None if url.endswith("keepalive=off") else "timeout=20"
        assert answer.getheader("Keep-Alive") == promise, url
        return data

    ask("GET", "/")
    assert json.loads(ask("GET", "/api/time"))["connection"]["requests"] == 2
    assert json.loads(ask("POST", "/api/echo", b"[1]", JSON))["echo"] == [1]
    begin = time.monotonic()
    ask("GET", "/slow?seconds=0.2")
    assert time.monotonic() - begin >= 0.2
    assert ask("GET", "/stream?lines=3&pause=0").count(b"\n") == 3
    assert ask("GET", "/events?events=1").endswith(b"event: end\ndata: {}\n\n")
    assert json.loads(ask("POST", "/upload", bytes(ZEROS))) == ZEROS_DIGEST
    chunks: Iterable[bytes] = iter([bytes(ZEROS // 2), bytes(ZEROS // 2)])
    assert json.loads(ask("POST", "/upload", chunks)) == ZEROS_DIGEST
    assert len(ask("GET", "/download?mb=2")) == 2_000_000
    ask("GET", "/static/site.css")
    ask("GET", "/resources/1.svg?keepalive=off")
    ask("GET", "/resources/2.svg")
    first = ids[0][0]
    assert ids == [*((first, str(number)) for number in range(1, 12)), (ids[-1][0], "1")]
    assert ids[-1][0] != first
    connection.request("GET", "/keepalive-stats?format=json")
    totals = json.load(connection.getresponse())["totals"]
    assert (totals["connections_accepted"], totals["requests_reused"]) == (2, 11)
    assert totals["closed"]["response"] == 1
    connection.close()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("app", APPS.values())
def test_a_browser_counts_the_connections(run: Run, app: str) -> None:
    port = run(app)
    counted = {}
    for keepalive in ("on", "off"):
        page = _dom(f"http://127.0.0.1:{port}/resources?keepalive={keepalive}")
        result = re.search(rf'data-result="{keepalive}".*?<output>(\d+)</output>', page, re.DOTALL)
        assert result, page
        counted[keepalive] = int(result[1])
        assert f"The 30 resources took {result[1]} connection" in page
        assert page.count("<title>Resource ") == 30, "not all pictures are shown"
        assert page.count('class="answering" x=') == 30, "not all bars are drawn"
        assert page.count('<th scope="row">') == 30
    assert 1 <= counted["on"] <= 6  # what browsers open to one server (HTTP/1.1)
    assert counted["off"] == 30


def _dom(url: str) -> str:
    """The page as it is after its scripts have run."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="kw-", ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--dump-dom", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout
