"""One column as arrays of fixed width, or as values that have none, and back.

A `Codec` is chosen by dtype. numpy dtypes are their own bytes; categories are codes, the
nullable dtypes values and a mask, times in a zone are those in UTC. Strings and everything
unusual have no fixed width: UTF-8, or one pickle, a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from batching.errors import InvalidPayload

from . import pickling
from .kinds import Var, make_var, refuse_pickle

__all__ = [
    "Codec",
    "categories_of",
    "check_codes",
    "codec_of",
    "column_array",
    "decode_values",
    "encode_values",
]


class Codec(NamedTuple):
    """How a column of one dtype is kept.

    Attributes:
        role: "raw", "zoned", "codes", "masked": of fixed width; "text", "pickle": not.
        storage: the dtypes of its parts.
        parts: the arrays that an array of the dtype consists of.
        whole: dtype and parts to the array.
    """

    role: str
    storage: Callable[[Any], list[np.dtype[Any]]]
    parts: Callable[[Any], list[Any]]
    whole: Callable[[Any, Sequence[Any]], Any]


def column_array(series: Any) -> Any:
    """The values of a Series as an array of exactly its dtype."""
    return series.to_numpy() if isinstance(series.dtype, np.dtype) else series.array


def codec_of(dtype: Any) -> Codec:
    """The codec of a column's dtype."""
    if isinstance(dtype, np.dtype):
        return _PICKLED if dtype.hasobject else _RAW
    if isinstance(dtype, pd.CategoricalDtype):
        return _CODES
    if isinstance(dtype, pd.DatetimeTZDtype):
        return _ZONED
    if isinstance(dtype, pd.StringDtype):
        return _TEXT
    return _MASKED if type(dtype).__name__ in _MASKED_TYPES else _PICKLED


_MASKED_TYPES = {
    *(f"{sign}Int{bits}Dtype" for sign in ("", "U") for bits in (8, 16, 32, 64)),
    "Float32Dtype",
    "Float64Dtype",
    "BooleanDtype",
}


# --- fixed width ------------------------------------------------------------------------------


def _codes_dtype(dtype: Any) -> list[np.dtype[Any]]:
    # What pandas itself would choose for so many categories.
    return [pd.Categorical.from_codes(np.empty(0, dtype=np.int8), dtype=dtype).codes.dtype]


def categories_of(dtype: Any) -> int:
    """How many categories a CategoricalDtype has."""
    return 0 if dtype.categories is None else len(dtype.categories)


def check_codes(codes: Any, categories: int) -> None:
    """Raise InvalidPayload for a code without a category: pandas would read beyond its table."""
    if codes.size == 1:
        fine = -1 <= codes.item() < categories
    else:
        fine = codes.size == 0 or (codes.min() >= -1 and codes.max() < categories)
    if not fine:
        raise InvalidPayload(f"a code is out of the range of {categories} categories")


def _zoned_parts(array: Any) -> list[Any]:
    return [array.asi8.view(f"M8[{array.dtype.unit}]")]


def _zoned_whole(dtype: Any, parts: Sequence[Any]) -> Any:
    return pd.DatetimeIndex(parts[0]).tz_localize("UTC").tz_convert(dtype.tz).array


def _masked_parts(array: Any) -> list[Any]:
    values = array.to_numpy(dtype=array.dtype.numpy_dtype, na_value=array.dtype.type(0))
    return [values, np.asarray(array.isna())]


def _masked_whole(dtype: Any, parts: Sequence[Any]) -> Any:
    return dtype.construct_array_type()(*parts)


_RAW = Codec("raw", lambda dtype: [dtype], lambda array: [np.asarray(array)], lambda dtype, parts: parts[0])
_ZONED = Codec("zoned", lambda dtype: [np.dtype(f"M8[{dtype.unit}]")], _zoned_parts, _zoned_whole)
_CODES = Codec(
    "codes",
    _codes_dtype,
    lambda array: [array.codes],
    lambda dtype, parts: pd.Categorical.from_codes(parts[0], dtype=dtype),
)
_MASKED = Codec("masked", lambda dtype: [dtype.numpy_dtype, np.dtype(bool)], _masked_parts, _masked_whole)

# --- no fixed width ---------------------------------------------------------------------------


def _nothing(*_: Any) -> list[Any]:
    return []


_TEXT = Codec("text", _nothing, _nothing, _nothing)
_PICKLED = Codec("pickle", _nothing, _nothing, _nothing)


def encode_values(array: Any, role: str, *, allow_pickle: bool) -> Var:
    """A column of no fixed width as one blob a row; a missing string is a missing blob."""
    if role == "text":
        blobs = [
            value.encode("utf-8", "surrogatepass") if isinstance(value, str) else None for value in array
        ]
        return make_var(blobs)
    refuse_pickle(allow_pickle, f"a column of dtype {array.dtype}")
    return make_var(pickling.dumps_each(list(array)))


def decode_values(blobs: Sequence[Any], dtype: Any, role: str, *, allow_pickle: bool) -> Any:
    """The column again: an array of its dtype, or, for text, an object ndarray of it."""
    values = np.empty(len(blobs), dtype=object)
    if role == "text":
        missing = dtype.na_value
        for row, blob in enumerate(blobs):
            values[row] = missing if blob is None else str(blob, "utf-8", "surrogatepass")
        return values
    refuse_pickle(allow_pickle, f"a column of dtype {dtype}")
    for row, blob in enumerate(blobs):
        if blob is None:
            raise InvalidPayload(f"row {row} of a column is missing")
        values[row] = pickling.loads(blob)
    if isinstance(dtype, np.dtype):
        return values
    return dtype.construct_array_type()._from_sequence(values.tolist(), dtype=dtype)
