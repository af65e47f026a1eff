/* Drives the scheduler with random operations and checks it after each.
 *
 *   fuzz_scheduler [SEED] [STEPS]
 *
 * bt_check must hold after every step, every admitted call must get exactly one
 * verdict, every row must be run and answered at most once, and a driver that
 * keeps its duties must see the queue drained. fuzz_memory.h, included before every
 * source, makes memory run out now and then.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_memory.h"
#include "scheduler.h"
#undef calloc
#undef malloc
#undef realloc

#define CALLS 4096
#define BATCHES 256

typedef struct {
    bt_id id;
    int64_t rows;
    int64_t answered_rows;
    int verdicts;
} known_call;

static uint64_t state;
static int memory_fails;
static known_call calls[CALLS];
static size_t call_count;
static struct {
    uint64_t id;
    size_t parts;
} batches[BATCHES];
static size_t batch_count;
static int64_t now_ns;
static int64_t pace_ns; /* of this life: nanoseconds, or hours */
static int64_t slots;
static int64_t most_rows_a_call;
static bt_options options;

static uint64_t next_random(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * UINT64_C(2685821657736338717);
}

static int64_t below(int64_t n) { return (int64_t)(next_random() % (uint64_t)n); }

static int no_memory(void) { return memory_fails && below(10) == 0; }

void *fuzz_realloc(void *old, size_t size) { return no_memory() ? NULL : realloc(old, size); }
void *fuzz_calloc(size_t count, size_t size) { return no_memory() ? NULL : calloc(count, size); }
void *fuzz_malloc(size_t size) { return no_memory() ? NULL : malloc(size); }

static void fail(const char *what) {
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void check(const bt_scheduler *s) {
    const char *broken = bt_check(s);
    if (broken) fail(broken);
}

static void verdict(bt_id id) {
    for (size_t i = 0; i < call_count; i++) {
        if (calls[i].id != id) continue;
        if (calls[i].verdicts++) fail("a call has one verdict");
        return;
    }
    fail("only an admitted call has a verdict");
}

static void set_allowed(void) {
    bt_policy_options *p = &options.policy;
    for (int64_t size = 1 + below(3); size < p->max_batch_rows && p->allowed_count < 20; size += 1 + size * below(4)) {
        p->allowed_rows[p->allowed_count++] = size;
    }
    p->allowed_rows[p->allowed_count++] = p->max_batch_rows;
}

/* What a life is like: from a nanosecond to an hour between events, one row to a million, one slot to many. */
static void set_scale(void) {
    const int64_t paces[] = {400, 2, 1000000, INT64_C(3600000000000)};
    const int64_t sizes[] = {12, 1, 1000000};
    pace_ns = paces[below(4)];
    most_rows_a_call = sizes[below(3)];
    slots = below(2) ? 2 : 1 + below(below(2) ? 4 : 100);
}

static void set_options(void) {
    memset(&options, 0, sizeof options);
    options.max_batch_rows = 1 + below(most_rows_a_call);
    options.max_queue_rows = options.max_batch_rows + below(5 * most_rows_a_call);
    options.isolate_errors = below(4) != 0;
    options.one_call_a_batch = below(8) == 0;
    options.policy.rule = below(2) ? BT_RULE_LEARNED : (bt_rule)below(3);
    options.policy.objective = (bt_objective)below(2);
    options.policy.max_batch_rows = options.max_batch_rows;
    options.policy.max_wait_ns = below(3) ? -1 : below(3 * pace_ns);
    options.policy.fixed_wait_ns = below(3 * pace_ns);
    options.policy.fixed_rows = 1 + below(options.max_batch_rows);
    if (below(3) == 0) set_allowed();
}

static void admit(bt_scheduler *s) {
    if (call_count == CALLS) return;
    int64_t rows = below(5) == 0 ? below(4 * most_rows_a_call) : below(4);
    int64_t deadline_ns = below(2) ? BT_NEVER : now_ns + below(8 * pace_ns);
    bt_admission a = bt_admit(s, now_ns, rows, (uint64_t)below(3), deadline_ns, (uint64_t)below(4), call_count);
    if ((a.verdict == BT_ADMITTED) != (a.id != 0)) fail("an admitted call has an id");
    if (a.id) calls[call_count++] = (known_call){a.id, rows, 0, 0};
}

static void cancel(bt_scheduler *s) {
    if (!call_count) return;
    known_call *c = &calls[below((int64_t)call_count)];
    int live = c->verdicts == 0;
    int left = below(4) ? bt_cancel(s, c->id) : bt_expire(s, c->id);
    if (left != live) fail("exactly a live call can be cancelled");
    if (live) c->verdicts = 1;
}

static void drain(bt_scheduler *s) {
    bt_settled gone[3];
    size_t n;
    while ((n = bt_expired(s, gone, 3))) {
        for (size_t i = 0; i < n; i++) verdict(gone[i].id);
    }
}

static void decide(bt_scheduler *s) {
    bt_statistics n;
    bt_decision d;
    int64_t idle = batch_count < BATCHES ? below(slots + 1) : 0;
    if (below(50) == 0) slots = below(3) ? 1 + below(4) : 0;
    int failed = bt_decide(s, now_ns, idle, slots, &d);
    drain(s);
    if (failed) return;
    bt_get_statistics(s, &n);
    if (d.action != BT_RUN) {
        if (idle && n.queued_calls && d.action != BT_WAIT) fail("an idle slot and a queued call: run or wait");
        if (d.until_ns <= now_ns) fail("a timer is in the future");
        return;
    }
    int64_t rows = 0;
    for (size_t i = 0; i < d.part_count; i++) rows += d.parts[i].rows;
    if (rows != d.rows || d.padded_rows < rows) fail("a batch has the rows of its parts");
    if (!options.one_call_a_batch && rows > options.max_batch_rows) fail("no batch is over max_batch_rows");
    if (options.one_call_a_batch && d.part_count != 1) fail("one call a batch");
    batches[batch_count].id = d.batch;
    batches[batch_count++].parts = d.part_count;
}

static void finish(bt_scheduler *s, bt_finish how) {
    if (!batch_count) return;
    size_t at = (size_t)below((int64_t)batch_count);
    uint64_t id = batches[at].id;
    size_t parts = batches[at].parts, count;
    batches[at] = batches[--batch_count];
    const bt_settled *settled = bt_finished(s, id, now_ns, how, &count);
    if (!settled || count != parts) fail("a batch settles every part");
    for (size_t i = 0; i < count; i++) {
        bt_outcome o = settled[i].outcome;
        if (o == BT_PART || o == BT_ANSWERED) {
            for (size_t k = 0; k < call_count; k++) {
                if (calls[k].id != settled[i].id) continue;
                calls[k].answered_rows += settled[i].rows;
                if ((calls[k].answered_rows == calls[k].rows) != (o == BT_ANSWERED)) fail("answered with the last row");
            }
        }
        if (o != BT_PART && o != BT_RERUN && o != BT_GONE) verdict(settled[i].id);
    }
    if (bt_finished(s, id, now_ns, how, &count) || count) fail("a batch ends once");
}

static void step(bt_scheduler *s) {
    switch (below(10)) {
    case 0: case 1: case 2: case 3: admit(s); break;
    case 4: case 5: decide(s); break;
    case 6: finish(s, BT_OK); break;
    case 7: finish(s, (bt_finish)below(6)); break;
    case 8: now_ns += below(pace_ns); break;
    default:
        if (below(4)) cancel(s);
        else if (below(8) == 0) {
            set_options();
            if (bt_set_options(s, &options)) fail("options can be set");
        }
    }
    check(s);
}

/* Nobody calls any more: everything admitted gets its verdict. */
static void finish_all(bt_scheduler *s) {
    bt_statistics n;
    for (;;) {
        bt_decision d;
        if (bt_decide(s, now_ns, 1, 1, &d)) fail("there is memory");
        drain(s);
        check(s);
        if (d.action == BT_RUN) {
            batches[batch_count].id = d.batch;
            batches[batch_count++].parts = d.part_count;
        }
        while (batch_count) finish(s, BT_OK);
        bt_get_statistics(s, &n);
        if (!n.queued_calls) break;
        if (d.action == BT_WAIT) now_ns = d.until_ns;
    }
    for (size_t i = 0; i < call_count; i++) {
        if (calls[i].verdicts != 1) fail("every call has a verdict");
    }
    if (n.groups || n.in_flight_batches || n.queued_rows) fail("an idle scheduler holds nothing");
}

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    int64_t steps = argc > 2 ? strtoll(argv[2], NULL, 10) : 200000;
    state = seed * UINT64_C(0x9E3779B97F4A7C15) + 1;
    while (steps > 0) {
        now_ns = below(1000);
        call_count = batch_count = 0;
        memory_fails = 0;
        set_scale();
        set_options();
        bt_scheduler *s = bt_scheduler_new(&options);
        if (!s) fail("there is memory");
        memory_fails = below(3) == 0;
        int64_t length = below(2000);
        for (int64_t i = 0; i < length; i++) step(s);
        memory_fails = 0;
        if (below(4)) finish_all(s);
        bt_scheduler_free(s);
        steps -= length + 1;
    }
    if (bt_live_objects() > 0) fail("nothing outlives its scheduler");
    return 0;
}
