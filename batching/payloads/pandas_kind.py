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
from .kinds import Fixed, InvalidResult, Kind, Piece, Var, take_fixed, take_var
from .numpy_kind import array_over, raw_bytes
from .pandas_blocks import build, build_series, content, recognise
from .pandas_columns import categories_of, check_codes, codec_of, column_array, decode_values, encode_values
from .pandas_layout import FrameLayout
from .pandas_tokens import column_dtype, column_token

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

    def key(self, batch: Any) -> FrameLayout:
        return recognise(batch)

    def load_key(self, token: Any, *, allow_pickle: bool) -> FrameLayout:
        return FrameLayout.from_token(token, allow_pickle=allow_pickle)

    def join(self, key: FrameLayout, pieces: Sequence[Piece]) -> Any:
        joined = key.join([(content(batch, key), first, rows) for batch, first, rows in pieces])
        return build(key, joined, pd.RangeIndex(joined.rows))

    def cut(self, batch: Any, counts: Sequence[int], *, owned: bool) -> list[Any]:
        layout = recognise(batch)
        columns = content(batch, layout)
        parts = []
        first = 0
        for rows in counts:
            parts.append(build(layout, layout.cut(columns, first, rows), pd.RangeIndex(rows)))
            first += rows
        return parts

    def encode(self, key: FrameLayout, batch: Any, *, allow_pickle: bool) -> Iterable[Fixed | Var]:
        return key.encode(content(batch, key), allow_pickle=allow_pickle)

    def decode(
        self, key: FrameLayout, buffers: Iterator[Fixed | Var], rows: int, *, allow_pickle: bool
    ) -> Any:
        columns = key.decode(buffers, rows, allow_pickle=allow_pickle)
        return build(key, columns, pd.RangeIndex(rows))

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
        cells: Any = {at: array[at : at + 1] for at in range(len(item))}
        if isinstance(array, np.ndarray):
            cells = array.reshape(1, -1)
        # With the dtype: pandas would take objects that are all text for its own kind of text.
        frame = pd.DataFrame(cells, index=index, dtype=item.dtype)
        frame.columns = item.index
        return frame

    def lower(self, batch: Any) -> Any:
        return batch.array[0]

    def key(self, batch: Any) -> Hashable:
        return freeze(batch.name), column_token(batch.dtype)

    def load_key(self, token: Any, *, allow_pickle: bool) -> tuple[Any, Any]:
        match token:
            case (name, dtype):
                return thaw(name, allow_pickle=allow_pickle), column_dtype(dtype, allow_pickle=allow_pickle)
        raise InvalidPayload(f"not the key of a Series: {str(token)[:80]}")

    def join(self, key: Any, pieces: Sequence[Piece]) -> Any:
        rows = [batch.iloc[first : first + rows] for batch, first, rows in pieces]
        if len(rows) > 1:
            return pd.concat(rows, ignore_index=True)
        # The batch is the model's own: it may write into it.
        joined = rows[0].copy()
        joined.index = pd.RangeIndex(len(joined))
        return joined

    def cut(self, batch: Any, counts: Sequence[int], *, owned: bool) -> list[Any]:
        array = column_array(batch)
        parts = []
        first = 0
        for rows in counts:
            parts.append(build_series(array[first : first + rows].copy(), batch.name))
            first += rows
        return parts

    def encode(self, key: Any, batch: Any, *, allow_pickle: bool) -> Iterable[Fixed | Var]:
        array = column_array(batch)
        codec = codec_of(batch.dtype)
        if codec.role in ("text", "pickle"):
            return [encode_values(array, codec.role, allow_pickle=allow_pickle)]
        return [Fixed(part.dtype.itemsize, raw_bytes(part)) for part in codec.parts(array)]

    def decode(self, key: Any, buffers: Iterator[Fixed | Var], rows: int, *, allow_pickle: bool) -> Any:
        name, dtype = key
        codec = codec_of(dtype)
        if codec.role in ("text", "pickle"):
            array = decode_values(take_var(buffers, rows), dtype, codec.role, allow_pickle=allow_pickle)
            return pd.Series(array, index=pd.RangeIndex(rows), name=name, dtype=dtype)
        parts = [
            array_over(take_fixed(buffers, part.itemsize, rows), part, (rows,))
            for part in codec.storage(dtype)
        ]
        if codec.role == "codes":
            check_codes(parts[0], categories_of(dtype))
        return build_series(codec.whole(dtype, parts), name)

    def index(self, batch: Any) -> Any:
        return batch.index

    def settle(self, batch: Any, rows: int) -> Any:
        return _settle(batch, rows)

    def relabel(self, batch: Any, index: Any) -> Any:
        return _relabel(batch, index)

    def describe(self, batch: Any) -> str:
        return f"Series {batch.dtype} of {len(batch)} rows named {batch.name!r}"


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
    # A view: its name is the answer's own.
    batch.index = pd.RangeIndex(len(batch)) if index is None else index.view()
    return batch
