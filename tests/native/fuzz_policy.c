/* A policy that says whatever it likes, in place of policy.c: the scheduler has
 * to keep its word however wrong the predictions are, and must report to the
 * policy in pairs. Costs change at random, and holds are of any length. */
#include <stdio.h>
#include <stdlib.h>

#include "policy.h"

struct bt_policy {
    bt_policy_options options;
    uint64_t state;
    int64_t last_ns;
    int64_t queued_calls_most; /* arrived, and not known to have left */
    int64_t running;           /* batches */
};

static uint64_t next_random(bt_policy *p) {
    p->state ^= p->state << 13;
    p->state ^= p->state >> 7;
    p->state ^= p->state << 17;
    return p->state * UINT64_C(2685821657736338717) >> 8;
}

static void expect(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void time_is(bt_policy *p, int64_t now_ns) {
    expect(now_ns >= p->last_ns, "the policy hears events in the order of time");
    p->last_ns = now_ns;
}

bt_policy *bt_policy_new(const bt_policy_options *options) {
    bt_policy *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->options = *options;
    p->state = UINT64_C(88172645463325252) + (uint64_t)options->fixed_wait_ns;
    return p;
}

void bt_policy_free(bt_policy *p) { free(p); }

void bt_policy_set_options(bt_policy *p, const bt_policy_options *options) { p->options = *options; }

void bt_policy_arrived(bt_policy *p, int64_t now_ns, uint64_t group, uint64_t client, int64_t rows) {
    (void)group, (void)client;
    time_is(p, now_ns);
    expect(rows >= 0, "a call has rows");
    p->queued_calls_most++;
}

void bt_policy_left(bt_policy *p, int64_t now_ns, uint64_t group, int64_t rows) {
    (void)group;
    time_is(p, now_ns);
    expect(rows >= 0, "a call that leaves has rows");
    expect(p->queued_calls_most-- > 0, "no more calls leave than came");
}

void bt_policy_started(bt_policy *p, int64_t now_ns, uint64_t group, int64_t calls, int64_t rows,
                       int64_t padded_rows, bt_release reason) {
    (void)group;
    time_is(p, now_ns);
    expect(calls > 0 && rows >= 0 && padded_rows >= rows, "a batch has calls");
    expect(reason < BT_RELEASE_COUNT, "a batch has a reason");
    p->running++;
}

void bt_policy_finished(bt_policy *p, int64_t now_ns, uint64_t group, int64_t answered, int64_t rows,
                        int64_t padded_rows, int64_t took_ns, int ok) {
    (void)group, (void)ok;
    time_is(p, now_ns);
    expect(answered >= 0 && rows >= 0 && padded_rows >= rows && took_ns >= 0, "a batch that ends had a size");
    expect(p->running-- > 0, "no more batches end than were started");
}

int64_t bt_policy_cost_ns(const bt_policy *p, int64_t rows) { return bt_policy_cost_high_ns(p, rows) / 2; }

int64_t bt_policy_cost_high_ns(const bt_policy *p, int64_t rows) {
    return (int64_t)(p->state >> 60) * 40 + rows * (int64_t)(p->state >> 56 & 7);
}

int64_t bt_policy_padded_rows(const bt_policy *p, int64_t rows) {
    return rows + (int64_t)(p->state >> 50 & 1);
}

int bt_policy_calibrated(const bt_policy *p) { return (p->state >> 40 & 3) != 0; }

bt_hold bt_policy_hold(bt_policy *p, int64_t now_ns, const bt_view *view) {
    time_is(p, now_ns);
    expect(view->queued_calls > 0 && view->idle_slots > 0, "the policy is asked about a group that could run");
    expect(view->oldest_arrival_ns <= view->newest_arrival_ns, "the oldest call is not newer than the newest");
    expect(view->queued_rows <= view->queued_rows_all, "one group has no more rows than all");
    expect(view->tightest_deadline_ns > now_ns, "what is due has expired");
    int64_t take_rows = 1 + (int64_t)(next_random(p) % 12);
    if (next_random(p) % 3) return (bt_hold){now_ns, take_rows, BT_RELEASE_WORKER_FREE};
    return (bt_hold){now_ns + 1 + (int64_t)(next_random(p) % 500), take_rows, BT_RELEASE_CAP};
}

void bt_policy_get_statistics(const bt_policy *p, bt_policy_statistics *out) {
    *out = (bt_policy_statistics){.calibrated = bt_policy_calibrated(p)};
}

const char *bt_policy_check(const bt_policy *p) { return p->running < 0 ? "batches end that never began" : NULL; }
