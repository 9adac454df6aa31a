"""The fuzz target holds for what it begins with, and would notice if it did not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fuzz.heads import Target, seeds

from keepalive_worker.heads import Heads


@pytest.fixture
def target() -> Iterator[Target]:
    """The target, closed at the end."""
    made = Target()
    yield made
    made.close()


def test_every_seed_holds(target: Target) -> None:
    for seed in seeds():
        target.check(seed)


def test_a_fast_path_that_takes_too_much_is_found(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the name of a field could end in a space, which is how a length is smuggled past a proxy."""
    take = Heads._key
    monkeypatch.setattr(Heads, "_key", lambda self, name: take(self, name.rstrip(" ")))
    with pytest.raises(AssertionError, match="gunicorn refuses"):
        test_every_seed_holds(target)
