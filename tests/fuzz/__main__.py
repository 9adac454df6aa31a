"""Coverage-guided fuzzing of what reads bytes, with atheris (``pip install -e '.[test,fuzz]'``)::

    python tests/fuzz -max_total_time=600

The options are libFuzzer's. Inputs are kept in ``build/fuzz/inputs``, where the next run goes on; the
first are those that the tests have in tables. One that breaks the property is written to
``build/fuzz/crash-...``: run with that file as argument to see it again, and add it to ``FOUND`` in
heads.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

TESTS = Path(__file__).resolve().parent.parent
FOLDER = TESTS.parent / "build" / "fuzz"

#: Whose coverage leads to new inputs.
READERS = ["keepalive_worker.heads", "keepalive_worker.handler", "gunicorn.http", "gunicorn.util", "urllib.parse"]

sys.path.insert(0, str(TESTS))
with atheris.instrument_imports(include=READERS):
    from fuzz.heads import WORDS, Target, seeds


def main() -> None:
    """Fuzz; the process ends with it."""
    inputs, words = FOLDER / "inputs", FOLDER / "words"
    inputs.mkdir(parents=True, exist_ok=True)
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in WORDS))
    arguments = [*sys.argv, f"-dict={words}", f"-artifact_prefix={FOLDER}/"]
    if all(argument.startswith("-") for argument in sys.argv[1:]):
        for number, seed in enumerate(seeds()):
            (inputs / f"seed-{number}").write_bytes(seed)
        arguments.append(str(inputs))
    atheris.Setup(arguments, Target().check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
