"""A gunicorn worker for HTTP persistent connections, and the WSGI middleware that shows them.

``KeepaliveWorker`` is what ``gunicorn -k keepalive_worker`` runs, ``KeepAliveMiddleware`` what an application
wraps itself in. Both are loaded when first asked for: the start-up hook imports this package in every Python
process of the environment, so importing it must cost next to nothing and import neither gunicorn nor gevent.
"""

TYPE_CHECKING = False  # typing's own would cost milliseconds at the start of every Python process
if TYPE_CHECKING:
    from keepalive_worker.middleware import KeepAliveMiddleware
    from keepalive_worker.worker import KeepaliveWorker
else:

    def __getattr__(name: str) -> object:
        if name == "KeepAliveMiddleware":
            from keepalive_worker.middleware import KeepAliveMiddleware

            return KeepAliveMiddleware
        if name == "KeepaliveWorker":
            from keepalive_worker.registration import load_worker

            return load_worker()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["KeepAliveMiddleware", "KeepaliveWorker", "__version__"]

#: The one place of the version; setup.cfg reads it from here.
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
