# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The embedded engine: one queue of calls around one scheduler, in this process.

What it is      `Engine` admits calls, forms batches when a slot is free, joins
                their rows, splits the results, and gives every call its outcome.
                Who calls the model is the driver's choice: worker threads
                (`next_batch`), one event loop of a worker (`take`), or the caller's
                own thread (inline: a loop's turn, or the thread inside `run`).
Guarantees      1. A call that was admitted gets one outcome, whatever the model, a
                   hook or another caller does.
                2. A batch is formed when a slot is free, never before.
                3. Idle, it waits on a lock or a timer and uses no CPU.
Not promised    order between callers.
Why this shape  The plain call (one positional ndarray, the common case) is keyed,
                joined and split here without a line of Python; everything else goes
                through `batching.signature`, which the plain case agrees with.
                bench/bench_submit_overhead.py measures both.
Threads         Everything here runs under the GIL, which is the lock of the scheduler
                too. Where Python code may run in between (waking, user hooks), the
                scheduler's memory is not held across it.
"""

cimport cython
cimport numpy as cnp
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

from batching._native.calls cimport (
    Call,
    NativeEngine,
    Port,
    PyThread_type_lock,
    block,
    give_back_lock,
    late,
    monotonic_ns,
    set_outcome,
    take_lock,
    wake,
)
from batching._native.arrays cimport copy_rows, may_share, rows_of, take_batch
from batching._native.rows cimport BufferPool, has_references
from c_scheduler cimport *

from batching._native.scheduler import Scheduler
from batching.errors import InvalidPayload, InvalidResult, Overloaded, RunnerClosed, RunnerError

cdef extern from "pythread.h":
    unsigned long PyThread_get_thread_ident()
    void PyThread_release_lock(PyThread_type_lock lock) nogil

cnp.import_array()

cdef enum:
    PLAIN_KEYS = 8          # dtype and shape pairs recognised without Python
    PLAIN_DIMENSIONS = 8
    KNOWN_KEYS_LIMIT = 4096  # keys remembered; then all are forgotten, and learned again

cdef double NS_PER_MS = 1e6
cdef int64_t SPIN_NS = 1_200_000


cdef struct PlainKey:
    PyObject *descr  # borrowed: kept alive by Engine._plain_descrs
    int dimensions
    cnp.npy_intp shape[PLAIN_DIMENSIONS]
    uint64_t group


def live_objects():
    """Calls and batches that this module's copy of the core holds now; see `_native.live_objects`."""
    return bt_live_objects()


@cython.final
@cython.freelist(16)
cdef class Batch:
    """Rows of several calls that run together."""

    cdef uint64_t id
    cdef readonly int64_t rows
    cdef readonly int64_t padded_rows
    cdef list calls
    cdef const bt_part *parts  # the scheduler's, until the batch is finished
    cdef bt_outcome *outcomes  # ours
    cdef bint plain            # one positional ndarray in every call

    def __cinit__(self):
        self.outcomes = NULL

    def __dealloc__(self):
        free(self.outcomes)


@cython.final
cdef class Engine(NativeEngine):
    """One runner's queue and scheduler, for drivers in this process.

    Args:
        signature: `batching.signature.Signature`, or None: every call runs alone, its
            arguments as they are (SimpleRunner).
        runner: a weak reference to the runner, whose `_run_batch` (or `_run`) is looked up
            for every batch: the engine does not keep it alive, its callers do.
        inline: batches run on the callers' own threads.
        clock: None for CLOCK_MONOTONIC; a function that returns ns, in tests, which
            also have to call `poke` when they change it.
    """

    cdef object _owner             # of the scheduler: a `Scheduler`
    cdef bt_scheduler *_scheduler  # driven directly
    cdef object _signature
    cdef object _runner
    cdef object _clock
    cdef str _hook             # what the model is called in errors
    cdef readonly bint inline
    cdef bint _simple
    cdef object _options
    cdef public object driver  # whoever runs the batches; kept here, used by nobody here
    # slots
    cdef int64_t _slots        # batches that may run at once
    cdef int64_t _running
    cdef bint _ready           # _setup is done
    cdef set _batches          # running
    cdef Inside _inside        # threads inside the model
    cdef int64_t _until_ns     # when to decide again; INT64_MAX: no timer
    # who is to be told of work
    cdef list _sleepers        # worker threads that have none
    cdef object _on_work
    cdef bint _told
    cdef dict _flushers        # inline: port -> Flusher
    cdef Flusher _last_flusher
    cdef list _waiting         # inline: flushers that found no free slot
    cdef list _blocked         # inline: calls whose threads wait for a free slot
    # state
    cdef bint _closing
    cdef object _failure       # what _setup raised
    cdef int64_t _live         # calls admitted and without an outcome
    # keys
    cdef dict _groups
    cdef uint64_t _next_group
    cdef PlainKey _plain[PLAIN_KEYS]
    cdef list _plain_descrs
    cdef int _plain_used
    cdef int _plain_next
    cdef BufferPool _buffers   # batch arrays that may be used again

    def __init__(self, *, signature, runner, options, inline=False, clock=None):
        self._owner = Scheduler(one_call_a_batch=signature is None, **options.for_scheduler())
        self._scheduler = <bt_scheduler *><size_t>self._owner._address
        self._signature = signature
        self._simple = signature is not None and signature.simple
        self._runner = runner
        self._hook = "_run" if signature is None else "_run_batch"
        self._clock = clock
        self.inline = inline
        self._slots = options.concurrency
        self._batches = set()
        self._inside = Inside()
        self._until_ns = INT64_MAX
        self._sleepers = []
        self._flushers = {}
        self._waiting = []
        self._blocked = []
        self._groups = {}
        self._plain_descrs = [None] * PLAIN_KEYS
        self._buffers = BufferPool()
        self.set_options(options)

    def __reduce__(self):
        raise TypeError("an engine belongs to its process and cannot be pickled")

    # ---- options ---------------------------------------------------------------

    def set_options(self, options):
        """Takes effect from the next batch on."""
        self._owner.set_options(**options.for_scheduler())
        self._options = options
        self._slots = options.concurrency
        self.max_latency_ms = options.max_latency_ms
        self._tell()

    # ---- callers -----------------------------------------------------------------

    cdef int64_t _now_ns(self) except -1:
        return monotonic_ns() if self._clock is None else self._clock()

    def submit(self, Call call):
        """Admits a call, or raises why not. In the caller's thread."""
        self.admit(call)

    cdef int admit(self, Call call) except -1:
        cdef uint64_t group
        cdef bt_admission admission
        cdef int64_t deadline_ns
        self._refuse_if_ended()
        if self._inside.holds(PyThread_get_thread_ident()):
            raise RunnerError("the runner was called from inside its own batch: it would wait for itself")
        group = self._describe(call)
        now_ns = self._now_ns()
        # Again: kinds and hooks are Python, and the engine may have ended while they ran.
        # From here to the admission nothing is.
        self._refuse_if_ended()
        deadline_ns = call.deadline_ns if call.deadline_ns >= 0 else INT64_MAX
        if self._clock is not None and call.deadline_ms is not None:
            deadline_ns = now_ns + <int64_t>(call.deadline_ms * NS_PER_MS)
            call.deadline_ns = -1  # on a clock of its own the scheduler alone watches it
        admission = bt_admit(self._scheduler, now_ns, call.rows, group, deadline_ns, call.client, <uint64_t><size_t><PyObject *>call)
        if admission.verdict != BT_ADMITTED:
            raise self._refusal(call, admission)
        call.id = admission.id
        Py_INCREF(call)  # the scheduler's tag; given back with the final outcome
        self._live += 1
        if self.inline:
            if call.port is not None:
                self._flusher(call.port).schedule()
        else:
            self._tell()
        return 0

    cdef int _refuse_if_ended(self) except -1:
        if self._closing:
            raise RunnerClosed("the runner is closed: no new calls are taken")
        if self._failure is not None:
            raise self.setup_error()
        return 0

    cpdef object cancel(self, Call call):
        """The caller gave up: its rows leave the queue at once."""
        cdef bint is_late = call.deadline_ns >= 0 and monotonic_ns() >= call.deadline_ns
        if bt_expire(self._scheduler, call.id) if is_late else bt_cancel(self._scheduler, call.id):
            self._release(call)
            if self._closing:
                self._tell()
        return None

    cdef int _release(self, Call call) except -1:
        self._live -= 1
        Py_DECREF(call)
        return 0

    cdef uint64_t _describe(self, Call call) except? 0:
        """Counts the call's rows and names its group."""
        cdef uint64_t group
        cdef object x
        call.one_item = not call.batched
        if self._signature is None:
            call.rows = 1
            return 1
        if self._simple and call.named is None and len(call.args) == 1:
            x = call.args[0]
            if type(x) is cnp.ndarray:
                group = self._plain_group(call, x)
                if group != 0:
                    return group
        described = self._signature.describe(call.args, call.kwargs, call.batched)
        call.data = described.payload
        call.rows = described.rows
        return self._group(described.key)

    cdef uint64_t _group(self, object key) except 0:
        group = self._groups.get(key)
        if group is not None:
            return group
        if len(self._groups) >= KNOWN_KEYS_LIMIT:
            self._groups.clear()
            self._plain_used = self._plain_next = 0
        self._next_group += 1
        self._groups[key] = self._next_group
        return self._next_group

    cdef uint64_t _plain_group(self, Call call, cnp.ndarray x) except? 0:
        """The group of a plain call; 0 if it is not one."""
        cdef int i
        cdef int skip = 1 if call.batched else 0
        cdef int dimensions = cnp.PyArray_NDIM(x) - skip
        cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(x) + skip
        cdef PlainKey *known
        if dimensions < 0 or dimensions > PLAIN_DIMENSIONS or has_references(x):
            return 0
        call.plain = True
        call.rows = cnp.PyArray_DIM(x, 0) if skip else 1
        for i in range(self._plain_used):
            known = &self._plain[i]
            if known.descr == <PyObject *>cnp.PyArray_DESCR(x) and known.dimensions == dimensions:
                if cnp.PyArray_CompareLists(known.shape, shape, dimensions):
                    return known.group
        return self._learn_plain(call, x, dimensions, shape)

    cdef uint64_t _learn_plain(self, Call call, cnp.ndarray x, int dimensions, cnp.npy_intp *shape) except? 0:
        cdef int i = self._plain_next
        cdef uint64_t group = self._group(self._signature.describe(call.args, {}, call.batched).key)
        self._plain_next = (i + 1) % PLAIN_KEYS
        self._plain_used = max(self._plain_used, i + 1)
        self._plain_descrs[i] = x.descr
        self._plain[i].descr = <PyObject *>cnp.PyArray_DESCR(x)
        self._plain[i].dimensions = dimensions
        self._plain[i].group = group
        for j in range(dimensions):
            self._plain[i].shape[j] = shape[j]
        return group

    cdef object _refusal(self, Call call, bt_admission admission):
        predicted_ms = None if admission.predicted_ns < 0 else admission.predicted_ns / NS_PER_MS
        limit = self._options.max_queue_rows
        if admission.verdict == BT_REFUSED_SIZE:
            return InvalidPayload(f"a call of {call.rows} rows is larger than max_queue_rows, {limit}")
        if admission.verdict == BT_REFUSED_MEMORY:
            return MemoryError("no memory for one more call")
        if admission.verdict == BT_REFUSED_LATE:
            return Overloaded(
                f"an answer is predicted in {predicted_ms:.3g} ms, after the call's {call.deadline_ms:g} ms", predicted_ms
            )
        queued = self._owner.statistics()["queued_rows"]
        return Overloaded(
            f"{queued} rows are queued, and {call.rows} more would exceed max_queue_rows, {limit}", predicted_ms
        )

    # ---- batches -----------------------------------------------------------------------

    cdef Batch _decide(self):
        """The batch to run now, or None; then `_until_ns` says when to ask again."""
        cdef bt_decision decision
        cdef Batch batch = None
        cdef size_t i
        if bt_decide(self._scheduler, self._now_ns(), self._slots - self._running, self._slots, &decision) != 0:
            raise MemoryError("no memory for a batch")
        self._until_ns = decision.until_ns
        if decision.action == BT_RUN:
            batch = Batch.__new__(Batch)
            batch.id = decision.batch
            batch.rows = decision.rows
            # An empty batch stays empty: there is no row to repeat.
            batch.padded_rows = decision.padded_rows if decision.rows else 0
            batch.parts = decision.parts
            batch.calls = []
            batch.plain = self._simple
            for i in range(decision.part_count):
                call = <Call><PyObject *><size_t>decision.parts[i].tag
                batch.calls.append(call)
                batch.plain = batch.plain and (<Call>call).plain
            batch.outcomes = <bt_outcome *>malloc((decision.part_count + 1) * sizeof(bt_outcome))
            if batch.outcomes is NULL:
                raise MemoryError("no memory for a batch")
            self._running += 1
            self._batches.add(batch)
        self._expire()
        return batch

    cdef int _expire(self) except -1:
        """Gives DeadlineExceeded to what the scheduler found too late."""
        cdef bt_settled late_calls[64]
        cdef size_t i, count
        cdef Call call
        while True:
            count = bt_expired(self._scheduler, late_calls, 64)
            if count == 0:
                return 0
            calls = []
            for i in range(count):
                call = <Call><PyObject *><size_t>late_calls[i].tag
                calls.append(call)
                self._release(call)
            for call in calls:
                if set_outcome(call, None, late(call)):
                    wake(call)

    def run(self, Batch batch):
        """Runs a batch on the model, in this thread, and settles its calls."""
        self._inside.add(PyThread_get_thread_ident())
        try:
            result = [self._invoke(batch)]
        except BaseException as error:
            self._inside.remove(PyThread_get_thread_ident())
            self.fail(batch, error)
            if self.inline and isinstance(error, KeyboardInterrupt):
                raise  # Ctrl-C, on the thread of a caller
        else:
            self._inside.remove(PyThread_get_thread_ident())
            self._complete(batch, result)
        return None

    cdef object _invoke(self, Batch batch):
        if batch.plain:
            return self._runner()._run_batch(self._join_plain(batch))
        args, kwargs = self.join(batch)
        return getattr(self._runner(), self._hook)(*args, **kwargs)

    def join(self, Batch batch):
        """The model's (args, kwargs) for a batch."""
        cdef size_t i
        cdef Call call
        if self._signature is None:
            call = batch.calls[0]
            return call.args, call.kwargs
        if batch.plain:
            return (self._join_plain(batch),), {}
        pieces = []
        for i in range(<size_t>len(batch.calls)):
            call = batch.calls[i]
            pieces.append((self._payload(call), batch.parts[i].first_row, batch.parts[i].rows))
        if batch.padded_rows > batch.rows:
            pieces.extend(self._padding(batch, pieces))
        return self._signature.join(pieces)

    cdef list _padding(self, Batch batch, list pieces):
        """The last row again, as often as it takes."""
        payload, first_row, rows = [piece for piece in pieces if piece[2] > 0][-1]
        return [(payload, first_row + rows - 1, 1)] * (batch.padded_rows - batch.rows)

    cdef object _payload(self, Call call):
        if call.data is None:
            call.data = self._signature.describe(call.args, call.kwargs, call.batched).payload
        return call.data

    cdef cnp.ndarray _join_plain(self, Batch batch):
        """The batch array: writable, contiguous, nobody else's."""
        cdef Call call
        cdef size_t i
        cdef cnp.npy_intp at = 0
        cdef Call first = batch.calls[0]
        cdef cnp.ndarray out = take_batch(self._buffers, first.args[0], first.one_item, batch.padded_rows)
        for i in range(<size_t>len(batch.calls)):
            call = batch.calls[i]
            copy_rows(out, at, call.args[0], call.one_item, batch.parts[i].first_row, batch.parts[i].rows)
            at += batch.parts[i].rows
        while 0 < at < batch.padded_rows:
            copy_rows(out, at, out, False, at - 1, 1)
            at += 1
        return out

    # ---- outcomes ----------------------------------------------------------------------

    def complete(self, Batch batch, list result not None):
        """The model returned: every call of the batch gets its own rows.

        Args:
            result: a list of what it returned, and no more; that is taken out. What nobody else
                refers to may be shared out among the calls.
        """
        self._complete(batch, result)

    cdef int _complete(self, Batch batch, list result) except -1:
        try:
            parts = self._split(batch, result)
        except BaseException as error:
            self._finish(batch, BT_INVALID, None, error)
        else:
            self._finish(batch, BT_OK, parts, None)

    def fail(self, Batch batch, error):
        """The model raised: the guilty calls get the error, the others run again."""
        self._finish(batch, BT_RAISED, None, error)

    cdef object _split(self, Batch batch, list result):
        """The only element of `result` as one part per call, each in memory of its own."""
        cdef size_t i
        cdef cnp.ndarray array
        if self._signature is None:
            return result
        if batch.plain and type(result[0]) is cnp.ndarray:
            array = result[0]
            if cnp.PyArray_NDIM(array) > 0 and cnp.PyArray_DIM(array, 0) == batch.padded_rows:
                return self._split_plain(batch, array, may_share(array, 2))  # the list's, and this
            array = None
        batch.plain = False
        counts = [batch.parts[i].rows for i in range(<size_t>len(batch.calls))]
        if batch.padded_rows > batch.rows:
            counts.append(batch.padded_rows - batch.rows)
        return self._signature.split_owned(result, counts)

    cdef list _split_plain(self, Batch batch, cnp.ndarray result, bint share):
        cdef size_t i
        cdef Call call
        cdef cnp.npy_intp at = 0
        cdef list parts = []
        for i in range(<size_t>len(batch.calls)):
            call = batch.calls[i]
            parts.append(rows_of(result, at, batch.parts[i].rows, call.one_item, share))
            at += batch.parts[i].rows
        return parts

    cdef int _finish(self, Batch batch, bt_finish how, list parts, object error, make_error=None) except -1:
        """Ends a batch; `make_error`, if given, makes each caller's error instead of `error`."""
        cdef const bt_settled *settled
        cdef size_t i, count
        cdef Call call
        settled = bt_finished(self._scheduler, batch.id, self._now_ns(), how, &count)
        for i in range(count):  # the scheduler's memory: no Python until it is read
            batch.outcomes[i] = settled[i].outcome
        batch.parts = NULL
        self._running -= 1
        self._batches.discard(batch)
        for i in range(count):
            call = batch.calls[i]
            if batch.outcomes[i] == BT_ANSWERED:
                self._release(call)
                self._answer(batch, call, parts[i])
            elif batch.outcomes[i] == BT_PART:
                self._keep_part(call, parts[i], batch.plain)
            elif batch.outcomes[i] == BT_FAILED or batch.outcomes[i] == BT_BROKEN or batch.outcomes[i] == BT_LOST:
                self._release(call)
                self._refuse(call, self._runner_error(error) if make_error is None else make_error())
        self._tell()
        return 0

    cdef int _answer(self, Batch batch, Call call, object part) except -1:
        """The call's last rows are here."""
        try:
            if call.parts is not None:
                call.parts.append(part)
                answer = self._signature.finish(self._payload(call), call.parts)
            elif self._signature is None and isinstance(part, Exception):
                return self._refuse(call, own_error(part))  # as in a row of a list
            elif batch.plain or self._signature is None:
                answer = part
            else:
                answer = self._signature.finish(self._payload(call), [part])
        except BaseException as error:
            return self._refuse(call, own_error(error))
        if set_outcome(call, answer, None):
            wake(call)
        return 0

    cdef int _keep_part(self, Call call, object part, bint plain) except -1:
        """Rows of a call that was cut. An error among them fails the call now."""
        if call.parts is None:
            call.parts = []
        call.parts.append(part)
        if plain:
            return 0
        for output in part if type(part) is tuple else (part,):
            for row in output if type(output) is list else ():
                if isinstance(row, Exception):
                    self.cancel(call)
                    return self._refuse(call, own_error(row))
        return 0

    cdef int _refuse(self, Call call, object error) except -1:
        if set_outcome(call, None, error):
            wake(call)
        return 0

    cdef object _runner_error(self, object error):
        """An error of the caller's own, with the model's as its cause."""
        if type(error) is InvalidResult:
            return InvalidResult(str(error))
        return RunnerError.from_exception(self._hook, error)

    def setup_error(self):
        """What a caller gets whose runner's `_setup` raised."""
        return RunnerError.from_exception("_setup", self._failure)

    # ---- drivers: threads ----------------------------------------------------------------

    def next_batch(self):
        """Blocks a worker thread until there is a batch for it; None: the engine is closed."""
        cdef Batch batch
        cdef Sleeper me = Sleeper.__new__(Sleeper)
        while True:
            # Before the decision, so that work that comes after it finds somebody to wake.
            self._sleepers.append(me)
            try:
                batch = self._decide() if self._running < self._slots else None
                if batch is None and not (self._closing and self._live == 0):
                    block(me.lock, -1 if self._until_ns == INT64_MAX or self._clock is not None else self._until_ns)
            finally:
                if me in self._sleepers:
                    self._sleepers.remove(me)
            if batch is not None:
                self._tell()
                return batch
            if self._closing and self._live == 0:
                self._tell()
                return None

    def ready(self):
        """`_setup` is done: batches may run."""
        self._ready = True
        self._tell()

    # ---- drivers: a worker's event loop -----------------------------------------------------

    def on_work(self, callback):
        """Calls `callback` (from any thread) when `take` should be asked again."""
        self._on_work = callback

    def take(self):
        """The next batch, or None; then `until_ns` says when to ask again."""
        self._told = False
        if self._running >= self._slots:
            return None
        return self._decide()

    @property
    def until_ns(self):
        """When to ask again at the latest, CLOCK_MONOTONIC ns; None: when told."""
        return None if self._until_ns == INT64_MAX else self._until_ns

    @property
    def slots(self):
        """Batches that may run at once."""
        return self._slots

    @property
    def _failed(self):
        """Whether `_setup` raised."""
        return self._failure is not None

    @property
    def drained(self):
        """Closed, and every call has its outcome."""
        return self._closing and self._live == 0

    def enter(self):
        """Marks this thread as the model's: calls from it are refused."""
        self._inside.add(PyThread_get_thread_ident())

    def leave(self):
        """Takes the mark of `enter` back."""
        self._inside.remove(PyThread_get_thread_ident())

    @property
    def inside(self):
        """Whether this thread is running the model."""
        return self._inside.holds(PyThread_get_thread_ident())

    cdef int _tell(self) except -1:
        """Says to whoever runs batches that there may be something to do."""
        if self._on_work is not None and not self._told:
            self._told = True
            self._on_work()
        if self.inline:
            self._tell_inline()
        elif self._sleepers:
            PyThread_release_lock((<Sleeper>self._sleepers.pop()).lock)
        return 0

    def poke(self):
        """Asks for a decision now: a clock of the test's own has moved."""
        self._tell()

    # ---- drivers: inline ------------------------------------------------------------------------

    cdef Flusher _flusher(self, Port port):
        cdef Flusher flusher = self._last_flusher
        if flusher is not None and flusher.port is port:
            return flusher
        flusher = self._flushers.get(port)
        if flusher is None:
            for other in [other for other in self._flushers if (<Port>other).loop.is_closed()]:
                del self._flushers[other]
            flusher = self._flushers[port] = Flusher(self, port)
        self._last_flusher = flusher
        return flusher

    cdef int _tell_inline(self) except -1:
        """A slot is free: wakes those who found none."""
        cdef list waiting = self._waiting, blocked = self._blocked
        if waiting:
            self._waiting = []
            for flusher in waiting:
                (<Flusher>flusher).waiting = False
                (<Flusher>flusher).schedule_from_anywhere()
        if blocked:
            self._blocked = []
            for call in blocked:
                wake(call)
        return 0

    cdef bint _step(self) except -1:
        """Runs one batch in this thread, if one is due and a slot is free."""
        cdef Batch batch
        if not self._ready or self._running >= self._slots:
            return False
        batch = self._decide()
        if batch is None:
            return False
        self.run(batch)
        return True

    cdef bint _has_to_wait(self) noexcept:
        """Whether only somebody else can say when there is something to do: `_setup` or the
        slots' batches end, and what they leave in the queue is nobody's."""
        return not self._ready or self._running >= self._slots or self._until_ns == INT64_MAX

    def assist(self, Call call):
        """Inline: runs what is due on a thread that is blocked in `run`; when to come back."""
        if not self.inline:
            return -1
        while not call.settled and self._step():
            pass
        if call.settled:
            return -1
        if self._has_to_wait():
            self._blocked.append(call)
        return -1 if self._until_ns == INT64_MAX else self._until_ns

    def drain_here(self):
        """Inline: runs what is left, in this thread; False if another thread has the slot."""
        self._told = False
        while self._live > 0 and self._step():
            pass
        return self._live == 0

    # ---- the end ----------------------------------------------------------------------------------

    def begin_close(self):
        """Refuses new calls; what was accepted is released without waiting for more."""
        self._closing = True
        self._owner.set_options(rule="greedy")
        self._tell()

    def fail_all(self, make_error):
        """Gives every call that has no outcome an error of its own."""
        cdef Batch batch
        cdef Call call
        cdef int64_t slots = self._slots
        for batch in list(self._batches):
            for call in batch.calls:
                if set_outcome(call, None, make_error()):
                    self.cancel(call)
                    wake(call)
        self._slots = INT64_MAX
        try:
            while True:
                batch = self._decide()
                if batch is None:
                    break
                self._finish(batch, BT_INVALID, None, None, make_error)
        finally:
            self._slots = slots

    def fail_setup(self, error):
        """`_setup` raised: all waiting and later calls get its error."""
        self._failure = error
        self.begin_close()
        self._closing = False
        self.fail_all(self.setup_error)

    def statistics(self):
        """The scheduler's numbers, with the `groups` seen, `workers_ready` and `recent_releases`."""
        return {
            **self._owner.statistics(),
            "groups": self._next_group,
            "workers_ready": int(self._ready),
            "recent_releases": self._owner.recent_releases(),
        }

    def check(self):
        """Checks every invariant of the scheduler; AssertionError names the one that does not hold."""
        self._owner.check()


include "drivers.pxi"


cdef object own_error(object error):
    """What `signature.finish` raised, fit to be raised in a coroutine."""
    if isinstance(error, StopIteration):
        return RunnerError.from_exception("a row", error)
    return error
