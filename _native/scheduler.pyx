# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Scheduler: the C state machine of scheduler.h, for Python to hold.

What it is      one object that is told of calls, slots, results and the time, and
                says which calls run together, when, and what became of each. The
                simulator and the tests drive it; the engines use the C functions.
Guarantees      those of scheduler.h, word for word.
Not promised    thread safety: one thread at a time, whoever owns it brings the lock.
Why this shape  Results are named tuples of ints and strings: they are compared with
                those of the twin in tests/reference_scheduler.py as they are.
Units           times are nanoseconds of any clock that never goes back; sizes are rows.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from c_scheduler cimport (
    BT_BATCH_ROWS_BUCKETS, BT_MAX_ALLOWED_SIZES, BT_NEVER, BT_RECENT_RELEASES, BT_RELEASE_COUNT,
    BT_RELEASE_RUNNING, BT_RUN, bt_admission, bt_admit, bt_cancel, bt_check, bt_decide, bt_decision, bt_expired,
    bt_refused,
    bt_finish, bt_finished, bt_get_statistics, bt_live_objects, bt_objective, bt_options, bt_part,
    bt_recent_releases, bt_released, bt_rule, bt_scheduler, bt_scheduler_free, bt_scheduler_new, bt_set_options,
    bt_settled, bt_statistics,
)

from collections import namedtuple as _namedtuple

# In the order of the enums of scheduler.h and policy.h.
cdef tuple VERDICTS = ("admitted", "refused_queue", "refused_late", "refused_size", "refused_memory")
cdef tuple ACTIONS = ("idle", "wait", "run")
cdef tuple REASONS = ("full", "worker_free", "everyone_here", "hold_expired", "budget", "cap", "rerun")
cdef tuple OUTCOMES = ("part", "answered", "rerun", "failed", "lost", "broken", "gone", "expired")
cdef tuple FINISHES = ("ok", "raised", "died", "invalid", "unrun", "unsent")
cdef tuple RULES = ("learned", "greedy", "fixed")
cdef tuple OBJECTIVES = ("latency", "throughput")

cdef dict DEFAULTS = {
    "max_batch_rows": 128,
    "max_queue_rows": 65_536,
    "isolate_errors": True,
    "one_call_a_batch": False,
    "rule": "learned",
    "objective": "latency",
    "max_wait_ns": None,
    "fixed_wait_ns": 0,
    "fixed_rows": None,
    "allowed_rows": (),
}

Admission = _namedtuple("Admission", "verdict id predicted_ns", module=__name__)
Decision = _namedtuple("Decision", "action until_ns batch group rows padded_rows reason parts", module=__name__)
Release = _namedtuple(
    "Release",
    "number released_ns reason calls rows padded_rows idle_slots held_ns predicted_ns took_ns how",
    module=__name__,
)
Settled = _namedtuple("Settled", "id tag first_row rows batch_offset outcome", module=__name__)

# namedtuple's own constructor is a Python function; the simulator makes millions of these.
cdef object new_tuple = tuple.__new__


def live_objects():
    """Schedulers, calls and batches that this module holds now; 0 unless built with debug_counters."""
    return bt_live_objects()


cdef object at_least(dict options, str name, int64_t least):
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least or value > BT_NEVER:
        raise ValueError(f"{name} must be at least {least} and fit 64 bits, got {value}")
    return value


cdef int choice(dict options, str name, tuple choices) except -1:
    value = options[name]
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return choices.index(value)


cdef int read_options(dict options, bt_options *out) except -1:
    memset(out, 0, sizeof(bt_options))
    out.max_batch_rows = out.policy.max_batch_rows = at_least(options, "max_batch_rows", 1)
    out.max_queue_rows = at_least(options, "max_queue_rows", 1)
    out.isolate_errors = bool(options["isolate_errors"])
    out.one_call_a_batch = bool(options["one_call_a_batch"])
    out.policy.rule = <bt_rule>choice(options, "rule", RULES)
    out.policy.objective = <bt_objective>choice(options, "objective", OBJECTIVES)
    out.policy.max_wait_ns = -1 if options["max_wait_ns"] is None else at_least(options, "max_wait_ns", 0)
    out.policy.fixed_wait_ns = at_least(options, "fixed_wait_ns", 0)
    out.policy.fixed_rows = out.max_batch_rows
    if options["fixed_rows"] is not None:
        out.policy.fixed_rows = at_least(options, "fixed_rows", 1)
    sizes = tuple(options["allowed_rows"])
    if len(sizes) > BT_MAX_ALLOWED_SIZES:
        raise ValueError(f"allowed_rows must name at most {BT_MAX_ALLOWED_SIZES} sizes, got {len(sizes)}")
    if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != options["max_batch_rows"]):
        raise ValueError(f"allowed_rows must ascend from at least 1 to max_batch_rows, got {sizes}")
    for i, size in enumerate(sizes):
        out.policy.allowed_rows[i] = size
    out.policy.allowed_count = len(sizes)
    return 0


cdef object time_or_none(int64_t ns):
    return None if ns == BT_NEVER else ns


cdef object settled_entry(const bt_settled *entry):
    return new_tuple(Settled, (
        entry.id, entry.tag, entry.first_row, entry.rows, entry.batch_offset, OUTCOMES[<int>entry.outcome]
    ))


def numbers_at(size_t address):
    """The bt_statistics that is there, as a dict of its names; `released` by reason."""
    cdef bt_statistics n = (<bt_statistics *>address)[0]
    return {
        "queued_calls": n.queued_calls,
        "queued_rows": n.queued_rows,
        "in_flight_batches": n.in_flight_batches,
        "calls": n.calls,
        "answered": n.answered,
        "failed": n.failed,
        "refused": n.refused,
        "expired": n.expired,
        "cancelled": n.cancelled,
        "batches": n.batches,
        "batch_rows": [n.batch_rows[i] for i in range(<int>BT_BATCH_ROWS_BUCKETS)],
        "released": {REASONS[i]: n.released[i] for i in range(<int>BT_RELEASE_COUNT)},
        "predicted_ns": {REASONS[i]: n.predicted_ns[i] for i in range(<int>BT_RELEASE_COUNT)},
        "actual_ns": {REASONS[i]: n.actual_ns[i] for i in range(<int>BT_RELEASE_COUNT)},
        "groups": n.groups,
        "policy": n.policy,
    }


def releases_at(size_t address, size_t count):
    """The bt_released that are there, as `Release`s."""
    cdef const bt_released *entry
    cdef size_t i
    cdef list all = []
    for i in range(count):
        entry = &(<bt_released *>address)[i]
        all.append(new_tuple(Release, (
            entry.number, entry.released_ns, REASONS[<int>entry.reason], entry.calls, entry.rows,
            entry.padded_rows, entry.idle_slots, entry.held_ns,
            entry.predicted_ns if entry.predicted_ns > 0 else None,
            entry.took_ns if entry.took_ns >= 0 else None,
            "running" if entry.how == BT_RELEASE_RUNNING else FINISHES[entry.how],
        )))
    return all


@cython.final
cdef class Scheduler:
    """The state machine; scheduler.h says what a driver must do and when.

    Args:
        max_batch_rows, max_queue_rows, isolate_errors, objective, max_wait_ns, allowed_rows: as in
            `BatchOptions`, in rows and ns.
        one_call_a_batch: never join calls, and never cut one.
        rule: "learned", or "greedy" or "fixed" to compare with.
        fixed_wait_ns, fixed_rows: for "fixed": release at so many rows (None: a full batch), or so
            long after the oldest call.

    Raises:
        TypeError: an unknown name, or a value of the wrong type.
        ValueError: a value out of range; any method after `close`.
    """

    cdef bt_scheduler *_scheduler
    cdef dict _options

    def __cinit__(self, **options):
        cdef bt_options native
        self._options = self._merged(dict(DEFAULTS), options)
        read_options(self._options, &native)
        self._scheduler = bt_scheduler_new(&native)
        if self._scheduler is NULL:
            raise MemoryError("no memory for a scheduler")

    def __dealloc__(self):
        bt_scheduler_free(self._scheduler)

    def __reduce__(self):
        raise TypeError("a Scheduler cannot be pickled or copied")

    cdef dict _merged(self, dict options, dict changes):
        for name in changes:
            if name not in options:
                raise TypeError(f"unknown option {name!r}")
        return {**options, **changes}

    cdef bt_scheduler *_open(self) except NULL:
        if self._scheduler is NULL:
            raise ValueError("the scheduler is closed")
        return self._scheduler

    @property
    def _address(self):
        """Where the C object is, for the native data plane, which drives it directly."""
        return <size_t>self._open()

    def close(self):
        """Frees everything; calls that are still live get no verdict. Twice does nothing."""
        bt_scheduler_free(self._scheduler)
        self._scheduler = NULL

    def set_options(self, **changes):
        """Changes the named options from the next decision on. Errors: as in the constructor."""
        cdef bytes native = self._changed(changes)
        if bt_set_options(self._open(), <bt_options *><char *>native):
            raise MemoryError("no memory for the options")

    def _changed(self, dict changes):
        """The bt_options with these changes, for whoever drives the C object and gives it them."""
        cdef bt_options native
        options = self._merged(self._options, changes)
        read_options(options, &native)
        self._options = options
        return (<char *>&native)[:sizeof(native)]

    def admit(self, int64_t now_ns, int64_t rows, uint64_t group=0, deadline_ns=None, uint64_t client=0,
              uint64_t tag=0):
        """Takes a call of `rows` rows in, or refuses it: see `Admission.verdict`."""
        if rows < 0:
            raise ValueError(f"rows must be at least 0, got {rows}")
        cdef int64_t deadline = BT_NEVER if deadline_ns is None else deadline_ns
        cdef bt_admission a = bt_admit(self._open(), now_ns, rows, group, deadline, client, tag)
        predicted = None if a.predicted_ns < 0 else a.predicted_ns
        return new_tuple(Admission, (VERDICTS[<int>a.verdict], a.id, predicted))

    def count_refused(self, int64_t calls):
        """Counts calls that were refused, for want of room, before they came here."""
        bt_refused(self._open(), calls)

    def cancel(self, uint64_t id):
        """Takes a call out: True if it was live, False if it has had its verdict."""
        return bool(bt_cancel(self._open(), id))

    def decide(self, int64_t now_ns, int64_t idle_slots=1, int64_t total_slots=1):
        """What to do now; expires what is due first."""
        cdef bt_decision d
        cdef size_t i
        cdef const bt_part *part
        if bt_decide(self._open(), now_ns, idle_slots, total_slots, &d):
            raise MemoryError("no memory for a batch; ask again")
        until = time_or_none(d.until_ns)
        if d.action != BT_RUN:
            return new_tuple(Decision, (ACTIONS[<int>d.action], until, 0, 0, 0, 0, None, []))
        cdef list parts = []
        for i in range(d.part_count):
            part = &d.parts[i]
            parts.append((part.id, part.tag, part.first_row, part.rows))
        return new_tuple(Decision, (
            "run", until, d.batch, d.group, d.rows, d.padded_rows, REASONS[<int>d.reason], parts
        ))

    def expired(self):
        """The calls that expired since this was last asked."""
        cdef bt_scheduler *s = self._open()
        cdef bt_settled entries[64]
        cdef size_t count, i
        cdef list all = []
        while True:
            count = bt_expired(s, entries, 64)
            if count == 0:
                return all
            for i in range(count):
                all.append(settled_entry(&entries[i]))

    def finished(self, uint64_t batch, int64_t now_ns, str how="ok"):
        """Ends a batch: one entry per part, in their order.

        Raises:
            ValueError: `how` is none of ok, raised, died, invalid, unrun, unsent.
            KeyError: no batch of this id is running.
        """
        cdef size_t count, i
        cdef const bt_settled *entries
        if how not in FINISHES:
            raise ValueError(f"how must be one of {', '.join(FINISHES)}, got {how!r}")
        entries = bt_finished(self._open(), batch, now_ns, <bt_finish><int>FINISHES.index(how), &count)
        if entries is NULL:
            raise KeyError(f"no batch {batch} is running")
        return [settled_entry(&entries[i]) for i in range(count)]

    def statistics(self):
        """Exact counts, by the names of bt_statistics; `released` by reason."""
        cdef bt_statistics n
        bt_get_statistics(self._open(), &n)
        return numbers_at(<size_t>&n)

    def recent_releases(self):
        """The last releases, oldest first, 256 at most: see `Release`."""
        cdef bt_released entries[<int>BT_RECENT_RELEASES]
        cdef size_t count = bt_recent_releases(self._open(), entries, BT_RECENT_RELEASES)
        return releases_at(<size_t>entries, count)

    def check(self):
        """Walks everything; raises AssertionError with the first invariant that does not hold."""
        cdef const char *broken = bt_check(self._open())
        if broken is not NULL:
            raise AssertionError(broken.decode())
