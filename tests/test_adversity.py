"""Things that go wrong between caller and model: every call still gets one answer."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import models
import numpy as np
import pytest
from fakes import PATIENCE_S, Caller, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from rawpeer import RawPeer
from scripted import OneWay, Scripted, is_alive, script, serve
from shell import Shell

from batching import (
    BatchOptions,
    DeadlineExceeded,
    InvalidPayload,
    Runner,
    RunnerError,
    WorkerDied,
    connect,
    runner_service,
)
from batching.runner import endpoints, running
from batching.runner.encoding import from_encoded
from batching.runner.wire import Buffer, Code, Greeting, Packet, Plain, Role, Rows, Type
from batching.signature import Signature

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]


@pytest.fixture
def test(tmp_path):
    with script(tmp_path) as own:
        yield own


# ---- deaths ---------------------------------------------------------------------------------


def test_the_batch_of_a_killed_worker_goes_to_another(test):
    with serve(test, workers=2) as service:
        call = Caller(service.run, 1)
        first = test.expect_batch()
        first.kill()
        second = test.expect_batch()
        assert second.pid != first.pid
        assert second.rows == [1]
        second.echo()
        assert call.result() == 1
        wait_until(lambda: service.statistics().workers_ready == 2, "the replacement")
        assert not is_alive(first.pid)


@pytest.mark.parametrize(
    ("order", "exit_code", "number", "text"),
    [
        (("exit", 9), 9, None, "ended with exit code 9"),
        (("kill", signal.SIGKILL), None, signal.SIGKILL, "killed by signal 9 .SIGKILL."),
    ],
)
def test_a_poison_call_costs_three_deaths_and_fails_alone(test, order, exit_code, number, text):
    # It dies with its neighbours, then again, then alone.
    with serve(test) as service:
        blocker = Caller(service.run, "blocker")
        batch = test.expect_batch()
        calls = {name: Caller(service.run, name) for name in ("a", "poison", "b")}
        wait_until(lambda: service.statistics().queued_calls == 3, "three waiting calls")
        seen = test.answer(lambda rows: order if "poison" in rows else ("echo", None))
        batch.echo()
        with pytest.raises(WorkerDied, match=text) as caught:
            calls["poison"].result()
        assert (caught.value.exit_code, caught.value.signal) == (exit_code, number)
        assert [calls["a"].result(), calls["b"].result(), blocker.result()] == ["a", "b", "blocker"]
        deadly = [rows for rows in seen if "poison" in rows]
        assert [len(rows) for rows in deadly] == [3, 3, 1]


def test_without_isolation_a_death_fails_the_batch_at_once(test):
    with serve(test, isolate_errors=False) as service:
        call = Caller(service.run, 1)
        test.expect_batch().order("exit", 5)
        with pytest.raises(WorkerDied, match="ended with exit code 5"):
            call.result()
        assert service.run("free") == "free"  # the replacement


def test_calls_wait_while_the_only_worker_is_replaced(test):
    with serve(test) as service:
        first = Caller(service.run, 1)
        batch = test.expect_batch()
        batch.kill()
        second = Caller(service.run, "free")
        again = test.expect_batch()
        again.echo()
        assert [first.result(), second.result()] == [1, "free"]


def test_fifty_calls_succeed_after_a_death(test):
    with serve(test, workers=2) as service:
        call = Caller(service.run, 1)
        test.expect_batch().kill()
        test.expect_batch().echo()
        assert call.result() == 1
        with ThreadPoolExecutor(10) as pool:
            assert list(pool.map(service.run, ["free"] * 50)) == ["free"] * 50
        wait_until(lambda: service.statistics().workers_ready == 2, "both workers")


def test_a_hung_worker_is_killed_and_its_call_fails_after_three_tries(test):
    with serve(test, run_timeout_ms=300) as service:
        call = Caller(service.run, 1)
        pids = set()
        for _ in range(3):
            batch = test.expect_batch()
            pids.add(batch.pid)
            batch.order("hang")
        with pytest.raises(WorkerDied, match="longer than run_timeout_ms") as caught:
            call.result()
        assert caught.value.signal == signal.SIGKILL
        assert len(pids) == 3
        assert service.run("free") == "free"
        assert not any(is_alive(pid) for pid in pids)


def test_a_deadline_is_kept_while_the_batch_hangs(test):
    with serve(test) as service, connect(service.endpoint, "Scripted") as handle:
        for way in (service, handle):
            call = Caller(way.run, 1, deadline_ms=100)
            batch = test.expect_batch()
            with pytest.raises(DeadlineExceeded, match=r"no answer within .*ms"):
                call.result()
            batch.echo()
            assert way.run("free") == "free"


# ---- errors of the model -----------------------------------------------------------------------


def test_a_guilty_call_fails_alone(test):
    with serve(test) as service:
        blocker = Caller(service.run, "blocker")
        batch = test.expect_batch()
        calls = [Caller(service.run, i) for i in range(4)]
        wait_until(lambda: service.statistics().queued_calls == 4, "four waiting calls")
        test.answer(lambda rows: ("raise", "two is guilty") if 2 in rows else ("echo", None))
        batch.echo()
        with pytest.raises(RunnerError, match="_run_batch raised ValueError: two is guilty") as caught:
            calls[2].result()
        assert caught.value.type_name == "ValueError"
        assert caught.value.message == "two is guilty"
        assert "in obey" in caught.value.traceback
        assert isinstance(caught.value.__cause__, ValueError)
        assert [calls[i].result() for i in (0, 1, 3)] == [0, 1, 3]
        assert blocker.result() == "blocker"


class Nasty(Exception):
    """Can be pickled, and not unpickled."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


class Raises(Runner):
    def _run_batch(self, x):
        match x[0]:
            case "nasty":
                raise Nasty("this", "that")
            case "exit":
                raise SystemExit(3)
            case "stop":
                raise StopIteration("stopped")
            case "interrupt":
                raise KeyboardInterrupt
            case "group":
                raise ExceptionGroup("several", [ValueError("one")])
            case "unprintable":
                raise Unprintable
            case "cycle":
                error = ValueError("cycle")
                error.__cause__ = error
                raise error
            case "memory":
                raise MemoryError
            case _:
                pass
        return x


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_whatever_the_model_raises_reaches_its_caller_and_the_worker_lives():
    with runner_service(Raises()) as service, connect(service.endpoint, "Raises") as handle:
        for way in (service, handle):
            for word, name in [
                ("nasty", "Nasty"),
                ("exit", "SystemExit"),
                ("stop", "StopIteration"),
                ("interrupt", "KeyboardInterrupt"),
                ("group", "ExceptionGroup"),
                ("unprintable", "Unprintable"),
                ("cycle", "ValueError"),
                ("memory", "MemoryError"),
            ]:
                with pytest.raises(RunnerError, match=name) as caught:
                    way.run(word)
                assert caught.value.type_name == name
                assert "_run_batch" in caught.value.traceback
            assert way.run("fine") == "fine"
        assert service.statistics().workers_ready == 1


def test_an_answer_that_cannot_be_pickled_fails_its_callers_only():
    class Locks(Runner):
        def _run_batch(self, x):
            return [threading.Lock() if element == "lock" else element for element in x]

    with runner_service(Locks()) as service:
        with pytest.raises(RunnerError, match="lock"):
            service.run("lock")
        assert service.run("fine") == "fine"


def test_an_argument_that_cannot_be_unpickled_fails_its_caller_only():
    with runner_service(models.Echo()) as service:
        with pytest.raises(InvalidPayload, match="cannot come back"):
            service.run(OneWay())
        assert service.run("fine") == "fine"


# ---- peers that misbehave -------------------------------------------------------------------------


@pytest.fixture
def echo():
    with runner_service(models.Echo()) as service:
        peer = RawPeer(service.endpoint)
        yield service, peer
        peer.close()


def key_of(item) -> bytes:
    """The key of a call of one item."""
    signature = Signature(lambda x: x)
    return signature.encode(signature.describe((item,), {}, False).payload).key


KEY = key_of(np.zeros(()))


def a_call(id_: int = 1, rows: int = 1, **fields) -> Rows:
    return Rows(Type.CALL, id_, rows, KEY, [Buffer(8, [bytes(8 * rows)])], **fields)


def test_a_message_before_hello_is_answered_and_not_obeyed(echo):
    service, peer = echo
    peer.say(a_call())
    (error,) = peer.hear()
    assert (error.type, error.id) == (Type.ERROR, 0)
    assert "HELLO" in error.message
    assert service.run(1) == 1


@pytest.mark.parametrize(
    ("hello", "text"),
    [
        (Greeting(Type.HELLO, Role.CLIENT, "Other"), "no runner 'Other' here, only 'Echo'"),
        (Greeting(Type.HELLO, Role.CLIENT, "Echo", lowest=2, highest=3), "protocol versions 2 to 3"),
        (Greeting(Type.HELLO, Role.DISPATCHER, "Echo"), "only clients and workers"),
    ],
)
def test_a_wrong_hello_is_refused_with_the_reason(echo, hello, text):
    _, peer = echo
    peer.say(hello)
    (error,) = peer.hear()
    assert error.id == 0
    assert text in error.message


def test_garbage_is_dropped_and_the_next_good_call_is_served(echo):
    service, peer = echo
    for frames in [(b"",), (b"garbage",), (b"BATC" + bytes(60),), (os.urandom(500), os.urandom(50))]:
        peer.send(*frames)
    peer.greet("Echo")
    packet = Packet()
    packet.add(a_call(5))
    (good,) = packet.frames()
    peer.send(good, b"a frame that nobody owns")
    (error,) = peer.hear()
    assert (error.type, error.id) == (Type.ERROR, 5)
    assert "malformed" in error.message
    for record in (
        Plain(Type.CANCEL, 77),
        Plain(Type.STOP),
        Rows(Type.RESULT, 99, 0, b"", []),
        Rows(Type.BATCH, 99, 0, b"", []),
        Greeting(Type.WELCOME, Role.DISPATCHER, "Echo"),
        a_call(6, budget_ns=2**63 - 1),
    ):
        peer.say(record)
    (answer,) = peer.hear()
    assert (answer.type, answer.id, answer.rows) == (Type.ANSWER, 6, 1)
    assert service.run(1) == 1


def test_whatever_is_damaged_the_next_good_call_is_served(echo):
    service, peer = echo

    @settings(max_examples=60, deadline=None)
    @given(st.randoms(use_true_random=False), st.integers(1, 4))
    def damage(rng, bytes_changed):
        packet = Packet()
        for record in (a_call(1), a_call(2, rows=2), Plain(Type.CANCEL, 1)):
            packet.add(record)
        frame = bytearray(packet.frames()[0])
        for _ in range(bytes_changed):
            if rng.random() < 0.8:
                frame[rng.randrange(len(frame))] = rng.choice([0, 1, 2, 7, 8, 127, 128, 255])
            else:
                del frame[rng.randrange(16, len(frame) + 1) :]
        peer.send(bytes(frame), *[b"x"] * rng.choice([0, 0, 1]))
        assert service.run(1) == 1

    peer.greet("Echo")
    damage()
    other = RawPeer(service.endpoint)
    other.greet("Echo")
    other.say(a_call(7))
    (answer,) = other.hear()
    assert (answer.type, answer.id) == (Type.ANSWER, 7)
    other.close()
    assert service.statistics().messages_dropped > 0


def test_greetings_above_their_limits_are_dropped_and_counted(echo):
    service, peer = echo
    for hello in (
        Greeting(Type.HELLO, Role.CLIENT, "x" * 65_536),
        Greeting(Type.HELLO, Role.CLIENT, "x" * 256),
        Greeting(Type.HELLO, Role.WORKER, "Echo", bytes((1 << 20) + 1)),
        Greeting(Type.HELLO, 7, "Echo"),
    ):
        peer.say(hello)
    peer.greet("Echo", description=bytes(1 << 20))
    assert service.statistics().messages_dropped == 4


def test_a_peer_that_says_goodbye_may_greet_again_at_once(echo):
    _, peer = echo
    peer.greet("Echo")
    peer.say(Plain(Type.BYE), Greeting(Type.HELLO, Role.CLIENT, "Echo"), a_call(3))
    assert peer.hear()[0].type == Type.WELCOME
    assert peer.hear()[0].id == 3


def test_a_worker_that_takes_the_token_of_another_dies_with_it(test):
    with serve(test) as service:
        (token,) = service._running._ready
        peer = RawPeer(service.endpoint)
        peer.greet("Scripted", Role.WORKER, credits=1, description=json.dumps({"token": token}).encode())
        calls = [Caller(service.run, 0)]
        assert peer.hear()[0].type == Type.BATCH
        calls.append(Caller(service.run, 1))
        test.expect_batch().kill()
        test.answer(lambda rows: ("echo", None))
        assert sorted(call.result() for call in calls) == [0, 1]
        peer.close()


def test_a_name_that_no_peer_could_ask_for_is_refused_at_the_start():
    with pytest.raises(ValueError, match="name of a service take at most 255 bytes, got 256"):
        runner_service(models.Echo("x" * 256)).start()


def test_a_key_that_means_nothing_fails_its_call_only(echo):
    service, peer = echo
    peer.greet("Echo")
    for key in (b"", b"[]", b"{", b"\xff" * 50, b"[" * 5_000, b'[[[null,false]],[["nokind",[]]],null]'):
        peer.say(Rows(Type.CALL, 3, 1, key, [Buffer(8, [bytes(8)])]))
        (error,) = peer.hear()
        assert (error.type, error.id) == (Type.ERROR, 3)
    peer.say(a_call(4))
    assert peer.hear()[0].type == Type.ANSWER
    assert service.run(1) == 1


def test_over_tcp_a_call_with_pickle_reaches_no_worker_and_the_next_one_does(test):
    runner = Scripted(test.path)
    service = runner_service(runner, endpoint="tcp://127.0.0.1:*").start()
    peer = RawPeer(service.endpoint)
    try:
        peer.greet("Scripted")
        signature = Signature(lambda x: x)
        for value in (object(), np.array([object()]), "text"):
            call = signature.encode(signature.describe((value,), {}, False).payload)
            peer.say(Rows(Type.CALL, 5, call.rows, call.key, from_encoded(call.buffers)))
            (error,) = peer.hear()
            assert (error.type, error.id, error.code) == (Type.ERROR, 5, Code.INVALID_PAYLOAD)
            assert error.message == "pickle is not allowed on this connection"
        assert service.statistics().calls == 0
        peer.say(a_call(6))
        test.expect_batch().echo()
        assert peer.hear()[0].type == Type.ANSWER
    finally:
        peer.close()
        service.stop(timeout_s=0)


def test_a_call_that_comes_twice_is_answered_once(test):
    with serve(test) as service:
        peer = RawPeer(service.endpoint)
        peer.greet("Scripted")
        blocker = Caller(service.run, 1)
        batch = test.expect_batch()
        peer.say(a_call(1))
        peer.say(a_call(1), Plain(Type.PING, 9))
        (pong,) = peer.hear()
        assert (pong.type, pong.id) == (Type.PONG, 9)
        assert service.statistics().queued_calls == 1
        batch.echo()
        test.expect_batch().echo()
        (answer,) = peer.hear()
        assert answer.id == 1
        assert blocker.result() == 1
        peer.close()


def test_a_worker_that_answers_nonsense_changes_nothing(echo):
    service, peer = echo
    peer.greet("Echo", Role.WORKER, credits=1)
    wait_until(lambda: service.statistics().workers_ready == 2, "the second worker")
    peer.say(Rows(Type.RESULT, 12345, 3, b"key", [Buffer(0, [])]))
    call = Caller(service.run, np.ones(1))
    (batch,) = peer.hear()  # the worker that became free last gets it
    assert batch.type == Type.BATCH
    # The wrong number of rows: an error that says so.
    peer.say(Rows(Type.RESULT, batch.id, batch.rows + 1, b"key", [Buffer(0, [])]))
    with pytest.raises(RunnerError, match="given 1 rows and answered 2"):
        call.result()
    peer.close()
    assert service.run(1) == 1


def test_a_worker_that_leaves_with_a_batch_loses_it_to_another(echo):
    service, peer = echo
    peer.greet("Echo", Role.WORKER, credits=1)
    wait_until(lambda: service.statistics().workers_ready == 2, "the second worker")
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(service.run, np.full((), i)) for i in range(2)]
        peer.hear()
        peer.close()
        assert [int(call.result()) for call in calls] == [0, 1]
    assert service.statistics().workers_ready == 1


def test_a_worker_with_a_token_that_its_supervisor_does_not_know_keeps_no_call(echo):
    service, peer = echo
    peer.greet("Echo", Role.WORKER, credits=4, description=b'{"token": "9-dead"}')
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(service.run, np.full((), i)) for i in range(4)]
        assert [int(call.result(PATIENCE_S)) for call in calls] == [0, 1, 2, 3]
    assert service.statistics().workers_ready == 1


def test_the_calls_of_a_client_that_is_gone_leave_the_queue(test):
    with serve(test) as service:
        blocker = Caller(service.run, 1)
        batch = test.expect_batch()
        peer = RawPeer(service.endpoint)
        peer.greet("Scripted")
        peer.say(*(a_call(i) for i in range(1, 6)))
        wait_until(lambda: service.statistics().queued_calls == 5, "five waiting calls")
        peer.close()
        wait_until(lambda: service.statistics().queued_calls == 0, "an empty queue")
        batch.echo()
        assert blocker.result() == 1


@pytest.fixture
def little_room(monkeypatch):
    """A client may have 8 MiB of its answers unread."""
    monkeypatch.setattr(running, "Serving", partial(running.Serving, max_unread_bytes=8 << 20))


@pytest.mark.parametrize("size", [100, 16_000, 600_000])
def test_a_client_that_never_reads_is_cut_off_and_the_others_are_served(little_room, size):
    with runner_service(models.Echo()) as service:
        deaf = RawPeer(service.endpoint, receive_high_water=1)
        deaf.say(Greeting(Type.HELLO, Role.CLIENT, "Echo"))
        dispatcher = service._running._dispatcher
        item = np.zeros(size, np.uint8)
        key = key_of(item)
        id_ = 0
        while not dispatcher.counters.cut_off:
            id_ += 1
            # Each on its own, so that it is mostly answered in a message of its own.
            deaf.say(Rows(Type.CALL, id_, 1, key, [Buffer(item.nbytes, [item.data])]))
            assert service.run(id_) == id_
            assert id_ * size < 10 << 20
            assert id_ < 20_000
        assert service.run("still there") == "still there"
        assert service.statistics().clients_cut_off == 1
        # What it finds when it reads after all: the little that was on its way, and why no more came.
        seen = 0
        while (record := deaf.hear()[0]).type != Type.ERROR:
            seen += record.type == Type.ANSWER
        assert seen * size <= (1 << 20) + size
        assert "did not read" in record.message
        deaf.close()


def test_clients_that_read_get_any_number_of_bytes(little_room):
    item = np.zeros(1 << 20, np.uint8)
    with runner_service(models.Echo()) as service, connect(service.endpoint, "Echo") as handle:
        for _ in range(20):
            assert handle.run(item).nbytes == item.nbytes
        assert service._running._dispatcher.counters.cut_off == 0


@pytest.fixture
def short_messages(monkeypatch):
    """A message may have 100,000 bytes."""
    monkeypatch.setattr(running, "Serving", partial(running.Serving, max_message_bytes=100_000))


def test_a_message_above_its_size_fails_its_calls_with_both_numbers(short_messages, echo):
    service, peer = echo
    peer.greet("Echo")
    item = np.zeros(60_000, np.uint8)
    calls = [Rows(Type.CALL, id_, 1, key_of(item), [Buffer(60_000, [item.data])]) for id_ in (1, 2)]
    peer.say(*calls)
    errors = peer.hear()
    assert [error.id for error in errors] == [1, 2]
    for error in errors:
        assert "a message of 120" in error.message
        assert "is above max_message_bytes, 100000" in error.message
    peer.say(calls[0])
    assert peer.hear()[0].type == Type.ANSWER
    assert service.statistics().messages_dropped == 1


def test_an_answer_above_the_size_of_a_message_is_an_error_that_names_both(short_messages):
    runner = models.Widen(options=BatchOptions(max_batch_size=1))
    with runner_service(runner) as service, connect(service.endpoint, "Widen") as handle:
        assert handle.run_batch(np.zeros(1)).shape == (1, 60_000)
        with pytest.raises(InvalidPayload, match=r"an answer of 120.* is above max_message_bytes, 100000"):
            handle.run_batch(np.zeros(2))


@pytest.mark.parametrize("way", ["service", "connected"])
def test_a_call_above_the_size_of_a_message_is_refused_where_it_is_made_and_no_other(short_messages, way):
    async def turn(handle):
        # Both ways in which a call is written: as the array that it is, and as what a signature made of it.
        rows = [np.zeros(40_000, np.uint8), np.zeros(120_000, np.uint8), b"\1" * 40_000, b"\1" * 120_000] * 2
        return await asyncio.gather(*map(handle.async_run, rows), return_exceptions=True)

    with runner_service(models.Echo()) as service, connect(service.endpoint, "Echo") as connected:
        handle = service if way == "service" else connected
        for _ in range(2):
            outcomes = asyncio.run(turn(handle))
            for fits, refused in zip(outcomes[::2], outcomes[1::2], strict=True):
                assert len(fits) == 40_000
                assert isinstance(refused, InvalidPayload)
                assert re.search(r"a call of 120.* is above max_message_bytes, 100000", str(refused))
        service.options = BatchOptions(max_batch_size=1)  # is told again, and the limit with it
        with connect(service.endpoint, "Echo") as again, pytest.raises(InvalidPayload, match="100000"):
            again.run(np.zeros(120_000, np.uint8))
        if way == "connected":  # they never left
            assert service.statistics().messages_dropped == 0


@pytest.mark.parametrize("isolate", [True, False])
def test_a_batch_above_the_size_of_a_message_is_halved_and_nothing_is_run_twice(
    short_messages, test, isolate
):
    with serve(test, isolate_errors=isolate) as service:
        blocker = Caller(service.run, "blocker")
        batch = test.expect_batch()
        calls = [Caller(service.run, bytes([i]) * 60_000) for i in range(3)]
        wait_until(lambda: service.statistics().queued_calls == 3, "three waiting calls")
        seen = test.answer(lambda rows: ("echo", None))
        batch.echo()
        assert [call.result() for call in calls] == [bytes([i]) * 60_000 for i in range(3)]
        assert [len(rows) for rows in seen] == [1, 1, 1]
        assert blocker.result() == "blocker"


def test_a_flood_of_questions_is_answered_or_refused_and_stops_nobody(echo):
    service, peer = echo
    peer.greet("Echo")
    peer.say(*(Rows(Type.CALL, id_, 0, b"", [], method=1) for id_ in range(1, 1_001)))
    assert service.run(1) == 1
    ids, answers = [], 0
    while len(ids) < 1_000:
        for record in peer.hear():
            ids.append(record.id)
            answers += record.type == Type.ANSWER and b'"answered"' in record.metadata
    assert sorted(ids) == list(range(1, 1_001))
    assert 64 <= answers < 1_000


def test_answers_for_a_client_that_is_behind_come_in_order_also_after_the_end(little_room):
    size = 1 << 17
    with runner_service(models.Echo(options=BatchOptions(max_batch_size=1))) as service:
        peer = RawPeer(service.endpoint)
        peer.greet("Echo")
        item = np.zeros(size, np.uint8)
        key = key_of(item)
        peer.say(*(Rows(Type.CALL, id_, 1, key, [Buffer(size, [item.data])]) for id_ in range(1, 21)))
        wait_until(lambda: service.statistics().answered == 20, "the answers")
        stopping = Caller(service.stop)
        ids = []
        while (records := peer.hear())[-1].type != Type.BYE:
            for record in records:
                if record.type == Type.PING:
                    peer.say(Plain(Type.PONG, record.id))
                else:
                    ids.append(record.id)
        assert ids + [r.id for r in records[:-1]] == list(range(1, 21))
        stopping.result()
        peer.close()


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:0", None])
def test_a_worker_without_a_supervisor_that_freezes_is_noticed_by_its_heartbeat(
    endpoint, monkeypatch, tmp_path
):
    monkeypatch.setattr(endpoints, "REMOTE_HEARTBEAT_MS", (100, 400))
    monkeypatch.setattr(endpoints, "LOCAL_HEARTBEAT_MS", (100, 2_000))
    with (
        runner_service(models.Double(), endpoint=endpoint) as service,
        Shell(tmp_path, "worker", "models:Double", "--connect", service.endpoint) as worker,
    ):
        wait_until(lambda: service.statistics().workers_ready == 2, "the second worker")
        worker.signal(signal.SIGSTOP)
        calls = [Caller(service.run, np.full((), i)) for i in range(4)]
        assert [int(call.result()) for call in calls] == [0, 2, 4, 6]
        wait_until(lambda: service.statistics().workers_ready == 1, "the loss of the frozen worker")
        worker.signal(signal.SIGCONT)


# ---- storms ----------------------------------------------------------------------------------------


def test_cancels_at_every_moment_leave_nothing_behind():
    async def storm(handle, seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            calls = [asyncio.ensure_future(handle.async_run(i)) for i in range(20)]
            for _ in range(int(rng.integers(0, 4))):
                await asyncio.sleep(0)
            for i in rng.permutation(20)[:10]:
                calls[i].cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            for i, outcome in enumerate(outcomes):
                assert outcome == i or isinstance(outcome, asyncio.CancelledError)

    with runner_service(models.Echo(), workers=2) as service, connect(service.endpoint, "Echo") as handle:
        for way in (service, handle):
            asyncio.run(storm(way, 7))
        wait_until(lambda: service.statistics().queued_calls == 0, "an empty queue")
        numbers = service.statistics()
        assert numbers.calls == numbers.answered + numbers.cancelled
        held, _ = service._running._dispatcher.inspect()
        assert held == 0


def test_random_kills_under_load_answer_every_call_right_or_with_a_typed_error():
    with runner_service(models.Echo(), workers=2) as service:
        stop = threading.Event()
        wrong: list[object] = []
        answered = [0]

        def call(seed):
            n = seed
            while not stop.is_set():
                n += 1
                try:
                    if service.run(n) != n:
                        wrong.append(n)
                    answered[0] += 1
                except WorkerDied:
                    pass
                except BaseException as error:
                    wrong.append(error)

        threads = [threading.Thread(target=call, args=(i * 1_000_000,)) for i in range(4)]
        for thread in threads:
            thread.start()
        try:
            for round_ in range(6):
                target = answered[0] + 20
                wait_until(lambda target=target: answered[0] >= target or bool(wrong), "more answers")
                _, pids = service._running._dispatcher.inspect()
                if pids:
                    os.kill(pids[round_ % len(pids)], signal.SIGKILL)
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)
        assert not wrong
        assert not any(thread.is_alive() for thread in threads)
