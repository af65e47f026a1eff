/* The native data plane: a dispatcher's socket, calls and workers on one thread.
 *
 * bt_plane_run is that thread's whole life: it sleeps until the ROUTER, its
 * monitor, a command or a time that the scheduler named wakes it, reads what
 * came, admits calls, hands batches to workers that are free, cuts results and
 * sends what is to leave, one message per peer and turn. No Python object is
 * touched and no interpreter lock is needed.
 *
 * The owner's side is commands in and events out, both queues. Calls of the
 * owner's own process are the same records as everybody else's, passed as
 * messages in memory (peer 0), so that there is one path and one bookkeeping.
 *
 * Guarantees
 *   1. every accepted call gets one answer: a result, or an error;
 *   2. nothing that a peer sends stops the thread: it is dropped and counted;
 *   3. no polling;
 *   4. a client that does not read costs max_unread_bytes and no more: then it is
 *      cut off, and told so as soon as it reads.
 * Sockets are made, configured and bound before they are handed over, and are
 * closed by their owner after bt_plane_run has returned.
 */
#ifndef BT_PLANE_H
#define BT_PLANE_H

#include "ledger.h"

typedef struct bt_plane bt_plane;

#define BT_TOKEN_BYTES 64
#define BT_WHY_BYTES 160

typedef struct {
    const char *name;         /* the runner's */
    const uint8_t *description;
    uint32_t description_bytes;
    void *router;             /* zmq sockets */
    void *monitor;            /* PAIR of the router's monitor, or NULL */
    bt_scheduler *scheduler;  /* not owned */
    int64_t max_queue_rows;   /* the scheduler's, for messages */
    int64_t run_timeout_ns;   /* -1: none */
    int groups;               /* calls of clients are passed to the owner first, for their keys */
    int refuses_pickle;       /* of clients: nobody has vouched for them */
    uint64_t max_message_bytes; /* of a message, all frames together; both ways */
    uint64_t max_unread_bytes; /* for one client, sent or queued and not known to be read */
} bt_plane_options;

typedef enum {
    BT_COMMAND_LOCAL = 1,   /* message: records of calls of this process */
    BT_COMMAND_DIED = 2,    /* token; message: an ERROR record that says how */
    BT_COMMAND_FAILING = 3, /* message: an ERROR record for every call, or NULL: no more */
    BT_COMMAND_DRAIN = 4,   /* refuse calls; BT_EVENT_DRAINED once the last has its answer */
    BT_COMMAND_DISMISS = 5, /* STOP to every worker */
    BT_COMMAND_END = 6,     /* message: an ERROR record for what is left; then return */
    BT_COMMAND_TIMEOUT = 7, /* number: run_timeout_ns */
    BT_COMMAND_WAKE = 8,
    BT_COMMAND_QUEUE_ROWS = 9, /* number: max_queue_rows */
    BT_COMMAND_GROUPED = 11, /* number: the ticket of BT_EVENT_GROUP; message: its records, and ERRORs for it */
    BT_COMMAND_REPLY = 10,  /* after BT_EVENT_ASK; message: one frame, the numbers as JSON */
} bt_command_kind;

typedef enum {
    BT_EVENT_LOCAL = 1,   /* message: answers to calls of this process */
    BT_EVENT_READY = 2,   /* token: a supervised worker greeted */
    BT_EVENT_KILL = 3,    /* token, why: a supervised worker hangs or lost its connection */
    BT_EVENT_DRAINED = 4,
    BT_EVENT_ENDED = 5,   /* the last event there is */
    BT_EVENT_ASK = 6,     /* clients want the dispatcher's numbers, of now or later: BT_COMMAND_REPLY */
    BT_EVENT_RAN = 7,     /* 8 batches ended well, or 16, 32 and so on */
    BT_EVENT_GROUP = 8,   /* ticket, at_ns, message: its records from the first CALL or CANCEL on are to be
                             passed back, with the keys that the calls should have: BT_COMMAND_GROUPED */
    BT_EVENT_LOST = 9,    /* outcomes of calls of this process are lost, for want of memory: no others will
                             come for the calls that were made so far */
} bt_event_kind;

typedef struct bt_event {
    struct bt_event *next;
    bt_event_kind kind;
    char token[BT_TOKEN_BYTES];
    char why[BT_WHY_BYTES];
    uint64_t ticket;
    int64_t at_ns;
    bt_message *message;
} bt_event;

typedef struct {
    uint64_t dropped;   /* messages and records without a meaning here */
    uint64_t cut_off;   /* clients that did not read */
    uint32_t workers;   /* that are connected and not known to hang */
    uint32_t clients;
    uint64_t keys;      /* distinct keys seen, ever */
    uint32_t calls;     /* without an outcome */
} bt_plane_counters;

/* NULL when out of memory or descriptors. The options are copied, except the scheduler. */
bt_plane *bt_plane_new(const bt_plane_options *options);
/* After bt_plane_run has returned, or was never called. */
void bt_plane_free(bt_plane *p);
void bt_plane_run(bt_plane *p);
/* After bt_plane_run has returned: gives its descriptors back. Commands are refused already. */
void bt_plane_close(bt_plane *p);

/* From any thread. Takes over the message. 0; or -1 if the plane has ended, -2 if
 * there is no memory (the message is dropped). BT_COMMAND_END needs no memory. */
int bt_plane_command(bt_plane *p, bt_command_kind kind, const char *token, bt_message *message, int64_t number);

/* After BT_EVENT_GROUP, instead of BT_COMMAND_GROUPED: the calls fail. Needs no memory. The
 * owner is done with all tickets before this one. */
void bt_plane_not_grouped(bt_plane *p, uint64_t ticket);
/* After BT_EVENT_ASK, instead of BT_COMMAND_REPLY: the questions fail. Needs no memory. */
void bt_plane_no_numbers(bt_plane *p);

/* Waits for events; all that there are, in order, linked by next. The caller
 * frees each with bt_event_free. NULL after the last one was taken. One reader. */
bt_event *bt_plane_events(bt_plane *p);
void bt_event_free(bt_event *e);

/* Keeps the thread from touching the scheduler meanwhile; short. */
/* What later WELCOMEs say; copied. 0, or -1 without memory. */
int bt_plane_describe(bt_plane *p, const uint8_t *description, uint32_t bytes);

void bt_plane_lock(bt_plane *p);
void bt_plane_unlock(bt_plane *p);
/* Under the lock. */
void bt_plane_count(const bt_plane *p, bt_plane_counters *out);
const char *bt_plane_check(const bt_plane *p);
/* Process ids of the workers, at most `capacity`; returns how many there are. */
size_t bt_plane_workers(const bt_plane *p, uint32_t *pids, size_t capacity);

#endif
