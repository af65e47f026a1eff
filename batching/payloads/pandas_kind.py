"""pandas: DataFrames and Series. Imported only once a caller passes, or a model returns, one.

Frames travel as column buffers, so that a batch of many one-row frames becomes one frame
and never many.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from batching.errors import InvalidPayload

from .canonical import freeze, thaw
from .kinds import Fixed, InvalidResult, Kind, Piece, Var, refuse_pickle
from .pandas_columns import codec_of, column_array, column_dtype, column_token, labels, labels_token

__all__ = ["FrameKind", "SeriesKind"]


class FrameKind(Kind):
    """DataFrames of n rows. `run` takes a Series too: one row, all columns of its dtype."""

    name = "frame"
    types = (pd.DataFrame,)

    def lift(self, item: Any) -> Any:
        if len(item) != 1:
            raise InvalidPayload(f"run takes a DataFrame of one row, got {len(item)} rows: use run_batch")
        return item

    def lower(self, batch: Any) -> Any:
        return batch

    def key(self, batch: Any) -> Hashable:
        return labels_token(batch.columns), tuple(column_token(dtype) for dtype in batch.dtypes)

    def join(self, key: Any, pieces: Sequence[Piece]) -> Any:
        return _join(pieces)

    def cut(self, batch: Any, counts: Sequence[int], *, owned: bool) -> list[Any]:
        return _cut(batch, counts)

    def encode(self, key: Any, batch: Any, *, allow_pickle: bool) -> Iterable[Fixed | Var]:
        columns = [column_array(batch.iloc[:, at]) for at in range(batch.shape[1])]
        return _encode(columns, allow_pickle)

    def decode(self, key: Any, buffers: Iterator[Fixed | Var], rows: int, *, allow_pickle: bool) -> Any:
        match key:
            case (tuple(columns), tuple(tokens)):
                index = labels(columns, allow_pickle=allow_pickle)
            case _:
                raise InvalidPayload(f"not the key of a DataFrame: {str(key)[:80]}")
        if len(index) != len(tokens):
            raise InvalidPayload(f"{len(index)} column names and {len(tokens)} dtypes")
        arrays = _decode(tokens, buffers, rows, allow_pickle)
        frame = pd.DataFrame(dict(enumerate(arrays)), index=pd.RangeIndex(rows))
        frame.columns = index
        return frame

    def index(self, batch: Any) -> Any:
        return batch.index

    def settle(self, batch: Any, rows: int) -> Any:
        return _settle(batch, rows)

    def relabel(self, batch: Any, index: Any) -> Any:
        return _relabel(batch, index)

    def describe(self, batch: Any) -> str:
        pairs = zip(batch.columns, batch.dtypes, strict=True)
        columns = ", ".join(f"{name}: {dtype}" for name, dtype in pairs)
        return f"DataFrame of {len(batch)} rows with columns {columns}"


class SeriesKind(Kind):
    """Series of n rows, as `run_batch` takes them and models return them."""

    name = "series"
    types = (pd.Series,)

    def lift(self, item: Any) -> Any:
        # One row, its labels the columns; the row's own label is the Series' name.
        index = pd.RangeIndex(1) if item.name is None else pd.Index([item.name], tupleize_cols=False)
        array = column_array(item)
        frame = pd.DataFrame({at: array[at : at + 1] for at in range(len(item))}, index=index)
        frame.columns = item.index
        return frame

    def lower(self, batch: Any) -> Any:
        return batch.iloc[0]

    def key(self, batch: Any) -> Hashable:
        return freeze(batch.name), column_token(batch.dtype)

    def join(self, key: Any, pieces: Sequence[Piece]) -> Any:
        return _join(pieces)

    def cut(self, batch: Any, counts: Sequence[int], *, owned: bool) -> list[Any]:
        return _cut(batch, counts)

    def encode(self, key: Any, batch: Any, *, allow_pickle: bool) -> Iterable[Fixed | Var]:
        return _encode([column_array(batch)], allow_pickle)

    def decode(self, key: Any, buffers: Iterator[Fixed | Var], rows: int, *, allow_pickle: bool) -> Any:
        match key:
            case (name, token):
                [array] = _decode([token], buffers, rows, allow_pickle)
                name = thaw(name, allow_pickle=allow_pickle)
                return pd.Series(array, index=pd.RangeIndex(rows), name=name, dtype=array.dtype)
        raise InvalidPayload(f"not the key of a Series: {str(key)[:80]}")

    def index(self, batch: Any) -> Any:
        return batch.index

    def settle(self, batch: Any, rows: int) -> Any:
        return _settle(batch, rows)

    def relabel(self, batch: Any, index: Any) -> Any:
        return _relabel(batch, index)

    def describe(self, batch: Any) -> str:
        return f"Series {batch.dtype} of {len(batch)} rows named {batch.name!r}"


def _join(pieces: Sequence[Piece]) -> Any:
    rows = [batch.iloc[first : first + rows] for batch, first, rows in pieces]
    if len(rows) > 1:
        return pd.concat(rows, ignore_index=True)
    # The batch is the model's own: it may write into it.
    joined = rows[0].copy()
    joined.index = pd.RangeIndex(len(joined))
    return joined


def _cut(batch: Any, counts: Sequence[int]) -> list[Any]:
    parts = []
    first = 0
    for rows in counts:
        parts.append(batch.iloc[first : first + rows].copy())
        first += rows
    return parts


def _settle(batch: Any, rows: int) -> Any:
    index = batch.index
    if isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1:
        return batch
    if rows > 1 and _is_reordered(index, rows):
        raise InvalidResult(
            f"_run_batch returned its {rows} rows in another order: the index is {_brief(index)}, "
            f"a permutation of RangeIndex({rows}); restore the order, for example with .sort_index()"
        )
    return batch


def _is_reordered(index: Any, rows: int) -> bool:
    if index.nlevels > 1:
        return False
    values = index.to_numpy()
    if values.dtype == object:
        if not all(isinstance(value, (int, float, np.number)) for value in values):
            return False
        values = np.asarray(values.tolist())
    if values.dtype.kind not in "iuf":
        return False
    plain = np.arange(rows)
    return not np.array_equal(values, plain) and np.array_equal(np.sort(values), plain)


def _brief(index: Any) -> str:
    values = [str(value) for value in index[:6]]
    return f"[{', '.join(values)}{', ...' if len(index) > 6 else ''}]"


def _relabel(batch: Any, index: Any) -> Any:
    batch.index = pd.RangeIndex(len(batch)) if index is None else index
    return batch


def _encode(arrays: Sequence[Any], allow_pickle: bool) -> list[Fixed | Var]:
    buffers: list[Fixed | Var] = []
    for array in arrays:
        codec = codec_of(array.dtype)
        refuse_pickle(allow_pickle or not codec.needs_pickle, f"a column of dtype {array.dtype}")
        buffers += codec.encode(array)
    return buffers


def _decode(
    tokens: Sequence[Any], buffers: Iterator[Fixed | Var], rows: int, allow_pickle: bool
) -> list[Any]:
    arrays = []
    for token in tokens:
        dtype = column_dtype(token, allow_pickle=allow_pickle)
        codec = codec_of(dtype)
        refuse_pickle(allow_pickle or not codec.needs_pickle, f"a column of dtype {dtype}")
        arrays.append(codec.decode(dtype, buffers, rows))
    return arrays
