"""Every command and snippet of the documentation and of the README, as a reader would use it.

A test says by ``claims`` which blocks of code it tries; one that nobody claims fails the last test of the first part.
Commands run in an environment that was made and filled as the README says, away from the checkout.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket
import yaml
from conftest import Serve
from documents import ADDRESS, DOCS, PAGES, Block, Shell, block, code, program
from harness import ROOT, wait_until
from test_connection import PUBLIC

from keepalive_worker.listeners import KEEPALIVE_PROBES
from keepalive_worker.settings import SETTINGS

sys.path.append(str(ROOT))  # what builds the documentation is in the checkout, it is not installed

from docs_build import reference

pytestmark = pytest.mark.timeout(300)

TUTORIAL = "tutorial.md"
BALANCER = "behind-a-load-balancer.md"
STATS = "/keepalive-stats"
SAMPLE_SITE = "python3 -m venv .venv && .venv/bin/pip install '.[sample]'"

CLAIMED: list[Block] = []


def claims(page: str, *beginnings: str) -> Any:
    """The test that is marked by it tries these blocks, and gets them as ``blocks``.

    :param beginnings: how each block begins, or its title
    """
    found = [block(page, beginning) for beginning in beginnings]
    CLAIMED.extend(found)
    return pytest.mark.parametrize("blocks", [found], ids=[page.removesuffix(".md")])


@pytest.fixture(scope="module")
def backend() -> str:
    """One event backend for the tests that start a server by themselves."""
    return "epoll"


# --- an environment as a reader has it ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, without what is left in it by builds and tests."""
    copy = tmp_path_factory.mktemp("copy") / "keepalive-worker"
    leave_out = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "site", "*.egg-info", "venv", "tests")
    shutil.copytree(ROOT, copy, ignore=leave_out)
    return copy


@pytest.fixture(scope="session")
def installed(checkout: Path) -> Shell:
    """A shell in the checkout after the README's first command, up to where the server starts.

    That is the one installation into a fresh environment. The other pages' commands run in the same one and find
    there what they install.
    """
    # The reader's python3 is the one that runs the tests.
    programs = checkout.parent / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    variables = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    shell = Shell(checkout, variables | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"})
    shell.run(sample_site()[0])
    return shell


def sample_site() -> tuple[str, str]:
    """The README's first command: what installs, and what starts the server."""
    set_up, _, start = block("README.md", SAMPLE_SITE).text.strip().rpartition(" && ")
    return set_up, start


@pytest.fixture
def shell(installed: Shell, tmp_path: Path) -> Shell:
    """A shell in an empty folder, after the first commands of the tutorial."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / ".venv").symlink_to(installed.directory / ".venv")
    shell = Shell(folder, installed.variables)
    install = block(TUTORIAL, "python3 -m venv").text.splitlines()
    assert install[0] == "python3 -m venv .venv"  # as the README's, which has made it
    shell.run(install[1])
    return shell


def install(shell: Shell, command: str) -> None:
    """Run a page's pip, which has to find every package and extra that it asks for."""
    assert command.startswith("pip install ")
    shell.run(f"({command.strip()}) 2>&1 | tee pip.log")
    log = (shell.directory / "pip.log").read_text()
    assert "ERROR" not in log, log
    assert "does not provide the extra" not in log, log


def check_config(shell: Shell, *options: str) -> None:
    """Have gunicorn check a configuration."""
    shell.run(f"gunicorn --check-config {shlex.join(options)}")


def hello(shell: Shell) -> None:
    """An application, for pages about something else."""
    shutil.copy(block(TUTORIAL, "app.py").write(shell.directory), shell.directory / "hello.py")


def masked(text: str) -> str:
    """*text* with each number in place of which another may stand by another run."""
    return re.sub(r'"\d{4}-\d\d-\d\dT[\d:.]+Z"|\d+(\.\d+)?', "N", text)


# --- the pages ---------------------------------------------------------------------------------------------


@claims(
    TUTORIAL,
    "python3 -m venv",
    "app.py",
    "gunicorn -k",
    "Deadlines:",
    "curl http",
    "request 1",
    "curl -si",
    "Connection: keep-alive",
    "curl -s 'http",
    "{",
    "keepalive-top",
)
def test_tutorial(shell: Shell, blocks: list[Block]) -> None:
    commands, app, start, deadlines, twice, answers, look, heads, statistics, report, top = blocks
    install(shell, commands.text.splitlines()[-1])
    app.write(shell.directory)
    with shell.serve(start.text) as site:
        assert deadlines.text in site.log()
        assert shell.run(site.here(twice.text)) == answers.text
        assert shell.run(site.here(look.text)).replace("\r", "") == heads.text
        printed = shell.run(site.here(statistics.text))
        assert masked(printed) == masked(report.text)
        # What the text says about the numbers depends on all that was done so far.
        exact = ("connections_accepted", "connections_open", "requests", "requests_reused", "reuse_ratio")
        for key in exact:
            pattern = rf'"{key}": ([\d.]+)'
            assert re.findall(pattern, printed) == re.findall(pattern, report.text), key
        assert site.address in shell.run(site.here(top.text))
        page = requests.get(f"http://{site.address}{STATS}", headers={"Accept": "text/html"}, timeout=10)
        assert page.headers["Content-Type"].startswith("text/html")
        assert page.status_code == 200


@claims("index.md", "pip install")
def test_home(shell: Shell, blocks: list[Block]) -> None:
    pip, _, start = blocks[0].text.partition("\n")
    install(shell, pip)
    hello(shell)
    with shell.serve(start) as site:
        assert requests.get(f"http://{site.address}/", timeout=10).text.startswith("request 1")


@claims("reference/environ.md", "app.py")
def test_environ(shell: Shell, blocks: list[Block]) -> None:
    blocks[0].write(shell.directory)
    start = "gunicorn -k keepalive_worker --keep-alive 5 app:app"
    with shell.serve(start, f"--stats-path {STATS}") as site, site.connect() as client:
        response = client.get("/")
        assert response.body == b"request 1 on connection 1\n"
        assert response.header("Keep-Alive") == "timeout=300"
        assert client.get("/goodbye").header("Connection") == "close"
        client.assert_closed()


@claims("reference/middleware.md", "app.py")
def test_middleware(shell: Shell, blocks: list[Block]) -> None:
    blocks[0].write(shell.directory)
    with shell.serve("gunicorn -k keepalive_worker --keep-alive 5 app:app") as site:
        response = requests.get(f"http://{site.address}/", timeout=10)
        assert (response.text, response.headers["Keep-Alive"]) == ("hello\n", "timeout=5")
        assert "totals" in requests.get(f"http://{site.address}{STATS}", timeout=10).json()
    with shell.serve("gunicorn -k gthread app:app") as site:
        assert requests.get(f"http://{site.address}/", timeout=10).text == "hello\n"
        assert requests.get(f"http://{site.address}{STATS}", timeout=10).status_code == 503


@claims("reference/access-log.md", "gunicorn -k", "127.0.0.1")
def test_access_log(shell: Shell, blocks: list[Block]) -> None:
    start, lines = blocks
    hello(shell)
    with shell.serve(start.text) as site:
        with site.connect() as client:
            client.get("/")
            client.get("/")
        pattern = re.sub(r"0\\\.\d{3}", r"\\d\\.\\d{3}", re.escape(lines.text))
        wait_until(lambda: re.search(pattern, site.log()), f"{pattern!r} in the log")


@claims("reference/environment-variables.md", "KEEPALIVE_WORKER_NO_HOOK=1")
def test_without_the_hook(shell: Shell, blocks: list[Block]) -> None:
    hello(shell)
    with shell.serve(blocks[0].text) as site:
        assert "The start-up hook of keepalive-worker is off" in site.log()
        assert requests.get(f"http://{site.address}/", timeout=10).text.startswith("request 1")


@claims("reference/keepalive-top.md", "pip install")
def test_keepalive_top(shell: Shell, blocks: list[Block]) -> None:
    install(shell, blocks[0].text)
    shell.run("python -c 'import keepalive_worker.top.screen'")


@claims("flask.md", "app.py", "gunicorn -k", "behind_a_proxy.py")
def test_flask(shell: Shell, blocks: list[Block]) -> None:
    app, start, behind = blocks
    install(shell, "pip install flask")
    app.write(shell.directory)
    behind.write(shell.directory)
    with shell.serve(start.text) as site, site.connect() as client:
        client.get("/")
        response = client.get("/")
        assert response.body == b"hello, for the 2. time on this connection\n"
        assert response.header("Keep-Alive") == "timeout=75"
        assert client.get(STATS).status == 200
        assert client.get("/logout", method="POST").header("Connection") == "close"
        client.assert_closed()
    with shell.serve("gunicorn -k gthread app:app") as site:
        assert requests.get(f"http://{site.address}/", timeout=10).text == "hello\n"
    # The address that a client claims to have is good for the application, and for nothing more.
    with shell.serve("gunicorn -k keepalive_worker behind_a_proxy:app") as site, site.connect() as client:
        assert client.get(STATS, "X-Forwarded-For: 127.0.0.1").status == 403
        assert client.get(STATS).status == 200
        assert client.get("/", "X-Forwarded-For: 192.0.2.1").status == 200


#: What else there is to a Django project, and how many database connections it has opened.
DJANGO = {
    "project/__init__.py": "",
    "manage.py": "import os, sys\nfrom django.core.management import execute_from_command_line\n"
    "os.environ['DJANGO_SETTINGS_MODULE'] = 'project.settings'\nexecute_from_command_line(sys.argv)\n",
    "project/urls.py": """
from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpResponse
from django.urls import path
from project import views

opened = []
connection_created.connect(lambda connection, **_: opened.append(connection), weak=False)

def query(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse(f"{len(opened)}")

urlpatterns = [path("", views.hello), path("query", query)]
""",
}
DJANGO_SETTINGS = """
ROOT_URLCONF = "project.urls"
SECRET_KEY = "for a test"
ALLOWED_HOSTS = ["*"]
"""


@claims("django.md", "gunicorn -k", "project/wsgi.py", "project/views.py", "project/settings.py")
def test_django(shell: Shell, blocks: list[Block]) -> None:
    """One database connection serves all clients who ask one after the other, and stay."""
    start, wsgi, views, settings = blocks
    install(shell, "pip install django")
    for name, text in DJANGO.items():
        path = shell.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    wsgi.write(shell.directory)
    views.write(shell.directory)
    # A database that needs no server; all else as it stands.
    path = settings.write(
        shell.directory, {"django.db.backends.postgresql": "django.db.backends.sqlite3", '"project"': '"project.db"'}
    )
    path.write_text(path.read_text() + DJANGO_SETTINGS)
    shell.run("python manage.py check --fail-level WARNING")
    with shell.serve(start.text) as site:
        clients = [site.connect() for _ in range(20)]
        try:
            for client in clients:
                assert client.get("/query").body == b"1"
            assert clients[0].get("/").body == b"request 2 on this connection\n"
            assert clients[0].get(STATS).status == 200
        finally:
            for client in clients:
                client.close()


@claims("websockets-and-events.md", "pip install", "app.py", "gunicorn -k")
def test_websocket(shell: Shell, blocks: list[Block]) -> None:
    pip, app, start = blocks
    install(shell, pip.text)
    app.write(shell.directory, {'"ping_interval": 25': '"ping_interval": 0.2'})
    with shell.serve(start.text) as site:
        connection = websocket.create_connection(f"ws://{site.address}/echo", timeout=10)
        try:
            connection.send("hello")
            assert connection.recv() == "hello"
            opcode, _ = connection.recv_data(control_frame=True)
            assert opcode == websocket.ABNF.OPCODE_PING
        finally:
            connection.shutdown()


@claims("websockets-and-events.md", "events.py")
def test_events(shell: Shell, blocks: list[Block]) -> None:
    install(shell, "pip install flask")
    path = blocks[0].write(shell.directory, {"time.sleep(1)": "time.sleep(0.05)"})
    path.write_text(path.read_text() + WATCHED)
    with shell.serve("gunicorn -k keepalive_worker events:watched") as site:
        with site.connect() as client:
            client.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = client.read_head()
            assert head.header("Content-Type") == "text/event-stream"
            received = b"".join(client.read_chunk() for _ in range(3))
            assert re.fullmatch(rb"retry: 2000\n\n(data: \d\d:\d\d:\d\d\n\n){2}", received)
        wait_until(lambda: "the stream was closed" in site.log(), "the generator to be closed")


#: Tells of the end of a response.
WATCHED = """

def watched(environ, start_response):
    chunks = app(environ, start_response)
    try:
        yield from chunks
    finally:
        chunks.close()
        print("the stream was closed", flush=True)
"""


@claims("systemd.md", "/etc/systemd/system/app.socket", "/etc/systemd/system/app.service")
def test_systemd_units(shell: Shell, blocks: list[Block]) -> None:
    analyze = program("systemd-analyze", "systemd")
    gunicorn = shutil.which("gunicorn", path=shell.path)
    units = [
        blocks[0].write(shell.directory),
        blocks[1].write(shell.directory, {"/srv/app/.venv/bin/gunicorn": str(gunicorn)}),
    ]
    done = subprocess.run(
        [analyze, "verify", "--man=no", *map(str, units)], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "app.s" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@claims("systemd.md", "/srv/app/gunicorn.conf.py")
def test_a_server_of_systemd(shell: Shell, blocks: list[Block], tmp_path: Path) -> None:
    """systemd's socket and its notification, without systemd; and the numbers of the unit fit."""
    hello(shell)
    path = blocks[0].write(shell.directory, {'"/run/app/': f'"{tmp_path}/', "worker_connections = 10000": ""})
    service = block("systemd.md", "/etc/systemd/system/app.service").text
    values = dict(re.findall(r"^(\w+)=(.*)$", service, re.MULTILINE))
    configuration: dict[str, Any] = {}
    exec(blocks[0].text, configuration)
    assert int(values["TimeoutStopSec"]) > configuration["graceful_timeout"]
    assert int(values["LimitNOFILE"]) > configuration["worker_connections"] + 20
    start, _, _ = values["ExecStart"].rpartition("/")
    command = values["ExecStart"].removeprefix(f"{start}/").replace("gunicorn.conf.py", str(path))
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    told.settimeout(30)
    listener = socket.create_server(("127.0.0.1", 0))
    os.set_inheritable(listener.fileno(), True)
    # The descriptor that systemd passes is number 3, for the process that LISTEN_PID names.
    script = f"exec 3<&{listener.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec {command}"
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=shell.directory,
        env=shell.variables | {"NOTIFY_SOCKET": str(tmp_path / "notify")},
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
        start_new_session=True,
    )
    try:
        assert told.recv(1000).startswith(b"READY=1")
        answer = requests.get(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=10)
        assert answer.text.startswith("request 1"), (tmp_path / "log").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        log.close()
        told.close()
        listener.close()


@claims("systemd.md", "systemctl daemon-reload")
def test_systemctl_commands(blocks: list[Block]) -> None:
    """There is no systemd here that could be told: the units and the verbs are what they are."""
    program("systemctl", "systemd")
    verbs = {"daemon-reload", "enable", "start"}
    titles = {each.title.rpartition("/")[2] for each in code("systemd.md")}
    for line in blocks[0].text.splitlines():
        command, verb, *arguments = line.split()
        assert (command, verb in verbs) == ("systemctl", True)
        assert {word for word in arguments if not word.startswith("-")} <= titles


@claims("containers.md", "requirements.txt", "gunicorn.conf.py", "Dockerfile", "compose.yaml", "deployment.yaml")
def test_container(shell: Shell, blocks: list[Block]) -> None:
    """What the image is made of, without an engine: its commands, in a folder."""
    requirements, config, dockerfile, compose, deployment = blocks
    hello(shell)
    requirements.write(shell.directory)
    config.write(shell.directory)
    instructions = [line.partition(" ")[::2] for line in dockerfile.text.splitlines()]
    assert [name for name, _ in instructions] == ["FROM", "WORKDIR", "COPY", "RUN", "COPY", "USER", "EXPOSE", "CMD"]
    values = dict(instructions)
    install(shell, values["RUN"])
    command = shlex.join(json.loads(values["CMD"]))
    check_config(shell, "app:app")
    # gunicorn.conf.py has an address of its own, which wins over the environment's.
    with shell.serve(f"{command} --bind 127.0.0.1:0 --workers 1") as site:
        assert "Using worker: keepalive_worker" in site.log()
        assert requests.get(f"http://{site.address}/", timeout=10).status_code == 200
    settings: dict[str, Any] = {}
    exec(config.text, settings)
    assert settings["bind"].endswith(f":{values['EXPOSE']}")
    service = yaml.safe_load(compose.text)["services"]["app"]
    assert int(service["stop_grace_period"].rstrip("s")) > settings["graceful_timeout"]
    assert service["ports"] == ["8000:8000"]
    pod = yaml.safe_load(deployment.text)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    sleep, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + settings["graceful_timeout"]
    assert str(container["ports"][0]["containerPort"]) == values["EXPOSE"]


def test_image(checkout: Path, tmp_path: Path) -> None:
    """The image itself, where there is an engine to build it; with this package in place of the index's."""
    docker = program("docker", "docker.io")
    if subprocess.run([docker, "info"], capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("no docker engine: the Dockerfile's commands are tried without one")
    block("containers.md", "requirements.txt").write(tmp_path, {"keepalive-worker": "./keepalive-worker"})
    block("containers.md", "gunicorn.conf.py").write(tmp_path)
    copy = "COPY requirements.txt ."
    block("containers.md", "Dockerfile").write(tmp_path, {copy: f"{copy}\nCOPY keepalive-worker keepalive-worker"})
    block(TUTORIAL, "app.py").write(tmp_path)
    shutil.copytree(checkout, tmp_path / "keepalive-worker", ignore=shutil.ignore_patterns(".venv"))
    subprocess.run([docker, "build", "-t", "keepalive-worker-docs", str(tmp_path)], timeout=250, check=True)
    run = [docker, "run", "--rm", "keepalive-worker-docs", "gunicorn", "--check-config", "app:app"]
    subprocess.run(run, timeout=60, check=True)


@claims("choosing-timeouts.md", "gunicorn -k")
def test_print_config(shell: Shell, blocks: list[Block]) -> None:
    hello(shell)
    printed = shell.run(blocks[0].text)
    for row in SETTINGS:
        assert re.search(rf"^{row.name} +=", printed, re.MULTILINE), row.name


@claims("choosing-timeouts.md", "def app")
def test_other_rules_for_one_connection(shell: Shell, blocks: list[Block]) -> None:
    blocks[0].write(shell.directory)
    start = "gunicorn -k keepalive_worker app:app"
    with shell.serve(start, f"--stats-path {STATS}") as site, site.connect() as client:
        assert client.get("/").header("Keep-Alive") == "timeout=2"
        assert client.get("/", "Authorization: Bearer x").header("Keep-Alive") == "timeout=300"


CONFIGURATIONS = [each for each in code("choosing-timeouts.md") if each.title == "gunicorn.conf.py"]
CLAIMED += CONFIGURATIONS


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_configuration(shell: Shell, configuration: Block) -> None:
    hello(shell)
    configuration.write(shell.directory)
    check_config(shell, "app:app")
    printed = shell.run("gunicorn --print-config app:app")
    in_force = dict(re.findall(r"^(\w+) += (.+)$", printed, re.MULTILINE))
    for name, value in re.findall(r"^(\w+) = (.+)$", configuration.text, re.MULTILINE):
        assert in_force[name].removesuffix(".0") == str(ast.literal_eval(value)), name


@claims("http-keep-alive-and-tcp-keepalive.md", "ss -tno", "Recv-Q")
def test_the_kernel_shows_its_timers(shell: Shell, blocks: list[Block]) -> None:
    program("ss", "iproute2")
    hello(shell)
    command, shown = blocks
    with shell.serve("gunicorn -k keepalive_worker --keep-alive 75 app:app") as site, site.connect() as client:
        client.get("/")
        printed = shell.run(command.with_changes({":8000": f":{site.port}"}))
        pattern = r"timer:\(keepalive,(\d+)sec,0\)"
        found, example = re.search(pattern, printed), re.search(pattern, shown.text)
        assert found is not None, printed
        assert example is not None
        assert max(int(found[1]), int(example[1])) <= 60
    assert KEEPALIVE_PROBES == 3  # "two more, each a third of that time later"


@pytest.mark.only_ours("gunicorn's worker needs more of them")
def test_system_calls_of_a_request(serve: Serve, tmp_path: Path) -> None:
    """The table of what a request costs, by the kernel's own count."""
    strace = program("strace", "strace")
    table = re.findall(r"^\| `(\w+)` \| (once|never)", PAGES["performance.md"].read_text(), re.MULTILINE)
    assert dict(table).keys() >= {"read", "write", "epoll_ctl"}
    server = serve("steady:app", fresh=True)
    requests_sent = 50
    with server.connect() as client:
        for _ in range(3):
            client.get("/")
        trace, said = tmp_path / "trace", tmp_path / "said"
        command = [strace, "-f", "-p", str(server.worker), "-o", str(trace), "-e", "trace=" + ",".join(dict(table))]
        with said.open("wb") as errors:
            tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        try:
            wait_until(lambda: "attached" in said.read_text() or tracer.poll() is not None, "strace to attach")
            if tracer.poll() is not None:
                pytest.skip(f"strace cannot trace here: {said.read_text()}")
            for _ in range(requests_sent):
                client.get("/")
        finally:
            if tracer.poll() is None:
                tracer.send_signal(signal.SIGINT)
            tracer.wait(10)
    calls = trace.read_text()
    for call, how_often in table:
        # read() is also how the worker looks for signals, and write() how it counts: only the connection's count.
        pattern = r'read\(\d+, "GET' if call == "read" else r'write\(\d+, "HTTP' if call == "write" else rf"{call}\("
        assert len(re.findall(pattern, calls)) == (requests_sent if how_often == "once" else 0), call


# --- Prometheus and Grafana --------------------------------------------------------------------------------


def metric_names() -> set[str]:
    """Every name of a series that the worker exports."""
    names = set()
    for each in reference.exported_metrics():
        parts = ("_bucket", "_sum", "_count") if each.kind == "histogram" else ("",)
        names |= {each.name + part for part in parts}
    return names


def dashboard() -> Any:
    return json.loads((DOCS / "grafana-dashboard.json").read_text())


def expressions(node: Any) -> Iterator[str]:
    """Every query of the dashboard."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


QUERIES = sorted(set(expressions(dashboard())))


def test_the_dashboard_shows_all_metrics_and_no_others() -> None:
    text = json.dumps(dashboard())
    assert set(re.findall(r"\bkeepalive_\w+", text)) - {"keepalive_worker"} == metric_names()


def test_labels_in_the_dashboard_are_those_that_metrics_have() -> None:
    labels = {each.name: set(each.labels) for each in reference.exported_metrics()}
    by_prometheus = {"job", "instance"}  # which it gives to every series itself
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            query, legend = target["expr"], target["legendFormat"]
            metrics = {each for each in labels if re.search(rf"\b{each}(_bucket|_sum|_count)?\b", query)}
            assert metrics, query
            asked = set(re.findall(r"[{,] *(\w+)=~?", query)) | set(re.findall(r"\{\{(\w+)\}\}", legend))
            for by in re.findall(r"by \(([^)]*)\)", query):
                asked |= set(by.split(", "))
            for metric in metrics:
                assert asked <= labels[metric] | by_prometheus, query


def test_reasons_in_the_dashboard_and_alerts_exist() -> None:
    text = "\n".join([*QUERIES, block("prometheus-and-grafana.md", "alerts.yml").text])
    named = {word for found in re.findall(r'reason=~?"([^"]+)"', text) for word in found.split("|")}
    assert named
    assert named <= set(reference.REASONS)


@claims("prometheus-and-grafana.md", "gunicorn.conf.py", "prometheus.yml", "alerts.yml")
def test_prometheus(shell: Shell, blocks: list[Block], tmp_path: Path) -> None:
    """Prometheus itself takes the files, scrapes the server, and knows an answer to every query of the dashboard."""
    config, scraping, alerts = blocks
    promtool, prometheus = program("promtool", "prometheus"), program("prometheus", "prometheus")
    hello(shell)
    token = tmp_path / "token"
    token.write_text("t0ken\n")
    config.write(shell.directory, {"/etc/app/stats-token": str(token)})
    with shell.serve("gunicorn app:app") as site:
        alerts.write(tmp_path)
        file = scraping.write(
            tmp_path,
            {
                "/etc/prometheus/app-stats-token": str(token),
                ADDRESS: site.address,
                "scrape_interval: 15s": "scrape_interval: 1s\n    scrape_timeout: 1s",
            },
        )
        done = subprocess.run([promtool, "check", "config", str(file)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS: 3 rules found" in done.stdout
        with running_prometheus(prometheus, file, tmp_path) as has_result, site.connect() as client:

            def answered() -> bool:
                # A client that stays, and one that goes, for as long as it takes.
                client.get("/")
                requests.get(f"http://{site.address}/", timeout=10)
                return all(has_result(filled(query)) for query in QUERIES)

            wait_until(answered, "every query to have an answer", timeout=40)


def filled(query: str) -> str:
    """A query as Grafana sends it, with its variables filled in."""
    return query.replace("$__rate_interval", "30s").replace("$job", "app").replace("$instance", ".*")


@contextmanager
def running_prometheus(path: str, config: Path, directory: Path) -> Iterator[Callable[[str], bool]]:
    """Run Prometheus; gives a function that tells whether a query has a result.

    That function raises for a query that Prometheus does not understand.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [path, f"--config.file={config}", f"--storage.tsdb.path={directory}/data"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )

    def has_result(query: str) -> bool:
        try:
            answer = requests.get(f"http://127.0.0.1:{port}/api/v1/query", {"query": query}, timeout=5)
        except requests.ConnectionError:
            return False  # it is not up yet
        if answer.status_code == 503:
            return False
        assert answer.status_code == 200, f"{query}: {answer.text}"
        return bool(answer.json()["data"]["result"])

    try:
        yield has_result
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


# --- the README --------------------------------------------------------------------------------------------


@claims("README.md", SAMPLE_SITE)
def test_readme_sample_site(installed: Shell, blocks: list[Block]) -> None:
    """The first command of all, in a copy of the checkout."""
    with installed.serve(sample_site()[1]) as running:
        assert requests.get(f"http://{running.address}/", timeout=10).status_code == 200
        assert requests.get(f"http://{running.address}{STATS}", timeout=10).status_code == 200


@claims("README.md", "python3 -m venv .venv && .venv/bin/pip install -e '.[test]'")
def test_readme_test_command(blocks: list[Block]) -> None:
    """Continuous integration runs it as it stands; that this test runs says that it works."""
    (pattern,) = re.findall(r"s/\^    \\\((.*)\\\)\$/", (ROOT / ".ci" / "run").read_text())
    assert re.fullmatch(pattern, blocks[0].text.strip())


@claims("README.md", "pip install keepalive-worker")
def test_readme_use(shell: Shell, blocks: list[Block]) -> None:
    pip, start = blocks[0].text.strip().splitlines()
    install(shell, pip.strip())
    hello(shell)
    with shell.serve(start.strip()) as site:
        assert requests.get(f"http://{site.address}/", timeout=10).status_code == 200


@claims("README.md", "from middleware")
def test_readme_middleware(shell: Shell, blocks: list[Block]) -> None:
    install(shell, "pip install flask")
    (shell.directory / "app.py").write_text(f"from flask import Flask\n{blocks[0].text}")
    with shell.serve("gunicorn -k keepalive_worker --keep-alive 75 app:app") as site:
        response = requests.get(f"http://{site.address}{STATS}", timeout=10)
        assert (response.status_code, response.headers["Keep-Alive"]) == (200, "timeout=75")


CLAIMED.append(block("README.md", ".venv/bin/sphinx-build"))  # by test_docs_build.py


def test_readme_names_what_connections_have() -> None:
    text = (ROOT / "README.md").read_text()
    _, _, rest = text.partition('`environ["keepalive.connection"]`: ')
    named = set(re.findall(r"`(\w+)(?:\(\w*\))?`", rest.partition("Access-log")[0]))
    assert named == PUBLIC


def test_readme_defaults() -> None:
    assert_defaults((ROOT / "README.md").read_text(), 12)


# --- the page about load balancers, which test_fronts.py tries ---------------------------------------------


def test_recipes_for_load_balancers_can_be_found() -> None:
    """They are tried by test_fronts.py and test_front_recipes.py, which take the first block under each heading."""
    headings = [each.heading for each in code(BALANCER)]
    assert len(set(headings)) == len(headings)


CLAIMED += code(BALANCER)

# --- all of them -------------------------------------------------------------------------------------------


def test_every_block_of_code_is_tried_by_a_test() -> None:
    every = [each for page in PAGES for each in code(page)]
    assert len(every) > 40
    assert [str(each) for each in every if each not in CLAIMED] == []
    assert [str(each) for each in CLAIMED if CLAIMED.count(each) > 1] == [], "claimed twice"


FLAG = re.compile(r"(?<![\w/-])--[a-z][a-z0-9-]+")
#: Options in the text that are not gunicorn's, by whose they are.
OTHER_FLAGS = {"--once", "--json", "--token", "--target", "--help", "--limit", "--http2"}


def assert_defaults(text: str, least: int) -> None:
    """Each row of a table that begins with a flag and goes on with a default says what the code says."""
    from gunicorn.config import KNOWN_SETTINGS

    defaults = {flag: setting.default for setting in KNOWN_SETTINGS for flag in setting.cli or ()}
    defaults |= {"--evict-idle": "on"}
    rows = re.findall(r"^\| `(--[\w-]+)`[^|]*\| ([\w.]+) +\|", text, re.MULTILINE)
    assert len(rows) >= least
    for flag, default in rows:
        if default != "none":
            assert default == str(defaults[flag]), flag


def test_defaults_on_the_page_about_timeouts() -> None:
    assert_defaults(PAGES["choosing-timeouts.md"].read_text(), 11)


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_the_text_exist(page: str) -> None:
    from gunicorn.config import KNOWN_SETTINGS

    flags = {flag for setting in KNOWN_SETTINGS for flag in setting.cli or ()}
    flags |= {flag for setting in SETTINGS for flag in setting.flags} | OTHER_FLAGS
    blocks = {each.text for each in code(page)}
    text = PAGES[page].read_text()
    for each in blocks:
        text = text.replace(each, "")
    assert set(FLAG.findall(text)) <= flags
