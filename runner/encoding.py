"""Between the buffers of the signature and those of the wire: the same bytes, two shapes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from ..payloads import Fixed, Var
from .records import VAR, Buffer, Bytes

__all__ = ["from_encoded", "to_encoded"]


def from_encoded(buffers: Sequence[Fixed | Var]) -> list[Buffer]:
    return [
        Buffer(VAR, _chunks(buffer.data), _u32(buffer.lengths))
        if isinstance(buffer, Var)
        else Buffer(buffer.row_bytes, _chunks(buffer.data))
        for buffer in buffers
    ]


def to_encoded(buffers: Sequence[Buffer]) -> list[Fixed | Var]:
    """Callers have joined each buffer's chunks into one, or none."""
    return [
        Fixed(buffer.row_bytes, _whole(buffer))
        if buffer.lengths is None
        else Var(array("I", buffer.lengths), _whole(buffer))
        for buffer in buffers
    ]


def _whole(buffer: Buffer) -> Bytes:
    assert len(buffer.chunks) <= 1
    return buffer.chunks[0] if buffer.chunks else bytearray()


def _u32(lengths: Any) -> memoryview:
    """The lengths one by one, whatever holds their bytes."""
    view = memoryview(lengths)
    return view.cast("B").cast("I") if view.nbytes else memoryview(b"").cast("I")


def _chunks(data: Any) -> list[Bytes]:
    view = memoryview(data)
    # A view without bytes cannot be cast when its shape has a zero in it.
    return [view.cast("B")] if view.nbytes else []
