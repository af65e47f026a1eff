#include "containers.h"

#include <stdlib.h>
#include <string.h>

int bt_grow(void **items, size_t *capacity, size_t need, size_t size) {
    if (need <= *capacity) return 0;
    size_t wanted = *capacity * 2 > need ? *capacity * 2 : need;
    if (wanted < 16) wanted = 16;
    if (wanted > SIZE_MAX / size) return -1;
    void *grown = realloc(*items, wanted * size);
    if (!grown) return -1;
    *items = grown;
    *capacity = wanted;
    return 0;
}

/* ---- heap --------------------------------------------------------------- */

int bt_heap_widen(bt_heap *heap, size_t count) {
    void *nodes = heap->nodes;
    int failed = bt_grow(&nodes, &heap->capacity, count, sizeof(bt_node *));
    heap->nodes = nodes;
    return failed;
}

static void put(bt_heap *heap, size_t at, bt_node *node) {
    heap->nodes[at] = node;
    node->at = at + 1;
}

static void sift_up(bt_heap *heap, size_t at, bt_node *node) {
    while (at > 0) {
        size_t parent = (at - 1) / 2;
        if (!bt_node_before(node, heap->nodes[parent])) break;
        put(heap, at, heap->nodes[parent]);
        at = parent;
    }
    put(heap, at, node);
}

static void sift_down(bt_heap *heap, size_t at, bt_node *node) {
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= heap->count) break;
        if (child + 1 < heap->count && bt_node_before(heap->nodes[child + 1], heap->nodes[child])) child++;
        if (!bt_node_before(heap->nodes[child], node)) break;
        put(heap, at, heap->nodes[child]);
        at = child;
    }
    put(heap, at, node);
}

void bt_heap_push(bt_heap *heap, bt_node *node) {
    sift_up(heap, heap->count++, node);
}

void bt_heap_moved(bt_heap *heap, bt_node *node) {
    size_t at = node->at - 1;
    if (at > 0 && bt_node_before(node, heap->nodes[(at - 1) / 2])) sift_up(heap, at, node);
    else sift_down(heap, at, node);
}

void bt_heap_remove(bt_heap *heap, bt_node *node) {
    size_t at = node->at - 1;
    bt_node *last = heap->nodes[--heap->count];
    node->at = 0;
    if (last == node) return;
    put(heap, at, last);
    bt_heap_moved(heap, last);
}

void bt_heap_clear(bt_heap *heap) {
    free(heap->nodes);
    memset(heap, 0, sizeof *heap);
}

/* ---- map: linear probing, removal by shifting back ---------------------- */

static size_t home(const bt_map *map, uint64_t a, uint64_t b) {
    uint64_t hash = (a ^ (b * UINT64_C(0x9E3779B97F4A7C15))) * UINT64_C(0xD6E8FEB86659FD93);
    return (size_t)(hash ^ (hash >> 32)) & (map->capacity - 1);
}

/* The place of the key, or the empty place where it would go. */
static size_t find(const bt_map *map, uint64_t a, uint64_t b) {
    size_t at = home(map, a, b);
    while (map->entries[at].value && (map->entries[at].a != a || map->entries[at].b != b)) {
        at = (at + 1) & (map->capacity - 1);
    }
    return at;
}

int bt_map_widen(bt_map *map, size_t count) {
    bt_map wider = {NULL, map->count, map->capacity ? map->capacity * 2 : 16};
    while (count * 2 > wider.capacity) wider.capacity *= 2;
    wider.entries = calloc(wider.capacity, sizeof(bt_entry));
    if (!wider.entries) return -1;
    for (size_t i = 0; i < map->capacity; i++) {
        const bt_entry *entry = &map->entries[i];
        if (entry->value) wider.entries[find(&wider, entry->a, entry->b)] = *entry;
    }
    free(map->entries);
    *map = wider;
    return 0;
}

void *bt_map_get(const bt_map *map, uint64_t a, uint64_t b) {
    return map->count ? map->entries[find(map, a, b)].value : NULL;
}

void bt_map_put(bt_map *map, uint64_t a, uint64_t b, void *value) {
    map->entries[find(map, a, b)] = (bt_entry){a, b, value};
    map->count++;
}

void bt_map_remove(bt_map *map, uint64_t a, uint64_t b) {
    size_t mask = map->capacity - 1;
    size_t hole = find(map, a, b);
    map->count--;
    for (size_t at = (hole + 1) & mask; map->entries[at].value; at = (at + 1) & mask) {
        /* An entry may fill the hole unless its home lies behind the hole. */
        size_t from_home = (at - home(map, map->entries[at].a, map->entries[at].b)) & mask;
        if (from_home < ((at - hole) & mask)) continue;
        map->entries[hole] = map->entries[at];
        hole = at;
    }
    map->entries[hole].value = NULL;
}

void bt_map_clear(bt_map *map) {
    free(map->entries);
    memset(map, 0, sizeof *map);
}
