/* Feeds the wire codec with broken messages, under the sanitizers:
 *
 *   fuzz_wire [MESSAGES]
 *
 * Every frame is a heap block of exactly its own size, so that one byte read
 * beyond a length ends the program. What passes the checks is read to the last byte.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_memory.h"
#include "wire.h"
#undef calloc
#undef malloc
#undef realloc

void *fuzz_realloc(void *old, size_t size) { return realloc(old, size); }
void *fuzz_calloc(size_t count, size_t size) { return calloc(count, size); }
void *fuzz_malloc(size_t size) { return malloc(size); }

#define MAX_FRAMES 4

typedef struct {
    uint8_t *data[MAX_FRAMES];
    size_t bytes[MAX_FRAMES];
    uint32_t frames;
} message;

static uint64_t state = 0x9E3779B97F4A7C15u;
static volatile uint64_t sink;

static uint32_t draw(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 11) % below);
}

static size_t frame_size(const void *m, uint32_t frame) { return ((const message *)m)->bytes[frame]; }

static void touch(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++) sink += p[i];
}

static void read_rows(const message *m, const bt_wire_rows *rows)
{
    bt_wire_walk walk;
    bt_wire_buffer b;
    touch(rows->key, rows->key_bytes);
    touch(rows->meta, rows->meta_bytes);
    for (bt_wire_rows_walk(rows, &walk); bt_wire_rows_next(rows, &walk, &b);) {
        if (b.lengths) touch(b.lengths, (size_t)4 * rows->rows);
        if (b.data) touch(b.data, b.bytes);
        for (uint32_t i = 0; i < b.frames; i++)
            touch(m->data[b.first_frame + i], m->bytes[b.first_frame + i]);
    }
}

static int read_message(const message *m)
{
    bt_packet p;
    bt_record r;
    bt_body body;
    if (bt_packet_open(&p, m->data[0], m->bytes[0], m->frames) != BT_WIRE_OK) return 0;
    int step;
    while ((step = bt_packet_next(&p, &r)) == 1) {
        if (bt_record_check(&r, frame_size, m, &body) != BT_WIRE_OK) return 0;
        if (r.type == BT_HELLO || r.type == BT_WELCOME) {
            touch(body.greeting.name, body.greeting.name_bytes);
            touch(body.greeting.description, body.greeting.description_bytes);
        } else if (r.type == BT_ERROR) {
            for (int i = 0; i < 4; i++) touch(body.error.texts[i], body.error.text_bytes[i]);
        } else if (r.type <= BT_ANSWER || r.type == BT_BATCH || r.type == BT_RESULT) {
            read_rows(m, &body.rows);
        }
    }
    return step == 0;
}

static void write_rows(bt_writer *w, message *m)
{
    uint32_t rows = draw(6), count = draw(4);
    uint16_t frames = 0;
    uint8_t zeros[64] = {0};
    bt_record_type types[] = {BT_CALL, BT_ANSWER, BT_BATCH, BT_RESULT};
    bt_write_rows_begin(w, types[draw(4)], 1 + draw(9), -1, rows, rows, 0, (uint16_t)count, 3, 5);
    int32_t sizes[4];
    int framed[4];
    for (uint32_t i = 0; i < count; i++) {
        sizes[i] = (int32_t)draw(9) - 1;
        framed[i] = sizes[i] > 0 && rows > 0 && m->frames < MAX_FRAMES && draw(3) == 0;
        size_t bytes = sizes[i] == BT_VAR ? 2 * rows : (size_t)sizes[i] * rows;
        bt_write_descriptor(w, bytes, sizes[i], (uint32_t)framed[i]);
        if (!framed[i]) continue;
        m->bytes[m->frames] = bytes;
        m->data[m->frames++] = calloc(1, bytes);
        frames++;
    }
    bt_write_padded(w, "key", 3);
    bt_write_padded(w, "meta!", 5);
    for (uint32_t i = 0; i < count; i++) {
        if (sizes[i] == BT_VAR) {
            uint8_t *lengths = bt_write_padded(w, NULL, (size_t)4 * rows);
            for (uint32_t k = 0; k < rows; k++) bt_put32(lengths + 4 * k, 2);
        }
        if (!framed[i]) bt_write_padded(w, zeros, sizes[i] == BT_VAR ? 2 * rows : (size_t)sizes[i] * rows);
    }
    bt_write_rows_end(w, frames);
}

static void write_message(bt_writer *w, message *m)
{
    memset(m, 0, sizeof *m);
    m->frames = 1;
    bt_writer_start(w);
    for (uint32_t n = draw(5); n > 0; n--) {
        bt_wire_greeting g = {1, 1, 1, 0, 0, 4, 3, (const uint8_t *)"name", (const uint8_t *)"{ }"};
        bt_wire_error e = {4, -1, -1, {1, 2, 0, 3}, {(const uint8_t *)"a", (const uint8_t *)"bc", NULL,
                           (const uint8_t *)"def"}};
        switch (draw(5)) {
        case 0: bt_write_greeting(w, BT_HELLO, &g); break;
        case 1: bt_write_error(w, draw(9), &e); break;
        case 2: bt_write_empty(w, BT_CANCEL, draw(9)); break;
        default: write_rows(w, m);
        }
    }
    if (bt_writer_finish(w) != 0) abort();
    m->bytes[0] = w->bytes;
    m->data[0] = malloc(w->bytes);
    memcpy(m->data[0], w->data, w->bytes);
}

static void break_message(message *m)
{
    static const uint8_t odd[] = {0, 1, 2, 3, 4, 7, 8, 16, 127, 128, 255};
    for (uint32_t n = draw(4); n > 0; n--) m->data[0][draw((uint32_t)m->bytes[0])] = odd[draw(sizeof odd)];
    if (draw(8) != 0) return;
    uint32_t frame = draw(m->frames);
    size_t bytes = draw((uint32_t)m->bytes[frame] + 9);
    if (bytes > m->bytes[frame]) return;
    uint8_t *cut = malloc(bytes ? bytes : 1);
    memcpy(cut, m->data[frame], bytes);
    free(m->data[frame]);
    m->data[frame] = cut;
    m->bytes[frame] = bytes;
    /* A header that agrees with the cut lets the checks further in be reached. */
    if (frame == 0 && bytes >= BT_PACKET_HEADER && draw(2)) bt_put32(cut + 12, (uint32_t)bytes);
}

int main(int argc, char **argv)
{
    long rounds = argc > 1 ? atol(argv[1]) : 200000, good = 0;
    bt_writer w = {0};
    message m;
    for (long i = 0; i < rounds; i++) {
        write_message(&w, &m);
        if (i % 8 == 0 && !read_message(&m)) abort(); /* unbroken: must be read */
        break_message(&m);
        good += read_message(&m);
        for (uint32_t k = 0; k < m.frames; k++) free(m.data[k]);
    }
    bt_writer_free(&w);
    printf("%ld messages, %ld of them still readable after the damage\n", rounds, good);
    return 0;
}
