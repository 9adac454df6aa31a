"""Installing, as users do it: from a checkout, editable, from the wheel; into fresh environments.

All of it with the interpreter that runs the tests; the wheel, which is what most people install, also with
each other Python that setup.cfg promises, where there is one.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Client, wait_until
from interpreter import ROOT, TIMEOUT, environment, run

import keepalive_worker

METADATA = ConfigParser()
METADATA.read(ROOT / "setup.cfg")
OUR_PYTHON = f"3.{sys.version_info.minor}"
OTHER_PYTHONS = [
    version
    for version in re.findall(r"Python :: (3\.\d+)", METADATA["metadata"]["classifiers"])
    if version != OUR_PYTHON
]

SPELLINGS = ("keepalive_worker", "keepalive_worker.KeepaliveWorker", "egg:keepalive-worker#keepalive_worker")
HOOK_FILES = {"keepalive_worker.pth", "keepalive_worker.start"}

#: Builds, downloads and installs take their time on a busy machine: seconds for one, and for a test.
INSTALLED = 300
pytestmark = pytest.mark.timeout(600)

#: Ends gunicorn when it has loaded worker and application, and says what it found. (``--check-config`` would
#: not look at the worker.)
REPORT = """
import sys
preload_app = True
def on_starting(server):
    import keepalive_worker
    print(server.worker_class is keepalive_worker.KeepaliveWorker, "header_timeout" in server.cfg.settings)
    sys.exit()
"""
KNOWN = "True True\n"
WITHOUT_SETTINGS = "True False\n"

#: An application that has a module ``middleware`` of its own.
APP = """
from keepalive_worker import KeepAliveMiddleware
from middleware import mine
assert mine == "of the application"
assert KeepAliveMiddleware.__module__ == "keepalive_worker.middleware"

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""


@dataclass
class Environment:
    """A virtual environment without a pip of its own: making one takes a tenth of the time."""

    path: Path
    packages: Path

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def gunicorn(self) -> Path:
        return self.path / "bin" / "gunicorn"

    def pip(self, command: str, *arguments: object) -> None:
        done = pip("--python", self.python, command, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def report(self, worker: str, folder: Path, **env: str) -> str:
        """What REPORT prints for ``gunicorn -k WORKER`` in *folder*."""
        command = (self.gunicorn, "-c", folder / "report.py", "-k", worker, "app:app")
        done = run(*command, cwd=folder, env=environment(**env))
        assert done.returncode == 0, done.stderr
        return done.stdout


def pip(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run pip; its cache makes all but the first download on a machine quick."""
    return subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments)],
        env=environment(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_ROOT_USER_ACTION="ignore"),
        capture_output=True,
        text=True,
        check=False,
    )


def interpreter(version: str) -> str | None:
    """A Python of that version: the one on PATH, or one of pyenv's, whose shims refuse the versions not chosen."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for python in (shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")):
        if python and run(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout == f"{version}\n":
            return str(python)
    return None


def fresh_environment(python: str, path: Path) -> Environment:
    """An empty environment at *path*."""
    done = run(python, "-m", "venv", "--without-pip", path)
    assert done.returncode == 0, done.stderr
    (packages,) = path.glob("lib/python*/site-packages")
    return Environment(path, packages)


def build(checkout: Path, output: Path, *options: str) -> list[Path]:
    """Run the build frontend, as of a fixed day, and return the files that it made, wheels first."""
    command = (sys.executable, "-m", "build", *options, "--outdir", output, checkout)
    done = run(*command, env=environment(SOURCE_DATE_EPOCH="1700000000"), timeout=INSTALLED)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(output.iterdir(), key=lambda path: path.suffix, reverse=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, as builds leave files in it."""
    path = tmp_path_factory.mktemp("checkout") / "keepalive-worker"
    leave_out = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "venv")
    shutil.copytree(ROOT, path, ignore=leave_out)
    (path / "app.py").write_text("def app(environ, start_response): ...\n")
    (path / "report.py").write_text(REPORT)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An application's folder, away from the checkout."""
    path = tmp_path_factory.mktemp("folder")
    (path / "app.py").write_text(APP)
    (path / "middleware.py").write_text('mine = "of the application"\n')
    (path / "report.py").write_text(REPORT)
    return path


@pytest.fixture(scope="module")
def sdist_and_wheel(checkout: Path) -> tuple[Path, Path]:
    """What would be published: the sdist, and the wheel that is built from it."""
    wheel, sdist = build(checkout, checkout / "dist")
    return sdist, wheel


@pytest.fixture(scope="module")
def wheel(sdist_and_wheel: tuple[Path, Path]) -> Path:
    """The wheel alone."""
    return sdist_and_wheel[1]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """An environment with the wheel and what it says that it needs."""
    created = fresh_environment(sys.executable, tmp_path_factory.mktemp("environment") / "env")
    created.pip("install", wheel)
    return created


@pytest.fixture(scope="module", params=["wheel", "checkout", "editable"])
def installed(
    request: pytest.FixtureRequest, everything: Environment, checkout: Path, wheel: Path
) -> Environment:
    """The same with us installed in each of the ways."""
    what: dict[str, list[object]] = {"wheel": [wheel], "checkout": [checkout], "editable": ["-e", checkout]}
    everything.pip("install", "--no-deps", "--force-reinstall", *what[request.param])
    assert (everything.packages / "keepalive_worker").is_dir() == (request.param != "editable")
    return everything


# --- what gunicorn finds ----------------------------------------------------------------------


@pytest.mark.parametrize("worker", SPELLINGS)
def test_from_any_folder(installed: Environment, folder: Path, worker: str) -> None:
    assert installed.report(worker, folder) == KNOWN


@pytest.mark.parametrize("worker", SPELLINGS)
def test_from_the_root_of_the_checkout(installed: Environment, checkout: Path, worker: str) -> None:
    assert installed.report(worker, checkout) == KNOWN


@pytest.mark.parametrize("worker", SPELLINGS[1:])
def test_with_the_hook_switched_off(installed: Environment, folder: Path, worker: str) -> None:
    assert installed.report(worker, folder, KEEPALIVE_WORKER_NO_HOOK="1") == WITHOUT_SETTINGS


def test_the_short_name_needs_the_hook(installed: Environment, folder: Path) -> None:
    command = (installed.gunicorn, "-k", "keepalive_worker", "-c", "report.py", "app:app")
    done = run(*command, cwd=folder, env=environment(KEEPALIVE_WORKER_NO_HOOK="1"))
    assert done.returncode == 1
    assert "Entry point ('gunicorn.workers', 'keepalive_worker') not found" in done.stderr


@pytest.mark.parametrize("flags", ["-m", "-Im", "-Em", "-sm", "-OOm"])
def test_with_flags_of_python(installed: Environment, folder: Path, flags: str) -> None:
    command = (installed.python, flags, "gunicorn", "-k", "keepalive_worker", "-c", "report.py", "app:app")
    done = run(*command, cwd=folder)
    assert (done.returncode, done.stdout) == (0, KNOWN), done.stderr


def test_without_site(installed: Environment, folder: Path, checkout: Path) -> None:
    # An editable installation is itself found by site alone.
    path = os.pathsep.join(map(str, (installed.packages, checkout)))
    command = (installed.python, "-S", "-m", "gunicorn", "-k", "keepalive_worker.KeepaliveWorker")
    done = run(*command, "-c", "report.py", "app:app", cwd=folder, env=environment(PYTHONPATH=path))
    assert (done.returncode, done.stdout) == (0, WITHOUT_SETTINGS), done.stderr


def test_in_a_subinterpreter(installed: Environment) -> None:
    code = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
interpreters.run_string(interpreters.create(), '''
import gunicorn.config
print(hasattr(gunicorn.config.Config(), "header_timeout"), flush=True)
''')
import os; os._exit(0)  # CPython 3.12.1 crashes at its end where a subinterpreter has imported ssl
"""
    done = run(installed.python, "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_other_processes_do_not_notice(installed: Environment) -> None:
    code = "import sys; print(*[name for name in sys.modules if name.startswith(('gunicorn', 'gevent'))])"
    done = run(installed.python, "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_the_documented_import(installed: Environment, tmp_path: Path) -> None:
    code = """
import keepalive_worker, middleware
print(middleware.KeepAliveMiddleware is keepalive_worker.KeepAliveMiddleware)
"""
    done = run(installed.python, "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_serves(installed: Environment, folder: Path) -> None:
    assert_serves(installed, folder)


def assert_serves(environment_: Environment, folder: Path) -> None:
    """A server of *environment_* answers two requests of one connection and leaves when told to."""
    address = folder / "socket"
    command = [environment_.gunicorn, "-k", "keepalive_worker", "--bind", f"unix:{address}", "app:app"]
    ready = "def when_ready(server): print('ready', flush=True)\n"
    (folder / "ready.py").write_text(ready)
    with subprocess.Popen(
        [*map(str, command), "-c", "ready.py"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            with Client(str(address), timeout=TIMEOUT) as client:
                for _ in range(2):
                    response = client.get()
                    assert (response.status, response.body) == (200, b"hello")
        finally:
            server.terminate()
        log = server.communicate(timeout=TIMEOUT)[1]
    assert server.returncode == 0
    assert "Using worker: keepalive_worker" in log
    assert "Traceback" not in log


def test_into_a_target_folder(everything: Environment, folder: Path, wheel: Path, tmp_path: Path) -> None:
    everything.pip("install", "--no-deps", "--target", tmp_path / "target", wheel)
    # Only site runs what is in .pth files, and only in site directories.
    path = os.pathsep.join(map(str, (tmp_path / "target", everything.packages)))
    command = (everything.python, "-S", "-m", "gunicorn", "-c", "report.py", "app:app", "-k")
    for worker in SPELLINGS[1:]:
        done = run(*command, worker, cwd=folder, env=environment(PYTHONPATH=path))
        assert (done.returncode, done.stdout) == (0, WITHOUT_SETTINGS), done.stderr


@pytest.mark.parametrize("version", OTHER_PYTHONS)
def test_the_wheel_with_another_python(version: str, wheel: Path, folder: Path, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    created = fresh_environment(python, tmp_path / "env")
    created.pip("install", "--no-compile", wheel)  # compiling takes longer than all the rest
    assert created.report("keepalive_worker", folder) == KNOWN
    assert_serves(created, folder)
    created.pip("uninstall", "--yes", "keepalive-worker")
    assert leftovers(created) == []


def test_the_first_command_of_the_readme(checkout: Path, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"^    (python3 -m venv .+ sample_app\.flask_app:app)$", readme, re.MULTILINE)
    assert command is not None
    folder = tmp_path / "keepalive-worker"
    shutil.copytree(checkout, folder)
    address, path = tmp_path / "socket", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        ["bash", "-c", command[1]],
        cwd=folder,
        env=environment(PATH=path, GUNICORN_CMD_ARGS=f"--bind unix:{address}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            wait_until(lambda: address.exists() or shell.poll() is not None, "a server of the sample site", INSTALLED)
            with Client(str(address), timeout=TIMEOUT) as client:
                assert client.get().status == 200
        finally:
            os.killpg(shell.pid, signal.SIGTERM)
        said = shell.communicate(timeout=TIMEOUT)[0]
    assert "Traceback" not in said


# --- coming and going -------------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path: Path) -> Environment:
    """An environment with nothing in it."""
    return fresh_environment(sys.executable, tmp_path / "env")


def leftovers(environment: Environment) -> list[Path]:
    """What there is of us beside other packages and commands."""
    places = (environment.packages, environment.path / "bin")
    return [path for place in places for path in place.glob("*") if re.search("keepalive|middleware", path.name)]


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_uninstalling_leaves_nothing(empty: Environment, checkout: Path, wheel: Path, kind: str) -> None:
    assert leftovers(empty) == []
    empty.pip("install", "--no-deps", *([wheel] if kind == "wheel" else ["-e", checkout]))
    assert {path.name for path in leftovers(empty)} >= HOOK_FILES
    code = "import sys; print('keepalive_worker.hook' in sys.modules)"
    assert run(empty.python, "-c", code).stdout == "True\n"
    empty.pip("uninstall", "--yes", "keepalive-worker")
    assert leftovers(empty) == []
    done = run(empty.python, "-c", code)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_python_starts_in_silence_when_half_is_gone(empty: Environment, wheel: Path) -> None:
    empty.pip("install", "--no-deps", wheel)
    for package in ("keepalive_worker", "middleware"):
        shutil.rmtree(empty.packages / package)
    done = run(empty.python, "-c", "print('started')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


# --- what is published ------------------------------------------------------------------------


def test_twine_finds_nothing_wrong(sdist_and_wheel: tuple[Path, Path]) -> None:
    done = run(sys.executable, "-m", "twine", "check", "--strict", *sdist_and_wheel)
    assert done.returncode == 0, done.stdout


def test_check_wheel_contents_finds_nothing_wrong(wheel: Path) -> None:
    done = run(sys.executable, "-m", "check_wheel_contents", wheel, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_what_it_should(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert len(set(names)) == len(names)
    assert names[-1].endswith(".dist-info/RECORD")
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "keepalive_worker",
        "middleware",
        *HOOK_FILES,
    }
    folders = [checkout / "keepalive_worker", checkout / "middleware"]
    files = {str(path.relative_to(checkout)) for folder in folders for path in folder.rglob("*.*")}
    assert {name for name in files if not name.endswith(".pyc")} <= set(names)


def test_checkout_and_sdist_give_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    (other,) = build(checkout, tmp_path, "--wheel")
    assert other.name == wheel.name
    assert other.read_bytes() == wheel.read_bytes()


def test_the_sdist_has_what_is_tracked(sdist_and_wheel: tuple[Path, Path]) -> None:
    """So tests, documentation and benchmarks can be run from it, as distributions do."""
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("no git, or no checkout")
    tracked = run("git", "ls-files", cwd=ROOT)
    assert tracked.returncode == 0, tracked.stderr
    with tarfile.open(sdist_and_wheel[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for_developers = re.compile(r"\.|.*/\.git")  # .ci, .gitignore and the like
    assert {name for name in tracked.stdout.splitlines() if not for_developers.match(name)} <= names


def test_the_changelog_tells_of_this_version() -> None:
    """Beside it the version stands in one place only, keepalive_worker/__init__.py."""
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert keepalive_worker.__version__ in newest[1]
