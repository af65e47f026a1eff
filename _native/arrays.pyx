# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Rows of ndarrays: joined into a batch, and cut out of a result, one copy each.

Guarantees      1. A batch array is writable, C-contiguous and its model's own: it is
                   used again only when nothing but the pool refers to it.
                2. What is cut out is writable and nobody else's: a copy, or, where
                   `may_share` said so, a view of a result that has no other owner.
Not promised    anything about dtypes: the caller has compared them.
Costs           small rows: one allocation and one memcpy each, no Python
                instruction. bench/bench_payloads.py prints the figures.
"""

cimport numpy as cnp
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF, Py_REFCNT
from libc.string cimport memcpy

from batching._native.rows cimport SHARED_ROW_BYTES, BufferPool, has_references, new_array

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(
        PyTypeObject *type, cnp.PyArray_Descr *descr, int dimensions, cnp.npy_intp *shape, cnp.npy_intp *strides,
        void *data, int flags, PyObject *owner
    )
    object PyArray_ToScalar(void *data, cnp.ndarray array)
    int PyArray_SetBaseObject(cnp.ndarray array, PyObject *base) except -1
    PyTypeObject PyArray_Type

cdef enum:
    POOLED_BYTES = 65536  # a batch below this is cheaper to allocate than to look for
    MAX_DIMENSIONS = 65  # NumPy's 64 and the row axis
    RELEASE_BYTES = 262144  # a copy from here on is worth giving up the GIL for


cdef object view_of(cnp.ndarray base, cnp.ndarray like, char *data, int dimensions, cnp.npy_intp *shape):
    """C-contiguous elements of the dtype of `like` inside `base`, which the view keeps alive."""
    Py_INCREF(like.descr)  # NewFromDescr takes a reference over
    view = PyArray_NewFromDescr(
        &PyArray_Type, cnp.PyArray_DESCR(like), dimensions, shape, NULL, data, cnp.NPY_ARRAY_CARRAY, NULL
    )
    Py_INCREF(base)  # SetBaseObject takes a reference over
    PyArray_SetBaseObject(view, <PyObject *>base)
    return view


cdef inline void copy(char *target, const char *source, size_t size) noexcept:
    if size < RELEASE_BYTES:
        memcpy(target, source, size)
        return
    with nogil:
        memcpy(target, source, size)


cdef cnp.npy_intp bytes_a_row(cnp.ndarray x, int first_dimension) noexcept:
    cdef cnp.npy_intp bytes_ = cnp.PyArray_ITEMSIZE(x)
    cdef int i
    for i in range(first_dimension, cnp.PyArray_NDIM(x)):
        bytes_ *= cnp.PyArray_DIM(x, i)
    return bytes_


cdef cnp.ndarray take_batch(BufferPool pool, cnp.ndarray like, bint one_item, cnp.npy_intp rows):
    """An array of `rows` rows like those of `like` (one item, or rows along axis 0)."""
    cdef cnp.npy_intp shape[MAX_DIMENSIONS]
    cdef cnp.ndarray buffer
    cdef int skip = 0 if one_item else 1
    cdef int dimensions = cnp.PyArray_NDIM(like) - skip + 1
    cdef cnp.npy_intp size = rows * bytes_a_row(like, skip)
    shape[0] = rows
    if dimensions > 1:  # else there may be no dimensions to point at
        memcpy(&shape[1], cnp.PyArray_DIMS(like) + skip, (dimensions - 1) * sizeof(cnp.npy_intp))
    if size < POOLED_BYTES:
        return new_array(like, dimensions, shape)
    buffer = pool._free_buffer(size)
    return view_of(buffer, like, pool._aligned(buffer), dimensions, shape)


cdef int copy_rows(
    cnp.ndarray out, cnp.npy_intp at, cnp.ndarray source, bint one_item, cnp.npy_intp first, cnp.npy_intp rows
) except -1:
    """Copies rows of `source` (which is itself the row if `one_item`) to row `at` of `out`."""
    cdef cnp.npy_intp row_bytes
    cdef char *target
    if cnp.PyArray_IS_C_CONTIGUOUS(source):
        row_bytes = bytes_a_row(out, 1)
        target = cnp.PyArray_BYTES(out) + at * row_bytes
        copy(target, cnp.PyArray_BYTES(source) + first * row_bytes, rows * row_bytes)
    elif one_item:
        out[at] = source
    else:
        out[at : at + rows] = source[first : first + rows]
    return 0


cdef bint may_share(cnp.ndarray result, Py_ssize_t references) noexcept:
    """Whether rows of a result may be given out as views of it.

    It must own its memory, be writable and contiguous, have large rows, and be
    referred to by nobody but the `references` that its holders know of.
    """
    return (
        bytes_a_row(result, 1) >= SHARED_ROW_BYTES
        and Py_REFCNT(result) <= references
        and cnp.PyArray_CHKFLAGS(result, cnp.NPY_ARRAY_OWNDATA | cnp.NPY_ARRAY_CARRAY)
        and not has_references(result)
    )


cdef object rows_of(cnp.ndarray result, cnp.npy_intp at, cnp.npy_intp rows, bint one_item, bint share):
    """Row `at` of a result as an item, or `rows` rows from there as an array."""
    cdef cnp.ndarray out
    cdef cnp.npy_intp shape[MAX_DIMENSIONS]
    cdef int dimensions = cnp.PyArray_NDIM(result)
    cdef int skip = 1 if one_item else 0
    cdef cnp.npy_intp row_bytes
    cdef int i
    if one_item and dimensions == 1:
        if cnp.PyArray_TYPE(result) == cnp.NPY_VOID:
            return result[at].copy()  # a structured scalar is a view of its array
        return PyArray_ToScalar(cnp.PyArray_BYTES(result) + at * cnp.PyArray_STRIDE(result, 0), result)
    if not cnp.PyArray_IS_C_CONTIGUOUS(result) or has_references(result):
        return (result[at] if one_item else result[at : at + rows]).copy()
    row_bytes = bytes_a_row(result, 1)
    shape[0] = rows
    for i in range(skip, dimensions):
        shape[i - skip] = rows if i == 0 else cnp.PyArray_DIM(result, i)
    if share:
        return view_of(result, result, cnp.PyArray_BYTES(result) + at * row_bytes, dimensions - skip, shape)
    out = new_array(result, dimensions - skip, shape)
    copy(cnp.PyArray_BYTES(out), cnp.PyArray_BYTES(result) + at * row_bytes, rows * row_bytes)
    return out
