"""All settings in one table: the fields of :class:`Options`.

Each field carries what is needed to make a real gunicorn setting of it (:func:`register`): its flag, the
values that it takes, and the text that ``gunicorn --help`` and the reference in the documentation show. A
new setting is one more field here.

Nothing here imports gunicorn; :func:`register` is handed the module whose settings it extends.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import ipaddress
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: The heading of our settings in gunicorn's reference.
SECTION = "Keep-Alive Connections"

#: Seconds; the longest time that a setting takes. More than that is a slip of the pen, and some event
#: loops and kernels count in numbers that would overflow not far beyond.
A_YEAR = 365 * 24 * 3600

#: Seconds; what the Linux kernel takes at most as TCP_KEEPIDLE (MAX_TCP_KEEPIDLE in its net/tcp.h).
LONGEST_TCP_KEEPIDLE = 32767


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: what ``read`` accepts, in words, and the word for it in ``--help``.

    ``read`` takes what stands in a configuration file or, as a string, on the command line, and returns
    the value to work with. It raises ValueError for anything else, with a text only where "must be
    <accepts>" would not do.
    """

    accepts: str
    metavar: str | None
    read: Callable[[Any], Any]


def number(what: str, metavar: str, most: float) -> Kind:
    """Integers and fractions from 0 to *most*, which *what* describes; read as float."""

    def read(value: object) -> float:
        # A boolean is an int in Python, but `header_timeout = True` is a mistake.
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        try:
            result = float(value)
        except (ValueError, OverflowError):
            raise ValueError from None
        if not 0 <= result <= most:  # false for NaN, too
            raise ValueError
        return abs(result)  # of -0.0

    return Kind(what, metavar, read)


def seconds(most: int = A_YEAR) -> Kind:
    """A time; 0 means off, none or at once, as the description of the setting says."""
    return number(f"a number of seconds from 0 to {most}, fractions allowed", "SECONDS", most)


def bytes_per_second() -> Kind:
    """A data rate."""
    return number("a number of bytes per second, 0 or more", "BYTES", sys.float_info.max)


def count() -> Kind:
    """Whole numbers from 0 on."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError
        try:
            result = int(value)
        except ValueError:
            raise ValueError from None
        if result < 0:
            raise ValueError
        return result

    return Kind("a whole number, 0 or more", "INT", read)


def switch() -> Kind:
    """True or False, in a configuration file also the words, as gunicorn takes them."""

    def read(value: object) -> bool:
        if isinstance(value, str):
            words = {"true": True, "false": False}
            word = value.strip().lower()
            if word in words:
                return words[word]
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Kind("True or False", None, read)


def function_of(*arguments: str) -> Kind:
    """None, or a callable that can be called with these positional arguments."""

    def read(value: object) -> Callable[..., object] | None:
        if value is None:
            return None
        if not callable(value):
            raise ValueError
        try:
            inspect.signature(value).bind(*arguments)
        except TypeError as error:
            raise ValueError(str(error)) from None
        except ValueError:
            pass  # some built-in callables do not say what they take
        return value

    return Kind(f"a function of ({', '.join(arguments)}), or None", None, read)


def path() -> Kind:
    """None, or a path to compare PATH_INFO with (PEP 3333): decoded, and without a query string."""

    def read(value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or not value.startswith("/") or not _is_graphic_ascii(value):
            raise ValueError
        if "?" in value or "#" in value:
            raise ValueError
        return value

    return Kind("a path of printable ASCII that starts with / and has no space, ? or #", "PATH", read)


def token() -> Kind:
    """None, or a secret that fits into ``Authorization: Bearer ...`` as it is (RFC 6750 2.1)."""

    def read(value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or not value or not _is_graphic_ascii(value):
            raise ValueError
        return value

    return Kind("a non-empty string of printable ASCII without spaces", "TOKEN", read)


def networks() -> Kind:
    """IP addresses and networks, comma-separated or in a list; read as a tuple of strings."""

    def read(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            items: Iterable[object] = [item for item in value.split(",") if item.strip()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            items = value
        else:
            raise ValueError
        return tuple(str(_network(str(item).strip())) for item in items)

    accepts = "IP addresses and networks (192.0.2.0/24), comma-separated or in a list"
    return Kind(accepts, "ADDRESSES", read)


def _network(text: str) -> object:
    """*text* as an address or a network, whichever it is.

    :raises ValueError: it is neither, or an address with bits outside the network's mask (10.0.0.1/8)
    """
    return ipaddress.ip_network(text) if "/" in text else ipaddress.ip_address(text)


def _is_graphic_ascii(text: str) -> bool:
    return all("!" <= character <= "~" for character in text)


def setting(flag: str | None, kind: Kind, doc: str, *, secret: bool = False) -> Mapping[str, object]:
    """Metadata of a field of :class:`Options`; the parameters are those of :class:`Setting`."""
    return {"flag": flag, "kind": kind, "doc": inspect.cleandoc(doc), "secret": secret}


@dataclass(frozen=True, slots=True)
class Options:
    """The values in force, read once from gunicorn's configuration by a worker.

    Times are seconds, as float. The fields' names are those in ``gunicorn.conf.py``.
    """

    keepalive: float = field(
        default=2.0,
        metadata=setting(
            "--keep-alive",
            seconds(),
            """
            Seconds for which an idle connection is promised to stay open.

            gunicorn's own setting; with this package it takes fractions. ``0`` switches persistent
            connections off: every response says ``Connection: close``. Behind a load balancer it must be
            longer than the balancer's own idle timeout, or the balancer sends requests into a connection
            that is just being closed.
            """,
        ),
    )
    keepalive_grace: float = field(
        default=1.0,
        metadata=setting(
            "--keep-alive-grace",
            seconds(),
            """
            Seconds past ``--keep-alive`` for which an idle connection really stays open.

            A client that trusts the promise may send a request in its last moment, and the request is
            still on its way when the time is up. ``0``: close as promised, to the moment.
            """,
        ),
    )
    keepalive_requests: int = field(
        default=0,
        metadata=setting(
            "--keep-alive-requests",
            count(),
            """
            Most requests on one connection.

            The response to the last one says ``Connection: close``. ``0``: no cap.
            """,
        ),
    )
    keepalive_lifetime: float = field(
        default=3600.0,
        metadata=setting(
            "--keep-alive-lifetime",
            seconds(),
            """
            Age in seconds at which a connection takes its last request.

            Lets clients spread over new workers and hosts again after a while. Up to a tenth is taken off
            at random for each connection, so that those opened together do not all end together. ``0``:
            no cap.
            """,
        ),
    )
    header_timeout: float = field(
        default=30.0,
        metadata=setting(
            "--header-timeout",
            seconds(),
            """
            Seconds from the first byte of a request to the end of its head.

            Then the client gets 408 (RFC 9110 15.5.9) and the connection ends. The TLS handshake has the
            same time. A new connection that has sent nothing yet may stay as long as an idle one, but at
            least this long, because load balancers open connections ahead of need; it ends without a
            response. ``0``: no limit, which leaves the server open to clients that send a byte now and
            then.
            """,
        ),
    )
    body_timeout: float = field(
        default=60.0,
        metadata=setting(
            "--body-timeout",
            seconds(),
            """
            Longest wait, in seconds, for more of a request's body.

            It also bounds, as a whole, the reading of a body that the application left unread, so that
            the connection can take another request. ``0``: no limit.
            """,
        ),
    )
    send_timeout: float = field(
        default=60.0,
        metadata=setting(
            "--send-timeout",
            seconds(),
            """
            Longest wait, in seconds, for the client to take more of a response.

            ``0``: no limit.
            """,
        ),
    )
    min_data_rate: float = field(
        default=240.0,
        metadata=setting(
            "--min-data-rate",
            bytes_per_second(),
            """
            Bytes per second below which an upload or a download is cut.

            Looked at after the first 5 seconds of a transfer. Stops clients that stay just inside the
            timeouts by a byte at a time. ``0``: off.
            """,
        ),
    )
    tcp_keepalive: float = field(
        default=60.0,
        metadata=setting(
            "--tcp-keepalive",
            seconds(most=LONGEST_TCP_KEEPIDLE),
            """
            Idle seconds before TCP keepalive probes start on a connection.

            Finds clients that vanished without a FIN (power loss, a forgotten NAT entry); it has nothing
            to do with HTTP keep-alive. The kernel counts whole seconds: fractions are rounded up. ``0``:
            off.
            """,
        ),
    )
    evict_idle: bool = field(
        default=True,
        metadata=setting(
            "--evict-idle",
            switch(),
            """
            Close the longest-idle connection when a new one finds no room.

            That is at ``worker_connections``, or when the process has no file descriptor left. One that has
            been idle for less than a tenth of a second is left alone, as its request may be on its way. While
            none can be closed, the next response says ``Connection: close``, and makes room. With
            ``--no-evict-idle`` new connections wait until one ends.
            """,
        ),
    )
    max_peer_connections: int = field(
        default=0,
        metadata=setting(
            "--max-peer-connections",
            count(),
            """
            Most open connections from one address, in each worker.

            Further ones are closed at once. Behind a proxy all connections come from the proxy's address.
            ``0``: off.
            """,
        ),
    )
    drain_timeout: float = field(
        default=2.0,
        metadata=setting(
            "--drain-timeout",
            seconds(),
            """
            Seconds for which a stopping worker keeps idle connections open.

            A request that is already on its way is answered, with ``Connection: close``, and not lost.
            Requests being handled have ``--graceful-timeout``. ``0``: idle connections are closed at
            once.
            """,
        ),
    )
    connection_opened: Callable[..., object] | None = field(
        default=None,
        metadata=setting(
            None,
            function_of("worker", "connection"),
            """
            Called when a connection has been accepted, with (worker, connection).

            In the configuration file only. *connection* is what the application finds as
            ``environ["keepalive.connection"]``. The call is made in the event loop: it must not wait for
            anything.
            """,
        ),
    )
    connection_closed: Callable[..., object] | None = field(
        default=None,
        metadata=setting(
            None,
            function_of("worker", "connection", "reason"),
            """
            Called when a connection has ended, with (worker, connection, reason).

            In the configuration file only. *reason* is one of the words that the statistics count closes
            by. The call is made in the event loop: it must not wait for anything.
            """,
        ),
    )
    stats_path: str | None = field(
        default=None,
        metadata=setting(
            "--stats-path",
            path(),
            """
            Path at which the server tells about its connections.

            Wraps the application in ``KeepAliveMiddleware(app, stats_path=...)`` without a change to its
            code.
            """,
        ),
    )
    stats_allow: tuple[str, ...] = field(
        default=("127.0.0.1", "::1"),
        metadata=setting(
            "--stats-allow",
            networks(),
            """
            Addresses and networks that may read ``--stats-path``.

            Counts for requests straight from there, not for forwarded ones. An empty list: only
            ``--stats-token``.
            """,
        ),
    )
    stats_token: str | None = field(
        default=None,
        metadata=setting(
            "--stats-token",
            token(),
            """
            Secret that lets any client read ``--stats-path``.

            Sent as ``Authorization: Bearer TOKEN``. Other users of the machine can read a command line:
            the configuration file is the better place.
            """,
            secret=True,
        ),
    )

    @classmethod
    def from_config(cls, cfg: Any) -> Options:
        """The values in gunicorn's configuration *cfg*, and the defaults of what it does not know."""
        values = {each.name: getattr(cfg, each.name, each.default) for each in SETTINGS}
        values["keepalive"] = float(values["keepalive"])  # gunicorn has it as an int
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table.

    ``flag`` is None for a setting of the configuration file alone; the first line of ``doc`` stands alone
    in ``gunicorn --help``; a ``secret`` value is not printed.
    """

    name: str
    default: Any
    flag: str | None
    kind: Kind
    doc: str
    secret: bool

    @property
    def flags(self) -> tuple[str, ...]:
        """All its command line options."""
        if self.flag is None:
            return ()
        if isinstance(self.default, bool):
            return (self.flag, self.flag.replace("--", "--no-", 1))
        return (self.flag,)

    @property
    def shown_default(self) -> object:
        """The default as a user would write it: ``30`` and not ``30.0``, ``127.0.0.1,::1``."""
        if isinstance(self.default, tuple):
            return ",".join(self.default)
        if isinstance(self.default, float):
            return whole_if_possible(self.default)
        return self.default

    def validate(self, value: Any) -> Any:
        """What :class:`Options` holds for *value*.

        :raises ValueError: with the text for the user, which names the setting and the values it takes
        """
        try:
            return self.kind.read(value)
        except ValueError as error:
            names = f"{self.name} ({' / '.join(self.flags)})" if self.flag else self.name
            given = "" if self.secret else f", not {value!r}"
            detail = f" ({error})" if str(error) else ""
            raise ValueError(f"{names} must be {self.kind.accepts}{given}{detail}") from None


def whole_if_possible(value: float) -> float:
    """*value* as an int where that is the same number."""
    return int(value) if float(value).is_integer() else value


#: The table, in the order of the fields.
SETTINGS = tuple(
    Setting(name=each.name, default=each.default, **each.metadata) for each in dataclasses.fields(Options)
)

#: The one row that gunicorn defines itself.
KEEPALIVE = SETTINGS[0]
OURS = SETTINGS[1:]


def unregistered(cfg: Any) -> tuple[str, ...]:
    """Names of our settings that gunicorn's configuration *cfg* does not know: the start-up hook is off."""
    return tuple(each.name for each in SETTINGS if not hasattr(cfg, each.name))


def keepalive_is_given(cfg: Any) -> bool | None:
    """Whether somebody has set ``keepalive`` in gunicorn's configuration *cfg*; None where that is not known."""
    given: bool | None = getattr(cfg.settings[KEEPALIVE.name], "given", None)
    return given


def register(config: Any) -> None:
    """Define our settings in *config*, the module ``gunicorn.config``; a second call does nothing.

    All or nothing: gunicorn with another worker must not suffer from us.

    :raises RuntimeError: gunicorn has a setting or a flag of the same name
    """
    existing = {each.name: each for each in config.KNOWN_SETTINGS}
    if all(each.name in existing and existing[each.name].__module__ == __name__ for each in OURS):
        return
    flags = {flag for each in config.KNOWN_SETTINGS for flag in each.cli or ()}
    taken = [name for each in OURS for name in (each.name, *each.flags) if name in existing or name in flags]
    if taken:
        raise RuntimeError(f"gunicorn {config.__version__} already has {', '.join(taken)}")
    before = len(config.KNOWN_SETTINGS)
    try:
        for each in OURS:
            _define(config, each)
        _take_fractions(existing[KEEPALIVE.name])
    except BaseException:
        del config.KNOWN_SETTINGS[before:]
        raise


def _define(config: Any, row: Setting) -> None:
    """Make a subclass of gunicorn's Setting; its metaclass adds it to gunicorn's list."""
    attributes: dict[str, Any] = {
        "__module__": __name__,
        "name": row.name,
        "section": SECTION,
        "default": row.shown_default,
        "validator": row.validate,
        "desc": row.doc,
    }
    if row.flag is not None:
        # No "type": argparse hands the string on, and our validator speaks of the setting and its values.
        attributes |= {"cli": [row.flag], "meta": row.kind.metavar}
    if isinstance(row.default, bool):
        attributes["action"] = argparse.BooleanOptionalAction  # --evict-idle and --no-evict-idle
    if row.secret:
        attributes |= _hidden(row)
    type(config.Setting)(row.name.title().replace("_", ""), (config.Setting,), attributes)


def _hidden(row: Setting) -> dict[str, Any]:
    """Methods of a setting whose value stays out of ``--print-config`` and gunicorn's debug log.

    Both print the attribute ``value``; the program asks ``get()``.
    """

    def set_secret(self: Any, value: Any) -> None:
        self.secret = row.validate(value)
        self.value = None if self.secret is None else "(hidden)"

    def get(self: Any) -> Any:
        return self.secret

    return {"secret": None, "set": set_secret, "get": get}


def _take_fractions(keepalive: Any) -> None:
    """Let gunicorn's own setting *keepalive* take fractions of a second, and know whether it was set.

    What gunicorn takes gives the same int as before, for every worker; fractions are new, and gunicorn's
    workers only ever compute deadlines with the value, where a float serves as well.
    """
    whole = keepalive.validator

    def validate(value: Any) -> float:
        try:
            result: int = whole(value)
        except (TypeError, ValueError):
            return whole_if_possible(KEEPALIVE.validate(value))
        return result

    def set_keepalive(self: Any, value: Any) -> None:
        # The first value is the default, set when the object is made (keepalive_is_given).
        self.given = self.value is not None
        self.value = self.validator(value)

    keepalive.set = set_keepalive
    keepalive.validator = staticmethod(validate)
    keepalive.type = None  # as for ours: the string comes to the validator
    keepalive.meta = KEEPALIVE.kind.metavar
