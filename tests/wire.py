"""What a dispatcher does with encoded rows, in a few lines: join them, and cut them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batching.payloads import MISSING, Encoded, Fixed, Var


def joined(calls: Sequence[Encoded]) -> list[Fixed | Var]:
    """The buffers of several calls of one key as those of one batch, in writable memory."""
    buffers: list[Fixed | Var] = []
    for column in zip(*[call.buffers for call in calls], strict=True):
        data = bytearray().join(bytes(buffer.data) for buffer in column)
        if isinstance(column[0], Fixed):
            assert {buffer.row_bytes for buffer in column} == {column[0].row_bytes}
            buffers.append(Fixed(column[0].row_bytes, data))
        else:
            buffers.append(Var(b"".join(bytes(buffer.lengths) for buffer in column), data))
    return buffers


def sliced(batch: Encoded, counts: Sequence[int]) -> list[tuple[bytes, list[Fixed | Var], int]]:
    """A batch as (key, buffers, rows) of consecutive callers."""
    first = 0
    parts = []
    for rows in counts:
        parts.append((batch.key, [_slice(buffer, first, rows) for buffer in batch.buffers], rows))
        first += rows
    assert first == batch.rows
    return parts


def _slice(buffer: Fixed | Var, first: int, rows: int) -> Fixed | Var:
    data = bytes(buffer.data)
    if isinstance(buffer, Fixed):
        size = buffer.row_bytes
        return Fixed(size, data[first * size : (first + rows) * size])
    lengths = np.frombuffer(buffer.lengths, dtype="<u4")
    sizes = np.where(lengths == MISSING, 0, lengths).astype(int)
    start, mine = sizes[:first].sum(), sizes[first : first + rows].sum()
    return Var(lengths[first : first + rows].tobytes(), data[start : start + mine])
