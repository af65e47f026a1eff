/* The inside of the scheduler, shared by its six files and nobody else.
 *
 *   scheduler.c         admission, the decision, expiry, statistics
 *   scheduler_queue.c   groups and clients: who waits, and who is taken next
 *   scheduler_batch.c   batches: handed out, settled, run again
 *   scheduler_late.c    who will be late: refused, or dropped
 *   scheduler_releases.c  what became of the last releases
 *   scheduler_check.c   every invariant, one sentence each
 *
 * A call is in exactly one of three conditions for each of its rows: queued
 * (rows from next_row on), in a batch (running, or sealed to run again), or
 * done. Ending a call frees its slot at once; a batch that still runs it holds
 * only its id, which names nothing from then on, and so settles as BT_GONE.
 *
 * Who owns what: the scheduler owns all of it. A call never moves in memory; a
 * group lives while a live call or a batch refers to it, a client while it has
 * a call in the queue. Emptied ones wait on free lists: after warm-up nothing
 * is allocated.
 */
#ifndef BT_SCHEDULER_STATE_H
#define BT_SCHEDULER_STATE_H

#include <assert.h>

#include "containers.h"
#include "scheduler.h"

typedef struct bt_call bt_call;
typedef struct bt_client bt_client;
typedef struct bt_group bt_group;
typedef struct bt_trial bt_trial;
typedef struct bt_batch bt_batch;

struct bt_call {
    uint32_t index;         /* its place in the slab */
    uint32_t generation;    /* counts the calls that had this place */
    int32_t live;           /* 0: on the free list */
    int32_t deaths;         /* workers lost with a batch of it */
    uint64_t tag;
    int64_t arrival_ns;
    int64_t deadline_ns;    /* BT_NEVER: none, and in neither heap */
    int64_t rows;
    int64_t next_row;       /* rows from here on are still in the queue */
    int64_t done_rows;      /* rows that have their result */
    int64_t sealed_rows;    /* rows that wait in sealed batches */
    int64_t sealed_parts;   /* and in how many of them */
    bt_group *group;
    bt_client *client;      /* NULL: not in the queue */
    bt_call *prev, *next;   /* in the group's queue, by arrival; next: the free list */
    bt_call *client_next;   /* in the client's queue, by arrival */
    bt_call *client_prev;
    bt_node due;            /* live calls with a deadline; due.tie numbers every call by admission */
    bt_node tight;          /* queued calls of the group with a deadline */
};

struct bt_client {
    uint64_t number;
    bt_call *first, *last;
    bt_client *prev, *next; /* in the order of turns; next: the free list */
    int64_t deficit;        /* rows it may still take, its credit */
    int32_t credited;       /* this turn's quantum has been added */
};

struct bt_group {
    uint64_t number;
    bt_node rank;           /* among the groups with queued calls */
    bt_call *first, *last;  /* queued calls by arrival */
    bt_heap tight;          /* queued calls by deadline */
    bt_client *turn_first, *turn_last;
    int64_t clients;
    int64_t queued_calls;
    int64_t queued_rows;
    int64_t zero_calls;     /* queued calls of no rows */
    int64_t live_calls;
    int64_t held_since_ns;  /* its queue; BT_NEVER: nothing is held */
    int64_t batches;        /* running or sealed */
    bt_group *next_free;
};

/* What became of a batch from the queue and of all its re-runs. */
struct bt_trial {
    int64_t open;           /* batches of it that are sealed or running */
    int64_t failed;         /* calls that failed for good */
    int32_t succeeded;      /* a batch of it ended well */
    bt_trial *next_free;
};

typedef enum { BT_BATCH_FREE, BT_BATCH_SEALED, BT_BATCH_RUNNING } bt_batch_state;

struct bt_batch {
    uint32_t index;
    uint32_t generation;
    bt_batch_state state;
    bt_group *group;
    bt_trial *trial;        /* NULL: formed from the queue */
    bt_part *parts;
    size_t part_count, part_capacity;
    int32_t returns;        /* times in a row that it was handed back */
    int64_t rows;
    int64_t padded_rows;
    int64_t started_ns;
    int64_t expected_ns;    /* when it should have ended by now; 0: not calibrated */
    int64_t tightest_ns;    /* while it is formed: the least deadline in it */
    int64_t held_ns;
    int64_t release;        /* the number of its release, once it runs */
    int64_t predicted_ns;
    bt_release reason;
    bt_batch *prev, *next;  /* in `running` or `sealed`; next: the free list */
};

/* A part of the batch being formed that has a deadline. */
typedef struct {
    int64_t deadline_ns;
    size_t part;
} bt_late;

#define BT_CALLS_A_CHUNK 256

struct bt_scheduler {
    bt_options options;
    bt_policy *policy;
    int64_t now_ns;           /* the last time it was told */
    int64_t total_slots;      /* as the last decision was told, at least 1 */
    int64_t idle_slots;
    uint64_t admitted;        /* numbers the calls */
    int32_t failed_whole;     /* the last batch that was tried to the end failed in every call */

    bt_call **chunks;         /* the slab: chunks of BT_CALLS_A_CHUNK calls */
    size_t chunk_count, chunk_capacity;
    bt_call *free_calls;
    bt_heap due;              /* live calls with a deadline */

    bt_map groups;            /* (number, 0) -> bt_group */
    bt_map clients;           /* (client, group) -> bt_client with queued calls */
    bt_heap ranks;            /* groups with queued calls */
    bt_group *free_groups;
    bt_client *free_clients;

    bt_batch **batches;       /* by index */
    size_t batch_count, batch_capacity;
    bt_batch *free_batches;
    bt_batch *running;        /* newest first */
    bt_batch *sealed;         /* a stack: halves of a failed batch before what failed earlier */
    bt_trial *free_trials;

    bt_settled *expired;      /* not drained yet: [expired_taken, expired_count) */
    size_t expired_taken, expired_count, expired_capacity;
    bt_settled *settled;      /* what bt_finished returns; room for the largest batch */
    size_t settled_capacity;
    bt_late *late;            /* scratch of drop_late, room for the largest batch */
    size_t late_capacity;

    int64_t live_calls;
    int64_t queued_zero_calls; /* in the queue, of no rows */
    bt_released recent[BT_RECENT_RELEASES]; /* number n at (n - 1) % BT_RECENT_RELEASES */
    bt_statistics counted;     /* policy's part and `groups` are filled in when asked for */
};

/* ---- live objects, for the tests of leaks ------------------------------- */

#ifdef BT_DEBUG_COUNTERS
#include <stdatomic.h>
extern atomic_llong bt_live_counter;
#define BT_COUNT(n) ((void)atomic_fetch_add_explicit(&bt_live_counter, (n), memory_order_relaxed))
#else
#define BT_COUNT(n) ((void)(n))
#endif

/* After every public call that changes something. Bounded, so that a debug
 * build can still run the large tests. */
#ifdef NDEBUG
#define BT_ASSERT_CONSISTENT(s) ((void)0)
#else
#define BT_ASSERT_CONSISTENT(s) assert((s)->live_calls > 500 || !bt_check(s))
#endif

/* ---- small things -------------------------------------------------------- */

/* a + b without overflow; BT_NEVER stays BT_NEVER. b >= 0. */
static inline int64_t bt_later(int64_t a, int64_t b) {
    return a > BT_NEVER - b ? BT_NEVER : a + b;
}

static inline int64_t bt_least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t bt_most(int64_t a, int64_t b) { return a > b ? a : b; }

static inline bt_id bt_call_id(const bt_call *c) {
    return (uint64_t)c->generation << 32 | (uint64_t)(c->index + 1);
}

static inline uint64_t bt_batch_id(const bt_batch *b) {
    return (uint64_t)b->generation << 32 | (uint64_t)(b->index + 1);
}

/* The live call of this id, or NULL. */
static inline bt_call *bt_call_of(const bt_scheduler *s, bt_id id) {
    uint64_t index = (id & UINT32_MAX) - 1;
    if (index >= s->chunk_count * BT_CALLS_A_CHUNK) return NULL;
    bt_call *c = &s->chunks[index / BT_CALLS_A_CHUNK][index % BT_CALLS_A_CHUNK];
    return c->live && c->generation == id >> 32 ? c : NULL;
}

/* Does any row of it (or the call of no rows itself) wait to run? */
static inline int bt_call_waits(const bt_call *c) { return c->client || c->sealed_parts; }

/* ---- scheduler_queue.c ---------------------------------------------------- */

/* The group of this number, made if need be; NULL out of memory. Unless a call
 * follows, bt_group_release gives it back. */
bt_group *bt_group_at(bt_scheduler *s, uint64_t number);
void bt_group_release(bt_scheduler *s, bt_group *g); /* frees it if nothing refers to it */
/* Room for one more call of this client in the queue: 0, or -1. */
int bt_queue_reserve(bt_scheduler *s, bt_group *g, int with_deadline);
void bt_queue_add(bt_scheduler *s, bt_call *c, uint64_t client); /* after bt_queue_reserve */
/* Takes out what is queued of a call; the policy hears of it, it did not run. */
void bt_queue_leave(bt_scheduler *s, bt_call *c);
/* How many parts a batch of `limit` rows can have at most. */
size_t bt_queue_parts(const bt_group *g, int64_t limit);
/* Moves calls from the queue into the batch until `limit` rows are in it or
 * none fits. The batch has room for the parts. in_order: by arrival, whoever
 * the clients are. */
void bt_queue_fill(bt_scheduler *s, bt_group *g, bt_batch *b, int64_t limit, int in_order);

/* ---- scheduler_batch.c ---------------------------------------------------- */

/* A batch with room for `parts`, off every list, counted in its group; and room
 * to settle it. NULL out of memory. */
bt_batch *bt_batch_new(bt_scheduler *s, bt_group *g, bt_trial *trial, size_t parts);
/* Gives back a batch whose parts are dealt with. */
void bt_batch_release(bt_scheduler *s, bt_batch *b);
/* Hands the batch out: it runs from now on, and *out describes it. */
void bt_batch_start(bt_scheduler *s, bt_batch *b, bt_release reason, bt_decision *out);
/* Takes the next batch to run again off the stack, cut to what a batch may hold
 * now. NULL with *failed 0: there is none; *failed 1: out of memory. */
bt_batch *bt_batch_unstack(bt_scheduler *s, int *failed);
/* Takes what is sealed of a call out of its batches; emptied ones vanish. */
void bt_batch_leave(bt_scheduler *s, bt_call *c);

/* ---- scheduler_late.c ------------------------------------------------------- */

int64_t bt_predict(const bt_scheduler *s, int64_t rows); /* needs a calibrated policy */
int bt_too_late(const bt_scheduler *s, int64_t deadline_ns, int64_t predicted_ns);
int64_t bt_split_in_time(const bt_scheduler *s, const bt_group *g, int64_t limit, int64_t idle_slots);
size_t bt_drop_late(bt_scheduler *s, bt_batch *b);
int64_t bt_rows_in_time(const bt_scheduler *s, const bt_batch *b, int64_t limit);

/* ---- scheduler_releases.c --------------------------------------------------- */

void bt_release_note(bt_scheduler *s, bt_batch *b, bt_release reason); /* it starts; counted already */
void bt_release_ended(bt_scheduler *s, const bt_batch *b, bt_finish how);

/* ---- scheduler.c ------------------------------------------------------------ */

/* Ends a live call: out of the queue, the sealed batches and the heap; its id
 * is stale from now on. The verdict is the caller's to count. */
void bt_call_end(bt_scheduler *s, bt_call *c);
void bt_call_expire(bt_scheduler *s, bt_call *c); /* the same, as BT_EXPIRED */

#endif
