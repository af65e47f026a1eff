/* The cost model: how long a batch of n rows takes, learned from finished batches.
 *
 * A line a*n + b, fitted to rows (padding included), carries what is known from
 * one size to another; a table of sizes carries what a line cannot say (steps,
 * padding inside the model). Owned by the policy; no allocation, no clock.
 */
#ifndef BT_COST_H
#define BT_COST_H

#include <stdint.h>

#define BT_COST_EXACT 128 /* sizes up to this have an entry each, beyond: 16 an octave */
#define BT_COST_SLOTS (BT_COST_EXACT + 1 + 16 * 25)
#define BT_COST_FIRST 8  /* batches that are judged together */
#define BT_COST_STRAYS 5 /* so many in a row on one side are no strays: the regime has changed */

typedef struct {
    float mean_ns;  /* decayed mean of what batches of this size took */
    float weight;   /* how many batches that mean stands for, decayed */
    int64_t seen_at; /* number of the batch that touched it last: decay is applied on reading */
} bt_cost_slot;

typedef struct {
    int64_t rows;
    double took_ns;
} bt_cost_sample;

typedef struct {
    int64_t batches;     /* that counted */
    double mean_rows;    /* decayed means of the two axes of the line */
    double mean_ns;
    double mean_weight;  /* batches behind them, grows to the memory's length */
    double var_rows;     /* decayed spread, and its product with the time: the slope */
    double cov_rows_ns;
    double row_ns;       /* a */
    double base_ns;      /* b */
    double noise;        /* mean absolute deviation from other batches of the same size, as a share */
    double misfit;       /* the same deviation, from the line alone: more than the noise where it is no line */
    double line_weight;  /* of the line against one batch of a size: high where sizes are on the line */
    double high;         /* upper quantile, as a multiple of the mean */
    int64_t first_rows;  /* the one size seen, until a second is */
    int two_sizes;
    int64_t least_rows;  /* what the line was fitted to lies between these */
    int64_t most_rows;
    int strays;          /* batches in a row that were far off on the same side; sign is the side */
    double stray_ratio;  /* geometric middle of them: what a change of regime is scaled by */
    bt_cost_sample stray[BT_COST_STRAYS];
    bt_cost_sample first[BT_COST_FIRST];
    int first_count;
    bt_cost_slot table[BT_COST_SLOTS];
} bt_cost;

void bt_cost_init(bt_cost *c);
/* A batch of `rows` rows took `took_ns`. */
void bt_cost_learn(bt_cost *c, int64_t rows, double took_ns);
/* Nanoseconds of a batch of `rows` rows; 0 when nothing is known. */
double bt_cost_mean(const bt_cost *c, int64_t rows);
double bt_cost_high(const bt_cost *c, int64_t rows);
/* How sure the mean is: its standard error, as a share of it. It falls with the batches of this size
 * that were measured, and rises with their spread, with the distance from what was measured, and with
 * what line and table disagree about. INFINITY when nothing is known. */
double bt_cost_error(const bt_cost *c, int64_t rows);
/* No size is off the line by more than its noise explains: batches of any size cost what the line says. */
int bt_cost_is_line(const bt_cost *c);
/* Batches of this very size behind it, recent ones; 0: the line alone speaks. */
double bt_cost_samples(const bt_cost *c, int64_t rows);
/* The next smaller size that is told apart from this one. */
static inline int64_t bt_cost_before(int64_t rows) {
    if (rows <= BT_COST_EXACT) return rows - 1;
    int width = 63 - __builtin_clzll((unsigned long long)rows) - 4;
    int64_t before = (rows >> width << width) - 1;
    return before < BT_COST_EXACT ? BT_COST_EXACT : before;
}

/* NULL if every invariant holds, else the sentence that does not. */
const char *bt_cost_check(const bt_cost *c);

#endif
