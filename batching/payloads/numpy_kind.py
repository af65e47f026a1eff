"""numpy: ndarrays of any dtype and layout, as their raw bytes.

Only dtypes that hold Python objects, or point outside the array's own memory, need pickle.
"""

from __future__ import annotations

import base64
import math
import pickle
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from batching._native.rows import BufferPool, join_blocks, split_blocks
from batching.errors import InvalidPayload

from . import pickling
from .kinds import Fixed, Kind, Piece, Var, make_var, refuse_pickle, take_fixed, take_var

__all__ = ["NumpyKind", "dtype_from_token", "dtype_token", "is_raw"]

_CACHE_ENTRIES = 1024
# Smaller batches come from the allocator without a page fault.
_POOLED_BYTES = 256 * 1024
_tokens: dict[np.dtype[Any], Hashable] = {}
# With whether pickle was allowed: what it made for one caller is not for all of them.
_dtypes: dict[tuple[Hashable, bool], np.dtype[Any]] = {}


def is_raw(dtype: np.dtype[Any]) -> bool:
    """Whether a value's bytes are the value: no object, no pointer into a string arena."""
    return not dtype.hasobject and dtype.char != "T"


def dtype_token(dtype: np.dtype[Any]) -> Hashable:
    """The dtype as plain text or tuples: equal exactly when the dtypes are."""
    token = _tokens.get(dtype)
    if token is None:
        token = _make_token(dtype)
        if len(_tokens) >= _CACHE_ENTRIES:
            _tokens.clear()
        _tokens[dtype] = token
    return token


def dtype_from_token(token: Any, *, allow_pickle: bool) -> np.dtype[Any]:
    """The dtype again. Raises InvalidPayload for what is none, or needs pickle without leave."""
    known = (token, allow_pickle)
    dtype = _dtypes.get(known)
    if dtype is None:
        try:
            dtype = _read_token(token, allow_pickle)
        except InvalidPayload:
            raise
        except Exception as error:
            raise InvalidPayload(f"not a dtype: {str(token)[:80]}") from error
        if len(_dtypes) >= _CACHE_ENTRIES:
            _dtypes.clear()
        _dtypes[known] = dtype
    return dtype


def _make_token(dtype: np.dtype[Any]) -> Hashable:
    if dtype.names is not None:
        fields = [dtype.fields[name] for name in dtype.names]  # type: ignore[index]
        if all(len(field) == 2 for field in fields):
            formats = tuple(dtype_token(field[0]) for field in fields)
            return "fields", dtype.names, formats, tuple(field[1] for field in fields), dtype.itemsize
    elif dtype.subdtype is not None:
        return "sub", dtype_token(dtype.subdtype[0]), dtype.subdtype[1]
    elif dtype.char != "T" and np.dtype(dtype.str) == dtype:
        return dtype.str
    return "pickle", base64.b64encode(pickle.dumps(dtype, protocol=5)).decode("ascii")


def _read_token(token: Any, allow_pickle: bool) -> np.dtype[Any]:
    if isinstance(token, str):
        return np.dtype(token)
    match token:
        case ("fields", names, formats, offsets, itemsize):
            return np.dtype(
                {
                    "names": list(names),
                    "formats": [_read_token(item, allow_pickle) for item in formats],
                    "offsets": list(offsets),
                    "itemsize": itemsize,
                }
            )
        case ("sub", base, shape):
            return np.dtype((_read_token(base, allow_pickle), shape))
        case ("pickle", text):
            refuse_pickle(allow_pickle, "a dtype")
            dtype = pickle.loads(base64.b64decode(text))
            if isinstance(dtype, np.dtype):
                return dtype
    raise ValueError(token)


class NumpyKind(Kind):
    """ndarrays and memmaps. Other subclasses are not: a mask or a matrix product would be lost."""

    name = "ndarray"
    types = (np.ndarray, np.memmap)

    def __init__(self) -> None:
        self._pool = BufferPool()

    def lift(self, item: Any) -> np.ndarray[Any, Any]:
        try:
            return np.asarray(item)[np.newaxis]
        except IndexError as error:
            raise InvalidPayload(f"an item of {item.ndim} axes leaves none for the rows") from error

    def lower(self, batch: np.ndarray[Any, Any]) -> Any:
        return batch[0]

    def item(self, batch: np.ndarray[Any, Any], row: int) -> Any:
        return batch[row]

    def check(self, batch: Any) -> np.ndarray[Any, Any]:
        if batch.ndim == 0:
            raise InvalidPayload("a 0-d ndarray has no rows")
        return np.asarray(batch)

    def key(self, batch: np.ndarray[Any, Any]) -> Hashable:
        return dtype_token(batch.dtype), batch.shape[1:]

    def load_key(self, token: Any, *, allow_pickle: bool) -> tuple[np.dtype[Any], tuple[int, ...]]:
        match token:
            case (dtype, tuple(shape)) if all(type(size) is int and size >= 0 for size in shape):
                return dtype_from_token(dtype, allow_pickle=allow_pickle), shape
        raise InvalidPayload(f"not the key of an ndarray: {str(token)[:80]}")

    def join(self, key: Any, pieces: Sequence[Piece]) -> np.ndarray[Any, Any]:
        first = pieces[0].batch
        shape = (sum(piece.rows for piece in pieces), *first.shape[1:])
        if first.itemsize * math.prod(shape) < _POOLED_BYTES or not is_raw(first.dtype):
            return join_blocks(list(pieces))
        return join_blocks(list(pieces), self._pool.take(first.dtype, shape))

    def cut(self, batch: np.ndarray[Any, Any], counts: Sequence[int], *, owned: bool) -> list[Any]:
        return split_blocks(batch, list(counts), owned)

    def encode(self, key: Any, batch: np.ndarray[Any, Any], *, allow_pickle: bool) -> Iterable[Fixed | Var]:
        if is_raw(batch.dtype):
            return [Fixed(_row_bytes(batch.dtype, batch.shape[1:]), raw_bytes(batch))]
        refuse_pickle(allow_pickle, f"dtype {batch.dtype}")
        return [make_var(pickling.dumps_each(list(batch)))]

    def decode(
        self, key: Any, buffers: Iterator[Fixed | Var], rows: int, *, allow_pickle: bool
    ) -> np.ndarray[Any, Any]:
        dtype, shape = key
        if is_raw(dtype):
            data = take_fixed(buffers, _row_bytes(dtype, shape), rows)
            return array_over(data, dtype, (rows, *shape))
        refuse_pickle(allow_pickle, f"dtype {dtype}")
        batch = np.empty((rows, *shape), dtype=dtype)
        for row, blob in enumerate(take_var(buffers, rows)):
            if blob is None:
                raise InvalidPayload(f"row {row} of an ndarray is missing")
            batch[row] = pickling.loads(blob)
        return batch

    def describe(self, batch: np.ndarray[Any, Any]) -> str:
        return f"ndarray {batch.dtype} of shape {batch.shape}"


def raw_bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """The array's bytes in C order, without a copy where it is contiguous."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data if flat.nbytes else memoryview(b"")


def array_over(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A writable, aligned array: over ``data`` itself if that is both, else over a copy."""
    if math.prod(shape) * dtype.itemsize == 0:
        # numpy would make texts of no bytes ones of one, and the data is no limit on how many.
        if dtype.itemsize == 0 and dtype.kind in "SU":
            raise InvalidPayload(f"an ndarray of {dtype.str} has no bytes")
        return np.empty(shape, dtype=dtype)
    array = np.frombuffer(data, dtype=np.uint8).view(dtype).reshape(shape)
    return array if array.flags.writeable and array.flags.aligned else array.copy()


def _row_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)
