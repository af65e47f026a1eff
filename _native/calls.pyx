# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Calls: one request of one caller, and how its caller waits and is woken.

What it is      `Call` is what `async_run` returns and what a blocking `run` waits
                on; `Handle` makes calls; `settle` gives them their outcomes. An
                *engine* is any object with `submit(call)`, `cancel(call)` and
                `max_latency_ms`: the embedded engine, a service, a connection. One
                that also has `assist(call)` may work on blocked threads: it is
                called there and answers when to call it again (ns, -1: never).
Guarantees      1. A call gets one outcome; whoever comes second is ignored.
                2. `submit` happens in the caller's thread, when the call is first
                   awaited (or at once in `run`); what it raises reaches the caller.
                3. At its deadline the caller gets DeadlineExceeded from here, with
                   or without an engine that is alive.
                4. `settle` wakes each event loop once and each thread once.
Not promised    order between callers.
Why this shape  A loop's callers are resumed by one callback, each inside its own
                context, instead of one future and one scheduled callback each:
                bench/bench_submit_overhead.py prints what that saves. A Call yields a
                `Waiter` and not itself, because asyncio takes whatever has
                `_asyncio_future_blocking` for a future, and a coroutine must not
                be one.
Threads         Everything here runs under the GIL. Between the test and the change
                of a call's state no Python code runs, so that each happens once.
"""

cimport cython
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint32_t, uint64_t

import asyncio
import heapq
import os
import threading
from asyncio import CancelledError, get_running_loop
from collections.abc import Coroutine
from numbers import Real

from batching.errors import DeadlineExceeded, InvalidPayload, RunnerClosed

cdef extern from *:
    """
    #include <time.h>
    static int64_t bt_monotonic_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    /* Cython has no spelling for am_send, which spares a StopIteration per await. */
    static void bt_set_am_send(PyTypeObject *type, sendfunc send) {
        type->tp_as_async->am_send = send;
        PyType_Modified(type);
    }
    """
    int64_t bt_monotonic_ns() noexcept nogil
    ctypedef int (*sendfunc)(PyObject *, PyObject *, PyObject **) except -1
    void bt_set_am_send(PyTypeObject *type, void *send)

cdef extern from "pythread.h":
    ctypedef int PyLockStatus
    PyLockStatus PY_LOCK_INTR
    PyLockStatus PY_LOCK_ACQUIRED
    unsigned long PyThread_get_thread_ident()
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock) nogil
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long us, int interruptible) nogil
    void PyThread_release_lock(PyThread_type_lock lock) nogil

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    object PyObject_CallOneArg(object callable, object arg)
    int PyErr_CheckSignals() except -1
    PyObject *PyThreadState_GetDict()
    PyObject *PyDict_GetItem(object mapping, object key)
    int PyErr_WarnFormat(object category, Py_ssize_t level, const char *format, ...) except -1
    void PyErr_WriteUnraisable(object where)

cdef enum:
    PYGEN_RETURN = 0
    PYGEN_NEXT = 1

cdef enum:
    NEW = 0       # not submitted
    WAITING = 1   # the engine has it
    SETTLED = 2   # has its outcome, which its caller may not have taken yet

cdef int64_t NS_PER_MS = 1_000_000
# The longest single wait: what every platform's lock and loop take as a timeout.
cdef int64_t LONGEST_WAIT_NS = 3_600 * 1_000_000_000
cdef int64_t SIGNAL_CHECK_NS = 500_000_000
cdef uint64_t FIRST_BUDGET_CHECK = 8


cdef int64_t monotonic_ns() noexcept nogil:
    return bt_monotonic_ns()


# ---- locks for blocked threads ------------------------------------------------

cdef list _spare_locks = []  # PyCapsule-free: addresses as ints, each lock held


cdef PyThread_type_lock take_lock() except NULL:
    """A lock that is held, so that the next acquire waits for a release."""
    cdef PyThread_type_lock lock
    if _spare_locks:
        return <PyThread_type_lock><size_t>_spare_locks.pop()
    lock = PyThread_allocate_lock()
    if lock is NULL:
        raise MemoryError("no lock for a blocked call")
    PyThread_acquire_lock_timed(lock, 0, 0)
    return lock


cdef int give_back_lock(PyThread_type_lock lock) except -1:
    PyThread_acquire_lock_timed(lock, 0, 0)  # whether or not it was released: held again
    if len(_spare_locks) < 256:
        _spare_locks.append(<size_t>lock)
    else:
        PyThread_free_lock(lock)
    return 0


# ---- event loops ---------------------------------------------------------------

cdef str HOLDER = "__asyncio_running_event_loop__"
cdef dict _ports = {}
cdef Port _last_port = None


cdef Port running_port():
    """The port of the loop that runs in this thread; RuntimeError without one."""
    global _last_port
    cdef Port port = _last_port
    # Until Python 3.12 get_running_loop asks the kernel for the process id, every time.
    # A loop that starts or ends puts a new holder into the thread's dictionary, so that
    # the holder seen last says as much. Where there is none, the question is cheap.
    cdef PyObject *holder = PyDict_GetItem(<object>PyThreadState_GetDict(), HOLDER)
    if port is not None and holder is not NULL and port._holder is <object>holder:
        return port
    loop = get_running_loop()
    port = _ports.get(loop)
    if port is None:
        for other in [other for other in _ports if other.is_closed()]:
            del _ports[other]
        port = _ports[loop] = Port(loop)
    port._holder = None if holder is NULL else <object>holder
    _last_port = port
    return port


cdef unsigned long _main_thread = threading.main_thread().ident


def _after_fork_in_child():
    """No loop of the parent's runs here, and the thread that forked is the main one."""
    global _last_port, _main_thread
    _last_port = None
    _ports.clear()
    _main_thread = PyThread_get_thread_ident()


os.register_at_fork(after_in_child=_after_fork_in_child)


@cython.final
cdef class Port:
    """One event loop: wakes its callers, and watches their deadlines."""

    def __cinit__(self, loop):
        self.loop = loop
        self._call_soon = loop.call_soon
        self._call_soon_threadsafe = loop.call_soon_threadsafe
        self._drain = self.drain
        # A task that is woken asks the future it is handed for its result. This one
        # is always ready; the real outcome is what the task's coroutine takes next.
        self._resolved = asyncio.Future(loop=loop)
        self._resolved.set_result(None)
        self._done = []
        self._drain_scheduled = False
        self._deadlines = []
        self._deadlines_limit = 1024
        self._armed_ns = 0
        self._timer = None

    cdef int wake_soon(self, Call call) except -1:
        """Resumes the caller in a coming turn of its loop. From any thread."""
        self._done.append(call)
        if self._drain_scheduled:
            return 0
        self._drain_scheduled = True
        try:
            self._call_soon_threadsafe(self._drain)
        except RuntimeError:  # the loop is closed: nobody is left to be woken
            self._done.clear()
            self._drain_scheduled = False
        except BaseException:  # no memory: whoever is next schedules it
            self._drain_scheduled = False
            raise
        return 0

    def drain(self):
        """Resumes every caller that has its outcome. In the loop's own thread."""
        cdef list done
        cdef Py_ssize_t i = 0
        # The flag first: what is appended from now on schedules the next drain.
        self._drain_scheduled = False
        done = self._done
        self._done = []
        try:
            while i < len(done):
                i += 1
                self.wake_now(done[i - 1])
        finally:
            for call in done[i:]:  # only after a KeyboardInterrupt or SystemExit
                self.wake_soon(call)

    cdef int wake_now(self, Call call) except -1:
        """Resumes the caller inside this very callback. In the loop's own thread."""
        cdef Waiter waiter = call.waiter
        if waiter is None:
            return 0
        call.waiter = None
        waiter.call = None
        callback = waiter.callback
        if callback is None:
            return 0
        waiter.callback = None
        if waiter.context is None:
            PyObject_CallOneArg(callback, self._resolved)
            return 0
        PyContext_Enter(waiter.context)
        try:
            PyObject_CallOneArg(callback, self._resolved)
        finally:
            PyContext_Exit(waiter.context)
        return 0

    cdef int watch_deadline(self, Waiter waiter) except -1:
        # The waiter and not its call: a waiter that was woken lets go of the call, and so
        # a payload is not kept until a deadline that no longer matters.
        cdef int64_t deadline_ns = waiter.call.deadline_ns
        if len(self._deadlines) >= self._deadlines_limit:
            self._deadlines = [entry for entry in self._deadlines if (<Waiter>entry[2]).call is not None]
            heapq.heapify(self._deadlines)
            self._deadlines_limit = max(1024, 2 * len(self._deadlines))
        heapq.heappush(self._deadlines, (deadline_ns, id(waiter), waiter))
        if self._timer is None or deadline_ns < self._armed_ns:
            self.arm(deadline_ns)
        return 0

    cdef int arm(self, int64_t deadline_ns) except -1:
        if self._timer is not None:
            self._timer.cancel()
        # A loop's clock may be a millisecond coarse: never ask for less, so that a
        # timer that fires early is not asked again and again within one turn.
        delay_ns = min(max(deadline_ns - monotonic_ns(), NS_PER_MS), LONGEST_WAIT_NS)
        self._armed_ns = deadline_ns
        self._timer = self.loop.call_later(delay_ns * 1e-9, self.expire)
        return 0

    def expire(self):
        """Gives DeadlineExceeded to every call of this loop that is due."""
        cdef Call call
        cdef int64_t now_ns = monotonic_ns()
        self._timer = None
        while self._deadlines:
            call = (<Waiter>self._deadlines[0][2]).call
            if call is not None and call.state != SETTLED:
                if call.deadline_ns > now_ns:
                    self.arm(call.deadline_ns)
                    return
                if call.give_up(late(call)):
                    self.wake_soon(call)
            heapq.heappop(self._deadlines)


@cython.final
@cython.freelist(256)
cdef class Waiter:
    """What a call yields to its task: the part of a future that a task uses."""

    @property
    def _asyncio_future_blocking(self):
        return self.blocking

    @_asyncio_future_blocking.setter
    def _asyncio_future_blocking(self, value):
        self.blocking = value

    def get_loop(self):
        return self.call.port.loop if self.call is not None else get_running_loop()

    def add_done_callback(self, callback, *, context=None):
        if self.callback is not None:
            raise RuntimeError("a call has one waiter: the task that awaits it")
        self.callback = callback
        self.context = context
        if self.call is None:
            # The call was woken between the yield and now: nobody was there. A call that
            # has its outcome and was not woken yet will be: a second time must not be.
            running_port()._call_soon(callback, self, context=context)

    def remove_done_callback(self, callback):
        if self.callback is not callback and self.callback != callback:
            return 0
        self.callback = None
        return 1

    def cancel(self, msg=None):
        """Takes the call out of the queue at once; its task gets CancelledError."""
        cdef Call call = self.call
        if call is None or not call.give_up(CancelledError() if msg is None else CancelledError(msg)):
            return False
        call.port.wake_soon(call)
        return True

    def done(self):
        return self.call is None or self.call.state == SETTLED

    def cancelled(self):
        return False

    def result(self):
        """Nothing: the call itself hands the outcome to its task."""


cdef class NativeEngine:
    """An engine that calls reach without a Python call."""

    cdef int admit(self, Call call) except -1:
        raise NotImplementedError


@cython.final
@cython.freelist(256)
cdef class Call:
    """One call: a coroutine in every respect, submitted when it is first awaited.

    It can be awaited once, by one task, or passed to `asyncio.create_task`,
    `asyncio.run`, `asyncio.wait_for`, a TaskGroup. Not thread-safe: it belongs to the
    loop that awaits it. For engines: `args`, `kwargs`, `batched`, `deadline_ns` (absolute,
    CLOCK_MONOTONIC, -1 for none) and `data`, a free slot.
    """

    def __cinit__(self):
        self.state = NEW
        self.deadline_ns = -1
        self.lock = NULL

    def __dealloc__(self):
        if self.state == NEW:
            try:
                PyErr_WarnFormat(RuntimeWarning, 1, "a call was never awaited and never ran")
            except BaseException:
                PyErr_WriteUnraisable(None)

    def __reduce__(self):
        raise TypeError("a call belongs to its process and cannot be pickled")

    @property
    def kwargs(self):
        return {} if self.named is None else self.named

    @property
    def settled(self):
        return self.state == SETTLED

    @property
    def __name__(self):
        return "async_run_batch" if self.batched else "async_run"

    @property
    def __qualname__(self):
        """What asyncio calls the coroutine when it speaks of its task."""
        owner = "" if self.owner is None else f"{type(self.owner).__name__}."
        return owner + self.__name__

    def deadline_error(self):
        """A DeadlineExceeded that says the call's own budget."""
        return late(self)

    # -- the caller's side ----------------------------------------------------

    def __await__(self):
        if self.state != NEW:
            raise RuntimeError("cannot reuse already awaited coroutine")
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        cdef PyObject *result = NULL
        if call_send(<PyObject *>self, <PyObject *>value, &result) == PYGEN_NEXT:
            return take_reference(result)
        raise StopIteration(take_reference(result))

    def throw(self, typ, val=None, tb=None):
        """Gives the call up and raises; what is already running finishes for nobody."""
        error = val if isinstance(val, BaseException) else typ() if val is None and isinstance(typ, type) else typ
        if isinstance(error, type):
            error = error(val)
        if tb is not None:
            error = error.with_traceback(tb)
        self.abandon()
        raise error

    def close(self):
        self.abandon()

    cdef int abandon(self) except -1:
        if self.state == NEW:
            self.state = SETTLED
        elif self.state == WAITING:
            self.give_up(None)
        if self.waiter is not None:
            self.waiter.call = None
        self.waiter = None
        self.result = None
        self.error = None
        return 0

    cdef object take_outcome(self):
        """The result, handed over; or the error, raised."""
        error = self.error
        if error is not None:
            self.error = None
            raise error
        result = self.result
        self.result = None
        return result

    cdef int submit(self) except -1:
        """Hands the call to its engine; from here on it has exactly one outcome."""
        self.state = WAITING
        try:
            if self.deadline_ms is not None:
                self.deadline_ns = absolute_ns(self.deadline_ms)
            if self.native is not None:
                self.native.admit(self)
            else:
                self.engine.submit(self)
        except BaseException:
            self.state = SETTLED
            self.owner = None
            raise
        return 0

    cdef int give_up(self, object error) except -1:
        """The caller's own end of the call. 1 if it had no outcome before."""
        if self.state != WAITING:
            return 0
        self.state = SETTLED
        self.error = error
        self.engine.cancel(self)
        self.owner = None
        return 1


cdef object take_reference(PyObject *owned):
    """Takes over a reference that C code was given."""
    cdef object result = <object>owned
    from_c_decref(owned)
    return result


cdef extern from *:
    """
    static void bt_decref(PyObject *o) { Py_DECREF(o); }
    """
    void from_c_decref "bt_decref"(PyObject *o)


cdef int call_send(PyObject *self, PyObject *value, PyObject **out) except -1:
    """am_send: the first one submits and yields, the second takes the outcome."""
    cdef Call call = <Call>self
    cdef object result
    if call.state == NEW:
        call.port = running_port()
        call.submit()
        if call.state == WAITING:
            result = yield_waiter(call)
            if call.deadline_ns >= 0:
                call.port.watch_deadline(<Waiter>result)
            Py_INCREF(result)
            out[0] = <PyObject *>result
            return PYGEN_NEXT
    elif call.state == WAITING:
        raise RuntimeError("the call was resumed before it had its outcome")
    result = call.take_outcome()
    Py_INCREF(result)
    out[0] = <PyObject *>result
    return PYGEN_RETURN


cdef Waiter yield_waiter(Call call):
    cdef Waiter waiter = Waiter.__new__(Waiter)
    waiter.call = call
    waiter.blocking = True
    call.waiter = waiter
    return waiter


cdef int64_t absolute_ns(object deadline_ms) except -2:
    if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, Real):
        raise InvalidPayload(f"deadline_ms must be a number of milliseconds or None, got {deadline_ms!r}")
    if not 0 <= deadline_ms <= 1e12:
        raise InvalidPayload(f"deadline_ms must be between 0 and 1e12, got {deadline_ms!r}")
    return monotonic_ns() + <int64_t>(float(deadline_ms) * NS_PER_MS)


cdef object late(Call call):
    budget = "its deadline" if call.deadline_ms is None else f"{call.deadline_ms:g} ms"
    return DeadlineExceeded(f"the call had no answer within {budget}")


# ---- outcomes -------------------------------------------------------------------

cdef bint set_outcome(Call call, object result, object error) except -1:
    """True if this is the call's outcome; its caller is not woken yet."""
    if call.state != WAITING:
        return False
    call.state = SETTLED
    call.result = result
    call.error = error
    call.owner = None
    return True


cdef int wake(Call call) except -1:
    """Wakes the caller of a call that has just got its outcome. From any thread."""
    if call.lock is not NULL:
        PyThread_release_lock(call.lock)
    elif call.port is not None:
        call.port.wake_soon(call)
    return 0


def settle(outcomes):
    """Gives calls their outcomes: an iterable of (call, result, error or None).

    From any thread. Each waiting loop is woken once, each waiting thread once; calls
    that have an outcome already are passed over.
    """
    cdef Call call
    for call, result, error in outcomes:
        if set_outcome(call, result, error):
            wake(call)


# ---- blocked threads --------------------------------------------------------------

cdef object wait_blocked(Call call):
    """Blocks this thread until the call has its outcome, and takes it."""
    cdef PyThread_type_lock lock = take_lock()
    cdef int64_t until_ns
    cdef object assist = getattr(call.engine, "assist", None)
    call.lock = lock
    try:
        call.submit()
        while call.state == WAITING:
            until_ns = call.deadline_ns
            if assist is not None:
                until_ns = earlier(until_ns, assist(call))
            if call.state == WAITING:
                block(lock, until_ns)
            if call.state == WAITING and 0 <= call.deadline_ns <= monotonic_ns():
                call.give_up(late(call))
    except BaseException:
        call.give_up(None)
        raise
    finally:
        call.lock = NULL
        give_back_lock(lock)
    return call.take_outcome()


cdef int64_t earlier(int64_t a_ns, int64_t b_ns) noexcept:
    """Of two times, where -1 is never."""
    if a_ns < 0 or 0 <= b_ns < a_ns:
        return b_ns
    return a_ns


cdef int block(PyThread_type_lock lock, int64_t until_ns) except -1:
    """Waits for a release of the lock, a signal, or the time; whichever is first."""
    cdef int64_t wait_ns = LONGEST_WAIT_NS
    cdef PyLockStatus status
    if until_ns >= 0:
        wait_ns = min(max(until_ns - monotonic_ns(), 0), LONGEST_WAIT_NS)
    if PyThread_get_thread_ident() == _main_thread:
        # A signal that comes between this look and the wait interrupts nothing: the
        # thread that handles signals looks again every so often.
        PyErr_CheckSignals()
        wait_ns = min(wait_ns, SIGNAL_CHECK_NS)
    with nogil:
        status = PyThread_acquire_lock_timed(lock, (wait_ns + 999) // 1000, 1)
    if status == PY_LOCK_INTR:
        PyErr_CheckSignals()
    return 0


# ---- handles ------------------------------------------------------------------------

cdef class ItemHandle:
    """Makes single calls: `run` and `async_run`. The base of everything callable."""

    cdef object _engine
    cdef NativeEngine _native  # the engine, if it is a native one
    cdef uint64_t _budgeted    # calls with the runner's budget
    cdef bint _budget_checked
    cdef ItemHandle _parent    # of a client: the handle that makes its calls,
    cdef uint32_t _number      # and whose they are
    cdef public object _local
    """What a subclass keeps in this process: outside `__dict__`, which is the user's."""

    def _bind(self, engine):
        """Sets the engine; None takes it away."""
        self._engine = engine
        self._native = engine if isinstance(engine, NativeEngine) else None

    def _bound(self):
        return self._engine

    def _start(self):
        """Called by the first call when no engine is bound: binds one, or raises."""
        raise RunnerClosed(f"{type(self).__name__} is not started")

    def _check_budget(self):
        """Called now and then by calls that have the runner's budget; True: no more."""
        return True

    cdef Call _call(self, tuple args, dict kwargs, bint batched):
        cdef Call call
        cdef object engine = self._engine
        if engine is None:
            self._start()
            engine = self._engine
        call = Call.__new__(Call)
        call.owner = self
        call.engine = engine
        call.native = self._native
        call.args = args
        call.batched = batched
        if kwargs:
            call.deadline_ms = kwargs.pop("deadline_ms", None)
            if kwargs:
                call.named = kwargs
        if call.deadline_ms is None:
            call.deadline_ms = engine.max_latency_ms if self._native is None else self._native.max_latency_ms
            if call.deadline_ms is not None and not self._budget_checked:
                self._count_budgeted()
        return call

    cdef int _count_budgeted(self) except -1:
        """Looks at the budget at every power of two: costs have to be learned first."""
        self._budgeted += 1
        if self._budgeted >= FIRST_BUDGET_CHECK and self._budgeted & (self._budgeted - 1) == 0:
            self._budget_checked = self._check_budget()
        return 0

    def run(self, *args, **kwargs):
        """Runs one item in a batch with everybody else's, and returns its answer.

        Blocks the calling thread. See `batching.Runner` for what may be passed and
        what comes back; `deadline_ms=` replaces the runner's budget for this call.
        """
        return wait_blocked(self._call(args, kwargs, False))

    def async_run(self, *args, **kwargs):
        """`run` as a coroutine, submitted when it is first awaited."""
        return self._call(args, kwargs, False)

    def client(self, key):
        """A handle whose calls are those of a client of their own, for fairness.

        When a batch cannot take all rows that wait, clients take turns. The calls of one
        process are one client's, unless it calls for others, as an HTTP front does for its
        peers: `handle.client(peer).run(...)`. Cheap, keeps no state, and makes single calls,
        and those of many rows where this handle does. Thread- and loop-safe as the handle is.

        Args:
            key: anything that has a hash; the same key is the same client in one process.

        Raises:
            TypeError: the key has no hash.
        """
        return _client_of(ItemClient.__new__(ItemClient), self, key)


cdef class Handle(ItemHandle):
    """Makes calls of one item and of many rows: `run_batch` and `async_run_batch` too."""

    def run_batch(self, *args, **kwargs):
        """Runs k rows (one per element along axis 0) and returns their k answers, in order.

        Blocks the calling thread. The rows are joined with other callers' rows, and cut
        into several batches when they are more than `max_batch_size`.
        """
        return wait_blocked(self._call(args, kwargs, True))

    def async_run_batch(self, *args, **kwargs):
        """`run_batch` as a coroutine, submitted when it is first awaited."""
        return self._call(args, kwargs, True)

    def client(self, key):
        """A handle whose calls are those of a client of their own: see `ItemHandle.client`."""
        return _client_of(Client.__new__(Client), self, key)


@cython.final
cdef class ItemClient(ItemHandle):
    """What `client` of a handle for single calls returns."""

    cdef Call _call(self, tuple args, dict kwargs, bint batched):
        return _call_of(self, args, kwargs, batched)


@cython.final
cdef class Client(Handle):
    """What `client` of a handle returns."""

    cdef Call _call(self, tuple args, dict kwargs, bint batched):
        return _call_of(self, args, kwargs, batched)


cdef _client_of(ItemHandle client, ItemHandle handle, object key):
    # 0 is the process itself. Two keys of one number take turns as one client.
    client._number = <uint32_t>(hash(key) & 0xFFFFFFFF) or 1
    client._parent = handle
    return client


cdef Call _call_of(ItemHandle client, tuple args, dict kwargs, bint batched):
    cdef Call call = client._parent._call(args, kwargs, batched)
    call.client = client._number
    return call


bt_set_am_send(<PyTypeObject *>Call, <void *>call_send)
Coroutine.register(Call)
