# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Links: the caller's and the worker's ends of a connection, without a Python call per request.

What it is      `Pipe` writes calls into packets and finds the call that an answer
                belongs to; `PipeEngine` is the engine of handles whose calls go
                through a pipe; `LinkSocket` moves packets over a DEALER socket.
Guarantees      1. a call that was admitted has one outcome, at the latest from `fail_all`;
                2. calls made in one turn of a loop leave as one packet, and the
                   answers in one message wake each loop once;
                3. what a server sends is checked before it is used, and dropped if broken.
Not promised    that a call that failed did not run.
Why this shape  a call of one C-contiguous ndarray is written straight into the packet,
                its key looked up by dtype and shape; any other is described and encoded by
                its signature. The same pipe serves a socket and the dispatcher of this
                very process.
Threads         a Pipe is guarded by the GIL: between the first and the last byte of a record no
                Python code runs. A LinkSocket is guarded by a lock of its own, because libzmq
                sockets are not thread-safe: callers send, one thread waits and receives.
"""

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from batching._native.calls cimport Call, NativeEngine, Port, late, monotonic_ns, set_outcome, wake
from c_plane cimport *
from c_wire cimport *

import numpy as np
import zmq
import zmq.backend.cython._zmq as _zmq

from batching._native.calls import settle
from batching.errors import InvalidPayload, RunnerError

__all__ = [
    "LinkSocket", "Pipe", "PipeEngine", "drop", "frames_of", "new_message", "new_result", "read_batches",
]

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_Scalar(void *data, cnp.PyArray_Descr *descr, object base)
    bint PyDataType_REFCHK(cnp.PyArray_Descr *descr) nogil

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdatomic.h>
    #include <stdlib.h>

    /* Memory of Python objects that libzmq sends from. libzmq says in a thread of its
     * own that it needs one no longer; the reference is dropped later, under the GIL. */
    typedef struct bt_loan { struct bt_loan *next; void *object; } bt_loan;
    static _Atomic(bt_loan *) bt_returned;

    static void bt_return_loan(void *data, void *hint) {
        bt_loan *loan = hint;
        (void)data;
        loan->next = atomic_load(&bt_returned);
        while (!atomic_compare_exchange_weak(&bt_returned, &loan->next, loan)) {}
    }
    static bt_loan *bt_take_returned(void) {
        return atomic_load(&bt_returned) == NULL ? NULL : atomic_exchange(&bt_returned, NULL);
    }
    """
    ctypedef struct bt_loan:
        bt_loan *next
        void *object
    void bt_return_loan(void *data, void *hint) noexcept nogil
    bt_loan *bt_take_returned() nogil
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *m, void *attributes) nogil
    int pthread_mutex_lock(pthread_mutex_t *m) nogil
    int pthread_mutex_unlock(pthread_mutex_t *m) nogil
    int pthread_mutex_destroy(pthread_mutex_t *m) nogil


cdef load_libzmq():
    cdef bytes path = _zmq.__file__.encode()
    cdef const char *missing = bt_zmq_load(path)
    if missing is not NULL:
        raise ImportError(
            f"pyzmq {zmq.__version__} (libzmq {zmq.zmq_version()}) has no usable symbols for the native "
            f"data plane: {missing.decode()}; the plain one works"
        )


load_libzmq()


cdef int drop_returned() except -1:
    cdef bt_loan *loan = bt_take_returned()
    cdef bt_loan *following
    while loan is not NULL:
        following = loan.next
        Py_DECREF(<object>loan.object)
        free(loan)
        loan = following
    return 0


cdef int lend(bt_outgoing *out, object owner, void *data, size_t size) except -1:
    """Adds the memory as a frame; its owner lives until libzmq has sent it."""
    cdef bt_loan *loan = <bt_loan *>malloc(sizeof(bt_loan))
    if loan is NULL:
        raise MemoryError
    loan.object = <void *>owner
    Py_INCREF(owner)
    if bt_outgoing_add(out, data, size, bt_return_loan, loan) != 0:
        Py_DECREF(owner)
        free(loan)
        raise MemoryError
    return 0


# ---- what is known of keys --------------------------------------------------------

@cython.final
@cython.internal
cdef class ArrayKey:
    """The key of calls, or answers, that are one ndarray of this dtype and row shape."""

    cdef bytes key
    cdef int type_num
    cdef int row_ndim
    cdef cnp.npy_intp row_shape[32]
    cdef size_t row_bytes
    cdef object dtype

    cdef bint is_of(self, cnp.ndarray array, int first) noexcept:
        """Whether the array's rows (axes from `first` on) are of this kind."""
        cdef int axis
        if cnp.PyArray_TYPE(array) != self.type_num or cnp.PyArray_NDIM(array) != self.row_ndim + first:
            return False
        for axis in range(self.row_ndim):
            if cnp.PyArray_DIM(array, axis + first) != self.row_shape[axis]:
                return False
        return True


cdef bint is_plain(cnp.ndarray array) noexcept:
    """Whether the bytes in memory, and type and shape, are all there is to know."""
    cdef int type_num = cnp.PyArray_TYPE(array)
    return (
        (type_num <= cnp.NPY_CLONGDOUBLE or type_num == cnp.NPY_FLOAT16)
        and not PyDataType_REFCHK(cnp.PyArray_DESCR(array))
        and cnp.PyArray_IS_C_CONTIGUOUS(array)
        and cnp.PyArray_ISNOTSWAPPED(array)
    )


cdef ArrayKey new_array_key(bytes key, cnp.ndarray array, int first):
    cdef ArrayKey made = ArrayKey.__new__(ArrayKey)
    cdef int axis
    made.key = key
    made.type_num = cnp.PyArray_TYPE(array)
    made.dtype = array.dtype
    made.row_ndim = cnp.PyArray_NDIM(array) - first
    made.row_bytes = cnp.PyArray_ITEMSIZE(array)
    for axis in range(made.row_ndim):
        made.row_shape[axis] = cnp.PyArray_DIM(array, axis + first)
        made.row_bytes *= <size_t>made.row_shape[axis]
    return made


# The place of what is no call; places of calls are far below it.
cdef uint32_t QUESTION = 0xFFFFFFFF


# ---- calls in, outcomes out ----------------------------------------------------------

cdef class Pipe:
    """The calls of one connection.

    Args:
        send: called with the address of each message that is to leave; takes it over.
            Returns nothing. Until `open`, nothing is sent.
        wanted: called when a call was admitted while the pipe is shut.
        error_of: makes an exception of (code, exit code, number, four texts).
    """

    cdef object send, wanted, error_of
    cdef bt_outgoing out
    cdef list calls
    cdef uint32_t *generations
    cdef uint32_t *spare
    cdef uint32_t spares, places
    cdef bint is_open
    cdef Port scheduled
    cdef object flush_later
    cdef readonly uint64_t dropped
    """Messages that broke a rule."""

    def __cinit__(self, send, wanted, error_of):
        self.send, self.wanted, self.error_of = send, wanted, error_of
        self.calls = []
        self.flush_later = self._flush_scheduled
        bt_outgoing_start(&self.out)

    def __dealloc__(self):
        bt_outgoing_free(&self.out)
        PyMem_Free(self.generations)
        PyMem_Free(self.spare)

    def __reduce__(self):
        raise TypeError("a Pipe belongs to its process and cannot be pickled")

    def __len__(self):
        """Calls without an outcome."""
        return self.places - self.spares

    # -- places ------------------------------------------------------------------

    cdef int grow(self) except -1:
        cdef uint32_t places = 2 * self.places if self.places else 64
        cdef uint32_t *generations = <uint32_t *>PyMem_Realloc(self.generations, places * sizeof(uint32_t))
        if generations is NULL:
            raise MemoryError
        self.generations = generations
        cdef uint32_t *spare = <uint32_t *>PyMem_Realloc(self.spare, places * sizeof(uint32_t))
        if spare is NULL:
            raise MemoryError
        self.spare = spare
        self.calls += [None] * (places - self.places)
        cdef uint32_t place
        for place in range(self.places, places):
            generations[place] = 1
            spare[self.spares] = place
            self.spares += 1
        self.places = places
        return 0

    cdef uint64_t take_place(self, Call call) except 0:
        """The id of the call on the wire: place and generation, never 0."""
        if self.spares == 0:
            self.grow()
        self.spares -= 1
        cdef uint32_t place = self.spare[self.spares]
        self.calls[place] = call
        call.id = <uint64_t>self.generations[place] << 32 | place
        return call.id

    cdef Call free_place(self, uint64_t id_):
        """The call of this id, which is forgotten; None for one that is gone."""
        cdef uint32_t place = <uint32_t>id_
        if place >= self.places or self.generations[place] != <uint32_t>(id_ >> 32):
            return None
        cdef Call call = <Call>self.calls[place]
        if call is None:
            return None
        self.calls[place] = None
        self.generations[place] += 1
        if self.generations[place] == 0:
            self.generations[place] = 1
        self.spare[self.spares] = place
        self.spares += 1
        return call

    # -- out ------------------------------------------------------------------------

    cdef int admitted(self, Call call) except -1:
        """A record was written for the call: it leaves at the end of the loop's turn, or now."""
        if not self.is_open:
            # Last of all: a connection that fails from here on fails this call too.
            try:
                self.wanted()
            except BaseException:
                self.free_place(call.id)
                raise
        elif call.port is None or self.out.w.bytes >= 1 << 20:
            self.flush_now()
        elif self.scheduled is not call.port:
            self.scheduled = call.port
            call.port._call_soon(self.flush_later)
        return 0

    cdef int flush_now(self) except -1:
        cdef bt_message *message
        if not self.is_open or (self.out.w.records == 0 and not self.out.w.failed):
            return 0
        message = bt_outgoing_take(&self.out)
        if message is NULL:
            # Nobody knows which of the calls was in it: none may wait for ever.
            self.fail_all(_no_memory)
            self.is_open = True
            return 0
        self.send(<uintptr_t>message)
        return 0

    def _flush_scheduled(self):
        self.scheduled = None
        self.flush_now()

    def flush(self):
        """Sends what was written, not at the end of the loop's turn but now."""
        self.flush_now()

    def open(self):
        """From now on packets are sent."""
        self.is_open = True
        self.flush_now()

    def fail_all(self, make_error):
        """Shuts the pipe: what was not sent is dropped, every call gets `make_error()`."""
        cdef Call call
        cdef uint32_t place
        self.is_open = False
        bt_outgoing_start(&self.out)
        outcomes = []
        for place in range(self.places):
            call = <Call>self.calls[place]
            if call is not None:
                self.free_place(call.id)
                outcomes.append((call, None, make_error()))
        settle(outcomes)

    cdef int cancel_call(self, Call call) except -1:
        if self.free_place(call.id) is None:
            return 0
        bt_write_empty(&self.out.w, BT_CANCEL, call.id)
        if self.is_open:
            self.admitted(call)
        return 0

    # -- in ---------------------------------------------------------------------------

    def receive(self, uintptr_t address):
        """Takes a message's records to their calls; returns those that are not about a
        call, as (type, id, text) tuples. Does not take the message over."""
        cdef bt_message *message = <bt_message *>address
        cdef bt_packet packet
        cdef bt_record record
        cdef bt_body body
        cdef Call call
        cdef int step
        cdef list others = []
        cdef list settled = []
        drop_returned()
        if bt_packet_open(&packet, message.frame[0].data, message.frame[0].bytes, message.frames) != 0:
            self.dropped += 1
            return [(BT_ERROR, 0, "the service sent a malformed packet")]
        while True:
            step = bt_packet_next(&packet, &record)
            if step == 0:
                break
            if step < 0 or bt_record_check(&record, bt_message_frame_size, message, &body) != 0:
                # What was read of a server that breaks the rules is settled; the connection is over.
                self.dropped += 1
                others.append((BT_ERROR, 0, "the service sent a malformed packet"))
                break
            if record.type == BT_ANSWER:
                call = self.free_place(record.id)
                if call is not None:
                    if (<PipeEngine>call.native).answer(call, message, &body.rows):
                        settled.append(call)
                elif <uint32_t>record.id == QUESTION:
                    others.append((BT_ANSWER, record.id, PyBytes_FromStringAndSize(
                        <const char *>body.rows.meta, body.rows.meta_bytes)))
            elif record.type == BT_ERROR and record.id != 0:
                call = self.free_place(record.id)
                if call is not None:
                    # Its caller knows its budget by the number that it gave.
                    error = late(call) if body.error.code == BT_E_DEADLINE else self._error(&body.error)
                    if set_outcome(call, None, error):
                        settled.append(call)
                elif <uint32_t>record.id == QUESTION:
                    others.append((BT_ERROR, record.id, _text(body.error.texts[0], body.error.text_bytes[0])))
            elif record.type == BT_ERROR:
                others.append((BT_ERROR, 0, _text(body.error.texts[0], body.error.text_bytes[0])))
            elif record.type == BT_WELCOME:
                others.append((BT_WELCOME, body.greeting.lowest_version << 16 | body.greeting.highest_version,
                               PyBytes_FromStringAndSize(<const char *>body.greeting.description,
                                                         body.greeting.description_bytes)))
            else:
                others.append((record.type, record.id, ""))
        # A loop is woken once however many of its calls are in the message.
        for call in settled:
            wake(call)
        return others

    def ask(self, uint32_t number):
        """Asks for the dispatcher's numbers, at once; returns the request's id."""
        cdef uint64_t id_ = <uint64_t>number << 32 | QUESTION
        bt_write_rows_begin(&self.out.w, BT_CALL, id_, -1, 0, 0, BT_METHOD_STATISTICS, 0, 0, 0)
        bt_write_rows_end(&self.out.w, 0)
        self.flush_now()
        return id_

    def write_plain(self, int type_, uint64_t id_):
        """Adds a record without a body (PONG, BYE), and sends what there is."""
        bt_write_empty(&self.out.w, type_, id_)
        self.flush_now()

    cdef object _error(self, bt_wire_error *e):
        return self.error_of(
            e.code, e.exit_code, e.number, _text(e.texts[0], e.text_bytes[0]), _text(e.texts[1], e.text_bytes[1]),
            _text(e.texts[2], e.text_bytes[2]), PyBytes_FromStringAndSize(<const char *>e.texts[3], e.text_bytes[3]),
        )


def _no_memory():
    return RunnerError("no memory for a packet of calls")


cdef str _text(const uint8_t *data, size_t size):
    return PyBytes_FromStringAndSize(<const char *>data, size).decode("utf-8", "replace")


cdef class PipeEngine(NativeEngine):
    """The engine of the handles that call through a pipe.

    Args:
        pipe: where the calls go.
        signature: describes and encodes calls, decodes and finishes answers.
        max_latency_ms: the default budget.
        allow_pickle: whether the other side may be sent, and trusted with, pickles.
        fixed, var: the classes of the signature's buffers, Fixed and Var.
    """

    cdef readonly Pipe pipe
    cdef readonly object link
    cdef object signature, fixed, var
    cdef bint allow_pickle, simple
    cdef ArrayKey call_key, answer_key
    cdef dict call_keys, answer_keys
    cdef object __weakref__

    def __init__(self, Pipe pipe not None, signature, max_latency_ms, *, bint allow_pickle, fixed, var, link=None):
        self.pipe = pipe
        self.signature = signature
        self.max_latency_ms = max_latency_ms
        self.allow_pickle = allow_pickle
        self.fixed, self.var = fixed, var
        self.simple = getattr(signature, "simple", False)
        self.call_keys, self.answer_keys = {}, {}
        self.link = link

    def __reduce__(self):
        raise TypeError("an engine belongs to its process and cannot be pickled")

    def move(self, Pipe pipe not None):
        """From now on calls go through this pipe."""
        self.pipe = pipe

    # -- calls ----------------------------------------------------------------------

    def submit(self, Call call):
        self.admit(call)

    def cancel(self, Call call):
        self.pipe.cancel_call(call)

    cdef int admit(self, Call call) except -1:
        cdef cnp.ndarray array
        cdef ArrayKey key
        cdef int first = 1 if call.batched else 0
        drop_returned()
        if self.simple and call.named is None and len(call.args) == 1 and cnp.PyArray_CheckExact(call.args[0]):
            array = <cnp.ndarray>call.args[0]
            if is_plain(array) and (first == 0 or cnp.PyArray_NDIM(array) > 0):
                key = self.call_key
                if key is None or not key.is_of(array, first):
                    key = self._key_of(array, first)
                if key is not None and key.row_bytes > 0:
                    self._write_array(call, array, key, first)
                    self.pipe.admitted(call)
                    return 0
        self._write_any(call)
        self.pipe.admitted(call)
        return 0

    cdef ArrayKey _key_of(self, cnp.ndarray array, int first):
        """The key of rows like this array's; None if it is not so simple."""
        cdef tuple shape = (<object>array).shape
        shape = (cnp.PyArray_TYPE(array), shape[1:] if first else shape)
        cdef ArrayKey key = self.call_keys.get(shape)
        if key is None:
            if cnp.PyArray_NDIM(array) > 31:
                return None
            described = self.signature.describe((array,), {}, first == 1)
            encoded = self.signature.encode(described.payload, allow_pickle=self.allow_pickle)
            key = new_array_key(encoded.key, array, first)
            buffers = list(encoded.buffers)
            if len(buffers) != 1 or not isinstance(buffers[0], self.fixed) or buffers[0].row_bytes != key.row_bytes:
                return None
            if len(self.call_keys) >= 1024:
                self.call_keys.clear()
            self.call_keys[shape] = key
        self.call_key = key
        return key

    cdef int _write_array(self, Call call, cnp.ndarray array, ArrayKey key, int first) except -1:
        cdef Py_ssize_t rows = cnp.PyArray_DIM(array, 0) if first else 1
        cdef size_t size = <size_t>rows * key.row_bytes
        cdef bint framed = size > BT_INLINE_MAX_BYTES
        cdef bt_outgoing *out = &self.pipe.out
        cdef size_t key_bytes = PyBytes_GET_SIZE(key.key)
        _check_size(rows, size, key.row_bytes, key_bytes)
        cdef uint64_t id_ = self.pipe.take_place(call)
        try:
            if framed:
                lend(out, array, cnp.PyArray_DATA(array), size)
        except BaseException:
            self.pipe.free_place(id_)
            raise
        bt_write_rows_begin(&out.w, BT_CALL, id_, budget_ns(call), <uint32_t>rows, <uint32_t>rows, 0, 1,
                            <uint32_t>key_bytes, 0)
        bt_write_descriptor(&out.w, size, <int32_t>key.row_bytes, framed)
        bt_write_padded(&out.w, PyBytes_AS_STRING(key.key), key_bytes)
        if not framed:
            bt_write_padded(&out.w, cnp.PyArray_DATA(array), size)
        bt_write_rows_end(&out.w, framed)
        return 0

    cdef int _write_any(self, Call call) except -1:
        """Whatever the signature makes of the call, which may run any Python code: first."""
        described = self.signature.describe(call.args, call.kwargs, call.batched)
        encoded = self.signature.encode(described.payload, allow_pickle=self.allow_pickle)
        cdef list buffers = []
        cdef size_t total = 0
        for buffer in encoded.buffers:
            data = np.frombuffer(buffer.data, dtype=np.uint8) if memoryview(buffer.data).nbytes else _NOTHING
            if isinstance(buffer, self.var):
                lengths = np.ascontiguousarray(np.frombuffer(buffer.lengths, dtype="<u4")) if encoded.rows else _NOTHING
                buffers.append((-1, data, lengths))
            else:
                buffers.append((buffer.row_bytes, data, None))
            total += <size_t>data.nbytes
        _check_size(described.rows, total, 0, len(encoded.key))
        if len(buffers) > 4096:
            raise InvalidPayload(f"a call may have at most 4096 buffers, this one has {len(buffers)}")
        call.data = described.payload
        self._write_encoded(call, described.rows, encoded.key, buffers)
        return 0

    cdef int _write_encoded(self, Call call, Py_ssize_t rows, bytes key, list buffers) except -1:
        cdef bt_outgoing *out = &self.pipe.out
        cdef cnp.ndarray data, lengths
        cdef uint16_t frames = 0
        cdef uint64_t id_ = self.pipe.take_place(call)
        bt_write_rows_begin(&out.w, BT_CALL, id_, budget_ns(call), <uint32_t>rows, <uint32_t>rows, 0,
                            <uint16_t>len(buffers), <uint32_t>len(key), 0)
        for row_bytes, data, _ in buffers:
            bt_write_descriptor(
                &out.w, cnp.PyArray_NBYTES(data), row_bytes, cnp.PyArray_NBYTES(data) > <Py_ssize_t>BT_INLINE_MAX_BYTES
            )
        bt_write_padded(&out.w, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        for _, data, maybe in buffers:
            if maybe is not None:
                lengths = maybe
                bt_write_padded(&out.w, cnp.PyArray_DATA(lengths), cnp.PyArray_NBYTES(lengths))
            if cnp.PyArray_NBYTES(data) > <Py_ssize_t>BT_INLINE_MAX_BYTES:
                lend(out, data, cnp.PyArray_DATA(data), cnp.PyArray_NBYTES(data))
                frames += 1
            else:
                bt_write_padded(&out.w, cnp.PyArray_DATA(data), cnp.PyArray_NBYTES(data))
        bt_write_rows_end(&out.w, frames)
        return 0

    # -- answers ---------------------------------------------------------------------

    cdef bint answer(self, Call call, bt_message *message, bt_wire_rows *rows) except -1:
        """Decodes the rows and sets them as the call's outcome; 1 if it had none."""
        cdef ArrayKey key = self.answer_key
        cdef size_t size
        if key is None or rows.key_bytes != <size_t>PyBytes_GET_SIZE(key.key) or memcmp(
            rows.key, PyBytes_AS_STRING(key.key), rows.key_bytes
        ) != 0:
            key = self.answer_keys.get(PyBytes_FromStringAndSize(<const char *>rows.key, rows.key_bytes))
            if key is not None:
                self.answer_key = key
        try:
            # A call that was described has more to it than its bytes: its index, its argument.
            if key is not None and call.data is None and (call.batched or rows.rows == 1):
                value = self._array(call, message, rows, key)
            else:
                value = self._any(call, message, rows)
        except StopIteration as error:  # which a coroutine cannot raise
            return set_outcome(call, None, RunnerError.from_exception("a row", error))
        except BaseException as error:
            return set_outcome(call, None, error)
        return set_outcome(call, value, None)

    cdef object _array(self, Call call, bt_message *message, bt_wire_rows *rows, ArrayKey key):
        cdef bt_wire_walk walk
        cdef bt_wire_buffer buffer
        cdef cnp.npy_intp shape[33]
        cdef cnp.ndarray array
        cdef int axis, first = 1 if call.batched else 0
        bt_wire_rows_walk(rows, &walk)
        if rows.buffers != 1 or not bt_wire_rows_next(rows, &walk, &buffer) or buffer.row_bytes != <int64_t>key.row_bytes:
            raise InvalidPayload("the answer's buffers are not those of its key")
        if first == 0 and key.row_ndim == 0 and buffer.frames == 0:
            return PyArray_Scalar(<void *>buffer.data, <cnp.PyArray_Descr *>key.dtype, None)
        shape[0] = rows.rows
        for axis in range(key.row_ndim):
            shape[axis + first] = key.row_shape[axis]
        array = cnp.PyArray_SimpleNew(key.row_ndim + first, shape, key.type_num)
        bt_copy_range(message, &buffer, 0, buffer.bytes, <uint8_t *>cnp.PyArray_DATA(array))
        return array

    cdef object _any(self, Call call, bt_message *message, bt_wire_rows *rows):
        cdef bytes key = PyBytes_FromStringAndSize(<const char *>rows.key, rows.key_bytes)
        cdef list buffers = gathered(message, rows, rows.rows, self.fixed, self.var, None)
        part = self.signature.decode_result(key, buffers, rows.rows, allow_pickle=self.allow_pickle)
        if type(part) is np.ndarray and len(buffers) == 1 and key not in self.answer_keys:
            self._learn(key, part, buffers[0])
        payload = call.data
        if payload is None:
            payload = self.signature.describe(call.args, call.kwargs, call.batched).payload
        return self.signature.finish(payload, [part])

    cdef int _learn(self, bytes key, cnp.ndarray part, buffer) except -1:
        """Notes the key as that of plain arrays, if the buffer's bytes are the array's."""
        if not is_plain(part) or not 0 < cnp.PyArray_NDIM(part) <= 32 or not isinstance(buffer, self.fixed):
            return 0
        cdef ArrayKey made = new_array_key(key, part, 1)
        if made.row_bytes == 0 or made.row_bytes != buffer.row_bytes or part.tobytes() != bytes(buffer.data):
            return 0
        if len(self.answer_keys) >= 1024:
            self.answer_keys.clear()
        self.answer_keys[key] = made
        return 0


_NOTHING = np.empty(0, dtype=np.uint8)
_BYTE = np.dtype(np.uint8)

# From so many bytes on memory is copied without the GIL, pooled, and sent in frames.
cdef size_t LARGE = 1 << 18


cdef int64_t budget_ns(Call call) noexcept:
    if call.deadline_ns < 0:
        return -1
    return max(call.deadline_ns - monotonic_ns(), 0)


cdef int _check_size(Py_ssize_t rows, size_t size, size_t row_bytes, size_t key_bytes) except -1:
    if rows > 0x7FFFFFFF or size > 0x7F000000 or row_bytes > 0x7FFFFFFF:
        raise InvalidPayload(f"a call of {rows} rows and {size} bytes is above what one message can hold")
    if key_bytes > 1 << 20:
        raise InvalidPayload(f"the description of a call's arguments has {key_bytes} bytes, at most {1 << 20} can be sent")
    return 0


cdef list gathered(bt_message *message, bt_wire_rows *rows, uint32_t padded, fixed, var, pool):
    """Every buffer's data in one piece of aligned, writable memory of its own (large ones from the
    pool, if there is one), the last row repeated until there are `padded` of them."""
    cdef bt_wire_walk walk
    cdef bt_wire_buffer b
    cdef list buffers = []
    cdef cnp.ndarray data, lengths
    cdef uint32_t missing = padded - rows.rows if rows.rows else 0
    cdef uint64_t last
    cdef uint32_t i
    cdef uint8_t *at
    bt_wire_rows_walk(rows, &walk)
    while bt_wire_rows_next(rows, &walk, &b):
        if b.row_bytes == BT_VAR:
            lengths = np.empty(rows.rows + missing, dtype="<u4")
            memcpy(cnp.PyArray_DATA(lengths), b.lengths, 4 * <size_t>rows.rows)
            last = 0
            if missing:
                last = (<uint32_t *>cnp.PyArray_DATA(lengths))[rows.rows - 1]
                for i in range(rows.rows, padded):
                    (<uint32_t *>cnp.PyArray_DATA(lengths))[i] = <uint32_t>last
                if last == BT_NO_BLOB:
                    last = 0
        else:
            last = <uint64_t>b.row_bytes
        if pool is not None and b.bytes > LARGE:
            data = pool.take(_BYTE, (b.bytes + last * missing,))
        else:
            data = np.empty(b.bytes + last * missing, dtype=np.uint8)
        at = <uint8_t *>cnp.PyArray_DATA(data)
        if b.bytes > LARGE:
            with nogil:
                bt_copy_range(message, &b, 0, b.bytes, at)
        else:
            bt_copy_range(message, &b, 0, b.bytes, at)
        if last:
            for i in range(missing):
                memcpy(at + b.bytes + i * last, at + b.bytes - last, last)
        buffers.append(var(lengths, data) if b.row_bytes == BT_VAR else fixed(b.row_bytes, data))
    return buffers


# ---- a socket ---------------------------------------------------------------------------

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
    cdef bt_inbox inbox
    cdef bint closed
    cdef readonly bint lost
    """Whether the connection ended."""

    def __cinit__(self, socket, monitor):
        self._socket, self._monitor = socket, monitor
        self.raw = <void *><size_t>socket.underlying
        self.raw_monitor = <void *><size_t>monitor.underlying
        pthread_mutex_init(&self.lock, NULL)
        if bt_wake_open(&self.wake) != 0:
            raise OSError(errno, "no descriptor for a connection")

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
            # Sending handles libzmq's own signals too: the waiter may have lost its own.
            more = (bt_zmq_events(self.raw) & BT_ZMQ_POLLIN) != 0
        if (more or error) and not self.closed:
            bt_wake_signal(&self.wake)
        pthread_mutex_unlock(&self.lock)
        bt_message_drop(message)
        if error:
            self.lost = True

    def interrupt(self):
        """Has `receive` return."""
        pthread_mutex_lock(&self.lock)
        if not self.closed:
            bt_wake_signal(&self.wake)
        pthread_mutex_unlock(&self.lock)

    def receive(self, int64_t until_ns):
        """Waits for messages until the time (CLOCK_MONOTONIC; -1: for ever), an interrupt or the
        connection's end. A list of addresses; whoever gets them calls `drop` on each."""
        cdef int fds[3]
        cdef int got
        cdef list messages = []
        cdef bt_message *message
        cdef bint again = True
        fds[0] = bt_zmq_descriptor(self.raw)
        fds[1] = bt_zmq_descriptor(self.raw_monitor)
        fds[2] = self.wake.reader
        if until_ns < 0:
            until_ns = 0x7FFFFFFFFFFFFFFF
        while True:
            pthread_mutex_lock(&self.lock)
            while not self.closed and bt_inbox_receive(&self.inbox, self.raw) == 1:
                message = bt_message_new(self.inbox.zmsg, self.inbox.count)
                if message is not NULL:
                    messages.append(<uintptr_t>message)
            if not messages and not self.closed and bt_inbox_receive(&self.inbox, self.raw_monitor) == 1:
                self.lost = True
                # What came just before the end counts.
                while bt_inbox_receive(&self.inbox, self.raw) == 1:
                    message = bt_message_new(self.inbox.zmsg, self.inbox.count)
                    if message is not NULL:
                        messages.append(<uintptr_t>message)
            pthread_mutex_unlock(&self.lock)
            if messages or self.lost or self.closed or not again:
                return messages
            with nogil:
                bt_sleep(fds, 3, until_ns)
                bt_wake_clear(&self.wake)
            again = False

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
    cdef bt_message *message
    cdef bytes frame
    cdef list parts = [bytes(part) for part in frames]
    cdef bt_zmsg *zmsg = <bt_zmsg *>malloc(len(parts) * sizeof(bt_zmsg))
    cdef Py_ssize_t made = 0
    if zmsg is NULL:
        raise MemoryError
    for frame in parts:
        if bt_zmq.msg_init_size(&zmsg[made], PyBytes_GET_SIZE(frame)) != 0:
            break
        memcpy(bt_zmq.msg_data(&zmsg[made]), PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
        made += 1
    message = bt_message_new(zmsg, <uint32_t>made) if made == len(parts) else NULL
    if message is NULL:
        while made:
            made -= 1
            bt_zmq.msg_close(&zmsg[made])
    free(zmsg)
    if message is NULL:
        raise MemoryError
    return <uintptr_t>message


# ---- a worker's messages ---------------------------------------------------------------

def read_batches(uintptr_t address, fixed, var, pool):
    """What a dispatcher sent, and lets go of it: a list of

    (BATCH, id, rows, padded rows, key, buffers), the buffers in memory of their own, the last row
    repeated up to the padded rows; and (type, id, text) for anything else. Of a message that
    breaks a rule only (0, id, "") for every batch that could be read of.
    """
    cdef bt_message *message = <bt_message *>address
    cdef bt_packet packet
    cdef bt_record record
    cdef bt_body body
    cdef int step
    cdef list records = []
    cdef list ids = []
    drop_returned()
    try:
        if bt_packet_open(&packet, message.frame[0].data, message.frame[0].bytes, message.frames) != 0:
            return []
        while True:
            step = bt_packet_next(&packet, &record)
            if step == 0:
                return records
            if step == 1 and record.type == BT_BATCH:
                ids.append(record.id)
            if step < 0 or bt_record_check(&record, bt_message_frame_size, message, &body) != 0:
                return [(0, id_, "") for id_ in ids]
            if record.type == BT_BATCH:
                records.append((
                    record.type, record.id, body.rows.rows, body.rows.padded_rows,
                    PyBytes_FromStringAndSize(<const char *>body.rows.key, body.rows.key_bytes),
                    gathered(message, &body.rows, body.rows.padded_rows, fixed, var, pool),
                ))
            elif record.type == BT_ERROR:
                records.append((record.type, record.id, _text(body.error.texts[0], body.error.text_bytes[0])))
            else:
                records.append((record.type, record.id, ""))
    finally:
        bt_message_drop(message)


def new_result(uint64_t id_, uint32_t rows, bytes key, buffers, var, pool, bint owned):
    """The address of a message with a RESULT of the first `rows` rows of the buffers.

    They are copied, unless they are large and owned: then nobody else changes them, and they are sent
    from where they are. Large ones leave in frames of some rows each, so that no process
    that they pass has to map a block of memory of the whole size anew for each batch.

    Raises:
        ValueError: it is above a limit of the protocol.
    """
    cdef bt_outgoing out
    cdef bt_message *message
    cdef list parts = []
    cdef cnp.ndarray data, lengths
    cdef size_t total = 0
    drop_returned()
    for buffer in buffers:
        data = np.frombuffer(buffer.data, dtype=np.uint8) if memoryview(buffer.data).nbytes else _NOTHING
        if isinstance(buffer, var):
            lengths = np.ascontiguousarray(np.frombuffer(buffer.lengths, dtype="<u4"))[:rows] if rows else _NOTHING
            size = int(lengths[lengths != 0xFFFFFFFF].sum(dtype=np.uint64)) if rows else 0
            parts.append((-1, size, data, lengths))
            total += size + 4 * rows + 16
        else:
            size = buffer.row_bytes * rows
            if size > LARGE and not owned:
                data = pooled_copy(pool, data, size)
            parts.append((buffer.row_bytes, size, data, None))
            total += size + 8
    total += 64 + 16 * len(parts) + len(key)
    if total > 0x7F000000 or len(parts) > 4096 or len(key) > 1 << 20:
        raise ValueError(f"a result of {total} bytes in {len(parts)} buffers is above what one message can hold")
    cdef uint32_t frames = 0, all_frames = 0
    cdef size_t frame_bytes, at, left
    memset(&out, 0, sizeof(out))
    bt_outgoing_start(&out)
    bt_writer_reserve(&out.w, min(total, LARGE))
    bt_write_rows_begin(&out.w, BT_RESULT, id_, -1, rows, rows, 0, <uint16_t>len(parts), <uint32_t>len(key), 0)
    for row_bytes, size, data, _ in parts:
        frames = 0
        if row_bytes > 0 and size > LARGE:
            frame_bytes = rows_per_frame(row_bytes) * <size_t>row_bytes
            frames = <uint32_t>((<size_t>size + frame_bytes - 1) // frame_bytes)
        bt_write_descriptor(&out.w, size, row_bytes, frames)
    bt_write_padded(&out.w, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
    for row_bytes, size, data, maybe in parts:
        if row_bytes > 0 and size > LARGE:
            frame_bytes = rows_per_frame(row_bytes) * <size_t>row_bytes
            at, left = 0, size
            while left:
                lend(&out, data, <char *>cnp.PyArray_DATA(data) + at, min(frame_bytes, left))
                all_frames += 1
                at += min(frame_bytes, left)
                left -= min(frame_bytes, left)
            continue
        if maybe is not None:
            lengths = maybe
            bt_write_padded(&out.w, cnp.PyArray_DATA(lengths), 4 * <size_t>rows)
        write_bytes(&out.w, cnp.PyArray_DATA(data), size)
    bt_write_rows_end(&out.w, <uint16_t>all_frames)
    message = bt_outgoing_take(&out)
    bt_outgoing_free(&out)
    if message is NULL:
        raise MemoryError("no memory for a result")
    return <uintptr_t>message


cdef size_t rows_per_frame(int32_t row_bytes) noexcept:
    """As many as make a frame of half a megabyte; with 2 GiB in a message, 4096 frames a buffer at most."""
    return max(<size_t>(1 << 19) // <size_t>row_bytes, 1)


cdef cnp.ndarray pooled_copy(pool, cnp.ndarray data, size_t size):
    cdef cnp.ndarray copy = pool.take(_BYTE, (size,))
    cdef void *to = cnp.PyArray_DATA(copy)
    cdef void *source = cnp.PyArray_DATA(data)
    with nogil:
        memcpy(to, source, size)
    return copy


cdef int write_bytes(bt_writer *w, void *data, size_t size) except -1:
    if size > 1 << 18:
        with nogil:
            bt_write_padded(w, data, size)
    else:
        bt_write_padded(w, data, size)
    return 0
