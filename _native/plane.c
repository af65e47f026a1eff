/* The native plane's thread: what wakes it, and one turn of its work. */
#include "plane.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plane_state.h"

/* How long an ending plane waits for clients to read what it has for them; then
 * libzmq goes on with what it was given, for as long again. */
#define LINGER_NS 500000000

/* ---- commands -------------------------------------------------------------------------- */

static void worker_died(bt_plane *p, const bt_command *c)
{
    bt_wire_error e;
    if (bt_error_of(c->message, &e) != 0) e = bt_plain_error(BT_E_WORKER_DIED, "the worker died");
    bt_plane_receive_all(p); /* what it sent before it died counts */
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
        bt_plane_receive(p, c->message, "", 0);
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
        bt_plane_grouped(p, c);
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
    int no_numbers;
    uint64_t lost_below = bt_plane_lost(p, &no_numbers);
    bt_command *next;
    for (bt_command *c = bt_plane_take_commands(p, close); c != NULL; c = next) {
        next = c->next;
        command(p, c);
        if (c->message != NULL) bt_message_drop(c->message);
        if (c != &p->ending) free(c);
    }
    bt_plane_fail_passed(p, lost_below);
    if (!no_numbers) return;
    bt_wire_error e = bt_plain_error(BT_E_OVERLOADED, "no memory for an answer");
    bt_plane_fail_questions(p, &e);
}

/* ---- the thread --------------------------------------------------------------------------- */

static void tell_drained(bt_plane *p)
{
    if (p->drained == NULL) return;
    bt_plane_word(p, p->drained, BT_EVENT_DRAINED, NULL, NULL);
    p->drained = NULL;
}

/* Of a sleep: which of the thread's descriptors. */
enum { ROUTER = 1, MONITOR = 2, WAKE = 4 };

static void turn(bt_plane *p, unsigned readable)
{
    if (readable & WAKE) bt_wake_clear(&p->wake);
    obey_commands(p, 0);
    bt_plane_receive_all(p);
    if (readable & MONITOR || p->monitor_unread) bt_plane_read_monitor(p);
    bt_plane_kill_hung(p, bt_now_ns());
    do {
        bt_plane_dispatch(p);
    } while (bt_plane_flush(p));
    bt_plane_tell_lost(p);
    if (p->state == BT_DRAINING && p->ledger.by_request.count == 0) tell_drained(p);
}

/* libzmq's descriptors tell of a change only to those who have seen that there was nothing, and sending may
 * have swallowed it: asked before going to sleep. The monitor is never sent to, and always read to the last. */
static int has_input(bt_plane *p)
{
    if (p->monitor_unread) return 1;
    if (!p->may_have_input) return 0;
    p->may_have_input = (bt_zmq_events(p->router) & BT_ZMQ_POLLIN) != 0;
    return p->may_have_input;
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
        bt_plane_receive_all(p);
        bt_plane_read_monitor(p);
        bt_plane_flush(p);
    }
    pthread_mutex_unlock(&p->lock);
}

static int64_t wake_time(const bt_plane *p)
{
    int64_t until_ns = p->until_ns;
    if (p->local_lost) until_ns = bt_now_ns() + 1000000; /* for want of memory: tried again */
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
    unsigned readable = ROUTER | MONITOR | WAKE; /* all of them may be: nobody has looked */
    for (;;) {
        pthread_mutex_lock(&p->lock);
        turn(p, readable);
        int ended = p->state == BT_ENDED;
        int64_t until_ns = wake_time(p);
        int more = !ended && has_input(p);
        pthread_mutex_unlock(&p->lock);
        if (ended) break;
        readable = more ? ROUTER | MONITOR : bt_sleep(fds, 3, until_ns);
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
    bt_plane_tell_lost(p);
    tell_drained(p);
    bt_plane_word(p, p->last, BT_EVENT_ENDED, NULL, NULL);
    p->last = NULL;
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
    p->last_passed = &p->passed;
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
    p->drained = calloc(1, sizeof *p->drained);
    p->last = calloc(1, sizeof *p->last);
    if (p->name == NULL || p->description == NULL || p->local == NULL || p->drained == NULL || p->last == NULL ||
        bt_wake_open(&p->wake) != 0) {
        bt_plane_free(p);
        return NULL;
    }
    memcpy(p->name, o->name, p->name_bytes + 1);
    memcpy(p->description, o->description, o->description_bytes);
    return p;
}

void bt_plane_free(bt_plane *p)
{
    for (bt_command *c = bt_plane_take_commands(p, 1), *next; c != NULL; c = next) {
        next = c->next;
        if (c->message != NULL) bt_message_drop(c->message);
        if (c != &p->ending) free(c);
    }
    free(p->drained);
    free(p->last);
    for (bt_event *e = p->events, *next; e != NULL; e = next) {
        next = e->next;
        bt_event_free(e);
    }
    for (bt_passed *passed = p->passed, *next; passed != NULL; passed = next) {
        next = passed->next;
        bt_message_drop(passed->message);
        free(passed);
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
