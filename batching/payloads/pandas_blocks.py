"""The only file that touches pandas' private parts: the blocks that a frame is kept in.

What it is      `recognise`: the layout of a frame by a look at its blocks; `content`: its
                columns as arrays, mostly without a copy; `build`: a frame of such arrays.
Guarantees      the same as the public way, which stands beside each of the three. At import
                a frame of every kind of column goes through both; if anything raises or
                differs, the public way is taken for good (`PRIVATE` says which).
Why this shape  one row of ten columns costs 30 us by `iloc` and 200 to 600 by `DataFrame(dict)`;
                its blocks are looked at in 5 and made in 10 (`bench/bench_payloads.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .pandas_columns import codec_of, column_array
from .pandas_layout import Columns, FrameLayout
from .pandas_tokens import column_token

__all__ = ["PRIVATE", "build", "build_series", "content", "recognise"]

_CACHE_ENTRIES = 512


class _Known(NamedTuple):
    """A frame's layout, and where its blocks have it.

    ``fields`` are the number of the block that a field is, or block and row of each of its
    columns; ``others`` block and row. ``alive`` holds what the fingerprint knows by address.
    """

    layout: FrameLayout
    fields: list[int | list[tuple[int, int]]]
    others: list[tuple[int, int]]
    alive: Any


_known: dict[Hashable, _Known] = {}
_layouts: dict[FrameLayout, FrameLayout] = {}
_steps: dict[FrameLayout, list[Any]] = {}


def recognise(frame: Any) -> FrameLayout:
    """The layout of a frame; the same object for frames that can be joined, as a rule."""
    return _recognised(frame).layout if PRIVATE else _layout(frame)


def content(frame: Any, layout: FrameLayout) -> Columns:
    """The columns of a frame of that layout. Not to be written: the arrays are the frame's own."""
    return _private_content(frame) if PRIVATE else _public_content(frame, layout)


def build(layout: FrameLayout, columns: Columns, index: Any) -> Any:
    """A frame over the arrays, which are its own from now on."""
    return _private_build(layout, columns, index) if PRIVATE else _public_build(layout, columns, index)


def build_series(array: Any, name: Any) -> Any:
    """A Series over an array of exactly its dtype, which is its own from now on."""
    index = pd.RangeIndex(len(array))
    if PRIVATE:
        return _private_series(array, name, index)
    return pd.Series(array, index=index, name=name, dtype=array.dtype)


def _layout(frame: Any) -> FrameLayout:
    layout = FrameLayout.of(frame.columns, list(frame.dtypes))
    if len(_layouts) >= _CACHE_ENTRIES:
        _layouts.clear()
    return _layouts.setdefault(layout, layout)


# --- the public way ---------------------------------------------------------------------------


def _public_content(frame: Any, layout: FrameLayout) -> Columns:
    arrays = [column_array(frame.iloc[:, at]) for at in range(frame.shape[1])]
    parts = [codec_of(dtype).parts(array) for dtype, array in zip(layout.dtypes, arrays, strict=True)]
    fields = [np.stack([parts[at][field.part] for at in field.columns]) for field in layout.fields]
    return Columns(fields, [arrays[other.column] for other in layout.others], len(frame))


def _public_build(layout: FrameLayout, columns: Columns, index: Any) -> Any:
    arrays: dict[int, Any] = {}
    parts: dict[int, list[Any]] = {}
    for field, values in zip(layout.fields, columns.fields, strict=True):
        for row, at in enumerate(field.columns):
            parts.setdefault(at, []).append(values[row])
    for at, each in parts.items():
        arrays[at] = codec_of(layout.dtypes[at]).whole(layout.dtypes[at], each)
    for other, values in zip(layout.others, columns.others, strict=True):
        arrays[other.column] = values
    series = {at: pd.Series(arrays[at], index=index, dtype=layout.dtypes[at]) for at in sorted(arrays)}
    frame = pd.DataFrame(series, index=index)
    frame.columns = layout.columns.view()
    return frame


# --- the private way: reading -----------------------------------------------------------------


def _recognised(frame: Any) -> _Known:
    manager = frame._mgr
    names = manager.axes[0]
    dtypes = [block.values.dtype for block in manager.blocks]
    places = manager.blknos.tobytes(), manager.blklocs.tobytes()
    # By address: hashing the dtypes would cost as much as all the rest.
    fingerprint = (id(names._id), *_title(names), *places, *map(id, dtypes))
    known = _known.get(fingerprint)
    if known is None:
        known = _remember(fingerprint, _recognised_by_value(frame, names, dtypes, places), (names, dtypes))
    return known


def _recognised_by_value(frame: Any, names: Any, dtypes: list[Any], places: tuple[bytes, bytes]) -> _Known:
    """For frames made anew for every call, whose labels and dtypes are other objects each time."""
    labels = tuple(names)
    if type(names) is not pd.Index or not all(type(label) is str for label in labels):
        return _look_at(frame)
    fingerprint = (names.dtype, *_title(names), labels, *places, *map(_exactly, dtypes))
    known = _known.get(fingerprint)
    return known or _remember(fingerprint, _look_at(frame), None)


def _title(names: Any) -> tuple[Hashable, ...]:
    """What the columns together are called; it can change while the labels stay."""
    if type(names) is pd.MultiIndex:
        return tuple(names.names)
    name: Hashable = names._name
    return type(name), name


def _exactly(dtype: Any) -> Hashable:
    """The dtype as something that is equal to it alone: pandas takes categories in another order,
    and two kinds of UTC, for the same."""
    if isinstance(dtype, pd.CategoricalDtype):
        return column_token(dtype)
    if isinstance(dtype, pd.DatetimeTZDtype):
        return dtype, type(dtype.tz)
    return dtype  # type: ignore[no-any-return]


def _remember(fingerprint: Hashable, known: _Known, alive: Any) -> _Known:
    if len(_known) >= _CACHE_ENTRIES:
        _known.clear()
    _known[fingerprint] = known = known._replace(alive=alive)
    return known


def _look_at(frame: Any) -> _Known:
    layout = _layout(frame)
    manager = frame._mgr
    places = list(zip(manager.blknos.tolist(), manager.blklocs.tolist(), strict=True))
    fields: list[int | list[tuple[int, int]]] = []
    for field in layout.fields:
        wanted = [places[column] for column in field.columns]
        block = wanted[0][0]
        whole = wanted == [(block, row) for row in range(manager.blocks[block].mgr_locs.as_array.size)]
        fields.append(block if whole else wanted)
    return _Known(layout, fields, [places[other.column] for other in layout.others], None)


def _private_content(frame: Any) -> Columns:
    known = _recognised(frame)
    values = [block.values for block in frame._mgr.blocks]
    fields = []
    for field, source in zip(known.layout.fields, known.fields, strict=True):
        stored = _STORED[field.role]
        if type(source) is int:
            fields.append(stored(values[source], field.part))
        else:
            rows = [stored(values[block], field.part)[row] for block, row in source]  # type: ignore[union-attr]
            fields.append(np.stack(rows))
    others = [values[block] if values[block].ndim == 1 else values[block][row] for block, row in known.others]
    return Columns(fields, others, len(frame))


# The values of a block as an array of (columns, rows).
_STORED: dict[str, Callable[[Any, int], Any]] = {
    "raw": lambda values, part: values if isinstance(values, np.ndarray) else values._ndarray,
    "zoned": lambda values, part: values._ndarray,
    "codes": lambda values, part: values._ndarray.reshape(1, -1),
    "masked": lambda values, part: (values._mask if part else values._data).reshape(1, -1),
}


# --- the private way: making ------------------------------------------------------------------


def _private_series(array: Any, name: Any, index: Any) -> Any:
    manager = _SeriesManager.from_array(array, index)
    make: Any = pd.Series
    series = make._from_mgr(manager, manager.axes)
    series._name = name
    return series


class _Step(NamedTuple):
    """How one block is made: of which field or other, and placed where."""

    block: Any
    placement: Any
    make: Callable[[Any, Any], Any]
    at: int
    is_field: bool


def _private_build(layout: FrameLayout, columns: Columns, index: Any) -> Any:
    steps = _steps.get(layout)
    if steps is None:
        if len(_steps) >= _CACHE_ENTRIES:
            _steps.clear()
        steps = _steps[layout] = _make_steps(layout)
    blocks = []
    for block, placement, make, at, is_field in steps:
        values = make(columns.fields, at) if is_field else make(columns.others, at)
        blocks.append(block(values, placement=placement, ndim=2))
    manager = _Manager(blocks, [layout.columns.view(), index], verify_integrity=False)
    frame: Any = pd.DataFrame
    return frame._from_mgr(manager, manager.axes)


def _make_steps(layout: FrameLayout) -> list[_Step]:
    steps = []
    for at, field in enumerate(layout.fields):
        if field.part == 0:
            dtype = layout.dtypes[field.columns[0]]
            make = _maker(field.role, dtype)
            steps.append(_Step(_block_type(dtype), _placement(field.columns), make, at, True))
    for at, other in enumerate(layout.others):
        dtype = layout.dtypes[other.column]
        if other.role == "text":
            make = _text_maker(dtype)
        else:
            make = _as_block if isinstance(dtype, np.dtype) or dtype._supports_2d else _as_is
        steps.append(_Step(_block_type(dtype), _placement((other.column,)), make, at, False))
    return steps


def _placement(columns: tuple[int, ...]) -> Any:
    return _BlockPlacement(np.array(columns, dtype=np.intp))


def _as_is(arrays: Any, at: int) -> Any:
    return arrays[at]


def _as_block(arrays: Any, at: int) -> Any:
    return arrays[at].reshape(1, -1)


def _maker(role: str, dtype: Any) -> Callable[[Any, int], Any]:
    cls = type(_empty(dtype))
    match role:
        case "codes":
            return lambda fields, at: cls._simple_new(fields[at][0], dtype)
        case "masked":
            return lambda fields, at: cls(fields[at][0], fields[at + 1][0])
        case _ if dtype.kind in "mM":
            return lambda fields, at: cls._simple_new(fields[at], dtype=dtype)
    return _as_is


def _text_maker(dtype: Any) -> Callable[[Any, int], Any]:
    cls = dtype.construct_array_type()

    def make(arrays: Any, at: int) -> Any:
        values = arrays[at]
        if not isinstance(values, np.ndarray):
            return values
        if dtype.storage == "python":
            return cls._simple_new(values, dtype)
        return cls._from_sequence(values, dtype=dtype)

    return make


def _empty(dtype: Any) -> Any:
    return pd.Series([], dtype=dtype).array


# --- which way --------------------------------------------------------------------------------


def _private_way_works() -> bool:
    """Whether frames of every kind of column come out of both ways the same."""
    zone = pd.DatetimeTZDtype("ns", "UTC")
    frame = pd.DataFrame(
        {
            "f": [1.5, 2.5],
            "i": [1, 2],
            "g": [3.5, 4.5],
            "b": [True, False],
            "t": pd.to_datetime(["2020-01-01", "2021-01-01"]),
            "d": pd.to_timedelta([1, 2], unit="s"),
            "z": pd.array(["2020-01-01", "2021-01-01"], dtype=zone),
            "y": pd.array(["2020-01-01", "2021-01-01"], dtype=zone),
            "c": pd.Categorical(["u", None]),
            "n": pd.array([1, None], dtype="Int64"),
            "x": pd.array([0.5, None], dtype="Float32"),
            "l": pd.array([True, None], dtype="boolean"),
            "s": pd.array(["a", None], dtype="string"),
            "o": np.array([(1,), None], dtype=object),
            "p": pd.period_range("2020-01", periods=2, freq="M"),
        }
    )
    frame["late"] = [9.5, 8.5]
    layout = _layout(frame)
    if _recognised(frame).layout is not layout or _recognised(frame.iloc[:1]).layout is not layout:
        return False
    contents = _public_content(frame, layout), _private_content(frame)
    built = [
        way(layout, layout.cut(each, 0, 2), pd.RangeIndex(2))
        for each in contents
        for way in (_public_build, _private_build)
    ]
    texts = Columns([], [np.array(["a", pd.NA], dtype=object)], 2)
    text = FrameLayout.of(frame.columns[12:13], [frame["s"].dtype])
    if not _private_build(text, texts, pd.RangeIndex(2)).equals(frame[["s"]]):
        return False
    for name in frame.columns:
        column = frame[name]
        series = _private_series(column_array(column).copy(), name, pd.RangeIndex(2))
        if not series.equals(column) or series.dtype != column.dtype or series.name != name:
            return False
    return all(each.equals(frame) and list(each.dtypes) == list(frame.dtypes) for each in built)


try:
    from pandas._libs.internals import BlockPlacement as _BlockPlacement
    from pandas.core.internals.blocks import get_block_type as _block_type
    from pandas.core.internals.managers import BlockManager as _Manager
    from pandas.core.internals.managers import SingleBlockManager as _SeriesManager

    PRIVATE = _private_way_works()
except Exception:
    # Another version of pandas: whatever is missing or has moved, the public way is there.
    PRIVATE = False
