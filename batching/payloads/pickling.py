"""One object to bytes and back, by pickle protocol 5.

Large buffers inside the object follow the pickle instead of going through it, so that
reading them back copies nothing. What pickle would name by a module that the reader
does not have (``__main__``, a notebook, a function's inside) goes through cloudpickle.

    plain      the pickle itself; its first byte is 0x80
    buffers    0x01, then 7 bytes of padding, u64 size of the pickle, u64 number of buffers,
               u64 size of each, the pickle, the buffers; each starts at a multiple of 64
"""

from __future__ import annotations

import pickle
import struct
from typing import Any

from batching.errors import InvalidPayload

__all__ = ["dumps", "loads"]

# Below this a copy is cheaper than another buffer's bookkeeping.
_OUT_OF_BAND_BYTES = 4096
_ALIGNMENT = 64
_HEAD = struct.Struct("<B7xQQ")
_WITH_BUFFERS = 1


def dumps(value: Any) -> bytes:
    """The value as bytes. Raises InvalidPayload naming the type that cannot be pickled."""
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:
            return True
        if view.nbytes < _OUT_OF_BAND_BYTES:
            return True
        buffers.append(view)
        return False

    try:
        stream = pickle.dumps(value, protocol=5, buffer_callback=keep_in_band)
        by_value = b"__main__" in stream
    except Exception:
        by_value = True
    if by_value:
        buffers.clear()
        stream = _dumps_by_value(value, keep_in_band)
    return stream if not buffers else _pack(stream, buffers)


def loads(blob: Any) -> Any:
    """The value again. Large buffers are views of ``blob`` where it is writable, else copies.

    Raises whatever the value's own unpickling raises; InvalidPayload for a malformed blob.
    """
    view = memoryview(blob)
    if view.nbytes == 0 or view[0] != _WITH_BUFFERS:
        return pickle.loads(view)
    if view.readonly:
        view = memoryview(bytearray(view))
    stream, buffers = _unpack(view)
    return pickle.loads(stream, buffers=buffers)


def _dumps_by_value(value: Any, keep_in_band: Any) -> bytes:
    # Imported here: most processes never need it.
    import cloudpickle  # type: ignore[import-untyped]

    try:
        return bytes(cloudpickle.dumps(value, protocol=5, buffer_callback=keep_in_band))
    except Exception as error:
        raise InvalidPayload(
            f"a value of type {type(value).__name__} cannot be pickled: {type(error).__name__}: {error}"
        ) from error


def _padding(size: int) -> bytes:
    return bytes(-size % _ALIGNMENT)


def _pack(stream: bytes, buffers: list[memoryview]) -> bytes:
    head = _HEAD.pack(_WITH_BUFFERS, len(stream), len(buffers))
    head += struct.pack(f"<{len(buffers)}Q", *(buffer.nbytes for buffer in buffers))
    chunks: list[Any] = []
    for chunk in (head, stream, *buffers):
        chunks += (chunk, _padding(len(chunk)))
    return b"".join(chunks)


def _unpack(view: memoryview) -> tuple[memoryview, list[memoryview]]:
    try:
        _, stream_bytes, count = _HEAD.unpack_from(view)
        if count > view.nbytes // 8:
            raise InvalidPayload(f"a blob of {view.nbytes} bytes cannot hold {count} buffers")
        sizes = struct.unpack_from(f"<{count}Q", view, _HEAD.size)
    except struct.error as error:
        raise InvalidPayload(f"a blob of {view.nbytes} bytes is cut short") from error
    at = _aligned(_HEAD.size + 8 * count)
    chunks = []
    for size in (stream_bytes, *sizes):
        if size > view.nbytes - at:
            raise InvalidPayload(f"a blob of {view.nbytes} bytes is cut short")
        chunks.append(view[at : at + size])
        at = _aligned(at + size)
    return chunks[0], chunks[1:]


def _aligned(size: int) -> int:
    return size + -size % _ALIGNMENT
