"""KeepAliveMiddleware by itself, with wsgiref's validator on both sides and no server around it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.validate import validator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import create_environ, run_wsgi_app

import middleware
from keepalive_worker import KeepAliveMiddleware
from keepalive_worker.statistics import NOTHING, report

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PATH = "/keepalive-stats"
TOKEN = "s3cret=/+x"
APP_BODY = b"the application"


class FakeConnection:
    """What of the worker's connection the middleware may use."""

    def __init__(self, peer: str = "127.0.0.1:54321") -> None:
        self.peer = peer
        self.has_front = False
        self.advertise = False


class FakeStatistics:
    """What of the worker's statistics the middleware may use."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.pauses = 0

    def report(self, **asked: Any) -> dict[str, Any]:
        self.asked = asked
        return report(time=0.0, now=0.0, worker_pid=1, workers=[], ended=NOTHING)

    def pause(self) -> None:
        self.pauses += 1


class Answer:
    """One response, of which the headers are a plain dictionary."""

    def __init__(self, app: Any, environ: WSGIEnvironment) -> None:
        body, status, headers = run_wsgi_app(app, environ, buffered=True)
        self.body = b"".join(body)
        self.status = int(status.split()[0])
        self.headers = dict(headers)
        assert len(self.headers) == len(list(headers)), "a header is there twice"

    @property
    def text(self) -> str:
        return self.body.decode()


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Anybody's application."""
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(APP_BODY)))]
    start_response("200 OK", headers)
    return [b""] if environ["REQUEST_METHOD"] == "HEAD" else [APP_BODY]


def wrapped(**parameters: Any) -> Any:
    """The middleware between two validators."""
    return validator(KeepAliveMiddleware(validator(application), **({"stats_path": PATH} | parameters)))


def environ(
    path: str = PATH, *, method: str = "GET", peer: str = "127.0.0.1", **more: Any
) -> WSGIEnvironment:
    """As our worker makes it, for a request straight from *peer*; None takes a key away."""
    made = create_environ(path, method=method, environ_base={"REMOTE_ADDR": peer})
    made["keepalive.connection"] = FakeConnection(f"[{peer}]:54321" if ":" in peer else f"{peer}:54321")
    made["keepalive.statistics"] = FakeStatistics()
    made["RAW_URI"] = path
    made.pop("REQUEST_URI", None)
    for name, value in more.items():
        key = name.replace("keepalive_", "keepalive.")
        if value is None:
            made.pop(key, None)
        else:
            made[key] = value
    return made


def ask(made: WSGIEnvironment, **parameters: Any) -> Answer:
    return Answer(wrapped(**parameters), made)


# --- how it is made ------------------------------------------------------------------------------


def test_the_documented_import_gives_the_same_class() -> None:
    assert middleware.KeepAliveMiddleware is KeepAliveMiddleware


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stats_path": "stats"}, "stats_path must be a path"),
        ({"stats_path": ""}, "stats_path must be a path"),
        ({"stats_path": "/a b"}, "stats_path must be a path"),
        ({"stats_path": "/a?b"}, "stats_path must be a path"),
        ({"stats_path": 7}, "stats_path must be a path"),
        ({"allow": "localhost"}, "allow must be IP addresses and networks"),
        ({"allow": ["127.0.0.1", "300.1.1.1"]}, "allow must be IP addresses and networks"),
        ({"allow": ["10.0.0.1/8"]}, "allow must be IP addresses and networks"),
        ({"allow": None}, "allow must be IP addresses and networks"),
        ({"allow": 1}, "allow must be IP addresses and networks"),
        ({"token": ""}, "token must be a non-empty string"),
        ({"token": "zwei Worte"}, "token must be a non-empty string"),
        ({"token": b"bytes"}, "token must be a non-empty string"),
        ({"token": "ü"}, "token must be a non-empty string"),
        ({"advertise": 1}, "advertise must be True or False"),
        ({"advertise": None}, "advertise must be True or False"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        KeepAliveMiddleware(application, **parameters)
    (value,) = parameters.values()
    assert "token" in parameters or repr(value) in str(caught.value)


def test_a_token_does_not_appear_in_the_message() -> None:
    with pytest.raises(ValueError, match="token must be") as caught:
        KeepAliveMiddleware(application, token="my secret")
    assert "my secret" not in str(caught.value)


@pytest.mark.parametrize("app", [None, "module:app", 5])
def test_an_app_that_cannot_be_called_is_refused(app: Any) -> None:
    with pytest.raises(TypeError, match="app must be a WSGI application"):
        KeepAliveMiddleware(app)


def test_parameters_are_keyword_only_and_unknown_ones_refused() -> None:
    with pytest.raises(TypeError):
        KeepAliveMiddleware(application, PATH)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="path"):
        KeepAliveMiddleware(application, path=PATH)  # type: ignore[call-arg]


# --- requests that are none of its business --------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_other_paths_go_to_the_app(method: str) -> None:
    made = environ("/", method=method)
    answer = ask(made)
    assert (answer.status, answer.body) == (200, b"" if method == "HEAD" else APP_BODY)
    assert set(answer.headers) == {"Content-Type", "Content-Length"}


def test_the_result_of_the_app_is_handed_on_itself() -> None:
    result: list[bytes] = [b"x"]
    seen: list[Any] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen.extend((environ, start_response))
        return result

    made, start = environ("/"), object()
    assert KeepAliveMiddleware(app)(made, start) is result  # type: ignore[arg-type]
    assert seen[0] is made
    assert seen[1] is start


@pytest.mark.parametrize("advertise", [True, False])
def test_advertise_reaches_the_connection(advertise: bool) -> None:
    made = environ("/")
    ask(made, advertise=advertise)
    assert made["keepalive.connection"].advertise is advertise


def test_without_a_stats_path_there_is_no_endpoint() -> None:
    assert ask(environ(), stats_path=None).body == APP_BODY
    made = environ("/", PATH_INFO=None, SCRIPT_NAME="/x")  # PEP 3333 allows it, the validator does not.
    assert Answer(KeepAliveMiddleware(application), made).body == APP_BODY


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        (PATH + "/", None),
        ("/" + PATH, None),
        (PATH + "x", None),
        ("/x" + PATH, None),
        (PATH.upper(), None),
        (PATH + ";a=b", None),
        ("/x/.." + PATH, None),
        (PATH, "/%6beepalive-stats"),
        (PATH, "/keepalive%2Dstats"),
        (PATH, "//x" + PATH),
        (PATH, PATH + "#fragment"),
        (PATH, "x:" + PATH),
        (PATH, "ftp://localhost" + PATH),
        (PATH, "http://localhost/%6beepalive-stats"),
    ],
)
def test_only_the_exact_path_is_the_endpoint(path: str, raw: str | None) -> None:
    """A proxy that guards the path by comparing text must not be fooled by another spelling."""
    answer = ask(environ(path, PATH_INFO=path, RAW_URI=raw or path))
    assert answer.body == APP_BODY


@pytest.mark.parametrize(
    "raw",
    [PATH, PATH + "?limit=1", "http://localhost" + PATH, "HTTPS://example.org:8443" + PATH + "?limit=1#x"],
)
def test_both_forms_of_a_target_are_the_endpoint(raw: str) -> None:
    """RFC 9112 3.2.2: a server must take the absolute form."""
    made = environ(RAW_URI=raw.removesuffix("#x"))
    assert json.loads(ask(made).body)["worker_pid"] == 1


def test_under_a_mount_the_path_counts_from_there() -> None:
    made = environ("/", SCRIPT_NAME="/mount é".encode().decode("latin-1"), PATH_INFO=PATH)
    made["RAW_URI"] = "/mount%20%C3%A9" + PATH
    assert json.loads(ask(made).body)["worker_pid"] == 1
    made["RAW_URI"] = "/other" + PATH
    assert ask(made).body == APP_BODY


def test_a_path_is_given_as_it_stands_in_the_url() -> None:
    made = environ("/", PATH_INFO="/a b", RAW_URI="/a%20b")
    assert ask(made, stats_path="/a%20b").status == 200
    assert ask(made, stats_path="/a%20b").body != APP_BODY
    made["RAW_URI"] = "/%61%20b"
    assert ask(made, stats_path="/a%20b").body == APP_BODY


# --- who is let in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allow", "peer", "status"),
    [
        (("127.0.0.1", "::1"), "127.0.0.1", 200),
        (("127.0.0.1", "::1"), "::1", 200),
        (("127.0.0.1", "::1"), "127.0.0.2", 403),
        (("127.0.0.1", "::1"), "::ffff:127.0.0.1", 200),
        (("127.0.0.1", "::1"), "::ffff:127.0.0.2", 403),
        (("127.0.0.1", "::1"), "::127.0.0.1", 403),
        (("10.0.0.0/8", "2001:db8::/32"), "10.255.0.1", 200),
        (("10.0.0.0/8", "2001:db8::/32"), "11.0.0.1", 403),
        (("10.0.0.0/8", "2001:db8::/32"), "2001:db8::9", 200),
        (("10.0.0.0/8", "2001:db8::/32"), "127.0.0.1", 403),
        (("fe80::/10",), "fe80::1%eth0", 200),
        ("192.0.2.1, 192.0.2.7", "192.0.2.7", 200),
        ("0.0.0.0/0", "203.0.113.9", 200),
        ("0.0.0.0/0", "2001:db8::9", 403),
        ((), "127.0.0.1", 403),
        (("127.0.0.1",), "", 403),
        (("127.0.0.1",), "@abstract", 403),
        (("127.0.0.1",), "127.0.0.1.evil.example", 403),
        (("127.0.0.1",), "0177.0.0.1", 403),
        (("127.0.0.1",), "127.1", 403),
    ],
)
def test_addresses(allow: Any, peer: str, status: int) -> None:
    assert ask(environ(peer=peer), allow=allow).status == status


def test_a_unix_socket_has_no_address_and_needs_the_token() -> None:
    made = environ(keepalive_connection=FakeConnection(""), REMOTE_ADDR="")
    assert ask(made, token=TOKEN).status == 403
    made["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    assert ask(made, token=TOKEN).status == 200


@pytest.mark.parametrize("value", ["203.0.113.9", "127.0.0.1", "", "unknown"])
@pytest.mark.parametrize(
    "name",
    ["X_FORWARDED_FOR", "FORWARDED", "X_REAL_IP", "VIA", "X_FORWARDED_HOST", "X_FORWARDED_PROTO"],
)
def test_a_forwarded_request_is_not_from_its_peer(name: str, value: str) -> None:
    made = environ(**{f"HTTP_{name}": value})
    assert ask(made, token=TOKEN).status == 403
    made["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    assert ask(made, token=TOKEN).status == 200


def test_an_address_from_a_proxy_protocol_header_is_not_a_peer() -> None:
    assert ask(environ(PROXY_PROTOCOL="TCP4")).status == 403


def test_an_address_that_another_middleware_put_there_is_not_a_peer() -> None:
    # What werkzeug's ProxyFix would make of X-Forwarded-For: 127.0.0.1, the header taken away.
    assert ask(environ(keepalive_connection=FakeConnection("203.0.113.9:1"))).status == 403
    assert ask(environ(keepalive_connection=FakeConnection("[2001:db8::1]:1"))).status == 403


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"BEARER   {TOKEN} ", 200),
        (f"Bearer {TOKEN}x", 403),
        (f"Bearer {TOKEN[:-1]}", 403),
        (f"Bearer x{TOKEN}", 403),
        (f"Bearer {TOKEN.upper()}", 403),
        (f"Bearer {TOKEN} {TOKEN}", 403),
        (f"Bearer {TOKEN},Bearer {TOKEN}", 403),
        (f"Bearer{TOKEN}", 403),
        (f"Bearer\t{TOKEN}", 403),
        (f"Basic {TOKEN}", 403),
        (TOKEN, 403),
        ("Bearer", 403),
        ("Bearer ", 403),
        ("", 403),
        ("Bearer é\u2028", 403),
        ("Bearer " + TOKEN * 10_000, 403),
        ("Bearer " + "x" * 1_000_000, 403),
    ],
)
def test_tokens(authorization: str, status: int) -> None:
    made = environ(peer="203.0.113.9", HTTP_AUTHORIZATION=authorization)
    assert Answer(KeepAliveMiddleware(application, stats_path=PATH, token=TOKEN), made).status == status


def test_a_very_long_token_works() -> None:
    token = "y" * 100_000
    made = environ(peer="203.0.113.9", HTTP_AUTHORIZATION=f"Bearer {token}")
    assert ask(made, token=token).status == 200
    made["HTTP_AUTHORIZATION"] = made["HTTP_AUTHORIZATION"][:-1] + "z"
    assert ask(made, token=token).status == 403


@pytest.mark.parametrize("authorization", ["Bearer ", "Bearer None", "Bearer", "Bearer \0"])
def test_no_token_lets_nobody_in(authorization: str) -> None:
    assert ask(environ(peer="203.0.113.9", HTTP_AUTHORIZATION=authorization)).status == 403


@pytest.mark.parametrize("name", ["token", "access_token", "bearer"])
def test_a_token_in_the_url_does_not_count(name: str) -> None:
    made = environ(f"{PATH}?{name}={TOKEN}", peer="203.0.113.9")
    assert ask(made, token=TOKEN).status == 403


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE", "BREW"])
@pytest.mark.parametrize("query", ["", "?limit=x"])
def test_who_is_not_let_in_learns_nothing_else(method: str, query: str) -> None:
    made = environ(PATH + query, peer="203.0.113.9")
    made["REQUEST_METHOD"] = method
    answer = Answer(KeepAliveMiddleware(application, stats_path=PATH), made)
    assert answer.status == 403
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Allow" not in answer.headers


# --- what it answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html; charset=utf-8"),
        ("text/html", "text/html; charset=utf-8"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("text/html, application/json", "application/json"),
        ("application/json;q=0.1, text/html;q=0.2", "text/html; charset=utf-8"),
        ("image/png", "application/json"),
        ("text/plain;version=0.0.4", "application/json"),
        ("text/html;q=0", "application/json"),
        (";;;,,text", "application/json"),
    ],
)
def test_accept_chooses_between_html_and_json(accept: str | None, content_type: str) -> None:
    answer = ask(environ(HTTP_ACCEPT=accept))
    assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)


@pytest.mark.parametrize(
    ("format_", "content_type"),
    [
        ("json", "application/json"),
        ("html", "text/html; charset=utf-8"),
        ("prometheus", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_format_wins_over_accept(format_: str, content_type: str) -> None:
    for accept in ("text/html", "application/json"):
        answer = ask(environ(f"{PATH}?format={format_}", HTTP_ACCEPT=accept))
        assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert int(answer.headers["Content-Length"]) == len(answer.body)


def test_each_page_has_a_policy_of_its_own() -> None:
    policies = {ask(environ(PATH + "?format=html")).headers["Content-Security-Policy"] for _ in range(3)}
    assert len(policies) == 3
    assert all("default-src 'none'" in policy for policy in policies)


@pytest.mark.parametrize("query", ["", "?format=html", "?format=prometheus", "?sort=age&limit=5"])
def test_head_is_get_without_a_body(query: str) -> None:
    head = ask(environ(PATH + query, method="HEAD"))
    get = ask(environ(PATH + query))
    assert (head.status, head.body) == (200, b"")
    for headers in (head.headers, get.headers):
        headers.pop("Content-Security-Policy", None)
    assert head.headers == get.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused(method: str) -> None:
    answer = ask(environ(method=method))
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("format=xml", "format"),
        ("format=", "format"),
        ("format=JSON", "format"),
        ("sort=size", "sort"),
        ("sort=", "sort"),
        ("limit=", "limit"),
        ("limit=-1", "limit"),
        ("limit=10001", "limit"),
        ("limit=1e3", "limit"),
        ("limit=0x10", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=1_0", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=1&limit=2", "limit"),
        ("format=json&format=json", "format"),
        ("token=x", "token"),
        ("refresh=1", "refresh"),
        ("a;b", "a;b"),
        ("%3Cscript%3E=1", "<script>"),
        ("&".join(f"p{number}=1" for number in range(1000)), "limit"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_bad_parameter_of_a_request_is_named(query: str, name: str, method: str) -> None:
    answer = ask(environ(f"{PATH}?{query}", method=method))
    assert answer.status == 400
    assert method == "HEAD" or name in answer.text
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("", {"sort": "idle", "limit": 100}),
        ("?sort=bytes&limit=10000", {"sort": "bytes", "limit": 10000}),
        ("?limit=0&sort=age", {"sort": "age", "limit": 0}),
        ("?format=html&limit=007", {"sort": "idle", "limit": 7}),
        ("?format=prometheus&limit=5", {"limit": 0}),
    ],
)
def test_parameters_reach_the_statistics(query: str, asked: dict[str, Any]) -> None:
    made = environ(PATH + query)
    assert ask(made).status == 200
    assert made["keepalive.statistics"].asked == asked


def test_others_go_first_while_an_answer_is_made() -> None:
    made = environ()
    ask(made)
    assert made["keepalive.statistics"].pauses > 0


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_request_makes_it_raise(query: str, authorization: str) -> None:
    made = environ(peer="203.0.113.9")
    made["QUERY_STRING"] = query.encode().decode("latin-1")
    made["HTTP_AUTHORIZATION"] = authorization.encode().decode("latin-1")
    app = KeepAliveMiddleware(application, stats_path=PATH, token=TOKEN)
    assert Answer(app, made).status == 403
    made["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    made["HTTP_ACCEPT"] = authorization.encode().decode("latin-1")
    assert Answer(app, made).status in (200, 400)


# --- under another server ----------------------------------------------------------------------------


def elsewhere(path: str = PATH, **more: Any) -> WSGIEnvironment:
    return environ(
        path, keepalive_connection=None, keepalive_statistics=None, SERVER_SOFTWARE="Werkzeug/3", **more
    )


def test_under_another_server_the_endpoint_says_what_is_missing() -> None:
    for query in ("", "?format=html", "?format=json", "?format=prometheus"):
        answer = ask(elsewhere(PATH + query))
        assert answer.status == 503
        assert "No connection data is available" in answer.text
        assert "Werkzeug/3" in answer.text
        assert "gunicorn -k keepalive_worker" in answer.text


def test_under_another_server_the_rules_are_the_same() -> None:
    assert ask(elsewhere(peer="203.0.113.9")).status == 403
    assert ask(elsewhere(HTTP_VIA="1.1 proxy")).status == 403
    assert ask(elsewhere(REMOTE_ADDR=None)).status == 403
    assert ask(elsewhere(method="POST")).status == 405
    assert ask(elsewhere(PATH + "?limit=x")).status == 400


def test_under_another_server_nothing_else_changes() -> None:
    answer = ask(elsewhere("/"))
    assert (answer.status, answer.body) == (200, APP_BODY)
    assert set(answer.headers) == {"Content-Type", "Content-Length"}
