/* The policy: what a batch costs, who is about to call, and whether to wait.
 *
 * Pure like the scheduler that owns it: time is an argument, numbers only, no
 * allocation after bt_policy_new. The scheduler reports events; the policy
 * answers three questions: how long will n rows take, when would a call
 * admitted now be answered, and should these rows be run now or held.
 */
#ifndef BT_POLICY_H
#define BT_POLICY_H

#include <stddef.h>
#include <stdint.h>

typedef enum { BT_LATENCY = 0, BT_THROUGHPUT = 1 } bt_objective;

typedef enum {
    BT_RULE_LEARNED = 0, /* the engine's own */
    BT_RULE_GREEDY = 1,  /* run what is queued when a slot is free */
    BT_RULE_FIXED = 2,   /* release at fixed_rows rows, or fixed_wait_ns after the oldest call */
} bt_rule;

/* Why a batch was released. */
typedef enum {
    BT_RELEASE_FULL = 0,          /* max_batch_rows (or the fixed size) reached */
    BT_RELEASE_WORKER_FREE = 1,   /* waiting was not worth it */
    BT_RELEASE_EVERYONE_HERE = 2, /* all callers that were expected have come */
    BT_RELEASE_HOLD_EXPIRED = 3,  /* those awaited did not come in time */
    BT_RELEASE_BUDGET = 4,        /* the tightest deadline allows no more waiting */
    BT_RELEASE_CAP = 5,           /* max_wait_ms (or the fixed wait) reached */
    BT_RELEASE_RERUN = 6,         /* part of a batch that raised or lost its worker */
    BT_RELEASE_COUNT = 7,
} bt_release;

#define BT_MAX_ALLOWED_SIZES 64

typedef struct {
    bt_rule rule;
    bt_objective objective;
    int64_t max_batch_rows;
    int64_t max_wait_ns; /* -1: the policy decides */
    int64_t fixed_wait_ns;
    int64_t fixed_rows;
    int64_t allowed_rows[BT_MAX_ALLOWED_SIZES]; /* ascending; the last is max_batch_rows */
    int64_t allowed_count;                      /* 0: every size is allowed */
} bt_policy_options;

/* What the scheduler knows at the moment of a decision, about one group. */
typedef struct {
    uint64_t group;
    int64_t queued_rows;        /* waiting in this group */
    int64_t queued_calls;
    int64_t oldest_arrival_ns;
    int64_t newest_arrival_ns;
    int64_t tightest_deadline_ns; /* by when the batch has to end, after now; INT64_MAX: none */
    int64_t idle_slots;
    int64_t total_slots;
    int64_t queued_rows_all;    /* all groups */
} bt_view;

typedef struct {
    int64_t hold_until_ns; /* <= now: release */
    int64_t take_rows;     /* release at most so many rows (several slots, padding); >= 1 */
    bt_release reason;     /* of a release */
} bt_hold;

/* What was learned, in numbers a person can read. */
typedef struct {
    int64_t calibrated;         /* two sizes have been seen */
    double cost_base_ns;        /* b of a*n + b */
    double cost_row_ns;         /* a */
    double arrival_rate_hz;     /* rows a second, recent */
    double return_fraction;     /* of a batch's callers that call again soon */
    int64_t return_median_ns;   /* of those, after how long */
    int64_t held;               /* releases that were held first */
    int64_t held_ns;            /* and for how long in all */
} bt_policy_statistics;

typedef struct bt_policy bt_policy;

bt_policy *bt_policy_new(const bt_policy_options *options); /* NULL: out of memory */
void bt_policy_free(bt_policy *p);
void bt_policy_set_options(bt_policy *p, const bt_policy_options *options);

/* ---- events, in the order of time ------------------------------------- */

/* One call was admitted. */
void bt_policy_arrived(bt_policy *p, int64_t now_ns, uint64_t group, uint64_t client, int64_t rows);
/* A queued call left without running (cancelled, expired). */
void bt_policy_left(bt_policy *p, int64_t now_ns, uint64_t group, int64_t rows);
/* A batch was handed to a slot. */
void bt_policy_started(bt_policy *p, int64_t now_ns, uint64_t group, int64_t calls, int64_t rows,
                       int64_t padded_rows, bt_release reason);
/* A batch ended after took_ns; `answered` of its calls got their answer now and
 * may call again. ok: 1 the cost counts, 0 it does not (raised, died). */
void bt_policy_finished(bt_policy *p, int64_t now_ns, uint64_t group, int64_t answered, int64_t rows,
                        int64_t padded_rows, int64_t took_ns, int ok);

/* ---- questions --------------------------------------------------------- */

/* Mean cost of one batch of `rows` rows, padding included; 0 when nothing is known. */
int64_t bt_policy_cost_ns(const bt_policy *p, int64_t rows);
/* The same, an upper quantile: for deadlines. */
int64_t bt_policy_cost_high_ns(const bt_policy *p, int64_t rows);
/* Rows that the model is given for `rows` rows: the next allowed size. */
int64_t bt_policy_padded_rows(const bt_policy *p, int64_t rows);
/* Two sizes have been seen, and the rule is the learned one: predictions may refuse calls. */
int bt_policy_calibrated(const bt_policy *p);
/* Hold these rows, or release them, and how many. Called with an idle slot. */
bt_hold bt_policy_hold(bt_policy *p, int64_t now_ns, const bt_view *view);
void bt_policy_get_statistics(const bt_policy *p, bt_policy_statistics *out);
/* NULL if every invariant holds, else the sentence that does not. */
const char *bt_policy_check(const bt_policy *p);

#endif
