"""Frameworks, and bodies of all kinds."""

from __future__ import annotations

import json

from benchmarks import load, measures
from benchmarks.case import Case, Conditions, Target, Values
from benchmarks.measures import REQUESTS
from benchmarks.peers import BASELINE, BJOERN, GRANIAN, GTHREAD, NGINX, OURS, UWSGI
from benchmarks.servers import Server, Setup

_FRAMEWORKS = (BASELINE, GTHREAD, OURS, GRANIAN, BJOERN, UWSGI)
_BODIES = (BASELINE, OURS, GRANIAN, BJOERN)

_ORDER = {
    "order": 4711,
    "items": [{"name": f"thing {number}", "price": 995 + number, "count": number} for number in range(10)],
}


def framework(server: Server, conditions: Conditions) -> Values:
    """Hello world of a framework over 64 connections."""
    return measures.throughput(server, conditions)


def json_post(server: Server, conditions: Conditions) -> Values:
    """An order of half a kilobyte in JSON is posted, and its sum comes back, over 64 connections."""
    body = server.folder / "order.json"
    body.write_text(json.dumps(_ORDER))
    headers = {"Content-Type": "application/json"}
    return measures.throughput(server, conditions, path="/json", body=body, headers=headers)


def medium(server: Server, conditions: Conditions) -> Values:
    """Responses of 100 KB from memory over 64 connections."""
    return measures.throughput(server, conditions, path="/medium")


def large(server: Server, conditions: Conditions) -> Values:
    """Responses of 10 MB from memory over 8 connections."""
    return measures.throughput(server, conditions, path="/large", connections=8)


def sendfile(server: Server, conditions: Conditions) -> Values:
    """A file of 10 MB by wsgi.file_wrapper, where the server has one, over 8 connections."""
    return measures.throughput(server, conditions, path="/file", connections=8)


def upload(server: Server, conditions: Conditions) -> Values:
    """A body of 10 MB is posted and read by the application, over 8 connections."""
    return measures.throughput(server, conditions, path="/upload", connections=8, body=server.folder / "large")


def streaming(server: Server, conditions: Conditions) -> Values:
    """A hundred pieces of 1 KB with no length announced, over 64 connections."""
    return measures.throughput(server, conditions, path="/stream")


def cases(_: Conditions) -> list[Case]:
    """Flask and Django, then bodies."""
    no_slower = Target(REQUESTS, least=1, to=BASELINE)
    found = [
        Case(
            "flask",
            "applications",
            "Flask hello world over 64 kept-alive connections",
            framework,
            _FRAMEWORKS,
            Setup(app="flask_hello"),
            (Target(REQUESTS, least=1.9, to=BASELINE), Target(REQUESTS, least=1, to=GRANIAN)),
            needs=(load.missing,),
            modules=("flask",),
        ),
        Case(
            "django",
            "applications",
            "Django hello world over 64 kept-alive connections",
            framework,
            _FRAMEWORKS,
            Setup(app="django_hello"),
            (no_slower,),
            needs=(load.missing,),
            modules=("django",),
        ),
    ]
    for name, title, measure, peers in (
        ("json-post", "A JSON document posted and answered, 64 connections", json_post, _BODIES),
        ("upload", "Uploads of 10 MB, 8 connections", upload, _BODIES),
        ("streaming", "Responses streamed in 100 pieces of 1 KB, 64 connections", streaming, _BODIES),
        ("body-100k", "Responses of 100 KB, 64 connections", medium, (*_BODIES, NGINX)),
        ("body-10m", "Responses of 10 MB, 8 connections", large, (*_BODIES, NGINX)),
        ("sendfile", "A file of 10 MB, 8 connections", sendfile, (*_BODIES, NGINX)),
    ):
        found.append(
            Case(
                name,
                "applications",
                title,
                measure,
                peers,
                Setup(app="bodies"),
                (no_slower,),
                shared=True,
                needs=(load.missing,),
            )
        )
    return found
