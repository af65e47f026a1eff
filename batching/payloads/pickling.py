"""One object to bytes and back, by pickle protocol 5.

Large buffers inside the object follow the pickle instead of going through it, so that
reading them back copies nothing. What pickle would name by a module that the reader
does not have (``__main__``, a notebook, a function's inside) goes through cloudpickle.

    plain      the pickle itself; its first byte is 0x80
    buffers    0x01, then 7 bytes of padding, u64 size of the pickle, u64 number of buffers,
               u64 size of each, the pickle, the buffers; each starts at a multiple of 64
    values     0x02, then JSON: what needs no pickle, for connections that do not allow it
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

from batching._native.blobs import pickle_each, unpickle_each
from batching.errors import InvalidPayload

__all__ = ["dumps", "dumps_each", "loads", "loads_each"]

_plain_dumps = pickle.dumps
_plain_loads = pickle.loads

# Below this a copy is cheaper than another buffer's bookkeeping.
_OUT_OF_BAND_BYTES = 4096
_ALIGNMENT = 64
_HEAD = struct.Struct("<B7xQQ")
_WITH_BUFFERS = 1
_VALUES = 2  # `canonical.dumps_plain`


def dumps(value: Any) -> bytes:
    """The value as bytes. Raises InvalidPayload naming the type that cannot be pickled."""
    return dumps_each([value])[0]


def dumps_each(values: list[Any]) -> list[bytes]:
    """Each value as bytes of its own. Raises InvalidPayload naming the type that cannot be pickled."""
    large: list[memoryview] = []

    def unusual(value: Any, stream: bytes | None) -> bytes:
        buffers = large.copy()
        large.clear()
        # What belongs to __main__ is pickled by a name that means something else in a worker.
        if stream is None or b"__main__" in stream:
            return _dumps_by_value(value)
        return _pack(stream, buffers)

    return pickle_each(values, _plain_dumps, _keep_large_in(large), large, unusual)


def _keep_large_in(views: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """What takes large buffers out of a pickle, and says of the others that they stay inside."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:
            return True
        if view.nbytes < _OUT_OF_BAND_BYTES:
            return True
        views.append(view)
        return False

    return keep


def loads(blob: Any) -> Any:
    """The value again. Large buffers are views of ``blob`` where it is writable, else copies.

    Raises InvalidPayload, from whatever the value's own unpickling raised.
    """
    return loads_each([blob])[0]


def loads_each(blobs: list[Any]) -> list[Any]:
    """The values of several blobs. Raises InvalidPayload as `loads`."""
    try:
        return unpickle_each(blobs, _plain_loads, _loads)
    except InvalidPayload:
        raise
    except Exception as error:
        raise InvalidPayload(f"a value cannot be unpickled: {type(error).__name__}: {error}") from error


def _loads(blob: Any) -> Any:
    """The value of a blob that is no pickle alone, or large, or not there."""
    if not blob:
        raise InvalidPayload("a value is missing")
    view = memoryview(blob)
    if view[0] == _VALUES:
        # Here, because freezing itself pickles what has no other form.
        from .canonical import loads_plain

        return loads_plain(view)
    if view[0] != _WITH_BUFFERS:
        return pickle.loads(view)
    if view.readonly:
        view = memoryview(bytearray(view))
    stream, buffers = _unpack(view)
    return pickle.loads(stream, buffers=buffers)


def _dumps_by_value(value: Any) -> bytes:
    # Imported here: most processes never need it.
    import cloudpickle  # type: ignore[import-untyped]

    large: list[memoryview] = []
    try:
        stream: bytes = cloudpickle.dumps(value, protocol=5, buffer_callback=_keep_large_in(large))
    except Exception as error:
        raise InvalidPayload(
            f"a value of type {type(value).__name__} cannot be pickled: {type(error).__name__}: {error}"
        ) from error
    return _pack(stream, large) if large else stream


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
