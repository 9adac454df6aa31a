"""The command ``keepalive-top``."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence

from keepalive_worker import __version__
from keepalive_worker.top import view
from keepalive_worker.top.endpoint import Endpoint, NoReportError

#: Where a token is looked for that should not stand on the command line, which others can read.
TOKEN_VARIABLE = "KEEPALIVE_TOP_TOKEN"

_USAGE_ERROR = 2
_MISSING_EXTRA = 6

_EPILOG = f"""\
keys: i a n b sort by idle time, age, requests, bytes; [ ] by another column; r the other way round;
/ filter (escape: all again); space pause; + - longer and shorter intervals; q quit

exit status: 0 all went well, 2 wrong usage, 3 the server does not answer, 4 it refuses,
5 it is no keepalive-worker's endpoint, {_MISSING_EXTRA} the extra "top" is not installed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        endpoint = Endpoint(given.url, given.token or os.environ.get(TOKEN_VARIABLE) or None)
    except ValueError as error:
        parser.error(str(error))
    try:
        if given.json:
            return _print_json(endpoint, given)
        if given.once:
            return _print_page(endpoint, given)
        return _show(endpoint, given)
    except NoReportError as error:
        return _complain(str(error), error.exit_status)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has had enough (head). Python would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        endpoint.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keepalive-top",
        description="Show a keepalive-worker server's connections, live.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("url", metavar="URL", help="of the server's --stats-path: http://127.0.0.1:8000/keepalive-stats")
    add("--token", help=f"the server's --stats-token; better in the environment variable {TOKEN_VARIABLE}")
    add("--interval", type=_interval, default=2.0, metavar="SECONDS", help="between two reports (default: 2)")
    add("--limit", type=_limit, default=200, metavar="N", help="most connections to list (default: 200)")
    add("--sort", choices=list(view.BY_NAME), default=view.DEFAULT_SORT, metavar="COLUMN", help=_columns())
    add("--reverse", action="store_true", help="sort the other way round")
    add("--filter", default="", metavar="WORDS", help="only connections with these in peer, state, protocol or worker")
    add("--once", action="store_true", help="print one report and exit")
    add("--json", action="store_true", help='print reports as lines of JSON, "rates" since the one before in each')
    add("--version", action="version", version=f"keepalive-top {__version__}")
    return parser


def _columns() -> str:
    return f"{', '.join(view.BY_NAME)} (default: {view.DEFAULT_SORT})"


def _interval(text: str) -> float:
    value = float(text)
    if not 0.1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0.1 seconds or more, not {text}")
    return value


def _limit(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"must be from 0 to 10000, not {text}")
    return value


def _complain(text: str, status: int) -> int:
    sys.stderr.write(f"keepalive-top: {text}\n")
    return status


def _chosen(report: view.Report, given: argparse.Namespace) -> list[view.Report]:
    found = view.matching(report["connections"], given.filter)
    return view.sorted_by(found, given.sort, given.reverse)[: given.limit]


def _fetch(endpoint: Endpoint, given: argparse.Namespace) -> view.Report:
    ask = view.BY_NAME[given.sort].ask
    # What the server cannot sort or filter has to be fetched as a whole.
    whole = given.limit and (ask is None or given.reverse or given.filter)
    return endpoint.report(ask or view.DEFAULT_SORT, 10_000 if whole else given.limit)


def _print_page(endpoint: Endpoint, given: argparse.Namespace) -> int:
    report = dict(_fetch(endpoint, given))
    report["connections"] = _chosen(report, given)
    sys.stdout.write(view.page(report, endpoint.url))
    sys.stdout.flush()
    return 0


def _print_json(endpoint: Endpoint, given: argparse.Namespace) -> int:
    """One line a report: the endpoint's JSON and the rates. A server that goes away is waited for."""
    history = view.History()
    while True:
        try:
            report = dict(_fetch(endpoint, given))
        except NoReportError as error:
            if given.once or (history.latest is None and not history.open):
                raise
            history.gap()
            _complain(f"{error} Trying again.", 0)
        else:
            made = history.add(report)
            report["connections"] = _chosen(report, given)
            report["rates"] = None if made is None else made.as_json()
            sys.stdout.write(json.dumps(report) + "\n")
            sys.stdout.flush()
        if given.once:
            return 0
        time.sleep(given.interval)


def _show(endpoint: Endpoint, given: argparse.Namespace) -> int:
    try:
        from keepalive_worker.top.screen import Screen
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in ("textual", "rich"):
            raise
        return _complain(
            "the live view needs a package that is not installed. Run: pip install 'keepalive-worker[top]'"
            " (--once and --json work without it).",
            _MISSING_EXTRA,
        )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _complain("the live view needs a terminal; for scripts there are --once and --json.", _USAGE_ERROR)
    first = _fetch(endpoint, given)
    screen = Screen(
        endpoint,
        first,
        interval=given.interval,
        limit=given.limit,
        sort=given.sort,
        reverse=given.reverse,
        words=given.filter,
    )
    with contextlib.suppress(KeyboardInterrupt):
        screen.run()
    return screen.return_code or 0
