"""The start-up hook: what it does to gunicorn, and what it spares everybody else."""

from __future__ import annotations

import configparser
import importlib
import os
import pkgutil
import re
import shutil
import sys
import zipfile
from pathlib import Path

import gunicorn
import pytest
from interpreter import HOOK_FILE, ROOT, environment, run

import keepalive_worker
from keepalive_worker import hook, registration

#: Ends a snippet: prints whether gunicorn knows the worker and the settings, and whether the finder has gone.
REPORT = """
import sys
from gunicorn.workers import SUPPORTED_WORKERS
from gunicorn.config import Config
print(
    SUPPORTED_WORKERS.get("keepalive_worker"),
    hasattr(Config(), "header_timeout"),
    any(type(finder).__module__ == "keepalive_worker.hook" for finder in sys.meta_path),
)
"""
REGISTERED = "keepalive_worker.KeepaliveWorker True False\n"
NOT_REGISTERED = "None False False\n"

INSTALL = "from keepalive_worker import hook; hook.install()\n"


class Python:
    """An interpreter that finds gunicorn and what it is told, whatever is installed beside gunicorn."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.empty = directory / "empty"
        self.empty.mkdir()
        (directory / "gunicorn").symlink_to(Path(gunicorn.__file__).parent)

    def __call__(self, code: str, path: Path | None = ROOT, env: dict[str, str] | None = None) -> str:
        """Run *code* with *path* importable; it must end well and say nothing on stderr. Its output."""
        paths = [self.directory] if path is None else [path, self.directory]
        variables = environment(PYTHONPATH=os.pathsep.join(map(str, paths))) | (env or {})
        done = run(sys.executable, "-S", "-c", code, cwd=self.empty, env=variables)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Runs a snippet in a process of its own."""
    return Python(tmp_path_factory.mktemp("packages"))


def site_directory(path: Path, package: bool = True) -> Path:
    """A site directory with the hook's file and, unless it was half removed, the package."""
    path.mkdir()
    shutil.copy(HOOK_FILE, path)
    if package:
        (path / "keepalive_worker").symlink_to(ROOT / "keepalive_worker")
    return path


# --- a process that has nothing to do with gunicorn -------------------------------------------


def test_imports_nothing_but_itself(python: Python) -> None:
    code = f"""
import os, sys  # site has imported these
before = set(sys.modules)
exec({HOOK_FILE.read_text()!r})
print(*sorted(set(sys.modules) - before))
"""
    assert python(code) == "keepalive_worker keepalive_worker.hook\n"


def test_costs_less_than_a_millisecond(python: Python, tmp_path: Path) -> None:
    code = f"""
import os, time
start = time.perf_counter()
exec({HOOK_FILE.read_text()!r})
print(time.perf_counter() - start)
"""
    # As installed, with the compiled modules beside it. A busy machine can only make it look slower.
    compiled = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    python(code, env=compiled)
    seconds = 1.0
    for _ in range(40):
        seconds = min(seconds, float(python(code, env=compiled)))
        if seconds < 0.001:
            break
    assert seconds < 0.001


def test_nothing_is_said_where_the_package_is_gone(python: Python, tmp_path: Path) -> None:
    directory = site_directory(tmp_path / "site", package=False)
    assert python(f"import site; site.addsitedir({str(directory)!r})", path=None) == ""


def test_nothing_is_said_where_half_the_package_is_gone(python: Python, tmp_path: Path) -> None:
    directory = site_directory(tmp_path / "site", package=False)
    (directory / "keepalive_worker").mkdir()
    (directory / "keepalive_worker" / "__init__.py").touch()
    assert python(f"import site; site.addsitedir({str(directory)!r})", path=None) == ""


def test_gunicorn_runs_where_half_the_package_is_gone(python: Python, tmp_path: Path) -> None:
    directory = site_directory(tmp_path / "site", package=False)
    (directory / "keepalive_worker").mkdir()
    for name in ("__init__.py", "hook.py"):
        shutil.copy(ROOT / "keepalive_worker" / name, directory / "keepalive_worker")
    code = f"import site; site.addsitedir({str(directory)!r})\n" + REPORT
    assert python(code, path=None) == NOT_REGISTERED


# --- a process that imports gunicorn ----------------------------------------------------------


def test_registers_when_gunicorn_is_imported(python: Python) -> None:
    assert python(INSTALL + REPORT) == REGISTERED


def test_registers_by_the_file_in_a_site_directory(python: Python, tmp_path: Path) -> None:
    directory = site_directory(tmp_path / "site")
    code = f"import site; site.addsitedir({str(directory)!r})\n" + REPORT
    assert python(code, path=None) == REGISTERED


def test_registers_at_once_where_gunicorn_is_there_already(python: Python) -> None:
    assert python("import gunicorn.config\n" + INSTALL + REPORT) == REGISTERED


def test_two_site_directories_register_once(python: Python, tmp_path: Path) -> None:
    directories = [site_directory(tmp_path / name) for name in ("one", "two")]
    add = "".join(f"site.addsitedir({str(directory)!r})\n" for directory in directories)
    count = "import sys; print(sum('keepalive' in type(finder).__module__ for finder in sys.meta_path))\n"
    assert python("import site\n" + add + count + REPORT, path=None) == "1\n" + REGISTERED


def test_a_second_registration_changes_nothing(python: Python) -> None:
    code = """
import gunicorn.config
before = list(gunicorn.config.KNOWN_SETTINGS)
from keepalive_worker.registration import register
register(gunicorn.config)
print(gunicorn.config.KNOWN_SETTINGS == before)
"""
    assert python(INSTALL + code + REPORT) == "True\n" + REGISTERED


@pytest.mark.parametrize(
    ("value", "report"), [("1", NOT_REGISTERED), ("yes", NOT_REGISTERED), ("0", REGISTERED), ("", REGISTERED)]
)
def test_can_be_switched_off(python: Python, value: str, report: str) -> None:
    assert python(INSTALL + REPORT, env={"KEEPALIVE_WORKER_NO_HOOK": value}) == report


def test_a_look_for_the_module_does_not_use_it_up(python: Python) -> None:
    look = "import importlib.util; importlib.util.find_spec('gunicorn.config')\n"
    assert python(INSTALL + look + REPORT) == REGISTERED


def test_a_failed_import_does_not_use_it_up(python: Python) -> None:
    fail = """
import sys
sys.modules["gunicorn.util"] = None
try:
    import gunicorn.config
except ImportError:
    print("failed")
del sys.modules["gunicorn.util"]
"""
    assert python(INSTALL + fail + REPORT) == "failed\n" + REGISTERED


def test_leaves_the_module_as_it_would_be_without(python: Python) -> None:
    show = """
import gunicorn.config
print(gunicorn.config.__loader__, gunicorn.config.__spec__)
"""
    with_hook, without = python(INSTALL + show), python(show)
    assert re.sub("0x[0-9a-f]+", "", with_hook) == re.sub("0x[0-9a-f]+", "", without)
    assert "SourceFileLoader" in without


def test_the_module_can_be_run_as_a_script(python: Python) -> None:
    # runpy asks the loader for the module's code instead of having it executed.
    assert python(INSTALL + "import runpy; print(runpy.run_module('gunicorn.config')['__name__'])") == (
        "gunicorn.config\n"
    )


def test_gunicorn_survives_a_reload_of_its_module(python: Python) -> None:
    code = """
import importlib, gunicorn.config
importlib.reload(gunicorn.config)
from keepalive_worker.settings import Options, unregistered
cfg = gunicorn.config.Config()
print(len(unregistered(cfg)), Options.from_config(cfg) == Options())
"""
    assert python(INSTALL + code) == "16 True\n"


def test_works_from_zip_files(python: Python, tmp_path: Path) -> None:
    archive = tmp_path / "all.zip"
    package = Path(gunicorn.__file__).parent
    with zipfile.ZipFile(archive, "w") as target:
        for root in (package, ROOT / "keepalive_worker"):
            for file in sorted(root.rglob("*.py")):
                target.write(file, file.relative_to(root.parent))
    where = "import gunicorn.config; print('all.zip' in gunicorn.config.__file__)\n"
    assert python(INSTALL + where + REPORT, path=archive) == "True\n" + REGISTERED


def test_works_in_spawned_processes(tmp_path: Path) -> None:
    directory = site_directory(tmp_path / "site")
    (tmp_path / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(directory)!r})")
    (tmp_path / "child.py").write_text(f"def report():\n    exec({REPORT!r})\n")
    code = """
import multiprocessing, child
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child.report)
    process.start()
    process.join()
"""
    (tmp_path / "main.py").write_text(code)
    done = run(sys.executable, "main.py", cwd=tmp_path, env=environment(PYTHONPATH=str(tmp_path)))
    assert (done.stdout, done.stderr) == (REGISTERED, "")


# --- what goes wrong is told to those who ask for our worker, and to nobody else --------------

SORRY = f"keepalive-worker {keepalive_worker.__version__} cannot run here: "

ASK = """
from gunicorn.util import load_class
print(load_class("sync").__name__)
try:
    load_class("keepalive_worker")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("version", [(26, 9, 9), (28, 0, 0)])
def test_another_gunicorn_version(python: Python, version: tuple[int, ...]) -> None:
    text = ".".join(map(str, version))
    fake = f"import gunicorn; gunicorn.version_info = {version}; gunicorn.__version__ = {text!r}\n"
    reason = (
        f"{SORRY}it needs gunicorn[gevent]>=27,<28, but gunicorn {text} is installed; "
        "run: pip install 'gunicorn[gevent]>=27,<28'"
    )
    said = python(INSTALL + fake + REPORT + ASK).splitlines()
    assert said == ["keepalive_worker.KeepaliveWorker False False", "SyncWorker", reason]


def test_another_gunicorn_version_without_the_hook(python: Python) -> None:
    code = """
import gunicorn; gunicorn.version_info = (28, 0, 0); gunicorn.__version__ = "28.0.0"
from gunicorn.util import load_class
try:
    load_class("keepalive_worker.KeepaliveWorker")
except RuntimeError as error:
    print(error)
"""
    assert "but gunicorn 28.0.0 is installed" in python(code)


def test_a_setting_that_gunicorn_has_already(python: Python) -> None:
    foreign = """
import gunicorn.config as config
class Foreign(config.Setting):
    name, section, desc, default = "foreign", "Other", "Not ours.", None
    cli, validator = ["--drain-timeout"], config.validate_string
before = list(config.KNOWN_SETTINGS)
"""
    after = "print(config.KNOWN_SETTINGS == before); config.Config().parser()\n"
    conflict = f"RuntimeError: gunicorn {gunicorn.__version__} already has --drain-timeout"
    said = python(foreign + INSTALL + after + ASK).splitlines()
    assert said == ["True", "SyncWorker", f"{SORRY}its settings could not be defined ({conflict})"]


def test_gunicorn_shows_the_reason_without_a_traceback(tmp_path: Path) -> None:
    code = f"""
import gunicorn; gunicorn.version_info = (28, 0, 0); gunicorn.__version__ = "28.0.0"
{INSTALL}
from gunicorn.app.wsgiapp import run; run()
"""
    env = environment(PYTHONPATH=str(ROOT))
    done = run(sys.executable, "-c", code, "-k", "keepalive_worker", "app:app", cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "Error: keepalive-worker" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keepalive_worker.worker", None)
    with pytest.raises(RuntimeError, match=r"cannot run here: .*keepalive_worker\.worker.* run: pip install"):
        registration.load_worker()


def test_an_attribute_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="'keepalive_worker' has no attribute 'Nothing'"):
        keepalive_worker.Nothing  # type: ignore[attr-defined]  # noqa: B018


def test_the_public_names() -> None:
    from middleware import KeepAliveMiddleware

    assert keepalive_worker.KeepaliveWorker.__module__ == "keepalive_worker.worker"
    assert keepalive_worker.KeepAliveMiddleware is KeepAliveMiddleware
    assert set(keepalive_worker.__all__) <= set(dir(keepalive_worker))


# --- what has to agree ------------------------------------------------------------------------


def test_the_start_file_names_the_same_callable() -> None:
    start = HOOK_FILE.with_suffix(".start").read_text().strip()
    assert pkgutil.resolve_name(start) is hook.install


def test_the_hook_file_is_one_import_line() -> None:
    # site executes no other lines, and each by itself.
    (line,) = HOOK_FILE.read_text().splitlines()
    assert line.startswith("import ")


def test_the_version_asked_for_is_the_version_required() -> None:
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    major = registration.GUNICORN_MAJOR
    required = metadata["options"]["install_requires"].split()
    assert f"gunicorn[gevent]>={major},<{major + 1}" in required


def test_the_finder_leaves_other_modules_alone() -> None:
    assert hook.GunicornConfigFinder().find_spec("json") is None
    assert hook.GunicornConfigFinder().find_spec("gunicorn.config") is None  # it is not in sys.meta_path


def test_installing_does_not_touch_this_process_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("gunicorn.config")
    monkeypatch.delenv("KEEPALIVE_WORKER_NO_HOOK", raising=False)
    before = list(sys.meta_path)
    hook.install()
    assert sys.meta_path == before
    assert os.environ.get("KEEPALIVE_WORKER_NO_HOOK") is None
