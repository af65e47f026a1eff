/* The scheduler: which calls run together, when, and what becomes of each.
 *
 * A pure state machine. It reads no clock, takes no lock, allocates no Python
 * object and knows no payload: the time is an argument (integer nanoseconds of
 * any monotonic clock) and a call is a handful of numbers. The asyncio driver,
 * the thread driver, the ZeroMQ dispatcher and the simulator all drive this
 * one object, so that what is simulated is what runs.
 *
 * Guarantees
 *   1. Every admitted call gets exactly one final verdict: BT_ANSWERED,
 *      BT_FAILED, BT_LOST, BT_BROKEN, BT_EXPIRED, or the caller's own cancel.
 *   2. No batch holds more than max_batch_rows rows, and none mixes groups.
 *   3. Within one client and group calls start in the order of admission; a
 *      call that fits max_batch_rows is never split. (Re-runs excepted.)
 *   4. Late binding: a batch is formed inside bt_decide, for a slot that is
 *      free at that moment, never before.
 *   5. With an idle slot and a call in the queue bt_decide answers BT_RUN, or
 *      BT_WAIT with a time in the future: never BT_IDLE.
 * Not promised: order between groups or clients, and thread safety (whoever
 * owns a scheduler brings the lock).
 *
 * A driver must
 *   1. pass times that never go back;
 *   2. call bt_decide until it stops answering BT_RUN, after every admit,
 *      cancel and finish, and at the time a BT_WAIT names;
 *   3. drain bt_expired after every bt_decide;
 *   4. call bt_finished exactly once for every batch it was given.
 */
#ifndef BT_SCHEDULER_H
#define BT_SCHEDULER_H

#include <stddef.h>
#include <stdint.h>

#include "policy.h"

typedef struct bt_scheduler bt_scheduler;

/* A call's handle: slab index and generation, so that a stale id is refused
 * and never names another call. 0 is no call. */
typedef uint64_t bt_id;

#define BT_NEVER INT64_MAX /* a deadline that never comes, a time not set */

typedef struct {
    int64_t max_batch_rows;   /* rows, >= 1 */
    int64_t max_queue_rows;   /* rows, >= 1; beyond it admission refuses */
    int32_t isolate_errors;   /* 0: at most once, a batch fails whole */
    int32_t one_call_a_batch; /* 1: never join calls (SimpleRunner) */
    bt_policy_options policy;
} bt_options;

/* ---- admission -------------------------------------------------------- */

typedef enum {
    BT_ADMITTED = 0,
    BT_REFUSED_QUEUE = 1,  /* the queue would exceed max_queue_rows */
    BT_REFUSED_LATE = 2,   /* calibrated, and predicted to miss its deadline */
    BT_REFUSED_SIZE = 3,   /* more rows than max_queue_rows on its own */
    BT_REFUSED_MEMORY = 4,
} bt_verdict;

typedef struct {
    bt_verdict verdict;
    bt_id id;                /* 0 unless admitted */
    int64_t predicted_ns;    /* from now to the predicted answer; -1: not calibrated, or not
                                looked at: admitted, and without a deadline */
} bt_admission;

/* ---- decisions -------------------------------------------------------- */

typedef struct {
    bt_id id;
    uint64_t tag;      /* the driver's own word for the call, returned untouched */
    int64_t first_row; /* of the call; 0 unless the call was cut */
    int64_t rows;      /* of this part, may be 0 */
} bt_part;

typedef enum { BT_IDLE = 0, BT_WAIT = 1, BT_RUN = 2 } bt_action;

typedef struct {
    bt_action action;
    int64_t until_ns;     /* BT_WAIT, BT_IDLE: ask again then at the latest
                             (a hold ends, a deadline passes); BT_NEVER: no timer */
    uint64_t batch;       /* BT_RUN: the batch's id, for bt_finished */
    uint64_t group;
    int64_t rows;         /* sum over the parts */
    int64_t padded_rows;  /* >= rows: what the model is to be given (allowed sizes) */
    bt_release reason;    /* why it was released (policy.h) */
    const bt_part *parts; /* the scheduler's; valid until bt_finished(batch) */
    size_t part_count;
} bt_decision;

/* ---- outcomes --------------------------------------------------------- */

typedef enum {
    BT_PART = 0,     /* these rows count, more of the call are still out */
    BT_ANSWERED = 1, /* these rows count and were the call's last */
    BT_RERUN = 2,    /* the batch did not succeed; these rows will run again */
    BT_FAILED = 3,   /* the model raised, and this call is to get the error */
    BT_LOST = 4,     /* the worker died, and this call is to get that error */
    BT_BROKEN = 5,   /* the result was unusable: every call of the batch fails */
    BT_GONE = 6,     /* cancelled, expired or failed meanwhile: drop the rows */
    BT_EXPIRED = 7,  /* its deadline passed, queued or running (bt_expired only) */
} bt_outcome;

typedef struct {
    bt_id id;
    uint64_t tag;
    int64_t first_row;    /* of the call */
    int64_t rows;
    int64_t batch_offset; /* first row of this part within the batch */
    bt_outcome outcome;
} bt_settled;

typedef enum {
    BT_OK = 0,      /* every row has a result */
    BT_RAISED = 1,  /* the model raised */
    BT_DIED = 2,    /* the worker died or was lost with the batch */
    BT_INVALID = 3, /* wrong type or row count: never run again */
    BT_UNRUN = 4,   /* handed back before it was started: runs next, and counts for nothing; but the
                       16th time in a row is BT_DIED */
    BT_UNSENT = 5,  /* too much to be sent to a worker: its halves run next, by call; a call alone
                       is to get the error. Says nothing of the model */
} bt_finish;

/* ---- statistics ------------------------------------------------------- */

#define BT_BATCH_ROWS_BUCKETS 40 /* bucket i counts batches of 2^(i-1) < rows <= 2^i; bucket 0: 0 or 1 row */

typedef struct {
    int64_t queued_calls;
    int64_t queued_rows;
    int64_t in_flight_batches;
    int64_t calls;      /* admitted or refused, ever */
    int64_t answered;
    int64_t failed;     /* FAILED, LOST, BROKEN */
    int64_t refused;
    int64_t expired;
    int64_t cancelled;
    int64_t batches;    /* handed out, re-runs included */
    int64_t batch_rows[BT_BATCH_ROWS_BUCKETS];
    int64_t released[BT_RELEASE_COUNT];
    /* By reason, of the batches that ended well and had a prediction: what was predicted, what they took. */
    int64_t predicted_ns[BT_RELEASE_COUNT];
    int64_t actual_ns[BT_RELEASE_COUNT];
    int64_t groups;     /* that have a call in the queue or in flight now */
    bt_policy_statistics policy;
} bt_statistics;

#define BT_RECENT_RELEASES 256 /* that are remembered one by one */
#define BT_RELEASE_RUNNING (-1)

typedef struct {
    int64_t number;       /* of the batch, counted from 1 */
    int64_t released_ns;
    bt_release reason;
    int64_t calls, rows, padded_rows;
    int64_t idle_slots;   /* free at that moment, its own among them */
    int64_t held_ns;      /* from the first decision to hold these calls to the release; 0: not held */
    int64_t predicted_ns; /* mean cost foreseen at the release; 0: nothing was known */
    int64_t took_ns;      /* -1: it runs */
    int32_t how;          /* bt_finish, or BT_RELEASE_RUNNING */
} bt_released;

/* ---- calls ------------------------------------------------------------ */

/* NULL when out of memory. The options are copied. */
bt_scheduler *bt_scheduler_new(const bt_options *options);
void bt_scheduler_free(bt_scheduler *s);

/* Takes effect from the next decision on; what is learned is kept. */
int bt_set_options(bt_scheduler *s, const bt_options *options); /* 0, or -1 out of memory */

/* Counts calls that their driver refused, for want of room, before they came here. */
void bt_refused(bt_scheduler *s, int64_t calls);

/* deadline_ns is absolute, BT_NEVER for none; client and group are the driver's
 * numbers, any value; rows >= 0. O(1), amortised, O(log n) with a deadline. */
bt_admission bt_admit(bt_scheduler *s, int64_t now_ns, int64_t rows, uint64_t group,
                      int64_t deadline_ns, uint64_t client, uint64_t tag);

/* Takes the call out of the queue at once; what is running of it settles as
 * BT_GONE. 1 if it was live, 0 if it had its verdict before (or never was). */
int bt_cancel(bt_scheduler *s, bt_id id);
/* The same for one whose caller knows that its deadline has passed. */
int bt_expire(bt_scheduler *s, bt_id id);

/* What to do now, with idle_slots slots free and total_slots in all
 * (busy ones included). Expires what is due before it decides.
 * 0, or -1 out of memory (nothing changed; ask again). */
int bt_decide(bt_scheduler *s, int64_t now_ns, int64_t idle_slots, int64_t total_slots,
              bt_decision *out);

/* The calls that expired since the last drain, with BT_EXPIRED. Copies up to
 * `capacity` and returns how many; call until it returns 0. */
size_t bt_expired(bt_scheduler *s, bt_settled *out, size_t capacity);

/* Ends a batch. One settled entry per part, in the order of the parts, in the
 * scheduler's own memory, valid until the next call on it; NULL and count 0 for
 * an unknown batch. Feeds the cost model when how == BT_OK. */
const bt_settled *bt_finished(bt_scheduler *s, uint64_t batch, int64_t now_ns,
                              bt_finish how, size_t *count);

void bt_get_statistics(const bt_scheduler *s, bt_statistics *out);
/* The last releases, oldest first; copies up to `capacity` of the newest ones and returns how many. */
size_t bt_recent_releases(const bt_scheduler *s, bt_released *out, size_t capacity);

/* Checks every invariant; NULL if all hold, else the sentence that does not. */
const char *bt_check(const bt_scheduler *s);

/* Schedulers, calls and batches that live in this copy of the core (every
 * extension module has its own); 0 unless compiled with BT_DEBUG_COUNTERS. */
int64_t bt_live_objects(void);

#endif
