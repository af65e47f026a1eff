#include "sizing.h"

#include <math.h>

/* A smaller batch must be better by so much: a prediction is no more precise than that. */
#define CLEARLY 0.95
#define SPLIT_CLEARLY 0.9
/* Rows that make a batch no more expensive than this may as well be in it. */
#define FREE 1.01
/* What is decided by the index must be better by so much of the batch's time, beyond all doubt. */
#define SLIGHTLY 0.02
/* No load is taken for higher than this: full batches are what is worth most then anyway. */
#define MOST_LOAD 0.98
/* Standard errors that an unknown size is hoped to be cheaper by, at most. */
#define HOPE 2.0
/* Accelerators work in tiles of so many rows. */
#define TILE 32
/* A size can carry the load if at this rate it would keep the slots busy for so long at most. */
#define CARRIES 0.9

static double cost(const bt_costs *costs, double rows) {
    return costs->of(costs->policy, rows);
}

/* ---- several slots ------------------------------------------------------------------- */

/* The times from now until each slot is free, ascending. */
static int free_times(const bt_load *load, const bt_flight *flights, int flight_count, int64_t now_ns, double *times) {
    int count = 0;
    while (count < load->idle_slots && count < BT_FLIGHTS) times[count++] = 0.0;
    for (int i = 0; i < flight_count && count < 2 * BT_FLIGHTS; i++) {
        double left = fmax(0.0, (double)(flights[i].end_ns - now_ns));
        int at = count++;
        for (; at > 0 && times[at - 1] > left; at--) times[at] = times[at - 1];
        times[at] = left;
    }
    return count;
}

/* Large sizes are told apart by a sixteenth, as the cost table has them. */
static double step_at(double rows) {
    return rows < BT_COST_EXACT ? 1.0 : floor(rows / 16.0);
}

/* Sharing n rows over slots that are free at t1 <= t2 <= ... so that the sum of the latencies is
 * least: slot i gets x_i rows with 2*a*x_i + t_i equal for all that get any. A slot that is busy
 * until t_i has rows of its own by then: those that come meanwhile, or, where callers come back,
 * those whose batch it runs now, so that none gets less than a fair share of all. Nothing is shared
 * unless the smaller batch is clearly faster: a burst is not torn into single rows over idle slots
 * when one batch is as fast. */
static int64_t share(const bt_costs *costs, const bt_load *load, const bt_flight *flights, int flight_count,
                     int64_t now_ns) {
    double rows = (double)load->rows, slope = 2.0 * costs->model->row_ns;
    double fair = load->closed ? ceil((double)load->rows_all / (double)load->total_slots) : 1.0;
    double rate = load->closed ? 0.0 : load->rows_per_ns;
    if (load->rows <= 1 || rows <= fair || slope <= 0.0 || !costs->model->two_sizes) return load->rows;
    double times[2 * BT_FLIGHTS];
    int count = free_times(load, flights, flight_count, now_ns, times);
    double sum = 0.0, level = 0.0;
    for (int used = 0; used < count && (used == 0 || times[used] < level); used++) {
        sum += times[used];
        level = (slope * (rows + rate * times[used]) + sum) / (used + 1);
    }
    double mine = ceil(fmax(level / slope, fair));
    double limit = FREE * cost(costs, mine);
    while (mine < rows && cost(costs, fmin(rows, mine + step_at(mine))) <= limit) mine += step_at(mine);
    if (mine >= rows || cost(costs, mine) > SPLIT_CLEARLY * cost(costs, rows)) return load->rows;
    return (int64_t)mine;
}

/* ---- callers that come back ---------------------------------------------------- */

/* Nanoseconds that running `size` of the rows now and the rest right after comes to, per row. On
 * an idle engine it is the mean latency that counts; on a busy one the time the slot spends. */
static double price(const bt_costs *costs, const bt_load *load, int64_t size) {
    double rows = (double)load->rows, part = (double)size;
    double first_ns = cost(costs, part);
    double latency_ns = first_ns + (1.0 - part / rows) * cost(costs, rows - part);
    double work_ns = first_ns * rows / part;
    double busy = load->idle_slots > 1 ? 0.5 + 0.5 * load->busy_share : load->busy_share;
    if (load->rows_per_ns * first_ns > CARRIES * part * (double)load->total_slots) return INFINITY;
    return (1.0 - busy) * latency_ns + busy * work_ns;
}

static int64_t power_of_two_up_to(int64_t rows) {
    return INT64_C(1) << (63 - __builtin_clzll((unsigned long long)rows));
}

static int64_t largest_allowed_below(const bt_load *load) {
    int64_t size = 0;
    for (int64_t i = 0; i < load->allowed_count && load->allowed[i] < load->rows; i++) size = load->allowed[i];
    return size;
}

/* The best of all rows, half of them, the powers of two below (models like those), and the allowed
 * size below, which is the choice between padding up and releasing less. */
static int64_t cut(const bt_costs *costs, const bt_load *load) {
    if (load->rows < 2 || !costs->model->two_sizes) return load->rows;
    /* Those refused are not seen here: under a budget a busy slot may have far more to do. */
    if (load->with_deadlines && load->busy_share > CARRIES) return load->rows;
    int64_t below = power_of_two_up_to(load->rows - 1);
    const int64_t sizes[] = {largest_allowed_below(load), below, below / 2, (load->rows + 1) / 2};
    double best = CLEARLY * cost(costs, (double)load->rows);
    int64_t size = load->rows;
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i] < 1 || sizes[i] >= load->rows) continue;
        if (load->rows == 2 && i > 0) continue;
        double ns = price(costs, load, sizes[i]);
        if (ns >= best) continue;
        best = ns;
        size = sizes[i];
    }
    return size;
}

/* ---- calls from outside ------------------------------------------------------------------ */

/* Calls that come at a rate of their own: one step of policy iteration on the semi-Markov decision
 * process. Let n rows wait and the slot be free. What the next batch decides is compared by
 *
 *     (rows inside, summed over its time)  -  g * time  +  v(rows left when the slot is free again)
 *
 * where g, the mean number of rows inside, is lambda*W by Little's law, and the relative value of a
 * queue is approximated by v(n) = W*n + n^2/(2*(mu - lambda)): every row costs the mean latency W, and a
 * backlog is worked off at what full batches do beyond what comes. On steps of 32, and to powers of two,
 * at loads from 0.3 to 0.9, this is within 0.6 % of the optimum; an error of a fourth in W or in lambda
 * costs 1 % more. Of several slots each is taken to have its share of the calls for itself. */
typedef struct {
    const bt_costs *costs;
    const bt_load *load;
    double drain_per_ns; /* mu - lambda */
    double row_ns;       /* n rows for the time of their batch: what differences are measured by */
} bt_outlook;

static bt_outlook look(const bt_costs *costs, const bt_load *load) {
    double most = (double)load->most_rows, most_per_ns = most / cost(costs, most);
    double drain_per_ns = fmax(most_per_ns - load->rows_per_ns, (1.0 - MOST_LOAD) * most_per_ns);
    double rows = (double)load->rows;
    return (bt_outlook){costs, load, drain_per_ns, rows * cost(costs, rows)};
}

/* Of n rows, `size` are run now, which takes `took_ns`. */
static double index_of(const bt_outlook *o, double rows, double size, double took_ns) {
    double come = o->load->rows_per_ns * took_ns, left = rows - size + come;
    double inside = rows * took_ns + 0.5 * come * took_ns - come * o->load->latency_ns;
    return inside + o->load->latency_ns * left + 0.5 * (left * left + come) / o->drain_per_ns;
}

/* What is to be doubted of a difference that rests on this size. */
static double doubt(const bt_outlook *o, int64_t size) {
    return bt_cost_samples(o->costs->model, size) > 0.0 ? bt_cost_error(o->costs->model, size) * o->row_ns : 0.0;
}

/* The cost of a size that was never run is hoped to be that of the next smaller one that was, as far as
 * the line may be wrong: else a step that lies below all queues would never be found. */
static double hoped_ns(const bt_costs *costs, int64_t size) {
    double ns = cost(costs, (double)size);
    if (bt_cost_samples(costs->model, size) > 0.0) return ns;
    double least_ns = ns * (1.0 - HOPE * bt_cost_error(costs->model, size));
    for (int64_t smaller = size - 1; smaller > size / 2; smaller = bt_cost_before(smaller)) {
        if (bt_cost_samples(costs->model, smaller) > 0.0) return fmin(ns, fmax(least_ns, cost(costs, (double)smaller)));
    }
    return ns;
}

static int64_t least_allowed_above(const bt_load *load) {
    for (int64_t i = 0; i < load->allowed_count; i++)
        if (load->allowed[i] > load->rows) return load->allowed[i];
    return 0;
}

/* Fewer rows than wait, if that is better than what `least` stands for. */
static double try_less(const bt_outlook *o, int64_t size, double least, bt_size *best) {
    if (size < 1 || size >= o->load->rows) return least;
    double took_ns = hoped_ns(o->costs, size);
    double index = index_of(o, (double)o->load->rows, (double)size, took_ns) + doubt(o, size);
    if (index >= least) return least;
    *best = (bt_size){size, 0};
    return index;
}

/* More rows than wait: until a size that was run before is full. */
static double try_more(const bt_outlook *o, int64_t size, double least, bt_size *best) {
    const bt_load *load = o->load;
    if (size < 1 || size > load->most_rows || bt_cost_samples(o->costs->model, size) <= 0.0) return least;
    double rows = (double)load->rows, full = (double)size, wait_ns = (full - rows) / load->rows_per_ns;
    double inside = (0.5 * (rows + full) - load->rows_per_ns * load->latency_ns) * wait_ns;
    double index = inside + index_of(o, full, full, cost(o->costs, full)) + doubt(o, size);
    if (index >= least) return least;
    *best = (bt_size){load->rows, 1};
    return index;
}

/* Sizes that models like: the allowed ones, powers of two, tiles; and half, since where the rest can run
 * right after, the first half is answered in half the time. */
static bt_size by_index(const bt_costs *costs, const bt_load *load) {
    bt_size best = {load->rows, 0};
    bt_outlook o = look(costs, load);
    double rows = (double)load->rows;
    double least = index_of(&o, rows, rows, cost(costs, rows)) - SLIGHTLY * o.row_ns - doubt(&o, load->rows);
    least = try_less(&o, (load->rows + 1) / 2, least, &best);
    if (bt_cost_is_line(costs->model) && load->allowed_count == 0) return best;
    int64_t power = power_of_two_up_to(load->rows);
    const int64_t less[] = {largest_allowed_below(load), power, power / 2, load->rows / TILE * TILE};
    const int64_t more[] = {least_allowed_above(load), 2 * power, (load->rows / TILE + 1) * TILE};
    for (unsigned i = 0; i < sizeof less / sizeof *less; i++) least = try_less(&o, less[i], least, &best);
    for (unsigned i = 0; i < sizeof more / sizeof *more; i++) least = try_more(&o, more[i], least, &best);
    return best;
}

/* ---- the answer ----------------------------------------------------------------------------- */

bt_size bt_size_decide(const bt_costs *costs, const bt_load *load, const bt_flight *flights, int flight_count,
                       int64_t now_ns) {
    bt_load mine = *load;
    if (load->total_slots > 1) mine.rows = share(costs, load, flights, flight_count, now_ns);
    int outside = !load->closed && load->latency_ns > 0.0 && load->rows_per_ns > 0.0;
    if (!outside || load->rows < 1 || !costs->model->two_sizes) return (bt_size){cut(costs, &mine), 0};
    mine.rows_per_ns /= (double)load->total_slots;
    return by_index(costs, &mine);
}
