"""Joining and splitting ndarrays along axis 0, for native callers."""

cimport numpy as cnp

from batching._native.rows cimport BufferPool

cdef cnp.ndarray take_batch(BufferPool pool, cnp.ndarray like, bint one_item, cnp.npy_intp rows)
cdef int copy_rows(
    cnp.ndarray out, cnp.npy_intp at, cnp.ndarray source, bint one_item, cnp.npy_intp first, cnp.npy_intp rows
) except -1
cdef bint may_share(cnp.ndarray result, Py_ssize_t references) noexcept
cdef object rows_of(cnp.ndarray result, cnp.npy_intp at, cnp.npy_intp rows, bint one_item, bint share)
