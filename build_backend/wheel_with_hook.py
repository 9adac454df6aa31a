"""Build backend (PEP 517, PEP 660): setuptools, and the start-up hook put into the finished wheel.

gunicorn finds ``-k keepalive_worker`` only if something of ours runs before it reads its command line, so
an installation needs two files at the root of site-packages: a ``.pth`` file for Python up to 3.14 and a
``.start`` file (PEP 829) from 3.15 on. setuptools has no way to say this: ``data_files`` go elsewhere and
are left out of editable installs. A wheel unpacks what is at its own root into site-packages and lists it
in RECORD, by which ``pip uninstall`` removes it again; so the files are added there, to ordinary and to
editable wheels alike.
"""

import base64
import csv
import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta

# What is not wrapped below is setuptools' own; a frontend looks these up by name (PEP 517, PEP 660).
build_sdist = build_meta.build_sdist
get_requires_for_build_editable = build_meta.get_requires_for_build_editable
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
get_requires_for_build_wheel = build_meta.get_requires_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel

HOOK_FILES = tuple(
    Path(__file__).with_name(name) for name in ("keepalive_worker.pth", "keepalive_worker.start")
)


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel and return its file name."""
    name: str = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    add_hook(Path(wheel_directory, name))
    return name


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel that ``pip install -e`` installs and return its file name."""
    name: str = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    add_hook(Path(wheel_directory, name))
    return name


def add_hook(wheel: Path) -> None:
    """Add the hook files and their RECORD lines to the file *wheel*.

    The result depends on the given wheel and the hook files alone, their dates and modes aside, so that a
    reproducible wheel (``SOURCE_DATE_EPOCH``) stays so.
    """
    hook = {path.name: path.read_bytes() for path in HOOK_FILES}
    finished = wheel.with_name(wheel.name + ".part")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(finished, "w") as target:
        entries = source.infolist()
        record = next(entry for entry in entries if entry.filename.endswith(".dist-info/RECORD"))
        # The order that the wheel format recommends: what is in .dist-info comes last, RECORD last of
        # all.
        payload = [entry for entry in entries if ".dist-info/" not in entry.filename]
        metadata = [entry for entry in entries if ".dist-info/" in entry.filename and entry is not record]
        for entry in payload:
            target.writestr(entry, source.read(entry))
        for name, content in hook.items():
            target.writestr(_like(record, name), content)
        for entry in metadata:
            target.writestr(entry, source.read(entry))
        target.writestr(_like(record, record.filename), _with_lines_for(hook, source.read(record)))
    os.replace(finished, wheel)


def _like(entry: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    """A new entry *name* with the date, mode and compression of another."""
    info = zipfile.ZipInfo(name, entry.date_time)
    info.external_attr = entry.external_attr
    info.compress_type = entry.compress_type
    return info


def _with_lines_for(files: dict[str, bytes], record: bytes) -> bytes:
    """RECORD with one line more for each of *files*: path, sha256 without padding, size (PEP 427)."""
    rows = list(csv.reader(io.StringIO(record.decode("utf-8"))))
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode("ascii")
        rows.insert(-1, [name, f"sha256={digest}", str(len(content))])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8")
