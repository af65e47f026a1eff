"""Serving: what a dispatcher, native or plain, is told at its start; and what it tells back."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from .._native.scheduler import Scheduler
from ..errors import RunnerError
from .backlog import MAX_UNREAD_BYTES
from .failures import model_failure
from .wire import MAX_KEY_BYTES, MAX_MESSAGE_BYTES, MAX_NAME_BYTES, MAX_TEXT_BYTES, NONE, Code, Failure, Rows

__all__ = ["Counters", "Hooks", "Serving", "later", "rekeyed", "welcoming"]


class Hooks:
    """What a dispatcher tells its owner. All of them are called in its thread, or one for this alone."""

    def worker_ready(self, token: str) -> None:
        """The supervised worker greeted."""

    def kill_worker(self, token: str, why: str) -> None:
        """The supervised worker hangs or lost its connection. `worker_died` is awaited."""

    def batches_ran(self) -> None:
        """So many batches ended well that more is known of their cost: 8, 16, 32 and so on."""

    def settle_turn(self) -> None:
        """The outcomes of this turn are complete."""

    def rekey(self, call: Rows) -> Rows:
        """A call of a client that could not group it itself."""
        return call


def rekeyed(hooks: Hooks, call: Rows) -> Rows | Failure:
    """The call with the key of its group, or why it has none."""
    try:
        call = hooks.rekey(call)
        if len(call.key) <= MAX_KEY_BYTES:
            return call
        # Written, it would break the message of which it is a part, and fail its neighbours.
        text = f"the key of a call and its group takes at most {MAX_KEY_BYTES} bytes, got {len(call.key)}"
        return Failure(call.id, Code.INVALID_PAYLOAD, text)
    except RunnerError as error:
        return model_failure(error.__cause__ or error, "group_by", call.id)
    except Exception as error:
        return Failure(call.id, Code.INVALID_PAYLOAD, str(error))
    except BaseException as error:  # no hook ends the thread that serves everybody
        return model_failure(error, "group_by", call.id)


def later(call: Rows | Failure, since_ns: int) -> Rows | Failure:
    """The call, some of whose budget is used up since then."""
    if isinstance(call, Rows) and call.budget_ns != NONE:
        call.budget_ns = max(0, call.budget_ns - (time.monotonic_ns() - since_ns))
    return call


def welcoming(description: bytes, max_message_bytes: int) -> bytes:
    """The description with what a client must know of messages, if that is less than the protocol has it."""
    if max_message_bytes >= MAX_MESSAGE_BYTES:
        return description
    return json.dumps({**json.loads(description), "max_message_bytes": max_message_bytes}).encode()


class Counters:
    """What went wrong on the wire, ever."""

    def __init__(self) -> None:
        self.dropped = 0  # packets and records without a meaning here
        self.cut_off = 0  # clients that did not read


@dataclass(slots=True, kw_only=True)
class Serving:
    """One runner, as a dispatcher serves it.

    Attributes:
        name: the runner's; a peer that greets for another is refused.
        description: JSON for WELCOME.
        scheduler: fresh, owned by the dispatcher from here on.
        hooks: who hears of workers.
        max_queue_rows: the scheduler's, for messages.
        run_timeout_ms: a worker whose batch takes longer is killed; None: never.
        groups: whether calls of clients are to be grouped by the hooks' `rekey`.
        allow_pickle: whether clients may send it.
        max_message_bytes: of one message, all frames together, received or sent.
        max_unread_bytes: a client that has more of its answers unread is cut off.
    """

    name: str
    description: bytes
    scheduler: Scheduler
    hooks: Hooks
    max_queue_rows: int
    run_timeout_ms: float | None = None
    groups: bool = False
    allow_pickle: bool = True
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_unread_bytes: int = MAX_UNREAD_BYTES

    def __post_init__(self) -> None:
        for what, size, most in (
            ("name", len(self.name.encode()), MAX_NAME_BYTES),
            ("signature, static arguments and options", len(self.description), MAX_TEXT_BYTES),
        ):
            if size > most:
                raise ValueError(f"the {what} of a service take at most {most} bytes, got {size}")
