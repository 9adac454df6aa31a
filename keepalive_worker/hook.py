"""The start-up hook: waits for gunicorn and has us registered with it (see registration.py).

gunicorn looks a dotless ``-k NAME`` up in a table of its own, and turns its settings into command line
options, before it runs any code of a user. So an installation carries a ``.pth`` file (from Python 3.15
on a ``.start`` file, PEP 829) by which every start of the interpreter calls :func:`install`.

That happens in processes that have nothing to do with gunicorn: this module imports only what the
interpreter has loaded already, is short because it may have to be compiled each time, and raises nothing.

Without it (``KEEPALIVE_WORKER_NO_HOOK=1``, ``python -S``, ``pip install --target``) gunicorn still finds
the worker by ``-k keepalive_worker.KeepaliveWorker``, and the settings have their defaults.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own would cost milliseconds at the start of every Python process
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def install() -> None:
    """Register with gunicorn as soon as its configuration module is imported: now, if it already is."""
    if os.environ.get("KEEPALIVE_WORKER_NO_HOOK", "0") not in ("", "0"):
        return
    config = sys.modules.get("gunicorn.config")
    if config is not None:
        from keepalive_worker.registration import register

        register(config)
    # Two site directories (an environment over system packages, say) may each carry the hook.
    elif not any(type(finder).__module__ == __name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, GunicornConfigFinder())


class GunicornConfigFinder:
    """Finds ``gunicorn.config`` by the finders behind it, and nothing else."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name != "gunicorn.config" or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
            if spec is None:
                continue
            if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                spec.loader = RegisteringLoader(self, spec.loader)  # type: ignore[assignment]
            return spec
        return None


class RegisteringLoader:
    """Stands for the module's own loader until the module has been executed, and has us registered then.

    Only then does the finder go: a mere look (``importlib.util.find_spec``) or an import that fails must
    not use the hook up.
    """

    def __init__(self, finder: GunicornConfigFinder, loader: "Loader") -> None:
        self._finder = finder
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        try:
            from keepalive_worker.registration import register
        except Exception:
            return  # half removed: gunicorn must run with its own workers all the same
        register(module)
