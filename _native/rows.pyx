# cython: language_level=3, auto_pickle=False, autotestdict=False, boundscheck=False, wraparound=False
"""Rows of ndarrays, joined along axis 0 and cut apart again.

What it is      `np.stack`, `np.concatenate` and `np.split` for rows that are known to fit: one
                look at each array's header, then memcpy, without the GIL where it is much.
Guarantees      1. arrays of any layout and dtype, object too, are joined right: what is not
                C-contiguous plain memory takes numpy's own, slower way; 2. what is made here
                is C-contiguous, writable and owned by whoever gets it; 3. a pool's buffer is
                handed out again only when nothing refers to its memory any more.
Not promised    that arrays of different dtype or shape are converted: they are refused.
Why this shape  making 64 arrays costs 4 us, `np.stack` and `np.split` of 64 small ones ten
                times that: all of it looking at arguments (`bench/bench_payloads.py`).

An engine that has its arrays at hand does the same inline, with `bt_gather` and `bt_scatter`
of rows.h: a span per array (`PyArray_DATA`, `PyArray_NBYTES`) after checking that
`PyArray_CheckExact` holds, the descriptor is the same object or `PyArray_EquivTypes`, and
`PyArray_IS_C_CONTIGUOUS`; the target from `PyArray_NewFromDescr(&PyArray_Type, descr, ...)`,
which steals one reference to the descriptor. Never for `PyDataType_REFCHK` dtypes: their
bytes are references that somebody has to count.
"""

cimport numpy as cnp
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_New, PyList_SET_ITEM
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF, Py_REFCNT
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

import numpy as np

from c_rows cimport BT_ROWS_RELEASE_BYTES, bt_gather, bt_scatter, bt_span

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(PyTypeObject *cls, cnp.PyArray_Descr *descr, int ndim, const cnp.npy_intp *shape,
                                const cnp.npy_intp *strides, void *data, int flags, PyObject *base)
    PyTypeObject PyArray_Type
    bint PyArray_IS_C_CONTIGUOUS(cnp.ndarray array)
    bint PyArray_EquivTypes(cnp.PyArray_Descr *one, cnp.PyArray_Descr *other)
    bint PyDataType_REFCHK(cnp.PyArray_Descr *descr)

__all__ = ["VIEW_ROW_BYTES", "BufferPool", "is_sole_reference", "join_arrays", "join_blocks", "split_blocks", "split_rows"]

VIEW_ROW_BYTES = SHARED_ROW_BYTES

cdef enum:
    MAX_NDIM = 64  # numpy's own limit since 2.0; 32 before
    NPY_VSTRING = 2056  # numpy's number for StringDType, since 2.0
    ALIGNMENT = 64
    # A pool keeps no buffer of which a taker would use less than one part in so many.
    WASTE = 4
    # From so many bytes on memory is mapped anew by the system for each array.
    LARGE = 1 << 20


cdef cnp.ndarray new_array(cnp.ndarray like, int ndim, const cnp.npy_intp *shape):
    """A new C-contiguous array of the dtype of `like`."""
    cdef cnp.PyArray_Descr *descr = cnp.PyArray_DESCR(like)
    Py_INCREF(<object>descr)
    return <cnp.ndarray>PyArray_NewFromDescr(&PyArray_Type, descr, ndim, shape, NULL, NULL, 0, NULL)


cdef inline bint _is_plain(cnp.ndarray array):
    """Whether the array's bytes in order are its rows in order."""
    return PyArray_IS_C_CONTIGUOUS(array) and not has_references(array)


cdef bint has_references(cnp.ndarray array):
    # A StringDType's values point into an arena of its own, so a copy of them is no value.
    return PyDataType_REFCHK(cnp.PyArray_DESCR(array)) or cnp.PyArray_TYPE(array) == NPY_VSTRING


cdef object _mismatch(cnp.ndarray one, cnp.ndarray other):
    return ValueError(
        f"cannot be joined: {one.dtype} of shape {(<object>one).shape} "
        f"and {other.dtype} of shape {(<object>other).shape}"
    )


cdef cnp.ndarray _checked(object value):
    if not cnp.PyArray_Check(value):
        raise TypeError(f"expected an ndarray, got {type(value).__name__}")
    return <cnp.ndarray>value


cdef int _check_out(cnp.ndarray out, cnp.ndarray like, cnp.npy_intp rows, int first_axis) except -1:
    """Whether `out` has `rows` rows of the shape of `like` from `first_axis` on."""
    cdef int ndim = cnp.PyArray_NDIM(like) - first_axis
    if (
        cnp.PyArray_NDIM(out) != ndim + 1
        or cnp.PyArray_DIM(out, 0) != rows
        or memcmp(cnp.PyArray_DIMS(out) + 1, cnp.PyArray_DIMS(like) + first_axis, ndim * sizeof(cnp.npy_intp))
        or not PyArray_EquivTypes(cnp.PyArray_DESCR(out), cnp.PyArray_DESCR(like))
    ):
        raise ValueError(
            f"out is {out.dtype} of shape {(<object>out).shape}, "
            f"for {rows} rows of {like.dtype} {(<object>like).shape[first_axis:]}"
        )
    if not PyArray_IS_C_CONTIGUOUS(out) or not cnp.PyArray_ISWRITEABLE(out):
        raise ValueError("out must be C-contiguous and writable")
    return 0


def join_arrays(list arrays not None, cnp.ndarray out=None):
    """n arrays of one dtype and shape S as one of shape (n, *S), C-contiguous.

    Args:
        arrays: at least one.
        out: where to put it: C-contiguous, writable, of that dtype and shape; it is returned.

    Raises:
        ValueError: no array, or dtypes or shapes that differ.
    """
    cdef Py_ssize_t n = PyList_GET_SIZE(arrays)
    if n == 0:
        raise ValueError("cannot join no arrays")
    cdef cnp.ndarray first = _checked(arrays[0])
    cdef int ndim = cnp.PyArray_NDIM(first)
    cdef cnp.npy_intp shape[MAX_NDIM + 1]
    cdef Py_ssize_t i
    cdef bint plain
    if out is None:
        if ndim >= MAX_NDIM:
            raise ValueError(f"at most {MAX_NDIM - 1} axes, got {ndim}")
        shape[0] = n
        if ndim > 0:  # else there are no dimensions to point at
            memcpy(&shape[1], cnp.PyArray_DIMS(first), ndim * sizeof(cnp.npy_intp))
        out = new_array(first, ndim + 1, shape)
    else:
        _check_out(out, first, n, 0)
    plain = not has_references(first)
    cdef size_t row_bytes = cnp.PyArray_NBYTES(first)
    cdef bt_span *spans = <bt_span *>malloc(n * sizeof(bt_span))
    if spans == NULL:
        raise MemoryError()
    cdef cnp.ndarray array
    try:
        for i in range(n):
            array = _checked(<object>PyList_GET_ITEM(arrays, i))
            if (
                cnp.PyArray_NDIM(array) != ndim
                or ndim > 0
                and memcmp(cnp.PyArray_DIMS(array), cnp.PyArray_DIMS(first), ndim * sizeof(cnp.npy_intp)) != 0
                or not PyArray_EquivTypes(cnp.PyArray_DESCR(array), cnp.PyArray_DESCR(first))
            ):
                raise _mismatch(first, array)
            plain = plain and PyArray_IS_C_CONTIGUOUS(array)
            spans[i].data = cnp.PyArray_DATA(array)
            spans[i].bytes = row_bytes
        if plain:
            _gather(out, spans, n, row_bytes * n)
            return out
    finally:
        free(spans)
    for i in range(n):
        out[i, ...] = <object>PyList_GET_ITEM(arrays, i)
    return out


def join_blocks(list blocks not None, cnp.ndarray out=None):
    """Rows of several arrays as one array, C-contiguous.

    Args:
        blocks: (array, first row, rows) of each, at least one; arrays of one dtype and
            one shape beyond axis 0.
        out: as in `join_arrays`.

    Raises:
        ValueError: no block, dtypes or shapes that differ, or rows that an array has not.
    """
    cdef Py_ssize_t n = PyList_GET_SIZE(blocks)
    if n == 0:
        raise ValueError("cannot join no arrays")
    cdef cnp.ndarray first = _checked(blocks[0][0])
    cdef cnp.ndarray array
    cdef int ndim = cnp.PyArray_NDIM(first)
    cdef Py_ssize_t i, total = 0
    cdef cnp.npy_intp start, rows
    cdef cnp.npy_intp shape[MAX_NDIM]
    cdef size_t row_bytes = cnp.PyArray_ITEMSIZE(first)
    cdef bint plain = not has_references(first)
    cdef bt_span *spans = <bt_span *>malloc(n * sizeof(bt_span))
    if spans == NULL:
        raise MemoryError()
    try:
        if ndim == 0:
            raise ValueError("a 0-d array has no rows")
        for i in range(1, ndim):
            row_bytes *= cnp.PyArray_DIM(first, i)
        for i in range(n):
            block = <object>PyList_GET_ITEM(blocks, i)
            array = _checked(block[0])
            start = block[1]
            rows = block[2]
            if (
                cnp.PyArray_NDIM(array) != ndim
                or memcmp(
                    cnp.PyArray_DIMS(array) + 1, cnp.PyArray_DIMS(first) + 1, (ndim - 1) * sizeof(cnp.npy_intp)
                )
                or not PyArray_EquivTypes(cnp.PyArray_DESCR(array), cnp.PyArray_DESCR(first))
            ):
                raise _mismatch(first, array)
            if start < 0 or rows < 0 or start > cnp.PyArray_DIM(array, 0) - rows:
                raise ValueError(f"an array of {cnp.PyArray_DIM(array, 0)} rows has no {rows} from {start} on")
            plain = plain and PyArray_IS_C_CONTIGUOUS(array)
            spans[i].data = <char *>cnp.PyArray_DATA(array) + start * row_bytes
            spans[i].bytes = rows * row_bytes
            total += rows
        if out is None:
            memcpy(shape, cnp.PyArray_DIMS(first), ndim * sizeof(cnp.npy_intp))
            shape[0] = total
            out = new_array(first, ndim, shape)
        else:
            _check_out(out, first, total, 1)
        if plain:
            _gather(out, spans, n, total * row_bytes)
            return out
    finally:
        free(spans)
    total = 0
    for block in blocks:
        out[total : total + block[2]] = block[0][block[1] : block[1] + block[2]]
        total += block[2]
    return out


cdef void _gather(cnp.ndarray out, const bt_span *spans, size_t n, size_t size):
    cdef void *target = cnp.PyArray_DATA(out)
    if size < BT_ROWS_RELEASE_BYTES:
        bt_gather(target, spans, n)
        return
    with nogil:
        bt_gather(target, spans, n)


def split_rows(cnp.ndarray batch not None, bint owned=False):
    """The rows of an array as a list: ndarrays of their own, or scalars of a one-dimensional one.

    Args:
        owned: that nothing but the caller refers to `batch`, which owns its memory: rows of
            `VIEW_ROW_BYTES` and more are then views of it.

    Raises:
        ValueError: a 0-d array.
    """
    cdef int ndim = cnp.PyArray_NDIM(batch)
    if ndim == 0:
        raise ValueError("a 0-d array has no rows")
    if ndim == 1:
        # A structured scalar is a view of its array.
        return list(batch) if batch.dtype.names is None else [row.copy() for row in batch]
    cdef Py_ssize_t n = cnp.PyArray_DIM(batch, 0)
    if owned and _may_share(batch, n):
        return list(batch)
    if not _is_plain(batch):
        return [row.copy() for row in batch]
    return _copies(batch, n, NULL, ndim - 1)


def split_blocks(cnp.ndarray batch not None, list counts not None, bint owned=False):
    """An array as consecutive arrays of `counts` rows each, of their own.

    Args:
        owned: as in `split_rows`.

    Raises:
        ValueError: counts that do not add up to the rows of the array.
    """
    if cnp.PyArray_NDIM(batch) == 0:
        raise ValueError("a 0-d array has no rows")
    cdef Py_ssize_t n = PyList_GET_SIZE(counts)
    cdef Py_ssize_t total = cnp.PyArray_DIM(batch, 0)
    cdef Py_ssize_t i, at = 0
    cdef cnp.npy_intp *rows = <cnp.npy_intp *>malloc((n + 1) * sizeof(cnp.npy_intp))
    if rows == NULL:
        raise MemoryError()
    try:
        for i in range(n):
            rows[i] = <object>PyList_GET_ITEM(counts, i)
            at += rows[i]
            if rows[i] < 0:
                raise ValueError(f"a part of {rows[i]} rows")
        if at != total:
            raise ValueError(f"parts of {at} rows, from an array of {total}")
        if _is_plain(batch) and not (owned and _may_share(batch, total)):
            return _copies(batch, n, rows, cnp.PyArray_NDIM(batch))
    finally:
        free(rows)
    parts = []
    at = 0
    for count in counts:
        part = batch[at : at + count]
        parts.append(part if owned and _may_share(batch, total) else part.copy())
        at += count
    return parts


cdef bint _may_share(cnp.ndarray batch, Py_ssize_t rows):
    """Whether rows of the batch may be handed out as views: writable memory that is its own, and
    large enough rows. Strided or overlapping memory is copied: a view of it could be anything."""
    return (
        rows > 0
        and cnp.PyArray_CHKFLAGS(batch, cnp.NPY_ARRAY_OWNDATA | cnp.NPY_ARRAY_WRITEABLE)
        and PyArray_IS_C_CONTIGUOUS(batch)
        and cnp.PyArray_NBYTES(batch) // rows >= SHARED_ROW_BYTES
    )


cdef list _copies(cnp.ndarray batch, Py_ssize_t n, const cnp.npy_intp *rows, int ndim):
    """`n` new arrays over the batch in order: of rows[i] rows each, or, without `rows`, one row
    each and no row axis."""
    cdef list parts = PyList_New(n)
    cdef bt_span *spans = <bt_span *>malloc((n + 1) * sizeof(bt_span))
    if spans == NULL:
        raise MemoryError()
    cdef cnp.npy_intp shape[MAX_NDIM]
    cdef cnp.npy_intp *dims = cnp.PyArray_DIMS(batch)
    cdef Py_ssize_t i
    cdef size_t size = cnp.PyArray_NBYTES(batch)
    cdef cnp.ndarray part
    cdef const void *source = cnp.PyArray_DATA(batch)
    try:
        if rows == NULL:
            memcpy(shape, dims + 1, ndim * sizeof(cnp.npy_intp))
        else:
            memcpy(shape, dims, ndim * sizeof(cnp.npy_intp))
        for i in range(n):
            if rows != NULL:
                shape[0] = rows[i]
            part = new_array(batch, ndim, shape)
            spans[i].data = cnp.PyArray_DATA(part)
            spans[i].bytes = cnp.PyArray_NBYTES(part)
            Py_INCREF(part)
            PyList_SET_ITEM(parts, i, part)
        if size < BT_ROWS_RELEASE_BYTES:
            bt_scatter(source, spans, n)
        else:
            with nogil:
                bt_scatter(source, spans, n)
    finally:
        free(spans)
    return parts


def is_sole_reference(list box not None, Py_ssize_t at=0):
    """Whether the list's element is referred to by nothing but the list."""
    if not 0 <= at < PyList_GET_SIZE(box):
        raise IndexError(at)
    return Py_REFCNT(<object>PyList_GET_ITEM(box, at)) == 1


cdef Py_ssize_t _roomy(Py_ssize_t size) noexcept:
    """Room for the next batches too, which have other sizes: the next power of two. The pages that nothing
    is written to take no memory. A small buffer is made fast enough."""
    cdef Py_ssize_t room = LARGE
    if size <= LARGE // 2:
        return size
    while room < size:
        room *= 2
    return room


cdef class BufferPool:
    """Large batch buffers that are used again, so that their pages are mapped only once.

    A buffer is handed out again when nothing refers to it or to any view of it. May be used
    from any thread: a buffer is found and referred to without giving up the GIL in between.

    Args:
        keep: buffers to hold on to at most.
    """

    def __cinit__(self, Py_ssize_t keep=2):
        self._buffers = []
        self._keep = keep

    def take(self, dtype, tuple shape not None):
        """A writable C-contiguous array, its content undefined, its data at a multiple of 64.

        Args:
            dtype: an np.dtype without references to objects.
            shape: a tuple of ints.
        """
        cdef Py_ssize_t size = dtype.itemsize
        for length in shape:
            size *= length
        cdef cnp.ndarray buffer = self._free_buffer(size)
        cdef Py_ssize_t offset = self._aligned(buffer) - <char *>cnp.PyArray_DATA(buffer)
        return buffer[offset : offset + size].view(dtype).reshape(shape)

    def is_alone(self, array):
        """Whether no other object shows the array's memory: it has its own, or the pool's to itself.

        The array itself may be referred to by anybody.
        """
        if type(array) is not np.ndarray:
            return False
        cdef object base = array.base
        if base is None:
            return True
        if type(base) is not np.ndarray or base.base is not None:
            return False
        cdef Py_ssize_t i, known = 1  # the array's; and the variable's here
        for i in range(PyList_GET_SIZE(self._buffers)):
            known += PyList_GET_ITEM(self._buffers, i) == <PyObject *>base
        return Py_REFCNT(base) == known + 1

    cdef char *_aligned(self, cnp.ndarray buffer):
        """The first byte of a buffer that is a multiple of ALIGNMENT."""
        cdef size_t address = <size_t>cnp.PyArray_DATA(buffer)
        return <char *>((address + ALIGNMENT - 1) & ~<size_t>(ALIGNMENT - 1))

    cdef cnp.ndarray _free_buffer(self, Py_ssize_t size):
        """A buffer of at least `size` bytes after its first aligned one."""
        cdef Py_ssize_t i, unfit = -1
        cdef PyObject *candidate
        size += ALIGNMENT
        for i in range(PyList_GET_SIZE(self._buffers)):
            candidate = PyList_GET_ITEM(self._buffers, i)
            # 1: this list. Every view holds a reference to the buffer itself.
            if Py_REFCNT(<object>candidate) != 1:
                continue
            if size <= cnp.PyArray_NBYTES(<cnp.ndarray>candidate) <= WASTE * size:
                return <object>candidate
            if unfit < 0:
                unfit = i
        if unfit >= 0 and PyList_GET_SIZE(self._buffers) >= self._keep:
            del self._buffers[unfit]
        buffer = np.empty(_roomy(size), dtype=np.uint8)
        if PyList_GET_SIZE(self._buffers) < self._keep:
            self._buffers.append(buffer)
        return buffer
