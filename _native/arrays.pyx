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

cimport cython
cimport numpy as cnp
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF, Py_REFCNT
from libc.string cimport memcpy

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
    POOLED_BYTES = 65536   # a batch below this is cheaper to allocate than to look for
    POOL_LIMIT = 4         # batch arrays that are kept
    SHARED_BYTES = 16384   # a row from here on costs more to copy than to share


cdef object new_array(cnp.ndarray like, int dimensions, cnp.npy_intp *shape):
    Py_INCREF(like.descr)  # NewFromDescr takes a reference over
    return PyArray_NewFromDescr(&PyArray_Type, cnp.PyArray_DESCR(like), dimensions, shape, NULL, NULL, 0, NULL)


cdef object view_of(cnp.ndarray base, char *data, int dimensions, cnp.npy_intp *shape):
    """C-contiguous elements inside `base`, which the view keeps alive."""
    Py_INCREF(base.descr)
    view = PyArray_NewFromDescr(
        &PyArray_Type, cnp.PyArray_DESCR(base), dimensions, shape, NULL, data, cnp.NPY_ARRAY_CARRAY, NULL
    )
    Py_INCREF(base)  # SetBaseObject takes a reference over
    PyArray_SetBaseObject(view, <PyObject *>base)
    return view


cdef cnp.npy_intp bytes_a_row(cnp.ndarray x, int first_dimension) noexcept:
    cdef cnp.npy_intp bytes_ = cnp.PyArray_ITEMSIZE(x)
    cdef int i
    for i in range(first_dimension, cnp.PyArray_NDIM(x)):
        bytes_ *= cnp.PyArray_DIM(x, i)
    return bytes_


cdef cnp.ndarray take_batch(list pool, cnp.ndarray like, bint one_item, cnp.npy_intp rows):
    """An array of `rows` rows like those of `like` (one item, or rows along axis 0)."""
    cdef cnp.npy_intp shape[64]
    cdef cnp.ndarray kept
    cdef int skip = 0 if one_item else 1
    cdef int dimensions = cnp.PyArray_NDIM(like) - skip + 1
    cdef int i
    shape[0] = rows
    for i in range(1, dimensions):
        shape[i] = cnp.PyArray_DIM(like, i - 1 + skip)
    if rows * bytes_a_row(like, skip) < POOLED_BYTES:
        return new_array(like, dimensions, shape)
    for i in range(len(pool)):
        if fits(pool, i, like, dimensions, shape):
            kept = pool[i]
            return view_of(kept, cnp.PyArray_BYTES(kept), dimensions, shape)
    if len(pool) >= POOL_LIMIT:
        del pool[0]
    kept = new_array(like, dimensions, shape)
    pool.append(kept)
    return view_of(kept, cnp.PyArray_BYTES(kept), dimensions, shape)


cdef bint fits(list pool, Py_ssize_t i, cnp.ndarray like, int dimensions, cnp.npy_intp *shape):
    """Whether a kept array can be the batch: nothing else refers to it, and it has room."""
    cdef cnp.ndarray kept = pool[i]
    return (
        Py_REFCNT(kept) == 2  # the pool's and ours
        and kept.descr is like.descr
        and cnp.PyArray_NDIM(kept) == dimensions
        and cnp.PyArray_DIM(kept, 0) >= shape[0]
        and cnp.PyArray_CompareLists(cnp.PyArray_DIMS(kept) + 1, shape + 1, dimensions - 1)
    )


cdef int copy_rows(
    cnp.ndarray out, cnp.npy_intp at, cnp.ndarray source, bint one_item, cnp.npy_intp first, cnp.npy_intp rows
) except -1:
    """Copies rows of `source` (which is itself the row if `one_item`) to row `at` of `out`."""
    cdef cnp.npy_intp row_bytes
    cdef char *target
    if cnp.PyArray_IS_C_CONTIGUOUS(source):
        row_bytes = bytes_a_row(out, 1)
        target = cnp.PyArray_BYTES(out) + at * row_bytes
        memcpy(target, cnp.PyArray_BYTES(source) + first * row_bytes, rows * row_bytes)
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
        bytes_a_row(result, 1) >= SHARED_BYTES
        and Py_REFCNT(result) <= references
        and cnp.PyArray_CHKFLAGS(result, cnp.NPY_ARRAY_OWNDATA | cnp.NPY_ARRAY_CARRAY)
        and not PyDataType_REFCHK(cnp.PyArray_DESCR(result))
    )


cdef object rows_of(cnp.ndarray result, cnp.npy_intp at, cnp.npy_intp rows, bint one_item, bint share):
    """Row `at` of a result as an item, or `rows` rows from there as an array."""
    cdef cnp.ndarray out
    cdef cnp.npy_intp shape[64]
    cdef int dimensions = cnp.PyArray_NDIM(result)
    cdef int skip = 1 if one_item else 0
    cdef cnp.npy_intp row_bytes
    cdef int i
    if one_item and dimensions == 1:
        return PyArray_ToScalar(cnp.PyArray_BYTES(result) + at * cnp.PyArray_STRIDE(result, 0), result)
    if not cnp.PyArray_IS_C_CONTIGUOUS(result) or PyDataType_REFCHK(cnp.PyArray_DESCR(result)):
        return (result[at] if one_item else result[at : at + rows]).copy()
    row_bytes = bytes_a_row(result, 1)
    shape[0] = rows
    for i in range(skip, dimensions):
        shape[i - skip] = rows if i == 0 else cnp.PyArray_DIM(result, i)
    if share:
        return view_of(result, cnp.PyArray_BYTES(result) + at * row_bytes, dimensions - skip, shape)
    out = new_array(result, dimensions - skip, shape)
    memcpy(cnp.PyArray_BYTES(out), cnp.PyArray_BYTES(result) + at * row_bytes, rows * row_bytes)
    return out
