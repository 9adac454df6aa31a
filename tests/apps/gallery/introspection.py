"""What an application can see of its request and of the worker it runs in."""

from __future__ import annotations

import contextvars
import gc
import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import greenlet
from facts import facts_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="fresh")


def _json(start_response: StartResponse, value: Any) -> Iterable[bytes]:
    body = json.dumps(value, sort_keys=True).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def describe(value: object) -> Any:
    """A value that JSON can hold: the type where the value itself differs from run to run."""
    if isinstance(value, (str, int, bool, type(None))):
        return value
    if isinstance(value, tuple):
        return [describe(item) for item in value]
    if isinstance(value, type):
        return f"class {value.__module__}.{value.__qualname__}"
    return f"a {type(value).__name__}"


def environ(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The whole environ."""
    shown = {key: describe(value) for key, value in environ.items() if not key.startswith("gallery.")}
    return _json(start_response, shown)


def connection(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """What our worker says of the connection."""
    return _json(start_response, facts_of(environ))


def context(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """What a context variable holds, which is then set."""
    before = _seen.get()
    _seen.set("used by an earlier request")
    return _json(start_response, before)


def worker(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The worker's process id, descriptors, and greenlets."""
    gc.collect()
    greenlets = sum(isinstance(thing, greenlet.greenlet) for thing in gc.get_objects())
    descriptors = len(os.listdir("/dev/fd"))
    return _json(start_response, {"pid": os.getpid(), "greenlets": greenlets, "descriptors": descriptors})


def errors(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Write a line to wsgi.errors, and one to standard error."""
    environ["wsgi.errors"].write(f"to wsgi.errors: {environ['gallery.query']['mark']}\n")
    environ["wsgi.errors"].flush()
    sys.stderr.write(f"to stderr: {environ['gallery.query']['mark']}\n")
    sys.stderr.flush()
    return _json(start_response, "written")
