"""A page of thirty resources that tells how long it took to load."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

#: Milliseconds since the navigation began, once all images are there. browser.py reads the text.
_SCRIPT = "addEventListener('load', () => { document.getElementById('taken').textContent = performance.now(); })"
_PAGE = (
    '<!doctype html><title>Thirty</title><link rel="icon" href="data:,"><p id="taken"></p>'
    f"<script>{_SCRIPT}</script>" + "".join(f'<img src="/{number}.svg">' for number in range(30))
).encode()
_IMAGE = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle cx="4" cy="4" r="4"/></svg>'


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The page, or an image of it."""
    image = environ["PATH_INFO"].endswith(".svg")
    body = _IMAGE if image else _PAGE
    headers = [("Content-Type", "image/svg+xml" if image else "text/html"), ("Content-Length", str(len(body)))]
    start_response("200 OK", [*headers, ("Cache-Control", "no-store")])
    return [body]
