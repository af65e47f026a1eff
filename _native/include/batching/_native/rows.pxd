"""What other native modules use of rows.pyx."""

cimport numpy as cnp

cdef enum:
    # From this many bytes a row on, rows of a result that nobody else refers to are views of it:
    # the copy would cost more than making the array (bench/bench_payloads.py, section views).
    SHARED_ROW_BYTES = 32768


cdef class BufferPool:
    cdef list _buffers
    cdef Py_ssize_t _keep
    cdef cnp.ndarray _free_buffer(self, Py_ssize_t size)
    cdef char *_aligned(self, cnp.ndarray buffer)


cdef cnp.ndarray new_array(cnp.ndarray like, int ndim, const cnp.npy_intp *shape)
cdef bint has_references(cnp.ndarray array)
