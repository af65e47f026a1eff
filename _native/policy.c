#include "policy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arrivals.h"
#include "cost.h"
#include "sizing.h"
#include "spacing.h"
#include "waiting.h"

/* How often the long run is judged anew: at every completion at first, then now and then. */
#define PLAN_ALWAYS 64
#define PLAN_EVERY 8
/* How many batches' time the load is averaged over. */
#define LOAD_BATCHES 16.0
/* Before a deadline a batch is released so much earlier than it would have to be: timers are late. */
#define SLACK_NS 50000
#define SLACK_SHARE 16
/* Of what a batch takes: nobody waits for others for longer, whatever they promise. */
#define HOLD_SHARE 1.0
/* Of a batch, four months: so that nothing that is reckoned with predictions leaves 64 bits. */
#define LONGEST_NS 1e16

struct bt_policy {
    bt_policy_options options;
    bt_cost cost;
    bt_arrivals arrivals;
    bt_flight flights[BT_FLIGHTS];
    int flight_count;
    int64_t in_flight_rows;
    int64_t total_slots;   /* as of the last question */
    int64_t completed_ns;  /* the last completion of any group */
    int64_t completions;
    double busy_share;     /* of one slot's time, recent */
    double recent_rows;    /* answered, fading with the batches, */
    double recent_ns;      /* the time that it took, */
    double recent_row_ns;  /* and the latencies of all rows in it */
    int64_t inside_rows;   /* queued and in flight */
    int64_t inside_ns;     /* as of then */
    double row_ns;         /* latencies since the last completion */
    double rows_per_ns;    /* the one by the other */
    bt_spacing spacing;
    bt_policy_statistics seen;
};

static double cost_of(const void *policy, double rows) {
    const bt_policy *p = policy;
    return bt_cost_mean(&p->cost, bt_policy_padded_rows(p, (int64_t)(rows + 0.5)));
}

static bt_costs costs_of(const bt_policy *p) {
    return (bt_costs){.model = &p->cost, .of = cost_of, .policy = p};
}

bt_policy *bt_policy_new(const bt_policy_options *options) {
    bt_policy *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->options = *options;
    p->total_slots = 1;
    bt_cost_init(&p->cost);
    bt_arrivals_init(&p->arrivals);
    return p;
}

void bt_policy_free(bt_policy *p) {
    free(p);
}

void bt_policy_set_options(bt_policy *p, const bt_policy_options *options) {
    p->options = *options;
}

/* ---- events ------------------------------------------------------------------------ */

/* Rows that run again are in the queue meanwhile, unseen until the next question. */
static void note_rows(bt_policy *p, int64_t now_ns, int64_t inside_rows) {
    p->row_ns += (double)p->inside_rows * (double)(now_ns - p->inside_ns);
    p->inside_ns = now_ns;
    p->inside_rows = inside_rows > 0 ? inside_rows : 0;
}

void bt_policy_arrived(bt_policy *p, int64_t now_ns, uint64_t group, uint64_t client, int64_t rows) {
    (void)client;
    note_rows(p, now_ns, p->inside_rows + rows);
    bt_crowd *c = bt_arrivals_follow(&p->arrivals, group);
    if (c) bt_arrivals_arrived(&p->arrivals, c, now_ns);
}

void bt_policy_left(bt_policy *p, int64_t now_ns, uint64_t group, int64_t rows) {
    note_rows(p, now_ns, p->inside_rows - rows);
    bt_crowd *c = bt_arrivals_find(&p->arrivals, group);
    if (c) bt_arrivals_left(c);
}

void bt_policy_started(bt_policy *p, int64_t now_ns, uint64_t group, int64_t calls, int64_t rows,
                       int64_t padded_rows, bt_release reason) {
    (void)reason;
    p->in_flight_rows += rows;
    if (p->flight_count < BT_FLIGHTS) {
        int64_t mean_ns = bt_policy_cost_ns(p, padded_rows);
        p->flights[p->flight_count++] = (bt_flight){group, now_ns, now_ns + mean_ns, calls, rows, mean_ns};
    }
    bt_crowd *c = bt_arrivals_find(&p->arrivals, group);
    if (!c) return;
    c->batches++;
    if (!c->held_since_ns) return;
    p->seen.held++;
    p->seen.held_ns += now_ns - c->held_since_ns;
    c->held_since_ns = 0;
}

/* Takes the flight that this batch was out of the table. */
static void land(bt_policy *p, uint64_t group, int64_t start_ns, int64_t rows) {
    for (int i = 0; i < p->flight_count; i++) {
        bt_flight *f = &p->flights[i];
        if (f->start_ns != start_ns || f->rows != rows || f->group != group) continue;
        *f = p->flights[--p->flight_count];
        return;
    }
}

static void learn_load(bt_policy *p, int64_t now_ns, int64_t rows, int64_t took_ns) {
    double span_ns = (double)(now_ns - p->completed_ns), took = fmax(1.0, (double)took_ns);
    p->completed_ns = now_ns;
    if (p->completions++ == 0 || span_ns <= 0.0) return;
    double news = span_ns / (span_ns + LOAD_BATCHES * took);
    p->busy_share += news * (fmin(1.0, took / span_ns) - p->busy_share);
    double keep = 1.0 - 1.0 / (LOAD_BATCHES * (double)p->total_slots);
    p->recent_rows = keep * p->recent_rows + (double)rows;
    p->recent_ns = keep * p->recent_ns + span_ns;
    p->recent_row_ns = keep * p->recent_row_ns + p->row_ns;
    p->row_ns = 0.0;
    p->rows_per_ns = p->recent_rows / p->recent_ns;
}

static int is_planned(int64_t completions) {
    return completions < PLAN_ALWAYS || completions % PLAN_EVERY == 0;
}

void bt_policy_finished(bt_policy *p, int64_t now_ns, uint64_t group, int64_t answered, int64_t rows,
                        int64_t padded_rows, int64_t took_ns, int ok) {
    land(p, group, now_ns - took_ns, rows);
    p->in_flight_rows = p->in_flight_rows > rows ? p->in_flight_rows - rows : 0;
    note_rows(p, now_ns, p->inside_rows - rows);
    learn_load(p, now_ns, rows, took_ns);
    if (ok) bt_cost_learn(&p->cost, padded_rows, (double)took_ns);
    bt_costs costs = costs_of(p);
    if (is_planned(p->completions)) {
        bt_spacing_plan(&p->spacing, &costs, p->rows_per_ns, p->total_slots, p->options.max_batch_rows);
        bt_arrivals_learn_runs(&p->arrivals);
    }
    bt_crowd *c = bt_arrivals_find(&p->arrivals, group);
    if (!c) return;
    if (c->batches > 0) c->batches--;
    bt_arrivals_completed(&p->arrivals, c, now_ns, answered);
    if (is_planned(c->completions)) bt_wait_plan(&p->arrivals, c, &costs, c->slots > 0 ? c->slots : p->total_slots);
}

/* ---- costs --------------------------------------------------------------------------- */

int64_t bt_policy_padded_rows(const bt_policy *p, int64_t rows) {
    for (int64_t i = 0; i < p->options.allowed_count; i++) {
        if (p->options.allowed_rows[i] >= rows) return p->options.allowed_rows[i];
    }
    return rows;
}

int64_t bt_policy_cost_ns(const bt_policy *p, int64_t rows) {
    return (int64_t)fmin(LONGEST_NS, bt_cost_mean(&p->cost, bt_policy_padded_rows(p, rows)));
}

int64_t bt_policy_cost_high_ns(const bt_policy *p, int64_t rows) {
    return (int64_t)fmin(LONGEST_NS, bt_cost_high(&p->cost, bt_policy_padded_rows(p, rows)));
}

/* The baselines are release thresholds and nothing else: under them nobody is refused, or dropped
 * before its deadline, because of what a batch is predicted to cost. */
int bt_policy_calibrated(const bt_policy *p) {
    return p->options.rule == BT_RULE_LEARNED && p->cost.two_sizes;
}

/* ---- the decision ---------------------------------------------------------------------- */

static bt_hold release(int64_t now_ns, int64_t rows, bt_release reason) {
    return (bt_hold){.hold_until_ns = now_ns, .take_rows = rows, .reason = reason};
}

static bt_hold fixed_window(const bt_policy *p, int64_t now_ns, const bt_view *view) {
    const bt_policy_options *o = &p->options;
    int64_t full_rows = o->fixed_rows < o->max_batch_rows ? o->fixed_rows : o->max_batch_rows;
    if (view->queued_rows >= full_rows) return release(now_ns, o->max_batch_rows, BT_RELEASE_FULL);
    int64_t wait_ns = o->fixed_wait_ns;
    if (o->max_wait_ns >= 0 && o->max_wait_ns < wait_ns) wait_ns = o->max_wait_ns;
    int64_t oldest_ns = view->oldest_arrival_ns;
    int64_t until_ns = oldest_ns > INT64_MAX - wait_ns ? INT64_MAX : oldest_ns + wait_ns;
    return (bt_hold){until_ns, o->max_batch_rows, BT_RELEASE_CAP};
}

/* Calls that were cancelled or expired while they ran are not reported: what is queued and in
 * flight is the truth. */
static void take_stock(const bt_policy *p, bt_crowd *c, int64_t queued_calls) {
    int64_t inside = queued_calls;
    for (int i = 0; i < p->flight_count; i++)
        if (p->flights[i].group == c->group) inside += p->flights[i].calls;
    bt_arrivals_correct(c, inside);
}

/* The latest release that still meets the tightest deadline. */
static int64_t latest_release_ns(const bt_policy *p, const bt_view *view) {
    if (view->tightest_deadline_ns == INT64_MAX) return INT64_MAX;
    int64_t cost_ns = bt_policy_cost_high_ns(p, view->queued_rows);
    return view->tightest_deadline_ns - cost_ns - cost_ns / SLACK_SHARE - SLACK_NS;
}

/* A hold is judged anew when it ends, when almost everyone is here, and as the queue grows by half:
 * between these it would hardly come out differently. */
static int still_holds(const bt_crowd *c, int64_t now_ns, int64_t calls) {
    return c->held_since_ns && now_ns < c->review_ns && calls < c->review_calls && bt_arrivals_missing(c) > 2.0;
}

/* Until when callers that are expected are worth waiting for. */
static int64_t expected_ns(bt_policy *p, bt_crowd *c, int64_t now_ns, const bt_view *view) {
    if (still_holds(c, now_ns, view->queued_calls)) return c->review_ns;
    bt_arrivals_advance(&p->arrivals, c, now_ns);
    double calls = (double)view->queued_calls, rows = fmax(1.0, (double)view->queued_rows);
    bt_moment m = {
        .now_ns = now_ns,
        .newest_ns = view->newest_arrival_ns,
        .calls = calls,
        .rows = rows,
        .others = (double)(view->queued_rows_all - view->queued_rows) * calls / rows,
        .room_rows = (double)p->options.max_batch_rows - rows,
        .idle_slots = view->idle_slots,
        .total_slots = c->slots,
        .busy_share = p->busy_share,
        .rows_per_ns = p->rows_per_ns,
    };
    bt_costs costs = costs_of(p);
    c->review_ns = bt_wait_decide(&p->arrivals, c, &costs, &m);
    c->review_calls = view->queued_calls + view->queued_calls / 2 + 1;
    return c->review_ns;
}

/* Slots are shared by the groups that have rows here, each by its rows. */
static int64_t slots_of_group(const bt_policy *p, const bt_view *view) {
    int64_t own_rows = view->queued_rows, all_rows = view->queued_rows_all + p->in_flight_rows;
    if (view->total_slots <= 1) return 1;
    for (int i = 0; i < p->flight_count; i++)
        if (p->flights[i].group == view->group) own_rows += p->flights[i].rows;
    if (own_rows >= all_rows) return view->total_slots;
    int64_t slots = (int64_t)((double)view->total_slots * (double)own_rows / (double)all_rows + 0.5);
    return slots > 1 ? slots : 1;
}

/* How long the rule would wait if nothing forbade it. */
static int64_t wanted_ns(bt_policy *p, bt_crowd *c, int64_t now_ns, const bt_view *view, int64_t latest_ns, int fills) {
    const bt_policy_options *o = &p->options;
    if (o->objective == BT_THROUGHPUT && latest_ns != INT64_MAX) return latest_ns;
    if (o->objective == BT_THROUGHPUT && o->max_wait_ns >= 0) return INT64_MAX;
    if (bt_arrivals_everyone_here(c)) return now_ns;
    int64_t until_ns = expected_ns(p, c, now_ns, view);
    if (c->slots == view->total_slots) {
        int64_t start_ns = bt_spacing_start_ns(&p->spacing, p->flights, p->flight_count, view->idle_slots,
                                               view->queued_rows_all, now_ns);
        if (start_ns > until_ns) until_ns = start_ns;
    }
    int64_t from_ns = p->completed_ns > view->oldest_arrival_ns ? p->completed_ns : view->oldest_arrival_ns;
    if (c->held_since_ns && c->held_since_ns < from_ns) from_ns = c->held_since_ns; /* others complete meanwhile */
    int64_t most_ns = from_ns + (int64_t)(HOLD_SHARE * (double)bt_policy_cost_ns(p, view->queued_rows));
    return until_ns < most_ns && !fills ? until_ns : most_ns;
}

/* Why a batch is released that the rule does not want to hold. */
static bt_release reason_of(const bt_crowd *c) {
    if (c->population > 1.5 && bt_arrivals_everyone_here(c)) return BT_RELEASE_EVERYONE_HERE;
    return c->held_since_ns ? BT_RELEASE_HOLD_EXPIRED : BT_RELEASE_WORKER_FREE;
}

/* The callers are those who come back: nobody waits for a size to fill. */
static int is_closed(const bt_policy *p, const bt_crowd *c, const bt_view *view) {
    return bt_arrivals_closed(&p->arrivals) && (view->total_slots > 1 || (c && c->worth_waiting));
}

static bt_size sized(const bt_policy *p, const bt_crowd *c, int64_t now_ns, const bt_view *view) {
    int64_t most = p->options.max_batch_rows;
    bt_load load = {
        .rows = view->queued_rows < most ? view->queued_rows : most,
        .rows_all = view->queued_rows_all + p->in_flight_rows,
        .idle_slots = view->idle_slots,
        .total_slots = c ? c->slots : view->total_slots,
        .busy_share = p->busy_share,
        .rows_per_ns = p->rows_per_ns,
        .latency_ns = p->recent_rows > 0.0 ? p->recent_row_ns / p->recent_rows : 0.0,
        .most_rows = most,
        .closed = is_closed(p, c, view),
        .with_deadlines = view->tightest_deadline_ns != INT64_MAX,
        .allowed = p->options.allowed_rows,
        .allowed_count = p->options.allowed_count,
    };
    bt_costs costs = costs_of(p);
    bt_size size = bt_size_decide(&costs, &load, p->flights, p->flight_count, now_ns);
    if (size.rows == load.rows) size.rows = most;
    return size;
}

bt_hold bt_policy_hold(bt_policy *p, int64_t now_ns, const bt_view *view) {
    const bt_policy_options *o = &p->options;
    p->total_slots = view->total_slots > 0 ? view->total_slots : 1;
    if (o->rule == BT_RULE_FIXED) return fixed_window(p, now_ns, view);
    int full = view->queued_rows >= o->max_batch_rows;
    if (o->rule == BT_RULE_GREEDY) {
        return release(now_ns, o->max_batch_rows, full ? BT_RELEASE_FULL : BT_RELEASE_WORKER_FREE);
    }
    note_rows(p, now_ns, view->queued_rows_all + p->in_flight_rows);
    bt_crowd *c = bt_arrivals_find(&p->arrivals, view->group);
    if (c) c->slots = slots_of_group(p, view);
    int later = !full && is_closed(p, c, view); /* most decisions of a hold need no size */
    bt_size size = later ? (bt_size){0, 0} : sized(p, c, now_ns, view);
    if (full) return release(now_ns, size.rows, BT_RELEASE_FULL);
    if (!c || p->cost.batches == 0) return release(now_ns, o->max_batch_rows, BT_RELEASE_WORKER_FREE);
    take_stock(p, c, view->queued_calls);
    if (c->held_since_ns < view->oldest_arrival_ns) c->held_since_ns = 0; /* those held then have left */
    int64_t latest_ns = latest_release_ns(p, view);
    int64_t until_ns = wanted_ns(p, c, now_ns, view, latest_ns, size.waits);
    int64_t cap_ns = o->max_wait_ns < 0 || view->oldest_arrival_ns > INT64_MAX - o->max_wait_ns
                         ? INT64_MAX
                         : view->oldest_arrival_ns + o->max_wait_ns;
    bt_release reason = reason_of(c);
    if (until_ns > now_ns || until_ns == latest_ns) {
        if (cap_ns < until_ns) until_ns = cap_ns, reason = BT_RELEASE_CAP;
        if (latest_ns <= until_ns) until_ns = latest_ns, reason = BT_RELEASE_BUDGET;
        if (until_ns > now_ns) {
            if (!c->held_since_ns) c->held_since_ns = now_ns;
            return (bt_hold){until_ns, o->max_batch_rows, reason};
        }
    }
    if (later) size = sized(p, c, now_ns, view);
    return release(now_ns, size.rows, reason);
}

/* ---- what was learned ------------------------------------------------------------------------ */

void bt_policy_get_statistics(const bt_policy *p, bt_policy_statistics *out) {
    *out = p->seen;
    out->calibrated = p->cost.two_sizes;
    out->cost_base_ns = p->cost.base_ns;
    out->cost_row_ns = p->cost.row_ns;
    out->arrival_rate_hz = p->rows_per_ns * 1e9;
    out->return_fraction = bt_wait_returns(&p->arrivals, &out->return_median_ns);
}

const char *bt_policy_check(const bt_policy *p) {
    const char *broken = bt_cost_check(&p->cost);
    if (!broken) broken = bt_arrivals_check(&p->arrivals);
    if (!broken && (p->flight_count < 0 || p->flight_count > BT_FLIGHTS)) broken = "the flights fit their table";
    if (!broken && !(p->recent_row_ns >= 0.0 && p->row_ns >= 0.0)) broken = "no row is answered before it came";
    if (!broken && !(p->busy_share >= 0.0 && p->busy_share <= 1.0)) broken = "a share is between 0 and 1";
    return broken;
}
