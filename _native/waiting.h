/* The wait rule: whether to hold a batch open for callers that are expected.
 *
 * Pure arithmetic over the cost model and the arrivals; waiting.c says the rule
 * in words. Owned by the policy.
 */
#ifndef BT_WAITING_H
#define BT_WAITING_H

#include <stdint.h>

#include "arrivals.h"
#include "cost.h"

/* The moment of a decision: an idle slot, and calls of one group in the queue. */
typedef struct {
    int64_t now_ns;
    int64_t newest_ns;
    double calls;
    double rows;
    double others;      /* calls of other groups in the queue: they wait as well */
    double room_rows;   /* until the batch is full */
    int64_t idle_slots;
    int64_t total_slots;
    double busy_share;  /* of the slots' time, recent */
    double rows_per_ns; /* answered, recent */
} bt_moment;

/* What one decision needs to know of the cost; allowed sizes are the policy's. */
typedef double (*bt_cost_of)(const void *policy, double rows);
typedef struct {
    const bt_cost *model;
    bt_cost_of of;
    const void *policy;
} bt_costs;

/* Until when to wait; now: do not. */
int64_t bt_wait_decide(const bt_arrivals *a, const bt_crowd *c, const bt_costs *costs, const bt_moment *m);

/* Long-run comparison of waiting for returning callers with never waiting; sets
 * c->worth_waiting. A microsecond or two: for now and then. */
void bt_wait_plan(const bt_arrivals *a, bt_crowd *c, const bt_costs *costs, int64_t total_slots);

/* Of the callers answered, the share that calls again soon, and their median time. */
double bt_wait_returns(const bt_arrivals *a, int64_t *median_ns);

#endif
