"""Dispatcher: one thread between all callers and all workers.

What it is      owns the ROUTER socket and the ledger; admits calls, hands a batch to a
                worker at the moment it has a free credit, and answers.
Guarantees      1. every accepted call gets one answer, also when its worker dies, its
                   batch raises, the dispatcher closes, or this very thread fails;
                2. nothing that a peer sends stops the loop: it is dropped and counted;
                3. no polling: it sleeps until a message, a post, or a time that the
                   scheduler, a run timeout or a close named.
Not promised    that a client that does not read gets its answers: it is cut off.
Why this shape  one owner for socket, scheduler and payloads, so that none needs a lock.
                The process that owns it posts its calls straight into its mailbox.
                A native data plane takes the place of this class behind the same methods.
"""

from __future__ import annotations

import enum
import json
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import zmq

from .crew import Crew
from .greetings import newcomer, objection
from .grouping import Grouping
from .ledger import Entry, Ledger
from .mailbox import Mailbox
from .origins import RemoteOrigin
from .peers import Client, Peers, Worker
from .posting import Posting
from .router import Router, source_fd
from .serving import Counters, Serving, welcoming
from .trust import holds_pickle
from .wire import (
    NONE,
    BadPacket,
    Code,
    Failure,
    Greeting,
    Method,
    Plain,
    Record,
    Role,
    Rows,
    Type,
    parse,
)

__all__ = ["Dispatcher"]

_NS_PER_MS = 1_000_000
# A budget, so that it is still a time when it was added to now.
_LONGEST_BUDGET_NS = 2**61
# Of one client, in one turn.
_MOST_QUESTIONS = 64
# How long an ending dispatcher waits for clients to read what it has for them; then
# libzmq goes on with what it was given, for as long again.
_LINGER_NS = 500 * _NS_PER_MS


class _State(enum.Enum):
    OPEN = enum.auto()
    DRAINING = enum.auto()  # refuses calls, answers those it has
    ENDED = enum.auto()


class Dispatcher:
    """Serves one runner at one or more endpoints.

    `submit`, `cancel` and the other public methods may be called from any thread.
    """

    def __init__(self, serving: Serving) -> None:
        self.endpoint = ""
        self.counters = Counters()
        self._name = serving.name
        self._description = welcoming(serving.description, serving.max_message_bytes)
        self._hooks = serving.hooks
        self._allow_pickle = serving.allow_pickle
        self._max_unread_bytes = serving.max_unread_bytes
        self._ledger = Ledger(serving.scheduler, serving.max_queue_rows)
        self._max_message_bytes = serving.max_message_bytes
        self._peers = Peers(serving.max_message_bytes)
        self._mailbox = Mailbox()
        self._state = _State.OPEN
        self._gate = threading.Lock()  # between the last post and the end of taking them
        self._drained: Future[None] = Future()
        self._router = Router(serving.max_message_bytes)
        self._posting = Posting(
            self._router, self._peers, self.counters, serving.max_message_bytes, self._leave
        )
        self._crew = Crew(
            self._ledger, self._peers, self._posting, serving.hooks, self.counters, serving.run_timeout_ms
        )
        self._thread = threading.Thread(target=self._serve, name=f"batching-{serving.name}", daemon=True)
        self._grouping: Grouping | None = None
        if serving.groups:
            self._grouping = Grouping(serving.name, serving.hooks, self._mailbox, self._grouped)
        self._failing: Failure | None = None
        self._questions: dict[Client, list[int]] = {}

    # ---- any thread ------------------------------------------------------------

    def bind(self, endpoint: str) -> str:
        """Listens; returns the endpoint with its real port. Before `start`."""
        self.endpoint = self._router.bind(endpoint)
        return self.endpoint

    def start(self) -> None:
        if self._grouping is not None:
            self._grouping.start()
        self._thread.start()

    def submit(self, entry: Entry) -> bool:
        """Queues a call of this process. False if the dispatcher takes none any more."""
        with self._gate:
            if self._state is not _State.OPEN:
                return False
            self._mailbox.post(self._admit, entry)
            return True

    def flush(self) -> None:
        """Takes what was submitted now, not at the end of the loop's turn."""
        self._mailbox.wake()

    def cancel(self, entry: Entry) -> None:
        self._mailbox.post(self._ledger.cancel, entry)

    def worker_died(self, token: str, failure: Failure) -> None:
        """A supervised worker is gone; its batches go to others, or fail with `failure`."""
        self._mailbox.urge(self._worker_died, (token, failure))

    def fail_calls(self, failure: Failure | None) -> None:
        """Every waiting and later call fails with this, until None is passed."""
        self._mailbox.urge(self._set_failing, failure)

    def set_options(self, changes: dict[str, Any], max_queue_rows: int, run_timeout_ms: float | None) -> None:
        """The scheduler's changed options, from the next batch on."""
        self._mailbox.urge(self._change_options, (changes, max_queue_rows, run_timeout_ms))

    def describe(self, description: bytes) -> None:
        """What peers that greet from now on are told."""
        self._description = welcoming(description, self._max_message_bytes)

    def statistics(self) -> dict[str, Any]:
        """The scheduler's own numbers, with the `groups` seen and `workers_ready`. Waits for a turn."""
        answer: Future[dict[str, Any]] = Future()
        with self._gate:
            if self._state is not _State.ENDED:
                self._mailbox.urge(self._tell_statistics, answer)
                waited = True
            else:
                waited = False
        return answer.result() if waited else self._numbers()

    def inspect(self) -> tuple[int, list[int]]:
        """(calls without an outcome, process ids of the workers), after a check of every invariant.

        For tests, at rest. Raises AssertionError with what does not hold.
        """
        self._ledger.scheduler.check()
        return len(self._ledger), [worker.pid for worker in self._peers.workers]

    def drain(self, timeout_s: float | None = None) -> bool:
        """Refuses new calls and waits until those accepted have their answers."""
        with self._gate:
            if self._state is _State.OPEN:
                self._state = _State.DRAINING
        self._mailbox.urge(self._nothing)
        with suppress(TimeoutError):
            self._drained.result(timeout_s)
            return True
        return False

    def dismiss_workers(self) -> None:
        """Tells every worker to leave once it has finished what it has."""
        self._mailbox.urge(self._dismiss)

    def end(self, failure: Failure) -> None:
        """Fails what is left, says goodbye, and ends the thread. Idempotent."""
        self._mailbox.urge(self._end, failure)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
            if self._grouping is not None:
                self._grouping.join()

    def discard(self) -> None:
        """For a dispatcher that was never started."""
        self._mailbox.close()
        self._router.close()

    # ---- the thread ------------------------------------------------------------

    def _serve(self) -> None:
        failure = Failure(0, Code.CLOSED, "the service was stopped")
        try:
            poller = zmq.Poller()
            poller.register(self._mailbox.fileno(), zmq.POLLIN)
            self._router.register(poller)
            while self._state is not _State.ENDED:
                poller.poll(self._timeout_ms())
                self._turn()
        except BaseException as error:  # our bug: no caller may hang for it
            failure = Failure(0, Code.CLOSED, f"the dispatcher failed: {type(error).__name__}: {error}")
            raise
        finally:
            self._close(failure)

    def _turn(self) -> None:
        self._read_messages()
        for handler, argument in self._mailbox.take():
            handler(argument)
        self._read_ended()
        self._crew.kill_hung()
        self._answer_questions()
        self._crew.dispatch()
        while self._flush():
            self._crew.dispatch()
        if self._state is _State.DRAINING and not self._ledger and not self._drained.done():
            self._drained.set_result(None)

    def _timeout_ms(self) -> int | None:
        times_ns = [ns for ns in (self._ledger.until_ns, self._crew.next_kill_ns()) if ns is not None]
        if not times_ns:
            return None
        left_ns = min(times_ns) - time.monotonic_ns()
        return max(0, min(-(-left_ns // _NS_PER_MS), 2**31 - 1))

    # ---- messages ----------------------------------------------------------------

    def _read_messages(self) -> None:
        for identity, frames in self._router.messages():
            self._receive(identity, frames)

    def _receive(self, identity: bytes, frames: list[zmq.Frame]) -> None:
        peer = self._peers.get(identity)
        try:
            records = parse([frame.buffer for frame in frames], self._max_message_bytes)
        except BadPacket as error:
            self.counters.dropped += 1
            if isinstance(peer, Client):
                for id_ in error.ids:
                    self._posting.post(peer, Failure(id_, Code.MALFORMED, f"malformed packet: {error}"))
            elif peer is not None:
                # Its batches would never end: what it meant to say of them is lost.
                self._crew.kill(peer, f"it sent a malformed packet: {error}")
            return
        for record in records:
            if isinstance(record, Greeting) and record.type == Type.HELLO:
                self._greet(identity, source_fd(frames), record)
                peer = self._peers.get(identity)
            elif peer is None:
                self.counters.dropped += 1
                if record.type not in (Type.ERROR, Type.BYE):
                    self._posting.reply(
                        identity, Failure(0, Code.UNREACHABLE, "not connected here: say HELLO first")
                    )
                return
            else:
                self._obey(peer, record)

    def _obey(self, peer: Client | Worker, record: Record) -> None:
        match record:
            case Rows(type=Type.CALL, method=Method.STATISTICS) if isinstance(peer, Client):
                self._ask(peer, record.id)
            case Rows(type=Type.CALL) if isinstance(peer, Client):
                self._call(peer, record)
            case Plain(type=Type.CANCEL) if isinstance(peer, Client):
                self._cancel(peer, record.id)
            case Rows(type=Type.RESULT) if isinstance(peer, Worker):
                self._crew.result(peer, record)
            case Failure() if isinstance(peer, Worker):
                self._crew.raised(peer, record)
            case Plain(type=Type.PING):
                self._posting.post(peer, Plain(Type.PONG, record.id))
            case Plain(type=Type.STOP) if isinstance(peer, Worker):
                self._crew.release(peer)
            case Plain(type=Type.BYE):
                if isinstance(peer, Worker):
                    self._crew.hand_back(peer)
                self._leave(peer)
            case Plain(type=Type.PONG):
                if isinstance(peer, Client):
                    peer.backlog.pong(record.id)
                    self._posting.advance(peer)
            case _:
                self.counters.dropped += 1

    def _ask(self, client: Client, id_: int) -> None:
        self._questions.setdefault(client, []).append(id_)
        if len(self._questions[client]) > _MOST_QUESTIONS:
            self._questions[client].pop()
            text = "too many questions of one client wait for an answer"
            self._posting.post(client, Failure(id_, Code.OVERLOADED, text))

    def _answer_questions(self) -> None:
        """The same numbers for all of one turn."""
        if not self._questions:
            return
        text = json.dumps(self._numbers()).encode()
        questions, self._questions = self._questions, {}
        for client, ids in questions.items():
            for id_ in ids:
                self._posting.post(client, Rows(Type.ANSWER, id_, 0, b"", [], metadata=text))

    # ---- greetings ---------------------------------------------------------------

    def _greet(self, identity: bytes, fd: int, hello: Greeting) -> None:
        rule = objection(hello, self._name, is_open=self._state is _State.OPEN)
        if rule:
            self._posting.reply(identity, Failure(0, Code.UNREACHABLE, rule))
            return
        # A connection that ended gave its descriptor back: read of that before the
        # descriptor's next owner is noted, or the newcomer would be taken for gone.
        self._read_ended()
        peer = self._peers.get(identity)
        if peer is None:
            peer = newcomer(identity, fd, hello, self._max_unread_bytes)
            self._peers.add(peer)
            if isinstance(peer, Worker) and peer.token:
                self._hooks.worker_ready(peer.token)
        self._posting.post(peer, Greeting(Type.WELCOME, Role.DISPATCHER, self._name, self._description))

    def _read_ended(self) -> None:
        for fd in self._router.ended():
            for peer in self._peers.with_fd(fd):
                self._leave(peer)

    def _leave(self, peer: Client | Worker) -> None:
        """The connection ended, on purpose or not."""
        if isinstance(peer, Worker) and peer.token:
            # Its supervisor tells how it died, and then its batches are dealt with.
            peer.hung = True
            self._hooks.kill_worker(peer.token, "it lost its connection")
            return
        if not self._peers.remove(peer):
            return
        if isinstance(peer, Worker):
            text = f"worker {peer.pid or 'unknown'} lost its connection with the call's batch"
            self._crew.lose(peer, Failure(0, Code.WORKER_DIED, text))
            return
        for entry in peer.calls.values():
            self._ledger.cancel(entry)
        peer.calls.clear()
        peer.grouping.clear()

    # ---- calls -------------------------------------------------------------------

    def _call(self, client: Client, record: Rows) -> None:
        if record.id in client.calls or record.id in client.grouping:  # a frame that came twice
            self.counters.dropped += 1
            return
        if record.method != Method.RUN:
            self._posting.post(client, Failure(record.id, Code.MALFORMED, f"no method {record.method} here"))
            return
        if self._state is not _State.OPEN:
            self._posting.post(client, Failure(record.id, Code.CLOSED, "the service is closing"))
            return
        if not self._allow_pickle and holds_pickle(record):
            text = "pickle is not allowed on this connection"
            self._posting.post(client, Failure(record.id, Code.INVALID_PAYLOAD, text))
            return
        if self._grouping is None:
            self._enter(client, record)
        elif refusal := self._grouping.take(client, record, self._ledger.max_queue_rows):
            self._ledger.scheduler.count_refused(1)
            self._posting.post(client, refusal)

    def _grouped(self, client: Client, call: Rows | Failure, cancelled: bool) -> None:
        if isinstance(call, Failure):
            self._posting.post(client, call)
        elif self._state is not _State.OPEN:
            self._posting.post(client, Failure(call.id, Code.CLOSED, "the service is closing"))
        else:
            self._enter(client, call)
            if cancelled:
                self._cancel(client, call.id)

    def _cancel(self, client: Client, id_: int) -> None:
        if id_ in client.grouping:
            client.grouping[id_] = True
        entry = client.calls.pop(id_, None)
        if entry is not None:
            self._ledger.cancel(entry)

    def _enter(self, client: Client, record: Rows) -> None:
        deadline_ns = NONE
        if record.budget_ns != NONE:
            deadline_ns = time.monotonic_ns() + min(record.budget_ns, _LONGEST_BUDGET_NS)
        origin = RemoteOrigin(self._posting, client, record.id)
        entry = Entry(origin, record.rows, record.key, record.buffers, deadline_ns, record.client)
        client.calls[record.id] = entry
        self._admit(entry)

    def _admit(self, entry: Entry) -> None:
        if self._failing is not None:
            entry.origin.fail(self._failing)
        else:
            self._ledger.admit(time.monotonic_ns(), entry)

    # ---- posts and the end -----------------------------------------------------------

    def _flush(self) -> bool:
        """Sends what this turn made. True if that lost a peer: there may be more to do."""
        lost = self._posting.flush()
        self._hooks.settle_turn()
        return lost

    def _worker_died(self, notice: tuple[str, Failure]) -> None:
        # What it sent before it died counts.
        self._read_messages()
        self._crew.died(*notice)

    def _dismiss(self, _: None) -> None:
        for worker in self._peers.workers:
            self._crew.release(worker)

    def _nothing(self, _: None) -> None:
        """A post that only wakes the thread."""

    def _set_failing(self, failure: Failure | None) -> None:
        self._failing = failure
        if failure is not None:
            self._ledger.fail_all(failure)

    def _change_options(self, change: tuple[dict[str, Any], int, float | None]) -> None:
        changes, self._ledger.max_queue_rows, self._crew.run_timeout_ms = change
        self._ledger.scheduler.set_options(**changes)

    def _tell_statistics(self, answer: Future[dict[str, Any]]) -> None:
        answer.set_result(self._numbers())

    def _numbers(self) -> dict[str, Any]:
        numbers = self._ledger.scheduler.statistics()
        numbers["groups"] = self._ledger.groups_seen
        numbers["messages_dropped"] = self.counters.dropped
        numbers["clients_cut_off"] = self.counters.cut_off
        numbers["workers_ready"] = sum(worker.present for worker in self._peers.workers)
        numbers["recent_releases"] = self._ledger.scheduler.recent_releases()
        return numbers

    def _end(self, failure: Failure) -> None:
        self._ledger.fail_all(failure)
        for peer in self._peers:
            self._posting.post(peer, Plain(Type.BYE))
        self._flush()
        self._state = _State.ENDED

    def _close(self, failure: Failure) -> None:
        # In this order. First no new posts: whoever comes later is refused at the gate.
        with self._gate:
            self._state = _State.ENDED
        # Then those that came before are taken, so that their calls are in the ledger
        # and queries are answered; then everything in the ledger fails.
        with suppress(Exception):
            self._failing = self._failing or failure
            for handler, argument in self._mailbox.take():
                handler(argument)
        self._ledger.fail_all(failure)
        self._hooks.settle_turn()
        if not self._drained.done():
            self._drained.set_result(None)
        if self._grouping is not None:
            self._grouping.end()
        with suppress(Exception):
            self._linger()
        self._mailbox.close()
        self._router.close()

    def _linger(self) -> None:
        """Gives clients that are behind a moment to read what waits for them."""
        poller = zmq.Poller()
        self._router.register(poller)
        until_ns = time.monotonic_ns() + _LINGER_NS
        while self._peers.waiting() and (left_ns := until_ns - time.monotonic_ns()) > 0:
            poller.poll(-(-left_ns // _NS_PER_MS))
            self._read_messages()
            self._read_ended()
            self._flush()
