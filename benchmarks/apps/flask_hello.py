"""The least a Flask application can do."""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    """13 bytes of HTML."""
    return "Hello, World!"
