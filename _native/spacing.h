/* When several slots start their batches: evenly spaced.
 *
 * Left alone, they bunch. A slot that starts g after the one before takes lambda*g
 * rows and is back after b + a*lambda*g, so a gap that is larger than the next one
 * has grown by a*lambda times the difference when its slot comes round again: soon
 * one slot takes everything and the others take single rows. So a free slot waits
 * until it has its share of the rows that come before the next slot's return, or
 * as many as make an efficient batch. Pure arithmetic, owned by the policy;
 * spacing.c has the model.
 */
#ifndef BT_SPACING_H
#define BT_SPACING_H

#include <stdint.h>

#include "sizing.h"

typedef struct {
    double target_rows;  /* of a batch; 0: not planned yet */
    double rows_per_ns;  /* the rate that it was planned for */
} bt_spacing;

/* Sets the target for rows that come at this rate. Some microseconds: for now and then. */
void bt_spacing_plan(bt_spacing *s, const bt_costs *costs, double rows_per_ns, int64_t slots, int64_t most_rows);

/* When the next batch should start, `rows` rows being queued; now_ns or before: at once. */
int64_t bt_spacing_start_ns(const bt_spacing *s, const bt_flight *flights, int flight_count, int64_t idle_slots,
                            int64_t rows, int64_t now_ns);

#endif
