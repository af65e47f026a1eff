"""Records: what the wire protocol says, as Python objects; and the limits of docs/protocol.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

__all__ = [
    "HELLO",
    "INLINE_MAX_BYTES",
    "MAGIC",
    "MAX_BUFFERS",
    "MAX_KEY_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_NAME_BYTES",
    "MAX_RECORDS",
    "MAX_ROWS",
    "MAX_TEXT_BYTES",
    "MISSING",
    "NONE",
    "VAR",
    "VERSION",
    "Buffer",
    "Bytes",
    "Code",
    "Failure",
    "Greeting",
    "Method",
    "Plain",
    "Record",
    "Role",
    "Rows",
    "Type",
]

VERSION = 1
MAGIC = b"BATC"

# Larger data is sent as a frame of its own: a copy of this size costs about as
# much as one more message part.
INLINE_MAX_BYTES = 16_384

MAX_MESSAGE_BYTES = 2**31
MAX_RECORDS = 65_536
MAX_ROWS = 2**31 - 1
MAX_BUFFERS = 4_096
MAX_KEY_BYTES = 1 << 20
MAX_NAME_BYTES = 255
MAX_TEXT_BYTES = 1 << 20  # a description, metadata, the texts of an error

VAR = -1  # in place of a row size: one blob per row
MISSING = 0xFFFFFFFF  # in place of a blob's length: this row has none
NONE = -1  # a number that is not there

Bytes = bytes | bytearray | memoryview


class Type(IntEnum):
    """What a record is."""

    HELLO = 1
    WELCOME = 2
    CALL = 3
    ANSWER = 4
    ERROR = 5
    CANCEL = 6
    BATCH = 7
    RESULT = 8
    PING = 9
    PONG = 10
    STOP = 11
    BYE = 12


class Role(IntEnum):
    """Who greets."""

    CLIENT = 1
    WORKER = 2
    DISPATCHER = 3


class Method(IntEnum):
    """What a CALL asks for."""

    RUN = 0
    STATISTICS = 1


class Code(IntEnum):
    """What an ERROR record says."""

    INVALID_PAYLOAD = 1
    OVERLOADED = 2
    DEADLINE_EXCEEDED = 3
    RUNNER_ERROR = 4
    WORKER_DIED = 5
    UNREACHABLE = 6
    CLOSED = 7
    MALFORMED = 8
    BAD_RESULT = 9


HELLO = Type.HELLO


@dataclass(slots=True)
class Buffer:
    """One buffer of an argument or a result: `rows` rows, in one or several chunks.

    A chunk boundary is always a row boundary. `lengths` (VAR only) has one entry
    per row, `MISSING` for a row without a blob.
    """

    row_bytes: int
    chunks: list[Bytes]
    lengths: Sequence[int] | None = None

    @property
    def data_bytes(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


@dataclass(slots=True)
class Rows:
    """CALL, BATCH, RESULT, ANSWER."""

    type: int
    id: int
    rows: int
    key: bytes
    buffers: list[Buffer]
    budget_ns: int = NONE
    padded_rows: int = NONE
    method: int = 0
    metadata: bytes = b""
    client: int = 0  # of a CALL: whose it is among those of one connection

    def __post_init__(self) -> None:
        if self.padded_rows == NONE:
            self.padded_rows = self.rows


@dataclass(slots=True)
class Greeting:
    """HELLO, WELCOME."""

    type: int
    role: int
    name: str
    description: bytes = b""
    credits: int = 0
    pid: int = 0
    lowest: int = VERSION
    highest: int = VERSION
    id: int = 0


@dataclass(slots=True)
class Failure:
    """ERROR. `number` is predicted nanoseconds (OVERLOADED) or a signal (WORKER_DIED)."""

    id: int
    code: int
    message: str
    type_name: str = ""
    traceback: str = ""
    cause: bytes = b""
    exit_code: int = NONE
    number: int = NONE
    type: int = field(default=Type.ERROR, init=False)


@dataclass(slots=True)
class Plain:
    """CANCEL, PING, PONG, STOP, BYE: a type and an id."""

    type: int
    id: int = 0


Record = Rows | Greeting | Failure | Plain
