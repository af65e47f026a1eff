# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Batches: the worker's end of a connection, from a message to a batch and from a result to a message.

What it is      `read_batches` takes apart what a dispatcher sent; `new_result` makes the answer.
                `PlainArrays` is the short way from a buffer to an argument and from a result to
                a message, for those that are one plain ndarray each.
Guarantees      1. the rows of a batch are in one piece of memory of their own for each buffer,
                   aligned and writable;
                2. what comes is checked before it is used, and whose batches were in a broken
                   message is said, as far as it can be read.
Why this shape  a large buffer is copied once, without the GIL, into memory that a pool has mapped
                already; a large result is sent from where it is, if nobody else can change it.
"""

cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from c_plane cimport *
from c_wire cimport *

include "libzmq.pxi"
include "buffers.pxi"
include "array_keys.pxi"

__all__ = ["PlainArrays", "new_result", "read_batches"]


def read_batches(uintptr_t address, fixed, var, pool):
    """What a dispatcher sent, and lets go of it: a list of

    (BATCH, id, rows, padded rows, key, buffers), the buffers in memory of their own, the last row
    repeated up to the padded rows; (-1, id) for a batch for which there is no memory; (ERROR, id, text);
    and (type, id) for anything else. Of a message that breaks a rule only (0, id) for
    every batch that could be read of.
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
                return [(0, id_) for id_ in ids]
            if record.type == BT_BATCH:
                try:
                    buffers = gathered(message, &body.rows, body.rows.padded_rows, fixed, var, pool)
                except MemoryError:
                    records.append((-1, record.id))
                    continue
                records.append((
                    record.type, record.id, body.rows.rows, body.rows.padded_rows,
                    PyBytes_FromStringAndSize(<const char *>body.rows.key, body.rows.key_bytes), buffers,
                ))
            elif record.type == BT_ERROR:
                records.append((record.type, record.id, _text(body.error.texts[0], body.error.text_bytes[0])))
            else:
                records.append((record.type, record.id))
    finally:
        bt_message_drop(message)


# Of keys that are remembered, and of one of them.
cdef enum:
    MOST_KEYS = 1024
    LONGEST_KEY = 4096


@cython.final
cdef class PlainArrays:
    """Arguments and results that are one ndarray of at most `LARGE` bytes, whose bytes are all there is to it.

    Which keys are such is learned from what their signature made of them. Only for a
    signature that is `simple`: with kinds of its own an ndarray may be anything.

    Args:
        fixed: the class of the signature's buffers, Fixed.
    """

    cdef object fixed
    cdef ArrayKey argument_key, result_key
    cdef dict argument_keys, result_keys
    cdef bt_outgoing out

    def __cinit__(self, fixed):
        self.fixed = fixed
        self.argument_keys, self.result_keys = {}, {}
        bt_outgoing_start(&self.out)

    def __dealloc__(self):
        bt_outgoing_free(&self.out)

    def __reduce__(self):
        raise TypeError("PlainArrays belong to their process and cannot be pickled")

    def argument(self, bytes key not None, list buffers not None, Py_ssize_t rows):
        """The only argument of a batch of this key, over the memory of its buffer, which is taken out of the
        list; None if it is not known to be one array."""
        cdef ArrayKey known = self.argument_key
        cdef cnp.ndarray data, array
        cdef cnp.npy_intp shape[33]
        cdef int axis
        if known is None or known.key != key:
            known = self.argument_keys.get(key)
            if known is None:
                return None
            self.argument_key = known
        if len(buffers) != 1 or type(buffers[0]) is not self.fixed or rows <= 0:
            return None
        row_bytes, data = buffers[0]
        if (
            row_bytes != known.row_bytes or cnp.PyArray_NBYTES(data) > <Py_ssize_t>LARGE
            or <size_t>cnp.PyArray_NBYTES(data) != <size_t>rows * known.row_bytes
            or <size_t>cnp.PyArray_DATA(data) % known.alignment != 0
        ):
            return None
        shape[0] = rows
        for axis in range(known.row_ndim):
            shape[axis + 1] = known.row_shape[axis]
        array = cnp.PyArray_SimpleNewFromData(known.row_ndim + 1, shape, known.type_num, cnp.PyArray_DATA(data))
        cnp.set_array_base(array, data)
        buffers.clear()
        return array

    def learn_argument(self, bytes key not None, argument):
        """What the signature made of a batch of this key: its only argument."""
        if len(key) > LONGEST_KEY or not is_rows(argument):
            return
        if len(self.argument_keys) >= MOST_KEYS:
            self.argument_keys.clear()
        self.argument_keys[key] = new_array_key(key, argument, 1)

    def result(self, uint64_t id_, uint32_t rows, Py_ssize_t model_rows, result):
        """The address of a message with a RESULT of the first `rows` rows; 0 if it is not known to be one array
        of `model_rows` rows."""
        cdef ArrayKey known = self.result_key
        cdef cnp.ndarray array
        if not is_rows(result):
            return 0
        array = result
        if cnp.PyArray_DIM(array, 0) != model_rows or cnp.PyArray_NBYTES(array) > <Py_ssize_t>LARGE:
            return 0
        if known is None or not known.is_of(array, 1):
            known = self.result_keys.get((cnp.PyArray_TYPE(array), result.shape[1:]))
            if known is None:
                return 0
            self.result_key = known
        return self.write(id_, rows, known, array)

    cdef uintptr_t write(self, uint64_t id_, uint32_t rows, ArrayKey key, cnp.ndarray array) except 0:
        cdef size_t key_bytes = PyBytes_GET_SIZE(key.key), size = rows * key.row_bytes
        cdef size_t head = bt_wire_rows_bytes(1, key_bytes, 0), padded = bt_pad8(size)
        cdef bt_message *message
        cdef uint8_t *at
        drop_returned()
        bt_writer_reserve(&self.out.w, head + padded)
        at = bt_write_rows_whole(
            &self.out.w, BT_RESULT, id_, -1, rows, rows, 1, <const uint8_t *>PyBytes_AS_STRING(key.key),
            <uint32_t>key_bytes, head + padded
        )
        if at is not NULL:
            bt_put64(at, size)
            bt_put32(at + 8, <uint32_t>key.row_bytes)
            bt_put32(at + 12, 0)
            at += BT_DESCRIPTOR_BYTES + bt_pad8(key_bytes)
            memcpy(at, cnp.PyArray_DATA(array), size)
            memset(at + size, 0, padded - size)
        message = bt_outgoing_take(&self.out)
        if message is NULL:
            raise MemoryError("no memory for a result")
        return <uintptr_t>message

    def learn_result(self, bytes key not None, result):
        """What the signature made of a result: its key."""
        if len(key) > LONGEST_KEY or not is_rows(result):
            return
        if len(self.result_keys) >= MOST_KEYS:
            self.result_keys.clear()
        self.result_keys[(cnp.PyArray_TYPE(result), result.shape[1:])] = new_array_key(key, result, 1)


cdef bint is_rows(value) except -1:
    """Whether it is an ndarray whose rows have bytes, and nothing else to them."""
    return (
        cnp.PyArray_CheckExact(value) and is_plain(<cnp.ndarray>value) and 0 < cnp.PyArray_NDIM(<cnp.ndarray>value) <= 32
        and cnp.PyArray_NBYTES(<cnp.ndarray>value) > 0
    )


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
            check_rows(<size_t>size, data, rows, lengths)
        else:
            size = buffer.row_bytes * rows
            check_rows(<size_t>size, data, 0, _NOTHING)
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
    try:
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
    finally:
        bt_outgoing_free(&out)
    if message is NULL:
        raise MemoryError("no memory for a result")
    return <uintptr_t>message


cdef int check_rows(size_t size, cnp.ndarray data, uint32_t rows, cnp.ndarray lengths) except -1:
    """A kind of the user's may have made fewer bytes than its rows have."""
    if size > <size_t>cnp.PyArray_NBYTES(data) or rows > cnp.PyArray_SIZE(lengths):
        raise ValueError(f"{size} bytes of rows in a buffer of {cnp.PyArray_NBYTES(data)}")
    return 0


cdef size_t rows_per_frame(int32_t row_bytes) noexcept:
    """As many as make a frame of half a megabyte; with 2 GiB in a message, 4096 frames a buffer at most."""
    cdef size_t rows = (<size_t>1 << 19) // <size_t>row_bytes
    return rows if rows else 1


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
