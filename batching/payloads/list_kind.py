"""Lists: any element, handed on by reference in one process, one pickle each between two."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from batching.errors import InvalidPayload

from . import pickling
from .kinds import Fixed, Kind, Piece, Var, make_var, refuse_pickle, take_var

__all__ = ["ListKind"]


class ListKind(Kind):
    """A list of n elements; also what `run` makes of everything that no other kind claims."""

    name = "list"
    types = (list,)

    def lift(self, item: Any) -> list[Any]:
        return [item]

    def lower(self, batch: list[Any]) -> Any:
        return batch[0]

    def item(self, batch: list[Any], row: int) -> Any:
        return batch[row]

    def key(self, batch: list[Any]) -> Hashable:
        return ()

    def join(self, key: Any, pieces: Sequence[Piece]) -> list[Any]:
        joined: list[Any] = []
        for batch, first, rows in pieces:
            joined += batch[first : first + rows]
        return joined

    def encode(self, key: Any, batch: list[Any], *, allow_pickle: bool) -> Iterable[Fixed | Var]:
        refuse_pickle(allow_pickle, "a list")
        return [make_var([pickling.dumps(element) for element in batch])]

    def decode(self, key: Any, buffers: Iterator[Fixed | Var], rows: int, *, allow_pickle: bool) -> list[Any]:
        refuse_pickle(allow_pickle, "a list")
        return [_element(blob) for blob in take_var(buffers, rows)]

    def describe(self, batch: list[Any]) -> str:
        return f"list of {len(batch)}"


def _element(blob: memoryview | None) -> Any:
    if blob is None:
        raise InvalidPayload("an element of a list is missing")
    return pickling.loads(blob)
