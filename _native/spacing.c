/* The model of the target. Batches of n rows, on w slots that start evenly, make a
 * queue of batches: one is complete every n/lambda, as regular as n Poisson arrivals
 * are (squared coefficient of variation 1/n), and takes c(n), which does not vary.
 * A row waits for (n-1)/(2*lambda) on average until its batch is complete, then for
 * a slot, then for its batch. The wait for a slot is that of GI/D/w by Allen and
 * Cunneen (1978), with the exponent of Sakasegawa (1977):
 *
 *     c(n) / (w*(1 - rho)) * rho^(sqrt(2*(w + 1)) - 1) * (1/n) / 2,   rho = lambda*c(n)/(n*w)
 *
 * The target is the n for which the sum is least: small batches wait for slots,
 * large ones for their rows.
 *
 * The start. Let n rows wait, k slots be idle, and the next slot return in r. Until
 * then n + lambda*r rows want k + 1 starts. The rows that wait for the first start
 * are as many as come between any two when it is put off by
 *
 *     d = (r - k*n/lambda) / (k + 1)
 *
 * which is where the sum of the waits until r is least.
 */
#include "spacing.h"

#include <math.h>

/* Sizes beyond these are tried in steps of a sixteenth, as the cost table has them. */
#define EACH_ROWS 128
/* Of a batch's time: putting a start off by less changes nothing. */
#define LEAST_WAIT (1.0 / 512.0)

static double mean_latency_ns(double rows, double cost_ns, double rows_per_ns, double slots) {
    double load = rows_per_ns * cost_ns / (rows * slots);
    if (load >= 1.0) return INFINITY;
    float power = powf((float)load, sqrtf(2.0f * ((float)slots + 1.0f)) - 1.0f);
    double slot_ns = cost_ns * (double)power / (slots * (1.0 - load)) * 0.5 / rows;
    return 0.5 * (rows - 1.0) / rows_per_ns + slot_ns + cost_ns;
}

void bt_spacing_plan(bt_spacing *s, const bt_costs *costs, double rows_per_ns, int64_t slots, int64_t most_rows) {
    if (slots < 2 || rows_per_ns <= 0.0) {
        s->target_rows = 0.0;
        return;
    }
    double best_ns = INFINITY, best_rows = (double)most_rows;
    for (int64_t rows = 1; rows <= most_rows; rows += rows < EACH_ROWS ? 1 : rows / 16) {
        double cost_ns = costs->of(costs->policy, (double)rows);
        double ns = mean_latency_ns((double)rows, cost_ns, rows_per_ns, (double)slots);
        if (ns >= best_ns) continue;
        best_ns = ns;
        best_rows = (double)rows;
    }
    s->target_rows = best_rows;
    s->rows_per_ns = rows_per_ns;
}

static const bt_flight *next_to_return(const bt_flight *flights, int flight_count) {
    const bt_flight *next = flights;
    for (int i = 1; i < flight_count; i++) {
        if (flights[i].end_ns < next->end_ns) next = &flights[i];
    }
    return next;
}

int64_t bt_spacing_start_ns(const bt_spacing *s, const bt_flight *flights, int flight_count, int64_t idle_slots,
                            int64_t rows, int64_t now_ns) {
    if (flight_count == 0 || s->target_rows <= 1.0 || (double)rows >= s->target_rows) return now_ns;
    const bt_flight *next = next_to_return(flights, flight_count);
    double left_ns = (double)(next->end_ns - now_ns);
    double slots = (double)idle_slots;
    double wait_ns = (left_ns - slots * (double)rows / s->rows_per_ns) / (slots + 1.0);
    /* Each time that nobody has come the start is put off by a little less: so that this comes to an end. */
    return wait_ns > (double)next->mean_ns * LEAST_WAIT ? now_ns + (int64_t)wait_ns : now_ns;
}
