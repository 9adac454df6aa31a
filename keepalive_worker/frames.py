"""Where the frames of HTTP/2 begin and end, to tell a client that is slow from one that has nothing to say.

What they mean is for gunicorn's code. No I/O and no clock here: times are passed in, in monotonic seconds.
"""

from __future__ import annotations

#: Bytes of the client's connection preface, before its first frame (RFC 9113 3.4).
_PREFACE = 24
#: Bytes of a frame's header (RFC 9113 4.1).
_HEADER = 9
#: Types of frames that carry a header block, and the flag of its end (RFC 9113 6.2, 6.10).
_HEADERS, _CONTINUATION, _END_HEADERS = 0x1, 0x9, 0x4


class FrameReader:
    """Follows what a client sends, from the first byte of its preface on.

    :param now: when that is waited for
    """

    __slots__ = ("_header", "_in_block", "_left", "began")

    def __init__(self, now: float) -> None:
        #: When the frame, or the header block, began that :attr:`is_midway` is about.
        self.began = now
        self._left = _PREFACE
        self._header = b""
        self._in_block = False

    def feed(self, data: bytes, now: float) -> None:
        """Take in what has come at *now*."""
        position, end = 0, len(data)
        while position < end:
            if self._left:
                step = min(self._left, end - position)
                self._left -= step
                position += step
                continue
            if not self._header and not self._in_block:
                self.began = now
            step = _HEADER - len(self._header)
            self._header += data[position : position + step]
            position += step
            if len(self._header) == _HEADER:
                self._left = int.from_bytes(self._header[:3], "big")
                if self._header[3] in (_HEADERS, _CONTINUATION):
                    self._in_block = not self._header[4] & _END_HEADERS
                self._header = b""

    @property
    def is_midway(self) -> bool:
        """Whether the preface, a frame or a header block has begun and is not complete."""
        return bool(self._left or self._header or self._in_block)
