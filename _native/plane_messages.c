/* What comes in to the native plane: greetings, records, and word of connections that ended. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plane_state.h"

/* Messages taken in one turn before what they ask for is done. */
#define MESSAGES_A_TURN 1000
/* Of one client, that its owner has at a time to group their calls. */
#define MOST_PASSED 1000u

/* ---- greetings -------------------------------------------------------------------- */

/* The value of "token" in a worker's description, a JSON object of plain strings. */
static void read_token(const bt_wire_greeting *g, char *token)
{
    static const char name[] = "\"token\"";
    const uint8_t *at = g->description, *end = at + g->description_bytes;
    token[0] = 0;
    for (; at + sizeof name - 1 < end; at++) {
        if (memcmp(at, name, sizeof name - 1) != 0) continue;
        at += sizeof name - 1;
        while (at < end && (*at == ' ' || *at == ':')) at++;
        if (at >= end || *at++ != '"') return;
        size_t n = 0;
        while (at < end && *at != '"' && *at != '\\' && n < BT_TOKEN_BYTES - 1) token[n++] = (char)*at++;
        token[at < end && *at == '"' ? n : 0] = 0;
        return;
    }
}

/* Why the greeting is not taken, in `text`; 0 if it is. */
static int refused(const bt_plane *p, const bt_wire_greeting *g, char *text, size_t size)
{
    if (g->lowest_version > BT_WIRE_VERSION || g->highest_version < BT_WIRE_VERSION)
        snprintf(text, size, "protocol versions %u to %u asked for, %u spoken here", g->lowest_version,
                 g->highest_version, BT_WIRE_VERSION);
    else if (g->name_bytes != p->name_bytes || memcmp(g->name, p->name, p->name_bytes) != 0)
        snprintf(text, size, "no runner '%.*s' here, only '%s'", (int)g->name_bytes, (const char *)g->name,
                 p->name);
    else if (g->role == BT_ROLE_DISPATCHER)
        snprintf(text, size, "only clients and workers say HELLO");
    else if (g->role == BT_ROLE_CLIENT && p->state != BT_OPEN) /* workers may be needed to get done */
        snprintf(text, size, "the service of '%s' is closing", p->name);
    else
        return 0;
    return 1;
}

static bt_peer *add_peer(bt_plane *p, const bt_wire_greeting *g, const void *identity, size_t bytes, int fd)
{
    bt_peer *peer = bt_peer_new(p, g->role, identity, bytes, fd);
    if (peer == NULL || g->role == BT_ROLE_CLIENT) return peer;
    bt_event *ready = NULL;
    peer->credits = g->credits < 1 ? 1 : g->credits > 1024 ? 1024 : g->credits;
    peer->pid = g->pid;
    peer->freed_at = ++p->clock;
    peer->running = calloc(peer->credits, sizeof *peer->running);
    read_token(g, peer->token);
    if (peer->token[0] != 0) {
        ready = calloc(1, sizeof *ready);
        peer->last_word = calloc(1, sizeof *peer->last_word);
    }
    if (peer->running == NULL || (peer->token[0] != 0 && (ready == NULL || peer->last_word == NULL))) {
        free(ready);
        bt_peer_free(p, peer);
        return NULL;
    }
    if (ready != NULL) bt_plane_word(p, ready, BT_EVENT_READY, peer->token, NULL);
    return peer;
}

static void greet(bt_plane *p, bt_message *m, const void *identity, size_t bytes, const bt_wire_greeting *g)
{
    char why[BT_MAX_NAME_BYTES * 2 + 64];
    if (refused(p, g, why, sizeof why)) {
        bt_plane_reply(p, identity, bytes, BT_E_UNREACHABLE, why);
        return;
    }
    /* A connection that ended gave its descriptor back: read of that before the
     * descriptor's next owner is noted, or the newcomer would be taken for gone. */
    bt_plane_read_monitor(p);
    bt_peer *peer = bt_peer_find(p, identity, bytes);
    if (peer == NULL) {
        int fd = bt_zmq.msg_get(&m->zmsg[0], BT_ZMQ_SOURCE_FD);
        peer = add_peer(p, g, identity, bytes, fd);
        bt_zmq_widen(fd);
    }
    if (peer == NULL) {
        bt_plane_reply(p, identity, bytes, BT_E_UNREACHABLE, "no memory for one more connection");
        return;
    }
    bt_wire_greeting welcome = {
        .role = BT_ROLE_DISPATCHER, .lowest_version = BT_WIRE_VERSION, .highest_version = BT_WIRE_VERSION,
        .name_bytes = p->name_bytes, .name = (const uint8_t *)p->name,
        .description_bytes = p->description_bytes, .description = p->description,
    };
    bt_write_greeting(&bt_peer_post(p, peer)->w, BT_WELCOME, &welcome);
}

void bt_plane_read_monitor(bt_plane *p)
{
    int received = 0;
    while (p->monitor != NULL && (received = bt_inbox_receive(&p->monitor_inbox, p->monitor)) > 0) {
        bt_zmsg *event = &p->monitor_inbox.zmsg[0];
        if (bt_zmq.msg_size(event) < 6) continue;
        /* u16 event, u32 value, in the machine's own order; only DISCONNECTED is asked for. */
        uint32_t fd;
        memcpy(&fd, (const char *)bt_zmq.msg_data(event) + 2, sizeof fd);
        for (bt_peer *peer = p->peers; peer != NULL; peer = peer->next)
            if (peer->fd == (int)fd && !peer->gone) bt_plane_leave(p, peer);
    }
    /* Without memory: its descriptor does not tell of it again. */
    p->monitor_unread = received < 0 && (bt_zmq_events(p->monitor) & BT_ZMQ_POLLIN);
}

/* ---- messages ------------------------------------------------------------------------ */

static void obey(bt_plane *p, bt_peer *peer, bt_message *m, const bt_checked *c)
{
    int client = peer->role == BT_ROLE_CLIENT;
    switch (c->record.type) {
    case BT_CALL:
        if (client) {
            bt_plane_call(p, peer, m, &c->record, &c->body.rows);
            return;
        }
        break;
    case BT_CANCEL:
        if (client) {
            bt_plane_cancel(p, peer, c->record.id);
            return;
        }
        break;
    case BT_RESULT:
        if (!client) {
            bt_plane_result(p, peer, m, &c->record, &c->body.rows);
            return;
        }
        break;
    case BT_ERROR:
        if (!client) {
            bt_plane_raised(p, peer, &c->record, &c->body.error);
            return;
        }
        break;
    case BT_PING:
        bt_write_empty(&bt_peer_post(p, peer)->w, BT_PONG, c->record.id);
        return;
    case BT_STOP:
        if (!client) {
            bt_plane_release(p, peer);
            return;
        }
        break;
    case BT_BYE:
        bt_plane_goodbye(p, peer);
        return;
    case BT_PONG:
        bt_plane_pong(p, peer, c->record.id);
        return;
    default:
        break;
    }
    p->dropped++;
}

enum { BROKEN = -1, NO_MEMORY = -2 };

/* All records of a message, checked; the number, or BROKEN for one that breaks a rule (which a client
 * is told), or NO_MEMORY. */
static int64_t check(bt_plane *p, bt_peer *peer, const bt_message *m)
{
    bt_packet packet;
    uint32_t n = 0;
    int step;
    if (bt_packet_open(&packet, m->frame[0].data, m->frame[0].bytes, m->frames) != BT_WIRE_OK) return BROKEN;
    for (;; n++) {
        if (n == p->checked_capacity) {
            uint32_t capacity = n ? 2 * n : 64;
            bt_checked *grown = realloc(p->checked, capacity * sizeof *grown);
            if (grown == NULL) return NO_MEMORY;
            p->checked = grown;
            p->checked_capacity = capacity;
        }
        bt_checked *c = &p->checked[n];
        step = bt_packet_next(&packet, &c->record);
        int large = step == 0 && m->bytes > p->max_message_bytes;
        if (step == 0 && !large) return n;
        int broken =
            step <= 0 || bt_record_check(&c->record, bt_message_frame_size, m, &c->body) != BT_WIRE_OK;
        if (!broken) continue;
        if (peer == NULL || peer->role != BT_ROLE_CLIENT) return BROKEN;
        char text[BT_TEXT_BYTES] = "malformed packet";
        if (large) bt_too_large(p, m->bytes, "a message", text);
        bt_wire_error e = bt_plain_error(BT_E_MALFORMED, text);
        for (uint32_t i = 0; i < n + (step == 1); i++)
            if (p->checked[i].record.type == BT_CALL && p->checked[i].record.id != 0)
                bt_write_error(&bt_peer_post(p, peer)->w, p->checked[i].record.id, &e);
        return BROKEN;
    }
}

/* Whether this record of a client waits for the owner to say which calls may run together. */
static int is_to_be_grouped(const bt_plane *p, const bt_peer *peer, const bt_checked *c)
{
    if (!p->groups || peer == p->local || peer->role != BT_ROLE_CLIENT) return 0;
    return c->record.type == BT_CANCEL || (c->record.type == BT_CALL && c->body.rows.method == BT_METHOD_RUN);
}

/* Rows that would wait, and at least one for each call. */
static int64_t rows_of(const bt_checked *from, const bt_checked *end)
{
    int64_t rows = 0;
    for (; from < end; from++)
        if (from->record.type == BT_CALL) rows += from->body.rows.rows ? from->body.rows.rows : 1;
    return rows;
}

/* Whether the owner may have one more message; in `text` why not. */
static int may_pass(const bt_plane *p, const bt_peer *peer, int64_t rows, char *text)
{
    if (peer->passed >= MOST_PASSED)
        snprintf(text, BT_TEXT_BYTES, "too many calls of this client wait to be grouped");
    else if (rows > 0 && p->passed_rows > 0 && p->passed_rows + rows > p->max_queue_rows)
        snprintf(text, BT_TEXT_BYTES,
                 "%lld rows wait to be grouped, and %lld more would exceed max_queue_rows, %lld",
                 (long long)p->passed_rows, (long long)rows, (long long)p->max_queue_rows);
    else
        return 1;
    return 0;
}

/* Hands the message to the owner; 0 if there is no memory for that. */
static int pass(bt_plane *p, bt_peer *peer, bt_message *m, int64_t rows)
{
    bt_event *e = calloc(1, sizeof *e);
    bt_passed *passed = calloc(1, sizeof *passed);
    if (e == NULL || passed == NULL) {
        free(e);
        free(passed);
        return 0;
    }
    passed->ticket = p->next_ticket++;
    passed->client = peer->number;
    passed->rows = rows;
    *p->last_passed = passed;
    p->last_passed = &passed->next;
    p->passed_rows += rows;
    peer->passed++;
    passed->message = e->message = m;
    bt_message_keep(m);
    bt_message_keep(m);
    e->kind = BT_EVENT_GROUP;
    e->ticket = passed->ticket;
    e->at_ns = bt_now_ns();
    bt_plane_tell(p, e);
    return 1;
}

/* Hands the message to the owner, with all that follows the first such record, so that the order is kept. */
static void pass_to_be_grouped(bt_plane *p, bt_peer *peer, bt_message *m, const bt_checked *from, const bt_checked *end)
{
    char text[BT_TEXT_BYTES] = "no memory for calls that wait to be grouped";
    int64_t rows = rows_of(from, end);
    if (may_pass(p, peer, rows, text) && pass(p, peer, m, rows)) return;
    bt_wire_error error = bt_plain_error(BT_E_OVERLOADED, text);
    int64_t refused = 0;
    for (; from < end; from++) {
        if (from->record.type != BT_CALL) continue;
        bt_write_error(&bt_peer_post(p, peer)->w, from->record.id, &error);
        refused += from->body.rows.method == BT_METHOD_RUN;
    }
    bt_refused(p->scheduler, refused);
}

/* Takes it out of the list; the client whose message this was, if it is still there. */
static bt_peer *take_passed(bt_plane *p, bt_passed **at)
{
    bt_passed *passed = *at;
    *at = passed->next;
    if (passed->next == NULL) p->last_passed = at;
    p->passed_rows -= passed->rows;
    bt_peer *peer = p->peers;
    while (peer != NULL && (peer->gone || peer->number != passed->client)) peer = peer->next;
    if (peer != NULL) peer->passed--;
    return peer;
}

static void free_passed(bt_passed *passed)
{
    bt_message_drop(passed->message);
    free(passed);
}

/* Fails every call of a message that was passed; it was checked before that. */
static void fail_calls(bt_plane *p, bt_peer *peer, const bt_message *m, uint16_t code, const char *text)
{
    bt_wire_error e = bt_plain_error(code, text);
    bt_packet packet;
    bt_record record;
    if (peer == NULL ||
        bt_packet_open(&packet, m->frame[0].data, m->frame[0].bytes, m->frames) != BT_WIRE_OK)
        return;
    while (bt_packet_next(&packet, &record) == 1) {
        if (record.type != BT_CALL) continue;
        bt_write_error(&bt_peer_post(p, peer)->w, record.id, &e);
        bt_refused(p->scheduler, 1);
    }
}

void bt_plane_fail_passed(bt_plane *p, uint64_t below)
{
    while (p->passed != NULL && p->passed->ticket < below) {
        bt_passed *passed = p->passed;
        bt_peer *peer = take_passed(p, &p->passed);
        fail_calls(p, peer, passed->message, BT_E_OVERLOADED, "the call could not be grouped: out of memory");
        free_passed(passed);
    }
}

/* What became of such a message: its records, and errors of those calls that could not be grouped. */
void bt_plane_grouped(bt_plane *p, const bt_command *c)
{
    bt_passed **at = &p->passed, *passed;
    while (*at != NULL && (*at)->ticket != (uint64_t)c->number) at = &(*at)->next;
    if ((passed = *at) == NULL) return;
    bt_peer *peer = take_passed(p, at);
    int64_t n = peer == NULL ? 0 : check(p, peer, c->message);
    if (n == NO_MEMORY) fail_calls(p, peer, passed->message, BT_E_OVERLOADED, "no memory for the calls");
    free_passed(passed);
    p->arrived_ns = bt_now_ns();
    for (int64_t i = 0; i < n && !peer->gone; i++) {
        const bt_checked *checked = &p->checked[i];
        if (checked->record.type == BT_ERROR)
            bt_write_error(&bt_peer_post(p, peer)->w, checked->record.id, &checked->body.error);
        else
            obey(p, peer, c->message, checked);
    }
}

/* There is no memory for what came; from somebody who is no peer it may have been a greeting. */
static void lose_message(bt_plane *p, bt_peer *peer, const void *identity, size_t bytes)
{
    p->dropped++;
    if (peer != NULL)
        bt_plane_forgo(p, peer);
    else
        bt_plane_reply(p, identity, bytes, BT_E_UNREACHABLE, "no memory for a message");
}

/* One message of a peer, or of somebody who is none yet. */
void bt_plane_receive(bt_plane *p, bt_message *m, const void *identity, size_t bytes)
{
    bt_peer *peer = bt_peer_find(p, identity, bytes);
    int64_t n = check(p, peer, m);
    if (n == NO_MEMORY) {
        lose_message(p, peer, identity, bytes);
        return;
    }
    p->arrived_ns = bt_now_ns();
    if (n == BROKEN) {
        p->dropped++;
        /* A worker's batches would never end: what it meant to say of them is lost. */
        if (peer != NULL && peer->role == BT_ROLE_WORKER) bt_plane_kill(p, peer, "it sent a malformed packet");
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const bt_checked *c = &p->checked[i];
        if (c->record.type == BT_HELLO) {
            greet(p, m, identity, bytes, &c->body.greeting);
            peer = bt_peer_find(p, identity, bytes);
        } else if (peer == NULL || peer->gone) {
            p->dropped++;
            if (peer == NULL && c->record.type != BT_ERROR && c->record.type != BT_BYE)
                bt_plane_reply(p, identity, bytes, BT_E_UNREACHABLE, "not connected here: say HELLO first");
            return;
        } else if (is_to_be_grouped(p, peer, c)) {
            pass_to_be_grouped(p, peer, m, c, p->checked + n);
            return;
        } else {
            obey(p, peer, m, c);
        }
    }
}

void bt_plane_receive_all(bt_plane *p)
{
    p->may_have_input = 1;
    for (int i = 0; i < MESSAGES_A_TURN; i++) {
        int received = bt_inbox_receive(&p->inbox, p->router);
        if (received <= 0) {
            p->may_have_input = received != 0;
            return;
        }
        bt_zmsg *identity = &p->inbox.zmsg[0];
        if (p->inbox.count < 2 || bt_zmq.msg_size(identity) > BT_IDENTITY_BYTES) {
            p->dropped++;
            continue;
        }
        bt_message *m = received == 1 ? bt_message_new(&p->inbox.zmsg[1], p->inbox.count - 1) : NULL;
        if (m == NULL) {
            bt_peer *peer = bt_peer_find(p, bt_zmq.msg_data(identity), bt_zmq.msg_size(identity));
            lose_message(p, peer, bt_zmq.msg_data(identity), bt_zmq.msg_size(identity));
            continue;
        }
        bt_plane_receive(p, m, bt_zmq.msg_data(identity), bt_zmq.msg_size(identity));
        bt_message_drop(m);
    }
}
