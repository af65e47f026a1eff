# Keys of calls, batches and answers that are one ndarray whose bytes are all there is to it: known by dtype
# and row shape, or by the key, so that these need no look at a signature.

cimport cython
cimport numpy as cnp

cdef extern from "numpy/arrayobject.h":
    bint PyDataType_REFCHK(cnp.PyArray_Descr *descr) nogil

@cython.final
@cython.internal
cdef class ArrayKey:
    """The key of calls, or answers, that are one ndarray of this dtype and row shape."""

    cdef bytes key
    cdef int type_num
    cdef int row_ndim
    cdef cnp.npy_intp row_shape[32]
    cdef size_t row_bytes, alignment
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
    made.alignment = made.dtype.alignment
    made.row_ndim = cnp.PyArray_NDIM(array) - first
    made.row_bytes = cnp.PyArray_ITEMSIZE(array)
    for axis in range(made.row_ndim):
        made.row_shape[axis] = cnp.PyArray_DIM(array, axis + first)
        made.row_bytes *= <size_t>made.row_shape[axis]
    return made
