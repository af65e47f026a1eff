/* The native plane's thread: what wakes it, and one turn of its work. */
#include "plane.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plane_state.h"

/* Messages taken in one turn before what they ask for is done. */
#define MESSAGES_A_TURN 1000
/* How long an ending plane waits for clients to read what it has for them; then
 * libzmq goes on with what it was given, for as long again. */
#define LINGER_NS 500000000

/* ---- queues between the threads ------------------------------------------------ */

static void tell(bt_plane *p, bt_event *e)
{
    pthread_mutex_lock(&p->gate);
    *p->last_event = e;
    p->last_event = &e->next;
    pthread_cond_signal(&p->arrived);
    pthread_mutex_unlock(&p->gate);
}

int bt_plane_event(bt_plane *p, bt_event_kind kind, const char *token, const char *why, bt_message *message)
{
    bt_event *e = calloc(1, sizeof *e);
    if (e == NULL) {
        if (message != NULL) bt_message_drop(message);
        return -1;
    }
    e->kind = kind;
    e->message = message;
    if (why != NULL) snprintf(e->why, sizeof e->why, "%s", why);
    if (token != NULL) memcpy(e->token, token, BT_TOKEN_BYTES);
    tell(p, e);
    return 0;
}

bt_event *bt_plane_events(bt_plane *p)
{
    pthread_mutex_lock(&p->gate);
    while (p->events == NULL && !p->last_taken) pthread_cond_wait(&p->arrived, &p->gate);
    bt_event *events = p->events;
    p->events = NULL;
    p->last_event = &p->events;
    for (bt_event *e = events; e != NULL; e = e->next)
        if (e->kind == BT_EVENT_ENDED) p->last_taken = 1;
    pthread_mutex_unlock(&p->gate);
    return events;
}

void bt_event_free(bt_event *e)
{
    if (e->message != NULL) bt_message_drop(e->message);
    free(e);
}

int bt_plane_command(bt_plane *p, bt_command_kind kind, const char *token, bt_message *message, int64_t number)
{
    bt_command *c = calloc(1, sizeof *c);
    int refused = c == NULL;
    if (c != NULL) {
        c->kind = kind;
        c->message = message;
        c->number = number;
        if (token != NULL) strncpy(c->token, token, BT_TOKEN_BYTES - 1);
    }
    pthread_mutex_lock(&p->gate);
    refused |= p->closed;
    if (!refused) {
        /* Inside the gate: a plane that has ended gives its descriptor back. */
        if (p->commands == NULL) bt_wake_signal(&p->wake);
        *p->last_command = c;
        p->last_command = &c->next;
    }
    pthread_mutex_unlock(&p->gate);
    if (refused) {
        if (message != NULL) bt_message_drop(message);
        free(c);
        return -1;
    }
    return 0;
}

static bt_command *take_commands(bt_plane *p, int close)
{
    pthread_mutex_lock(&p->gate);
    bt_command *commands = p->commands;
    p->commands = NULL;
    p->last_command = &p->commands;
    p->closed |= close;
    pthread_mutex_unlock(&p->gate);
    return commands;
}

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

static void read_monitor(bt_plane *p);

static bt_peer *add_peer(bt_plane *p, const bt_wire_greeting *g, const void *identity, size_t bytes, int fd)
{
    bt_peer *peer = bt_peer_new(p, g->role, identity, bytes, fd);
    if (peer == NULL || g->role == BT_ROLE_CLIENT) return peer;
    peer->credits = g->credits < 1 ? 1 : g->credits > 1024 ? 1024 : g->credits;
    peer->pid = g->pid;
    peer->freed_at = ++p->clock;
    peer->running = calloc(peer->credits, sizeof *peer->running);
    if (peer->running == NULL) {
        bt_peer_free(p, peer);
        return NULL;
    }
    read_token(g, peer->token);
    if (peer->token[0] != 0) bt_plane_event(p, BT_EVENT_READY, peer->token, NULL, NULL);
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
    read_monitor(p);
    bt_peer *peer = bt_peer_find(p, identity, bytes);
    if (peer == NULL) {
        int fd = bt_zmq.msg_get(&m->zmsg[0], BT_ZMQ_SOURCE_FD);
        peer = add_peer(p, g, identity, bytes, fd);
    }
    if (peer == NULL) return;
    bt_wire_greeting welcome = {
        .role = BT_ROLE_DISPATCHER, .lowest_version = BT_WIRE_VERSION, .highest_version = BT_WIRE_VERSION,
        .name_bytes = p->name_bytes, .name = (const uint8_t *)p->name,
        .description_bytes = p->description_bytes, .description = p->description,
    };
    bt_write_greeting(&bt_peer_post(p, peer)->w, BT_WELCOME, &welcome);
}

static void read_monitor(bt_plane *p)
{
    while (p->monitor != NULL && bt_inbox_receive(&p->monitor_inbox, p->monitor) == 1) {
        bt_zmsg *event = &p->monitor_inbox.zmsg[0];
        if (bt_zmq.msg_size(event) < 6) continue;
        /* u16 event, u32 value, in the machine's own order; only DISCONNECTED is asked for. */
        uint32_t fd;
        memcpy(&fd, (const char *)bt_zmq.msg_data(event) + 2, sizeof fd);
        for (bt_peer *peer = p->peers; peer != NULL; peer = peer->next)
            if (peer->fd == (int)fd && !peer->gone) bt_plane_leave(p, peer);
    }
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

/* All records of a message, checked; the number, or -1 for one that breaks a rule. */
static int64_t check(bt_plane *p, bt_peer *peer, const bt_message *m)
{
    bt_packet packet;
    uint32_t n = 0;
    int step;
    if (bt_packet_open(&packet, m->frame[0].data, m->frame[0].bytes, m->frames) != BT_WIRE_OK) return -1;
    for (;; n++) {
        if (n == p->checked_capacity) {
            uint32_t capacity = n ? 2 * n : 64;
            bt_checked *grown = realloc(p->checked, capacity * sizeof *grown);
            if (grown == NULL) return -1;
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
        if (peer == NULL || peer->role != BT_ROLE_CLIENT) return -1;
        char text[BT_TEXT_BYTES] = "malformed packet";
        if (large) bt_too_large(p, m->bytes, "a message", text);
        bt_wire_error e = bt_plain_error(BT_E_MALFORMED, text);
        for (uint32_t i = 0; i < n + (step == 1); i++)
            if (p->checked[i].record.type == BT_CALL && p->checked[i].record.id != 0)
                bt_write_error(&bt_peer_post(p, peer)->w, p->checked[i].record.id, &e);
        return -1;
    }
}

/* Whether this record of a client waits for the owner to say which calls may run together. */
static int is_to_be_grouped(const bt_plane *p, const bt_peer *peer, const bt_checked *c)
{
    return p->groups && peer != p->local && peer->role == BT_ROLE_CLIENT &&
           (c->record.type == BT_CALL || c->record.type == BT_CANCEL);
}

/* Hands the message to the owner, with all that follows the first such record, so that the order is kept. */
static void pass_to_be_grouped(bt_plane *p, bt_peer *peer, bt_message *m, const bt_checked *from, const bt_checked *end)
{
    bt_event *e = calloc(1, sizeof *e);
    if (e != NULL) {
        bt_message_keep(m);
        e->kind = BT_EVENT_GROUP;
        e->message = m;
        e->client = peer->number;
        e->at_ns = bt_now_ns();
        tell(p, e);
        return;
    }
    bt_wire_error error = bt_plain_error(BT_E_OVERLOADED, "no memory for one more call");
    for (; from < end; from++)
        if (from->record.type == BT_CALL) bt_write_error(&bt_peer_post(p, peer)->w, from->record.id, &error);
}

/* What became of such a message: its records, and errors of those calls that could not be grouped. */
static void grouped(bt_plane *p, const bt_command *c)
{
    bt_peer *peer = p->peers;
    while (peer != NULL && (peer->gone || (int64_t)peer->number != c->number)) peer = peer->next;
    int64_t n = peer == NULL ? 0 : check(p, peer, c->message);
    for (int64_t i = 0; i < n && !peer->gone; i++) {
        const bt_checked *checked = &p->checked[i];
        if (checked->record.type == BT_ERROR)
            bt_write_error(&bt_peer_post(p, peer)->w, checked->record.id, &checked->body.error);
        else
            obey(p, peer, c->message, checked);
    }
}

/* One message of a peer, or of somebody who is none yet. */
static void receive(bt_plane *p, bt_message *m, const void *identity, size_t bytes)
{
    bt_peer *peer = bt_peer_find(p, identity, bytes);
    int64_t n = check(p, peer, m);
    if (n < 0) {
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

static void receive_all(bt_plane *p)
{
    for (int i = 0; i < MESSAGES_A_TURN && bt_inbox_receive(&p->inbox, p->router) == 1; i++) {
        bt_zmsg *identity = &p->inbox.zmsg[0];
        if (p->inbox.count < 2 || bt_zmq.msg_size(identity) > BT_IDENTITY_BYTES) {
            p->dropped++;
            continue;
        }
        bt_message *m = bt_message_new(&p->inbox.zmsg[1], p->inbox.count - 1);
        if (m == NULL) {
            p->dropped++;
            continue;
        }
        receive(p, m, bt_zmq.msg_data(identity), bt_zmq.msg_size(identity));
        bt_message_drop(m);
    }
}

/* ---- commands -------------------------------------------------------------------------- */

static void worker_died(bt_plane *p, const bt_command *c)
{
    bt_wire_error e;
    if (bt_error_of(c->message, &e) != 0) e = bt_plain_error(BT_E_WORKER_DIED, "the worker died");
    receive_all(p); /* what it sent before it died counts */
    for (bt_peer *w = p->workers; w != NULL; w = w->next_worker)
        if (!w->gone && strcmp(w->token, c->token) == 0) bt_plane_lose(p, w, &e);
}

static void end(bt_plane *p, const bt_message *message)
{
    bt_wire_error e;
    if (bt_error_of(message, &e) != 0) e = bt_plain_error(BT_E_CLOSED, "the service was stopped");
    /* First: whoever hears of the end finds no command taken any more. */
    pthread_mutex_lock(&p->gate);
    p->closed = 1;
    pthread_mutex_unlock(&p->gate);
    bt_plane_fail_all(p, &e);
    bt_plane_fail_questions(p, &e);
    for (bt_peer *peer = p->peers; peer != NULL; peer = peer->next)
        if (peer != p->local && !peer->gone) bt_write_empty(&bt_peer_post(p, peer)->w, BT_BYE, 0);
    bt_plane_flush(p);
    p->state = BT_ENDED;
}

static void command(bt_plane *p, bt_command *c)
{
    bt_wire_error e;
    switch (c->kind) {
    case BT_COMMAND_LOCAL:
        receive(p, c->message, "", 0);
        break;
    case BT_COMMAND_DIED:
        worker_died(p, c);
        break;
    case BT_COMMAND_FAILING:
        if (p->failing != NULL) bt_message_drop(p->failing);
        p->failing = c->message;
        c->message = NULL;
        if (bt_error_of(p->failing, &e) == 0) bt_plane_fail_all(p, &e);
        break;
    case BT_COMMAND_DRAIN:
        if (p->state == BT_OPEN) p->state = BT_DRAINING;
        break;
    case BT_COMMAND_DISMISS:
        for (bt_peer *w = p->workers; w != NULL; w = w->next_worker)
            if (!w->gone) bt_plane_release(p, w);
        break;
    case BT_COMMAND_END:
        end(p, c->message);
        break;
    case BT_COMMAND_TIMEOUT:
        p->run_timeout_ns = c->number;
        break;
    case BT_COMMAND_QUEUE_ROWS:
        p->max_queue_rows = c->number;
        break;
    case BT_COMMAND_GROUPED:
        grouped(p, c);
        break;
    case BT_COMMAND_REPLY:
        bt_plane_answer_questions(p, c->message);
        break;
    case BT_COMMAND_WAKE:
        break;
    }
}

static void obey_commands(bt_plane *p, int close)
{
    bt_command *next;
    for (bt_command *c = take_commands(p, close); c != NULL; c = next) {
        next = c->next;
        command(p, c);
        if (c->message != NULL) bt_message_drop(c->message);
        free(c);
    }
}

/* ---- the thread --------------------------------------------------------------------------- */

static void turn(bt_plane *p)
{
    obey_commands(p, 0);
    receive_all(p);
    read_monitor(p);
    bt_plane_kill_hung(p, bt_now_ns());
    do {
        bt_plane_dispatch(p);
    } while (bt_plane_flush(p));
    if (p->state == BT_DRAINING && !p->drained_told && p->ledger.by_request.count == 0) {
        p->drained_told = 1;
        bt_plane_event(p, BT_EVENT_DRAINED, NULL, NULL, NULL);
    }
}

/* libzmq's descriptors tell of a change only once, and sending may have swallowed
 * it: asked before going to sleep. */
static int has_input(bt_plane *p)
{
    return (bt_zmq_events(p->router) & BT_ZMQ_POLLIN) ||
           (p->monitor && (bt_zmq_events(p->monitor) & BT_ZMQ_POLLIN));
}

/* Gives clients that are behind a moment to read what waits for them. */
static void linger(bt_plane *p, const int *fds)
{
    int64_t until_ns = bt_now_ns() + LINGER_NS;
    pthread_mutex_lock(&p->lock);
    while (bt_plane_holds(p) && bt_now_ns() < until_ns) {
        if (!has_input(p)) {
            pthread_mutex_unlock(&p->lock);
            bt_sleep(fds, 2, until_ns);
            pthread_mutex_lock(&p->lock);
        }
        receive_all(p);
        read_monitor(p);
        bt_plane_flush(p);
    }
    pthread_mutex_unlock(&p->lock);
}

static int64_t wake_time(const bt_plane *p)
{
    int64_t until_ns = p->until_ns;
    if (p->run_timeout_ns < 0) return until_ns;
    for (const bt_peer *w = p->workers; w != NULL; w = w->next_worker) {
        if (w->hung) continue;
        for (uint32_t i = 0; i < w->busy; i++)
            if (w->running[i].kill_ns < until_ns) until_ns = w->running[i].kill_ns;
    }
    return until_ns;
}

void bt_plane_run(bt_plane *p)
{
    int fds[3] = {bt_zmq_descriptor(p->router), p->monitor ? bt_zmq_descriptor(p->monitor) : -1,
                  p->wake.reader};
    for (;;) {
        pthread_mutex_lock(&p->lock);
        turn(p);
        int ended = p->state == BT_ENDED;
        int64_t until_ns = wake_time(p);
        int more = !ended && has_input(p);
        pthread_mutex_unlock(&p->lock);
        if (ended) break;
        if (more) continue;
        bt_sleep(fds, 3, until_ns);
        bt_wake_clear(&p->wake);
    }
    /* No new commands are taken; those that came before are obeyed, so that their
     * calls are known; then everything that is left fails. */
    pthread_mutex_lock(&p->lock);
    obey_commands(p, 1);
    bt_wire_error e = bt_plain_error(BT_E_CLOSED, "the service was stopped");
    bt_plane_fail_all(p, &e);
    bt_plane_flush(p);
    pthread_mutex_unlock(&p->lock);
    linger(p, fds);
    if (!p->drained_told) bt_plane_event(p, BT_EVENT_DRAINED, NULL, NULL, NULL);
    bt_plane_event(p, BT_EVENT_ENDED, NULL, NULL, NULL);
}

/* ---- life ----------------------------------------------------------------------------------- */

/* Ids that a client can only know from the PINGs themselves. */
static uint64_t first_ping(const bt_plane *p)
{
    uint64_t id;
    if (getentropy(&id, sizeof id) != 0) id = (uint64_t)bt_now_ns() ^ (uint64_t)(uintptr_t)p;
    return id;
}

bt_plane *bt_plane_new(const bt_plane_options *o)
{
    bt_plane *p = calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    p->wake.reader = p->wake.writer = -1;
    pthread_mutex_init(&p->lock, NULL);
    pthread_mutex_init(&p->gate, NULL);
    pthread_cond_init(&p->arrived, NULL);
    bt_ledger_init(&p->ledger);
    p->last_command = &p->commands;
    p->last_event = &p->events;
    p->router = o->router;
    p->monitor = o->monitor;
    p->scheduler = o->scheduler;
    p->run_timeout_ns = o->run_timeout_ns;
    p->max_queue_rows = o->max_queue_rows;
    p->max_message_bytes = o->max_message_bytes < BT_MAX_MESSAGE_BYTES ? o->max_message_bytes : BT_MAX_MESSAGE_BYTES;
    p->max_unread_bytes = o->max_unread_bytes;
    p->groups = o->groups;
    p->refuses_pickle = o->refuses_pickle;
    p->next_ping = first_ping(p);
    p->until_ns = BT_NEVER;
    p->name_bytes = (uint32_t)strlen(o->name);
    p->description_bytes = o->description_bytes;
    p->name = malloc(p->name_bytes + 1);
    p->description = malloc(o->description_bytes + 1);
    p->local = bt_peer_new(p, BT_ROLE_CLIENT, "", 0, -1);
    if (p->name == NULL || p->description == NULL || p->local == NULL || bt_wake_open(&p->wake) != 0) {
        bt_plane_free(p);
        return NULL;
    }
    memcpy(p->name, o->name, p->name_bytes + 1);
    memcpy(p->description, o->description, o->description_bytes);
    return p;
}

void bt_plane_free(bt_plane *p)
{
    for (bt_command *c = take_commands(p, 1), *next; c != NULL; c = next) {
        next = c->next;
        if (c->message != NULL) bt_message_drop(c->message);
        free(c);
    }
    for (bt_event *e = p->events, *next; e != NULL; e = next) {
        next = e->next;
        bt_event_free(e);
    }
    while (p->peers != NULL) bt_peer_free(p, p->peers);
    bt_ledger_free(&p->ledger);
    bt_inbox_free(&p->inbox);
    bt_inbox_free(&p->monitor_inbox);
    if (p->failing != NULL) bt_message_drop(p->failing);
    bt_wake_close(&p->wake);
    pthread_cond_destroy(&p->arrived);
    pthread_mutex_destroy(&p->gate);
    pthread_mutex_destroy(&p->lock);
    free(p->question);
    free(p->checked);
    free(p->slices);
    free(p->name);
    free(p->description);
    free(p);
}

void bt_plane_close(bt_plane *p)
{
    pthread_mutex_lock(&p->gate);
    p->closed = 1;
    bt_wake_close(&p->wake);
    pthread_mutex_unlock(&p->gate);
}

int bt_plane_describe(bt_plane *p, const uint8_t *description, uint32_t bytes)
{
    uint8_t *copy = malloc((size_t)bytes + 1);
    if (copy == NULL) return -1;
    memcpy(copy, description, bytes);
    pthread_mutex_lock(&p->lock);
    uint8_t *old = p->description;
    p->description = copy;
    p->description_bytes = bytes;
    pthread_mutex_unlock(&p->lock);
    free(old);
    return 0;
}

void bt_plane_lock(bt_plane *p) { pthread_mutex_lock(&p->lock); }
void bt_plane_unlock(bt_plane *p) { pthread_mutex_unlock(&p->lock); }

void bt_plane_count(const bt_plane *p, bt_plane_counters *out)
{
    memset(out, 0, sizeof *out);
    out->dropped = p->dropped;
    out->cut_off = p->cut_off;
    out->keys = p->ledger.next_group;
    out->calls = p->ledger.by_request.count;
    for (const bt_peer *peer = p->peers; peer != NULL; peer = peer->next) {
        if (peer->gone || peer == p->local) continue;
        if (peer->role == BT_ROLE_CLIENT) out->clients++;
        if (peer->role == BT_ROLE_WORKER && !peer->hung && !peer->leaving) out->workers++;
    }
}

size_t bt_plane_workers(const bt_plane *p, uint32_t *pids, size_t capacity)
{
    size_t n = 0;
    for (const bt_peer *w = p->workers; w != NULL; w = w->next_worker) {
        if (w->gone) continue;
        if (n < capacity) pids[n] = w->pid;
        n++;
    }
    return n;
}

const char *bt_plane_check(const bt_plane *p)
{
    for (const bt_peer *peer = p->peers; peer != NULL; peer = peer->next)
        if (peer->busy > peer->credits) return "a worker has no more batches than credits";
    const char *broken = bt_ledger_check(&p->ledger);
    return broken != NULL ? broken : bt_check(p->scheduler);
}
