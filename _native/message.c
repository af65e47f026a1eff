#include "message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MIN_PACKET_BYTES 4096u

/* ---- received ----------------------------------------------------------- */

bt_message *bt_message_new(bt_zmsg *zmsg, uint32_t frames)
{
    size_t head = sizeof(bt_message) + frames * sizeof(bt_zmsg);
    bt_message *m = malloc(head + frames * sizeof(bt_frame));
    if (m == NULL) return NULL;
    m->next = NULL;
    atomic_init(&m->references, 1);
    m->frames = frames;
    m->bytes = m->spare_bytes = 0;
    m->frame = (bt_frame *)((char *)m + head);
    for (uint32_t i = 0; i < frames; i++) {
        bt_zmq.msg_init(&m->zmsg[i]);
        bt_zmq.msg_move(&m->zmsg[i], &zmsg[i]);
        m->frame[i].data = bt_zmq.msg_data(&m->zmsg[i]);
        m->frame[i].bytes = bt_zmq.msg_size(&m->zmsg[i]);
        m->bytes += m->frame[i].bytes;
    }
    return m;
}

void bt_message_own(bt_message *m)
{
    for (uint32_t i = 1; i < m->frames; i++) {
        bt_zmsg copy;
        if (bt_zmq.msg_init_size(&copy, m->frame[i].bytes) != 0) return;
        memcpy(bt_zmq.msg_data(&copy), m->frame[i].data, m->frame[i].bytes);
        bt_zmq.msg_move(&m->zmsg[i], &copy);
        m->frame[i].data = bt_zmq.msg_data(&m->zmsg[i]);
    }
    m->spare_bytes = 0;
}

void bt_message_keep(bt_message *m) { atomic_fetch_add_explicit(&m->references, 1, memory_order_relaxed); }

void bt_message_drop(bt_message *m)
{
    if (atomic_fetch_sub_explicit(&m->references, 1, memory_order_acq_rel) != 1) return;
    for (uint32_t i = 0; i < m->frames; i++) bt_zmq.msg_close(&m->zmsg[i]);
    free(m);
}

size_t bt_message_frame_size(const void *message, uint32_t frame)
{
    return ((const bt_message *)message)->frame[frame].bytes;
}

void bt_inbox_clear(bt_inbox *in)
{
    for (uint32_t i = 0; i < in->count; i++) bt_zmq.msg_close(&in->zmsg[i]);
    in->count = 0;
}

void bt_inbox_free(bt_inbox *in)
{
    bt_inbox_clear(in);
    free(in->zmsg);
    memset(in, 0, sizeof *in);
}

int bt_inbox_receive(bt_inbox *in, void *socket)
{
    int lost = 0;
    bt_inbox_clear(in);
    for (;;) {
        if (in->count == in->capacity) {
            uint32_t capacity = in->capacity ? 2 * in->capacity : 8;
            bt_zmsg *grown = realloc(in->zmsg, capacity * sizeof *grown);
            if (grown == NULL) {
                if (in->count == 0) return -1;
                bt_zmq.msg_close(&in->zmsg[--in->count]);
                lost = 1;
            } else {
                in->zmsg = grown;
                in->capacity = capacity;
            }
        }
        bt_zmsg *m = &in->zmsg[in->count];
        bt_zmq.msg_init(m);
        /* Once the first part is here, so are the others: parts arrive together. */
        if (bt_zmq.msg_recv(m, socket, BT_ZMQ_DONTWAIT) < 0) {
            int error = bt_zmq.error();
            bt_zmq.msg_close(m);
            if (error == EINTR) continue;
            return error == EAGAIN ? 0 : -1;
        }
        in->count++;
        if (!bt_zmq.msg_more(m)) return lost ? 2 : 1;
    }
}

/* ---- to be sent ---------------------------------------------------------- */

static void release_block(void *data, void *hint)
{
    (void)hint;
    free(data);
}

static void release_frame(void *data, void *hint)
{
    (void)data;
    bt_zmq.msg_close(hint);
    free(hint);
}

void bt_outgoing_start(bt_outgoing *o)
{
    for (uint32_t i = 1; i < o->frames; i++) bt_zmq.msg_close(&o->frame[i]);
    o->frames = 1; /* place 0 is the packet's */
    o->frame_bytes = o->spare_bytes = 0;
    bt_writer_start(&o->w);
}

void bt_outgoing_free(bt_outgoing *o)
{
    for (uint32_t i = 1; i < o->frames; i++) bt_zmq.msg_close(&o->frame[i]);
    bt_writer_free(&o->w);
    free(o->frame);
    memset(o, 0, sizeof *o);
}

static bt_zmsg *next_frame(bt_outgoing *o)
{
    if (o->frames >= o->capacity) {
        uint32_t capacity = o->capacity ? 2 * o->capacity : 8;
        while (capacity <= o->frames) capacity *= 2;
        bt_zmsg *grown = realloc(o->frame, capacity * sizeof *grown);
        if (grown == NULL) return NULL;
        o->frame = grown;
        o->capacity = capacity;
    }
    return &o->frame[o->frames];
}

int bt_outgoing_add(bt_outgoing *o, void *data, size_t bytes, bt_zmq_free release, void *hint)
{
    bt_zmsg *m = next_frame(o);
    if (m == NULL || bt_zmq.msg_init_data(m, data, bytes, release, hint) != 0) {
        o->w.failed = 1;
        return -1;
    }
    o->frames++;
    o->frame_bytes += bytes;
    return 0;
}

/* Of the next packet: room for one like the last, less than half of what a larger one left. */
static size_t next_capacity(size_t capacity, size_t used)
{
    size_t wanted = used < capacity / 2 ? capacity / 2 : capacity;
    return wanted < MIN_PACKET_BYTES ? MIN_PACKET_BYTES : wanted;
}

bt_message *bt_outgoing_take(bt_outgoing *o)
{
    bt_message *m = NULL;
    if (bt_writer_finish(&o->w) == 0 && (o->capacity > 0 || next_frame(o) != NULL)) {
        size_t used = o->w.bytes, next = next_capacity(o->w.capacity, used);
        /* Whoever holds a call of this packet holds its block: not with room that nothing fills. */
        if (used < o->w.capacity / 2) {
            uint8_t *fitting = realloc(o->w.data, used);
            if (fitting != NULL) {
                o->w.data = fitting;
                o->w.capacity = used;
            }
        }
        if (bt_zmq.msg_init_data(&o->frame[0], o->w.data, used, release_block, NULL) == 0) {
            o->w.data = NULL;
            o->w.capacity = 0;
            m = bt_message_new(o->frame, o->frames);
            if (m == NULL) {
                bt_zmq.msg_close(&o->frame[0]);
            } else {
                o->frames = 1;
                m->spare_bytes = o->spare_bytes;
            }
            o->w.data = malloc(next);
            if (o->w.data != NULL) o->w.capacity = next;
        }
    }
    bt_outgoing_start(o);
    return m;
}

int bt_message_send(bt_message *m, void *socket, const void *identity, size_t identity_bytes)
{
    bt_zmsg first;
    if (identity_bytes) {
        if (bt_zmq.msg_init_size(&first, identity_bytes) != 0) return ENOMEM;
        memcpy(bt_zmq.msg_data(&first), identity, identity_bytes);
        if (bt_zmq.msg_send(&first, socket, BT_ZMQ_SNDMORE | BT_ZMQ_DONTWAIT) < 0) {
            int error = bt_zmq.error();
            bt_zmq.msg_close(&first);
            return error;
        }
    }
    /* Only the first part of a message can be refused for want of room. */
    for (uint32_t i = 0; i < m->frames; i++) {
        int flags = BT_ZMQ_DONTWAIT | (i + 1 < m->frames ? BT_ZMQ_SNDMORE : 0);
        while (bt_zmq.msg_send(&m->zmsg[i], socket, flags) < 0) {
            int error = bt_zmq.error();
            if (error != EINTR) return error;
        }
    }
    return 0;
}

/* ---- rows ----------------------------------------------------------------- */

int bt_same_layout(const bt_wire_rows *a, const bt_wire_rows *b)
{
    if (a->buffers != b->buffers) return 0;
    for (uint16_t i = 0; i < a->buffers; i++) {
        size_t at = (size_t)BT_DESCRIPTOR_BYTES * i + 8;
        if (memcmp(a->descriptors + at, b->descriptors + at, 4) != 0) return 0;
    }
    return 1;
}

/* Calls `each` for every contiguous piece of the range; frame 0 stands for inline data. */
typedef int (*piece_fn)(void *context, uint32_t frame, const uint8_t *data, size_t bytes);

static int pieces(const bt_message *m, const bt_wire_buffer *b, uint64_t start, uint64_t bytes,
                  piece_fn each, void *context)
{
    if (b->frames == 0) return bytes ? each(context, 0, b->data + start, (size_t)bytes) : 0;
    for (uint32_t i = b->first_frame; bytes > 0; i++) {
        uint64_t size = m->frame[i].bytes;
        if (start < size) {
            uint64_t take = size - start < bytes ? size - start : bytes;
            if (each(context, i, m->frame[i].data + start, (size_t)take) != 0) return -1;
            bytes -= take;
            start = 0;
        } else {
            start -= size;
        }
    }
    return 0;
}

static int copy_piece(void *context, uint32_t frame, const uint8_t *data, size_t bytes)
{
    uint8_t **to = context;
    (void)frame;
    memcpy(*to, data, bytes);
    *to += bytes;
    return 0;
}

void bt_copy_range(const bt_message *m, const bt_wire_buffer *b, uint64_t start, uint64_t bytes, uint8_t *to)
{
    pieces(m, b, start, bytes, copy_piece, &to);
}

typedef struct {
    bt_outgoing *o;
    bt_message *m;
} view_context;

/* A view keeps the frame that it shows a piece of, and none of its neighbours. */
static int view_piece(void *context, uint32_t frame, const uint8_t *data, size_t bytes)
{
    view_context *c = context;
    bt_zmsg *kept = malloc(sizeof *kept);
    if (kept == NULL) return -1;
    bt_zmq.msg_init(kept);
    bt_zmq.msg_copy(kept, &c->m->zmsg[frame]);
    /* libzmq copies a tiny frame whole: what is shown is that of the copy. */
    uint8_t *shown = (uint8_t *)bt_zmq.msg_data(kept) + (data - c->m->frame[frame].data);
    if (bt_outgoing_add(c->o, shown, bytes, release_frame, kept) == 0) {
        c->o->spare_bytes += c->m->frame[frame].bytes - bytes;
        return 0;
    }
    release_frame(NULL, kept);
    return -1;
}

/* Where a slice's bytes start within its buffer, and how many they are. */
static void range_of(const bt_slice *s, const bt_wire_buffer *b, uint16_t index, uint64_t *start,
                     uint64_t *bytes)
{
    if (b->row_bytes != BT_VAR) {
        *start = (uint64_t)(uint32_t)b->row_bytes * s->first_row;
        *bytes = (uint64_t)(uint32_t)b->row_bytes * s->count;
    } else if (s->offsets != NULL) {
        *start = s->offsets[index][s->first_row];
        *bytes = s->offsets[index][s->first_row + s->count] - *start;
    } else {
        *start = bt_wire_blob_bytes(b->lengths, 0, s->first_row);
        *bytes = bt_wire_blob_bytes(b->lengths, s->first_row, s->count);
    }
}

/* The run of small slices [from, to) of one buffer as a frame of its own. */
static int add_gathered(bt_outgoing *o, bt_slice *slices, bt_wire_buffer *buffers, uint16_t index, size_t from,
                        size_t to)
{
    uint64_t total = 0, start, bytes;
    for (size_t i = from; i < to; i++) {
        range_of(&slices[i], &buffers[i], index, &start, &bytes);
        total += bytes;
    }
    if (total == 0) return 0;
    uint8_t *block = malloc((size_t)total), *at = block;
    if (block == NULL) return -1;
    for (size_t i = from; i < to; i++) {
        range_of(&slices[i], &buffers[i], index, &start, &bytes);
        bt_copy_range(slices[i].message, &buffers[i], start, bytes, at);
        at += bytes;
    }
    if (bt_outgoing_add(o, block, (size_t)total, release_block, NULL) == 0) return 0;
    free(block);
    return -1;
}

/* One buffer of all slices as frames: large slices as views, small ones gathered. */
static int add_frames(bt_outgoing *o, bt_slice *slices, bt_wire_buffer *buffers, uint16_t index, size_t count)
{
    size_t small = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t start, bytes;
        range_of(&slices[i], &buffers[i], index, &start, &bytes);
        if (bytes <= BT_INLINE_MAX_BYTES) continue;
        if (add_gathered(o, slices, buffers, index, small, i) != 0) return -1;
        view_context c = {o, slices[i].message};
        if (pieces(slices[i].message, &buffers[i], start, bytes, view_piece, &c) != 0) return -1;
        small = i + 1;
    }
    return add_gathered(o, slices, buffers, index, small, count);
}

static int write_buffer(bt_outgoing *o, bt_slice *slices, bt_wire_buffer *buffers, uint16_t index, size_t count,
                        uint32_t rows, size_t descriptor)
{
    uint64_t total = 0, largest = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t start, bytes;
        bt_wire_rows_next(slices[i].rows, &slices[i].walk, &buffers[i]);
        range_of(&slices[i], &buffers[i], index, &start, &bytes);
        total += bytes;
        if (bytes > largest) largest = bytes;
    }
    if (buffers[0].row_bytes == BT_VAR) {
        uint8_t *lengths = bt_write_padded(&o->w, NULL, (size_t)4 * rows);
        if (lengths == NULL) return -1;
        for (size_t i = 0; i < count; i++) {
            memcpy(lengths, buffers[i].lengths + (size_t)4 * slices[i].first_row, (size_t)4 * slices[i].count);
            lengths += (size_t)4 * slices[i].count;
        }
    }
    uint32_t frames_before = o->frames;
    if (largest > BT_INLINE_MAX_BYTES) {
        if (add_frames(o, slices, buffers, index, count) != 0) return -1;
    } else {
        uint8_t *to = bt_write_padded(&o->w, NULL, (size_t)total);
        if (to == NULL) return -1;
        for (size_t i = 0; i < count; i++) {
            uint64_t start, bytes;
            range_of(&slices[i], &buffers[i], index, &start, &bytes);
            bt_copy_range(slices[i].message, &buffers[i], start, bytes, to);
            to += bytes;
        }
    }
    uint8_t *d = o->w.data + descriptor;
    bt_put64(d, total);
    bt_put32(d + 8, (uint32_t)buffers[0].row_bytes);
    bt_put32(d + 12, o->frames - frames_before);
    return 0;
}

static void abandon(bt_outgoing *o, uint32_t frames, bt_wire_buffer *buffers)
{
    while (o->frames > frames) {
        o->frame_bytes -= bt_zmq.msg_size(&o->frame[--o->frames]);
        bt_zmq.msg_close(&o->frame[o->frames]);
    }
    bt_write_abort(&o->w);
    free(buffers);
}

static uint64_t max_bytes(const bt_outgoing *o) { return o->max_bytes ? o->max_bytes : BT_MAX_MESSAGE_BYTES; }

uint64_t bt_slices_bytes(bt_slice *slices, size_t count, uint32_t key_bytes)
{
    uint16_t n = slices[0].rows->buffers;
    uint64_t rows = 0, bytes = BT_PACKET_HEADER + bt_wire_rows_bytes(n, key_bytes, 0), start, size;
    for (size_t i = 0; i < count; i++) {
        rows += slices[i].count;
        bt_wire_rows_walk(slices[i].rows, &slices[i].walk);
    }
    for (uint16_t b = 0; b < n; b++) {
        uint64_t total = 0;
        for (size_t i = 0; i < count; i++) {
            bt_wire_buffer buffer;
            bt_wire_rows_next(slices[i].rows, &slices[i].walk, &buffer);
            range_of(&slices[i], &buffer, b, &start, &size);
            total += size;
            if (i == 0 && buffer.row_bytes == BT_VAR) bytes += bt_pad8((size_t)(4 * rows));
        }
        bytes += bt_pad8((size_t)total);
    }
    return bytes;
}

/* Whether the message has room for the rows. What they came in with is mostly far
 * less than that, and then says so without a look at each of them. */
static bt_written has_room(const bt_outgoing *o, bt_slice *slices, size_t count, uint32_t key_bytes)
{
    uint64_t before = o->w.bytes + o->frame_bytes, rows = 0, most = 0;
    for (size_t i = 0; i < count; i++) {
        most += slices[i].rows->data_bytes;
        rows += slices[i].count;
    }
    most += bt_wire_rows_bytes(slices[0].rows->buffers, key_bytes, 0) +
            (4 * rows + 16) * slices[0].rows->buffers;
    if (before + most <= max_bytes(o)) return BT_WRITTEN;
    uint64_t bytes = bt_slices_bytes(slices, count, key_bytes);
    if (bytes > max_bytes(o)) return BT_TOO_LARGE;
    return before - BT_PACKET_HEADER + bytes > max_bytes(o) ? BT_NO_ROOM : BT_WRITTEN;
}

bt_written bt_write_slices(bt_outgoing *o, bt_record_type type, uint64_t id, int64_t budget_ns,
                           uint32_t padded_rows, const uint8_t *key, uint32_t key_bytes,
                           bt_slice *slices, size_t count)
{
    bt_wire_buffer few[4], *many = NULL, *buffers = few;
    uint32_t rows = 0, frames_before = o->frames;
    uint16_t n = slices[0].rows->buffers;
    if (o->w.failed) return BT_NO_MEMORY;
    bt_written room = has_room(o, slices, count, key_bytes);
    if (room != BT_WRITTEN) return room;
    if (count > sizeof few / sizeof *few && (many = buffers = malloc(count * sizeof *many)) == NULL)
        return BT_NO_MEMORY;
    for (size_t i = 0; i < count; i++) {
        rows += slices[i].count;
        bt_wire_rows_walk(slices[i].rows, &slices[i].walk);
    }
    bt_write_rows_begin(&o->w, type, id, budget_ns, rows, padded_rows > rows ? padded_rows : rows, 0, n,
                        key_bytes, 0);
    size_t descriptor = o->w.bytes;
    for (uint16_t i = 0; i < n; i++) bt_write_descriptor(&o->w, 0, 0, 0);
    bt_write_padded(&o->w, key, key_bytes);
    for (uint16_t i = 0; i < n && !o->w.failed; i++) {
        size_t at = descriptor + (size_t)BT_DESCRIPTOR_BYTES * i;
        if (write_buffer(o, slices, buffers, i, count, rows, at) != 0) o->w.failed = 1;
    }
    uint32_t frames = o->frames - frames_before;
    if (o->w.failed || frames > UINT16_MAX) {
        bt_written why = o->w.failed ? BT_NO_MEMORY : BT_TOO_LARGE;
        abandon(o, frames_before, many);
        return why;
    }
    bt_write_rows_end(&o->w, (uint16_t)frames);
    free(many);
    return BT_WRITTEN;
}
