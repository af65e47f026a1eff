"""Dtypes and labels of pandas as plain text or tuples, for keys: equal exactly when they are.

What has no plain form is pickled into the token; two equal such labels may then differ, which
costs a separate batch, never a wrong one.
"""

from __future__ import annotations

import base64
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import pandas_dtype

from batching.errors import InvalidPayload

from . import pickling
from .canonical import freeze, thaw
from .kinds import refuse_pickle
from .numpy_kind import dtype_from_token, dtype_token
from .pandas_columns import codec_of

__all__ = ["column_dtype", "column_token", "labels", "labels_token"]

_MOST_LABELS = 1 << 20


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
    if isinstance(index, pd.IntervalIndex):
        return "interval", index.closed, labels_token(index.left), labels_token(index.right), name
    dtype = index.dtype
    codec = codec_of(dtype)
    if codec.role == "pickle" and not isinstance(dtype, np.dtype):
        return "pickle", _pickled(index)
    if codec.role in ("text", "pickle"):
        return "values", column_token(dtype), tuple(map(freeze, index)), name
    parts = codec.parts(index.to_numpy() if isinstance(dtype, np.dtype) else index.array)
    return "fixed", column_token(dtype), tuple(part.tobytes().hex() for part in parts), name


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
            # A few digits name any number of labels; what a key could spell out is enough.
            if len(range(start, stop, step)) > _MOST_LABELS:
                raise InvalidPayload(f"at most {_MOST_LABELS} labels can travel, got {start} to {stop}")
            return pd.RangeIndex(start, stop, step, name=thaw(name, allow_pickle=allow_pickle))
        case ("interval", closed, left, right, name):
            ends = [labels(end, allow_pickle=allow_pickle) for end in (left, right)]
            make: Any = pd.IntervalIndex.from_arrays
            return make(*ends, closed, name=thaw(name, allow_pickle=allow_pickle))
        case ("fixed", token, texts, name):
            dtype = column_dtype(token, allow_pickle=allow_pickle)
            codec = codec_of(dtype)
            parts = [
                np.frombuffer(bytearray.fromhex(text), dtype=part)
                for text, part in zip(texts, codec.storage(dtype), strict=True)
            ]
            values: Any = codec.whole(dtype, parts)
        case ("values", token, frozen, name):
            dtype = column_dtype(token, allow_pickle=allow_pickle)
            values = np.empty(len(frozen), dtype=object)
            values[:] = [thaw(item, allow_pickle=allow_pickle) for item in frozen]
        case ("pickle", text):
            index = _unpickled(text, allow_pickle)
            if not isinstance(index, pd.Index):
                raise InvalidPayload(f"not an Index: {index!r:.80}")
            return index
        case _:
            raise InvalidPayload(f"not an Index: {str(token)[:80]}")
    name = thaw(name, allow_pickle=allow_pickle)
    return pd.Index(values, dtype=dtype, name=name, tupleize_cols=False)
