"""Workers from the shell, and how workers of every kind come, leave and come back."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
import threading

import models
import numpy as np
import pytest
from fakes import Caller, wait_until
from proxy import HOLD, Proxy
from rawpeer import RawDispatcher, RawPeer
from scripted import Script, Visit, script, serve
from shell import Shell

from batching import BatchOptions, Runner, connect, runner_service
from batching._native.rows import BufferPool
from batching.runner import endpoints
from batching.runner.host import host_of
from batching.runner.model import Batch, Model
from batching.runner.native import native_plane
from batching.runner.native_worker import NativeWorkerLink
from batching.runner.service import _State
from batching.runner.signals import FORCED
from batching.runner.standing import FIRST_PAUSE_S, LONGEST_PAUSE_S, Next, Standing
from batching.runner.wire import Greeting, Plain, Role, Type

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

KINDS = {
    "a thread": "Scripted({path!r})",
    "several threads": "Scripted({path!r}, options=BatchOptions(concurrency=2))",
    "a loop": "AsyncScripted({path!r}, name='Scripted')",
}


@pytest.fixture
def test(tmp_path):
    with script(tmp_path) as own:
        yield own


@pytest.fixture
def shell(tmp_path, test):
    """Starts a worker of the script from the shell; its runner is of one of the KINDS."""

    def start(kind: str, endpoint: str) -> Shell:
        made = KINDS[kind].format(path=test.path)
        (tmp_path / "served.py").write_text(
            textwrap.dedent(f"""
            from batching import BatchOptions
            from scripted import AsyncScripted, Scripted
            model = {made}
        """)
        )
        return Shell(tmp_path, "worker", "served:model", "--connect", endpoint)

    return start


def keep_busy(service, test: Script, pid: int) -> tuple[Caller, Visit]:
    """A call whose batch this process has, and has not answered; all others are free."""
    calls, visits = [], []
    while not visits or visits[-1].pid != pid:
        calls.append(Caller(service.run, len(calls)))
        visits.append(test.expect_batch())
    for visit in visits[:-1]:
        visit.echo()
    wait_until(lambda: service.statistics().in_flight_batches == 1, "free workers")
    return calls[-1], visits[-1]


def supervised_pid(service, worker: Shell) -> int:
    """Of the worker that is not from the shell."""
    _, pids = service._running._dispatcher.inspect()
    (pid,) = [pid for pid in pids if pid != worker.process.pid]
    return pid


# ---- leaving ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_is_asked_to_leave_runs_the_batch_that_is_on_its_way(tmp_path, test, shell, kind):
    with (
        serve(test, isolate_errors=False) as service,  # a batch that is lost fails its caller
        Proxy(tmp_path, service.endpoint) as proxy,
        shell(kind, proxy.endpoint) as worker,
    ):
        wait_until(lambda: service.statistics().workers_ready == 2, "the second worker")
        held, visit = keep_busy(service, test, supervised_pid(service, worker))
        proxy.down = HOLD
        call = Caller(service.run, "last")
        wait_until(lambda: service.statistics().in_flight_batches == 2, "a batch on its way")
        worker.signal(signal.SIGTERM)
        wait_until(lambda: service.statistics().workers_ready == 1, "word of its leave")
        proxy.release()
        batch = test.expect_batch()
        assert batch.pid == worker.process.pid
        batch.echo()
        assert call.result() == "last"
        assert worker.end()[0] == 0
        visit.echo()
        held.result()


def test_a_second_signal_ends_a_worker_at_once(test, shell):
    with serve(test) as service, shell("a thread", service.endpoint) as worker:
        wait_until(lambda: service.statistics().workers_ready == 2, "the second worker")
        held, _ = keep_busy(service, test, worker.process.pid)
        worker.signal(signal.SIGTERM)
        wait_until(lambda: service.statistics().workers_ready == 1, "word of its leave")
        worker.signal(signal.SIGTERM)
        assert worker.end()[0] == FORCED
        test.expect_batch().echo()  # elsewhere
        held.result()


@pytest.mark.parametrize("isolate", [True, False])
def test_what_a_worker_had_not_started_when_it_said_goodbye_runs_elsewhere(isolate):
    runner = models.Echo(options=BatchOptions(isolate_errors=isolate))
    with runner_service(runner) as service:
        for _ in range(4):  # more often than deaths are forgiven
            peer = RawPeer(service.endpoint)
            peer.greet("Echo", Role.WORKER, credits=4)
            wait_until(lambda: service.statistics().workers_ready == 2, "the second worker")
            call = Caller(service.run, np.ones(1))
            (batch,) = peer.hear()  # who has more free credits gets it
            assert batch.type == Type.BATCH
            peer.say(Plain(Type.BYE))
            assert call.result() == 1
            peer.close()


def test_a_worker_that_dies_while_a_service_stops_is_replaced_and_the_call_answered(test):
    with serve(test) as service:
        call = Caller(service.run, 1)
        first = test.expect_batch()
        stopping = Caller(service.stop)
        wait_until(lambda: service._state is _State.STOPPING, "the stop")
        first.kill()
        second = test.expect_batch()
        assert second.pid != first.pid
        second.echo()
        assert call.result() == 1
        stopping.result()


# ---- coming back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_whose_connection_is_lost_dials_again(tmp_path, test, shell, kind):
    with (
        serve(test) as service,
        Proxy(tmp_path, service.endpoint) as proxy,
        shell(kind, proxy.endpoint) as worker,
    ):
        wait_until(lambda: service.statistics().workers_ready == 2, "the second worker")
        held, visit = keep_busy(service, test, worker.process.pid)
        proxy.cut()
        again = test.expect_batch()  # the call runs elsewhere
        with Proxy(tmp_path, service.endpoint):
            # Its answer to the lost connection's batch is nobody's any more.
            visit.order("raise", "too late")
            wait_until(lambda: service.statistics().workers_ready == 2, "the worker that is back")
            again.echo()
            assert held.result() == 0
            held, visit = keep_busy(service, test, worker.process.pid)
            visit.echo()
            held.result()
            worker.signal(signal.SIGTERM)
            assert worker.end()[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_dials_in_vain_leaves_when_it_is_asked_to(tmp_path, shell, kind):
    with shell(kind, f"ipc://{tmp_path}/nobody") as worker:
        assert "is ready" in worker.error_line()
        worker.signal(signal.SIGTERM)
        assert worker.end() == (0, "")


def test_a_service_that_was_killed_and_started_again_has_its_worker_back(tmp_path, test, shell):
    with shell("a thread", f"ipc://{tmp_path}/socket") as worker:
        for _ in range(2):
            served = Shell(tmp_path, "serve", "served:model", "--bind", f"ipc://{tmp_path}/socket")
            with served, connect(served.line(), "Scripted") as handle:
                wait_until(lambda handle=handle: handle.statistics().workers_ready == 2, "the worker")
                served.signal(signal.SIGKILL)
                served.end()
        worker.signal(signal.SIGTERM)
        assert worker.end()[0] == 0


def test_a_dead_worker_whose_child_keeps_the_connection_open_is_noticed(tmp_path, test, monkeypatch):
    monkeypatch.setattr(endpoints, "LOCAL_HEARTBEAT_MS", (100, 2_000))
    (tmp_path / "served.py").write_text(
        textwrap.dedent(f"""
        import os, signal
        from scripted import Scripted
        class Forks(Scripted):
            def _run_batch(self, x):
                child = os.fork()
                if not child:
                    os.close(1)
                    os.close(2)
                    signal.alarm(60)
                    signal.pause()
                    os._exit(0)
                return super()._run_batch([child])
        model = Forks({test.path!r}, name="Scripted")
    """)
    )
    with serve(test) as service:
        first, held = Caller(service.run, 0), test.expect_batch()  # the service's own worker is busy
        with Shell(tmp_path, "worker", "served:model", "--connect", service.endpoint) as worker:
            second, lost = Caller(service.run, 1), test.expect_batch()
            try:
                worker.signal(signal.SIGKILL)
                assert worker.end()[0] == -signal.SIGKILL
                wait_until(lambda: service.statistics().workers_ready == 1, "word of the death")
            finally:
                os.kill(lost.rows[0], signal.SIGKILL)
        held.echo()
        again = test.expect_batch()
        assert again.rows == [1]
        again.echo()
        assert (first.result(), second.result()) == (0, 1)


def test_pauses_between_dials_double_until_a_dispatcher_says_welcome():
    standing = Standing(redials=True)
    pauses = []
    for _ in range(12):
        assert standing.next(lost=True) is Next.DIAL
        pauses.append(standing.pause_s())
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    standing.hear(Type.WELCOME)
    assert standing.pause_s() == FIRST_PAUSE_S


def test_a_refusal_is_final_unless_it_was_the_answer_to_what_was_meant_for_another_dispatcher():
    standing = Standing(redials=True)
    standing.hear(Type.ERROR, "say HELLO first")
    assert standing.next(lost=True) is Next.DIAL
    assert standing.refusal == ""
    standing.hear(Type.ERROR, "no such runner")
    assert standing.next(lost=False) is Next.LEAVE
    assert standing.next(lost=True) is Next.LEAVE
    assert standing.refusal == "no such runner"


def test_a_worker_that_a_supervisor_watches_does_not_dial_again():
    standing = Standing(redials=False)
    standing.hear(Type.WELCOME)
    assert standing.next(lost=False) is Next.STAY
    assert standing.next(lost=True) is Next.LEAVE
    assert "lost" in standing.refusal


class Mute:
    """A link that gives out one batch and cannot take its answer."""

    def __init__(self) -> None:
        self._batches = [Batch(None, 1, 0, 0, b"", [])]
        self.waits = threading.Event()

    def attach(self, deliver) -> None:
        asyncio.get_running_loop().call_soon(deliver, self._batches.pop())

    def get(self):
        if self._batches:
            return self._batches.pop()
        self.waits.wait()

    def send(self, batch, answer) -> None:
        raise MemoryError("no memory for an answer")


@pytest.mark.parametrize(
    ("runner", "concurrency"), [(models.Echo(), 1), (models.Echo(), 3), (models.AsyncDouble(), 1)]
)
def test_a_worker_that_cannot_send_an_answer_ends_and_its_batch_runs_elsewhere(runner, concurrency):
    host = host_of(runner, Model(runner, allow_pickle=True), concurrency)
    link = Mute()
    with pytest.raises(MemoryError, match="for an answer"):
        host.run(link, lambda: None)
    link.waits.set()


@pytest.mark.skipif(not native_plane(), reason="is about the native plane")
def test_a_worker_that_is_asked_to_leave_while_it_dials_says_goodbye(tmp_path):
    delivered = []
    with RawDispatcher(f"ipc://{tmp_path}/raw") as dispatcher:
        hello = Greeting(Type.HELLO, Role.WORKER, "Echo", credits=1)
        link = NativeWorkerLink(f"ipc://{tmp_path}/raw", hello, BufferPool(), redials=True)

        async def main():
            link.attach(delivered.append)
            link.leave()
            link.start()
            await asyncio.sleep(0)
            assert delivered == [None]
            link.close()

        asyncio.run(main())
        assert [dispatcher.hear().type, dispatcher.hear().type] == [Type.HELLO, Type.BYE]


# ---- which link ---------------------------------------------------------------------------------


class Threads(Runner):
    """Says which threads its worker has, and how many of its batches run at once."""

    def _setup(self):
        self.met = threading.Barrier(self.options.concurrency)

    def _run_batch(self, x):
        self.met.wait(20)
        return [sorted(thread.name for thread in threading.enumerate()) for _ in x]


class LoopThreads(Runner):
    async def _run_batch(self, x):
        return [sorted(thread.name for thread in threading.enumerate()) for _ in x]


@pytest.mark.skipif(not native_plane(), reason="is about the native plane")
@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("kind", [Threads, LoopThreads])
def test_no_worker_needs_a_thread_to_talk_to_its_dispatcher(kind, concurrency):
    options = BatchOptions(concurrency=concurrency, max_batch_size=1)
    with runner_service(kind(options=options)) as service:
        calls = [Caller(service.run, i) for i in range(concurrency)]
        names = {name for call in calls for name in call.result()}
    threads = {f"batch_{i}" for i in range(concurrency)} if kind is Threads and concurrency > 1 else set()
    assert names == {"MainThread", "batching-life"} | threads


def test_the_process_of_a_worker_is_the_one_that_greeted(test):
    with serve(test) as service:
        call = Caller(service.run, 1)
        batch = test.expect_batch()
        assert batch.pid in service._running._dispatcher.inspect()[1]
        assert batch.pid != os.getpid()
        batch.echo()
        assert call.result() == 1
