"""Ledger: every call between its arrival and its answer, whoever made it.

What it is      the payloads behind the scheduler's numbers: admits calls, gathers a
                batch's rows from them, cuts its result back into them.
Guarantees      1. every call that was entered is answered or failed once, or was
                   cancelled by its caller;
                2. a payload is kept until its call's outcome is final, so that rows can
                   run again;
                3. a batch holds calls of one full key only: numbers stand for whole keys.
Not promised    thread safety: the dispatcher's thread owns it.
Why this shape  no socket, no clock and no process here: the time is an argument, and
                who gets the outcome is an `Origin`. Cutting reads row sizes, never keys.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from .._native.scheduler import Admission, Scheduler
from .buffers import Slicer, join
from .wire import NONE, Buffer, Code, Failure, Rows, Type

__all__ = ["Batch", "Ending", "Entry", "Groups", "Ledger", "Origin", "Part"]

_NS_PER_MS = 1e6


# How a batch without a result ended.
Ending = Literal["raised", "died", "invalid", "unrun", "unsent"]


@dataclass(slots=True)
class Part:
    """An answer, or a consecutive part of one."""

    first_row: int
    rows: int
    key: bytes
    buffers: list[Buffer]


class Origin(Protocol):
    """Who made a call, and so gets its outcome: exactly one of the two, once."""

    client: int  # for fairness: equal for the calls of one connection

    def answer(self, parts: list[Part]) -> None: ...

    def fail(self, failure: Failure) -> None: ...


@dataclass(slots=True, eq=False)
class Entry:
    """One call. `id` is the scheduler's: 0 before admission and after the outcome."""

    origin: Origin
    rows: int
    key: bytes
    buffers: list[Buffer]
    deadline_ns: int = NONE
    client: int = 0  # among those of one origin's connection
    admitted_ns: int = 0
    id: int = 0
    group: int = 0
    tag: int = 0
    parts: list[Part] = field(default_factory=list)
    slicer: Slicer | None = None


@dataclass(slots=True)
class Batch:
    """A batch that is due: its record, and the rows to expect back."""

    id: int
    record: Rows


class Groups:
    """Full keys as numbers. A number is given up only while no call uses it."""

    # So many keys without a call are remembered, for what the policy learned of them.
    UNUSED_KEPT = 256

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._uses: dict[int, int] = {}
        self._keys: dict[int, bytes] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._next = 1

    @property
    def seen(self) -> int:
        """Numbers ever given: a key that was forgotten counts again."""
        return self._next - 1

    def acquire(self, key: bytes) -> int:
        number = self._numbers.get(key)
        if number is None:
            number, self._next = self._next, self._next + 1
            self._numbers[key], self._keys[number], self._uses[number] = number, key, 0
        self._unused.pop(number, None)
        self._uses[number] += 1
        return number

    def release(self, number: int) -> None:
        self._uses[number] -= 1
        if self._uses[number]:
            return
        self._unused[number] = None
        if len(self._unused) > self.UNUSED_KEPT:
            old, _ = self._unused.popitem(last=False)
            del self._numbers[self._keys.pop(old)], self._uses[old]


class Ledger:
    """The calls of one dispatcher. `until_ns` is when to ask again, None for never."""

    def __init__(self, scheduler: Scheduler, max_queue_rows: int) -> None:
        self.scheduler = scheduler
        self.max_queue_rows = max_queue_rows
        self.until_ns: int | None = None
        self._entries: dict[int, Entry] = {}
        self._groups = Groups()
        self._next_tag = 1

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def groups_seen(self) -> int:
        return self._groups.seen

    def admit(self, now_ns: int, entry: Entry) -> None:
        """Queues the call, or fails it at once with the reason."""
        entry.group = self._groups.acquire(entry.key)
        entry.tag, self._next_tag = self._next_tag, self._next_tag + 1
        deadline_ns = None if entry.deadline_ns == NONE else entry.deadline_ns
        client = entry.origin.client + (entry.client << 32)
        admission = self.scheduler.admit(now_ns, entry.rows, entry.group, deadline_ns, client, entry.tag)
        if not admission.id:
            self._groups.release(entry.group)
            entry.origin.fail(self._refusal(admission, entry, now_ns))
            return
        entry.id = admission.id
        entry.admitted_ns = now_ns
        self._entries[entry.tag] = entry

    def cancel(self, entry: Entry) -> None:
        """The caller gave up: no outcome. Does nothing for a call that has one."""
        if entry.id:
            self.scheduler.cancel(entry.id)
            self._forget(entry)

    def next_batch(self, now_ns: int, idle: int, total: int) -> Batch | None:
        """A batch for a slot that is free now; None, and `until_ns`, if none is due."""
        decision = self.scheduler.decide(now_ns, idle, total)
        self._expire()
        self.until_ns = decision.until_ns
        if decision.action != "run":
            return None
        pieces, key = [], b""
        for _, tag, first_row, part_rows in decision.parts:
            entry = self._entries[tag]
            key = entry.key
            pieces.append(self._rows_of(entry, first_row, part_rows))
        rows, padded = decision.rows, decision.padded_rows
        return Batch(decision.batch, Rows(Type.BATCH, decision.batch, rows, key, join(pieces), NONE, padded))

    def answered(self, now_ns: int, batch: int, result: Rows) -> None:
        """A batch has its result, of as many rows as it had."""
        slicer = Slicer(result.buffers)
        for part in self.scheduler.finished(batch, now_ns, "ok"):
            entry = self._entries.get(part.tag)
            if entry is None:  # cancelled, or failed by an earlier part
                continue
            buffers = slicer.cut(part.batch_offset, part.rows)
            entry.parts.append(Part(part.first_row, part.rows, result.key, buffers))
            if part.outcome == "answered":
                # In this order: one that raises, for want of memory, leaves a call that `fail_all` finds.
                entry.parts.sort(key=lambda part: part.first_row)
                entry.origin.answer(entry.parts)
                self._forget(entry)

    def ended(self, now_ns: int, batch: int, how: Ending, failure: Failure) -> None:
        """A batch ended without a result. Some of its calls may run again."""
        for part in self.scheduler.finished(batch, now_ns, how):
            entry = self._entries.get(part.tag)
            if entry is not None and part.outcome in ("failed", "lost", "broken"):
                entry.origin.fail(failure)
                self._forget(entry)

    def fail_all(self, failure: Failure) -> None:
        """Every call that is still here fails."""
        for entry in list(self._entries.values()):
            self.cancel(entry)
            entry.origin.fail(failure)

    def _expire(self) -> None:
        for part in self.scheduler.expired():
            entry = self._entries.get(part.tag)
            if entry is not None:
                self._forget(entry)
                left_ms = (entry.deadline_ns - entry.admitted_ns) / _NS_PER_MS
                text = f"the call had no answer within the {left_ms:.3g} ms that it had left"
                entry.origin.fail(Failure(0, Code.DEADLINE_EXCEEDED, text))

    def _refusal(self, admission: Admission, entry: Entry, now_ns: int) -> Failure:
        predicted_ns, rows, limit = admission.predicted_ns, entry.rows, self.max_queue_rows
        match admission.verdict:
            case "refused_size":
                text = f"a call of {rows} rows is larger than max_queue_rows, {limit}"
                return Failure(0, Code.INVALID_PAYLOAD, text)
            case "refused_late" if predicted_ns is not None:
                budget_ms = (entry.deadline_ns - now_ns) / _NS_PER_MS
                text = (
                    f"an answer is predicted in {predicted_ns / _NS_PER_MS:.3g} ms, "
                    f"after the {budget_ms:.3g} ms that the call has left"
                )
            case "refused_queue":
                queued = self.scheduler.statistics()["queued_rows"]
                text = f"{queued} rows are queued, and {rows} more would exceed max_queue_rows, {limit}"
            case _:
                text = "no memory for one more call"
        return Failure(0, Code.OVERLOADED, text, number=NONE if predicted_ns is None else predicted_ns)

    def _forget(self, entry: Entry) -> None:
        entry.id = 0
        del self._entries[entry.tag]
        self._groups.release(entry.group)

    def _rows_of(self, entry: Entry, first_row: int, rows: int) -> Sequence[Buffer]:
        if rows == entry.rows:
            return entry.buffers
        if entry.slicer is None:
            entry.slicer = Slicer(entry.buffers)
        return entry.slicer.cut(first_row, rows)
