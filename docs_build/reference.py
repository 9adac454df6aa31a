"""The tables of the reference, as Markdown, from the code that they describe.

What a table says of a name stands in the code where that is the place for it (docstrings, the table of settings,
the texts of the statistics page), else here; then the names are compared with those in the code.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import keepalive_worker
from keepalive_worker import KeepAliveMiddleware, prometheus, statistics
from keepalive_worker.connection import Connection, Reason
from keepalive_worker.counters import Counters
from keepalive_worker.middleware import FORMATS
from keepalive_worker.page import REASONS
from keepalive_worker.poller import BACKEND_VARIABLE, BACKENDS
from keepalive_worker.settings import KEEPALIVE, SETTINGS, Setting
from keepalive_worker.top import command

PACKAGE = Path(keepalive_worker.__file__).parent


class DisagreementError(Exception):
    """Code and documentation do not name the same things."""


def _compare(what: str, documented: Iterable[str], present: Iterable[str]) -> None:
    """Raise unless both have the same names.

    :raises DisagreementError: naming those that only one side has
    """
    one, other = set(documented), set(present)
    if one != other:
        raise DisagreementError(
            f"{what}: not described {sorted(other - one)}, described but not there {sorted(one - other)}"
        )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _markdown(docstring: str | None) -> str:
    """The reStructuredText of our docstrings as Markdown."""
    text = inspect.cleandoc(docstring or "")
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def _sentence(docstring: str | None) -> str:
    """A docstring's first paragraph in one line."""
    return " ".join(_markdown(docstring).partition("\n\n")[0].split())


# --- settings ---------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting of the table in ``settings.py``."""
    summary = _table(
        ("setting", "default", "in short"),
        (
            [f"[`{_setting_title(each)}`](#{_setting_title(each)})", _default(each), _sentence(each.doc)]
            for each in SETTINGS
        ),
    )
    return summary + "".join(map(_setting, SETTINGS))


def _setting_title(row: Setting) -> str:
    return row.flag or row.name


def _default(row: Setting) -> str:
    if row.shown_default is None:
        return "none"
    if isinstance(row.default, bool):
        return "on" if row.default else "off"
    return f"`{row.shown_default}`"


def _setting(row: Setting) -> str:
    arguments = "" if row.kind.metavar is None else f" {row.kind.metavar}"
    facts = [
        ("command line", ", ".join(f"`{flag}{arguments}`" for flag in row.flags) or "none"),
        ("`gunicorn.conf.py`", f"`{row.name}`"),
        ("default", _default(row)),
        ("takes", row.kind.accepts),
    ]
    if row is KEEPALIVE:
        facts.append(("defined by", "gunicorn"))
    title = f"\n## `{_setting_title(row)}`\n\n"
    return f"{title}{_markdown(row.doc)}\n\n" + _table(("", ""), facts)


# --- environ ----------------------------------------------------------------------------------------------

#: The public attributes of a connection, in the order in which they are listed.
CONNECTION_ATTRIBUTES = (
    "id",
    "requests",
    "reused",
    "age",
    "idle",
    "bytes_received",
    "bytes_sent",
    "requests_left",
    "timeout",
    "peer",
    "protocol",
    "tls",
    "close",
    "keep_idle",
)


def connection_attributes() -> str:
    """``environ["keepalive.connection"]``: attributes with type and meaning."""
    described = _attribute_comments(Connection)
    rows = []
    for name in CONNECTION_ATTRIBUTES:
        member = getattr(Connection, name)
        if isinstance(member, property):
            rows.append((f"`{name}`", f"`{inspect.signature(_getter(member)).return_annotation}`", _text(member)))
        elif callable(member):
            parameters = list(inspect.signature(member).parameters.values())[1:]
            listed = ", ".join(f"{each.name}: {each.annotation}" for each in parameters)
            rows.append((f"`{name}({listed})`", "", _text(member)))
        else:
            kind, meaning = described[name]
            rows.append((f"`{name}`", f"`{kind}`", _markdown(meaning)))
    return _table(("attribute", "type", "meaning"), rows)


def _getter(member: property) -> Callable[..., Any]:
    assert member.fget is not None
    return member.fget


def _text(member: object) -> str:
    """A docstring as one cell of a table, with what it says of parameters and errors."""
    text = _markdown(inspect.getdoc(member))
    text = re.sub(r"^:param (\w+): ", r"<br>`\1`: ", text, flags=re.MULTILINE)
    text = re.sub(r"^:raises (\w+): ", r"<br>Raises `\1` ", text, flags=re.MULTILINE)
    return " ".join(text.split())


def _attribute_comments(cls: type) -> dict[str, tuple[str, str]]:
    """Type and ``#:`` comment of the attributes that ``__init__`` sets to a constant."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    # What Python can tell of a value without running the constructor.
    kinds = {"number": "int"}
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        start = node.lineno - 1
        comment: list[str] = []
        while lines[start - 1].strip().startswith("#:"):
            start -= 1
            comment.insert(0, lines[start].strip()[2:].strip())
        if comment:
            value = node.value
            kind = type(value.value).__name__ if isinstance(value, ast.Constant) else kinds.get(ast.unparse(value), "")
            found[node.targets[0].attr] = (kind, " ".join(comment))
    return found


# --- statistics -------------------------------------------------------------------------------------------

#: The keys of the report, by where they stand.
REPORT: Mapping[str, Mapping[str, str]] = {
    "report": {
        "generated_at": "when it was made: ISO 8601, UTC, with milliseconds",
        "worker_pid": "process id of the worker that answered",
        "totals": "the counters of all workers together, ended ones too; they never go backwards",
        "workers": "the workers that run, the oldest first",
        "connections": "the open connections that `sort` and `limit` choose",
        "notes": "sentences about what is not as it should be, such as a worker that does not answer; the key is"
        " there only where there are some",
    },
    "worker": {
        "pid": "process id",
        "started_at": "when it started: ISO 8601, UTC, with milliseconds",
        "state": "`running` or `draining`",
        "figures_age": "how old its counters are, in seconds:"
        f" at most {statistics.SILENT_AFTER:g} unless it does not answer",
    },
    "connection": {
        "id": "serial number in its worker, from 1",
        "worker_pid": "process id of its worker",
        "peer": "address of the client, `host:port`; empty for an unnamed unix socket",
        "state": "`idle`, `reading` (a request's head), `handling` (in the application) or `writing` (waiting for the"
        " client to take more)",
        "protocol": "`HTTP/1.0`, `HTTP/1.1` or `HTTP/2`: what the latest request spoke",
        "requests": "requests so far",
        "age": "seconds since accept",
        "idle": "seconds without a request, 0 while there is one",
        "closes_in": "seconds until it is closed unless something happens before, or `null`",
        "bytes_received": "bytes received on the wire",
        "bytes_sent": "bytes sent on the wire",
    },
    "counters": {
        "connections_accepted": "connections accepted",
        "connections_open": "connections open now",
        "connections_idle": "of these, waiting for a request of which nothing has come",
        "connections_active": "of these, the others",
        "requests": "requests that have begun",
        "requests_reused": "of these, not the first on their connection",
        "reuse_ratio": "`requests_reused` / `requests`, 0 to 1",
        "bytes_received": "bytes received on the wire",
        "bytes_sent": "bytes sent on the wire",
        "closed": "connections that have ended, by [reason](close-reasons.md)",
        "connection_requests": "histogram: how many requests a connection had served when it was closed",
        "connection_age_seconds": "histogram: how old a connection was when it was closed",
        "idle_seconds": "histogram: how long a connection had been idle when its next request came",
    },
    "histogram": {
        "count": "how many values",
        "sum": "their sum",
        "buckets": "a list of `le` and `count`: how many values were not above `le`; the last `le` is `+Inf`",
    },
}


def sample_report() -> dict[str, Any]:
    """A report with one worker, one connection and a note, made by the code that makes the real ones."""
    figures = statistics.Figures.of(Counters(), 1, 1)
    row = statistics.Row(1, 0.0, 0.0, 1.0, 1, 0, 0, 40000, 0, b"HTTP/1.1", b"127.0.0.1")
    worker = statistics.WorkerRecord(1, 0.0, False, figures, -10.0, [row])
    return statistics.report(time=0.0, now=0.0, worker_pid=1, workers=[worker], ended=statistics.NOTHING)


def report_keys(part: str) -> str:
    """The keys of one part of the report (:data:`REPORT`)."""
    made = sample_report()
    totals = made["totals"]
    present: dict[str, Collection[str]] = {
        "report": made,
        "worker": made["workers"][0].keys() - totals.keys(),
        "connection": made["connections"][0],
        "counters": totals,
        "histogram": totals["idle_seconds"],
    }
    described = REPORT[part]
    _compare(f"statistics, {part}", described, present[part])
    return _table(("key", "meaning"), ((f"`{name}`", meaning) for name, meaning in described.items()))


def endpoint_parameters() -> str:
    """What the endpoint takes in its query string."""
    sorts = ", ".join(f"`{name}`" for name in statistics.SORTS)
    limit = inspect.signature(statistics.report).parameters["limit"].default
    formats = ", ".join(f"`{name}`" for name in FORMATS)
    return _table(
        ("parameter", "values", "without it"),
        (
            ("`format`", formats, "by `Accept`: `html` for browsers, `json` for everything else"),
            ("`sort`", f"{sorts}: what the connections are sorted by, the greatest first", f"`{statistics.SORTS[0]}`"),
            ("`limit`", f"0 to {statistics.MOST_CONNECTIONS}: most connections to list", f"`{limit}`"),
        ),
    )


class Metric(NamedTuple):
    """One metric as the worker exports it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def exported_metrics() -> list[Metric]:
    """What the worker exports for Prometheus, read from an export of the sample report."""
    metrics: list[Metric] = []
    labels: dict[str, set[str]] = {}
    for line in prometheus.render(sample_report()).decode("ascii").splitlines():
        if line.startswith("# HELP "):
            _, _, name, text = line.split(" ", 3)
            metrics.append(Metric(name, "", (), text))
        elif line.startswith("# TYPE "):
            metrics[-1] = metrics[-1]._replace(kind=line.split()[3])
        else:
            labels.setdefault(metrics[-1].name, set()).update(re.findall(r'(\w+)="', line))
    return [each._replace(labels=tuple(sorted(labels[each.name]))) for each in metrics]


def metrics() -> str:
    """The metrics for Prometheus."""
    rows = (
        (f"`{each.name}`", each.kind, ", ".join(f"`{label}`" for label in each.labels) or "none", each.help)
        for each in exported_metrics()
    )
    return _table(("metric", "type", "labels", "meaning"), rows)


def reasons() -> str:
    """Why connections end: the statistics page's words, in the order of the enumeration."""
    _compare("close reasons", REASONS, (reason.value for reason in Reason))
    rows = (
        (f"`{reason.value}`", REASONS[reason.value][2], "look into it" if REASONS[reason.value][1] else "")
        for reason in Reason
    )
    return _table(("reason", "meaning", "when it is frequent"), rows)


# --- access log, environment variables --------------------------------------------------------------------

ACCESS_LOG: Mapping[str, str] = {
    "keepalive.requests": "which request this is on its connection, from 1: more than 1 is a reused connection",
    "keepalive.idle": "seconds, with three decimals, for which the connection had waited for this request",
}


def access_log_variables() -> str:
    """What the worker puts into environ for access-log formats: each assignment of it in the code."""
    assigned = set()
    for node in _nodes():
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            assigned.update(re.findall(r"^environ\['(keepalive\.\w+)'\]$", ast.unparse(node.targets[0])))
    _compare("access-log variables", ACCESS_LOG, assigned - {"keepalive.connection", "keepalive.statistics"})
    return _table(("variable", "meaning"), ((f"`%({{{name}}}e)s`", text) for name, text in ACCESS_LOG.items()))


def _nodes() -> Iterator[ast.AST]:
    """Every node of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield from ast.walk(ast.parse(path.read_text("utf-8")))


#: Read by gunicorn's worker code, not by ours alone: gunicorn's documentation has it.
_OF_GUNICORN = frozenset(("SCRIPT_NAME",))

ENVIRONMENT: Mapping[str, str] = {
    "KEEPALIVE_WORKER_NO_HOOK": "Anything but `0` and nothing switches the start-up hook off: gunicorn then knows"
    " neither the short name `keepalive_worker` nor the settings; `-k keepalive_worker.KeepaliveWorker` works.",
    BACKEND_VARIABLE: f"Which poller watches connections: {' or '.join(f'`{name}`' for name in BACKENDS)}. Without it,"
    " epoll where there is one (Linux). For tests of the portable one.",
    command.TOKEN_VARIABLE: "For `keepalive-top`: the server's `--stats-token`.",
}


def environment_variables() -> str:
    """The environment variables that the package reads: each ``os.environ.get`` in it."""
    constants = {"BACKEND_VARIABLE": BACKEND_VARIABLE, "TOKEN_VARIABLE": command.TOKEN_VARIABLE}
    read = set()
    for node in _nodes():
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
            name = node.args[0]
            read.add(str(name.value) if isinstance(name, ast.Constant) else constants[ast.unparse(name)])
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            raise DisagreementError("os.environ[...] in the package: this generator looks for os.environ.get() only")
    _compare("environment variables", ENVIRONMENT, read - _OF_GUNICORN)
    return _table(("variable", "meaning"), ((f"`{name}`", text) for name, text in ENVIRONMENT.items()))


# --- API and command --------------------------------------------------------------------------------------


def middleware() -> str:
    """``KeepAliveMiddleware``: its signature and docstring."""
    parameters = inspect.signature(KeepAliveMiddleware).parameters.values()
    rows = []
    described = dict(
        re.findall(r"^:param (\w+): (.*?)(?=^:|\Z)", _docstring(KeepAliveMiddleware), re.MULTILINE | re.DOTALL)
    )
    _compare("KeepAliveMiddleware", described, (each.name for each in parameters))
    for each in parameters:
        default = "" if each.default is each.empty else f"`{each.default!r}`"
        rows.append((f"`{each.name}`", default, " ".join(described[each.name].split())))
    about = _docstring(KeepAliveMiddleware).partition("\n:param")[0]
    return f"{about}\n\n" + _table(("parameter", "default", "meaning"), rows)


def _docstring(member: object) -> str:
    return _markdown(inspect.getdoc(member))


def top_help() -> str:
    """What ``keepalive-top --help`` prints."""
    with mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1"):
        parser: argparse.ArgumentParser = command._parser()
        return f"```text\n{parser.format_help().rstrip()}\n```\n"


#: What pages can ask for, by name.
PARTS: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "connection attributes": connection_attributes,
    **{f"statistics {part}": (lambda part=part: report_keys(part)) for part in REPORT},  # type: ignore[misc]
    "endpoint parameters": endpoint_parameters,
    "metrics": metrics,
    "close reasons": reasons,
    "access-log variables": access_log_variables,
    "environment variables": environment_variables,
    "middleware": middleware,
    "keepalive-top --help": top_help,
}
