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
    m->calls = 0;
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

void bt_release_block(void *data, void *hint)
{
    (void)hint;
    free(data);
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
        if (bt_zmq.msg_init_data(&o->frame[0], o->w.data, used, bt_release_block, NULL) == 0) {
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
