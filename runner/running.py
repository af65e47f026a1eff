"""RunningService: everything that exists between a service's start and its stop.

Guarantees      1. what `__init__` made and `begin` started, `stop` ends: processes, threads, sockets, files;
                2. `started` gets its outcome as soon as all workers are ready, or one cannot be;
                3. no call waits for workers that cannot be set up: it fails with what `_setup` raised.
Why this shape  a service that is started again gets a new one of these, so that no state has
                to be put back.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from .._native.calls import Call, Handle
from .._native.scheduler import Scheduler
from ..budget import BudgetLookout
from ..errors import DeadlineExceeded, RunnerClosed
from ..options import BatchOptions
from ..statistics import Statistics
from .buffers import contiguous
from .client import engine_on, new_link
from .dispatcher import Dispatcher
from .encoding import to_encoded
from .endpoints import PrivateDirectory, allows_pickle
from .failures import error_of
from .ledger import Entry, Part
from .native import native_plane
from .native_dispatcher import NativeDispatcher
from .outcomes import Outcomes, Outgoing, prepare
from .recipe import CallSignature, described, pickled, signature_of
from .serving import Hooks, Serving
from .supervisor import Death, Supervisor, WorkerPlan
from .wire import Buffer, Code, Failure, Rows

__all__ = ["LocalEngine", "RunningService"]
# For the handshake of a fork's child with its parent's service.
_FORK_TIMEOUT_S = 5.0


class RunningService(Hooks):
    """Everything that exists between a start and its stop."""

    def __init__(
        self, runner: Any, options: BatchOptions, workers: int, endpoint: str | None, start_timeout_s: float
    ) -> None:
        self.started: Future[None] = Future()
        self._name = runner.name
        self._options = options
        self._runner = runner
        self._workers = workers
        self._ready: set[str] = set()
        self._ending = threading.Lock()  # the interpreter's end may meet a stop under way
        self._ended = False
        self._budget = BudgetLookout(runner.name, self.statistics)
        self._signature = signature_of(runner)
        recipe = pickled(runner)
        self._directory = PrivateDirectory() if endpoint is None else None
        wanted = self._directory.endpoint if self._directory else str(endpoint)
        serving = Serving(
            name=runner.name,
            description=described(runner, options),
            scheduler=_scheduler(options, batches=isinstance(runner, Handle)),
            hooks=self,
            max_queue_rows=options.max_queue_rows,
            run_timeout_ms=options.run_timeout_ms,
            groups=self._signature.grouped,
            allow_pickle=wanted.startswith("ipc:"),  # its own socket, which only its own user can open
        )
        self._dispatcher: Dispatcher | NativeDispatcher = (
            NativeDispatcher(serving) if native_plane() else Dispatcher(serving)
        )
        try:
            self.endpoint = self._dispatcher.bind(wanted)
        except BaseException:
            self._dispatcher.discard()
            if self._directory is not None:
                self._directory.remove()
            raise
        self._allow_pickle = allow_pickle = allows_pickle(self.endpoint)
        self._outcomes = Outcomes(self._signature, allow_pickle=allow_pickle)
        self.engine: Any = (
            self._dispatcher.engine(self._signature, options, allow_pickle=allow_pickle)
            if isinstance(self._dispatcher, NativeDispatcher)
            else LocalEngine(self._dispatcher, self._signature, self._outcomes, options, allow_pickle)
        )
        plan = WorkerPlan(recipe, self.endpoint, allow_pickle, options.concurrency, start_timeout_s)
        self._supervisor = Supervisor(
            plan, workers, self._on_death, self._on_ready, self._on_unknown, self._on_failure
        )

    def begin(self) -> None:
        """Starts the threads, and with them the workers: whoever forks must know of this object by then."""
        self._dispatcher.start()
        self._supervisor.start()

    def wait(self) -> None:
        """Until all workers are ready. If they cannot be, or the wait ends otherwise,
        nothing of the service is left when this raises."""
        try:
            self.started.result()
        except BaseException:
            self._end("the service did not start")
            raise

    # ---- while it runs -------------------------------------------------------------

    def set_options(self, options: BatchOptions) -> None:
        self._options = options
        self._budget = BudgetLookout(self._name, self.statistics)
        self.engine.max_latency_ms = options.max_latency_ms
        self._dispatcher.set_options(options.for_scheduler(), options.max_queue_rows, options.run_timeout_ms)
        self._dispatcher.describe(described(self._runner, options))

    def statistics(self) -> Statistics:
        return Statistics.from_numbers(self._dispatcher.statistics())

    def check_budget(self) -> bool:
        """Nothing is left to look at: `batches_ran` does."""
        return True

    # In the dispatcher's thread:

    def worker_ready(self, token: str) -> None:
        self._supervisor.ready(token)

    def kill_worker(self, token: str, why: str) -> None:
        self._supervisor.kill(token, why)

    def batches_ran(self) -> None:
        # Whoever called: also if all of them are in other processes.
        if self._options.max_latency_ms is not None:
            self._budget.look(self._options.max_latency_ms)

    def settle_turn(self) -> None:
        self._outcomes.settle()

    def rekey(self, call: Rows) -> Rows:
        whole = [Buffer(b.row_bytes, [contiguous(b)], b.lengths) for b in call.buffers]
        call.key = self._signature.regroup(
            call.key, to_encoded(whole), call.rows, allow_pickle=self._allow_pickle
        )
        return call

    # In the supervisor's thread:

    def _on_ready(self, token: str) -> None:
        self._ready.add(token)
        if len(self._ready) >= self._workers:
            with suppress(InvalidStateError):
                self.started.set_result(None)
        self._dispatcher.fail_calls(None)

    def _on_unknown(self, token: str) -> None:
        # Its greeting came behind the news of its death, or it is nobody's worker.
        failure = Failure(0, Code.WORKER_DIED, f"worker {token!r} is dead, or was never of this service")
        self._dispatcher.worker_died(token, failure)

    def _on_death(self, death: Death) -> None:
        self._ready.discard(death.token)
        if not self.started.done():
            with suppress(InvalidStateError):
                self.started.set_exception(_start_error(death))
        self._dispatcher.worker_died(death.token, death.failure)
        if death.setup is not None and not self._ready:
            # Nobody is there, and nobody may come: an error now is better than none.
            self._dispatcher.fail_calls(death.setup)

    def _on_failure(self, error: BaseException) -> None:
        text = f"the supervisor of the workers failed: {type(error).__name__}: {error}"
        with suppress(InvalidStateError):
            self.started.set_exception(RunnerClosed(text))
        self._dispatcher.fail_calls(Failure(0, Code.CLOSED, text))

    # ---- its end ---------------------------------------------------------------------

    def stop(self, timeout_s: float | None) -> None:
        late = f"the service was stopped, and the call had no answer within {timeout_s} s"
        try:
            if self._dispatcher.drain(timeout_s):
                self._supervisor.retire()
                self._dispatcher.dismiss_workers()
                self._supervisor.join()
        finally:
            # Whatever happened above, an interrupt too: nothing stays.
            self._end(late)

    def _end(self, why: str) -> None:
        with self._ending:
            if self._ended:
                return
            self._ended = True
            try:
                self._supervisor.retire(0)
                self._supervisor.join()
            finally:
                self._dispatcher.end(Failure(0, Code.CLOSED, why))
                if self._directory is not None:
                    self._directory.remove()

    # ---- forks -----------------------------------------------------------------------

    def as_client(self) -> ForkedService:
        """In a fork's child: the same service, seen from outside."""
        for fd in self._supervisor.lifelines():
            with suppress(OSError):
                os.close(fd)
        return ForkedService(self.endpoint, self._name, self._signature, self._options)


class ForkedService:
    """What a fork's child has in place of the RunningService of its parent."""

    def __init__(self, endpoint: str, name: str, signature: CallSignature, options: BatchOptions) -> None:
        self.endpoint = endpoint
        self._recipe = (endpoint, name, signature, options)
        self._link = new_link(endpoint, name, timeout_s=_FORK_TIMEOUT_S)
        self.engine = engine_on(self._link, signature, options)
        self._options = options
        self._budget = BudgetLookout(name, self.statistics)

    def set_options(self, options: BatchOptions) -> None:
        raise RunnerClosed("the options belong to the process that started the service")

    def statistics(self) -> Statistics:
        return Statistics.from_numbers(self._link.statistics())

    def check_budget(self) -> bool:
        """Looks at the budget; True: no more."""
        budget_ms = self._options.max_latency_ms
        return budget_ms is not None and self._budget.look(budget_ms)

    def stop(self, timeout_s: float | None) -> None:
        """Ends the child's own connection, and nothing else."""
        self._link.close()

    def as_client(self) -> ForkedService:
        return ForkedService(*self._recipe)


class LocalEngine:
    """The engine of the process that owns the dispatcher: calls go straight into its queue."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        signature: CallSignature,
        outcomes: Outcomes,
        options: BatchOptions,
        allow_pickle: bool,
    ) -> None:
        self.max_latency_ms = options.max_latency_ms
        self._dispatcher = dispatcher
        self._signature = signature
        self._outcomes = outcomes
        self._allow_pickle = allow_pickle

    def submit(self, call: Call) -> None:
        out = prepare(self._signature, call, allow_pickle=self._allow_pickle)
        origin = _LocalOrigin(self._outcomes, out)
        entry = Entry(origin, out.rows, out.key, out.buffers, call.deadline_ns, call.client)
        call.data = entry
        if not self._dispatcher.submit(entry):
            raise RunnerClosed("the service was stopped: no new calls are taken")

    def assist(self, call: Call) -> int:
        # The caller blocks now: no end of a loop's turn will come to send its call.
        self._dispatcher.flush()
        return -1

    def cancel(self, call: Call) -> None:
        entry, call.data = call.data, None
        if entry is not None:
            self._dispatcher.cancel(entry)


class _LocalOrigin:
    """A call of this process. All of them are one client."""

    __slots__ = ("_out", "_outcomes")

    client = 0

    def __init__(self, outcomes: Outcomes, out: Outgoing) -> None:
        self._outcomes = outcomes
        self._out = out

    def answer(self, parts: list[Part]) -> None:
        self._outcomes.answer(self._out, parts)

    def fail(self, failure: Failure) -> None:
        self._outcomes.fail(self._out, failure)


def _start_error(death: Death) -> Exception:
    if death.setup is not None:
        return error_of(death.setup, allow_pickle=True)
    error = error_of(death.failure, allow_pickle=True)
    if "start_timeout_s" in str(error):
        return DeadlineExceeded(str(error))
    return error


def _scheduler(options: BatchOptions, *, batches: bool) -> Scheduler:
    return Scheduler(one_call_a_batch=not batches, **options.for_scheduler())
