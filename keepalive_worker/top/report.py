"""What a report of the debug endpoint is, seen from outside: JSON that somebody has sent."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

#: What every report has, in words of types.
_KEYS = {"generated_at": str, "totals": dict, "workers": list, "connections": list}


def is_report(report: object) -> bool:
    """Whether *report* is one, as far as everything here relies on it."""
    if not isinstance(report, dict):
        return False
    if not all(isinstance(report.get(key), kind) for key, kind in _KEYS.items()):
        return False
    try:
        moment(report)
    except ValueError:
        return False
    return isinstance(report["totals"].get("requests"), int) and isinstance(report["totals"].get("closed"), dict)


def moment(report: Mapping[str, Any]) -> datetime:
    """When the report was made, by the server's clock."""
    # Python 3.10 does not know the Z.
    return datetime.fromisoformat(str(report["generated_at"]).replace("Z", "+00:00"))


def printable(text: str) -> str:
    """*text* with nothing in it that a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)
