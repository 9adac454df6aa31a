"""The documented import of the middleware: ``from middleware import KeepAliveMiddleware``.

An application with its own top-level module ``middleware`` hides this one; it takes the same class by
``from keepalive_worker import KeepAliveMiddleware``, which always works.
"""

from keepalive_worker.middleware import KeepAliveMiddleware

__all__ = ["KeepAliveMiddleware"]
