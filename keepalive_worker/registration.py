"""Makes gunicorn know our worker's short name and our settings, and refuses a gunicorn that does not suit.

What goes wrong here is kept, and told to whoever asks for our worker: gunicorn with another worker must
run as if we were not there.
"""

from types import ModuleType
from typing import Any

#: The major version of gunicorn whose workings the worker is written for; setup.cfg asks for the same.
GUNICORN_MAJOR = 27

#: Why registering with gunicorn failed, if it did.
failure: str | None = None


def register(config: ModuleType) -> None:
    """Define our settings in gunicorn's module *config*, and add our name to its table of workers.

    Raises nothing. The name is added also where the settings cannot be defined, so that who asks for it
    reads the reason (:func:`load_worker`).
    """
    global failure
    try:
        from gunicorn.workers import SUPPORTED_WORKERS

        SUPPORTED_WORKERS["keepalive_worker"] = "keepalive_worker.KeepaliveWorker"
        if wrong_gunicorn() is None:
            from keepalive_worker import settings

            settings.register(config)
            failure = None
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"


def wrong_gunicorn() -> str | None:
    """What to tell a user whose gunicorn is not the one that the worker is written for, if so."""
    import gunicorn

    if gunicorn.version_info[0] == GUNICORN_MAJOR:
        return None
    wanted = f"gunicorn[gevent]>={GUNICORN_MAJOR},<{GUNICORN_MAJOR + 1}"
    return f"it needs {wanted}, but gunicorn {gunicorn.__version__} is installed; run: pip install '{wanted}'"


def load_worker() -> type[Any]:
    """The worker class.

    :raises RuntimeError: it cannot run here; the message says why and what to do. gunicorn shows the
        message of a RuntimeError, and of every other error a traceback.
    """
    from keepalive_worker import __version__

    sorry = f"keepalive-worker {__version__} cannot run here: "
    try:
        wrong = wrong_gunicorn()
        if wrong is not None:
            raise RuntimeError(sorry + wrong)
        if failure is not None:
            raise RuntimeError(f"{sorry}its settings could not be defined ({failure})")
        from keepalive_worker.worker import KeepaliveWorker
    except ImportError as error:
        again = "pip install --force-reinstall keepalive-worker"
        raise RuntimeError(f"{sorry}{error}; to install what it needs, run: {again}") from error
    return KeepaliveWorker
