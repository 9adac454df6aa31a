"""Where an old gunicorn_h1c is installed, gunicorn's Python parser reads requests all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Serve
from harness import request

pytestmark = pytest.mark.only_ours("gunicorn takes the C parser that it finds, however old")


def _install(directory: Path, version: str) -> str:
    """A gunicorn_h1c of that version, which fails whenever it is used."""
    package = directory / "gunicorn_h1c"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "class LimitRequestLine(Exception): pass\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__'): raise AttributeError(name)\n"
        "    raise RuntimeError('the C parser was used: ' + name)\n"
    )
    info = directory / f"gunicorn_h1c-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: gunicorn_h1c\nVersion: {version}\n")
    return str(directory)


@pytest.mark.parametrize("setting", ["auto", "fast"])
def test_an_old_one_is_not_used_and_that_is_said_once(serve: Serve, tmp_path: Path, setting: str) -> None:
    path = _install(tmp_path / "old", "0.6.9")
    server = serve(
        "steady:app", "--workers", "2", "--http-parser", setting, env={"PYTHONPATH": path}, fresh=True
    )
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nX-Folded: a\r\n b\r\n\r\n")
    assert client.read_response().status == 400
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    with server.connect() as other:
        other.send(chunked)
        assert other.read_response().body == b"2 bytes"
    server.wait_for_workers(2)
    assert server.log().count("gunicorn_h1c 0.6.9") == 1


@pytest.mark.logs_traceback
def test_a_safe_one_is_left_to_gunicorn(serve: Serve, tmp_path: Path) -> None:
    """So the test above can fail."""
    path = _install(tmp_path / "new", "0.6.14")
    server = serve("steady:app", env={"PYTHONPATH": path}, fresh=True)
    server.connect().send(request("/", "Transfer-Encoding: chunked", method="POST"))
    server.wait_for_log("the C parser was used")
