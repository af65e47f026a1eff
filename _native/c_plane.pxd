"""Every extern of zmqapi.h, message.h, plane.h and wake.h that Cython uses; the comments are there."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from c_scheduler cimport bt_scheduler
from c_wire cimport bt_body, bt_packet, bt_record, bt_record_type, bt_wire_buffer, bt_wire_rows, bt_writer


cdef extern from "zmqapi.h" nogil:
    ctypedef struct bt_zmsg:
        pass

    ctypedef void (*bt_zmq_free)(void *data, void *hint) noexcept

    ctypedef struct bt_zmq_table:
        void (*version)(int *major, int *minor, int *patch)
        int (*msg_init)(bt_zmsg *m)
        int (*msg_init_size)(bt_zmsg *m, size_t bytes)
        int (*msg_copy)(bt_zmsg *to, bt_zmsg *source)
        void *(*msg_data)(bt_zmsg *m)
        int (*msg_close)(bt_zmsg *m)
        int (*msg_get)(const bt_zmsg *m, int option)

    bt_zmq_table bt_zmq
    int BT_ZMQ_POLLIN
    int BT_ZMQ_SOURCE_FD
    const char *bt_zmq_load(const char *path)
    int bt_zmq_events(void *socket)
    int bt_zmq_descriptor(void *socket)
    void bt_zmq_widen(int descriptor)


cdef extern from "message.h" nogil:
    ctypedef struct bt_frame:
        const uint8_t *data
        size_t bytes

    ctypedef struct bt_message:
        uint32_t frames
        bt_frame *frame
        bt_zmsg *zmsg

    ctypedef struct bt_inbox:
        bt_zmsg *zmsg
        uint32_t count

    ctypedef struct bt_outgoing:
        bt_writer w
        uint32_t frames
        uint64_t frame_bytes

    bt_message *bt_message_new(bt_zmsg *zmsg, uint32_t frames)
    void bt_message_keep(bt_message *m)
    void bt_message_drop(bt_message *m)
    size_t bt_message_frame_size(const void *message, uint32_t frame)
    int bt_inbox_receive(bt_inbox *inbox, void *socket)
    void bt_inbox_free(bt_inbox *inbox)
    void bt_outgoing_start(bt_outgoing *o)
    void bt_outgoing_free(bt_outgoing *o)
    int bt_outgoing_add(bt_outgoing *o, void *data, size_t bytes, bt_zmq_free release, void *hint)
    bt_message *bt_outgoing_take(bt_outgoing *o)
    int bt_message_send(bt_message *m, void *socket, const void *identity, size_t identity_bytes)
    void bt_copy_range(
        const bt_message *m, const bt_wire_buffer *b, uint64_t start, uint64_t bytes, uint8_t *to
    )


cdef extern from "plane.h" nogil:
    int BT_TOKEN_BYTES
    ctypedef struct bt_plane:
        pass

    ctypedef struct bt_plane_options:
        const char *name
        const uint8_t *description
        uint32_t description_bytes
        void *router
        void *monitor
        bt_scheduler *scheduler
        int64_t max_queue_rows
        int64_t run_timeout_ns
        int groups
        int refuses_pickle
        uint64_t max_message_bytes
        uint64_t max_unread_bytes

    ctypedef enum bt_command_kind:
        BT_COMMAND_LOCAL
        BT_COMMAND_DIED
        BT_COMMAND_FAILING
        BT_COMMAND_DRAIN
        BT_COMMAND_DISMISS
        BT_COMMAND_END
        BT_COMMAND_TIMEOUT
        BT_COMMAND_WAKE
        BT_COMMAND_QUEUE_ROWS
        BT_COMMAND_REPLY
        BT_COMMAND_GROUPED

    ctypedef enum bt_event_kind:
        BT_EVENT_LOCAL
        BT_EVENT_READY
        BT_EVENT_KILL
        BT_EVENT_DRAINED
        BT_EVENT_ENDED
        BT_EVENT_ASK
        BT_EVENT_RAN
        BT_EVENT_GROUP
        BT_EVENT_LOST

    ctypedef struct bt_event:
        bt_event *next
        bt_event_kind kind
        char *token
        char *why
        uint64_t ticket
        int64_t at_ns
        bt_message *message

    ctypedef struct bt_plane_counters:
        uint64_t dropped
        uint64_t cut_off
        uint32_t workers
        uint32_t clients
        uint64_t keys
        uint32_t calls

    bt_plane *bt_plane_new(const bt_plane_options *options)
    void bt_plane_free(bt_plane *p)
    void bt_plane_run(bt_plane *p)
    void bt_plane_close(bt_plane *p)
    int bt_plane_command(
        bt_plane *p, bt_command_kind kind, const char *token, bt_message *message, int64_t number
    )
    void bt_plane_not_grouped(bt_plane *p, uint64_t ticket)
    void bt_plane_no_numbers(bt_plane *p)
    bt_event *bt_plane_events(bt_plane *p)
    void bt_event_free(bt_event *e)
    int bt_plane_describe(bt_plane *p, const uint8_t *description, uint32_t bytes)
    void bt_plane_lock(bt_plane *p)
    void bt_plane_unlock(bt_plane *p)
    void bt_plane_count(const bt_plane *p, bt_plane_counters *out)
    const char *bt_plane_check(const bt_plane *p)
    size_t bt_plane_workers(const bt_plane *p, uint32_t *pids, size_t capacity)


cdef extern from "wake.h" nogil:
    ctypedef struct bt_wake:
        int reader
        int writer

    int bt_wake_open(bt_wake *w)
    void bt_wake_close(bt_wake *w)
    void bt_wake_signal(const bt_wake *w)
    void bt_wake_clear(const bt_wake *w)
    int64_t bt_now_ns()
    unsigned int bt_sleep(const int *descriptors, int count, int64_t until_ns)
