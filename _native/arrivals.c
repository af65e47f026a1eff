#include "arrivals.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

/* Forgetting. A completion is worth as many returns as its batch had callers. */
#define RETURNS_FADE (1.0f + 1.0f / 128.0f)
#define GAPS_FADE (1.0f + 1.0f / 256.0f)
#define UNIT_LIMIT 1e12f
/* What the population loses of its excess over the last peak with each completion. */
#define POPULATION_FADE 0.25
#define SURPRISE_SHARE (1.0 / 16.0)
/* Groups that are looked at for a place to give to a new one. */
#define CANDIDATES 8
/* The evidence forgets within so many arrivals. One arrival says so much at most, and the
 * returns model, which needs a few batches to learn what the gaps model learns within one, is
 * never ruled out further than so. */
#define EVIDENCE_KEEP (1.0 - 1.0 / 128.0)
#define NEWS_LIMIT 3.0
#define EVIDENCE_FLOOR (-4.0)
/* Belief beyond which there is no doubt. */
#define CLOSED 0.9
/* Under either model a call may come out of the blue: once in ten seconds. */
#define BLUE_HZ_NS 1e-10

/* ---- time in bins ------------------------------------------------------ */

static double bin_width_ns(int bin) {
    return (double)(bt_bin_start_ns(bin + 1) - bt_bin_start_ns(bin));
}

/* ---- hazards ------------------------------------------------------------- */

/* Someone was at risk in the bins after `from`, up to `to`; returns the sum of the shares of the bins
 * that he has outlived, which are those before `to`. Four sums at once: this is most of what an event
 * costs, and a division need not wait for the one before. */
static float outlive(bt_hazard *h, int from, int to, float risk) {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int i = from;
    for (int bin = from + 1; bin <= to; bin++) h->at_risk[bin] += risk;
    for (; i + 4 <= to; i += 4)
        for (int k = 0; k < 4; k++) sums[k] += h->came[i + k] / (h->at_risk[i + k] + h->unit);
    for (; i < to; i++) sums[0] += h->came[i] / (h->at_risk[i] + h->unit);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* Who came was at risk, whatever was known of him: one who was thought to be half a caller, or who left
 * and came back within the bin. */
static void count(bt_hazard *h, int bin) {
    h->came[bin] += h->unit;
    if (h->at_risk[bin] < h->came[bin]) h->at_risk[bin] = h->came[bin];
    if (bin > h->last) h->last = bin;
}

static void fade(bt_hazard *h, float factor) {
    h->unit *= factor;
    while (h->last > 0 && h->came[h->last] < 0.25f * h->unit) h->last--;
    if (h->unit < UNIT_LIMIT) return;
    for (int i = 0; i < BT_BINS; i++) {
        h->came[i] /= UNIT_LIMIT;
        h->at_risk[i] /= UNIT_LIMIT;
    }
    h->unit /= UNIT_LIMIT;
}

/* ---- runs ------------------------------------------------------------------ */

static float mean_gap_ns(const bt_hazard *h, int last) {
    float survival = 1.0f, mean_ns = 0.0f;
    for (int i = 0; i <= last; i++) {
        float share = (float)bt_hazard_share(h, i);
        mean_ns += (float)bin_width_ns(i) * survival * (1.0f - 0.5f * share);
        survival *= 1.0f - share;
    }
    return mean_ns;
}

/* A call belongs to the run of the one before if it comes before the last bin in which, and up to which,
 * calls come so much faster than on average. Calls of one instant were made together: they say nothing
 * about the next. */
void bt_arrivals_learn_runs(bt_arrivals *a) {
    int last = a->gaps.last < BT_BINS - 1 ? a->gaps.last : BT_BINS - 2;
    float per_ns = (float)BT_BURST / mean_gap_ns(&a->gaps, last);
    float survival = 1.0f, gap_ns = 0.0f, hazard = 0.0f, time_ns = 0.0f;
    a->run_share = a->run_gap_ns = 0.0;
    for (int i = 1; i <= last; i++) {
        float share = (float)bt_hazard_share(&a->gaps, i), width_ns = (float)bin_width_ns(i), news = -logf(1.0f - share);
        gap_ns += width_ns * survival * (1.0f - 0.5f * share);
        survival *= 1.0f - share;
        hazard += news;
        time_ns += width_ns;
        if (news < per_ns * width_ns || hazard < per_ns * time_ns) continue;
        a->run_share = 1.0 - (double)survival;
        a->run_gap_ns = (double)gap_ns;
    }
}

/* ---- crowds --------------------------------------------------------------- */

void bt_arrivals_init(bt_arrivals *a) {
    memset(a, 0, sizeof *a);
    a->returns.unit = 1.0f;
    a->gaps.unit = 1.0f;
    a->last = &a->crowds[0];
}

static uint16_t *head_of(bt_arrivals *a, uint64_t group) {
    return &a->heads[(group * UINT64_C(0x9E3779B97F4A7C15)) >> 55];
}

bt_crowd *bt_arrivals_find(bt_arrivals *a, uint64_t group) {
    if (a->last->group == group && a->last->arrivals > 0) return a->last;
    for (uint16_t at = *head_of(a, group); at; at = a->crowds[at - 1].next)
        if (a->crowds[at - 1].group == group) return a->last = &a->crowds[at - 1];
    return NULL;
}

/* The one that has been idle for longest of a few; NULL if nobody of them is idle. A few, because where
 * every call brings a new group this is done for every call. */
static bt_crowd *give_away(bt_arrivals *a) {
    bt_crowd *found = NULL;
    for (int i = 0; i < CANDIDATES; i++, a->hand = (a->hand + 1) % BT_CROWDS) {
        bt_crowd *c = &a->crowds[a->hand];
        if (c->inside > 0 || c->batches > 0) continue;
        if (!found || c->arrived_ns < found->arrived_ns) found = c;
    }
    if (!found) return NULL;
    uint16_t *link = head_of(a, found->group);
    while (&a->crowds[*link - 1] != found) link = &a->crowds[*link - 1].next;
    *link = found->next;
    return found;
}

bt_crowd *bt_arrivals_follow(bt_arrivals *a, uint64_t group) {
    bt_crowd *found = bt_arrivals_find(a, group);
    if (found) return found;
    found = a->crowd_count < BT_CROWDS ? &a->crowds[a->crowd_count++] : give_away(a);
    if (!found) return NULL;
    uint16_t *head = head_of(a, group);
    *found = (bt_crowd){.group = group, .next = *head};
    *head = (uint16_t)(found - a->crowds + 1);
    return a->last = found;
}

double bt_arrivals_missing(const bt_crowd *c) {
    double missing = c->population - (double)c->inside;
    return missing > 0.5 ? missing : 0.0;
}

int bt_arrivals_everyone_here(const bt_crowd *c) {
    return bt_arrivals_missing(c) <= 0.0 && c->surprise < BT_RARELY;
}

/* ---- events ------------------------------------------------------------------ */

void bt_arrivals_advance(bt_arrivals *a, bt_crowd *c, int64_t now_ns) {
    if (c->completions > 0) {
        int bin = bt_bin_of(now_ns - c->completed_ns);
        float missing = (float)bt_arrivals_missing(c);
        if (missing > 0.0f && bin > c->return_bin) {
            c->returns_survival -= missing * outlive(&a->returns, c->return_bin, bin, missing * a->returns.unit);
        }
        if (bin > c->return_bin) c->return_bin = bin;
    }
    if (c->arrivals > 0) {
        int bin = bt_bin_of(now_ns - c->arrived_ns);
        if (bin <= c->gap_bin) return;
        c->gaps_survival -= outlive(&a->gaps, c->gap_bin, bin, a->gaps.unit);
        c->gap_bin = bin;
    }
}

/* Which model had foreseen this arrival better: the likelihood is the hazard now times the
 * survival up to now. */
static void judge(bt_arrivals *a, const bt_crowd *c, double missing) {
    double by_return = missing * bt_hazard_share(&a->returns, c->return_bin) / bin_width_ns(c->return_bin);
    double by_gap = bt_hazard_share(&a->gaps, c->gap_bin) / bin_width_ns(c->gap_bin);
    double news = (double)logf((float)((by_return + BLUE_HZ_NS) / (by_gap + BLUE_HZ_NS)));
    news += (double)(c->returns_survival - c->gaps_survival);
    if (news > NEWS_LIMIT) news = NEWS_LIMIT;
    if (news < -NEWS_LIMIT) news = -NEWS_LIMIT;
    a->evidence = EVIDENCE_KEEP * a->evidence + news;
    if (a->evidence < EVIDENCE_FLOOR) a->evidence = EVIDENCE_FLOOR;
}

void bt_arrivals_arrived(bt_arrivals *a, bt_crowd *c, int64_t now_ns) {
    bt_arrivals_advance(a, c, now_ns);
    double missing = bt_arrivals_missing(c);
    /* Calls of one instant were made together: they say nothing about either model. */
    if (c->completions > 0 && now_ns > c->arrived_ns) judge(a, c, missing);
    if (c->arrivals > 0) count(&a->gaps, c->gap_bin);
    if (c->completions > 0) {
        if (missing > 0.0) count(&a->returns, c->return_bin);
        else c->surprise += SURPRISE_SHARE * (1.0 - c->surprise);
    }
    c->returns_survival = c->gaps_survival = 0.0f;
    fade(&a->gaps, GAPS_FADE);
    c->arrived_ns = now_ns;
    c->gap_bin = 0;
    a->gaps.at_risk[0] += a->gaps.unit;
    c->arrivals++;
    bt_arrivals_correct(c, c->inside + 1);
}

void bt_arrivals_correct(bt_crowd *c, int64_t inside) {
    c->inside = inside;
    if (inside > c->peak) c->peak = inside;
    if ((double)inside > c->population) c->population = (double)inside;
}

void bt_arrivals_left(bt_crowd *c) {
    if (c->inside > 0) c->inside--;
}

void bt_arrivals_completed(bt_arrivals *a, bt_crowd *c, int64_t now_ns, int64_t answered) {
    bt_arrivals_advance(a, c, now_ns);
    fade(&a->returns, RETURNS_FADE);
    c->population -= POPULATION_FADE * (c->population - (double)c->peak);
    c->surprise -= SURPRISE_SHARE * c->surprise;
    c->inside = c->inside > answered ? c->inside - answered : 0;
    c->peak = c->inside;
    c->completed_ns = now_ns;
    c->completions++;
    c->return_bin = 0;
    a->returns.at_risk[0] += (float)bt_arrivals_missing(c) * a->returns.unit;
}

double bt_arrivals_belief(const bt_arrivals *a) {
    return a->evidence > 20.0 ? 1.0 : 1.0 / (1.0 + exp(-a->evidence));
}

int bt_arrivals_closed(const bt_arrivals *a) {
    return bt_arrivals_belief(a) >= CLOSED;
}

const char *bt_arrivals_check(const bt_arrivals *a) {
    for (int i = 0; i < BT_BINS; i++) {
        if (!(a->returns.came[i] >= 0.0f) || !(a->gaps.came[i] >= 0.0f)) return "a count of arrivals is not negative";
        if (!(bt_hazard_share(&a->returns, i) <= 1.0) || !(bt_hazard_share(&a->gaps, i) <= 1.0)) return "nobody comes who was not at risk";
    }
    int linked = 0;
    for (int i = 0; i < BT_CROWD_HEADS; i++)
        for (uint16_t at = a->heads[i]; at; at = a->crowds[at - 1].next) linked++;
    if (linked != a->crowd_count) return "every group that is followed is found by its hash";
    for (int i = 0; i < a->crowd_count; i++) {
        const bt_crowd *c = &a->crowds[i];
        if (c->inside < 0 || c->batches < 0) return "nobody is inside less than not at all";
        if (c->population + 0.5 < (double)c->inside) return "the population holds everybody who is inside";
        if (c->return_bin < 0 || c->return_bin >= BT_BINS) return "a bin is one of the bins";
    }
    return NULL;
}
