# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Plane: the native dispatcher of plane.h, for Python to own.

What it is      starts nothing itself: `run` is the body of a thread and gives the GIL
                away for as long as it lasts; `events` is where another thread waits.
Guarantees      those of plane.h; and nothing here touches a socket from a second thread.
Not promised    that the sockets live: whoever made them closes them after `run`.
Why this shape  everything that happens once per request is C. What happens once per
                worker, per batch of this process's own calls, or per question is Python.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from posix.types cimport pid_t
from posix.unistd cimport getpid

from c_scheduler cimport (
    BT_RECENT_RELEASES, bt_get_statistics, bt_options, bt_recent_releases, bt_released, bt_scheduler,
    bt_set_options, bt_statistics,
)

from batching._native.scheduler import numbers_at, releases_at

include "libzmq.pxi"

__all__ = ["Plane"]

cdef tuple KINDS = ("", "local", "ready", "kill", "drained", "ended", "ask", "ran", "group", "lost")


@cython.final
cdef class Plane:
    """One dispatcher's native half.

    Args:
        name: the runner's.
        description: JSON for WELCOME.
        router: the bound ROUTER socket; the plane's own from `run` on.
        monitor: its monitor's PAIR socket (DISCONNECTED only), or None.
        scheduler: a `Scheduler`; driven only by the plane from here on.
        max_queue_rows: the scheduler's, for messages.
        run_timeout_ns: a worker whose batch takes longer is reported; -1: never.
        groups: whether calls of clients come as "group" events first.
        allow_pickle: whether clients may send it.
        max_message_bytes: of one message, all frames together, received or sent.
        max_unread_bytes: a client that has more of its answers unread is cut off.

    Messages are lists of frames, as docs/protocol.md has them. Thread-safe, except that
    `run` and `events` have one caller each.
    """

    cdef bt_plane *_plane
    cdef bt_event *_events  # that were heard of and not handed out yet
    cdef object _router, _monitor, _scheduler
    cdef pid_t _pid

    def __cinit__(
        self, str name, bytes description, router, monitor, scheduler, *,
        int64_t max_queue_rows=65_536, int64_t run_timeout_ns=-1, bint groups=False, bint allow_pickle=True,
        uint64_t max_message_bytes=2_147_483_648,
        uint64_t max_unread_bytes=536_870_912,
    ):
        cdef bytes encoded = name.encode()
        cdef bt_plane_options options
        options.name = encoded
        options.description = <const uint8_t *>PyBytes_AS_STRING(description)
        options.description_bytes = <unsigned int>len(description)
        options.router = <void *><size_t>router.underlying
        options.monitor = NULL if monitor is None else <void *><size_t>monitor.underlying
        options.scheduler = <bt_scheduler *><size_t>scheduler._address
        options.max_queue_rows = max_queue_rows
        options.run_timeout_ns = run_timeout_ns
        options.groups = groups
        options.refuses_pickle = not allow_pickle
        options.max_message_bytes = max_message_bytes
        options.max_unread_bytes = max_unread_bytes
        self._pid = getpid()
        self._router, self._monitor, self._scheduler = router, monitor, scheduler
        self._plane = bt_plane_new(&options)
        if self._plane is NULL:
            raise OSError(errno, "no memory or no descriptors for a dispatcher")

    def __dealloc__(self):
        # In a fork's child the thread is gone, and may have held a lock when it went.
        if self._plane is not NULL and self._pid == getpid():
            while self._events is not NULL:
                self._take_event()
            bt_plane_free(self._plane)

    def __reduce__(self):
        raise TypeError("a Plane belongs to its process and cannot be pickled")

    def run(self):
        """The plane's thread: returns after `command("end")`."""
        with nogil:
            bt_plane_run(self._plane)

    def events(self):
        """Waits for what happened: a list of (kind, text, why, number); empty after the last.

        Kinds: "local" (answers to calls of this process: number is the address of a message, which
        the caller drops), "ready" and "kill" (text: the token of a supervised worker), "ask"
        (clients want `statistics`: `reply`), "ran" (8 batches ended well, or 16, 32 and so on),
        "drained", "ended", "group" (why: a ticket and the time in ns, number: the address of a
        message, whose records from the first CALL or CANCEL on are for `grouped`; the caller drops it),
        "lost" (no outcome comes any more for the calls of this process that were made so far).

        Raises:
            MemoryError: nothing is lost by that; to be called again.
        """
        cdef bt_event *event
        cdef list events = []
        if self._events is NULL:
            with nogil:
                self._events = bt_plane_events(self._plane)
        while self._events is not NULL:
            event = self._events
            try:
                if event.kind == BT_EVENT_GROUP:
                    events.append(("group", "", (event.ticket, event.at_ns), <uintptr_t>event.message))
                else:
                    events.append((
                        KINDS[<int>event.kind], (<bytes>event.token).decode("utf-8", "replace"),
                        (<bytes>event.why).decode("utf-8", "replace"), <uintptr_t>event.message,
                    ))
            except MemoryError:
                if not events:
                    raise
                break
            event.message = NULL
            self._take_event()
        return events

    cdef void _take_event(self) noexcept:
        cdef bt_event *event = self._events
        self._events = event.next
        bt_event_free(event)

    def submit(self, uintptr_t message):
        """Calls and cancels of this process: the address of a message, which is taken over.
        False if the plane takes no more. Raises MemoryError, and then has dropped it."""
        return self._give(BT_COMMAND_LOCAL, b"", <bt_message *>message, 0)

    def grouped(self, uint64_t ticket, list frames):
        """After "group": the records, the calls with their keys, or ERROR records for them."""
        self._give(BT_COMMAND_GROUPED, b"", message_of(frames), <int64_t>ticket)

    def not_grouped(self, uint64_t ticket):
        """After "group", instead of `grouped`: its calls fail. Needs no memory."""
        bt_plane_not_grouped(self._plane, ticket)

    def reply(self, bytes numbers):
        """After "ask": `statistics` as JSON, taken after that. For all who had asked by then."""
        self._command(BT_COMMAND_REPLY, b"", [numbers])

    def no_numbers(self):
        """After "ask", instead of `reply`: the questions fail. Needs no memory."""
        bt_plane_no_numbers(self._plane)

    def worker_died(self, str token, list frames):
        """A supervised worker is gone; frames: one ERROR record that says how."""
        self._command(BT_COMMAND_DIED, token.encode(), frames)

    def fail_calls(self, list frames):
        """Every waiting and later call fails with this ERROR record; None: no more."""
        self._command(BT_COMMAND_FAILING, b"", frames)

    def drain(self):
        """Refuses new calls; "drained" comes when the last has its answer."""
        self._command(BT_COMMAND_DRAIN, b"", None)

    def dismiss_workers(self):
        """Tells every worker to leave once it has finished what it has."""
        self._command(BT_COMMAND_DISMISS, b"", None)

    def end(self, list frames):
        """Fails what is left with this ERROR record, and has `run` return; also without memory."""
        try:
            self._command(BT_COMMAND_END, b"", frames)
        except MemoryError:
            self._give(BT_COMMAND_END, b"", NULL, 0)

    def set_limits(self, int64_t max_queue_rows, int64_t run_timeout_ns):
        self._give(BT_COMMAND_QUEUE_ROWS, b"", NULL, max_queue_rows)
        self._give(BT_COMMAND_TIMEOUT, b"", NULL, run_timeout_ns)

    cdef bint _command(self, bt_command_kind kind, bytes token, list frames) except -1:
        return self._give(kind, token, NULL if frames is None else message_of(frames), 0)

    cdef bint _give(self, bt_command_kind kind, const char *token, bt_message *message, int64_t number) except -1:
        """Takes the message over. False if the plane has ended; MemoryError if it was not told."""
        cdef int refused = bt_plane_command(self._plane, kind, token, message, number)
        if refused == -2:
            raise MemoryError("no memory to tell the dispatcher")
        return refused == 0

    def describe(self, bytes description):
        """What peers that greet from now on are told."""
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(description)
        cdef uint32_t size = <uint32_t>len(description)
        cdef int failed
        with nogil:
            failed = bt_plane_describe(self._plane, data, size)
        if failed:
            raise MemoryError

    def statistics(self):
        """The scheduler's numbers, with what is counted here: messages_dropped, clients_cut_off,
        workers_ready, clients, and as `groups` the distinct keys seen. Stops the plane for no Python."""
        cdef bt_plane_counters c
        cdef bt_statistics n
        cdef bt_released releases[<int>BT_RECENT_RELEASES]
        cdef size_t count
        cdef bt_scheduler *scheduler = <bt_scheduler *><size_t>self._scheduler._address
        with nogil:
            bt_plane_lock(self._plane)
            bt_get_statistics(scheduler, &n)
            count = bt_recent_releases(scheduler, releases, BT_RECENT_RELEASES)
            bt_plane_count(self._plane, &c)
            bt_plane_unlock(self._plane)
        return {
            **numbers_at(<size_t>&n), "messages_dropped": c.dropped, "clients_cut_off": c.cut_off,
            "workers_ready": c.workers, "clients": c.clients, "groups": c.keys,
            "recent_releases": releases_at(<size_t>releases, count),
        }

    def set_options(self, **changes):
        """The scheduler's, from the next decision on. Errors: as `Scheduler.set_options`."""
        cdef bt_scheduler *scheduler = <bt_scheduler *><size_t>self._scheduler._address
        cdef bytes changed = self._scheduler._changed(changes)
        cdef bt_options *options = <bt_options *>PyBytes_AS_STRING(changed)
        cdef int failed
        with nogil:
            bt_plane_lock(self._plane)
            failed = bt_set_options(scheduler, options)
            bt_plane_unlock(self._plane)
        if failed:
            raise MemoryError("no memory for the options")
        # Let it be asked again.
        self._give(BT_COMMAND_WAKE, b"", NULL, 0)

    def close(self):
        """After `run` has returned: gives the descriptors back."""
        bt_plane_close(self._plane)

    def inspect(self):
        """(calls without an outcome, process ids of the workers), after a check of every invariant.

        Raises:
            AssertionError: with the sentence that does not hold.
        """
        cdef const char *broken
        cdef bt_plane_counters c
        cdef uint32_t pids[1024]
        cdef size_t count, i
        with nogil:
            bt_plane_lock(self._plane)
        broken = bt_plane_check(self._plane)
        bt_plane_count(self._plane, &c)
        count = min(bt_plane_workers(self._plane, pids, 1024), <size_t>1024)
        bt_plane_unlock(self._plane)
        if broken is not NULL:
            raise AssertionError(broken.decode())
        return c.calls, [pids[i] for i in range(count)]
