"""The page of the debug endpoint: what it is made of, and what it does in a browser.

The browser is Debian's Chromium (packages ``chromium`` and ``chromium-driver``), driven by ``selenium``;
without them its tests are skipped and say so. What it shows is a report that the tests change. The page's
clock is the tests', too: its timers run when a test says so and never by themselves, except in one test of
the real thing.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
from chromium import start_chromium
from harness import wait_until
from werkzeug.serving import make_server

from keepalive_worker import page
from keepalive_worker.connection import Reason
from keepalive_worker.page import figures

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

NONCE = "bm9uY2Utb2YtdGVzdA=="

#: What a client, or whoever can name something in the report, might try.
HOSTILE = (
    "</script><img src=x onerror=\"window.pwned='script'\">",
    "<img src=x onerror=window.pwned='element'>",
    '" onmouseover="window.pwned=1" x="',
    "' onfocus='window.pwned=1' autofocus='",
    "<!--<script>",
    "]]><![CDATA[",
    "&lt;b&gt;&amp;",
    "\u2028\u2029\x00\x1b[31m",
    "\u202etxt.exe",
    "{{nonce}} {{report}}",
    "\\u003c/script\\u003e",
    "${window.pwned=1}",
)


# --- reports -------------------------------------------------------------------------------------

REQUEST_BOUNDS = (0, 1, 2, 5, 10, 50, 1000, 10000)
SECOND_BOUNDS = (0.001, 0.05, 0.5, 1, 5, 60, 300, 3600)


def histogram(bounds: Iterable[float], values: Iterable[float]) -> dict[str, Any]:
    """A histogram of *values* as the report has it."""
    values = list(values)
    buckets: list[dict[str, Any]] = [
        {"le": bound, "count": sum(value <= bound for value in values)} for bound in bounds
    ]
    return {
        "buckets": [*buckets, {"le": "+Inf", "count": len(values)}],
        "sum": float(sum(values)),
        "count": len(values),
    }


def counters(**changes: Any) -> dict[str, Any]:
    """Counters of a worker or of all."""
    return {
        "connections_accepted": 1234,
        "connections_open": 5,
        "connections_idle": 4,
        "connections_active": 1,
        "requests": 50000,
        "requests_reused": 48650,
        "reuse_ratio": 0.973,
        "bytes_received": 12_345_678,
        "bytes_sent": 2_000_000_000,
        "closed": dict.fromkeys((reason.value for reason in Reason), 0)
        | {"idle_timeout": 900, "client": 300, "evicted": 29},
        "connection_requests": histogram(REQUEST_BOUNDS, [0, 1, 1, 3, 40, 40, 41, 700, 20000]),
        "connection_age_seconds": histogram(SECOND_BOUNDS, [0.2, 2, 3.5, 59, 400, 5000]),
        "idle_seconds": histogram(SECOND_BOUNDS, [0.0004, 0.02, 0.02, 0.7, 3, 20]),
        **changes,
    }


def worker(pid: int, **changes: Any) -> dict[str, Any]:
    """One worker of the report."""
    head = {"pid": pid, "started_at": "2026-11-24T09:00:00.000Z", "state": "running", "figures_age": 0.4}
    return head | counters() | changes


def connection(number: int, **changes: Any) -> dict[str, Any]:
    """One connection of the report."""
    return {
        "id": number,
        "worker_pid": 4711,
        "peer": f"10.0.0.{number}:40000",
        "state": "idle",
        "protocol": "HTTP/1.1",
        "requests": number * 10,
        "age": 100.0 + number,
        "idle": 10.0 + number,
        "closes_in": 60.0 - number,
        "bytes_received": 1000 * number,
        "bytes_sent": 20000 * number,
    } | changes


def report(**changes: Any) -> dict[str, Any]:
    """A report of a server with two workers and five connections."""
    return {
        "generated_at": "2026-11-24T12:30:05.250Z",
        "worker_pid": 4711,
        "totals": counters(),
        "workers": [worker(4711), worker(4712, state="draining")],
        "connections": [
            connection(3),
            connection(12, worker_pid=4712, peer="[2001:db8::7]:443", protocol="HTTP/2"),
            connection(1, state="handling", closes_in=None, idle=0.0),
            connection(7, peer="192.0.2.9:51000", protocol="HTTP/1.0"),
            connection(5, peer=""),
        ],
    } | changes


# --- the document --------------------------------------------------------------------------------


class Document(HTMLParser):
    """Elements and texts as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.embedded = ""
        self._in_report = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))
        self._in_report = dict(attrs).get("id") == "report"

    def handle_endtag(self, tag: str) -> None:
        """Note its end."""
        self._in_report = False

    def handle_data(self, data: str) -> None:
        """Note a text."""
        if self._in_report:
            self.embedded += data
        else:
            self.texts.append(data)


def document(made: dict[str, Any]) -> Document:
    """The page of a report."""
    return Document(page.render(made, nonce=NONCE).decode("utf-8"))


def hostile_report(text: str) -> dict[str, Any]:
    """A report that has *text* wherever it could have one."""
    made = report(notes=[text])
    made["connections"] = [connection(1, peer=text, protocol=text, state=text)]
    made["workers"] = [worker(1, state=text)]
    made["totals"]["closed"][text] = 3
    return made


@pytest.mark.parametrize("text", HOSTILE)
def test_what_clients_choose_stays_text(text: str) -> None:
    """Nobody's text becomes an element, an attribute, or the end of the embedded report."""
    made = document(hostile_report(text))
    plain = document(hostile_report("harmless"))
    assert [tag for tag, _ in made.elements] == [tag for tag, _ in plain.elements]
    assert [set(attributes) for _, attributes in made.elements] == [set(names) for _, names in plain.elements]
    # A parser of HTML puts a sign of its own in the place of NUL.
    assert any(text.replace("\0", "\ufffd") in found.replace("\0", "\ufffd") for found in made.texts)


@pytest.mark.parametrize("text", HOSTILE)
def test_embedded_report_is_the_report(text: str) -> None:
    """The JSON in the page parses back to what was given, and holds nothing that HTML could mistake."""
    made = hostile_report(text)
    embedded = document(made).embedded
    assert json.loads(embedded) == made
    assert not set("<>&\u2028\u2029") & set(embedded)


def test_lone_surrogates_do_not_break_the_page() -> None:
    """The name of a unix socket may be no UTF-8 at all."""
    made = hostile_report("/run/\udcff.sock")
    assert json.loads(document(made).embedded) == made


def test_everything_is_in_the_document() -> None:
    """No file from elsewhere, and nothing inline that the policy would stop."""
    made = document(report())
    for tag, attributes in made.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("href", "src"):
            assert re.match(r"$|\?|#|data:", attributes.get(name) or ""), (tag, attributes)
        if tag == "style" or (tag == "script" and attributes.get("type") != "application/json"):
            assert attributes["nonce"] == NONCE
    assert [tag for tag, _ in made.elements].count("script") == 2
    text = page.render(report(), nonce=NONCE).decode("utf-8")
    assert not re.search(r"url\(|@import|innerHTML|document\.write|\{\{", text)
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}


def test_content_security_policy() -> None:
    """Nothing is allowed but the two elements with the nonce, the JSON, and the icon."""
    policy = dict(
        directive.strip().split(" ", 1) for directive in page.content_security_policy(NONCE).split(";")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": f"'nonce-{NONCE}'",
        "style-src": f"'nonce-{NONCE}'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


@pytest.mark.parametrize("nonce", ["", "a b", "a'; script-src *", 'a" onload="x', "a\r\nX: y", "a==="])
def test_a_nonce_is_base64(nonce: str) -> None:
    """Anything else could end the attribute or the directive that it stands in."""
    with pytest.raises(ValueError, match="base64"):
        page.content_security_policy(nonce)
    with pytest.raises(ValueError, match="base64"):
        page.render(report(), nonce=nonce)
    with pytest.raises(ValueError, match="base64"):
        page.parts(report(), nonce=nonce)


def test_numbers_that_json_does_not_know_are_refused() -> None:
    """A browser would not read them."""
    with pytest.raises(ValueError, match="JSON"):
        page.render(report(load=float("inf")), nonce=NONCE)


def test_a_large_page_comes_in_small_parts() -> None:
    """However many connections there are, no part of the page takes long to make."""
    made = report(connections=[connection(number) for number in range(1, 10_001)])
    parts = list(page.parts(made, nonce=NONCE))
    assert b"".join(parts) == page.render(made, nonce=NONCE)
    assert len(parts) >= 10_000 / page.BATCH
    longest = max(len(part) for part in parts[1:])
    assert longest < page.BATCH * 1000
    whole = Document(b"".join(parts).decode("utf-8"))
    assert json.loads(whole.embedded) == made
    assert sum(tag == "bdi" for tag, _ in whole.elements) == page.MOST_ROWS


def test_a_report_without_connections() -> None:
    """Another server has nothing to show; the page says what the notes say."""
    made = document({"generated_at": "", "worker_pid": 1, "notes": ["Not under keepalive_worker."]})
    assert "Not under keepalive_worker." in made.texts
    assert json.loads(made.embedded)["connections"] == []
    assert json.loads(document({}).embedded) == {"connections": []}


def test_every_reason_is_explained() -> None:
    """The page knows the reasons of the worker, all of them and no others."""
    assert set(page.REASONS) == {reason.value for reason in Reason}
    made = document(report())
    assert [attributes["data-reason"] for _, attributes in made.elements if "data-reason" in attributes][
        :3
    ] == ["idle_timeout", "client", "evicted"]
    for _, _, meaning in page.REASONS.values():
        assert meaning in made.texts


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (figures.count, None, figures.NONE),
        (figures.count, 0, "0"),
        (figures.count, 1234567, "1,234,567"),
        (figures.decimal, 36.85, "36.9"),
        (figures.ratio, 0.9734, "97.3 %"),
        (figures.ratio, 1, "100.0 %"),
        (figures.size, None, figures.NONE),
        (figures.size, 999, "999 B"),
        (figures.size, 1000, "1.0 kB"),
        (figures.size, 999_949, "999.9 kB"),
        (figures.size, 999_950, "1.0 MB"),
        (figures.size, 5e15, "5,000.0 TB"),
        (figures.duration, None, figures.NONE),
        (figures.duration, -0.3, "0.0 s"),
        (figures.duration, 0.25, "0.3 s"),
        (figures.duration, 59.94, "59.9 s"),
        (figures.duration, 59.95, "1 min 00 s"),
        (figures.duration, 3599.4, "59 min 59 s"),
        (figures.duration, 3599.5, "1 h 00 min"),
        (figures.duration, 86399, "1 d 00 h"),
        (figures.duration, 445000, "5 d 04 h"),
    ],
)
def test_figures(function: Callable[[float | None], str], value: float | None, expected: str) -> None:
    """Numbers as people read them."""
    assert function(value) == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (0.001, "1 ms"),
        (0.5, "500 ms"),
        (1, "1 s"),
        (2.5, "2.5 s"),
        (60, "1 min"),
        (1800, "30 min"),
        (3600, "1 h"),
    ],
)
def test_bounds_of_histograms(limit: float, expected: str) -> None:
    """Seconds by the unit that fits; requests plain."""
    assert figures.bound(limit, "seconds") == expected
    assert figures.bound(10000, "requests") == "10,000"


# --- a server ------------------------------------------------------------------------------------


class Endpoint:
    """A WSGI server for the page and its JSON. What it says can change; it can go away and come back."""

    PATH = "/_stats"

    def __init__(self) -> None:
        self.report = report()
        self.status = "200 OK"
        self.queries: list[dict[str, list[str]]] = []
        self._port = 0
        self._accepted: list[socket.socket] = []
        self.start()

    def app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer as the debug endpoint does."""
        query = parse_qs(environ["QUERY_STRING"])
        if environ["PATH_INFO"] != self.PATH:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"not here"]
        if query.get("format") == ["json"]:
            self.queries.append(query)
            start_response(self.status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
            return [json.dumps(self.report).encode()]
        start_response(
            "200 OK",
            [
                ("Content-Type", "text/html; charset=utf-8"),
                ("Content-Security-Policy", page.content_security_policy(NONCE)),
                ("Cache-Control", "no-store"),
            ],
        )
        return page.parts(self.report, nonce=NONCE)

    def start(self) -> None:
        """Serve, on the same port as before."""
        self._server = make_server("127.0.0.1", self._port, self.app, threaded=True)
        self._port = self._server.server_port
        accept = self._server.get_request

        def get_request() -> tuple[socket.socket, Any]:
            accepted, address = accept()
            self._accepted.append(accepted)
            return accepted, address

        self._server.get_request = get_request  # type: ignore[method-assign]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Go away; the port then refuses connections, and those that the browser opened ahead have ended."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for accepted in self._accepted:
            with contextlib.suppress(OSError):
                accepted.shutdown(socket.SHUT_RDWR)
        self._accepted.clear()

    @property
    def host(self) -> str:
        """The address as browsers show it."""
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{self.host}{self.PATH}"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A server that is up when the test begins."""
    served = Endpoint()
    try:
        yield served
    finally:
        served.stop()


# --- a browser -----------------------------------------------------------------------------------

#: What keeps a record of what the policy stopped; it runs before anything of the page.
WATCH_POLICY = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.lineNumber}`);
});
"""

#: A clock that stands still until a test has the next timer run, at the time that it was set for.
HOLD_CLOCK = """
window.timers = new Map();
window.clock = 1000;
let serial = 0;
performance.now = () => window.clock;
window.setTimeout = (run, wait = 0) => {
  window.timers.set(++serial, { run, wait, due: window.clock + wait });
  return serial;
};
window.clearTimeout = (number) => window.timers.delete(number);
window.tick = () => {
  const [number, timer] = [...window.timers].sort(([, one], [, other]) => one.due - other.due)[0];
  window.timers.delete(number);
  window.clock = Math.max(window.clock, timer.due);
  timer.run();
};
"""

#: Resolve when an expression is true, looked at whenever anything in the document has changed.
WAIT_FOR = """
const [expression, done] = arguments;
const holds = new Function(`return Boolean(${expression})`);
const look = () => {
  if (!holds()) return false;
  observer.disconnect();
  done(true);
  return true;
};
const observer = new MutationObserver(look);
if (!look()) {
  observer.observe(document, { attributes: true, childList: true, characterData: true, subtree: true });
}
"""


class Browser:
    """Chromium with the page in it."""

    #: Seconds for what a test waits for.
    TIMEOUT = 20

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function with this body returns in the page."""
        return self.driver.execute_script(script, *arguments)

    def value(self, expression: str) -> Any:
        """What an expression is worth in the page."""
        return self.run(f"return {expression}")

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, parameters)

    def wait(self, expression: str) -> None:
        """Return when *expression* is true in the page; it has to become so with a change of the document."""
        from selenium.common.exceptions import TimeoutException

        try:
            self.driver.execute_async_script(WAIT_FOR, expression)
        except TimeoutException:
            says = self.value("document.body.innerText")
            message = f"not within {self.TIMEOUT} s: {expression}; the page says:\n{says}"
            raise AssertionError(message) from None

    def text(self, selector: str) -> str:
        """The text of the first element there, whether it is to be seen or not."""
        found: str = self.run("return document.querySelector(arguments[0]).textContent", selector)
        return found.strip()

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements there."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector
        )
        return found

    def shows(self, selector: str) -> bool:
        """Whether a person can see the element."""
        return bool(self.run("return document.querySelector(arguments[0]).checkVisibility()", selector))

    def click(self, selector: str) -> None:
        """Click where the element is."""
        self.driver.find_element("css selector", selector).click()

    def type(self, selector: str, *keys: str) -> None:
        """Press keys with the focus on the element."""
        self.driver.find_element("css selector", selector).send_keys(*keys)

    # The page.

    @property
    def peers(self) -> list[str]:
        """The first column of the connection table."""
        return self.texts("#rows bdi")

    def tile(self, name: str) -> str:
        """A key figure."""
        return self.text(f"#tile-{name} .value")

    @property
    def waits(self) -> list[int]:
        """The timers that run, each in milliseconds."""
        return list(self.value("[...timers.values()].map((timer) => timer.wait)"))

    def tick(self) -> None:
        """Let the next timer run out."""
        self.run("tick()")

    def refresh(self, made: dict[str, Any]) -> None:
        """Let the page fetch its next report, which is *made*; what came before has another time."""
        before = self.value("document.getElementById('clock').dateTime")
        assert before != made["generated_at"]
        self.tick()
        self.wait(f"document.getElementById('clock').dateTime === '{made['generated_at']}' && timers.size")

    def complaints(self) -> list[str]:
        """What the console and the policy say, less what any browser says of a server that is away."""
        logged = [entry["message"] for entry in self.driver.get_log("browser")]
        refused = re.compile(r"Failed to load resource: (net::ERR_|the server responded with a status of)")
        logged = [message for message in logged if not refused.search(message)]
        return logged + self.value("window.violations")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One Chromium for all tests of this module."""
    driver = start_chromium("--window-size=1280,800", timeout=Browser.TIMEOUT)
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture
def clocked(chromium: Browser) -> Iterator[Browser]:
    """The browser, in which time passes when the test says so; in the end nothing was complained of."""
    script = chromium.command("Page.addScriptToEvaluateOnNewDocument", source=WATCH_POLICY + HOLD_CLOCK)
    try:
        yield chromium
        assert chromium.complaints() == []
    finally:
        chromium.command("Page.removeScriptToEvaluateOnNewDocument", **script)
        chromium.driver.get("about:blank")


@pytest.fixture
def shown(clocked: Browser, endpoint: Endpoint) -> Browser:
    """The browser with the page of the endpoint's report, one second before it refreshes itself."""
    clocked.driver.get(endpoint.url)
    assert clocked.waits == [1000]
    return clocked


def later(made: dict[str, Any], seconds: int, **totals: Any) -> dict[str, Any]:
    """A copy of a report, made so much later, with other totals."""
    made = copy.deepcopy(made)
    made["generated_at"] = f"2026-11-24T12:{30 + seconds // 60:02d}:{5 + seconds % 60:02d}.250Z"
    made["totals"] |= totals
    return made


def test_shows_the_report(shown: Browser, endpoint: Endpoint) -> None:
    """Key figures, reasons, workers and connections are there before anything was fetched."""
    assert shown.tile("open") == "5"
    assert shown.tile("idle") == "4"
    assert shown.tile("active") == "1"
    assert shown.tile("reuse") == "97.3 %"
    assert shown.texts("#closed tr:not([hidden]) th") == ["Idle timeout", "Closed by the client", "Evicted"]
    assert shown.texts("#workers th") == ["4711", "4712"]
    assert shown.peers == [
        "[2001:db8::7]:443",
        "192.0.2.9:51000",
        "unix socket",
        "10.0.0.3:40000",
        "10.0.0.1:40000",
    ]
    assert shown.texts("#rows tr:first-child > *") == [
        "[2001:db8::7]:443",
        "idle",
        "22.0 s",
        "48.0 s",
        "1 min 52 s",
        "120",
        "12.0 kB",
        "240.0 kB",
        "HTTP/2",
        "4712",
        "12",
    ]
    assert shown.text("#shown") == "5"
    assert shown.text("#host") == endpoint.host
    assert endpoint.queries == []
    for name in page.HISTOGRAMS:
        assert shown.value(f"document.querySelectorAll('#{name} .plot .value').length") == 9


#: Values on both sides of where their form changes.
AGES = (0, 0.04, 0.05, 0.25, 9.95, 59.94, 59.95, 60, 61.5, 3599.4, 3599.5, 3601, 86369, 86370, 445000, 9e8)
SIZES = (0, 1, 999, 1000, 1049, 1050, 12_345, 999_949, 999_950, 1_000_000, 87_654_321, 10**12, 5 * 10**15)


def test_python_and_javascript_agree(clocked: Browser, endpoint: Endpoint) -> None:
    """What the server writes into the tables is what the page makes of the same report, to the letter."""
    many = [connection(99 - number, age=age, idle=age, closes_in=age) for number, age in enumerate(AGES)]
    many += [connection(1, age=None, idle=None, closes_in=None)]
    many += [connection(40 - number, idle=0, bytes_sent=size) for number, size in enumerate(SIZES)]
    endpoint.report = report(connections=many, notes=["A note."])
    endpoint.report["totals"]["closed"]["of_tomorrow"] = 7
    endpoint.report["totals"]["idle_seconds"] = histogram(SECOND_BOUNDS, [0.0004, 0.02, 0.3])

    look = """
    const order = (one, other) => one.join() < other.join() ? -1 : 1;
    const cells = (row) => [...row.children].map((cell) => cell.textContent);
    const rows = (selector) => [...document.querySelectorAll(selector)].map(cells);
    return {
      tiles: rows(".tile").map((texts) => texts.slice(0, 3)),
      closed: rows("#closed tr"),
      histograms: rows(".histogram tbody tr"),
      summaries: [...document.querySelectorAll(".summary")].map((element) => element.textContent),
      workers: rows("#workers tr"),
      connections: rows("#rows tr").sort(order),
      notes: rows("#notes"),
    };
    """
    clocked.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        clocked.driver.get(endpoint.url)
        by_python = clocked.run(look)
        assert clocked.shows("noscript")
        assert not clocked.shows("#pause")
        assert not clocked.shows("#tools")
        assert clocked.shows(".histogram table")
    finally:
        clocked.command("Emulation.setScriptExecutionDisabled", value=False)
    clocked.driver.get(endpoint.url)
    assert clocked.shows("#pause")
    assert clocked.run(look) == by_python
    assert len(by_python["connections"]) == len(many)


def test_updates(shown: Browser, endpoint: Endpoint) -> None:
    """A second and then every two, the page fetches its own address and shows what is new."""
    endpoint.report = later(endpoint.report, 1, connections_open=6, requests=50100)
    endpoint.report["connections"].append(connection(9, idle=99.0))
    shown.run("document.querySelector('#rows tr').id = 'kept'")
    shown.refresh(endpoint.report)
    assert endpoint.queries == [{"format": ["json"], "sort": ["idle"], "limit": ["100"]}]
    assert shown.tile("open") == "6"
    assert shown.peers[0] == "10.0.0.9:40000"
    assert shown.texts("#kept bdi") == ["[2001:db8::7]:443"], "the row of a connection stays the same element"
    assert shown.text("#mode") == "Live"
    assert shown.waits == [2000]
    assert shown.text("#announcement") == "", "figures are not read out"


def test_rates(shown: Browser, endpoint: Endpoint) -> None:
    """Rates come from what happened between two reports."""
    assert shown.tile("rate") == figures.NONE
    for seconds, requests in ((1, 50200), (3, 50600), (5, 51000)):
        endpoint.report = later(
            endpoint.report, seconds, requests=requests, requests_reused=48650 + requests - 50000
        )
        shown.refresh(endpoint.report)
        assert shown.tile("rate") == "200"
        assert shown.text("#tile-reuse .note") == "100.0 % just now"
    assert shown.tile("sent") == "0 B/s"
    points = shown.run("return document.querySelector('#tile-rate polyline').getAttribute('points')")
    assert len(points.split()) == 3


def test_counters_that_begin_again(shown: Browser, endpoint: Endpoint) -> None:
    """A restarted server counts from zero; that is said, and no rate is negative."""
    before = endpoint.report = later(endpoint.report, 1, requests=50100)
    shown.refresh(before)
    assert shown.tile("rate") == "100"
    endpoint.report = later(
        before,
        3,
        requests=40,
        requests_reused=30,
        bytes_sent=500,
        bytes_received=100,
        connections_accepted=10,
    )
    shown.refresh(endpoint.report)
    assert shown.tile("rate") == figures.NONE
    assert shown.tile("sent") == figures.NONE
    assert "counters began again" in shown.text("#notes")
    assert shown.text("#announcement") == "The server was restarted; its counters began again."
    endpoint.report = later(endpoint.report, 5, requests=440)
    shown.refresh(endpoint.report)
    assert shown.tile("rate") == "200"
    assert "-" not in "".join(shown.texts(".tile .value"))


def test_says_when_the_server_is_away_and_when_it_is_back(shown: Browser, endpoint: Endpoint) -> None:
    """Away, the page keeps its figures, says of when they are, tries ever more rarely, and recovers."""
    endpoint.stop()
    try:
        for wait in (2, 4, 8, 16, 30, 30):
            shown.tick()
            # The text alone would not tell the second wait of 30 s from the first: it is the same.
            wait_until(lambda wait=wait: shown.waits == [wait * 1000], f"a wait of {wait} s")
            shown.wait(f"document.getElementById('away-when').textContent.endsWith(' {wait} s.')")
            assert shown.shows("#away")
            assert shown.text("#away-what") == "The server does not answer."
            assert shown.text("#announcement") == "The server does not answer. The page keeps trying."
        assert shown.value("document.getElementById('status').dataset.mode") == "away"
        assert shown.tile("open") == "5"
    finally:
        endpoint.report = later(report(), 60, **counters(connections_open=2, requests=3, requests_reused=1))
        endpoint.start()
    shown.refresh(endpoint.report)
    assert not shown.shows("#away")
    assert shown.value("document.getElementById('status').dataset.mode") == "live"
    assert shown.tile("open") == "2"
    assert "restarted" in shown.text("#announcement")
    assert shown.waits == [1000]


def test_try_now(shown: Browser, endpoint: Endpoint) -> None:
    """Who does not want to wait need not."""
    endpoint.stop()
    try:
        shown.tick()
        shown.wait("document.getElementById('away').checkVisibility()")
    finally:
        endpoint.start()
    shown.click("#retry")
    shown.wait("!document.getElementById('away').checkVisibility()")
    assert shown.text("#announcement") == "The server is back."


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("403 Forbidden", "The server does not let this page in any more (403)."),
        ("500 Internal Server Error", "The server answers with an error (500)."),
        ("200 OK", "The server's answer is no report."),
    ],
)
def test_an_answer_that_is_no_report(shown: Browser, endpoint: Endpoint, status: str, said: str) -> None:
    """The page says what came instead."""
    endpoint.status = status
    endpoint.report = {"error": "of another kind"}
    shown.tick()
    shown.wait("document.getElementById('away').checkVisibility()")
    assert shown.text("#away-what") == said
    assert shown.tile("open") == "5"


def test_pause(shown: Browser, endpoint: Endpoint) -> None:
    """Paused, nothing is fetched until the reader wants it."""
    shown.click("#pause")
    assert shown.waits == []
    assert shown.text("#mode") == "Paused at"
    assert shown.text("#pause") == "Resume"
    shown.type("#filter", "192.0.2")
    assert shown.peers == ["192.0.2.9:51000"], "what is there can still be looked through"
    assert endpoint.queries == []
    shown.click("#pause")
    shown.wait("document.getElementById('mode').textContent === 'Live' && timers.size")
    assert len(endpoint.queries) == 1


def test_hidden_tab(shown: Browser, endpoint: Endpoint) -> None:
    """A tab that nobody sees leaves the server alone, and is fresh when somebody does."""
    hide = """
    Object.defineProperty(document, "hidden", { value: arguments[0], configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
    """
    shown.run(hide, True)
    assert shown.waits == []
    endpoint.report = later(endpoint.report, 30, requests=90000)
    shown.run(hide, False)
    shown.wait(f"document.getElementById('clock').dateTime === '{endpoint.report['generated_at']}'")
    assert shown.tile("rate") == figures.NONE, "what came while nobody looked is no rate"
    assert shown.waits == [1000]


def header(key: str) -> str:
    """The head of a column of the connection table."""
    return f"#table th[data-key={key}]"


def numbers(shown: Browser) -> list[int]:
    """The serial numbers of the connections in the table."""
    return [int(text.replace(",", "")) for text in shown.texts("#rows td:last-child")]


def test_sorts_by_click(shown: Browser) -> None:
    """The first click sorts the way that is wanted more often, the second the other way."""
    assert shown.texts("#table [aria-sort=descending]") == ["Idle"]
    shown.click(f"{header('id')} button")
    assert numbers(shown) == [12, 7, 5, 3, 1]
    shown.click(f"{header('id')} button")
    assert numbers(shown) == [1, 3, 5, 7, 12]
    assert shown.texts("#table [aria-sort=ascending]") == ["No."]
    assert shown.texts("#table [aria-sort]") == ["No."]
    shown.click(f"{header('peer')} button")
    assert shown.peers == [
        "unix socket",
        "[2001:db8::7]:443",
        "10.0.0.1:40000",
        "10.0.0.3:40000",
        "192.0.2.9:51000",
    ]
    shown.click(f"{header('closes_in')} button")
    assert numbers(shown) == [3, 5, 7, 12, 1], "what has no value is last"
    shown.click(f"{header('closes_in')} button")
    assert numbers(shown) == [12, 7, 5, 3, 1], "and last the other way round, too"


def test_sorts_by_keyboard(shown: Browser) -> None:
    """Each head of a column is a button that can be reached and pressed."""
    from selenium.webdriver.common.keys import Keys

    shown.click("#limit")
    shown.type("#limit", Keys.ESCAPE)
    shown.type("#limit", Keys.TAB)
    assert shown.value("document.activeElement.getAttribute('role')") == "group", "the box scrolls by keys"
    for _ in range(6):
        shown.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert shown.value("document.activeElement.textContent") == "Requests"
    assert shown.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
    shown.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert numbers(shown) == [12, 7, 5, 3, 1]
    shown.driver.switch_to.active_element.send_keys(Keys.SPACE)
    assert numbers(shown) == [1, 3, 5, 7, 12]


def test_sorting_a_part_asks_for_another_part(shown: Browser, endpoint: Endpoint) -> None:
    """Where the server has more connections than it sent, it is asked for the first in the new order."""
    endpoint.report = later(endpoint.report, 1, connections_open=400)
    shown.refresh(endpoint.report)
    assert shown.text("#shown") == "the 5 longest idle of 400"
    endpoint.report = later(endpoint.report, 2)
    shown.click(f"{header('bytes_sent')} button")
    shown.wait(f"document.getElementById('clock').dateTime === '{endpoint.report['generated_at']}'")
    assert endpoint.queries[-1] == {"format": ["json"], "sort": ["bytes"], "limit": ["100"]}
    assert shown.text("#shown") == "the 5 with most bytes of 400"
    assert shown.value("location.search") == "?sort=bytes&limit=100"

    endpoint.report = later(endpoint.report, 4)
    shown.run(
        """
        const limit = document.getElementById("limit");
        limit.value = "1000";
        limit.dispatchEvent(new Event("change"));
        """
    )
    shown.wait(f"document.getElementById('clock').dateTime === '{endpoint.report['generated_at']}'")
    assert endpoint.queries[-1]["limit"] == ["1000"]
    assert shown.value("location.search") == "?sort=bytes&limit=1000"


def test_order_and_limit_of_the_address(clocked: Browser, endpoint: Endpoint) -> None:
    """A page that was asked for in some order keeps to it."""
    clocked.driver.get(f"{endpoint.url}?sort=requests&limit=25#connections")
    assert numbers(clocked) == [12, 7, 5, 3, 1]
    assert clocked.value("document.getElementById('limit').value") == "25"
    endpoint.report = later(endpoint.report, 1)
    clocked.refresh(endpoint.report)
    assert endpoint.queries == [{"format": ["json"], "sort": ["requests"], "limit": ["25"]}]


def test_filters(shown: Browser, endpoint: Endpoint) -> None:
    """By words anywhere in a row, by state, by both; also what comes later."""
    shown.type("#filter", "HTTP/1.1 4711")
    assert numbers(shown) == [5, 3, 1]
    assert shown.text("#shown") == "3 match, of 5"
    shown.click("#state option:nth-child(2)")
    assert shown.value("document.getElementById('state').value") == "idle"
    assert numbers(shown) == [5, 3]
    endpoint.report = later(endpoint.report, 1)
    endpoint.report["connections"] += [connection(20), connection(21, protocol="HTTP/2")]
    shown.tick()
    assert shown.text("#announcement") == "2 connections match."
    shown.refresh(endpoint.report)
    assert numbers(shown) == [20, 5, 3]
    shown.type("#filter", " nothing has this")
    assert numbers(shown) == []
    assert shown.text("#shown") == "0 match, of 7"


@pytest.mark.parametrize("text", HOSTILE)
def test_what_clients_choose_is_only_shown(shown: Browser, endpoint: Endpoint, text: str) -> None:
    """The page's own code makes nothing but text of it, neither of the first report nor of a fetched one."""
    count = "document.querySelectorAll('img, iframe, object, script').length"
    before = shown.value(count)
    endpoint.report = later(hostile_report(text), 1)
    shown.refresh(endpoint.report)
    assert shown.peers == [text]
    shown.driver.get(endpoint.url)
    assert shown.peers == [text]
    assert text in shown.texts("#closed th")
    assert shown.texts("#notes li") == [text]
    assert shown.value("window.pwned") is None
    assert shown.value(count) == before


def test_a_worker_that_does_not_report(shown: Browser, endpoint: Endpoint) -> None:
    """The age of its figures stands out, and the note about it is shown."""
    endpoint.report = later(endpoint.report, 1)
    endpoint.report["workers"] = [worker(4711), worker(4712, figures_age=34.5)]
    endpoint.report["notes"] = ["Worker 4712 has not answered for 34.5 s."]
    shown.refresh(endpoint.report)
    assert shown.texts("#workers .stale th") == ["4712"]
    assert shown.texts("#workers td:last-child") == ["0.4 s ago", "34.5 s ago"]
    assert shown.shows("#notes")
    endpoint.report = later(report(), 3)
    endpoint.report["workers"].pop()
    shown.refresh(endpoint.report)
    assert shown.texts("#workers th") == ["4711"]
    assert not shown.shows("#notes")


def test_many_connections(clocked: Browser, endpoint: Endpoint) -> None:
    """Of more rows than anyone reads, the first are shown; the filter looks through all of them."""
    endpoint.report = report(connections=[connection(number) for number in range(1, 3001)])
    endpoint.report["totals"] |= {"connections_open": 3000}
    clocked.driver.get(f"{endpoint.url}?limit=10000")
    assert len(numbers(clocked)) == page.MOST_ROWS
    assert clocked.text("#shown") == "first 1,000 of 3,000"
    clocked.type("#filter", "#17")
    assert numbers(clocked) == [*range(1799, 1699, -1), *range(179, 169, -1), 17]


def test_nothing_to_show(clocked: Browser, endpoint: Endpoint) -> None:
    """Under another server there are no figures, and a note says why."""
    endpoint.report = {"generated_at": "", "worker_pid": 1, "totals": {}, "notes": ["No data here."]}
    clocked.driver.get(endpoint.url)
    assert clocked.texts("#notes li") == ["No data here."]
    assert clocked.tile("open") == "0"
    assert clocked.shows("#workers-none")
    assert clocked.shows("#closed-none")


#: Each text that can be seen and that stands out too little from what is behind it (WCAG 2.2, 1.4.3).
LOW_CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const channels = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (colour) => {
  const [red, green, blue] = channels(colour).map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (channels(colour)[3] === 255) return colour;
  }
  return "white";
};
const low = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.checkVisibility() || element.closest(".unseen")) continue;
  const style = getComputedStyle(element);
  const colour = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
  const [one, other] = [light(colour), light(behind(element))];
  const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  if (contrast < 4.5) low.push(`${element.tagName} ${element.textContent.trim()} ${contrast.toFixed(2)}`);
}
return low;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(shown: Browser, endpoint: Endpoint, scheme: str) -> None:
    """All texts can be read by day and by night, those of trouble as well."""
    endpoint.report = later(endpoint.report, 1)
    endpoint.report["workers"] = [worker(4711, figures_age=99)]
    shown.refresh(endpoint.report)
    endpoint.status = "403 Forbidden"
    shown.tick()
    shown.wait("document.getElementById('away').checkVisibility()")
    try:
        shown.command(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        ground = shown.value("getComputedStyle(document.body).backgroundColor")
        assert (max(int(part) for part in re.findall(r"\d+", ground)) > 128) == (scheme == "light")
        assert shown.run(LOW_CONTRAST) == []
    finally:
        shown.command("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize("width", [320, 390, 800, 1100, 1280, 1920])
def test_fits_the_window(clocked: Browser, endpoint: Endpoint, width: int) -> None:
    """Nothing sticks out sideways, down to a narrow phone; tables scroll in their boxes."""
    try:
        clocked.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        clocked.driver.get(endpoint.url)
        assert clocked.value("document.documentElement.scrollWidth") <= width
        if width < 500:
            lefts = "[...document.querySelectorAll('.panel')].map((box) => box.getBoundingClientRect().left)"
            assert len(set(clocked.value(lefts))) == 1, "one panel below the other"
            assert clocked.value("table.parentElement.scrollWidth > table.parentElement.clientWidth")
            # Whose figures they are stays in sight.
            first = "document.querySelector('#rows th').getBoundingClientRect()"
            clocked.driver.execute_script("table.parentElement.scrollLeft = 9999")
            assert clocked.value(f"{first}.left >= 0 && {first}.right <= innerWidth / 2 + 20")
        overflowing = clocked.value(
            "[...document.querySelectorAll('.panel, .tile')].filter((box) =>"
            " [...box.querySelectorAll('h2, p, dt, dd, summary, text')].some((element) =>"
            " element.checkVisibility() && !element.closest('.scroll, .unseen')"
            " && element.getBoundingClientRect().right > box.getBoundingClientRect().right))"
            ".map((box) => box.textContent)"
        )
        assert overflowing == []
    finally:
        clocked.command("Emulation.clearDeviceMetricsOverride")


def test_can_be_found_by_name(shown: Browser) -> None:
    """Landmarks, headings and controls have names for those who do not see the page."""
    nodes = [node for node in shown.command("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    named = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes}
    for role, name in (
        ("banner", ""),
        ("main", ""),
        ("contentinfo", ""),
        ("status", ""),
        ("heading", "Connections"),
        ("heading", "Key figures"),
        ("region", "Closed, by reason"),
        ("region", "Workers"),
        ("region", "Open connections"),
        ("button", "Pause"),
        ("searchbox", "Filter"),
        ("combobox", "State"),
        ("combobox", "Fetch"),
        ("columnheader", "Closes in"),
        ("rowheader", "[2001:db8::7]:443"),
        ("link", "Skip to the connection table"),
    ):
        assert (role, name) in named, (role, name)
    controls = {"button", "link", "searchbox", "combobox"}
    assert not [role for role, name in named if role in controls and not name]


def test_by_itself(chromium: Browser, endpoint: Endpoint) -> None:
    """With the browser's own clock: the page updates, outlives a restart of the server, and goes on."""
    script = chromium.command("Page.addScriptToEvaluateOnNewDocument", source=WATCH_POLICY)
    try:
        chromium.driver.get(endpoint.url)
        endpoint.report = later(endpoint.report, 1, connections_open=77, requests=60000)
        chromium.wait("document.querySelector('#tile-open .value').textContent === '77'")
        chromium.wait("parseFloat(document.querySelector('#tile-rate .value').textContent) > 0")
        endpoint.stop()
        try:
            chromium.wait("document.getElementById('away').checkVisibility()")
        finally:
            endpoint.report = later(report(), 30, **counters(connections_open=3, requests=10))
            endpoint.start()
        chromium.wait("!document.getElementById('away').checkVisibility()")
        chromium.wait("document.querySelector('#tile-open .value').textContent === '3'")
        assert chromium.complaints() == []
    finally:
        chromium.command("Page.removeScriptToEvaluateOnNewDocument", **script)
        chromium.driver.get("about:blank")
