"""Forks: the child of a process with a service or a connection is one more client, and stops nothing."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from typing import Any

import models
import pytest
from fakes import PATIENCE_S, Caller, wait_until
from scripted import is_alive

from batching import Runner, RunnerClosed, ServiceUnreachable, connect, runner_service
from batching.runner import endpoints
from batching.runner.supervisor import Supervisor, WorkerPlan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(30),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
]


def in_a_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked child, which ends as a program ends: with its exit handlers."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads: the point
        pid = os.fork()
    if not pid:
        signal.alarm(int(PATIENCE_S))
        try:
            result = (work(), None)
        except BaseException as error:
            result = (None, error)
        with open(writer, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        result, error = pickle.load(pipe)
    os.waitpid(pid, 0)
    if error is not None:
        raise error
    return result


class Pid(Runner):
    def _run_batch(self, x):
        return [os.getpid() for _ in x]


def test_the_child_of_a_service_calls_the_parents_workers_and_does_not_stop_them():
    with runner_service(Pid()) as service:
        worker = service.run(0)

        def child():
            answers = [service.run(0), service.run_batch([0, 0])]
            numbers = service.statistics().workers_ready
            service.stop()
            try:
                service.run(0)
            except RunnerClosed as error:
                return answers, numbers, str(error)
            raise AssertionError

        answers, ready, text = in_a_child(child)
        assert answers == [worker, [worker, worker]]
        assert ready == 1
        assert "was stopped" in text
        assert service.run(0) == worker
    assert not is_alive(worker)


def test_the_child_of_a_connected_client_connects_anew():
    with runner_service(models.Double()) as service, connect(service.endpoint, "Double") as handle:
        assert handle.run(1) == 2
        assert in_a_child(lambda: [handle.run(2), handle.run(3)]) == [4, 6]
        assert in_a_child(lambda: connect(service.endpoint, "Double").run(4)) == 8
        assert handle.run(5) == 10


def test_the_child_of_a_child_is_a_client_too():
    with runner_service(models.Double()) as service:
        assert in_a_child(lambda: in_a_child(lambda: service.run(2))) == 4


def test_a_child_that_lives_on_does_not_keep_the_workers_of_a_dead_parent(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import os, signal, sys, warnings
        from batching import Runner, runner_service
        warnings.simplefilter("ignore")
        class Pid(Runner):
            def _run_batch(self, x):
                return [os.getpid() for _ in x]
        service = runner_service(Pid()).start()
        worker = service.run(0)
        child = os.fork()
        if not child:
            signal.pause()
        print(worker, child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    )
    with subprocess.Popen([sys.executable, "-P", program], stdout=subprocess.PIPE, text=True) as process:
        worker, child = (int(word) for word in process.stdout.readline().split())
        try:
            wait_until(lambda: not is_alive(worker), "the end of the worker")
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_dead_service_whose_child_keeps_its_connections_open_is_noticed(tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import os, signal, threading, warnings
        from batching import Runner, runner_service
        warnings.simplefilter("ignore")
        class Waits(Runner):
            def _run_batch(self, x):
                if x == ["wait"]:
                    threading.Event().wait()
                return x
        service = runner_service(Waits()).start()
        print(service.endpoint, flush=True)
        input()
        child = os.fork()
        if not child:
            signal.pause()
        print(child, flush=True)
        signal.pause()
    """)
    )
    monkeypatch.setattr(endpoints, "LOCAL_HEARTBEAT_MS", (100, 2_000))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen([sys.executable, "-P", program], **pipes) as process,
        connect(process.stdout.readline().strip(), "Waits") as handle,
    ):
        assert handle.run(1) == 1
        process.stdin.write("fork\n")
        process.stdin.flush()
        child = int(process.stdout.readline())
        try:
            call = Caller(handle.run, "wait")
            wait_until(lambda: handle.statistics().in_flight_batches == 1, "the call")
            process.kill()
            with pytest.raises(ServiceUnreachable, match="lost"):
                call.result()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_that_is_forked_while_a_worker_starts_knows_what_keeps_it_alive(tmp_path, monkeypatch):
    plan = WorkerPlan(b"", f"ipc://{tmp_path}/none", True, 1, 60.0)
    supervisor = Supervisor(plan, 1, *[lambda what: None] * 4)
    at_start: list[int] = []
    popen = subprocess.Popen

    def start(*arguments, **options):
        at_start.extend(supervisor.lifelines())
        return popen(*arguments, **options)

    def boot(self, token, pipe):
        booted.wait(PATIENCE_S)
        self._let_go(pipe)

    booted = threading.Event()
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(Supervisor, "_boot", boot)
    supervisor.start()
    wait_until(lambda: len(supervisor.lifelines()) == 2, "the descriptor of the thread that boots it")
    assert len(at_start) == 1
    assert set(at_start) < set(supervisor.lifelines())
    assert len({os.fstat(fd).st_ino for fd in supervisor.lifelines()}) == 1  # one pipe
    booted.set()
    supervisor.retire(0)
    supervisor.join()


def test_a_child_that_is_forked_as_soon_as_there_is_a_worker_lets_go_of_it_and_is_a_client(monkeypatch):
    children = []
    begin = Supervisor.start

    def writes_to():
        fds = [int(fd) for fd in os.listdir("/dev/fd") if os.path.exists(f"/dev/fd/{fd}")]
        return {os.fstat(fd).st_ino for fd in fds if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE}

    def start(supervisor):
        begin(supervisor)
        wait_until(supervisor.lifelines, "a worker")
        lifelines = {os.fstat(fd).st_ino for fd in supervisor.lifelines()}
        children.append(in_a_child(lambda: (lifelines & writes_to(), service.endpoint)))

    monkeypatch.setattr(Supervisor, "start", start)
    service = runner_service(models.Double())
    with service:
        assert children == [(set(), service.endpoint)]
        assert service.run(2) == 4


def test_a_service_that_was_only_described_can_be_started_in_the_child():
    service = runner_service(models.Double())

    def child():
        with service:
            return service.run(3)

    assert in_a_child(child) == 6
