"""Files as responses, through wsgi.file_wrapper (PEP 3333, "Optional Platform-Specific File Handling")."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gevent import monkey

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

CONTENT = bytes(range(256)) * 100
#: How often the file of a response was closed.
closed = 0


class _Counted(io.FileIO):
    def close(self) -> None:
        """Close the file and count it, once for a file."""
        global closed
        if not self.closed:
            closed += 1
        super().close()


def _file(content: bytes = CONTENT) -> io.FileIO:
    handle, path = tempfile.mkstemp()
    os.write(handle, content)
    os.close(handle)
    opened = _Counted(path, "rb")
    os.unlink(path)
    return opened


def real(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A whole file with its length."""
    start_response("200 OK", [("Content-Length", str(len(CONTENT)))])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](_file())
    return wrapped


def unknown(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A whole file without its length."""
    start_response("200 OK", [])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](_file(), 1000)
    return wrapped


def offset(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A file from where it stands, without the length."""
    handle = _file()
    handle.seek(1000)
    start_response("200 OK", [])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](handle)
    return wrapped


def part(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A range: from where the file stands, as much as Content-Length says."""
    handle = _file()
    handle.seek(1000)
    start_response("206 Partial Content", [("Content-Length", "500")])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](handle)
    return wrapped


def empty(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A file with nothing in it and its length."""
    start_response("200 OK", [("Content-Length", "0")])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](_file(b""))
    return wrapped


def shorter_than_promised(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A file that has been cut since its length was looked up."""
    start_response("200 OK", [("Content-Length", str(len(CONTENT) + 100))])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](_file())
    return wrapped


def huge(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """100 MB of zeros, but for the last byte."""
    handle = tempfile.TemporaryFile()  # noqa: SIM115 - the response closes it
    handle.seek((100 << 20) - 1)
    handle.write(b"!")
    handle.seek(0)
    start_response("200 OK", [("Content-Length", str(100 << 20))])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](handle)
    return wrapped


def memory(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An object like a file that has no descriptor."""
    start_response("200 OK", [("Content-Length", str(len(CONTENT)))])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](io.BytesIO(CONTENT))
    return wrapped


def memory_unknown(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An object like a file that has no descriptor, without the length."""
    start_response("200 OK", [])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](io.BytesIO(CONTENT), 4000)
    return wrapped


def pipe(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A descriptor that cannot seek."""
    reader, writer = os.pipe()
    os.write(writer, b"through a pipe")
    # gevent's own close() would wait for the next turn of the loop, and the reader for that.
    monkey.get_original("os", "close")(writer)
    start_response("200 OK", [("Content-Length", "14")])
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](os.fdopen(reader, "rb"))
    return wrapped


def plain_file(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A file object itself as the iterable, without the wrapper: it is a sequence of lines."""
    start_response("200 OK", [])
    return _file(b"one\ntwo\nthree")


def closings(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """How many of the counted files were closed."""
    body = b"%d" % closed
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
