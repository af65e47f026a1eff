#include "wire.h"

#include <stdlib.h>
#include <string.h>

/* ---- reading: a packet ------------------------------------------------- */

bt_wire_verdict bt_packet_open(bt_packet *p, const void *data, size_t bytes, uint32_t frames)
{
    const uint8_t *d = data;
    if (bytes < BT_PACKET_HEADER) return BT_WIRE_TRUNCATED;
    if (memcmp(d, "BATC", 4) != 0) return BT_WIRE_MAGIC;
    if (bt_get16(d + 4) != BT_WIRE_VERSION) return BT_WIRE_OTHER_VERSION;
    if (bt_get16(d + 6) != 0) return BT_WIRE_RESERVED;
    if (bytes > BT_MAX_MESSAGE_BYTES || bt_get32(d + 8) > BT_MAX_RECORDS) return BT_WIRE_LIMIT;
    if (bt_get32(d + 12) != bytes) return bt_get32(d + 12) > bytes ? BT_WIRE_TRUNCATED : BT_WIRE_COUNT;
    p->data = d;
    p->bytes = bytes;
    p->at = BT_PACKET_HEADER;
    p->left = bt_get32(d + 8);
    p->next_frame = 1;
    p->frames = frames;
    return BT_WIRE_OK;
}

int bt_packet_next(bt_packet *p, bt_record *out)
{
    size_t room = p->bytes - p->at;
    if (p->left == 0) return room == 0 && p->next_frame == p->frames ? 0 : -BT_WIRE_COUNT;
    if (room < BT_RECORD_HEADER) return -BT_WIRE_TRUNCATED;
    const uint8_t *d = p->data + p->at;
    uint32_t bytes = bt_get32(d + 4);
    if (bytes > room) return -BT_WIRE_TRUNCATED;
    if (bytes < BT_RECORD_HEADER || bytes % 8 != 0) return -BT_WIRE_COUNT;
    uint16_t frames = bt_get16(d + 2);
    if (frames > p->frames - p->next_frame) return -BT_WIRE_COUNT;
    if (d[1] != 0) return -BT_WIRE_RESERVED;
    out->type = d[0];
    out->frames = frames;
    out->first_frame = p->next_frame;
    out->bytes = bytes;
    out->id = bt_get64(d + 8);
    out->data = d;
    p->at += bytes;
    p->next_frame += frames;
    p->left--;
    return 1;
}

/* ---- reading: rows ------------------------------------------------------ */

/* The frames of a buffer: sizes that add up, and boundaries that are rows'. */
static bt_wire_verdict check_frames(const bt_wire_buffer *b, uint32_t rows, bt_frame_size frame_size,
                                    const void *message)
{
    uint64_t total = 0;
    uint32_t row = 0;
    for (uint32_t i = 0; i < b->frames; i++) {
        uint64_t size = frame_size(message, b->first_frame + i);
        total += size;
        if (total > b->bytes) return BT_WIRE_COUNT;
        if (b->row_bytes != BT_VAR) {
            if (b->row_bytes == 0 || size % (uint32_t)b->row_bytes != 0) return BT_WIRE_COUNT;
            continue;
        }
        uint64_t seen = 0;
        while (row < rows && seen < size) {
            uint32_t length = bt_get32(b->lengths + (size_t)4 * row++);
            seen += length == BT_NO_BLOB ? 0 : length;
        }
        if (seen != size) return BT_WIRE_COUNT;
    }
    return total == b->bytes ? BT_WIRE_OK : BT_WIRE_COUNT;
}

/* One buffer of the record: takes its inline bytes from *at, never beyond end. */
static bt_wire_verdict check_buffer(bt_wire_buffer *b, const uint8_t *descriptor, const uint8_t **at,
                                    const uint8_t *end, uint32_t rows)
{
    uint32_t row_bytes = bt_get32(descriptor + 8);
    b->bytes = bt_get64(descriptor);
    b->frames = bt_get32(descriptor + 12);
    b->lengths = NULL;
    b->data = NULL;
    if (b->bytes > BT_MAX_MESSAGE_BYTES) return BT_WIRE_LIMIT;
    if (row_bytes == 0xFFFFFFFFu) {
        uint64_t total = 0;
        size_t table = bt_pad8((size_t)4 * rows);
        b->row_bytes = BT_VAR;
        if ((size_t)(end - *at) < table) return BT_WIRE_TRUNCATED;
        b->lengths = *at;
        *at += table;
        total = bt_wire_blob_bytes(b->lengths, 0, rows);
        if (total != b->bytes) return BT_WIRE_COUNT;
    } else {
        if (row_bytes > (uint32_t)INT32_MAX) return BT_WIRE_VALUE;
        b->row_bytes = (int32_t)row_bytes;
        if ((uint64_t)row_bytes * rows != b->bytes) return BT_WIRE_COUNT;
    }
    if (b->frames == 0) {
        size_t padded = bt_pad8((size_t)b->bytes);
        if ((size_t)(end - *at) < padded) return BT_WIRE_TRUNCATED;
        b->data = *at;
        *at += padded;
    }
    return BT_WIRE_OK;
}

static bt_wire_verdict check_rows(const bt_record *r, bt_frame_size frame_size, const void *message,
                                  bt_wire_rows *out)
{
    const uint8_t *d = r->data;
    const uint8_t *end = d + r->bytes;
    if (r->bytes < BT_ROWS_FIXED_BYTES) return BT_WIRE_TRUNCATED;
    out->budget_ns = (int64_t)bt_get64(d + 16);
    out->rows = bt_get32(d + 24);
    out->padded_rows = bt_get32(d + 28);
    out->method = bt_get16(d + 32);
    out->buffers = bt_get16(d + 34);
    out->key_bytes = bt_get32(d + 36);
    out->meta_bytes = bt_get32(d + 40);
    out->client = bt_get32(d + 44);
    if (out->client != 0 && r->type != BT_CALL) return BT_WIRE_RESERVED;
    if (out->budget_ns < -1 || r->id == 0) return BT_WIRE_VALUE;
    if (out->budget_ns != -1 && r->type != BT_CALL && r->type != BT_BATCH) return BT_WIRE_VALUE;
    if (out->rows > BT_MAX_ROWS || out->padded_rows > BT_MAX_ROWS || out->buffers > BT_MAX_BUFFERS ||
        out->key_bytes > BT_MAX_KEY_BYTES || out->meta_bytes > BT_MAX_TEXT_BYTES)
        return BT_WIRE_LIMIT;
    if (out->padded_rows < out->rows || (r->type != BT_BATCH && out->padded_rows != out->rows))
        return BT_WIRE_COUNT;
    size_t head = bt_wire_rows_bytes(out->buffers, out->key_bytes, out->meta_bytes);
    if (head > r->bytes) return BT_WIRE_TRUNCATED;
    out->descriptors = d + BT_ROWS_FIXED_BYTES;
    out->key = out->descriptors + (size_t)BT_DESCRIPTOR_BYTES * out->buffers;
    out->meta = out->key + bt_pad8(out->key_bytes);
    out->inlined = d + head;
    out->first_frame = r->first_frame;
    out->data_bytes = 0;
    out->is_plain = r->frames == 0;

    const uint8_t *at = out->inlined;
    uint32_t frames = 0;
    for (uint16_t i = 0; i < out->buffers; i++) {
        bt_wire_buffer b;
        bt_wire_verdict v =
            check_buffer(&b, out->descriptors + (size_t)BT_DESCRIPTOR_BYTES * i, &at, end, out->rows);
        if (v != BT_WIRE_OK) return v;
        if (b.frames > r->frames - frames) return BT_WIRE_COUNT;
        b.first_frame = r->first_frame + frames;
        frames += b.frames;
        if (b.frames != 0) v = check_frames(&b, out->rows, frame_size, message);
        if (v != BT_WIRE_OK) return v;
        out->data_bytes += b.bytes;
        out->is_plain &= b.row_bytes != BT_VAR;
        if (out->data_bytes > BT_MAX_MESSAGE_BYTES) return BT_WIRE_LIMIT;
    }
    return at == end && frames == r->frames ? BT_WIRE_OK : BT_WIRE_COUNT;
}

void bt_wire_rows_walk(const bt_wire_rows *rows, bt_wire_walk *w)
{
    w->left = rows->buffers;
    w->next_frame = rows->first_frame;
    w->descriptor = rows->descriptors;
    w->inlined = rows->inlined;
}

int bt_wire_rows_next(const bt_wire_rows *rows, bt_wire_walk *w, bt_wire_buffer *out)
{
    if (w->left == 0) return 0;
    out->bytes = bt_get64(w->descriptor);
    out->row_bytes = (int32_t)bt_get32(w->descriptor + 8);
    out->frames = bt_get32(w->descriptor + 12);
    out->first_frame = w->next_frame;
    out->lengths = NULL;
    out->data = NULL;
    if (out->row_bytes == BT_VAR) {
        out->lengths = w->inlined;
        w->inlined += bt_pad8((size_t)4 * rows->rows);
    }
    if (out->frames == 0) {
        out->data = w->inlined;
        w->inlined += bt_pad8((size_t)out->bytes);
    }
    w->next_frame += out->frames;
    w->descriptor += BT_DESCRIPTOR_BYTES;
    w->left--;
    return 1;
}

uint64_t bt_wire_blob_bytes(const uint8_t *lengths, uint32_t first_row, uint32_t rows)
{
    uint64_t total = 0;
    for (uint32_t i = first_row; i < first_row + rows; i++) {
        uint32_t length = bt_get32(lengths + (size_t)4 * i);
        total += length == BT_NO_BLOB ? 0 : length;
    }
    return total;
}

/* ---- reading: greeting, error ------------------------------------------- */

static bt_wire_verdict check_greeting(const bt_record *r, bt_wire_greeting *out)
{
    const uint8_t *d = r->data;
    if (r->bytes < 40) return BT_WIRE_TRUNCATED;
    out->role = bt_get16(d + 16);
    out->lowest_version = bt_get16(d + 18);
    out->highest_version = bt_get16(d + 20);
    out->credits = bt_get32(d + 24);
    out->name_bytes = bt_get32(d + 28);
    out->description_bytes = bt_get32(d + 32);
    out->pid = bt_get32(d + 36);
    if (bt_get16(d + 22) != 0 || r->id != 0) return BT_WIRE_RESERVED;
    if (out->role < BT_ROLE_CLIENT || out->role > BT_ROLE_DISPATCHER) return BT_WIRE_VALUE;
    if (out->lowest_version > out->highest_version) return BT_WIRE_VALUE;
    if (out->name_bytes > BT_MAX_NAME_BYTES || out->description_bytes > BT_MAX_TEXT_BYTES)
        return BT_WIRE_LIMIT;
    size_t bytes = 40 + bt_pad8(out->name_bytes) + bt_pad8(out->description_bytes);
    if (bytes > r->bytes) return BT_WIRE_TRUNCATED;
    if (bytes != r->bytes || r->frames != 0) return BT_WIRE_COUNT;
    out->name = d + 40;
    out->description = out->name + bt_pad8(out->name_bytes);
    return BT_WIRE_OK;
}

static bt_wire_verdict check_error(const bt_record *r, bt_wire_error *out)
{
    const uint8_t *d = r->data;
    if (r->bytes < 48) return BT_WIRE_TRUNCATED;
    out->code = bt_get16(d + 16);
    out->exit_code = (int32_t)bt_get32(d + 20);
    out->number = (int64_t)bt_get64(d + 24);
    if (bt_get16(d + 18) != 0) return BT_WIRE_RESERVED;
    if (out->code < BT_E_INVALID_PAYLOAD || out->code > BT_E_RESULT) return BT_WIRE_VALUE;
    uint64_t total = 0;
    const uint8_t *at = d + 48;
    for (int i = 0; i < 4; i++) {
        out->text_bytes[i] = bt_get32(d + 32 + 4 * i);
        total += out->text_bytes[i];
    }
    if (total > BT_MAX_TEXT_BYTES) return BT_WIRE_LIMIT;
    size_t bytes = 48 + bt_pad8((size_t)total);
    if (bytes > r->bytes) return BT_WIRE_TRUNCATED;
    if (bytes != r->bytes || r->frames != 0) return BT_WIRE_COUNT;
    for (int i = 0; i < 4; i++) {
        out->texts[i] = at;
        at += out->text_bytes[i];
    }
    return BT_WIRE_OK;
}

bt_wire_verdict bt_record_check(const bt_record *r, bt_frame_size frame_size, const void *message,
                                bt_body *out)
{
    switch (r->type) {
    case BT_CALL:
    case BT_ANSWER:
    case BT_BATCH:
    case BT_RESULT:
        return check_rows(r, frame_size, message, &out->rows);
    case BT_HELLO:
    case BT_WELCOME:
        return check_greeting(r, &out->greeting);
    case BT_ERROR:
        return check_error(r, &out->error);
    case BT_CANCEL:
    case BT_PING:
    case BT_PONG:
    case BT_STOP:
    case BT_BYE:
        return r->bytes == BT_RECORD_HEADER && r->frames == 0 ? BT_WIRE_OK : BT_WIRE_COUNT;
    default:
        return BT_WIRE_VALUE;
    }
}

/* ---- writing ------------------------------------------------------------ */

size_t bt_wire_rows_bytes(uint16_t buffers, size_t key_bytes, size_t meta_bytes)
{
    return BT_ROWS_FIXED_BYTES + (size_t)BT_DESCRIPTOR_BYTES * buffers + bt_pad8(key_bytes) +
           bt_pad8(meta_bytes);
}

/* Room for n more bytes at the end; NULL after a failure. Doubles, so that a
 * packet costs a constant number of moves, and is kept for the next packet. */
static uint8_t *grow(bt_writer *w, size_t n)
{
    if (w->failed) return NULL;
    if (n > BT_MAX_MESSAGE_BYTES || w->bytes + n > BT_MAX_MESSAGE_BYTES) {
        w->failed = 1;
        return NULL;
    }
    if (w->bytes + n > w->capacity) {
        size_t capacity = w->capacity ? w->capacity : 4096;
        while (capacity < w->bytes + n) capacity *= 2;
        if (n > capacity / 2) capacity = w->bytes + n; /* large: no more than is needed */
        uint8_t *data = realloc(w->data, capacity);
        if (data == NULL) {
            w->failed = 1;
            return NULL;
        }
        w->data = data;
        w->capacity = capacity;
    }
    uint8_t *place = w->data + w->bytes;
    w->bytes += n;
    return place;
}

void bt_writer_start(bt_writer *w)
{
    w->bytes = 0;
    w->records = 0;
    w->record = 0;
    w->failed = 0;
    uint8_t *d = grow(w, BT_PACKET_HEADER);
    if (d == NULL) return;
    memset(d, 0, BT_PACKET_HEADER);
    memcpy(d, "BATC", 4);
    bt_put16(d + 4, BT_WIRE_VERSION);
}

int bt_writer_finish(bt_writer *w)
{
    if (w->failed || w->records > BT_MAX_RECORDS) return -1;
    bt_put32(w->data + 8, w->records);
    bt_put32(w->data + 12, (uint32_t)w->bytes);
    return 0;
}

void bt_writer_reserve(bt_writer *w, size_t bytes)
{
    if (grow(w, bytes) != NULL) w->bytes -= bytes;
}

void bt_writer_free(bt_writer *w)
{
    free(w->data);
    memset(w, 0, sizeof *w);
}

/* A record's header and, of the `bytes` that it has, so many bytes of zeros in all. */
static uint8_t *begin_long(bt_writer *w, bt_record_type type, uint64_t id, size_t bytes, size_t zeros)
{
    if (w->failed) return NULL;
    w->record = w->bytes;
    w->records++;
    uint8_t *d = grow(w, bytes);
    if (d == NULL) return NULL;
    memset(d, 0, zeros);
    d[0] = (uint8_t)type;
    bt_put32(d + 4, (uint32_t)bytes);
    bt_put64(d + 8, id);
    return d;
}

static uint8_t *begin(bt_writer *w, bt_record_type type, uint64_t id, size_t bytes)
{
    return begin_long(w, type, id, bytes, bytes);
}

void bt_write_abort(bt_writer *w)
{
    w->bytes = w->record;
    w->records--;
    w->failed = 0;
}

void bt_write_empty(bt_writer *w, bt_record_type type, uint64_t id)
{
    begin(w, type, id, BT_RECORD_HEADER);
}

void bt_write_greeting(bt_writer *w, bt_record_type type, const bt_wire_greeting *g)
{
    size_t name = bt_pad8(g->name_bytes);
    uint8_t *d = begin(w, type, 0, 40 + name + bt_pad8(g->description_bytes));
    if (d == NULL) return;
    bt_put16(d + 16, g->role);
    bt_put16(d + 18, g->lowest_version);
    bt_put16(d + 20, g->highest_version);
    bt_put32(d + 24, g->credits);
    bt_put32(d + 28, g->name_bytes);
    bt_put32(d + 32, g->description_bytes);
    bt_put32(d + 36, g->pid);
    if (g->name_bytes) memcpy(d + 40, g->name, g->name_bytes);
    if (g->description_bytes) memcpy(d + 40 + name, g->description, g->description_bytes);
}

void bt_write_error(bt_writer *w, uint64_t id, const bt_wire_error *e)
{
    size_t total = 0;
    for (int i = 0; i < 4; i++) total += e->text_bytes[i];
    uint8_t *d = begin(w, BT_ERROR, id, 48 + bt_pad8(total));
    if (d == NULL) return;
    bt_put16(d + 16, e->code);
    bt_put32(d + 20, (uint32_t)e->exit_code);
    bt_put64(d + 24, (uint64_t)e->number);
    uint8_t *at = d + 48;
    for (int i = 0; i < 4; i++) {
        bt_put32(d + 32 + 4 * i, e->text_bytes[i]);
        if (e->text_bytes[i]) memcpy(at, e->texts[i], e->text_bytes[i]);
        at += e->text_bytes[i];
    }
}

/* What of a rows record has a place that does not depend on the rest. */
static void put_fixed(uint8_t *d, int64_t budget_ns, uint32_t rows, uint32_t padded_rows, uint16_t method,
                      uint16_t buffers, uint32_t key_bytes, uint32_t meta_bytes)
{
    bt_put64(d + 16, (uint64_t)budget_ns);
    bt_put32(d + 24, rows);
    bt_put32(d + 28, padded_rows);
    bt_put16(d + 32, method);
    bt_put16(d + 34, buffers);
    bt_put32(d + 36, key_bytes);
    bt_put32(d + 40, meta_bytes);
}

void bt_write_rows_begin(bt_writer *w, bt_record_type type, uint64_t id, int64_t budget_ns,
                         uint32_t rows, uint32_t padded_rows, uint16_t method, uint16_t buffers,
                         uint32_t key_bytes, uint32_t meta_bytes)
{
    uint8_t *d = begin(w, type, id, BT_ROWS_FIXED_BYTES);
    if (d != NULL) put_fixed(d, budget_ns, rows, padded_rows, method, buffers, key_bytes, meta_bytes);
}

void bt_write_client(bt_writer *w, uint32_t client)
{
    if (!w->failed) bt_put32(w->data + w->bytes - 4, client);
}

uint8_t *bt_write_rows_whole(bt_writer *w, bt_record_type type, uint64_t id, int64_t budget_ns, uint32_t rows,
                             uint32_t padded_rows, uint16_t buffers, const uint8_t *key, uint32_t key_bytes,
                             size_t bytes)
{
    uint8_t *d = begin_long(w, type, id, bytes, BT_ROWS_FIXED_BYTES);
    if (d == NULL) return NULL;
    put_fixed(d, budget_ns, rows, padded_rows, 0, buffers, key_bytes, 0);
    uint8_t *descriptors = d + BT_ROWS_FIXED_BYTES, *at = descriptors + (size_t)BT_DESCRIPTOR_BYTES * buffers;
    if (key_bytes) memcpy(at, key, key_bytes);
    bt_put_padding(at + key_bytes, key_bytes);
    return descriptors;
}

void bt_write_descriptor(bt_writer *w, uint64_t bytes, int32_t row_bytes, uint32_t frames)
{
    uint8_t *d = grow(w, BT_DESCRIPTOR_BYTES);
    if (d == NULL) return;
    bt_put64(d, bytes);
    bt_put32(d + 8, (uint32_t)row_bytes);
    bt_put32(d + 12, frames);
}

uint8_t *bt_write_padded(bt_writer *w, const void *data, size_t bytes)
{
    size_t padded = bt_pad8(bytes);
    uint8_t *d = grow(w, padded);
    if (d == NULL) return NULL;
    if (data != NULL && bytes) memcpy(d, data, bytes);
    memset(d + bytes, 0, padded - bytes);
    return d;
}

void bt_write_rows_end(bt_writer *w, uint16_t frames)
{
    if (w->failed) return;
    uint8_t *d = w->data + w->record;
    bt_put16(d + 2, frames);
    bt_put32(d + 4, (uint32_t)(w->bytes - w->record));
}
