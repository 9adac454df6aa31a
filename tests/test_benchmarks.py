"""The parts of the benchmarks that do no measuring: reading what others print, and the report."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from harness import ROOT

# Behind everything else: what is tested beside this file is what is installed.
sys.path.append(str(ROOT))

from benchmarks import __main__ as command
from benchmarks import clients, load, measuring, memory
from benchmarks.case import Case, Conditions, Target
from benchmarks.cases import GROUPS, USUAL, all_cases
from benchmarks.peers import BASELINE, NGINX, OURS, PEERS
from benchmarks.report import CaseResult, Report, Spread, judge, merge, show
from benchmarks.servers import Setup, wants

WRK_OUTPUT = """\
Running 2s test @ http://127.0.0.1:20000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    15.69ms   10.62ms  57.10ms   61.91%
    Req/Sec     4.12k   364.38     4.77k    60.00%
  8246 requests in 2.03s, 1.15MB read
Requests/sec:   4067.94
Transfer/sec:    580.00KB
RESULT {"requests": 8246, "microseconds": 2000000, "p50": 15020, \
"p99": 51000, "p999": 54683, "max": 57104, "errors": 3}
"""

SMAPS_ROLLUP = """\
55d0c0a00000-7ffd5a5f2000 ---p 00000000 00:00 0                          [rollup]
Rss:               38212 kB
Pss:               19876 kB
Shared_Clean:       9000 kB
Shared_Dirty:      12000 kB
Private_Clean:       212 kB
Private_Dirty:     17000 kB
Referenced:        38212 kB
"""

CASES = all_cases(Conditions())


def test_load_is_read_from_what_wrk_prints() -> None:
    result = load.parse(WRK_OUTPUT)
    assert result.requests_per_second == 4123
    assert (result.p50, result.p99, result.p999, result.slowest) == (15.02, 51, 54.683, 57.104)
    assert result.errors == 3


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("unable to connect to 127.0.0.1:20000 Connection refused", "Connection refused"),
        (WRK_OUTPUT.replace('"requests": 8246', '"requests": 0'), "no request was answered"),
    ],
)
def test_load_without_a_result_is_an_error(output: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load.parse(output)


def test_changing_headers_differ_in_one_place() -> None:
    changed = {name for name, value in load.CHANGING_HEADERS.items() if value != load.BROWSER_HEADERS[name]}
    assert changed == {"Cookie"}
    assert load.CHANGING_HEADERS["Cookie"].count(load.CHANGING) == 1
    # load.lua puts a number of ten digits there: the two cases send heads of the same size.
    numbered = load.CHANGING_HEADERS["Cookie"].replace(load.CHANGING, "0123456789")
    assert len(numbered) == len(load.BROWSER_HEADERS["Cookie"])


def test_private_memory_is_clean_and_dirty() -> None:
    assert memory.parse_smaps_rollup(SMAPS_ROLLUP) == (212 + 17000) * 1024


def test_smaps_without_private_memory_are_an_error() -> None:
    with pytest.raises(ValueError, match="smaps_rollup"):
        memory.parse_smaps_rollup("Rss: 38212 kB\n")


def test_cpu_is_in_nanoseconds() -> None:
    assert memory.parse_schedstat("2500000000 4711 815\n") == 2.5


@pytest.mark.parametrize(
    ("response", "complete"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Len", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", True),
    ],
)
def test_end_of_a_response(response: bytes, complete: bool) -> None:
    assert clients.is_complete(response) is complete


def test_response_without_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="without Content-Length"):
        clients.is_complete(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")


def test_percentile() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [clients.percentile(values, percent) for percent in (0, 50, 99, 99.9, 100)] == [
        1,
        50,
        99,
        100,
        100,
    ]
    assert clients.percentile([], 99) == math.inf


def test_source_addresses_are_valid_and_take_10000_connections_each() -> None:
    assert clients.source_address(0) == clients.source_address(9_999) == "127.0.0.2"
    assert clients.source_address(10_000) == "127.0.0.3"
    assert clients.source_address(10_000 * 248) == "127.0.1.0"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.00"),
        (0.42, "0.42"),
        (9.999, "10.00"),
        (14.25, "14.2"),
        (65432.1, "65,432"),
        (math.inf, "never"),
    ],
)
def test_numbers_are_shown_to_three_digits_or_so(value: float, shown: str) -> None:
    assert show(value) == shown


def test_spread() -> None:
    assert str(Spread.of([3.0, 1.0, 2.0])) == "2.00 (1.00..3.00)"
    assert str(Spread.of([2.0])) == "2.00"
    assert str(Spread.of([2.001, 2.002])) == "2.00"
    assert str(Spread.of([1.0, math.inf])) == "never (1.00..never)"


#: A case that is there, with targets and a measurement of its own.
CASE = Case(
    "hello-64",
    "throughput",
    "Hello world",
    lambda _server, _conditions: {},
    (BASELINE, OURS),
    targets=(
        Target("requests/s", least=8, to=BASELINE),
        Target("p99, ms", most=5),
        Target("p99, ms", most=2),
    ),
)


def result_of(ours: list[float], theirs: list[float], p99: float = 4.0) -> CaseResult:
    rounds = {
        BASELINE: [{"requests/s": rate, "p99, ms": 100.0} for rate in theirs],
        OURS: [{"requests/s": rate, "p99, ms": p99} for rate in ours],
    }
    return CaseResult(CASE, {name: list(values) for name, values in rounds.items()})


def test_ratios_are_taken_round_by_round() -> None:
    # The third round was on a machine half as fast: that is in both figures, and not in their ratio.
    result = result_of([80.0, 90.0, 40.0], [10.0, 10.0, 5.0])
    assert result.ratio(OURS, BASELINE, "requests/s") == Spread(8, 8, 9)


def test_a_failed_round_is_left_out() -> None:
    result = result_of([80.0, 90.0], [10.0, 10.0])
    result.rounds[BASELINE][0] = None
    assert result.ratio(OURS, BASELINE, "requests/s") == Spread(9, 9, 9)
    assert result.spread(BASELINE, "p99, ms") == Spread(100, 100, 100)
    assert result.spread("nobody", "p99, ms") is None


def test_targets() -> None:
    verdicts = judge(result_of([80.0], [10.0]), OURS)
    assert [(verdict.value, verdict.reached) for verdict in verdicts] == [(8, True), (4, True), (4, False)]


def test_what_never_happened_reaches_no_target() -> None:
    assert not judge(result_of([80.0], [10.0], p99=math.inf), OURS)[1].reached
    never_late = replace(CASE, targets=(Target("closed after, s", least=3),))
    result = CaseResult(never_late, {OURS: [{"closed after, s": math.inf}]})
    assert judge(result, OURS)[0].reached is False


def test_target_without_a_value_is_not_judged() -> None:
    verdicts = judge(CaseResult(CASE, {OURS: [None]}), OURS)
    assert {verdict.reached for verdict in verdicts} == {None}


def report_on(*results: CaseResult) -> Report:
    environment = {"Machine": "a good one"}
    by_name = {result.case.name: result for result in results}
    return Report(environment, Conditions(idle=10_000), by_name, ["bjoern (not there)"], OURS, BASELINE)


def test_report_in_markdown() -> None:
    result = result_of([80.0, 90.0, 100.0], [10.0, 10.0, 10.0])
    result.remarks.append("it rained")
    assert (
        report_on(result).markdown(["hello.svg"])
        == """\
# Benchmark

- Machine: a good one
- Left out: bjoern (not there)

Medians of all rounds, in brackets the smallest and the largest value.

As a multiple of gunicorn gevent in the same round (median):

| case | figure | keepalive_worker |
| --- | --- | ---: |
| hello-64 | requests/s | 9.00 |

Targets reached: 2 of 3.

- hello-64: p99, ms: at most 2.00. Measured: 4.00, **not reached**.

![hello](hello.svg)

## hello-64

Hello world.

| server | requests/s | x gunicorn gevent | p99, ms |
| --- | ---: | ---: | ---: |
| gunicorn gevent | 10.0 |  | 100 |
| keepalive_worker | 90.0 (80.0..100) | 9.00 (8.00..10.0) | 4.00 |

- requests/s: at least 8.00 times gunicorn gevent's. Measured: 9.00, reached.
- p99, ms: at most 5.00. Measured: 4.00, reached.
- p99, ms: at most 2.00. Measured: 4.00, **not reached**.
- it rained
"""
    )


def test_report_of_a_case_in_which_all_failed() -> None:
    text = report_on(CaseResult(CASE, {OURS: [None]})).markdown()
    assert "Nothing was measured." in text
    assert "Not measured." in text


def test_report_in_json() -> None:
    result = result_of([80.0], [10.0], p99=math.inf)
    result.rounds[OURS].append(None)
    content = json.loads(report_on(result).json())
    assert content["left_out"] == ["bjoern (not there)"]
    (case,) = content["cases"]
    assert case["rounds"][OURS] == [{"requests/s": 80.0, "p99, ms": None}, None]
    assert case["targets"][0] == {
        "figure": "requests/s",
        "least": 8,
        "most": None,
        "to": BASELINE,
        "value": 8.0,
        "reached": True,
    }
    assert (case["targets"][1]["value"], case["targets"][1]["reached"]) == (None, False)


def test_cases_and_peers_have_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    names = [peer.name for peer in PEERS]
    assert len(set(names)) == len(names)
    assert {BASELINE, OURS} <= set(names)


def test_parts_of_a_long_measurement_make_one_report() -> None:
    first = result_of([80.0], [10.0], p99=math.inf)
    first.rounds[OURS].append(None)
    other = CaseResult(replace(CASE, name="hello-1"), {OURS: [{"requests/s": 5.0, "p99, ms": 1.0}]}, ["slow"])
    later = result_of([90.0], [10.0])
    merged = merge([report_on(first, other).json(), report_on(later).json()])
    assert merged.conditions == Conditions(idle=10_000)
    assert merged.left_out == ["bjoern (not there)"]
    # In the order of the cases, with the targets of today.
    assert {name: result.rounds for name, result in merged.results.items()} == {
        "hello-64": later.rounds,
        "hello-1": other.rounds,
    }
    assert merged.results["hello-1"].remarks == ["slow"]
    assert merge([report_on(first).json()]).results["hello-64"].rounds == first.rounds


def test_groups_have_the_cases_that_say_so() -> None:
    assert set(USUAL) < set(GROUPS)
    for name, cases in GROUPS.items():
        assert {case.group for case in cases(Conditions())} == {name}


def test_every_case_is_measured_on_servers_that_can_do_it() -> None:
    peers = {peer.name: peer for peer in PEERS}
    for case in CASES:
        assert OURS in case.peers
        for name in case.peers:
            assert not wants(case.setup) & peers[name].lacks, f"{name} cannot do {case.name}"
        assert {target.to for target in case.targets} <= {None, *case.peers}, case.name


def test_cases_in_a_row_share_their_servers() -> None:
    ours = tuple(peer for peer in PEERS if peer.name == OURS)
    shared = [replace(CASE, name=name, shared=True) for name in "abc"]
    alone = replace(CASE, name="d", most_rounds=1)
    other = replace(shared[0], name="e", setup=Setup(tls=True))
    plan = [(case, ours) for case in (*shared, alone, other)]
    batches = measuring.batches(plan, 3)
    assert [[case.name for case in batch.cases] for batch in batches] == [["a", "b", "c"], ["d"], ["e"]]
    assert [batch.measurements for batch in batches] == [9, 1, 3]
    assert measuring.batches([(CASE, ())], 3) == []


def test_what_cannot_be_measured_is_left_out_with_the_reason() -> None:
    assert measuring.reason_to_leave_out(CASE, 100) is None
    assert "ulimit -n 500" in str(measuring.reason_to_leave_out(replace(CASE, files=500), 100))
    assert measuring.reason_to_leave_out(replace(CASE, needs=(lambda: "no wrk",)), 100) == "no wrk"
    assert "no_such_module" in str(measuring.reason_to_leave_out(replace(CASE, modules=("no_such_module",)), 100))


def test_only_servers_that_run_applications_get_one() -> None:
    asked = replace(CASE, setup=Setup(app="flask_hello"))
    assert NGINX not in {peer.name for peer in measuring.peers_for(asked, PEERS, [NGINX, OURS])}
    assert {peer.name for peer in measuring.peers_for(CASE, PEERS, None)} == {BASELINE, OURS}


# --- what the documentation says ----------------------------------------------------------------------------------

#: The report that the documentation shows, made by ``python -m benchmarks --merge ... --output docs/benchmark``.
PUBLISHED = ROOT / "docs" / "benchmark"


def test_the_page_about_benchmarks_has_commands_that_are_taken() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    commands = re.findall(r"`?python -m benchmarks(?!\.)([^`\n]*)", text)
    assert len(commands) > 8
    for arguments in commands:
        command._arguments(shlex.split(arguments))
    for names in re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", text.partition("## Where things are")[2], re.MULTILINE):
        for name in re.findall("`([^`]+)`", names):
            assert (ROOT / "benchmarks" / name).exists(), name


def test_the_published_report_is_made_of_the_published_figures() -> None:
    made = merge([(PUBLISHED / "report.json").read_text()])
    plots = re.findall(r"!\[.*?\]\((.*?)\)", (PUBLISHED / "report.md").read_text())
    assert plots
    assert all((PUBLISHED / plot).exists() for plot in plots)
    assert (PUBLISHED / "report.md").read_text() == made.markdown(plots)


def test_only_our_worker_gets_our_settings(tmp_path: Path) -> None:
    setup = Setup(deadlines=("--header-timeout", "3"))
    for peer in PEERS:
        if peer.name.startswith("gunicorn") or peer.name == OURS:
            assert ("--header-timeout" in peer.command(setup, 20_000, tmp_path)) is (peer.name == OURS)
