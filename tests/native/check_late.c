/* Who is refused or dropped for being late, with a policy that knows the cost:
 * a batch takes 100 + 10 ns a row, and is never held. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_memory.h"
#include "scheduler.h"
#undef calloc
#undef malloc
#undef realloc

void *fuzz_realloc(void *old, size_t size) { return realloc(old, size); }
void *fuzz_calloc(size_t count, size_t size) { return calloc(count, size); }
void *fuzz_malloc(size_t size) { return malloc(size); }

/* ---- the policy ------------------------------------------------------------ */

struct bt_policy {
    int calibrated;
};

static bt_policy the_policy;

bt_policy *bt_policy_new(const bt_policy_options *options) { (void)options; return &the_policy; }
void bt_policy_free(bt_policy *p) { (void)p; }
void bt_policy_set_options(bt_policy *p, const bt_policy_options *options) { (void)p, (void)options; }
void bt_policy_arrived(bt_policy *p, int64_t now_ns, uint64_t group, uint64_t client, int64_t rows) {
    (void)p, (void)now_ns, (void)group, (void)client, (void)rows;
}
void bt_policy_left(bt_policy *p, int64_t now_ns, uint64_t group, int64_t rows) {
    (void)p, (void)now_ns, (void)group, (void)rows;
}
void bt_policy_started(bt_policy *p, int64_t now_ns, uint64_t group, int64_t calls, int64_t rows,
                       int64_t padded_rows, bt_release reason) {
    (void)p, (void)now_ns, (void)group, (void)calls, (void)rows, (void)padded_rows, (void)reason;
}
void bt_policy_finished(bt_policy *p, int64_t now_ns, uint64_t group, int64_t answered, int64_t rows,
                        int64_t padded_rows, int64_t took_ns, int ok) {
    (void)p, (void)now_ns, (void)group, (void)answered, (void)rows, (void)padded_rows, (void)took_ns, (void)ok;
}
int64_t bt_policy_cost_ns(const bt_policy *p, int64_t rows) { (void)p; return 100 + 10 * rows; }
int64_t bt_policy_cost_high_ns(const bt_policy *p, int64_t rows) { (void)p; return 100 + 10 * rows; }
int64_t bt_policy_padded_rows(const bt_policy *p, int64_t rows) { (void)p; return rows; }
int bt_policy_calibrated(const bt_policy *p) { return p->calibrated; }
bt_hold bt_policy_hold(bt_policy *p, int64_t now_ns, const bt_view *view) {
    (void)p, (void)view;
    return (bt_hold){now_ns, 1000, BT_RELEASE_WORKER_FREE};
}
void bt_policy_get_statistics(const bt_policy *p, bt_policy_statistics *out) { (void)p; memset(out, 0, sizeof *out); }
const char *bt_policy_check(const bt_policy *p) { (void)p; return NULL; }

/* ---- helpers ----------------------------------------------------------------- */

static bt_scheduler *s;
static bt_decision d;

static void expect(int holds, const char *fact) {
    const char *broken = bt_check(s);
    if (holds && !broken) return;
    fprintf(stderr, "not so: %s%s%s\n", fact, broken ? "; " : "", broken ? broken : "");
    exit(1);
}

/* 10 rows a batch: 110 to 200 ns. */
static void begin(int calibrated) {
    bt_options options = {.max_batch_rows = 10, .max_queue_rows = 1000, .isolate_errors = 1};
    bt_scheduler_free(s);
    the_policy.calibrated = calibrated;
    s = bt_scheduler_new(&options);
    expect(s != NULL, "there is memory");
}

static bt_admission admit(int64_t now_ns, int64_t rows, int64_t deadline_ns) {
    return bt_admit(s, now_ns, rows, 0, deadline_ns, 0, 0);
}

static void admit_many(int64_t count, int64_t deadline_ns) {
    for (int64_t i = 0; i < count; i++) expect(admit(0, 1, deadline_ns).verdict == BT_ADMITTED, "it is admitted");
}

static int64_t run(int64_t now_ns, int64_t slots) {
    expect(bt_decide(s, now_ns, 1, slots, &d) == 0, "there is memory");
    return d.action == BT_RUN ? d.rows : -1;
}

static int64_t run_with(int64_t idle_slots) {
    expect(bt_decide(s, 0, idle_slots, 2, &d) == 0, "there is memory");
    return d.action == BT_RUN ? d.rows : -1;
}

static int64_t expired(void) {
    bt_statistics n;
    bt_get_statistics(s, &n);
    return n.expired;
}

/* ---- the facts ------------------------------------------------------------------ */

static void admission(void) {
    begin(0);
    admit_many(5, 1);
    expect(admit(0, 1, 1).predicted_ns == -1, "nothing is predicted before the policy is calibrated");

    begin(1);
    expect(admit(0, 1, 50).verdict == BT_ADMITTED, "an engine with nothing to do takes a call that will be late");
    expect(admit(0, 1, BT_NEVER).predicted_ns == -1, "nobody asks about a call without a deadline");

    begin(1);
    admit_many(10, BT_NEVER);
    expect(run(0, 1) == 10, "a full batch runs");
    bt_admission a = admit(50, 1, 50 + 259);
    expect(a.verdict == BT_REFUSED_LATE && a.predicted_ns == 150 + 110, "what runs is waited for");
    expect(admit(50, 1, 50 + 260).verdict == BT_ADMITTED, "a call that just makes it is admitted");
    admit_many(9, BT_NEVER);
    expect(admit(50, 1, 50 + 549).verdict == BT_REFUSED_LATE, "full batches in the queue are waited for");
    expect(admit(50, 1, 50 + 550).predicted_ns == 150 + 200 + 200, "and then the own one, full by then");
    expect(admit(50, 1000, BT_NEVER).predicted_ns > 0, "a refusal for a full queue says how long it is");

    begin(1);
    admit_many(10, BT_NEVER);
    expect(run(0, 2) == 10, "a full batch runs on one of two slots");
    expect(admit(0, 1, 1000).predicted_ns == 110, "a slot is free for the next");
    admit_many(18, BT_NEVER);
    expect(admit(0, 2, 1000).predicted_ns == (200 + 2 * 200) / 2 + 200, "work is spread over the slots");
}

static void drops(void) {
    begin(1);
    admit_many(10, 200);
    expect(run(0, 1) == 10 && expired() == 0, "nothing is dropped if all make it");

    begin(0);
    admit_many(10, 50);
    expect(run(0, 1) == 10 && expired() == 0, "nobody is dropped before the policy is calibrated");

    begin(0);
    for (int64_t i = 1; i <= 10; i++) admit(0, 1, 20 * i);
    the_policy.calibrated = 1;
    /* Without the k tightest: 100 + 10 (10 - k) <= 20 (k + 1), so k = 6. */
    expect(run(0, 1) == 4 && expired() == 6, "the fewest are dropped that let all others make it");

    begin(0);
    admit_many(5, 50);
    admit_many(10, 5000);
    the_policy.calibrated = 1;
    expect(run(0, 1) == 10 && expired() == 5, "the room of the dropped is filled again in the same decision");

    begin(0);
    for (int64_t i = 0; i < 200; i++) admit(0, 1, 150);
    the_policy.calibrated = 1;
    expect(run(0, 1) <= 5 && run(0, 2) > 0, "a batch is not filled beyond what its members can wait for");
    expect(expired() <= 10, "and the backlog is not dropped for it");

    begin(0);
    admit_many(3, 50);
    the_policy.calibrated = 1;
    expect(run(0, 1) == 1 && expired() == 2, "while nothing runs, one late call is tried all the same");
    admit(0, 1, BT_NEVER);
    the_policy.calibrated = 0;
    admit(0, 1, 50);
    the_policy.calibrated = 1;
    expect(run(0, 2) == 1 && expired() == 3, "a call without a deadline is never dropped");
}

static void splits(void) {
    begin(0);
    admit(0, 1, 150);
    admit_many(7, 1000);
    the_policy.calibrated = 1;
    expect(run(0, 2) == 5 && expired() == 0, "a batch is split when that saves the tightest call");
    expect(run(0, 2) == 3, "and the others make it in the next");

    begin(0);
    admit(0, 1, 150);
    admit_many(100, BT_NEVER);
    the_policy.calibrated = 1;
    expect(run(0, 1) == 5 && expired() == 0, "calls that can wait make room, also under a backlog");

    begin(0);
    admit(0, 1, 150);
    admit_many(7, 180);
    the_policy.calibrated = 1;
    expect(run_with(1) == 7 && expired() == 1, "there is no split if it makes the others late");

    begin(0);
    admit_many(10, 150);
    the_policy.calibrated = 1;
    expect(run_with(2) == 5 && run_with(1) == 5 && expired() == 0, "with a second idle slot both halves run at once");
}

int main(void) {
    admission();
    drops();
    splits();
    bt_scheduler_free(s);
    return 0;
}
