"""The caller's end of a service: from a Call to rows on their way, and back to its answer.

Used where calls are made: in the process of the dispatcher and in connected clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._native.calls import Call, settle
from ..errors import RunnerError
from ..signature import Payload
from .buffers import contiguous
from .encoding import from_encoded, to_encoded
from .failures import error_of
from .ledger import Part
from .recipe import CallSignature
from .wire import Buffer, Code, Failure

__all__ = ["Outcomes", "Outgoing", "prepare"]


class Outgoing:
    """A call, encoded."""

    __slots__ = ("buffers", "call", "key", "payload", "rows")

    def __init__(self, call: Call, payload: Payload, rows: int, key: bytes, buffers: list[Buffer]) -> None:
        self.call = call
        self.payload = payload
        self.rows = rows
        self.key = key
        self.buffers = buffers


def prepare(signature: CallSignature, call: Call, *, allow_pickle: bool) -> Outgoing:
    """In the caller's thread. Raises what is the caller's fault."""
    rows, _, payload = signature.describe(call.args, call.kwargs, call.batched)
    encoded = signature.encode(payload, allow_pickle=allow_pickle)
    return Outgoing(call, payload, rows, encoded.key, from_encoded(encoded.buffers))


class Outcomes:
    """Collects outcomes during a turn and wakes their callers at its end, each loop once.

    Not thread-safe: the thread that gets the answers owns it.
    """

    def __init__(self, signature: CallSignature, *, allow_pickle: bool) -> None:
        self._signature = signature
        self._allow_pickle = allow_pickle
        self._settled: list[tuple[Call, Any, BaseException | None]] = []

    def answer(self, out: Outgoing, parts: Sequence[Part]) -> None:
        # Unpickling an answer runs foreign code: whatever it does is this call's outcome.
        try:
            value = self._signature.finish(out.payload, [self._decoded(part) for part in parts])
        except StopIteration as error:  # which a coroutine cannot raise
            self._settled.append((out.call, None, RunnerError.from_exception("a row", error)))
        except BaseException as error:
            self._settled.append((out.call, None, error))
        else:
            self._settled.append((out.call, value, None))

    def fail(self, out: Outgoing, failure: Failure) -> None:
        if failure.code == Code.DEADLINE_EXCEEDED:  # only the caller's side knows what it was
            error: BaseException = out.call.deadline_error()
        else:
            error = error_of(failure, allow_pickle=self._allow_pickle)
        self._settled.append((out.call, None, error))

    def settle(self) -> None:
        if self._settled:
            # Kept until all of them have it: another try passes over those that do.
            settle(self._settled)
            for call, _, _ in self._settled:
                call.data = None  # a call and what was made of it refer to each other
            self._settled.clear()

    def _decoded(self, part: Part) -> Any:
        # Into memory of the answer's own: the frames hold other callers' rows too.
        own = [Buffer(b.row_bytes, [contiguous(b)], b.lengths) for b in part.buffers]
        return self._signature.decode_result(
            part.key, to_encoded(own), part.rows, allow_pickle=self._allow_pickle
        )
