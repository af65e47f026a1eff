#include "cost.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

/* How many batches the model remembers: it follows a slow drift within about as many. */
#define MEMORY 64.0
/* A table entry counts as much as the line once it stands for so many batches. */
#define LINE_WEIGHT 2.0
/* A batch further off than this share of the prediction, and further than STRAY_NOISE times the
 * usual deviation, is a stray: it counts only as far as the edge. */
#define STRAY_SHARE 0.5
#define STRAY_NOISE 4.0
/* So many strays in a row on one side are no strays: the regime has changed. */
#define STRAYS_ARE_NEWS 5
/* Of noise that is spread normally: the standard deviation for one of mean absolute deviation. */
#define SIGMA 1.2533
/* The quantile that `high` follows. */
#define HIGH_QUANTILE 0.95
#define HIGH_STEP 0.02

void bt_cost_init(bt_cost *c) {
    memset(c, 0, sizeof *c);
    c->noise = c->misfit = 0.1;
    c->high = 1.1;
}

static int slot_of(int64_t rows) {
    if (rows <= BT_COST_EXACT) return rows < 0 ? 0 : (int)rows;
    int octave = 63 - __builtin_clzll((unsigned long long)rows); /* >= 7 */
    int sixteenth = (int)((rows >> (octave - 4)) & 15);
    int slot = BT_COST_EXACT + 1 + (octave - 7) * 16 + sixteenth;
    return slot < BT_COST_SLOTS ? slot : BT_COST_SLOTS - 1;
}

static double line_at(const bt_cost *c, int64_t rows) {
    return c->base_ns + c->row_ns * (double)rows;
}

/* A table entry fades with the batches that passed since it was touched. */
static double slot_weight(const bt_cost *c, const bt_cost_slot *slot) {
    if (slot->weight <= 0.0f) return 0.0;
    double age = (double)(c->batches - slot->seen_at);
    return (double)slot->weight / (1.0 + age * (1.0 / (8.0 * MEMORY)));
}

double bt_cost_mean(const bt_cost *c, int64_t rows) {
    if (c->batches == 0) return 0.0;
    double line = line_at(c, rows);
    const bt_cost_slot *slot = &c->table[slot_of(rows)];
    double weight = slot_weight(c, slot);
    if (weight <= 0.0) return line;
    return (weight * (double)slot->mean_ns + LINE_WEIGHT * line) / (weight + LINE_WEIGHT);
}

double bt_cost_high(const bt_cost *c, int64_t rows) {
    return bt_cost_mean(c, rows) * c->high;
}

double bt_cost_samples(const bt_cost *c, int64_t rows) {
    return slot_weight(c, &c->table[slot_of(rows)]);
}

/* Of the line. Before a second size the slope may be anything from nothing to the whole cost. */
static double line_error(const bt_cost *c, int64_t rows, double sigma) {
    double away = (double)rows - c->mean_rows;
    double square = sigma * sigma / c->mean_weight;
    if (!c->two_sizes) {
        double slope = 0.5 * away / fmax(c->mean_rows, 1.0) * c->mean_ns / fmax(line_at(c, rows), 1.0);
        return sqrt(square + slope * slope);
    }
    square *= 1.0 + away * away / fmax(c->var_rows, 1e-9);
    return sqrt(square + SIGMA * SIGMA * fmax(0.0, c->misfit * c->misfit - c->noise * c->noise));
}

double bt_cost_error(const bt_cost *c, int64_t rows) {
    if (c->batches == 0) return INFINITY;
    const bt_cost_slot *slot = &c->table[slot_of(rows)];
    double weight = slot_weight(c, slot);
    double sigma = SIGMA * c->noise;
    if (weight <= 0.0) return line_error(c, rows, sigma);
    double pulled = LINE_WEIGHT / (weight + LINE_WEIGHT) * (line_at(c, rows) / (double)slot->mean_ns - 1.0);
    return sqrt(sigma * sigma / weight + pulled * pulled);
}

/* Everything learned is scaled and then soon forgotten: the model got faster or slower. */
static void change_regime(bt_cost *c, double ratio) {
    c->mean_ns *= ratio;
    c->cov_rows_ns *= ratio;
    c->row_ns *= ratio;
    c->base_ns *= ratio;
    c->mean_weight = fmin(c->mean_weight, 4.0);
    for (int i = 0; i < BT_COST_SLOTS; i++) {
        c->table[i].mean_ns *= (float)ratio;
        c->table[i].weight = fminf(c->table[i].weight, 1.0f);
    }
    c->strays = 0;
}

/* What of `took_ns` counts. One batch a hundred times slower says nothing about the next. */
static double tame(bt_cost *c, double predicted, double took_ns) {
    double edge = fmax(STRAY_SHARE, STRAY_NOISE * c->noise);
    double ratio = took_ns / predicted;
    int side = ratio > 1.0 + edge ? 1 : ratio < 1.0 / (1.0 + edge) ? -1 : 0;
    if (side == 0) {
        c->strays = 0;
        return took_ns;
    }
    if (c->strays * side <= 0) {
        c->strays = 0;
        c->stray_ratio = ratio;
    }
    c->strays += side;
    /* The least of a row of slow strays: three times slower is news, one of them a hundred times is not. */
    c->stray_ratio = side > 0 ? fmin(c->stray_ratio, ratio) : fmax(c->stray_ratio, ratio);
    if (c->strays * side >= STRAYS_ARE_NEWS) {
        change_regime(c, c->stray_ratio);
        return took_ns;
    }
    return side > 0 ? predicted * (1.0 + edge) : predicted / (1.0 + edge);
}

/* The line. The spread of the rows is forgotten only as new spread comes in, so that a stretch of
 * equal batches moves the height of the line and leaves its slope alone. */
static void learn_line(bt_cost *c, double rows, double took_ns) {
    c->mean_weight = fmin(c->mean_weight + 1.0, MEMORY);
    double share = 1.0 / c->mean_weight;
    double d_rows = rows - c->mean_rows;
    double d_ns = took_ns - c->mean_ns;
    c->mean_rows += share * d_rows;
    c->mean_ns += share * d_ns;
    if (c->two_sizes) {
        double spread = d_rows * d_rows * (1.0 - share);
        double news = spread / (spread + c->var_rows + 1e-9);
        double keep = 1.0 - fmin(news, 1.0) * share;
        c->var_rows = keep * c->var_rows + share * spread;
        c->cov_rows_ns = keep * c->cov_rows_ns + share * d_rows * d_ns * (1.0 - share);
        c->row_ns = c->var_rows > 0.0 ? c->cov_rows_ns / c->var_rows : 0.0;
    }
    /* Neither a row nor a batch has a negative cost. */
    if (c->row_ns < 0.0) c->row_ns = 0.0;
    /* One size says nothing of the slope. Until there is a second: half of it is the batch's own. */
    if (!c->two_sizes) c->row_ns = 0.5 * c->mean_ns / fmax(c->mean_rows, 1.0);
    c->base_ns = c->mean_ns - c->row_ns * c->mean_rows;
    if (c->base_ns < 0.0) {
        c->base_ns = 0.0;
        c->row_ns = c->mean_ns / fmax(c->mean_rows, 1.0);
    }
}

void bt_cost_learn(bt_cost *c, int64_t rows, double took_ns) {
    if (rows < 1) rows = 1;
    if (took_ns < 1.0) took_ns = 1.0;
    if (c->batches == 0) c->first_rows = rows;
    if (rows != c->first_rows) c->two_sizes = 1;
    bt_cost_slot *slot = &c->table[slot_of(rows)];
    int known = c->batches > 1 && (c->two_sizes ? slot->weight > 0.0f || c->batches > 8 : 1);
    if (known) {
        double predicted = bt_cost_mean(c, rows);
        double ratio = took_ns / predicted;
        took_ns = tame(c, predicted, took_ns);
        double off = fabs(took_ns / predicted - 1.0);
        c->noise += (off - c->noise) * (1.0 / MEMORY);
        c->misfit += (fabs(took_ns / line_at(c, rows) - 1.0) - c->misfit) * (1.0 / MEMORY);
        double step = HIGH_STEP * fmax(c->noise, 0.01) * 5.0;
        c->high += ratio > c->high ? step * HIGH_QUANTILE : -step * (1.0 - HIGH_QUANTILE);
        c->high = fmin(fmax(c->high, 1.0), 4.0);
    }
    c->batches++;
    learn_line(c, (double)rows, took_ns);
    double weight = fmin(slot_weight(c, slot) + 1.0, MEMORY / 2.0);
    if (weight <= 1.0) slot->mean_ns = (float)took_ns;
    slot->mean_ns += (float)((took_ns - (double)slot->mean_ns) / weight);
    slot->weight = (float)weight;
    slot->seen_at = c->batches;
}

const char *bt_cost_check(const bt_cost *c) {
    if (!(c->row_ns >= 0.0) || !(c->base_ns >= 0.0)) return "a cost is never negative";
    if (!(c->noise >= 0.0) || !(c->misfit >= 0.0)) return "a deviation is never negative";
    if (!(c->high >= 1.0)) return "the upper quantile is not below the mean";
    if (c->batches > 0 && !(c->mean_ns > 0.0)) return "a batch takes some time";
    return NULL;
}
