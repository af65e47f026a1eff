/* Messages: what was received, kept by reference, and what is about to be sent.
 *
 * A received message is immutable and counted: every call in it holds a
 * reference, and so does every outgoing frame that is a view of it, whichever
 * thread libzmq releases that in. An outgoing message is a packet under
 * construction and the frames that follow it.
 */
#ifndef BT_MESSAGE_H
#define BT_MESSAGE_H

#include <stdatomic.h>
#include <stdint.h>

#include "wire.h"
#include "zmqapi.h"

/* ---- received ----------------------------------------------------------- */

typedef struct {
    const uint8_t *data;
    size_t bytes;
} bt_frame;

typedef struct bt_message {
    struct bt_message *next; /* for whoever queues it */
    atomic_uint references;
    uint32_t calls;          /* of a ledger: one reference, whatever their number */
    uint32_t frames;
    uint64_t bytes;          /* of all frames */
    uint64_t spare_bytes;    /* more that its frames keep alive: they are views of larger ones */
    bt_frame *frame;         /* views of the frames below */
    bt_zmsg zmsg[];
} bt_message;

/* Takes over `frames` zmq messages, which are empty afterwards. One reference
 * is the caller's. NULL, and nothing taken, when out of memory. */
bt_message *bt_message_new(bt_zmsg *zmsg, uint32_t frames);
void bt_message_keep(bt_message *m);
void bt_message_drop(bt_message *m);
/* For bt_record_check. */
size_t bt_message_frame_size(const void *message, uint32_t frame);
/* Before the message is sent or shared: copies what it shows of larger frames, so
 * that it keeps nothing else alive. Changes nothing when out of memory. */
void bt_message_own(bt_message *m);

/* Frames as they come off a socket, before their number is known. */
typedef struct {
    bt_zmsg *zmsg;
    uint32_t count;
    uint32_t capacity;
} bt_inbox;

/* Receives one whole message without waiting. 1 with its frames in the inbox, 2 with as many
 * of the first as there was memory for (two at least) and the others lost, 0 if there is none, -1 on an
 * error of the socket (its context ended), or if there is no memory at all: then nothing is lost. */
int bt_inbox_receive(bt_inbox *in, void *socket);
void bt_inbox_clear(bt_inbox *in);
void bt_inbox_free(bt_inbox *in);

/* ---- to be sent ---------------------------------------------------------- */

typedef struct {
    bt_writer w;
    bt_zmsg *frame;
    uint32_t frames;
    uint32_t capacity;
    uint64_t frame_bytes;    /* of the frames behind the packet */
    uint64_t spare_bytes;    /* more that they keep alive */
    uint64_t max_bytes;      /* of a message; 0: BT_MAX_MESSAGE_BYTES */
} bt_outgoing;

void bt_outgoing_start(bt_outgoing *o);
void bt_outgoing_free(bt_outgoing *o);
/* Frames that are written already; -1 after a failure to add one. */
void bt_release_block(void *data, void *hint); /* for memory of malloc */
int bt_outgoing_add(bt_outgoing *o, void *data, size_t bytes, bt_zmq_free release, void *hint);

/* Ends the packet and moves it, with its frames, into a message of its own;
 * NULL when a limit or memory ended it on the way. The next packet is started. */
bt_message *bt_outgoing_take(bt_outgoing *o);

/* Sends a message of ours, after the identity if there is one; without waiting.
 * 0 when libzmq took it, else its errno and the message is untouched. */
int bt_message_send(bt_message *m, void *socket, const void *identity, size_t identity_bytes);

/* ---- rows ----------------------------------------------------------------- */

/* Some consecutive rows of a received record. */
typedef struct {
    bt_message *message;
    const bt_wire_rows *rows;
    uint32_t first_row;
    uint32_t count;
    const uint64_t *const *offsets; /* of VAR buffers, by buffer: start of each row; NULL: count them */
    bt_wire_walk walk;              /* scratch */
} bt_slice;

/* Writes one record of all the slices' rows, joined buffer by buffer. Small
 * slices are copied together, a large one becomes a frame that is a view of
 * the message that it came in. All slices have the same layout (see
 * bt_same_layout). Not 0: nothing was written. */
typedef enum {
    BT_WRITTEN = 0,
    BT_NO_MEMORY = 1,
    BT_NO_ROOM = 2,   /* in this message, but in one of its own it would have */
    BT_TOO_LARGE = 3, /* for any message: in bytes, or in frames */
} bt_written;

bt_written bt_write_slices(bt_outgoing *o, bt_record_type type, uint64_t id, int64_t budget_ns,
                           uint32_t padded_rows, const uint8_t *key, uint32_t key_bytes,
                           bt_slice *slices, size_t count);

/* What a message of such a record alone would hold, all frames together. */
uint64_t bt_slices_bytes(bt_slice *slices, size_t count, uint32_t key_bytes);

/* Whether two records have the same number of buffers with the same row sizes. */
int bt_same_layout(const bt_wire_rows *a, const bt_wire_rows *b);

/* Copies rows of one buffer to `to`, from wherever they are; for readers that gather. */
void bt_copy_range(const bt_message *m, const bt_wire_buffer *b, uint64_t start, uint64_t bytes, uint8_t *to);

#endif
