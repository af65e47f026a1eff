"""What other native modules may use of calls.pyx, without a Python instruction."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "pythread.h":
    ctypedef void *PyThread_type_lock


cdef class NativeEngine:
    cdef public object max_latency_ms
    cdef int admit(self, Call call) except -1


cdef class Port:
    cdef object _holder
    cdef object loop
    cdef object _call_soon
    cdef object _call_soon_threadsafe
    cdef object _drain
    cdef object _resolved
    cdef list _done
    cdef bint _drain_scheduled
    cdef list _deadlines
    cdef Py_ssize_t _deadlines_limit
    cdef int64_t _armed_ns
    cdef object _timer
    cdef int wake_soon(self, Call call) except -1
    cdef int wake_now(self, Call call) except -1
    cdef int watch_deadline(self, Waiter waiter) except -1
    cdef int arm(self, int64_t deadline_ns) except -1


cdef class Waiter:
    cdef Call call
    cdef object callback
    cdef object context
    cdef bint blocking


cdef class Call:
    cdef object owner
    cdef object engine
    cdef NativeEngine native
    cdef readonly tuple args
    cdef object named
    cdef readonly bint batched
    cdef object deadline_ms
    cdef readonly uint32_t client  # 0: the process; else one of those that it calls for
    cdef readonly int64_t deadline_ns
    cdef public object data
    cdef int state
    cdef object result
    cdef object error
    cdef Port port
    cdef Waiter waiter
    cdef PyThread_type_lock lock
    # The embedded engine's own words about the call.
    cdef uint64_t id
    cdef int64_t rows
    cdef bint plain
    cdef bint one_item
    cdef list parts
    cdef int submit(self) except -1
    cdef object take_outcome(self)
    cdef int give_up(self, object error) except -1
    cdef int abandon(self) except -1


cdef int64_t monotonic_ns() noexcept nogil
cdef Port running_port()
cdef bint set_outcome(Call call, object result, object error) except -1
cdef int wake(Call call) except -1
cdef PyThread_type_lock take_lock() except NULL
cdef int give_back_lock(PyThread_type_lock lock) except -1
cdef int block(PyThread_type_lock lock, int64_t until_ns) except -1
cdef object late(Call call)
