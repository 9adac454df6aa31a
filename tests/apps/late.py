"""Uses what belongs to a request when that is over, or goes on after an error that should have ended it.

``/keep?HOW`` leaves a greenlet behind, and its connection is closed; ``/use`` has the greenlet go on and
answers what came of it. ``/closed`` answers the statistics' count for each reason.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.event import AsyncResult, Event

_left: list[tuple[Event, AsyncResult]] = []


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/keep":
        put = start_response("200 OK", [])
        environ["keepalive.connection"].close()
        go_on, outcome = Event(), AsyncResult()
        _left.append((go_on, outcome))
        gevent.spawn(_use_later, environ, put, go_on, outcome)
        return [b"kept"]
    if path == "/use":
        go_on, outcome = _left.pop()
        go_on.set()
        return _answer(start_response, outcome.get(timeout=5).encode())
    if path == "/closed":
        totals = environ["keepalive.statistics"].report(limit=0)["totals"]
        return _answer(start_response, json.dumps(totals["closed"]).encode())
    if path == "/give_up_sending":
        put = start_response("200 OK", [("Content-Length", "20000000")])
        with gevent.Timeout(0.2, False):
            put(b"x" * 20_000_000)
        return []
    if path == "/give_up_reading":
        try:
            environ["wsgi.input"].read()
        except OSError:
            return _answer(start_response, b"given up")
    if path == "/look":
        # At the socket, whose owner is still the worker.
        environ["gunicorn.socket"].getpeername()
        return _answer(start_response, environ["wsgi.input"].read() * 1_000_000)
    if path == "/close_socket":
        environ["gunicorn.socket"].close()
        go_on, outcome = Event(), AsyncResult()
        _left.append((go_on, outcome))
        go_on.wait()
        # Whoever waits for it hears of it when this response has been tried.
        gevent.spawn_later(0.1, outcome.set, "tried")
    if path == "/read":
        environ["wsgi.input"].read()
    if path == "/large":
        return _answer(start_response, b"x" * 100_000)
    if path == "/close_late":
        return _close_late(environ, start_response)
    return _answer(start_response, b"ok")


def _use_later(environ: dict[str, Any], put: Any, go_on: Event, outcome: Any) -> None:
    go_on.wait()
    try:
        how = environ["QUERY_STRING"]
        if how == "write":
            put(b"meant for somebody who has gone")
        elif how == "read":
            environ["wsgi.input"].read()
        else:
            environ["gunicorn.socket"].recv(100)
    except OSError as error:
        outcome.set(type(error).__name__)
    else:
        outcome.set("no error")


def _close_late(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "4")])
    yield b"la"
    environ["keepalive.connection"].close()
    yield b"te"


def _answer(start_response: Callable[..., Any], body: bytes) -> list[bytes]:
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
