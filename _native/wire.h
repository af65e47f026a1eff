/* The wire format: docs/protocol.md in C.
 *
 * Reading allocates nothing: a record is a view into the packet that holds it,
 * valid while the packet's memory is. Every length is checked before it is
 * used, against the packet, against the frames that came with it, and against
 * the limits below. Writing appends to a growable buffer that its owner keeps
 * for the next packet.
 *
 * A reader works in two steps: bt_packet_open and bt_packet_next walk the
 * records, bt_record_check reads one record's body. A message is obeyed whole or
 * not at all, so whoever acts on records has checked all of them before.
 */
#ifndef BT_WIRE_H
#define BT_WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BT_WIRE_VERSION 1
#define BT_PACKET_HEADER 16
#define BT_RECORD_HEADER 16
#define BT_ROWS_FIXED_BYTES 48   /* of a rows record, up to the descriptors */
#define BT_DESCRIPTOR_BYTES 16
#define BT_INLINE_MAX_BYTES 16384

#define BT_MAX_MESSAGE_BYTES 2147483648u
#define BT_MAX_RECORDS 65536u
#define BT_MAX_ROWS 2147483647u
#define BT_MAX_BUFFERS 4096u
#define BT_MAX_KEY_BYTES 1048576u
#define BT_MAX_NAME_BYTES 255u
#define BT_MAX_TEXT_BYTES 1048576u /* description, metadata, texts of an error */

#define BT_VAR (-1)                /* a buffer's row_bytes: one blob per row */
#define BT_NO_BLOB 0xFFFFFFFFu     /* a row's length in a VAR buffer: nothing there */

typedef enum {
    BT_HELLO = 1, BT_WELCOME = 2, BT_CALL = 3, BT_ANSWER = 4, BT_ERROR = 5, BT_CANCEL = 6,
    BT_BATCH = 7, BT_RESULT = 8, BT_PING = 9, BT_PONG = 10, BT_STOP = 11, BT_BYE = 12,
} bt_record_type;

typedef enum { BT_ROLE_CLIENT = 1, BT_ROLE_WORKER = 2, BT_ROLE_DISPATCHER = 3 } bt_role;

typedef enum {
    BT_E_INVALID_PAYLOAD = 1, BT_E_OVERLOADED = 2, BT_E_DEADLINE = 3, BT_E_RUNNER = 4,
    BT_E_WORKER_DIED = 5, BT_E_UNREACHABLE = 6, BT_E_CLOSED = 7, BT_E_MALFORMED = 8,
    BT_E_RESULT = 9,
} bt_error_code;

typedef enum { BT_METHOD_RUN = 0, BT_METHOD_STATISTICS = 1 } bt_method;

/* What is wrong with a packet or a record; 0 is fine. */
typedef enum {
    BT_WIRE_OK = 0,
    BT_WIRE_MAGIC = 1,       /* not ours */
    BT_WIRE_OTHER_VERSION = 2,
    BT_WIRE_TRUNCATED = 3,   /* ends before what its lengths announce */
    BT_WIRE_RESERVED = 4,    /* a field that must be zero is not */
    BT_WIRE_LIMIT = 5,       /* above a limit */
    BT_WIRE_COUNT = 6,       /* counts, sizes or frames that do not add up */
    BT_WIRE_VALUE = 7,       /* a value without a meaning (role, code, budget, id) */
} bt_wire_verdict;

/* ---- reading: a packet ------------------------------------------------- */

typedef struct {
    uint8_t type;
    uint16_t frames;      /* of the message, owned by this record */
    uint32_t first_frame; /* the first of them; frame 0 is the packet itself */
    uint32_t bytes;       /* header included */
    uint64_t id;
    const uint8_t *data;  /* the record, header included */
} bt_record;

typedef struct {
    const uint8_t *data;
    size_t bytes;
    size_t at;            /* offset of the next record */
    uint32_t left;        /* records not read yet */
    uint32_t next_frame;
    uint32_t frames;      /* of the whole message, frame 0 included */
} bt_packet;

/* Checks the header of frame 0 of a message of `frames` frames (>= 1). */
bt_wire_verdict bt_packet_open(bt_packet *p, const void *data, size_t bytes, uint32_t frames);

/* Steps to the next record: 1 and *out filled, 0 at a proper end, else minus a
 * bt_wire_verdict. After a negative answer the packet must not be read on. */
int bt_packet_next(bt_packet *p, bt_record *out);

/* ---- reading: a record's body ------------------------------------------ */

typedef struct {
    int64_t budget_ns;    /* -1: none */
    uint32_t rows;
    uint32_t padded_rows;
    uint32_t client;         /* of a CALL: whose call it is among those of one connection; else 0 */
    uint16_t method;
    uint16_t buffers;
    uint32_t key_bytes;
    uint32_t meta_bytes;
    const uint8_t *key;
    const uint8_t *meta;
    const uint8_t *descriptors;
    const uint8_t *inlined;  /* the first byte after key and metadata */
    uint32_t first_frame;
    uint64_t data_bytes;     /* over all buffers, inline and in frames */
    uint8_t is_plain;        /* rows of a fixed size each, and nothing in frames */
} bt_wire_rows;

typedef struct {
    uint64_t bytes;          /* of data, all rows */
    int32_t row_bytes;       /* or BT_VAR */
    uint32_t frames;         /* 0: inline */
    uint32_t first_frame;
    const uint8_t *lengths;  /* VAR: u32 x rows, little-endian; else NULL */
    const uint8_t *data;     /* inline data, or NULL */
} bt_wire_buffer;

typedef struct {
    uint16_t left;
    uint32_t next_frame;
    const uint8_t *descriptor;
    const uint8_t *inlined;
} bt_wire_walk;

/* Sizes of the message's frames by number, for the checks. */
typedef size_t (*bt_frame_size)(const void *message, uint32_t frame);

void bt_wire_rows_walk(const bt_wire_rows *rows, bt_wire_walk *w);
/* The next buffer; 0 at the end. */
int bt_wire_rows_next(const bt_wire_rows *rows, bt_wire_walk *w, bt_wire_buffer *out);

/* The bytes of `rows` rows from `first_row` on within a VAR buffer's data. */
uint64_t bt_wire_blob_bytes(const uint8_t *lengths, uint32_t first_row, uint32_t rows);

typedef struct {
    uint16_t role;
    uint16_t lowest_version;
    uint16_t highest_version;
    uint32_t credits;
    uint32_t pid;
    uint32_t name_bytes;
    uint32_t description_bytes;
    const uint8_t *name;
    const uint8_t *description;
} bt_wire_greeting;

typedef struct {
    uint16_t code;
    int32_t exit_code;
    int64_t number;            /* predicted nanoseconds, or a signal; -1: none */
    uint32_t text_bytes[4];    /* message, type name, traceback, pickled cause */
    const uint8_t *texts[4];
} bt_wire_error;

typedef union {
    bt_wire_rows rows;         /* CALL, BATCH, RESULT, ANSWER */
    bt_wire_greeting greeting; /* HELLO, WELCOME */
    bt_wire_error error;       /* ERROR */
} bt_body;

/* Checks a record's body in full, whatever its type; *out is filled for those
 * that have one. Afterwards the walk needs no further check. */
bt_wire_verdict bt_record_check(const bt_record *r, bt_frame_size frame_size, const void *message,
                                bt_body *out);

/* ---- writing ----------------------------------------------------------- */

/* A packet under construction. Zero-initialise it; bt_writer_free at the end.
 * An allocation that fails sets `failed` and turns every later call into
 * nothing, so that only the end needs a check. */
typedef struct {
    uint8_t *data;
    size_t bytes;
    size_t capacity;
    size_t record;     /* offset of the record being written */
    uint32_t records;
    int failed;
} bt_writer;

/* Starts a packet; what the writer held before is overwritten. */
void bt_writer_start(bt_writer *w);
/* Fills in the header. 0, or -1 when memory or a limit ended it on the way. */
int bt_writer_finish(bt_writer *w);
void bt_writer_free(bt_writer *w);
/* Room for so many more bytes at once, where a caller knows them. */
void bt_writer_reserve(bt_writer *w, size_t bytes);

void bt_write_empty(bt_writer *w, bt_record_type type, uint64_t id);
void bt_write_greeting(bt_writer *w, bt_record_type type, const bt_wire_greeting *g);
void bt_write_error(bt_writer *w, uint64_t id, const bt_wire_error *e);

/* A rows record in steps: begin, a descriptor per buffer, keys, then per buffer
 * lengths (VAR) and data (inline), then end. Pointers may be NULL where the
 * caller fills the space itself; each returns the place in the writer's memory,
 * valid until the next call, or NULL after a failure. */
void bt_write_rows_begin(bt_writer *w, bt_record_type type, uint64_t id, int64_t budget_ns,
                         uint32_t rows, uint32_t padded_rows, uint16_t method, uint16_t buffers,
                         uint32_t key_bytes, uint32_t meta_bytes);
/* Whose call it is: right after its rows_begin. */
void bt_write_client(bt_writer *w, uint32_t client);
void bt_write_descriptor(bt_writer *w, uint64_t bytes, int32_t row_bytes, uint32_t frames);
uint8_t *bt_write_padded(bt_writer *w, const void *data, size_t bytes);
void bt_write_rows_end(bt_writer *w, uint16_t frames);

/* Or at once, where there are no frames and the size is known: begins a rows record of `bytes` bytes, with
 * its key, and ends it. Returns the place of the descriptors; the caller writes these and, behind the key, the data. */
uint8_t *bt_write_rows_whole(bt_writer *w, bt_record_type type, uint64_t id, int64_t budget_ns, uint32_t rows,
                             uint32_t padded_rows, uint16_t buffers, const uint8_t *key, uint32_t key_bytes,
                             size_t bytes);

/* Drops the record being written, and with it what failed in it. */
void bt_write_abort(bt_writer *w);

/* Room the writer needs for a record of this shape, header included. */
size_t bt_wire_rows_bytes(uint16_t buffers, size_t key_bytes, size_t meta_bytes);

/* ---- little-endian loads and stores, any alignment ---------------------- */

static inline size_t bt_pad8(size_t n) { return (n + 7u) & ~(size_t)7u; }

/* Zeros behind `bytes` bytes, which end at `end`, up to the next multiple of 8; the end of those. */
static inline uint8_t *bt_put_padding(uint8_t *end, size_t bytes) {
    for (; bytes % 8 != 0; bytes++) *end++ = 0;
    return end;
}

/* Copies, which are one instruction each. Put together byte by byte compilers take a vector register to it. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define BT_LITTLE(bits, v) __builtin_bswap##bits(v)
#else
#define BT_LITTLE(bits, v) (v)
#endif
#define BT_LOAD_AND_STORE(bits) \
    static inline uint##bits##_t bt_get##bits(const uint8_t *p) { \
        uint##bits##_t v; \
        memcpy(&v, p, sizeof v); \
        return BT_LITTLE(bits, v); \
    } \
    static inline void bt_put##bits(uint8_t *p, uint##bits##_t v) { \
        v = BT_LITTLE(bits, v); \
        memcpy(p, &v, sizeof v); \
    }
BT_LOAD_AND_STORE(16)
BT_LOAD_AND_STORE(32)
BT_LOAD_AND_STORE(64)

#endif
