/* Admission, the decision, expiry, statistics. The map of the inside is in
 * scheduler_state.h. */
#include "scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "scheduler_state.h"

/* While more groups than this wait, nothing is held: a slot is never idle for
 * long then, and a decision has to stay cheap. */
#define MOST_GROUPS_HELD 64

#ifdef BT_DEBUG_COUNTERS
atomic_llong bt_live_counter;
#endif

int64_t bt_live_objects(void) {
#ifdef BT_DEBUG_COUNTERS
    return atomic_load(&bt_live_counter);
#else
    return 0;
#endif
}

/* ---- life ------------------------------------------------------------------- */

bt_scheduler *bt_scheduler_new(const bt_options *options) {
    bt_scheduler *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->options = *options;
    s->total_slots = 1;
    s->policy = bt_policy_new(&options->policy);
    if (!s->policy) {
        free(s);
        return NULL;
    }
    BT_COUNT(1);
    return s;
}

static void free_clients(bt_client *client) {
    while (client) {
        bt_client *next = client->next;
        free(client);
        client = next;
    }
}

static void free_group(bt_group *g) {
    free_clients(g->turn_first);
    bt_heap_clear(&g->tight);
    free(g);
}

static void free_groups(bt_scheduler *s) {
    for (size_t i = 0; i < s->groups.capacity; i++) {
        if (s->groups.entries[i].value) free_group(s->groups.entries[i].value);
    }
    while (s->free_groups) {
        bt_group *g = s->free_groups;
        s->free_groups = g->next_free;
        free_group(g);
    }
}

static void free_batches(bt_scheduler *s) {
    for (size_t i = 0; i < s->batch_count; i++) {
        bt_batch *b = s->batches[i];
        if (b->state != BT_BATCH_FREE) {
            BT_COUNT(-1);
            if (b->trial && --b->trial->open == 0) free(b->trial);
        }
        free(b->parts);
        free(b);
    }
    while (s->free_trials) {
        bt_trial *trial = s->free_trials;
        s->free_trials = trial->next_free;
        free(trial);
    }
}

void bt_scheduler_free(bt_scheduler *s) {
    if (!s) return;
    BT_COUNT(-1 - s->live_calls);
    free_batches(s);
    free_groups(s);
    free_clients(s->free_clients);
    for (size_t i = 0; i < s->chunk_count; i++) free(s->chunks[i]);
    free(s->chunks);
    free(s->batches);
    free(s->expired);
    free(s->settled);
    free(s->late);
    bt_heap_clear(&s->due);
    bt_heap_clear(&s->ranks);
    bt_map_clear(&s->groups);
    bt_map_clear(&s->clients);
    bt_policy_free(s->policy);
    free(s);
}

int bt_set_options(bt_scheduler *s, const bt_options *options) {
    s->options = *options;
    bt_policy_set_options(s->policy, &options->policy);
    BT_ASSERT_CONSISTENT(s);
    return 0;
}

/* ---- the slab of calls --------------------------------------------------------- */

static int reserve_call(bt_scheduler *s) {
    if (s->free_calls) return 0;
    void *chunks = s->chunks;
    int failed = bt_grow(&chunks, &s->chunk_capacity, s->chunk_count + 1, sizeof(bt_call *));
    s->chunks = chunks;
    bt_call *chunk = failed ? NULL : calloc(BT_CALLS_A_CHUNK, sizeof *chunk);
    if (!chunk) return -1;
    for (size_t i = BT_CALLS_A_CHUNK; i-- > 0;) {
        chunk[i].index = (uint32_t)(s->chunk_count * BT_CALLS_A_CHUNK + i);
        chunk[i].next = s->free_calls;
        s->free_calls = &chunk[i];
    }
    s->chunks[s->chunk_count++] = chunk;
    return 0;
}

void bt_call_end(bt_scheduler *s, bt_call *c) {
    bt_group *g = c->group;
    if (c->client) bt_queue_leave(s, c);
    if (c->sealed_parts) bt_batch_leave(s, c);
    if (c->due.at) bt_heap_remove(&s->due, &c->due);
    c->live = 0;
    c->generation++;
    c->next = s->free_calls;
    s->free_calls = c;
    s->live_calls--;
    BT_COUNT(-1);
    g->live_calls--;
    bt_group_release(s, g);
}

/* ---- expiry ----------------------------------------------------------------------- */

/* Room for every call that may still expire, so that expiring cannot fail. */
static int reserve_expired(bt_scheduler *s) {
    void *expired = s->expired;
    int failed = bt_grow(&expired, &s->expired_capacity, s->expired_count + s->due.count + 1, sizeof(bt_settled));
    s->expired = expired;
    return failed;
}

void bt_call_expire(bt_scheduler *s, bt_call *c) {
    s->expired[s->expired_count++] = (bt_settled){bt_call_id(c), c->tag, 0, c->rows, 0, BT_EXPIRED};
    s->counted.expired++;
    bt_call_end(s, c);
}

static void expire_due(bt_scheduler *s) {
    bt_node *first;
    while ((first = bt_heap_first(&s->due)) && first->key <= s->now_ns) {
        bt_call_expire(s, BT_OWNER(first, bt_call, due));
    }
}

size_t bt_expired(bt_scheduler *s, bt_settled *out, size_t capacity) {
    size_t count = s->expired_count - s->expired_taken;
    if (count > capacity) count = capacity;
    if (count) memcpy(out, s->expired + s->expired_taken, count * sizeof *out);
    s->expired_taken += count;
    if (s->expired_taken == s->expired_count) s->expired_taken = s->expired_count = 0;
    return count;
}

/* ---- admission ------------------------------------------------------------------------ */

static bt_admission refuse(bt_scheduler *s, bt_verdict verdict, int64_t predicted_ns) {
    s->counted.refused++;
    return (bt_admission){verdict, 0, predicted_ns};
}

void bt_refused(bt_scheduler *s, int64_t calls) {
    s->counted.calls += calls;
    s->counted.refused += calls;
}

static bt_call *new_call(bt_scheduler *s, uint64_t group, int64_t deadline_ns) {
    int with_deadline = deadline_ns != BT_NEVER;
    if (reserve_call(s)) return NULL;
    if (with_deadline && (reserve_expired(s) || bt_heap_reserve(&s->due, s->due.count + 1))) return NULL;
    bt_group *g = bt_group_at(s, group);
    if (!g) return NULL;
    if (bt_queue_reserve(s, g, with_deadline)) {
        bt_group_release(s, g);
        return NULL;
    }
    bt_call *c = s->free_calls;
    s->free_calls = c->next;
    c->live = 1;
    c->group = g;
    g->live_calls++;
    s->live_calls++;
    BT_COUNT(1);
    return c;
}

bt_admission bt_admit(bt_scheduler *s, int64_t now_ns, int64_t rows, uint64_t group, int64_t deadline_ns,
                      uint64_t client, uint64_t tag) {
    s->now_ns = now_ns;
    s->counted.calls++;
    int64_t predicted_ns = -1;
    if (rows > s->options.max_queue_rows) return refuse(s, BT_REFUSED_SIZE, predicted_ns);
    int64_t waiting = s->counted.queued_rows + s->queued_zero_calls;
    int full = waiting + bt_most(rows, 1) > s->options.max_queue_rows;
    if ((full || deadline_ns != BT_NEVER) && bt_policy_calibrated(s->policy)) predicted_ns = bt_predict(s, rows);
    if (full) return refuse(s, BT_REFUSED_QUEUE, predicted_ns);
    if (bt_too_late(s, deadline_ns, predicted_ns)) return refuse(s, BT_REFUSED_LATE, predicted_ns);
    bt_call *c = new_call(s, group, deadline_ns);
    if (!c) return refuse(s, BT_REFUSED_MEMORY, predicted_ns);
    c->deaths = 0;
    c->tag = tag;
    c->arrival_ns = now_ns;
    c->deadline_ns = deadline_ns;
    c->rows = rows;
    c->next_row = c->done_rows = 0;
    c->due.tie = s->admitted++;
    if (deadline_ns != BT_NEVER) {
        c->due.key = deadline_ns;
        bt_heap_push(&s->due, &c->due);
    }
    bt_queue_add(s, c, client);
    bt_policy_arrived(s->policy, now_ns, group, client, rows);
    BT_ASSERT_CONSISTENT(s);
    return (bt_admission){BT_ADMITTED, bt_call_id(c), predicted_ns};
}

static int give_up(bt_scheduler *s, bt_id id, int64_t *counted) {
    bt_call *c = bt_call_of(s, id);
    if (!c) return 0;
    ++*counted;
    bt_call_end(s, c);
    BT_ASSERT_CONSISTENT(s);
    return 1;
}

int bt_cancel(bt_scheduler *s, bt_id id) {
    return give_up(s, id, &s->counted.cancelled);
}

int bt_expire(bt_scheduler *s, bt_id id) {
    return give_up(s, id, &s->counted.expired);
}

/* ---- the decision: which group --------------------------------------------------------- */

static int64_t tightest_ns(const bt_group *g) {
    const bt_node *tightest = bt_heap_first(&g->tight);
    return tightest ? tightest->key : BT_NEVER;
}

static bt_hold ask_policy(const bt_scheduler *s, bt_group *g, int64_t idle_slots, int64_t end_by_ns) {
    bt_view view = {
        .group = g->number,
        .queued_rows = g->queued_rows,
        .queued_calls = g->queued_calls,
        .oldest_arrival_ns = g->first->arrival_ns,
        .newest_arrival_ns = g->last->arrival_ns,
        .tightest_deadline_ns = end_by_ns,
        .idle_slots = idle_slots,
        .total_slots = s->total_slots,
        .queued_rows_all = s->counted.queued_rows,
    };
    bt_hold hold = bt_policy_hold(s->policy, s->now_ns, &view);
    if (hold.hold_until_ns > s->now_ns && g->held_since_ns == BT_NEVER) g->held_since_ns = s->now_ns;
    return hold;
}

/* The waiting groups in the order of their ranks; at most MOST_GROUPS_HELD. */
static size_t groups_by_rank(const bt_scheduler *s, bt_group **groups) {
    size_t count = 0;
    for (; count < s->ranks.count; count++) {
        bt_node *node = s->ranks.nodes[count];
        size_t at = count;
        for (; at > 0 && bt_node_before(node, &groups[at - 1]->rank); at--) groups[at] = groups[at - 1];
        groups[at] = BT_OWNER(node, bt_group, rank);
    }
    return count;
}

/* When the batch of each group has to end: by its own deadline, and early enough for the one that
 * will have the slot after it. Else groups with one budget would all be held until the same moment. */
static void leave_room(const bt_scheduler *s, bt_group *const *groups, size_t count, int64_t *end_by_ns) {
    for (size_t i = count; i-- > 0;) {
        size_t after = i + (size_t)bt_most(1, s->total_slots);
        end_by_ns[i] = tightest_ns(groups[i]);
        if (after >= count || end_by_ns[after] == BT_NEVER) continue;
        int64_t took_ns = bt_policy_cost_high_ns(s->policy, groups[after]->queued_rows);
        end_by_ns[i] = bt_least(end_by_ns[i], bt_most(s->now_ns + 1, end_by_ns[after] - took_ns));
    }
}

/* The group of the oldest rank that is not held; NULL if all are, and then
 * *until_ns is when the first hold ends. A held group blocks no other. */
static bt_group *choose(const bt_scheduler *s, int64_t idle_slots, bt_hold *hold, int64_t *until_ns) {
    bt_group *groups[MOST_GROUPS_HELD];
    groups[0] = BT_OWNER(bt_heap_first(&s->ranks), bt_group, rank);
    if (s->options.one_call_a_batch) {
        *hold = (bt_hold){0, 1, BT_RELEASE_WORKER_FREE};
        return groups[0];
    }
    *hold = ask_policy(s, groups[0], idle_slots, tightest_ns(groups[0]));
    if (hold->hold_until_ns <= s->now_ns) return groups[0];
    if (s->ranks.count > MOST_GROUPS_HELD) {
        hold->reason = BT_RELEASE_WORKER_FREE;
        return groups[0];
    }
    *until_ns = hold->hold_until_ns;
    if (s->ranks.count == 1) return NULL;
    int64_t end_by_ns[MOST_GROUPS_HELD];
    size_t count = groups_by_rank(s, groups);
    leave_room(s, groups, count, end_by_ns);
    for (size_t i = 0; i < count; i++) {
        *hold = ask_policy(s, groups[i], idle_slots, end_by_ns[i]);
        if (hold->hold_until_ns <= s->now_ns) return groups[i];
        *until_ns = bt_least(*until_ns, hold->hold_until_ns);
    }
    return NULL;
}

/* ---- the decision: which calls ------------------------------------------------------------ */

/* Forms a batch of the group: 1, or 0 if all it would have held was late, or -1
 * out of memory. */
static int form(bt_scheduler *s, bt_group *g, int64_t idle_slots, const bt_hold *hold, bt_decision *out) {
    int64_t most = s->options.max_batch_rows;
    int64_t limit = bt_least(most, bt_most(1, hold->take_rows));
    bt_batch *b = bt_batch_new(s, g, NULL, bt_queue_parts(g, limit));
    if (!b) return -1;
    if (g->held_since_ns != BT_NEVER) b->held_ns = s->now_ns - g->held_since_ns;
    g->held_since_ns = BT_NEVER;
    int64_t in_time = bt_split_in_time(s, g, limit, idle_slots);
    bt_queue_fill(s, g, b, in_time, in_time < limit && g->queued_rows <= limit);
    while (bt_drop_late(s, b)) bt_queue_fill(s, g, b, bt_rows_in_time(s, b, limit), 0);
    if (b->part_count) {
        bt_batch_start(s, b, hold->reason, out);
        return 1;
    }
    bt_batch_release(s, b);
    return 0;
}

/* What the slot gets: 1 a batch, 0 nothing now, -1 out of memory. */
static int fill_slot(bt_scheduler *s, int64_t idle_slots, bt_decision *out) {
    int failed;
    bt_batch *b = bt_batch_unstack(s, &failed);
    if (failed) return -1;
    if (b) {
        bt_batch_start(s, b, BT_RELEASE_RERUN, out);
        return 1;
    }
    while (s->ranks.count) {
        bt_hold hold;
        bt_group *g = choose(s, idle_slots, &hold, &out->until_ns);
        if (!g) {
            out->action = BT_WAIT;
            return 0;
        }
        int formed = form(s, g, idle_slots, &hold, out);
        if (formed) return formed;
    }
    return 0;
}

int bt_decide(bt_scheduler *s, int64_t now_ns, int64_t idle_slots, int64_t total_slots, bt_decision *out) {
    s->now_ns = now_ns;
    s->total_slots = bt_most(1, total_slots);
    s->idle_slots = idle_slots;
    *out = (bt_decision){.action = BT_IDLE, .until_ns = BT_NEVER};
    expire_due(s);
    if (idle_slots > 0 && fill_slot(s, idle_slots, out) < 0) return -1;
    const bt_node *due = bt_heap_first(&s->due);
    if (due) out->until_ns = bt_least(out->until_ns, due->key);
    BT_ASSERT_CONSISTENT(s);
    return 0;
}

/* ---- statistics --------------------------------------------------------------------------- */

void bt_get_statistics(const bt_scheduler *s, bt_statistics *out) {
    *out = s->counted;
    out->groups = (int64_t)s->groups.count;
    bt_policy_get_statistics(s->policy, &out->policy);
}
