"""Which of gunicorn's parsers reads requests.

gunicorn can use a C parser, gunicorn_h1c. Releases before 0.6.14 accept heads that gunicorn's
Python parser refuses (folded fields, bare LF as line end, LF inside the head): a front server may
read such a request differently, which is how requests are smuggled. gunicorn asks for 0.6.14 in
its own extra, yet takes an older one where it finds it.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from packaging.version import InvalidVersion, Version

#: The first release that refuses what gunicorn's Python parser refuses.
SAFE = Version("0.6.14")


def old_c_parser() -> str | None:
    """The version of an installed gunicorn_h1c that is too old to be safe, if there is one."""
    try:
        installed = metadata.version("gunicorn_h1c")
        return installed if Version(installed) < SAFE else None
    except metadata.PackageNotFoundError:
        return None
    except (InvalidVersion, TypeError):
        return "of no known version"


def avoid_old_c_parser(cfg: Any) -> str | None:
    """Have gunicorn use its Python parser where its C parser is too old.

    :param cfg: gunicorn's configuration
    :returns: what to say of it in the log, None when nothing had to be changed
    """
    if cfg.http_parser == "python":
        return None
    version = old_c_parser()
    if version is None:
        return None
    cfg.set("http_parser", "python")
    return (
        f"gunicorn_h1c {version} accepts requests that gunicorn refuses: using gunicorn's Python parser instead"
        f" (install gunicorn_h1c {SAFE} or later, or uninstall it)"
    )
