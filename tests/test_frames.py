"""Where HTTP/2 frames begin and end, however they are cut (RFC 9113 4.1, 4.3)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keepalive_worker.frames import FrameReader

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, CONTINUATION = 0, 1, 4, 6, 9
END_HEADERS = 4


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    """One frame's bytes."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + b"\0\0\0\1" + payload


@st.composite
def units(draw: st.DrawFn) -> bytes:
    """What may not be left half sent: a frame, or a header block with its continuations."""
    payload = draw(st.binary(max_size=40))
    if draw(st.booleans()):
        kind = draw(st.sampled_from((DATA, SETTINGS, PING)))
        return frame(kind, draw(st.sampled_from((0, 1, END_HEADERS))), payload)
    parts = draw(st.lists(st.binary(max_size=10), max_size=3))
    if not parts:
        return frame(HEADERS, END_HEADERS, payload)
    more = b"".join(frame(CONTINUATION, 0, part) for part in parts[:-1])
    return frame(HEADERS, 1, payload) + more + frame(CONTINUATION, END_HEADERS, parts[-1])


@given(st.lists(units(), max_size=6), st.lists(st.integers(1, 60), min_size=1))
def test_midway_is_all_but_the_ends(sent: list[bytes], steps: list[int]) -> None:
    """And it began with the first byte of what is not complete."""
    starts = [0]
    for unit in (PREFACE, *sent):
        starts.append(starts[-1] + len(unit))
    raw = PREFACE + b"".join(sent)
    reader = FrameReader(0.0)
    assert reader.is_midway
    position, turn = 0, 0
    while position < len(raw):
        end = min(len(raw), position + steps[turn % len(steps)])
        # The time is that of the last byte that came with this piece.
        reader.feed(raw[position:end], float(end))
        position, turn = end, turn + 1
        assert reader.is_midway == (position not in starts)
        if reader.is_midway:
            start = max(at for at in starts if at < position)
            assert reader.began == 0.0 if start == 0 else start < reader.began <= start + 60


def test_nothing_is_a_step_too() -> None:
    reader = FrameReader(5.0)
    reader.feed(b"", 6.0)
    assert (reader.is_midway, reader.began) == (True, 5.0)
    reader.feed(PREFACE, 7.0)
    reader.feed(b"", 8.0)
    assert not reader.is_midway
