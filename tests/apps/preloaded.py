"""Says which process imported it and which one answers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

IMPORTED_BY = os.getpid()


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Both process ids."""
    body = b"%d %d" % (IMPORTED_BY, os.getpid())
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
