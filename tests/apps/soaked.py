"""The gallery, for a long time: every response tells which worker made it, and a worker tells what it holds."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import gallery
import greenlet

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: What connections and requests are made of.
_COUNTED = re.compile(
    r"keepalive_worker\.(connection|handler|response|stream)\..*"
    r"|gunicorn\.(http|http2)\..*"
    r"|h2\.connection\.H2Connection|h2\.stream\.H2Stream"
)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """As the gallery; besides, ``/nap?seconds=S`` and ``/state``."""

    def signed(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        return start_response(status, [*headers, ("X-Worker", str(os.getpid()))], *exc_info)

    path = environ["PATH_INFO"]
    if path not in ("/nap", "/state"):
        return gallery.app(environ, signed)
    body = b"rested" if path == "/nap" else json.dumps(_state()).encode()
    if path == "/nap":
        time.sleep(float(environ["QUERY_STRING"].partition("=")[2]))
    signed("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def _state() -> dict[str, Any]:
    """The worker's greenlets and objects; its free memory is given back, so that what it holds can be measured."""
    gc.collect()
    greenlets, objects = 0, Counter[str]()
    for thing in gc.get_objects():
        greenlets += isinstance(thing, greenlet.greenlet)
        name = f"{type(thing).__module__}.{type(thing).__qualname__}"
        objects[name] += _COUNTED.fullmatch(name) is not None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    return {"pid": os.getpid(), "greenlets": greenlets, "objects": +objects}
