/* Which groups' callers are followed, when there are more groups than places; what is known of runs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "arrivals.h"
#include "fuzz_memory.h"
#undef calloc
#undef malloc
#undef realloc

void *fuzz_realloc(void *old, size_t size) { return realloc(old, size); }
void *fuzz_calloc(size_t count, size_t size) { return calloc(count, size); }
void *fuzz_malloc(size_t size) { return malloc(size); }

static bt_arrivals a;

static void expect(int holds, const char *fact) {
    const char *broken = bt_arrivals_check(&a);
    if (holds && !broken) return;
    fprintf(stderr, "%s (%s)\n", fact, broken ? broken : "invariants hold");
    exit(1);
}

static void call(uint64_t group, int64_t now_ns) {
    bt_crowd *c = bt_arrivals_follow(&a, group);
    expect(c != NULL, "a group finds a place while some are idle");
    bt_arrivals_arrived(&a, c, now_ns);
}

/* The group's calls are answered. */
static void answer(uint64_t group, int64_t now_ns) {
    bt_crowd *c = bt_arrivals_find(&a, group);
    bt_arrivals_completed(&a, c, now_ns, c->inside);
}

/* One caller a few times, then two at once after a pause: half a caller was expected, and a whole one came. */
static void check_shares(void) {
    int64_t now_ns = 1000;
    bt_arrivals_init(&a);
    for (int round = 0; round < 100; round++) {
        for (int i = 0; i < 2; i++) {
            call(1, now_ns += 2000);
            answer(1, now_ns += 1000);
        }
        now_ns += 1000000000;
        call(1, now_ns);
        call(1, now_ns += 1000);
        answer(1, now_ns += 1000);
    }
    for (int bin = 0; bin < BT_BINS; bin++)
        expect(bt_hazard_share(&a.returns, bin) < 1.0, "of those at risk, no more than all come");
}

/* Exponential gaps, the quantiles of which take turns; every so many calls one that is as long as a pause. */
static void call_in_runs(int every, double gap_ns, double pause_ns) {
    int64_t now_ns = 1000;
    bt_arrivals_init(&a);
    for (int i = 0; i < 4000; i++) {
        double at = fmod(0.5 + 0.6180339887 * i, 1.0);
        call(1, now_ns += 1 + (int64_t)(-log(1.0 - at) * (i % every == 0 ? pause_ns : gap_ns)));
    }
    bt_arrivals_learn_runs(&a);
}

static void check_runs(void) {
    call_in_runs(20, 3e4, 3e7);
    expect(a.run_share > 0.9 && a.run_share < 0.96, "nineteen of twenty calls have a next one in their run");
    expect(a.run_gap_ns > 25000.0 && a.run_gap_ns < 45000.0, "which comes in the run's own pace");
    call_in_runs(1, 3e4, 3e4);
    expect(a.run_share <= 0.0, "calls that come at random are no runs");
}

int main(void) {
    check_shares();
    check_runs();
    int64_t now_ns = 1000;
    bt_arrivals_init(&a);
    for (uint64_t group = 0; group < BT_CROWDS; group++) call(group * 7919, now_ns += 1000);
    for (uint64_t group = 0; group < BT_CROWDS; group++) {
        bt_crowd *c = bt_arrivals_find(&a, group * 7919);
        expect(c && c->group == group * 7919 && c->inside == 1, "as many groups as there are places are followed");
    }
    expect(!bt_arrivals_find(&a, 1), "a group that never called is not followed");
    for (int i = 0; i < BT_CROWDS; i++)
        expect(!bt_arrivals_follow(&a, 1), "a group with calls inside keeps its place");

    for (uint64_t group = 0; group < 128; group++) answer(group * 7919, now_ns += 1000);
    for (uint64_t group = 1; group < 20000; group++) {
        uint64_t fresh = group * 7919 + 1;
        bt_crowd *c = bt_arrivals_follow(&a, fresh);
        if (!c) continue; /* none of the few that were looked at was idle */
        bt_arrivals_arrived(&a, c, now_ns += 1000);
        expect(bt_arrivals_find(&a, fresh) == c, "a new group takes the place of an idle one");
        answer(fresh, now_ns += 1000);
    }
    for (uint64_t group = 128; group < BT_CROWDS; group++) {
        bt_crowd *c = bt_arrivals_find(&a, group * 7919);
        expect(c && c->inside == 1, "and never that of a group with calls inside");
    }
    return 0;
}
