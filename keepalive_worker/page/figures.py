"""Numbers as people read them. ``page.js`` has the same functions by the same names; a test compares them."""

from __future__ import annotations

from math import floor

#: What stands where there is no figure.
NONE = "\N{EN DASH}"

_UNITS = ("B", "kB", "MB", "GB", "TB")


def count(number: float | None) -> str:
    """A whole number with its thousands set apart: ``12,345``."""
    return NONE if number is None else f"{number:,.0f}"


def decimal(number: float | None) -> str:
    """A number with one decimal: ``36.9``."""
    return NONE if number is None else f"{floor(number * 10 + 0.5) / 10:,.1f}"


def ratio(part: float | None) -> str:
    """A part of one, in percent: ``97.3 %``."""
    return NONE if part is None else f"{decimal(part * 100)} %"


def size(octets: float | None) -> str:
    """Bytes, in decimal units: ``840 B``, ``12.3 MB``."""
    if octets is None:
        return NONE
    if octets < 1000:
        return f"{octets:.0f} B"
    power = 1
    while octets / 1000**power >= 999.95 and power < len(_UNITS) - 1:
        power += 1
    return f"{decimal(octets / 1000**power)} {_UNITS[power]}"


def duration(seconds: float | None) -> str:
    """Seconds with the two units that matter: ``4.2 s``, ``3 min 05 s``, ``2 h 14 min``, ``5 d 03 h``."""
    if seconds is None:
        return NONE
    tenths = max(0, floor(seconds * 10 + 0.5))
    if tenths < 600:
        return f"{tenths / 10:.1f} s"
    whole = floor(seconds + 0.5)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = floor(seconds / 60 + 0.5)
    if minutes < 1440:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = floor(seconds / 3600 + 0.5)
    return f"{hours // 24} d {hours % 24:02d} h"


def bound(limit: float, unit: str) -> str:
    """The upper end of a range: ``200`` for the *unit* ``requests``; ``10 ms``, ``5 min`` for ``seconds``."""
    if unit == "requests":
        return count(limit)
    if limit < 1:
        return f"{limit * 1000:g} ms"
    if limit < 60:
        return f"{limit:g} s"
    if limit < 3600:
        return f"{limit / 60:g} min"
    return f"{limit / 3600:g} h"
