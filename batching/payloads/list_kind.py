"""Lists: any element, handed on by reference in one process, one pickle each between two."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from . import pickling
from .canonical import PLAIN, dumps_plain
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

    def check(self, batch: Any) -> list[Any]:
        return batch if type(batch) is list else list(batch)

    def key(self, batch: list[Any]) -> Hashable:
        return ()

    def join(self, key: Any, pieces: Sequence[Piece]) -> list[Any]:
        joined: list[Any] = []
        for batch, first, rows in pieces:
            joined += batch[first : first + rows]
        return joined

    def encode(self, key: Any, batch: list[Any], *, allow_pickle: bool) -> Iterable[Fixed | Var]:
        blobs = pickling.dumps_each(batch) if allow_pickle else [dumps_plain(element) for element in batch]
        return [make_var(blobs)]

    def decode(self, key: Any, buffers: Iterator[Fixed | Var], rows: int, *, allow_pickle: bool) -> list[Any]:
        blobs = take_var(buffers, rows)
        if not allow_pickle:
            refuse_pickle(all(not blob or blob[0] == PLAIN for blob in blobs), "a list's element")
        return pickling.loads_each(blobs)

    def describe(self, batch: list[Any]) -> str:
        return f"list of {len(batch)}"
