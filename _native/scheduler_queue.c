/* Groups and clients: who waits, in which order they are taken.
 *
 * Every queued call is in two lists: its group's, by arrival, and its client's
 * within the group. As long as one batch takes everything the first decides;
 * beyond that the clients take turns (deficit round-robin in rows), each in
 * its own order. With one client both are the same order.
 */
#include <stdlib.h>
#include <string.h>

#include "scheduler_state.h"

/* A call without a deadline ranks among groups as if it had this much time. */
#define AGEING_NS INT64_C(1000000000)
/* Clients passed over in one batch because their next call did not fit: bounds
 * the search for somebody whose call does. */
#define MOST_PASSED_OVER 64

/* A batch is shared out among all clients, but among so many at most: answers to
 * calls that came together should leave together, and with hundreds of clients
 * each would be given a row or two at a time. */
#define MOST_SHARERS 32

/* ---- groups ------------------------------------------------------------- */

bt_group *bt_group_at(bt_scheduler *s, uint64_t number) {
    bt_group *g = bt_map_get(&s->groups, number, 0);
    if (g) return g;
    if (bt_map_reserve(&s->groups, s->groups.count + 1)) return NULL;
    g = s->free_groups;
    if (g) s->free_groups = g->next_free;
    else if (!(g = calloc(1, sizeof *g))) return NULL;
    g->number = number;
    g->held_since_ns = BT_NEVER;
    bt_map_put(&s->groups, number, 0, g);
    return g;
}

void bt_group_release(bt_scheduler *s, bt_group *g) {
    if (g->live_calls || g->batches) return;
    bt_map_remove(&s->groups, g->number, 0);
    g->next_free = s->free_groups;
    s->free_groups = g;
}

/* Puts the group where it belongs among the groups with queued calls. */
static void rank(bt_scheduler *s, bt_group *g) {
    if (!g->first) {
        if (g->rank.at) bt_heap_remove(&s->ranks, &g->rank);
        return;
    }
    int64_t key = bt_later(g->first->arrival_ns, AGEING_NS);
    const bt_node *tightest = bt_heap_first(&g->tight);
    if (tightest) key = bt_least(key, tightest->key);
    if (g->rank.at && g->rank.key == key && g->rank.tie == g->first->due.tie) return;
    g->rank.key = key;
    g->rank.tie = g->first->due.tie;
    if (g->rank.at) bt_heap_moved(&s->ranks, &g->rank);
    else bt_heap_push(&s->ranks, &g->rank);
}

/* ---- clients ------------------------------------------------------------ */

static void turn_append(bt_group *g, bt_client *client) {
    client->prev = g->turn_last;
    client->next = NULL;
    if (g->turn_last) g->turn_last->next = client;
    else g->turn_first = client;
    g->turn_last = client;
}

static void turn_remove(bt_group *g, bt_client *client) {
    if (client->prev) client->prev->next = client->next;
    else g->turn_first = client->next;
    if (client->next) client->next->prev = client->prev;
    else g->turn_last = client->prev;
}

static void turn_lead(bt_group *g, bt_client *client) {
    client->prev = NULL;
    client->next = g->turn_first;
    if (g->turn_first) g->turn_first->prev = client;
    else g->turn_last = client;
    g->turn_first = client;
}

/* The client of this number, made if need be: a spare one has been reserved. */
static bt_client *client_at(bt_scheduler *s, bt_group *g, uint64_t number) {
    if (g->last && g->last->client->number == number) return g->last->client;
    bt_client *client = bt_map_get(&s->clients, number, g->number);
    if (client) return client;
    client = s->free_clients;
    s->free_clients = client->next;
    client->number = number;
    client->first = client->last = NULL;
    client->deficit = 0;
    client->credited = 0;
    bt_map_put(&s->clients, number, g->number, client);
    turn_append(g, client);
    g->clients++;
    return client;
}

static void client_release(bt_scheduler *s, bt_group *g, bt_client *client) {
    turn_remove(g, client);
    g->clients--;
    bt_map_remove(&s->clients, client->number, g->number);
    client->next = s->free_clients;
    s->free_clients = client;
}

/* ---- in and out ----------------------------------------------------------- */

int bt_queue_reserve(bt_scheduler *s, bt_group *g, int with_deadline) {
    if (with_deadline && bt_heap_reserve(&g->tight, g->tight.count + 1)) return -1;
    if (bt_heap_reserve(&s->ranks, s->ranks.count + 1)) return -1;
    if (bt_map_reserve(&s->clients, s->clients.count + 1)) return -1;
    if (s->free_clients) return 0;
    s->free_clients = calloc(1, sizeof *s->free_clients);
    return s->free_clients ? 0 : -1;
}

void bt_queue_add(bt_scheduler *s, bt_call *c, uint64_t client_number) {
    bt_group *g = c->group;
    bt_client *client = client_at(s, g, client_number);
    c->client = client;
    c->client_next = NULL;
    c->client_prev = client->last;
    if (client->last) client->last->client_next = c;
    else client->first = c;
    client->last = c;
    c->next = NULL;
    c->prev = g->last;
    if (g->last) g->last->next = c;
    else g->first = c;
    g->last = c;
    g->queued_calls++;
    g->queued_rows += c->rows;
    g->zero_calls += c->rows == 0;
    s->queued_zero_calls += c->rows == 0;
    s->counted.queued_calls++;
    s->counted.queued_rows += c->rows;
    if (c->deadline_ns != BT_NEVER) {
        c->tight.key = c->deadline_ns;
        c->tight.tie = c->due.tie;
        bt_heap_push(&g->tight, &c->tight);
    }
    if (g->first == c || c->tight.at == 1) rank(s, g);
}

/* Takes the call off the lists. Its rows have been counted off before; the
 * group's rank is the caller's to set. */
static void unlink_call(bt_scheduler *s, bt_call *c) {
    bt_group *g = c->group;
    bt_client *client = c->client;
    if (c->prev) c->prev->next = c->next;
    else g->first = c->next;
    if (c->next) c->next->prev = c->prev;
    else g->last = c->prev;
    if (c->client_prev) c->client_prev->client_next = c->client_next;
    else client->first = c->client_next;
    if (c->client_next) c->client_next->client_prev = c->client_prev;
    else client->last = c->client_prev;
    if (!client->first) client_release(s, g, client);
    if (c->tight.at) bt_heap_remove(&g->tight, &c->tight);
    c->client = NULL;
    if (--g->queued_calls == 0) g->held_since_ns = BT_NEVER;
    g->zero_calls -= c->rows == 0;
    s->queued_zero_calls -= c->rows == 0;
    if (!c->sealed_parts) s->counted.queued_calls--;
}

void bt_queue_leave(bt_scheduler *s, bt_call *c) {
    int64_t rows = c->rows - c->next_row;
    c->group->queued_rows -= rows;
    s->counted.queued_rows -= rows;
    c->next_row = c->rows;
    unlink_call(s, c);
    rank(s, c->group);
    bt_policy_left(s->policy, s->now_ns, c->group->number, rows);
}

/* ---- taking ---------------------------------------------------------------- */

size_t bt_queue_parts(const bt_group *g, int64_t limit) {
    return (size_t)bt_least(g->queued_calls, bt_most(limit, 1) + g->zero_calls);
}

/* Rows of the call's next part. */
static int64_t part_rows(const bt_scheduler *s, const bt_call *c) {
    int64_t rows = c->rows - c->next_row;
    return s->options.one_call_a_batch ? rows : bt_least(rows, s->options.max_batch_rows);
}

/* A call that has to be cut runs its full-size parts alone. */
static int fits(const bt_scheduler *s, const bt_batch *b, const bt_call *c, int64_t limit) {
    if (b->part_count == 0) return 1;
    int64_t rows = c->rows - c->next_row;
    return !s->options.one_call_a_batch && rows <= s->options.max_batch_rows && rows <= limit - b->rows;
}

/* Moves the next part of a call into the batch; 1 if nothing may join it. */
static int take(bt_scheduler *s, bt_batch *b, bt_call *c) {
    int64_t rows = part_rows(s, c);
    b->parts[b->part_count++] = (bt_part){bt_call_id(c), c->tag, c->next_row, rows};
    b->rows += rows;
    b->tightest_ns = bt_least(b->tightest_ns, c->deadline_ns);
    c->next_row += rows;
    c->group->queued_rows -= rows;
    s->counted.queued_rows -= rows;
    if (c->next_row < c->rows) return 1;
    unlink_call(s, c);
    return s->options.one_call_a_batch;
}

static void fill_in_order(bt_scheduler *s, bt_group *g, bt_batch *b, int64_t limit) {
    while (g->first && fits(s, b, g->first, limit)) {
        if (take(s, b, g->first)) return;
    }
}

/* What the client's next part costs of its credit. A call of no rows costs one
 * row, or a client could send nothing but those and never lose its turn. */
static int64_t price(const bt_scheduler *s, const bt_client *client) {
    return bt_most(1, part_rows(s, client->first));
}

/* Takes what the client at the head may take now; 1 if the batch is complete. */
static int take_turn(bt_scheduler *s, bt_group *g, bt_batch *b, int64_t limit) {
    bt_client *client = g->turn_first;
    for (;;) {
        int64_t costs = price(s, client);
        if (costs > client->deficit || !fits(s, b, client->first, limit)) return 0;
        client->deficit -= costs;
        int64_t clients = g->clients;
        if (take(s, b, client->first)) return 1;
        if (g->clients < clients) return 0; /* that was its last call: the client is gone */
    }
}

/* One quantum a turn, what is left of it kept. A client whose next call has the
 * credit but not the room is passed over: somebody else may fill the room, and
 * it leads the next batch. Whoever ends the batch in the middle of a turn keeps
 * the turn. */
static void fill_by_turns(bt_scheduler *s, bt_group *g, bt_batch *b, int64_t limit) {
    bt_client *passed_over[MOST_PASSED_OVER];
    size_t passed = 0;
    int64_t sharers = g->clients < MOST_SHARERS ? g->clients : MOST_SHARERS;
    int64_t quantum = bt_most(1, s->options.max_batch_rows / sharers);
    int complete = 0;
    while (!complete && g->turn_first && passed < MOST_PASSED_OVER && (b->part_count == 0 || b->rows < limit)) {
        bt_client *client = g->turn_first;
        if (!client->credited) client->deficit += quantum;
        client->credited = 1;
        complete = take_turn(s, g, b, limit);
        if (complete || g->turn_first != client) continue;
        turn_remove(g, client);
        if (price(s, client) <= client->deficit) {
            passed_over[passed++] = client;
        } else {
            client->credited = 0;
            turn_append(g, client);
        }
    }
    while (passed) turn_lead(g, passed_over[--passed]);
}

void bt_queue_fill(bt_scheduler *s, bt_group *g, bt_batch *b, int64_t limit, int in_order) {
    int crowded = s->options.one_call_a_batch ? g->queued_calls > 1 : g->queued_rows > limit - b->rows;
    if (crowded && g->clients > 1 && !in_order) fill_by_turns(s, g, b, limit);
    else fill_in_order(s, g, b, limit);
    rank(s, g);
}
