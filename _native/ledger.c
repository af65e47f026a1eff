#include "ledger.h"

#include <stdlib.h>
#include <string.h>

#include "trust.h"

/* Groups without a call that are remembered, for what the policy learned of them. */
#define UNUSED_GROUPS 256

/* ---- an index by hash ----------------------------------------------------- */

uint32_t bt_hash64(uint64_t a, uint64_t b)
{
    uint64_t h = (a ^ (b * 0x9E3779B97F4A7C15u)) * 0xBF58476D1CE4E5B9u;
    h ^= h >> 29;
    h *= 0x94D049BB133111EBu;
    return (uint32_t)(h >> 32);
}

uint32_t bt_hash(const void *data, size_t bytes)
{
    const uint8_t *p = data;
    uint64_t h = bytes * 0x9E3779B97F4A7C15u;
    for (; bytes >= 8; p += 8, bytes -= 8) h = (h ^ bt_get64(p)) * 0xBF58476D1CE4E5B9u, h ^= h >> 31;
    for (; bytes > 0; p++, bytes--) h = (h ^ *p) * 0x94D049BB133111EBu;
    h ^= h >> 29;
    return bt_hash64(h, 1);
}

/* Linear probing, at most half full. Values that share a hash are told apart by
 * `same`, which is asked for each. */
typedef int (*same_fn)(const bt_ledger *l, uint32_t value, const void *wanted);

static uint32_t index_find(const bt_ledger *l, const bt_index *x, uint32_t hash, same_fn same, const void *wanted)
{
    if (x->capacity == 0) return BT_NOWHERE;
    for (uint32_t i = hash & (x->capacity - 1); x->slot[i] != 0; i = (i + 1) & (x->capacity - 1)) {
        uint32_t value = (uint32_t)x->slot[i] - 1;
        if ((uint32_t)(x->slot[i] >> 32) == hash && same(l, value, wanted)) return value;
    }
    return BT_NOWHERE;
}

static void index_put(bt_index *x, uint64_t slot)
{
    uint32_t i = (uint32_t)(slot >> 32) & (x->capacity - 1);
    while (x->slot[i] != 0) i = (i + 1) & (x->capacity - 1);
    x->slot[i] = slot;
}

static int index_add(bt_index *x, uint32_t hash, uint32_t value)
{
    if (2 * (x->count + 1) > x->capacity) {
        bt_index grown = {NULL, x->capacity ? 2 * x->capacity : 64, x->count};
        grown.slot = calloc(grown.capacity, sizeof *grown.slot);
        if (grown.slot == NULL) return -1;
        for (uint32_t i = 0; i < x->capacity; i++)
            if (x->slot[i] != 0) index_put(&grown, x->slot[i]);
        free(x->slot);
        *x = grown;
    }
    index_put(x, (uint64_t)hash << 32 | (value + 1));
    x->count++;
    return 0;
}

static void index_remove(bt_index *x, uint32_t hash, uint32_t value)
{
    uint32_t mask = x->capacity - 1, i = hash & mask;
    while (x->slot[i] != ((uint64_t)hash << 32 | (value + 1))) i = (i + 1) & mask;
    /* Closes the gap: what probed past it moves back, so that no search ends early. */
    for (uint32_t k = (i + 1) & mask; x->slot[k] != 0; k = (k + 1) & mask) {
        uint32_t home = (uint32_t)(x->slot[k] >> 32) & mask;
        if (((k - home) & mask) < ((k - i) & mask)) continue;
        x->slot[i] = x->slot[k];
        i = k;
    }
    x->slot[i] = 0;
    x->count--;
}

/* ---- groups ---------------------------------------------------------------- */

static int same_key(const bt_ledger *l, uint32_t value, const void *wanted)
{
    const bt_group *g = &l->group[value];
    const bt_wire_rows *rows = wanted;
    return g->key_bytes == rows->key_bytes && memcmp(g->key, rows->key, g->key_bytes) == 0;
}

/* Those without a call, in the order in which their last one left. */

static void link_unused(bt_ledger *l, uint32_t place)
{
    bt_group *g = &l->group[place];
    g->previous = l->newest_unused;
    g->next = BT_NOWHERE;
    *(g->previous == BT_NOWHERE ? &l->oldest_unused : &l->group[g->previous].next) = place;
    l->newest_unused = place;
    l->unused_groups++;
}

static void unlink_unused(bt_ledger *l, uint32_t place)
{
    const bt_group *g = &l->group[place];
    *(g->previous == BT_NOWHERE ? &l->oldest_unused : &l->group[g->previous].next) = g->next;
    *(g->next == BT_NOWHERE ? &l->newest_unused : &l->group[g->next].previous) = g->previous;
    l->unused_groups--;
}

static void free_group(bt_ledger *l, uint32_t place)
{
    bt_group *g = &l->group[place];
    unlink_unused(l, place);
    index_remove(&l->by_key, g->hash, place);
    free(g->key);
    memset(g, 0, sizeof *g);
    g->next = l->free_group;
    l->free_group = place;
}

/* A place for a group, not yet taken; BT_NOWHERE without memory. */
static uint32_t group_place(bt_ledger *l)
{
    if (l->free_group != BT_NOWHERE) return l->free_group;
    if (l->groups == l->group_capacity) {
        uint32_t capacity = l->groups ? 2 * l->groups : 16;
        bt_group *grown = realloc(l->group, capacity * sizeof *grown);
        if (grown == NULL) return BT_NOWHERE;
        l->group = grown;
        l->group_capacity = capacity;
    }
    memset(&l->group[l->groups], 0, sizeof *l->group);
    l->group[l->groups].next = BT_NOWHERE;
    l->free_group = l->groups;
    return l->groups++;
}

static uint32_t new_group(bt_ledger *l, const bt_wire_rows *rows, uint32_t hash)
{
    uint32_t place = group_place(l);
    if (place == BT_NOWHERE) return BT_NOWHERE;
    bt_group *g = &l->group[place];
    g->key = malloc(rows->key_bytes + (size_t)5 * rows->buffers + 1);
    if (g->key == NULL || index_add(&l->by_key, hash, place) != 0) {
        free(g->key);
        g->key = NULL;
        return BT_NOWHERE;
    }
    l->free_group = g->next;
    memcpy(g->key, rows->key, rows->key_bytes);
    for (uint16_t i = 0; i < rows->buffers; i++)
        memcpy(g->key + rows->key_bytes + (size_t)4 * i,
               rows->descriptors + (size_t)BT_DESCRIPTOR_BYTES * i + 8, 4);
    uint8_t *row_bytes = g->key + rows->key_bytes;
    g->holds_pickle = bt_trust_key(g->key, rows->key_bytes, row_bytes, rows->buffers,
                                   row_bytes + (size_t)4 * rows->buffers) != 0;
    g->key_bytes = rows->key_bytes;
    g->buffers = rows->buffers;
    g->hash = hash;
    g->number = ++l->next_group;
    g->uses = 0;
    link_unused(l, place);
    return place;
}

/* The group of these rows' key, made if need be; BT_NOWHERE without memory. */
static uint32_t group_of(bt_ledger *l, const bt_wire_rows *rows)
{
    /* Mostly that of the call before. A free place has no key. */
    uint32_t at = l->latest_group;
    if (at < l->groups && l->group[at].key != NULL && same_key(l, at, rows)) return at;
    uint32_t hash = bt_hash(rows->key, rows->key_bytes);
    at = index_find(l, &l->by_key, hash, same_key, rows);
    if (at == BT_NOWHERE) at = new_group(l, rows, hash);
    l->latest_group = at;
    return at;
}

static int fits_group(const bt_group *g, const bt_wire_rows *rows)
{
    if (g->buffers != rows->buffers) return 0;
    for (uint16_t i = 0; i < g->buffers; i++)
        if (memcmp(g->key + g->key_bytes + (size_t)4 * i,
                   rows->descriptors + (size_t)BT_DESCRIPTOR_BYTES * i + 8, 4) != 0)
            return 0;
    return 1;
}

static void use_group(bt_ledger *l, uint32_t place)
{
    if (l->group[place].uses++ == 0) unlink_unused(l, place);
}

static void leave_group(bt_ledger *l, uint32_t place)
{
    bt_group *g = &l->group[place];
    if (--g->uses != 0) return;
    link_unused(l, place);
    if (l->unused_groups > UNUSED_GROUPS) free_group(l, l->oldest_unused);
}

/* ---- calls ------------------------------------------------------------------ */

/* References are counted for all threads, which costs; calls are only counted here. */

static void keep_message(bt_message *m)
{
    if (m->calls++ == 0) bt_message_keep(m);
}

static void drop_message(bt_message *m)
{
    if (--m->calls == 0) bt_message_drop(m);
}

typedef struct {
    const void *owner;
    uint64_t request;
} request_key;

static int same_request(const bt_ledger *l, uint32_t value, const void *wanted)
{
    const request_key *k = wanted;
    return l->entry[value].owner == k->owner && l->entry[value].request == k->request;
}

void bt_ledger_init(bt_ledger *l)
{
    memset(l, 0, sizeof *l);
    l->free_entry = l->free_group = l->oldest_unused = l->newest_unused = BT_NOWHERE;
}

static void free_answers(bt_entry *e)
{
    while (e->answers != NULL) {
        bt_answer *a = e->answers;
        e->answers = a->next;
        bt_message_drop(a->message);
        free(a);
    }
}

void bt_ledger_free(bt_ledger *l)
{
    for (uint32_t i = 0; i < l->entries; i++) {
        if (l->entry[i].owner == NULL) continue;
        free_answers(&l->entry[i]);
        drop_message(l->entry[i].message);
    }
    for (uint32_t i = 0; i < l->groups; i++) free(l->group[i].key);
    free(l->entry);
    free(l->group);
    free(l->by_request.slot);
    free(l->by_key.slot);
    bt_ledger_init(l);
}

static uint32_t new_entry(bt_ledger *l)
{
    uint32_t place = l->free_entry;
    if (place != BT_NOWHERE) {
        l->free_entry = l->entry[place].next;
        return place;
    }
    if (l->entries == l->entry_capacity) {
        uint32_t capacity = l->entries ? 2 * l->entries : 256;
        bt_entry *grown = realloc(l->entry, capacity * sizeof *grown);
        if (grown == NULL) return BT_NOWHERE;
        l->entry = grown;
        l->entry_capacity = capacity;
    }
    memset(&l->entry[l->entries], 0, sizeof(bt_entry));
    return l->entries++;
}

bt_wire_verdict bt_ledger_add(bt_ledger *l, void *owner, uint32_t *head, uint64_t request,
                              bt_message *message, const bt_wire_rows *rows, uint32_t *place)
{
    request_key wanted = {owner, request};
    uint32_t hash = bt_hash64((uint64_t)(uintptr_t)owner, request);
    if (index_find(l, &l->by_request, hash, same_request, &wanted) != BT_NOWHERE) return BT_WIRE_VALUE;
    uint32_t group = group_of(l, rows);
    if (group == BT_NOWHERE) return BT_WIRE_LIMIT;
    if (!fits_group(&l->group[group], rows)) return BT_WIRE_COUNT;
    uint32_t at = new_entry(l);
    if (at == BT_NOWHERE) return BT_WIRE_LIMIT;
    bt_entry *e = &l->entry[at];
    if (index_add(&l->by_request, hash, at) != 0) {
        e->next = l->free_entry;
        l->free_entry = at;
        return BT_WIRE_LIMIT;
    }
    use_group(l, group);
    keep_message(message);
    e->id = 0;
    e->request = request;
    e->owner = owner;
    e->message = message;
    e->rows = *rows;
    e->generation++;
    e->group = group;
    e->answers = NULL;
    e->previous = BT_NOWHERE;
    e->next = *head;
    if (*head != BT_NOWHERE) l->entry[*head].previous = at;
    *head = at;
    *place = at;
    return BT_WIRE_OK;
}

void bt_ledger_remove(bt_ledger *l, uint32_t *head, uint32_t place)
{
    bt_entry *e = &l->entry[place];
    index_remove(&l->by_request, bt_hash64((uint64_t)(uintptr_t)e->owner, e->request), place);
    if (e->next != BT_NOWHERE) l->entry[e->next].previous = e->previous;
    if (e->previous != BT_NOWHERE)
        l->entry[e->previous].next = e->next;
    else
        *head = e->next;
    leave_group(l, e->group);
    free_answers(e);
    drop_message(e->message);
    e->message = NULL;
    e->owner = NULL;
    e->id = 0;
    e->generation++;
    e->next = l->free_entry;
    l->free_entry = place;
}

uint32_t bt_ledger_find(const bt_ledger *l, const void *owner, uint64_t request)
{
    request_key wanted = {owner, request};
    return index_find(l, &l->by_request, bt_hash64((uint64_t)(uintptr_t)owner, request), same_request, &wanted);
}

uint64_t bt_ledger_tag(const bt_ledger *l, uint32_t place)
{
    return (uint64_t)l->entry[place].generation << 32 | place;
}

uint32_t bt_ledger_place(const bt_ledger *l, uint64_t tag)
{
    uint32_t place = (uint32_t)tag;
    if (place >= l->entries || l->entry[place].generation != (uint32_t)(tag >> 32)) return BT_NOWHERE;
    return l->entry[place].owner == NULL ? BT_NOWHERE : place;
}

int bt_ledger_keep_answer(bt_entry *e, bt_message *message, const bt_wire_rows *rows, uint32_t batch_offset,
                          uint32_t count, int64_t first_row)
{
    bt_answer *a = malloc(sizeof *a), **at = &e->answers;
    if (a == NULL) return -1;
    bt_message_keep(message);
    a->message = message;
    a->rows = *rows;
    a->batch_offset = batch_offset;
    a->count = count;
    a->first_row = first_row;
    while (*at != NULL && (*at)->first_row < first_row) at = &(*at)->next;
    a->next = *at;
    *at = a;
    return 0;
}

int bt_ledger_holds_pickle(const bt_ledger *l, uint32_t place)
{
    const bt_entry *e = &l->entry[place];
    const bt_group *g = &l->group[e->group];
    return g->holds_pickle || !bt_trust_blobs(e->message, &e->rows, g->key + g->key_bytes + (size_t)4 * g->buffers);
}

const char *bt_ledger_check(const bt_ledger *l)
{
    uint32_t live = 0, unused = 0, named = 0;
    uint64_t uses = 0;
    for (uint32_t i = 0; i < l->entries; i++) {
        const bt_entry *e = &l->entry[i];
        if (e->owner == NULL) continue;
        live++;
        if (e->message == NULL) return "a live call holds its message";
        if (bt_ledger_find(l, e->owner, e->request) != i) return "a live call is found by its request";
        if (l->group[e->group].number == 0 || l->group[e->group].uses == 0) return "a live call's group is in use";
    }
    uint32_t listed = 0;
    for (uint32_t i = l->oldest_unused; i != BT_NOWHERE && listed <= l->groups; i = l->group[i].next, listed++)
        if (l->group[i].uses != 0 || l->group[i].number == 0) return "a group in the list of the unused has no call";
    for (uint32_t i = 0; i < l->groups; i++) {
        if (l->group[i].number == 0) continue;
        named++;
        uses += l->group[i].uses;
        unused += l->group[i].uses == 0;
    }
    if (uses != live) return "groups count the live calls";
    if (unused != listed || unused != l->unused_groups || unused > UNUSED_GROUPS + 1) return "unused groups are counted and bounded";
    if (live != l->by_request.count || named != l->by_key.count) return "the indexes hold what is live";
    return NULL;
}
