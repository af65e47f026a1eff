/* Every invariant of the scheduler, each under the sentence that it breaks.
 * Walks everything: for tests and debug builds. */
#include <stdlib.h>

#include "scheduler_state.h"

#define CHECK(holds, sentence) \
    do {                       \
        if (!(holds)) return sentence; \
    } while (0)

/* What the walk has counted, to compare with the accounts. */
typedef struct {
    int64_t live, with_deadline, queued_calls, queued_rows, zero_calls, groups_waiting, clients, running, sealed;
} bt_census;

static const char *check_heap(const bt_heap *heap) {
    CHECK(heap->count <= heap->capacity, "a heap has room for its nodes");
    for (size_t i = 0; i < heap->count; i++) {
        CHECK(heap->nodes[i]->at == i + 1, "a node knows its place in the heap");
        CHECK(i == 0 || !bt_node_before(heap->nodes[i], heap->nodes[(i - 1) / 2]), "no node comes before its parent");
    }
    return NULL;
}

static const char *check_map(const bt_map *map) {
    size_t count = 0;
    for (size_t i = 0; i < map->capacity; i++) {
        const bt_entry *entry = &map->entries[i];
        if (!entry->value) continue;
        count++;
        CHECK(bt_map_get(map, entry->a, entry->b) == entry->value, "every key of a map is found");
    }
    CHECK(count == map->count, "a map counts its keys");
    CHECK(map->capacity == 0 || count * 2 <= map->capacity, "a map is at most half full");
    return NULL;
}

/* ---- the queue of one group ------------------------------------------------- */

static const char *check_arrivals(const bt_group *g) {
    int64_t calls = 0, rows = 0, zero = 0;
    size_t with_deadline = 0;
    const bt_call *before = NULL;
    for (const bt_call *c = g->first; c; before = c, c = c->next) {
        CHECK(c->live && c->group == g && c->client, "a queued call is live and knows its group and client");
        CHECK(c->prev == before, "the queue of a group is linked both ways");
        CHECK(!before || before->due.tie < c->due.tie, "the queue of a group is in the order of admission");
        CHECK(c->next_row < c->rows || c->rows == 0, "a queued call has rows to run, or never had any");
        CHECK(!c->tight.at == (c->deadline_ns == BT_NEVER), "a queued call is in its group's heap if it has a deadline");
        calls++;
        rows += c->rows - c->next_row;
        zero += c->rows == 0;
        with_deadline += c->deadline_ns != BT_NEVER;
    }
    CHECK(g->last == before, "a group knows its last call");
    CHECK(calls == g->queued_calls && rows == g->queued_rows, "a group counts its queued calls and rows");
    CHECK(zero == g->zero_calls, "a group counts its queued calls of no rows");
    CHECK(with_deadline == g->tight.count, "a group's heap holds its queued calls with a deadline and no other");
    return check_heap(&g->tight);
}

static const char *check_client(const bt_scheduler *s, const bt_group *g, const bt_client *client, int64_t *calls) {
    CHECK(client->first, "a client has a call in the queue");
    CHECK(client->deficit >= 0, "no client owes rows");
    CHECK(bt_map_get(&s->clients, client->number, g->number) == client, "a client is found by its number and group");
    const bt_call *before = NULL;
    for (const bt_call *c = client->first; c; before = c, c = c->client_next) {
        CHECK(c->client == client && c->group == g, "a client's queue holds its own calls in this group");
        CHECK(c->client_prev == before, "a client's queue is linked both ways");
        CHECK(!before || before->due.tie < c->due.tie, "a client's queue is in the order of admission");
        ++*calls;
    }
    CHECK(client->last == before, "a client knows its last call");
    return NULL;
}

static const char *check_clients(const bt_scheduler *s, const bt_group *g, bt_census *census) {
    int64_t clients = 0, calls = 0;
    const bt_client *before = NULL;
    for (const bt_client *client = g->turn_first; client; before = client, client = client->next) {
        CHECK(client->prev == before, "the turns of a group are linked both ways");
        const char *broken = check_client(s, g, client, &calls);
        if (broken) return broken;
        clients++;
    }
    CHECK(g->turn_last == before, "a group knows whose turn is last");
    CHECK(clients == g->clients, "a group counts its clients");
    CHECK(calls == g->queued_calls, "every queued call is in the queue of one client");
    census->clients += clients;
    return NULL;
}

static const char *check_rank(const bt_group *g) {
    if (!g->first) {
        CHECK(!g->rank.at, "a group without queued calls has no rank");
        return NULL;
    }
    int64_t key = bt_later(g->first->arrival_ns, INT64_C(1000000000));
    for (const bt_call *c = g->first; c; c = c->next) key = bt_least(key, c->deadline_ns);
    CHECK(g->rank.at, "a group with queued calls has a rank");
    CHECK(g->rank.key == key, "a rank is the least deadline or the oldest arrival and a second");
    CHECK(g->rank.tie == g->first->due.tie, "equal ranks are told apart by the oldest call");
    return NULL;
}

static const char *check_groups(const bt_scheduler *s, bt_census *census) {
    for (size_t i = 0; i < s->groups.capacity; i++) {
        const bt_group *g = s->groups.entries[i].value;
        if (!g) continue;
        CHECK(g->number == s->groups.entries[i].a, "a group is found by its number");
        CHECK(g->live_calls > 0 || g->batches > 0, "a group lives while a call or a batch refers to it");
        const char *broken = check_arrivals(g);
        if (!broken) broken = check_clients(s, g, census);
        if (!broken) broken = check_rank(g);
        if (broken) return broken;
        census->groups_waiting += g->first != NULL;
    }
    return NULL;
}

/* ---- calls and batches --------------------------------------------------------- */

/* Rows and parts of a call in the batches of one state. */
static void count_parts(const bt_scheduler *s, bt_id id, bt_batch_state state, int64_t *parts, int64_t *rows) {
    *parts = *rows = 0;
    for (size_t i = 0; i < s->batch_count; i++) {
        const bt_batch *b = s->batches[i];
        for (size_t k = 0; b->state == state && k < b->part_count; k++) {
            if (b->parts[k].id != id) continue;
            ++*parts;
            *rows += b->parts[k].rows;
        }
    }
}

static const char *check_call(const bt_scheduler *s, const bt_call *c) {
    int64_t parts, running, sealed, running_parts;
    count_parts(s, bt_call_id(c), BT_BATCH_SEALED, &parts, &sealed);
    count_parts(s, bt_call_id(c), BT_BATCH_RUNNING, &running_parts, &running);
    CHECK(c->sealed_parts == parts && c->sealed_rows == sealed, "a call counts its rows in sealed batches");
    CHECK(c->done_rows + running + sealed + (c->rows - c->next_row) == c->rows,
          "every row of a live call is done, in one batch, or in the queue");
    CHECK(c->client || running_parts || parts, "a live call waits or runs");
    CHECK(!c->due.at == (c->deadline_ns == BT_NEVER), "a live call is in the heap if it has a deadline");
    CHECK(c->deadline_ns == BT_NEVER || c->due.key == c->deadline_ns, "the heap is ordered by the deadlines");
    return NULL;
}

static const char *check_calls(const bt_scheduler *s, bt_census *census) {
    for (size_t i = 0; i < s->chunk_count * BT_CALLS_A_CHUNK; i++) {
        const bt_call *c = &s->chunks[i / BT_CALLS_A_CHUNK][i % BT_CALLS_A_CHUNK];
        CHECK(c->index == i, "a call knows its place");
        if (!c->live) continue;
        const char *broken = check_call(s, c);
        if (broken) return broken;
        census->live++;
        census->with_deadline += c->deadline_ns != BT_NEVER;
        census->queued_calls += bt_call_waits(c);
        census->queued_rows += c->rows - c->next_row + c->sealed_rows;
        census->zero_calls += c->client && c->rows == 0;
    }
    return NULL;
}

static const char *check_batch(const bt_scheduler *s, const bt_batch *b) {
    int64_t rows = 0;
    for (size_t i = 0; i < b->part_count; i++) {
        const bt_call *c = bt_call_of(s, b->parts[i].id);
        rows += b->parts[i].rows;
        CHECK(c || b->state == BT_BATCH_RUNNING, "a sealed batch holds live calls only");
        CHECK(!c || c->group == b->group, "no batch mixes groups");
        CHECK(!c || b->parts[i].first_row + b->parts[i].rows <= c->next_row, "a part has left the queue");
        for (size_t k = 0; k < i; k++) CHECK(b->parts[k].id != b->parts[i].id, "a call is in a batch once");
    }
    CHECK(b->part_count > 0, "a batch holds a call");
    CHECK(rows == b->rows, "a batch counts its rows");
    CHECK(b->state == BT_BATCH_SEALED || b->padded_rows >= b->rows, "padding adds rows");
    CHECK(b->part_count <= s->settled_capacity, "there is room to settle any batch");
    CHECK(!b->trial || b->trial->open > 0, "a trial is open while a batch of it is");
    CHECK(b->trial || b->state == BT_BATCH_RUNNING, "a sealed batch belongs to a trial");
    CHECK(bt_map_get(&s->groups, b->group->number, 0) == b->group, "a batch keeps its group alive");
    return NULL;
}

static const char *check_batches(const bt_scheduler *s, bt_census *census) {
    for (size_t i = 0; i < s->batch_count; i++) {
        const bt_batch *b = s->batches[i];
        CHECK(b->index == i, "a batch knows its place");
        if (b->state == BT_BATCH_FREE) continue;
        const char *broken = check_batch(s, b);
        if (broken) return broken;
        if (b->state == BT_BATCH_RUNNING) census->running++;
        else census->sealed++;
    }
    const bt_batch *before = NULL;
    for (const bt_batch *b = s->running; b; before = b, b = b->next, census->running--) {
        CHECK(b->state == BT_BATCH_RUNNING && b->prev == before, "running batches are in the list of those");
    }
    CHECK(census->running == 0, "every running batch is in the list once");
    before = NULL;
    for (const bt_batch *b = s->sealed; b; before = b, b = b->next, census->sealed--) {
        CHECK(b->state == BT_BATCH_SEALED && b->prev == before, "sealed batches are on the stack");
    }
    CHECK(census->sealed == 0, "every sealed batch is on the stack once");
    return NULL;
}

/* ---- the accounts --------------------------------------------------------------- */

static const char *check_accounts(const bt_scheduler *s, const bt_census *census) {
    const bt_statistics *n = &s->counted;
    int64_t running = 0, released = 0, histogram = 0;
    for (const bt_batch *b = s->running; b; b = b->next) running++;
    for (size_t i = 0; i < BT_RELEASE_COUNT; i++) released += n->released[i];
    for (size_t i = 0; i < BT_BATCH_ROWS_BUCKETS; i++) histogram += n->batch_rows[i];
    CHECK(census->live == s->live_calls, "live calls are counted");
    CHECK(census->with_deadline == (int64_t)s->due.count, "the heap holds the live calls with a deadline and no other");
    CHECK(census->groups_waiting == (int64_t)s->ranks.count, "the groups with queued calls have ranks and no other");
    CHECK(census->clients == (int64_t)s->clients.count, "the clients with queued calls are found and no other");
    CHECK(census->queued_calls == n->queued_calls, "queued calls are counted");
    CHECK(census->queued_rows == n->queued_rows, "queued rows are counted");
    CHECK(census->zero_calls == s->queued_zero_calls, "queued calls of no rows are counted");
    CHECK(running == n->in_flight_batches, "batches in flight are counted");
    CHECK(released == n->batches && histogram == n->batches, "every batch has one reason and one size");
    CHECK(n->calls == n->answered + n->failed + n->refused + n->expired + n->cancelled + s->live_calls,
          "every call is live or has had one verdict");
    CHECK(s->expired_taken <= s->expired_count, "no more expired calls are drained than there were");
    CHECK(s->expired_count + s->due.count <= s->expired_capacity || s->due.count == 0,
          "there is room for every call that may still expire");
    return NULL;
}

const char *bt_check(const bt_scheduler *s) {
    bt_census census = {0};
    const char *broken = check_heap(&s->due);
    if (!broken) broken = check_heap(&s->ranks);
    if (!broken) broken = check_map(&s->groups);
    if (!broken) broken = check_map(&s->clients);
    if (!broken) broken = check_groups(s, &census);
    if (!broken) broken = check_calls(s, &census);
    if (!broken) broken = check_batches(s, &census);
    if (!broken) broken = check_accounts(s, &census);
    if (!broken) broken = bt_policy_check(s->policy);
    return broken;
}
