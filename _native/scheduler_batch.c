/* Batches: handed out, settled, and run again when they did not succeed.
 *
 * A batch that is to run again is sealed: its calls are fixed, nobody joins.
 * Sealed batches are a stack, so that a failed batch is searched depth first:
 * its halves before anything that failed earlier, and before the queue.
 *
 * All the batches that stem from one of the queue are one trial. A trial that
 * ends with no batch succeeded and several calls failed says that the model is
 * broken, not a call; until something succeeds a batch that raises fails whole.
 * (One failed call alone says nothing: its own payload may be to blame.)
 */
#include <stdlib.h>
#include <string.h>

#include "scheduler_state.h"

#define DEATHS_AT_MOST 3   /* workers that one call may cost */
#define RETURNS_AT_MOST 16 /* of a batch in a row: the last is taken for a death */

/* ---- the slab ------------------------------------------------------------- */

static bt_batch *spare(bt_scheduler *s) {
    bt_batch *b = s->free_batches;
    if (b) {
        s->free_batches = b->next;
        return b;
    }
    void *batches = s->batches;
    int failed = bt_grow(&batches, &s->batch_capacity, s->batch_count + 1, sizeof(bt_batch *));
    s->batches = batches;
    if (failed || !(b = calloc(1, sizeof *b))) return NULL;
    b->index = (uint32_t)s->batch_count;
    s->batches[s->batch_count++] = b;
    return b;
}

static void keep(bt_scheduler *s, bt_batch *b) {
    b->state = BT_BATCH_FREE;
    b->next = s->free_batches;
    s->free_batches = b;
}

static int reserve(bt_scheduler *s, bt_batch *b, size_t parts) {
    void *items = b->parts;
    int failed = bt_grow(&items, &b->part_capacity, parts, sizeof(bt_part));
    b->parts = items;
    items = s->settled;
    failed = failed || bt_grow(&items, &s->settled_capacity, parts, sizeof(bt_settled));
    s->settled = items;
    items = s->late;
    failed = failed || bt_grow(&items, &s->late_capacity, parts, sizeof(bt_late));
    s->late = items;
    return failed;
}

bt_batch *bt_batch_new(bt_scheduler *s, bt_group *g, bt_trial *trial, size_t parts) {
    bt_batch *b = spare(s);
    if (!b) return NULL;
    if (reserve(s, b, parts)) {
        keep(s, b);
        return NULL;
    }
    b->state = BT_BATCH_SEALED;
    b->group = g;
    b->trial = trial;
    b->returns = 0;
    b->part_count = 0;
    b->rows = 0;
    b->tightest_ns = BT_NEVER;
    b->held_ns = 0;
    g->batches++;
    if (trial) trial->open++;
    BT_COUNT(1);
    return b;
}

/* The last batch of a trial has ended: what did the trial show? */
static void close_trial(bt_scheduler *s, bt_trial *trial) {
    if (!trial->succeeded && trial->failed > 1) s->failed_whole = 1;
    trial->next_free = s->free_trials;
    s->free_trials = trial;
}

void bt_batch_release(bt_scheduler *s, bt_batch *b) {
    bt_group *g = b->group;
    if (b->trial && --b->trial->open == 0) close_trial(s, b->trial);
    b->generation++;
    keep(s, b);
    BT_COUNT(-1);
    g->batches--;
    bt_group_release(s, g);
}

static void link_first(bt_batch **list, bt_batch *b) {
    b->prev = NULL;
    b->next = *list;
    if (*list) (*list)->prev = b;
    *list = b;
}

static void unlink_batch(bt_batch **list, bt_batch *b) {
    if (b->prev) b->prev->next = b->next;
    else *list = b->next;
    if (b->next) b->next->prev = b->prev;
}

/* ---- out -------------------------------------------------------------------- */

static size_t bucket(int64_t rows) {
    size_t i = 0;
    while (i < BT_BATCH_ROWS_BUCKETS - 1 && rows > (INT64_C(1) << i)) i++;
    return i;
}

void bt_batch_start(bt_scheduler *s, bt_batch *b, bt_release reason, bt_decision *out) {
    b->state = BT_BATCH_RUNNING;
    b->padded_rows = bt_most(b->rows, bt_policy_padded_rows(s->policy, b->rows));
    b->started_ns = s->now_ns;
    b->expected_ns = 0;
    if (bt_policy_calibrated(s->policy)) {
        b->expected_ns = bt_later(s->now_ns, bt_policy_cost_high_ns(s->policy, b->rows));
    }
    link_first(&s->running, b);
    s->counted.in_flight_batches++;
    s->counted.batches++;
    s->counted.batch_rows[bucket(b->rows)]++;
    s->counted.released[reason]++;
    bt_release_note(s, b, reason);
    out->action = BT_RUN;
    out->batch = bt_batch_id(b);
    out->group = b->group->number;
    out->rows = b->rows;
    out->padded_rows = b->padded_rows;
    out->reason = reason;
    out->parts = b->parts;
    out->part_count = b->part_count;
    bt_policy_started(s->policy, s->now_ns, b->group->number, (int64_t)b->part_count, b->rows,
                      b->padded_rows, reason);
}

/* ---- sealed batches ----------------------------------------------------------- */

/* A live call's part waits in a sealed batch from now on. */
static void count_sealed(bt_scheduler *s, const bt_part *part) {
    bt_call *c = bt_call_of(s, part->id);
    if (!bt_call_waits(c)) s->counted.queued_calls++;
    c->sealed_parts++;
    c->sealed_rows += part->rows;
    s->counted.queued_rows += part->rows;
}

static void count_unsealed(bt_scheduler *s, const bt_part *part) {
    bt_call *c = bt_call_of(s, part->id);
    c->sealed_parts--;
    c->sealed_rows -= part->rows;
    s->counted.queued_rows -= part->rows;
    if (!bt_call_waits(c)) s->counted.queued_calls--;
}

static void append(bt_batch *b, bt_part part) {
    b->rows += part.rows;
    b->parts[b->part_count++] = part;
}

/* How many of the parts may run together now. The limit may have been lowered
 * since the batch was sealed. */
static size_t prefix(const bt_scheduler *s, const bt_batch *b, int64_t *rows) {
    size_t count = 1;
    *rows = b->parts[0].rows;
    if (s->options.one_call_a_batch) return count;
    *rows = bt_least(*rows, s->options.max_batch_rows);
    while (count < b->part_count && b->parts[count].rows <= s->options.max_batch_rows - *rows) {
        *rows += b->parts[count++].rows;
    }
    return count;
}

/* Moves what does not fit into a sealed batch of its own, next on the stack. */
static int cut_sealed(bt_scheduler *s, bt_batch *b, size_t count, int64_t rows) {
    bt_batch *rest = bt_batch_new(s, b->group, b->trial, b->part_count - count + 1);
    if (!rest) return -1;
    bt_part *first = &b->parts[0];
    if (first->rows > rows) {
        bt_part tail = {first->id, first->tag, first->first_row + rows, first->rows - rows};
        append(rest, tail);
        count_unsealed(s, first);
        first->rows = rows;
        count_sealed(s, first);
        count_sealed(s, &tail);
    }
    for (size_t i = count; i < b->part_count; i++) append(rest, b->parts[i]);
    b->part_count = count;
    b->rows = rows;
    link_first(&s->sealed, rest);
    return 0;
}

bt_batch *bt_batch_unstack(bt_scheduler *s, int *failed) {
    *failed = 0;
    bt_batch *b = s->sealed;
    if (!b) return NULL;
    int64_t rows;
    size_t count = prefix(s, b, &rows);
    unlink_batch(&s->sealed, b);
    if ((count < b->part_count || rows < b->rows) && cut_sealed(s, b, count, rows)) {
        link_first(&s->sealed, b);
        *failed = 1;
        return NULL;
    }
    for (size_t i = 0; i < b->part_count; i++) count_unsealed(s, &b->parts[i]);
    return b;
}

/* Takes the call's part out of a batch, if there is one. */
static int remove_part(bt_scheduler *s, bt_batch *b, bt_id id) {
    for (size_t i = 0; i < b->part_count; i++) {
        if (b->parts[i].id != id) continue;
        count_unsealed(s, &b->parts[i]);
        b->rows -= b->parts[i].rows;
        b->part_count--;
        memmove(&b->parts[i], &b->parts[i + 1], (b->part_count - i) * sizeof(bt_part));
        return 1;
    }
    return 0;
}

void bt_batch_leave(bt_scheduler *s, bt_call *c) {
    bt_batch *next;
    for (bt_batch *b = s->sealed; b && c->sealed_parts; b = next) {
        next = b->next;
        if (!remove_part(s, b, bt_call_id(c)) || b->part_count) continue;
        unlink_batch(&s->sealed, b);
        bt_batch_release(s, b);
    }
}

/* ---- settling -------------------------------------------------------------------- */

/* The entries of a batch, each BT_RERUN or, if its call is gone, BT_GONE. */
static size_t open_entries(bt_scheduler *s, const bt_batch *b) {
    int64_t offset = 0;
    size_t live = 0;
    for (size_t i = 0; i < b->part_count; i++) {
        const bt_part *part = &b->parts[i];
        bt_outcome outcome = bt_call_of(s, part->id) ? BT_RERUN : BT_GONE;
        s->settled[i] = (bt_settled){part->id, part->tag, part->first_row, part->rows, offset, outcome};
        offset += part->rows;
        live += outcome == BT_RERUN;
    }
    return live;
}

static void fail_call(bt_scheduler *s, bt_batch *b, bt_settled *entry, bt_outcome outcome) {
    entry->outcome = outcome;
    s->counted.failed++;
    if (b->trial) b->trial->failed++;
    bt_call_end(s, bt_call_of(s, entry->id));
}

static void fail_all(bt_scheduler *s, bt_batch *b, bt_outcome outcome) {
    for (size_t i = 0; i < b->part_count; i++) {
        if (s->settled[i].outcome == BT_RERUN) fail_call(s, b, &s->settled[i], outcome);
    }
}

static void answer_all(bt_scheduler *s, bt_batch *b) {
    s->failed_whole = 0;
    if (b->trial) b->trial->succeeded = 1;
    for (size_t i = 0; i < b->part_count; i++) {
        if (s->settled[i].outcome == BT_GONE) continue;
        bt_call *c = bt_call_of(s, b->parts[i].id);
        c->done_rows += b->parts[i].rows;
        s->settled[i].outcome = c->done_rows == c->rows ? BT_ANSWERED : BT_PART;
        if (c->done_rows < c->rows) continue;
        s->counted.answered++;
        bt_call_end(s, c);
    }
}

/* Seals the entries [from, to) of a batch that are to run again and whose calls
 * have seen `deaths` deaths (-1: any number; there is one) as one batch on top of
 * the stack, and returns it. Out of memory they fail instead, and it returns NULL. */
static bt_batch *seal(bt_scheduler *s, bt_batch *b, size_t from, size_t to, int32_t deaths, bt_outcome otherwise) {
    bt_batch *sealed = bt_batch_new(s, b->group, b->trial, to - from);
    for (size_t i = from; i < to; i++) {
        if (s->settled[i].outcome != BT_RERUN) continue;
        if (deaths >= 0 && bt_call_of(s, b->parts[i].id)->deaths != deaths) continue;
        if (!sealed) {
            fail_call(s, b, &s->settled[i], otherwise);
            continue;
        }
        append(sealed, b->parts[i]);
        count_sealed(s, &b->parts[i]);
    }
    if (sealed) link_first(&s->sealed, sealed);
    return sealed;
}

/* Makes the batch part of a trial, its first unless it is a re-run itself. */
static int open_trial(bt_scheduler *s, bt_batch *b) {
    if (b->trial) return 0;
    bt_trial *trial = s->free_trials;
    if (trial) s->free_trials = trial->next_free;
    else if (!(trial = calloc(1, sizeof *trial))) return -1;
    *trial = (bt_trial){.open = 1};
    b->trial = trial;
    return 0;
}

/* By call, in two: the first half runs first. */
static void seal_halves(bt_scheduler *s, bt_batch *b, size_t live) {
    size_t middle = 0;
    for (size_t taken = 0; taken < live / 2; middle++) taken += s->settled[middle].outcome == BT_RERUN;
    if (live > 0) seal(s, b, middle, b->part_count, -1, BT_FAILED);
    if (middle > 0) seal(s, b, 0, middle, -1, BT_FAILED);
}

/* A call whose neighbours left while it ran runs once more, alone: nobody knows
 * yet who was guilty. */
static void settle_raised(bt_scheduler *s, bt_batch *b, size_t live) {
    int broken_model = s->failed_whole && !b->trial;
    if (!s->options.isolate_errors || broken_model || b->part_count == 1 || open_trial(s, b)) {
        fail_all(s, b, BT_FAILED);
        return;
    }
    seal_halves(s, b, live);
}

/* Nothing ran, so isolation has no say. */
static void settle_unsent(bt_scheduler *s, bt_batch *b, size_t live) {
    if (live > 1 && open_trial(s, b) == 0) {
        seal_halves(s, b, live);
        return;
    }
    int64_t failed = b->trial ? b->trial->failed : 0;
    fail_all(s, b, BT_FAILED);
    if (b->trial) b->trial->failed = failed;
}

/* The first death: the same calls once more. The second: each alone. The
 * third: that call is lost. */
static void settle_died(bt_scheduler *s, bt_batch *b) {
    if (!s->options.isolate_errors || open_trial(s, b)) {
        fail_all(s, b, BT_LOST);
        return;
    }
    int together = 0;
    for (size_t i = b->part_count; i-- > 0;) {
        if (s->settled[i].outcome == BT_GONE) continue;
        bt_call *c = bt_call_of(s, b->parts[i].id);
        c->deaths++;
        if (c->deaths >= DEATHS_AT_MOST) fail_call(s, b, &s->settled[i], BT_LOST);
        else if (c->deaths == DEATHS_AT_MOST - 1) seal(s, b, i, i + 1, -1, BT_LOST);
        else together = 1;
    }
    if (together) seal(s, b, 0, b->part_count, 1, BT_LOST);
}

/* As if it had not been handed out, except that its rows have left the queue once. Workers that
 * take a batch and leave, one after the other, must not keep its calls for ever. */
static void settle_unrun(bt_scheduler *s, bt_batch *b, size_t live) {
    if (live == 0) return;
    if (b->returns + 1 == RETURNS_AT_MOST) {
        settle_died(s, b);
    } else if (open_trial(s, b)) {
        fail_all(s, b, BT_LOST);
    } else {
        bt_batch *sealed = seal(s, b, 0, b->part_count, -1, BT_LOST);
        if (sealed) sealed->returns = b->returns + 1;
    }
}

/* A running batch, or NULL. */
static bt_batch *running_batch(const bt_scheduler *s, uint64_t id) {
    uint64_t index = (id & UINT32_MAX) - 1;
    if (index >= s->batch_count) return NULL;
    bt_batch *b = s->batches[index];
    return b->state == BT_BATCH_RUNNING && b->generation == id >> 32 ? b : NULL;
}

/* Calls that got their last word now, and so may call again. */
static int64_t count_final(const bt_scheduler *s, size_t count) {
    int64_t final = 0;
    for (size_t i = 0; i < count; i++) {
        bt_outcome outcome = s->settled[i].outcome;
        final += outcome != BT_PART && outcome != BT_RERUN && outcome != BT_GONE;
    }
    return final;
}

const bt_settled *bt_finished(bt_scheduler *s, uint64_t batch, int64_t now_ns, bt_finish how, size_t *count) {
    bt_batch *b = running_batch(s, batch);
    *count = 0;
    if (!b) return NULL;
    s->now_ns = now_ns;
    unlink_batch(&s->running, b);
    s->counted.in_flight_batches--;
    size_t live = open_entries(s, b);
    if (how == BT_OK) answer_all(s, b);
    else if (how == BT_RAISED) settle_raised(s, b, live);
    else if (how == BT_DIED) settle_died(s, b);
    else if (how == BT_UNRUN) settle_unrun(s, b, live);
    else if (how == BT_UNSENT) settle_unsent(s, b, live);
    else fail_all(s, b, BT_BROKEN);
    *count = b->part_count;
    bt_release_ended(s, b, how);
    bt_policy_finished(s->policy, now_ns, b->group->number, count_final(s, *count), b->rows, b->padded_rows,
                       now_ns - b->started_ns, how == BT_OK);
    bt_batch_release(s, b);
    BT_ASSERT_CONSISTENT(s);
    return s->settled;
}
