"""Padding: ndarray items of different length along their first axis, batched as one array."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from batching.errors import InvalidPayload

from . import pickling
from .kinds import Fixed, Kind, Piece, Var, make_var, refuse_pickle, take_fixed, take_var
from .numpy_kind import array_over, dtype_from_token, dtype_token, is_raw, raw_bytes

__all__ = ["Pad", "Padded", "RaggedKind"]

_ARRAYS = (np.ndarray, np.memmap)
_CACHE_ENTRIES = 1024


@dataclass(frozen=True, slots=True)
class Pad:
    """How an argument's items of different length become one array.

    An item is an ndarray of shape (length, *S); the batch is (n, longest, *S), filled up
    with ``value``. dtype and S must agree, as ever; the length need not.

    Args:
        value: what to fill up with, in the items' dtype.
        lengths: name of the argument of `_run_batch` that is given the true lengths,
            an int64 ndarray of shape (n,); callers cannot give it. None: nobody asks.
    """

    value: Any = 0
    lengths: str | None = None


class Padded(NamedTuple):
    """An argument as the model gets it."""

    array: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]


class _Rows:
    """Arrays of one dtype and shape but for their first axis."""

    __slots__ = ("arrays", "dtype", "shape")

    def __init__(self, arrays: list[np.ndarray[Any, Any]], dtype: np.dtype[Any], shape: tuple[int, ...]):
        self.arrays = arrays
        self.dtype = dtype
        self.shape = shape

    def __len__(self) -> int:
        return len(self.arrays)


class RaggedKind(Kind):
    """What an argument that is padded takes: ndarrays, and lists of them in `run_batch`. Not found by
    type: the argument's name decides."""

    name = "ragged"

    def __init__(self, pad: Pad) -> None:
        self.pad = pad
        self._fits: set[np.dtype[Any]] = set()

    def lift(self, item: np.ndarray[Any, Any]) -> _Rows:
        return self._checked(_rows([item]))

    def lower(self, batch: _Rows) -> Any:
        return batch.arrays[0]

    def item(self, batch: _Rows, row: int) -> Any:
        return batch.arrays[row]

    def check(self, batch: Any) -> _Rows:
        if isinstance(batch, list):
            return self._checked(_rows(batch))
        if type(batch) not in _ARRAYS:
            raise InvalidPayload(
                f"run_batch takes items to be padded as a list of ndarrays or as one, got {_brief(batch)}"
            )
        if batch.ndim < 2:
            raise InvalidPayload(
                f"items to be padded have a length: shape (rows, length, ...), got {batch.shape}"
            )
        return self._checked(_Rows(list(np.asarray(batch)), batch.dtype, batch.shape[2:]))

    def _checked(self, rows: _Rows) -> _Rows:
        """The rows, if they can be filled up with the value."""
        if rows.dtype not in self._fits:
            try:
                np.full(1, self.pad.value, dtype=rows.dtype)
            except Exception as error:
                raise InvalidPayload(
                    f"items of {rows.dtype} cannot be padded with {self.pad.value!r}: {error}"
                ) from None
            if len(self._fits) >= _CACHE_ENTRIES:
                self._fits.clear()
            self._fits.add(rows.dtype)
        return rows

    def key(self, batch: _Rows) -> Hashable:
        return dtype_token(batch.dtype), batch.shape

    def join(self, key: Any, pieces: Sequence[Piece]) -> Padded:
        first = pieces[0].batch
        arrays = [array for batch, start, rows in pieces for array in batch.arrays[start : start + rows]]
        lengths = np.array([len(array) for array in arrays], dtype=np.int64)
        longest = int(lengths.max(initial=0))
        joined = np.full((len(arrays), longest, *first.shape), self.pad.value, dtype=first.dtype)
        for row, array in enumerate(arrays):
            joined[row, : len(array)] = array
        return Padded(joined, lengths)

    def encode(self, key: Any, batch: _Rows, *, allow_pickle: bool) -> Iterable[Fixed | Var]:
        if not is_raw(batch.dtype):
            refuse_pickle(allow_pickle, f"dtype {batch.dtype}")
            return [make_var(pickling.dumps_each(batch.arrays))]
        lengths = np.array([len(array) for array in batch.arrays], dtype="<i8")
        return [Fixed(8, raw_bytes(lengths)), make_var([raw_bytes(array) for array in batch.arrays])]

    def load_key(self, token: Any, *, allow_pickle: bool) -> tuple[np.dtype[Any], tuple[int, ...]]:
        match token:
            case (dtype, tuple(shape)) if all(type(size) is int and size >= 0 for size in shape):
                return dtype_from_token(dtype, allow_pickle=allow_pickle), shape
        raise InvalidPayload(f"not the key of items to be padded: {str(token)[:80]}")

    def decode(self, key: Any, buffers: Iterator[Fixed | Var], rows: int, *, allow_pickle: bool) -> _Rows:
        dtype, shape = key
        if not is_raw(dtype):
            refuse_pickle(allow_pickle, f"dtype {dtype}")
            return _unpickled(pickling.loads_each(take_var(buffers, rows)), dtype, shape)
        lengths = array_over(take_fixed(buffers, 8, rows), np.dtype("<i8"), (rows,)).tolist()
        size = dtype.itemsize * math.prod(shape)
        arrays = []
        for length, blob in zip(lengths, take_var(buffers, rows), strict=True):
            if blob is None or length < 0 or length * size != len(blob):
                raise InvalidPayload(f"an item of length {length} is not {size} bytes each")
            arrays.append(array_over(blob, dtype, (length, *shape)))
        return _Rows(arrays, dtype, shape)

    def settled(self, batch: _Rows) -> Padded:
        return self.join(None, [Piece(batch, 0, len(batch))])

    def describe(self, batch: _Rows) -> str:
        return f"{len(batch)} items of {batch.dtype} and shape (length, *{batch.shape})"


def _unpickled(arrays: list[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> _Rows:
    for array in arrays:
        if type(array) is not np.ndarray or array.dtype != dtype or array.shape[1:] != shape:
            raise InvalidPayload(f"an item of {_brief(array)} is not {dtype} of shape (length, *{shape})")
    return _Rows(arrays, dtype, shape)


def _rows(arrays: list[Any]) -> _Rows:
    # Without an item there is no dtype: any will do.
    first = arrays[0] if arrays else np.empty(0)
    for array in arrays:
        if type(array) not in _ARRAYS or array.ndim == 0:
            raise InvalidPayload(f"items to be padded are ndarrays with a length, got {_brief(array)}")
        if array.dtype != first.dtype or array.shape[1:] != first.shape[1:]:
            raise InvalidPayload(
                f"items to be padded differ in length only, got {_brief(first)} and {_brief(array)}"
            )
    return _Rows([np.asarray(array) for array in arrays], first.dtype, first.shape[1:])


def _brief(value: Any) -> str:
    if type(value) in _ARRAYS:
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__
