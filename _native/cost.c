#include "cost.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* How many batches the model remembers: it follows a slow drift within about as many. */
#define MEMORY 64.0
/* Of a line that every size fits: it counts as much as so many batches of one size. */
#define LINE_WEIGHT 32.0
/* A size that was never run is compared with those up to so many entries away. */
#define NEIGHBOURS 32
/* Deviations below this are not told apart from none. */
#define LEAST_NOISE 0.005
/* A batch further off than this share of the prediction, and further than STRAY_NOISE times the
 * usual deviation, is a stray: it counts only as far as the edge. */
#define STRAY_SHARE 0.5
#define STRAY_NOISE 4.0
/* Of two of the first batches, one beside the other: a batch of more rows takes as long at least and
 * longer in proportion at most, or further off than by this factor they do not go together. */
#define APART 2.5
/* A size that was never run may be off by this share of the line before it is cut down. */
#define NEW_SIZE_SHARE 2.0
/* A model of so few batches is begun anew when the regime changes, an older one is scaled. */
#define YOUNG (2 * BT_COST_FIRST)
/* Of noise that is spread normally: the standard deviation for one of mean absolute deviation. */
#define SIGMA 1.2533
/* What noise and misfit begin with counts as so many batches. */
#define PRIOR 4.0
/* The quantile that `high` follows. */
#define HIGH_QUANTILE 0.95
#define HIGH_STEP 0.02

/* fmin and fmax are calls, since they have to think of NaN. */
static inline double lower(double a, double b) { return a < b ? a : b; }
static inline double upper(double a, double b) { return a > b ? a : b; }

void bt_cost_init(bt_cost *c) {
    memset(c, 0, sizeof *c);
    c->noise = c->misfit = 0.1;
    c->line_weight = LINE_WEIGHT;
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

int bt_cost_is_line(const bt_cost *c) {
    return c->line_weight >= LINE_WEIGHT;
}

/* The standard error of an entry, as a share of it. */
static double entry_error(const bt_cost *c, int at) {
    return SIGMA * c->noise / sqrt(upper(slot_weight(c, &c->table[at]), 1e-3));
}

/* More rows never take less: where the line is wrong, a size that was not run lies between its neighbours. */
static double between_neighbours(const bt_cost *c, int at, double line) {
    int first = at > NEIGHBOURS ? at - NEIGHBOURS : 0;
    int last = at + NEIGHBOURS < BT_COST_SLOTS ? at + NEIGHBOURS : BT_COST_SLOTS - 1;
    int below = at - 1, above = at + 1;
    while (below >= first && c->table[below].weight <= 0.0f) below--;
    while (above <= last && c->table[above].weight <= 0.0f) above++;
    if (above <= last) line = lower(line, (double)c->table[above].mean_ns * (1.0 + entry_error(c, above)));
    return below >= first ? upper(line, (double)c->table[below].mean_ns * (1.0 - entry_error(c, below))) : line;
}

double bt_cost_mean(const bt_cost *c, int64_t rows) {
    if (c->batches == 0) return 0.0;
    double line = line_at(c, rows);
    int at = slot_of(rows);
    const bt_cost_slot *slot = &c->table[at];
    double weight = slot_weight(c, slot);
    if (weight <= 0.0) return bt_cost_is_line(c) ? line : between_neighbours(c, at, line);
    return (weight * (double)slot->mean_ns + c->line_weight * line) / (weight + c->line_weight);
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
        double slope = 0.5 * away / upper(c->mean_rows, 1.0) * c->mean_ns / upper(line_at(c, rows), 1.0);
        return sqrt(square + slope * slope);
    }
    square *= 1.0 + away * away / upper(c->var_rows, 1e-9);
    return sqrt(square + SIGMA * SIGMA * upper(0.0, c->misfit * c->misfit - c->noise * c->noise));
}

double bt_cost_error(const bt_cost *c, int64_t rows) {
    if (c->batches == 0) return INFINITY;
    const bt_cost_slot *slot = &c->table[slot_of(rows)];
    double weight = slot_weight(c, slot);
    double sigma = SIGMA * c->noise;
    if (weight <= 0.0) return line_error(c, rows, sigma);
    double pulled = c->line_weight / (weight + c->line_weight) * (line_at(c, rows) / (double)slot->mean_ns - 1.0);
    return sqrt(sigma * sigma / weight + pulled * pulled);
}

/* Everything learned is scaled and then soon forgotten: the model got faster or slower. */
static void change_regime(bt_cost *c, double ratio) {
    c->mean_ns *= ratio;
    c->cov_rows_ns *= ratio;
    c->row_ns *= ratio;
    c->base_ns *= ratio;
    c->mean_weight = lower(c->mean_weight, 4.0);
    for (int i = 0; i < BT_COST_SLOTS; i++) {
        c->table[i].mean_ns *= (float)ratio;
        c->table[i].weight = fminf(c->table[i].weight, 1.0f);
    }
    c->strays = 0;
}

/* Whether the strays tell more than all that was before them. */
static int is_young(const bt_cost *c) {
    int sizes = 0;
    for (int i = 1; i < BT_COST_STRAYS; i++) sizes |= c->stray[i].rows != c->stray[0].rows;
    return c->batches <= YOUNG && (sizes || !c->two_sizes);
}

/* What of `took_ns` counts. One batch a hundred times slower says nothing about the next. What the
 * line says is as good as what the table says: either may know better (a step; a stray that became
 * an entry). *of_size is what counts for this size alone. */
static double tame(bt_cost *c, const bt_cost_slot *slot, int64_t rows, double took_ns, double *of_size) {
    double line = line_at(c, rows), entry = slot->weight > 0.0f ? (double)slot->mean_ns : line;
    double edge = upper(STRAY_SHARE, STRAY_NOISE * c->noise);
    double slow = upper(line, entry), fast = lower(line, entry);
    *of_size = took_ns;
    int side = took_ns > slow * (1.0 + edge) ? 1 : took_ns < fast / (1.0 + edge) ? -1 : 0;
    if (side == 0) {
        c->strays = 0;
        return took_ns;
    }
    double tamed = side > 0 ? slow * (1.0 + edge) : fast / (1.0 + edge);
    /* Beyond all sizes that were run a line is a guess: that it is wrong there is no change of regime. */
    if (slot->weight <= 0.0f && (rows < c->least_rows || rows > c->most_rows)) {
        double most = upper(edge, NEW_SIZE_SHARE) + 1.0;
        *of_size = lower(upper(took_ns, line / most), line * most);
        return tamed;
    }
    double ratio = took_ns / bt_cost_mean(c, rows);
    if (c->strays * side <= 0) {
        c->strays = 0;
        c->stray_ratio = ratio;
    }
    c->stray[abs(c->strays)] = (bt_cost_sample){rows, took_ns};
    c->strays += side;
    /* The least of a row of slow strays: three times slower is news, one of them a hundred times is not. */
    c->stray_ratio = side > 0 ? lower(c->stray_ratio, ratio) : upper(c->stray_ratio, ratio);
    if (abs(c->strays) < BT_COST_STRAYS) {
        *of_size = tamed;
        return tamed;
    }
    if (!is_young(c)) change_regime(c, c->stray_ratio);
    return took_ns;
}

/* The line. The spread of the rows is forgotten only as new spread comes in, so that a stretch of
 * equal batches moves the height of the line and leaves its slope alone. */
static void learn_line(bt_cost *c, double rows, double took_ns) {
    c->mean_weight = lower(c->mean_weight + 1.0, MEMORY);
    double share = 1.0 / c->mean_weight;
    double d_rows = rows - c->mean_rows;
    double d_ns = took_ns - c->mean_ns;
    c->mean_rows += share * d_rows;
    c->mean_ns += share * d_ns;
    if (c->two_sizes) {
        double spread = d_rows * d_rows * (1.0 - share);
        double news = spread / (spread + c->var_rows + 1e-9);
        double keep = 1.0 - lower(news, 1.0) * share;
        c->var_rows = keep * c->var_rows + share * spread;
        c->cov_rows_ns = keep * c->cov_rows_ns + share * d_rows * d_ns * (1.0 - share);
        c->row_ns = c->var_rows > 0.0 ? c->cov_rows_ns / c->var_rows : 0.0;
    }
    /* Neither a row nor a batch has a negative cost. */
    if (c->row_ns < 0.0) c->row_ns = 0.0;
    /* One size says nothing of the slope. Until there is a second: half of it is the batch's own. */
    if (!c->two_sizes) c->row_ns = 0.5 * c->mean_ns / upper(c->mean_rows, 1.0);
    c->base_ns = c->mean_ns - c->row_ns * c->mean_rows;
    if (c->base_ns < 0.0) {
        c->base_ns = 0.0;
        c->row_ns = c->mean_ns / upper(c->mean_rows, 1.0);
    }
}

/* What the line counts for against batches of one size. By how much sizes are off the line is what its
 * misfit has beyond their noise: where that is next to nothing, a few lucky batches of one size say
 * little; where it is not (steps), one batch says more than the line (shrinkage as by James and Stein). */
static void weigh_line(bt_cost *c) {
    double noise = upper(c->noise, LEAST_NOISE), square = noise * noise;
    c->line_weight = square / upper(c->misfit * c->misfit - square, square / LINE_WEIGHT);
}

/* The noise is that of one size: the mean of w batches before it has a share 1/w of it as well. */
static void learn_noise(bt_cost *c, const bt_cost_slot *slot, double took_ns, double share) {
    double weight = slot_weight(c, slot);
    if (weight <= 0.0) return;
    double off = fabs(took_ns / (double)slot->mean_ns - 1.0) / sqrt(1.0 + 1.0 / weight);
    c->noise += (off - c->noise) * share;
}

/* The first batch of a second size. Of one size the line knows a height and nothing else, so that is no measure:
 * more rows take no less than fewer, and a row no more than it did. */
static double second_size(const bt_cost *c, int64_t rows, double took_ns) {
    double linear_ns = c->mean_ns * (double)rows / (double)c->first_rows;
    double least_ns = lower(c->mean_ns, linear_ns), most_ns = upper(c->mean_ns, linear_ns);
    return lower(upper(took_ns, least_ns / APART), most_ns * APART);
}

/* A batch that counts. */
static void learn(bt_cost *c, int64_t rows, double took_ns) {
    if (c->batches == 0) c->first_rows = c->least_rows = c->most_rows = rows;
    int second = !c->two_sizes && rows != c->first_rows;
    if (second) c->two_sizes = 1;
    if (second) took_ns = second_size(c, rows, took_ns);
    bt_cost_slot *slot = &c->table[slot_of(rows)];
    double of_size_ns = took_ns;
    int known = c->batches > 1 && !second && (c->two_sizes ? slot->weight > 0.0f || c->batches > 8 : 1);
    if (known) {
        double predicted = bt_cost_mean(c, rows);
        double ratio = took_ns / predicted;
        took_ns = tame(c, slot, rows, took_ns, &of_size_ns);
        double share = 1.0 / lower(MEMORY, c->mean_weight + PRIOR);
        learn_noise(c, slot, took_ns, share);
        c->misfit += (fabs(took_ns / line_at(c, rows) - 1.0) - c->misfit) * share;
        weigh_line(c);
        double step = HIGH_STEP * upper(c->noise, 0.01) * 5.0;
        c->high += ratio > c->high ? step * HIGH_QUANTILE : -step * (1.0 - HIGH_QUANTILE);
        c->high = lower(upper(c->high, 1.0), 4.0);
    }
    c->batches++;
    if (rows < c->least_rows) c->least_rows = rows;
    if (rows > c->most_rows) c->most_rows = rows;
    learn_line(c, (double)rows, took_ns);
    /* The first batch of a size may have been slow because it was the first of that size. */
    if (slot->weight <= 1.0f && of_size_ns * (1.0 + STRAY_SHARE) < (double)slot->mean_ns) slot->weight = 0.0f;
    double weight = lower(slot_weight(c, slot) + 1.0, MEMORY / 2.0);
    if (weight <= 1.0) slot->mean_ns = (float)of_size_ns;
    slot->mean_ns += (float)((of_size_ns - (double)slot->mean_ns) / weight);
    slot->weight = (float)weight;
    slot->seen_at = c->batches;
}

/* ---- the first batches ------------------------------------------------------------- */

/* Could both come from one model? */
static int go_together(const bt_cost_sample *a, const bt_cost_sample *b) {
    if (a->rows > b->rows) return go_together(b, a);
    double ratio = b->took_ns / a->took_ns;
    return ratio * APART > 1.0 && ratio < APART * (double)b->rows / (double)a->rows;
}

/* Whether a later batch of the same size was much faster: this one was slow because it was the first
 * of its size (something was compiled, or read), or because of something else that has passed. */
static int is_past(const bt_cost *c, int which) {
    const bt_cost_sample *it = &c->first[which];
    for (int i = which + 1; i < c->first_count; i++)
        if (c->first[i].rows == it->rows && !go_together(&c->first[i], it) && c->first[i].took_ns < it->took_ns) return 1;
    return 0;
}

/* Whether a batch goes together with the fewest of the others: the first one of all may well be the
 * slowest by far, and nothing was known yet to tell it by. If none go together the fastest one counts. */
static int is_odd(const bt_cost *c, int which) {
    int votes[BT_COST_FIRST] = {0}, most = 0, fastest = 0;
    for (int i = 0; i < c->first_count; i++) {
        if (is_past(c, i)) continue;
        for (int k = 0; k < c->first_count; k++)
            votes[i] += k != i && !is_past(c, k) && go_together(&c->first[i], &c->first[k]);
        if (votes[i] > most) most = votes[i];
        if (c->first[i].took_ns < c->first[fastest].took_ns) fastest = i;
    }
    if (is_past(c, which)) return 1;
    return most == 0 ? which != fastest : 2 * votes[which] < most;
}

/* All over again: what looked right by itself may be odd by now, and the other way round. */
static void learn_first(bt_cost *c, const bt_cost_sample *first, int count) {
    bt_cost_sample kept[BT_COST_FIRST];
    memcpy(kept, first, (size_t)count * sizeof *first);
    bt_cost_init(c);
    memcpy(c->first, kept, (size_t)count * sizeof *kept);
    c->first_count = count;
    for (int i = 0; i < count; i++)
        if (!is_odd(c, i)) learn(c, kept[i].rows, kept[i].took_ns);
}

void bt_cost_learn(bt_cost *c, int64_t rows, double took_ns) {
    if (rows < 1) rows = 1;
    if (took_ns < 1.0) took_ns = 1.0;
    if (c->first_count < BT_COST_FIRST) {
        c->first[c->first_count] = (bt_cost_sample){rows, took_ns};
        learn_first(c, c->first, c->first_count + 1);
    } else {
        learn(c, rows, took_ns);
    }
    if (abs(c->strays) == BT_COST_STRAYS) learn_first(c, c->stray, BT_COST_STRAYS);
}

const char *bt_cost_check(const bt_cost *c) {
    if (!(c->row_ns >= 0.0) || !(c->base_ns >= 0.0)) return "a cost is never negative";
    if (!(c->noise >= 0.0) || !(c->misfit >= 0.0)) return "a deviation is never negative";
    if (!(c->high >= 1.0)) return "the upper quantile is not below the mean";
    if (c->batches > 0 && !(c->mean_ns > 0.0)) return "a batch takes some time";
    return NULL;
}
