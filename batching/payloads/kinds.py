"""What a payload kind is, and the two shapes of buffer that a payload becomes on the wire.

A kind knows one type of data with rows along its first axis: how to count, key,
join and cut the rows, and how to write them as buffers. Everything else (arguments,
several outputs, the caller's index) is the business of `batching.signature`.

Encoded, a batch is a few buffers, each of one of two shapes. Whoever forwards a
batch can cut and join its rows by these alone:

    Fixed   row_bytes bytes a row, rows back to back
    Var     one blob a row: u32 little-endian lengths, then the blobs back to back;
            the length 0xFFFFFFFF marks a missing value and has no bytes
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from batching._native.blobs import cut_blobs, holds_instance, lengths_of
from batching.errors import InvalidPayload, InvalidResult

__all__ = [
    "MISSING",
    "Encoded",
    "Fixed",
    "InvalidResult",
    "Kind",
    "Piece",
    "Var",
    "make_var",
    "refuse_pickle",
    "take_fixed",
    "take_var",
]

MISSING = 0xFFFFFFFF


class Fixed(NamedTuple):
    """A buffer of ``row_bytes`` bytes a row; ``data`` supports the buffer protocol."""

    row_bytes: int
    data: Any


class Var(NamedTuple):
    """A buffer of one blob a row: ``lengths`` as u32 little-endian, ``data`` their bytes."""

    lengths: Any
    data: Any


class Encoded(NamedTuple):
    """A payload or result as it travels.

    Attributes:
        key: canonical bytes; two payloads can be joined if and only if these are equal.
        rows: rows in every buffer.
        buffers: the arguments' buffers, one argument after the other.
    """

    key: bytes
    rows: int
    buffers: list[Fixed | Var]


class Piece(NamedTuple):
    """Rows ``first`` to ``first + rows`` of a batch."""

    batch: Any
    first: int
    rows: int


class Kind:
    """One kind of data. Subclass it, and name an instance in the runner's ``kinds``, to add a fourth.

    "Batch" below is a value with rows along its first axis, of a type that ``types`` names.
    Methods run in any thread, also at the same time, and must not change what they are given.

    Attributes:
        name: what the kind is called on the wire; unique among a runner's kinds.
        types: the exact types of batches and items; subclasses are not included.
    """

    name: ClassVar[str]
    types: tuple[type, ...] = ()

    def lift(self, item: Any) -> Any:
        """What `run` was given, as a batch of one row. Raises InvalidPayload."""
        raise NotImplementedError

    def lower(self, batch: Any) -> Any:
        """The only row of a batch, as `run` returns it."""
        raise NotImplementedError

    def item(self, batch: Any, row: int) -> Any:
        """One row of a batch, as `group_by` sees it."""
        return self.lower(self.join(self.key(batch), [Piece(batch, row, 1)]))

    def check(self, batch: Any) -> Any:
        """What `run_batch` was given, or `_run_batch` returned, in the form the other methods
        take. Raises InvalidPayload, saying why this value has no rows."""
        return batch

    def rows(self, batch: Any) -> int:
        """Rows of the batch."""
        return len(batch)

    def key(self, batch: Any) -> Hashable:
        """Two batches can be joined if and only if their keys are equal.

        Nested tuples of str, int and None, since the key travels as JSON; or a hashable whose
        attribute ``token`` is that.
        """
        return ()

    def load_key(self, token: Any, *, allow_pickle: bool) -> Any:
        """What `decode` gets of a key that has travelled. Kept, so it may cost something.
        Raises InvalidPayload for what `key` never gives."""
        return token

    def join(self, key: Any, pieces: Sequence[Piece]) -> Any:
        """One new batch of the pieces' rows, in order, in writable memory of its own."""
        raise NotImplementedError

    def cut(self, batch: Any, counts: Sequence[int], *, owned: bool) -> list[Any]:
        """The batch as consecutive batches of ``counts`` rows, each in writable memory of its own.

        ``owned`` says that nothing else refers to ``batch``: then its memory may be shared out.
        """
        first = 0
        parts = []
        for rows in counts:
            parts.append(self.join(self.key(batch), [Piece(batch, first, rows)]))
            first += rows
        return parts

    def encode(self, key: Any, batch: Any, *, allow_pickle: bool) -> Iterable[Fixed | Var]:
        """The buffers of a batch. Raises InvalidPayload when pickle is needed and not allowed."""
        raise NotImplementedError

    def decode(self, key: Any, buffers: Iterator[Fixed | Var], rows: int, *, allow_pickle: bool) -> Any:
        """The batch, in writable memory: over the buffers' own where that is writable.

        Takes as many buffers from the iterator as `encode` gave. Buffers come from another
        process: check with `take_fixed` and `take_var`. Raises InvalidPayload.
        """
        raise NotImplementedError

    def settled(self, batch: Any) -> Any:
        """What `decode` made, as the model gets it."""
        return batch

    def index(self, batch: Any) -> Any:
        """The caller's labels of the rows, or None where the kind has none."""
        return None

    def settle(self, batch: Any, rows: int) -> Any:
        """A result before it is cut: refuse labels that contradict the order of its rows."""
        return batch

    def relabel(self, batch: Any, index: Any) -> Any:
        """An answer with the caller's labels; ``index`` None: the plain ones."""
        return batch

    def describe(self, batch: Any) -> str:
        """Kind, dtype and shape in a few words, for messages."""
        return type(batch).__name__


def refuse_pickle(allow_pickle: bool, what: str) -> None:
    """Raise InvalidPayload unless pickle is allowed."""
    if not allow_pickle:
        raise InvalidPayload(f"pickle is not allowed on this connection, and {what} needs it")


def take_fixed(buffers: Iterator[Fixed | Var], row_bytes: int, rows: int) -> Any:
    """The data of the next buffer, checked to hold ``rows`` rows of ``row_bytes``."""
    buffer = next(buffers, None)
    if not isinstance(buffer, Fixed) or buffer.row_bytes != row_bytes:
        raise InvalidPayload(f"expected a buffer of {row_bytes} bytes a row, got {_shape(buffer)}")
    size = memoryview(buffer.data).nbytes
    if size != row_bytes * rows:
        raise InvalidPayload(f"{rows} rows of {row_bytes} bytes are {row_bytes * rows} bytes, got {size}")
    return buffer.data


def take_var(buffers: Iterator[Fixed | Var], rows: int) -> list[memoryview | bytes | None]:
    """The blobs of the next buffer, one a row; None where missing. Large ones are views of it."""
    buffer = next(buffers, None)
    if not isinstance(buffer, Var):
        raise InvalidPayload(f"expected one blob a row, got {_shape(buffer)}")
    return cut_blobs(buffer.data, buffer.lengths, rows)


def make_var(blobs: Sequence[Any]) -> Var:
    """One buffer of the blobs, each bytes or alike; None is a missing value."""
    blobs = list(blobs)
    lengths = lengths_of(blobs)
    # Not `in`, which would compare: some are arrays.
    if holds_instance(blobs, type(None)):
        blobs = [blob for blob in blobs if blob is not None]
    return Var(lengths, blobs[0] if len(blobs) == 1 else b"".join(blobs))


def _shape(buffer: Fixed | Var | None) -> str:
    if buffer is None:
        return "none"
    return f"{buffer.row_bytes} bytes a row" if isinstance(buffer, Fixed) else "one blob a row"
