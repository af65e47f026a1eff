/* Three containers of the scheduler: a growing array, a heap that knows where
 * its nodes are, and a hash map of two-word keys.
 *
 * Nothing here fails in the middle: whoever adds first reserves (which may
 * fail and then changes nothing), and the adding itself cannot fail.
 */
#ifndef BT_CONTAINERS_H
#define BT_CONTAINERS_H

#include <stddef.h>
#include <stdint.h>

/* The struct of type `type` whose `member` is at `pointer`. */
#define BT_OWNER(pointer, type, member) ((type *)(void *)((char *)(pointer) - offsetof(type, member)))

/* Makes room for `need` items of `size` bytes in the array at *items, at least
 * doubling it. 0, or -1 out of memory (the array is as it was). */
int bt_grow(void **items, size_t *capacity, size_t need, size_t size);

/* ---- heap: least (key, tie) first -------------------------------------- */

/* Lives inside the thing it orders; the heap only points to it. */
typedef struct {
    int64_t key;
    uint64_t tie; /* among equal keys the smaller comes first */
    size_t at;    /* its place in the heap, counted from 1; 0: in no heap */
} bt_node;

typedef struct {
    bt_node **nodes;
    size_t count;
    size_t capacity;
} bt_heap;

int bt_heap_widen(bt_heap *heap, size_t count);
void bt_heap_push(bt_heap *heap, bt_node *node);  /* room has been reserved */
void bt_heap_remove(bt_heap *heap, bt_node *node);
void bt_heap_moved(bt_heap *heap, bt_node *node); /* its key or tie was changed */
void bt_heap_clear(bt_heap *heap);                /* frees the array, not the nodes */

/* Room for `count` nodes in all: 0, or -1 out of memory. */
static inline int bt_heap_reserve(bt_heap *heap, size_t count) {
    return count <= heap->capacity ? 0 : bt_heap_widen(heap, count);
}

static inline bt_node *bt_heap_first(const bt_heap *heap) {
    return heap->count ? heap->nodes[0] : NULL;
}

static inline int bt_node_before(const bt_node *a, const bt_node *b) {
    return a->key < b->key || (a->key == b->key && a->tie < b->tie);
}

/* ---- map: (a, b) -> pointer -------------------------------------------- */

typedef struct {
    uint64_t a;
    uint64_t b;
    void *value; /* NULL: an empty place */
} bt_entry;

typedef struct {
    bt_entry *entries;
    size_t count;
    size_t capacity; /* a power of two, or 0; never more than half full */
} bt_map;

int bt_map_widen(bt_map *map, size_t count);
void *bt_map_get(const bt_map *map, uint64_t a, uint64_t b); /* NULL: not there */
void bt_map_put(bt_map *map, uint64_t a, uint64_t b, void *value); /* a new key; room has been reserved */
void bt_map_remove(bt_map *map, uint64_t a, uint64_t b);           /* a key that is there */
void bt_map_clear(bt_map *map);

/* Room for `count` keys in all: 0, or -1 out of memory. */
static inline int bt_map_reserve(bt_map *map, size_t count) {
    return count * 2 <= map->capacity ? 0 : bt_map_widen(map, count);
}

#endif
