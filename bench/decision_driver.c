/* The C side of bench_decision.py:
 *
 *   driver TRAFFIC CALLS [CALLERS]   TRAFFIC is loop, spread, poisson or bursts
 *
 * Drives the scheduler with a clock of its own, as simulate.pyx does, and takes the time of every
 * bt_admit, bt_decide and bt_finished, less that of taking the time. Prints for each: how many, ns
 * on average; for decisions also those with calls in the queue and a free slot, and how often
 * memory was asked for after the first half of the calls. CALLS negative: takes no times, for callgrind.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "scheduler.h"

enum { CALL, END };

typedef struct {
    int64_t at_ns, order;
    int what;
    uint64_t which;
} event;

static event *events;
static int64_t event_count, planned;
static uint64_t state = 88172645463325252u;
static int untimed;

/* ---- randomness, events ------------------------------------------------------- */

static double uniform(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) / 9007199254740992.0;
}

static double exponential(void) { return -log(1.0 - uniform()); }

static int earlier(const event *a, const event *b) {
    return a->at_ns < b->at_ns || (a->at_ns == b->at_ns && a->order < b->order);
}

static void plan(int64_t at_ns, int what, uint64_t which) {
    event e = {at_ns, planned++, what, which};
    int64_t i = event_count++;
    for (; i > 0 && earlier(&e, &events[(i - 1) / 2]); i = (i - 1) / 2) events[i] = events[(i - 1) / 2];
    events[i] = e;
}

static event next(void) {
    event first = events[0], last = events[--event_count];
    int64_t i = 0, c;
    while ((c = 2 * i + 1) < event_count) {
        if (c + 1 < event_count && earlier(&events[c + 1], &events[c])) c++;
        if (!earlier(&events[c], &last)) break;
        events[i] = events[c];
        i = c;
    }
    events[i] = last;
    return first;
}

/* ---- the traffic ------------------------------------------------------------------ */

static const char *traffic;
static int64_t callers;

static double cost_ns(int64_t rows) { return 1e6 + 2e4 * (double)rows; }

/* From an answer to that caller's next call. */
static int64_t think_ns(void) {
    if (!strcmp(traffic, "spread")) return (int64_t)(1e5 * uniform());
    return (int64_t)(4e3 * (double)callers * uniform());
}

/* From a call to the next, where calls do not follow answers. */
static int64_t gap_ns(void) {
    if (!strcmp(traffic, "poisson")) return (int64_t)(cost_ns(128) / 128.0 / 0.8 * exponential());
    return (int64_t)(uniform() < 0.05 ? 2e7 * exponential() : 3e4 * exponential());
}

static int is_loop(void) { return callers > 0; }

/* ---- what is measured ---------------------------------------------------------------- */

typedef struct {
    int64_t count;
    double ns;
} tally;

static tally admits, decisions, asked, finishes;
static double clock_ticks, ns_per_tick; /* of one reading */

static double clock_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

#if defined(__x86_64__)
static uint64_t ticks(void) { return untimed ? 0 : __builtin_ia32_rdtsc(); }
#else
static uint64_t ticks(void) { return untimed ? 0 : (uint64_t)clock_now_ns(); }
#endif

static void calibrate(void) {
    double from_ns = clock_now_ns();
    uint64_t from = ticks(), least = UINT64_MAX;
    for (int i = 0; i < 2000000; i++) {
        uint64_t before = ticks(), took = ticks() - before;
        if (took < least) least = took;
    }
    clock_ticks = (double)least;
    ns_per_tick = (clock_now_ns() - from_ns) / (double)(ticks() - from + 1);
}

/* A time beyond 50 us is not ours: another process had the core. */
static double since(uint64_t from) {
    double ns = ((double)(ticks() - from) - clock_ticks) * ns_per_tick;
    return ns > 5e4 ? NAN : ns;
}

static void add(tally *t, double ns) {
    if (isnan(ns)) return;
    t->count++;
    t->ns += ns;
}

static void print(const char *what, const tally *t) {
    printf("%s %lld %.1f\n", what, (long long)t->count, t->count ? t->ns / (double)t->count : 0.0);
}

/* ---- one run ---------------------------------------------------------------------------- */

static bt_scheduler *s;
static int64_t now_ns, timer_ns = INT64_MAX, idle = 1, queued;

static void decide(void) {
    bt_decision d;
    do {
        int has_question = idle > 0 && queued > 0;
        uint64_t from = ticks();
        bt_decide(s, now_ns, idle, 1, &d);
        double took_ns = since(from);
        add(&decisions, took_ns);
        if (has_question) add(&asked, took_ns);
        if (d.action != BT_RUN) continue;
        idle--;
        queued -= (int64_t)d.part_count;
        plan(now_ns + (int64_t)cost_ns(d.padded_rows), END, d.batch);
    } while (d.action == BT_RUN);
    timer_ns = d.until_ns;
}

static int64_t finish(uint64_t batch) {
    size_t count;
    uint64_t from = ticks();
    bt_finished(s, batch, now_ns, BT_OK, &count);
    add(&finishes, since(from));
    idle++;
    return (int64_t)count;
}

static void call(void) {
    uint64_t from = ticks();
    bt_admit(s, now_ns, 1, 0, BT_NEVER, 0, 0);
    add(&admits, since(from));
    queued++;
}

static void run(int64_t calls) {
    int64_t made = 0;
    if (is_loop()) for (int64_t i = 0; i < callers; i++) plan(think_ns(), CALL, 0);
    else plan(gap_ns(), CALL, 0);
    while (made < calls) {
        if (event_count == 0 || events[0].at_ns > timer_ns) {
            now_ns = timer_ns;
        } else {
            event e = next();
            now_ns = e.at_ns;
            if (e.what == CALL) {
                call();
                made++;
                if (!is_loop()) plan(now_ns + gap_ns(), CALL, 0);
            } else {
                int64_t answered = finish(e.which);
                if (is_loop()) for (int64_t i = 0; i < answered; i++) plan(now_ns + think_ns(), CALL, 0);
            }
        }
        decide();
    }
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    traffic = argv[1];
    int64_t calls = atoll(argv[2]);
    callers = argc > 3 ? atoll(argv[3]) : 0;
    untimed = calls < 0;
    calls = llabs(calls);
    bt_options options = {.max_batch_rows = 128, .max_queue_rows = INT64_C(1) << 40, .isolate_errors = 1};
    options.policy.max_batch_rows = 128;
    options.policy.max_wait_ns = -1;
    s = bt_scheduler_new(&options);
    events = malloc(sizeof *events * (size_t)(callers + 1024));
    if (!s || !events) return 1;
    if (!untimed) calibrate();
    run(calls);
    print("admit", &admits);
    print("decide", &decisions);
    print("asked", &asked);
    print("finished", &finishes);
    bt_statistics numbers;
    bt_get_statistics(s, &numbers);
    printf("batches %lld %.2f\n", (long long)numbers.batches, (double)calls / (double)numbers.batches);
    bt_scheduler_free(s);
    free(events);
    return 0;
}
