"""The layout of a frame: its columns as a few arrays, and those as buffers.

Columns of fixed width are gathered into *fields*: all columns of one numpy dtype are one
field, an array of (columns, rows), as pandas itself keeps them. On the wire all fields of a
row stand side by side in one record, so that a batch is joined by one copy a caller. The
*others*, strings and everything unusual, are one array and one buffer of blobs each.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from batching.errors import InvalidPayload

from .kinds import Fixed, Var, take_fixed, take_var
from .pandas_columns import categories_of, check_codes, codec_of, decode_values, encode_values
from .pandas_tokens import column_dtype, column_token, labels, labels_token

__all__ = ["Columns", "Field", "FrameLayout", "Other"]


class Field(NamedTuple):
    """Columns of one storage dtype; ``offset`` is where a row's record has them."""

    storage: np.dtype[Any]
    columns: tuple[int, ...]
    role: str
    part: int
    offset: int


class Other(NamedTuple):
    """A column of no fixed width."""

    column: int
    role: str


class Columns(NamedTuple):
    """The content of a frame: an array of (columns, rows) a field, one array an other column."""

    fields: list[Any]
    others: list[Any]
    rows: int


class FrameLayout:
    """Names and dtypes of a frame's columns. Two are equal if the frames can be joined.

    Attributes:
        token: all of it as nested tuples of text.
        columns: the names, an Index.
        dtypes: one for each column.
        fields, others: as which arrays the columns are kept.
        row_bytes: size of a row's record.
    """

    def __init__(self, token: Hashable, columns: Any, dtypes: Sequence[Any]) -> None:
        self.token = token
        self.columns = columns
        self.dtypes = list(dtypes)
        self._hash = hash(token)
        self.fields: list[Field] = []
        self.others: list[Other] = []
        self.row_bytes = 0
        self._arrange()

    @classmethod
    def of(cls, columns: Any, dtypes: Sequence[Any]) -> FrameLayout:
        token = (labels_token(columns), tuple(column_token(dtype) for dtype in dtypes))
        return cls(token, columns, dtypes)

    @classmethod
    def from_token(cls, token: Any, *, allow_pickle: bool) -> FrameLayout:
        """The layout again. Raises InvalidPayload."""
        match token:
            case (tuple(names), tuple(tokens)):
                columns = labels(names, allow_pickle=allow_pickle)
            case _:
                raise InvalidPayload(f"not the key of a DataFrame: {str(token)[:80]}")
        if len(columns) != len(tokens):
            raise InvalidPayload(f"{len(columns)} column names and {len(tokens)} dtypes")
        return cls(token, columns, [column_dtype(each, allow_pickle=allow_pickle) for each in tokens])

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, FrameLayout) and self._hash == other._hash and self.token == other.token

    def __hash__(self) -> int:
        return self._hash

    def _arrange(self) -> None:
        raw: dict[np.dtype[Any], list[int]] = {}
        places: list[tuple[np.dtype[Any], list[int], str, int]] = []
        for column, dtype in enumerate(self.dtypes):
            role, storage, *_ = codec_of(dtype)
            if role == "raw" and dtype in raw:
                raw[dtype].append(column)
            elif role == "raw":
                raw[dtype] = [column]
                places.append((dtype, raw[dtype], role, 0))
            elif role in ("text", "pickle"):
                self.others.append(Other(column, role))
            else:
                places += [(part, [column], role, at) for at, part in enumerate(storage(dtype))]
        # Strictest alignment first: then every field of a single record is aligned where it lies.
        self._order = sorted(range(len(places)), key=lambda at: -places[at][0].alignment)
        offsets = [0] * len(places)
        for at in self._order:
            offsets[at] = self.row_bytes
            self.row_bytes += places[at][0].itemsize * len(places[at][1])
        self.fields = [
            Field(part, tuple(columns), role, at, offset)
            for (part, columns, role, at), offset in zip(places, offsets, strict=True)
        ]
        # Which fields are codes, and of how many categories.
        self._categories = [
            (at, categories_of(self.dtypes[field.columns[0]]))
            for at, field in enumerate(self.fields)
            if field.role == "codes"
        ]

    # --- content -----------------------------------------------------------------------------

    def join(self, pieces: Sequence[tuple[Columns, int, int]]) -> Columns:
        """Rows of several contents as one, in memory of its own."""
        whole = [first == 0 and rows == content.rows for content, first, rows in pieces]
        fields = []
        for at in range(len(self.fields)):
            arrays = [
                content.fields[at] if all_rows else content.fields[at][:, first : first + rows]
                for (content, first, rows), all_rows in zip(pieces, whole, strict=True)
            ]
            fields.append(np.concatenate(arrays, axis=1, dtype=self.fields[at].storage))
        others = []
        for at in range(len(self.others)):
            values = [
                content.others[at] if all_rows else content.others[at][first : first + rows]
                for (content, first, rows), all_rows in zip(pieces, whole, strict=True)
            ]
            others.append(_concatenated(values))
        return Columns(fields, others, sum(rows for _, _, rows in pieces))

    def cut(self, content: Columns, first: int, rows: int) -> Columns:
        """Some rows, in memory of their own."""
        end = first + rows
        fields = [field[:, first:end].copy() for field in content.fields]
        return Columns(fields, [other[first:end].copy() for other in content.others], rows)

    # --- buffers -----------------------------------------------------------------------------

    def encode(self, content: Columns, *, allow_pickle: bool) -> Iterable[Fixed | Var]:
        buffers: list[Fixed | Var] = []
        if self.fields:
            buffers.append(Fixed(self.row_bytes, self._records(content)))
        for values, other in zip(content.others, self.others, strict=True):
            buffers.append(encode_values(values, other.role, allow_pickle=allow_pickle))
        return buffers

    def _records(self, content: Columns) -> Any:
        if content.rows == 1:
            return b"".join([content.fields[at].tobytes() for at in self._order])
        records = np.empty((content.rows, self.row_bytes), dtype=np.uint8)
        for values, field in zip(content.fields, self.fields, strict=True):
            end = field.offset + field.storage.itemsize * len(field.columns)
            records[:, field.offset : end].view(field.storage)[...] = values.T
        return records.reshape(-1).data if records.size else b""

    def decode(self, buffers: Iterator[Fixed | Var], rows: int, *, allow_pickle: bool) -> Columns:
        fields: list[Any] = []
        if self.fields:
            data = take_fixed(buffers, self.row_bytes, rows)
            fields = self._one_row(data) if rows == 1 else self._many_rows(data, rows)
            for at, categories in self._categories:
                check_codes(fields[at], categories)
        others = [
            decode_values(take_var(buffers, rows), self.dtypes[column], role, allow_pickle=allow_pickle)
            for column, role in self.others
        ]
        return Columns(fields, others, rows)

    def _one_row(self, data: Any) -> list[Any]:
        own = bytearray(data)
        return [
            np.frombuffer(own, storage, len(columns), offset).reshape(-1, 1)
            for storage, columns, _, _, offset in self.fields
        ]

    def _many_rows(self, data: Any, rows: int) -> list[Any]:
        records = np.frombuffer(data, dtype=np.uint8).reshape(rows, self.row_bytes)
        return [
            records[:, offset : offset + storage.itemsize * len(columns)].view(storage).T.copy()
            for storage, columns, _, _, offset in self.fields
        ]


def _concatenated(values: list[Any]) -> Any:
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    if len(values) == 1:
        return values[0].copy()
    return type(values[0])._concat_same_type(values)
