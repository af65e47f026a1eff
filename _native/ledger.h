/* The ledger: every call between its arrival and its answer, as C data.
 *
 * Calls are entries of a slab; a scheduler knows them by a tag (place and
 * generation). A call holds a reference to the message that it came in, and its
 * rows stay there until they are gathered into a batch. Full keys are interned:
 * two calls have the same group if and only if their keys are equal byte for
 * byte, and calls of one group have buffers of the same shape.
 *
 * One thread at a time; nothing here knows of sockets.
 */
#ifndef BT_LEDGER_H
#define BT_LEDGER_H

#include "message.h"
#include "scheduler.h"

/* ---- an index by hash ----------------------------------------------------- */

typedef struct {
    uint64_t *slot; /* hash << 32 | value + 1; 0: free */
    uint32_t capacity;
    uint32_t count;
} bt_index;

uint32_t bt_hash(const void *data, size_t bytes);
uint32_t bt_hash64(uint64_t a, uint64_t b);

/* ---- groups ---------------------------------------------------------------- */

typedef struct {
    uint64_t number;     /* the scheduler's name for it; 0: free place */
    uint32_t hash;
    uint32_t uses;       /* live calls */
    uint32_t next, previous; /* of those without a call, oldest first; next also links free places */
    uint32_t key_bytes;
    uint16_t buffers;
    uint8_t holds_pickle;
    uint8_t *key;        /* and behind it an i32 row size for each buffer, and a bt_blob_rule */
} bt_group;

/* ---- calls ------------------------------------------------------------------ */

#define BT_NOWHERE UINT32_MAX

/* The rows of one finished part of a call that was cut. */
typedef struct bt_answer {
    struct bt_answer *next; /* by first row */
    bt_message *message;
    bt_wire_rows rows;
    uint32_t batch_offset;
    uint32_t count;
    int64_t first_row;      /* of the call */
} bt_answer;

typedef struct {
    bt_id id;               /* the scheduler's; 0: free place */
    uint64_t request;       /* the client's */
    void *owner;            /* the client */
    bt_message *message;
    bt_wire_rows rows;
    uint32_t generation;
    uint32_t group;
    uint32_t next, previous; /* of the same owner; next also links free places */
    bt_answer *answers;
} bt_entry;

typedef struct {
    bt_entry *entry;
    uint32_t entries, entry_capacity, free_entry;
    bt_group *group;
    uint32_t groups, group_capacity, free_group;
    uint32_t unused_groups, oldest_unused, newest_unused;
    uint64_t next_group;
    uint32_t latest_group;  /* where the last call's key was found; its place may be free by now */
    bt_index by_request, by_key;
} bt_ledger;

void bt_ledger_init(bt_ledger *l);
/* Drops every message that is still referred to. */
void bt_ledger_free(bt_ledger *l);

/* A new call at the head of its owner's list. BT_WIRE_OK and its place; else why
 * not: BT_WIRE_VALUE the owner has a call of this id, BT_WIRE_COUNT its buffers
 * are not those of its key, BT_WIRE_LIMIT out of memory. Keeps the message. */
bt_wire_verdict bt_ledger_add(bt_ledger *l, void *owner, uint32_t *head, uint64_t request,
                              bt_message *message, const bt_wire_rows *rows, uint32_t *place);
/* Forgets the call and lets go of its message. */
void bt_ledger_remove(bt_ledger *l, uint32_t *head, uint32_t place);
uint32_t bt_ledger_find(const bt_ledger *l, const void *owner, uint64_t request);

uint64_t bt_ledger_tag(const bt_ledger *l, uint32_t place);
/* The place of a live call, BT_NOWHERE for one that is gone. */
uint32_t bt_ledger_place(const bt_ledger *l, uint64_t tag);

/* Whether the call at this place holds pickle, as far as trust.h can see. */
int bt_ledger_holds_pickle(const bt_ledger *l, uint32_t place);

/* Keeps rows of a result for a call that waits for more. -1 when out of memory. */
int bt_ledger_keep_answer(bt_entry *e, bt_message *message, const bt_wire_rows *rows, uint32_t batch_offset,
                          uint32_t count, int64_t first_row);

/* NULL if every invariant holds, else the sentence that does not. */
const char *bt_ledger_check(const bt_ledger *l);

#endif
