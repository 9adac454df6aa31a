"""All cases. A new one is one more :class:`~benchmarks.case.Case` in the module of its group."""

from __future__ import annotations

from benchmarks.case import Case, Conditions
from benchmarks.cases import applications, closing, connections, memory, slow, throughput, waiting

#: By name, in the order in which they are measured.
GROUPS = {
    "memory": memory.cases,
    "throughput": throughput.cases,
    "applications": applications.cases,
    "connections": connections.cases,
    "waiting": waiting.cases,
    "closing": closing.cases,
    "slow": slow.cases,
}

#: What is measured unless somebody asks for more: how fast servers are. "slow" is about how safe they are.
USUAL = tuple(name for name in GROUPS if name != "slow")


def all_cases(conditions: Conditions) -> list[Case]:
    """Of all groups."""
    return [case for cases in GROUPS.values() for case in cases(conditions)]
