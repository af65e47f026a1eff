# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Pipe: the caller's end of a connection, without a Python call per request.

What it is      `Pipe` writes calls into packets and finds the call that an answer
                belongs to; `PipeEngine` is the engine of handles whose calls go
                through a pipe.
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
                Python code runs.
"""

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp

from batching._native.calls cimport Call, NativeEngine, Port, late, monotonic_ns, set_outcome, wake
from c_plane cimport *
from c_wire cimport *

include "libzmq.pxi"
include "buffers.pxi"
include "array_keys.pxi"

from batching._native.calls import settle
from batching.errors import InvalidPayload, Overloaded, RunnerError

__all__ = ["Pipe", "PipeEngine"]

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "numpy/arrayobject.h":
    object PyArray_Scalar(void *data, cnp.PyArray_Descr *descr, object base)


# ---- large answers ------------------------------------------------------------------

# An answer of so many bytes in one frame is not copied: it is the frame.
cdef size_t SHOWN = 1 << 16


@cython.final
@cython.internal
cdef class Frame:
    """A frame of a message, for as long as an array shows it. Nobody else's rows are in what is shown."""

    cdef bt_zmsg zmsg

    def __cinit__(self):
        bt_zmq.msg_init(&self.zmsg)

    def __dealloc__(self):
        bt_zmq.msg_close(&self.zmsg)


cdef bint can_be_shown(bt_message *message, bt_wire_buffer *buffer, ArrayKey key) noexcept:
    return (
        buffer.frames == 1 and buffer.bytes >= SHOWN
        and <uintptr_t>message.frame[buffer.first_frame].data % key.alignment == 0
    )


# The place of what is no call; places of calls are far below it.
cdef uint32_t QUESTION = 0xFFFFFFFF
# A packet with so many bytes, its frames included, leaves at once: a message is received whole or not at all,
# so that a larger one would only keep everybody behind it idle.
cdef uint64_t ENOUGH = 1 << 20


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
    cdef bint timed  # a deadline stands in the packet where its budget belongs
    cdef Port scheduled
    cdef object flush_later
    cdef readonly uint64_t dropped
    """Messages that broke a rule."""
    cdef public uint64_t max_message_bytes
    """Of one that leaves, all frames together: a call that needs more is refused."""

    def __cinit__(self, send, wanted, error_of):
        self.send, self.wanted, self.error_of = send, wanted, error_of
        self.calls = []
        self.flush_later = self._flush_scheduled
        bt_outgoing_start(&self.out)
        self.max_message_bytes = BT_MAX_MESSAGE_BYTES

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

    cdef int make_room(self, uint64_t bytes) except -1:
        """Before a call's record of so many bytes, its frames included, is written."""
        cdef uint64_t written = self.out.w.bytes + self.out.frame_bytes
        if BT_PACKET_HEADER + bytes > self.max_message_bytes:
            raise InvalidPayload(
                f"a call of {BT_PACKET_HEADER + bytes} bytes is above max_message_bytes, {self.max_message_bytes}"
            )
        if written + bytes <= self.max_message_bytes:
            return 0
        if not self.is_open:
            raise Overloaded(
                f"calls of {written} bytes wait for the connection, and {bytes} more would be above "
                f"max_message_bytes, {self.max_message_bytes}"
            )
        return self.flush_now()

    cdef int admitted(self, Call call) except -1:
        """A record was written for the call: it leaves at the end of the loop's turn, or now."""
        if not self.is_open:
            # Last of all: a connection that fails from here on fails this call too.
            try:
                self.wanted()
            except BaseException:
                self.free_place(call.id)
                raise
        elif call.port is None or self.out.w.bytes + self.out.frame_bytes >= ENOUGH:
            self.flush_now()
        elif self.scheduled is not call.port:
            call.port._call_soon(self.flush_later)
            self.scheduled = call.port
        return 0

    cdef int flush_now(self) except -1:
        cdef bt_message *message
        cdef list late_calls = None
        if not self.is_open or (self.out.w.records == 0 and not self.out.w.failed):
            return 0
        if self.timed:
            self.timed = False
            late_calls = self.put_budgets()
        message = bt_outgoing_take(&self.out)
        if message is NULL:
            # Nobody knows which of the calls was in it: none may wait for ever.
            self.lose()
        else:
            try:
                self.send(<uintptr_t>message)
            except BaseException:
                self.lose()
                raise
        if late_calls:
            settle([(call, None, late(call)) for call in late_calls])
        return 0

    cdef list put_budgets(self):
        """Turns the deadlines of the calls that leave now into what is left of them, also if they had to
        wait for a connection. The calls that have nothing left, which are forgotten here: the
        dispatcher drops them, too."""
        # Made first: from here on no Python code runs, which could write to the packet.
        cdef list late_calls = []
        cdef Call call
        cdef uint8_t *record
        cdef size_t at = BT_PACKET_HEADER
        cdef int64_t now_ns = monotonic_ns(), deadline_ns
        while at < self.out.w.bytes and not self.out.w.failed:
            record = self.out.w.data + at
            at += bt_get32(record + 4)
            if record[0] != BT_CALL:
                continue
            deadline_ns = <int64_t>bt_get64(record + BT_RECORD_HEADER)
            if deadline_ns < 0:
                continue
            bt_put64(record + BT_RECORD_HEADER, <uint64_t>max(deadline_ns - now_ns, 0))
            if deadline_ns <= now_ns:
                call = self.free_place(bt_get64(record + 8))
                if call is not None:
                    try:
                        late_calls.append(call)
                    except MemoryError:
                        self.out.w.failed = 1  # half of it has budgets: it must not leave
                        return late_calls
        return late_calls

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
        self.is_open = False
        self.fail_calls(make_error)

    def lose(self):
        """Fails every call that was made so far, because nobody knows whose outcomes were lost for want
        of memory; calls are taken as before."""
        self.fail_calls(_no_memory)

    cdef int fail_calls(self, make_error) except -1:
        cdef Call call
        cdef Call first = None
        cdef uint32_t place
        # No Python code runs until all of them are taken: a call that comes then is not concerned.
        # They are chained by what nobody looks at any more, since memory may be short.
        self.timed = False
        bt_outgoing_start(&self.out)
        for place in range(self.places, 0, -1):
            call = <Call>self.calls[place - 1]
            if call is not None:
                self.free_place(call.id)
                call.data = first
                first = call
        while first is not None:
            call, first = first, <Call>first.data
            call.data = None
            try:
                error = make_error()
            except BaseException as failed:
                error = failed
            if set_outcome(call, None, error):
                wake_surely(call)
        return 0

    cdef int cancel_call(self, Call call) except -1:
        if self.free_place(call.id) is None:
            return 0
        bt_write_empty(&self.out.w, BT_CANCEL, call.id)
        if self.is_open:
            try:
                self.admitted(call)
            except RuntimeError:  # its loop is closed, or of another thread
                self.flush_now()
        return 0

    # -- in ---------------------------------------------------------------------------

    def receive(self, uintptr_t address):
        """Takes a message's records to their calls; returns those that are not about a
        call, as (type, id, text) tuples. Does not take the message over."""
        cdef list others = []
        cdef list settled = []
        try:
            self.read(<bt_message *>address, others, settled)
        finally:
            # A loop is woken once however many of its calls are in the message.
            for call in settled:
                wake_surely(call)
        return others

    cdef int read(self, bt_message *message, list others, list settled) except -1:
        cdef bt_packet packet
        cdef bt_record record
        cdef bt_body body
        cdef Call call
        cdef int step
        drop_returned()
        if bt_packet_open(&packet, message.frame[0].data, message.frame[0].bytes, message.frames) != 0:
            self.dropped += 1
            others.append((BT_ERROR, 0, "the service sent a malformed packet"))
            return 0
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
                        note(settled, call)
                elif <uint32_t>record.id == QUESTION:
                    others.append((BT_ANSWER, record.id, PyBytes_FromStringAndSize(
                        <const char *>body.rows.meta, body.rows.meta_bytes)))
            elif record.type == BT_ERROR and record.id != 0:
                call = self.free_place(record.id)
                if call is not None:
                    try:
                        # Its caller knows its budget by the number that it gave.
                        error = late(call) if body.error.code == BT_E_DEADLINE else self._error(&body.error)
                    except BaseException as failed:
                        error = failed
                    if set_outcome(call, None, error):
                        note(settled, call)
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
        return 0

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


cdef int note(list settled, Call call) except -1:
    """A call that has its outcome is to be woken."""
    try:
        settled.append(call)
    except MemoryError:
        wake_surely(call)
    return 0


cdef int wake_surely(Call call) except -1:
    """It has its outcome: if there is no memory to say so, it is said when there is."""
    while True:
        try:
            return wake(call)
        except MemoryError:
            with nogil:
                sched_yield()


def _no_memory():
    return RunnerError("the call or its outcome was lost: no memory for a packet of calls")


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
        self.pipe.make_room(bt_wire_rows_bytes(1, key_bytes, 0) + (size if framed else bt_pad8(size)))
        cdef uint64_t id_ = self.pipe.take_place(call)
        self.pipe.timed |= call.deadline_ns >= 0
        try:
            if framed:
                lend(out, array, cnp.PyArray_DATA(array), size)
        except BaseException:
            self.pipe.free_place(id_)
            raise
        bt_write_rows_begin(&out.w, BT_CALL, id_, call.deadline_ns, <uint32_t>rows, <uint32_t>rows, 0, 1,
                            <uint32_t>key_bytes, 0)
        bt_write_client(&out.w, call.client)
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
        cdef size_t total = 0, most = 0
        for buffer in encoded.buffers:
            data = np.frombuffer(buffer.data, dtype=np.uint8) if memoryview(buffer.data).nbytes else _NOTHING
            if isinstance(buffer, self.var):
                lengths = np.ascontiguousarray(np.frombuffer(buffer.lengths, dtype="<u4")) if encoded.rows else _NOTHING
                _check_lengths(data, lengths, described.rows)
                buffers.append((-1, data, lengths))
            else:
                if buffer.row_bytes * described.rows != data.nbytes:
                    raise InvalidPayload(
                        f"{described.rows} rows of {buffer.row_bytes} bytes were encoded in {data.nbytes} bytes"
                    )
                buffers.append((buffer.row_bytes, data, None))
            total += <size_t>data.nbytes
            most += bt_pad8(<size_t>data.nbytes) + (bt_pad8(4 * <size_t>described.rows) if buffers[-1][0] < 0 else 0)
        _check_size(described.rows, total, 0, len(encoded.key))
        if len(buffers) > 4096:
            raise InvalidPayload(f"a call may have at most 4096 buffers, this one has {len(buffers)}")
        self.pipe.make_room(bt_wire_rows_bytes(<uint16_t>len(buffers), len(encoded.key), 0) + most)
        call.data = described.payload
        self._write_encoded(call, described.rows, encoded.key, buffers)
        return 0

    cdef int _write_encoded(self, Call call, Py_ssize_t rows, bytes key, list buffers) except -1:
        cdef bt_outgoing *out = &self.pipe.out
        cdef cnp.ndarray data, lengths
        cdef uint16_t frames = 0
        cdef uint64_t id_ = self.pipe.take_place(call)
        self.pipe.timed |= call.deadline_ns >= 0
        bt_write_rows_begin(&out.w, BT_CALL, id_, call.deadline_ns, <uint32_t>rows, <uint32_t>rows, 0,
                            <uint16_t>len(buffers), <uint32_t>len(key), 0)
        bt_write_client(&out.w, call.client)
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
                try:
                    lend(out, data, cnp.PyArray_DATA(data), cnp.PyArray_NBYTES(data))
                except MemoryError:
                    out.w.failed = 1  # half a record is in it: it must not leave
                    raise
                frames += 1
            else:
                bt_write_padded(&out.w, cnp.PyArray_DATA(data), cnp.PyArray_NBYTES(data))
        bt_write_rows_end(&out.w, frames)
        return 0

    # -- answers ---------------------------------------------------------------------

    cdef bint answer(self, Call call, bt_message *message, bt_wire_rows *rows) except -1:
        """Decodes the rows and sets them as the call's outcome; 1 if it had none."""
        cdef ArrayKey key = self.answer_key
        try:
            if key is None or rows.key_bytes != <size_t>PyBytes_GET_SIZE(key.key) or memcmp(
                rows.key, PyBytes_AS_STRING(key.key), rows.key_bytes
            ) != 0:
                key = self.answer_keys.get(PyBytes_FromStringAndSize(<const char *>rows.key, rows.key_bytes))
                if key is not None:
                    self.answer_key = key
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
        cdef Frame frame
        cdef int axis, first = 1 if call.batched else 0
        bt_wire_rows_walk(rows, &walk)
        if rows.buffers != 1 or not bt_wire_rows_next(rows, &walk, &buffer) or buffer.row_bytes != <int64_t>key.row_bytes:
            raise InvalidPayload("the answer's buffers are not those of its key")
        if first == 0 and key.row_ndim == 0 and buffer.frames == 0:
            return PyArray_Scalar(<void *>buffer.data, <cnp.PyArray_Descr *>key.dtype, None)
        shape[0] = rows.rows
        for axis in range(key.row_ndim):
            shape[axis + first] = key.row_shape[axis]
        if not can_be_shown(message, &buffer, key):
            array = cnp.PyArray_SimpleNew(key.row_ndim + first, shape, key.type_num)
            bt_copy_range(message, &buffer, 0, buffer.bytes, <uint8_t *>cnp.PyArray_DATA(array))
            return array
        frame = Frame.__new__(Frame)
        bt_zmq.msg_copy(&frame.zmsg, &message.zmsg[buffer.first_frame])
        array = cnp.PyArray_SimpleNewFromData(
            key.row_ndim + first, shape, key.type_num, <void *>message.frame[buffer.first_frame].data
        )
        cnp.set_array_base(array, frame)
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


cdef int _check_lengths(cnp.ndarray data, cnp.ndarray lengths, Py_ssize_t rows) except -1:
    """What a kind of the user's made must be right: a record that is not takes its neighbours with it."""
    cdef const uint8_t *at = <const uint8_t *>cnp.PyArray_DATA(lengths)
    cdef uint64_t size = 0
    cdef uint32_t length
    cdef Py_ssize_t row
    if cnp.PyArray_NBYTES(lengths) != 4 * rows:
        raise InvalidPayload(f"{rows} rows were encoded with {cnp.PyArray_NBYTES(lengths) // 4} lengths")
    for row in range(rows):
        length = bt_get32(at + 4 * row)
        size += 0 if length == BT_NO_BLOB else length
    if size != <uint64_t>cnp.PyArray_NBYTES(data):
        raise InvalidPayload(f"rows of {size} bytes were encoded in {cnp.PyArray_NBYTES(data)} bytes")
    return 0


cdef int _check_size(Py_ssize_t rows, size_t size, size_t row_bytes, size_t key_bytes) except -1:
    if rows > 0x7FFFFFFF or size > 0x7F000000 or row_bytes > 0x7FFFFFFF:
        raise InvalidPayload(f"a call of {rows} rows and {size} bytes is above what one message can hold")
    if key_bytes > 1 << 20:
        raise InvalidPayload(f"the description of a call's arguments has {key_bytes} bytes, at most {1 << 20} can be sent")
    return 0
