# What each kind of driver leaves with the engine: the threads inside a batch, the
# worker threads that sleep, and the event loops whose turns run what is due.
# Included by engine.pyx, whose fields and steps these use.

@cython.final
cdef class Inside:
    """A few threads, by their idents; one may be here several times."""

    cdef unsigned long *idents
    cdef int count
    cdef int room

    def __dealloc__(self):
        free(self.idents)

    cdef bint holds(self, unsigned long ident) noexcept:
        cdef int i
        for i in range(self.count):
            if self.idents[i] == ident:
                return True
        return False

    cdef int add(self, unsigned long ident) except -1:
        cdef unsigned long *grown
        if self.count == self.room:
            grown = <unsigned long *>realloc(self.idents, (2 * self.room + 4) * sizeof(unsigned long))
            if grown is NULL:
                raise MemoryError("no memory for a thread's ident")
            self.idents = grown
            self.room = 2 * self.room + 4
        self.idents[self.count] = ident
        self.count += 1
        return 0

    cdef int remove(self, unsigned long ident) except -1:
        cdef int i
        for i in range(self.count):
            if self.idents[i] == ident:
                self.count -= 1
                self.idents[i] = self.idents[self.count]
                return 0
        return 0


@cython.final
cdef class Sleeper:
    """A worker thread that has nothing to do."""

    cdef PyThread_type_lock lock

    def __cinit__(self):
        self.lock = take_lock()

    def __dealloc__(self):
        give_back_lock(self.lock)


@cython.final
cdef class Flusher:
    """Inline: runs what is due in the turns of one event loop.

    All calls of one turn are admitted before its flush, which is what batches them. A
    loop's timers are a millisecond coarse, so that a shorter hold is waited for turn by
    turn: the loop serves everybody else meanwhile, and it is over within SPIN_NS.
    """

    cdef Engine engine
    cdef Port port
    cdef object callback
    cdef bint scheduled
    cdef bint waiting  # in the engine's list of those to be told
    cdef object timer
    cdef int64_t timer_ns

    def __cinit__(self, Engine engine, Port port):
        self.engine = engine
        self.port = port
        self.callback = self.flush
        self.scheduled = False

    cdef int schedule(self) except -1:
        """In the loop's own thread."""
        if not self.scheduled:
            self.scheduled = True
            self.port._call_soon(self.callback)
        return 0

    cdef int schedule_from_anywhere(self) except -1:
        try:
            self.port._call_soon_threadsafe(self.callback)
        except RuntimeError:  # the loop is closed, and its callers with it
            pass
        return 0

    def flush(self):
        """One batch, if one is due; then the next turn, a timer, or nothing."""
        cdef Engine engine = self.engine
        cdef bint ran
        self.scheduled = False
        # Whom this batch answers on this loop is resumed by the drain below, in this very
        # callback, and not by one more that has to be scheduled.
        self.port._drain_scheduled = True
        ran = True  # also if it raises: the others still wait
        try:
            ran = engine._step()
        finally:
            try:
                self.port.drain()
            finally:
                self.go_on(ran)

    cdef int go_on(self, bint ran) except -1:
        cdef Engine engine = self.engine
        if engine._live == 0:
            return 0
        if ran:
            return self.schedule()
        if not engine._has_to_wait():
            return self.come_back(engine._until_ns)
        if not self.waiting:
            self.waiting = True
            engine._waiting.append(self)
        return 0

    cdef int come_back(self, int64_t until_ns) except -1:
        cdef int64_t wait_ns = until_ns - self.engine._now_ns()
        if wait_ns <= SPIN_NS:
            return self.schedule()
        if self.timer is not None:
            if self.timer_ns <= until_ns:
                return 0
            self.timer.cancel()
        self.timer_ns = until_ns
        self.timer = self.port.loop.call_later((wait_ns - SPIN_NS) * 1e-9, self.ring)
        return 0

    def ring(self):
        """The timer's callback."""
        self.timer = None
        self.flush()
