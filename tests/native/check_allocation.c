/* After a warm-up neither a call nor a decision nor the end of a batch asks for memory: callers in a
 * loop, with and without deadlines, in several groups, on several slots, with cancels and re-runs. */
#include <stdio.h>
#include <stdlib.h>

#include "fuzz_memory.h"
#include "scheduler.h"
#undef calloc
#undef malloc
#undef realloc

static long asked; /* for memory, since it was last set to 0 */

void *fuzz_realloc(void *old, size_t size) { asked++; return realloc(old, size); }
void *fuzz_calloc(size_t count, size_t size) { asked++; return calloc(count, size); }
void *fuzz_malloc(size_t size) { asked++; return malloc(size); }

#define SLOTS 3
#define GROUPS 5
#define MAX_ROWS 16

static bt_scheduler *s;
static int64_t now_ns;
static uint64_t state = 88172645463325252u;
static uint64_t running[SLOTS];
static int64_t ends_ns[SLOTS];
static int64_t decisions;
static uint64_t one_fails_in;

static uint64_t draw(uint64_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static bt_id call(void) {
    int64_t deadline_ns = draw(4) ? BT_NEVER : now_ns + (int64_t)draw(20000000);
    return bt_admit(s, now_ns, 1 + (int64_t)draw(3), draw(GROUPS), deadline_ns, draw(7), 0).id;
}

static void decide(void) {
    for (;;) {
        bt_settled expired[64];
        bt_decision d;
        int idle = 0, slot = 0;
        for (int i = 0; i < SLOTS; i++) if (!running[i]) idle++, slot = i;
        if (bt_decide(s, now_ns, idle, SLOTS, &d)) exit(1);
        decisions++;
        while (bt_expired(s, expired, 64)) continue;
        if (d.action != BT_RUN) return;
        running[slot] = d.batch;
        ends_ns[slot] = now_ns + 1000000 + 20000 * d.padded_rows;
    }
}

/* The batch that ends first, and its callers back one by one. */
static void finish(void) {
    int slot = 0;
    size_t count;
    for (int i = 1; i < SLOTS; i++)
        if (running[i] && (!running[slot] || ends_ns[i] < ends_ns[slot])) slot = i;
    if (!running[slot]) {
        now_ns += 100000;
        decide();
        return;
    }
    if (ends_ns[slot] > now_ns) now_ns = ends_ns[slot];
    uint64_t how = draw(one_fails_in);
    bt_finished(s, running[slot], now_ns, how == 0 ? BT_RAISED : how == 1 ? BT_DIED : BT_OK, &count);
    running[slot] = 0;
    decide();
}

static void run(int rounds, int64_t callers, uint64_t fails_in) {
    bt_statistics numbers;
    one_fails_in = fails_in;
    for (int i = 0; i < rounds; i++) {
        bt_get_statistics(s, &numbers);
        while (numbers.queued_calls < callers) {
            bt_id id = call();
            now_ns += (int64_t)draw(2000);
            decide();
            if (draw(20) == 0) bt_cancel(s, id);
            bt_get_statistics(s, &numbers);
        }
        for (int k = 0; k < 4; k++) finish();
    }
}

int main(void) {
    bt_options options = {.max_batch_rows = MAX_ROWS, .max_queue_rows = 1 << 20, .isolate_errors = 1};
    options.policy.max_batch_rows = MAX_ROWS;
    options.policy.max_wait_ns = -1;
    s = bt_scheduler_new(&options);
    if (!s) return 1;
    run(500, 120, 10); /* more of everything than later, so that all has grown as far as it will */
    asked = decisions = 0;
    run(500, 60, 50);
    fprintf(stderr, "%lld decisions, memory asked for %ld times\n", (long long)decisions, asked);
    const char *broken = bt_check(s);
    if (broken) fprintf(stderr, "%s\n", broken);
    bt_scheduler_free(s);
    return asked || broken || decisions < 10000;
}
