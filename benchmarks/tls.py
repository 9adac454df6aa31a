"""A certificate for the servers, and clients that take it unseen."""

from __future__ import annotations

import atexit
import functools
import shutil
import ssl
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """PEM files."""

    chain: Path
    key: Path


def missing() -> str | None:
    """Why there can be no TLS, or None."""
    if shutil.which("openssl") is None:
        return "openssl is not installed: apt-get install openssl (Debian, Ubuntu)"
    return None


@functools.cache
def certificate() -> Certificate:
    """A certificate on an elliptic key, as most servers have today; the same one for all servers of a run."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-tls-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    made = Certificate(folder / "chain.pem", folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-days", "2", "-keyout", str(made.key), "-out", str(made.chain)]
    subprocess.run(command, check=True, capture_output=True)
    return made


@functools.cache
def client_context() -> ssl.SSLContext:
    """For clients: what is measured does not depend on whom the certificate names."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
