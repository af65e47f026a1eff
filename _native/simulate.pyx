# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Simulate: the event loop that drives a Scheduler with a clock of its own.

What it is      calls that arrive, workers that take as long as a cost says, and the
                very scheduler that the engines run. `batching.simulation` is its face.
Guarantees      1. the same inputs give the same outcome, bit for bit;
                2. events of one instant happen in the order in which they were planned,
                   and the scheduler is asked after each, as a driver does.
Not promised    any cost of the driver itself: sockets, event loops and timers are free here.
Why this shape  400,000 calls a few seconds: no Python object is made per call, only per
                batch (its cost) and, in a closed loop, per answer (the think time).
Units           nanoseconds of a clock that starts at 0; sizes are rows.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, realloc

from c_scheduler cimport (
    BT_ADMITTED, BT_ANSWERED, BT_NEVER, BT_OK, BT_RUN, bt_admission, bt_admit, bt_decide,
    bt_decision, bt_expired, bt_finished, bt_scheduler, bt_settled,
)

import numpy as np

cdef enum:
    ARRIVAL = 0
    FINISH = 1
    EXPIRED_AT_ONCE = 256


cdef struct Event:
    int64_t at_ns
    int64_t order   # of planning: breaks ties
    int64_t kind
    uint64_t what   # the caller that calls, or the batch that ends


@cython.final
cdef class Agenda:
    """A heap of events by time."""

    cdef Event *events
    cdef size_t count
    cdef size_t room
    cdef int64_t planned

    def __cinit__(self):
        self.events = NULL
        self.count = self.room = 0
        self.planned = 0

    def __dealloc__(self):
        free(self.events)

    cdef int plan(self, int64_t at_ns, int64_t kind, uint64_t what) except -1:
        cdef size_t at, parent
        cdef Event *grown
        cdef Event event = Event(at_ns, self.planned, kind, what)
        if self.count == self.room:
            self.room = 2 * self.room + 64
            grown = <Event *>realloc(self.events, self.room * sizeof(Event))
            if grown is NULL:
                raise MemoryError("no memory for the events of a simulation")
            self.events = grown
        self.planned += 1
        at = self.count
        self.count += 1
        while at > 0:
            parent = (at - 1) // 2
            if not before(&event, &self.events[parent]):
                break
            self.events[at] = self.events[parent]
            at = parent
        self.events[at] = event
        return 0

    cdef Event take(self) noexcept:
        cdef Event first = self.events[0]
        cdef Event last
        cdef size_t at = 0, child
        self.count -= 1
        last = self.events[self.count]
        while True:
            child = 2 * at + 1
            if child >= self.count:
                break
            if child + 1 < self.count and before(&self.events[child + 1], &self.events[child]):
                child += 1
            if not before(&self.events[child], &last):
                break
            self.events[at] = self.events[child]
            at = child
        self.events[at] = last
        return first


cdef inline bint before(const Event *a, const Event *b) noexcept:
    return a.at_ns < b.at_ns or (a.at_ns == b.at_ns and a.order < b.order)


cdef int64_t ns_of(object seconds, str what) except -1:
    cdef double value = seconds
    if not 0.0 <= value < 1e9:
        raise ValueError(f"{what} must be seconds, 0 or more and finite, got {seconds!r}")
    return <int64_t>(value * 1e9 + 0.5)


@cython.final
cdef class Simulation:
    """One run; `run` may be called once.

    Args:
        scheduler: a `Scheduler` that nobody else uses. Kept, not closed.
        slots: batches that run at once.
        budget_ns: from call to deadline; None: no deadline.
        rows: (n,) int64, rows of each call, in the order of the calls.
        cost: callable (rows, rng) -> seconds of one batch, padding included.
        rng: handed to `cost` and `think`.
        arrivals_ns: (n,) int64, ascending; None in a closed loop.
        callers: of a closed loop; each calls first after one think time.
        think: callable (rng) -> seconds from an outcome to that caller's next call.
    """

    cdef object scheduler, cost, rng, think
    cdef bt_scheduler *native
    cdef Agenda agenda
    cdef int64_t slots, idle, now_ns, timer_ns, budget_ns, called, settled, total, next_arrival
    cdef const int64_t[::1] rows
    cdef const int64_t[::1] arrivals
    cdef int64_t[::1] caller_of
    cdef int64_t[::1] called_ns
    cdef double[::1] latency_s
    cdef list batch_rows, batch_ns

    def __init__(self, scheduler, *, slots, budget_ns, rows, cost, rng, arrivals_ns=None, callers=0, think=None):
        cdef int i
        self.scheduler, self.cost, self.rng, self.think = scheduler, cost, rng, think
        self.native = <bt_scheduler *><size_t>scheduler._address
        self.agenda = Agenda()
        self.slots = self.idle = slots
        self.now_ns = self.called = self.settled = self.next_arrival = 0
        self.timer_ns = BT_NEVER
        self.budget_ns = -1 if budget_ns is None else budget_ns
        self.rows = rows
        self.total = len(rows)
        self.caller_of = np.full(self.total, -1, np.int64)
        self.called_ns = np.zeros(self.total, np.int64)
        self.latency_s = np.full(self.total, np.nan)
        self.batch_rows, self.batch_ns = [], []
        if arrivals_ns is None:
            for i in range(callers):
                self.agenda.plan(ns_of(think(rng), "a think time"), ARRIVAL, i)
        else:
            self.arrivals = arrivals_ns
            self._plan_arrival()

    def run(self):
        """Until every call has its outcome.

        Returns:
            (latency_s, called_ns, batch_rows, batch_ns, end_ns): by call float64 and int64, by batch
            two lists, and the time of the last outcome.
        """
        cdef Event event
        cdef int64_t end_ns = 0
        while self.settled < self.total:
            if self.agenda.count == 0 and self.timer_ns == BT_NEVER:
                raise RuntimeError(f"{self.total - self.settled} calls are left and nothing is planned")
            if self.agenda.count and self.agenda.events[0].at_ns <= self.timer_ns:
                event = self.agenda.take()
                self.now_ns = event.at_ns
                if event.kind == ARRIVAL:
                    self._arrive(event.what)
                else:
                    self._finish(event.what)
            else:
                self.now_ns = self.timer_ns
            self._decide()
            end_ns = self.now_ns
        return (
            np.asarray(self.latency_s), np.asarray(self.called_ns), self.batch_rows, self.batch_ns,
            end_ns,
        )

    cdef int _plan_arrival(self) except -1:
        if self.next_arrival < self.total:
            self.agenda.plan(self.arrivals[self.next_arrival], ARRIVAL, <uint64_t>self.next_arrival)
            self.next_arrival += 1
        return 0

    cdef int _arrive(self, uint64_t who) except -1:
        cdef int64_t call = self.called
        cdef int64_t deadline_ns = BT_NEVER
        cdef bt_admission admission
        if call >= self.total:
            return 0
        self.called += 1
        self.called_ns[call] = self.now_ns
        if self.think is None:
            self._plan_arrival()
        else:
            self.caller_of[call] = <int64_t>who
        if self.budget_ns >= 0:
            deadline_ns = self.now_ns + self.budget_ns
        admission = bt_admit(self.native, self.now_ns, self.rows[call], 0, deadline_ns, 0, <uint64_t>call)
        if admission.verdict != BT_ADMITTED:
            self._settle(call)
        return 0

    cdef int _finish(self, uint64_t batch) except -1:
        cdef size_t count, i
        cdef int64_t call
        cdef const bt_settled *entries = bt_finished(self.native, batch, self.now_ns, BT_OK, &count)
        self.idle += 1
        for i in range(count):
            if entries[i].outcome == BT_ANSWERED:
                call = <int64_t>entries[i].tag
                self.latency_s[call] = <double>(self.now_ns - self.called_ns[call]) * 1e-9
                self._settle(call)
        return 0

    cdef int _settle(self, int64_t call) except -1:
        self.settled += 1
        if self.think is not None and self.called < self.total:
            self.agenda.plan(
                self.now_ns + ns_of(self.think(self.rng), "a think time"), ARRIVAL, <uint64_t>self.caller_of[call]
            )
        return 0

    cdef int _decide(self) except -1:
        cdef bt_decision decision
        cdef bt_settled expired[EXPIRED_AT_ONCE]
        cdef size_t count, i
        while True:
            if bt_decide(self.native, self.now_ns, self.idle, self.slots, &decision) < 0:
                raise MemoryError("no memory for a batch")
            while True:
                count = bt_expired(self.native, expired, EXPIRED_AT_ONCE)
                if count == 0:
                    break
                for i in range(count):
                    self._settle(<int64_t>expired[i].tag)
            if decision.action != BT_RUN:
                self.timer_ns = decision.until_ns
                return 0
            self._run(&decision)

    cdef int _run(self, const bt_decision *decision) except -1:
        cdef int64_t took_ns = ns_of(self.cost(decision.padded_rows, self.rng), "the cost of a batch")
        self.idle -= 1
        self.batch_rows.append(decision.rows)
        self.batch_ns.append(self.now_ns)
        self.agenda.plan(self.now_ns + max(1, took_ns), FINISH, decision.batch)
        return 0
