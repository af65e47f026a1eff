/* Peers of the native plane: who is connected, and what leaves for them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plane_state.h"

/* A packet is sent on once it holds so much, its frames included. */
#define PACKET_BYTES (1u << 20)
#define PACKET_RECORDS 16384u
#define PACKET_FRAMES 1024u

/* ---- one peer's queue ------------------------------------------------------- */

/* What a message costs that is not in its frames; so a client that does not read
 * holds no great number of small ones either. */
#define MESSAGE_OVERHEAD_BYTES 4096u

static uint64_t cost(const bt_message *m) { return m->bytes + MESSAGE_OVERHEAD_BYTES; }
static uint64_t unread(const bt_peer *peer) { return peer->sent_bytes - peer->read_bytes; }
/* How much may be on its way to a client, not known to be read. The rest waits in its queue. */
static uint64_t window(const bt_plane *p) { return p->max_unread_bytes / 8; }

static void mark_dirty(bt_plane *p, bt_peer *peer)
{
    if (peer->dirty) return;
    peer->dirty = 1;
    peer->next_dirty = p->dirty;
    p->dirty = peer;
}

static void enqueue(bt_peer *peer, bt_message *m)
{
    m->next = NULL;
    *peer->queue_end = m;
    peer->queue_end = &m->next;
    peer->queued_bytes += cost(m);
}

static bt_message *dequeue(bt_peer *peer)
{
    bt_message *m = peer->queue;
    peer->queue = m->next;
    if (peer->queue == NULL) peer->queue_end = &peer->queue;
    peer->queued_bytes -= cost(m);
    m->next = NULL;
    return m;
}

static void drop_queue(bt_peer *peer)
{
    while (peer->queue != NULL) bt_message_drop(dequeue(peer));
    bt_outgoing_start(&peer->out);
}

/* ---- who is connected ------------------------------------------------------- */

static bt_peer **bucket_of(bt_plane *p, const void *identity, size_t bytes)
{
    return &p->bucket[bt_hash(identity, bytes) % BT_BUCKETS];
}

bt_peer *bt_peer_new(bt_plane *p, uint16_t role, const void *identity, size_t bytes, int fd)
{
    bt_peer *peer = calloc(1, sizeof *peer), **bucket = bucket_of(p, identity, bytes);
    if (peer == NULL) return NULL;
    peer->role = role;
    peer->fd = fd;
    peer->calls = BT_NOWHERE;
    peer->queue_end = &peer->queue;
    peer->number = p->next_number++;
    peer->identity_bytes = bytes;
    if (bytes) memcpy(peer->identity, identity, bytes);
    bt_outgoing_start(&peer->out);
    peer->next = p->peers;
    p->peers = peer;
    peer->next_same = *bucket;
    *bucket = peer;
    if (role == BT_ROLE_WORKER) {
        peer->next_worker = p->workers;
        p->workers = peer;
    }
    return peer;
}

bt_peer *bt_peer_find(bt_plane *p, const void *identity, size_t bytes)
{
    for (bt_peer *peer = *bucket_of(p, identity, bytes); peer != NULL; peer = peer->next_same)
        if (!peer->gone && peer->identity_bytes == bytes && memcmp(peer->identity, identity, bytes) == 0) return peer;
    return NULL;
}

void bt_peer_free(bt_plane *p, bt_peer *peer)
{
    bt_peer **at = &p->peers;
    while (*at != peer) at = &(*at)->next;
    *at = peer->next;
    at = bucket_of(p, peer->identity, peer->identity_bytes);
    while (*at != peer) at = &(*at)->next_same;
    *at = peer->next_same;
    at = &p->workers;
    while (*at != NULL && *at != peer) at = &(*at)->next_worker;
    if (*at != NULL) *at = peer->next_worker;
    at = &p->dirty;
    while (*at != NULL && *at != peer) at = &(*at)->next_dirty;
    if (*at != NULL) *at = peer->next_dirty;
    bt_plane_forget_questions(p, peer);
    drop_queue(peer);
    bt_outgoing_free(&peer->out);
    free(peer->running);
    free(peer->last_word);
    free(peer);
}

/* ---- workers --------------------------------------------------------------- */

void bt_peer_slots(const bt_plane *p, int64_t *idle, int64_t *total)
{
    *idle = *total = 0;
    for (const bt_peer *w = p->workers; w != NULL; w = w->next_worker) {
        if (w->gone || w->leaving) continue;
        *total += w->credits;
        if (!w->hung) *idle += w->credits - w->busy;
    }
}

/* The one with most free credits; among equals the one that became free last:
 * its caches are warm. NULL if none is free. */
bt_peer *bt_peer_free_worker(bt_plane *p)
{
    bt_peer *best = NULL;
    for (bt_peer *w = p->workers; w != NULL; w = w->next_worker) {
        if (w->hung || w->gone || w->leaving || w->busy == w->credits) continue;
        if (best == NULL || w->credits - w->busy > best->credits - best->busy ||
            (w->credits - w->busy == best->credits - best->busy && w->freed_at > best->freed_at))
            best = w;
    }
    return best;
}

/* ---- sending ---------------------------------------------------------------- */

static int send_to(bt_plane *p, bt_message *m, const void *identity, size_t bytes)
{
    p->may_have_input = 1; /* libzmq looks for what came, too, and says so only when asked */
    return bt_message_send(m, p->router, identity, bytes);
}

static void cut_off(bt_plane *p, bt_peer *peer)
{
    const char *why = peer->trouble == ENOMEM ? "cut off: no memory for its calls and answers"
                                              : "cut off: the client did not read its answers";
    p->cut_off++;
    peer->trouble = ECONNABORTED; /* once is enough */
    drop_queue(peer);
    bt_plane_reply(p, peer->identity, peer->identity_bytes, BT_E_UNREACHABLE, why);
}

void bt_plane_forgo(bt_plane *p, bt_peer *peer)
{
    if (peer == p->local) {
        p->local_lost = 1;
    } else if (peer->role == BT_ROLE_WORKER) {
        bt_plane_kill(p, peer, "no memory for what it sent");
    } else if (peer->trouble == 0) {
        peer->trouble = ENOMEM;
        mark_dirty(p, peer);
    }
}

void bt_plane_tell_lost(bt_plane *p)
{
    if (!p->local_lost) return;
    bt_plane_cancel_all(p, p->local);
    drop_queue(p->local);
    if (bt_plane_event(p, BT_EVENT_LOST, NULL, NULL, NULL) == 0) p->local_lost = 0;
}

static void seal(bt_plane *p, bt_peer *peer)
{
    bt_message *m = bt_outgoing_take(&peer->out);
    if (m == NULL) {
        /* Out of memory: nobody knows what was in it, so nobody may wait for it. */
        if (peer == p->local)
            p->local_lost = 1;
        else
            peer->trouble = ENOMEM;
        return;
    }
    /* Of a client that is behind, what waits must not keep whole results of others alive. */
    if (m->spare_bytes > 0 && unread(peer) + peer->queued_bytes > window(p) / 4) bt_message_own(m);
    enqueue(peer, m);
}

/* Whether the client has read enough of what it was sent to be sent the next. */
static int may_send(const bt_plane *p, const bt_peer *peer)
{
    return peer->role != BT_ROLE_CLIENT || peer == p->local || unread(peer) <= window(p) / 2 ||
           unread(peer) + cost(peer->queue) <= window(p);
}

/* Asks a client that was sent much since it last said so whether it has read that. */
static void ask_for_pong(bt_plane *p, bt_peer *peer)
{
    if (peer->role != BT_ROLE_CLIENT || peer->ping != 0 || unread(peer) < window(p) / 4) return;
    bt_outgoing o = {0};
    bt_outgoing_start(&o);
    p->next_ping = p->next_ping * 6364136223846793005u + 1442695040888963407u;
    uint64_t id = p->next_ping ^ p->next_ping >> 29;
    peer->ping = id ? id : 1;
    peer->ping_bytes = peer->sent_bytes;
    bt_write_empty(&o.w, BT_PING, peer->ping);
    bt_message *m = bt_outgoing_take(&o);
    peer->trouble =
        m == NULL ? ENOMEM : send_to(p, m, peer->identity, peer->identity_bytes);
    if (m != NULL) bt_message_drop(m);
    bt_outgoing_free(&o);
}

void bt_plane_pong(bt_plane *p, bt_peer *peer, uint64_t id)
{
    if (id == 0 || id != peer->ping) return;
    peer->read_bytes = peer->ping_bytes;
    peer->ping = 0;
    mark_dirty(p, peer);
}

/* Sends what the peer may have now. Sets its trouble if it is as good as gone. */
static void send_queue(bt_plane *p, bt_peer *peer)
{
    if (peer->trouble == 0 && peer != p->local) ask_for_pong(p, peer);
    while (peer->queue != NULL && peer->trouble == 0 && may_send(p, peer)) {
        bt_message *m = dequeue(peer);
        if (peer == p->local) {
            if (bt_plane_event(p, BT_EVENT_LOCAL, NULL, NULL, m) != 0) p->local_lost = 1;
            continue;
        }
        peer->sent_bytes += cost(m);
        peer->trouble = send_to(p, m, peer->identity, peer->identity_bytes);
        bt_message_drop(m);
        if (peer->trouble == 0) ask_for_pong(p, peer);
    }
    if (peer->role != BT_ROLE_CLIENT || peer == p->local) return;
    /* The first of the queue is let be whatever its size: an answer cannot be smaller. */
    if (peer->queue != NULL && peer->queued_bytes - cost(peer->queue) > p->max_unread_bytes - window(p))
        peer->trouble = EAGAIN;
    if (peer->trouble == EAGAIN || peer->trouble == ENOMEM) cut_off(p, peer);
}

bt_outgoing *bt_peer_post(bt_plane *p, bt_peer *peer)
{
    const bt_outgoing *o = &peer->out;
    mark_dirty(p, peer);
    if (o->w.records >= PACKET_RECORDS || o->w.bytes + o->frame_bytes >= PACKET_BYTES || o->frames >= PACKET_FRAMES) {
        seal(p, peer);
        /* Not all in one go at the end of the turn: that has no bound. */
        if (peer->queued_bytes > window(p)) send_queue(p, peer);
    }
    if (peer->trouble != 0) bt_outgoing_start(&peer->out); /* it leaves: nobody will read it */
    return &peer->out;
}

void bt_too_large(const bt_plane *p, uint64_t bytes, const char *what, char *text)
{
    snprintf(text, BT_TEXT_BYTES, "%s of %llu bytes is above max_message_bytes, %llu", what,
             (unsigned long long)bytes, (unsigned long long)p->max_message_bytes);
}

bt_written bt_peer_write(bt_plane *p, bt_peer *peer, bt_record_type type, uint64_t id, uint32_t padded_rows,
                         const uint8_t *key, uint32_t key_bytes, bt_slice *slices, size_t count,
                         bt_wire_error *error, char *text)
{
    bt_outgoing *o = bt_peer_post(p, peer);
    o->max_bytes = p->max_message_bytes;
    bt_written w = bt_write_slices(o, type, id, -1, padded_rows, key, key_bytes, slices, count);
    if (w == BT_NO_ROOM) {
        seal(p, peer);
        w = bt_write_slices(o, type, id, -1, padded_rows, key, key_bytes, slices, count);
    }
    if (w == BT_WRITTEN) return w;
    const char *what = type == BT_BATCH ? "a call" : "an answer";
    uint64_t bytes = bt_slices_bytes(slices, count, key_bytes);
    if (w == BT_NO_MEMORY)
        snprintf(text, BT_TEXT_BYTES, "no memory to send %s of %llu bytes", what, (unsigned long long)bytes);
    else if (bytes > p->max_message_bytes)
        bt_too_large(p, bytes, what, text);
    else
        snprintf(text, BT_TEXT_BYTES, "%s is in more than %u frames", what, UINT16_MAX);
    *error = bt_plain_error(w == BT_NO_MEMORY ? BT_E_OVERLOADED : BT_E_INVALID_PAYLOAD, text);
    return w;
}

int bt_plane_holds(const bt_plane *p)
{
    for (const bt_peer *peer = p->peers; peer != NULL; peer = peer->next)
        if (peer->queue != NULL && !peer->gone) return 1;
    return 0;
}

/* Workers first: a batch that is on its way gains more than an answer does. */
int bt_plane_flush(bt_plane *p)
{
    int lost = 0;
    for (int workers = 1; workers >= 0; workers--) {
        bt_peer **at = &p->dirty;
        while (*at != NULL) {
            bt_peer *peer = *at;
            if (workers && peer->role != BT_ROLE_WORKER) {
                at = &peer->next_dirty;
                continue;
            }
            *at = peer->next_dirty;
            peer->dirty = 0;
            if (peer->trouble == 0 && (peer->out.w.records > 0 || peer->out.w.failed)) seal(p, peer);
            if (peer->gone) continue;
            send_queue(p, peer);
            if (peer->trouble == 0) continue;
            if (peer->trouble == ENOMEM)
                bt_plane_reply(p, peer->identity, peer->identity_bytes, BT_E_UNREACHABLE, "no memory for a batch");
            bt_plane_leave(p, peer);
            lost = 1;
            at = &p->dirty; /* leaving may have changed the list */
        }
    }
    if (!p->someone_gone) return lost;
    p->someone_gone = 0;
    bt_peer *next;
    for (bt_peer *peer = p->peers; peer != NULL; peer = next) {
        next = peer->next;
        if (peer->gone) bt_peer_free(p, peer);
    }
    return lost;
}

/* ERROR without the words: it fits into what libzmq keeps of a message in the message itself. */
static void say_bye(bt_plane *p, const void *identity, size_t bytes)
{
    static const uint8_t bye[BT_PACKET_HEADER + BT_RECORD_HEADER] = {
        'B', 'A', 'T', 'C', BT_WIRE_VERSION, [8] = 1, [12] = BT_PACKET_HEADER + BT_RECORD_HEADER,
        [BT_PACKET_HEADER] = BT_BYE, [BT_PACKET_HEADER + 4] = BT_RECORD_HEADER,
    };
    bt_zmsg parts[2];
    if (bt_zmq.msg_init_size(&parts[0], bytes) != 0) return;
    memcpy(bt_zmq.msg_data(&parts[0]), identity, bytes);
    int sent = bt_zmq.msg_init_size(&parts[1], sizeof bye) == 0;
    p->may_have_input = 1; /* as in send_to */
    if (sent) {
        memcpy(bt_zmq.msg_data(&parts[1]), bye, sizeof bye);
        sent = bt_zmq.msg_send(&parts[0], p->router, BT_ZMQ_SNDMORE | BT_ZMQ_DONTWAIT) >= 0;
        if (!sent || bt_zmq.msg_send(&parts[1], p->router, BT_ZMQ_DONTWAIT) < 0) bt_zmq.msg_close(&parts[1]);
    }
    if (!sent) bt_zmq.msg_close(&parts[0]);
}

void bt_plane_reply(bt_plane *p, const void *identity, size_t bytes, uint16_t code, const char *text)
{
    bt_outgoing o = {0};
    bt_wire_error error = bt_plain_error(code, text);
    bt_outgoing_start(&o);
    bt_write_error(&o.w, 0, &error);
    bt_message *m = bt_outgoing_take(&o);
    if (m != NULL) {
        /* To somebody who is no peer: it may well not be there. */
        send_to(p, m, identity, bytes);
        bt_message_drop(m);
    } else {
        say_bye(p, identity, bytes);
    }
    bt_outgoing_free(&o);
}
