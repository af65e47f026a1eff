"""Supervisor: starts worker processes, notices their end, replaces them.

Guarantees      1. a death is noticed at once, through a pidfd or a waiting thread, never
                   by asking again and again;
                2. a dead worker is replaced, at once the first time, then after a pause
                   that doubles; a worker that became ready ends the doubling;
                3. a `_setup` that raises is reported with its traceback as soon as it did;
                4. whoever goes by a token of no process here is named as unknown: nobody
                   waits for the death of a worker that is dead already, or was none;
                5. after `stop` no worker process is left, nor after the death of this
                   process, whatever ended it: each worker waits for the end of a pipe.
Not promised    that a replacement's `_setup` works: it is tried again, for ever.
Why this shape  one thread owns all processes; everybody else posts to it.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .mailbox import Mailbox
from .wire import NONE, Code, Failure

__all__ = ["Death", "Supervisor", "WorkerPlan"]

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
# From the request to leave to the kill: for what a `_shutdown` may take.
STOP_GRACE_S = 10.0

# Held while lifelines are opened or closed, and by who forks: so that the child knows all of them.
_opening = threading.Lock()
os.register_at_fork(
    before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_opening.release
)

_MAIN = str(Path(__file__).with_name("worker_main.py"))


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What every worker of one service is started with."""

    recipe: bytes
    endpoint: str
    allow_pickle: bool
    credits: int
    start_timeout_s: float


@dataclass(frozen=True, slots=True)
class Death:
    """How one worker ended. `setup` is what its `_setup` raised, if that is why."""

    token: str
    failure: Failure
    was_ready: bool
    setup: Failure | None = None


@dataclass(eq=False)
class _Process:
    """A running worker. Two pipes: the worker waits for the end of `life`, and writes
    what `_setup` raised into `report`."""

    token: str
    popen: subprocess.Popen[bytes]
    life: int
    report: int
    started_s: float
    pidfd: int = -1
    ready: bool = False
    killed_for: str = ""
    report_open: bool = True
    text: bytearray = field(default_factory=bytearray)


class Supervisor:
    """Owns `count` workers from `start` to `stop`.

    Args:
        on_death: with each Death, before the worker is replaced.
        on_ready: with the token of a worker that greeted and lives.
        on_unknown: with a token that no process here has, any more or at all.
        on_failure: with what ended the supervisor itself, memory for instance: no worker is left.

    They are called in the supervisor's thread.
    """

    def __init__(
        self,
        plan: WorkerPlan,
        count: int,
        on_death: Callable[[Death], None],
        on_ready: Callable[[str], None],
        on_unknown: Callable[[str], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._plan = plan
        self._count = count
        self._on_death = on_death
        self._on_ready = on_ready
        self._on_unknown = on_unknown
        self._on_failure = on_failure
        self._mailbox = Mailbox()
        self._selector = selectors.DefaultSelector()
        self._processes: dict[str, _Process] = {}
        self._restarts_s: list[float] = []  # when a replacement is due
        self._failures = 0  # deaths in a row of workers that never became ready
        self._stopping = False
        self._kill_s = float("inf")  # when those that were asked to leave are killed
        self._lifelines: set[int] = set()
        self._numbers = itertools.count(1)
        self._thread = threading.Thread(target=self._serve, name="batching-supervisor", daemon=True)

    # ---- any thread ----------------------------------------------------------------

    def start(self) -> None:
        self._selector.register(self._mailbox.fileno(), selectors.EVENT_READ)
        self._restarts_s = [time.monotonic()] * self._count
        self._thread.start()

    def ready(self, token: str) -> None:
        """The worker greeted the dispatcher."""
        self._mailbox.urge(self._mark_ready, token)

    def kill(self, token: str, why: str) -> None:
        """Ends a worker that hangs; its death is reported like any other."""
        self._mailbox.urge(self._kill, (token, why))

    def retire(self, grace_s: float = STOP_GRACE_S) -> None:
        """Replaces nobody any more. Workers that do not leave within `grace_s` seconds,
        once somebody asks them to, are killed. May be called again, with less grace."""
        self._mailbox.urge(self._retire, grace_s)

    def join(self) -> None:
        """Waits, after `retire`, until no process is left."""
        if self._thread.is_alive():
            self._thread.join()

    def lifelines(self) -> list[int]:
        """The descriptors that keep the workers alive: a fork's child must close its own."""
        return list(self._lifelines)

    # ---- the thread ------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while not (self._stopping and not self._processes):
                self._start_due()
                for key, _ in self._selector.select(self._timeout_s()):
                    self._event(key)
                self._kill_late()
        except BaseException as error:
            self._on_failure(error)  # a bug of ours, or no memory: no caller may hang for it
            raise
        finally:
            # Empty after a stop.
            self._stopping = True
            for process in list(self._processes.values()):
                process.popen.kill()
                with suppress(Exception):
                    self._died(process)
            self._selector.close()
            self._mailbox.close()

    def _timeout_s(self) -> float | None:
        times = [*self._restarts_s, self._kill_s]
        times += [self._start_limit_s(process) for process in self._processes.values()]
        soonest = min(times)
        return None if soonest == float("inf") else max(0.0, soonest - time.monotonic())

    def _start_limit_s(self, process: _Process) -> float:
        if process.ready or process.killed_for:
            return float("inf")
        return process.started_s + self._plan.start_timeout_s

    def _event(self, key: selectors.SelectorKey) -> None:
        if key.fd == self._mailbox.fileno():
            for handler, argument in self._mailbox.take():
                handler(argument)
            return
        process, what = key.data
        if process.token not in self._processes:
            return
        if what == "report":
            self._read_report(process)
        else:
            self._died(process)

    # ---- starting ----------------------------------------------------------------------

    def _start_due(self) -> None:
        now_s = time.monotonic()
        due = [at for at in self._restarts_s if at <= now_s and not self._stopping]
        self._restarts_s = [at for at in self._restarts_s if at > now_s and not self._stopping]
        for _ in due:
            self._spawn()

    def _spawn(self) -> None:
        token = f"{next(self._numbers)}-{secrets.token_hex(8)}"
        life_read, life_write = self._lifeline(os.pipe)
        report_read, report_write = os.pipe()
        command = [sys.executable, "-P", _MAIN, str(life_read), str(report_write)]
        try:
            popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(life_read, report_write))
        except OSError as error:
            self._let_go(life_write)
            for fd in (life_read, report_read, report_write):
                os.close(fd)
            failure = Failure(0, Code.WORKER_DIED, f"a worker could not be started: {error}")
            self._replace(Death(token, failure, was_ready=False))
            return
        os.close(life_read)
        os.close(report_write)
        os.set_blocking(report_read, False)
        process = _Process(token, popen, life_write, report_read, time.monotonic())
        self._processes[token] = process
        self._selector.register(report_read, selectors.EVENT_READ, (process, "report"))
        self._watch(process)
        # Behind the watching: a large recipe fills the pipe, and its reader may die meanwhile.
        # The thread's own: the other may be closed, and its number reused.
        _, pipe = self._lifeline(lambda: (life_write, os.dup(life_write)))
        threading.Thread(target=self._boot, args=(token, pipe), name="batching-boot", daemon=True).start()

    def _boot(self, token: str, pipe: int) -> None:
        plan = self._plan
        # "" is the working directory, which the worker may not share for long.
        path = [entry or os.getcwd() for entry in sys.path if isinstance(entry, str)]
        boot = {
            "sys_path": path, "argv": sys.argv, "endpoint": plan.endpoint, "token": token,
            "allow_pickle": plan.allow_pickle, "credits": plan.credits, "recipe_bytes": len(plan.recipe),
        }  # fmt: skip
        head = json.dumps(boot).encode()
        data = memoryview(len(head).to_bytes(8, "little") + head + plan.recipe)
        with suppress(OSError):  # it died: its death says more
            while data:
                data = data[os.write(pipe, data) :]
        self._let_go(pipe)

    def _lifeline(self, make: Callable[[], tuple[int, int]]) -> tuple[int, int]:
        """A pair of descriptors, of which the second keeps a worker alive."""
        with _opening:
            pair = make()
            self._lifelines.add(pair[1])
        return pair

    def _let_go(self, fd: int) -> None:
        with _opening:
            self._lifelines.discard(fd)
            os.close(fd)

    def _watch(self, process: _Process) -> None:
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):
                process.pidfd = os.pidfd_open(process.popen.pid)
                self._selector.register(process.pidfd, selectors.EVENT_READ, (process, "death"))
                return
        threading.Thread(target=self._wait, args=(process,), name="batching-wait", daemon=True).start()

    def _wait(self, process: _Process) -> None:
        process.popen.wait()
        self._mailbox.urge(self._died, process)

    # ---- living ------------------------------------------------------------------------

    def _mark_ready(self, token: str) -> None:
        process = self._processes.get(token)
        if process is None:
            self._on_unknown(token)
            return
        process.ready = True
        self._failures = 0
        self._on_ready(token)

    def _kill(self, request: tuple[str, str]) -> None:
        token, why = request
        process = self._processes.get(token)
        if process is None:
            self._on_unknown(token)
        # One that was asked to leave may close its connection, and has its grace.
        elif not self._stopping:
            process.killed_for = process.killed_for or why
            process.popen.kill()

    def _kill_late(self) -> None:
        now_s = time.monotonic()
        for process in list(self._processes.values()):
            if self._start_limit_s(process) <= now_s:
                process.killed_for = f"it was not ready within start_timeout_s={self._plan.start_timeout_s:g}"
                process.popen.kill()
            elif self._kill_s <= now_s:
                process.popen.kill()
        if self._kill_s <= now_s:
            self._kill_s = float("inf")

    def _retire(self, grace_s: float) -> None:
        self._stopping = True
        self._kill_s = min(self._kill_s, time.monotonic() + grace_s)
        self._restarts_s = []
        for process in list(self._processes.values()):
            if not process.ready:  # nobody can ask it to leave
                process.popen.kill()

    # ---- dying -------------------------------------------------------------------------

    def _died(self, process: _Process) -> None:
        if self._processes.pop(process.token, None) is None:
            return
        self._read_report(process)
        status = self._buried(process)
        setup = _setup_failure(process)
        self._replace(Death(process.token, _death_failure(process, status), process.ready, setup))

    def _replace(self, death: Death) -> None:
        self._on_death(death)
        if self._stopping:
            return
        pause_s = 0.0
        if not death.was_ready:
            pause_s = min(FIRST_PAUSE_S * 2.0**self._failures, LONGEST_PAUSE_S)
            self._failures = min(self._failures + 1, 32)
        self._restarts_s.append(time.monotonic() + pause_s)

    def _buried(self, process: _Process) -> int:
        """Waits for what has ended, closes what it leaves; its exit status as subprocess gives it."""
        status = process.popen.wait()
        if process.report_open:
            self._selector.unregister(process.report)
        os.close(process.report)
        if process.pidfd >= 0:
            self._selector.unregister(process.pidfd)
            os.close(process.pidfd)
        self._let_go(process.life)
        return status

    def _read_report(self, process: _Process) -> None:
        with suppress(BlockingIOError):
            while piece := os.read(process.report, 65_536):
                process.text += piece
            if process.report_open:
                process.report_open = False
                self._selector.unregister(process.report)


def _setup_failure(process: _Process) -> Failure | None:
    """What the worker wrote before it ended itself."""
    if process.ready or not process.text:
        return None
    try:
        texts: dict[str, Any] = json.loads(process.text)
        return Failure(
            0, Code.RUNNER_ERROR, texts["message"], texts["type_name"], texts["traceback"],
            base64.b64decode(texts["cause"]),
        )  # fmt: skip
    except (ValueError, KeyError):  # it died while it wrote
        return None


def _death_failure(process: _Process, status: int) -> Failure:
    if status < 0:
        how = f"was killed by signal {-status} ({_signal_name(-status)})"
    else:
        how = f"ended with exit code {status}"
    why = f": {process.killed_for}" if process.killed_for else ""
    message = f"worker {process.popen.pid} {how}{why}"
    exit_code, number = (NONE, -status) if status < 0 else (status, NONE)
    return Failure(0, Code.WORKER_DIED, message, exit_code=exit_code, number=number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
