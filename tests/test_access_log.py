"""Access-log formats can tell how a connection is being reused."""

from __future__ import annotations

import pytest
from conftest import Serve


@pytest.mark.only_ours("gunicorn's own workers do not know")
def test_reuse_in_the_access_log(serve: Serve) -> None:
    form = "reuse=%({keepalive.requests}e)s idle=%({keepalive.idle}e)s path=%(U)s"
    server = serve("steady:app", "--access-logfile", "-", "--access-logformat", form, fresh=True)
    client = server.connect()
    for path in ("/one", "/two"):
        client.get(path)
    server.wait_for_log(r"reuse=1 idle=\d+\.\d{3} path=/one\n")
    server.wait_for_log(r"reuse=2 idle=\d+\.\d{3} path=/two\n")
