"""`connect`: the handshake, the connection's end, and one socket for everybody."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import re
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import Future, ThreadPoolExecutor

import models
import numpy as np
import pytest
from fakes import PATIENCE_S, Caller, wait_until
from proxy import DROP, PASS, TWICE, Proxy
from rawpeer import RawDispatcher
from scripted import Scripted, script, serve

from batching import (
    BatchOptions,
    DeadlineExceeded,
    InvalidPayload,
    Overloaded,
    Runner,
    RunnerClosed,
    RunnerError,
    ServiceUnreachable,
    connect,
    runner_service,
)
from batching.runner import client, client_link, connection, endpoints, native, native_dispatcher
from batching.runner.client_link import Link
from batching.runner.native import native_plane
from batching.runner.native_dispatcher import NativeDispatcher
from batching.runner.recipe import Plan, described
from batching.runner.wire import Greeting, Plain, Role, Type

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]


@pytest.fixture
def test(tmp_path):
    with script(tmp_path) as own:
        yield own


# ---- the handshake ---------------------------------------------------------------------------


def test_nobody_there_is_service_unreachable_within_the_timeout(tmp_path):
    with pytest.raises(ServiceUnreachable, match=r"no dispatcher answered at ipc:.*within 0\.2 s") as caught:
        connect(f"ipc://{tmp_path}/nobody", "Echo", timeout_s=0.2)
    assert isinstance(caught.value, ConnectionError)


def test_an_unknown_name_is_refused_at_once_with_both_names():
    with (
        runner_service(models.Echo()) as service,
        pytest.raises(ServiceUnreachable, match="no runner 'Other' here, only 'Echo'"),
    ):
        connect(service.endpoint, "Other", timeout_s=PATIENCE_S)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"endpoint": "ftp://x"}, "ftp://x"),
        ({"keys": "file"}, "not implemented yet"),
        ({"timeout_s": 0}, "timeout_s must be above 0, got 0"),
    ],
)
def test_a_bad_argument_is_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        connect(**{"endpoint": "ipc:///tmp/x", "name": "Echo", **arguments})


def test_the_signature_static_arguments_and_options_come_with_the_handshake():
    with runner_service(models.Scale()) as service, connect(service.endpoint, "Scale") as handle:
        assert handle.options == models.Scale.options or handle.options.static_args == ("factor",)
        assert float(handle.run(np.array(2.0), np.array(1.0), factor=3.0)) == 7.0
        assert float(handle.run(np.array(2.0), np.array(1.0))) == 3.0
        with pytest.raises(InvalidPayload, match="shift"):
            handle.run(np.array(2.0))


def test_callers_get_the_options_of_the_service_also_those_that_were_set_later():
    service = runner_service(models.Double())
    service.options = BatchOptions(max_latency_ms=50_000)
    with service:
        with connect(service.endpoint, "Double") as before:
            assert before.options.max_latency_ms == 50_000
        service.options = BatchOptions(max_latency_ms=60_000)
        with connect(service.endpoint, "Double") as after:
            assert after.options.max_latency_ms == 60_000
            assert after.run(1) == 2


def test_each_connect_gets_the_options_of_its_own_time_also_over_a_live_connection():
    with runner_service(models.Double()) as service, connect(service.endpoint, "Double") as first:
        for budget_ms in (50_000, 60_000):
            service.options = BatchOptions(max_latency_ms=budget_ms)
            with connect(service.endpoint, "Double") as later:
                assert later._engine_of_close.link is first._engine_of_close.link
                assert later.options.max_latency_ms == budget_ms
                assert later.run(1) == 2
        assert first.options.max_latency_ms is None


def test_a_dispatcher_that_falls_silent_does_not_hold_a_second_connect(tmp_path):
    runner = models.Echo()
    endpoint = f"ipc://{tmp_path}/raw"
    with RawDispatcher(endpoint) as dispatcher:
        connecting = Caller(connect, endpoint, "Echo", timeout_s=PATIENCE_S)
        dispatcher.welcome(runner, runner.options)
        with connecting.result(), pytest.raises(ServiceUnreachable, match=r"answered at .* within 0\.2 s"):
            connect(endpoint, "Echo", timeout_s=0.2)


def test_a_call_that_waits_for_the_connection_leaves_with_what_is_left_of_its_budget(tmp_path):
    runner = models.Echo()
    description = described(runner, runner.options)
    plan = Plan.read(description, allow_pickle=True)
    link = client.new_link(f"ipc://{tmp_path}/raw", "Echo", PATIENCE_S)
    handle = client.ConnectedRunner(
        client.engine_on(link, plan.signature, plan.options), "Echo", link.endpoint, plan.options
    )
    with RawDispatcher(link.endpoint) as dispatcher:
        patient, hasty = (Caller(handle.run, 1, deadline_ms=ms) for ms in (60_000, 50))
        assert dispatcher.hear().type == Type.HELLO
        since_ns = time.monotonic_ns()
        with pytest.raises(DeadlineExceeded, match="within 50 ms"):
            hasty.result()
        wait_until(lambda: time.monotonic_ns() > since_ns + 10_000_000, "some time")
        waited_ns = time.monotonic_ns() - since_ns
        dispatcher.say(Greeting(Type.WELCOME, Role.DISPATCHER, "Echo", description))
        records = []
        while not any(record.type == Type.CALL and record.budget_ns for record in records):
            records.append(dispatcher.hear())
        assert records[-1].budget_ns <= 60_000_000_000 - waited_ns
        assert all(record.budget_ns == 0 for record in records[:-1] if record.type == Type.CALL)
        link.close()
        with pytest.raises(RunnerClosed):
            patient.result()


def test_a_client_connects_anew_although_the_options_changed(tmp_path):
    service = runner_service(models.Double(), endpoint=f"ipc://{tmp_path}/socket")
    with service, connect(service.endpoint, "Double") as handle:
        service.stop()
        service.options = BatchOptions(max_latency_ms=50_000)
        service.start()
        while (text := what_is_wrong(handle)) != "":
            assert "replaced" not in text


def what_is_wrong(handle):
    try:
        handle.run(1)
    except ServiceUnreachable as error:
        return str(error)
    return ""


def test_another_process_calls_without_the_runners_class():
    with runner_service(models.Double()) as service:
        code = (
            "import sys, batching, numpy as np\n"
            f"with batching.connect({service.endpoint!r}, 'Double') as handle:\n"
            "    print(handle.run(np.arange(3)).tolist(), handle.run_batch([1, 'a']))\n"
            "assert 'models' not in sys.modules"
        )
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert (done.stdout, done.stderr) == ("[0, 2, 4] [2, 'aa']\n", "")


def test_a_socket_of_another_user_is_not_trusted(monkeypatch):
    with runner_service(models.Echo()) as service:
        monkeypatch.setattr(endpoints, "_owner", lambda path: os.geteuid() + 4711)
        with pytest.raises(ServiceUnreachable, match=r"belongs to another user \(uid \d+\)"):
            connect(service.endpoint, "Echo")
        assert not endpoints.allows_pickle(service.endpoint)


@pytest.mark.parametrize("value", [None, "x", True])
def test_a_timeout_that_is_no_number_is_named(value):
    with pytest.raises(TypeError, match=f"^timeout_s must be a number of seconds, got {value!r}"):
        connect("ipc:///tmp/x", "Echo", timeout_s=value)
    with pytest.raises(TypeError, match=f"^start_timeout_s must be a number of seconds, got {value!r}"):
        runner_service(models.Echo(), start_timeout_s=value)


# ---- one socket ------------------------------------------------------------------------------


def test_handles_threads_and_loops_share_one_socket():
    with runner_service(models.Double()) as service:
        handles = [connect(service.endpoint, "Double") for _ in range(3)]
        assert len({id(handle._engine_of_close.link) for handle in handles}) == 1

        async def many(handle):
            return await asyncio.gather(*(handle.async_run(i) for i in range(50)))

        with ThreadPoolExecutor(6) as pool:
            blocking = [pool.submit(handle.run, 21) for handle in handles]
            loops = [pool.submit(asyncio.run, many(handle)) for handle in handles]
            assert all(call.result() == 42 for call in blocking)
            assert all(call.result() == [2 * i for i in range(50)] for call in loops)
        for handle in handles:
            handle.close()
        assert not client._links._links


def test_async_with_closes_a_handle_without_stopping_the_loop(test):
    async def main(service):
        turns = []
        async with connect(service.endpoint, "Scripted") as handle:
            link = handle._engine_of_close.link
            closed = threading.Event()
            close = link.close
            # The end of the connection waits for the loop.
            link.close = lambda: (closed.wait(PATIENCE_S), close())
            asyncio.get_running_loop().call_soon(lambda: (turns.append(1), closed.set()))
        return turns

    with serve(test) as service:
        assert asyncio.run(main(service)) == [1]


def test_a_closed_handle_refuses_calls_and_leaves_the_others_alone():
    with runner_service(models.Double()) as service, connect(service.endpoint, "Double") as kept:
        closed = connect(service.endpoint, "Double")
        closed.close()
        closed.close()
        with pytest.raises(RunnerClosed, match="connection to 'Double' was closed"):
            closed.run(1)
        assert kept.run(1) == 2


def test_a_handle_that_closes_fails_its_calls_that_are_out(test):
    with runner_service(Scripted(test.path)) as service:
        handle = connect(service.endpoint, "Scripted")
        call = Caller(handle.run, 1)
        batch = test.expect_batch()
        handle.close()
        with pytest.raises(RunnerClosed, match="was closed"):
            call.result()
        batch.echo()


# ---- the end of the connection -------------------------------------------------------------------


def test_a_lost_connection_fails_the_calls_that_are_out_and_later_calls_connect_anew(test, tmp_path):
    with runner_service(Scripted(test.path)) as service:
        proxy = Proxy(tmp_path, service.endpoint)
        with connect(proxy.endpoint, "Scripted", timeout_s=5) as handle:
            call = Caller(handle.run, 1)
            batch = test.expect_batch()
            proxy.cut()
            with pytest.raises(ServiceUnreachable, match="lost"):
                call.result()
            batch.echo()
            with Proxy(tmp_path, service.endpoint):
                assert handle.run("free") == "free"


def test_a_link_that_is_closed_in_the_turn_in_which_its_connection_ends_ends_too(tmp_path):
    runner = models.Echo()
    link = Link(f"ipc://{tmp_path}/raw", "Echo", PATIENCE_S)
    with RawDispatcher(link.endpoint) as dispatcher:
        greeting = Caller(link.greet)
        dispatcher.welcome(runner, runner.options)
        greeting.result()
        # In the link's thread: until something has come.
        link._mailbox.urge(lambda _: link._connection._socket.poll(PATIENCE_S * 1000))
        closing = Caller(link.close)
        wait_until(lambda: len(link._mailbox._posts) == 1, "the request to end")
        dispatcher.say(Plain(Type.BYE))
        closing.result()


def test_while_nobody_is_there_calls_fail_after_the_handshakes_timeout(tmp_path):
    with runner_service(models.Echo()) as service:
        proxy = Proxy(tmp_path, service.endpoint)
        with connect(proxy.endpoint, "Echo", timeout_s=0.3) as handle:
            assert handle.run(1) == 1
            proxy.cut()
            wait_until(lambda: not answers(handle), "the loss of the connection")
            with pytest.raises(ServiceUnreachable, match=r"no dispatcher answered .* within 0\.3 s"):
                handle.run(1)


def answers(handle):
    try:
        handle.run(1)
    except ServiceUnreachable:
        return False
    return True


def test_a_service_that_stops_says_so_to_its_clients(test):
    service = runner_service(Scripted(test.path)).start()
    with connect(service.endpoint, "Scripted", timeout_s=0.3) as handle:
        call = Caller(handle.run, 1)
        batch = test.expect_batch()
        stopping = Caller(service.stop)
        batch.echo()
        assert call.result() == 1  # it was accepted
        stopping.result()
        with pytest.raises(ServiceUnreachable):
            handle.run(2)


def test_messages_that_come_twice_change_no_answer(tmp_path):
    with (
        runner_service(models.Double()) as service,
        Proxy(tmp_path, service.endpoint) as proxy,
        connect(proxy.endpoint, "Double") as handle,
    ):
        proxy.up = proxy.down = TWICE
        for i in range(30):
            assert handle.run(i) == 2 * i
        proxy.up = proxy.down = PASS
        assert handle.run(5) == 10


def test_an_answer_that_is_lost_is_deadline_exceeded_and_the_next_call_is_served(tmp_path):
    with (
        runner_service(models.Double()) as service,
        Proxy(tmp_path, service.endpoint) as proxy,
        connect(proxy.endpoint, "Double") as handle,
    ):
        proxy.down = DROP
        with pytest.raises(DeadlineExceeded, match=r"no answer within .*ms"):
            handle.run(1, deadline_ms=50)
        proxy.down = PASS
        assert handle.run(2) == 4


# ---- calls -----------------------------------------------------------------------------------


def test_calls_of_one_turn_leave_as_one_message_and_share_a_batch():
    class BatchRows(Runner):
        def _run_batch(self, x):
            return [len(x)] * len(x)

    async def turn(handle):
        return await asyncio.gather(*(handle.async_run(i) for i in range(32)))

    with runner_service(BatchRows()) as service, connect(service.endpoint, "BatchRows") as handle:
        assert asyncio.run(turn(handle)) == [32] * 32


def test_a_call_whose_loop_is_gone_leaves_the_queue_when_it_is_closed(test):
    async def begin(call):
        call.send(None)  # as a task does at first

    with serve(test) as service, connect(service.endpoint, "Scripted") as handle:
        for way in (service, handle):
            first = Caller(way.run, 0)
            batch = test.expect_batch()
            call = way.async_run(1)
            asyncio.run(begin(call))
            wait_until(lambda: service.statistics().queued_calls == 1, "the call")
            call.close()
            wait_until(lambda: service.statistics().queued_calls == 0, "no call")
            batch.echo()
            assert first.result() == 0


def test_a_client_without_descriptors_fails_its_calls_and_connects_when_it_has_some(monkeypatch):
    class Short:
        left = 2

        def __call__(self, *sockets):
            self.left -= 1
            if self.left >= 0:
                raise OSError(errno.EMFILE, "too many open files")
            return made(*sockets)

    if native_plane():
        made, where = native.link.LinkSocket, (native.link, "LinkSocket")
    else:
        made, where = connection.Connection, (client_link, "Connection")
    short = Short()
    with runner_service(models.Double()) as service:
        monkeypatch.setattr(*where, short)
        for _ in range(2):
            with pytest.raises(ServiceUnreachable, match="too many open files"):
                connect(service.endpoint, "Double")
        with connect(service.endpoint, "Double") as handle:
            assert handle.run(1) == 2
    assert short.left == -1


class Lengths(Runner):
    """Says which lengths were in its batch."""

    options = BatchOptions(max_wait_ms=0)

    def group_by(self, text):
        if text == "":
            raise LookupError("no bucket for nothing")
        if text == "endless":
            return "x" * 2**21
        return len(text)

    def _run_batch(self, x):
        return [sorted({len(text) for text in x})] * len(x)


def test_calls_of_a_caller_without_the_class_are_grouped_by_whichever_dispatcher_there_is():
    async def turn(handle):
        texts = ["a", "bb", "", "c", "dd", "eee", "fff", "endless", "g"]
        return await asyncio.gather(*map(handle.async_run, texts), return_exceptions=True)

    with runner_service(Lengths()) as service, connect(service.endpoint, "Lengths") as handle:
        assert isinstance(service._running._dispatcher, NativeDispatcher) == native_plane()
        for _ in range(3):
            lengths = asyncio.run(turn(handle))
            endless, nothing = lengths.pop(7), lengths.pop(2)
            assert lengths == [[1], [2], [1], [2], [3], [3], [1]]
            assert isinstance(nothing, RunnerError)
            assert "group_by raised LookupError: no bucket for nothing" in str(nothing)
            assert isinstance(endless, InvalidPayload)
            assert "takes at most 1048576 bytes, got 2097" in str(endless)
        assert service.run("four") == [4]
        assert handle.run_batch(["a", "bb"]) == service.run_batch(["a", "bb"])
        assert handle.statistics().groups >= 4
        with pytest.raises(DeadlineExceeded):
            handle.run("a", deadline_ms=0)
        assert handle.run("a") == [1]


class Gated(Lengths):
    """Its `group_by` waits for the end of a named pipe when it meets "slow"."""

    options = BatchOptions(max_wait_ms=0, max_queue_rows=4, max_batch_size=4)

    def __init__(self, path):
        super().__init__()
        self.path = path

    def group_by(self, text):
        if text == "slow":
            with open(self.path) as gate:
                gate.read()
        return len(text)


@pytest.fixture
def gate(tmp_path):
    os.mkfifo(tmp_path / "gate")
    return str(tmp_path / "gate")


def test_a_slow_group_by_keeps_nobody_waiting_but_those_behind_it(gate):
    with runner_service(Gated(gate)) as service, connect(service.endpoint, "Gated") as handle:
        slow = Caller(handle.run, "slow")
        with open(gate, "w"):  # once it was opened there, until it is closed here
            behind = Caller(handle.run, "x")
            assert Caller(service.run, "bb").result() == [2]
            assert Caller(handle.statistics).result().answered == 1
        assert (slow.result(), behind.result()) == ([4], [1])
        assert handle.run("ccc") == [3]


def test_calls_that_wait_for_a_slow_group_by_are_bounded_and_may_be_cancelled(gate):
    async def main(service, handle):
        slow = asyncio.ensure_future(handle.async_run("slow"))
        wide = asyncio.ensure_future(handle.async_run_batch(["a", "b", "c"]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(
            Overloaded, match="4 rows wait to be grouped, and 2 more would exceed max_queue_rows, 4"
        ):
            await handle.async_run_batch(["d", "e"])
        assert service.statistics().refused == 1
        wide.cancel()
        opened.set_result(await asyncio.to_thread(open, gate, "w"))
        opened.result().close()
        assert await slow == [4]
        assert await handle.async_run_batch(["d", "e"]) == [[1], [1]]
        assert service.statistics().answered == 2

    opened = Future()
    with runner_service(Gated(gate)) as service, connect(service.endpoint, "Gated") as handle:
        asyncio.run(main(service, handle))


class Mean(Lengths):
    def group_by(self, text):
        raise SystemExit(text)


def test_a_group_by_that_asks_to_end_the_process_ends_its_own_call():
    with runner_service(Mean()) as service, connect(service.endpoint, "Mean") as handle:
        for _ in range(2):
            with pytest.raises(RunnerError, match="group_by raised SystemExit: no"):
                handle.run("no")


@pytest.mark.skipif(not native_plane(), reason="of the native plane")
def test_calls_that_cannot_be_grouped_for_want_of_memory_fail_and_later_ones_do_not(monkeypatch):
    def short(*_):
        monkeypatch.undo()
        raise MemoryError

    with runner_service(Lengths()) as service, connect(service.endpoint, "Lengths") as handle:
        monkeypatch.setattr(native_dispatcher.Packet, "frames", short)
        with pytest.raises(Overloaded, match="could not be grouped: out of memory"):
            handle.run("a")
        assert handle.run("bb") == [2]


def test_a_cancelled_call_that_was_being_grouped_leaves_the_queue(test):
    class Grouped(Scripted):
        group_by = staticmethod(len)

    async def main(service, handle):
        first = asyncio.ensure_future(handle.async_run("a"))
        batch = await asyncio.to_thread(test.expect_batch)
        second = asyncio.ensure_future(handle.async_run("b"))
        await asyncio.sleep(0)
        second.cancel()
        third = asyncio.ensure_future(handle.async_run("c"))
        await asyncio.to_thread(wait_until, lambda: service.statistics().calls == 3, "the third call")
        await asyncio.to_thread(wait_until, lambda: service.statistics().queued_calls == 1, "one call")
        batch.echo()
        assert await first == "a"
        batch = await asyncio.to_thread(test.expect_batch)
        assert batch.rows == ["c"]
        batch.echo()
        assert await third == "c"

    with runner_service(Grouped(test.path)) as service, connect(service.endpoint, "Grouped") as handle:
        asyncio.run(main(service, handle))


def test_a_cancelled_call_leaves_the_queue_of_the_service(test):
    async def main(service, handle):
        first = asyncio.ensure_future(handle.async_run(0))
        batch = await asyncio.to_thread(test.expect_batch)
        second = asyncio.ensure_future(handle.async_run(1))
        await asyncio.to_thread(wait_until, lambda: service.statistics().queued_calls == 1, "one call")
        second.cancel()
        await asyncio.to_thread(wait_until, lambda: service.statistics().queued_calls == 0, "no call")
        batch.echo()
        assert await first == 0

    with runner_service(Scripted(test.path)) as service, connect(service.endpoint, "Scripted") as handle:
        asyncio.run(main(service, handle))


def test_the_budget_of_the_runner_holds_for_connected_calls(test):
    runner = Scripted(test.path, options=BatchOptions(max_latency_ms=80))
    with runner_service(runner) as service, connect(service.endpoint, "Scripted") as handle:
        call = Caller(handle.run, 1)
        batch = test.expect_batch()
        with pytest.raises(DeadlineExceeded, match=r"no answer within .*ms"):
            call.result()
        batch.echo()


def test_an_answered_call_keeps_nothing_alive():
    class Tagged(np.ndarray):
        pass

    with runner_service(models.Echo()) as service, connect(service.endpoint, "Echo") as handle:
        for way in (service, handle):
            array = np.zeros(100_000)
            seen = weakref.ref(array)
            gc.disable()
            try:
                way.run(array)
                del array
                wait_until(lambda seen=seen: seen() is None, "the end of the payload")
            finally:
                gc.enable()


def test_statistics_are_the_services():
    with runner_service(models.Echo()) as service, connect(service.endpoint, "Echo") as handle:
        handle.run(1)
        service.run(1)
        assert handle.statistics().answered == 2
        assert handle.statistics().groups == 1


# ---- a budget that cannot be kept --------------------------------------------------------------

BELOW_ONE_ROW = r"runner 'Echo': a batch of one row takes .* ms, .* than max_latency_ms, 1e-06"


@pytest.fixture
def warned():
    """The texts of the warnings, of all threads."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def wait_for_looks():
    def looks() -> int:
        return sum(thread.name.endswith("-budget") for thread in threading.enumerate())

    wait_until(lambda: looks() == 0, "the end of the looks at the budget")


def run_batches(handle, batches: int) -> None:
    """With a deadline of their own, so that no caller looks at the budget."""
    for number in range(batches):
        handle.run_batch([0] * (1 + number % 3), deadline_ms=PATIENCE_S * 1000)


def run_late(handle, calls: int) -> None:
    for _ in range(calls):
        with pytest.raises((DeadlineExceeded, Overloaded)):
            handle.run(0)


def test_a_service_warns_once_of_a_budget_below_one_row_though_all_its_callers_are_remote(warned):
    runner = models.Echo(options=BatchOptions(max_latency_ms=1e-6))
    with runner_service(runner) as service, connect(service.endpoint, "Echo") as handle:
        run_batches(handle, 16)
        wait_until(lambda: len(warned) > 0, "the warning")
        run_batches(handle, 64)
        wait_for_looks()
    (warning,) = warned
    assert warning.category is RuntimeWarning
    assert re.match(BELOW_ONE_ROW, str(warning.message))


def test_a_connected_caller_is_warned_once_of_a_budget_below_one_row(warned):
    runner = models.Echo(options=BatchOptions(max_latency_ms=1e-6))
    with runner_service(runner) as service, connect(service.endpoint, "Echo") as handle:
        service.options = BatchOptions()  # so that it is the connected caller who warns
        run_batches(handle, 16)
        run_late(handle, 8)
        wait_until(lambda: len(warned) > 0, "the warning")
        run_late(handle, 24)
        wait_for_looks()
    (warning,) = warned
    assert re.match(BELOW_ONE_ROW, str(warning.message))


def test_a_budget_that_can_be_kept_is_not_warned_about(warned):
    runner = models.Echo(options=BatchOptions(max_latency_ms=PATIENCE_S * 1000))
    with runner_service(runner) as service, connect(service.endpoint, "Echo") as handle:
        for number in range(32):
            handle.run_batch([0] * (1 + number % 3))
        wait_for_looks()
    assert not warned
