# libzmq as pyzmq brought it, for every module here that touches a socket or a message: each holds a
# copy of the core of its own, whose table of functions is filled when the module is imported.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from c_plane cimport *

import zmq
import zmq.backend.cython._zmq as _zmq


cdef load_libzmq():
    cdef bytes path = _zmq.__file__.encode()
    cdef const char *missing = bt_zmq_load(path)
    if missing is not NULL:
        raise ImportError(
            f"pyzmq {zmq.__version__} (libzmq {zmq.zmq_version()}) has no usable symbols for the native "
            f"data plane: {missing.decode()}; the plain one works"
        )


load_libzmq()


cdef bt_message *message_of(frames) except NULL:
    """A message of these frames, copied."""
    cdef bt_message *message
    cdef bytes frame
    cdef list parts = [bytes(part) for part in frames]
    cdef bt_zmsg *zmsg = <bt_zmsg *>malloc(len(parts) * sizeof(bt_zmsg))
    cdef Py_ssize_t made = 0
    if zmsg is NULL:
        raise MemoryError
    for frame in parts:
        if bt_zmq.msg_init_size(&zmsg[made], PyBytes_GET_SIZE(frame)) != 0:
            break
        memcpy(bt_zmq.msg_data(&zmsg[made]), PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
        made += 1
    message = bt_message_new(zmsg, <unsigned int>made) if made == len(parts) else NULL
    if message is NULL:
        while made:
            made -= 1
            bt_zmq.msg_close(&zmsg[made])
    free(zmsg)
    if message is NULL:
        raise MemoryError
    return message
