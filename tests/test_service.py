"""`runner_service`: its life, its options, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
from fakes import PATIENCE_S, Caller, wait_until
from scripted import Script, Scripted, is_alive, script

import batching
from batching import (
    BatchOptions,
    DeadlineExceeded,
    InvalidPayload,
    Overloaded,
    Runner,
    RunnerClosed,
    RunnerError,
    WorkerDied,
    connect,
    runner_service,
)
from batching.runner.endpoints import MAX_PATH_BYTES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


@pytest.fixture
def test(tmp_path):
    with script(tmp_path) as own:
        yield own


class Pid(Runner):
    def _run_batch(self, x):
        return [os.getpid() for _ in x]


# ---- describing -------------------------------------------------------------------------


def test_nothing_is_spawned_before_start():
    service = runner_service(Pid())
    with pytest.raises(RunnerClosed, match="'Pid' is not started"):
        service.run(1)
    with pytest.raises(RunnerClosed, match="not started"):
        _ = service.endpoint
    with pytest.raises(RunnerClosed, match="not started"):
        service.statistics()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
        ({"workers": 1.5}, TypeError, "workers must be an int, got 1.5"),
        ({"keys": "file"}, ValueError, "not implemented yet"),
        ({"start_timeout_s": 0}, ValueError, "start_timeout_s must be above 0, got 0"),
        ({"endpoint": "http://x"}, ValueError, "'http://x'"),
        ({"endpoint": "tcp://0.0.0.0:5555"}, ValueError, "tcp beyond loopback needs keys"),
        ({"endpoint": "tcp://*:5555"}, ValueError, "tcp beyond loopback needs keys"),
        ({"endpoint": "tcp://example.org:5555"}, ValueError, "tcp beyond loopback needs keys"),
        ({"endpoint": "tcp://127.0.0.1"}, ValueError, "tcp://HOST:PORT"),
        ({"endpoint": "ipc://@abstract"}, ValueError, "a path of the file system"),
        (
            {"endpoint": "ipc:///" + "x" * MAX_PATH_BYTES},
            ValueError,
            f"at most {MAX_PATH_BYTES} bytes",
        ),
    ],
)
def test_a_bad_argument_is_named(arguments, error, text):
    with pytest.raises(error, match=text):
        runner_service(Pid(), **arguments)


def test_only_a_runner_can_be_served():
    with pytest.raises(TypeError, match="must be a Runner or a SimpleRunner, got 3"):
        runner_service(3)


def test_the_wrong_type_of_options_is_refused():
    service = runner_service(Pid())
    with pytest.raises(TypeError, match="must be BatchOptions"):
        service.options = {}
    with pytest.raises(ValueError, match="static_args of a service cannot be changed"):
        service.options = BatchOptions(static_args=("x",))


# ---- where it listens --------------------------------------------------------------------


def test_the_default_endpoint_is_a_socket_that_only_this_user_reaches():
    with runner_service(Pid()) as service:
        folder = Path(service.endpoint.removeprefix("ipc://")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(service.endpoint.removeprefix("ipc://")) <= MAX_PATH_BYTES
    assert not folder.exists()


def test_a_socket_of_the_users_own_is_reached_by_this_user_only(tmp_path):
    path = tmp_path / "socket"
    with runner_service(Pid(), endpoint=f"ipc://{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nobody_can_connect_before_the_socket_is_the_users_alone(tmp_path, monkeypatch):
    path, connected = tmp_path / "socket", []

    def chmod(*args):
        with socket.socket(socket.AF_UNIX) as stranger:
            connected.append(stranger.connect_ex(str(path)))
        return real_chmod(*args)

    real_chmod = os.chmod
    monkeypatch.setattr(os, "chmod", chmod)
    with runner_service(Pid(), endpoint=f"ipc://{path}"):
        assert connected == [errno.ECONNREFUSED]
        monkeypatch.undo()
    assert not path.exists()


def test_a_file_that_is_no_socket_is_let_be(tmp_path):
    path = tmp_path / "socket"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        runner_service(Pid(), endpoint=f"ipc://{path}").start()
    assert path.read_text() == "precious"


def test_a_second_service_does_not_take_a_live_socket_over(tmp_path):
    endpoint = f"ipc://{tmp_path}/socket"
    with runner_service(Pid(), endpoint=endpoint) as first:
        with pytest.raises(OSError, match=f"listens there: '{tmp_path}/socket'") as caught:
            runner_service(Pid(), endpoint=endpoint).start()
        assert caught.value.errno == errno.EADDRINUSE
        with connect(endpoint, "Pid") as handle:
            assert handle.run(1) == first.run(1)


def test_a_socket_that_was_left_behind_is_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/socket")
    with runner_service(Pid(), endpoint=f"ipc://{tmp_path}/socket") as service:
        assert service.run(1) != os.getpid()


def test_over_tcp_on_loopback_arrays_are_served_and_pickle_is_refused():
    with runner_service(models.Double(), endpoint="tcp://127.0.0.1:0") as service:
        assert not service.endpoint.endswith(":0")
        with connect(service.endpoint, "Double") as handle:
            np.testing.assert_array_equal(handle.run(np.ones(2)), [2, 2])
            assert handle.run("text") == "texttext"
            with pytest.raises(InvalidPayload, match="pickle is not allowed"):
                handle.run(range(3))
        with pytest.raises(InvalidPayload, match="pickle is not allowed"):
            service.run(range(3))


# ---- start -------------------------------------------------------------------------------


class Broken(Runner):
    def _setup(self):
        raise OSError("no file iris.joblib")

    def _run_batch(self, x):
        return x


class Dies(Runner):
    def _setup(self):
        os._exit(7)

    def _run_batch(self, x):
        return x


class Sleeps(Runner):
    def _setup(self):
        threading.Event().wait()

    def _run_batch(self, x):
        return x


def test_a_setup_that_raises_makes_start_raise_it_with_the_workers_traceback():
    service = runner_service(Broken(), workers=2)
    with pytest.raises(RunnerError, match=r"_setup raised OSError: no file iris\.joblib") as caught:
        service.start()
    assert caught.value.type_name == "OSError"
    assert caught.value.message == "no file iris.joblib"
    assert "in _setup" in caught.value.traceback
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(RunnerClosed, match="was stopped"):
        service.run(1)


def test_a_worker_that_dies_in_setup_makes_start_raise_its_exit_code():
    with pytest.raises(WorkerDied, match="ended with exit code 7") as caught:
        runner_service(Dies()).start()
    assert caught.value.exit_code == 7
    assert caught.value.signal is None


def test_a_setup_that_never_ends_is_bounded_by_the_start_timeout():
    with pytest.raises(DeadlineExceeded, match=r"start_timeout_s=0\.5"):
        runner_service(Sleeps(), start_timeout_s=0.5).start()


def test_an_attribute_that_cannot_be_pickled_is_named():
    runner = Pid()
    runner.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"Pid\.lock \(lock\) cannot be pickled.*_setup"):
        runner_service(runner).start()


def test_a_stopped_service_can_be_started_again():
    service = runner_service(models.Double())
    for _ in range(2):
        with service:
            assert service.run(2) == 4


def test_a_second_start_and_a_second_stop_do_nothing():
    service = runner_service(models.Double())
    service.start()
    assert service.start() is service
    service.stop()
    service.stop()
    with pytest.raises(RunnerClosed, match="was stopped"):
        service.run(1)


def test_async_with_starts_and_stops():
    async def main():
        async with runner_service(models.Double(), workers=2) as service:
            return await asyncio.gather(*(service.async_run(i) for i in range(20)))

    assert asyncio.run(main()) == [2 * i for i in range(20)]


def test_a_start_that_is_cancelled_leaves_no_process(tmp_path):
    runner = TellsPid()
    runner.path = str(tmp_path / "pid")
    os.mkfifo(runner.path)

    # Read by the loop: a thread that waits to open it would wait for ever for a worker that never came.
    pipe = os.open(runner.path, os.O_RDWR | os.O_NONBLOCK)

    async def main():
        loop = asyncio.get_running_loop()
        told = loop.create_future()
        loop.add_reader(pipe, lambda: told.done() or told.set_result(os.read(pipe, 32)))
        service = runner_service(runner)
        entering = asyncio.ensure_future(service.__aenter__())
        await asyncio.wait({entering, told}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        assert told.done(), entering
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        return int(told.result())

    try:
        assert not is_alive(asyncio.run(main()))
    finally:
        os.close(pipe)


class TellsPid(Runner):
    def _setup(self):
        with open(self.path, "w") as pipe:
            pipe.write(str(os.getpid()))
        threading.Event().wait()

    def _run_batch(self, x):
        return x


# ---- shipping the runner -------------------------------------------------------------------


def test_setup_runs_in_each_worker_and_not_here():
    class Loaded(Runner):
        def __init__(self):
            self.value = 1

        def _setup(self):
            self.value += 1

        def _run_batch(self, x):
            return [self.value for _ in x]

    runner = Loaded()
    with runner_service(runner, workers=2) as service:
        assert service.run(0) == 2
    assert runner.value == 1


def test_a_runner_defined_in_main_without_a_guard_works(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import numpy as np
        from batching import Runner, runner_service
        def helper(x):
            return x + OFFSET
        OFFSET = 10
        class Local(Runner):
            def _run_batch(self, x):
                return helper(x)
        with runner_service(Local(), workers=2) as service:
            print(service.run(np.zeros(2)).tolist(), flush=True)
    """)
    )
    done = subprocess.run(
        [sys.executable, "-P", program], capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False
    )
    assert (done.stdout, done.stderr) == ("[10.0, 10.0]\n", "")


def test_a_file_in_the_working_directory_shadows_nothing(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise ImportError('shadowed')")
    (tmp_path / "runner.py").write_text("raise ImportError('shadowed')")
    monkeypatch.chdir(tmp_path)
    with runner_service(models.Double()) as service:
        assert service.run(2) == 4


def test_setup_batches_and_shutdown_share_one_thread(tmp_path):
    runner = models_thread_recorder(tmp_path / "threads")
    with runner_service(runner) as service:
        service.run(0)
        service.run(0)
    assert len(set((tmp_path / "threads").read_text().split())) == 1
    assert (tmp_path / "threads").read_text().count("\n") == 4


def models_thread_recorder(path):
    class Recorder(Runner):
        def note(self):
            with open(path, "a") as file:
                print(threading.get_ident(), file=file)

        def _setup(self):
            self.note()

        def _run_batch(self, x):
            self.note()
            return x

        def _shutdown(self):
            self.note()

    return Recorder()


def test_an_async_runner_lives_on_one_loop_and_overlaps_its_batches():
    class Meeting(Runner):
        """Two batches that wait for each other."""

        options = BatchOptions(concurrency=2, max_batch_size=1)

        async def _setup(self):
            self.waiting = asyncio.get_running_loop().create_future()

        async def _run_batch(self, x):
            if x[0] == "second":
                self.waiting.set_result("met")
            return [await self.waiting for _ in x]

    with runner_service(Meeting()) as service:
        first = Caller(service.run, "first")
        assert service.run("second") == "met"
        assert first.result() == "met"


def test_a_simple_runner_is_served_one_call_at_a_time():
    with runner_service(models.Greet()) as service:
        assert not hasattr(service, "run_batch")
        assert service.run("Ada", greeting="hey") == "hey Ada"
        assert service.statistics().batches == 1
        with connect(service.endpoint, service.name) as handle:
            assert not hasattr(handle, "run_batch")
            assert handle.run("Bob", greeting="hey") == "hey Bob"


# ---- batches -----------------------------------------------------------------------------


def test_calls_that_come_while_a_batch_runs_share_the_next_one(test: Script):
    with runner_service(Scripted(test.path)) as service:
        first = Caller(service.run, 0)
        batch = test.expect_batch()
        others = [Caller(service.run, i) for i in range(1, 10)]
        wait_until(lambda: service.statistics().queued_calls == 9, "nine calls in the queue")
        batch.echo()
        second = test.expect_batch()
        assert sorted(second.rows) == list(range(1, 10))
        second.echo()
        assert first.result() == 0
        assert [other.result() for other in others] == list(range(1, 10))


def test_a_call_larger_than_a_batch_is_cut_and_rejoined_in_order():
    runner = models.Double(options=BatchOptions(max_batch_size=10))
    with runner_service(runner, workers=2) as service:
        rows = np.arange(64).reshape(32, 2)
        np.testing.assert_array_equal(service.run_batch(rows), rows * 2)
        with connect(service.endpoint, service.name) as handle:
            np.testing.assert_array_equal(handle.run_batch(rows), rows * 2)


def test_large_arrays_come_back_whole_in_memory_of_the_callers_own():
    with runner_service(models.Echo()) as service, connect(service.endpoint, "Echo") as handle:
        for way in (service, handle):
            big = np.arange(3 * 40_000, dtype=np.float64).reshape(3, 40_000)
            answer = way.run_batch(big)
            np.testing.assert_array_equal(answer, big)
            answer[:] = 0  # writable
            np.testing.assert_array_equal(way.run_batch(big), big)


def test_padded_batches_are_trimmed_again():
    class Sizes(Runner):
        options = BatchOptions(max_batch_size=8, allowed_batch_sizes=(4, 8))

        def _run_batch(self, x):
            return np.stack([x[:, 0], np.full(len(x), len(x))], axis=1)

    with runner_service(Sizes()) as service:
        rows = np.array([[1, 0], [2, 0], [3, 0]])
        np.testing.assert_array_equal(service.run_batch(rows), [[1, 4], [2, 4], [3, 4]])


def test_a_result_that_the_model_overwrites_later_is_not_changed():
    class Reuses(Runner):
        def _setup(self):
            self.out = np.zeros((1, 50_000))

        def _run_batch(self, x):
            self.out[:] = x
            return self.out

    with runner_service(Reuses()) as service:
        answers = [service.run(np.full(50_000, float(i))) for i in range(5)]
    assert [answer[0] for answer in answers] == [0, 1, 2, 3, 4]


# ---- errors and limits ----------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_names_the_numbers(test: Script):
    options = BatchOptions(max_batch_size=2, max_queue_rows=2)
    with runner_service(Scripted(test.path, options=options)) as service:
        running = Caller(service.run, 0)
        batch = test.expect_batch()
        waiting = [Caller(service.run, i) for i in (1, 2)]
        wait_until(lambda: service.statistics().queued_rows == 2, "a full queue")
        with pytest.raises(Overloaded, match="2 rows are queued, and 1 more would exceed max_queue_rows, 2"):
            service.run(3)
        with pytest.raises(InvalidPayload, match="a call of 3 rows is larger than max_queue_rows, 2"):
            service.run_batch([1, 2, 3])
        batch.echo()
        test.expect_batch().echo()
        assert [call.result() for call in (running, *waiting)] == [0, 1, 2]


def test_options_that_are_set_later_count_from_the_next_batch_on():
    with runner_service(models.BatchSize()) as service:
        rows = np.zeros((6, 1))
        assert set(service.run_batch(rows).ravel()) == {6}
        service.options = replace(service.options, max_batch_size=2, max_latency_ms=60_000)
        assert set(service.run_batch(rows).ravel()) == {2}


def test_a_cancelled_call_never_reaches_the_model(test: Script):
    async def main(service):
        first = asyncio.ensure_future(service.async_run(0))
        batch = await asyncio.to_thread(test.expect_batch)
        second, third = (asyncio.ensure_future(service.async_run(i)) for i in (1, 2))
        await asyncio.to_thread(wait_until, lambda: service.statistics().queued_calls == 2, "two calls")
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        batch.echo()
        after = await asyncio.to_thread(test.expect_batch)
        assert after.rows == [2]
        after.echo()
        assert await asyncio.gather(first, third) == [0, 2]
        assert service.statistics().cancelled == 1

    with runner_service(Scripted(test.path)) as service:
        asyncio.run(main(service))


def test_run_works_in_a_thread_whose_loop_is_running():
    with runner_service(models.Double()) as service:

        async def cell():
            return service.run(4)

        assert asyncio.run(cell()) == 8


# ---- stop ------------------------------------------------------------------------------------


def test_stop_answers_what_was_accepted_and_leaves_no_process(test: Script):
    service = runner_service(Scripted(test.path), workers=2).start()
    running = Caller(service.run, 0)
    batch = test.expect_batch()
    stopping = Caller(service.stop)
    wait_until(lambda: service._state.name == "STOPPING", "the stop")
    with pytest.raises(RunnerClosed):
        service.run(1)
    batch.echo()
    assert running.result() == 0
    stopping.result()
    assert not is_alive(batch.pid)


def test_stop_with_a_time_limit_fails_the_rest(test: Script):
    service = runner_service(Scripted(test.path)).start()
    running = Caller(service.run, 0)
    batch = test.expect_batch()
    service.stop(timeout_s=0.1)
    with pytest.raises(RunnerClosed, match=r"no answer within 0\.1 s"):
        running.result()
    assert not is_alive(batch.pid)


def test_a_stop_with_a_time_limit_ends_the_patience_of_another(test: Script):
    service = runner_service(Scripted(test.path)).start()
    running = Caller(service.run, 0)
    batch = test.expect_batch()
    patient = Caller(service.stop)
    wait_until(lambda: service._state.name == "STOPPING", "the stop")
    service.stop(timeout_s=0)
    patient.result()
    with pytest.raises(RunnerClosed, match="the service was stopped"):
        running.result()
    assert not is_alive(batch.pid)
    assert service.start().stop(timeout_s=0) is None


def test_a_stop_leaves_no_thread_and_no_descriptor():
    with runner_service(models.Double()) as service:
        service.run(1)
    gc.collect()  # of what earlier tests left to it
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with runner_service(models.Double(), workers=2) as service:
            service.run(1)
            with connect(service.endpoint, service.name) as handle:
                handle.run(1)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_worker_outlives_its_parent(tmp_path, ending):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import os, signal
        from batching import Runner, runner_service
        class Pid(Runner):
            def _run_batch(self, x):
                return [os.getpid() for _ in x]
        service = runner_service(Pid()).start()
        print(service.run(0), flush=True)
        {ending}
    """)
    )
    done = subprocess.run(
        [sys.executable, "-P", program], capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False
    )
    assert done.stderr == ""
    wait_until(lambda: not is_alive(int(done.stdout)), "the end of the worker")


def test_a_fork_while_a_service_starts_keeps_no_worker_alive(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import os, signal, sys, threading
        from batching import Runner, runner_service
        class Slow(Runner):
            def _setup(self):
                print(os.getpid(), flush=True)
                signal.pause()
            def _run_batch(self, x):
                return x
        service = runner_service(Slow())
        threading.Thread(target=service.start, daemon=True).start()
        sys.stdin.readline()
        if os.fork() == 0:
            service.stop()
            print(os.getpid(), flush=True)
            signal.pause()
        signal.pause()
    """)
    )
    with subprocess.Popen(
        [sys.executable, "-P", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        worker = int(parent.stdout.readline())
        parent.stdin.write("fork\n")
        parent.stdin.flush()
        child = int(parent.stdout.readline())
        try:
            parent.kill()
            wait_until(lambda: not is_alive(worker), "the end of the worker")
        finally:
            os.kill(child, signal.SIGKILL)


def test_ctrl_c_in_a_with_block_leaves_no_process(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
        import os, signal
        from batching import Runner, runner_service
        class Pid(Runner):
            def _run_batch(self, x):
                return [os.getpid() for _ in x]
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where this runs in the background
        with runner_service(Pid()) as service:
            print(service.run(0), flush=True)
            os.killpg(0, signal.SIGINT)
            signal.pause()
    """)
    )
    done = subprocess.run(
        [sys.executable, "-P", program], capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False,
        start_new_session=True,
    )  # fmt: skip
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert not is_alive(int(done.stdout))


def test_the_package_does_not_load_sockets_before_they_are_needed():
    code = "import sys, batching; from batching import Runner; assert 'zmq' not in sys.modules"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_runner_service_is_the_packages_own():
    assert batching.runner_service is runner_service
