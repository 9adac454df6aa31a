"""The table of settings: by itself, in gunicorn's Config, and through a real gunicorn."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import ipaddress
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import gunicorn.config
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interpreter import gunicorn as run_gunicorn

from keepalive_worker import settings
from keepalive_worker.settings import A_YEAR, OURS, SETTINGS, Options, Setting, unregistered

ROWS = {row.name: row for row in SETTINGS}

#: What users are told: flags, name in the configuration file, default.
PUBLISHED = [
    (("--keep-alive",), "keepalive", 2.0),
    (("--keep-alive-grace",), "keepalive_grace", 1.0),
    (("--keep-alive-requests",), "keepalive_requests", 0),
    (("--keep-alive-lifetime",), "keepalive_lifetime", 3600.0),
    (("--header-timeout",), "header_timeout", 30.0),
    (("--body-timeout",), "body_timeout", 60.0),
    (("--send-timeout",), "send_timeout", 60.0),
    (("--min-data-rate",), "min_data_rate", 240.0),
    (("--tcp-keepalive",), "tcp_keepalive", 60.0),
    (("--evict-idle", "--no-evict-idle"), "evict_idle", True),
    (("--max-peer-connections",), "max_peer_connections", 0),
    (("--drain-timeout",), "drain_timeout", 2.0),
    ((), "connection_opened", None),
    ((), "connection_closed", None),
    (("--stats-path",), "stats_path", None),
    (("--stats-allow",), "stats_allow", ("127.0.0.1", "::1")),
    (("--stats-token",), "stats_token", None),
]

TIMES = [row for row in SETTINGS if row.kind.metavar == "SECONDS"]
COUNTS = [row for row in SETTINGS if row.kind.metavar == "INT"]
NUMBERS = [*TIMES, *COUNTS, ROWS["min_data_rate"]]

each_time = pytest.mark.parametrize("row", TIMES, ids=lambda row: row.name)
each_number = pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row.name)
each_setting = pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.name)


def refused(row: Setting, value: object) -> str:
    """The message for a value that must be refused."""
    with pytest.raises(ValueError, match=f"^{row.name} ") as caught:
        row.validate(value)
    message = str(caught.value)
    for flag in row.flags:
        assert flag in message
    assert row.kind.accepts in message
    return message


# --- the table --------------------------------------------------------------------------------


def test_is_what_is_published() -> None:
    assert [(row.flags, row.name, row.default) for row in SETTINGS] == PUBLISHED


@each_setting
def test_the_default_is_a_value_that_is_taken(row: Setting) -> None:
    for default in (row.default, row.shown_default):
        assert row.validate(default) == row.default
        assert type(row.validate(default)) is type(row.default)


@each_setting
def test_the_text_has_a_short_first_line(row: Setting) -> None:
    first, _, rest = row.doc.partition("\n")
    assert len(first) <= 80
    assert first.endswith(".")
    assert rest.startswith("\n")


@each_setting
def test_says_what_zero_does(row: Setting) -> None:
    # Every number may be 0, and it never means the number.
    assert ("``0``" in row.doc) == (row in NUMBERS)


def test_there_are_eight_times() -> None:
    assert (len(TIMES), len(COUNTS)) == (8, 2)


def test_the_module_does_not_import_gunicorn() -> None:
    source = Path(settings.__file__).read_text()
    assert not [line for line in source.splitlines() if line.lstrip().startswith(("import gun", "from gun"))]


# --- values -----------------------------------------------------------------------------------


@each_number
@pytest.mark.parametrize("value", [-1, -0.5, "-1", "", "abc", "1s", "0x10", None, True, False, [1], b"1", 1j])
def test_no_number(row: Setting, value: object) -> None:
    assert repr(value) in refused(row, value)


@each_number
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf", "-Infinity", "1e999"])
def test_no_finite_number(row: Setting, value: object) -> None:
    refused(row, value)


@each_time
def test_no_number_that_fits_a_float(row: Setting) -> None:
    refused(row, 10**400)


@each_time
@given(seconds=st.floats(min_value=0, max_value=32767))
def test_a_time(row: Setting, seconds: float) -> None:
    for value in (seconds, repr(seconds), f" {seconds!r} "):
        assert row.validate(value) == seconds
    assert row.validate(int(seconds)) == int(seconds)
    assert type(row.validate(int(seconds))) is float


@each_time
def test_the_longest_time(row: Setting) -> None:
    longest = 32767 if row.name == "tcp_keepalive" else A_YEAR
    assert row.validate(longest) == longest
    refused(row, longest + 1)
    refused(row, str(longest + 1))


def test_minus_zero_is_zero() -> None:
    assert math.copysign(1, ROWS["header_timeout"].validate("-0.0")) == 1


@pytest.mark.parametrize("row", COUNTS, ids=lambda row: row.name)
def test_a_count(row: Setting) -> None:
    assert [row.validate(value) for value in (0, 7, "7", " 7 ", 2**70)] == [0, 7, 7, 7, 2**70]
    for value in (1.5, 2.0, "1.5", "1e3"):
        refused(row, value)


def test_a_data_rate() -> None:
    validate = ROWS["min_data_rate"].validate
    assert [validate(value) for value in (0, 240, 0.5, "1e6")] == [0, 240, 0.5, 1e6]


def test_a_switch() -> None:
    row = ROWS["evict_idle"]
    assert [row.validate(value) for value in (True, False, "true", " False ")] == [True, False, True, False]
    for value in (0, 1, None, "yes", "on", ""):
        refused(row, value)


def test_a_hook() -> None:
    class Hooks:
        def opened(self, worker: object, connection: object) -> None: ...

    def closed(worker: object, connection: object, reason: object) -> None: ...

    opened = ROWS["connection_opened"]
    accepted: list[Any] = [None, Hooks().opened, lambda *_: None, functools.partial(closed, reason=None)]
    accepted.append(dict.get)  # says (self, key, default=None)
    accepted.append(max)  # does not say what it takes
    for value in accepted:
        assert opened.validate(value) is value
    assert "missing a required argument: 'reason'" in refused(opened, closed)
    assert "too many positional arguments" in refused(ROWS["connection_closed"], Hooks().opened)
    for value in (1, "os.path.join", [closed]):
        assert "must be a function of (worker, connection), or None" in refused(opened, value)
    assert ROWS["connection_closed"].validate(closed) is closed


def test_a_path() -> None:
    row = ROWS["stats_path"]
    for path in (None, "/", "/stats", "/a/b.c/~d;e=f%20g"):
        assert row.validate(path) == path
    for value in ("", "stats", "http://x/", "/a b", "/a?b", "/a#b", "/é", "/a\n", 1, b"/stats"):
        assert repr(value) in refused(row, value)


def test_a_token() -> None:
    row = ROWS["stats_token"]
    for token in (None, "x", "a!~9"):
        assert row.validate(token) == token
    for value in ("", "a b", "a\tb", "é", "a\n", 5, b"secret"):
        # A secret that was mistyped is still not for the log.
        assert refused(row, value) == f"stats_token (--stats-token) must be {row.kind.accepts}"


@given(st.lists(st.ip_addresses() | st.integers(0, 32).map(lambda bits: ipaddress.ip_network((0, bits)))))
def test_addresses_and_networks(items: list[object]) -> None:
    validate = ROWS["stats_allow"].validate
    expected = tuple(map(str, items))
    for value in (items, tuple(expected), ",".join(expected), " , ".join(expected) + ","):
        assert validate(value) == expected


def test_no_addresses() -> None:
    row = ROWS["stats_allow"]
    assert row.validate("") == row.validate([]) == ()
    words = ("*", "localhost", "1", "10.0.0.1/8", ["10.0.0.0/33"])
    for value in (*words, [None], None, 5, True, b"::1", {"::1": 1}):
        refused(row, value)
    assert "10.0.0.1/8 has host bits set" in refused(row, "::1,10.0.0.1/8")


# --- in gunicorn's Config ---------------------------------------------------------------------


@pytest.fixture
def config() -> ModuleType:
    """A fresh copy of ``gunicorn.config``; the one that this process works with stays as it is."""
    spec = importlib.util.spec_from_file_location("a_copy_of_gunicorn_config", gunicorn.config.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registered(config: ModuleType) -> ModuleType:
    """The same, with our settings."""
    settings.register(config)
    return config


def test_options_without_registration(config: ModuleType) -> None:
    cfg = config.Config()
    cfg.set("keepalive", 5)
    assert unregistered(cfg) == tuple(row.name for row in OURS)
    options = Options.from_config(cfg)
    assert options == dataclasses.replace(Options(), keepalive=5.0)
    assert type(options.keepalive) is float


def test_options_with_registration(registered: ModuleType) -> None:
    cfg = registered.Config()
    assert unregistered(cfg) == ()
    assert Options.from_config(cfg) == Options()

    def opened(worker: object, connection: object) -> None: ...

    values: dict[str, Any] = {
        "keepalive": 0.5,
        "keepalive_requests": "100",
        "tcp_keepalive": "7.5",
        "evict_idle": False,
        "connection_opened": opened,
        "stats_path": "/stats",
        "stats_allow": ["10.0.0.0/8"],
        "stats_token": "secret",
    }
    for name, value in values.items():
        cfg.set(name, value)
    changed = {"keepalive_requests": 100, "tcp_keepalive": 7.5, "stats_allow": ("10.0.0.0/8",)}
    options = Options.from_config(cfg)
    assert options == dataclasses.replace(Options(), **(values | changed))
    assert all(type(getattr(options, row.name)) is float for row in TIMES)


def test_two_configurations_share_nothing(registered: ModuleType) -> None:
    one, other = registered.Config(), registered.Config()
    one.set("header_timeout", 1)
    one.set("stats_token", "secret")
    assert (other.header_timeout, other.stats_token) == (30, None)


def test_registering_again_changes_nothing(registered: ModuleType) -> None:
    known, keepalive = list(registered.KNOWN_SETTINGS), registered.Keepalive.validator
    settings.register(registered)
    assert known == registered.KNOWN_SETTINGS
    assert registered.Keepalive.validator is keepalive


@pytest.mark.parametrize(("name", "cli"), [("drain_timeout", []), ("other", ["--no-evict-idle"])])
def test_all_or_nothing(config: ModuleType, name: str, cli: list[str]) -> None:
    attributes = {"name": name, "cli": cli, "validator": str, "desc": "Not ours.", "section": "Other"}
    type(config.Setting)("Foreign", (config.Setting,), attributes)
    known, keepalive = list(config.KNOWN_SETTINGS), config.Keepalive.validator
    with pytest.raises(RuntimeError, match=f"already has {(cli or [name])[0]}"):
        settings.register(config)
    assert known == config.KNOWN_SETTINGS
    assert config.Keepalive.validator is keepalive


def test_nothing_after_a_failure_half_way(config: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    known = list(config.KNOWN_SETTINGS)
    monkeypatch.setattr(settings, "_take_fractions", lambda keepalive: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        settings.register(config)
    assert known == config.KNOWN_SETTINGS


def test_gunicorns_own_values_stay_as_they_were(config: ModuleType) -> None:
    values: list[Any] = [0, 2, 75, "5", "0x10", True]
    before = [config.Keepalive.validator(value) for value in values]
    settings.register(config)
    after = [config.Keepalive.validator(value) for value in values]
    assert before == after
    assert [type(value) for value in after] == [int] * len(values)


def test_gunicorns_own_takes_fractions_too(registered: ModuleType) -> None:
    validate = registered.Keepalive.validator
    assert [validate(value) for value in (0.5, "0.5", 2.0, "2.0")] == [0.5, 0.5, 2, 2]
    assert type(validate(2.0)) is int
    bad: list[Any] = [-1, "-1", math.nan, "inf", "abc", None, []]
    for value in bad:
        with pytest.raises(ValueError, match=r"^keepalive \(--keep-alive\) must be a number of seconds"):
            validate(value)


def test_the_token_is_not_shown(registered: ModuleType) -> None:
    cfg = registered.Config()
    cfg.set("stats_token", "hunter2")
    assert cfg.stats_token == "hunter2"
    assert "hunter2" not in str(cfg)
    assert "hunter2" not in repr(cfg.settings["stats_token"])
    assert "(hidden)" in str(cfg)
    cfg.set("stats_token", None)
    assert cfg.stats_token is None
    assert "(hidden)" not in str(cfg)


def test_the_help_is_right_on_every_setting(registered: ModuleType) -> None:
    text = " ".join(registered.Config().parser().format_help().split())
    for row in OURS:
        first = row.doc.partition("\n")[0]
        assert (f"{first} [{row.shown_default}]" in text) == (row.flag is not None)
        for flag in row.flags:
            assert flag in text
    assert "--keep-alive SECONDS" in text
    assert "--keep-alive INT" not in text


# --- through a real gunicorn ------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an application."""
    path = tmp_path_factory.mktemp("app")
    (path / "app.py").write_text("def app(environ, start_response): ...\n")
    return path


def printed(output: str) -> dict[str, str]:
    """What ``--print-config`` says."""
    parts = (line.partition("=") for line in output.splitlines())
    return {name.strip(): value.strip() for name, _, value in parts}


@pytest.mark.parametrize("worker", ["keepalive_worker", "sync"])
def test_command_line_over_environment_over_file(folder: Path, worker: str) -> None:
    (folder / "values.py").write_text(
        "header_timeout = 1.5\nbody_timeout = 1.5\nsend_timeout = 1.5\nkeepalive = 0.5\nevict_idle = False\n"
        "stats_allow = ['::1', '10.0.0.0/8']\n"
        "def connection_closed(worker, connection, reason): ...\n"
    )
    options = f"-k {worker} -c values.py --print-config --send-timeout 3.5 --stats-token hunter2 app:app"
    environment = "--body-timeout=2.5 --send-timeout=2.5 --evict-idle"
    done = run_gunicorn(*options.split(), cwd=folder, GUNICORN_CMD_ARGS=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hunter2" not in done.stdout
    expected = {
        "body_timeout": "2.5",
        "connection_closed": "<connection_closed()>",
        "connection_opened": "None",
        "drain_timeout": "2.0",
        "evict_idle": "True",
        "header_timeout": "1.5",
        "keepalive": "0.5",
        "send_timeout": "3.5",
        "stats_allow": "('::1', '10.0.0.0/8')",
        "stats_token": "(hidden)",
        "worker_class": worker,
    }
    assert expected.items() <= printed(done.stdout).items()


def test_a_whole_keep_alive_stays_an_int(folder: Path) -> None:
    done = run_gunicorn("--print-config", "--keep-alive", "75", "--no-evict-idle", "app:app", cwd=folder)
    assert {"keepalive": "75", "evict_idle": "False"}.items() <= printed(done.stdout).items()


#: A value that each setting has to refuse; those of the command line are what strings can be.
BAD: dict[str, Any] = {row.name: "-1" for row in NUMBERS} | {
    "evict_idle": "maybe",
    "connection_opened": 5,
    "connection_closed": "print",
    "stats_path": "stats",
    "stats_allow": "localhost",
    "stats_token": "hunter 2",
}


def test_every_setting_has_a_bad_value_here() -> None:
    assert BAD.keys() == ROWS.keys()


@each_setting
def test_a_bad_value_in_the_file(folder: Path, row: Setting) -> None:
    (folder / f"bad_{row.name}.py").write_text(f"{row.name} = {BAD[row.name]!r}\n")
    done = run_gunicorn("--check-config", "-c", f"bad_{row.name}.py", "app:app", cwd=folder)
    assert done.returncode == 1
    accepts = re.escape(row.kind.accepts)
    assert re.search(rf"^Error: {row.name} .*must be {accepts}", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("where", ["command line", "environment"])
@pytest.mark.parametrize(
    "row", [row for row in SETTINGS if row.flag and row.name != "evict_idle"], ids=lambda row: row.name
)
def test_a_bad_value_among_the_options(folder: Path, row: Setting, where: str) -> None:
    value = BAD[row.name]
    if where == "command line":
        done = run_gunicorn("--check-config", f"{row.flag}={value}", "app:app", cwd=folder)
    else:
        option = f"{row.flag}='{value}'"
        done = run_gunicorn("--check-config", "app:app", cwd=folder, GUNICORN_CMD_ARGS=option)
    assert done.returncode == 1
    given = "" if row.name == "stats_token" else f", not {value!r}"
    message = f"\nError: {row.name} ({row.flag}) must be {row.kind.accepts}{given}"
    assert done.stderr.startswith(message)
    # One line; some settings say more of what is wrong with the value.
    assert done.stderr.count("\n") == 2
    assert done.stdout == ""
