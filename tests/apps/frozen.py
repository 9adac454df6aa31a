"""Tells what the garbage collector is spared."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Of the kind that a collection looks at.
LOADED: list[object] = []
LOADED.append(LOADED)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Whether collections go over what was loaded with this module."""
    answer = b"collected" if any(each is LOADED for each in gc.get_objects()) else b"spared"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
