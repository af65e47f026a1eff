/* Who is about to call: two models of the arrivals, and how far each is to be
 * believed against the other.
 *
 *   returns  Callers come back. Of a group's callers so many are out (the most
 *            that were inside at once, less those inside now), and each comes
 *            back with a learned hazard of the time since the last completion.
 *   gaps     Calls come in runs. The next call comes with a learned hazard of
 *            the time since the last one; a Poisson stream is a flat hazard.
 *
 * Both learn from every arrival, also while all workers are busy, and forget on
 * a scale of hundreds of events. Owned by the policy: no clock, no allocation.
 */
#ifndef BT_ARRIVALS_H
#define BT_ARRIVALS_H

#include <stdint.h>

#define BT_BINS 112  /* of time: bin 0 is below 1.024 us, then 4 an octave */
#define BT_CROWDS 256 /* groups that are followed at once; others are served without waiting */
#define BT_CROWD_HEADS 512

/* Calls that come so much faster than on average are a run: a Poisson stream has none. */
#define BT_BURST 3.0
/* A population that is exceeded in fewer of the rounds is known. */
#define BT_RARELY 0.1

/* Of those at risk when a bin of time began, how many came within it. */
typedef struct {
    float came[BT_BINS];
    float at_risk[BT_BINS];
    int last;   /* no arrival to speak of came in a later bin */
    float unit; /* the weight of an event now: it grows, so that old events fade */
} bt_hazard;

/* The callers of one group. */
typedef struct {
    uint64_t group;
    uint16_t next;          /* of the same hash: its place and 1; 0: none */
    int64_t inside;         /* calls queued or running */
    int64_t peak;           /* most inside since the last completion */
    double population;      /* most inside at once, fading */
    int64_t batches;        /* in flight */
    int64_t completed_ns;   /* the last completion */
    int64_t arrived_ns;     /* the last arrival */
    int64_t completions;    /* 0: completed_ns says nothing */
    int64_t arrivals;
    int return_bin;         /* bins that have been counted since each */
    int gap_bin;
    float returns_survival; /* log of: no arrival since the last one, by each model */
    float gaps_survival;
    double surprise;        /* share of the rounds in which more came than the population, fading */
    int64_t slots;          /* that it has the use of, as of the last decision */
    int worth_waiting;      /* in the long run, by bt_wait_plan */
    int64_t held_since_ns;  /* 0: no batch is held open */
    int64_t review_ns;      /* the hold is not judged anew before, */
    int64_t review_calls;   /* nor before so many calls wait */
} bt_crowd;

typedef struct {
    bt_hazard returns;
    bt_hazard gaps;
    double run_share;  /* of the gaps after a call: within a run */
    double run_gap_ns; /* from one call of a run to the next, or until the run is over */
    double evidence; /* log likelihood of returns less that of gaps, fading */
    bt_crowd *last;  /* the crowd looked up last */
    uint16_t heads[BT_CROWD_HEADS]; /* by hash of the group: a place and 1; 0: none */
    int crowd_count;
    int hand;        /* where the next place to give away is looked for */
    bt_crowd crowds[BT_CROWDS];
} bt_arrivals;

void bt_arrivals_init(bt_arrivals *a);
/* The crowd of a group; NULL when it is not followed. */
bt_crowd *bt_arrivals_find(bt_arrivals *a, uint64_t group);
/* The same, but a group that is new takes a free place, or that of a group that has been idle for long. */
bt_crowd *bt_arrivals_follow(bt_arrivals *a, uint64_t group);

void bt_arrivals_arrived(bt_arrivals *a, bt_crowd *c, int64_t now_ns);
void bt_arrivals_left(bt_crowd *c);
/* So many are inside, whatever was counted. */
void bt_arrivals_correct(bt_crowd *c, int64_t inside);
void bt_arrivals_completed(bt_arrivals *a, bt_crowd *c, int64_t now_ns, int64_t answered);
/* Counts the time up to now, in which nobody came. */
void bt_arrivals_advance(bt_arrivals *a, bt_crowd *c, int64_t now_ns);

/* Finds how runs go on. Under a microsecond: for now and then. */
void bt_arrivals_learn_runs(bt_arrivals *a);

/* Callers that are out and may come back. */
double bt_arrivals_missing(const bt_crowd *c);
/* Nobody is missing, and it is rare that more come than are known. */
int bt_arrivals_everyone_here(const bt_crowd *c);
/* How far `returns` is to be believed against `gaps`: 0 to 1. */
double bt_arrivals_belief(const bt_arrivals *a);

/* ---- small things, inline because a decision walks through many bins ---------- */

/* The callers are a fixed number of such as come back, beyond doubt. */
int bt_arrivals_closed(const bt_arrivals *a);
/* Share of those at risk that come within a bin, 0 to below 1. One who did not come is presumed in
 * every bin, so that little evidence is no evidence. */
static inline double bt_hazard_share(const bt_hazard *h, int bin) {
    return (double)(h->came[bin] / (h->at_risk[bin] + h->unit));
}

static inline int64_t bt_bin_start_ns(int bin) {
    if (bin <= 0) return 0;
    unsigned quarter = (unsigned)bin - 1;
    return (int64_t)(4 + quarter % 4) << (quarter / 4 + 8);
}

static inline int bt_bin_of(int64_t time_ns) {
    if (time_ns < 1024) return 0;
    uint64_t quarters = (uint64_t)time_ns >> 8;
    int octave = 63 - __builtin_clzll(quarters); /* >= 2 */
    int bin = (octave - 2) * 4 + (int)((quarters >> (octave - 2)) & 3) + 1;
    return bin < BT_BINS ? bin : BT_BINS - 1;
}

/* NULL if every invariant holds, else the sentence that does not. */
const char *bt_arrivals_check(const bt_arrivals *a);

#endif
