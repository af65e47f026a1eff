"""Link: one socket of this process to one dispatcher, and the thread that owns it.

Guarantees      1. every call that was submitted gets one outcome, also when the connection ends,
                   the dispatcher answers nothing, or the link is closed;
                2. calls made in one turn of a loop leave as one message;
                3. what was sent on a connection is never sent again on another.
Not promised    that a call that failed with its connection did not run.
Why this shape  everybody posts to one thread; a forked child starts over with its own.
"""

from __future__ import annotations

import enum
import itertools
import json
import os
import threading
import time
import weakref
from concurrent.futures import Future
from typing import Any

import zmq

from ..errors import RunnerClosed, ServiceUnreachable
from .connection import Connection
from .endpoints import distrust
from .failures import error_of
from .ledger import Part
from .mailbox import Mailbox
from .outcomes import Outcomes, Outgoing
from .recipe import message_limit, same_arguments
from .wire import (
    MAX_MESSAGE_BYTES,
    NONE,
    VERSION,
    Code,
    Failure,
    Greeting,
    Method,
    Plain,
    Record,
    Role,
    Rows,
    Type,
    message_bytes,
)

__all__ = ["Link", "Sent"]


class Sent:
    """A call on its way. `id` is 0 until it left."""

    __slots__ = ("id", "out", "outcomes")

    def __init__(self, out: Outgoing, outcomes: Outcomes) -> None:
        self.id = 0
        self.out = out
        self.outcomes = outcomes

    def record(self) -> Rows:
        out = self.out
        deadline_ns = out.call.deadline_ns
        budget_ns = NONE if deadline_ns < 0 else max(0, deadline_ns - time.monotonic_ns())
        return Rows(Type.CALL, self.id, out.rows, out.key, out.buffers, budget_ns, client=out.call.client)

    def answer(self, record: Rows) -> None:
        self.outcomes.answer(self.out, [Part(0, record.rows, record.key, record.buffers)])

    def fail(self, failure: Failure) -> None:
        self.outcomes.fail(self.out, failure)


class Question:
    """A request for the service's numbers on its way."""

    __slots__ = ("future", "id")
    outcomes = None

    def __init__(self) -> None:
        self.id = 0
        self.future: Future[dict[str, Any]] = Future()

    def record(self) -> Rows:
        return Rows(Type.CALL, self.id, 0, b"", [], method=Method.STATISTICS)

    def answer(self, record: Rows) -> None:
        try:
            self.future.set_result(json.loads(record.metadata))
        except (ValueError, RecursionError) as error:
            self.future.set_exception(ServiceUnreachable(f"no statistics came back: {error}"))

    def fail(self, failure: Failure) -> None:
        self.future.set_exception(error_of(failure, allow_pickle=False))


class _State(enum.Enum):
    APART = enum.auto()  # no socket
    GREETING = enum.auto()  # HELLO is out
    TOGETHER = enum.auto()
    ENDED = enum.auto()


class Link:
    """One socket to one dispatcher, and the thread that owns it. Public methods: any thread."""

    def __init__(self, endpoint: str, name: str, timeout_s: float) -> None:
        self.endpoint = endpoint
        self.name = name
        self.timeout_s = timeout_s
        self.users = 0  # the registry's
        self._kept: list[Any] = []  # of a parent process: not to be touched, not even freed
        self._begin()
        _alive.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._mailbox = Mailbox()
        self._thread: threading.Thread | None = None
        self._state = _State.APART
        self._connection: Connection | None = None
        self._poller: zmq.Poller | None = None
        self._greet_until_ns = 0
        self._ids = itertools.count(1)
        self._greetings: list[tuple[int, Future[bytes]]] = []  # by the number of the HELLO that asks
        self._hellos = self._welcomes = 0  # of this connection
        self._waiting: dict[Sent | Question, None] = {}  # until the handshake is done
        self._calls: dict[int, Sent | Question] = {}
        self._outbox: list[Record] = []
        self._touched: dict[Outcomes, None] = {}
        self._description: bytes | None = None
        self._max_message_bytes = MAX_MESSAGE_BYTES

    # ---- any thread ----------------------------------------------------------------

    def greet(self) -> bytes:
        """The service's description; connects if need be. Raises ServiceUnreachable."""
        greeting: Future[bytes] = Future()
        self._run()
        self._mailbox.urge(self._greet, greeting)
        try:
            return greeting.result(self.timeout_s)
        except TimeoutError:
            raise ServiceUnreachable(self._silence()) from None

    def statistics(self) -> dict[str, Any]:
        """The dispatcher's numbers. Raises ServiceUnreachable."""
        question = Question()
        self.submit(question)
        self.flush()
        return question.future.result()

    def submit(self, sent: Sent | Question) -> None:
        with self._lock:
            if self._state is _State.ENDED:
                raise RunnerClosed(f"the connection to {self.name!r} was closed")
            if self._thread is None:
                self._run_locked()
            self._mailbox.post(self._submit, sent)

    def flush(self) -> None:
        self._mailbox.wake()

    def cancel(self, sent: Sent) -> None:
        self._mailbox.post(self._cancel, sent)

    def close(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None:
                self._state = _State.ENDED
                return
        self._mailbox.urge(self._end)
        thread.join()

    def forget_parent(self) -> None:
        """In a fork's child: starts over with a socket and thread of its own."""
        self._kept.append(self.__dict__.copy())
        ended = self._state is _State.ENDED
        self._begin()
        if ended:
            self._state = _State.ENDED

    def _run(self) -> None:
        with self._lock:
            if self._thread is None:
                self._run_locked()

    def _run_locked(self) -> None:
        self._thread = threading.Thread(target=self._serve, name=f"batching-client-{self.name}", daemon=True)
        self._thread.start()

    # ---- the thread ------------------------------------------------------------------

    def _serve(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context = context
        reason = Failure(0, Code.CLOSED, f"the connection to {self.name!r} was closed")
        try:
            while self._state is not _State.ENDED:
                self._poll()
                self._turn()
        except BaseException as error:  # our bug: no caller may hang for it
            reason = Failure(0, Code.UNREACHABLE, f"the client failed: {type(error).__name__}: {error}")
            raise
        finally:
            with self._lock:
                self._state = _State.ENDED
            for handler, argument in self._mailbox.take():
                if handler == self._submit:
                    self._waiting[argument] = None
                elif handler == self._greet:
                    self._greetings.append((0, argument))
            self._part(reason)
            self._settle()
            self._mailbox.close()
            context.term()

    def _poll(self) -> None:
        poller = self._poller
        if poller is None:
            poller = self._poller = zmq.Poller()
            poller.register(self._mailbox.fileno(), zmq.POLLIN)
            if self._connection is not None:
                self._connection.register(poller)
        timeout_ms = None
        if self._state is _State.GREETING:
            timeout_ms = max(0, -(-(self._greet_until_ns - time.monotonic_ns()) // 1_000_000))
        poller.poll(timeout_ms)

    def _turn(self) -> None:
        for handler, argument in self._mailbox.take():
            handler(argument)
        connection = self._connection
        if connection is not None:
            for records in connection.messages():
                for record in records:
                    self._obey(record)
            if connection.broken:
                # Answers may have been in it: whose, nobody can say.
                self._unreachable(f"the service sent a malformed packet: {connection.broken[0]}")
            elif connection.lost:
                self._unreachable(f"the connection to {self.endpoint} was lost")
        if self._state is _State.GREETING and time.monotonic_ns() >= self._greet_until_ns:
            self._unreachable(self._silence())
        if self._outbox and self._connection is not None:
            self._connection.send(self._outbox, self._max_message_bytes)
        self._outbox = []
        self._settle()

    def _settle(self) -> None:
        touched, self._touched = self._touched, {}
        for outcomes in touched:
            outcomes.settle()

    # ---- posts -------------------------------------------------------------------------

    def _greet(self, greeting: Future[bytes]) -> None:
        # A HELLO of its own, also over a live connection: options may have changed since its first.
        if self._connection is not None:
            self._hello()
            self._greetings.append((self._hellos, greeting))
        else:
            self._greetings.append((1, greeting))
            self._connect()

    def _submit(self, sent: Sent | Question) -> None:
        if self._state is _State.TOGETHER:
            self._send(sent)
        else:
            self._waiting[sent] = None
            self._connect()

    def _cancel(self, sent: Sent) -> None:
        self._waiting.pop(sent, None)
        if self._calls.pop(sent.id, None) is not None:
            self._outbox.append(Plain(Type.CANCEL, sent.id))

    def _end(self, _: None) -> None:
        if self._state is _State.TOGETHER:
            self._outbox.append(Plain(Type.BYE))
        self._state = _State.ENDED

    # ---- the connection ------------------------------------------------------------------

    def _connect(self) -> None:
        if self._state is not _State.APART:
            return
        self._state = _State.GREETING
        self._greet_until_ns = time.monotonic_ns() + int(self.timeout_s * 1e9)
        try:
            self._connection = Connection(self._context, self.endpoint)
        except (OSError, zmq.ZMQError) as error:
            self._unreachable(f"cannot connect to {self.endpoint}: {error}")
            return
        self._poller = None
        self._hellos = self._welcomes = 0
        self._hello()

    def _hello(self) -> None:
        self._outbox.append(Greeting(Type.HELLO, Role.CLIENT, self.name, pid=os.getpid()))
        self._hellos += 1

    def _silence(self) -> str:
        return f"no dispatcher answered at {self.endpoint} within {self.timeout_s:g} s"

    def _part(self, failure: Failure) -> None:
        """The connection is over: everything that needed it fails."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._poller = None
        self._outbox = []
        for sent in [*self._waiting, *self._calls.values()]:
            self._settles(sent).fail(failure)
        self._waiting, self._calls = {}, {}
        for _, greeting in self._greetings:
            greeting.set_exception(ServiceUnreachable(failure.message))
        self._greetings = []

    def _unreachable(self, text: str) -> None:
        if self._state is not _State.ENDED:  # which it may have been told in this very turn
            self._state = _State.APART
        self._part(Failure(0, Code.UNREACHABLE, text))

    def _obey(self, record: Record) -> None:
        match record:
            case Rows(type=Type.ANSWER):
                sent = self._calls.pop(record.id, None)
                if sent is not None:
                    self._settles(sent).answer(record)
            case Failure() if record.id:
                sent = self._calls.pop(record.id, None)
                if sent is not None:
                    self._settles(sent).fail(record)
            case Failure():
                self._unreachable(record.message)
            case Greeting(type=Type.WELCOME):
                self._welcome(record)
            case Plain(type=Type.BYE):
                self._unreachable(f"the service at {self.endpoint} was stopped")
            case Plain(type=Type.PING):
                self._outbox.append(Plain(Type.PONG, record.id))
            case _:
                pass

    def _welcome(self, record: Greeting) -> None:
        if self._connection is None:
            return
        if not record.lowest <= VERSION <= record.highest:
            self._unreachable(
                f"the service speaks versions {record.lowest} to {record.highest}, not {VERSION}"
            )
            return
        # Now, as its socket was not yet there when this link was made.
        if problem := distrust(self.endpoint):
            self._unreachable(problem)
            return
        if self._description is not None and not same_arguments(self._description, record.description):
            # The calls at hand were made for another signature.
            self._description = record.description
            self._unreachable(
                f"the runner {self.name!r} was replaced by one with other arguments: connect again"
            )
            return
        if self._state is _State.GREETING:
            self._state = _State.TOGETHER
        self._max_message_bytes = message_limit(record.description)
        self._description = record.description
        self._welcomes += 1
        for number, greeting in self._greetings:
            if number <= self._welcomes:
                greeting.set_result(record.description)
        self._greetings = [entry for entry in self._greetings if entry[0] > self._welcomes]
        waiting, self._waiting = self._waiting, {}
        for sent in waiting:
            self._send(sent)

    def _send(self, sent: Sent | Question) -> None:
        record = sent.record()
        if record.budget_ns == 0:  # it was used up while there was no connection
            self._settles(sent).fail(Failure(0, Code.DEADLINE_EXCEEDED, "no time is left for the call"))
            return
        size, limit = message_bytes(record), self._max_message_bytes
        if size > limit:
            text = f"a call of {size} bytes is above max_message_bytes, {limit}"
            self._settles(sent).fail(Failure(0, Code.INVALID_PAYLOAD, text))
            return
        sent.id = record.id = next(self._ids)
        self._calls[sent.id] = sent
        self._outbox.append(record)

    def _settles(self, sent: Sent | Question) -> Sent | Question:
        """The call, whose outcome comes now and whose callers are woken at the turn's end."""
        if sent.outcomes is not None:
            self._touched[sent.outcomes] = None
        return sent


_alive: weakref.WeakSet[Link] = weakref.WeakSet()


def _after_fork() -> None:
    for link in list(_alive):
        link.forget_parent()


os.register_at_fork(after_in_child=_after_fork)
