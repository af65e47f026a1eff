"""Cutting and joining encoded rows, knowing nothing of what they mean.

Guarantees      1. joining the cuts of a buffer, in order, gives its bytes back;
                2. nothing large is copied: a cut is views of the chunks it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain

from .records import MISSING, VAR, Buffer, Bytes

__all__ = ["Slicer", "contiguous", "join"]


class Slicer:
    """Cuts rows out of the buffers of one record; offsets are summed once for all cuts."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._buffers = buffers
        self._offsets: list[list[int] | None] = [None] * len(buffers)

    def cut(self, first_row: int, rows: int) -> list[Buffer]:
        return [self._one(i, first_row, first_row + rows) for i in range(len(self._buffers))]

    def _one(self, index: int, first: int, last: int) -> Buffer:
        buffer = self._buffers[index]
        if buffer.row_bytes != VAR:
            size = buffer.row_bytes
            return Buffer(size, _views(buffer.chunks, first * size, last * size))
        offsets = self._offsets[index]
        assert buffer.lengths is not None
        if offsets is None:
            sizes = (0 if n == MISSING else n for n in buffer.lengths)
            offsets = self._offsets[index] = list(accumulate(sizes, initial=0))
        return Buffer(VAR, _views(buffer.chunks, offsets[first], offsets[last]), buffer.lengths[first:last])


def _views(chunks: Sequence[Bytes], start: int, end: int) -> list[Bytes]:
    """The bytes [start, end) of the concatenation of `chunks`."""
    views: list[Bytes] = []
    for chunk in chunks:
        size = len(chunk)
        if start < size and end > 0:
            a, b = max(start, 0), min(end, size)
            views.append(chunk if b - a == size else memoryview(chunk)[a:b])
        start -= size
        end -= size
    return views


def join(parts: Sequence[Sequence[Buffer]]) -> list[Buffer]:
    """Several calls' buffers as one; their keys are equal, so that they match one to one."""
    if len(parts) == 1:
        return list(parts[0])
    return [_joined(same) for same in zip(*parts, strict=True)]


def _joined(buffers: Sequence[Buffer]) -> Buffer:
    chunks = [chunk for buffer in buffers for chunk in buffer.chunks]
    row_bytes = buffers[0].row_bytes
    if row_bytes != VAR:
        return Buffer(row_bytes, chunks)
    return Buffer(VAR, chunks, list(chain.from_iterable(buffer.lengths or () for buffer in buffers)))


def contiguous(buffer: Buffer) -> bytearray:
    """All chunks in one piece of writable memory of its own: the one copy of the gather."""
    return bytearray().join(buffer.chunks)
