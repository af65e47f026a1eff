/* Who will be late: refused at admission, dropped before a batch runs.
 *
 * Everything here rests on predictions, so nothing here happens before the
 * policy is calibrated, and an engine that runs nothing always tries: only by
 * running batches is a prediction that has become too dark corrected.
 */
#include <stdlib.h>

#include "scheduler_state.h"

#define LONGEST_NS (INT64_MAX / 4) /* that is predicted: more would not fit 64 bits */

/* ---- at admission ------------------------------------------------------------- */

/* Batches that will run before that of a call of `rows` rows admitted now, and
 * in *own the rows of its own (last) batch. */
static int64_t batches_ahead(const bt_scheduler *s, int64_t rows, int64_t *own) {
    int64_t most = s->options.max_batch_rows;
    *own = rows;
    if (s->options.one_call_a_batch) return s->counted.queued_calls;
    int64_t batches = s->counted.queued_rows / most;
    int64_t rest = s->counted.queued_rows % most;
    if (rest + rows <= most) *own = rest + rows;
    else if (rest > 0) batches++;
    if (rows <= most) return batches;
    *own = (rows - 1) % most + 1;
    return batches + (rows - 1) / most;
}

/* When a call admitted now would be answered, counted from now: what is in
 * flight and what is queued before it, spread over the slots, then its own
 * batch; by the upper quantile of the costs. Under a backlog its batch will be a
 * full one: who counted on less would be dropped when the others have joined. */
int64_t bt_predict(const bt_scheduler *s, int64_t rows) {
    int64_t own;
    int64_t batches = batches_ahead(s, rows, &own);
    if (batches > 0 && !s->options.one_call_a_batch) own = s->options.max_batch_rows;
    int64_t own_ns = bt_policy_cost_high_ns(s->policy, own);
    if (s->counted.in_flight_batches + batches < s->total_slots) return own_ns;
    double in_flight_ns = 0.0;
    for (const bt_batch *b = s->running; b; b = b->next) in_flight_ns += (double)bt_most(0, b->expected_ns - s->now_ns);
    int64_t each = s->options.one_call_a_batch ? rows : s->options.max_batch_rows;
    double ahead_ns = (double)batches * (double)bt_policy_cost_high_ns(s->policy, each);
    double before_ns = (in_flight_ns + ahead_ns) / (double)s->total_slots;
    return before_ns < (double)LONGEST_NS ? (int64_t)before_ns + own_ns : LONGEST_NS;
}

/* An engine with nothing to do takes every call. */
int bt_too_late(const bt_scheduler *s, int64_t deadline_ns, int64_t predicted_ns) {
    if (predicted_ns < 0) return 0; /* not calibrated, or nobody asked */
    if (s->counted.queued_calls == 0 && s->counted.in_flight_batches == 0) return 0;
    return bt_later(s->now_ns, predicted_ns) > deadline_ns;
}

/* ---- before a batch runs -------------------------------------------------------- */

static int by_deadline(const void *a, const void *b) {
    const bt_late *x = a, *y = b;
    if (x->deadline_ns != y->deadline_ns) return x->deadline_ns < y->deadline_ns ? -1 : 1;
    return x->part < y->part ? -1 : 1;
}

static int makes_it(const bt_scheduler *s, int64_t rows, int64_t deadline_ns) {
    return bt_later(s->now_ns, bt_policy_cost_high_ns(s->policy, rows)) <= deadline_ns;
}

/* The least number of calls, tightest first, without which all others of the
 * batch make it. s->late is sorted. */
static size_t count_late(const bt_scheduler *s, const bt_batch *b, size_t count) {
    int64_t rows = b->rows;
    size_t dropped = 0;
    while (dropped < count && !makes_it(s, rows, s->late[dropped].deadline_ns)) {
        rows -= b->parts[s->late[dropped++].part].rows;
    }
    return dropped;
}

/* Expires the first `count` calls of s->late and takes their parts out. */
static void drop(bt_scheduler *s, bt_batch *b, size_t count) {
    for (size_t i = 0; i < count; i++) {
        bt_part *part = &b->parts[s->late[i].part];
        bt_call *c = bt_call_of(s, part->id);
        /* With rows of it in the queue it leaves there, once. */
        if (c->next_row == c->rows) bt_policy_left(s->policy, s->now_ns, b->group->number, part->rows);
        bt_call_expire(s, c);
        part->id = 0;
    }
    size_t kept = 0;
    b->rows = 0;
    for (size_t i = 0; i < b->part_count; i++) {
        if (!b->parts[i].id) continue;
        b->rows += b->parts[i].rows;
        b->parts[kept++] = b->parts[i];
    }
    b->part_count = kept;
}

/* Expires the calls of a batch being formed that cannot make it, so that what is
 * left is the largest part of it that does. While nothing runs, one call stays
 * whatever is predicted: see bt_too_late. Returns how many were dropped. */
size_t bt_drop_late(bt_scheduler *s, bt_batch *b) {
    if (b->tightest_ns == BT_NEVER || !bt_policy_calibrated(s->policy)) return 0;
    if (makes_it(s, b->rows, b->tightest_ns)) return 0;
    size_t count = 0;
    for (size_t i = 0; i < b->part_count; i++) {
        int64_t deadline_ns = bt_call_of(s, b->parts[i].id)->deadline_ns;
        if (deadline_ns != BT_NEVER) s->late[count++] = (bt_late){deadline_ns, i};
    }
    qsort(s->late, count, sizeof *s->late, by_deadline);
    size_t dropped = count_late(s, b, count);
    if (dropped == b->part_count && s->counted.in_flight_batches == 0) dropped--;
    b->tightest_ns = dropped < count ? s->late[dropped].deadline_ns : BT_NEVER;
    drop(s, b, dropped);
    return dropped;
}

/* How large a batch that has lost its late calls may grow again without making
 * the next ones late. */
int64_t bt_rows_in_time(const bt_scheduler *s, const bt_batch *b, int64_t limit) {
    if (b->tightest_ns == BT_NEVER || makes_it(s, limit, b->tightest_ns)) return limit;
    int64_t enough = b->rows, too_many = limit;
    while (enough + 1 < too_many) {
        int64_t middle = enough + (too_many - enough) / 2;
        if (makes_it(s, middle, b->tightest_ns)) enough = middle;
        else too_many = middle;
    }
    return enough;
}

/* The next batch, up to `limit` rows in the order of arrival, will be too slow
 * for somebody: how many rows to run first so that both these and the others, in
 * a batch after it (or beside it, with a second idle slot), make it. Returns `limit` if there is no such split, or no
 * need: then the late ones are dropped, because under a backlog small batches
 * only make more of them. */
int64_t bt_split_in_time(const bt_scheduler *s, const bt_group *g, int64_t limit, int64_t idle_slots) {
    const bt_node *tightest = bt_heap_first(&g->tight);
    if (!tightest || s->options.one_call_a_batch || !bt_policy_calibrated(s->policy)) return limit;
    if (makes_it(s, bt_least(g->queued_rows, limit), tightest->key)) return limit;
    int64_t rows = 0, deadline_ns = BT_NEVER;
    const bt_call *c = g->first;
    for (; c; c = c->next) {
        int64_t more = rows + c->rows - c->next_row;
        if (more > limit) return limit;
        if (!makes_it(s, more, bt_least(deadline_ns, c->deadline_ns))) break;
        rows = more;
        deadline_ns = bt_least(deadline_ns, c->deadline_ns);
    }
    if (rows == 0) return limit;
    int64_t rest_deadline_ns = BT_NEVER;
    for (int64_t more = rows; c && (more += c->rows - c->next_row) <= limit; c = c->next) {
        rest_deadline_ns = bt_least(rest_deadline_ns, c->deadline_ns);
    }
    int64_t first_ns = idle_slots > 1 ? 0 : bt_policy_cost_high_ns(s->policy, rows);
    return makes_it(s, bt_least(g->queued_rows - rows, limit), rest_deadline_ns - first_ns) ? rows : limit;
}
