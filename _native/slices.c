/* Rows of received messages, cut and joined into what is to be sent. */
#include <stdlib.h>
#include <string.h>

#include "message.h"

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

static void release_frame(void *data, void *hint)
{
    (void)data;
    bt_zmq.msg_close(hint);
    free(hint);
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
    if (bt_outgoing_add(o, block, (size_t)total, bt_release_block, NULL) == 0) return 0;
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

/* What is to be written, all slices together. */
typedef struct {
    uint32_t rows;
    uint32_t longest;   /* rows of one slice */
    uint64_t bytes;     /* of data that the slices came with: at least what is theirs of it */
    uint8_t is_plain;   /* bt_wire_rows' of each */
} extent;

static extent extent_of(const bt_slice *slices, size_t count)
{
    extent all = {.is_plain = 1};
    for (size_t i = 0; i < count; i++) {
        const bt_slice *s = &slices[i];
        all.rows += s->count;
        if (s->count > all.longest) all.longest = s->count;
        all.bytes += s->rows->data_bytes;
        all.is_plain &= s->rows->is_plain;
    }
    return all;
}

/* Whether the message has room for the rows. What they came in with is mostly far
 * less than that, and then says so without a look at each of them. */
static bt_written has_room(const bt_outgoing *o, bt_slice *slices, size_t count, uint32_t key_bytes, const extent *all)
{
    uint64_t before = o->w.bytes + o->frame_bytes;
    uint64_t most = all->bytes + bt_wire_rows_bytes(slices[0].rows->buffers, key_bytes, 0) +
                    (4 * (uint64_t)all->rows + 16) * slices[0].rows->buffers;
    if (before + most <= max_bytes(o)) return BT_WRITTEN;
    uint64_t bytes = bt_slices_bytes(slices, count, key_bytes);
    if (bytes > max_bytes(o)) return BT_TOO_LARGE;
    return before - BT_PACKET_HEADER + bytes > max_bytes(o) ? BT_NO_ROOM : BT_WRITTEN;
}

static uint32_t row_bytes_of(const bt_wire_rows *rows, uint16_t buffer)
{
    return bt_get32(rows->descriptors + (size_t)BT_DESCRIPTOR_BYTES * buffer + 8);
}

/* The size of the record if all of it goes into the packet, copied slice by slice; 0 if not. */
static size_t plain_bytes(const extent *all, const bt_wire_rows *first, uint32_t key_bytes)
{
    size_t bytes = bt_wire_rows_bytes(first->buffers, key_bytes, 0);
    if (!all->is_plain) return 0;
    for (uint16_t b = 0; b < first->buffers; b++) {
        if ((uint64_t)row_bytes_of(first, b) * all->longest > BT_INLINE_MAX_BYTES) return 0;
        bytes += bt_pad8((size_t)row_bytes_of(first, b) * all->rows);
    }
    return bytes;
}

/* Such a record: what most calls are, and so with nothing in it that they do not need. */
static void write_plain(uint8_t *descriptor, uint32_t key_bytes, bt_slice *slices, size_t count, uint32_t rows)
{
    uint16_t n = slices[0].rows->buffers;
    uint8_t *to = descriptor + (size_t)BT_DESCRIPTOR_BYTES * n + bt_pad8(key_bytes);
    for (uint16_t b = 0; b < n; b++, descriptor += BT_DESCRIPTOR_BYTES) {
        size_t row_bytes = row_bytes_of(slices[0].rows, b), total = row_bytes * rows;
        bt_put64(descriptor, total);
        bt_put32(descriptor + 8, (uint32_t)row_bytes);
        bt_put32(descriptor + 12, 0);
        for (size_t i = 0; i < count; i++) {
            bt_slice *s = &slices[i];
            const uint8_t *from = b == 0 ? s->rows->inlined : s->walk.inlined;
            memcpy(to, from + row_bytes * s->first_row, row_bytes * s->count);
            to += row_bytes * s->count;
            s->walk.inlined = from + bt_pad8(row_bytes * s->rows->rows);
        }
        to = bt_put_padding(to, total);
    }
}

static bt_written write_any(bt_outgoing *o, bt_record_type type, uint64_t id, int64_t budget_ns, uint32_t rows,
                            uint32_t padded_rows, const uint8_t *key, uint32_t key_bytes, bt_slice *slices, size_t count)
{
    bt_wire_buffer few[4], *many = NULL, *buffers = few;
    uint32_t frames_before = o->frames;
    uint16_t n = slices[0].rows->buffers;
    if (count > sizeof few / sizeof *few && (many = buffers = malloc(count * sizeof *many)) == NULL)
        return BT_NO_MEMORY;
    for (size_t i = 0; i < count; i++) bt_wire_rows_walk(slices[i].rows, &slices[i].walk);
    bt_write_rows_begin(&o->w, type, id, budget_ns, rows, padded_rows, 0, n, key_bytes, 0);
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

bt_written bt_write_slices(bt_outgoing *o, bt_record_type type, uint64_t id, int64_t budget_ns,
                           uint32_t padded_rows, const uint8_t *key, uint32_t key_bytes,
                           bt_slice *slices, size_t count)
{
    if (o->w.failed) return BT_NO_MEMORY;
    extent all = extent_of(slices, count);
    if (padded_rows < all.rows) padded_rows = all.rows;
    const bt_wire_rows *first = slices[0].rows;
    size_t bytes = plain_bytes(&all, first, key_bytes);
    if (bytes == 0 || o->w.bytes + o->frame_bytes + bytes > max_bytes(o)) {
        bt_written room = has_room(o, slices, count, key_bytes, &all);
        if (room != BT_WRITTEN) return room;
        return write_any(o, type, id, budget_ns, all.rows, padded_rows, key, key_bytes, slices, count);
    }
    uint8_t *descriptors = bt_write_rows_whole(&o->w, type, id, budget_ns, all.rows, padded_rows, first->buffers, key,
                                               key_bytes, bytes);
    if (descriptors == NULL) {
        bt_write_abort(&o->w);
        return BT_NO_MEMORY;
    }
    write_plain(descriptors, key_bytes, slices, count, all.rows);
    return BT_WRITTEN;
}
