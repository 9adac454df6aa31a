"""The site as a Django application, in one file.

gunicorn -k keepalive_worker sample_app.django_app:application
"""
# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import django
from django.conf import settings
from django.core.exceptions import SuspiciousFileOperation
from django.core.wsgi import get_wsgi_application
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.template.loader import render_to_string
from django.urls import path
from django.views.static import serve

from middleware import KeepAliveMiddleware
from sample_app import content

FRAMEWORK = f"Django {django.get_version()}"

settings.configure(
    ALLOWED_HOSTS=["*"],  # nothing here depends on the name by which a client knows the server
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": {"class": "logging.StreamHandler"}},
        "loggers": {"django": {"handlers": ["stderr"], "level": "ERROR"}},
    },
    MIDDLEWARE=[f"{__name__}.Completion"],
    ROOT_URLCONF=__name__,
    TEMPLATES=[
        {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [content.TEMPLATES]},
    ],
    USE_I18N=False,
)


class Completion:
    """Completes every response of the application, and answers refusals."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Add the headers that every response carries."""
        response = self._get_response(request)
        for name, value in content.response_headers(request.environ).items():
            response.headers[name] = value
        if not response.streaming:
            response.headers.setdefault("Content-Length", str(len(response.content)))
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Answer what the content does not want to answer."""
        if isinstance(exception, content.Refused):
            return _error(request, exception.status, exception.message)
        return None


def _html(page: content.Page, status: int = 200) -> HttpResponse:
    return HttpResponse(render_to_string(page.template, page.context), status=status)


def _json(text: str, status: int = 200) -> HttpResponse:
    return HttpResponse(text, status=status, content_type="application/json")


def _streamed(request: HttpRequest, body: Iterator[bytes], **options: Any) -> HttpResponseBase:
    # A server asks for the whole body even where it sends none of it.
    return StreamingHttpResponse(() if request.method == "HEAD" else body, **options)


def _error(request: HttpRequest, status: int, message: str) -> HttpResponse:
    if content.wants_html(request.environ):
        return _html(content.error_page(request.environ, FRAMEWORK, status, message), status)
    return _json(content.to_json({"error": message}), status)


def _failed(status: HTTPStatus) -> Callable[..., HttpResponse]:
    def answer(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
        return _error(request, status, content.error_message(status))

    return answer


handler400 = _failed(HTTPStatus.BAD_REQUEST)
handler403 = _failed(HTTPStatus.FORBIDDEN)
handler404 = _failed(HTTPStatus.NOT_FOUND)
handler500 = _failed(HTTPStatus.INTERNAL_SERVER_ERROR)


def _home(request: HttpRequest) -> HttpResponse:
    return _html(content.home(request.environ, FRAMEWORK, websocket=False))


def _resources(request: HttpRequest) -> HttpResponse:
    return _html(content.resources_page(request.environ, FRAMEWORK, request.GET))


def _resource(request: HttpRequest, number: int) -> HttpResponse:
    picture = content.resource(number, request.environ, request.GET)
    return HttpResponse(picture, content_type="image/svg+xml; charset=utf-8")


def _time(request: HttpRequest) -> HttpResponse:
    return _json(content.now(request.environ, request.GET))


def _echo(request: HttpRequest) -> HttpResponse:
    return _json(content.echo(_body(request), request.environ))


def _slow(request: HttpRequest) -> HttpResponse:
    return _json(content.slow(request.GET))


def _stream(request: HttpRequest) -> HttpResponseBase:
    return _streamed(request, content.lines(request.GET), content_type="text/plain; charset=utf-8")


def _events(request: HttpRequest) -> HttpResponseBase:
    return _streamed(request, content.events(request.GET), content_type="text/event-stream; charset=utf-8")


def _upload_form(request: HttpRequest) -> HttpResponse:
    return _html(content.upload_page(request.environ, FRAMEWORK))


def _upload(request: HttpRequest) -> HttpResponse:
    """Read a body of any size: that of a form with a file, or the file itself."""
    if request.content_type == "multipart/form-data":
        if "file" not in request.FILES:
            raise content.Refused(400, "The form has no file.")
        received = content.digest(request.FILES["file"])
    else:
        received = content.digest(_body(request))
    if content.wants_html(request.environ):
        return _html(content.upload_page(request.environ, FRAMEWORK, received))
    return _json(content.to_json(received))


def _download(request: HttpRequest) -> HttpResponseBase:
    file = content.download(request.GET)
    return _streamed(request, file.body, headers=file.headers, content_type="application/octet-stream")


def _static(request: HttpRequest, path: str) -> HttpResponseBase:
    try:
        return serve(request, path, document_root=content.STATIC)
    except SuspiciousFileOperation as error:
        raise Http404 from error


def _body(request: HttpRequest) -> content.Readable:
    # Django takes a request without Content-Length for an empty one; where the server marks the end
    # of the body, a chunked one can be read all the same.
    body: content.Readable = request
    if request.environ.get("wsgi.input_terminated"):
        body = request.environ["wsgi.input"]
    return body


def _by_method(**views: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """One view for each method, 405 for the others."""
    views = {name.upper(): view for name, view in views.items()}
    if "GET" in views:
        views["HEAD"] = views["GET"]

    def view(request: HttpRequest, **parts: Any) -> HttpResponseBase:
        if request.method in views:
            return views[request.method](request, **parts)
        response = _failed(HTTPStatus.METHOD_NOT_ALLOWED)(request)
        response.headers["Allow"] = ", ".join(views)
        return response

    return view


urlpatterns = [
    path("", _by_method(get=_home)),
    path("resources", _by_method(get=_resources)),
    path("resources/<int:number>.svg", _by_method(get=_resource)),
    path("api/time", _by_method(get=_time)),
    path("api/echo", _by_method(post=_echo)),
    path("slow", _by_method(get=_slow)),
    path("stream", _by_method(get=_stream)),
    path("events", _by_method(get=_events)),
    path("upload", _by_method(get=_upload_form, post=_upload)),
    path("download", _by_method(get=_download)),
    path("static/<path:path>", _by_method(get=_static)),
]

application = KeepAliveMiddleware(get_wsgi_application(), stats_path=content.STATS_PATH)
