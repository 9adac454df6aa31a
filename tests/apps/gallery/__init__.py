"""Small WSGI applications, one function for each behaviour that a server has to cope with.

``/streaming/gated?name=x`` runs the function ``gated`` of the module ``streaming``; ``/`` says hello.
That way many tests share one server. What the functions remember, they remember for the worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from gallery import failures, files, introspection, lengths, streaming, uploads

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

MODULES = {
    module.__name__.rpartition(".")[2]: module
    for module in (failures, files, introspection, lengths, streaming, uploads)
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Run the function that the path names; ``environ["gallery.query"]`` has the query."""
    environ["gallery.query"] = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
    parts = environ["PATH_INFO"].strip("/").split("/")
    module = MODULES.get(parts[0])
    function = getattr(module, parts[1], None) if len(parts) > 1 else None
    if parts == [""]:
        function = lengths.hello
    if function is None:
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
    answer: Iterable[bytes] = function(environ, start_response)
    return answer
