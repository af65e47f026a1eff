"""Crew: the workers of a dispatcher, and the batches that they have.

Guarantees      1. a batch goes to a worker with a free credit, at the moment when it is decided;
                2. every batch that was handed out ends in the ledger once: with a result, an
                   error, or the end of its worker.
Not promised    thread safety: the dispatcher's thread owns it.
"""

from __future__ import annotations

import time

from .ledger import Ending, Ledger
from .peers import Peers, Running, Worker
from .posting import Posting
from .serving import Counters, Hooks
from .wire import Code, Failure, Plain, Rows, Type

__all__ = ["Crew"]

_NS_PER_MS = 1_000_000
# `Hooks.batches_ran` comes after so many batches, then after twice as many, and so on.
_FIRST_RAN = 8


class Crew:
    """Attributes:
    run_timeout_ms: a worker whose batch takes longer is killed; None: never.
    """

    def __init__(
        self,
        ledger: Ledger,
        peers: Peers,
        posting: Posting,
        hooks: Hooks,
        counters: Counters,
        run_timeout_ms: float | None,
    ) -> None:
        self.run_timeout_ms = run_timeout_ms
        self._ledger = ledger
        self._peers = peers
        self._posting = posting
        self._hooks = hooks
        self._counters = counters
        self._ended_well = 0  # batches

    def dispatch(self) -> None:
        while True:
            now_ns = time.monotonic_ns()
            batch = self._ledger.next_batch(now_ns, *self._peers.slots())
            if batch is None:
                return
            if failure := self._posting.too_large("a call", batch.record):
                # Its calls may well fit one by one; a call alone is told why it does not.
                self._ledger.ended(now_ns, batch.id, "unsent", failure)
                continue
            worker = self._peers.free_worker()
            limit_ms = self.run_timeout_ms
            kill_ns = None if limit_ms is None else now_ns + int(limit_ms * _NS_PER_MS)
            worker.running[batch.id] = Running(batch.record.rows, kill_ns)
            self._posting.post(worker, batch.record)

    def next_kill_ns(self) -> int | None:
        """When `kill_hung` is to be called at the latest."""
        times_ns = [
            running.kill_ns
            for worker in self._peers.workers
            for running in worker.running.values()
            if running.kill_ns is not None
        ]
        return min(times_ns, default=None)

    def result(self, worker: Worker, record: Rows) -> None:
        running = self._finished(worker, record.id)
        if running is None:
            return
        if record.rows == running.rows:
            self._ledger.answered(time.monotonic_ns(), record.id, record)
            self._ended_well += 1
            if self._ended_well >= _FIRST_RAN and self._ended_well & (self._ended_well - 1) == 0:
                self._hooks.batches_ran()
            return
        text = f"a worker was given {running.rows} rows and answered {record.rows}"
        self._ledger.ended(time.monotonic_ns(), record.id, "invalid", Failure(0, Code.BAD_RESULT, text))

    def raised(self, worker: Worker, failure: Failure) -> None:
        if self._finished(worker, failure.id) is not None:
            how: Ending = "invalid" if failure.code == Code.BAD_RESULT else "raised"
            self._ledger.ended(time.monotonic_ns(), failure.id, how, failure)

    def _finished(self, worker: Worker, batch: int) -> Running | None:
        """Takes the batch from the worker. None for one that it does not have: its late
        or repeated words change nothing."""
        running = worker.running.pop(batch, None)
        if running is None:
            self._counters.dropped += 1
        else:
            self._peers.freed(worker)
        return running

    def died(self, token: str, failure: Failure) -> None:
        """A supervised worker is gone."""
        for worker in self._peers.with_token(token):
            self._peers.remove(worker)
            self.lose(worker, failure)

    def lose(self, worker: Worker, failure: Failure) -> None:
        for batch in list(worker.running):
            del worker.running[batch]
            self._ledger.ended(time.monotonic_ns(), batch, "died", failure)

    def release(self, worker: Worker) -> None:
        """The worker may leave once it has finished what it has: it gets no batch any more."""
        worker.leaving = True
        self._posting.post(worker, Plain(Type.STOP))

    def hand_back(self, worker: Worker) -> None:
        """It says goodbye, and so has started none of the batches that it has not answered."""
        failure = Failure(0, Code.WORKER_DIED, f"worker {worker.pid or 'unknown'} left with the call's batch")
        for batch in list(worker.running):
            del worker.running[batch]
            self._ledger.ended(time.monotonic_ns(), batch, "unrun", failure)

    def kill_hung(self) -> None:
        now_ns = time.monotonic_ns()
        for worker in list(self._peers.workers):
            if any(r.kill_ns is not None and r.kill_ns <= now_ns for r in worker.running.values()):
                self.kill(worker, f"its batch took longer than run_timeout_ms={self.run_timeout_ms:g}")

    def kill(self, worker: Worker, why: str) -> None:
        for running in worker.running.values():
            running.kill_ns = None
        if worker.token:
            worker.hung = True
            self._hooks.kill_worker(worker.token, why)
        elif self._peers.remove(worker):
            self._posting.reply(worker.identity, Failure(0, Code.UNREACHABLE, f"dismissed: {why}"))
            self.lose(
                worker, Failure(0, Code.WORKER_DIED, f"worker {worker.pid or 'unknown'} was given up: {why}")
            )
