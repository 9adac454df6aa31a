"""A Flask application with a WebSocket that echoes, by flask-sock, and a plain page beside it."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sock import Sock

app = Flask(__name__)
sock = Sock(app)


@app.get("/")
def hello() -> str:
    """A plain page."""
    return "Hello, world!\n"


@app.get("/settle")
def settle() -> str:
    """What the tests ask for to know that the worker has seen what came before."""
    return ""


@sock.route("/echo")  # type: ignore[untyped-decorator, unused-ignore]
def echo(connection: Any) -> None:
    """Echo until the client closes, or asks for it."""
    while True:
        data = connection.receive()
        if data == "close":
            return
        connection.send(data)


@sock.route("/push")  # type: ignore[untyped-decorator, unused-ignore]
def push(connection: Any) -> None:
    """Send a hundred messages unasked."""
    for number in range(100):
        connection.send(f"message {number}")
