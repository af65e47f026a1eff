"""One column of a frame as buffers and back, and the tokens of dtypes and labels.

A codec is chosen by dtype: raw bytes for numpy dtypes, codes for categories, values and
mask for the nullable ones, UTF-8 for strings, one pickle a row for everything else.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import pandas_dtype

from batching.errors import InvalidPayload

from . import pickling
from .canonical import freeze, thaw
from .kinds import Fixed, Var, make_var, refuse_pickle, take_fixed, take_var
from .numpy_kind import array_over, dtype_from_token, dtype_token, raw_bytes

__all__ = ["codec_of", "column_array", "column_dtype", "column_token", "labels", "labels_token"]


class Codec(NamedTuple):
    """How a column of one dtype travels.

    Attributes:
        needs_pickle: whether its buffers hold pickles.
        encode: an array of the dtype to buffers.
        decode: dtype, buffers and rows to an array of the dtype.
    """

    needs_pickle: bool
    encode: Callable[[Any], list[Fixed | Var]]
    decode: Callable[[Any, Iterator[Fixed | Var], int], Any]


# --- dtypes -----------------------------------------------------------------------------------


def column_token(dtype: Any) -> Hashable:
    """The dtype of a column as plain text or tuples: equal exactly when the dtypes are."""
    if isinstance(dtype, np.dtype):
        return dtype_token(dtype)
    if isinstance(dtype, pd.CategoricalDtype):
        if dtype.categories is None:
            return "category", int(bool(dtype.ordered)), None
        return "category", int(bool(dtype.ordered)), labels_token(dtype.categories)
    if isinstance(dtype, pd.StringDtype):
        # Its name says neither where the strings are kept nor what stands for a missing one.
        return "string", dtype.storage, "nan" if dtype.na_value is not pd.NA else "NA"
    name = str(dtype)
    try:
        known = pandas_dtype(name)
        plain = known == dtype and type(known) is type(dtype) and _same_zone(known, dtype)
    except (TypeError, ValueError):
        plain = False
    return ("pandas", name) if plain else ("pickle", _pickled(dtype))


def column_dtype(token: Any, *, allow_pickle: bool) -> Any:
    """The dtype again. Raises InvalidPayload for what is none."""
    match token:
        case ("category", ordered, None):
            return pd.CategoricalDtype(ordered=bool(ordered))
        case ("category", ordered, categories):
            return pd.CategoricalDtype(labels(categories, allow_pickle=allow_pickle), bool(ordered))
        case ("string", str(storage), "NA"):
            return pd.StringDtype(storage)
        case ("string", str(storage), "nan"):
            return pd.StringDtype(storage, na_value=np.nan)
        case ("pandas", str(name)):
            return pandas_dtype(name)
        case ("pickle", str(text)):
            dtype = _unpickled(text, allow_pickle)
            if not isinstance(dtype, (np.dtype, pd.api.extensions.ExtensionDtype)):
                raise InvalidPayload(f"not a dtype: {dtype!r:.80}")
            return dtype
    return dtype_from_token(token, allow_pickle=allow_pickle)


def _same_zone(known: Any, dtype: Any) -> bool:
    return type(getattr(known, "tz", None)) is type(getattr(dtype, "tz", None))


def _pickled(value: Any) -> str:
    return base64.b64encode(pickling.dumps(value)).decode("ascii")


def _unpickled(text: str, allow_pickle: bool) -> Any:
    refuse_pickle(allow_pickle, "a label or dtype")
    try:
        return pickling.loads(base64.b64decode(text))
    except Exception as error:
        raise InvalidPayload(f"a label or dtype cannot be unpickled: {error}") from error


# --- labels: columns and categories -----------------------------------------------------------


def labels_token(index: Any) -> Hashable:
    """An Index as plain text or tuples: its type, dtype, names and values."""
    if isinstance(index, pd.MultiIndex):
        levels = tuple(labels_token(index.get_level_values(i)) for i in range(index.nlevels))
        return "multi", levels
    name = freeze(index.name)
    if isinstance(index, pd.RangeIndex):
        return "range", index.start, index.stop, index.step, name
    dtype = index.dtype
    if type(index) is not pd.Index:
        return "pickle", _pickled(index)
    if isinstance(dtype, np.dtype) and not dtype.hasobject:
        return "raw", dtype_token(dtype), index.to_numpy().tobytes().hex(), name
    if isinstance(dtype, (np.dtype, pd.StringDtype)):
        return "values", column_token(dtype), tuple(map(freeze, index)), name
    return "pickle", _pickled(index)


def labels(token: Any, *, allow_pickle: bool) -> Any:
    """The Index again. Raises InvalidPayload for what is none."""
    try:
        return _read_labels(token, allow_pickle)
    except InvalidPayload:
        raise
    except Exception as error:
        raise InvalidPayload(f"not an Index: {str(token)[:80]}") from error


def _read_labels(token: Any, allow_pickle: bool) -> Any:
    match token:
        case ("multi", levels):
            indexes = [labels(level, allow_pickle=allow_pickle) for level in levels]
            return pd.MultiIndex.from_arrays(indexes, names=[index.name for index in indexes])
        case ("range", start, stop, step, name):
            return pd.RangeIndex(start, stop, step, name=thaw(name, allow_pickle=allow_pickle))
        case ("raw", dtype, text, name):
            values = np.frombuffer(
                bytearray.fromhex(text), dtype=dtype_from_token(dtype, allow_pickle=allow_pickle)
            )
            return pd.Index(values, dtype=values.dtype, name=thaw(name, allow_pickle=allow_pickle))
        case ("values", dtype, frozen, name):
            items = np.empty(len(frozen), dtype=object)
            items[:] = [thaw(item, allow_pickle=allow_pickle) for item in frozen]
            return pd.Index(
                items,
                dtype=column_dtype(dtype, allow_pickle=allow_pickle),
                name=thaw(name, allow_pickle=allow_pickle),
                tupleize_cols=False,
            )
        case ("pickle", text):
            index = _unpickled(text, allow_pickle)
            if isinstance(index, pd.Index):
                return index
    raise InvalidPayload(f"not an Index: {str(token)[:80]}")


def column_array(series: Any) -> Any:
    """The values of a Series as an array of exactly its dtype."""
    return series.to_numpy() if isinstance(series.dtype, np.dtype) else series.array


# --- codecs -----------------------------------------------------------------------------------


def codec_of(dtype: Any) -> Codec:
    """The codec of a column's dtype."""
    if isinstance(dtype, np.dtype):
        return _PICKLED if dtype.hasobject else _RAW
    if isinstance(dtype, pd.CategoricalDtype):
        return _CATEGORICAL
    if isinstance(dtype, pd.DatetimeTZDtype):
        return _ZONED
    if isinstance(dtype, pd.StringDtype):
        return _TEXT
    if type(dtype).__name__ in _MASKED_TYPES:
        return _MASKED
    return _PICKLED


_MASKED_TYPES = {
    *(f"{sign}Int{bits}Dtype" for sign in ("", "U") for bits in (8, 16, 32, 64)),
    "Float32Dtype",
    "Float64Dtype",
    "BooleanDtype",
}


def _encode_raw(array: Any) -> list[Fixed | Var]:
    values = np.asarray(array)
    return [Fixed(values.dtype.itemsize, raw_bytes(values))]


def _decode_raw(dtype: Any, buffers: Iterator[Fixed | Var], rows: int) -> Any:
    return array_over(take_fixed(buffers, dtype.itemsize, rows), dtype, (rows,))


def _encode_categorical(array: Any) -> list[Fixed | Var]:
    return _encode_raw(array.codes)


def _decode_categorical(dtype: Any, buffers: Iterator[Fixed | Var], rows: int) -> Any:
    categories = 0 if dtype.categories is None else len(dtype.categories)
    codes = pd.Categorical.from_codes(np.empty(0, dtype=np.int8), dtype=dtype).codes.dtype
    values = _decode_raw(codes, buffers, rows)
    if rows and (values.min() < -1 or values.max() >= categories):
        raise InvalidPayload(f"a code is out of the range of {categories} categories")
    return pd.Categorical.from_codes(values, dtype=dtype)


def _encode_zoned(array: Any) -> list[Fixed | Var]:
    return _encode_raw(array.asi8)


def _decode_zoned(dtype: Any, buffers: Iterator[Fixed | Var], rows: int) -> Any:
    values = _decode_raw(np.dtype(np.int64), buffers, rows).view(f"M8[{dtype.unit}]")
    return pd.DatetimeIndex(values).tz_localize("UTC").tz_convert(dtype.tz).array


def _encode_masked(array: Any) -> list[Fixed | Var]:
    mask = np.asarray(array.isna())
    values = array.to_numpy(dtype=array.dtype.numpy_dtype, na_value=array.dtype.type(0))
    return [*_encode_raw(values), *_encode_raw(mask)]


def _decode_masked(dtype: Any, buffers: Iterator[Fixed | Var], rows: int) -> Any:
    values = _decode_raw(dtype.numpy_dtype, buffers, rows)
    mask = _decode_raw(np.dtype(bool), buffers, rows)
    return dtype.construct_array_type()(values, mask)


def _encode_text(array: Any) -> list[Fixed | Var]:
    missing = array.isna()
    blobs = [
        None if absent else text.encode("utf-8", "surrogatepass")
        for text, absent in zip(array, missing, strict=True)
    ]
    return [make_var(blobs)]


def _decode_text(dtype: Any, buffers: Iterator[Fixed | Var], rows: int) -> Any:
    values = np.empty(rows, dtype=object)
    values[:] = [
        dtype.na_value if blob is None else str(blob, "utf-8", "surrogatepass")
        for blob in take_var(buffers, rows)
    ]
    return pd.array(values, dtype=dtype)


def _encode_pickled(array: Any) -> list[Fixed | Var]:
    return [make_var([pickling.dumps(value) for value in array])]


def _decode_pickled(dtype: Any, buffers: Iterator[Fixed | Var], rows: int) -> Any:
    values = np.empty(rows, dtype=object)
    for row, blob in enumerate(take_var(buffers, rows)):
        if blob is None:
            raise InvalidPayload(f"row {row} of a column is missing")
        values[row] = pickling.loads(blob)
    return values if isinstance(dtype, np.dtype) else pd.array(values, dtype=dtype)


_RAW = Codec(False, _encode_raw, _decode_raw)
_CATEGORICAL = Codec(False, _encode_categorical, _decode_categorical)
_ZONED = Codec(False, _encode_zoned, _decode_zoned)
_MASKED = Codec(False, _encode_masked, _decode_masked)
_TEXT = Codec(False, _encode_text, _decode_text)
_PICKLED = Codec(True, _encode_pickled, _decode_pickled)
