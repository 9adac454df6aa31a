"""What a case is: a thing that is measured, with what is to be reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.servers import Server, Setup


@dataclass(frozen=True)
class Conditions:
    """What the person who measures can choose.

    :param seconds: of each load
    :param idle: idle connections beside, or to be closed
    :param most_idle: idle connections of the largest case, over several workers
    :param most_tls: the same over TLS
    :param slow: slow clients of an attack
    :param attack: seconds for which an attack is watched; a server without a deadline would let it go on for good
    :param closing: idle time after which connections are closed, where closing is what is measured
    :param client_cpu: the core for the clients, or None for any
    """

    seconds: float = 2.0
    idle: int = 15_000
    most_idle: int = 60_000
    most_tls: int = 60_000
    slow: int = 5_000
    attack: float = 9.0
    closing: int = 15
    client_cpu: int | None = None

    @property
    def settle(self) -> float:
        """Seconds for a server to come to rest after many connections were opened or closed."""
        return min(1.0, self.seconds)


#: Figures by their titles, in the order of the table. The first is the one that ratios are taken of.
Values = dict[str, float]


@dataclass(frozen=True)
class Target:
    """What this worker is to reach.

    :param figure: title of the figure
    :param least: as small as this it may be
    :param most: as large as this it may be
    :param to: the limits are for the ratio to this peer in the same round; None: for the figure itself
    """

    figure: str
    least: float | None = None
    most: float | None = None
    to: str | None = None


#: How servers are started unless a case says otherwise.
DEFAULT = Setup()


@dataclass(frozen=True)
class Case:
    """One thing that is measured.

    :param name: as on the command line
    :param group: the same, for several cases
    :param title: as in the report
    :param measure: measures a running server
    :param peers: names of the servers for which it says something
    :param setup: how they are started
    :param targets: what is to be reached
    :param compare: the ratio of the first figure to the baseline's says something
    :param shared: may be measured on the server that the case before has left, to save time
    :param needs: each tells what is missing on this machine, if anything
    :param modules: what the application needs beside the server
    :param files: open files that a process must be allowed
    :param most_rounds: more would take long and say little
    """

    name: str
    group: str
    title: str
    measure: Callable[[Server, Conditions], Values]
    peers: tuple[str, ...]
    setup: Setup = DEFAULT
    targets: tuple[Target, ...] = ()
    compare: bool = True
    shared: bool = False
    needs: tuple[Callable[[], str | None], ...] = ()
    modules: tuple[str, ...] = ()
    files: int = 0
    most_rounds: int | None = None
