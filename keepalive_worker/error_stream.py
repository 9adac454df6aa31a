"""``environ["wsgi.errors"]``: one object for all requests of a worker, where gunicorn makes one for each."""

from __future__ import annotations

from typing import Any

from gunicorn.http.wsgi import WSGIErrorsWrapper


class ErrorStream(WSGIErrorsWrapper):  # type: ignore[misc]
    """Writes to gunicorn's error log, wherever that is at the moment: SIGUSR1 opens its files anew.

    :param cfg: gunicorn's configuration
    """

    def __init__(self, cfg: Any) -> None:
        # Not gunicorn's own __init__: it looks the log's streams up for good.
        self._cfg = cfg

    @property
    def streams(self) -> list[Any]:
        """What to write to, as gunicorn finds it."""
        streams: list[Any] = WSGIErrorsWrapper(self._cfg).streams
        return streams

    def close(self) -> None:
        """Nothing: it is not the application's to close (PEP 3333), and the next request's as well."""
