"""What a server says of its configuration when it starts: the deadlines in force, and what will hurt.

Pure text from values; ``worker.py`` logs it in the master, once.
"""

from __future__ import annotations

from keepalive_worker.settings import KEEPALIVE, Options, whole_if_possible

#: Descriptors that a worker needs beside those of its connections: listeners, pipes, epoll sets, log files.
OTHER_DESCRIPTORS = 20


def deadlines(options: Options) -> str:
    """One line with every deadline, in seconds."""

    def seconds(value: float, none: str = "no limit") -> str:
        return f"{whole_if_possible(value)} s" if value else none

    idle = "no persistent connections"
    if options.keepalive:
        idle = f"idle {seconds(options.keepalive)} + {whole_if_possible(options.keepalive_grace)} s grace"
    rate = options.min_data_rate
    return "Deadlines: " + ", ".join(
        (
            idle,
            f"request head {seconds(options.header_timeout)}",
            f"request body {seconds(options.body_timeout)}",
            f"sending {seconds(options.send_timeout)}",
            f"data rate {f'at least {whole_if_possible(rate)} bytes/s' if rate else 'no limit'}",
            f"lifetime {seconds(options.keepalive_lifetime)}",
            f"requests {options.keepalive_requests or 'no limit'}",
            f"TCP keepalive after {seconds(options.tcp_keepalive, 'never')}",
            f"drain {whole_if_possible(options.drain_timeout)} s",
        )
    )


def default_keepalive(options: Options, given: bool | None) -> str | None:
    """A warning where nobody has chosen ``--keep-alive``.

    :param given: whether it was, None where that is not known
    """
    if given or options.keepalive != KEEPALIVE.default:
        return None
    if given is None:
        beginning, end = "--keep-alive is 2 s, as it is by default", ""
    else:
        beginning, end = "--keep-alive is not set: it is 2 s", " --keep-alive 2 says that you mean 2 s."
    return (
        f"{beginning}, so clients lose their connections after short pauses. Behind a load balancer or proxy set it"
        " above the idle timeout that this has for connections to servers: --keep-alive 75 where that is 60 s, as"
        f" with nginx and most cloud load balancers.{end}"
    )


def too_few_descriptors(worker_connections: int, limit: int | None) -> str | None:
    """A warning where a worker cannot have as many connections as it may.

    :param limit: of open descriptors (RLIMIT_NOFILE), None for none
    """
    needed = worker_connections + OTHER_DESCRIPTORS
    if limit is None or limit >= needed:
        return None
    return (
        f"ulimit -n is {limit}, too low for --worker-connections {worker_connections}: a worker needs {needed} open"
        " files, and those of the application. Raise it (ulimit -n; LimitNOFILE= in a systemd unit; --ulimit nofile="
        " in Docker) or lower --worker-connections."
    )
