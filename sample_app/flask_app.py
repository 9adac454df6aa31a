"""The site as a Flask application.

gunicorn -k keepalive_worker sample_app.flask_app:app
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from flask import Flask, Response, render_template, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing.exceptions import WebsocketMismatch

from middleware import KeepAliveMiddleware
from sample_app import content

try:
    from flask_sock import Sock
except ImportError:  # the site is complete without a WebSocket
    Sock = None

FRAMEWORK = f"Flask {version('flask')}"

app = Flask(__name__)
app.config["SOCK_SERVER_OPTIONS"] = content.WEBSOCKET_OPTIONS
app.wsgi_app = KeepAliveMiddleware(app.wsgi_app, stats_path=content.STATS_PATH)  # type: ignore[method-assign]


def _html(page: content.Page, status: int = 200) -> Response:
    return Response(render_template(page.template, **page.context), status)


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, mimetype="application/json")


@app.after_request
def add_headers(response: Response) -> Response:
    """Complete every response of the application."""
    response.headers.update(content.response_headers(request.environ))
    return response


@app.errorhandler(content.Refused)
def refused(refusal: content.Refused) -> Response:
    """Answer what the content does not want to answer."""
    return _error(refusal.status, refusal.message)


@app.errorhandler(WebsocketMismatch)
def not_a_websocket(error: WebsocketMismatch) -> Response:
    """Answer a plain request for the WebSocket."""
    return _error(400, "This address speaks WebSocket only.")


@app.errorhandler(HTTPException)
def failed(error: HTTPException) -> Response:
    """Answer what Flask does not want to answer, and what went wrong in the application."""
    status = error.code or 500
    response = _error(status, content.error_message(status))
    if allowed := error.get_response().headers.get("Allow"):
        response.headers["Allow"] = allowed
    return response


def _error(status: int, message: str) -> Response:
    if content.wants_html(request.environ):
        return _html(content.error_page(request.environ, FRAMEWORK, status, message), status)
    return _json(content.to_json({"error": message}), status)


@app.get("/")
def home() -> Response:
    """The overview."""
    return _html(content.home(request.environ, FRAMEWORK, websocket=Sock is not None))


@app.get("/resources")
def resources() -> Response:
    """The page that counts connections."""
    return _html(content.resources_page(request.environ, FRAMEWORK, request.args))


@app.get("/resources/<int:number>.svg")
def resource(number: int) -> Response:
    """One of the thirty resources."""
    return Response(content.resource(number, request.environ, request.args), mimetype="image/svg+xml")


@app.get("/api/time")
def api_time() -> Response:
    """The time and the connection."""
    return _json(content.now(request.environ, request.args))


@app.post("/api/echo")
def api_echo() -> Response:
    """The JSON that was sent."""
    return _json(content.echo(request.stream, request.environ))


@app.get("/slow")
def slow() -> Response:
    """A call that takes its time."""
    return _json(content.slow(request.args))


@app.get("/stream")
def stream() -> Response:
    """Lines, sent as they are made."""
    return Response(content.lines(request.args), mimetype="text/plain")


@app.get("/events")
def events() -> Response:
    """Server-sent events."""
    return Response(content.events(request.args), mimetype="text/event-stream")


@app.get("/upload")
def upload_form() -> Response:
    """The form."""
    return _html(content.upload_page(request.environ, FRAMEWORK))


@app.post("/upload")
def upload() -> Response:
    """Read a body of any size: that of a form with a file, or the file itself."""
    if request.mimetype == "multipart/form-data":
        file = request.files.get("file")
        if file is None:
            raise content.Refused(400, "The form has no file.")
        received = content.digest(file.stream)
    else:
        received = content.digest(request.stream)
    if content.wants_html(request.environ):
        return _html(content.upload_page(request.environ, FRAMEWORK, received))
    return _json(content.to_json(received))


@app.get("/download")
def download() -> Response:
    """A file of any size."""
    file = content.download(request.args)
    return Response(file.body, headers=file.headers, mimetype="application/octet-stream")


if Sock is not None:
    sock = Sock(app)

    @sock.route("/ws")  # type: ignore[untyped-decorator]
    def echo_messages(websocket: Any) -> None:
        """Send each message back until the client closes."""
        while True:
            websocket.send(websocket.receive())
