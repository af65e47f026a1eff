/* Peers of the native plane: who is connected, and what leaves for them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "plane_state.h"

/* A packet is sent on before it holds more than this. */
#define PACKET_BYTES (8u << 20)
#define PACKET_RECORDS 16384u
#define PACKET_FRAMES 1024u

#define CUT_RETRY_NS 100000000

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
        if (peer->identity_bytes == bytes && memcmp(peer->identity, identity, bytes) == 0) return peer;
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
    while (peer->sealed != NULL) {
        bt_message *m = peer->sealed;
        peer->sealed = m->next;
        bt_message_drop(m);
    }
    bt_outgoing_free(&peer->out);
    free(peer->running);
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

static void seal(bt_plane *p, bt_peer *peer)
{
    bt_message *m = bt_outgoing_take(&peer->out), **at = &peer->sealed;
    if (m == NULL) {
        p->dropped++;
        return;
    }
    while (*at != NULL) at = &(*at)->next;
    *at = m;
}

bt_outgoing *bt_peer_post(bt_plane *p, bt_peer *peer)
{
    if (!peer->dirty) {
        peer->dirty = 1;
        peer->next_dirty = p->dirty;
        p->dirty = peer;
    }
    bt_writer *w = &peer->out.w;
    if (w->records >= PACKET_RECORDS || w->bytes >= PACKET_BYTES || peer->out.frames >= PACKET_FRAMES)
        seal(p, peer);
    return &peer->out;
}

void bt_plane_put(bt_plane *p, uint64_t client, bt_message *message)
{
    for (bt_peer *peer = p->peers; peer != NULL; peer = peer->next) {
        if (peer->number != client || peer->gone) continue;
        bt_peer_post(p, peer);
        if (peer->out.w.records > 0) seal(p, peer);
        bt_message **at = &peer->sealed;
        while (*at != NULL) at = &(*at)->next;
        bt_message_keep(message);
        *at = message;
        return;
    }
}

static void cut_off(bt_plane *p, const bt_peer *peer)
{
    p->cut_off++;
    bt_cut *cut = calloc(1, sizeof *cut);
    if (cut == NULL) return;
    memcpy(cut->identity, peer->identity, peer->identity_bytes);
    cut->identity_bytes = peer->identity_bytes;
    cut->next = p->cut;
    p->cut = cut;
    p->cut_retry_ns = bt_now_ns() + CUT_RETRY_NS;
}

/* 0 if everything for the peer was taken; else it is as good as gone. */
static int send_peer(bt_plane *p, bt_peer *peer)
{
    while (peer->sealed != NULL) {
        bt_message *m = peer->sealed;
        peer->sealed = m->next;
        m->next = NULL;
        if (peer == p->local) {
            bt_plane_event(p, BT_EVENT_LOCAL, NULL, NULL, m);
            continue;
        }
        int error = bt_message_send(m, p->router, peer->identity, peer->identity_bytes);
        bt_message_drop(m);
        if (error == 0) continue;
        if (error == EAGAIN && peer->role == BT_ROLE_CLIENT) cut_off(p, peer);
        return error;
    }
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
            if (peer->out.w.records > 0 || peer->out.w.failed) seal(p, peer);
            if (peer->gone || send_peer(p, peer) == 0) continue;
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

void bt_plane_reply(bt_plane *p, const void *identity, size_t bytes, uint16_t code, const char *text)
{
    bt_outgoing o = {0};
    bt_wire_error error = bt_plain_error(code, text);
    bt_outgoing_start(&o);
    bt_write_error(&o.w, 0, &error);
    bt_message *m = bt_outgoing_take(&o);
    if (m != NULL) {
        /* To somebody who is no peer: it may well not be there. */
        bt_message_send(m, p->router, identity, bytes);
        bt_message_drop(m);
    }
    bt_outgoing_free(&o);
}

void bt_plane_retry_cut(bt_plane *p, int64_t now_ns)
{
    bt_cut **at = &p->cut;
    if (p->cut == NULL || now_ns < p->cut_retry_ns) return;
    bt_outgoing o = {0};
    bt_wire_error error = bt_plain_error(BT_E_UNREACHABLE, "cut off: the client did not read its answers");
    while (*at != NULL) {
        bt_cut *cut = *at;
        bt_outgoing_start(&o);
        bt_write_error(&o.w, 0, &error);
        bt_message *m = bt_outgoing_take(&o);
        int failed = m == NULL ? EAGAIN : bt_message_send(m, p->router, cut->identity, cut->identity_bytes);
        if (m != NULL) bt_message_drop(m);
        if (failed == EAGAIN) {
            at = &cut->next;
            continue;
        }
        *at = cut->next; /* told, or gone */
        free(cut);
    }
    bt_outgoing_free(&o);
    p->cut_retry_ns = now_ns + CUT_RETRY_NS;
}
