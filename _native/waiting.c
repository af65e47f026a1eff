/* The wait rule, in words.
 *
 * A batch of n rows takes a*n + b. What waiting can save is b, once for every
 * caller who joins instead of having a batch of his own later; what it costs is
 * the time of everybody who waits.
 *
 * 1. Callers that come back. In a closed loop of K callers the mean latency is
 *    K/X less the think time (the interactive response time law), so the best
 *    rule is the one of the highest throughput X. Let the slot wait w after a
 *    completion, and let Q(w) be the share of a batch's callers that is not back
 *    by then: batches have n = K/(1 + Q(w)) callers, and the time a slot spends
 *    for reasons other than rows, per caller, is (w + b)(1 + Q(w))/K. Waiting on
 *    for d, in which m of the callers that are out come back, lowers that if
 *
 *        m * (w + b)  >  d * (n + missing - m)
 *
 *    with d cut short when everyone is back. This is the marginal value theorem
 *    (Charnov 1976) with one correction: who is missed is not lost, he is in the
 *    next batch, so the cost counts the missing as well as those who wait. Here w
 *    is taken for nothing: it is the wait of a whole round, chosen before, and to
 *    count what this batch happens to have waited makes long holds longer still.
 *    With callers that think for much longer than a batch takes it never waits,
 *    and agrees with the semi-Markov optimum for Poisson arrivals.
 * 2. Runs. Otherwise the next call is foreseen from the time since the last one.
 *    Wait while p * v > d * n, p being the chance that it comes within d, and v
 *    what its joining saves: b/2 on a busy slot, which is the control limit
 *    Q* = lambda * b / 2 of Deb & Serfozo (1973); on an idle one, where nothing
 *    comes after the run, b less what the caller's rows cost those who wait. The
 *    calls of a run that come after the next one are worth as much each, less the
 *    wait for them.
 * 3. Evidence. Both are weighed by how well each model has foreseen the arrivals
 *    so far, and a hope that rests on k arrivals counts 1 - 1/sqrt(k).
 * 4. The tail. The last straggler costs everybody a little and saves himself a
 *    whole batch: a share PATIENCE of the batch's cost is spent, counted from the
 *    last arrival, on callers that are known to be missing.
 * 5. The long run. Waiting for some of the callers can lock the engine into
 *    rounds that leave a straggler behind each time, where never waiting would
 *    be as good on average and better for him. So waiting (1) is tried only
 *    where, over whole rounds, it is better than not waiting by ENTER; by
 *    STRAGGLERS more if it leaves stragglers behind.
 * 6. Several slots. A slot waits for its fair share of the callers only, and only
 *    if it is beyond doubt that they come back; for a run only if calls come
 *    clearly faster than on average. A call that would find another slot idle
 *    saves nothing by joining. In all other traffic spacing.c decides.
 */
#include "waiting.h"

#include <math.h>

#define PATIENCE 0.125
#define ENTER 0.95
#define STAY 0.96
#define STRAGGLERS 0.1
/* Mean size of the batches that never waiting makes: below it there is mostly nobody to join. */
#define ONE_BY_ONE 0.9
/* No run is taken to go on for longer than for so many calls. */
#define MOST_OF_A_RUN 20.0
/* Of the callers: if more than so many are not back when another slot starts, slots share them as they come. */
#define STILL_OUT 0.05
/* Of the callers: so few are no stragglers (the rule is judged by its 99th percentile). */
#define FEW 0.01

/* ---- waiting through the bins of a hazard ------------------------------------------- */

/* Walks from now on, bin by bin, through the time since an event. */
typedef struct {
    const bt_hazard *hazard;
    int bin, last;
    double a_unit;      /* of the hazard: its weight, as a factor */
    int64_t since_ns;   /* time since the event, at the decision */
    int64_t reached_ns; /* time since the event, at the end of the walk so far */
    double step_ns;     /* length of the last step */
    double survival;    /* of one at risk now: not come until the end of the walk */
    double seen;        /* arrivals behind that number */
} bt_walk;

static bt_walk walk_from(const bt_hazard *hazard, int64_t since_ns) {
    int last = hazard->last < BT_BINS - 1 ? hazard->last : BT_BINS - 2;
    return (bt_walk){.hazard = hazard, .bin = bt_bin_of(since_ns), .last = last, .a_unit = 1.0 / (double)hazard->unit,
                     .since_ns = since_ns, .reached_ns = since_ns, .survival = 1.0};
}

/* Into the bin in which the decision is made: only a part of it is left. */
static double part_of(const bt_walk *w, int64_t end_ns, double *stays) {
    double part = w->step_ns / (double)(end_ns - bt_bin_start_ns(w->bin));
    if (part < 1.0) *stays = (double)powf((float)*stays, (float)part);
    return part;
}

/* One bin further; 0 where nobody ever came later. */
static inline int step(bt_walk *w) {
    if (w->bin > w->last) return 0;
    int64_t end_ns = bt_bin_start_ns(w->bin + 1);
    double stays = 1.0 - bt_hazard_share(w->hazard, w->bin);
    w->step_ns = (double)(end_ns - w->reached_ns);
    double part = w->reached_ns == w->since_ns ? part_of(w, end_ns, &stays) : 1.0;
    w->survival *= stays;
    w->seen += part * (double)w->hazard->came[w->bin] * w->a_unit;
    w->reached_ns = end_ns;
    w->bin++;
    return 1;
}

static double trust(double seen) {
    return seen > 1.0 ? 1.0 - 1.0 / sqrt(seen) : 0.0;
}

/* ---- 1: callers that come back -------------------------------------------------------- */

/* What is saved when `more` rows join the batch, rather than run in one like it later. On a
 * line that is b for each; the table knows steps. */
static double saved_by(const bt_costs *costs, const bt_moment *m, double alone_ns, double whole) {
    return m->calls * ((1.0 + whole / m->rows) * alone_ns - costs->of(costs->policy, m->rows + whole));
}

static double gain_by_returns(const bt_arrivals *a, const bt_crowd *c, const bt_costs *costs, const bt_moment *m,
                              double missing, double belief, int64_t *until_ns) {
    double out = missing;
    if (m->total_slots > 1) {
        missing = fmin(missing, ceil(c->population / (double)m->total_slots) - m->calls);
        if (missing <= 0.0) return 0.0;
    }
    double alone_ns = costs->of(costs->policy, m->rows);
    double patience_ns = fmax(0.0, PATIENCE * alone_ns - (double)(m->now_ns - m->newest_ns));
    double rows_per_call = m->rows / m->calls;
    double best = 0.0, spent_ns = 0.0, all_before = 0.0, whole = 0.0, saved = 0.0;
    double most = fmin(missing * rows_per_call, m->room_rows);
    bt_walk walk = walk_from(&a->returns, m->now_ns - c->completed_ns);
    while (step(&walk)) {
        double back = fmin(1.0, (1.0 - walk.survival) * out / missing);
        double away = missing * (1.0 - back);
        double all = away < 5.0 ? exp(-away) : 0.0; /* the wait ends when all are back */
        spent_ns += walk.step_ns * (1.0 - 0.5 * (all + all_before));
        all_before = all;
        double come = missing * back;
        double more = fmin(come * rows_per_call, m->room_rows);
        double rows = fmax(1.0, ceil(more));
        if (rows != whole) saved = saved_by(costs, m, alone_ns, whole = rows);
        double worth = saved * more / whole + m->calls * back * patience_ns;
        double lost = spent_ns * (m->calls + missing - come + m->others);
        double gain = belief * worth - lost > best ? trust(walk.seen) * belief * worth - lost : 0.0;
        if (gain > best) {
            best = gain;
            *until_ns = m->now_ns + (walk.reached_ns - walk.since_ns);
        }
        if (spent_ns * m->calls > 2.0 * missing * alone_ns) break;
        if (most > whole) continue;
        /* The last row has begun to come: no later bin is worth more than everyone's coming. */
        double end = saved * most / whole + m->calls * patience_ns;
        if (belief * end - spent_ns * (m->calls + m->others) <= best) break;
    }
    return best;
}

/* ---- 2: runs ------------------------------------------------------------------------------ */

/* What the calls after the next one of a run are worth, if each of them saves as much as the next. */
static double rest_of_run(const bt_arrivals *a, const bt_moment *m, double saved) {
    double value = a->run_share * saved - (m->calls + 1.0 + m->others) * a->run_gap_ns;
    return fmax(0.0, value) * fmin(1.0 / (1.0 - a->run_share), MOST_OF_A_RUN);
}

static double gain_by_run(const bt_arrivals *a, const bt_crowd *c, const bt_costs *costs, const bt_moment *m,
                          double belief, int64_t *until_ns) {
    double rows_per_call = m->rows / m->calls;
    double alone_ns = costs->of(costs->policy, m->rows);
    double saved = (m->calls + 1.0) * alone_ns - m->calls * costs->of(costs->policy, m->rows + rows_per_call);
    if (m->total_slots == 1) {
        double isolated = fmax(0.0, saved - m->calls * costs->model->row_ns * rows_per_call);
        saved = m->busy_share * 0.5 * saved + (1.0 - m->busy_share) * isolated;
        saved += rest_of_run(a, m, saved);
    }
    saved /= (double)m->idle_slots;
    double best = 0.0, spent_ns = 0.0, before = 0.0;
    bt_walk walk = walk_from(&a->gaps, m->now_ns - c->arrived_ns);
    while (step(&walk)) {
        double come = 1.0 - walk.survival;
        spent_ns += walk.step_ns * (1.0 - 0.5 * (come + before)); /* the wait is judged anew when it comes */
        before = come;
        double lost = spent_ns * (m->calls + m->others);
        if ((1.0 - belief) * saved - lost <= best) break; /* nor is any later bin better */
        double gain = (1.0 - belief) * come * saved;
        if (gain - lost <= best) continue;
        gain = trust(walk.seen) * gain - lost;
        if (gain <= best) continue;
        best = gain;
        *until_ns = m->now_ns + (walk.reached_ns - walk.since_ns);
    }
    return best;
}

/* Calls come faster now than they do on average. */
static int in_burst(const bt_arrivals *a, const bt_crowd *c, const bt_moment *m) {
    int bin = bt_bin_of(m->now_ns - c->arrived_ns);
    if (bin >= BT_BINS - 1) return 0;
    double width_ns = (double)(bt_bin_start_ns(bin + 1) - bt_bin_start_ns(bin));
    double calls_per_ns = m->rows_per_ns * m->calls / m->rows;
    return -log(1.0 - bt_hazard_share(&a->gaps, bin)) > BT_BURST * calls_per_ns * width_ns;
}

int64_t bt_wait_decide(const bt_arrivals *a, const bt_crowd *c, const bt_costs *costs, const bt_moment *m) {
    int64_t until_ns = m->now_ns;
    double missing = bt_arrivals_missing(c);
    double belief = bt_arrivals_belief(a);
    double best = 0.0;
    if (bt_arrivals_everyone_here(c)) return m->now_ns;
    int certain = m->total_slots == 1 || bt_arrivals_closed(a);
    if (missing > 0.0 && certain && c->worth_waiting && c->completions > 0) {
        best = gain_by_returns(a, c, costs, m, missing, belief, &until_ns);
    }
    if (belief < 0.99 && c->population > 1.5 && (m->total_slots == 1 || in_burst(a, c, m))) {
        int64_t run_ns = m->now_ns;
        if (gain_by_run(a, c, costs, m, belief, &run_ns) > best) until_ns = run_ns;
    }
    return until_ns;
}

/* ---- 5: the long run -------------------------------------------------------------------------- */

/* Survival at the start of each bin; returns the last bin in which anybody came. */
static int survival_of(const bt_hazard *h, float *survival) {
    int last = h->last;
    survival[0] = 1.0f;
    for (int i = 0; i < BT_BINS; i++)
        survival[i + 1] = i <= last ? survival[i] * (1.0f - (float)bt_hazard_share(h, i)) : 0.0f;
    return last;
}

/* A round of K callers on one slot that waits until the start of `bin` after a completion. Of a
 * batch's callers a share q is not back by then, and a share `later` not even one round after:
 * K = n (1 + q + q * later + ...). Returns K/X, the time from one call of a caller to his next. */
static double round_trip(const bt_costs *costs, const float *survival, double held_ns, double q, double callers,
                         double *size, int rounds) {
    double trip = 0.0;
    for (int i = 0; i < rounds; i++) {
        double cycle_ns = held_ns + costs->of(costs->policy, fmax(1.0, *size));
        double later = (double)survival[bt_bin_of((int64_t)cycle_ns)];
        double away = q / fmax(1.0 - later, 1e-3);
        *size = callers / (1.0 + away);
        trip = cycle_ns * (1.0 + away);
    }
    return trip;
}

/* Where several slots start evenly, the time from one start to the next. */
static int64_t next_start_ns(const bt_costs *costs, double callers, int64_t slots) {
    return (int64_t)(costs->of(costs->policy, callers) / (double)slots);
}

void bt_wait_plan(const bt_arrivals *a, bt_crowd *c, const bt_costs *costs, int64_t total_slots) {
    double callers = c->population / (double)total_slots;
    if (callers < 1.2 || costs->model->batches == 0) {
        c->worth_waiting = callers > 1.0;
        return;
    }
    float survival[BT_BINS + 1];
    int last = survival_of(&a->returns, survival);
    if (total_slots > 1 && (double)survival[bt_bin_of(next_start_ns(costs, callers, total_slots))] > STILL_OUT) {
        c->worth_waiting = 0;
        return;
    }
    double think_ns = 0.0, held_ns = 0.0, size = callers / 2.0;
    for (int i = 0; i <= last && i < BT_BINS - 1; i++)
        think_ns += (double)(bt_bin_start_ns(i + 1) - bt_bin_start_ns(i)) * 0.5 * (double)(survival[i] + survival[i + 1]);
    double never = round_trip(costs, survival, 0.0, 1.0, callers, &size, 3) - think_ns;
    /* Callers that think for so long that they come one by one are not worth waiting for. */
    if (size < ONE_BY_ONE) {
        c->worth_waiting = 0;
        return;
    }
    double best = never, before = 0.0;
    for (int i = 1; i <= last + 1 && i < BT_BINS - 1 && held_ns < never + think_ns; i++) {
        double q = (double)survival[i];
        double all = exp(-size * q);
        held_ns += (double)(bt_bin_start_ns(i) - bt_bin_start_ns(i - 1)) * (1.0 - 0.5 * (all + before));
        before = all;
        double latency = round_trip(costs, survival, held_ns, q, callers, &size, 1) - think_ns;
        if (size * q > FEW * callers) latency *= 1.0 + STRAGGLERS;
        best = fmin(best, latency);
    }
    c->worth_waiting = best < (c->worth_waiting ? STAY : ENTER) * never;
}

double bt_wait_returns(const bt_arrivals *a, int64_t *median_ns) {
    float survival[BT_BINS + 1];
    int last = survival_of(&a->returns, survival);
    double fraction = 1.0 - (double)survival[last + 1];
    *median_ns = 0;
    for (int i = 0; i <= last; i++) {
        if ((double)survival[i + 1] > 1.0 - 0.5 * fraction) continue;
        *median_ns = bt_bin_start_ns(i + 1);
        break;
    }
    return fraction;
}
