"""The wire protocol in pure Python: bytes to records and back.

What it is      the codec of docs/protocol.md, used by the plain pyzmq links and
                as the twin that the native codec is checked against.
Guarantees      1. `parse` reads no byte before its length was checked, and raises
                   nothing but `BadPacket`, whatever it is given;
                2. what `Packet` builds, `parse` reads back unchanged.
Not promised    that a key or a blob means anything: nobody reads them here.
Why this shape  one packet holds many records, so that what becomes due in one turn
                travels as one message; buffers stay views of the frames they came in.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from .records import (
    HELLO,
    INLINE_MAX_BYTES,
    MAGIC,
    MAX_BUFFERS,
    MAX_KEY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_NAME_BYTES,
    MAX_RECORDS,
    MAX_ROWS,
    MAX_TEXT_BYTES,
    MISSING,
    NONE,
    VAR,
    VERSION,
    Buffer,
    Bytes,
    Code,
    Failure,
    Greeting,
    Method,
    Plain,
    Record,
    Role,
    Rows,
    Type,
)

__all__ = [
    "HELLO",
    "INLINE_MAX_BYTES",
    "MAX_KEY_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_NAME_BYTES",
    "MAX_TEXT_BYTES",
    "MISSING",
    "NONE",
    "VAR",
    "VERSION",
    "BadPacket",
    "Buffer",
    "Code",
    "Failure",
    "Greeting",
    "Method",
    "Packet",
    "Plain",
    "Record",
    "Role",
    "Rows",
    "Type",
    "message_bytes",
    "parse",
]

_PACKET = struct.Struct("<4sHHII")
_RECORD = struct.Struct("<BBHIQ")
_GREETING = struct.Struct("<HHHHIIII")
_ROWS = struct.Struct("<qIIHHIII")
_BUFFER = struct.Struct("<QiI")
_ERROR = struct.Struct("<HHiqIIII")

_GREETINGS = frozenset((Type.HELLO, Type.WELCOME))
_WITH_ROWS = frozenset((Type.CALL, Type.ANSWER, Type.BATCH, Type.RESULT))
_ASKING = frozenset((Type.CALL, Type.BATCH))
_WITH_BUDGET = frozenset((Type.CALL, Type.BATCH))


class BadPacket(Exception):
    """A message that breaks a rule. `ids` are the calls or batches in it that could still be read."""

    def __init__(self, rule: str, ids: Sequence[int] = ()) -> None:
        super().__init__(rule)
        self.ids = list(ids)


def _padded(size: int) -> int:
    return (size + 7) & ~7


# ---- building -----------------------------------------------------------------


class Packet:
    """One message being built: records in, frames out.

    Callers must keep what they put in unchanged until the frames were sent: large
    buffers are not copied.
    """

    def __init__(self, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._parts: list[Bytes] = []
        self._frames: list[Bytes] = []
        self._inline_bytes = _PACKET.size
        self._frame_bytes = 0
        self.records = 0

    @property
    def size_bytes(self) -> int:
        """Of all frames."""
        return self._inline_bytes + self._frame_bytes

    def fits(self, record: Record) -> bool:
        """Whether one more record keeps the limits of one message."""
        size_bytes = self.size_bytes + _record_bytes(record)
        return self.records < MAX_RECORDS and size_bytes <= self._max_bytes

    def add(self, record: Record) -> None:
        if isinstance(record, Rows):
            frames = self._rows(record)
        elif isinstance(record, Failure):
            frames = self._record(record, *_error_body(record))
        elif isinstance(record, Greeting):
            frames = self._record(record, *_greeting_body(record))
        else:
            frames = self._record(record)
        self._frames += frames
        self._frame_bytes += sum(len(frame) for frame in frames)
        self.records += 1

    def frames(self) -> list[Bytes]:
        header = _PACKET.pack(MAGIC, VERSION, 0, self.records, self._inline_bytes)
        return [b"".join((header, *self._parts)), *self._frames]

    def _record(self, record: Record, *body: Bytes, frames: Sequence[Bytes] = ()) -> Sequence[Bytes]:
        size = _RECORD.size + sum(len(part) for part in body)
        self._parts.append(_RECORD.pack(record.type, 0, len(frames), size, record.id))
        self._parts += body
        self._inline_bytes += size
        return frames

    def _rows(self, record: Rows) -> Sequence[Bytes]:
        descriptors, inline, frames = [], [], []
        for buffer in record.buffers:
            size = buffer.data_bytes
            own = _own_frames(buffer, size)
            descriptors.append(_BUFFER.pack(size, buffer.row_bytes, len(own)))
            frames += own
            if buffer.lengths is not None:
                inline += _pad(struct.pack(f"<{len(buffer.lengths)}I", *buffer.lengths))
            if not own:
                inline += _pad(*buffer.chunks)
        head = _ROWS.pack(
            record.budget_ns, record.rows, record.padded_rows, record.method,
            len(record.buffers), len(record.key), len(record.metadata), record.client,
        )  # fmt: skip
        body = (head, *descriptors, *_pad(record.key), *_pad(record.metadata), *inline)
        return self._record(record, *body, frames=frames)


def _own_frames(buffer: Buffer, size: int) -> list[Bytes]:
    """The chunks as frames, small neighbours merged; none if the data goes inline."""
    if all(len(chunk) <= INLINE_MAX_BYTES for chunk in buffer.chunks):
        return []
    frames: list[Bytes] = []
    small: list[Bytes] = []
    for chunk in buffer.chunks:
        if len(chunk) <= INLINE_MAX_BYTES:
            small.append(chunk)
            continue
        if small:
            frames.append(b"".join(small))
            small = []
        frames.append(chunk)
    if small:
        frames.append(b"".join(small))
    return [frame for frame in frames if len(frame)]


def _pad(*parts: Bytes) -> list[Bytes]:
    rest = -sum(len(part) for part in parts) % 8
    return [*parts, bytes(rest)] if rest else list(parts)


def _greeting_body(record: Greeting) -> list[Bytes]:
    name = record.name.encode()
    head = _GREETING.pack(
        record.role, record.lowest, record.highest, 0,
        record.credits, len(name), len(record.description), record.pid,
    )  # fmt: skip
    return [head, *_pad(name), *_pad(record.description)]


def _error_body(record: Failure) -> list[Bytes]:
    texts = _fitted(record)
    head = _ERROR.pack(record.code, 0, record.exit_code, record.number, *(len(text) for text in texts))
    return [head, *_pad(*texts)]


def _fitted(record: Failure) -> list[bytes]:
    """The four texts, cut so that together they keep the limit. The cause is whole or absent."""
    left = MAX_TEXT_BYTES
    texts = []
    for text in (record.message, record.type_name, record.traceback):
        cut = text.encode(errors="replace")[: min(left, MAX_TEXT_BYTES // 4)]
        texts.append(cut)
        left -= len(cut)
    texts.append(record.cause if len(record.cause) <= left else b"")
    return texts


def message_bytes(record: Record) -> int:
    """What a message of this record alone holds, all frames together; a few more for frames."""
    return _PACKET.size + _record_bytes(record)


def _record_bytes(record: Record) -> int:
    if isinstance(record, Rows):
        head = _RECORD.size + _ROWS.size + _padded(len(record.key)) + _padded(len(record.metadata))
        return head + sum(_buffer_bytes(buffer) for buffer in record.buffers)
    if isinstance(record, Failure):
        return _RECORD.size + _ERROR.size + _padded(sum(len(text) for text in _fitted(record)))
    if isinstance(record, Greeting):
        texts = _padded(len(record.name.encode())) + _padded(len(record.description))
        return _RECORD.size + _GREETING.size + texts
    return _RECORD.size


def _buffer_bytes(buffer: Buffer) -> int:
    lengths = 0 if buffer.lengths is None else _padded(4 * len(buffer.lengths))
    return _BUFFER.size + lengths + _padded(buffer.data_bytes)


# ---- parsing ------------------------------------------------------------------


def parse(frames: Sequence[Bytes], max_bytes: int = MAX_MESSAGE_BYTES) -> list[Record]:
    """The records of one message of at most so many bytes, all frames together; `BadPacket` if
    any rule is broken, whichever it is."""
    views = [memoryview(frame).cast("B") for frame in frames]
    ids: list[int] = []
    try:
        return _Reader(views, ids, max_bytes).records()
    except BadPacket as error:
        raise BadPacket(str(error), ids) from None


class _Reader:
    """One pass over a message. Every slice is checked by `_take` before it is made."""

    def __init__(self, frames: list[memoryview], ids: list[int], max_bytes: int) -> None:
        _check(bool(frames), "a message has at least one frame")
        self.bytes = sum(len(frame) for frame in frames)
        self.max_bytes = max_bytes
        self.packet, self.frames = frames[0], frames[1:]
        self.ids = ids
        self.at = 0
        self.end = len(self.packet)

    def records(self) -> list[Record]:
        magic, version, zero, count, size = self._unpack(_PACKET)
        _check(magic == MAGIC, "not a packet of this protocol")
        _check(version == VERSION, f"version {version} is not understood")
        _check(zero == 0 and size == len(self.packet), "packet header and frame disagree")
        _check(count <= MAX_RECORDS, "too many records")
        records = [self._record() for _ in range(count)]
        _check(self.at == len(self.packet), "bytes after the last record")
        _check(not self.frames, "frames that no record owns")
        # Last, when it is known whose calls are in it.
        rule = f"a message of {self.bytes} bytes is above max_message_bytes, {self.max_bytes}"
        _check(self.bytes <= self.max_bytes, rule)
        return records

    def _record(self) -> Record:
        self.end = len(self.packet)
        start = self.at
        kind, flags, frame_count, size, id_ = self._unpack(_RECORD)
        if kind in _ASKING and id_:
            self.ids.append(id_)
        _check(flags == 0, "unknown flags")
        _check(size >= _RECORD.size and size % 8 == 0, "bad record size")
        _check(start + size <= len(self.packet), "record longer than its packet")
        _check(frame_count <= len(self.frames), "record owns frames that are not there")
        self.end = start + size
        own, self.frames = self.frames[:frame_count], self.frames[frame_count:]
        record = self._body(kind, id_, own)
        _check(self.at == self.end, "bytes left in a record")
        return record

    def _body(self, kind: int, id_: int, frames: list[memoryview]) -> Record:
        if kind in _WITH_ROWS:
            return self._rows(kind, id_, frames)
        _check(not frames, "frames behind a record that has none")
        if kind in _GREETINGS:
            return self._greeting(kind, id_)
        if kind == Type.ERROR:
            return self._failure(id_)
        _check(Type.CANCEL <= kind <= Type.BYE, f"unknown record type {kind}")
        return Plain(Type(kind), id_)

    def _greeting(self, kind: int, id_: int) -> Greeting:
        role, lowest, highest, zero, credit, name_size, text_size, pid = self._unpack(_GREETING)
        _check(zero == 0 and id_ == 0, "a greeting has id 0")
        _check(role in (1, 2, 3), f"unknown role {role}")
        _check(lowest <= highest, "versions upside down")
        _check(name_size <= MAX_NAME_BYTES and text_size <= MAX_TEXT_BYTES, "greeting too long")
        name = _text(self._padded(name_size))
        description = bytes(self._padded(text_size))
        return Greeting(kind, role, name, description, credit, pid, lowest, highest)

    def _failure(self, id_: int) -> Failure:
        code, zero, exit_code, number, *sizes = self._unpack(_ERROR)
        _check(zero == 0 and 1 <= code <= 9, f"unknown error code {code}")
        _check(sum(sizes) <= MAX_TEXT_BYTES, "error texts too long")
        body = self._padded(sum(sizes))
        ends = list(accumulate(sizes, initial=0))
        message, name, trace, cause = (body[a:b] for a, b in pairwise(ends))
        texts = (_text(message), _text(name), _text(trace))
        return Failure(id_, code, *texts, bytes(cause), exit_code, number)

    def _rows(self, kind: int, id_: int, frames: list[memoryview]) -> Rows:
        budget, rows, padded, method, count, key_size, meta_size, client = self._unpack(_ROWS)
        _check(client == 0 or kind == Type.CALL, "a field that must be zero is not")
        _check(id_ != 0, "a call or batch has an id")
        _check(rows <= MAX_ROWS and padded <= MAX_ROWS, "too many rows")
        _check(padded >= rows if kind == Type.BATCH else padded == rows, "padded rows disagree with rows")
        _check(budget >= 0 or budget == NONE, "negative budget")
        _check(budget == NONE or kind in _WITH_BUDGET, "budget where none belongs")
        _check(count <= MAX_BUFFERS, "too many buffers")
        _check(key_size <= MAX_KEY_BYTES and meta_size <= MAX_TEXT_BYTES, "key or metadata too long")
        shapes = [self._unpack(_BUFFER) for _ in range(count)]
        key = bytes(self._padded(key_size))
        metadata = bytes(self._padded(meta_size))
        buffers = []
        for size, row_bytes, frame_count in shapes:
            _check(frame_count <= len(frames), "buffer owns frames that are not there")
            own, frames = frames[:frame_count], frames[frame_count:]
            buffers.append(self._buffer(rows, size, row_bytes, own))
        _check(not frames, "frames that no buffer owns")
        return Rows(kind, id_, rows, key, buffers, budget, padded, method, metadata, client)

    def _buffer(self, rows: int, size: int, row_bytes: int, frames: list[memoryview]) -> Buffer:
        _check(row_bytes >= VAR, "negative row size")
        lengths = None
        if row_bytes == VAR:
            lengths = self._padded(4 * rows).cast("I")
            _check(sum(n for n in lengths if n != MISSING) == size, "lengths and data disagree")
        else:
            _check(rows * row_bytes == size, "row size and data disagree")
        if not frames:
            return Buffer(row_bytes, [self._padded(size)], lengths)
        _check(sum(len(frame) for frame in frames) == size, "frames and data disagree")
        _check(_on_rows(frames, row_bytes, lengths), "a frame ends inside a row")
        return Buffer(row_bytes, list(frames), lengths)

    def _unpack(self, shape: struct.Struct) -> tuple[Any, ...]:
        return shape.unpack(self._take(shape.size))

    def _padded(self, size: int) -> memoryview:
        return self._take(_padded(size))[:size]

    def _take(self, size: int) -> memoryview:
        _check(size <= self.end - self.at, "truncated")
        start, self.at = self.at, self.at + size
        return self.packet[start : self.at]


def _on_rows(frames: list[memoryview], row_bytes: int, lengths: Sequence[int] | None) -> bool:
    ends = accumulate(len(frame) for frame in frames)
    if lengths is None:
        return all(row_bytes and end % row_bytes == 0 for end in ends)
    rows = set(accumulate((0 if n == MISSING else n for n in lengths), initial=0))
    return all(end in rows for end in ends)


def _text(view: memoryview) -> str:
    return str(view, "utf-8", "replace")


def _check(holds: bool, rule: str) -> None:
    if not holds:
        raise BadPacket(rule)
