"""The supervisor: deaths are noticed at once, replaced with pauses that grow, and nobody is left."""

from __future__ import annotations

import os
import queue
import signal
import threading
from pathlib import Path

import pytest
from fakes import PATIENCE_S, wait_until
from scripted import is_alive

from batching import Runner
from batching.runner import supervisor as module
from batching.runner.endpoints import PrivateDirectory
from batching.runner.recipe import pickled
from batching.runner.supervisor import Death, Supervisor, WorkerPlan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]


class Waits(Runner):
    """Tells its process through a named pipe, and never becomes ready."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def _setup(self) -> None:
        with open(self.path, "w") as pipe:
            pipe.write(str(os.getpid()))
        threading.Event().wait()

    def _run_batch(self, x):
        return x


class Fails(Runner):
    def _setup(self) -> None:
        raise ValueError("x" * 200_000)  # more than a pipe holds

    def _run_batch(self, x):
        return x


@pytest.fixture
def unknown() -> queue.SimpleQueue[str]:
    return queue.SimpleQueue()


@pytest.fixture
def failures() -> queue.SimpleQueue[BaseException]:
    return queue.SimpleQueue()


@pytest.fixture
def supervise(tmp_path, unknown, failures):
    """Starts a supervisor of one worker; its deaths come through a queue."""
    started = []

    def make(runner: Runner, start_timeout_s: float = 60.0) -> tuple[Supervisor, queue.SimpleQueue[Death]]:
        deaths: queue.SimpleQueue[Death] = queue.SimpleQueue()
        recipe = pickled(runner)
        plan = WorkerPlan(recipe, f"ipc://{tmp_path}/none", True, 1, start_timeout_s)
        supervisor = Supervisor(plan, 1, deaths.put, lambda token: None, unknown.put, failures.put)
        started.append(supervisor)
        supervisor.start()
        return supervisor, deaths

    yield make
    for supervisor in started:
        supervisor.retire(0)
        supervisor.join()


@pytest.fixture
def pipe(tmp_path) -> Path:
    path = tmp_path / "pid"
    os.mkfifo(path)
    return path


def test_a_death_is_reported_with_its_signal_and_the_worker_is_replaced(supervise, pipe):
    _, deaths = supervise(Waits(str(pipe)))
    first = int(pipe.read_text())
    os.kill(first, signal.SIGTERM)
    death = deaths.get(timeout=PATIENCE_S)
    assert (death.failure.number, death.failure.exit_code) == (signal.SIGTERM, -1)
    assert "SIGTERM" in death.failure.message
    assert not death.was_ready
    assert int(pipe.read_text()) != first


@pytest.mark.parametrize("told", [lambda it: it.kill("9-dead", "why"), lambda it: it.ready("9-dead")])
def test_a_token_of_no_process_is_named_as_unknown(supervise, pipe, unknown, told):
    supervisor, _ = supervise(Waits(str(pipe)))
    told(supervisor)
    assert unknown.get(timeout=PATIENCE_S) == "9-dead"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_ends_the_supervisor_itself_is_told_and_no_worker_is_left(
    supervise, pipe, failures, monkeypatch
):
    supervisor, _ = supervise(Waits(str(pipe)))
    pid = int(pipe.read_text())
    monkeypatch.setattr(supervisor, "_on_unknown", lambda token: [].pop())
    supervisor.ready("9-dead")
    assert isinstance(failures.get(timeout=PATIENCE_S), IndexError)
    supervisor.join()
    assert not is_alive(pid)


def test_a_death_is_noticed_without_pidfds_too(supervise, pipe, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    _, deaths = supervise(Waits(str(pipe)))
    os.kill(int(pipe.read_text()), signal.SIGKILL)
    assert deaths.get(timeout=PATIENCE_S).failure.number == signal.SIGKILL


def test_what_setup_raised_is_reported_however_long_it_is(supervise):
    _, deaths = supervise(Fails())
    death = deaths.get(timeout=PATIENCE_S)
    assert death.setup is not None
    assert death.setup.type_name == "ValueError"
    assert death.setup.message.endswith("x" * 1000)
    assert death.failure.exit_code == 1


def test_pauses_double_until_a_worker_was_ready(supervise, pipe, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    supervisor, deaths = supervise(Waits(str(pipe)))
    for failures in (1, 2, 3):
        os.kill(int(pipe.read_text()), signal.SIGKILL)
        deaths.get(timeout=PATIENCE_S)
        wait_until(lambda failures=failures: supervisor._failures == failures, "the count")
    pid = int(pipe.read_text())
    supervisor.ready(next(iter(supervisor._processes)))
    wait_until(lambda: supervisor._failures == 0, "the reset")
    os.kill(pid, signal.SIGKILL)
    assert deaths.get(timeout=PATIENCE_S).was_ready
    assert supervisor._failures == 0


def test_a_worker_that_is_not_ready_in_time_is_killed(supervise, pipe):
    _, deaths = supervise(Waits(str(pipe)), start_timeout_s=0.5)
    death = deaths.get(timeout=PATIENCE_S)
    assert "start_timeout_s=0.5" in death.failure.message
    assert death.failure.number == signal.SIGKILL


def test_retiring_kills_those_who_do_not_leave_and_starts_nobody(supervise, pipe):
    supervisor, _ = supervise(Waits(str(pipe)))
    pid = int(pipe.read_text())
    supervisor.ready(next(iter(supervisor._processes)))  # nobody asks it to leave, though
    supervisor.retire(0.2)
    supervisor.join()
    assert not is_alive(pid)
    assert not supervisor._processes


def test_a_private_directory_is_private_and_removed():
    directory = PrivateDirectory()
    assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.remove()
    assert not directory.path.exists()
