# cython: language_level=3, auto_pickle=False, autotestdict=False, boundscheck=False, wraparound=False
"""One blob a row, and the pickle in each: what a list costs beside pickle itself.

What it is      the loops over the rows of a list, or of any other data of no fixed size: lengths
                out of blobs and blobs out of lengths, pickles out of values and values out of
                pickles. pickle itself, and everything about a row that is unusual, are functions
                that the caller gives.
Guarantees      1. lengths that come from another process are checked against the data before
                any of it is read; 2. a value is pickled once, large buffers inside it or not.
Not promised    that data stays as it is while its rows are read: views are views.
Costs           64 small dicts read and written again: less than calling pickle 128 times from
                Python (`bench/bench_payloads.py`).
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact as is_bytes, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM as item_of, PyList_GET_SIZE as length_of, PyList_New, PyList_SET_ITEM
from cpython.object cimport PyObject, PyObject_TypeCheck, PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from c_wire cimport BT_NO_BLOB, bt_get32, bt_put32, bt_put64

from batching.errors import InvalidPayload

# By pointer: a reference that Cython takes would be counted.
cdef extern from "Python.h":
    PyObject *Py_None
    PyObject *Py_True
    PyObject *Py_False
    Py_ssize_t Py_REFCNT(PyObject *value) noexcept
    void Py_DECREF(PyObject *value) noexcept
    void PyErr_Clear() noexcept
    bint PyUnicode_CheckExact(PyObject *value) noexcept
    bint PyUnicode_IS_ASCII(PyObject *value) noexcept
    void *PyUnicode_DATA(PyObject *value) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *value) noexcept
    PyObject *PyUnicode_AsUTF8String(PyObject *value) noexcept
    bint PyLong_CheckExact(PyObject *value) noexcept
    long long PyLong_AsLongLongAndOverflow(PyObject *value, int *overflow) noexcept
    bint PyFloat_CheckExact(PyObject *value) noexcept
    double PyFloat_AS_DOUBLE(PyObject *value) noexcept
    bint PyBytes_CheckExact(PyObject *value) noexcept
    char *PyBytes_AsString(PyObject *value) noexcept
    Py_ssize_t PyBytes_Size(PyObject *value) noexcept
    bint PyTuple_CheckExact(PyObject *value) noexcept
    Py_ssize_t PyTuple_GET_SIZE(PyObject *value) noexcept
    PyObject *PyTuple_GET_ITEM(PyObject *value, Py_ssize_t at) noexcept
    bint PyList_CheckExact(PyObject *value) noexcept
    Py_ssize_t PyList_GET_SIZE(PyObject *value) noexcept
    PyObject *PyList_GET_ITEM(PyObject *value, Py_ssize_t at) noexcept
    bint PyDict_CheckExact(PyObject *value) noexcept
    bint PyDict_Next(PyObject *value, Py_ssize_t *at, PyObject **key, PyObject **item) noexcept
    object PyObject_Vectorcall(object callable, PyObject **args, size_t count, PyObject *names)

cdef extern from *:
    """
    #include <string.h>
    /* Whether `size` bytes hold the name of the module that a program is run as. Most pickles
       have no underscore at all. */
    static int says_main(const char *bytes, Py_ssize_t size) {
        const char *end = bytes + size, *at = bytes;
        while (end - at >= 8 && (at = memchr(at, '_', (size_t)(end - at - 7))) != NULL) {
            if (memcmp(at, "__main__", 8) == 0) return 1;
            at++;
        }
        return 0;
    }
    """
    bint says_main(const char *bytes, Py_ssize_t size) noexcept

__all__ = ["cut_blobs", "holds_instance", "lengths_of", "pickle_each", "unpickle_each"]

cdef enum:
    VIEWED_BYTES = 4096  # a blob below this is copied: that costs half of a view, and is read faster
    PICKLE = 0x80        # the first byte of every pickle from protocol 2 on

cdef tuple CALLBACK = ("buffer_callback",)
cdef object PROTOCOL = 5


def lengths_of(list blobs not None):
    """The sizes of the blobs as u32 little-endian, `0xFFFFFFFF` for None.

    Args:
        blobs: bytes, None, or anything else with the buffer protocol.

    Raises:
        InvalidPayload: a blob is too large for a length.
    """
    cdef Py_ssize_t i, count = length_of(blobs)
    cdef bytes lengths = PyBytes_FromStringAndSize(NULL, 4 * count)
    cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(lengths)
    cdef Py_ssize_t size
    for i in range(count):
        blob = blobs[i]
        if is_bytes(blob):
            size = PyBytes_GET_SIZE(blob)
        elif blob is None:
            bt_put32(at + 4 * i, BT_NO_BLOB)
            continue
        else:
            size = memoryview(blob).nbytes
        if <uint64_t>size >= BT_NO_BLOB:
            raise InvalidPayload(f"one row may have at most {BT_NO_BLOB - 1} bytes, got {size}")
        bt_put32(at + 4 * i, <uint32_t>size)
    return lengths


def cut_blobs(data, lengths, Py_ssize_t rows):
    """The blobs of `rows` rows: bytes, or, large ones, memoryviews of `data`; None where missing.

    Args:
        data, lengths: as `lengths_of` says; with the buffer protocol, contiguous.

    Raises:
        InvalidPayload: there are more or fewer lengths than rows, or they do not add up to the data.
    """
    cdef Py_buffer sizes, content
    PyObject_GetBuffer(lengths, &sizes, PyBUF_SIMPLE)
    try:
        if sizes.len != 4 * rows:
            raise InvalidPayload(f"{rows} rows need lengths of {4 * rows} bytes, got {sizes.len}")
        PyObject_GetBuffer(data, &content, PyBUF_SIMPLE)
        try:
            _check_total(<const uint8_t *>sizes.buf, rows, content.len)
            return _cut(data, <const char *>content.buf, <const uint8_t *>sizes.buf, rows)
        finally:
            PyBuffer_Release(&content)
    finally:
        PyBuffer_Release(&sizes)


cdef int _check_total(const uint8_t *lengths, Py_ssize_t rows, Py_ssize_t held) except -1:
    cdef uint64_t total = 0
    cdef uint32_t size
    cdef Py_ssize_t i
    for i in range(rows):
        size = bt_get32(lengths + 4 * i)
        if size != BT_NO_BLOB:
            total += size
    if total != <uint64_t>held:
        raise InvalidPayload(f"the lengths of {rows} blobs add up to {total} bytes, got {held}")
    return 0


cdef list _cut(object data, const char *at, const uint8_t *lengths, Py_ssize_t rows):
    cdef list blobs = PyList_New(rows)
    cdef object blob, view = None
    cdef Py_ssize_t i, first = 0
    cdef uint32_t size
    for i in range(rows):
        size = bt_get32(lengths + 4 * i)
        if size == BT_NO_BLOB:
            blob = None
            size = 0
        elif size < VIEWED_BYTES:
            blob = PyBytes_FromStringAndSize(at + first, size)
        else:
            if view is None:
                view = memoryview(data).cast("B")
            blob = view[first : first + size]
        Py_INCREF(blob)
        PyList_SET_ITEM(blobs, i, blob)
        first += size
    return blobs


def pickle_each(list values not None, dumps, keep, list large not None, unusual):
    """Each value as bytes of its own: a pickle of protocol 5, or what `unusual` makes of it.

    Args:
        dumps: `pickle.dumps`.
        keep: its `buffer_callback`, which puts what it takes out of a pickle into `large`.
        unusual: called with a value and its pickle where there is more to it: something is in
            `large` (which it empties), the pickle names `__main__`, or, then without a pickle,
            `dumps` raised. It returns the bytes.
    """
    cdef list blobs = []
    cdef bytes blob
    cdef Writer out = Writer(NULL, 0, 0)
    # Elements of one list are mostly alike: what one is too rich for is not tried on the others.
    cdef bint may_be_plain = True
    cdef PyObject *args[4]
    args[1] = <PyObject *>PROTOCOL
    args[2] = <PyObject *>keep
    try:
        for value in values:
            args[0] = <PyObject *>value
            may_be_plain = may_be_plain and put_pickle(&out, args[0])
            if may_be_plain:
                blobs.append(PyBytes_FromStringAndSize(out.data, out.used))
                continue
            try:
                blob = PyObject_Vectorcall(dumps, args, 2, <PyObject *>CALLBACK)
            except Exception:
                blob = unusual(value, None)
            else:
                if length_of(large) or says_main(PyBytes_AS_STRING(blob), PyBytes_GET_SIZE(blob)):
                    blob = unusual(value, blob)
            blobs.append(blob)
    finally:
        free(out.data)
    return blobs


def unpickle_each(list blobs not None, loads, unusual):
    """The value of each blob.

    Args:
        loads: `pickle.loads`, for bytes that are a pickle and nothing else.
        unusual: for all others, None too.
    """
    cdef list values = []
    for blob in blobs:
        if is_bytes(blob) and PyBytes_GET_SIZE(blob) and <uint8_t>PyBytes_AS_STRING(blob)[0] == PICKLE:
            values.append(loads(blob))
        else:
            values.append(unusual(blob))
    return values


def holds_instance(list values not None, type cls not None):
    """Whether one of the values is an instance of the class, by its own type."""
    cdef Py_ssize_t i
    for i in range(length_of(values)):
        if PyObject_TypeCheck(<object>item_of(values, i), <PyTypeObject *>cls):
            return True
    return False


# ---- plain values -----------------------------------------------------------------------
#
# What pickle costs for a small value is mostly its memo, in which it notes every object so that
# one that comes twice is written once, and read as one. Numbers and short texts need none, and a
# list or dictionary that nothing but its parent refers to cannot come twice. All else is pickle's.

cdef enum:
    DEPTH = 16           # of containers in containers
    TEXT_BYTES = 1024    # the longest text
    SHARED_BYTES = 64    # the longest text that others refer to, and that may come many times
    PLAIN_BYTES = 16384  # the longest pickle, about

cdef struct Writer:
    char *data
    size_t used
    size_t room


cdef inline bint put(Writer *out, int code, const void *argument, size_t size) noexcept:
    """Writes an opcode and its argument. False: there is no room for it."""
    cdef size_t room
    cdef char *grown
    if out.used + 1 + size > out.room:
        room = 2 * (out.used + 1 + size) + 256
        grown = <char *>realloc(out.data, room) if out.used <= PLAIN_BYTES else NULL
        if grown == NULL:
            return False
        out.data = grown
        out.room = room
    out.data[out.used] = <char>code
    memcpy(out.data + out.used + 1, argument, size)
    out.used += 1 + size
    return True


cdef bint put_pickle(Writer *out, PyObject *value) noexcept:
    """Writes a value as a pickle. False: it is none of those that need no memo."""
    cdef char protocol = 5
    out.used = 0
    return put(out, PICKLE, &protocol, 1) and put_value(out, value, DEPTH, True) and put(out, c".", &protocol, 0)


cdef bint put_value(Writer *out, PyObject *value, int depth, bint is_root) noexcept:
    cdef char nothing = 0
    if PyUnicode_CheckExact(value):
        return put_text(out, value)
    if PyLong_CheckExact(value):
        return put_int(out, value)
    if PyFloat_CheckExact(value):
        return put_float(out, PyFloat_AS_DOUBLE(value))
    if value == Py_None:
        return put(out, c"N", &nothing, 0)
    if value == Py_True:
        return put(out, 0x88, &nothing, 0)
    if value == Py_False:
        return put(out, 0x89, &nothing, 0)
    if PyBytes_CheckExact(value):
        return put_sized(out, c"C", c"B", PyBytes_AsString(value), PyBytes_Size(value), Py_REFCNT(value))
    if depth == 0:
        return False
    if PyTuple_CheckExact(value):
        # It may come twice: then as two, which nobody can tell if nothing in it can change.
        return put_tuple(out, value, depth - 1 if is_root or Py_REFCNT(value) == 1 else 0)
    if Py_REFCNT(value) != 1 and not is_root:
        return False
    if PyDict_CheckExact(value):
        return put_dict(out, value, depth - 1)
    return PyList_CheckExact(value) and put_list(out, value, depth - 1)


cdef bint put_text(Writer *out, PyObject *value) noexcept:
    cdef PyObject *encoded
    cdef bint done
    if PyUnicode_IS_ASCII(value):
        return put_sized(
            out, 0x8C, c"X", <const char *>PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value), Py_REFCNT(value)
        )
    if PyUnicode_GET_LENGTH(value) > TEXT_BYTES:
        return False
    encoded = PyUnicode_AsUTF8String(value)
    if encoded == NULL:
        PyErr_Clear()  # a lone surrogate
        return False
    done = put_sized(out, 0x8C, c"X", PyBytes_AsString(encoded), PyBytes_Size(encoded), Py_REFCNT(value))
    Py_DECREF(encoded)
    return done


cdef bint put_sized(
    Writer *out, int short_code, int code, const char *data, Py_ssize_t size, Py_ssize_t references
) noexcept:
    cdef uint8_t short_size
    cdef uint8_t long_size[4]
    if size > (TEXT_BYTES if references == 1 else SHARED_BYTES):
        return False
    if size < 256:
        short_size = <uint8_t>size
        return put(out, short_code, &short_size, 1) and put_bytes(out, data, size)
    bt_put32(long_size, <uint32_t>size)
    return put(out, code, long_size, 4) and put_bytes(out, data, size)


cdef inline bint put_bytes(Writer *out, const char *data, Py_ssize_t size) noexcept:
    return size == 0 or put(out, data[0], data + 1, size - 1)


cdef bint put_int(Writer *out, PyObject *value) noexcept:
    cdef int overflow = 0
    cdef long long number = PyLong_AsLongLongAndOverflow(value, &overflow)
    cdef uint8_t argument[9]
    if overflow:
        return False
    bt_put64(argument + 1, <uint64_t>number)
    if 0 <= number < 256:
        return put(out, c"K", argument + 1, 1)
    if 0 <= number < 65536:
        return put(out, c"M", argument + 1, 2)
    if -2147483648 <= number <= 2147483647:
        return put(out, c"J", argument + 1, 4)
    argument[0] = 8
    return put(out, 0x8A, argument, 9)


cdef bint put_float(Writer *out, double number) noexcept:
    cdef uint64_t bits
    cdef uint8_t argument[8]
    cdef int i
    memcpy(&bits, &number, 8)
    for i in range(8):
        argument[i] = <uint8_t>(bits >> (56 - 8 * i))
    return put(out, c"G", argument, 8)


cdef bint put_tuple(Writer *out, PyObject *value, int depth) noexcept:
    cdef char nothing = 0
    cdef Py_ssize_t i, count = PyTuple_GET_SIZE(value)
    if count == 0:
        return put(out, c")", &nothing, 0)
    if count > 3 and not put(out, c"(", &nothing, 0):
        return False
    for i in range(count):
        if not put_value(out, PyTuple_GET_ITEM(value, i), depth, False):
            return False
    return put(out, c"t" if count > 3 else 0x84 + <int>count, &nothing, 0)


cdef bint put_list(Writer *out, PyObject *value, int depth) noexcept:
    cdef char mark = c"("
    cdef Py_ssize_t i, count = PyList_GET_SIZE(value)
    if not put(out, c"]", &mark, 1):
        return False
    for i in range(count):
        if not put_value(out, PyList_GET_ITEM(value, i), depth, False):
            return False
    return put(out, c"e", &mark, 0)


cdef bint put_dict(Writer *out, PyObject *value, int depth) noexcept:
    cdef char mark = c"("
    cdef Py_ssize_t at = 0
    cdef PyObject *key
    cdef PyObject *item
    if not put(out, c"}", &mark, 1):
        return False
    while PyDict_Next(value, &at, &key, &item):
        if not (put_value(out, key, depth, False) and put_value(out, item, depth, False)):
            return False
    return put(out, c"u", &mark, 0)
