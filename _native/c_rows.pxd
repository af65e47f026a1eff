# The only place that declares rows.h.
cdef extern from "rows.h" nogil:
    const size_t BT_ROWS_RELEASE_BYTES

    ctypedef struct bt_span:
        void *data
        size_t bytes

    size_t bt_gather(void *out, const bt_span *spans, size_t count)
    size_t bt_scatter(const void *source, const bt_span *spans, size_t count)
