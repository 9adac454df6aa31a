"""The least a Django application can do."""

from __future__ import annotations

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="not one", DEBUG=False)


def hello(_: HttpRequest) -> HttpResponse:
    """13 bytes of HTML."""
    return HttpResponse("Hello, World!")


urlpatterns = [path("", hello)]

app = get_wsgi_application()
