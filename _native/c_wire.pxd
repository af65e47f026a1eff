from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "wire.h" nogil:
    int BT_VAR
    uint32_t BT_NO_BLOB
    size_t BT_INLINE_MAX_BYTES
    size_t BT_PACKET_HEADER
    uint64_t BT_MAX_MESSAGE_BYTES
    size_t bt_pad8(size_t n)
    size_t bt_wire_rows_bytes(uint16_t buffers, size_t key_bytes, size_t meta_bytes)
    size_t BT_RECORD_HEADER
    size_t BT_DESCRIPTOR_BYTES
    int BT_HELLO, BT_WELCOME, BT_CALL, BT_ANSWER, BT_ERROR, BT_CANCEL, BT_BATCH, BT_RESULT
    int BT_PING, BT_PONG, BT_STOP, BT_BYE

    int BT_METHOD_STATISTICS
    int BT_E_DEADLINE

    ctypedef int bt_record_type
    ctypedef int bt_wire_verdict

    ctypedef struct bt_record:
        uint8_t type
        uint16_t frames
        uint32_t first_frame
        uint32_t bytes
        uint64_t id
        const uint8_t *data

    ctypedef struct bt_packet:
        uint32_t left

    ctypedef struct bt_wire_rows:
        int64_t budget_ns
        uint32_t rows
        uint32_t padded_rows
        uint32_t client
        uint16_t method
        uint16_t buffers
        uint32_t key_bytes
        uint32_t meta_bytes
        const uint8_t *key
        const uint8_t *meta
        uint64_t data_bytes

    ctypedef struct bt_wire_buffer:
        uint64_t bytes
        int32_t row_bytes
        uint32_t frames
        uint32_t first_frame
        const uint8_t *lengths
        const uint8_t *data

    ctypedef struct bt_wire_walk:
        uint16_t left

    ctypedef size_t (*bt_frame_size)(const void *message, uint32_t frame) noexcept

    ctypedef struct bt_wire_greeting:
        uint16_t role
        uint16_t lowest_version
        uint16_t highest_version
        uint32_t credits
        uint32_t pid
        uint32_t name_bytes
        uint32_t description_bytes
        const uint8_t *name
        const uint8_t *description

    ctypedef struct bt_wire_error:
        uint16_t code
        int32_t exit_code
        int64_t number
        uint32_t text_bytes[4]
        const uint8_t *texts[4]

    ctypedef union bt_body:
        bt_wire_rows rows
        bt_wire_greeting greeting
        bt_wire_error error

    ctypedef struct bt_writer:
        uint8_t *data
        size_t bytes
        uint32_t records
        int failed

    bt_wire_verdict bt_packet_open(bt_packet *p, const void *data, size_t bytes, uint32_t frames)
    int bt_packet_next(bt_packet *p, bt_record *out)
    bt_wire_verdict bt_record_check(
        const bt_record *r, bt_frame_size frame_size, const void *message, bt_body *out
    )
    void bt_wire_rows_walk(const bt_wire_rows *rows, bt_wire_walk *w)
    int bt_wire_rows_next(const bt_wire_rows *rows, bt_wire_walk *w, bt_wire_buffer *out)

    void bt_writer_start(bt_writer *w)
    int bt_writer_finish(bt_writer *w)
    void bt_writer_free(bt_writer *w)
    void bt_writer_reserve(bt_writer *w, size_t bytes)
    void bt_write_empty(bt_writer *w, bt_record_type type, uint64_t id)
    void bt_write_greeting(bt_writer *w, bt_record_type type, const bt_wire_greeting *g)
    void bt_write_error(bt_writer *w, uint64_t id, const bt_wire_error *e)
    void bt_write_rows_begin(
        bt_writer *w, bt_record_type type, uint64_t id, int64_t budget_ns, uint32_t rows,
        uint32_t padded_rows, uint16_t method, uint16_t buffers, uint32_t key_bytes, uint32_t meta_bytes
    )
    uint8_t *bt_write_rows_whole(
        bt_writer *w, bt_record_type type, uint64_t id, int64_t budget_ns, uint32_t rows, uint32_t padded_rows,
        uint16_t buffers, const uint8_t *key, uint32_t key_bytes, size_t bytes
    )
    size_t bt_wire_rows_bytes(uint16_t buffers, size_t key_bytes, size_t meta_bytes)
    size_t bt_pad8(size_t n)
    void bt_write_client(bt_writer *w, uint32_t client)
    void bt_write_descriptor(bt_writer *w, uint64_t bytes, int32_t row_bytes, uint32_t frames)
    uint8_t *bt_write_padded(bt_writer *w, const void *data, size_t bytes)
    void bt_write_rows_end(bt_writer *w, uint16_t frames)

    uint32_t bt_get32(const uint8_t *p)
    uint64_t bt_get64(const uint8_t *p)
    void bt_put32(uint8_t *p, uint32_t v)
    void bt_put64(uint8_t *p, uint64_t v)


cdef extern from "trust.h" nogil:
    int bt_trust_key(
        const uint8_t *key, uint32_t key_bytes, const uint8_t *row_bytes, uint16_t buffers, uint8_t *rules
    )
