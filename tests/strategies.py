"""What can be batched, drawn by Hypothesis: shared by the tests of kinds, engines and services."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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
    if dtype.kind in "US" or dtype.names is not None:
        noise %= 2
        if dtype.kind == "U" or dtype.names is not None:
            # Few bits: every code point must be one.
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
