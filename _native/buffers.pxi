# Buffers of messages, for the caller's and for the worker's end: memory of Python objects that libzmq
# sends from, and what came gathered into memory of its own.

cimport numpy as cnp
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from c_plane cimport *
from c_wire cimport *

import numpy as np

cnp.import_array()

cdef extern from *:
    """
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

_NOTHING = np.empty(0, dtype=np.uint8)
_BYTE = np.dtype(np.uint8)

# From so many bytes on memory is copied without the GIL, pooled, and sent in frames.
cdef size_t LARGE = 1 << 18


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


cdef str _text(const uint8_t *data, size_t size):
    return PyBytes_FromStringAndSize(<const char *>data, size).decode("utf-8", "replace")
