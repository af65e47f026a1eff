"""The native dispatcher: one answer for every call, whatever peers send and whoever dies."""

import ctypes
import struct
import threading
from types import SimpleNamespace

import models
import numpy as np
import pytest
import zmq
from fakes import wait_until

pytest.importorskip("batching._native.plane", exc_type=ImportError)

from batching._native import batches, link, pipe, wire
from batching._native.calls import Handle
from batching._native.plane import Plane
from batching._native.rows import BufferPool
from batching._native.scheduler import Scheduler
from batching.errors import InvalidPayload
from batching.payloads import Fixed, Var
from batching.runner.model import Batch, NativeModel
from batching.runner.native_worker import NativeWorkerLink
from batching.runner.recipe import signature_of
from batching.runner.wire import Greeting, Type
from batching.signature import Signature

HELLO, WELCOME, CALL, ANSWER, ERROR, CANCEL, BATCH, RESULT, PING, PONG, STOP, BYE = range(1, 13)
CLIENT, WORKER = 1, 2
INVALID_PAYLOAD, OVERLOADED, DEADLINE, RUNNER, DIED, UNREACHABLE, CLOSED, MALFORMED, BAD_RESULT = range(1, 10)
KEY = b'["ndarray","<f4",[2]]'
ROW_BYTES = 8


def failure(code, text):
    return wire.pack([(ERROR, 0, (code, -1, -1, text, b"", b"", b""))])


class Peer:
    """A DEALER that speaks the protocol by hand. Every wait ends after 10 s."""

    def __init__(self, context, endpoint):
        self.socket = context.socket(zmq.DEALER)
        self.socket.rcvhwm = 4
        self.socket.linger = 0
        self.socket.rcvtimeo = 10_000
        self.socket.connect(endpoint)
        self.records = []
        self.says_pong = True

    def send(self, *records):
        self.socket.send_multipart(wire.pack(records))

    def greet(self, role, *, name=b"model", versions=(1, 1), credit=1, description=b""):
        self.send((HELLO, 0, (role, *versions, credit, 4711, name, description)))
        return self.next()

    def next(self):
        while not self.records:
            records, broken, _ = wire.parse(self.socket.recv_multipart())
            assert broken is None
            self.records = [record for record in records if not self._pinged(record)]
        return self.records.pop(0)

    def _pinged(self, record):
        if record[0] == PING and self.says_pong:
            self.send((PONG, record[1], None))
        return record[0] == PING

    def call(self, *ids, rows=1, budget_ns=-1, value=None, key=KEY):
        self.send(
            *((CALL, id_, rows_content(rows, id_ if value is None else value, budget_ns, key)) for id_ in ids)
        )

    def outcome(self):
        kind, id_, content = self.next()
        return (id_, content[0]) if kind == ERROR else (id_, numbers(content))

    def reply(self, batch):
        """The no-op model: what came in goes out."""
        kind, id_, content = batch
        assert kind == BATCH
        self.send((RESULT, id_, (-1, content[1], content[1], 0, b"result", b"", content[6])))


def rows_content(rows, value, budget_ns=-1, key=KEY):
    data = np.full((rows, 2), value, dtype="<f4").tobytes()
    return (budget_ns, rows, rows, 0, key, b"", [(ROW_BYTES, None, data)])


def numbers(content):
    return np.frombuffer(content[6][0][2], dtype="<f4")[::2].tolist()


class Service:
    def __init__(self, context, endpoint, **options):
        self.context = context
        self.router = context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.setsockopt(zmq.SNDHWM, 20_000)
        self.monitor = self.router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.router.bind(endpoint)
        self.endpoint = endpoint
        timeout_ns = options.pop("run_timeout_ns", -1)
        limits = {
            name: options.pop(name)
            for name in ("max_unread_bytes", "max_message_bytes", "allow_pickle", "groups")
            if name in options
        }
        if "max_queue_rows" in options:
            limits["max_queue_rows"] = options["max_queue_rows"]
        self.scheduler = Scheduler(**{"rule": "greedy", **options})
        self.plane = Plane(
            "model", b"{}", self.router, self.monitor, self.scheduler, run_timeout_ns=timeout_ns, **limits
        )
        self.thread = threading.Thread(target=self.plane.run)
        self.thread.start()
        self.peers = []

    def peer(self):
        self.peers.append(Peer(self.context, self.endpoint))
        return self.peers[-1]

    def client(self):
        peer = self.peer()
        assert peer.greet(CLIENT)[0] == WELCOME
        return peer

    def worker(self, **greeting):
        peer = self.peer()
        assert peer.greet(WORKER, **greeting)[0] == WELCOME
        return peer

    def event(self):
        (event,) = self.plane.events()
        return event

    def cut_off(self):
        return self.plane.statistics()["clients_cut_off"]

    def dropped(self):
        return self.plane.statistics()["messages_dropped"]

    def close(self):
        self.plane.inspect()
        self.plane.end(failure(CLOSED, b"closed"))
        self.thread.join(10)
        for peer in self.peers:
            peer.socket.close()
        self.router.disable_monitor()
        self.monitor.close()
        self.router.close()


@pytest.fixture
def start(tmp_path):
    context = zmq.Context()
    services = []

    def make(**options):
        services.append(Service(context, f"ipc://{tmp_path}/{len(services)}", **options))
        return services[-1]

    yield make
    for service in services:
        service.close()
    context.term()


@pytest.fixture
def service(start):
    return start()


def test_a_call_is_answered_with_its_own_rows(service):
    client, worker = service.client(), service.worker()
    client.call(7, rows=3)
    worker.reply(worker.next())
    assert client.outcome() == (7, [7, 7, 7])


def test_calls_that_wait_while_a_worker_is_busy_run_together(service):
    client, worker = service.client(), service.worker()
    client.call(1)
    first = worker.next()
    client.call(2, 3, rows=2)
    client.call(4)
    client.send((PING, 9, None))
    assert client.next()[0] == PONG
    worker.reply(first)
    second = worker.next()
    assert sorted(numbers(second[2])) == [2, 2, 3, 3, 4]
    worker.reply(second)
    assert sorted(client.outcome() for _ in range(4)) == [(1, [1]), (2, [2, 2]), (3, [3, 3]), (4, [4])]


def test_calls_of_different_keys_never_share_a_batch(service):
    client, worker = service.client(), service.worker()
    client.call(1)
    first = worker.next()
    client.send((CALL, 2, rows_content(1, 2)), (CALL, 3, rows_content(1, 3, key=b"other")))
    worker.reply(first)
    batches = []
    for _ in range(2):
        batches.append(worker.next())
        worker.reply(batches[-1])
    assert sorted((batch[2][4], numbers(batch[2])) for batch in batches) == [(KEY, [2]), (b"other", [3])]


def test_two_clients_with_equal_request_ids_get_their_own_answers(service):
    one, two, worker = service.client(), service.client(), service.worker()
    one.call(5, value=1)
    worker.reply(worker.next())
    two.call(5, value=2)
    worker.reply(worker.next())
    assert one.outcome() == (5, [1])
    assert two.outcome() == (5, [2])


def test_a_call_above_the_batch_size_is_cut_and_rejoined_in_order(start):
    service = start(max_batch_rows=4)
    client, worker = service.client(), service.worker()
    data = np.arange(20, dtype="<f4").reshape(10, 2)
    client.send((CALL, 1, (-1, 10, 10, 0, KEY, b"", [(ROW_BYTES, None, data.tobytes())])))
    for _ in range(3):
        worker.reply(worker.next())
    assert client.outcome() == (1, data[:, 0].tolist())


def test_parts_of_different_kinds_are_an_error(start):
    service = start(max_batch_rows=2)
    client, worker = service.client(), service.worker()
    client.call(1, rows=4)
    for key in (b"float", b"int"):
        _, id_, content = worker.next()
        worker.send((RESULT, id_, (-1, 2, 2, 0, key, b"", content[6])))
    assert client.outcome() == (1, BAD_RESULT)


def test_several_buffers_of_odd_row_sizes_are_joined_and_cut_at_their_rows(service):
    client, worker = service.client(), service.worker()
    client.call(99)
    first = worker.next()

    def buffers(id_, rows):
        numbers = np.random.default_rng(id_)
        return [(size, None, numbers.bytes(size * rows)) for size in (3, 0, 5)]

    calls = {id_: (rows, buffers(id_, rows)) for id_, rows in ((1, 1), (2, 4), (3, 0), (4, 3))}
    client.send(*((CALL, id_, (-1, rows, rows, 0, b"odd", b"", b)) for id_, (rows, b) in calls.items()))
    worker.reply(first)
    joined = worker.next()
    assert joined[2][1] == 8
    for at, (size, _, data) in enumerate(joined[2][6]):
        assert data == b"".join(b[at][2] for _, b in calls.values()), size
    worker.reply(joined)
    client.next()
    answers = [client.next() for _ in calls]
    assert {id_: (content[1], content[6]) for _, id_, content in answers} == calls


def test_blobs_are_joined_and_cut_by_their_lengths(service):
    client, worker = service.client(), service.worker()
    client.call(99)
    first = worker.next()

    def blobs(id_, *texts):
        lengths = struct.pack(f"<{len(texts)}I", *(0xFFFFFFFF if t is None else len(t) for t in texts))
        data = b"".join(t for t in texts if t is not None)
        return CALL, id_, (-1, len(texts), len(texts), 0, b"list", b"", [(-1, lengths, data)])

    calls = [blobs(1, b"a", None), blobs(2, b""), blobs(3, b"longer", b"x")]
    client.send(*calls)
    worker.reply(first)
    worker.reply(worker.next())
    client.next()
    answers = sorted(client.next() for _ in range(3))
    assert [(id_, content[6]) for _, id_, content in answers] == [
        (id_, content[6]) for _, id_, content in calls
    ]


def test_large_rows_travel_in_frames_and_come_back_unchanged(service):
    client, worker = service.client(), service.worker()
    client.call(99)
    first = worker.next()
    arrays = {
        id_: np.random.default_rng(id_).bytes(size) for id_, size in ((1, 40_000), (2, 40_000), (3, 40_000))
    }
    client.send(
        *((CALL, id_, (-1, 1, 1, 0, b"big", b"", [(40_000, None, data)])) for id_, data in arrays.items())
    )
    worker.reply(first)
    worker.reply(worker.next())
    client.next()
    answers = [client.next() for _ in range(3)]
    assert {id_: content[6][0][2] for _, id_, content in answers} == arrays


def test_large_and_small_rows_of_one_batch_keep_their_order(service):
    client, worker = service.client(), service.worker()
    client.call(99)
    first = worker.next()
    calls = {
        id_: np.random.default_rng(id_).bytes(8 * rows) for id_, rows in ((1, 1), (2, 5_000), (3, 2), (4, 3))
    }
    client.send(
        *(
            (CALL, id_, (-1, len(data) // 8, len(data) // 8, 0, KEY, b"", [(8, None, data)]))
            for id_, data in calls.items()
        )
    )
    worker.reply(first)
    client.next()
    answers = {}
    while len(answers) < 4:
        worker.socket.rcvtimeo = 200
        try:
            worker.reply(worker.next())
        except zmq.Again:
            _, id_, content = client.next()
            answers[id_] = content[6][0][2]
    assert answers == calls


def test_a_cancelled_call_never_reaches_a_worker(service):
    client, worker = service.client(), service.worker()
    client.call(1)
    first = worker.next()
    client.call(2, 3)
    client.send((CANCEL, 2, None), (PING, 1, None))
    assert client.next()[0] == PONG
    worker.reply(first)
    second = worker.next()
    assert numbers(second[2]) == [3]
    worker.reply(second)
    assert [client.outcome(), client.outcome()] == [(1, [1]), (3, [3])]


def test_a_deadline_that_passes_in_the_queue_is_told(service):
    client = service.client()
    client.call(1, budget_ns=1_000_000)
    assert client.outcome() == (1, DEADLINE)


def test_a_full_queue_refuses_at_once(start):
    service = start(max_queue_rows=4, max_batch_rows=4)
    client = service.client()
    client.call(1, rows=4)
    client.call(2)
    client.call(3, rows=5)
    assert client.outcome() == (2, OVERLOADED)
    assert client.outcome() == (3, INVALID_PAYLOAD)


def test_a_batch_that_raises_is_cut_down_to_the_guilty_call(service):
    client, worker = service.client(), service.worker()
    client.call(99)
    first = worker.next()
    client.call(1, 2, 3, 4)
    worker.reply(first)
    client.outcome()
    outcomes = []
    worker.socket.rcvtimeo = 100
    while len(outcomes) < 4:
        try:
            batch = worker.next()
        except zmq.Again:
            outcomes.append(client.outcome())
            continue
        if 3 in numbers(batch[2]):
            worker.send((ERROR, batch[1], (RUNNER, -1, -1, b"no threes", b"ValueError", b"", b"")))
        else:
            worker.reply(batch)
    assert sorted(outcomes) == [(1, [1]), (2, [2]), (3, RUNNER), (4, [4])]


def test_a_result_with_another_row_count_fails_every_caller(service):
    client, worker = service.client(), service.worker()
    client.call(1, rows=2)
    _, id_, _ = worker.next()
    worker.send((RESULT, id_, rows_content(1, 0)))
    assert client.outcome() == (1, BAD_RESULT)


def test_an_unusable_result_is_never_run_again(service):
    client, worker = service.client(), service.worker()
    client.call(1)
    _, id_, _ = worker.next()
    worker.send((ERROR, id_, (BAD_RESULT, -1, -1, b"a dict", b"", b"", b"")))
    assert client.outcome() == (1, BAD_RESULT)


def test_a_batch_whose_worker_left_goes_to_another(service):
    client, worker, other = service.client(), service.worker(), None
    client.call(1)
    worker.next()
    worker.socket.close()
    other = service.worker()
    other.reply(other.next())
    assert client.outcome() == (1, [1])


def test_a_poison_call_costs_three_workers_and_fails_alone(service):
    client = service.client()
    client.call(1)
    for _ in range(3):
        worker = service.worker()
        worker.next()
        worker.socket.close()
    assert client.outcome() == (1, DIED)


def test_a_worker_that_asks_to_leave_gets_no_batch_any_more_and_is_told_so(service):
    client, worker = service.client(), service.worker(credit=2)
    client.call(1)
    batch = worker.next()
    worker.send((STOP, 0, None))
    assert worker.next()[0] == STOP
    client.call(2)
    client.send((PING, 1, None))
    assert client.next()[0] == PONG
    worker.reply(batch)
    assert client.outcome() == (1, [1])
    worker.send((PING, 1, None))
    assert worker.next()[0] == PONG  # and no batch before it
    other = service.worker()
    other.reply(other.next())
    assert client.outcome() == (2, [2])


@pytest.mark.parametrize("isolate", [True, False])
def test_batches_of_a_worker_that_said_goodbye_were_not_started_and_count_for_nothing(start, isolate):
    service = start(isolate_errors=isolate)
    client = service.client()
    client.call(1)
    for _ in range(4):
        worker = service.worker()
        worker.next()
        worker.send((BYE, 0, None))
    worker = service.worker()
    worker.reply(worker.next())
    assert client.outcome() == (1, [1])


def test_a_supervised_worker_is_waited_for_by_its_supervisor(service):
    client = service.client()
    worker = service.worker(description=b'{"token": "w1"}')
    assert service.event() == ("ready", "w1", "", 0)
    client.call(1)
    worker.next()
    worker.socket.close()
    assert service.event() == ("kill", "w1", "it lost its connection", 0)
    service.plane.worker_died("w1", failure(DIED, b"killed"))
    other = service.worker()
    other.reply(other.next())
    assert client.outcome() == (1, [1])


def test_a_batch_that_takes_too_long_is_reported(start):
    service = start(run_timeout_ns=20_000_000)
    client = service.client()
    worker = service.worker(description=b'{"token":"w1"}')
    service.event()
    client.call(1)
    worker.next()
    assert service.event()[:2] == ("kill", "w1")


def test_a_worker_that_sends_nonsense_is_given_up_and_its_batch_runs_elsewhere(service):
    client, worker = service.client(), service.worker()
    client.call(1)
    worker.next()
    worker.socket.send(b"nonsense")
    assert worker.next()[2][0] == UNREACHABLE
    other = service.worker()
    other.reply(other.next())
    assert client.outcome() == (1, [1])


def test_a_late_result_changes_nothing(service):
    client, worker = service.client(), service.worker()
    client.call(1)
    batch = worker.next()
    worker.reply(batch)
    worker.reply(batch)
    assert client.outcome() == (1, [1])
    client.call(2)
    worker.reply(worker.next())
    assert client.outcome() == (2, [2])
    assert service.dropped() == 1


@pytest.mark.parametrize("greeting", [{"name": b"other"}, {"versions": (2, 9)}])
def test_a_greeting_for_something_else_is_refused(service, greeting):
    kind, id_, content = service.peer().greet(CLIENT, **greeting)
    assert (kind, id_, content[0]) == (ERROR, 0, UNREACHABLE)


def test_a_stranger_is_told_to_greet_first(service):
    stranger = service.peer()
    stranger.call(1)
    assert stranger.next()[2][0] == UNREACHABLE


@pytest.mark.parametrize(
    "frames",
    [[b""], [b"BATC"], [b"x" * 5_000], [b"", b"", b""], [b"BATC\x02\0\0\0\0\0\0\0\x10\0\0\0"], [b"a"] * 200],
)
def test_noise_is_dropped_and_the_next_call_is_served(service, frames):
    client, worker = service.client(), service.worker()
    client.socket.send_multipart(frames)
    client.call(1)
    worker.reply(worker.next())
    assert client.outcome() == (1, [1])
    assert service.dropped() == 1


def test_a_malformed_message_fails_the_calls_that_could_be_read(service):
    client, worker = service.client(), service.worker()
    packet = bytearray(wire.pack([(CALL, id_, rows_content(1, id_)) for id_ in (1, 2, 3)])[0])
    record = (len(packet) - 16) // 3
    struct.pack_into("<q", packet, 16 + record + 16, -5)  # the budget of the second
    client.socket.send(packet)
    assert [client.outcome(), client.outcome()] == [(1, MALFORMED), (2, MALFORMED)]
    client.call(4)
    worker.reply(worker.next())
    assert client.outcome() == (4, [4])


def test_a_call_whose_buffers_are_not_those_of_its_key_is_refused(service):
    client = service.client()
    client.call(1)
    client.send((CALL, 2, (-1, 1, 1, 0, KEY, b"", [(4, None, b"1234")])))
    assert client.outcome() == (2, MALFORMED)


def test_a_client_that_leaves_frees_its_place_in_the_queue(start):
    service = start(max_queue_rows=4, max_batch_rows=4)
    gone = service.client()
    gone.call(1, rows=4)
    gone.send((PING, 1, None))
    gone.next()
    gone.send((BYE, 0, None))
    client = service.client()
    client.call(2)
    worker = service.worker()
    worker.reply(worker.next())
    assert client.outcome() == (2, [2])


MEGABYTE = 1 << 20


def big_call(id_):
    return CALL, id_, (-1, 1, 1, 0, b"big", b"", [(MEGABYTE, None, bytes(MEGABYTE))])


def answer_until_cut_off(service, worker, deaf):
    """Calls with answers of a megabyte that nobody reads; how many until it was cut off."""
    for id_ in range(1, 100):
        deaf.send(big_call(id_))
        worker.reply(worker.next())
        worker.send((PING, 1, None))
        while worker.next()[0] != PONG:
            pass
        if service.cut_off():
            return id_
    raise AssertionError("never cut off")


def test_a_client_that_does_not_read_is_cut_off_at_so_many_bytes_and_told(start):
    service = start(max_unread_bytes=16 * MEGABYTE)
    deaf, worker = service.client(), service.worker()
    deaf.says_pong = False
    # One more than the limit may wait, and one message may be above the window.
    assert 12 <= answer_until_cut_off(service, worker, deaf) <= 18
    # What had not left is gone: libzmq held no more than the window, and one message.
    answers = 0
    while (told := deaf.next())[0] == ANSWER:
        answers += 1
    assert 1 <= answers <= 3
    assert (told[0], told[1], told[2][0]) == (ERROR, 0, UNREACHABLE)
    client = service.client()
    client.call(1)
    worker.reply(worker.next())
    assert client.outcome() == (1, [1])


def test_a_client_that_reads_gets_any_number_of_bytes(start):
    service = start(max_unread_bytes=4 * MEGABYTE)
    client, worker = service.client(), service.worker()
    for id_ in range(1, 13):
        client.send(big_call(id_))
        worker.reply(worker.next())
        assert client.next()[:2] == (ANSWER, id_)
    assert service.cut_off() == 0


def test_answers_wait_for_a_client_that_is_behind_and_come_in_order(start):
    service = start(max_unread_bytes=16 * MEGABYTE)
    client, other, worker = service.client(), service.client(), service.worker()
    for id_ in range(1, 9):
        client.send(big_call(id_))
        worker.reply(worker.next())
    other.call(1)
    worker.reply(worker.next())
    assert other.outcome() == (1, [1])
    assert [client.next()[1] for _ in range(8)] == list(range(1, 9))
    assert service.cut_off() == 0


def test_a_client_that_says_pong_without_having_read_is_cut_off_all_the_same(start):
    service = start(max_unread_bytes=8 * MEGABYTE)
    deaf, worker = service.client(), service.worker()
    deaf.says_pong = False
    deaf.send(*((PONG, id_, None) for id_ in (0, 1, MEGABYTE, 2**64 - 1)))
    assert answer_until_cut_off(service, worker, deaf) <= 10


def test_a_client_whose_small_answers_pile_up_is_cut_off_too(start):
    service = start(max_unread_bytes=MEGABYTE)
    deaf = service.client()
    deaf.says_pong = False
    pings = 0
    watcher = service.client()
    while not service.cut_off():
        deaf.send((PING, 1, None))
        watcher.send((PING, 1, None))
        watcher.next()
        pings += 1
    assert pings < 1_000


def test_what_waits_for_a_client_that_is_behind_is_sent_before_the_end(start):
    service = start(max_unread_bytes=MEGABYTE // 2)
    client, worker = service.client(), service.worker()
    calls = [(CALL, id_, (-1, 1, 1, 0, b"big", b"", [(65_536, None, bytes(65_536))])) for id_ in range(1, 5)]
    for call in calls:
        client.send(call)
        worker.reply(worker.next())
    worker.send((PING, 1, None))
    assert worker.next()[0] == PONG
    service.plane.end(failure(CLOSED, b"stopped"))
    assert [client.next()[:2] for _ in range(5)] == [*((ANSWER, id_) for id_ in range(1, 5)), (BYE, 0)]


def test_calls_of_the_own_process_take_the_same_path(service):
    worker = service.worker()
    assert service.plane.submit(
        link.new_message(wire.pack([(CALL, 1, rows_content(2, 5)), (CALL, 2, rows_content(1, 6))]))
    )
    worker.reply(worker.next())
    kind, _, _, message = service.event()
    records, broken, _ = wire.parse(link.frames_of(message))
    link.drop(message)
    assert (kind, broken) == ("local", None)
    assert sorted((id_, numbers(content)) for _, id_, content in records) == [(1, [5, 5]), (2, [6])]


def in_many_frames(id_, frames):
    """A call whose only buffer comes in as many frames, of one row each."""
    head, data = wire.pack([(CALL, id_, rows_content(frames, id_))])
    descriptor = struct.pack("<QiI", len(data), ROW_BYTES, 1)
    assert head.count(descriptor) == 1
    head = head.replace(descriptor, struct.pack("<QiI", len(data), ROW_BYTES, frames))
    head = head[:18] + struct.pack("<H", frames) + head[20:]
    return [head, *(data[at : at + ROW_BYTES] for at in range(0, len(data), ROW_BYTES))]


def test_a_batch_that_one_message_cannot_hold_is_halved_until_it_fits(start):
    service = start(max_batch_rows=1_000_000, max_queue_rows=1_000_000)
    client, worker = service.client(), service.worker()
    client.call(99)
    first = worker.next()
    for id_ in (1, 2):
        client.socket.send_multipart(in_many_frames(id_, 40_000))
    client.send((PING, 9, None))
    assert client.next()[0] == PONG
    worker.reply(first)
    for _ in range(2):
        worker.reply(worker.next())
    client.outcome()
    assert sorted(client.outcome() for _ in range(2)) == [(id_, [id_] * 40_000) for id_ in (1, 2)]


@pytest.mark.parametrize("isolate", [True, False])
def test_a_batch_above_the_size_of_a_message_is_halved_and_nothing_is_run_twice(start, isolate):
    service = start(max_message_bytes=MEGABYTE + 4_096, isolate_errors=isolate)
    client, worker = service.client(), service.worker()
    client.call(99)
    first = worker.next()
    client.send(big_call(1))
    client.send(big_call(2))
    client.send((PING, 9, None))
    assert client.next()[0] == PONG
    worker.reply(first)
    for _ in range(2):
        batch = worker.next()
        assert batch[2][1] == 1
        worker.reply(batch)
    assert client.outcome() == (99, [99])
    assert [client.next()[:2] for _ in range(2)] == [(ANSWER, 1), (ANSWER, 2)]


def test_an_answer_above_the_size_of_a_message_is_an_error_that_names_both(start):
    service = start(max_message_bytes=100_000, max_batch_rows=1)
    client, worker = service.client(), service.worker()
    client.call(1, rows=2)
    for _ in range(2):
        _, id_, _ = worker.next()
        worker.send((RESULT, id_, (-1, 1, 1, 0, b"wide", b"", [(60_000, None, bytes(60_000))])))
    kind, id_, content = client.next()
    assert (kind, id_, content[0]) == (ERROR, 1, INVALID_PAYLOAD)
    assert content[3] == b"an answer of 120088 bytes is above max_message_bytes, 100000"


def test_a_message_above_its_size_fails_its_calls_with_both_numbers(start):
    service = start(max_message_bytes=100_000)
    client = service.client()
    calls = [(CALL, id_, (-1, 1, 1, 0, b"wide", b"", [(60_000, None, bytes(60_000))])) for id_ in (1, 2)]
    client.send(*calls)
    for id_ in (1, 2):
        kind, at, content = client.next()
        assert (kind, at, content[0]) == (ERROR, id_, MALFORMED)
        assert content[3] == b"a message of 120160 bytes is above max_message_bytes, 100000"
    assert service.dropped() == 1
    client.send(calls[0])
    service.worker().next()


@pytest.fixture
def allocated_bytes():
    memory = ctypes.CDLL(None)
    if not hasattr(memory, "mallinfo2"):
        pytest.skip("the C library does not tell what is allocated")

    class Info(ctypes.Structure):
        _fields_ = (("numbers", ctypes.c_size_t * 10),)

    memory.mallinfo2.restype = Info

    def allocated():
        numbers = memory.mallinfo2().numbers
        return numbers[4] + numbers[7]  # mapped, and in the arenas

    return allocated


def test_what_waits_for_one_client_keeps_no_result_of_others_alive(start, allocated_bytes):
    service = start(max_unread_bytes=8 * MEGABYTE, max_batch_rows=16)
    deaf, other, worker = service.client(), service.client(), service.worker()
    deaf.says_pong = False

    def wide(id_, rows):
        return CALL, id_, (-1, rows, rows, 0, b"wide", b"", [(65_536, None, bytes(65_536 * rows))])

    def batch_of_both(id_, before):
        deaf.send(wide(id_, 1))
        other.send(wide(id_, 15))
        wait_until(lambda: service.plane.statistics()["queued_calls"] == 2, "both calls")
        worker.reply(before)
        batch = worker.next()
        assert batch[2][1] == 16
        return batch

    other.call(1_000)
    batch = worker.next()
    for id_ in range(1, 11):
        batch = batch_of_both(id_, batch)
        other.next()
    before_bytes = allocated_bytes()
    for id_ in range(11, 61):
        batch = batch_of_both(id_, batch)
        other.next()
    # Fifty answers of 64 KiB, cut out of results of a mebibyte.
    assert allocated_bytes() - before_bytes < 10 * MEGABYTE
    assert service.cut_off() == 0


def test_a_packet_that_waits_holds_little_more_memory_than_it_fills(allocated_bytes):
    messages = []
    calls = pipe.Pipe(messages.append, lambda: None, RuntimeError)
    calls.open()
    before_bytes = allocated_bytes()
    for id_ in range(500):
        calls.write_plain(PONG, id_)
    grown_bytes = allocated_bytes() - before_bytes
    assert len(messages) == 500
    for message in messages:
        link.drop(message)
    assert grown_bytes < 500 * 1024


def test_keys_come_and_go_by_the_thousand_and_few_are_remembered(start):
    service = start(max_queue_rows=10_000)
    client, worker = service.client(), service.worker()
    client.call(1)
    first = worker.next()
    keys = [f'["key",{i}]'.encode() for i in range(2_000)]
    client.send(*((CALL, i + 2, rows_content(1, i, key=key)) for i, key in enumerate(keys)))
    client.send((PING, 1, None))
    assert client.next()[0] == PONG
    service.plane.inspect()
    client.send(*((CANCEL, i + 2, None) for i in range(1, 2_000, 2)))
    client.send((PING, 2, None))
    assert client.next()[0] == PONG
    service.plane.inspect()
    worker.reply(first)
    for _ in range(1_000):
        worker.reply(worker.next())
    assert len({client.outcome()[0] for _ in range(1_001)}) == 1_001
    assert service.plane.inspect()[0] == 0
    assert service.plane.statistics()["groups"] == 2_001


def test_draining_answers_what_was_accepted_and_refuses_the_rest(service):
    client, worker = service.client(), service.worker()
    client.call(1)
    batch = worker.next()
    service.plane.drain()
    client.call(2)
    assert client.outcome() == (2, CLOSED)
    worker.reply(batch)
    assert client.outcome() == (1, [1])
    assert service.event()[0] == "drained"


def test_a_worker_that_comes_while_draining_answers_what_was_accepted(service):
    client, worker = service.client(), service.worker()
    client.call(1)
    worker.next()
    service.plane.drain()
    worker.socket.close()
    other = service.worker()
    other.reply(other.next())
    assert client.outcome() == (1, [1])
    assert service.event()[0] == "drained"
    assert service.peer().greet(CLIENT)[2][0] == UNREACHABLE


def test_a_worker_that_takes_a_batch_and_leaves_for_ever_keeps_no_call_for_ever(service):
    client, worker = service.client(), service.peer()
    client.call(1)
    for _ in range(3 * 16):
        assert worker.greet(WORKER)[0] == WELCOME
        assert worker.next()[0] == BATCH
        worker.send((BYE, 0, None))
    assert client.outcome() == (1, DIED)


@pytest.mark.parametrize("role", [CLIENT, WORKER])
def test_a_peer_that_says_goodbye_may_greet_again_at_once(service, role):
    peer, other = service.peer(), service.client()
    assert peer.greet(role)[0] == WELCOME
    hello = (HELLO, 0, (role, 1, 1, 1, 4711, b"model", b""))
    peer.send((BYE, 0, None), hello, (PING, 5, None))
    answers = [peer.next()[0] for _ in range(2)]
    assert answers == [WELCOME, PONG]
    if role == CLIENT:
        peer.call(1)
        worker = service.worker()
    else:
        other.call(1)
        worker = peer
    worker.reply(worker.next())
    assert (peer if role == CLIENT else other).outcome() == (1, [1])


def test_a_call_without_an_id_is_dropped_and_blamed_on_no_call(service):
    client = service.client()
    packet = bytearray(wire.pack([(CALL, 7, rows_content(1, 7))])[0])
    struct.pack_into("<Q", packet, 24, 0)
    client.socket.send(packet)
    client.send((PING, 9, None))
    assert client.next()[:2] == (PONG, 9)
    assert service.dropped() == 1


@pytest.mark.parametrize(("credit", "batches"), [(0, 1), (2**32 - 1, 1_024)])
def test_a_worker_gets_one_batch_at_least_and_a_thousand_at_most(start, credit, batches):
    service = start(max_batch_rows=1)
    client, worker = service.client(), service.worker(credit=credit)
    client.call(*range(1, 1_101))
    for _ in range(batches):
        assert worker.next()[0] == BATCH
    client.send((PING, 9, None))
    assert client.next()[0] == PONG
    assert service.plane.statistics()["in_flight_batches"] == batches


def test_the_greatest_budget_and_timeout_are_no_trouble(start):
    service = start(run_timeout_ns=2**62)
    client, worker = service.client(), service.worker()
    for id_, budget_ns in ((1, 2**63 - 1), (2, 2**62)):
        client.call(id_, budget_ns=budget_ns)
        worker.reply(worker.next())
        assert client.outcome() == (id_, [id_])


def test_a_failing_service_fails_what_waits_and_what_comes(service):
    client = service.client()
    client.call(1)
    service.plane.fail_calls(failure(RUNNER, b"_setup failed"))
    assert client.outcome() == (1, RUNNER)
    client.call(2)
    assert client.outcome() == (2, RUNNER)
    service.plane.fail_calls(None)
    client.call(3)
    worker = service.worker()
    worker.reply(worker.next())
    assert client.outcome() == (3, [3])


def test_the_end_fails_what_is_left_and_says_goodbye(service):
    client = service.client()
    client.call(1)
    client.send((PING, 1, None))
    client.next()
    service.plane.end(failure(CLOSED, b"stopped"))
    assert client.outcome() == (1, CLOSED)
    assert client.next()[0] == BYE
    assert not service.plane.submit(link.new_message(wire.pack([(CANCEL, 1, None)])))


def test_the_statistics_are_the_schedulers(service):
    client, worker = service.client(), service.worker()
    client.call(1)
    worker.reply(worker.next())
    client.outcome()
    numbers = service.plane.statistics()
    assert [numbers[name] for name in ("answered", "workers_ready", "clients", "groups")] == [1, 1, 1, 1]


def ask(id_):
    return CALL, id_, (-1, 0, 0, 1, b"", b"", [])


def test_questions_that_wait_together_get_one_answer_and_a_later_one_its_own(service):
    one, two = service.client(), service.client()
    one.send(ask(1))
    assert service.event()[0] == "ask"
    one.send(ask(2), ask(3), (PING, 9, None))
    assert one.next()[0] == PONG
    two.send(ask(7), (PING, 9, None))
    assert two.next()[0] == PONG
    service.plane.reply(b"first")
    assert one.next()[:2] == (ANSWER, 1)
    assert service.event()[0] == "ask"
    service.plane.reply(b"second")
    answers = [one.next(), one.next(), two.next()]
    assert [(id_, content[5]) for _, id_, content in answers] == [(id_, b"second") for id_ in (2, 3, 7)]


def test_a_flood_of_questions_is_bounded_for_its_client_alone(service):
    flood, other = service.client(), service.client()
    flood.send(*(ask(id_) for id_ in range(1, 1_001)))
    refused = [flood.next() for _ in range(936)]
    assert {(kind, content[0]) for kind, _, content in refused} == {(ERROR, OVERLOADED)}
    other.send(ask(5), (PING, 9, None))
    assert other.next()[0] == PONG
    for _ in range(2):
        if service.event()[0] == "ask":
            service.plane.reply(b"{}")
    assert sorted(flood.next()[1] for _ in range(64)) == list(range(1, 65))
    assert other.next()[:2] == (ANSWER, 5)


def test_calls_that_wait_to_be_grouped_are_bounded_for_each_client(start):
    service = start(groups=True)
    flood, worker = service.client(), service.worker()
    for id_ in range(1, 1_003):
        flood.call(id_)
    assert [flood.outcome() for _ in range(2)] == [(1_001, OVERLOADED), (1_002, OVERLOADED)]
    groups = []
    while len(groups) < 1_000:
        groups += service.plane.events()
    kind, _, (number, _), message = groups[0]
    assert kind == "group"
    service.plane.grouped(number, link.frames_of(message))
    worker.reply(worker.next())
    assert flood.outcome() == (1, [1])
    flood.call(2_000)
    (last,) = service.plane.events()
    for *_, message in [*groups, last]:
        link.drop(message)


def test_rows_that_wait_to_be_grouped_are_bounded_like_those_that_wait_in_the_queue(start):
    service = start(groups=True, max_queue_rows=4, max_batch_rows=4)
    first, second, worker = service.client(), service.client(), service.worker()
    groups = []

    def grouped():
        groups.extend(event for event in service.plane.events() if event[0] == "group")
        _, _, (ticket, _), message = groups[-1]
        service.plane.grouped(ticket, link.frames_of(message))

    first.call(1, rows=3)
    first.send((PING, 1, None))
    assert first.next()[0] == PONG
    second.call(1, rows=2)
    assert second.outcome() == (1, OVERLOADED)
    counted = service.plane.statistics()
    assert counted["calls"] == counted["refused"] == 1  # the first is no call before it is grouped
    grouped()
    worker.reply(worker.next())
    assert first.outcome() == (1, [1, 1, 1])
    second.call(2, rows=2)
    grouped()
    worker.reply(worker.next())
    assert second.outcome() == (2, [2, 2])
    # What is too large for any queue is for the queue to refuse.
    second.call(3, rows=5)
    grouped()
    assert second.outcome() == (3, INVALID_PAYLOAD)
    for *_, message in groups:
        link.drop(message)


def test_calls_that_their_owner_could_not_group_fail_and_no_others(start):
    service = start(groups=True)
    client, worker = service.client(), service.worker()
    client.call(1, 2)
    client.send((PING, 1, None))
    assert client.next()[0] == PONG
    client.call(3)
    events = []
    while len(events) < 2:
        events += service.plane.events()
    (first, *_), (second, *_) = [event[2] for event in events]
    service.plane.grouped(first, link.frames_of(events[0][3]))
    service.plane.not_grouped(second)
    assert client.outcome() == (3, OVERLOADED)
    assert service.plane.statistics()["refused"] == 1
    worker.reply(worker.next())
    assert sorted(client.outcome() for _ in range(2)) == [(1, [1]), (2, [2])]
    for *_, message in events:
        link.drop(message)


def test_questions_that_their_owner_cannot_answer_fail(service):
    client = service.client()
    client.send(ask(1))
    assert service.event()[0] == "ask"
    service.plane.no_numbers()
    assert client.outcome() == (1, OVERLOADED)
    client.send(ask(2))
    assert service.event()[0] == "ask"
    service.plane.reply(b"{}")
    assert client.next()[:2] == (ANSWER, 2)


def test_the_question_of_a_client_that_left_hurts_nobody(service):
    gone, client = service.client(), service.client()
    gone.send(ask(1), (BYE, 0, None))
    assert service.event()[0] == "ask"
    client.send(ask(2))
    client.send((PING, 9, None))
    assert client.next()[0] == PONG
    service.plane.reply(b"{}")
    assert service.event()[0] == "ask"
    service.plane.reply(b"{}")
    assert client.next()[:2] == (ANSWER, 2)


def test_questions_that_wait_at_the_end_are_told(service):
    client = service.client()
    client.send(ask(1))
    assert service.event()[0] == "ask"
    service.plane.end(failure(CLOSED, b"stopped"))
    assert client.outcome() == (1, CLOSED)


def test_a_connected_caller_may_take_the_short_way_that_the_service_takes():
    signature = Signature(models.Echo()._run_batch)
    assert signature.simple
    assert Signature.from_bytes(signature.to_bytes()).simple


@pytest.mark.parametrize(
    "buffer", [Fixed(8, b"short"), Var(b"\x09\0\0\0" * 2, b"short"), Var(b"\x01\0\0\0", b"short")]
)
def test_a_result_with_fewer_bytes_than_its_rows_have_is_refused(buffer):
    with pytest.raises(ValueError, match="bytes of rows in a buffer of 5"):
        batches.new_result(1, 2, b"key", [buffer], Var, BufferPool(), False)


class NoMemory:
    def take(self, dtype, shape):
        raise MemoryError


def test_a_batch_for_whose_rows_a_worker_has_no_memory_is_answered_with_that(start):
    service = start(max_batch_rows=1_000_000)
    hello = Greeting(Type.HELLO, WORKER, "model", credits=1)
    worker = NativeWorkerLink(service.endpoint, hello, BufferPool())
    worker._pool = NoMemory()
    worker.start()
    batches = []
    thread = threading.Thread(target=lambda: batches.append(worker.get()))
    thread.start()
    client = service.client()
    client.call(1, rows=50_000)  # more than what is taken from the pool at least
    _, id_, content = client.next()
    assert (id_, content[0]) == (1, RUNNER)
    assert b"MemoryError" in content[3]
    client.call(2)
    thread.join(10)
    assert [batch.rows for batch in batches] == [1]
    worker.close()


class Lies:
    """A signature whose buffers are not those of its rows."""

    def __init__(self, buffer):
        self._encoded = SimpleNamespace(key=KEY, rows=2, buffers=[buffer])

    def describe(self, args, kwargs, batched):
        return SimpleNamespace(rows=2, payload=None)

    def encode(self, payload, *, allow_pickle):
        return self._encoded


@pytest.mark.parametrize(
    ("buffer", "text"),
    [
        (Fixed(8, b"short"), "2 rows of 8 bytes were encoded in 5 bytes"),
        (Fixed(1, b"long"), "2 rows of 1 bytes were encoded in 4 bytes"),
        (Var(b"\x01\0\0\0", b"1"), "2 rows were encoded with 1 lengths"),
        (Var(b"\x01\0\0\0\x02\0\0\0", b"12"), "rows of 3 bytes were encoded in 2 bytes"),
    ],
)
def test_a_call_that_was_encoded_wrongly_fails_alone(buffer, text):
    sent = []
    calls = pipe.Pipe(sent.append, lambda: None, RuntimeError)
    calls.open()
    engine = pipe.PipeEngine(calls, Lies(buffer), None, allow_pickle=True, fixed=Fixed, var=Var)
    handle = Handle()
    handle._bind(engine)
    with pytest.raises(InvalidPayload, match=text):
        handle.run(1)
    calls.flush()
    assert (sent, len(calls)) == ([], 0)


class Pool:
    """Counts what is taken."""

    def __init__(self):
        self.pool, self.taken = BufferPool(keep=4), 0
        self.is_alone = self.pool.is_alone

    def take(self, dtype, shape):
        self.taken += 1
        return self.pool.take(dtype, shape)


class Keeps(models.Echo):
    """Returns its batch, and keeps the last row of it."""

    def _run_batch(self, x):
        self.kept = x[-1]
        return x


@pytest.mark.parametrize(("runner", "copies"), [(models.Echo, 0), (Keeps, 1)])
def test_a_large_result_that_is_its_own_batch_is_copied_only_if_somebody_else_sees_it(runner, copies):
    rows = np.arange(8 * 100_000, dtype="<f4").reshape(8, 100_000)
    model, pool = runner(), Pool()
    native = NativeModel(model, pool, allow_pickle=False)
    buffer = Fixed(rows.nbytes // 8, pool.take(np.dtype("u1"), (rows.nbytes,)))
    buffer.data[:] = rows.reshape(-1).view("u1")
    taken = pool.taken
    signature = signature_of(model)
    key = signature.encode(signature.describe((rows,), {}, True).payload).key
    batch = Batch(None, 7, 8, 8, key, [buffer])
    del buffer
    message = native.run(batch)
    assert pool.taken - taken == copies
    if copies:
        model.kept[:] = -1  # behind the answer's back
    frames = link.frames_of(message)
    link.drop(message)
    assert np.array_equal(np.frombuffer(b"".join(frames[1:]), "<f4").reshape(rows.shape), rows)
