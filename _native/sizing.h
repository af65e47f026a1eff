/* How many of the queued rows one batch should take, and whether a few more would make it cheaper.
 *
 * Usually all, at once. Fewer when several slots can share them, when a smaller batch
 * is so much cheaper a row that the rest is better off waiting (allowed sizes, or
 * steps that the cost table has learned), or when the rest can run as well right
 * after and the first half is then answered in half the time. Pure arithmetic.
 */
#ifndef BT_SIZING_H
#define BT_SIZING_H

#include <stdint.h>

#include "waiting.h"

#define BT_FLIGHTS 64 /* batches in flight that are followed */

typedef struct {
    uint64_t group;
    int64_t start_ns;
    int64_t end_ns;   /* predicted */
    int64_t calls;
    int64_t rows;
    int64_t mean_ns;  /* predicted cost */
} bt_flight;

typedef struct {
    int64_t rows;          /* queued, up to a full batch */
    int64_t rows_all;      /* queued, and in flight */
    int64_t idle_slots;
    int64_t total_slots;
    double busy_share;
    double rows_per_ns;    /* rows answered, recent */
    double latency_ns;     /* of a row, from call to answer, recent mean */
    int64_t most_rows;     /* of a full batch */
    int closed;            /* the callers are those who come back */
    int with_deadlines;    /* some of the rows must be answered by a certain time */
    const int64_t *allowed; /* ascending */
    int64_t allowed_count;
} bt_load;

typedef struct {
    int64_t rows;    /* of the next batch, `load->rows` at most */
    int waits;       /* for more: whether it comes out so does not depend on the time */
} bt_size;

bt_size bt_size_decide(const bt_costs *costs, const bt_load *load, const bt_flight *flights, int flight_count,
                       int64_t now_ns);

#endif
