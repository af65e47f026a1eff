# cython: language_level=3, auto_pickle=False, autotestdict=False
"""LinkSocket: moves messages over a DEALER socket, for a caller's and a worker's end.

Guarantees      1. several threads may send while one waits and receives;
                2. `lost` is set as soon as the peer is gone.
Not promised    that what was sent arrives.
Why this shape  a lock of its own guards the socket, because libzmq's are not thread-safe. Messages
                pass between the modules here by their address: whoever has one owns it.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uintptr_t

include "libzmq.pxi"

__all__ = ["LinkSocket", "drop", "frames_of", "new_message"]

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *m, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *m)
    int pthread_mutex_unlock(pthread_mutex_t *m)
    int pthread_mutex_destroy(pthread_mutex_t *m)


# Of a sleep at the three descriptors.
cdef enum:
    MONITOR = 2
    WAKE = 4


@cython.final
cdef class LinkSocket:
    """A DEALER socket that several threads send to and one waits at.

    Args:
        socket: connected; not to be used otherwise any more.
        monitor: its monitor (DISCONNECTED only).
    """

    cdef object _socket, _monitor
    cdef void *raw
    cdef void *raw_monitor
    cdef pthread_mutex_t lock
    cdef bt_wake wake
    cdef int fds[3]
    cdef bt_inbox inbox
    cdef bint closed
    cdef bint widened
    cdef bint somebody_waits
    cdef bint watched  # by a loop: somebody waits always
    cdef bint monitor_seen  # the monitor tells only those who have seen that there was nothing
    cdef readonly bint lost
    """Whether the connection ended."""

    def __cinit__(self, socket, monitor):
        self._socket, self._monitor = socket, monitor
        self.raw = <void *><size_t>socket.underlying
        self.raw_monitor = <void *><size_t>monitor.underlying
        pthread_mutex_init(&self.lock, NULL)
        if bt_wake_open(&self.wake) != 0:
            raise OSError(errno, "no descriptor for a connection")
        self.fds = [bt_zmq_descriptor(self.raw), bt_zmq_descriptor(self.raw_monitor), self.wake.reader]

    def __dealloc__(self):
        bt_inbox_free(&self.inbox)
        if not self.closed:
            bt_wake_close(&self.wake)
        pthread_mutex_destroy(&self.lock)

    def __reduce__(self):
        raise TypeError("a LinkSocket belongs to its process and cannot be pickled")

    def send(self, uintptr_t address):
        """Takes a message over and sends it. Never waits: a DEALER without a high-water mark
        takes everything. One that is closed drops it."""
        cdef bt_message *message = <bt_message *>address
        cdef bint more = False
        cdef int error = 0
        pthread_mutex_lock(&self.lock)
        if not self.closed:
            error = bt_message_send(message, self.raw, NULL, 0)
            # Sending handles libzmq's own signals too: a waiter may have lost its own. Who comes to wait
            # looks first.
            more = self.somebody_waits and (bt_zmq_events(self.raw) & BT_ZMQ_POLLIN) != 0
        if (more or error) and not self.closed:
            bt_wake_signal(&self.wake)
        pthread_mutex_unlock(&self.lock)
        bt_message_drop(message)
        if error:
            self.lost = True

    def descriptors(self):
        """What becomes readable when `receive` should be called, until there is nothing; for an event loop."""
        pthread_mutex_lock(&self.lock)
        self.watched = self.somebody_waits = True
        if not self.closed and bt_zmq_events(self.raw) & BT_ZMQ_POLLIN:
            bt_wake_signal(&self.wake)
        pthread_mutex_unlock(&self.lock)
        return [self.fds[0], self.fds[1], self.fds[2]]

    def interrupt(self):
        """Has `receive` return."""
        pthread_mutex_lock(&self.lock)
        if not self.closed:
            bt_wake_signal(&self.wake)
        pthread_mutex_unlock(&self.lock)

    def receive(self, int64_t until_ns, uint32_t most=0xFFFFFFFF):
        """Waits for messages until the time (CLOCK_MONOTONIC; -1: for ever), an interrupt or the
        connection's end. A list of addresses, at most so many unless the connection ended; whoever gets
        them calls `drop` on each."""
        cdef list messages = []
        cdef unsigned int readable = 0 if self.monitor_seen else MONITOR
        cdef bint again = True
        if until_ns < 0:
            until_ns = 0x7FFFFFFFFFFFFFFF
        while True:
            pthread_mutex_lock(&self.lock)
            try:
                self.take(messages, most)
                if not messages and readable & MONITOR and not self.closed:
                    self.look_for_the_end(messages)
                again = again and not messages and not self.lost and not self.closed
                self.somebody_waits = again or self.watched
            finally:
                pthread_mutex_unlock(&self.lock)
            if not again:
                return messages
            with nogil:
                readable = bt_sleep(self.fds, 3, until_ns)
                if readable & WAKE:
                    bt_wake_clear(&self.wake)
            again = False

    cdef int look_for_the_end(self, list messages) except -1:
        cdef int received = bt_inbox_receive(&self.inbox, self.raw_monitor)
        if received > 0:
            self.lost = True
            self.take(messages, 0xFFFFFFFF)  # what came just before the end counts
        self.monitor_seen = received == 0
        return 0

    cdef int take(self, list messages, uint32_t most) except -1:
        """Adds what is here, under the lock. Without memory for a message the connection is as good as
        lost: nobody could say whose outcome was in it."""
        cdef bt_message *message
        cdef int received
        while not self.closed and <uint32_t>len(messages) < most:
            received = bt_inbox_receive(&self.inbox, self.raw)
            if received <= 0:
                return 0
            if not self.widened:
                self.widened = True
                bt_zmq_widen(bt_zmq.msg_get(&self.inbox.zmsg[0], BT_ZMQ_SOURCE_FD))
            message = bt_message_new(self.inbox.zmsg, self.inbox.count) if received == 1 else NULL
            if message is NULL:
                self.lost = True
                return 0
            try:
                messages.append(<uintptr_t>message)
            except MemoryError:
                bt_message_drop(message)
                self.lost = True
                return 0
        return 0

    def close(self):
        """By the thread that waits here. What libzmq still has is sent for as long as the socket lingers."""
        pthread_mutex_lock(&self.lock)
        if not self.closed:
            self.closed = True
            bt_wake_close(&self.wake)
        pthread_mutex_unlock(&self.lock)
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()


def drop(uintptr_t address):
    """Lets go of a message that `receive` returned."""
    bt_message_drop(<bt_message *>address)


def frames_of(uintptr_t address):
    """A message's frames, as bytes."""
    cdef bt_message *message = <bt_message *>address
    return [
        PyBytes_FromStringAndSize(<const char *>message.frame[i].data, message.frame[i].bytes)
        for i in range(message.frames)
    ]


def new_message(frames):
    """The address of a message of these frames, copied; whoever gets it passes it on or drops it."""
    return <uintptr_t>message_of(frames)
