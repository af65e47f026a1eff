#include "sizing.h"

#include <math.h>

/* A smaller batch must be better by so much: a prediction is no more precise than that. */
#define CLEARLY 0.95
#define SPLIT_CLEARLY 0.9
/* Rows that make a batch no more expensive than this may as well be in it. */
#define FREE 1.01
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
    while (mine < rows && cost(costs, mine + 1.0) <= limit) mine++;
    if (mine >= rows || cost(costs, mine) > SPLIT_CLEARLY * cost(costs, rows)) return load->rows;
    return (int64_t)mine;
}

/* ---- one slot --------------------------------------------------------------------------- */

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
    int64_t below = INT64_C(1) << (63 - __builtin_clzll((unsigned long long)(load->rows - 1)));
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

int64_t bt_size_decide(const bt_costs *costs, const bt_load *load, const bt_flight *flights, int flight_count,
                       int64_t now_ns) {
    bt_load mine = *load;
    if (load->total_slots > 1) mine.rows = share(costs, load, flights, flight_count, now_ns);
    return cut(costs, &mine);
}
