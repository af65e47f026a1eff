"""What can be batched, drawn by Hypothesis: shared by the tests of kinds, engines and services."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pandas.testing import assert_frame_equal, assert_index_equal, assert_series_equal
from payload_models import Point

RAW_DTYPES = [
    "?", "i1", "<i2", ">i4", "<i8", "u1", ">u8", "<f2", "<f4", ">f8", "<c8", ">c16",
    "<M8[ns]", ">M8[D]", "<m8[us]", "S3", "<U2", ">U2", "V5",
]  # fmt: skip
STRUCTURED_DTYPES: list[Any] = [
    [("a", "<i4"), ("b", ">f8", (2,))],
    np.dtype([("x", "i1"), ("y", "f8")], align=True),
    [("outer", [("inner", "<M8[s]"), ("text", "<U3")])],
]


def dtypes() -> st.SearchStrategy[np.dtype]:
    """Every dtype that travels as raw bytes."""
    return st.sampled_from([np.dtype(dtype) for dtype in (*RAW_DTYPES, *STRUCTURED_DTYPES)])


def _filled(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if dtype.hasobject:
        values = [None, "text", 7, (1, 2), 1.5, b"\x00"]
        array = np.empty(shape, dtype=dtype)
        for position in np.ndindex(shape):
            array[position] = values[(seed + sum(position)) % len(values)]
        return array
    size = int(np.prod(shape)) * dtype.itemsize
    noise = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    if dtype.kind == "b":
        noise %= 2
    elif dtype.kind == "U" or dtype.names is not None:
        # Not every four bytes are a code point.
        noise[:] = 0
    return noise.view(dtype).reshape(shape) if size else np.empty(shape, dtype=dtype)


@st.composite
def batches(draw: Any, max_rows: int = 6, dtype: Any = None) -> np.ndarray:
    """An array with rows, of any dtype and layout, also read-only and with axes of size zero."""
    chosen = draw(st.one_of(dtypes(), st.just(np.dtype(object)))) if dtype is None else np.dtype(dtype)
    rows = draw(st.integers(0, max_rows))
    trailing = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    return draw(layouts(_filled(chosen, (rows, *trailing), draw(st.integers(0, 2**16)))))


@st.composite
def layouts(draw: Any, array: np.ndarray) -> np.ndarray:
    """The same values, laid out in another way."""
    match draw(st.sampled_from(["C", "F", "strided", "reversed", "read-only", "unaligned"])):
        case "F":
            return np.asfortranarray(array)
        case "strided":
            wide = np.empty((*array.shape[:-1], 2 * array.shape[-1]), dtype=array.dtype)
            wide[..., ::2] = array
            return wide[..., ::2]
        case "reversed":
            return array[::-1].copy()[::-1]
        case "read-only":
            array = array.copy()
            array.flags.writeable = False
        case "unaligned" if not array.dtype.hasobject and array.size:
            raw = np.empty(array.nbytes + 1, dtype=np.uint8)[1:].view(array.dtype).reshape(array.shape)
            raw[...] = array
            return raw
    return array


def same_array(one: Any, other: Any) -> bool:
    """Equal in type, dtype, shape and every bit; nan equals nan."""
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.hasobject:
        return all(a is b or a == b for a, b in zip(one.ravel(), other.ravel(), strict=True))
    if one.dtype.names is not None:
        # Field by field: nobody promises the padding between them.
        return all(same_array(one[name], other[name]) for name in one.dtype.names)
    return bool(one.tobytes() == other.tobytes())


# --- pandas -------------------------------------------------------------------------------------


def _days(count: int) -> timedelta:
    return timedelta(days=count)


def _date(year: int) -> datetime:
    return datetime(year, 1, 1)


def _texts() -> st.SearchStrategy[Any]:
    return st.none() | st.text(max_size=4)


COLUMN_VALUES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    # name: dtype, values of one cell
    "float64": ("float64", st.floats(width=64)),
    "float32": ("float32", st.floats(width=32)),
    "int64": ("int64", st.integers(-(2**63), 2**63 - 1)),
    "uint8": ("uint8", st.integers(0, 255)),
    "bool": ("bool", st.booleans()),
    "complex": ("complex128", st.complex_numbers()),
    "datetime": ("datetime64[us]", st.datetimes()),
    "datetime-s": ("datetime64[s]", st.datetimes()),
    "timedelta": ("timedelta64[ns]", st.timedeltas(_days(-1000), _days(1000))),
    "berlin": ("datetime64[us, Europe/Berlin]", st.datetimes(_date(1990), _date(2030))),
    "utc": ("datetime64[ns, UTC]", st.datetimes(_date(1990), _date(2030))),
    "str": ("str", _texts()),
    "string": ("string", _texts()),
    "object": (object, st.none() | st.integers() | st.text(max_size=2) | st.tuples(st.booleans())),
    "Int16": ("Int16", st.none() | st.integers(-(2**15), 2**15 - 1)),
    "UInt64": ("UInt64", st.none() | st.integers(0, 2**64 - 1)),
    "Float64": ("Float64", st.none() | st.floats(allow_nan=False)),
    "boolean": ("boolean", st.none() | st.booleans()),
    "category": (pd.CategoricalDtype(["u", "v", "w"]), st.sampled_from(["u", "v", "w", None])),
    "ordered": (pd.CategoricalDtype([3, 1, 2], ordered=True), st.sampled_from([1, 2, 3, None])),
    "period": ("period[M]", st.sampled_from(["2020-01", "1999-12", None])),
    "interval": (
        pd.CategoricalDtype(pd.interval_range(0, 3)),
        st.sampled_from([*pd.interval_range(0, 3), None]),
    ),
}


def labels(columns: int) -> st.SearchStrategy[Any]:
    """Names of columns: text, duplicates, numbers, tuples, times, several levels."""
    size = {"min_size": columns, "max_size": columns}
    return st.one_of(
        st.lists(st.text(max_size=3), **size).map(lambda names: pd.Index(names, dtype="str")),
        st.just(pd.RangeIndex(columns)),
        st.lists(st.integers(0, 3), **size).map(lambda names: pd.Index(names, dtype="int64", name="n")),
        st.lists(st.sampled_from(["a", 1, 1.0, True, None, (1, "b")]), **size).map(
            lambda names: pd.Index(names, dtype=object, tupleize_cols=False)
        ),
        st.just(pd.date_range("2020-01-01", periods=columns)),
        st.just(pd.MultiIndex.from_arrays([["x"] * columns, range(columns)])),
        st.just(pd.CategoricalIndex(["k"] * columns)),
    )


def indexes(rows: int) -> st.SearchStrategy[Any]:
    """A caller's own labels of its rows."""
    return st.sampled_from(
        [
            pd.RangeIndex(rows),
            pd.RangeIndex(7, 7 + 2 * rows, 2, name="id"),
            pd.date_range("2020-01-01", periods=rows, tz="UTC"),
            pd.MultiIndex.from_product([["x"], range(rows)], names=["a", "b"]),
            pd.Index(["same"] * rows, dtype="str"),
        ]
    )


@st.composite
def columns(draw: Any, name: str, rows: int) -> Any:
    """An array of `rows` cells of the column of that name in `COLUMN_VALUES`."""
    dtype, cells = COLUMN_VALUES[name]
    values = draw(st.lists(cells, min_size=rows, max_size=rows))
    if dtype is object:
        array = np.empty(rows, dtype=object)
        array[:] = values
        return pd.Series(array, dtype=object)
    if isinstance(dtype, str) and dtype.endswith("UTC]"):
        return pd.Series(pd.to_datetime(values, utc=True).as_unit("ns"), dtype=dtype)
    if isinstance(dtype, str) and dtype.endswith("Berlin]"):
        return pd.Series(pd.to_datetime(values, utc=True).tz_convert("Europe/Berlin").as_unit("us"))
    return pd.Series(values, dtype=dtype)


@st.composite
def frames(draw: Any, names: list[str], header: Any, rows: int) -> pd.DataFrame:
    """A frame of the columns of those names in `COLUMN_VALUES`, in one of the ways pandas keeps them."""
    cells = {at: draw(columns(name, rows)) for at, name in enumerate(names)}
    frame = pd.DataFrame(cells, index=pd.RangeIndex(rows))
    if draw(st.booleans()):
        frame = _in_blocks_of_one(cells, rows)
    frame.columns = header
    frame.index = draw(indexes(rows))
    return frame


def column_names() -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(sorted(COLUMN_VALUES)), max_size=5)


@st.composite
def frame_families(draw: Any, max_frames: int = 4, max_rows: int = 3) -> list[pd.DataFrame]:
    """Frames of the same columns that differ in rows and index, and in how pandas keeps them."""
    names = draw(column_names())
    header = draw(labels(len(names)))
    return [
        draw(frames(names, header, draw(st.integers(0, max_rows))))
        for _ in range(draw(st.integers(1, max_frames)))
    ]


def _in_blocks_of_one(cells: dict[int, Any], rows: int) -> pd.DataFrame:
    """Columns added one by one, in another order, are blocks of their own until pandas tidies up."""
    frame = pd.DataFrame(index=pd.RangeIndex(rows))
    for at in reversed(list(cells)):
        frame[at] = cells[at]
    return frame[sorted(cells)]


# --- lists --------------------------------------------------------------------------------------


def plain() -> st.SearchStrategy[Any]:
    """Values that need no pickle, nested ones too."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )


def elements() -> st.SearchStrategy[Any]:
    """What a list may hold: anything that can be pickled, by its module or with large buffers too."""
    return (
        plain()
        | st.builds(Point, st.integers(), st.lists(st.text()))
        | st.builds(Point, st.sampled_from([np.arange(1_000.0), bytearray(b"x" * 9_000)]), st.just([]))
        | st.sampled_from([np.float32(1.5), np.int8(3), np.str_("x"), np.datetime64(7, "D"), np.True_])
        | st.sampled_from([{1, 2}, frozenset("ab"), range(3), print, Point, 1 + 2j, float("nan")])
        | st.dictionaries(st.text(max_size=2), st.builds(np.ones, st.sampled_from([0, 3, 2_000])), max_size=2)
        | st.sampled_from([datetime(2020, 1, 1), timedelta(1), b"x" * 100_000, "text" * 2_000])
    )


def same_element(one: Any, other: Any) -> bool:
    """Equal in type and content, nested too; nan equals nan."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return same_array(one, other)
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return same_element(vars(one), vars(other))
    if isinstance(one, dict):
        return same_element(list(one.items()), list(other.items()))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same_element, one, other))
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


# --- arguments of any kind ----------------------------------------------------------------------

Family = Callable[[int], st.SearchStrategy[Any]]


@st.composite
def argument_families(draw: Any) -> Family:
    """Of one kind and key, whatever the rows: from a number of rows to batches of as many."""
    match draw(st.sampled_from(["array", "objects", "frame", "series", "list"])):
        case "array" | "objects" as kind:
            dtype = draw(dtypes()) if kind == "array" else np.dtype(object)
            trailing = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
            seeds = st.integers(0, 2**16)
            return lambda rows: seeds.flatmap(lambda seed: layouts(_filled(dtype, (rows, *trailing), seed)))
        case "frame":
            names = draw(column_names())
            header = draw(labels(len(names)))
            return lambda rows: frames(names, header, rows)
        case "series":
            name = draw(st.sampled_from(sorted(COLUMN_VALUES)))
            title = draw(st.sampled_from([None, "s", 7, ("a", 1)]))
            return lambda rows: st.builds(
                lambda each, index: pd.Series(each.array, index=index, dtype=each.dtype, name=title),
                columns(name, rows),
                indexes(rows),
            )
    return lambda rows: st.lists(elements(), min_size=rows, max_size=rows)


@st.composite
def padded_families(draw: Any) -> Family:
    """Arrays of one dtype and shape but for their length, in any layout, that 0 can fill up."""
    # Without bytes that mean nothing, and without big-endian times: numpy's own pickle, which a list
    # of arrays goes through, makes them little-endian.
    dtype = draw(dtypes().filter(lambda dtype: dtype != "V5" and dtype.str[:2] not in (">M", ">m")))
    trailing = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    seeds = st.integers(0, 2**16)
    return lambda length: seeds.flatmap(lambda seed: layouts(_filled(dtype, (length, *trailing), seed)))


def assert_same(answer: Any, given: Any, index: Any = None) -> None:
    """An answer is what was given, but for labels: those of the call's first pandas argument."""
    if isinstance(given, (pd.DataFrame, pd.Series)):
        check = assert_frame_equal if isinstance(given, pd.DataFrame) else assert_series_equal
        check(answer.reset_index(drop=True), given.reset_index(drop=True), check_exact=True, check_freq=False)
        assert_index_equal(answer.index, given.index if index is None else index)
    elif isinstance(given, np.ndarray):
        assert same_array(answer, given)
    else:
        assert same_element(answer, given)
